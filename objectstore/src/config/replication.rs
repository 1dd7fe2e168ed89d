//! Replication rules: their document, checked as S3 checks it, and which of them mean an object. Pure.
//!
//! A rule has one of two forms: with `Prefix` in it (version 1: delete markers are replicated), or with `Filter`, `Priority`
//! and `DeleteMarkerReplication` (version 2). A destination is a bucket here, `arn:aws:s3:::BUCKET`, or one of a remote that
//! the operator has named, `arn:karri:s3:REMOTE::BUCKET`.

use std::collections::HashSet;

use crate::error::{Error, Kind, Result};
use crate::ops::encryption::check_key_id;
use crate::ops::put::STORAGE_CLASSES;
use crate::record::{Holder, Object};
use crate::xml::{Element, Out};

/// Rules of one bucket (S3's own limit).
const RULES_MAX: usize = 1_000;
const ID_MAX: usize = 255;

/// A bucket's rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replication {
    /// Whom destinations let in.
    pub role: String,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: String,
    /// Whether it counts.
    pub enabled: bool,
    /// Of rules with the same destination the one with the highest counts; 0 in version 1.
    pub priority: i64,
    /// How keys begin.
    pub prefix: String,
    /// Tags that they all have.
    pub tags: Vec<(String, String)>,
    /// Delete markers are replicated.
    pub markers: bool,
    /// Objects that are encrypted with SSE-KMS are replicated, with this key.
    pub kms_key: Option<String>,
    /// Where to.
    pub to: Destination,
}

/// Where a rule sends objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// The remote; `None` is this Walrus.
    pub remote: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// Whose the bucket is, where the rule says it.
    pub account: Option<String>,
    /// The replicas' storage class; else that of the object.
    pub storage_class: Option<String>,
    /// Replicas belong to the bucket's owner.
    pub owner_changes: bool,
}

impl Destination {
    /// Its name among those that changes wait for.
    pub fn id(&self) -> String {
        format!("{}:{}", self.remote.as_deref().unwrap_or_default(), self.bucket)
    }
}

impl Replication {
    /// The rules that send a version on: one for each destination.
    pub fn meaning(&self, key: &str, object: &Object) -> Vec<&Rule> {
        let mut meant: Vec<&Rule> = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.means(key, object)) {
            match meant.iter_mut().find(|other| other.to.id() == rule.to.id()) {
                None => meant.push(rule),
                Some(other) if other.priority < rule.priority => *other = rule,
                Some(_) => {}
            }
        }
        meant
    }
}

impl Rule {
    fn means(&self, key: &str, object: &Object) -> bool {
        let encryption = match object.sealed.as_ref().map(|sealed| &sealed.holder) {
            None | Some(Holder::Walrus) => true,
            Some(Holder::Service(_)) => self.kms_key.is_some(),
            // Nobody here has the key.
            Some(Holder::Customer) => false,
        };
        self.enabled
            && encryption
            && key.starts_with(&self.prefix)
            && self.tags.iter().all(|tag| object.tags.0.contains(tag))
            && (self.markers || !object.marker)
    }
}

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::InvalidRequest, what.into())
}

/// From the document.
///
/// # Errors
/// `MalformedXML`, `InvalidRequest`, `InvalidArgument`, `InvalidStorageClass`, `NotImplemented`.
pub fn parse(document: &[u8]) -> Result<Replication> {
    let root = Element::parse(document, "ReplicationConfiguration")?;
    root.only(&["Role", "Rule"])?;
    let role = root.need("Role")?.trim().to_owned();
    let rules: Vec<(Rule, bool)> = root.all("Rule").map(rule).collect::<Result<_>>()?;
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed());
    }
    let second = rules[0].1;
    if rules.iter().any(|(_, v)| *v != second) {
        return Err(invalid(
            "Rules with Prefix and rules with Filter cannot be mixed in one replication configuration.",
        ));
    }
    let rules: Vec<Rule> = rules.into_iter().map(|(rule, _)| rule).collect();
    let mut ids = HashSet::new();
    if let Some(twice) = rules.iter().find(|rule| !rule.id.is_empty() && !ids.insert(&rule.id)) {
        return Err(Error::new(Kind::InvalidArgument, format!("Rule Id must be unique: {:?}", twice.id)));
    }
    for (i, a) in rules.iter().enumerate() {
        for b in rules[i + 1..].iter().filter(|b| b.to.id() == a.to.id()) {
            if second && a.priority == b.priority {
                return Err(invalid(format!(
                    "Priority must be unique among rules with one destination: {}",
                    a.priority
                )));
            }
            if !second && (a.prefix.starts_with(&b.prefix) || b.prefix.starts_with(&a.prefix)) {
                return Err(invalid(format!("Found overlapping prefixes {:?} and {:?}", a.prefix, b.prefix)));
            }
        }
    }
    Ok(Replication { role, rules })
}

