//! The store of one device: blocks in packs on a [`Disk`], found by an [`Index`].
//!
//! Spec: `protocol/spec/store.md`, "Order of writes".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::disk::{Disk, Group, lock, read_around};
use crate::id::{Cid, PackId, SpaceId};
use crate::index::{Index, PackInfo};
use crate::pack::{
    self, BLOCK_BYTES_MAX, BlockAt, Class, HEADER_BYTES, Header, PACK_BLOCKS_MAX, PACK_BYTES_MAX,
    PackError, PackWriter, TRAILER_BYTES, Trailer,
};
use crate::time::{Span, Time};

/// How a store is set up.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The space that new packs belong to.
    pub space: SpaceId,
    /// A pack is closed before it would grow beyond this.
    pub pack_bytes_max: u64,
    /// With less than this free, the store takes no more blocks, so that logs and the index can go on.
    pub free_floor: u64,
}

impl StoreConfig {
    /// The usual set-up for a space: packs of 16 MiB; 64 MiB stay free.
    pub fn new(space: SpaceId) -> Self {
        Self {
            space,
            pack_bytes_max: 16 << 20,
            free_floor: 64 << 20,
        }
    }
}

/// How long a pack stays open without a new block.
pub const PACK_IDLE: Span = Span::from_secs(60);
/// Full packs that wait to be finished before a put finishes them itself; they are synced together.
const SEALED_MAX: usize = 8;
/// Full packs that could not be finished before puts are refused: their blocks are listed in memory.
const UNFINISHED_MAX: usize = 64;
/// Bytes put between two looks at the free space.
const ROOM_CHECK_BYTES: u64 = 4 << 20;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the CID names.
    #[error("block does not match its name {cid}")]
    Mismatch {
        /// The name given.
        cid: Cid,
    },
    /// The block is longer than [`BLOCK_BYTES_MAX`].
    #[error("block {cid} of {len} bytes is too long to store")]
    TooLong {
        /// Its name.
        cid: Cid,
        /// Its length.
        len: usize,
    },
    /// The copy on this disk is damaged; it counts as absent from now on.
    #[error("block {cid} is damaged on this disk")]
    Corrupt {
        /// Its name.
        cid: Cid,
    },
    /// No room, or less than the floor. What was stored is as before.
    #[error("no room on the disk for block {cid}")]
    Full {
        /// The block that was not stored.
        cid: Cid,
        /// What the disk said; nothing if the floor was reached.
        source: Option<io::Error>,
    },
    /// The disk did not take a block or the end of a pack.
    #[error("write pack {name}")]
    Write {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The disk did not give a block.
    #[error("read pack {name}")]
    Read {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// What was put could not be made to last.
    #[error("sync the store")]
    Sync {
        /// What the disk said.
        source: io::Error,
    },
    /// An earlier failure left it open what is on the disk; opening the store again settles it. Reading goes on.
    #[error("the store takes no more blocks since a sync failed; open it again")]
    Broken,
    /// The index failed.
    #[error("use the index of the store")]
    Index {
        /// What it said.
        source: io::Error,
    },
    /// The folder of packs could not be listed.
    #[error("list the packs of the store")]
    List {
        /// What the disk said.
        source: io::Error,
    },
    /// A pack is not what its name says.
    #[error("pack {pack} is damaged")]
    Pack {
        /// Its name.
        pack: PackId,
        /// What is wrong first.
        source: PackError,
    },
}

impl StoreError {
    /// Whether the disk was full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Write { source, .. } | Self::Sync { source } | Self::Index { source } => {
                source.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }
}

/// A block whose CID was computed from these very bytes, so that it need not be hashed again.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    cid: Cid,
    bytes: &'a [u8],
}

impl<'a> Verified<'a> {
    /// Hashes the bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self {
            cid: Cid::of_block(bytes),
            bytes,
        }
    }

    /// Checks the bytes against their name.
    pub fn check(cid: &Cid, bytes: &'a [u8]) -> Option<Self> {
        cid.verifies(bytes).then_some(Self { cid: *cid, bytes })
    }

    /// States that the caller has just computed the CID from these bytes, or checked it.
    pub fn computed(cid: Cid, bytes: &'a [u8]) -> Self {
        debug_assert!(
            cid.verifies(bytes),
            "the caller computed the name from these bytes"
        );
        Self { cid, bytes }
    }

    /// The block's name.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The block.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A pack that was closed on this device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Born {
    /// Its name.
    pub pack: PackId,
    /// Class, blocks and length.
    pub info: PackInfo,
}

