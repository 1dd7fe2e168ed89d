//! Rows from AWS's documentation: its example policies, its tables of who is limited by what, its notes on elements.

use std::sync::Arc;

use super::*;

const ACCOUNT: &str = "111122223333";

fn user(name: &str) -> Principal {
    Principal::user(
        &ACCOUNT.parse().expect("an account"),
        &format!("arn:aws:iam::{ACCOUNT}:user/{name}"),
        "AIDAEXAMPLE",
    )
}
fn session() -> Principal {
    let account = ACCOUNT.parse().expect("an account");
    Principal::role_session(&account, &format!("arn:aws:iam::{ACCOUNT}:role/MyRole"), "AROAEXAMPLE", "MySession")
}

/// One statement's members, a request and whether it is allowed.
type Row = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], bool);

/// Identity policies of the user `casey` (tag team=blue): statement members, action, resource, keys, answer.
#[rustfmt::skip]
const IDENTITY: &[Row] = &[
    (r#""Effect":"Allow","Action":"*","Resource":"*""#, "iam:CreateUser", "arn:aws:iam::111122223333:user/x", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"*""#, "s3:GetObject", "arn:aws:s3:::b/k", &[], true),
    (r#""Effect":"Allow","Action":"S3:get*","Resource":"*""#, "s3:GetObject", "arn:aws:s3:::b/k", &[], true),
    (r#""Effect":"Allow","Action":"s3:Get*","Resource":"*""#, "s3:PutObject", "arn:aws:s3:::b/k", &[], false),
    (r#""Effect":"Allow","Action":"s3:?etObject","Resource":"*""#, "s3:GetObject", "arn:aws:s3:::b/k", &[], true),
    (r#""Effect":"Allow","Action":["ec2:*","s3:ListBucket"],"Resource":"*""#, "s3:ListBucket", "arn:aws:s3:::b", &[], true),
    (r#""Effect":"Allow","NotAction":"iam:*","Resource":"*""#, "ec2:RunInstances", "*", &[], true),
    (r#""Effect":"Allow","NotAction":"iam:*","Resource":"*""#, "iam:CreateUser", "*", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::amzn-s3-demo-bucket""#, "s3:GetObject", "arn:aws:s3:::amzn-s3-demo-bucket/k", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::amzn-s3-demo-bucket/*""#, "s3:GetObject", "arn:aws:s3:::amzn-s3-demo-bucket/a/b", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::amzn-s3-demo-bucket/*/test/*""#, "s3:GetObject", "arn:aws:s3:::amzn-s3-demo-bucket/1/test/object.jpg", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::amzn-s3-demo-bucket/*/test/*""#, "s3:GetObject", "arn:aws:s3:::amzn-s3-demo-bucket/1/2/test/3/object.jpg", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::amzn-s3-demo-bucket/*/test/*""#, "s3:GetObject", "arn:aws:s3:::amzn-s3-demo-bucket/1-test/object.jpg", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","NotResource":["arn:aws:s3:::hr","arn:aws:s3:::hr/*"]"#, "s3:GetObject", "arn:aws:s3:::it/k", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","NotResource":["arn:aws:s3:::hr","arn:aws:s3:::hr/*"]"#, "s3:GetObject", "arn:aws:s3:::hr/k", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::home/${aws:username}/*""#, "s3:PutObject", "arn:aws:s3:::home/casey/x", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::home/${aws:username}/*""#, "s3:PutObject", "arn:aws:s3:::home/eve/x", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::${aws:PrincipalTag/team}/*""#, "s3:PutObject", "arn:aws:s3:::blue/x", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::${aws:PrincipalTag/absent}/*""#, "s3:PutObject", "arn:aws:s3:::/x", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::${aws:PrincipalTag/absent, 'none'}/*""#, "s3:PutObject", "arn:aws:s3:::none/x", &[], true),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${*}""#, "s3:GetObject", "arn:aws:s3:::b/k", &[], false),
    (r#""Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${*}""#, "s3:GetObject", "arn:aws:s3:::b/*", &[], true),
    (r#""Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b","Condition":{"StringLike":{"s3:prefix":["","home/","home/${aws:username}/*"]}}"#, "s3:ListBucket", "arn:aws:s3:::b", &[("s3:prefix", "home/casey/x")], true),
    (r#""Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b","Condition":{"StringLike":{"s3:prefix":["","home/","home/${aws:username}/*"]}}"#, "s3:ListBucket", "arn:aws:s3:::b", &[("s3:prefix", "home/eve/x")], false),
    (r#""Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b","Condition":{"StringLike":{"s3:prefix":["","home/"]}}"#, "s3:ListBucket", "arn:aws:s3:::b", &[], false),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"Bool":{"aws:MultiFactorAuthPresent":true}}"#, "ec2:StopInstances", "*", &[("aws:MultiFactorAuthPresent", "true")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"Bool":{"aws:MultiFactorAuthPresent":true}}"#, "ec2:StopInstances", "*", &[], false),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}}"#, "ec2:StopInstances", "*", &[("aws:SourceIp", "203.0.113.9")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2013-08-16T12:00:00Z"},"DateLessThan":{"aws:CurrentTime":"2013-08-16T15:00:00Z"}}"#, "ec2:X", "*", &[("aws:CurrentTime", "2013-08-16T13:00:00Z")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2013-08-16T12:00:00Z"},"DateLessThan":{"aws:CurrentTime":"2013-08-16T15:00:00Z"}}"#, "ec2:X", "*", &[("aws:CurrentTime", "2013-08-16T16:00:00Z")], false),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/team":"blue","aws:ResourceTag/team":"blue"}}"#, "ec2:X", "*", &[("aws:ResourceTag/team", "blue")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/team":"blue","aws:ResourceTag/team":"blue"}}"#, "ec2:X", "*", &[("aws:ResourceTag/team", "red")], false),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/team":"${aws:PrincipalTag/team}"}}"#, "ec2:X", "*", &[("aws:ResourceTag/team", "blue")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":["team","cost"]}}"#, "ec2:X", "*", &[("aws:TagKeys", "team")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":["team","cost"]}}"#, "ec2:X", "*", &[("aws:TagKeys", "other")], false),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"NumericLessThanEquals":{"s3:max-keys":"10"}}"#, "ec2:X", "*", &[("s3:max-keys", "10")], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"Null":{"aws:TokenIssueTime":"true"}}"#, "ec2:X", "*", &[], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/c*"}}"#, "ec2:X", "*", &[], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalType":"User","aws:PrincipalAccount":"111122223333","aws:userid":"AIDAEXAMPLE","aws:username":"casey"}}"#, "ec2:X", "*", &[], true),
    (r#""Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"StringEquals":{"aws:username":"casey"}}"#, "ec2:X", "*", &[("aws:username", "eve")], true),
    (r#""Effect":"Deny","Action":"ec2:*","Resource":"*""#, "ec2:X", "*", &[], false),
    (r#""Effect":"Allow","Action":"ec2:RunInstances","Resource":"arn:aws:ec2:*:111122223333:instance/*""#, "ec2:RunInstances", "arn:aws:ec2:us-east-1:111122223333:instance/*", &[], true),
    (r#""Effect":"Allow","Action":"ec2:RunInstances","Resource":"arn:aws:ec2:eu-*:111122223333:instance/*""#, "ec2:RunInstances", "arn:aws:ec2:us-east-1:111122223333:instance/*", &[], false),
];

#[test]
fn identity_policies() {
    for (members, action, resource, keys, expected) in IDENTITY {
        let text = format!(r#"{{"Version":"2012-10-17","Statement":[{{{members}}}]}}"#);
        let policy = Policy::parse(&text, Use::Managed).expect(&text);
        let mut casey = user("casey");
        casey.tags.insert("team".into(), "blue".into());
        let mut context = Context::default();
        keys.iter().for_each(|(key, value)| _ = context.text(key, *value));
        let request = Request { action, resource, context: &context };
        let decision = decide(&Identity::new(casey, vec![policy.into()]), &Target::default(), &request);
        assert_eq!(decision.is_allowed(), *expected, "{members}\n{action} {resource} {keys:?}: {decision:?}");
    }
}

#[test]
fn old_policies_have_no_variables() {
    let text = r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::home/${aws:username}/*"}}"#;
    let identity = Identity::new(user("casey"), vec![Policy::parse(text, Use::Managed).expect("a policy").into()]);
    let context = Context::default();
    let allowed = |resource| {
        decide(&identity, &Target::default(), &Request { action: "s3:GetObject", resource, context: &context })
            .is_allowed()
    };
    assert!(!allowed("arn:aws:s3:::home/casey/x"));
    assert!(allowed("arn:aws:s3:::home/${aws:username}/x"));
}

fn bucket(members: &str) -> Policy {
    let text = format!(
        r#"{{"Version":"2012-10-17","Id":"p","Statement":[{{"Sid":"a b","Action":"s3:*","Resource":"arn:aws:s3:::b/*",{members}}}]}}"#
    );
    Policy::parse(&text, Use::Bucket).expect(&text)
}

/// Resource policy, caller, keys, answer; the bucket is of the caller's account, nothing else allows.
#[test]
fn resource_policies() {
    let allow = |names: &str| format!(r#""Effect":"Allow","Principal":{names}"#);
    let rows: Vec<(String, Principal, bool)> = vec![
        (allow(r#""*""#), Principal::anonymous(), true),
        (allow(r#"{"AWS":"*"}"#), Principal::anonymous(), true),
        (allow(r#"{"AWS":"arn:aws:iam::111122223333:user/casey"}"#), Principal::anonymous(), false),
        (allow(r#"{"AWS":"arn:aws:iam::111122223333:user/casey"}"#), user("casey"), true),
        (allow(r#"{"AWS":"arn:aws:iam::111122223333:user/casey"}"#), user("eve"), false),
        (allow(r#"{"AWS":"AIDAEXAMPLE12345"}"#), user("casey"), false),
        // The account itself only lets its administrators delegate.
        (allow(r#"{"AWS":"111122223333"}"#), user("casey"), false),
        (allow(r#"{"AWS":"111122223333"}"#), Principal::root(&ACCOUNT.parse().expect("an account")), true),
        (allow(r#"{"AWS":"arn:aws:iam::111122223333:root"}"#), user("casey"), false),
        (allow(r#"{"AWS":"arn:aws:iam::111122223333:role/MyRole"}"#), session(), true),
        (allow(r#"{"AWS":"arn:aws:sts::111122223333:assumed-role/MyRole/MySession"}"#), session(), true),
        (allow(r#"{"AWS":"arn:aws:sts::111122223333:assumed-role/MyRole/Other"}"#), session(), false),
        (allow(r#"{"Service":"logging.s3.amazonaws.com"}"#), Principal::service("logging.s3.amazonaws.com"), true),
        (allow(r#"{"Service":"logging.s3.amazonaws.com"}"#), Principal::service("ec2.amazonaws.com"), false),
        (allow(r#"{"Service":["ec2.amazonaws.com","x.y"],"AWS":"444455556666"}"#), Principal::service("x.y"), true),
        (allow(r#"{"CanonicalUser":"111122223333"}"#), Principal::anonymous(), false),
        (
            allow(r#""*","Condition":{"StringEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:role/MyRole"}}"#),
            session(),
            true,
        ),
        (
            allow(r#""*","Condition":{"StringEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:role/MyRole"}}"#),
            user("casey"),
            false,
        ),
        (allow(r#""*","Condition":{"Bool":{"aws:PrincipalIsAWSService":"true"}}"#), Principal::service("x.y"), true),
        (allow(r#""*","Condition":{"StringEquals":{"aws:PrincipalType":"Anonymous"}}"#), Principal::anonymous(), true),
        (allow(r#""*","Condition":{"Null":{"aws:PrincipalArn":"true"}}"#), user("casey"), false),
    ];
    let owner = ACCOUNT.parse().expect("an account");
    let context = Context::default();
    for (members, who, expected) in rows {
        let policy = bucket(&members);
        let target = Target { owner: Some(&owner), policy: Some(&policy), ..Target::default() };
        let request = Request { action: "s3:GetObject", resource: "arn:aws:s3:::b/k", context: &context };
        let decision = decide(&Identity::new(who.clone(), Vec::new()), &target, &request);
        assert_eq!(decision.is_allowed(), expected, "{members} {who:?}: {decision:?}");
    }
}

#[test]
fn not_principal_spares_whom_it_names_and_an_account_means_its_root() {
    // "NotPrincipal with Deny": Bob and the root are spared, other users of the account are not.
    let policy = bucket(
        r#""Effect":"Deny","NotPrincipal":{"AWS":["arn:aws:iam::111122223333:user/Bob","arn:aws:iam::111122223333:root"]}"#,
    );
    let context = Context::default();
    let request = Request { action: "s3:GetObject", resource: "arn:aws:s3:::b/k", context: &context };
    let owner = ACCOUNT.parse().expect("an account");
    let target = Target { owner: Some(&owner), policy: Some(&policy), ..Target::default() };
    let all = vec![Arc::new(Policy::administrator())];
    let ask = |who: Principal| decide(&Identity::new(who, all.clone()), &target, &request);
    assert_eq!(ask(user("Bob")), Decision::Allowed);
    assert_eq!(ask(Principal::root(&owner)), Decision::Allowed);
    assert_eq!(ask(user("eve")), Decision::ExplicitDeny(Layer::Resource));
    assert_eq!(ask(session()), Decision::ExplicitDeny(Layer::Resource));
    assert_eq!(ask(Principal::anonymous()), Decision::ExplicitDeny(Layer::Resource));
}

#[test]
fn who_is_limited_by_boundaries_and_sessions() {
    // "Evaluating effective permissions with boundaries": a user named by the resource is not limited, a role is.
    let silent = Arc::new(
        Policy::parse(r#"{"Statement":{"Effect":"Allow","Action":"x:y","Resource":"*"}}"#, Use::Managed)
            .expect("a policy"),
    );
    let owner = ACCOUNT.parse().expect("an account");
    let context = Context::default();
    let ask = |who: Principal, names: &str, boundary: bool, session: bool| {
        let policy = bucket(&format!(r#""Effect":"Allow","Principal":{{"AWS":"arn:aws:{names}"}}"#));
        let target = Target { owner: Some(&owner), policy: Some(&policy), ..Target::default() };
        let identity = Identity {
            principal: who,
            policies: Vec::new(),
            boundary: boundary.then(|| silent.clone()),
            session: session.then(|| vec![silent.clone()]),
        };
        decide(&identity, &target, &Request { action: "s3:GetObject", resource: "arn:aws:s3:::b/k", context: &context })
    };
    let (by_user, by_role) = ("iam::111122223333:user/casey", "iam::111122223333:role/MyRole");
    let by_session = "sts::111122223333:assumed-role/MyRole/MySession";
    assert_eq!(ask(user("casey"), by_user, true, true), Decision::Allowed);
    assert_eq!(ask(session(), by_role, false, false), Decision::Allowed);
    assert_eq!(ask(session(), by_role, true, false), Decision::ImplicitDeny(Layer::Boundary));
    assert_eq!(ask(session(), by_role, false, true), Decision::ImplicitDeny(Layer::Session));
    assert_eq!(ask(session(), by_session, true, true), Decision::Allowed);
    assert!(
        ask(user("eve"), by_user, false, false)
            .why("s3:GetObject")
            .contains("no identity-based policy allows the s3:GetObject")
    );
}
