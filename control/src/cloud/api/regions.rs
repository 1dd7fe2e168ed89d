//! Regions and availability zones: one of each, as the configuration names them.

use crate::wire::generated::ec2;

use super::super::error::{ApiError, ApiResult, Code};
use super::super::records::Tags;
use super::Call;
use super::filter::{Filters, one};

/// DescribeRegions.
pub fn regions(call: &Call<'_>, request: ec2::DescribeRegionsRequest) -> ApiResult<ec2::DescribeRegionsResult> {
    let filters = Filters::new(request.filters, &["endpoint", "opt-in-status", "region-name"], false)?;
    let name = &call.cloud.region;
    if let Some(unknown) = request.region_names.iter().find(|n| *n != name) {
        let message = format!("Invalid region names: [{unknown}]");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    // There is one region, and its endpoint is the one that was asked.
    let endpoint = call.host.clone();
    let status = "opt-in-not-required";
    let keep = filters.keep(&Tags::new(), |f| match f {
        "endpoint" => vec![endpoint.clone()],
        "opt-in-status" => vec![status.to_owned()],
        _ => vec![name.clone()],
    });
    let region = ec2::Region {
        region_name: Some(name.clone()),
        endpoint: Some(endpoint.clone()),
        opt_in_status: Some(status.to_owned()),
        ..Default::default()
    };
    Ok(ec2::DescribeRegionsResult { regions: if keep { vec![region] } else { Vec::new() } })
}

/// The id that goes with the configured zone's name: `us-east-1a` is `use1-az1`.
pub fn zone_id(zone: &str) -> String {
    let parts: Vec<&str> = zone.split('-').collect();
    let letter = zone.bytes().last().filter(u8::is_ascii_lowercase).map_or(1, |b| b - b'a' + 1);
    match parts[..] {
        [country, area, number] => {
            let digits: String = number.chars().filter(char::is_ascii_digit).collect();
            format!("{country}{}{digits}-az{letter}", area.chars().next().unwrap_or('x'))
        }
        _ => format!("{zone}-az{letter}"),
    }
}

/// DescribeAvailabilityZones.
pub fn availability_zones(
    call: &Call<'_>,
    request: ec2::DescribeAvailabilityZonesRequest,
) -> ApiResult<ec2::DescribeAvailabilityZonesResult> {
    let known = [
        "group-name",
        "message",
        "opt-in-status",
        "parent-zone-id",
        "parent-zone-name",
        "region-name",
        "state",
        "zone-id",
        "zone-name",
        "zone-type",
    ];
    let filters = Filters::new(request.filters, &known, false)?;
    let (region, name) = (&call.cloud.region, &call.cloud.zone);
    let id = zone_id(name);
    let unknown = request.zone_names.iter().find(|n| *n != name);
    if let Some(unknown) = unknown.or(request.zone_ids.iter().find(|i| **i != id)) {
        let message = format!("Invalid availability zone: [{unknown}]");
        return Err(ApiError::new(Code::InvalidParameterValue, message));
    }
    let keep = filters.keep(&Tags::new(), |f| {
        one(match f {
            "group-name" => Some(format!("{region}-zg-1")),
            "opt-in-status" => Some("opt-in-not-required".to_owned()),
            "region-name" => Some(region.clone()),
            "state" => Some("available".to_owned()),
            "zone-id" => Some(id.clone()),
            "zone-name" => Some(name.clone()),
            "zone-type" => Some("availability-zone".to_owned()),
            _ => None,
        })
    });
    let zone = ec2::AvailabilityZone {
        zone_name: Some(name.clone()),
        zone_id: Some(id.clone()),
        region_name: Some(region.clone()),
        state: Some(ec2::AvailabilityZoneState::Available),
        opt_in_status: Some(ec2::AvailabilityZoneOptInStatus::OptInNotRequired),
        messages: Some(Vec::new()),
        group_name: Some(format!("{region}-zg-1")),
        network_border_group: Some(region.clone()),
        zone_type: Some("availability-zone".to_owned()),
        ..Default::default()
    };
    Ok(ec2::DescribeAvailabilityZonesResult { availability_zones: if keep { vec![zone] } else { Vec::new() } })
}
