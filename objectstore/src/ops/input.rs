//! What several operations' inputs have alike: `s3s` gives each operation a type of its own with fields of the same names,
//! so these read by name.

use s3s::dto::ChecksumAlgorithm;

use crate::digest::Algorithm;
use crate::error::{Error, Kind, Result};

/// The customer's key that a request carries, if any.
macro_rules! customer_key {
    ($input:expr) => {
        $crate::ops::encryption::CustomerKey::new(
            $input.sse_customer_algorithm.as_deref(),
            $input.sse_customer_key.as_deref(),
            $input.sse_customer_key_md5.as_deref(),
        )
    };
}

/// How a request wants its object encrypted.
macro_rules! encryption_asked {
    ($input:expr) => {
        $crate::ops::input::customer_key!($input).and_then(|customer| {
            let kind = $input.server_side_encryption.as_ref();
            $crate::ops::encryption::Asked::new(kind, $input.ssekms_key_id.as_deref(), customer)
        })
    };
}

/// How a request wants its object locked in this bucket.
macro_rules! lock_asked {
    ($input:expr, $bucket:expr, $now:expr) => {
        $crate::ops::lock::asked(
            $bucket,
            $now,
            $input.object_lock_mode.as_ref(),
            $input.object_lock_retain_until_date.as_ref(),
            $input.object_lock_legal_hold_status.as_ref(),
        )
    };
}

pub(super) use {customer_key, encryption_asked, lock_asked};

/// The algorithm of `x-amz-checksum-algorithm`.
pub(super) fn checksum_asked(name: Option<&ChecksumAlgorithm>) -> Result<Option<Algorithm>> {
    let known = |name: &ChecksumAlgorithm| {
        Algorithm::from_name(name.as_str())
            .ok_or_else(|| Error::new(Kind::InvalidRequest, "Checksum algorithm provided is unsupported."))
    };
    name.map(known).transpose()
}
