//! Event notifications: what is told is in the store when the change is.

use karri_bulk::memory::MemoryBulk;
use karri_meta::memory::MemoryStore;
use karri_objectstore::ageing;
use karri_objectstore::config::lifecycle::Calendar;
use karri_objectstore::notify::{Destination, Place, Told};
use karri_objectstore::operator::Operator;
use karri_objectstore::outbound::Endpoint;

use crate::client::{ACCOUNT, OTHER, Walrus};
use crate::run;

const QUEUE: &str = "arn:aws:sqs:us-east-1:000000000001:jobs";

async fn walrus() -> Walrus {
    let w = Walrus::over(MemoryStore::new(), MemoryBulk::new(4 << 30)).await;
    let url = http::Uri::from_static("http://127.0.0.1:1/");
    let endpoint = Endpoint::new(&url, None).unwrap().into();
    let hook = Place::Webhook { url, token: None, endpoint };
    let mut operator = Operator::default();
    for to in [
        Destination::new("jobs", Place::Queue("/nowhere".into()), vec![]),
        Destination::new("hook", hook.clone(), vec![ACCOUNT.into()]),
        Destination::new("theirs", hook, vec![OTHER.into()]),
    ] {
        operator.destinations.insert(to.id(), to.into());
    }
    assert!(w.core.shared.operator.set(operator).is_ok());
    w.put("/bucket", "").await.ok();
    w
}

fn configuration(element: &str, target: &str, arn: &str, inner: &str) -> String {
    let one = format!("<{element}><Id>one</Id><{target}>{arn}</{target}>{inner}</{element}>");
    format!("<NotificationConfiguration>{one}</NotificationConfiguration>")
}

fn queue(inner: &str) -> String {
    configuration("QueueConfiguration", "Queue", QUEUE, inner)
}

/// What waits, oldest first, and is taken out.
async fn told(w: &Walrus) -> Vec<serde_json::Value> {
    let mut all: Vec<_> = w.meta.dump().into_iter().filter(|(key, _)| key[0] == b'L').collect();
    all.sort();
    let mut batch = karri_meta::Batch::new();
    batch.dels = all.iter().map(|(key, _)| key.clone()).collect();
    w.core.meta.commit(batch).await.unwrap();
    all.iter().map(|(_, raw)| serde_json::from_slice(&Told::decode(raw).unwrap().body).unwrap()).collect()
}

async fn names(w: &Walrus) -> Vec<String> {
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let of = |v: serde_json::Value| {
        let record = &v["Records"][0];
        format!("{} {}", text(&record["eventName"]), text(&record["s3"]["object"]["key"]))
    };
    told(w).await.into_iter().map(of).collect()
}

#[test]
fn configurations_are_checked() {
    run(|| async {
        let w = walrus().await;
        let event = "<Event>s3:ObjectCreated:*</Event>";
        let put = |document: String| w.put("/bucket?notification", document);
        for arn in [
            "arn:aws:sqs:us-east-1:000000000001:absent",
            "arn:aws:sqs:us-east-1:000000000002:jobs",
            "arn:aws:sqs:us-east-1:000000000001:hook",
        ] {
            put(configuration("QueueConfiguration", "Queue", arn, event)).await.is(400, "InvalidArgument");
        }
        let topic = |name: &str| {
            put(configuration("TopicConfiguration", "Topic", &format!("arn:aws:sns:us-east-1::{name}"), event))
        };
        topic("theirs").await.is(400, "InvalidArgument");
        topic("hook").await.ok();
        put(queue("<Event>s3:ReducedRedundancyLostObject</Event>")).await.is(400, "InvalidArgument");
        put("<NotificationConfiguration><EventBridgeConfiguration/></NotificationConfiguration>".into())
            .await
            .is(501, "NotImplemented");
        let two = |a: &str, b: &str| {
            let one = |inner: &str| format!("<QueueConfiguration><Queue>{QUEUE}</Queue>{inner}</QueueConfiguration>");
            put(format!("<NotificationConfiguration>{}{}</NotificationConfiguration>", one(a), one(b)))
        };
        let filter = |name: &str, value: &str| {
            format!(
                "<Event>s3:ObjectCreated:*</Event><Filter><S3Key><FilterRule><Name>{name}</Name><Value>{value}</Value></FilterRule></S3Key></Filter>"
            )
        };
        two(event, "<Event>s3:ObjectCreated:Put</Event>").await.is(400, "InvalidArgument");
        two(&filter("prefix", "a"), &filter("prefix", "ab")).await.is(400, "InvalidArgument");
        two(&filter("prefix", "a"), &filter("suffix", "b")).await.is(400, "InvalidArgument");
        two(&filter("prefix", "a"), &filter("prefix", "b")).await.ok();
        assert_eq!(w.get("/bucket?notification").await.ok().all("Queue").len(), 2);
        let tests = told(&w).await;
        assert!(tests.iter().all(|t| t["Event"] == "s3:TestEvent" && t["Bucket"] == "bucket"), "{tests:?}");
        assert_eq!(tests.len(), 2, "one for the topic, one for the queue");
        put("<NotificationConfiguration/>".into()).await.ok();
        w.put("/bucket/a", "x").await.ok();
        assert!(told(&w).await.is_empty());
    });
}

