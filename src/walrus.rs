//! `karri walrus usage` and `quota`: what is in the buckets of the account that asks, and how much may be.
//!
//! They speak S3 to a Walrus that runs: that of a cloud on this machine with its admin's key, or any other by `--endpoint`
//! and the key in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::AccessKey;
use karri_base::units::parse_bytes;

use crate::ask::print;
use crate::layout::Layout;

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
}

/// Prints what is in the account's buckets, or in one.
pub fn usage(which: &Which, bucket: Option<&str>) -> Result<ExitCode> {
    let answer = which.ask(Method::GET, bucket.unwrap_or_default(), "usage", String::new())?;
    let mut lines = vec![["BUCKET", "OBJECTS", "BYTES", "MAX OBJECTS", "MAX BYTES"].map(str::to_owned)];
    // The whole comes before the buckets.
    let (whole, buckets) = answer.split_once("<Bucket>").unwrap_or((&answer, ""));
    for part in buckets.split("<Bucket>").filter(|part| !part.is_empty()) {
        lines.push(line(element(part, "Name").unwrap_or_default(), part));
    }
    lines.push(line(bucket.unwrap_or("(all)"), whole));
    let width = |column: usize| lines.iter().map(|l| l[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    for l in &lines {
        let cells: Vec<String> = l
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (text, width))| if i == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") })
            .collect();
        print(&format!("{}\n", cells.join("  ").trim_end()));
    }
    Ok(ExitCode::SUCCESS)
}

fn line(name: &str, part: &str) -> [String; 5] {
    let text = |element_name: &str| element(part, element_name).unwrap_or("-").to_owned();
    [name.to_owned(), text("Objects"), text("Bytes"), text("MaxObjects"), text("MaxBytes")]
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
    which.ask(Method::PUT, bucket, "quota", document)?;
    Ok(ExitCode::SUCCESS)
}

impl Which {
    fn s3(&self) -> Result<S3> {
        let Some(endpoint) = &self.endpoint else {
            let layout = Layout::find(self.state.as_deref())?;
            let runtime = layout.read_runtime()?;
            let key = layout.read_credentials()?.admin;
            return S3::new(&format!("http://{}", runtime.s3), key, &runtime.region).map_err(|why| anyhow!(why));
        };
        let variable = |name: &str| std::env::var(name).with_context(|| format!("--endpoint needs a key: set {name}"));
        let key = AccessKey {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?,
        };
        S3::new(endpoint, key, "us-east-1").map_err(|why| anyhow!(why))
    }

    fn ask(&self, method: Method, bucket: &str, subresource: &str, document: String) -> Result<String> {
        let s3 = self.s3()?;
        let payload = Payload::Bytes(document.as_bytes());
        let parts = s3.request(method, bucket, None, &[(subresource, "")], &[], payload, SystemClock.now());
        let request = Request::from_parts(parts.map_err(|why| anyhow!(why))?, Full::new(Bytes::from(document)));
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio.block_on(async {
            let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
            let answer = client.request(request).await.context("Walrus does not answer")?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|e| anyhow!("reading the answer: {e}"))?.to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if !status.is_success() {
                let code = element(&text, "Code").unwrap_or(status.as_str());
                bail!("{code}: {}", element(&text, "Message").unwrap_or("no reason was given"));
            }
            Ok(text)
        })
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
}
