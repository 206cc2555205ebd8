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
        free_floor: Some(0),
        quota: None,
        cache: None,
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

/// Two thousand stores, each through several lives that end by a crash at a random write, opening included.
#[test]
fn acknowledged_blocks_outlast_every_crash() {
    let seeds = if std::env::var_os("KITH_LARGE").is_some() {
        20_000
    } else {
        2000
    };
    for seed in 0..seeds {
        let mut rng = rng_of(seed);
        let disk = SimDisk::new();
        let mut index: Arc<MemIndex> = Arc::default();
        let mut model = Model::default();
        for life in 0..6 {
            let context = format!("seed {seed}, life {life}");
            if life < 5 {
                match rng.below(9) {
                    0 => {}
                    1 => disk.fail_next_sync(),
                    2 => disk.fail_after(rng.below(60), Fault::Error),
                    3 => disk.fail_after(rng.below(60), Fault::Full),
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
        match rng.below(18) {
            16 => collect(store, seed, model, rng),
            17 => {
                let packs = store.packs().unwrap_or_default();
                if !packs.is_empty() {
                    let at = rng.below(packs.len() as u64);
                    let (pack, _) = packs[usize::try_from(at).unwrap()];
                    // Whether it went or not, nobody may rely on it here.
                    for block in store.pack_blocks(&pack).unwrap_or_default() {
                        model.lasting.remove(&block.cid);
                        model.pending.remove(&block.cid);
                    }
                    let _ = store.let_go(&pack);
                }
            }
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
            11 => {
                if store.close_packs().is_ok() {
                    model.lasting.append(&mut model.pending);
                }
            }
            12 | 13 => {
                let bytes = block(seed, rng.below(60));
                let cid = Cid::of_block(&bytes);
                let _ = store.put_cached(Class::Bulk, Verified::of(&bytes));
                model.put.insert(cid, bytes);
            }
            14 => {
                for pack in store.cached_packs() {
                    let _ = store.evict(&pack);
                }
            }
            _ => {
                for pack in store.cached_packs() {
                    let blocks = store.pack_blocks(&pack).unwrap_or_default();
                    if store.keep(&pack).is_ok() {
                        model.lasting.extend(blocks.iter().map(|block| block.cid));
                    }
                }
            }
        }
        check_invariants(store);
    }
    // Put but never flushed: no promise was made for it.
    model.pending.clear();
}

/// Retires most kept packs, leaving out a third of the blocks, some of which are put again meanwhile.
fn collect(store: &Store<SimDisk, Arc<MemIndex>>, seed: u64, model: &mut Model, rng: &mut Rng) {
    let is_garbage = |cid: &Cid| cid.digest().is_some_and(|digest| digest[0] % 3 == 0);
    let _run = store.begin_run();
    let mut marked: Vec<PackId> = store.packs().unwrap().iter().map(|pack| pack.0).collect();
    marked.retain(|pack| {
        store.keep_of(pack) == Keep::Kept && rng.below(4) > 0 && store.mark_retired(pack)
    });
    model.lasting.retain(|cid| !is_garbage(cid));
    model.pending.retain(|cid| !is_garbage(cid));
    let mut retired = BTreeMap::new();
    for pack in marked {
        match store.copy_out(&pack, 5, true, &|cid| !is_garbage(cid)) {
            Ok(out) => drop(retired.insert(pack, out)),
            Err(_) => store.unmark_retired(&pack),
        }
    }
    for _ in 0..12 {
        let number = rng.below(20);
        let bytes = block(seed, number);
        let cid = Cid::of_block(&bytes);
        let class = Class::ALL[usize::try_from(number % 3).unwrap()];
        if store.put(class, &cid, &bytes).is_ok() {
            model.pending.insert(cid);
        }
        model.put.insert(cid, bytes);
    }
    if store.close_packs().is_ok() {
        model.lasting.append(&mut model.pending);
    }
    for (pack, out) in retired {
        if !matches!(store.replacements(&out.kept), Ok(Some(_))) {
            store.unmark_retired(&pack);
            continue;
        }
        let may_go = |cid: &Cid| {
            let digest = cid.digest().unwrap();
            is_garbage(cid) && out.left_out.binary_search(&digest).is_ok()
        };
        let _ = store.drop_retired(&pack, &may_go);
    }
}

/// What holds between any two calls, whatever failed.
fn check_invariants(store: &Store<SimDisk, Arc<MemIndex>>) {
    let cached = store.cached_packs();
    let mut bytes = 0;
    for pack in &cached {
        assert!(
            store.disk.is_dead() || store.disk.len(&closed_name(pack, Keep::Cached)).is_ok(),
            "a cached pack has its file"
        );
        bytes += store
            .disk
            .len(&closed_name(pack, Keep::Cached))
            .unwrap_or(0);
    }
    if store.disk.is_dead() {
        return;
    }
    let usage = store.usage().unwrap();
    assert_eq!(usage.cached, bytes, "cached bytes are counted");
    let names = store.disk.list().unwrap();
    let on_disk: u64 = names.iter().map(|name| store.disk.len(name).unwrap()).sum();
    assert!(
        usage.bytes >= on_disk.saturating_sub(torn_slack(store)),
        "{} counted, {on_disk} on the disk",
        usage.bytes
    );
}

/// What failed writes may have left behind the last whole record of open files: at most one record each.
fn torn_slack(store: &Store<SimDisk, Arc<MemIndex>>) -> u64 {
    store.disk.list().unwrap().len() as u64 * 5000
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
        let there = model.put.keys().copied();
        model.lasting = there.filter(|cid| store.has(cid).unwrap()).collect();
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
        free_floor: Some(1 << 19),
        ..config()
    };
    let (store, _) = Store::open(disk.clone(), MemIndex::new(), floor).unwrap();
    let big = vec![1; 600 << 10];
    let refused = store
        .put(Class::Bulk, &Cid::of_block(&big), &big)
        .unwrap_err();
    assert!(matches!(refused, StoreError::Floor { .. }));
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
    let name = closed_name(&pack, Keep::Kept);
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

/// An index that takes up a pack only when it is let, and says that it was asked.
struct Gated {
    index: MemIndex,
    asked: std::sync::mpsc::Sender<()>,
    gate: Arc<Mutex<()>>,
}

impl Index for Gated {
    fn locations(&self, cid: &Cid) -> std::io::Result<Vec<crate::index::Location>> {
        self.index.locations(cid)
    }
    fn insert_pack(
        &self,
        pack: &PackId,
        info: PackInfo,
        blocks: &[crate::pack::BlockAt],
    ) -> std::io::Result<()> {
        let _ = self.asked.send(());
        let _let_through = lock(&self.gate);
        self.index.insert_pack(pack, info, blocks)
    }
    fn packs(&self) -> std::io::Result<Vec<(PackId, PackInfo)>> {
        self.index.packs()
    }
    fn info(&self, pack: &PackId) -> std::io::Result<Option<PackInfo>> {
        self.index.info(pack)
    }
    fn forget(&self, cid: &Cid, pack: &PackId) -> std::io::Result<()> {
        self.index.forget(cid, pack)
    }
    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> std::io::Result<()> {
        self.index.remove_pack(pack, blocks)
    }
    fn each(&self, see: &mut dyn FnMut(&[u8], &[crate::index::Location])) -> std::io::Result<()> {
        self.index.each(see)
    }
    fn key_of(&self, cid: &Cid) -> Vec<u8> {
        self.index.key_of(cid)
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "one caller has to stand still while another one goes on"
)]
fn acknowledgement_does_not_wait_for_the_index() {
    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);
    let (asked, is_asked) = std::sync::mpsc::channel();
    let gate: Arc<Mutex<()>> = Arc::default();
    let index = Gated {
        index: MemIndex::new(),
        asked,
        gate: Arc::clone(&gate),
    };
    let (store, _) = Store::open(SimDisk::new(), index, config()).unwrap();
    let store = Arc::new(store);
    let put = |number: u64| {
        let bytes = [&number.to_le_bytes()[..], &[7; 1000]].concat();
        let cid = Cid::of_block(&bytes);
        store.put(Class::Bulk, &cid, &bytes).unwrap();
        cid
    };
    let mut cids: Vec<Cid> = (0..10).map(put).collect();
    let closed = lock(&gate);
    let flush = |told: std::sync::mpsc::Sender<()>| {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            store.flush().unwrap();
            let _ = told.send(());
        })
    };
    let (told, _unheard) = std::sync::mpsc::channel();
    let first = flush(told);
    is_asked.recv_timeout(DEADLINE).unwrap();
    cids.push(put(10));
    let (told, is_told) = std::sync::mpsc::channel();
    let second = flush(told);
    is_told
        .recv_timeout(DEADLINE)
        .expect("a flush that returns while the index is busy");
    drop(closed);
    first.join().unwrap();
    second.join().unwrap();
    store.close_packs().unwrap();
    for cid in cids {
        assert!(store.get(&cid).unwrap().is_some());
    }
    assert!(store.packs().unwrap().len() > 1);
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
    assert_eq!(open_number("open-17.pack"), Some((17, Keep::Kept)));
    assert_eq!(open_number("open-17.cache"), Some((17, Keep::Cached)));
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
    for keep in [Keep::Kept, Keep::Cached] {
        let name = closed_name(&pack, keep);
        assert_eq!(closed_id(&name), Some((pack, keep)));
        assert_eq!(closed_id(&name.to_uppercase()), None);
    }
    assert_eq!(closed_id("ab.pack"), None);
}

