//! The whole account at once, and which policies let somebody use a service.

use karri_base::aws::policy::document::{Statement, These};

use super::policies::{attached_policy, attachments, boundaries, version, wire, wire_aws};
use super::*;
use crate::identity::aws_managed::{self, AwsManaged};
use crate::identity::records::{Group, Managed, Role, User};

enum Found<'s> {
    User(&'s User),
    Group(&'s Group),
    Role(&'s Role),
    Policy(&'s Managed),
    Aws(&'static AwsManaged),
}

fn inline(policies: &Policies) -> Option<Vec<iam::PolicyDetail>> {
    let detail = |(name, text): (&String, &String)| iam::PolicyDetail {
        policy_name: Some(name.clone()),
        policy_document: Some(encoded(text)),
    };
    Some(policies.inline.iter().map(detail).collect())
}

fn attached(policies: &Policies) -> Option<Vec<iam::AttachedPolicy>> {
    Some(policies.attached.iter().map(|arn| attached_policy(arn)).collect())
}

fn user(state: &State, user: &User) -> iam::UserDetail {
    let groups = user.groups.iter().filter_map(|key| state.groups.get(key)).map(|g| g.name.clone());
    iam::UserDetail {
        arn: Some(user.arn()),
        attached_managed_policies: attached(&user.policies),
        create_date: at(user.created_us),
        group_list: Some(groups.collect()),
        path: Some(user.path.clone()),
        permissions_boundary: boundary_of(&user.boundary),
        tags: Some(tag_list(&user.tags)),
        user_id: Some(user.id.clone()),
        user_name: Some(user.name.clone()),
        user_policy_list: inline(&user.policies),
    }
}

fn group(group: &Group) -> iam::GroupDetail {
    iam::GroupDetail {
        arn: Some(group.arn()),
        attached_managed_policies: attached(&group.policies),
        create_date: at(group.created_us),
        group_id: Some(group.id.clone()),
        group_name: Some(group.name.clone()),
        group_policy_list: inline(&group.policies),
        path: Some(group.path.clone()),
    }
}

fn role(state: &State, call: &Call<'_>, role: &Role) -> iam::RoleDetail {
    use crate::identity::records::Entity as _;
    let key = role.key();
    let profiles = own(&state.profiles, call).filter(|(_, p)| p.role.as_ref() == Some(&key));
    iam::RoleDetail {
        arn: Some(role.arn()),
        assume_role_policy_document: Some(encoded(&role.trust)),
        attached_managed_policies: attached(&role.policies),
        create_date: at(role.created_us),
        instance_profile_list: Some(profiles.map(|(_, p)| profiles::wire(state, p)).collect()),
        path: Some(role.path.clone()),
        permissions_boundary: boundary_of(&role.boundary),
        role_id: Some(role.id.clone()),
        role_last_used: Some(roles::last_used(call, role)),
        role_name: Some(role.name.clone()),
        role_policy_list: inline(&role.policies),
        tags: Some(tag_list(&role.tags)),
    }
}

fn policy(state: &State, call: &Call<'_>, policy: &Managed) -> iam::ManagedPolicyDetail {
    let versions = policy.versions.iter().rev();
    let versions = versions.map(|(n, v)| version(*n, v.created_us, policy.default, Some(&v.document)));
    detail(wire(state, call, policy), versions.collect())
}

fn aws(state: &State, call: &Call<'_>, known: &AwsManaged) -> iam::ManagedPolicyDetail {
    detail(wire_aws(state, call, known), vec![version(1, 0, 1, Some(known.document))])
}

/// A policy as it is shown by itself, without its tags, and its versions.
fn detail(policy: iam::Policy, versions: Vec<iam::PolicyVersion>) -> iam::ManagedPolicyDetail {
    iam::ManagedPolicyDetail {
        arn: policy.arn,
        attachment_count: policy.attachment_count,
        create_date: policy.create_date,
        default_version_id: policy.default_version_id,
        description: policy.description,
        is_attachable: policy.is_attachable,
        path: policy.path,
        permissions_boundary_usage_count: policy.permissions_boundary_usage_count,
        policy_id: policy.policy_id,
        policy_name: policy.policy_name,
        policy_version_list: Some(versions),
        update_date: policy.update_date,
    }
}

/// Users, groups, roles, own policies and those of AWS's that are in use, in this order over all pages.
pub(super) fn all(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetAccountAuthorizationDetailsRequest,
) -> ApiResult<iam::GetAccountAuthorizationDetailsResponse> {
    use iam::EntityType as Kind;
    let wants = |kind: Kind| r.filter.is_empty() || r.filter.contains(&kind);
    let is_used = |p: &&AwsManaged| attachments(state, call, &p.arn()) + boundaries(state, call, &p.arn()) > 0;
    let users = own(&state.users, call).filter(|_| wants(Kind::User)).map(|(k, x)| (1, k, Found::User(x)));
    let groups = own(&state.groups, call).filter(|_| wants(Kind::Group)).map(|(k, x)| (2, k, Found::Group(x)));
    let roles = own(&state.roles, call).filter(|_| wants(Kind::Role)).map(|(k, x)| (3, k, Found::Role(x)));
    let policies = own(&state.policies, call).filter(|_| wants(Kind::LocalManagedPolicy));
    let policies = policies.map(|(k, x)| (4, k, Found::Policy(x)));
    let of_aws = aws_managed::ALL.iter().filter(|_| wants(Kind::AwsmanagedPolicy)).filter(is_used);
    let of_aws = of_aws.map(|p| (5, p.name.to_owned(), Found::Aws(p)));
    let everything = users.chain(groups).chain(roles).chain(policies).chain(of_aws);
    let page = page(everything.map(|(n, k, found)| (format!("{n}{k}"), found)), r.marker.as_deref(), r.max_items)?;
    let mut answer = iam::GetAccountAuthorizationDetailsResponse {
        is_truncated: page.is_truncated,
        marker: page.marker,
        ..Default::default()
    };
    for found in page.items {
        match found {
            Found::User(x) => answer.user_detail_list.push(user(state, x)),
            Found::Group(x) => answer.group_detail_list.push(group(x)),
            Found::Role(x) => answer.role_detail_list.push(role(state, call, x)),
            Found::Policy(x) => answer.policies.push(policy(state, call, x)),
            Found::Aws(x) => answer.policies.push(aws(state, call, x)),
        }
    }
    Ok(answer)
}

/// Whether a document lets one do something of a service.
fn grants(document: &str, service: &str) -> bool {
    let of_it = |text: &str| text.split_once(':').is_some_and(|(of, _)| of.eq_ignore_ascii_case(service));
    let allows = |s: &Statement| match &s.actions {
        These::Only(list) => list.iter().any(|a| a.text == "*" || of_it(&a.text)),
        These::AllBut(list) => !list.iter().any(|a| a.text == "*" || of_it(&a.text) && a.text.ends_with(":*")),
    };
    let policy = Policy::parse(document, Use::Simulated);
    policy.is_ok_and(|p| p.statements.iter().any(|s| s.effect == karri_base::aws::policy::Effect::Allow && allows(s)))
}

/// Which policies of a user (its groups' included), group or role let it use these services.
pub(super) fn granting(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListPoliciesGrantingServiceAccessRequest,
) -> ApiResult<iam::ListPoliciesGrantingServiceAccessResponse> {
    use iam::PolicyOwnerEntityType as Owner;
    let services = &r.service_namespaces;
    if services.len() > 200 || services.iter().any(|s| !(1..=64).contains(&s.len())) {
        return Err(invalid("ServiceNamespaces has 1 to 200 names of 1 to 64 characters"));
    }
    let mut holders: Vec<(Owner, &str, &Policies)> = Vec::new();
    if let Some((_, user)) = own(&state.users, call).find(|(_, u)| u.arn() == r.arn) {
        holders.push((Owner::User, &user.name, &user.policies));
        let groups = user.groups.iter().filter_map(|key| state.groups.get(key));
        holders.extend(groups.map(|g| (Owner::Group, g.name.as_str(), &g.policies)));
    } else if let Some((_, group)) = own(&state.groups, call).find(|(_, g)| g.arn() == r.arn) {
        holders.push((Owner::Group, &group.name, &group.policies));
    } else if let Some((_, role)) = own(&state.roles, call).find(|(_, x)| x.arn() == r.arn) {
        holders.push((Owner::Role, &role.name, &role.policies));
    } else {
        return Err(ApiError::new(Code::NoSuchEntity, format!("The entity {} cannot be found.", r.arn)));
    }
    let keyed = services.iter().enumerate().map(|(at, service)| (format!("{at:03}"), service));
    let page = page(keyed, r.marker.as_deref(), None)?;
    let entry = |service: &String| {
        let mut found: Vec<iam::PolicyGrantingServiceAccess> = Vec::new();
        for (owner, holder, policies) in &holders {
            for name in policies.inline.iter().filter(|(_, text)| grants(text, service)).map(|(name, _)| name) {
                found.push(iam::PolicyGrantingServiceAccess {
                    entity_name: Some((*holder).to_owned()),
                    entity_type: Some(*owner),
                    policy_arn: None,
                    policy_name: Some(name.clone()),
                    policy_type: Some(iam::PolicyType::Inline),
                });
            }
            for arn in &policies.attached {
                let is_known = found.iter().any(|known| known.policy_arn.as_ref() == Some(arn));
                if !is_known && state.document(arn).is_some_and(|text| grants(text, service)) {
                    found.push(iam::PolicyGrantingServiceAccess {
                        policy_arn: Some(arn.clone()),
                        policy_name: arn.rsplit('/').next().map(str::to_owned),
                        policy_type: Some(iam::PolicyType::Managed),
                        ..Default::default()
                    });
                }
            }
        }
        iam::ListPoliciesGrantingServiceAccessEntry { policies: Some(found), service_namespace: Some(service.clone()) }
    };
    Ok(iam::ListPoliciesGrantingServiceAccessResponse {
        policies_granting_service_access: page.items.into_iter().map(entry).collect(),
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}
