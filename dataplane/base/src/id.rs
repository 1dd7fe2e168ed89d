//! Resource ids in AWS's form: a prefix and 17 lower-case hexadecimal digits (`i-0123456789abcdef0`).
//!
//! Each kind is a type of its own, so an attachment cannot be handed a volume where an instance belongs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind} id: want \"{prefix}-\" and 8 or 17 hexadecimal digits")]
pub struct BadId {
    /// The text as given.
    pub text: String,
    /// Article and noun, for the message.
    pub kind: &'static str,
    /// The prefix that was wanted.
    pub prefix: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix, without the dash.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh id from 68 random bits.
            pub fn random() -> Self {
                Self::from_bits(rand::random())
            }

            /// The id with these bits; the low 68 count.
            pub fn from_bits(bits: u128) -> Self {
                Self(format!(concat!($prefix, "-{:017x}"), bits & ((1 << 68) - 1)))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let digits = text.strip_prefix(concat!($prefix, "-"));
                match digits {
                    Some(d) if (d.len() == 17 || d.len() == 8)
                        && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
                        Ok(Self(text.to_owned())),
                    _ => Err(BadId { text: text.to_owned(), kind: $kind, prefix: $prefix }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> { text.parse() }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String { id.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str { &self.0 }
        }
    )*};
}

ids! {
    /// An EC2 instance.
    InstanceId "i" "an instance";
    /// One RunInstances call's group of instances.
    ReservationId "r" "a reservation";
    /// An EBS volume.
    VolumeId "vol" "a volume";
    /// An EBS snapshot.
    SnapshotId "snap" "a snapshot";
    /// A machine image.
    ImageId "ami" "an image";
    /// A kernel image.
    KernelId "aki" "a kernel";
    /// A ramdisk image.
    RamdiskId "ari" "a ramdisk";
    /// A key pair.
    KeyPairId "key" "a key pair";
    /// A security group.
    SecurityGroupId "sg" "a security group";
    /// A network interface.
    NetworkInterfaceId "eni" "a network interface";
    /// A virtual private cloud.
    VpcId "vpc" "a VPC";
    /// A subnet.
    SubnetId "subnet" "a subnet";
}

/// An account number: 12 decimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

impl AccountId {
    /// The account as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        if text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId { text: text.to_owned(), kind: "an account", prefix: "12 digits" })
        }
    }
}
impl TryFrom<String> for AccountId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}
impl From<AccountId> for String {
    fn from(id: AccountId) -> String {
        id.0
    }
}
impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_awss_form_and_keep_their_kind() {
        let id = InstanceId::from_bits(0x1234_5678_9abc_def0);
        assert_eq!(id.as_str(), "i-0123456789abcdef0");
        assert_eq!("i-0123456789abcdef0".parse::<InstanceId>().unwrap(), id);
        for bad in ["", "i-", "i-xyz", "vol-0123456789abcdef0", "i-0123456789ABCDEF0", "i-0123456789abcdef01"] {
            let e = bad.parse::<InstanceId>().unwrap_err();
            assert!(e.to_string().contains("an instance id"), "{e}");
        }
        assert!("12345678901".parse::<AccountId>().is_err());
        assert!("123456789012".parse::<AccountId>().is_ok());
    }
}
