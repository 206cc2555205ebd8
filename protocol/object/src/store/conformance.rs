//! What every disk with every index must do. Run on the simulated disk with the index in memory, and on the real disk with fjall.
//!
//! The module above provides `object`, the crate `kith-object` by that name.

use std::collections::BTreeMap;

use super::object::disk::Disk;
use super::object::id::{Cid, PackId, SpaceId};
use super::object::index::{Index, Location, PackInfo};
use super::object::log::Log;
use super::object::pack::{self, BLOCK_BYTES_MAX, BlockAt, Class, HEADER_BYTES};
use super::object::store::{IndexFault, Keep, PACK_IDLE, Store, StoreConfig, StoreError, Verified};
use super::object::time::{Span, Time};

/// A place that can be opened again and again, as after a restart.
pub(super) trait Place {
    type Disk: Disk;
    type Index: Index;

    fn disk(&self) -> Self::Disk;
    fn index(&self) -> Self::Index;
    fn lose_index(&self);
    /// Inverts the lowest bit of a byte, behind the back of everybody.
    fn damage(&self, name: &str, offset: u64);
}

const PACK_BYTES: u64 = 8 << 10;

fn config() -> StoreConfig {
    StoreConfig {
        space: SpaceId([3; 32]),
        pack_bytes_max: PACK_BYTES,
        free_floor: Some(0),
        quota: None,
        cache: None,
    }
}

fn open<P: Place>(place: &P) -> Store<P::Disk, P::Index> {
    Store::open(place.disk(), place.index(), config())
        .unwrap()
        .0
}

fn block(number: u32, len: usize) -> (Cid, Vec<u8>) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    (Cid::of_block(&bytes), bytes)
}

fn put<P: Place>(store: &Store<P::Disk, P::Index>, number: u32, len: usize) -> Cid {
    let (cid, bytes) = block(number, len);
    assert!(store.put(Class::Bulk, &cid, &bytes).unwrap());
    cid
}

fn assert_holds<P: Place>(store: &Store<P::Disk, P::Index>, number: u32, len: usize) {
    let (cid, bytes) = block(number, len);
    assert!(store.has(&cid).unwrap(), "block {number}");
    assert_eq!(store.size(&cid).unwrap(), Some(len as u32));
    assert_eq!(store.get(&cid).unwrap().unwrap(), bytes, "block {number}");
}

/// Every test of the suite, each on a place of its own.
macro_rules! suite {
    ($make:expr; $($test:ident),* $(,)?) => {
        $(#[test]
        fn $test() {
            conformance::$test(&$make);
        })*
    };
}
pub(super) use suite;

/// All tests; the one list for all places.
macro_rules! suite_of {
    ($make:expr) => {
        conformance::suite!($make;
            disk_keeps_what_it_is_given,
            disk_refuses_bad_names,
            blocks_are_found_before_and_after_closing,
            block_is_written_once,
            wrong_bytes_are_refused,
            foreign_and_odd_blocks_are_kept,
            flushed_blocks_are_there_after_a_restart,
            packs_close_when_full_and_are_what_their_names_say,
            idle_packs_close,
            classes_do_not_share_packs,
            lost_index_is_rebuilt,
            index_knows_only_packs_that_are_there,
            index_keeps_several_places,
            damaged_block_counts_as_absent_until_put_again,
            damaged_block_of_an_open_pack_counts_as_absent_until_put_again,
            second_copy_answers_for_a_damaged_one,
            quarantine_keeps_sound_blocks_and_the_file,
            rebuilt_index_equals_the_lost_one,
            index_of_another_time_is_mended_at_the_start,
            scrub_names_what_is_damaged_and_keeps_the_rest,
            index_that_differs_from_the_packs_is_noticed,
            broken_footer_costs_no_block,
            torn_end_of_an_open_pack_is_cut,
            damage_inside_an_open_pack_costs_one_block,
            many_threads_put_and_flush,
            log_keeps_its_records,
        );
    };
}
pub(super) use suite_of;

