//! Makes inventory reports: what is in a bucket, as lines of CSV in gzip, written into another one with a manifest.
//!
//! ```text
//! PREFIX/BUCKET/ID/data/UUID.csv.gz                 lines, about [`LINES`] in a file
//! PREFIX/BUCKET/ID/YYYY-MM-DDTHH-MMZ/manifest.json  what the files are; manifest.checksum: its MD5
//! PREFIX/BUCKET/ID/hive/dt=YYYY-MM-DD-HH-MM/symlink.txt
//! ```
//!
//! One core makes one report after another, reading records in pages by seek with rests in between, however many versions a
//! key has; a file is streamed as it grows. The manifest comes last, and then the note that the report is made: a crash before makes it anew.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use karri_base::aws::sigv4::uri_encode;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::{Batch, Scan};
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::access::acl::{Acl, Grantee};
use crate::access::{Facts, Leave};
use crate::body::{self, Expected, Incoming, Seal};
use crate::buckets::Known;
use crate::config::Doc;
use crate::config::inventory::{FIELDS, Inventory};
use crate::config::lifecycle::Calendar;
use crate::core::{Caller, CoreRef};
use crate::delivery::{self, Source};
use crate::digest;
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::notify::INVENTORY;
use crate::ops::condition::WriteConditions;
use crate::ops::encryption::Asked;
use crate::ops::put::{Target, object_of, publish};
use crate::record::codec::{Fields, Writer, number, unknown, wanted};
use crate::record::{Bucket, Headers, Holder, Object, Versioning};

/// Who writes reports.
const SERVICE: &str = "s3.amazonaws.com";
/// Records read in one go.
const PAGE: usize = 500;
/// The rest after a page: at most 100,000 records a second.
const REST: Duration = Duration::from_millis(5);
/// Lines of one file.
const LINES: u64 = 1_000_000;
/// How often a report is tried that could not be made, before the next one is due.
const TRIES: u32 = 3;
/// How often is looked whether a report is due; a fifth of a shortened day.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Makes reports, for ever.
pub async fn run<B: BulkStore>(core: &CoreRef<B>, calendar: Calendar) {
    let mut reporter = Reporter::default();
    loop {
        karri_engine::sleep(Duration::from_secs((calendar.day_seconds / 5).max(1)).min(LOOK_EVERY)).await;
        if let Err(error) = round(core, calendar, &mut reporter).await {
            tracing::warn!(error = %error, "inventory reports could not be made; trying again later");
        }
    }
}

/// When a report was made last: `C inventory/BUCKET/ID`, field 1 the time.
fn noted(bucket: BucketId, id: &str) -> Bytes {
    keys::setting(&format!("inventory/{:016x}/{id}", bucket.0))
}

/// Who makes reports.
#[derive(Debug)]
pub struct Reporter {
    /// How often in a row a report could not be made, by its note.
    failed: HashMap<Bytes, u32>,
    lines_max: u64,
}

impl Reporter {
    /// Makes files of about so many lines.
    pub fn new(lines_max: u64) -> Self {
        Self { failed: HashMap::new(), lines_max }
    }
}

impl Default for Reporter {
    fn default() -> Self {
        Self::new(LINES)
    }
}