/// Blocks of one number each, fetched for a reader.
fn cache(store: &Store<SimDisk, Arc<MemIndex>>, numbers: std::ops::Range<u32>) -> Vec<Cid> {
    numbers
        .map(|number| {
            let bytes = thousand(number);
            store.put_cached(Class::Bulk, Verified::of(&bytes)).unwrap();
            Cid::of_block(&bytes)
        })
        .collect()
}

fn thousand(number: u32) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[7; 996]].concat()
}

fn opened(disk: &SimDisk, quota: Option<u64>) -> Store<SimDisk, Arc<MemIndex>> {
    let config = StoreConfig { quota, ..config() };
    Store::open(disk.clone(), Arc::default(), config).unwrap().0
}

#[test]
fn put_does_not_rely_on_a_cached_pack() {
    let disk = SimDisk::new();
    let store = opened(&disk, None);
    let cids = cache(&store, 0..20);
    for closed in [false, true] {
        if closed {
            store.close_packs().unwrap();
        }
        // In another order, or it would be the very same packs.
        for number in (0..20).rev() {
            let bytes = thousand(number);
            // Written once more, then known.
            let put = store.put(Class::Bulk, &Cid::of_block(&bytes), &bytes);
            assert_eq!(put.unwrap(), !closed, "block {number}");
            let again = store.put_cached(Class::Bulk, Verified::of(&bytes));
            assert!(!again.unwrap());
        }
    }
    let packs = store.cached_packs();
    assert!(packs.len() > 1);
    for pack in &packs {
        store.evict(pack).unwrap();
    }
    assert_eq!(store.usage().unwrap().cached, 0);
    for (number, cid) in (0..).zip(&cids) {
        assert_eq!(store.get(cid).unwrap().unwrap(), thousand(number));
    }
    for (pack, _) in store.packs().unwrap() {
        assert!(matches!(store.evict(&pack), Err(StoreError::Kept { .. })));
    }
}

