//! A request's condition keys: names without regard to case, each with one or more values.

use std::net::IpAddr;

use crate::clock::UnixMicros;

/// Condition keys and their values, in the order they were set. Setters replace; [`Context::add`] appends.
///
/// ```
/// use karri_base::aws::policy::Context;
/// let mut context = Context::default();
/// context.text("s3:prefix", "home/").number("s3:max-keys", 100).flag("aws:SecureTransport", true);
/// assert_eq!(context.get("S3:Prefix"), Some(&["home/".to_owned()][..]));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context(Vec<(String, Vec<String>)>);

impl Context {
    /// A text.
    pub fn text(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        self.texts(key, [value.into()])
    }
    /// Several texts; none at all leaves the key present and empty, which `Null` takes for absent.
    pub fn texts(&mut self, key: &str, values: impl IntoIterator<Item = String>) -> &mut Self {
        *self.place(key) = values.into_iter().collect();
        self
    }
    /// One more value of a key.
    pub fn add(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        self.place(key).push(value.into());
        self
    }
    /// A whole number.
    pub fn number(&mut self, key: &str, value: i64) -> &mut Self {
        self.text(key, value.to_string())
    }
    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.text(key, if value { "true" } else { "false" })
    }
    /// A moment, as seconds since 1970.
    pub fn moment(&mut self, key: &str, at: UnixMicros) -> &mut Self {
        self.text(key, at.secs().to_string())
    }
    /// An address; an IPv4 address in IPv6's clothes counts as IPv4.
    pub fn address(&mut self, key: &str, address: IpAddr) -> &mut Self {
        self.text(key, address.to_canonical().to_string())
    }
    /// A key's values.
    pub fn get(&self, key: &str) -> Option<&[String]> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, values)| values.as_slice())
    }
    /// All keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    fn place(&mut self, key: &str) -> &mut Vec<String> {
        let at = self.0.iter().position(|(name, _)| name.eq_ignore_ascii_case(key)).unwrap_or_else(|| {
            self.0.push((key.to_owned(), Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}
