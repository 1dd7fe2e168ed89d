//! `karri image add`: a root disk, kernel and ramdisk become objects in Walrus, then images of EC2.
//!
//! The objects lie in the bucket `karri-images` under the image's name and their contents' hash, so those of a registered
//! image never change. A kernel and a ramdisk are images of their own (`aki-`, `ari-`), named after the image. The same
//! image added again is answered with its id; another one under its name is refused, before anything goes up. Where a
//! later step fails, what was registered is deregistered and what was uploaded is deleted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::s3::S3;
use karri_base::aws::sigv4::{self, Payload, Signer};
use karri_base::clock::{Clock, SystemClock};
use karri_base::config::AccessKey;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::ask::print;
use crate::layout::Layout;

const BUCKET: &str = "karri-images";
/// A larger file goes up in parts of this size, in bytes; 10,000 parts are 640 GiB.
const PART_BYTES: u64 = 64 << 20;
/// An answer's text may be so long.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What to add.
pub struct Files {
    /// The image's name.
    pub name: String,
    /// A raw disk image.
    pub root: PathBuf,
    /// Kernel for direct boot.
    pub kernel: Option<PathBuf>,
    /// Its ramdisk.
    pub ramdisk: Option<PathBuf>,
}

/// Uploads, registers, prints the image's id.
pub fn add(layout: &Layout, files: &Files) -> Result<ExitCode> {
    if files.ramdisk.is_some() && files.kernel.is_none() {
        bail!("--ramdisk needs --kernel");
    }
    check_root(&files.root, files.kernel.is_some())?;
    if let Some(kernel) = &files.kernel {
        check_kernel(kernel)?;
    }
    let runtime = layout.read_runtime()?;
    let cloud = Cloud {
        s3: S3::new(&format!("http://{}", runtime.s3_inner), layout.read_credentials()?.admin, &runtime.region)
            .map_err(|why| anyhow!(why))?,
        api: format!("http://{}/", runtime.api_plain()),
        key: layout.read_credentials()?.admin,
        region: runtime.region,
        client: Client::builder(TokioExecutor::new()).build_http(),
    };
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let id = tokio.block_on(cloud.add(files))?;
    print(&format!("{id}\n"));
    Ok(ExitCode::SUCCESS)
}

/// The first bytes of a file, and its length.
fn head(path: &Path) -> Result<(Vec<u8>, u64)> {
    use std::io::Read;
    let read = || -> std::io::Result<(Vec<u8>, u64)> {
        let file = std::fs::File::open(path)?;
        let (length, mut bytes) = (file.metadata()?.len(), Vec::new());
        file.take(1024).read_to_end(&mut bytes)?;
        Ok((bytes, length))
    };
    read().with_context(|| format!("reading {}", path.display()))
}

