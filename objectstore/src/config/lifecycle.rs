//! Lifecycle rules: their document, checked as S3 checks it, which objects a rule means, and when it is due. Pure.
//!
//! A day is 24 hours, counted from the object's time to the next midnight UTC, as S3 counts. [`Calendar`] may shorten it:
//! the conformance suite lets a "day" last some seconds.

use std::collections::HashSet;

use karri_base::clock::UnixMicros;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use crate::error::{Error, Kind, Result};
use crate::ops::put::STORAGE_CLASSES;
use crate::xml::{Element, Out};

/// Rules of one bucket (S3's own limit).
const RULES_MAX: usize = 1_000;
const ID_MAX: usize = 255;
const DAY: u64 = 86_400;
const CLASSES: [&str; 6] =
    ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER", "GLACIER_IR", "DEEP_ARCHIVE"];

/// How long a day is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// 86,400, or fewer in a test.
    pub day_seconds: u64,
}

impl Default for Calendar {
    fn default() -> Self {
        Self { day_seconds: DAY }
    }
}

impl Calendar {
    /// When what happened at `from` is so many days old.
    pub fn due(self, from: UnixMicros, days: u32) -> u64 {
        let at = from.secs() + u64::from(days) * self.day_seconds;
        // S3 rounds up to midnight; a shortened day has none.
        if self.day_seconds == DAY { at.div_ceil(DAY) * DAY } else { at }
    }
}

/// When something is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So many days after the object's time.
    Days(u32),
    /// From this moment on, in seconds since 1970.
    Date(i64),
}

/// What happens to current versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expiration {
    /// They are deleted.
    pub when: Option<When>,
    /// A delete marker with nothing behind it is removed.
    pub delete_marker: bool,
}

/// After so many days noncurrent, but so many newest of them stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noncurrent {
    /// Days since a newer version came.
    pub days: u32,
    /// How many newer noncurrent versions must be there.
    pub newer: u32,
}

/// Which objects a rule means; what is not said is not asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// How their keys begin.
    pub prefix: String,
    /// Tags that they all have.
    pub tags: Vec<(String, String)>,
    /// They are larger than this.
    pub greater: Option<u64>,
    /// They are smaller than this.
    pub less: Option<u64>,
}

/// Where the prefix stands in the document, so that it is answered as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `<Prefix>` in the rule.
    Old,
    /// `<Filter>` with at most one condition.
    One,
    /// `<Filter><And>`.
    And,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name; made where none came.
    pub id: String,
    /// Whether it counts.
    pub enabled: bool,
    /// Which objects.
    pub filter: Filter,
    form: Form,
    has_prefix: bool,
    /// Of current versions.
    pub expiration: Option<Expiration>,
    /// Of the others.
    pub noncurrent: Option<Noncurrent>,
    /// Multipart uploads are aborted so many days after their begin.
    pub abort_days: Option<u32>,
    /// To another storage class, for current versions.
    pub transitions: Vec<(When, String)>,
    /// As `transitions`, for the others.
    pub noncurrent_transitions: Vec<(Noncurrent, String)>,
}

/// An object version as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its bytes.
    pub size: u64,
    /// Its tags.
    pub tags: &'a [(String, String)],
}

impl Filter {
    /// True when a version is meant.
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        subject.key.starts_with(&self.prefix)
            && self.greater.is_none_or(|n| subject.size > n)
            && self.less.is_none_or(|n| subject.size < n)
            && self.tags.iter().all(|t| subject.tags.contains(t))
    }
}

impl Rule {
    /// When a current version written at `modified` expires by this rule, in seconds since 1970.
    pub fn expires(&self, modified: UnixMicros, calendar: Calendar) -> Option<u64> {
        Some(self.expiration.as_ref()?.when?.due(modified, calendar))
    }
}

impl When {
    /// In seconds since 1970, for what happened at `from`.
    pub fn due(self, from: UnixMicros, calendar: Calendar) -> u64 {
        match self {
            Self::Days(days) => calendar.due(from, days),
            Self::Date(at) => u64::try_from(at).unwrap_or(0),
        }
    }
}

/// The class that an object of class `now` is to be moved to: of those that are due, the last one in the order of
/// [`STORAGE_CLASSES`], in which there is no way back.
pub fn next_class<'c>(now: Option<&str>, due: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let rank = |class: &str| STORAGE_CLASSES.iter().position(|c| *c == class);
    let now = rank(now.unwrap_or("STANDARD"));
    due.filter(|class| rank(class) > now).max_by_key(|class| rank(class))
}

