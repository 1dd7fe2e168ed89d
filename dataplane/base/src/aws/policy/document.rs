//! The policy language: a document read once and strictly ("Grammar of the IAM JSON policy language").
//!
//! What is refused is refused with its reason: unknown or repeated elements, wrong types, elements that do not belong to
//! the document's [`Use`], actions, resources, principals and conditions of a wrong form, documents over their quota.

use super::condition::{Condition, Values};
use super::json::Json;
use super::pattern::{ArnPattern, Compare, Pattern};
use super::principal::{Name, Principal, Reach};

/// What a document is for: which elements it has and how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// A managed policy.
    Managed,
    /// In a user.
    UserInline,
    /// In a group.
    GroupInline,
    /// In a role.
    RoleInline,
    /// Passed when a session begins.
    Session,
    /// Who may assume a role.
    Trust,
    /// On a bucket.
    Bucket,
    /// None in particular: identity policies as the simulator takes them.
    Simulated,
}

impl Use {
    /// The longest document in characters; white space does not count but in bucket policies.
    pub fn size_max(self) -> usize {
        match self {
            Self::Managed => 6144,
            Self::UserInline | Self::Session | Self::Trust => 2048,
            Self::GroupInline => 5120,
            Self::RoleInline => 10_240,
            Self::Bucket => 20_480,
            Self::Simulated => 131_072,
        }
    }
    /// The most bytes with all white space: what a tenant can make everyone keep and send stays bounded.
    pub fn raw_max(self) -> usize {
        match self {
            Self::Simulated => 2 * self.size_max(),
            _ => 8 * self.size_max(),
        }
    }
    /// How long a text is, as [`Use::size_max`] counts.
    pub fn size(self, text: &str) -> usize {
        match self {
            Self::Bucket => text.len(),
            _ => text.chars().filter(|c| !c.is_whitespace()).count(),
        }
    }
    fn names_principals(self) -> bool {
        matches!(self, Self::Trust | Self::Bucket)
    }
    fn names_resources(self) -> bool {
        self != Self::Trust
    }
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `MalformedPolicyDocument` (IAM), `MalformedPolicy` (S3).
    #[error("{0}")]
    Malformed(String),
    /// `LimitExceeded` (IAM), `PolicyTooLarge` (S3).
    #[error("Cannot exceed quota for PolicySize: {max}")]
    TooLarge {
        /// The quota in characters.
        max: usize,
    },
}

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In which statement, from 0; none where it is the document's.
    pub statement: Option<usize>,
    /// What.
    pub error: PolicyError,
}

fn malformed<T>(why: impl Into<String>) -> Result<T, PolicyError> {
    Err(PolicyError::Malformed(why.into()))
}

/// `Allow` or `Deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Lets.
    Allow,
    /// Forbids, whatever else allows.
    Deny,
}

/// Either what is listed, or all but that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum These<T> {
    /// `Action`, `Resource`, `Principal`.
    Only(Vec<T>),
    /// `NotAction`, `NotResource`, `NotPrincipal`.
    AllBut(Vec<T>),
}

impl<T> These<T> {
    /// What is listed.
    pub fn listed(&self) -> &[T] {
        match self {
            Self::Only(list) | Self::AllBut(list) => list,
        }
    }
}

/// A pattern of action names: `s3:Get*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionPattern {
    /// As written.
    pub text: String,
    pattern: Pattern,
}

impl ActionPattern {
    /// True where it means this action.
    pub fn matches(&self, action: &str) -> bool {
        self.pattern.matches(action, Compare { wild: true, fold: true }, &()) == Some(true)
    }

    /// True where it surely means all that the other one means.
    pub fn covers(&self, other: &Self) -> bool {
        // `?` would take the other's `*` for one letter.
        self.text.eq_ignore_ascii_case(&other.text) || (!self.text.contains('?') && self.matches(&other.text))
    }
}

