//! Users.

use std::sync::Arc;

use super::*;
use crate::identity::records::{Entity, User};
use crate::identity::secrets::unique_id;

pub(super) fn wire(user: &User) -> iam::User {
    iam::User {
        arn: Some(user.arn()),
        create_date: at(user.created_us),
        path: Some(user.path.clone()),
        permissions_boundary: boundary_of(&user.boundary),
        tags: tag_opt(&user.tags),
        user_id: Some(user.id.clone()),
        user_name: Some(user.name.clone()),
        ..Default::default()
    }
}

pub(super) fn find<'s>(state: &'s State, call: &Call<'_>, name: &str) -> ApiResult<&'s Arc<User>> {
    state.users.get(&call.key(name)).ok_or_else(|| missing("user", name))
}

pub(super) fn find_mut<'s>(state: &'s mut State, call: &Call<'_>, name: &str) -> ApiResult<&'s mut User> {
    state.users.get_mut(&call.key(name)).map(Arc::make_mut).ok_or_else(|| missing("user", name))
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateUserRequest,
) -> ApiResult<iam::CreateUserResponse> {
    let name = checked_name("userName", &r.user_name, 64)?;
    if state.users.contains_key(&call.key(name)) {
        return Err(exists("User", name));
    }
    if own(&state.users, call).count() >= 5000 {
        return Err(limit("Cannot exceed quota for UsersPerAccount: 5000"));
    }
    let user = User {
        account: call.account().clone(),
        name: name.to_owned(),
        path: checked_path(r.path.as_deref())?,
        id: unique_id("AIDA"),
        created_us: call.now_us(),
        tags: tags_of(&r.tags)?,
        boundary: r.permissions_boundary.as_deref().map(|arn| checked_policy(state, call, arn)).transpose()?,
        policies: Policies::default(),
        groups: Default::default(),
        login: None,
    };
    let user_wire = wire(&user);
    state.users.insert(user.key(), Arc::new(user));
    Ok(iam::CreateUserResponse { user: Some(user_wire) })
}

pub(super) fn get(state: &State, call: &Call<'_>, r: &iam::GetUserRequest) -> ApiResult<iam::GetUserResponse> {
    let user = match &r.user_name {
        Some(name) => wire(find(state, call, name)?),
        None if call.caller.identity.principal.username().is_some() => wire(find(state, call, call.own_name()?)?),
        // Root is a user of a kind.
        None => iam::User {
            arn: Some(call.caller.identity.principal.arn.clone()),
            create_date: at(0),
            path: Some("/".into()),
            user_id: Some(call.account().to_string()),
            user_name: state.accounts.get(call.account().as_str()).map(|a| a.name.clone()).filter(|n| !n.is_empty()),
            ..Default::default()
        },
    };
    Ok(iam::GetUserResponse { user: Some(user) })
}

pub(super) fn list(state: &State, call: &Call<'_>, r: &iam::ListUsersRequest) -> ApiResult<iam::ListUsersResponse> {
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let under = own(&state.users, call).filter(|(_, u)| u.path.starts_with(prefix));
    let page = page(under.map(|(k, u)| (k, iam::User { tags: None, ..wire(u) })), r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListUsersResponse { users: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn update(state: &mut State, call: &Call<'_>, r: &iam::UpdateUserRequest) -> Nothing {
    let old_key = call.key(&r.user_name);
    let mut user = User::clone(find(state, call, &r.user_name)?);
    if let Some(path) = &r.new_path {
        user.path = checked_path(Some(path))?;
    }
    if let Some(name) = &r.new_user_name {
        user.name = checked_name("newUserName", name, 64)?.to_owned();
    }
    let new_key = user.key();
    if new_key != old_key {
        if state.users.contains_key(&new_key) {
            return Err(exists("User", &user.name));
        }
        state.users.remove(&old_key);
        for key in state.keys.values_mut() {
            if matches!(&key.bearer, crate::identity::records::Bearer::User(u) if *u == old_key) {
                Arc::make_mut(key).bearer = crate::identity::records::Bearer::User(new_key.clone());
            }
        }
    }
    state.users.insert(new_key, Arc::new(user));
    Ok(Done)
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteUserRequest) -> Nothing {
    let user = find(state, call, &r.user_name)?.clone();
    let why = match () {
        () if !user.policies.attached.is_empty() => "Cannot delete entity, must detach all policies first.",
        () if !user.policies.inline.is_empty() => "Cannot delete entity, must delete policies first.",
        () if !user.groups.is_empty() => "Cannot delete entity, must remove users from group first.",
        () if user.login.is_some() => "Cannot delete entity, must delete login profile first.",
        () if state.keys_of(&user).next().is_some() => "Cannot delete entity, must delete access keys first.",
        () => "",
    };
    if !why.is_empty() {
        return Err(conflict(why));
    }
    state.users.remove(&user.key());
    Ok(Done)
}

pub(super) fn tag(state: &mut State, call: &Call<'_>, r: &iam::TagUserRequest) -> Nothing {
    add_tags(&mut find_mut(state, call, &r.user_name)?.tags, &r.tags)?;
    Ok(Done)
}

pub(super) fn untag(state: &mut State, call: &Call<'_>, r: &iam::UntagUserRequest) -> Nothing {
    remove_tags(&mut find_mut(state, call, &r.user_name)?.tags, &r.tag_keys);
    Ok(Done)
}

pub(super) fn list_tags(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListUserTagsRequest,
) -> ApiResult<iam::ListUserTagsResponse> {
    let tags = tag_list(&find(state, call, &r.user_name)?.tags);
    let keyed = tags.into_iter().map(|t| (t.key.clone().unwrap_or_default(), t));
    let page = page(keyed, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListUserTagsResponse { tags: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn put_boundary(state: &mut State, call: &Call<'_>, r: &iam::PutUserPermissionsBoundaryRequest) -> Nothing {
    let arn = checked_policy(state, call, &r.permissions_boundary)?;
    find_mut(state, call, &r.user_name)?.boundary = Some(arn);
    Ok(Done)
}

pub(super) fn delete_boundary(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::DeleteUserPermissionsBoundaryRequest,
) -> Nothing {
    match find_mut(state, call, &r.user_name)?.boundary.take() {
        Some(_) => Ok(Done),
        None => Err(missing("permissions boundary of user", &r.user_name)),
    }
}
