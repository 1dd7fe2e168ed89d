//! `karri walrus export`: every current object of a bucket as a file, verified as it is read, with a manifest.
//!
//! ```text
//! DIR/manifest.jsonl     a line of JSON for each object: key, file, size, ETag, time, metadata, what it was verified by
//! DIR/objects/...        the objects (files.rs says where)
//! ```
//!
//! A file has its name only once it is whole, and its line only after that, so an export that was cut off goes on with
//! `--resume`: what has its line and has not changed since is not read again.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::store::{Listed, page};
use super::{Ask, Walrus, Which, files, refused, runtime, shown, text};
use crate::ask::print;

/// How often an object is read again whose connection broke.
const TRIES: usize = 3;
/// A line of progress for so many objects where there is no terminal.
const TELL_EVERY: u64 = 10_000;

/// A line of the manifest.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    /// Below DIR.
    file: PathBuf,
    size: u64,
    etag: String,
    last_modified: String,
    version_id: Option<String>,
    /// Content-Type and the other headers that are kept with an object.
    headers: BTreeMap<String, String>,
    /// x-amz-meta-*, without that prefix.
    metadata: BTreeMap<String, String>,
    /// What its bytes were compared with.
    verified: Vec<String>,
}

/// Writes all current objects of a bucket into a folder; success only where every one is there.
pub fn export(which: &Which, bucket: &str, dir: &Path, resume: bool) -> Result<ExitCode> {
    let done = open(dir, resume)?;
    runtime()?.block_on(async {
        let mut export = Export { walrus: which.operator()?, bucket, dir, done, manifest: manifest(dir)?, last: None };
        export.all().await
    })
}

/// Makes the folder, or reads what is in it already.
fn open(dir: &Path, resume: bool) -> Result<HashMap<String, Line>> {
    let objects = dir.join("objects");
    fs::create_dir_all(dir).with_context(|| format!("the folder {} cannot be made", dir.display()))?;
    let is_empty = fs::read_dir(dir).with_context(|| dir.display().to_string())?.next().is_none();
    if !is_empty && !resume {
        bail!("{} is not empty: give an empty folder, or --resume to go on with an export", dir.display());
    }
    fs::create_dir_all(&objects).with_context(|| objects.display().to_string())?;
    let path = dir.join("manifest.jsonl");
    let mut done = HashMap::new();
    if !path.exists() {
        if !is_empty {
            bail!("{} has no manifest.jsonl: it is no export that could go on", dir.display());
        }
        return Ok(done);
    }
    let mut whole = 0;
    let mut reader = BufReader::new(File::open(&path)?);
    loop {
        let mut line = String::new();
        let n = reader.read_line(&mut line).with_context(|| path.display().to_string())?;
        // The last line may have been cut off.
        match serde_json::from_str::<Line>(&line) {
            Ok(parsed) if line.ends_with('\n') => drop(done.insert(parsed.key.clone(), parsed)),
            _ => break,
        }
        whole += n as u64;
    }
    OpenOptions::new().write(true).open(&path)?.set_len(whole)?;
    Ok(done)
}

fn manifest(dir: &Path) -> Result<File> {
    let path = dir.join("manifest.jsonl");
    OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())
}

struct Export<'a> {
    walrus: Walrus,
    bucket: &'a str,
    dir: &'a Path,
    done: HashMap<String, Line>,
    manifest: File,
    /// Asked so often so far.
    last: Option<u64>,
}

