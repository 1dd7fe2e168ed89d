//! Who may: every request becomes actions on resources, judged before its body is read.
//!
//! ```text
//!  request -> Facts -> admit: bucket's policy, lists, ownership, public access block; the caller's own policies
//!                        |        one evaluator decides (karri_base::aws::policy)
//!                        v
//!                      Caller with a Leave -> the operation -> Core::bucket gives only buckets that the Leave names
//! ```
//!
//! An object's own record is read here only where the answer depends on it: its list, its owner or its tags. That is never
//! so for the bucket's owner as long as nobody else was ever allowed to write into the bucket.
//!
//! | module | holds |
//! |---|---|
//! | [`actions`] | operations as policies know them |
//! | [`acl`] | access control lists |
//! | [`context`] | condition keys of a request |
//! | [`public`] | what counts as public |
//! | [`people`] | who exists |

pub mod acl;
pub mod actions;
pub mod context;
pub mod people;
pub mod public;

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use karri_base::aws::keys::SignedIn;
use karri_base::aws::policy::document::These;
use karri_base::aws::policy::{self, Context, Decision, Effect, Identity, Layer, Policy, Request, Target, decide};
use karri_base::clock::UnixMicros;
use karri_base::id::AccountId;
use karri_bulk::BulkStore;

use crate::accesslog::Beside;
use crate::buckets::Known;
use crate::config::Doc;
use crate::config::simple::Ownership;
use crate::core::{Caller, Core, is_system};
use crate::error::{Error, Kind, Result};
use crate::keys::DataId;
use crate::record::Object;
use crate::replicate::{self, REPLICA};
use crate::usage::{Amount, Meter};
use crate::versions::Which;
use acl::{Acl, Owners, Permission};
use actions::{Ask, GET_OBJECT, LIST_BUCKET, Level, REPLICATE_OBJECT};

/// A request as decisions see it.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// AWS's name of the operation.
    pub operation: &'static str,
    /// The bucket it names.
    pub bucket: Option<String>,
    /// The key it names.
    pub key: Option<String>,
    /// The version it names.
    pub version: Option<String>,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// Who signed it.
    pub who: Option<SignedIn>,
    /// Where it comes from.
    pub source: Option<IpAddr>,
    /// True over TLS.
    pub secure: bool,
    /// The version of TLS; absent without.
    pub tls: Option<&'static str>,
    /// Bytes of what it puts at most; `None` where nothing says.
    pub body_max: Option<u64>,
    /// The request's id.
    pub request_id: String,
}

/// What a request was let in for.
#[derive(Debug, Clone, Default)]
pub struct Leave {
    /// The request.
    pub facts: Facts,
    /// Buckets that it may use, as far as it was judged.
    pub buckets: Vec<String>,
    /// Whose an object is that it puts.
    pub new_owner: Option<String>,
    /// The list of an object that it puts.
    pub new_acl: Option<Acl>,
    /// True where the caller may know what is in the bucket: an absent object is then absent, not denied.
    pub may_list: bool,
    /// True where the caller pays, not the bucket's owner.
    pub charged: bool,
    /// True where it was let in by a list, and would not have been without.
    pub by_acl: bool,
    /// True where the answer came from an object's record, or from its absence: what is read later is judged as it is read
    /// ([`Core::may_read`]).
    pub by_record: bool,
    /// True where the operation asks again with what the body says ([`Core::confirm`]): nothing was judged yet.
    pub awaits_body: bool,
    /// What it puts is a replica of the version with this id.
    pub replica: Option<DataId>,
    /// What it did that has lines of its own in access logs; said once, by the operation.
    pub beside: OnceLock<Vec<Beside>>,
}

/// True for somebody who may do all that the account may: a root, or an administrator without limits.
fn is_unlimited(identity: &Identity) -> bool {
    let everything = |policy: &Arc<Policy>| {
        let [s] = &policy.statements[..] else { return false };
        let all = |texts: Option<&str>| texts == Some("*");
        let actions = matches!(&s.actions, These::Only(list) if all(list.first().map(|a| &*a.text)));
        let resources = matches!(&s.resources, Some(These::Only(list)) if all(list.first().map(|r| &*r.text)));
        s.effect == Effect::Allow && s.conditions.is_empty() && actions && resources
    };
    let is_root = identity.principal.kind == policy::principal::Kind::Root;
    identity.session.is_none()
        && (is_root || identity.boundary.is_none() && matches!(&identity.policies[..], [one] if everything(one)))
}

