//! The in-flight region of vhost-user (INFLIGHT_SHMFD): what was taken from a queue and not answered, kept in a memfd that
//! the front end holds for us over our death.
//!
//! ```text
//! per queue:  features u64 | version u16 = 1 | desc_num u16 | last_batch_head u16 | used_idx u16      16 bytes
//!             desc_num x { inflight u8 | pad 5 | next u16 | counter u64 }                           16 bytes each
//! ```
//! Order, from the vhost-user specification ("Inflight I/O tracking", split virtqueue):
//! taken: `counter`, then `inflight = 1`, both before the request is submitted. Answered: `next` and `last_batch_head`
//! chain the batch, then the ring's used index is published, then `inflight = 0` for the batch, then `used_idx`. So after a
//! death anywhere, `used_idx` differing from the ring's says that the last batch was published and not cleared.

use std::fs::File;

use super::memory::{MemoryError, View};

const HEAD_BYTES: usize = 16;
const DESC_BYTES: usize = 16;
const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH: usize = 12;
const AT_USED: usize = 14;
const VERSION: u16 = 1;

/// Bytes of one queue's part, for queues of `size` descriptors.
pub const fn queue_bytes(size: u16) -> usize {
    HEAD_BYTES + DESC_BYTES * size as usize
}

/// One queue's part of the region.
#[derive(Debug)]
pub struct Inflight {
    view: View,
    at: usize,
    size: u16,
    counter: u64,
    batch: Vec<u16>,
}

impl Inflight {
    /// Queue `index`'s part of the region in `file`, made valid if it is new.
    ///
    /// # Errors
    /// `Map` when the file is too short.
    pub fn open(file: &File, offset: u64, index: u16, size: u16) -> Result<Self, MemoryError> {
        let bytes = queue_bytes(size);
        let at = bytes * usize::from(index);
        let view = View::of_file(file, offset, at + bytes)?;
        let this = Self { view, at, size, counter: 0, batch: Vec::new() };
        if u16::from_le_bytes(this.view.read(at + AT_VERSION)) != VERSION {
            this.view.write(at + AT_VERSION, VERSION.to_le_bytes());
        }
        this.view.write(at + AT_DESC_NUM, size.to_le_bytes());
        Ok(this)
    }

    fn desc(&self, head: u16) -> usize {
        debug_assert!(head < self.size);
        self.at + HEAD_BYTES + DESC_BYTES * usize::from(head)
    }

    /// What was in flight when the last back end died, oldest first, given the ring's used index. Answered requests whose
    /// clearing was cut short are cleared.
    pub fn recover(&mut self, ring_used: u16) -> Vec<u16> {
        let region_used = u16::from_le_bytes(self.view.read(self.at + AT_USED));
        let published = ring_used.wrapping_sub(region_used);
        if published != 0 && published <= self.size {
            let mut head = u16::from_le_bytes(self.view.read(self.at + AT_LAST_BATCH));
            for _ in 0..published {
                if head >= self.size {
                    break;
                }
                self.view.write(self.desc(head), [0u8]);
                head = u16::from_le_bytes(self.view.read(self.desc(head) + 6));
            }
        }
        self.view.store_u16(self.at + AT_USED, ring_used);
        let mut found: Vec<(u64, u16)> = Vec::new();
        for head in 0..self.size {
            let at = self.desc(head);
            let [inflight] = self.view.read(at);
            if inflight == 1 {
                found.push((u64::from_le_bytes(self.view.read(at + 8)), head));
            }
        }
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// `head` was taken from the ring. Call before its I/O is submitted.
    pub fn taken(&mut self, head: u16) {
        let at = self.desc(head);
        self.view.write(at + 8, self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        View::compiler_fence();
        self.view.write(at, [1u8]);
    }

    /// `head` goes on the used ring with the batch that is published next.
    pub fn answered(&mut self, head: u16) {
        let last: [u8; 2] = self.view.read(self.at + AT_LAST_BATCH);
        self.view.write(self.desc(head) + 6, last);
        self.view.store_u16(self.at + AT_LAST_BATCH, head);
        self.batch.push(head);
    }

    /// The batch was published: the ring's used index is now `ring_used`.
    pub fn published(&mut self, ring_used: u16) {
        while let Some(head) = self.batch.pop() {
            self.view.write(self.desc(head), [0u8]);
        }
        self.view.store_u16(self.at + AT_USED, ring_used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(size: u16) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * queue_bytes(size) as u64).unwrap();
        file
    }

    #[test]
    fn what_was_not_answered_comes_back_in_order() {
        let file = region(8);
        let mut a = Inflight::open(&file, 0, 1, 8).unwrap();
        assert!(a.recover(0).is_empty());
        for head in [5, 2, 7, 0] {
            a.taken(head);
        }
        a.answered(2);
        a.published(1);
        drop(a);
        let mut b = Inflight::open(&file, 0, 1, 8).unwrap();
        assert_eq!(b.recover(1), [5, 7, 0]);
        b.taken(1);
        drop(b);
        assert_eq!(Inflight::open(&file, 0, 1, 8).unwrap().recover(1), [5, 7, 0, 1]);
        let other = Inflight::open(&file, 0, 0, 8).unwrap().recover(0);
        assert!(other.is_empty(), "the other queue's part is its own");
    }

    #[test]
    fn a_death_between_publishing_and_clearing_answers_nothing_twice() {
        let file = region(8);
        let mut a = Inflight::open(&file, 0, 0, 8).unwrap();
        a.recover(65535);
        for head in [3, 4, 6] {
            a.taken(head);
        }
        a.answered(6);
        a.answered(3);
        drop(a); // The ring's index went from 65535 to 1 and then we died.
        assert_eq!(Inflight::open(&file, 0, 0, 8).unwrap().recover(1), [4]);
        // Died before publishing: all three are in flight.
        let file = region(8);
        let mut a = Inflight::open(&file, 0, 0, 8).unwrap();
        a.recover(7);
        a.taken(3);
        a.answered(3);
        drop(a);
        assert_eq!(Inflight::open(&file, 0, 0, 8).unwrap().recover(7), [3]);
    }

    #[test]
    fn a_garbled_region_is_survived() {
        use std::os::unix::fs::FileExt;
        let file = region(8);
        for seed in 0..64u8 {
            let bytes: Vec<u8> =
                (0..2 * queue_bytes(8)).map(|i| (i as u8).wrapping_mul(seed).wrapping_add(seed)).collect();
            file.write_all_at(&bytes, 0).unwrap();
            let heads = Inflight::open(&file, 0, 0, 8).unwrap().recover(u16::from(seed) * 1000);
            assert!(heads.len() <= 8 && heads.iter().all(|h| *h < 8));
        }
        assert!(Inflight::open(&file, 0, 2, 8).is_err(), "past the file's end");
    }
}
