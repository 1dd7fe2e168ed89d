//! `karri walrus` for whoever runs one: what is in it, what may be, whether it is whole, and all of a bucket as files.
//!
//! The verbs speak S3 to a Walrus that runs: that of a cloud on this machine with its own keys, or any other by
//! `--endpoint` and the key in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
//!
//! | module | verbs |
//! |---|---|
//! | here | `usage`, `quota` |
//! | `store` | `list`, `check`, `reclaim` |
//! | `export` | `export` |
//! | `files` | where keys go in a folder |
//! | `wire` | the connection |

pub mod export;
mod files;
pub mod store;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::{AccessKey, Credentials};
use karri_base::units::parse_bytes;

use crate::ask::print;
use crate::layout::Layout;
use wire::Wire;

/// An answer's text may be so long: 10,000 buckets.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Which Walrus, and by whose key.
#[derive(Args)]
pub struct Which {
    /// State folder of a cloud on this machine [default: as karri up]
    #[arg(long, value_name = "DIR", conflicts_with = "endpoint")]
    state: Option<PathBuf>,
    /// Another Walrus, such as http://127.0.0.1:9000; the key is in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// PEM file of the authorities that an https endpoint is believed by [default: this system's]
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca: Option<PathBuf>,
}

/// Prints what is in the account's buckets, or in one.
pub fn usage(which: &Which, bucket: Option<&str>) -> Result<ExitCode> {
    let ask = Ask { bucket: bucket.unwrap_or_default(), query: &[("usage", "")], ..Ask::default() };
    let answer = runtime()?.block_on(async { which.user()?.ask(Method::GET, &ask).await })?;
    let mut lines = vec![["BUCKET", "OBJECTS", "BYTES", "MAX OBJECTS", "MAX BYTES"].map(str::to_owned).to_vec()];
    // The whole comes before the buckets.
    let (whole, buckets) = answer.split_once("<Bucket>").unwrap_or((&answer, ""));
    for part in buckets.split("<Bucket>").filter(|part| !part.is_empty()) {
        lines.push(line(element(part, "Name").unwrap_or_default(), part));
    }
    lines.push(line(bucket.unwrap_or("(all)"), whole));
    table(&lines, &[]);
    Ok(ExitCode::SUCCESS)
}

fn line(name: &str, part: &str) -> Vec<String> {
    let text = |element_name: &str| element(part, element_name).unwrap_or("-").to_owned();
    vec![name.to_owned(), text("Objects"), text("Bytes"), text("MaxObjects"), text("MaxBytes")]
}

/// Sets a bucket's quota; what is not said is not limited.
pub fn quota(which: &Which, bucket: &str, max_bytes: Option<&str>, max_objects: Option<u64>) -> Result<ExitCode> {
    let bytes = max_bytes.map(|text| parse_bytes(text).map_err(|why| anyhow!("--max-bytes: {why}"))).transpose()?;
    let limit = |name: &str, value: Option<u64>| value.map_or(String::new(), |n| format!("<{name}>{n}</{name}>"));
    let document = format!(
        "<QuotaConfiguration>{}{}</QuotaConfiguration>",
        limit("MaxBytes", bytes),
        limit("MaxObjects", max_objects)
    );
    let ask = Ask { bucket, query: &[("quota", "")], document, ..Ask::default() };
    runtime()?.block_on(async { which.user()?.ask(Method::PUT, &ask).await })?;
    Ok(ExitCode::SUCCESS)
}

impl Which {
    /// By the key of whoever asks for what is theirs.
    fn user(&self) -> Result<Walrus> {
        self.walrus(|credentials| credentials.admin)
    }

    /// By the key of whoever runs it.
    fn operator(&self) -> Result<Walrus> {
        self.walrus(|credentials| credentials.system)
    }

