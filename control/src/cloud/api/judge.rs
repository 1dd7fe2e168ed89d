//! May the caller ask this of EC2? One question per resource that a request names or makes, each with the tags that the
//! request gives to that kind, and those that the resource has.

use std::slice::from_ref;

use crate::identity::authorize::{Caller, parameters_context, tags_context, tags_given};
use crate::wire::Tree;

use super::super::error::ApiResult;
use super::super::records::{Image, Instance, KeyPair, Tags, Volume};
use super::super::{Cloud, instance_types};

/// EC2's parameters that name resources, and what kinds these are; none where the id says it.
const PARAMETERS: &[(&str, &str)] = &[
    ("InstanceId", "instance"),
    ("VolumeId", "volume"),
    ("ImageId", "image"),
    ("KernelId", "image"),
    ("RamdiskId", "image"),
    ("KeyName", "key-pair"),
    ("KeyPairId", ""),
    ("ResourceId", ""),
];

/// What a request is about: `*` as the name of what it makes, no kind for what only describes.
#[derive(Debug, PartialEq, Eq)]
struct Resource {
    kind: &'static str,
    name: String,
}

impl Resource {
    fn arn(&self, caller: &Caller) -> String {
        let owner = if self.kind == "image" { "" } else { caller.account().as_str() };
        match self.kind {
            "" => "*".into(),
            kind => format!("arn:aws:ec2:{}:{owner}:{kind}/{}", caller.region, self.name),
        }
    }
}

fn kind_of(id: &str) -> &'static str {
    match id.split('-').next() {
        Some("i") => "instance",
        Some("vol") => "volume",
        Some("ami" | "aki" | "ari") => "image",
        Some("key") => "key-pair",
        Some("snap") => "snapshot",
        _ => "*",
    }
}

impl Cloud {
    /// # Errors
    /// `UnauthorizedOperation`, or what is wrong with the tags.
    pub(super) fn judge(&self, caller: &Caller, action: &str, tree: &Tree) -> ApiResult<()> {
        let tags = tags_given(tree);
        for resource in self.resources(caller, action, tree) {
            let mut context = caller.context();
            context.text("ec2:Region", self.region.as_str());
            parameters_context(&mut context, tree);
            if action == "RunInstances" && tree.at("InstanceType").is_none() {
                context.text("ec2:InstanceType", instance_types::DEFAULT);
            }
            let is_tagged = tags_context(&mut context, &tags, resource.kind)?;
            for (key, value) in self.tags_of(caller, &resource) {
                context.text(&format!("aws:ResourceTag/{key}"), value.as_str());
                context.text(&format!("ec2:ResourceTag/{key}"), value);
            }
            let arn = resource.arn(caller);
            caller.may(&format!("ec2:{action}"), from_ref(&arn), &context)?;
            // Who makes something with tags must be allowed to tag it.
            if is_tagged && !matches!(action, "CreateTags" | "DeleteTags") {
                context.text("ec2:CreateAction", action);
                caller.may("ec2:CreateTags", from_ref(&arn), &context)?;
            }
        }
        Ok(())
    }

    fn resources(&self, caller: &Caller, action: &str, tree: &Tree) -> Vec<Resource> {
        let everything = || vec![Resource { kind: "", name: "*".into() }];
        if action.starts_with("Describe") {
            return everything();
        }
        let mut out = Vec::new();
        for (parameter, kind) in PARAMETERS {
            for id in tree.peek(parameter) {
                let kind = if kind.is_empty() { kind_of(id) } else { *kind };
                // Policies know key pairs by name.
                let name = match (kind, *parameter) {
                    ("key-pair", "KeyPairId" | "ResourceId") => self.key_name(caller, id),
                    _ => None,
                };
                out.push(Resource { kind, name: name.unwrap_or_else(|| id.to_owned()) });
            }
        }
        let made: &[&'static str] = match action {
            "RunInstances" => &["instance", "volume"],
            "CreateVolume" => &["volume"],
            "RegisterImage" => &["image"],
            "CreateKeyPair" | "ImportKeyPair" if out.is_empty() => &["key-pair"],
            _ => &[],
        };
        out.extend(made.iter().map(|kind| Resource { kind, name: "*".into() }));
        if out.is_empty() { everything() } else { out }
    }

    fn key_name(&self, caller: &Caller, id: &str) -> Option<String> {
        let pairs = self.store.list::<KeyPair>();
        pairs.iter().find(|k| k.account == *caller.account() && k.id.as_str() == id).map(|k| k.name.clone())
    }

