//! Cross-origin rules: their document, and which of them a request's origin and method meet.

use http::HeaderMap;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, ORIGIN, VARY,
};

use crate::error::{Error, Kind, Result};
use crate::xml::{Element, Out};

/// Rules of one bucket (S3's own limit).
const RULES_MAX: usize = 100;
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: Option<String>,
    /// Each with at most one `*`.
    pub origins: Vec<String>,
    /// Of S3's five.
    pub methods: Vec<String>,
    /// Request headers, each with at most one `*`.
    pub headers: Vec<String>,
    /// Response headers that scripts may see.
    pub expose: Vec<String>,
    /// How long browsers may remember the answer.
    pub max_age_seconds: Option<u32>,
}

/// From the document.
///
/// # Errors
/// `MalformedXML`, `InvalidRequest`.
pub fn parse(document: &[u8]) -> Result<Vec<Rule>> {
    let malformed = || Error::from(Kind::MalformedXml);
    let root = Element::parse(document, "CORSConfiguration")?;
    root.only(&["CORSRule"])?;
    if root.children.is_empty() || root.children.len() > RULES_MAX {
        return Err(malformed());
    }
    let rules = root.children.iter().map(|rule| {
        let texts = |name: &str| -> Vec<String> { rule.all(name).map(|e| e.text.trim().to_owned()).collect() };
        let read = Rule {
            id: rule.text_of("ID").map(str::to_owned),
            origins: texts("AllowedOrigin"),
            methods: texts("AllowedMethod"),
            headers: texts("AllowedHeader"),
            expose: texts("ExposeHeader"),
            max_age_seconds: match rule.number_of("MaxAgeSeconds")? {
                None => None,
                Some(n) => Some(u32::try_from(n).map_err(|_| malformed())?),
            },
        };
        if read.origins.is_empty() || read.methods.is_empty() || read.id.as_ref().is_some_and(|i| i.len() > 255) {
            return Err(malformed());
        }
        if let Some(method) = read.methods.iter().find(|m| !METHODS.contains(&m.as_str())) {
            return Err(Error::new(
                Kind::InvalidRequest,
                format!("Found unsupported HTTP method in CORS config. Unsupported method is {method}"),
            ));
        }
        if let Some(many) = read.origins.iter().chain(&read.headers).find(|t| t.matches('*').count() > 1) {
            return Err(Error::new(
                Kind::InvalidRequest,
                format!("AllowedOrigin or AllowedHeader {many:?} can not have more than one wildcard."),
            ));
        }
        if read.expose.iter().any(|h| h.contains('*')) {
            return Err(Error::new(Kind::InvalidRequest, "ExposeHeader can not contain a wildcard."));
        }
        Ok(read)
    });
    rules.collect()
}

/// The document.
pub fn to_xml(rules: &[Rule]) -> String {
    Out::document("CORSConfiguration", |out| {
        for rule in rules {
            out.element("CORSRule", |out| {
                out.maybe("ID", rule.id.as_deref());
                rule.origins.iter().for_each(|t| out.text("AllowedOrigin", t));
                rule.methods.iter().for_each(|t| out.text("AllowedMethod", t));
                rule.headers.iter().for_each(|t| out.text("AllowedHeader", t));
                rule.expose.iter().for_each(|t| out.text("ExposeHeader", t));
                out.maybe("MaxAgeSeconds", rule.max_age_seconds.map(|n| n.to_string()).as_deref());
            });
        }
    })
}

/// `text` meets `pattern`, which has at most one `*`.
fn meets(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.len() >= head.len() + tail.len() && text.starts_with(head) && text.ends_with(tail),
    }
}

impl Rule {
    fn matches(&self, origin: &str, method: &str, headers: &[String]) -> bool {
        self.origins.iter().any(|o| meets(o, origin))
            && self.methods.iter().any(|m| m == method)
            && headers.iter().all(|h| self.headers.iter().any(|a| meets(&a.to_ascii_lowercase(), h)))
    }

