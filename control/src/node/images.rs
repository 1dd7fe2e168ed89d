//! Kernels and ramdisks from Walrus, kept on this host.
//!
//! A file's name is the digest of bucket, key and ETag, so that a file is never out of date, and a machine whose
//! kernel is here starts without Walrus. A file appears by rename, whole. The oldest ones go when there is too much;
//! machines that run them hold hard links.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::s3::S3;
use karri_base::clock::Clock;
use karri_base::proto::S3Object;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

/// How long Walrus may be silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest kernel or ramdisk, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// What all of them may take, in bytes.
const CACHE_BYTES_MAX: u64 = 8 << 30;

/// Why a file is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It does not exist (any more); trying again does not help.
    #[error("s3://{bucket}/{key}: {why}")]
    Missing {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Walrus or this host's disk did not do its part; trying again may help.
    #[error("s3://{bucket}/{key} could not be fetched: {why}")]
    Unavailable {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// The files of one host.
pub struct Images {
    folder: PathBuf,
    s3: Option<S3>,
    client: Client<HttpConnector, Full<Bytes>>,
    clock: Arc<dyn Clock>,
    fetching: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// Files under `folder`, fetched over `s3`; without it only what is there already can be used.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: PathBuf, s3: Option<S3>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "part") {
                let _ = fs::remove_file(entry.path());
            }
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { folder, s3, client, clock, fetching: Mutex::default() })
    }

    fn path(&self, object: &S3Object, etag: &str) -> PathBuf {
        let mut digest = Sha256::new();
        for part in [&object.bucket, &object.key, etag] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        self.folder.join(hex::encode(digest.finalize()))
    }

    /// The object as a file of this host that every uid may read.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn file(&self, object: &S3Object) -> Result<PathBuf, ImageError> {
        let wanted = object.etag.trim_matches('"');
        let path = self.path(object, wanted);
        let one = self.fetching.lock().unwrap_or_else(|e| e.into_inner()).entry(path.clone()).or_default().clone();
        let _one_at_a_time = one.lock().await;
        if !wanted.is_empty() && path.exists() {
            // Its time says when it was used last.
            let _ = fs::File::open(&path).and_then(|f| f.set_modified(self.clock.now().system()));
            return Ok(path);
        }
        let fetched = self.fetch(object, wanted).await;
        self.fetching.lock().unwrap_or_else(|e| e.into_inner()).remove(&path);
        fetched
    }

    async fn fetch(&self, object: &S3Object, wanted: &str) -> Result<PathBuf, ImageError> {
        let (bucket, key) = (object.bucket.clone(), object.key.clone());
        let missing = |why: String| ImageError::Missing { bucket: bucket.clone(), key: key.clone(), why };
        let unavailable = |why: String| ImageError::Unavailable { bucket: bucket.clone(), key: key.clone(), why };
        let silent = |_| unavailable(format!("no answer in {} s", PATIENCE.as_secs()));
        let s3 = self.s3.as_ref().ok_or_else(|| unavailable("no S3 endpoint is configured under [peers]".into()))?;
        let parts = s3.get(&bucket, &key, None, self.clock.now()).map_err(missing)?;
        let request = http::Request::from_parts(parts, Full::new(Bytes::new()));
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await.map_err(silent)?;
        let answer = answer.map_err(|e| unavailable(e.to_string()))?;
        match answer.status().as_u16() {
            200 => {}
            403 | 404 => return Err(missing(format!("Walrus answers {}", answer.status()))),
            _ => return Err(unavailable(format!("Walrus answers {}", answer.status()))),
        }
        let header = |name| answer.headers().get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
        let etag = header(http::header::ETAG).unwrap_or_default().trim_matches('"').to_owned();
        let length: Option<u64> = header(http::header::CONTENT_LENGTH).and_then(|l| l.parse().ok());
        if !wanted.is_empty() && etag != wanted {
            return Err(missing(format!("it has changed since the image was registered (ETag {etag}, not {wanted})")));
        }
        let path = self.path(object, &etag);
        if path.exists() {
            return Ok(path);
        }
        let length = length.ok_or_else(|| unavailable("an object without Content-Length".into()))?;
        if length > FILE_BYTES_MAX {
            return Err(missing(format!("{length} bytes are more than a kernel or ramdisk may have")));
        }
        let part = self.folder.join(format!("{:016x}.part", rand::random::<u64>()));
        let written = async {
            let mut file = tokio::fs::File::create(&part).await?;
            let mut body = answer.into_body();
            let mut left = length;
            while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await? {
                let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
                left = left.checked_sub(data.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
                file.write_all(&data).await?;
            }
            if left > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.sync_all().await?;
            drop(file);
            fs::set_permissions(&part, fs::Permissions::from_mode(0o644))?;
            fs::rename(&part, &path)
        };
        let written: io::Result<()> = written.await;
        if let Err(e) = written {
            let _ = fs::remove_file(&part);
            return Err(unavailable(e.to_string()));
        }
        self.shrink(&path);
        Ok(path)
    }

    /// Removes what was not used for longest while there is too much.
    fn shrink(&self, keep: &Path) {
        let mut files: Vec<_> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.metadata().ok().map(|m| (m.modified().ok(), m.len(), e.path())))
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= CACHE_BYTES_MAX {
                return;
            }
            if path != keep && fs::remove_file(&path).is_ok() {
                total -= length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karri_base::clock::{ManualClock, UnixMicros};
    use karri_base::config::AccessKey;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    /// An HTTP server that gives each connection the next of `answers`.
    async fn walrus(answers: Vec<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0u8; 4096];
                let n = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..n]).to_lowercase();
                assert!(request.contains("authorization: aws4-hmac-sha256"), "{request}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        at
    }

    async fn images(folder: &Path, answers: Vec<&'static str>) -> Images {
        let key = AccessKey { access_key_id: "AKIASYSTEM".into(), secret_access_key: "x".into() };
        let s3 = S3::new(&walrus(answers).await, key, "us-east-1").unwrap();
        let clock = Arc::new(ManualClock::at(UnixMicros(1_767_225_600_000_000)));
        Images::open(folder.to_owned(), Some(s3), clock).unwrap()
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: 6\r\nConnection: close\r\n\r\nkernel";

    #[tokio::test]
    async fn a_file_is_fetched_once_and_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let short = "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: 60\r\nConnection: close\r\n\r\nkernel";
        let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let busy = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let images = images(folder.path(), vec![short, busy, gone, GOOD, GOOD]).await;
        let object = S3Object { bucket: "b".into(), key: "vmlinuz".into(), etag: "\"e1\"".into() };
        assert!(matches!(images.file(&object).await, Err(ImageError::Unavailable { .. })), "cut short");
        assert!(matches!(images.file(&object).await, Err(ImageError::Unavailable { .. })), "busy");
        assert!(matches!(images.file(&object).await, Err(ImageError::Missing { .. })), "not there");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing half is left");
        let path = images.file(&object).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"kernel");
        assert_eq!(images.file(&object).await.unwrap(), path, "no second request was needed");
        let other = S3Object { etag: "\"e2\"".into(), ..object };
        let changed = images.file(&other).await.unwrap_err().to_string();
        assert!(changed.contains("has changed since"), "{changed}");
    }
}
