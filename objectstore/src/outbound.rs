//! Requests to other servers: webhooks and remotes of replication, over TLS or not, on the courier's thread.
//!
//! ```text
//! engine core: Call (head, body in pieces) -> channel -> courier's thread: connect, TLS, send -> Reply
//! ```
//!
//! A connection is kept for the next request to its server for a moment. A request ends when nothing moved for
//! [`STALLED`] (a slow one may be given longer), so a dead server costs its own requests that long and nobody else anything.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// How long a connection and its handshake may take.
const CONNECT: Duration = Duration::from_secs(10);
/// A request in which nothing moves for so long has failed.
pub const STALLED: Duration = Duration::from_secs(60);
/// A connection that waits longer for its next request is closed.
const IDLE: Duration = Duration::from_secs(3);
/// Connections of one server that wait.
const IDLE_MAX: usize = 8;
/// The largest answer: documents of S3 are far smaller.
const ANSWER_MAX: usize = 1 << 20;
/// The certificates that are trusted where the settings name none.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A server, and the connections to it.
pub struct Endpoint {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: Mutex<Vec<(Instant, Connection)>>,
}

/// A connection; it ends with this.
struct Connection {
    sender: SendRequest<Body>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Else a server that answers and reads no more would keep it, and the body, for ever.
        self.task.abort();
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({}:{}, {})", self.host, self.port, if self.tls.is_some() { "TLS" } else { "no TLS" })
    }
}

