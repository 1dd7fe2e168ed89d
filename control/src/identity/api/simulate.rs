//! The policy simulator: the evaluator asked with policies and condition keys that the caller supplies.

use std::sync::Arc;

use karri_base::aws::policy::place::{Step, line_and_column, span};
use karri_base::aws::policy::{Context, Decision, Identity, Layer, Principal, Request, Target, decide, deciding};

use super::*;

/// The most questions of one request, over all its pages.
const QUESTIONS_MAX: usize = 100_000;
/// Bytes of policy that one page of answers may have looked at.
const LOOKED_AT_MAX: usize = 4 << 20;

/// Whose keys follow from who asks.
const OF_PRINCIPAL: &[&str] = &[
    "aws:principalarn",
    "aws:principalaccount",
    "aws:principaltype",
    "aws:userid",
    "aws:username",
    "aws:resourceaccount",
    "aws:principalisawsservice",
    "aws:principalservicename",
];

fn parse_all(texts: &[String]) -> ApiResult<Vec<Arc<Policy>>> {
    let parse = |text: &String| checked_document(text, Use::Simulated).map(Arc::new);
    texts.iter().map(parse).collect::<ApiResult<_>>().map_err(|e| ApiError { code: Code::InvalidInput, ..e })
}

/// A policy that is asked, as answers name it.
struct Source {
    name: String,
    kind: iam::PolicySourceType,
    text: String,
}

impl Source {
    /// Those that a request brings.
    fn given(parameter: &str, texts: &[String]) -> Vec<Self> {
        let source = |(at, text): (usize, &String)| Self {
            name: format!("{parameter}.{}", at + 1),
            kind: iam::PolicySourceType::None,
            text: text.clone(),
        };
        texts.iter().enumerate().map(source).collect()
    }

    /// Those of a user, group or role.
    fn held(state: &State, policies: &Policies, kind: iam::PolicySourceType) -> Vec<Self> {
        let inline = policies.inline.iter().map(|(name, text)| (name.clone(), kind, text.clone()));
        let attached = policies.attached.iter().filter_map(|arn| {
            let kind = match crate::identity::aws_managed::find(arn) {
                Some(_) => iam::PolicySourceType::AwsManaged,
                None => iam::PolicySourceType::UserManaged,
            };
            Some((arn.rsplit('/').next()?.to_owned(), kind, state.document(arn)?.to_owned()))
        });
        inline.chain(attached).map(|(name, kind, text)| Self { name, kind, text }).collect()
    }

    /// One of its statements.
    fn statement(&self, at: usize) -> iam::Statement {
        let place = |offset: usize| {
            let (line, column) = line_and_column(&self.text, offset);
            iam::Position { column: i32::try_from(column + 1).ok(), line: i32::try_from(line).ok() }
        };
        let found = span(&self.text, &[Step::Key("Statement"), Step::Index(at)]);
        iam::Statement {
            start_position: found.as_ref().map(|found| place(found.start)),
            end_position: found.as_ref().map(|found| place(found.end)),
            source_policy_id: Some(self.name.clone()),
            source_policy_type: Some(self.kind),
        }
    }
}

fn texts_of(sources: &[Source]) -> Vec<String> {
    sources.iter().map(|source| source.text.clone()).collect()
}

/// What both forms ask.
struct Asked<'r> {
    identity: Identity,
    /// Of the identity's policies, in their order.
    sources: Vec<Source>,
    /// Of the boundary.
    boundary: Option<Source>,
    actions: &'r [String],
    resources: &'r [String],
    entries: &'r [iam::ContextEntry],
    resource_policy: Option<&'r String>,
    owner: Option<&'r String>,
    marker: Option<&'r String>,
    max: Option<i32>,
    /// Of all policies together.
    bytes: usize,
}

