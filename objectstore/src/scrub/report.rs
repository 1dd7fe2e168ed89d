//! What a pass over the store found and did, and its bytes in the metadata store (`docs/records.md`).

use bytes::{BufMut, Bytes, BytesMut};
use karri_base::aws::sigv4::uri_encode;
use karri_base::clock::UnixMicros;

use crate::record::codec::{Damage, Fields, Writer, array, number, unknown, wanted};
use crate::xml::Out;

/// Findings kept in a report; more are only counted.
pub const FINDINGS_MAX: usize = 1_000;

/// What is being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Buckets and their index.
    Buckets = 1,
    /// Objects and their data.
    Objects = 2,
    /// Older versions and their data.
    Versions = 3,
    /// Open uploads' parts and their data.
    Uploads = 4,
    /// What nothing refers to.
    Space = 5,
    /// Counted usage.
    Usage = 6,
}

impl Phase {
    /// As reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buckets => "buckets",
            Self::Objects => "objects",
            Self::Versions => "versions",
            Self::Uploads => "uploads",
            Self::Space => "space",
            Self::Usage => "usage",
        }
    }
    /// What comes after it.
    pub fn next(self) -> Option<Self> {
        Self::of(self as u8 + 1)
    }
    fn of(code: u8) -> Option<Self> {
        let all = [Self::Buckets, Self::Objects, Self::Versions, Self::Uploads, Self::Space, Self::Usage];
        all.into_iter().find(|p| *p as u8 == code)
    }
}

/// What became of something that was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is still wrong.
    Left,
    /// The records told what is right.
    Repaired,
}

/// Where something is: as clients name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The bucket; empty where none is known.
    pub bucket: String,
    /// The key; empty for a bucket's own records.
    pub key: String,
    /// The version id, or `null`.
    pub version: String,
}

/// Something that was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// Which piece of it.
    pub what: String,
    /// What about it.
    pub why: String,
    /// What became of it.
    pub fate: Fate,
    /// When it was found.
    pub at: UnixMicros,
    /// True where a client's GET came upon it.
    pub by_read: bool,
}

/// One pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Counts passes from the store's beginning.
    pub number: u64,
    /// True for one that an operator waits for: it goes as fast as it can.
    pub asked: bool,
    /// When it began.
    pub began: UnixMicros,
    /// When it ended.
    pub ended: Option<UnixMicros>,
    /// What it is at.
    pub phase: Phase,
    /// Records up to this key are done.
    pub position: Bytes,
    /// Versions and parts looked at.
    pub objects: u64,
    /// Bytes verified.
    pub bytes: u64,
    /// What was wrong and still is.
    pub left: u64,
    /// What was wrong and is not any more.
    pub repaired: u64,
    /// Pieces of data handed to the reclaimer because nothing refers to them.
    pub freed: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// What could not be told because too much went on: the next pass looks again.
    pub undecided: u64,
    /// What was wrong, at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
}

impl Pass {
    /// One that begins.
    pub fn new(number: u64, asked: bool, began: UnixMicros) -> Self {
        Self {
            number,
            asked,
            began,
            ended: None,
            phase: Phase::Buckets,
            position: Bytes::new(),
            objects: 0,
            bytes: 0,
            left: 0,
            repaired: 0,
            freed: 0,
            freed_bytes: 0,
            undecided: 0,
            findings: Vec::new(),
        }
    }

    /// Notes a finding; true where it is new.
    pub fn note(&mut self, finding: Finding) -> bool {
        let same = |f: &Finding| f.place == finding.place && f.what == finding.what && f.fate == finding.fate;
        if self.findings.iter().any(same) {
            return false;
        }
        match finding.fate {
            Fate::Left => self.left += 1,
            Fate::Repaired => self.repaired += 1,
        }
        // What is left matters more than what is mended.
        if self.findings.len() >= FINDINGS_MAX
            && finding.fate == Fate::Left
            && let Some(at) = self.findings.iter().position(|f| f.fate == Fate::Repaired)
        {
            self.findings.swap_remove(at);
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
        true
    }

    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'C');
        w.number(1, self.number);
        w.field(2, &[self.asked.into()]);
        w.number(3, self.began.0);
        if let Some(ended) = self.ended {
            w.number(4, ended.0);
        }
        w.field(5, &[&[self.phase as u8], &self.position[..]].concat());
        let counts = [self.objects, self.bytes, self.left, self.repaired, self.freed, self.freed_bytes, self.undecided];
        for (tag, count) in (6..).zip(counts) {
            w.number(tag, count);
        }
        for finding in &self.findings {
            w.field(13, &finding.encode());
        }
        w.finish()
    }

    /// From what is stored.
    ///
    /// # Errors
    /// Damage.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'C', record)?;
        let (mut id, mut asked, mut began, mut ended, mut at) = (None, false, None, None, None);
        let mut counts = [0; 7];
        let mut findings = Vec::new();
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => id = Some(number(tag, bytes)?),
                2 => asked = array::<1>(tag, bytes)? != [0],
                3 => began = Some(UnixMicros(number(tag, bytes)?)),
                4 => ended = Some(UnixMicros(number(tag, bytes)?)),
                5 => {
                    let (code, position) = bytes.split_first().ok_or(Damage::Field { tag, why: "is empty" })?;
                    let phase = Phase::of(*code).ok_or(Damage::Field { tag, why: "names no known phase" })?;
                    at = Some((phase, Bytes::copy_from_slice(position)));
                }
                6..=12 => counts[usize::from(tag) - 6] = number(tag, bytes)?,
                13 => findings.push(Finding::decode(bytes).ok_or(Damage::Field { tag, why: "is no finding" })?),
                _ => unknown(tag)?,
            }
        }
        let (phase, position) = wanted(5, at)?;
        let [objects, bytes, left, repaired, freed, freed_bytes, undecided] = counts;
        Ok(Self {
            number: wanted(1, id)?,
            asked,
            began: wanted(3, began)?,
            ended,
            phase,
            position,
            objects,
            bytes,
            left,
            repaired,
            freed,
            freed_bytes,
            undecided,
            findings,
        })
    }

    /// Adds it to a document.
    pub fn write(&self, name: &str, out: &mut Out) {
        out.element(name, |out| {
            let mut count = |name: &str, n: u64| out.text(name, &n.to_string());
            count("Number", self.number);
            count("Began", self.began.secs());
            if let Some(ended) = self.ended {
                count("Ended", ended.secs());
            }
            count("Objects", self.objects);
            count("Bytes", self.bytes);
            count("Left", self.left);
            count("Repaired", self.repaired);
            count("Freed", self.freed);
            count("FreedBytes", self.freed_bytes);
            count("Undecided", self.undecided);
            out.text("Asked", if self.asked { "true" } else { "false" });
            out.text("Phase", self.phase.name());
            for finding in &self.findings {
                finding.write(out);
            }
        });
    }
}

