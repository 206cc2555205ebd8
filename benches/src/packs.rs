//! Packs of different sizes: how fast they are written and read, how long a commit takes beside them, and what getting space back costs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kith_node::store::{DiskStore, FjallIndex, RealDisk};
use kith_object::id::{Cid, SpaceId};
use kith_object::key::{Rng, Secret};
use kith_object::pack::Class;
use kith_object::store::{Store, StoreConfig, Verified};

use crate::{Measured, quantile};

/// Least and most bytes of a block; about those of the chunks of a file.
const BLOCK_BYTES: std::ops::Range<u64> = (32 << 10)..(288 << 10);
/// Bytes of a small block that is put and flushed beside the others.
const SMALL_BYTES: usize = 1_700;
/// Part of a pack that has to be garbage before it is rewritten (`protocol/spec/garbage.md`, "Which packs").
const DEAD_LEAST: f64 = 0.5;

/// What packs of one size came to.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Writing, until all packs are closed.
    pub put: Measured,
    /// Reading all blocks in order.
    pub get: Measured,
    /// Reading them in random order.
    pub get_random: Measured,
    /// Seconds until a small block lasts while others are being written, sorted.
    pub commits: Vec<f64>,
    /// Packs made.
    pub packs: usize,
}

/// Writes and reads `bytes` of blocks in an empty folder, in packs of that size.
///
/// # Panics
/// If the store fails.
pub fn measure(home: &Path, pack_bytes: u64, bytes: u64) -> Figures {
    let disk = RealDisk::open(&home.join("packs")).expect("a folder for packs");
    let index = FjallIndex::open(&home.join("index"), &Secret::new([3; 32]));
    let config = StoreConfig {
        pack_bytes_max: pack_bytes,
        ..StoreConfig::new(SpaceId([5; 32]))
    };
    let (store, _) =
        Store::open(disk, index.expect("an index"), config).expect("a store that opens");
    let mut rng = Rng::from_seed([17; 32]);
    let ended = AtomicBool::new(false);
    let (mut names, put, mut commits) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| flush_small(&store, &ended));
        let mut names = Vec::new();
        let mut written = 0;
        // One buffer of noise, of which each block is another piece: making the noise is no part of it.
        let mut noise = vec![0; 64 << 20];
        rng.fill(&mut noise);
        let began = Instant::now();
        while written < bytes {
            let len = BLOCK_BYTES.start + rng.below(BLOCK_BYTES.end - BLOCK_BYTES.start);
            let from = place(rng.below(noise.len() as u64 - len));
            let range = from..from + place(len);
            let block = Verified::of(noise.get(range).expect("within the noise"));
            if store
                .put_verified(Class::Bulk, block)
                .expect("a block that is written")
            {
                written += len;
            }
            names.push(*block.cid());
        }
        store.close_packs().expect("packs that close");
        let took = began.elapsed();
        ended.store(true, Ordering::Release);
        let commits = beside.join().expect("a thread that ends");
        (
            names,
            Measured {
                bytes: written,
                took,
            },
            commits,
        )
    });
    commits.sort_by(f64::total_cmp);
    let get = read(&store, &names);
    for at in (1..names.len()).rev() {
        let other = place(rng.below(at as u64 + 1));
        names.swap(at, other);
    }
    let get_random = read(&store, &names);
    Figures {
        put,
        get,
        get_random,
        commits,
        packs: store.packs().expect("an answer").len(),
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).expect("a place in memory")
}

fn read(store: &DiskStore, names: &[Cid]) -> Measured {
    let began = Instant::now();
    let mut bytes = 0;
    for name in names {
        let block = store.get(name).expect("a block that is read");
        bytes += block.expect("a block that is there").len() as u64;
    }
    Measured {
        bytes,
        took: began.elapsed(),
    }
}

/// Puts small blocks of another class and flushes each, until it is told to end; answers the seconds of each.
fn flush_small(store: &DiskStore, ended: &AtomicBool) -> Vec<f64> {
    let mut rng = Rng::from_seed([19; 32]);
    let mut block = vec![0; SMALL_BYTES];
    let mut waits = Vec::new();
    while !ended.load(Ordering::Acquire) {
        rng.fill(&mut block);
        let began = Instant::now();
        store
            .put_verified(Class::Stream, Verified::of(&block))
            .expect("a block that is written");
        store.flush().expect("a block that lasts");
        waits.push(began.elapsed().as_secs_f64());
    }
    waits
}

impl Figures {
    /// The commit that this part of them does not exceed, in milliseconds.
    pub fn commit_ms(&self, part: f64) -> f64 {
        quantile(&self.commits, part) * 1e3
    }
}

/// What collecting garbage would do to packs of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collected {
    /// Bytes copied for each byte that became free.
    pub copied: f64,
    /// Part of the dead bytes that stay, in packs which are not dead enough.
    pub left: f64,
}

/// A model, not a measurement: objects of 4 KiB to 64 MiB (each doubling as likely), stored one behind the other, of which `dead_share`
/// die by chance, one by one. Packs are dropped or rewritten by the rule of the collector.
pub fn collect(pack_bytes: u64, objects: u64, dead_share: f64) -> Collected {
    let mut rng = Rng::from_seed([23; 32]);
    // Dead and live bytes of the pack that fills.
    let (mut dead, mut live) = (0_u64, 0_u64);
    let (mut copied, mut freed, mut left) = (0.0, 0.0, 0.0);
    let mut close = |dead: u64, live: u64| {
        let (dead, live) = (figure(dead), figure(live));
        if dead >= DEAD_LEAST * (dead + live) {
            copied += live;
            freed += dead;
        } else {
            left += dead;
        }
    };
    for _ in 0..objects {
        let mut len = (4 << 10) << rng.below(15);
        let dies = figure(rng.below(1 << 20)) < dead_share * figure(1 << 20);
        while len > 0 {
            let part = len.min(pack_bytes - dead - live);
            if dies {
                dead += part
            } else {
                live += part
            }
            len -= part;
            if dead + live == pack_bytes {
                close(dead, live);
                (dead, live) = (0, 0);
            }
        }
    }
    close(dead, live);
    Collected {
        copied: copied / freed.max(1.0),
        left: left / (left + freed).max(1.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn figure(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_read_back_from_packs_of_any_size() {
        for pack_bytes in [1 << 20, 4 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let figures = measure(folder.path(), pack_bytes, 10 << 20);
            assert!(figures.put.bytes >= 10 << 20);
            assert_eq!(figures.get.bytes, figures.get_random.bytes);
            assert!(figures.packs as u64 >= (10 << 20) / pack_bytes);
            assert!(!figures.commits.is_empty());
        }
    }

    #[test]
    fn collector_leaves_nothing_of_what_is_all_dead_and_copies_nothing_for_it() {
        let all = collect(16 << 20, 1000, 1.0);
        assert_eq!((all.copied, all.left), (0.0, 0.0));
        let none = collect(16 << 20, 1000, 0.0);
        assert_eq!((none.copied, none.left), (0.0, 0.0));
        let some = collect(16 << 20, 10_000, 0.3);
        assert!(some.copied > 0.0 && some.copied <= 1.0 && some.left > 0.0);
    }
}