#[test]
fn what_is_let_go_is_cached_unless_somebody_relies_on_it() {
    let disk = SimDisk::new();
    let store = opened(&disk, None);
    let put = |number: u32, lease: Option<&Lease>| {
        let bytes = thousand(number);
        let block = Verified::of(&bytes);
        match lease {
            Some(lease) => store.put_leased(Class::Bulk, block, lease).unwrap(),
            None => store.put_verified(Class::Bulk, block).unwrap(),
        }
    };
    for number in 0..5 {
        assert!(put(number, None));
    }
    store.close_packs().unwrap();
    let (pack, info) = store.packs().unwrap()[0];
    assert!(!store.let_go(&PackId([1; 32])).unwrap(), "it is not here");
    let lease = store.lease();
    assert!(!put(3, Some(&lease)));
    assert!(!store.let_go(&pack).unwrap(), "somebody relies on it");
    drop(lease);
    assert!(store.mark_retired(&pack));
    assert!(!store.let_go(&pack).unwrap(), "it is on its way out");
    store.unmark_retired(&pack);
    assert_eq!(store.keep_of(&pack), Keep::Kept);
    assert!(store.let_go(&pack).unwrap());
    assert!(store.let_go(&pack).unwrap(), "again");
    assert_eq!(store.keep_of(&pack), Keep::Cached);
    assert_eq!(store.usage().unwrap().cached, info.bytes);
    check_invariants(&store);
    // It is read as before, and a put that finds its blocks there keeps it again.
    let cid = Cid::of_block(&thousand(3));
    assert!(store.get(&cid).unwrap().is_some());
    let lease = store.lease();
    assert!(!put(3, Some(&lease)));
    assert_eq!(store.keep_of(&pack), Keep::Kept);
    assert_eq!(
        (store.kept_again(), store.kept_again()),
        (vec![pack], vec![])
    );
    assert!(!store.let_go(&pack).unwrap(), "the put relies on it");
    drop(lease);
    assert!(store.let_go(&pack).unwrap());
    drop(store);
    // After a start it has to be said that others keep it; else no put relies on it.
    let store = opened(&disk, None);
    assert_eq!(store.keep_of(&pack), Keep::Cached, "for good");
    let bytes = thousand(3);
    assert!(store.put(Class::Bulk, &cid, &bytes).unwrap());
    store.set_given_up([pack, PackId([1; 32])]);
    assert_eq!(store.given_up(), [pack].into());
    let bytes = thousand(2);
    let second = Cid::of_block(&bytes);
    assert!(!store.put(Class::Bulk, &second, &bytes).unwrap());
    assert!(store.let_go(&pack).unwrap());
    store.evict(&pack).unwrap();
    assert!(store.given_up().is_empty());
    check_invariants(&store);
    assert!(store.get(&cid).unwrap().is_some(), "put again");
    assert!(store.get(&Cid::of_block(&thousand(4))).unwrap().is_none());
}

