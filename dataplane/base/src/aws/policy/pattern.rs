//! Texts with `*`, `?` and policy variables (`${aws:username}`, `${aws:PrincipalTag/team, 'none'}`, `${*}`), and ARNs
//! compared component by component, so that no wildcard reaches over a colon of the first five.
//!
//! What a variable stands for is taken literally: a `*` in somebody's tag is a star. ("IAM policy elements: Variables
//! and tags", "ARN formats".)

use std::borrow::Cow;

/// Where variables find their values: the one value of a key; none where it is absent or has several.
pub trait Variables {
    /// The value of a key.
    fn variable(&self, key: &str) -> Option<Cow<'_, str>>;
}

/// No variable has a value.
impl Variables for () {
    fn variable(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Char(char),
    One,
    Any,
    Variable { key: String, default: Option<String> },
}

/// A text to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<Piece>,
    has_variables: bool,
    /// The text itself, where nothing in it is special.
    literal: Option<String>,
}

/// How a [`Pattern`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare {
    /// `*` and `?` are wildcards (`StringLike`); else they stand for themselves.
    pub wild: bool,
    /// ASCII letters compare without regard to case.
    pub fold: bool,
}

impl Pattern {
    /// Reads a pattern; with `variables` (policies of version 2012-10-17), `${...}` is one.
    ///
    /// # Errors
    /// What is wrong with a variable.
    pub fn parse(text: &str, variables: bool) -> Result<Self, String> {
        let mut pieces = Vec::with_capacity(text.len());
        let (mut rest, mut has_variables) = (text, false);
        while let Some(c) = rest.chars().next() {
            if variables && rest.starts_with("${") {
                let end = rest.find('}').ok_or_else(|| format!("{text:?} has a variable without an end"))?;
                let piece =
                    variable(&rest[2..end]).ok_or_else(|| format!("{text:?} has a variable of a wrong form"))?;
                has_variables |= matches!(piece, Piece::Variable { .. });
                pieces.push(piece);
                rest = &rest[end + 1..];
                continue;
            }
            pieces.push(match c {
                '*' => Piece::Any,
                '?' => Piece::One,
                c => Piece::Char(c),
            });
            rest = &rest[c.len_utf8()..];
        }
        let literal = pieces.iter().map(|p| if let Piece::Char(c) = p { Some(*c) } else { None }).collect();
        Ok(Self { pieces, has_variables, literal })
    }

    /// True for `*` alone.
    pub fn is_everything(&self) -> bool {
        self.pieces == [Piece::Any]
    }

    /// The condition keys that its variables name.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|p| if let Piece::Variable { key, .. } = p { Some(key.as_str()) } else { None })
    }

    /// True where the text matches; `None` where a variable has no value and no default.
    pub fn matches(&self, text: &str, how: Compare, variables: &dyn Variables) -> Option<bool> {
        if let Some(literal) = &self.literal {
            return Some(if how.fold { literal.eq_ignore_ascii_case(text) } else { literal == text });
        }
        if how.wild && self.is_everything() {
            return Some(true);
        }
        let pieces = self.resolved(how, variables)?;
        Some(glob(&pieces, text, how.fold))
    }

    /// With values in the place of variables.
    fn resolved(&self, how: Compare, variables: &dyn Variables) -> Option<Cow<'_, [Piece]>> {
        if how.wild && !self.has_variables {
            return Some(Cow::Borrowed(&self.pieces));
        }
        let mut out = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            match piece {
                Piece::Variable { key, default } => {
                    let value = variables.variable(key).or(default.as_deref().map(Cow::Borrowed))?;
                    out.extend(value.chars().map(Piece::Char));
                }
                Piece::Any if !how.wild => out.push(Piece::Char('*')),
                Piece::One if !how.wild => out.push(Piece::Char('?')),
                other => out.push(other.clone()),
            }
        }
        Some(Cow::Owned(out))
    }

    /// The text with values in the place of variables, for values that are no patterns (numbers, dates, addresses).
    pub fn text(&self, variables: &dyn Variables) -> Option<Cow<'_, str>> {
        if let Some(literal) = &self.literal {
            return Some(Cow::Borrowed(literal));
        }
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Char(c) => out.push(*c),
                Piece::Any => out.push('*'),
                Piece::One => out.push('?'),
                Piece::Variable { key, default } => {
                    out.push_str(&variables.variable(key).or(default.as_deref().map(Cow::Borrowed))?);
                }
            }
        }
        Some(Cow::Owned(out))
    }
}

