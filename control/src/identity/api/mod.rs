//! The IAM actions: typed requests in, typed answers out. A handler is a function over [`State`]; those that change it
//! run in one change, so that they happen whole and alone.

mod absent;
mod account;
mod details;
mod groups;
mod keys;
mod passwords;
mod policies;
mod profiles;
mod providers;
mod report;
mod roles;
mod simulate;
mod users;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use karri_base::aws::arn::Arn;
use karri_base::aws::policy::{Context, Policy, PolicyError, Use};
use karri_base::id::AccountId;

use super::Directory;
use super::authorize::{Caller, parameters_context, tags_context, tags_given};
use super::records::{Bearer, Policies, Tags, named};
use super::state::State;
use crate::cloud::error::{ApiError, ApiResult, Code};
use crate::wire::generated::iam;
use crate::wire::{Done, Invalid, Operation, Timestamp, ToXml, Tree, Xml};

/// A request being answered.
pub struct Call<'a> {
    /// The identities.
    pub directory: &'a Directory,
    /// Who asks.
    pub caller: &'a Caller,
    /// For the answer.
    pub request_id: &'a str,
}

impl Call<'_> {
    /// The account that asks.
    pub fn account(&self) -> &AccountId {
        self.caller.account()
    }
    /// Microseconds since 1970.
    pub fn now_us(&self) -> u64 {
        self.caller.now.0
    }
    /// The key of what has this name in the caller's account.
    fn key(&self, name: &str) -> String {
        named(self.account(), name)
    }
    /// The name of the user that asks, for actions where UserName may be absent.
    fn own_name(&self) -> ApiResult<&str> {
        self.caller.identity.principal.username().ok_or_else(|| {
            let message = "Must specify userName when calling with non-User credentials";
            ApiError::new(Code::ValidationError, message)
        })
    }
}

