//! AssumeRoleWithWebIdentity: a role for whoever a provider vouches for. The request has no signature; its token is one.

use std::collections::BTreeMap;
use std::sync::Arc;

use karri_base::aws::arn::Arn;
use karri_base::aws::keys::Key;
use karri_base::aws::policy::{Identity, Policy, Principal, Request, Target, Use, decide};
use karri_base::aws::session::Of;

use super::super::api::{Call, parse, validation, xml};
use super::super::authorize::{Caller, Unsigned};
use super::super::oidc::{self, Claims, TokenError};
use super::super::records::{Provider, Role, named};
use super::{With, checked_name, credentials, invalid, policies, seconds};
use crate::cloud::error::{ApiError, ApiResult, Code};
use crate::identity::Directory;
use crate::wire::Tree;
use crate::wire::generated::sts;

const ACTION: &str = "sts:AssumeRoleWithWebIdentity";

/// Answers.
///
/// # Errors
/// AWS's codes.
pub async fn answer(directory: &Directory, tree: &Tree, from: &Unsigned, request_id: &str) -> ApiResult<String> {
    let r: sts::AssumeRoleWithWebIdentityRequest = parse(tree).map_err(validation)?;
    if r.provider_id.is_some() {
        return Err(ApiError::unsupported("ProviderId (tokens of OAuth 2.0)"));
    }
    let name = checked_name("roleSessionName", &r.role_session_name, 64)?;
    // Who is not let in learns nothing of which roles there are.
    let refused = || ApiError::new(Code::AccessDenied, format!("Not authorized to perform {ACTION}"));
    let arn: Arn = r.role_arn.parse().map_err(|_| invalid(format!("{} is invalid", r.role_arn)))?;
    let issuer =
        oidc::issuer(&r.web_identity_token).ok_or_else(|| unusable("The ID Token provided is not a valid JWT."))?;
    let state = directory.state();
    let role = arn.account.parse().ok().and_then(|account| {
        let name = arn.resource.strip_prefix("role/")?.rsplit('/').next()?;
        state.roles.get(&named(&account, name)).filter(|role| role.arn() == r.role_arn)
    });
    let role: &Arc<Role> = role.ok_or_else(refused)?;
    let provider = state.providers.values().find(|p| p.account == role.account && p.url == issuer);
    let provider: &Arc<Provider> =
        provider.ok_or_else(|| unusable(format!("No OpenIDConnect provider found in your account for {issuer}")))?;
    let claims = claims(directory, provider, &r.web_identity_token, from).await?;

    let caller = caller(provider, role, &claims, from);
    let mut context = caller.context();
    context.text("sts:RoleSessionName", name);
    let own = provider.name();
    context
        .texts(&format!("{own}:aud"), claims.audience.iter().cloned())
        // As Ceph's RGW names it.
        .texts(&format!("{own}:app_id"), claims.audience.iter().cloned())
        .text(&format!("{own}:sub"), claims.subject.as_str());
    if let Some(client) = &claims.authorized {
        context.text(&format!("{own}:azp"), client.as_str());
    }
    if !claims.methods.is_empty() {
        context.texts(&format!("{own}:amr"), claims.methods.iter().cloned());
    }
    if !claims.tags.is_empty() {
        context.texts("aws:TagKeys", claims.tags.keys().cloned());
    }
    for (key, value) in &claims.tags {
        context.text(&format!("aws:RequestTag/{key}"), value.as_str());
    }
    let trust = Policy::parse(&role.trust, Use::Trust).map_err(|_| refused())?;
    let target = Target { owner: Some(&role.account), policy: Some(&trust), must_allow: true, ..Target::default() };
    let tags = (!claims.tags.is_empty()).then_some("sts:TagSession");
    for action in std::iter::once(ACTION).chain(tags) {
        let request = Request { action, resource: &r.role_arn, context: &context };
        let allowed = decide(&caller.identity, &target, &request).is_allowed();
        caller.decisions.note(&r.role_arn, allowed);
        if !allowed {
            return Err(refused());
        }
    }

    let call = Call { directory, caller: &caller, request_id };
    let seconds = seconds(r.duration_seconds, 3600.min(role.session_seconds_max), 900, role.session_seconds_max)?;
    let mut keys = BTreeMap::from([
        ("aws:FederatedProvider".to_owned(), provider.arn()),
        (format!("{own}:sub"), claims.subject.clone()),
    ]);
    keys.extend(claims.audience.first().map(|audience| (format!("{own}:aud"), audience.clone())));
    let with = With { policies: policies(&call, r.policy.as_ref(), &r.policy_arns)?, tags: claims.tags, keys };
    let session_arn =
        Arn::new("sts", "", role.account.as_str(), format!("assumed-role/{}/{name}", role.name)).to_string();
    let of = Of::Role { id: role.id.clone(), name: name.to_owned() };
    let answer = sts::AssumeRoleWithWebIdentityResponse {
        assumed_role_user: Some(sts::AssumedRoleUser {
            arn: Some(session_arn),
            assumed_role_id: Some(format!("{}:{name}", role.id)),
        }),
        audience: claims.authorized.or_else(|| claims.audience.into_iter().next()),
        credentials: Some(credentials(&call, of, seconds, with)),
        provider: Some(provider.arn()),
        subject_from_web_identity_token: Some(claims.subject),
        ..Default::default()
    };
    Ok(xml(&call, sts::NAMESPACE, &r, &answer))
}

fn unusable(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidIdentityToken, message)
}

async fn claims(directory: &Directory, provider: &Provider, token: &str, from: &Unsigned) -> ApiResult<Claims> {
    let unread = |e: &TokenError| {
        tracing::warn!(account = %provider.account, error = %e, "a provider's keys are needed");
        ApiError::new(Code::IdpCommunicationError, format!("The keys of {} are not there", provider.url))
    };
    let folder = directory.oidc().ok_or_else(|| ApiError::unsupported("AssumeRoleWithWebIdentity"))?;
    let keys = oidc::keys(folder, &provider.url).await.map_err(|e| unread(&e))?;
    let claims = oidc::check(token, &provider.url, &keys, from.now).map_err(|e| match e {
        TokenError::Expired => ApiError::new(Code::ExpiredTokenException, e.to_string()),
        e => unusable(e.to_string()),
    })?;
    match claims.is_for(&provider.client_ids) {
        true => Ok(claims),
        false => Err(unusable("Incorrect token audience")),
    }
}

/// Somebody of the provider, in the role's account.
fn caller(provider: &Provider, role: &Role, claims: &Claims, from: &Unsigned) -> Caller {
    let identity = Identity::new(Principal::provider(&provider.arn(), &claims.subject), Vec::new());
    let key =
        Key { access_key_id: String::new(), secret: String::new(), account: role.account.clone(), arn: provider.arn() };
    Caller {
        key: Arc::new(key),
        identity: Arc::new(identity),
        source: from.source,
        secure: from.secure,
        now: from.now,
        region: from.region.clone(),
        decisions: from.decisions.clone(),
    }
}
