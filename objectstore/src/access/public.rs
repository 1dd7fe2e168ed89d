//! What S3 calls public: policies that let in anybody ("The meaning of public", S3 User Guide).

use karri_base::aws::policy::document::{Statement, These};
use karri_base::aws::policy::principal::Name;
use karri_base::aws::policy::{Effect, Policy};

/// Condition keys that, held to fixed values, narrow a statement to somebody known.
const NARROWING: [&str; 14] = [
    "aws:sourceip",
    "aws:sourcearn",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:sourceaccount",
    "aws:sourceowner",
    "aws:userid",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principalorgid",
    "aws:principalorgpaths",
    "aws:vpcsourceip",
    "s3:dataaccesspointarn",
    "s3:dataaccesspointaccount",
];

/// True where a policy lets in anybody.
pub fn is_public(policy: &Policy) -> bool {
    policy.statements.iter().any(statement)
}

fn statement(s: &Statement) -> bool {
    let everybody = match &s.principals {
        Some(These::Only(names)) => names.contains(&Name::Everyone),
        Some(These::AllBut(_)) => true,
        None => false,
    };
    let narrowed = s.conditions.iter().any(|condition| {
        condition.keys().next().is_some_and(|key| NARROWING.iter().any(|n| n.eq_ignore_ascii_case(key)))
    });
    s.effect == Effect::Allow && everybody && !narrowed
}

#[cfg(test)]
mod tests {
    use karri_base::aws::policy::Use;

    use super::*;

    #[test]
    fn who_is_anybody() {
        let check = |principal: &str, rest: &str, want: bool| {
            let text = format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Principal":{principal},"Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*",{rest}}}]}}"#
            );
            assert_eq!(is_public(&Policy::parse(&text, Use::Bucket).unwrap()), want, "{text}");
        };
        let allow = r#""Effect":"Allow""#;
        check(r#""*""#, allow, true);
        check(r#"{"AWS":"*"}"#, allow, true);
        check(r#"{"AWS":"000000000001"}"#, allow, false);
        check(r#""*""#, r#""Effect":"Deny""#, false);
        let when = |operator: &str, key: &str, value: &str| {
            format!(r#"{allow},"Condition":{{"{operator}":{{"{key}":"{value}"}}}}"#)
        };
        check(r#""*""#, &when("IpAddress", "aws:SourceIp", "10.0.0.0/32"), false);
        check(r#""*""#, &when("StringEquals", "s3:prefix", "a"), true);
        check(r#""*""#, &when("StringLike", "aws:Referer", "http://x/*"), true);
    }
}
