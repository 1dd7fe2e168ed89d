//! Reading: a form's parameters (`Filter.1.Value.2=x`) as a tree, and typed values out of it.
//!
//! Hostile input is bounded here: at most [`PARAMS_MAX`] parameters, [`DEPTH_MAX`] dots in a name. Each value that a
//! request type reads is marked, so that [`Tree::unread`] finds the parameters that no request type knows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use percent_encoding::percent_decode_str;

use super::{Blob, Timestamp};

/// Dots in a parameter's name; the deepest of the model has 6.
pub const DEPTH_MAX: usize = 16;
/// Parameters in a form. A thousand instance ids with as many tags fit.
pub const PARAMS_MAX: usize = 20_000;

/// What is wrong with a form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The form itself cannot be read.
    #[error("the query string is malformed: {0}")]
    Malformed(String),
    /// A required parameter is absent.
    #[error("The request must contain the parameter {0}")]
    Missing(String),
    /// A value does not parse.
    #[error("Value ({value}) for parameter {name} is invalid. {why}")]
    Value {
        /// The parameter.
        name: String,
        /// Its value, cut short.
        value: String,
        /// What was wanted.
        why: String,
    },
    /// The action has no such parameter.
    #[error("The parameter {0} is not recognized")]
    Unknown(String),
}

/// A form as a tree of name parts.
#[derive(Debug, Default)]
pub struct Tree {
    value: Option<String>,
    read: AtomicBool,
    children: BTreeMap<String, Tree>,
}

/// Splits `a=1&b=2` and decodes percent signs and plus signs; the pairs stay in order.
///
/// # Errors
/// Text that is not UTF-8, or more than [`PARAMS_MAX`] pairs.
pub fn decode_form(form: &[u8]) -> Result<Vec<(String, String)>, Invalid> {
    let text = std::str::from_utf8(form).map_err(|_| Invalid::Malformed("it is not UTF-8".into()))?;
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        if pairs.len() == PARAMS_MAX {
            return Err(Invalid::Malformed(format!("it has more than {PARAMS_MAX} parameters")));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((decode(name)?, decode(value)?));
    }
    Ok(pairs)
}

fn decode(text: &str) -> Result<String, Invalid> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(String::from).map_err(|_| Invalid::Malformed(format!("{} does not decode to UTF-8", cut(text))))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

impl Tree {
    /// The tree of these parameters.
    ///
    /// # Errors
    /// A name that is nested too deeply or given twice.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Invalid> {
        let mut root = Self::default();
        for (name, value) in pairs {
            if name.split('.').count() > DEPTH_MAX {
                return Err(Invalid::Malformed(format!("{} has too many dots", cut(name))));
            }
            let mut node = &mut root;
            for part in name.split('.') {
                node = node.children.entry(part.to_owned()).or_default();
            }
            if node.value.replace(value.to_owned()).is_some() {
                return Err(Invalid::Malformed(format!("{} is given twice", cut(name))));
            }
        }
        Ok(root)
    }

    /// The value of a top-level parameter; counts as read.
    pub fn value(&self, name: &str) -> Option<&str> {
        let node = self.children.get(name)?;
        node.read.store(true, Ordering::Relaxed);
        node.value.as_deref()
    }

    /// A value by its whole name, without counting as read.
    pub fn at(&self, name: &str) -> Option<&str> {
        let mut node = self;
        for part in name.split('.') {
            node = node.children.get(part)?;
        }
        node.value.as_deref()
    }

    /// The values of `name`, `name.1`, `name.member.1`, ..., without counting as read.
    pub fn peek(&self, name: &str) -> Vec<&str> {
        let Some(node) = self.children.get(name) else { return Vec::new() };
        let lists = [Some(node), node.children.get("member")];
        let numbered = lists.into_iter().flatten().flat_map(|n| n.children.values());
        node.value.as_deref().into_iter().chain(numbered.filter_map(|n| n.value.as_deref())).collect()
    }

    /// All names with their values, without counting as read.
    pub fn flat(&self) -> Vec<(String, &str)> {
        let mut out = Vec::new();
        for (name, child) in &self.children {
            out.extend(child.value.as_deref().map(|value| (name.clone(), value)));
            out.extend(child.flat().into_iter().map(|(rest, value)| (format!("{name}.{rest}"), value)));
        }
        out
    }

    /// The tree as a request's parameters.
    pub fn query(&self) -> Query<'_> {
        Query { node: self, name: String::new() }
    }

    /// The first parameter whose value nothing read.
    pub fn unread(&self) -> Option<String> {
        if self.value.is_some() && !self.read.load(Ordering::Relaxed) {
            return Some(String::new());
        }
        self.children.iter().find_map(|(name, child)| {
            let rest = child.unread()?;
            Some(if rest.is_empty() { name.clone() } else { format!("{name}.{rest}") })
        })
    }
}

