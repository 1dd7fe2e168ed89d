//! The walrus role in a cloud: keys from the cloud's identity service, the last ones kept for when it is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use karri_base::aws::keys::KeyRing;
use karri_base::clock::{Clock as _, SystemClock, UnixMicros};
use karri_base::config::Config;
use karri_base::proto;
use karri_base::proto::identity_client::IdentityClient;
use karri_base::role::{Health, PeerChannels, Running};
use karri_meta::{Batch, MetaError, MetaStore};
use prometheus_client::registry::Registry;
use prost::Message;
use tonic::service::Routes;
use tonic::transport::Channel;

use crate::crypt::Secret;
use crate::keys::setting;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::record::codec::{Fields, Writer};
use crate::serve::{Handle, ServeOptions, StartError, master_key, serve};
use crate::tls::{Certificate, S3_PROTOCOLS};

/// Pauses between attempts to hear from the cloud: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Without news of keys for so long, it is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the cloud is told which keys were used.
const USES_EVERY: Duration = Duration::from_secs(60);
/// Uses in one message.
const USES_MAX: usize = 10_000;
/// A use may be noted so long after it.
const USES_LATE_US: u64 = 1_000_000;

/// The most bytes of one message with every key and policy.
const KEYS_MAX: usize = 512 << 20;
/// What the kept keys are authenticated with.
const ABOUT: &[u8] = b"karri keys";

/// Starts the walrus role.
pub async fn start(
    config: &Config,
    peers: PeerChannels,
    meta: Arc<dyn MetaStore>,
    registry: &mut Registry,
) -> Result<Arc<dyn Running>, StartError> {
    let section = config
        .walrus
        .clone()
        .ok_or_else(|| StartError::Config { what: "the configuration has no [walrus] section".into() })?;
    let cloud = peers.cloud.ok_or_else(|| StartError::Config {
        what: "the configuration names no cloud under [peers]; Walrus learns its keys there (without a cloud: karri walrus serve)".into(),
    })?;
    let keys = KeyRing::default();
    let master = master_key(&config.role.state)?;
    if let Some(known) = recall(&meta, &master).await? {
        fill(&keys, &known);
    }
    let mut operator = match &section.settings {
        Some(path) => Operator::read(path)?,
        None => Operator::default(),
    };
    // As the cloud's own calls have one.
    operator.audit_in(&config.role.state);
    let certificate = match (&section.tls_cert, &section.tls_key) {
        (Some(cert), Some(key)) => Some(Certificate::open(cert, key)?),
        (None, None) => None,
        _ => return Err(StartError::Config { what: "tls_cert and tls_key in [walrus] go together".into() }),
    };
    let options = ServeOptions {
        tls: certificate.as_ref().map(|c| c.server(S3_PROTOCOLS)).transpose()?,
        inner: section.inner,
        store_bytes: section.store_bytes,
        cores: section.cores,
        region: config.role.region.clone(),
        metrics: Metrics::register(registry),
        operator,
        ..ServeOptions::new(section.listen, section.store, meta.clone(), keys.clone(), master.clone())
    };
    let handle = tokio::task::spawn_blocking(move || serve(options)).await;
    let handle = handle.map_err(|e| StartError::Config { what: format!("the start was cut off: {e}") })??;
    let news = News::new(None);
    let last = Kept { news: news.subscribe(), meta, master };
    let uses = Uses { ring: keys.clone(), region: config.role.region.clone(), told: UnixMicros(0) };
    let watch = tokio::spawn(watch(cloud, keys.clone(), news, last.clone(), uses));
    let renewal = certificate.map(|certificate| tokio::spawn(certificate.watch()));
    Ok(Arc::new(Walrus { handle: Arc::new(handle), keys, watch, last, renewal }))
}

struct Walrus {
    handle: Arc<Handle>,
    keys: KeyRing,
    watch: tokio::task::JoinHandle<()>,
    last: Kept,
    renewal: Option<tokio::task::JoinHandle<()>>,
}

#[tonic::async_trait]
impl Running for Walrus {
    fn routes(&self) -> Routes {
        Routes::default()
    }

    fn health(&self) -> Health {
        let usage = self.handle.usage();
        let trouble = if self.keys.is_empty() {
            Some("no access keys are known yet: the cloud has not been reached".to_owned())
        } else {
            self.handle.trouble()
        };
        let capacity = [("store_bytes_total".to_owned(), usage.total), ("store_bytes_used".to_owned(), usage.used)];
        Health { trouble, capacity: capacity.into() }
    }

