//! Every step of every flow failing, losing its answer, or being cut off by a crash of the cloud; then the same end.

use tonic::Status;

use super::super::error::Code;
use super::super::fakes::Fault;
use super::super::records::{Instance, Lease, Volume};
use super::super::tests::{World, text, texts};

/// Asks again whenever the cloud crashes meanwhile; what a repeat finds done already is done.
async fn surely(w: &mut World, action: &str, params: &[(&str, &str)]) -> String {
    loop {
        let faults = w.faults.clone();
        let answer = tokio::select! {
            answer = w.ask(action, params) => Some(answer),
            () = faults.crashed.notified() => None,
        };
        match answer {
            Some(Ok(xml)) => return xml,
            Some(Err(e)) if e.code == Code::VolumeInUse => return String::new(),
            Some(Err(e)) => panic!("{action}: {e}"),
            None => w.restart().await,
        }
    }
}

/// Waits, through crashes.
async fn wait(w: &mut World, what: &str, id: &str, state: &str) {
    loop {
        let faults = w.faults.clone();
        let waited = async {
            if what == "instance" { w.until_instance(id, state).await } else { w.until_volume(id, state).await }
        };
        let crashed = tokio::select! {
            () = waited => false,
            () = faults.crashed.notified() => true,
        };
        if !crashed {
            return;
        }
        w.restart().await;
    }
}

/// A life with every flow in it; must end the same whatever passing trouble it meets.
async fn life(w: &mut World) {
    let image = w.image("first").await;
    let params = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1"), ("ClientToken", "t")];
    let id = text(&surely(w, "RunInstances", &params).await, "instanceId");
    wait(w, "instance", &id, "running").await;
    let params = [("AvailabilityZone", "us-east-1a"), ("Size", "1"), ("ClientToken", "t")];
    let v = text(&surely(w, "CreateVolume", &params).await, "volumeId");
    wait(w, "volume", &v, "available").await;
    let attachment = [("VolumeId", v.as_str()), ("InstanceId", &id), ("Device", "/dev/sdf")];
    surely(w, "AttachVolume", &attachment).await;
    wait(w, "volume", &v, "in-use").await;
    assert!(w.cluster.vm(&id).unwrap().disks.iter().any(|d| d.volume_id == v));
    surely(w, "RebootInstances", &[("InstanceId.1", &id)]).await;
    wait(w, "instance", &id, "running").await;
    surely(w, "DetachVolume", &[("VolumeId", &v)]).await;
    wait(w, "volume", &v, "available").await;
    assert!(w.storage.volumes()[&v].export.is_none());
    surely(w, "AttachVolume", &attachment).await;
    wait(w, "volume", &v, "in-use").await;
    surely(w, "StopInstances", &[("InstanceId.1", &id)]).await;
    wait(w, "instance", &id, "stopped").await;
    assert!(w.storage.volumes().values().all(|v| v.export.is_none()));
    surely(w, "StartInstances", &[("InstanceId.1", &id)]).await;
    wait(w, "instance", &id, "running").await;
    assert_eq!(w.cluster.vm(&id).unwrap().disks.len(), 2);
    surely(w, "TerminateInstances", &[("InstanceId.1", &id)]).await;
    wait(w, "instance", &id, "terminated").await;
    wait(w, "volume", &v, "available").await;
    surely(w, "DeleteVolume", &[("VolumeId", &v)]).await;
    wait(w, "volume", &v, "deleted").await;
    nothing_is_left(w);
}

fn nothing_is_left(w: &World) {
    assert!(w.storage.volumes().is_empty(), "{:#?}\n{:?}", w.storage.volumes(), w.faults.log());
    let zone = w.cluster.lock();
    assert!(zone.placed.is_empty(), "{:?}\n{:?}", zone.placed, w.faults.log());
    assert!(zone.vms.values().all(|vm| vm.state != karri_base::proto::incarnation::State::Running));
    assert!(w.role.cloud().store.list::<Lease>().is_empty());
}