/// Refuses transitions to what there is none of here.
///
/// # Errors
/// `NotImplemented`.
pub fn check_classes(rules: &[Rule]) -> Result<()> {
    let classes = |r: &Rule| -> Vec<String> {
        r.transitions.iter().map(|(_, c)| c).chain(r.noncurrent_transitions.iter().map(|(_, c)| c)).cloned().collect()
    };
    match rules.iter().flat_map(classes).find(|class| !STORAGE_CLASSES.contains(&class.as_str())) {
        None => Ok(()),
        Some(class) => Err(Error::new(
            Kind::NotImplemented,
            format!("There is no archive here: objects cannot be moved to the storage class {class}."),
        )),
    }
}

/// The soonest expiry of a current version and the rule that says so: the header `x-amz-expiration`.
pub fn expiry(rules: &[Rule], subject: Subject<'_>, modified: UnixMicros) -> Option<String> {
    let due = rules
        .iter()
        .filter(|r| r.enabled && r.filter.matches(subject))
        .filter_map(|r| Some((r.expires(modified, Calendar::default())?, &r.id)))
        .min()?;
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(due.0).ok()?).ok()?;
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let date = at.format(format).ok()?;
    let id = percent_encoding::utf8_percent_encode(due.1, percent_encoding::CONTROLS);
    Some(format!("expiry-date=\"{date}\", rule-id=\"{id}\""))
}

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, what.into())
}

/// From the document.
///
/// # Errors
/// `MalformedXML`, `InvalidArgument`, `InvalidRequest`.
pub fn parse(document: &[u8]) -> Result<Vec<Rule>> {
    let root = Element::parse_any(document)?;
    if !["LifecycleConfiguration", "BucketLifecycleConfiguration"].contains(&root.name.as_str()) {
        return Err(malformed());
    }
    root.only(&["Rule"])?;
    if root.children.is_empty() || root.children.len() > RULES_MAX {
        return Err(malformed());
    }
    let mut ids = HashSet::new();
    let rules = root.children.iter().map(|element| {
        let rule = rule(element)?;
        if !ids.insert(rule.id.clone()) {
            return Err(invalid(format!("Rule ID must be unique. Found same ID for more than one rule: {}", rule.id)));
        }
        Ok(rule)
    });
    rules.collect()
}

fn rule(e: &Element) -> Result<Rule> {
    e.only(&[
        "ID",
        "Status",
        "Prefix",
        "Filter",
        "Expiration",
        "NoncurrentVersionExpiration",
        "AbortIncompleteMultipartUpload",
        "Transition",
        "NoncurrentVersionTransition",
    ])?;
    let id = match e.text_of("ID").filter(|id| !id.is_empty()) {
        Some(id) if id.len() > ID_MAX => return Err(invalid("ID length should not exceed allowed limit of 255")),
        Some(id) => id.to_owned(),
        None => format!("{:032x}", rand::random::<u128>()),
    };
    let enabled = match e.need("Status")? {
        "Enabled" => true,
        "Disabled" => false,
        _ => return Err(malformed()),
    };
    let (filter, form, has_prefix) = filter(e)?;
    let expiration = e.child("Expiration").map(expiration).transpose()?;
    let noncurrent = e.child("NoncurrentVersionExpiration").map(noncurrent).transpose()?;
    let abort_days = match e.child("AbortIncompleteMultipartUpload") {
        None => None,
        Some(abort) => Some(days(abort, "DaysAfterInitiation", 1)?.ok_or_else(malformed)?),
    };
    let transitions = e.all("Transition").map(|t| Ok((when(t, 0)?.ok_or_else(malformed)?, class(t)?)));
    let transitions: Vec<_> = transitions.collect::<Result<_>>()?;
    let old = e.all("NoncurrentVersionTransition").map(|t| Ok((noncurrent_of(t, 0)?, class(t)?)));
    let noncurrent_transitions: Vec<_> = old.collect::<Result<_>>()?;
    if expiration.is_none()
        && noncurrent.is_none()
        && abort_days.is_none()
        && transitions.is_empty()
        && noncurrent_transitions.is_empty()
    {
        return Err(Error::new(Kind::InvalidRequest, "At least one action needs to be specified in a rule"));
    }
    let by_tag_or_size = !filter.tags.is_empty() || filter.greater.is_some() || filter.less.is_some();
    if abort_days.is_some() && by_tag_or_size {
        return Err(Error::new(
            Kind::InvalidRequest,
            "AbortIncompleteMultipartUpload cannot be specified with Tags or object sizes",
        ));
    }
    if !filter.tags.is_empty() && expiration.as_ref().is_some_and(|x| x.delete_marker) {
        return Err(Error::new(Kind::InvalidRequest, "ExpiredObjectDeleteMarker cannot be specified with Tags"));
    }
    Ok(Rule {
        id,
        enabled,
        filter,
        form,
        has_prefix,
        expiration,
        noncurrent,
        abort_days,
        transitions,
        noncurrent_transitions,
    })
}