    async fn shutdown(&self) {
        self.watch.abort();
        // What was heard since it was last written down: a key that was taken away must not come back.
        self.last.clone().write().await;
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        let handle = self.handle.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || handle.shutdown()).await {
            tracing::error!(role = "walrus", error = %error, "the end was cut off");
        }
    }
}

/// Keeps the ring as the cloud says, for ever, and what the cloud said for a restart without it; tells the cloud what was
/// used.
async fn watch(cloud: Channel, ring: KeyRing, news: News, kept: Kept, uses: Uses) {
    let identity = IdentityClient::new(cloud.clone());
    tokio::join!(listen(cloud, ring, &news), kept.keep(), uses.report(identity));
}

/// Which keys and roles were used, as the cloud is told.
struct Uses {
    ring: KeyRing,
    region: String,
    /// What was used before this was told.
    told: UnixMicros,
}

impl Uses {
    /// Tells it, once a minute where there is something new; what cannot be told now is told later.
    async fn report(mut self, identity: IdentityClient<Channel>) {
        loop {
            tokio::time::sleep(USES_EVERY).await;
            let send = |uses| {
                let mut identity = identity.clone();
                async move { identity.report_uses(uses).await.map(drop) }
            };
            if let Err(error) = self.tell(SystemClock.now(), send).await {
                tracing::debug!(role = "walrus", error = %error, "the cloud was not told which keys were used");
            }
        }
    }

    async fn tell<F: Future<Output = Result<(), tonic::Status>>>(
        &mut self,
        now: UnixMicros,
        send: impl Fn(proto::ReportUsesRequest) -> F,
    ) -> Result<(), tonic::Status> {
        let mut uses = self.ring.used_since(self.told);
        // By a clock that has been set back.
        uses.retain(|(_, at)| at.0 <= now.0 + USES_LATE_US);
        for some in uses.chunks(USES_MAX) {
            let uses = some.iter().map(|(id, at)| proto::Use { id: id.clone(), at_us: at.0 }).collect();
            send(proto::ReportUsesRequest { service: "s3".into(), region: self.region.clone(), uses }).await?;
        }
        self.told = UnixMicros(now.0.saturating_sub(USES_LATE_US));
        Ok(())
    }
}

/// What the cloud said last.
type News = tokio::sync::watch::Sender<Option<Arc<proto::Keys>>>;

/// The longest pause after news were written down.
const REST: Duration = Duration::from_secs(1);

/// What is written down of the news.
#[derive(Clone)]
struct Kept {
    news: tokio::sync::watch::Receiver<Option<Arc<proto::Keys>>>,
    meta: Arc<dyn MetaStore>,
    master: Secret,
}

impl Kept {
    /// Writes news down. Those that come meanwhile wait for nothing: only the last ones count. A directory of thousands of
    /// users is megabytes, so a pause follows in proportion: writing takes a tenth of the time, unless it takes very long.
    async fn keep(mut self) {
        while self.news.changed().await.is_ok() {
            let began = Instant::now();
            self.write().await;
            tokio::time::sleep((began.elapsed() * 9).min(REST)).await;
        }
    }

    /// Writes the last news down.
    async fn write(&mut self) {
        let Some(keys) = self.news.borrow_and_update().clone() else { return };
        if let Err(error) = remember(&self.meta, &self.master, &keys).await {
            tracing::warn!(role = "walrus", error = %error, "the keys could not be kept for a restart without the cloud");
        }
    }
}

async fn listen(cloud: Channel, ring: KeyRing, news: &News) {
    let mut pause = BACK_OFF.0;
    let mut outage = Outage::default();
    loop {
        let heard = || outage = Outage::default();
        match follow(cloud.clone(), &ring, news, &mut pause, heard).await {
            Ok(()) => tracing::debug!(role = "walrus", "the cloud ended the stream of keys"),
            Err(error) if outage.is_to_be_told(Instant::now()) => {
                tracing::warn!(role = "walrus", error = %error, keys = ring.len(), "no news of keys; going on with those known");
            }
            Err(error) => tracing::debug!(role = "walrus", error = %error, "no news of keys"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
    }
}

/// A time without news.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    told: bool,
}

impl Outage {
    /// True once, when it is no short one: the cloud starts later than Walrus and stops before it.
    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_long = now - since >= PATIENCE;
        is_long && !std::mem::replace(&mut self.told, true)
    }
}

