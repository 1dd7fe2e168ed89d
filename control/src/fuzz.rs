//! Hostile bytes against what the APIs read before anybody is believed; see [`karri_base::fuzz`].

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use karri_base::aws::policy::Context;
use karri_base::clock::UnixMicros;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::identity::authorize::{parameters_context, tags_context, tags_given};
use crate::identity::oidc::{self, Keys};
use crate::wire::generated::{ec2, iam, sts};
use crate::wire::query::{DEPTH_MAX, decode_form};
use crate::wire::{FromQuery, Tree};

const URL: &str = "https://id.example.org";
/// 2023-11-14T22:13:20Z.
const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// A provider, made once in a run, and its set of keys.
fn provider() -> &'static (EcdsaKeyPair, Keys) {
    static MADE: OnceLock<(EcdsaKeyPair, Keys)> = OnceLock::new();
    MADE.get_or_init(|| {
        let (how, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(how, &random).expect("a key is made");
        let key = EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).expect("it was just made");
        let point = key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let set = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":"{x}","y":"{y}"}}]}}"#);
        let keys = serde_json::from_str(&set).expect("a set of keys");
        (key, keys)
    })
}

fn signed(header: &[u8], claims: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = provider().0.sign(&SystemRandom::new(), text.as_bytes()).expect("it signs");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

karri_base::fuzz::targets! {
    /// Tokens that nobody signed: none is believed.
    fn unsigned_tokens(data) from [
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUub3JnIiwic3ViIjoiYSIsImV4cCI6OTk5OTk5OTk5OX0.AAAA",
        "eyJhbGciOiJub25lIn0.e30.",
        "a.b.c",
    ] {
        let text = String::from_utf8_lossy(data);
        let _ = oidc::issuer(&text);
        assert!(oidc::check(&text, URL, &provider().1, NOW).is_err(), "a signature was guessed");
        assert!(oidc::file(std::path::Path::new("/keys"), &text).starts_with("/keys"), "a name stays in its folder");
    }

    /// Claims of a provider that says what it likes: what is believed is its own, and in time.
    fn claims(data) from [
        r#"{"iss":"https://id.example.org","sub":"ann","aud":["app","b"],"azp":"app","exp":1700000600,"nbf":1.5,"amr":"pwd",
            "https://aws.amazon.com/tags":{"principal_tags":{"team":["blue"],"x":"y"}}}"#,
        r#"{"iss":"https://id.example.org/","sub":"","exp":1e400}"#,
    ] {
        let token = signed(br#"{"alg":"ES256","kid":"k"}"#, data);
        if oidc::check(&token, URL, &provider().1, NOW).is_ok() {
            let said: serde_json::Value = serde_json::from_slice(data).expect("claims are JSON");
            assert_eq!(said["iss"].as_str().map(|iss| iss.trim_end_matches('/')), Some(URL));
            assert!(said["exp"].as_f64().is_some_and(|exp| exp > 1_699_999_939.0), "its time is over");
        }
        // The header is hostile as well.
        let token = signed(data, br#"{"iss":"https://id.example.org","sub":"ann","exp":1700000600}"#);
        if oidc::check(&token, URL, &provider().1, NOW).is_ok() {
            let said: serde_json::Value = serde_json::from_slice(data).expect("a header is JSON");
            assert_eq!(said["alg"], "ES256");
        }
    }

    /// Sets of keys: none of them made a signature of ours.
    fn key_sets(data) from [
        r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"RS256","kid":"a"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#,
        r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"EC","crv":"P-384","x":"","y":""}]}"#,
    ] {
        let Ok(keys) = serde_json::from_slice::<Keys>(data) else { return };
        static TOKEN: OnceLock<String> = OnceLock::new();
        let token = TOKEN.get_or_init(|| signed(br#"{"alg":"ES256"}"#, br#"{"iss":"https://id.example.org","sub":"a","exp":1700000600}"#));
        assert!(oidc::check(token, URL, &keys, NOW).is_err());
    }

    /// Forms of the query protocols, read as every kind of request.
    fn query_forms(data) from [
        "Action=RunInstances&ImageId=ami-1&MinCount=1&MaxCount=2&TagSpecification.1.ResourceType=instance\
            &TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b%20c&BlockDeviceMapping.1.Ebs.VolumeSize=8",
        "Action=SimulateCustomPolicy&PolicyInputList.member.1=%7B%7D&ActionNames.member.1=s3%3AGetObject&MaxItems=3\
            &ContextEntries.member.1.ContextKeyName=a&ContextEntries.member.1.ContextKeyValues.member.2=b",
        "RoleArn=a&RoleSessionName=b&Tags.member.1.Key=k&Tags.member.1.Value=v&DurationSeconds=900&Policy=",
        "UserName=a&Tags.member.1.Key=k&Tags.member.1.Value=v&Tags.member.2.Key=K&PermissionsBoundary=x&Path=/",
        "Filter.1.Name=tag:a&Filter.1.Value.1=b&InstanceId.1=i-1&MaxResults=5&NextToken=x&DryRun=true",
        "SAMLAssertion=&KeyName=k&PublicKeyMaterial=c3NoLXJzYQ%3D%3D&StartTime=2026-01-31T12:00:00Z&a.b.c=1&a..b=2&.=3",
    ] {
        let Ok(pairs) = decode_form(data) else { return };
        let Ok(tree) = Tree::new(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))) else { return };
        let flat = tree.flat();
        assert_eq!(flat.len(), pairs.len(), "no parameter is lost");
        assert!(flat.iter().all(|(name, _)| name.split('.').count() <= DEPTH_MAX));
        for (name, value) in &flat {
            assert_eq!(tree.at(name), Some(*value));
        }
        let mut context = Context::default();
        parameters_context(&mut context, &tree);
        let _ = tags_context(&mut context, &tags_given(&tree), "");
        fn read<R: FromQuery>(tree: &Tree) {
            let _ = R::from_query(&tree.query());
        }
        read::<ec2::RunInstancesRequest>(&tree);
        read::<ec2::DescribeInstancesRequest>(&tree);
        read::<ec2::ImportKeyPairRequest>(&tree);
        read::<ec2::CreateTagsRequest>(&tree);
        read::<iam::CreateUserRequest>(&tree);
        read::<iam::SimulateCustomPolicyRequest>(&tree);
        read::<iam::GetAccountAuthorizationDetailsRequest>(&tree);
        read::<iam::UpdateAccountPasswordPolicyRequest>(&tree);
        read::<sts::AssumeRoleRequest>(&tree);
        read::<sts::GetFederationTokenRequest>(&tree);
        let _ = tree.unread();
    }
}
