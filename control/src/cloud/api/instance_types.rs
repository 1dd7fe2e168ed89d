//! DescribeInstanceTypes.

use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::instance_types::{ALL, InstanceType, find};
use super::super::records::Tags;
use super::Call;
use super::filter::{Filters, one};
use super::page::{Ask, page};

const FILTERS: &[&str] = &[
    "auto-recovery-supported",
    "bare-metal",
    "burstable-performance-supported",
    "current-generation",
    "dedicated-hosts-supported",
    "ebs-info.encryption-support",
    "ebs-info.nvme-support",
    "free-tier-eligible",
    "hibernation-supported",
    "hypervisor",
    "instance-storage-supported",
    "instance-type",
    "memory-info.size-in-mib",
    "processor-info.supported-architecture",
    "supported-boot-mode",
    "supported-root-device-type",
    "supported-usage-class",
    "supported-virtualization-type",
    "vcpu-info.default-cores",
    "vcpu-info.default-threads-per-core",
    "vcpu-info.default-vcpus",
];

fn threads_per_core(t: &InstanceType) -> u32 {
    if t.vcpus.is_multiple_of(2) && t.family() != "t2" && t.family() != "m1" { 2 } else { 1 }
}

fn filter_values(t: &InstanceType, filter: &str) -> Vec<String> {
    one(match filter {
        "burstable-performance-supported" => Some(t.is_burstable().to_string()),
        "current-generation" => Some(t.is_current().to_string()),
        "ebs-info.encryption-support" => Some("unsupported".into()),
        "ebs-info.nvme-support" => Some("unsupported".into()),
        "auto-recovery-supported"
        | "bare-metal"
        | "dedicated-hosts-supported"
        | "free-tier-eligible"
        | "hibernation-supported"
        | "instance-storage-supported" => Some("false".into()),
        "hypervisor" => Some("nitro".into()),
        "instance-type" => Some(t.name.into()),
        "memory-info.size-in-mib" => Some(t.memory_mib.to_string()),
        "processor-info.supported-architecture" => Some("x86_64".into()),
        "supported-boot-mode" => Some("legacy-bios".into()),
        "supported-root-device-type" => Some("ebs".into()),
        "supported-usage-class" => Some("on-demand".into()),
        "supported-virtualization-type" => Some("hvm".into()),
        "vcpu-info.default-cores" => Some((t.vcpus / threads_per_core(t)).to_string()),
        "vcpu-info.default-threads-per-core" => Some(threads_per_core(t).to_string()),
        "vcpu-info.default-vcpus" => Some(t.vcpus.to_string()),
        _ => None,
    })
}

fn shown(t: &InstanceType) -> ec2::InstanceTypeInfo {
    let threads = threads_per_core(t);
    ec2::InstanceTypeInfo {
        instance_type: Some(t.name.into()),
        current_generation: Some(t.is_current()),
        free_tier_eligible: Some(false),
        supported_usage_classes: Some(vec![ec2::UsageClassType::OnDemand]),
        supported_root_device_types: Some(vec![ec2::RootDeviceType::Ebs]),
        supported_virtualization_types: Some(vec![ec2::VirtualizationType::Hvm]),
        bare_metal: Some(false),
        hypervisor: Some(ec2::InstanceTypeHypervisor::Nitro),
        processor_info: Some(ec2::ProcessorInfo {
            supported_architectures: Some(vec![ec2::ArchitectureType::X8664]),
            ..Default::default()
        }),
        v_cpu_info: Some(ec2::VCpuInfo {
            default_v_cpus: Some(t.vcpus as i32),
            default_cores: Some((t.vcpus / threads) as i32),
            default_threads_per_core: Some(threads as i32),
            ..Default::default()
        }),
        memory_info: Some(ec2::MemoryInfo { size_in_mi_b: Some(i64::from(t.memory_mib)) }),
        instance_storage_supported: Some(false),
        ebs_info: Some(ec2::EbsInfo {
            ebs_optimized_support: Some(ec2::EbsOptimizedSupport::Default),
            encryption_support: Some(ec2::EbsEncryptionSupport::Unsupported),
            nvme_support: Some(ec2::EbsNvmeSupport::Unsupported),
            ..Default::default()
        }),
        network_info: Some(ec2::NetworkInfo {
            network_performance: Some("Up to 10 Gigabit".into()),
            maximum_network_interfaces: Some(1),
            ipv4_addresses_per_interface: Some(1),
            ipv6_addresses_per_interface: Some(0),
            ipv6_supported: Some(false),
            ena_support: Some(ec2::EnaSupport::Unsupported),
            efa_supported: Some(false),
            ..Default::default()
        }),
        hibernation_supported: Some(false),
        burstable_performance_supported: Some(t.is_burstable()),
        dedicated_hosts_supported: Some(false),
        auto_recovery_supported: Some(false),
        supported_boot_modes: Some(vec![ec2::BootModeType::LegacyBios]),
        ..Default::default()
    }
}

/// DescribeInstanceTypes.
pub fn describe(
    call: &Call<'_>,
    request: ec2::DescribeInstanceTypesRequest,
) -> ApiResult<ec2::DescribeInstanceTypesResult> {
    let filters = Filters::new(request.filters, FILTERS, false)?;
    let unknown: Vec<&str> = request.instance_types.iter().map(String::as_str).filter(|n| find(n).is_none()).collect();
    if !unknown.is_empty() {
        let message = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
        return Err(ApiError::new(Code::InvalidInstanceType, message));
    }
    let none = Tags::new();
    let mut types: Vec<&InstanceType> = ALL
        .iter()
        .filter(|t| request.instance_types.is_empty() || request.instance_types.iter().any(|n| n == t.name))
        .filter(|t| filters.keep(&none, |f| filter_values(t, f)))
        .collect();
    types.sort_by_key(|t| t.name);
    let ask = Ask {
        listing: call.listing("DescribeInstanceTypes"),
        max: request.max_results,
        range: 5..=100,
        default: 100,
        token: request.next_token.as_deref(),
    };
    let (types, next_token) = page(types, &ask, |t| t.name.to_owned())?;
    Ok(ec2::DescribeInstanceTypesResult { instance_types: types.into_iter().map(shown).collect(), next_token })
}
