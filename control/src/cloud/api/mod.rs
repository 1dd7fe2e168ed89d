//! What the actions mean: one file per family, typed requests in, typed answers out.
//!
//! A handler checks everything that a request says, reserves what it asks for in one commit and sets flows going; it
//! waits for no other role, except to place instances (so that a full zone is told at once) and to read consoles and
//! image objects.

pub mod describe_instances;
pub mod filter;
pub mod images;
pub mod instance_types;
pub mod instances;
mod judge;
pub mod key_pairs;
pub mod page;
pub mod regions;
pub mod run_instances;
pub mod tags;
pub mod volumes;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use karri_base::aws::keys::Key;
use karri_base::aws::verify::Verifier;
use karri_base::clock::Clock;
use karri_base::id::{AccountId, InstanceId, VolumeId};
use sha2::{Digest, Sha256};

use crate::wire::generated::ec2;
use crate::wire::{Invalid, Operation, ToXml, Tree, Xml};

use super::Cloud;
use super::error::{ApiError, ApiResult, Code};
use super::http::{Api, Asked};
use super::records::{Instance, Tags, Token, Volume};
use super::store::Txn;
use crate::audit::Trail;
use crate::identity::Directory;

/// A signed request being answered.
pub struct Call<'a> {
    /// The cloud.
    pub cloud: &'a Cloud,
    /// Who asks.
    pub key: Arc<Key>,
    /// For logs and answers.
    pub request_id: String,
    /// The API version that the caller named.
    pub version: Option<String>,
    /// The host, and port, that the caller spoke to.
    pub host: String,
}

impl Call<'_> {
    /// The account that asks.
    pub fn account(&self) -> &AccountId {
        &self.key.account
    }

    /// Microseconds since 1970.
    pub fn now_us(&self) -> u64 {
        self.cloud.clock.now().0
    }

    /// The caller's instance, if there is one.
    ///
    /// # Errors
    /// Malformed, unknown or someone else's: the latter two are told alike.
    pub fn instance(&self, txn: &mut Txn<'_>, id: &InstanceId) -> ApiResult<Arc<Instance>> {
        let instance = txn.get::<Instance>(id.as_str()).filter(|i| i.account == *self.account());
        instance.ok_or_else(|| no_instance(id))
    }

    /// The caller's volume, unless it is deleted.
    ///
    /// # Errors
    /// Unknown or someone else's.
    pub fn volume(&self, txn: &mut Txn<'_>, id: &VolumeId) -> ApiResult<Arc<Volume>> {
        let volume = txn.get::<Volume>(id.as_str());
        let volume = volume.filter(|v| v.account == *self.account() && v.state != ec2::VolumeState::Deleted);
        volume.ok_or_else(|| no_volume(id))
    }

    /// The listing that a page token belongs to.
    pub fn listing(&self, action: &str) -> String {
        format!("{action}/{}", self.account())
    }
}

/// `InvalidInstanceID.NotFound`.
pub fn no_instance(id: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::InvalidInstanceIdNotFound, format!("The instance ID '{id}' does not exist"))
}

/// `InvalidVolume.NotFound`.
pub fn no_volume(id: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::InvalidVolumeNotFound, format!("The volume '{id}' does not exist."))
}

/// An instance's id.
pub fn instance_id(text: &str) -> ApiResult<InstanceId> {
    InstanceId::from_str(text)
        .map_err(|_| ApiError::new(Code::InvalidInstanceIdMalformed, format!("Invalid id: \"{text}\"")))
}

/// A volume's id.
pub fn volume_id(text: &str) -> ApiResult<VolumeId> {
    VolumeId::from_str(text)
        .map_err(|_| ApiError::value("volumeId", text, "Expected: 'vol-...'.").recode(Code::InvalidVolumeIdMalformed))
}

impl ApiError {
    fn recode(mut self, code: Code) -> Self {
        self.code = code;
        self
    }
}

/// Answers an EC2 action.
pub async fn ec2_action(call: &Call<'_>, name: &str, tree: &Tree) -> ApiResult<String> {
    use ec2::Action as A;
    let Some(action) = A::from_name(name) else { return Err(not_served(name, ec2::UNSERVED)) };
    macro_rules! at_once {
        ($handler:path) => {{
            let (request, op) = parse(tree)?;
            op.answer(call, &$handler(call, request)?)
        }};
    }
    macro_rules! waiting {
        ($handler:path) => {{
            let (request, op) = parse(tree)?;
            op.answer(call, &Box::pin($handler(call, request)).await?)
        }};
    }
    Ok(match action {
        A::AttachVolume => waiting!(volumes::attach),
        A::CreateKeyPair => waiting!(key_pairs::create),
        A::CreateTags => waiting!(tags::create),
        A::CreateVolume => waiting!(volumes::create),
        A::DeleteKeyPair => waiting!(key_pairs::delete),
        A::DeleteTags => waiting!(tags::delete),
        A::DeleteVolume => waiting!(volumes::delete),
        A::DeregisterImage => waiting!(images::deregister),
        A::DescribeAvailabilityZones => at_once!(regions::availability_zones),
        A::DescribeImages => at_once!(images::describe),
        A::DescribeInstanceStatus => at_once!(describe_instances::status),
        A::DescribeInstanceTypes => at_once!(instance_types::describe),
        A::DescribeInstances => at_once!(describe_instances::describe),
        A::DescribeKeyPairs => at_once!(key_pairs::describe),
        A::DescribeRegions => at_once!(regions::regions),
        A::DescribeTags => at_once!(tags::describe),
        A::DescribeVolumes => at_once!(volumes::describe),
        A::DetachVolume => waiting!(volumes::detach),
        A::GetConsoleOutput => waiting!(instances::console_output),
        A::ImportKeyPair => waiting!(key_pairs::import),
        A::RebootInstances => waiting!(instances::reboot),
        A::RegisterImage => waiting!(images::register),
        A::RunInstances => waiting!(run_instances::run),
        A::StartInstances => waiting!(instances::start),
        A::StopInstances => waiting!(instances::stop),
        A::TerminateInstances => waiting!(instances::terminate),
    })
}

