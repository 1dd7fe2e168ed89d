//! Condition operators ("IAM JSON policy elements: Condition operators").
//!
//! All operators of a block must hold; under one operator all keys; of a key's values one is enough, or none may match
//! where the operator is negated. An absent key fails an operator, holds for a negated one and for `...IfExists`.
//! `ForAllValues:` asks each of the request's values, `ForAnyValue:` one of them. A value whose policy variable has no
//! value makes the whole condition false.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;

use super::pattern::{ArnPattern, Compare, Pattern, Variables};

/// Where conditions find a request's values.
pub trait Values: Variables {
    /// All values of a key; none where it is absent.
    fn values(&self, key: &str) -> Option<Cow<'_, [String]>>;
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Text { wild: bool, fold: bool },
    Number(Order),
    Date(Order),
    Bool,
    Binary,
    Address,
    Arn,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, value: &T, limit: &T) -> bool {
        match self {
            Self::Equal => value == limit,
            Self::Less => value < limit,
            Self::LessOrEqual => value <= limit,
            Self::Greater => value > limit,
            Self::GreaterOrEqual => value >= limit,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// Without a prefix.
    One,
    All,
    Any,
}

/// An operator with its prefix and suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operator {
    test: Test,
    negated: bool,
    if_exists: bool,
    set: Set,
}

impl Operator {
    fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (set, name) = match lower.split_once(':') {
            None => (Set::One, lower.as_str()),
            Some(("forallvalues", name)) => (Set::All, name),
            Some(("foranyvalue", name)) => (Set::Any, name),
            Some(_) => return None,
        };
        let (name, if_exists) = name.strip_suffix("ifexists").map_or((name, false), |name| (name, true));
        let (equal, other) = (false, true);
        let (test, negated) = match name {
            "stringequals" => (Test::Text { wild: false, fold: false }, equal),
            "stringnotequals" => (Test::Text { wild: false, fold: false }, other),
            "stringequalsignorecase" => (Test::Text { wild: false, fold: true }, equal),
            "stringnotequalsignorecase" => (Test::Text { wild: false, fold: true }, other),
            "stringlike" => (Test::Text { wild: true, fold: false }, equal),
            "stringnotlike" => (Test::Text { wild: true, fold: false }, other),
            "numericequals" => (Test::Number(Order::Equal), equal),
            "numericnotequals" => (Test::Number(Order::Equal), other),
            "numericlessthan" => (Test::Number(Order::Less), equal),
            "numericlessthanequals" => (Test::Number(Order::LessOrEqual), equal),
            "numericgreaterthan" => (Test::Number(Order::Greater), equal),
            "numericgreaterthanequals" => (Test::Number(Order::GreaterOrEqual), equal),
            "dateequals" => (Test::Date(Order::Equal), equal),
            "datenotequals" => (Test::Date(Order::Equal), other),
            "datelessthan" => (Test::Date(Order::Less), equal),
            "datelessthanequals" => (Test::Date(Order::LessOrEqual), equal),
            "dategreaterthan" => (Test::Date(Order::Greater), equal),
            "dategreaterthanequals" => (Test::Date(Order::GreaterOrEqual), equal),
            "bool" => (Test::Bool, equal),
            "binaryequals" => (Test::Binary, equal),
            "ipaddress" => (Test::Address, equal),
            "notipaddress" => (Test::Address, other),
            "arnequals" | "arnlike" => (Test::Arn, equal),
            "arnnotequals" | "arnnotlike" => (Test::Arn, other),
            // Whether a key is there says nothing about its values.
            "null" if set == Set::One && !if_exists => (Test::Null, equal),
            _ => return None,
        };
        Some(Self { test, negated, if_exists, set })
    }
}

/// A value of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Text(Pattern),
    Arn(ArnPattern),
}