/// Makes the reports that are due; answers how many. What is wrong with one of them is logged, and others are made: it is
/// tried again when the next one is due, and [`TRIES`] times before where that is this Walrus's fault.
///
/// # Errors
/// The store's, when buckets cannot be listed.
pub async fn round<B: BulkStore>(core: &CoreRef<B>, calendar: Calendar, reporter: &mut Reporter) -> Result<u64> {
    let mut names = Vec::new();
    core.each_pair(keys::all(b'B'), PAGE, |key, raw| {
        let name = String::from_utf8_lossy(&key[1..]).into_owned();
        match Bucket::decode(raw) {
            Ok(bucket) if bucket.documents.has(Doc::Inventory) => names.push(name),
            Ok(_) => {}
            Err(error) => tracing::warn!(bucket = name, error = %error, "a bucket's record is damaged"),
        }
        Ok(())
    })
    .await?;
    let mut made = 0;
    for name in names {
        let known = match core.known(&name).await {
            Ok(known) => known,
            Err(e) if e.kind == Kind::NoSuchBucket => continue,
            Err(error) => {
                tracing::warn!(bucket = name, error = %error, "a bucket's inventory reports could not be made");
                continue;
            }
        };
        for inventory in known.settings.inventories.iter().filter(|inventory| inventory.enabled) {
            let note = noted(known.bucket().id, &inventory.id);
            let now = core.now();
            let unread = |error: &dyn std::fmt::Display| {
                tracing::warn!(bucket = name, id = inventory.id, %error, "an inventory report's last time cannot be read");
            };
            let last = match core.meta.get(note.clone()).await {
                // A damaged one is written anew with the report.
                Ok(raw) => raw.and_then(|raw| time_of(&raw).inspect_err(|error| unread(error)).ok()),
                Err(error) => {
                    unread(&error);
                    continue;
                }
            };
            if last.is_some_and(|last| !is_due(last, now, inventory.days, calendar)) {
                continue;
            }
            match report(core, (&name, &known), inventory, now, reporter.lines_max).await {
                Ok(()) => made += 1,
                Err(error) => {
                    let (id, to) = (&inventory.id, &inventory.bucket);
                    tracing::warn!(bucket = name, id, to, error = %error, "an inventory report could not be written");
                    let tries = reporter.failed.entry(note.clone()).or_default();
                    *tries += 1;
                    // Each try may leave files behind, so there is an end to them.
                    if error.kind.status().is_server_error() && *tries < TRIES {
                        continue;
                    }
                }
            }
            reporter.failed.remove(&note);
            // Also where it may not be written: it is tried again when the next one is due.
            let mut record = Writer::new(b'C');
            record.number(1, now.0);
            if let Err(error) = core.commit(Batch::new().put(note, record.finish())).await {
                tracing::warn!(bucket = name, id = inventory.id, error = %error, "an inventory report's time is not noted");
            }
        }
    }
    Ok(made)
}

fn time_of(record: &[u8]) -> Result<UnixMicros> {
    let mut fields = Fields::open(b'C', record)?;
    let mut time = None;
    while let Some((tag, bytes)) = fields.pull()? {
        match tag {
            1 => time = Some(UnixMicros(number(tag, bytes)?)),
            _ => unknown(tag)?,
        }
    }
    Ok(wanted(1, time)?)
}

/// On another day than the last one, or in another week, which begins on Sunday; a shortened day has no midnight.
fn is_due(last: UnixMicros, now: UnixMicros, days: u64, calendar: Calendar) -> bool {
    if calendar != Calendar::default() {
        return now.secs() >= last.secs() + days * calendar.day_seconds;
    }
    // 1970-01-04 was a Sunday.
    let period = |at: UnixMicros| if days == 1 { at.secs() / 86_400 } else { (at.secs() / 86_400 + 4) / 7 };
    period(now) > period(last)
}

/// A report in the making.
struct Report<'a, B: BulkStore> {
    core: &'a CoreRef<B>,
    caller: Caller,
    name: &'a str,
    source: &'a Known,
    inventory: &'a Inventory,
    target: Arc<Known>,
    lines_max: u64,
}

/// A file that is written.
struct File {
    key: String,
    size: u64,
    md5: [u8; 16],
}

