//! Hostile bytes against what Walrus reads itself: documents, forms, lists; see [`karri_base::fuzz`].

use base64::Engine;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use karri_base::aws::keys::{Key, KeyRing};
use karri_base::clock::UnixMicros;

use crate::access::acl::{Acl, Owners};
use crate::access::people::People;
use crate::config::{cors, events, inventory, lifecycle, replication, simple, website};
use crate::ops::{rename::Rename, tagging};
use crate::outbound::Reply;
use crate::place::{Domains, Place};
use crate::replicate::remote;
use crate::{form, guard, sig_v2, signed_at, xml};

/// 2026-11-22T18:00:00Z.
const NOW: UnixMicros = UnixMicros(1_795_370_400_000_000);

/// A request's head: the target on the first line, a header on each of the others.
fn head(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|&b| b == b'\n');
    let mut request = Request::put(lines.next()?);
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            request = request.header(name, value);
        }
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// One key, whose secret nobody guesses.
fn ring() -> KeyRing {
    KeyRing::new("123456789012".parse().map(|account| Key {
        access_key_id: "AKIA".into(),
        secret: "not to be guessed".into(),
        account,
        arn: "arn:aws:iam::123456789012:user/a".into(),
    }))
}

/// Everybody exists.
struct Anybody;

impl People for Anybody {
    fn exists(&self, _: &str) -> bool {
        true
    }
    fn display(&self, account: &str) -> Option<String> {
        Some(account.to_owned())
    }
    fn by_email(&self, email: &str) -> Option<String> {
        Some(email.to_owned())
    }
}

