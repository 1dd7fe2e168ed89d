//! Where in its text a part of a document is, for messages that point. For documents that were read before: it looks at
//! quotes and brackets only, and finds nothing where the text is no JSON or spells a name with escapes.

use std::ops::Range;

/// One step down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// To a member of an object.
    Key(&'a str),
    /// To an item of a list; what stands alone is its own first item.
    Index(usize),
}

/// The bytes of the part at the end of this path.
///
/// ```
/// use karri_base::aws::policy::place::{Step, line_and_column, span};
/// let text = "{\"Statement\":\n [{\"Sid\": \"a\"}, {\"Sid\": \"b\"}]}";
/// let found = span(text, &[Step::Key("Statement"), Step::Index(1), Step::Key("Sid")]).unwrap();
/// assert_eq!((&text[found.clone()], line_and_column(text, found.start)), ("\"b\"", (2, 24)));
/// ```
pub fn span(text: &str, path: &[Step<'_>]) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = blank(bytes, 0);
    for step in path {
        at = match step {
            Step::Key(key) => {
                let mut next = after(bytes, at, b'{')?;
                loop {
                    let end = end_of(bytes, next).filter(|_| bytes.get(next) == Some(&b'"'))?;
                    let value = after(bytes, blank(bytes, end), b':')?;
                    if text.get(next + 1..end - 1) == Some(*key) {
                        break value;
                    }
                    next = after(bytes, blank(bytes, end_of(bytes, value)?), b',')?;
                }
            }
            Step::Index(0) if bytes.get(at) != Some(&b'[') => at,
            Step::Index(index) => {
                let mut next = after(bytes, at, b'[')?;
                for _ in 0..*index {
                    next = after(bytes, blank(bytes, end_of(bytes, next)?), b',')?;
                }
                next
            }
        };
    }
    let end = end_of(bytes, at).filter(|end| *end > at)?;
    text.get(at..end).map(|_| at..end)
}

/// The line of an offset, from 1, and its column in characters, from 0.
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[begin..].chars().count())
}

fn blank(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

/// What comes behind this mark and white space.
fn after(bytes: &[u8], at: usize, mark: u8) -> Option<usize> {
    (bytes.get(at) == Some(&mark)).then(|| blank(bytes, at + 1))
}

/// Where the value that begins here ends.
fn end_of(bytes: &[u8], begin: usize) -> Option<usize> {
    let (mut at, mut depth) = (begin, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => {
                at += 1;
                while *bytes.get(at)? != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' => depth += 1,
            // The list around a bare word ends.
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return Some(at),
            // Inside of something, or a letter of a bare word.
            _ => {
                at += 1;
                continue;
            }
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let text = r#"{ "Id" : "a}\"]", "Statement" : [ {"A": [true, "x" ,3 ], "B": {}} , {"A":"é,\\"} ] }"#;
        let of = |path: &[Step<'_>]| span(text, path).map(|found| &text[found]);
        let statement = |n| [Step::Key("Statement"), Step::Index(n)];
        assert_eq!(of(&[Step::Key("Id")]), Some(r#""a}\"]""#));
        assert_eq!(of(&statement(1)), Some(r#"{"A":"é,\\"}"#));
        let item = |n| [statement(0)[0], statement(0)[1], Step::Key("A"), Step::Index(n)];
        assert_eq!(
            [of(&item(0)), of(&item(1)), of(&item(2)), of(&item(3))],
            [Some("true"), Some("\"x\""), Some("3"), None]
        );
        assert_eq!(of(&[Step::Key("None")]), None);
        assert_eq!(of(&statement(2)), None);
        assert_eq!(of(&[]), Some(text));
        for broken in ["", "{", "{\"a\"", "{\"a\":", "[\"", "\"\\", "{,}", "]"] {
            assert_eq!(span(broken, &[Step::Key("a"), Step::Index(1)]), None, "{broken}");
        }
        assert_eq!(line_and_column("a\nbé\nc", 6), (3, 0));
        assert_eq!(line_and_column("a", 9), (1, 1));
    }
}
