//! Walrus's counters: requests by operation and status, bytes, latency, space reclaimed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karri_base::clock::UnixMicros;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::usage::{Amount, Usages};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    operation: &'static str,
    status: u16,
}

/// Labels of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BucketName {
    account: String,
    bucket: String,
}

/// Labels of a destination of events.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct To {
    destination: String,
}

/// Who came upon something corrupt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    by: &'static str,
}

/// Buckets with gauges of their own: the largest ones.
const BUCKETS_SHOWN: usize = 1_000;
/// Destinations of replication with numbers of their own: the first ones.
const DESTINATIONS_SHOWN: usize = 1_000;

/// The counters, shared by all cores.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Request, Counter>,
    seconds: Family<Request, Histogram, fn() -> Histogram>,
    received: Counter,
    sent: Counter,
    from_memory: Counter,
    reclaimed: Counter,
    log_lines: Counter,
    log_lines_lost: Counter,
    events_delivered: Family<To, Counter>,
    events_lost: Counter,
    events_waiting: Family<To, Gauge>,
    events_lag: Family<To, Gauge>,
    replicated: Family<To, Counter>,
    replicated_bytes: Family<To, Counter>,
    replication_failed: Family<To, Counter>,
    replication_pending: Family<To, Gauge>,
    replication_pending_bytes: Family<To, Gauge>,
    replication_lag: Family<To, Gauge>,
    /// Destinations of replication that have numbers of their own.
    replication_shown: Arc<Mutex<HashSet<String>>>,
    bucket_objects: Family<BucketName, Gauge>,
    bucket_bytes: Family<BucketName, Gauge>,
    objects: Gauge,
    object_bytes: Gauge,
    audit_lost: Counter,
    checked: Counter,
    corrupt: Family<By, Counter>,
    repaired: Counter,
    last_scrub: Gauge,
    corrupt_left: Gauge,
    /// What is in the buckets.
    pub usages: Usages,
}

impl Default for Metrics {
    fn default() -> Self {
        // 100 us to 100 s.
        let make: fn() -> Histogram = || {
            Histogram::new([
                0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 25.0,
                100.0,
            ])
        };
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(make),
            received: Counter::default(),
            sent: Counter::default(),
            from_memory: Counter::default(),
            reclaimed: Counter::default(),
            log_lines: Counter::default(),
            log_lines_lost: Counter::default(),
            events_delivered: Family::default(),
            events_lost: Counter::default(),
            events_waiting: Family::default(),
            events_lag: Family::default(),
            replicated: Family::default(),
            replicated_bytes: Family::default(),
            replication_failed: Family::default(),
            replication_pending: Family::default(),
            replication_pending_bytes: Family::default(),
            replication_lag: Family::default(),
            replication_shown: Arc::default(),
            bucket_objects: Family::default(),
            bucket_bytes: Family::default(),
            objects: Gauge::default(),
            object_bytes: Gauge::default(),
            audit_lost: Counter::default(),
            checked: Counter::default(),
            corrupt: Family::default(),
            repaired: Counter::default(),
            last_scrub: Gauge::default(),
            corrupt_left: Gauge::default(),
            usages: Usages::default(),
        }
    }
}

