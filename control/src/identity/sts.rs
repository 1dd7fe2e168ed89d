//! STS: who am I, and temporary credentials. A session is sealed into its token (`karri_base::aws::session`), so nothing
//! is kept here and every role believes it at once.

pub mod web_identity;

use std::collections::BTreeMap;

use karri_base::aws::arn::Arn;
use karri_base::aws::policy::principal::Kind;
use karri_base::aws::policy::{Context, Policy, Request, Target, Use, decide};
use karri_base::aws::session::{self, Of, Session};

use super::api::{Call, checked_document, not_served, render};
use super::records::{Role, named};
use super::secrets::access_key_id;
use crate::cloud::error::{ApiError, ApiResult, Code};
use crate::wire::generated::sts;
use crate::wire::{Timestamp, Tree};

/// Answers an STS action.
///
/// # Errors
/// AWS's codes.
pub fn answer(call: &Call<'_>, name: &str, tree: &Tree) -> ApiResult<String> {
    use sts::Action as A;
    let Some(action) = A::from_name(name) else { return Err(not_served(name, sts::UNSERVED)) };
    match action {
        A::AssumeRole => render(call, tree, sts::NAMESPACE, |r| assume_role(call, r)),
        // It is signed by its token; whoever signs the request too must have sent it to the wrong place.
        A::AssumeRoleWithWebIdentity => {
            Err(ApiError::new(Code::AccessDenied, "AssumeRoleWithWebIdentity is sent unsigned"))
        }
        A::GetAccessKeyInfo => render(call, tree, sts::NAMESPACE, |r| access_key_info(call, r)),
        A::GetCallerIdentity => render(call, tree, sts::NAMESPACE, |r| caller_identity(call, r)),
        A::GetFederationToken => render(call, tree, sts::NAMESPACE, |r| federation_token(call, r)),
        A::GetSessionToken => render(call, tree, sts::NAMESPACE, |r| session_token(call, r)),
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::ValidationError, message)
}

fn caller_identity(call: &Call<'_>, _: &sts::GetCallerIdentityRequest) -> ApiResult<sts::GetCallerIdentityResponse> {
    let who = &call.caller.identity.principal;
    Ok(sts::GetCallerIdentityResponse {
        account: Some(call.account().to_string()),
        arn: Some(call.caller.key.arn.clone()),
        user_id: Some(who.id.clone()),
    })
}

fn access_key_info(call: &Call<'_>, r: &sts::GetAccessKeyInfoRequest) -> ApiResult<sts::GetAccessKeyInfoResponse> {
    call.caller.may("sts:GetAccessKeyInfo", &["*".into()], &call.caller.context())?;
    let account = call.directory.ring().get(&r.access_key_id).map(|k| k.account.to_string());
    match account {
        Some(account) => Ok(sts::GetAccessKeyInfoResponse { account: Some(account) }),
        None => Err(invalid("Invalid access key id")),
    }
}

/// How long a session is to be.
fn seconds(asked: Option<i32>, default: i32, least: i32, most: i32) -> ApiResult<i32> {
    match asked.unwrap_or(default) {
        n if n < least => Err(invalid(format!("Value '{n}' at 'durationSeconds' must be at least {least}"))),
        n if n > most => Err(invalid(format!(
            "The requested DurationSeconds exceeds the maximum for this session, which is {most} seconds"
        ))),
        n => Ok(n),
    }
}

fn checked_name<'a>(what: &str, name: &'a str, most: usize) -> ApiResult<&'a str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    match (2..=most).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(name),
        false => Err(invalid(format!("Value '{name}' at '{what}' must have 2 to {most} of [\\w+=,.@-]"))),
    }
}

/// Session policies: the one passed, and the managed ones named.
fn policies(
    call: &Call<'_>,
    inline: Option<&String>,
    arns: &[sts::PolicyDescriptorType],
) -> ApiResult<Option<Vec<String>>> {
    if inline.is_none() && arns.is_empty() {
        return Ok(None);
    }
    if arns.len() > 10 {
        return Err(ApiError::new(Code::LimitExceeded, "At most 10 policies may be named"));
    }
    let mut out = Vec::new();
    if let Some(text) = inline {
        checked_document(text, Use::Session).map_err(|e| match e.code {
            Code::LimitExceeded => ApiError { code: Code::PackedPolicyTooLarge, ..e },
            _ => e,
        })?;
        out.push(text.clone());
    }
    let state = call.directory.state();
    for arn in arns.iter().map(|p| p.arn.as_deref().unwrap_or("")) {
        let document =
            state.document_for(call.account(), arn).ok_or_else(|| invalid(format!("Policy {arn} does not exist")))?;
        out.push(document.to_owned());
    }
    Ok(Some(out))
}