fn filter(e: &Element) -> Result<(Filter, Form, bool)> {
    match (e.child("Prefix"), e.child("Filter")) {
        (Some(_), Some(_)) => Err(malformed()),
        (Some(prefix), None) => Ok((Filter { prefix: prefix.text.clone(), ..Filter::default() }, Form::Old, true)),
        // Neither: S3 refuses it, RGW and older tools take it for "all".
        (None, None) => Ok((Filter::default(), Form::One, false)),
        (None, Some(f)) => {
            let (inner, form) = match f.child("And") {
                Some(and) if f.children.len() == 1 => (and, Form::And),
                Some(_) => return Err(malformed()),
                None if f.children.len() > 1 => return Err(malformed()),
                None => (f, Form::One),
            };
            inner.only(&["Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan"])?;
            let mut tags = Vec::new();
            for tag in inner.all("Tag") {
                let pair = (tag.need("Key")?.to_owned(), tag.need("Value")?.to_owned());
                if tags.iter().any(|(key, _)| *key == pair.0) {
                    return Err(Error::new(Kind::InvalidRequest, "Duplicate Tag Keys are not allowed."));
                }
                tags.push(pair);
            }
            let size = |name: &str| -> Result<Option<u64>> {
                inner
                    .number_of(name)?
                    .map(|n| u64::try_from(n).map_err(|_| invalid(format!("{name} is negative"))))
                    .transpose()
            };
            let (greater, less) = (size("ObjectSizeGreaterThan")?, size("ObjectSizeLessThan")?);
            if let (Some(greater), Some(less)) = (greater, less)
                && less <= greater.saturating_add(1)
            {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan' plus 1.",
                ));
            }
            let prefix = inner.text_of("Prefix");
            let filter = Filter { prefix: prefix.unwrap_or_default().to_owned(), tags, greater, less };
            Ok((filter, form, prefix.is_some()))
        }
    }
}

/// A number of days of at least `min`.
fn days(e: &Element, name: &str, min: i64) -> Result<Option<u32>> {
    match e.number_of(name)? {
        None => Ok(None),
        Some(n) if n < min => {
            let word = if min == 0 { "nonnegative" } else { "positive" };
            Err(invalid(format!("'{name}' for {} action must be a {word} integer", e.name)))
        }
        Some(n) => Ok(Some(u32::try_from(n).map_err(|_| malformed())?)),
    }
}

fn when(e: &Element, min: i64) -> Result<Option<When>> {
    match (days(e, "Days", min)?, e.text_of("Date")) {
        (Some(_), Some(_)) => Err(malformed()),
        (Some(days), None) => Ok(Some(When::Days(days))),
        (None, Some(text)) => Ok(Some(When::Date(date(text)?))),
        (None, None) => Ok(None),
    }
}

/// An ISO 8601 day or moment, at midnight UTC.
fn date(text: &str) -> Result<i64> {
    let day = format_description!("[year]-[month]-[day]");
    let at =
        Date::parse(text, day).map(|d| d.midnight().assume_utc()).or_else(|_| OffsetDateTime::parse(text, &Rfc3339));
    let at = at.map_err(|_| malformed())?.unix_timestamp();
    if at.rem_euclid(DAY as i64) != 0 {
        return Err(invalid("'Date' must be at midnight GMT"));
    }
    Ok(at)
}

