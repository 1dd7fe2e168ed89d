//! The load on an S3 server: signed requests in closed loops over kept-alive connections, on one thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::Payload;
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::AccessKey;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::table::{Sample, percentile};

const BUCKET: &str = "bench";
/// What one measurement writes at most.
const WRITTEN_MAX: u64 = 1 << 30;
/// How long DELETE's objects are put at most, in seconds: a slow server has fewer to delete.
const FILL_S: u64 = 10;
/// Keys of one page of a listing.
pub const PAGE: usize = 1000;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new object.
    Put,
    /// A whole object, any of those there.
    Get,
    /// Its headers.
    Head,
    /// A page of keys of one size, from the first.
    List,
    /// One object less; they are put before, untimed.
    Delete,
    /// Seven GETs to three PUTs.
    Mix,
}

/// Requests of one kind on objects of one size.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// What they do.
    pub kind: Kind,
    /// An object's size.
    pub bytes: usize,
    /// How many at once.
    pub connections: usize,
}

/// A bucket on a server, and which objects are in it.
pub struct Bucket {
    addr: SocketAddr,
    s3: Rc<S3>,
    runtime: tokio::runtime::Runtime,
    noise: Bytes,
    /// How many objects of a size there are: their names are counted.
    objects: RefCell<BTreeMap<usize, u64>>,
    /// How many DELETE has had.
    deleted: Cell<u64>,
}

