//! The truth table: every combination of caller, account, identity, boundary, session, resource policy and ACL, some
//! 24,000 rows, against an oracle that was written from the prose and shares nothing with the evaluator.

use std::sync::Arc;

use super::*;
use crate::id::AccountId;

const HERE: &str = "111111111111";
const THERE: &str = "222222222222";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Root,
    User,
    Role,
    Federated,
    Nobody,
    Service,
}
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    /// There is no such policy.
    Absent,
    Allow,
    /// There is one, about something else.
    Silent,
    Deny,
}
#[derive(Debug, Clone, Copy, PartialEq)]
enum On {
    Absent,
    AllowCaller,
    AllowRole,
    AllowAccount,
    AllowEveryone,
    AllowOther,
    DenyAccount,
    DenyAllButCaller,
    DenyAllButOther,
}

const CALLERS: [Who; 6] = [Who::Root, Who::User, Who::Role, Who::Federated, Who::Nobody, Who::Service];
const LAYERS: [Says; 4] = [Says::Absent, Says::Allow, Says::Silent, Says::Deny];
const RESOURCE: [On; 9] = [
    On::Absent,
    On::AllowCaller,
    On::AllowRole,
    On::AllowAccount,
    On::AllowEveryone,
    On::AllowOther,
    On::DenyAccount,
    On::DenyAllButCaller,
    On::DenyAllButOther,
];

/// In words: what must hold for a yes.
fn oracle(who: Who, same: bool, must: bool, says: [Says; 3], on: On, acl: Acl) -> bool {
    let [identity, boundary, session] = says;
    let has_account = !matches!(who, Who::Nobody | Who::Service);
    // Explicit denies.
    let denied_there = match on {
        On::DenyAccount => has_account,
        // Nobody cannot be named, so is not spared.
        On::DenyAllButCaller => who == Who::Nobody,
        On::DenyAllButOther => true,
        _ => false,
    };
    let limited_by_own = has_account && who != Who::Root;
    let denied_here = (limited_by_own && (identity == Says::Deny || boundary == Says::Deny))
        || (has_account && session == Says::Deny);
    if denied_there || denied_here {
        return false;
    }
    // Grants on the resource.
    let names_caller = on == On::AllowEveryone
        || (on == On::AllowCaller && who != Who::Nobody)
        || (on == On::AllowAccount && who == Who::Root);
    let names_role = on == On::AllowRole && who == Who::Role;
    let names_account = on == On::AllowAccount && has_account;
    let acl = if must { Acl::None } else { acl };
    if !has_account {
        return names_caller || acl == Acl::Public;
    }
    let fine = |says: Says| matches!(says, Says::Absent | Says::Allow);
    let within = (who == Who::Root || fine(boundary)) && fine(session);
    let own = (who == Who::Root || identity == Says::Allow) && within;
    let any_grant = names_caller || names_role || names_account || acl != Acl::None;
    if !same {
        return own && any_grant;
    }
    if names_caller {
        return true;
    }
    if (names_role || acl == Acl::Public) && within {
        return true;
    }
    own && (!must || names_account || names_role)
}

fn document(effect: &str, extra: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":{{"Effect":"{effect}","Action":"x:Do","Resource":"arn:aws:x:::thing"{extra}}}}}"#
    )
}

fn policy(says: Says) -> Option<Arc<Policy>> {
    let parse = |text: &str| Some(Arc::new(Policy::parse(text, Use::Managed).expect("a policy")));
    match says {
        Says::Absent => None,
        Says::Allow => parse(&document("Allow", "")),
        Says::Deny => parse(&document("Deny", "")),
        Says::Silent => parse(&document("Allow", "").replace("x:Do", "x:Other")),
    }
}

fn principal(who: Who, account: &AccountId) -> Principal {
    match who {
        Who::Root => Principal::root(account),
        Who::User => Principal::user(account, &format!("arn:aws:iam::{account}:user/p/u"), "AIDAUSERUSERUSERUSER"),
        Who::Role => {
            Principal::role_session(account, &format!("arn:aws:iam::{account}:role/r"), "AROAROLEROLEROLEROLE", "s")
        }
        Who::Federated => Principal::federated_user(account, "f"),
        Who::Nobody => Principal::anonymous(),
        Who::Service => Principal::service("svc.amazonaws.com"),
    }
}

