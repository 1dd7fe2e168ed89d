//! Who is told what: event notifications and server access logs, their documents. Pure.
//!
//! A notification's destination is an ARN whose last part names a place: `arn:aws:sqs:::NAME` a queue directory,
//! `arn:aws:sns:::NAME` a webhook of the configuration.

use crate::error::{Error, Kind, Result};
use crate::xml::{Element, Out};

/// Notifications of one bucket (S3's own limit).
const NOTIFICATIONS_MAX: usize = 100;
const EVENTS: [&str; 25] = [
    "s3:ObjectCreated:*",
    "s3:ObjectCreated:Put",
    "s3:ObjectCreated:Post",
    "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload",
    "s3:ObjectRemoved:*",
    "s3:ObjectRemoved:Delete",
    "s3:ObjectRemoved:DeleteMarkerCreated",
    "s3:ObjectTagging:*",
    "s3:ObjectTagging:Put",
    "s3:ObjectTagging:Delete",
    "s3:ObjectAcl:Put",
    "s3:LifecycleExpiration:*",
    "s3:LifecycleExpiration:Delete",
    "s3:LifecycleExpiration:DeleteMarkerCreated",
    "s3:LifecycleTransition",
    "s3:ReducedRedundancyLostObject",
    "s3:ObjectRestore:*",
    "s3:ObjectRestore:Post",
    "s3:ObjectRestore:Completed",
    "s3:ObjectRestore:Delete",
    "s3:Replication:*",
    "s3:Replication:OperationFailedReplication",
    "s3:IntelligentTiering",
    "s3:TestEvent",
];
const KINDS: [(&str, &str); 3] =
    [("QueueConfiguration", "Queue"), ("TopicConfiguration", "Topic"), ("CloudFunctionConfiguration", "CloudFunction")];

/// One notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notification {
    /// Its name; made where none came.
    pub id: String,
    /// The element that it stands in.
    kind: usize,
    /// Where it goes.
    pub arn: String,
    /// What is told, `*` at the end for a family.
    pub events: Vec<String>,
    /// How keys begin.
    pub prefix: Option<String>,
    /// How keys end.
    pub suffix: Option<String>,
}

impl Notification {
    /// True where both may tell the same event.
    fn overlaps(&self, other: &Self) -> bool {
        let meets = |a: &str, b: &str| {
            let within = |family: &str, event: &str| family.strip_suffix('*').is_some_and(|f| event.starts_with(f));
            a == b || within(a, b) || within(b, a)
        };
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let (p, q) = (text(&self.prefix), text(&other.prefix));
        let (s, t) = (text(&self.suffix), text(&other.suffix));
        self.events.iter().any(|a| other.events.iter().any(|b| meets(a, b)))
            && (p.starts_with(&q) || q.starts_with(&p))
            && (s.ends_with(&t) || t.ends_with(&s))
    }
    /// True when an event (`ObjectCreated:Put`) of a key is told.
    pub fn tells(&self, event: &str, key: &str) -> bool {
        let named = |pattern: &String| {
            let pattern = pattern.strip_prefix("s3:").unwrap_or(pattern);
            pattern == event || pattern.strip_suffix('*').is_some_and(|p| event.starts_with(p))
        };
        self.events.iter().any(named)
            && self.prefix.as_deref().is_none_or(|p| key.starts_with(p))
            && self.suffix.as_deref().is_none_or(|s| key.ends_with(s))
    }
}