/// What is between `${` and `}`.
fn variable(inside: &str) -> Option<Piece> {
    if let "*" | "?" | "$" = inside {
        return inside.chars().next().map(Piece::Char);
    }
    let (key, default) = match inside.split_once(',') {
        None => (inside, None),
        Some((key, default)) => (key, Some(default.trim().strip_prefix('\'')?.strip_suffix('\'')?.to_owned())),
    };
    let key = key.trim();
    let plain = |c: char| c.is_alphanumeric() || ":/-_.=+@ ".contains(c);
    let well = key.split_once(':').is_some_and(|(service, name)| !service.is_empty() && !name.is_empty());
    (well && key.chars().all(plain)).then(|| Piece::Variable { key: key.to_owned(), default })
}

/// Iterative: on a mismatch, the last star takes one more. At most pieces x text steps.
fn glob(pieces: &[Piece], text: &str, fold: bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let c = text[t..].chars().next();
        match (pieces.get(p), c) {
            (Some(Piece::Any), _) => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            (None, None) => return true,
            (Some(Piece::One), Some(c)) => {
                (p, t) = (p + 1, t + c.len_utf8());
                continue;
            }
            (Some(Piece::Char(want)), Some(c)) if *want == c || fold && want.eq_ignore_ascii_case(&c) => {
                (p, t) = (p + 1, t + c.len_utf8());
                continue;
            }
            _ => {}
        }
        // Pieces behind the star are tried again one character on.
        let Some((after, from)) = star else { return false };
        let Some(c) = text[from..].chars().next() else { return false };
        if after == pieces.len() {
            return true;
        }
        star = Some((after, from + c.len_utf8()));
        (p, t) = (after, from + c.len_utf8());
    }
}

/// An ARN to compare with, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArnPattern {
    /// None for `*`.
    parts: Option<Box<[Pattern; 6]>>,
}

impl ArnPattern {
    /// Reads it.
    ///
    /// # Errors
    /// What makes it none.
    pub fn parse(text: &str, variables: bool) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self { parts: None });
        }
        let texts = components(text, variables);
        let Ok(texts) = <[&str; 6]>::try_from(texts) else {
            return Err(format!("{text:?} must be in ARN format or \"*\""));
        };
        if texts[0] != "arn" || texts[1].is_empty() || texts[2].is_empty() || texts[5].is_empty() {
            return Err(format!("{text:?} must be in ARN format or \"*\""));
        }
        let mut parts = Vec::with_capacity(6);
        for text in texts {
            parts.push(Pattern::parse(text, variables)?);
        }
        let parts = <[Pattern; 6]>::try_from(parts).map_err(|_| "six parts".to_owned())?;
        Ok(Self { parts: Some(Box::new(parts)) })
    }

    /// The condition keys that its variables name.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|parts| parts.iter().flat_map(Pattern::keys))
    }

    /// The service's component, as written; `*` for everything.
    pub fn service(&self) -> &str {
        self.parts.as_ref().map_or("*", |parts| parts[2].literal.as_deref().unwrap_or("*"))
    }

    /// True where the ARN matches; `None` where a variable has no value. What is no ARN matches `*` only.
    pub fn matches(&self, arn: &str, variables: &dyn Variables) -> Option<bool> {
        let Some(parts) = &self.parts else { return Some(true) };
        let mut texts = arn.splitn(6, ':');
        for part in parts.iter() {
            let Some(text) = texts.next() else { return Some(false) };
            if !part.matches(text, Compare { wild: true, fold: false }, variables)? {
                return Some(false);
            }
        }
        Some(true)
    }
}