pub(super) fn disk_keeps_what_it_is_given(place: &impl Place) {
    let disk = place.disk();
    disk.create("b").unwrap();
    disk.create("a-1.x").unwrap();
    assert_eq!(
        disk.create("b").unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
    assert_eq!(disk.append("b", b"hello").unwrap(), 0);
    assert_eq!(disk.append_parts("b", &[b" ", b"", b"world"]).unwrap(), 5);
    assert_eq!(disk.append_parts("b", &[]).unwrap(), 11);
    assert_eq!(disk.len("b").unwrap(), 11);
    assert_eq!(disk.read_at("b", 4, 3).unwrap(), b"o w");
    assert_eq!(disk.read_at("b", 11, 0).unwrap(), b"");
    assert_eq!(
        disk.read_at("b", 9, 3).unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    assert_eq!(
        disk.read_at("b", u64::MAX, 3).unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    disk.truncate("b", 6).unwrap();
    assert_eq!(disk.append("b", b"all").unwrap(), 6);
    assert_eq!(disk.read_at("b", 0, 9).unwrap(), b"hello all");
    disk.sync("b").unwrap();
    disk.rename("b", "a-1.x").unwrap();
    disk.sync_names().unwrap();
    assert_eq!(disk.list().unwrap(), ["a-1.x"]);
    assert_eq!(disk.append("a-1.x", b"!").unwrap(), 9);
    assert_eq!(disk.read_at("a-1.x", 0, 10).unwrap(), b"hello all!");
    drop(disk);
    let disk = place.disk();
    assert_eq!(disk.append("a-1.x", b"?").unwrap(), 10);
    disk.remove("a-1.x").unwrap();
    let gone = [
        disk.remove("a-1.x").unwrap_err(),
        disk.len("a-1.x").unwrap_err(),
        disk.read_at("a-1.x", 0, 0).unwrap_err(),
        disk.append("a-1.x", b"").unwrap_err(),
        disk.sync("a-1.x").unwrap_err(),
        disk.truncate("a-1.x", 0).unwrap_err(),
        disk.rename("a-1.x", "c").unwrap_err(),
    ];
    for error in gone {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
    assert!(disk.list().unwrap().is_empty());
}

pub(super) fn disk_refuses_bad_names(place: &impl Place) {
    let disk = place.disk();
    for name in [
        "",
        ".",
        "..",
        ".a",
        "a/b",
        "A",
        "a b",
        "a\0",
        "ä",
        &"a".repeat(129),
    ] {
        assert!(disk.create(name).is_err(), "{name:?}");
    }
    disk.create(&"a".repeat(128)).unwrap();
    assert!(disk.rename(&"a".repeat(128), "../a").is_err());
}

pub(super) fn blocks_are_found_before_and_after_closing<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..20 {
        put::<P>(&store, number, 300);
        assert_holds::<P>(&store, number, 300);
    }
    let absent = block(99, 300).0;
    assert!(!store.has(&absent).unwrap());
    assert_eq!(store.get(&absent).unwrap(), None);
    store.close_packs().unwrap();
    for number in 0..20 {
        assert_holds::<P>(&store, number, 300);
    }
    assert!(!store.has(&absent).unwrap());
}

pub(super) fn block_is_written_once<P: Place>(place: &P) {
    let (cid, bytes) = block(1, 100);
    let store = open(place);
    assert!(store.put(Class::Bulk, &cid, &bytes).unwrap());
    assert!(!store.put(Class::Bulk, &cid, &bytes).unwrap());
    assert!(!store.put(Class::Names, &cid, &bytes).unwrap());
    store.close_packs().unwrap();
    assert!(
        !store
            .put_verified(Class::Bulk, Verified::of(&bytes))
            .unwrap()
    );
    drop(store);
    let store = open(place);
    assert!(!store.put(Class::Bulk, &cid, &bytes).unwrap());
    store.flush().unwrap();
    assert_eq!(store.packs().unwrap().len(), 1);
}

pub(super) fn wrong_bytes_are_refused<P: Place>(place: &P) {
    let store = open(place);
    let (cid, mut bytes) = block(1, 100);
    bytes[50] ^= 1;
    assert!(matches!(
        store.put(Class::Bulk, &cid, &bytes),
        Err(StoreError::Mismatch { .. })
    ));
    assert!(!store.has(&cid).unwrap());
    let long = vec![0; BLOCK_BYTES_MAX + 1];
    assert!(matches!(
        store.put(Class::Bulk, &Cid::of_block(&long), &long),
        Err(StoreError::TooLong { .. })
    ));
}

pub(super) fn foreign_and_odd_blocks_are_kept<P: Place>(place: &P) {
    let store = open(place);
    let kubo = b"from the IPFS world";
    let kubo_cid = Cid::from_prefix(0, 0x70, 0x12, 32, kubo).unwrap();
    let long = vec![7; BLOCK_BYTES_MAX];
    assert!(store.put(Class::Public, &kubo_cid, kubo).unwrap());
    assert!(store.put(Class::Public, &Cid::of_block(b""), b"").unwrap());
    assert!(
        store
            .put(Class::Public, &Cid::of_block(&long), &long)
            .unwrap()
    );
    for _ in 0..2 {
        assert_eq!(store.get(&kubo_cid).unwrap().unwrap(), kubo[..]);
        assert_eq!(store.get(&Cid::of_block(b"")).unwrap().unwrap(), b""[..]);
        assert_eq!(store.get(&Cid::of_block(&long)).unwrap().unwrap(), long);
        store.close_packs().unwrap();
    }
}

pub(super) fn flushed_blocks_are_there_after_a_restart<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..50 {
        put::<P>(&store, number, 700);
    }
    store.flush().unwrap();
    drop(store);
    for _ in 0..2 {
        let store = open(place);
        for number in 0..50 {
            assert_holds::<P>(&store, number, 700);
        }
    }
}

pub(super) fn packs_close_when_full_and_are_what_their_names_say<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..60 {
        put::<P>(&store, number, 900);
    }
    store.close_packs().unwrap();
    let mut blocks = 0;
    let born = store.born();
    assert!(born.len() >= 6, "{born:?}");
    assert!(store.born().is_empty());
    let mut packs = store.packs().unwrap();
    let mut named: Vec<(PackId, PackInfo)> =
        born.iter().map(|born| (born.pack, born.info)).collect();
    packs.sort_unstable_by_key(|(pack, _)| *pack);
    named.sort_unstable_by_key(|(pack, _)| *pack);
    assert_eq!(packs, named);
    for born in born {
        let name = format!("{}.pack", born.pack);
        let len = store.disk().len(&name).unwrap();
        assert!(len <= PACK_BYTES);
        assert_eq!(len, born.info.bytes);
        let bytes = store.disk().read_at(&name, 0, len as usize).unwrap();
        let found = pack::check(&bytes).unwrap();
        assert_eq!(found.id, born.pack);
        assert_eq!(found.header.space, SpaceId([3; 32]));
        assert_eq!(found.blocks.len() as u32, born.info.blocks);
        assert_eq!(found.blocks, store.pack_blocks(&born.pack).unwrap());
        store.check_pack(&born.pack).unwrap();
        blocks += born.info.blocks;
    }
    assert_eq!(blocks, 60);
}

pub(super) fn idle_packs_close<P: Place>(place: &P) {
    let store = open(place);
    let start = Time(1_000_000);
    put::<P>(&store, 1, 100);
    store.tick(start).unwrap();
    store.tick(start + PACK_IDLE - Span(1)).unwrap_or_default();
    assert!(store.packs().unwrap().is_empty());
    put::<P>(&store, 2, 100);
    store.tick(start + PACK_IDLE).unwrap();
    assert!(store.packs().unwrap().is_empty());
    store.tick(start + PACK_IDLE + PACK_IDLE).unwrap();
    assert_eq!(store.packs().unwrap().len(), 1);
    assert_holds::<P>(&store, 1, 100);
    assert_holds::<P>(&store, 2, 100);
}

pub(super) fn classes_do_not_share_packs<P: Place>(place: &P) {
    let store = open(place);
    for (number, class) in (0..).zip(Class::ALL) {
        let (cid, bytes) = block(number, 50);
        store.put(class, &cid, &bytes).unwrap();
    }
    store.close_packs().unwrap();
    let mut classes: Vec<Class> = store
        .packs()
        .unwrap()
        .iter()
        .map(|(_, info)| info.class)
        .collect();
    classes.sort_unstable();
    assert_eq!(classes, Class::ALL);
}

pub(super) fn lost_index_is_rebuilt<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..40 {
        put::<P>(&store, number, 500);
    }
    store.close_packs().unwrap();
    let packs = store.packs().unwrap().len();
    drop(store);
    place.lose_index();
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!(report.indexed as usize, packs);
    assert_eq!(store.born().len(), packs);
    for number in 0..40 {
        assert_holds::<P>(&store, number, 500);
    }
}

