//! Replicas in a bucket of another S3 server, by its own API: one PUT, or a multipart upload with the object's own parts, so
//! that ETags are equal; streamed from the store, never whole in memory.
//!
//! A remote that is a Walrus is told the version's id ([`REPLICA`]) and keeps it: changes may then come in any order and
//! twice. Others give their own ids: there changes of a key go in order, and a version that was refused and is no longer
//! current is given up rather than put on top of newer ones.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::{Payload, uri_encode};
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Carried, REPLICA, Trouble, What};
use crate::body;
use crate::core::CoreRef;
use crate::crypt::Secret;
use crate::digest::{self, Algorithm, Checksum};
use crate::ops::condition::http_date;
use crate::ops::get::pieces;
use crate::outbound::{Body, Broken, Endpoint, Outbound, Reply, STALLED, Unanswered};
use crate::record::{Data, Holder, Manifest, Object, Part};
use crate::xml::{Element, Out};

/// Another S3 server.
#[derive(Debug)]
pub struct Remote {
    /// Signs requests to it.
    pub s3: S3,
    /// Connections to it.
    pub endpoint: Arc<Endpoint>,
    /// Accounts whose buckets may name it; all where it is empty.
    pub accounts: Vec<String>,
    /// It is a Walrus: it has kept a version's id.
    keeps_ids: AtomicBool,
    /// Buckets that kept versions when they were asked, and when.
    versioned: Mutex<HashMap<String, UnixMicros>>,
}

impl Remote {
    /// A server, not yet asked anything.
    pub fn new(s3: S3, endpoint: Endpoint, accounts: Vec<String>) -> Self {
        let (keeps_ids, versioned) = (AtomicBool::new(false), Mutex::default());
        Self { s3, endpoint: Arc::new(endpoint), accounts, keeps_ids, versioned }
    }
    fn versioned(&self) -> MutexGuard<'_, HashMap<String, UnixMicros>> {
        self.versioned.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Notes whether a bucket keeps versions.
    fn set_versioned(&self, bucket: &str, now: Option<UnixMicros>) {
        let mut versioned = self.versioned();
        let Some(now) = now else {
            versioned.remove(bucket);
            return;
        };
        if versioned.len() >= VERSIONED_MAX {
            versioned.clear();
        }
        versioned.insert(bucket.to_owned(), now);
    }
    /// True where a bucket kept versions a moment ago.
    fn is_versioned(&self, bucket: &str, now: UnixMicros) -> bool {
        let asked = self.versioned().get(bucket).copied();
        asked.is_some_and(|at| at <= now && now.0 - at.0 < VERSIONED.as_micros() as u64)
    }
    /// True where buckets of this account may name it.
    pub fn serves(&self, account: &str) -> bool {
        self.accounts.iter().any(|a| a == account)
    }
}

/// A destination, while one change is carried to it.
struct To<'a, B: BulkStore> {
    core: &'a CoreRef<B>,
    remote: &'a Remote,
    outbound: &'a Outbound,
    carried: &'a Carried<'a>,
}

/// The checksum that S3 makes where none is asked for; servers that do not know it would refuse it.
const DEFAULT_SUM: &str = "x-amz-checksum-crc64nvme";

/// For so long a bucket is believed to keep versions.
const VERSIONED: Duration = Duration::from_secs(60);
/// Buckets that this is known of.
const VERSIONED_MAX: usize = 1_000;
/// How long a server may take to put an object together from its parts.
const COMPLETING: Duration = Duration::from_secs(900);

/// A request's query and headers.
type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Carries a change.
///
/// # Errors
/// Why not, and whether that is for this change only.
pub async fn carry<B: BulkStore>(core: &CoreRef<B>, name: &str, carried: &Carried<'_>) -> Result<(), Trouble> {
    let operator = core.shared.operator.get();
    let remote = operator.and_then(|o| o.remotes.get(name)).filter(|r| r.serves(&carried.source.bucket().owner));
    let (Some(remote), Some(outbound)) = (remote, core.shared.outbound.get()) else {
        return Err(Trouble::Refused(format!("there is no remote {name:?} any more")));
    };
    let to = To { core, remote, outbound, carried };
    to.keeps_versions().await?;
    if carried.entry.what == What::Settings {
        return to.settings().await;
    }
    if carried.again && to.is_there().await? {
        return Ok(());
    }
    if carried.entry.attempts > 0 && !carried.current && !remote.keeps_ids.load(Ordering::Relaxed) {
        return Err(Trouble::Refused("a newer version is there, and the remote would take this one for newer".into()));
    }
    let id = carried.entry.version.to_hex();
    if carried.object.marker {
        let reply = to.ask(Method::DELETE, &[], &[(REPLICA, &id)], Bytes::new()).await?;
        to.notice(&reply);
        return Ok(());
    }
    to.put().await
}