impl Endpoint {
    /// The server of this address. `ca`: a file of PEM certificates, one of which the server's must come from; the
    /// system's where there is none.
    ///
    /// # Errors
    /// A sentence: what is wrong with the address or the file.
    pub fn new(uri: &Uri, ca: Option<&Path>) -> Result<Self, String> {
        let host = uri.host().ok_or("it names no host")?.trim_matches(['[', ']']).to_owned();
        let tls = match uri.scheme_str() {
            Some("http") if ca.is_none() => None,
            Some("http") => return Err("a CA is of no use over http".into()),
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|e| format!("{host:?}: {e}"))?;
                Some((TlsConnector::from(Arc::new(trusting(ca)?)), name))
            }
            _ => return Err("want http:// or https://".into()),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { host, port, tls, idle: Mutex::default() })
    }

    async fn connection(&self) -> Result<Connection, String> {
        loop {
            let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((since, mut connection)) = waiting else { break };
            if since.elapsed() < IDLE && connection.sender.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            match &self.tls {
                None => begin(stream).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await;
                    begin(stream.map_err(|e| format!("TLS: {e}"))?).await
                }
            }
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(format!("no connection within {} s", CONNECT.as_secs())));
        connected.map_err(|e| format!("{}:{}: {e}", self.host, self.port))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// No connection, no answer, no more answer.
    pub async fn send(&self, mut parts: Parts, body: Body) -> Result<Reply, Unanswered> {
        if !parts.headers.contains_key(CONTENT_LENGTH) && [Method::PUT, Method::POST].contains(&parts.method) {
            parts.headers.insert(CONTENT_LENGTH, body.left.into());
        }
        // To the server itself the target is a path.
        if let Some(path) = parts.uri.path_and_query() {
            if !parts.headers.contains_key(HOST)
                && let Some(host) = parts.uri.authority().and_then(|a| a.as_str().parse().ok())
            {
                parts.headers.insert(HOST, host);
            }
            parts.uri = Uri::from(path.clone());
        }
        let (progress, patience) = (body.progress.clone(), body.patience);
        let exchange = async {
            let mut connection = self.connection().await.map_err(|why| Unanswered::new(false, why))?;
            let broken = |why: String| Unanswered::new(true, format!("{}:{}: {why}", self.host, self.port));
            let answer = connection.sender.send_request(Request::from_parts(parts, body)).await;
            let answer = answer.map_err(|e| broken(words(&e)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|e| broken(e.to_string()))?.to_bytes();
            // Not one whose server has answered without taking all of the body.
            if progress.over.load(Ordering::Relaxed) {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < IDLE_MAX {
                    idle.push((Instant::now(), connection));
                }
            }
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        let mut exchange = std::pin::pin!(exchange);
        loop {
            let before = progress.moved.load(Ordering::Relaxed);
            match tokio::time::timeout(patience, &mut exchange).await {
                Ok(outcome) => return outcome,
                Err(_) if progress.moved.load(Ordering::Relaxed) != before => {}
                Err(_) => {
                    let why = format!("{}:{}: nothing moved for {} s", self.host, self.port, patience.as_secs());
                    return Err(Unanswered::new(true, why));
                }
            }
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unanswered {
    /// False where there was not even a connection.
    pub connected: bool,
    /// In words.
    pub why: String,
}

impl Unanswered {
    fn new(connected: bool, why: String) -> Self {
        Self { connected, why }
    }
}

/// An error with what lies below it.
fn words(e: &hyper::Error) -> String {
    match std::error::Error::source(e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

async fn begin(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // What breaks it, the request on it is told.
    let task = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    Ok(Connection { sender, task })
}

/// A client that trusts these certificates.
fn trusting(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let path = ca.unwrap_or(Path::new(SYSTEM_CA));
    let wrong = |why: String| format!("the certificates in {}: {why}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
        // Of the system's some may be of a kind that is not known here; of the operator's own none.
        if let Err(e) = roots.add(certificate)
            && ca.is_some()
        {
            return Err(wrong(e.to_string()));
        }
    }
    if roots.is_empty() {
        return Err(wrong("there are none".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// A request's body: bytes, or pieces that come over a channel.
pub struct Body {
    whole: Option<Bytes>,
    pieces: Option<mpsc::Receiver<Result<Bytes, Broken>>>,
    left: u64,
    progress: Arc<Progress>,
    patience: Duration,
}

/// How far a body has got.
#[derive(Debug, Default)]
struct Progress {
    /// Counts its pieces.
    moved: AtomicU64,
    /// All of it has been taken.
    over: AtomicBool,
}

/// The pieces of a body cannot be read to their end.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body broke off")]
pub struct Broken;

impl Body {
    /// These bytes.
    pub fn whole(bytes: Bytes) -> Self {
        Self::new(bytes.len() as u64, Some(bytes), None)
    }
    /// So many bytes in pieces, and where to put them.
    pub fn pieces(len: u64) -> (mpsc::Sender<Result<Bytes, Broken>>, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Self::new(len, None, Some(receiver)))
    }
    fn new(left: u64, whole: Option<Bytes>, pieces: Option<mpsc::Receiver<Result<Bytes, Broken>>>) -> Self {
        let progress = Progress { over: AtomicBool::new(left == 0), ..Progress::default() };
        Self { whole, pieces, left, progress: Arc::new(progress), patience: STALLED }
    }
    /// The same, whose answer may take longer than [`STALLED`].
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = match (self.whole.take(), &mut self.pieces) {
            (Some(bytes), _) if !bytes.is_empty() => Some(Ok(bytes)),
            (_, None) => None,
            (_, Some(pieces)) => std::task::ready!(pieces.poll_next_unpin(cx)),
        };
        self.progress.moved.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                self.progress.over.store(self.left == 0, Ordering::Relaxed);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(broken)) => Some(Err(broken)),
            None if self.left > 0 => Some(Err(Broken)),
            None => None,
        })
    }
    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A request on its way to the courier's thread.
pub struct Call {
    to: Arc<Endpoint>,
    parts: Parts,
    body: Body,
    reply: oneshot::Sender<Result<Reply, Unanswered>>,
}

/// Takes requests from engine cores. Those who ask bound how many there are at once.
#[derive(Debug, Clone)]
pub struct Outbound(mpsc::UnboundedSender<Call>);

/// A way for requests, and its end on the courier's thread.
pub fn channel() -> (Outbound, mpsc::UnboundedReceiver<Call>) {
    let (sender, receiver) = mpsc::unbounded();
    (Outbound(sender), receiver)
}

impl Outbound {
    /// Sends a request.
    ///
    /// # Errors
    /// As [`Endpoint::send`].
    pub async fn ask(&self, to: &Arc<Endpoint>, parts: Parts, body: Body) -> Result<Reply, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let call = Call { to: to.clone(), parts, body, reply };
        let stopped = || Unanswered::new(false, "this Walrus stops".into());
        self.0.unbounded_send(call).map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// Sends what comes, for ever: each request by a task of its own.
pub async fn serve(mut calls: mpsc::UnboundedReceiver<Call>) {
    while let Some(Call { to, parts, body, mut reply }) = calls.next().await {
        tokio::spawn(async move {
            // Whoever asked may be gone.
            let sent = async { to.send(parts, body).await };
            let outcome = tokio::select! {
                outcome = sent => outcome,
                () = reply.cancellation() => return,
            };
            let _ = reply.send(outcome);
        });
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn addresses() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("ca.pem");
        std::fs::write(&empty, "").unwrap();
        let check = |uri: &str, ca: Option<&Path>, want: Result<(&str, u16), &str>| {
            let got = Endpoint::new(&uri.parse().unwrap(), ca);
            match (&got, want) {
                (Ok(e), Ok(want)) => assert_eq!((e.host.as_str(), e.port), want, "{uri}"),
                (Err(e), Err(want)) => assert!(e.contains(want), "{uri}: {e}"),
                _ => panic!("{uri}: {got:?}"),
            }
        };
        check("http://127.0.0.1:9000/x", None, Ok(("127.0.0.1", 9000)));
        check("http://host/", None, Ok(("host", 80)));
        check("http://[::1]:81/", None, Ok(("::1", 81)));
        check("ftp://host/", None, Err("want http"));
        check("/path", None, Err("no host"));
        check("http://host/", Some(&empty), Err("no use"));
        check("https://host/", Some(&empty), Err("there are none"));
        check("https://host/", Some(Path::new("/absent.pem")), Err("/absent.pem"));
    }

    /// A server that answers the first request on each connection so, this long after its head came, and reads no more.
    async fn server(answer: &'static str, after: Duration) -> (Endpoint, Uri) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/b/k", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                tokio::time::sleep(after).await;
                // Whoever asked may be gone.
                let _ = stream.write_all(answer.as_bytes()).await;
                open.push(stream);
            }
        });
        (Endpoint::new(&uri, None).unwrap(), uri)
    }

    fn put(uri: &Uri) -> Parts {
        Request::builder().method(Method::PUT).uri(uri.clone()).body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn a_slow_answer_is_waited_for_where_that_was_said() {
        let (endpoint, uri) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Duration::from_millis(400)).await;
        let ask = |patience| endpoint.send(put(&uri), Body::whole(Bytes::from_static(b"x")).patient(patience));
        let refused = ask(Duration::from_millis(50)).await.unwrap_err();
        assert!(refused.connected && refused.why.contains("nothing moved"), "{refused}");
        assert_eq!(ask(Duration::from_secs(30)).await.unwrap().status, 200);
    }

    #[tokio::test]
    async fn a_connection_with_a_body_that_nobody_reads_is_given_up() {
        let (endpoint, uri) = server("HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n", Duration::ZERO).await;
        for _ in 0..3 {
            let (mut pieces, body) = Body::pieces(1 << 40);
            let feed = async {
                let piece = Bytes::from(vec![0; 1 << 20]);
                while futures_util::SinkExt::send(&mut pieces, Ok(piece.clone())).await.is_ok() {}
            };
            let asked = endpoint.send(put(&uri), body.patient(Duration::from_secs(30)));
            let (reply, ()) = tokio::time::timeout(Duration::from_secs(30), futures_util::future::join(asked, feed))
                .await
                .expect("both ends end");
            assert_eq!(reply.unwrap().status, 403);
        }
    }

    #[tokio::test]
    async fn bodies_that_break_off_are_errors() {
        let (mut sender, body) = Body::pieces(5);
        assert_eq!(body.size_hint().exact(), Some(5));
        sender.try_send(Ok(Bytes::from_static(b"he"))).unwrap();
        drop(sender);
        assert!(body.collect().await.is_err());
        let whole = Body::whole(Bytes::from_static(b"hello")).collect().await.unwrap().to_bytes();
        assert_eq!(whole, "hello");
        assert!(Body::whole(Bytes::new()).is_end_stream());
    }
}
