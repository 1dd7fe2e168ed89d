//! What lies where, byte by byte: superblock and log groups. The page is `docs/local-store.md`; a test there and here
//! builds its example. Pure: bytes in, values out.
//!
//! ```text
//! 0          512 KiB      1 MiB         + log_bytes     + log_bytes, up to a MiB              end
//! | superblock 0 | superblock 1 | log area 0 | log area 1 | slot 0 | slot 1 | ... | slot n-1 |
//! ```

use super::record::Reader;

/// First bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"KARRIBLK";
/// First bytes of a log group.
pub const GROUP_MAGIC: [u8; 8] = *b"KARRILOG";
/// The version that this code reads and writes.
pub const VERSION: u32 = 1;
/// What every transfer is a multiple of, and what blob space is counted in.
pub const UNIT: u64 = 4096;
/// An extent, or 256 units.
pub const SLOT: u64 = crate::EXTENT_BYTES;
/// Units in a slot.
pub const SLOT_UNITS: u32 = (SLOT / UNIT) as u32;
/// Blob bytes under one checksum.
pub const CHUNK: u64 = 64 << 10;
/// A blob of up to so many chunks has its checksums in its record, a longer one in a table after its data.
pub const INLINE_CHUNKS: u64 = 16;
/// Where the two superblocks are.
pub const SUPERBLOCK_AT: [u64; 2] = [0, 512 << 10];
/// Where log area 0 begins.
pub const LOGS_AT: u64 = 1 << 20;
/// The smallest log area.
pub const LOG_BYTES_MIN: u64 = 128 << 10;
/// The largest log area.
pub const LOG_BYTES_MAX: u64 = 8 << 30;
/// Bytes of a superblock that carry something: one sector, so that a torn write leaves it old or new.
pub const SUPERBLOCK_BYTES: usize = 512;
/// A group's header.
pub const GROUP_HEADER: usize = 64;

const _: () = assert!(SLOT.is_multiple_of(UNIT) && CHUNK.is_multiple_of(UNIT) && SLOT.is_multiple_of(CHUNK));
const _: () = assert!(SUPERBLOCK_AT[1] + UNIT <= LOGS_AT && LOGS_AT.is_multiple_of(SLOT));
const _: () = assert!(LOG_BYTES_MAX <= u32::MAX as u64 * UNIT);

/// The sizes that follow from the disk's and the log areas' size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The disk's size when the store was made.
    pub disk_bytes: u64,
    /// One log area.
    pub log_bytes: u64,
    /// Where slot 0 begins.
    pub data_at: u64,
    /// How many slots there are.
    pub slots: u32,
}

impl Geometry {
    /// Lays out a disk.
    ///
    /// # Errors
    /// A sentence when the disk is too small or the log size is not allowed.
    pub fn new(disk_bytes: u64, log_bytes: Option<u64>) -> Result<Self, String> {
        let wanted = (disk_bytes / 256).next_multiple_of(SLOT).min(LOG_BYTES_MAX);
        let log_bytes = log_bytes.unwrap_or(wanted);
        if !log_bytes.is_multiple_of(UNIT) || !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&log_bytes) {
            return Err(format!(
                "a log area of {log_bytes} bytes is not a multiple of {UNIT} from {LOG_BYTES_MIN} to {LOG_BYTES_MAX}"
            ));
        }
        let data_at = (LOGS_AT + 2 * log_bytes).next_multiple_of(SLOT);
        let slots = disk_bytes.saturating_sub(data_at) / SLOT;
        if slots == 0 {
            return Err(format!("{disk_bytes} bytes are too few: at least {} are needed", data_at + SLOT));
        }
        let slots = u32::try_from(slots).map_err(|_| format!("{disk_bytes} bytes are more than 2^32 slots"))?;
        Ok(Self { disk_bytes, log_bytes, data_at, slots })
    }

    /// Where a log area begins.
    pub fn log_at(&self, area: usize) -> u64 {
        LOGS_AT + area as u64 * self.log_bytes
    }

    /// Where a unit of the data slots begins.
    pub fn unit_at(&self, unit: u64) -> u64 {
        self.data_at + unit * UNIT
    }

    /// Where a slot begins.
    pub fn slot_at(&self, slot: u32) -> u64 {
        self.data_at + u64::from(slot) * SLOT
    }

    /// The largest group, header and padding included.
    pub fn group_max(&self) -> usize {
        let sixteenth = (self.log_bytes / 16).min(256 << 10);
        (sixteenth - sixteenth % UNIT) as usize
    }

    /// The largest record.
    pub fn record_max(&self) -> usize {
        ((self.group_max() - GROUP_HEADER) / 4).min(32 << 10)
    }

    /// How many bytes the records of everything alive may take: a log area filled with them is at most half full.
    pub fn live_max(&self) -> u64 {
        self.log_bytes / 8 * 3
    }
}