fn tags(given: &[sts::Tag]) -> ApiResult<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for tag in given {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || tag.value.chars().count() > 256 {
            return Err(invalid("Tag keys have 1 to 128 characters, values up to 256"));
        }
        // As condition keys, which do not tell case apart.
        if out.keys().any(|known: &String| known.eq_ignore_ascii_case(&tag.key)) {
            return Err(invalid(format!("Duplicate tag key {}", tag.key)));
        }
        out.insert(tag.key.clone(), tag.value.clone());
    }
    match out.len() {
        0..=50 => Ok(out),
        _ => Err(invalid("At most 50 tags may be passed")),
    }
}

/// Credentials of a session that begins now.
fn credentials(call: &Call<'_>, of: Of, seconds: i32, with: With) -> sts::Credentials {
    let id = access_key_id(session::PREFIX);
    let issued_us = call.now_us();
    let expires_us = issued_us + u64::from(seconds.unsigned_abs()) * 1_000_000;
    let session = Session { of, issued_us, expires_us, policies: with.policies, tags: with.tags, keys: with.keys };
    let sealer = call.directory.sealer().sessions();
    sts::Credentials {
        secret_access_key: Some(sealer.secret(&id)),
        session_token: Some(sealer.seal(&id, &session, rand::random())),
        expiration: Some(Timestamp(expires_us)),
        access_key_id: Some(id),
    }
}

#[derive(Default)]
struct With {
    policies: Option<Vec<String>>,
    tags: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
}

/// The unique id of a caller with a key of its own; sessions have none.
fn own_id(call: &Call<'_>, action: &str) -> ApiResult<String> {
    let who = &call.caller.identity.principal;
    let is_temporary = call.caller.key.access_key_id.starts_with(session::PREFIX);
    match who.kind {
        Kind::Root | Kind::User { .. } if !is_temporary => Ok(who.id.clone()),
        _ => Err(ApiError::new(Code::AccessDenied, format!("Cannot call {action} with session credentials"))),
    }
}

fn session_token(call: &Call<'_>, r: &sts::GetSessionTokenRequest) -> ApiResult<sts::GetSessionTokenResponse> {
    if r.serial_number.is_some() || r.token_code.is_some() {
        return Err(ApiError::unsupported("Multi-factor authentication"));
    }
    let id = own_id(call, "GetSessionToken")?;
    let is_root = call.caller.identity.principal.kind == Kind::Root;
    let (default, most) = if is_root { (3600, 3600) } else { (43_200, 129_600) };
    let seconds = seconds(r.duration_seconds, default, 900, most)?;
    let credentials = credentials(call, Of::Oneself { id }, seconds, With::default());
    Ok(sts::GetSessionTokenResponse { credentials: Some(credentials), ..Default::default() })
}

fn federation_token(call: &Call<'_>, r: &sts::GetFederationTokenRequest) -> ApiResult<sts::GetFederationTokenResponse> {
    let by = own_id(call, "GetFederationToken")?;
    let name = checked_name("name", &r.name, 32)?.to_owned();
    let account = call.account();
    let arn = Arn::new("sts", "", account.as_str(), format!("federated-user/{name}")).to_string();
    call.caller.may("sts:GetFederationToken", std::slice::from_ref(&arn), &call.caller.context())?;
    let is_root = call.caller.identity.principal.kind == Kind::Root;
    let most = if is_root { 3600 } else { 129_600 };
    let seconds = seconds(r.duration_seconds, 43_200.min(most), 900, most)?;
    // A federated user has what both its maker and the policies passed allow: nothing where none was passed.
    let policies = policies(call, r.policy.as_ref(), &r.policy_arns)?.unwrap_or_default();
    let with = With { policies: Some(policies), tags: tags(&r.tags)?, ..With::default() };
    let federated_user_id = Some(format!("{account}:{name}"));
    let credentials = credentials(call, Of::Federated { by, name }, seconds, with);
    Ok(sts::GetFederationTokenResponse {
        credentials: Some(credentials),
        federated_user: Some(sts::FederatedUser { arn: Some(arn), federated_user_id }),
        ..Default::default()
    })
}

