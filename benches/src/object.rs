//! S3: `karri walrus serve` beside its peers.
//!
//! | suite | what | servers |
//! |---|---|---|
//! | `object` | PUT and GET of 4 KiB and 1 MiB, 1 and 32 at once, on all cores | karri, SeaweedFS; both durable |
//! | `s3` | PUT, GET, both mixed, HEAD, LIST, DELETE of 4 KiB to 16 MiB, 1, 8 and 64 at once; server and load on a core each | karri, each peer durable and as it comes, and the raw path |
//! | `list` | a page of 1,000 keys among 10,000 and among `--keys` (1,000,000) objects of 100 bytes, once the server has come to rest; the start after kill -9 with each | karri |
//!
//! karri is durable in all of them. Servers begin anew with each size of objects. The suite `s3` writes at most a GiB a
//! measurement; with all peers it wants 50 GiB of free space.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Settings;
use crate::load::{Bucket, Kind, Workload};
use crate::peers::{self, Peer};
use crate::server::{self, Server, pin_load};
use crate::table::Results;

/// A server that listens answers within this time.
const READY: Duration = Duration::from_secs(30);
const TINY: usize = 100;
const SMALL: usize = 4 << 10;
const LARGE: usize = 1 << 20;

/// Workloads that share servers and first objects.
struct Group {
    /// Objects there from the beginning: size and number.
    fill: Vec<(usize, u64)>,
    workloads: Vec<(String, Workload)>,
}

/// `object`.
pub fn run(settings: &Settings) -> Result<(), String> {
    let mut workloads = Vec::new();
    for (name, kind) in [("PUT", Kind::Put), ("GET", Kind::Get)] {
        for bytes in [SMALL, LARGE] {
            workloads.extend([1, 32].map(|connections| named(name, Workload { kind, bytes, connections })));
        }
    }
    let (small, large) = if settings.quick { (200, 20) } else { (1000, 100) };
    let group = Group { fill: vec![(SMALL, small), (LARGE, large)], workloads };
    let mut results = Results::default();
    measure(settings, &group, &[Peer::Karri, Peer::Weed { durable: true }], false, &mut results)?;
    let title = format!("S3, durable, medians of {} rounds of {} s", settings.rounds, settings.seconds);
    results.print(&title, "karri");
    Ok(())
}

/// `s3`.
pub fn everything(settings: &Settings) -> Result<(), String> {
    pin_load();
    let servers = [
        Peer::Karri,
        Peer::Weed { durable: true },
        Peer::Weed { durable: false },
        Peer::Garage { durable: true },
        Peer::Garage { durable: false },
        Peer::Rgw,
        Peer::Raw,
    ];
    // What was measured before a failure is printed all the same.
    let mut outcome = Ok(());
    let mut results = Results::default();
    for bytes in [SMALL, 64 << 10, LARGE, 16 << 20] {
        let kinds: &[(&str, Kind)] = match bytes {
            SMALL => &[
                ("PUT", Kind::Put),
                ("GET", Kind::Get),
                ("mix", Kind::Mix),
                ("HEAD", Kind::Head),
                ("LIST", Kind::List),
                ("DELETE", Kind::Delete),
            ],
            _ => &[("PUT", Kind::Put), ("GET", Kind::Get), ("mix", Kind::Mix)],
        };
        let mut workloads = Vec::new();
        for &(name, kind) in kinds {
            workloads.extend([1, 8, 64].map(|connections| named(name, Workload { kind, bytes, connections })));
        }
        let fill = vec![(bytes, ((256 << 20) / bytes as u64).min(2000))];
        outcome = outcome.and_then(|()| measure(settings, &Group { fill, workloads }, &servers, true, &mut results));
    }
    let title = format!(
        "S3, server on one core, load on the other, medians of {} rounds of {} s",
        settings.rounds, settings.seconds
    );
    results.print(&title, "karri");
    outcome
}