/// What opening the store met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Packs that were open when the store was last used, and are closed now.
    pub recovered: u32,
    /// Closed packs that the index did not know.
    pub indexed: u32,
    /// Packs that the index knew and the disk does not have.
    pub vanished: Vec<PackId>,
    /// Bytes behind the last whole block of packs that were open: a write that was cut short.
    pub torn_bytes: u64,
    /// Damaged files, kept under the name that is given; their sound blocks were copied into new packs.
    pub damaged: Vec<String>,
    /// Files whose sound blocks are readable but could not be brought into order yet (a full disk, say), and why.
    pub waiting: Vec<(String, String)>,
}

/// Counts since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Blocks written.
    pub blocks_new: u64,
    /// Blocks put that were there already.
    pub blocks_known: u64,
    /// Bytes of blocks written.
    pub bytes_new: u64,
    /// Commits: each makes everything put so far last, for all who wait.
    pub commits: u64,
    /// Reads of a block that found damage.
    pub corrupt: u64,
    /// Packs closed.
    pub packs_closed: u64,
}

/// Blocks in packs: what was put and flushed survives whatever the disk's power does, and nothing is returned that does not match its CID.
///
/// All methods may be called from many threads and may block on the disk.
///
/// Spec: `protocol/spec/store.md`, "Order of writes".
#[derive(Debug)]
pub struct Store<D, I> {
    disk: D,
    index: I,
    config: StoreConfig,
    writer: Mutex<Writer>,
    /// Blocks of packs that the index does not know yet.
    held: RwLock<BTreeMap<Cid, Held>>,
    group: Group,
    born: Mutex<Vec<Born>>,
    /// Why a full pack could not be finished; not a matter of durability.
    trouble: Mutex<Option<StoreError>>,
    stats: Mutex<StoreStats>,
}

#[derive(Debug, Default)]
struct Writer {
    open: BTreeMap<Class, OpenPack>,
    /// Packs that take no more blocks and wait for footer, name and index.
    sealed: Vec<SealedPack>,
    next_number: u64,
    /// Blocks written so far.
    written: u64,
    /// A file was made whose name does not last yet.
    names_new: bool,
    since_room_check: u64,
    broken: bool,
}

/// The file of a pack that is not in the index.
#[derive(Debug)]
struct PackFile {
    /// Held for reading during every read, so that no rename comes between.
    name: RwLock<String>,
    /// A block of it was found damaged: its name would be a lie. The next start sorts it out.
    spoilt: AtomicBool,
}

#[derive(Debug)]
struct OpenPack {
    file: Arc<PackFile>,
    writer: PackWriter,
    synced: u64,
    /// Length and time at which a tick last saw it grown.
    grown: Option<(u64, Time)>,
}

#[derive(Debug)]
struct SealedPack {
    file: Arc<PackFile>,
    writer: PackWriter,
    state: Finish,
}

#[derive(Debug, Clone, Copy)]
enum Finish {
    /// Footer to be written.
    Records,
    /// Footer written.
    Whole(PackId),
    /// Renamed; only the index is missing.
    Named(PackId),
}

#[derive(Debug, Clone)]
struct Held {
    file: Arc<PackFile>,
    offset: u32,
    len: u32,
}

/// What one commit syncs.
struct Batch {
    written: u64,
    open: Vec<(Class, Arc<PackFile>, u64)>,
    sealed: Vec<SealedPack>,
    names_new: bool,
}

/// What reading one copy of a block gave.
enum Copy {
    Sound(Bytes),
    Damaged,
    Gone,
    Failed(StoreError),
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Opens the store on a disk: closes what was left open, brings the index up to date, sets damaged files aside.
    ///
    /// # Errors
    /// [`StoreError`] if the disk or the index cannot be used at all. Damage and a full disk are none: see [`RecoveryReport`].
    ///
    /// Spec: `protocol/spec/store.md`, "Opening".
    pub fn open(
        disk: D,
        index: I,
        mut config: StoreConfig,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        config.pack_bytes_max = config.pack_bytes_max.min(PACK_BYTES_MAX as u64);
        let store = Self {
            disk,
            index,
            config,
            writer: Mutex::new(Writer {
                since_room_check: ROOM_CHECK_BYTES,
                ..Writer::default()
            }),
            held: RwLock::default(),
            group: Group::default(),
            born: Mutex::default(),
            trouble: Mutex::default(),
            stats: Mutex::default(),
        };
        let mut report = RecoveryReport::default();
        let names = store
            .disk
            .list()
            .map_err(|source| StoreError::List { source })?;
        let closed: BTreeMap<PackId, &String> = names
            .iter()
            .filter_map(|name| Some((closed_id(name)?, name)))
            .collect();
        let open: BTreeMap<u64, &String> = names
            .iter()
            .filter_map(|name| Some((open_number(name)?, name)))
            .collect();
        lock(&store.writer).next_number = open.keys().last().map_or(0, |last| last + 1);
        let mut damaged = Vec::new();

        let known: BTreeSet<PackId> = store.packs()?.into_iter().map(|(pack, _)| pack).collect();
        for pack in known.iter().filter(|pack| !closed.contains_key(pack)) {
            store
                .index
                .remove_pack(pack, &[])
                .map_err(|source| StoreError::Index { source })?;
            report.vanished.push(*pack);
        }
        for (pack, name) in closed.iter().filter(|(pack, _)| !known.contains(pack)) {
            match store.read_footer(pack) {
                Ok((info, blocks)) => match store.index.insert_pack(pack, info, &blocks) {
                    Ok(()) => {
                        lock(&store.born).push(Born { pack: *pack, info });
                        report.indexed += 1;
                    }
                    Err(source)
                        if source.kind() == io::ErrorKind::StorageFull
                            && report.waiting.len() < UNFINISHED_MAX =>
                    {
                        store.hold_in_place(name)?;
                        report.waiting.push(((*name).clone(), source.to_string()));
                    }
                    Err(source) => return Err(StoreError::Index { source }),
                },
                Err(StoreError::Pack { .. }) => damaged.push((*name).clone()),
                Err(error) => return Err(error),
            }
        }
        for name in open.into_values() {
            if !store.recover(name, &mut report)? {
                damaged.push(name.clone());
            }
        }
        for name in damaged {
            match store.salvage(&name, None) {
                Ok(kept) => report.damaged.push(kept),
                Err(error @ (StoreError::Sync { .. } | StoreError::Broken)) => return Err(error),
                Err(error) => {
                    store.hold_in_place(&name)?;
                    report.waiting.push((name, error.to_string()));
                }
            }
        }
        // What the next put finds present must last, even if the process that wrote it never came to sync it.
        store
            .disk
            .sync_names()
            .map_err(|source| StoreError::Sync { source })?;
        Ok((store, report))
    }

