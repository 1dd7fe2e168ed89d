//! The state of every slot as extents see it: one atomic word a slot, so that a volume's reads and writes take no lock.
//!
//! ```text
//! word: incarnation (32) | flags (8) | accesses under way (24)
//!
//! free --alloc--> ALLOCATED --keep durable--> +KEPT
//!                     |                         |
//!                     +-----free asked for------+--> +DOOMED: refuses access
//!                                                    |
//!                                              free durable --> +FREED --last access ends--> free
//! ```
//!
//! An access counts itself in, then looks at the incarnation. A freed slot goes back to the allocator when nobody is
//! counted any more. A write whose future was dropped is still under way on the disk and is never counted out: its slot
//! stays out of use until the store is opened again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ExtentId;

const ALLOCATED: u64 = 1 << 24;
const KEPT: u64 = 1 << 25;
const DOOMED: u64 = 1 << 26;
const FREED: u64 = 1 << 27;
const FLAGS: u64 = ALLOCATED | KEPT | DOOMED | FREED;
const ACCESSES: u64 = ALLOCATED - 1;

/// How many incarnations are set aside by each durable ceiling.
pub const AHEAD: u32 = 1024;

fn incarnation(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The words of all slots.
#[derive(Debug)]
pub struct Slots {
    words: Box<[AtomicU64]>,
    /// The highest incarnation given out.
    issued: AtomicU32,
    /// What the disk says is the highest that may have been given out.
    ceiling: AtomicU32,
}

impl Slots {
    /// All free; incarnations go on above `floor`, up to the durable `ceiling`.
    pub fn new(slots: u32, floor: u32, ceiling: u32) -> Self {
        let words = (0..slots).map(|_| AtomicU64::new(u64::from(floor) << 32)).collect();
        Self { words, issued: AtomicU32::new(floor), ceiling: AtomicU32::new(ceiling) }
    }

    /// Recovery: this extent is owned.
    pub fn restore(&self, id: ExtentId) {
        self.words[id.slot as usize].store(u64::from(id.incarnation) << 32 | ALLOCATED | KEPT, Ordering::Relaxed);
    }

    /// The ceiling that the next durable group should carry.
    pub fn next_ceiling(&self) -> u32 {
        self.issued.load(Ordering::SeqCst).saturating_add(AHEAD)
    }

    /// The highest incarnation given out.
    pub fn issued(&self) -> u32 {
        self.issued.load(Ordering::SeqCst)
    }

    /// A ceiling became durable.
    pub fn raise_ceiling(&self, to: u32) {
        self.ceiling.fetch_max(to, Ordering::SeqCst);
    }

    /// Gives a free slot to a new owner. `None` when its incarnations are used up (until the ceiling rises).
    pub fn allocate(&self, slot: u32) -> Option<ExtentId> {
        let word = &self.words[slot as usize];
        let mut old = word.load(Ordering::SeqCst);
        loop {
            let next = incarnation(old).checked_add(1)?;
            if next > self.ceiling.load(Ordering::SeqCst) {
                return None;
            }
            debug_assert_eq!(old & FLAGS, 0, "slot {slot} has an owner");
            // Stale handles may be counting themselves in and out.
            let new = u64::from(next) << 32 | ALLOCATED | (old & ACCESSES);
            match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    self.issued.fetch_max(next, Ordering::SeqCst);
                    return Some(ExtentId { slot, incarnation: next });
                }
                Err(now) => old = now,
            }
        }
    }

    /// Counts an access in: to be ended, or leaked by dropping where the disk may still be at it.
    ///
    /// # Errors
    /// For a stale or unknown extent; a slot that comes with it is free now, for the allocator (it only waited for this
    /// look to end).
    #[inline]
    pub fn access(&self, id: ExtentId) -> Result<Access<'_>, Option<u32>> {
        let word = self.words.get(id.slot as usize).ok_or(None)?;
        let old = word.fetch_add(1, Ordering::SeqCst);
        let access = Access { slots: self, slot: id.slot };
        if incarnation(old) == id.incarnation && old & (ALLOCATED | DOOMED) == ALLOCATED {
            return Ok(access);
        }
        Err(access.end())
    }

    /// Counts an access out that was [kept](Access::keep). `Some` slot is free now, for the allocator.
    #[inline]
    #[must_use]
    pub fn end(&self, slot: u32) -> Option<u32> {
        let old = self.words[slot as usize].fetch_sub(1, Ordering::SeqCst);
        (old & FREED != 0 && self.try_release(slot)).then_some(slot)
    }

    /// True while the extent has this owner and no free was asked for.
    pub fn is_live(&self, id: ExtentId) -> bool {
        self.words.get(id.slot as usize).is_some_and(|w| {
            let w = w.load(Ordering::SeqCst);
            incarnation(w) == id.incarnation && w & (ALLOCATED | DOOMED) == ALLOCATED
        })
    }

    /// A free was asked for: no new access. False when the extent is not this owner's (any more).
    pub fn doom(&self, id: ExtentId) -> bool {
        self.update(id, |w| w | DOOMED)
    }

    /// A keep became durable.
    pub fn keep(&self, id: ExtentId) {
        self.update(id, |w| w | KEPT);
    }

    /// A free became durable. True when the slot is free now, for the allocator.
    #[must_use]
    pub fn freed(&self, id: ExtentId) -> bool {
        self.update(id, |w| (w | FREED) & !KEPT) && self.try_release(id.slot)
    }

    /// Kept extents from slot `from` on, ascending.
    pub fn kept(&self, from: u32) -> impl Iterator<Item = ExtentId> + '_ {
        self.words.iter().enumerate().skip(from as usize).filter_map(|(slot, w)| {
            let w = w.load(Ordering::SeqCst);
            (w & KEPT != 0).then(|| ExtentId { slot: slot as u32, incarnation: incarnation(w) })
        })
    }

    fn update(&self, id: ExtentId, f: impl Fn(u64) -> u64) -> bool {
        let Some(word) = self.words.get(id.slot as usize) else { return false };
        let change = |w: u64| (incarnation(w) == id.incarnation && w & ALLOCATED != 0).then(|| f(w));
        word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok()
    }

    /// Frees the slot if it waits for that and nobody is counted in; true for exactly one caller.
    fn try_release(&self, slot: u32) -> bool {
        let release = |w: u64| (w & FREED != 0 && w & ACCESSES == 0).then_some(w & !FLAGS);
        self.words[slot as usize].fetch_update(Ordering::SeqCst, Ordering::SeqCst, release).is_ok()
    }
}

