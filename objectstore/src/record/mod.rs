//! What Walrus keeps about buckets, objects, uploads and parts, and its bytes in the metadata store.
//!
//! Format, fields and a byte-exact example: `docs/records.md`; a test holds that page and this code together. Records
//! grow by new tags (see [`codec`]); readers accept this version and older ones.

pub mod codec;
pub mod listed;
pub mod state;

use bytes::Bytes;
use karri_base::clock::UnixMicros;
use karri_bulk::BlobId;

use crate::access::acl::Acl;
use crate::config::Documents;
use crate::digest::{Algorithm, Checksum, ChecksumType};
use crate::keys::{BucketId, DataId};
use codec::{Damage, Fields, Writer, array, number, text, unknown, wanted};
pub use state::{BucketLock, Holder, Mode, ObjectLock, Period, Replication, Retention, Sealed, Tags, Versioning};

/// `B`: a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The number that its objects are kept under.
    pub id: BucketId,
    /// The account that it belongs to.
    pub owner: String,
    /// When it was made.
    pub created: UnixMicros,
    /// Where, as `GetBucketLocation` says.
    pub region: String,
    /// Set while a DeleteBucket looks whether it is empty: a writer clears it first, so that one of the two loses.
    pub deleting: bool,
    /// Counts those clearings and settings, so that no two states of a bucket have equal bytes.
    pub fence: u64,
    /// Whether it keeps versions.
    pub versioning: Versioning,
    /// Object lock, once it is enabled.
    pub lock: Option<BucketLock>,
    /// How objects are encrypted whose upload does not say.
    pub encryption: Option<Holder>,
    /// What it is configured to do.
    pub documents: Documents,
}

/// `O`: an object's current version; `V`: an older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Bytes.
    pub size: u64,
    /// When it was written.
    pub modified: UnixMicros,
    /// MD5 of the data, or of the parts' MD5s.
    pub md5: [u8; 16],
    /// How many parts, when it came from a multipart upload: the ETag's `-N`.
    pub parts: Option<u32>,
    /// Where its data is.
    pub data: Data,
    /// Its checksum.
    pub checksum: Option<Checksum>,
    /// Headers and user metadata.
    pub headers: Headers,
    /// The account that wrote it.
    pub owner: String,
    /// This version's id; `None` is the version that clients know as `null`.
    pub version: Option<DataId>,
    /// A delete marker: the object is deleted, and this says since when.
    pub marker: bool,
    /// In `O`: when the null version among the older ones was written, if there is one.
    pub null_at: Option<UnixMicros>,
    /// Its tags.
    pub tags: Tags,
    /// Retention and legal hold.
    pub lock: ObjectLock,
    /// Its key, if it is encrypted.
    pub sealed: Option<Sealed>,
    /// Of its data, if that is encrypted and in one piece.
    pub salt: Option<[u8; 16]>,
    /// Its access control list; `None` is private.
    pub acl: Option<Acl>,
    /// What became of it by replication; `None` where no rule meant it.
    pub replication: Option<Replication>,
}

impl Default for Object {
    fn default() -> Self {
        Self {
            size: 0,
            modified: UnixMicros(0),
            md5: [0; 16],
            parts: None,
            data: Data::Empty,
            checksum: None,
            headers: Headers::default(),
            owner: String::new(),
            version: None,
            marker: false,
            null_at: None,
            tags: Tags::default(),
            lock: ObjectLock::default(),
            sealed: None,
            salt: None,
            acl: None,
            replication: None,
        }
    }
}

impl Object {
    /// The version's id as clients know it.
    pub fn version_text(&self) -> String {
        self.version.map_or_else(|| "null".into(), DataId::to_hex)
    }
    /// The ETag without quotes.
    pub fn etag(&self) -> String {
        match self.parts {
            None => hex::encode(self.md5),
            Some(n) => format!("{}-{n}", hex::encode(self.md5)),
        }
    }
}

