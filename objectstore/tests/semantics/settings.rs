//! What a bucket is set to do, it does: requesters pay, objects change their class, what cannot be is refused.

use karri_objectstore::ageing::{self, Aged};
use karri_objectstore::config::lifecycle::Calendar;

use crate::client::{Mode, Walrus};
use crate::run;

const PAYER: &str = "x-amz-request-payer";

fn payer(who: &str) -> String {
    format!("<RequestPaymentConfiguration><Payer>{who}</Payer></RequestPaymentConfiguration>")
}

#[test]
fn requesters_pay_and_say_so() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket/k", "x").await.ok();
        w.req("PUT", "/bucket?acl").header("x-amz-acl", "public-read-write").send().await.ok();
        w.req("PUT", "/bucket/k?acl").header("x-amz-acl", "public-read").send().await.ok();
        assert_eq!(w.get("/bucket?requestPayment").await.ok().one("Payer"), "BucketOwner");
        w.put("/bucket?requestPayment", payer("Nobody")).await.is(400, "MalformedXML");
        w.put("/bucket?requestPayment", payer("Requester")).await.ok();
        assert_eq!(w.get("/bucket?requestPayment").await.ok().one("Payer"), "Requester");

        let own = w.get("/bucket/k").await.ok();
        assert_eq!(own.header("x-amz-request-charged"), "", "the owner's requests are the owner's");
        for (method, target) in [("GET", "/bucket/k"), ("HEAD", "/bucket/k"), ("GET", "/bucket"), ("PUT", "/bucket/n")]
        {
            let refused = w.req(method, target).by("AK2").send().await;
            assert_eq!(refused.status, 403, "{method} {target}");
            assert_eq!(refused.header("x-amz-request-charged"), "");
            let nobody = w.req(method, target).anonymous().header(PAYER, "requester").send().await;
            assert_eq!(nobody.status, 403, "{method} {target}");
            let paid = w.req(method, target).by("AK2").header(PAYER, "requester").send().await.ok();
            assert_eq!(paid.header("x-amz-request-charged"), "requester", "{method} {target}");
        }
        let presigned = |value| w.req("GET", "/bucket/k").by("AK2").mode(Mode::Presigned(60)).query(PAYER, value);
        assert_eq!(presigned("requester").send().await.ok().header("x-amz-request-charged"), "requester");
        presigned("owner").send().await.is(403, "AccessDenied");

        // Copies out of it, and many deletes at once.
        w.req("PUT", "/theirs").by("AK2").send().await.ok();
        let copy = || w.req("PUT", "/theirs/c").by("AK2").header("x-amz-copy-source", "/bucket/k");
        copy().send().await.is(403, "AccessDenied");
        assert_eq!(copy().header(PAYER, "requester").send().await.ok().header("x-amz-request-charged"), "requester");
        let delete = "<Delete><Object><Key>n</Key></Object></Delete>";
        let post = || w.req("POST", "/bucket?delete").by("AK2").body(delete);
        post().send().await.is(403, "AccessDenied");
        post().header(PAYER, "requester").send().await.ok();

        w.put("/bucket?requestPayment", payer("BucketOwner")).await.ok();
        let free = w.req("GET", "/bucket/k").by("AK2").send().await.ok();
        assert_eq!((free.text().as_str(), free.header("x-amz-request-charged")), ("x", ""));
    });
}

#[test]
fn what_cannot_be_is_refused() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        w.put("/bucket.dotted", "").await.ok();
        let status = |s: &str| format!("<AccelerateConfiguration><Status>{s}</Status></AccelerateConfiguration>");
        w.put("/bucket?accelerate", status("Enabled")).await.is(501, "NotImplemented");
        assert_eq!(w.get("/bucket?accelerate").await.ok().all("Status"), [""; 0]);
        w.put("/bucket?accelerate", status("Suspended")).await.ok();
        assert_eq!(w.get("/bucket?accelerate").await.ok().one("Status"), "Suspended");
        w.put("/bucket?accelerate", status("Maybe")).await.is(400, "MalformedXML");
        w.put("/bucket.dotted?accelerate", status("Suspended")).await.is(400, "InvalidRequest");
        w.req("PUT", "/bucket/k").header("x-amz-storage-class", "GLACIER").send().await.is(400, "InvalidStorageClass");
        w.put("/bucket?lifecycle", rule("<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>"))
            .await
            .is(501, "NotImplemented");
        w.put("/bucket?lifecycle", rule("<Transition><Days>1</Days><StorageClass>ICE</StorageClass></Transition>"))
            .await
            .is(400, "MalformedXML");
    });
}

fn rule(actions: &str) -> String {
    format!(
        "<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><Prefix>old/</Prefix></Filter>{actions}</Rule></LifecycleConfiguration>"
    )
}

#[test]
fn lifecycle_rules_change_the_storage_class() {
    run(|| async {
        let w = Walrus::new().await;
        w.put("/bucket", "").await.ok();
        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
        w.put("/bucket/old/a", "1").await.ok();
        w.put("/bucket/old/a", "2").await.ok();
        w.req("PUT", "/bucket/old/ir").header("x-amz-storage-class", "GLACIER_IR").body("3").send().await.ok();
        w.put("/bucket/new/a", "4").await.ok();
        let to = |days: u32, class: &str| {
            format!("<Transition><Days>{days}</Days><StorageClass>{class}</StorageClass></Transition>")
        };
        let older = "<NoncurrentVersionTransition><NoncurrentDays>0</NoncurrentDays><StorageClass>ONEZONE_IA</StorageClass></NoncurrentVersionTransition>";
        let actions = to(0, "STANDARD_IA") + &to(365, "GLACIER_IR") + older;
        w.put("/bucket?lifecycle", rule(&actions)).await.ok();
        let calendar = Calendar { day_seconds: 1 };
        let modified = w.get("/bucket/old/a").await.header("last-modified").to_owned();
        let aged = ageing::round(&w.core, calendar).await.unwrap();
        assert_eq!(aged, Aged { moved: 2, ..Aged::default() });
        let moved = w.get("/bucket/old/a").await.ok();
        assert_eq!((moved.header("x-amz-storage-class"), moved.text().as_str()), ("STANDARD_IA", "2"));
        assert_eq!(moved.header("last-modified"), modified);
        assert_eq!(w.get("/bucket/old/ir").await.header("x-amz-storage-class"), "GLACIER_IR", "there is no way back");
        assert_eq!(w.get("/bucket/new/a").await.header("x-amz-storage-class"), "");
        let classes = w.get("/bucket?versions").await.ok().all("StorageClass");
        assert_eq!(classes, ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"]);
        assert_eq!(ageing::round(&w.core, calendar).await.unwrap(), Aged::default(), "once is enough");
    });
}