fn assume_role(call: &Call<'_>, r: &sts::AssumeRoleRequest) -> ApiResult<sts::AssumeRoleResponse> {
    if r.serial_number.is_some() || r.token_code.is_some() || !r.provided_contexts.is_empty() {
        return Err(ApiError::unsupported("Multi-factor authentication and provided contexts"));
    }
    let name = checked_name("roleSessionName", &r.role_session_name, 64)?;
    let arn: Arn = r.role_arn.parse().map_err(|_| invalid(format!("{} is invalid", r.role_arn)))?;
    let who = &call.caller.identity.principal;
    if who.kind == Kind::Root {
        return Err(ApiError::new(Code::AccessDenied, "Roles may not be assumed by root accounts."));
    }
    if matches!(who.kind, Kind::Federated) {
        return Err(ApiError::new(Code::AccessDenied, "Cannot call AssumeRole with federation credentials"));
    }
    if !r.transitive_tag_keys.is_empty() {
        return Err(ApiError::unsupported("TransitiveTagKeys"));
    }
    // Whoever a chain of roles began with stays named to its end.
    let source_identity = match (who.keys.get("aws:SourceIdentity"), &r.source_identity) {
        (Some([known]), Some(asked)) if known != asked => {
            return Err(ApiError::new(Code::AccessDenied, "SourceIdentity cannot be changed by role chaining"));
        }
        (Some([known]), _) => Some(known.clone()),
        (_, asked) => asked.clone(),
    };
    let state = call.directory.state();
    let role = arn.account.parse().ok().and_then(|account| {
        let name = arn.resource.strip_prefix("role/")?.rsplit('/').next()?;
        state.roles.get(&named(&account, name)).filter(|role| role.arn() == r.role_arn)
    });
    let given_tags = tags(&r.tags)?;
    let mut context = call.caller.context();
    context.text("sts:RoleSessionName", name);
    if let Some(id) = &r.external_id {
        context.text("sts:ExternalId", id.as_str());
    }
    if let Some(source) = &source_identity {
        context.text("sts:SourceIdentity", source.as_str());
    }
    if !given_tags.is_empty() {
        context.texts("aws:TagKeys", given_tags.keys().cloned());
    }
    for (key, value) in &given_tags {
        context.text(&format!("aws:RequestTag/{key}"), value.as_str());
    }
    let mut actions = vec!["sts:AssumeRole"];
    actions.extend((!given_tags.is_empty()).then_some("sts:TagSession"));
    actions.extend(source_identity.as_ref().map(|_| "sts:SetSourceIdentity"));
    let role: &Role = role.ok_or_else(|| call.caller.refused("sts:AssumeRole", &r.role_arn, ""))?;
    for (key, value) in &role.tags {
        context.text(&format!("aws:ResourceTag/{key}"), value.as_str());
        context.text(&format!("iam:ResourceTag/{key}"), value.as_str());
    }
    for action in actions {
        trusted(call, role, action, &r.role_arn, &context)?;
    }
    // Who came by a role stays an hour at most.
    let is_chained = matches!(who.kind, Kind::Role { .. });
    let most = if is_chained { 3600 } else { role.session_seconds_max };
    let seconds = seconds(r.duration_seconds, 3600.min(most), 900, most)?;
    let mut keys = BTreeMap::new();
    if let Some(source) = &source_identity {
        keys.insert("aws:SourceIdentity".to_owned(), source.clone());
    }
    let with = With { policies: policies(call, r.policy.as_ref(), &r.policy_arns)?, tags: given_tags, keys };
    let session_arn =
        Arn::new("sts", "", role.account.as_str(), format!("assumed-role/{}/{name}", role.name)).to_string();
    let of = Of::Role { id: role.id.clone(), name: name.to_owned() };
    Ok(sts::AssumeRoleResponse {
        assumed_role_user: Some(sts::AssumedRoleUser {
            arn: Some(session_arn),
            assumed_role_id: Some(format!("{}:{name}", role.id)),
        }),
        credentials: Some(credentials(call, of, seconds, with)),
        source_identity,
        ..Default::default()
    })
}

/// The role must trust the caller, and the caller's own policies must not be in the way.
fn trusted(call: &Call<'_>, role: &Role, action: &str, arn: &str, context: &Context) -> ApiResult<()> {
    let trust = Policy::parse(&role.trust, Use::Trust).map_err(|e| invalid(e.to_string()))?;
    let target = Target { owner: Some(&role.account), policy: Some(&trust), must_allow: true, ..Target::default() };
    let decision = decide(&call.caller.identity, &target, &Request { action, resource: arn, context });
    call.caller.decisions.note(arn, decision.is_allowed());
    match decision.is_allowed() {
        true => Ok(()),
        false => Err(call.caller.refused(action, arn, &decision.why(action))),
    }
}
