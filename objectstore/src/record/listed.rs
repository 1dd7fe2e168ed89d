//! What a listing shows of an object's record: read without its headers, tags and locks, which no line has.

use std::ops::Range;

use bytes::Bytes;
use karri_base::clock::UnixMicros;

use super::codec::{Damage, Fields, number, unknown, wanted};
use super::{NO_ALGORITHM, get_md5};
use crate::digest::{Algorithm, ChecksumType};

/// A line of a listing. Its texts stay in the record: nothing is copied.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Bytes.
    pub size: u64,
    /// When it was written.
    pub modified: UnixMicros,
    /// The ETag's 16 bytes.
    pub md5: [u8; 16],
    /// How many parts it was made of.
    pub parts: Option<u32>,
    /// Algorithm and type of its checksum.
    pub checksum: Option<(Algorithm, ChecksumType)>,
    /// True for a delete marker.
    pub marker: bool,
    record: Bytes,
    owner: Range<usize>,
    class: Option<Range<usize>>,
}

/// Fields up to here may be passed over; what comes later may change what a line means.
const KNOWN: u8 = 35;

impl Listed {
    /// From an object's record.
    ///
    /// # Errors
    /// As [`Object::decode`](super::Object::decode), for the fields that are read.
    pub fn decode(record: Bytes) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'O', &record)?;
        let (mut size, mut modified, mut md5, mut owner) = (None, None, None, None);
        let (mut checksum, mut class, mut marker) = (None, None, false);
        let place = |bytes: &[u8]| {
            let from = bytes.as_ptr() as usize - record.as_ptr() as usize;
            from..from + bytes.len()
        };
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => size = Some(number(tag, bytes)?),
                2 => modified = Some(UnixMicros(number(tag, bytes)?)),
                3 => md5 = Some(get_md5(bytes)?),
                5 => {
                    let &[algorithm, kind, ..] = bytes else {
                        return Err(Damage::Field { tag, why: "has the wrong length" });
                    };
                    let algorithm = Algorithm::from_code(algorithm).ok_or(NO_ALGORITHM)?;
                    checksum = Some((algorithm, ChecksumType::from_code(kind).ok_or(NO_ALGORITHM)?));
                }
                6 => owner = Some(place(bytes)),
                23 => class = Some(place(bytes)),
                26 => marker = true,
                ..=KNOWN => {}
                _ => unknown(tag)?,
            }
        }
        let (md5, parts) = wanted(3, md5)?;
        let (size, modified, owner) = (wanted(1, size)?, wanted(2, modified)?, wanted(6, owner)?);
        Ok(Self { size, modified, md5, parts, checksum, marker, record, owner, class })
    }

    /// The account that owns it.
    pub fn owner(&self) -> &str {
        self.text(&self.owner)
    }

    /// Its storage class.
    pub fn class(&self) -> &str {
        self.class.as_ref().map_or("STANDARD", |class| self.text(class))
    }

    fn text(&self, place: &Range<usize>) -> &str {
        std::str::from_utf8(&self.record[place.clone()]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Object;

    #[test]
    fn a_line_says_what_the_record_says() {
        let object = crate::record::tests::example();
        let record = object.encode();
        let line = Listed::decode(record.clone()).expect("a record");
        let object = Object::decode(&record).expect("a record");
        assert_eq!(
            (line.size, line.modified, line.md5, line.parts),
            (object.size, object.modified, object.md5, object.parts)
        );
        assert_eq!(line.checksum, object.checksum.as_ref().map(|c| (c.algorithm, c.kind)));
        assert_eq!((line.owner(), line.marker), (&*object.owner, object.marker));
        assert_eq!(line.class(), object.headers.storage_class.as_deref().unwrap_or("STANDARD"));
        for at in 0..record.len() {
            let mut damaged = record.to_vec();
            damaged[at] ^= 1;
            assert!(Listed::decode(damaged.into()).is_err(), "byte {at} changed");
        }
    }
}
