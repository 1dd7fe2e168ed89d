//! Managed policies with their versions; inline and attached policies of users, groups and roles.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::identity::aws_managed::{self, AwsManaged};
use crate::identity::records::{Entity, Managed, Version};
use crate::identity::secrets::unique_id;

fn version_id(n: u32) -> String {
    format!("v{n}")
}

/// In the caller's account: others do not learn who uses AWS's.
pub(super) fn attachments(state: &State, call: &Call<'_>, arn: &str) -> i32 {
    let users = own(&state.users, call).filter(|(_, u)| u.policies.attached.contains(arn)).count();
    let groups = own(&state.groups, call).filter(|(_, g)| g.policies.attached.contains(arn)).count();
    let roles = own(&state.roles, call).filter(|(_, r)| r.policies.attached.contains(arn)).count();
    (users + groups + roles) as i32
}

pub(super) fn boundaries(state: &State, call: &Call<'_>, arn: &str) -> i32 {
    let is = |boundary: &Option<String>| boundary.as_deref() == Some(arn);
    let users = own(&state.users, call).filter(|(_, u)| is(&u.boundary)).count();
    (users + own(&state.roles, call).filter(|(_, r)| is(&r.boundary)).count()) as i32
}

/// A policy's version; its document where that is asked for.
pub(super) fn version(n: u32, created_us: u64, default: u32, document: Option<&str>) -> iam::PolicyVersion {
    iam::PolicyVersion {
        create_date: at(created_us),
        document: document.map(encoded),
        is_default_version: Some(n == default),
        version_id: Some(version_id(n)),
    }
}

pub(super) fn attached_policy(arn: &str) -> iam::AttachedPolicy {
    iam::AttachedPolicy { policy_arn: Some(arn.to_owned()), policy_name: arn.rsplit('/').next().map(str::to_owned) }
}

pub(super) fn wire(state: &State, call: &Call<'_>, policy: &Managed) -> iam::Policy {
    let arn = policy.arn();
    iam::Policy {
        attachment_count: Some(attachments(state, call, &arn)),
        permissions_boundary_usage_count: Some(boundaries(state, call, &arn)),
        arn: Some(arn),
        create_date: at(policy.created_us),
        default_version_id: Some(version_id(policy.default)),
        description: policy.description.clone(),
        is_attachable: Some(true),
        path: Some(policy.path.clone()),
        policy_id: Some(policy.id.clone()),
        policy_name: Some(policy.name.clone()),
        tags: tag_opt(&policy.tags),
        update_date: at(policy.updated_us),
    }
}

pub(super) fn wire_aws(state: &State, call: &Call<'_>, policy: &AwsManaged) -> iam::Policy {
    let arn = policy.arn();
    iam::Policy {
        attachment_count: Some(attachments(state, call, &arn)),
        permissions_boundary_usage_count: Some(boundaries(state, call, &arn)),
        create_date: at(0),
        default_version_id: Some("v1".into()),
        is_attachable: Some(true),
        path: Some(policy.path.into()),
        policy_id: Some(format!("ANPA{}", &hex::encode_upper(policy.name)[..16.min(policy.name.len() * 2)])),
        policy_name: Some(policy.name.into()),
        update_date: at(0),
        arn: Some(arn),
        ..Default::default()
    }
}

fn no_policy(arn: &str) -> ApiError {
    ApiError::new(Code::NoSuchEntity, format!("Policy {arn} was not found."))
}

fn find<'s>(state: &'s State, call: &Call<'_>, arn: &str) -> ApiResult<&'s Arc<Managed>> {
    state.policy(arn).filter(|p| p.account == *call.account()).ok_or_else(|| no_policy(arn))
}

