//! Loads a vhost-user-blk socket, ours or another's, and prints what came of it; or serves a volume to be loaded.
//!
//! ```text
//! vhost_load serve STORE BYTES VOLUME BYTES SOCKET       the records in memory: for benches
//! vhost_load run SOCKET randread|randwrite|read|write BLOCK_BYTES DEPTH SECONDS SPAN_BYTES [PID]
//! vhost_load fill SOCKET SPAN_BYTES
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karri_blockstore::driver::load::{self, Load};
use karri_blockstore::driver::{Driver, Options, T_IN, T_OUT};
use karri_blockstore::{ExportOptions, export};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", store, bytes, volume, size, socket] => serve(store, bytes.parse()?, volume, size.parse()?, socket),
        ["fill", socket, span] => {
            let mut driver = Driver::connect(Path::new(socket), Options::default())?;
            Ok(load::fill(&mut driver, span.parse()?)?)
        }
        ["run", socket, what, bytes, depth, seconds, span] => run(socket, what, bytes, depth, seconds, span, None),
        ["run", socket, what, bytes, depth, seconds, span, pid] => {
            run(socket, what, bytes, depth, seconds, span, Some(pid.parse()?))
        }
        _ => Err("see the head of examples/vhost_load.rs".into()),
    }
}

fn run(socket: &str, what: &str, bytes: &str, depth: &str, secs: &str, span: &str, pid: Option<u32>) -> Result<()> {
    let bytes: u32 = bytes.parse()?;
    let load = Load {
        kind: if what.ends_with("read") { T_IN } else { T_OUT },
        bytes,
        depth: depth.parse()?,
        random: what.starts_with("rand"),
        time: Duration::from_secs_f64(secs.parse()?),
        span: span.parse()?,
        flush_every: 0,
        seed: 1,
    };
    let options = Options { buffer: u64::from(bytes), ..Options::default() };
    let mut driver = Driver::connect(Path::new(socket), options)?;
    let before = pid.map(load::cpu_time).transpose()?;
    let out = load::run(&mut driver, &load)?;
    let cpu = match (pid, before) {
        (Some(pid), Some(before)) => {
            let spent = load::cpu_time(pid)?.saturating_sub(before);
            format!(" cpu {:.2} us/io", spent.as_secs_f64() * 1e6 / out.requests as f64)
        }
        _ => String::new(),
    };
    let (n, us) = (out.requests as f64, |p| out.latency_us(p));
    println!(
        "{:24} {:9.0} iops {:7.0} MB/s p50 {:6.1} us p99 {:7.1} us{cpu} kicks {:.2}/io sleeps {:.2}/io errors {}",
        load::name(&load),
        out.iops(),
        out.iops() * f64::from(bytes) / 1e6,
        us(0.5),
        us(0.99),
        out.kicks as f64 / n,
        out.waits as f64 / n,
        out.errors,
    );
    Ok(())
}

fn serve(store: &str, store_bytes: u64, volume: &str, size: u64, socket: &str) -> Result<()> {
    karri_base::observe::init_logs();
    let runtime = tokio::runtime::Runtime::new()?;
    let options = ExportOptions {
        store: store.into(),
        store_bytes: Some(store_bytes),
        volume: volume.into(),
        size,
        vhost_user: socket.into(),
        queues: 1,
        pin_memory: false,
        read_only: false,
    };
    runtime.block_on(async {
        let meta = Arc::new(karri_meta::memory::MemoryStore::new());
        let _exported = export(options, meta, &mut karri_base::observe::registry("storage")).await?;
        println!("ready");
        std::future::pending::<()>().await;
        Ok(())
    })
}