    /// The tags of what is the caller's own.
    fn tags_of(&self, caller: &Caller, resource: &Resource) -> Tags {
        let (account, name) = (caller.account(), resource.name.as_str());
        let found = match resource.kind {
            "instance" => self.store.get::<Instance>(name).filter(|i| i.account == *account).map(|i| i.tags.clone()),
            "volume" => self.store.get::<Volume>(name).filter(|v| v.account == *account).map(|v| v.tags.clone()),
            "image" => self.store.get::<Image>(name).filter(|i| i.account == *account).map(|i| i.tags.clone()),
            "key-pair" => self.store.get::<KeyPair>(&KeyPair::key(account, name)).map(|k| k.tags.clone()),
            _ => None,
        };
        found.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karri_base::aws::keys::Key;
    use karri_base::aws::policy::{Identity, Policy, Principal, Use};
    use karri_base::clock::UnixMicros;

    use super::*;
    use crate::cloud::error::Code;
    use crate::cloud::tests::{World, text};

    const ACCOUNT: &str = "123456789012";

    fn caller(statements: &str) -> Caller {
        let account = ACCOUNT.parse().unwrap();
        let arn = format!("arn:aws:iam::{ACCOUNT}:user/bob");
        let policy = Policy::parse(&format!(r#"{{"Statement":[{statements}]}}"#), Use::Managed).unwrap();
        let identity = Identity::new(Principal::user(&account, &arn, "AIDABOB"), vec![Arc::new(policy)]);
        let key = Key { access_key_id: "AKIABOB".into(), secret: String::new(), account, arn };
        let region = "us-east-1".into();
        Caller {
            key: Arc::new(key),
            identity: Arc::new(identity),
            source: None,
            secure: false,
            now: UnixMicros(0),
            region,
            decisions: Default::default(),
        }
    }

    #[tokio::test]
    async fn who_may_read_an_image_s_object() {
        let w = World::new().await;
        let cloud = w.role.cloud();
        let check = async |statements: &str, location: &str, want: Result<(), Code>| {
            let got = super::super::images::may_read(cloud, &caller(statements), location, "r").await;
            assert_eq!(got.map_err(|e| e.code), want, "{statements} {location}");
        };
        let all = r#"{"Effect":"Allow","Action":"*","Resource":"*"}"#;
        let run = r#"{"Effect":"Allow","Action":"ec2:*","Resource":"*"}"#;
        check(all, "mine/root", Ok(())).await;
        check(all, "/mine/secret", Err(Code::AccessDenied)).await;
        check(run, "mine/root", Ok(())).await;
        check(run, "other/root", Err(Code::AccessDenied)).await;
        check(all, "down/root", Err(Code::Unavailable)).await;
    }

    #[tokio::test]
    async fn what_is_judged_is_what_happens() {
        let w = World::new().await;
        let cloud = w.role.cloud();
        let may = |statements: &str, action: &str, params: &[(&str, &str)]| {
            let answer = cloud.judge(&caller(statements), action, &Tree::new(params.iter().copied()).unwrap());
            answer.map_err(|e| e.code)
        };
        let no = Err(Code::UnauthorizedOperation);
        let all = r#"{"Effect":"Allow","Action":"*","Resource":"*"}"#;
        let deny = |what: &str| format!(r#"{all},{{"Effect":"Deny","Action":"*",{what}}}"#);

        // A key pair goes by its name, however it is named.
        let made = w.ask("CreateKeyPair", &[("KeyName", "prod")]).await.unwrap();
        let id = text(&made, "keyPairId");
        let guarded = deny(r#""Resource":"arn:aws:ec2:*:*:key-pair/prod""#);
        assert_eq!(may(&guarded, "DeleteKeyPair", &[("KeyPairId", &id)]), no);
        assert_eq!(may(&guarded, "CreateTags", &[("ResourceId.1", &id), ("Tag.1.Key", "a")]), no);
        assert_eq!(may(&guarded, "DeleteKeyPair", &[("KeyName", "other")]), Ok(()));

        // What is left out has its default; a kernel is an image.
        let small = deny(r#""Resource":"*","Condition":{"StringEquals":{"ec2:InstanceType":"t3.nano"}}"#);
        assert_eq!(may(&small, "RunInstances", &[("ImageId", "ami-1")]), no);
        assert_eq!(may(&small, "RunInstances", &[("ImageId", "ami-1"), ("InstanceType", "t3.micro")]), Ok(()));
        let kernel = deny(r#""Resource":"arn:aws:ec2:*::image/aki-1""#);
        assert_eq!(may(&kernel, "RunInstances", &[("ImageId", "ami-1"), ("KernelId", "aki-1")]), no);

        // Tags count for the kind they go to, and to make something with tags is to tag it.
        let run = r#"{"Effect":"Allow","Action":"ec2:RunInstances","Resource":"*"}"#;
        let blue = r#"{"Effect":"Allow","Action":"ec2:CreateTags","Resource":"*","Condition":{"StringEquals":{"aws:RequestTag/team":"blue","ec2:CreateAction":"RunInstances"}}}"#;
        let tags = |instance: &'static str, volume: &'static str| {
            [
                ("ImageId", "ami-1"),
                ("TagSpecification.1.ResourceType", "instance"),
                ("TagSpecification.1.Tag.1.Key", "team"),
                ("TagSpecification.1.Tag.1.Value", instance),
                ("TagSpecification.2.ResourceType", "volume"),
                ("TagSpecification.2.Tag.1.Key", "team"),
                ("TagSpecification.2.Tag.1.Value", volume),
            ]
        };
        assert_eq!(may(run, "RunInstances", &tags("blue", "blue")), no);
        let both = format!("{run},{blue}");
        assert_eq!(may(&both, "RunInstances", &tags("blue", "blue")), Ok(()));
        assert_eq!(may(&both, "RunInstances", &tags("red", "blue")), no);
        assert_eq!(may(&both, "RunInstances", &tags("blue", "red")), no);
        let twice = [("ResourceId.1", "i-1"), ("Tag.2.Key", "team"), ("Tag.10.Key", "TEAM")];
        assert_eq!(may(all, "CreateTags", &twice), Err(Code::InvalidParameterValue));

        // The tags that something has.
        let volume = w.blank_volume().await;
        w.ask("CreateTags", &[("ResourceId.1", &volume), ("Tag.1.Key", "keep"), ("Tag.1.Value", "y")]).await.unwrap();
        let kept = deny(r#""Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/keep":"y"}}"#);
        assert_eq!(may(&kept, "DeleteVolume", &[("VolumeId", &volume)]), no);
        assert_eq!(may(&kept, "DeleteVolume", &[("VolumeId", "vol-1")]), Ok(()));
        let again = [("ResourceId.1", volume.as_str()), ("Tag.1.Key", "KEEP")];
        assert_eq!(w.refused("CreateTags", &again).await, Code::InvalidParameterValue);
    }
}
