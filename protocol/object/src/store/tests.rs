use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate as object;
use crate::disk::{Crash, Fault, SimDisk};
use crate::index::MemIndex;
use crate::key::Rng;
use crate::pack::Class;
use crate::time::Time;

#[path = "conformance.rs"]
mod conformance;

struct SimPlace {
    disk: SimDisk,
    index: Mutex<Arc<MemIndex>>,
}

impl SimPlace {
    fn new() -> Self {
        Self {
            disk: SimDisk::new(),
            index: Mutex::default(),
        }
    }
}

impl conformance::Place for SimPlace {
    type Disk = SimDisk;
    type Index = Arc<MemIndex>;

    fn disk(&self) -> SimDisk {
        self.disk.clone()
    }
    fn index(&self) -> Arc<MemIndex> {
        Arc::clone(&lock(&self.index))
    }
    fn lose_index(&self) {
        *lock(&self.index) = Arc::default();
    }
    fn damage(&self, name: &str, offset: u64) {
        self.disk.flip(name, offset * 8);
    }
}

conformance::suite_of!(SimPlace::new());

fn config() -> StoreConfig {
    StoreConfig {
        space: SpaceId([1; 32]),
        pack_bytes_max: 8 << 10,
        free_floor: 0,
    }
}

/// The block of that number; about one in eight is empty or tiny.
fn block(seed: u64, number: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .update(&number.to_le_bytes());
    let choice = hasher.finalize();
    let len = match choice.as_bytes()[0] % 8 {
        0 => usize::from(choice.as_bytes()[1]) % 20,
        1 => 4000,
        _ => usize::from(choice.as_bytes()[1]) * 8,
    };
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// What a run has put, and what of it must last.
#[derive(Default)]
struct Model {
    put: BTreeMap<Cid, Vec<u8>>,
    pending: BTreeSet<Cid>,
    lasting: BTreeSet<Cid>,
}

impl Model {
    /// Everything that must last is there; everything that is there is right.
    fn judge(&self, store: &Store<SimDisk, Arc<MemIndex>>, lost_max: usize, context: &str) {
        let mut lost = 0;
        for (cid, bytes) in &self.put {
            match store.get(cid) {
                Ok(Some(found)) => assert_eq!(&found, bytes, "{context}: wrong bytes"),
                Ok(None) | Err(StoreError::Corrupt { .. }) => {
                    lost += usize::from(self.lasting.contains(cid))
                }
                Err(error) => panic!("{context}: {error}"),
            }
        }
        assert!(
            lost <= lost_max,
            "{context}: {lost} acknowledged blocks are gone"
        );
    }
}

fn rng_of(seed: u64) -> Rng {
    Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes())
}

/// What a crash leaves of the index, which nobody syncs: all, nothing, or without some packs.
fn crash_index(index: Arc<MemIndex>, rng: &mut Rng) -> Arc<MemIndex> {
    match rng.below(3) {
        0 => Arc::default(),
        1 => index,
        _ => {
            for (pack, _) in index.packs().unwrap() {
                if rng.below(2) == 0 {
                    index.remove_pack(&pack, &[]).unwrap();
                }
            }
            index
        }
    }
}

fn crash_mode(rng: &mut Rng) -> Crash {
    match rng.below(3) {
        0 => Crash::Kill,
        1 => Crash::Prefix,
        _ => Crash::Scatter,
    }
}

/// A thousand stores, each through several lives that end by a crash at a random write, opening included.
#[test]
fn acknowledged_blocks_outlast_every_crash() {
    for seed in 0..1000 {
        let mut rng = rng_of(seed);
        let disk = SimDisk::new();
        let mut index: Arc<MemIndex> = Arc::default();
        let mut model = Model::default();
        for life in 0..6 {
            let context = format!("seed {seed}, life {life}");
            if life < 5 {
                match rng.below(8) {
                    0 => {}
                    1 => disk.fail_next_sync(),
                    2 => disk.fail_after(rng.below(60), Fault::Error),
                    _ => disk.fail_after(rng.below(60), Fault::Die),
                }
            }
            if rng.below(6) == 0 {
                disk.set_capacity(
                    disk.list()
                        .unwrap()
                        .iter()
                        .map(|name| disk.len(name).unwrap())
                        .sum::<u64>()
                        + rng.below(20_000),
                );
            }
            if let Ok((store, _)) = Store::open(disk.clone(), Arc::clone(&index), config()) {
                if !disk.is_dead() {
                    model.judge(&store, 0, &context);
                }
                run(&store, seed, &mut model, &mut rng);
            }
            disk.set_capacity(u64::MAX);
            disk.crash(crash_mode(&mut rng), &mut rng);
            index = crash_index(index, &mut rng);
        }
        let (store, report) = Store::open(disk, index, config()).unwrap();
        assert!(report.waiting.is_empty(), "seed {seed}: {report:?}");
        model.judge(&store, 0, &format!("seed {seed}, end"));
        store.close_packs().unwrap();
        for (pack, _) in store.packs().unwrap() {
            let checked = store.check_pack(&pack);
            assert!(checked.is_ok(), "seed {seed}: {checked:?} {report:?}");
        }
    }
}

