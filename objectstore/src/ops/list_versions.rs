//! ListObjectVersions: a walk over two ranges at once, current versions in `O` and older ones in `V`.
//!
//! Both are in the order of keys, so the walk takes of each key its `O` first and then its `V`s. A scan of `O` always comes
//! before the scan of `V` for the same keys: a version that moves from `O` to `V` in between is then seen twice, which
//! shows by its time, and never not at all.

use std::collections::VecDeque;

use bytes::Bytes;
use karri_base::clock::UnixMicros;
use karri_bulk::BulkStore;
use karri_meta::Scan;
use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, CommonPrefix, DeleteMarkerEntry, ListObjectVersionsInput,
    ListObjectVersionsOutput, ObjectVersion, ObjectVersionStorageClass,
};

use crate::core::{Access, Caller, Core, CoreRef};
use crate::error::{Error, Kind, Result};
use crate::keys::{self, BucketId};
use crate::list::common_prefix;
use crate::ops::bucket::owner;
use crate::ops::get::{etag, timestamp};
use crate::ops::list_objects::{Encode, page};
use crate::record::Object;
use crate::versions::Which;

/// Pairs of one scan.
const SCAN: usize = 250;

/// ListObjectVersions.
pub async fn list_object_versions<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: ListObjectVersionsInput,
) -> Result<ListObjectVersionsOutput> {
    let encode = Encode::new(input.encoding_type.as_ref())?;
    let max = page(input.max_keys)?;
    let bucket = core.bucket(caller, &input.bucket, input.expected_bucket_owner.as_deref(), Access::Read).await?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().unwrap_or_default();
    let key_marker = input.key_marker.clone().unwrap_or_default();
    let version_marker = input.version_id_marker.clone().filter(|v| !v.is_empty());
    if version_marker.is_some() && key_marker.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "A version-id marker cannot be specified without a key marker."));
    }
    let mut walk = Walk::new(core, bucket.value.id, prefix.as_bytes(), delimiter.as_bytes(), max);
    walk.start(&key_marker, version_marker.as_deref()).await?;
    walk.run().await?;

    let (mut versions, mut markers, mut prefixes) = (Vec::new(), Vec::new(), Vec::new());
    let more = walk.more;
    let next = walk.lines.last().filter(|_| more).map(|line| match line {
        Line::Prefix(p) => (encode.bytes(p).into_owned(), None),
        Line::Version { key, object, .. } => (encode.bytes(key).into_owned(), Some(object.version_text())),
    });
    for line in walk.lines {
        match line {
            Line::Prefix(p) => prefixes.push(CommonPrefix { prefix: Some(encode.bytes(&p).into_owned()) }),
            Line::Version { key, object, latest } if object.marker => markers.push(DeleteMarkerEntry {
                is_latest: Some(latest),
                key: Some(encode.bytes(&key).into_owned()),
                last_modified: timestamp(object.modified),
                owner: Some(owner(&object.owner)),
                version_id: Some(object.version_text()),
            }),
            Line::Version { key, object, latest } => versions.push(version(&encode, &key, &object, latest)),
        }
    }
    let (next_key, next_version) = next.unzip();
    Ok(ListObjectVersionsOutput {
        name: Some(input.bucket),
        prefix: Some(encode.text(&prefix).into_owned()),
        delimiter: (!delimiter.is_empty()).then(|| encode.text(&delimiter).into_owned()),
        key_marker: Some(encode.text(&key_marker).into_owned()),
        version_id_marker: Some(version_marker.unwrap_or_default()),
        next_key_marker: next_key,
        next_version_id_marker: next_version.flatten(),
        max_keys: Some(max as i32),
        is_truncated: Some(more),
        versions: (!versions.is_empty()).then_some(versions),
        delete_markers: (!markers.is_empty()).then_some(markers),
        common_prefixes: (!prefixes.is_empty()).then_some(prefixes),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

fn version(encode: &Encode, key: &[u8], object: &Object, latest: bool) -> ObjectVersion {
    let checksum = object.checksum.as_ref();
    ObjectVersion {
        checksum_algorithm: checksum.map(|c| vec![ChecksumAlgorithm::from_static(c.algorithm.name())]),
        checksum_type: checksum.map(|c| ChecksumType::from_static(c.kind.name())),
        e_tag: Some(etag(object)),
        is_latest: Some(latest),
        key: Some(encode.bytes(key).into_owned()),
        last_modified: timestamp(object.modified),
        owner: Some(owner(&object.owner)),
        restore_status: None,
        size: Some(object.size as i64),
        storage_class: Some(match &object.headers.storage_class {
            Some(class) => ObjectVersionStorageClass::from(class.clone()),
            None => ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD),
        }),
        version_id: Some(object.version_text()),
    }
}

/// One line of the answer.
enum Line {
    /// A common prefix.
    Prefix(Vec<u8>),
    /// A version or delete marker.
    Version { key: Vec<u8>, object: Box<Object>, latest: bool },
}

/// A range being read in pages.
struct Cursor {
    /// Where the next page begins.
    from: Bytes,
    /// Where the range ends.
    end: Bytes,
    /// Read and not yet taken.
    ready: VecDeque<(Bytes, Bytes)>,
    /// Nothing is left beyond `ready`.
    over: bool,
}

impl Cursor {
    fn new(range: std::ops::Range<Bytes>) -> Self {
        Self { from: range.start, end: range.end, ready: VecDeque::new(), over: false }
    }
    /// True when the next pair is not read yet.
    fn is_dry(&self) -> bool {
        self.ready.is_empty() && !self.over
    }
    async fn fill<B: BulkStore>(&mut self, core: &Core<B>) -> Result<()> {
        if self.from >= self.end {
            self.over = true;
            return Ok(());
        }
        let scan = Scan { range: self.from.clone()..self.end.clone(), limit: SCAN, reverse: false };
        self.ready = core.meta.scan(scan).await?.into();
        self.over = self.ready.len() < SCAN;
        if let Some((last, _)) = self.ready.back() {
            self.from = keys::after(last);
        }
        Ok(())
    }
    /// Passes over everything before `key`.
    fn seek(&mut self, key: &Bytes) {
        while self.ready.front().is_some_and(|(k, _)| k < key) {
            self.ready.pop_front();
        }
        if self.ready.is_empty() && self.from < *key {
            self.from = key.clone();
        }
    }
    /// Forgets what was read, to read it again.
    fn rewind(&mut self) {
        if let Some((first, _)) = self.ready.front() {
            self.from = first.clone();
        }
        self.ready.clear();
        self.over = false;
    }
}

struct Walk<'c, B: BulkStore> {
    core: &'c Core<B>,
    bucket: BucketId,
    prefix: Vec<u8>,
    delimiter: Vec<u8>,
    max: usize,
    current: Cursor,
    older: Cursor,
    lines: Vec<Line>,
    more: bool,
}

