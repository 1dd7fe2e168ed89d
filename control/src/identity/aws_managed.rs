//! AWS's own managed policies that this cloud knows; nobody changes them.

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct AwsManaged {
    /// Its name.
    pub name: &'static str,
    /// `/`, `/job-function/`, ...
    pub path: &'static str,
    /// Its document.
    pub document: &'static str,
}

impl AwsManaged {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::aws:policy{}{}", self.path, self.name)
    }
}

macro_rules! allows {
    ($($action:literal),+) => {
        concat!(r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["#, allows!(@list $($action),+),
            r#"],"Resource":"*"}]}"#)
    };
    (@list $first:literal $(, $rest:literal)*) => { concat!("\"", $first, "\"" $(, ",\"", $rest, "\"")*) };
}

/// All, sorted by name.
pub const ALL: &[AwsManaged] = &[
    AwsManaged { name: "AdministratorAccess", path: "/", document: allows!("*") },
    AwsManaged {
        name: "AmazonEC2FullAccess",
        path: "/",
        document: allows!("ec2:*", "elasticloadbalancing:*", "cloudwatch:*", "autoscaling:*"),
    },
    AwsManaged {
        name: "AmazonEC2ReadOnlyAccess",
        path: "/",
        document: allows!(
            "ec2:Describe*",
            "ec2:Get*",
            "elasticloadbalancing:Describe*",
            "cloudwatch:Describe*",
            "autoscaling:Describe*"
        ),
    },
    AwsManaged { name: "AmazonS3FullAccess", path: "/", document: allows!("s3:*", "s3-object-lambda:*") },
    AwsManaged { name: "AmazonS3ReadOnlyAccess", path: "/", document: allows!("s3:Get*", "s3:List*", "s3:Describe*") },
    AwsManaged { name: "IAMFullAccess", path: "/", document: allows!("iam:*") },
    AwsManaged {
        name: "IAMReadOnlyAccess",
        path: "/",
        document: allows!(
            "iam:Get*",
            "iam:List*",
            "iam:GenerateCredentialReport",
            "iam:SimulateCustomPolicy",
            "iam:SimulatePrincipalPolicy"
        ),
    },
    AwsManaged {
        name: "PowerUserAccess",
        path: "/",
        document: r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":["iam:*","organizations:*","account:*"],"Resource":"*"},{"Effect":"Allow","Action":["iam:CreateServiceLinkedRole","iam:DeleteServiceLinkedRole","iam:ListRoles"],"Resource":"*"}]}"#,
    },
    AwsManaged {
        name: "ReadOnlyAccess",
        path: "/",
        document: allows!(
            "ec2:Describe*",
            "ec2:Get*",
            "s3:Get*",
            "s3:List*",
            "iam:Get*",
            "iam:List*",
            "sts:GetCallerIdentity"
        ),
    },
];

/// The one with this ARN.
pub fn find(arn: &str) -> Option<&'static AwsManaged> {
    let rest = arn.strip_prefix("arn:aws:iam::aws:policy")?;
    ALL.iter().find(|p| rest.strip_prefix(p.path) == Some(p.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use karri_base::aws::policy::{Policy, Use};

    #[test]
    fn all_are_policies_and_found_by_arn() {
        assert!(ALL.is_sorted_by_key(|p| p.name));
        for policy in ALL {
            Policy::parse(policy.document, Use::Managed).expect(policy.name);
            assert_eq!(find(&policy.arn()).expect("found").name, policy.name);
        }
        assert!(find("arn:aws:iam::aws:policy/None").is_none());
    }
}
