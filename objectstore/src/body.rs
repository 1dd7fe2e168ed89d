//! Bodies: a request's into the stores, stored data out again, each with memory bounded whatever the object's size.
//!
//! ```text
//! receive:  stream -> up to 32 KiB kept --------------------------> Inline (goes into the commit)
//!                  \-> 256 KiB to 1 MiB buffer -> hash -> BlobWriter.append -> seal -> Blob   (three buffers a body)
//! send:     pieces -> reads of 256 KiB, two ahead -> stream
//! ```
//!
//! What is read again and again comes from memory instead ([`crate::hot`]); what is encrypted does not.
//!
//! A body that is to be encrypted is sealed after it is hashed ([`crate::hashing`]) and opened as it is read
//! ([`crate::crypt`]).
//!
//! A body counts only after its clean end: then length, Content-MD5 and checksums are compared, and only then may a
//! commit name the data.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesOrdered, Stream, StreamExt};
use http::HeaderMap;
use karri_bulk::{BlobId, BlobWriter, BulkError, BulkStore};
use karri_engine::buf::Buf;
use karri_meta::MetaError;
use s3s::dto::StreamingBlob;
use s3s::stream::{ByteStream, RemainingLength};
use s3s::{S3Request, TrailingHeaders};
use send_wrapper::SendWrapper;

use crate::change::Change;
use crate::core::{Core, CoreRef, Shared, Unnamed, seal_inline};
use crate::crypt::{self, Cipher, Secret};
use crate::digest::{self, Algorithm, Digests, Hasher};
use crate::error::{self, Error, Kind, Result};
use crate::guard;
use crate::hashing::OFFLOAD_MIN;
use crate::keys;
use crate::record::{Bucket, Data};
use crate::scrub::report::{Fate, Finding, Place};

/// Objects and parts up to this many bytes live in the metadata store, which writes them four times: larger ones are
/// cheaper as blobs (at 64 KiB half the CPU and twice the rate). Not smaller, because the bulk store's log has room for
/// the records of a disk full of blobs of this size.
pub const INLINE_MAX: u64 = 32 << 10;
/// The largest body of one request.
pub const PUT_MAX: u64 = 5 << 30;
/// Bytes per buffer on the way out, and at least on the way in.
const BUFFER: usize = 256 << 10;
/// Bytes per buffer on the way in, where few bodies come at once: a fourth of the writes.
const BUFFER_MAX: usize = 1 << 20;
/// Bytes of the buffers of all bodies that a core takes in, as long as each has the smallest.
const INTAKE: usize = 48 << 20;
/// Buffers of a body on its way in: one fills, one is hashed, one is written.
const PER_BODY: usize = 3;
/// Buffers read ahead of what the client has taken.
const READ_AHEAD: usize = 2;

/// A body on its way in.
pub type Incoming = Pin<Box<dyn Stream<Item = Result<Bytes>>>>;

/// A request's body.
pub fn incoming(body: Option<StreamingBlob>) -> Incoming {
    match body {
        Some(body) => Box::pin(body.map(|chunk| chunk.map_err(|e| error::body(&*e)))),
        None => Box::pin(futures_util::stream::empty()),
    }
}

/// A body's trailers, there once it has ended.
#[derive(Debug)]
pub enum Trailers {
    /// As `s3s` took them off.
    Signed(TrailingHeaders),
    /// As the guard did.
    Bare(guard::Trailers),
}

impl Trailers {
    /// Of a request.
    pub fn of<T>(request: &mut S3Request<T>) -> Option<Self> {
        let bare = || request.extensions.get::<guard::Trailers>().cloned().map(Self::Bare);
        request.trailing_headers.take().map(Self::Signed).or_else(bare)
    }

    fn get(&self, name: &str) -> Option<String> {
        match self {
            Self::Signed(trailers) => trailers.take()?.get(name)?.to_str().ok().map(str::to_owned),
            Self::Bare(trailers) => trailers.get(name),
        }
    }
}