impl Export<'_> {
    async fn all(&mut self) -> Result<ExitCode> {
        let (mut token, mut objects, mut bytes, mut failed) = (None, 0u64, 0u64, 0u64);
        loop {
            let (listed, next) = page(&mut self.walrus, self.bucket, "", token.as_deref()).await?;
            for object in listed {
                match self.one(&object).await {
                    Ok(size) => (objects, bytes) = (objects + 1, bytes + size),
                    Err(Failed::This(why)) => {
                        failed += 1;
                        self.clear();
                        print(&format!("FAILED  {}: {why:#}\n", shown(&object.key)));
                    }
                    Err(Failed::All(why)) => {
                        self.clear();
                        return Err(why);
                    }
                }
                self.progress(objects, bytes, failed);
            }
            match next {
                None => break,
                next => token = next,
            }
        }
        self.clear();
        self.manifest.sync_all()?;
        let note = if failed == 0 { String::new() } else { format!("; {failed} failed") };
        print(&format!("exported {objects} objects, {bytes} bytes, to {}{note}\n", self.dir.display()));
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn one(&mut self, object: &Listed) -> Result<u64, Failed> {
        let below = self.dir.join("objects");
        let same = |line: &&Line| line.etag == object.etag && line.last_modified == object.modified;
        if let Some(line) = self.done.get(&object.key).filter(same)
            && fs::metadata(self.dir.join(&line.file)).is_ok_and(|m| m.is_file() && m.len() == line.size)
        {
            return Ok(line.size);
        }
        let file = files::path(&object.key, |path| below.join(path).is_file());
        let file = if below.join(&file).is_dir() { file.join("%-%") } else { file };
        let path = below.join(&file);
        let wrong = |e: std::io::Error| Failed::All(anyhow!("{} cannot be written: {e}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(wrong)?;
        }
        let part = self.dir.join("part");
        let mut tries = 0;
        let line = loop {
            tries += 1;
            match self.fetch(object, &part).await {
                Ok(line) => break line,
                // The connection, not the object.
                Err(Failed::This(e)) if tries < TRIES && e.is::<hyper::Error>() => {}
                Err(e) => {
                    let _ = fs::remove_file(&part);
                    return Err(e);
                }
            }
        };
        fs::rename(&part, &path).map_err(wrong)?;
        let line = Line { file: Path::new("objects").join(file), ..line };
        let mut text = serde_json::to_string(&line).map_err(|e| Failed::All(e.into()))?;
        text.push('\n');
        self.manifest.write_all(text.as_bytes()).map_err(wrong)?;
        Ok(line.size)
    }

    /// Reads an object into a file, verified.
    async fn fetch(&mut self, object: &Listed, part: &Path) -> Result<Line, Failed> {
        let wrong = |e: std::io::Error| Failed::All(anyhow!("{} cannot be written: {e}", part.display()));
        let headers = [("x-amz-checksum-mode", "ENABLED")];
        let ask = Ask { bucket: self.bucket, key: Some(&object.key), headers: &headers, ..Ask::default() };
        let answer = self.walrus.send(Method::GET, &ask).await.map_err(Failed::All)?;
        let (head, mut body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let why = refused(head.status, &text(body).await.unwrap_or_default());
            // A key that may not be read is one thing, a key that signs nothing another.
            return Err(if head.status == StatusCode::UNAUTHORIZED { Failed::All(why) } else { Failed::This(why) });
        }
        let mut file = File::create(part).map_err(wrong)?;
        let mut verify = Verify::new(&head.headers);
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failed::This(anyhow!(e).context("the answer was cut off")))?;
            let Ok(data) = frame.into_data() else { continue };
            size += data.len() as u64;
            verify.update(&data);
            file.write_all(&data).map_err(wrong)?;
        }
        file.sync_data().map_err(wrong)?;
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        if header("content-length").is_some_and(|len| len != size.to_string()) {
            return Err(Failed::This(anyhow!(
                "it has {size} bytes, not {}",
                header("content-length").unwrap_or_default()
            )));
        }
        let verified = verify.end().map_err(Failed::This)?;
        let kept = [
            "content-type",
            "cache-control",
            "content-disposition",
            "content-encoding",
            "content-language",
            "expires",
            "x-amz-storage-class",
            "x-amz-website-redirect-location",
        ];
        let headers = kept.into_iter().filter_map(|name| Some((name.to_owned(), header(name)?))).collect();
        let metadata = head.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-amz-meta-")?;
            Some((name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        });
        Ok(Line {
            key: object.key.clone(),
            file: PathBuf::new(),
            size,
            etag: header("etag").unwrap_or_default().trim_matches('"').to_owned(),
            // As the listing tells it, which is asked again when an export goes on.
            last_modified: object.modified.clone(),
            version_id: header("x-amz-version-id"),
            headers,
            metadata: metadata.collect(),
            verified,
        })
    }

    fn progress(&mut self, objects: u64, bytes: u64, failed: u64) {
        if std::io::stderr().is_terminal() {
            if self.last != Some(bytes >> 20) {
                eprint!("\r\x1b[K{objects} objects, {} MiB, {failed} failed", bytes >> 20);
                self.last = Some(bytes >> 20);
            }
        } else if objects > 0 && objects.is_multiple_of(TELL_EVERY) {
            eprintln!("{objects} objects, {} MiB, {failed} failed", bytes >> 20);
        }
    }

    fn clear(&self) {
        if self.last.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

/// What failed: this object, or all that is to come.
enum Failed {
    This(anyhow::Error),
    All(anyhow::Error),
}

/// An object's bytes against what its head says of them.
struct Verify {
    /// The MD5 that the ETag is, where it is one.
    md5: Option<(Md5, String)>,
    crc: Option<(&'static str, crc_fast::Digest, usize, String)>,
    sha256: Option<(Sha256, String)>,
}

impl Verify {
    fn new(headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let etag = header("etag").map(|tag| tag.trim_matches('"').to_owned());
        let is_md5 = |tag: &String| tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        let sealed = headers.keys().any(|name| name.as_str().starts_with("x-amz-server-side-encryption"));
        // Of a multipart object only a checksum of the whole can be compared.
        let whole = header("x-amz-checksum-type").is_none_or(|kind| kind == "FULL_OBJECT");
        let crcs = [
            ("x-amz-checksum-crc64nvme", CrcAlgorithm::Crc64Nvme, 8),
            ("x-amz-checksum-crc32c", CrcAlgorithm::Crc32Iscsi, 4),
            ("x-amz-checksum-crc32", CrcAlgorithm::Crc32IsoHdlc, 4),
        ];
        let crc = crcs.into_iter().filter(|_| whole).find_map(|(name, algorithm, bytes)| {
            Some((name, crc_fast::Digest::new(algorithm), bytes, header(name)?.to_owned()))
        });
        let sha256 = header("x-amz-checksum-sha256").filter(|_| whole).map(|v| (Sha256::new(), v.to_owned()));
        Self { md5: etag.filter(|tag| !sealed && is_md5(tag)).map(|tag| (Md5::new(), tag)), crc, sha256 }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some((md5, _)) = &mut self.md5 {
            md5.update(bytes);
        }
        if let Some((_, crc, ..)) = &mut self.crc {
            crc.update(bytes);
        }
        if let Some((sha, _)) = &mut self.sha256 {
            sha.update(bytes);
        }
    }

    /// What it was compared with.
    fn end(self) -> Result<Vec<String>> {
        use base64::Engine;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let mut verified = vec!["length".to_owned()];
        let mut compare = |name: &str, got: String, want: &str| {
            if !got.eq_ignore_ascii_case(want) {
                bail!("its {name} is {got}, not {want}");
            }
            verified.push(name.trim_start_matches("x-amz-checksum-").to_owned());
            Ok(())
        };
        if let Some((md5, want)) = self.md5 {
            let hex: String = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
            compare("md5", hex, &want)?;
        }
        if let Some((name, crc, bytes, want)) = self.crc {
            let sum = crc.finalize().to_be_bytes();
            if base64(&sum[8 - bytes..]) != want {
                bail!("its {} does not match", name);
            }
            compare(name, want.clone(), &want)?;
        }
        if let Some((sha, want)) = self.sha256 {
            if base64(&sha.finalize()) != want {
                bail!("its SHA-256 does not match");
            }
            compare("sha256", want.clone(), &want)?;
        }
        Ok(verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared_with_what_the_head_says() {
        let check = |name: &'static str, value: &'static str, good: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            let mut verify = Verify::new(&headers);
            verify.update(b"he");
            verify.update(b"llo");
            assert_eq!(verify.end().is_ok(), good, "{name}: {value}");
        };
        check("etag", "\"5d41402abc4b2a76b9719d911017c592\"", true);
        check("etag", "\"5d41402abc4b2a76b9719d911017c593\"", false);
        check("etag", "\"5d41402abc4b2a76b9719d911017c593-2\"", true);
        check("x-amz-checksum-crc32", "NhCmhg==", true);
        check("x-amz-checksum-crc32", "NhCmhA==", false);
        check("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=", true);
        check("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCA=", false);
    }

    #[test]
    fn a_folder_is_taken_only_where_it_is_empty_or_an_export() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), false).unwrap();
        manifest(dir.path()).unwrap();
        assert!(open(dir.path(), false).is_err(), "it is not empty");
        let line = Line {
            key: "k".into(),
            file: "objects/k".into(),
            size: 1,
            etag: "e".into(),
            last_modified: "t".into(),
            version_id: None,
            headers: BTreeMap::new(),
            metadata: BTreeMap::new(),
            verified: vec![],
        };
        let whole = serde_json::to_string(&line).unwrap() + "\n";
        fs::write(dir.path().join("manifest.jsonl"), format!("{whole}{{\"key\":\"cut")).unwrap();
        assert_eq!(open(dir.path(), true).unwrap().len(), 1);
        // What was cut off is gone, so that lines can be added.
        assert_eq!(fs::read_to_string(dir.path().join("manifest.jsonl")).unwrap(), whole);
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("mine"), "").unwrap();
        assert!(open(other.path(), true).is_err(), "it is no export");
    }
}
