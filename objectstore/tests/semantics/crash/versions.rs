//! A bucket with versions, overwritten by multipart uploads too, its objects encrypted or not.
//!
//! Every acknowledged version is there after a crash with its bytes, in its order, until its removal by id was asked for;
//! what was being done may have happened or not; nothing else shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use karri_engine::sim::Rng;

use super::{Store, Workload, bytes, one_part};
use crate::client::Walrus;

/// A version's bytes; `None` for a delete marker.
type Body = Option<Vec<u8>>;

enum Attempt {
    Put(Body),
    Remove(String),
}

#[derive(Default)]
struct Key {
    /// Acknowledged, newest first.
    versions: Vec<(String, Body)>,
    /// Under way.
    attempt: Option<Attempt>,
}

struct Versions(RefCell<BTreeMap<String, Key>>);

impl Default for Versions {
    fn default() -> Self {
        Self(RefCell::new(Self::keys().into_iter().map(|key| (key, Key::default())).collect()))
    }
}

const ON: (&str, &str) = ("versioning", "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>");

#[test]
fn versions_survive() {
    super::simulate::<Versions>(&[ON]);
}

#[test]
fn encrypted_versions_survive() {
    super::simulate::<Versions>(&[
        ON,
        (
            "encryption",
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256\
             </SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>",
        ),
    ]);
}

impl Workload for Versions {
    const CLIENTS: usize = 3;
    const KEYS: usize = 2;

    async fn work(self: Rc<Self>, walrus: Rc<Walrus<Store>>, mut rng: Rng, client: usize) {
        let model = &self.0;
        loop {
            let key = format!("c{client}/k{}", rng.below(Self::KEYS as u64));
            let target = format!("/bucket/{key}");
            let attempt = |attempt| model.borrow_mut().get_mut(&key).unwrap().attempt = Some(attempt);
            let there = model.borrow()[&key].versions.len() as u64;
            let (answer, done) = match rng.below(10) {
                0..2 => {
                    attempt(Attempt::Put(None));
                    (walrus.req("DELETE", &target).send().await, Some(None))
                }
                2..4 if there > 0 => {
                    let id = model.borrow()[&key].versions[rng.below(there) as usize].0.clone();
                    attempt(Attempt::Remove(id.clone()));
                    (walrus.req("DELETE", &format!("{target}?versionId={id}")).send().await, None)
                }
                4..5 => {
                    let created = walrus.req("POST", &format!("{target}?uploads")).send().await;
                    let id = created.one("UploadId");
                    let body = bytes(&mut rng, 150_000);
                    let put = walrus.put(&format!("{target}?partNumber=1&uploadId={id}"), body.clone()).await;
                    if created.status != 200 || put.status != 200 {
                        return;
                    }
                    attempt(Attempt::Put(Some(body.clone())));
                    let complete =
                        walrus.req("POST", &format!("{target}?uploadId={id}")).body(one_part(put.header("etag")));
                    (complete.send().await, Some(Some(body)))
                }
                n => {
                    let body = bytes(&mut rng, if n < 7 { 3_000 } else { 200_000 });
                    attempt(Attempt::Put(Some(body.clone())));
                    (walrus.put(&target, body.clone()).await, Some(Some(body)))
                }
            };
            if answer.status >= 300 {
                return;
            }
            let mut model = model.borrow_mut();
            let key = model.get_mut(&key).unwrap();
            let version = answer.header("x-amz-version-id").to_owned();
            match done {
                Some(body) => key.versions.insert(0, (version, body)),
                None => key.versions.retain(|(v, _)| *v != version),
            }
            key.attempt = None;
        }
    }

    async fn check(&self, walrus: &Walrus<Store>) {
        let model = &self.0;
        let keys: Vec<String> = model.borrow().keys().cloned().collect();
        let mut current = Vec::new();
        for key in keys {
            let listed = walrus.get(&format!("/bucket?versions&prefix={key}")).await.ok();
            let mut found: Vec<(String, Body)> = Vec::new();
            // The ids begin with the time: newest first is their order backwards.
            let mut ids = listed.all("VersionId");
            ids.sort_by(|a, b| b.cmp(a));
            for id in ids {
                let got = walrus.get(&format!("/bucket/{key}?versionId={id}")).await;
                match got.status {
                    200 => found.push((id, Some(got.body.to_vec()))),
                    405 => found.push((id, None)),
                    status => panic!("{key} {id}: {status} {}", got.text()),
                }
            }
            let got = walrus.get(&format!("/bucket/{key}")).await;
            let body = (got.status == 200).then(|| got.body.to_vec());
            assert_eq!(
                body,
                found.first().and_then(|(_, b)| b.clone()),
                "{key}: the newest version is not the current one"
            );
            if body.is_some() {
                current.push(key.clone());
            }
            let mut model = model.borrow_mut();
            let entry = model.get_mut(&key).unwrap();
            let happened = match &entry.attempt {
                None => false,
                Some(Attempt::Put(body)) => {
                    found.first().is_some_and(|(_, b)| b == body) && found[1..] == entry.versions[..]
                }
                Some(Attempt::Remove(id)) => {
                    let left: Vec<_> = entry.versions.iter().filter(|(v, _)| v != id).cloned().collect();
                    found == left
                }
            };
            let lens =
                |v: &[(String, Body)]| v.iter().map(|(v, b)| (v.clone(), b.as_ref().map(Vec::len))).collect::<Vec<_>>();
            assert!(
                happened || found == entry.versions,
                "{key} has {:?}; acknowledged {:?}",
                lens(&found),
                lens(&entry.versions)
            );
            *entry = Key { versions: found, attempt: None };
        }
        assert_eq!(walrus.get("/bucket").await.ok().all("Key"), current);
    }

    async fn clear(&self, walrus: &Walrus<Store>) {
        let of_key =
            |(key, k): (&String, &Key)| k.versions.iter().map(|(v, _)| (key.clone(), v.clone())).collect::<Vec<_>>();
        let all: Vec<(String, String)> = self.0.borrow().iter().flat_map(of_key).collect();
        for (key, version) in all {
            walrus.req("DELETE", &format!("/bucket/{key}?versionId={version}")).send().await.ok();
        }
    }
}
