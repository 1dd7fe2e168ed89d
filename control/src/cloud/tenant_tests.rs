//! Two accounts on one cloud, each signing its own requests: nobody sees or touches what is not theirs, and is told what
//! AWS tells: that it is not there.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use karri_base::aws::sigv4::{self, Payload, Signer};
use karri_base::clock::{Clock as _, SystemClock};

use super::records::{AccessKey, Image, Instance, KeyPair, Volume};
use super::store::StoreError;
use super::tests::{World, text, texts};
use crate::wire::generated::ec2::InstanceStateName;

/// An account's admin, over HTTP.
struct Admin<'a> {
    world: &'a World,
    key: (&'static str, &'static str),
}

const OURS: (&str, &str) = ("AKIAADMINADMINADMIN1", "adminsecretadminsecretadminsecretadminse");
const THEIRS: (&str, &str) = ("AKIAOTHEROTHEROTHER1", "othersecretothersecretothersecretotherse");

impl Admin<'_> {
    /// The answer's XML, or the error's code.
    async fn ask(&self, action: &str, params: &[(&str, &str)]) -> Result<String, String> {
        let mut form = format!("Action={action}&Version=2016-11-15");
        for (name, value) in params {
            form.push_str(&format!("&{name}={}", sigv4::uri_encode(value.as_bytes(), false)));
        }
        let request = http::Request::post(format!("http://{}/", self.world.role.api_addr()))
            .header("content-type", "application/x-www-form-urlencoded");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let signer = Signer {
            access_key_id: self.key.0,
            secret: self.key.1,
            session_token: None,
            region: "us-east-1",
            service: "ec2",
        };
        sigv4::sign(&mut parts, Payload::Bytes(form.as_bytes()), &signer, SystemClock.now()).unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = client.request(http::Request::from_parts(parts, Full::new(form.into()))).await.unwrap();
        let fine = answer.status().is_success();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let xml = String::from_utf8(body.to_vec()).unwrap();
        if fine { Ok(xml) } else { Err(text(&xml, "Code")) }
    }

    async fn get(&self, action: &str, params: &[(&str, &str)], element: &str) -> String {
        let xml = self.ask(action, params).await.unwrap_or_else(|code| panic!("{action} {params:?}: {code}"));
        text(&xml, element)
    }

    /// An image, a kernel, a running instance with a data disk, a volume, a key pair, and a tag on each.
    async fn settle(&self) -> Owned {
        let register = [("Name", "first"), ("ImageLocation", "mine/root")];
        let image = self.get("RegisterImage", &register, "imageId").await;
        let register = [("Name", "kernel"), ("ImageLocation", "mine/kernel"), ("KernelId", "true")];
        let kernel = self.get("RegisterImage", &register, "imageId").await;
        let key = self.get("CreateKeyPair", &[("KeyName", "k"), ("KeyType", "ed25519")], "keyPairId").await;
        let run = [("ImageId", image.as_str()), ("MinCount", "6"), ("MaxCount", "6"), ("KeyName", "k")];
        let instance = self.get("RunInstances", &run, "instanceId").await;
        self.world.until_instance(&instance, "running").await;
        let make = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
        let mut volumes = Vec::new();
        for _ in 0..2 {
            let volume = self.get("CreateVolume", &make, "volumeId").await;
            self.world.until_volume(&volume, "available").await;
            volumes.push(volume);
        }
        let [free, held] = <[String; 2]>::try_from(volumes).unwrap();
        let attach = [("VolumeId", held.as_str()), ("InstanceId", &instance), ("Device", "/dev/sdf")];
        self.ask("AttachVolume", &attach).await.unwrap();
        self.world.until_volume(&held, "in-use").await;
        let owned = Owned { image, kernel, instance, free, held, key };
        let ids = owned.ids();
        let mut tags = vec![("Tag.1.Key", "of"), ("Tag.1.Value", self.key.0)];
        let names: Vec<String> = (1..=ids.len()).map(|n| format!("ResourceId.{n}")).collect();
        tags.extend(names.iter().map(String::as_str).zip(ids));
        self.ask("CreateTags", &tags).await.unwrap();
        owned
    }
}

