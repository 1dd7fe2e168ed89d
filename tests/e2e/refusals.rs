//! Bad input gets its protocol's own error, or a message that says what, where, why and what to try. Nothing ends.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::cloud::{Cloud, errors_of, folder, has, karri, signal, text_of, up, wait};

/// Runs a `karri up` that must refuse; what it said.
fn refused(mut command: Command) -> String {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("karri runs");
    let pid = child.id();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    let ended = wait(Duration::from_secs(90), "a refusal", || match child.try_wait() {
        Ok(None) if std::time::Instant::now() > until => {
            signal(pid, "TERM");
            None
        }
        Ok(status) => status,
        Err(error) => panic!("waiting for karri: {error}"),
    });
    let output: Output = child.wait_with_output().expect("its output");
    assert_eq!(output.status, ended);
    assert!(!output.status.success(), "not refused: {}", text_of(&output));
    errors_of(&output)
}

#[test]
fn a_second_up_on_the_same_state_is_refused() {
    let cloud = Cloud::start();
    let said = refused(up(&cloud.state, &[]));
    assert!(said.contains("another `karri up`"), "{said}");
    assert!(said.contains(&format!("pid {}", cloud.supervisor())), "{said}");
    let (table, healthy) = cloud.status();
    assert!(healthy, "{table}");
}

#[test]
fn a_port_in_use_is_refused_with_its_flag() {
    let dir = folder();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    for flag in ["--api", "--s3", "--metrics"] {
        let said = refused(up(&dir.path().join("state"), &[flag, &addr]));
        assert!(said.contains(&addr) && said.contains(flag), "{said}");
    }
}

#[test]
fn a_store_of_another_version_is_refused_and_left_alone() {
    let dir = folder();
    let state = dir.path().join("state");
    assert!(Cloud::start_in(&state, &[]).stop());
    for role in ["walrus", "storage"] {
        let store = state.join(role).join("store");
        let good = head(&store);
        let mut newer = good.clone();
        // Both superblocks (dataplane/bulk/docs/local-store.md): version at 8, CRC32C of the sector at 12.
        for at in [0, 512 << 10] {
            let sector = &mut newer[at..at + 512];
            sector[8..16].copy_from_slice(&[99, 0, 0, 0, 0, 0, 0, 0]);
            let crc = crc32c::crc32c(sector);
            sector[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        overwrite(&store, &newer);
        let said = refused(up(&state, &[]));
        assert!(said.contains(&store.display().to_string()) && said.contains("99"), "{said}");
        assert!(head(&store) == newer, "the file was written to");
        overwrite(&store, &good);
    }
    assert!(Cloud::start_in(&state, &[]).stop());
}

/// The first bytes of a file; both copies of a superblock lie in them.
fn head(path: &std::path::Path) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; 1 << 20];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).expect("a store file");
    bytes
}

fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("a store file");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("written");
}

#[test]
fn a_slip_in_a_file_or_flag_is_named() {
    let dir = folder();
    let file = dir.path().join("walrus.toml");
    std::fs::write(&file, "[role]\nstat = \"/x\"\n").unwrap();
    let mut role = karri();
    role.args(["walrus", "--config"]).arg(&file);
    let said = refused(role);
    assert!(said.contains("walrus.toml") && said.contains("line 2") && said.contains("stat"), "{said}");

    let mut absent = karri();
    absent.args(["storage", "--config", "/nonexistent/storage.toml"]);
    let said = refused(absent);
    assert!(said.contains("/nonexistent/storage.toml"), "{said}");

    let mut account = up(&dir.path().join("state"), &["--account-id", "42"]);
    account.env("RUST_BACKTRACE", "0");
    assert!(refused(account).contains("42"), "a bad account number");

    let mut nothing = karri();
    nothing.args(["env", "--state"]).arg(dir.path().join("nowhere"));
    let said = refused(nothing);
    assert!(said.contains("karri up"), "{said}");
}

#[test]
fn requests_that_are_not_to_be_trusted_are_refused() {
    if !has("requests_that_are_not_to_be_trusted_are_refused", &["aws", "python"]) {
        return;
    }
    let cloud = Cloud::start();
    // Each line: service, what is wrong, the error code that came back.
    let output = cloud.python("untrusted.py").output().expect("python runs");
    assert!(output.status.success(), "{}{}", text_of(&output), errors_of(&output));
    let expected = "\
        ec2 wrong-secret AuthFailure\n\
        ec2 unknown-key AuthFailure\n\
        ec2 skewed-clock RequestExpired\n\
        ec2 unknown-action InvalidAction\n\
        ec2 unknown-image InvalidAMIID.NotFound\n\
        ec2 malformed-image InvalidAMIID.Malformed\n\
        ec2 unknown-volume InvalidVolume.NotFound\n\
        ec2 unknown-instance InvalidInstanceID.NotFound\n\
        s3 wrong-secret SignatureDoesNotMatch\n\
        s3 unknown-key InvalidAccessKeyId\n\
        s3 skewed-clock RequestTimeTooSkewed\n\
        s3 unknown-bucket NoSuchBucket\n";
    assert_eq!(text_of(&output), expected.replace("        ", ""));
    let (table, healthy) = cloud.status();
    assert!(healthy, "{table}");
}

#[test]
fn a_refused_image_leaves_nothing_behind() {
    if !has("a_refused_image_leaves_nothing_behind", &["aws"]) {
        return;
    }
    let cloud = Cloud::start();
    let root = cloud.state.with_extension("img");
    let add = |name: &str, fill: u8| {
        let mut disk = vec![fill; 4096];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        std::fs::write(&root, disk).expect("the disk image");
        let mut command = karri();
        command.args(["image", "add", name, "--state"]).arg(&cloud.state).arg("--root").arg(&root);
        command
    };
    let objects = || {
        let listed = cloud.aws_ok(&["s3api", "list-objects-v2", "--bucket", "karri-images"]);
        listed["Contents"].as_array().map_or(0, Vec::len)
    };
    let first = add("disk", 1).output().expect("karri runs");
    assert!(first.status.success(), "{}", errors_of(&first));
    assert_eq!(objects(), 1);
    // The same again is the same image; another under the name is refused, with the way out.
    assert_eq!(text_of(&add("disk", 1).output().expect("karri runs")), text_of(&first));
    let said = refused(add("disk", 2));
    assert!(said.contains(text_of(&first).trim()) && said.contains("deregister-image"), "{said}");
    assert_eq!(objects(), 1);
    // What the cloud refuses to register is deleted again: AWS has no names of two characters.
    let said = refused(add("ab", 3));
    assert!(said.contains("InvalidAMIName.Malformed"), "{said}");
    assert_eq!(objects(), 1);
}
