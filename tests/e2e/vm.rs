//! Instances and volumes with a booted guest.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::cloud::{Cloud, checkout, errors_of, has, karri, text_of, wait};

/// A guest boots in software emulation on a busy machine.
pub const BOOT: Duration = Duration::from_secs(180);

/// False, with a word, where this machine cannot run a guest.
pub fn can_run_guests(test: &str) -> bool {
    if !guest("root.img").exists() {
        println!("SKIPPED {test}: no target/guest/root.img; run `make guest`");
        return false;
    }
    has(test, &["aws", "qemu-system-x86_64"])
}

/// A file of `make guest`.
fn guest(name: &str) -> PathBuf {
    checkout().join("target/guest").join(name)
}

/// Registers the guest with `karri image add`; the image's id.
pub fn add_image(cloud: &Cloud) -> String {
    let output = karri()
        .args(["image", "add", "guest", "--state"])
        .arg(&cloud.state)
        .arg("--root")
        .arg(guest("root.img"))
        .arg("--kernel")
        .arg(guest("vmlinuz"))
        .arg("--ramdisk")
        .arg(guest("initrd"))
        .output()
        .expect("karri image add runs");
    assert!(output.status.success(), "{}", errors_of(&output));
    let id = text_of(&output).trim().to_owned();
    assert!(id.starts_with("ami-"), "{id}");
    id
}

/// Runs an instance whose user data is a script; its id.
pub fn run(cloud: &Cloud, image: &str, script: &str) -> String {
    let run = cloud.aws_ok(&[
        "ec2",
        "run-instances",
        "--image-id",
        image,
        "--instance-type",
        "t3.nano",
        "--user-data",
        script,
        "--count",
        "1",
    ]);
    text(&run["Instances"][0]["InstanceId"])
}

/// A JSON string.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// Waits until the instance is in this state.
pub fn wait_state(cloud: &Cloud, instance: &str, state: &str) {
    let mut last = String::new();
    wait(BOOT, &format!("{instance} to be {state}"), || {
        let answer = cloud.aws(&["ec2", "describe-instances", "--instance-ids", instance, "--output", "json"]);
        let answer: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let now = answer["Reservations"][0]["Instances"][0]["State"]["Name"].as_str().unwrap_or("nowhere").to_owned();
        if now != last {
            println!("{instance}: {now} {}", answer["Reservations"][0]["Instances"][0]["StateReason"]);
            last = now;
        }
        (last == state).then_some(())
    });
}

/// The console as it is now.
pub fn console(cloud: &Cloud, instance: &str) -> String {
    let output = cloud.aws(&["ec2", "get-console-output", "--instance-id", instance, "--latest", "--output", "text"]);
    text_of(&output)
}

/// Waits for a line of the console that begins so; what follows.
pub fn wait_console(cloud: &Cloud, instance: &str, begin: &str) -> String {
    let mut last = String::new();
    let patience = std::time::Instant::now() + BOOT;
    loop {
        last = Some(console(cloud, instance)).filter(|text| !text.is_empty()).unwrap_or(last);
        // The console writes carriage returns; aws cli puts the id in front.
        let found = last.lines().filter_map(|line| line.split_once(begin)).next_back();
        if let Some((_, rest)) = found {
            return rest.trim().to_owned();
        }
        assert!(std::time::Instant::now() < patience, "no {begin:?} on the console of {instance}:\n{last}");
        wait(BOOT, "a moment", moment());
    }
}

/// Answers at its third asking.
fn moment() -> impl FnMut() -> Option<()> {
    let mut asked = 0;
    move || {
        asked += 1;
        (asked > 5).then_some(())
    }
}

/// Makes a volume and waits until it is available; its id.
pub fn volume(cloud: &Cloud, gib: u32) -> String {
    let zone = format!("{}a", cloud.var("AWS_DEFAULT_REGION"));
    let made = cloud.aws_ok(&["ec2", "create-volume", "--size", &gib.to_string(), "--availability-zone", &zone]);
    let id = text(&made["VolumeId"]);
    wait_volume(cloud, &id, "available");
    id
}