async fn report<B: BulkStore>(
    core: &CoreRef<B>,
    (name, source): (&str, &Known),
    inventory: &Inventory,
    now: UnixMicros,
    lines_max: u64,
) -> Result<()> {
    let target = core.known(&inventory.bucket).await?;
    let owner = target.bucket().owner.clone();
    if inventory.account.as_ref().is_some_and(|account| *account != owner) {
        return Err(Error::new(Kind::AccessDenied, "The destination bucket belongs to another account than was said."));
    }
    let from = Source { bucket: name, account: &source.bucket().owner };
    let base = match inventory.to_prefix.trim_end_matches('/') {
        "" => format!("{name}/{}", inventory.id),
        prefix => format!("{prefix}/{name}/{}", inventory.id),
    };
    if !delivery::service_may_put(&target, SERVICE, (&inventory.bucket, &base), from, core.now()) {
        return Err(Error::new(
            Kind::AccessDenied,
            format!("The policy of the bucket {:?} does not let {SERVICE} put objects at {base:?}.", inventory.bucket),
        ));
    }
    let leave = Leave {
        buckets: vec![inventory.bucket.clone()],
        new_owner: Some(owner),
        facts: Facts { operation: INVENTORY, ..Facts::default() },
        ..Leave::default()
    };
    let caller = Caller { key: None, leave: Arc::new(leave) };
    let report = Report { core, caller, name, source, inventory, target, lines_max };
    let mut files = Vec::new();
    let first = keys::object(source.bucket().id, inventory.prefix.as_bytes());
    let mut at = Some(Position { key: first, older: None });
    while let Some(start) = at {
        let key = format!("{base}/data/{}.csv.gz", uuid());
        let lines = Lines::new(&report, start);
        let rest = lines.rest.clone();
        let (size, md5) = report.put(&key, "application/gzip", lines.stream()).await?;
        files.push(File { key, size, md5 });
        at = rest.take();
    }
    let format = format_description!("[year]-[month]-[day]T[hour]-[minute]Z");
    let stamp = OffsetDateTime::from(now.system()).format(format).unwrap_or_default();
    let format = format_description!("[year]-[month]-[day]-[hour]-[minute]");
    let day = OffsetDateTime::from(now.system()).format(format).unwrap_or_default();
    let links: String = files.iter().map(|f| format!("s3://{}/{}\n", inventory.bucket, f.key)).collect();
    report.whole(&format!("{base}/hive/dt={day}/symlink.txt"), "text/plain", links).await?;
    let manifest = manifest(name, inventory, now, &files);
    let sum = hex::encode(digest::md5(manifest.as_bytes()));
    report.whole(&format!("{base}/{stamp}/manifest.checksum"), "text/plain", sum).await?;
    report.whole(&format!("{base}/{stamp}/manifest.json"), "application/json", manifest).await?;
    Ok(())
}

/// A random UUID.
fn uuid() -> String {
    let text = format!("{:032x}", rand::random::<u128>());
    format!("{}-{}-4{}-a{}-{}", &text[..8], &text[8..12], &text[13..16], &text[17..20], &text[20..])
}

fn columns(inventory: &Inventory) -> Vec<&'static str> {
    let of_versions: &[&str] = if inventory.all { &["VersionId", "IsLatest", "IsDeleteMarker"] } else { &[] };
    let first = ["Bucket", "Key"].into_iter().chain(of_versions.iter().copied());
    first.chain(inventory.fields.iter().map(|at| FIELDS[*at])).collect()
}

fn manifest(name: &str, inventory: &Inventory, now: UnixMicros, files: &[File]) -> String {
    let files: Vec<_> =
        files.iter().map(|f| json!({ "key": f.key, "size": f.size, "MD5checksum": hex::encode(f.md5) })).collect();
    let manifest = json!({
        "sourceBucket": name,
        "destinationBucket": format!("arn:aws:s3:::{}", inventory.bucket),
        "version": "2016-11-30",
        "creationTimestamp": (now.0 / 1_000).to_string(),
        "fileFormat": "CSV",
        "fileSchema": columns(inventory).join(", "),
        "files": files,
    });
    format!("{manifest:#}\n")
}

