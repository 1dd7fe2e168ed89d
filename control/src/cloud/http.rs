//! The listener of the AWS APIs: a signed form in, XML out.
//!
//! ```text
//! bytes -> (limits, time-outs) -> form -> signature -> service and Action -> handler -> XML
//! ```
//! Bodies are bounded, slow senders are cut off, connections are counted. A handler runs in a task of its own: a client
//! that hangs up does not leave it half done. Every answer has a request id, in a header and in the XML.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use karri_base::aws::verify::{AuthError, Verifier, claimed_service};
use karri_base::clock::Clock;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::wire::query::decode_form;
use crate::wire::{Invalid, Tree, Xml};

use super::error::{ApiError, ApiResult, Code};
use super::stopped;
use crate::audit::{self, Decisions, Trail};
use crate::identity::Directory;
use crate::identity::authorize::{Caller, Unsigned};
use crate::identity::sts::web_identity;
use crate::identity::validate;
use crate::wire::generated::{ec2, iam, sts};

/// A form's size; user data is at most 16 KiB, a thousand tagged ids fit.
const BODY_MAX: usize = 1 << 20;
/// How long a request's head and body may take to arrive.
const SENDING_MAX: Duration = Duration::from_secs(30);
/// How long an answer may take to be found.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Open connections; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 4096;

/// Parameters that belong to the protocol, not to an action.
const PROTOCOL: &[&str] = &[
    "Action",
    "Version",
    "AWSAccessKeyId",
    "Signature",
    "SignatureMethod",
    "SignatureVersion",
    "Timestamp",
    "Expires",
    "SecurityToken",
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// A request that is signed, for the services behind the listener.
pub struct Asked<'a> {
    /// `ec2`, `iam`, `sts`, or whatever the signature's scope says.
    pub service: &'a str,
    /// The action's name.
    pub action: &'a str,
    /// Its parameters.
    pub tree: &'a Tree,
    /// Who asks.
    pub caller: Caller,
    /// For answers and logs.
    pub request_id: &'a str,
    /// The API version that the caller named.
    pub version: Option<String>,
    /// The host, and port, that the caller spoke to.
    pub host: String,
}

/// What is served by a listener.
#[async_trait::async_trait]
pub trait Api: Send + Sync + 'static {
    /// Checks signatures.
    fn verifier(&self) -> &Verifier;
    /// Who there is.
    fn directory(&self) -> &Directory;
    /// Where calls are told.
    fn trail(&self) -> Option<&Trail>;
    /// Wall time.
    fn clock(&self) -> &dyn Clock;
    /// Of all answers.
    fn region(&self) -> &str;
    /// Counts an answer.
    fn answered(&self, action: &str, code: &'static str, took: Duration);
    /// Answers.
    async fn act(&self, asked: Asked<'_>) -> ApiResult<String>;
}

/// The error of a service that is not behind the listener.
pub fn not_here(service: &str) -> ApiError {
    let service: String = service.chars().take(40).collect();
    ApiError::new(Code::InvalidAction, format!("The service '{service}' is not served here"))
}

/// Accepts until `stop` turns true, then lets the requests under way finish; over TLS where it is configured.
pub async fn serve(
    tls: Option<Arc<ServerConfig>>,
    listener: TcpListener,
    api: Arc<dyn Api>,
    mut stop: watch::Receiver<bool>,
) {
    let tls = tls.map(TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, Peer { ip: peer.ip(), secure: tls.is_some() }),
            Err(e) => {
                // Out of descriptors, or the peer is gone already: the listener itself is fine.
                tracing::debug!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (api, stop, tls) = (api.clone(), stop.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, peer, api, stop).await,
                Some(tls) => secured(tls, stream, peer, api, stop).await,
            }
            drop(slot);
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
struct Peer {
    ip: IpAddr,
    /// True over TLS.
    secure: bool,
}

/// A connection over TLS, once hands are shaken.
async fn secured(
    tls: TlsAcceptor,
    stream: tokio::net::TcpStream,
    peer: Peer,
    api: Arc<dyn Api>,
    mut stop: watch::Receiver<bool>,
) {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(SENDING_MAX, tls.accept(stream)) => shaken,
        () = stopped(&mut stop) => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(stream, peer, api, stop).await,
        Ok(Err(e)) => tracing::debug!(error = %e, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: Peer,
    api: Arc<dyn Api>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(api, peer, request).await) }
    });
    let mut http1 = hyper::server::conn::http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(SENDING_MAX).max_buf_size(64 << 10);
    let served = http1.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        ended = served.as_mut() => {
            if let Err(e) = ended {
                tracing::debug!(error = %e, "a connection ended");
            }
        }
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(ANSWER_MAX, served).await;
        }
    }
}

/// A random request id in AWS's form.
fn request_id() -> String {
    let b: u128 = rand::random();
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        (b >> 96) as u32,
        (b >> 80) as u16,
        (b >> 64) as u16 & 0xfff,
        (b >> 48) as u16 & 0xfff,
        b as u64 & 0xffff_ffff_ffff
    )
}

