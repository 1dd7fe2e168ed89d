//! Private addresses, until the overlay brings real subnets: each account has 10.0.0.0/16 to itself.

use std::sync::atomic::Ordering;

use karri_base::id::AccountId;

use super::Cloud;
use super::error::{ApiError, ApiResult, Code};
use super::records::Lease;
use super::store::Txn;

/// The first four addresses and the last are not given out, as in AWS's subnets.
const FIRST: u32 = 4;
const LAST: u32 = 0xfffe;

fn address(n: u32) -> String {
    format!("10.0.{}.{}", n >> 8, n & 0xff)
}

/// Free addresses of the account's network; the caller leases them in the same change.
///
/// # Errors
/// `InsufficientFreeAddressesInSubnet`.
pub fn allocate(cloud: &Cloud, txn: &mut Txn<'_>, account: &AccountId, count: usize) -> ApiResult<Vec<String>> {
    let span = LAST - FIRST + 1;
    // Each call begins where the last one ended, so that calls at the same time do not contend for one address.
    let from = cloud.next_address.fetch_add(count as u32, Ordering::Relaxed);
    let mut free = Vec::with_capacity(count);
    for offset in 0..span {
        if free.len() == count {
            break;
        }
        let candidate = address(FIRST + from.wrapping_add(offset) % span);
        let key = Lease::key(account, &candidate);
        // Looked at first without a check: only what is taken here must still be free at the commit.
        if cloud.store.get::<Lease>(&key).is_none() && txn.get::<Lease>(&key).is_none() {
            free.push(candidate);
        }
    }
    if free.len() < count {
        let message = format!("There are not enough free addresses in 10.0.0.0/16 for {count} instances");
        return Err(ApiError::new(Code::InsufficientFreeAddresses, message));
    }
    Ok(free)
}

/// A random unicast address, locally administered, in AWS's style.
pub fn mac() -> String {
    let b: [u8; 5] = rand::random();
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4])
}
