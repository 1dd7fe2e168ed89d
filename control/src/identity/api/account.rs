//! An account's alias and summary.

use std::sync::Arc;

use super::*;
use crate::identity::records::Account;

fn own_account(state: &mut State, call: &Call<'_>) -> ApiResult<Account> {
    let account =
        state.accounts.get(call.account().as_str()).ok_or_else(|| missing("account", call.account().as_str()))?;
    Ok(Account::clone(account))
}

/// Changes the caller's account.
pub(super) fn change(state: &mut State, call: &Call<'_>, how: impl FnOnce(&mut Account)) -> Nothing {
    let mut account = own_account(state, call)?;
    how(&mut account);
    state.accounts.insert(account.id.to_string(), Arc::new(account));
    Ok(Done)
}

pub(super) fn create_alias(state: &mut State, call: &Call<'_>, r: &iam::CreateAccountAliasRequest) -> Nothing {
    let alias = r.account_alias.as_str();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let well = (3..=63).contains(&alias.len()) && alias.bytes().all(plain) && !alias.contains("--");
    if !well || alias.starts_with('-') || alias.ends_with('-') || alias.parse::<AccountId>().is_ok() {
        return Err(invalid("An account alias has 3 to 63 lower-case letters, digits and single dashes"));
    }
    if state.accounts.values().any(|a| a.alias.as_deref() == Some(alias) && a.id != *call.account()) {
        return Err(ApiError::new(Code::EntityAlreadyExists, format!("The account alias {alias} already exists.")));
    }
    let account = Account { alias: Some(alias.to_owned()), ..own_account(state, call)? };
    state.accounts.insert(account.id.to_string(), Arc::new(account));
    Ok(Done)
}

pub(super) fn delete_alias(state: &mut State, call: &Call<'_>, r: &iam::DeleteAccountAliasRequest) -> Nothing {
    let account = own_account(state, call)?;
    if account.alias.as_deref() != Some(&r.account_alias) {
        return Err(missing("account alias", &r.account_alias));
    }
    state.accounts.insert(account.id.to_string(), Arc::new(Account { alias: None, ..account }));
    Ok(Done)
}

pub(super) fn aliases(
    state: &State,
    call: &Call<'_>,
    _: &iam::ListAccountAliasesRequest,
) -> ApiResult<iam::ListAccountAliasesResponse> {
    let alias = state.accounts.get(call.account().as_str()).and_then(|a| a.alias.clone());
    Ok(iam::ListAccountAliasesResponse {
        account_aliases: alias.into_iter().collect(),
        is_truncated: Some(false),
        marker: None,
    })
}

pub(super) fn summary(
    state: &State,
    call: &Call<'_>,
    _: &iam::GetAccountSummaryRequest,
) -> ApiResult<iam::GetAccountSummaryResponse> {
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let users = count(own(&state.users, call).count());
    let of_root = |k: &&Arc<crate::identity::records::AccessKey>| {
        k.account == *call.account() && k.bearer == crate::identity::records::Bearer::Root
    };
    let figures = [
        ("Users", users),
        ("UsersQuota", 5000),
        ("Groups", count(own(&state.groups, call).count())),
        ("GroupsQuota", 300),
        ("GroupsPerUserQuota", 10),
        ("Roles", count(own(&state.roles, call).count())),
        ("RolesQuota", 5000),
        ("InstanceProfiles", count(own(&state.profiles, call).count())),
        ("InstanceProfilesQuota", 1000),
        ("Policies", count(own(&state.policies, call).count())),
        ("PoliciesQuota", 1500),
        ("PolicySizeQuota", 6144),
        ("PolicyVersionsInUseQuota", 10_000),
        ("VersionsPerPolicyQuota", 5),
        ("UserPolicySizeQuota", 2048),
        ("GroupPolicySizeQuota", 5120),
        ("RolePolicySizeQuota", 10_240),
        ("AssumeRolePolicySizeQuota", 2048),
        ("AttachedPoliciesPerUserQuota", 10),
        ("AttachedPoliciesPerGroupQuota", 10),
        ("AttachedPoliciesPerRoleQuota", 10),
        ("AccessKeysPerUserQuota", 2),
        ("AccountMFAEnabled", 0),
        ("MFADevices", 0),
        ("MFADevicesInUse", 0),
        ("ServerCertificates", 0),
        ("AccountAccessKeysPresent", i32::from(state.keys.values().any(|k| of_root(&k)))),
    ];
    let map = figures.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    Ok(iam::GetAccountSummaryResponse { summary_map: Some(map) })
}
