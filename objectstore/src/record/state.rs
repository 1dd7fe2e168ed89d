//! The parts of records that say what may become of versions: versioning, object lock, retention, legal hold; and tags.

use karri_base::clock::UnixMicros;

use super::codec::{Damage, Writer, array, number, text};
use crate::crypt::WRAPPED;

/// Whether a bucket keeps versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    #[default]
    Never,
    /// Each PUT and DELETE makes a version.
    Enabled,
    /// It did; PUT and DELETE now make or replace the null version.
    Suspended,
}

impl Versioning {
    pub(super) fn write(self, w: &mut Writer) {
        match self {
            Self::Never => {}
            Self::Enabled => w.field(7, &[1]),
            Self::Suspended => w.field(7, &[2]),
        }
    }
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Damage> {
        match bytes {
            [1] => Ok(Self::Enabled),
            [2] => Ok(Self::Suspended),
            _ => Err(Damage::Field { tag: 7, why: "names no known state" }),
        }
    }
}

/// How strict a retention is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those who may bypass it may.
    Governance,
    /// Nobody may end it early.
    Compliance,
}

impl Mode {
    /// As S3 names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Governance, Self::Compliance].into_iter().find(|m| m.name() == name)
    }
    fn code(self) -> u8 {
        match self {
            Self::Governance => 1,
            Self::Compliance => 2,
        }
    }
    fn from_code(tag: u8, code: u8) -> Result<Self, Damage> {
        let mode = [Self::Governance, Self::Compliance].into_iter().find(|m| m.code() == code);
        mode.ok_or(Damage::Field { tag, why: "names no known mode" })
    }
}

/// How long a bucket's default retention is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Days.
    Days(u32),
    /// Years of 365 days.
    Years(u32),
}

impl Period {
    /// The moment that lies so long after `from`.
    pub fn after(self, from: UnixMicros) -> UnixMicros {
        let days = match self {
            Self::Days(n) => u64::from(n),
            Self::Years(n) => u64::from(n) * 365,
        };
        UnixMicros(from.0.saturating_add(days * 86_400_000_000))
    }
}

/// A bucket's object lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BucketLock {
    /// Given to versions that come without a retention of their own.
    pub default: Option<(Mode, Period)>,
}

impl BucketLock {
    pub(super) fn write(&self, w: &mut Writer) {
        match self.default {
            None => w.field(8, &[]),
            Some((mode, period)) => {
                let (unit, n) = match period {
                    Period::Days(n) => (0, n),
                    Period::Years(n) => (1, n),
                };
                w.field(8, &[&[mode.code(), unit], &n.to_le_bytes()[..]].concat());
            }
        }
    }
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let [mode, unit, n @ ..] = array::<6>(8, bytes)?;
        let n = u32::from_le_bytes(n);
        let period = match unit {
            0 => Period::Days(n),
            1 => Period::Years(n),
            _ => return Err(Damage::Field { tag: 8, why: "names no known unit" }),
        };
        Ok(Self { default: Some((Mode::from_code(8, mode)?, period)) })
    }
}

/// Until when a version must not be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How strictly.
    pub mode: Mode,
    /// Until when.
    pub until: UnixMicros,
}

/// What protects a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectLock {
    /// Its retention.
    pub retention: Option<Retention>,
    /// Its legal hold, if one was ever put or lifted.
    pub hold: Option<bool>,
}

impl ObjectLock {
    /// What protects as much as both do: nothing is shortened, weakened or lifted.
    pub fn strengthened(self, other: Self) -> Self {
        let retention = match (self.retention, other.retention) {
            (Some(a), Some(b)) => {
                let strict = a.mode == Mode::Compliance || b.mode == Mode::Compliance;
                let mode = if strict { Mode::Compliance } else { Mode::Governance };
                Some(Retention { mode, until: a.until.max(b.until) })
            }
            (a, b) => a.or(b),
        };
        let hold = if self.hold == Some(true) { self.hold } else { other.hold.or(self.hold) };
        Self { retention, hold }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        if let Some(r) = self.retention {
            w.field(29, &[&[r.mode.code()], &r.until.0.to_le_bytes()[..]].concat());
        }
        if let Some(hold) = self.hold {
            w.field(30, &[hold.into()]);
        }
    }
    pub(super) fn read(&mut self, tag: u8, bytes: &[u8]) -> Result<bool, Damage> {
        match tag {
            29 => {
                let (mode, until) = bytes.split_first().ok_or(Damage::Field { tag, why: "is empty" })?;
                let until = UnixMicros(number(tag, until)?);
                self.retention = Some(Retention { mode: Mode::from_code(tag, *mode)?, until });
            }
            30 => self.hold = Some(array::<1>(tag, bytes)? != [0]),
            _ => return Ok(false),
        }
        Ok(true)
    }
    /// True while the version must not be deleted. `bypass`: the caller may pass over governance, and wants to.
    pub fn forbids_deletion(&self, now: UnixMicros, bypass: bool) -> bool {
        let retained = self.retention.is_some_and(|r| r.until > now && !(bypass && r.mode == Mode::Governance));
        retained || self.hold == Some(true)
    }
}

/// Who holds the key that an object's key is wrapped with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Walrus's own key: SSE-S3.
    Walrus,
    /// A key of the local key service, by its id: SSE-KMS.
    Service(String),
    /// The customer: SSE-C.
    Customer,
}

