//! Which units are free. Pure: no I/O, no locks.
//!
//! A blob takes whole slots where it can and its tail (less than a slot) from the fullest slot that has room for it in
//! one piece, so that whole slots stay free for extents and large blobs. Extents come from the far end, blobs from the
//! near one. Only when no whole slot is left, a blob is put together from pieces. Nothing is stored: recovery marks what
//! the live records name, and finds two that claim the same unit.

use std::collections::BTreeSet;

use super::format::SLOT_UNITS;
use super::record::Run;

const WORDS: usize = (SLOT_UNITS / 64) as usize;
const _: () = assert!(SLOT_UNITS.is_multiple_of(64));

/// The allocator of one store.
#[derive(Debug)]
pub struct Space {
    slots: u32,
    /// A bit a unit, 1 is taken.
    taken: Vec<u64>,
    /// A bit a slot, 1 is wholly free.
    free_slots: Vec<u64>,
    free_slot_count: u32,
    /// Slots with both free and taken units: longest free piece and slot.
    partial: BTreeSet<(u32, u32)>,
    used: u64,
    /// Where the search for whole slots goes on.
    cursor: u32,
}

impl Space {
    /// Everything free.
    pub fn new(slots: u32) -> Self {
        let mut free_slots = vec![u64::MAX; (slots as usize).div_ceil(64)];
        if let Some(last) = free_slots.last_mut()
            && !slots.is_multiple_of(64)
        {
            *last = (1 << (slots % 64)) - 1;
        }
        Self {
            slots,
            taken: vec![0; slots as usize * WORDS],
            free_slots,
            free_slot_count: slots,
            partial: BTreeSet::new(),
            used: 0,
            cursor: 0,
        }
    }

    /// Units taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// All units.
    pub fn total(&self) -> u64 {
        u64::from(self.slots) * u64::from(SLOT_UNITS)
    }

    /// Takes `units` in at most `runs_max` pieces, in no particular order; `None` (and nothing taken) when there are
    /// not that many, or only in more pieces.
    pub fn alloc(&mut self, units: u64, runs_max: usize) -> Option<Vec<Run>> {
        if units > self.total() - self.used {
            return None;
        }
        let mut runs = Vec::new();
        if self.gather(units, runs_max, &mut runs).is_some() {
            return Some(runs);
        }
        runs.into_iter().for_each(|run| self.free(run));
        None
    }

    fn gather(&mut self, units: u64, runs_max: usize, runs: &mut Vec<Run>) -> Option<()> {
        let whole = units / u64::from(SLOT_UNITS);
        let tail = (units % u64::from(SLOT_UNITS)) as u32;
        let tail_fits = tail > 0 && self.partial.range((tail, 0)..).next().is_some();
        // A tail that no used slot has room for goes behind the whole slots, in one piece with them.
        let joined = whole + u64::from(tail > 0 && !tail_fits);
        let mut left = units;
        let mut slots_left = joined;
        while slots_left > 0 {
            let Some((slot, count)) = self.free_span(slots_left.min(u32::MAX.into()) as u32) else { break };
            let span_units = u64::from(count) * u64::from(SLOT_UNITS);
            let take = if tail_fits { span_units.min(left - u64::from(tail)) } else { span_units.min(left) };
            for run in pieces(u64::from(slot) * u64::from(SLOT_UNITS), take) {
                self.take(run, runs);
            }
            slots_left -= u64::from(count);
            left -= take;
        }
        while left > 0 {
            // Best fit in one piece, else the longest piece there is.
            let wanted = left.min(u64::from(SLOT_UNITS)) as u32;
            let best = self.partial.range((wanted, 0)..).next().or_else(|| self.partial.last());
            let (longest, slot) = *best?;
            let (start, _) = self.longest_free(slot);
            let units = longest.min(wanted);
            self.take(Run { start, units }, runs);
            left -= u64::from(units);
            if runs.len() > runs_max {
                return None;
            }
        }
        (runs.len() <= runs_max).then_some(())
    }

    /// A whole slot, from the far end.
    pub fn alloc_slot(&mut self) -> Option<u32> {
        let word = self.free_slots.iter().rposition(|w| *w != 0)?;
        let slot = word as u32 * 64 + 63 - self.free_slots[word].leading_zeros();
        self.set(Run { start: u64::from(slot) * u64::from(SLOT_UNITS), units: SLOT_UNITS }, true);
        Some(slot)
    }

