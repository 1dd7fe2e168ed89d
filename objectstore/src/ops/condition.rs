//! If-Match and its relatives: RFC 9110 section 13 for reading, S3's rules for writing.

use http::{HeaderMap, HeaderValue};
use s3s::dto::{ETagCondition, Timestamp, TimestampFormat};
use time::OffsetDateTime;

use crate::error::{Error, Kind, Result};
use crate::record::Object;

/// Conditions on reading (also a copy's source).
#[derive(Debug, Default, Clone)]
pub struct ReadConditions {
    /// If-Match.
    pub matches: Option<ETagCondition>,
    /// If-None-Match.
    pub none_match: Option<ETagCondition>,
    /// If-Modified-Since.
    pub modified_since: Option<Timestamp>,
    /// If-Unmodified-Since.
    pub unmodified_since: Option<Timestamp>,
}

impl ReadConditions {
    /// Judges an object. `copying`: a failed If-None-Match is then 412, not 304.
    pub fn check(&self, object: &Object, copying: bool) -> Result<()> {
        let modified = object.modified.secs() as i64;
        let etag = object.etag();
        match (&self.matches, &self.unmodified_since) {
            (Some(c), _) if !matches(c, &etag) => return Err(Kind::PreconditionFailed.into()),
            (None, Some(since)) if modified > seconds(since) => return Err(Kind::PreconditionFailed.into()),
            _ => {}
        }
        let unchanged = match (&self.none_match, &self.modified_since) {
            (Some(c), _) => matches(c, &etag),
            (None, Some(since)) => modified <= seconds(since),
            (None, None) => false,
        };
        if !unchanged {
            return Ok(());
        }
        if copying {
            return Err(Kind::PreconditionFailed.into());
        }
        let mut headers = HeaderMap::new();
        if let Ok(etag) = HeaderValue::try_from(format!("\"{etag}\"")) {
            headers.insert(http::header::ETAG, etag);
        }
        if let Some(date) = http_date(modified) {
            headers.insert(http::header::LAST_MODIFIED, date);
        }
        Err(Error { headers: Some(Box::new(headers)), ..Error::from(Kind::NotModified) })
    }
}

/// If-Range: the range counts only of the representation that the client has a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfRange {
    /// An ETag, without its quotes.
    Tag(String),
    /// Last-Modified, in seconds.
    Modified(i64),
    /// A weak ETag, or what is neither: of no representation.
    Never,
}

impl IfRange {
    /// Of a request's headers.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(http::header::IF_RANGE)?.to_str().unwrap_or_default();
        let tag = text.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        Some(match (tag, Timestamp::parse(TimestampFormat::HttpDate, text)) {
            (Some(tag), _) => Self::Tag(tag.to_owned()),
            (None, Ok(date)) => Self::Modified(seconds(&date)),
            (None, Err(_)) => Self::Never,
        })
    }

    /// True where it names this object as it is.
    pub fn holds(&self, object: &Object) -> bool {
        match self {
            Self::Tag(tag) => *tag == object.etag(),
            Self::Modified(at) => *at == object.modified.secs() as i64,
            Self::Never => false,
        }
    }
}

/// Conditions on replacing or deleting an object, judged on the record that the commit checks.
#[derive(Debug, Default, Clone)]
pub struct WriteConditions {
    /// If-Match.
    pub matches: Option<ETagCondition>,
    /// If-None-Match.
    pub none_match: Option<ETagCondition>,
    /// x-amz-if-match-size (DELETE).
    pub size: Option<i64>,
    /// x-amz-if-match-last-modified-time (DELETE).
    pub modified: Option<Timestamp>,
}

impl WriteConditions {
    /// If-Match and If-None-Match of a PUT, COPY or Complete.
    pub fn new(matches: Option<ETagCondition>, none_match: Option<ETagCondition>) -> Self {
        Self { matches, none_match, size: None, modified: None }
    }

    /// If-Match and If-None-Match on a copy's target, which `s3s` does not read for CopyObject.
    pub fn of_copy(headers: &HeaderMap) -> Result<Self> {
        let read = |name: http::HeaderName| match headers.get(&name) {
            None => Ok(None),
            Some(value) => ETagCondition::parse_http_header(value.as_bytes())
                .map(Some)
                .map_err(|_| Error::new(Kind::InvalidArgument, format!("The header {name} cannot be read."))),
        };
        Ok(Self::new(read(http::header::IF_MATCH)?, read(http::header::IF_NONE_MATCH)?))
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.matches.is_none() && self.none_match.is_none() && self.size.is_none() && self.modified.is_none()
    }