impl Holder {
    fn code(&self) -> u8 {
        match self {
            Self::Walrus => 1,
            Self::Service(_) => 2,
            Self::Customer => 3,
        }
    }
    /// What a wrapped key is authenticated with.
    pub fn about(&self) -> &'static [u8] {
        match self {
            Self::Walrus => b"SSE-S3",
            Self::Service(_) => b"SSE-KMS",
            Self::Customer => b"SSE-C",
        }
    }
    pub(super) fn bytes(&self, more: &[u8]) -> Vec<u8> {
        let id = if let Self::Service(id) = self { id.as_bytes() } else { &[] };
        [&[self.code()], more, id].concat()
    }
    pub(super) fn parse(tag: u8, code: u8, id: &[u8]) -> Result<Self, Damage> {
        match code {
            1 => Ok(Self::Walrus),
            2 => Ok(Self::Service(text(tag, id)?)),
            3 => Ok(Self::Customer),
            _ => Err(Damage::Field { tag, why: "names no known holder" }),
        }
    }
}

/// An object's key, wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Whose key it is wrapped with.
    pub holder: Holder,
    /// The wrapped key.
    pub wrapped: [u8; WRAPPED],
}

impl Sealed {
    pub(super) fn write(&self, w: &mut Writer) {
        w.field(33, &self.holder.bytes(&self.wrapped));
    }
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let short = Damage::Field { tag: 33, why: "has the wrong length" };
        let (code, rest) = bytes.split_first().ok_or(short.clone())?;
        let (wrapped, id) = rest.split_first_chunk::<WRAPPED>().ok_or(short)?;
        Ok(Self { holder: Holder::parse(33, *code, id)?, wrapped: *wrapped })
    }
}

/// What became of a version by replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// Changes of it are on their way.
    Pending {
        /// How many destinations have to take one.
        left: u16,
        /// True where one has refused for good.
        failed: bool,
    },
    /// All destinations have it.
    Completed,
    /// Not all destinations have it, and nobody tries any more.
    Failed,
    /// It is itself a replica.
    Replica,
}

impl Replication {
    /// As S3 names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending { .. } => "PENDING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Replica => "REPLICA",
        }
    }
    /// With so many more on their way.
    pub fn more(this: Option<Self>, n: u16) -> Self {
        match this {
            Some(Self::Replica) => Self::Replica,
            Some(Self::Pending { left, failed }) => Self::Pending { left: left.saturating_add(n), failed },
            None | Some(Self::Completed | Self::Failed) => Self::Pending { left: n, failed: false },
        }
    }
    /// With one of them arrived, or refused.
    pub fn less(self, refused: bool) -> Self {
        match self {
            Self::Pending { left, failed } if left > 1 => Self::Pending { left: left - 1, failed: failed || refused },
            Self::Pending { failed, .. } if failed || refused => Self::Failed,
            Self::Pending { .. } => Self::Completed,
            settled => settled,
        }
    }
    pub(super) fn write(self, w: &mut Writer) {
        match self {
            Self::Pending { left, failed } => {
                let [low, high] = left.to_le_bytes();
                w.field(35, &[1, failed.into(), low, high]);
            }
            Self::Completed => w.field(35, &[2]),
            Self::Failed => w.field(35, &[3]),
            Self::Replica => w.field(35, &[4]),
        }
    }
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Damage> {
        match bytes {
            [1, failed, low, high] => {
                Ok(Self::Pending { left: u16::from_le_bytes([*low, *high]), failed: *failed != 0 })
            }
            [2] => Ok(Self::Completed),
            [3] => Ok(Self::Failed),
            [4] => Ok(Self::Replica),
            _ => Err(Damage::Field { tag: 35, why: "names no known state" }),
        }
    }
}

/// Names and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags(pub Vec<(String, String)>);

impl Tags {
    pub(super) fn write(&self, w: &mut Writer) {
        for (name, value) in &self.0 {
            w.field(28, &[name.as_bytes(), &[0], value.as_bytes()].concat());
        }
    }
    pub(super) fn read(&mut self, tag: u8, bytes: &[u8]) -> Result<bool, Damage> {
        if tag != 28 {
            return Ok(false);
        }
        let pair = text(tag, bytes)?;
        let (name, value) = pair.split_once('\0').ok_or(Damage::Field { tag, why: "has no name" })?;
        self.0.push((name.to_owned(), value.to_owned()));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_protects_a_version() {
        let now = UnixMicros(100);
        let retained = |mode, until| ObjectLock { retention: Some(Retention { mode, until }), hold: None };
        let check = |lock: ObjectLock, bypass, want| assert_eq!(lock.forbids_deletion(now, bypass), want, "{lock:?}");
        check(ObjectLock::default(), false, false);
        check(retained(Mode::Governance, UnixMicros(101)), false, true);
        check(retained(Mode::Governance, UnixMicros(101)), true, false);
        check(retained(Mode::Compliance, UnixMicros(101)), true, true);
        check(retained(Mode::Compliance, UnixMicros(100)), false, false);
        check(ObjectLock { retention: None, hold: Some(true) }, true, true);
        check(ObjectLock { retention: None, hold: Some(false) }, false, false);
    }
}