async fn answer(api: Arc<dyn Api>, peer: Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let id = request_id();
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let came = api.clock().now();
    let mut about = About { service: claimed_service(&parts).unwrap_or_default(), ..About::default() };
    let outcome = match receive(&parts, body).await {
        Ok(body) => {
            let task = {
                let (api, id) = (api.clone(), id.clone());
                tokio::spawn(async move {
                    let mut about = about;
                    let outcome = handle(&*api, peer, parts, body, &id, &mut about).await;
                    (outcome, about)
                })
            };
            match tokio::time::timeout(ANSWER_MAX, task).await {
                Ok(Ok((outcome, known))) => {
                    about = known;
                    outcome
                }
                Ok(Err(e)) => {
                    tracing::error!(request_id = %id, error = %e, "a request's handler ended");
                    about = About::default();
                    Err(ApiError::new(Code::InternalError, "An internal error has occurred"))
                }
                Err(_) => {
                    tracing::error!(request_id = %id, "a request took too long");
                    about = About::default();
                    Err(ApiError::new(Code::Unavailable, "The request took too long; ask what became of it"))
                }
            }
        }
        Err(e) => Err(e),
    };
    if let Some(trail) = api.trail() {
        let call = audit::Call {
            time: came,
            request_id: id.clone(),
            source: Some(peer.ip),
            account: about.account.clone(),
            principal: about.principal.clone(),
            key: about.key.clone(),
            service: about.service.clone(),
            action: about.asked.clone(),
            decisions: about.decisions.clone(),
            error: outcome.as_ref().err().map(|e| e.code.name()),
            ms: began.elapsed().as_millis() as u64,
        };
        trail.record(&call).await;
    }
    let code = outcome.as_ref().map_or_else(|e| e.code.name(), |_| "ok");
    api.answered(&about.action, code, began.elapsed());
    tracing::debug!(request_id = %id, action = about.action, error = code, "answered");
    let in_json = about.service == validate::SERVICE;
    let mut kind = None;
    let (status, text) = match outcome {
        Ok(text) => (200, text),
        Err(e) if in_json => {
            kind = Some(json_code(e.code));
            (e.code.status(), serde_json::json!({ "message": e.message }).to_string())
        }
        Err(e) => (e.code.status(), error_xml(&about.service, &e, &id)),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let content_type = if in_json { "application/json" } else { "text/xml;charset=UTF-8" };
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(kind) = kind {
        headers.insert("x-amzn-errortype", HeaderValue::from_static(kind));
    }
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// What is known of a request for its answer's form and for metrics.
#[derive(Debug, Default)]
struct About {
    service: String,
    action: String,
    /// As the client wrote it.
    asked: String,
    account: String,
    principal: String,
    key: String,
    decisions: Decisions,
}

async fn receive(parts: &Parts, body: Incoming) -> ApiResult<Bytes> {
    let length = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let too_large = || ApiError::new(Code::RequestEntityTooLarge, format!("Requests are limited to {BODY_MAX} bytes"));
    if length.is_some_and(|l| l > BODY_MAX as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(SENDING_MAX, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::new(Code::MalformedQueryString, format!("The body could not be read: {e}"))),
        Err(_) => Err(ApiError::new(Code::RequestTimeout, "The body did not arrive in time")),
    }
}

async fn handle(
    api: &dyn Api,
    peer: Peer,
    parts: Parts,
    body: Bytes,
    id: &str,
    about: &mut About,
) -> ApiResult<String> {
    if parts.method != Method::GET && parts.method != Method::POST {
        return Err(ApiError::new(Code::UnsupportedProtocol, "Requests are GET or POST"));
    }
    let mut pairs = decode_form(parts.uri.query().unwrap_or("").as_bytes())?;
    let form = match parts.headers.get(http::header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or("")) {
        None => true,
        Some(kind) => kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case(FORM)),
    };
    if parts.method == Method::POST && !body.is_empty() && about.service != validate::SERVICE {
        if !form {
            return Err(ApiError::new(Code::UnsupportedProtocol, format!("The body must be a form ({FORM})")));
        }
        pairs.extend(decode_form(&body)?);
    }
    let named = |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    // The one operation in JSON has its name in its path.
    let is_validation =
        about.service == validate::SERVICE && parts.method == Method::POST && parts.uri.path() == validate::PATH;
    let action = if is_validation { validate::ACTION.to_owned() } else { named("Action").unwrap_or_default() };
    about.asked.clone_from(&action);
    if about.service.is_empty() {
        about.service = match action.as_str() {
            action if sts::Action::from_name(action).is_some() => "sts",
            action if iam::Action::from_name(action).is_some() => "iam",
            _ => "ec2",
        }
        .into();
    }
    let now = api.clock().now();
    let verified = match api.verifier().verify(&parts, &body, now) {
        // The one action whose parameters prove who asks.
        Err(AuthError::Missing) if about.service == "sts" && action == WEB_IDENTITY => None,
        verified => Some(verified.map_err(|e| denied(&about.service, &e))?),
    };
    if let Some(verified) = verified.as_ref().filter(|v| !v.service.is_empty()) {
        about.service = verified.service.clone();
    }
    if let Some(verified) = &verified {
        let key = &verified.key;
        (about.account, about.principal, about.key) =
            (key.account.to_string(), key.arn.clone(), key.access_key_id.clone());
        // The service is what the client says.
        if matches!(about.service.as_str(), "ec2" | "iam" | "sts") {
            let uses = api.directory().uses();
            uses.note(&key.access_key_id, &verified.identity.principal, &about.service, api.region(), now);
        }
    }
    let host = parts.headers.get(http::header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let version = named("Version").filter(|v| is_version(v));
    let mut seen = HashMap::new();
    for (name, value) in &pairs {
        let twice = match name.as_str() {
            // What is in the query counts before the form: neither may say another thing.
            "Action" | "Version" => pairs.iter().filter(|(other, _)| other == name).count() > 1,
            protocol if PROTOCOL.contains(&protocol) => false,
            _ => seen.insert(name.as_str(), value.as_str()).is_some(),
        };
        if twice {
            return Err(Invalid::Malformed(format!("{name} is given twice")).into());
        }
    }
    let tree = Tree::new(seen)?;
    if action.is_empty() {
        return Err(ApiError::new(Code::MissingAction, "The request must contain the parameter Action"));
    }
    // Only names from the models become metric labels.
    let is_known = match about.service.as_str() {
        "ec2" => ec2::Action::from_name(&action).is_some(),
        "iam" => iam::Action::from_name(&action).is_some(),
        "sts" => sts::Action::from_name(&action).is_some(),
        _ => is_validation,
    };
    if is_known {
        about.action.clone_from(&action);
    }
    let region = api.region().to_owned();
    let Some(verified) = verified else {
        let from =
            Unsigned { source: Some(peer.ip), secure: peer.secure, now, region, decisions: about.decisions.clone() };
        return web_identity::answer(api.directory(), &tree, &from, id).await;
    };
    let account = verified.key.account.clone();
    let (key, identity) = (verified.key, verified.identity);
    let (source, secure, decisions) = (Some(peer.ip), peer.secure, about.decisions.clone());
    let caller = Caller { key, identity, source, secure, now, region, decisions };
    if about.service == validate::SERVICE {
        return match is_validation {
            true => validate::answer(&caller, &pairs, &body),
            false => Err(not_here("access-analyzer, but for ValidatePolicy,")),
        };
    }
    let asked = Asked { service: &about.service, action: &action, tree: &tree, caller, request_id: id, version, host };
    let outcome = api.act(asked).await;
    if let Err(e) = &outcome {
        let status = e.code.status();
        if status >= 500 {
            tracing::warn!(request_id = id, account = %account, action, error = %e, "a request failed");
        }
    }
    outcome
}

const WEB_IDENTITY: &str = "AssumeRoleWithWebIdentity";
const FORM: &str = "application/x-www-form-urlencoded";

/// Any API version is accepted; one of the usual form is echoed.
fn is_version(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() })
}

