//! RenameObject: another key for the same object, in one commit; no byte is moved.
//!
//! `s3s` does not know the operation, so its request is read here: `PUT /bucket/key?renameObject` with
//! `x-amz-rename-source`. As in S3 it is for buckets without versions.

use http::{HeaderMap, HeaderName, Uri};
use karri_base::aws::sigv4::parse_query;
use karri_bulk::BulkStore;
use karri_meta::MetaError;
use percent_encoding::percent_decode_str;
use s3s::dto::{ETagCondition, Timestamp, TimestampFormat};

use crate::access::actions::{DELETE_OBJECT, GET_OBJECT};
use crate::change::Change;
use crate::core::{Caller, CoreRef, RETRIES};
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::notify::Event;
use crate::ops::condition::ReadConditions;
use crate::ops::put::{Target, check_key, replace};
use crate::record::Versioning;

/// A request for it.
#[derive(Debug)]
pub struct Rename {
    bucket: String,
    from: String,
    to: String,
    source: ReadConditions,
    target: ReadConditions,
    absent: bool,
}

impl Rename {
    /// Reads the headers of a request for this bucket, to this key.
    pub fn parse(bucket: &str, to: &str, headers: &HeaderMap) -> Result<Self> {
        let (bucket, to) = (bucket.to_owned(), to.to_owned());
        let source = text(headers, "x-amz-rename-source")?
            .ok_or_else(|| Error::new(Kind::InvalidArgument, "The header x-amz-rename-source is missing."))?;
        // With its bucket, as S3 documents it, or the key alone, as its SDKs send it.
        let decoded = decode(source)?;
        let from = match decoded.strip_prefix('/') {
            Some(rest) => rest
                .strip_prefix(&format!("{bucket}/"))
                .ok_or_else(|| Error::new(Kind::InvalidRequest, "An object can only be renamed inside its bucket."))?,
            None => decoded.as_str(),
        };
        check_key(from)?;
        check_key(&to)?;
        let target = conditions(headers, "")?;
        let absent = target.none_match.as_ref().is_some_and(ETagCondition::is_any);
        let from = from.to_owned();
        Ok(Self { bucket, from, to, source: conditions(headers, "x-amz-rename-source-")?, target, absent })
    }
}

/// True for a request that means it.
pub fn is_meant(method: &http::Method, uri: &Uri) -> bool {
    *method == http::Method::PUT
        && parse_query(uri.query().unwrap_or_default()).iter().any(|(n, _)| n == "renameObject")
}

impl Rename {
    /// The key that the object has.
    pub fn from(&self) -> &str {
        &self.from
    }
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| Error::new(Kind::InvalidArgument, "The name is not UTF-8."))?.into_owned())
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>> {
    let value = headers.get(name).map(http::HeaderValue::to_str).transpose();
    value.map_err(|_| Error::new(Kind::InvalidArgument, format!("Header {name} is not plain text.")))
}

fn conditions(headers: &HeaderMap, prefix: &str) -> Result<ReadConditions> {
    let named =
        |rest: &str| HeaderName::try_from(format!("{prefix}{rest}")).map_err(|_| Error::from(Kind::InvalidArgument));
    let unreadable =
        |name: &HeaderName| Error::new(Kind::InvalidArgument, format!("The header {name} cannot be read."));
    let tag = |rest: &str| -> Result<Option<ETagCondition>> {
        let name = named(rest)?;
        let Some(value) = headers.get(&name) else { return Ok(None) };
        ETagCondition::parse_http_header(value.as_bytes()).map(Some).map_err(|_| unreadable(&name))
    };
    let time = |rest: &str| -> Result<Option<Timestamp>> {
        let name = named(rest)?;
        let Some(value) = text(headers, name.as_str())? else { return Ok(None) };
        Timestamp::parse(TimestampFormat::HttpDate, value).map(Some).map_err(|_| unreadable(&name))
    };
    Ok(ReadConditions {
        matches: tag("if-match")?,
        none_match: tag("if-none-match")?,
        modified_since: time("if-modified-since")?,
        unmodified_since: time("if-unmodified-since")?,
    })
}

