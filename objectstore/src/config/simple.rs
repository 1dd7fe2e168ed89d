//! Sub-documents of a few words each: public access block, ownership controls, tags, request payment,
//! acceleration, quota.

use std::collections::HashSet;

use crate::error::{Error, Kind, Result};
use crate::xml::{Element, Out};

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

/// What of the public is refused (PutPublicAccessBlock).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublicAccess {
    /// Requests that set public ACLs are refused.
    pub block_acls: bool,
    /// Grants to the public do not count.
    pub ignore_acls: bool,
    /// Public policies are refused.
    pub block_policy: bool,
    /// A public policy lets in the owner's account only.
    pub restrict: bool,
}

impl PublicAccess {
    /// From the document.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse(document: &[u8]) -> Result<Self> {
        let root = Element::parse(document, "PublicAccessBlockConfiguration")?;
        root.only(&["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"])?;
        let flag = |name: &str| match root.text_of(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(malformed()),
        };
        Ok(Self {
            block_acls: flag("BlockPublicAcls")?,
            ignore_acls: flag("IgnorePublicAcls")?,
            block_policy: flag("BlockPublicPolicy")?,
            restrict: flag("RestrictPublicBuckets")?,
        })
    }
    /// The document.
    pub fn to_xml(self) -> String {
        let flag = |on| if on { "true" } else { "false" };
        Out::document("PublicAccessBlockConfiguration", |out| {
            out.text("BlockPublicAcls", flag(self.block_acls));
            out.text("IgnorePublicAcls", flag(self.ignore_acls));
            out.text("BlockPublicPolicy", flag(self.block_policy));
            out.text("RestrictPublicBuckets", flag(self.restrict));
        })
    }
}

/// Whose objects are (PutBucketOwnershipControls).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// The writer's. What holds where nothing is said.
    #[default]
    ObjectWriter,
    /// The bucket's owner's where the writer grants him FULL_CONTROL by the canned ACL.
    BucketOwnerPreferred,
    /// Always the bucket's owner's; ACLs are off.
    BucketOwnerEnforced,
}

impl Ownership {
    const NAMES: [(Self, &'static str); 3] = [
        (Self::ObjectWriter, "ObjectWriter"),
        (Self::BucketOwnerPreferred, "BucketOwnerPreferred"),
        (Self::BucketOwnerEnforced, "BucketOwnerEnforced"),
    ];
    /// With this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, n)| *n == name).map(|(o, _)| *o)
    }
    /// From the document.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse(document: &[u8]) -> Result<Self> {
        let root = Element::parse(document, "OwnershipControls")?;
        let [rule] = &root.children[..] else { return Err(malformed()) };
        Self::of_name(rule.need("ObjectOwnership")?).ok_or_else(malformed)
    }
    /// The document.
    pub fn to_xml(self) -> String {
        let name = Self::NAMES.iter().find(|(o, _)| *o == self).map_or("", |(_, n)| n);
        Out::document("OwnershipControls", |out| out.element("Rule", |out| out.text("ObjectOwnership", name)))
    }
}

/// A set of tags, in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags(pub Vec<(String, String)>);

impl Tags {
    /// From the document. `max`: 50 for a bucket, 10 for an object.
    ///
    /// # Errors
    /// `MalformedXML`, `InvalidTag`, `BadRequest` for too many.
    pub fn parse(document: &[u8], max: usize) -> Result<Self> {
        let root = Element::parse(document, "Tagging")?;
        let set = root.child("TagSet").ok_or_else(malformed)?;
        set.only(&["Tag"])?;
        if set.children.len() > max {
            return Err(Error::new(Kind::BadRequest, format!("Object tags cannot be greater than {max}")));
        }
        let mut seen = HashSet::new();
        let tags = set.children.iter().map(|tag| {
            let (key, value) = (tag.need("Key")?, tag.need("Value")?);
            let wrong = |what: &str| Err(Error::new(Kind::InvalidTag, what.to_owned()));
            if key.is_empty() || key.chars().count() > 128 {
                return wrong("The TagKey you have provided is invalid");
            }
            if value.chars().count() > 256 {
                return wrong("The TagValue you have provided is invalid");
            }
            if !seen.insert(key.to_owned()) {
                return wrong("Cannot provide multiple Tags with the same key");
            }
            Ok((key.to_owned(), value.to_owned()))
        });
        Ok(Self(tags.collect::<Result<_>>()?))
    }
    /// The document.
    pub fn to_xml(&self) -> String {
        Out::document("Tagging", |out| {
            out.element("TagSet", |out| {
                for (key, value) in &self.0 {
                    out.element("Tag", |out| {
                        out.text("Key", key);
                        out.text("Value", value);
                    });
                }
            });
        })
    }
}

