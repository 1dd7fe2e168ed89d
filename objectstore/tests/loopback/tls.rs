//! S3 over TLS with the clients that people have: boto3 and curl, HTTP/1.1 and HTTP/2.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use karri_base::aws::keys::KeyRing;
use karri_objectstore::operator::Operator;
use karri_objectstore::serve::{alone_with, root_key};
use karri_objectstore::tls::{Certificate, S3_PROTOCOLS};
use karri_objectstore::{Handle, StartError};

use crate::client::{ACCESS, Client, SECRET};
use crate::tools::{env, ok, python};
use crate::{anywhere, data};

/// A Walrus over TLS; its certificate is in `cert.pem` of the folder.
fn walrus(dir: &Path) -> Option<Handle> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = Certificate::open(&cert, &key).unwrap().server(S3_PROTOCOLS).unwrap();
    let ring = KeyRing::new([root_key(ACCESS, SECRET).unwrap()]);
    match alone_with(&dir.join("store"), anywhere(), ring, "us-east-1", Operator::default(), Some(tls)) {
        Ok(handle) => Some(handle),
        Err(StartError::Engine(e)) if e.to_string().contains("io_uring") => {
            eprintln!("SKIPPED: io_uring cannot be used here: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn boto3_over_tls() {
    let Some(python) = python() else {
        eprintln!("SKIPPED boto3_over_tls: boto3 is not installed (make setup makes target/venv)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/loopback/boto3_check.py"));
    env(&mut command, dir.path(), &format!("https://localhost:{}", walrus.local_addr().port()));
    command.env("AWS_CA_BUNDLE", dir.path().join("cert.pem")).env("SSL_CERT_FILE", dir.path().join("cert.pem"));
    ok(command);
}

#[test]
fn curl_speaks_both_versions() {
    let features = Command::new("curl").arg("--version").output();
    if !features.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("HTTP2")) {
        eprintln!("SKIPPED curl_speaks_both_versions: there is no curl that knows HTTP/2");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let port = walrus.local_addr().port();
    let big = data(5, 9 << 20);
    std::fs::write(dir.path().join("big"), &big).unwrap();
    let curl = |version: &str, args: &[&str], target: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", version, "--max-time", "60"]);
        command.args(["--cacert", "cert.pem", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]);
        command.arg(format!("{ACCESS}:{SECRET}")).args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        command.args(["--write-out", "%{stderr}%{http_version}"]).args(args);
        command.arg(format!("https://localhost:{port}/{target}")).current_dir(dir.path());
        let output = ok(command);
        (output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let bucket = format!("bucket{}", version.replace('.', ""));
        let said = |(body, spoken): (Vec<u8>, String)| {
            assert_eq!(spoken, version);
            body
        };
        said(curl(flag, &["--request", "PUT"], &bucket));
        said(curl(flag, &["--upload-file", "big"], &format!("{bucket}/big")));
        assert!(said(curl(flag, &[], &format!("{bucket}/big"))) == big);
        let range = said(curl(flag, &["--range", "1000000-1000099"], &format!("{bucket}/big")));
        assert!(range == big[1_000_000..1_000_100]);
        assert!(String::from_utf8(said(curl(flag, &[], &bucket))).unwrap().contains("<Key>big</Key>"));
        said(curl(flag, &["--request", "DELETE"], &format!("{bucket}/big")));
    }
    // Policies know what the client agreed on.
    let deny = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::bucket2/*","Condition":{"NumericLessThan":{"s3:TlsVersion":"1.3"}}}}"#;
    curl("--http2", &["--request", "PUT", "--data-binary", deny], "bucket2?policy=");
    let delete = |version: &str| {
        curl("--http2", &["--request", "DELETE", "--no-fail-with-body", "--tlsv1.2", "--tls-max", version], "bucket2/k")
            .0
    };
    assert!(String::from_utf8(delete("1.2")).unwrap().contains("AccessDenied"));
    assert_eq!(delete("1.3"), b"");
    // Many at once on one connection.
    let list: String = (0..40)
        .map(|i| format!("url = \"https://localhost:{port}/bucket2?prefix={i}\"\noutput = \"/dev/null\"\n"))
        .collect();
    std::fs::write(dir.path().join("many"), list).unwrap();
    let mut many = Command::new("curl");
    many.args([
        "--silent",
        "--show-error",
        "--fail",
        "--parallel",
        "--http2",
        "--cacert",
        "cert.pem",
        "--config",
        "many",
    ]);
    many.args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
    many.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]).arg(format!("{ACCESS}:{SECRET}"));
    ok({
        many.current_dir(dir.path());
        many
    });
    walrus.shutdown();
}

#[test]
fn plain_requests_and_rubbish_get_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(dir.path()) else { return };
    let mut plain = Client::connect(walrus.local_addr()).unwrap();
    assert!(plain.get("").is_err(), "a listener with TLS speaks nothing else");
    let mut stream = TcpStream::connect(walrus.local_addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&[0xFF; 4096]).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"));
}
