//! Website hosting: its document, and where a request of a visitor goes. Pure.

use crate::error::{Error, Kind, Result};
use crate::xml::{Element, Out};

/// Routing rules of one bucket (S3's own limit).
const RULES_MAX: usize = 50;

/// How a bucket is shown as a website.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Website {
    /// What a folder shows.
    pub index: Option<String>,
    /// What is shown instead of a 4xx.
    pub error: Option<String>,
    /// Everything goes to another host.
    pub redirect_all: Option<(String, Option<String>)>,
    /// Looked at in order.
    pub rules: Vec<RoutingRule>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingRule {
    /// How the key begins.
    pub prefix: Option<String>,
    /// The status that the answer would have.
    pub status: Option<u16>,
    /// Where to.
    pub redirect: Redirect,
}

/// Where a rule sends a visitor; what is not said stays as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub protocol: Option<String>,
    /// Another host.
    pub host: Option<String>,
    /// Instead of the rule's prefix.
    pub prefix_with: Option<String>,
    /// Instead of the whole key.
    pub key_with: Option<String>,
    /// 301 where nothing is said.
    pub code: Option<u16>,
}

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

/// From the document.
///
/// # Errors
/// `MalformedXML`, `InvalidArgument`.
pub fn parse(document: &[u8]) -> Result<Website> {
    let root = Element::parse(document, "WebsiteConfiguration")?;
    root.only(&["IndexDocument", "ErrorDocument", "RedirectAllRequestsTo", "RoutingRules"])?;
    if let Some(all) = root.child("RedirectAllRequestsTo") {
        if root.children.len() > 1 {
            return Err(malformed());
        }
        let to = (all.need("HostName")?.to_owned(), protocol(all)?);
        return Ok(Website { redirect_all: Some(to), ..Website::default() });
    }
    let index = root.child("IndexDocument").ok_or_else(malformed)?.need("Suffix")?.to_owned();
    if index.is_empty() || index.contains('/') {
        return Err(Error::new(Kind::InvalidArgument, "The IndexDocument Suffix is not well formed"));
    }
    let error = root.child("ErrorDocument").map(|e| e.need("Key")).transpose()?.map(str::to_owned);
    if error.as_deref() == Some("") {
        return Err(Error::new(Kind::InvalidArgument, "The ErrorDocument Key is not well formed"));
    }
    let rules: Vec<RoutingRule> = match root.child("RoutingRules") {
        None => vec![],
        Some(list) if list.children.len() > RULES_MAX => return Err(malformed()),
        Some(list) => list.all("RoutingRule").map(rule).collect::<Result<_>>()?,
    };
    Ok(Website { index: Some(index), error, redirect_all: None, rules })
}

fn protocol(e: &Element) -> Result<Option<String>> {
    match e.text_of("Protocol") {
        None => Ok(None),
        Some(p @ ("http" | "https")) => Ok(Some(p.to_owned())),
        Some(_) => Err(malformed()),
    }
}

fn rule(e: &Element) -> Result<RoutingRule> {
    let code = |text: Option<&str>, range: std::ops::Range<u16>| -> Result<Option<u16>> {
        let Some(text) = text else { return Ok(None) };
        let code = text.parse().ok().filter(|c| range.contains(c));
        code.map(Some).ok_or_else(|| {
            Error::new(Kind::InvalidRequest, format!("The provided HTTP code ({text}) is not valid there."))
        })
    };
    let to = e.child("Redirect").ok_or_else(malformed)?;
    let owned = |e: &Element, name: &str| e.text_of(name).map(str::to_owned);
    let redirect = Redirect {
        protocol: protocol(to)?,
        host: owned(to, "HostName"),
        prefix_with: owned(to, "ReplaceKeyPrefixWith"),
        key_with: owned(to, "ReplaceKeyWith"),
        code: code(to.text_of("HttpRedirectCode"), 301..400)?,
    };
    if redirect.prefix_with.is_some() && redirect.key_with.is_some() || redirect == Redirect::default() {
        return Err(malformed());
    }
    let condition = e.child("Condition");
    let prefix = condition.and_then(|c| owned(c, "KeyPrefixEquals"));
    let status = code(condition.and_then(|c| c.text_of("HttpErrorCodeReturnedEquals")), 400..600)?;
    if condition.is_some() && prefix.is_none() && status.is_none() {
        return Err(malformed());
    }
    Ok(RoutingRule { prefix, status, redirect })
}

/// The document.
pub fn to_xml(site: &Website) -> String {
    Out::document("WebsiteConfiguration", |out| {
        if let Some((host, protocol)) = &site.redirect_all {
            out.element("RedirectAllRequestsTo", |out| {
                out.text("HostName", host);
                out.maybe("Protocol", protocol.as_deref());
            });
        }
        if let Some(index) = &site.index {
            out.element("IndexDocument", |out| out.text("Suffix", index));
        }
        if let Some(error) = &site.error {
            out.element("ErrorDocument", |out| out.text("Key", error));
        }
        if !site.rules.is_empty() {
            out.element("RoutingRules", |out| {
                for rule in &site.rules {
                    out.element("RoutingRule", |out| rule.write(out));
                }
            });
        }
    })
}

