//! Checks who sent a request to the Query APIs (EC2, STS, IAM, ...): SigV4 by header or query, SigV2 by parameters.
//!
//! Pure but for the key ring: the time is a parameter. Parsing is strict; signatures are compared in constant time. Any
//! region in the scope is accepted and handed back with the service, by which the endpoint routes.

use std::sync::Arc;

use http::header::{AUTHORIZATION, DATE, HOST};
use http::request::Parts;
use subtle::ConstantTimeEq;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::keys::{Key, KeyError, KeyRing, SignedIn};
use super::policy::Identity;
use super::sigv2;
use super::sigv4::{
    self, ALGORITHM, CanonicalRequest, EMPTY_SHA256, KeyCache, PRESIGN_SECONDS_MAX, Scope, UNSIGNED_PAYLOAD,
    X_AMZ_CONTENT_SHA256, X_AMZ_DATE, X_AMZ_SECURITY_TOKEN, canonical_headers, canonical_query, parse_query,
    sha256_hex,
};
use crate::clock::UnixMicros;

/// How far a client's clock may be off, in seconds.
pub const SKEW_SECONDS_MAX: u64 = 15 * 60;

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It carries no signature at all.
    #[error("the request carries no signature")]
    Missing,
    /// Its signature's form is wrong.
    #[error("{0}")]
    Incomplete(String),
    /// No such key, or no longer.
    #[error("access key {access_key_id:?} is not known here")]
    UnknownKey {
        /// The key's id as sent.
        access_key_id: String,
    },
    /// The session token is missing, or not this key's.
    #[error("the security token included in the request is invalid")]
    BadToken,
    /// The session is over.
    #[error("the security token included in the request is expired")]
    ExpiredToken,
    /// The signature is another one: a wrong secret, or the request was changed on its way.
    #[error("the signature does not match: check the secret key and the signing method")]
    Mismatch,
    /// Signed too long ago, or by a clock that is off.
    #[error("{0}")]
    Expired(String),
    /// The scope does not belong to the request.
    #[error("{0}")]
    WrongScope(String),
}

impl AuthError {
    /// AWS's error code, as `service` words it. EC2 does not tell an unknown key from a wrong secret.
    pub fn code(&self, service: &str) -> &'static str {
        match (self, service) {
            (Self::UnknownKey { .. } | Self::Mismatch | Self::BadToken, "ec2") => "AuthFailure",
            (Self::ExpiredToken, "ec2") => "RequestExpired",
            (Self::ExpiredToken, _) => "ExpiredToken",
            (Self::Missing, _) => "MissingAuthenticationToken",
            (Self::Incomplete(_), _) => "IncompleteSignature",
            (Self::UnknownKey { .. } | Self::BadToken, _) => "InvalidClientTokenId",
            (Self::Mismatch | Self::WrongScope(_), _) => "SignatureDoesNotMatch",
            (Self::Expired(_), _) => "RequestExpired",
        }
    }

    /// The HTTP status that goes with [`AuthError::code`].
    pub fn status(&self, service: &str) -> u16 {
        match (self, service) {
            (Self::UnknownKey { .. } | Self::Mismatch | Self::BadToken, "ec2") => 401,
            (Self::Incomplete(_) | Self::Expired(_), _) | (Self::ExpiredToken, "ec2") => 400,
            _ => 403,
        }
    }

    /// What the client is told.
    pub fn message(&self, service: &str) -> String {
        match (self, service) {
            (Self::Missing, _) => "Request is missing Authentication Token".into(),
            (Self::UnknownKey { .. } | Self::Mismatch | Self::BadToken, "ec2") => {
                "AWS was not able to validate the provided access credentials".into()
            }
            (Self::UnknownKey { .. } | Self::BadToken, _) => {
                "The security token included in the request is invalid.".into()
            }
            (Self::ExpiredToken, _) => "The security token included in the request is expired".into(),
            (Self::Mismatch, _) => "The request signature we calculated does not match the signature you provided. \
                                    Check your AWS Secret Access Key and signing method."
                .into(),
            _ => self.to_string(),
        }
    }
}

/// A request whose sender is known.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The key that signed it.
    pub key: Arc<Key>,
    /// Who that is, and what limits them.
    pub identity: Arc<Identity>,
    /// The scope's region, as the client wrote it; empty for SigV2.
    pub region: String,
    /// The scope's service; empty for SigV2, which has no scope.
    pub service: String,
    /// When it was signed.
    pub signed_at: UnixMicros,
}