karri_base::fuzz::targets! {
    /// What is read of a document and written comes back the same.
    fn documents(data) from [
        "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>",
        "<LifecycleConfiguration><Rule><ID>r</ID><Filter><And><Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>",
        "<WebsiteConfiguration><IndexDocument><Suffix>i</Suffix></IndexDocument><RoutingRules><RoutingRule><Redirect><HostName>h</HostName></Redirect></RoutingRule></RoutingRules></WebsiteConfiguration>",
        "<NotificationConfiguration><QueueConfiguration><Id>n</Id><Queue>arn:aws:sqs:::q</Queue><Event>s3:ObjectCreated:*</Event></QueueConfiguration></NotificationConfiguration>",
        "<BucketLoggingStatus><LoggingEnabled><TargetBucket>b</TargetBucket><TargetPrefix/></LoggingEnabled></BucketLoggingStatus>",
        "<Tagging><TagSet><Tag><Key>k</Key><Value>&#x41;</Value></Tag></TagSet></Tagging>",
        "<ReplicationConfiguration><Role>r</Role><Rule><Priority>1</Priority><Filter><Prefix>p</Prefix></Filter><Status>Enabled</Status><DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication><Destination><Bucket>arn:aws:s3:::target</Bucket></Destination></Rule></ReplicationConfiguration>",
        "<InventoryConfiguration><Destination><S3BucketDestination><Bucket>arn:aws:s3:::b</Bucket><Format>CSV</Format></S3BucketDestination></Destination><IsEnabled>true</IsEnabled><Id>i</Id><IncludedObjectVersions>All</IncludedObjectVersions><Schedule><Frequency>Daily</Frequency></Schedule></InventoryConfiguration>",
    ] {
        if let Ok(rules) = cors::parse(data) {
            assert_eq!(cors::parse(cors::to_xml(&rules).as_bytes()).ok(), Some(rules));
        }
        if let Ok(rules) = lifecycle::parse(data) {
            assert_eq!(lifecycle::parse(lifecycle::to_xml(&rules).as_bytes()).ok(), Some(rules));
        }
        if let Ok(site) = website::parse(data) {
            assert_eq!(website::parse(website::to_xml(&site).as_bytes()).ok(), Some(site));
        }
        if let Ok(all) = events::parse(data) {
            assert_eq!(events::parse(events::to_xml(&all).as_bytes()).ok(), Some(all));
        }
        if let Ok(logging) = events::Logging::parse(data) {
            let text = events::Logging::to_xml(logging.as_ref());
            assert!(events::Logging::parse(text.as_bytes()).is_ok());
        }
        if let Ok(tags) = simple::Tags::parse(data, 50) {
            assert_eq!(simple::Tags::parse(tags.to_xml().as_bytes(), 50).ok(), Some(tags));
        }
        if let Ok(read) = replication::parse(data) {
            let kept = replication::canonical(data).ok().and_then(|text| replication::parse(text.as_bytes()).ok());
            assert_eq!(kept.map(|kept| (kept.role, kept.rules.len())), Some((read.role, read.rules.len())));
        }
        if let Ok(one) = inventory::one(data) {
            let kept = inventory::put(None, &one.id, data).ok();
            assert_eq!(kept.and_then(|kept| inventory::parse(kept.as_bytes()).ok()), Some(vec![one]));
        }
        let _ = xml::Element::parse_any(data);
    }

    /// Lists, from documents and from records.
    fn lists(data) from [
        "<AccessControlPolicy><Owner><ID>1</ID></Owner><AccessControlList><Grant><Grantee><ID>2</ID></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>",
        "\u{5}\u{3}\u{1}1\u{1}\u{0}",
    ] {
        if let Ok(acl) = Acl::of_xml(data, "1", &Anybody) {
            assert_eq!(Acl::of_xml(acl.to_xml("1", &Anybody).as_bytes(), "1", &Anybody).ok(), Some(acl));
        }
        if let Ok(acl) = Acl::decode(31, data) {
            assert_eq!(acl.encode(), data);
        }
        let _ = Acl::canned(&String::from_utf8_lossy(data), Owners { owner: "1", bucket_owner: None });
    }

    /// Browsers' forms and their policies.
    fn forms(data) from [
        "--B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--B--",
        r#"{"expiration":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key",""],["content-length-range",0,5]]}"#,
    ] {
        if let Ok(Some((fields, at))) = form::Head::new("B").read(data) {
            assert!(at <= data.len());
            let _ = fields;
        }
        let _ = form::policy_of(&base64::engine::general_purpose::STANDARD.encode(data));
    }

    /// What a browser's form asks for: without a good signature nobody is named.
    fn form_uploads(data) from [
        "--B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\na/${filename}\r\n--B\r\nContent-Disposition: form-data; name=\"tagging\"\r\n\r\n<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>\r\n--B\r\nContent-Disposition: form-data; name=\"acl\"\r\n\r\nprivate\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"C:\\f\"\r\n\r\nx\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--B\r\nContent-Disposition: form-data; name=\"policy\"\r\n\r\ne30=\r\n--B\r\nContent-Disposition: form-data; name=\"AWSAccessKeyId\"\r\n\r\nAKIA\r\n--B\r\nContent-Disposition: form-data; name=\"signature\"\r\n\r\neA==\r\n--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--B--",
        "multipart/form-data; boundary=\"B\"",
    ] {
        if let Ok(boundary) = form::boundary(&String::from_utf8_lossy(data)) {
            assert!((1..=70).contains(&boundary.len()));
        }
        let Ok(Some((fields, _))) = form::Head::new("B").read(data) else { return };
        if let Ok(upload) = form::upload(&fields, "b", &ring(), NOW) {
            assert!(upload.signer.is_none(), "a signature was guessed");
            assert!([200, 201, 204].contains(&upload.status));
        }
    }

    /// Heads of requests, as far as Walrus reads them before `s3s`.
    fn heads(data) from [
        "/b/k?renameObject\nx-amz-rename-source:/b/old%20key\nx-amz-rename-source-if-match:\"e\"\nif-none-match:*",
        "/old%20key\nhost:Bkt.LocalHost.:9000\nrange:bytes=0-1\nif-range:\"e\"",
        "/b?AWSAccessKeyId=AKIA&Signature=eA%3D%3D&Expires=1795370500&x-amz-acl=private&content-type=a\nhost:h",
        "/b\nauthorization:AWS AKIA:eA==\ndate:Sun, 22 Nov 2026 18:00:00 GMT\nx-amz-meta-a:b",
        "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261122%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20261122T180000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=00\nhost:h",
        "/b/k?partNumber=1&uploadId=u\nauthorization:AWS4-HMAC-SHA256 Credential=AKIA/20261122/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=00\nx-amz-content-sha256:STREAMING-UNSIGNED-PAYLOAD-TRAILER\nx-amz-decoded-content-length:5\nx-amz-trailer:x-amz-checksum-crc32\ncontent-encoding:aws-chunked",
        "/b/k\nx-amz-grant-read:id=\"1\", uri=http://acs.amazonaws.com/groups/global/AllUsers\nx-amz-grant-write-acp:emailAddress=a@b\nx-amz-tagging:a=b&c=%64+",
    ] {
        let Some(head) = head(data) else { return };
        let _ = guard::check(&head);
        let _ = guard::is_form_upload(&head);
        let place = Place::of(&Domains::default(), &head);
        let _ = place.sent_key(head.uri.path());
        assert_eq!(sig_v2::as_signed(&head, &place, &ring()), None, "a signature was guessed");
        let _ = signed_at::check(&head.headers, NOW);
        let mut headers = head.headers.clone();
        signed_at::complete(&mut headers);
        assert!(headers.len() <= head.headers.len() + 1);
        let (bucket, key) = (place.bucket().unwrap_or_default(), place.key().unwrap_or_default());
        if let Ok(rename) = Rename::parse(bucket, key, &head.headers) {
            assert!((1..=1024).contains(&rename.from().len()));
        }
        let owners = Owners { owner: "1", bucket_owner: Some("2") };
        if let Ok(Some(acl)) = Acl::of_headers(&head.headers, owners, &Anybody) {
            assert_eq!(Acl::of_xml(acl.to_xml("1", &Anybody).as_bytes(), "1", &Anybody).ok(), Some(acl));
        }
        let tags = head.headers.get("x-amz-tagging").and_then(|v| v.to_str().ok());
        if let Ok(tags) = tagging::of_header(tags) {
            assert!(tags.0.len() <= 10 && tags.0.iter().all(|(k, v)| k.len() <= 512 && v.len() <= 1024));
        }
    }

    /// Documents of a few words: what is read and written comes back the same.
    fn small_documents(data) from [
        "<PublicAccessBlockConfiguration><BlockPublicAcls>TRUE</BlockPublicAcls><RestrictPublicBuckets>false</RestrictPublicBuckets></PublicAccessBlockConfiguration>",
        "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>",
        "<QuotaConfiguration><MaxBytes>18446744073709551615</MaxBytes><MaxObjects>1</MaxObjects></QuotaConfiguration>",
        "<RequestPaymentConfiguration><Payer>Requester</Payer></RequestPaymentConfiguration>",
        "<AccelerateConfiguration><Status>Enabled</Status></AccelerateConfiguration>",
    ] {
        if let Ok(read) = simple::PublicAccess::parse(data) {
            assert_eq!(simple::PublicAccess::parse(read.to_xml().as_bytes()).ok(), Some(read));
        }
        if let Ok(read) = simple::Ownership::parse(data) {
            assert_eq!(simple::Ownership::parse(read.to_xml().as_bytes()).ok(), Some(read));
        }
        if let Ok(read) = simple::Quota::parse(data) {
            assert_eq!(simple::Quota::parse(read.to_xml().as_bytes()).ok(), Some(read));
        }
        if let Ok(read) = simple::payment(data) {
            assert_eq!(simple::payment(simple::payment_xml(read).as_bytes()).ok(), Some(read));
        }
        if let Ok(read) = simple::accelerate(data) {
            assert_eq!(simple::accelerate(simple::accelerate_xml(Some(&read)).as_bytes()).ok(), Some(read));
        }
    }

    /// What the other end of a replication answers.
    fn remote_answers(data) from [
        "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>",
        "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        "<InitiateMultipartUploadResult><UploadId>a&amp;b</UploadId></InitiateMultipartUploadResult>",
    ] {
        let (code, body) = data.split_at(data.len().min(2));
        let code = code.iter().fold(0, |sum, b| sum * 256 + u16::from(*b));
        let whole = bytes::Bytes::copy_from_slice(data);
        for (status, body) in [
            (StatusCode::from_u16(code % 1000).unwrap_or(StatusCode::OK), bytes::Bytes::copy_from_slice(body)),
            (StatusCode::FORBIDDEN, whole.clone()),
            (StatusCode::OK, whole),
        ] {
            remote::understood(Reply { status, headers: HeaderMap::new(), body });
        }
    }
}
