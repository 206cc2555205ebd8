//! Leases, marks and drops, one at a time; with every fault of the disk in the tests of the store.

use std::sync::Arc;

use super::super::{Store, StoreConfig, StoreError, Verified};
use super::*;
use crate::disk::SimDisk;
use crate::id::SpaceId;
use crate::index::MemIndex;
use crate::pack::Class;

type SimStore = Store<SimDisk, Arc<MemIndex>>;

const NOTHING: fn(&Cid) -> bool = |_| false;
const EVERYTHING: fn(&Cid) -> bool = |_| true;

fn open(disk: &SimDisk, quota: Option<u64>) -> SimStore {
    let config = StoreConfig {
        space: SpaceId([1; 32]),
        pack_bytes_max: 8 << 10,
        free_floor: Some(0),
        cache: None,
        quota,
    };
    Store::open(disk.clone(), Arc::default(), config).unwrap().0
}

fn block(number: u32) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[7; 996]].concat()
}

fn cid(number: u32) -> Cid {
    Cid::of_block(&block(number))
}

/// Whether it was written.
fn put(store: &SimStore, number: u32, lease: Option<&Lease>) -> bool {
    let bytes = block(number);
    let verified = Verified::of(&bytes);
    match lease {
        Some(lease) => store.put_leased(Class::Bulk, verified, lease).unwrap(),
        None => store.put_verified(Class::Bulk, verified).unwrap(),
    }
}

/// Puts blocks into one pack.
fn pack_of(store: &SimStore, numbers: std::ops::Range<u32>) -> PackId {
    store.born();
    for number in numbers {
        assert!(put(store, number, None));
    }
    store.close_packs().unwrap();
    let born = store.born();
    assert_eq!(born.len(), 1);
    born[0].pack
}

fn reads(store: &SimStore, number: u32) -> bool {
    let found = store.get(&cid(number)).unwrap();
    found.is_some_and(|found| found == block(number))
}

#[test]
fn what_a_lease_relies_on_is_not_retired() {
    let store = open(&SimDisk::new(), None);
    let old = pack_of(&store, 0..5);
    let other = pack_of(&store, 10..15);
    let lease = store.lease();
    // Found in a closed pack.
    assert!(!put(&store, 3, Some(&lease)));
    assert!(!store.mark_retired(&old));
    assert!(store.mark_retired(&other));
    store.unmark_retired(&other);
    // Its own, and what it found in a pack that was still open.
    assert!(put(&store, 20, None));
    assert!(!put(&store, 20, Some(&lease)));
    store.close_packs().unwrap();
    let found_open = store.born().pop().unwrap().pack;
    let own = pack_of(&store, 21..22);
    assert!(!store.mark_retired(&found_open) && !store.mark_retired(&own));
    // One that begins now relies on nothing yet.
    let young = store.lease();
    drop(lease);
    assert!(
        [old, other, found_open, own]
            .iter()
            .all(|pack| store.mark_retired(pack))
    );
    drop(young);
    // Who relies on everything.
    let third = pack_of(&store, 30..31);
    let all = store.lease_all();
    assert!(!store.mark_retired(&third));
    assert_eq!(store.drop_retired(&old, &EVERYTHING).unwrap(), None);
    drop(all);
    assert!(store.drop_retired(&old, &EVERYTHING).unwrap().is_some());
}

#[test]
fn leases_that_end_during_a_run_count_until_it_is_over() {
    let store = open(&SimDisk::new(), None);
    let pack = pack_of(&store, 0..5);
    let run = store.begin_run();
    let lease = store.lease();
    assert!(!put(&store, 3, Some(&lease)));
    drop(lease);
    assert!(!store.mark_retired(&pack));
    drop(run);
    assert!(store.mark_retired(&pack));
}

#[test]
fn a_put_does_not_rely_on_a_pack_that_is_on_its_way_out() {
    let store = open(&SimDisk::new(), None);
    let pack = pack_of(&store, 0..5);
    assert!(store.mark_retired(&pack));
    assert!(reads(&store, 2), "it is readable all the same");
    assert!(put(&store, 2, None), "and written anew");
    assert!(!put(&store, 2, None));
    let out = store.copy_out(&pack, 100, true, &NOTHING).unwrap();
    assert_eq!((out.kept.len(), out.left_out.len()), (0, 5));
    store.drop_retired(&pack, &EVERYTHING).unwrap().unwrap();
    assert!(reads(&store, 2));
    assert!(!reads(&store, 3));
    assert!(
        !store
            .packs()
            .unwrap()
            .iter()
            .any(|(known, _)| *known == pack)
    );
    // The mark is taken back: the blocks count again.
    let pack = pack_of(&store, 40..45);
    assert!(store.mark_retired(&pack));
    store.unmark_retired(&pack);
    assert!(!put(&store, 41, None));
}