async fn follow(
    cloud: Channel,
    ring: &KeyRing,
    news: &News,
    pause: &mut Duration,
    mut heard: impl FnMut(),
) -> Result<(), tonic::Status> {
    let mut identity = IdentityClient::new(cloud).max_decoding_message_size(KEYS_MAX);
    let mut stream = identity.watch_keys(proto::WatchKeysRequest {}).await?.into_inner();
    while let Some(keys) = stream.message().await? {
        fill(ring, &keys);
        *pause = BACK_OFF.0;
        heard();
        news.send_replace(Some(Arc::new(keys)));
    }
    Ok(())
}

fn fill(ring: &KeyRing, keys: &proto::Keys) {
    for what in ring.fill(keys) {
        tracing::warn!(role = "walrus", error = %what, "the cloud told what this Walrus does not understand");
    }
}

/// The keys last heard, as `C keys`: one field with the gRPC message's bytes, sealed with the master key, for they hold
/// every secret.
async fn remember(meta: &Arc<dyn MetaStore>, master: &Secret, keys: &proto::Keys) -> Result<(), MetaError> {
    let mut record = Writer::new(b'C');
    record.field(2, &master.seal(&keys.encode_to_vec(), ABOUT));
    meta.commit(Batch::new().put(setting("keys"), record.finish())).await
}

async fn recall(meta: &Arc<dyn MetaStore>, master: &Secret) -> Result<Option<proto::Keys>, MetaError> {
    let Some(record) = meta.get(setting("keys")).await? else { return Ok(None) };
    let read = || -> Option<proto::Keys> {
        let (2, sealed) = Fields::open(b'C', &record).ok()?.pull().ok()?? else { return None };
        proto::Keys::decode(&master.open(sealed, ABOUT).ok()?[..]).ok()
    };
    if read().is_none() {
        tracing::warn!(role = "walrus", "the keys kept from the last run do not open; waiting for the cloud's");
    }
    Ok(read())
}

#[cfg(test)]
mod tests {
    use karri_meta::memory::MemoryStore;

    use super::*;

    #[test]
    fn a_long_outage_is_told_once() {
        let (mut outage, began) = (Outage::default(), Instant::now());
        assert!(!outage.is_to_be_told(began));
        assert!(!outage.is_to_be_told(began + PATIENCE / 2));
        assert!(outage.is_to_be_told(began + PATIENCE));
        assert!(!outage.is_to_be_told(began + PATIENCE * 2));
    }

    #[tokio::test]
    async fn uses_are_told_until_they_are_heard() {
        let at = |seconds: u64| UnixMicros(seconds * 1_000_000);
        let key = crate::serve::root_key("AKIAUSED", "secret").unwrap();
        let ring = KeyRing::new([key, crate::serve::root_key("AKIAUNUSED", "secret").unwrap()]);
        let mut uses = Uses { ring: ring.clone(), region: "r".into(), told: UnixMicros(0) };
        let heard = std::sync::Mutex::new(Vec::new());
        let hear = |told: proto::ReportUsesRequest| {
            assert_eq!((told.service.as_str(), told.region.as_str()), ("s3", "r"));
            heard.lock().unwrap().extend(told.uses.into_iter().map(|u| (u.id, u.at_us / 1_000_000)));
            std::future::ready(Ok(()))
        };
        uses.tell(at(60), hear).await.unwrap();
        assert!(heard.lock().unwrap().is_empty());
        ring.sign_in("AKIAUSED", None, at(70)).unwrap().used.note(at(70));
        let down = |_| std::future::ready(Err(tonic::Status::unavailable("down")));
        uses.tell(at(120), down).await.unwrap_err();
        uses.tell(at(180), hear).await.unwrap();
        uses.tell(at(240), hear).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), [("AKIAUSED".to_owned(), 70)]);
    }

    #[tokio::test]
    async fn keys_are_kept_and_inactive_ones_are_not_valid() {
        let meta: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
        let master = Secret([7; 32]);
        assert_eq!(recall(&meta, &master).await.unwrap(), None);
        let key = |id: &str, active| proto::Key {
            access_key_id: id.into(),
            secret_access_key: "s".into(),
            account_id: "000000000001".into(),
            arn: "arn:aws:iam::000000000001:user/admin".into(),
            active,
            principal_id: String::new(),
        };
        let keys = proto::Keys { keys: vec![key("A", true), key("B", false)], ..Default::default() };
        remember(&meta, &master, &keys).await.unwrap();
        let known = recall(&meta, &master).await.unwrap().unwrap();
        assert_eq!(known, keys);
        let ring = KeyRing::default();
        fill(&ring, &known);
        assert!(ring.get("A").is_some() && ring.get("B").is_none());
    }
}
