//! Fuzz targets: what a damaged or hostile disk may hold. See [`karri_base::fuzz`].

use karri_engine::buf::Buf;
use karri_engine::disk::Disk;
use karri_engine::disk::sim::SimDisk;
use karri_engine::sim;

#[cfg(test)]
use crate::ExtentId;
use crate::local::LocalStore;
use crate::local::format::{Geometry, GroupHeader, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use crate::local::record::Record;
#[cfg(test)]
use crate::local::record::{Crcs, Run, Seal};
use crate::{BlobId, BulkError, BulkStore};

const UUID: [u8; 16] = *b"0123456789abcdef";

fn a_superblock() -> Superblock {
    Superblock {
        uuid: UUID,
        generation: 2,
        geometry: Geometry::new(8 << 20, Some(128 << 10)).expect("it is large enough"),
        log_id: 1,
        log_durable: 0,
        log_area: 0,
        clean: false,
        epoch: 1,
        incarnation_ceiling: 9,
    }
}

fn a_group(payload: &[u8], seq: u64) -> Vec<u8> {
    let header = GroupHeader {
        uuid: UUID,
        log_id: 1,
        seq,
        payload_len: 0,
        incarnation_ceiling: 9,
        unproven: seq.is_multiple_of(2),
        payload_crc: 0,
    };
    header.encode(payload)
}

#[cfg(test)]
fn some_records() -> Vec<u8> {
    let extent = |slot| ExtentId { slot, incarnation: 3 };
    let records = [
        Record::Seal(Seal {
            id: BlobId(1 << 40 | 1),
            len: 5000,
            runs: vec![Run { start: 3, units: 2 }],
            crcs: Crcs::Inline(vec![1]),
        }),
        Record::Seal(Seal {
            id: BlobId(1 << 40 | 2),
            len: 17 << 16,
            runs: vec![Run { start: 512, units: 273 }],
            crcs: Crcs::Table(5),
        }),
        Record::Keep(vec![extent(1), extent(4)]),
        Record::Free(vec![extent(1)]),
        Record::Delete(BlobId(1 << 40 | 1)),
    ];
    let mut bytes = Vec::new();
    records.iter().for_each(|r| r.encode(&mut bytes));
    bytes
}

/// A disk of which this is the beginning of the log; everything in it is undamaged, whatever it means.
async fn open_with_records(payload: Vec<u8>) {
    let disk = SimDisk::memory(8 << 20);
    let superblock = a_superblock();
    for at in SUPERBLOCK_AT {
        disk.write(at, Buf::copy_padded(&superblock.encode()), true).await.0.expect("inside the disk");
    }
    let mut at = superblock.geometry.log_at(0);
    for (seq, part) in payload.chunks(superblock.geometry.group_max() - 64).take(8).enumerate() {
        let group = Buf::copy_padded(&a_group(part, seq as u64));
        let len = group.len() as u64;
        disk.write(at, group, true).await.0.expect("inside the log");
        at += len;
    }
    let store = match LocalStore::open(disk, "a disk").await {
        Err(BulkError::Open { .. }) => return,
        other => other.expect("the disk itself is sound"),
    };
    // Whatever it holds, it is usable: nothing is read that does not match, and all can go.
    for id in store.list(BlobId(0), 100) {
        let len = store.blob_len(id).expect("it is listed");
        let _ = store.read_blob(id, 0, Buf::zeroed(len.min(1 << 20) as usize)).await;
    }
    store.delete(store.list(BlobId(0), usize::MAX)).await.expect("deletes always succeed");
    store.free_extents(store.kept_extents()).await.expect("frees always succeed");
    assert_eq!(store.usage().used, 0);
}

karri_base::fuzz_targets! {
    /// A superblock's sector.
    fn superblock(data) from [&a_superblock().encode(), &[0; 512]] {
        if let Ok(superblock) = Superblock::decode(data) {
            assert_eq!(superblock.encode()[..128], data[..128]);
        }
        // With a checksum that matches, as a hostile one would have.
        if let Some(sector) = data.get(..SUPERBLOCK_BYTES) {
            let mut sector = sector.to_vec();
            sector[12..16].fill(0);
            let crc = crc32c::crc32c(&sector);
            sector[12..16].copy_from_slice(&crc.to_le_bytes());
            if let Ok(superblock) = Superblock::decode(&sector) {
                assert_eq!(superblock.encode()[..128], sector[..128]);
            }
        }
    }

    /// A log group.
    fn log_group(data) from [&a_group(&some_records(), 0), &a_group(&[], 7)] {
        if let Some(header) = GroupHeader::decode(data) && let Some(payload) = header.payload(data) {
            let _ = Record::decode_all(payload);
        }
    }

    /// A group's records: what is read is written again alike.
    fn log_records(data) from [&some_records()] {
        if let Ok(records) = Record::decode_all(data) {
            let mut again = Vec::new();
            records.iter().for_each(|r| r.encode(&mut again));
            assert_eq!(Record::decode_all(&again), Ok(records));
        }
    }

    /// A whole disk whose log says anything at all.
    fn open_any_log(data) from [&some_records(), b""] {
        let payload = data.to_vec();
        sim::run(1, move |_| open_with_records(payload));
    }
}