/// Refuses what cannot be a raw disk. `direct`: a kernel is given, nothing needs to be bootable.
fn check_root(path: &Path, direct: bool) -> Result<()> {
    let (bytes, length) = head(path)?;
    let known: [(&[u8], &str); 4] =
        [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vpc")];
    let path = path.display();
    if let Some((_, format)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        bail!("{path} is a {format} image; it must be raw: qemu-img convert -f {format} -O raw {path} root.img");
    }
    if length == 0 || length % 512 != 0 {
        bail!("{path} has {length} bytes; a raw disk has whole sectors of 512 bytes, and at least one");
    }
    if !direct && bytes.get(510..512) != Some(&[0x55, 0xAA]) {
        bail!(
            "{path} has no boot sector (55 AA at byte 510) and no --kernel is given: an instance of it could not start"
        );
    }
    Ok(())
}

/// Refuses what is no Linux kernel (Documentation/arch/x86/boot.rst: `HdrS` at 0x202).
fn check_kernel(path: &Path) -> Result<()> {
    if head(path)?.0.get(0x202..0x206) != Some(b"HdrS") {
        bail!("{} is no Linux kernel for x86 (bzImage, vmlinuz): HdrS is not at byte 514", path.display());
    }
    Ok(())
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A file on its way to be an image.
struct Piece<'a> {
    /// The image's name.
    name: String,
    key: String,
    path: &'a Path,
    bytes: u64,
    hash: String,
    /// The id of the image that is registered from the same contents under the same name.
    known: Option<String>,
}

/// What one call has made so far.
#[derive(Default)]
struct Made {
    images: Vec<String>,
    objects: Vec<String>,
}

/// A running karri, seen as its admin user.
struct Cloud {
    s3: S3,
    api: String,
    key: AccessKey,
    region: String,
    client: Client<HttpConnector, Body>,
}

impl Cloud {
    async fn add(&self, files: &Files) -> Result<String> {
        // Every name is looked up before anything goes up.
        let root = self.look(&files.name, "root", &files.root).await?;
        let mut parts = Vec::new();
        for (what, field, path) in [("kernel", "KernelId", &files.kernel), ("ramdisk", "RamdiskId", &files.ramdisk)] {
            if let Some(path) = path {
                parts.push((field, self.look(&files.name, what, path).await?));
            }
        }
        if let (Some(id), Some((_, new))) = (&root.known, parts.iter().find(|(_, part)| part.known.is_none())) {
            bail!(
                "the image {} is registered already, as {id}, without {}. Give this one another name, or first: \
                 aws ec2 deregister-image --image-id {id}",
                files.name,
                new.path.display()
            );
        }
        let mut made = Made::default();
        let added = self.add_all(&root, &parts, &mut made).await;
        if added.is_err() {
            // The failure that is reported is the first one.
            for id in &made.images {
                let _ = self.ec2(&[("Action", "DeregisterImage"), ("ImageId", id)]).await;
            }
            for key in &made.objects {
                // An image that stayed, or that somebody else made of it meanwhile, needs its object.
                if self.at(&format!("{BUCKET}/{key}")).await.is_ok_and(|image| image.is_none()) {
                    let _ = self.s3_call(Method::DELETE, Some(key), &[], Payload::Bytes(b""), whole("")).await;
                }
            }
        }
        added
    }

    /// The id of an image that lies at `location`, whatever its name.
    async fn at(&self, location: &str) -> Result<Option<String>> {
        let filter = [("Filter.1.Name", "manifest-location"), ("Filter.1.Value.1", location)];
        let answer = self.ec2(&[&[("Action", "DescribeImages"), ("Owner.1", "self")][..], &filter].concat()).await?;
        Ok(element(&answer, "imageId").map(str::to_owned))
    }

    async fn add_all(&self, root: &Piece<'_>, parts: &[(&str, Piece<'_>)], made: &mut Made) -> Result<String> {
        self.make_bucket().await?;
        self.upload(root, made).await?;
        let mut ids = Vec::new();
        for (field, part) in parts {
            self.upload(part, made).await?;
            ids.push((*field, self.register(part, &[(field, "true")], made).await?));
        }
        let ids = ids.iter().map(|(field, id)| (*field, id.as_str())).collect::<Vec<_>>();
        self.register(root, &ids, made).await
    }

    /// What a file will be: its key by its contents, and the image that is registered from it already.
    async fn look<'a>(&self, image: &str, what: &str, path: &'a Path) -> Result<Piece<'a>> {
        let reading = || format!("reading {}", path.display());
        let bytes = tokio::fs::metadata(path).await.with_context(reading)?.len();
        let hash = hash(path, 0, bytes).await.with_context(reading)?;
        let name = if what == "root" { image.to_owned() } else { format!("{image}.{what}") };
        let key = format!("{image}/{what}-{}", &hash[..16]);
        let known = self.same(&name, &format!("{BUCKET}/{key}")).await?;
        Ok(Piece { name, key, path, bytes, hash, known })
    }

    /// The image's id, registered now or before.
    async fn register(&self, piece: &Piece<'_>, more: &[(&str, &str)], made: &mut Made) -> Result<String> {
        if let Some(id) = &piece.known {
            return Ok(id.clone());
        }
        let (name, location) = (&*piece.name, format!("{BUCKET}/{}", piece.key));
        let fields =
            [("Action", "RegisterImage"), ("Name", name), ("ImageLocation", &location), ("Architecture", "x86_64")];
        match self.ec2(&[&fields[..], more].concat()).await {
            Ok(answer) => {
                let id = element(&answer, "imageId").context("RegisterImage's answer has no imageId")?;
                made.images.push(id.to_owned());
                Ok(id.to_owned())
            }
            Err(taken) if taken.to_string().starts_with("InvalidAMIName.Duplicate") => {
                // Somebody was faster, which is well where it is the same.
                let id = self.same(name, &location).await?;
                id.with_context(|| format!("image {name} was there and is gone"))
            }
            Err(refused) => Err(refused).with_context(|| format!("registering {name} at {location}")),
        }
    }

    /// The id of the image of this name if there is one; it must lie at `location`: the place names what is in it.
    async fn same(&self, name: &str, location: &str) -> Result<Option<String>> {
        let asked =
            [("Action", "DescribeImages"), ("Owner.1", "self"), ("Filter.1.Name", "name"), ("Filter.1.Value.1", name)];
        let answer = self.ec2(&asked).await.with_context(|| format!("looking for image {name}"))?;
        let Some(id) = element(&answer, "imageId") else { return Ok(None) };
        let at = element(&answer, "imageLocation").unwrap_or_default();
        if !at.ends_with(location) {
            bail!(
                "another image has the name {name}: {id} at {at}. Give this one another name, or first: \
                 aws ec2 deregister-image --image-id {id}"
            );
        }
        Ok(Some(id.to_owned()))
    }

    async fn ec2(&self, fields: &[(&str, &str)]) -> Result<String> {
        let mut form = String::from("Version=2016-11-15");
        for (name, value) in fields {
            form.push_str(&format!("&{name}={}", sigv4::uri_encode(value.as_bytes(), false)));
        }
        let request = Request::post(&self.api).header("content-type", "application/x-www-form-urlencoded").body(())?;
        let (mut parts, ()) = request.into_parts();
        let signer = Signer {
            access_key_id: &self.key.access_key_id,
            secret: &self.key.secret_access_key,
            session_token: None,
            region: &self.region,
            service: "ec2",
        };
        sigv4::sign(&mut parts, Payload::Bytes(form.as_bytes()), &signer, SystemClock.now())
            .map_err(|why| anyhow!(why))?;
        let (status, answer) = self.send(parts, whole(form)).await?;
        if status.is_success() { Ok(answer) } else { Err(refusal(status, &answer)) }
    }

    async fn make_bucket(&self) -> Result<()> {
        match self.s3_call(Method::PUT, None, &[], Payload::Bytes(b""), whole("")).await {
            Ok(_) => Ok(()),
            Err(refused) if refused.to_string().starts_with("BucketAlreadyOwnedByYou") => Ok(()),
            Err(refused) => Err(refused).context(format!("making bucket {BUCKET}")),
        }
    }

    /// Uploads a file, unless an image has it.
    async fn upload(&self, piece: &Piece<'_>, made: &mut Made) -> Result<()> {
        let Piece { key, path, bytes, hash, known, .. } = piece;
        if known.is_some() {
            return Ok(());
        }
        let upload = async {
            if *bytes <= PART_BYTES {
                let body = stream(path, 0, *bytes).await?;
                self.s3_call(Method::PUT, Some(key), &[], Payload::Sha256(hash), body).await?;
            } else {
                self.upload_parts(piece).await?;
            }
            anyhow::Ok(())
        };
        // Also where the answer is lost, it may be there.
        made.objects.push(key.clone());
        upload.await.with_context(|| format!("uploading {} to {BUCKET}/{key}", path.display()))
    }

    async fn upload_parts(&self, piece: &Piece<'_>) -> Result<()> {
        let Piece { key, path, bytes, .. } = piece;
        let begun = self.s3_call(Method::POST, Some(key), &[("uploads", "")], Payload::Bytes(b""), whole("")).await?;
        let upload = element(&begun.body, "UploadId").context("the answer has no UploadId")?;
        let parts = async {
            let mut list = String::from("<CompleteMultipartUpload>");
            let mut all = Sha256::new();
            for (number, from) in (1..).zip((0..*bytes).step_by(PART_BYTES as usize)) {
                let length = PART_BYTES.min(bytes - from);
                let hash = hash_into(path, from, length, &mut all).await?;
                let query = [("partNumber", &*format!("{number}")), ("uploadId", upload)];
                let body = stream(path, from, length).await?;
                let part = self.s3_call(Method::PUT, Some(key), &query, Payload::Sha256(&hash), body).await?;
                list.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", part.etag));
            }
            if text_of(all) != piece.hash {
                bail!("the file changed while it was uploaded; try again when nobody writes to it");
            }
            list.push_str("</CompleteMultipartUpload>");
            let query = [("uploadId", upload)];
            self.s3_call(Method::POST, Some(key), &query, Payload::Bytes(list.as_bytes()), whole(list.clone())).await
        };
        match parts.await {
            // A completion may fail after its 200 has gone out.
            Ok(done) if !done.body.contains("<Error>") => Ok(()),
            failed => {
                let query = [("uploadId", upload)];
                let _ = self.s3_call(Method::DELETE, Some(key), &query, Payload::Bytes(b""), whole("")).await;
                Err(failed.err().unwrap_or_else(|| anyhow!("the upload could not be completed")))
            }
        }
    }

    async fn s3_call(
        &self,
        method: Method,
        key: Option<&str>,
        query: &[(&str, &str)],
        payload: Payload<'_>,
        body: Body,
    ) -> Result<Answer> {
        let parts =
            self.s3.request(method, BUCKET, key, query, &[], payload, SystemClock.now()).map_err(|why| anyhow!(why))?;
        let answer = self.client.request(Request::from_parts(parts, body)).await.context("Walrus does not answer")?;
        let status = answer.status();
        let etag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let body = text(answer.into_body()).await?;
        if status.is_success() { Ok(Answer { etag, body }) } else { Err(refusal(status, &body)) }
    }

    async fn send(&self, parts: http::request::Parts, body: Body) -> Result<(StatusCode, String)> {
        let answer =
            self.client.request(Request::from_parts(parts, body)).await.context("the cloud does not answer")?;
        Ok((answer.status(), text(answer.into_body()).await?))
    }
}

