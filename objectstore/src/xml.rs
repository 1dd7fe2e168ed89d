//! XML documents of the S3 API that Walrus reads and writes itself: a bounded tree in, text out.
//!
//! Hostile input costs at most what its bytes cost: no document types, no entities but XML's own five, bounded depth and
//! count of elements. Namespaces are dropped: S3 takes its documents with and without one.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

use quick_xml::escape::partial_escape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::error::{Error, Kind, Result};

/// The deepest nesting; S3's own documents need 7.
const DEPTH_MAX: usize = 16;
/// Elements of one document: 1,000 lifecycle rules have fewer.
const ELEMENTS_MAX: usize = 64_000;

/// S3's namespace.
pub const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An element without its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Its name.
    pub name: String,
    /// Local names and values of its attributes.
    pub attributes: Vec<(String, String)>,
    /// Its text; empty where it has elements in it.
    pub text: String,
    /// The elements in it.
    pub children: Vec<Element>,
}

fn malformed() -> Error {
    Kind::MalformedXml.into()
}

impl Element {
    /// Reads a document whose root has this name.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse(document: &[u8], root: &str) -> Result<Self> {
        let element = Self::parse_any(document)?;
        if element.name == root { Ok(element) } else { Err(malformed()) }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn parse_any(document: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(document).map_err(|_| malformed())?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        let (mut open, mut root, mut count) = (Vec::<Self>::new(), None, 0usize);
        loop {
            match reader.read_event().map_err(|_| malformed())? {
                Event::Start(start) => {
                    count += 1;
                    if open.len() >= DEPTH_MAX || count > ELEMENTS_MAX || (open.is_empty() && root.is_some()) {
                        return Err(malformed());
                    }
                    open.push(Self::begin(&start)?);
                }
                Event::Empty(start) => {
                    count += 1;
                    if count > ELEMENTS_MAX {
                        return Err(malformed());
                    }
                    Self::end(Self::begin(&start)?, &mut open, &mut root)?;
                }
                Event::End(_) => {
                    let element = open.pop().ok_or_else(malformed)?;
                    Self::end(element, &mut open, &mut root)?;
                }
                Event::Text(text) => Self::add(&text.xml10_content().map_err(|_| malformed())?, &mut open)?,
                Event::CData(text) => Self::add(&text.xml10_content().map_err(|_| malformed())?, &mut open)?,
                Event::GeneralRef(reference) => {
                    let named = match reference.decode().map_err(|_| malformed())?.as_ref() {
                        "amp" => Some('&'),
                        "lt" => Some('<'),
                        "gt" => Some('>'),
                        "quot" => Some('"'),
                        "apos" => Some('\''),
                        _ => reference.resolve_char_ref().map_err(|_| malformed())?,
                    };
                    let mut bytes = [0; 4];
                    Self::add(named.ok_or_else(malformed)?.encode_utf8(&mut bytes), &mut open)?;
                }
                Event::DocType(_) => return Err(malformed()),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        if open.is_empty() { root.ok_or_else(malformed) } else { Err(malformed()) }
    }

    fn begin(start: &BytesStart<'_>) -> Result<Self> {
        let local = |name: &[u8]| std::str::from_utf8(name).map(str::to_owned).map_err(|_| malformed());
        let mut element = Self { name: local(start.local_name().as_ref())?, ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|_| malformed())?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|_| malformed())?.into_owned();
            element.attributes.push((local(attribute.key.local_name().as_ref())?, value));
        }
        Ok(element)
    }

    fn end(mut element: Self, open: &mut [Self], root: &mut Option<Self>) -> Result<()> {
        if !element.children.is_empty() {
            element.text.clear();
        }
        match open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if root.is_none() => *root = Some(element),
            None => return Err(malformed()),
        }
        Ok(())
    }

    fn add(text: &str, open: &mut [Self]) -> Result<()> {
        match open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(malformed()),
        }
        Ok(())
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|c| c.name == name)
    }

    /// All children of this name.
    pub fn all<'e>(&'e self, name: &'e str) -> impl Iterator<Item = &'e Self> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// The text of the first child of this name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|c| c.text.as_str())
    }

    /// The text of a child that must be there.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn need(&self, name: &str) -> Result<&str> {
        self.text_of(name).ok_or_else(malformed)
    }

    /// The number in the first child of this name.
    ///
    /// # Errors
    /// `MalformedXML` where it is no whole number.
    pub fn number_of(&self, name: &str) -> Result<Option<i64>> {
        self.text_of(name).map(|t| t.parse().map_err(|_| malformed())).transpose()
    }

    /// An attribute's value.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Refuses children of other names.
    ///
    /// # Errors
    /// `MalformedXML`.
    pub fn only(&self, names: &[&str]) -> Result<()> {
        if self.children.iter().all(|c| names.contains(&c.name.as_str())) { Ok(()) } else { Err(malformed()) }
    }
}