    fn walrus(&self, key: impl Fn(Credentials) -> AccessKey) -> Result<Walrus> {
        let Some(endpoint) = &self.endpoint else {
            let layout = Layout::find(self.state.as_deref())?;
            let runtime = layout.read_runtime()?;
            let key = key(layout.read_credentials()?);
            return Walrus::new(&format!("http://{}", runtime.s3_inner), key, &runtime.region, None);
        };
        let variable = |name: &str| std::env::var(name).with_context(|| format!("--endpoint needs a key: set {name}"));
        let key = AccessKey {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?,
        };
        Walrus::new(endpoint, key, "us-east-1", self.ca.as_deref())
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A Walrus that answers, and whose key asks it.
struct Walrus {
    s3: S3,
    wire: Wire,
}

/// A request: what for.
#[derive(Default)]
struct Ask<'a> {
    bucket: &'a str,
    key: Option<&'a str>,
    query: &'a [(&'a str, &'a str)],
    headers: &'a [(&'a str, &'a str)],
    document: String,
}

impl Walrus {
    fn new(endpoint: &str, key: AccessKey, region: &str, ca: Option<&Path>) -> Result<Self> {
        Ok(Self { s3: S3::new(endpoint, key, region).map_err(|why| anyhow!(why))?, wire: Wire::new(endpoint, ca)? })
    }

    /// The answer's head; its body is still to be read.
    async fn send(&mut self, method: Method, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let payload = Payload::Bytes(ask.document.as_bytes());
        let parts = self.s3.request(method, ask.bucket, ask.key, ask.query, ask.headers, payload, SystemClock.now());
        let body = Full::new(Bytes::from(ask.document.clone()));
        self.wire.send(Request::from_parts(parts.map_err(|why| anyhow!(why))?, body)).await
    }

    /// The answer's document.
    async fn ask(&mut self, method: Method, ask: &Ask<'_>) -> Result<String> {
        let answer = self.send(method, ask).await?;
        let status = answer.status();
        let text = text(answer.into_body()).await?;
        if !status.is_success() {
            return Err(named(ask.bucket, refused(status, &text)));
        }
        Ok(text)
    }
}

async fn text(body: Incoming) -> Result<String> {
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let bytes = body.map_err(|e| anyhow!("reading the answer: {e}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An error with the bucket that it is about, if it is about one.
fn named(bucket: &str, why: anyhow::Error) -> anyhow::Error {
    if bucket.is_empty() { why } else { anyhow!("bucket {bucket}: {why}") }
}

fn refused(status: StatusCode, text: &str) -> anyhow::Error {
    let code = element(text, "Code").unwrap_or(status.as_str());
    anyhow!("{code}: {}", element(text, "Message").map_or("no reason was given".into(), plain))
}

/// A text of XML as it was meant.
fn plain(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

/// A name of a URL as it was meant.
fn decoded(text: &str) -> String {
    percent_decode(text).unwrap_or_else(|| text.to_owned())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                out.push((digit(bytes.next())? * 16 + digit(bytes.next())?) as u8);
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

/// For a terminal: what would move its cursor is shown by its code.
fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// Prints lines of cells; the first column and what `left` names to the left.
fn table(lines: &[Vec<String>], left: &[usize]) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0)).collect();
    for l in lines {
        let cells: Vec<String> = l
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (text, width))| match i == 0 || left.contains(&i) {
                true => format!("{text:<width$}"),
                false => format!("{text:>width$}"),
            })
            .collect();
        print(&format!("{}\n", cells.join("  ").trim_end()));
    }
}

/// The text of the first element of this name: numbers and buckets' names, which hold nothing that XML escapes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_answer() {
        let part = "<Name>b</Name><Objects>3</Objects><Bytes>9</Bytes><MaxBytes>10</MaxBytes>";
        assert_eq!(line("b", part), ["b", "3", "9", "-", "10"]);
    }

    #[test]
    fn refusals_name_their_bucket() {
        let answer = "<Error><Code>NoSuchBucket</Code><Message>It is not there.</Message></Error>";
        let why = || refused(StatusCode::NOT_FOUND, answer);
        assert_eq!(named("b", why()).to_string(), "bucket b: NoSuchBucket: It is not there.");
        assert_eq!(named("", why()).to_string(), "NoSuchBucket: It is not there.");
    }
}
