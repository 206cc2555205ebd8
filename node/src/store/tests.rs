use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kith_object as object;
use kith_object::disk::Disk;
use kith_object::id::{Cid, PackId};
use kith_object::index::{Index, PackInfo};
use kith_object::key::Rng;
use kith_object::pack::{BlockAt, Class};
use kith_object::store::Verified;
use tempfile::TempDir;

use super::*;

#[path = "../../../protocol/object/src/store/conformance.rs"]
mod conformance;

struct RealPlace(TempDir);

impl RealPlace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

fn key() -> Secret {
    Secret::new([5; 32])
}

impl conformance::Place for RealPlace {
    type Disk = RealDisk;
    type Index = FjallIndex;

    fn disk(&self) -> RealDisk {
        RealDisk::open(&self.0.path().join(PACKS)).unwrap()
    }
    fn index(&self) -> FjallIndex {
        FjallIndex::open(&self.0.path().join(INDEX), &key()).unwrap()
    }
    fn lose_index(&self) {
        fs::remove_dir_all(self.0.path().join(INDEX)).unwrap();
    }
    fn damage(&self, name: &str, offset: u64) {
        flip(&self.0.path().join(PACKS).join(name), offset as usize, 1);
    }
}

fn flip(path: &Path, at: usize, mask: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= mask;
    fs::write(path, bytes).unwrap();
}

conformance::suite_of!(RealPlace::new());

fn block(number: u32, len: usize) -> (Cid, Vec<u8>) {
    let mut bytes = vec![0; len];
    Rng::from_seed(*blake3::hash(&number.to_le_bytes()).as_bytes()).fill(&mut bytes);
    (Cid::of_block(&bytes), bytes)
}

fn space() -> SpaceId {
    SpaceId([1; 32])
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn home_is_for_its_owner_alone() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().join("a/b");
    let _lock = HomeLock::take(&home, "test", Duration::ZERO).unwrap();
    let (store, _) = open_store(&home, space(), &key(), Settings::default()).unwrap();
    let (cid, bytes) = block(1, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    store.flush().unwrap();
    drop(open_logs(&home, Durability::Group).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in [
        &home,
        &home.join(PACKS),
        &home.join(LOGS),
        &home.join(INDEX),
    ] {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
    }
    for file in files(&home.join(PACKS)).iter().chain([&home.join("lock")]) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
}

#[test]
fn second_taker_is_told_of_the_first() {
    let home = tempfile::tempdir().unwrap();
    let first = HomeLock::take(home.path(), "kith up", Duration::ZERO).unwrap();
    let error = HomeLock::take(home.path(), "kith put", Duration::from_millis(50)).unwrap_err();
    let text = format!(
        "data folder {} is in use by process {} (kith up)",
        home.path().display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), text);
    std::thread::scope(|scope| {
        let second =
            scope.spawn(|| HomeLock::take(home.path(), "kith put", Duration::from_secs(60)));
        drop(first);
        second.join().unwrap().unwrap();
    });
}

#[test]
fn many_files_do_not_stay_open() {
    let folder = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(folder.path()).unwrap();
    for number in 0..1500_u32 {
        let name = format!("f-{number}");
        disk.create(&name).unwrap();
        disk.append(&name, &number.to_le_bytes()).unwrap();
        disk.sync(&name).unwrap();
    }
    for number in 0..1500_u32 {
        let read = disk.read_at(&format!("f-{number}"), 0, 4).unwrap();
        assert_eq!(read, number.to_le_bytes());
    }
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    assert!(open < 1000, "{open} files are open");
}

#[test]
fn index_under_another_key_is_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    let (cid, bytes) = block(1, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    store.close_packs().unwrap();
    drop(store);
    let (store, report) = open_store(
        home.path(),
        space(),
        &Secret::new([6; 32]),
        Settings::default(),
    )
    .unwrap();
    assert_eq!(report.indexed, 1);
    assert_eq!(store.get(&cid).unwrap().unwrap(), bytes);
}

#[test]
fn index_tells_nothing_of_what_is_stored() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    let (cid, bytes) = block(1, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    store.close_packs().unwrap();
    let digest = cid.digest().unwrap();
    let (pack, _) = store.packs().unwrap()[0];
    drop(store);
    for file in files(&home.path().join(INDEX)) {
        let bytes = fs::read(&file).unwrap();
        for secret in [&digest[..8], &pack.0[..8]] {
            assert!(
                !bytes.windows(8).any(|part| part == secret),
                "{}",
                file.display()
            );
        }
    }
}

/// fjall has dropped records in silence after one flipped byte. Here a block that is on disk is found, or the index says that it is damaged
/// and is whole again after a restart; it is never silently absent.
#[test]
fn damaged_index_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        pack_bytes_max: 20_000,
        ..StoreConfig::new(space())
    };
    let open = |path: &Path| {
        let disk = RealDisk::open(&path.join(PACKS))?;
        let index = FjallIndex::open(&path.join(INDEX), &key())?;
        Ok::<_, io::Error>(Store::open(disk, index, config).unwrap().0)
    };
    let blocks: Vec<(Cid, Vec<u8>)> = (0..600).map(|number| block(number, 150)).collect();
    // The first half lies in a table, the second in the journal.
    for half in blocks.chunks(300) {
        let store = open(home.path()).unwrap();
        for (cid, bytes) in half {
            store
                .put_verified(Class::Bulk, Verified::computed(*cid, bytes))
                .unwrap();
        }
        store.close_packs().unwrap();
        drop(store);
        if half[0].0 == blocks[0].0 {
            FjallIndex::open(&home.path().join(INDEX), &key())
                .unwrap()
                .write_table();
        }
    }
    let index = home.path().join(INDEX);
    let whole: Vec<(PathBuf, Vec<u8>)> = files(&index)
        .into_iter()
        .map(|file| (file.clone(), fs::read(&file).unwrap()))
        .collect();
    // Where the entries are. Damage in its lists of tables can end the process; what follows from that is the next test.
    let holds_entries = |path: &Path| {
        path.to_string_lossy().ends_with("/keyspaces/1/tables/1")
            || path.to_string_lossy().ends_with(".jnl")
    };
    let targets: Vec<&(PathBuf, Vec<u8>)> = whole
        .iter()
        .filter(|(path, bytes)| holds_entries(path) && bytes.len() > 3000)
        .collect();
    assert_eq!(targets.len(), 2, "a table and a journal");
    let mut rng = Rng::from_seed([2; 32]);
    let (mut rebuilt, mut met) = (0, 0);
    for round in 0..40 {
        // Each time the same index, with one bit changed.
        fs::remove_dir_all(&index).unwrap();
        for (file, bytes) in &whole {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
        let (file, bytes) = targets[round % 2];
        let at = rng.below(bytes.len() as u64) as usize;
        flip(file, at, 1 << rng.below(8));
        let store = open(home.path()).unwrap();
        rebuilt += usize::from(!store.born().is_empty());
        let mut failed = false;
        for (cid, bytes) in &blocks {
            match store.get(cid) {
                Ok(found) => assert_eq!(
                    found.as_deref(),
                    Some(&bytes[..]),
                    "byte {at} of {}",
                    file.display()
                ),
                Err(StoreError::Index { .. }) => failed = true,
                Err(error) => panic!("{error}"),
            }
        }
        // Then the whole of it says what the packs say, or that it is damaged.
        match store.compare_index() {
            Ok(_) => assert_eq!(store.compare_index().unwrap(), []),
            Err(StoreError::Index { .. }) => failed = true,
            Err(error) => panic!("{error}"),
        }
        drop(store);
        if failed {
            met += 1;
            let store = open(home.path()).unwrap();
            for (cid, bytes) in &blocks {
                assert_eq!(store.get(cid).unwrap().unwrap(), bytes);
            }
            assert_eq!(store.compare_index().unwrap(), []);
        }
    }
    assert!(
        rebuilt > 0 && met > 0,
        "no damage was noticed: {rebuilt}, {met}"
    );
}

