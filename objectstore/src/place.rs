//! What a request is about: the one reading of its host and path, which everything else goes by.
//!
//! ```text
//! Host: s3.example.org            /bucket/key   path style
//! Host: bucket.s3.example.org     /key          virtual-host style: BUCKET.DOMAIN of a domain of the operator's
//! Host: bucket.s3-website.any     /key          a website, by its mark
//! Host: www.example.org           /key          a website whose bucket has the host's name, under a website domain
//! anything else, an IP address    /bucket/key   path style
//! ```
//! A part of Walrus that took a request for another bucket's than the rest would be a hole in what may be done, so nothing
//! reads a path by itself: the front reads a [`Place`] once and all others are given it; `s3s`, which reads hosts and paths
//! itself, asks [`Domains`] for the host ([`Hosts`]), and what it made of the request is compared before anything is
//! decided ([`Place::is`]). Pure.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use http::header::HOST;
use http::request::Parts;
use karri_base::aws::sigv4::uri_encode;
use s3s::host::{S3Host, VirtualHost};
use s3s::path::S3Path;

use crate::core::Shared;

/// What makes a host a website's, whatever its domain.
const WEBSITE: &str = ".s3-website";

/// Whose hosts say something of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domains {
    /// Of the service, the longest first: a bucket's host is `BUCKET.DOMAIN`.
    service: Vec<String>,
    /// Of websites: a host that is one of these, or under one, is the name of the bucket that it shows.
    websites: Vec<String>,
}

impl Default for Domains {
    /// `localhost`, whose subdomains many resolvers know, and the usual name of S3 under it.
    fn default() -> Self {
        Self { service: vec!["s3.localhost".into(), "localhost".into()], websites: vec![] }
    }
}

/// What a host says.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Nothing,
    Bucket(String),
    Website(String),
}

impl Domains {
    /// Of the service (none: the default ones) and of websites.
    ///
    /// # Errors
    /// A name that is no domain, or a website's that is under one of the service's.
    pub fn new(service: &[String], websites: &[String]) -> Result<Self, String> {
        let read = |names: &[String]| names.iter().map(|name| domain(name)).collect::<Result<Vec<_>, _>>();
        let (mut service, websites) = (read(service)?, read(websites)?);
        if service.is_empty() {
            service = Self::default().service;
        }
        service.sort_by_key(|name| std::cmp::Reverse(name.len()));
        for website in &websites {
            if let Some(of) = service.iter().find(|of| is_under(website, of) || *of == website) {
                return Err(format!("the website domain {website} is S3's, by the domain {of}"));
            }
        }
        Ok(Self { service, websites })
    }

    /// The same websites, other names of the service.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_service(&self, service: &[String]) -> Result<Self, String> {
        Self::new(service, &self.websites)
    }

    /// Those of a store.
    pub fn of(shared: &Shared) -> &Self {
        static DEFAULT: LazyLock<Domains> = LazyLock::new(Domains::default);
        shared.operator.get().map_or(&DEFAULT, |operator| &operator.domains)
    }

    fn meaning(&self, host: &str) -> Meaning {
        let Some(name) = name_of(host) else { return Meaning::Nothing };
        if self.service.contains(&name) {
            return Meaning::Nothing;
        }
        if let Some((bucket, rest)) = name.split_once(WEBSITE)
            && !bucket.is_empty()
            && rest.starts_with(['.', '-'])
        {
            return Meaning::Website(bucket.to_owned());
        }
        if let Some(of) = self.service.iter().find(|of| is_under(&name, of)) {
            return Meaning::Bucket(name[..name.len() - of.len() - 1].to_owned());
        }
        match self.websites.iter().any(|of| name == *of || is_under(&name, of)) {
            true => Meaning::Website(name),
            false => Meaning::Nothing,
        }
    }
}

/// True for `x.of`, with any x.
fn is_under(name: &str, of: &str) -> bool {
    name.strip_suffix(of).and_then(|rest| rest.strip_suffix('.')).is_some_and(|rest| !rest.is_empty())
}