fn simulate(asked: &Asked<'_>) -> ApiResult<iam::SimulatePolicyResponse> {
    let mut context = Context::default();
    for entry in asked.entries {
        let key = entry.context_key_name.as_deref().ok_or_else(|| invalid("ContextKeyName is missing"))?;
        context.texts(key, entry.context_key_values.iter().cloned());
    }
    let parse = |text: &String| checked_document(text, Use::Bucket);
    let policy = asked.resource_policy.map(parse).transpose()?;
    let by_resource = asked.resource_policy.map(|text| Source {
        name: "ResourcePolicy".into(),
        kind: iam::PolicySourceType::Resource,
        text: text.clone(),
    });
    let owner = match asked.owner {
        None => None,
        Some(text) => {
            let number = text.parse::<Arn>().map_or_else(|_| text.clone(), |arn| arn.account);
            Some(number.parse::<AccountId>().map_err(|_| invalid("ResourceOwner is no account's ARN"))?)
        }
    };
    let Identity { policies, boundary, .. } = &asked.identity;
    let documents = policies.iter().chain(boundary).map(|p| &**p).chain(&policy);
    let mut missing: Vec<String> = documents.flat_map(Policy::keys).collect();
    missing.retain(|key| {
        !OF_PRINCIPAL.contains(&key.as_str()) && !key.starts_with("aws:principaltag/") && context.get(key).is_none()
    });
    missing.sort_unstable();
    missing.dedup();
    let everything = ["*".to_owned()];
    let resources = if asked.resources.is_empty() { &everything[..] } else { asked.resources };
    let target = Target { owner: owner.as_ref(), policy: policy.as_ref(), ..Target::default() };
    let input = |why: String| ApiError::new(Code::InvalidInput, why);
    if let Some(wrong) = asked.actions.iter().find(|a| !a.contains(':') || a.contains('*') || a.len() > 128) {
        return Err(input(format!("Invalid Action: {}", wrong.chars().take(128).collect::<String>())));
    }
    if resources.iter().any(|r| r.len() > 2048) {
        return Err(input("A resource has at most 2048 characters".into()));
    }
    if asked.actions.len().saturating_mul(resources.len()) > QUESTIONS_MAX {
        return Err(input(format!("Actions times resources are at most {QUESTIONS_MAX}: ask in several requests")));
    }
    // Only the page that is asked for is decided, and the longer the policies, the shorter it is.
    let max = asked.max.unwrap_or(100).min((LOOKED_AT_MAX / asked.bytes.max(1)).clamp(1, 1000) as i32);
    let questions = asked.actions.iter().flat_map(|action| resources.iter().map(move |resource| (action, resource)));
    let keyed = questions.enumerate().map(|(at, question)| (format!("{at:06}"), question));
    let page = page(keyed, asked.marker.map(String::as_str), Some(max))?;
    let mut results = Vec::with_capacity(page.items.len());
    for (action, resource) in page.items {
        let decision = decide(&asked.identity, &target, &Request { action, resource, context: &context });
        use iam::PolicyEvaluationDecisionType as Says;
        let says = match decision {
            Decision::Allowed => Says::Allowed,
            Decision::ExplicitDeny(_) => Says::ExplicitDeny,
            Decision::ImplicitDeny(_) => Says::ImplicitDeny,
        };
        let request = Request { action, resource, context: &context };
        let statement = |found: karri_base::aws::policy::Matched| {
            let source = match found.layer {
                Layer::Identity => asked.sources.get(found.policy),
                Layer::Boundary => asked.boundary.as_ref(),
                Layer::Resource => by_resource.as_ref(),
                Layer::Session => None,
            };
            source.map(|source| source.statement(found.statement))
        };
        let matched = deciding(&asked.identity, &target, &request, decision).into_iter().filter_map(statement);
        let by_boundary = boundary.as_ref().map(|boundary| {
            let alone = Identity::new(asked.identity.principal.clone(), vec![boundary.clone()]);
            let request = Request { action, resource, context: &context };
            iam::PermissionsBoundaryDecisionDetail {
                allowed_by_permissions_boundary: Some(decide(&alone, &Target::default(), &request).is_allowed()),
            }
        });
        results.push(iam::EvaluationResult {
            eval_action_name: Some(action.clone()),
            eval_decision: Some(says),
            eval_resource_name: Some(resource.clone()),
            matched_statements: Some(matched.collect()),
            missing_context_values: Some(missing.clone()),
            permissions_boundary_decision_detail: by_boundary,
            ..Default::default()
        });
    }
    Ok(iam::SimulatePolicyResponse {
        evaluation_results: results,
        is_truncated: page.is_truncated,
        marker: page.marker,
    })
}

fn boundary(texts: &[String]) -> ApiResult<Option<Arc<Policy>>> {
    if texts.len() > 1 {
        return Err(invalid("PermissionsBoundaryPolicyInputList has at most one policy"));
    }
    Ok(parse_all(texts)?.pop())
}

pub(super) fn custom(
    _: &State,
    call: &Call<'_>,
    r: &iam::SimulateCustomPolicyRequest,
) -> ApiResult<iam::SimulatePolicyResponse> {
    if !r.ordered_organization_policy_input_list.is_empty() {
        return Err(ApiError::unsupported("OrderedOrganizationPolicyInputList"));
    }
    let who = match &r.caller_arn {
        None => call.caller.identity.principal.clone(),
        Some(arn) => {
            let account = arn.parse::<Arn>().ok().and_then(|arn| arn.account.parse().ok());
            Principal::user(&account.ok_or_else(|| invalid("CallerArn is no user's ARN"))?, arn, arn)
        }
    };
    // A root would be allowed everything.
    let who = match who.kind {
        karri_base::aws::policy::principal::Kind::Root => Principal::user(call.account(), &who.arn, &who.id),
        _ => who,
    };
    let mut identity = Identity::new(who, parse_all(&r.policy_input_list)?);
    identity.boundary = boundary(&r.permissions_boundary_policy_input_list)?;
    let bounds = Source::given("PermissionsBoundaryPolicyInputList", &r.permissions_boundary_policy_input_list);
    let texts = r.policy_input_list.iter().chain(&r.permissions_boundary_policy_input_list).chain(&r.resource_policy);
    simulate(&Asked {
        bytes: texts.map(String::len).sum(),
        identity,
        sources: Source::given("PolicyInputList", &r.policy_input_list),
        boundary: bounds.into_iter().next(),
        actions: &r.action_names,
        resources: &r.resource_arns,
        entries: &r.context_entries,
        resource_policy: r.resource_policy.as_ref(),
        owner: r.resource_owner.as_ref(),
        marker: r.marker.as_ref(),
        max: r.max_items,
    })
}

