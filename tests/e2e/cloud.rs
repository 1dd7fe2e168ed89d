//! A `karri up` of a test's own, and the clients that talk to it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long `karri up` may take on a busy machine.
const READY: Duration = Duration::from_secs(120);

/// A running cloud. Stopped, and its folder removed, at the end.
pub struct Cloud {
    child: Option<Child>,
    /// Its state folder.
    pub state: PathBuf,
    /// What `karri env` said.
    pub env: Vec<(String, String)>,
    _dir: Option<TempDir>,
    _alone: MutexGuard<'static, ()>,
}

/// One cloud at a time: they pick free ports, and two that start together may pick the same.
static ALONE: Mutex<()> = Mutex::new(());

/// The program under test.
pub fn karri() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karri"));
    command.env_remove("KARRI_STATE").env("KARRI_LOG", "warn");
    command
}

/// A folder with a short name, on the same file system as other temporary files.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("karri-").tempdir().expect("a temporary folder")
}

/// `karri up` on a state folder, with every port picked and small stores.
pub fn up(state: &Path, flags: &[&str]) -> Command {
    let settings = state.with_extension("up.toml");
    std::fs::write(&settings, "[walrus]\nsize = \"8G\"\n[storage]\nsize = \"8G\"\n").expect("the settings file");
    let mut command = karri();
    command.args(["up", "--state"]).arg(state).arg("--config").arg(settings);
    for listener in ["--api", "--s3", "--console", "--iscsi", "--metrics"] {
        if !flags.contains(&listener) {
            command.args([listener, "127.0.0.1:0"]);
        }
    }
    command.args(flags);
    command
}

impl Cloud {
    /// Starts one in a folder of its own.
    pub fn start() -> Self {
        let dir = folder();
        let mut cloud = Self::start_in(&dir.path().join("state"), &[]);
        cloud._dir = Some(dir);
        cloud
    }

