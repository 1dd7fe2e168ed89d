//! What is told and asked of a whole account: password rules, last uses, reports, and the lists of what karri has none of.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tests::{ACCOUNT, OTHER_ROOT, ROOT, World, allow, key, world};
use super::*;
use crate::cloud::tests::{text, texts};
use karri_base::clock::UnixMicros;

async fn policy(w: &World, user: &str, document: &str) {
    w.fine("PutUserPolicy", &[("UserName", user), ("PolicyName", "p"), ("PolicyDocument", document)]).await;
}

#[tokio::test]
async fn what_karri_has_none_of_is_listed_as_none() {
    let w = world().await;
    let bob = w.user("bob").await;
    for (action, list) in [
        ("ListMFADevices", "MFADevices"),
        ("ListSSHPublicKeys", "SSHPublicKeys"),
        ("ListSigningCertificates", "Certificates"),
        ("ListServiceSpecificCredentials", "ServiceSpecificCredentials"),
    ] {
        let answer = w.fine(action, &[("UserName", "bob"), ("MaxItems", "5")]).await;
        assert!(answer.contains(&format!("<{list}></{list}>")), "{answer}");
        assert_eq!(text(&answer, "IsTruncated"), "false");
        w.refused(ROOT, action, &[("UserName", "eve")], "NoSuchEntity").await;
        w.refused(ROOT, action, &[("MaxItems", "0")], "ValidationError").await;
        w.refused(key(&bob), action, &[("UserName", "bob")], "AccessDenied").await;
    }
    for action in ["ListVirtualMFADevices", "ListServerCertificates", "ListSAMLProviders"] {
        w.fine(action, &[]).await;
        w.refused(key(&bob), action, &[], "AccessDenied").await;
    }
    policy(&w, "bob", &allow("iam:List*", &format!("arn:aws:iam::{ACCOUNT}:user/bob"))).await;
    w.iam(key(&bob), "ListMFADevices", &[]).await.unwrap();
    w.refused(key(&bob), "ListVirtualMFADevices", &[], "AccessDenied").await;
    w.refused(ROOT, "CreateVirtualMFADevice", &[], "UnsupportedOperation").await;
}

#[tokio::test]
async fn passwords_are_what_the_account_asks() {
    let w = world().await;
    let bob = w.user("bob").await;
    let login = |password: &'static str| [("UserName", "bob"), ("Password", password)];
    w.refused(ROOT, "GetAccountPasswordPolicy", &[], "NoSuchEntity").await;
    w.refused(ROOT, "DeleteAccountPasswordPolicy", &[], "NoSuchEntity").await;
    for poor in ["Short1!", "nothing but letters", "UPPER and lower"] {
        w.refused(ROOT, "CreateLoginProfile", &login(poor), "PasswordPolicyViolation").await;
    }
    w.fine("CreateLoginProfile", &login("First password 1")).await;
    let own = [("OldPassword", "First password 1"), ("NewPassword", "Second-password")];
    w.refused(key(&bob), "ChangePassword", &own, "AccessDenied").await;
    w.refused(key(&bob), "GetAccountPasswordPolicy", &[], "AccessDenied").await;
    for wrong in [
        ("MinimumPasswordLength", "5"),
        ("MaxPasswordAge", "0"),
        ("PasswordReusePrevention", "25"),
        ("RequireSymbols", "perhaps"),
    ] {
        w.refused(ROOT, "UpdateAccountPasswordPolicy", &[wrong], "ValidationError").await;
    }
    let asks = [
        ("MinimumPasswordLength", "12"),
        ("RequireSymbols", "true"),
        ("RequireUppercaseCharacters", "true"),
        ("AllowUsersToChangePassword", "true"),
        ("PasswordReusePrevention", "2"),
        ("MaxPasswordAge", "90"),
    ];
    w.fine("UpdateAccountPasswordPolicy", &asks).await;
    let got = w.iam(key(&bob), "GetAccountPasswordPolicy", &[]).await.expect("every user may");
    assert_eq!((text(&got, "MinimumPasswordLength"), text(&got, "ExpirePasswords")), ("12".into(), "true".into()));
    w.refused(OTHER_ROOT, "GetAccountPasswordPolicy", &[], "NoSuchEntity").await;
    for poor in ["Short-one", "no-uppercase-here", "NoSymbolButLong1"] {
        w.refused(ROOT, "UpdateLoginProfile", &login(poor), "PasswordPolicyViolation").await;
    }
    // A user's own: with the old one, none of the last two, whoever else's nobody's.
    w.refused(key(&bob), "ChangePassword", &[("OldPassword", "wrong"), own[1]], "AccessDenied").await;
    w.iam(key(&bob), "ChangePassword", &own).await.unwrap();
    let change = |old: &'static str, new: &'static str| [("OldPassword", old), ("NewPassword", new)];
    for again in [change("Second-password", "Second-password")] {
        w.refused(key(&bob), "ChangePassword", &again, "PasswordPolicyViolation").await;
    }
    w.iam(key(&bob), "ChangePassword", &change("Second-password", "Third-password")).await.unwrap();
    w.refused(key(&bob), "ChangePassword", &change("Third-password", "Second-password"), "PasswordPolicy").await;
    w.refused(ROOT, "UpdateLoginProfile", &login("Second-password"), "PasswordPolicyViolation").await;
    w.fine("UpdateLoginProfile", &login("Fourth-password")).await;
    w.fine("UpdateLoginProfile", &login("Second-password")).await;
    w.refused(ROOT, "ChangePassword", &own, "InvalidUserType").await;
    // What a policy denies stays denied, and nobody may read another thing by this.
    policy(&w, "bob", &allow("iam:ChangePassword", "*").replace("Allow", "Deny")).await;
    w.refused(key(&bob), "ChangePassword", &change("Second-password", "Fifth-password"), "AccessDenied").await;
    w.refused(key(&bob), "GetAccountSummary", &[], "AccessDenied").await;
    // It survives a restart, and deleting it brings the default back.
    let again = Directory::open(w.meta.clone(), [5; 32], w.clock.clone()).await.unwrap();
    assert_eq!(again.state().accounts[ACCOUNT].passwords, w.directory.state().accounts[ACCOUNT].passwords);
    w.fine("DeleteAccountPasswordPolicy", &[]).await;
    w.refused(key(&bob), "GetAccountPasswordPolicy", &[], "AccessDenied").await;
    w.fine("UpdateLoginProfile", &login("Shorter1")).await;
}