/// Where data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Data {
    /// There are no bytes.
    Empty,
    /// Under `I` in the metadata store.
    Inline(DataId),
    /// In the bulk store.
    Blob(BlobId),
    /// In the pieces that the manifest `M` lists.
    Manifest(DataId),
}

/// What a client says about an object, given back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Content-Type.
    pub content_type: Option<String>,
    /// Cache-Control.
    pub cache_control: Option<String>,
    /// Content-Disposition.
    pub content_disposition: Option<String>,
    /// Content-Encoding, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// Content-Language.
    pub content_language: Option<String>,
    /// Expires, in seconds since 1970.
    pub expires: Option<i64>,
    /// x-amz-website-redirect-location.
    pub website_redirect: Option<String>,
    /// x-amz-storage-class, when it is not STANDARD.
    pub storage_class: Option<String>,
    /// x-amz-meta-*, names without that prefix, sorted.
    pub user: Vec<(String, String)>,
}

/// `U`: an open multipart upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// When it began.
    pub initiated: UnixMicros,
    /// The account that began it.
    pub owner: String,
    /// The principal that began it.
    pub initiator: String,
    /// The checksum that the object will have.
    pub algorithm: Algorithm,
    /// How it comes from the parts' checksums.
    pub checksum_type: ChecksumType,
    /// True when the client asked for none and the default was taken: parts may then carry any.
    pub implicit: bool,
    /// For the object.
    pub headers: Headers,
    /// For the object.
    pub tags: Tags,
    /// For the object.
    pub lock: ObjectLock,
    /// The object's key, if it is to be encrypted.
    pub sealed: Option<Sealed>,
    /// For the object: its list.
    pub acl: Option<Acl>,
    /// The object is to be a replica of the version with this id.
    pub replica: Option<DataId>,
}

/// `P`: a part of an open upload; and a line of `M`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u16,
    /// Bytes.
    pub size: u64,
    /// When it was written.
    pub modified: UnixMicros,
    /// MD5 of its data.
    pub md5: [u8; 16],
    /// `Empty`, `Inline` or `Blob`.
    pub data: Data,
    /// In the upload's algorithm.
    pub checksum: Option<Checksum>,
    /// Of its data, if that is encrypted.
    pub salt: Option<[u8; 16]>,
}

/// `M`: the parts that an object is made of, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// In order of their numbers.
    pub parts: Vec<Part>,
}

impl Bucket {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'B');
        w.number(1, self.id.0);
        w.field(2, self.owner.as_bytes());
        w.number(3, self.created.0);
        w.field(4, self.region.as_bytes());
        if self.deleting {
            w.field(5, &[]);
        }
        w.number(6, self.fence);
        self.versioning.write(&mut w);
        if let Some(lock) = &self.lock {
            lock.write(&mut w);
        }
        if let Some(holder) = &self.encryption {
            w.field(9, &holder.bytes(&[]));
        }
        self.documents.write(&mut w);
        w.finish()
    }
    /// From what is stored.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'B', record)?;
        let (mut id, mut owner, mut created, mut region, mut deleting, mut fence) = (None, None, None, None, false, 0);
        let (mut versioning, mut lock, mut encryption) = (Versioning::Never, None, None);
        let mut documents = Documents::default();
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => id = Some(BucketId(number(tag, bytes)?)),
                2 => owner = Some(text(tag, bytes)?),
                3 => created = Some(UnixMicros(number(tag, bytes)?)),
                4 => region = Some(text(tag, bytes)?),
                5 => deleting = true,
                6 => fence = number(tag, bytes)?,
                7 => versioning = Versioning::read(bytes)?,
                8 => lock = Some(BucketLock::read(bytes)?),
                9 => {
                    let (code, id) = bytes.split_first().ok_or(Damage::Field { tag, why: "is empty" })?;
                    encryption = Some(Holder::parse(tag, *code, id)?);
                }
                _ if documents.read(tag, bytes) => {}
                _ => unknown(tag)?,
            }
        }
        Ok(Self {
            id: wanted(1, id)?,
            owner: wanted(2, owner)?,
            created: wanted(3, created)?,
            region: wanted(4, region)?,
            deleting,
            fence,
            versioning,
            lock,
            encryption,
            documents,
        })
    }
}