impl Metrics {
    /// Counters in this registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("walrus");
        r.register("requests", "Requests by operation and HTTP status", metrics.requests.clone());
        r.register_with_unit(
            "request",
            "Time from a request's head to its answer's head, by operation and HTTP status",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        r.register_with_unit("received", "Bytes of request bodies", Unit::Bytes, metrics.received.clone());
        r.register_with_unit("sent", "Bytes of response bodies", Unit::Bytes, metrics.sent.clone());
        r.register_with_unit(
            "cache_read",
            "Bytes of data that came from memory and not from the disk",
            Unit::Bytes,
            metrics.from_memory.clone(),
        );
        r.register("blobs_reclaimed", "Blobs deleted because nothing named them any more", metrics.reclaimed.clone());
        r.register("log_lines_written", "Lines of access logs written into buckets", metrics.log_lines.clone());
        r.register("log_lines_lost", "Lines of access logs that could not be written", metrics.log_lines_lost.clone());
        r.register("events_delivered", "Events that a destination took", metrics.events_delivered.clone());
        r.register("events_lost", "Events given up: no destination, too many, too old", metrics.events_lost.clone());
        r.register("events_waiting", "Events that wait for a destination", metrics.events_waiting.clone());
        r.register_with_unit(
            "events_lag",
            "Age of the oldest event that waits for a destination",
            Unit::Seconds,
            metrics.events_lag.clone(),
        );
        r.register("replicated", "Changes that a destination of replication has got", metrics.replicated.clone());
        r.register_with_unit(
            "replicated",
            "Bytes that a destination of replication has got",
            Unit::Bytes,
            metrics.replicated_bytes.clone(),
        );
        r.register(
            "replication_failed",
            "Changes that a destination of replication refused for good",
            metrics.replication_failed.clone(),
        );
        r.register(
            "replication_pending",
            "Changes that wait for a destination of replication",
            metrics.replication_pending.clone(),
        );
        r.register_with_unit(
            "replication_pending",
            "Bytes that wait for a destination of replication",
            Unit::Bytes,
            metrics.replication_pending_bytes.clone(),
        );
        r.register_with_unit(
            "replication_lag",
            "Age of the oldest change that is carried to a destination of replication",
            Unit::Seconds,
            metrics.replication_lag.clone(),
        );
        r.register("objects", "Object versions in all buckets", metrics.objects.clone());
        r.register_with_unit("objects", "Bytes in all buckets", Unit::Bytes, metrics.object_bytes.clone());
        r.register("bucket_objects", "Object versions in a bucket", metrics.bucket_objects.clone());
        r.register(
            "audit_lines_lost",
            "Lines of the audit log for which there was no room",
            metrics.audit_lost.clone(),
        );
        r.register_with_unit("scrub_read", "Bytes that the scrub read", Unit::Bytes, metrics.checked.clone());
        r.register("corrupt_found", "Corrupt pieces of data, by the scrub and by reads", metrics.corrupt.clone());
        r.register("scrub_repaired", "What the scrub found wrong and mended", metrics.repaired.clone());
        r.register_with_unit(
            "scrub_last_complete",
            "When the scrub last looked through the whole store, since 1970; 0: never",
            Unit::Seconds,
            metrics.last_scrub.clone(),
        );
        r.register("scrub_corrupt_left", "What the last whole scrub left wrong", metrics.corrupt_left.clone());
        r.register_with_unit("bucket", "Bytes in a bucket", Unit::Bytes, metrics.bucket_bytes.clone());
        metrics
    }
    /// What is in the buckets: names, accounts, amounts.
    pub fn usage(&self, mut buckets: Vec<(String, String, Amount)>) {
        let total = buckets.iter().fold(Amount::default(), |sum, (_, _, used)| sum + *used);
        self.objects.set(total.objects);
        self.object_bytes.set(total.bytes);
        buckets.sort_unstable_by_key(|(_, _, used)| std::cmp::Reverse(used.bytes));
        self.bucket_objects.clear();
        self.bucket_bytes.clear();
        for (bucket, account, used) in buckets.into_iter().take(BUCKETS_SHOWN) {
            let labels = BucketName { account, bucket };
            self.bucket_objects.get_or_create(&labels).set(used.objects);
            self.bucket_bytes.get_or_create(&labels).set(used.bytes);
        }
    }
    /// An event was taken.
    pub fn event_delivered(&self, destination: &str) {
        self.events_delivered.get_or_create(&To { destination: destination.to_owned() }).inc();
    }
    /// Events are given up.
    pub fn events_lost(&self, events: u64) {
        self.events_lost.inc_by(events);
    }
    /// How old a destination's oldest event is, in seconds, and how many wait.
    pub fn event_lag(&self, destination: &str, seconds: u64, waiting: usize) {
        let to = To { destination: destination.to_owned() };
        self.events_lag.get_or_create(&to).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        self.events_waiting.get_or_create(&to).set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
    /// Lines of the audit log are lost.
    pub fn audit_lines_lost(&self, lines: u64) {
        self.audit_lost.inc_by(lines);
    }
    /// The scrub read so much.
    pub fn checked(&self, bytes: u64) {
        self.checked.inc_by(bytes);
    }
    /// Something corrupt was found: by `scrub` or by `read`.
    pub fn corrupt(&self, by: &'static str) {
        self.corrupt.get_or_create(&By { by }).inc();
    }
    /// Corrupt pieces found so far by `scrub` or by `read`.
    pub fn corrupt_found(&self, by: &'static str) -> u64 {
        self.corrupt.get_or_create(&By { by }).get()
    }
    /// The scrub mended something.
    pub fn repaired(&self) {
        self.repaired.inc();
    }
    /// The scrub looked through the whole store and left so much wrong.
    pub fn scrubbed(&self, at: UnixMicros, left: u64) {
        self.last_scrub.set(i64::try_from(at.secs()).unwrap_or(i64::MAX));
        self.corrupt_left.set(i64::try_from(left).unwrap_or(i64::MAX));
    }
    /// A destination of replication; tenants name buckets of remotes as they like, so not all have numbers of their own.
    fn to(&self, destination: &str) -> Option<To> {
        let mut shown = self.replication_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let has =
            shown.contains(destination) || shown.len() < DESTINATIONS_SHOWN && shown.insert(destination.to_owned());
        has.then(|| To { destination: destination.to_owned() })
    }
    fn to_or_others(&self, destination: &str) -> To {
        self.to(destination).unwrap_or_else(|| To { destination: "others".into() })
    }
    /// A destination of replication has got a change.
    pub fn replicated(&self, destination: &str, bytes: u64) {
        let to = self.to_or_others(destination);
        self.replicated.get_or_create(&to).inc();
        self.replicated_bytes.get_or_create(&to).inc_by(bytes);
    }
    /// A destination of replication will not get a change.
    pub fn replication_failed(&self, destination: &str) {
        self.replication_failed.get_or_create(&self.to_or_others(destination)).inc();
    }
    /// What waits for a destination of replication: changes and bytes; the age of the oldest in seconds, where it is known.
    pub fn replication_waiting(&self, destination: &str, (changes, bytes): (i64, i64), lag: Option<u64>) {
        let Some(to) = self.to(destination) else { return };
        self.replication_pending.get_or_create(&to).set(changes);
        self.replication_pending_bytes.get_or_create(&to).set(bytes);
        if let Some(lag) = lag {
            self.replication_lag.get_or_create(&to).set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
    /// Bytes were read from memory instead of the disk.
    pub fn from_memory(&self, bytes: u64) {
        self.from_memory.inc_by(bytes);
    }
    /// Lines of access logs are in their bucket.
    pub fn log_lines_written(&self, lines: u64) {
        self.log_lines.inc_by(lines);
    }
    /// Lines of access logs are lost.
    pub fn log_lines_lost(&self, lines: u64) {
        self.log_lines_lost.inc_by(lines);
    }
    /// A request was answered.
    pub fn answered(&self, operation: &'static str, status: u16, took: Duration) {
        let request = Request { operation, status };
        self.requests.get_or_create(&request).inc();
        self.seconds.get_or_create(&request).observe(took.as_secs_f64());
    }
    /// Bytes came in.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }
    /// Bytes went out.
    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }
    /// Blobs were deleted.
    pub fn reclaimed(&self, blobs: u64) {
        self.reclaimed.inc_by(blobs);
    }
}