#[tokio::test]
async fn last_uses_are_told_and_kept() {
    let w = world().await;
    let bob = w.user("bob").await;
    let asked = [("AccessKeyId", bob.0.as_str())];
    let never = w.fine("GetAccessKeyLastUsed", &asked).await;
    assert_eq!((text(&never, "UserName"), text(&never, "ServiceName")), ("bob".into(), "N/A".into()));
    assert!(!never.contains("LastUsedDate"));
    w.refused(OTHER_ROOT, "GetAccessKeyLastUsed", &asked, "NoSuchEntity").await;
    w.refused(key(&bob), "GetAccessKeyLastUsed", &asked, "AccessDenied").await;
    let trust = r#"{"Statement":{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"sts:AssumeRole"}}"#;
    let made = w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", trust)]).await;
    let uses = w.directory.uses();
    let now = UnixMicros(1_700_000_000_000_000);
    let caller = w.caller(key(&bob)).unwrap();
    uses.note(&bob.0, &caller.identity.principal, "ec2", "us-east-1", now);
    let role = karri_base::aws::policy::Principal::role_session(
        &ACCOUNT.parse().unwrap(),
        &text(&made, "Arn"),
        &text(&made, "RoleId"),
        "s",
    );
    uses.note("ASIATEMPORARY", &role, "sts", "us-east-1", now);
    uses.note("ASIAOFBOB", &caller.identity.principal, "sts", "us-east-1", now);
    uses.note("AKIAGONE", &caller.identity.principal, "iam", "us-east-1", now);
    let shown = w.fine("GetAccessKeyLastUsed", &asked).await;
    assert_eq!((text(&shown, "ServiceName"), text(&shown, "Region")), ("ec2".into(), "us-east-1".into()));
    assert_eq!(text(&shown, "LastUsedDate"), "2023-11-14T22:13:20.000Z");
    assert!(w.fine("GetRole", &[("RoleName", "r")]).await.contains("<RoleLastUsed><LastUsedDate>2023-11-14"));
    // What Walrus tells: of what is here, where it is later, and nothing of the future.
    let use_of = |id: &str, at_us| karri_base::proto::Use { id: id.into(), at_us };
    let told = |uses| karri_base::proto::ReportUsesRequest { service: "s3".into(), region: "r".into(), uses };
    w.directory.heard_of_uses(&told(vec![use_of(&bob.0, now.0 - 1), use_of("AKIANOBODY", now.0)]));
    assert_eq!(text(&w.fine("GetAccessKeyLastUsed", &asked).await, "ServiceName"), "ec2");
    assert!(uses.last("AKIANOBODY").is_none());
    w.directory.heard_of_uses(&told(vec![use_of(&bob.0, u64::MAX)]));
    let last = uses.last(&bob.0).unwrap();
    assert_eq!((last.service.as_str(), last.region.as_str(), last.at_us), ("s3", "r", w.directory.now_us()));
    w.directory.keep_uses().await.unwrap();
    assert!(uses.last("AKIAGONE").is_none() && uses.last("ASIAOFBOB").is_none());
    let again = Directory::open(w.meta.clone(), [5; 32], w.clock.clone()).await.unwrap();
    assert_eq!(again.uses().last(&bob.0), uses.last(&bob.0));
    assert_eq!(again.uses().last(&text(&made, "RoleId")).unwrap().service, "sts");
    // What is gone is forgotten on disk, too.
    w.fine("DeleteAccessKey", &[("UserName", "bob"), asked[0]]).await;
    w.directory.keep_uses().await.unwrap();
    let again = Directory::open(w.meta.clone(), [5; 32], w.clock.clone()).await.unwrap();
    assert!(again.uses().last(&bob.0).is_none());
}