impl<'c, B: BulkStore> Walk<'c, B> {
    fn new(core: &'c Core<B>, bucket: BucketId, prefix: &[u8], delimiter: &[u8], max: usize) -> Self {
        let mut walk = Self {
            core,
            bucket,
            prefix: prefix.to_vec(),
            delimiter: delimiter.to_vec(),
            max,
            current: Cursor::new(keys::prefixed(keys::object(bucket, prefix))),
            older: Cursor::new(keys::versions_of(bucket)),
            lines: Vec::new(),
            more: false,
        };
        let of_prefix = walk.older_from(prefix);
        if let Some(end) = keys::successor(&of_prefix).filter(|_| !prefix.is_empty()) {
            walk.older.end = end;
        }
        walk.older.from = of_prefix;
        walk
    }

    /// The lower bound in `V` of everything whose object key begins with `text`.
    fn older_from(&self, text: &[u8]) -> Bytes {
        let escaped = keys::escape(text);
        let before = keys::versions_of(self.bucket).start;
        Bytes::from([&before[..], &escaped[..escaped.len() - 2]].concat())
    }

    /// Passes over all versions of a key, or of all keys under a common prefix.
    fn pass(&mut self, key: &[u8], is_prefix: bool) {
        let object_key = keys::object(self.bucket, key);
        let (current, older) = if is_prefix {
            (keys::successor(&object_key), keys::successor(&self.older_from(key)))
        } else {
            (Some(keys::after(&object_key)), Some(keys::versions_of_key(self.bucket, key).end))
        };
        self.current.seek(&current.unwrap_or_else(|| self.current.end.clone()));
        self.older.seek(&older.unwrap_or_else(|| self.older.end.clone()));
    }