/// An access that was counted in.
#[derive(Debug)]
pub struct Access<'a> {
    slots: &'a Slots,
    slot: u32,
}

impl Access<'_> {
    /// Counts it out. `Some` slot is free now, for the allocator.
    #[inline]
    #[must_use]
    pub fn end(self) -> Option<u32> {
        self.slots.end(self.slot)
    }

    /// Keeps it counted beyond this borrow: [`Slots::end`] counts the slot out, once.
    #[inline]
    #[must_use]
    pub fn keep(self) -> u32 {
        self.slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_waits_for_accesses_and_is_released_once() {
        let s = Slots::new(2, 10, 1000);
        let a = s.allocate(1).unwrap();
        assert_eq!(a, ExtentId { slot: 1, incarnation: 11 });
        s.keep(a);
        assert_eq!(s.kept(0).collect::<Vec<_>>(), [a]);
        let (one, two) = (s.access(a).unwrap(), s.access(a).unwrap());
        assert!(s.doom(a));
        assert!(matches!(s.access(a), Err(None)));
        assert!(!s.is_live(a));
        assert!(!s.freed(a));
        assert_eq!(s.kept(0).count(), 0);
        assert_eq!(one.end(), None);
        assert_eq!(two.end(), Some(1));
        assert!(!s.freed(a));
        let b = s.allocate(1).unwrap();
        assert_eq!(b.incarnation, 12);
        assert!(!s.doom(a) && s.access(a).is_err());
        assert!(s.doom(b) && s.freed(b));
    }

    #[test]
    fn a_leaked_access_keeps_the_slot_out_of_use() {
        let s = Slots::new(1, 0, 1000);
        let a = s.allocate(0).unwrap();
        let _leaked = s.access(a).unwrap();
        assert!(s.doom(a));
        assert!(!s.freed(a));
        assert!(matches!(s.access(a), Err(None)));
    }

    #[test]
    fn nothing_is_given_out_above_the_durable_ceiling() {
        let s = Slots::new(1, 4, 5);
        let a = s.allocate(0).unwrap();
        assert!(s.doom(a) && s.freed(a));
        assert_eq!(s.allocate(0), None);
        s.raise_ceiling(s.next_ceiling());
        assert_eq!(s.allocate(0).unwrap().incarnation, 6);
    }
}