/// What an account has.
struct Owned {
    image: String,
    kernel: String,
    instance: String,
    free: String,
    held: String,
    key: String,
}

impl Owned {
    fn ids(&self) -> [&str; 6] {
        [&self.image, &self.kernel, &self.instance, &self.free, &self.held, &self.key]
    }
}

async fn world_of_two() -> World {
    let mut w = World::at(Arc::new(SystemClock), "127.0.0.1:0".parse().unwrap()).await;
    let key = AccessKey {
        access_key_id: THEIRS.0.into(),
        secret: THEIRS.1.into(),
        account: "210987654321".parse().unwrap(),
        arn: "arn:aws:iam::210987654321:user/admin".into(),
        active: true,
    };
    let put = w.role.cloud().store.change::<_, StoreError>(|txn| {
        txn.put(key.clone());
        Ok(())
    });
    put.await.unwrap();
    // The ring is filled at the start.
    w.restart().await;
    w
}

/// Everything that is kept, as text.
fn records(w: &World) -> String {
    let store = &w.role.cloud().store;
    let of = (store.list::<Image>(), store.list::<Instance>(), store.list::<Volume>(), store.list::<KeyPair>());
    format!("{of:#?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn someone_elses_is_not_there() {
    let w = world_of_two().await;
    let (us, them) = (Admin { world: &w, key: OURS }, Admin { world: &w, key: THEIRS });
    // The same names on both sides.
    let (ours, theirs) = (us.settle().await, them.settle().await);
    let (image, kernel, instance, free, held, key) =
        (&*ours.image, &*ours.kernel, &*ours.instance, &*ours.free, &*ours.held, &*ours.key);
    let run = [("MinCount", "1"), ("MaxCount", "1")];
    let own_image = ("ImageId", &*theirs.image);
    // Six were launched on each side; until all run, the cloud itself changes records.
    w.until("all settled", |c| {
        c.store.list::<Instance>().iter().all(|i| i.state == InstanceStateName::Running && i.flow.is_none())
            && c.store.list::<Volume>().iter().all(|v| v.flow.is_none())
    })
    .await;
    let before = records(&w);
    for (action, params, code) in [
        ("DescribeInstances", vec![("InstanceId.1", instance)], "InvalidInstanceID.NotFound"),
        ("DescribeInstanceStatus", vec![("InstanceId.1", instance)], "InvalidInstanceID.NotFound"),
        ("StartInstances", vec![("InstanceId.1", instance)], "InvalidInstanceID.NotFound"),
        ("StopInstances", vec![("InstanceId.1", instance), ("Force", "true")], "InvalidInstanceID.NotFound"),
        ("RebootInstances", vec![("InstanceId.1", instance)], "InvalidInstanceID.NotFound"),
        ("TerminateInstances", vec![("InstanceId.1", instance)], "InvalidInstanceID.NotFound"),
        // All or nothing: their own comes first and stays.
        (
            "TerminateInstances",
            vec![("InstanceId.1", &*theirs.instance), ("InstanceId.2", instance)],
            "InvalidInstanceID.NotFound",
        ),
        ("GetConsoleOutput", vec![("InstanceId", instance)], "InvalidInstanceID.NotFound"),
        ("DescribeVolumes", vec![("VolumeId.1", free)], "InvalidVolume.NotFound"),
        ("DeleteVolume", vec![("VolumeId", free)], "InvalidVolume.NotFound"),
        ("DetachVolume", vec![("VolumeId", held)], "InvalidVolume.NotFound"),
        ("DetachVolume", vec![("VolumeId", held), ("Force", "true")], "InvalidVolume.NotFound"),
        (
            "AttachVolume",
            vec![("VolumeId", free), ("InstanceId", &theirs.instance), ("Device", "/dev/sdg")],
            "InvalidVolume.NotFound",
        ),
        (
            "AttachVolume",
            vec![("VolumeId", &theirs.free), ("InstanceId", instance), ("Device", "/dev/sdg")],
            "InvalidInstanceID.NotFound",
        ),
        ("DescribeImages", vec![("ImageId.1", image)], "InvalidAMIID.NotFound"),
        ("DeregisterImage", vec![("ImageId", image)], "InvalidAMIID.NotFound"),
        ("DeregisterImage", vec![("ImageId", kernel)], "InvalidAMIID.NotFound"),
        ("RegisterImage", vec![("Name", "new"), ("ImageLocation", "theirs/root")], "AuthFailure"),
        (
            "RegisterImage",
            vec![("Name", "new"), ("ImageLocation", "mine/root"), ("KernelId", kernel)],
            "InvalidAMIID.NotFound",
        ),
        ("RunInstances", [&run[..], &[("ImageId", image)]].concat(), "InvalidAMIID.NotFound"),
        ("RunInstances", [&run[..], &[own_image, ("KernelId", kernel)]].concat(), "InvalidAMIID.NotFound"),
        ("DescribeKeyPairs", vec![("KeyPairId.1", key)], "InvalidKeyPair.NotFound"),
        ("CreateTags", vec![("ResourceId.1", instance), ("Tag.1.Key", "x")], "InvalidInstanceID.NotFound"),
        ("CreateTags", vec![("ResourceId.1", free), ("Tag.1.Key", "x")], "InvalidVolume.NotFound"),
        ("CreateTags", vec![("ResourceId.1", image), ("Tag.1.Key", "x")], "InvalidAMIID.NotFound"),
        ("CreateTags", vec![("ResourceId.1", key), ("Tag.1.Key", "x")], "InvalidKeyPair.NotFound"),
        ("DeleteTags", vec![("ResourceId.1", instance)], "InvalidInstanceID.NotFound"),
        ("DeleteTags", vec![("ResourceId.1", &theirs.free), ("ResourceId.2", free)], "InvalidVolume.NotFound"),
    ] {
        let answer = them.ask(action, &params).await;
        assert_eq!(answer.as_ref().err().map(String::as_str), Some(code), "{action} {params:?}: {answer:?}");
    }
    // As for a key that never was, this is no error, and nothing happens.
    them.ask("DeleteKeyPair", &[("KeyPairId", key)]).await.unwrap();
    assert_eq!(before, records(&w));

    // Listings, filtered or not, show each account its own.
    for action in ["DescribeInstances", "DescribeVolumes", "DescribeImages", "DescribeKeyPairs", "DescribeTags"] {
        for (who, own, other) in [(&us, &ours, &theirs), (&them, &theirs, &ours)] {
            let xml = who.ask(action, &[]).await.unwrap();
            assert!(own.ids().iter().any(|id| xml.contains(*id)), "{action}: {xml}");
            assert!(!other.ids().iter().any(|id| xml.contains(*id)), "{action}: {xml}");
        }
    }
    let by_id = [("Filter.1.Name", "volume-id"), ("Filter.1.Value.1", held)];
    assert!(texts(&them.ask("DescribeVolumes", &by_id).await.unwrap(), "volumeId").is_empty());
    let by_id = [("Filter.1.Name", "resource-id"), ("Filter.1.Value.1", instance)];
    assert!(texts(&them.ask("DescribeTags", &by_id).await.unwrap(), "key").is_empty());
    // A page token of one account is none to the other.
    let token = us.get("DescribeInstances", &[("MaxResults", "5")], "nextToken").await;
    let answer = them.ask("DescribeInstances", &[("NextToken", &token)]).await;
    assert_eq!(answer.unwrap_err(), "InvalidNextToken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_signs_for_its_own_account_only() {
    let w = world_of_two().await;
    let forged = Admin { world: &w, key: (OURS.0, THEIRS.1) };
    assert_eq!(forged.ask("DescribeVolumes", &[]).await.unwrap_err(), "AuthFailure");
    let unknown = Admin { world: &w, key: ("AKIANOBODYNOBODYNOB1", THEIRS.1) };
    assert_eq!(unknown.ask("DescribeVolumes", &[]).await.unwrap_err(), "AuthFailure");
}
