//! Passwords: what an account asks of them, and users' change of their own. karri has no console to sign in to, so what a
//! policy says of passwords that are too old is kept and shown (in the credential report, too), and stops nobody.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::*;
use crate::identity::records::{Login, PasswordPolicy};
use crate::identity::secrets::{hash_password, is_password};

/// A password's hash and salt.
pub(super) type Hashed = (String, String);

/// Passwords hashed at once, by all callers: each takes a processor.
static HASHING: Semaphore = Semaphore::const_new(2);

/// What counts as a symbol, in AWS's words.
const SYMBOLS: &str = "!@#$%^&*()_+-=[]{}|'";

/// What users may do where the account lets them change their passwords.
const USERS_CHANGE: &str =
    r#"{"Statement":{"Effect":"Allow","Action":["iam:ChangePassword","iam:GetAccountPasswordPolicy"],"Resource":"*"}}"#;

fn violation(why: impl Into<String>) -> ApiError {
    ApiError::new(Code::PasswordPolicyViolation, why)
}

fn policy<'s>(state: &'s State, call: &Call<'_>) -> Option<&'s PasswordPolicy> {
    state.accounts.get(call.account().as_str())?.passwords.as_ref()
}

/// The caller, with what the account's password policy lets every user do.
pub(super) fn with_own(state: &State, call: &Call<'_>) -> ApiResult<Caller> {
    let mut caller = call.caller.clone();
    if caller.identity.principal.username().is_some() && policy(state, call).is_some_and(|p| p.users_change) {
        let lets = Arc::new(checked_document(USERS_CHANGE, Use::Managed)?);
        Arc::make_mut(&mut caller.identity).policies.push(lets);
    }
    Ok(caller)
}

/// What a password must be.
fn check(state: &State, call: &Call<'_>, password: &str) -> ApiResult<()> {
    let length = password.chars().count();
    if length > 128 {
        return Err(violation("Password should have a maximum length of 128"));
    }
    let has = |is: fn(char) -> bool| password.chars().any(is);
    let classes = [
        (has(|c| c.is_ascii_uppercase()), "uppercase letter"),
        (has(|c| c.is_ascii_lowercase()), "lowercase letter"),
        (has(|c| c.is_ascii_digit()), "number"),
        (has(|c| SYMBOLS.contains(c)), "symbol"),
    ];
    let least = policy(state, call).map_or(8, |p| p.length_min);
    if length < least as usize {
        return Err(violation(format!("Password should have a minimum length of {least}")));
    }
    let Some(policy) = policy(state, call) else {
        // AWS's default.
        if classes.iter().filter(|(is, _)| *is).count() < 3 {
            let message =
                "Password should have at least three of uppercase letters, lowercase letters, numbers and symbols";
            return Err(violation(message));
        }
        let account = state.accounts.get(call.account().as_str());
        return match account.is_some_and(|a| a.name == password || a.email == password) {
            true => Err(violation("Password should not be the account's name or address")),
            false => Ok(()),
        };
    };
    let wanted = [policy.uppercase, policy.lowercase, policy.numbers, policy.symbols];
    match wanted.into_iter().zip(classes).find(|(wanted, (is, _))| *wanted && !is) {
        Some((_, (_, what))) => Err(violation(format!("Password should have at least one {what}"))),
        None => Ok(()),
    }
}

/// How many passwords before the one that counts are kept.
pub(super) fn kept(state: &State, call: &Call<'_>) -> usize {
    let reuse = policy(state, call).and_then(|p| p.reuse).unwrap_or(0);
    usize::try_from(reuse - 1).unwrap_or(0)
}

/// Those that a user may not have again.
fn barred(state: &State, call: &Call<'_>, login: &Login) -> Vec<Hashed> {
    let reuse = policy(state, call).and_then(|p| p.reuse).unwrap_or(0);
    let current = (login.hash.clone(), login.salt.clone());
    let all = std::iter::once(current).chain(login.earlier.iter().cloned());
    all.take(usize::try_from(reuse).unwrap_or(0)).collect()
}

/// Another password for a login.
pub(super) fn renew(login: &mut Login, (hash, salt): Hashed, kept: usize, now_us: u64) {
    let before = (std::mem::replace(&mut login.hash, hash), std::mem::replace(&mut login.salt, salt));
    login.earlier.insert(0, before);
    login.earlier.truncate(kept);
    login.changed_us = now_us;
}

/// Does what takes a processor on a thread that may take its time, when it is its turn.
async fn work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> ApiResult<T> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a password could not be hashed");
        ApiError::new(Code::InternalError, "An internal error has occurred")
    };
    let turn = HASHING.acquire().await.map_err(|error| failed(&error))?;
    let work = move || {
        // Held to the end, also where the caller has gone.
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))
}

fn hash_new(password: &str, barred: &[Hashed]) -> ApiResult<Hashed> {
    match barred.iter().any(|(hash, salt)| is_password(password, hash, salt)) {
        true => Err(violation("Password should not be one that was used before")),
        false => Ok(hash_password(password)),
    }
}

