//! Access control lists of buckets and objects: canned ones, `x-amz-grant-*` headers, XML, and their bytes in records.
//!
//! An owner without a list has FULL_CONTROL and nobody else has anything, which is what `private` says; that case is
//! stored as no list at all. Grantees are accounts and S3's three groups. Pure: who exists is asked of [`People`].

use http::HeaderMap;

use crate::access::people::People;
use crate::error::{Error, Kind, Result};
use crate::record::codec::Damage;
use crate::xml::{Element, Out};

/// Grants of one list (S3's own limit).
const GRANTS_MAX: usize = 100;
const GROUPS: &str = "http://acs.amazonaws.com/groups/";
const XSI: &str = "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"";

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Permission {
    Read = 1,
    Write = 2,
    ReadAcp = 3,
    WriteAcp = 4,
    FullControl = 5,
}

impl Permission {
    const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::Read, "READ", "x-amz-grant-read"),
        (Self::Write, "WRITE", "x-amz-grant-write"),
        (Self::ReadAcp, "READ_ACP", "x-amz-grant-read-acp"),
        (Self::WriteAcp, "WRITE_ACP", "x-amz-grant-write-acp"),
        (Self::FullControl, "FULL_CONTROL", "x-amz-grant-full-control"),
    ];
    /// S3's word.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize - 1].1
    }
    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n, _)| *n == name).map(|(p, ..)| *p)
    }
    fn of_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(p, ..)| *p as u8 == code).map(|(p, ..)| *p)
    }
}

/// Who is granted something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grantee {
    /// Everybody, signed or not.
    AllUsers,
    /// Everybody whose request is signed.
    AuthenticatedUsers,
    /// The writer of server access logs.
    LogDelivery,
    /// An account.
    Account(String),
}

impl Grantee {
    /// The group's URI.
    fn uri(&self) -> Option<String> {
        let name = match self {
            Self::AllUsers => "global/AllUsers",
            Self::AuthenticatedUsers => "global/AuthenticatedUsers",
            Self::LogDelivery => "s3/LogDelivery",
            Self::Account(_) => return None,
        };
        Some(format!("{GROUPS}{name}"))
    }
    fn of_uri(uri: &str) -> Result<Self> {
        [Self::AllUsers, Self::AuthenticatedUsers, Self::LogDelivery]
            .into_iter()
            .find(|g| g.uri().as_deref() == Some(uri))
            .ok_or_else(|| Error::new(Kind::InvalidArgument, "Invalid group uri"))
    }
    fn of_id(id: &str, people: &dyn People) -> Result<Self> {
        if people.exists(id) {
            Ok(Self::Account(id.to_owned()))
        } else {
            Err(Error::new(Kind::InvalidArgument, "Invalid id"))
        }
    }
    fn of_email(email: &str, people: &dyn People) -> Result<Self> {
        people.by_email(email).map(Self::Account).ok_or_else(|| Kind::UnresolvableGrantByEmailAddress.into())
    }
    /// True for groups that anybody belongs to, or can by getting a key.
    pub fn is_public(&self) -> bool {
        matches!(self, Self::AllUsers | Self::AuthenticatedUsers)
    }
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub grantee: Grantee,
    /// What.
    pub permission: Permission,
}

/// A list; groups come first, as S3 shows them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acl(pub Vec<Grant>);

/// Whose list it is to be.
#[derive(Debug, Clone, Copy)]
pub struct Owners<'a> {
    /// The resource's owner.
    pub owner: &'a str,
    /// For an object, its bucket's owner.
    pub bucket_owner: Option<&'a str>,
}

impl Acl {
    fn of(mut grants: Vec<Grant>) -> Self {
        grants.sort_by_key(|grant| matches!(grant.grantee, Grantee::Account(_)));
        Self(grants)
    }

    /// What an owner has without a list.
    pub fn private(owner: &str) -> Self {
        Self(vec![Grant { grantee: Grantee::Account(owner.to_owned()), permission: Permission::FullControl }])
    }

    /// True when it says what no list says.
    pub fn is_private(&self, owner: &str) -> bool {
        matches!(&self.0[..], [Grant { grantee: Grantee::Account(a), permission: Permission::FullControl }] if a == owner)
    }

