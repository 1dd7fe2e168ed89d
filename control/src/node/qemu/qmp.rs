//! A small client of QEMU's Machine Protocol (QMP): line-delimited JSON over a UNIX socket.
//!
//! It promises that whatever QEMU sends (a guest that took QEMU over included) costs bounded memory: lines are bounded,
//! events are folded into two watches instead of being queued, calls have a deadline. It leaves reconnecting and the
//! meaning of commands to its user.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

/// Longest line that is taken from QEMU, in bytes; a console drain is the longest that karri asks for (88 KiB).
const LINE_BYTES_MAX: usize = 1 << 20;
/// Calls that wait for QEMU at a time; the next one waits for room.
const CALLS_MAX: usize = 32;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused the command.
    #[error("{class}: {desc}")]
    Refused {
        /// QEMU's error class, such as `DeviceNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The connection ended, or was never a QMP one.
    #[error("the QMP connection ended{}{}", if .why.is_empty() { "" } else { ": " }, .why)]
    Closed {
        /// What is known about it.
        why: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer {command} in {patience:?}")]
    TimedOut {
        /// The command.
        command: String,
        /// How long was waited.
        patience: Duration,
    },
}

impl QmpError {
    fn closed(why: impl ToString) -> Self {
        Self::Closed { why: why.to_string() }
    }
    /// True where QEMU says that the device does not exist.
    pub fn is_device_not_found(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "DeviceNotFound")
    }
}

/// A connection that went through the capabilities handshake.
#[derive(Debug, Clone)]
pub struct Qmp {
    calls: mpsc::Sender<Call>,
    shutdown: watch::Receiver<Option<String>>,
    closed: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Call {
    command: String,
    arguments: Value,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl Qmp {
    /// Greets QEMU on `stream` and starts the connection's task.
    ///
    /// # Errors
    /// `Closed` where the other side is not QMP, `TimedOut` where it does not greet within `patience` (another client
    /// holds the socket).
    pub async fn connect<S>(stream: S, patience: Duration) -> Result<Self, QmpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut lines = Lines { stream, buffer: Vec::new() };
        let greeting = tokio::time::timeout(patience, lines.next())
            .await
            .map_err(|_| QmpError::TimedOut { command: "connect".into(), patience })??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::closed("no QMP greeting"));
        }
        let (calls, inbox) = mpsc::channel(CALLS_MAX);
        let (shutdown_tx, shutdown) = watch::channel(None);
        let (closed_tx, closed) = watch::channel(false);
        tokio::spawn(async move {
            let ended =
                Connection { lines, waiting: HashMap::new(), next_id: 0, shutdown: shutdown_tx }.run(inbox).await;
            tracing::debug!(error = %ended, "QMP connection ended");
            closed_tx.send_replace(true);
        });
        let qmp = Self { calls, shutdown, closed };
        qmp.call("qmp_capabilities", json!({}), patience).await?;
        Ok(qmp)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// As [`QmpError`] says. After `TimedOut` the command may still happen.
    pub async fn call(&self, command: &str, arguments: Value, patience: Duration) -> Result<Value, QmpError> {
        let timed_out = || QmpError::TimedOut { command: command.to_owned(), patience };
        let (reply, answer) = oneshot::channel();
        let call = Call { command: command.to_owned(), arguments, reply };
        let both = async {
            self.calls.send(call).await.map_err(|_| QmpError::closed(""))?;
            answer.await.map_err(|_| QmpError::closed(""))?
        };
        tokio::time::timeout(patience, both).await.map_err(|_| timed_out())?
    }

    /// The reason of QEMU's last SHUTDOWN event, such as `guest-shutdown`.
    pub fn shutdown(&self) -> watch::Receiver<Option<String>> {
        self.shutdown.clone()
    }

    /// Answers when the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the task is gone, which is what is waited for.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

struct Connection<S> {
    lines: Lines<S>,
    waiting: HashMap<u64, oneshot::Sender<Result<Value, QmpError>>>,
    next_id: u64,
    shutdown: watch::Sender<Option<String>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Call>) -> QmpError {
        loop {
            // Calls whose caller gave up make room for others.
            self.waiting.retain(|_, reply| !reply.is_closed());
            let room = self.waiting.len() < CALLS_MAX;
            tokio::select! {
                call = inbox.recv(), if room => {
                    let Some(call) = call else { return QmpError::closed("no user") };
                    let id = self.next_id;
                    self.next_id += 1;
                    let request = json!({"execute": call.command, "arguments": call.arguments, "id": id});
                    self.waiting.insert(id, call.reply);
                    if let Err(e) = self.lines.send(&request).await { return e }
                }
                line = self.lines.next() => match line {
                    Ok(message) => self.take(message),
                    Err(e) => return e,
                },
                () = tokio::time::sleep(Duration::from_secs(1)), if !room => {}
            }
        }
    }