#[test]
fn what_is_kept_is_copied_once_and_lies_in_the_replacements() {
    let store = open(&SimDisk::new(), None);
    let first = pack_of(&store, 0..5);
    let second = pack_of(&store, 10..15);
    for pack in [&first, &second] {
        assert!(store.mark_retired(pack));
    }
    put(&store, 1, None);
    let even = |wanted: &Cid| (0..20).any(|number| number % 2 == 0 && cid(number) == *wanted);
    let out = store.copy_out(&first, 100, true, &even).unwrap();
    assert_eq!(out.kept, [cid(0), cid(2), cid(4)]);
    assert_eq!(out.left_out.len(), 2);
    assert_eq!(out.copied_bytes, 3000);
    assert_eq!(
        store.replacements(&out.kept).unwrap(),
        None,
        "not closed yet"
    );
    let again = store.copy_out(&first, 100, true, &even).unwrap();
    assert_eq!(again.copied_bytes, 0);
    // No more than so many are left out.
    let few = store.copy_out(&second, 1, true, &NOTHING).unwrap();
    assert_eq!((few.kept.len(), few.left_out.len()), (4, 1));
    store.close_packs().unwrap();
    let replacements = store.replacements(&out.kept).unwrap().unwrap();
    assert!(!replacements.is_empty() && !replacements.contains(&first));
    let left_out = |cid: &Cid| out.left_out.contains(&cid.digest().unwrap());
    store.drop_retired(&first, &left_out).unwrap().unwrap();
    for number in [0, 1, 2, 4] {
        assert!(reads(&store, number), "{number}");
    }
    assert!(!reads(&store, 3));
}

#[test]
fn nothing_that_may_be_needed_goes_with_the_pack() {
    // Though nobody copied anything, or the copy was damaged since.
    let disk = SimDisk::new();
    let store = open(&disk, None);
    let pack = pack_of(&store, 0..5);
    assert!(store.mark_retired(&pack));
    store.drop_retired(&pack, &NOTHING).unwrap().unwrap();
    store.close_packs().unwrap();
    let copy = store.born().pop().unwrap().pack;
    assert!((0..5).all(|number| reads(&store, number)));
    assert!(store.mark_retired(&copy));
    let out = store.copy_out(&copy, 0, true, &NOTHING).unwrap();
    assert_eq!(out.kept.len(), 5);
    store.close_packs().unwrap();
    let third = store.born().pop().unwrap().pack;
    assert_eq!(third, copy, "the same bytes again, under the same name");
    // So it is not on its way out any more.
    assert_eq!(store.drop_retired(&copy, &EVERYTHING).unwrap(), None);
    assert!(put(&store, 9, None), "another pack");
    assert!(store.mark_retired(&copy));
    store.copy_out(&copy, 0, true, &NOTHING).unwrap();
    store.close_packs().unwrap();
    let live = store.born().pop().unwrap().pack;
    disk.flip(&closed_name(&live, Keep::Kept), 3000 * 8);
    store.drop_retired(&copy, &NOTHING).unwrap().unwrap();
    assert!((0..5).all(|number| reads(&store, number)));
}

/// An index that looks, whenever it is asked for places, whether somebody could take a pack away meanwhile.
#[derive(Default)]
struct Watched {
    inner: MemIndex,
    store: std::sync::OnceLock<std::sync::Weak<Store<SimDisk, Watched>>>,
    looked: std::sync::atomic::AtomicU32,
}

