//! `access-analyzer:ValidatePolicy`: what is wrong with a policy, and what is unwise in it ("Access Analyzer policy check
//! reference", IAM User Guide).
//!
//! Errors are the policy parser's own, so that what passes here can be kept. Warnings and suggestions are those of AWS's
//! checks that need no catalogue of services, by AWS's names. One operation in REST and JSON, on the address of IAM.

use karri_base::aws::policy::document::{ActionPattern, ResourcePattern, Statement, These};
use karri_base::aws::policy::place::{Step, line_and_column, span};
use karri_base::aws::policy::{Effect, Fault, Policy, PolicyError, Use};
use serde::Deserialize;
use serde_json::{Value, json};

use super::authorize::Caller;
use crate::cloud::error::{ApiError, ApiResult, Code};

/// The service's name in a signature.
pub const SERVICE: &str = "access-analyzer";
/// The operation.
pub const ACTION: &str = "ValidatePolicy";
/// Where it is posted to.
pub const PATH: &str = "/policy/validation";
/// Findings of a page where the request does not say.
const PAGE: usize = 100;
/// Items of a list that are compared with each other; a bucket policy has room for thousands.
const COMPARED_MAX: usize = 300;
const REFERENCE: &str = "https://docs.aws.amazon.com/IAM/latest/UserGuide/access-analyzer-reference-policy-checks.html";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    policy_document: String,
    policy_type: String,
    #[serde(default)]
    validate_policy_resource_type: Option<String>,
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::ValidationError, message)
}

/// Answers the operation; `query` has the page that is asked for.
///
/// # Errors
/// `AccessDenied`, `ValidationError`, `UnsupportedOperation`.
pub fn answer(caller: &Caller, query: &[(String, String)], body: &[u8]) -> ApiResult<String> {
    caller.may("access-analyzer:ValidatePolicy", &["*".into()], &caller.context())?;
    let asked: Asked = serde_json::from_slice(body).map_err(|e| invalid(format!("The body cannot be read: {e}")))?;
    let purpose = match (asked.policy_type.as_str(), asked.validate_policy_resource_type.as_deref()) {
        ("IDENTITY_POLICY", _) => Use::Managed,
        ("RESOURCE_POLICY", Some("AWS::IAM::AssumeRolePolicyDocument")) => Use::Trust,
        ("RESOURCE_POLICY", None | Some("AWS::S3::Bucket")) => Use::Bucket,
        ("RESOURCE_POLICY", Some(_)) => return Err(ApiError::unsupported("That validatePolicyResourceType")),
        ("SERVICE_CONTROL_POLICY" | "RESOURCE_CONTROL_POLICY", _) => {
            return Err(ApiError::unsupported("A policy of organisations"));
        }
        _ => return Err(invalid("policyType is IDENTITY_POLICY or RESOURCE_POLICY")),
    };
    let named = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let max = match named("maxResults").map(str::parse) {
        None => PAGE,
        Some(Ok(max @ 1..=1000)) => max,
        Some(_) => return Err(invalid("maxResults is a number from 1 to 1000")),
    };
    let from: usize = match named("nextToken").map(str::parse) {
        None => 0,
        Some(from) => from.map_err(|_| invalid("Invalid nextToken."))?,
    };
    let text = asked.policy_document.as_str();
    let all = findings(text, purpose);
    let end = from.saturating_add(max).min(all.len());
    let page: Vec<Value> = all.get(from..end).unwrap_or_default().iter().map(|f| f.json(text)).collect();
    let mut answer = json!({ "findings": page });
    if end < all.len() {
        answer["nextToken"] = end.to_string().into();
    }
    Ok(answer.to_string())
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Security,
    Warning,
    Suggestion,
}

/// One finding, with the places that it is about.
#[derive(Debug, PartialEq)]
struct Finding {
    kind: Kind,
    code: &'static str,
    details: String,
    places: Vec<Vec<Step<'static>>>,
}