pub(super) fn index_knows_only_packs_that_are_there<P: Place>(place: &P) {
    let store = open(place);
    put::<P>(&store, 1, 500);
    store.close_packs().unwrap();
    let (pack, _) = store.packs().unwrap()[0];
    drop(store);
    place.disk().remove(&format!("{pack}.pack")).unwrap();
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!(report.vanished, [pack]);
    assert!(!store.has(&block(1, 500).0).unwrap());
    put::<P>(&store, 1, 500);
    store.close_packs().unwrap();
    assert_holds::<P>(&store, 1, 500);
}

pub(super) fn index_keeps_several_places(place: &impl Place) {
    let index = place.index();
    let info = PackInfo {
        class: Class::Bulk,
        blocks: 1,
        bytes: 1000,
    };
    let (cid, other) = (block(1, 1).0, block(2, 1).0);
    let at = |cid, offset| BlockAt {
        cid,
        offset,
        len: 1,
    };
    let packs = |index: &dyn Index| {
        let mut packs: Vec<PackId> = index
            .packs()
            .unwrap()
            .into_iter()
            .map(|(pack, _)| pack)
            .collect();
        packs.sort_unstable();
        packs
    };
    let places = |index: &dyn Index, cid: &Cid| {
        let mut places: Vec<(u8, u32)> = index
            .locations(cid)
            .unwrap()
            .iter()
            .map(|place| (place.pack.0[0], place.offset))
            .collect();
        places.sort_unstable();
        places
    };
    index
        .insert_pack(&PackId([1; 32]), info, &[at(cid, 101)])
        .unwrap();
    index
        .insert_pack(&PackId([2; 32]), info, &[at(cid, 102), at(other, 202)])
        .unwrap();
    index
        .insert_pack(&PackId([2; 32]), info, &[at(cid, 102), at(other, 202)])
        .unwrap();
    index
        .insert_pack(&PackId([3; 32]), info, &[at(cid, 103)])
        .unwrap();
    assert_eq!(places(&index, &cid), [(1, 101), (2, 102), (3, 103)]);
    index.forget(&cid, &PackId([1; 32])).unwrap();
    index.forget(&cid, &PackId([9; 32])).unwrap();
    assert_eq!(places(&index, &cid), [(2, 102), (3, 103)]);
    // Not told of `other`, the index must not answer with it either.
    index.remove_pack(&PackId([2; 32]), &[cid]).unwrap();
    assert_eq!(places(&index, &cid), [(3, 103)]);
    assert_eq!(places(&index, &other), []);
    assert_eq!(packs(&index), [PackId([1; 32]), PackId([3; 32])]);
    drop(index);
    let index = place.index();
    assert_eq!(places(&index, &cid), [(3, 103)]);
    index
        .insert_pack(&PackId([4; 32]), info, &[at(other, 204)])
        .unwrap();
    assert_eq!(places(&index, &other), [(4, 204)]);
    assert_eq!(
        packs(&index),
        [PackId([1; 32]), PackId([3; 32]), PackId([4; 32])]
    );
}