impl<B: BulkStore> Report<'_, B> {
    async fn whole(&self, key: &str, kind: &str, text: String) -> Result<(u64, [u8; 16])> {
        let body: Incoming = Box::pin(futures_util::stream::iter([Ok(Bytes::from(text))]));
        self.put(key, kind, body).await
    }

    /// Puts an object of the report; answers its size and MD5.
    async fn put(&self, key: &str, kind: &str, body: Incoming) -> Result<(u64, [u8; 16])> {
        let (core, name) = (self.core, &self.inventory.bucket);
        let bucket = core.bucket_to_fill(&self.caller, name, None).await?;
        let asked = self.inventory.encryption.clone().map_or(Asked::Default, Asked::Kept);
        let keyed = core.fresh_key(&bucket.value, &asked).await?;
        let seal = keyed.as_ref().map(|keyed| Seal::new(&keyed.secret));
        let keep = Some(digest::Algorithm::Crc64Nvme);
        let expected = Expected { keep, seal, ..Expected::default() };
        let received = body::receive(core, body, &expected).await?;
        let headers = Headers { content_type: Some(kind.to_owned()), ..Headers::default() };
        let mut object = object_of(core, &self.caller, &received, &expected, headers);
        object.owner = self.target.bucket().owner.clone();
        object.sealed = keyed.map(|keyed| keyed.sealed);
        let target = Target { caller: &self.caller, bucket: name, key, owner: None };
        publish(core, &target, bucket, &WriteConditions::default(), &mut object, &received.stored).await?;
        Ok((object.size, object.md5))
    }
}

/// How far a report is.
#[derive(Debug, Clone)]
struct Position {
    /// Keys from here on.
    key: Bytes,
    /// Before them the rest of a key's older versions.
    older: Option<Older>,
}

/// Older versions of a key.
#[derive(Debug, Clone)]
struct Older {
    key: String,
    range: Range<Bytes>,
    /// The current version's time, as it was told.
    before: UnixMicros,
}

/// Where the next file begins, once this one has all its lines.
type Rest = std::rc::Rc<std::cell::RefCell<Option<Position>>>;

/// The lines of one file as they are made.
struct Lines<B: BulkStore> {
    core: CoreRef<B>,
    name: String,
    bucket: BucketId,
    /// It keeps versions, or has kept some.
    versioned: bool,
    inventory: Inventory,
    at: Position,
    /// Keys that are read and not yet told of, from [`Position::key`] on.
    ready: VecDeque<(Bytes, Bytes)>,
    end: Bytes,
    out: GzEncoder<Vec<u8>>,
    lines: u64,
    lines_max: u64,
    /// Records since the last rest.
    read: usize,
    over: bool,
    rest: Rest,
}

impl<B: BulkStore> Lines<B> {
    fn new(report: &Report<'_, B>, at: Position) -> Self {
        let bucket = report.source.bucket().id;
        let prefix = keys::object(bucket, report.inventory.prefix.as_bytes());
        Self {
            core: report.core.clone(),
            name: report.name.to_owned(),
            bucket,
            versioned: report.source.bucket().versioning != Versioning::Never,
            inventory: report.inventory.clone(),
            at,
            ready: VecDeque::new(),
            end: keys::prefixed(prefix).end,
            out: GzEncoder::new(Vec::new(), Compression::default()),
            lines: 0,
            lines_max: report.lines_max,
            read: 0,
            over: false,
            rest: Rest::default(),
        }
    }

    fn stream(self) -> Incoming {
        Box::pin(futures_util::stream::unfold(self, |mut lines| async move {
            loop {
                match lines.step().await {
                    Ok(Some(bytes)) if bytes.is_empty() => {}
                    Ok(Some(bytes)) => return Some((Ok(bytes), lines)),
                    Ok(None) => return None,
                    Err(e) => {
                        lines.over = true;
                        return Some((Err(e), lines));
                    }
                }
            }
        }))
    }

    /// What the next records add to the file, about a page of them; `None` at its end.
    async fn step(&mut self) -> Result<Option<Bytes>> {
        if self.over {
            return Ok(None);
        }
        let mut more = true;
        while more && self.lines < self.lines_max {
            if self.read >= PAGE {
                self.read = 0;
                karri_engine::sleep(REST).await;
                return Ok(Some(std::mem::take(self.out.get_mut()).into()));
            }
            more = match self.at.older.take() {
                Some(older) => self.older(older).await?,
                None => self.keys().await?,
            };
        }
        if more {
            *self.rest.borrow_mut() = Some(self.at.clone());
        }
        self.over = true;
        let whole = std::mem::replace(&mut self.out, GzEncoder::new(Vec::new(), Compression::none()));
        Ok(Some(whole.finish().map_err(unwritten)?.into()))
    }