    /// Takes up a pack that was open; false if it is damaged in the middle.
    fn recover(&self, name: &str, report: &mut RecoveryReport) -> Result<bool, StoreError> {
        let Some(bytes) = self.read_whole(name)? else {
            return Ok(false);
        };
        let scan = pack::scan(&bytes);
        if scan.blocks.is_empty() {
            // Whatever was to come here was cut short before its first block was whole.
            report.torn_bytes += bytes.len() as u64;
            self.disk.remove(name).map_err(|source| StoreError::Write {
                name: name.to_owned(),
                source,
            })?;
            return Ok(true);
        }
        let header = Header::decode(&bytes);
        let (Ok(header), false) = (header, scan.is_damaged()) else {
            return Ok(false);
        };
        report.torn_bytes += (bytes.len() - scan.end) as u64;
        let writer = PackWriter::resume(header, &bytes, &scan);
        let file = Arc::new(PackFile {
            name: RwLock::new(name.to_owned()),
            spoilt: AtomicBool::new(false),
        });
        {
            let mut held = self.held_mut();
            for block in writer.blocks() {
                held.insert(
                    block.cid,
                    Held {
                        file: Arc::clone(&file),
                        offset: block.offset,
                        len: block.len,
                    },
                );
            }
        }
        {
            let mut state = lock(&self.writer);
            state.written += 1;
            state.sealed.push(SealedPack {
                file,
                writer,
                state: Finish::Records,
            });
        }
        self.flush()?;
        match lock(&self.trouble).take() {
            None => report.recovered += 1,
            Some(trouble) => report.waiting.push((name.to_owned(), trouble.to_string())),
        }
        Ok(true)
    }

