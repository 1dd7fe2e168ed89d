//! What karri has none of: MFA devices, SSH keys, certificates, service-specific credentials, SAML providers. Nothing makes
//! one (their actions are refused), so their lists are empty, and tools that look before they delete a user go on.

use super::*;

/// An empty page; the user must be there, where one is named.
fn none<T>(
    state: &State,
    call: &Call<'_>,
    user: Option<&String>,
    marker: Option<&String>,
    max: Option<i32>,
) -> ApiResult<Page<T>> {
    if let Some(name) = user {
        users::find(state, call, name)?;
    }
    page(std::iter::empty(), marker.map(String::as_str), max)
}

macro_rules! empty {
    ($($name:ident $Ask:ident $Answer:ident $list:ident $($user:ident)?;)*) => {$(
        pub(super) fn $name(state: &State, call: &Call<'_>, r: &iam::$Ask) -> ApiResult<iam::$Answer> {
            let user = None $(.or(r.$user.as_ref()))?;
            let page = none(state, call, user, r.marker.as_ref(), r.max_items)?;
            Ok(iam::$Answer { $list: page.items, is_truncated: page.is_truncated, marker: page.marker })
        }
    )*};
}
empty! {
    mfa_devices ListMFADevicesRequest ListMFADevicesResponse mfa_devices user_name;
    virtual_mfa_devices ListVirtualMFADevicesRequest ListVirtualMFADevicesResponse virtual_mfa_devices;
    ssh_keys ListSSHPublicKeysRequest ListSSHPublicKeysResponse ssh_public_keys user_name;
    signing_certificates ListSigningCertificatesRequest ListSigningCertificatesResponse certificates user_name;
    service_credentials ListServiceSpecificCredentialsRequest ListServiceSpecificCredentialsResponse
        service_specific_credentials user_name;
    server_certificates ListServerCertificatesRequest ListServerCertificatesResponse
        server_certificate_metadata_list;
}

pub(super) fn saml_providers(
    _: &State,
    _: &Call<'_>,
    _: &iam::ListSAMLProvidersRequest,
) -> ApiResult<iam::ListSAMLProvidersResponse> {
    Ok(iam::ListSAMLProvidersResponse::default())
}