    /// Judges what is there now. A delete marker is nothing, except to a DELETE, which passes it all the same.
    pub fn check(&self, current: Option<&Object>) -> Result<()> {
        if let (Some(c), Some(object)) = (&self.none_match, current)
            && matches(c, &object.etag())
        {
            return Err(Kind::PreconditionFailed.into());
        }
        let wanted = self.matches.is_some() || self.size.is_some() || self.modified.is_some();
        let Some(object) = current else {
            return if wanted { Err(Kind::NoSuchKey.into()) } else { Ok(()) };
        };
        let etag_differs = self.matches.as_ref().is_some_and(|c| !matches(c, &object.etag()));
        let size_differs = self.size.is_some_and(|s| u64::try_from(s) != Ok(object.size));
        let time_differs = self.modified.as_ref().is_some_and(|t| seconds(t) != object.modified.secs() as i64);
        if etag_differs || size_differs || time_differs {
            return Err(Kind::PreconditionFailed.into());
        }
        Ok(())
    }
}

/// True when a condition names this ETag. A list of several arrives from `s3s` as one text.
fn matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value().split(',').any(|t| t.trim().trim_matches('"') == etag),
    }
}

fn seconds(t: &Timestamp) -> i64 {
    OffsetDateTime::from(t.clone()).unix_timestamp()
}

/// An HTTP date.
pub fn http_date(secs: i64) -> Option<HeaderValue> {
    use time::macros::format_description;
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let text = OffsetDateTime::from_unix_timestamp(secs).ok()?.format(format).ok()?;
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use karri_base::clock::UnixMicros;

    use super::*;

    fn object() -> Object {
        Object { size: 3, modified: UnixMicros(1_000_000_900_000), md5: [0xAB; 16], ..Object::default() }
    }
    fn tag(text: &str) -> Option<ETagCondition> {
        Some(ETagCondition::parse_http_header(text.as_bytes()).unwrap())
    }
    fn at(secs: i64) -> Option<Timestamp> {
        Some(OffsetDateTime::from_unix_timestamp(secs).unwrap().into())
    }

    #[test]
    fn reading() {
        let same = format!("\"{}\"", "ab".repeat(16));
        let check = |c: ReadConditions, want: Option<Kind>| {
            assert_eq!(c.check(&object(), false).err().map(|e| e.kind), want, "{c:?}");
        };
        let none = ReadConditions::default;
        check(none(), None);
        check(ReadConditions { matches: tag(&same), ..none() }, None);
        check(ReadConditions { matches: tag("*"), ..none() }, None);
        check(ReadConditions { matches: tag("\"other\""), ..none() }, Some(Kind::PreconditionFailed));
        check(ReadConditions { matches: tag(&format!("\"other\", {same}")), ..none() }, None);
        check(ReadConditions { none_match: tag(&same), ..none() }, Some(Kind::NotModified));
        check(ReadConditions { none_match: tag("\"other\""), ..none() }, None);
        // The object's time is 1,000,000.9 s: seconds count.
        check(ReadConditions { modified_since: at(1_000_000), ..none() }, Some(Kind::NotModified));
        check(ReadConditions { modified_since: at(999_999), ..none() }, None);
        check(ReadConditions { unmodified_since: at(1_000_000), ..none() }, None);
        check(ReadConditions { unmodified_since: at(999_999), ..none() }, Some(Kind::PreconditionFailed));
        // If-Match overrides If-Unmodified-Since, If-None-Match overrides If-Modified-Since.
        check(ReadConditions { matches: tag(&same), unmodified_since: at(1), ..none() }, None);
        check(ReadConditions { none_match: tag("\"x\""), modified_since: at(2_000_000), ..none() }, None);
    }

    #[test]
    fn writing() {
        let same = format!("\"{}\"", "ab".repeat(16));
        let check = |m: &str, n: &str, there: bool, want: Option<Kind>| {
            let parse = |t: &str| if t.is_empty() { None } else { tag(t) };
            let c = WriteConditions::new(parse(m), parse(n));
            let object = object();
            assert_eq!(c.check(there.then_some(&object)).err().map(|e| e.kind), want, "{m} {n} {there}");
        };
        check("", "", true, None);
        check("", "", false, None);
        check("", "*", false, None);
        check("", "*", true, Some(Kind::PreconditionFailed));
        check(&same, "", true, None);
        check("\"other\"", "", true, Some(Kind::PreconditionFailed));
        check(&same, "", false, Some(Kind::NoSuchKey));
        check("", &same, true, Some(Kind::PreconditionFailed));
        check("", &same, false, None);
        check("", "\"other\"", true, None);
    }
}