impl Object {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'O');
        w.number(1, self.size);
        w.number(2, self.modified.0);
        put_md5(&mut w, self.md5, self.parts);
        put_data(&mut w, &self.data);
        put_checksum(&mut w, self.checksum.as_ref());
        w.field(6, self.owner.as_bytes());
        self.headers.write(&mut w);
        if let Some(id) = self.version {
            w.field(25, &id.0);
        }
        if self.marker {
            w.field(26, &[]);
        }
        if let Some(at) = self.null_at {
            w.number(27, at.0);
        }
        self.tags.write(&mut w);
        self.lock.write(&mut w);
        if let Some(sealed) = &self.sealed {
            sealed.write(&mut w);
        }
        if let Some(salt) = &self.salt {
            w.field(34, salt);
        }
        put_acl(&mut w, self.acl.as_ref());
        if let Some(replication) = self.replication {
            replication.write(&mut w);
        }
        w.finish()
    }
    /// From what is stored.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'O', record)?;
        let (mut size, mut modified, mut md5, mut data, mut checksum, mut owner) = (None, None, None, None, None, None);
        let (mut headers, mut acl) = (Headers::default(), None);
        let (mut version, mut marker, mut null_at) = (None, false, None);
        let (mut tags, mut lock) = (Tags::default(), ObjectLock::default());
        let (mut sealed, mut salt, mut replication) = (None, None, None);
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => size = Some(number(tag, bytes)?),
                2 => modified = Some(UnixMicros(number(tag, bytes)?)),
                3 => md5 = Some(get_md5(bytes)?),
                4 => data = Some(get_data(bytes)?),
                5 => checksum = Some(get_checksum(bytes)?),
                6 => owner = Some(text(tag, bytes)?),
                25 => version = Some(DataId(array(tag, bytes)?)),
                26 => marker = true,
                27 => null_at = Some(UnixMicros(number(tag, bytes)?)),
                33 => sealed = Some(Sealed::read(bytes)?),
                34 => salt = Some(array(tag, bytes)?),
                35 => replication = Some(Replication::read(bytes)?),
                31 => acl = Some(Acl::decode(tag, bytes)?),
                _ if headers.read(tag, bytes)? || tags.read(tag, bytes)? || lock.read(tag, bytes)? => {}
                _ => unknown(tag)?,
            }
        }
        let (md5, parts) = wanted(3, md5)?;
        Ok(Self {
            size: wanted(1, size)?,
            modified: wanted(2, modified)?,
            md5,
            parts,
            data: wanted(4, data)?,
            checksum,
            headers,
            owner: wanted(6, owner)?,
            version,
            marker,
            null_at,
            tags,
            lock,
            sealed,
            salt,
            acl,
            replication,
        })
    }
}

