//! vhost-user-blk: a volume on a UNIX socket, for a virtual machine monitor to attach as a disk.
//!
//! ```text
//! front end (QEMU) --- socket ---> control thread: one connection at a time, `session`
//!                                        | commands, each answered before the next message is read
//! guest memory <--- rings, kicks ---> core: `queue`, one task a queue, a task for requests that are not simple
//! ```
//!
//! The control thread sleeps in `recvmsg` but for a handful of messages at connection, reset and hot-plug; the data path
//! never leaves the core. The front end's death or a lost connection ends the queues after their last request; then the
//! next connection is taken. Our own death is survived by the in-flight region ([`crate::virtio::inflight`]).
//!
//! Leaves to others: which volumes there are, and who may attach them (the socket's folder has mode 0700).

mod queue;
mod session;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_channel::mpsc;
use karri_engine::cores::CoreHandle;

pub use queue::QueueStats;

use crate::error::Error;
use crate::virtio::block::Device;
use crate::volume::Volume;

/// A socket that serves a volume. Dropping it without [`stop`](Self::stop) stops it too, without waiting.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<QueueStats>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    listener: UnixListener,
    connection: Mutex<Option<UnixStream>>,
}

impl Server {
    /// Listens on `path` and serves `volume`, which must have been opened on `core`, with `queues` queues at most.
    /// `make` runs on the core and gives the volume.
    ///
    /// # Errors
    /// `Socket` when the path cannot be listened on, `Closed` when the core is stopping.
    pub async fn start<V: Volume>(
        path: &Path,
        device: Arc<Device>,
        core: &CoreHandle,
        make: impl FnOnce() -> V + Send + 'static,
    ) -> Result<Self, Error> {
        let listener = listen(path)?;
        let stats = Arc::new(QueueStats::default());
        let (send, receive) = mpsc::unbounded();
        let on_core = (device.clone(), stats.clone());
        let started = core.run(move || async move {
            let volume = make();
            karri_engine::detach(queue::run(volume, on_core.0, on_core.1, receive));
        });
        started.await.map_err(|_| Error::Closed)?;
        let shared = Arc::new(Shared { stopping: AtomicBool::new(false), listener, connection: Mutex::new(None) });
        let for_thread = shared.clone();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || accept(&for_thread, &device, &send, &name))
            .map_err(|e| Error::Socket { path: path.display().to_string(), why: format!("no thread for it: {e}") })?;
        Ok(Self { path: path.to_owned(), shared, thread: Mutex::new(Some(thread)), stats })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counters of its queues.
    pub fn stats(&self) -> &QueueStats {
        &self.stats
    }

    /// Whether a front end is connected.
    pub fn connected(&self) -> bool {
        self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Stops listening, ends the connection after its last request, and removes the socket's file. Blocks meanwhile: call
    /// it where that is allowed.
    pub fn stop(&self) {
        self.begin_stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(socket = %self.path.display(), "the control thread panicked");
        }
    }

    fn begin_stop(&self) {
        if self.shared.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        // The path first: nobody connects to a listener that no longer accepts.
        let _ = fs::remove_file(&self.path);
        self.shared.wake();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

impl Shared {
    /// Gets the control thread out of `accept` and out of `recvmsg`.
    fn wake(&self) {
        // A listening UNIX socket that is shut down makes accept() answer EINVAL. std has no such call for listeners.
        if let Ok(listener) = self.listener.try_clone() {
            let stream = UnixStream::from(std::os::fd::OwnedFd::from(listener));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(connection) = &*self.connection.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Listens on `path`, mode 0600, in place of a socket that a dead process left there.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let bad = |why: String| Error::Socket { path: path.display().to_string(), why };
    if path.as_os_str().len() > 107 {
        return Err(bad("its path is longer than the 107 bytes that sockets may have; choose a shorter folder".into()));
    }
    if let Ok(held) = fs::symlink_metadata(path) {
        if !held.file_type().is_socket() {
            return Err(bad("a file that is no socket is in the way; move it".into()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(bad("another process serves it; stop that first".into()));
        }
        fs::remove_file(path).map_err(|e| bad(format!("the old socket cannot be removed: {e}")))?;
    }
    // Bound under another name, then moved: nobody connects before the mode is set.
    let early = path.with_extension("new");
    let _ = fs::remove_file(&early);
    let bind = if early.as_os_str().len() > 107 { path } else { &early };
    let listener = UnixListener::bind(bind).map_err(|e| match e.kind() {
        ErrorKind::NotFound => bad("its folder does not exist; make it, mode 0700".into()),
        _ => bad(e.to_string()),
    })?;
    fs::set_permissions(bind, fs::Permissions::from_mode(0o600)).map_err(|e| bad(e.to_string()))?;
    if bind != path {
        fs::rename(bind, path).map_err(|e| bad(e.to_string()))?;
    }
    debug_assert!(listener.as_raw_fd() >= 0);
    Ok(listener)
}

/// The control thread: one connection after the other.
fn accept(shared: &Shared, device: &Arc<Device>, core: &mpsc::UnboundedSender<queue::Command>, name: &str) {
    let stopping = || shared.stopping.load(Ordering::SeqCst);
    while !stopping() {
        let stream = match shared.listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::Interrupted || e.kind() == ErrorKind::ConnectionAborted => continue,
            Err(_) if stopping() => return,
            Err(e) => {
                tracing::error!(socket = name, error = %e, "a socket takes no more connections");
                return;
            }
        };
        let keep = stream.try_clone().ok();
        *shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = keep;
        // A stop that came before the connection was noted down did not see it.
        if !stopping() {
            tracing::info!(socket = name, "front end connected");
            let why = session::serve(stream, device.clone(), core.clone());
            tracing::info!(socket = name, reason = %why, "front end gone");
        }
        *shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn sockets_are_private_and_replace_only_dead_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let e = listen(&path).unwrap_err();
        assert!(e.to_string().contains("another process serves it"), "{e}");
        drop(first);
        listen(&path).expect("a dead socket is replaced");
        let file = dir.path().join("file");
        fs::write(&file, b"precious").unwrap();
        assert!(listen(&file).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(listen(&dir.path().join("no/such")).unwrap_err().to_string().contains("folder"));
        assert!(listen(&dir.path().join("x".repeat(120))).unwrap_err().to_string().contains("107"));
    }
}
