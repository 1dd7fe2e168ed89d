use std::cell::Cell;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};

use crate::cores::{CoreOptions, Cores, block_on};
use crate::drain::Drain;
use crate::http::{Limits, Served, serve};
use crate::net::{Listener, Stream};
use crate::pace::Rate;
use crate::{now, sleep, spawn, timeout};

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// `/echo` gives the body back, `/N` N bytes, `/slow` waits 100 ms, `/panic` panics.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let body = match path.as_str() {
        "echo" => request.into_body().collect().await.map_or_else(|_| Bytes::new(), |b| b.to_bytes()),
        "slow" => {
            sleep(Duration::from_millis(100)).await;
            Bytes::from_static(b"slow")
        }
        "panic" => panic!("asked to"),
        n => Bytes::from(vec![b'x'; n.parse().unwrap_or(2)]),
    };
    Ok(Response::new(Full::new(body)))
}

/// Runs `client` on a thread against a server on a core; then drains it.
fn with_server<T: Send + 'static>(
    limits: Limits,
    client: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> (T, Served, Duration) {
    block_on(&CoreOptions::default(), move || async move {
        let listener = Listener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let server = spawn(serve(listener, |_| service_fn(answer), limits, drain.clone()));
        let value = crate::offload::Pool::new(1, 1).run(move || client(address)).await;
        drain.begin();
        let began = now();
        let served = server.await.unwrap();
        (value, served, now() - began)
    })
    .unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Reads one response with a content-length.
fn response(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "a head, not an end after {head:?}");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|r| r.split("\r\n").next()).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn get(stream: &mut TcpStream, path: &str) -> Vec<u8> {
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let (head, body) = response(stream);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    body
}