/// What the client said about a body, and what is to be computed over it.
#[derive(Debug, Default)]
pub struct Expected {
    /// Bytes.
    pub len: Option<u64>,
    /// Content-MD5.
    pub md5: Option<[u8; 16]>,
    /// A checksum in a header.
    pub value: Option<(Algorithm, Vec<u8>)>,
    /// A checksum in a trailer, known when the body has ended.
    pub trailer: Option<(Algorithm, Trailers)>,
    /// To be kept with the object; the one that the client sent, or else S3's default.
    pub keep: Option<Algorithm>,
    /// Seals what is stored.
    pub seal: Option<Seal>,
}

/// How a body is sealed.
#[derive(Debug, Clone)]
pub struct Seal {
    /// Made from the object's key and the salt.
    pub cipher: Arc<Cipher>,
    /// For the record.
    pub salt: [u8; 16],
}

impl Seal {
    /// For a fresh body of an object with this key.
    pub fn new(key: &Secret) -> Self {
        let salt = rand::random();
        Self { cipher: Arc::new(key.body(&salt)), salt }
    }
}

impl Expected {
    /// From a request's headers. `len` is the body's after all decoding.
    pub fn of(headers: &HeaderMap, len: Option<i64>, trailers: Option<Trailers>) -> Result<Self> {
        let len =
            len.map(|l| u64::try_from(l).map_err(|_| Error::new(Kind::InvalidArgument, "Content-Length is negative.")));
        let len = len.transpose()?;
        if len.is_some_and(|l| l > PUT_MAX) {
            return Err(Kind::EntityTooLarge.into());
        }
        let md5 = match text(headers, "content-md5") {
            Some(text) => Some(digest::parse_md5(text).ok_or(Kind::InvalidDigest)?),
            None => None,
        };
        let mut value = None;
        for algorithm in Algorithm::ALL {
            let Some(text) = text(headers, algorithm.header()) else { continue };
            if value.is_some() {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                ));
            }
            let bytes = digest::parse_value(algorithm, text).ok_or_else(|| {
                Error::new(Kind::BadDigest, format!("Value for {} header is invalid.", algorithm.header()))
            })?;
            value = Some((algorithm, bytes));
        }
        let trailer = match (text(headers, "x-amz-trailer"), trailers) {
            (Some(name), Some(trailers)) => {
                let name = name.trim();
                let algorithm = Algorithm::ALL.into_iter().find(|a| a.header().eq_ignore_ascii_case(name));
                let algorithm = algorithm.ok_or_else(|| {
                    Error::new(Kind::InvalidRequest, "The value specified in the x-amz-trailer header is not supported")
                })?;
                Some((algorithm, trailers))
            }
            _ => None,
        };
        if value.is_some() && trailer.is_some() {
            return Err(Error::new(Kind::InvalidRequest, "Expecting a single x-amz-checksum- header"));
        }
        let sent = value.as_ref().map(|(a, _)| *a).or(trailer.as_ref().map(|(a, _)| *a));
        if let Some(name) = text(headers, "x-amz-sdk-checksum-algorithm") {
            let named = Algorithm::from_name(name)
                .ok_or_else(|| Error::new(Kind::InvalidRequest, "Checksum algorithm provided is unsupported."))?;
            if sent.is_none() {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer \
                     headers were found.",
                ));
            }
            if sent != Some(named) {
                return Err(Error::new(
                    Kind::InvalidRequest,
                    "Value for x-amz-sdk-checksum-algorithm header is invalid.",
                ));
            }
        }
        Ok(Self { len, md5, value, trailer, keep: sent, seal: None })
    }

    /// The checksum algorithm that the client sent a value of.
    pub fn sent(&self) -> Option<Algorithm> {
        self.value.as_ref().map(|(a, _)| *a).or(self.trailer.as_ref().map(|(a, _)| *a))
    }

    fn algorithms(&self) -> Vec<Algorithm> {
        self.sent().into_iter().chain(self.keep).collect()
    }

    /// Compares a body that is there whole.
    ///
    /// # Errors
    /// `BadDigest`, `IncompleteBody`.
    pub fn check_whole(&self, body: &[u8]) -> Result<()> {
        let mut hasher = Hasher::new(&self.algorithms());
        hasher.update(body);
        self.check(&hasher.finish())
    }

    /// Compares what came with what was said.
    fn check(&self, found: &Digests) -> Result<()> {
        if self.len.is_some_and(|l| l != found.len) {
            return Err(Kind::IncompleteBody.into());
        }
        if self.md5.is_some_and(|m| m != found.md5) {
            return Err(Kind::BadDigest.into());
        }
        let mismatch = |a: Algorithm| {
            Error::new(
                Kind::BadDigest,
                format!("The {} you specified did not match the calculated checksum.", a.name()),
            )
        };
        if let Some((a, value)) = &self.value
            && found.get(*a) != Some(value)
        {
            return Err(mismatch(*a));
        }
        if let Some((a, trailers)) = &self.trailer {
            let sent = trailers.get(a.header()).ok_or_else(|| {
                Error::new(
                    Kind::InvalidRequest,
                    format!("The trailer {} that x-amz-trailer announced is missing.", a.header()),
                )
            })?;
            let value = digest::parse_value(*a, &sent).ok_or_else(|| {
                Error::new(Kind::InvalidRequest, format!("Value for {} trailing header is invalid.", a.header()))
            })?;
            if found.get(*a) != Some(&value) {
                return Err(mismatch(*a));
            }
        }
        Ok(())
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty())
}