/// Checks requests against a [`KeyRing`].
pub struct Verifier {
    keys: KeyRing,
    cache: KeyCache,
}

impl Verifier {
    /// Believes the holders of these keys.
    pub fn new(keys: KeyRing) -> Self {
        Self { keys, cache: KeyCache::default() }
    }

    /// Checks a whole request; `body` is all of it.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub fn verify(&self, parts: &Parts, body: &[u8], now: UnixMicros) -> Result<Verified, AuthError> {
        let query = parse_query(parts.uri.query().unwrap_or(""));
        if let Some(authorization) = parts.headers.get(AUTHORIZATION) {
            let text = authorization.to_str().map_err(|_| incomplete("Authorization header is not ASCII text"))?;
            return self.by_header(&HeaderAuth::parse(text)?, parts, &query, body, now);
        }
        if has(&query, "X-Amz-Algorithm") {
            return self.by_query(&QueryAuth::parse(&query)?, parts, &query, body, now);
        }
        // Version 2 signs the query of a GET or the form of a POST; what came in the other place nobody signed.
        let both =
            || incomplete("a Signature Version 2 request has its parameters in the query or in the form, not in both");
        if has(&query, "Signature") || has(&query, "AWSAccessKeyId") {
            return if body.is_empty() { self.by_v2(parts, &query, now) } else { Err(both()) };
        }
        if is_form(parts) {
            let form = parse_query(&String::from_utf8_lossy(body));
            if has(&form, "Signature") || has(&form, "AWSAccessKeyId") {
                return if query.is_empty() { self.by_v2(parts, &form, now) } else { Err(both()) };
            }
        }
        Err(AuthError::Missing)
    }

    fn by_header(
        &self,
        auth: &HeaderAuth<'_>,
        parts: &Parts,
        query: &[(String, String)],
        body: &[u8],
        now: UnixMicros,
    ) -> Result<Verified, AuthError> {
        let Credential { access_key_id, scope } = auth.credential;
        let signed = |name: &str| auth.signed_headers.split(';').any(|n| n == name);
        let (signed_at, date_header) = request_time(parts)?;
        if !signed(date_header) {
            return Err(incomplete(format!("the {date_header} header must be signed")));
        }
        let unsigned = |name: &&str| name.starts_with("x-amz-") && *name != "x-amz-user-agent" && !signed(name);
        if let Some(name) = parts.headers.keys().map(|name| name.as_str()).find(unsigned) {
            return Err(incomplete(format!("the {name} header is present but not signed")));
        }
        let time = sigv4::amz_date(signed_at);
        check_scope_date(&scope, &time)?;
        check_skew(signed_at, now)?;
        let token = parts.headers.get(X_AMZ_SECURITY_TOKEN).and_then(|value| value.to_str().ok());
        let token = token.or_else(|| first(query, "X-Amz-Security-Token"));
        let SignedIn { key, identity, .. } = self.sign_in(access_key_id, token, now)?;
        let hash = payload_hash(parts, body, scope.service)?;
        let headers = signed_headers(parts, auth.signed_headers)?;
        let request = CanonicalRequest {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: &canonical_query(query),
            headers: &headers,
            signed_headers: auth.signed_headers,
            payload_hash: &hash,
        };
        self.compare(&key, &request, &time, &scope, auth.signature)?;
        Ok(Verified { key, identity, region: scope.region.into(), service: scope.service.into(), signed_at })
    }

    fn by_query(
        &self,
        auth: &QueryAuth<'_>,
        parts: &Parts,
        query: &[(String, String)],
        body: &[u8],
        now: UnixMicros,
    ) -> Result<Verified, AuthError> {
        let Credential { access_key_id, scope } = auth.credential;
        check_scope_date(&scope, auth.time)?;
        if auth.signed_at.secs() > now.secs() + SKEW_SECONDS_MAX {
            return Err(AuthError::Expired(format!("Request is not yet valid: it is dated {}", auth.time)));
        }
        let end = auth.signed_at.secs() + auth.seconds;
        if now.secs() > end {
            return Err(AuthError::Expired(format!("Request has expired {} seconds ago", now.secs() - end)));
        }
        let token = first(query, "X-Amz-Security-Token");
        let SignedIn { key, identity, .. } = self.sign_in(access_key_id, token, now)?;
        let unsigned: Vec<_> = query.iter().filter(|(name, _)| name != "X-Amz-Signature").cloned().collect();
        let hash = match scope.service {
            "s3" => UNSIGNED_PAYLOAD.to_owned(),
            _ => sha256_hex(body),
        };
        let request = CanonicalRequest {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: &canonical_query(&unsigned),
            headers: &signed_headers(parts, auth.signed_headers)?,
            signed_headers: auth.signed_headers,
            payload_hash: &hash,
        };
        self.compare(&key, &request, auth.time, &scope, auth.signature)?;
        Ok(Verified {
            key,
            identity,
            region: scope.region.into(),
            service: scope.service.into(),
            signed_at: auth.signed_at,
        })
    }

    fn by_v2(&self, parts: &Parts, parameters: &[(String, String)], now: UnixMicros) -> Result<Verified, AuthError> {
        let version = one(parameters, "SignatureVersion")?;
        if version != "2" {
            return Err(incomplete(format!("SignatureVersion {version:?} is not served: use 2 or 4")));
        }
        let name = one(parameters, "SignatureMethod")?;
        let method = sigv2::Method::from_name(name)
            .ok_or_else(|| incomplete(format!("SignatureMethod {name:?}: want HmacSHA256 or HmacSHA1")))?;
        let signed_at = if has(parameters, "Expires") {
            let expires = parse_iso(one(parameters, "Expires")?, "Expires")?;
            if now > expires {
                return Err(AuthError::Expired(format!("Request has expired at {}", one(parameters, "Expires")?)));
            }
            now
        } else {
            let at = parse_iso(one(parameters, "Timestamp")?, "Timestamp")?;
            check_skew(at, now)?;
            at
        };
        let token = first(parameters, "SecurityToken");
        let SignedIn { key, identity, .. } = self.sign_in(one(parameters, "AWSAccessKeyId")?, token, now)?;
        let host = host(parts)?;
        let expected =
            sigv2::signature(method, &key.secret, parts.method.as_str(), &host, parts.uri.path(), parameters);
        let given = one(parameters, "Signature")?;
        if !bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
            return Err(AuthError::Mismatch);
        }
        Ok(Verified { key, identity, region: String::new(), service: String::new(), signed_at })
    }

    fn sign_in(&self, access_key_id: &str, token: Option<&str>, now: UnixMicros) -> Result<SignedIn, AuthError> {
        self.keys.sign_in(access_key_id, token, now).map_err(|e| match e {
            KeyError::Unknown => AuthError::UnknownKey { access_key_id: access_key_id.into() },
            KeyError::BadToken => AuthError::BadToken,
            KeyError::Expired => AuthError::ExpiredToken,
        })
    }

    fn compare(
        &self,
        key: &Key,
        request: &CanonicalRequest<'_>,
        time: &str,
        scope: &Scope<'_>,
        given: &str,
    ) -> Result<(), AuthError> {
        let signing_key = self.cache.get(&key.secret, scope);
        let expected = sigv4::signature(&signing_key, &request.string_to_sign(time, scope));
        match bool::from(expected.as_bytes().ct_eq(given.as_bytes())) {
            true => Ok(()),
            false => Err(AuthError::Mismatch),
        }
    }
}

