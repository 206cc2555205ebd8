use std::sync::Arc;

use super::super::{StoreConfig, Verified, closed_name};
use super::*;
use crate::disk::{Crash, Fault, SimDisk};
use crate::id::SpaceId;
use crate::index::MemIndex;
use crate::key::Rng;
use crate::pack::{Header, PackWriter};

type TestStore = Store<SimDisk, Arc<MemIndex>>;

fn config() -> StoreConfig {
    StoreConfig {
        space: SpaceId([1; 32]),
        pack_bytes_max: 1 << 20,
        free_floor: Some(0),
        quota: None,
        cache: None,
    }
}

fn opened(disk: &SimDisk, index: &Arc<MemIndex>, quota: Option<u64>) -> TestStore {
    let config = StoreConfig { quota, ..config() };
    Store::open(disk.clone(), Arc::clone(index), config)
        .unwrap()
        .0
}

fn block(number: u32) -> Vec<u8> {
    blake3::hash(&number.to_le_bytes()).as_bytes().repeat(20)
}

/// A pack as another device would have it.
fn pack_of(numbers: std::ops::Range<u32>, class: Class, space: SpaceId) -> (PackId, Vec<u8>) {
    let header = Header::new(class, space);
    let mut bytes = header.encode().to_vec();
    let mut writer = PackWriter::new(header);
    for number in numbers {
        let block = block(number);
        let head = PackWriter::record_head(&Cid::of_block(&block), block.len());
        writer.push(&head, &block);
        bytes.extend_from_slice(head.bytes());
        bytes.extend_from_slice(&block);
    }
    let (footer, id) = writer.footer();
    bytes.extend_from_slice(&footer);
    (id, bytes)
}

fn ours(numbers: std::ops::Range<u32>) -> (PackId, Vec<u8>) {
    pack_of(numbers, Class::Bulk, config().space)
}

/// All of it, some bytes at a time.
fn take(store: &TestStore, pack: PackId, bytes: &[u8], keep: Keep) -> Result<(), AdoptError> {
    let Some(mut part) = store.part(pack, bytes.len() as u64, keep)? else {
        return Ok(());
    };
    let from = usize::try_from(part.len_bytes()).unwrap();
    for piece in bytes[from..].chunks(1500) {
        store.append(&mut part, piece)?;
    }
    assert!(part.is_whole());
    store.adopt(part).map(drop)
}

fn assert_reads(store: &TestStore, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let block = block(number);
        let read = store.get(&Cid::of_block(&block)).unwrap();
        assert!(read.is_some_and(|read| read == block), "{number}");
    }
}

#[test]
fn pack_of_another_device_is_taken_over_whole() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = opened(&disk, &index, None);
    let (id, bytes) = ours(0..10);
    let mut part = store
        .part(id, bytes.len() as u64, Keep::Kept)
        .unwrap()
        .unwrap();
    assert!(
        store
            .part(id, bytes.len() as u64, Keep::Kept)
            .unwrap()
            .is_none(),
        "it is under way"
    );
    store.append(&mut part, &bytes[..4000]).unwrap();
    assert!(
        !store.has(&Cid::of_block(&block(0))).unwrap(),
        "nothing is read from it yet"
    );
    assert_eq!(store.usage().unwrap().bytes, 4000);
    assert!(
        store.append(&mut part, &bytes).is_err(),
        "longer than was said"
    );
    store.append(&mut part, &bytes[4000..]).unwrap();
    let info = store.adopt(part).unwrap();
    assert_eq!((info.blocks, info.bytes), (10, bytes.len() as u64));
    assert_reads(&store, 0..10);
    assert_eq!(store.usage().unwrap().bytes, bytes.len() as u64);
    assert_eq!(store.born().len(), 1);
    assert_eq!(store.stats().packs_adopted, 1);
    assert!(
        store
            .part(id, bytes.len() as u64, Keep::Kept)
            .unwrap()
            .is_none(),
        "it is here"
    );
    let read = store.read_pack(&id, 64, 100).unwrap();
    assert_eq!(read.as_deref(), bytes.get(64..164));
    assert_eq!(store.pack_of(&Cid::of_block(&block(3))).unwrap(), Some(id));
    drop(store);
    disk.crash(Crash::Scatter, &mut Rng::from_seed([3; 32]));
    assert_reads(&opened(&disk, &Arc::default(), None), 0..10);
}

#[test]
fn fetch_goes_on_where_it_was_cut_off() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let (id, bytes) = ours(0..10);
    let store = opened(&disk, &index, None);
    let mut part = store
        .part(id, bytes.len() as u64, Keep::Kept)
        .unwrap()
        .unwrap();
    store.append(&mut part, &bytes[..3000]).unwrap();
    drop((part, store));
    let store = opened(&disk, &index, None);
    assert_eq!(store.usage().unwrap().bytes, 3000);
    let mut part = store
        .part(id, bytes.len() as u64, Keep::Kept)
        .unwrap()
        .unwrap();
    assert_eq!(part.len_bytes(), 3000);
    assert_eq!(store.discard_parts().unwrap(), 0, "it is under way");
    store.append(&mut part, &bytes[3000..5000]).unwrap();
    drop(part);
    assert_eq!(store.discard_parts().unwrap(), 5000);
    assert_eq!(store.usage().unwrap().bytes, 0);
    take(&store, id, &bytes, Keep::Kept).unwrap();
    assert_reads(&store, 0..10);
}