impl Wanted {
    fn parse(test: Test, text: &str, variables: bool) -> Result<Self, String> {
        if test == Test::Arn {
            return ArnPattern::parse(text, variables).map(Self::Arn);
        }
        let pattern = Pattern::parse(text, variables)?;
        let is_plain = !(variables && text.contains("${"));
        let fits = match test {
            Test::Number(_) => number(text).is_some(),
            Test::Date(_) => date(text).is_some(),
            Test::Bool | Test::Null => boolean(text).is_some(),
            Test::Address => Network::parse(text).is_some(),
            Test::Binary => STANDARD.decode(text).is_ok(),
            Test::Text { .. } | Test::Arn => true,
        };
        match fits || !is_plain {
            true => Ok(Self::Text(pattern)),
            false => Err(format!("{text:?} is no {}", test.noun())),
        }
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Self::Text(pattern) => pattern.keys().collect(),
            Self::Arn(arn) => arn.keys().collect(),
        }
    }

    /// `None` where a variable has no value.
    fn holds(&self, test: Test, value: &str, values: &dyn Values) -> Option<bool> {
        let pattern = match self {
            Self::Arn(arn) => return arn.matches(value, &Upcast(values)),
            Self::Text(pattern) => pattern,
        };
        if let Test::Text { wild, fold } = test {
            return pattern.matches(value, Compare { wild, fold }, &Upcast(values));
        }
        let wanted = pattern.text(&Upcast(values))?;
        let both = |holds: Option<bool>| Some(holds.unwrap_or(false));
        both(match test {
            Test::Number(order) => number(value).zip(number(&wanted)).map(|(v, w)| order.holds(&v, &w)),
            Test::Date(order) => date(value).zip(date(&wanted)).map(|(v, w)| order.holds(&v, &w)),
            Test::Bool | Test::Null => boolean(value).zip(boolean(&wanted)).map(|(v, w)| v == w),
            Test::Binary => Some(STANDARD.decode(value).ok() == STANDARD.decode(wanted.as_bytes()).ok()),
            Test::Address => address(value).zip(Network::parse(&wanted)).map(|(v, w)| w.holds(v)),
            Test::Text { .. } | Test::Arn => None,
        })
    }
}

impl Test {
    fn noun(self) -> &'static str {
        match self {
            Self::Text { .. } => "string",
            Self::Number(_) => "number",
            Self::Date(_) => "ISO 8601 date and no epoch time",
            Self::Bool | Self::Null => "true or false",
            Self::Binary => "base64 value",
            Self::Address => "IP address or CIDR block",
            Self::Arn => "ARN",
        }
    }
}

/// `Values` as its `Variables`.
struct Upcast<'a>(&'a dyn Values);
impl Variables for Upcast<'_> {
    fn variable(&self, key: &str) -> Option<Cow<'_, str>> {
        self.0.variable(key)
    }
}

/// One key under one operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    operator: Operator,
    key: String,
    wanted: Vec<Wanted>,
    /// As written.
    texts: Vec<String>,
}

impl Condition {
    /// Reads one; `variables` as in [`Pattern::parse`].
    ///
    /// # Errors
    /// What is wrong with the operator, the key or a value.
    pub fn parse(operator: &str, key: &str, values: &[String], variables: bool) -> Result<Self, String> {
        let parsed = Operator::parse(operator).ok_or_else(|| format!("{operator:?} is no condition operator"))?;
        let well = key.split_once(':').is_some_and(|(service, name)| !service.is_empty() && !name.is_empty());
        if !well || key.chars().any(char::is_control) {
            return Err(format!("{key:?} is no condition key: want SERVICE:NAME"));
        }
        let wanted = values.iter().map(|text| Wanted::parse(parsed.test, text, variables));
        let wanted = wanted.collect::<Result<_, _>>().map_err(|why| format!("{operator} on {key}: {why}"))?;
        Ok(Self { operator: parsed, key: key.to_owned(), wanted, texts: values.to_vec() })
    }

    /// The key that it asks about.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The values that the key must have one of, as written; none where it also holds for others, or for none at all
    /// (negated and ordered comparisons, `Null`, `...IfExists`, `ForAllValues:`).
    pub fn only(&self) -> Option<&[String]> {
        let Operator { test, negated, if_exists, set } = self.operator;
        let compares = match test {
            Test::Null => false,
            Test::Number(order) | Test::Date(order) => order == Order::Equal,
            Test::Text { .. } | Test::Bool | Test::Binary | Test::Address | Test::Arn => true,
        };
        (compares && !negated && !if_exists && set != Set::All).then_some(&self.texts[..])
    }

