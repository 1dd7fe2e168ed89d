//! karri-net: how a guest's network interfaces reach the rest of the zone.
//!
//! | module | holds |
//! |---|---|
//! | [`user`] | [`UserMode`]: QEMU's built-in network, one closed little LAN per interface |
//! | [`conformance`] | what every [`Datapath`] must do |
//!
//! [`Datapath`] is the seam between a node and the network: the node says which ENI a guest has, the datapath says how
//! the hypervisor is to wire it. The eBPF overlay (taps, VXLAN, security groups) is to come behind the same seam; it
//! will need root and keep state in the kernel, hence `reconcile`. Asked for today, [`open`] refuses.

#![forbid(unsafe_code)]

pub mod conformance;
pub mod user;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use karri_base::config::Network;
use karri_base::id::NetworkInterfaceId;
use serde::{Deserialize, Serialize};

pub use user::UserMode;

/// One interface of a guest, as the control plane wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id.
    pub id: NetworkInterfaceId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its primary private address; `None` leaves the choice to the datapath.
    pub private_ip: Option<Ipv4Addr>,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MacAddr(pub [u8; 6]);

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for MacAddr {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self, NetError> {
        let bad =
            || NetError::BadEni { why: format!("{text:?} is not a unicast MAC address such as 02:00:00:00:00:01") };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

/// How a hypervisor is to connect one virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Wiring {
    /// The hypervisor's own user-mode network: a closed LAN with DHCP, no way to the host or beyond.
    User {
        /// Network address of the LAN.
        network: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
        /// Where the hypervisor answers DHCP.
        gateway: Ipv4Addr,
        /// Where it says that DNS is; nothing answers there while the LAN is closed.
        dns: Ipv4Addr,
        /// The address that DHCP gives to the guest.
        guest: Ipv4Addr,
    },
    /// A tap device that the datapath made and holds programs on.
    Tap {
        /// The interface's name.
        interface: String,
    },
}

/// Why the network could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// An interface that no datapath could wire.
    #[error("bad network interface: {why}")]
    BadEni {
        /// What is wrong with it.
        why: String,
    },
    /// This version or machine has no such datapath.
    #[error("{what} is not in this version; use {instead}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What works.
        instead: &'static str,
    },
    /// The system refused.
    #[error("network interface {eni}: {op} failed: {why}")]
    Failed {
        /// The interface.
        eni: String,
        /// What was being done.
        op: &'static str,
        /// The system's words.
        why: String,
    },
}

/// The network of one node. Every call is idempotent; calls may block for milliseconds (netlink), not longer.
pub trait Datapath: Send + Sync + 'static {
    /// `user` or `overlay`.
    fn name(&self) -> &'static str;
    /// Makes an interface ready before its guest starts and says how to wire it. The same ENI gets the same wiring, also
    /// after a restart of the node.
    ///
    /// # Errors
    /// `BadEni` where the interface makes no sense here, `Failed` where the system refused.
    fn attach(&self, eni: &Eni) -> Result<Wiring, NetError>;
    /// Takes an interface down after its guest is gone; an unknown one is no error.
    ///
    /// # Errors
    /// `Failed` where the system refused.
    fn detach(&self, eni: &NetworkInterfaceId) -> Result<(), NetError>;
    /// After a restart: keeps exactly these interfaces and takes down what else an earlier run left. Guests of kept
    /// interfaces notice nothing.
    ///
    /// # Errors
    /// `Failed` where the system refused.
    fn reconcile(&self, wanted: &[Eni]) -> Result<(), NetError>;
    /// The interfaces that are attached.
    fn attached(&self) -> BTreeSet<NetworkInterfaceId>;
}

/// The datapath that a node's configuration asks for.
///
/// # Errors
/// `Unsupported` for the overlay, which is not in this version.
pub fn open(network: Network) -> Result<std::sync::Arc<dyn Datapath>, NetError> {
    match network {
        Network::User => Ok(std::sync::Arc::new(UserMode::default())),
        Network::Overlay => Err(NetError::Unsupported { what: "the eBPF overlay", instead: "--network user" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_strictly() {
        let mac: MacAddr = "02:00:0a:FF:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:ff:00:01");
        for bad in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "01:00:5e:00:00:01", "zz:00:00:00:00:00"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_overlay_is_refused_with_what_to_use_instead() {
        let refused = open(Network::Overlay).map(|_| ()).unwrap_err();
        assert_eq!(refused.to_string(), "the eBPF overlay is not in this version; use --network user");
        assert_eq!(open(Network::User).map(|d| d.name()).unwrap(), "user");
    }
}