#[tokio::test]
async fn the_credential_report_has_a_line_for_everyone() {
    let w = world().await;
    w.refused(ROOT, "GetCredentialReport", &[], "ReportNotPresent").await;
    let bob = w.user("bob").await;
    w.fine("CreateUser", &[("UserName", "a,b"), ("Path", "/\"x\"/")]).await;
    w.fine("CreateLoginProfile", &[("UserName", "bob"), ("Password", "Long enough 1")]).await;
    w.fine("UpdateAccountPasswordPolicy", &[("MaxPasswordAge", "1")]).await;
    let caller = w.caller(key(&bob)).unwrap();
    w.directory.uses().note(&bob.0, &caller.identity.principal, "iam", "us-east-1", w.clock.now());
    assert_eq!(text(&w.fine("GenerateCredentialReport", &[]).await, "State"), "COMPLETE");
    let got = w.fine("GetCredentialReport", &[]).await;
    assert_eq!(text(&got, "ReportFormat"), "text/csv");
    let csv = String::from_utf8(STANDARD.decode(text(&got, "Content")).unwrap()).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 4, "{csv}");
    assert_eq!(lines[0].split(',').count(), 22);
    assert!(lines[1].starts_with("<root_account>,arn:aws:iam::111122223333:root,"), "{csv}");
    assert!(lines[1].contains(",false,true,2023-11-14T22:13:20+00:00,N/A,"), "root has a key: {csv}");
    let quoted =
        r#""a,b","arn:aws:iam::111122223333:user/""x""/a,b",2023-11-14T22:13:20+00:00,false,N/A,N/A,N/A,false,false,"#;
    assert!(lines[2].starts_with(quoted), "{csv}");
    let expected = "bob,arn:aws:iam::111122223333:user/bob,2023-11-14T22:13:20+00:00,true,no_information,\
                    2023-11-14T22:13:20+00:00,2023-11-15T22:13:20+00:00,false,true,2023-11-14T22:13:20+00:00,\
                    2023-11-14T22:13:20+00:00,us-east-1,iam,false,N/A,N/A,N/A,N/A,false,N/A,false,N/A";
    assert_eq!(lines[3], expected);
    w.refused(OTHER_ROOT, "GetCredentialReport", &[], "ReportNotPresent").await;
    w.clock.advance(std::time::Duration::from_secs(4 * 3600));
    w.refused(ROOT, "GetCredentialReport", &[], "ReportExpired").await;
}

