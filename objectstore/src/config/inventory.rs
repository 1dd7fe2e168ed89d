//! Inventory configurations: their document, checked as S3 checks it. Pure.
//!
//! A bucket has up to 1,000, each with an id; they are kept together, as one document of `InventoryConfiguration` elements.

use crate::error::{Error, Kind, Result};
use crate::ops::encryption::check_key_id;
use crate::record::Holder;
use crate::xml::{Element, Out};

/// Configurations of one bucket (S3's own limit).
const CONFIGURATIONS_MAX: usize = 1_000;
const ID_MAX: usize = 64;
const PREFIX_MAX: usize = 512;
/// What may be told of a version besides its key, in S3's order.
pub const FIELDS: [&str; 15] = [
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
    "IsMultipartUploaded",
    "ReplicationStatus",
    "EncryptionStatus",
    "ObjectLockRetainUntilDate",
    "ObjectLockMode",
    "ObjectLockLegalHoldStatus",
    "IntelligentTieringAccessTier",
    "BucketKeyStatus",
    "ChecksumAlgorithm",
    "ObjectAccessControlList",
    "ObjectOwner",
];

/// One configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Its name in the bucket.
    pub id: String,
    /// Whether reports are made.
    pub enabled: bool,
    /// Only keys that begin so.
    pub prefix: String,
    /// True for all versions, false for current objects.
    pub all: bool,
    /// What is told, as positions in [`FIELDS`], in order.
    pub fields: Vec<usize>,
    /// Days between reports: 1 or 7.
    pub days: u64,
    /// The bucket that reports go to.
    pub bucket: String,
    /// How their keys begin.
    pub to_prefix: String,
    /// Whose that bucket is, where it is said.
    pub account: Option<String>,
    /// How they are encrypted, where it is said.
    pub encryption: Option<Holder>,
}

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, what.into())
}

/// From what a bucket keeps: all of its configurations.
///
/// # Errors
/// As [`one`].
pub fn parse(document: &[u8]) -> Result<Vec<Inventory>> {
    elements(document)?.iter().map(read).collect()
}

fn elements(document: &[u8]) -> Result<Vec<Element>> {
    Ok(Element::parse(document, "InventoryConfigurations")?.children)
}

/// From one configuration's document.
///
/// # Errors
/// `MalformedXML`, `InvalidArgument`, `NotImplemented`.
pub fn one(document: &[u8]) -> Result<Inventory> {
    read(&Element::parse(document, "InventoryConfiguration")?)
}