#[test]
fn of_cached_packs_nobody_is_told() {
    let store = opened(&SimDisk::new(), None);
    cache(&store, 0..5);
    let bytes = thousand(9);
    store
        .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
        .unwrap();
    store.close_packs().unwrap();
    let born = store.born();
    assert_eq!((born.len(), store.packs().unwrap().len()), (1, 2));
    assert_eq!(store.keep_of(&born[0].pack), Keep::Kept);
}

#[test]
fn quota_is_hard_and_cached_packs_go_first() {
    let disk = SimDisk::new();
    // Of which a quarter is in reserve.
    let quota = 80_000;
    let store = opened(&disk, Some(quota));
    let fetched = cache(&store, 0..200);
    store.flush().unwrap();
    let there = |cid: &&Cid| store.has(cid).unwrap();
    assert!(fetched.iter().filter(there).count() > 40, "much is cached");
    assert!(store.stats().packs_evicted > 0);
    let mut stored = Vec::new();
    let refused = (1000..).find_map(|number| {
        let bytes = thousand(number);
        match store.put(Class::Bulk, &Cid::of_block(&bytes), &bytes) {
            Ok(_) => {
                stored.push(number);
                None
            }
            Err(error) => Some(error),
        }
    });
    let refused = refused.unwrap();
    assert!(refused.is_full());
    let text = refused.to_string();
    assert!(
        text.contains("of 1000 bytes would exceed the quota of 80000 bytes; the store takes "),
        "{text}"
    );
    assert!(stored.len() > 50, "{} blocks are kept", stored.len());
    // What is in the open cached pack cannot go yet.
    assert!(store.cached_packs().is_empty());
    store.close_packs().unwrap();
    let on_disk = || -> u64 {
        let names = disk.list().unwrap();
        names.iter().map(|name| disk.len(name).unwrap()).sum()
    };
    let usage = store.usage().unwrap();
    assert_eq!(usage.bytes, on_disk());
    assert!(usage.bytes <= quota);
    for number in &stored {
        let bytes = thousand(*number);
        assert_eq!(store.get(&Cid::of_block(&bytes)).unwrap().unwrap(), bytes);
    }
    // A known block is no matter of room; more of it is.
    let bytes = thousand(1000);
    assert!(
        !store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap()
    );
    store.set_quota(None);
    let bytes = thousand(9999);
    assert!(
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap()
    );
    drop(store);
    let store = opened(&disk, Some(quota));
    assert_eq!(store.usage().unwrap().bytes, on_disk());
}

#[test]
fn floor_and_full_disk_let_cached_packs_go() {
    for floor in [0, 30_000] {
        let disk = SimDisk::new();
        let config = StoreConfig {
            free_floor: Some(floor),
            ..config()
        };
        let store = Store::open(disk.clone(), Arc::<MemIndex>::default(), config)
            .unwrap()
            .0;
        cache(&store, 0..100);
        store.close_packs().unwrap();
        let used: u64 = store.usage().unwrap().bytes;
        disk.set_capacity(used + floor);
        let bytes = thousand(1000);
        lock(&store.writer).since_room_check = u64::MAX;
        assert!(
            store
                .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
                .unwrap()
        );
        assert!(store.stats().packs_evicted > 0);
        store.close_packs().unwrap();
    }
}