    /// Gives a whole slot back.
    pub fn free_slot(&mut self, slot: u32) {
        self.free(Run { start: u64::from(slot) * u64::from(SLOT_UNITS), units: SLOT_UNITS });
    }

    /// Gives units back.
    pub fn free(&mut self, run: Run) {
        self.set(run, false);
    }

    /// Marks units as taken. False when they are outside the store or any is taken already (nothing is changed then).
    pub fn mark(&mut self, run: Run) -> bool {
        let end = run.start.checked_add(run.units.into());
        if end.is_none_or(|end| end > self.total()) || run.units == 0 {
            return false;
        }
        if masks(run).any(|(word, mask)| self.taken[word] & mask != 0) {
            return false;
        }
        self.set(run, true);
        true
    }

    fn take(&mut self, run: Run, runs: &mut Vec<Run>) {
        self.set(run, true);
        match runs.last_mut() {
            Some(last)
                if last.start + u64::from(last.units) == run.start && last.units.checked_add(run.units).is_some() =>
            {
                last.units += run.units;
            }
            _ => runs.push(run),
        }
    }

    /// Up to `want` free slots in a row: the first span that is long enough, from the cursor on; else the longest seen.
    fn free_span(&mut self, want: u32) -> Option<(u32, u32)> {
        if self.free_slot_count == 0 {
            return None;
        }
        let mut best = (0, 0);
        for (from, to) in [(self.cursor, self.slots), (0, self.cursor)] {
            let mut slot = from;
            while slot < to {
                let word = self.free_slots[slot as usize / 64] >> (slot % 64);
                if word == 0 {
                    slot = (slot / 64 + 1) * 64;
                    continue;
                }
                slot += word.trailing_zeros();
                let start = slot;
                while slot < self.slots && slot - start < want && self.slot_is_free(slot) {
                    slot += 1;
                }
                if slot - start > best.1 {
                    best = (start, slot - start);
                }
                if best.1 == want {
                    self.cursor = if slot < self.slots { slot } else { 0 };
                    return Some(best);
                }
            }
        }
        (best.1 > 0).then_some(best)
    }

