//! What every [`Hypervisor`] must do. One machine is booted once and started once more, so that the suite stays short
//! where a boot takes seconds.

use std::sync::Arc;
use std::time::Duration;

use karri_base::id::{InstanceId, NetworkInterfaceId, VolumeId};
use karri_net::{Datapath, Eni, UserMode};

use super::hypervisor::{Boot, Ended, Hypervisor, HypervisorError, VmDisk, VmNic, VmSpec, VmStatus};

/// How long a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the suite gets its hypervisor from.
pub trait Bench {
    /// The hypervisor as a node that just started sees it; machines of the one before still run.
    fn open(&self) -> Arc<dyn Hypervisor>;
    /// A machine with one disk that prints what karri's guest prints.
    fn spec(&self) -> VmSpec;
    /// A second disk.
    fn disk(&self) -> VmDisk;
}

/// A machine on no particular files.
pub fn plain_spec() -> VmSpec {
    let volume = VolumeId::from_bits(0xa);
    let eni = Eni {
        id: NetworkInterfaceId::from_bits(1),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        private_ip: Some([172, 31, 0, 9].into()),
    };
    VmSpec {
        instance: InstanceId::from_bits(0xc0),
        vcpus: 1,
        memory_bytes: 256 << 20,
        boot: Boot::Firmware,
        disks: vec![VmDisk { socket: format!("/none/{volume}.sock").into(), volume }],
        nics: vec![VmNic { wiring: UserMode::default().attach(&eni).unwrap(), eni: eni.id, mac: eni.mac }],
        user_data: b"#!/bin/sh\necho user-data of $INSTANCE_ID\n".to_vec(),
        public_key: "ssh-ed25519 AAAA test".into(),
    }
}

/// Waits until the console holds `words`.
pub async fn console_says(hypervisor: &dyn Hypervisor, instance: &InstanceId, words: &str) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = String::from_utf8_lossy(&hypervisor.console(instance).await).into_owned();
        if text.contains(words) {
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "the console never says {words:?}:\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn volumes(status: VmStatus) -> Vec<VolumeId> {
    match status {
        VmStatus::Running { mut volumes } => {
            volumes.sort();
            volumes
        }
        other => panic!("it should run, but is {other:?}"),
    }
}

fn not_running<T: std::fmt::Debug>(answer: Result<T, HypervisorError>) {
    assert!(matches!(answer, Err(HypervisorError::NotRunning { .. })), "{answer:?}");
}

/// Runs the suite.
pub async fn check(bench: &dyn Bench) {
    let (spec, extra) = (bench.spec(), bench.disk());
    let (id, root) = (&spec.instance, &spec.disks[0].volume);

    let node = bench.open();
    assert_eq!(node.adopt().await.unwrap(), []);
    assert_eq!(node.status(id).await, VmStatus::Absent);
    not_running(node.press_power_button(id).await);
    not_running(node.reboot(id, PATIENCE).await);
    not_running(node.plug(id, &extra).await);
    not_running(node.unplug(id, &extra.volume, PATIENCE).await);
    node.kill(id).await.unwrap();
    node.forget(id).await.unwrap();
    assert!(node.wait_gone(id, Duration::ZERO).await);
    assert!(node.console(id).await.is_empty());

    node.start(&spec).await.unwrap();
    node.start(&spec).await.expect("starting what runs is no error");
    assert_eq!(volumes(node.status(id).await), std::slice::from_ref(root));
    assert!(node.forget(id).await.is_err(), "a running machine is not forgotten");
    let ready = console_says(&*node, id, "karri guest ready").await;
    assert!(ready.contains(id.as_str()), "the guest knows its instance id: {ready}");

    node.plug(id, &extra).await.unwrap();
    node.plug(id, &extra).await.expect("plugging in twice is no error");
    assert_eq!(volumes(node.status(id).await), [root.clone(), extra.volume.clone()]);
    console_says(&*node, id, "disk vdb appeared").await;
    drop(node);

    let node = bench.open();
    assert_eq!(node.adopt().await.unwrap(), std::slice::from_ref(id), "a restarted node finds the machine");
    assert_eq!(volumes(node.status(id).await), [root.clone(), extra.volume.clone()], "with its disks");
    node.start(&spec).await.expect("starting what was adopted is no error");
    console_says(&*node, id, "karri guest ready").await;
    node.unplug(id, &extra.volume, PATIENCE).await.unwrap();
    node.unplug(id, &extra.volume, PATIENCE).await.expect("unplugging twice is no error");
    assert_eq!(volumes(node.status(id).await), std::slice::from_ref(root));
    console_says(&*node, id, "disk vdb gone").await;
    node.plug(id, &extra).await.expect("what was unplugged can come back");
    node.unplug(id, &extra.volume, PATIENCE).await.unwrap();

    let mut changes = node.changes();
    changes.mark_unchanged();
    node.press_power_button(id).await.unwrap();
    assert!(node.wait_gone(id, PATIENCE).await, "the guest hears the power button");
    assert_eq!(node.status(id).await, VmStatus::Gone { reason: Ended::Guest });
    tokio::time::timeout(PATIENCE, changes.changed()).await.expect("whoever watches is told").unwrap();
    console_says(&*node, id, "going down").await;
    not_running(node.plug(id, &extra).await);
    drop(node);

    let node = bench.open();
    assert_eq!(node.adopt().await.unwrap(), std::slice::from_ref(id), "a machine that ended is remembered");
    assert_eq!(node.status(id).await, VmStatus::Gone { reason: Ended::Guest });
    console_says(&*node, id, "karri guest ready").await;

    node.start(&spec).await.expect("an ended machine starts anew");
    node.reboot(id, Duration::ZERO).await.unwrap();
    assert_eq!(volumes(node.status(id).await), std::slice::from_ref(root));
    node.kill(id).await.unwrap();
    assert_eq!(node.status(id).await, VmStatus::Gone { reason: Ended::Killed });
    node.kill(id).await.expect("killing twice is no error");
    node.forget(id).await.unwrap();
    assert_eq!(node.status(id).await, VmStatus::Absent);
    assert!(node.console(id).await.is_empty(), "a forgotten machine leaves nothing");
}