fn resource_policy(who: Who, on: On) -> Option<Policy> {
    let caller = match who {
        Who::Root => format!(r#"{{"AWS":"arn:aws:iam::{HERE}:root"}}"#),
        Who::User => format!(r#"{{"AWS":["arn:aws:iam::{HERE}:user/p/u"]}}"#),
        Who::Role => format!(r#"{{"AWS":"arn:aws:sts::{HERE}:assumed-role/r/s"}}"#),
        Who::Federated => format!(r#"{{"AWS":"arn:aws:sts::{HERE}:federated-user/f"}}"#),
        Who::Nobody => r#"{"AWS":"AIDANOBODYNOBODYNOBO"}"#.to_owned(),
        Who::Service => r#"{"Service":"svc.amazonaws.com"}"#.to_owned(),
    };
    let account = format!(r#"{{"AWS":"{HERE}"}}"#);
    let other = format!(r#"{{"AWS":"arn:aws:iam::{HERE}:user/other"}}"#);
    let role = format!(r#"{{"AWS":"arn:aws:iam::{HERE}:role/r"}}"#);
    let (effect, element, names) = match on {
        On::Absent => return None,
        On::AllowCaller => ("Allow", "Principal", caller),
        On::AllowRole => ("Allow", "Principal", role),
        On::AllowAccount => ("Allow", "Principal", account),
        On::AllowEveryone => ("Allow", "Principal", r#""*""#.to_owned()),
        On::AllowOther => ("Allow", "Principal", other),
        On::DenyAccount => ("Deny", "Principal", account),
        On::DenyAllButCaller => ("Deny", "NotPrincipal", caller),
        On::DenyAllButOther => ("Deny", "NotPrincipal", other),
    };
    let text = document(effect, &format!(r#","{element}":{names}"#));
    Some(Policy::parse(&text, Use::Bucket).expect(&text))
}

#[test]
fn every_combination_is_decided_as_the_prose_says() {
    let (here, there): (AccountId, AccountId) = (HERE.parse().expect("an account"), THERE.parse().expect("an account"));
    let documents: Vec<(Says, Option<Arc<Policy>>)> = LAYERS.iter().map(|says| (*says, policy(*says))).collect();
    let (mut rows, mut allowed) = (0, 0);
    for who in CALLERS {
        let resource: Vec<(On, Option<Policy>)> = RESOURCE.iter().map(|on| (*on, resource_policy(who, *on))).collect();
        for (id, by_identity) in &documents {
            for (bound, boundary) in &documents {
                for (sess, session) in &documents {
                    let identity = Identity {
                        principal: principal(who, &here),
                        policies: by_identity.iter().cloned().collect(),
                        boundary: boundary.clone(),
                        session: session.as_ref().map(|s| vec![s.clone()]),
                    };
                    for (on, policy) in &resource {
                        for acl in [Acl::None, Acl::Account, Acl::Public] {
                            for (same, must_allow) in [(true, false), (true, true), (false, false), (false, true)] {
                                let owner = if same { &here } else { &there };
                                let target = Target { owner: Some(owner), policy: policy.as_ref(), acl, must_allow };
                                let context = Context::default();
                                let request =
                                    Request { action: "x:Do", resource: "arn:aws:x:::thing", context: &context };
                                let decision = decide(&identity, &target, &request);
                                let says = [*id, *bound, *sess];
                                let expected = oracle(who, same, must_allow, says, *on, acl);
                                assert_eq!(
                                    decision.is_allowed(),
                                    expected,
                                    "{who:?} same={same} must={must_allow} {says:?} {on:?} {acl:?}: {decision:?}"
                                );
                                rows += 1;
                                allowed += usize::from(expected);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(rows > 24_000 && allowed > rows / 20, "{rows} rows, {allowed} of them yes");
}
