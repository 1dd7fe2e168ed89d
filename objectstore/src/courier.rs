//! Delivers events: one task a destination, oldest first, tried again until they are taken or too old. Sends what engine
//! cores ask other servers ([`outbound`]).
//!
//! Runs on a thread of its own, off the engine's cores: it posts to strangers and writes files. An event is deleted after it
//! was taken, so a crash in between delivers it twice. A destination that does not answer is tried again later; an event
//! that one refuses is put back for later, and the others go on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use karri_base::clock::{Clock, UnixMicros};
use karri_meta::{Batch, MetaError, MetaStore, Scan};
use tokio::io::AsyncWriteExt as _;

use crate::keys;
use crate::metrics::Metrics;
use crate::notify::{Destination, Destinations, Place, Told, WAITING_MAX};
use crate::outbound::{self, Body, Call};

/// Events read in one go.
const PAGE: usize = 100;
/// Events counted in one go.
const COUNT_PAGE: usize = 1_000;
/// Pauses after failures: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long a webhook may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// An event that nobody took for so long is given up.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Pauses of an event that was refused: from, to.
const PUT_BACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// How often a task looks without being rung: for events that are due again, and those of cut-off commits.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The thread that delivers.
pub struct Courier {
    stop: tokio::sync::watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a courier delivers with.
#[derive(Clone)]
pub struct Bag {
    /// Records.
    pub meta: Arc<dyn MetaStore>,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Metrics,
}

impl Courier {
    /// Begins to deliver.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        bag: Bag,
        destinations: Destinations,
        calls: futures_channel::mpsc::UnboundedReceiver<Call>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("walrus-courier".into()).spawn(move || {
            runtime.block_on(async move {
                if let Err(error) = drop_strangers(&bag, &destinations).await {
                    tracing::warn!(error = %error, "events of destinations that are gone could not be looked for");
                }
                let tasks = destinations.into_values().map(|to| {
                    let (bag, mut stopped) = (bag.clone(), stopped.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = serve(&bag, &to) => {}
                            _ = stopped.wait_for(|stopped| *stopped) => {}
                        }
                    })
                });
                let mut stopped = stopped.clone();
                let asked = async {
                    tokio::select! {
                        () = outbound::serve(calls) => {}
                        _ = stopped.wait_for(|stopped| *stopped) => {}
                    }
                };
                futures_util::future::join(futures_util::future::join_all(tasks), asked).await;
            });
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        // Nobody listens any more where the thread has ended.
        let _ = self.stop.send(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the courier of events panicked");
        }
    }
}

/// Deletes the events of destinations that the operator has taken away.
async fn drop_strangers(bag: &Bag, destinations: &Destinations) -> Result<(), MetaError> {
    let mut range = keys::all(b'L');
    let mut lost = 0;
    loop {
        let found = bag.meta.scan(Scan::new(range.clone(), 1)).await?;
        let Some((key, _)) = found.first() else { break };
        let id = keys::event_parts(key).map(|(id, _)| id);
        let of_id = id.as_ref().map_or_else(|| key.clone()..keys::after(key), |id| keys::events_of(id));
        if id.is_none_or(|id| !destinations.contains_key(&id)) {
            loop {
                let page = bag.meta.scan(Scan::new(of_id.clone(), PAGE)).await?;
                if page.is_empty() {
                    break;
                }
                lost += page.len() as u64;
                bag.meta.commit(Batch { dels: page.into_iter().map(|(key, _)| key).collect(), ..Batch::new() }).await?;
            }
        }
        range.start = of_id.end;
    }
    if lost > 0 {
        bag.metrics.events_lost(lost);
        tracing::warn!(events = lost, "events of destinations that are no longer configured were dropped");
    }
    Ok(())
}