/// Answers an IAM action.
///
/// # Errors
/// AWS's codes.
pub async fn answer(call: &Call<'_>, name: &str, tree: &Tree) -> ApiResult<String> {
    use iam::Action as A;
    let Some(action) = A::from_name(name) else { return Err(not_served(name, iam::UNSERVED)) };
    authorize(call, name, tree)?;
    macro_rules! read {
        ($handler:expr) => {
            render(call, tree, iam::NAMESPACE, |request| $handler(&call.directory.state(), call, request))
        };
    }
    macro_rules! write {
        ($handler:expr) => {{
            let request = parse(tree).map_err(validation)?;
            let output = call.directory.change(|state| $handler(state, call, &request)).await?;
            Ok(xml(call, iam::NAMESPACE, &request, &output))
        }};
        // What takes long is done first: changes wait for each other.
        ($handler:expr, $before:expr) => {{
            let request = parse(tree).map_err(validation)?;
            let made = $before(call, &request).await?;
            let output = call.directory.change(|state| $handler(state, call, &request, made)).await?;
            Ok(xml(call, iam::NAMESPACE, &request, &output))
        }};
    }
    match action {
        A::AddClientIDToOpenIDConnectProvider => write!(providers::add_client),
        A::AddRoleToInstanceProfile => write!(profiles::add_role),
        A::AddUserToGroup => write!(groups::add_user),
        A::AttachGroupPolicy => write!(policies::attach_group),
        A::AttachRolePolicy => write!(policies::attach_role),
        A::AttachUserPolicy => write!(policies::attach_user),
        A::ChangePassword => write!(passwords::change, passwords::hash_changed),
        A::CreateAccessKey => write!(keys::create),
        A::CreateAccountAlias => write!(account::create_alias),
        A::CreateGroup => write!(groups::create),
        A::CreateInstanceProfile => write!(profiles::create),
        A::CreateLoginProfile => write!(keys::create_login, keys::hash_created),
        A::CreateOpenIDConnectProvider => write!(providers::create),
        A::CreatePolicy => write!(policies::create),
        A::CreatePolicyVersion => write!(policies::create_version),
        A::CreateRole => write!(roles::create),
        A::CreateUser => write!(users::create),
        A::DeleteAccessKey => write!(keys::delete),
        A::DeleteAccountAlias => write!(account::delete_alias),
        A::DeleteAccountPasswordPolicy => write!(passwords::delete_policy),
        A::DeleteGroup => write!(groups::delete),
        A::DeleteGroupPolicy => write!(policies::delete_in_group),
        A::DeleteInstanceProfile => write!(profiles::delete),
        A::DeleteLoginProfile => write!(keys::delete_login),
        A::DeleteOpenIDConnectProvider => write!(providers::delete),
        A::DeletePolicy => write!(policies::delete),
        A::DeletePolicyVersion => write!(policies::delete_version),
        A::DeleteRole => write!(roles::delete),
        A::DeleteRolePermissionsBoundary => write!(roles::delete_boundary),
        A::DeleteRolePolicy => write!(policies::delete_in_role),
        A::DeleteUser => write!(users::delete),
        A::DeleteUserPermissionsBoundary => write!(users::delete_boundary),
        A::DeleteUserPolicy => write!(policies::delete_in_user),
        A::DetachGroupPolicy => write!(policies::detach_group),
        A::DetachRolePolicy => write!(policies::detach_role),
        A::DetachUserPolicy => write!(policies::detach_user),
        A::GenerateCredentialReport => read!(report::generate),
        A::GetAccessKeyLastUsed => read!(keys::last_used),
        A::GetAccountAuthorizationDetails => read!(details::all),
        A::GetAccountPasswordPolicy => read!(passwords::get_policy),
        A::GetAccountSummary => read!(account::summary),
        A::GetContextKeysForCustomPolicy => read!(simulate::keys_of_custom),
        A::GetContextKeysForPrincipalPolicy => read!(simulate::keys_of_principal),
        A::GetCredentialReport => read!(report::get),
        A::GetGroup => read!(groups::get),
        A::GetGroupPolicy => read!(policies::get_in_group),
        A::GetInstanceProfile => read!(profiles::get),
        A::GetLoginProfile => read!(keys::get_login),
        A::GetOpenIDConnectProvider => read!(providers::get),
        A::GetPolicy => read!(policies::get),
        A::GetPolicyVersion => read!(policies::get_version),
        A::GetRole => read!(roles::get),
        A::GetRolePolicy => read!(policies::get_in_role),
        A::GetUser => read!(users::get),
        A::GetUserPolicy => read!(policies::get_in_user),
        A::ListAccessKeys => read!(keys::list),
        A::ListAccountAliases => read!(account::aliases),
        A::ListAttachedGroupPolicies => read!(policies::attached_to_group),
        A::ListAttachedRolePolicies => read!(policies::attached_to_role),
        A::ListAttachedUserPolicies => read!(policies::attached_to_user),
        A::ListEntitiesForPolicy => read!(policies::entities),
        A::ListGroupPolicies => read!(policies::list_in_group),
        A::ListGroups => read!(groups::list),
        A::ListGroupsForUser => read!(groups::list_for_user),
        A::ListInstanceProfileTags => read!(profiles::list_tags),
        A::ListInstanceProfiles => read!(profiles::list),
        A::ListInstanceProfilesForRole => read!(profiles::list_for_role),
        A::ListMFADevices => read!(absent::mfa_devices),
        A::ListOpenIDConnectProviderTags => read!(providers::list_tags),
        A::ListOpenIDConnectProviders => read!(providers::list),
        A::ListPolicies => read!(policies::list),
        A::ListPoliciesGrantingServiceAccess => read!(details::granting),
        A::ListPolicyTags => read!(policies::list_tags),
        A::ListPolicyVersions => read!(policies::list_versions),
        A::ListRolePolicies => read!(policies::list_in_role),
        A::ListRoleTags => read!(roles::list_tags),
        A::ListRoles => read!(roles::list),
        A::ListSAMLProviders => read!(absent::saml_providers),
        A::ListSSHPublicKeys => read!(absent::ssh_keys),
        A::ListServerCertificates => read!(absent::server_certificates),
        A::ListServiceSpecificCredentials => read!(absent::service_credentials),
        A::ListSigningCertificates => read!(absent::signing_certificates),
        A::ListUserPolicies => read!(policies::list_in_user),
        A::ListUserTags => read!(users::list_tags),
        A::ListUsers => read!(users::list),
        A::ListVirtualMFADevices => read!(absent::virtual_mfa_devices),
        A::PutGroupPolicy => write!(policies::put_in_group),
        A::PutRolePermissionsBoundary => write!(roles::put_boundary),
        A::PutRolePolicy => write!(policies::put_in_role),
        A::PutUserPermissionsBoundary => write!(users::put_boundary),
        A::PutUserPolicy => write!(policies::put_in_user),
        A::RemoveClientIDFromOpenIDConnectProvider => write!(providers::remove_client),
        A::RemoveRoleFromInstanceProfile => write!(profiles::remove_role),
        A::RemoveUserFromGroup => write!(groups::remove_user),
        A::SetDefaultPolicyVersion => write!(policies::set_default),
        A::SimulateCustomPolicy => read!(simulate::custom),
        A::SimulatePrincipalPolicy => read!(simulate::principal),
        A::TagInstanceProfile => write!(profiles::tag),
        A::TagOpenIDConnectProvider => write!(providers::tag),
        A::TagPolicy => write!(policies::tag),
        A::TagRole => write!(roles::tag),
        A::TagUser => write!(users::tag),
        A::UntagInstanceProfile => write!(profiles::untag),
        A::UntagOpenIDConnectProvider => write!(providers::untag),
        A::UntagPolicy => write!(policies::untag),
        A::UntagRole => write!(roles::untag),
        A::UntagUser => write!(users::untag),
        A::UpdateAccessKey => write!(keys::update),
        A::UpdateAccountPasswordPolicy => write!(passwords::update_policy),
        A::UpdateAssumeRolePolicy => write!(roles::update_trust),
        A::UpdateGroup => write!(groups::update),
        A::UpdateLoginProfile => write!(keys::update_login, keys::hash_updated),
        A::UpdateOpenIDConnectProviderThumbprint => write!(providers::update_thumbprint),
        A::UpdateRole => write!(roles::update),
        A::UpdateRoleDescription => write!(roles::update_description),
        A::UpdateUser => write!(users::update),
    }
}