    /// A canned list.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that S3 does not have (there).
    pub fn canned(name: &str, owners: Owners<'_>) -> Result<Self> {
        use Permission::{FullControl, Read, ReadAcp, Write};
        let mut acl = Self::private(owners.owner);
        let mut grant = |grantee, permission| acl.0.push(Grant { grantee, permission });
        match (name, owners.bucket_owner) {
            ("private" | "aws-exec-read", _) => {}
            ("public-read", _) => grant(Grantee::AllUsers, Read),
            ("public-read-write", _) => {
                grant(Grantee::AllUsers, Read);
                grant(Grantee::AllUsers, Write);
            }
            ("authenticated-read", _) => grant(Grantee::AuthenticatedUsers, Read),
            ("log-delivery-write", None) => {
                grant(Grantee::LogDelivery, Write);
                grant(Grantee::LogDelivery, ReadAcp);
            }
            // On a bucket S3 ignores these two.
            ("bucket-owner-read" | "bucket-owner-full-control", None) => {}
            ("bucket-owner-read", Some(b)) if b != owners.owner => grant(Grantee::Account(b.to_owned()), Read),
            ("bucket-owner-full-control", Some(b)) if b != owners.owner => {
                grant(Grantee::Account(b.to_owned()), FullControl);
            }
            ("bucket-owner-read" | "bucket-owner-full-control", Some(_)) => {}
            _ => return Err(Error::new(Kind::InvalidArgument, format!("The canned ACL {name:?} is not one of S3's."))),
        }
        Ok(Self::of(acl.0))
    }

    /// What a request's `x-amz-acl` or `x-amz-grant-*` headers say, if there are any.
    ///
    /// # Errors
    /// `InvalidArgument`, `InvalidRequest`, `UnresolvableGrantByEmailAddress`.
    pub fn of_headers(headers: &HeaderMap, owners: Owners<'_>, people: &dyn People) -> Result<Option<Self>> {
        let text = |value: &http::HeaderValue| {
            value.to_str().map(str::to_owned).map_err(|_| Error::from(Kind::InvalidArgument))
        };
        let canned = headers.get("x-amz-acl").map(text).transpose()?.filter(|c| !c.is_empty());
        let mut grants = Vec::new();
        for (permission, _, header) in Permission::ALL {
            for value in headers.get_all(header) {
                for item in text(value)?.split(',') {
                    let wrong =
                        || Error::new(Kind::InvalidArgument, format!("Argument format not recognized in {header}"));
                    let (kind, name) = item.trim().split_once('=').ok_or_else(wrong)?;
                    let name = name.trim().trim_matches('"');
                    let grantee = match kind.trim().to_ascii_lowercase().as_str() {
                        "id" => Grantee::of_id(name, people)?,
                        "uri" => Grantee::of_uri(name)?,
                        "emailaddress" => Grantee::of_email(name, people)?,
                        _ => return Err(wrong()),
                    };
                    grants.push(Grant { grantee, permission });
                }
            }
        }
        match (canned, grants.is_empty()) {
            (Some(_), false) => {
                Err(Error::new(Kind::InvalidRequest, "Specifying both Canned ACLs and Header Grants is not allowed"))
            }
            (Some(name), true) => Self::canned(&name, owners).map(Some),
            (None, true) => Ok(None),
            (None, false) if grants.len() > GRANTS_MAX => Err(Kind::MalformedAclError.into()),
            (None, false) => Ok(Some(Self::of(grants))),
        }
    }

    /// From an `AccessControlPolicy` document.
    ///
    /// # Errors
    /// `MalformedACLError`; `AccessDenied` where it names another owner; as [`of_headers`](Self::of_headers).
    pub fn of_xml(document: &[u8], owner: &str, people: &dyn People) -> Result<Self> {
        let malformed = || Error::from(Kind::MalformedAclError);
        let root = Element::parse(document, "AccessControlPolicy").map_err(|_| malformed())?;
        if let Some(id) = root.child("Owner").and_then(|o| o.text_of("ID"))
            && id != owner
        {
            return Err(Kind::AccessDenied.into());
        }
        let list = root.child("AccessControlList").ok_or_else(malformed)?;
        if list.children.len() > GRANTS_MAX {
            return Err(malformed());
        }
        let grants = list.all("Grant").map(|grant| {
            let permission = grant.text_of("Permission").and_then(Permission::of_name).ok_or_else(malformed)?;
            let grantee = grant.child("Grantee").ok_or_else(malformed)?;
            let of = |name: &str| grantee.text_of(name);
            let grantee = match (grantee.attribute("type"), of("ID"), of("URI"), of("EmailAddress")) {
                (Some("CanonicalUser") | None, Some(id), ..) => Grantee::of_id(id, people)?,
                (Some("Group") | None, _, Some(uri), _) => Grantee::of_uri(uri)?,
                (Some("AmazonCustomerByEmail") | None, _, _, Some(email)) => Grantee::of_email(email, people)?,
                _ => return Err(malformed()),
            };
            Ok(Grant { grantee, permission })
        });
        Ok(Self::of(grants.collect::<Result<_>>()?))
    }

