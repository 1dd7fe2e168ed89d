//! `karri walrus list`, `check` and `reclaim`: what is stored, whether it is whole, and what of it nothing refers to.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Ask, Walrus, Which, decoded, element, plain, runtime, shown, table};
use crate::ask::print;

/// How often a pass is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// A line of progress goes into a file so often.
const TELL_EVERY: u32 = 30;

/// Prints all buckets, or a bucket's keys.
pub fn list(which: &Which, bucket: Option<&str>, prefix: Option<&str>) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let mut walrus = which.operator()?;
        match bucket {
            None => buckets(&mut walrus).await,
            Some(bucket) => keys(&mut walrus, bucket, prefix.unwrap_or_default()).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn buckets(walrus: &mut Walrus) -> Result<()> {
    let answer = walrus.ask(Method::GET, &Ask { query: &[("buckets", "")], ..Ask::default() }).await?;
    let mut lines = vec![["BUCKET", "OWNER", "VERSIONING", "CREATED", "OBJECTS", "BYTES"].map(str::to_owned).to_vec()];
    for part in elements(&answer, "Bucket") {
        let text = |name: &str| element(part, name).unwrap_or("-").to_owned();
        let created = moment(element(part, "Created"));
        lines.push(vec![text("Name"), text("Owner"), text("Versioning"), created, text("Objects"), text("Bytes")]);
    }
    table(&lines, &[1, 2, 3]);
    Ok(())
}

/// A current object as a listing tells it.
pub(super) struct Listed {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// When it was written.
    pub modified: String,
}

/// A page of a bucket's current objects, and where the next one begins.
pub(super) async fn page(
    walrus: &mut Walrus,
    bucket: &str,
    prefix: &str,
    token: Option<&str>,
) -> Result<(Vec<Listed>, Option<String>)> {
    let mut query = vec![("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)];
    query.extend(token.map(|token| ("continuation-token", token)));
    query.sort_unstable();
    let answer = walrus.ask(Method::GET, &Ask { bucket, query: &query, ..Ask::default() }).await?;
    let mut listed = Vec::new();
    for part in elements(&answer, "Contents") {
        let text = |name: &str| element(part, name).map(plain).unwrap_or_default();
        let size = text("Size").parse().with_context(|| format!("the listing of bucket {bucket} cannot be read"))?;
        let etag = text("ETag").trim_matches('"').to_owned();
        listed.push(Listed { key: decoded(&text("Key")), size, etag, modified: text("LastModified") });
    }
    Ok((listed, element(&answer, "NextContinuationToken").map(plain)))
}

async fn keys(walrus: &mut Walrus, bucket: &str, prefix: &str) -> Result<()> {
    let mut token = None;
    loop {
        let (listed, next) = page(walrus, bucket, prefix, token.as_deref()).await?;
        for Listed { key, size, etag, modified } in listed {
            print(&format!("{size:>14}  {modified}  {etag:<36}  {}\n", shown(&key)));
        }
        match next {
            None => return Ok(()),
            next => token = next,
        }
    }
}

/// The elements of this name, none inside another.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_once(&open)?.1.split_once(&close)?;
        rest = after;
        Some(part)
    })
}

fn moment(secs: Option<&str>) -> String {
    let at = secs.and_then(|s| s.parse().ok()).and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "-".into())
}

/// Verifies all that is stored; success only where nothing corrupt is left.
///
/// `last`: shows what the last pass found, and begins none.
pub fn check(which: &Which, last: bool) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let mut walrus = which.operator()?;
        let report = match last {
            true => report(&mut walrus).await?,
            false => pass(&mut walrus, "scrub", "Checked").await?,
        };
        if last {
            for (name, what) in [("Running", "under way"), ("Met", "met by reads, before the first pass")] {
                if let Some(part) = elements(&report, name).next() {
                    print(&format!("{what}:\n"));
                    show(part);
                }
            }
        }
        let Some(part) = elements(&report, "Checked").next() else {
            print("no pass over the whole store is complete yet\n");
            return Ok(ExitCode::SUCCESS);
        };
        show(part);
        let left = |name| elements(&report, name).next().is_some_and(|part| number(part, "Left") > 0);
        Ok(if ["Checked", "Running", "Met"].into_iter().any(left) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// Frees what nothing refers to.
pub fn reclaim(which: &Which) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let report = pass(&mut which.operator()?, "reclaim", "Reclaimed").await?;
        let part = elements(&report, "Reclaimed").next().unwrap_or_default();
        let (pieces, bytes) = (number(part, "Freed"), number(part, "FreedBytes"));
        print(&format!("reclaimed {bytes} bytes in {pieces} pieces\n"));
        undecided(part);
        Ok(ExitCode::SUCCESS)
    })
}