impl<B: BulkStore> To<'_, B> {
    fn notice(&self, reply: &Reply) {
        if reply
            .headers
            .get("x-amz-version-id")
            .is_some_and(|v| v.as_bytes() == self.carried.entry.version.to_hex().as_bytes())
        {
            self.remote.keeps_ids.store(true, Ordering::Relaxed);
        }
    }

    /// Makes sure that the bucket keeps versions. In one that does not, a replica would take the place of what is there, and a
    /// delete marker would delete it for good: so nothing is sent there.
    async fn keeps_versions(&self) -> Result<(), Trouble> {
        let (bucket, now) = (&self.carried.rule.to.bucket, self.core.now());
        // It is asked right before each deletion. That it was a Walrus once, which refuses replicas itself, says nothing of now.
        if !self.carried.object.marker && self.remote.is_versioned(bucket, now) {
            return Ok(());
        }
        let query = [("versioning", "")];
        let parts = self.remote.s3.request(Method::GET, bucket, None, &query, &[], Payload::Bytes(b""), now);
        let parts = parts.map_err(Trouble::Refused)?;
        let reply = checked(self.outbound.ask(&self.remote.endpoint, parts, Body::whole(Bytes::new())).await);
        let kept = enabled(bucket, reply);
        self.remote.set_versioned(bucket, kept.is_ok().then_some(now));
        kept
    }

    /// Sends a request with this body.
    async fn ask(&self, method: Method, query: Pairs<'_>, headers: Pairs<'_>, body: Bytes) -> Result<Reply, Trouble> {
        self.ask_patiently(method, query, headers, body, STALLED).await
    }

    async fn ask_patiently(
        &self,
        method: Method,
        query: Pairs<'_>,
        headers: Pairs<'_>,
        body: Bytes,
        patience: Duration,
    ) -> Result<Reply, Trouble> {
        let sum = digest::base64(&digest::md5(&body));
        let mut headers = headers.to_vec();
        if !body.is_empty() {
            headers.push(("content-md5", &sum));
        }
        let payload = Payload::Bytes(&body);
        let parts = self.head(method, query, &headers, payload)?;
        checked(self.outbound.ask(&self.remote.endpoint, parts, Body::whole(body.clone()).patient(patience)).await)
    }

    fn head(
        &self,
        method: Method,
        query: Pairs<'_>,
        headers: Pairs<'_>,
        payload: Payload<'_>,
    ) -> Result<http::request::Parts, Trouble> {
        let (bucket, key) = (&self.carried.rule.to.bucket, &self.carried.entry.key);
        let parts = self.remote.s3.request(method, bucket, Some(key), query, headers, payload, self.core.now());
        parts.map_err(Trouble::Refused)
    }

    /// Sends a run of the version's bytes.
    async fn send(
        &self,
        query: Pairs<'_>,
        headers: Pairs<'_>,
        source: (&Option<Secret>, Option<&Manifest>),
        span: std::ops::Range<u64>,
    ) -> Result<Reply, Trouble> {
        let parts = self.head(Method::PUT, query, headers, Payload::Unsigned)?;
        let pieces = pieces(self.carried.object, source.0.as_ref(), source.1, &span);
        let opened = body::open(self.core, pieces, self.carried.place()).await?;
        let mut outgoing = opened.map_err(|body::Gone| Trouble::Away("the version went away".into()))?;
        let (mut sender, body) = Body::pieces(span.end - span.start);
        let feed = async move {
            while let Some(piece) = outgoing.next().await {
                let broken = piece.as_ref().err().map(ToString::to_string);
                // Whoever reads is gone once the request has failed.
                if sender.send(piece.map_err(|_| Broken)).await.is_err() || broken.is_some() {
                    return broken;
                }
            }
            None
        };
        let asked = self.outbound.ask(&self.remote.endpoint, parts, body);
        // Either may end first: the data that cannot be read, the server that answers before it has taken it all.
        match select(pin!(feed), pin!(asked)).await {
            Either::Left((Some(error), _)) => Err(Trouble::Refused(format!("the version cannot be read: {error}"))),
            Either::Left((None, asked)) => checked(asked.await),
            Either::Right((reply, _)) => checked(reply),
        }
    }

    /// True where the version is there: its answer may have been lost.
    async fn is_there(&self) -> Result<bool, Trouble> {
        let (id, object) = (self.carried.entry.version.to_hex(), self.carried.object);
        let same = |reply: &Reply| {
            let etag = reply.headers.get(http::header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let size =
                reply.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).unwrap_or_default();
            etag.trim_matches('"') == object.etag() && size == object.size.to_string()
        };
        match self.ask(Method::HEAD, &[("versionId", &id)], &[], Bytes::new()).await {
            Ok(reply) => {
                self.notice(&reply);
                Ok(!object.marker && same(&reply))
            }
            // 405: a delete marker. Without a body a refusal tells nothing more.
            Err(Trouble::Refused(why)) if why.starts_with("405") => Ok(object.marker),
            Err(Trouble::Refused(_)) if !self.carried.current || object.marker => Ok(false),
            Err(Trouble::Refused(_)) => match self.ask(Method::HEAD, &[], &[], Bytes::new()).await {
                Ok(reply) => Ok(same(&reply)),
                Err(Trouble::Refused(_)) => Ok(false),
                Err(away) => Err(away),
            },
            Err(away) => Err(away),
        }
    }

    /// Puts the version, its settings with it.
    async fn put(&self) -> Result<(), Trouble> {
        let object = self.carried.object;
        let key = self.core.object_key(self.carried.source.bucket(), object.sealed.as_ref(), None).await?;
        let headers = headers(self.carried, self.core.now());
        let mut headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let manifest = match object.data {
            Data::Manifest(id) => {
                let gone = || Trouble::Away("the version went away".into());
                Some(self.core.manifest(id).await?.ok_or_else(gone)?)
            }
            _ => None,
        };
        let Some(manifest) = manifest else {
            let md5 = digest::base64(&object.md5);
            headers.push(("content-md5", &md5));
            let sum = object.checksum.as_ref().and_then(sum_header).filter(|(name, _)| *name != DEFAULT_SUM);
            headers.extend(sum.as_ref().map(|(name, value)| (*name, value.as_str())));
            let reply = self.send(&[], &headers, (&key, None), 0..object.size).await?;
            self.notice(&reply);
            return Ok(());
        };
        let checksum = object.checksum.as_ref().filter(|c| c.algorithm != Algorithm::Crc64Nvme);
        if let Some(checksum) = checksum {
            headers.push(("x-amz-checksum-algorithm", checksum.algorithm.name()));
            headers.push(("x-amz-checksum-type", checksum.kind.name()));
        }
        let reply = self.ask(Method::POST, &[("uploads", "")], &headers, Bytes::new()).await?;
        let read = Element::parse(&reply.body, "InitiateMultipartUploadResult").ok();
        let id = read.as_ref().and_then(|e| e.text_of("UploadId")).map(str::to_owned);
        let id = id.ok_or_else(|| Trouble::Away("the remote began an upload without an id".into()))?;
        let outcome = self.parts(&id, &key, &manifest, checksum.is_some()).await;
        if outcome.is_err() {
            // The remote's lifecycle rules have to, where this does not get through.
            let _ = self.ask(Method::DELETE, &[("uploadId", &id)], &[], Bytes::new()).await;
        }
        outcome
    }

    async fn parts(&self, id: &str, key: &Option<Secret>, manifest: &Manifest, sums: bool) -> Result<(), Trouble> {
        let mut start = 0;
        let mut etags = Vec::with_capacity(manifest.parts.len());
        for part in &manifest.parts {
            let number = part.number.to_string();
            let md5 = digest::base64(&part.md5);
            let sum = part.checksum.as_ref().filter(|_| sums).and_then(sum_header);
            let mut headers = vec![("content-md5", md5.as_str())];
            headers.extend(sum.as_ref().map(|(name, value)| (*name, value.as_str())));
            let query = [("partNumber", number.as_str()), ("uploadId", id)];
            let reply = self.send(&query, &headers, (key, Some(manifest)), start..start + part.size).await?;
            let etag = reply.headers.get(http::header::ETAG).and_then(|v| v.to_str().ok());
            etags.push(etag.ok_or_else(|| Trouble::Away("the remote took a part without an ETag".into()))?.to_owned());
            start += part.size;
        }
        let document = complete(&manifest.parts, &etags, sums).into();
        let query = [("uploadId", id)];
        let completed = match self.ask_patiently(Method::POST, &query, &[], document, COMPLETING).await {
            // S3 may say 200 first and what went wrong then.
            Ok(reply) if Element::parse(&reply.body, "Error").is_ok() => {
                Err(judged(StatusCode::INTERNAL_SERVER_ERROR, &reply))
            }
            other => other,
        };
        match completed {
            Ok(reply) => self.notice(&reply),
            // It may have been completed all the same; sending all of it again would end no better.
            Err(Trouble::Later(_)) if matches!(self.is_there().await, Ok(true)) => {}
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }

    /// Brings the replica's tags, retention and hold to those of its version. Lists name accounts, which are others there.
    async fn settings(&self) -> Result<(), Trouble> {
        let object = self.carried.object;
        let id = self.carried.entry.version.to_hex();
        let tags = Out::document("Tagging", |out| {
            out.element("TagSet", |out| {
                for (name, value) in &object.tags.0 {
                    out.element("Tag", |out| {
                        out.text("Key", name);
                        out.text("Value", value);
                    });
                }
            });
        });
        let mut documents = vec![("tagging", tags)];
        if let Some(retention) = object.lock.retention.filter(|retention| retention.until > self.core.now()) {
            let text = Out::document("Retention", |out| {
                out.text("Mode", retention.mode.name());
                out.text("RetainUntilDate", &rfc3339(retention.until));
            });
            documents.push(("retention", text));
        }
        if let Some(hold) = object.lock.hold {
            let text = Out::document("LegalHold", |out| out.text("Status", if hold { "ON" } else { "OFF" }));
            documents.push(("legal-hold", text));
        }
        for (name, document) in documents {
            let named = [(name, ""), ("versionId", id.as_str())];
            match self.ask(Method::PUT, &named, &[], document.clone().into()).await {
                Ok(_) => {}
                // A remote with ids of its own: what it calls current is this one, if it is current here.
                Err(Trouble::Refused(_)) if self.carried.current => {
                    self.ask(Method::PUT, &named[..1], &[], document.into()).await?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether versioning is enabled, by the answer to GetBucketVersioning. Where it is not, or that is not known, nothing may go to
/// the destination until somebody has mended it: that is no fault of the one change.
fn enabled(bucket: &str, reply: Result<Reply, Trouble>) -> Result<(), Trouble> {
    let away =
        |why: &str| Trouble::Away(format!("versioning must be enabled on the remote's bucket {bucket:?}, and {why}"));
    match reply {
        Ok(reply) => match Element::parse(&reply.body, "VersioningConfiguration") {
            Ok(e) if e.text_of("Status") == Some("Enabled") => Ok(()),
            Ok(_) => Err(away("it is not")),
            Err(_) => Err(away("what the remote says of it is not understood")),
        },
        Err(Trouble::Refused(why)) => Err(away(&format!("whether it is the remote does not say: {why}"))),
        Err(other) => Err(other),
    }
}

/// All that is understood of a remote's answer, whatever it answers; for [`crate::fuzz`].
pub(crate) fn understood(reply: Reply) {
    let (again, whole) = (reply.clone(), Element::parse(&reply.body, "Error").is_ok());
    let trouble = checked(Ok(again));
    assert!(trouble.is_ok() == reply.status.is_success());
    if enabled("b", trouble).is_ok() {
        assert!(!whole, "an error says that nothing is enabled");
    }
    let _ = judged(reply.status, &reply);
}

/// The answer, if it is one of success.
fn checked(reply: Result<Reply, Unanswered>) -> Result<Reply, Trouble> {
    let reply = reply.map_err(|e| if e.connected { Trouble::Later(e.why) } else { Trouble::Away(e.why) })?;
    if reply.status.is_success() { Ok(reply) } else { Err(judged(reply.status, &reply)) }
}

/// What an answer means that is not one of success, as if it had this status.
fn judged(status: StatusCode, reply: &Reply) -> Trouble {
    /// What is not about the one object: the whole destination is not as it must be.
    const OF_ALL: [&str; 7] = [
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "RequestTimeTooSkewed",
        "ExpiredToken",
        "InvalidToken",
        "NoSuchBucket",
        "AuthorizationHeaderMalformed",
    ];
    let error = Element::parse(&reply.body, "Error").ok();
    let part = |name| error.as_ref().and_then(|e: &Element| e.text_of(name)).unwrap_or_default();
    let (code, message) = (part("Code"), part("Message"));
    let message = &message[..message.floor_char_boundary(200)];
    let text = format!("{} {code} {message}", reply.status.as_u16()).trim_end().to_owned();
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    match status {
        _ if OF_ALL.contains(&code) => Trouble::Away(text),
        // The body broke off on our side, or on the way.
        _ if ["IncompleteBody", "RequestTimeout"].contains(&code) => Trouble::Later(text),
        StatusCode::INTERNAL_SERVER_ERROR => Trouble::Later(text),
        StatusCode::NOT_IMPLEMENTED => Trouble::Refused(text),
        status if status.is_client_error() && !passing => Trouble::Refused(text),
        _ => Trouble::Away(text),
    }
}

fn rfc3339(at: UnixMicros) -> String {
    OffsetDateTime::from(at.system()).format(&Rfc3339).unwrap_or_default()
}

/// The header of a whole object's or a part's checksum.
fn sum_header(checksum: &Checksum) -> Option<(&'static str, String)> {
    Some((checksum.algorithm.header(), digest::base64(&checksum.value)))
}

/// A header's value, encoded as RFC 2047 says where it is not plain.
fn plain(value: &str) -> String {
    if value.bytes().all(|b| (0x20..0x7F).contains(&b)) {
        return value.to_owned();
    }
    format!("=?UTF-8?B?{}?=", digest::base64(value.as_bytes()))
}

/// The headers that a version comes with.
fn headers(carried: &Carried<'_>, now: UnixMicros) -> Vec<(String, String)> {
    let object: &Object = carried.object;
    let h = &object.headers;
    let mut out = vec![(REPLICA.to_owned(), carried.entry.version.to_hex())];
    let mut add = |name: &str, value: Option<String>| out.extend(value.map(|value| (name.to_owned(), value)));
    add("content-type", h.content_type.clone());
    add("cache-control", h.cache_control.clone());
    add("content-disposition", h.content_disposition.clone());
    add("content-encoding", h.content_encoding.clone());
    add("content-language", h.content_language.clone());
    add("expires", h.expires.and_then(http_date).and_then(|v| v.to_str().ok().map(str::to_owned)));
    add("x-amz-website-redirect-location", h.website_redirect.clone());
    add("x-amz-storage-class", carried.rule.to.storage_class.clone().or_else(|| h.storage_class.clone()));
    for (name, value) in &h.user {
        add(&format!("x-amz-meta-{name}"), Some(plain(value)));
    }
    let mut tags = String::new();
    for (name, value) in &object.tags.0 {
        let encode = |text: &str| uri_encode(text.as_bytes(), false);
        let _ = write!(tags, "{}{}={}", if tags.is_empty() { "" } else { "&" }, encode(name), encode(value));
    }
    add("x-amz-tagging", Some(tags).filter(|tags| !tags.is_empty()));
    // One that is over would be refused.
    if let Some(retention) = object.lock.retention.filter(|retention| retention.until > now) {
        add("x-amz-object-lock-mode", Some(retention.mode.name().to_owned()));
        add("x-amz-object-lock-retain-until-date", Some(rfc3339(retention.until)));
    }
    add("x-amz-object-lock-legal-hold", object.lock.hold.map(|on| if on { "ON" } else { "OFF" }.to_owned()));
    match object.sealed.as_ref().map(|sealed| &sealed.holder) {
        None | Some(Holder::Customer) => {}
        Some(Holder::Walrus) => add("x-amz-server-side-encryption", Some("AES256".into())),
        Some(Holder::Service(id)) => {
            add("x-amz-server-side-encryption", Some("aws:kms".into()));
            add(
                "x-amz-server-side-encryption-aws-kms-key-id",
                Some(carried.rule.kms_key.clone().unwrap_or_else(|| id.clone())),
            );
        }
    }
    out
}

/// The document that completes an upload.
fn complete(parts: &[Part], etags: &[String], sums: bool) -> String {
    Out::document("CompleteMultipartUpload", |out| {
        for (part, etag) in parts.iter().zip(etags) {
            out.element("Part", |out| {
                out.text("PartNumber", &part.number.to_string());
                out.text("ETag", etag);
                if let Some(sum) = part.checksum.as_ref().filter(|_| sums) {
                    out.text(&format!("Checksum{}", sum.algorithm.name()), &digest::base64(&sum.value));
                }
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let check = |status: u16, code: &str, want: Option<char>| {
            // What a message or a key says is no code.
            let message = "the key NoSuchBucket of SignatureDoesNotMatch: IncompleteBody";
            let body = Bytes::from(format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"));
            let status = StatusCode::from_u16(status).unwrap();
            let got = checked(Ok(Reply { status, headers: http::HeaderMap::new(), body }));
            let got = got.err().map(|e| match e {
                Trouble::Away(_) => 'a',
                Trouble::Later(_) => 'l',
                Trouble::Refused(_) => 'r',
            });
            assert_eq!(got, want, "{status} {code}");
        };
        check(200, "", None);
        check(204, "", None);
        check(403, "AccessDenied", Some('r'));
        check(400, "InvalidStorageClass", Some('r'));
        check(501, "NotImplemented", Some('r'));
        check(403, "SignatureDoesNotMatch", Some('a'));
        check(404, "NoSuchBucket", Some('a'));
        check(429, "", Some('a'));
        check(503, "SlowDown", Some('a'));
        check(301, "PermanentRedirect", Some('a'));
        check(400, "IncompleteBody", Some('l'));
        check(500, "InternalError", Some('l'));
        for (connected, away) in [(false, true), (true, false)] {
            let got = checked(Err(Unanswered { connected, why: "gone".into() }));
            assert_eq!(matches!(got, Err(Trouble::Away(_))), away);
        }
    }

    #[test]
    fn a_bucket_that_keeps_no_versions_is_away() {
        let status = |status: &str| format!("<VersioningConfiguration>{status}</VersioningConfiguration>");
        let denied = "<Error><Code>AccessDenied</Code></Error>".to_owned();
        for (code, body, want) in [
            (200, status("<Status>Enabled</Status>"), true),
            (200, status("<Status>Suspended</Status>"), false),
            (200, status(""), false),
            (200, "<html/>".into(), false),
            (403, denied, false),
            (501, String::new(), false),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            let reply = Reply { status, headers: http::HeaderMap::new(), body: body.clone().into() };
            match enabled("b", checked(Ok(reply))) {
                Ok(()) => assert!(want, "{body}"),
                Err(trouble) => assert!(!want && matches!(trouble, Trouble::Away(_)), "{body}: {trouble:?}"),
            }
        }
    }

    #[test]
    fn what_goes_wrong_after_a_200_is_about_the_one_object() {
        for (code, away) in [("InternalError", false), ("InvalidPart", false), ("NoSuchBucket", true)] {
            let body = Bytes::from(format!("<Error><Code>{code}</Code></Error>"));
            let reply = Reply { status: StatusCode::OK, headers: http::HeaderMap::new(), body };
            let trouble = judged(StatusCode::INTERNAL_SERVER_ERROR, &reply);
            assert_eq!(matches!(trouble, Trouble::Away(_)), away, "{code}");
        }
    }

    #[test]
    fn whether_a_bucket_keeps_versions_is_believed_for_a_while() {
        let key = karri_base::config::AccessKey { access_key_id: "A".into(), secret_access_key: "s".into() };
        let s3 = S3::new("http://127.0.0.1:1", key, "us-east-1").unwrap();
        let remote = Remote::new(s3, Endpoint::new(&"http://127.0.0.1:1".parse().unwrap(), None).unwrap(), vec![]);
        let at = |seconds: u64| UnixMicros(1_700_000_000_000_000 + seconds * 1_000_000);
        assert!(!remote.is_versioned("b", at(0)));
        remote.set_versioned("b", Some(at(10)));
        let believed = [10, 69, 70, 9].map(|seconds| remote.is_versioned("b", at(seconds)));
        assert_eq!(believed, [true, true, false, false]);
        remote.set_versioned("b", None);
        assert!(!remote.is_versioned("b", at(10)));
        (0..=VERSIONED_MAX).for_each(|n| remote.set_versioned(&n.to_string(), Some(at(0))));
        assert!(remote.versioned().len() <= VERSIONED_MAX);
    }

    #[test]
    fn values_travel_in_headers() {
        assert_eq!(plain("a b"), "a b");
        assert_eq!(plain("gr\u{fc}n"), "=?UTF-8?B?Z3LDvG4=?=");
    }
}