    /// Tells of current versions, up to one that older ones may follow; false where there is none.
    async fn keys(&mut self) -> Result<bool> {
        if self.ready.is_empty() {
            self.ready = self.core.meta.scan(Scan::new(self.at.key.clone()..self.end.clone(), PAGE)).await?.into();
            self.read += self.ready.len();
        }
        let more = !self.ready.is_empty();
        while let Some((store_key, raw)) = self.ready.pop_front() {
            let key = String::from_utf8_lossy(&store_key[keys::OBJECT_PREFIX..]).into_owned();
            let current = Object::decode(&raw)?;
            if self.inventory.all || !current.marker {
                self.line(&key, &current, true)?;
            }
            self.at.key = keys::after(&store_key);
            // Also under a null version: it may have been put while versioning was suspended.
            if self.inventory.all && self.versioned {
                let range = keys::versions_of_key(self.bucket, key.as_bytes());
                self.at.older = Some(Older { range, key, before: current.modified });
                break;
            }
        }
        Ok(more)
    }

    /// Tells of a page of a key's older versions; more may follow.
    async fn older(&mut self, mut older: Older) -> Result<bool> {
        let found = self.core.meta.scan(Scan::new(older.range.clone(), PAGE)).await?;
        self.read += found.len().max(1);
        for (_, raw) in &found {
            let version = Object::decode(raw)?;
            // What was current a moment ago has been told of.
            if version.modified < older.before {
                self.line(&older.key, &version, false)?;
            }
        }
        if let Some((last, _)) = found.last().filter(|_| found.len() == PAGE) {
            older.range.start = keys::after(last);
            self.at.older = Some(older);
        }
        Ok(true)
    }

    fn line(&mut self, key: &str, object: &Object, latest: bool) -> Result<()> {
        let line = line(&self.name, &self.inventory, key, object, latest);
        self.lines += 1;
        self.out.write_all(line.as_bytes()).map_err(unwritten)
    }
}

/// Into memory it always is.
fn unwritten(e: std::io::Error) -> Error {
    Error::new(Kind::InternalError, "A line could not be compressed.").caused(e)
}

fn line(name: &str, inventory: &Inventory, key: &str, object: &Object, latest: bool) -> String {
    let mut values = vec![name.to_owned(), uri_encode(key.as_bytes(), true)];
    if inventory.all {
        let version = object.version.map_or(String::new(), keys::DataId::to_hex);
        values.extend([version, latest.to_string(), object.marker.to_string()]);
    }
    values.extend(inventory.fields.iter().map(|at| field(FIELDS[*at], object)));
    let quoted: Vec<String> = values.iter().map(|v| format!("\"{}\"", v.replace('"', "\"\""))).collect();
    format!("{}\n", quoted.join(","))
}

/// A field's value; empty where a version has none.
fn field(name: &str, object: &Object) -> String {
    let text = |value: &str| value.to_owned();
    let time = |at: UnixMicros| {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        OffsetDateTime::from(at.system()).format(format).unwrap_or_default()
    };
    let class = object.headers.storage_class.as_deref().unwrap_or("STANDARD");
    let of_data = !object.marker;
    match name {
        "LastModifiedDate" => time(object.modified),
        "ObjectOwner" => object.owner.clone(),
        "ReplicationStatus" => object.replication.map_or(String::new(), |r| text(r.name())),
        _ if !of_data => String::new(),
        "Size" => object.size.to_string(),
        "ETag" => object.etag(),
        "StorageClass" => text(class),
        "IsMultipartUploaded" => object.parts.is_some().to_string(),
        "EncryptionStatus" => text(match object.sealed.as_ref().map(|sealed| &sealed.holder) {
            None => "NOT-SSE",
            Some(Holder::Walrus) => "SSE-S3",
            Some(Holder::Service(_)) => "SSE-KMS",
            Some(Holder::Customer) => "SSE-C",
        }),
        "ObjectLockRetainUntilDate" => object.lock.retention.map_or(String::new(), |r| time(r.until)),
        "ObjectLockMode" => object.lock.retention.map_or(String::new(), |r| text(r.mode.name())),
        "ObjectLockLegalHoldStatus" => object.lock.hold.map_or(String::new(), |on| text(if on { "ON" } else { "OFF" })),
        "IntelligentTieringAccessTier" if class == "INTELLIGENT_TIERING" => text("FREQUENT"),
        "BucketKeyStatus" if object.sealed.is_some() => text("DISABLED"),
        "ChecksumAlgorithm" => object.checksum.as_ref().map_or(String::new(), |c| text(c.algorithm.name())),
        "ObjectAccessControlList" => digest::base64(access(object).as_bytes()),
        _ => String::new(),
    }
}