/// May the caller do this? The resource follows from the parameters.
fn authorize(call: &Call<'_>, name: &str, tree: &Tree) -> ApiResult<()> {
    let state = call.directory.state();
    let account = call.account();
    let own = || call.caller.identity.principal.username().unwrap_or("").to_owned();
    let arn = |resource: String| Arn::iam(account, resource).to_string();
    let parameter = |name: &str| tree.at(name).map(str::to_owned);
    let path = || tree.at("Path").filter(|p| p.starts_with('/')).unwrap_or("/").to_owned();
    let is_new = name.starts_with("Create");
    let user = |name: &str| match state.users.get(&named(account, name)) {
        Some(user) => user.arn(),
        None => arn(format!("user{}{name}", if is_new { path() } else { "/".into() })),
    };
    let resource = match name {
        "AddUserToGroup" | "RemoveUserFromGroup" => None,
        "ListUsers" => Some(arn("user/".into())),
        "ListGroups" => Some(arn("group/".into())),
        "ListRoles" => Some(arn("role/".into())),
        "ListPolicies" => Some(arn("policy/".into())),
        "ListInstanceProfiles" => Some(arn("instance-profile/".into())),
        "ListOpenIDConnectProviders" => Some(arn("oidc-provider/*".into())),
        "CreateOpenIDConnectProvider" => parameter("Url")
            .map(|url| arn(format!("oidc-provider/{}", url.split_once("://").map_or(&*url, |(_, u)| u)))),
        "CreatePolicy" => parameter("PolicyName").map(|n| arn(format!("policy{}{n}", path()))),
        "SimulatePrincipalPolicy" | "GetContextKeysForPrincipalPolicy" => parameter("PolicySourceArn"),
        "ListPoliciesGrantingServiceAccess" => parameter("Arn"),
        "GetAccessKeyLastUsed" => {
            let key = parameter("AccessKeyId").and_then(|id| state.keys.get(&id)).filter(|k| k.account == *account);
            let user = key.and_then(|key| match &key.bearer {
                Bearer::User(user) => state.users.get(user),
                _ => None,
            });
            Some(user.map_or_else(|| "*".into(), |user| user.arn()))
        }
        "GetAccountSummary"
        | "GetAccountAuthorizationDetails"
        | "SimulateCustomPolicy"
        | "GetContextKeysForCustomPolicy"
        | "ListSAMLProviders"
        | "ListServerCertificates"
        | "ListVirtualMFADevices" => Some("*".into()),
        name if name.contains("AccountAlias")
            || name.contains("AccountPasswordPolicy")
            || name.contains("CredentialReport") =>
        {
            Some("*".into())
        }
        _ => parameter("UserName").map(|n| user(&n)),
    };
    let resource = resource.or_else(|| {
        if let Some(name) = parameter("GroupName") {
            let known = state.groups.get(&named(account, &name)).map(|g| g.arn());
            return Some(known.unwrap_or_else(|| arn(format!("group{}{name}", path()))));
        }
        if let Some(name) = parameter("InstanceProfileName") {
            let known = state.profiles.get(&named(account, &name)).map(|p| p.arn());
            return Some(known.unwrap_or_else(|| arn(format!("instance-profile{}{name}", path()))));
        }
        if let Some(name) = parameter("RoleName") {
            let known = state.roles.get(&named(account, &name)).map(|r| r.arn());
            return Some(known.unwrap_or_else(|| arn(format!("role{}{name}", path()))));
        }
        parameter("PolicyArn").or_else(|| parameter("OpenIDConnectProviderArn"))
    });
    // Users ask about themselves where they name nobody.
    let resource = resource.unwrap_or_else(|| user(&own()));
    let mut context = call.caller.context();
    parameters_context(&mut context, tree);
    let is_tagged = tags_context(&mut context, &tags_given(tree), "")?;
    known_context(&mut context, &state, call, &resource);
    if matches!(name, "ChangePassword" | "GetAccountPasswordPolicy") {
        let caller = passwords::with_own(&state, call)?;
        return caller.may(&format!("iam:{name}"), std::slice::from_ref(&resource), &context);
    }
    call.caller.may(&format!("iam:{name}"), std::slice::from_ref(&resource), &context)?;
    // Who makes something with tags must be allowed to tag it.
    if let Some(kind) = name.strip_prefix("Create").filter(|_| is_tagged) {
        call.caller.may(&format!("iam:Tag{kind}"), std::slice::from_ref(&resource), &context)?;
    }
    // Who renames or moves needs the permission for the new name too; who gives a role away must be allowed to pass it.
    let (new_name, kind) = match name {
        "UpdateUser" => ("NewUserName", "user"),
        "UpdateGroup" => ("NewGroupName", "group"),
        "AddRoleToInstanceProfile" => ("RoleName", "role"),
        _ => return Ok(()),
    };
    let new = parameter(new_name);
    if kind == "role" {
        let Some(new) = new else { return Ok(()) };
        let known = state.roles.get(&named(account, &new)).map(|r| r.arn());
        let resource = known.unwrap_or_else(|| arn(format!("role/{new}")));
        context.text("iam:PassedToService", "ec2.amazonaws.com");
        return call.caller.may("iam:PassRole", &[resource], &context);
    }
    let new_path = parameter("NewPath").filter(|p| p.starts_with('/'));
    if new.is_none() && new_path.is_none() {
        return Ok(());
    }
    // `arn:aws:iam::ACCOUNT:user/path/name`: what is not given anew stays.
    let after = resource.split_once(&format!(":{kind}")).map_or("/", |(_, rest)| rest);
    let (old_path, old_name) = after.split_at(after.rfind('/').map_or(0, |at| at + 1));
    let target = format!("{kind}{}{}", new_path.as_deref().unwrap_or(old_path), new.as_deref().unwrap_or(old_name));
    call.caller.may(&format!("iam:{name}"), &[arn(target)], &context)
}

