//! The index of the store with many blocks: what it answers of blocks that are not here, what it keeps in memory, how soon it is open.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use kith_node::store::FjallIndex;
use kith_object::id::{Cid, PackId};
use kith_object::index::{Index, PackInfo};
use kith_object::key::Secret;
use kith_object::pack::{BlockAt, Class};

/// Blocks of a generated pack: 512 of 32 KiB make 16 MiB.
const PACK_BLOCKS: u64 = 512;
/// Length of a generated block.
const BLOCK_BYTES: u32 = 32 << 10;

/// What was measured of an index.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Blocks put in, each second.
    pub inserts: f64,
    /// Opening it again, until it answers.
    pub reopen: Duration,
    /// Until the filter is in use as well.
    pub filtered: Duration,
    /// Unknown blocks asked for, each second, with the filter.
    pub unknown: f64,
    /// Known blocks asked for, each second.
    pub known: f64,
    /// Resident memory of the process at the end.
    pub resident_bytes: u64,
}

fn cid(number: u64) -> Cid {
    Cid::from_digest(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// Puts in the packs that the index does not know.
fn take_up(index: &FjallIndex, blocks: u64) {
    let known = index.packs().expect("an answer").into_iter();
    let known: BTreeSet<PackId> = known.map(|(pack, _)| pack).collect();
    let mut next = 0;
    while next < blocks {
        let end = blocks.min(next + PACK_BLOCKS);
        let pack = PackId(*blake3::hash(&end.to_be_bytes()).as_bytes());
        if !known.contains(&pack) {
            let in_pack: Vec<BlockAt> = (next..end)
                .zip(0_u32..)
                .map(|(number, at)| BlockAt {
                    cid: cid(number),
                    offset: 101 + at * (BLOCK_BYTES + 37),
                    len: BLOCK_BYTES,
                })
                .collect();
            let info = PackInfo {
                class: Class::Bulk,
                blocks: u32::try_from(in_pack.len()).expect("a pack of 512"),
                bytes: u64::from(BLOCK_BYTES) * in_pack.len() as u64,
            };
            index
                .insert_pack(&pack, info, &in_pack)
                .expect("an index that takes packs");
        }
        next = end;
    }
}

/// Measures an index of so many blocks in a folder; `asked` questions of each kind.
///
/// # Panics
/// If the index fails, or denies a block.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn index(folder: &Path, blocks: u64, asked: u64) -> Figures {
    let key = Secret::new([3; 32]);
    let index = FjallIndex::open(folder, &key).expect("an index that opens");
    let began = Instant::now();
    take_up(&index, blocks);
    let inserts = blocks as f64 / began.elapsed().as_secs_f64().max(1e-9);
    drop(index);
    let began = Instant::now();
    let index = FjallIndex::open(folder, &key).expect("an index that opens");
    // What its tables did not have yet, as the opening of the store does it.
    take_up(&index, blocks);
    let found = index.locations(&cid(0)).expect("an answer");
    assert_eq!(found.len(), 1, "what was put is there at once");
    let reopen = began.elapsed();
    while !index.has_filter() {
        std::thread::yield_now();
    }
    let filtered = began.elapsed();
    let ask = |from: u64, step: u64| {
        // Names come with the question; making them is no part of it.
        let names: Vec<Cid> = (0..asked).map(|at| cid(from + at * step)).collect();
        let began = Instant::now();
        let found = names
            .iter()
            .filter(|cid| !index.locations(cid).expect("an answer").is_empty())
            .count();
        (
            found,
            asked as f64 / began.elapsed().as_secs_f64().max(1e-9),
        )
    };
    let (found, unknown) = ask(1 << 40, 1);
    assert_eq!(found, 0, "nothing is there that was not put");
    let (found, known) = ask(0, (blocks / asked.max(1)).max(1));
    assert_eq!(found as u64, asked.min(blocks), "no block is denied");
    Figures {
        inserts,
        reopen,
        filtered,
        unknown,
        known,
        resident_bytes: crate::resident_bytes("self"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn index_answers_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let figures = super::index(folder.path(), 20_000, 5_000);
        assert!(figures.unknown > 0.0 && figures.known > 0.0);
    }
}
