//! The role as the cloud sees it: every command twice, a restart in between, and images from a small S3 of our own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use karri_base::config::{AccessKey, Config, Credentials, Peers, Role, Storage as StorageConfig, Tls};
use karri_base::proto::storage_server::Storage;
use karri_base::proto::{
    CreateVolumeRequest, DescribeVolumesRequest, ExportVolumeRequest, S3Object, UnexportVolumeRequest, VolumeRequest,
};
use karri_meta::MetaStore;
use karri_meta::memory::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Request, Status};

use super::host::Host;
use super::service::Service;
use super::{Images, open_store};
use crate::driver::{Driver, Options};
use crate::store::Catalog;

const MIB: u64 = 1 << 20;
const ACCOUNT: &str = "123456789012";

/// What the machine keeps while the role dies and comes back.
struct Bed {
    dir: tempfile::TempDir,
    meta: Arc<dyn MetaStore>,
    s3: Option<String>,
}

impl Bed {
    fn new(s3: Option<String>) -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), meta: Arc::new(MemoryStore::new()), s3 }
    }

    fn config(&self) -> Config {
        let at = |name: &str| self.dir.path().join(name);
        let key = |id: &str| AccessKey { access_key_id: id.into(), secret_access_key: "s".repeat(40) };
        let account_id: karri_base::id::AccountId = ACCOUNT.parse().unwrap();
        let credentials =
            Credentials { account_id: account_id.clone(), admin: key("AKIAADMIN"), system: key("AKIASYSTEM") };
        std::fs::write(at("credentials.toml"), toml::to_string(&credentials).unwrap()).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        Config {
            role: Role {
                state: at("state"),
                region: "us-east-1".into(),
                zone: "us-east-1a".into(),
                account_id,
                grpc: any,
                metrics: any,
            },
            tls: Tls { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() },
            peers: Peers { s3: self.s3.clone(), ..Peers::default() },
            cloud: None,
            node: None,
            storage: Some(StorageConfig {
                store: at("store"),
                store_bytes: 64 * MIB,
                sockets: at("sockets"),
                cores: 1,
                credentials: at("credentials.toml"),
            }),
            walrus: None,
        }
    }

    async fn start(&self) -> Service {
        let config = self.config();
        let storage = config.storage.as_ref().unwrap();
        super::private_folder(&storage.sockets).unwrap();
        let images = self.s3.as_ref().map(|s3| Images::new(s3, &storage.credentials, "us-east-1").unwrap());
        let (cores, shelf) = open_store(&storage.store, Some(storage.store_bytes), 1).await.expect("open");
        let host = Host::new(
            Catalog::new(self.meta.clone()),
            cores,
            shelf,
            storage.sockets.clone(),
            config.role.state.join("journals"),
            images,
        );
        host.recover().await.expect("recover");
        Service { host }
    }
}

const VOL: &str = "vol-0123456789abcdef0";

fn create(id: &str, size: u64, from_s3: Option<(&str, &str)>) -> Request<CreateVolumeRequest> {
    let object = |(key, etag): (&str, &str)| S3Object { bucket: "images".into(), key: key.into(), etag: etag.into() };
    Request::new(CreateVolumeRequest {
        volume_id: id.into(),
        size_bytes: size,
        from_s3: from_s3.map(object),
        account_id: ACCOUNT.into(),
    })
}

async fn export(s: &Service, id: &str, generation: u64) -> Result<PathBuf, Status> {
    let request = ExportVolumeRequest { volume_id: id.into(), generation, read_only: false };
    let export = s.export_volume(Request::new(request)).await?.into_inner();
    assert_eq!(export.generation, generation);
    Ok(export.vhost_user_socket.into())
}

async fn unexport(s: &Service, id: &str, generation: u64) -> Result<(), Status> {
    s.unexport_volume(Request::new(UnexportVolumeRequest { volume_id: id.into(), generation })).await.map(drop)
}

async fn delete(s: &Service, id: &str) -> Result<(), Status> {
    s.delete_volume(Request::new(VolumeRequest { volume_id: id.into() })).await.map(drop)
}