fn read(e: &Element) -> Result<Inventory> {
    e.only(&["Destination", "IsEnabled", "Filter", "Id", "IncludedObjectVersions", "OptionalFields", "Schedule"])?;
    let id = e.need("Id")?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(fits) {
        return Err(invalid("The Id must be 1 to 64 letters, digits, dots, hyphens and underscores."));
    }
    let enabled = match e.need("IsEnabled")? {
        "true" => true,
        "false" => false,
        _ => return Err(malformed()),
    };
    let all = match e.need("IncludedObjectVersions")? {
        "All" => true,
        "Current" => false,
        _ => return Err(malformed()),
    };
    let days = match e.child("Schedule").ok_or_else(malformed)?.need("Frequency")? {
        "Daily" => 1,
        "Weekly" => 7,
        _ => return Err(malformed()),
    };
    let mut fields = Vec::new();
    for field in e.child("OptionalFields").iter().flat_map(|fields| &fields.children) {
        let at = FIELDS.iter().position(|name| field.name == "Field" && *name == field.text).ok_or_else(malformed)?;
        if fields.contains(&at) {
            return Err(malformed());
        }
        fields.push(at);
    }
    fields.sort_unstable();
    let prefix = match e.child("Filter") {
        None => String::new(),
        Some(filter) => filter.need("Prefix")?.to_owned(),
    };
    let to = e.child("Destination").and_then(|d| d.child("S3BucketDestination")).ok_or_else(malformed)?;
    to.only(&["AccountId", "Bucket", "Encryption", "Format", "Prefix"])?;
    match to.need("Format")? {
        "CSV" => {}
        "ORC" | "Parquet" => {
            return Err(Error::new(Kind::NotImplemented, "Inventory reports are made in the format CSV only."));
        }
        _ => return Err(malformed()),
    }
    let bucket =
        to.need("Bucket")?.strip_prefix("arn:aws:s3:::").filter(|name| !name.is_empty() && !name.contains('/'));
    let bucket = bucket.ok_or_else(|| invalid("Invalid bucket ARN"))?.to_owned();
    let to_prefix = to.text_of("Prefix").unwrap_or_default().to_owned();
    if to_prefix.len() > PREFIX_MAX || prefix.len() > 1024 {
        return Err(invalid("The prefix is too long."));
    }
    let encryption = match to.child("Encryption") {
        None => None,
        Some(e) => match (e.child("SSE-S3"), e.child("SSE-KMS")) {
            (Some(_), None) => Some(Holder::Walrus),
            (None, Some(kms)) => Some(Holder::Service(kms.need("KeyId")?.to_owned())),
            _ => return Err(malformed()),
        },
    };
    let account = to.text_of("AccountId").map(str::to_owned);
    Ok(Inventory { id: id.to_owned(), enabled, prefix, all, fields, days, bucket, to_prefix, account, encryption })
}

/// What a bucket keeps, with this configuration put among them; its id is the request's.
///
/// # Errors
/// As [`one`]; `InvalidArgument` for another id, `TooManyConfigurations`.
pub fn put(kept: Option<&[u8]>, id: &str, document: &[u8]) -> Result<String> {
    let inventory = one(document)?;
    if inventory.id != id {
        return Err(invalid("The Id of the configuration is not the id that the request names."));
    }
    if let Some(Holder::Service(key)) = &inventory.encryption {
        check_key_id(key)?;
    }
    let mut all = kept.map(elements).transpose()?.unwrap_or_default();
    all.retain(|e| e.text_of("Id") != Some(id));
    if all.len() >= CONFIGURATIONS_MAX {
        return Err(Kind::TooManyConfigurations.into());
    }
    all.push(Element::parse(document, "InventoryConfiguration")?);
    all.sort_by(|a, b| a.text_of("Id").cmp(&b.text_of("Id")));
    Ok(Out::document("InventoryConfigurations", |out| all.iter().for_each(|e| out.copy(e))))
}

/// What a bucket keeps without this configuration; `None` where nothing is left.
///
/// # Errors
/// `NoSuchConfiguration`.
pub fn remove(kept: Option<&[u8]>, id: &str) -> Result<Option<String>> {
    let mut all = kept.map(elements).transpose()?.unwrap_or_default();
    let before = all.len();
    all.retain(|e| e.text_of("Id") != Some(id));
    if all.len() == before {
        return Err(Kind::NoSuchConfiguration.into());
    }
    let text = || Out::document("InventoryConfigurations", |out| all.iter().for_each(|e| out.copy(e)));
    Ok((!all.is_empty()).then(text))
}

/// The configuration of this id, as it is answered.
///
/// # Errors
/// `NoSuchConfiguration`.
pub fn get(kept: Option<&[u8]>, id: &str) -> Result<String> {
    let all = kept.map(elements).transpose()?.unwrap_or_default();
    let found = all.iter().find(|e| e.text_of("Id") == Some(id)).ok_or(Kind::NoSuchConfiguration)?;
    Ok(Out::document("InventoryConfiguration", |out| found.children.iter().for_each(|c| out.copy(c))))
}