/// The file and offset of a block in a closed pack.
fn find<P: Place>(store: &Store<P::Disk, P::Index>, cid: &Cid) -> (PackId, u64) {
    store
        .packs()
        .unwrap()
        .into_iter()
        .find_map(|(pack, _)| {
            let at = store
                .pack_blocks(&pack)
                .ok()?
                .into_iter()
                .find(|block| block.cid == *cid)?;
            Some((pack, u64::from(at.offset)))
        })
        .unwrap()
}

pub(super) fn damaged_block_counts_as_absent_until_put_again<P: Place>(place: &P) {
    let store = open(place);
    let cid = put::<P>(&store, 1, 500);
    put::<P>(&store, 2, 500);
    store.close_packs().unwrap();
    let (pack, offset) = find::<P>(&store, &cid);
    place.damage(&format!("{pack}.pack"), offset + 77);
    assert!(matches!(store.get(&cid), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.stats().corrupt, 1);
    assert!(!store.has(&cid).unwrap());
    assert_eq!(store.get(&cid).unwrap(), None);
    assert!(matches!(
        store.check_pack(&pack),
        Err(StoreError::Pack { .. })
    ));
    put::<P>(&store, 1, 500);
    assert_holds::<P>(&store, 1, 500);
    store.flush().unwrap();
    drop(store);
    for _ in 0..2 {
        let store = open(place);
        assert_holds::<P>(&store, 1, 500);
        assert_holds::<P>(&store, 2, 500);
        drop(store);
        // Even an index rebuilt from the footers, which names the damaged copy again, finds the sound one.
        place.lose_index();
    }
}

pub(super) fn damaged_block_of_an_open_pack_counts_as_absent_until_put_again<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..3 {
        put::<P>(&store, number, 500);
    }
    store.flush().unwrap();
    let cid = block(1, 500).0;
    place.damage("open-0.pack", HEADER_BYTES as u64 + 537 + 37 + 5);
    assert!(matches!(store.get(&cid), Err(StoreError::Corrupt { .. })));
    assert!(!store.has(&cid).unwrap());
    put::<P>(&store, 1, 500);
    for number in 0..3 {
        assert_holds::<P>(&store, number, 500);
    }
    store.close_packs().unwrap();
    drop(store);
    for _ in 0..2 {
        let store = open(place);
        for number in 0..3 {
            assert_holds::<P>(&store, number, 500);
        }
        for (pack, _) in store.packs().unwrap() {
            store.check_pack(&pack).unwrap();
        }
    }
}

