//! IAM and STS with boto3: what they say, S3 and EC2 obey; in a cloud and beside a Walrus that serves alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::alone::Alone;
use crate::cloud::{Cloud, checkout, errors_of, folder, has, karri, signal, text_of, tool, wait};

/// What `tests/clients/identity.py` says.
const SAID: &str = "\
s3 before-policy AccessDenied
ec2 before-policy UnauthorizedOperation
iam before-policy AccessDenied
s3 every-policy-known-soon True
s3 a-policy-known-within-a-second True
s3 by-group hers
s3 other-bucket AccessDenied
iam paginator-of-none 0
iam no-password-policy NoSuchEntity
iam poor-password PasswordPolicyViolation
iam same-password PasswordPolicyViolation
iam own-password fine
iam password-change-not-let AccessDenied
iam key-last-used ann iam
iam report COMPLETE
iam report-lines ['user', '<root_account>', 'ann']
iam details [['owners']]
validate good []
validate unwise ['SECURITY_WARNING:PASS_ROLE_WITH_STAR_IN_RESOURCE', 'SUGGESTION:REDUNDANT_ACTION']
validate wrong ['ERROR:INVALID_ACTION'] ['ERROR:JSON_SYNTAX_ERROR']
validate wrong-kind UnsupportedOperation
validate not-allowed AccessDeniedException
simulate matched [('PolicyInputList.1', 1), ('PolicyInputList.1', 1)]
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
    eprint!("{}", errors_of(&output));
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
    a_walrus_starts_without_its_cloud(&cloud);
    cloud.kill_role("cloud");
    assert!(cloud.aws_ok(&["iam", "list-users"]).to_string().contains("ann"), "it outlives its role");
    no_secret_in(&cloud.state, cloud.var("AWS_SECRET_ACCESS_KEY"));
}

/// A process that answers nobody until this is dropped.
struct Hung(u32);

impl Hung {
    fn new(pid: u32) -> Self {
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

/// While the control role answers nobody, a Walrus that dies comes back with the identities that it had.
fn a_walrus_starts_without_its_cloud(cloud: &Cloud) {
    let made = cloud.aws_ok(&["iam", "create-access-key", "--user-name", "ann"]);
    let word = |name: &str| made["AccessKey"][name].as_str().expect("a word").to_owned();
    let (id, secret) = (word("AccessKeyId"), word("SecretAccessKey"));
    let ann = |bucket: &str| {
        let mut reads = cloud.client(tool("aws").expect("checked"));
        reads.envs([("AWS_ACCESS_KEY_ID", &id), ("AWS_SECRET_ACCESS_KEY", &secret)]);
        let output = reads.args(["s3api", "head-bucket", "--bucket", bucket]).output().expect("aws runs");
        if output.status.success() { "fine".to_owned() } else { errors_of(&output) }
    };
    cloud.aws_ok(&["s3api", "create-bucket", "--bucket", "bobs"]);
    let patience = Duration::from_secs(60);
    wait(patience, "ann's key to count", || (ann("anns") == "fine").then_some(()));
    let (control, walrus) = (cloud.pid("cloud").expect("it runs"), cloud.pid("walrus").expect("it runs"));
    let hung = Hung::new(control);
    signal(walrus, "KILL");
    wait(patience, "Walrus to know ann without its cloud", || (ann("anns") == "fine").then_some(()));
    assert_ne!(cloud.pid("walrus"), Some(walrus), "it is another one");
    assert!(ann("bobs").contains("403"), "her policies are known, too: {}", ann("bobs"));
    drop(hung);
    // News count again. Its connection to the cloud may have been given up meanwhile.
    cloud.aws_ok(&["iam", "delete-access-key", "--user-name", "ann", "--access-key-id", &id]);
    wait(patience, "the end of ann's key", || (ann("anns") != "fine").then_some(()));
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
