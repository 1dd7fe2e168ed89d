//! A Walrus on memory twins in this process, and a client that signs (SigV4, written here a second time on purpose:
//! the test does not trust the code under test).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::clock::{Clock, SystemClock};
use karri_base::proto;
use karri_bulk::BulkStore;
use karri_bulk::memory::MemoryBulk;
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;
use karri_objectstore::core::{Core, CoreRef, Shared};
use karri_objectstore::crypt::Secret;
use karri_objectstore::front::Front;
use karri_objectstore::metrics::Metrics;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const ACCOUNT: &str = "000000000001";
pub const OTHER: &str = "000000000002";

/// Keys of two accounts' users and of the system role.
pub fn ring() -> KeyRing {
    let key = |id: &str, account: &str, who: &str| Key {
        access_key_id: id.into(),
        secret: format!("secret of {id}"),
        account: account.parse().unwrap(),
        arn: format!("arn:aws:iam::{account}:{who}"),
    };
    KeyRing::new([
        key("AK1", ACCOUNT, "user/admin"),
        key("AK2", OTHER, "user/admin"),
        key("AKS", OTHER, "role/karri-system"),
    ])
}

/// Wall time since 1970.
pub fn now() -> std::time::Duration {
    std::time::Duration::from_secs(SystemClock.now().secs())
}

pub struct Walrus<B: BulkStore = MemoryBulk> {
    pub meta: MemoryStore,
    pub bulk: B,
    pub core: CoreRef<B>,
    keys: KeyRing,
    front: Front<B>,
}

impl Walrus {
    pub async fn new() -> Self {
        Self::over(MemoryStore::new(), MemoryBulk::new(4 << 30)).await
    }
}

impl<B: BulkStore> Walrus<B> {
    pub async fn over(meta: MemoryStore, bulk: B) -> Self {
        Self::at(meta, bulk, Arc::new(SystemClock)).await
    }
    /// With a clock of its own; requests are signed by the machine's.
    pub async fn at(meta: MemoryStore, bulk: B, clock: Arc<dyn Clock>) -> Self {
        let dynamic: Arc<dyn MetaStore> = Arc::new(meta.clone());
        let shared =
            Shared::open(&dynamic, clock, "us-east-1".into(), Metrics::default(), Secret([5; 32])).await.unwrap();
        let core = Core::new(dynamic, bulk.clone(), shared);
        let keys = ring();
        let front = Front::new(&core, &keys);
        Self { meta, bulk, core, keys, front }
    }
    /// Makes AK3 a user of ACCOUNT and AK4 one of OTHER, with these statements for a policy; with a boundary's, or none.
    pub fn limit(&self, statements: &str, boundary: Option<&str>) {
        let document = |statements: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        let key = |id: &str, account: &str, who: &str, principal: &str| proto::Key {
            access_key_id: id.into(),
            secret_access_key: format!("secret of {id}"),
            account_id: account.into(),
            arn: format!("arn:aws:iam::{account}:{who}"),
            active: true,
            principal_id: principal.into(),
        };
        let principal = |id: &str, account: &str| proto::Principal {
            id: id.into(),
            arn: format!("arn:aws:iam::{account}:user/limited"),
            account_id: account.into(),
            policies: vec![0],
            boundary: boundary.map(|_| 1),
            ..Default::default()
        };
        let told = proto::Keys {
            keys: vec![
                key("AK1", ACCOUNT, "user/admin", ""),
                key("AK2", OTHER, "user/admin", ""),
                key("AK3", ACCOUNT, "user/limited", "AIDALIMITED3"),
                key("AK4", OTHER, "user/limited", "AIDALIMITED4"),
            ],
            policies: std::iter::once(statements).chain(boundary).map(document).collect(),
            principals: vec![principal("AIDALIMITED3", ACCOUNT), principal("AIDALIMITED4", OTHER)],
            ..Default::default()
        };
        let complaints = self.keys.fill(&told);
        assert!(complaints.is_empty(), "{complaints:?}");
    }
    /// A request by AK1.
    pub fn req(&self, method: &str, target: &str) -> Req<'_, B> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|q| !q.is_empty());
        let query = query.map(|q| q.split_once('=').unwrap_or((q, ""))).map(|(a, b)| (a.into(), b.into())).collect();
        Req {
            walrus: self,
            method: method.into(),
            path: path.into(),
            query,
            headers: BTreeMap::new(),
            body: Bytes::new(),
            key: Some("AK1"),
            mode: Mode::Signed,
        }
    }
    /// Any request, as it is.
    pub async fn answer<R>(&self, request: Request<R>) -> Answer
    where
        R: http_body::Body<Data = Bytes> + Unpin + 'static,
        R::Error: Into<s3s::StdError>,
    {
        let (head, body) = self.front.answer(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }
    pub async fn get(&self, target: &str) -> Answer {
        self.req("GET", target).send().await
    }
    pub async fn put(&self, target: &str, body: impl Into<Bytes>) -> Answer {
        self.req("PUT", target).body(body).send().await
    }
    pub async fn reclaim(&self) {
        self.core.reclaim_queued().await.unwrap();
        self.core.reclaim_queued().await.unwrap();
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    Signed,
    Unsigned,
    /// Query signature with this life in seconds.
    Presigned(i64),
    /// Signed chunks of this many bytes.
    Chunks(usize),
    /// One unsigned chunk and a CRC32 trailer.
    Trailer,
    /// Signed chunks of this many bytes with a signed CRC32 trailer.
    ChunksTrailer(usize),
}

impl Mode {
    /// One of each.
    pub const ALL: [Self; 6] = [
        Self::Signed,
        Self::Unsigned,
        Self::Presigned(60),
        Self::Chunks(8192),
        Self::Trailer,
        Self::ChunksTrailer(8192),
    ];
}

pub struct Req<'w, B: BulkStore = MemoryBulk> {
    walrus: &'w Walrus<B>,
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Bytes,
    key: Option<&'static str>,
    mode: Mode,
}

pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// The texts of all elements of this name.
    pub fn all(&self, element: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let unescape =
            |s: &str| s.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        text.split(&open).skip(1).map(|s| unescape(s.split(&close).next().unwrap())).collect()
    }
    pub fn one(&self, element: &str) -> String {
        self.all(element).into_iter().next().unwrap_or_default()
    }
    /// Status and, on failure, the error's code.
    #[track_caller]
    pub fn is(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.one("Code").as_str()), (status, code), "{}", self.text());
        self
    }
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.text());
        self
    }
}

pub fn crc32_base64(data: &[u8]) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, data) as u32;
    karri_objectstore::digest::base64(&crc.to_be_bytes())
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// AK1's signature of version 2, as of a form's policy.
pub fn sign_v2(text: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(b"secret of AK1").unwrap();
    mac.update(text.as_bytes());
    karri_objectstore::digest::base64(&mac.finalize().into_bytes())
}

fn sha(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

fn encode(text: &str, slash: bool) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (b as char).to_string(),
            b'/' if slash => "/".into(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

impl<B: BulkStore> Req<'_, B> {
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
    pub fn by(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }
    pub fn host(self, host: &str) -> Self {
        self.header("host", host)
    }
    pub fn anonymous(mut self) -> Self {
        self.key = None;
        self
    }
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sends it. `tamper` may change the finished request.
    pub async fn send(self) -> Answer {
        self.send_with(|_| {}).await
    }

    /// The answer with its body still to come.
    pub async fn respond(self) -> Response<s3s::Body> {
        self.respond_with(|_| {}).await
    }

    pub async fn send_with(self, tamper: impl FnOnce(&mut Request<Full<Bytes>>)) -> Answer {
        let (head, body) = self.respond_with(tamper).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn respond_with(mut self, tamper: impl FnOnce(&mut Request<Full<Bytes>>)) -> Response<s3s::Body> {
        let secs = SystemClock.now().secs() as i64 - self.headers.remove("test-age").map_or(0, |a| a.parse().unwrap());
        let now = time::OffsetDateTime::from_unix_timestamp(secs).unwrap();
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        let date = format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        self.headers.entry("host".into()).or_insert_with(|| "localhost:9000".into());
        let mut body = self.body.clone();
        let payload = match self.mode {
            Mode::Signed => sha(&body),
            Mode::Unsigned | Mode::Presigned(_) => "UNSIGNED-PAYLOAD".into(),
            Mode::Chunks(_) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".into(),
            Mode::ChunksTrailer(_) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER".into(),
            Mode::Trailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER".into(),
        };
        if matches!(self.mode, Mode::Chunks(_) | Mode::ChunksTrailer(_) | Mode::Trailer) {
            self.headers.insert("content-encoding".into(), "aws-chunked".into());
            self.headers.insert("x-amz-decoded-content-length".into(), body.len().to_string());
        }
        if matches!(self.mode, Mode::ChunksTrailer(_) | Mode::Trailer) {
            self.headers.insert("x-amz-trailer".into(), "x-amz-checksum-crc32".into());
            self.headers.insert("x-amz-sdk-checksum-algorithm".into(), "CRC32".into());
        }
        let mut query = self.query.clone();
        let presigned = if let Mode::Presigned(life) = self.mode { Some(life) } else { None };
        if let (Some(life), Some(key)) = (presigned, self.key) {
            let names: Vec<_> = self.headers.keys().cloned().collect();
            for (name, value) in [
                ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
                ("X-Amz-Credential", format!("{key}/{scope}")),
                ("X-Amz-Date", date.clone()),
                ("X-Amz-Expires", life.to_string()),
                ("X-Amz-SignedHeaders", names.join(";")),
            ] {
                query.push((name.into(), value));
            }
        } else if self.key.is_some() {
            // Who says Date says the same there.
            if self.headers.contains_key("date") {
                let format = time::format_description::well_known::Rfc2822;
                self.headers.insert("date".into(), now.format(&format).unwrap());
            } else {
                self.headers.insert("x-amz-date".into(), date.clone());
            }
            self.headers.insert("x-amz-content-sha256".into(), payload.clone());
        }
        let mut sorted: Vec<_> = query.iter().map(|(n, v)| (encode(n, false), encode(v, false))).collect();
        sorted.sort();
        let canonical_query = sorted.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&");
        let path = encode(&self.path, true);
        let mut wire_query = canonical_query.clone();
        if let Some(key) = self.key {
            let names: Vec<_> = self.headers.keys().cloned().collect();
            let signed = names.join(";");
            let lines: String = self
                .headers
                .iter()
                .map(|(n, v)| format!("{n}:{}\n", v.split_whitespace().collect::<Vec<_>>().join(" ")))
                .collect();
            let canonical = format!("{}\n{path}\n{canonical_query}\n{lines}\n{signed}\n{payload}", self.method);
            let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha(canonical.as_bytes()));
            let mut signing = format!("AWS4secret of {key}").into_bytes();
            for step in [&day[..], "us-east-1", "s3", "aws4_request"] {
                signing = hmac(&signing, step);
            }
            let signature = hex::encode(hmac(&signing, &to_sign));
            if presigned.is_some() {
                wire_query = format!("{canonical_query}&X-Amz-Signature={signature}");
            } else {
                let value =
                    format!("AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}");
                self.headers.insert("authorization".into(), value);
            }
            body = self.frame(body, &signing, &date, &scope, signature);
        }
        let uri = if wire_query.is_empty() { path } else { format!("{path}?{wire_query}") };
        let mut request = Request::builder().method(self.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if !body.is_empty() || matches!(self.method.as_str(), "PUT" | "POST") {
            request = request.header("content-length", body.len());
        }
        let mut request = request.body(Full::new(body)).unwrap();
        tamper(&mut request);
        self.walrus.front.answer(request).await
    }

    /// The body as it travels.
    fn frame(&self, body: Bytes, signing: &[u8], date: &str, scope: &str, seed: String) -> Bytes {
        let crc = crc32_base64(&body);
        let (size, trailer) = match self.mode {
            Mode::Chunks(n) => (n, false),
            Mode::ChunksTrailer(n) => (n, true),
            Mode::Trailer => {
                let mut out = format!("{:x}\r\n", body.len()).into_bytes();
                if body.is_empty() {
                    out.clear();
                } else {
                    out.extend_from_slice(&body);
                    out.extend(b"\r\n");
                }
                out.extend(format!("0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n").into_bytes());
                return out.into();
            }
            _ => return body,
        };
        let (mut out, mut previous) = (Vec::new(), seed);
        for chunk in body.chunks(size).chain([&b""[..]]) {
            let to_sign =
                format!("AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{previous}\n{}\n{}", sha(b""), sha(chunk));
            previous = hex::encode(hmac(signing, &to_sign));
            out.extend(format!("{:x};chunk-signature={previous}\r\n", chunk.len()).into_bytes());
            out.extend_from_slice(chunk);
            if !(chunk.is_empty() && trailer) {
                out.extend(b"\r\n");
            }
        }
        if trailer {
            let line = format!("x-amz-checksum-crc32:{crc}\n");
            let to_sign = format!("AWS4-HMAC-SHA256-TRAILER\n{date}\n{scope}\n{previous}\n{}", sha(line.as_bytes()));
            let signature = hex::encode(hmac(signing, &to_sign));
            out.extend(
                format!("x-amz-checksum-crc32:{crc}\r\nx-amz-trailer-signature:{signature}\r\n\r\n").into_bytes(),
            );
        }
        out.into()
    }
}
