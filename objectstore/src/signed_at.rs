//! When a request says that it was signed, as far as `s3s` does not look: Signature Version 2 is good for 15 minutes, and
//! Version 4 may say its moment by `Date` instead of `x-amz-date`. Pure.

use http::header::{AUTHORIZATION, DATE};
use http::{HeaderMap, HeaderName, HeaderValue};
use karri_base::clock::UnixMicros;
use time::format_description::well_known::Rfc2822;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::error::{Error, Kind, Result};

/// How far clocks may differ, in seconds.
const SKEW: i64 = 15 * 60;
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// As HTTP writes it, or `20261122T180000Z`.
fn moment(text: &str) -> Option<OffsetDateTime> {
    let compact = format_description!("[year][month][day]T[hour][minute][second]Z");
    if let Ok(at) = PrimitiveDateTime::parse(text.trim(), compact) {
        return Some(at.assume_utc());
    }
    // The day's name adds nothing, and some have it wrong.
    let rest = text.split_once(',').map_or(text, |(_, rest)| rest);
    OffsetDateTime::parse(rest.trim(), &Rfc2822).ok()
}

/// Checks the date of a request that Signature Version 2 signs in its headers; others pass.
///
/// # Errors
/// `AccessDenied` for one without a date, `RequestTimeTooSkewed`.
pub fn check(headers: &HeaderMap, now: UnixMicros) -> Result<()> {
    if !text(headers, AUTHORIZATION).is_some_and(|a| a.starts_with("AWS ")) {
        return Ok(());
    }
    let said = headers.get(AMZ_DATE).or_else(|| headers.get(DATE)).and_then(|v| v.to_str().ok()).and_then(moment);
    let Some(said) = said.map(OffsetDateTime::unix_timestamp).filter(|at| *at >= 0) else {
        return Err(Error::new(Kind::AccessDenied, "AWS authentication requires a valid Date or x-amz-date header."));
    };
    match i64::try_from(now.secs()).unwrap_or(i64::MAX).abs_diff(said) <= SKEW as u64 {
        true => Ok(()),
        false => Err(Kind::RequestTimeTooSkewed.into()),
    }
}

/// When a request says that it was signed, in its headers or its query.
pub fn moment_of(headers: &HeaderMap, query: &[(String, String)]) -> Option<UnixMicros> {
    let in_query = query.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-amz-date")).map(|(_, at)| at.as_str());
    let said = match text(headers, AUTHORIZATION) {
        Some(_) => text(headers, AMZ_DATE).or_else(|| text(headers, DATE)),
        None => in_query,
    };
    let at = said.and_then(moment)?.unix_timestamp_nanos() / 1000;
    u64::try_from(at).ok().map(UnixMicros)
}

/// Gives a request of Signature Version 4 that has only a `Date` its `x-amz-date`, where `s3s` looks.
pub fn complete(headers: &mut HeaderMap) {
    if headers.contains_key(AMZ_DATE) || !text(headers, AUTHORIZATION).is_some_and(|a| a.starts_with("AWS4-")) {
        return;
    }
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = text(headers, DATE).and_then(moment).map(|at| at.to_offset(time::UtcOffset::UTC));
    let value = at.and_then(|at| HeaderValue::try_from(at.format(format).ok()?).ok());
    if let Some(value) = value {
        headers.insert(AMZ_DATE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMicros = UnixMicros(1_795_370_400_000_000);

    fn headers(authorization: &str, rest: &[(HeaderName, &str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        all.insert(AUTHORIZATION, authorization.parse().unwrap());
        all.extend(rest.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())));
        all
    }

    #[test]
    fn version_2_has_a_date() {
        let at = |said: &str| (AMZ_DATE, said.to_owned());
        let of = |said: &str| (DATE, said.to_owned());
        let code = |dates: &[(HeaderName, String)]| {
            let dates: Vec<_> = dates.iter().map(|(n, v)| (n.clone(), v.as_str())).collect();
            check(&headers("AWS AK:sig", &dates), NOW).err().map(|e| e.kind)
        };
        for good in [
            "Sun, 22 Nov 2026 18:00:00 GMT",
            "Mon, 22 Nov 2026 18:14:59 +0000",
            "Sun, 22 Nov 2026 19:45:01 +0200",
            "22 Nov 2026 18:00:00 GMT",
            "20261122T180000Z",
        ] {
            assert_eq!(code(&[at(good)]), None, "{good}");
            assert_eq!(code(&[of(good)]), None, "{good}");
        }
        let now = of("Sun, 22 Nov 2026 18:00:00 GMT");
        for (said, want) in [
            ("Bad Date", Kind::AccessDenied),
            ("", Kind::AccessDenied),
            ("Tue, 07 Jul 1950 21:53:04 GMT", Kind::AccessDenied),
            ("Tue, 07 Jul 2010 21:53:04 GMT", Kind::RequestTimeTooSkewed),
            ("Tue, 07 Jul 9999 21:53:04 GMT", Kind::RequestTimeTooSkewed),
            ("Sun, 22 Nov 2026 18:15:01 GMT", Kind::RequestTimeTooSkewed),
        ] {
            assert_eq!(code(&[at(said), now.clone()]), Some(want), "{said}");
        }
        assert_eq!(code(&[]), Some(Kind::AccessDenied));
        assert_eq!(check(&headers("AWS4-HMAC-SHA256 x", &[]), NOW).err().map(|e| e.kind), None);
    }

    #[test]
    fn moments() {
        let at = |headers: &HeaderMap, query: &[(String, String)]| moment_of(headers, query).map(|at| at.0 / 1_000_000);
        let dated = [(AMZ_DATE, "20261122T180000Z")];
        assert_eq!(at(&headers("AWS4-HMAC-SHA256 x", &dated), &[]), Some(1_795_370_400));
        assert_eq!(at(&headers("AWS k:x", &[(DATE, "Sun, 22 Nov 2026 18:00:00 GMT")]), &[]), Some(1_795_370_400));
        let query = [("X-Amz-Date".to_owned(), "20261122T180000Z".to_owned())];
        assert_eq!(at(&HeaderMap::new(), &query), Some(1_795_370_400));
        assert_eq!(at(&HeaderMap::from_iter(dated.map(|(n, v)| (n, v.parse().unwrap()))), &[]), None, "not signed");
    }

    #[test]
    fn version_4_by_date() {
        let completed = |authorization: &str, dates: &[(HeaderName, &str)]| {
            let mut all = headers(authorization, dates);
            complete(&mut all);
            text(&all, AMZ_DATE).map(str::to_owned)
        };
        let date = (DATE, "Sun, 22 Nov 2026 20:00:00 +0200");
        assert_eq!(completed("AWS4-HMAC-SHA256 x", std::slice::from_ref(&date)).as_deref(), Some("20261122T180000Z"));
        assert_eq!(completed("AWS4-HMAC-SHA256 x", &[date.clone(), (AMZ_DATE, "z")]).as_deref(), Some("z"));
        assert_eq!(completed("AWS4-HMAC-SHA256 x", &[(DATE, "soon")]), None);
        assert_eq!(completed("AWS AK:x", &[date]), None);
    }
}
