//! Ways round the policies that must stay closed.

use super::tests::{ROOT, allow, key, session, world};
use crate::cloud::tests::{text, texts};

fn allow_if(action: &str, tag: &str, value: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Action":"{action}","Resource":"*","Condition":{{"StringEquals":{{"{tag}":"{value}"}}}}}}}}"#
    )
}

#[tokio::test]
async fn the_tag_that_is_judged_is_the_tag_that_is_kept() {
    let w = world().await;
    let eve = w.user("eve").await;
    let document = allow_if("iam:TagUser", "aws:RequestTag/team", "blue");
    w.fine("PutUserPolicy", &[("UserName", "eve"), ("PolicyName", "p"), ("PolicyDocument", &document)]).await;
    let tag = |one: &'static str, other: &'static str| {
        [
            ("UserName", "eve"),
            ("Tags.member.2.Key", "team"),
            ("Tags.member.2.Value", one),
            ("Tags.member.10.Key", "Team"),
            ("Tags.member.10.Value", other),
        ]
    };
    for params in [tag("blue", "red"), tag("red", "blue")] {
        assert!(w.iam(key(&eve), "TagUser", &params).await.is_err());
    }
    assert!(!w.fine("GetUser", &[("UserName", "eve")]).await.contains("red"));
    let once = |value| [("UserName", "eve"), ("Tags.member.1.Key", "team"), ("Tags.member.1.Value", value)];
    w.refused(key(&eve), "TagUser", &once("red"), "AccessDenied").await;
    w.iam(key(&eve), "TagUser", &once("blue")).await.unwrap();

    // In a session too.
    let trust =
        r#"{"Statement":{"Effect":"Allow","Principal":{"AWS":"*"},"Action":["sts:AssumeRole","sts:TagSession"]}}"#;
    w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", trust)]).await;
    let everything = allow("sts:*", "*");
    w.fine("PutUserPolicy", &[("UserName", "eve"), ("PolicyName", "q"), ("PolicyDocument", &everything)]).await;
    let role = text(&w.fine("GetRole", &[("RoleName", "r")]).await, "Arn");
    let tagged = [
        ("RoleArn", role.as_str()),
        ("RoleSessionName", "eve"),
        ("Tags.member.1.Key", "Team"),
        ("Tags.member.1.Value", "red"),
        ("Tags.member.2.Key", "team"),
        ("Tags.member.2.Value", "blue"),
    ];
    assert!(session(&w, key(&eve), "AssumeRole", &tagged).await.unwrap_err().contains("Duplicate tag key"));
    session(&w, key(&eve), "AssumeRole", &tagged[..4]).await.unwrap();
}

#[tokio::test]
async fn what_is_made_with_tags_moved_or_protected_by_tags_is_asked_for() {
    let w = world().await;
    let eve = w.user("eve").await;
    let put = |name: &'static str, document: String| {
        let w = &w;
        async move {
            let params = [("UserName", "eve"), ("PolicyName", name), ("PolicyDocument", document.as_str())];
            w.fine("PutUserPolicy", &params).await;
        }
    };
    put("make", allow("iam:CreateUser", "*")).await;
    let tags = [("UserName", "x"), ("Tags.member.1.Key", "a"), ("Tags.member.1.Value", "b")];
    w.refused(key(&eve), "CreateUser", &tags, "AccessDenied").await;
    w.iam(key(&eve), "CreateUser", &tags[..1]).await.unwrap();
    put("make", allow("iam:*", "arn:aws:iam::111122223333:user/dev/*")).await;
    w.fine("UpdateUser", &[("UserName", "x"), ("NewPath", "/dev/")]).await;
    let to = |path| [("UserName", "x"), ("NewPath", path)];
    w.refused(key(&eve), "UpdateUser", &to("/admin/"), "AccessDenied").await;
    w.iam(key(&eve), "UpdateUser", &to("/dev/a/")).await.unwrap();
    // Its path stays: the new name is below it.
    w.iam(key(&eve), "UpdateUser", &[("UserName", "x"), ("NewUserName", "y")]).await.unwrap();
    let deny = allow_if("*", "aws:ResourceTag/protected", "true").replace("Allow", "Deny");
    put("deny", deny).await;
    w.fine("TagUser", &[("UserName", "y"), ("Tags.member.1.Key", "protected"), ("Tags.member.1.Value", "true")]).await;
    w.refused(key(&eve), "DeleteUser", &[("UserName", "y")], "AccessDenied").await;
    w.fine("UntagUser", &[("UserName", "y"), ("TagKeys.member.1", "protected")]).await;
    w.iam(key(&eve), "DeleteUser", &[("UserName", "y")]).await.unwrap();
}