/// A pattern of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourcePattern {
    /// As written.
    pub text: String,
    pattern: ArnPattern,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Its name.
    pub sid: Option<String>,
    /// What it does.
    pub effect: Effect,
    /// Whom it is about; none in identity policies.
    pub principals: Option<These<Name>>,
    /// Which actions.
    pub actions: These<ActionPattern>,
    /// Which resources; none in trust policies.
    pub resources: Option<These<ResourcePattern>>,
    /// When.
    pub conditions: Vec<Condition>,
}

/// A whole document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its `Id`.
    pub id: Option<String>,
    /// Its statements.
    pub statements: Vec<Statement>,
}

impl Policy {
    /// Reads a document.
    ///
    /// # Errors
    /// See [`PolicyError`].
    ///
    /// ```
    /// use karri_base::aws::policy::{Policy, Use};
    /// let text = r#"{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}"#;
    /// assert_eq!(Policy::parse(text, Use::Managed).unwrap().statements.len(), 1);
    /// assert!(Policy::parse(text, Use::Bucket).is_err(), "a bucket policy names principals");
    /// ```
    pub fn parse(text: &str, purpose: Use) -> Result<Self, PolicyError> {
        Self::check(text, purpose).map_err(|faults| match faults.into_iter().next() {
            Some(Fault { statement: Some(at), error }) => at_statement(at, error),
            Some(Fault { error, .. }) => error,
            None => unreachable!("what is refused has a reason"),
        })
    }