/// A rule, and whether it has the second form.
fn rule(e: &Element) -> Result<(Rule, bool)> {
    e.only(&[
        "ID",
        "Priority",
        "Prefix",
        "Filter",
        "Status",
        "SourceSelectionCriteria",
        "ExistingObjectReplication",
        "Destination",
        "DeleteMarkerReplication",
    ])?;
    let id = e.text_of("ID").unwrap_or_default().to_owned();
    if id.len() > ID_MAX {
        return Err(Error::new(Kind::InvalidArgument, "ID length should not exceed allowed limit of 255"));
    }
    let enabled = status(e)?;
    if e.child("ExistingObjectReplication").map(status).transpose()? == Some(true) {
        return Err(Error::new(Kind::NotImplemented, "Objects that are there already are not replicated: copy them."));
    }
    let marked = e.child("DeleteMarkerReplication").map(status).transpose()?;
    let priority = e.number_of("Priority")?;
    if priority.is_some_and(|p| !(0..=i64::from(i32::MAX)).contains(&p)) {
        return Err(Error::new(Kind::InvalidArgument, "Priority must be between 0 and 2147483647"));
    }
    let mut tags = Vec::new();
    let (prefix, second) = match (e.child("Prefix"), e.child("Filter")) {
        (Some(prefix), None) => (prefix.text.clone(), false),
        (None, Some(filter)) => {
            let inner = match filter.child("And") {
                Some(and) if filter.children.len() == 1 => and,
                None if filter.children.len() <= 1 => filter,
                _ => return Err(malformed()),
            };
            inner.only(&["Prefix", "Tag"])?;
            for tag in inner.all("Tag") {
                let pair = (tag.need("Key")?.to_owned(), tag.need("Value")?.to_owned());
                if tags.iter().any(|(key, _)| *key == pair.0) {
                    return Err(invalid("Duplicate Tag Keys are not allowed."));
                }
                tags.push(pair);
            }
            (inner.text_of("Prefix").unwrap_or_default().to_owned(), true)
        }
        _ => return Err(malformed()),
    };
    const GUIDE: &str = "for this version of Cross Region Replication configuration schema. Please refer to S3 \
                         Developer Guide for more information.";
    match (second, marked, priority) {
        (true, None, _) => return Err(invalid(format!("DeleteMarkerReplication must be specified {GUIDE}"))),
        (true, _, None) => return Err(invalid(format!("Priority must be specified {GUIDE}"))),
        (true, Some(true), _) if !tags.is_empty() => {
            return Err(invalid("Delete marker replication is not supported if any Tag filter is specified."));
        }
        (false, Some(_), _) => return Err(invalid(format!("DeleteMarkerReplication cannot be used {GUIDE}"))),
        (false, _, Some(_)) => return Err(invalid(format!("Priority cannot be used {GUIDE}"))),
        _ => {}
    }
    let to = e.child("Destination").ok_or_else(malformed)?;
    let kms_key = encrypted(e, to)?;
    let markers = marked.unwrap_or(true);
    let to = destination(to)?;
    Ok((Rule { id, enabled, priority: priority.unwrap_or(0), prefix, tags, markers, kms_key, to }, second))
}

fn status(e: &Element) -> Result<bool> {
    match e.need("Status")? {
        "Enabled" => Ok(true),
        "Disabled" => Ok(false),
        _ => Err(malformed()),
    }
}

