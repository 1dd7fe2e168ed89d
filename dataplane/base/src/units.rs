//! Quantities with their unit in the type or the name.

/// A KiB, MiB, GiB in bytes.
pub const KIB: u64 = 1 << 10;
/// A MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// A GiB in bytes.
pub const GIB: u64 = 1 << 30;

/// virtio's and ATA's sector, whatever the device's block size (virtio 1.2, 5.2.4): 512 bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Parses a size: digits and an optional `K`, `M`, `G` or `T` (powers of 1,024; a trailing `i`, `iB` or `B` is allowed).
///
/// # Errors
/// A sentence saying what was wrong.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: want digits and K, M, G or T, such as 20G");
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let n: u64 = digits.parse().map_err(|_| bad())?;
    let shift = match unit.trim_end_matches("iB").trim_end_matches('i').trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(bad()),
    };
    n.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("20G"), Ok(20 * GIB));
        assert_eq!(parse_bytes("8MiB"), Ok(8 * MIB));
        assert_eq!(parse_bytes("1Ti"), Ok(1 << 40));
        for bad in ["", "G", "1.5G", "-1", "1X", "99999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
