//! A volume's map: where each 4 KiB block is. Pure: no I/O, no locks.
//!
//! ```text
//! volume   |  1 MiB   |  1 MiB   |  1 MiB   |  1 MiB   |        16 bytes an entry in memory,
//! entries  |  Absent  |  Zero    |  Full x  | Partial  |        pages of 512 entries made when first used
//!               |          |         |          |
//!             below      zeros   extent x    per block: data in extent y | zero | below
//! ```
//! *Below* is the parent's map (a clone's image) and, without a parent or past its end, zeros.
//!
//! Promises: a block is read from an extent only where its data bit is set, and the owner sets that bit only after the
//! block's write completed; so old bytes of an extent's former owner never show. What is durable is the owner's affair
//! ([`crate::volume`]); the bytes of a stored entry are [`record`]'s.

pub mod record;

use std::sync::Arc;

use karri_bulk::{EXTENT_BYTES, ExtentId};

/// The unit of validity, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks of an extent.
pub const EXTENT_BLOCKS: usize = (EXTENT_BYTES / BLOCK_BYTES) as usize;
/// The largest volume, in bytes: 64 TiB, as gp3's.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

const PAGE: usize = 512;
const _: () = assert!(EXTENT_BLOCKS == 256);
const _: () = assert!(size_of::<Entry>() == 16);

/// One bit for each block of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bits(pub [u64; 4]);

impl Bits {
    /// No block.
    pub const EMPTY: Self = Self([0; 4]);
    /// Every block.
    pub const FULL: Self = Self([u64::MAX; 4]);

    /// The blocks `from..to`.
    pub fn range(from: usize, to: usize) -> Self {
        debug_assert!(from <= to && to <= EXTENT_BLOCKS);
        let mut bits = Self::EMPTY;
        for (i, word) in bits.0.iter_mut().enumerate() {
            let (lo, hi) = (from.max(i * 64), to.min(i * 64 + 64));
            if lo < hi {
                let n = hi - lo;
                let ones = if n == 64 { u64::MAX } else { (1 << n) - 1 };
                *word = ones << (lo % 64);
            }
        }
        bits
    }
    /// Whether the block is in.
    pub fn get(self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }
    /// Both.
    pub fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
    /// These without those.
    pub fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }
    /// Whether all of `other` is in.
    pub fn has_all(self, other: Self) -> bool {
        other.minus(self) == Self::EMPTY
    }
    /// How many.
    pub fn count(self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }
    /// The end of the run of equal bits that begins at `from`, at most `to`.
    pub fn run_end(self, from: usize, to: usize) -> usize {
        let want = self.get(from);
        let mut at = from;
        while at < to {
            // Bits that differ from `want`, moved so that `at` is bit 0.
            let word = if want { !self.0[at / 64] } else { self.0[at / 64] } >> (at % 64);
            if word != 0 {
                return to.min(at + word.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        to
    }
}

/// Where one extent's worth of a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Entry {
    /// Nothing of its own: below.
    #[default]
    Absent,
    /// Zeros, whatever is below.
    Zero,
    /// All blocks are in this extent.
    Full(ExtentId),
    /// Block by block.
    Partial(Box<Partial>),
}

/// An extent's blocks one by one. No block is both data and zero; one that is neither is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where the data blocks are, and where blocks under write will be.
    pub extent: Option<ExtentId>,
    /// Blocks whose bytes are in `extent`.
    pub data: Bits,
    /// Blocks that read as zeros.
    pub zero: Bits,
}

impl Partial {
    /// The simplest entry that says the same.
    pub fn settle(self) -> Entry {
        match self.extent {
            Some(extent) if self.data == Bits::FULL => Entry::Full(extent),
            None if self.zero == Bits::FULL => Entry::Zero,
            None if self.zero == Bits::EMPTY => Entry::Absent,
            _ => Entry::Partial(Box::new(self)),
        }
    }
}

impl Entry {
    /// The entry block by block.
    pub fn parts(&self) -> Partial {
        match self {
            Self::Absent => Partial { extent: None, data: Bits::EMPTY, zero: Bits::EMPTY },
            Self::Zero => Partial { extent: None, data: Bits::EMPTY, zero: Bits::FULL },
            Self::Full(x) => Partial { extent: Some(*x), data: Bits::FULL, zero: Bits::EMPTY },
            Self::Partial(p) => **p,
        }
    }
    /// Its extent, if it has one.
    pub fn extent(&self) -> Option<ExtentId> {
        match self {
            Self::Absent | Self::Zero => None,
            Self::Full(x) => Some(*x),
            Self::Partial(p) => p.extent,
        }
    }
}

