//! Providers' tokens: which are believed, and the role that they open.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use karri_base::clock::{Clock as _, UnixMicros};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::authorize::Unsigned;
use super::oidc;
use super::sts::web_identity;
use super::tests::{ACCOUNT, ROOT, World, allow, world};
use crate::cloud::tests::text;
use crate::wire::Tree;

const URL: &str = "https://id.example.org/realms/team";

/// A provider: its key, and the file that the operator put there.
struct Issuer {
    key: EcdsaKeyPair,
    folder: tempfile::TempDir,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let point = key.public_key().as_ref();
        let half = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
            "x": half(&point[1..33]), "y": half(&point[33..])});
        let file = oidc::file(folder.path(), URL);
        assert!(file.ends_with("id.example.org%2Frealms%2Fteam.json"), "{}", file.display());
        std::fs::write(file, json!({ "keys": [jwk] }).to_string()).unwrap();
        Self { key, folder }
    }
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": "k1"}), claims)
    }
}

fn claims(w: &World) -> Value {
    let now = w.clock.now().0 / 1_000_000;
    json!({"iss": URL, "sub": "ann", "aud": "app", "exp": now + 600, "iat": now})
}

async fn ready() -> (World, Issuer, String) {
    let mut w = world().await;
    let issuer = Issuer::new();
    w.directory = w.directory.with_oidc(issuer.folder.path());
    let arn = text(
        &w.fine("CreateOpenIDConnectProvider", &[("Url", URL), ("ClientIDList.member.1", "app")]).await,
        "OpenIDConnectProviderArn",
    );
    assert_eq!(arn, format!("arn:aws:iam::{ACCOUNT}:oidc-provider/id.example.org/realms/team"));
    let trust = json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"Federated": arn},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {"id.example.org/realms/team:sub": "ann",
            "id.example.org/realms/team:aud": "app", "id.example.org/realms/team:app_id": "app"}}}});
    w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", &trust.to_string())]).await;
    w.fine("PutRolePolicy", &[("RoleName", "r"), ("PolicyName", "p"), ("PolicyDocument", &allow("s3:Get*", "*"))])
        .await;
    (w, issuer, arn)
}

async fn assume(w: &World, token: &str, more: &[(&str, &str)]) -> Result<String, String> {
    let role = format!("arn:aws:iam::{ACCOUNT}:role/r");
    let params = [("RoleArn", role.as_str()), ("RoleSessionName", "web"), ("WebIdentityToken", token)];
    let tree = Tree::new(params.into_iter().chain(more.iter().copied())).unwrap();
    let from = Unsigned {
        source: None,
        secure: false,
        now: w.clock.now(),
        region: "us-east-1".into(),
        decisions: Default::default(),
    };
    web_identity::answer(&w.directory, &tree, &from, "r-1").await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_provider_opens_the_role_that_trusts_it() {
    let (w, issuer, arn) = ready().await;
    let token = issuer.token(&claims(&w));
    let answer = assume(&w, &token, &[]).await.unwrap();
    assert_eq!(text(&answer, "SubjectFromWebIdentityToken"), "ann");
    assert_eq!((text(&answer, "Audience"), text(&answer, "Provider")), ("app".into(), arn));
    let (id, session) = (text(&answer, "AccessKeyId"), text(&answer, "SessionToken"));
    let key = (id.as_str(), session.as_str());
    assert!(w.may(key, "s3:GetObject", "*") && !w.may(key, "s3:PutObject", "*"));
    assert_eq!(w.caller(key).unwrap().key.arn, format!("arn:aws:sts::{ACCOUNT}:assumed-role/r/web"));
    let narrow = assume(&w, &token, &[("Policy", &allow("ec2:*", "*"))]).await.unwrap();
    assert!(!w.may((&text(&narrow, "AccessKeyId"), &text(&narrow, "SessionToken")), "s3:GetObject", "*"));
    // Signed, the action is none.
    let e = w.ask(ROOT, "sts", "AssumeRoleWithWebIdentity", &[]).await.unwrap_err();
    assert!(e.starts_with("AccessDenied"), "{e}");
}

#[tokio::test]
async fn tokens_that_prove_nothing_are_refused() {
    let (w, issuer, _) = ready().await;
    let with = |key: &str, value: Value| {
        let mut all = claims(&w);
        all[key] = value;
        all
    };
    let now = w.clock.now().0 / 1_000_000;
    let good = issuer.token(&claims(&w));
    let head = good.split('.').next().unwrap();
    let none = |alg: &str| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&json!({ "alg": alg })), part(&claims(&w)))
    };
    let tampered = {
        let parts: Vec<&str> = good.split('.').collect();
        format!("{head}.{}.{}", URL_SAFE_NO_PAD.encode(with("sub", json!("eve")).to_string()), parts[2])
    };
    let cases = [
        ("another's signature", Issuer::new().token(&claims(&w)), "InvalidIdentityToken"),
        ("changed", tampered, "InvalidIdentityToken"),
        ("no algorithm", none("none"), "InvalidIdentityToken"),
        ("a shared secret's", issuer.sign(&json!({"alg": "HS256", "kid": "k1"}), &claims(&w)), "InvalidIdentityToken"),
        ("another key", issuer.sign(&json!({"alg": "ES256", "kid": "k2"}), &claims(&w)), "InvalidIdentityToken"),
        ("another algorithm", issuer.sign(&json!({"alg": "RS256", "kid": "k1"}), &claims(&w)), "InvalidIdentityToken"),
        ("not for us", issuer.token(&with("aud", json!(["else"]))), "InvalidIdentityToken"),
        ("another issuer", issuer.token(&with("iss", json!("https://else"))), "InvalidIdentityToken"),
        ("over", issuer.token(&with("exp", json!(now - 61))), "ExpiredTokenException"),
        ("not yet", issuer.token(&with("nbf", json!(now + 61))), "InvalidIdentityToken"),
        ("without an end", issuer.token(&with("exp", Value::Null)), "InvalidIdentityToken"),
        ("somebody else", issuer.token(&with("sub", json!("eve"))), "AccessDenied"),
        ("garbage", "abc".into(), "InvalidIdentityToken"),
    ];
    for (what, token, code) in cases {
        let e = assume(&w, &token, &[]).await.expect_err(what);
        assert!(e.starts_with(code), "{what}: {e}");
    }
    std::fs::remove_file(oidc::file(issuer.folder.path(), URL)).unwrap();
    let e = assume(&w, &good, &[]).await.unwrap_err();
    assert!(e.starts_with("IDPCommunicationError") && !e.contains(".json"), "{e}");
}

