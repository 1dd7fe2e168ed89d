//! The certificate that Walrus, and the listeners of the other APIs, show over TLS, and its renewal without a restart.
//!
//! The pair of files is looked at once a second, and at once on SIGHUP. A pair that changed is tried: from then on new
//! connections get it, those that are open go on with theirs. A pair that is broken, or of which one file has changed and
//! the other has not yet, is refused with a line in the log, and the old one goes on.

use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use karri_engine::http::TlsVersion;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::serve::StartError;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file of certificates, or a key, has at most so many bytes.
const FILE_MAX: u64 = 1 << 20;

/// HTTP/2 where the client can, HTTP/1.1 elsewhere.
pub const S3_PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];
/// What the listeners of the other APIs speak.
pub const API_PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// A certificate, its key, and the files that they come from.
#[derive(Debug, Clone)]
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    /// The files as they were before they were read.
    read: Look,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What tells that a file is another one: its length, its time, its inode.
type Look = [Option<(u64, Option<SystemTime>, u64)>; 2];

fn seen(meta: std::io::Result<std::fs::Metadata>) -> Option<(u64, Option<SystemTime>, u64)> {
    let meta = meta.ok()?;
    Some((meta.len(), meta.modified().ok(), meta.ino()))
}

/// A connection's version as policies write it (`s3:TlsVersion`).
pub fn version(of: &TlsVersion) -> Option<&'static str> {
    match of.0 {
        ProtocolVersion::TLSv1_2 => Some("1.2"),
        ProtocolVersion::TLSv1_3 => Some("1.3"),
        _ => None,
    }
}

impl Certificate {
    /// Reads PEM files: the certificate with the chain to its authority, and its private key.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, StartError> {
        // First: files that change from here on are found to be others.
        let look = [cert, key].map(|path| seen(std::fs::metadata(path)));
        let pair = read(cert, key).map_err(|why| StartError::Config { what: format!("TLS: {why}") })?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current, read: look })
    }

    /// A server's configuration that always shows the current certificate; `protocols` are agreed on by ALPN.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn server(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, StartError> {
        let wrong = |e: rustls::Error| StartError::Config { what: format!("TLS: {e}") };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.current.clone());
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        config.ticketer = ring::Ticketer::new().map_err(wrong)?;
        Ok(Arc::new(config))
    }

    /// Keeps it as the files are, for ever. On tokio.
    pub async fn watch(self) {
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut known = self.read;
        // They may have changed since they were read.
        let mut now = Some(self.look().await);
        loop {
            if now.is_none_or(|now| now != known) {
                known = self.look().await;
                self.reload().await;
            }
            let asked = async {
                match &mut hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => std::future::pending().await,
                }
            };
            now = tokio::select! {
                () = asked => None,
                () = tokio::time::sleep(LOOK_EVERY) => Some(self.look().await),
            };
        }
    }

    async fn look(&self) -> Look {
        [seen(tokio::fs::metadata(&self.cert).await), seen(tokio::fs::metadata(&self.key).await)]
    }

    /// Takes the files' pair, if it is one.
    async fn reload(&self) {
        let this = self.clone();
        let outcome = tokio::task::spawn_blocking(move || this.take()).await;
        match outcome.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => tracing::info!(cert = %self.cert.display(), "a new TLS certificate is in use"),
            Err(error) => {
                tracing::warn!(error, "the new TLS certificate is refused; the old one goes on");
            }
        }
    }

    fn take(&self) -> Result<(), String> {
        let pair = Arc::new(read(&self.cert, &self.key)?);
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
        Ok(())
    }
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let text = |path: &Path| {
        let mut text = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text));
        read.map(|_| text).map_err(|e| format!("{}: {e}", path.display()))
    };
    let wrong = |path: &Path, why: &str| format!("{}: {why}", path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text(cert)?).collect();
    let chain = chain.map_err(|e| wrong(cert, &format!("no PEM certificates: {e}")))?;
    if chain.is_empty() {
        return Err(wrong(cert, "it has no PEM certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&text(key)?);
    let private = private.map_err(|e| wrong(key, &format!("no PEM private key: {e}")))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map_err(|e| format!("{} and {} are no pair: {e}", cert.display(), key.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    #[tokio::test]
    async fn what_changed_before_the_watch_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = make(dir.path());
        let certificate = Certificate::open(&cert, &key).unwrap();
        let shown = || certificate.current.0.read().unwrap().end_entity_cert().unwrap().clone().into_owned();
        let first = shown();
        // Renewed as it is done: another file under the name.
        let other = tempfile::tempdir_in(dir.path()).unwrap();
        let (new_cert, new_key) = make(other.path());
        std::fs::rename(new_cert, cert).unwrap();
        std::fs::rename(new_key, key).unwrap();
        let changed = async {
            while shown() == first {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = certificate.clone().watch() => unreachable!("it is for ever"),
            outcome = tokio::time::timeout(Duration::from_secs(20), changed) => outcome.expect("the new one is shown"),
        }
    }

    #[test]
    fn a_broken_pair_is_refused_and_the_old_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = make(dir.path());
        let certificate = Certificate::open(&cert, &key).unwrap();
        let shown = || certificate.current.0.read().unwrap().end_entity_cert().unwrap().clone().into_owned();
        let first = shown();
        certificate.server(S3_PROTOCOLS).unwrap();
        let check = |what: &str| {
            let error = certificate.take().unwrap_err();
            assert!(error.contains(what), "{what}: {error}");
            assert_eq!(shown(), first);
        };
        std::fs::write(&key, "rubbish").unwrap();
        check("private key");
        std::fs::remove_file(&key).unwrap();
        check("key.pem");
        // A key, but of another certificate.
        let other = tempfile::tempdir().unwrap();
        std::fs::copy(make(other.path()).1, &key).unwrap();
        check("no pair");
        std::fs::write(&cert, "").unwrap();
        check("no PEM certificate");
        let (cert, key) = make(dir.path());
        certificate.take().unwrap();
        assert_ne!(shown(), first);
        assert!(Certificate::open(&key, &cert).is_err(), "mixed up");
    }
}
