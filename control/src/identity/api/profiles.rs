//! Instance profiles: what carries a role to an instance.

use std::sync::Arc;

use super::*;
use crate::identity::records::{Entity, Profile};
use crate::identity::secrets::unique_id;

pub(super) fn wire(state: &State, profile: &Profile) -> iam::InstanceProfile {
    let role = profile.role.as_ref().and_then(|key| state.roles.get(key));
    iam::InstanceProfile {
        arn: Some(profile.arn()),
        create_date: at(profile.created_us),
        instance_profile_id: Some(profile.id.clone()),
        instance_profile_name: Some(profile.name.clone()),
        path: Some(profile.path.clone()),
        roles: Some(role.into_iter().map(|r| roles::wire(r)).collect()),
        tags: tag_opt(&profile.tags),
    }
}

fn find<'s>(state: &'s State, call: &Call<'_>, name: &str) -> ApiResult<&'s Arc<Profile>> {
    let found = state.profiles.get(&call.key(name));
    found.ok_or_else(|| ApiError::new(Code::NoSuchEntity, format!("Instance Profile {name} cannot be found.")))
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateInstanceProfileRequest,
) -> ApiResult<iam::CreateInstanceProfileResponse> {
    let name = checked_name("instanceProfileName", &r.instance_profile_name, 128)?;
    if state.profiles.contains_key(&call.key(name)) {
        return Err(exists("Instance Profile", name));
    }
    if own(&state.profiles, call).count() >= 1000 {
        return Err(limit("Cannot exceed quota for InstanceProfilesPerAccount: 1000"));
    }
    let profile = Profile {
        account: call.account().clone(),
        name: name.to_owned(),
        path: checked_path(r.path.as_deref())?,
        id: unique_id("AIPA"),
        created_us: call.now_us(),
        role: None,
        tags: tags_of(&r.tags)?,
    };
    let answer = iam::CreateInstanceProfileResponse { instance_profile: Some(wire(state, &profile)) };
    state.profiles.insert(profile.key(), Arc::new(profile));
    Ok(answer)
}

pub(super) fn get(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetInstanceProfileRequest,
) -> ApiResult<iam::GetInstanceProfileResponse> {
    let profile = find(state, call, &r.instance_profile_name)?;
    Ok(iam::GetInstanceProfileResponse { instance_profile: Some(wire(state, profile)) })
}

pub(super) fn list(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListInstanceProfilesRequest,
) -> ApiResult<iam::ListInstanceProfilesResponse> {
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let under = own(&state.profiles, call).filter(|(_, p)| p.path.starts_with(prefix));
    let page = page(under.map(|(k, p)| (k, wire(state, p))), r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListInstanceProfilesResponse {
        instance_profiles: page.items,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}

pub(super) fn list_for_role(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListInstanceProfilesForRoleRequest,
) -> ApiResult<iam::ListInstanceProfilesForRoleResponse> {
    let role = roles::find(state, call, &r.role_name)?.key();
    let with = own(&state.profiles, call).filter(|(_, p)| p.role.as_ref() == Some(&role));
    let page = page(with.map(|(k, p)| (k, wire(state, p))), r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListInstanceProfilesForRoleResponse {
        instance_profiles: page.items,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteInstanceProfileRequest) -> Nothing {
    let profile = find(state, call, &r.instance_profile_name)?;
    if profile.role.is_some() {
        return Err(conflict("Cannot delete entity, must remove roles from instance profile first."));
    }
    let key = profile.key();
    state.profiles.remove(&key);
    Ok(Done)
}

pub(super) fn add_role(state: &mut State, call: &Call<'_>, r: &iam::AddRoleToInstanceProfileRequest) -> Nothing {
    let role = roles::find(state, call, &r.role_name)?.key();
    let profile = find(state, call, &r.instance_profile_name)?;
    if profile.role.is_some() {
        return Err(limit("Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1"));
    }
    let changed = Profile { role: Some(role), ..Profile::clone(profile) };
    state.profiles.insert(changed.key(), Arc::new(changed));
    Ok(Done)
}

pub(super) fn remove_role(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::RemoveRoleFromInstanceProfileRequest,
) -> Nothing {
    let role = roles::find(state, call, &r.role_name)?.key();
    let profile = find(state, call, &r.instance_profile_name)?;
    if profile.role.as_ref() != Some(&role) {
        return Err(missing("role in the instance profile", &r.role_name));
    }
    let changed = Profile { role: None, ..Profile::clone(profile) };
    state.profiles.insert(changed.key(), Arc::new(changed));
    Ok(Done)
}

fn find_mut<'s>(state: &'s mut State, call: &Call<'_>, name: &str) -> ApiResult<&'s mut Profile> {
    find(state, call, name)?;
    state.profiles.get_mut(&call.key(name)).map(Arc::make_mut).ok_or_else(|| missing("instance profile", name))
}

pub(super) fn tag(state: &mut State, call: &Call<'_>, r: &iam::TagInstanceProfileRequest) -> Nothing {
    add_tags(&mut find_mut(state, call, &r.instance_profile_name)?.tags, &r.tags)?;
    Ok(Done)
}

pub(super) fn untag(state: &mut State, call: &Call<'_>, r: &iam::UntagInstanceProfileRequest) -> Nothing {
    remove_tags(&mut find_mut(state, call, &r.instance_profile_name)?.tags, &r.tag_keys);
    Ok(Done)
}

pub(super) fn list_tags(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListInstanceProfileTagsRequest,
) -> ApiResult<iam::ListInstanceProfileTagsResponse> {
    let tags = tag_list(&find(state, call, &r.instance_profile_name)?.tags);
    let keyed = tags.into_iter().map(|t| (t.key.clone().unwrap_or_default(), t));
    let page = page(keyed, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListInstanceProfileTagsResponse { tags: page.items, is_truncated: page.is_truncated, marker: page.marker })
}