pub(super) fn second_copy_answers_for_a_damaged_one<P: Place>(place: &P) {
    let store = open(place);
    let cid = put::<P>(&store, 1, 500);
    store.close_packs().unwrap();
    let (first, offset) = find::<P>(&store, &cid);
    drop(store);
    // A second pack with the same block, as another device might have made it.
    let disk = place.disk();
    let name = format!("{first}.pack");
    disk.rename(&name, "aside").unwrap();
    let store = open(place);
    put::<P>(&store, 1, 500);
    put::<P>(&store, 2, 500);
    store.close_packs().unwrap();
    drop(store);
    disk.rename("aside", &name).unwrap();
    drop(disk);
    let store = open(place);
    place.damage(&name, offset);
    assert_holds::<P>(&store, 1, 500);
    let kept = store.quarantine(&first).unwrap();
    assert_eq!(kept, format!("{name}.bad"));
    assert_holds::<P>(&store, 1, 500);
}

pub(super) fn quarantine_keeps_sound_blocks_and_the_file<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..10 {
        put::<P>(&store, number, 400);
    }
    store.close_packs().unwrap();
    let cid = block(4, 400).0;
    let (pack, offset) = find::<P>(&store, &cid);
    let name = format!("{pack}.pack");
    place.damage(&name, offset);
    let len = store.disk().len(&name).unwrap();
    let kept = store.quarantine(&pack).unwrap();
    assert_eq!(store.disk().len(&kept).unwrap(), len);
    for _ in 0..2 {
        for number in (0..10).filter(|number| *number != 4) {
            assert_holds::<P>(&store, number, 400);
        }
        assert!(!store.has(&cid).unwrap());
        store.close_packs().unwrap();
    }
    drop(store);
    let store = open(place);
    assert!(
        store
            .packs()
            .unwrap()
            .iter()
            .all(|(other, _)| *other != pack)
    );
    assert_holds::<P>(&store, 9, 400);
}

