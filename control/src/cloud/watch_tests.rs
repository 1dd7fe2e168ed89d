//! The reconciler against a zone that changes by itself.

use std::time::Duration;

use karri_base::clock::{ManualClock, UnixMicros};
use karri_base::proto::incarnation::State;

use super::error::Code;
use super::fakes::LARGEST_BYTES;
use super::records::{Instance, Token, Volume};
use super::tests::{NOW, World, text, texts};
use super::watch::{Memory, Settings, forget, look_at_cluster, look_at_storage};

async fn look(w: &World, memory: &mut Memory, times: usize) {
    for _ in 0..times {
        look_at_cluster(w.role.cloud(), memory).await.unwrap();
    }
}

async fn run(w: &World, extra: &[(&str, &str)]) -> String {
    let image = w.image(&format!("image-{}", w.faults.calls())).await;
    let mut params = vec![("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    params.extend_from_slice(extra);
    let id = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    w.until_instance(&id, "running").await;
    id
}

#[tokio::test]
async fn a_guest_that_shuts_down_is_stopped_or_terminated_as_it_was_told() {
    let w = World::new().await;
    let stop = run(&w, &[]).await;
    let terminate = run(&w, &[("InstanceInitiatedShutdownBehavior", "terminate")]).await;
    let mut memory = Memory::default();
    look(&w, &mut memory, 3).await;
    assert_eq!(w.instance(&stop).state.as_str(), "running", "nothing happened yet");
    w.cluster.lock().vms.values_mut().for_each(|vm| vm.state = State::Gone);
    look(&w, &mut memory, 1).await;
    w.until_instance(&stop, "stopped").await;
    w.until_instance(&terminate, "terminated").await;
    assert_eq!(w.instance(&stop).reason.as_ref().unwrap().code, "Client.InstanceInitiatedShutdown");
    // The host was shut down, not the guest: nothing is terminated for that.
    let kept = run(&w, &[("InstanceInitiatedShutdownBehavior", "terminate")]).await;
    look(&w, &mut memory, 1).await;
    {
        let mut zone = w.cluster.lock();
        let vm = zone.vms.get_mut(&kept).unwrap();
        (vm.state, vm.reason) = (State::Gone, "Server.ScheduledStop: host shutdown".into());
    }
    look(&w, &mut memory, 1).await;
    w.until_instance(&kept, "stopped").await;
    assert_eq!(w.instance(&kept).reason.as_ref().unwrap().code, "Server.ScheduledStop");
}

#[tokio::test]
async fn a_vm_that_vanished_is_told_apart_from_a_host_that_is_silent() {
    let w = World::new().await;
    let id = run(&w, &[]).await;
    let mut memory = Memory::default();
    look(&w, &mut memory, 1).await;
    w.cluster.lock().node_down = true;
    look(&w, &mut memory, 5).await;
    assert_eq!(w.instance(&id).state.as_str(), "running");
    let xml = w.ask("DescribeInstanceStatus", &[]).await.unwrap();
    assert!(xml.contains("<status>impaired</status>"), "{xml}");
    w.cluster.lock().node_down = false;
    look(&w, &mut memory, 2).await;
    assert!(!w.ask("DescribeInstanceStatus", &[]).await.unwrap().contains("impaired"));
    w.cluster.lock().vms.clear();
    look(&w, &mut memory, 1).await;
    assert_eq!(w.instance(&id).state.as_str(), "running", "one report may be torn");
    look(&w, &mut memory, 1).await;
    w.until_instance(&id, "stopped").await;
    assert_eq!(w.instance(&id).reason.as_ref().unwrap().code, "Server.InternalError");
    w.ask("StartInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "running").await;
}

#[tokio::test]
async fn a_vm_that_should_not_be_is_stopped_and_an_unknown_one_is_left_alone() {
    let w = World::new().await;
    let id = run(&w, &[]).await;
    w.ask("StopInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "stopped").await;
    {
        let mut zone = w.cluster.lock();
        let mut stray = zone.vms.get(&id).unwrap().clone();
        stray.state = State::Running;
        zone.vms.insert(id.clone(), stray.clone());
        zone.vms.insert("i-0123456789abcdef0".into(), stray);
    }
    let mut memory = Memory::default();
    look(&w, &mut memory, 1).await;
    assert_eq!(w.cluster.vm(&id).unwrap().state, State::Running);
    look(&w, &mut memory, 1).await;
    assert_eq!(w.cluster.vm(&id).unwrap().state, State::Gone);
    assert_eq!(w.cluster.vm("i-0123456789abcdef0").unwrap().state, State::Running);
}

#[tokio::test]
async fn volumes_that_come_back_late_are_deleted_and_lost_exports_ended() {
    let w = World::new().await;
    let (gone, kept) = (w.blank_volume().await, w.blank_volume().await);
    let late = w.storage.volumes()[&gone].clone();
    w.ask("DeleteVolume", &[("VolumeId", &gone)]).await.unwrap();
    w.until_volume(&gone, "deleted").await;
    {
        use super::peers::Storage as _;
        w.storage.volumes.lock().unwrap().insert(gone.clone(), late.clone());
        w.storage.volumes.lock().unwrap().insert("vol-0123456789abcdef0".into(), late);
        w.storage.export(&kept.parse().unwrap(), 0).await.unwrap();
    }
    let mut memory = Memory::default();
    look_at_storage(w.role.cloud(), &mut memory).await.unwrap();
    assert!(w.storage.volumes()[&kept].export.is_some(), "it may be in the middle of something");
    look_at_storage(w.role.cloud(), &mut memory).await.unwrap();
    let held = w.storage.volumes();
    assert!(!held.contains_key(&gone) && held[&kept].export.is_none());
    assert!(held.contains_key("vol-0123456789abcdef0"), "what no record knows is not ours to delete");
}

#[tokio::test]
async fn what_is_over_is_forgotten_in_time() {
    let clock = std::sync::Arc::new(ManualClock::at(UnixMicros(NOW)));
    let w = World::at(clock.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let id = run(&w, &[("ClientToken", "t")]).await;
    w.ask("TerminateInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "terminated").await;
    let (settings, store) = (Settings::default(), w.role.cloud().store.clone());
    forget(w.role.cloud(), settings).await.unwrap();
    assert_eq!(texts(&w.ask("DescribeInstances", &[]).await.unwrap(), "instanceId").len(), 1);
    clock.advance(Duration::from_secs(3601));
    forget(w.role.cloud(), settings).await.unwrap();
    assert_eq!((store.list::<Instance>().len(), store.list::<Volume>().len(), store.list::<Token>().len()), (0, 0, 1));
    clock.advance(Duration::from_secs(24 * 3600));
    forget(w.role.cloud(), settings).await.unwrap();
    assert_eq!(store.list::<Token>().len(), 0);
}

#[tokio::test]
async fn everything_is_as_it_was_after_a_restart() {
    let mut w = World::new().await;
    let id = run(&w, &[]).await;
    let described = w.ask("DescribeInstances", &[]).await.unwrap();
    let volumes = w.ask("DescribeVolumes", &[]).await.unwrap();
    w.restart().await;
    assert_eq!(w.ask("DescribeInstances", &[]).await.unwrap(), described);
    assert_eq!(w.ask("DescribeVolumes", &[]).await.unwrap(), volumes);
    let mut memory = Memory::default();
    look(&w, &mut memory, 3).await;
    assert_eq!(w.instance(&id).state.as_str(), "running", "the running VM is adopted");
}

#[tokio::test]
async fn what_storage_could_never_hold_is_refused_at_once() {
    let w = World::new().await;
    let image = w.image("first").await;
    let too_large = (LARGEST_BYTES / (1 << 30) + 1).to_string();
    let volume = [("AvailabilityZone", "us-east-1a"), ("Size", too_large.as_str()), ("VolumeType", "gp3")];
    let disk = [
        ("ImageId", image.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", too_large.as_str()),
    ];
    look_at_storage(w.role.cloud(), &mut Memory::default()).await.unwrap();
    let refused = w.ask("CreateVolume", &volume).await.unwrap_err();
    assert_eq!(refused.code, Code::InsufficientVolumeCapacity);
    assert!(refused.message.contains("10240 GiB in all"), "{}", refused.message);
    assert_eq!(w.refused("RunInstances", &disk).await, Code::InsufficientVolumeCapacity);
    assert!(w.role.cloud().store.list::<Volume>().is_empty());
}
