//! The audit log: one line of JSON for each call of EC2, IAM and STS. Page: `docs/audit.md`.
//!
//! Promises: a call is answered after its line was handed to the system, so kill -9 loses no line of an answered call; a
//! file ends at [`BYTES_MAX`] and [`KEPT`] older ones stay; parameters, and with them secrets, are never in it. A disk that
//! takes no more lines stops no call: that is logged as an error, once a minute. Leaves S3's calls to Walrus, whose log has the same fields.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use karri_base::clock::UnixMicros;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// Where a file ends, in bytes.
pub const BYTES_MAX: u64 = 64 << 20;
/// Older files: `audit.log.1` is the youngest.
pub const KEPT: u32 = 8;
/// Lines that wait to be written; more calls wait for theirs.
const QUEUE: usize = 256;
/// Resources that a line names, and how long a name may be in characters.
const RESOURCES_MAX: usize = 32;
const TEXT_MAX: usize = 512;
/// Between two errors about a log that cannot be written.
const PAUSE: Duration = Duration::from_secs(60);

/// What was asked of the evaluator on the way, and what it said.
#[derive(Debug, Clone, Default)]
pub struct Decisions(Arc<Mutex<Vec<(String, bool)>>>);

impl Decisions {
    /// Notes a decision on a resource.
    pub fn note(&self, resource: &str, allowed: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < RESOURCES_MAX {
            all.push((cut(resource), allowed));
        } else if let Some(last) = all.last_mut() {
            last.1 &= allowed;
        }
    }
    fn resources(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for (resource, _) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if !all.contains(resource) {
                all.push(resource.clone());
            }
        }
        all
    }
    fn verdict(&self) -> &'static str {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.as_slice() {
            [] => "none",
            some if some.iter().all(|(_, allowed)| *allowed) => "allow",
            _ => "deny",
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it came.
    pub time: UnixMicros,
    /// Its id, as the answer has it.
    pub request_id: String,
    /// The connection's other end.
    pub source: Option<IpAddr>,
    /// Whose account asked; empty where nobody signed in.
    pub account: String,
    /// Who asked, an ARN; empty where nobody signed in.
    pub principal: String,
    /// With which access key; empty where nobody signed in.
    pub key: String,
    /// `ec2`, `iam`, `sts`.
    pub service: String,
    /// The action, as the client wrote it.
    pub action: String,
    /// What the evaluator said.
    pub decisions: Decisions,
    /// The error's code; none where it was done.
    pub error: Option<&'static str>,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

impl Call {
    /// Its line.
    pub fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            request_id: &'a str,
            source: Option<IpAddr>,
            account: &'a str,
            principal: &'a str,
            key: &'a str,
            service: String,
            action: String,
            resources: Vec<String>,
            decision: &'static str,
            error: Option<&'static str>,
            ms: u64,
        }
        let line = Line {
            time: moment(self.time),
            request_id: &self.request_id,
            source: self.source,
            account: &self.account,
            principal: &self.principal,
            key: &self.key,
            service: cut(&self.service),
            action: cut(&self.action),
            resources: self.decisions.resources(),
            decision: self.decisions.verdict(),
            error: self.error,
            ms: self.ms,
        };
        let mut bytes = serde_json::to_vec(&line).expect("a line is plain data");
        bytes.push(b'\n');
        bytes
    }
}

fn moment(at: UnixMicros) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1000).ok();
    at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

type Waiting = (Vec<u8>, oneshot::Sender<()>);

/// An open audit log.
#[derive(Debug)]
pub struct Trail(mpsc::Sender<Waiting>);

impl Trail {
    /// Opens it to append.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with(path, BYTES_MAX)
    }

    fn with(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut log = Log::open(path, bytes_max)?;
        let (lines, mut waiting) = mpsc::channel::<Waiting>(QUEUE);
        let run = move || {
            let mut told: Option<Instant> = None;
            while let Some((line, written)) = waiting.blocking_recv() {
                if let Err(e) = log.append(&line)
                    && told.is_none_or(|at| at.elapsed() >= PAUSE)
                {
                    told = Some(Instant::now());
                    tracing::error!(path = %log.path.display(), error = %e, "calls are missing in the audit log");
                }
                let _ = written.send(());
            }
        };
        std::thread::Builder::new().name("audit".into()).spawn(run)?;
        Ok(Self(lines))
    }

    /// Writes a call's line.
    pub async fn record(&self, call: &Call) {
        let (written, done) = oneshot::channel();
        if self.0.send((call.line(), written)).await.is_ok() {
            let _ = done.await;
        }
    }
}

struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Log {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    fn older(&self, n: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        name.into()
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            for n in (1..KEPT).rev() {
                match std::fs::rename(self.older(n), self.older(n + 1)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            std::fs::rename(&self.path, self.older(1))?;
            *self = Self::open(&self.path, self.bytes_max)?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        let decisions = Decisions::default();
        decisions.note("arn:aws:ec2:us-east-1:111122223333:volume/*", true);
        Call {
            time: UnixMicros(1_700_000_000_000_001),
            request_id: "r-1".into(),
            source: Some(IpAddr::from([127, 0, 0, 1])),
            account: "111122223333".into(),
            principal: "arn:aws:iam::111122223333:user/ann".into(),
            key: "AKIAANN".into(),
            service: "ec2".into(),
            action: "CreateVolume".into(),
            decisions,
            error: None,
            ms: 3,
        }
    }

    #[test]
    fn the_documented_line_is_what_is_written() {
        let line = String::from_utf8(call().line()).unwrap();
        assert!(include_str!("../docs/audit.md").contains(&line), "{line}");
        let denied = call();
        denied.decisions.note("b\n", false);
        let line = String::from_utf8(denied.line()).unwrap();
        assert!(line.contains(r#""b\n"],"decision":"deny""#) && line.matches('\n').count() == 1, "{line}");
        let unasked = Call { decisions: Decisions::default(), ..call() };
        assert!(String::from_utf8(unasked.line()).unwrap().contains(r#""resources":[],"decision":"none""#));
    }

    #[test]
    fn a_hostile_call_has_a_short_line() {
        let call = call();
        for n in 0..1000 {
            call.decisions.note(&format!("{n}{}", "x".repeat(10_000)), n != 999);
        }
        let line = call.line();
        assert!(line.len() < 40_000 && String::from_utf8(line).unwrap().contains("\"deny\""));
    }

    #[tokio::test]
    async fn files_end_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let size = call().line().len() as u64;
        let trail = Trail::with(&path, size * 2).unwrap();
        for _ in 0..2 * (KEPT + 3) + 1 {
            trail.record(&call()).await;
        }
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(lines(&path), 1);
        let older = |n: u32| folder.path().join(format!("audit.log.{n}"));
        assert!((1..=KEPT).all(|n| lines(&older(n)) == 2) && !older(KEPT + 1).exists());
        // What is there is appended to.
        drop(trail);
        Trail::with(&path, size * 2).unwrap().record(&call()).await;
        assert_eq!(lines(&path), 2);
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
