//! kill -9, role by role.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::cloud::{Cloud, has, wait};
use crate::vm::{BOOT, add_image, attach, can_run_guests, run, volume, wait_console, wait_state};

#[test]
fn walrus_killed_under_16_clients_loses_nothing_acknowledged() {
    if !has("walrus_killed_under_16_clients_loses_nothing_acknowledged", &["python"]) {
        return;
    }
    let cloud = Cloud::start();
    let mut puts = cloud.python("puts.py").args(["acked", "12"]).stdout(Stdio::piped()).spawn().expect("python runs");
    let lines = BufReader::new(puts.stdout.take().expect("a pipe"));
    let (mut kills, mut verified) = (0, None);
    for line in lines.lines().map_while(Result::ok) {
        let count =
            |prefix: &str| line.strip_prefix(prefix).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        // Kills come under load, some time apart.
        if count("acked ").is_some_and(|acked| acked >= (kills + 1) * 40) && kills < 3 {
            cloud.kill_role("walrus");
            kills += 1;
        }
        verified = verified.or(count("verified "));
    }
    assert!(puts.wait().expect("it ends").success(), "see its output above");
    assert!(kills > 0 && verified.is_some_and(|n| n >= 40), "{kills} kills, {verified:?} verified");
}

/// Writes noise to places of a disk that were never written, half of it not flushed, and reads it back past the cache, for
/// ever; says how many rounds went well.
const VERIFIER: &str = "#!/bin/sh
cat >/etc/karri/on-disk <<'END'
#!/bin/sh
round=0
while :; do
  round=$((round + 1))
  head -c 1048576 /dev/urandom >/tmp/noise
  at=$((round % 1000))
  how=conv=fsync
  [ $((round % 2)) = 0 ] || how=oflag=direct
  dd if=/tmp/noise of=$1 bs=1M seek=$at $how 2>/tmp/dd || { echo \"bad write $round: $(cat /tmp/dd)\" >/dev/console; exit; }
  echo 3 >/proc/sys/vm/drop_caches
  dd if=$1 bs=1M skip=$at count=1 2>/dev/null | cmp - /tmp/noise || { echo \"bad read $round\" >/dev/console; exit; }
  echo \"round $round good\" >/dev/console
done
END
chmod +x /etc/karri/on-disk
echo \"hook is set\" >/dev/console
";

/// Waits until the guest has done `more` further rounds.
fn rounds(cloud: &Cloud, instance: &str, more: u64) {
    let last = || {
        let text = crate::vm::console(cloud, instance);
        assert!(!text.contains("bad write") && !text.contains("bad read"), "{text}");
        let round = text.lines().rev().find_map(|line| line.split_once("round ")?.1.split(' ').next()?.parse().ok());
        round.unwrap_or(0u64)
    };
    let begin = last();
    wait(BOOT, &format!("{more} more rounds after {begin}"), || (last() >= begin + more).then_some(()));
}

#[test]
fn instances_go_on_while_every_role_is_killed() {
    if !can_run_guests("instances_go_on_while_every_role_is_killed") {
        return;
    }
    let cloud = Cloud::start();
    let image = add_image(&cloud);
    let instance = run(&cloud, &image, VERIFIER);
    let volume = volume(&cloud, 1);
    wait_state(&cloud, &instance, "running");
    wait_console(&cloud, &instance, "hook is set");
    attach(&cloud, &volume, &instance);
    rounds(&cloud, &instance, 2);
    for role in ["storage", "node", "storage", "cloud", "cluster", "walrus"] {
        cloud.kill_role(role);
        rounds(&cloud, &instance, 2);
        wait_state(&cloud, &instance, "running");
    }
    // Managed again: what was taken on before the kills is still acted on.
    cloud.aws_ok(&["ec2", "detach-volume", "--volume-id", &volume, "--force"]);
    cloud.aws_ok(&["ec2", "terminate-instances", "--instance-ids", &instance]);
    wait_state(&cloud, &instance, "terminated");
    wait(Duration::from_secs(60), "the volume to be free", || {
        let answer = cloud.aws_ok(&["ec2", "describe-volumes", "--volume-ids", &volume]);
        (answer["Volumes"][0]["State"] == "available").then_some(())
    });
}
