//! Where packs go, and what coding them takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kith_object::coding;
use kith_object::id::{Cid, DeviceId, PackId, SpaceId};
use kith_object::pack::{Class, Header, PackWriter};
use kith_protocol::holdings::{HoldingTag, TagSet};
use kith_protocol::placement::{Holder, Placement, Policy, Redundancy, SCHEMES};

use crate::{Measured, peak_bytes};

/// Devices over four sites, each with another capacity.
fn holders(count: usize) -> Vec<Holder> {
    let name = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
    (0..count)
        .map(|n| Holder {
            device: DeviceId(name(n)),
            site: format!("site {}", n % 4),
            capacity: (100 + 70 * (n as u64 % 5)) << 30,
        })
        .collect()
}

/// What placing so many packs on so many devices takes.
///
/// # Panics
/// If they cannot be placed.
pub fn place(packs: usize, devices: usize, redundancy: Redundancy) -> Duration {
    let policy = Policy {
        redundancy: Some(redundancy),
        ..Policy::default()
    };
    let placement = Placement::new(&holders(devices), &policy).expect("there are enough");
    let named: Vec<PackId> = (0..packs)
        .map(|n| PackId(*blake3::hash(&n.to_le_bytes()).as_bytes()))
        .collect();
    let began = Instant::now();
    let mut pieces = 0;
    for pack in &named {
        pieces += std::hint::black_box(placement.holders(pack)).len();
    }
    let took = began.elapsed();
    assert_eq!(pieces, packs * redundancy.pieces());
    took
}

/// A pack of such bytes, in blocks of 100,000.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    let header = Header::new(Class::Bulk, SpaceId([1; 32]));
    let mut writer = PackWriter::new(header);
    let mut file = header.encode().to_vec();
    for block in bytes.chunks(100_000) {
        let head = PackWriter::record_head(&Cid::of_block(block), block.len());
        file.extend_from_slice(head.bytes());
        file.extend_from_slice(block);
        writer.push(&head, block);
    }
    file.extend_from_slice(&writer.footer().0);
    file
}

/// What each scheme takes to code a pack, names included, and to restore one of its shards when all that can be lost of the data is, from as few as that takes: bytes of the pack, and of the shard.
///
/// # Panics
/// If it fails, or restores something else.
pub fn code(pack: &[u8]) -> Vec<((u8, u8), Measured, Measured)> {
    let measured = |(needed, spare): (u8, u8)| {
        let (needed, spare) = (usize::from(needed), usize::from(spare));
        let began = Instant::now();
        let (coding, shards) = coding::code(pack, needed, spare).expect("it is coded");
        let encode = Measured {
            bytes: pack.len() as u64,
            took: began.elapsed(),
        };
        let files = shards.iter().map(|shard| shard.bytes.clone()).enumerate();
        let have: BTreeMap<usize, Bytes> = files.skip(spare).collect();
        let began = Instant::now();
        let restored = coding.restore(0, &have).expect("it is restored");
        let decode = Measured {
            bytes: restored.len() as u64,
            took: began.elapsed(),
        };
        let first = shards.first().expect("there is one");
        assert!(restored == first.bytes, "the same bytes");
        (encode, decode)
    };
    SCHEMES
        .into_iter()
        .map(|scheme| {
            let (encode, decode) = measured(scheme);
            (scheme, encode, decode)
        })
        .collect()
}

/// Bytes of memory that a million holdings of 16 devices take in another one.
///
/// # Errors
/// If the system does not tell.
pub fn holdings_memory(each: u64) -> std::io::Result<u64> {
    let before = peak_bytes("self")?;
    let sets: Vec<TagSet> = (0..16)
        .map(|device| {
            let tags = (0..each).map(|n| {
                let name = blake3::hash(&(device * each + n).to_le_bytes());
                HoldingTag::of(name.as_bytes())
            });
            TagSet::of(tags.collect())
        })
        .collect();
    let after = peak_bytes("self")?;
    assert!(sets.iter().all(|set| set.len() as u64 == each));
    Ok(after.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sizes_run() {
        place(100, 16, Redundancy::Erasure(4, 2));
        holdings_memory(100).expect("the system tells");
        assert_eq!(
            code(&pack(&crate::kernels::random(3_000_000))).len(),
            SCHEMES.len()
        );
    }
}
