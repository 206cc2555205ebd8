//! Where packs go, and what coding them takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kith_object::erasure::Scheme;
use kith_object::id::{DeviceId, PackId};
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

/// What each scheme takes to code a pack, and to restore one of its shards whose data is lost, from as few as that takes: bytes of the pack, and of the shard.
///
/// # Panics
/// If it fails, or restores something else.
pub fn code(pack: &[u8]) -> Vec<((u8, u8), Measured, Measured)> {
    let measured = |(needed, spare): (u8, u8)| {
        let of = Scheme::new(usize::from(needed), usize::from(spare), pack.len());
        let scheme = of.expect("a scheme");
        let began = Instant::now();
        let coded = scheme.encode(pack).expect("it is coded");
        let encode = Measured {
            bytes: pack.len() as u64,
            took: began.elapsed(),
        };
        // All that can be lost of the data is.
        let slice = |shard: usize| {
            let begin = (shard * scheme.slice()).min(pack.len());
            let end = (begin + scheme.slice()).min(pack.len());
            pack.get(begin..end).expect("within the pack")
        };
        let kept = usize::from(spare)..usize::from(needed);
        let data = kept.map(|shard| (shard, slice(shard)));
        let parity = (usize::from(needed)..).zip(coded.parity.iter().map(AsRef::as_ref));
        let have: BTreeMap<usize, &[u8]> = data.chain(parity).take(usize::from(needed)).collect();
        let began = Instant::now();
        let restored = scheme.restore(0, 0..scheme.len(0), &have);
        let restored = restored.expect("it is restored");
        let decode = Measured {
            bytes: restored.len() as u64,
            took: began.elapsed(),
        };
        assert!(restored == slice(0), "the same bytes");
        ((needed, spare), encode, decode)
    };
    SCHEMES.into_iter().map(measured).collect()
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
        assert_eq!(code(&crate::kernels::random(300_000)).len(), SCHEMES.len());
    }
}