    /// Copies the sound blocks of a damaged file into new packs and keeps the file aside; answers the name under which.
    ///
    /// `pack` is its name if the index knows it.
    fn salvage(&self, name: &str, pack: Option<&PackId>) -> Result<String, StoreError> {
        if let Some(bytes) = self.read_whole(name)? {
            let class = Header::decode(&bytes).map_or(Class::Bulk, |header| header.class);
            for block in pack::scan(&bytes).blocks {
                let places = self
                    .index
                    .locations(&block.cid)
                    .map_err(|source| StoreError::Index { source })?;
                if places.iter().all(|place| Some(&place.pack) == pack) {
                    let data = bytes.get(block.range()).unwrap_or_default();
                    self.write(
                        class,
                        Verified {
                            cid: block.cid,
                            bytes: data,
                        },
                        None,
                    )?;
                }
            }
            self.flush()?;
        }
        let mut kept = format!("{name}.bad");
        let mut number = 1;
        while self.disk.len(&kept).is_ok() {
            number += 1;
            kept = format!("{name}.{number}.bad");
        }
        self.disk
            .rename(name, &kept)
            .map_err(|source| StoreError::Write {
                name: name.to_owned(),
                source,
            })?;
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))?;
        Ok(kept)
    }

    /// Makes the sound blocks of a damaged file readable where they are.
    fn hold_in_place(&self, name: &str) -> Result<(), StoreError> {
        let Some(bytes) = self.read_whole(name)? else {
            return Ok(());
        };
        // From here on a put of one of these blocks writes nothing, so they must last.
        self.disk
            .sync(name)
            .map_err(|source| self.sync_failed(source))?;
        let file = Arc::new(PackFile {
            name: RwLock::new(name.to_owned()),
            spoilt: AtomicBool::new(true),
        });
        let mut held = self.held_mut();
        for block in pack::scan(&bytes).blocks {
            let place = Held {
                file: Arc::clone(&file),
                offset: block.offset,
                len: block.len,
            };
            held.entry(block.cid).or_insert(place);
        }
        Ok(())
    }

    /// All bytes of a pack file, zeros for what the medium has lost; nothing if it is longer than any pack.
    fn read_whole(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = |source| StoreError::Read {
            name: name.to_owned(),
            source,
        };
        let len = self.disk.len(name).map_err(read)?;
        match usize::try_from(len) {
            Ok(len) if len <= PACK_BYTES_MAX => read_around(&self.disk, name, 0, len)
                .map(Some)
                .map_err(read),
            _ => Ok(None),
        }
    }

    /// Class, size and blocks of a closed pack, from header and footer alone.
    fn read_footer(&self, pack: &PackId) -> Result<(PackInfo, Vec<BlockAt>), StoreError> {
        let name = closed_name(pack);
        let bad = |source| StoreError::Pack {
            pack: *pack,
            source,
        };
        let read = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => bad(PackError::Length),
            io::ErrorKind::InvalidData => bad(PackError::Index),
            _ => StoreError::Read {
                name: name.clone(),
                source,
            },
        };
        let len = self.disk.len(&name).map_err(read)?;
        let tail = len
            .checked_sub(TRAILER_BYTES as u64)
            .ok_or_else(|| bad(PackError::Length))?;
        let trailer = self
            .disk
            .read_at(&name, tail, TRAILER_BYTES)
            .map_err(read)?;
        let trailer = Trailer::decode(&trailer, len).map_err(bad)?;
        let header = Header::decode(&self.disk.read_at(&name, 0, HEADER_BYTES).map_err(read)?)
            .map_err(bad)?;
        let index = self
            .disk
            .read_at(&name, trailer.index_offset, trailer.index_len)
            .map_err(read)?;
        let blocks = pack::read_index(&index, &trailer).map_err(bad)?;
        Ok((
            PackInfo {
                class: header.class,
                blocks: trailer.count,
                bytes: len,
            },
            blocks,
        ))
    }

    /// Whether a block is here, as far as is known without reading it.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.size(cid)?.is_some())
    }

    /// The length of a block, if it is here.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn size(&self, cid: &Cid) -> Result<Option<u32>, StoreError> {
        if let Some(held) = self.held().get(cid) {
            return Ok(Some(held.len));
        }
        let places = self
            .index
            .locations(cid)
            .map_err(|source| StoreError::Index { source })?;
        Ok(places.first().map(|place| place.len))
    }

    /// Reads a block; it matches its CID.
    ///
    /// Every copy is tried. A damaged one counts as absent from then on, so that the block is fetched and put again.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if all copies here are damaged, [`StoreError::Read`], [`StoreError::Index`].
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        // A second look, for a block whose pack was set aside between finding and reading it.
        let mut failure = None;
        for _ in 0..2 {
            let mut gone = false;
            let held = self.held().get(cid).cloned();
            if let Some(held) = held {
                let copy = {
                    let name = held
                        .file
                        .name
                        .read()
                        .expect("no thread panics while it holds this lock");
                    self.read_copy(cid, &name, held.offset, held.len)
                };
                match copy {
                    Copy::Sound(block) => return Ok(Some(block)),
                    Copy::Damaged | Copy::Gone => {
                        self.spoil(cid, &held);
                        failure = Some(StoreError::Corrupt { cid: *cid });
                    }
                    Copy::Failed(error) => failure = Some(error),
                }
            }
            for place in self
                .index
                .locations(cid)
                .map_err(|source| StoreError::Index { source })?
            {
                let copy = self.read_copy(cid, &closed_name(&place.pack), place.offset, place.len);
                match copy {
                    Copy::Sound(block) => return Ok(Some(block)),
                    Copy::Damaged => {
                        lock(&self.stats).corrupt += 1;
                        self.index
                            .forget(cid, &place.pack)
                            .map_err(|source| StoreError::Index { source })?;
                        failure = Some(StoreError::Corrupt { cid: *cid });
                    }
                    Copy::Gone => gone = true,
                    Copy::Failed(error) => failure = Some(error),
                }
            }
            if !gone {
                break;
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn read_copy(&self, cid: &Cid, name: &str, offset: u32, len: u32) -> Copy {
        match self.disk.read_at(name, u64::from(offset), len as usize) {
            Ok(bytes) if cid.verifies(&bytes) => Copy::Sound(Bytes::from(bytes)),
            Ok(_) => Copy::Damaged,
            Err(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Copy::Damaged,
                io::ErrorKind::NotFound => Copy::Gone,
                _ => Copy::Failed(StoreError::Read {
                    name: name.to_owned(),
                    source,
                }),
            },
        }
    }

    /// Gives up a damaged block of a pack that is not finished, and the pack with it: no further block is added to it.
    fn spoil(&self, cid: &Cid, bad: &Held) {
        lock(&self.stats).corrupt += 1;
        bad.file.spoilt.store(true, Ordering::Relaxed);
        {
            let mut state = lock(&self.writer);
            let class = state
                .open
                .iter()
                .find(|(_, open)| Arc::ptr_eq(&open.file, &bad.file))
                .map(|(class, _)| *class);
            if let Some(class) = class {
                state.seal(class);
            }
        }
        let mut held = self.held_mut();
        if held
            .get(cid)
            .is_some_and(|now| Arc::ptr_eq(&now.file, &bad.file))
        {
            held.remove(cid);
        }
    }

    /// Stores a block; true if it was not here. It lasts once [`Store::flush`] has returned.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`], [`StoreError::TooLong`], [`StoreError::Full`], [`StoreError::Write`], [`StoreError::Broken`],
    /// [`StoreError::Index`]; the block is then not stored.
    pub fn put(&self, class: Class, cid: &Cid, block: &[u8]) -> Result<bool, StoreError> {
        let block = Verified::check(cid, block).ok_or(StoreError::Mismatch { cid: *cid })?;
        self.put_verified(class, block)
    }

    /// As [`Store::put`], for a block whose CID needs no check.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_verified(&self, class: Class, block: Verified<'_>) -> Result<bool, StoreError> {
        if block.bytes.len() > BLOCK_BYTES_MAX {
            return Err(StoreError::TooLong {
                cid: block.cid,
                len: block.bytes.len(),
            });
        }
        let closed = lock(&self.stats).packs_closed;
        if self.has(&block.cid)? || !self.write(class, block, Some(closed))? {
            lock(&self.stats).blocks_known += 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Writes a block unless an unfinished pack holds it, or one that was closed since there were `closed` of them.
    fn write(
        &self,
        class: Class,
        block: Verified<'_>,
        closed: Option<u64>,
    ) -> Result<bool, StoreError> {
        let cid = block.cid;
        let head = PackWriter::record_head(&cid, block.bytes.len());
        let mut state = lock(&self.writer);
        if state.broken {
            return Err(StoreError::Broken);
        }
        if self.held().contains_key(&cid) {
            return Ok(false);
        }
        // It may have come and gone into the index since the caller looked there.
        let now = lock(&self.stats).packs_closed;
        if closed.is_some_and(|then| then != now) && self.has(&cid)? {
            return Ok(false);
        }
        self.check_room(&mut state, &block)?;
        let full = state.open.get(&class).is_some_and(|open| {
            let blocks = open.writer.blocks().len();
            blocks >= PACK_BLOCKS_MAX
                || (blocks > 0 && open.writer.len_with(&head) > self.config.pack_bytes_max)
        });
        if full {
            if state.sealed.len() >= UNFINISHED_MAX {
                drop(state);
                return Err(lock(&self.trouble).take().unwrap_or(StoreError::Broken));
            }
            state.seal(class);
        }
        if !state.open.contains_key(&class) {
            let open = self.begin(&mut state, class, &cid)?;
            state.open.insert(class, open);
        }
        let open = state.open.get_mut(&class).expect("just made");
        let name = open
            .file
            .name
            .read()
            .expect("no thread panics while it holds this lock")
            .clone();
        let end = open.writer.len_bytes();
        match self.disk.append_parts(&name, &[head.bytes(), block.bytes]) {
            Ok(offset) if offset == end => {}
            Ok(_) => {
                state.broken = true;
                return Err(StoreError::Write {
                    name,
                    source: io::Error::other("somebody else writes to this file"),
                });
            }
            Err(source) => {
                if self.disk.truncate(&name, end).is_err() {
                    // The file may have a torn end, which is cut when the pack is finished.
                    state.seal(class);
                }
                return Err(write_error(cid, name, source));
            }
        }
        let at = open.writer.push(&head, block.bytes);
        let place = Held {
            file: Arc::clone(&open.file),
            offset: at.offset,
            len: at.len,
        };
        self.held_mut().insert(cid, place);
        state.written += 1;
        state.since_room_check = state
            .since_room_check
            .saturating_add(block.bytes.len() as u64);
        let crowded = state.sealed.len() > SEALED_MAX;
        drop(state);
        {
            let mut stats = lock(&self.stats);
            stats.blocks_new += 1;
            stats.bytes_new += block.bytes.len() as u64;
        }
        if crowded {
            // The block itself is written; what fails here will fail again, and be told, at the flush.
            let _ = self.group.alone(|| self.commit());
        }
        Ok(true)
    }

    /// Refuses a block when less than the floor would be free.
    fn check_room(&self, state: &mut Writer, block: &Verified<'_>) -> Result<(), StoreError> {
        if state.since_room_check < ROOM_CHECK_BYTES {
            return Ok(());
        }
        let wanted = self
            .config
            .free_floor
            .saturating_add(block.bytes.len() as u64);
        if self.disk.free().is_some_and(|free| free < wanted) {
            return Err(StoreError::Full {
                cid: block.cid,
                source: None,
            });
        }
        state.since_room_check = 0;
        Ok(())
    }

    /// Makes the file of a new pack.
    fn begin(&self, state: &mut Writer, class: Class, cid: &Cid) -> Result<OpenPack, StoreError> {
        let name = open_name(state.next_number);
        state.next_number += 1;
        let header = Header::new(class, self.config.space);
        if let Err(source) = self.disk.create(&name) {
            return Err(write_error(*cid, name, source));
        }
        if let Err(source) = self.disk.append(&name, &header.encode()) {
            // Nothing is in it; if it cannot be removed now, the next start does.
            let _ = self.disk.remove(&name);
            return Err(write_error(*cid, name, source));
        }
        state.names_new = true;
        let file = Arc::new(PackFile {
            name: RwLock::new(name),
            spoilt: AtomicBool::new(false),
        });
        Ok(OpenPack {
            file,
            writer: PackWriter::new(header),
            synced: 0,
            grown: None,
        })
    }

    /// Returns once every block put before would outlast a power cut. Callers on many threads share one sync.
    ///
    /// # Errors
    /// [`StoreError::Sync`], [`StoreError::Broken`]: then nothing is known of the blocks put since the last flush.
    pub fn flush(&self) -> Result<(), StoreError> {
        let wanted = lock(&self.writer).written;
        self.group.reach(wanted, || self.commit())
    }

    /// Closes all open packs, and returns once they last and the index knows them.
    ///
    /// # Errors
    /// As [`Store::flush`]; also [`StoreError::Write`] and [`StoreError::Index`] if a pack could not be finished: its blocks last all the same.
    pub fn close_packs(&self) -> Result<(), StoreError> {
        {
            let mut state = lock(&self.writer);
            for class in Class::ALL {
                if state.has_blocks(class) {
                    state.seal(class);
                }
            }
        }
        self.finish()
    }

    /// Closes packs that got no block for [`PACK_IDLE`] and finishes full ones; call it every few seconds.
    ///
    /// # Errors
    /// As [`Store::close_packs`].
    pub fn tick(&self, now: Time) -> Result<(), StoreError> {
        let waiting = {
            let mut state = lock(&self.writer);
            for class in Class::ALL {
                if !state.has_blocks(class) {
                    continue;
                }
                let Some(open) = state.open.get_mut(&class) else {
                    continue;
                };
                let len = open.writer.len_bytes();
                match open.grown {
                    Some((seen, since)) if seen == len => {
                        if now.since(since) >= PACK_IDLE {
                            state.seal(class);
                        }
                    }
                    _ => open.grown = Some((len, now)),
                }
            }
            !state.sealed.is_empty()
        };
        if waiting { self.finish() } else { Ok(()) }
    }

    fn finish(&self) -> Result<(), StoreError> {
        lock(&self.trouble).take();
        self.group.alone(|| self.commit())?;
        lock(&self.trouble).take().map_or(Ok(()), Err)
    }

    /// Syncs all that was written so far, then finishes full packs. One thread at a time.
    fn commit(&self) -> Result<u64, StoreError> {
        let mut batch = {
            let mut state = lock(&self.writer);
            if state.broken {
                return Err(StoreError::Broken);
            }
            let unsynced = state
                .open
                .iter()
                .filter(|(_, open)| open.writer.len_bytes() > open.synced);
            let open = unsynced
                .map(|(class, open)| (*class, Arc::clone(&open.file), open.writer.len_bytes()))
                .collect();
            Batch {
                written: state.written,
                open,
                sealed: std::mem::take(&mut state.sealed),
                names_new: std::mem::take(&mut state.names_new),
            }
        };
        lock(&self.stats).commits += 1;
        let result = self
            .sync_batch(&mut batch)
            .and_then(|()| self.finish_batch(&mut batch));
        let mut state = lock(&self.writer);
        // What is not finished is tried again; a spoilt pack stays as it is, its sound blocks readable.
        batch
            .sealed
            .retain(|pack| !pack.file.spoilt.load(Ordering::Relaxed) || result.is_err());
        state.sealed.append(&mut batch.sealed);
        result?;
        for (class, file, len) in batch.open {
            if let Some(open) = state
                .open
                .get_mut(&class)
                .filter(|open| Arc::ptr_eq(&open.file, &file))
            {
                open.synced = len;
            }
        }
        Ok(batch.written)
    }

    /// Makes the batch last. Footers go with it where there is room for them.
    fn sync_batch(&self, batch: &mut Batch) -> Result<(), StoreError> {
        for pack in &mut batch.sealed {
            if matches!(pack.state, Finish::Records) && !pack.file.spoilt.load(Ordering::Relaxed) {
                match self.write_footer(pack) {
                    Ok(id) => pack.state = Finish::Whole(id),
                    Err(error) => *lock(&self.trouble) = Some(error),
                }
            }
        }
        let files = batch
            .open
            .iter()
            .map(|(_, file, _)| file)
            .chain(batch.sealed.iter().map(|pack| &pack.file));
        for file in files {
            let name = file
                .name
                .read()
                .expect("no thread panics while it holds this lock");
            self.disk
                .sync(&name)
                .map_err(|source| self.sync_failed(source))?;
        }
        if batch.names_new {
            self.disk
                .sync_names()
                .map_err(|source| self.sync_failed(source))?;
        }
        Ok(())
    }

    fn write_footer(&self, pack: &SealedPack) -> Result<PackId, StoreError> {
        let name = pack
            .file
            .name
            .read()
            .expect("no thread panics while it holds this lock");
        let write = |source| StoreError::Write {
            name: name.clone(),
            source,
        };
        let end = pack.writer.len_bytes();
        // Behind the last record there may be what a failed write left.
        if self.disk.len(&name).map_err(write)? != end {
            self.disk.truncate(&name, end).map_err(write)?;
        }
        let (footer, id) = pack.writer.footer();
        self.disk.append(&name, &footer).map_err(write)?;
        Ok(id)
    }

    /// Gives whole packs their names and tells the index of them. Failing here costs no block.
    fn finish_batch(&self, batch: &mut Batch) -> Result<(), StoreError> {
        let mut renamed = false;
        for pack in &mut batch.sealed {
            let Finish::Whole(id) = pack.state else {
                continue;
            };
            if pack.file.spoilt.load(Ordering::Relaxed) {
                continue;
            }
            let mut name = pack
                .file
                .name
                .write()
                .expect("no thread panics while it holds this lock");
            let closed = closed_name(&id);
            match self.disk.rename(&name, &closed) {
                Ok(()) => {
                    *name = closed;
                    renamed = true;
                    pack.state = Finish::Named(id);
                }
                Err(source) => {
                    *lock(&self.trouble) = Some(StoreError::Write {
                        name: name.clone(),
                        source,
                    })
                }
            }
        }
        if renamed {
            self.disk
                .sync_names()
                .map_err(|source| self.sync_failed(source))?;
        }
        for pack in std::mem::take(&mut batch.sealed) {
            let Finish::Named(id) = pack.state else {
                batch.sealed.push(pack);
                continue;
            };
            if let Err(source) = self.enter(&id, &pack) {
                *lock(&self.trouble) = Some(StoreError::Index { source });
                batch.sealed.push(pack);
            }
        }
        Ok(())
    }

    /// Tells the index of a closed pack, and forgets where its blocks were.
    fn enter(&self, id: &PackId, pack: &SealedPack) -> io::Result<()> {
        let blocks = pack.writer.blocks();
        let info = PackInfo {
            class: pack.writer.header().class,
            blocks: u32::try_from(blocks.len()).expect("at most PACK_BLOCKS_MAX"),
            bytes: self.disk.len(&closed_name(id))?,
        };
        self.index.insert_pack(id, info, blocks)?;
        // Before its blocks leave `held`: see `write`.
        lock(&self.stats).packs_closed += 1;
        {
            let mut held = self.held_mut();
            for block in blocks {
                if held
                    .get(&block.cid)
                    .is_some_and(|now| Arc::ptr_eq(&now.file, &pack.file))
                {
                    held.remove(&block.cid);
                }
            }
        }
        lock(&self.born).push(Born { pack: *id, info });
        Ok(())
    }

    fn sync_failed(&self, source: io::Error) -> StoreError {
        lock(&self.writer).broken = true;
        StoreError::Sync { source }
    }

    /// Packs closed since the last call, those found unknown at the opening included. [`Store::packs`] has them all.
    pub fn born(&self) -> Vec<Born> {
        std::mem::take(&mut *lock(&self.born))
    }

    /// All closed packs.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn packs(&self) -> Result<Vec<(PackId, PackInfo)>, StoreError> {
        self.index
            .packs()
            .map_err(|source| StoreError::Index { source })
    }

    /// The blocks of a closed pack, in the order of the file.
    ///
    /// # Errors
    /// [`StoreError::Pack`], [`StoreError::Read`].
    pub fn pack_blocks(&self, pack: &PackId) -> Result<Vec<BlockAt>, StoreError> {
        self.read_footer(pack).map(|(_, blocks)| blocks)
    }

    /// Reads a closed pack to the last byte and compares it with its name; puts into the index what that has lost.
    ///
    /// # Errors
    /// [`StoreError::Pack`] if it is damaged: [`Store::quarantine`] is the answer. [`StoreError::Read`], [`StoreError::Index`].
    pub fn check_pack(&self, pack: &PackId) -> Result<(), StoreError> {
        let bad = |source| StoreError::Pack {
            pack: *pack,
            source,
        };
        let bytes = self
            .read_whole(&closed_name(pack))?
            .ok_or_else(|| bad(PackError::Length))?;
        let found = pack::check(&bytes).map_err(bad)?;
        if found.id != *pack {
            return Err(bad(PackError::Name));
        }
        let index = |source| StoreError::Index { source };
        for block in &found.blocks {
            let places = self.index.locations(&block.cid).map_err(index)?;
            if !places.iter().any(|place| {
                place.pack == *pack && place.offset == block.offset && place.len == block.len
            }) {
                let info = PackInfo {
                    class: found.header.class,
                    blocks: u32::try_from(found.blocks.len()).expect("at most PACK_BLOCKS_MAX"),
                    bytes: bytes.len() as u64,
                };
                return self
                    .index
                    .insert_pack(pack, info, &found.blocks)
                    .map_err(index);
            }
        }
        Ok(())
    }

    /// Takes a damaged pack out of use: its sound blocks go into new packs, the file is kept; answers the name under which.
    ///
    /// # Errors
    /// Any of [`StoreError`]; then the pack is as before.
    pub fn quarantine(&self, pack: &PackId) -> Result<String, StoreError> {
        let name = closed_name(pack);
        let known: Vec<Cid> = match self.read_whole(&name)? {
            // The footer may be what is damaged: sound blocks are found without it.
            Some(bytes) => pack::scan(&bytes)
                .blocks
                .into_iter()
                .chain(self.pack_blocks(pack).unwrap_or_default())
                .map(|block| block.cid)
                .collect(),
            None => Vec::new(),
        };
        let kept = self.salvage(&name, Some(pack))?;
        self.index
            .remove_pack(pack, &known)
            .map_err(|source| StoreError::Index { source })?;
        Ok(kept)
    }

    /// Counts since the store was opened.
    pub fn stats(&self) -> StoreStats {
        *lock(&self.stats)
    }

    /// Blocks stored, and the bytes they take; of those in unfinished packs the bytes of the blocks alone.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn usage(&self) -> Result<(u64, u64), StoreError> {
        let (mut blocks, mut bytes) = (0, 0);
        for held in self.held().values() {
            blocks += 1;
            bytes += u64::from(held.len);
        }
        for (_, info) in self.packs()? {
            blocks += u64::from(info.blocks);
            bytes += info.bytes;
        }
        Ok((blocks, bytes))
    }

    /// The disk the store lies on.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    fn held(&self) -> RwLockReadGuard<'_, BTreeMap<Cid, Held>> {
        self.held
            .read()
            .expect("no thread panics while it holds this lock")
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Cid, Held>> {
        self.held
            .write()
            .expect("no thread panics while it holds this lock")
    }
}

