//! One role process: started, waited for, started again when it dies, stopped when told.
//!
//! ```text
//! Starting --ready--> Running --exit--> (back-off) --> Starting
//!     |  exit before it was ever ready: `karri up` fails
//!     '--stop--> SIGTERM, after a deadline SIGKILL --> ended
//! ```

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{error, info, warn};

use super::metrics::Counters;
use crate::ask::role_status;
use crate::chassis::{SHUTDOWN_DEADLINE, SUPERVISED};
use crate::role::Role;

/// How long a role may take to become healthy at first start.
const READY_DEADLINE: Duration = Duration::from_secs(180);
/// Back-off between restarts.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(10);
/// A role that ran so long begins again with the shortest pause.
const STEADY: Duration = Duration::from_secs(30);

/// A supervised role.
pub struct Supervised {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Starts the role and keeps it running. The receiver tells when it is first ready, or why it never was.
    pub fn start(
        role: Role,
        config: PathBuf,
        channel: Channel,
        counters: Counters,
    ) -> Result<(Self, oneshot::Receiver<Result<()>>)> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let (ready, first) = oneshot::channel();
        let (stop, stopped) = watch::channel(false);
        let keeper = Keeper { role, program, config, channel, counters, stopped };
        Ok((Self { stop, task: tokio::spawn(keeper.keep(ready)) }, first))
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

struct Keeper {
    role: Role,
    program: PathBuf,
    config: PathBuf,
    channel: Channel,
    counters: Counters,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(mut self, ready: oneshot::Sender<Result<()>>) {
        let mut ready = Some(ready);
        let mut pause = *PAUSE.start();
        loop {
            let began = Instant::now();
            let mut child = match self.spawn() {
                Ok(child) => child,
                Err(failure) => {
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(Err(failure));
                        return;
                    }
                    error!(role = self.role.name(), error = %format!("{failure:#}"), "cannot be started");
                    if self.sleep(pause).await {
                        return;
                    }
                    pause = (pause * 2).min(*PAUSE.end());
                    continue;
                }
            };
            // Waiting for a child closes its standard input, which here says that the supervisor is gone: hold it.
            let _lifeline = child.stdin.take();
            let mut stopped = self.stopped.clone();
            let ended = tokio::select! {
                _ = async { drop(stopped.wait_for(|stop| *stop).await) } => None,
                status = child.wait() => Some(status),
                never = self.tell_ready(&mut ready, began) => match never {},
            };
            let Some(ended) = ended else { return self.end(child).await };
            let how = describe(ended);
            self.counters.died(self.role);
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(anyhow!("{} did not start: {how}; its own message is above", self.role)));
                return;
            }
            if began.elapsed() > STEADY {
                pause = *PAUSE.start();
            }
            warn!(
                role = self.role.name(),
                error = how,
                pause_ms = pause.as_millis() as u64,
                "ended; starting it again"
            );
            if self.sleep(pause).await {
                return;
            }
            pause = (pause * 2).min(*PAUSE.end());
        }
    }

    /// Waits out a pause; true when told to stop meanwhile.
    async fn sleep(&mut self, pause: Duration) -> bool {
        tokio::time::timeout(pause, self.stopped.wait_for(|stop| *stop)).await.is_ok()
    }

    fn spawn(&self) -> Result<Child> {
        let child = Command::new(&self.program)
            .arg(self.role.name())
            .arg("--config")
            .arg(&self.config)
            .env(SUPERVISED, "1")
            // The pipe closes when this process ends, however it does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Control-C at the terminal is for the supervisor, who knows the order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {} {}", self.program.display(), self.role))?;
        info!(role = self.role.name(), pid = child.id(), "process started");
        Ok(child)
    }

    /// Waits until the role says that it is healthy and tells so; then waits for ever, for the process's end to win.
    async fn tell_ready(&self, ready: &mut Option<oneshot::Sender<Result<()>>>, began: Instant) -> Infallible {
        let mut why = String::from("no answer yet");
        let again = ready.is_none();
        while began.elapsed() < READY_DEADLINE {
            match role_status(self.role, self.channel.clone(), Duration::from_secs(2)).await {
                Ok(reply) if reply.healthy => {
                    match ready.take() {
                        Some(ready) => drop(ready.send(Ok(()))),
                        None => info!(role = self.role.name(), ms = began.elapsed().as_millis() as u64, "is back"),
                    }
                    return std::future::pending().await;
                }
                Ok(reply) => why = reply.message,
                Err(failure) => why = format!("{failure:#}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match ready.take() {
            Some(ready) => {
                let secs = READY_DEADLINE.as_secs();
                drop(ready.send(Err(anyhow!("{} was not healthy after {secs} s: {why}", self.role))));
            }
            None if again => error!(role = self.role.name(), error = why, "is still not healthy"),
            None => {}
        }
        std::future::pending().await
    }

    async fn end(&self, mut child: Child) {
        let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) else { return };
        let _ = kill_process(pid, Signal::TERM);
        let patience = SHUTDOWN_DEADLINE + Duration::from_secs(5);
        match tokio::time::timeout(patience, child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(status) => warn!(role = self.role.name(), error = describe(status), "did not stop cleanly"),
            Err(_) => {
                error!(role = self.role.name(), seconds = patience.as_secs(), "did not stop in time; killed");
                let _ = child.kill().await;
            }
        }
    }
}

fn describe(ended: std::io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => format!("waiting for it failed: {error}"),
    }
}
