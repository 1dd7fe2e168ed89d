//! Tools that keep files in S3, each driven by a script of `tests/clients` against a Walrus alone.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use crate::alone::Alone;
use crate::cloud::{checkout, errors_of, folder, has, karri, text_of, tool};

/// What a script ends with where the machine cannot do it.
const CANNOT: i32 = 77;
/// How long a script may take on a busy machine, in seconds; most take a few.
const PATIENCE: &str = "600";
/// The friend's: a user of another account.
const FRIEND: [(&str, &str); 2] =
    [("FRIEND_ACCESS_KEY_ID", "AKIAFRIEND"), ("FRIEND_SECRET_ACCESS_KEY", "89abcdef0123456789abcdef0123456789abcdef")];

/// What the operator has set: the friend; where events may go, a folder `jobs` and a webhook; access logs at once.
fn settings(dir: &Path, hook: &TcpListener, serve: &mut Command) {
    let [(_, id), (_, secret)] = FRIEND;
    let user = format!(
        "[[user]]\naccount = \"000000000001\"\nname = \"friend\"\naccess_key = \"{id}\"\nsecret_key = \"{secret}\"\n"
    );
    let jobs = dir.join("jobs");
    let hook = hook.local_addr().expect("it listens");
    let settings = format!(
        "log_seconds = 1\n[[queue]]\nname = \"jobs\"\nfolder = {jobs:?}\n\
         [[webhook]]\nname = \"hook\"\nurl = \"http://{hook}/events\"\ntoken = \"hush\"\n"
    );
    std::fs::create_dir(jobs).expect("a new folder");
    for (flag, name, text) in [("--users", "users.toml", user), ("--settings", "settings.toml", settings)] {
        let file = dir.join(name);
        std::fs::write(&file, text).expect("written");
        serve.arg(flag).arg(file);
    }
    // What a day is to rules of lifecycles and inventories.
    serve.env("KARRI_LIFECYCLE_DAY_SECONDS", "5");
}

/// Runs a script in a folder of its own, with a Walrus of its own that has a bucket of the script's name where asked. The
/// script's standard input is the socket that the webhook leads to.
fn drive(test: &str, script: &str, tools: &[&str], bucket: Option<&str>) {
    if !has(test, tools) {
        return;
    }
    let dir = folder();
    let (id, secret) = ("AKIATOOLS", "0123456789abcdef0123456789abcdef01234567");
    let mut serve = karri();
    serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", id, "--secret-key", secret]);
    serve.arg("--store").arg(dir.path().join("s3"));
    let hook = TcpListener::bind("127.0.0.1:0").expect("a free port");
    settings(dir.path(), &hook, &mut serve);
    let walrus = Alone::start(serve);
    let url = walrus.url("ready: S3 at ");
    // The scripts call the same aws cli as these tests.
    let mut path = checkout().join("target/venv/bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let client = |program: &Path| {
        let mut command = Command::new(program);
        command
            .envs([("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_DEFAULT_REGION", "us-east-1")])
            .envs([("S3_URL", url), ("AWS_ENDPOINT_URL", url), ("AWS_EC2_METADATA_DISABLED", "true")])
            .envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")])
            .envs([("AWS_PAGER", ""), ("AWS_MAX_ATTEMPTS", "2")])
            .envs(FRIEND)
            .env("PATH", &path)
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
    let mut bounded = client(Path::new("timeout"));
    bounded.args(["-k", "10", PATIENCE]).arg(runner).arg(file).stdin(OwnedFd::from(hook));
    let output = bounded.output().expect("the script runs");
    if output.status.code() == Some(CANNOT) {
        println!("SKIPPED {test}: {}", text_of(&output).lines().last().unwrap_or("it cannot run here"));
        return;
    }
    assert!(output.status.success(), "{script}: {}\n{}{}", output.status, text_of(&output), errors_of(&output));
    walrus.end();
}

/// Runs a Python program that needs this module.
fn drive_python(test: &str, program: &str, module: &str) {
    let import = format!("import {module}");
    if let Some(python) = tool("python")
        && !Command::new(python).args(["-c", &import]).output().is_ok_and(|o| o.status.success())
    {
        println!("SKIPPED {test}: this python has no module {module}");
        return;
    }
    drive(test, program, &["python"], None);
}

#[test]
fn aws_cli_keeps_files_and_shows_a_website() {
    drive("aws_cli_keeps_files_and_shows_a_website", "aws_files.sh", &["aws", "curl", "jq"], None);
}

#[test]
fn aws_cli_keeps_versions_locks_and_checksums() {
    drive("aws_cli_keeps_versions_locks_and_checksums", "aws_archive.sh", &["aws", "jq", "openssl"], None);
}

#[test]
fn aws_cli_shares_a_bucket() {
    drive("aws_cli_shares_a_bucket", "aws_sharing.sh", &["aws", "curl", "jq"], None);
}

#[test]
fn boto3_moves_data_by_parts_forms_and_urls() {
    drive_python("boto3_moves_data_by_parts_forms_and_urls", "transfers.py", "boto3");
}

#[test]
fn boto3_is_told_of_events_logs_and_usage() {
    drive_python("boto3_is_told_of_events_logs_and_usage", "events.py", "boto3");
}

#[test]
fn boto3_reads_settings_as_it_put_them() {
    drive_python("boto3_reads_settings_as_it_put_them", "settings.py", "boto3");
}

#[test]
fn boto3_gets_the_error_that_fits() {
    drive_python("boto3_gets_the_error_that_fits", "bad_requests.py", "boto3");
}

#[test]
fn s3cmd_keeps_and_shares_a_folder() {
    drive("s3cmd_keeps_and_shares_a_folder", "s3cmd.sh", &["s3cmd", "curl"], None);
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
    drive_python("minio_py_works", "minio_client.py", "minio");
}