    /// The key that it asks about, then those that its variables name.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.key.as_str()).chain(self.wanted.iter().flat_map(Wanted::keys))
    }

    /// True where it names no value, and so holds for none.
    pub fn names_no_value(&self) -> bool {
        self.wanted.is_empty()
    }

    /// True where it holds.
    pub fn holds(&self, values: &dyn Values) -> bool {
        let Operator { test, negated, if_exists, set } = self.operator;
        let given = values.values(&self.key).filter(|given| !given.is_empty());
        if test == Test::Null {
            let absent = if given.is_none() { "true" } else { "false" };
            return self.wanted.iter().any(|w| w.holds(test, absent, values) == Some(true));
        }
        let Some(given) = given else {
            return if_exists || set == Set::All || (negated && set == Set::One);
        };
        // One of the request's values against all of the policy's.
        let one = |value: &String| -> Option<bool> {
            let mut found = false;
            for wanted in &self.wanted {
                found |= wanted.holds(test, value, values)?;
            }
            Some(found != negated)
        };
        let each: Option<Vec<bool>> = given.iter().map(one).collect();
        let Some(each) = each else { return false };
        match set {
            Set::All => each.iter().all(|held| *held),
            Set::Any => each.iter().any(|held| *held),
            Set::One if negated => each.iter().all(|held| *held),
            Set::One => each.iter().any(|held| *held),
        }
    }
}

fn number(text: &str) -> Option<f64> {
    let plain = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    text.chars().all(plain).then(|| text.parse().ok()).flatten().filter(|n: &f64| n.is_finite())
}

fn boolean(text: &str) -> Option<bool> {
    match () {
        () if text.eq_ignore_ascii_case("true") => Some(true),
        () if text.eq_ignore_ascii_case("false") => Some(false),
        () => None,
    }
}

/// Microseconds since 1970, from seconds or W3C's ISO 8601 forms (a date, a time with a zone).
fn date(text: &str) -> Option<i128> {
    if let Ok(seconds) = text.parse::<i64>() {
        // Four digits are a year.
        if text.len() != 4 {
            return Some(i128::from(seconds) * 1_000_000);
        }
    }
    let whole = match text.len() {
        4 => format!("{text}-01-01T00:00:00Z"),
        7 => format!("{text}-01T00:00:00Z"),
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&whole, &Iso8601::DEFAULT).ok().map(|at| at.unix_timestamp_nanos() / 1000)
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|a| a.to_canonical())
}

