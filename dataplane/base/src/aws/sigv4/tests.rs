//! AWS's published vectors: the SigV4 test suite, the General Reference and the S3 API Reference.

use http::{Method, Request};

use super::*;
use crate::aws::verify::parse_amz_date;

const SUITE: Signer<'static> = Signer {
    access_key_id: "AKIDEXAMPLE",
    secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    session_token: None,
    region: "us-east-1",
    service: "service",
};
const S3: Signer<'static> = Signer {
    access_key_id: "AKIAIOSFODNN7EXAMPLE",
    secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    session_token: None,
    region: "us-east-1",
    service: "s3",
};

fn at(time: &str) -> UnixMicros {
    parse_amz_date(time).expect("a time")
}

/// The signature of a request with headers `host` and `x-amz-date` and `more`, as the suite builds them.
fn suite(method: &str, path: &str, query: &str, more: &[(&'static str, &str)], body: &[u8]) -> String {
    let mut headers = HeaderMap::new();
    headers.insert("host", "example.amazonaws.com".parse().expect("a value"));
    headers.insert("x-amz-date", "20150830T123600Z".parse().expect("a value"));
    for (name, value) in more {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let request = CanonicalRequest {
        method,
        path,
        query: &canonical_query(&parse_query(query)),
        headers: &canonical_headers(&headers, &names),
        signed_headers: &names.join(";"),
        payload_hash: &sha256_hex(body),
    };
    let scope = Scope { date: "20150830", region: SUITE.region, service: SUITE.service };
    signature(&signing_key(SUITE.secret, &scope), &request.string_to_sign("20150830T123600Z", &scope))
}

#[test]
fn the_test_suites_requests_have_its_signatures() {
    let check = |expected: &str, got: String| assert_eq!(got, expected);
    let vanilla = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
    check(vanilla, suite("GET", "/", "", &[], b""));
    // get-relative, get-slash-dot-slash, get-slash
    for path in ["/example/..", "/./", "//", "/example1/example2/../.."] {
        check(vanilla, suite("GET", path, "", &[], b""));
    }
    // get-utf8, get-space
    check("8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85", suite("GET", "/\u{1234}", "", &[], b""));
    // get-vanilla-query-order-key-case
    let ordered = "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";
    check(ordered, suite("GET", "/", "Param2=value2&Param1=value1", &[], b""));
    // get-vanilla-query-unreserved
    let unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    check(
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
        suite("GET", "/", &format!("{unreserved}={unreserved}"), &[], b""),
    );
    // get-header-value-trim
    check(
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        suite("GET", "/", "", &[("my-header1", " value1"), ("my-header2", "\"a   b   c\"")], b""),
    );
    // post-vanilla, post-x-www-form-urlencoded
    check("5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b", suite("POST", "/", "", &[], b""));
    check(
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        suite("POST", "/", "", &[("content-type", "application/x-www-form-urlencoded")], b"Param1=value1"),
    );
}

#[test]
fn the_general_references_signing_key() {
    let scope = Scope { date: "20150830", region: "us-east-1", service: "iam" };
    let key = signing_key(SUITE.secret, &scope);
    assert_eq!(hex::encode(key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    let cache = KeyCache::default();
    assert_eq!([cache.get(SUITE.secret, &scope), cache.get(SUITE.secret, &scope)], [key, key]);
    assert_ne!(cache.get("another", &scope), key);
}

/// Signs a request as S3's reference does and answers the signature.
fn s3(request: http::request::Builder, payload: Payload<'_>) -> String {
    let (mut parts, ()) = request.body(()).expect("a request").into_parts();
    sign(&mut parts, payload, &S3, at("20130524T000000Z")).expect("signs");
    let authorization = parts.headers[AUTHORIZATION].to_str().expect("text").to_owned();
    authorization.split_once("Signature=").expect("a signature").1.to_owned()
}

#[test]
fn the_s3_references_examples() {
    let get = |path_and_query: &str| Request::get(format!("http://examplebucket.s3.amazonaws.com/{path_and_query}"));
    assert_eq!(
        s3(get("test.txt").header("range", "bytes=0-9"), Payload::Bytes(b"")),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
    assert_eq!(
        s3(get("?lifecycle"), Payload::Sha256(EMPTY_SHA256)),
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    );
    assert_eq!(
        s3(get("?max-keys=2&prefix=J"), Payload::Bytes(b"")),
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    );
}

#[test]
fn the_s3_references_presigned_example() {
    let uri: Uri = "https://examplebucket.s3.amazonaws.com/test.txt".parse().expect("a URI");
    let signed = presign(&Method::GET, &uri, 86400, &S3, at("20130524T000000Z")).expect("signs");
    assert_eq!(
        signed.to_string(),
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
    assert!(presign(&Method::GET, &uri, 0, &S3, at("20130524T000000Z")).is_err());
    assert!(presign(&Method::GET, &uri, PRESIGN_SECONDS_MAX + 1, &S3, at("20130524T000000Z")).is_err());
}

#[test]
fn an_s3_path_is_encoded_once_and_left_alone() {
    let text = |path| {
        let request =
            CanonicalRequest { method: "GET", path, query: "", headers: "", signed_headers: "", payload_hash: "" };
        request.text("s3").lines().nth(1).expect("a path").to_owned()
    };
    assert_eq!(text("/b/a//b/../c%20d%2Be+f"), "/b/a//b/../c%20d%2Be%2Bf");
}