    /// As [`Policy::parse`], with all faults of its statements, each statement's first.
    ///
    /// # Errors
    /// At least one.
    pub fn check(text: &str, purpose: Use) -> Result<Self, Vec<Fault>> {
        let whole = |error| vec![Fault { statement: None, error }];
        let (id, variables, items) = Self::outline(text, purpose).map_err(whole)?;
        let (mut statements, mut faults) = (Vec::new(), Vec::new());
        for (at, json) in items.into_iter().enumerate() {
            match Statement::read(json, purpose, variables) {
                Ok(statement) => statements.push(statement),
                Err(error) => faults.push(Fault { statement: Some(at), error }),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut sids = std::collections::BTreeSet::new();
        for sid in statements.iter().filter_map(|s: &Statement| s.sid.as_deref()).filter(|sid| !sid.is_empty()) {
            if !sids.insert(sid) {
                let why = format!("Statement IDs (SID) in a single policy must be unique: {sid:?} is not");
                return Err(whole(PolicyError::Malformed(why)));
            }
        }
        Ok(Self { id, statements })
    }

    /// Its id, whether it has policy variables, and its statements unread.
    fn outline(text: &str, purpose: Use) -> Result<(Option<String>, bool, Vec<Json>), PolicyError> {
        let max = purpose.size_max();
        if purpose.size(text) > max || text.len() > purpose.raw_max() {
            return Err(PolicyError::TooLarge { max });
        }
        if !text.trim_start().starts_with('{') {
            return malformed("Policies must be valid JSON and the first byte must be '{'");
        }
        let json = Json::parse(text).or_else(|why| malformed(format!("Syntax errors in policy: {why}")))?;
        let Json::Object(members) = json else { return malformed("Syntax errors in policy: want an object") };
        let (mut variables, mut id, mut statements) = (false, None, None);
        for (name, value) in members {
            match (name.as_str(), value) {
                ("Version", Json::Text(version)) => match version.as_str() {
                    "2012-10-17" => variables = true,
                    "2008-10-17" => {}
                    _ => return malformed(format!("The policy must contain a valid version string, not {version:?}")),
                },
                ("Id", Json::Text(text)) => id = Some(text),
                ("Statement", value @ (Json::Object(_) | Json::List(_))) => statements = Some(value.into_list()),
                ("Version" | "Id" | "Statement", value) => return wrong_type(&name, &value),
                _ => return malformed(format!("Unknown field {name}")),
            }
        }
        let Some(statements) = statements else { return malformed("Missing required field Statement") };
        if statements.is_empty() {
            return malformed("Could not parse the policy: Statement is empty!");
        }
        Ok((id, variables, statements))
    }

    /// Everything is allowed: `AdministratorAccess`.
    pub fn administrator() -> Self {
        let everything = "*".to_owned();
        let (Ok(action), Ok(resource)) = (Pattern::parse("*", false), ArnPattern::parse("*", false)) else {
            unreachable!("both are patterns")
        };
        Self {
            id: None,
            statements: vec![Statement {
                sid: None,
                effect: Effect::Allow,
                principals: None,
                actions: These::Only(vec![ActionPattern { text: everything.clone(), pattern: action }]),
                resources: Some(These::Only(vec![ResourcePattern { text: everything, pattern: resource }])),
                conditions: Vec::new(),
            }],
        }
    }

    /// The condition keys that it asks for, sorted, each once, in lower case.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.statements.iter().flat_map(Statement::keys).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// True where it asks for a condition key that begins like this.
    ///
    /// ```
    /// use karri_base::aws::policy::{Policy, Use};
    /// let text = r#"{"Statement": {"Effect": "Deny", "Action": "*", "Resource": "*",
    ///     "Condition": {"StringEquals": {"s3:existingobjecttag/secret": "yes"}}}}"#;
    /// let policy = Policy::parse(text, Use::Managed).unwrap();
    /// assert!(policy.asks("s3:ExistingObjectTag/") && !policy.asks("s3:RequestObjectTag/"));
    /// ```
    pub fn asks(&self, beginning: &str) -> bool {
        let begins = |key: &str| key.get(..beginning.len()).is_some_and(|key| key.eq_ignore_ascii_case(beginning));
        self.statements.iter().flat_map(Statement::names).any(begins)
    }
}

fn at_statement(at: usize, error: PolicyError) -> PolicyError {
    match error {
        PolicyError::Malformed(why) if at > 0 => PolicyError::Malformed(format!("{why} (statement {})", at + 1)),
        other => other,
    }
}

fn wrong_type<T>(name: &str, value: &Json) -> Result<T, PolicyError> {
    malformed(format!("Syntax errors in policy: {name} must not be {}", value.kind()))
}

impl Statement {
    fn read(json: Json, purpose: Use, variables: bool) -> Result<Self, PolicyError> {
        let Json::Object(members) = json else { return wrong_type("Statement", &json) };
        let (mut sid, mut effect, mut principals, mut actions, mut resources) = (None, None, None, None, None);
        let mut conditions = Vec::new();
        for (name, value) in members {
            match (name.as_str(), value) {
                ("Sid", Json::Text(text)) => {
                    if !purpose.names_principals() && !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
                        return malformed(format!("Statement IDs (SID) must be alpha-numeric: {text:?}"));
                    }
                    sid = Some(text);
                }
                ("Effect", Json::Text(text)) => {
                    effect = Some(match text.as_str() {
                        "Allow" => Effect::Allow,
                        "Deny" => Effect::Deny,
                        _ => return malformed(format!("Invalid effect: {text}")),
                    });
                }
                ("Principal" | "NotPrincipal", _) if !purpose.names_principals() => {
                    return malformed("Policy document should not specify a principal.");
                }
                ("Principal" | "NotPrincipal", value) => {
                    let names = names(value)?;
                    one_of(&mut principals, &name, names, "Principal", "NotPrincipal")?;
                }
                ("Action" | "NotAction", value) => {
                    let list = texts(&name, value)?.into_iter().map(action).collect::<Result<_, _>>()?;
                    one_of(&mut actions, &name, list, "Action", "NotAction")?;
                }
                ("Resource" | "NotResource", _) if !purpose.names_resources() => {
                    return malformed("Has prohibited field Resource.");
                }
                ("Resource" | "NotResource", value) => {
                    let read = |text: String| match ArnPattern::parse(&text, variables) {
                        Ok(pattern) => Ok(ResourcePattern { text, pattern }),
                        Err(why) if purpose == Use::Bucket => malformed(format!("Policy has invalid resource: {why}")),
                        Err(why) => malformed(format!("Resource {why}.")),
                    };
                    let list = texts(&name, value)?.into_iter().map(read).collect::<Result<_, _>>()?;
                    one_of(&mut resources, &name, list, "Resource", "NotResource")?;
                }
                ("Condition", Json::Object(operators)) => conditions = read_conditions(operators, variables)?,
                ("Sid" | "Effect" | "Condition", value) => return wrong_type(&name, &value),
                _ => return malformed(format!("Unknown field {name}")),
            }
        }
        let missing = |name| PolicyError::Malformed(format!("Missing required field {name}"));
        if purpose.names_principals() && principals.is_none() {
            return Err(missing("Principal"));
        }
        if purpose.names_resources() && resources.is_none() {
            return Err(missing("Resource"));
        }
        Ok(Self {
            sid,
            effect: effect.ok_or_else(|| missing("Effect"))?,
            principals,
            actions: actions.ok_or_else(|| missing("Action"))?,
            resources,
            conditions,
        })
    }

    /// Whether it is about this action on this resource now; `Some(reach)` where it is, with how far it goes for the
    /// caller (all the way where it names no principals).
    pub fn applies(&self, who: &Principal, action: &str, resource: &str, values: &dyn Values) -> Option<Reach> {
        let reach = match &self.principals {
            None => Reach::Caller,
            Some(These::Only(names)) => names.iter().filter_map(|name| name.reach(who)).max()?,
            Some(These::AllBut(names)) => {
                if names.iter().any(|name| name.excepts(who)) {
                    return None;
                }
                Reach::Caller
            }
        };
        let action_is = |a: &ActionPattern| a.matches(action);
        let is_about = match &self.actions {
            These::Only(list) => list.iter().any(action_is),
            These::AllBut(list) => !list.iter().any(action_is),
        };
        if !is_about {
            return None;
        }
        struct Upcast<'a>(&'a dyn Values);
        impl super::pattern::Variables for Upcast<'_> {
            fn variable(&self, key: &str) -> Option<std::borrow::Cow<'_, str>> {
                self.0.variable(key)
            }
        }
        // A variable without a value matches no resource, in `NotResource` either.
        let variables = Upcast(values);
        let on_it = match &self.resources {
            None => true,
            Some(These::Only(list)) => list.iter().any(|r| r.pattern.matches(resource, &variables) == Some(true)),
            Some(These::AllBut(list)) => list.iter().all(|r| r.pattern.matches(resource, &variables) == Some(false)),
        };
        (on_it && self.conditions.iter().all(|c| c.holds(values))).then_some(reach)
    }

    fn keys(&self) -> impl Iterator<Item = String> {
        self.names().map(str::to_ascii_lowercase)
    }

    /// Condition keys as they are written.
    fn names(&self) -> impl Iterator<Item = &str> {
        let resources = self.resources.iter().flat_map(These::listed).flat_map(|r| r.pattern.keys());
        let conditions = self.conditions.iter().flat_map(Condition::keys);
        resources.chain(conditions)
    }
}