impl Finding {
    fn json(&self, text: &str) -> Value {
        let (kind, anchor) = match self.kind {
            Kind::Error => ("ERROR", "error"),
            Kind::Security => ("SECURITY_WARNING", "security-warning"),
            Kind::Warning => ("WARNING", "general-warning"),
            Kind::Suggestion => ("SUGGESTION", "suggestion"),
        };
        let step = |step: &Step<'_>| match step {
            Step::Key(key) => json!({ "value": key }),
            Step::Index(index) => json!({ "index": index }),
        };
        let place = |path: &Vec<Step<'static>>| {
            let found = span(text, path).unwrap_or(0..text.len());
            let at = |offset: usize| {
                let (line, column) = line_and_column(text, offset);
                json!({ "line": line, "column": column, "offset": text[..offset].chars().count() })
            };
            json!({
                "path": path.iter().map(step).collect::<Vec<_>>(),
                "span": { "start": at(found.start), "end": at(found.end) },
            })
        };
        json!({
            "findingDetails": self.details,
            "findingType": kind,
            "issueCode": self.code,
            "learnMoreLink": format!(
                "{REFERENCE}#access-analyzer-reference-policy-checks-{anchor}-{}",
                self.code.to_ascii_lowercase().replace('_', "-")
            ),
            "locations": self.places.iter().map(place).collect::<Vec<_>>(),
        })
    }
}

/// AWS's code for what the parser says, by its words.
fn code_of(error: &PolicyError, purpose: Use) -> &'static str {
    let PolicyError::Malformed(why) = error else {
        return match purpose {
            Use::Bucket | Use::Trust => "POLICY_SIZE_EXCEEDS_RESOURCE_POLICY_QUOTA",
            _ => "POLICY_SIZE_EXCEEDS_IDENTITY_POLICY_QUOTA",
        };
    };
    const CODES: [(&str, &str); 20] = [
        ("is given twice", "JSON_SYNTAX_ERROR"),
        ("must not be", "DATA_TYPE_MISMATCH"),
        ("first byte", "JSON_SYNTAX_ERROR"),
        ("Syntax errors", "JSON_SYNTAX_ERROR"),
        ("valid version string", "INVALID_VERSION"),
        ("Unknown field", "UNKNOWN_FIELD"),
        ("Statement is empty", "MISSING_STATEMENT"),
        ("required field Statement", "MISSING_STATEMENT"),
        ("required field Effect", "MISSING_EFFECT"),
        ("required field Action", "MISSING_ACTION"),
        ("required field Resource", "MISSING_RESOURCE"),
        ("required field Principal", "MISSING_PRINCIPAL"),
        ("must be unique", "UNIQUE_SIDS_REQUIRED"),
        ("must be alpha-numeric", "INVALID_SID"),
        ("Invalid effect", "INVALID_EFFECT"),
        ("should not specify a principal", "UNSUPPORTED_ELEMENT_COMBINATION"),
        ("prohibited field", "UNSUPPORTED_ELEMENT_COMBINATION"),
        ("Invalid principal", "INVALID_PRINCIPAL_KEY"),
        ("invalid action", "INVALID_ACTION"),
        ("is no condition operator", "INVALID_OPERATOR"),
    ];
    let known = CODES.iter().find(|(words, _)| why.contains(words)).map(|(_, code)| *code);
    known.unwrap_or(match () {
        () if why.contains("invalid condition") => "INVALID_CONDITION",
        () if why.contains("ARN") => "INVALID_ARN",
        () => "POLICY_SYNTAX_ERROR",
    })
}