/// Hashes a password that this user (none: a new one) is to have.
pub(super) async fn hashed(call: &Call<'_>, user: Option<&str>, password: &str) -> ApiResult<Hashed> {
    let state = call.directory.state();
    check(&state, call, password)?;
    let login = user.and_then(|name| state.users.get(&call.key(name))?.login.as_ref());
    let barred = login.map_or_else(Vec::new, |login| barred(&state, call, login));
    let password = password.to_owned();
    work(move || hash_new(&password, &barred)).await?
}

/// The login that the old password is of, and the new one's hash.
pub(super) async fn hash_changed(call: &Call<'_>, r: &iam::ChangePasswordRequest) -> ApiResult<(Hashed, Hashed)> {
    let name = own_user(call)?;
    let state = call.directory.state();
    let login = users::find(&state, call, name)?.login.as_ref().ok_or_else(|| keys::no_login(name))?;
    check(&state, call, &r.new_password)?;
    let old = (login.hash.clone(), login.salt.clone());
    let (barred, old_password, new_password) =
        (barred(&state, call, login), r.old_password.clone(), r.new_password.clone());
    work(move || match is_password(&old_password, &old.0, &old.1) {
        true => Ok((old, hash_new(&new_password, &barred)?)),
        false => Err(ApiError::new(Code::AccessDenied, "The old password was incorrect.")),
    })
    .await?
}

fn own_user<'a>(call: &'a Call<'_>) -> ApiResult<&'a str> {
    let name = call.caller.identity.principal.username();
    name.ok_or_else(|| ApiError::new(Code::InvalidUserType, "Only IAM Users can change their own password"))
}

pub(super) fn change(
    state: &mut State,
    call: &Call<'_>,
    _: &iam::ChangePasswordRequest,
    (old, new): (Hashed, Hashed),
) -> Nothing {
    let name = own_user(call)?;
    let kept = kept(state, call);
    let login = users::find_mut(state, call, name)?.login.as_mut().ok_or_else(|| keys::no_login(name))?;
    if (&login.hash, &login.salt) != (&old.0, &old.1) {
        let message = "The password was changed at the same time; try again";
        return Err(ApiError::new(Code::EntityTemporarilyUnmodifiable, message));
    }
    renew(login, new, kept, call.now_us());
    login.reset = false;
    Ok(Done)
}

fn no_policy(call: &Call<'_>) -> ApiError {
    missing("Password Policy with domain", call.account().as_str())
}

pub(super) fn get_policy(
    state: &State,
    call: &Call<'_>,
    _: &iam::GetAccountPasswordPolicyRequest,
) -> ApiResult<iam::GetAccountPasswordPolicyResponse> {
    let policy = policy(state, call).ok_or_else(|| no_policy(call))?;
    let wire = iam::PasswordPolicy {
        allow_users_to_change_password: Some(policy.users_change),
        expire_passwords: Some(policy.age_days_max.is_some()),
        hard_expiry: policy.hard_expiry,
        max_password_age: policy.age_days_max,
        minimum_password_length: Some(policy.length_min),
        password_reuse_prevention: policy.reuse,
        require_lowercase_characters: Some(policy.lowercase),
        require_numbers: Some(policy.numbers),
        require_symbols: Some(policy.symbols),
        require_uppercase_characters: Some(policy.uppercase),
    };
    Ok(iam::GetAccountPasswordPolicyResponse { password_policy: Some(wire) })
}

fn between(what: &str, n: i32, least: i32, most: i32) -> ApiResult<i32> {
    match (least..=most).contains(&n) {
        true => Ok(n),
        false => Err(invalid(format!("Value '{n}' at '{what}' must be between {least} and {most}"))),
    }
}

/// What is not said becomes the default again, as on AWS.
pub(super) fn update_policy(
    state: &mut State,
    call: &Call<'_>,
    r: &iam::UpdateAccountPasswordPolicyRequest,
) -> Nothing {
    let is = |flag: Option<bool>| flag.unwrap_or(false);
    let policy = PasswordPolicy {
        length_min: between("minimumPasswordLength", r.minimum_password_length.unwrap_or(6), 6, 128)?,
        symbols: is(r.require_symbols),
        numbers: is(r.require_numbers),
        uppercase: is(r.require_uppercase_characters),
        lowercase: is(r.require_lowercase_characters),
        users_change: is(r.allow_users_to_change_password),
        age_days_max: r.max_password_age.map(|n| between("maxPasswordAge", n, 1, 1095)).transpose()?,
        reuse: r.password_reuse_prevention.map(|n| between("passwordReusePrevention", n, 1, 24)).transpose()?,
        hard_expiry: r.hard_expiry,
    };
    account::change(state, call, |account| account.passwords = Some(policy))
}

pub(super) fn delete_policy(
    state: &mut State,
    call: &Call<'_>,
    _: &iam::DeleteAccountPasswordPolicyRequest,
) -> Nothing {
    policy(state, call).ok_or_else(|| no_policy(call))?;
    account::change(state, call, |account| account.passwords = None)
}
