//! MD5 (RFC 1321) of several streams at once: up to sixteen of them go through the rounds in the lanes of SIMD registers.
//!
//! MD5 is one long chain of dependent additions, so a core that hashes one stream mostly waits for itself; streams in
//! lanes cost little more than one. The kernel is compiled for each kind of vector that a CPU may have (SSE2, AVX2,
//! AVX-512 on x86-64), and the best is taken at run time; AVX-512 also has the rotation and the three-way functions that
//! MD5 is made of. Up to eight streams go through vectors half as wide. One stream alone is left to the crate `md-5`,
//! which is also what the tests compare with.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u32x8, u32x16};
use md5::block_api::compress;

/// Streams that go through the rounds together.
pub const LANES: usize = 16;

const BLOCK: usize = 64;

/// MD5 of a stream of bytes.
#[derive(Clone)]
pub struct Md5 {
    state: [u32; 4],
    len: u64,
    /// The bytes of the block that is not full: `len % 64`.
    tail: [u8; BLOCK],
}

impl Default for Md5 {
    fn default() -> Self {
        // RFC 1321, section 3.3.
        Self { state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476], len: 0, tail: [0; BLOCK] }
    }
}

impl Md5 {
    /// The next bytes.
    pub fn update(&mut self, data: &[u8]) {
        let (blocks, rest) = self.whole_blocks(data);
        compress(&mut self.state, blocks);
        self.keep(rest);
    }

    /// The next bytes of several streams, each stream once: up to [`LANES`] of them for little more than the price of one.
    pub fn update_all(streams: &mut [(&mut Self, &[u8])]) {
        for some in streams.chunks_mut(LANES) {
            let mut lanes: Vec<Lane<'_>> = Vec::with_capacity(some.len());
            for (md5, data) in some.iter_mut() {
                let (blocks, rest) = md5.whole_blocks(data);
                md5.keep(rest);
                lanes.push((&mut md5.state, blocks));
            }
            while lanes.len() > 1 {
                let together = lanes.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
                advance(&mut lanes, together);
                lanes.iter_mut().for_each(|(_, blocks)| *blocks = &blocks[together..]);
                lanes.retain(|(_, blocks)| !blocks.is_empty());
            }
            for (state, blocks) in lanes {
                compress(state, blocks);
            }
        }
    }

