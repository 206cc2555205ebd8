//! The index in fjall. It holds nothing that the packs cannot rebuild.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;

use fjall::config::{CompressionPolicy, PinningPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, Readable,
};
use kith_object::id::{Cid, PackId};
use kith_object::index::{Index, LOCATIONS_MAX, Location, PackInfo};
use kith_object::key::Secret;
use kith_object::pack::{BlockAt, Class};
use zeroize::Zeroizing;

use super::disk::make_folder;
use super::filter::{self, Filter};

/// Blocks of tables kept in memory.
const CACHE_BYTES: u64 = 32 << 20;
/// What is in memory before it becomes a table.
const MEMTABLE_BYTES: u64 = 4 << 20;
/// What fjall's journal may take on disk; less it does not allow.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Journals longer than this are dropped at the opening. fjall looks at every entry of up to 64 MB before it is open, although its tables
/// have most of them: 1.6 CPU seconds, where taking up again the packs that no table has takes 0.4.
const JOURNAL_REPLAYED_MAX: u64 = 8 << 20;
/// Threads of fjall: of two, one is always free to write what is in memory into a table. A single one that merges tables for seconds lets
/// that grow meanwhile: to 600 MB while the packs of 10 million blocks were taken up, half of them in no table.
const WORKERS: usize = 2;
/// Tables that fjall keeps open.
const FILES_OPEN_MAX: usize = 64;
/// Bytes of a block's key, behind its tag: at a thousand million blocks two meet once in 100,000 million homes.
const NAME_BYTES: usize = 12;
/// Bytes of a place: number of the pack, offset, length.
const PLACE_BYTES: usize = 12;
/// Bytes before a masked value.
const CHECK_BYTES: usize = 8;

/// Key tags. All keys are in one keyspace, so that whatever fjall loses, a pack and its blocks go together.
const TAG_BLOCK: u8 = b'b';
const TAG_PACK: u8 = b'p';
const TAG_NEXT: u8 = b'n';
const TAG_PROBE: u8 = b'k';
/// What stands under the probe: it tells whether the key is the one the index was made with.
const PROBE: &[u8] = b"kith index 1";

/// A map from blocks to places, on disk.
///
/// Keys of blocks are keyed hashes, values are masked and checked under a key of the device: the index alone tells nobody which blocks are
/// here. One thread writes at a time; reading is free.
///
/// Spec: `protocol/spec/store.md`, "Index on disk".
pub struct FjallIndex {
    database: Database,
    entries: Keyspace,
    keys: Keys,
    folder: PathBuf,
    /// Held by who writes.
    writer: Mutex<()>,
    packs: RwLock<Packs>,
    filter: Arc<Filter>,
    /// Fills the filter; one at a time.
    filling: Mutex<Option<Filling>>,
}

/// A thread that reads the whole index to fill a filter.
struct Filling {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Filling {
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        // It catches its own panics; there is nothing to do about one here.
        let _ = self.thread.join();
    }
}

impl Drop for FjallIndex {
    fn drop(&mut self) {
        // It holds the database open.
        if let Ok(mut filling) = self.filling.lock()
            && let Some(filling) = filling.take()
        {
            filling.end();
        }
    }
}

/// All packs are in memory, 60 bytes each: 4 MB for a terabyte.
#[derive(Debug, Default)]
struct Packs {
    by_number: BTreeMap<u32, (PackId, PackInfo)>,
    by_id: BTreeMap<PackId, u32>,
    /// Numbers are never used again, so that a stale place is recognised.
    next: u32,
}