#[test]
fn what_is_no_pack_of_this_mesh_is_not_taken() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = opened(&disk, &index, None);
    let (id, good) = ours(0..10);
    let refuse = |id: PackId, bytes: &[u8]| {
        let refused = take(&store, id, bytes, Keep::Kept).unwrap_err();
        assert_eq!(disk.list().unwrap(), Vec::<String>::new(), "{refused}");
        assert_eq!(store.usage().unwrap().bytes, 0);
        refused
    };
    // Each byte altered: either the name is not that of the bytes, or, under the right name, the form is not that of a pack.
    for at in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(
            matches!(refuse(id, &bytes), AdoptError::Pack { .. }),
            "{at}"
        );
        let named = PackId(*blake3::hash(&bytes).as_bytes());
        let refused = refuse(named, &bytes);
        let is_space = (12..44).contains(&at);
        assert_eq!(
            matches!(refused, AdoptError::Foreign { .. }),
            is_space,
            "{at}: {refused}"
        );
    }
    let (id, foreign) = pack_of(0..10, Class::Bulk, SpaceId([2; 32]));
    assert!(matches!(refuse(id, &foreign), AdoptError::Foreign { .. }));
    let (id, public) = pack_of(0..10, Class::Public, config().space);
    assert!(matches!(refuse(id, &public), AdoptError::Foreign { .. }));
    for len in [0, 115, (64 << 20) + 1] {
        assert!(store.part(id, len, Keep::Kept).is_err(), "{len}");
    }
}

#[test]
fn full_store_says_so_before_it_fetches() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let (first, cached) = ours(0..10);
    let (second, bytes) = ours(10..20);
    let len = bytes.len() as u64;
    // With the reserve of a quarter there is room for one of them.
    let store = opened(&disk, &index, Some(len * 3 / 2));
    take(&store, first, &cached, Keep::Cached).unwrap();
    assert_eq!(store.keep_of(&first), Keep::Cached);
    // What is cached only makes room.
    take(&store, second, &bytes, Keep::Kept).unwrap();
    assert!(!store.has(&Cid::of_block(&block(0))).unwrap());
    assert_reads(&store, 10..20);
    let refused = store.part(first, len, Keep::Kept).unwrap_err();
    assert!(refused.is_full(), "{refused}");
    // The disk fills up in the middle.
    store.set_quota(None);
    let mut part = store.part(first, len, Keep::Kept).unwrap().unwrap();
    store.append(&mut part, &cached[..1000]).unwrap();
    disk.set_capacity(len + 2000);
    let refused = store.append(&mut part, &cached[1000..]).unwrap_err();
    assert!(refused.is_full(), "{refused}");
    assert_eq!(part.len_bytes(), 1000);
    disk.set_capacity(u64::MAX);
    store.append(&mut part, &cached[1000..]).unwrap();
    store.adopt(part).unwrap();
    assert_reads(&store, 0..20);
}

#[test]
fn copies_in_other_packs_are_of_use_when_one_goes() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = opened(&disk, &index, None);
    for number in 0..5 {
        let block = block(number);
        store
            .put_verified(Class::Stream, Verified::of(&block))
            .unwrap();
    }
    store.close_packs().unwrap();
    let (first, cached) = ours(0..8);
    take(&store, first, &cached, Keep::Cached).unwrap();
    assert_eq!(store.packs().unwrap().len(), 2);
    store.evict(&first).unwrap();
    assert_reads(&store, 0..5);
    assert!(!store.has(&Cid::of_block(&block(6))).unwrap());
    // The very pack that is cached becomes one that is kept.
    take(&store, first, &cached, Keep::Cached).unwrap();
    take(&store, first, &cached, Keep::Kept).unwrap();
    assert_eq!(store.keep_of(&first), Keep::Kept);
    assert_reads(&store, 0..8);
}

/// Several lives that end by a crash at a random write; what was adopted stays, and in the end the pack is there.
#[test]
fn adopted_packs_outlast_every_crash() {
    let seeds = if std::env::var_os("KITH_LARGE").is_some() {
        20_000_u64
    } else {
        1000
    };
    let (id, bytes) = ours(0..10);
    let mut crashed = 0;
    for seed in 0..seeds {
        let mut rng = Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
        let (disk, mut index): (_, Arc<MemIndex>) = (SimDisk::new(), Arc::default());
        let mut adopted = false;
        for _ in 0..6 {
            match rng.below(6) {
                0 => disk.fail_next_sync(),
                1 => disk.fail_after(rng.below(20), Fault::Error),
                2 => disk.fail_after(rng.below(20), Fault::Full),
                _ => disk.fail_after(rng.below(20), Fault::Die),
            }
            if let Ok((store, _)) = Store::open(disk.clone(), Arc::clone(&index), config()) {
                if adopted && !disk.is_dead() {
                    assert_reads(&store, 0..10);
                }
                adopted |= take(&store, id, &bytes, Keep::Kept).is_ok();
            }
            crashed += u64::from(disk.is_dead());
            disk.heal();
            let how = match rng.below(3) {
                0 => Crash::Kill,
                1 => Crash::Prefix,
                _ => Crash::Scatter,
            };
            disk.crash(how, &mut rng);
            if rng.below(2) == 0 {
                index = Arc::default();
            }
        }
        disk.heal();
        let store = opened(&disk, &index, None);
        if adopted {
            assert_reads(&store, 0..10);
        }
        // What a crash left of the part may be no good: then it is fetched again.
        let taken = take(&store, id, &bytes, Keep::Kept);
        if taken.is_err() {
            take(&store, id, &bytes, Keep::Kept).unwrap();
        }
        assert_reads(&store, 0..10);
        store.check_pack(&id).unwrap();
        let files = disk.list().unwrap();
        assert!(
            files.contains(&closed_name(&id, Keep::Kept)),
            "seed {seed}: {files:?}"
        );
        assert!(!files.contains(&part_name(&id)), "seed {seed}: {files:?}");
    }
    assert!(crashed > seeds / 3, "{crashed}");
}