    /// The `AccessControlPolicy` document.
    pub fn to_xml(&self, owner: &str, people: &dyn People) -> String {
        let person = |out: &mut Out, account: &str| {
            out.text("ID", account);
            out.maybe("DisplayName", people.display(account).as_deref());
        };
        Out::document("AccessControlPolicy", |out| {
            out.element("Owner", |out| person(out, owner));
            out.element("AccessControlList", |out| {
                for grant in &self.0 {
                    out.element("Grant", |out| {
                        match &grant.grantee {
                            Grantee::Account(account) => {
                                out.element_with("Grantee", &format!("{XSI} xsi:type=\"CanonicalUser\""), |out| {
                                    person(out, account);
                                });
                            }
                            group => out.element_with("Grantee", &format!("{XSI} xsi:type=\"Group\""), |out| {
                                out.maybe("URI", group.uri().as_deref());
                            }),
                        }
                        out.text("Permission", grant.permission.name());
                    });
                }
            });
        })
    }

    /// True when an account (`None`: nobody known) is granted this. `private_only`: grants to the public do not count.
    pub fn allows(&self, account: Option<&str>, wanted: Permission, private_only: bool) -> bool {
        self.0.iter().any(|grant| {
            let what = grant.permission == wanted || grant.permission == Permission::FullControl;
            what && match &grant.grantee {
                Grantee::AllUsers => !private_only,
                Grantee::AuthenticatedUsers => account.is_some() && !private_only,
                Grantee::LogDelivery => false,
                Grantee::Account(a) => account == Some(a.as_str()),
            }
        })
    }

    /// True when it grants anything to the public.
    pub fn is_public(&self) -> bool {
        self.0.iter().any(|g| g.grantee.is_public())
    }

    /// True when it grants anything to anybody but this account.
    pub fn is_shared(&self, owner: &str) -> bool {
        self.0.iter().any(|g| !matches!(&g.grantee, Grantee::Account(a) if a == owner))
    }