fn expiration(e: &Element) -> Result<Expiration> {
    e.only(&["Days", "Date", "ExpiredObjectDeleteMarker"])?;
    let delete_marker = match e.text_of("ExpiredObjectDeleteMarker") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(malformed()),
    };
    let when = when(e, 1)?;
    if (when.is_some() && delete_marker) || e.children.is_empty() {
        return Err(malformed());
    }
    Ok(Expiration { when, delete_marker })
}

fn noncurrent(e: &Element) -> Result<Noncurrent> {
    e.only(&["NoncurrentDays", "NewerNoncurrentVersions"])?;
    noncurrent_of(e, 1)
}

fn noncurrent_of(e: &Element, min: i64) -> Result<Noncurrent> {
    let days = days(e, "NoncurrentDays", min)?;
    let newer = match e.number_of("NewerNoncurrentVersions")? {
        None => 0,
        Some(n @ 1..=100) => n as u32,
        Some(_) => return Err(invalid("'NewerNoncurrentVersions' must be between 1 and 100")),
    };
    if days.is_none() && newer == 0 {
        return Err(malformed());
    }
    Ok(Noncurrent { days: days.unwrap_or(0), newer })
}

fn class(e: &Element) -> Result<String> {
    let class = e.need("StorageClass")?;
    if CLASSES.contains(&class) { Ok(class.to_owned()) } else { Err(malformed()) }
}

/// The document.
pub fn to_xml(rules: &[Rule]) -> String {
    Out::document("LifecycleConfiguration", |out| rules.iter().for_each(|r| out.element("Rule", |out| r.write(out))))
}

impl Rule {
    fn write(&self, out: &mut Out) {
        let when = |out: &mut Out, when: When| match when {
            When::Days(days) => out.text("Days", &days.to_string()),
            When::Date(at) => {
                let at = OffsetDateTime::from_unix_timestamp(at).ok().and_then(|t| t.format(&Rfc3339).ok());
                out.maybe("Date", at.as_deref());
            }
        };
        let noncurrent = |out: &mut Out, n: Noncurrent| {
            if n.days > 0 || n.newer == 0 {
                out.text("NoncurrentDays", &n.days.to_string());
            }
            if n.newer > 0 {
                out.text("NewerNoncurrentVersions", &n.newer.to_string());
            }
        };
        if let Some(e) = &self.expiration {
            out.element("Expiration", |out| {
                if let Some(at) = e.when {
                    when(out, at);
                } else {
                    out.text("ExpiredObjectDeleteMarker", if e.delete_marker { "true" } else { "false" });
                }
            });
        }
        out.text("ID", &self.id);
        match self.form {
            Form::Old => out.text("Prefix", &self.filter.prefix),
            Form::One => out.element("Filter", |out| self.write_filter(out)),
            Form::And => out.element("Filter", |out| out.element("And", |out| self.write_filter(out))),
        }
        out.text("Status", if self.enabled { "Enabled" } else { "Disabled" });
        for (at, class) in &self.transitions {
            out.element("Transition", |out| {
                when(out, *at);
                out.text("StorageClass", class);
            });
        }
        for (n, class) in &self.noncurrent_transitions {
            out.element("NoncurrentVersionTransition", |out| {
                noncurrent(out, *n);
                out.text("StorageClass", class);
            });
        }
        if let Some(n) = self.noncurrent {
            out.element("NoncurrentVersionExpiration", |out| noncurrent(out, n));
        }
        if let Some(days) = self.abort_days {
            out.element("AbortIncompleteMultipartUpload", |out| out.text("DaysAfterInitiation", &days.to_string()));
        }
    }