#[test]
fn index_whose_opening_ended_the_process_is_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    let (cid, bytes) = block(1, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    store.close_packs().unwrap();
    drop(store);
    // What a process leaves that ends inside the opening.
    fs::write(home.path().join("index.damaged"), b"").unwrap();
    let (store, report) = open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    assert_eq!(report.indexed, 1);
    assert_eq!(store.get(&cid).unwrap().unwrap(), bytes);
    drop(store);
    let (_, report) = open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    assert_eq!(report.indexed, 0);
}

#[test]
fn numbers_of_removed_packs_are_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join(INDEX);
    let info = PackInfo {
        class: Class::Bulk,
        blocks: 1,
        bytes: 1000,
    };
    let (cid, other) = (block(1, 1).0, block(2, 1).0);
    let at = |cid| BlockAt {
        cid,
        offset: 101,
        len: 1,
    };
    let index = FjallIndex::open(&folder, &key()).unwrap();
    index
        .insert_pack(&PackId([1; 32]), info, &[at(cid)])
        .unwrap();
    index.remove_pack(&PackId([1; 32]), &[]).unwrap();
    drop(index);
    let index = FjallIndex::open(&folder, &key()).unwrap();
    index
        .insert_pack(&PackId([2; 32]), info, &[at(other)])
        .unwrap();
    assert!(index.locations(&cid).unwrap().is_empty());
    assert_eq!(index.locations(&other).unwrap().len(), 1);
}

