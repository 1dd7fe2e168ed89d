//! One connection to a Walrus: HTTP/1.1, plain or over TLS, opened anew when it was closed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where Debian keeps the authorities that a system believes.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// See the module.
pub struct Wire {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Wire {
    /// To this endpoint; connects when something is sent.
    pub fn new(endpoint: &str, ca: Option<&Path>) -> Result<Self> {
        let uri: Uri = endpoint.parse().with_context(|| format!("endpoint {endpoint:?}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(connector(ca.unwrap_or(Path::new(SYSTEM_CA)))?),
            _ => bail!("endpoint {endpoint:?}: want http://HOST:PORT or https://HOST:PORT"),
        };
        let host = uri.host().with_context(|| format!("endpoint {endpoint:?} names no host"))?;
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port, tls, sender: None })
    }

    /// Sends a request; the answer's head.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        if let (false, Some(authority)) = (request.headers().contains_key("host"), request.uri().authority()) {
            let host = HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert("host", host);
        }
        let path = request.uri().path_and_query().cloned().context("the request has no path")?;
        *request.uri_mut() = Uri::from(path);
        let mut open = self.sender.take();
        if let Some(sender) = &mut open
            && sender.ready().await.is_err()
        {
            open = None;
        }
        let mut sender = match open {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answer = sender.send_request(request).await;
        self.sender = Some(sender);
        answer.with_context(|| format!("Walrus at {}:{} does not answer", self.host, self.port))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let place = || format!("{}:{}", self.host, self.port);
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = stream.await.with_context(|| format!("Walrus at {} cannot be reached", place()))?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => speak(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())?;
                let stream = tls.connect(name, stream).await;
                speak(stream.with_context(|| format!("no TLS with Walrus at {} (--ca)", place()))?).await
            }
        }
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end shows where something is sent or read.
    tokio::spawn(connection);
    Ok(sender)
}

fn connector(ca: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let wrong = || format!("authorities {} (--ca)", ca.display());
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| anyhow!("{}: {e}", wrong()))? {
        roots.add(certificate.map_err(|e| anyhow!("{}: {e}", wrong()))?).with_context(wrong)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}
