//! Tokens of OpenID Connect providers: whether one is what its provider signed, and what it says.
//!
//! ```text
//!  token --signature--> a key of FOLDER/HOST%2FPATH.json (a JSON Web Key Set, put there by the operator)
//!        --iss--------> the provider's URL      --aud, azp--> one of its client ids      --exp, nbf--> now
//! ```
//! Promises: only public-key algorithms count, whatever a token says of itself. Calls nobody: the file is read again with
//! every token, so a key that was turned over counts at once. Leaves to STS who may assume what by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use karri_base::clock::UnixMicros;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// The longest token that is looked at, in bytes (AWS's limit).
const TOKEN_MAX: usize = 20_000;
/// The longest set of keys, in bytes.
const KEYS_MAX: u64 = 1 << 20;
/// How far clocks may differ, in seconds.
const SKEW_SECONDS: u64 = 60;
/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none, or not signed by the provider.
    #[error("Couldn't verify the token: {0}")]
    Invalid(String),
    /// Its time is over.
    #[error("Token expired: current date/time must be before the expiration date/time")]
    Expired,
    /// There are no keys to check it with.
    #[error("the keys of {url} cannot be read: {why}")]
    Keys {
        /// The provider's.
        url: String,
        /// What is wrong.
        why: String,
    },
}

/// One text or several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Texts {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    iss: String,
    sub: String,
    #[serde(default)]
    aud: Texts,
    azp: Option<String>,
    exp: f64,
    nbf: Option<f64>,
    #[serde(default)]
    amr: Texts,
    #[serde(default, rename = "https://aws.amazon.com/tags")]
    tags: RawTags,
}

#[derive(Default, Deserialize)]
struct RawTags {
    #[serde(default)]
    principal_tags: BTreeMap<String, Texts>,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who it is about.
    pub subject: String,
    /// Whom it is for.
    pub audience: Vec<String>,
    /// Who asked for it.
    pub authorized: Option<String>,
    /// How they signed in.
    pub methods: Vec<String>,
    /// Session tags.
    pub tags: BTreeMap<String, String>,
}

impl Claims {
    /// True where one of these clients is meant: the party that asked where the token names one, else its audience.
    pub fn is_for(&self, clients: &[String]) -> bool {
        match &self.authorized {
            Some(client) if clients.contains(client) => true,
            _ => self.audience.iter().any(|client| clients.contains(client)),
        }
    }
}

/// A provider's public keys (RFC 7517).
#[derive(Debug, Clone, Deserialize)]
pub struct Keys {
    keys: Vec<PublicKey>,
}

/// One of them; what is not for these algorithms is passed over.
#[derive(Debug, Clone, Deserialize)]
struct PublicKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// The algorithms of RSA that are accepted. Those with a shared secret are not: who could check such a token could make it.
fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

impl PublicKey {
    /// True where it made this signature with this algorithm.
    fn signed(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        if self.alg.as_deref().is_some_and(|own| own != algorithm) {
            return false;
        }
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        let curve = |name: &str| self.kty == "EC" && self.crv.as_deref() == Some(name);
        let point = || [&[4][..], &part(&self.x), &part(&self.y)].concat();
        let by_curve = |how| UnparsedPublicKey::new(how, point()).verify(message, signature).is_ok();
        match (rsa(algorithm), algorithm) {
            (Some(how), _) if self.kty == "RSA" => {
                let key = RsaPublicKeyComponents { n: part(&self.n), e: part(&self.e) };
                key.verify(how, message, signature).is_ok()
            }
            (_, "ES256") if curve("P-256") => by_curve(&signature::ECDSA_P256_SHA256_FIXED),
            (_, "ES384") if curve("P-384") => by_curve(&signature::ECDSA_P384_SHA384_FIXED),
            _ => false,
        }
    }
}

/// A token's parts (RFC 7515, compact).
struct Parts<'a> {
    /// The first two, as they were signed.
    signed: &'a [u8],
    header: Vec<u8>,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

fn split(token: &str) -> Option<Parts<'_>> {
    let (signed, signature) = token.rsplit_once('.').filter(|_| token.len() <= TOKEN_MAX)?;
    let (header, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.'))?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let (header, claims, signature) = (part(header)?, part(claims)?, part(signature)?);
    Some(Parts { signed: signed.as_bytes(), header, claims, signature })
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    crit: Option<serde_json::Value>,
}

/// The issuer that a token names, before anything of it is believed.
pub fn issuer(token: &str) -> Option<String> {
    let claims: serde_json::Value = serde_json::from_slice(&split(token)?.claims).ok()?;
    Some(claims.get("iss")?.as_str()?.trim_end_matches('/').to_owned())
}

/// Checks a token of this provider.
///
/// # Errors
/// See [`TokenError`].
pub fn check(token: &str, url: &str, keys: &Keys, now: UnixMicros) -> Result<Claims, TokenError> {
    let bad = |why: &str| TokenError::Invalid(why.to_owned());
    let Parts { signed, header, claims, signature } = split(token).ok_or_else(|| bad("it is no JSON Web Token"))?;
    let header = std::str::from_utf8(&header).map_err(|_| bad("its header is not UTF-8"))?;
    let header: Header = serde_json::from_str(header).map_err(|_| bad("its header cannot be read"))?;
    if header.crit.is_some() {
        return Err(bad("it has extensions"));
    }
    let mut of_id = keys.keys.iter().filter(|key| header.kid.is_none() || key.kid == header.kid);
    if !of_id.any(|key| key.signed(&header.alg, signed, &signature)) {
        return Err(bad("its signature is not the provider's"));
    }
    // JSON is UTF-8, also where nobody reads it.
    let claims = std::str::from_utf8(&claims).map_err(|_| bad("its claims are not UTF-8"))?;
    let claims: Raw = serde_json::from_str(claims).map_err(|_| bad("it lacks a claim"))?;
    if claims.iss.trim_end_matches('/') != url {
        return Err(bad("it is another provider's"));
    }
    let seconds = now.0 / 1_000_000;
    if !claims.exp.is_finite() || claims.exp <= seconds.saturating_sub(SKEW_SECONDS) as f64 {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|from| from.is_nan() || from > (seconds + SKEW_SECONDS) as f64) {
        return Err(bad("it is not valid yet"));
    }
    let tag = |(key, values): (String, Texts)| Some((key, values.into_vec().into_iter().next()?));
    Ok(Claims {
        subject: claims.sub,
        audience: claims.aud.into_vec(),
        authorized: claims.azp,
        methods: claims.amr.into_vec(),
        tags: claims.tags.principal_tags.into_iter().filter_map(tag).collect(),
    })
}

/// The file of a provider's keys in the folder.
pub fn file(folder: &Path, url: &str) -> PathBuf {
    let plain = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or(url);
    folder.join(format!("{}.json", karri_base::aws::sigv4::uri_encode(plain.as_bytes(), false)))
}

/// The provider's keys.
///
/// # Errors
/// [`TokenError::Keys`].
pub async fn keys(folder: &Path, url: &str) -> Result<Keys, TokenError> {
    let bad = |why: String| TokenError::Keys { url: url.to_owned(), why };
    let path = file(folder, url);
    let about = tokio::fs::metadata(&path).await.map_err(|e| bad(format!("{}: {e}", path.display())))?;
    if about.len() > KEYS_MAX {
        return Err(bad(format!("{} has more than {KEYS_MAX} bytes", path.display())));
    }
    let bytes = tokio::fs::read(&path).await.map_err(|e| bad(format!("{}: {e}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(format!("{} is no JSON Web Key Set: {e}", path.display())))
}