/// Derived from the device's index key, one per purpose.
struct Keys {
    name: Zeroizing<[u8; 32]>,
    check: Zeroizing<[u8; 32]>,
    mask: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for FjallIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallIndex")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl FjallIndex {
    /// Opens the index in a folder, making it if there is none. One that is damaged or made under another key is made anew, empty.
    ///
    /// # Errors
    /// Whatever the system says, a full disk for one; `WouldBlock` if another process has it open.
    pub fn open(folder: &Path, key: &Secret) -> io::Result<Self> {
        make_folder(folder)?;
        let marker = marker(folder);
        if marker.exists() {
            remove_folder(folder)?;
        }
        // Some damage ends the process while fjall opens (an absurd allocation); the marker it leaves helps the next start.
        // Best effort: on a full disk the index still opens.
        let marked = File::create(&marker).is_ok();
        let index = match Self::open_as_it_is(folder, key) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                remove_folder(folder)?;
                Self::open_as_it_is(folder, key)
            }
            result => result,
        };
        if marked {
            fs::remove_file(&marker)?;
        }
        index
    }

    fn open_as_it_is(folder: &Path, key: &Secret) -> io::Result<Self> {
        make_folder(folder)?;
        guarded(|| Self::open_unguarded(folder, key))
    }

    fn open_unguarded(folder: &Path, key: &Secret) -> io::Result<Self> {
        drop_long_journals(folder)?;
        let database = Database::builder(folder)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .max_cached_files(Some(FILES_OPEN_MAX))
            .journal_compression(CompressionType::None)
            .worker_threads(WORKERS)
            .open()
            .map_err(plain)?;
        let entries = database.keyspace("entries", options).map_err(plain)?;
        let keys = Keys::new(key);
        let packs = load(&entries, &keys)?;
        let index = Self {
            database,
            entries,
            keys,
            folder: folder.to_owned(),
            writer: Mutex::default(),
            packs: RwLock::new(packs),
            filter: Arc::default(),
            filling: Mutex::default(),
        };
        if !index.is_of_this_key()? {
            return Err(damaged("index made under another key"));
        }
        index.fill_filter();
        Ok(index)
    }

    /// Begins a filter for what is here now; nobody may insert meanwhile.
    ///
    /// Reading some million entries takes seconds, so a thread does it, and until then every question goes to the index.
    fn fill_filter(&self) {
        let blocks = {
            let packs = self.packs_now();
            let infos = packs.by_number.values();
            infos.map(|(_, info)| u64::from(info.blocks)).sum()
        };
        let mut filling = self
            .filling
            .lock()
            .expect("no thread panics while it holds this lock");
        if let Some(before) = filling.take() {
            before.end();
        }
        let bits = self.filter.begin(blocks);
        if blocks == 0 {
            self.filter.finish(&bits, true);
            return;
        }
        let snapshot = self.database.snapshot();
        let (entries, filter) = (self.entries.clone(), Arc::clone(&self.filter));
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let filled = guarded(|| {
                for guard in snapshot.prefix(&entries, [TAG_BLOCK]) {
                    if told.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    let key = guard.key().map_err(plain)?;
                    let name = key.get(1..).and_then(|name| name.try_into().ok());
                    bits.insert(&name.ok_or_else(|| damaged("a key of the index is too short"))?);
                }
                Ok(true)
            });
            // Without it the index is asked, and says itself what is wrong with it.
            filter.finish(&bits, matches!(filled, Ok(true)));
        });
        *filling = Some(Filling { thread, stop });
    }

    /// Waits until the filter is in use.
    #[cfg(test)]
    pub(super) fn wait_for_filter(&self) -> bool {
        if let Some(filling) = self.filling.lock().unwrap().take() {
            filling.thread.join().unwrap();
        }
        self.filter.is_built()
    }

    /// Compares, or leaves in a new index, what tells under which key it was made.
    fn is_of_this_key(&self) -> io::Result<bool> {
        let key = [TAG_PROBE];
        match self.read(&key)? {
            Some(value) => Ok(value == PROBE),
            None => {
                let mut batch = self.database.batch();
                batch.insert(&self.entries, key, self.keys.seal(&key, PROBE));
                commit(batch)?;
                Ok(true)
            }
        }
    }

    /// Bytes that fjall takes on disk.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn disk_bytes(&self) -> io::Result<u64> {
        self.database.disk_space().map_err(plain)
    }

    /// Whether the filter is in use: from the start of an empty index, else once a thread has read it through.
    pub fn has_filter(&self) -> bool {
        self.filter.is_built()
    }

    /// Writes what is in memory into a table.
    #[cfg(test)]
    pub(super) fn write_table(&self) {
        self.entries.rotate_memtable_and_wait().unwrap();
    }

    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(value) = guarded(|| self.entries.get(key).map_err(plain))? else {
            return Ok(None);
        };
        let plain = self.keys.open(key, &value);
        plain
            .map(Some)
            .ok_or_else(|| damaged("a value of the index does not open"))
    }

    /// Notes damage, so that the next opening makes the index anew.
    fn noting<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
        {
            // If this cannot be written, the same damage is met again.
            let _ = File::create(marker(&self.folder));
        }
        result
    }

    /// The places of a block in packs that are known.
    fn places(&self, key: &[u8], packs: &Packs) -> io::Result<Vec<Place>> {
        let Some(value) = self.read(key)? else {
            return Ok(Vec::new());
        };
        let (places, rest) = value.as_chunks::<PLACE_BYTES>();
        if !rest.is_empty() {
            return Err(damaged("a value of the index has an odd length"));
        }
        let places = places.iter().map(Place::decode);
        Ok(places
            .filter(|place| packs.by_number.contains_key(&place.pack))
            .collect())
    }

    fn set_places(&self, batch: &mut OwnedWriteBatch, key: &[u8], places: &[Place]) {
        if places.is_empty() {
            batch.remove(&self.entries, key);
        } else {
            let value: Vec<u8> = places.iter().flat_map(Place::encode).collect();
            batch.insert(&self.entries, key, self.keys.seal(key, &value));
        }
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writer
            .lock()
            .expect("no thread panics while it holds this lock")
    }

    fn packs_now(&self) -> RwLockReadGuard<'_, Packs> {
        self.packs
            .read()
            .expect("no thread panics while it holds this lock")
    }

    fn packs_mut(&self) -> RwLockWriteGuard<'_, Packs> {
        self.packs
            .write()
            .expect("no thread panics while it holds this lock")
    }

    fn try_insert(&self, pack: &PackId, info: PackInfo, blocks: &[BlockAt]) -> io::Result<()> {
        let _writing = self.writing();
        let mut batch = OwnedWriteBatch::with_capacity(self.database.clone(), blocks.len() + 2);
        let mut full = false;
        let (number, next) = {
            let packs = self.packs_now();
            let number = packs.by_id.get(pack).copied().unwrap_or(packs.next);
            let next = packs.next.max(number.saturating_add(1));
            for block in blocks {
                let key = self.keys.block(&block.cid);
                let name = name_in(&key);
                let mut places = if self.filter.may_hold(&name) {
                    self.places(&key, &packs)?
                } else {
                    Vec::new()
                };
                // Before anybody can find it in the index.
                full |= self.filter.insert(&name);
                places.retain(|place| place.pack != number);
                places.insert(
                    0,
                    Place {
                        pack: number,
                        offset: block.offset,
                        len: block.len,
                    },
                );
                places.truncate(LOCATIONS_MAX);
                self.set_places(&mut batch, &key, &places);
            }
            (number, next)
        };
        let key = pack_key(number);
        let value = encode_pack(pack, info);
        batch.insert(&self.entries, key, self.keys.seal(&key, &value));
        let key = [TAG_NEXT];
        batch.insert(
            &self.entries,
            key,
            self.keys.seal(&key, &next.to_le_bytes()),
        );
        commit(batch)?;
        let mut packs = self.packs_mut();
        packs.next = next;
        packs.by_number.insert(number, (*pack, info));
        packs.by_id.insert(*pack, number);
        drop(packs);
        if full {
            self.fill_filter();
        }
        Ok(())
    }

    fn try_each(&self, see: &mut dyn FnMut(&[u8], &[Location])) -> io::Result<()> {
        let odd = || damaged("a value of the index does not open");
        let mut entries = self.entries.prefix([TAG_BLOCK]);
        while let Some(guard) = guarded(|| Ok(entries.next()))? {
            let (key, value) = guarded(|| guard.into_inner().map_err(plain))?;
            let value = self.keys.open(&key, &value).ok_or_else(odd)?;
            let (places, rest) = value.as_chunks::<PLACE_BYTES>();
            if !rest.is_empty() {
                return Err(odd());
            }
            let packs = self.packs_now();
            let located: Vec<Location> = places
                .iter()
                .map(Place::decode)
                .filter_map(|place| place.located(&packs))
                .collect();
            drop(packs);
            if !located.is_empty() {
                see(&key, &located);
            }
        }
        Ok(())
    }

    /// Drops the places in one pack of some blocks; with `whole`, the pack as well.
    fn try_remove(&self, pack: &PackId, blocks: &[Cid], whole: bool) -> io::Result<()> {
        let _writing = self.writing();
        let Some(number) = self.packs_now().by_id.get(pack).copied() else {
            return Ok(());
        };
        let mut batch = self.database.batch();
        {
            let packs = self.packs_now();
            for cid in blocks {
                let key = self.keys.block(cid);
                let mut places = self.places(&key, &packs)?;
                let before = places.len();
                places.retain(|place| place.pack != number);
                if places.len() < before {
                    self.set_places(&mut batch, &key, &places);
                }
            }
        }
        if whole {
            batch.remove(&self.entries, pack_key(number));
        }
        commit(batch)?;
        if whole {
            let mut packs = self.packs_mut();
            packs.by_number.remove(&number);
            packs.by_id.remove(pack);
        }
        Ok(())
    }
}

