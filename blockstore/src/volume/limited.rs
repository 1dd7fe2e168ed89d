//! A volume that takes so many requests and bytes a second, as EBS volume types promise and cap.

use karri_engine::buf::Buf;
use karri_engine::disk::Dir;
use karri_engine::landing::Landings;
use karri_engine::limit::TokenBucket;

use super::{Done, Volume};
use crate::error::Error;

/// How much a volume may do a second. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub iops: u64,
    /// Bytes a second.
    pub bytes: u64,
}

impl Limits {
    /// gp3 without extras: 3,000 IOPS and 125 MiB/s.
    pub const GP3: Self = Self { iops: 3000, bytes: 125 << 20 };
}

/// A volume under [`Limits`]. Requests wait for their turn in order of arrival; flushes and discards are not counted.
#[derive(Clone)]
pub struct Limited<V> {
    inner: V,
    iops: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl<V: Volume> Limited<V> {
    /// Puts `inner` under `limits`, with bursts of a quarter of a second. On the volume's core.
    ///
    /// # Panics
    /// Outside a core.
    pub fn new(inner: V, limits: Limits) -> Self {
        let bucket = |rate: u64| (rate > 0).then(|| TokenBucket::new(rate, (rate / 4).max(1)));
        Self { inner, iops: bucket(limits.iops), bytes: bucket(limits.bytes) }
    }

    async fn turn(&self, len: usize) {
        if let Some(iops) = &self.iops {
            iops.acquire(1).await;
        }
        if let Some(bytes) = &self.bytes {
            bytes.acquire(len as u64).await;
        }
    }
}

impl<V: Volume> Volume for Limited<V> {
    type Begun = V::Begun;

    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    async fn read(&self, at: u64, buf: Buf) -> Done {
        self.turn(buf.len()).await;
        self.inner.read(at, buf).await
    }
    async fn write(&self, at: u64, buf: Buf, fua: bool) -> Done {
        self.turn(buf.len()).await;
        self.inner.write(at, buf, fua).await
    }
    fn begin(&self, dir: Dir, at: u64, buf: Buf, to: &Landings, token: u64) -> Result<V::Begun, Buf> {
        // Under a limit everything waits for its turn.
        if self.iops.is_some() || self.bytes.is_some() {
            return Err(buf);
        }
        self.inner.begin(dir, at, buf, to, token)
    }
    fn end(&self, begun: V::Begun, done: bool) {
        self.inner.end(begun, done);
    }
    async fn flush(&self) -> Result<(), Error> {
        self.inner.flush().await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        self.inner.discard(at, len).await
    }
    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        self.inner.write_zeroes(at, len).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use karri_engine::{now, sim};

    use super::*;
    use crate::volume::MemoryVolume;

    #[test]
    fn a_second_holds_what_it_may() {
        sim::run(1, |_| async {
            let limits = Limits { iops: 100, bytes: 1 << 20 };
            let v = Limited::new(MemoryVolume::new("vol-a", 1 << 20), limits);
            let time = async |n: u64, len: usize| {
                let began = now();
                for _ in 0..n {
                    v.read(0, Buf::zeroed(len)).await.0.expect("read");
                }
                now() - began
            };
            let many_small = time(225, 512).await;
            assert!((Duration::from_millis(1900)..Duration::from_millis(2100)).contains(&many_small), "{many_small:?}");
            karri_engine::sleep(Duration::from_secs(1)).await;
            let few_large = time(9, 1 << 18).await;
            assert!((Duration::from_millis(1900)..Duration::from_millis(2300)).contains(&few_large), "{few_large:?}");
        });
    }

    #[test]
    fn no_limit_changes_nothing() {
        sim::run(1, |_| {
            super::super::conformance::run(async |size| {
                Limited::new(MemoryVolume::new("vol-a", size), Limits::default())
            })
        });
    }
}
