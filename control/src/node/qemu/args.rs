//! QEMU's command line, from a [`VmSpec`]: a pure function.
//!
//! Paths are relative to the machine's run folder (QEMU's working folder) or go through `/proc/self/fd/1`, the folder
//! of the vhost-user sockets. So QEMU needs no permission on the folders above them, which are closed to its uid, and
//! no path is longer than a UNIX address may be (108 bytes).

use std::path::{Path, PathBuf};

use karri_net::Wiring;
use serde_json::{Value, json};

use crate::node::hypervisor::{Boot, DISKS_MAX, VmDisk, VmSpec};

/// The console's ring in QEMU, in bytes; what a guest prints beyond it between two reads is lost, oldest first.
pub const RING_BYTES: usize = 256 * 1024;
/// File names in the run folder.
pub const QMP_SOCKET: &str = "qmp.sock";
/// A second QMP socket, for people.
pub const DEBUG_SOCKET: &str = "qmp-debug.sock";
/// The kernel.
pub const KERNEL: &str = "kernel";
/// The initial ramdisk.
pub const RAMDISK: &str = "ramdisk";
/// User data.
pub const USER_DATA: &str = "user-data";
/// The public key.
pub const PUBLIC_KEY: &str = "public-key";

/// What accelerates guests here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Translation, 10 to 50 times slower.
    Tcg,
}

/// QEMU's id of a volume's device.
pub fn device_id(disk: &VmDisk) -> String {
    format!("disk-{}", disk.volume)
}
/// QEMU's id of a volume's connection to storage.
pub fn chardev_id(disk: &VmDisk) -> String {
    format!("chr-{}", disk.volume)
}
/// QEMU's id of a root port.
pub fn port_id(slot: usize) -> String {
    format!("port{slot}")
}

/// The path by which QEMU reaches a socket when its standard output is the folder `sockets`.
pub fn socket_path(socket: &Path, sockets: Option<&Path>) -> PathBuf {
    match (socket.file_name(), socket.parent()) {
        (Some(name), Some(parent)) if Some(parent) == sockets => Path::new("/proc/self/fd/1").join(name),
        _ => socket.to_owned(),
    }
}

/// `device_add`'s arguments for a disk.
pub fn disk_device(disk: &VmDisk, slot: usize, boot: bool) -> Value {
    let mut device = json!({
        "driver": "vhost-user-blk-pci", "id": device_id(disk), "chardev": chardev_id(disk), "bus": port_id(slot),
        "num-queues": 1, "queue-size": 256,
    });
    if boot {
        device["bootindex"] = json!(0);
    }
    device
}

/// `chardev-add`'s arguments for a disk. reconnect: storage may be restarted under a running guest.
pub fn disk_chardev(disk: &VmDisk, sockets: Option<&Path>) -> Value {
    let addr = json!({"type": "unix", "data": {"path": socket_path(&disk.socket, sockets)}});
    let backend = json!({"type": "socket", "data": {"addr": addr, "server": false, "reconnect": 1}});
    json!({"id": chardev_id(disk), "backend": backend})
}