/// Principal, policies and boundary of a user, group or role by its ARN.
fn source(state: &State, call: &Call<'_>, arn: &str) -> ApiResult<(Principal, Vec<Source>, Option<Source>)> {
    use iam::PolicySourceType as Kind;
    let account = call.account();
    let document = |arn: &Option<String>| {
        let boundary = Policies { attached: arn.iter().cloned().collect(), ..Policies::default() };
        Source::held(state, &boundary, Kind::UserManaged).pop()
    };
    if let Some((_, user)) = own(&state.users, call).find(|(_, u)| u.arn() == arn) {
        let mut who = Principal::user(account, arn, &user.id);
        who.tags = user.tags.clone();
        let mut sources = Source::held(state, &user.policies, Kind::User);
        for group in user.groups.iter().filter_map(|key| state.groups.get(key)) {
            sources.extend(Source::held(state, &group.policies, Kind::Group));
        }
        return Ok((who, sources, document(&user.boundary)));
    }
    if let Some((_, group)) = own(&state.groups, call).find(|(_, g)| g.arn() == arn) {
        let sources = Source::held(state, &group.policies, Kind::Group);
        return Ok((Principal::user(account, arn, &group.id), sources, None));
    }
    if let Some((_, role)) = own(&state.roles, call).find(|(_, r)| r.arn() == arn) {
        let mut who = Principal::role_session(account, arn, &role.id, "simulated");
        who.tags = role.tags.clone();
        return Ok((who, Source::held(state, &role.policies, Kind::Role), document(&role.boundary)));
    }
    Err(ApiError::new(Code::NoSuchEntity, format!("The source {arn} cannot be found.")))
}

pub(super) fn principal(
    state: &State,
    call: &Call<'_>,
    r: &iam::SimulatePrincipalPolicyRequest,
) -> ApiResult<iam::SimulatePolicyResponse> {
    if !r.policy_exclusion_list.is_empty() {
        return Err(ApiError::unsupported("PolicyExclusionList"));
    }
    let (who, mut sources, own_boundary) = source(state, call, &r.policy_source_arn)?;
    sources.extend(Source::given("PolicyInputList", &r.policy_input_list));
    let documents = texts_of(&sources);
    let mut identity = Identity::new(who, parse_all(&documents)?);
    let bounds = match r.permissions_boundary_policy_input_list.as_slice() {
        [] => own_boundary.into_iter().collect(),
        texts => Source::given("PermissionsBoundaryPolicyInputList", texts),
    };
    identity.boundary = boundary(&texts_of(&bounds))?;
    let texts = documents.iter().chain(&r.permissions_boundary_policy_input_list).chain(&r.resource_policy);
    simulate(&Asked {
        bytes: texts.map(String::len).sum(),
        identity,
        sources,
        boundary: bounds.into_iter().next(),
        actions: &r.action_names,
        resources: &r.resource_arns,
        entries: &r.context_entries,
        resource_policy: r.resource_policy.as_ref(),
        owner: r.resource_owner.as_ref(),
        marker: r.marker.as_ref(),
        max: r.max_items,
    })
}

fn keys(documents: &[String]) -> ApiResult<iam::GetContextKeysForPolicyResponse> {
    let mut keys: Vec<String> = parse_all(documents)?.iter().flat_map(|p| p.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(iam::GetContextKeysForPolicyResponse { context_key_names: keys })
}

pub(super) fn keys_of_custom(
    _: &State,
    _: &Call<'_>,
    r: &iam::GetContextKeysForCustomPolicyRequest,
) -> ApiResult<iam::GetContextKeysForPolicyResponse> {
    keys(&r.policy_input_list)
}

pub(super) fn keys_of_principal(
    state: &State,
    call: &Call<'_>,
    r: &iam::GetContextKeysForPrincipalPolicyRequest,
) -> ApiResult<iam::GetContextKeysForPolicyResponse> {
    let (_, sources, _) = source(state, call, &r.policy_source_arn)?;
    let mut documents = texts_of(&sources);
    documents.extend(r.policy_input_list.iter().cloned());
    keys(&documents)
}