/// Adds the tags and the boundary of the user, role or policy that a request is about.
fn known_context(context: &mut Context, state: &State, call: &Call<'_>, resource: &str) {
    let Ok(arn) = resource.parse::<Arn>() else { return };
    let Some((kind, rest)) = arn.resource.split_once('/') else { return };
    let key = call.key(rest.rsplit('/').next().unwrap_or_default());
    let (tags, boundary) = match kind {
        "user" => state.users.get(&key).map(|u| (&u.tags, u.boundary.as_ref())),
        "role" => state.roles.get(&key).map(|r| (&r.tags, r.boundary.as_ref())),
        "policy" => state.policies.get(&key).map(|p| (&p.tags, None)),
        "instance-profile" => state.profiles.get(&key).map(|p| (&p.tags, None)),
        _ => None,
    }
    .unzip();
    for (key, value) in tags.into_iter().flatten() {
        context.text(&format!("aws:ResourceTag/{key}"), value.as_str());
        context.text(&format!("iam:ResourceTag/{key}"), value.as_str());
    }
    // Where a boundary is being set, the new one counts.
    if let Some(boundary) = boundary.flatten().filter(|_| context.get("iam:PermissionsBoundary").is_none()) {
        context.text("iam:PermissionsBoundary", boundary.as_str());
    }
}