/// A policy of the caller's own to change; AWS's are nobody's.
fn change<T>(
    state: &mut State,
    call: &Call<'_>,
    arn: &str,
    how: impl FnOnce(&mut Managed) -> ApiResult<T>,
) -> ApiResult<T> {
    if aws_managed::find(arn).is_some() {
        let message = format!("Policy {arn} is managed by AWS and cannot be changed.");
        return Err(ApiError::new(Code::AccessDenied, message));
    }
    let mut policy = Managed::clone(find(state, call, arn)?);
    let answer = how(&mut policy)?;
    state.policies.insert(policy.key(), Arc::new(policy));
    Ok(answer)
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreatePolicyRequest,
) -> ApiResult<iam::CreatePolicyResponse> {
    let name = checked_name("policyName", &r.policy_name, 128)?;
    if state.policies.contains_key(&call.key(name)) {
        let message = format!("A policy called {name} already exists. Duplicate names are not allowed.");
        return Err(ApiError::new(Code::EntityAlreadyExists, message));
    }
    if own(&state.policies, call).count() >= 1500 {
        return Err(limit("Cannot exceed quota for PoliciesPerAccount: 1500"));
    }
    checked_document(&r.policy_document, Use::Managed)?;
    if r.description.as_ref().is_some_and(|text| text.chars().count() > 1000) {
        return Err(invalid("The description has more than 1000 characters"));
    }
    let now = call.now_us();
    let policy = Managed {
        account: call.account().clone(),
        name: name.to_owned(),
        path: checked_path(r.path.as_deref())?,
        id: unique_id("ANPA"),
        created_us: now,
        updated_us: now,
        description: r.description.clone(),
        versions: BTreeMap::from([(1, Version { document: r.policy_document.clone(), created_us: now })]),
        default: 1,
        next: 2,
        tags: tags_of(&r.tags)?,
    };
    let answer = iam::CreatePolicyResponse { policy: Some(wire(state, call, &policy)) };
    state.policies.insert(policy.key(), Arc::new(policy));
    Ok(answer)
}

pub(super) fn get(state: &State, call: &Call<'_>, r: &iam::GetPolicyRequest) -> ApiResult<iam::GetPolicyResponse> {
    let policy = match aws_managed::find(&r.policy_arn) {
        Some(known) => wire_aws(state, call, known),
        None => wire(state, call, find(state, call, &r.policy_arn)?),
    };
    Ok(iam::GetPolicyResponse { policy: Some(policy) })
}