impl Index for Watched {
    fn locations(&self, cid: &Cid) -> std::io::Result<Vec<crate::index::Location>> {
        if let Some(store) = self.store.get().and_then(std::sync::Weak::upgrade) {
            assert!(
                store.cached.try_write().is_err(),
                "a pack can go between look-up and answer"
            );
            self.looked
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.inner.locations(cid)
    }
    fn insert_pack(
        &self,
        pack: &PackId,
        info: crate::index::PackInfo,
        blocks: &[BlockAt],
    ) -> std::io::Result<()> {
        self.inner.insert_pack(pack, info, blocks)
    }
    fn packs(&self) -> std::io::Result<Vec<(PackId, crate::index::PackInfo)>> {
        self.inner.packs()
    }
    fn info(&self, pack: &PackId) -> std::io::Result<Option<crate::index::PackInfo>> {
        self.inner.info(pack)
    }
    fn forget(&self, cid: &Cid, pack: &PackId) -> std::io::Result<()> {
        self.inner.forget(cid, pack)
    }
    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> std::io::Result<()> {
        self.inner.remove_pack(pack, blocks)
    }
    fn each(&self, see: &mut dyn FnMut(&[u8], &[crate::index::Location])) -> std::io::Result<()> {
        self.inner.each(see)
    }
    fn key_of(&self, cid: &Cid) -> Vec<u8> {
        self.inner.key_of(cid)
    }
}

#[test]
fn no_pack_goes_between_the_look_up_of_a_put_and_its_answer() {
    let config = StoreConfig {
        free_floor: Some(0),
        ..StoreConfig::new(SpaceId([1; 32]))
    };
    let (store, _) = Store::open(SimDisk::new(), Watched::default(), config).unwrap();
    let store = Arc::new(store);
    let bytes = block(1);
    assert!(
        store
            .put_verified(Class::Bulk, Verified::of(&bytes))
            .unwrap()
    );
    store.close_packs().unwrap();
    store.index().store.set(Arc::downgrade(&store)).unwrap();
    let lease = store.lease();
    assert!(
        !store
            .put_leased(Class::Bulk, Verified::of(&bytes), &lease)
            .unwrap()
    );
    assert!(store.lies_live(&cid(1)).unwrap());
    let looked = store
        .index()
        .looked
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(looked, 2);
}

#[test]
fn a_damaged_pack_is_not_retired() {
    let disk = SimDisk::new();
    let store = open(&disk, None);
    let pack = pack_of(&store, 0..5);
    assert!(store.mark_retired(&pack));
    disk.flip(&closed_name(&pack, Keep::Kept), 3000 * 8);
    let damaged = |error| matches!(error, StoreError::Pack { .. });
    assert!(store.copy_out(&pack, 9, true, &NOTHING).is_err_and(damaged));
    assert!(store.drop_retired(&pack, &EVERYTHING).is_err_and(damaged));
    assert!(reads(&store, 0));
}

#[test]
fn a_store_that_is_full_can_still_be_collected() {
    let quota = 400_000;
    let disk = SimDisk::new();
    let store = open(&disk, Some(quota));
    let mut stored = 0;
    let full = loop {
        let bytes = block(stored);
        match store.put_verified(Class::Bulk, Verified::of(&bytes)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(full.is_full() && stored > 250);
    store.close_packs().unwrap();
    let keep = |wanted: &Cid| (0..stored).any(|number| number % 3 == 0 && cid(number) == *wanted);
    let packs: Vec<PackId> = store
        .packs()
        .unwrap()
        .iter()
        .map(|(pack, _)| *pack)
        .collect();
    for pack in packs {
        assert!(store.mark_retired(&pack));
        let out = store.copy_out(&pack, 100, true, &keep).unwrap();
        store.close_packs().unwrap();
        assert!(store.usage().unwrap().bytes <= quota);
        if !store.is_retired(&pack) {
            // All of it was kept, and its copy is the same pack again.
            assert!(out.left_out.is_empty());
            continue;
        }
        let left_out = |cid: &Cid| out.left_out.contains(&cid.digest().unwrap());
        store.drop_retired(&pack, &left_out).unwrap().unwrap();
    }
    assert!((0..stored).all(|number| reads(&store, number) == (number % 3 == 0)));
    let on_disk: u64 = disk
        .list()
        .unwrap()
        .iter()
        .map(|name| disk.len(name).unwrap())
        .sum();
    assert_eq!(store.usage().unwrap().bytes, on_disk);
    assert!(on_disk < quota / 2, "{on_disk}");
    for number in 1000..1100 {
        assert!(put(&store, number, None));
    }
}
