//! RocksStore's own promises: refusals, checkpoints, space, kill -9.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use karri_meta::conformance::block_on;
use karri_meta::rocks::{Options, RocksStore};
use karri_meta::{Batch, MetaError, MetaStore, Scan};

fn open(dir: &Path) -> Result<RocksStore, MetaError> {
    RocksStore::open(dir, &Options::default())
}

/// Why `dir` is refused.
fn refusal(dir: &Path) -> String {
    match open(dir) {
        Err(MetaError::Failed { op: "open", why }) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened {}", dir.display()),
    }
}

#[test]
fn refusals_name_the_folder_the_reason_and_the_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("meta");
    let name = path.display().to_string();

    let held = open(&path).expect("opens");
    let why = refusal(&path);
    assert!(why.starts_with(&name) && why.contains("another process holds it"), "{why}");
    drop(held);
    drop(open(&path).expect("opens again once free"));

    std::fs::write(path.join("FORMAT"), "karri-meta 2\n").expect("writes");
    let why = refusal(&path);
    assert!(why.contains(&name) && why.contains("version 2") && why.contains("version 1"), "{why}");
    for damaged in ["", "karri-meta x", "other 1"] {
        std::fs::write(path.join("FORMAT"), damaged).expect("writes");
        assert!(refusal(&path).contains("FORMAT file says"), "{damaged:?}");
    }

    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).expect("makes");
    std::fs::write(foreign.join("letter.txt"), "hello").expect("writes");
    let why = refusal(&foreign);
    assert!(why.contains("letter.txt") && why.contains("not a karri metadata store"), "{why}");

    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writes");
    assert!(refusal(&file).contains("is not a folder"), "{}", refusal(&file));
}

#[test]
fn a_damaged_database_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path()).expect("opens");
    block_on(store.commit(Batch::new().put("a", "1"))).expect("commits");
    drop(store);
    std::fs::write(dir.path().join("db/CURRENT"), "nonsense").expect("writes");
    let why = refusal(dir.path());
    assert!(why.contains("damaged") && why.contains("checkpoint"), "{why}");
}

#[test]
fn the_folder_is_as_the_format_page_says() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()).expect("opens"));
    assert_eq!(std::fs::read_to_string(dir.path().join("FORMAT")).expect("reads"), "karri-meta 1\n");
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).expect("lists").flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["FORMAT", "db"]);
}

#[test]
fn a_checkpoint_is_a_store_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let (path, copy) = (dir.path().join("meta"), dir.path().join("copy"));
    let store = open(&path).expect("opens");
    block_on(store.commit(Batch::new().put("a", "1"))).expect("commits");
    block_on(store.checkpoint(copy.clone())).expect("copies");
    block_on(store.commit(Batch::new().put("a", "2").put("b", "2"))).expect("commits");
    assert!(matches!(block_on(store.checkpoint(copy.clone())), Err(MetaError::Failed { op: "checkpoint", .. })));
    let copied = open(&copy).expect("opens");
    assert_eq!(block_on(copied.scan(Scan::prefix("", 9))), Ok(vec![("a".into(), "1".into())]));
}

#[test]
fn a_full_file_system_refuses_puts_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(small) = Mounted::tmpfs(dir.path().join("small")) else {
        eprintln!("SKIPPED a_full_file_system_refuses_puts: may not mount a tmpfs here");
        return;
    };
    let store = open(&small.0.join("meta")).expect("opens");
    let key = |i: u32| i.to_be_bytes().to_vec();
    let (mut answered, mut value, mut rng) = (0, vec![0; 64 << 10], StdRng::seed_from_u64(1));
    let refused = loop {
        // Does not compress.
        rng.fill(&mut value[..]);
        match block_on(store.commit(Batch::new().put(key(answered), value.clone()))) {
            Ok(()) => answered += 1,
            Err(refused) => break refused,
        }
    };
    let MetaError::NoSpace { why } = refused else { panic!("{refused:?}") };
    assert!(why.contains("small") && why.contains("free some space"), "{why}");
    assert!(answered > 100, "{answered}");
    // A flush or compaction of what was just written may hold the rest of the space for a moment.
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match block_on(store.commit(Batch::new().del(key(0)))) {
            Ok(()) => break,
            Err(MetaError::NoSpace { .. }) if std::time::Instant::now() < patience => {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            Err(refused) => panic!("removing works: {refused}"),
        }
    }
    drop(store);
    let store = open(&small.0.join("meta")).expect("opens when full");
    let pairs = block_on(store.scan(Scan::new(key(0).into()..key(answered + 1).into(), usize::MAX))).expect("scans");
    assert_eq!(pairs.len() as u32, answered - 1, "everything answered is there");
}

/// 64 MiB of tmpfs, where the user may mount.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "karri-test"]).arg(&at).stderr(Stdio::null());
        mount.status().ok()?.success().then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Runs in the child: commits for ever, prints what was answered.
#[test]
fn child_commits_until_killed() {
    let Ok(dir) = std::env::var("KARRI_META_CHILD") else { return };
    let store: Arc<RocksStore> = Arc::new(open(Path::new(&dir)).expect("opens"));
    std::thread::scope(|scope| {
        for who in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0u64.. {
                    let (name, value) = (format!("{who}-{n}"), format!("{}", n * 7));
                    let batch = Batch::new().check(name.clone(), None).put(name.clone(), value.clone());
                    block_on(store.commit(batch.put(format!("twin-{name}"), value))).expect("commits");
                    println!("ack {name}");
                }
            });
        }
    });
}

#[test]
fn kill_9_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut acked: Vec<String> = Vec::new();
    for round in 0..3 {
        let path = dir.path().join("meta").join(round.to_string());
        std::fs::create_dir_all(dir.path().join("meta")).expect("makes");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "child_commits_until_killed", "--nocapture", "--test-threads=1"])
            .env("KARRI_META_CHILD", &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut ack = |line: std::io::Result<String>| {
            // The test harness may have printed on the same line before.
            let line = line.unwrap_or_default();
            acked.extend(line.split_once("ack ").map(|(_, name)| name.to_owned()));
            acked.len()
        };
        while ack(lines.next().expect("the child lives")) < 200 {}
        child.kill().expect("kills");
        lines.for_each(|line| {
            ack(line);
        });
        child.wait().expect("ends");

        let store = open(&path).expect("opens after kill -9");
        for name in acked.drain(..) {
            let n: u64 = name.split_once('-').and_then(|(_, n)| n.parse().ok()).expect("whole lines");
            let both = block_on(store.multi_get(vec![name.clone().into(), format!("twin-{name}").into()]));
            let expected = Some((n * 7).to_string().into());
            assert_eq!(both, Ok(vec![expected.clone(), expected]), "round {round}: {name} was answered");
        }
        let pairs = block_on(store.scan(Scan::new("0".into().."5".into(), usize::MAX))).expect("scans");
        for (name, value) in pairs {
            let twin = block_on(store.get([b"twin-", &name[..]].concat().into()));
            assert_eq!(twin, Ok(Some(value)), "round {round}: a commit is whole");
        }
    }
}

#[test]
fn a_process_can_wait_until_its_stores_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = RocksStore::open(folder.path().join("meta"), &Options::default()).unwrap();
    assert!(!karri_meta::rocks::wait_closed(Duration::ZERO), "one is open");
    drop(store);
    // Tests of the same process may have others open, but not for long.
    assert!(karri_meta::rocks::wait_closed(Duration::from_secs(60)));
}