pub(super) fn list(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListPoliciesRequest,
) -> ApiResult<iam::ListPoliciesResponse> {
    let scope = r.scope.unwrap_or(iam::PolicyScopeType::All);
    let local =
        own(&state.policies, call).map(|(_, p)| wire(state, call, p)).filter(|_| scope != iam::PolicyScopeType::Aws);
    let aws =
        aws_managed::ALL.iter().map(|p| wire_aws(state, call, p)).filter(|_| scope != iam::PolicyScopeType::Local);
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let wanted = |p: &iam::Policy| {
        let used = |n: Option<i32>| n.unwrap_or(0) > 0;
        p.path.as_deref().is_some_and(|path| path.starts_with(prefix))
            && (r.only_attached != Some(true) || used(p.attachment_count))
            && match r.policy_usage_filter {
                None => true,
                Some(iam::PolicyUsageType::PermissionsPolicy) => used(p.attachment_count),
                Some(iam::PolicyUsageType::PermissionsBoundary) => used(p.permissions_boundary_usage_count),
            }
    };
    let all: BTreeMap<String, iam::Policy> =
        local.chain(aws).filter(wanted).map(|p| (p.arn.clone().unwrap_or_default(), p)).collect();
    let page = page(all.into_iter(), r.marker.as_deref(), r.max_items)?;
    let policies = page.items.into_iter().map(|p| iam::Policy { tags: None, description: None, ..p }).collect();
    Ok(iam::ListPoliciesResponse { policies, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeletePolicyRequest) -> Nothing {
    let arn = &r.policy_arn;
    change(state, call, arn, |_| Ok(()))?;
    let policy = find(state, call, arn)?.clone();
    if attachments(state, call, arn) > 0 || boundaries(state, call, arn) > 0 {
        return Err(conflict("Cannot delete a policy attached to entities."));
    }
    if policy.versions.len() > 1 {
        return Err(conflict(
            "This policy has more than one version. Before you delete a policy, you must delete the \
                             policy's versions. The default version is deleted with the policy.",
        ));
    }
    state.policies.remove(&policy.key());
    Ok(Done)
}

pub(super) fn create_version(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreatePolicyVersionRequest,
) -> ApiResult<iam::CreatePolicyVersionResponse> {
    checked_document(&r.policy_document, Use::Managed)?;
    let now = call.now_us();
    let version = change(state, call, &r.policy_arn, |policy| {
        if policy.versions.len() >= 5 {
            return Err(limit(
                "A managed policy can have up to 5 versions. Before you create a new version, you must \
                              delete an existing version.",
            ));
        }
        let n = policy.next;
        policy.versions.insert(n, Version { document: r.policy_document.clone(), created_us: now });
        (policy.next, policy.updated_us) = (n + 1, now);
        if r.set_as_default == Some(true) {
            policy.default = n;
        }
        Ok(version(n, now, policy.default, None))
    })?;
    Ok(iam::CreatePolicyVersionResponse { policy_version: Some(version) })
}

fn number(id: &str) -> ApiResult<u32> {
    let n = id.strip_prefix('v').and_then(|n| n.parse().ok());
    n.ok_or_else(|| invalid(format!("Value '{id}' at 'versionId' is no version")))
}

fn no_version(arn: &str, id: &str) -> ApiError {
    ApiError::new(Code::NoSuchEntity, format!("Policy {arn} version {id} does not exist or is not attachable."))
}

pub(super) fn get_version(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetPolicyVersionRequest,
) -> ApiResult<iam::GetPolicyVersionResponse> {
    let n = number(&r.version_id)?;
    let (document, created_us, default) = match aws_managed::find(&r.policy_arn) {
        Some(known) if n == 1 => (known.document.to_owned(), 0, 1),
        Some(_) => return Err(no_version(&r.policy_arn, &r.version_id)),
        None => {
            let policy = find(state, call, &r.policy_arn)?;
            let version = policy.versions.get(&n).ok_or_else(|| no_version(&r.policy_arn, &r.version_id))?;
            (version.document.clone(), version.created_us, policy.default)
        }
    };
    let version = version(n, created_us, default, Some(&document));
    Ok(iam::GetPolicyVersionResponse { policy_version: Some(version) })
}

pub(super) fn list_versions(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListPolicyVersionsRequest,
) -> ApiResult<iam::ListPolicyVersionsResponse> {
    let versions: Vec<_> = match aws_managed::find(&r.policy_arn) {
        Some(_) => vec![version(1, 0, 1, None)],
        None => {
            let policy = find(state, call, &r.policy_arn)?;
            policy.versions.iter().rev().map(|(n, v)| version(*n, v.created_us, policy.default, None)).collect()
        }
    };
    let keyed = versions.into_iter().enumerate().map(|(at, v)| (format!("{at:04}"), v));
    let page = page(keyed, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListPolicyVersionsResponse { versions: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn delete_version(state: &mut State, call: &Call<'_>, r: &iam::DeletePolicyVersionRequest) -> Nothing {
    let n = number(&r.version_id)?;
    change(state, call, &r.policy_arn, |policy| {
        if policy.default == n {
            return Err(conflict("Cannot delete the default version of a policy."));
        }
        policy.versions.remove(&n).map(|_| Done).ok_or_else(|| no_version(&r.policy_arn, &r.version_id))
    })
}

pub(super) fn set_default(state: &mut State, call: &Call<'_>, r: &iam::SetDefaultPolicyVersionRequest) -> Nothing {
    let n = number(&r.version_id)?;
    let now = call.now_us();
    change(state, call, &r.policy_arn, |policy| {
        if !policy.versions.contains_key(&n) {
            return Err(no_version(&r.policy_arn, &r.version_id));
        }
        (policy.default, policy.updated_us) = (n, now);
        Ok(Done)
    })
}

pub(super) fn tag(state: &mut State, call: &Call<'_>, r: &iam::TagPolicyRequest) -> Nothing {
    change(state, call, &r.policy_arn, |policy| add_tags(&mut policy.tags, &r.tags).map(|()| Done))
}

pub(super) fn untag(state: &mut State, call: &Call<'_>, r: &iam::UntagPolicyRequest) -> Nothing {
    change(state, call, &r.policy_arn, |policy| {
        remove_tags(&mut policy.tags, &r.tag_keys);
        Ok(Done)
    })
}

pub(super) fn list_tags(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListPolicyTagsRequest,
) -> ApiResult<iam::ListPolicyTagsResponse> {
    let tags = match aws_managed::find(&r.policy_arn) {
        Some(_) => Vec::new(),
        None => tag_list(&find(state, call, &r.policy_arn)?.tags),
    };
    let page =
        page(tags.into_iter().map(|t| (t.key.clone().unwrap_or_default(), t)), r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListPolicyTagsResponse { tags: page.items, is_truncated: page.is_truncated, marker: page.marker })
}

pub(super) fn entities(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListEntitiesForPolicyRequest,
) -> ApiResult<iam::ListEntitiesForPolicyResponse> {
    if aws_managed::find(&r.policy_arn).is_none() {
        find(state, call, &r.policy_arn)?;
    }
    let prefix = r.path_prefix.as_deref().unwrap_or("/");
    let wants = |kind| r.entity_filter.is_none_or(|f| f == kind);
    let as_policy = r.policy_usage_filter != Some(iam::PolicyUsageType::PermissionsBoundary);
    let as_boundary = r.policy_usage_filter != Some(iam::PolicyUsageType::PermissionsPolicy);
    let has = |policies: &Policies, boundary: Option<&String>, path: &str| {
        path.starts_with(prefix)
            && (as_policy && policies.attached.contains(&r.policy_arn)
                || as_boundary && boundary == Some(&r.policy_arn))
    };
    enum Found {
        Group(iam::PolicyGroup),
        Role(iam::PolicyRole),
        User(iam::PolicyUser),
    }
    let mut all = BTreeMap::new();
    for (key, g) in own(&state.groups, call).filter(|_| wants(iam::EntityType::Group)) {
        if has(&g.policies, None, &g.path) {
            let found = iam::PolicyGroup { group_id: Some(g.id.clone()), group_name: Some(g.name.clone()) };
            all.insert(format!("group/{key}"), Found::Group(found));
        }
    }
    for (key, x) in own(&state.roles, call).filter(|_| wants(iam::EntityType::Role)) {
        if has(&x.policies, x.boundary.as_ref(), &x.path) {
            let found = iam::PolicyRole { role_id: Some(x.id.clone()), role_name: Some(x.name.clone()) };
            all.insert(format!("role/{key}"), Found::Role(found));
        }
    }
    for (key, u) in own(&state.users, call).filter(|_| wants(iam::EntityType::User)) {
        if has(&u.policies, u.boundary.as_ref(), &u.path) {
            let found = iam::PolicyUser { user_id: Some(u.id.clone()), user_name: Some(u.name.clone()) };
            all.insert(format!("user/{key}"), Found::User(found));
        }
    }
    let page = page(all.into_iter(), r.marker.as_deref(), r.max_items)?;
    let mut answer = iam::ListEntitiesForPolicyResponse {
        is_truncated: page.is_truncated,
        marker: page.marker,
        ..Default::default()
    };
    for found in page.items {
        match found {
            Found::Group(g) => answer.policy_groups.push(g),
            Found::Role(r) => answer.policy_roles.push(r),
            Found::User(u) => answer.policy_users.push(u),
        }
    }
    Ok(answer)
}

fn attach(state: &mut State, call: &Call<'_>, holder: Holder<'_>, arn: &str) -> Nothing {
    let arn = checked_policy(state, call, arn)?;
    let policies = holder.policies_mut(state, call)?;
    if policies.attached.len() >= 10 && !policies.attached.contains(&arn) {
        return Err(limit("Cannot exceed quota for PoliciesPerEntity: 10"));
    }
    policies.attached.insert(arn);
    Ok(Done)
}

fn detach(state: &mut State, call: &Call<'_>, holder: Holder<'_>, arn: &str) -> Nothing {
    match holder.policies_mut(state, call)?.attached.remove(arn) {
        true => Ok(Done),
        false => Err(no_policy(arn)),
    }
}

fn attached(
    state: &State,
    call: &Call<'_>,
    holder: Holder<'_>,
    (prefix, marker, max): (Option<&String>, Option<&String>, Option<i32>),
) -> ApiResult<Page<iam::AttachedPolicy>> {
    let prefix = prefix.map_or("/", String::as_str);
    let policies = holder.policies(state, call)?;
    let under = policies.attached.iter().filter(|arn| {
        arn.split_once(":policy").and_then(|(_, p)| Some(&p[..=p.rfind('/')?])).is_some_and(|p| p.starts_with(prefix))
    });
    page(under.map(|arn| (arn.clone(), attached_policy(arn))), marker.map(String::as_str), max)
}

fn put(state: &mut State, call: &Call<'_>, holder: Holder<'_>, name: &str, document: &str) -> Nothing {
    let name = checked_name("policyName", name, 128)?;
    let purpose = holder.inline();
    holder.policies(state, call)?;
    checked_document(document, purpose)?;
    let policies = holder.policies_mut(state, call)?;
    policies.inline.insert(name.to_owned(), document.to_owned());
    // The quota is for all inline policies of one together; white space does not count, within reason.
    let size: usize = policies.inline.values().map(|text| purpose.size(text)).sum();
    let raw: usize = policies.inline.values().map(String::len).sum();
    match size <= purpose.size_max() && raw <= purpose.raw_max() {
        true => Ok(Done),
        false => Err(limit(format!("Maximum policy size of {} bytes exceeded", purpose.size_max()))),
    }
}

fn no_inline(name: &str) -> ApiError {
    missing("policy", name)
}

fn inline(state: &State, call: &Call<'_>, holder: Holder<'_>, name: &str) -> ApiResult<Option<String>> {
    let found = holder.policies(state, call)?.inline.get(name);
    found.map(|text| Some(encoded(text))).ok_or_else(|| no_inline(name))
}

fn delete_inline(state: &mut State, call: &Call<'_>, holder: Holder<'_>, name: &str) -> Nothing {
    let removed = holder.policies_mut(state, call)?.inline.remove(name);
    removed.map(|_| Done).ok_or_else(|| no_inline(name))
}

fn names(
    state: &State,
    call: &Call<'_>,
    holder: Holder<'_>,
    marker: Option<&String>,
    max: Option<i32>,
) -> ApiResult<Page<String>> {
    let policies = holder.policies(state, call)?;
    page(policies.inline.keys().map(|n| (n.clone(), n.clone())), marker.map(String::as_str), max)
}

macro_rules! families {
    ($($holder:ident $field:ident: $attach:ident $Attach:ident $detach:ident $Detach:ident $attached:ident $Attached:ident
        $AttachedOut:ident $put:ident $Put:ident $get:ident $Get:ident $GetOut:ident $delete:ident $Delete:ident
        $list:ident $List:ident $ListOut:ident;)*) => {$(
        pub(super) fn $attach(state: &mut State, call: &Call<'_>, r: &iam::$Attach) -> Nothing {
            attach(state, call, Holder::$holder(&r.$field), &r.policy_arn)
        }
        pub(super) fn $detach(state: &mut State, call: &Call<'_>, r: &iam::$Detach) -> Nothing {
            detach(state, call, Holder::$holder(&r.$field), &r.policy_arn)
        }
        pub(super) fn $attached(state: &State, call: &Call<'_>, r: &iam::$Attached) -> ApiResult<iam::$AttachedOut> {
            let ask = (r.path_prefix.as_ref(), r.marker.as_ref(), r.max_items);
            let page = attached(state, call, Holder::$holder(&r.$field), ask)?;
            Ok(iam::$AttachedOut { attached_policies: page.items, is_truncated: page.is_truncated, marker: page.marker })
        }
        pub(super) fn $put(state: &mut State, call: &Call<'_>, r: &iam::$Put) -> Nothing {
            put(state, call, Holder::$holder(&r.$field), &r.policy_name, &r.policy_document)
        }
        pub(super) fn $get(state: &State, call: &Call<'_>, r: &iam::$Get) -> ApiResult<iam::$GetOut> {
            let policy_document = inline(state, call, Holder::$holder(&r.$field), &r.policy_name)?;
            let policy_name = Some(r.policy_name.clone());
            Ok(iam::$GetOut { $field: Some(r.$field.clone()), policy_document, policy_name })
        }
        pub(super) fn $delete(state: &mut State, call: &Call<'_>, r: &iam::$Delete) -> Nothing {
            delete_inline(state, call, Holder::$holder(&r.$field), &r.policy_name)
        }
        pub(super) fn $list(state: &State, call: &Call<'_>, r: &iam::$List) -> ApiResult<iam::$ListOut> {
            let page = names(state, call, Holder::$holder(&r.$field), r.marker.as_ref(), r.max_items)?;
            Ok(iam::$ListOut { policy_names: page.items, is_truncated: page.is_truncated, marker: page.marker })
        }
    )*};
}
families! {
    User user_name: attach_user AttachUserPolicyRequest detach_user DetachUserPolicyRequest
        attached_to_user ListAttachedUserPoliciesRequest ListAttachedUserPoliciesResponse
        put_in_user PutUserPolicyRequest get_in_user GetUserPolicyRequest GetUserPolicyResponse
        delete_in_user DeleteUserPolicyRequest list_in_user ListUserPoliciesRequest ListUserPoliciesResponse;
    Group group_name: attach_group AttachGroupPolicyRequest detach_group DetachGroupPolicyRequest
        attached_to_group ListAttachedGroupPoliciesRequest ListAttachedGroupPoliciesResponse
        put_in_group PutGroupPolicyRequest get_in_group GetGroupPolicyRequest GetGroupPolicyResponse
        delete_in_group DeleteGroupPolicyRequest list_in_group ListGroupPoliciesRequest ListGroupPoliciesResponse;
    Role role_name: attach_role AttachRolePolicyRequest detach_role DetachRolePolicyRequest
        attached_to_role ListAttachedRolePoliciesRequest ListAttachedRolePoliciesResponse
        put_in_role PutRolePolicyRequest get_in_role GetRolePolicyRequest GetRolePolicyResponse
        delete_in_role DeleteRolePolicyRequest list_in_role ListRolePoliciesRequest ListRolePoliciesResponse;
}
