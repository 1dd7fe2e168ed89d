//! The credential report: a CSV of an account's users, their passwords and keys ("Getting credential reports", IAM User
//! Guide). It is made when it is asked for and kept in memory, each account's last one, for four hours.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError};

use super::*;
use crate::identity::records::{AccessKey, Bearer};
use crate::wire::Blob;

/// How long a report may be had.
const VALID_US: u64 = 4 * 3600 * 1_000_000;

const HEAD: &str = "user,arn,user_creation_time,password_enabled,password_last_used,password_last_changed,\
                    password_next_rotation,mfa_active,access_key_1_active,access_key_1_last_rotated,\
                    access_key_1_last_used_date,access_key_1_last_used_region,access_key_1_last_used_service,\
                    access_key_2_active,access_key_2_last_rotated,access_key_2_last_used_date,\
                    access_key_2_last_used_region,access_key_2_last_used_service,cert_1_active,cert_1_last_rotated,\
                    cert_2_active,cert_2_last_rotated";
const NONE: &str = "N/A";

/// `2026-01-31T12:00:00+00:00`.
fn moment(us: u64) -> String {
    let text = Timestamp(us).to_string();
    format!("{}+00:00", text.get(..19).unwrap_or(&text))
}

fn field(text: &str) -> String {
    match text.contains([',', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// One line; `password` has the fields from `password_enabled` to `mfa_active`.
fn line(out: &mut String, call: &Call<'_>, who: [&str; 3], password: [&str; 5], keys: &[&AccessKey]) {
    let mut fields: Vec<String> = who.iter().chain(&password).map(|text| field(text)).collect();
    for n in 0..2 {
        let key = keys.get(n);
        let used = key.and_then(|key| call.directory.uses().last(&key.id));
        fields.push(key.is_some_and(|key| key.active).to_string());
        fields.push(key.map_or_else(|| NONE.into(), |key| moment(key.created_us)));
        match used {
            Some(used) => fields.extend([moment(used.at_us), used.region, used.service]),
            None => fields.extend([NONE, NONE, NONE].map(String::from)),
        }
    }
    fields.extend(["false", NONE, "false", NONE].map(String::from));
    // Writing into a String cannot fail.
    let _ = write!(out, "\n{}", fields.join(","));
}

fn report(state: &State, call: &Call<'_>) -> String {
    let mut keys: HashMap<&str, Vec<&AccessKey>> = HashMap::new();
    for key in state.keys.values().filter(|k| k.account == *call.account()) {
        match &key.bearer {
            Bearer::Root => keys.entry("").or_default().push(key),
            Bearer::User(user) => keys.entry(user).or_default().push(key),
            Bearer::System => {}
        }
    }
    // Two are shown; a root of a users file may have more.
    keys.values_mut().for_each(|keys| keys.sort_by_key(|k| (!k.active, k.created_us)));
    let of = |bearer: &str| keys.get(bearer).map_or(&[][..], Vec::as_slice);
    let account = state.accounts.get(call.account().as_str());
    let days = account.and_then(|a| a.passwords.as_ref()?.age_days_max);
    let mut out = String::from(HEAD);
    let root = Arn::iam(call.account(), "root").to_string();
    let unknown = "not_supported";
    line(
        &mut out,
        call,
        ["<root_account>", &root, &moment(0)],
        [unknown, "no_information", unknown, unknown, "false"],
        of(""),
    );
    for (key, user) in own(&state.users, call) {
        let who = [user.name.as_str(), &user.arn(), &moment(user.created_us)];
        match &user.login {
            None => line(&mut out, call, who, ["false", NONE, NONE, NONE, "false"], of(&key)),
            Some(login) => {
                let changed_us = login.changed_us.max(login.created_us);
                let next_us = days.map(|days| changed_us + u64::from(days.unsigned_abs()) * 86_400_000_000);
                let next = next_us.map_or_else(|| NONE.into(), moment);
                line(&mut out, call, who, ["true", "no_information", &moment(changed_us), &next, "false"], of(&key));
            }
        }
    }
    out
}

pub(super) fn generate(
    state: &State,
    call: &Call<'_>,
    _: &iam::GenerateCredentialReportRequest,
) -> ApiResult<iam::GenerateCredentialReportResponse> {
    let made = (call.now_us(), Arc::from(report(state, call)));
    let mut reports = call.directory.reports.lock().unwrap_or_else(PoisonError::into_inner);
    reports.retain(|_, (at_us, _)| call.now_us().saturating_sub(*at_us) < VALID_US);
    reports.insert(call.account().to_string(), made);
    Ok(iam::GenerateCredentialReportResponse { description: None, state: Some(iam::ReportStateType::Complete) })
}

pub(super) fn get(
    _: &State,
    call: &Call<'_>,
    _: &iam::GetCredentialReportRequest,
) -> ApiResult<iam::GetCredentialReportResponse> {
    let reports = call.directory.reports.lock().unwrap_or_else(PoisonError::into_inner);
    let (at_us, text) = reports
        .get(call.account().as_str())
        .ok_or_else(|| ApiError::new(Code::ReportNotPresent, "No report exists: GenerateCredentialReport makes one"))?;
    if call.now_us().saturating_sub(*at_us) >= VALID_US {
        return Err(ApiError::new(Code::ReportExpired, "The report is older than four hours: make a new one"));
    }
    Ok(iam::GetCredentialReportResponse {
        content: Some(Blob(text.as_bytes().to_vec())),
        generated_time: at(*at_us),
        report_format: Some(iam::ReportFormatType::TextCsv),
    })
}