pub(super) fn broken_footer_costs_no_block<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..10 {
        put::<P>(&store, number, 400);
    }
    store.close_packs().unwrap();
    let (pack, info) = store.packs().unwrap()[0];
    drop(store);
    place.damage(&format!("{pack}.pack"), info.bytes - 100);
    place.lose_index();
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!(report.damaged, [format!("{pack}.pack.bad")]);
    for number in 0..10 {
        assert_holds::<P>(&store, number, 400);
    }
}

pub(super) fn torn_end_of_an_open_pack_is_cut<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..5 {
        put::<P>(&store, number, 400);
    }
    store.flush().unwrap();
    drop(store);
    let disk = place.disk();
    let (cid, bytes) = block(5, 400);
    let head = pack::PackWriter::record_head(&cid, bytes.len());
    disk.append_parts("open-0.pack", &[head.bytes(), &bytes[..399]])
        .unwrap();
    drop(disk);
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!((report.recovered, report.torn_bytes), (1, 37 + 399));
    assert!(report.damaged.is_empty() && report.waiting.is_empty());
    for number in 0..5 {
        assert_holds::<P>(&store, number, 400);
    }
    assert!(!store.has(&cid).unwrap());
    for (pack, _) in store.packs().unwrap() {
        store.check_pack(&pack).unwrap();
    }
}

pub(super) fn damage_inside_an_open_pack_costs_one_block<P: Place>(place: &P) {
    let store = open(place);
    for number in 0..5 {
        put::<P>(&store, number, 400);
    }
    store.flush().unwrap();
    drop(store);
    place.damage("open-0.pack", HEADER_BYTES as u64 + 437 + 100);
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!(report.damaged, ["open-0.pack.bad"]);
    assert!(!store.has(&block(1, 400).0).unwrap());
    for number in [0, 2, 3, 4] {
        assert_holds::<P>(&store, number, 400);
    }
}

pub(super) fn many_threads_put_and_flush<P: Place>(place: &P) {
    let store = open(place);
    let shared = &store;
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            scope.spawn(move || {
                for number in 0..100 {
                    // Half of the blocks are the same for all.
                    let number = if number % 2 == 0 {
                        number
                    } else {
                        thread * 1000 + number
                    };
                    let (cid, bytes) = block(number, 200);
                    shared.put(Class::Bulk, &cid, &bytes).unwrap();
                    if number % 10 == 0 {
                        shared.flush().unwrap();
                    }
                    assert_eq!(shared.get(&cid).unwrap().unwrap(), bytes);
                }
            });
        }
        scope.spawn(|| {
            for second in 0..50 {
                shared.tick(Time(second * 100_000)).unwrap();
            }
        });
    });
    store.flush().unwrap();
    let puts = store.stats();
    assert_eq!(puts.blocks_new, 50 + 4 * 50);
    assert_eq!(puts.blocks_known, 3 * 50);
    drop(store);
    let store = open(place);
    for thread in 0..4 {
        for number in 0..100 {
            let number = if number % 2 == 0 {
                number
            } else {
                thread * 1000 + number
            };
            assert_holds::<P>(&store, number, 200);
        }
    }
}

pub(super) fn log_keeps_its_records(place: &impl Place) {
    let (log, records, _) = Log::open(place.disk(), "entries.log").unwrap();
    assert!(records.is_empty());
    let shared = &log;
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            scope.spawn(move || {
                for number in 0..50_u8 {
                    let at = shared.append(&[thread, number]).unwrap();
                    shared.sync().unwrap();
                    assert_eq!(shared.read(at).unwrap(), [thread, number][..]);
                }
            });
        }
    });
    drop(log);
    let (log, records, report) = Log::open(place.disk(), "entries.log").unwrap();
    assert_eq!(report.records, 200);
    assert!(report.damaged.is_empty() && report.torn_bytes == 0);
    for thread in 0..4 {
        let own: Vec<u8> = records
            .iter()
            .filter(|record| record[0] == thread)
            .map(|record| record[1])
            .collect();
        assert_eq!(own, (0..50).collect::<Vec<u8>>());
    }
    place.damage("entries.log", 16 + 48);
    drop(log);
    let (_, records, report) = Log::open(place.disk(), "entries.log").unwrap();
    assert_eq!(records.len(), 199);
    assert_eq!(
        (report.damaged.len(), report.damaged[0].clone()),
        (1, 16..66)
    );
}

