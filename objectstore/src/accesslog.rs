//! Server access logs: a line for each request to a bucket that has them, gathered in memory, written as objects.
//!
//! ```text
//! a request's answer ends -> line -> batch of (target, prefix, source) --old or large enough--> object in the target bucket
//! ```
//!
//! As in S3, logs are delivered on a best-effort basis: lines are lost by a crash, by a target that may not be written (any
//! more), and above [`HELD_MAX`]; those lost are counted. Line format: "Amazon S3 server access log format".

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use karri_base::aws::sigv4::uri_encode;
use karri_base::clock::UnixMicros;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::events::Logging;
use crate::error::Error;

/// Bytes of lines in memory. An account's lines may take as much as is free besides, half where it is alone: whoever
/// fills it leaves room for others. Above that lines are lost.
pub const HELD_MAX: usize = 16 << 20;
/// A batch of so many bytes is written at once.
pub const BATCH_BYTES: usize = 1 << 20;
/// A batch is written at this age, unless the operator says otherwise.
pub const ROLL: Duration = Duration::from_secs(300);
/// The longest field of a line that a client writes.
const FIELD_MAX: usize = 2048;

/// What a line says. Empty texts and `None` are shown as `-`.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The bucket's owner.
    pub owner: String,
    /// The bucket.
    pub bucket: String,
    /// When the request came, in microseconds since 1970.
    pub time: u64,
    /// From where.
    pub remote: String,
    /// Who: an ARN, or a root's account.
    pub requester: String,
    /// The request's id.
    pub request_id: String,
    /// `REST.GET.OBJECT`.
    pub operation: String,
    /// The key, encoded as in a URL.
    pub key: String,
    /// Method, target and version as they came.
    pub request: String,
    /// HTTP status.
    pub status: u16,
    /// S3's error code.
    pub error: String,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// The object's size.
    pub size: Option<u64>,
    /// From the request's head to the last byte of the answer.
    pub total: Duration,
    /// From the request's head to the answer's head.
    pub turn: Option<Duration>,
    /// Referer.
    pub referer: String,
    /// User-Agent.
    pub agent: String,
    /// The version's id.
    pub version: String,
    /// x-amz-id-2.
    pub host_id: String,
    /// `SigV4`.
    pub signature: &'static str,
    /// `AuthHeader`, `QueryString`.
    pub auth: &'static str,
    /// Host.
    pub host: String,
    /// True where only a list let the request in.
    pub by_acl: bool,
}

impl Entry {
    /// The line with its end.
    pub fn line(&self) -> String {
        let shown = |text: &str, space| if text.is_empty() { "-".to_owned() } else { plain(text, space) };
        // A space would end the field.
        let or_dash = |text: &str| shown(text, "%20");
        let quoted = |text: &str| format!("\"{}\"", shown(text, " "));
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let fields = [
            or_dash(&self.owner),
            or_dash(&self.bucket),
            format!("[{}]", stamp(UnixMicros(self.time))),
            or_dash(&self.remote),
            or_dash(&self.requester),
            or_dash(&self.request_id),
            or_dash(&self.operation),
            or_dash(&self.key),
            quoted(&self.request),
            self.status.to_string(),
            or_dash(&self.error),
            number(Some(self.sent).filter(|n| *n > 0)),
            number(self.size),
            number(Some(millis(self.total))),
            number(self.turn.map(millis)),
            quoted(&self.referer),
            quoted(&self.agent),
            or_dash(&self.version),
            or_dash(&self.host_id),
            or_dash(self.signature),
            "-".to_owned(),
            or_dash(self.auth),
            or_dash(&self.host),
            // Which version of TLS, and which cipher.
            "-".to_owned(),
            "-".to_owned(),
            or_dash(if self.by_acl { "Yes" } else { "" }),
        ];
        let mut line = fields.join(" ");
        line.push('\n');
        line
    }
}

