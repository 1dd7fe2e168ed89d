//! Real clients: boto3, aws cli, s3cmd. One that is not on this machine is skipped by name.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::client::{ACCESS, SECRET};
use crate::{data, walrus};

/// A Python with boto3: the one that `make setup` made, or the machine's.
pub fn python() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/python");
    [made, "python3".into()]
        .into_iter()
        .find(|python| Command::new(python).args(["-c", "import boto3"]).output().is_ok_and(|o| o.status.success()))
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

#[track_caller]
pub fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{command:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    output
}

pub fn env(command: &mut Command, home: &Path, endpoint: &str) {
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL_S3", endpoint)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("HOME", home)
        .env_remove("AWS_PROFILE")
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy");
}

#[test]
fn boto3() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: boto3 is not installed (make setup makes target/venv)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(&dir.path().join("store")) else { return };
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/loopback/boto3_check.py"));
    env(&mut command, dir.path(), &format!("http://{}", walrus.local_addr()));
    ok(command);
}

#[test]
fn aws_cli() {
    if !there("aws") {
        eprintln!("SKIPPED: aws is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(&dir.path().join("store")) else { return };
    let endpoint = format!("http://{}", walrus.local_addr());
    let aws = |args: &[&str]| {
        let mut command = Command::new("aws");
        command.args(args).current_dir(dir.path());
        env(&mut command, dir.path(), &endpoint);
        String::from_utf8(ok(command).stdout).unwrap()
    };
    let big = data(1, 40 << 20);
    std::fs::write(dir.path().join("big"), &big).unwrap();
    aws(&["s3", "mb", "s3://bucket"]);
    aws(&["s3", "cp", "big", "s3://bucket/dir/big", "--no-progress"]);
    aws(&["s3", "cp", "s3://bucket/dir/big", "back", "--no-progress"]);
    assert!(std::fs::read(dir.path().join("back")).unwrap() == big);
    aws(&["s3", "cp", "s3://bucket/dir/big", "s3://bucket/dir/copy", "--no-progress"]);
    assert!(aws(&["s3", "ls", "s3://bucket/"]).contains("PRE dir/"));
    assert_eq!(aws(&["s3", "ls", "s3://bucket/dir/"]).lines().count(), 2);
    aws(&["s3", "rm", "s3://bucket", "--recursive"]);
    aws(&["s3", "rb", "s3://bucket"]);
}

#[test]
fn s3cmd() {
    if !there("s3cmd") {
        eprintln!("SKIPPED: s3cmd is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(walrus) = walrus(&dir.path().join("store")) else { return };
    let host = walrus.local_addr().to_string();
    let s3cmd = |args: &[&str]| {
        let mut command = Command::new("s3cmd");
        command
            .args(["--config=/dev/null", "--no-ssl", "--no-progress", "--region=us-east-1"])
            .args([format!("--host={host}"), format!("--host-bucket={host}")])
            .args([format!("--access_key={ACCESS}"), format!("--secret_key={SECRET}")])
            .args(args)
            .current_dir(dir.path());
        env(&mut command, dir.path(), &host);
        String::from_utf8(ok(command).stdout).unwrap()
    };
    let big = data(2, 33 << 20);
    std::fs::write(dir.path().join("big"), &big).unwrap();
    std::fs::write(dir.path().join("small"), b"hello").unwrap();
    s3cmd(&["mb", "s3://bucket"]);
    s3cmd(&["put", "big", "small", "s3://bucket/dir/"]);
    s3cmd(&["get", "s3://bucket/dir/big", "back"]);
    assert!(std::fs::read(dir.path().join("back")).unwrap() == big);
    assert!(s3cmd(&["ls", "s3://bucket/dir/"]).contains("s3://bucket/dir/small"));
    s3cmd(&["cp", "s3://bucket/dir/small", "s3://bucket/copy"]);
    s3cmd(&["del", "s3://bucket/copy"]);
    s3cmd(&["del", "--recursive", "--force", "s3://bucket"]);
    s3cmd(&["rb", "s3://bucket"]);
}
