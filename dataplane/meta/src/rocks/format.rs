//! The store's folder and its version (`docs/format.md`).

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::MetaError;

/// The file that names the version, and the folder of RocksDB itself.
pub(super) const FORMAT: &str = "FORMAT";
pub(super) const DB: &str = "db";

const MAGIC: &str = "karri-meta";
const VERSION: u32 = 1;

/// Makes the folder where it is new; refuses one that is not ours or of another version.
pub(super) fn prepare(dir: &Path) -> Result<(), MetaError> {
    let io = |e: io::Error| refuse(dir, &explain(&e));
    fs::create_dir_all(dir).map_err(io)?;
    match fs::read_to_string(dir.join(FORMAT)) {
        Ok(text) => check(&text).map_err(|why| refuse(dir, &why)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(dir).map_err(io)? {
                let name = entry.map_err(io)?.file_name();
                // Left by a process that died while it made the store.
                if name != "FORMAT.new" {
                    let why = format!("holds {} but no {FORMAT} file: not a karri metadata store", name.display());
                    return Err(refuse(dir, &why));
                }
            }
            write(dir).map_err(io)
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(refuse(dir, "its FORMAT file is not text")),
        Err(e) => Err(io(e)),
    }
}

/// Writes the version file durably.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    let new = dir.join("FORMAT.new");
    let mut file = fs::File::create(&new)?;
    writeln!(file, "{MAGIC} {VERSION}")?;
    file.sync_all()?;
    fs::rename(new, dir.join(FORMAT))?;
    fs::File::open(dir)?.sync_all()?;
    // A new folder's own name must last, too.
    match dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn check(text: &str) -> Result<(), String> {
    if text == format!("{MAGIC} {VERSION}\n") {
        return Ok(());
    }
    match text.strip_prefix(MAGIC).and_then(|rest| rest.trim().parse::<u32>().ok()) {
        Some(other) if other != VERSION => Err(format!(
            "is a metadata store of version {other}; this karri reads version {VERSION}. Use the karri that wrote it"
        )),
        _ => Err(format!("its {FORMAT} file says {:?}, not `{MAGIC} {VERSION}`", text.trim())),
    }
}

/// What RocksDB or the system said when it would not open, in words that help.
pub(super) fn refuse_db(dir: &Path, error: &rocksdb::Error) -> MetaError {
    let text = error.to_string();
    let why = if text.contains("LOCK: ") || text.contains("lock hold by current process") {
        "another process holds it: is this role already running?".into()
    } else if text.contains("Permission denied") {
        format!("permission denied: run karri as the user who owns it ({text})")
    } else if text.starts_with("Corruption") {
        format!("RocksDB finds it damaged: {text}. Restore it from a checkpoint")
    } else {
        text
    };
    refuse(dir, &why)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied: run karri as the user who owns it".into(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "is not a folder".into(),
        _ => error.to_string(),
    }
}

fn refuse(dir: &Path, why: &str) -> MetaError {
    MetaError::Failed { op: "open", why: format!("{}: {why}", dir.display()) }
}