#[tokio::test]
async fn what_one_tenant_may_make_everyone_keep_is_bounded() {
    let w = world().await;
    w.user("eve").await;
    let padded = |n: usize| allow("s3:*", "*") + &" ".repeat(n);
    let put = |name: &'static str, n: usize| {
        let (w, document) = (&w, padded(n));
        async move {
            let params = [("UserName", "eve"), ("PolicyName", name), ("PolicyDocument", document.as_str())];
            w.iam(ROOT, "PutUserPolicy", &params).await
        }
    };
    put("a", 10_000).await.unwrap();
    assert!(put("b", 10_000).await.unwrap_err().starts_with("LimitExceeded"));
    assert!(put("c", 200_000).await.unwrap_err().starts_with("LimitExceeded"));
    let names = w.fine("ListUserPolicies", &[("UserName", "eve")]).await;
    assert_eq!(texts(&names, "member"), ["a"]);
}

#[tokio::test]
async fn the_simulator_answers_no_more_than_a_page() {
    let w = world().await;
    let document = allow("s3:*", "*");
    let (mut names, mut params) = (Vec::new(), vec![("PolicyInputList.member.1".to_owned(), document)]);
    for n in 1..=300 {
        names.push(format!("s3:Action{n}"));
        params.push((format!("ActionNames.member.{n}"), format!("s3:Action{n}")));
        params.push((format!("ResourceArns.member.{n}"), format!("arn:aws:s3:::b/{n}")));
    }
    let all: Vec<(&str, &str)> = params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let page = w.fine("SimulateCustomPolicy", &all).await;
    assert_eq!((texts(&page, "EvalDecision").len(), text(&page, "IsTruncated").as_str()), (100, "true"));
    let marker = text(&page, "Marker");
    let mut next = all.clone();
    next.push(("Marker", &marker));
    let second = w.fine("SimulateCustomPolicy", &next).await;
    assert_eq!(texts(&second, "EvalResourceName")[0], "arn:aws:s3:::b/101");
    let more: Vec<(String, String)> = (301..=400).map(|n| (format!("ActionNames.member.{n}"), "a:b".into())).collect();
    next.extend(more.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    w.refused(ROOT, "SimulateCustomPolicy", &next, "InvalidInput").await;
}

#[tokio::test]
async fn a_chain_of_roles_keeps_whom_it_began_with() {
    let w = world().await;
    let alice = w.user("alice").await;
    let trust = r#"{"Statement":{"Effect":"Allow","Principal":{"AWS":"*"},"Action":["sts:AssumeRole","sts:SetSourceIdentity"]}}"#;
    let sts = allow("sts:*", "*");
    w.fine("PutUserPolicy", &[("UserName", "alice"), ("PolicyName", "p"), ("PolicyDocument", &sts)]).await;
    for role in ["one", "two"] {
        w.fine("CreateRole", &[("RoleName", role), ("AssumeRolePolicyDocument", trust)]).await;
        w.fine("PutRolePolicy", &[("RoleName", role), ("PolicyName", "p"), ("PolicyDocument", &sts)]).await;
    }
    let assume = |role: &'static str, source: &'static str| {
        let arn = ["arn:aws:iam::111122223333:role/one", "arn:aws:iam::111122223333:role/two"];
        [("RoleArn", arn[usize::from(role == "two")]), ("RoleSessionName", "me"), ("SourceIdentity", source)]
    };
    let first = session(&w, key(&alice), "AssumeRole", &assume("one", "alice")).await.unwrap();
    assert!(session(&w, key(&first), "AssumeRole", &assume("two", "bob")).await.is_err());
    let second = session(&w, key(&first), "AssumeRole", &assume("two", "")[..2]).await.unwrap();
    let who = w.caller(key(&second)).unwrap();
    assert_eq!(who.identity.principal.keys.get("aws:SourceIdentity"), Some(&["alice".to_owned()][..]));
    let guest = session(&w, key(&alice), "GetFederationToken", &[("Name", "guest"), ("Policy", &sts)]).await.unwrap();
    assert!(
        session(&w, key(&guest), "AssumeRole", &assume("one", "")[..2]).await.unwrap_err().contains("AccessDenied")
    );
}