#[test]
fn cached_packs_take_no_more_than_they_may() {
    let disk = SimDisk::new();
    let config = StoreConfig {
        cache: Some(30_000),
        ..config()
    };
    let (store, _) = Store::open(disk.clone(), Arc::<MemIndex>::default(), config).unwrap();
    for number in 0..20 {
        let bytes = thousand(number);
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap();
    }
    store.close_packs().unwrap();
    let kept = store.usage().unwrap().bytes;
    for number in 100..200 {
        cache(&store, number..number + 1);
        let cached = store.usage().unwrap().cached;
        assert!(cached <= 30_000, "{cached}");
    }
    assert!(store.usage().unwrap().cached > 12_000);
    // What is given up counts from the next tick on.
    let packs: Vec<PackId> = store.packs().unwrap().iter().map(|of| of.0).collect();
    for pack in packs {
        store.let_go(&pack).unwrap();
    }
    store.tick(Time(1)).unwrap();
    let usage = store.usage().unwrap();
    assert!(usage.cached <= 30_000 && usage.cache == Some(30_000));
    assert!(usage.bytes < kept + 30_000, "{usage:?}");
    // And at the next start, if it is less then.
    drop(store);
    let config = StoreConfig {
        cache: Some(0),
        ..config
    };
    let (store, _) = Store::open(disk, Arc::<MemIndex>::default(), config).unwrap();
    store.tick(Time(2)).unwrap();
    assert_eq!(store.usage().unwrap().cached, 0);
}

#[test]
fn one_long_scan_does_not_push_out_what_is_read_daily() {
    let disk = SimDisk::new();
    let store = opened(&disk, Some(100_000));
    let daily = cache(&store, 0..14);
    store.close_packs().unwrap();
    for round in 0..100 {
        if round % 3 == 0 {
            for cid in &daily {
                assert!(store.get(cid).unwrap().is_some(), "round {round}");
            }
            store.tick(Time(round)).unwrap();
        }
        cache(&store, 1000 + round as u32 * 7..1007 + round as u32 * 7);
        store.close_packs().unwrap();
    }
    assert!(store.stats().packs_evicted > 50);
}

#[test]
fn promoted_pack_is_kept_for_good() {
    let disk = SimDisk::new();
    let store = opened(&disk, Some(20_000));
    let cids = cache(&store, 0..7);
    store.close_packs().unwrap();
    let pack = store.cached_packs()[0];
    store.keep(&pack).unwrap();
    store.keep(&pack).unwrap();
    assert!(matches!(store.evict(&pack), Err(StoreError::Kept { .. })));
    disk.crash(Crash::Scatter, &mut rng_of(1));
    drop(store);
    let store = opened(&disk, Some(20_000));
    cache(&store, 100..140);
    for cid in &cids {
        assert!(store.get(cid).unwrap().is_some());
    }
    // The same blocks put here make the same pack, which no cached twin takes along when it goes.
    let disk = SimDisk::new();
    let store = opened(&disk, None);
    let cids = cache(&store, 0..7);
    store.close_packs().unwrap();
    for number in 0..7 {
        let bytes = thousand(number);
        store
            .put(Class::Bulk, &Cid::of_block(&bytes), &bytes)
            .unwrap();
    }
    store.close_packs().unwrap();
    assert_eq!(store.cached_packs(), []);
    assert_eq!(disk.list().unwrap().len(), 1);
    for cid in &cids {
        assert!(store.get(cid).unwrap().is_some());
    }
    // A twin that a crash brought back goes at the next start.
    let name = disk.list().unwrap()[0].clone();
    let bytes = disk
        .read_at(&name, 0, disk.len(&name).unwrap() as usize)
        .unwrap();
    let twin = name.replace(".pack", ".cache");
    disk.create(&twin).unwrap();
    disk.append(&twin, &bytes).unwrap();
    drop(store);
    let store = opened(&disk, None);
    assert_eq!(store.cached_packs(), []);
    assert_eq!(disk.list().unwrap(), [name]);
}

/// Puts five blocks; answers the bytes of their pack before it was closed, and the name of the closed one.
fn five(disk: &SimDisk, keep: Keep) -> (Vec<u8>, String) {
    let store = opened(disk, None);
    put_five(&store, keep);
    let open = disk.list().unwrap()[0].clone();
    let records = disk.read_at(&open, 0, disk.len(&open).unwrap() as usize);
    store.close_packs().unwrap();
    let closed = disk.list().unwrap()[0].clone();
    (records.unwrap(), closed)
}