    fn take(&mut self, message: Value) {
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("unknown");
            self.shutdown.send_replace(Some(reason.to_owned()));
            return;
        }
        let Some(reply) = message.get("id").and_then(Value::as_u64).and_then(|id| self.waiting.remove(&id)) else {
            return;
        };
        let text = |field: &str| message["error"][field].as_str().unwrap_or("unknown").to_owned();
        let answer = match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(QmpError::Refused { class: text("class"), desc: text("desc") }),
        };
        // A caller that gave up does not want the answer.
        let _ = reply.send(answer);
    }
}

/// JSON values, one a line.
struct Lines<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lines<S> {
    /// The next value. Cancel-safe: what was read stays in the buffer.
    async fn next(&mut self) -> Result<Value, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                return serde_json::from_slice(&line).map_err(|e| QmpError::closed(format!("not JSON: {e}")));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(QmpError::closed(format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            if self.stream.read_buf(&mut self.buffer).await.map_err(QmpError::closed)? == 0 {
                return Err(QmpError::closed(""));
            }
        }
    }

    async fn send(&mut self, value: &Value) -> Result<(), QmpError> {
        let mut line = value.to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await.map_err(QmpError::closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};

    const SOON: Duration = Duration::from_millis(200);

    /// A peer that greets, then answers each command by `answer`.
    async fn peer(stream: DuplexStream, answer: impl Fn(&str, u64) -> String + Send) {
        let (read, mut write) = tokio::io::split(stream);
        write.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let request: Value = serde_json::from_str(&line).unwrap();
            let text = answer(request["execute"].as_str().unwrap(), request["id"].as_u64().unwrap());
            if write.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn connected(answer: impl Fn(&str, u64) -> String + Send + 'static) -> Qmp {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(peer(theirs, answer));
        Qmp::connect(ours, SOON).await.unwrap()
    }

    #[tokio::test]
    async fn calls_meet_their_answers_whatever_comes_between() {
        let qmp = connected(|command, id| match command {
            "refused" => format!("{{\"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"no\"}}, \"id\": {id}}}\n"),
            "silent" => String::new(),
            _ => format!(
                "{{\"event\": \"RESET\"}}\n{{\"return\": 9, \"id\": 99999}}\n\
                 {{\"event\": \"SHUTDOWN\", \"data\": {{\"reason\": \"guest-shutdown\"}}}}\n\
                 {{\"return\": \"{command}\", \"id\": {id}}}\n"
            ),
        })
        .await;
        assert_eq!(qmp.call("query-status", json!({}), SOON).await.unwrap(), "query-status");
        let refused = qmp.call("refused", json!({}), SOON).await.unwrap_err();
        assert!(refused.is_device_not_found(), "{refused}");
        assert!(matches!(qmp.call("silent", json!({}), SOON).await, Err(QmpError::TimedOut { .. })));
        assert_eq!(qmp.call("after", json!({}), SOON).await.unwrap(), "after");
        assert_eq!(qmp.shutdown().borrow().as_deref(), Some("guest-shutdown"));
    }

    #[tokio::test]
    async fn rubbish_ends_the_connection_and_every_call() {
        for rubbish in ["not json\n".to_owned(), "{".repeat(LINE_BYTES_MAX + 4096), "[".repeat(4096) + "\n"] {
            let qmp = connected(move |command, id| match command {
                "qmp_capabilities" => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
                _ => rubbish.clone(),
            })
            .await;
            let answer = qmp.call("x", json!({}), Duration::from_secs(10)).await;
            assert!(matches!(answer, Err(QmpError::Closed { .. })), "{answer:?}");
            tokio::time::timeout(Duration::from_secs(10), qmp.closed()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_socket_that_somebody_else_holds_is_given_up_on() {
        let (ours, _theirs) = tokio::io::duplex(64);
        assert!(matches!(Qmp::connect(ours, SOON).await, Err(QmpError::TimedOut { .. })));
    }
}
