//! The listener, against real clients and hostile ones.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use karri_base::clock::SystemClock;
use karri_base::proto;
use karri_base::proto::identity_server::Identity as _;
use karri_base::role::Running as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::tests::World;
use crate::identity::told::IdentityService;

async fn world() -> World {
    World::at(Arc::new(SystemClock), "127.0.0.1:0".parse().unwrap()).await
}

fn client(program: &str, addr: SocketAddr) -> Command {
    let ours = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin").join(program);
    let mut command = if ours.exists() { Command::new(ours) } else { Command::new(program) };
    command
        .env("AWS_ENDPOINT_URL", format!("http://{addr}"))
        .env("AWS_ACCESS_KEY_ID", "AKIAADMINADMINADMIN1")
        .env("AWS_SECRET_ACCESS_KEY", "adminsecretadminsecretadminsecretadminse")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_MAX_ATTEMPTS", "1")
        .env("AWS_PAGER", "")
        .env("no_proxy", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a client to its end; `None` when it is not installed.
async fn output(mut command: Command) -> Option<(bool, String)> {
    let run = tokio::time::timeout(Duration::from_secs(120), command.output());
    let out = run.await.expect("the client hangs").ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    Some((out.status.success(), text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_parses_every_answer() {
    boto3("boto3_parses_every_answer", "ec2_boto3.py", 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_makes_identities_and_ec2_obeys() {
    boto3("boto3_makes_identities_and_ec2_obeys", "iam_boto3.py", 3).await;
}

/// Runs a script of `tests/clients` with so many tests.
async fn boto3(test: &str, script: &str, tests: usize) {
    let w = world().await;
    let addr = w.role.api_addr();
    let mut probe = client("python3", addr);
    probe.args(["-c", "import boto3"]);
    if !output(probe).await.is_some_and(|(found, _)| found) {
        println!("SKIPPED {test}: python3 with boto3 is not installed");
        return;
    }
    let mut run = client("python3", addr);
    run.arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script));
    let (ok, text) = output(run).await.unwrap();
    assert!(ok, "{text}");
    assert_eq!(text.matches("ok test_").count(), tests, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_cli_works() {
    let w = world().await;
    let aws = |args: &'static [&'static str]| {
        let mut command = client("aws", w.role.api_addr());
        command.args(args);
        output(command)
    };
    if !aws(&["--version"]).await.is_some_and(|(found, _)| found) {
        println!("SKIPPED aws_cli_works: the aws cli is not installed");
        return;
    }
    let (ok, text) = aws(&["sts", "get-caller-identity", "--query", "Account", "--output", "text"]).await.unwrap();
    assert!(ok && text.trim() == "123456789012", "{text}");
    let register = ["ec2", "register-image", "--name", "debian", "--image-location", "mine/root", "--output", "text"];
    let (ok, image) = aws(Box::leak(Box::new(register))).await.unwrap();
    assert!(ok && image.starts_with("ami-"), "{image}");
    let image: &'static str = Box::leak(image.trim().to_owned().into_boxed_str());
    let query = "Instances[0].InstanceId";
    let run = ["ec2", "run-instances", "--image-id", image, "--query", query, "--output", "text"];
    let (ok, id) = aws(Box::leak(Box::new(run))).await.unwrap();
    assert!(ok && id.starts_with("i-"), "{id}");
    w.until_instance(id.trim(), "running").await;
    let (ok, text) = aws(&["ec2", "describe-instances", "--instance-ids", "i-00000000"]).await.unwrap();
    assert!(!ok && text.contains("InvalidInstanceID.NotFound"), "{text}");
}

/// Sends bytes, answers what comes back until the server closes.
async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    // The server may answer and close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_an_error_and_harm_nobody() {
    let w = world().await;
    let addr = w.role.api_addr();
    let head = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    let long = format!("/?{}", "A".repeat(100_000));
    let deep = format!("/?{}", "a.".repeat(20_000));
    for (request, wanted) in [
        (head("GET /", ""), "MissingAuthenticationToken"),
        (head("DELETE /", ""), "UnsupportedProtocol"),
        (head("GET /?Action=%FF", ""), "MalformedQueryString"),
        (head("POST /", "Content-Length: 99999999\r\n"), "RequestEntityTooLarge"),
        (head("POST /", "Content-Length: 2\r\nContent-Type: text/xml\r\n") + "ab", "UnsupportedProtocol"),
        (head("GET /?Action=DescribeRegions", "Authorization: AWS4-HMAC-SHA256 junk\r\n"), "IncompleteSignature"),
        (head("GET /?Action=DescribeRegions", "Authorization: \u{7f}\r\n"), "400"),
        (head("GET /?X-Amz-Algorithm=AWS4-HMAC-SHA256", ""), "<Code>"),
        (head(&format!("GET {long}"), ""), "HTTP/1.1 4"),
        (head(&format!("GET {deep}"), ""), "HTTP/1.1 4"),
        ("\0\0\0\0\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), ""),
    ] {
        let answer = raw(addr, request.as_bytes()).await;
        assert!(answer.contains(wanted), "{:.80}: {answer}", request);
    }
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("{chunked}200000\r\n{}", "a".repeat(0x200000));
    assert!(raw(addr, body.as_bytes()).await.contains("RequestEntityTooLarge"));
    assert!(raw(addr, head("GET /", "").as_bytes()).await.contains("MissingAuthenticationToken"), "it goes on");
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_the_key_stream() {
    use futures_util::StreamExt as _;
    let w = world().await;
    let cloud = w.role.cloud().clone();
    let stop = tokio::sync::watch::Sender::new(false);
    let service = IdentityService::new(cloud.directory.clone(), stop.subscribe());
    let mut keys = service.watch_keys(tonic::Request::new(proto::WatchKeysRequest {})).await.unwrap().into_inner();
    let first = keys.next().await.unwrap().unwrap();
    let arns: Vec<&str> = first.keys.iter().map(|k| k.arn.as_str()).collect();
    assert_eq!(arns, ["arn:aws:iam::123456789012:user/admin", "arn:aws:iam::123456789012:role/karri-system"]);
    cloud
        .directory
        .change::<_, crate::identity::state::StateError>(|state| {
            let key = state.keys.get_mut("AKIAADMINADMINADMIN1").unwrap();
            std::sync::Arc::make_mut(key).active = false;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(keys.next().await.unwrap().unwrap().keys.len(), 1);
    stop.send_replace(true);
    assert!(keys.next().await.is_none());

    let idle = tokio::net::TcpStream::connect(w.role.api_addr()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), w.role.shutdown()).await.expect("an idle connection holds it");
    drop(idle);
}