/// Where a piece of a read comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing was ever written there, or zeros were.
    Zero,
    /// Bytes of an extent, from this offset.
    Extent(ExtentId, u64),
}

/// A piece of a read: so many bytes from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes.
    pub len: u64,
    /// Where from.
    pub source: Source,
}

/// The entries of one volume.
#[derive(Debug, Clone)]
pub struct Map {
    bytes: u64,
    pages: Vec<Option<Box<[Entry; PAGE]>>>,
}

impl Map {
    /// The map of an empty volume of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let pages = bytes.div_ceil(EXTENT_BYTES * PAGE as u64) as usize;
        Self { bytes, pages: (0..pages).map(|_| None).collect() }
    }

    /// The volume's size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many entries the volume has.
    pub fn extents(&self) -> u32 {
        self.bytes.div_ceil(EXTENT_BYTES) as u32
    }

    /// Entry `index`; past the end `Absent`.
    pub fn get(&self, index: u32) -> &Entry {
        const ABSENT: &Entry = &Entry::Absent;
        let (page, at) = (index as usize / PAGE, index as usize % PAGE);
        match self.pages.get(page) {
            Some(Some(page)) => &page[at],
            _ => ABSENT,
        }
    }

    /// Replaces entry `index`.
    ///
    /// # Panics
    /// Past the end.
    pub fn set(&mut self, index: u32, entry: Entry) {
        let (page, at) = (index as usize / PAGE, index as usize % PAGE);
        let page = &mut self.pages[page];
        if page.is_none() && entry == Entry::Absent {
            return;
        }
        page.get_or_insert_with(|| Box::new(std::array::from_fn(|_| Entry::Absent)))[at] = entry;
    }

    /// All entries that are not `Absent`, ascending.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.pages.iter().enumerate().filter_map(|(n, page)| Some((n, page.as_ref()?))).flat_map(|(n, page)| {
            let base = n * PAGE;
            page.iter().enumerate().filter(|(_, e)| **e != Entry::Absent).map(move |(i, e)| ((base + i) as u32, e))
        })
    }

    /// The next index from `index` on (and below `end`) whose page exists: large empty ranges are passed at 512 a step.
    pub fn next_present(&self, index: u32, end: u32) -> Option<u32> {
        let mut at = index;
        while at < end {
            match self.pages.get(at as usize / PAGE) {
                Some(Some(_)) => return Some(at),
                Some(None) => at = ((at as usize / PAGE + 1) * PAGE) as u32,
                None => return None,
            }
        }
        None
    }

    /// Bytes of the extents that this map owns.
    pub fn allocated_bytes(&self) -> u64 {
        self.entries().filter(|(_, e)| e.extent().is_some()).count() as u64 * EXTENT_BYTES
    }
}

/// Where the bytes `at..at + len` of `map` are, pieces in order appended to `out`. `below` is its parent's map, the
/// parent's parent's, and so on. Neighbouring zeros become one piece.
pub fn plan(map: &Map, below: &[Arc<Map>], mut at: u64, len: u64, out: &mut Vec<Piece>) {
    let end = at + len;
    let inside = end.min(map.bytes.max(at));
    while at < inside {
        let index = (at / EXTENT_BYTES) as u32;
        let start = u64::from(index) * EXTENT_BYTES;
        let upto = inside.min(start + EXTENT_BYTES);
        match map.get(index) {
            Entry::Absent => plan_below(below, at, upto - at, out),
            Entry::Zero => push(out, upto - at, Source::Zero),
            Entry::Full(x) => push(out, upto - at, Source::Extent(*x, at - start)),
            Entry::Partial(p) => plan_partial(p, below, start, at, upto, out),
        }
        at = upto;
    }
    push(out, end - at, Source::Zero);
}

fn plan_below(below: &[Arc<Map>], at: u64, len: u64, out: &mut Vec<Piece>) {
    match below.split_first() {
        Some((parent, rest)) => plan(parent, rest, at, len, out),
        None => push(out, len, Source::Zero),
    }
}

fn plan_partial(p: &Partial, below: &[Arc<Map>], start: u64, mut at: u64, upto: u64, out: &mut Vec<Piece>) {
    while at < upto {
        let block = ((at - start) / BLOCK_BYTES) as usize;
        let last = (upto - start).div_ceil(BLOCK_BYTES) as usize;
        let run = p.data.run_end(block, last).min(p.zero.run_end(block, last));
        let run_end = upto.min(start + run as u64 * BLOCK_BYTES);
        match p.extent {
            Some(x) if p.data.get(block) => push(out, run_end - at, Source::Extent(x, at - start)),
            _ if p.zero.get(block) => push(out, run_end - at, Source::Zero),
            _ => plan_below(below, at, run_end - at, out),
        }
        at = run_end;
    }
}