fn denied(service: &str, e: &AuthError) -> ApiError {
    let code = match e.code(service) {
        "AuthFailure" => Code::AuthFailure,
        "MissingAuthenticationToken" => Code::MissingAuthenticationToken,
        "IncompleteSignature" => Code::IncompleteSignature,
        "InvalidClientTokenId" => Code::InvalidClientTokenId,
        "ExpiredToken" => Code::ExpiredToken,
        "RequestExpired" => Code::RequestExpired,
        _ => Code::SignatureDoesNotMatch,
    };
    ApiError::new(code, e.message(service))
}

/// What services that speak JSON call an error.
fn json_code(code: Code) -> &'static str {
    match code {
        Code::AccessDenied => "AccessDeniedException",
        Code::ValidationError => "ValidationException",
        Code::InternalError => "InternalServerException",
        other => other.name(),
    }
}

/// An error in the protocol of its service.
fn error_xml(service: &str, e: &ApiError, id: &str) -> String {
    if service == "ec2" || service.is_empty() {
        return Xml::document("Response", None, |w| {
            w.element("Errors", |w| {
                w.element("Error", |w| {
                    w.element("Code", |w| w.text(e.code.name()));
                    w.element("Message", |w| w.text(&e.message));
                });
            });
            w.element("RequestID", |w| w.text(id));
        });
    }
    let whose = if e.code.status() >= 500 { "Receiver" } else { "Sender" };
    let namespace = if service == "iam" { iam::NAMESPACE } else { sts::NAMESPACE };
    Xml::document("ErrorResponse", Some(namespace), |w| {
        w.element("Error", |w| {
            w.element("Type", |w| w.text(whose));
            w.element("Code", |w| w.text(e.code.name()));
            w.element("Message", |w| w.text(&e.message));
        });
        w.element("RequestId", |w| w.text(id));
    })
}