fn code<T>(outcome: Result<T, Status>) -> Code {
    outcome.map(drop).map_or_else(|status| status.code(), |()| Code::Ok)
}

/// A guest works on a thread of its own, as one does.
async fn guest<T: Send + 'static>(path: PathBuf, work: impl FnOnce(&mut Driver) -> T + Send + 'static) -> T {
    let run = move || {
        let mut driver = Driver::connect(&path, Options { size: 16, ..Options::default() }).expect("connect");
        work(&mut driver)
    };
    tokio::task::spawn_blocking(run).await.expect("the guest's thread")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_and_exports_survive_repeats_and_restarts() {
    let bed = Bed::new(None);
    let s = bed.start().await;
    let first = s.create_volume(create(VOL, 8 * MIB, None)).await.unwrap().into_inner();
    assert_eq!(s.create_volume(create(VOL, 8 * MIB, None)).await.unwrap().into_inner(), first);
    assert_eq!(code(s.create_volume(create(VOL, 9 * MIB, None)).await), Code::AlreadyExists);
    assert_eq!(code(s.create_volume(create("vol-1", MIB, None)).await), Code::InvalidArgument);
    assert_eq!(code(s.create_volume(create("vol-00000000", 1 << 40, None)).await), Code::ResourceExhausted);
    assert_eq!(code(s.create_volume(create("vol-00000000", 1000, None)).await), Code::InvalidArgument);
    assert_eq!(code(s.create_volume(create("vol-00000000", MIB, Some(("k", "")))).await), Code::FailedPrecondition);
    assert_eq!(code(export(&s, "vol-00000000", 1).await), Code::NotFound);
    assert_eq!(code(unexport(&s, "vol-00000000", 1).await), Code::Ok);

    let path = export(&s, VOL, 5).await.unwrap();
    assert_eq!(export(&s, VOL, 5).await.unwrap(), path);
    guest(path.clone(), |d| d.write(MIB, &[7; 4096]).and_then(|()| d.flush()).unwrap()).await;
    assert_eq!(code(export(&s, VOL, 4).await), Code::FailedPrecondition);
    assert_eq!(code(unexport(&s, VOL, 4).await), Code::FailedPrecondition);
    assert_eq!(code(delete(&s, VOL).await), Code::FailedPrecondition);

    // A newer generation fences the older one off: its socket is gone.
    let newer = export(&s, VOL, 6).await.unwrap();
    assert!(newer != path && !path.exists());
    assert_eq!(guest(newer.clone(), |d| d.read(MIB, 4096).unwrap()).await, [7; 4096]);
    let request = DescribeVolumesRequest { volume_ids: vec![VOL.into(), "vol-00000000".into()] };
    let volumes = s.describe_volumes(Request::new(request)).await.unwrap().into_inner().volumes;
    assert_eq!((volumes.len(), volumes[0].allocated_bytes), (1, MIB));
    assert_eq!(volumes[0].export.as_ref().map(|e| e.generation), Some(6));

    // A restart: a stale socket goes, the export listens again on its path.
    s.host.shutdown().await;
    drop(s);
    let stale = bed.dir.path().join("sockets/vol-dead-1.sock");
    std::fs::write(&stale, b"").unwrap();
    let s = bed.start().await;
    assert!(!stale.exists());
    assert_eq!(s.host.health().trouble, None);
    assert_eq!(export(&s, VOL, 6).await.unwrap(), newer);
    assert_eq!(guest(newer.clone(), |d| d.read(MIB, 4096).unwrap()).await, [7; 4096]);
    unexport(&s, VOL, 6).await.unwrap();
    unexport(&s, VOL, 6).await.unwrap();
    assert!(!newer.exists());
    assert_eq!(code(export(&s, VOL, 5).await), Code::FailedPrecondition, "the fence outlives the export");
    delete(&s, VOL).await.unwrap();
    delete(&s, VOL).await.unwrap();
    assert_eq!(s.host.usage().await.unwrap().used, 0);
    s.host.shutdown().await;
}

/// One S3 object store of a few objects, enough for HEAD and GET.
#[derive(Default)]
struct SmallS3 {
    objects: Mutex<HashMap<String, (String, Vec<u8>)>>,
    gets: AtomicUsize,
    /// Bytes after which bodies break off.
    cut: Mutex<Option<usize>>,
}

impl SmallS3 {
    async fn start(self: Arc<Self>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(self.clone().connection(socket));
            }
        });
        format!("http://{address}")
    }

    async fn connection(self: Arc<Self>, mut socket: tokio::net::TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        assert!(head.contains("AWS4-HMAC-SHA256 Credential=AKIASYSTEM/"), "signed with the system key: {head}");
        let mut words = head.split_whitespace();
        let (method, path) = (words.next()?, words.next()?);
        let found = self.objects.lock().unwrap().get(path).cloned();
        let Some((etag, mut bytes)) = found else {
            socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.ok()?;
            return Some(());
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"{etag}\"\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
        socket.write_all(head.as_bytes()).await.ok()?;
        if method == "GET" {
            self.gets.fetch_add(1, Ordering::SeqCst);
            bytes.truncate(self.cut.lock().unwrap().unwrap_or(usize::MAX));
            socket.write_all(&bytes).await.ok()?;
        }
        socket.shutdown().await.ok()
    }

    fn put(&self, key: &str, etag: &str, bytes: Vec<u8>) {
        self.objects.lock().unwrap().insert(format!("/images/{key}"), (etag.into(), bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_from_images_share_one_copy() {
    let s3 = Arc::new(SmallS3::default());
    let bed = Bed::new(Some(s3.clone().start().await));
    let s = bed.start().await;
    // Data, a hole over whole extents, data; not in whole blocks.
    let mut image = vec![0; 5 << 20];
    image[..9000].fill(1);
    image[(4 << 20) + 100..].fill(2);
    image.truncate((5 << 20) - 1000);
    s3.put("disk.img", "e1", image.clone());
    let size = 6 * MIB;

    *s3.cut.lock().unwrap() = Some(3 << 20);
    assert_eq!(code(s.create_volume(create("vol-00000001", size, Some(("disk.img", "")))).await), Code::Unavailable);
    assert_eq!(s.host.usage().await.unwrap().used, 0, "nothing of a broken copy stays");
    *s3.cut.lock().unwrap() = None;
    for (key, etag, want) in [("none.img", "", Code::NotFound), ("disk.img", "e0", Code::FailedPrecondition)] {
        assert_eq!(code(s.create_volume(create("vol-00000001", size, Some((key, etag)))).await), want);
    }
    let small = s.create_volume(create("vol-00000001", MIB, Some(("disk.img", "e1")))).await;
    assert_eq!(code(small), Code::InvalidArgument);

    let gets = s3.gets.load(Ordering::SeqCst);
    let (a, b) = tokio::join!(
        s.create_volume(create("vol-00000001", size, Some(("disk.img", "\"e1\"")))),
        s.create_volume(create("vol-00000002", size, Some(("disk.img", "")))),
    );
    assert_eq!((code(a), code(b)), (Code::Ok, Code::Ok));
    assert_eq!(s3.gets.load(Ordering::SeqCst), gets, "the copy that the refused one made is used");
    assert_eq!(s.host.usage().await.unwrap().used, 2 * MIB, "two extents have data, three are holes");
    let path = export(&s, "vol-00000001", 1).await.unwrap();
    image.resize(6 << 20, 0);
    let want = image.clone();
    guest(path, move |d| {
        assert_eq!(d.capacity(), 6 * MIB);
        for (i, piece) in want.chunks(1 << 20).enumerate() {
            assert!(d.read(i as u64 * MIB, piece.len()).unwrap() == piece, "MiB {i}");
        }
        d.write(4096, &[9; 4096]).unwrap();
        d.flush().unwrap();
    })
    .await;
    // Walrus is gone, the role restarts: the volumes are still there, each its own.
    s.host.shutdown().await;
    drop(s);
    s3.objects.lock().unwrap().clear();
    let s = bed.start().await;
    let (a, b) = (export(&s, "vol-00000001", 1).await.unwrap(), export(&s, "vol-00000002", 1).await.unwrap());
    assert_eq!(guest(a, |d| d.read(4096, 4096).unwrap()).await, [9; 4096]);
    assert_eq!(guest(b, |d| d.read(4096, 4096).unwrap()).await, [1; 4096]);
    // Gone with its last clone, once room is wanted.
    for id in ["vol-00000001", "vol-00000002"] {
        unexport(&s, id, 1).await.unwrap();
        assert!(!s.host.make_room(None).await.unwrap(), "still read through");
        delete(&s, id).await.unwrap();
    }
    assert!(s.host.make_room(None).await.unwrap());
    assert_eq!(s.host.usage().await.unwrap().used, 0);
    s.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_exported_without_a_cloud() {
    let dir = tempfile::tempdir().unwrap();
    let meta: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
    let options = super::ExportOptions {
        store: dir.path().join("store"),
        store_bytes: Some(32 * MIB),
        volume: "data".into(),
        size: 4 * MIB,
        vhost_user: dir.path().join("d.sock"),
        queues: 4,
        pin_memory: true,
        read_only: false,
    };
    for round in 0..2u8 {
        let mut registry = karri_base::observe::registry("storage");
        let store_bytes = (round == 0).then_some(32 * MIB);
        let exported =
            super::export(super::ExportOptions { store_bytes, ..options.clone() }, meta.clone(), &mut registry);
        let exported = exported.await.expect("export");
        let before = guest(exported.socket().to_owned(), move |d| {
            let before = d.read(0, 512).unwrap();
            d.write(0, &[round + 1; 512]).unwrap();
            before
        })
        .await;
        assert_eq!(before, [round; 512]);
        let text = karri_base::observe::render(&registry);
        assert!(text.contains("karri_volume_writes_total{role=\"storage\",volume=\"data\"} 1"), "{text}");
        karri_base::role::Running::shutdown(&*exported).await;
    }
    let other = super::ExportOptions { size: 5 * MIB, store_bytes: None, ..options.clone() };
    let outcome = super::export(other, meta, &mut karri_base::observe::registry("storage")).await;
    assert!(outcome.map(drop).unwrap_err().to_string().contains("exists already"));
}

/// An S3 with one image whose second half comes only when told.
async fn halting_s3(begun: Arc<tokio::sync::Notify>, go_on: Arc<tokio::sync::Notify>) -> (String, Arc<AtomicU64>) {
    let gets = Arc::new(AtomicU64::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, seen) = (listener.local_addr().unwrap(), gets.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (begun, go_on, seen) = (begun.clone(), go_on.clone(), seen.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.ok()?);
                }
                let length = 4 << 20;
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"e1\"\r\nConnection: close\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.ok()?;
                if head.starts_with(b"GET") {
                    seen.fetch_add(1, Ordering::SeqCst);
                    socket.write_all(&vec![7; length / 2]).await.ok()?;
                    begun.notify_one();
                    go_on.notified().await;
                    socket.write_all(&vec![8; length / 2]).await.ok()?;
                }
                socket.shutdown().await.ok()
            });
        }
    });
    (format!("http://{address}"), gets)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_goes_on_when_its_caller_has_gone() {
    let (begun, go_on) = <(Arc<tokio::sync::Notify>, Arc<tokio::sync::Notify>)>::default();
    let (s3, gets) = halting_s3(begun.clone(), go_on.clone()).await;
    let bed = Bed::new(Some(s3));
    let s = bed.start().await;
    // What tonic does at the caller's deadline, or when the caller hangs up: it drops the call.
    let call = s.create_volume(create("vol-00000001", 4 * MIB, Some(("disk.img", ""))));
    tokio::select! {
        answer = call => panic!("answered before its image was there: {:?}", code(answer)),
        () = begun.notified() => {}
    }
    go_on.notify_one();
    assert_eq!(code(s.create_volume(create("vol-00000001", 4 * MIB, Some(("disk.img", "")))).await), Code::Ok);
    assert_eq!(gets.load(Ordering::SeqCst), 1, "the abandoned call's copy is the one that is used");
    s.host.shutdown().await;
}