/// Up to six texts between colons; colons inside `${...}` do not count.
fn components(text: &str, variables: bool) -> Vec<&str> {
    let (mut out, mut from, mut at) = (Vec::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() && out.len() < 5 {
        if variables && text[at..].starts_with("${") {
            at += text[at..].find('}').unwrap_or(text.len() - at - 1);
        } else if bytes[at] == b':' {
            out.push(&text[from..at]);
            from = at + 1;
        }
        at += 1;
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    out.push(&text[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Map(&'static [(&'static str, &'static str)]);
    impl Variables for Map {
        fn variable(&self, key: &str) -> Option<Cow<'_, str>> {
            self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| Cow::Borrowed(*v))
        }
    }
    const WILD: Compare = Compare { wild: true, fold: false };

    #[test]
    fn wildcards_match_as_they_should() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("?", "", false),
            ("?", "\u{e9}", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("*c", "abcd", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdef", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*ab*ab", "aababab", true),
            ("*aab", "aaab", true),
            ("a*?", "a", false),
            ("ab", "aB", false),
        ] {
            let parsed = Pattern::parse(pattern, true).expect("a pattern");
            assert_eq!(parsed.matches(text, WILD, &()), Some(expected), "{pattern} {text}");
        }
        let folded = Pattern::parse("s3:Get*", true).expect("a pattern");
        assert_eq!(folded.matches("S3:gETobject", Compare { wild: true, fold: true }, &()), Some(true));
        let long = format!("{}b", "*a".repeat(200));
        let hard = Pattern::parse(&long, true).expect("a pattern");
        assert_eq!(hard.matches(&"a".repeat(2000), WILD, &()), Some(false), "in little time");
    }

    #[test]
    fn variables_are_literal_and_may_have_defaults() {
        let map = Map(&[("aws:username", "a*b"), ("aws:PrincipalTag/team", "blue")]);
        let matches =
            |pattern: &str, text: &str| Pattern::parse(pattern, true).expect("a pattern").matches(text, WILD, &map);
        assert_eq!(matches("home/${aws:username}/*", "home/a*b/x"), Some(true));
        assert_eq!(matches("home/${aws:username}/*", "home/aXb/x"), Some(false));
        assert_eq!(matches("${AWS:UserName}", "a*b"), Some(true));
        assert_eq!(matches("${aws:PrincipalTag/team, 'red'}", "blue"), Some(true));
        assert_eq!(matches("${aws:PrincipalTag/none, 'red'}", "red"), Some(true));
        assert_eq!(matches("${aws:PrincipalTag/none}", ""), None);
        assert_eq!(matches("${*}${?}${$}", "*?$"), Some(true));
        assert_eq!(matches("${*}", "x"), Some(false));
        for bad in ["${", "${}", "${aws:}", "${username}", "${a:b, red}", "${a:b${c:d}}"] {
            assert!(Pattern::parse(bad, true).is_err(), "{bad}");
            assert!(Pattern::parse(bad, false).is_ok(), "old policies have no variables: {bad}");
        }
    }

    #[test]
    fn arns_compare_by_component() {
        let map = Map(&[("aws:username", "bob"), ("aws:PrincipalTag/x", "a:b")]);
        let matches = |pattern: &str, arn: &str| {
            ArnPattern::parse(pattern, true).expect("an ARN pattern").matches(arn, &map).unwrap_or(false)
        };
        assert!(matches("*", "anything"));
        assert!(matches("arn:aws:s3:::b/*", "arn:aws:s3:::b/a:b/c"));
        assert!(!matches("arn:aws:s3:::b", "arn:aws:s3:::b/k"));
        assert!(matches("arn:aws:s3:::${aws:username}/*", "arn:aws:s3:::bob/k"));
        assert!(matches("arn:aws:s3:::${aws:PrincipalTag/x}", "arn:aws:s3:::a:b"));
        assert!(matches("arn:aws:ec2:*:*:instance/*", "arn:aws:ec2:r:1:instance/i-1"));
        assert!(!matches("arn:aws:ec2:*:instance:x", "arn:aws:ec2:r:1:instance/i-1"));
        for bad in
            ["", "x", "arn:aws:s3", "arn:aws:s3:::", "arn:aws::::x", "arn:aws:ec2:*:instance/i-1", "ARN:aws:s3:::b"]
        {
            assert!(ArnPattern::parse(bad, true).is_err(), "{bad}");
        }
    }
}
