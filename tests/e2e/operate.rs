//! What an operator of Walrus does: list, check, reclaim, export, over TLS whose certificate is renewed.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::alone::Alone;
use crate::cloud::{Cloud, errors_of, folder, has, karri, noise, same, text_of, tool, wait};

const KEY: [&str; 2] = ["AKIAOPERATOROPERATOR", "0123456789abcdef0123456789abcdef01234567"];

/// A certificate for `localhost`, in files.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    // As a renewal does it: the key first, each file whole at once.
    for (path, text) in [(&key, made.signing_key.serialize_pem()), (&cert, made.cert.pem())] {
        let part = path.with_extension("new");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, path).unwrap();
    }
    (cert, key)
}

/// A Walrus of its own, over TLS.
struct Own<'a> {
    dir: &'a Path,
    walrus: Alone,
}

impl<'a> Own<'a> {
    fn start(dir: &'a Path) -> Self {
        let mut serve = karri();
        serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--iam", "127.0.0.1:0"]);
        serve.args(["--access-key", KEY[0], "--secret-key", KEY[1], "--store"]).arg(dir.join("store"));
        serve.arg("--tls-cert").arg(dir.join("cert.pem")).arg("--tls-key").arg(dir.join("key.pem"));
        Self { dir, walrus: Alone::start(serve) }
    }

    fn url(&self, words: &str) -> String {
        self.walrus.url(words).replace("127.0.0.1", "localhost")
    }

    fn with_key(&self, mut command: Command) -> Command {
        command.envs([("AWS_ACCESS_KEY_ID", KEY[0]), ("AWS_SECRET_ACCESS_KEY", KEY[1])]);
        command.envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")]);
        command.envs([("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_PAGER", ""), ("AWS_DEFAULT_REGION", "us-east-1")]);
        command.env("AWS_CA_BUNDLE", self.dir.join("cert.pem"));
        command
    }

    /// aws cli, which must succeed.
    fn aws(&self, words: &str, args: &[&str]) -> Value {
        let mut command = self.with_key(Command::new(tool("aws").expect("checked by the test")));
        let output = command.args(["--endpoint-url", &self.url(words)]).args(args).output().expect("aws runs");
        assert!(output.status.success(), "aws {args:?}: {}{}", text_of(&output), errors_of(&output));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn karri(&self, args: &[&str]) -> Output {
        let mut command = self.with_key(karri());
        command.arg("walrus").args(args).args(["--endpoint", &self.url("ready: S3 at "), "--ca"]);
        command.arg(self.dir.join("cert.pem")).output().expect("karri runs")
    }

    /// A verb, which must succeed; what it said.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.karri(args);
        assert!(output.status.success(), "karri walrus {args:?}: {}{}", text_of(&output), errors_of(&output));
        text_of(&output)
    }
}

