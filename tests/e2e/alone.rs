//! One engine without a cloud: `karri storage export` and `karri walrus serve` start, say so, and end in order.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::cloud::{errors_of, folder, has, karri, signal, text_of, wait};

/// A service that runs alone. It does not outlive its test.
pub struct Alone {
    child: Child,
    said: Vec<String>,
    /// Open as long as it may want to say more.
    words: BufReader<ChildStdout>,
}

impl Alone {
    /// Starts it and waits for its word.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("karri runs");
        let words = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut alone = Self { child, said: Vec::new(), words };
        while !alone.said.last().is_some_and(|line| line.starts_with("ready")) {
            let mut line = String::new();
            let read = alone.words.read_line(&mut line).expect("its word");
            assert!(read > 0, "it ended after {:?}", alone.said);
            alone.said.push(line.trim_end().to_owned());
        }
        alone
    }

    /// What follows these words in what it said.
    pub fn url(&self, words: &str) -> &str {
        self.said.iter().find_map(|line| line.strip_prefix(words)).unwrap_or_else(|| panic!("{words}: {:?}", self.said))
    }

    /// Tells it to end; it must end well.
    pub fn end(self) {
        self.end_by("TERM");
    }

    fn end_by(mut self, name: &str) {
        signal(self.child.id(), name);
        let status = wait(Duration::from_secs(60), "its end", || self.child.try_wait().expect("a child"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_volume_is_exported_and_put_away() {
    let dir = folder();
    for name in ["TERM", "INT"] {
        let mut export = karri();
        export.args(["storage", "export", "--volume", "disk:64M", "--store"]);
        export.arg(format!("{}:1G", dir.path().join("store").display()));
        export.arg("--vhost-user").arg(dir.path().join("disk.sock"));
        Alone::start(export).end_by(name);
    }
}

#[test]
fn walrus_serves_alone_and_ends() {
    let dir = folder();
    for name in ["TERM", "INT"] {
        let mut serve = karri();
        serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", "AKIAALONE"]);
        serve.args(["--secret-key", "0123456789abcdef0123456789abcdef01234567", "--store"]).arg(dir.path().join("s3"));
        Alone::start(serve).end_by(name);
    }
}

#[test]
fn walrus_alone_has_metrics_a_region_and_names() {
    if !has("walrus_alone_has_metrics_a_region_and_names", &["curl"]) {
        return;
    }
    let dir = folder();
    let (id, secret) = ("AKIAALONE", "0123456789abcdef0123456789abcdef01234567");
    let mut serve = karri();
    serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", id, "--secret-key", secret]);
    serve.args(["--metrics", "127.0.0.1:0", "--region", "eu-central-1", "--domain", "s3.example.org"]);
    serve.arg("--store").arg(dir.path().join("s3"));
    let walrus = Alone::start(serve);
    let port = walrus.url("ready: S3 at ").rsplit(':').next().expect("a port").to_owned();
    let curl = |args: &[&str]| {
        let output = Command::new("curl").args(["-s", "--max-time", "30"]).args(args).output().expect("curl runs");
        assert!(output.status.success(), "{args:?}: {}", errors_of(&output));
        text_of(&output)
    };
    let s3 = |method: &str, host: &str, path: &str, body: &str| {
        curl(&[
            "--aws-sigv4",
            "aws:amz:eu-central-1:s3",
            "--user",
            &format!("{id}:{secret}"),
            "-H",
            "x-amz-content-sha256: UNSIGNED-PAYLOAD",
            "--resolve",
            &format!("{host}:{port}:127.0.0.1"),
            "-X",
            method,
            "--data-binary",
            body,
            &format!("http://{host}:{port}{path}"),
        ])
    };
    let location =
        "<CreateBucketConfiguration><LocationConstraint>eu-central-1</LocationConstraint></CreateBucketConfiguration>";
    assert_eq!(s3("PUT", "bucket.s3.example.org", "/", location), "");
    assert!(s3("GET", "bucket.s3.example.org", "/?location=", "").contains(">eu-central-1<"));
    assert_eq!(s3("PUT", "bucket.s3.example.org", "/a/key", "hello"), "");
    assert_eq!(s3("GET", "bucket.s3.example.org", "/a/key", ""), "hello");
    assert_eq!(s3("GET", "s3.example.org", "/bucket/a/key", ""), "hello");
    assert!(s3("GET", "s3.example.org", "/", "").contains("<Name>bucket</Name>"));
    let metrics = curl(&[walrus.url("metrics at ")]);
    let counted = |line: &str| line.starts_with("karri_walrus_requests") && line.contains("PutObject");
    assert!(metrics.lines().any(counted) && metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(curl(&[&walrus.url("metrics at ").replace("/metrics", "/healthz")]), "ok\n");
    walrus.end();
}