/// The key that objects encrypted with SSE-KMS get, where the rule means them.
fn encrypted(rule: &Element, to: &Element) -> Result<Option<String>> {
    let key = match to.child("EncryptionConfiguration") {
        None => None,
        Some(e) => Some(e.need("ReplicaKmsKeyID")?.to_owned()),
    };
    let criteria = rule.child("SourceSelectionCriteria");
    if let Some(criteria) = criteria {
        criteria.only(&["SseKmsEncryptedObjects", "ReplicaModifications"])?;
        if criteria.child("ReplicaModifications").map(status).transpose()? == Some(true) {
            return Err(Error::new(Kind::NotImplemented, "Changes of replicas are not replicated back."));
        }
    }
    let means = criteria.and_then(|c| c.child("SseKmsEncryptedObjects")).map(status).transpose()?.unwrap_or(false);
    match (means, key) {
        (true, None) => Err(invalid("EncryptionConfiguration must be specified where SseKmsEncryptedObjects is.")),
        (false, Some(_)) => Err(invalid("SseKmsEncryptedObjects must be specified where EncryptionConfiguration is.")),
        (_, key) => Ok(key),
    }
}

fn destination(e: &Element) -> Result<Destination> {
    e.only(&[
        "Bucket",
        "Account",
        "StorageClass",
        "AccessControlTranslation",
        "EncryptionConfiguration",
        "ReplicationTime",
        "Metrics",
    ])?;
    if e.child("ReplicationTime").map(status).transpose()? == Some(true) {
        return Err(Error::new(Kind::NotImplemented, "No time is guaranteed for replication."));
    }
    e.child("Metrics").map(status).transpose()?;
    let arn = e.need("Bucket")?.trim();
    let (remote, bucket) =
        arn_parts(arn).ok_or_else(|| Error::new(Kind::InvalidArgument, format!("Invalid bucket ARN {arn:?}")))?;
    let storage_class = e.text_of("StorageClass").map(str::to_owned);
    if storage_class.as_deref().is_some_and(|c| !STORAGE_CLASSES.contains(&c)) {
        return Err(Kind::InvalidStorageClass.into());
    }
    let account = e.text_of("Account").map(str::to_owned);
    let owner_changes = match e.child("AccessControlTranslation").map(|t| t.need("Owner")).transpose()? {
        None => false,
        Some("Destination") if account.is_some() => true,
        Some("Destination") => return Err(invalid("Account must be specified where AccessControlTranslation is.")),
        Some(_) => return Err(malformed()),
    };
    Ok(Destination { remote, bucket, account, storage_class, owner_changes })
}