#[test]
fn an_operator_lists_checks_reclaims_and_exports_over_tls() {
    if !has("an_operator_lists_checks_reclaims_and_exports_over_tls", &["aws"]) {
        return;
    }
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    certificate(dir.path());
    let own = Own::start(dir.path());
    let s3 = |own: &Own<'_>, args: &[&str]| own.aws("ready: S3 at ", args);
    noise(&path("big"), 20 << 20);
    std::fs::write(path("small"), "hello").unwrap();
    let text = |path: &Path| path.to_str().expect("plain names").to_owned();
    s3(&own, &["s3", "mb", "s3://first"]);
    s3(&own, &["s3", "mb", "s3://second"]);
    s3(&own, &["s3", "cp", "--no-progress", &text(&path("big")), "s3://first/dir/big", "--metadata", "a=b"]);
    let keys = ["../../escape", "/absolute", "dir", "a", "a/b", "new\nline", "caf\u{e9}"];
    for key in keys {
        s3(&own, &["s3api", "put-object", "--bucket", "first", "--key", key, "--body", &text(&path("small"))]);
    }
    assert!(own.aws("IAM and STS at ", &["iam", "list-users"])["Users"].is_array());

    // Policies know that it is TLS, those of S3 and those of IAM.
    let iam = |args: &[&str]| own.aws("IAM and STS at ", &[&["iam"], args].concat());
    iam(&["create-user", "--user-name", "ann"]);
    let key = iam(&["create-access-key", "--user-name", "ann"]);
    let policy = r#"{"Statement":[{"Effect":"Allow","Action":["iam:GetUser","s3:ListBucket"],"Resource":"*",
        "Condition":{"Bool":{"aws:SecureTransport":"true"}}}]}"#;
    iam(&["put-user-policy", "--user-name", "ann", "--policy-name", "p", "--policy-document", policy]);
    for (words, args) in [
        ("IAM and STS at ", ["iam", "get-user", "--user-name", "ann"]),
        ("ready: S3 at ", ["s3api", "list-objects-v2", "--bucket", "first"]),
    ] {
        let mut command = own.with_key(Command::new(tool("aws").expect("checked above")));
        let text = |name: &str| key["AccessKey"][name].as_str().expect("a key").to_owned();
        command.env("AWS_ACCESS_KEY_ID", text("AccessKeyId")).env("AWS_SECRET_ACCESS_KEY", text("SecretAccessKey"));
        let output = command.args(["--endpoint-url", &own.url(words)]).args(args).output().expect("aws runs");
        assert!(output.status.success(), "{args:?}: {}", errors_of(&output));
    }

    let listed = own.ok(&["list"]);
    let line = listed.lines().find(|l| l.starts_with("first")).expect("the bucket");
    assert!(line.contains("000000000000") && line.contains(" 8 ") && listed.contains("second"), "{listed}");
    let listed = own.ok(&["list", "first"]);
    assert!(listed.lines().count() == 8 && listed.contains("new\\u{a}line") && listed.contains("dir/big"), "{listed}");
    assert_eq!(own.ok(&["list", "first", "--prefix", "a"]).lines().count(), 2);

    let checked = own.ok(&["check"]);
    assert!(checked.contains("0 corrupt, 0 repaired"), "{checked}");
    assert_eq!(own.ok(&["check", "--last"]), checked);
    assert!(own.ok(&["reclaim"]).contains("reclaimed 0 bytes"));

    let out = text(&path("out"));
    assert!(own.ok(&["export", "first", &out]).contains("exported 8 objects"));
    assert!(same(&path("big"), &path("out/objects/dir%/big")));
    for file in ["%2E%2E/%2E%2E/escape", "%/absolute", "dir", "a", "a%/b", "new%0Aline", "caf%C3%A9"] {
        assert_eq!(std::fs::read(path("out/objects").join(file)).expect(file), b"hello");
    }
    let manifest = std::fs::read_to_string(path("out/manifest.jsonl")).unwrap();
    let lines: Vec<Value> = manifest.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let big = lines.iter().find(|l| l["key"] == "dir/big").expect("its line");
    assert_eq!((&big["metadata"]["a"], &big["size"]), (&Value::from("b"), &Value::from(20 << 20)));
    assert!(
        keys.iter()
            .all(|key| lines.iter().any(|l| l["key"] == *key && l["etag"] == "5d41402abc4b2a76b9719d911017c592"))
    );
    // Not over what is there; going on reads only what changed.
    assert!(errors_of(&own.karri(&["export", "first", &out])).contains("not empty"));
    s3(&own, &["s3api", "put-object", "--bucket", "first", "--key", "later", "--body", &text(&path("small"))]);
    assert!(own.ok(&["export", "first", &out, "--resume"]).contains("exported 9 objects"));
    let again = std::fs::read_to_string(path("out/manifest.jsonl")).unwrap();
    assert_eq!(again.lines().count(), 9);

    // A new certificate without a restart; a broken one is refused.
    certificate(dir.path());
    wait(Duration::from_secs(30), "the new certificate", || own.karri(&["list"]).status.success().then_some(()));
    std::fs::write(path("key.pem"), "no key").unwrap();
    let refused = "the old one goes on while the new one is broken";
    assert!(own.karri(&["list"]).status.success(), "{refused}");
    certificate(dir.path());
    wait(Duration::from_secs(30), "the next certificate", || own.karri(&["list"]).status.success().then_some(()));
    own.walrus.end();

    // A flipped byte in the file.
    let wanted = &std::fs::read(path("big")).unwrap()[1 << 20..(1 << 20) + 4096];
    let store = std::fs::OpenOptions::new().read(true).write(true).open(path("store/objects")).unwrap();
    let (mut block, mut at) = (vec![0; 4 << 20], 0);
    let found = loop {
        let n = store.read_at(&mut block, at).unwrap();
        assert!(n > 0, "the bytes are in the file");
        if let Some(i) = block[..n].chunks(4096).position(|b| b == wanted) {
            break at + i as u64 * 4096;
        }
        at += n as u64;
    };
    store.write_at(&[!wanted[0]], found).unwrap();
    let own = Own::start(dir.path());
    let check = own.karri(&["check"]);
    let said = text_of(&check);
    assert!(!check.status.success() && said.contains("CORRUPT  first/dir/big") && said.contains("1 corrupt"), "{said}");
    let export = own.karri(&["export", "first", &text(&path("rest"))]);
    let said = text_of(&export);
    assert!(
        !export.status.success() && said.contains("FAILED  dir/big") && said.contains("exported 8 objects"),
        "{said}"
    );
    assert!(!path("rest/objects/dir%/big").exists() && !path("rest/part").exists());
    own.walrus.end();
}