#[test]
fn everything_that_happens_is_told() {
    run(|| async {
        let w = walrus().await;
        let all = [
            "ObjectCreated:*",
            "ObjectRemoved:*",
            "ObjectTagging:*",
            "ObjectAcl:Put",
            "LifecycleExpiration:*",
            "LifecycleTransition",
        ];
        let events: String = all.map(|e| format!("<Event>s3:{e}</Event>")).concat();
        let filter = "<Filter><S3Key><FilterRule><Name>prefix</Name><Value>in/</Value></FilterRule></S3Key></Filter>";
        w.put("/bucket?notification", queue(&(events + filter))).await.ok();
        assert_eq!(told(&w).await.len(), 1);

        let put = w.req("PUT", "/bucket/in/a b").body("hello").send().await.ok();
        w.put("/bucket/out", "not told").await.ok();
        w.req("PUT", "/bucket/in/refused").header("if-match", "\"x\"").send().await.is(404, "NoSuchKey");
        let mut records = told(&w).await;
        assert_eq!(records.len(), 1, "{records:?}");
        let record = records.remove(0)["Records"][0].take();
        let s3 = &record["s3"];
        for (got, want) in [
            (&record["eventVersion"], "2.1"),
            (&record["eventSource"], "aws:s3"),
            (&record["awsRegion"], "us-east-1"),
            (&record["eventName"], "ObjectCreated:Put"),
            (&record["userIdentity"]["principalId"], "arn:aws:iam::000000000001:user/admin"),
            (&record["responseElements"]["x-amz-request-id"], put.header("x-amz-request-id")),
            (&s3["configurationId"], "one"),
            (&s3["bucket"]["name"], "bucket"),
            (&s3["bucket"]["arn"], "arn:aws:s3:::bucket"),
            (&s3["bucket"]["ownerIdentity"]["principalId"], ACCOUNT),
            (&s3["object"]["key"], "in/a+b"),
            (&s3["object"]["eTag"], "5d41402abc4b2a76b9719d911017c592"),
        ] {
            assert_eq!(got, want, "{record}");
        }
        assert_eq!(s3["object"]["size"], 5);
        assert_eq!(s3["object"]["sequencer"].as_str().unwrap().len(), 16);

        w.req("PUT", "/bucket/in/c").header("x-amz-copy-source", "/bucket/out").send().await.ok();
        let tags = "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>";
        w.put("/bucket/in/c?tagging", tags).await.ok();
        w.req("DELETE", "/bucket/in/c?tagging").send().await.ok();
        w.req("PUT", "/bucket/in/c?acl").header("x-amz-acl", "public-read").send().await.ok();
        w.req("DELETE", "/bucket/in/c").send().await.ok();
        w.req("DELETE", "/bucket/in/c").send().await.ok();
        let delete = "<Delete><Object><Key>in/a b</Key></Object><Object><Key>out</Key></Object></Delete>";
        w.req("POST", "/bucket?delete").body(delete).send().await.ok();
        let id = w.req("POST", "/bucket/in/m?uploads").send().await.ok().one("UploadId");
        let part = w.put(&format!("/bucket/in/m?partNumber=1&uploadId={id}"), "x").await.ok();
        let complete = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            part.header("etag")
        );
        w.req("POST", &format!("/bucket/in/m?uploadId={id}")).body(complete).send().await.ok();
        assert_eq!(
            names(&w).await,
            [
                "ObjectCreated:Copy in/c",
                "ObjectTagging:Put in/c",
                "ObjectTagging:Delete in/c",
                "ObjectAcl:Put in/c",
                "ObjectRemoved:Delete in/c",
                "ObjectRemoved:Delete in/a+b",
                "ObjectCreated:CompleteMultipartUpload in/m",
            ]
        );

        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        w.put("/bucket?versioning", on).await.ok();
        let put = w.put("/bucket/in/v", "1").await.ok();
        let marker = w.req("DELETE", "/bucket/in/v").send().await.ok();
        let records = told(&w).await;
        let version = |i: usize| records[i]["Records"][0]["s3"]["object"]["versionId"].as_str().unwrap();
        assert_eq!((version(0), version(1)), (put.header("x-amz-version-id"), marker.header("x-amz-version-id")));
        w.req("DELETE", &format!("/bucket/in/v?versionId={}", version(1))).send().await.ok();
        assert_eq!(names(&w).await, ["ObjectRemoved:Delete in/v"]);

        let rule = "<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><Prefix>in/v</Prefix></Filter><Expiration><Date>2020-01-01</Date></Expiration></Rule><Rule><ID>s</ID><Status>Enabled</Status><Filter><Prefix>in/m</Prefix></Filter><Transition><Days>0</Days><StorageClass>STANDARD_IA</StorageClass></Transition></Rule></LifecycleConfiguration>";
        w.put("/bucket?lifecycle", rule).await.ok();
        ageing::round(&w.core, Calendar { day_seconds: 1 }).await.unwrap();
        assert_eq!(names(&w).await, ["LifecycleTransition in/m", "LifecycleExpiration:DeleteMarkerCreated in/v"]);
    });
}
