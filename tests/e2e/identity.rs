//! IAM and STS with boto3: what they say, S3 and EC2 obey; in a cloud and beside a Walrus that serves alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::alone::Alone;
use crate::cloud::{Cloud, checkout, errors_of, folder, has, karri, text_of, tool, wait};

/// What `tests/clients/identity.py` says.
const SAID: &str = "\
s3 before-policy AccessDenied
ec2 before-policy UnauthorizedOperation
iam before-policy AccessDenied
s3 policy-known-within-a-second True
s3 by-group hers
s3 other-bucket AccessDenied
s3 session-reads hers
s3 session-writes AccessDenied
ec2 session-describes fine
ec2 session-creates UnauthorizedOperation
sts session-is True
s3 session-with-another-token InvalidToken
sts session-with-no-token InvalidClientTokenId
s3 narrowed-session-lists fine
s3 narrowed-session-reads AccessDenied
iam stranger-assumes AccessDenied
s3 own-session-reads fine
s3 session-of-a-deleted-role InvalidAccessKeyId
s3 key-off InvalidAccessKeyId
s3 key-deleted InvalidAccessKeyId
sts key-deleted InvalidClientTokenId
ec2 key-deleted AuthFailure
";

fn obeyed(mut client: Command, expected: &str) {
    let output = client.output().expect("python runs");
    assert!(output.status.success(), "{}{}", text_of(&output), errors_of(&output));
    assert_eq!(text_of(&output), expected);
}

#[test]
fn a_cloud_obeys_what_iam_says() {
    if !has("a_cloud_obeys_what_iam_says", &["aws", "python"]) {
        return;
    }
    let cloud = Cloud::start();
    obeyed(cloud.python("identity.py"), SAID);
    assert!(cloud.aws_ok(&["iam", "get-user", "--user-name", "ann"]).to_string().contains("user/team/ann"));
    assert!(cloud.aws_refused(&["iam", "delete-user", "--user-name", "ann"]).contains("DeleteConflict"));
    let audit = std::fs::read_to_string(cloud.state.join("cloud/audit.log")).expect("the audit log");
    let has = |words: &[&str]| audit.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["\"CreateAccessKey\"", ":user/admin", ":user/team/ann", "\"allow\"", "\"error\":null"]), "{audit}");
    assert!(has(&["\"DescribeInstances\"", ":user/team/ann", "\"deny\"", "UnauthorizedOperation"]), "{audit}");
    assert!(has(&["\"DescribeVolumes\"", ":assumed-role/reader/me"]), "{audit}");
    assert!(!audit.contains(cloud.var("AWS_SECRET_ACCESS_KEY")), "no secrets");
    cloud.kill_role("cloud");
    assert!(cloud.aws_ok(&["iam", "list-users"]).to_string().contains("ann"), "it outlives its role");
    no_secret_in(&cloud.state, cloud.var("AWS_SECRET_ACCESS_KEY"));
}

/// The records hold no secret in plain text; the credentials file, which is the user's, does.
fn no_secret_in(state: &Path, secret: &str) {
    for entry in std::fs::read_dir(state.join("cloud/meta")).expect("the records").flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{} has a secret", entry.path().display());
    }
}

#[test]
fn a_lone_walrus_obeys_what_iam_says() {
    if !has("a_lone_walrus_obeys_what_iam_says", &["python"]) {
        return;
    }
    let dir = folder();
    let users = dir.path().join("users.toml");
    let secret = "a-secret-of-the-users-file-0123456789";
    let user = |name: &str, key: &str, more: &str| {
        format!(
            "[[user]]\naccount = \"123456789012\"\nname = \"{name}\"\naccess_key = \"{key}\"\nsecret_key = \"{secret}\"\n{more}\n"
        )
    };
    let text = user("boss", "AKIABOSS", "") + &user("temp", "AKIATEMP", "administrator = false");
    std::fs::write(&users, text).expect("the users file");
    let start = || {
        let mut serve = karri();
        serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--iam", "127.0.0.1:0", "--users"]).arg(&users);
        serve.arg("--store").arg(dir.path().join("s3"));
        Alone::start(serve)
    };
    let client = |alone: &Alone, key: &str| {
        let mut client = Command::new(tool("python").expect("checked"));
        client
            .envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")])
            .envs([("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_DEFAULT_REGION", "us-east-1")])
            .envs([("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)])
            .env("AWS_ENDPOINT_URL", alone.url("IAM and STS at "))
            .env("AWS_ENDPOINT_URL_S3", alone.url("ready: S3 at "));
        client
    };
    let alone = start();
    let mut shown = client(&alone, "AKIABOSS");
    shown.arg(checkout().join("tests/clients/identity.py")).arg("s3");
    let expected: String = SAID.lines().filter(|l| !l.starts_with("ec2")).map(|l| format!("{l}\n")).collect();
    obeyed(shown, &expected);

    // A user of the file that is no administrator waits for a policy.
    let lists = "import boto3, sys\ntry:\n    boto3.client('s3').list_buckets()\n    print('fine')\nexcept Exception as e:\n    print(e.response['Error']['Code'])";
    let temp = |alone: &Alone| {
        let mut asks = client(alone, "AKIATEMP");
        asks.args(["-c", lists]);
        asks
    };
    obeyed(temp(&alone), "AccessDenied\n");
    let mut grants = client(&alone, "AKIABOSS");
    grants.args(["-c", "import boto3\nboto3.client('iam').attach_user_policy(UserName='temp', PolicyArn='arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess')"]);
    obeyed(grants, "");
    obeyed(temp(&alone), "fine\n");
    alone.end();
    // What IAM was told is kept.
    let alone = start();
    obeyed(temp(&alone), "fine\n");
    alone.end();

    // Without IAM nobody could ever give that user a permission.
    let mut serve = karri();
    serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--users"]).arg(&users);
    serve.arg("--store").arg(dir.path().join("s3"));
    let mut child = serve.stderr(std::process::Stdio::piped()).spawn().expect("karri runs");
    let status = wait(Duration::from_secs(60), "its refusal", || child.try_wait().expect("a child"));
    let said = errors_of(&child.wait_with_output().expect("its words"));
    assert!(!status.success() && said.contains("administrator = false") && said.contains("--iam"), "{said}");
    assert!(!said.contains(secret), "{said}");
}