/// A comma ends a value in QEMU's option syntax; a doubled one stands for itself.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// The whole command line, program first. `disks` gives each disk its root port.
pub fn command_line(
    program: &str,
    spec: &VmSpec,
    disks: &[(usize, VmDisk)],
    sockets: Option<&Path>,
    accelerator: Accelerator,
) -> Vec<String> {
    let mut args = vec![program.to_owned()];
    let mut add = |option: &str, value: String| {
        args.push(format!("-{option}"));
        args.push(value);
    };
    let mib = spec.memory_bytes >> 20;
    add("name", format!("guest={},debug-threads=on", spec.instance));
    add("machine", "q35,usb=off,vmport=off,smm=off,memory-backend=mem".into());
    match accelerator {
        Accelerator::Kvm => {
            add("accel", "kvm".into());
            add("cpu", "host".into());
        }
        Accelerator::Tcg => {
            // The translation cache counts against the machine's memory limit.
            add("accel", "tcg,tb-size=256".into());
            add("cpu", "max".into());
        }
    }
    add("smp", spec.vcpus.to_string());
    add("m", format!("{mib}M"));
    // vhost-user back ends map the guest's memory, so it is a shared file without a name.
    add("object", format!("memory-backend-memfd,id=mem,size={mib}M,share=on"));
    add("display", "none".into());
    add("rtc", "base=utc".into());
    // A guest that shuts down stays paused until the node has read its console and knows why.
    add("action", "shutdown=pause".into());
    add("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    add("msg", "timestamp=on".into());
    add("smbios", format!("type=1,manufacturer=karri,product=instance,serial={}", spec.instance));
    add("chardev", format!("ringbuf,id=console,size={RING_BYTES}"));
    add("serial", "chardev:console".into());
    for (id, path) in [("qmp", QMP_SOCKET), ("debug", DEBUG_SOCKET)] {
        add("chardev", format!("socket,id={id},path={path},server=on,wait=off"));
        add("mon", format!("chardev={id},mode=control"));
    }
    add("fw_cfg", format!("name=opt/karri/instance-id,string={}", spec.instance));
    if !spec.user_data.is_empty() {
        add("fw_cfg", format!("name=opt/karri/user-data,file={USER_DATA}"));
    }
    if !spec.public_key.is_empty() {
        add("fw_cfg", format!("name=opt/karri/public-key,file={PUBLIC_KEY}"));
    }
    if let Boot::Kernel { ramdisk, cmdline, .. } = &spec.boot {
        add("kernel", KERNEL.into());
        if ramdisk.is_some() {
            add("initrd", RAMDISK.into());
        }
        add("append", cmdline.clone());
    }
    for slot in 0..DISKS_MAX {
        add("device", format!("pcie-root-port,id={},bus=pcie.0,chassis={slot},slot={slot}", port_id(slot)));
    }
    for (index, (slot, disk)) in disks.iter().enumerate() {
        let path = socket_path(&disk.socket, sockets);
        let path = escape(&path.to_string_lossy());
        add("chardev", format!("socket,id={},path={path},reconnect=1", chardev_id(disk)));
        let boot = index == 0 && spec.boot == Boot::Firmware;
        add("device", disk_device(disk, *slot, boot).to_string());
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        let netdev = match &nic.wiring {
            Wiring::User { network, prefix, gateway, dns, guest } => format!(
                "user,id=net{index},restrict=on,ipv6=off,net={network}/{prefix},host={gateway},dns={dns},dhcpstart={guest}"
            ),
            Wiring::Tap { interface } => {
                format!("tap,id=net{index},ifname={},script=no,downscript=no", escape(interface))
            }
        };
        add("netdev", netdev);
        add("device", format!("virtio-net-pci,netdev=net{index},mac={},romfile=", nic.mac));
    }
    add("device", "virtio-rng-pci,max-bytes=65536,period=1000".into());
    args.push("-nodefaults".into());
    args.push("-no-user-config".into());
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use karri_base::id::{InstanceId, NetworkInterfaceId, VolumeId};

    fn disk(n: u128) -> VmDisk {
        let volume = VolumeId::from_bits(n);
        VmDisk { socket: format!("/s,1/{volume}.sock").into(), volume }
    }

    fn spec() -> VmSpec {
        VmSpec {
            instance: InstanceId::from_bits(1),
            vcpus: 2,
            memory_bytes: 256 << 20,
            boot: Boot::Kernel { kernel: "/k".into(), ramdisk: None, cmdline: "a=1,2 console=ttyS0".into() },
            disks: vec![disk(1)],
            nics: vec![crate::node::hypervisor::VmNic {
                eni: NetworkInterfaceId::from_bits(1),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                wiring: Wiring::User {
                    network: [172, 31, 0, 0].into(),
                    prefix: 20,
                    gateway: [172, 31, 0, 1].into(),
                    dns: [172, 31, 0, 2].into(),
                    guest: [172, 31, 0, 9].into(),
                },
            }],
            user_data: b"#!/bin/sh".to_vec(),
            public_key: String::new(),
        }
    }

    #[test]
    fn the_command_line_confines_and_wires_the_machine() {
        let spec = spec();
        let args = command_line("qemu", &spec, &[(0, disk(1))], Some(Path::new("/s,1")), Accelerator::Tcg);
        let has = |option: &str, value: &str| args.windows(2).any(|w| w[0] == option && w[1].contains(value));
        assert!(has("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"));
        assert!(has("-object", "memory-backend-memfd,id=mem,size=256M,share=on"));
        assert!(has("-chardev", "path=/proc/self/fd/1/vol-00000000000000001.sock,reconnect=1"));
        assert!(has("-device", "\"bus\":\"port0\""));
        assert!(has("-netdev", "restrict=on"));
        assert!(has("-append", "a=1,2 console=ttyS0"));
        assert!(has("-fw_cfg", "file=user-data"));
        assert!(!has("-device", "bootindex"), "a kernel was given");
        assert!(!has("-initrd", "") && !has("-fw_cfg", "public-key"));
        assert_eq!(args.iter().filter(|a| a.starts_with("pcie-root-port")).count(), DISKS_MAX);
    }

    #[test]
    fn a_machine_without_a_kernel_boots_its_first_disk() {
        let spec = VmSpec { boot: Boot::Firmware, ..spec() };
        let args = command_line("qemu", &spec, &[(0, disk(1)), (3, disk(2))], None, Accelerator::Kvm);
        assert_eq!(args.iter().filter(|a| a.contains("bootindex")).count(), 1);
        assert!(args.iter().any(|a| a.contains("path=/s,,1/vol-")), "a comma in a path is escaped");
        assert!(!args.contains(&"-kernel".to_owned()));
    }
}