/// A decision's parts that stay the same for all that one request asks.
struct Judge<'r> {
    facts: &'r Facts,
    now: UnixMicros,
    region: &'r str,
    identity: Arc<Identity>,
    context: OnceCell<Context>,
    account: Option<&'r AccountId>,
    by_acl: Cell<bool>,
    read_record: Cell<bool>,
}

impl Judge<'_> {
    /// True where nothing limits the caller within its own account.
    fn is_unlimited_in(&self, known: &Known) -> bool {
        self.is_own(known) && is_unlimited(&self.identity)
    }

    fn is_own(&self, known: &Known) -> bool {
        self.account.is_some() && self.account == known.owner.as_ref()
    }

    /// True for a request that its sender pays: in a bucket where requesters pay, everybody's but the owner's.
    ///
    /// # Errors
    /// `AccessDenied` for one that does not say that it will, and for nobody's, whom nothing can be charged to.
    fn pays(&self, known: &Known) -> Result<bool> {
        if !known.settings.requester_pays || self.is_own(known) || self.is_system() {
            return Ok(false);
        }
        const NAME: &str = "x-amz-request-payer";
        let header = self.facts.headers.get(NAME).and_then(|v| v.to_str().ok());
        let query = self.facts.query.iter().find(|(name, _)| name.eq_ignore_ascii_case(NAME)).map(|(_, v)| v.as_str());
        let agrees = header.or(query).is_some_and(|value| value.trim().eq_ignore_ascii_case("requester"));
        if self.account.is_some() && agrees {
            return Ok(true);
        }
        Err(Error::new(
            Kind::AccessDenied,
            "Access Denied: in this bucket requesters pay; a signed request with x-amz-request-payer: requester agrees to it.",
        ))
    }

    fn is_system(&self) -> bool {
        self.facts.who.as_ref().is_some_and(|who| is_system(&who.key))
    }

    fn is_root_of(&self, known: &Known) -> bool {
        self.is_own(known)
            && self.identity.principal.kind == policy::principal::Kind::Root
            && self.identity.session.is_none()
    }

    /// The same with other condition keys.
    fn with(&self, context: Context) -> Self {
        let (facts, now, region, account) = (self.facts, self.now, self.region, self.account);
        let (by_acl, read_record) = (self.by_acl.clone(), self.read_record.clone());
        let (identity, context) = (self.identity.clone(), OnceCell::from(context));
        Self { facts, now, region, account, identity, context, by_acl, read_record }
    }

    fn context(&self) -> &Context {
        self.context.get_or_init(|| {
            let mut context = context::of(self.facts, self.now);
            context.text("aws:RequestedRegion", self.region);
            context
        })
    }

    /// True where a policy that counts asks for a condition key that begins so.
    fn asks(&self, known: Option<&Known>, beginning: &str) -> bool {
        self.identity.asks(beginning) || known.and_then(|k| k.policy.as_ref()).is_some_and(|p| p.asks(beginning))
    }

    /// True where a policy that counts asks for what only the body says.
    fn waits(&self, known: Option<&Known>) -> bool {
        actions::said_by_body(self.facts.operation).iter().any(|beginning| self.asks(known, beginning))
    }

    /// What a list grants the caller.
    fn granted(&self, known: &Known, list: Option<&Acl>, permission: Option<Permission>) -> policy::Acl {
        let (Some(list), Some(permission)) = (list, permission) else { return policy::Acl::None };
        if known.settings.ownership == Ownership::BucketOwnerEnforced {
            return policy::Acl::None;
        }
        let account = self.account.map(AccountId::as_str);
        if !known.settings.public_access.ignore_acls && list.allows(None, permission, false) {
            return policy::Acl::Public;
        }
        if list.allows(account, permission, true) {
            return policy::Acl::Account;
        }
        match list.allows(account, permission, known.settings.public_access.ignore_acls) {
            true => policy::Acl::Public,
            false => policy::Acl::None,
        }
    }

    fn decide(
        &self,
        known: &Known,
        owner: Option<&AccountId>,
        action: &str,
        resource: &str,
        acl: policy::Acl,
    ) -> Decision {
        let request = Request { action, resource, context: self.context() };
        let target = Target { owner, policy: known.policy.as_ref(), acl, must_allow: false };
        let decision = decide(&self.identity, &target, &request);
        if acl != policy::Acl::None && decision.is_allowed() {
            let without = Target { acl: policy::Acl::None, ..target };
            self.by_acl.set(!decide(&self.identity, &without, &request).is_allowed());
        }
        // A public policy lets in strangers only as far as the bucket does not restrict that.
        let stranger = self.account.is_none() || self.account != known.owner.as_ref();
        if decision.is_allowed() && stranger && known.policy_is_public && known.settings.public_access.restrict {
            return decide(&self.identity, &Target { policy: None, ..target }, &request);
        }
        decision
    }

    /// True where the caller may know what is in a bucket, or of the one object that it names: that is listing by its key.
    fn may_list(&self, facts: &Facts, known: &Known, name: &str) -> bool {
        let granted = self.granted(known, known.settings.acl.as_ref(), LIST_BUCKET.permission);
        let mut context = self.context().clone();
        if let Some(key) = &facts.key {
            context.text("s3:prefix", key.clone());
        }
        let lists = self.with(context);
        lists.decide(known, known.owner.as_ref(), LIST_BUCKET.action, &arn(name, None), granted).is_allowed()
    }

    /// Judges an action as far as that can be done without an object's record.
    fn first(&self, facts: &Facts, known: &Known, name: &str, ask: Ask) -> Result<First> {
        let settings = &known.settings;
        let action = ask.of(facts.version.is_some());
        if self.is_unlimited_in(known) && known.policy.is_none() && (ask.level != Level::Object || !known.shared) {
            return Ok(First::Settled(true));
        }
        if self.is_system() && (action.starts_with("s3:Get") || action.starts_with("s3:List")) {
            return Ok(First::Settled(true));
        }
        if ask.level != Level::Object {
            let key = if ask.level == Level::Content { facts.key.as_deref() } else { None };
            let resource = arn(name, key);
            let granted = self.granted(known, settings.acl.as_ref(), ask.permission);
            let decision = self.decide(known, known.owner.as_ref(), action, &resource, granted);
            let root_may = self.is_root_of(known)
                && action.ends_with("BucketPolicy")
                && !known.bucket().documents.has(Doc::PolicyBindsRoot);
            if !root_may {
                refuse(decision, facts, action, &resource)?;
            }
            return Ok(First::Settled(true));
        }
        let resource = arn(name, facts.key.as_deref());
        let enforced = settings.ownership == Ownership::BucketOwnerEnforced;
        let first = self.decide(known, known.owner.as_ref(), action, &resource, policy::Acl::None);
        let settled = match first {
            Decision::ExplicitDeny(_) => true,
            Decision::Allowed => enforced || !known.shared,
            Decision::ImplicitDeny(_) => enforced,
        };
        if settled && !self.asks(Some(known), context::EXISTING_TAG) {
            refuse(first, facts, action, &resource)?;
            return Ok(First::Settled(self.is_own(known) || self.may_list(facts, known, name)));
        }
        self.read_record.set(true);
        Ok(First::ByRecord(first))
    }

    /// Judges an action on an object by its record, or its absence; true where the caller may also know what is in the
    /// bucket.
    fn by_record(
        &self,
        facts: &Facts,
        known: &Known,
        name: &str,
        ask: Ask,
        first: Decision,
        object: Option<&Object>,
    ) -> Result<bool> {
        let action = ask.of(facts.version.is_some());
        let resource = arn(name, facts.key.as_deref());
        let Some(object) = object else {
            // Absent: whoever may list learns that, the others learn nothing.
            if matches!(first, Decision::ExplicitDeny(_)) || !self.may_list(facts, known, name) {
                return refuse(first, facts, action, &resource).and(Err(Kind::AccessDenied.into()));
            }
            return Ok(true);
        };
        let enforced = known.settings.ownership == Ownership::BucketOwnerEnforced;
        let owner: Option<AccountId> =
            if enforced { known.owner.clone() } else { object.owner.parse().ok().or_else(|| known.owner.clone()) };
        let private;
        let list = match &object.acl {
            Some(acl) => acl,
            None => {
                private = Acl::private(&object.owner);
                &private
            }
        };
        let granted = self.granted(known, Some(list), ask.permission);
        let tagged;
        let judge = if self.asks(Some(known), context::EXISTING_TAG) {
            let mut context = self.context().clone();
            context::existing_tags(&mut context, object);
            tagged = self.with(context);
            &tagged
        } else {
            self
        };
        let decision = judge.decide(known, owner.as_ref(), action, &resource, granted);
        self.by_acl.set(judge.by_acl.get());
        refuse(decision, facts, action, &resource)?;
        Ok(self.is_own(known) || self.may_list(facts, known, name))
    }

    /// Judges an action on an object whose record is at hand.
    fn seen(&self, facts: &Facts, known: &Known, name: &str, ask: Ask, object: &Object) -> Result<()> {
        match self.first(facts, known, name, ask)? {
            First::Settled(_) => Ok(()),
            First::ByRecord(first) => self.by_record(facts, known, name, ask, first, Some(object)).map(drop),
        }
    }
}