/// All entries of an index, in an order of their own.
fn entries<I: Index>(index: &I) -> Entries {
    let mut blocks = BTreeMap::new();
    index
        .each(&mut |key, places| {
            let mut places = places.to_vec();
            places.sort_unstable();
            blocks.insert(key.to_vec(), places);
        })
        .unwrap();
    let mut packs = index.packs().unwrap();
    packs.sort_unstable_by_key(|(pack, _)| *pack);
    (blocks, packs)
}

type Entries = (BTreeMap<Vec<u8>, Vec<Location>>, Vec<(PackId, PackInfo)>);

/// Packs of all kinds: of several classes, cached, with blocks that lie in two.
fn fill<P: Place>(store: &Store<P::Disk, P::Index>) {
    for number in 0..120 {
        let (cid, bytes) = block(number, 700);
        let class = Class::ALL[number as usize % 3];
        if number % 4 == 0 {
            let cached = store.put_cached(class, Verified::of(&bytes));
            assert!(cached.unwrap());
        }
        if number % 8 != 0 {
            store.put(class, &cid, &bytes).unwrap();
        }
    }
    store.close_packs().unwrap();
}

pub(super) fn rebuilt_index_equals_the_lost_one<P: Place>(place: &P) {
    let store = open(place);
    fill::<P>(&store);
    let lost = entries(store.index());
    assert!(lost.0.len() >= 120 && lost.1.len() > 10);
    let several = lost.0.values().filter(|places| places.len() > 1).count();
    assert!(several > 10, "some blocks lie in two packs");
    for number in 0..120 {
        let key = store.index().key_of(&block(number, 700).0);
        assert!(lost.0.contains_key(&key), "block {number}");
    }
    drop(store);
    place.lose_index();
    let mut told = Vec::new();
    let (store, report) =
        Store::open_telling(place.disk(), place.index(), config(), &mut |done, all| {
            told.push((done, all));
        })
        .unwrap();
    assert_eq!(report.indexed as usize, lost.1.len());
    assert_eq!(entries(store.index()), lost);
    assert_eq!(store.compare_index().unwrap(), []);
    let all = lost.1.len() as u64;
    let expected: Vec<(u64, u64)> = (0..=all).map(|done| (done, all)).collect();
    assert_eq!(told, expected);
}

/// The index was copied back from a backup, or the packs were: some packs it does not know, some are not there.
pub(super) fn index_of_another_time_is_mended_at_the_start<P: Place>(place: &P) {
    let store = open(place);
    fill::<P>(&store);
    let now = entries(store.index());
    let (gone, _) = now.1[0];
    let (unknown, _) = now.1[1];
    let blocks = store.pack_blocks(&unknown).unwrap();
    let blocks: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    let stranger = PackId([9; 32]);
    let at = BlockAt {
        cid: block(0, 700).0,
        offset: 101,
        len: 700,
    };
    let (foreign, _) = block(5000, 1);
    let ghost = BlockAt {
        cid: foreign,
        offset: 900,
        len: 1,
    };
    let info = PackInfo {
        class: Class::Bulk,
        blocks: 2,
        bytes: 5000,
    };
    store.index().remove_pack(&unknown, &blocks).unwrap();
    store
        .index()
        .insert_pack(&stranger, info, &[at, ghost])
        .unwrap();
    drop(store);
    let disk = place.disk();
    let name = disk
        .list()
        .unwrap()
        .into_iter()
        .find(|name| name.starts_with(&gone.to_string()));
    disk.remove(&name.unwrap()).unwrap();
    disk.sync_names().unwrap();
    drop(disk);
    let (store, report) = Store::open(place.disk(), place.index(), config()).unwrap();
    assert_eq!(report.indexed, 1);
    let mut vanished = report.vanished.clone();
    vanished.sort_unstable();
    let mut expected = vec![gone, stranger];
    expected.sort_unstable();
    assert_eq!(vanished, expected);
    assert!(!store.has(&foreign).unwrap());
    assert_eq!(store.compare_index().unwrap(), []);
    let mended = entries(store.index());
    drop(store);
    place.lose_index();
    let store = open(place);
    assert_eq!(entries(store.index()), mended);
}