/// A domain as an operator writes it, in lower case.
fn domain(text: &str) -> Result<String, String> {
    let fits = |label: &str| {
        let edge = label.starts_with('-') || label.ends_with('-');
        (1..64).contains(&label.len()) && !edge && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let number = name.rsplit('.').next().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if number || name.len() > 253 || !name.split('.').all(fits) {
        return Err(format!("{text:?} is no domain: want a name such as s3.example.org, without a port"));
    }
    Ok(name)
}

/// The name in a Host header, in lower case, without port and final dot; `None` for an address and what is no name.
fn name_of(host: &str) -> Option<String> {
    let name = match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        // IPv6, or rubbish.
        Some(_) => return None,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.is_empty() || !name.bytes().all(fits) || name.parse::<IpAddr>().is_ok() {
        return None;
    }
    Some(name.to_ascii_lowercase())
}

/// `s3s`'s question of the same.
pub struct Hosts(pub Arc<Shared>);

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        let plain = VirtualHost::new(host);
        Ok(match Domains::of(&self.0).meaning(host) {
            Meaning::Bucket(bucket) => plain.with_bucket(bucket),
            Meaning::Nothing | Meaning::Website(_) => plain,
        })
    }
}

/// Where a request has its bucket from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Style {
    #[default]
    Path,
    Host,
    Website,
}

/// What a request is about. Clones share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place(Arc<Named>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    bucket: Option<String>,
    key: Option<String>,
    style: Style,
}

impl Place {
    fn named(bucket: Option<String>, key: Option<String>, style: Style) -> Self {
        Self(Arc::new(Named { bucket, key, style }))
    }

    /// What a request's head says.
    pub fn of(domains: &Domains, head: &Parts) -> Self {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        Self::read(domains, host, head.uri.path())
    }

    fn read(domains: &Domains, host: &str, path: &str) -> Self {
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        let Some(path) = path.strip_prefix('/') else { return Self::default() };
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        match domains.meaning(host) {
            Meaning::Bucket(bucket) => Self::named(Some(bucket), some(path), Style::Host),
            Meaning::Website(bucket) => Self::named(Some(bucket), some(path), Style::Website),
            Meaning::Nothing => {
                let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
                let key = if bucket.is_empty() { None } else { some(key) };
                Self::named(some(bucket), key, Style::Path)
            }
        }
    }

    /// Of a request that Walrus makes to itself, in path style and without a host.
    pub fn object(bucket: &str, key: &str) -> Self {
        Self::named(Some(bucket.to_owned()), Some(key.to_owned()), Style::Path)
    }

