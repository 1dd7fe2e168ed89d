//! The twin: a volume in memory, with switches that make it fail.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use karri_bulk::BulkError;
use karri_engine::buf::Buf;
use karri_engine::disk::DiskError;

use super::{Done, SECTOR_BYTES, Volume, check_bounds};
use crate::error::Error;

/// A volume in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryVolume(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    size: u64,
    sectors: RefCell<HashMap<u64, Box<[u8; SECTOR_BYTES as usize]>>>,
    fail: Cell<bool>,
}

impl MemoryVolume {
    /// Zeros of so many bytes, rounded up to a sector.
    pub fn new(name: &str, size: u64) -> Self {
        let size = size.next_multiple_of(SECTOR_BYTES);
        Self(Rc::new(Inner { name: name.into(), size, sectors: RefCell::default(), fail: Cell::new(false) }))
    }

    /// Makes every transfer and flush fail as a broken disk does, or work again.
    pub fn fail(&self, fail: bool) {
        self.0.fail.set(fail);
    }

    fn check(&self, op: &'static str, at: u64, len: u64) -> Result<(), Error> {
        check_bounds(op, &self.0.name, at, len, self.0.size)?;
        if self.0.fail.get() {
            let source = BulkError::Disk(DiskError::Io { op, at, len, why: "told to fail".into() });
            return Err(Error::Bulk { volume: self.0.name.clone(), op, source });
        }
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) {
        let gone = at / SECTOR_BYTES..(at + len) / SECTOR_BYTES;
        self.0.sectors.borrow_mut().retain(|sector, _| !gone.contains(sector));
    }
}

impl Volume for MemoryVolume {
    type Begun = std::convert::Infallible;

    fn name(&self) -> &str {
        &self.0.name
    }
    fn size(&self) -> u64 {
        self.0.size
    }
    async fn read(&self, at: u64, mut buf: Buf) -> Done {
        if let Err(e) = self.check("read", at, buf.len() as u64) {
            return (Err(e), buf);
        }
        let sectors = self.0.sectors.borrow();
        for i in 0..buf.len() / SECTOR_BYTES as usize {
            let here = i * SECTOR_BYTES as usize;
            match sectors.get(&(at / SECTOR_BYTES + i as u64)) {
                Some(bytes) => buf.copy_from(here, &bytes[..]),
                None => buf.zero(here, SECTOR_BYTES as usize),
            }
        }
        (Ok(()), buf)
    }
    async fn write(&self, at: u64, buf: Buf, _fua: bool) -> Done {
        if let Err(e) = self.check("write", at, buf.len() as u64) {
            return (Err(e), buf);
        }
        let mut sectors = self.0.sectors.borrow_mut();
        for i in 0..buf.len() / SECTOR_BYTES as usize {
            let mut bytes = Box::new([0; SECTOR_BYTES as usize]);
            buf.copy_to(i * SECTOR_BYTES as usize, &mut bytes[..]);
            sectors.insert(at / SECTOR_BYTES + i as u64, bytes);
        }
        (Ok(()), buf)
    }
    async fn flush(&self) -> Result<(), Error> {
        self.check("flush", 0, 0)
    }
    async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        self.check("discard", at, len)?;
        self.zero(at, len);
        Ok(())
    }
    async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        self.check("write zeroes", at, len)?;
        self.zero(at, len);
        Ok(())
    }
}
