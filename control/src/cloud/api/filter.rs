//! Filters of the Describe actions: all must match; of one filter's values any; `*` and `?` are wild, `\` takes that away.

use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::records::Tags;

/// AWS's bound on values over all filters of a request.
const VALUES_MAX: usize = 200;

/// A request's filters, their names known to the action.
#[derive(Debug, Default)]
pub struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Checks the names against those the action knows; `tag:KEY`, `tag-key` and `tag-value` go with `tags`.
    ///
    /// # Errors
    /// A filter without name or values, or of an unknown name.
    pub fn new(filters: Vec<ec2::Filter>, known: &[&str], tags: bool) -> ApiResult<Self> {
        let mut out = Vec::with_capacity(filters.len());
        let mut values = 0;
        for filter in filters {
            let name = filter.name.filter(|n| !n.is_empty());
            let name = name.ok_or_else(|| ApiError::missing("Filter.Name"))?;
            let of_tags = tags && (name.starts_with("tag:") || name == "tag-key" || name == "tag-value");
            if !of_tags && !known.contains(&name.as_str()) {
                return Err(ApiError::new(Code::InvalidParameterValue, format!("The filter '{name}' is invalid")));
            }
            if filter.values.is_empty() {
                let message = format!("The filter '{name}' must have at least one value");
                return Err(ApiError::new(Code::InvalidParameterValue, message));
            }
            values += filter.values.len();
            if values > VALUES_MAX {
                let message = format!("The maximum number of filter values is {VALUES_MAX}");
                return Err(ApiError::new(Code::InvalidFilter, message));
            }
            out.push((name, filter.values));
        }
        Ok(Self(out))
    }

    /// True when a thing with these tags passes; `values` gives its values under a filter's name.
    pub fn keep(&self, tags: &Tags, values: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let matches = |has: &str| wanted.iter().any(|pattern| glob(pattern, has));
            if let Some(key) = name.strip_prefix("tag:") {
                return tags.get(key).is_some_and(|v| matches(v));
            }
            match name.as_str() {
                "tag-key" => tags.keys().any(|k| matches(k)),
                "tag-value" => tags.values().any(|v| matches(v)),
                name => values(name).iter().any(|v| matches(v)),
            }
        })
    }

    /// True when nothing is filtered by this name.
    pub fn lacks(&self, name: &str) -> bool {
        !self.0.iter().any(|(n, _)| n == name)
    }
}

/// One value, or none.
pub fn one(value: Option<impl ToString>) -> Vec<String> {
    value.map(|v| v.to_string()).into_iter().collect()
}

/// Matches with `*` (any run), `?` (one character) and `\` (the next character as it is). Linear in the product of the
/// lengths: the last star is the only place to go back to.
pub fn glob(pattern: &str, text: &str) -> bool {
    #[derive(PartialEq)]
    enum Part {
        Any,
        One,
        Just(char),
    }
    let mut parts = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::Any,
            '?' => Part::One,
            '\\' => Part::Just(chars.next().unwrap_or('\\')),
            c => Part::Just(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match parts.get(p) {
            Some(Part::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Part::One) => (p, t) = (p + 1, t + 1),
            Some(Part::Just(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((sp, st)) => {
                    star = Some((sp, st + 1));
                    (p, t) = (sp + 1, st + 1);
                }
                None => return false,
            },
        }
    }
    parts[p..].iter().all(|part| *part == Part::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_ec2() {
        for (pattern, text, yes) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*am*zon?*", "xamazonian", true),
            (r"\*amazo\?\\", r"*amazo?\", true),
            (r"\*x", "ax", false),
            ("**é?", "xxéö", true),
        ] {
            assert_eq!(glob(pattern, text), yes, "{pattern} {text}");
        }
        let hostile = "*a".repeat(60);
        assert!(!glob(&hostile, &"a".repeat(59)));
    }

    #[test]
    fn unknown_names_and_empty_values_are_refused() {
        let filter = |name: Option<&str>, values: &[&str]| ec2::Filter {
            name: name.map(String::from),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        assert!(Filters::new(vec![filter(Some("x"), &["1"])], &["x"], false).is_ok());
        for bad in
            [filter(Some("y"), &["1"]), filter(None, &["1"]), filter(Some("x"), &[]), filter(Some("tag:a"), &["1"])]
        {
            assert!(Filters::new(vec![bad], &["x"], false).is_err());
        }
        let by_tag = Filters::new(vec![filter(Some("tag:a"), &["1*"])], &[], true).unwrap();
        let tags = |v: &str| Tags::from([("a".to_owned(), v.to_owned())]);
        assert!(by_tag.keep(&tags("12"), |_| vec![]));
        assert!(!by_tag.keep(&tags("21"), |_| vec![]));
        assert!(!by_tag.keep(&Tags::new(), |_| vec![]));
    }
}
