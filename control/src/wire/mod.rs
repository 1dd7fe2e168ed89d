//! The wire layer of AWS's `ec2` and `query` protocols: a form in, XML out.
//!
//! [`generated`] holds one Rust type per shape of the served actions, made from AWS's service models; this module and
//! its two halves ([`query`] reads, [`xml`] writes) are what the generated code is written in terms of. Nothing here
//! knows what an action means, and nothing does I/O.
//!
//! Promises: a request type is only made from a form in which every required member is present and every scalar and
//! enumeration parses; an answer's elements, their names and their enumerations are the model's.

#[rustfmt::skip]
pub mod generated;
pub mod query;
pub mod xml;

pub use query::{FromQuery, Invalid, Query, Tree};
pub use xml::{ToXml, Xml};

use std::fmt;

use karri_base::clock::UnixMicros;
use serde::{Deserialize, Serialize};

/// A request type and its answer.
pub trait Operation: FromQuery + Send + 'static {
    /// What it answers.
    type Output: ToXml + Send + 'static;
    /// The action.
    const NAME: &'static str;
    /// The element around the answer (`query` protocol only).
    const RESULT_WRAPPER: Option<&'static str> = None;
    /// True when the caller only asks whether it might.
    fn dry_run(&self) -> bool {
        false
    }
}

/// The answer of an action whose model has none: EC2 says `<return>true</return>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done;

impl ToXml for Done {
    fn to_xml(&self, w: &mut Xml) {
        w.opt("return", &Some(true));
    }
}

/// A moment; answers carry milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl From<UnixMicros> for Timestamp {
    fn from(at: UnixMicros) -> Self {
        Self(at.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let (date, clock) = (at.date(), at.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            clock.hour(),
            clock.minute(),
            clock.second(),
            clock.millisecond()
        )
    }
}

/// Bytes, base64 on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob(pub Vec<u8>);

/// An enumeration with AWS's spelling of each value.
macro_rules! wire_enum {
    (pub enum $name:ident { $($variant:ident = $text:literal,)* }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $(#[serde(rename = $text)] $variant,)*
        }
        impl $name {
            pub const ALL: &'static [&'static str] = &[$($text),*];
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
        impl FromQuery for $name {
            fn from_query(q: &Query<'_>) -> Result<Self, Invalid> {
                let text = q.text()?;
                Self::parse(text).ok_or_else(|| q.bad(text, format!("want one of {}", Self::ALL.join(", "))))
            }
        }
        impl ToXml for $name {
            fn to_xml(&self, w: &mut Xml) { w.text(self.as_str()); }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}
pub(crate) use wire_enum;

#[cfg(test)]
mod tests {
    #[test]
    fn the_generated_code_is_what_the_models_say() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/codegen/generate.py");
        match std::process::Command::new("python3").args([script, "--check"]).output() {
            Err(_) => println!("SKIPPED the_generated_code_is_what_the_models_say: python3 is not installed"),
            Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        }
    }
}
