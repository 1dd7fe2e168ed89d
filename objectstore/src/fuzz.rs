//! Hostile bytes against what Walrus reads itself: documents, forms, lists; see [`karri_base::fuzz`].

use base64::Engine;

use crate::access::acl::{Acl, Owners};
use crate::access::people::People;
use crate::config::{cors, events, inventory, lifecycle, replication, simple, website};
use crate::{form, xml};

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
        if let Ok(Some((fields, at))) = form::head(data, "B") {
            assert!(at <= data.len());
            let _ = fields;
        }
        let _ = form::policy_of(&base64::engine::general_purpose::STANDARD.encode(data));
    }
}
