//! Windows of blobs that are read again and again, kept in memory.
//!
//! A window is what one read of a body takes ([`crate::body`]: up to 256 KiB from a place in a blob). It is kept when it
//! is read for the second time before 65,536 others were, so that bytes which are read once (a backup, a scan) push
//! nothing out. It is kept as it was read and verified: serving it costs one look-up, no system call, no copy, no
//! checksum. Blobs never change and their ids are never used again, so nothing here can be out of date; what was deleted
//! is not asked for any more and is pushed out by others.
//!
//! What is not here costs a read two short turns of one lock that all cores share, and no copy: what is kept is the buffer
//! that was read. The disk may meanwhile have rotted under what is here: the scrub reads past it.
//!
//! Room is bounded in bytes for the whole process; a window counts as the memory that it holds ([`cost`]), and small ones
//! are not kept. What goes is chosen by CLOCK: a hand goes over the windows; one that
//! was read since the hand was there last stays, and then the newcomer is not kept. So a set that is larger than the room
//! keeps a part of itself here instead of passing through.
//!
//! What is stored encrypted is not kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use karri_bulk::BlobId;

/// Bytes kept where nothing else is said.
pub const ROOM: u64 = 256 << 20;
/// Windows below are not kept: what they save is small beside what keeping them takes.
const LEAST: usize = 16 << 10;
/// Places that are remembered: a power of two.
const REMEMBERED: usize = 1 << 16;

type Place = (BlobId, u64);

/// What keeping a window takes: buffers are powers of two, and there is the place in the map and the list.
fn cost(bytes: &Bytes) -> u64 {
    bytes.len().next_power_of_two() as u64 + 256
}

/// See the module.
pub struct Hot(Mutex<State>);

struct State {
    room: u64,
    used: u64,
    /// A tag for each place that was read a short while ago, where its hash puts it; the last one there wins.
    recent: Box<[u32]>,
    at: HashMap<Place, usize>,
    windows: Vec<Window>,
    hand: usize,
}

struct Window {
    place: Place,
    bytes: Bytes,
    /// Read since the hand was here.
    again: bool,
}

impl std::fmt::Debug for Hot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hot").field("used", &self.used()).finish_non_exhaustive()
    }
}

impl Default for Hot {
    fn default() -> Self {
        let recent = vec![0; REMEMBERED].into_boxed_slice();
        Self(Mutex::new(State { room: ROOM, used: 0, recent, at: HashMap::new(), windows: Vec::new(), hand: 0 }))
    }
}

impl Hot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes may be kept from now on.
    pub fn set_room(&self, bytes: u64) {
        let mut gone = Vec::new();
        let mut state = self.state();
        state.room = bytes;
        while state.used > bytes {
            state.hand = 0;
            gone.push(state.evict());
        }
        drop(state);
    }

    /// Bytes kept.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// `len` bytes of a blob from its byte `from`, if a window that begins there has them.
    pub fn get(&self, blob: BlobId, from: u64, len: usize) -> Option<Bytes> {
        let mut state = self.state();
        let n = *state.at.get(&(blob, from))?;
        let window = &mut state.windows[n];
        let has = window.bytes.len() >= len;
        window.again |= has;
        has.then(|| window.bytes.slice(..len))
    }

    /// Tells of a read from the disk, whose bytes were verified.
    pub fn offer(&self, blob: BlobId, from: u64, bytes: &Bytes) {
        if bytes.len() < LEAST {
            return;
        }
        // Freed after the lock: it is everybody's.
        let mut gone = Vec::new();
        let (place, cost) = ((blob, from), cost(bytes));
        let mut state = self.state();
        if cost > state.room || !state.seen_before(place, bytes.len()) {
            return;
        }
        if let Some(&n) = state.at.get(&place) {
            // A shorter one would stand in the way of all that want more.
            if state.windows[n].bytes.len() >= bytes.len() {
                return;
            }
            state.hand = n;
            gone.push(state.evict());
        }
        while state.used + cost > state.room {
            let hand = state.hand % state.windows.len();
            state.hand = hand;
            if std::mem::take(&mut state.windows[hand].again) {
                state.hand += 1;
                break;
            }
            gone.push(state.evict());
        }
        if state.used + cost <= state.room {
            let n = state.windows.len();
            state.at.insert(place, n);
            state.windows.push(Window { place, bytes: bytes.clone(), again: false });
            state.used += cost;
        }
        drop(state);
    }
}