/// The service in a request's credential scope, unchecked: which API's error codes to answer with.
pub fn claimed_service(parts: &Parts) -> Option<String> {
    if let Some(text) = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        return HeaderAuth::parse(text).ok().map(|auth| auth.credential.scope.service.to_owned());
    }
    let query = parse_query(parts.uri.query()?);
    let credential = query.iter().find(|(name, _)| name == "X-Amz-Credential")?;
    Credential::parse(&credential.1).ok().map(|credential| credential.scope.service.to_owned())
}

/// `AKID/20150830/us-east-1/ec2/aws4_request`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The key.
    pub access_key_id: &'a str,
    /// The rest.
    pub scope: Scope<'a>,
}

impl<'a> Credential<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// `Incomplete`.
    pub fn parse(text: &'a str) -> Result<Self, AuthError> {
        let wrong = || incomplete(format!("Credential {text:?}: want KEY/YYYYMMDD/REGION/SERVICE/aws4_request"));
        let mut parts = text.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or_else(wrong);
        let (access_key_id, date, region, service, end) = (next()?, next()?, next()?, next()?, next()?);
        let is_date = date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit());
        if !is_date || end != "aws4_request" || parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { access_key_id, scope: Scope { date, region, service } })
    }
}

/// The `Authorization` header of SigV4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderAuth<'a> {
    /// Who, when, where, what for.
    pub credential: Credential<'a>,
    /// Lower-case names, sorted, joined with `;`.
    pub signed_headers: &'a str,
    /// 64 lower-case hexadecimal digits.
    pub signature: &'a str,
}

