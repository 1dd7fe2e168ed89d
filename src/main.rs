//! `karri`: the one binary. It runs a role (`karri walrus --config FILE`), the whole cloud (`karri up`), or asks one that
//! runs (`karri env`, `karri status`, `karri image add`).
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`chassis`] | what every role process has around the role: configuration, lock, store, listeners, shutdown |
//! | [`supervisor`] | `karri up`: first start, ports, role processes, restarts, the order of stopping |
//! | [`layout`] | the state folder: names, modes, lock, credentials, what runs now |
//! | [`pki`] | the certificate authority and the roles' certificates |
//! | [`peers`] | mutual-TLS channels between roles |
//! | [`callers`] | which role may call which gRPC method |
//! | [`ask`] | `env` and `status` |
//! | [`image`] | `image add` |
//! | [`standalone`] | `walrus serve` and `storage export` |
//! | [`walrus`] | `walrus usage`, `quota`, `list`, `check`, `reclaim`, `export` |

#![forbid(unsafe_code)]

mod ask;
mod callers;
mod chassis;
mod cli;
mod image;
mod layout;
mod peers;
mod pki;
mod role;
mod standalone;
mod supervisor;
mod walrus;

use std::process::ExitCode;
use std::time::Duration;

/// RocksDB's C++ takes its memory from it, too.
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let code = cli::run().unwrap_or_else(|error| {
        // One line, causes included: what failed, on what, why.
        eprintln!("karri: {error:#}");
        ExitCode::FAILURE
    });
    // Tasks that were let go may hold a store for a moment longer; see there.
    if !karri_meta::rocks::wait_closed(Duration::from_secs(3)) {
        tracing::warn!("a metadata store is still open at the end");
    }
    code
}
