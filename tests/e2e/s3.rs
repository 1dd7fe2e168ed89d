//! Walrus with the tools that people have.

use crate::cloud::{Cloud, errors_of, folder, has, noise, same, text_of};

/// The quick start's size is 1 GiB; the same code runs at that size with KARRI_E2E_BIG=1.
fn big_bytes() -> u64 {
    if std::env::var_os("KARRI_E2E_BIG").is_some() { 1 << 30 } else { 200 << 20 }
}

#[test]
fn aws_cli_puts_and_gets_a_big_file() {
    if !has("aws_cli_puts_and_gets_a_big_file", &["aws"]) {
        return;
    }
    let cloud = Cloud::start();
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    noise(&path("big"), big_bytes());
    noise(&path("small"), 1000);
    let (big, small, back) = (path("big"), path("small"), path("back"));
    let [big_arg, small_arg, back_arg] = [&big, &small, &back].map(|p| p.to_str().expect("plain names"));

    cloud.aws_ok(&["s3", "mb", "s3://quick-start"]);
    cloud.aws_ok(&["s3", "cp", "--no-progress", big_arg, "s3://quick-start/folder/big"]);
    cloud.aws_ok(&["s3", "cp", "--no-progress", small_arg, "s3://quick-start/small"]);
    cloud.aws_ok(&["s3", "cp", "--no-progress", "s3://quick-start/folder/big", back_arg]);
    assert!(same(&big, &back));

    let range = cloud.aws_ok(&[
        "s3api",
        "get-object",
        "--bucket",
        "quick-start",
        "--key",
        "small",
        "--range",
        "bytes=10-19",
        back_arg,
    ]);
    assert_eq!(range["ContentLength"], 10);
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&small).unwrap()[10..20]);

    let list = cloud.aws_ok(&["s3api", "list-objects-v2", "--bucket", "quick-start", "--delimiter", "/"]);
    assert_eq!(list["Contents"][0]["Key"], "small", "{list}");
    assert_eq!(list["CommonPrefixes"][0]["Prefix"], "folder/", "{list}");

    let refusal = cloud.aws_refused(&["s3", "rb", "s3://quick-start"]);
    assert!(refusal.contains("BucketNotEmpty"), "{refusal}");
    cloud.aws_ok(&["s3", "rm", "--recursive", "s3://quick-start"]);
    cloud.aws_ok(&["s3", "rb", "s3://quick-start"]);
    assert!(cloud.stop(), "karri up ends well");
}

#[test]
fn s3cmd_puts_and_gets_a_big_file() {
    if !has("s3cmd_puts_and_gets_a_big_file", &["s3cmd"]) {
        return;
    }
    let cloud = Cloud::start();
    let dir = folder();
    let (big, back) = (dir.path().join("big"), dir.path().join("back"));
    noise(&big, big_bytes());
    let ok = |args: &[&str]| {
        let output = cloud.s3cmd(args);
        assert!(output.status.success(), "s3cmd {args:?}: {}{}", text_of(&output), errors_of(&output));
        text_of(&output)
    };
    let [big_arg, back_arg] = [&big, &back].map(|p| p.to_str().expect("plain names"));
    ok(&["mb", "s3://from-s3cmd"]);
    ok(&["put", big_arg, "s3://from-s3cmd/big"]);
    assert!(ok(&["ls", "s3://from-s3cmd"]).contains(&big_bytes().to_string()));
    ok(&["get", "s3://from-s3cmd/big", back_arg]);
    assert!(same(&big, &back));
    ok(&["cp", "s3://from-s3cmd/big", "s3://from-s3cmd/copy"]);
    ok(&["del", "s3://from-s3cmd/big"]);
    ok(&["get", "--force", "s3://from-s3cmd/copy", back_arg]);
    assert!(same(&big, &back));
    ok(&["del", "s3://from-s3cmd/copy"]);
    ok(&["rb", "s3://from-s3cmd"]);
}

#[test]
fn objects_outlive_a_restart_of_everything() {
    if !has("objects_outlive_a_restart_of_everything", &["aws"]) {
        return;
    }
    let dir = folder();
    let state = dir.path().join("state");
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    noise(&file, 3 << 20);
    let [file_arg, back_arg] = [&file, &back].map(|p| p.to_str().expect("plain names"));
    let cloud = Cloud::start_in(&state, &[]);
    cloud.aws_ok(&["s3", "mb", "s3://stays"]);
    cloud.aws_ok(&["s3", "cp", "--no-progress", file_arg, "s3://stays/file"]);
    let keys = cloud.var("AWS_ACCESS_KEY_ID").to_owned();
    assert!(cloud.stop(), "karri up ends well");

    let cloud = Cloud::start_in(&state, &[]);
    assert_eq!(cloud.var("AWS_ACCESS_KEY_ID"), keys);
    cloud.aws_ok(&["s3", "cp", "--no-progress", "s3://stays/file", back_arg]);
    assert!(same(&file, &back));
}
