use std::collections::BTreeSet;

use crate::client::Walrus;
use crate::run;

async fn filled(keys: impl IntoIterator<Item = String>) -> (Walrus, BTreeSet<String>) {
    let w = Walrus::new().await;
    w.put("/bucket", "").await.ok();
    let keys: BTreeSet<String> = keys.into_iter().collect();
    for key in &keys {
        w.put(&format!("/bucket/{key}"), key.clone()).await.ok();
    }
    (w, keys)
}

#[test]
fn thousands_in_pages_by_both_versions() {
    run(|| async {
        let (w, keys) = filled((0..2_500).map(|i| format!("d{}/s{}/k{i}", i % 7, i % 3))).await;
        let all: Vec<String> = keys.into_iter().collect();
        // Version 2, by tokens.
        let (mut got, mut token) = (Vec::new(), String::new());
        loop {
            let mut req = w.req("GET", "/bucket?list-type=2");
            if !token.is_empty() {
                req = req.query("continuation-token", &token);
            }
            let page = req.send().await.ok();
            assert_eq!(page.one("KeyCount"), page.all("Key").len().to_string());
            got.extend(page.all("Key"));
            token = page.one("NextContinuationToken");
            assert_eq!(page.one("IsTruncated") == "true", !token.is_empty());
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(got, all);
        // Version 1, by markers.
        let (mut got, mut marker) = (Vec::new(), String::new());
        loop {
            let page = w.req("GET", "/bucket?max-keys=333").query("marker", &marker).send().await.ok();
            got.extend(page.all("Key"));
            assert_eq!(page.one("NextMarker"), "", "only with a delimiter");
            if page.one("IsTruncated") == "false" {
                break;
            }
            marker = got.last().unwrap().clone();
        }
        assert_eq!(got, all);
        let page = w.get("/bucket?list-type=2&delimiter=/").await.ok();
        let prefixes: Vec<String> =
            page.all("CommonPrefixes").iter().map(|p| p.replace("<Prefix>", "").replace("</Prefix>", "")).collect();
        assert_eq!(prefixes, (0..7).map(|i| format!("d{i}/")).collect::<Vec<_>>());
        let page = w.get("/bucket?delimiter=/&prefix=d3/&max-keys=2").await.ok();
        assert_eq!((page.all("CommonPrefixes").len(), page.one("NextMarker")), (2, "d3/s1/".to_owned()));
        let page =
            w.req("GET", "/bucket?delimiter=/&prefix=d3/&max-keys=2").query("marker", "d3/s1/").send().await.ok();
        assert_eq!((page.all("CommonPrefixes").len(), page.one("IsTruncated")), (1, "false".to_owned()));
    });
}

#[test]
fn parameters() {
    run(|| async {
        let (w, _) = filled(["a b", "a&b", "c/ü", "d"].map(String::from)).await;
        assert_eq!(w.get("/bucket").await.ok().all("Key"), ["a b", "a&b", "c/ü", "d"]);
        let encoded = w.get("/bucket?encoding-type=url&prefix=a ").await.ok();
        assert_eq!((encoded.all("Key"), encoded.one("EncodingType")), (vec!["a%20b".to_owned()], "url".to_owned()));
        w.get("/bucket?encoding-type=base64").await.is(400, "InvalidArgument");
        w.get("/bucket?max-keys=-1").await.is(400, "InvalidArgument");
        let none = w.get("/bucket?max-keys=0").await.ok();
        assert_eq!((none.all("Key").len(), none.one("IsTruncated")), (0, "false".to_owned()));
        assert_eq!(w.get("/bucket?max-keys=5000").await.ok().one("MaxKeys"), "1000");
        let after = w.req("GET", "/bucket?list-type=2").query("start-after", "a&b").send().await.ok();
        assert_eq!((after.all("Key"), after.one("StartAfter")), (vec!["c/ü".into(), "d".into()], "a&b".to_owned()));
        w.req("GET", "/bucket?list-type=2").query("continuation-token", "eA").send().await.is(400, "InvalidArgument");
        assert!(w.get("/bucket?list-type=2").await.ok().all("Owner").is_empty());
        assert_eq!(w.get("/bucket?list-type=2&fetch-owner=true").await.ok().all("Owner").len(), 4);
        let line = w.get("/bucket?prefix=d").await.ok();
        assert_eq!((line.one("Size"), line.one("StorageClass")), ("1".to_owned(), "STANDARD".to_owned()));
    });
}