/// Some random work; it goes on whatever fails, as a daemon does.
fn run(store: &Store<SimDisk, Arc<MemIndex>>, seed: u64, model: &mut Model, rng: &mut Rng) {
    let mut now = Time(0);
    for _ in 0..rng.below(40) {
        match rng.below(12) {
            0..=7 => {
                let bytes = block(seed, rng.below(60));
                let cid = Cid::of_block(&bytes);
                let class = Class::ALL[usize::try_from(rng.below(3)).unwrap()];
                if store.put(class, &cid, &bytes).is_ok() {
                    model.pending.insert(cid);
                }
                model.put.insert(cid, bytes);
            }
            8 | 9 => {
                if store.flush().is_ok() {
                    model.lasting.append(&mut model.pending);
                }
            }
            10 => {
                now = now + Span::from_secs(40);
                let _ = store.tick(now);
            }
            _ => {
                if store.close_packs().is_ok() {
                    model.lasting.append(&mut model.pending);
                }
            }
        }
    }
    // Put but never flushed: no promise was made for it.
    model.pending.clear();
}

/// One bit anywhere on the disk costs at most one block, and never gives a wrong one.
#[test]
fn flipped_bit_costs_at_most_one_block() {
    for seed in 0..500 {
        let mut rng = rng_of(seed);
        let disk = SimDisk::new();
        let mut index: Arc<MemIndex> = Arc::default();
        let mut model = Model::default();
        let (store, _) = Store::open(disk.clone(), Arc::clone(&index), config()).unwrap();
        run(&store, seed, &mut model, &mut rng);
        store.flush().unwrap();
        model.lasting = model.put.keys().copied().collect();
        let Some((name, bit)) = disk.flip_random(&mut rng) else {
            continue;
        };
        let context = format!("seed {seed}, {name} bit {bit}");
        if rng.below(2) == 0 {
            model.judge(&store, 1, &context);
        }
        drop(store);
        if rng.below(2) == 0 {
            index = Arc::default();
        }
        let (store, _) = Store::open(disk.clone(), index, config()).unwrap();
        model.judge(&store, 1, &context);
        for (pack, _) in store.packs().unwrap() {
            if store.check_pack(&pack).is_err() {
                store.quarantine(&pack).unwrap();
            }
        }
        model.judge(&store, 1, &context);
        // What is missing can be put again, and then all is well.
        for (cid, bytes) in &model.put {
            store.put(Class::Bulk, cid, bytes).unwrap();
        }
        store.close_packs().unwrap();
        drop(store);
        let (store, _) = Store::open(disk, Arc::default(), config()).unwrap();
        model.judge(&store, 0, &context);
        for (pack, _) in store.packs().unwrap() {
            store.check_pack(&pack).unwrap();
        }
    }
}

#[test]
fn full_disk_is_said_clearly_and_costs_nothing() {
    let disk = SimDisk::new();
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), config()).unwrap();
    disk.set_capacity(20_000);
    let mut stored = Vec::new();
    let refused = (0..).find_map(|number| {
        let bytes = block(0, number);
        match store.put(Class::Bulk, &Cid::of_block(&bytes), &bytes) {
            Ok(_) => {
                stored.push(bytes);
                None
            }
            Err(error) => Some((bytes, error)),
        }
    });
    let (bytes, error) = refused.unwrap();
    assert!(error.is_full());
    assert!(
        error
            .to_string()
            .starts_with("no room on the disk for block ")
    );
    store.flush().unwrap();
    // The packs that wait for a footer stay readable, also after a restart on the full disk.
    drop(store);
    let (store, report) = Store::open(disk.clone(), MemIndex::new(), config()).unwrap();
    for bytes in &stored {
        assert_eq!(&store.get(&Cid::of_block(bytes)).unwrap().unwrap(), bytes);
    }
    assert!(report.damaged.is_empty());
    disk.set_capacity(u64::MAX);
    assert!(
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap()
    );
    store.close_packs().unwrap();
    for (pack, _) in store.packs().unwrap() {
        store.check_pack(&pack).unwrap();
    }
    for bytes in &stored {
        assert_eq!(&store.get(&Cid::of_block(bytes)).unwrap().unwrap(), bytes);
    }
}

#[test]
fn store_stops_at_the_floor() {
    let disk = SimDisk::new();
    disk.set_capacity(1 << 20);
    let floor = StoreConfig {
        free_floor: 1 << 19,
        ..config()
    };
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), floor).unwrap();
    let big = vec![1; 600 << 10];
    let refused = store
        .put(Class::Bulk, &Cid::of_block(&big), &big)
        .unwrap_err();
    assert!(matches!(refused, StoreError::Full { source: None, .. }));
    let small = block(0, 1);
    assert!(
        store
            .put(Class::Bulk, &Cid::of_block(&small), &small)
            .unwrap()
    );
}