fn findings(text: &str, purpose: Use) -> Vec<Finding> {
    let policy = match Policy::check(text, purpose) {
        Ok(policy) => policy,
        Err(faults) => {
            let finding = |fault: Fault| Finding {
                kind: Kind::Error,
                code: code_of(&fault.error, purpose),
                details: fault.error.to_string(),
                places: vec![fault.statement.map_or_else(Vec::new, statement)],
            };
            return faults.into_iter().map(finding).collect();
        }
    };
    let mut out = Vec::new();
    if span(text, &[Step::Key("Version")]).is_none() {
        out.push(Finding {
            kind: Kind::Warning,
            code: "MISSING_VERSION",
            details: "Without a Version the policy is read as one of 2008-10-17, which has no policy variables.".into(),
            places: vec![Vec::new()],
        });
    }
    for (at, read) in policy.statements.iter().enumerate() {
        judge(&mut out, at, read);
    }
    out
}

fn statement(at: usize) -> Vec<Step<'static>> {
    vec![Step::Key("Statement"), Step::Index(at)]
}

fn element(at: usize, name: &'static str, item: usize) -> Vec<Step<'static>> {
    [statement(at), vec![Step::Key(name), Step::Index(item)]].concat()
}

/// What is unwise in a statement.
fn judge(out: &mut Vec<Finding>, at: usize, read: &Statement) {
    let mut find =
        |kind, code, details: &str, places| out.push(Finding { kind, code, details: details.into(), places });
    if read.effect == Effect::Allow && matches!(read.principals, Some(These::AllBut(_))) {
        let details = "Allow with NotPrincipal lets in everybody who is not named, anonymous callers too.";
        find(Kind::Security, "ALLOW_WITH_NOT_PRINCIPAL", details, vec![statement(at)]);
    }
    if let Some((code, details)) = passes_roles(read) {
        find(Kind::Security, code, details, vec![statement(at)]);
    }
    if read.conditions.iter().any(|condition| condition.names_no_value()) {
        let details = "A condition without a value holds for no value.";
        let place = [statement(at), vec![Step::Key("Condition")]].concat();
        find(Kind::Suggestion, "EMPTY_ARRAY_CONDITION", details, vec![place]);
    }
    let (name, list) = match &read.actions {
        These::Only(list) => ("Action", list),
        These::AllBut(list) => ("NotAction", list),
    };
    for (n, by) in redundant(list, ActionPattern::covers) {
        let details = format!("The action {} is among those of {}.", list[n].text, list[by].text);
        find(Kind::Suggestion, "REDUNDANT_ACTION", &details, vec![element(at, name, n)]);
    }
    let (name, list) = match &read.resources {
        Some(These::Only(list)) => ("Resource", list.as_slice()),
        Some(These::AllBut(list)) => ("NotResource", list.as_slice()),
        None => return,
    };
    let covers = |a: &ResourcePattern, b: &ResourcePattern| a.text == "*" || a.text == b.text;
    for (n, by) in redundant(list, covers) {
        let details = format!("The resource {} is among those of {}.", list[n].text, list[by].text);
        find(Kind::Suggestion, "REDUNDANT_RESOURCE", &details, vec![element(at, name, n)]);
    }
}

/// The items that another one covers, with that one; of two that cover each other the later.
fn redundant<T>(list: &[T], covers: impl Fn(&T, &T) -> bool) -> Vec<(usize, usize)> {
    let list = &list[..list.len().min(COMPARED_MAX)];
    let by = |n: usize| {
        let other = |m: &usize| *m != n && covers(&list[*m], &list[n]) && (*m < n || !covers(&list[n], &list[*m]));
        (0..list.len()).find(other)
    };
    (0..list.len()).filter_map(|n| Some((n, by(n)?))).collect()
}

/// Whether it lets any role be passed, to any service.
fn passes_roles(read: &Statement) -> Option<(&'static str, &'static str)> {
    let limited = read.conditions.iter().any(|c| c.keys().any(|key| key.eq_ignore_ascii_case("iam:PassedToService")));
    if read.effect == Effect::Deny || limited {
        return None;
    }
    let wide = match &read.actions {
        These::AllBut(list) if list.iter().any(|a| a.matches("iam:PassRole")) => return None,
        These::AllBut(_) => true,
        These::Only(list) => {
            !list.iter().find(|a| a.matches("iam:PassRole"))?.text.eq_ignore_ascii_case("iam:PassRole")
        }
    };
    match read.resources.as_ref()? {
        These::AllBut(_) => Some((
            "PASS_ROLE_WITH_NOT_RESOURCE",
            "iam:PassRole with NotResource lets roles be passed that nobody named.",
        )),
        These::Only(list) if !list.iter().any(|r| r.text == "*") => None,
        These::Only(_) if wide => Some((
            "PASS_ROLE_WITH_STAR_IN_ACTION_AND_RESOURCE",
            "Wildcards in the action and in the resource let every role be passed to every service.",
        )),
        These::Only(_) => Some((
            "PASS_ROLE_WITH_STAR_IN_RESOURCE",
            "iam:PassRole on * lets every role be passed. Name the roles, or add the condition key iam:PassedToService.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str, purpose: Use) -> Vec<(Kind, &'static str)> {
        findings(text, purpose).into_iter().map(|f| (f.kind, f.code)).collect()
    }

    fn of(statement: &str) -> String {
        format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#)
    }

    #[test]
    fn what_the_parser_refuses_has_a_code() {
        let allow = |rest: &str| of(&format!(r#"{{"Effect":"Allow",{rest}}}"#));
        for (text, code) in [
            ("{", "JSON_SYNTAX_ERROR"),
            ("[]", "JSON_SYNTAX_ERROR"),
            (r#"{"Id":"a","Id":"b"}"#, "JSON_SYNTAX_ERROR"),
            (r#"{"Version":"2013-10-17","Statement":[]}"#, "INVALID_VERSION"),
            (r#"{"Version":"2012-10-17"}"#, "MISSING_STATEMENT"),
            (&of(""), "MISSING_STATEMENT"),
            (&of(r#"{"Effect":"Maybe","Action":"*","Resource":"*"}"#), "INVALID_EFFECT"),
            (&of(r#"{"Action":"*","Resource":"*"}"#), "MISSING_EFFECT"),
            (&allow(r#""Resource":"*""#), "MISSING_ACTION"),
            (&allow(r#""Action":"*""#), "MISSING_RESOURCE"),
            (&allow(r#""Action":"*","Resource":"*","Colour":1"#), "UNKNOWN_FIELD"),
            (&allow(r#""Action":"s3","Resource":"*""#), "INVALID_ACTION"),
            (&allow(r#""Action":"*","Resource":"bucket""#), "INVALID_ARN"),
            (&allow(r#""Action":1,"Resource":"*""#), "DATA_TYPE_MISMATCH"),
            (&allow(r#""Action":"*","Resource":"*","Principal":"*""#), "UNSUPPORTED_ELEMENT_COMBINATION"),
            (&allow(r#""Action":"*","Resource":"*","Condition":{"Like":{"a:b":"c"}}"#), "INVALID_OPERATOR"),
            (&allow(r#""Action":"*","Resource":"*","Condition":{"Bool":{"a:b":"c"}}"#), "INVALID_CONDITION"),
            (&allow(r#""Action":"*","Resource":"*","Sid":"a b""#), "INVALID_SID"),
            (
                &allow(&format!(r#""Action":"*","Resource":"arn:aws:s3:::{}""#, "x".repeat(7000))),
                "POLICY_SIZE_EXCEEDS_IDENTITY_POLICY_QUOTA",
            ),
        ] {
            assert_eq!(codes(text, Use::Managed), [(Kind::Error, code)], "{text}");
        }
        let nobody = allow(r#""Action":"s3:*","Resource":"*""#);
        assert_eq!(codes(&nobody, Use::Bucket), [(Kind::Error, "MISSING_PRINCIPAL")]);
        let strange = allow(r#""Action":"s3:*","Resource":"*","Principal":{"Cat":"x"}"#);
        assert_eq!(codes(&strange, Use::Bucket), [(Kind::Error, "INVALID_PRINCIPAL_KEY")]);
        // Each statement is looked at.
        let two = of(
            r#"{"Effect":"Allow","Action":"s3","Resource":"*"},{"Effect":"No"},{"Effect":"Deny","Action":"*","Resource":"*"}"#,
        );
        let found = findings(&two, Use::Managed);
        assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), ["INVALID_ACTION", "INVALID_EFFECT"]);
        assert_eq!(found[1].places, [statement(1)]);
    }

    #[test]
    fn what_is_unwise_is_found() {
        use Kind::{Security, Suggestion, Warning};
        let good = of(
            r#"{"Effect":"Allow","Action":["s3:Get*","s3:List*"],"Resource":["arn:aws:s3:::b","arn:aws:s3:::b/*"]}"#,
        );
        assert_eq!(codes(&good, Use::Managed), []);
        let text =
            of(r#"{"Effect":"Allow","Action":["s3:GetObject","s3:Get*","S3:get*"],"Resource":["arn:aws:s3:::b/*","*"],
            "Condition":{"StringEquals":{"a:b":[]}}}"#);
        let found = codes(&text, Use::Managed);
        assert_eq!(
            found,
            [
                (Suggestion, "EMPTY_ARRAY_CONDITION"),
                (Suggestion, "REDUNDANT_ACTION"),
                (Suggestion, "REDUNDANT_ACTION"),
                (Suggestion, "REDUNDANT_RESOURCE")
            ]
        );
        let second = &findings(&text, Use::Managed)[2];
        let json = second.json(&text);
        assert_eq!(
            json["locations"][0]["path"],
            json!([{"value":"Statement"},{"index":0},{"value":"Action"},{"index":2}])
        );
        let span = &json["locations"][0]["span"];
        let (start, end) = (span["start"]["offset"].as_u64().unwrap(), span["end"]["offset"].as_u64().unwrap());
        assert_eq!(&text[start as usize..end as usize], "\"S3:get*\"");
        assert!(
            json["learnMoreLink"]
                .as_str()
                .unwrap()
                .ends_with("#access-analyzer-reference-policy-checks-suggestion-redundant-action")
        );
        for (rest, expected) in [
            (r#""Action":"iam:PassRole","Resource":"*""#, Some("PASS_ROLE_WITH_STAR_IN_RESOURCE")),
            (r#""Action":"*","Resource":"*""#, Some("PASS_ROLE_WITH_STAR_IN_ACTION_AND_RESOURCE")),
            (r#""NotAction":"s3:*","Resource":"*""#, Some("PASS_ROLE_WITH_STAR_IN_ACTION_AND_RESOURCE")),
            (r#""NotAction":"iam:*","Resource":"*""#, None),
            (r#""Action":"iam:PassRole","NotResource":"arn:aws:iam::1:role/x""#, Some("PASS_ROLE_WITH_NOT_RESOURCE")),
            (r#""Action":"iam:PassRole","Resource":"arn:aws:iam::1:role/*""#, None),
            (
                r#""Action":"iam:*","Resource":"*","Condition":{"StringEquals":{"iam:PassedToService":"ec2.amazonaws.com"}}"#,
                None,
            ),
        ] {
            let found = codes(&of(&format!(r#"{{"Effect":"Allow",{rest}}}"#)), Use::Managed);
            assert_eq!(found, expected.map(|code| (Security, code)).into_iter().collect::<Vec<_>>(), "{rest}");
            assert_eq!(codes(&of(&format!(r#"{{"Effect":"Deny",{rest}}}"#)), Use::Managed), [], "{rest}");
        }
        let open =
            r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","NotPrincipal":{"AWS":"111122223333"}}}"#;
        assert_eq!(codes(open, Use::Bucket), [(Warning, "MISSING_VERSION"), (Security, "ALLOW_WITH_NOT_PRINCIPAL")]);
    }
}