struct Answer {
    etag: String,
    body: String,
}

async fn text(body: hyper::body::Incoming) -> Result<String> {
    let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| anyhow!("reading the answer: {e}"))?;
    Ok(String::from_utf8_lossy(&bytes.to_bytes()).into_owned())
}

/// `CODE: message` of an AWS error.
fn refusal(status: StatusCode, answer: &str) -> anyhow::Error {
    let code = element(answer, "Code").unwrap_or(status.as_str());
    let message = element(answer, "Message").unwrap_or("no reason was given");
    anyhow!("{code}: {message}")
}

/// The text of the first element of this name in an answer of ours; what we ask for holds nothing that XML escapes.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A reader of `length` bytes of the file from `from`.
async fn open(path: &Path, from: u64, length: u64) -> std::io::Result<tokio::io::Take<tokio::fs::File>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.set_max_buf_size(1 << 20);
    file.seek(std::io::SeekFrom::Start(from)).await?;
    Ok(file.take(length))
}

async fn chunk(file: &mut tokio::io::Take<tokio::fs::File>) -> std::io::Result<Option<Bytes>> {
    let mut chunk = Vec::with_capacity(1 << 20);
    let got = file.read_buf(&mut chunk).await?;
    Ok((got > 0).then(|| chunk.into()))
}

