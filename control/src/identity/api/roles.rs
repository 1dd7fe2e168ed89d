//! Roles.

use std::sync::Arc;

use super::*;
use crate::identity::records::{Entity, Role};
use crate::identity::secrets::unique_id;

pub(super) fn wire(role: &Role) -> iam::Role {
    iam::Role {
        arn: Some(role.arn()),
        assume_role_policy_document: Some(encoded(&role.trust)),
        create_date: at(role.created_us),
        description: role.description.clone(),
        max_session_duration: Some(role.session_seconds_max),
        path: Some(role.path.clone()),
        permissions_boundary: boundary_of(&role.boundary),
        role_id: Some(role.id.clone()),
        role_name: Some(role.name.clone()),
        tags: tag_opt(&role.tags),
        ..Default::default()
    }
}

pub(super) fn find<'s>(state: &'s State, call: &Call<'_>, name: &str) -> ApiResult<&'s Arc<Role>> {
    state.roles.get(&call.key(name)).ok_or_else(|| missing("role", name))
}

/// Empty where none of its sessions asked for anything yet.
pub(super) fn last_used(call: &Call<'_>, role: &Role) -> iam::RoleLastUsed {
    match call.directory.uses().last(&role.id) {
        Some(used) => iam::RoleLastUsed { last_used_date: at(used.at_us), region: Some(used.region) },
        None => iam::RoleLastUsed::default(),
    }
}

fn find_mut<'s>(state: &'s mut State, call: &Call<'_>, name: &str) -> ApiResult<&'s mut Role> {
    state.roles.get_mut(&call.key(name)).map(Arc::make_mut).ok_or_else(|| missing("role", name))
}

/// A trust policy whose users and roles exist here.
fn checked_trust(state: &State, text: &str) -> ApiResult<String> {
    use karri_base::aws::policy::principal::Name;
    let policy = checked_document(text, Use::Trust)?;
    for name in policy.statements.iter().filter_map(|s| s.principals.as_ref()).flat_map(|p| p.listed()) {
        let is_known = match name {
            Name::Arn(arn) => {
                let is = |known: String| known == *arn;
                !arn.starts_with("arn:aws:iam:")
                    || state.users.values().any(|u| is(u.arn()))
                    || state.roles.values().any(|r| is(r.arn()))
            }
            Name::Account(account) => state.accounts.contains_key(account.as_str()),
            _ => true,
        };
        if !is_known {
            let message = "Invalid principal in policy: it names a user, role or account that does not exist";
            return Err(ApiError::new(Code::MalformedPolicyDocument, message));
        }
    }
    Ok(text.to_owned())
}

fn checked_seconds(seconds: Option<i32>) -> ApiResult<i32> {
    match seconds.unwrap_or(3600) {
        seconds @ 3600..=43_200 => Ok(seconds),
        other => Err(invalid(format!("Value '{other}' at 'maxSessionDuration' must be between 3600 and 43200"))),
    }
}

fn checked_description(text: Option<&String>) -> ApiResult<Option<String>> {
    match text {
        Some(text) if text.chars().count() > 1000 => Err(invalid("A description has at most 1000 characters")),
        text => Ok(text.cloned()),
    }
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateRoleRequest,
) -> ApiResult<iam::CreateRoleResponse> {
    let name = checked_name("roleName", &r.role_name, 64)?;
    if state.roles.contains_key(&call.key(name)) {
        return Err(exists("Role", name));
    }
    if own(&state.roles, call).count() >= 5000 {
        return Err(limit("Cannot exceed quota for RolesPerAccount: 5000"));
    }
    let role = Role {
        account: call.account().clone(),
        name: name.to_owned(),
        path: checked_path(r.path.as_deref())?,
        id: unique_id("AROA"),
        created_us: call.now_us(),
        trust: checked_trust(state, &r.assume_role_policy_document)?,
        description: checked_description(r.description.as_ref())?,
        session_seconds_max: checked_seconds(r.max_session_duration)?,
        tags: tags_of(&r.tags)?,
        boundary: r.permissions_boundary.as_deref().map(|arn| checked_policy(state, call, arn)).transpose()?,
        policies: Policies::default(),
    };
    let answer = iam::CreateRoleResponse { role: Some(wire(&role)) };
    state.roles.insert(role.key(), Arc::new(role));
    Ok(answer)
}