/// The root of a store: geometry, and which log area tells the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Made at format.
    pub uuid: [u8; 16],
    /// Grows with each write of the superblock; the higher valid copy counts.
    pub generation: u64,
    /// Layout.
    pub geometry: Geometry,
    /// The log's identity: every group of it carries the same.
    pub log_id: u64,
    /// Bytes of the log that were durable when this was written: damage there is no torn tail.
    pub log_durable: u64,
    /// The area in use, 0 or 1.
    pub log_area: u8,
    /// Closed in order: nothing follows `log_durable`.
    pub clean: bool,
    /// Counts opens.
    pub epoch: u32,
    /// No incarnation above this was given out.
    pub incarnation_ceiling: u32,
}

/// Why a superblock copy is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuperblockError {
    /// All zeros.
    Blank,
    /// Other bytes than ours.
    NoMagic,
    /// Made by another version.
    Version(u32),
    /// Ours, but damaged.
    Damaged(String),
}

impl Superblock {
    /// One sector's worth, padded to a unit.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(UNIT as usize);
        b.extend_from_slice(&MAGIC);
        put32(&mut b, VERSION);
        put32(&mut b, 0);
        b.extend_from_slice(&self.uuid);
        let g = &self.geometry;
        for v in [self.generation, g.disk_bytes, g.log_bytes, g.log_at(0), g.log_at(1), g.data_at] {
            put64(&mut b, v);
        }
        for v in [g.slots, UNIT as u32, CHUNK as u32, SLOT as u32] {
            put32(&mut b, v);
        }
        put64(&mut b, self.log_id);
        put64(&mut b, self.log_durable);
        for v in [u32::from(self.log_area), u32::from(self.clean), self.epoch, self.incarnation_ceiling] {
            put32(&mut b, v);
        }
        debug_assert_eq!(b.len(), 128);
        b.resize(UNIT as usize, 0);
        let crc = crc32c::crc32c(&b[..SUPERBLOCK_BYTES]);
        b[12..16].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// What is wrong with it. `bytes` of any length are allowed.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let damaged = |why: &str| SuperblockError::Damaged(why.to_owned());
        let Some(sector) = bytes.get(..SUPERBLOCK_BYTES) else { return Err(damaged("it is cut short")) };
        if sector.iter().all(|b| *b == 0) {
            return Err(SuperblockError::Blank);
        }
        let mut r = Reader::new(sector);
        if r.take(8) != Some(&MAGIC) {
            return Err(SuperblockError::NoMagic);
        }
        // In a whole sector, no read below can fail.
        let version = r.u32().unwrap_or(0);
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        let crc = r.u32().unwrap_or(0);
        let mut zeroed = sector.to_vec();
        zeroed[12..16].fill(0);
        if crc32c::crc32c(&zeroed) != crc {
            return Err(damaged("its checksum does not match"));
        }
        Self::fields(&mut r).ok_or_else(|| damaged("its fields contradict each other"))
    }

    fn fields(r: &mut Reader<'_>) -> Option<Self> {
        let uuid = r.take(16)?.try_into().ok()?;
        let generation = r.u64()?;
        let (disk_bytes, log_bytes) = (r.u64()?, r.u64()?);
        let geometry = Geometry::new(disk_bytes, Some(log_bytes)).ok()?;
        let laid_out = [geometry.log_at(0), geometry.log_at(1), geometry.data_at];
        if [r.u64()?, r.u64()?, r.u64()?] != laid_out {
            return None;
        }
        if [r.u32()?, r.u32()?, r.u32()?, r.u32()?] != [geometry.slots, UNIT as u32, CHUNK as u32, SLOT as u32] {
            return None;
        }
        let (log_id, log_durable) = (r.u64()?, r.u64()?);
        let (area, clean) = (r.u32()?, r.u32()?);
        if area > 1 || clean > 1 || log_durable > log_bytes || !log_durable.is_multiple_of(UNIT) {
            return None;
        }
        let (epoch, incarnation_ceiling) = (r.u32()?, r.u32()?);
        if r.take(SUPERBLOCK_BYTES - 128)?.iter().any(|b| *b != 0) {
            return None;
        }
        let log_area = area as u8;
        let clean = clean == 1;
        Some(Self { uuid, generation, geometry, log_id, log_durable, log_area, clean, epoch, incarnation_ceiling })
    }
}