impl Finding {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.at.0);
        out.put_u8(u8::from(self.fate == Fate::Repaired));
        out.put_u8(self.by_read.into());
        for text in [&self.place.bucket, &self.place.key, &self.place.version, &self.what, &self.why] {
            let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
            out.put_u16_le(bytes.len() as u16);
            out.put_slice(bytes);
        }
        out.freeze()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = bytes.split_first_chunk::<8>()?;
        let ([fate, by_read], mut rest) = rest.split_first_chunk::<2>()?;
        let mut text = || -> Option<String> {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let (text, after) = after.split_at_checked(u16::from_le_bytes(*len).into())?;
            rest = after;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let place = Place { bucket: text()?, key: text()?, version: text()? };
        let (what, why) = (text()?, text()?);
        let fate = if *fate == 0 { Fate::Left } else { Fate::Repaired };
        Some(Self { place, what, why, fate, at: UnixMicros(u64::from_le_bytes(*at)), by_read: *by_read != 0 })
    }

    fn write(&self, out: &mut Out) {
        out.element("Finding", |out| {
            out.text("Bucket", &self.place.bucket);
            // Keys may hold what XML cannot.
            out.text("Key", &uri_encode(self.place.key.as_bytes(), true));
            out.text("Version", &self.place.version);
            out.text("What", &self.what);
            out.text("Why", &self.why);
            out.text("Fate", if self.fate == Fate::Left { "left" } else { "repaired" });
            out.text("FoundBy", if self.by_read { "read" } else { "scrub" });
            out.text("At", &self.at.secs().to_string());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Pass {
        let mut pass = Pass::new(2, true, UnixMicros(1_700_000_000_000_000));
        (pass.phase, pass.position) = (Phase::Objects, Bytes::from_static(b"Ok"));
        (pass.objects, pass.bytes) = (3, 5);
        pass.note(Finding {
            place: Place { bucket: "b".into(), key: "k".into(), version: "null".into() },
            what: "blob 1".into(),
            why: "x".into(),
            fate: Fate::Left,
            at: UnixMicros(7),
            by_read: false,
        });
        pass
    }

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../../docs/records.md").split("A pass's record with").nth(1).expect("the example");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        assert_eq!(hex::encode(example().encode()), digits);
        assert_eq!(Pass::decode(&example().encode()).unwrap(), example());
    }

    #[test]
    fn findings_are_bounded_and_noted_once() {
        let mut pass = example();
        let finding = pass.findings[0].clone();
        assert!(!pass.note(finding.clone()));
        for i in 0..2 * FINDINGS_MAX {
            let fate = if i < FINDINGS_MAX { Fate::Repaired } else { Fate::Left };
            pass.note(Finding { what: i.to_string(), fate, ..finding.clone() });
        }
        assert_eq!(pass.findings.len(), FINDINGS_MAX);
        assert_eq!((pass.left, pass.repaired), (1 + FINDINGS_MAX as u64, FINDINGS_MAX as u64));
        assert!(pass.findings.iter().all(|f| f.fate == Fate::Left));
        assert_eq!(Pass::decode(&pass.encode()).unwrap(), pass);
    }

    proptest::proptest! {
        #[test]
        fn hostile_records_do_no_harm(bytes: Vec<u8>) {
            let _ = Finding::decode(&bytes);
            let mut w = Writer::new(b'C');
            w.field(13, &bytes);
            let _ = Pass::decode(&w.finish());
        }
    }
}