#[test]
fn a_cloud_serves_over_tls() {
    if !has("a_cloud_serves_over_tls", &["aws"]) {
        return;
    }
    let dir = folder();
    let (cert, key) = certificate(dir.path());
    let [cert, key] = [&cert, &key].map(|path| path.to_str().expect("plain names").to_owned());
    let cloud = Cloud::start_in(&dir.path().join("state"), &["--tls-cert", &cert, "--tls-key", &key]);
    let endpoint = cloud.var("AWS_ENDPOINT_URL_S3").to_owned();
    assert!(endpoint.starts_with("https://127.0.0.1:"), "{endpoint}");
    let mut list = cloud.client(tool("aws").expect("checked above"));
    let made = list.env("AWS_CA_BUNDLE", &cert).args(["s3", "mb", "s3://over-tls"]).output().expect("aws runs");
    assert!(made.status.success(), "{}", errors_of(&made));
    let verb = |args: &[&str]| {
        let output = karri().arg("walrus").args(args).arg("--state").arg(&cloud.state).output().expect("karri runs");
        assert!(output.status.success(), "{args:?}: {}", errors_of(&output));
        text_of(&output)
    };
    assert!(verb(&["list"]).contains("over-tls"));
    assert!(verb(&["usage"]).contains("over-tls"));
    assert!(verb(&["check"]).contains("0 corrupt"));

    // The other APIs with the same certificate, and with the next one.
    let api = cloud.var("AWS_ENDPOINT_URL").to_owned();
    assert!(api.starts_with("https://127.0.0.1:") && cloud.var("EC2_URL") == api, "{api}");
    let ask = |words: &[&str]| {
        let mut aws = cloud.client(tool("aws").expect("checked above"));
        aws.env("AWS_CA_BUNDLE", &cert).env("AWS_MAX_ATTEMPTS", "1").args(words).output().expect("aws runs")
    };
    for words in [&["ec2", "describe-regions"], &["sts", "get-caller-identity"], &["iam", "list-users"]] {
        let answer = ask(words);
        assert!(answer.status.success(), "{words:?}: {}", errors_of(&answer));
    }
    let plain = std::net::TcpStream::connect(api.trim_start_matches("https://")).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    });
    assert!(!plain.unwrap().starts_with(b"HTTP"), "plain HTTP is not answered");
    certificate(dir.path());
    let began = Instant::now();
    while !ask(&["ec2", "describe-regions"]).status.success() {
        assert!(began.elapsed() < Duration::from_secs(60), "the renewed certificate is never shown");
    }
    // The tools of this machine need no certificate.
    let (root, mut sector) = (dir.path().join("root.img"), vec![0; 512]);
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    std::fs::write(&root, sector).unwrap();
    let mut add = karri();
    add.args(["image", "add", "over-tls", "--root"]).arg(&root).arg("--state").arg(&cloud.state);
    let added = add.output().expect("karri runs");
    assert!(text_of(&added).starts_with("ami-"), "{}", errors_of(&added));
    assert!(cloud.stop(), "karri up ends well");
}

#[test]
fn http_2_carries_large_objects_side_by_side() {
    if !has("http_2_carries_large_objects_side_by_side", &["curl"]) {
        return;
    }
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    certificate(dir.path());
    let own = Own::start(dir.path());
    let url = own.url("ready: S3 at ");
    noise(&path("big"), 20 << 20);
    let curl = |args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "-sSf",
            "--max-time",
            "120",
            "--http2",
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "--cacert",
            "cert.pem",
        ])
        .args(["--user", &KEY.join(":"), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
        .args(["-w", "%{http_version} %{http_code}\\n"]);
        let output = curl.args(args).current_dir(dir.path()).output().expect("curl runs");
        assert!(output.status.success(), "{args:?}: {}", errors_of(&output));
        text_of(&output)
    };
    let (bucket, object) = (format!("{url}/two"), format!("{url}/two/big"));
    assert_eq!(curl(&["-X", "PUT", &bucket]), "2 200\n");
    assert_eq!(curl(&["-T", "big", &object]), "2 200\n");
    let several = ["-Z", "-o", "a", &object, "-o", "b", &object, "-o", "c", &object];
    assert_eq!(curl(&several), "2 200\n".repeat(3));
    assert!(["a", "b", "c"].iter().all(|name| same(&path("big"), &path(name))));
    own.walrus.end();
}