/// What is known without an object's record.
enum First {
    /// It may; true where the caller may also know what is in the bucket.
    Settled(bool),
    /// The record has the last word; this was the first one.
    ByRecord(Decision),
}

/// What is left to judge of a request once the record is at hand that it reads or changes ([`Core::again`]).
#[must_use]
pub struct Again<'c>(Option<(Judge<'c>, Arc<Known>, Ask)>);

impl Again<'_> {
    /// Judges the record.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub fn judge(&self, object: &Object) -> Result<()> {
        let Some((judge, known, ask)) = &self.0 else { return Ok(()) };
        let name = judge.facts.bucket.as_deref().ok_or(Kind::AccessDenied)?;
        judge.seen(judge.facts, known, name, *ask, object)
    }
}

fn arn(bucket: &str, key: Option<&str>) -> String {
    match key {
        None => format!("arn:aws:s3:::{bucket}"),
        Some(key) => format!("arn:aws:s3:::{bucket}/{key}"),
    }
}

fn refuse(decision: Decision, facts: &Facts, action: &str, resource: &str) -> Result<()> {
    if decision.is_allowed() {
        return Ok(());
    }
    let Some(who) = &facts.who else { return Err(Kind::AccessDenied.into()) };
    Err(Error::new(
        Kind::AccessDenied,
        format!(
            "User: {} is not authorized to perform: {action} on resource: {resource:?} {}",
            who.key.arn,
            decision.why(action)
        ),
    ))
}