impl State {
    /// True where the last read that was noted in this one's place was the same.
    fn seen_before(&mut self, (blob, from): Place, len: usize) -> bool {
        // Fibonacci hashing, thrice, so that neighbours of any kind spread.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = ((blob.0.wrapping_mul(GOLDEN) ^ from).wrapping_mul(GOLDEN) ^ len as u64).wrapping_mul(GOLDEN);
        let place = (mixed >> 32) as usize % REMEMBERED;
        // 0 is "none yet".
        let tag = (mixed >> 8) as u32 | 1;
        std::mem::replace(&mut self.recent[place], tag) == tag
    }

    /// Lets the window under the hand go.
    fn evict(&mut self) -> Window {
        let gone = self.windows.swap_remove(self.hand);
        self.at.remove(&gone.place);
        self.used -= cost(&gone.bytes);
        if let Some(moved) = self.windows.get(self.hand) {
            self.at.insert(moved.place, self.hand);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 20_000;
    const COST: u64 = 32_768 + 256;

    fn window(n: u8) -> Bytes {
        Bytes::from(vec![n; LEN])
    }

    fn read(hot: &Hot, blob: u64) -> bool {
        let known = hot.get(BlobId(blob), 0, LEN);
        match known {
            Some(bytes) => {
                assert_eq!(bytes, window(blob as u8));
                true
            }
            None => {
                hot.offer(BlobId(blob), 0, &window(blob as u8));
                false
            }
        }
    }

    #[test]
    fn what_is_read_twice_is_kept_and_a_scan_is_not() {
        let hot = Hot::default();
        for blob in 1..100 {
            assert!(!read(&hot, blob));
        }
        assert_eq!(hot.used(), 0);
        assert!(!read(&hot, 7) && read(&hot, 7) && hot.used() == COST);
        assert_eq!(hot.get(BlobId(7), 0, 10).unwrap().len(), 10);
        // Another length or place is another read.
        assert!(hot.get(BlobId(7), 0, LEN + 1).is_none() && hot.get(BlobId(7), 5, 10).is_none());
    }

    #[test]
    fn the_room_is_kept_and_what_is_hot_stays() {
        let hot = Hot::default();
        hot.set_room(COST * 7 / 2);
        for blob in [1, 1, 2, 2, 3, 3] {
            read(&hot, blob);
        }
        assert_eq!(hot.used(), 3 * COST);
        for newcomer in 10..20 {
            assert!(read(&hot, 1) && read(&hot, 2), "hot ones stay");
            read(&hot, newcomer);
            read(&hot, newcomer);
            assert!(hot.used() <= COST * 7 / 2);
        }
        assert!(!read(&hot, 3), "the one that nobody read has gone");
        hot.set_room(COST);
        assert!(hot.used() <= COST);
        hot.set_room(0);
        assert_eq!(hot.used(), 0);
        read(&hot, 5);
        read(&hot, 5);
        assert_eq!(hot.used(), 0);
    }

    #[test]
    fn a_set_larger_than_the_room_keeps_a_part_of_itself() {
        let hot = Hot::default();
        hot.set_room(10 * COST);
        let round = || (0..20).filter(|blob| read(&hot, *blob)).count();
        let hits: Vec<usize> = (0..20).map(|_| round()).collect();
        assert!(hits[10..].iter().sum::<usize>() >= 10 * 4, "{hits:?}");
    }

    #[test]
    fn small_reads_take_no_memory_and_short_ones_do_not_stand_in_the_way() {
        let hot = Hot::default();
        for from in 0..10_000 {
            hot.offer(BlobId(1), from, &Bytes::from_static(b"x"));
            hot.offer(BlobId(1), from, &Bytes::from_static(b"x"));
        }
        assert_eq!(hot.used(), 0);
        let (short, long) = (window(1), Bytes::from(vec![1; 3 * LEN]));
        hot.offer(BlobId(1), 0, &short);
        hot.offer(BlobId(1), 0, &short);
        assert!(hot.get(BlobId(1), 0, LEN).is_some() && hot.get(BlobId(1), 0, 3 * LEN).is_none());
        hot.offer(BlobId(1), 0, &long);
        hot.offer(BlobId(1), 0, &long);
        assert_eq!(hot.get(BlobId(1), 0, 3 * LEN).unwrap(), long);
        assert!(hot.get(BlobId(1), 0, LEN).is_some());
        assert_eq!(hot.used(), cost(&long));
    }
}
