//! IAM and STS on an address of their own, without a cloud: beside a Walrus that serves alone, in one process, so that
//! its [`KeyRing`](karri_base::aws::keys::KeyRing) knows of a change before the change is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use karri_base::aws::session;
use karri_base::aws::verify::Verifier;
use karri_base::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::api::Call;
use super::authorize::Caller;
use super::{Directory, api, sts};
use crate::audit::Trail;
use crate::cloud::error::{ApiError, ApiResult, Code};
use crate::cloud::http::{self, Api, Asked, not_here};
use crate::wire::Tree;

/// Answers a request to IAM or STS.
///
/// # Errors
/// AWS's codes.
pub async fn act(
    directory: &Directory,
    service: &str,
    action: &str,
    tree: &Tree,
    caller: &Caller,
    request_id: &str,
) -> ApiResult<String> {
    let call = Call { directory, caller, request_id };
    match service {
        "iam" => {
            // "You cannot call any IAM API operations unless MFA authentication information is included."
            let who = &caller.identity.principal;
            let is_role = matches!(who.kind, karri_base::aws::policy::principal::Kind::Role { .. });
            if caller.key.access_key_id.starts_with(session::PREFIX) && !is_role {
                let message = "The security token included in the request is invalid";
                return Err(ApiError::new(Code::InvalidClientTokenId, message));
            }
            api::answer(&call, action, tree).await
        }
        "sts" => sts::answer(&call, action, tree),
        other => Err(not_here(other)),
    }
}

struct Alone {
    trail: Trail,
    directory: Arc<Directory>,
    verifier: Verifier,
    clock: Arc<dyn Clock>,
    region: String,
}

#[async_trait::async_trait]
impl Api for Alone {
    fn verifier(&self) -> &Verifier {
        &self.verifier
    }
    fn directory(&self) -> &Directory {
        &self.directory
    }
    fn trail(&self) -> Option<&Trail> {
        Some(&self.trail)
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn region(&self) -> &str {
        &self.region
    }
    fn answered(&self, action: &str, code: &'static str, took: Duration) {
        tracing::debug!(action, error = code, ms = took.as_millis() as u64, "identity answered");
    }
    async fn act(&self, asked: Asked<'_>) -> ApiResult<String> {
        act(&self.directory, asked.service, asked.action, asked.tree, &asked.caller, asked.request_id).await
    }
}

/// A listener of IAM and STS.
pub struct Listener {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Listener {
    /// Listens on `addr` (port 0 picks one), over TLS where it is configured; calls are told to the trail.
    ///
    /// # Errors
    /// The system's.
    pub async fn start(
        directory: Arc<Directory>,
        clock: Arc<dyn Clock>,
        region: &str,
        addr: SocketAddr,
        trail: Trail,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let verifier = Verifier::new(directory.ring().clone());
        let api = Arc::new(Alone { trail, directory, verifier, clock, region: region.to_owned() });
        let stop = watch::Sender::new(false);
        let keep = tokio::spawn({
            let (directory, stop) = (api.directory.clone(), stop.subscribe());
            async move { directory.keep_uses_hourly(stop).await }
        });
        let serve = tokio::spawn(http::serve(tls, listener, api, stop.subscribe()));
        Ok(Self { addr, stop, tasks: [serve, keep] })
    }
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
    /// Lets the requests under way finish.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