/// RFC 7515, appendix A.2: its signature holds; what it lacks is a subject.
#[test]
fn the_standards_example_of_rs256_holds() {
    let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-\
             pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2Ca\
             pHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb5\
             4h4FRWyuXpoQ";
    let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9\
                     CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383Lc\
                     OLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywl\
                     VmtVrBp0igcN_IoypGlUPQGe77Rw";
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let keys = serde_json::from_value(json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]})).unwrap();
    let why = |token: &str| oidc::check(token, "joe", &keys, UnixMicros(0)).unwrap_err().to_string();
    let token = format!("eyJhbGciOiJSUzI1NiJ9.{claims}.{signature}");
    assert_eq!(oidc::issuer(&token).as_deref(), Some("joe"));
    assert!(why(&token).contains("lacks a claim"), "{}", why(&token));
    let mut changed = token.clone();
    changed.replace_range(30..31, "a");
    assert!(why(&changed).contains("signature"), "{}", why(&changed));
    for hostile in ["", ".", "..", "...", "a.b.c.d", "eyJhbGciOiJSUzI1NiJ9..", &"x".repeat(30_000)] {
        assert!(oidc::check(hostile, "joe", &keys, UnixMicros(0)).is_err() && oidc::issuer(hostile).is_none());
    }
}

#[tokio::test]
async fn providers_are_kept_and_changed() {
    let (w, _, arn) = ready().await;
    let this = ("OpenIDConnectProviderArn", arn.as_str());
    w.refused(ROOT, "CreateOpenIDConnectProvider", &[("Url", URL)], "EntityAlreadyExists").await;
    w.refused(ROOT, "CreateOpenIDConnectProvider", &[("Url", "ftp://x")], "InvalidInput").await;
    w.fine("AddClientIDToOpenIDConnectProvider", &[this, ("ClientID", "more")]).await;
    w.fine("AddClientIDToOpenIDConnectProvider", &[this, ("ClientID", "app")]).await;
    w.fine("RemoveClientIDFromOpenIDConnectProvider", &[this, ("ClientID", "gone")]).await;
    let print = "a".repeat(40);
    let update = [this, ("ThumbprintList.member.1", print.as_str())];
    w.fine("UpdateOpenIDConnectProviderThumbprint", &update).await;
    w.fine("TagOpenIDConnectProvider", &[this, ("Tags.member.1.Key", "k"), ("Tags.member.1.Value", "v")]).await;
    let got = w.fine("GetOpenIDConnectProvider", &[this]).await;
    assert!(got.contains("<member>app</member><member>more</member>") && got.contains(&print), "{got}");
    assert_eq!((text(&got, "Url"), text(&got, "Value")), ("id.example.org/realms/team".into(), "v".into()));
    assert!(w.fine("ListOpenIDConnectProviderTags", &[this]).await.contains("<Key>k</Key>"));
    let other = super::tests::OTHER_ROOT;
    w.refused(other, "GetOpenIDConnectProvider", &[this], "NoSuchEntity").await;
    assert!(!w.iam(other, "ListOpenIDConnectProviders", &[]).await.unwrap().contains("oidc-provider"));
    w.fine("DeleteOpenIDConnectProvider", &[this]).await;
    w.refused(ROOT, "DeleteOpenIDConnectProvider", &[this], "NoSuchEntity").await;
}
