//! HTTP over TLS from outside: whole bodies, rubbish instead of a handshake, handshakes that never end.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion};

use crate::cores::{CoreOptions, block_on};
use crate::drain::Drain;
use crate::http::{Limits, Served, TlsVersion, serve_tls};
use crate::net::Listener;
use crate::spawn;

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// `/echo` gives the body back, `/tls` says the version of TLS, `/N` N bytes.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let body = match path.as_str() {
        "tls" => format!("{:?}", request.extensions().get::<TlsVersion>()).into(),
        "echo" => request.into_body().collect().await.map_or_else(|_| Bytes::new(), |b| b.to_bytes()),
        n => Bytes::from(vec![b'x'; n.parse().unwrap_or(2)]),
    };
    Ok(Response::new(Full::new(body)))
}

/// A server's configuration and what a client must believe.
fn certificate() -> (Arc<ServerConfig>, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (chain, key) = (made.cert.der().clone(), PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![chain.clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (Arc::new(config), chain)
}

pub(crate) fn with_server<T: Send + 'static>(
    limits: Limits,
    client: impl FnOnce(SocketAddr, CertificateDer<'static>) -> T + Send + 'static,
) -> (T, Served) {
    block_on(&CoreOptions::default(), move || async move {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let (config, chain) = certificate();
        let server = spawn(serve_tls(
            listener,
            |peer| {
                assert!(peer.secure);
                service_fn(answer)
            },
            limits,
            drain.clone(),
            config,
        ));
        let value = crate::offload::Pool::new(1, 1).run(move || client(address, chain)).await;
        drain.begin();
        (value, server.await.unwrap())
    })
    .unwrap()
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn connect(address: SocketAddr, chain: CertificateDer<'static>) -> Tls {
    connect_as(address, chain, b"http/1.1")
}

/// Speaks this protocol.
pub(crate) fn connect_as(address: SocketAddr, chain: CertificateDer<'static>, protocol: &[u8]) -> Tls {
    connect_with(address, chain, protocol, rustls::ALL_VERSIONS)
}

fn connect_with(
    address: SocketAddr,
    chain: CertificateDer<'static>,
    protocol: &[u8],
    versions: &[&'static SupportedProtocolVersion],
) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(chain).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp(address))
}

/// Reads one response with a content-length.
fn response(stream: &mut Tls) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "a head, not an end after {head:?}");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.split("content-length: ").nth(1).and_then(|r| r.split("\r\n").next()).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn bodies_come_and_go_whole() {
    let ((), served) = with_server(Limits::default(), |address, chain| {
        let mut stream = connect(address, chain);
        for n in [0usize, 1, 16 << 10, 100_000, 5 << 20] {
            write!(stream, "GET /{n} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert_eq!(response(&mut stream).len(), n);
            let mut body = vec![0; n];
            crate::sim::Rng::new(n as u64).fill(&mut body);
            write!(stream, "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {n}\r\n\r\n").unwrap();
            stream.write_all(&body).unwrap();
            assert!(response(&mut stream) == body, "{n} bytes come back");
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    });
    assert_eq!(served, Served { connections: 1, cut_off: 0 });
}

#[test]
fn requests_know_their_version() {
    with_server(Limits::default(), |address, chain| {
        for (version, name) in [(&rustls::version::TLS12, "TLSv1_2"), (&rustls::version::TLS13, "TLSv1_3")] {
            let mut stream = connect_with(address, chain.clone(), b"http/1.1", &[version]);
            for _ in 0..2 {
                write!(stream, "GET /tls HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                assert_eq!(String::from_utf8(response(&mut stream)).unwrap(), format!("Some(TlsVersion({name}))"));
            }
        }
    });
}

#[test]
fn rubbish_harms_nobody_else() {
    with_server(Limits::default(), |address, chain| {
        let mut good = connect(address, chain);
        write!(good, "GET /5 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(response(&mut good).len(), 5);
        for rubbish in
            [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0x16, 3, 1, 0xFF, 0xFF, 1, 2, 3], &[0; 300], b"\x80\x2e\x01"]
        {
            let mut stream = tcp(address);
            stream.write_all(rubbish).unwrap();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            // An alert, or just the end.
            let _ = stream.read_to_end(&mut rest);
            assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
        }
        write!(good, "GET /6 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(response(&mut good).len(), 6);
    });
}

#[test]
fn a_handshake_that_does_not_end_is_cut_off() {
    let limits = Limits { header_read: Duration::from_millis(200), ..Limits::default() };
    let ((), served) = with_server(limits, |address, _| {
        // Nothing at all, and the beginning of a record that never comes whole.
        for beginning in [&b""[..], &[0x16, 3, 1, 1, 0, 1]] {
            let mut stream = tcp(address);
            stream.write_all(beginning).unwrap();
            let began = Instant::now();
            let _ = stream.read_to_end(&mut Vec::new());
            assert!(began.elapsed() < Duration::from_secs(10), "it was closed");
        }
    });
    assert_eq!(served, Served { connections: 2, cut_off: 0 });
}
