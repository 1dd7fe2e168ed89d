//! A bucket without versions: single and multipart uploads, overwrites, deletions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use karri_engine::sim::Rng;

use super::{Store, Workload, bytes, one_part};
use crate::client::Walrus;

type Body = Option<Vec<u8>>;

/// What a key may hold.
#[derive(Default, Clone, Debug)]
struct Key {
    acknowledged: Body,
    /// Set while an operation is under way.
    attempted: Option<Body>,
}

impl Key {
    fn allows(&self, found: &Body) -> bool {
        *found == self.acknowledged || self.attempted.as_ref() == Some(found)
    }
}

type Model = RefCell<BTreeMap<String, Key>>;

struct Objects(Model);

impl Default for Objects {
    fn default() -> Self {
        Self(RefCell::new(Self::keys().into_iter().map(|key| (key, Key::default())).collect()))
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_else_shows() {
    super::simulate::<Objects>(&[]);
}

impl Workload for Objects {
    const CLIENTS: usize = 4;
    const KEYS: usize = 4;

    async fn work(self: Rc<Self>, walrus: Rc<Walrus<Store>>, mut rng: Rng, client: usize) {
        let model = &self.0;
        loop {
            let key = format!("c{client}/k{}", rng.below(Self::KEYS as u64));
            let target = format!("/bucket/{key}");
            let body: Body = match rng.below(10) {
                0..2 => None,
                2..5 => Some(bytes(&mut rng, 3_000)),
                5..9 => Some(bytes(&mut rng, 200_000)),
                _ => {
                    multipart(&walrus, model, &mut rng, &key).await;
                    continue;
                }
            };
            model.borrow_mut().get_mut(&key).unwrap().attempted = Some(body.clone());
            let answer = match &body {
                None => walrus.req("DELETE", &target).send().await,
                Some(bytes) => walrus.put(&target, bytes.clone()).await,
            };
            settle(model, &key, answer.status, body);
            let found = walrus.get(&target).await;
            // A disk that lost its power answers errors; what it does answer must be right.
            if found.status == 200 || found.status == 404 {
                let found = (found.status == 200).then(|| found.body.to_vec());
                assert!(model.borrow()[&key].allows(&found), "{key} read back wrong");
            }
        }
    }

    async fn check(&self, walrus: &Walrus<Store>) {
        let model = &self.0;
        let keys: Vec<String> = model.borrow().keys().cloned().collect();
        let mut there = Vec::new();
        for key in keys {
            let got = walrus.get(&format!("/bucket/{key}")).await;
            let found = match got.status {
                200 => Some(got.body.to_vec()),
                404 => None,
                status => panic!("{key}: {status} {}", got.text()),
            };
            let mut model = model.borrow_mut();
            let entry = model.get_mut(&key).unwrap();
            assert!(
                entry.allows(&found),
                "{key} holds {:?} bytes; acknowledged {:?}, attempted {:?}",
                found.as_ref().map(Vec::len),
                entry.acknowledged.as_ref().map(Vec::len),
                entry.attempted.as_ref().map(|a| a.as_ref().map(Vec::len))
            );
            if found.is_some() {
                there.push(key);
            }
            *entry = Key { acknowledged: found, attempted: None };
        }
        assert_eq!(walrus.get("/bucket").await.ok().all("Key"), there);
    }

    async fn clear(&self, walrus: &Walrus<Store>) {
        for key in Self::keys() {
            walrus.req("DELETE", &format!("/bucket/{key}")).send().await.ok();
        }
    }
}

async fn multipart(walrus: &Walrus<Store>, model: &Model, rng: &mut Rng, key: &str) {
    let target = format!("/bucket/{key}");
    let created = walrus.req("POST", &format!("{target}?uploads")).send().await;
    let id = created.one("UploadId");
    if created.status != 200 {
        return;
    }
    let body = bytes(rng, 150_000);
    let mut etag = String::new();
    for _ in 0..=rng.below(2) {
        let put = walrus.put(&format!("{target}?partNumber=1&uploadId={id}"), body.clone()).await;
        if put.status != 200 {
            return;
        }
        etag = put.header("etag").to_owned();
    }
    if rng.below(4) == 0 {
        walrus.req("DELETE", &format!("{target}?uploadId={id}")).send().await;
        return;
    }
    model.borrow_mut().get_mut(key).unwrap().attempted = Some(Some(body.clone()));
    let done = walrus.req("POST", &format!("{target}?uploadId={id}")).body(one_part(&etag)).send().await;
    settle(model, key, done.status, Some(body));
}

fn settle(model: &Model, key: &str, status: u16, body: Body) {
    let mut model = model.borrow_mut();
    let key = model.get_mut(key).unwrap();
    if status < 300 {
        *key = Key { acknowledged: body, attempted: None };
    }
    // On an error it may or may not have happened: the attempt stays possible.
}
