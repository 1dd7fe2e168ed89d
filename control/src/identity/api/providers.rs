//! OpenID Connect providers: whose tokens AssumeRoleWithWebIdentity takes.

use std::sync::Arc;

use super::*;
use crate::identity::records::{Entity, Provider};

/// `https://host/path` or, which AWS does not take, `http://host/path`.
fn checked_url(url: &str) -> ApiResult<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/%".contains(&b);
    match rest {
        Some(rest) if (1..=255).contains(&url.len()) && !rest.is_empty() && rest.bytes().all(plain) => Ok(url),
        _ => Err(ApiError::new(Code::InvalidInput, "Invalid Open ID Connect Provider URL: it is https://HOST/PATH")),
    }
}

fn checked_clients(ids: &[String]) -> ApiResult<Vec<String>> {
    let mut out: Vec<String> = Vec::new();
    for id in ids {
        if !(1..=255).contains(&id.chars().count()) {
            return Err(invalid("A client id has 1 to 255 characters"));
        }
        if !out.contains(id) {
            out.push(id.clone());
        }
    }
    match out.len() {
        0..=100 => Ok(out),
        _ => Err(limit("Cannot exceed quota for ClientIdsPerOpenIdConnectProvider: 100")),
    }
}

fn checked_thumbprints(prints: &[String]) -> ApiResult<Vec<String>> {
    let plain = |print: &String| print.len() == 40 && print.bytes().all(|b| b.is_ascii_alphanumeric());
    if prints.len() > 5 {
        return Err(invalid("Thumbprint list must contain fewer than 5 entries."));
    }
    match prints.iter().all(plain) {
        true => Ok(prints.to_vec()),
        false => Err(invalid("A thumbprint is the SHA-1 of a certificate: 40 hexadecimal digits")),
    }
}

fn find<'s>(state: &'s State, call: &Call<'_>, arn: &str) -> ApiResult<&'s Arc<Provider>> {
    let found = own(&state.providers, call).find(|(_, provider)| provider.arn() == arn);
    found
        .map(|(_, provider)| provider)
        .ok_or_else(|| ApiError::new(Code::NoSuchEntity, format!("OpenIDConnect Provider not found for arn {arn}")))
}

fn change(state: &mut State, call: &Call<'_>, arn: &str, how: impl FnOnce(&mut Provider) -> ApiResult<()>) -> Nothing {
    let mut provider = Provider::clone(find(state, call, arn)?);
    how(&mut provider)?;
    state.providers.insert(provider.key(), Arc::new(provider));
    Ok(Done)
}

pub(super) fn create(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::CreateOpenIDConnectProviderRequest,
) -> ApiResult<iam::CreateOpenIDConnectProviderResponse> {
    let provider = Provider {
        account: call.account().clone(),
        url: checked_url(&r.url)?.trim_end_matches('/').to_owned(),
        client_ids: checked_clients(&r.client_id_list)?,
        thumbprints: checked_thumbprints(&r.thumbprint_list)?,
        created_us: call.now_us(),
        tags: tags_of(&r.tags)?,
    };
    if state.providers.contains_key(&provider.key()) {
        let message = format!("Provider with url {} already exists.", r.url);
        return Err(ApiError::new(Code::EntityAlreadyExists, message));
    }
    if own(&state.providers, call).count() >= 100 {
        return Err(limit("Cannot exceed quota for OpenIdConnectProvidersPerAccount: 100"));
    }
    let answer = iam::CreateOpenIDConnectProviderResponse {
        open_id_connect_provider_arn: Some(provider.arn()),
        tags: tag_list(&provider.tags),
    };
    state.providers.insert(provider.key(), Arc::new(provider));
    Ok(answer)
}

pub(super) fn get(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetOpenIDConnectProviderRequest,
) -> ApiResult<iam::GetOpenIDConnectProviderResponse> {
    let provider = find(state, call, &r.open_id_connect_provider_arn)?;
    Ok(iam::GetOpenIDConnectProviderResponse {
        client_id_list: provider.client_ids.clone(),
        create_date: at(provider.created_us),
        tags: tag_list(&provider.tags),
        thumbprint_list: provider.thumbprints.clone(),
        url: Some(provider.url.strip_prefix("https://").unwrap_or(&provider.url).to_owned()),
    })
}

pub(super) fn list(
    state: &State,
    call: &Call<'_>,
    _: &iam::ListOpenIDConnectProvidersRequest,
) -> ApiResult<iam::ListOpenIDConnectProvidersResponse> {
    let entry = |(_, p): (String, &Arc<Provider>)| iam::OpenIDConnectProviderListEntry { arn: Some(p.arn()) };
    let all = own(&state.providers, call).map(entry).collect();
    Ok(iam::ListOpenIDConnectProvidersResponse { open_id_connect_provider_list: all })
}

pub(super) fn delete(state: &mut State, call: &Call<'_>, r: &iam::DeleteOpenIDConnectProviderRequest) -> Nothing {
    let key = find(state, call, &r.open_id_connect_provider_arn)?.key();
    state.providers.remove(&key);
    Ok(Done)
}

pub(super) fn add_client(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::AddClientIDToOpenIDConnectProviderRequest,
) -> Nothing {
    change(state, call, &r.open_id_connect_provider_arn, |provider| {
        let all: Vec<String> = provider.client_ids.iter().chain([&r.client_id]).cloned().collect();
        provider.client_ids = checked_clients(&all)?;
        Ok(())
    })
}

pub(super) fn remove_client(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::RemoveClientIDFromOpenIDConnectProviderRequest,
) -> Nothing {
    change(state, call, &r.open_id_connect_provider_arn, |provider| {
        provider.client_ids.retain(|id| *id != r.client_id);
        Ok(())
    })
}

pub(super) fn update_thumbprint(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::UpdateOpenIDConnectProviderThumbprintRequest,
) -> Nothing {
    let thumbprints = checked_thumbprints(&r.thumbprint_list)?;
    change(state, call, &r.open_id_connect_provider_arn, |provider| {
        provider.thumbprints = thumbprints;
        Ok(())
    })
}

pub(super) fn tag(state: &mut State, call: &Call<'_>, r: &iam::TagOpenIDConnectProviderRequest) -> Nothing {
    change(state, call, &r.open_id_connect_provider_arn, |provider| add_tags(&mut provider.tags, &r.tags))
}

pub(super) fn untag(state: &mut State, call: &Call<'_>, r: &iam::UntagOpenIDConnectProviderRequest) -> Nothing {
    change(state, call, &r.open_id_connect_provider_arn, |provider| {
        remove_tags(&mut provider.tags, &r.tag_keys);
        Ok(())
    })
}

pub(super) fn list_tags(
    state: &State,
    call: &Call<'_>,
    r: &iam::ListOpenIDConnectProviderTagsRequest,
) -> ApiResult<iam::ListOpenIDConnectProviderTagsResponse> {
    let tags = tag_list(&find(state, call, &r.open_id_connect_provider_arn)?.tags);
    let keyed = tags.into_iter().map(|t| (t.key.clone().unwrap_or_default(), t));
    let page = page(keyed, r.marker.as_deref(), r.max_items)?;
    Ok(iam::ListOpenIDConnectProviderTagsResponse {
        tags: page.items,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}
