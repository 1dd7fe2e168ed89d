//! Groups, and who is in them.

use std::sync::Arc;

use super::*;
use crate::identity::records::{Entity, Group};
use crate::identity::secrets::unique_id;

fn wire(group: &Group) -> iam::Group {
    iam::Group {
        arn: Some(group.arn()),
        create_date: at(group.created_us),
        group_id: Some(group.id.clone()),
        group_name: Some(group.name.clone()),
        path: Some(group.path.clone()),
    }
}

fn find<'s>(state: &'s State, call: &Call<'_>, name: &str) -> ApiResult<&'s Arc<Group>> {
    state.groups.get(&call.key(name)).ok_or_else(|| missing("group", name))
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateGroupRequest,
) -> ApiResult<iam::CreateGroupResponse> {
    let name = checked_name("groupName", &r.group_name, 128)?;
    if state.groups.contains_key(&call.key(name)) {
        return Err(exists("Group", name));
    }
    if own(&state.groups, call).count() >= 300 {
        return Err(limit("Cannot exceed quota for GroupsPerAccount: 300"));
    }
    let group = Group {
        account: call.account().clone(),
        name: name.to_owned(),
        path: checked_path(r.path.as_deref())?,
        id: unique_id("AGPA"),
        created_us: call.now_us(),
        policies: Policies::default(),
    };
    let answer = iam::CreateGroupResponse { group: Some(wire(&group)) };
    state.groups.insert(group.key(), Arc::new(group));
    Ok(answer)
}

pub(super) fn get(state: &State, call: &Call<'_>, r: &iam::GetGroupRequest) -> ApiResult<iam::GetGroupResponse> {
    let group = find(state, call, &r.group_name)?;
    let key = group.key();
    let members = own(&state.users, call).filter(|(_, u)| u.groups.contains(&key));
    let members = members.map(|(k, u)| (k, iam::User { tags: None, ..users::wire(u) }));
    let page = page(members, r.marker.as_deref(), r.max_items)?;
    Ok(iam::GetGroupResponse {
        group: Some(wire(group)),
        users: page.items,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}

pub(super) fn list(state: &State, call: &Call<'_>, r: &iam::ListGroupsRequest) -> ApiResult<iam::ListGroupsResponse> {
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let under = own(&state.groups, call).filter(|(_, g)| g.path.starts_with(prefix));
    let page = page(under.map(|(k, g)| (k, wire(g))), r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListGroupsResponse { groups: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn list_for_user(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListGroupsForUserRequest,
) -> ApiResult<iam::ListGroupsForUserResponse> {
    let user = users::find(state, call, &r.user_name)?;
    let groups = user.groups.iter().filter_map(|key| Some((key.clone(), wire(state.groups.get(key)?))));
    let page = page(groups, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListGroupsForUserResponse { groups: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn update(state: &mut State, call: &Call<'_>, r: &iam::UpdateGroupRequest) -> Nothing {
    let mut group = Group::clone(find(state, call, &r.group_name)?);
    let old_key = group.key();
    if let Some(path) = &r.new_path {
        group.path = checked_path(Some(path))?;
    }
    if let Some(name) = &r.new_group_name {
        group.name = checked_name("newGroupName", name, 128)?.to_owned();
    }
    let new_key = group.key();
    if new_key != old_key {
        if state.groups.contains_key(&new_key) {
            return Err(exists("Group", &group.name));
        }
        state.groups.remove(&old_key);
        for user in state.users.values_mut().filter(|u| u.groups.contains(&old_key)) {
            let user = Arc::make_mut(user);
            user.groups.remove(&old_key);
            user.groups.insert(new_key.clone());
        }
    }
    state.groups.insert(new_key, Arc::new(group));
    Ok(Done)
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteGroupRequest) -> Nothing {
    let group = find(state, call, &r.group_name)?.clone();
    let key = group.key();
    let why = match () {
        () if !group.policies.attached.is_empty() => "Cannot delete entity, must detach all policies first.",
        () if !group.policies.inline.is_empty() => "Cannot delete entity, must delete policies first.",
        () if state.users.values().any(|u| u.groups.contains(&key)) => {
            "Cannot delete entity, must remove users from group first."
        }
        () => "",
    };
    if !why.is_empty() {
        return Err(conflict(why));
    }
    state.groups.remove(&key);
    Ok(Done)
}

pub(super) fn add_user(state: &mut State, call: &Call<'_>, r: &iam::AddUserToGroupRequest) -> Nothing {
    let key = find(state, call, &r.group_name)?.key();
    let user = users::find_mut(state, call, &r.user_name)?;
    if user.groups.len() >= 10 && !user.groups.contains(&key) {
        return Err(limit("Cannot exceed quota for GroupsPerUser: 10"));
    }
    user.groups.insert(key);
    Ok(Done)
}

pub(super) fn remove_user(state: &mut State, call: &Call<'_>, r: &iam::RemoveUserFromGroupRequest) -> Nothing {
    let key = find(state, call, &r.group_name)?.key();
    match users::find_mut(state, call, &r.user_name)?.groups.remove(&key) {
        true => Ok(Done),
        false => Err(missing("user in the group", &r.user_name)),
    }
}