impl Index for FjallIndex {
    fn locations(&self, cid: &Cid) -> io::Result<Vec<Location>> {
        let key = self.keys.block(cid);
        if !self.filter.may_hold(&name_in(&key)) {
            return Ok(Vec::new());
        }
        let packs = self.packs_now();
        let places = self.noting(self.places(&key, &packs))?;
        let located = places.iter().filter_map(|place| place.located(&packs));
        Ok(located.collect())
    }

    fn insert_pack(&self, pack: &PackId, info: PackInfo, blocks: &[BlockAt]) -> io::Result<()> {
        self.noting(self.try_insert(pack, info, blocks))
    }

    fn packs(&self) -> io::Result<Vec<(PackId, PackInfo)>> {
        Ok(self.packs_now().by_number.values().copied().collect())
    }

    fn info(&self, pack: &PackId) -> io::Result<Option<PackInfo>> {
        let packs = self.packs_now();
        let number = packs.by_id.get(pack);
        let known = number.and_then(|number| packs.by_number.get(number));
        Ok(known.map(|(_, info)| *info))
    }

    fn forget(&self, cid: &Cid, pack: &PackId) -> io::Result<()> {
        self.noting(self.try_remove(pack, &[*cid], false))
    }

    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> io::Result<()> {
        self.noting(self.try_remove(pack, blocks, true))
    }

