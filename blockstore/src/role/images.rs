//! Images of Walrus: an object is copied once into a sealed base, which all volumes made from it read through.
//!
//! The copy streams: a 1 MiB piece at a time, at most [`PIECES_MAX`] on their way to the store, 4 KiB blocks of zeros
//! left out. What was not finished is removed when the copy fails, and at the next start after a crash.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::{Clock, SystemClock};
use karri_engine::buf::Buf;

use super::core_local::CoreLocal;
use super::host::Host;
use super::{Bulk, system_key};
use crate::error::Error;
use crate::map::BLOCK_BYTES;
use crate::store::record::{Base, Source};
use crate::volume::{ExtentVolume, Volume};

const PIECE_BYTES: usize = 1 << 20;
/// Pieces in memory at most.
const PIECES_MAX: usize = 8;
/// A peer that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Images {
    s3: S3,
    client: Client<HttpConnector, Empty<Bytes>>,
    clock: SystemClock,
}

impl Images {
    pub(super) fn new(endpoint: &str, credentials: &Path, region: &str) -> Result<Self, Error> {
        let s3 = S3::new(endpoint, system_key(credentials)?, region);
        let s3 = s3.map_err(|why| Error::Invalid { what: "configuration".into(), why })?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        connector.set_nodelay(true);
        Ok(Self { s3, client: Client::builder(TokioExecutor::new()).build(connector), clock: SystemClock })
    }

    /// The sealed local copy of an image object, made now if there is none.
    pub(super) async fn local_copy(&self, host: &Host, wanted: &Source) -> Result<(u64, Base), Error> {
        let head = self.s3.head(&wanted.bucket, &wanted.key, self.clock.now());
        let head = self.send(wanted, head).await?;
        let source = Source { etag: etag_of(&head), ..wanted.clone() };
        if !wanted.etag.is_empty() && wanted.etag.trim_matches('"') != source.etag {
            let why = format!("its ETag is {}, not the {} asked for: it was replaced", source.etag, wanted.etag);
            return Err(Error::Image { what: wanted.to_string(), why, transient: false });
        }
        let size = length_of(&head).filter(|n| *n > 0).ok_or_else(|| Error::Image {
            what: wanted.to_string(),
            why: "it is empty or has no length".into(),
            transient: false,
        })?;
        let _turn = host.turn(&format!("image {source} {}", source.etag)).await;
        if let Some(found) = host.catalog.image(&source).await? {
            return Ok(found);
        }
        match self.copy(host, &source, size).await {
            Err(Error::NoSpace { .. }) if host.make_room(Some(&source)).await? => self.copy(host, &source, size).await,
            other => other,
        }
    }

    async fn copy(&self, host: &Host, source: &Source, size: u64) -> Result<(u64, Base), Error> {
        let slot: CoreLocal<ExtentVolume<Bulk>> = CoreLocal::new();
        let (catalog, of) = (host.catalog.clone(), source.clone());
        let serial = host
            .with_store(0, move |store| async move {
                let (serial, volume) = catalog.begin_image(&of, size, store).await?;
                slot.set(volume);
                Ok(serial)
            })
            .await?;
        tracing::info!(image = %source, bytes = size, "copying an image from Walrus");
        let mut writes = tokio::task::JoinSet::new();
        let written = self.stream(host, source, size, slot, &mut writes).await;
        // Nothing may be written any more when the copy is closed and its extents go to others.
        while writes.join_next().await.is_some() {}
        let closed = host.with_store(0, move |_| async move {
            match slot.take() {
                Some(volume) => volume.close().await,
                None => Err(Error::Closed),
            }
        });
        let outcome = match (written, closed.await) {
            (Ok(()), Ok(())) => host.catalog.seal_image(serial).await.map(|base| (serial, base)),
            (Err(e), _) | (_, Err(e)) => Err(e),
        };
        if outcome.is_err() {
            let catalog = host.catalog.clone();
            let dropped = host.with_store(0, move |store| async move {
                catalog.drop_images(&store, |number, base| number == serial && !base.sealed).await
            });
            if let Err(e) = dropped.await {
                tracing::warn!(image = %source, error = e.chain(), "an unfinished copy stays until the next start");
            }
        }
        outcome
    }

