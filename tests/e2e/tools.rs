//! Tools that keep files in S3, each driven by a script of `tests/clients` against a Walrus alone.

use std::process::Command;

use crate::alone::Alone;
use crate::cloud::{checkout, errors_of, folder, has, karri, text_of, tool};

/// What a script ends with where the machine cannot do it.
const CANNOT: i32 = 77;

/// Runs a script in a folder of its own, with a Walrus of its own that has a bucket of the script's name where asked.
fn drive(test: &str, script: &str, tools: &[&str], bucket: Option<&str>) {
    if !has(test, tools) {
        return;
    }
    let dir = folder();
    let (id, secret) = ("AKIATOOLS", "0123456789abcdef0123456789abcdef01234567");
    let mut serve = karri();
    serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", id, "--secret-key", secret]);
    serve.arg("--store").arg(dir.path().join("s3"));
    let walrus = Alone::start(serve);
    let url = walrus.url("ready: S3 at ");
    let client = |program: &std::path::Path| {
        let mut command = Command::new(program);
        command
            .envs([("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_DEFAULT_REGION", "us-east-1")])
            .envs([("S3_URL", url), ("AWS_ENDPOINT_URL", url), ("AWS_EC2_METADATA_DISABLED", "true")])
            .envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")])
            .current_dir(dir.path());
        command
    };
    if let Some(bucket) = bucket {
        let made = client(&tool("aws").expect("asked for")).args(["s3", "mb"]).arg(format!("s3://{bucket}")).output();
        let made = made.expect("aws runs");
        assert!(made.status.success(), "{}", errors_of(&made));
    }
    let file = checkout().join("tests/clients").join(script);
    let runner = if script.ends_with(".py") { tool("python").expect("asked for") } else { "/bin/bash".into() };
    let output = client(&runner).arg(file).output().expect("the script runs");
    if output.status.code() == Some(CANNOT) {
        println!("SKIPPED {test}: {}", text_of(&output).lines().last().unwrap_or("it cannot run here"));
        return;
    }
    assert!(output.status.success(), "{script}: {}\n{}{}", output.status, text_of(&output), errors_of(&output));
    walrus.end();
}

#[test]
fn rclone_syncs_and_checks() {
    drive("rclone_syncs_and_checks", "rclone.sh", &["rclone"], None);
}

#[test]
fn restic_backs_up_and_restores() {
    drive("restic_backs_up_and_restores", "restic.sh", &["restic"], None);
}

#[test]
fn a_bucket_is_a_file_system_by_s3fs() {
    drive("a_bucket_is_a_file_system_by_s3fs", "s3fs.sh", &["s3fs", "aws", "git"], Some("s3fs"));
}

#[test]
fn sigv2_is_understood_as_s3curl_signs() {
    drive("sigv2_is_understood_as_s3curl_signs", "s3curl.sh", &["curl", "openssl"], None);
}

#[test]
fn minio_py_works() {
    if let Some(python) = tool("python")
        && !Command::new(python).args(["-c", "import minio"]).output().is_ok_and(|o| o.status.success())
    {
        println!("SKIPPED minio_py_works: this python has no module minio");
        return;
    }
    drive("minio_py_works", "minio_client.py", &["python"], None);
}
