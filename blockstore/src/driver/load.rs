//! A load on a [`Driver`]: so many requests in flight for so long, and what came of it.

use std::io;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Driver, T_FLUSH, T_IN, T_OUT};

/// What to do.
#[derive(Debug, Clone)]
pub struct Load {
    /// `T_IN` or `T_OUT`.
    pub kind: u32,
    /// Bytes of each request.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u16,
    /// At random, or one after the other.
    pub random: bool,
    /// How long.
    pub time: Duration,
    /// Only this much of the volume, from its start.
    pub span: u64,
    /// A flush after so many requests; 0: none.
    pub flush_every: u64,
    /// Where the random offsets begin.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Completed requests, flushes not counted.
    pub requests: u64,
    /// Failed ones.
    pub errors: u64,
    /// Kicks that the device asked for.
    pub kicks: u64,
    /// Times that the driver slept.
    pub waits: u64,
    /// How long it took.
    pub time: Duration,
    /// Latencies of the requests in nanoseconds, ascending.
    pub latencies_ns: Vec<u64>,
}

impl Outcome {
    /// Requests a second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }
    /// The latency that `part` of the requests stay under, in microseconds.
    pub fn latency_us(&self, part: f64) -> f64 {
        let at = ((self.latencies_ns.len() as f64 * part) as usize).min(self.latencies_ns.len().saturating_sub(1));
        self.latencies_ns.get(at).copied().unwrap_or(0) as f64 / 1000.0
    }
}

/// Runs a load on queue 0.
///
/// # Errors
/// When nothing completes for ten seconds.
pub fn run(driver: &mut Driver, load: &Load) -> io::Result<Outcome> {
    let bytes = u64::from(load.bytes);
    let blocks = load.span.min(driver.capacity()) / bytes;
    let mut rng = SmallRng::seed_from_u64(load.seed);
    let mut out = Outcome::default();
    let mut began = vec![Instant::now(); usize::from(driver.slots())];
    let mut flushing = vec![false; usize::from(driver.slots())];
    let (mut next, mut submitted, mut in_flight) = (0, 0u64, 0u16);
    let start = Instant::now();
    let end = start + load.time;
    let mut free: Vec<u16> = (0..load.depth).rev().collect();
    loop {
        let now = Instant::now();
        while now < end
            && let Some(slot) = free.pop()
        {
            submitted += 1;
            let flush = load.flush_every > 0 && submitted.is_multiple_of(load.flush_every);
            flushing[usize::from(slot)] = flush;
            if flush {
                driver.submit(0, slot, T_FLUSH, 0, 0);
            } else {
                let block = if load.random { rng.random_range(0..blocks) } else { next % blocks };
                next += 1;
                driver.submit(0, slot, load.kind, block * bytes / 512, load.bytes);
            }
            began[usize::from(slot)] = now;
            in_flight += 1;
        }
        out.kicks += u64::from(driver.publish(0));
        if in_flight == 0 {
            break;
        }
        let mut any = false;
        while let Some((slot, _)) = driver.poll(0) {
            any = true;
            let at = usize::from(slot);
            out.errors += u64::from(driver.status(0, slot) != 0);
            if !flushing[at] {
                out.requests += 1;
                out.latencies_ns.push(began[at].elapsed().as_nanos() as u64);
            }
            in_flight -= 1;
            free.push(slot);
        }
        if !any {
            out.waits += 1;
            let patience = Instant::now() + Duration::from_secs(10);
            // A call may come without a completion.
            while !driver.wait(0, Duration::from_secs(10)) {
                if Instant::now() > patience {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
    out.time = start.elapsed();
    out.latencies_ns.sort_unstable();
    Ok(out)
}

/// User and system time of a process so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    // One file a thread, in nanoseconds: /proc/PID/stat counts in ticks of 10 ms.
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// Fills the first `span` bytes of a volume, so that reads meet data.
///
/// # Errors
/// A failed write.
pub fn fill(driver: &mut Driver, span: u64) -> io::Result<()> {
    let step = 1 << 20;
    let pattern: Vec<u8> = (0..step as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for at in (0..span.min(driver.capacity())).step_by(step) {
        let len = step.min((driver.capacity() - at) as usize);
        driver.write(at, &pattern[..len])?;
    }
    driver.flush()
}

/// Names of loads as benches print them.
pub fn name(load: &Load) -> String {
    let way = match (load.kind, load.random) {
        (T_IN, true) => "randread",
        (T_IN, false) => "read",
        (T_OUT, true) => "randwrite",
        _ => "write",
    };
    format!("{way} {} KiB QD{}", load.bytes / 1024, load.depth)
}