/// Waits until the volume is in this state.
pub fn wait_volume(cloud: &Cloud, volume: &str, state: &str) {
    wait(Duration::from_secs(60), &format!("{volume} to be {state}"), || {
        let answer = cloud.aws_ok(&["ec2", "describe-volumes", "--volume-ids", volume]);
        (answer["Volumes"][0]["State"] == state).then_some(())
    });
}

/// Attaches a volume as the guest's next disk.
pub fn attach(cloud: &Cloud, volume: &str, instance: &str) {
    cloud.aws_ok(&["ec2", "attach-volume", "--volume-id", volume, "--instance-id", instance, "--device", "/dev/sdf"]);
    wait_volume(cloud, volume, "in-use");
}

/// Writes noise to a disk that appears, and tells its digest.
const WRITER: &str = "#!/bin/sh
cat >/etc/karri/on-disk <<'END'
#!/bin/sh
head -c 8388608 /dev/urandom >/tmp/noise
dd if=/tmp/noise of=$1 bs=1M 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
echo \"wrote $(sha256sum </tmp/noise | cut -c1-64) read $(head -c 8388608 $1 | sha256sum | cut -c1-64)\" >/dev/console
END
chmod +x /etc/karri/on-disk
echo \"hook is set\" >/dev/console
";

/// Tells the digest of a disk that appears.
const READER: &str = "#!/bin/sh
cat >/etc/karri/on-disk <<'END'
#!/bin/sh
echo \"digest $(head -c 8388608 $1 | sha256sum | cut -c1-64)\" >/dev/console
END
chmod +x /etc/karri/on-disk
echo \"hook is set\" >/dev/console
";

#[test]
fn a_volume_written_by_one_guest_is_read_by_another() {
    if !can_run_guests("a_volume_written_by_one_guest_is_read_by_another") {
        return;
    }
    let cloud = Cloud::start();
    let image = add_image(&cloud);
    let [writer, reader] = [WRITER, READER].map(|script| run(&cloud, &image, script));
    let volume = volume(&cloud, 1);
    wait_state(&cloud, &writer, "running");
    wait_console(&cloud, &writer, "hook is set");
    attach(&cloud, &volume, &writer);
    let digests = wait_console(&cloud, &writer, "wrote ");
    let (wrote, read) = digests.split_once(" read ").expect("two digests");
    assert_eq!(wrote, read);
    let wrote = wrote.to_owned();

    cloud.aws_ok(&["ec2", "detach-volume", "--volume-id", &volume]);
    wait_volume(&cloud, &volume, "available");
    wait_console(&cloud, &writer, "disk vdb gone");
    wait_state(&cloud, &reader, "running");
    wait_console(&cloud, &reader, "hook is set");
    attach(&cloud, &volume, &reader);
    assert_eq!(wait_console(&cloud, &reader, "digest "), wrote);

    // Life goes on: stop, start with the same root disk, reboot, end.
    cloud.aws_ok(&["ec2", "stop-instances", "--instance-ids", &writer]);
    wait_state(&cloud, &writer, "stopped");
    cloud.aws_ok(&["ec2", "start-instances", "--instance-ids", &writer]);
    wait_state(&cloud, &writer, "running");
    cloud.aws_ok(&["ec2", "terminate-instances", "--instance-ids", &writer, &reader]);
    wait_state(&cloud, &writer, "terminated");
    wait_state(&cloud, &reader, "terminated");
    wait_volume(&cloud, &volume, "available");
    cloud.aws_ok(&["ec2", "delete-volume", "--volume-id", &volume]);
    let refusal = cloud.aws_refused(&["ec2", "describe-volumes", "--volume-ids", &volume]);
    assert!(refusal.contains("InvalidVolume.NotFound"), "{refusal}");
    assert!(cloud.stop(), "karri up ends well");
}