/// Judges what a header of an upload asks for besides. Where the bucket is another account's, its side let the upload in,
/// and the object's list is the writer's own affair: its own policies decide on that.
fn judge_beside(judge: &Judge<'_>, facts: &Facts, known: &Known, name: &str, ask: Ask) -> Result<()> {
    if judge.is_unlimited_in(known) && known.policy.is_none() {
        return Ok(());
    }
    let resource = arn(name, facts.key.as_deref());
    let granted = judge.granted(known, known.settings.acl.as_ref(), ask.permission);
    let decision = judge.decide(known, known.owner.as_ref(), ask.action, &resource, granted);
    let is_strangers = judge.account.is_some() && !judge.is_own(known);
    match decision {
        Decision::ImplicitDeny(Layer::Resource) if is_strangers && ask == actions::SET_ACL => Ok(()),
        decision => refuse(decision, facts, ask.action, &resource),
    }
}

impl<B: BulkStore> Core<B> {
    /// Judges a request; the caller that comes back may do what the request's operation says and no more.
    ///
    /// # Errors
    /// `AccessDenied`; `NoSuchBucket`; what is wrong with ACL headers.
    pub async fn admit(&self, facts: Facts) -> Result<Caller> {
        let key = facts.who.as_ref().map(|who| who.key.clone());
        let judge = self.judge(&facts);
        let mut leave = Leave { may_list: true, ..Leave::default() };
        let Some(ask) = self.first_ask(&facts)? else {
            // Each key for itself: see `may`.
            let name = facts.bucket.clone().ok_or(Kind::InvalidRequest)?;
            leave.charged = judge.pays(&*self.known(&name).await?)?;
            leave.buckets.push(name);
            leave.facts = facts;
            return Ok(Caller { key, leave: Arc::new(leave) });
        };
        match (ask.level, &facts.bucket) {
            (Level::Service, bucket) => {
                leave.awaits_body = judge.account.is_some() && judge.waits(None);
                if !leave.awaits_body {
                    self.judge_service(&judge, &facts, ask, bucket.as_deref())?;
                }
                if let Some(name) = bucket {
                    // CreateBucket of a bucket that is there looks at it.
                    leave.buckets.push(name.clone());
                }
            }
            (_, None) => return Err(Kind::InvalidRequest.into()),
            (_, Some(name)) => {
                let known = self.known(name).await?;
                let counted;
                let judge = if ask.action == "s3:PutObject" && judge.asks(Some(&known), context::USAGE) {
                    counted = judge.with(self.counted(&judge, &known).await?);
                    &counted
                } else {
                    &judge
                };
                leave.awaits_body = judge.waits(Some(&known));
                if !leave.awaits_body {
                    leave.may_list = self.judge_one(judge, &facts, &known, name, ask).await?;
                }
                leave.charged = judge.pays(&known)?;
                leave.by_acl = judge.by_acl.get();
                if matches!(facts.operation, "PutObject" | "CreateMultipartUpload" | "DeleteObject")
                    && let Some(id) = facts.headers.get(REPLICA)
                {
                    self.judge_one(judge, &facts, &known, name, REPLICATE_OBJECT).await?;
                    let id = id.to_str().ok().and_then(DataId::from_hex);
                    leave.replica =
                        Some(id.filter(|id| replicate::is_plausible(*id, self.now())).ok_or_else(|| {
                            Error::new(Kind::InvalidArgument, format!("The header {REPLICA} is no version id."))
                        })?);
                }
                if leave.replica.is_none() {
                    for beside in actions::besides(facts.operation, &facts.headers) {
                        judge_beside(judge, &facts, &known, name, beside)?;
                    }
                }
                if ask.action == "s3:PutObject" {
                    (leave.new_owner, leave.new_acl) = self.new_object(&facts, &known)?;
                }
                leave.buckets.push(name.clone());
            }
        }
        if matches!(facts.operation, "CopyObject" | "UploadPartCopy")
            && let Some(source) = context::copy_source(&facts.headers)
        {
            let known = self.known(&source.bucket).await?;
            let facts = Facts { key: Some(source.key), version: source.version, ..facts.clone() };
            leave.may_list &= self.judge_one(&judge, &facts, &known, &source.bucket, GET_OBJECT).await?;
            leave.charged |= judge.pays(&known)?;
            leave.buckets.push(source.bucket);
        }
        leave.by_record = judge.read_record.get();
        leave.facts = facts;
        Ok(Caller { key, leave: Arc::new(leave) })
    }

