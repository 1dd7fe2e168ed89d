//! MD5 of so many streams at once beside the crate `md-5`, which hashes one after the other, in turn:
//! `cargo run --release -p karri-objectstore --example md5_lanes`. Medians of rounds, and their ratio.

use std::time::{Duration, Instant};

use karri_objectstore::md5_lanes::{LANES, Md5};
use md5::Digest;

/// Of each stream, as much as a buffer on its way in.
const PIECE: usize = 256 << 10;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(300);

fn main() {
    let data: Vec<Vec<u8>> = (0..LANES).map(|n| (0..PIECE).map(|at| (at * 31 + n) as u8).collect()).collect();
    println!("streams   ours GB/s   md-5 GB/s   ratio");
    for streams in [1, 2, 4, 8, LANES] {
        let data = &data[..streams];
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let mut states = vec![Md5::default(); streams];
            ours.push(rate(streams, || {
                let mut turn: Vec<_> = states.iter_mut().zip(data).map(|(state, piece)| (state, &piece[..])).collect();
                Md5::update_all(&mut turn);
            }));
            let mut states = vec![md5::Md5::new(); streams];
            theirs.push(rate(streams, || states.iter_mut().zip(data).for_each(|(state, piece)| state.update(piece))));
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        println!("{streams:>7}   {ours:>9.2}   {theirs:>9.2}   {:>5.2}", ours / theirs);
    }
}

/// GB/s of `turn`, which hashes a piece of each stream.
fn rate(streams: usize, mut turn: impl FnMut()) -> f64 {
    let (began, mut turns) = (Instant::now(), 0);
    while began.elapsed() < ROUND {
        turn();
        turns += 1;
    }
    (turns * streams * PIECE) as f64 / began.elapsed().as_secs_f64() / 1e9
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