    /// Goes to what follows the markers.
    async fn start(&mut self, key: &str, version: Option<&str>) -> Result<()> {
        if key.is_empty() {
            return Ok(());
        }
        let key = key.as_bytes();
        let Some(version) = version else {
            let under = common_prefix(key, &self.prefix, &self.delimiter).is_some_and(|p| p.len() == key.len());
            self.pass(key, under);
            return Ok(());
        };
        let which = Which::new(Some(version))?;
        let text = std::str::from_utf8(key).unwrap_or_default();
        let current = self.core.object(self.bucket, text).await?;
        let time = match (which, current) {
            (Which::Id(id), _) => Some(id.time()),
            (_, Some(o)) if o.value.version.is_none() => Some(o.value.modified),
            (_, Some(o)) => o.value.null_at,
            (_, None) => None,
        };
        let before = key < self.prefix.as_slice();
        self.pass(key, false);
        // The rest of this key: what is older than the marker.
        if let Some(UnixMicros(time)) = time.filter(|_| !before) {
            self.older.from = keys::after(&keys::version(self.bucket, key, UnixMicros(time)));
            self.take_older(key.to_vec(), UnixMicros(time)).await?;
        }
        Ok(())
    }

    /// Takes a key's older versions: those before `until`, which is the time of the version above them.
    async fn take_older(&mut self, key: Vec<u8>, until: UnixMicros) -> Result<()> {
        while !self.more {
            if self.older.is_dry() {
                self.older.fill(self.core).await?;
            }
            let Some((store_key, raw)) = self.older.ready.front() else { return Ok(()) };
            let (of, time) = parts(store_key)?;
            if of != key {
                return Ok(());
            }
            if time < until {
                let object = Object::decode(raw)?;
                self.push(Line::Version { key: key.clone(), object: Box::new(object), latest: false });
                if self.more {
                    return Ok(());
                }
            }
            self.older.ready.pop_front();
        }
        Ok(())
    }

    fn push(&mut self, line: Line) {
        if self.lines.len() == self.max {
            self.more = true;
        } else {
            self.lines.push(line);
        }
    }

    async fn run(&mut self) -> Result<()> {
        if self.max == 0 {
            self.more = false;
            return Ok(());
        }
        while !self.more {
            if self.current.is_dry() {
                self.current.fill(self.core).await?;
                self.older.rewind();
            }
            let Some((store_key, raw)) = self.current.ready.pop_front() else { return Ok(()) };
            let key = store_key[keys::OBJECT_PREFIX..].to_vec();
            if let Some(prefix) = common_prefix(&key, &self.prefix, &self.delimiter).map(<[u8]>::to_vec) {
                self.push(Line::Prefix(prefix.clone()));
                self.pass(&prefix, true);
                continue;
            }
            let object = Object::decode(&raw)?;
            let time = object.modified;
            self.push(Line::Version { key: key.clone(), object: Box::new(object), latest: true });
            // What lies before belongs to keys that were made after `O` was read.
            let first = keys::versions_of_key(self.bucket, &key).start;
            self.older.seek(&first);
            self.take_older(key, time).await?;
        }
        Ok(())
    }
}

fn parts(store_key: &[u8]) -> Result<(Vec<u8>, UnixMicros)> {
    keys::version_parts(store_key).ok_or_else(|| Error::new(Kind::InternalError, "A version's key is damaged."))
}