/// The head of a group: what is written to the log at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHeader {
    /// The store.
    pub uuid: [u8; 16],
    /// The log that it belongs to.
    pub log_id: u64,
    /// Counts from 0 in a log.
    pub seq: u64,
    /// Bytes of records after the header.
    pub payload_len: u32,
    /// No incarnation above this was given out.
    pub incarnation_ceiling: u32,
    /// Sealed blobs of this group had data that was perhaps not durable when the group was written.
    pub unproven: bool,
    /// Of the payload.
    pub payload_crc: u32,
}

impl GroupHeader {
    /// Header, payload and padding to whole units.
    pub fn encode(mut self, payload: &[u8]) -> Vec<u8> {
        self.payload_len = u32::try_from(payload.len()).expect("a group is small");
        self.payload_crc = crc32c::crc32c(payload);
        let mut b = Vec::with_capacity(group_len(payload.len()));
        b.extend_from_slice(&GROUP_MAGIC);
        put32(&mut b, 0);
        put32(&mut b, self.payload_crc);
        put64(&mut b, self.log_id);
        put64(&mut b, self.seq);
        put32(&mut b, self.payload_len);
        put32(&mut b, group_len(payload.len()) as u32);
        put32(&mut b, self.incarnation_ceiling);
        put32(&mut b, u32::from(self.unproven));
        b.extend_from_slice(&self.uuid);
        debug_assert_eq!(b.len(), GROUP_HEADER);
        let crc = crc32c::crc32c(&b);
        b[8..12].copy_from_slice(&crc.to_le_bytes());
        b.extend_from_slice(payload);
        b.resize(group_len(payload.len()), 0);
        b
    }

    /// Reads a header. `None` for anything but a whole, undamaged one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..GROUP_HEADER)?;
        let mut r = Reader::new(header);
        if r.take(8)? != GROUP_MAGIC {
            return None;
        }
        let crc = r.u32()?;
        let mut zeroed = header.to_vec();
        zeroed[8..12].fill(0);
        if crc32c::crc32c(&zeroed) != crc {
            return None;
        }
        let payload_crc = r.u32()?;
        let (log_id, seq) = (r.u64()?, r.u64()?);
        let (payload_len, len) = (r.u32()?, r.u32()?);
        let (incarnation_ceiling, flags) = (r.u32()?, r.u32()?);
        let uuid = r.take(16)?.try_into().ok()?;
        if group_len(payload_len as usize) as u64 != u64::from(len) || flags > 1 {
            return None;
        }
        Some(Self { uuid, log_id, seq, payload_len, incarnation_ceiling, unproven: flags == 1, payload_crc })
    }

    /// Bytes in the log.
    pub fn group_len(&self) -> u64 {
        group_len(self.payload_len as usize) as u64
    }

    /// The records of `group`, which begins with this header; `None` when they are cut short or damaged.
    pub fn payload<'a>(&self, group: &'a [u8]) -> Option<&'a [u8]> {
        let payload = group.get(GROUP_HEADER..GROUP_HEADER.checked_add(self.payload_len as usize)?)?;
        (crc32c::crc32c(payload) == self.payload_crc).then_some(payload)
    }
}