/// A client's text without what would end a field or a line; `space` stands for each space.
fn plain(text: &str, space: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if out.len() >= FIELD_MAX {
            break;
        }
        match c {
            '"' => out.push_str("%22"),
            ' ' => out.push_str(space),
            c if c.is_control() => {
                let _ = write!(out, "%{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn stamp(at: UnixMicros) -> String {
    let format = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    OffsetDateTime::from(at.system()).format(format).unwrap_or_default()
}

/// The operation as logs name it: `REST.METHOD.RESOURCE`.
pub fn operation(name: &str, method: &str) -> String {
    let resource = match name {
        "GetObject" | "HeadObject" | "PutObject" | "DeleteObject" | "PostObject" | "RenameObject" => "OBJECT",
        "CopyObject" => return "REST.COPY.OBJECT".into(),
        "UploadPartCopy" => return "REST.COPY.PART".into(),
        "DeleteObjects" => "MULTI_OBJECT_DELETE",
        "CreateMultipartUpload" | "ListMultipartUploads" => "UPLOADS",
        "UploadPart" => "PART",
        "CompleteMultipartUpload" | "AbortMultipartUpload" | "ListParts" => "UPLOAD",
        "ListObjects" | "ListObjectsV2" | "CreateBucket" | "HeadBucket" | "DeleteBucket" => "BUCKET",
        "ListObjectVersions" => "BUCKETVERSIONS",
        "Website" => return format!("WEBSITE.{method}.OBJECT"),
        "Preflight" => "PREFLIGHT",
        "GetObjectAcl" | "PutObjectAcl" | "GetBucketAcl" | "PutBucketAcl" => "ACL",
        "GetObjectTagging" | "PutObjectTagging" | "DeleteObjectTagging" => "OBJECT_TAGGING",
        "GetBucketTagging" | "PutBucketTagging" | "DeleteBucketTagging" => "TAGGING",
        "GetObjectAttributes" => "OBJECT_ATTRIBUTES",
        "GetObjectRetention" | "PutObjectRetention" => "RETENTION",
        "GetObjectLegalHold" | "PutObjectLegalHold" => "LEGAL_HOLD",
        "GetObjectLockConfiguration" | "PutObjectLockConfiguration" => "OBJECT_LOCK_CONFIGURATION",
        "GetBucketLocation" => "LOCATION",
        "GetBucketVersioning" | "PutBucketVersioning" => "VERSIONING",
        "GetBucketPolicy" | "PutBucketPolicy" | "DeleteBucketPolicy" => "BUCKETPOLICY",
        "GetBucketPolicyStatus" => "BUCKETPOLICYSTATUS",
        "GetBucketCors" | "PutBucketCors" | "DeleteBucketCors" => "CORS",
        "GetBucketLifecycleConfiguration" | "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => "LIFECYCLE",
        "GetPublicAccessBlock" | "PutPublicAccessBlock" | "DeletePublicAccessBlock" => "PUBLIC_ACCESS_BLOCK",
        "GetBucketOwnershipControls" | "PutBucketOwnershipControls" | "DeleteBucketOwnershipControls" => {
            "OWNERSHIP_CONTROLS"
        }
        "GetBucketEncryption" | "PutBucketEncryption" | "DeleteBucketEncryption" => "ENCRYPTION",
        "GetBucketWebsite" | "PutBucketWebsite" | "DeleteBucketWebsite" => "WEBSITE",
        "GetBucketLogging" | "PutBucketLogging" => "LOGGING_STATUS",
        "GetBucketNotificationConfiguration" | "PutBucketNotificationConfiguration" => "NOTIFICATION",
        "GetBucketReplication" | "PutBucketReplication" | "DeleteBucketReplication" => "REPLICATION",
        "GetBucketInventoryConfiguration"
        | "PutBucketInventoryConfiguration"
        | "DeleteBucketInventoryConfiguration"
        | "ListBucketInventoryConfigurations" => "INVENTORY",
        "GetBucketRequestPayment" | "PutBucketRequestPayment" => "REQUEST_PAYMENT",
        "GetBucketAccelerateConfiguration" | "PutBucketAccelerateConfiguration" => "ACCELERATE",
        _ => "OTHER",
    };
    format!("REST.{method}.{resource}")
}

/// What a request did to one object besides what its own line says: a key of DeleteObjects, the source of a copy.
#[derive(Debug, Clone)]
pub struct Beside {
    /// `BATCH.DELETE.OBJECT`, `REST.COPY.OBJECT_GET`, `REST.COPY.PART_GET`.
    pub operation: &'static str,
    /// The object's bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The version that the request named.
    pub version: Option<String>,
    /// HTTP status of that part of the request.
    pub status: u16,
    /// S3's error code.
    pub error: &'static str,
    /// The object's size.
    pub size: Option<u64>,
}

impl Beside {
    /// How it ended, by the error.
    pub fn failed(self, error: &Error) -> Self {
        Self { status: error.kind.status().as_u16(), error: error.kind.code(), ..self }
    }
    /// Its line's entry, in the log of a bucket with this owner; `whole` is the request's own.
    pub fn entry(&self, whole: &Entry, owner: &str) -> Entry {
        let key = uri_encode(self.key.as_bytes(), true);
        let request = match self.operation.strip_prefix("REST.COPY") {
            Some(_) => format!("GET /{}/{key} HTTP/1.1", self.bucket),
            None => String::new(),
        };
        // A thousand lines do not repeat what the request's own line says at the client's length.
        let (referer, agent) = match self.operation {
            "BATCH.DELETE.OBJECT" => Default::default(),
            _ => (whole.referer.clone(), whole.agent.clone()),
        };
        Entry {
            owner: owner.to_owned(),
            bucket: self.bucket.clone(),
            operation: self.operation.to_owned(),
            key,
            request,
            status: self.status,
            error: self.error.to_owned(),
            sent: 0,
            size: self.size,
            version: self.version.clone().unwrap_or_default(),
            by_acl: false,
            referer,
            agent,
            ..whole.clone()
        }
    }
}

/// Where lines go together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The bucket whose requests they tell.
    pub source: String,
    /// Its owner.
    pub account: String,
    /// The target bucket.
    pub target: String,
    /// The day of the events, where keys are to say that.
    pub day: Option<String>,
}

/// Lines that become one object.
#[derive(Debug, Clone)]
pub struct Batch {
    /// When the first one came.
    pub since: UnixMicros,
    /// The configuration that the last one came by.
    pub logging: Logging,
    /// The lines.
    pub lines: Vec<u8>,
}

impl Place {
    /// Of a request at this time.
    pub fn of(entry: &Entry, logging: &Logging) -> Self {
        let day = (logging.partitioned == Some(true)).then(|| day(UnixMicros(entry.time)));
        let (source, account) = (entry.bucket.clone(), entry.owner.clone());
        Self { source, account, target: logging.bucket.clone(), day }
    }
    /// The key of the object that the lines become.
    pub fn key(&self, logging: &Logging, region: &str, now: UnixMicros, unique: u64) -> String {
        let format = format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");
        let now_text = OffsetDateTime::from(now.system()).format(format).unwrap_or_default();
        let prefix = &logging.prefix;
        let Self { source, account, .. } = self;
        match (logging.partitioned, &self.day) {
            (None, _) => format!("{prefix}{now_text}-{unique:016X}"),
            (Some(_), None) => format!("{prefix}{account}/{region}/{source}/{}/{now_text}-{unique:016X}", day(now)),
            (Some(_), Some(day)) => {
                let dashed = day.replace('/', "-");
                format!("{prefix}{account}/{region}/{source}/{day}/{dashed}-00-00-00-{unique:016X}")
            }
        }
    }
}

fn day(at: UnixMicros) -> String {
    OffsetDateTime::from(at.system()).format(format_description!("[year]/[month]/[day]")).unwrap_or_default()
}

/// The lines that are not written yet.
#[derive(Debug, Default)]
pub struct Logs(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// The same by account.
    shares: HashMap<String, usize>,
    batches: HashMap<Place, Batch>,
}

impl Held {
    /// Takes room for so many bytes of an account; false where there is none.
    fn take(&mut self, account: &str, bytes: usize) -> bool {
        let share = self.shares.get(account).copied().unwrap_or(0) + bytes;
        if share > HELD_MAX.saturating_sub(self.bytes) {
            return false;
        }
        self.bytes += bytes;
        self.shares.insert(account.to_owned(), share);
        true
    }
    fn free(&mut self, account: &str, bytes: usize) {
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(account) {
            *share -= bytes;
            if *share == 0 {
                self.shares.remove(account);
            }
        }
    }
}

impl Logs {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a line; false where there is no room for it.
    pub fn push(&self, entry: &Entry, logging: &Logging) -> bool {
        let (place, line) = (Place::of(entry, logging), entry.line());
        let mut held = self.lock();
        if !held.take(&place.account, line.len()) {
            return false;
        }
        let fresh = || Batch { since: UnixMicros(entry.time), logging: logging.clone(), lines: Vec::new() };
        let batch = held.batches.entry(place).or_insert_with(fresh);
        batch.lines.extend_from_slice(line.as_bytes());
        batch.logging = logging.clone();
        true
    }

    /// Takes out what is to be written: what is older than `roll` or large.
    pub fn due(&self, now: UnixMicros, roll: Duration) -> Vec<(Place, Batch)> {
        let mut held = self.lock();
        let is_due = |_: &Place, batch: &mut Batch| {
            batch.lines.len() >= BATCH_BYTES || now.0.saturating_sub(batch.since.0) >= roll.as_micros() as u64
        };
        let due: Vec<_> = held.batches.extract_if(is_due).collect();
        for (place, batch) in &due {
            held.free(&place.account, batch.lines.len());
        }
        due
    }

    /// Puts back what could not be written for now; false where there is no room for it.
    pub fn give_back(&self, place: Place, batch: Batch) -> bool {
        let mut held = self.lock();
        if !held.take(&place.account, batch.lines.len()) {
            return false;
        }
        match held.batches.entry(place) {
            std::collections::hash_map::Entry::Vacant(vacant) => drop(vacant.insert(batch)),
            std::collections::hash_map::Entry::Occupied(mut later) => {
                let lines = [&batch.lines[..], &later.get().lines[..]].concat();
                (later.get_mut().lines, later.get_mut().since) = (lines, batch.since);
            }
        }
        true
    }
}

impl Batch {
    /// The object's body.
    pub fn body(&self) -> Bytes {
        Bytes::copy_from_slice(&self.lines)
    }
    /// How many lines.
    pub fn count(&self) -> u64 {
        self.lines.iter().filter(|b| **b == b'\n').count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: UnixMicros = UnixMicros(1_549_411_238_000_000);

    fn entry() -> Entry {
        Entry {
            owner: "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be".into(),
            bucket: "amzn-s3-demo-bucket1".into(),
            time: AT.0,
            remote: "192.0.2.3".into(),
            requester: "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be".into(),
            request_id: "3E57427F3EXAMPLE".into(),
            operation: operation("GetBucketVersioning", "GET"),
            request: "GET /amzn-s3-demo-bucket1?versioning HTTP/1.1".into(),
            status: 200,
            sent: 113,
            total: Duration::from_millis(7),
            agent: "S3Console/0.4".into(),
            host_id: "s9lzHYrFp76ZVxRcpX9+5cjAnEH2ROuNkd2BHfIa6UkFVdtjf5mKR3/eTPFvsiP/XV/VLi31234=".into(),
            signature: "SigV4",
            auth: "AuthHeader",
            host: "amzn-s3-demo-bucket1.s3.us-west-1.amazonaws.com".into(),
            ..Entry::default()
        }
    }

    #[test]
    fn the_documented_line() {
        // As AWS documents it, but over plain HTTP and without an access point.
        let want = "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be amzn-s3-demo-bucket1 \
            [06/Feb/2019:00:00:38 +0000] 192.0.2.3 79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be \
            3E57427F3EXAMPLE REST.GET.VERSIONING - \"GET /amzn-s3-demo-bucket1?versioning HTTP/1.1\" 200 - 113 - 7 - \"-\" \
            \"S3Console/0.4\" - s9lzHYrFp76ZVxRcpX9+5cjAnEH2ROuNkd2BHfIa6UkFVdtjf5mKR3/eTPFvsiP/XV/VLi31234= SigV4 - \
            AuthHeader amzn-s3-demo-bucket1.s3.us-west-1.amazonaws.com - - -\n";
        assert_eq!(entry().line(), want);
        let hostile = Entry { agent: "a\" 200 \"\n".into(), ..entry() };
        assert!(hostile.line().contains(" \"a%22 200 %22%0A\" "), "{}", hostile.line());
        let hostile = Entry { host: "h - - Yes".into(), version: "v s".into(), ..entry() };
        assert!(hostile.line().ends_with(" h%20-%20-%20Yes - - -\n"), "{}", hostile.line());
        assert!(hostile.line().contains(" v%20s "), "{}", hostile.line());
    }

    #[test]
    fn keys_of_logs() {
        let simple = Logging { bucket: "t".into(), prefix: "log/".into(), ..Logging::default() };
        let check = |logging: &Logging, want: &str| {
            let place = Place::of(&Entry { owner: "000000000001".into(), bucket: "s".into(), ..entry() }, logging);
            let later = UnixMicros(AT.0 + 86_400_000_000);
            assert_eq!(place.key(logging, "us-east-1", later, 0xAB), want);
        };
        check(&simple, "log/2019-02-07-00-00-38-00000000000000AB");
        let delivery = Logging { partitioned: Some(false), ..simple.clone() };
        check(&delivery, "log/000000000001/us-east-1/s/2019/02/07/2019-02-07-00-00-38-00000000000000AB");
        let event = Logging { partitioned: Some(true), ..simple };
        check(&event, "log/000000000001/us-east-1/s/2019/02/06/2019-02-06-00-00-00-00000000000000AB");
    }

    #[test]
    fn lines_are_held_and_due() {
        let logs = Logs::default();
        let logging = Logging { bucket: "t".into(), ..Logging::default() };
        assert!(logs.push(&entry(), &logging) && logs.push(&entry(), &logging));
        assert!(logs.due(UnixMicros(AT.0 + 1), ROLL).is_empty());
        let mut due = logs.due(UnixMicros(AT.0 + 300_000_000), ROLL);
        assert_eq!(due.len(), 1);
        let (place, batch) = due.pop().unwrap();
        assert_eq!(batch.count(), 2);
        assert!(logs.push(&entry(), &logging) && logs.give_back(place, batch));
        let due = logs.due(UnixMicros(AT.0 + 300_000_000), ROLL);
        assert_eq!((due.len(), due[0].1.count()), (1, 3));
        assert_eq!(logs.lock().bytes, 0);
        let large = Entry { key: "k".repeat(FIELD_MAX), ..entry() };
        let mut taken = 0;
        while logs.push(&large, &logging) {
            taken += 1;
        }
        assert!((HELD_MAX / 6000..HELD_MAX / 4000).contains(&taken), "{taken}");
        // Another account has its share all the same, and both have all of it back.
        let other = Entry { owner: "000000000002".into(), ..large.clone() };
        let others = (0..).take_while(|_| logs.push(&other, &logging)).count();
        assert!((HELD_MAX / 12_000..HELD_MAX / 8_000).contains(&others), "{others}");
        assert!(!logs.push(&large, &logging));
        assert_eq!(logs.due(AT, ROLL).len(), 2, "large enough");
        let (bytes, shares) = {
            let held = logs.lock();
            (held.bytes, held.shares.len())
        };
        assert_eq!((bytes, shares), (0, 0));
        assert!(logs.push(&large, &logging));
    }
}
