//! What every [`Datapath`] must do, run by each implementation's tests.

use std::collections::BTreeSet;

use karri_base::id::NetworkInterfaceId;

use crate::{Datapath, Eni, MacAddr};

/// Runs the suite; `open` gives the node's datapath anew, as after a restart.
///
/// # Panics
/// Where the datapath breaks a promise.
pub fn check(open: impl Fn() -> Box<dyn Datapath>) {
    let eni = |n: u8| Eni {
        id: NetworkInterfaceId::from_bits(u128::from(n)),
        mac: MacAddr([2, 0, 0, 0, 0, n]),
        private_ip: Some([172, 31, 0, 10 + n].into()),
    };
    let ids = |enis: &[&Eni]| enis.iter().map(|e| e.id.clone()).collect::<BTreeSet<NetworkInterfaceId>>();
    let (a, b, c) = (eni(1), eni(2), eni(3));

    let node = open();
    let wired = node.attach(&a).expect("attach");
    assert_eq!(node.attach(&a).expect("attach again"), wired, "attaching again gives the same wiring");
    assert_ne!(node.attach(&b).expect("attach another"), wired, "each interface has its own wiring");
    assert_eq!(node.attached(), ids(&[&a, &b]));
    node.detach(&c.id).expect("detaching what was never attached is no error");
    node.detach(&b.id).expect("detach");
    node.detach(&b.id).expect("detaching twice is no error");
    assert_eq!(node.attached(), ids(&[&a]));
    drop(node);

    let node = open();
    node.reconcile(&[a.clone(), c.clone()]).expect("reconcile");
    assert_eq!(node.attached(), ids(&[&a, &c]), "after a restart exactly the wanted interfaces are attached");
    assert_eq!(node.attach(&a).expect("attach"), wired, "a restart keeps the wiring");
    node.reconcile(&[]).expect("reconcile to nothing");
    assert!(node.attached().is_empty());

    let mut nowhere = eni(4);
    nowhere.private_ip = Some([127, 0, 0, 1].into());
    assert!(node.attach(&nowhere).is_err(), "a loopback address is refused");
}