#[test]
fn filter_denies_nothing_that_is_here() {
    let home = tempfile::tempdir().unwrap();
    let open = || {
        open_store(home.path(), space(), &key(), Settings::default())
            .unwrap()
            .0
    };
    let store = open();
    assert!(
        store.index().wait_for_filter(),
        "an empty one is there at once"
    );
    let blocks: Vec<(Cid, Vec<u8>)> = (0..70_000).map(|number| block(number, 8)).collect();
    for (number, (cid, bytes)) in (0..).zip(&blocks) {
        store
            .put_verified(Class::Bulk, Verified::computed(*cid, bytes))
            .unwrap();
        // More than the first filter is for: it is made anew beside its use.
        if number % 5000 == 4999 {
            store.close_packs().unwrap();
        }
    }
    for (cid, _) in blocks.iter().step_by(7) {
        assert!(store.has(cid).unwrap());
    }
    assert!(store.index().wait_for_filter());
    for (cid, _) in &blocks {
        assert!(store.has(cid).unwrap());
    }
    assert!(!store.has(&block(999_999, 8).0).unwrap());
    // Dropping ends the thread, or the next opening would find the database in use.
    drop(store);
    let store = open();
    drop(store);
    let store = open();
    for (cid, _) in &blocks {
        assert!(store.has(cid).unwrap());
    }
    assert!(store.index().wait_for_filter());
    for (cid, _) in &blocks {
        assert!(store.has(cid).unwrap());
    }
}

#[test]
fn long_journal_is_dropped_and_nothing_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let open = || open_store(home.path(), space(), &key(), Settings::default()).unwrap();
    let journal_bytes = || {
        let files = files(&home.path().join(INDEX)).into_iter();
        let journals = files.filter(|file| file.extension().is_some_and(|kind| kind == "jnl"));
        let lens = journals.map(|file| fs::metadata(file).unwrap().len());
        lens.sum::<u64>()
    };
    let (store, _) = open();
    let blocks: Vec<(Cid, Vec<u8>)> = (0..200_000).map(|number| block(number, 8)).collect();
    for (number, (cid, bytes)) in (1..).zip(&blocks) {
        store
            .put_verified(Class::Bulk, Verified::computed(*cid, bytes))
            .unwrap();
        if number % 2000 == 0 {
            store.close_packs().unwrap();
        }
    }
    drop(store);
    assert!(journal_bytes() > 8 << 20, "{}", journal_bytes());
    let (store, report) = open();
    assert!(journal_bytes() < 8 << 20, "{}", journal_bytes());
    assert!(
        (1..100).contains(&report.indexed),
        "what no table had is taken up again, the rest not: {report:?}"
    );
    for (cid, _) in &blocks {
        assert!(store.has(cid).unwrap());
    }
    // What comes now wins over what the tables have.
    let gone = blocks[0].0;
    let place = store.index().locations(&gone).unwrap()[0];
    store.index().forget(&gone, &place.pack).unwrap();
    assert!(!store.has(&gone).unwrap());
    drop(store);
    let (store, _) = open();
    assert!(!store.has(&gone).unwrap());
    assert!(store.has(&blocks[1].0).unwrap());
}

#[test]
fn relaxed_durability_puts_syncs_off_and_a_failure_is_final() {
    let home = tempfile::tempdir().unwrap();
    let settings = Settings {
        durability: Durability::Relaxed,
        ..Settings::default()
    };
    let (store, _) = open_store(home.path(), space(), &key(), settings).unwrap();
    let settler = store.disk().settler();
    let (cid, bytes) = block(1, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    store.flush().unwrap();
    assert_eq!(settler.waiting(), 1);
    settler.settle().unwrap();
    assert_eq!(settler.waiting(), 0);
    store.close_packs().unwrap();
    assert_eq!(settler.waiting(), 1);
    settler.settle().unwrap();
    // What is taken away may have been copied just now: that lasts first.
    let pack = store.packs().unwrap()[0].0;
    assert!(store.mark_retired(&pack));
    store.drop_retired(&pack, &|_| false).unwrap().unwrap();
    assert_eq!(settler.waiting(), 0);
    assert_eq!(store.get(&cid).unwrap().unwrap(), bytes);
    settler.fail();
    let (cid, bytes) = block(2, 100);
    store.put(Class::Bulk, &cid, &bytes).unwrap();
    assert!(matches!(store.flush(), Err(StoreError::Sync { .. })));
    assert!(matches!(store.flush(), Err(StoreError::Broken)));
}

#[test]
fn quota_holds_on_the_real_disk() {
    let home = tempfile::tempdir().unwrap();
    let settings = Settings {
        quota: Some(100_000),
        ..Settings::default()
    };
    let (store, _) = open_store(home.path(), space(), &key(), settings).unwrap();
    let refused = (0..200).find_map(|number| {
        let (cid, bytes) = block(number, 1000);
        store.put(Class::Bulk, &cid, &bytes).err()
    });
    assert!(matches!(refused, Some(StoreError::Quota { .. })));
    store.close_packs().unwrap();
    let on_disk: u64 = files(&home.path().join(PACKS))
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    let usage = store.usage().unwrap();
    assert_eq!(usage.bytes, on_disk);
    // A quarter is in reserve.
    assert!((65_000..=75_000).contains(&on_disk), "{on_disk}");
    assert!(usage.floor <= 1 << 30 && usage.floor > 0);
}