/// RenameObject.
pub async fn rename_object<B: BulkStore>(core: &CoreRef<B>, caller: &Caller, asked: &Rename) -> Result<()> {
    let target = Target { caller, bucket: &asked.bucket, key: &asked.to, owner: None };
    for _ in 0..RETRIES {
        let bucket = core.bucket_to_fill(caller, &asked.bucket, None).await?;
        if bucket.value.versioning != Versioning::Never {
            return Err(Error::new(Kind::InvalidRequest, "Objects of a bucket with versions cannot be renamed."));
        }
        let source = core.object(bucket.value.id, &asked.from).await?.ok_or(Kind::NoSuchKey)?;
        // The one that is moved, which may be another than at the first look.
        for ask in [GET_OBJECT, DELETE_OBJECT] {
            core.may_seen(caller, ask, &asked.bucket, &asked.from, &source.value).await?;
        }
        asked.source.check(&source.value, true)?;
        let old = core.object(bucket.value.id, &asked.to).await?;
        match &old {
            Some(old) => asked.target.check(&old.value, true)?,
            None if asked.target.matches.is_some() => return Err(Kind::PreconditionFailed.into()),
            None => {}
        }
        if asked.absent && old.is_some() {
            return Err(Kind::PreconditionFailed.into());
        }
        if asked.from == asked.to {
            return Ok(());
        }
        let from = keys::object(bucket.value.id, asked.from.as_bytes());
        let batch = replace(&target, &bucket, old.as_ref()).check(from.clone(), Some(source.raw.clone())).del(from);
        let mut change = Change::from(batch);
        if let Some(old) = &old {
            core.retire(&mut change, &old.value).await?;
        }
        change.batch.puts.push((keys::object(bucket.value.id, asked.to.as_bytes()), source.raw));
        for (name, key) in [("ObjectRemoved:Delete", &asked.from), ("ObjectCreated:Copy", &asked.to)] {
            let event = Event { name, key, object: &source.value };
            core.tell(&mut change, caller, &asked.bucket, event).await?;
        }
        match core.apply(&bucket.value, change).await? {
            Ok(()) => return Ok(()),
            Err(MetaError::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Kind::ConditionalRequestConflict.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::{Domains, Place};

    #[test]
    fn requests() {
        let check = |uri: &str, source: &str, want: Result<(&str, &str, &str), Kind>| {
            let uri: Uri = uri.parse().unwrap();
            assert!(is_meant(&http::Method::PUT, &uri), "{uri}");
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-rename-source", source.parse().unwrap());
            let (head, ()) = http::Request::builder().uri(&uri).body(()).unwrap().into_parts();
            let place = Place::of(&Domains::default(), &head);
            let (bucket, to) = (place.bucket().unwrap(), place.key().unwrap());
            let got = Rename::parse(bucket, to, &headers).map_err(|e| e.kind);
            let got = got.as_ref().map(|r| (r.bucket.as_str(), r.from.as_str(), r.to.as_str())).map_err(|k| *k);
            assert_eq!(got, want, "{uri} {source}");
        };
        check("/b/to?renameObject", "/b/from", Ok(("b", "from", "to")));
        check("/b/a%20b?renameObject=", "from/x%2Fy", Ok(("b", "from/x/y", "a b")));
        check("/b/to?renameObject", "/other/from", Err(Kind::InvalidRequest));
        check("/b/to?renameObject", "/b/", Err(Kind::InvalidArgument));
        assert!(!is_meant(&http::Method::GET, &"/b/k?renameObject".parse().unwrap()));
        assert!(!is_meant(&http::Method::PUT, &"/b/k?acl".parse().unwrap()));
    }
}
