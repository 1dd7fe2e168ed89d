//! Access keys and login profiles.

use std::sync::Arc;

use super::passwords::{self, Hashed};
use super::*;
use crate::identity::records::{AccessKey, Bearer, Entity, Login, Used};
use crate::identity::secrets::{access_key_id, secret};

/// Whose keys are meant: the named user's, else the caller's own.
fn bearer(state: &State, call: &Call<'_>, name: Option<&String>) -> ApiResult<(Bearer, Option<String>)> {
    let principal = &call.caller.identity.principal;
    match name {
        None if principal.kind == karri_base::aws::policy::principal::Kind::Root => Ok((Bearer::Root, None)),
        None => {
            let user = users::find(state, call, call.own_name()?)?;
            Ok((Bearer::User(user.key()), Some(user.name.clone())))
        }
        Some(name) => {
            let user = users::find(state, call, name)?;
            Ok((Bearer::User(user.key()), Some(user.name.clone())))
        }
    }
}

fn keys_of<'s>(state: &'s State, call: &Call<'_>, bearer: &Bearer) -> Vec<&'s Arc<AccessKey>> {
    state.keys.values().filter(|k| k.account == *call.account() && k.bearer == *bearer).collect()
}

/// When a key was last used; of another account's it says nothing.
pub(super) fn last_used(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetAccessKeyLastUsedRequest,
) -> ApiResult<iam::GetAccessKeyLastUsedResponse> {
    let id = &r.access_key_id;
    let key = state.keys.get(id).filter(|k| k.account == *call.account() && k.bearer != Bearer::System);
    let key = key.ok_or_else(|| no_key(id))?;
    let user = match &key.bearer {
        Bearer::User(user) => state.users.get(user),
        _ => None,
    };
    let used = call.directory.uses().last(id);
    let shown = |text: fn(&Used) -> &String| Some(used.as_ref().map_or("N/A", |used| text(used)).to_owned());
    Ok(iam::GetAccessKeyLastUsedResponse {
        access_key_last_used: Some(iam::AccessKeyLastUsed {
            last_used_date: used.as_ref().and_then(|used| at(used.at_us)),
            region: shown(|used| &used.region),
            service_name: shown(|used| &used.service),
        }),
        user_name: user.map(|user| user.name.clone()),
    })
}

fn no_key(id: &str) -> ApiError {
    ApiError::new(Code::NoSuchEntity, format!("The Access Key with id {id} cannot be found."))
}

fn status(active: bool) -> Option<iam::StatusType> {
    Some(if active { iam::StatusType::Active } else { iam::StatusType::Inactive })
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateAccessKeyRequest,
) -> ApiResult<iam::CreateAccessKeyResponse> {
    let (bearer, user_name) = bearer(state, call, r.user_name.as_ref())?;
    if keys_of(state, call, &bearer).len() >= 2 {
        return Err(limit("Cannot exceed quota for AccessKeysPerUser: 2"));
    }
    let (id, secret) = (access_key_id("AKIA"), secret());
    let key = AccessKey {
        secret: call.directory.sealer().seal(&id, &secret),
        id,
        account: call.account().clone(),
        bearer,
        active: true,
        seeded: false,
        created_us: call.now_us(),
    };
    let answer = iam::AccessKey {
        access_key_id: Some(key.id.clone()),
        create_date: at(key.created_us),
        secret_access_key: Some(secret),
        status: status(true),
        user_name,
    };
    state.keys.insert(key.key(), Arc::new(key));
    Ok(iam::CreateAccessKeyResponse { access_key: Some(answer) })
}

fn find(state: &State, call: &Call<'_>, name: Option<&String>, id: &str) -> ApiResult<AccessKey> {
    let (bearer, _) = bearer(state, call, name)?;
    let found = keys_of(state, call, &bearer).into_iter().find(|k| k.id == id);
    found.map(|k| AccessKey::clone(k)).ok_or_else(|| no_key(id))
}

