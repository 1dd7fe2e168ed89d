//! Bodies' buffers on their way to the bulk store: hashed, and sealed where the object is encrypted.
//!
//! A large buffer leaves the core for the offload pool. Buffers of other connections that come meanwhile wait and go
//! together the next time, up to [`LANES`] of them: their MD5s are computed in lanes, for little more than the price of
//! one. So a connection alone waits for nobody, and a busy core spends a fraction of an MD5 on each.
//!
//! | per buffer of 256 KiB | |
//! |---|---|
//! | allocations | 1 for its answer, and a share of the batch's: 4, and 3 for each 32 KiB |
//! | wakes of threads | a share of the batch's 2 |
//! | copies | none; one where it is sealed |

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use karri_engine::buf::Buf;

use crate::crypt::Cipher;
use crate::digest::Hasher;
use crate::error::{Error, Kind, Result};
use crate::md5_lanes::LANES;

/// From here on, in bytes, hashing (and opening what is sealed) leaves the core: MD5 of so much takes a fifth of a millisecond.
pub const OFFLOAD_MIN: usize = 128 << 10;

/// A buffer's sealing: by this cipher, its first chunk having this number.
pub type Sealing = Option<(Arc<Cipher>, u64)>;

struct Job {
    hasher: Hasher,
    buf: Buf,
    seal: Sealing,
}

impl Job {
    /// The buffer as it is to be stored.
    fn sealed(self) -> (Hasher, Buf) {
        let Self { hasher, buf, seal } = self;
        let Some((cipher, first)) = seal else { return (hasher, buf) };
        let sealed = cipher.seal(first, buf.bytes());
        let mut out = Buf::for_read(sealed.len());
        out.bytes_mut()[..sealed.len()].copy_from_slice(&sealed);
        out.set_len(sealed.len());
        (hasher, out)
    }
}

type Answer = oneshot::Sender<(Hasher, Buf)>;

/// What a core has to hash.
#[derive(Default)]
pub struct Hashing(Rc<Waiting>);

#[derive(Default)]
struct Waiting {
    jobs: RefCell<VecDeque<(Job, Answer)>>,
    /// Tasks that take jobs out until there are none; each has one batch in the pool.
    running: Cell<usize>,
    /// At most so many of them; 0 is one.
    most: Cell<usize>,
}

impl Hashing {
    /// Lets so many batches be in the pool at once: as many as there are CPUs that nobody else needs. With one, which is
    /// what it begins with, batches are fullest.
    pub fn widen(&self, batches: usize) {
        self.0.most.set(batches);
    }

    /// Adds a buffer to what `hasher` has seen, and answers it as it is to be stored.
    ///
    /// # Errors
    /// `InternalError` where the work panicked.
    pub async fn hash(&self, hasher: &mut Hasher, buf: Buf, seal: Sealing) -> Result<Buf> {
        let offload = buf.len() >= OFFLOAD_MIN && karri_engine::cores::current().is_some();
        let mut job = Job { hasher: std::mem::replace(hasher, Hasher::new(&[])), buf, seal };
        let (back, buf) = if offload {
            let (answer, answered) = oneshot::channel();
            self.0.jobs.borrow_mut().push_back((job, answer));
            if self.0.running.get() < self.0.most.get().max(1) {
                karri_engine::detach(drain(Running::new(&self.0)));
            }
            answered.await.map_err(|_| Error::new(Kind::InternalError, "Hashing the object failed."))?
        } else {
            job.hasher.update(job.buf.bytes());
            job.sealed()
        };
        *hasher = back;
        Ok(buf)
    }
}

/// One more that takes jobs out, for as long as it lives.
struct Running(Rc<Waiting>);

impl Running {
    fn new(waiting: &Rc<Waiting>) -> Self {
        waiting.running.set(waiting.running.get() + 1);
        Self(waiting.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

/// Has jobs done, as many at once as there are and as fit, until none waits.
async fn drain(running: Running) {
    loop {
        let some: Vec<(Job, Answer)> = {
            let jobs = &mut *running.0.jobs.borrow_mut();
            // Nobody waits for those whose clients have gone.
            jobs.retain(|(_, answer)| !answer.is_canceled());
            let some = jobs.len().min(LANES);
            jobs.drain(..some).collect()
        };
        if some.is_empty() {
            return;
        }
        let (jobs, answers): (Vec<Job>, Vec<Answer>) = some.into_iter().unzip();
        // A task of its own, so that a panic ends these and not those that come after.
        let done = karri_engine::spawn(karri_engine::offload(move || all(jobs))).await;
        // Without an answer the senders go, which those who wait see.
        for (done, answer) in done.into_iter().flatten().zip(answers) {
            // The client may have gone meanwhile.
            let _ = answer.send(done);
        }
    }
}

fn all(mut jobs: Vec<Job>) -> Vec<(Hasher, Buf)> {
    let mut bodies: Vec<_> = jobs.iter_mut().map(|job| (&mut job.hasher, job.buf.bytes())).collect();
    Hasher::update_all(&mut bodies);
    jobs.into_iter().map(Job::sealed).collect()
}

#[cfg(test)]
mod tests {
    use karri_engine::cores::{CoreOptions, block_on};

    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn buffers_of_many_bodies_go_together_and_stay_apart() {
        for batches in [1, 3] {
            block_on(&CoreOptions::default(), move || many(batches)).expect("a core");
        }
    }

    async fn many(batches: usize) {
        let bodies = 21;
        let byte = |body: usize, at: usize| (body * 37 + at * 7 % 251) as u8;
        let hashing = Rc::new(Hashing::default());
        hashing.widen(batches);
        let tasks: Vec<_> = (0..bodies)
            .map(|body| {
                let hashing = hashing.clone();
                karri_engine::spawn(async move {
                    let (mut hasher, mut whole) =
                        (Hasher::new(&[Algorithm::Crc64Nvme]), Hasher::new(&[Algorithm::Crc64Nvme]));
                    for turn in 0..3 {
                        // Some too small for the pool.
                        let len = if body % 5 == 4 { 1000 } else { OFFLOAD_MIN + body * 10 + turn };
                        let data: Vec<u8> = (0..len).map(|at| byte(body + turn, at)).collect();
                        whole.update(&data);
                        let mut buf = Buf::for_read(len);
                        buf.bytes_mut()[..len].copy_from_slice(&data);
                        buf.set_len(len);
                        let back = hashing.hash(&mut hasher, buf, None).await.expect("hashed");
                        assert_eq!(back.bytes(), data);
                    }
                    assert_eq!(hasher.finish(), whole.finish(), "body {body}");
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(hashing.0.running.get(), 0);
    }
}
