//! One flush at a time for the whole store, shared by everyone who waits.
//!
//! Whoever comes while a flush runs shares the next one with all others that came: many volumes' FLUSHes and the log's
//! groups cost few syncs. One at a time also makes errors safe: a device that fails a flush may have lost writes that a
//! later flush, though successful, does not bring back. So after the first failure every flush is refused, and the
//! store with it, until it is opened again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_channel::oneshot;
use karri_engine::disk::{Disk, DiskError};

use super::Shared;

type Answer = oneshot::Sender<Result<(), DiskError>>;

/// Which writes are durable: flushes are counted when they begin and when they end.
#[derive(Debug, Default)]
pub struct Flushes {
    begun: AtomicU64,
    done: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: bool,
    waiting: Vec<Answer>,
    failed: Option<DiskError>,
}

impl Flushes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic under this lock")
    }

    /// To be taken when a write has completed.
    pub fn mark(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// True once a flush that began after the mark has ended.
    pub fn covers(&self, mark: u64) -> bool {
        self.done.load(Ordering::SeqCst) > mark
    }

    /// Those who share the next flush; empty and not running any more when there is nobody.
    fn next(&self) -> Vec<Answer> {
        let mut queue = self.queue();
        queue.running = !queue.waiting.is_empty();
        std::mem::take(&mut queue.waiting)
    }

    fn fail(&self, why: &DiskError) -> Vec<Answer> {
        let mut queue = self.queue();
        queue.running = false;
        queue.failed.get_or_insert_with(|| why.clone());
        std::mem::take(&mut queue.waiting)
    }
}

/// Makes every write durable that completed before this call.
pub async fn flush<D: Disk>(shared: &Arc<Shared>, disk: &D) -> Result<(), DiskError> {
    let (answer, receiver) = oneshot::channel();
    let first = {
        let mut queue = shared.flushes.queue();
        if let Some(e) = &queue.failed {
            return Err(e.clone());
        }
        queue.waiting.push(answer);
        !std::mem::replace(&mut queue.running, true)
    };
    if first {
        // A task of its own: a caller that goes away must not take others' flush with it.
        karri_engine::detach(run(Runner { shared: shared.clone(), waiting: Vec::new(), done: false }, disk.clone()));
    }
    receiver.await.unwrap_or(Err(DiskError::Closed))
}

/// Flushes while anybody waits. Dropped before its time (the core ended), it refuses those who wait.
struct Runner {
    shared: Arc<Shared>,
    waiting: Vec<Answer>,
    done: bool,
}

impl Runner {
    fn fail(&mut self, why: DiskError) {
        self.done = true;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.append(&mut self.shared.flushes.fail(&why));
        waiting.into_iter().for_each(|a| drop(a.send(Err(why.clone()))));
        self.shared.die(&why.into());
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.done {
            self.fail(DiskError::Closed);
        }
    }
}

async fn run<D: Disk>(mut runner: Runner, disk: D) {
    loop {
        let flushes = &runner.shared.flushes;
        runner.waiting = flushes.next();
        if runner.waiting.is_empty() {
            runner.done = true;
            return;
        }
        let number = flushes.begun.fetch_add(1, Ordering::SeqCst) + 1;
        if let Err(e) = disk.flush().await {
            return runner.fail(e);
        }
        runner.shared.flushes.done.fetch_max(number, Ordering::SeqCst);
        // A caller that went away is told nothing.
        runner.waiting.drain(..).for_each(|a| drop(a.send(Ok(()))));
    }
}