impl Writer {
    /// Lets the open pack of a class take no more blocks.
    ///
    /// One without blocks is dropped: there are no empty packs, and the next start removes the file.
    fn seal(&mut self, class: Class) {
        let Some(open) = self.open.remove(&class) else {
            return;
        };
        if !open.writer.blocks().is_empty() {
            self.sealed.push(SealedPack {
                file: open.file,
                writer: open.writer,
                state: Finish::Records,
            });
        }
    }

    /// Whether the open pack of a class holds a block.
    fn has_blocks(&self, class: Class) -> bool {
        let open = self.open.get(&class);
        open.is_some_and(|open| !open.writer.blocks().is_empty())
    }
}

fn write_error(cid: Cid, name: String, source: io::Error) -> StoreError {
    if source.kind() == io::ErrorKind::StorageFull {
        StoreError::Full {
            cid,
            source: Some(source),
        }
    } else {
        StoreError::Write { name, source }
    }
}

/// The file of a closed pack.
fn closed_name(pack: &PackId) -> String {
    format!("{pack}.pack")
}

fn closed_id(name: &str) -> Option<PackId> {
    name.strip_suffix(".pack")?.parse().ok()
}

/// The file of a pack that still grows, or was left so.
fn open_name(number: u64) -> String {
    format!("open-{number}.pack")
}

fn open_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("open-")?.strip_suffix(".pack")?;
    let parsed = number.parse().ok()?;
    (open_name(parsed) == name).then_some(parsed)
}

#[cfg(test)]
mod tests;