    fn slot_is_free(&self, slot: u32) -> bool {
        self.free_slots[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    fn words(&self, slot: u32) -> &[u64] {
        &self.taken[slot as usize * WORDS..][..WORDS]
    }

    /// The slot's longest free piece: its first unit (counted in the store) and length.
    fn longest_free(&self, slot: u32) -> (u64, u32) {
        let words = self.words(slot);
        let (mut best, mut start, mut at) = ((0, 0), 0, 0);
        while at < SLOT_UNITS {
            let word = words[at as usize / 64] >> (at % 64);
            let left = 64 - at % 64;
            if word & 1 == 0 {
                at += word.trailing_zeros().min(left);
                if at - start > best.1 {
                    best = (start, at - start);
                }
            } else {
                at += word.trailing_ones().min(left);
                start = at;
            }
        }
        (u64::from(slot) * u64::from(SLOT_UNITS) + u64::from(best.0), best.1)
    }

    fn set(&mut self, run: Run, to: bool) {
        let end = run.start + u64::from(run.units);
        let per_slot = u64::from(SLOT_UNITS);
        let slots = (run.start / per_slot) as u32..end.div_ceil(per_slot) as u32;
        slots.clone().for_each(|slot| self.forget(slot));
        for (word, mask) in masks(run) {
            let bits = &mut self.taken[word];
            if to {
                assert_eq!(*bits & mask, 0, "units of {run:?} are taken twice");
                *bits |= mask;
                self.used += u64::from(mask.count_ones());
            } else {
                assert_eq!(*bits & mask, mask, "units of {run:?} are freed twice");
                *bits &= !mask;
                self.used -= u64::from(mask.count_ones());
            }
        }
        slots.for_each(|slot| self.learn(slot));
    }

    /// Takes the slot out of the lists before its bits change.
    fn forget(&mut self, slot: u32) {
        if self.slot_is_free(slot) {
            self.free_slots[slot as usize / 64] &= !(1 << (slot % 64));
            self.free_slot_count -= 1;
        } else {
            self.partial.remove(&(self.longest_free(slot).1, slot));
        }
    }

    /// Puts it back after.
    fn learn(&mut self, slot: u32) {
        let longest = self.longest_free(slot).1;
        if longest == SLOT_UNITS {
            self.free_slots[slot as usize / 64] |= 1 << (slot % 64);
            self.free_slot_count += 1;
        } else if longest > 0 {
            self.partial.insert((longest, slot));
        }
    }
}

/// The words of a run's bits, and which bits of each.
fn masks(run: Run) -> impl Iterator<Item = (usize, u64)> {
    let end = run.start + u64::from(run.units);
    (run.start / 64..end.div_ceil(64)).map(move |word| {
        let (from, to) = (run.start.max(word * 64), end.min(word * 64 + 64));
        let ones = u64::MAX >> (64 - (to - from));
        (word as usize, ones << (from % 64))
    })
}

/// Runs whose length fits `u32`.
fn pieces(start: u64, units: u64) -> impl Iterator<Item = Run> {
    let longest = u64::from(u32::MAX - u32::MAX % SLOT_UNITS);
    (0..units.div_ceil(longest)).map(move |n| {
        let start = start + n * longest;
        Run { start, units: (units - n * longest).min(longest) as u32 }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_and_runs_share_the_store() {
        let mut s = Space::new(4);
        assert_eq!(s.alloc_slot(), Some(3));
        let big = s.alloc(256 + 10, 8).unwrap();
        assert_eq!(big, [Run { start: 0, units: 266 }]);
        // Small ones fill the begun slot.
        assert_eq!(s.alloc(5, 8).unwrap(), [Run { start: 266, units: 5 }]);
        assert_eq!(s.alloc_slot(), Some(2));
        assert_eq!(s.alloc_slot(), None);
        assert_eq!(s.alloc(242, 8), None);
        s.free_slot(3);
        assert_eq!(s.alloc(242, 8).unwrap(), [Run { start: 768, units: 242 }]);
        assert_eq!(s.used(), 256 + 266 + 5 + 242);
    }

    #[test]
    fn pieces_are_gathered_when_nothing_whole_is_left_and_within_the_bound() {
        let mut s = Space::new(2);
        let all: Vec<_> = (0..512).map(|_| s.alloc(1, 1).unwrap()[0]).collect();
        assert_eq!(s.used(), 512);
        for run in all.iter().filter(|r| r.start % 2 == 0) {
            s.free(*run);
        }
        assert_eq!(s.alloc(10, 9), None);
        assert_eq!(s.used(), 256);
        assert_eq!(s.alloc(10, 10).unwrap().len(), 10);
        assert_eq!(s.alloc_slot(), None);
        assert_eq!(s.alloc(247, 1000), None);
        assert_eq!(s.alloc(246, 1000).unwrap().len(), 246);
    }

    #[test]
    fn marking_finds_overlaps_and_strays() {
        let mut s = Space::new(2);
        assert!(s.mark(Run { start: 10, units: 300 }));
        assert!(!s.mark(Run { start: 309, units: 1 }));
        assert!(!s.mark(Run { start: 500, units: 13 }));
        assert!(!s.mark(Run { start: u64::MAX, units: 13 }));
        assert!(!s.mark(Run { start: 0, units: 0 }));
        assert!(s.mark(Run { start: 500, units: 12 }));
        assert_eq!(s.used(), 312);
        assert_eq!(s.alloc(10, 1).unwrap(), [Run { start: 0, units: 10 }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_sequence_keeps_the_books(ops in proptest::collection::vec((0u8..4, 1u64..700), 1..200)) {
            let mut s = Space::new(9);
            let mut held: Vec<Vec<Run>> = Vec::new();
            for (op, n) in ops {
                match op {
                    0 | 1 => held.extend(s.alloc(n, 50)),
                    2 => {
                        let slot = s.alloc_slot();
                        held.extend(slot.map(|s| vec![Run { start: u64::from(s) * 256, units: 256 }]));
                    }
                    _ if held.is_empty() => {}
                    _ => {
                        let freed = held.swap_remove(n as usize % held.len());
                        freed.into_iter().for_each(|run| s.free(run));
                    }
                }
                let mut again = Space::new(9);
                for run in held.iter().flatten() {
                    prop_assert!(again.mark(*run), "{run:?} overlaps");
                }
                prop_assert_eq!(again.used(), s.used());
                prop_assert_eq!(&again.taken, &s.taken);
                prop_assert_eq!(&again.partial, &s.partial);
                prop_assert_eq!(&again.free_slots, &s.free_slots);
                prop_assert_eq!(again.free_slot_count, s.free_slot_count);
            }
            held.into_iter().flatten().for_each(|run| s.free(run));
            prop_assert_eq!(s.used(), 0);
            prop_assert_eq!(s.alloc(9 * 256, 1).map(|r| r.len()), Some(1));
        }
    }
}