    /// Judges one more action of a request that was let in: a key of DeleteObjects, an override of a retention.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub async fn may(&self, caller: &Caller, ask: Ask, bucket: &str, key: &str, version: Option<&str>) -> Result<()> {
        let (bucket, key, version) = (bucket.to_owned(), key.to_owned(), version.map(str::to_owned));
        self.may_with(caller, ask, context::Source { bucket, key, version }, None).await
    }

    /// Judges a request that waited for its body, with the condition keys that the body has; one that did not wait is
    /// judged already. What is left is to be judged by the record, as [`again`](Self::again) does.
    ///
    /// # Errors
    /// `AccessDenied`; `NoSuchBucket`.
    pub async fn confirm<'c>(
        &'c self,
        caller: &'c Caller,
        bucket: &str,
        told: impl FnOnce(&mut Context),
    ) -> Result<Again<'c>> {
        if !caller.leave.awaits_body {
            return self.again(caller).await;
        }
        let facts = &caller.leave.facts;
        let judge = self.judge(facts);
        let mut context = judge.context().clone();
        told(&mut context);
        let judge = judge.with(context);
        let ask = self.first_ask(facts)?.ok_or(Kind::AccessDenied)?;
        if ask.level == Level::Service {
            self.judge_service(&judge, facts, ask, Some(bucket))?;
            return Ok(Again(None));
        }
        let known = self.known(bucket).await?;
        self.judge_one(&judge, facts, &known, bucket, ask).await?;
        Ok(Again(judge.read_record.get().then_some((judge, known, ask))))
    }

    /// What is left to judge of a request that was let in by its object's record: that may have been replaced, or come to
    /// be, since. Nothing of others.
    ///
    /// # Errors
    /// `NoSuchBucket`.
    pub async fn again<'c>(&'c self, caller: &'c Caller) -> Result<Again<'c>> {
        let facts = &caller.leave.facts;
        if !caller.leave.by_record {
            return Ok(Again(None));
        }
        let ask = self.first_ask(facts)?.ok_or(Kind::AccessDenied)?;
        let known = self.known(facts.bucket.as_deref().ok_or(Kind::AccessDenied)?).await?;
        Ok(Again(Some((self.judge(facts), known, ask))))
    }

    /// Judges the record that a request reads its object's data by. It was let in by what was there then: that may have been
    /// replaced, or come to be, since.
    ///
    /// # Errors
    /// `AccessDenied`; `NoSuchBucket`.
    pub async fn may_read(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        which: Which,
        object: &Object,
    ) -> Result<()> {
        if !caller.leave.by_record {
            return Ok(());
        }
        let source = context::Source { bucket: bucket.to_owned(), key: key.to_owned(), version: which.text() };
        self.may_with(caller, GET_OBJECT, source, Some(object)).await
    }

    /// Judges the record of an object, other than the one that the request names, by an action on it.
    ///
    /// # Errors
    /// `AccessDenied`; `NoSuchBucket`.
    pub async fn may_seen(&self, caller: &Caller, ask: Ask, bucket: &str, key: &str, object: &Object) -> Result<()> {
        let source = context::Source { bucket: bucket.to_owned(), key: key.to_owned(), version: None };
        self.may_with(caller, ask, source, Some(object)).await
    }

    async fn may_with(
        &self,
        caller: &Caller,
        ask: Ask,
        source: context::Source,
        object: Option<&Object>,
    ) -> Result<()> {
        let known = self.known(&source.bucket).await?;
        let judge = self.judge(&caller.leave.facts);
        let facts = Facts { key: Some(source.key), version: source.version, ..caller.leave.facts.clone() };
        match object {
            Some(object) => judge.seen(&facts, &known, &source.bucket, ask, object),
            None => self.judge_one(&judge, &facts, &known, &source.bucket, ask).await.map(drop),
        }
    }

    /// Judges the tags that a CopyObject takes along from its source: reading them there and setting them at its own place.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub async fn may_take_tags(&self, caller: &Caller, source: context::Source, from: &Object) -> Result<()> {
        if from.tags.0.is_empty() {
            return Ok(());
        }
        self.may_with(caller, actions::GET_TAGGING, source, Some(from)).await?;
        let facts = &caller.leave.facts;
        let name = facts.bucket.as_deref().ok_or(Kind::AccessDenied)?;
        let known = self.known(name).await?;
        let judge = self.judge(facts);
        let mut context = match judge.asks(Some(&known), context::USAGE) {
            true => self.counted(&judge, &known).await?,
            false => judge.context().clone(),
        };
        context::request_tags(&mut context, from.tags.0.iter().cloned());
        let judge = judge.with(context);
        judge_beside(&judge, facts, &known, name, actions::SET_TAGGING)?;
        if judge.asks(Some(&known), context::REQUEST_TAG) {
            // The copy itself was judged without them.
            let ask = self.first_ask(facts)?.ok_or(Kind::AccessDenied)?;
            self.judge_one(&judge, facts, &known, name, ask).await?;
        }
        Ok(())
    }

    /// A request's condition keys with how much its bucket and its account would have after it, as far as its head says.
    async fn counted(&self, judge: &Judge<'_>, known: &Known) -> Result<Context> {
        let bucket = known.bucket();
        let facts = judge.facts;
        let whole = matches!(facts.operation, "PutObject" | "CopyObject" | "PostObject" | "CompleteMultipartUpload");
        let carries = matches!(facts.operation, "PutObject" | "PostObject" | "UploadPart");
        // What does not say how long it is may be of any length.
        let length = if carries { facts.body_max.unwrap_or(u64::MAX) } else { 0 };
        let more = Amount { objects: i64::from(whole), bytes: i64::try_from(length).unwrap_or(i64::MAX) };
        let more = match facts.key.as_deref().filter(|_| whole) {
            Some(key) => more - self.replaced(bucket, key).await?,
            None => more,
        };
        let in_bucket = self.meter(bucket.id).await?.expected() + more;
        let in_account = self.account_usage(&bucket.owner, Meter::expected).await? + more;
        let mut context = judge.context().clone();
        context::usage(&mut context, in_bucket, in_account);
        Ok(context)
    }

    fn judge<'f>(&'f self, facts: &'f Facts) -> Judge<'f> {
        Judge {
            facts,
            now: self.now(),
            region: &self.shared.region,
            identity: facts.who.as_ref().map_or_else(|| Arc::new(Identity::anonymous()), |w| w.identity.clone()),
            context: OnceCell::new(),
            account: facts.who.as_ref().map(|w| &w.key.account),
            by_acl: Cell::new(false),
            read_record: Cell::new(false),
        }
    }

    /// What the operation asks for; `None` for one that asks for each key.
    fn first_ask(&self, facts: &Facts) -> Result<Option<Ask>> {
        if facts.operation == "DeleteObjects" {
            return Ok(None);
        }
        let ask = actions::ask(facts.operation);
        ask.map(Some).ok_or_else(|| Error::new(Kind::NotImplemented, "Nobody is allowed this operation here."))
    }

    fn judge_service(&self, judge: &Judge<'_>, facts: &Facts, ask: Ask, bucket: Option<&str>) -> Result<()> {
        if judge.account.is_none() {
            // Nobody's list of buckets is empty; nobody makes none.
            return if facts.operation == "ListBuckets" { Ok(()) } else { Err(Kind::AccessDenied.into()) };
        }
        // Policies write the list of all buckets as `*` or as `arn:aws:s3:::*`; both match this.
        let resource = arn(bucket.unwrap_or("*"), None);
        for Ask { action, .. } in std::iter::once(ask).chain(actions::besides(facts.operation, &facts.headers)) {
            let request = Request { action, resource: &resource, context: judge.context() };
            refuse(decide(&judge.identity, &Target::default(), &request), facts, action, &resource)?;
        }
        Ok(())
    }

    /// Judges one action; true where the caller may also know what is in the bucket.
    async fn judge_one(&self, judge: &Judge<'_>, facts: &Facts, known: &Known, name: &str, ask: Ask) -> Result<bool> {
        let first = match judge.first(facts, known, name, ask)? {
            First::Settled(may_list) => return Ok(may_list),
            First::ByRecord(first) => first,
        };
        let key = facts.key.as_deref().unwrap_or_default();
        let object = self.object_judged(known, key, facts.version.as_deref()).await?;
        judge.by_record(facts, known, name, ask, first, object.as_ref())
    }

    /// The version that a request names, for its list, owner and tags.
    async fn object_judged(&self, known: &Known, key: &str, version: Option<&str>) -> Result<Option<Object>> {
        // What is no version id is none that is there: the operation says what is wrong with it.
        let Ok(which) = Which::new(version) else { return Ok(None) };
        let found = self.version(known.bucket().id, key, which).await?;
        Ok(found.map(|at| at.seen.value).filter(|object| !object.marker))
    }

    /// Whose an object is that a request puts, and its list, by the bucket's ownership controls.
    fn new_object(&self, facts: &Facts, known: &Known) -> Result<(Option<String>, Option<Acl>)> {
        let bucket_owner = known.bucket().owner.as_str();
        let canned = facts.headers.get("x-amz-acl").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let has_grants = facts.headers.keys().any(|name| name.as_str().starts_with("x-amz-grant-"));
        let writer = facts.who.as_ref().map_or(bucket_owner, |who| who.key.account.as_str());
        let owner = match known.settings.ownership {
            Ownership::BucketOwnerEnforced => {
                if has_grants || !["", "bucket-owner-full-control"].contains(&canned) {
                    return Err(Kind::AccessControlListNotSupported.into());
                }
                return Ok((Some(bucket_owner.to_owned()), None));
            }
            Ownership::BucketOwnerPreferred if canned == "bucket-owner-full-control" => bucket_owner,
            Ownership::BucketOwnerPreferred | Ownership::ObjectWriter => writer,
        };
        let owners = Owners { owner, bucket_owner: Some(bucket_owner) };
        let acl = Acl::of_headers(&facts.headers, owners, self.people())?;
        if let Some(acl) = &acl
            && acl.is_public()
            && known.settings.public_access.block_acls
        {
            return Err(Kind::AccessDenied.into());
        }
        Ok((Some(owner.to_owned()), acl.filter(|acl| !acl.is_private(owner))))
    }

    /// Who exists.
    pub fn people(&self) -> &dyn people::People {
        self.shared.people.get_or_init(karri_base::aws::keys::KeyRing::default)
    }
}
