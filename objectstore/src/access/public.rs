//! What S3 calls public: policies that let in anybody ("The meaning of public", S3 User Guide).

use std::net::IpAddr;

use karri_base::aws::policy::condition::Condition;
use karri_base::aws::policy::document::{Statement, These};
use karri_base::aws::policy::principal::Name;
use karri_base::aws::policy::{Effect, Policy};

/// Condition keys that, held to fixed values, narrow a statement to somebody known; in lower case.
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

/// True where a value names somebody known: it has no wildcards and no variables, and a network is no wider than an
/// organisation's.
fn is_fixed(key: &str, value: &str) -> bool {
    let value = match key {
        // All sessions of one role.
        "aws:userid" => value.strip_suffix(":*").unwrap_or(value),
        // Any access point of one account.
        "s3:dataaccesspointarn" => {
            let mut parts = value.splitn(6, ':');
            let account = parts.nth(4).unwrap_or_default();
            return !account.is_empty() && account.bytes().all(|b| b.is_ascii_digit());
        }
        "aws:sourceip" | "aws:vpcsourceip" => return is_narrow(value),
        _ => value,
    };
    !value.is_empty() && !value.contains(['*', '?']) && !value.contains("${")
}

/// True for a network of at least 8 fixed bits of an IPv4 address, 32 of an IPv6 one.
fn is_narrow(network: &str) -> bool {
    let (address, bits) = network.split_once('/').map_or((network, None), |(a, b)| (a, Some(b)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let least = match (address, address.to_canonical()) {
        (IpAddr::V4(_), _) => 8,
        // IPv4 in IPv6's clothes.
        (IpAddr::V6(_), IpAddr::V4(_)) => 96 + 8,
        (IpAddr::V6(_), IpAddr::V6(_)) => 32,
    };
    bits.is_none_or(|bits| bits.parse::<u32>().is_ok_and(|bits| bits >= least))
}

fn narrows(condition: &Condition) -> bool {
    let key = condition.key().to_ascii_lowercase();
    let all_fixed = |values: &[String]| !values.is_empty() && values.iter().all(|value| is_fixed(&key, value));
    NARROWING.contains(&key.as_str()) && condition.only().is_some_and(all_fixed)
}

fn statement(s: &Statement) -> bool {
    let everybody = match &s.principals {
        Some(These::Only(names)) => names.contains(&Name::Everyone),
        Some(These::AllBut(_)) => true,
        None => false,
    };
    s.effect == Effect::Allow && everybody && !s.conditions.iter().any(narrows)
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
        // The operator, the key, its value, and whether that lets in anybody.
        for (operator, key, value, want) in [
            ("IpAddress", "aws:SourceIp", "10.0.0.0/8", false),
            ("IpAddress", "aws:SourceIp", "203.0.113.7", false),
            ("IpAddress", "aws:SourceIp", "0.0.0.0/0", true),
            ("IpAddress", "aws:SourceIp", "128.0.0.0/7", true),
            ("IpAddress", "aws:SourceIp", "2001:db8::/32", false),
            ("IpAddress", "aws:SourceIp", "2001:d00::/31", true),
            ("IpAddress", "aws:SourceIp", "::/0", true),
            ("IpAddress", "aws:SourceIp", "::ffff:10.0.0.0/104", false),
            ("IpAddress", "aws:SourceIp", "::ffff:0:0/96", true),
            ("IpAddress", "aws:SourceIp", "::ffff:0:0/103", true),
            ("IpAddressIfExists", "aws:SourceIp", "10.0.0.0/8", true),
            ("NotIpAddress", "aws:SourceIp", "10.0.0.0/8", true),
            ("ForAllValues:IpAddress", "aws:SourceIp", "10.0.0.0/8", true),
            ("ForAnyValue:IpAddress", "aws:SourceIp", "10.0.0.0/8", false),
            ("StringEquals", "aws:PrincipalAccount", "000000000001", false),
            ("StringEquals", "AWS:principalaccount", "000000000001", false),
            ("StringNotEquals", "aws:PrincipalAccount", "000000000001", true),
            ("StringEqualsIfExists", "aws:PrincipalAccount", "000000000001", true),
            ("StringLike", "aws:PrincipalAccount", "*", true),
            ("StringLike", "aws:PrincipalAccount", "00000000000?", true),
            ("StringEquals", "aws:PrincipalAccount", "${aws:PrincipalAccount}", true),
            ("Null", "aws:PrincipalArn", "false", true),
            ("ArnEquals", "aws:PrincipalArn", "arn:aws:iam::000000000001:user/ann", false),
            ("ArnLike", "aws:PrincipalArn", "arn:aws:iam::000000000001:user/*", true),
            ("StringLike", "aws:PrincipalArn", "*", true),
            ("StringLike", "aws:userid", "AROAEXAMPLEEXAMPLE01:*", false),
            ("StringLike", "aws:userid", "*", true),
            ("StringLike", "aws:userid", "AROA*:*", true),
            ("StringLike", "s3:DataAccessPointArn", "arn:aws:s3:us-east-1:000000000001:accesspoint/*", false),
            ("StringLike", "s3:DataAccessPointArn", "arn:aws:s3:us-east-1:*:accesspoint/*", true),
            ("StringEquals", "aws:SourceVpc", "vpc-1", false),
            ("StringEquals", "aws:UserAgent", "me", true),
            ("DateLessThan", "aws:CurrentTime", "2030-01-01T00:00:00Z", true),
        ] {
            check(r#""*""#, &when(operator, key, value), want);
        }
        // One narrow condition is enough; all of its values must be narrow.
        let both = r#""Effect":"Allow","Condition":{"IpAddress":{"aws:SourceIp":["10.0.0.0/8","0.0.0.0/0"]}}"#;
        check(r#""*""#, both, true);
        let either = r#""Effect":"Allow","Condition":{"IpAddress":{"aws:SourceIp":"0.0.0.0/0"},"StringEquals":{"aws:SourceAccount":"000000000001"}}"#;
        check(r#""*""#, either, false);
        check(r#""*""#, &when("StringEquals", "s3:prefix", "a"), true);
        check(r#""*""#, &when("StringLike", "aws:Referer", "http://x/*"), true);
    }
}
