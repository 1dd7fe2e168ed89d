//! The house's arrows (ARCHITECTURE.md), held by `cargo metadata` and by a look at each crate's front page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

/// Each crate of ours and the crates of ours that it may name, tests included.
const MAY: [(&str, &[&str]); 10] = [
    ("karri-base", &[]),
    ("karri-engine", &["karri-base"]),
    ("karri-meta", &["karri-base"]),
    ("karri-bulk", &["karri-base", "karri-engine"]),
    ("karri-net", &["karri-base"]),
    ("karri-bench", &["karri-base"]),
    ("karri-objectstore", &["karri-base", "karri-engine", "karri-meta", "karri-bulk"]),
    ("karri-blockstore", &["karri-base", "karri-engine", "karri-meta", "karri-bulk"]),
    ("karri-control", &["karri-base", "karri-meta", "karri-net"]),
    (
        "karri",
        &[
            "karri-base",
            "karri-engine",
            "karri-meta",
            "karri-bulk",
            "karri-net",
            "karri-objectstore",
            "karri-blockstore",
            "karri-control",
        ],
    ),
];

/// The crates that hold `unsafe`: the engine (ring, buffers, FFI) and the block store (guest memory).
const UNSAFE: [&str; 2] = ["karri-engine", "karri-blockstore"];

struct Member {
    root: PathBuf,
    ours: BTreeSet<String>,
}

fn workspace() -> BTreeMap<String, Member> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            // A path means that it is ours, whatever its name.
            let ours = dependencies.iter().filter(|d| d["path"].is_string()).map(|d| text(&d["name"])).collect();
            let library = package["targets"].as_array().expect("targets").iter().find(|target| {
                let kinds = target["kind"].as_array().expect("kinds");
                kinds.iter().any(|kind| kind == "lib" || kind == "bin")
            });
            let root = PathBuf::from(text(&library.expect("a library or a program")["src_path"]));
            (text(&package["name"]), Member { root, ours })
        })
        .collect()
}

#[test]
fn crates_name_only_those_below_them() {
    let may: BTreeMap<_, BTreeSet<&str>> =
        MAY.into_iter().map(|(name, to)| (name, to.iter().copied().collect())).collect();
    for (name, member) in workspace() {
        let allowed =
            may.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no place in the house: give it one here"));
        for to in &member.ours {
            // A crate's own integration tests may ask itself for a feature.
            assert!(allowed.contains(to.as_str()) || *to == name, "{name} must not name {to}");
        }
    }
}

#[test]
fn unsafe_is_forbidden_where_it_has_no_place() {
    for (name, member) in workspace() {
        let text = std::fs::read_to_string(&member.root).expect("a crate's front page");
        let forbids = text.contains("#![forbid(unsafe_code)]");
        assert!(forbids || UNSAFE.contains(&name.as_str()), "{name} lacks #![forbid(unsafe_code)]");
    }
}

#[test]
fn no_file_is_two_stories() {
    // Generated code keeps to its own folder.
    let mut long = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the checkout") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !(name.starts_with('.') || ["target", "generated"].contains(&name.as_str())) {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") && !name.starts_with("generated") {
                let lines = std::fs::read_to_string(&path).unwrap_or_default().lines().count();
                if lines > 900 {
                    long.push(format!("{} ({lines} lines)", path.display()));
                }
            }
        }
    }
    assert!(long.is_empty(), "split these along their stories: {long:#?}");
}