/// One node of a form, with its name for messages.
#[derive(Debug)]
pub struct Query<'a> {
    node: &'a Tree,
    name: String,
}

/// A value made from a form's node.
pub trait FromQuery: Sized {
    /// # Errors
    /// What is missing or does not parse.
    fn from_query(q: &Query<'_>) -> Result<Self, Invalid>;
}

impl<'a> Query<'a> {
    fn child(&self, name: &str) -> Option<Query<'a>> {
        let node = self.node.children.get(name)?;
        Some(Query { node, name: self.full(name) })
    }

    fn full(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    /// A member that may be absent.
    pub(crate) fn opt<T: FromQuery>(&self, name: &str) -> Result<Option<T>, Invalid> {
        self.child(name).map(|q| T::from_query(&q)).transpose()
    }

    /// A member that must be there. An empty text counts as absent, as in EC2.
    pub(crate) fn req<T: FromQuery>(&self, name: &str) -> Result<T, Invalid> {
        let child = self.child(name).filter(|q| q.node.value.as_deref() != Some(""));
        T::from_query(&child.ok_or_else(|| Invalid::Missing(self.full(name)))?)
    }

    /// `Name.1`, `Name.2`, ...: in the order of their numbers; gaps are allowed.
    pub(crate) fn list<T: FromQuery>(&self, name: &str) -> Result<Vec<T>, Invalid> {
        let Some(list) = self.child(name) else { return Ok(Vec::new()) };
        let mut numbered = Vec::with_capacity(list.node.children.len());
        for (part, node) in &list.node.children {
            let n: u32 = part.parse().map_err(|_| Invalid::Unknown(list.full(part)))?;
            numbered.push((n, Query { node, name: list.full(part) }));
        }
        numbered.sort_by_key(|(n, _)| *n);
        numbered.iter().map(|(_, q)| T::from_query(q)).collect()
    }

    /// `Name.member.1`, `Name.member.2`, ...: as the `query` protocol has lists.
    pub(crate) fn members<T: FromQuery>(&self, name: &str) -> Result<Vec<T>, Invalid> {
        let Some(list) = self.child(name) else { return Ok(Vec::new()) };
        // An empty list is sent as the bare name.
        if list.node.value.is_some() && list.node.children.is_empty() {
            list.node.read.store(true, Ordering::Relaxed);
            return Ok(Vec::new());
        }
        list.list("member")
    }

    /// Such a list that must have a member.
    pub(crate) fn members_req<T: FromQuery>(&self, name: &str) -> Result<Vec<T>, Invalid> {
        let list = self.members(name)?;
        if list.is_empty() { Err(Invalid::Missing(self.full(name))) } else { Ok(list) }
    }

    /// A list that must have a member.
    pub(crate) fn list_req<T: FromQuery>(&self, name: &str) -> Result<Vec<T>, Invalid> {
        let list = self.list(name)?;
        if list.is_empty() { Err(Invalid::Missing(self.full(name))) } else { Ok(list) }
    }

    /// This node's value.
    pub(crate) fn text(&self) -> Result<&'a str, Invalid> {
        self.node.read.store(true, Ordering::Relaxed);
        self.node.value.as_deref().ok_or_else(|| Invalid::Missing(self.name.clone()))
    }

    /// The error of a value that does not parse.
    pub(crate) fn bad(&self, value: &str, why: impl Into<String>) -> Invalid {
        Invalid::Value { name: self.name.clone(), value: cut(value), why: why.into() }
    }
}