/// `InvalidAction`, or that it is AWS's but not served here.
pub(super) fn not_served(name: &str, known: &[&str]) -> ApiError {
    if known.binary_search(&name).is_ok() {
        return ApiError::unsupported(format!("The action {name}"));
    }
    let shown: String = name.chars().take(100).collect();
    ApiError::new(Code::InvalidAction, format!("Could not find operation {shown} for this version."))
}

/// IAM has one code for all that is wrong with parameters.
pub(super) fn validation(e: ApiError) -> ApiError {
    let code = match e.code {
        Code::MissingParameter | Code::InvalidParameterValue | Code::UnknownParameter => Code::ValidationError,
        other => other,
    };
    ApiError { code, ..e }
}

pub(super) fn parse<R: Operation>(tree: &Tree) -> ApiResult<R> {
    let request = R::from_query(&tree.query())?;
    match tree.unread() {
        Some(unknown) => Err(Invalid::Unknown(unknown).into()),
        None => Ok(request),
    }
}

/// Answers what changes nothing.
pub(super) fn render<R: Operation>(
    call: &Call<'_>,
    tree: &Tree,
    namespace: &str,
    handler: impl FnOnce(&R) -> ApiResult<R::Output>,
) -> ApiResult<String> {
    let request = parse::<R>(tree).map_err(validation)?;
    let output = handler(&request)?;
    Ok(xml(call, namespace, &request, &output))
}

/// The answer in the `query` protocol.
pub(super) fn xml<R: Operation>(call: &Call<'_>, namespace: &str, _: &R, output: &R::Output) -> String {
    Xml::document(&format!("{}Response", R::NAME), Some(namespace), |w| {
        if let Some(wrapper) = R::RESULT_WRAPPER {
            w.element(wrapper, |w| output.to_xml(w));
        }
        w.element("ResponseMetadata", |w| w.element("RequestId", |w| w.text(call.request_id)));
    })
}

// What the families share.

/// `NoSuchEntity`.
fn missing(kind: &str, name: &str) -> ApiError {
    ApiError::new(Code::NoSuchEntity, format!("The {kind} with name {name} cannot be found."))
}
fn exists(kind: &str, name: &str) -> ApiError {
    ApiError::new(Code::EntityAlreadyExists, format!("{kind} with name {name} already exists."))
}
fn conflict(message: &str) -> ApiError {
    ApiError::new(Code::DeleteConflict, message)
}
fn limit(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::LimitExceeded, message)
}
fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::ValidationError, message)
}

