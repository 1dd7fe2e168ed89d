//! What a node remembers of each instance, durably: one record an instance in the node's `MetaStore`.
//!
//! | key | value (JSON) |
//! |---|---|
//! | `node/instance/` instance id | [`Record`], version 1 |
//!
//! A record is written before anything is done for it, so that no machine runs without one, and it stays for
//! [`KEEP`] after the machine is gone: a late command with an older generation is refused by it.

use std::time::Duration;

use bytes::Bytes;
use karri_base::id::InstanceId;
use karri_base::proto::incarnation::State;
use karri_base::proto::{Incarnation, InstanceSpec};
use karri_meta::{Batch, MetaError, MetaStore, Scan};
use serde::{Deserialize, Serialize};

/// How long an ended instance's record and console are kept.
pub const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Records that are read at a time.
const PAGE: usize = 1000;

const PREFIX: &str = "node/instance/";

/// Where an instance's present incarnation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its machine is being started.
    Starting,
    /// Its machine runs.
    Running,
    /// Its machine is being shut down.
    Stopping,
    /// Its machine is gone.
    Gone,
    /// Its machine could not be started.
    Failed,
}

impl Phase {
    /// True while it takes up CPUs and memory.
    pub fn holds_capacity(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
    }
    /// In words of the protocol.
    pub fn state(self) -> State {
        match self {
            Self::Starting => State::Starting,
            Self::Running => State::Running,
            Self::Stopping => State::Stopping,
            Self::Gone => State::Gone,
            Self::Failed => State::Failed,
        }
    }
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

/// One instance on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1.
    pub version: u32,
    /// The highest generation that commanded it.
    pub generation: u64,
    /// Where its incarnation is.
    pub phase: Phase,
    /// Why it ended or failed: EC2's code, colon, message.
    pub reason: String,
    /// When its machine started.
    pub started_unix_micros: u64,
    /// When this record last changed.
    pub changed_unix_micros: u64,
    /// What was asked for, disks that were attached since included.
    #[serde(with = "as_protobuf")]
    pub spec: InstanceSpec,
}

impl Record {
    /// A record of `spec` in `phase`.
    pub fn new(spec: InstanceSpec, phase: Phase) -> Self {
        Self {
            version: 1,
            generation: spec.generation,
            phase,
            reason: String::new(),
            started_unix_micros: 0,
            changed_unix_micros: 0,
            spec,
        }
    }

    /// What the node answers about it.
    pub fn incarnation(&self) -> Incarnation {
        let mut answer = Incarnation {
            instance_id: self.spec.instance_id.clone(),
            generation: self.generation,
            reason: self.reason.clone(),
            volume_ids: self.spec.disks.iter().map(|d| d.volume_id.clone()).collect(),
            started_unix_micros: self.started_unix_micros,
            ..Incarnation::default()
        };
        answer.set_state(self.phase.state());
        if !self.phase.holds_capacity() {
            answer.volume_ids.clear();
        }
        answer
    }
}

/// A protobuf message inside JSON: base64 of its encoding, which old and new readers understand alike.
mod as_protobuf {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use karri_base::proto::InstanceSpec;
    use prost::Message as _;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(spec: &InstanceSpec, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(spec.encode_to_vec()))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<InstanceSpec, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        InstanceSpec::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

fn key(instance: &InstanceId) -> Bytes {
    format!("{PREFIX}{instance}").into()
}

/// Writes a record, durably.
///
/// # Errors
/// The store's.
pub async fn save(meta: &dyn MetaStore, instance: &InstanceId, record: &Record) -> Result<(), MetaError> {
    let value = serde_json::to_vec(record)
        .map_err(|e| MetaError::Failed { op: "encoding an instance's record", why: e.to_string() })?;
    meta.commit(Batch::new().put(key(instance), value)).await
}

/// Removes a record.
///
/// # Errors
/// The store's.
pub async fn forget(meta: &dyn MetaStore, instance: &InstanceId) -> Result<(), MetaError> {
    meta.commit(Batch::new().del(key(instance))).await
}

/// Reads all records.
///
/// # Errors
/// The store's; `Failed` where a record is of another version or damaged.
pub async fn load(meta: &dyn MetaStore) -> Result<Vec<(InstanceId, Record)>, MetaError> {
    let mut records = Vec::new();
    let mut scan = Scan::prefix(PREFIX, PAGE);
    loop {
        let page = meta.scan(scan.clone()).await?;
        for (key, value) in &page {
            let bad = |why: String| MetaError::Failed {
                op: "reading an instance's record",
                why: format!("key {}: {why}", key.escape_ascii()),
            };
            let id = std::str::from_utf8(&key[PREFIX.len()..]).map_err(|e| bad(e.to_string()))?;
            let id: InstanceId = id.parse().map_err(|e: karri_base::id::BadId| bad(e.to_string()))?;
            let record: Record = serde_json::from_slice(value).map_err(|e| bad(e.to_string()))?;
            if record.version != 1 {
                return Err(bad(format!("version {} is not one that this node reads", record.version)));
            }
            records.push((id, record));
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => {
                scan.range.start = Bytes::from([last.as_ref(), b"\0"].concat());
            }
            _ => return Ok(records),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karri_base::proto::Disk;
    use karri_meta::memory::MemoryStore;

    #[tokio::test]
    async fn records_come_back_as_they_were_written() {
        let meta = MemoryStore::new();
        let mut written = Vec::new();
        for n in 0..(PAGE as u128 + 3) {
            let id = InstanceId::from_bits(n);
            let disks = vec![Disk { volume_id: "vol-00000001".into(), ..Disk::default() }];
            let spec = InstanceSpec { instance_id: id.to_string(), generation: 7, disks, ..InstanceSpec::default() };
            let record = Record::new(spec, Phase::Running);
            save(&meta, &id, &record).await.unwrap();
            written.push((id, record));
        }
        assert_eq!(load(&meta).await.unwrap(), written);
        forget(&meta, &written[0].0).await.unwrap();
        assert_eq!(load(&meta).await.unwrap(), written[1..]);
    }

    /// What version 1 of karri wrote must stay readable.
    #[test]
    fn a_record_of_version_1_is_read() {
        let text = r#"{"version":1,"generation":3,"phase":"gone","reason":"Client.UserInitiatedShutdown: x",
            "started_unix_micros":5,"changed_unix_micros":6,"spec":"CgppLTAwMDAwMDAxEAM="}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.spec.instance_id.as_str(), record.spec.generation), ("i-00000001", 3));
        assert_eq!(record.phase, Phase::Gone);
        assert_eq!(record.incarnation().state(), State::Gone);
    }
}