fn put_five(store: &Store<SimDisk, Arc<MemIndex>>, keep: Keep) {
    for number in 0..5 {
        let bytes = thousand(number);
        let block = Verified::of(&bytes);
        match keep {
            Keep::Kept => store.put_verified(Class::Bulk, block).unwrap(),
            Keep::Cached => store.put_cached(Class::Bulk, block).unwrap(),
        };
    }
    store.flush().unwrap();
}

#[test]
fn unfinished_pack_mends_the_damaged_one_whose_name_it_gets() {
    let kinds = [Keep::Kept, Keep::Cached];
    for (before, after) in kinds.map(|keep| kinds.map(|other| (keep, other))).concat() {
        let disk = SimDisk::new();
        let (records, closed) = five(&disk, before);
        disk.flip(&closed, (disk.len(&closed).unwrap() - 10) * 8);
        // What it held was put again, into a pack that was not closed yet.
        let open = format!("open-0.{}", after.suffix());
        disk.create(&open).unwrap();
        disk.append(&open, &records).unwrap();
        disk.sync(&open).unwrap();
        let (store, report) = Store::open(disk.clone(), MemIndex::new(), config()).unwrap();
        let context = format!("{before:?}, then {after:?}");
        assert_eq!(
            (report.recovered, report.damaged),
            (1, Vec::new()),
            "{context}"
        );
        let [name] = &disk.list().unwrap()[..] else {
            panic!("{context}: one file");
        };
        let is_kept = before == Keep::Kept || after == Keep::Kept;
        assert_eq!(name.ends_with(".pack"), is_kept, "{context}");
        for number in 0..5 {
            let bytes = thousand(number);
            let found = store.get(&Cid::of_block(&bytes)).unwrap();
            assert_eq!(found.unwrap(), bytes, "{context}: block {number}");
        }
        let used = store.usage().unwrap().bytes;
        assert_eq!(used, disk.len(name).unwrap(), "{context}");
    }
}

#[test]
fn what_is_read_anew_of_a_damaged_kept_pack_mends_it() {
    let disk = SimDisk::new();
    let (_, closed) = five(&disk, Keep::Kept);
    let store = opened(&disk, None);
    // A bit in each block; each is found damaged, and comes again from another device.
    for number in 0..5 {
        let cid = Cid::of_block(&thousand(number));
        let place = store.index().locations(&cid).unwrap()[0];
        disk.flip(&closed, u64::from(place.offset) * 8);
        assert!(matches!(store.get(&cid), Err(StoreError::Corrupt { .. })));
    }
    put_five(&store, Keep::Cached);
    store.close_packs().unwrap();
    assert_eq!(disk.list().unwrap(), std::slice::from_ref(&closed));
    for number in 0..5 {
        let bytes = thousand(number);
        let found = store.get(&Cid::of_block(&bytes)).unwrap();
        assert_eq!(found.unwrap(), bytes);
    }
    assert_eq!(store.cached_packs(), []);
    assert_eq!(store.usage().unwrap().bytes, disk.len(&closed).unwrap());
}

#[test]
fn floor_is_a_gib_or_a_part_of_a_small_disk() {
    let disk = SimDisk::new();
    let store = Store::open(
        disk.clone(),
        MemIndex::new(),
        StoreConfig::new(SpaceId([1; 32])),
    )
    .unwrap()
    .0;
    assert_eq!(store.usage().unwrap().floor, FREE_FLOOR);
    disk.set_capacity(1 << 30);
    assert_eq!(store.usage().unwrap().floor, 64 << 20);
    disk.set_capacity(1 << 40);
    assert_eq!(store.usage().unwrap().floor, 1 << 30);
}

/// Runs of a script, each with a fault at another change of the disk.
struct Script {
    disk: SimDisk,
    index: Arc<MemIndex>,
    model: Model,
    seed: u64,
}