#[test]
fn failed_sync_is_final_until_reopened_and_reading_goes_on() {
    let disk = SimDisk::new();
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), config()).unwrap();
    let first = block(0, 1);
    store
        .put(Class::Bulk, &Cid::of_block(&first), &first)
        .unwrap();
    disk.fail_next_sync();
    assert!(matches!(store.flush(), Err(StoreError::Sync { .. })));
    assert!(matches!(store.flush(), Err(StoreError::Broken)));
    let second = block(0, 2);
    assert!(matches!(
        store.put(Class::Bulk, &Cid::of_block(&second), &second),
        Err(StoreError::Broken)
    ));
    assert_eq!(store.get(&Cid::of_block(&first)).unwrap().unwrap(), first);
    drop(store);
    let (store, _) = Store::open(disk, MemIndex::new(), config()).unwrap();
    store
        .put(Class::Bulk, &Cid::of_block(&second), &second)
        .unwrap();
    store.flush().unwrap();
}

#[test]
fn lost_sectors_cost_what_lay_in_them() {
    let disk = SimDisk::new();
    let blocks: Vec<Vec<u8>> = (0..60_u32)
        .map(|number| [&number.to_le_bytes()[..], &[9; 900]].concat())
        .collect();
    let roomy = StoreConfig {
        pack_bytes_max: 1 << 20,
        ..config()
    };
    let open = || Store::open(disk.clone(), MemIndex::new(), roomy).unwrap();
    let lost = |store: &Store<SimDisk, MemIndex>| {
        let sound = |bytes: &&Vec<u8>| {
            store
                .get(&Cid::of_block(bytes))
                .is_ok_and(|found| found.is_some_and(|found| found == **bytes))
        };
        blocks.len() - blocks.iter().filter(sound).count()
    };
    // In the open pack, then in records and footer of the closed one.
    let (store, _) = open();
    for bytes in &blocks {
        store
            .put(Class::Bulk, &Cid::of_block(bytes), bytes)
            .unwrap();
    }
    store.flush().unwrap();
    drop(store);
    disk.lose_sector("open-0.pack", 20_000);
    let (store, report) = open();
    assert_eq!(report.damaged, ["open-0.pack.bad"]);
    assert!((1..=6).contains(&lost(&store)));
    for bytes in &blocks {
        store
            .put(Class::Bulk, &Cid::of_block(bytes), bytes)
            .unwrap();
    }
    store.close_packs().unwrap();
    assert_eq!(lost(&store), 0);
    let (pack, info) = store
        .packs()
        .unwrap()
        .into_iter()
        .max_by_key(|(_, info)| info.blocks)
        .unwrap();
    let name = closed_name(&pack);
    disk.lose_sector(&name, info.bytes - 10);
    assert_eq!(lost(&store), 0);
    assert!(matches!(
        store.check_pack(&pack),
        Err(StoreError::Pack { .. })
    ));
    drop(store);
    let (store, report) = open();
    assert_eq!(report.damaged, [format!("{name}.bad")]);
    assert!(lost(&store) <= 2);
}

#[test]
fn one_sync_serves_a_whole_put() {
    let disk = SimDisk::new();
    let roomy = StoreConfig {
        pack_bytes_max: 16 << 20,
        ..config()
    };
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), roomy).unwrap();
    let before = disk.stats();
    for number in 0..1000 {
        let bytes = block(0, number);
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap();
    }
    store.flush().unwrap();
    store.flush().unwrap();
    let after = disk.stats();
    assert_eq!(after.syncs - before.syncs, 1);
    assert_eq!(after.name_syncs - before.name_syncs, 1);
    // A second flush of the same pack needs no name.
    let bytes = block(0, 5000);
    store
        .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
        .unwrap();
    store.flush().unwrap();
    assert_eq!(disk.stats().syncs - after.syncs, 1);
    assert_eq!(disk.stats().name_syncs, after.name_syncs);
}

#[test]
fn overhead_is_small() {
    let disk = SimDisk::new();
    let roomy = StoreConfig {
        pack_bytes_max: 16 << 20,
        ..config()
    };
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), roomy).unwrap();
    let mut plain = 0;
    for number in 0..1000_u64 {
        let bytes = [&number.to_le_bytes()[..], &[0; 1016]].concat();
        plain += bytes.len() as u64;
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap();
    }
    store.close_packs().unwrap();
    let stored = store.packs().unwrap()[0].1.bytes;
    assert!(stored * 100 < plain * 108, "{stored} for {plain}");
}

#[test]
fn file_names_are_read_strictly() {
    assert_eq!(open_number("open-17.pack"), Some(17));
    for name in [
        "open-.pack",
        "open-017.pack",
        "open-+1.pack",
        "open-1.pack.bad",
        "open-1",
    ] {
        assert_eq!(open_number(name), None, "{name}");
    }
    let pack = PackId([0xab; 32]);
    assert_eq!(closed_id(&closed_name(&pack)), Some(pack));
    assert_eq!(closed_id(&closed_name(&pack).to_uppercase()), None);
    assert_eq!(closed_id("ab.pack"), None);
}