fn number(part: &str, name: &str) -> u64 {
    element(part, name).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn show(part: &str) {
    let (objects, bytes) = (number(part, "Objects"), number(part, "Bytes"));
    let began = moment(element(part, "Began"));
    let ended = element(part, "Ended").map_or("still under way".to_owned(), |at| format!("ended {}", moment(Some(at))));
    print(&format!("checked {objects} objects and parts, {bytes} bytes; began {began}, {ended}\n"));
    for finding in elements(part, "Finding") {
        let text = |name: &str| element(finding, name).map(plain).unwrap_or_default();
        let (bucket, key, version) = (text("Bucket"), decoded(&text("Key")), text("Version"));
        let place = match (bucket.as_str(), key.as_str()) {
            ("", _) => String::new(),
            (bucket, "") => format!("bucket {bucket}: "),
            (bucket, key) => format!("{bucket}/{} ({version}): ", shown(key)),
        };
        let fate = if text("Fate") == "left" { "CORRUPT" } else { "repaired" };
        print(&format!("{fate}  {place}{}: {}\n", text("What"), shown(&text("Why"))));
    }
    let (left, repaired) = (number(part, "Left"), number(part, "Repaired"));
    let listed = elements(part, "Finding").count() as u64;
    if left + repaired > listed {
        print(&format!("and {} more\n", left + repaired - listed));
    }
    print(&format!("{left} corrupt, {repaired} repaired\n"));
    undecided(part);
}

fn undecided(part: &str) {
    let undecided = number(part, "Undecided");
    if undecided > 0 {
        print(&format!("{undecided} could not be told because too much went on meanwhile; run it again\n"));
    }
}

async fn report(walrus: &mut Walrus) -> Result<String> {
    walrus.ask(Method::GET, &Ask { query: &[("scrub", "")], ..Ask::default() }).await
}

/// Begins a pass and waits for its end; the report that has it.
async fn pass(walrus: &mut Walrus, verb: &str, ended: &str) -> Result<String> {
    let begun = walrus.ask(Method::PUT, &Ask { query: &[(verb, "")], ..Ask::default() }).await?;
    let pass = number(&begun, "Number");
    let mut progress = Progress::default();
    loop {
        let report = report(walrus).await?;
        if elements(&report, ended).next().is_some_and(|part| number(part, "Number") >= pass) {
            progress.end();
            return Ok(report);
        }
        if let Some(part) = elements(&report, "Running").find(|part| number(part, "Number") == pass) {
            progress.show(part, number(&report, "StoreBytes"));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// How far a pass is, on standard error: one line that changes, or now and then one where it is no terminal.
#[derive(Default)]
struct Progress {
    asked: u32,
    shown: bool,
}

impl Progress {
    fn show(&mut self, part: &str, all: u64) {
        let terminal = std::io::stderr().is_terminal();
        self.asked += 1;
        if !terminal && !self.asked.is_multiple_of(TELL_EVERY) {
            return;
        }
        let (objects, bytes) = (number(part, "Objects"), number(part, "Bytes"));
        let left = number(part, "Left");
        let phase = element(part, "Phase").unwrap_or_default();
        let line = format!(
            "{phase}: {objects} objects and parts, {} of about {} MiB, {left} corrupt",
            bytes >> 20,
            (all >> 20).max(bytes >> 20)
        );
        if terminal {
            eprint!("\r\x1b[K{line}");
            self.shown = true;
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