    fn each(&self, see: &mut dyn FnMut(&[u8], &[Location])) -> io::Result<()> {
        self.noting(self.try_each(see))
    }

    fn key_of(&self, cid: &Cid) -> Vec<u8> {
        self.keys.block(cid).to_vec()
    }
}

/// Where a block is, as the index writes it.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The pack's number in this index.
    pack: u32,
    offset: u32,
    len: u32,
}

impl Place {
    /// With the pack's name, if it is known.
    fn located(&self, packs: &Packs) -> Option<Location> {
        let (pack, _) = packs.by_number.get(&self.pack)?;
        Some(Location {
            pack: *pack,
            offset: self.offset,
            len: self.len,
        })
    }

    fn encode(&self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        let words = [self.pack, self.offset, self.len];
        for (part, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8; PLACE_BYTES]) -> Self {
        let mut words = bytes.as_chunks::<4>().0.iter().copied();
        let mut next = || words.next().map_or(0, u32::from_le_bytes);
        Self {
            pack: next(),
            offset: next(),
            len: next(),
        }
    }
}

impl Keys {
    fn new(key: &Secret) -> Self {
        let derive = |domain| Zeroizing::new(*key.derive(domain).expose());
        Self {
            name: derive("kith index name 1"),
            check: derive("kith index check 1"),
            mask: derive("kith index mask 1"),
        }
    }

    /// The key of a block's places.
    fn block(&self, cid: &Cid) -> [u8; 1 + NAME_BYTES] {
        let hash = blake3::keyed_hash(&self.name, &cid.to_bytes());
        let mut key = [TAG_BLOCK; 1 + NAME_BYTES];
        for (byte, hashed) in key.iter_mut().skip(1).zip(hash.as_bytes()) {
            *byte = *hashed;
        }
        key
    }

    /// Check and masked value. The check is a keyed hash of key and value and seeds the mask, so that two values never share one
    /// (a synthetic nonce, from the one primitive that is here anyway).
    fn seal(&self, key: &[u8], value: &[u8]) -> Vec<u8> {
        let check = self.check(key, value);
        let mut sealed = check.to_vec();
        sealed.extend_from_slice(value);
        self.apply_mask(
            key,
            &check,
            sealed.get_mut(CHECK_BYTES..).unwrap_or_default(),
        );
        sealed
    }

    fn open(&self, key: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (check, masked) = sealed.split_first_chunk::<CHECK_BYTES>()?;
        let mut value = masked.to_vec();
        self.apply_mask(key, check, &mut value);
        (self.check(key, &value) == *check).then_some(value)
    }