    /// The bucket's name, valid or not; `None` for the service itself.
    pub fn bucket(&self) -> Option<&str> {
        self.0.bucket.as_deref()
    }
    /// The key; `None` for the bucket itself.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }
    /// The bucket that is shown as a website.
    pub fn website(&self) -> Option<&str> {
        self.bucket().filter(|_| self.0.style == Style::Website)
    }
    /// The bucket, where it is in the host and not in the path.
    pub fn bucket_of_host(&self) -> Option<&str> {
        self.bucket().filter(|_| self.0.style != Style::Path)
    }
    /// `bucket/key`, decoded; empty for the service.
    pub fn resource(&self) -> String {
        match (&self.0.bucket, &self.0.key) {
            (Some(bucket), Some(key)) => format!("{bucket}/{key}"),
            (Some(bucket), None) => bucket.clone(),
            (None, _) => String::new(),
        }
    }
    /// The key as it stands in the request's path; encoded again where the slash before it was encoded.
    pub fn sent_key<'p>(&self, path: &'p str) -> Cow<'p, str> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let sent = match self.0.style {
            Style::Host | Style::Website => path,
            Style::Path => path.split_once('/').map_or("", |(_, key)| key),
        };
        match self.key() {
            Some(key) if sent.is_empty() => uri_encode(key.as_bytes(), true).into(),
            _ => sent.into(),
        }
    }
    /// True where `s3s` has read the same.
    pub fn is(&self, path: &S3Path) -> bool {
        self.bucket() == path.get_bucket_name() && self.key() == path.get_object_key()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domains(service: &[&str], websites: &[&str]) -> Result<Domains, String> {
        let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        Domains::new(&own(service), &own(websites))
    }

    #[test]
    fn hosts_and_paths() {
        let some = domains(&["x.org", "s3.x.org", "S3.Y.net."], &["www.z.org"]).unwrap();
        let check = |host: &str, path: &str, want: (&str, &str, Style)| {
            let place = Place::read(&some, host, path);
            let got = (place.bucket().unwrap_or_default(), place.key().unwrap_or_default(), place.0.style);
            assert_eq!(got, want, "{host} {path}");
        };
        for host in ["s3.x.org", "S3.x.ORG:9000", "s3.x.org.", "other.org", "127.0.0.1:9000", "[::1]:9000", "::1", ""] {
            check(host, "/b/k/l", ("b", "k/l", Style::Path));
            check(host, "/b/", ("b", "", Style::Path));
            check(host, "/", ("", "", Style::Path));
            check(host, "//k", ("", "", Style::Path));
            check(host, "/%62%2Fk", ("b", "k", Style::Path));
        }
        for host in ["b.s3.x.org", "B.S3.X.org:80", "b.s3.x.org.", "b.s3.x.org.:80", "b.s3.y.net", "b.x.org"] {
            check(host, "/", ("b", "", Style::Host));
            check(host, "/photos", ("b", "photos", Style::Host));
            check(host, "/photos/", ("b", "photos/", Style::Host));
            check(host, "//%2F", ("b", "//", Style::Host));
        }
        check("a.b-c.s3.x.org", "/k", ("a.b-c", "k", Style::Host));
        check("s3-x.x.org", "/k", ("s3-x", "k", Style::Host));
        check("b.s3.x.org", "*", ("", "", Style::Path));
        // No bucket, no name, another domain.
        for host in [".s3.x.org.evil", "bs3.y.net", "u@b.s3.x.org", "b.s3.x.org:80:80", "b.s3.x.org/", "é.s3.x.org"] {
            check(host, "/b/k", ("b", "k", Style::Path));
        }
        check("my.site.s3-website.local:9000", "/k", ("my.site", "k", Style::Website));
        check("b.s3-website-us-east-1.x.org", "/", ("b", "", Style::Website));
        check("www.z.org", "/a", ("www.z.org", "a", Style::Website));
        check("blog.WWW.z.org", "/a", ("blog.www.z.org", "a", Style::Website));
        for host in ["z.org", "b.s3-websites.z.org", "s3-website.z.org", "wwww.z.org"] {
            check(host, "/b/k", ("b", "k", Style::Path));
        }
        assert_eq!(Place::read(&some, "b.x.org", "/a%20b/c").sent_key("/a%20b/c"), "a%20b/c");
        assert_eq!(Place::read(&some, "x.org", "/b/a%20b/c").sent_key("/b/a%20b/c"), "a%20b/c");
        assert_eq!(Place::read(&some, "x.org", "/b%2Fa b").sent_key("/b%2Fa b"), "a%20b");
        assert_eq!(Place::read(&some, "x.org", "/b").sent_key("/b"), "");
    }

    #[test]
    fn domains_are_names() {
        let none = domains(&[], &[]).unwrap();
        assert_eq!(none, Domains::default());
        assert_eq!(none.meaning("bucket.localhost:9000"), Meaning::Bucket("bucket".into()));
        assert_eq!(none.meaning("bucket.s3.localhost"), Meaning::Bucket("bucket".into()));
        for host in ["localhost:9000", "s3.localhost", "localhost.", "notlocalhost"] {
            assert_eq!(none.meaning(host), Meaning::Nothing, "{host}");
        }
        // What the operator says is instead of the default.
        assert_eq!(domains(&["x.org"], &[]).unwrap().meaning("bucket.localhost"), Meaning::Nothing);
        for bad in ["", ".", "x..org", "x.org:80", "127.0.0.1", "::1", "-x.org", "x_y.org", "http://x.org", "*.x.org"] {
            assert!(domains(&[bad], &[]).is_err(), "{bad}");
        }
        for bad in ["x.org", "www.x.org", "1.2.3.4"] {
            assert!(domains(&["x.org"], &[bad]).is_err(), "{bad}");
        }
        assert!(domains(&["s3.x.org"], &["x.org"]).is_ok());
    }

    proptest! {
        /// `s3s`, asked by its own rules with our hosts, sees the same place, or refuses.
        #[test]
        fn s3s_reads_the_same(
            host in prop_oneof![
                "(bkt|a\\.b|B-1|)\\.?(s3\\.)?(localhost|LOCALHOST)\\.?(:[0-9]{0,3})?",
                "[a-z.:@\\[\\]%-]{0,12}", "127\\.0\\.0\\.1(:80)?", "\\[::1\\](:80)?",
            ],
            path in prop_oneof!["(/|%2F|%2f|//|bkt|a b|%61|%ff|\\.\\.|\\?|%){0,8}", "/\\PC{0,12}"],
        ) {
            let domains = Domains::default();
            let place = Place::read(&domains, &host, &path);
            let is_address = host.parse::<std::net::SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
            let bucket = match domains.meaning(&host) {
                Meaning::Bucket(bucket) if !is_address => Some(bucket),
                _ => None,
            };
            let decoded = percent_encoding::percent_decode_str(&path).decode_utf8();
            if let Ok(decoded) = decoded
                && place.website().is_none()
                && let Ok(read) = s3s::path::parse_virtual_hosted_style(bucket.as_deref(), &decoded)
            {
                prop_assert!(place.is(&read), "{place:?} {read:?}");
            }
        }
    }
}