    async fn stream(
        &self,
        host: &Host,
        source: &Source,
        size: u64,
        slot: CoreLocal<ExtentVolume<Bulk>>,
        writes: &mut tokio::task::JoinSet<Result<(), Error>>,
    ) -> Result<(), Error> {
        let quoted = format!("\"{}\"", source.etag);
        let condition = [("if-match", quoted.as_str())];
        let now = self.clock.now();
        let get = self.s3.request(
            http::Method::GET,
            &source.bucket,
            Some(&source.key),
            &[],
            &condition,
            Payload::Bytes(b""),
            now,
        );
        let mut body = self.send(source, get).await?.into_body();
        let lost = |why: String| Error::Image { what: source.to_string(), why, transient: true };
        let room = Arc::new(tokio::sync::Semaphore::new(PIECES_MAX));
        let mut piece = Buf::zeroed(PIECE_BYTES);
        let (mut at, mut filled) = (0u64, 0usize);
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
            let frame = frame.map_err(|_| lost(format!("Walrus said nothing for {} s", PATIENCE.as_secs())))?;
            let data = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
                Some(Err(e)) => return Err(lost(format!("the transfer broke off: {e}"))),
                None => Bytes::new(),
            };
            let ended = data.is_empty();
            let mut data = &data[..];
            while !data.is_empty() || (ended && filled > 0) {
                let n = data.len().min(PIECE_BYTES - filled);
                piece.bytes_mut()[filled..filled + n].copy_from_slice(&data[..n]);
                (filled, data) = (filled + n, &data[n..]);
                if filled < PIECE_BYTES && !ended {
                    break;
                }
                if at + filled as u64 > size {
                    return Err(lost(format!("it is longer than the {size} bytes announced")));
                }
                let full = std::mem::replace(&mut piece, Buf::zeroed(PIECE_BYTES));
                let permit = room.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
                let core = host.core(0).clone();
                let (from, len) = (at, filled);
                writes.spawn(async move {
                    let _permit = permit;
                    let job = move || async move { write_piece(&*slot.get(), from, &full, len).await };
                    core.run(job).await.map_err(|_| Error::Closed)?
                });
                (at, filled) = (at + len as u64, 0);
                while let Some(done) = writes.try_join_next() {
                    done.map_err(|_| Error::Closed)??;
                }
            }
            if ended {
                break;
            }
        }
        while let Some(done) = writes.join_next().await {
            done.map_err(|_| Error::Closed)??;
        }
        if at != size {
            return Err(lost(format!("the transfer ended after {at} of {size} bytes")));
        }
        Ok(())
    }

    /// Sends a request and turns refusals into words.
    async fn send(
        &self,
        source: &Source,
        parts: Result<http::request::Parts, String>,
    ) -> Result<Response<Incoming>, Error> {
        let what = source.to_string();
        let parts = parts.map_err(|why| Error::Image { what: what.clone(), why, transient: false })?;
        let sent = tokio::time::timeout(PATIENCE, self.client.request(Request::from_parts(parts, Empty::new()))).await;
        let transient = |why: String| Error::Image { what: what.clone(), why, transient: true };
        let response = match sent {
            Err(_) => return Err(transient(format!("Walrus did not answer for {} s", PATIENCE.as_secs()))),
            Ok(Err(e)) => return Err(transient(format!("Walrus cannot be reached: {e}"))),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::NOT_FOUND => Err(Error::NotFound { what: format!("image {what}") }),
            StatusCode::PRECONDITION_FAILED => Err(transient("it was replaced while it was read".into())),
            status if status.is_server_error() => Err(transient(format!("Walrus answered {status}"))),
            StatusCode::FORBIDDEN => Err(Error::Image {
                what,
                why: "Walrus refuses the system key (403); do its credentials match this role's?".into(),
                transient: false,
            }),
            status => Err(Error::Image { what, why: format!("Walrus answered {status}"), transient: false }),
        }
    }
}

/// Writes a piece's blocks that are not all zeros. The last block's rest is zeros.
async fn write_piece<V: Volume>(volume: &V, at: u64, piece: &Buf, len: usize) -> Result<(), Error> {
    let block = BLOCK_BYTES as usize;
    let bytes = &piece.bytes()[..len.next_multiple_of(512)];
    let mut from = 0;
    while from < bytes.len() {
        let zero = |at: usize| bytes[at..bytes.len().min(at + block)].iter().all(|b| *b == 0);
        let here = zero(from);
        let mut to = (from + block).min(bytes.len());
        while to < bytes.len() && zero(to) == here {
            to = (to + block).min(bytes.len());
        }
        if !here {
            let mut run = Buf::zeroed(to - from);
            run.bytes_mut().copy_from_slice(&bytes[from..to]);
            volume.write(at + from as u64, run, false).await.0?;
        }
        from = to;
    }
    Ok(())
}

fn etag_of<B>(response: &Response<B>) -> String {
    let etag = response.headers().get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default();
    etag.trim_matches('"').to_owned()
}

fn length_of<B>(response: &Response<B>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::volume::MemoryVolume;

    #[test]
    fn pieces_are_written_without_their_zeros() {
        let volume = MemoryVolume::new("image", 1 << 20);
        let mut piece = Buf::zeroed(PIECE_BYTES);
        piece.bytes_mut()[4096..4100].fill(7);
        piece.bytes_mut()[12288..12300].fill(8);
        piece.bytes_mut()[12300..].fill(9); // past its length
        write_piece(&volume, 8192, &piece, 12300).now_or_never().expect("memory is ready").expect("written");
        let (outcome, buf) = volume.read(0, Buf::zeroed(32768)).now_or_never().expect("memory is ready");
        outcome.unwrap();
        assert_eq!(buf.bytes()[12288..12292], [7; 4]);
        assert_eq!(buf.bytes()[20480..20492], [8; 12]);
        assert!(buf.bytes()[..12288].iter().all(|b| *b == 0));
    }
}