/// True when requesters pay (PutBucketRequestPayment).
///
/// # Errors
/// `MalformedXML`.
pub fn payment(document: &[u8]) -> Result<bool> {
    match Element::parse(document, "RequestPaymentConfiguration")?.need("Payer")? {
        "BucketOwner" => Ok(false),
        "Requester" => Ok(true),
        _ => Err(malformed()),
    }
}

/// The document of [`payment`].
pub fn payment_xml(requester: bool) -> String {
    let payer = if requester { "Requester" } else { "BucketOwner" };
    Out::document("RequestPaymentConfiguration", |out| out.text("Payer", payer))
}

/// `Enabled` or `Suspended` (PutBucketAccelerateConfiguration).
///
/// # Errors
/// `MalformedXML`.
pub fn accelerate(document: &[u8]) -> Result<String> {
    let root = Element::parse(document, "AccelerateConfiguration")?;
    match root.need("Status")? {
        status @ ("Enabled" | "Suspended") => Ok(status.to_owned()),
        _ => Err(malformed()),
    }
}

/// The document of [`accelerate`]; never set, it is empty.
pub fn accelerate_xml(status: Option<&str>) -> String {
    Out::document("AccelerateConfiguration", |out| out.maybe("Status", status))
}

/// At most so much in a bucket: karri's own subresource `?quota`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of all objects.
    pub bytes: Option<u64>,
    /// Objects.
    pub objects: Option<u64>,
}

impl Quota {
    /// From the document.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse(document: &[u8]) -> Result<Self> {
        let root = Element::parse(document, "QuotaConfiguration")?;
        root.only(&["MaxBytes", "MaxObjects"])?;
        let number = |name: &str| root.text_of(name).map(|t| t.parse().map_err(|_| malformed())).transpose();
        Ok(Self { bytes: number("MaxBytes")?, objects: number("MaxObjects")? })
    }
    /// The document.
    pub fn to_xml(self) -> String {
        Out::document("QuotaConfiguration", |out| self.write(out))
    }
    /// What the document says.
    pub fn write(self, out: &mut Out) {
        out.maybe("MaxBytes", self.bytes.map(|n| n.to_string()).as_deref());
        out.maybe("MaxObjects", self.objects.map(|n| n.to_string()).as_deref());
    }
    /// True when nothing is limited.
    pub fn is_none(self) -> bool {
        self.bytes.is_none() && self.objects.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back() {
        let block = PublicAccess { block_acls: true, restrict: true, ..PublicAccess::default() };
        assert_eq!(PublicAccess::parse(block.to_xml().as_bytes()).unwrap(), block);
        for (ownership, _) in Ownership::NAMES {
            assert_eq!(Ownership::parse(ownership.to_xml().as_bytes()).unwrap(), ownership);
        }
        let tags = Tags(vec![("a".into(), "<b>".into()), ("c".into(), String::new())]);
        assert_eq!(Tags::parse(tags.to_xml().as_bytes(), 50).unwrap(), tags);
        assert!(payment(payment_xml(true).as_bytes()).unwrap() && !payment(payment_xml(false).as_bytes()).unwrap());
        assert_eq!(accelerate(accelerate_xml(Some("Enabled")).as_bytes()).unwrap(), "Enabled");
        let quota = Quota { bytes: Some(5), objects: None };
        assert_eq!(Quota::parse(quota.to_xml().as_bytes()).unwrap(), quota);
    }

    #[test]
    fn what_s3_refuses() {
        let tag = |k: &str, v: &str| format!("<Tag><Key>{k}</Key><Value>{v}</Value></Tag>");
        let tags = |inner: &str| {
            Tags::parse(format!("<Tagging><TagSet>{inner}</TagSet></Tagging>").as_bytes(), 2).map_err(|e| e.kind)
        };
        assert_eq!(tags(&tag("a", "").repeat(2)), Err(Kind::InvalidTag));
        assert_eq!(tags(&tag("", "")), Err(Kind::InvalidTag));
        assert_eq!(tags(&tag(&"k".repeat(129), "")), Err(Kind::InvalidTag));
        assert_eq!(tags(&tag("k", &"v".repeat(257))), Err(Kind::InvalidTag));
        assert_eq!(tags(&(tag("a", "") + &tag("b", "") + &tag("c", ""))), Err(Kind::BadRequest));
        assert_eq!(tags("<Tag><Key>a</Key></Tag>"), Err(Kind::MalformedXml));
        assert!(PublicAccess::parse(b"<PublicAccessBlockConfiguration><X/></PublicAccessBlockConfiguration>").is_err());
        assert!(Ownership::parse(b"<OwnershipControls/>").is_err());
    }
}