    /// Starts one on a given state folder, and waits until it is ready.
    pub fn start_in(state: &Path, flags: &[&str]) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = up(state, flags).stdout(Stdio::piped()).spawn().expect("karri up starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if line == "ready" {
                    let _ = ready.send(());
                }
            }
        });
        // The sender is gone when the program has ended.
        if is_ready.recv_timeout(READY).is_err() {
            let _ = child.kill();
            panic!("karri up on {} was not ready in {READY:?} or ended; see its output above", state.display());
        }
        let mut cloud =
            Self { child: Some(child), state: state.to_owned(), env: Vec::new(), _dir: None, _alone: alone };
        cloud.env = cloud.read_env();
        cloud
    }

    fn read_env(&self) -> Vec<(String, String)> {
        let output = karri().args(["env", "--state"]).arg(&self.state).output().expect("karri env runs");
        let text = text_of(&output);
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (name, value) =
                    line.strip_prefix("export ").and_then(|l| l.split_once('=')).expect("an export line");
                (name.to_owned(), value.trim_matches('\'').to_owned())
            })
            .collect()
    }

    /// A variable of `karri env`.
    pub fn var(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(have, _)| have == name);
        &found.unwrap_or_else(|| panic!("karri env says no {name}")).1
    }

    /// Runs a client with this cloud's environment.
    pub fn client(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // Nothing of the machine's own AWS set-up, one try a call so that errors are seen.
            .envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")])
            .envs([("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_PAGER", ""), ("AWS_MAX_ATTEMPTS", "2")])
            .stdin(Stdio::null());
        command
    }

    /// aws cli.
    pub fn aws(&self, args: &[&str]) -> Output {
        self.client(tool("aws").expect("checked by the test")).args(args).output().expect("aws runs")
    }

    /// aws cli, which must succeed; its JSON answer, if there is one.
    pub fn aws_ok(&self, args: &[&str]) -> Value {
        let output = self.aws(args);
        assert!(output.status.success(), "aws {args:?}: {}{}", text_of(&output), errors_of(&output));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// aws cli, which must fail; what it said.
    pub fn aws_refused(&self, args: &[&str]) -> String {
        let output = self.aws(args);
        assert!(!output.status.success(), "aws {args:?} was not refused: {}", text_of(&output));
        errors_of(&output)
    }

    /// s3cmd.
    pub fn s3cmd(&self, args: &[&str]) -> Output {
        let host = self.var("S3_URL").trim_start_matches("http://").to_owned();
        self.client(tool("s3cmd").expect("checked by the test"))
            .args(["--config=/dev/null", "--no-ssl", "--no-progress", "--region=us-east-1"])
            .arg(format!("--access_key={}", self.var("AWS_ACCESS_KEY_ID")))
            .arg(format!("--secret_key={}", self.var("AWS_SECRET_ACCESS_KEY")))
            .arg(format!("--host={host}"))
            .arg(format!("--host-bucket={host}"))
            .args(args)
            .output()
            .expect("s3cmd runs")
    }

    /// A Python program of `tests/clients`, with boto3.
    pub fn python(&self, program: &str) -> Command {
        let file = checkout().join("tests/clients").join(program);
        let mut command = self.client(tool("python").expect("checked by the test"));
        command.arg(file);
        command
    }

    /// `karri status`: its table, and whether all are healthy.
    pub fn status(&self) -> (String, bool) {
        let output = karri().args(["status", "--state"]).arg(&self.state).output().expect("karri status runs");
        (text_of(&output), output.status.success())
    }

    /// A role's process id, from `karri status`.
    pub fn pid(&self, role: &str) -> Option<u32> {
        let (table, _) = self.status();
        table.lines().find(|line| line.starts_with(role))?.split_whitespace().nth(3)?.parse().ok()
    }

    /// Kills a role with -9 and waits until its successor is healthy.
    pub fn kill_role(&self, role: &str) {
        let before = self.pid(role).unwrap_or_else(|| panic!("{role} runs"));
        signal(before, "KILL");
        wait(Duration::from_secs(60), &format!("{role} to be back"), || {
            let (_, healthy) = self.status();
            (healthy && self.pid(role).is_some_and(|now| now != before)).then_some(())
        });
    }

    /// The supervisor's process id.
    pub fn supervisor(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Stops it as a user would, and says whether it ended well.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        signal(child.id(), "TERM");
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < until => pause(),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return false;
                }
            }
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends a signal by its name to one process.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

/// This checkout.
pub fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A client program: of `make setup`'s venv, else of the PATH.
pub fn tool(name: &str) -> Option<PathBuf> {
    let ours = checkout().join("target/venv/bin").join(name);
    if ours.exists() {
        return Some(ours);
    }
    let name = if name == "python" { "python3" } else { name };
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists())
}

/// False, with a word by name, where the machine lacks a tool that the test drives.
pub fn has(test: &str, tools: &[&str]) -> bool {
    let missing = tools.iter().filter(|name| tool(name).is_none()).collect::<Vec<_>>();
    if !missing.is_empty() {
        println!("SKIPPED {test}: this machine has no {missing:?}");
    }
    missing.is_empty()
}

/// Standard output as text.
pub fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn errors_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asks until there is an answer; fails with `what` after `patience`.
pub fn wait<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited {patience:?} for {what} in vain");
        pause();
    }
}

#[allow(clippy::disallowed_methods, reason = "another process is asked again: there is no event to wait on")]
fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}

/// `bytes` of reproducible noise in a new file.
pub fn noise(path: &Path, bytes: u64) {
    let mut file = std::fs::File::create(path).expect("a new file");
    let mut source = Noise(bytes ^ 0x9e37_79b9_7f4a_7c15).take(bytes);
    std::io::copy(&mut source, &mut file).expect("room for the file");
}

/// An xorshift generator as a reader.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        for chunk in buf.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        Ok(buf.len())
    }
}

/// True when two files have the same bytes.
pub fn same(a: &Path, b: &Path) -> bool {
    Command::new("cmp").arg(a).arg(b).status().expect("cmp runs").success()
}