#[test]
fn requests_are_answered() {
    let ((), served, _) = with_server(Limits::default(), |address| {
        let mut one = connect(address);
        for n in [0usize, 1, 100, 4096, 100_000, 10 << 20] {
            assert_eq!(get(&mut one, &n.to_string()).len(), n);
        }
        // Pipelined.
        write!(one, "{}", "GET /5 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50)).unwrap();
        for _ in 0..50 {
            assert_eq!(response(&mut one).1, b"xxxxx");
        }
        // A head that comes byte by byte.
        for byte in b"GET /7 HTTP/1.1\r\nhost: x\r\n\r\n" {
            one.write_all(&[*byte]).unwrap();
        }
        assert_eq!(response(&mut one).1.len(), 7);
    });
    assert_eq!(served, Served { connections: 1, cut_off: 0 });
}

#[test]
fn bodies_come_and_go_whole() {
    with_server(Limits::default(), |address| {
        for n in [1usize, 1000, 16 << 10, 100_000, 20 << 20] {
            let mut stream = connect(address);
            let mut body = vec![0; n];
            crate::sim::Rng::new(n as u64).fill(&mut body);
            let mut sender = stream.try_clone().unwrap();
            let sent = body.clone();
            let thread = std::thread::spawn(move || {
                write!(sender, "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", sent.len()).unwrap();
                sender.write_all(&sent).unwrap();
            });
            assert!(response(&mut stream).1 == body, "{n} bytes come back");
            thread.join().unwrap();
            assert_eq!(get(&mut stream, "3"), b"xxx", "the connection is good for more");
        }
    });
}

#[test]
fn many_connections_are_served() {
    let ((), served, _) = with_server(Limits { connections: 50, ..Limits::default() }, |address| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(move || {
                    for _ in 0..20 {
                        let mut streams: Vec<_> = (0..4).map(|_| connect(address)).collect();
                        for stream in &mut streams {
                            assert_eq!(get(stream, "1000").len(), 1000);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    assert_eq!(served.connections, 8 * 20 * 4);
}

/// True when the server closes within the read time-out.
fn closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn slow_clients_are_cut_off() {
    let short = Duration::from_millis(60);
    let limits = Limits { header_read: short, idle: Duration::from_millis(200), ..Limits::default() };
    with_server(limits, |address| {
        // Never a whole head.
        let mut slow = connect(address);
        let mut writer = slow.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            for byte in
                b"GET /1 HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".iter().cycle().take(2_000)
            {
                if writer.write_all(&[*byte]).is_err() {
                    return true;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
            false
        });
        assert!(closed(&mut slow));
        drop(slow);
        assert!(thread.join().unwrap(), "cut off while still writing");
        // Says nothing, before and after a request.
        assert!(closed(&mut connect(address)));
        let mut idle = connect(address);
        get(&mut idle, "1");
        assert!(closed(&mut idle));
        // A service at work is not idleness.
        let mut busy = connect(address);
        assert_eq!(get(&mut busy, "slow"), b"slow");
    });
}

#[test]
fn an_answer_is_taken_at_a_least_rate() {
    const LEN: usize = 64 << 20;
    let ask = |stream: &mut TcpStream| write!(stream, "GET /{LEN} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // Nobody takes so much in a second of waiting: whoever is waited for at all is too slow. Never idle.
    let slowest = Rate { window: Duration::from_millis(20), bytes_per_second: 1 << 40 };
    let limits = Limits { slowest, idle: Duration::from_secs(1), ..Limits::default() };
    with_server(limits, move |address| {
        let mut stream = connect(address);
        ask(&mut stream);
        let (mut got, mut piece) = (0, [0; 4096]);
        let cut_off = loop {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => break true,
                Ok(_) if got >= LEN => break false,
                Ok(n) => got += n,
            }
            std::thread::park_timeout(Duration::from_millis(1));
        };
        assert!(cut_off && got < LEN, "{got}");
    });
    // Somebody who takes a little, now and then, gets it all at a rate that he keeps.
    let slowest = Rate { window: Duration::from_millis(20), bytes_per_second: 1 };
    with_server(Limits { slowest, ..Limits::default() }, move |address| {
        let mut stream = connect(address);
        ask(&mut stream);
        std::thread::park_timeout(Duration::from_millis(10));
        assert_eq!(response(&mut stream).1.len(), LEN);
    });
}

/// More than the kernels hold.
pub(crate) const MUCH: usize = 12 << 20;

/// Reads [`MUCH`]: first a little at a time, 200 KiB a second, for several times as long as a client may be idle; then as fast
/// as it comes.
pub(crate) fn read_slowly(stream: &mut impl Read) {
    let (mut got, mut piece, began) = (0, vec![0; 1 << 20], std::time::Instant::now());
    while got < MUCH {
        let is_slow = began.elapsed() < Duration::from_secs(3);
        match stream.read(if is_slow { &mut piece[..4096] } else { &mut piece }) {
            Ok(n) if n > 0 => got += n,
            end => panic!("cut off after {got} bytes and {:?}: {end:?}", began.elapsed()),
        }
        if is_slow {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// The kernel takes megabytes for a client of 200 KiB a second, and then nothing for seconds.
pub(crate) fn slow_readers() -> Limits {
    let second = Duration::from_secs(1);
    Limits { slowest: Rate { window: second, bytes_per_second: 20 << 10 }, idle: second, ..Limits::default() }
}

#[test]
fn a_slow_reader_of_much_gets_it_all() {
    with_server(slow_readers(), |address| {
        let mut stream = connect(address);
        write!(stream, "GET /{MUCH} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        read_slowly(&mut stream);
    });
    // Who takes nothing at all is still cut off.
    with_server(slow_readers(), |address| {
        let mut stream = connect(address);
        write!(stream, "GET /{MUCH} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        std::thread::park_timeout(Duration::from_secs(3));
        let (mut got, mut rest) = (0, vec![0; 1 << 20]);
        while let Ok(n @ 1..) = stream.read(&mut rest) {
            got += n;
        }
        assert!(got < MUCH, "{got}");
    });
}

#[test]
fn the_connection_cap_holds_and_frees() {
    let ((), served, _) = with_server(Limits { connections: 1, ..Limits::default() }, |address| {
        let mut first = connect(address);
        get(&mut first, "1");
        let mut second = connect(address);
        write!(second, "GET /1 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(second.read(&mut [0]).is_err(), "the second waits");
        second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        drop(first);
        assert_eq!(response(&mut second).1, b"x");
    });
    assert_eq!(served.connections, 2);
}

#[test]
fn draining_ends_what_is_under_way() {
    let (mut stream, served, took) = with_server(Limits::default(), |address| {
        let mut stream = connect(address);
        get(&mut stream, "1");
        write!(stream, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        std::thread::park_timeout(Duration::from_millis(30));
        stream
    });
    let (head, body) = response(&mut stream);
    assert_eq!(body, b"slow");
    assert!(head.contains("connection: close"), "{head}");
    assert!(closed(&mut stream));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(served.cut_off, 0);
}

#[test]
fn a_drain_has_an_end() {
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
    let (_stream, served, _) = with_server(limits, |address| {
        let mut stream = connect(address);
        // A body that never comes.
        write!(stream, "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").unwrap();
        std::thread::park_timeout(Duration::from_millis(30));
        stream
    });
    assert_eq!(served.cut_off, 1);
}

#[test]
fn rubbish_and_panics_end_one_connection() {
    with_server(Limits::default(), |address| {
        let mut bad = connect(address);
        bad.write_all(b"\x16\x03\x01 not http at all\r\n\r\n").unwrap();
        assert!(closed(&mut bad));
        let mut bad = connect(address);
        write!(bad, "GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(closed(&mut bad));
        assert_eq!(get(&mut connect(address), "1"), b"x");
    });
}

#[test]
fn cores_share_a_port() {
    let cores = Cores::start(2, &CoreOptions::default()).unwrap();
    let serve_on = |core: usize, address: SocketAddr| {
        cores
            .handle(core)
            .run_blocking(move || async move {
                let listener = Listener::bind(address).unwrap();
                let address = listener.local_addr().unwrap();
                spawn(serve(listener, |_| service_fn(answer), Limits::default(), Drain::new()));
                address
            })
            .unwrap()
    };
    let address = serve_on(0, LOCAL);
    assert_eq!(serve_on(1, address), address);
    for _ in 0..40 {
        assert_eq!(get(&mut connect(address), "1"), b"x");
    }
    // The cores stop with the listeners and a connection open.
    let mut open = connect(address);
    get(&mut open, "1");
    cores.shutdown();
    assert!(closed(&mut open));
}

#[test]
fn streams_connect_and_carry() {
    block_on(&CoreOptions::default(), || async {
        let mut listener = Listener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let server = spawn(async move {
            let mut stream = listener.accept().await.unwrap();
            let mut total = 0u64;
            let mut buf = vec![0; 100_000];
            // Not reading for a while must not pile up buffers without bound.
            sleep(Duration::from_millis(50)).await;
            loop {
                match stream.read(&mut buf).await.unwrap() {
                    0 => break,
                    n => total += n as u64,
                }
            }
            stream.write_all(&total.to_le_bytes()).await.unwrap();
        });
        let mut client = Stream::connect(address).await.unwrap();
        let piece = vec![1u8; 1 << 20];
        for _ in 0..32 {
            client.write_all(&piece).await.unwrap();
        }
        client.shutdown().unwrap();
        let mut total = [0; 8];
        client.read_exact(&mut total).await.unwrap();
        assert_eq!(u64::from_le_bytes(total), 32 << 20);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        server.await.unwrap();
        assert!(Stream::connect(address).await.is_err(), "nobody listens any more");
        // Every receive buffer came back.
        drop(client);
        sleep(Duration::from_millis(5)).await;
        let ring = crate::ring::current();
        assert_eq!(ring.bufs().free(), 512);
    })
    .unwrap();
}

#[test]
fn idle_connections_starve_nobody_of_buffers() {
    let mut options = CoreOptions::default();
    options.ring.recv_buffers = (8, 4096);
    block_on(&options, || async {
        let mut listener = Listener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let done = Rc::new(Cell::new(0));
        let mut pairs = Vec::new();
        for _ in 0..20 {
            let client = Stream::connect(address).await.unwrap();
            pairs.push((client, listener.accept().await.unwrap()));
        }
        let tasks: Vec<_> = pairs
            .into_iter()
            .map(|(mut client, mut server)| {
                let done = done.clone();
                spawn(async move {
                    let sender = spawn(async move {
                        for n in 0..200u32 {
                            client.write_all(&vec![n as u8; 1 + (n as usize * 37) % 9000]).await.unwrap();
                        }
                        client.shutdown().unwrap();
                        client
                    });
                    let mut buf = vec![0; 3000];
                    while server.read(&mut buf).await.unwrap() > 0 {
                        done.set(done.get() + 1);
                    }
                    sender.await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            timeout(Duration::from_secs(20), task).await.expect("nobody starves").unwrap();
        }
    })
    .unwrap();
}