/// From the document.
///
/// # Errors
/// `MalformedXML`, `InvalidArgument`.
pub fn parse(document: &[u8]) -> Result<Vec<Notification>> {
    let malformed = || Error::from(Kind::MalformedXml);
    let root = Element::parse(document, "NotificationConfiguration")?;
    root.only(&[KINDS[0].0, KINDS[1].0, KINDS[2].0, "EventBridgeConfiguration"])?;
    if root.children.len() > NOTIFICATIONS_MAX {
        return Err(malformed());
    }
    let mut all = Vec::new();
    for e in &root.children {
        let Some(kind) = KINDS.iter().position(|(name, _)| *name == e.name) else { continue };
        let arn = e.need(KINDS[kind].1)?.trim().to_owned();
        if arn.parse::<karri_base::aws::arn::Arn>().is_err() {
            return Err(Error::new(Kind::InvalidArgument, "The ARN could not be parsed"));
        }
        let events: Vec<String> = e.all("Event").map(|x| x.text.trim().to_owned()).collect();
        if events.is_empty() {
            return Err(malformed());
        }
        if let Some(event) = events.iter().find(|x| !EVENTS.contains(&x.as_str())) {
            return Err(Error::new(Kind::InvalidArgument, format!("A specified event is not supported: {event}")));
        }
        let (mut prefix, mut suffix) = (None, None);
        let rules = e.child("Filter").and_then(|f| f.child("S3Key")).into_iter().flat_map(|k| k.all("FilterRule"));
        for rule in rules {
            let value = rule.need("Value")?.to_owned();
            match rule.need("Name")?.to_ascii_lowercase().as_str() {
                "prefix" if prefix.is_none() => prefix = Some(value),
                "suffix" if suffix.is_none() => suffix = Some(value),
                _ => {
                    return Err(Error::new(
                        Kind::InvalidArgument,
                        "filter rule name must be either prefix or suffix, once",
                    ));
                }
            }
        }
        let id = e.text_of("Id").filter(|i| !i.is_empty()).map(str::to_owned);
        let id = id.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        all.push(Notification { id, kind, arn, events, prefix, suffix });
    }
    Ok(all)
}

/// What is refused although it can be read: what would never be told, and what would be told twice.
///
/// # Errors
/// `NotImplemented`, `InvalidArgument`.
pub fn check(document: &[u8], all: &[Notification]) -> Result<()> {
    let root = Element::parse(document, "NotificationConfiguration")?;
    if root.child("EventBridgeConfiguration").is_some() || all.iter().any(|n| KINDS[n.kind].1 == "CloudFunction") {
        return Err(Error::new(Kind::NotImplemented, "Events go to topics and queues only."));
    }
    if let Some(event) = all.iter().flat_map(|n| &n.events).find(|e| NEVER.iter().any(|never| e.starts_with(never))) {
        return Err(Error::new(Kind::InvalidArgument, format!("A specified event is not supported: {event}")));
    }
    for (i, a) in all.iter().enumerate() {
        if all[i + 1..].iter().any(|b| a.overlaps(b)) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "Configurations overlap. Configurations on the same bucket cannot share a common event type.",
            ));
        }
    }
    Ok(())
}

/// What does not happen here.
const NEVER: [&str; 4] =
    ["s3:ReducedRedundancyLostObject", "s3:ObjectRestore:", "s3:IntelligentTiering", "s3:TestEvent"];

/// The document.
pub fn to_xml(all: &[Notification]) -> String {
    Out::document("NotificationConfiguration", |out| {
        for n in all {
            let (element, target) = KINDS[n.kind];
            out.element(element, |out| {
                out.text("Id", &n.id);
                out.text(target, &n.arn);
                n.events.iter().for_each(|event| out.text("Event", event));
                let rules = [("prefix", &n.prefix), ("suffix", &n.suffix)];
                if rules.iter().any(|(_, value)| value.is_some()) {
                    out.element("Filter", |out| {
                        out.element("S3Key", |out| {
                            for (name, value) in rules {
                                let Some(value) = value else { continue };
                                out.element("FilterRule", |out| {
                                    out.text("Name", name);
                                    out.text("Value", value);
                                });
                            }
                        });
                    });
                }
            });
        }
    })
}

/// Where a bucket's access logs go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logging {
    /// The bucket.
    pub bucket: String,
    /// How the logs' keys begin.
    pub prefix: String,
    /// `Some(event time)` for `PARTITION/Y/M/D` keys; true where the date is that of the events.
    pub partitioned: Option<bool>,
    /// Grants on the logs' objects.
    pub grants: Option<Element>,
    /// False where the key's format is S3's default and was not said.
    pub has_format: bool,
}