impl<'a> HeaderAuth<'a> {
    /// Reads it: the algorithm, then each of the three parts once, in any order.
    ///
    /// # Errors
    /// `Incomplete`, naming what is wrong.
    pub fn parse(text: &'a str) -> Result<Self, AuthError> {
        let (algorithm, rest) = text.trim().split_once(' ').unwrap_or((text, ""));
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("Authorization header begins with {algorithm:?}, not {ALGORITHM}")));
        }
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=').unwrap_or((part.trim(), ""));
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(incomplete(format!("Authorization header has an unknown part {name:?}"))),
            };
            if place.replace(value).is_some() {
                return Err(incomplete(format!("Authorization header has {name} twice")));
            }
        }
        let need = |part: Option<&'a str>, name: &str| {
            part.ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        Ok(Self {
            credential: Credential::parse(need(credential, "Credential")?)?,
            signed_headers: check_signed_headers(need(signed_headers, "SignedHeaders")?)?,
            signature: check_signature(need(signature, "Signature")?)?,
        })
    }
}

/// The `X-Amz-*` parameters of a presigned request.
#[derive(Debug, Clone, Copy)]
pub struct QueryAuth<'a> {
    /// Who, when, where, what for.
    pub credential: Credential<'a>,
    /// As sent: `YYYYMMDDTHHMMSSZ`.
    pub time: &'a str,
    /// `time`, read.
    pub signed_at: UnixMicros,
    /// How long it is good.
    pub seconds: u64,
    /// Lower-case names, sorted, joined with `;`.
    pub signed_headers: &'a str,
    /// 64 lower-case hexadecimal digits.
    pub signature: &'a str,
}

impl<'a> QueryAuth<'a> {
    /// Reads them; each must be there once.
    ///
    /// # Errors
    /// `Incomplete`, naming what is wrong.
    pub fn parse(query: &'a [(String, String)]) -> Result<Self, AuthError> {
        let algorithm = one(query, "X-Amz-Algorithm")?;
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm is {algorithm:?}, not {ALGORITHM}")));
        }
        let expires = one(query, "X-Amz-Expires")?;
        let seconds =
            expires.parse().ok().filter(|s| (1..=PRESIGN_SECONDS_MAX).contains(s)).ok_or_else(|| {
                incomplete(format!("X-Amz-Expires {expires:?}: want 1 to {PRESIGN_SECONDS_MAX} seconds"))
            })?;
        let time = one(query, "X-Amz-Date")?;
        Ok(Self {
            credential: Credential::parse(one(query, "X-Amz-Credential")?)?,
            time,
            signed_at: parse_amz_date(time)
                .ok_or_else(|| incomplete(format!("X-Amz-Date {time:?}: want YYYYMMDDTHHMMSSZ")))?,
            seconds,
            signed_headers: check_signed_headers(one(query, "X-Amz-SignedHeaders")?)?,
            signature: check_signature(one(query, "X-Amz-Signature")?)?,
        })
    }
}

fn incomplete(why: impl Into<String>) -> AuthError {
    AuthError::Incomplete(why.into())
}

fn has(pairs: &[(String, String)], name: &str) -> bool {
    pairs.iter().any(|(n, _)| n == name)
}

/// The first value of a parameter.
fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// The value of a parameter that must be there exactly once.
fn one<'a>(pairs: &'a [(String, String)], name: &str) -> Result<&'a str, AuthError> {
    let mut values = pairs.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(incomplete(format!("the request must contain the parameter {name}"))),
        (Some(_), Some(_)) => Err(incomplete(format!("parameter {name} is given twice"))),
    }
}

fn check_signed_headers(names: &str) -> Result<&str, AuthError> {
    let lower =
        |name: &str| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase() || b.is_ascii_whitespace());
    if !names.split(';').all(lower) || !names.split(';').is_sorted_by(|a, b| a < b) {
        return Err(incomplete(format!("SignedHeaders {names:?}: want lower-case names, sorted, joined with ';'")));
    }
    if !names.split(';').any(|name| name == "host") {
        return Err(incomplete("the host header must be signed"));
    }
    Ok(names)
}