/// As text in an element; a carriage return written as itself would be read as a line feed.
fn escape(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| matches!(b, b'<' | b'>' | b'&' | b'\r')) {
        partial_escape(text).replace('\r', "&#13;").into()
    } else {
        text.into()
    }
}

/// A document being written.
#[derive(Debug, Default)]
pub struct Out(String);

impl Out {
    /// A document whose root element is `name`, in S3's namespace; `body` writes what is in it.
    pub fn document(name: &str, body: impl FnOnce(&mut Self)) -> String {
        let mut out = Self(String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"));
        out.0 += &format!("<{name} xmlns=\"{NAMESPACE}\">");
        body(&mut out);
        out.0 += &format!("</{name}>");
        out.0
    }

    /// As [`document`](Self::document), in no namespace.
    pub fn bare(name: &str, body: impl FnOnce(&mut Self)) -> String {
        let mut out = Self(String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"));
        out.element(name, body);
        out.0
    }

    /// An element with elements in it.
    pub fn element(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.open(name);
        body(self);
        self.close(name);
    }

    fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }

    fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// As [`element`](Self::element), with attributes as they are.
    pub fn element_with(&mut self, name: &str, attributes: &str, body: impl FnOnce(&mut Self)) {
        self.0 += &format!("<{name} {attributes}>");
        body(self);
        self.0 += &format!("</{name}>");
    }

    /// An element with text in it.
    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        self.0.push_str(&escape(text));
        self.close(name);
    }

    /// An element with what displays as text that needs no escaping: numbers, times, Base64.
    pub fn plain(&mut self, name: &str, value: impl Display) {
        self.open(name);
        // Writing into a string does not fail.
        let _ = write!(self.0, "{value}");
        self.close(name);
    }

    /// Room for so many bytes more, so that a long document is not copied as it grows.
    pub fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes);
    }

    /// An element with text, if there is one.
    pub fn maybe(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// An element as it was read, without its attributes.
    pub fn copy(&mut self, element: &Element) {
        // The one attribute that S3's documents have.
        let kind = element.attributes.iter().find(|(name, _)| name == "type");
        let kind = kind.map_or(String::new(), |(_, kind)| {
            let kind = escape(kind).replace('"', "&quot;");
            format!(" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"{kind}\"")
        });
        self.0 += &format!("<{}{kind}>", element.name);
        if element.children.is_empty() {
            self.0 += &escape(&element.text);
        }
        for child in &element.children {
            self.copy(child);
        }
        self.0 += &format!("</{}>", element.name);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documents_are_read() {
        let e = Element::parse(
            b"<?xml version=\"1.0\"?><a:R xmlns:a='x' a:k=\"v&amp;\"> <B> one &lt;&#65; </B><B/><C><![CDATA[<]]></C></a:R>",
            "R",
        )
        .unwrap();
        assert_eq!(e.attribute("k"), Some("v&"));
        assert_eq!(e.all("B").map(|b| b.text.as_str()).collect::<Vec<_>>(), [" one <A ", ""]);
        assert_eq!(e.text_of("C"), Some("<"));
        let out = Out::document("R", |o| e.children.iter().for_each(|c| o.copy(c)));
        assert_eq!(Element::parse(out.as_bytes(), "R").unwrap().children, e.children);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = format!("{}{}", "<a>".repeat(17), "</a>".repeat(17));
        for bad in [
            "",
            "x",
            "<a>",
            "<a></b>",
            "<a/><a/>",
            "<a/>x",
            "<!DOCTYPE a [<!ENTITY e \"x\">]><a>&e;</a>",
            "<a>&e;</a>",
            "<a>&#0;</a>",
            "<a>&#xD800;</a>",
            &deep,
        ] {
            assert_eq!(Element::parse_any(bad.as_bytes()).unwrap_err().kind, Kind::MalformedXml, "{bad}");
        }
        assert!(Element::parse(b"<a/>", "b").is_err());
        assert!(Element::parse_any(b"<a>\xff</a>").is_err());
    }

    proptest! {
        #[test]
        fn hostile_documents_do_no_harm(text in "(<[/!?]?[a-c&;#x\"' =-]{0,6}>?|[a-z&;<>]{0,8}){0,20}") {
            let _ = Element::parse_any(text.as_bytes());
        }

        #[test]
        fn texts_come_back(text in "[ -~\u{e9}\u{4e2d}\r\n\t]{0,40}") {
            let out = Out::document("R", |o| o.text("T", &text));
            let read = Element::parse(out.as_bytes(), "R").unwrap();
            prop_assert_eq!(read.text_of("T").unwrap(), text);
        }
    }
}