/// `Action` and `NotAction` exclude each other, and so on.
fn one_of<T>(
    place: &mut Option<These<T>>,
    name: &str,
    list: Vec<T>,
    only: &str,
    all_but: &str,
) -> Result<(), PolicyError> {
    let these = if name == only { These::Only(list) } else { These::AllBut(list) };
    match place.replace(these) {
        None => Ok(()),
        Some(_) => malformed(format!("A statement has either {only} or {all_but}, not both")),
    }
}

/// A text or a list of texts, at least one.
fn texts(name: &str, value: Json) -> Result<Vec<String>, PolicyError> {
    let items = value.into_list();
    if items.is_empty() {
        return malformed(format!("Policy statement must contain {name}s."));
    }
    let text = |item| match item {
        Json::Text(text) => Ok(text),
        other => wrong_type(name, &other),
    };
    items.into_iter().map(text).collect()
}

fn action(text: String) -> Result<ActionPattern, PolicyError> {
    let wrong = |why: &str| PolicyError::Malformed(format!("Policy has invalid action: {text:?} {why}"));
    if text != "*" {
        let Some((service, name)) = text.split_once(':') else {
            return Err(wrong("must be prefixed by a service, such as s3:GetObject, or be *"));
        };
        if service.is_empty() || !service.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(wrong("names no service: letters, digits and dashes before the colon"));
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"*?-_".contains(&b)) {
            return Err(wrong("names no action: letters, digits, * and ? behind the colon"));
        }
    }
    let pattern = Pattern::parse(&text, false).map_err(|why| wrong(&why))?;
    Ok(ActionPattern { text, pattern })
}