/// A body that has arrived whole and unharmed.
pub struct Received<B: BulkStore> {
    /// Where it is.
    pub stored: Stored<B>,
    /// What was computed over it.
    pub digests: Digests,
}

/// Where a received body is until a commit names it.
pub enum Stored<B: BulkStore> {
    /// It had no bytes.
    Empty,
    /// To be put under `I`.
    Inline(keys::DataId, Bytes),
    /// Sealed in the bulk store.
    Blob(Unnamed<B>),
}

impl<B: BulkStore> Stored<B> {
    /// As a record says it.
    pub fn data(&self) -> Data {
        match self {
            Self::Empty => Data::Empty,
            Self::Inline(id, _) => Data::Inline(*id),
            Self::Blob(blob) => blob.id().map_or(Data::Empty, Data::Blob),
        }
    }
    /// Adds to a batch what makes the data named.
    pub fn name(&self, batch: &mut karri_meta::Batch) {
        match self {
            Self::Empty => {}
            Self::Inline(id, sealed) => batch.puts.push((keys::inline(*id), sealed.clone())),
            Self::Blob(blob) => {
                if let Some(id) = blob.id() {
                    batch.puts.push((keys::blob(id), crate::record::marker(b'D')));
                }
            }
        }
    }
    /// Commits a change of a bucket that names the data.
    ///
    /// # Errors
    /// As [`Core::apply`].
    pub async fn commit(&self, core: &Core<B>, bucket: &Bucket, change: Change) -> Result<Result<(), MetaError>> {
        let taken = self.take();
        let outcome = core.apply(bucket, change).await;
        self.settle(taken, &outcome);
        outcome
    }
    /// Takes the data for the time of a commit that names it: when that is cut off in its middle, nobody knows whether it
    /// happened.
    pub fn take(&self) -> Option<BlobId> {
        if let Self::Blob(blob) = self { blob.take() } else { None }
    }
    /// The commit ended so.
    pub fn settle(&self, taken: Option<BlobId>, outcome: &Result<Result<(), MetaError>>) {
        let Self::Blob(blob) = self else { return };
        match outcome {
            Ok(Ok(())) => blob.named(),
            Err(_) | Ok(Err(MetaError::Conflict { .. } | MetaError::NoSpace { .. })) => blob.give_back(taken),
            Ok(Err(MetaError::Failed { .. })) => {}
        }
    }
}

