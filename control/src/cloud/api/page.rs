//! Paging of the Describe actions: a token names the last thing shown and the listing it belongs to.
//!
//! A token is opaque to clients and worthless elsewhere: it only says where to go on in what the caller may list anyway,
//! so it needs no signature. Things that come and go between two pages are shown or not; none is shown twice.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::super::error::{ApiError, ApiResult, Code};

#[derive(Serialize, Deserialize)]
struct Token {
    /// The listing.
    l: String,
    /// The last key shown.
    k: String,
}

/// What is asked for.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The action and account: a token of another one is refused.
    pub listing: String,
    /// MaxResults.
    pub max: Option<i32>,
    /// Which MaxResults are allowed.
    pub range: RangeInclusive<i32>,
    /// How many without MaxResults.
    pub default: usize,
    /// NextToken.
    pub token: Option<&'a str>,
}

/// One page of `items`, which are in ascending order of `key`, and the token of the next one.
///
/// # Errors
/// MaxResults out of range, or a token that is not one of this listing.
pub fn page<T>(mut items: Vec<T>, ask: &Ask<'_>, key: impl Fn(&T) -> String) -> ApiResult<(Vec<T>, Option<String>)> {
    let max = match ask.max {
        None => ask.default,
        Some(n) if ask.range.contains(&n) => n as usize,
        Some(n) => {
            let why = format!("Expecting a value from {} to {}.", ask.range.start(), ask.range.end());
            return Err(ApiError::value("maxResults", n, why));
        }
    };
    if let Some(text) = ask.token.filter(|t| !t.is_empty()) {
        let token = URL_SAFE_NO_PAD.decode(text).ok().and_then(|b| serde_json::from_slice::<Token>(&b).ok());
        let token = token.filter(|t| t.l == ask.listing);
        let token =
            token.ok_or_else(|| ApiError::new(Code::InvalidNextToken, "The token is invalid or has expired"))?;
        let from = items.partition_point(|i| key(i) <= token.k);
        items.drain(..from);
    }
    if items.len() <= max {
        return Ok((items, None));
    }
    items.truncate(max);
    let last = items.last().map(key).unwrap_or_default();
    let token = Token { l: ask.listing.clone(), k: last };
    // Two texts always serialise.
    let json = serde_json::to_vec(&token).unwrap_or_default();
    Ok((items, Some(URL_SAFE_NO_PAD.encode(json))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_up_and_foreign_tokens_are_refused() {
        let ask = |max, token| Ask { listing: "a".into(), max, range: 5..=10, default: 1000, token };
        let items: Vec<u32> = (0..12).collect();
        let key = |n: &u32| format!("{n:03}");
        let (first, token) = page(items.clone(), &ask(Some(5), None), key).unwrap();
        let (second, token2) = page(items.clone(), &ask(Some(5), token.as_deref()), key).unwrap();
        let (third, end) = page(items.clone(), &ask(Some(5), token2.as_deref()), key).unwrap();
        assert_eq!([first, second, third].concat(), items);
        assert_eq!(end, None);
        let other = Ask { listing: "b".into(), ..ask(None, token.as_deref()) };
        assert_eq!(page(items.clone(), &other, key).unwrap_err().code, Code::InvalidNextToken);
        assert_eq!(page(items.clone(), &ask(None, Some("%%")), key).unwrap_err().code, Code::InvalidNextToken);
        assert!(page(items, &ask(Some(4), None), key).is_err());
    }
}