impl Upload {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'U');
        w.number(2, self.initiated.0);
        w.field(6, self.owner.as_bytes());
        w.field(7, self.initiator.as_bytes());
        w.field(8, &[self.algorithm.code(), self.checksum_type.code(), self.implicit.into()]);
        self.headers.write(&mut w);
        self.tags.write(&mut w);
        self.lock.write(&mut w);
        if let Some(sealed) = &self.sealed {
            sealed.write(&mut w);
        }
        put_acl(&mut w, self.acl.as_ref());
        if let Some(id) = self.replica {
            w.field(35, &id.0);
        }
        w.finish()
    }
    /// From what is stored.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'U', record)?;
        let (mut initiated, mut owner, mut initiator, mut checksum) = (None, None, None, None);
        let (mut headers, mut acl, mut replica) = (Headers::default(), None, None);
        let (mut tags, mut lock, mut sealed) = (Tags::default(), ObjectLock::default(), None);
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                33 => sealed = Some(Sealed::read(bytes)?),
                2 => initiated = Some(UnixMicros(number(tag, bytes)?)),
                6 => owner = Some(text(tag, bytes)?),
                7 => initiator = Some(text(tag, bytes)?),
                8 => {
                    let [algorithm, kind, implicit] = array(tag, bytes)?;
                    let algorithm = Algorithm::from_code(algorithm).ok_or(NO_ALGORITHM)?;
                    checksum = Some((algorithm, ChecksumType::from_code(kind).ok_or(NO_ALGORITHM)?, implicit != 0));
                }
                31 => acl = Some(Acl::decode(tag, bytes)?),
                35 => replica = Some(DataId(array(tag, bytes)?)),
                _ if headers.read(tag, bytes)? || tags.read(tag, bytes)? || lock.read(tag, bytes)? => {}
                _ => unknown(tag)?,
            }
        }
        let (algorithm, checksum_type, implicit) = wanted(8, checksum)?;
        Ok(Self {
            initiated: wanted(2, initiated)?,
            owner: wanted(6, owner)?,
            initiator: wanted(7, initiator)?,
            algorithm,
            checksum_type,
            implicit,
            headers,
            tags,
            lock,
            sealed,
            acl,
            replica,
        })
    }
}

impl Part {
    fn write(&self, w: &mut Writer) {
        w.number(1, self.size);
        w.number(2, self.modified.0);
        put_md5(w, self.md5, None);
        put_data(w, &self.data);
        put_checksum(w, self.checksum.as_ref());
        if let Some(salt) = &self.salt {
            w.field(34, salt);
        }
        // The number comes last: it ends a part in a manifest.
        w.number(9, self.number.into());
    }
    fn read(fields: &mut Fields<'_>) -> Result<Option<Self>, Damage> {
        let (mut size, mut modified, mut md5, mut data, mut checksum, mut salt) = (None, None, None, None, None, None);
        while let Some((tag, bytes)) = fields.pull()? {
            match tag {
                1 => size = Some(number(tag, bytes)?),
                2 => modified = Some(UnixMicros(number(tag, bytes)?)),
                3 => md5 = Some(get_md5(bytes)?.0),
                4 => data = Some(get_data(bytes)?),
                5 => checksum = Some(get_checksum(bytes)?),
                34 => salt = Some(array(tag, bytes)?),
                9 => {
                    let number = u16::try_from(number(tag, bytes)?);
                    return Ok(Some(Self {
                        number: number.map_err(|_| Damage::Field { tag, why: "is above 65,535" })?,
                        size: wanted(1, size)?,
                        modified: wanted(2, modified)?,
                        md5: wanted(3, md5)?,
                        data: wanted(4, data)?,
                        checksum,
                        salt,
                    }));
                }
                _ => unknown(tag)?,
            }
        }
        if size.is_some() { Err(Damage::Field { tag: 9, why: "is missing" }) } else { Ok(None) }
    }
    /// As stored under `P`.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'P');
        self.write(&mut w);
        w.finish()
    }
    /// From what is stored under `P`.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        wanted(9, Self::read(&mut Fields::open(b'P', record)?)?)
    }
}

impl Manifest {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new(b'M');
        for part in &self.parts {
            part.write(&mut w);
        }
        w.finish()
    }
    /// From what is stored.
    pub fn decode(record: &[u8]) -> Result<Self, Damage> {
        let mut fields = Fields::open(b'M', record)?;
        let mut parts = Vec::new();
        while let Some(part) = Part::read(&mut fields)? {
            parts.push(part);
        }
        Ok(Self { parts })
    }
    /// The blobs that it names.
    pub fn blobs(&self) -> impl Iterator<Item = BlobId> {
        self.parts.iter().filter_map(|p| if let Data::Blob(b) = p.data { Some(b) } else { None })
    }
}

/// `D`, `G`, `X`: their keys say it all.
pub fn marker(kind: u8) -> Bytes {
    Writer::new(kind).finish()
}

