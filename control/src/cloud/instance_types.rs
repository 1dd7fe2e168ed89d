//! The instance types on offer: AWS's names with AWS's virtual CPUs and memory, so that templates written for AWS run.

use karri_base::units::MIB;

/// A type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// Such as `t3.nano`.
    pub name: &'static str,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl InstanceType {
    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) * MIB
    }
    /// `t3` of `t3.nano`.
    pub fn family(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }
    /// False for the generations that AWS calls previous.
    pub fn is_current(&self) -> bool {
        !matches!(self.family(), "m1")
    }
    /// `t2`, `t3`, `t3a`.
    pub fn is_burstable(&self) -> bool {
        self.family().starts_with('t')
    }
}

/// What a launch without a type gets: the smallest, as a private cloud has no bill to make one think twice.
pub const DEFAULT: &str = "t3.nano";

/// All types on offer, by family and size.
pub const ALL: &[InstanceType] = &[
    of("m1.small", 1, 1740),
    of("m1.medium", 1, 3788),
    of("m1.large", 2, 7680),
    of("m1.xlarge", 4, 15360),
    of("t2.nano", 1, 512),
    of("t2.micro", 1, 1024),
    of("t2.small", 1, 2048),
    of("t2.medium", 2, 4096),
    of("t2.large", 2, 8192),
    of("t2.xlarge", 4, 16384),
    of("t2.2xlarge", 8, 32768),
    of("t3.nano", 2, 512),
    of("t3.micro", 2, 1024),
    of("t3.small", 2, 2048),
    of("t3.medium", 2, 4096),
    of("t3.large", 2, 8192),
    of("t3.xlarge", 4, 16384),
    of("t3.2xlarge", 8, 32768),
    of("t3a.nano", 2, 512),
    of("t3a.micro", 2, 1024),
    of("t3a.small", 2, 2048),
    of("t3a.medium", 2, 4096),
    of("t3a.large", 2, 8192),
    of("t3a.xlarge", 4, 16384),
    of("t3a.2xlarge", 8, 32768),
    of("m5.large", 2, 8192),
    of("m5.xlarge", 4, 16384),
    of("m5.2xlarge", 8, 32768),
    of("m5.4xlarge", 16, 65536),
    of("m5.8xlarge", 32, 131_072),
    of("m5.12xlarge", 48, 196_608),
    of("m5.16xlarge", 64, 262_144),
    of("m5.24xlarge", 96, 393_216),
    of("m6i.large", 2, 8192),
    of("m6i.xlarge", 4, 16384),
    of("m6i.2xlarge", 8, 32768),
    of("m6i.4xlarge", 16, 65536),
    of("c5.large", 2, 4096),
    of("c5.xlarge", 4, 8192),
    of("c5.2xlarge", 8, 16384),
    of("c5.4xlarge", 16, 32768),
    of("c5.9xlarge", 36, 73728),
    of("c6i.large", 2, 4096),
    of("c6i.xlarge", 4, 8192),
    of("c6i.2xlarge", 8, 16384),
    of("c6i.4xlarge", 16, 32768),
    of("r5.large", 2, 16384),
    of("r5.xlarge", 4, 32768),
    of("r5.2xlarge", 8, 65536),
    of("r5.4xlarge", 16, 131_072),
    of("r6i.large", 2, 16384),
    of("r6i.xlarge", 4, 32768),
    of("r6i.2xlarge", 8, 65536),
    of("r6i.4xlarge", 16, 131_072),
];

const fn of(name: &'static str, vcpus: u32, memory_mib: u32) -> InstanceType {
    InstanceType { name, vcpus, memory_mib }
}

/// The type of this name.
pub fn find(name: &str) -> Option<&'static InstanceType> {
    ALL.iter().find(|t| t.name == name)
}
