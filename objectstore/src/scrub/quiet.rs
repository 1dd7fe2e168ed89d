//! Whether anything moved while the store was looked through: a look takes many reads, and commits go on meanwhile.
//!
//! Each commit that changes records of objects, versions or uploads, or a bucket's usage, is counted where the bucket's
//! number puts it, when it begins and when it ends. Moves back (a version becomes current again, an object gets another key) are counted once more
//! for the whole store: they alone can carry a record past a look that goes from `O` to `V` to `P` to `M`.

use std::sync::atomic::{AtomicU64, Ordering};

use karri_base::clock::UnixMicros;
use karri_meta::{Batch, MetaError};

use crate::keys::BucketId;

/// Places that buckets share.
const SHARDS: usize = 64;
/// A commit that was cut off may still happen for so long after it began: a store that stalls lets clients go first, and
/// what is freed by mistake is lost.
const DOUBT: u64 = 24 * 3_600 * 1_000_000;

/// See the module.
#[derive(Debug)]
pub struct Quiet {
    shards: [Shard; SHARDS],
    back: Shard,
}

impl Default for Quiet {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()), back: Shard::default() }
    }
}

#[derive(Debug, Default)]
struct Shard {
    begun: AtomicU64,
    ended: AtomicU64,
    /// In microseconds since 1970.
    doubted_until: AtomicU64,
}

/// What a look is about.
#[derive(Debug, Clone, Copy)]
pub enum Scope {
    /// All that is in a bucket.
    Bucket(BucketId),
    /// Moves back in any bucket.
    Back,
}

/// When a look began.
#[derive(Debug, Clone, Copy)]
pub struct Stamp(Scope, u64);

fn index(id: u64) -> usize {
    (id % SHARDS as u64) as usize
}

impl Quiet {
    fn of(&self, scope: Scope) -> &Shard {
        match scope {
            Scope::Bucket(id) => &self.shards[index(id.0)],
            Scope::Back => &self.back,
        }
    }

    /// Begins a look; `None` while something is under way.
    pub fn stamp(&self, scope: Scope, now: UnixMicros) -> Option<Stamp> {
        let shard = self.of(scope);
        let ended = shard.ended.load(Ordering::SeqCst);
        let begun = shard.begun.load(Ordering::SeqCst);
        let sure = shard.doubted_until.load(Ordering::SeqCst) < now.0;
        (begun == ended && sure).then_some(Stamp(scope, begun))
    }

    /// True where nothing began since.
    pub fn is_since(&self, stamp: Stamp) -> bool {
        self.of(stamp.0).begun.load(Ordering::SeqCst) == stamp.1
    }

    /// A commit begins.
    pub fn begin(&self, batch: &Batch, now: UnixMicros) -> Turn<'_> {
        let (mut shards, mut puts, mut dels) = (0u64, false, false);
        let mut see = |key: &[u8], seen: &mut bool| {
            if let Some((b'O' | b'V' | b'U' | b'N', rest)) = key.split_first()
                && let Some(id) = rest.first_chunk::<8>()
            {
                shards |= 1 << index(u64::from_be_bytes(*id));
                *seen |= matches!(key[0], b'O' | b'V');
            }
        };
        batch.puts.iter().for_each(|(key, _)| see(key, &mut puts));
        batch.dels.iter().for_each(|key| see(key, &mut dels));
        let turn = Turn { quiet: self, shards, back: puts && dels, now, known: false };
        turn.each(|shard| {
            shard.begun.fetch_add(1, Ordering::SeqCst);
        });
        turn
    }
}

/// A commit under way.
#[derive(Debug)]
pub struct Turn<'q> {
    quiet: &'q Quiet,
    shards: u64,
    back: bool,
    now: UnixMicros,
    known: bool,
}

impl Turn<'_> {
    fn each(&self, what: impl Fn(&Shard)) {
        let mut left = self.shards;
        while left != 0 {
            what(&self.quiet.shards[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
        if self.back {
            what(&self.quiet.back);
        }
    }
    /// The commit ended so.
    pub fn end(mut self, outcome: &Result<(), MetaError>) {
        self.known = !matches!(outcome, Err(MetaError::Failed { .. }));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let until = self.now.0 + DOUBT;
        self.each(|shard| {
            if !self.known {
                shard.doubted_until.fetch_max(until, Ordering::SeqCst);
            }
            shard.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    #[test]
    fn what_disturbs_a_look() {
        let quiet = Quiet::default();
        let (one, two, now) = (BucketId(1), BucketId(2), UnixMicros(1_000));
        let put = Batch::new().put(keys::object(one, b"k"), "");
        let back = Batch::new().put(keys::object(one, b"k"), "").del(keys::version(one, b"k", now));
        let stamp = |scope| quiet.stamp(scope, now);
        let (a, b, moved) = (stamp(Scope::Bucket(one)), stamp(Scope::Bucket(two)), stamp(Scope::Back));
        let turn = quiet.begin(&put, now);
        assert!(!quiet.is_since(a.unwrap()) && quiet.is_since(b.unwrap()) && quiet.is_since(moved.unwrap()));
        assert!(stamp(Scope::Bucket(one)).is_none(), "it is under way");
        turn.end(&Ok(()));
        assert!(stamp(Scope::Bucket(one)).is_some());
        // Cut off: nobody knows for a while.
        drop(quiet.begin(&back, now));
        assert!(!quiet.is_since(moved.unwrap()) && stamp(Scope::Back).is_none());
        assert!(quiet.stamp(Scope::Back, UnixMicros(now.0 + DOUBT + 1)).is_some());
    }
}