/// A page of the configurations: those after an id, by id.
///
/// # Errors
/// Damage.
pub fn list(kept: Option<&[u8]>, after: Option<&str>, max: usize) -> Result<String> {
    let all = kept.map(elements).transpose()?.unwrap_or_default();
    let mut rest: Vec<&Element> = all.iter().filter(|e| after.is_none_or(|a| e.text_of("Id") > Some(a))).collect();
    let more = rest.len() > max;
    rest.truncate(max);
    Ok(Out::document("ListInventoryConfigurationsResult", |out| {
        rest.iter().for_each(|e| out.copy(e));
        out.text("IsTruncated", if more { "true" } else { "false" });
        out.maybe("ContinuationToken", after);
        out.maybe("NextContinuationToken", rest.last().filter(|_| more).and_then(|e| e.text_of("Id")));
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(id: &str, format: &str, more: &str) -> String {
        format!(
            "<InventoryConfiguration><Destination><S3BucketDestination><Bucket>arn:aws:s3:::to</Bucket><Format>{format}</Format><Prefix>p</Prefix></S3BucketDestination></Destination><IsEnabled>true</IsEnabled><Id>{id}</Id><IncludedObjectVersions>All</IncludedObjectVersions><Schedule><Frequency>Weekly</Frequency></Schedule>{more}</InventoryConfiguration>"
        )
    }

    #[test]
    fn configurations_come_and_go() {
        let fields = "<OptionalFields><Field>ETag</Field><Field>Size</Field></OptionalFields><Filter><Prefix>in/</Prefix></Filter>";
        let read = one(document("a", "CSV", fields).as_bytes()).unwrap();
        assert_eq!((read.fields, read.days, read.all, read.prefix.as_str()), (vec![0, 2], 7, true, "in/"));
        let mut kept = None;
        for id in ["b", "c", "a", "b"] {
            kept = Some(put(kept.as_ref().map(String::as_bytes), id, document(id, "CSV", "").as_bytes()).unwrap());
        }
        let all = kept.as_ref().map(String::as_bytes);
        let ids: Vec<String> = parse(all.unwrap()).unwrap().into_iter().map(|i| i.id).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(one(get(all, "b").unwrap().as_bytes()).unwrap().id, "b");
        assert_eq!(get(all, "x").unwrap_err().kind, Kind::NoSuchConfiguration);
        let page = list(all, Some("a"), 1).unwrap();
        assert!(page.contains("<Id>b</Id>") && !page.contains("<Id>c</Id>"), "{page}");
        assert!(page.contains("<NextContinuationToken>b</NextContinuationToken>"), "{page}");
        let left = remove(all, "a").unwrap().unwrap();
        assert_eq!(parse(left.as_bytes()).unwrap().len(), 2);
        assert_eq!(remove(None, "a").unwrap_err().kind, Kind::NoSuchConfiguration);
    }

    #[test]
    fn what_s3_refuses() {
        for (text, want) in [
            (document("a b", "CSV", ""), Kind::InvalidArgument),
            (document("a", "ORC", ""), Kind::NotImplemented),
            (document("a", "XLS", ""), Kind::MalformedXml),
            (document("a", "CSV", "<OptionalFields><Field>Colour</Field></OptionalFields>"), Kind::MalformedXml),
            (document("a", "CSV", "<Colour/>"), Kind::MalformedXml),
            (document("a", "CSV", "").replace("arn:aws:s3:::to", "to"), Kind::InvalidArgument),
            (document("a", "CSV", "").replace("Weekly", "Hourly"), Kind::MalformedXml),
        ] {
            assert_eq!(one(text.as_bytes()).unwrap_err().kind, want, "{text}");
        }
        let kms = format!("<Encryption><SSE-KMS><KeyId>{}</KeyId></SSE-KMS></Encryption>", "k".repeat(2_049));
        let long = document("a", "CSV", "").replace("<Prefix>p</Prefix>", &kms);
        assert_eq!(put(None, "a", long.as_bytes()).unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(put(None, "b", document("a", "CSV", "").as_bytes()).unwrap_err().kind, Kind::InvalidArgument);
    }
}
