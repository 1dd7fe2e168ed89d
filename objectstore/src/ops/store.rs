//! What concerns the store as a whole, for its operator alone: all accounts' buckets, checks of all that is stored, space
//! that nothing refers to.

use karri_bulk::BulkStore;

use crate::config::simple::Quota;
use crate::core::is_operator;
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::ops::configure::usage;
use crate::record::{Bucket, Versioning};
use crate::route::{Answer, Asked};
use crate::scrub::Ask;
use crate::xml::Out;

/// Buckets read in one go.
const PAGE: usize = 500;

/// Carries out an operation.
///
/// # Errors
/// `AccessDenied` for others than the operator.
pub async fn call<B: BulkStore>(operation: &'static str, asked: &Asked<'_, B>) -> Result<Answer> {
    // A policy alone does not make an operator: what is answered is about every account.
    if !asked.caller.key.as_ref().is_some_and(|key| is_operator(key)) {
        return Err(Error::new(
            Kind::AccessDenied,
            "This is about the whole store: only its operator's key may ask (in a cloud the system key, of karri walrus \
             serve the root of account 000000000000).",
        ));
    }
    let scrub = &asked.core.shared.scrub;
    match operation {
        "ListStoreBuckets" => list(asked).await,
        "GetStoreReport" => {
            let space = asked.core.bulk.usage();
            Ok(Answer::xml(scrub.document(space.used)))
        }
        "CheckStore" => Ok(begun(scrub.ask(Ask::Check))),
        "ReclaimStore" => Ok(begun(scrub.ask(Ask::Reclaim))),
        _ => Err(Kind::NotImplemented.into()),
    }
}

fn begun(number: u64) -> Answer {
    Answer::xml(Out::document("StorePass", |out| out.text("Number", &number.to_string())))
}

async fn list<B: BulkStore>(asked: &Asked<'_, B>) -> Result<Answer> {
    let mut names = Vec::new();
    asked
        .core
        .each_pair(keys::all(b'B'), PAGE, |key, raw| {
            names.push((String::from_utf8_lossy(&key[1..]).into_owned(), Bucket::decode(raw)?));
            Ok(())
        })
        .await?;
    let mut rows = Vec::with_capacity(names.len());
    for (name, bucket) in names {
        let used = asked.core.meter(bucket.id).await?.total();
        rows.push((name, bucket, used));
    }
    Ok(Answer::xml(Out::document("StoreBuckets", |out| {
        for (name, bucket, used) in &rows {
            out.element("Bucket", |out| {
                out.text("Name", name);
                out.text("Owner", &bucket.owner);
                out.text("Created", &bucket.created.secs().to_string());
                let versioning = match bucket.versioning {
                    Versioning::Never => "off",
                    Versioning::Enabled => "enabled",
                    Versioning::Suspended => "suspended",
                };
                out.text("Versioning", versioning);
                usage(out, *used, Quota::default());
            });
        }
    })))
}