/// Delivers to one destination, for ever.
async fn serve(bag: &Bag, to: &Destination) {
    let mut pause = None;
    let mut troubled = false;
    if let Err(error) = count(bag, to).await {
        tracing::warn!(destination = to.id(), error = %error, "the events that wait could not be counted");
    }
    loop {
        let mut taken = 0;
        let error = match work(bag, to, &mut taken).await {
            Ok(()) => {
                (pause, troubled) = (None, false);
                bag.metrics.event_lag(&to.id(), 0, to.waiting.load(Ordering::Relaxed));
                // Rung, or time to look again.
                let _ = tokio::time::timeout(LOOK_EVERY, to.bell.notified()).await;
                continue;
            }
            Err(error) => error,
        };
        if !troubled {
            // Once per outage.
            troubled = true;
            tracing::warn!(destination = to.id(), error = %error, "events cannot be delivered; trying again");
        }
        let wait = next_pause(pause, taken);
        tokio::time::sleep(wait).await;
        pause = Some(wait);
    }
}

/// How long to wait after a failure, where the one before had that pause and so many events were taken since. A destination
/// that takes some and fails at times is there: it must not wait longer with each failure until all is taken.
fn next_pause(last: Option<Duration>, taken: u64) -> Duration {
    last.filter(|_| taken == 0).map_or(BACK_OFF.0, |last| (last * 2).min(BACK_OFF.1))
}

/// Counts what waited when the last life ended; more than may wait is not looked at.
async fn count(bag: &Bag, to: &Destination) -> Result<(), MetaError> {
    let mut range = keys::events_of(&to.id());
    let mut counted = 0;
    while counted < WAITING_MAX {
        let page = bag.meta.scan(Scan::new(range.clone(), COUNT_PAGE)).await?;
        to.waiting.fetch_add(page.len(), Ordering::Relaxed);
        counted += page.len();
        match page.last() {
            Some((last, _)) if page.len() == COUNT_PAGE => range.start = keys::after(last),
            _ => break,
        }
    }
    Ok(())
}

/// Why an event was not taken.
enum Trouble {
    /// Its destination does not answer, or fails: all that is for it waits.
    Away(String),
    /// It is not wanted, others may be.
    Refused(String),
}

