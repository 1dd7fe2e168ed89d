//! Hostile bytes against the parsers of services, through their public doors. How they are made, how long they go on and
//! how a failure is replayed: `karri_base::fuzz`, which the crates' own `fuzz` modules use too.

use karri_base::fuzz::smoke;

#[test]
fn fuzz_virtio_ring() {
    let mut sample = vec![0; 8 + 0x4000];
    // One chain: a 16-byte header and a status byte, available once.
    sample[8..24].copy_from_slice(&[0, 0x40, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0]);
    sample[24..40].copy_from_slice(&[0, 0x50, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    sample[8 + 0x1002] = 1;
    sample[3] = 4;
    smoke("fuzz_virtio_ring", &[&sample], |bytes| {
        karri_blockstore::virtio::fuzz::ring(bytes);
    });
}

#[test]
fn fuzz_volume_map_record() {
    smoke("fuzz_volume_map_record", &[b"sixteen byte key", &[0; 64]], |bytes| {
        let (key, value) = bytes.split_at(bytes.len().min(16));
        let _ = karri_blockstore::map::record::parse_key(key);
        let _ = karri_blockstore::map::record::decode(key, value);
    });
}

#[test]
fn fuzz_ec2_query() {
    let sample = b"Action=RunInstances&Version=2016-11-15&ImageId=ami-0123456789abcdef0&MinCount=1&MaxCount=2\
        &TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b%20c";
    smoke("fuzz_ec2_query", &[sample], |bytes| {
        let _ = karri_control::wire::query::decode_form(bytes);
    });
}