/// Takes in a body: into memory when it is small, else into the bulk store as it comes.
pub async fn receive<B: BulkStore>(core: &CoreRef<B>, mut body: Incoming, expected: &Expected) -> Result<Received<B>> {
    let mut hasher = Hasher::new(&expected.algorithms());
    let limit = expected.len.unwrap_or(PUT_MAX);
    let mut small: Vec<Bytes> = Vec::new();
    let mut len = 0u64;
    // Known to be large: straight to the bulk store, which says at once when it has no room.
    let mut overflow = expected.len.is_some_and(|l| l > INLINE_MAX);
    while !overflow && let Some(chunk) = body.next().await {
        let chunk = chunk?;
        len += chunk.len() as u64;
        if len > limit {
            return Err(Kind::IncompleteBody.into());
        }
        small.push(chunk);
        overflow = len > INLINE_MAX;
    }
    if !overflow {
        for piece in &small {
            hasher.update(piece);
        }
        let digests = hasher.finish();
        expected.check(&digests)?;
        let stored = match &expected.seal {
            _ if len == 0 => Stored::Empty,
            None => Stored::Inline(core.fresh_id(), seal_inline(&small)),
            Some(seal) => {
                let sealed = seal.cipher.seal(0, &small.concat());
                Stored::Inline(core.fresh_id(), seal_inline(&[sealed.into()]))
            }
        };
        return Ok(Received { stored, digests });
    }

    let stored_len = |plain: u64| if expected.seal.is_some() { crypt::sealed_len(plain) } else { plain };
    let mut writer = core.bulk.create(expected.len.map(stored_len)).await?;
    let mut chunk = 0;
    let _one = core.intake.enter();
    let mut source = Source { body, ready: small.into(), taken: 0, limit, intake: &core.intake };
    // While one buffer is appended, the next is hashed and the one after it fills.
    let mut full = source.fill(expected.len).await?;
    let mut hashed: Option<Buf> = None;
    while full.is_some() || hashed.is_some() {
        let more = full.is_some();
        let append = async {
            match hashed.take() {
                Some(buf) => Ok::<_, Error>(writer.append(buf).await?),
                None => Ok(()),
            }
        };
        let hash = async {
            let Some(buf) = full.take() else { return Ok(None) };
            let first = chunk;
            chunk += buf.len() as u64 / crypt::CHUNK;
            let seal = expected.seal.as_ref().map(|s| (s.cipher.clone(), first));
            core.hashing.hash(&mut hasher, buf, seal).await.map(Some)
        };
        let fill = async { if more { source.fill(expected.len).await } else { Ok(None) } };
        let (appended, ready, next) = futures_util::future::join3(append, hash, fill).await;
        appended?;
        hashed = ready?;
        full = next?;
    }
    let digests = hasher.finish();
    expected.check(&digests)?;
    let (blob, sealed) = seal(core, writer).await?;
    if sealed != stored_len(digests.len) {
        return Err(Error::new(Kind::InternalError, "The bulk store sealed another length than it was given."));
    }
    Ok(Received { stored: Stored::Blob(blob), digests })
}

/// Seals a blob in a task of its own: when the client leaves in the middle, the seal ends all the same and its blob, which
/// nothing will name, is reclaimed.
async fn seal<B: BulkStore>(core: &CoreRef<B>, writer: B::Writer) -> Result<(Unnamed<B>, u64)> {
    let core = core.clone();
    let sealed = karri_engine::spawn(async move {
        let id = writer.id();
        let pin = core.shared.unnamed.pin(id);
        let len = writer.seal().await?;
        Ok::<_, karri_bulk::BulkError>((Unnamed::new(&core, id, pin), len))
    });
    match sealed.await {
        Ok(outcome) => Ok(outcome?),
        Err(e) => Err(Error::new(Kind::InternalError, format!("Sealing the object failed: {e}."))),
    }
}

/// The large bodies that a core takes in: the more, the smaller their buffers.
#[derive(Debug, Default)]
pub struct Intake(Cell<usize>);

impl Intake {
    /// One more, until that is dropped.
    fn enter(&self) -> impl Drop {
        struct One<'a>(&'a Cell<usize>);
        impl Drop for One<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.0.set(self.0.get() + 1);
        One(&self.0)
    }

    /// How large the next buffer is: a power of two.
    fn buffer(&self) -> usize {
        let share = INTAKE / (self.0.get().max(1) * PER_BODY);
        (1 << share.max(1).ilog2()).clamp(BUFFER, BUFFER_MAX)
    }
}

