//! Hostile bytes against parsers, on the stable toolchain and under libFuzzer with the same functions.
//!
//! Each crate that parses what others send has a module `fuzz` made by [`targets!`](crate::fuzz_targets): one public
//! function per parser, and a test of the same name that feeds it mutated seeds. A target panics where the parser breaks
//! a promise; whatever else it does is fine.
//!
//! | run | how |
//! |---|---|
//! | every test run | a few hundred milliseconds each, the same inputs every time |
//! | `make fuzz SECONDS=60 TARGET=fuzz::tests::NAME` | so long each, other inputs every time; prints what replays a failure |
//! | `fuzz/run CRATE_NAME 60` | libFuzzer, where cargo-fuzz and a nightly compiler are installed |

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::aws::arn::Arn;
use crate::aws::keys::{Key, KeyRing};
use crate::aws::sigv4::{canonical_query, parse_query};
use crate::aws::verify::{HeaderAuth, QueryAuth, Verifier};
use crate::clock::UnixMicros;
use crate::config::{Config, Credentials};

/// Makes fuzz targets: `targets! { /// What it is. fn name(data) from [b"seed", ...] { body } }` in `src/fuzz.rs`.
#[macro_export]
macro_rules! fuzz_targets {
    ($($(#[$doc:meta])* fn $name:ident($data:ident) from [$($seed:expr),+ $(,)?] $body:block)+) => {
        $($(#[$doc])* pub fn $name($data: &[u8]) $body)+

        #[cfg(test)]
        mod tests {
            #[allow(unused_imports, reason = "seeds may name nothing")]
            use super::*;

            $(#[test] fn $name() {
                $crate::fuzz::smoke(stringify!($name), &[$(AsRef::<[u8]>::as_ref($seed)),+], super::$name);
            })+
        }
    };
}
pub use crate::fuzz_targets as targets;

/// Inputs of an ordinary test run, and the longest time for them.
const INPUTS: u64 = 20_000;
const TIME_MAX: Duration = Duration::from_millis(500);
/// No input is longer.
const LENGTH_MAX: usize = 64 << 10;

/// Feeds `target` the seeds, then mutations of them: a fixed set, or with `KARRI_FUZZ_SECONDS` for so long from a fresh
/// start. `KARRI_FUZZ_SEED` replays one input.
///
/// # Panics
/// Where the target does, after printing the input and the command that replays it.
pub fn smoke(name: &str, seeds: &[&[u8]], target: fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    for seed in seeds {
        run(name, None, seed, target);
    }
    if let Some(replay) = number("KARRI_FUZZ_SEED") {
        return run(name, Some(replay), &input(replay, seeds), target);
    }
    let (first, inputs, time) = match number("KARRI_FUZZ_SECONDS") {
        Some(seconds) => (rand::random::<u64>() >> 16, u64::MAX, Duration::from_secs(seconds)),
        None => (0, INPUTS, TIME_MAX),
    };
    let began = Instant::now();
    let mut done = 0;
    while done < inputs && began.elapsed() < time {
        let seed = first.wrapping_add(done);
        run(name, Some(seed), &input(seed, seeds), target);
        done += 1;
    }
    println!("fuzz {name}: {done} inputs in {:?}", began.elapsed());
}

fn run(name: &str, seed: Option<u64>, input: &[u8], target: fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("fuzz {name}: failed on {} bytes: {}", input.len(), input.escape_ascii());
        if let Some(seed) = seed {
            eprintln!("replay: KARRI_FUZZ_SEED={seed} cargo test --release fuzz::tests::{name}");
        }
        resume_unwind(panic);
    }
}

/// The input that a number stands for.
fn input(number: u64, seeds: &[&[u8]]) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(number);
    let pick = |rng: &mut StdRng| seeds[rng.random_range(0..seeds.len())];
    let mut bytes = if rng.random_ratio(1, 16) {
        (0..rng.random_range(0..256)).map(|_| rng.random()).collect()
    } else {
        pick(&mut rng).to_vec()
    };
    for _ in 0..rng.random_range(1..6) {
        mutate(&mut bytes, &mut rng, pick);
    }
    bytes.truncate(LENGTH_MAX);
    bytes
}

fn mutate<'a>(bytes: &mut Vec<u8>, rng: &mut StdRng, pick: impl Fn(&mut StdRng) -> &'a [u8]) {
    const INTERESTING: [u64; 10] = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, u64::MAX >> 1, u64::MAX];
    let at = rng.random_range(0..=bytes.len());
    let length = rng.random_range(0..=(bytes.len() - at).min(16));
    match rng.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => drop(bytes.drain(at..at + length)),
        3 => bytes.insert(at, rng.random()),
        4 => {
            let copy = bytes[at..at + length].to_vec();
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let other = pick(rng);
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len());
            bytes.splice(at..at + length, other[from..to].iter().copied());
        }
        6 => {
            let number = INTERESTING[rng.random_range(0..INTERESTING.len())];
            let width = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        _ => bytes.truncate(at),
    }
}

fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

const SESSION_ID: &str = "ASIAFUZZFUZZFUZZFUZZ";

fn session_of() -> crate::aws::session::Session {
    crate::aws::session::Session {
        of: crate::aws::session::Of::Role { id: "AROAFUZZ".into(), name: "me".into() },
        issued_us: 0,
        expires_us: 10,
        policies: Some(vec![r#"{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#.into()]),
        tags: [("team".to_owned(), "blue".to_owned())].into(),
        keys: std::collections::BTreeMap::new(),
    }
}

fn session_sealed() -> String {
    crate::aws::session::SessionKey::new([7; 32]).seal(SESSION_ID, &session_of(), [1; 12])
}

#[cfg(test)]
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/ec2/aws4_request, \
    SignedHeaders=content-type;host;x-amz-date, \
    Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
#[cfg(test)]
const PRESIGNED: &str = "Action=DescribeRegions&X-Amz-Algorithm=AWS4-HMAC-SHA256\
    &X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fec2%2Faws4_request&X-Amz-Date=20150830T123600Z\
    &X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
    &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
#[cfg(test)]
const VERSION_2: &str = "AWSAccessKeyId=AKIDEXAMPLE&Action=DescribeInstances&SignatureMethod=HmacSHA256\
    &SignatureVersion=2&Timestamp=2015-08-30T12%3A36%3A00Z&Version=2009-03-31&Signature=i91nKc4PWAt0JJIdXwz9HxZC";

targets! {
    /// SigV4's `Authorization` header: what is accepted has the form that it must have.
    fn authorization_header(data) from [AUTHORIZATION] {
        if let Ok(auth) = HeaderAuth::parse(&text(data)) {
            assert!(auth.signature.len() == 64 && auth.signed_headers.split(';').any(|name| name == "host"));
            assert_eq!(auth.credential.scope.date.len(), 8);
            let again = format!(
                "AWS4-HMAC-SHA256 Credential={}/{},SignedHeaders={},Signature={}",
                auth.credential.access_key_id, auth.credential.scope, auth.signed_headers, auth.signature
            );
            assert_eq!(HeaderAuth::parse(&again).as_ref(), Ok(&auth));
        }
    }

    /// A presigned query; its canonical form is its own canonical form.
    fn presigned_query(data) from [PRESIGNED, VERSION_2, "a=b&&c&=d&%zz=%&+=%2B"] {
        let pairs = parse_query(&text(data));
        if let Ok(auth) = QueryAuth::parse(&pairs) {
            assert!((1..=604_800).contains(&auth.seconds));
        }
        let canonical = canonical_query(&pairs);
        assert_eq!(canonical_query(&parse_query(&canonical)), canonical);
    }

    /// A whole request: lines of target, `authorization`, `x-amz-date`, then the body. Nobody gets in.
    fn verify_request(data) from [
        &format!("/?{PRESIGNED}\n\n\n"),
        &format!("/?{VERSION_2}\n\n\n"),
        &format!("/\n{AUTHORIZATION}\n20150830T123600Z\nAction=DescribeRegions"),
        &format!("/\n\n\n{VERSION_2}"),
    ] {
        let mut lines = data.splitn(4, |&b| b == b'\n');
        let mut line = || lines.next().unwrap_or_default();
        let mut request = http::Request::post(line()).header("host", "localhost");
        for name in ["authorization", "x-amz-date"] {
            let value = line();
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        let Ok(request) = request.body(()) else { return };
        let ring = KeyRing::new("123456789012".parse().map(|account| Key {
            access_key_id: "AKIDEXAMPLE".into(),
            secret: "not to be guessed".into(),
            account,
            arn: "arn:aws:iam::123456789012:user/admin".into(),
        }));
        // 2015-08-30T12:36:00Z
        let verified = Verifier::new(ring).verify(&request.into_parts().0, line(), UnixMicros(1_440_938_160_000_000));
        assert!(verified.is_err(), "a signature was guessed");
    }

    /// An ARN that is accepted is written as it was read.
    fn arn(data) from ["arn:aws:iam::123456789012:user/a/b", "arn:aws:s3:::bucket/a:b"] {
        let text = text(data);
        if let Ok(arn) = text.parse::<Arn>() {
            assert_eq!(arn.to_string(), text);
            arn.kind_and_name();
        }
    }

    /// Policies: what is accepted can be asked, in every place, and nothing is both allowed and denied.
    fn policy_document(data) from [
        r#"{"Version":"2012-10-17","Id":"i","Statement":[{"Sid":"a","Effect":"Allow","Action":["s3:Get*","*"],
            "NotResource":"arn:aws:s3:::${aws:username}/*","Condition":{"ForAnyValue:StringLikeIfExists":
            {"aws:x":["${aws:userid, 'd'}*",1,true]},"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"Null":{"a:b":true},
            "DateLessThan":{"aws:CurrentTime":"2023-11-14T22:13:20Z"},"ArnLike":{"a:b":"arn:aws:iam::*:user/?"}}}]}"#,
        r#"{"Statement":{"Effect":"Deny","NotPrincipal":{"AWS":["123456789012","arn:aws:iam::123456789012:user/a"],
            "Service":"a.b","Federated":"x"},"NotAction":"s3:*","Resource":"*"}}"#,
        r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"}}"#,
    ] {
        use crate::aws::policy::{Context, Identity, Policy, Principal, Request, Target, Use, decide};
        let text = text(data);
        for purpose in [Use::Simulated, Use::Bucket, Use::Trust] {
            let Ok(policy) = Policy::parse(&text, purpose) else { continue };
            assert!(policy.keys().is_sorted());
            let account = "123456789012".parse().unwrap_or_else(|_| unreachable!("an account"));
            let mut context = Context::default();
            context.text("aws:SourceIp", "10.1.2.3").text("a:b", "arn:aws:iam::1:user/b").text("aws:x", "1");
            let request = Request { action: "s3:GetObject", resource: "arn:aws:s3:::b/k", context: &context };
            let owner = Some(&account);
            let target = Target { owner, policy: Some(&policy), ..Target::default() };
            let user = Principal::user(&account, "arn:aws:iam::123456789012:user/a", "AIDA");
            let all = std::sync::Arc::new(Policy::administrator());
            for who in [user, Principal::root(&account), Principal::anonymous()] {
                let with = decide(&Identity::new(who.clone(), vec![all.clone()]), &target, &request);
                let without = decide(&Identity::new(who, Vec::new()), &target, &request);
                assert!(with.is_allowed() || !without.is_allowed(), "more policies allow no less");
            }
        }
    }

    /// Tokens of sessions: only what was sealed opens, and only for its own key's id.
    fn session_token(data) from [SESSION_ID, &session_sealed()] {
        use crate::aws::session::SessionKey;
        let (key, text) = (SessionKey::new([7; 32]), text(data));
        if let Ok(session) = key.open(SESSION_ID, &text) {
            assert_eq!((text.as_ref(), session), (session_sealed().as_str(), session_of()));
        }
        assert!(key.open("ASIAOTHER", &text).is_err());
        assert_eq!(key.secret(&text).len(), 40);
        let ring = KeyRing::default();
        let told = crate::proto::Keys { session_key: key.as_bytes().to_vec(), ..Default::default() };
        assert!(ring.fill(&told).is_empty());
        assert!(ring.sign_in(SESSION_ID, Some(&text), UnixMicros(1)).is_err(), "it is of nobody here");
    }

    /// Configuration files and credentials.
    fn config_toml(data) from [
        "[role]\nstate = \"/s\"\naccount_id = \"123456789012\"\ngrpc = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:2\"\n\
         [tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n[walrus]\nlisten = \"127.0.0.1:9000\"\nstore = \"d\"\nstore_bytes = 1\n",
        "account_id = \"123456789012\"\n[admin]\naccess_key_id = \"A\"\nsecret_access_key = \"s\"\n\
         [system]\naccess_key_id = \"A\"\nsecret_access_key = \"s\"\n",
    ] {
        let text = text(data);
        if let Ok(config) = toml::from_str::<Config>(&text) {
            assert!(toml::to_string(&config).is_ok(), "what is read can be written");
        }
        let _ = toml::from_str::<Credentials>(&text);
    }

    /// Sizes, ids and account numbers.
    fn small_words(data) from ["20G", "8MiB", "i-0123456789abcdef0", "vol-12345678", "123456789012"] {
        let text = text(data);
        let _ = crate::units::parse_bytes(&text);
        if let Ok(id) = text.parse::<crate::id::InstanceId>() {
            assert_eq!(id.as_str(), text);
        }
        let _ = text.parse::<crate::id::AccountId>();
    }
}
