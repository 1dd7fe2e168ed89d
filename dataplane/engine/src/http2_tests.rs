//! HTTP/2's rules from outside, by frames that no well-behaved client sends: PINGs without end, windows that stay shut.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::http::Limits;
use crate::http_tests::{MUCH, read_slowly, slow_readers};
use crate::pace::Rate;
use crate::tls_tests::{Tls, connect_as, with_server};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const IDLE: Duration = Duration::from_millis(400);

fn limits() -> Limits {
    Limits { idle: IDLE, header_read: Duration::from_secs(10), ..Limits::default() }
}

struct Client(Tls);

impl Client {
    /// After the preface; streams have so large a window.
    fn new(mut stream: Tls, window: u32) -> Self {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut client = Self(stream);
        let mut settings = vec![0, 4];
        settings.extend(window.to_be_bytes());
        client.send(SETTINGS, 0, 0, &settings).unwrap();
        client
    }
    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame)?;
        self.0.flush()
    }
    /// `GET /path`, in HPACK without a table.
    fn get(&mut self, stream: u32, path: &str) -> io::Result<()> {
        let mut head = vec![0x82, 0x87, 0x01, 1, b'x', 0x04, path.len() as u8];
        head.extend(path.as_bytes());
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &head)
    }
    fn ping(&mut self) -> io::Result<()> {
        self.send(PING, 0, 0, &[7; 8])
    }
    /// A frame's kind, flags, stream and payload.
    fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        self.0.read_exact(&mut payload)?;
        Ok((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
    /// The frames up to the one of this kind on this stream.
    fn until(&mut self, kind: u8, stream: u32) -> io::Result<Vec<(u8, u32)>> {
        let mut seen = Vec::new();
        loop {
            let (got, _, at, _) = self.frame()?;
            seen.push((got, at));
            if (got, at) == (kind, stream) {
                return Ok(seen);
            }
        }
    }
    /// Pings, waits for the pong, and again, until the server closes; how long that took.
    fn ping_to_the_end(&mut self) -> Duration {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            if self.ping().and_then(|()| self.until(PING, 0)).is_err() {
                return began.elapsed();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("PINGs kept the connection open");
    }
}

#[test]
fn pings_keep_no_connection_open() {
    with_server(limits(), |address, chain| {
        // Before any request, and after one.
        let mut client = Client::new(connect_as(address, chain.clone(), b"h2"), 65_535);
        assert!(client.ping_to_the_end() >= IDLE / 2);
        let mut client = Client::new(connect_as(address, chain, b"h2"), 65_535);
        client.get(1, "/5").unwrap();
        client.until(DATA, 1).unwrap();
        assert!(client.ping_to_the_end() >= IDLE / 2);
    });
}

#[test]
fn an_answer_that_is_not_taken_ends_alone() {
    with_server(limits(), |address, chain| {
        let mut client = Client::new(connect_as(address, chain, b"h2"), 0);
        client.get(1, "/100000").unwrap();
        client.until(HEADERS, 1).unwrap();
        // Others are answered all the while.
        let began = Instant::now();
        let (mut stream, mut reset) = (3, false);
        while !reset {
            assert!(began.elapsed() < Duration::from_secs(20), "the stalled stream was never reset");
            client.get(stream, "/0").unwrap();
            let seen = client.until(HEADERS, stream).expect("the connection goes on");
            reset = seen.contains(&(RST_STREAM, 1));
            assert!(!seen.iter().any(|(kind, _)| *kind == GOAWAY), "{seen:?}");
            stream += 2;
            std::thread::park_timeout(Duration::from_millis(10));
        }
        assert!(began.elapsed() >= IDLE / 2);
        client.get(stream, "/0").unwrap();
        client.until(HEADERS, stream).unwrap();
        // Then it is idle, with windows still shut.
        client.ping_to_the_end();
    });
}

#[test]
fn a_slow_client_gets_it_all() {
    with_server(limits(), |address, chain| {
        const LEN: usize = 400_000;
        let mut client = Client::new(connect_as(address, chain, b"h2"), 0);
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 20).to_be_bytes()).unwrap();
        client.get(1, &format!("/{LEN}")).unwrap();
        client.until(HEADERS, 1).unwrap();
        let (mut got, began) = (0, Instant::now());
        while got < LEN {
            // A frame at a time, for several idle times.
            client.send(WINDOW_UPDATE, 0, 1, &16_384u32.to_be_bytes()).unwrap();
            let want = (got + 16_384).min(LEN);
            while got < want {
                let (kind, _, stream, payload) = client.frame().expect("it is not cut off");
                assert_ne!(kind, RST_STREAM);
                got += if (kind, stream) == (DATA, 1) { payload.len() } else { 0 };
            }
            std::thread::park_timeout(IDLE / 8);
        }
        assert!(began.elapsed() > IDLE * 2, "{:?}", began.elapsed());
    });
}

#[test]
fn a_slow_reader_with_wide_windows_is_not_cut_off() {
    with_server(slow_readers(), |address, chain| {
        let mut client = Client::new(connect_as(address, chain, b"h2"), (1 << 31) - 1);
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()).unwrap();
        client.get(1, &format!("/{MUCH}")).unwrap();
        client.until(HEADERS, 1).unwrap();
        read_slowly(&mut client.0);
    });
}

#[test]
fn an_answer_that_is_taken_too_slowly_ends_alone() {
    let slowest = Rate { window: IDLE / 8, bytes_per_second: 1 << 40 };
    with_server(Limits { slowest, idle: Duration::from_secs(20), ..limits() }, |address, chain| {
        let mut client = Client::new(connect_as(address, chain, b"h2"), 0);
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 20).to_be_bytes()).unwrap();
        client.get(1, "/1000000").unwrap();
        client.until(HEADERS, 1).unwrap();
        let mut reset = false;
        for _ in 0..1000 {
            // Some of it, long after it was asked for.
            client.send(WINDOW_UPDATE, 0, 1, &16_384u32.to_be_bytes()).unwrap();
            client.ping().unwrap();
            reset = client.until(PING, 0).expect("the connection goes on").contains(&(RST_STREAM, 1));
            if reset {
                break;
            }
            std::thread::park_timeout(IDLE / 8);
        }
        assert!(reset, "it was never too slow");
        client.get(3, "/0").unwrap();
        client.until(HEADERS, 3).unwrap();
    });
}

#[test]
fn a_head_has_a_largest_size() {
    with_server(limits(), |address, chain| {
        let mut client = Client::new(connect_as(address, chain, b"h2"), 65_535);
        // HPACK: what one indexed field names counts each time, so little becomes much.
        let mut head = vec![0x82, 0x87, 0x01, 1, b'x', 0x04, 2, b'/', b'5', 0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
        head.extend(vec![b'v'; 4000]);
        head.extend(vec![0xbe; 20]);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &head).unwrap();
        let (kind, payload) = loop {
            let (kind, _, stream, payload) = client.frame().unwrap();
            if stream == 1 || kind == GOAWAY {
                break (kind, payload);
            }
        };
        // Refused, or the end of the stream; 0x88 is `:status: 200`.
        assert!(kind != DATA && payload.first() != Some(&0x88), "{kind} {payload:?}");
    });
}
