//! Where the objects of a bucket go in a folder. Keys are any text; names of files are not.
//!
//! A key is cut at its slashes. Of each part, letters, digits and `._- ` stay and other bytes are written as `%XX`; a part
//! of dots alone has them written so too, an empty one is `%`, and one that is too long is cut with `%-` at each cut.
//! Where a key is the beginning of another one (`a`, `a/b`), `a` is the file and `a%` the folder, or, where the folder was
//! first, `a/%-%` the file. So nothing leaves the
//! folder, no two keys share a file, and most keys look as they are.

use std::path::{Path, PathBuf};

/// A name's bytes, as most file systems have it, less what is added.
const NAME_MAX: usize = 200;

/// The path of a key below a folder; `is_file` tells of a path below it whether it is a file already.
pub fn path(key: &str, is_file: impl Fn(&Path) -> bool) -> PathBuf {
    let mut names: Vec<String> = Vec::new();
    for part in key.split('/') {
        let mut name = encode(part);
        while name.len() > NAME_MAX {
            // Not within `%XX`.
            let at = (NAME_MAX - 2..=NAME_MAX).rev().find(|at| !name[at - 2..*at].contains('%')).unwrap_or(NAME_MAX);
            let rest = name.split_off(at);
            names.push(name + "%-");
            name = rest;
        }
        names.push(name);
    }
    let last = names.pop().unwrap_or_default();
    let mut path = PathBuf::new();
    for name in names {
        let plain = path.join(&name);
        path = if is_file(&plain) { path.join(name + "%") } else { plain };
    }
    path.join(last)
}

fn encode(part: &str) -> String {
    if part.is_empty() {
        return "%".into();
    }
    let dots = part.bytes().all(|b| b == b'.');
    let mut out = String::with_capacity(part.len());
    for b in part.bytes() {
        match b {
            b'.' if dots => out.push_str("%2E"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b' ' => out.push(b.into()),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Component;

    use super::*;

    #[test]
    fn keys_as_paths() {
        let check = |key: &str, want: &str| assert_eq!(path(key, |_| false), Path::new(want), "{key:?}");
        check("a/b.txt", "a/b.txt");
        check("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd");
        check("/etc/passwd", "%/etc/passwd");
        check("a//b/", "a/%/b/%");
        check("./.", "%2E/%2E");
        check("...", "%2E%2E%2E");
        check(".profile", ".profile");
        check("a%b\\c\0d\n", "a%25b%5Cc%00d%0A");
        check("\u{e9}", "%C3%A9");
        assert_eq!(path("a/b/c", |p| p == Path::new("a")), Path::new("a%/b/c"));
    }

    #[test]
    fn long_keys_and_all_keys_stay_below_and_apart() {
        let long = "\u{e9}".repeat(512);
        let keys = [
            long.as_str(),
            &long[..1000],
            &"x".repeat(1024),
            &"x".repeat(201),
            &"x".repeat(200),
            "",
            "%",
            "/",
            "//",
            "..",
            "../..",
            ".. ",
            "%2E%2E",
            "a%",
            "a",
            "a/",
            "a%/",
            "a%-",
            "a%-/b",
        ];
        let mut seen = HashSet::new();
        for key in keys {
            let path = path(key, |_| false);
            for part in path.components() {
                let Component::Normal(name) = part else { panic!("{key:?} leaves the folder: {path:?}") };
                assert!(name.len() <= 255, "{key:?}");
            }
            assert!(seen.insert(path), "{key:?} shares its file");
        }
    }
}
