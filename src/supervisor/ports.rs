//! Ports: those that were asked for must be free; the others are picked.
//!
//! A picked port is outside the kernel's range for outgoing connections, so that none takes it while the role that
//! listens on it restarts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::RngExt;

use crate::layout::{self, Lock};

const PICKED: std::ops::Range<u16> = 15_000..32_700;

/// The address asked for, its port picked where it was 0. Waits `patience` for a port in use: an earlier karri of this
/// state may be about to end.
pub async fn settle(
    wanted: SocketAddr,
    flag: &str,
    taken: &mut Vec<SocketAddr>,
    patience: Duration,
) -> Result<SocketAddr> {
    let addr = if wanted.port() == 0 { pick(wanted.ip(), taken)? } else { free(wanted, flag, patience).await? };
    if taken.contains(&addr) {
        bail!("{addr} is asked for twice; choose another address with {flag}");
    }
    taken.push(addr);
    Ok(addr)
}

/// A picked loopback address for a role's own listener.
pub fn private(taken: &mut Vec<SocketAddr>) -> Result<SocketAddr> {
    let addr = pick(Ipv4Addr::LOCALHOST.into(), taken)?;
    taken.push(addr);
    Ok(addr)
}

async fn free(addr: SocketAddr, flag: &str, patience: Duration) -> Result<SocketAddr> {
    let until = Instant::now() + patience;
    loop {
        match TcpListener::bind(addr) {
            Ok(_) => return Ok(addr),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if Instant::now() >= until {
                    bail!("{addr} is in use by another program; choose another address with {flag} (port 0 picks one)");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("{addr} of {flag} cannot be listened on")),
        }
    }
}

fn pick(ip: IpAddr, taken: &[SocketAddr]) -> Result<SocketAddr> {
    for _ in 0..1000 {
        let addr = SocketAddr::new(ip, rand::rng().random_range(PICKED));
        if !taken.contains(&addr) && reserve(addr.port()) && TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("found no free port on {ip}")
}

/// Holds a picked port, for this process's life, against another karri that picks before our role listens there.
fn reserve(port: u16) -> bool {
    let folder = std::env::temp_dir().join(format!("karri-ports-{}", rustix::process::geteuid().as_raw()));
    let path = folder.join(port.to_string());
    match layout::private_dir(&folder).and_then(|()| Lock::take(&path)) {
        Ok(Ok(lock)) => {
            std::mem::forget(lock);
            true
        }
        Ok(Err(_)) => false,
        // Without the folder, a clash is only unlikely.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_refused_with_the_flag_that_changes_it() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        let error = settle(addr, "--s3", &mut vec![], Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains(&addr.to_string()) && error.contains("--s3"), "{error}");
    }

    #[tokio::test]
    async fn port_0_picks_and_nothing_is_given_twice() {
        let mut taken = vec![];
        let first = settle("127.0.0.1:0".parse().unwrap(), "--s3", &mut taken, Duration::ZERO).await.unwrap();
        assert!(PICKED.contains(&first.port()));
        let error = settle(first, "--api", &mut taken, Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
    }
}
