//! STS: who am I, which clients ask before anything else.

use sha2::{Digest, Sha256};

use crate::wire::generated::sts;

use super::Call;

/// GetCallerIdentity.
pub fn caller_identity(call: &Call<'_>, _: sts::GetCallerIdentityRequest) -> sts::GetCallerIdentityResponse {
    let arn = &call.key.arn;
    let user_id = if arn.ends_with(":root") { call.account().to_string() } else { user_id(arn) };
    sts::GetCallerIdentityResponse {
        account: Some(call.account().to_string()),
        arn: Some(arn.clone()),
        user_id: Some(user_id),
    }
}

/// A stable id of the principal in IAM's form: `AIDA` or `AROA` and 17 of A-Z and 2-7.
fn user_id(arn: &str) -> String {
    let prefix = if arn.contains(":role/") { "AROA" } else { "AIDA" };
    let digest = Sha256::digest(arn.as_bytes());
    let letters = digest.iter().take(17).map(|b| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(b % 32)]));
    prefix.chars().chain(letters).collect()
}