/// A group's bytes in the log, by its payload's.
pub fn group_len(payload: usize) -> usize {
    (GROUP_HEADER + payload).next_multiple_of(UNIT as usize)
}

pub(super) fn put32(to: &mut Vec<u8>, v: u32) {
    to.extend_from_slice(&v.to_le_bytes());
}

pub(super) fn put64(to: &mut Vec<u8>, v: u64) {
    to.extend_from_slice(&v.to_le_bytes());
}

/// Chunks of a blob.
pub fn chunks(len: u64) -> u64 {
    len.div_ceil(CHUNK)
}

/// Units of a blob's data.
pub fn data_units(len: u64) -> u64 {
    len.div_ceil(UNIT)
}

/// Units of a blob's checksum table, which follows its data.
pub fn table_units(len: u64) -> u64 {
    let chunks = chunks(len);
    if chunks <= INLINE_CHUNKS { 0 } else { (chunks * 4).div_ceil(UNIT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            uuid: *b"0123456789abcdef",
            generation: 7,
            geometry: Geometry::new(64 << 20, None).unwrap(),
            log_id: (3 << 32) | 1,
            log_durable: 8192,
            log_area: 1,
            clean: false,
            epoch: 3,
            incarnation_ceiling: 1024,
        }
    }

    #[test]
    fn superblocks_round_trip_and_notice_every_flipped_bit() {
        let bytes = superblock().encode();
        assert_eq!(Superblock::decode(&bytes), Ok(superblock()));
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Superblock::decode(&[0; 4096]), Err(SuperblockError::Blank));
        assert_eq!(Superblock::decode(&[7; 4096]), Err(SuperblockError::NoMagic));
        let mut other = bytes.clone();
        other[8] = 9;
        assert_eq!(Superblock::decode(&other), Err(SuperblockError::Version(9)));
        assert!(matches!(Superblock::decode(&bytes[..100]), Err(SuperblockError::Damaged(_))));
    }

    #[test]
    fn groups_round_trip_and_notice_every_flipped_bit() {
        let header = GroupHeader {
            uuid: [9; 16],
            log_id: 5,
            seq: 6,
            payload_len: 0,
            incarnation_ceiling: 3,
            unproven: true,
            payload_crc: 0,
        };
        let payload = crate::conformance::pattern(1, 5000);
        let bytes = header.encode(&payload);
        assert_eq!(bytes.len(), 8192);
        let back = GroupHeader::decode(&bytes).unwrap();
        assert_eq!((back.log_id, back.seq, back.group_len(), back.unproven), (5, 6, 8192, true));
        assert_eq!(back.payload(&bytes), Some(&payload[..]));
        for bit in 0..(GROUP_HEADER + 5000) * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = GroupHeader::decode(&bad).and_then(|h| h.payload(&bad).map(<[u8]>::to_vec));
            assert_eq!(read, None, "bit {bit}");
        }
        assert_eq!(back.payload(&bytes[..5000]), None);
    }

    #[test]
    fn geometry_fits_the_disk() {
        for (disk, log) in [(8 << 20, None), (6 << 20, Some(LOG_BYTES_MIN)), (1 << 40, None), ((1 << 40) + 5, None)] {
            let g = Geometry::new(disk, log).unwrap();
            assert!(g.slot_at(g.slots - 1) + SLOT <= disk);
            assert!(g.slot_at(g.slots - 1) + 2 * SLOT > disk);
            assert!(g.log_at(1) + g.log_bytes <= g.data_at);
            assert!(g.record_max() * 4 < g.group_max() && g.group_max() as u64 * 16 <= g.log_bytes);
        }
        assert!(Geometry::new(1 << 20, None).is_err());
        assert!(Geometry::new(1 << 30, Some(4097)).is_err());
    }

    #[test]
    fn tables_begin_past_sixteen_chunks() {
        assert_eq!((chunks(0), data_units(0), table_units(0)), (0, 0, 0));
        assert_eq!(table_units(16 * CHUNK), 0);
        assert_eq!(table_units(16 * CHUNK + 1), 1);
        assert_eq!(table_units(1024 * CHUNK), 1);
        assert_eq!(table_units(1025 * CHUNK), 2);
    }
}