impl RoutingRule {
    fn write(&self, out: &mut Out) {
        if self.prefix.is_some() || self.status.is_some() {
            out.element("Condition", |out| {
                out.maybe("KeyPrefixEquals", self.prefix.as_deref());
                out.maybe("HttpErrorCodeReturnedEquals", self.status.map(|c| c.to_string()).as_deref());
            });
        }
        out.element("Redirect", |out| {
            out.maybe("Protocol", self.redirect.protocol.as_deref());
            out.maybe("HostName", self.redirect.host.as_deref());
            out.maybe("ReplaceKeyPrefixWith", self.redirect.prefix_with.as_deref());
            out.maybe("ReplaceKeyWith", self.redirect.key_with.as_deref());
            out.maybe("HttpRedirectCode", self.redirect.code.map(|c| c.to_string()).as_deref());
        });
    }
}

/// An answer that sends the visitor elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// 301 to 399.
    pub code: u16,
    /// The URL; without scheme and host where they stay as they were.
    pub location: String,
}

impl Website {
    /// Where a key is sent before it is looked for (`status` `None`), or after that ended in an error.
    pub fn redirect(&self, key: &str, status: Option<u16>) -> Option<Elsewhere> {
        let path =
            |key: &str| format!("/{}", percent_encoding::utf8_percent_encode(key, crate::ops::list_objects::URL));
        if let Some((host, protocol)) = &self.redirect_all {
            let location = format!("{}://{host}{}", protocol.as_deref().unwrap_or("http"), path(key));
            return Some(Elsewhere { code: 301, location });
        }
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.status == status && rule.prefix.as_deref().is_none_or(|p| key.starts_with(p)))?;
        let to = &rule.redirect;
        let key = match (&to.key_with, &to.prefix_with) {
            (Some(all), _) => all.clone(),
            (None, Some(with)) => format!("{with}{}", &key[rule.prefix.as_deref().unwrap_or("").len()..]),
            (None, None) => key.to_owned(),
        };
        let location = match (&to.host, &to.protocol) {
            (Some(host), protocol) => format!("{}://{host}{}", protocol.as_deref().unwrap_or("http"), path(&key)),
            (None, _) => path(&key),
        };
        Some(Elsewhere { code: to.code.unwrap_or(301), location })
    }

    /// The key that is shown for the one that was asked for: a folder shows its index.
    pub fn shown(&self, key: &str) -> String {
        match &self.index {
            Some(index) if key.is_empty() || key.ends_with('/') => format!("{key}{index}"),
            _ => key.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_go_where_rules_say() {
        let site = Website {
            index: Some("index.html".into()),
            error: Some("error.html".into()),
            redirect_all: None,
            rules: vec![
                RoutingRule {
                    prefix: Some("docs/".into()),
                    status: None,
                    redirect: Redirect { prefix_with: Some("documents/".into()), ..Redirect::default() },
                },
                RoutingRule {
                    prefix: None,
                    status: Some(404),
                    redirect: Redirect { host: Some("h".into()), code: Some(302), ..Redirect::default() },
                },
            ],
        };
        assert_eq!(parse(to_xml(&site).as_bytes()).unwrap(), site);
        let check = |key: &str, status, want: Option<(u16, &str)>| {
            let got = site.redirect(key, status);
            assert_eq!(got.as_ref().map(|e| (e.code, e.location.as_str())), want, "{key} {status:?}");
        };
        check("docs/a b", None, Some((301, "/documents/a%20b")));
        check("x", None, None);
        check("x", Some(404), Some((302, "http://h/x")));
        check("x", Some(403), None);
        assert_eq!(
            (site.shown(""), site.shown("a/"), site.shown("a")),
            ("index.html".into(), "a/index.html".into(), "a".into())
        );
        let all = Website { redirect_all: Some(("h".into(), Some("https".into()))), ..Website::default() };
        assert_eq!(parse(to_xml(&all).as_bytes()).unwrap(), all);
        assert_eq!(all.redirect("k", None).unwrap().location, "https://h/k");
    }

    #[test]
    fn what_s3_refuses() {
        for (inner, want) in [
            ("", Kind::MalformedXml),
            ("<IndexDocument><Suffix>a/b</Suffix></IndexDocument>", Kind::InvalidArgument),
            ("<IndexDocument/>", Kind::MalformedXml),
            (
                "<RedirectAllRequestsTo><HostName>h</HostName><Protocol>ftp</Protocol></RedirectAllRequestsTo>",
                Kind::MalformedXml,
            ),
            (
                "<IndexDocument><Suffix>i</Suffix></IndexDocument><RoutingRules><RoutingRule><Redirect><HttpRedirectCode>200</HttpRedirectCode></Redirect></RoutingRule></RoutingRules>",
                Kind::InvalidRequest,
            ),
        ] {
            let text = format!("<WebsiteConfiguration>{inner}</WebsiteConfiguration>");
            assert_eq!(parse(text.as_bytes()).unwrap_err().kind, want, "{inner}");
        }
    }
}
