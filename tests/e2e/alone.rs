//! One engine without a cloud: `karri storage export` and `karri walrus serve` start, say so, and end in order.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cloud::{folder, karri, signal, wait};

/// Starts it, waits for its word, tells it to end; it must end well.
fn starts_and_ends(mut command: Command, name: &str) {
    let mut child = Ended(command.stdout(Stdio::piped()).spawn().expect("karri runs"));
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("its word");
    assert!(line.starts_with("ready"), "{line}");
    signal(child.0.id(), name);
    let status = wait(Duration::from_secs(60), "its end", || child.0.try_wait().expect("a child"));
    assert!(status.success(), "{status}");
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_volume_is_exported_and_put_away() {
    let dir = folder();
    for name in ["TERM", "INT"] {
        let mut export = karri();
        export.args(["storage", "export", "--volume", "disk:64M", "--store"]);
        export.arg(format!("{}:1G", dir.path().join("store").display()));
        export.arg("--vhost-user").arg(dir.path().join("disk.sock"));
        starts_and_ends(export, name);
    }
}

#[test]
fn walrus_serves_alone_and_ends() {
    let dir = folder();
    for name in ["TERM", "INT"] {
        let mut serve = karri();
        serve.args(["walrus", "serve", "--listen", "127.0.0.1:0", "--access-key", "AKIAALONE"]);
        serve.args(["--secret-key", "0123456789abcdef0123456789abcdef01234567", "--store"]).arg(dir.path().join("s3"));
        starts_and_ends(serve, name);
    }
}
