//! What kill -9 must not take: a guest keeps running when storage dies, so a write that was answered must be there when
//! storage is back, flushed or not. Data is (it went past the page cache); the map entry that names it is in memory until
//! the next flush. So every changed entry is first noted in a file mapped into memory: a copy of 128 bytes, no system call.
//! The page cache keeps the notes over the death of the process.
//!
//! Power loss is another matter: notes may survive it that name data which did not. So notes count only within the boot that
//! wrote them (the kernel's boot id); after a power loss what was flushed is what there is, as with any disk.
//!
//! The format page is `docs/journal.md`; a test here builds its example.
//!
//! ```text
//! 0     magic "KARRIJNL" | version u32 = 1 | zero u32 | serial u64 | floor u64 | boot id, 36 characters | zeros
//! 4096  notes of 128 bytes: seq u64 | serial u64 | entry u32 | length u32 | value, as stored | zeros | crc32c u32 (at 124)
//! ```
//! Little-endian. A note counts when its checksum is right, its serial is the header's and its `seq` is above `floor`; the
//! last one of an entry holds. A commit raises the floor. When all notes are below it, writing begins at the front again;
//! a full file makes the writer flush. Length 0: the entry is absent.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::Error;
use crate::map::{Entry, record};
use crate::virtio::memory::View;

const MAGIC: &[u8; 8] = b"KARRIJNL";
const VERSION: u32 = 1;
const HEAD: usize = 4096;
const NOTE: usize = 128;
const VALUE_MAX: usize = 96;
const NOTES: usize = 8192;
const AT_FLOOR: usize = 24;
const AT_BOOT: usize = 32;
const BOOT: usize = 36;

/// This boot's id.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().chars().take(BOOT).collect())
}

/// The notes of one open volume.
#[derive(Debug)]
pub struct Journal {
    view: View,
    serial: u64,
    last: Cell<u64>,
    floor: Cell<u64>,
    /// Notes written since the front.
    at: Cell<usize>,
    notes: usize,
}

impl Journal {
    /// An empty journal in `path`, in place of what is there.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path, serial: u64, boot: &str) -> io::Result<Self> {
        Self::with(path, serial, boot, NOTES)
    }

    /// [`create`](Self::create) with room for so many notes.
    pub(super) fn with(path: &Path, serial: u64, boot: &str, notes: usize) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file: File = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let len = HEAD + NOTE * notes;
        // Written, not only made long: a hole filled later through the mapping ends the process where the disk is full.
        file.write_all(&vec![0; len])?;
        let view = View::of_file(&file, 0, len).map_err(|e| io::Error::other(e.to_string()))?;
        let mut head = [0; 128];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[16..24].copy_from_slice(&serial.to_le_bytes());
        head[AT_BOOT..AT_BOOT + boot.len().min(BOOT)].copy_from_slice(&boot.as_bytes()[..boot.len().min(BOOT)]);
        view.write(0, head);
        Ok(Self { view, serial, last: Cell::new(0), floor: Cell::new(0), at: Cell::new(0), notes })
    }

    /// Notes an entry as it is now. False when there is no room: flush instead.
    #[must_use]
    pub fn note(&self, index: u32, entry: &Entry) -> bool {
        if self.at.get() == self.notes {
            return false;
        }
        let seq = self.last.get() + 1;
        let value = record::encode(&record::key(self.serial, index), entry).unwrap_or_default();
        let mut note = [0; NOTE];
        note[..8].copy_from_slice(&seq.to_le_bytes());
        note[8..16].copy_from_slice(&self.serial.to_le_bytes());
        note[16..20].copy_from_slice(&index.to_le_bytes());
        note[20..24].copy_from_slice(&(value.len() as u32).to_le_bytes());
        note[24..24 + value.len()].copy_from_slice(&value);
        let crc = crc32c::crc32c(&note[..NOTE - 4]);
        note[NOTE - 4..].copy_from_slice(&crc.to_le_bytes());
        self.view.write(HEAD + NOTE * self.at.get(), note);
        View::compiler_fence();
        self.last.set(seq);
        self.at.set(self.at.get() + 1);
        true
    }

    /// The last note's number.
    pub fn last(&self) -> u64 {
        self.last.get()
    }

    /// Everything up to note `seq` is committed.
    pub fn committed(&self, seq: u64) {
        self.floor.set(seq.max(self.floor.get()));
        self.view.write(AT_FLOOR, self.floor.get().to_le_bytes());
        if self.floor.get() == self.last.get() {
            self.at.set(0);
        }
    }
}

/// A volume's serial, and entries of its map by index.
pub type Noted = (u64, Vec<(u32, Entry)>);

