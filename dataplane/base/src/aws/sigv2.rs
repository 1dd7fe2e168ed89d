//! Signature version 2, as old EC2 tools sign: parameters of the query or the form body, HMAC-SHA256 or HMAC-SHA1.
//!
//! Pure. ("Signature Version 2 signing process", AWS General Reference.)

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;

use super::sigv4::canonical_query;

/// `SignatureMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `HmacSHA256`.
    HmacSha256,
    /// `HmacSHA1`.
    HmacSha1,
}

impl Method {
    /// The method of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "HmacSHA256" => Some(Self::HmacSha256),
            "HmacSHA1" => Some(Self::HmacSha1),
            _ => None,
        }
    }
}

/// The signature, in base64, of a request with these parameters; `Signature` itself is left out.
pub fn signature(
    method: Method,
    secret: &str,
    verb: &str,
    host: &str,
    path: &str,
    parameters: &[(String, String)],
) -> String {
    let signed: Vec<_> = parameters.iter().filter(|(name, _)| name != "Signature").cloned().collect();
    let path = if path.is_empty() { "/" } else { path };
    let text = format!("{verb}\n{}\n{path}\n{}", host.to_ascii_lowercase(), canonical_query(&signed));
    STANDARD.encode(match method {
        Method::HmacSha256 => mac::<Hmac<Sha256>>(secret, &text),
        Method::HmacSha1 => mac::<Hmac<Sha1>>(secret, &text),
    })
}

fn mac<M: Mac + KeyInit>(secret: &str, text: &str) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(secret.as_bytes()).unwrap_or_else(|_| unreachable!("any length"));
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::sigv4::parse_query;

    #[test]
    fn the_general_references_example() {
        let parameters = parse_query(
            "AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Action=DescribeJobFlows&SignatureMethod=HmacSHA256\
             &SignatureVersion=2&Timestamp=2011-10-03T15%3A19%3A30&Version=2009-03-31&Signature=ignored",
        );
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let signed =
            |path| signature(Method::HmacSha256, secret, "GET", "ElasticMapReduce.amazonaws.com", path, &parameters);
        assert_eq!(signed("/"), "i91nKc4PWAt0JJIdXwz9HxZCJDdiy6cf/Mj6vPxyYIs=");
        assert_eq!(signed(""), signed("/"));
    }
}