impl Script {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(),
            index: Arc::default(),
            model: Model::default(),
            seed,
        }
    }

    /// Opens the store, once more if a fault came in between; not on a machine that stands still.
    fn open(&self) -> Option<Store<SimDisk, Arc<MemIndex>>> {
        let open = || Store::open(self.disk.clone(), Arc::clone(&self.index), config());
        match open() {
            Ok((store, _)) => Some(store),
            Err(_) if self.disk.is_dead() => None,
            Err(_) => Some(open().expect("the second time nothing is in the way").0),
        }
    }

    fn put(&mut self, store: &Store<SimDisk, Arc<MemIndex>>, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let bytes = block(self.seed, number);
            let cid = Cid::of_block(&bytes);
            let class = Class::ALL[usize::try_from(number % 3).unwrap()];
            let put = match number % 5 {
                4 => store.put_cached(class, Verified::of(&bytes)).map(|_| false),
                _ => store.put(class, &cid, &bytes).map(|_| true),
            };
            if put.is_ok_and(|kept| kept) {
                self.model.pending.insert(cid);
            }
            self.model.put.insert(cid, bytes);
        }
    }

    fn settle(&mut self, done: Result<(), StoreError>) {
        if done.is_ok() {
            self.model.lasting.append(&mut self.model.pending);
        }
    }

    /// Put, flush, close, set aside, keep, evict, retire, rebuild, and go on: every kind of change that the store makes.
    fn run(&mut self) -> Option<()> {
        let store = self.open()?;
        self.put(&store, 0..12);
        self.settle(store.flush());
        self.put(&store, 12..30);
        self.settle(store.close_packs());
        // A pack is set aside though nothing is wrong with it: every block of it must still be there.
        if let Some((pack, _)) = store.packs().unwrap().first() {
            let _ = store.quarantine(pack);
        }
        self.put(&store, 30..36);
        let cached = store.cached_packs();
        if let Some(pack) = cached.first() {
            let blocks = store.pack_blocks(pack).unwrap_or_default();
            if store.keep(pack).is_ok() {
                self.model
                    .lasting
                    .extend(blocks.iter().map(|block| block.cid));
            }
        }
        for pack in cached.iter().skip(1) {
            let _ = store.evict(pack);
        }
        self.settle(store.flush());
        collect(&store, self.seed, &mut self.model, &mut rng_of(self.seed));
        check_invariants(&store);
        drop(store);
        self.model.pending.clear();
        // The rebuild: an open pack and an index that is gone.
        self.index = Arc::default();
        let store = self.open()?;
        self.put(&store, 36..50);
        self.settle(store.close_packs());
        collect(&store, self.seed, &mut self.model, &mut rng_of(self.seed));
        check_invariants(&store);
        self.model.pending.clear();
        Some(())
    }

    /// After whatever happened: it opens, holds all that was acknowledged, and goes on.
    fn judge(mut self, how: Crash, keep_index: bool, rng: &mut Rng, context: &str) {
        self.disk.heal();
        self.disk.crash(how, rng);
        if !keep_index {
            self.index = Arc::default();
        }
        let (store, report) =
            Store::open(self.disk.clone(), Arc::clone(&self.index), config()).unwrap();
        assert!(report.waiting.is_empty(), "{context}: {report:?}");
        self.model.judge(&store, 0, context);
        self.put(&store, 50..55);
        store.close_packs().unwrap();
        for (pack, _) in store.packs().unwrap() {
            let checked = store.check_pack(&pack);
            assert!(checked.is_ok(), "{context}: {checked:?}");
        }
        assert_eq!(store.compare_index().unwrap(), [], "{context}");
        self.model.judge(&store, 0, context);
        check_invariants(&store);
    }
}

/// A fault of every kind at every change that the script makes to the disk, opening included.
#[test]
fn no_fault_at_any_change_loses_what_was_acknowledged() {
    let seeds = if std::env::var_os("KITH_LARGE").is_some() {
        8
    } else {
        1
    };
    for seed in 0..seeds {
        let mut script = Script::new(seed);
        script.run().unwrap();
        let changes = script.disk.changes();
        assert!(changes > 60, "{changes} changes");
        assert!(script.model.lasting.len() > 30);
        for at in 0..changes {
            for fault in [Fault::Die, Fault::Error, Fault::Full] {
                for how in [Crash::Kill, Crash::Prefix, Crash::Scatter] {
                    for keep_index in [false, true] {
                        let context =
                            format!("seed {seed}, change {at}, {fault:?}, {how:?}, {keep_index}");
                        let mut script = Script::new(seed);
                        script.disk.fail_after(at, fault);
                        script.run();
                        script.judge(how, keep_index, &mut rng_of(at), &context);
                    }
                }
            }
        }
    }
}