async fn stream(path: &Path, from: u64, length: u64) -> std::io::Result<Body> {
    let file = open(path, from, length).await?;
    let chunks = futures_util::stream::try_unfold(file, |mut file| async move {
        Ok::<_, std::io::Error>(chunk(&mut file).await?.map(|bytes| (bytes, file)))
    });
    // The length comes with the stream's type lost, so it is told to hyper as a size hint.
    Ok(Sized { body: StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync(), left: length }.boxed_unsync())
}

/// A body whose length is known, so that it goes out with `content-length`.
struct Sized {
    body: Body,
    left: u64,
}

impl hyper::body::Body for Sized {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let polled = std::pin::Pin::new(&mut self.body).poll_frame(cx);
        if let std::task::Poll::Ready(Some(Ok(frame))) = &polled {
            let got = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.left = self.left.saturating_sub(got);
        }
        polled
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

async fn hash(path: &Path, from: u64, length: u64) -> std::io::Result<String> {
    hash_into(path, from, length, &mut Sha256::new()).await
}

/// The hash of a part of a file, which is also added to that of the whole.
async fn hash_into(path: &Path, from: u64, length: u64, all: &mut Sha256) -> std::io::Result<String> {
    let mut file = open(path, from, length).await?;
    let mut sha = Sha256::new();
    while let Some(bytes) = chunk(&mut file).await? {
        sha.update(&bytes);
        all.update(&bytes);
    }
    Ok(text_of(sha))
}

fn text_of(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_of_a_file_is_hashed_and_streamed_with_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let body = stream(&path, 2, 3).await.unwrap();
        assert_eq!(hyper::body::Body::size_hint(&body).exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "234");
        let of = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hash(&path, 2, 3).await.unwrap(), of(b"234"));
        assert_eq!(hash(&path, 0, 100).await.unwrap(), of(b"0123456789"));
    }

    #[test]
    fn what_cannot_boot_is_refused_before_it_is_uploaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let put = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
        let said = |outcome: Result<()>| outcome.unwrap_err().to_string();
        put(&[&b"QFI\xfb"[..], &[0; 508]].concat());
        assert!(said(check_root(&path, true)).contains("qemu-img convert -f qcow2 -O raw"));
        put(&[0; 1000]);
        assert!(said(check_root(&path, true)).contains("1000 bytes"));
        put(&[0; 1024]);
        assert!(said(check_root(&path, false)).contains("no boot sector") && check_root(&path, true).is_ok());
        assert!(said(check_kernel(&path)).contains("HdrS"));
        let mut boots = [0; 1024];
        boots[510..516].copy_from_slice(b"\x55\xAA\0\0Hd");
        boots[514..518].copy_from_slice(b"HdrS");
        put(&boots);
        assert!(check_root(&path, false).is_ok() && check_kernel(&path).is_ok());
    }

    #[test]
    fn a_refusal_says_code_and_message() {
        let xml = "<Response><Errors><Error><Code>InvalidAMIName.Duplicate</Code><Message>taken</Message></Error></Errors></Response>";
        assert_eq!(refusal(StatusCode::BAD_REQUEST, xml).to_string(), "InvalidAMIName.Duplicate: taken");
        assert!(refusal(StatusCode::BAD_GATEWAY, "").to_string().starts_with("502"));
    }
}