    fn check(&self, key: &[u8], value: &[u8]) -> [u8; CHECK_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.check);
        hasher.update(&(key.len() as u64).to_le_bytes());
        let hash = hasher.update(key).update(value).finalize();
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    fn apply_mask(&self, key: &[u8], check: &[u8; CHECK_BYTES], value: &mut [u8]) {
        let mut mask = vec![0; value.len()];
        let mut hasher = blake3::Hasher::new_keyed(&self.mask);
        hasher
            .update(check)
            .update(key)
            .finalize_xof()
            .fill(&mut mask);
        for (byte, mask) in value.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

fn options() -> KeyspaceCreateOptions {
    // Keys are hashes and values are masked: nothing to compress.
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES)
        // Filters and indexes of all tables stay in memory, 1.5 bytes a block: one is as long as a tenth of the cache, and was read anew for
        // nearly every question about a block of a large store.
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .index_block_compression_policy(CompressionPolicy::disabled())
}

/// Reads all packs.
fn load(entries: &Keyspace, keys: &Keys) -> io::Result<Packs> {
    let mut packs = Packs::default();
    let odd = || damaged("a value of the index does not open");
    for guard in entries.prefix([TAG_PACK]) {
        let (key, value) = guard.into_inner().map_err(plain)?;
        let value = keys.open(&key, &value).ok_or_else(odd)?;
        let number = key.get(1..).and_then(|number| number.try_into().ok());
        let number = u32::from_be_bytes(number.ok_or_else(odd)?);
        let (pack, info) = decode_pack(&value).ok_or_else(odd)?;
        packs.by_number.insert(number, (pack, info));
        packs.by_id.insert(pack, number);
    }
    let key = [TAG_NEXT];
    if let Some(value) = entries.get(key).map_err(plain)? {
        let value = keys.open(&key, &value).ok_or_else(odd)?;
        packs.next = u32::from_le_bytes(value.try_into().map_err(|_| odd())?);
    }
    // Written in one batch, so neither comes without the other.
    match packs.by_number.last_key_value() {
        Some((last, _)) if *last >= packs.next => Err(odd()),
        _ => Ok(packs),
    }
}

fn pack_key(number: u32) -> [u8; 5] {
    let [a, b, c, d] = number.to_be_bytes();
    [TAG_PACK, a, b, c, d]
}

/// Pack id 32, class 1, blocks 4, length 8.
fn encode_pack(pack: &PackId, info: PackInfo) -> Vec<u8> {
    let mut bytes = pack.0.to_vec();
    bytes.push(info.class.to_byte());
    bytes.extend_from_slice(&info.blocks.to_le_bytes());
    bytes.extend_from_slice(&info.bytes.to_le_bytes());
    bytes
}

fn decode_pack(bytes: &[u8]) -> Option<(PackId, PackInfo)> {
    let (pack, rest) = bytes.split_first_chunk::<32>()?;
    let (class, rest) = rest.split_first()?;
    let (blocks, rest) = rest.split_first_chunk::<4>()?;
    let info = PackInfo {
        class: Class::from_byte(*class)?,
        blocks: u32::from_le_bytes(*blocks),
        bytes: u64::from_le_bytes(rest.try_into().ok()?),
    };
    Some((PackId(*pack), info))
}

/// What stands for a block in the filter: its key without the tag.
fn name_in(key: &[u8; 1 + NAME_BYTES]) -> filter::Name {
    *key.last_chunk().expect("a key is longer than a name")
}

/// Its presence says that the index beside it is damaged, or that a process ended while opening it.
fn marker(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".damaged");
    folder.with_file_name(name)
}

/// Lets the next opening make the index anew.
pub(super) fn mark_damaged(folder: &Path) -> io::Result<()> {
    File::create(marker(folder)).map(drop)
}

/// Empties fjall's journals if they are long. What is lost with them is a tail of whole packs, or the news that some are gone: the opening
/// of the store makes up for both.
///
/// They are emptied and not removed: without any, fjall would count its writes from zero again, and old ones would win over new ones.
fn drop_long_journals(folder: &Path) -> io::Result<()> {
    let mut journals = Vec::new();
    let mut len = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            let metadata = entry.metadata()?;
            // A new one is 64 MB of nothing.
            len += metadata.len().min(metadata.blocks() * 512);
            journals.push((number, entry.path()));
        }
    }
    if len > JOURNAL_REPLAYED_MAX {
        // The newest first: ended in between, it is still a tail that is lost.
        journals.sort_unstable_by(|one, other| other.cmp(one));
        for (_, journal) in journals {
            let file = fs::OpenOptions::new().write(true).open(journal)?;
            file.set_len(0)?;
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs what may meet a damaged file: fjall answers some damage by a panic, and this must not end the device, nor leave our locks in disorder.
fn guarded<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(damaged("fjall does not understand its files")))
}

fn commit(batch: OwnedWriteBatch) -> io::Result<()> {
    guarded(|| batch.commit().map_err(plain))
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// fjall's errors as the system's, where they are; what is neither the system's nor a matter of use is damage.
fn plain(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            match error.kind() {
                // Of a folder that is ours alone: a table is missing or cut short.
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
                    io::Error::new(io::ErrorKind::InvalidData, error)
                }
                _ => error,
            }
        }
        fjall::Error::Locked => io::Error::new(io::ErrorKind::WouldBlock, error),
        fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted => io::Error::other(error),
        _ => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}