fn check_signature(text: &str) -> Result<&str, AuthError> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match text.len() == 64 && text.bytes().all(is_hex) {
        true => Ok(text),
        false => Err(incomplete("Signature: want 64 lower-case hexadecimal digits")),
    }
}

/// The time of signing and the header that says it.
fn request_time(parts: &Parts) -> Result<(UnixMicros, &'static str), AuthError> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or("").trim().to_owned();
    if let Some(value) = parts.headers.get(X_AMZ_DATE) {
        let value = text(value);
        let at = parse_amz_date(&value);
        return at
            .map(|at| (at, "x-amz-date"))
            .ok_or_else(|| incomplete(format!("X-Amz-Date {value:?}: want YYYYMMDDTHHMMSSZ")));
    }
    let Some(value) = parts.headers.get(DATE) else {
        return Err(incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."));
    };
    let value = text(value);
    let at = parse_amz_date(&value).or_else(|| parse_http_date(&value));
    at.map(|at| (at, "date")).ok_or_else(|| incomplete(format!("Date {value:?} is no date")))
}

fn check_scope_date(scope: &Scope<'_>, time: &str) -> Result<(), AuthError> {
    if time.starts_with(scope.date) {
        return Ok(());
    }
    Err(AuthError::WrongScope(format!(
        "Date in Credential scope ({}) does not match the request's ({time})",
        scope.date
    )))
}

fn check_skew(signed_at: UnixMicros, now: UnixMicros) -> Result<(), AuthError> {
    let off = signed_at.secs().abs_diff(now.secs());
    if off <= SKEW_SECONDS_MAX {
        return Ok(());
    }
    let (signed, now) = (sigv4::amz_date(signed_at), sigv4::amz_date(now));
    Err(AuthError::Expired(format!(
        "Request has expired: it is dated {signed}, the time here is {now}, {off} seconds apart; check the clock"
    )))
}

/// The hash that the canonical request has: the body's own, which the header, if there is one, must repeat.
fn payload_hash(parts: &Parts, body: &[u8], service: &str) -> Result<String, AuthError> {
    let Some(claimed) = parts.headers.get(X_AMZ_CONTENT_SHA256) else {
        return Ok(if body.is_empty() { EMPTY_SHA256.to_owned() } else { sha256_hex(body) });
    };
    if claimed == UNSIGNED_PAYLOAD && service == "s3" {
        return Ok(UNSIGNED_PAYLOAD.to_owned());
    }
    let hash = sha256_hex(body);
    match claimed.as_bytes() == hash.as_bytes() {
        true => Ok(hash),
        false => Err(AuthError::Mismatch),
    }
}

/// The canonical form of the headers that the client says it signed; all must be there.
fn signed_headers(parts: &Parts, names: &str) -> Result<String, AuthError> {
    let names: Vec<&str> = names.split(';').collect();
    if let Some(absent) = names.iter().find(|name| **name != "host" && !parts.headers.contains_key(**name)) {
        return Err(incomplete(format!("the {absent} header is signed but absent")));
    }
    if parts.headers.contains_key(HOST) {
        return Ok(canonical_headers(&parts.headers, &names));
    }
    // HTTP/2 has it in the URI.
    let mut headers = parts.headers.clone();
    let host = host(parts)?.parse().map_err(|_| incomplete("the request names no host"))?;
    headers.insert(HOST, host);
    Ok(canonical_headers(&headers, &names))
}

fn host(parts: &Parts) -> Result<String, AuthError> {
    let header = parts.headers.get(HOST).and_then(|value| value.to_str().ok());
    header
        .or(parts.uri.authority().map(|a| a.as_str()))
        .map(str::to_owned)
        .ok_or_else(|| incomplete("the request names no host"))
}

fn is_form(parts: &Parts) -> bool {
    let kind = parts.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_none_or(|kind| kind.starts_with("application/x-www-form-urlencoded"))
}

/// Reads `YYYYMMDDTHHMMSSZ`.
pub fn parse_amz_date(text: &str) -> Option<UnixMicros> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    micros(PrimitiveDateTime::parse(text, format).ok()?.assume_utc())
}

fn parse_http_date(text: &str) -> Option<UnixMicros> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    micros(PrimitiveDateTime::parse(text, format).ok()?.assume_utc())
}