fn names(value: Json) -> Result<Vec<Name>, PolicyError> {
    let wrong = |shown: &str| PolicyError::Malformed(format!("Invalid principal in policy: {shown}"));
    let members = match value {
        Json::Text(text) if text == "*" => return Ok(vec![Name::Everyone]),
        Json::Text(text) => return Err(wrong(&format!("{text:?}; want \"*\" or an object such as {{\"AWS\": ...}}"))),
        Json::Object(members) if !members.is_empty() => members,
        other => return Err(wrong(other.kind())),
    };
    let mut out = Vec::new();
    for (kind, value) in members {
        for text in texts(&kind, value)? {
            let unknown = || wrong(&format!("\"{kind}\":\"{text}\""));
            out.push(match kind.as_str() {
                "AWS" => Name::aws(&text).ok_or_else(unknown)?,
                "Service" => match text.contains('.') && !text.contains(['*', '?', ' ']) {
                    true => Name::Service(text),
                    false => return Err(unknown()),
                },
                "Federated" => match !text.is_empty() && !text.contains(['*', '?', ' ']) {
                    true => Name::Provider(text),
                    false => return Err(unknown()),
                },
                "CanonicalUser" => match !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    true => Name::Canonical(text),
                    false => return Err(unknown()),
                },
                _ => return Err(unknown()),
            });
        }
    }
    Ok(out)
}

