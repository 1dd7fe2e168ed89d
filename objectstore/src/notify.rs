//! Event notifications: what happens to objects becomes a durable record in the very commit that makes it happen.
//!
//! ```text
//! PUT, DELETE, ... -> commit: O, ... and L destination time random -> courier -> webhook or queue folder -> L deleted
//! ```
//!
//! So nothing is lost over a crash, and what was delivered just before one is delivered again: at least once, in order of
//! commits as far as their clocks tell. Destinations are the operator's; buckets name them by ARN.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use karri_base::aws::arn::Arn;
use karri_base::aws::sigv4::uri_encode;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::Batch;
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::change::Change;
use crate::config::events::Notification;
use crate::core::{Caller, Core};
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::outbound::Endpoint;
use crate::record::codec::{Damage, Fields, Writer, number, unknown, wanted};
use crate::record::{Bucket, Object};

/// Events that wait for one destination; above that new ones are lost, and counted.
pub const WAITING_MAX: usize = 100_000;
/// An operation's name in [`Facts`](crate::access::Facts): lifecycle rules, which no request asked for.
pub const LIFECYCLE: &str = "Lifecycle";
/// As [`LIFECYCLE`]: replication.
pub const REPLICATION: &str = "Replication";
/// As [`LIFECYCLE`]: inventory reports.
pub const INVENTORY: &str = "Inventory";

/// Where events go.
#[derive(Debug)]
pub struct Destination {
    /// Its name, the last part of its ARN.
    pub name: String,
    /// What it is.
    pub place: Place,
    /// Accounts whose buckets may name it; all where it is empty.
    pub accounts: Vec<String>,
    /// Events that wait.
    pub waiting: AtomicUsize,
    /// Rung when there are more.
    pub bell: tokio::sync::Notify,
}

/// What a destination is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Events are posted there: `arn:aws:sns:REGION:ACCOUNT:NAME`.
    Webhook {
        /// Path and all.
        url: http::Uri,
        /// Sent as `Authorization: Bearer`.
        token: Option<String>,
        /// Connections to it.
        endpoint: Arc<Endpoint>,
    },
    /// A folder, one file a message: `arn:aws:sqs:REGION:ACCOUNT:NAME`.
    Queue(PathBuf),
}

/// The destinations by service and name (`sns:hook`).
pub type Destinations = BTreeMap<String, Arc<Destination>>;

impl Destination {
    /// A destination that nothing waits for.
    pub fn new(name: &str, place: Place, accounts: Vec<String>) -> Self {
        Self { name: name.to_owned(), place, accounts, waiting: AtomicUsize::new(0), bell: tokio::sync::Notify::new() }
    }
    /// Its key among the [`Destinations`], and in `L`.
    pub fn id(&self) -> String {
        let service = match self.place {
            Place::Webhook { .. } => "sns",
            Place::Queue(_) => "sqs",
        };
        format!("{service}:{}", self.name)
    }
}

/// The destination that an ARN in a configuration names.
fn named<'d>(all: &'d Destinations, arn: &str, account: &str) -> Option<&'d Arc<Destination>> {
    let arn: Arn = arn.parse().ok()?;
    let destination = all.get(&format!("{}:{}", arn.service, arn.resource))?;
    let is_ours = arn.account.is_empty() || arn.account == account;
    let may = destination.accounts.is_empty() || destination.accounts.iter().any(|a| a == account);
    (is_ours && may).then_some(destination)
}

/// A record of `L`: what is told, when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The JSON.
    pub body: Bytes,
    /// How often the destination refused it, and when it happened; `None` where it did not: then the key says when.
    pub refused: Option<(u32, UnixMicros)>,
}

impl Told {
    /// An event that happens now.
    pub fn new(body: String) -> Self {
        Self { body: body.into(), refused: None }
    }
}

impl Told {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'L');
        w.field(1, &self.body);
        if let Some((attempts, since)) = self.refused {
            w.number(2, attempts.into());
            w.number(3, since.0);
        }
        w.finish()
    }
    /// From what is stored.
    ///
    /// # Errors
    /// Damage.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'L', record)?;
        let (mut body, mut attempts, mut since) = (None, None, None);
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => body = Some(Bytes::copy_from_slice(bytes)),
                2 => attempts = Some(u32::try_from(number(tag, bytes)?).unwrap_or(u32::MAX)),
                3 => since = Some(UnixMicros(number(tag, bytes)?)),
                _ => unknown(tag)?,
            }
        }
        Ok(Self { body: wanted(1, body)?, refused: attempts.zip(since) })
    }
}

/// Something that happened to an object.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Its name without `s3:`.
    pub name: &'a str,
    /// The object's key.
    pub key: &'a str,
    /// The object, as it is now or was last.
    pub object: &'a Object,
}

fn moment(at: UnixMicros) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at.system()).format(format).unwrap_or_default()
}