    /// As stored: for each grant the permission, the kind of grantee (0 all, 1 authenticated, 2 log delivery, 3 account)
    /// and, for an account, its length and bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * 15);
        for Grant { grantee, permission } in &self.0 {
            out.push(*permission as u8);
            match grantee {
                Grantee::AllUsers => out.push(0),
                Grantee::AuthenticatedUsers => out.push(1),
                Grantee::LogDelivery => out.push(2),
                Grantee::Account(account) => {
                    out.push(3);
                    out.push(account.len().min(255) as u8);
                    out.extend_from_slice(&account.as_bytes()[..account.len().min(255)]);
                }
            }
        }
        out
    }

    /// From what is stored under this tag.
    ///
    /// # Errors
    /// Damage.
    pub fn decode(tag: u8, mut bytes: &[u8]) -> Result<Self, Damage> {
        let damage = || Damage::Field { tag, why: "is no list of grants" };
        let mut grants = Vec::new();
        while let [permission, kind, rest @ ..] = bytes {
            bytes = rest;
            let permission = Permission::of_code(*permission).ok_or_else(damage)?;
            let grantee = match kind {
                0 => Grantee::AllUsers,
                1 => Grantee::AuthenticatedUsers,
                2 => Grantee::LogDelivery,
                3 => {
                    let (len, rest) = bytes.split_first().ok_or_else(damage)?;
                    let (account, rest) = rest.split_at_checked((*len).into()).ok_or_else(damage)?;
                    bytes = rest;
                    Grantee::Account(std::str::from_utf8(account).map_err(|_| damage())?.to_owned())
                }
                _ => return Err(damage()),
            };
            grants.push(Grant { grantee, permission });
        }
        if bytes.is_empty() { Ok(Self(grants)) } else { Err(damage()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;
    impl People for Two {
        fn exists(&self, account: &str) -> bool {
            ["1", "2"].contains(&account)
        }
        fn display(&self, account: &str) -> Option<String> {
            self.exists(account).then(|| format!("name of {account}"))
        }
        fn by_email(&self, email: &str) -> Option<String> {
            (email == "two@example.com").then(|| "2".into())
        }
    }

    const OBJECT: Owners<'static> = Owners { owner: "2", bucket_owner: Some("1") };

    #[test]
    fn canned_lists() {
        let check = |name: &str, owners: Owners<'_>, account: Option<&str>, p: Permission, want: bool| {
            let acl = Acl::canned(name, owners).unwrap();
            assert_eq!(acl.allows(account, p, false), want, "{name} {account:?} {p:?}");
            assert_eq!(Acl::decode(1, &acl.encode()).unwrap(), acl);
            assert_eq!(Acl::of_xml(acl.to_xml(owners.owner, &Two).as_bytes(), owners.owner, &Two).unwrap(), acl);
        };
        use Permission::*;
        let bucket = Owners { owner: "1", bucket_owner: None };
        check("private", bucket, Some("1"), WriteAcp, true);
        check("private", bucket, Some("2"), Read, false);
        check("private", bucket, None, Read, false);
        check("public-read", bucket, None, Read, true);
        check("public-read", bucket, None, Write, false);
        check("public-read-write", bucket, None, Write, true);
        check("authenticated-read", bucket, None, Read, false);
        check("authenticated-read", bucket, Some("2"), Read, true);
        check("bucket-owner-read", OBJECT, Some("1"), Read, true);
        check("bucket-owner-read", OBJECT, Some("1"), ReadAcp, false);
        check("bucket-owner-full-control", OBJECT, Some("1"), WriteAcp, true);
        check("log-delivery-write", bucket, Some("2"), Write, false);
        assert!(
            !Acl::canned("public-read", bucket).unwrap().allows(Some("2"), Read, true),
            "the public does not count"
        );
        assert_eq!(Acl::canned("public", bucket).unwrap_err().kind, Kind::InvalidArgument);
        assert!(Acl::canned("private", bucket).unwrap().is_private("1"));
    }

    #[test]
    fn headers() {
        let of = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            Acl::of_headers(&headers, OBJECT, &Two).map_err(|e| e.kind)
        };
        assert_eq!(of(&[]), Ok(None));
        let acl = of(&[(
            "x-amz-grant-read",
            "id=\"1\", uri=\"http://acs.amazonaws.com/groups/global/AllUsers\",emailAddress=two@example.com",
        )]);
        assert_eq!(acl.unwrap().unwrap().0.len(), 3);
        assert_eq!(of(&[("x-amz-grant-read", "id=1"), ("x-amz-grant-read", "id=2")]).unwrap().unwrap().0.len(), 2);
        assert_eq!(of(&[("x-amz-grant-read", "id=3")]), Err(Kind::InvalidArgument));
        assert_eq!(of(&[("x-amz-grant-read", "1")]), Err(Kind::InvalidArgument));
        assert_eq!(of(&[("x-amz-grant-write", "emailAddress=no@x")]), Err(Kind::UnresolvableGrantByEmailAddress));
        assert_eq!(of(&[("x-amz-grant-write", "id=1"), ("x-amz-acl", "private")]), Err(Kind::InvalidRequest));
    }

    #[test]
    fn documents_that_are_none() {
        for (document, want) in [
            ("<x", Kind::MalformedAclError),
            ("<AccessControlPolicy/>", Kind::MalformedAclError),
            (
                "<AccessControlPolicy><Owner><ID>2</ID></Owner><AccessControlList/></AccessControlPolicy>",
                Kind::AccessDenied,
            ),
            (
                "<AccessControlPolicy><AccessControlList><Grant><Grantee><ID>1</ID></Grantee><Permission>ALL</Permission></Grant></AccessControlList></AccessControlPolicy>",
                Kind::MalformedAclError,
            ),
            (
                "<AccessControlPolicy><AccessControlList><Grant><Grantee><ID>9</ID></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>",
                Kind::InvalidArgument,
            ),
        ] {
            assert_eq!(Acl::of_xml(document.as_bytes(), "1", &Two).unwrap_err().kind, want, "{document}");
        }
        assert!(Acl::decode(1, &[9, 9]).is_err() && Acl::decode(1, &[1, 3, 200]).is_err());
    }
}