impl Bucket {
    /// Makes the bucket.
    ///
    /// # Errors
    /// A sentence.
    pub fn make(addr: SocketAddr, key: AccessKey) -> Result<Self, String> {
        let s3 = Rc::new(S3::new(&format!("http://{addr}"), key, "us-east-1")?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let mut noise = vec![0; 20 << 20];
        SmallRng::seed_from_u64(7).fill_bytes(&mut noise);
        let (objects, deleted) = Default::default();
        let bucket = Self { addr, s3, runtime, noise: noise.into(), objects, deleted };
        bucket.runtime.block_on(LocalSet::new().run_until(async {
            let mut connection = Connection::open(addr, bucket.s3.clone()).await?;
            let (status, _) = connection.send(Method::PUT, None, &[], Bytes::new()).await?;
            // Asked twice, where the first answer was lost.
            let made = status.is_success() || status == StatusCode::CONFLICT;
            made.then_some(()).ok_or_else(|| format!("making the bucket: {status}"))
        }))?;
        Ok(bucket)
    }

    /// Puts the first objects, for the first GETs.
    ///
    /// # Errors
    /// See [`Bucket::run`].
    pub fn fill(&self, bytes: usize, objects: u64) -> Result<(), String> {
        let connections = if bytes > 1 << 20 { 4 } else { 16 };
        let end = self.there(bytes) + objects;
        while self.there(bytes) < end {
            let first = self.there(bytes);
            // So few that they end in time.
            let some = (end - first).min(20_000);
            self.drive(Workload { kind: Kind::Put, bytes, connections }, 0, |n| n < some, &|n| name(bytes, first + n))?;
            self.objects.borrow_mut().insert(bytes, first + some);
        }
        Ok(())
    }

    /// Runs a workload for `time`, or until it has written a GiB; `cpu_us` reads the server's CPU time.
    ///
    /// # Errors
    /// A sentence, where a request fails or all do not end within 90 seconds more.
    pub fn run(&self, work: Workload, time: Duration, seed: u64, cpu_us: impl Fn() -> u64) -> Result<Sample, String> {
        let first = self.there(work.bytes);
        let mut most = match work.kind {
            Kind::Delete => (time.as_secs_f64() * 4000.0) as u64,
            Kind::Put => WRITTEN_MAX / work.bytes.max(1) as u64,
            Kind::Mix => WRITTEN_MAX / work.bytes.max(1) as u64 * 3,
            _ => u64::MAX,
        };
        let fresh = self.deleted.get();
        let key = |n: u64| match work.kind {
            Kind::Delete => format!("to-delete/{:08}", fresh + n),
            _ => name(work.bytes, first + n),
        };
        if work.kind == Kind::Delete {
            let (filling, began) = (Workload { kind: Kind::Put, connections: 16, ..work }, Instant::now());
            (_, most) = self.drive(filling, seed, |n| n < most && began.elapsed().as_secs() < FILL_S, &key)?;
            self.deleted.set(fresh + most);
        } else if work.kind != Kind::Put && first == 0 {
            return Err("no object to get".into());
        }
        let (began, cpu_before) = (Instant::now(), cpu_us());
        let (mut latencies, written) =
            self.drive(work, seed, |n| n < most && (n == 0 || began.elapsed() < time), &key)?;
        let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
        let cpu_us = (cpu_us() - cpu_before) as f64 / latencies.len().max(1) as f64;
        let (p50_us, p99_us) = (percentile(&mut latencies, 0.5), percentile(&mut latencies, 0.99));
        *self.objects.borrow_mut().entry(work.bytes).or_default() += written;
        Ok(Sample { operations: latencies.len(), rate, cpu_us, p50_us, p99_us })
    }

    fn there(&self, bytes: usize) -> u64 {
        self.objects.borrow().get(&bytes).copied().unwrap_or(0)
    }

    /// Latencies in microseconds, and how many objects were written. `more` is asked before each request, with how many
    /// were begun; `key` names the object that is written or deleted after so many.
    fn drive(
        &self,
        work: Workload,
        seed: u64,
        more: impl Fn(u64) -> bool,
        key: &impl Fn(u64) -> String,
    ) -> Result<(Vec<u32>, u64), String> {
        let first = self.there(work.bytes);
        let (begun, written) = (Cell::new(0), Cell::new(0));
        let loops = (0..work.connections).map(|i| {
            let (begun, written, more) = (&begun, &written, &more);
            let mut rng = SmallRng::seed_from_u64(seed << 32 | i as u64);
            async move {
                let mut connection = Connection::open(self.addr, self.s3.clone()).await?;
                let mut latencies = Vec::new();
                while more(begun.get()) {
                    let n = begun.replace(begun.get() + 1);
                    let kind = match work.kind {
                        Kind::Mix if rng.random_range(0..10) < 7 => Kind::Get,
                        Kind::Mix => Kind::Put,
                        kind => kind,
                    };
                    let at = Instant::now();
                    match kind {
                        Kind::Put | Kind::Mix => {
                            let from = rng.random_range(0..self.noise.len() - work.bytes);
                            let body = self.noise.slice(from..from + work.bytes);
                            connection
                                .ask(Method::PUT, Some(&key(written.replace(written.get() + 1))), &[], body)
                                .await?;
                        }
                        Kind::Get => {
                            let key = name(work.bytes, rng.random_range(0..first));
                            let length = connection.ask(Method::GET, Some(&key), &[], Bytes::new()).await?;
                            (length == work.bytes).then_some(()).ok_or_else(|| format!("GET {key}: {length} bytes"))?;
                        }
                        Kind::Head => {
                            let key = name(work.bytes, rng.random_range(0..first));
                            connection.ask(Method::HEAD, Some(&key), &[], Bytes::new()).await?;
                        }
                        Kind::Delete => {
                            connection.ask(Method::DELETE, Some(&key(n)), &[], Bytes::new()).await?;
                        }
                        Kind::List => {
                            let (prefix, page) = (format!("{}/", work.bytes), PAGE.to_string());
                            let query = [("list-type", "2"), ("max-keys", page.as_str()), ("prefix", prefix.as_str())];
                            let length = connection.ask(Method::GET, None, &query, Bytes::new()).await?;
                            let least = PAGE.min(first as usize) * 50;
                            (length > least).then_some(()).ok_or_else(|| format!("a page of {length} bytes"))?;
                        }
                    }
                    latencies.push(at.elapsed().as_micros() as u32);
                }
                Ok::<_, String>(latencies)
            }
        });
        let local = LocalSet::new();
        let all = self.runtime.block_on(local.run_until(async {
            let time_limit = Duration::from_secs(90);
            let all = join_all(loops);
            tokio::time::timeout(time_limit, all).await.map_err(|_| "requests have not ended within 90 s".to_owned())
        }))?;
        let mut latencies = Vec::new();
        for one in all {
            latencies.extend(one?);
        }
        Ok((latencies, written.get()))
    }
}

fn name(bytes: usize, n: u64) -> String {
    format!("{bytes}/{:02x}/{n:08}", n % 64)
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    s3: Rc<S3>,
}

impl Connection {
    async fn open(addr: SocketAddr, s3: Rc<S3>) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(|e| format!("{addr}: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| format!("{addr}: {e}"))?;
        tokio::task::spawn_local(connection);
        Ok(Self { sender, s3 })
    }

    /// The length of the body that came back with success.
    async fn ask(
        &mut self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<usize, String> {
        let (status, length) = self.send(method.clone(), key, query, body).await?;
        if status.is_success() { Ok(length) } else { Err(format!("{method} {}: {status}", key.unwrap_or_default())) }
    }

    /// The status and the length of the body that came back.
    async fn send(
        &mut self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(StatusCode, usize), String> {
        let now = SystemClock.now();
        let payload = if body.is_empty() { Payload::Bytes(b"") } else { Payload::Unsigned };
        let mut parts = self.s3.request(method, BUCKET, key, query, &[], payload, now)?;
        let target = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        parts.uri = target.parse().map_err(|e| format!("{target}: {e}"))?;
        let failed = |e: hyper::Error| format!("{target}: {e}");
        self.sender.ready().await.map_err(failed)?;
        let response = self.sender.send_request(Request::from_parts(parts, Full::new(body))).await.map_err(failed)?;
        let (status, mut body, mut length) = (response.status(), response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            length += frame.map_err(failed)?.data_ref().map_or(0, Bytes::len);
        }
        Ok((status, length))
    }
}