pub(super) fn update(state: &mut State, call: &Call<'_>, r: &iam::UpdateAccessKeyRequest) -> Nothing {
    let key = find(state, call, r.user_name.as_ref(), &r.access_key_id)?;
    let active = match r.status {
        Some(iam::StatusType::Active) => true,
        Some(iam::StatusType::Inactive) => false,
        _ => return Err(invalid("Status must be Active or Inactive")),
    };
    state.keys.insert(key.key(), Arc::new(AccessKey { active, ..key }));
    Ok(Done)
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteAccessKeyRequest) -> Nothing {
    let key = find(state, call, r.user_name.as_ref(), &r.access_key_id)?;
    state.keys.remove(&key.id);
    Ok(Done)
}

pub(super) fn list(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListAccessKeysRequest,
) -> ApiResult<iam::ListAccessKeysResponse> {
    let (bearer, user_name) = bearer(state, call, r.user_name.as_ref())?;
    let keys = keys_of(state, call, &bearer).into_iter().map(|k| {
        let wire = iam::AccessKeyMetadata {
            access_key_id: Some(k.id.clone()),
            create_date: at(k.created_us),
            status: status(k.active),
            user_name: user_name.clone(),
        };
        (k.id.clone(), wire)
    });
    let page = page(keys, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListAccessKeysResponse {
        access_key_metadata: page.items,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}

pub(super) async fn hash_created(call: &Call<'_>, r: &iam::CreateLoginProfileRequest) -> ApiResult<Hashed> {
    passwords::hashed(call, None, r.password.as_deref().unwrap_or("")).await
}

pub(super) async fn hash_updated(call: &Call<'_>, r: &iam::UpdateLoginProfileRequest) -> ApiResult<Option<Hashed>> {
    match &r.password {
        Some(password) => passwords::hashed(call, Some(&r.user_name), password).await.map(Some),
        None => Ok(None),
    }
}

fn login_name<'a>(call: &'a Call<'_>, name: Option<&'a String>) -> ApiResult<&'a str> {
    name.map_or_else(|| call.own_name(), |name| Ok(name.as_str()))
}

pub(super) fn create_login(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateLoginProfileRequest,
    (hash, salt): Hashed,
) -> ApiResult<iam::CreateLoginProfileResponse> {
    let name = login_name(call, r.user_name.as_ref())?;
    let created_us = call.now_us();
    let user = users::find_mut(state, call, name)?;
    if user.login.is_some() {
        return Err(ApiError::new(Code::EntityAlreadyExists, format!("Login Profile for user {name} already exists.")));
    }
    let reset = r.password_reset_required.unwrap_or(false);
    user.login = Some(Login { hash, salt, reset, created_us, changed_us: 0, earlier: Vec::new() });
    let login_profile = login(user);
    Ok(iam::CreateLoginProfileResponse { login_profile })
}

fn login(user: &crate::identity::records::User) -> Option<iam::LoginProfile> {
    user.login.as_ref().map(|login| iam::LoginProfile {
        create_date: at(login.created_us),
        password_reset_required: Some(login.reset),
        user_name: Some(user.name.clone()),
    })
}

pub(super) fn no_login(name: &str) -> ApiError {
    ApiError::new(Code::NoSuchEntity, format!("Login Profile for User {name} cannot be found."))
}

pub(super) fn get_login(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetLoginProfileRequest,
) -> ApiResult<iam::GetLoginProfileResponse> {
    let name = login_name(call, r.user_name.as_ref())?;
    let login_profile = login(users::find(state, call, name)?).ok_or_else(|| no_login(name))?;
    Ok(iam::GetLoginProfileResponse { login_profile: Some(login_profile) })
}

pub(super) fn update_login(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::UpdateLoginProfileRequest,
    hashed: Option<Hashed>,
) -> Nothing {
    let kept = passwords::kept(state, call);
    let user = users::find_mut(state, call, &r.user_name)?;
    let login = user.login.as_mut().ok_or_else(|| no_login(&r.user_name))?;
    if let Some(hashed) = hashed {
        passwords::renew(login, hashed, kept, call.now_us());
    }
    login.reset = r.password_reset_required.unwrap_or(login.reset);
    Ok(Done)
}

pub(super) fn delete_login(state: &mut State, call: &Call<'_>, r: &iam::DeleteLoginProfileRequest) -> Nothing {
    let name = login_name(call, r.user_name.as_ref())?;
    users::find_mut(state, call, name)?.login.take().map(|_| Done).ok_or_else(|| no_login(name))
}
