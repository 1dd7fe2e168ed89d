//! The last of what a guest printed, in a file that stays small whatever the guest prints.
//!
//! QEMU keeps output in a ring of its own (see `args::RING_BYTES`); the node moves it here every second or sooner. So a
//! flood costs a bounded file and bounded memory, output of the time without a node waits in the ring, and the
//! console can be read after the machine has ended.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::node::hypervisor::CONSOLE_BYTES;

/// The file is cut back to [`CONSOLE_BYTES`] when it is longer than this.
const FILE_BYTES_MAX: u64 = 4 * CONSOLE_BYTES as u64;

/// One machine's console file.
#[derive(Debug)]
pub struct Console(PathBuf);

impl Console {
    /// The console kept at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Adds what the guest printed.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.0)?;
        file.write_all(bytes)?;
        if file.metadata()?.len() > FILE_BYTES_MAX {
            let last = self.tail();
            let new = self.0.with_extension("new");
            fs::write(&new, last)?;
            fs::rename(&new, &self.0)?;
        }
        Ok(())
    }

    /// The last [`CONSOLE_BYTES`]; empty where nothing was printed.
    pub fn tail(&self) -> Vec<u8> {
        tail(&self.0, CONSOLE_BYTES)
    }
}

/// The last `bytes` of a file; empty where there is none.
pub fn tail(path: &Path, bytes: usize) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes as u64)))?;
        let mut text = Vec::new();
        file.take(bytes as u64).read_to_end(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_the_last_bytes_in_a_small_file() {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::at(folder.path().join("console.log"));
        assert!(console.tail().is_empty());
        let mut printed = Vec::new();
        for n in 0..3000 {
            let line = format!("line {n} {}\n", "x".repeat(n % 300));
            printed.extend_from_slice(line.as_bytes());
            console.append(line.as_bytes()).unwrap();
            assert!(fs::metadata(&console.0).unwrap().len() <= FILE_BYTES_MAX + 400);
        }
        assert_eq!(console.tail(), printed[printed.len() - CONSOLE_BYTES..]);
    }
}