impl FromQuery for String {
    fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
        let text = q.text()?;
        // XML 1.0 cannot carry these, so they could never be shown again.
        match text.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
            Some(_) => Err(q.bad(&text.escape_debug().to_string(), "Control characters are not allowed.")),
            None => Ok(text.to_owned()),
        }
    }
}

macro_rules! numbers {
    ($($ty:ty)*) => {$(
        impl FromQuery for $ty {
            fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
                let text = q.text()?;
                text.parse().map_err(|_| q.bad(text, concat!("It must be a number (", stringify!($ty), ").")))
            }
        }
    )*};
}
numbers!(i32 i64 f64);

impl FromQuery for bool {
    fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
        let text = q.text()?;
        match text {
            "true" | "True" | "TRUE" | "1" => Ok(true),
            "false" | "False" | "FALSE" | "0" => Ok(false),
            _ => Err(q.bad(text, "It must be true or false.")),
        }
    }
}

impl FromQuery for Blob {
    fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
        let text = q.text()?;
        let packed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = base64::engine::general_purpose::STANDARD.decode(packed);
        bytes.map(Blob).map_err(|_| q.bad(text, "It must be base64."))
    }
}

impl FromQuery for Timestamp {
    fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
        let text = q.text()?;
        let wanted = || q.bad(text, "It must be an ISO 8601 time, such as 2026-01-31T12:00:00Z.");
        let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Iso8601::DEFAULT)
            .map_err(|_| wanted())?;
        u64::try_from(at.unix_timestamp_nanos() / 1000).map(Timestamp).map_err(|_| wanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::generated::ec2;

    fn parse<T: FromQuery>(form: &str) -> Result<(T, Option<String>), Invalid> {
        let pairs = decode_form(form.as_bytes())?;
        let tree = Tree::new(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        let value = T::from_query(&tree.query())?;
        Ok((value, tree.unread()))
    }

    #[test]
    fn a_form_becomes_a_typed_request() {
        let (r, unread) = parse::<ec2::RunInstancesRequest>(
            "MinCount=1&MaxCount=3&ImageId=ami-1&Placement.AvailabilityZone=z&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.10.Key=ten&TagSpecification.1.Tag.2.Key=two&BlockDeviceMapping.1.Ebs.VolumeSize=8\
             &DryRun=true&UserData=a%2Bb+c",
        )
        .unwrap();
        assert_eq!(unread, None);
        assert_eq!((r.min_count, r.max_count, r.dry_run), (1, 3, Some(true)));
        assert_eq!(r.user_data.as_deref(), Some("a+b c"));
        assert_eq!(r.block_device_mappings[0].ebs.as_ref().unwrap().volume_size, Some(8));
        let tags = r.tag_specifications[0].tags.clone();
        assert_eq!(tags.iter().map(|t| t.key.as_deref().unwrap()).collect::<Vec<_>>(), ["two", "ten"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let e = |form| parse::<ec2::RunInstancesRequest>(form).unwrap_err();
        assert_eq!(e("MaxCount=1"), Invalid::Missing("MinCount".into()));
        assert!(matches!(e("MinCount=x&MaxCount=1"), Invalid::Value { name, .. } if name == "MinCount"));
        let bad = "MinCount=1&MaxCount=1&InstanceInitiatedShutdownBehavior=explode";
        assert!(e(bad).to_string().contains("stop, terminate"), "{}", e(bad));
        assert!(matches!(e("Filter%FF=1"), Invalid::Malformed(_)));
        assert!(matches!(e("A=1&A=2"), Invalid::Malformed(_)));
        assert!(matches!(e(&"a.".repeat(100_000)), Invalid::Malformed(_)));
        let unknown = parse::<ec2::DescribeTagsRequest>("Filter.1.Name=a&Filter.1.Valeu.1=b").unwrap();
        assert_eq!(unknown.1.as_deref(), Some("Filter.1.Valeu.1"));
        let list = parse::<ec2::DescribeTagsRequest>("Filter.x.Name=a").unwrap_err();
        assert_eq!(list, Invalid::Unknown("Filter.x".into()));
    }
}