impl Logging {
    /// From the document; `None` turns logging off.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse(document: &[u8]) -> Result<Option<Self>> {
        let malformed = || Error::from(Kind::MalformedXml);
        let root = Element::parse(document, "BucketLoggingStatus")?;
        root.only(&["LoggingEnabled"])?;
        let Some(on) = root.child("LoggingEnabled") else { return Ok(None) };
        on.only(&["TargetBucket", "TargetPrefix", "TargetGrants", "TargetObjectKeyFormat"])?;
        let format = on.child("TargetObjectKeyFormat");
        let partitioned = match format {
            None => None,
            Some(f) => match (f.child("SimplePrefix"), f.child("PartitionedPrefix")) {
                (Some(_), None) => None,
                (None, Some(p)) => match p.text_of("PartitionDateSource") {
                    None | Some("DeliveryTime") => Some(false),
                    Some("EventTime") => Some(true),
                    Some(_) => return Err(malformed()),
                },
                _ => return Err(malformed()),
            },
        };
        Ok(Some(Self {
            bucket: on.need("TargetBucket")?.to_owned(),
            prefix: on.need("TargetPrefix")?.to_owned(),
            partitioned,
            grants: on.child("TargetGrants").cloned(),
            has_format: format.is_some(),
        }))
    }
    /// The document.
    pub fn to_xml(this: Option<&Self>) -> String {
        Out::document("BucketLoggingStatus", |out| {
            let Some(this) = this else { return };
            out.element("LoggingEnabled", |out| {
                out.text("TargetBucket", &this.bucket);
                if let Some(grants) = &this.grants {
                    out.copy(grants);
                }
                out.text("TargetPrefix", &this.prefix);
                if this.has_format {
                    out.element("TargetObjectKeyFormat", |out| match this.partitioned {
                        None => out.element("SimplePrefix", |_| {}),
                        Some(event) => out.element("PartitionedPrefix", |out| {
                            out.text("PartitionDateSource", if event { "EventTime" } else { "DeliveryTime" });
                        }),
                    });
                }
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(inner: &str) -> String {
        format!(
            "<NotificationConfiguration><QueueConfiguration>{inner}</QueueConfiguration></NotificationConfiguration>"
        )
    }

    #[test]
    fn notifications() {
        let text = queue(
            "<Id>n</Id><Queue>arn:aws:sqs:us-east-1:000000000000:q</Queue><Event>s3:ObjectCreated:*</Event><Filter><S3Key><FilterRule><Name>Suffix</Name><Value>.jpg</Value></FilterRule></S3Key></Filter>",
        );
        let all = parse(text.as_bytes()).unwrap();
        assert_eq!(parse(to_xml(&all).as_bytes()).unwrap(), all);
        let check = |event: &str, key: &str, want| assert_eq!(all[0].tells(event, key), want, "{event} {key}");
        check("ObjectCreated:Put", "a.jpg", true);
        check("ObjectCreated:Put", "a.png", false);
        check("ObjectRemoved:Delete", "a.jpg", false);
        assert_eq!(parse(b"<NotificationConfiguration/>").unwrap(), []);
        for (inner, want) in [
            ("<Queue>q</Queue><Event>s3:ObjectCreated:*</Event>", Kind::InvalidArgument),
            ("<Queue>arn:aws:sqs:::q</Queue>", Kind::MalformedXml),
            ("<Queue>arn:aws:sqs:::q</Queue><Event>s3:Nothing</Event>", Kind::InvalidArgument),
        ] {
            assert_eq!(parse(queue(inner).as_bytes()).unwrap_err().kind, want, "{inner}");
        }
    }

    #[test]
    fn logging() {
        for inner in [
            "<TargetBucket>b</TargetBucket><TargetPrefix>p/</TargetPrefix>",
            "<TargetBucket>b</TargetBucket><TargetPrefix/><TargetObjectKeyFormat><SimplePrefix/></TargetObjectKeyFormat>",
            "<TargetBucket>b</TargetBucket><TargetPrefix/><TargetObjectKeyFormat><PartitionedPrefix><PartitionDateSource>EventTime</PartitionDateSource></PartitionedPrefix></TargetObjectKeyFormat>",
        ] {
            let text = format!("<BucketLoggingStatus><LoggingEnabled>{inner}</LoggingEnabled></BucketLoggingStatus>");
            let read = Logging::parse(text.as_bytes()).unwrap();
            assert_eq!(Logging::parse(Logging::to_xml(read.as_ref()).as_bytes()).unwrap(), read);
        }
        assert_eq!(Logging::parse(b"<BucketLoggingStatus/>").unwrap(), None);
        assert!(Logging::parse(b"<BucketLoggingStatus><LoggingEnabled/></BucketLoggingStatus>").is_err());
    }
}