/// The remote and the bucket that an ARN names.
fn arn_parts(arn: &str) -> Option<(Option<String>, String)> {
    let (remote, bucket) = match arn.strip_prefix("arn:karri:s3:") {
        Some(rest) => {
            let (remote, bucket) = rest.split_once("::")?;
            (Some(remote.to_owned()).filter(|r| !r.is_empty() && !r.contains(':')), bucket)
        }
        None => (None, arn.strip_prefix("arn:aws:s3:::")?),
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let is_one = (3..=255).contains(&bucket.len()) && bucket.bytes().all(fits);
    (is_one && (remote.is_some() || arn.starts_with("arn:aws:"))).then(|| (remote, bucket.to_owned()))
}

/// The document as it is kept and answered: as it came, with names for rules that have none.
///
/// # Errors
/// As [`parse`]; `InvalidArgument` for the id of a key that cannot be one.
pub fn canonical(document: &[u8]) -> Result<String> {
    for id in parse(document)?.rules.iter().filter_map(|rule| rule.kms_key.as_ref()) {
        check_key_id(id)?;
    }
    let root = Element::parse(document, "ReplicationConfiguration")?;
    Ok(Out::document("ReplicationConfiguration", |out| {
        for child in &root.children {
            let mut child = child.clone();
            if child.name == "Rule" && child.text_of("ID").is_none_or(str::is_empty) {
                child.children.retain(|c| c.name != "ID");
                let text = format!("{:032x}", rand::random::<u128>());
                child.children.insert(0, Element { name: "ID".into(), text, ..Element::default() });
            }
            out.copy(&child);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Sealed, Tags};

    const ROLE: &str = "<Role>arn:aws:iam::000000000001:role/r</Role>";
    const TO: &str = "<Destination><Bucket>arn:aws:s3:::target</Bucket></Destination>";

    fn one(inner: &str) -> Result<Rule> {
        let text = format!("<ReplicationConfiguration>{ROLE}<Rule>{inner}</Rule></ReplicationConfiguration>");
        let mut read = parse(text.as_bytes())?;
        let again = canonical(text.as_bytes())?;
        let id = parse(again.as_bytes())?.rules.remove(0).id;
        assert!(!id.is_empty());
        assert_eq!(parse(again.as_bytes())?.rules[0], Rule { id, ..read.rules[0].clone() }, "{inner}");
        Ok(read.rules.remove(0))
    }

    fn second(filter: &str, more: &str) -> String {
        format!(
            "<Status>Enabled</Status><Priority>1</Priority><Filter>{filter}</Filter><DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication>{more}"
        )
    }

    #[test]
    fn rules_of_both_forms() {
        let rule = one(&format!("<ID>r</ID><Prefix>a/</Prefix><Status>Enabled</Status>{TO}")).unwrap();
        assert_eq!(
            (rule.id.as_str(), rule.prefix.as_str(), rule.markers, rule.to.id().as_str()),
            ("r", "a/", true, ":target")
        );
        let tags = "<And><Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And>";
        let rule = one(&second(tags, TO)).unwrap();
        assert_eq!((rule.prefix.as_str(), rule.tags.len(), rule.markers, rule.priority), ("p", 1, false, 1));
        let far = "<Destination><Bucket>arn:karri:s3:backup::target</Bucket><StorageClass>STANDARD_IA</StorageClass></Destination>";
        let rule = one(&second("", far)).unwrap();
        assert_eq!((rule.to.remote.as_deref(), rule.to.id().as_str()), (Some("backup"), "backup:target"));
        let theirs = "<Destination><Bucket>arn:aws:s3:::target</Bucket><Account>000000000002</Account><AccessControlTranslation><Owner>Destination</Owner></AccessControlTranslation></Destination>";
        assert!(one(&second("<Prefix/>", theirs)).unwrap().to.owner_changes);
    }

    #[test]
    fn what_s3_refuses() {
        let on = "<Status>Enabled</Status>";
        let deletes = "<DeleteMarkerReplication><Status>Enabled</Status></DeleteMarkerReplication>";
        let tag = "<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>";
        for (inner, want) in [
            (format!("{on}{TO}"), Kind::MalformedXml),
            (format!("{on}<Prefix/>"), Kind::MalformedXml),
            (format!("<Status>on</Status><Prefix/>{TO}"), Kind::MalformedXml),
            (format!("{on}<Prefix/><Filter/>{TO}"), Kind::MalformedXml),
            (format!("{on}<Prefix/><Colour/>{TO}"), Kind::MalformedXml),
            (format!("{on}<Prefix/>{deletes}{TO}"), Kind::InvalidRequest),
            (format!("{on}<Filter/><Priority>1</Priority>{TO}"), Kind::InvalidRequest),
            (format!("{on}<Filter/>{deletes}{TO}"), Kind::InvalidRequest),
            (format!("{on}{tag}<Priority>1</Priority>{deletes}{TO}"), Kind::InvalidRequest),
            (format!("{on}<Prefix/><Destination><Bucket>target</Bucket></Destination>"), Kind::InvalidArgument),
            (
                format!("{on}<Prefix/><Destination><Bucket>arn:karri:s3:::target</Bucket></Destination>"),
                Kind::InvalidArgument,
            ),
            (
                format!(
                    "{on}<Prefix/><Destination><Bucket>arn:aws:s3:::target</Bucket><StorageClass>TAPE</StorageClass></Destination>"
                ),
                Kind::InvalidStorageClass,
            ),
            (
                second(
                    "",
                    &format!("<ExistingObjectReplication><Status>Enabled</Status></ExistingObjectReplication>{TO}"),
                ),
                Kind::NotImplemented,
            ),
            (
                second(
                    "",
                    &format!(
                        "<SourceSelectionCriteria><SseKmsEncryptedObjects><Status>Enabled</Status></SseKmsEncryptedObjects></SourceSelectionCriteria>{TO}"
                    ),
                ),
                Kind::InvalidRequest,
            ),
        ] {
            assert_eq!(one(&inner).unwrap_err().kind, want, "{inner}");
        }
        let sealed = |key: &str| {
            let criteria = "<SourceSelectionCriteria><SseKmsEncryptedObjects><Status>Enabled</Status></SseKmsEncryptedObjects></SourceSelectionCriteria>";
            let key = format!(
                "<EncryptionConfiguration><ReplicaKmsKeyID>{key}</ReplicaKmsKeyID></EncryptionConfiguration></Destination>"
            );
            one(&second("", &format!("{criteria}{}", TO.replace("</Destination>", &key)))).map_err(|e| e.kind)
        };
        let id = "arn:aws:kms:us-east-1:000000000001:key/k";
        assert_eq!(sealed(id).unwrap().kms_key.as_deref(), Some(id));
        for key in ["", "a b", "a\r\nx-amz-acl: public-read", &"k".repeat(2_049)] {
            assert_eq!(sealed(key).unwrap_err(), Kind::InvalidArgument, "{key:.40}");
        }
        let two = |a: &str, b: &str| {
            let rules = format!("<Rule>{a}</Rule><Rule>{b}</Rule>");
            let text = format!("<ReplicationConfiguration>{ROLE}{rules}</ReplicationConfiguration>");
            parse(text.as_bytes()).map_err(|e| e.kind).map(|r| r.rules.len())
        };
        let v1 = |prefix: &str| format!("{on}<Prefix>{prefix}</Prefix>{TO}");
        assert_eq!(two(&v1("a"), &v1("ab")), Err(Kind::InvalidRequest));
        assert_eq!(two(&v1("a"), &v1("b")), Ok(2));
        assert_eq!(two(&second("", TO), &second("", TO)), Err(Kind::InvalidRequest), "one priority");
        assert_eq!(two(&v1("a"), &second("", TO)), Err(Kind::InvalidRequest));
        let named = format!("<ID>same</ID>{}", v1("a"));
        assert_eq!(two(&named, &named.replace(">a<", ">b<")), Err(Kind::InvalidArgument));
    }

    #[test]
    fn which_rules_mean_an_object() {
        let rule = |id: &str, priority, prefix: &str, to: &str| Rule {
            id: id.into(),
            enabled: true,
            priority,
            prefix: prefix.into(),
            tags: vec![],
            markers: false,
            kms_key: None,
            to: Destination { bucket: to.into(), ..Destination::default() },
        };
        let tagged = Rule { tags: vec![("k".into(), "v".into())], ..rule("t", 9, "", "b") };
        let all = Replication {
            role: String::new(),
            rules: vec![
                rule("1", 1, "", "a"),
                rule("2", 2, "x/", "a"),
                tagged,
                Rule { enabled: false, ..rule("o", 7, "", "c") },
            ],
        };
        let check = |key: &str, object: &Object, want: &[&str]| {
            let got: Vec<_> = all.meaning(key, object).iter().map(|r| r.id.clone()).collect();
            assert_eq!(got, want, "{key}");
        };
        let plain = Object::default();
        check("k", &plain, &["1"]);
        check("x/k", &plain, &["2"]);
        let object = Object { tags: Tags(vec![("k".into(), "v".into())]), ..plain.clone() };
        check("x/k", &object, &["2", "t"]);
        check("k", &Object { marker: true, ..plain.clone() }, &[]);
        for (holder, want) in
            [(Holder::Walrus, &["1"][..]), (Holder::Service("k".into()), &[]), (Holder::Customer, &[])]
        {
            let sealed = Some(Sealed { holder, wrapped: [0; crate::crypt::WRAPPED] });
            check("k", &Object { sealed, ..plain.clone() }, want);
        }
    }
}