/// How many calls an undisturbed life makes.
async fn calls_of_a_life() -> u64 {
    let mut w = World::new().await;
    life(&mut w).await;
    w.faults.calls()
}

#[tokio::test]
async fn a_life_survives_any_call_failing_for_a_while() {
    let calls = calls_of_a_life().await;
    assert!(calls > 25, "{calls}");
    for n in 0..calls {
        for fault in [
            Fault::Before(Status::unavailable("down")),
            Fault::After(Status::unavailable("answer lost")),
            Fault::After(Status::deadline_exceeded("slow")),
        ] {
            let mut w = World::new().await;
            w.faults.fail(n, fault);
            life(&mut w).await;
        }
    }
}

#[tokio::test]
async fn a_life_survives_a_crash_of_the_cloud_at_any_call() {
    let calls = calls_of_a_life().await;
    for n in 0..calls {
        for done in [false, true] {
            let mut w = World::seeded(n).await;
            w.faults.fail(n, Fault::Crash { done });
            life(&mut w).await;
            assert_eq!(w.restarts, 1, "{n}");
        }
    }
}

#[tokio::test]
async fn a_launch_that_cannot_be_is_undone_at_every_step() {
    let mut w = World::new().await;
    let image = w.image("first").await;
    let id = w.instance_of(&image).await;
    let calls = w.faults.calls();
    w.ask("TerminateInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "terminated").await;
    assert_eq!(calls, 4, "place, create, export, start");
    for n in 0..calls {
        for done in [false, true] {
            w = World::new().await;
            let image = w.image("first").await;
            let refusal = Status::failed_precondition("no");
            w.faults.fail(n, if done { Fault::After(refusal) } else { Fault::Before(refusal) });
            if n == 0 {
                // Placing is tried in the request first; it fails there and again in the flow.
                w.faults.fail(1, Fault::Before(Status::failed_precondition("no")));
            }
            let params = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
            let id = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
            w.until_instance(&id, "terminated").await;
            let reason = w.instance(&id).reason.clone().expect("a failure has a reason");
            assert_eq!(reason.code, "Server.InternalError", "{n} {done}");
            nothing_is_left(&w);
            let xml = w.ask("DescribeInstances", &[]).await.unwrap();
            assert!(xml.contains("Server.InternalError"), "{xml}");
        }
    }
}

#[tokio::test]
async fn a_full_store_is_the_instances_reason_and_the_volumes_error() {
    let w = World::new().await;
    let image = w.image("first").await;
    w.storage.set_full(true);
    let params = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    let id = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    w.until_instance(&id, "terminated").await;
    assert_eq!(w.instance(&id).reason.as_ref().unwrap().code, "Server.InsufficientVolumeCapacity");
    let xml = w.ask("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await.unwrap();
    let v = text(&xml, "volumeId");
    w.until_volume(&v, "error").await;
    w.ask("DeleteVolume", &[("VolumeId", &v)]).await.unwrap();
    w.until_volume(&v, "deleted").await;
    nothing_is_left(&w);
}

#[tokio::test]
async fn a_start_that_cannot_be_goes_back_to_stopped() {
    let w = World::new().await;
    let image = w.image("first").await;
    let id = w.instance_of(&image).await;
    w.ask("StopInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "stopped").await;
    let next = w.faults.calls();
    w.faults.fail(next + 2, Fault::Before(Status::failed_precondition("no")));
    w.ask("StartInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "stopped").await;
    assert_eq!(w.instance(&id).reason.as_ref().unwrap().code, "Server.InternalError");
    assert!(w.cluster.lock().placed.is_empty());
    w.ask("StartInstances", &[("InstanceId.1", &id)]).await.unwrap();
    w.until_instance(&id, "running").await;
}

#[tokio::test]
async fn an_attach_that_cannot_be_lets_go() {
    let w = World::new().await;
    let image = w.image("first").await;
    let (id, v) = (w.instance_of(&image).await, w.blank_volume().await);
    for step in 0..2 {
        let next = w.faults.calls();
        w.faults.fail(next + step, Fault::Before(Status::failed_precondition("no free port")));
        let params = [("VolumeId", v.as_str()), ("InstanceId", &id), ("Device", "/dev/sdf")];
        w.ask("AttachVolume", &params).await.unwrap();
        w.until_volume(&v, "available").await;
        assert!(w.storage.volumes()[&v].export.is_none());
        assert_eq!(w.instance(&id).volumes.len(), 1);
        assert!(w.volume(&v).reason.as_ref().unwrap().message.contains("no free port"));
    }
}

#[tokio::test]
async fn a_guest_that_keeps_its_disk_leaves_it_busy_until_forced() {
    let w = World::new().await;
    let image = w.image("first").await;
    let (id, v) = (w.instance_of(&image).await, w.blank_volume().await);
    let params = [("VolumeId", v.as_str()), ("InstanceId", &id), ("Device", "/dev/sdf")];
    w.ask("AttachVolume", &params).await.unwrap();
    w.until_volume(&v, "in-use").await;
    w.faults.fail(w.faults.calls(), Fault::Before(Status::failed_precondition("the guest holds it")));
    w.ask("DetachVolume", &[("VolumeId", &v)]).await.unwrap();
    w.until_volume(&v, "in-use").await;
    assert_eq!(texts(&w.ask("DescribeVolumes", &[("VolumeId.1", &v)]).await.unwrap(), "status"), ["busy", "in-use"]);
    w.ask("DetachVolume", &[("VolumeId", &v), ("Force", "true")]).await.unwrap();
    w.until_volume(&v, "available").await;
}

/// A cloud with a clock, an instance, and a volume that its guest does not let go of when asked.
async fn kept(clock: &std::sync::Arc<karri_base::clock::ManualClock>) -> (World, String, String) {
    let w = World::at(clock.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let image = w.image("first").await;
    let (id, v) = (w.instance_of(&image).await, w.blank_volume().await);
    let params = [("VolumeId", v.as_str()), ("InstanceId", &id), ("Device", "/dev/sdf")];
    w.ask("AttachVolume", &params).await.unwrap();
    w.until_volume(&v, "in-use").await;
    w.cluster.lock().guests_keep_disks = true;
    let xml = w.ask("DetachVolume", &[("VolumeId", &v)]).await.unwrap();
    assert_eq!(text(&xml, "status"), "detaching");
    until_busy(&w, &v).await;
    assert!(w.volume(&v).flow.is_some(), "the guest is asked again");
    (w, id, v)
}

async fn until_busy(w: &World, v: &str) {
    w.until("busy", |c| {
        let attachment = c.store.get::<Volume>(v).and_then(|v| v.attachment.clone());
        attachment.is_some_and(|a| a.state.as_str() == "busy")
    })
    .await;
}

fn manual_clock() -> std::sync::Arc<karri_base::clock::ManualClock> {
    use karri_base::clock::{ManualClock, UnixMicros};
    std::sync::Arc::new(ManualClock::at(UnixMicros(super::super::tests::NOW)))
}

#[tokio::test]
async fn a_guest_is_asked_for_its_disk_until_patience_ends() {
    let clock = manual_clock();
    let (mut w, _, v) = kept(&clock).await;
    let status = |w: &World| {
        let volume = w.volume(&v);
        let attachment = volume.attachment.as_ref().unwrap();
        (volume.state.to_string(), attachment.state.to_string(), volume.reason.clone().unwrap().message)
    };
    let (state, attachment, why) = status(&w);
    assert_eq!((state.as_str(), attachment.as_str()), ("in-use", "busy"));
    assert!(why.contains("the guest keeps the volume"), "{why}");
    // The flow goes on over a restart, and is over when patience is.
    w.restart().await;
    let asked = w.faults.calls();
    let again = async {
        while w.faults.calls() < asked + 2 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), again).await.unwrap();
    assert!(w.volume(&v).flow.is_some());
    clock.advance(std::time::Duration::from_secs(3600));
    w.until_volume(&v, "in-use").await;
    let (_, attachment, why) = status(&w);
    assert!(attachment == "busy" && why.contains("gave up"), "{attachment} {why}");
    assert!(w.storage.volumes()[&v].export.is_some(), "the guest still has its disk");
    // Asked anew it lets go.
    w.cluster.lock().guests_keep_disks = false;
    w.ask("DetachVolume", &[("VolumeId", &v)]).await.unwrap();
    w.until_volume(&v, "available").await;
    assert!(w.storage.volumes()[&v].export.is_none());
}

#[tokio::test]
async fn force_ends_a_detach_that_a_guest_holds_up() {
    let (w, id, v) = kept(&manual_clock()).await;
    w.ask("DetachVolume", &[("VolumeId", &v), ("Force", "true")]).await.unwrap();
    w.until_volume(&v, "available").await;
    assert!(w.storage.volumes()[&v].export.is_none());
    assert_eq!((w.instance(&id).state.as_str(), w.instance(&id).volumes.len()), ("running", 1));
}

#[tokio::test]
async fn an_instance_that_ends_lets_go_of_busy_volumes() {
    for action in ["StopInstances", "TerminateInstances"] {
        for over in [false, true] {
            let clock = manual_clock();
            let (w, id, v) = kept(&clock).await;
            if over {
                clock.advance(std::time::Duration::from_secs(3600));
                w.until_volume(&v, "in-use").await;
            }
            w.ask(action, &[("InstanceId.1", &id)]).await.unwrap();
            w.until_instance(&id, if action == "StopInstances" { "stopped" } else { "terminated" }).await;
            w.until_volume(&v, "available").await;
            assert!(w.storage.volumes()[&v].export.is_none());
            assert!(!w.instance(&id).volumes.iter().any(|held| held.as_str() == v));
        }
    }
}

#[tokio::test]
async fn termination_overtakes_a_launch_that_waits() {
    let w = World::new().await;
    let image = w.image("first").await;
    w.faults.set_down(Some(Status::unavailable("everything is down")));
    let params = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    let id = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    assert_eq!(w.instance(&id).state.as_str(), "pending");
    w.ask("TerminateInstances", &[("InstanceId.1", &id)]).await.unwrap();
    assert_eq!(w.instance(&id).state.as_str(), "shutting-down");
    w.faults.set_down(None);
    w.until_instance(&id, "terminated").await;
    assert_eq!(w.instance(&id).generation, 2, "a late start is older and refused");
    nothing_is_left(&w);
}

#[tokio::test]
async fn a_launch_gives_up_in_the_end_and_a_termination_never_does() {
    let clock = manual_clock();
    let w = World::at(clock.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let image = w.image("first").await;
    let id = w.instance_of(&image).await;
    w.faults.set_down(Some(Status::unavailable("down")));
    let params = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
    let late = text(&w.ask("RunInstances", &params).await.unwrap(), "instanceId");
    w.ask("TerminateInstances", &[("InstanceId.1", &id)]).await.unwrap();
    clock.advance(std::time::Duration::from_secs(3600));
    w.until("turned round", |c| {
        c.store.get::<Instance>(&late).is_some_and(|i| i.flow.as_ref().is_some_and(|f| f.undo.is_some()))
    })
    .await;
    assert_eq!(w.instance(&id).state.as_str(), "shutting-down");
    w.faults.set_down(None);
    w.until_instance(&late, "terminated").await;
    w.until_instance(&id, "terminated").await;
    assert!(w.instance(&late).reason.as_ref().unwrap().message.contains("gave up"));
    assert!(w.role.cloud().store.list::<Volume>().iter().all(|v| v.state.as_str() == "deleted"));
    nothing_is_left(&w);
}