pub(super) fn get(state: &State, call: &Call<'_>, r: &iam::GetRoleRequest) -> ApiResult<iam::GetRoleResponse> {
    let role = find(state, call, &r.role_name)?;
    let wire = iam::Role { role_last_used: Some(last_used(call, role)), ..wire(role) };
    Ok(iam::GetRoleResponse { role: Some(wire) })
}

pub(super) fn list(state: &State, call: &Call<'_>, r: &iam::ListRolesRequest) -> ApiResult<iam::ListRolesResponse> {
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let under = own(&state.roles, call).filter(|(_, role)| role.path.starts_with(prefix));
    let under = under.map(|(k, role)| (k, iam::Role { tags: None, permissions_boundary: None, ..wire(role) }));
    let page = page(under, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListRolesResponse { roles: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn update(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::UpdateRoleRequest,
) -> ApiResult<iam::UpdateRoleResponse> {
    let description = checked_description(r.description.as_ref())?;
    let role = find_mut(state, call, &r.role_name)?;
    role.session_seconds_max = checked_seconds(r.max_session_duration)?;
    role.description = description.or(role.description.take());
    Ok(iam::UpdateRoleResponse::default())
}

pub(super) fn update_description(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::UpdateRoleDescriptionRequest,
) -> ApiResult<iam::UpdateRoleDescriptionResponse> {
    let description = checked_description(Some(&r.description))?;
    let role = find_mut(state, call, &r.role_name)?;
    role.description = description;
    Ok(iam::UpdateRoleDescriptionResponse { role: Some(wire(role)) })
}

pub(super) fn update_trust(state: &mut State, call: &Call<'_>, r: &iam::UpdateAssumeRolePolicyRequest) -> Nothing {
    find(state, call, &r.role_name)?;
    let trust = checked_trust(state, &r.policy_document)?;
    find_mut(state, call, &r.role_name)?.trust = trust;
    Ok(Done)
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteRoleRequest) -> Nothing {
    let role = find(state, call, &r.role_name)?.clone();
    let key = role.key();
    let why = match () {
        () if !role.policies.attached.is_empty() => "Cannot delete entity, must detach all policies first.",
        () if !role.policies.inline.is_empty() => "Cannot delete entity, must delete policies first.",
        () if state.profiles.values().any(|p| p.role.as_ref() == Some(&key)) => {
            "Cannot delete entity, must remove roles from instance profile first."
        }
        () => "",
    };
    if !why.is_empty() {
        return Err(conflict(why));
    }
    state.roles.remove(&key);
    Ok(Done)
}

pub(super) fn tag(state: &mut State, call: &Call<'_>, r: &iam::TagRoleRequest) -> Nothing {
    add_tags(&mut find_mut(state, call, &r.role_name)?.tags, &r.tags)?;
    Ok(Done)
}

pub(super) fn untag(state: &mut State, call: &Call<'_>, r: &iam::UntagRoleRequest) -> Nothing {
    remove_tags(&mut find_mut(state, call, &r.role_name)?.tags, &r.tag_keys);
    Ok(Done)
}

pub(super) fn list_tags(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListRoleTagsRequest,
) -> ApiResult<iam::ListRoleTagsResponse> {
    let tags = tag_list(&find(state, call, &r.role_name)?.tags);
    let keyed = tags.into_iter().map(|t| (t.key.clone().unwrap_or_default(), t));
    let page = page(keyed, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListRoleTagsResponse { tags: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn put_boundary(state: &mut State, call: &Call<'_>, r: &iam::PutRolePermissionsBoundaryRequest) -> Nothing {
    let arn = checked_policy(state, call, &r.permissions_boundary)?;
    find_mut(state, call, &r.role_name)?.boundary = Some(arn);
    Ok(Done)
}

pub(super) fn delete_boundary(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::DeleteRolePermissionsBoundaryRequest,
) -> Nothing {
    match find_mut(state, call, &r.role_name)?.boundary.take() {
        Some(_) => Ok(Done),
        None => Err(missing("permissions boundary of role", &r.role_name)),
    }
}
