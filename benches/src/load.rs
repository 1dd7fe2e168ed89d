//! The load on an S3 server: signed requests in closed loops over kept-alive connections, on one thread.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
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

pub const ACCESS_KEY: &str = "AKIABENCHBENCHBENCH1";
pub const SECRET_KEY: &str = "benchbenchbenchbenchbenchbenchbenchbench";
const BUCKET: &str = "bench";

/// PUT or GET, of objects of one size.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub put: bool,
    pub bytes: usize,
    pub connections: usize,
}

/// A bucket on a server, and which objects are in it.
pub struct Bucket {
    addr: SocketAddr,
    s3: Rc<S3>,
    runtime: tokio::runtime::Runtime,
    noise: Bytes,
    /// How many objects of a size there are: their names are counted.
    small: Rc<Cell<u64>>,
    large: Rc<Cell<u64>>,
}

impl Bucket {
    /// Makes the bucket.
    ///
    /// # Errors
    /// A sentence.
    pub fn make(addr: SocketAddr) -> Result<Self, String> {
        let key = AccessKey { access_key_id: ACCESS_KEY.into(), secret_access_key: SECRET_KEY.into() };
        let s3 = Rc::new(S3::new(&format!("http://{addr}"), key, "us-east-1")?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let mut noise = vec![0; 4 << 20];
        SmallRng::seed_from_u64(7).fill_bytes(&mut noise);
        let bucket = Self { addr, s3, runtime, noise: noise.into(), small: Rc::default(), large: Rc::default() };
        bucket.runtime.block_on(LocalSet::new().run_until(async {
            let mut connection = Connection::open(addr, bucket.s3.clone()).await?;
            let (status, _) = connection.send(Method::PUT, None, Bytes::new()).await?;
            status.is_success().then_some(()).ok_or_else(|| format!("making the bucket: {status}"))
        }))?;
        Ok(bucket)
    }

    /// Puts the first objects, for the first GETs.
    ///
    /// # Errors
    /// See [`Bucket::run`].
    pub fn fill(&self, bytes: usize, objects: u64) -> Result<(), String> {
        let enough = |done: u64| done < objects;
        self.drive(Workload { put: true, bytes, connections: 8 }, 0, enough).map(drop)
    }

    /// Runs a workload for `time`.
    ///
    /// # Errors
    /// A sentence, where a request fails or does not end within 20 seconds.
    pub fn run(&self, work: Workload, time: Duration, seed: u64) -> Result<Sample, String> {
        let began = Instant::now();
        let mut latencies = self.drive(work, seed, |_| began.elapsed() < time)?;
        let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
        let (p50_us, p99_us) = (percentile(&mut latencies, 0.5), percentile(&mut latencies, 0.99));
        Ok(Sample { operations: latencies.len(), rate, cpu_us: 0.0, p50_us, p99_us })
    }

    /// Latencies in microseconds. `more` is asked before each request, with how many were begun.
    fn drive(&self, work: Workload, seed: u64, more: impl Fn(u64) -> bool) -> Result<Vec<u32>, String> {
        let objects = if work.bytes > 64 << 10 { &self.large } else { &self.small };
        let (begun, first) = (Cell::new(0), objects.get());
        if !work.put && first == 0 {
            return Err("no object to get".into());
        }
        let loops = (0..work.connections).map(|i| {
            let (begun, more) = (&begun, &more);
            let mut rng = SmallRng::seed_from_u64(seed << 32 | i as u64);
            async move {
                let mut connection = Connection::open(self.addr, self.s3.clone()).await?;
                let mut latencies = Vec::new();
                while more(begun.get()) {
                    let n = begun.replace(begun.get() + 1);
                    let at = Instant::now();
                    if work.put {
                        let from = rng.random_range(0..self.noise.len() - work.bytes);
                        let body = self.noise.slice(from..from + work.bytes);
                        let key = name(work.bytes, first + n);
                        let (status, _) = connection.send(Method::PUT, Some(&key), body).await?;
                        status.is_success().then_some(()).ok_or_else(|| format!("PUT {key}: {status}"))?;
                    } else {
                        let key = name(work.bytes, rng.random_range(0..first));
                        let (status, length) = connection.send(Method::GET, Some(&key), Bytes::new()).await?;
                        if !status.is_success() || length != work.bytes {
                            return Err(format!("GET {key}: {status}, {length} bytes"));
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
            let all = futures_join(loops.collect());
            tokio::time::timeout(time_limit, all).await.map_err(|_| "requests have not ended within 90 s".to_owned())
        }))?;
        if work.put {
            objects.set(first + begun.get());
        }
        let mut latencies = Vec::new();
        for one in all {
            latencies.extend(one?);
        }
        Ok(latencies)
    }
}

fn name(bytes: usize, n: u64) -> String {
    format!("{bytes}/{:02x}/{n:08}", n % 64)
}

/// All of them at once, on this thread.
async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in pinned.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
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

    /// The status and the length of the body that came back.
    async fn send(&mut self, method: Method, key: Option<&str>, body: Bytes) -> Result<(StatusCode, usize), String> {
        let now = SystemClock.now();
        let payload = if body.is_empty() { Payload::Bytes(b"") } else { Payload::Unsigned };
        let mut parts = self.s3.request(method, BUCKET, key, &[], &[], payload, now)?;
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