#[tokio::test]
async fn the_whole_account_is_shown_in_pages() {
    let w = world().await;
    w.user("ann").await;
    w.user("bob").await;
    w.fine("CreateGroup", &[("GroupName", "g")]).await;
    w.fine("AddUserToGroup", &[("GroupName", "g"), ("UserName", "bob")]).await;
    let trust = r#"{"Statement":{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"sts:AssumeRole"}}"#;
    w.fine("CreateRole", &[("RoleName", "r"), ("AssumeRolePolicyDocument", trust)]).await;
    w.fine("CreateInstanceProfile", &[("InstanceProfileName", "i")]).await;
    w.fine("AddRoleToInstanceProfile", &[("InstanceProfileName", "i"), ("RoleName", "r")]).await;
    w.fine("CreatePolicy", &[("PolicyName", "own"), ("PolicyDocument", &allow("s3:*", "*"))]).await;
    let aws = "arn:aws:iam::aws:policy/ReadOnlyAccess";
    w.fine("AttachGroupPolicy", &[("GroupName", "g"), ("PolicyArn", aws)]).await;
    policy(&w, "bob", &allow("ec2:*", "*")).await;
    let whole = w.fine("GetAccountAuthorizationDetails", &[]).await;
    for has in ["<UserName>ann<", "<GroupName>g<", "<member>g</member>", "<InstanceProfileName>i<", "<PolicyName>own<"]
    {
        assert!(whole.contains(has), "{has}: {whole}");
    }
    assert!(whole.contains(aws) && !whole.contains("AdministratorAccess"), "AWS's that are in use");
    assert!(whole.contains("ec2%3A%2A") && whole.contains("<IsTruncated>false"), "{whole}");
    let (mut marker, mut seen, mut pages) = (String::new(), 0, 0);
    loop {
        let mut params = vec![("MaxItems", "1")];
        params.extend((!marker.is_empty()).then_some(("Marker", marker.as_str())));
        let page = w.fine("GetAccountAuthorizationDetails", &params).await;
        let kinds = ["UserId", "GroupId", "RoleId", "PolicyVersionList"];
        seen += usize::from(kinds.iter().any(|kind| page.contains(&format!("<{kind}>"))));
        pages += 1;
        if text(&page, "IsTruncated") == "false" {
            break;
        }
        marker = text(&page, "Marker");
    }
    assert_eq!((pages, seen), (6, 6));
    let groups = w.fine("GetAccountAuthorizationDetails", &[("Filter.member.1", "Group")]).await;
    assert!(groups.contains("<GroupId>") && !groups.contains("<UserId>"));
    w.refused(ROOT, "GetAccountAuthorizationDetails", &[("Filter.member.1", "Cat")], "ValidationError").await;

    let arn = format!("arn:aws:iam::{ACCOUNT}:user/bob");
    let asked = [("Arn", arn.as_str()), ("ServiceNamespaces.member.1", "ec2"), ("ServiceNamespaces.member.2", "rds")];
    let granting = w.fine("ListPoliciesGrantingServiceAccess", &asked).await;
    assert_eq!(texts(&granting, "ServiceNamespace"), ["ec2", "rds"]);
    assert_eq!(texts(&granting, "PolicyName"), ["p", "ReadOnlyAccess"], "its own and its group's");
    assert_eq!(texts(&granting, "EntityType"), ["USER"]);
    w.refused(ROOT, "ListPoliciesGrantingServiceAccess", &[("Arn", "x"), asked[1]], "NoSuchEntity").await;
}

#[tokio::test]
async fn instance_profiles_have_tags() {
    let w = world().await;
    w.fine("CreateInstanceProfile", &[("InstanceProfileName", "i")]).await;
    let tag = |key: &'static str, value: &'static str| {
        [("InstanceProfileName", "i"), ("Tags.member.1.Key", key), ("Tags.member.1.Value", value)]
    };
    w.fine("TagInstanceProfile", &tag("team", "blue")).await;
    w.fine("TagInstanceProfile", &tag("cost", "7")).await;
    w.refused(ROOT, "TagInstanceProfile", &tag("aws:x", ""), "InvalidInput").await;
    let listed = w.fine("ListInstanceProfileTags", &[("InstanceProfileName", "i")]).await;
    assert_eq!(texts(&listed, "Key"), ["cost", "team"]);
    // Policies may ask for them.
    let bob = w.user("bob").await;
    let condition = r#","Condition":{"StringEquals":{"aws:ResourceTag/team":"blue"}}}]}"#;
    policy(&w, "bob", &allow("iam:*", "*").replace("}]}", condition)).await;
    w.iam(key(&bob), "GetInstanceProfile", &[("InstanceProfileName", "i")]).await.unwrap();
    w.fine("UntagInstanceProfile", &[("InstanceProfileName", "i"), ("TagKeys.member.1", "team")]).await;
    w.refused(key(&bob), "GetInstanceProfile", &[("InstanceProfileName", "i")], "AccessDenied").await;
    w.refused(
        ROOT,
        "TagInstanceProfile",
        &[("InstanceProfileName", "j"), tag("a", "b")[1], tag("a", "b")[2]],
        "NoSuch",
    )
    .await;
}

#[tokio::test]
async fn a_request_with_thousands_of_tags_is_not_judged() {
    let w = world().await;
    let many: Vec<(String, String)> = (0..1001).map(|n| (format!("Tags.member.{n}.Key"), format!("k{n}"))).collect();
    let mut params: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    params.push(("UserName", "bob"));
    w.refused(ROOT, "CreateUser", &params, "InvalidParameterValue: A request gives").await;
    params.truncate(100);
    params.push(("UserName", "bob"));
    w.refused(ROOT, "CreateUser", &params, "LimitExceeded").await;
}
