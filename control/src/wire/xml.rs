//! Writing: typed answers as XML text, elements in the model's order of names.

use std::fmt::Write as _;

use base64::Engine as _;

use super::{Blob, Timestamp};

/// XML being written.
#[derive(Debug, Default)]
pub struct Xml(String);

/// A value that can be an element's content.
pub trait ToXml {
    /// Writes the content, without the element around it.
    fn to_xml(&self, w: &mut Xml);
}

impl Xml {
    /// A document with this root element and namespace, its content written by `content`.
    pub fn document(root: &str, namespace: Option<&str>, content: impl FnOnce(&mut Xml)) -> String {
        let mut w = Xml(String::with_capacity(1024));
        w.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<");
        w.0.push_str(root);
        if let Some(ns) = namespace {
            w.0.push_str(" xmlns=\"");
            w.text(ns);
            w.0.push('"');
        }
        w.0.push('>');
        content(&mut w);
        w.0.push_str("</");
        w.0.push_str(root);
        w.0.push_str(">\n");
        w.0
    }

    /// An element with this content.
    pub fn element(&mut self, name: &str, content: impl FnOnce(&mut Xml)) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
        content(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// An element, unless the value is absent.
    pub(crate) fn opt<T: ToXml>(&mut self, name: &str, value: &Option<T>) {
        if let Some(value) = value {
            self.element(name, |w| value.to_xml(w));
        }
    }

    /// A list element with its members; written even when it is empty.
    pub(crate) fn list<T: ToXml>(&mut self, name: &str, item: &str, values: &[T]) {
        self.element(name, |w| values.iter().for_each(|v| w.element(item, |w| v.to_xml(w))));
    }

    /// A list element, unless it is absent.
    pub(crate) fn list_opt<T: ToXml>(&mut self, name: &str, item: &str, values: &Option<Vec<T>>) {
        if let Some(values) = values {
            self.list(name, item, values);
        }
    }

    /// A map as entries, unless it is absent.
    pub(crate) fn map<V: ToXml>(&mut self, name: &str, values: &Option<std::collections::BTreeMap<String, V>>) {
        let Some(values) = values else { return };
        self.element(name, |w| {
            for (key, value) in values {
                w.element("entry", |w| {
                    w.element("key", |w| w.text(key));
                    w.element("value", |w| value.to_xml(w));
                });
            }
        });
    }

    /// Text, escaped; what XML 1.0 cannot carry becomes U+FFFD.
    pub fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\r' => self.0.push_str("&#xD;"),
                '\t' | '\n' => self.0.push(c),
                c if c < ' ' || c == '\u{FFFE}' || c == '\u{FFFF}' => self.0.push('\u{FFFD}'),
                c => self.0.push(c),
            }
        }
    }
}

impl ToXml for String {
    fn to_xml(&self, w: &mut Xml) {
        w.text(self);
    }
}

macro_rules! displayed {
    ($($ty:ty)*) => {$(
        impl ToXml for $ty {
            fn to_xml(&self, w: &mut Xml) {
                // Writing into a String cannot fail.
                let _ = write!(w.0, "{self}");
            }
        }
    )*};
}
displayed!(i32 i64 f64 bool Timestamp);

impl ToXml for Blob {
    fn to_xml(&self, w: &mut Xml) {
        w.0.push_str(&base64::engine::general_purpose::STANDARD.encode(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::generated::ec2;

    #[test]
    fn an_answer_has_the_models_elements() {
        let answer = ec2::DescribeTagsResult {
            tags: vec![ec2::TagDescription {
                key: Some("a<b>&\"".into()),
                value: Some("\u{1}\r".into()),
                resource_id: Some("i-1".into()),
                resource_type: Some(ec2::ResourceType::Instance),
            }],
            next_token: None,
        };
        let xml = Xml::document("DescribeTagsResponse", Some("urn:x"), |w| answer.to_xml(w));
        assert_eq!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DescribeTagsResponse xmlns=\"urn:x\"><tagSet><item>\
             <key>a&lt;b&gt;&amp;&quot;</key><resourceId>i-1</resourceId><resourceType>instance</resourceType>\
             <value>\u{FFFD}&#xD;</value></item></tagSet></DescribeTagsResponse>\n"
        );
    }

    #[test]
    fn times_are_milliseconds_in_utc() {
        let mut w = Xml::default();
        Timestamp(1_767_225_600_123_456).to_xml(&mut w);
        assert_eq!(w.0, "2026-01-01T00:00:00.123Z");
    }
}