/// SigV2's times: `2011-10-03T15:19:30`, with or without a fraction and `Z`; an offset is understood.
fn parse_iso(text: &str, name: &str) -> Result<UnixMicros, AuthError> {
    use time::format_description::well_known::Iso8601;
    let with_zone = OffsetDateTime::parse(text, &Iso8601::DEFAULT).ok();
    let at =
        with_zone.or_else(|| PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).ok().map(PrimitiveDateTime::assume_utc));
    at.and_then(micros).ok_or_else(|| incomplete(format!("{name} {text:?} is no ISO 8601 time")))
}

fn micros(time: OffsetDateTime) -> Option<UnixMicros> {
    u64::try_from(time.unix_timestamp_nanos() / 1000).ok().map(UnixMicros)
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Uri};

    use super::*;
    use crate::aws::sigv4::{Payload, Signer, presign, sign};

    const NOW: &str = "20260102T030405Z";
    const EC2: Signer<'static> = Signer {
        access_key_id: "AKIAIOSFODNN7EXAMPLE",
        secret: "secret",
        session_token: None,
        region: "undefined-region",
        service: "ec2",
    };

    fn now() -> UnixMicros {
        parse_amz_date(NOW).expect("a time")
    }
    fn later(seconds: u64) -> UnixMicros {
        UnixMicros(now().0 + seconds * 1_000_000)
    }
    fn verifier() -> Verifier {
        Verifier::new(KeyRing::new([Key {
            access_key_id: EC2.access_key_id.into(),
            secret: EC2.secret.into(),
            account: "123456789012".parse().expect("an account"),
            arn: "arn:aws:iam::123456789012:user/admin".into(),
        }]))
    }
    fn post(body: &[u8]) -> Parts {
        let request =
            Request::post("http://127.0.0.1:8773/").header("content-type", "application/x-www-form-urlencoded");
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        sign(&mut parts, Payload::Bytes(body), &EC2, now()).expect("signs");
        parts
    }
    fn bare(uri: &str) -> Parts {
        let uri: Uri = uri.parse().expect("a URI");
        let host = uri.authority().expect("a host").to_string();
        Request::get(uri).header("host", host).body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_signed_form_is_believed_with_any_region() {
        let body = b"Action=DescribeInstances&Version=2016-11-15";
        let ok = verifier().verify(&post(body), body, later(14 * 60)).expect("believed");
        assert_eq!((ok.region.as_str(), ok.service.as_str()), ("undefined-region", "ec2"));
        assert_eq!(ok.key.access_key_id, EC2.access_key_id);
        assert_eq!(claimed_service(&post(body)).as_deref(), Some("ec2"));
    }

    #[test]
    fn every_change_is_noticed() {
        let body = b"Action=DescribeInstances";
        let check = |change: &dyn Fn(&mut Parts), body: &[u8], expected: AuthError| {
            let mut parts = post(b"Action=DescribeInstances");
            change(&mut parts);
            assert_eq!(verifier().verify(&parts, body, now()).expect_err("refused"), expected);
        };
        check(&|_| (), b"Action=TerminateInstances", AuthError::Mismatch);
        check(&|p| p.uri = "http://127.0.0.1:8773/?Action=X".parse().expect("a URI"), body, AuthError::Mismatch);
        check(&|p| p.method = Method::PUT, body, AuthError::Mismatch);
        check(&|p| _ = p.headers.insert("host", "elsewhere".parse().expect("a value")), body, AuthError::Mismatch);
        check(&|p| _ = p.headers.insert("content-type", "x/y".parse().expect("a value")), body, AuthError::Mismatch);
        check(&|p| _ = p.headers.remove(AUTHORIZATION), body, AuthError::Missing);
    }

    #[test]
    fn an_authorization_header_is_read_strictly() {
        let good = post(b"");
        let text = good.headers[AUTHORIZATION].to_str().expect("text").to_owned();
        assert!(HeaderAuth::parse(&text).is_ok());
        assert!(HeaderAuth::parse(&text.replace(", ", ",")).is_ok());
        let replaced = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        };
        for bad in [
            "Basic abc".to_owned(),
            ALGORITHM.to_owned(),
            replaced("SignedHeaders=", "Signed="),
            replaced("host;", ""),
            replaced("content-type;host", "host;content-type"),
            replaced("host", "Host"),
            replaced("aws4_request", "aws5_request"),
            replaced("/20260102/", "/2026012/"),
            replaced("/ec2/", "//"),
            replaced("Signature=", "Signature=A"),
            format!("{text}, Signature=00"),
        ] {
            assert!(matches!(HeaderAuth::parse(&bad), Err(AuthError::Incomplete(_))), "{bad}");
        }
    }

    #[test]
    fn headers_that_matter_must_be_signed_and_present() {
        let mut parts = post(b"");
        parts.headers.insert("x-amz-target", "Evil".parse().expect("a value"));
        let refused = verifier().verify(&parts, b"", now()).expect_err("refused");
        assert!(refused.to_string().contains("x-amz-target header is present but not signed"), "{refused}");
        let mut parts = post(b"");
        parts.headers.remove("content-type");
        let refused = verifier().verify(&parts, b"", now()).expect_err("refused");
        assert!(refused.to_string().contains("content-type header is signed but absent"), "{refused}");
    }

    #[test]
    fn clocks_may_be_a_quarter_of_an_hour_off() {
        let refused = verifier().verify(&post(b""), b"", later(15 * 60 + 1)).expect_err("refused");
        assert!(matches!(refused, AuthError::Expired(_)), "{refused}");
        assert_eq!((refused.code("ec2"), refused.status("ec2")), ("RequestExpired", 400));
        let early = UnixMicros(now().0 - 16 * 60 * 1_000_000);
        assert!(matches!(verifier().verify(&post(b""), b"", early), Err(AuthError::Expired(_))));
    }

    #[test]
    fn keys_and_secrets_are_told_apart_as_each_service_does() {
        let wrong = Verifier::new(KeyRing::new([Key {
            secret: "other".into(),
            ..(*verifier().keys.get(EC2.access_key_id).expect("a key")).clone()
        }]));
        let mismatch = wrong.verify(&post(b""), b"", now()).expect_err("refused");
        assert_eq!((mismatch.code("ec2"), mismatch.status("ec2")), ("AuthFailure", 401));
        assert_eq!((mismatch.code("sts"), mismatch.status("sts")), ("SignatureDoesNotMatch", 403));
        let unknown = Verifier::new(KeyRing::default()).verify(&post(b""), b"", now()).expect_err("refused");
        assert_eq!(unknown.code("ec2"), "AuthFailure");
        assert_eq!((unknown.code("iam"), unknown.status("iam")), ("InvalidClientTokenId", 403));
    }

    #[test]
    fn temporary_keys_need_their_token() {
        use crate::aws::session::{Of, Session};
        let account = "123456789012";
        let ring = KeyRing::default();
        ring.fill(&crate::proto::Keys {
            session_key: vec![1; 32],
            accounts: vec![crate::proto::Account { id: account.into(), ..Default::default() }],
            ..Default::default()
        });
        let (key, id) = (ring.session_key().expect("told"), "ASIAEXAMPLE");
        let expires_us = later(3600).0;
        let of = Of::Oneself { id: account.into() };
        let (policies, tags, keys) = (None, Default::default(), Default::default());
        let token = key.seal(id, &Session { of, issued_us: now().0, expires_us, policies, tags, keys }, [0; 12]);
        let secret = key.secret(id);
        let verifier = Verifier::new(ring);
        let ask = |token: Option<&str>, at: UnixMicros| {
            let (mut parts, ()) = Request::post("http://127.0.0.1/").body(()).expect("a request").into_parts();
            let signer = Signer { access_key_id: id, secret: &secret, session_token: token, ..EC2 };
            sign(&mut parts, Payload::Bytes(b""), &signer, at).expect("signs");
            verifier.verify(&parts, b"", at)
        };
        let who = ask(Some(&token), now()).expect("believed");
        assert_eq!(who.key.arn, "arn:aws:iam::123456789012:root");
        assert_eq!(ask(None, now()).err(), Some(AuthError::BadToken));
        assert_eq!(ask(Some("x"), now()).err(), Some(AuthError::BadToken));
        let over = ask(Some(&token), later(3600)).expect_err("over");
        assert_eq!((over.code("sts"), over.status("sts")), ("ExpiredToken", 403));
        let uri: Uri = "http://127.0.0.1/?Action=DescribeRegions".parse().expect("a URI");
        let signer = Signer { access_key_id: id, secret: &secret, session_token: Some(&token), ..EC2 };
        let signed = presign(&Method::GET, &uri, 60, &signer, now()).expect("signs").to_string();
        assert!(verifier.verify(&bare(&signed), b"", now()).is_ok());
    }

    #[test]
    fn presigned_requests_end() {
        let uri: Uri = "http://127.0.0.1:8773/?Action=DescribeRegions&Filter.1.Value=a+b%2Fc".parse().expect("a URI");
        let signed = presign(&Method::GET, &uri, 60, &EC2, now()).expect("signs").to_string();
        assert!(verifier().verify(&bare(&signed), b"", later(60)).is_ok());
        assert!(matches!(verifier().verify(&bare(&signed), b"", later(61)), Err(AuthError::Expired(_))));
        let early = UnixMicros(now().0 - 16 * 60 * 1_000_000);
        assert!(matches!(verifier().verify(&bare(&signed), b"", early), Err(AuthError::Expired(_))));
        let mismatch =
            |text: String| assert_eq!(verifier().verify(&bare(&text), b"", now()).err(), Some(AuthError::Mismatch));
        mismatch(signed.replace("DescribeRegions", "TerminateInstances"));
        mismatch(signed.replace("X-Amz-Expires=60", "X-Amz-Expires=61"));
        let incomplete = |text: String| {
            let refused = verifier().verify(&bare(&text), b"", now()).expect_err("refused");
            assert!(matches!(refused, AuthError::Incomplete(_)), "{text}: {refused}");
        };
        incomplete(signed.replace("X-Amz-Expires=60", "X-Amz-Expires=604801"));
        incomplete(signed.replace("X-Amz-Expires=60&", ""));
        incomplete(format!("{signed}&X-Amz-Signature=00"));
    }

    #[test]
    fn old_tools_sign_with_version_2() {
        let form = |method: &str, secret: &str| {
            let mut pairs = parse_query(&format!(
                "Action=DescribeInstances&AWSAccessKeyId={}&SignatureVersion=2&SignatureMethod={method}\
                 &Timestamp=2026-01-02T03%3A04%3A05Z&Version=2010-08-31",
                EC2.access_key_id
            ));
            let kind = sigv2::Method::from_name(method).expect("a method");
            let signature = sigv2::signature(kind, secret, "POST", "cloud:8773", "/services/Eucalyptus/", &pairs);
            pairs.push(("Signature".into(), signature));
            canonical_query(&pairs)
        };
        let parts = Request::post("/services/Eucalyptus/").header("host", "cloud:8773").body(()).expect("a request");
        let (parts, ()) = parts.into_parts();
        let verify = |body: &str, now| verifier().verify(&parts, body.as_bytes(), now);
        for method in ["HmacSHA256", "HmacSHA1"] {
            assert!(verify(&form(method, EC2.secret), now()).is_ok(), "{method}");
            assert_eq!(verify(&form(method, "wrong"), now()).err(), Some(AuthError::Mismatch));
        }
        let good = form("HmacSHA256", EC2.secret);
        assert!(matches!(verify(&good, later(16 * 60)), Err(AuthError::Expired(_))));
        assert_eq!(verify(&good.replace("DescribeI", "TerminateI"), now()).err(), Some(AuthError::Mismatch));
        for bad in
            [good.replace("Version=2&", "Version=1&"), good.replace("SHA256", "MD5"), good.replace("Timestamp", "T")]
        {
            assert!(matches!(verify(&bad, now()), Err(AuthError::Incomplete(_))), "{bad}");
        }
    }

    #[test]
    fn v2_posts_with_an_unsigned_query_and_gets_with_an_unsigned_form_are_refused() {
        let mut pairs = parse_query(&format!(
            "Action=DescribeRegions&AWSAccessKeyId={}&SignatureVersion=2&SignatureMethod=HmacSHA256\
             &Timestamp=2026-01-02T03%3A04%3A05Z&Version=2010-08-31",
            EC2.access_key_id
        ));
        let signature = sigv2::signature(sigv2::Method::HmacSha256, EC2.secret, "POST", "cloud:8773", "/", &pairs);
        pairs.push(("Signature".into(), signature));
        let body = canonical_query(&pairs);
        let evil = Request::post("/?Action=TerminateInstances&InstanceId.1=i-0123456789abcdef0");
        let (evil, ()) = evil.header("host", "cloud:8773").body(()).expect("a request").into_parts();
        assert_eq!(
            verifier().verify(&evil, body.as_bytes(), now()).err().map(|e| matches!(e, AuthError::Incomplete(_))),
            Some(true)
        );
        let (evil, ()) =
            Request::post(format!("/?{body}")).header("host", "cloud:8773").body(()).expect("a request").into_parts();
        assert!(matches!(verifier().verify(&evil, b"Action=TerminateInstances", now()), Err(AuthError::Incomplete(_))));
    }
}