/// "Event message structure" of the S3 user guide, version 2.1.
fn message(
    event: Event<'_>,
    caller: &Caller,
    bucket: (&str, &Bucket),
    notification: &Notification,
    now: UnixMicros,
    sequencer: u64,
) -> String {
    let facts = &caller.leave.facts;
    let (name, record) = bucket;
    let mut object = json!({
        "key": uri_encode(event.key.as_bytes(), true).replace("%20", "+"),
        "sequencer": format!("{sequencer:016X}"),
    });
    if let Some(id) = event.object.version {
        object["versionId"] = json!(id.to_hex());
    }
    // What is gone, or marked so, has neither size nor digest.
    if event.name.starts_with("ObjectCreated") || event.name.starts_with("Object") && !event.name.contains("Removed") {
        object["eTag"] = json!(event.object.etag());
        if event.name.starts_with("ObjectCreated") {
            object["size"] = json!(event.object.size);
        }
    }
    let source = facts.source.map_or_else(|| "s3.amazonaws.com".to_owned(), |a| a.to_canonical().to_string());
    let principal = caller.key.as_ref().map_or("Anonymous", |key| key.arn.as_str());
    let principal =
        if [LIFECYCLE, REPLICATION, INVENTORY].contains(&facts.operation) { "s3.amazonaws.com" } else { principal };
    json!({"Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": record.region,
        "eventTime": moment(now),
        "eventName": event.name,
        "userIdentity": {"principalId": principal},
        "requestParameters": {"sourceIPAddress": source},
        "responseElements": {"x-amz-request-id": facts.request_id, "x-amz-id-2": facts.request_id},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": notification.id,
            "bucket": {
                "name": name,
                "ownerIdentity": {"principalId": record.owner},
                "arn": format!("arn:aws:s3:::{name}"),
            },
            "object": object,
        },
    }]})
    .to_string()
}

/// What AWS sends to each destination when it is configured.
fn test_message(bucket: &str, request_id: &str, now: UnixMicros) -> String {
    json!({
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": moment(now),
        "Bucket": bucket,
        "RequestId": request_id,
        "HostId": request_id,
    })
    .to_string()
}

/// Events that a commit under way tells: counted while they wait, or taken back.
#[derive(Debug, Default)]
pub struct Telling(Vec<Arc<Destination>>);

impl Telling {
    /// Takes a place among those that wait; false where there is none.
    fn take(&mut self, to: &Arc<Destination>) -> bool {
        if to.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            to.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.0.push(to.clone());
        true
    }
    /// The commit happened.
    pub fn happened(mut self) {
        for to in self.0.drain(..) {
            to.bell.notify_one();
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        for to in &self.0 {
            // Cut off, it may have happened: the courier counts what it finds.
            to.waiting.fetch_sub(1, Ordering::Relaxed);
            to.bell.notify_one();
        }
    }
}

impl<B: BulkStore> Core<B> {
    fn destinations(&self) -> Option<&Destinations> {
        Some(&self.shared.operator.get()?.destinations).filter(|all| !all.is_empty())
    }

    /// Adds to a change the events that the bucket's configuration wants told.
    pub async fn tell(&self, change: &mut Change, caller: &Caller, bucket: &str, event: Event<'_>) -> Result<()> {
        let Some(all) = self.destinations() else { return Ok(()) };
        let known = self.known(bucket).await?;
        for notification in known.settings.notifications.iter().filter(|n| n.tells(event.name, event.key)) {
            let Some(to) = named(all, &notification.arn, &known.bucket().owner) else {
                self.shared.metrics.events_lost(1);
                continue;
            };
            let now = self.now();
            let sequencer = now.0;
            let told = Told::new(message(event, caller, (bucket, known.bucket()), notification, now, sequencer));
            if change.telling.take(to) {
                let key = keys::event(&to.id(), now, rand::random());
                change.batch.puts.push((key, told.encode()));
            } else {
                self.shared.metrics.events_lost(1);
            }
        }
        Ok(())
    }

    /// Checks that a configuration's destinations are there, and that it asks for nothing that never happens.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check_notifications(&self, notifications: &[Notification], account: &str) -> Result<()> {
        let none = Destinations::new();
        let all = self.destinations().unwrap_or(&none);
        if notifications.iter().any(|n| named(all, &n.arn, account).is_none()) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "Unable to validate the following destination configurations",
            ));
        }
        Ok(())
    }

    /// Tells every destination of a new configuration that it is one.
    pub async fn tell_test(&self, notifications: &[Notification], account: &str, bucket: &str, id: &str) -> Result<()> {
        let Some(all) = self.destinations() else { return Ok(()) };
        let (mut batch, mut telling) = (Batch::new(), Telling::default());
        let mut told = Vec::new();
        for notification in notifications {
            let Some(to) = named(all, &notification.arn, account) else { continue };
            if told.contains(&to.id()) || !telling.take(to) {
                continue;
            }
            told.push(to.id());
            let told = Told::new(test_message(bucket, id, self.now()));
            batch.puts.push((keys::event(&to.id(), self.now(), rand::random()), told.encode()));
        }
        if batch.puts.is_empty() {
            return Ok(());
        }
        self.commit(batch).await?;
        telling.happened();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../docs/records.md").split("An event's record").nth(1).expect("the example");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        let told = Told::new("{}".into());
        assert_eq!(hex::encode(told.encode()), digits);
        assert_eq!(Told::decode(&told.encode()).unwrap(), told);
        let refused = Told { refused: Some((3, UnixMicros(7))), ..told };
        assert_eq!(Told::decode(&refused.encode()).unwrap(), refused);
    }

    #[test]
    fn destinations_by_arn() {
        let place = Place::Queue("/q".into());
        let to = Destination::new("q", place, vec!["000000000001".into()]);
        let all: Destinations = [(to.id(), Arc::new(to))].into();
        let check = |arn: &str, account: &str, want| assert_eq!(named(&all, arn, account).is_some(), want, "{arn}");
        check("arn:aws:sqs:us-east-1:000000000001:q", "000000000001", true);
        check("arn:aws:sqs:::q", "000000000001", true);
        check("arn:aws:sqs:::q", "000000000002", false);
        check("arn:aws:sqs:us-east-1:000000000002:q", "000000000001", false);
        check("arn:aws:sns:::q", "000000000001", false);
        check("q", "000000000001", false);
    }
}