    /// The headers of an answer to this origin. `asked`: the headers that a preflight asks for.
    fn answer(&self, origin: &str, asked: Option<&[String]>) -> Option<HeaderMap> {
        let mut out = HeaderMap::new();
        let mut put = |name: HeaderName, value: &str| HeaderValue::from_str(value).ok().map(|v| out.insert(name, v));
        if self.origins.iter().any(|o| o == "*") {
            put(ACCESS_CONTROL_ALLOW_ORIGIN, "*")?;
        } else {
            put(ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
            put(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
        }
        put(VARY, "Origin, Access-Control-Request-Headers, Access-Control-Request-Method")?;
        put(ACCESS_CONTROL_ALLOW_METHODS, &self.methods.join(", "))?;
        if let Some(seconds) = self.max_age_seconds {
            put(ACCESS_CONTROL_MAX_AGE, &seconds.to_string())?;
        }
        if !self.expose.is_empty() {
            put(ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose.join(", "))?;
        }
        if let Some(asked) = asked.filter(|a| !a.is_empty()) {
            put(ACCESS_CONTROL_ALLOW_HEADERS, &asked.join(", "))?;
        }
        Some(out)
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok()).filter(|t| !t.is_empty())
}

/// The headers to add to the answer of an ordinary request; `None` without an origin or a rule for it.
pub fn response(rules: &[Rule], method: &str, headers: &HeaderMap) -> Option<HeaderMap> {
    let origin = text(headers, &ORIGIN)?;
    let method = text(headers, &ACCESS_CONTROL_REQUEST_METHOD).unwrap_or(method);
    rules.iter().find(|r| r.matches(origin, method, &[]))?.answer(origin, None)
}

/// The headers of the answer to a preflight.
///
/// # Errors
/// `BadRequest` where it names no origin or no method; `AccessForbidden` where no rule lets it.
pub fn preflight(rules: Option<&[Rule]>, headers: &HeaderMap) -> Result<HeaderMap> {
    let origin = text(headers, &ORIGIN)
        .ok_or_else(|| Error::new(Kind::BadRequest, "Insufficient information. Origin request header needed."))?;
    let method = text(headers, &ACCESS_CONTROL_REQUEST_METHOD).filter(|m| METHODS.contains(m)).ok_or_else(|| {
        Error::new(Kind::BadRequest, "Invalid Access-Control-Request-Method: it must name a method that S3 has.")
    })?;
    let asked: Vec<String> = text(headers, &ACCESS_CONTROL_REQUEST_HEADERS)
        .unwrap_or_default()
        .split(',')
        .map(|h| h.trim().to_ascii_lowercase())
        .filter(|h| !h.is_empty())
        .collect();
    let Some(rules) = rules.filter(|r| !r.is_empty()) else {
        return Err(Error::new(Kind::AccessForbidden, "CORSResponse: CORS is not enabled for this bucket."));
    };
    let rule = rules.iter().find(|r| r.matches(origin, method, &asked));
    rule.and_then(|r| r.answer(origin, Some(&asked))).ok_or_else(|| {
        Error::new(
            Kind::AccessForbidden,
            "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, request \
             method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the \
             resource's CORS spec.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Vec<Rule> {
        let rule = |origin: &str, method: &str| Rule {
            origins: vec![origin.into()],
            methods: vec![method.into()],
            headers: vec!["x-*".into()],
            ..Rule::default()
        };
        vec![rule("*suffix", "GET"), rule("start*end", "GET"), Rule { max_age_seconds: Some(9), ..rule("*", "PUT") }]
    }

    #[test]
    fn origins_meet_rules() {
        let check = |origin: &str, method: &str, want: Option<&str>| {
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_str(origin).unwrap())]);
            let got = response(&rules(), method, &headers);
            let got = got.as_ref().map(|h| h[ACCESS_CONTROL_ALLOW_ORIGIN].to_str().unwrap());
            assert_eq!(got, want, "{origin} {method}");
        };
        check("foo.suffix", "GET", Some("foo.suffix"));
        check("foo.suffix.get", "GET", None);
        check("startend", "GET", Some("startend"));
        check("starend", "GET", None);
        check("any", "PUT", Some("*"));
        check("any", "DELETE", None);
        assert_eq!(response(&rules(), "GET", &HeaderMap::new()), None);
    }

    #[test]
    fn preflights() {
        let check = |origin: &str, method: &str, asked: &str, want: Result<(), Kind>| {
            let mut headers = HeaderMap::new();
            for (name, value) in
                [(ORIGIN, origin), (ACCESS_CONTROL_REQUEST_METHOD, method), (ACCESS_CONTROL_REQUEST_HEADERS, asked)]
            {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let got = preflight(Some(&rules()), &headers).map(drop).map_err(|e| e.kind);
            assert_eq!(got, want, "{origin} {method} {asked}");
        };
        check("", "GET", "", Err(Kind::BadRequest));
        check("a.suffix", "", "", Err(Kind::BadRequest));
        check("a.suffix", "PATCH", "", Err(Kind::BadRequest));
        check("a.suffix", "GET", "", Ok(()));
        check("a.suffix", "GET", "X-Amz-Date, x-other", Ok(()));
        check("a.suffix", "GET", "x-amz-date, authorization", Err(Kind::AccessForbidden));
        check("b", "GET", "", Err(Kind::AccessForbidden));
    }

    #[test]
    fn documents() {
        let all = rules();
        assert_eq!(parse(to_xml(&all).as_bytes()).unwrap(), all);
        let check = |inner: &str, want: Kind| {
            let text = format!("<CORSConfiguration>{inner}</CORSConfiguration>");
            assert_eq!(parse(text.as_bytes()).unwrap_err().kind, want, "{inner}");
        };
        check("", Kind::MalformedXml);
        check("<CORSRule><AllowedOrigin>*</AllowedOrigin></CORSRule>", Kind::MalformedXml);
        let rule = |o: &str, m: &str| {
            format!("<CORSRule><AllowedOrigin>{o}</AllowedOrigin><AllowedMethod>{m}</AllowedMethod></CORSRule>")
        };
        check(&rule("*", "PATCH"), Kind::InvalidRequest);
        check(&rule("*a*", "GET"), Kind::InvalidRequest);
        check(&rule("*", "GET").repeat(101), Kind::MalformedXml);
    }
}