/// An object's list as inventories show it.
fn access(object: &Object) -> String {
    let private = Acl::private(&object.owner);
    let grants: Vec<_> = object
        .acl
        .as_ref()
        .unwrap_or(&private)
        .0
        .iter()
        .map(|grant| {
            let group =
                |name: &str| json!({ "uri": format!("http://acs.amazonaws.com/groups/{name}"), "type": "Group" });
            let mut one = match &grant.grantee {
                Grantee::Account(id) => json!({ "canonicalId": id, "type": "CanonicalUser" }),
                Grantee::AllUsers => group("global/AllUsers"),
                Grantee::AuthenticatedUsers => group("global/AuthenticatedUsers"),
                Grantee::LogDelivery => group("s3/LogDelivery"),
            };
            one["permission"] = json!(grant.permission.name());
            one
        })
        .collect();
    json!({ "version": "2022-11-10", "status": "AVAILABLE", "grants": grants }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_reports_are_due() {
        let day = |n: u64, hour: u64| UnixMicros((n * 86_400 + hour * 3_600) * 1_000_000);
        let check = |last, now, days, want| assert_eq!(is_due(last, now, days, Calendar::default()), want, "{now:?}");
        check(day(10, 1), day(10, 23), 1, false);
        check(day(10, 23), day(11, 0), 1, true);
        // Day 10 was a Sunday: 1970-01-11.
        check(day(10, 1), day(16, 23), 7, false);
        check(day(10, 1), day(17, 0), 7, true);
        check(day(16, 23), day(17, 0), 7, true);
        let short = Calendar { day_seconds: 10 };
        assert!(is_due(UnixMicros(0), UnixMicros(70_000_000), 7, short));
        assert!(!is_due(UnixMicros(0), UnixMicros(69_000_000), 7, short));
    }

    #[test]
    fn lines_and_manifests() {
        let all: Vec<usize> = (0..FIELDS.len()).collect();
        let inventory = Inventory {
            id: "i".into(),
            enabled: true,
            prefix: String::new(),
            all: true,
            fields: all,
            days: 1,
            bucket: "to".into(),
            to_prefix: String::new(),
            account: None,
            encryption: None,
        };
        let object = Object { size: 5, owner: "000000000001".into(), md5: [0xAB; 16], ..Object::default() };
        let shown = line("b", &inventory, "a \"b\"/\u{e4}", &object, true);
        assert!(
            shown.starts_with(
                "\"b\",\"a%20%22b%22/%C3%A4\",\"\",\"true\",\"false\",\"5\",\"1970-01-01T00:00:00.000Z\","
            ),
            "{shown}"
        );
        assert!(shown.contains(",\"STANDARD\",\"false\",\"\",\"NOT-SSE\","), "{shown}");
        assert_eq!(shown.matches("\",\"").count() + 1, columns(&inventory).len());
        let marker = Object { marker: true, ..object };
        assert!(line("b", &inventory, "k", &marker, false).contains("\"false\",\"true\",\"\","));
        let file = File { key: "k".into(), size: 7, md5: [1; 16] };
        let manifest: serde_json::Value =
            serde_json::from_str(&manifest("b", &inventory, UnixMicros(1_514_944_800_000_000), &[file])).unwrap();
        assert_eq!(manifest["creationTimestamp"], "1514944800000");
        assert_eq!(manifest["files"][0]["MD5checksum"], "01".repeat(16));
        assert!(
            manifest["fileSchema"]
                .as_str()
                .unwrap()
                .starts_with("Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ")
        );
    }
}