fn push(out: &mut Vec<Piece>, len: u64, source: Source) {
    if len == 0 {
        return;
    }
    if let Some(last) = out.last_mut() {
        let joins = match (last.source, source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Extent(a, from), Source::Extent(b, to)) => a == b && from + last.len == to,
            _ => false,
        };
        if joins {
            last.len += len;
            return;
        }
    }
    out.push(Piece { len, source });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x(slot: u32) -> ExtentId {
        ExtentId { slot, incarnation: 1 }
    }

    #[test]
    fn bits_agree_with_a_naive_set() {
        for (from, to) in [(0, 0), (0, 1), (3, 70), (63, 64), (64, 128), (5, 256), (0, 256), (200, 201)] {
            let bits = Bits::range(from, to);
            assert!((0..256).all(|b| bits.get(b) == (from..to).contains(&b)), "{from}..{to}");
            assert_eq!(bits.count() as usize, to - from);
            for at in 0..256 {
                let naive = (at..256).find(|&b| bits.get(b) != bits.get(at)).unwrap_or(256);
                assert_eq!(bits.run_end(at, 256), naive, "{from}..{to} at {at}");
                assert_eq!(bits.run_end(at, (at + 1).max(100)), naive.min((at + 1).max(100)));
            }
        }
    }

    fn planned((map, below): &(Map, [Arc<Map>; 1]), at: u64, len: u64) -> Vec<(u64, Source)> {
        let mut out = Vec::new();
        plan(map, below, at, len, &mut out);
        assert_eq!(out.iter().map(|p| p.len).sum::<u64>(), len);
        out.into_iter().map(|p| (p.len, p.source)).collect()
    }

    #[test]
    fn reads_fall_through_to_the_parent_and_end_in_zeros() {
        const M: u64 = EXTENT_BYTES;
        let mut base = Map::new(3 * M + 8192);
        base.set(0, Entry::Full(x(10)));
        base.set(1, Entry::Full(x(11)));
        base.set(2, Entry::Full(x(12)));
        base.set(3, Entry::Full(x(13)));
        let mut clone = Map::new(8 * M);
        clone.set(1, Entry::Zero);
        let partial = Partial { extent: Some(x(2)), data: Bits::range(1, 3), zero: Bits::range(4, 5) };
        clone.set(2, partial.settle());
        let chain = (clone, [Arc::new(base)]);
        assert_eq!(planned(&chain, 4096, 512), [(512, Source::Extent(x(10), 4096))]);
        assert_eq!(planned(&chain, M - 512, 1024), [(512, Source::Extent(x(10), M - 512)), (512, Source::Zero)]);
        assert_eq!(
            planned(&chain, 2 * M + 512, 6 * 4096),
            [
                (3584, Source::Extent(x(12), 512)),
                (8192, Source::Extent(x(2), 4096)),
                (4096, Source::Extent(x(12), 3 * 4096)),
                (4096, Source::Zero),
                (4096 + 512, Source::Extent(x(12), 5 * 4096)),
            ]
        );
        // The parent ends inside its last extent: what follows is zero, though the extent goes on.
        assert_eq!(planned(&chain, 3 * M, M), [(8192, Source::Extent(x(13), 0)), (M - 8192, Source::Zero)]);
        assert_eq!(planned(&chain, 5 * M, 3 * M), [(3 * M, Source::Zero)]);
    }

    #[test]
    fn partials_settle_to_the_simplest_entry() {
        let p = |extent, data, zero| Partial { extent, data, zero }.settle();
        assert_eq!(p(None, Bits::EMPTY, Bits::EMPTY), Entry::Absent);
        assert_eq!(p(None, Bits::EMPTY, Bits::FULL), Entry::Zero);
        assert_eq!(p(Some(x(1)), Bits::FULL, Bits::EMPTY), Entry::Full(x(1)));
        assert!(matches!(p(Some(x(1)), Bits::range(0, 9), Bits::EMPTY), Entry::Partial(_)));
        for e in [Entry::Absent, Entry::Zero, Entry::Full(x(3)), p(Some(x(1)), Bits::range(0, 9), Bits::EMPTY)] {
            assert_eq!(e.parts().settle(), e);
        }
    }
}