pub(super) fn scrub_names_what_is_damaged_and_keeps_the_rest<P: Place>(place: &P) {
    let store = open(place);
    fill::<P>(&store);
    let packs = store.packs().unwrap();
    for (pack, _) in &packs {
        assert!(store.scrub_pack(pack).unwrap().is_none());
    }
    let kept = packs
        .iter()
        .find(|(pack, _)| store.keep_of(pack) == Keep::Kept);
    let (pack, _) = *kept.unwrap();
    let blocks = store.pack_blocks(&pack).unwrap();
    let bad = blocks[1];
    place.damage(&format!("{pack}.pack"), u64::from(bad.offset) + 5);
    // A place in a pack that is damaged is still tried, so other copies are not the matter here.
    let damage = store.scrub_pack(&pack).unwrap().unwrap();
    assert_eq!(damage.file, format!("{pack}.pack"));
    assert_eq!(damage.offset, u64::from(bad.offset));
    assert_eq!(damage.bad, [bad]);
    assert_eq!(damage.aside.unwrap(), format!("{pack}.pack.bad"));
    let elsewhere = store.has(&bad.cid).unwrap();
    assert_eq!(damage.lost.is_empty(), elsewhere);
    assert_eq!(store.lost_blocks().unwrap(), damage.lost);
    for block in blocks.iter().filter(|block| block.cid != bad.cid) {
        assert!(store.get(&block.cid).unwrap().is_some());
    }
    // It is gone from the list, and asking for it again is no error.
    assert!(store.scrub_pack(&pack).unwrap().is_none());
    let (_, bytes) = (0..120)
        .map(|number| block(number, 700))
        .find(|(cid, _)| *cid == bad.cid)
        .unwrap();
    store.put(Class::Bulk, &bad.cid, &bytes).unwrap();
    assert_eq!(store.lost_blocks().unwrap(), []);
    store.close_packs().unwrap();
    assert_eq!(store.compare_index().unwrap(), []);
    // A file that somebody removed is damage, told once.
    let (pack, _) = *store
        .packs()
        .unwrap()
        .iter()
        .find(|(pack, _)| store.keep_of(pack) == Keep::Kept)
        .unwrap();
    store.disk().remove(&format!("{pack}.pack")).unwrap();
    assert!(store.scrub_pack(&pack).unwrap().is_some());
    assert!(store.scrub_pack(&pack).unwrap().is_none());
    assert_eq!(store.compare_index().unwrap(), []);
}

pub(super) fn index_that_differs_from_the_packs_is_noticed<P: Place>(place: &P) {
    let store = open(place);
    fill::<P>(&store);
    let (pack, info) = store.packs().unwrap()[0];
    let blocks = store.pack_blocks(&pack).unwrap();
    store.index().forget(&blocks[0].cid, &pack).unwrap();
    let lacks = IndexFault::Lacks { pack, blocks: 1 };
    assert_eq!(store.compare_index().unwrap(), [lacks]);
    assert_eq!(store.compare_index().unwrap(), []);
    let ghost = BlockAt {
        cid: block(5000, 1).0,
        offset: 101,
        len: 1,
    };
    let more: Vec<BlockAt> = blocks.iter().copied().chain([ghost]).collect();
    store.index().insert_pack(&pack, info, &more).unwrap();
    let exceeds = IndexFault::Exceeds { pack, blocks: 1 };
    assert_eq!(store.compare_index().unwrap(), [exceeds]);
}
