//! QEMU's user-mode network: works without root and without touching the host's interfaces.
//!
//! Each interface is a LAN of its own, closed (`restrict=on`): DHCP gives the guest its private address and nothing
//! else is reachable. What is lost against a real network: guests cannot reach each other, the host, the metadata
//! service or the internet, and nothing reaches them. A guest that could open connections through the host's sockets
//! would reach every loopback service of the host, karri's own included, so an open user-mode network is not offered.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use karri_base::id::NetworkInterfaceId;

use crate::{Datapath, Eni, NetError, Wiring};

/// Prefix of the little LAN around a guest's address, the size of AWS's default subnets.
const PREFIX: u8 = 20;
/// Used when the control plane names no address.
const ANY_GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 15);

/// The user-mode network. It keeps nothing outside the hypervisor's process.
#[derive(Debug, Default)]
pub struct UserMode {
    attached: Mutex<BTreeSet<NetworkInterfaceId>>,
}

impl UserMode {
    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeSet<NetworkInterfaceId>> {
        self.attached.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The LAN around `guest`: as in AWS's subnets the first address is the router and the second one DNS.
fn lan(guest: Ipv4Addr) -> Result<Wiring, NetError> {
    let mask = u32::MAX << (32 - PREFIX);
    let network = u32::from(guest) & mask;
    let host = u32::from(guest) & !mask;
    // The first four addresses and the last one of a subnet are AWS's own.
    if host < 4 || host == !mask || guest.is_loopback() || guest.is_multicast() || guest.is_unspecified() {
        let why = format!("{guest} cannot be a guest's address: it is reserved in its /{PREFIX}");
        return Err(NetError::BadEni { why });
    }
    Ok(Wiring::User {
        network: network.into(),
        prefix: PREFIX,
        gateway: (network + 1).into(),
        dns: (network + 2).into(),
        guest,
    })
}

impl Datapath for UserMode {
    fn name(&self) -> &'static str {
        "user"
    }
    fn attach(&self, eni: &Eni) -> Result<Wiring, NetError> {
        let wiring = lan(eni.private_ip.unwrap_or(ANY_GUEST))?;
        self.locked().insert(eni.id.clone());
        Ok(wiring)
    }
    fn detach(&self, eni: &NetworkInterfaceId) -> Result<(), NetError> {
        self.locked().remove(eni);
        Ok(())
    }
    fn reconcile(&self, wanted: &[Eni]) -> Result<(), NetError> {
        *self.locked() = wanted.iter().map(|eni| eni.id.clone()).collect();
        Ok(())
    }
    fn attached(&self) -> BTreeSet<NetworkInterfaceId> {
        self.locked().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_holds() {
        crate::conformance::check(|| Box::new(UserMode::default()));
    }

    #[test]
    fn a_guest_keeps_its_private_address_and_the_lan_is_closed_around_it() {
        let wiring = lan(Ipv4Addr::new(172, 31, 19, 7)).unwrap();
        assert_eq!(
            wiring,
            Wiring::User {
                network: Ipv4Addr::new(172, 31, 16, 0),
                prefix: 20,
                gateway: Ipv4Addr::new(172, 31, 16, 1),
                dns: Ipv4Addr::new(172, 31, 16, 2),
                guest: Ipv4Addr::new(172, 31, 19, 7),
            }
        );
        for bad in ["172.31.16.0", "172.31.16.1", "172.31.16.3", "172.31.31.255", "127.0.0.9", "0.0.0.0", "224.0.0.9"] {
            assert!(lan(bad.parse().unwrap()).is_err(), "{bad}");
        }
    }
}