/// What a dead process noted and did not commit: the volume's serial, and the last state of each entry. `None` when the
/// file is from another boot or no journal.
///
/// # Errors
/// `Corrupt` when a note that counts holds no entry.
pub fn read(bytes: &[u8], boot: &str) -> Result<Option<Noted>, Error> {
    let Some((head, notes)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"));
    let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"));
    let here = &head[AT_BOOT..AT_BOOT + BOOT.min(boot.len())];
    if &head[..8] != MAGIC || u32_at(head, 8) != VERSION || here != boot.as_bytes() {
        return Ok(None);
    }
    let (serial, floor) = (u64_at(head, 16), u64_at(head, AT_FLOOR));
    let mut counted: Vec<(u64, &[u8])> = Vec::new();
    for note in notes.chunks_exact(NOTE) {
        let good = crc32c::crc32c(&note[..NOTE - 4]) == u32_at(note, NOTE - 4);
        if good && u64_at(note, 0) > floor && u64_at(note, 8) == serial {
            counted.push((u64_at(note, 0), note));
        }
    }
    counted.sort_unstable_by_key(|(seq, _)| *seq);
    let mut entries = std::collections::BTreeMap::new();
    for (_, note) in counted {
        let (index, len) = (u32_at(note, 16), u32_at(note, 20) as usize);
        let entry = match note.get(24..24 + len.min(VALUE_MAX)) {
            Some([]) | None => Entry::Absent,
            Some(value) => record::decode(&record::key(serial, index), value)?,
        };
        entries.insert(index, entry);
    }
    Ok(Some((serial, entries.into_iter().collect())))
}

#[cfg(test)]
mod tests {
    use karri_bulk::ExtentId;

    use super::*;
    use crate::map::{Bits, Partial};

    const BOOT_ID: &str = "6b2f2f5e-0000-4000-8000-0123456789ab";

    fn full(slot: u32) -> Entry {
        Entry::Full(ExtentId { slot, incarnation: 1 })
    }

    fn kept(path: &Path) -> Vec<(u32, Entry)> {
        let (serial, entries) = read(&std::fs::read(path).unwrap(), BOOT_ID).unwrap().expect("a journal");
        assert_eq!(serial, 7);
        entries
    }

    #[test]
    fn the_format_page_is_true() {
        let page = include_str!("../../docs/journal.md");
        let block = page[page.find("### Note").unwrap()..].split("```").nth(1).unwrap();
        let want: Vec<u8> = block.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        let j = Journal::with(&dir.path().join("a"), 5, BOOT_ID, 4).unwrap();
        assert!(j.note(258, &Entry::Full(ExtentId { slot: 7, incarnation: 3 })));
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap()[HEAD..HEAD + NOTE], want[..]);
    }

    #[test]
    fn notes_survive_until_they_are_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.journal");
        let j = Journal::with(&path, 7, BOOT_ID, 4).unwrap();
        assert_eq!(kept(&path), []);
        let partial =
            Partial { extent: Some(ExtentId { slot: 1, incarnation: 1 }), data: Bits::range(0, 9), zero: Bits::EMPTY };
        assert!(j.note(3, &partial.settle()) && j.note(4, &full(2)));
        assert_eq!(kept(&path), [(3, partial.settle()), (4, full(2))]);
        let at = j.last();
        assert!(j.note(3, &full(1)) && j.note(4, &Entry::Absent) && !j.note(5, &Entry::Zero));
        assert_eq!(kept(&path), [(3, full(1)), (4, Entry::Absent)]);
        j.committed(at);
        assert!(!j.note(5, &Entry::Zero), "two are not committed yet");
        assert_eq!(kept(&path), [(3, full(1)), (4, Entry::Absent)]);
        j.committed(j.last());
        assert_eq!(kept(&path), []);
        assert!(j.note(5, &Entry::Zero));
        assert_eq!(kept(&path), [(5, Entry::Zero)]);
    }

    #[test]
    fn notes_of_another_boot_and_torn_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.journal");
        let j = Journal::with(&path, 7, BOOT_ID, 4).unwrap();
        assert!(j.note(1, &full(1)) && j.note(2, &full(2)));
        let bytes = std::fs::read(&path).unwrap();
        assert!(read(&bytes, "6b2f2f5e-0000-4000-8000-0123456789ac").unwrap().is_none());
        assert!(read(&bytes[..100], BOOT_ID).unwrap().is_none());
        assert!(read(&[0; 8192], BOOT_ID).unwrap().is_none());
        for at in HEAD + NOTE..HEAD + 2 * NOTE {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert_eq!(read(&torn, BOOT_ID).unwrap().unwrap().1, [(1, full(1))], "byte {at}");
        }
        assert!(boot_id().unwrap().len() == BOOT);
    }
}
