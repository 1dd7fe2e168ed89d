//! The audit log of S3: one line of JSON for each request, in a file of the operator's. Page: `docs/operations.md`.
//!
//! Lines have the fields of the cloud's own audit log. They are written by a thread, many at once; a request never waits
//! for its line: above [`QUEUE`] that wait, lines are lost and counted, and the next line that is written says how many.
//! Parameters and headers are never in it, and with them no secrets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use karri_base::clock::UnixMicros;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::metrics::Metrics;

/// Lines that wait to be written.
pub const QUEUE: usize = 16_384;
/// Where a file ends, in bytes, and how many older ones stay; `FILE.1` is the youngest.
const BYTES_MAX: u64 = 64 << 20;
const KEPT: u32 = 8;
/// Lines are written together up to so many bytes.
const BATCH: usize = 256 << 10;
/// The longest text in a line, in characters.
const TEXT_MAX: usize = 512;
/// Between two errors about a log that cannot be written.
const PAUSE: Duration = Duration::from_secs(60);

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it came.
    pub time: UnixMicros,
    /// Its id, as the answer has it.
    pub request_id: String,
    /// The connection's other end.
    pub source: Option<IpAddr>,
    /// Whose account, who, and by which key; empty for nobody.
    pub account: String,
    /// An ARN.
    pub principal: String,
    /// The access key's id.
    pub key: String,
    /// AWS's name of the operation.
    pub action: &'static str,
    /// What it was about, as ARNs.
    pub resources: Vec<String>,
    /// `allow`, `deny`, or `none` where nobody was asked.
    pub decision: &'static str,
    /// The error's code.
    pub error: Option<String>,
    /// From the request's head to its answer's head, in milliseconds.
    pub ms: u64,
}

impl Call {
    fn line(&self, lost: u64) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            request_id: &'a str,
            source: Option<IpAddr>,
            account: &'a str,
            principal: &'a str,
            key: &'a str,
            service: &'a str,
            action: &'a str,
            resources: Vec<String>,
            decision: &'a str,
            error: Option<&'a str>,
            ms: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            lost: Option<u64>,
        }
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.time.0) * 1000).ok();
        let line = Line {
            time: at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default(),
            request_id: &self.request_id,
            source: self.source,
            account: &self.account,
            principal: &self.principal,
            key: &self.key,
            service: "s3",
            action: self.action,
            resources: self.resources.iter().map(|r| r.chars().take(TEXT_MAX).collect()).collect(),
            decision: self.decision,
            error: self.error.as_deref(),
            ms: self.ms,
            lost: (lost > 0).then_some(lost),
        };
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// An open audit log.
pub struct Audit {
    lines: SyncSender<Option<Vec<u8>>>,
    lost: AtomicU64,
    metrics: Metrics,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens it to append.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, metrics: Metrics) -> io::Result<Self> {
        Self::with(Log::open(path, BYTES_MAX)?, QUEUE, metrics)
    }

    fn with(log: Log, queue: usize, metrics: Metrics) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(queue);
        let writer = std::thread::Builder::new().name("s3-audit".into()).spawn(move || write(log, &waiting))?;
        Ok(Self { lines, lost: AtomicU64::new(0), metrics, writer: Mutex::new(Some(writer)) })
    }

    /// Hands a request's line to the writer, or counts it as lost.
    pub fn record(&self, call: &Call) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        match self.lines.try_send(Some(call.line(lost))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
                self.metrics.audit_lines_lost(1);
            }
        }
    }

    /// Writes what waits, and ends. Blocks.
    pub fn close(&self) {
        // A writer that is gone needs no telling.
        let _ = self.lines.send(None);
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }
}

fn write(mut log: Log, waiting: &Receiver<Option<Vec<u8>>>) {
    let mut told: Option<Instant> = None;
    let mut over = false;
    while !over {
        let Ok(Some(mut batch)) = waiting.recv() else { return };
        while batch.len() < BATCH {
            match waiting.try_recv() {
                Ok(Some(line)) => batch.extend(line),
                Ok(None) => over = true,
                Err(_) => break,
            }
        }
        if let Err(e) = log.append(&batch)
            && told.is_none_or(|at| at.elapsed() >= PAUSE)
        {
            told = Some(Instant::now());
            tracing::error!(path = %log.path.display(), error = %e, "requests are missing in the audit log");
        }
    }
}

#[derive(Debug)]
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

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + lines.len() as u64 > self.bytes_max {
            // It is absent where it was moved and a new one could not be opened.
            let moves = if self.path.try_exists()? { 1..KEPT } else { 0..0 };
            for n in moves.clone().rev() {
                match std::fs::rename(self.older(n), self.older(n + 1)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            if !moves.is_empty() {
                std::fs::rename(&self.path, self.older(1))?;
            }
            *self = Self::open(&self.path, self.bytes_max)?;
        }
        self.file.write_all(lines)?;
        self.bytes += lines.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(n: u64) -> Call {
        Call {
            time: UnixMicros(1_700_000_000_000_001),
            request_id: format!("r-{n}"),
            source: Some(IpAddr::from([127, 0, 0, 1])),
            account: "111122223333".into(),
            principal: "arn:aws:iam::111122223333:user/ann".into(),
            key: "AKIAANN".into(),
            action: "GetObject",
            resources: vec!["arn:aws:s3:::bucket/a\"b\n".into()],
            decision: "allow",
            error: None,
            ms: 3,
        }
    }

    #[test]
    fn the_page_s_line_is_what_the_code_writes() {
        let page = include_str!("../docs/operations.md").split("```json\n").nth(1).expect("the line");
        let line = String::from_utf8(call(1).line(0)).unwrap();
        assert_eq!(line, page.split("```").next().unwrap());
    }

    #[test]
    fn all_lines_are_written_in_order_and_files_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::with(Log::open(&path, 20_000).unwrap(), 10_000, Metrics::default()).unwrap();
        (0..500).for_each(|n| audit.record(&call(n)));
        audit.close();
        let mut text = String::new();
        for n in (1..=KEPT).rev() {
            text += &std::fs::read_to_string(dir.path().join(format!("audit.log.{n}"))).unwrap_or_default();
        }
        text += &std::fs::read_to_string(&path).unwrap();
        let ids: Vec<_> = text.lines().map(|l| l.split("\"r-").nth(1).unwrap().split('"').next().unwrap()).collect();
        // The oldest files may be gone.
        let first: usize = ids[0].parse().unwrap();
        let want: Vec<_> = (first..500).map(|n| n.to_string()).collect();
        assert_eq!(ids, want);
    }

    #[test]
    fn nobody_waits_for_a_writer_that_cannot_follow() {
        let (lines, _waiting) = sync_channel(2);
        let metrics = Metrics::default();
        let audit = Audit { lines, lost: AtomicU64::new(0), metrics: metrics.clone(), writer: Mutex::default() };
        (0..5).for_each(|n| audit.record(&call(n)));
        assert_eq!(audit.lost.load(Ordering::Relaxed), 3);
        let line = String::from_utf8(call(6).line(3)).unwrap();
        assert!(line.ends_with("\"ms\":3,\"lost\":3}\n"), "{line}");
    }
}
