//! 4 KiB random reads of one file on one core: IOPS and CPU time per I/O, to be set beside fio on the same file.
//!
//! `cargo run --release -p karri-engine --example randread -- FILE DEPTH SECONDS [SPIN_US] [registered] [SUBMIT_BATCH]`
//!
//! fio: `fio --name=r --filename=FILE --rw=randread --bs=4k --direct=1 --ioengine=io_uring --iodepth=DEPTH --fixedbufs
//! --registerfiles --time_based --runtime=SECONDS`

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use karri_engine::buf::{Buf, Segment};
use karri_engine::cores::{CoreOptions, block_on, current};
use karri_engine::disk::Disk;
use karri_engine::disk::uring::{OpenOptions, UringDisk};
use karri_engine::ring::register_memory;
use karri_engine::sim::Rng;
use karri_engine::{now, spawn};

struct Memory(Buf);

// SAFETY: each reader uses a page of its own.
unsafe impl Sync for Memory {}

fn cpu_time() -> Duration {
    // SAFETY: a zeroed rusage is valid and filled by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    let of = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, depth, seconds, rest @ ..] = &args[..] else {
        eprintln!("usage: randread FILE DEPTH SECONDS [SPIN_US] [registered|no] [SUBMIT_BATCH]");
        std::process::exit(2);
    };
    let (path, depth) = (path.clone(), depth.parse::<u64>().expect("a depth"));
    let seconds = seconds.parse::<u64>().expect("seconds");
    let spin = rest.first().map_or(0, |s| s.parse().expect("microseconds to spin"));
    let registered = rest.iter().any(|s| s == "registered");
    let mut options = CoreOptions { spin: Duration::from_micros(spin), ..CoreOptions::default() };
    options.ring.submit_batch = rest.get(2).map_or(options.ring.submit_batch, |s| s.parse().expect("a batch"));
    let batch = options.ring.submit_batch;
    block_on(&options, move || async move {
        let disk = UringDisk::open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).expect("a file");
        let pages = disk.size() / 4096;
        let memory = Arc::new(Memory(Buf::zeroed(depth as usize * 4096)));
        let base = memory.0.segments().as_slice()[0].ptr;
        // SAFETY: the memory lives in its keeper.
        let region = registered
            .then(|| unsafe { register_memory(base, depth as usize * 4096, memory.clone()) }.expect("lockable memory"));
        let (began, cpu, done) = (now(), cpu_time(), Rc::new(Cell::new(0u64)));
        let until = began + Duration::from_secs(seconds);
        let readers: Vec<_> = (0..depth)
            .map(|n| {
                let (disk, done, mut rng) = (disk.clone(), done.clone(), Rng::new(n));
                // SAFETY: a page of the memory, which lives in its keeper.
                let segment = Segment { ptr: unsafe { base.add(n as usize * 4096) }, len: 4096 };
                // SAFETY: as above; no other reader uses this page.
                let mut buf = unsafe { Buf::foreign(vec![segment], memory.clone()) };
                spawn(async move {
                    while now() < until {
                        let (result, back) = disk.read(rng.below(pages) * 4096, buf).await;
                        result.expect("a read");
                        buf = back;
                        done.set(done.get() + 1);
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.expect("a reader ends well");
        }
        let (time, cpu, done) = (now() - began, cpu_time() - cpu, done.get());
        let stats = current().expect("a core").stats();
        println!(
            "depth {depth} spin {spin}us registered {registered} batch {batch}: {:.0} IOPS, {:.2} CPU us/IO, {:.2} enters/IO, {:.2} sleeps/IO",
            done as f64 / time.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / done as f64,
            stats.enters as f64 / done as f64,
            stats.sleeps as f64 / done as f64,
        );
        drop(region);
    })
    .expect("a core");
}