    fn write_filter(&self, out: &mut Out) {
        if self.has_prefix {
            out.text("Prefix", &self.filter.prefix);
        }
        for (key, value) in &self.filter.tags {
            out.element("Tag", |out| {
                out.text("Key", key);
                out.text("Value", value);
            });
        }
        out.maybe("ObjectSizeGreaterThan", self.filter.greater.map(|n| n.to_string()).as_deref());
        out.maybe("ObjectSizeLessThan", self.filter.less.map(|n| n.to_string()).as_deref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(inner: &str) -> Result<Rule> {
        let text = format!("<LifecycleConfiguration><Rule>{inner}</Rule></LifecycleConfiguration>");
        let rules = parse(text.as_bytes())?;
        assert_eq!(parse(to_xml(&rules).as_bytes()).unwrap(), rules, "{inner}");
        Ok(rules.into_iter().next().unwrap())
    }

    const ON: &str = "<ID>r</ID><Status>Enabled</Status>";

    #[test]
    fn rules_come_back() {
        for inner in [
            "<Prefix>a/</Prefix><Expiration><Days>1</Days></Expiration>",
            "<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
            "<Filter><Prefix/></Filter><Expiration><Date>2030-01-01T00:00:00Z</Date></Expiration>",
            "<Filter><And><Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter><NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays><NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
            "<Filter><ObjectSizeLessThan>9</ObjectSizeLessThan></Filter><Transition><Days>0</Days><StorageClass>GLACIER</StorageClass></Transition>",
            "<Prefix/><AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation></AbortIncompleteMultipartUpload>",
        ] {
            one(&format!("{ON}{inner}")).unwrap();
        }
        let made = one("<Status>Enabled</Status><Prefix/><Expiration><Days>1</Days></Expiration>").unwrap();
        assert_eq!(made.id.len(), 32);
    }

    #[test]
    fn what_s3_refuses() {
        let days = "<Expiration><Days>1</Days></Expiration>";
        for (inner, want) in [
            (format!("<Status>enabled</Status><Prefix/>{days}"), Kind::MalformedXml),
            (format!("{ON}<Prefix/>"), Kind::InvalidRequest),
            (format!("{ON}<Prefix/><Filter/>{days}"), Kind::MalformedXml),
            (format!("<ID>{}</ID><Status>Enabled</Status><Prefix/>{days}", "i".repeat(256)), Kind::InvalidArgument),
            (format!("{ON}<Prefix/><Expiration><Days>0</Days></Expiration>"), Kind::InvalidArgument),
            (format!("{ON}<Prefix/><Expiration><Days>x</Days></Expiration>"), Kind::MalformedXml),
            (format!("{ON}<Prefix/><Expiration><Date>20200101</Date></Expiration>"), Kind::MalformedXml),
            (format!("{ON}<Prefix/><Expiration><Date>2020-01-01T01:00:00Z</Date></Expiration>"), Kind::InvalidArgument),
            (format!("{ON}<Filter><Prefix/><Tag><Key>a</Key><Value/></Tag></Filter>{days}"), Kind::MalformedXml),
            (
                format!(
                    "{ON}<Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>6</ObjectSizeLessThan></And></Filter>{days}"
                ),
                Kind::InvalidRequest,
            ),
            (
                format!("{ON}<Prefix/><Transition><Days>1</Days><StorageClass>TAPE</StorageClass></Transition>"),
                Kind::MalformedXml,
            ),
        ] {
            assert_eq!(one(&inner).unwrap_err().kind, want, "{inner}");
        }
        let twice = format!("<Rule>{ON}<Prefix/>{days}</Rule>").repeat(2);
        let text = format!("<LifecycleConfiguration>{twice}</LifecycleConfiguration>");
        assert_eq!(parse(text.as_bytes()).unwrap_err().kind, Kind::InvalidArgument);
    }

    #[test]
    fn who_is_meant_and_when() {
        let rule = one(&format!(
            "{ON}<Filter><And><Prefix>p/</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter><Expiration><Days>2</Days></Expiration>"
        ))
        .unwrap();
        let tags = [("k".to_owned(), "v".to_owned()), ("x".to_owned(), "y".to_owned())];
        let check = |key, size, tags: &[(String, String)], want| {
            assert_eq!(rule.filter.matches(Subject { key, size, tags }), want, "{key} {size}");
        };
        check("p/a", 6, &tags, true);
        check("q/a", 6, &tags, false);
        check("p/a", 5, &tags, false);
        check("p/a", 6, &tags[1..], false);
        let at = UnixMicros(1_700_000_000_000_000);
        let midnight = 1_700_000_000u64.div_ceil(DAY) * DAY;
        assert_eq!(rule.expires(at, Calendar::default()), Some(midnight + 2 * DAY));
        assert_eq!(rule.expires(at, Calendar { day_seconds: 10 }), Some(1_700_000_020));
        let header = expiry(&[rule], Subject { key: "p/a", size: 6, tags: &tags }, at).unwrap();
        assert_eq!(header, "expiry-date=\"Fri, 17 Nov 2023 00:00:00 GMT\", rule-id=\"r\"");
    }
}
