//! Hostile bytes against every parser of what strangers send or disks give back.
//!
//! Each target gets samples mutated (bits, bytes, cuts, splices, boundary numbers) and plain noise, for
//! `KARRI_FUZZ_SECONDS` (1 where it is not set). An input that breaks it is written to `target/fuzz/` and named; put that
//! file's path in `KARRI_FUZZ_INPUT` to run it alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use karri_base::aws::keys::{Key, KeyRing};
use karri_base::aws::verify::{Credential, HeaderAuth, QueryAuth, Verifier};
use karri_base::aws::{arn, sigv4};
use karri_base::clock::UnixMicros;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

fn fuzz(name: &str, samples: &[&[u8]], bytes_max: usize, target: impl Fn(&[u8])) {
    if let Some(path) = std::env::var_os("KARRI_FUZZ_INPUT") {
        return target(&std::fs::read(path).expect("KARRI_FUZZ_INPUT is a file"));
    }
    let seconds = std::env::var("KARRI_FUZZ_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1.0);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let (mut runs, mut corpus) = (0u64, samples.iter().map(|s| s.to_vec()).collect::<Vec<_>>());
    while Instant::now() < until {
        for _ in 0..64 {
            let mut input = match corpus.len() {
                0 => Vec::new(),
                n => corpus[rng.random_range(0..n)].clone(),
            };
            for _ in 0..rng.random_range(0..6) {
                mutate(&mut input, &corpus, &mut rng, bytes_max);
            }
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
                let path = path.join(format!("{name}-{runs}"));
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("target/fuzz");
                std::fs::write(&path, &input).expect("the input is kept");
                panic!("{name} broke; KARRI_FUZZ_INPUT={} cargo test --release --test fuzz {name}", path.display());
            }
            runs += 1;
            // Inputs drift away from the samples; some of them go on drifting.
            if runs.is_multiple_of(97) && corpus.len() < 256 {
                corpus.push(input);
            }
        }
    }
    println!("{name}: {runs} inputs");
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng, bytes_max: usize) {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u32::MAX as u64, u64::MAX];
    let at = rng.random_range(0..=input.len());
    match rng.random_range(0..8) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 => input.truncate(at),
        3 => {
            let mut noise = vec![0; rng.random_range(0..64)];
            rng.fill_bytes(&mut noise);
            input.splice(at..at, noise);
        }
        4 => {
            let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
            let end = input.len().min(at + [1, 2, 4, 8][rng.random_range(0..4)]);
            let length = end - at;
            input[at..end].copy_from_slice(&number[..length]);
        }
        5 if !corpus.is_empty() => {
            let other = &corpus[rng.random_range(0..corpus.len())];
            let from = rng.random_range(0..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        6 if at < input.len() => {
            let end = rng.random_range(at..input.len());
            let piece = input[at..=end].to_vec();
            input.splice(at..at, piece);
        }
        _ if at < input.len() => {
            let signs = b"&=%+/:,;<>\"'? \t\r\n\0";
            input[at] = signs[rng.random_range(0..signs.len())];
        }
        _ => {}
    }
    input.truncate(bytes_max);
}

#[test]
fn fuzz_store_superblock() {
    fuzz("fuzz_store_superblock", &[&[0; 4096]], 8192, karri_bulk::local::fuzz_superblock);
}

#[test]
fn fuzz_store_log_group() {
    fuzz("fuzz_store_log_group", &[&[0; 4096]], 16384, karri_bulk::local::fuzz_group);
}

#[test]
fn fuzz_virtio_ring() {
    let mut sample = vec![0; 8 + 0x4000];
    // One chain: a 16-byte header and a status byte, available once.
    sample[8..24].copy_from_slice(&[0, 0x40, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0]);
    sample[24..40].copy_from_slice(&[0, 0x50, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    sample[8 + 0x1002] = 1;
    sample[3] = 4;
    fuzz("fuzz_virtio_ring", &[&sample], 1 << 16, |bytes| {
        karri_blockstore::virtio::fuzz::ring(bytes);
    });
}

#[test]
fn fuzz_volume_map_record() {
    fuzz("fuzz_volume_map_record", &[b"x"], 4096, |bytes| {
        let (key, value) = bytes.split_at(bytes.len().min(16));
        let _ = karri_blockstore::map::record::parse_key(key);
        let _ = karri_blockstore::map::record::decode(key, value);
    });
}

#[test]
fn fuzz_ec2_query() {
    let sample = b"Action=RunInstances&Version=2016-11-15&ImageId=ami-0123456789abcdef0&MinCount=1&MaxCount=2\
        &TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b%20c";
    fuzz("fuzz_ec2_query", &[sample], 4096, |bytes| {
        let _ = karri_control::wire::query::decode_form(bytes);
    });
}

#[test]
fn fuzz_signatures() {
    let key = Key {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret: "secret".into(),
        account: "123456789012".parse().expect("an account"),
        arn: "arn:aws:iam::123456789012:user/admin".into(),
    };
    let verifier = Verifier::new(KeyRing::new([key]));
    let header = b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20250101/us-east-1/s3/aws4_request, \
        SignedHeaders=host;x-amz-date, Signature=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let query = b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20250101%2Fus-east-1%2Fs3\
        %2Faws4_request&X-Amz-Date=20250101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00";
    fuzz("fuzz_signatures", &[header, query, b"arn:aws:s3:::bucket/key"], 2048, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _ = Credential::parse(&text);
        let _ = HeaderAuth::parse(&text);
        let pairs = sigv4::parse_query(&text);
        let _ = QueryAuth::parse(&pairs);
        let _ = text.parse::<arn::Arn>();
        let request = http::Request::builder().uri(format!("/?{}", text.replace(|c: char| !c.is_ascii_graphic(), "")));
        let request = match http::HeaderValue::from_bytes(bytes) {
            Ok(value) => request.header("authorization", value).header("x-amz-date", "20250101T000000Z"),
            Err(_) => request,
        };
        if let Ok(request) = request.header("host", "x").body(()) {
            let (parts, ()) = request.into_parts();
            assert!(verifier.verify(&parts, b"", UnixMicros(1_735_689_600_000_000)).is_err(), "noise was let in");
        }
    });
}
