//! Replication between two Walruses that serve alone, as boto3 sees it.

use std::process::Command;

use crate::alone::Alone;
use crate::cloud::{checkout, errors_of, folder, has, karri, text_of, tool};

const KEY: &str = "AKIAREPLICATION";
const SECRET: &str = "0123456789abcdef0123456789abcdef01234567";
/// What `tests/clients/replication.py` says.
const SAID: &str = "\
without-versions InvalidRequest
rules-come-back True
copy small True REPLICA
backup small True REPLICA
copy large True REPLICA
backup large True REPLICA
copy parts True REPLICA
backup parts True REPLICA
marker True
deleted ReplicationConfigurationNotFoundError
";

#[test]
fn objects_are_replicated_to_a_bucket_beside_and_to_a_walrus_elsewhere() {
    if !has("objects_are_replicated_to_a_bucket_beside_and_to_a_walrus_elsewhere", &["python"]) {
        return;
    }
    let dir = folder();
    let serve = |name: &str, settings: Option<&str>| {
        let mut serve = karri();
        serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", KEY, "--secret-key", SECRET]);
        serve.arg("--store").arg(dir.path().join(name));
        if let Some(text) = settings {
            let path = dir.path().join(format!("{name}.toml"));
            std::fs::write(&path, text).expect("written");
            serve.arg("--settings").arg(path);
        }
        Alone::start(serve)
    };
    let far = serve("far", None);
    let url = far.url("ready: S3 at ").to_owned();
    let settings = format!(
        "[[remote]]\nname = \"backup\"\nurl = \"{url}\"\naccess_key = \"{KEY}\"\nsecret_key = \"{SECRET}\"\naccounts = [\"000000000000\"]\n"
    );
    let near = serve("near", Some(&settings));
    let mut client = Command::new(tool("python").expect("checked"));
    client.arg(checkout().join("tests/clients/replication.py")).args([near.url("ready: S3 at "), &url]);
    client.envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")]);
    client
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_DEFAULT_REGION", "us-east-1");
    let output = client.output().expect("python runs");
    assert!(output.status.success(), "{}{}", text_of(&output), errors_of(&output));
    assert_eq!(text_of(&output), SAID);
    near.end();
    far.end();
}