impl Headers {
    fn write(&self, w: &mut Writer) {
        w.text(16, self.content_type.as_deref());
        w.text(17, self.cache_control.as_deref());
        w.text(18, self.content_disposition.as_deref());
        w.text(19, self.content_encoding.as_deref());
        w.text(20, self.content_language.as_deref());
        if let Some(expires) = self.expires {
            w.field(21, &expires.to_le_bytes());
        }
        w.text(22, self.website_redirect.as_deref());
        w.text(23, self.storage_class.as_deref());
        for (name, value) in &self.user {
            w.field(24, &[name.as_bytes(), &[0], value.as_bytes()].concat());
        }
    }
    fn read(&mut self, tag: u8, bytes: &[u8]) -> Result<bool, Damage> {
        match tag {
            16 => self.content_type = Some(text(tag, bytes)?),
            17 => self.cache_control = Some(text(tag, bytes)?),
            18 => self.content_disposition = Some(text(tag, bytes)?),
            19 => self.content_encoding = Some(text(tag, bytes)?),
            20 => self.content_language = Some(text(tag, bytes)?),
            21 => self.expires = Some(i64::from_le_bytes(array(tag, bytes)?)),
            22 => self.website_redirect = Some(text(tag, bytes)?),
            23 => self.storage_class = Some(text(tag, bytes)?),
            24 => {
                let pair = text(tag, bytes)?;
                let (name, value) = pair.split_once('\0').ok_or(Damage::Field { tag, why: "has no name" })?;
                self.user.push((name.to_owned(), value.to_owned()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn put_acl(w: &mut Writer, acl: Option<&Acl>) {
    if let Some(acl) = acl {
        w.field(31, &acl.encode());
    }
}

const NO_ALGORITHM: Damage = Damage::Field { tag: 5, why: "names no known checksum" };

fn put_md5(w: &mut Writer, md5: [u8; 16], parts: Option<u32>) {
    match parts {
        None => w.field(3, &md5),
        Some(n) => w.field(3, &[&md5[..], &n.to_le_bytes()].concat()),
    }
}

fn get_md5(bytes: &[u8]) -> Result<([u8; 16], Option<u32>), Damage> {
    if bytes.len() == 16 {
        return Ok((array(3, bytes)?, None));
    }
    let (md5, parts) = bytes.split_at_checked(16).ok_or(Damage::Field { tag: 3, why: "has the wrong length" })?;
    Ok((array(3, md5)?, Some(u32::from_le_bytes(array(3, parts)?))))
}

fn put_data(w: &mut Writer, data: &Data) {
    match data {
        Data::Empty => w.field(4, &[0]),
        Data::Inline(id) => w.field(4, &[&[1], &id.0[..]].concat()),
        Data::Blob(id) => w.field(4, &[&[2], &id.0.to_le_bytes()[..]].concat()),
        Data::Manifest(id) => w.field(4, &[&[3], &id.0[..]].concat()),
    }
}

fn get_data(bytes: &[u8]) -> Result<Data, Damage> {
    match bytes.split_first() {
        Some((0, [])) => Ok(Data::Empty),
        Some((1, id)) => Ok(Data::Inline(DataId(array(4, id)?))),
        Some((2, id)) => Ok(Data::Blob(BlobId(number(4, id)?))),
        Some((3, id)) => Ok(Data::Manifest(DataId(array(4, id)?))),
        _ => Err(Damage::Field { tag: 4, why: "names no known place" }),
    }
}

fn put_checksum(w: &mut Writer, checksum: Option<&Checksum>) {
    if let Some(c) = checksum {
        let mut bytes = vec![c.algorithm.code(), c.kind.code()];
        bytes.extend_from_slice(&c.parts.to_le_bytes());
        bytes.extend_from_slice(&c.value);
        w.field(5, &bytes);
    }
}

fn get_checksum(bytes: &[u8]) -> Result<Checksum, Damage> {
    let (head, value) = bytes.split_at_checked(6).ok_or(Damage::Field { tag: 5, why: "has the wrong length" })?;
    let algorithm = Algorithm::from_code(head[0]).ok_or(NO_ALGORITHM)?;
    let kind = ChecksumType::from_code(head[1]).ok_or(NO_ALGORITHM)?;
    if value.len() != algorithm.len() {
        return Err(Damage::Field { tag: 5, why: "has the wrong length" });
    }
    Ok(Checksum { algorithm, kind, parts: u32::from_le_bytes(array(5, &head[2..])?), value: value.to_vec() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Doc;

    pub(crate) fn example() -> Object {
        Object {
            size: 5,
            modified: UnixMicros(1_700_000_000_000_000),
            md5: [0x5d, 0x41, 0x40, 0x2a, 0xbc, 0x4b, 0x2a, 0x76, 0xb9, 0x71, 0x9d, 0x91, 0x10, 0x17, 0xc5, 0x92],
            parts: None,
            data: Data::Inline(DataId([0x11; 16])),
            checksum: Some(Checksum {
                algorithm: Algorithm::Crc32,
                kind: ChecksumType::FullObject,
                parts: 0,
                value: vec![0x36, 0x10, 0xa6, 0x86],
            }),
            headers: Headers {
                content_type: Some("text/plain".into()),
                user: vec![("a".into(), "b".into())],
                ..Headers::default()
            },
            owner: "000000000000".into(),
            ..Object::default()
        }
    }

    fn version_example() -> Object {
        Object {
            version: Some(DataId([0x22; 16])),
            null_at: Some(UnixMicros(7)),
            tags: Tags(vec![("k".into(), "v".into())]),
            lock: ObjectLock {
                retention: Some(Retention { mode: Mode::Compliance, until: UnixMicros(1_700_000_000_000_000) }),
                hold: Some(true),
            },
            ..example()
        }
    }

    #[test]
    fn the_page_s_example_is_what_the_code_writes() {
        let page = include_str!("../../docs/records.md");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        assert_eq!(hex::encode(example().encode()), digits);
        assert_eq!(Object::decode(&hex::decode(digits).unwrap()).unwrap(), example());
        // What a version has more, below it on the page: the record's last fields.
        let block = page.split("```hex\n").nth(2).and_then(|b| b.split("```").next()).expect("a second hex block");
        let more: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        let encoded = hex::encode(version_example().encode());
        assert!(encoded.ends_with(&more), "{encoded}");
        assert_eq!(encoded.len(), hex::encode(example().encode()).len() + more.len());
    }

    #[test]
    fn the_page_s_bucket_is_what_the_code_writes() {
        use crate::access::acl::{Grant, Grantee, Permission};
        let mut acl = Acl::private("000000000001");
        acl.0.push(Grant { grantee: Grantee::AllUsers, permission: Permission::Read });
        let mut documents = Documents::default();
        documents.set(Doc::Acl, Some(acl.encode().into()));
        documents.set(Doc::Accelerate, Some(Bytes::from_static(b"<A/>")));
        documents.set(Doc::Shared, Some(Bytes::new()));
        let bucket = Bucket {
            id: BucketId(7),
            owner: "000000000001".into(),
            created: UnixMicros(1_700_000_000_000_000),
            region: "us-east-1".into(),
            deleting: false,
            fence: 2,
            versioning: Versioning::Never,
            lock: None,
            encryption: None,
            documents,
        };
        let page = include_str!("../../docs/records.md");
        let page = page.split("A bucket's record").nth(1).expect("the example");
        let block = page.split("```hex\n").nth(1).and_then(|b| b.split("```").next()).expect("a hex block");
        let digits: String =
            block.lines().flat_map(|l| l.split('|').next()).collect::<String>().split_whitespace().collect();
        assert_eq!(hex::encode(bucket.encode()), digits);
        assert_eq!(Bucket::decode(&hex::decode(digits).unwrap()).unwrap(), bucket);
    }

    #[test]
    fn records_come_back() {
        let bucket = Bucket {
            id: BucketId(7),
            owner: "123456789012".into(),
            created: UnixMicros(9),
            region: "us-east-1".into(),
            deleting: true,
            fence: 3,
            versioning: Versioning::Never,
            lock: None,
            encryption: None,
            documents: Documents::default(),
        };
        assert_eq!(Bucket::decode(&bucket.encode()).unwrap(), bucket);
        let default = Some((Mode::Governance, Period::Years(3)));
        let bucket = Bucket { versioning: Versioning::Suspended, lock: Some(BucketLock { default }), ..bucket };
        assert_eq!(Bucket::decode(&bucket.encode()).unwrap(), bucket);
        let bucket = Bucket { versioning: Versioning::Enabled, lock: Some(BucketLock { default: None }), ..bucket };
        assert_eq!(Bucket::decode(&bucket.encode()).unwrap(), bucket);
        for holder in [Holder::Walrus, Holder::Service("k".into()), Holder::Customer] {
            let bucket = Bucket { encryption: Some(holder.clone()), ..bucket.clone() };
            assert_eq!(Bucket::decode(&bucket.encode()).unwrap(), bucket);
            let sealed = Some(Sealed { holder, wrapped: [7; crate::crypt::WRAPPED] });
            let object = Object { sealed, salt: Some([8; 16]), ..example() };
            assert_eq!(Object::decode(&object.encode()).unwrap(), object);
        }
        assert_eq!(Object::decode(&version_example().encode()).unwrap(), version_example());
        for replication in [
            Replication::Pending { left: 300, failed: true },
            Replication::Completed,
            Replication::Failed,
            Replication::Replica,
        ] {
            let object = Object { replication: Some(replication), ..example() };
            assert_eq!(Object::decode(&object.encode()).unwrap(), object);
        }
        let marker = Object { marker: true, owner: "1".into(), ..Object::default() };
        assert_eq!(Object::decode(&marker.encode()).unwrap(), marker);
        let part = Part {
            number: 10_000,
            size: 5 << 20,
            modified: UnixMicros(1),
            md5: [3; 16],
            data: Data::Blob(BlobId(99)),
            checksum: example().checksum,
            salt: Some([6; 16]),
        };
        assert_eq!(Part::decode(&part.encode()).unwrap(), part);
        let manifest = Manifest { parts: vec![part.clone(), Part { number: 2, checksum: None, salt: None, ..part }] };
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        let upload = Upload {
            initiated: UnixMicros(4),
            owner: "1".into(),
            initiator: "arn:aws:iam::000000000000:user/admin".into(),
            algorithm: Algorithm::Crc64Nvme,
            checksum_type: ChecksumType::FullObject,
            implicit: true,
            headers: example().headers,
            tags: version_example().tags,
            lock: version_example().lock,
            sealed: Some(Sealed { holder: Holder::Customer, wrapped: [7; crate::crypt::WRAPPED] }),
            acl: Some(Acl::private("000000000000")),
            replica: Some(DataId([9; 16])),
        };
        assert_eq!(Upload::decode(&upload.encode()).unwrap(), upload);
        let object = Object { parts: Some(128), data: Data::Manifest(DataId([5; 16])), ..example() };
        assert_eq!(Object::decode(&object.encode()).unwrap(), object);
        assert!(object.etag().ends_with("-128"));
    }

    #[test]
    fn damage_is_told_from_a_newer_version() {
        let good = example().encode();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 0x40;
            let e = Object::decode(&bad).unwrap_err();
            assert!(matches!(e, Damage::Checksum | Damage::Kind { .. }), "byte {at}: {e}");
            assert!(Object::decode(&good[..at]).is_err());
        }
        let mut w = Writer::new(b'B');
        w.field(0x80, b"from a newer karri");
        assert!(
            matches!(Bucket::decode(&w.finish()), Err(Damage::Field { tag: 1, .. })),
            "a tag from 0x80 on is skipped"
        );
        let mut w = Writer::new(b'B');
        w.field(0x7F, b"from a newer karri");
        assert!(matches!(Bucket::decode(&w.finish()), Err(Damage::Field { tag: 0x7F, .. })));
    }
}