/// Delivers all that waits and is due; counts what is taken.
async fn work(bag: &Bag, to: &Destination, taken: &mut u64) -> Result<(), String> {
    let id = to.id();
    let mut range = keys::events_of(&id);
    loop {
        let page = bag.meta.scan(Scan::new(range.clone(), PAGE)).await.map_err(|e| e.to_string())?;
        if page.is_empty() && range.start == keys::events_of(&id).start {
            to.waiting.store(0, Ordering::Relaxed);
        }
        let now = bag.clock.now();
        for (key, raw) in &page {
            let at = keys::event_parts(key).map_or(UnixMicros(0), |(_, at)| at);
            // Later than any pause: put back before the clock was set back.
            if at > now && at.0 - now.0 <= 2 * PUT_BACK.1.as_micros() as u64 {
                return Ok(());
            }
            range.start = keys::after(key);
            let told = Told::decode(raw);
            let since = told.as_ref().ok().and_then(|told| told.refused).map_or(at, |(_, since)| since);
            let age = Duration::from_micros(bag.clock.now().0.saturating_sub(since.0));
            bag.metrics.event_lag(&id, age.as_secs(), to.waiting.load(Ordering::Relaxed));
            let outcome = match &told {
                Ok(told) => deliver(to, key, told.body.clone()).await,
                // What is damaged nobody will ever take.
                Err(e) => {
                    tracing::error!(destination = id, error = %e, "an event's record is damaged");
                    Err(Trouble::Refused(String::new()))
                }
            };
            let batch = Batch::new().check(key.clone(), Some(raw.clone())).del(key.clone());
            let is_taken = outcome.is_ok();
            match (outcome, told) {
                (Ok(()), _) => {}
                (Err(Trouble::Away(error)), _) if age < AGE_MAX => return Err(error),
                (Err(Trouble::Refused(error)), Ok(told)) if age < AGE_MAX => {
                    let attempts = told.refused.map_or(0, |(attempts, _)| attempts) + 1;
                    if attempts == 1 {
                        tracing::warn!(destination = id, error, "an event was refused; it is tried again later");
                    }
                    let pause = (PUT_BACK.0 * 4u32.saturating_pow(attempts - 1)).min(PUT_BACK.1);
                    let later = UnixMicros(now.0 + pause.as_micros() as u64);
                    let told = Told { refused: Some((attempts, since)), ..told };
                    let key = keys::event(&id, later, rand::random());
                    bag.meta.commit(batch.put(key, told.encode())).await.map_err(|e| e.to_string())?;
                    continue;
                }
                (Err(_), _) => {}
            }
            bag.meta.commit(batch).await.map_err(|e| e.to_string())?;
            // Counted now: what cannot be struck off is sent again, and that not ever faster.
            if is_taken {
                *taken += 1;
                bag.metrics.event_delivered(&id);
            } else {
                bag.metrics.events_lost(1);
            }
            // A cut-off commit's event was not counted.
            let _ = to.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        }
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

async fn deliver(to: &Destination, key: &[u8], body: Bytes) -> Result<(), Trouble> {
    match &to.place {
        Place::Webhook { url, token, endpoint } => {
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(url.clone())
                .header(CONTENT_TYPE, "application/json")
                .header("user-agent", concat!("karri-walrus/", env!("CARGO_PKG_VERSION")));
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let (parts, ()) = request.body(()).map_err(|e| Trouble::Away(e.to_string()))?.into_parts();
            let answer = tokio::time::timeout(PATIENCE, endpoint.send(parts, Body::whole(body))).await;
            let answer = answer.map_err(|_| Trouble::Away(format!("no answer within {} s", PATIENCE.as_secs())))?;
            let status = answer.map_err(|e| Trouble::Away(e.why))?.status;
            let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            match status {
                status if status.is_success() => Ok(()),
                status if status.is_client_error() && !passing => Err(Trouble::Refused(format!("answered {status}"))),
                status => Err(Trouble::Away(format!("answered {status}"))),
            }
        }
        Place::Queue(folder) => {
            enqueue(folder, key, &body).await.map_err(|e| Trouble::Away(format!("{}: {e}", folder.display())))
        }
    }
}

/// One message as a file, complete whenever it is seen: `TIME-RANDOM.json`, in the order of events.
async fn enqueue(folder: &Path, key: &[u8], body: &[u8]) -> std::io::Result<()> {
    let name = hex::encode(&key[key.len().saturating_sub(16)..]);
    let text = String::from_utf8_lossy(body);
    let message = serde_json::json!({
        "MessageId": name,
        "MD5OfBody": hex::encode(<md5::Md5 as md5::Digest>::digest(body)),
        "Body": text,
    });
    let hidden = folder.join(format!(".{name}.part"));
    let mut file = tokio::fs::File::create(&hidden).await?;
    file.write_all(message.to_string().as_bytes()).await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::rename(&hidden, folder.join(format!("{name}.json"))).await?;
    tokio::fs::File::open(folder).await?.sync_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_nothing_is_taken() {
        let pauses = |taken: &[u64]| {
            let mut last = None;
            let of = |taken: &u64| {
                last = Some(next_pause(last, *taken));
                last.map_or(0, |pause| pause.as_millis())
            };
            taken.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(pauses(&[0; 9]), [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(pauses(&[0, 0, 0, 1, 0, 1, 1]), [500, 1000, 2000, 500, 1000, 500, 500]);
    }

    #[tokio::test]
    async fn messages_are_whole_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let key = |at: u64| keys::event("sqs:q", UnixMicros(at), 7);
        for at in [5, 3] {
            enqueue(dir.path(), &key(at), format!("{{\"at\":{at}}}").as_bytes()).await.unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        assert_eq!(names.len(), 2);
        let first: serde_json::Value = serde_json::from_slice(&std::fs::read(&names[0]).unwrap()).unwrap();
        assert_eq!(first["Body"], "{\"at\":3}");
        assert_eq!(first["MD5OfBody"], hex::encode(<md5::Md5 as md5::Digest>::digest(b"{\"at\":3}")));
        assert!(names[0].to_string_lossy().ends_with(&format!("{}.json", first["MessageId"].as_str().unwrap())));
    }
}