/// A body being cut into buffers.
struct Source<'a> {
    body: Incoming,
    ready: VecDeque<Bytes>,
    taken: u64,
    limit: u64,
    intake: &'a Intake,
}

impl Source<'_> {
    /// The next full buffer; a shorter one at the end; `None` after it.
    async fn fill(&mut self, len: Option<u64>) -> Result<Option<Buf>> {
        let most = self.intake.buffer();
        let left = len.map_or(most as u64, |l| l.saturating_sub(self.taken)).min(most as u64) as usize;
        let mut buf: Option<Buf> = None;
        let mut filled = 0;
        loop {
            let chunk = match self.ready.front_mut() {
                Some(chunk) => chunk,
                None => match self.body.next().await {
                    Some(chunk) => {
                        self.ready.push_back(chunk?);
                        continue;
                    }
                    None => break,
                },
            };
            if chunk.is_empty() {
                self.ready.pop_front();
                continue;
            }
            let room = left.max(1) - filled;
            let n = chunk.len().min(room);
            if self.taken + (filled + n) as u64 > self.limit {
                return Err(Kind::IncompleteBody.into());
            }
            let buf = buf.get_or_insert_with(|| Buf::for_read(left.max(1)));
            buf.bytes_mut()[filled..filled + n].copy_from_slice(&chunk[..n]);
            chunk.advance(n);
            filled += n;
            if filled == left {
                break;
            }
        }
        self.taken += filled as u64;
        Ok(buf.filter(|_| filled > 0).map(|mut buf| {
            buf.set_len(filled);
            buf
        }))
    }
}

/// A run of stored bytes.
#[derive(Debug, Clone)]
pub enum Piece {
    /// In memory already.
    Bytes(Bytes),
    /// Under `I`: from, length.
    Inline(keys::DataId, u64, u64),
    /// In a blob: from, length.
    Blob(BlobId, u64, u64),
    /// Sealed.
    Sealed(SealedPiece),
}

/// A run of sealed bytes.
#[derive(Debug, Clone)]
pub struct SealedPiece {
    /// `Inline` or `Blob`.
    pub data: Data,
    /// Opens it.
    pub cipher: Arc<Cipher>,
    /// Plain bytes of the whole body.
    pub size: u64,
    /// Where the run begins, in plain bytes.
    pub from: u64,
    /// Its plain bytes.
    pub len: u64,
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Inline(_, _, len) | Self::Blob(_, _, len) => *len,
            Self::Sealed(piece) => piece.len,
        }
    }
}

/// Data that was there when its record was read and is not any more: it was replaced or deleted meanwhile.
#[derive(Debug)]
pub struct Gone;

type Read = LocalBoxFuture<'static, Result<Result<Bytes, Gone>>>;

/// Stored data on its way out.
pub struct Outgoing {
    /// Starts the read of one piece, at most [`BUFFER`] long.
    start: Box<dyn Fn(Piece) -> Read>,
    /// Enters what is corrupt in the scrub's report.
    told: Box<dyn Fn(&Error)>,
    plan: VecDeque<Piece>,
    reads: FuturesOrdered<Read>,
    first: Option<Bytes>,
    left: u64,
    _pins: Vec<crate::core::Pin>,
}

/// Starts reading; the first buffer is there when this answers, so that a caller can still read the record again.
///
/// `place`: whose data it is, for the report of what is corrupt.
pub async fn open<B: BulkStore>(core: &CoreRef<B>, pieces: Vec<Piece>, place: Place) -> Result<Result<Outgoing, Gone>> {
    let pins = pieces.iter().filter_map(|p| match p {
        Piece::Blob(id, ..) | Piece::Sealed(SealedPiece { data: Data::Blob(id), .. }) => {
            Some(core.shared.pins.pin(*id))
        }
        _ => None,
    });
    let mut out = Outgoing {
        _pins: pins.collect(),
        left: pieces.iter().map(Piece::len).sum(),
        plan: pieces.into(),
        reads: FuturesOrdered::new(),
        first: None,
        told: Box::new({
            let shared = core.shared.clone();
            move |e: &Error| tell_damage(&shared, &place, e)
        }),
        start: Box::new({
            let core = core.clone();
            move |piece| start(&core, piece)
        }),
    };
    out.begin();
    match out.reads.next().await {
        None => {}
        Some(Ok(Ok(bytes))) => out.first = Some(bytes),
        Some(Ok(Err(gone))) => return Ok(Err(gone)),
        Some(Err(e)) => {
            (out.told)(&e);
            return Err(e);
        }
    }
    out.begin();
    Ok(Ok(out))
}