/// `203.0.113.0/24`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(width), |bits| bits.parse().ok().filter(|b| *b <= width))?;
        // Requests' addresses are never IPv4 ones in IPv6's clothes: a network of such is one of IPv4.
        Some(match (address.to_canonical(), address) {
            (of_v4 @ IpAddr::V4(_), IpAddr::V6(_)) if bits >= 96 => Self { address: of_v4, bits: bits - 96 },
            _ => Self { address, bits },
        })
    }

    fn holds(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                u32::MAX.checked_shl(32 - self.bits).is_none_or(|mask| a.to_bits() & mask == b.to_bits() & mask)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                u128::MAX.checked_shl(128 - self.bits).is_none_or(|mask| a.to_bits() & mask == b.to_bits() & mask)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::Context;
    use super::*;

    struct Given(Context);
    impl Variables for Given {
        fn variable(&self, key: &str) -> Option<Cow<'_, str>> {
            match self.0.get(key) {
                Some([one]) => Some(Cow::Borrowed(one)),
                _ => None,
            }
        }
    }
    impl Values for Given {
        fn values(&self, key: &str) -> Option<Cow<'_, [String]>> {
            self.0.get(key).map(Cow::Borrowed)
        }
    }

    /// Operator, key's values (none: absent), wanted values, whether it holds.
    type Row = (&'static str, Option<&'static [&'static str]>, &'static [&'static str], bool);

    #[rustfmt::skip]
    const TABLE: &[Row] = &[
        ("StringEquals", Some(&["a"]), &["a"], true),
        ("stringequals", Some(&["a"]), &["b", "a"], true),
        ("StringEquals", Some(&["a"]), &["A"], false),
        ("StringEquals", Some(&["a"]), &["*"], false),
        ("StringEquals", Some(&["*"]), &["*"], true),
        ("StringEquals", None, &["a"], false),
        ("StringEqualsIfExists", None, &["a"], true),
        ("StringEqualsIfExists", Some(&["b"]), &["a"], false),
        ("StringNotEquals", Some(&["a"]), &["a", "b"], false),
        ("StringNotEquals", Some(&["c"]), &["a", "b"], true),
        ("StringNotEquals", None, &["a"], true),
        ("StringEqualsIgnoreCase", Some(&["aB"]), &["Ab"], true),
        ("StringNotEqualsIgnoreCase", Some(&["aB"]), &["Ab"], false),
        ("StringLike", Some(&["home/x"]), &["", "home/*"], true),
        ("StringLike", Some(&[""]), &["", "home/*"], true),
        ("StringLike", Some(&["Home/x"]), &["home/*"], false),
        ("StringNotLike", Some(&["home/x"]), &["home/*"], false),
        ("StringNotLike", Some(&["x"]), &["home/*"], true),
        ("StringLike", Some(&["v-x"]), &["${t:one}-*"], true),
        ("StringLike", Some(&["x"]), &["${t:none}"], false),
        ("StringNotLike", Some(&["x"]), &["${t:none}"], false),
        ("StringLike", Some(&["d"]), &["${t:none, 'd'}"], true),
        ("NumericEquals", Some(&["10"]), &["10.0"], true),
        ("NumericNotEquals", Some(&["10"]), &["10"], false),
        ("NumericLessThan", Some(&["9"]), &["10"], true),
        ("NumericLessThan", Some(&["10"]), &["10"], false),
        ("NumericLessThanEquals", Some(&["10"]), &["10"], true),
        ("NumericGreaterThan", Some(&["100"]), &["20"], true),
        ("NumericGreaterThanEquals", Some(&["19"]), &["20"], false),
        ("NumericEquals", Some(&["x"]), &["10"], false),
        ("NumericNotEquals", Some(&["x"]), &["10"], true),
        ("NumericLessThan", None, &["10"], false),
        ("DateEquals", Some(&["1700000000"]), &["2023-11-14T22:13:20Z"], true),
        ("DateNotEquals", Some(&["1700000000"]), &["2023-11-14T22:13:20Z"], false),
        ("DateLessThan", Some(&["1700000000"]), &["2023-11-15"], true),
        ("DateLessThanEquals", Some(&["1700000000"]), &["1700000000"], true),
        ("DateGreaterThan", Some(&["1700000000"]), &["2023"], true),
        ("DateGreaterThan", Some(&["1700000000"]), &["2023-12"], false),
        ("DateGreaterThanEquals", Some(&["2024-01-01T00:00:00+01:00"]), &["2023-12-31T23:00:00Z"], true),
        ("Bool", Some(&["true"]), &["TRUE"], true),
        ("Bool", Some(&["false"]), &["true"], false),
        ("Bool", None, &["false"], false),
        ("BoolIfExists", None, &["true"], true),
        ("BinaryEquals", Some(&["QmluYXJ5"]), &["QmluYXJ5"], true),
        ("BinaryEquals", Some(&["QmluYXJ6"]), &["QmluYXJ5"], false),
        ("IpAddress", Some(&["203.0.113.7"]), &["203.0.113.0/24"], true),
        ("IpAddress", Some(&["203.0.114.7"]), &["203.0.113.0/24", "10.0.0.0/8"], false),
        ("IpAddress", Some(&["::ffff:10.1.2.3"]), &["10.0.0.0/8"], true),
        ("IpAddress", Some(&["10.1.2.3"]), &["0.0.0.0/0"], true),
        ("IpAddress", Some(&["10.1.2.3"]), &["10.1.2.3"], true),
        ("IpAddress", Some(&["2001:db8::1"]), &["2001:db8::/32"], true),
        ("IpAddress", Some(&["2001:db9::1"]), &["2001:db8::/32"], false),
        ("IpAddress", Some(&["10.1.2.3"]), &["2001:db8::/32"], false),
        ("IpAddress", Some(&["10.1.2.3"]), &["::ffff:10.0.0.0/104"], true),
        ("IpAddress", Some(&["11.1.2.3"]), &["::ffff:10.0.0.0/104"], false),
        ("IpAddress", Some(&["10.1.2.3"]), &["::ffff:10.1.2.3"], true),
        ("IpAddress", Some(&["11.1.2.3"]), &["::ffff:0:0/96"], true),
        ("NotIpAddress", Some(&["10.1.2.3"]), &["::ffff:10.0.0.0/104"], false),
        ("NotIpAddress", Some(&["10.1.2.3"]), &["10.0.0.0/8"], false),
        ("NotIpAddress", Some(&["11.1.2.3"]), &["10.0.0.0/8"], true),
        ("ArnEquals", Some(&["arn:aws:s3:::b"]), &["arn:aws:s3:::b"], true),
        ("ArnEquals", Some(&["arn:aws:s3:::bc"]), &["arn:aws:s3:::b*"], true),
        ("ArnLike", Some(&["arn:aws:iam::1:user/a"]), &["arn:aws:iam::*:user/*"], true),
        ("ArnLike", Some(&["arn:aws:iam::1:role/a"]), &["arn:aws:iam::*:user/*"], false),
        ("ArnNotLike", Some(&["arn:aws:iam::1:role/a"]), &["arn:aws:iam::*:user/*"], true),
        ("ArnNotEquals", Some(&["arn:aws:s3:::b"]), &["arn:aws:s3:::b"], false),
        ("ArnLike", None, &["*"], false),
        ("Null", None, &["true"], true),
        ("Null", None, &["false"], false),
        ("Null", Some(&["x"]), &["true"], false),
        ("Null", Some(&["x"]), &["false"], true),
        ("Null", Some(&[]), &["true"], true),
        ("ForAllValues:StringEquals", Some(&["a", "b"]), &["a", "b", "c"], true),
        ("ForAllValues:StringEquals", Some(&["a", "d"]), &["a", "b", "c"], false),
        ("ForAllValues:StringEquals", None, &["a"], true),
        ("ForAllValues:StringEquals", Some(&[]), &["a"], true),
        ("ForAllValues:StringNotEquals", Some(&["a", "d"]), &["a"], false),
        ("ForAllValues:StringNotEquals", Some(&["b", "d"]), &["a"], true),
        ("ForAnyValue:StringEquals", Some(&["x", "b"]), &["a", "b"], true),
        ("ForAnyValue:StringEquals", Some(&["x", "y"]), &["a", "b"], false),
        ("ForAnyValue:StringEquals", None, &["a"], false),
        ("ForAnyValue:StringNotEquals", None, &["a"], false),
        ("ForAnyValue:StringNotEquals", Some(&["a", "x"]), &["a"], true),
        ("ForAnyValue:StringLikeIfExists", None, &["a"], true),
        ("ForAllValues:NumericLessThan", Some(&["1", "2"]), &["3"], true),
        ("StringEquals", Some(&["a", "b"]), &["b"], true),
        ("StringNotEquals", Some(&["a", "b"]), &["b"], false),
    ];

    #[test]
    fn operators_hold_as_documented() {
        for (operator, given, wanted, expected) in TABLE {
            let mut context = Context::default();
            context.text("t:one", "v");
            if let Some(given) = given {
                context.texts("t:key", given.iter().map(|v| (*v).to_owned()));
            }
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            let condition = Condition::parse(operator, "T:Key", &wanted, true).expect(operator);
            assert_eq!(condition.holds(&Given(context)), *expected, "{operator} {given:?} {wanted:?}");
        }
    }

    #[test]
    fn bad_conditions_are_named() {
        let wrong = |operator: &str, key: &str, value: &str| {
            let refused = Condition::parse(operator, key, &[value.to_owned()], true).expect_err("refused");
            assert!(refused.contains(operator) || refused.contains(key) || refused.contains(value), "{refused}");
        };
        for operator in ["", "Equals", "StringEqual", "NullIfExists", "ForAnyValue:Null", "ForSome:StringEquals"] {
            wrong(operator, "aws:x", "true");
        }
        wrong("StringEquals", "x", "y");
        wrong("StringEquals", ":x", "y");
        wrong("NumericEquals", "aws:x", "ten");
        wrong("DateEquals", "aws:x", "today");
        wrong("IpAddress", "aws:x", "10.0.0.0/33");
        wrong("IpAddress", "aws:x", "10.0.0");
        wrong("Bool", "aws:x", "yes");
        wrong("BinaryEquals", "aws:x", "***");
        wrong("ArnEquals", "aws:x", "not-an-arn");
        assert!(Condition::parse("IpAddress", "aws:x", &["${aws:y}".to_owned()], true).is_ok());
        let keys = Condition::parse("StringLike", "aws:x", &["${aws:y}".to_owned()], true).expect("parses");
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["aws:x", "aws:y"]);
    }
}