    /// The digest.
    pub fn finish(mut self) -> [u8; 16] {
        // Section 3.1 and 3.2: a one bit, zeros, and the length in bits.
        let bits = self.len.wrapping_mul(8);
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        let room = BLOCK - self.tail_len();
        let zeros = if room > 8 { room - 8 } else { room + BLOCK - 8 };
        padding[zeros..zeros + 8].copy_from_slice(&bits.to_le_bytes());
        self.update(&padding[..zeros + 8]);
        let mut digest = [0; 16];
        for (out, word) in digest.chunks_exact_mut(4).zip(self.state) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    fn tail_len(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Fills the block that is not full, counts `data`, and answers its whole blocks and what is left after them.
    fn whole_blocks<'a>(&mut self, data: &'a [u8]) -> (&'a [[u8; BLOCK]], &'a [u8]) {
        let have = self.tail_len();
        self.len += data.len() as u64;
        if have == 0 {
            return data.as_chunks();
        }
        let (first, data) = data.split_at(data.len().min(BLOCK - have));
        self.tail[have..have + first.len()].copy_from_slice(first);
        if have + first.len() < BLOCK {
            return (&[], &[]);
        }
        compress(&mut self.state, &[self.tail]);
        data.as_chunks()
    }

    /// Keeps what no block was full of; nothing where the bytes lie in the tail already.
    fn keep(&mut self, rest: &[u8]) {
        self.tail[..rest.len()].copy_from_slice(rest);
    }
}

/// A stream's state and its blocks.
type Lane<'a> = (&'a mut [u32; 4], &'a [[u8; BLOCK]]);

/// Takes two to [`LANES`] streams through `count` blocks each.
fn advance(lanes: &mut [Lane<'_>], count: usize) {
    if lanes.len() <= LANES / 2 {
        dispatch!(Level::new(), simd => go::<_, u32x8<_>, { LANES / 2 }>(simd, lanes, count));
    } else {
        dispatch!(Level::new(), simd => go::<_, u32x16<_>, LANES>(simd, lanes, count));
    }
}

/// [`advance`] with vectors of `N` lanes. What it calls is inlined always, to be compiled for the vectors that were found.
#[inline(always)]
fn go<S: Simd, V: SimdInt<S, Element = u32>, const N: usize>(simd: S, lanes: &mut [Lane<'_>], count: usize) {
    // Lanes without a stream do another's work once more.
    let of = |lane: usize| lane % lanes.len();
    let blocks: [&[[u8; BLOCK]]; N] = std::array::from_fn(|lane| &lanes[of(lane)].1[..count]);
    let mut state: [V; 4] = std::array::from_fn(|word| V::from_fn(simd, |lane| lanes[of(lane)].0[word]));
    for i in 0..count {
        let block = words::<S, V, N>(simd, &blocks, i);
        rounds(simd, &mut state, &block);
    }
    for (word, values) in state.into_iter().enumerate() {
        for ((state, _), value) in lanes.iter_mut().zip(values.as_slice()) {
            state[word] = *value;
        }
    }
}

/// The sixteen words of block `i`, each a vector of all lanes.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "iterators would not be inlined always")]
fn words<S: Simd, V: SimdInt<S, Element = u32>, const N: usize>(
    simd: S,
    blocks: &[&[[u8; BLOCK]]; N],
    i: usize,
) -> [V; 16] {
    // As they lie: a vector holds words of one lane, all 16 or half of them.
    let mut rows = [V::splat(simd, 0); 16];
    for row in 0..16 {
        let (bytes, _) = blocks[row % N][i].as_chunks::<4>();
        let mut words = [0; 16];
        for word in 0..16 {
            words[word] = u32::from_le_bytes(bytes[word]);
        }
        let from = row / N * N;
        rows[row] = V::from_slice(simd, &words[from..from + N]);
    }
    // Transposed: the first half of the rows interleaved with the second, as often as N can be halved.
    for from in (0..16).step_by(N) {
        let mut n = N;
        while n > 1 {
            let before = rows;
            for row in 0..N / 2 {
                let (one, two) = (before[from + row], before[from + row + N / 2]);
                rows[from + 2 * row] = one.zip_low(two);
                rows[from + 2 * row + 1] = one.zip_high(two);
            }
            n /= 2;
        }
    }
    rows
}

/// Section 3.4: one block of every lane.
#[inline(always)]
fn rounds<S: Simd, V: SimdInt<S, Element = u32>>(simd: S, state: &mut [V; 4], block: &[V; 16]) {
    let [mut a, mut b, mut c, mut d] = *state;
    macro_rules! step {
        ($f:expr, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $turn:literal, $by:literal) => {
            let sum = $a + $f($b, $c, $d) + block[$word] + V::splat(simd, SINES[$turn]);
            $a = ((sum << $by) | (sum >> (32 - $by))) + $b;
        };
    }
    macro_rules! four {
        ($f:expr, [$($word:literal)*], $turn:literal $t1:literal $t2:literal $t3:literal, $s0:literal $s1:literal $s2:literal $s3:literal) => {
            let words = [$($word),*];
            step!($f, a, b, c, d, words[0], $turn, $s0);
            step!($f, d, a, b, c, words[1], $t1, $s1);
            step!($f, c, d, a, b, words[2], $t2, $s2);
            step!($f, b, c, d, a, words[3], $t3, $s3);
        };
    }
    let f = |x: V, y: V, z: V| z ^ (x & (y ^ z));
    four!(f, [0 1 2 3], 0 1 2 3, 7 12 17 22);
    four!(f, [4 5 6 7], 4 5 6 7, 7 12 17 22);
    four!(f, [8 9 10 11], 8 9 10 11, 7 12 17 22);
    four!(f, [12 13 14 15], 12 13 14 15, 7 12 17 22);
    let g = |x: V, y: V, z: V| y ^ (z & (x ^ y));
    four!(g, [1 6 11 0], 16 17 18 19, 5 9 14 20);
    four!(g, [5 10 15 4], 20 21 22 23, 5 9 14 20);
    four!(g, [9 14 3 8], 24 25 26 27, 5 9 14 20);
    four!(g, [13 2 7 12], 28 29 30 31, 5 9 14 20);
    let h = |x: V, y: V, z: V| x ^ y ^ z;
    four!(h, [5 8 11 14], 32 33 34 35, 4 11 16 23);
    four!(h, [1 4 7 10], 36 37 38 39, 4 11 16 23);
    four!(h, [13 0 3 6], 40 41 42 43, 4 11 16 23);
    four!(h, [9 12 15 2], 44 45 46 47, 4 11 16 23);
    let i = |x: V, y: V, z: V| y ^ (x | !z);
    four!(i, [0 7 14 5], 48 49 50 51, 6 10 15 21);
    four!(i, [12 3 10 1], 52 53 54 55, 6 10 15 21);
    four!(i, [8 15 6 13], 56 57 58 59, 6 10 15 21);
    four!(i, [4 11 2 9], 60 61 62 63, 6 10 15 21);
    for (word, new) in state.iter_mut().zip([a, b, c, d]) {
        *word += new;
    }
}

/// The whole part of 2^32 times |sin(i + 1)|, i in radians (section 3.4).
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

#[cfg(test)]
mod tests {
    use md5::Digest as _;
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    fn known(data: &[u8]) -> [u8; 16] {
        md5::Md5::digest(data).into()
    }

    #[test]
    fn the_sines_are_what_the_rfc_says() {
        for (i, &sine) in SINES.iter().enumerate() {
            assert_eq!(sine, ((i as f64 + 1.0).sin().abs() * 4_294_967_296.0) as u32, "{i}");
        }
    }

    #[test]
    fn one_stream_of_any_length_in_any_pieces() {
        let data: Vec<u8> = (0..400u32).map(|i| (i * 7 % 251) as u8).collect();
        for len in 0..=260 {
            for cut in [0, 1, 3, 55, 56, 63, 64, 65, 128, len] {
                let (mut md5, cut) = (Md5::default(), cut.min(len));
                md5.update(&data[..cut]);
                md5.update(&data[cut..len]);
                assert_eq!(md5.finish(), known(&data[..len]), "{len} bytes cut at {cut}");
            }
        }
    }

    #[test]
    fn many_streams_in_lanes_are_each_themselves() {
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..200 {
            let streams = rng.random_range(1..=LANES + 3);
            let mut hashers = vec![Md5::default(); streams];
            let mut whole = vec![Vec::new(); streams];
            for _ in 0..rng.random_range(1..5) {
                let most = *[0, 1, 70, 300, 5000].get(rng.random_range(0..5)).unwrap_or(&0);
                let pieces: Vec<Vec<u8>> = (0..streams)
                    .map(|_| {
                        let mut piece = vec![0; rng.random_range(0..=most)];
                        rng.fill_bytes(&mut piece);
                        piece
                    })
                    .collect();
                for (whole, piece) in whole.iter_mut().zip(&pieces) {
                    whole.extend_from_slice(piece);
                }
                let mut pairs: Vec<_> = hashers.iter_mut().zip(pieces.iter().map(Vec::as_slice)).collect();
                Md5::update_all(&mut pairs);
            }
            for (stream, (md5, whole)) in hashers.into_iter().zip(&whole).enumerate() {
                assert_eq!(md5.finish(), known(whole), "round {round}, stream {stream} of {streams}");
            }
        }
    }
}