/// A name of at most `max` of `[\w+=,.@-]`.
fn checked_name<'a>(what: &str, name: &'a str, max: usize) -> ApiResult<&'a str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    match (1..=max).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(name),
        false => Err(invalid(format!(
            "The specified value for {what} is invalid. It must contain only alphanumeric characters and/or the \
             following: +=,.@_- and have 1 to {max} of them"
        ))),
    }
}

/// `/`, or `/a/b/`.
fn checked_path(path: Option<&str>) -> ApiResult<String> {
    let path = path.unwrap_or("/");
    let well = path.len() <= 512 && path.starts_with('/') && path.ends_with('/');
    match well && path.bytes().all(|b| (b'!'..=0x7e).contains(&b)) {
        true => Ok(path.to_owned()),
        false => Err(invalid(
            "The specified value for path is invalid. It must begin and end with / and contain only \
                              alphanumeric characters and/or / characters.",
        )),
    }
}

/// Adds tags, checked.
fn add_tags(tags: &mut Tags, new: &[iam::Tag]) -> ApiResult<()> {
    for (at, tag) in new.iter().enumerate() {
        let key = tag.key.as_deref().unwrap_or("");
        if new[..at].iter().any(|other| other.key.as_deref().is_some_and(|k| k.eq_ignore_ascii_case(key))) {
            let message = "Duplicate tag keys found. Please note that Tag keys are case insensitive.";
            return Err(ApiError::new(Code::InvalidInput, message));
        }
        let value = tag.value.as_deref().unwrap_or("");
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(invalid("Tag keys have 1 to 128 characters, values up to 256"));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(ApiError::new(Code::InvalidInput, "Tag keys must not begin with aws:"));
        }
        tags.retain(|known, _| !known.eq_ignore_ascii_case(key));
        tags.insert(key.to_owned(), value.to_owned());
    }
    match tags.len() {
        0..=50 => Ok(()),
        _ => Err(limit("The number of tags has reached the maximum limit: 50")),
    }
}

fn tags_of(new: &[iam::Tag]) -> ApiResult<Tags> {
    let mut tags = Tags::new();
    add_tags(&mut tags, new)?;
    Ok(tags)
}

fn remove_tags(tags: &mut Tags, keys: &[String]) {
    tags.retain(|known, _| !keys.iter().any(|key| key.eq_ignore_ascii_case(known)));
}

fn tag_list(tags: &Tags) -> Vec<iam::Tag> {
    tags.iter().map(|(k, v)| iam::Tag { key: Some(k.clone()), value: Some(v.clone()) }).collect()
}

fn tag_opt(tags: &Tags) -> Option<Vec<iam::Tag>> {
    (!tags.is_empty()).then(|| tag_list(tags))
}

fn boundary_of(arn: &Option<String>) -> Option<iam::AttachedPermissionsBoundary> {
    arn.as_ref().map(|arn| iam::AttachedPermissionsBoundary {
        permissions_boundary_arn: Some(arn.clone()),
        permissions_boundary_type: Some(iam::PermissionsBoundaryAttachmentType::PermissionsBoundaryPolicy),
    })
}

/// The ARN of a managed policy that there is, of AWS or of the caller's account.
fn checked_policy(state: &State, call: &Call<'_>, arn: &str) -> ApiResult<String> {
    match state.document_for(call.account(), arn) {
        Some(_) => Ok(arn.to_owned()),
        None if arn.starts_with("arn:aws:iam::") => {
            Err(ApiError::new(Code::NoSuchEntity, format!("Policy {arn} does not exist or is not attachable.")))
        }
        None => Err(ApiError::new(Code::InvalidInput, format!("ARN {arn} is not valid."))),
    }
}