#[async_trait::async_trait]
impl Api for Cloud {
    fn verifier(&self) -> &Verifier {
        &self.verifier
    }
    fn directory(&self) -> &Directory {
        &self.directory
    }
    fn trail(&self) -> Option<&Trail> {
        self.trail.as_ref()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn region(&self) -> &str {
        &self.region
    }
    fn answered(&self, action: &str, code: &'static str, took: Duration) {
        self.metrics.answered(action, code, took);
    }
    async fn act(&self, asked: Asked<'_>) -> ApiResult<String> {
        let Asked { service, action, tree, caller, request_id, version, host } = asked;
        if service != "ec2" {
            return crate::identity::alone::act(&self.directory, service, action, tree, &caller, request_id).await;
        }
        self.judge(&caller, action, tree)?;
        // The cloud reads an image's object itself, whoever asked: not for one who may not read it.
        if let Some(location) = tree.at("ImageLocation").filter(|_| action == "RegisterImage") {
            images::may_read(self, &caller, location, request_id).await?;
        }
        let call = Call { cloud: self, key: caller.key, request_id: request_id.to_owned(), version, host };
        ec2_action(&call, action, tree).await
    }
}

fn not_served(name: &str, known: &[&str]) -> ApiError {
    if known.binary_search(&name).is_ok() {
        return ApiError::unsupported(format!("The action {name}"));
    }
    let shown: String = name.chars().take(100).collect();
    ApiError::new(Code::InvalidAction, format!("The action {shown} is not valid for this web service."))
}

/// Which operation a request was parsed for.
struct Op<R>(std::marker::PhantomData<fn(R)>);

fn parse<R: Operation>(tree: &Tree) -> ApiResult<(R, Op<R>)> {
    let request = R::from_query(&tree.query())?;
    if let Some(unknown) = tree.unread() {
        return Err(Invalid::Unknown(unknown).into());
    }
    if request.dry_run() {
        let message = "Request would have succeeded, but DryRun flag is set.";
        return Err(ApiError::new(Code::DryRunOperation, message));
    }
    Ok((request, Op(std::marker::PhantomData)))
}

impl<R: Operation> Op<R> {
    /// The answer in the `ec2` protocol.
    fn answer(self, call: &Call<'_>, output: &R::Output) -> String {
        let version = call.version.as_deref().unwrap_or(ec2::API_VERSION);
        let namespace = format!("http://ec2.amazonaws.com/doc/{version}/");
        Xml::document(&format!("{}Response", R::NAME), Some(&namespace), |w| {
            w.element("requestId", |w| w.text(&call.request_id));
            output.to_xml(w);
        })
    }
}

/// What a ClientToken is remembered with: a hash over all parameters but the token itself.
pub fn fingerprint(request: &impl serde::Serialize) -> String {
    // Requests are plain data.
    let json = serde_json::to_vec(request).unwrap_or_default();
    hex::encode(Sha256::digest(json))
}

/// What an earlier call with this token made.
///
/// # Errors
/// The token was used with other parameters, or is too long.
pub fn earlier(
    txn: &mut Txn<'_>,
    account: &AccountId,
    action: &str,
    token: Option<&str>,
    fingerprint: &str,
) -> ApiResult<Option<String>> {
    let Some(token) = token else { return Ok(None) };
    if token.chars().count() > 64 {
        return Err(ApiError::value("clientToken", token, "It must not be longer than 64 characters."));
    }
    match txn.get::<Token>(&Token::key(account, action, token)) {
        None => Ok(None),
        Some(used) if used.fingerprint == fingerprint => Ok(Some(used.result.clone())),
        Some(_) => Err(ApiError::new(
            Code::IdempotentParameterMismatch,
            format!("The client token '{token}' was used before with other parameters"),
        )),
    }
}

/// Tags of the resource type `wanted` out of tag specifications, checked; types not in `allowed` are refused.
pub fn specified_tags(
    specifications: &[ec2::TagSpecification],
    wanted: ec2::ResourceType,
    allowed: &[ec2::ResourceType],
) -> ApiResult<Tags> {
    let mut out = Tags::new();
    for specification in specifications {
        let kind = specification.resource_type.ok_or_else(|| ApiError::missing("TagSpecification.ResourceType"))?;
        if !allowed.contains(&kind) {
            let message = format!("'{kind}' is not a valid taggable resource type for this operation.");
            return Err(ApiError::new(Code::InvalidParameterValue, message));
        }
        if kind == wanted {
            for tag in &specification.tags {
                let (key, value) = tags::checked(tag)?;
                if out.insert(key.clone(), value).is_some() {
                    let message = format!("Duplicate tag key '{key}' specified.");
                    return Err(ApiError::new(Code::InvalidParameterValue, message));
                }
            }
        }
    }
    tags::count_checked(&out)?;
    Ok(out)
}

/// Tags as answers carry them; absent when there are none.
pub fn tag_set(tags: &Tags) -> Option<Vec<ec2::Tag>> {
    let tag = |(k, v): (&String, &String)| ec2::Tag { key: Some(k.clone()), value: Some(v.clone()) };
    (!tags.is_empty()).then(|| tags.iter().map(tag).collect())
}