/// `list`: a page of a small and a large bucket, and how soon the server is there again after kill -9 with each.
pub fn listing(settings: &Settings) -> Result<(), String> {
    pin_load();
    let mut results = Results::default();
    let page = Workload { kind: Kind::List, bytes: TINY, connections: 1 };
    let (scratch, mut starts) = (scratch(settings)?, Vec::new());
    for (label, keys) in [("among 10,000", 10_000), ("among --keys", settings.keys)] {
        let folder = scratch.path().join(keys.to_string());
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let Some((server, bucket)) = begin(settings, Peer::Karri, &folder, true)? else { return Ok(()) };
        bucket.fill(TINY, keys).map_err(|e| format!("{label}: {e}"))?;
        server.rest();
        for round in 0..settings.rounds {
            let sample = bucket.run(page, settings.time(), round as u64, || server.cpu_us());
            results.add(&format!("LIST {label}"), server.name, sample.map_err(|e| format!("{label}: {e}"))?);
        }
        results.memory(server.name, server.peak_bytes());
        drop(server);
        for _ in 0..settings.rounds {
            let began = Instant::now();
            let again = peers::start(settings, Peer::Karri, &folder, true)?;
            starts.push(format!("{keys} objects: ready {:.2} s after kill -9", began.elapsed().as_secs_f64()));
            drop(again);
        }
    }
    results.print(&format!("A page of 1,000 keys, medians of {} rounds", settings.rounds), "karri");
    starts.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn scratch(settings: &Settings) -> Result<tempfile::TempDir, String> {
    let dir = settings.dir.canonicalize().map_err(|e| e.to_string())?;
    tempfile::tempdir_in(dir).map_err(|e| e.to_string())
}

fn named(kind: &str, work: Workload) -> (String, Workload) {
    let size = match work.bytes >> 20 {
        0 => format!("{} KiB", work.bytes >> 10),
        mib => format!("{mib} MiB"),
    };
    let name = match work.kind {
        Kind::List => format!("LIST 1,000 c{}", work.connections),
        _ => format!("{kind} {size} c{}", work.connections),
    };
    (name, work)
}

fn measure(
    settings: &Settings,
    group: &Group,
    peers: &[Peer],
    pinned: bool,
    results: &mut Results,
) -> Result<(), String> {
    let wanted = |name: &str| name.contains(&settings.only);
    if !group.workloads.iter().any(|(name, _)| wanted(name)) {
        return Ok(());
    }
    let scratch = scratch(settings)?;
    let folder = scratch.path();
    let mut targets = Vec::new();
    for &peer in peers {
        if let Some(target) = begin(settings, peer, folder, pinned)? {
            for &(bytes, objects) in &group.fill {
                target.1.fill(bytes, objects).map_err(|e| format!("{}: {e}", target.0.name))?;
            }
            targets.push((peer, target));
        }
    }
    for round in 0..settings.rounds {
        for (workload, work) in group.workloads.iter().filter(|(name, _)| wanted(name)) {
            // Each server is first in some round.
            targets.rotate_left(1);
            for (peer, (server, bucket)) in &targets {
                if !peer.can(work.kind) {
                    continue;
                }
                let sample = bucket.run(*work, settings.time(), round as u64, || server.cpu_us());
                let sample = sample.map_err(|e| format!("{}, {workload}: {e}", server.name))?;
                eprintln!(
                    "{}. {workload}, {}: {:.0}/s, {:.0} us CPU",
                    round + 1,
                    server.name,
                    sample.rate,
                    sample.cpu_us
                );
                results.add(workload, server.name, sample);
            }
        }
    }
    for (_, (server, _)) in &targets {
        results.memory(server.name, server.peak_bytes());
    }
    Ok(())
}

fn begin(settings: &Settings, peer: Peer, folder: &Path, pinned: bool) -> Result<Option<(Server, Bucket)>, String> {
    let Some(started) = peers::start(settings, peer, folder, pinned)? else { return Ok(None) };
    let (began, mut pause) = (Instant::now(), Duration::from_millis(20));
    loop {
        // A server may listen before it can answer.
        match Bucket::make(started.addr, started.key.clone()) {
            Ok(bucket) => return Ok(Some((started.server, bucket))),
            Err(e) if began.elapsed() > READY => return Err(format!("{}: {e}", started.server.name)),
            Err(_) => server::pause(pause),
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