/// A document that may be kept.
pub(super) fn checked_document(text: &str, purpose: Use) -> ApiResult<Policy> {
    Policy::parse(text, purpose).map_err(|e| match e {
        PolicyError::Malformed(why) => ApiError::new(Code::MalformedPolicyDocument, why),
        PolicyError::TooLarge { .. } => limit(e.to_string()),
    })
}

/// Documents are percent-encoded in answers.
fn encoded(document: &str) -> String {
    karri_base::aws::sigv4::uri_encode(document.as_bytes(), false)
}

fn at(us: u64) -> Option<Timestamp> {
    Some(Timestamp(us))
}

/// One page of what `items` yields in the order of its keys.
struct Page<T> {
    items: Vec<T>,
    is_truncated: Option<bool>,
    marker: Option<String>,
}

fn page<T>(items: impl Iterator<Item = (String, T)>, marker: Option<&str>, max: Option<i32>) -> ApiResult<Page<T>> {
    let max = match max {
        None => 100,
        Some(n @ 1..=1000) => n as usize,
        Some(n) => return Err(invalid(format!("Value '{n}' at 'maxItems' must be between 1 and 1000"))),
    };
    let bad = || invalid("Invalid Marker.");
    let after = match marker {
        None => None,
        Some(text) => {
            let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
            Some(String::from_utf8(bytes).map_err(|_| bad())?)
        }
    };
    let mut items = items.filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    let mut out = Vec::new();
    let mut last = String::new();
    for (key, item) in items.by_ref().take(max) {
        last = key;
        out.push(item);
    }
    let more = items.next().is_some();
    let marker = more.then(|| URL_SAFE_NO_PAD.encode(last));
    Ok(Page { items: out, is_truncated: Some(more), marker })
}

/// What belongs to the caller's account of a table.
fn own<'a, R>(
    table: &'a super::state::Table<R>,
    call: &Call<'_>,
) -> impl Iterator<Item = (String, &'a Arc<R>)> + use<'a, R> {
    let prefix = format!("{}/", call.account());
    let end = format!("{}0", call.account());
    table.range(prefix..end).map(|(key, record)| (key.clone(), record))
}

/// A user, group or role by its name.
#[derive(Clone, Copy)]
enum Holder<'a> {
    User(&'a str),
    Group(&'a str),
    Role(&'a str),
}

impl Holder<'_> {
    fn inline(self) -> Use {
        match self {
            Self::User(_) => Use::UserInline,
            Self::Group(_) => Use::GroupInline,
            Self::Role(_) => Use::RoleInline,
        }
    }

    fn policies<'s>(self, state: &'s State, call: &Call<'_>) -> ApiResult<&'s Policies> {
        match self {
            Self::User(name) => {
                state.users.get(&call.key(name)).map(|u| &u.policies).ok_or_else(|| missing("user", name))
            }
            Self::Group(name) => {
                state.groups.get(&call.key(name)).map(|g| &g.policies).ok_or_else(|| missing("group", name))
            }
            Self::Role(name) => {
                state.roles.get(&call.key(name)).map(|r| &r.policies).ok_or_else(|| missing("role", name))
            }
        }
    }

    fn policies_mut<'s>(self, state: &'s mut State, call: &Call<'_>) -> ApiResult<&'s mut Policies> {
        match self {
            Self::User(name) => {
                let user = state.users.get_mut(&call.key(name)).ok_or_else(|| missing("user", name))?;
                Ok(&mut Arc::make_mut(user).policies)
            }
            Self::Group(name) => {
                let group = state.groups.get_mut(&call.key(name)).ok_or_else(|| missing("group", name))?;
                Ok(&mut Arc::make_mut(group).policies)
            }
            Self::Role(name) => {
                let role = state.roles.get_mut(&call.key(name)).ok_or_else(|| missing("role", name))?;
                Ok(&mut Arc::make_mut(role).policies)
            }
        }
    }
}

/// An action without an answer.
type Nothing = ApiResult<Done>;