/// A read came upon damage: the report, the metrics and the log say so.
pub fn tell_damage(shared: &Shared, place: &Place, e: &Error) {
    if e.kind != Kind::DataDamaged {
        return;
    }
    let below = e.source.as_ref().and_then(|below| below.downcast_ref());
    let (what, why) = match below {
        Some(BulkError::Corrupt { what, why }) => (what.clone(), why.clone()),
        _ => ("the object's data".to_owned(), e.message.to_string()),
    };
    let at = shared.clock.now();
    let finding = Finding { place: place.clone(), what, why, fate: Fate::Left, at, by_read: true };
    shared.scrub.met(finding, &shared.metrics);
}

fn start<B: BulkStore>(core: &CoreRef<B>, piece: Piece) -> Read {
    match piece {
        Piece::Bytes(bytes) => Box::pin(std::future::ready(Ok(Ok(bytes)))),
        Piece::Blob(id, from, len) => match core.shared.hot.get(id, from, len as usize) {
            Some(bytes) => {
                core.shared.metrics.from_memory(len);
                Box::pin(std::future::ready(Ok(Ok(bytes))))
            }
            None => Box::pin(read(core.clone(), id, from, len as usize)),
        },
        Piece::Inline(id, from, len) => {
            let core = core.clone();
            Box::pin(async move {
                let Some(bytes) = core.inline(id).await? else { return Ok(Err(Gone)) };
                let end = from + len;
                if end > bytes.len() as u64 {
                    return Err(Error::new(Kind::DataDamaged, "The object's data is shorter than its record says."));
                }
                Ok(Ok(bytes.slice(from as usize..end as usize)))
            })
        }
        Piece::Sealed(piece) => Box::pin(read_sealed(core.clone(), piece)),
    }
}

/// Reads the chunks that hold a run, opens them and cuts the run out.
async fn read_sealed<B: BulkStore>(core: CoreRef<B>, piece: SealedPiece) -> Result<Result<Bytes, Gone>> {
    let (first, at, len) = crypt::sealed_span(piece.size, piece.from, piece.len);
    let short = || Error::new(Kind::DataDamaged, "The object's data is shorter than its record says.");
    let mut buf = match piece.data {
        Data::Blob(id) => {
            let (outcome, buf) = core.bulk.read_blob(id, at, Buf::for_read(len as usize)).await;
            match outcome {
                Ok(()) => buf,
                Err(BulkError::NotFound { .. }) => return Ok(Err(Gone)),
                Err(e) => return Err(e.into()),
            }
        }
        Data::Inline(id) => {
            let Some(bytes) = core.inline(id).await? else { return Ok(Err(Gone)) };
            let sealed = bytes.get(at as usize..(at + len) as usize).ok_or_else(short)?;
            let mut buf = Buf::for_read(sealed.len());
            buf.bytes_mut()[..sealed.len()].copy_from_slice(sealed);
            buf.set_len(sealed.len());
            buf
        }
        Data::Empty | Data::Manifest(_) => return Err(short()),
    };
    let cipher = piece.cipher;
    let open = move || {
        let plain = cipher.open(first, buf.bytes_mut())?.len();
        buf.set_len(plain);
        Ok::<_, crypt::Closed>(Bytes::from_owner(buf))
    };
    let opened = if (len as usize) < OFFLOAD_MIN || karri_engine::cores::current().is_none() {
        open()
    } else {
        karri_engine::offload(open).await
    };
    let plain = opened.map_err(|e| Error::from(Kind::DataDamaged).caused(e))?;
    let skip = (piece.from - first * crypt::CHUNK) as usize;
    let end = skip + piece.len as usize;
    if end > plain.len() { Err(short()) } else { Ok(Ok(plain.slice(skip..end))) }
}