fn read_conditions(operators: Vec<(String, Json)>, variables: bool) -> Result<Vec<Condition>, PolicyError> {
    let mut out = Vec::new();
    for (operator, keys) in operators {
        let Json::Object(keys) = keys else { return wrong_type(&operator, &keys) };
        for (key, values) in keys {
            let text = |item| match item {
                Json::Text(text) | Json::Number(text) => Ok(text),
                Json::Bool(flag) => Ok(flag.to_string()),
                other => wrong_type(&key, &other),
            };
            let values: Vec<String> = values.into_list().into_iter().map(text).collect::<Result<_, _>>()?;
            let condition = Condition::parse(&operator, &key, &values, variables);
            out.push(condition.or_else(|why| malformed(format!("Policy has an invalid condition: {why}")))?);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, purpose: Use, part: &str) {
        let error = Policy::parse(text, purpose).expect_err(text);
        assert!(error.to_string().contains(part), "{text}\n{error}");
    }

    #[test]
    fn what_is_malformed_is_said() {
        let identity = [
            ("", "first byte"),
            ("[]", "first byte"),
            ("{", "Syntax errors"),
            ("{} {}", "Syntax errors"),
            ("{}", "Missing required field Statement"),
            (r#"{"Statement":[]}"#, "Statement is empty"),
            (r#"{"Statement":"x"}"#, "Statement must not be a string"),
            (r#"{"Statement":["x"]}"#, "Statement must not be a string"),
            (r#"{"Version":"2012-10-18","Statement":[]}"#, "version string"),
            (r#"{"Version":2012,"Statement":[]}"#, "Version must not be a number"),
            (r#"{"Versions":"2012-10-17","Statement":[]}"#, "Unknown field Versions"),
            (r#"{"Statement":[],"Statement":[]}"#, "given twice"),
            (r#"{"Statement":{}}"#, "Missing required field"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:*"}}"#, "Missing required field Resource"),
            (r#"{"Statement":{"Effect":"Allow","Resource":"*"}}"#, "Missing required field Action"),
            (r#"{"Statement":{"Action":"s3:*","Resource":"*"}}"#, "Missing required field Effect"),
            (r#"{"Statement":{"Effect":"allow","Action":"s3:*","Resource":"*"}}"#, "Invalid effect"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3","Resource":"*"}}"#, "invalid action"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:","Resource":"*"}}"#, "invalid action"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s*:Get","Resource":"*"}}"#, "invalid action"),
            (r#"{"Statement":{"Effect":"Allow","Action":[],"Resource":"*"}}"#, "must contain Actions"),
            (r#"{"Statement":{"Effect":"Allow","Action":[1],"Resource":"*"}}"#, "Action must not be a number"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"bucket"}}"#, "ARN format"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","Principal":"*"}}"#, "principal"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:*","NotAction":"s3:*","Resource":"*"}}"#, "not both"),
            (r#"{"Statement":{"Sid":"a b","Effect":"Allow","Action":"s3:*","Resource":"*"}}"#, "alpha-numeric"),
            (r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":[]}}"#, "Condition must"),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"X":{"a:b":"c"}}}}"#,
                "\"X\"",
            ),
            (
                r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*","Condition":{"Bool":{"a:b":{}}}}}"#,
                "a:b",
            ),
            (
                r#"{"Statement":[{"Sid":"a","Effect":"Allow","Action":"s3:*","Resource":"*"},{"Sid":"a","Effect":"Deny","Action":"s3:*","Resource":"*"}]}"#,
                "unique",
            ),
        ];
        for (text, part) in identity {
            refused(text, Use::Managed, part);
        }
        for principal in [
            r#""x""#,
            "{}",
            r#"{"AWS":[]}"#,
            r#"{"AWS":"x"}"#,
            r#"{"X":"*"}"#,
            "[]",
            r#"{"AWS":"arn:aws:iam::1:user/a"}"#,
            r#"{"AWS":"arn:aws:iam::123456789012:user/*"}"#,
            r#"{"Service":"*"}"#,
            r#"{"AWS":"arn:aws:s3:::b"}"#,
        ] {
            let text = format!(
                r#"{{"Statement":{{"Effect":"Allow","Action":"s3:*","Resource":"*","Principal":{principal}}}}}"#
            );
            let error = Policy::parse(&text, Use::Bucket).expect_err(&text).to_string();
            assert!(error.contains("rincipal") || error.contains("AWSs"), "{error}");
        }
        refused(r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}"#, Use::Bucket, "Principal");
        let trust = r#"{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":"*","Resource":"*"}}"#;
        refused(trust, Use::Trust, "prohibited field Resource");
    }

    #[test]
    fn documents_have_quotas() {
        let of = |spaces: usize, length: usize| {
            let (space, name) = (" ".repeat(spaces), "x".repeat(length));
            format!(r#"{{"Statement":{space}{{"Effect":"Allow","Action":"s3:{name}","Resource":"*"}}}}"#)
        };
        assert!(Policy::parse(&of(5000, 1900), Use::UserInline).is_ok());
        refused(&of(0, 2048), Use::UserInline, "PolicySize: 2048");
        assert!(Policy::parse(&of(0, 2048), Use::GroupInline).is_ok());
        refused(&of(0, 6144), Use::Managed, "PolicySize: 6144");
        refused(&of(20_480, 1), Use::Bucket, "PolicySize: 20480");
        let deep = format!("{}{}", "{\"Statement\":".repeat(1000), "}".repeat(1000));
        refused(&deep, Use::Simulated, "Syntax errors");
    }

    #[test]
    fn keys_are_found() {
        let text = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*",
            "Resource":"arn:aws:s3:::${aws:username}/*","Condition":{"StringLike":{"s3:Prefix":["${aws:userid}","x"]}}}}"#;
        let policy = Policy::parse(text, Use::Managed).expect("a policy");
        assert_eq!(policy.keys(), ["aws:userid", "aws:username", "s3:prefix"]);
    }
}
