//! Clients that send little, seldom. The clock is the simulation's.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;

use crate::client::{Answer, Walrus};
use crate::run;

/// A PUT whose pieces come each after so many seconds; how long it took.
async fn put(w: &Walrus, len: usize, pieces: Vec<(u64, usize)>) -> (Answer, Duration) {
    let body = futures_util::stream::iter(pieces).then(|(seconds, bytes)| async move {
        karri_engine::sleep(Duration::from_secs(seconds)).await;
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; bytes])))
    });
    let request = Request::builder().method("PUT").uri("/bucket/k").header("host", "localhost");
    let request = request.header("content-length", len).body(StreamBody::new(Box::pin(body))).unwrap();
    let began = karri_engine::now();
    let answer = w.answer(request).await;
    (answer, karri_engine::now() - began)
}

#[test]
fn a_body_comes_at_a_least_rate() {
    run(|| async {
        let w = Walrus::new().await;
        w.req("PUT", "/bucket").header("x-amz-acl", "public-read-write").send().await.ok();
        // A byte each 59 seconds; one each second; nothing at all.
        for (seconds, most) in [(59, 60), (1, 60), (100_000, 60)] {
            let (answer, took) = put(&w, 1000, vec![(seconds, 1); 1000]).await;
            answer.is(400, "RequestTimeout");
            assert!((50..=most).contains(&took.as_secs()), "{seconds}: {took:?}");
        }
        // It was fast, and stops being so.
        let (answer, took) = put(&w, 1 << 21, [(1, 1 << 20)].into_iter().chain(vec![(10, 1000); 100]).collect()).await;
        answer.is(400, "RequestTimeout");
        assert!((60..=121).contains(&took.as_secs()), "{took:?}");
        w.get("/bucket/k").await.is(404, "NoSuchKey");
        // Slow, with long pauses, and fast enough.
        let (answer, took) = put(&w, 20 * (64 << 10), vec![(50, 64 << 10); 20]).await;
        answer.ok();
        assert_eq!(took.as_secs(), 1000);
        // Short ones have all the time of a pause.
        let (answer, _) = put(&w, 2, vec![(29, 1); 2]).await;
        answer.ok();
        assert_eq!(w.get("/bucket/k").await.ok().body.len(), 2);
    });
}