async fn read<B: BulkStore>(core: CoreRef<B>, id: BlobId, at: u64, len: usize) -> Result<Result<Bytes, Gone>> {
    let (outcome, buf) = core.bulk.read_blob(id, at, Buf::for_read(len)).await;
    match outcome {
        Ok(()) => {
            let bytes = Bytes::from_owner(buf);
            core.shared.hot.offer(id, at, &bytes);
            Ok(Ok(bytes))
        }
        Err(BulkError::NotFound { .. }) => Ok(Err(Gone)),
        Err(e) => Err(e.into()),
    }
}

impl Outgoing {
    fn begin(&mut self) {
        while self.reads.len() < READ_AHEAD
            && let Some(piece) = self.plan.pop_front()
        {
            let piece = match piece {
                Piece::Blob(id, from, len) if len > BUFFER as u64 => {
                    self.plan.push_front(Piece::Blob(id, from + BUFFER as u64, len - BUFFER as u64));
                    Piece::Blob(id, from, BUFFER as u64)
                }
                Piece::Sealed(piece) if piece.len > BUFFER as u64 => {
                    // Up to the end of a chunk, so that none is read twice.
                    let take = BUFFER as u64 - piece.from % crypt::CHUNK;
                    let rest = SealedPiece { from: piece.from + take, len: piece.len - take, ..piece.clone() };
                    self.plan.push_front(Piece::Sealed(rest));
                    Piece::Sealed(SealedPiece { len: take, ..piece })
                }
                piece => piece,
            };
            self.reads.push_back((self.start)(piece));
        }
    }

    /// As a response body.
    pub fn into_blob(mut self) -> StreamingBlob {
        // One buffer, and it is here: a body of known bytes costs no stream.
        if self.reads.is_empty() && self.plan.is_empty() {
            return StreamingBlob::from(s3s::Body::from(self.first.take().unwrap_or_default()));
        }
        StreamingBlob::new(OnCore(SendWrapper::new(self)))
    }
}

impl Stream for Outgoing {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            self.left -= first.len() as u64;
            return Poll::Ready(Some(Ok(first)));
        }
        let outcome = match std::task::ready!(self.reads.poll_next_unpin(cx)) {
            None => return Poll::Ready(None),
            Some(outcome) => outcome,
        };
        self.begin();
        Poll::Ready(Some(match outcome {
            Ok(Ok(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Ok(bytes)
            }
            Ok(Err(Gone)) => Err(Error::new(Kind::InternalError, "The object was deleted while it was read.")),
            Err(e) => {
                (self.told)(&e);
                Err(e)
            }
        }))
    }
}

/// A stream that stays on its core, told to `s3s` as one that could move.
struct OnCore(SendWrapper<Outgoing>);

impl Stream for OnCore {
    type Item = Result<Bytes, s3s::StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut *self.0).poll_next(cx);
        polled.map_err(|e| {
            tracing::error!(error = %e, source = ?e.source, "an object could not be read to its end");
            Box::new(e) as s3s::StdError
        })
    }
}

impl ByteStream for OnCore {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.0.left).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_bodies_come_the_smaller_their_buffers() {
        let (intake, mut bodies) = (Intake::default(), Vec::new());
        assert_eq!(intake.buffer(), BUFFER_MAX);
        for n in 1..=200 {
            bodies.push(intake.enter());
            let buffer = intake.buffer();
            assert!(buffer.is_power_of_two() && (BUFFER..=BUFFER_MAX).contains(&buffer), "{n} bodies: {buffer}");
            assert!(buffer == BUFFER || buffer * PER_BODY * n <= INTAKE, "{n} bodies: {buffer}");
        }
        assert_eq!(intake.buffer(), BUFFER);
        bodies.clear();
        assert_eq!(intake.buffer(), BUFFER_MAX);
    }
}
