//! Where files lie: the few operations that the store and the logs need, and a simulated disk that loses what a power cut would lose.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::key::Rng;

/// Files in one flat folder. Names consist of `a-z`, `0-9`, `.`, `-`; see [`is_name`].
///
/// What was appended is readable at once, and lasts only after [`Disk::sync`]; what was created, renamed or removed lasts only after
/// [`Disk::sync_names`]. One thread at a time appends to or truncates a file; all else may happen at once from many.
///
/// Spec: `protocol/spec/store.md`, "Disk".
pub trait Disk: Send + Sync {
    /// Makes an empty file; an existing one of that name is an error of kind `AlreadyExists`.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn create(&self, name: &str) -> io::Result<()>;

    /// Writes the parts, one behind the other, at the end of a file; answers the offset at which the first stands.
    ///
    /// # Errors
    /// After an error the file may have grown by any part of the bytes: the caller truncates it. `StorageFull` if there is no room.
    fn append_parts(&self, name: &str, parts: &[&[u8]]) -> io::Result<u64>;

    /// Writes the bytes at the end of a file; answers the offset at which they stand.
    ///
    /// # Errors
    /// As [`Disk::append_parts`].
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<u64> {
        self.append_parts(name, &[bytes])
    }

    /// Reads exactly that many bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, `InvalidData` if the medium has lost the bytes, `NotFound` if there is no such file.
    fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// The length of a file.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Cuts a file to that length, which is not above its own.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn truncate(&self, name: &str, len: u64) -> io::Result<()>;

    /// Returns once all bytes of a file would outlast a power cut.
    ///
    /// # Errors
    /// After an error nobody knows which of the bytes written since the last sync will last.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Begins to bring to the medium what stands in a file from there on, and does not wait: a sync later has less to do. Promises nothing.
    fn begin_sync(&self, name: &str, from: u64) {
        let _ = (name, from);
    }

    /// Returns once all names would outlast a power cut.
    ///
    /// # Errors
    /// As [`Disk::sync`].
    fn sync_names(&self) -> io::Result<()>;

    /// Gives a file another name, in place of any file of that name.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` if there is no such file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files, sorted.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// How many bytes are free, where the disk can tell.
    fn free(&self) -> Option<u64> {
        None
    }

    /// How many bytes the disk has, where it can tell.
    fn size(&self) -> Option<u64> {
        None
    }
}

impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn create(&self, name: &str) -> io::Result<()> {
        (**self).create(name)
    }
    fn append_parts(&self, name: &str, parts: &[&[u8]]) -> io::Result<u64> {
        (**self).append_parts(name, parts)
    }
    fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        (**self).read_at(name, offset, len)
    }
    fn len(&self, name: &str) -> io::Result<u64> {
        (**self).len(name)
    }
    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        (**self).truncate(name, len)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        (**self).sync(name)
    }
    fn begin_sync(&self, name: &str, from: u64) {
        (**self).begin_sync(name, from);
    }
    fn sync_names(&self) -> io::Result<()> {
        (**self).sync_names()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (**self).rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        (**self).remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        (**self).list()
    }
    fn free(&self) -> Option<u64> {
        (**self).free()
    }
    fn size(&self) -> Option<u64> {
        (**self).size()
    }
}

/// Bytes that a medium loses together, as far as [`read_around`] cares.
const PIECE_BYTES: usize = 4096;

/// Reads as [`Disk::read_at`] does, with zeros in place of what the medium has lost.
pub(crate) fn read_around<D: Disk + ?Sized>(
    disk: &D,
    name: &str,
    offset: u64,
    len: usize,
) -> io::Result<Vec<u8>> {
    let lost = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
    match disk.read_at(name, offset, len) {
        Err(error) if lost(&error) => {}
        result => return result,
    }
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset.saturating_add(bytes.len() as u64);
        // Up to the next whole piece of the file, so that one lost sector spoils one piece.
        let into = usize::try_from(at % PIECE_BYTES as u64).unwrap_or(0);
        let part = (PIECE_BYTES - into).min(len - bytes.len());
        match disk.read_at(name, at, part) {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) if lost(&error) => bytes.resize(bytes.len() + part, 0),
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Longest file name a disk takes.
pub const NAME_BYTES_MAX: usize = 128;

/// Whether a disk takes this as a file name: 1 to [`NAME_BYTES_MAX`] of `a-z`, `0-9`, `.`, `-`, the first not a dot.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

/// Lets many callers share one sync: the first to come syncs for all who wait.
///
/// Callers number what they wrote; [`Group::reach`] returns once a sync has covered that number.
#[derive(Debug, Default)]
pub(crate) struct Group {
    state: Mutex<GroupState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct GroupState {
    running: bool,
    durable: u64,
}

/// Ends a turn of leading even if the sync panics, so that others do not wait for ever.
struct Turn<'a>(&'a Group);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running = false;
        self.0.done.notify_all();
    }
}

impl From<u64> for Group {
    /// A group in which everything up to that number lasts already.
    fn from(durable: u64) -> Self {
        Self {
            state: Mutex::new(GroupState {
                running: false,
                durable,
            }),
            done: Condvar::new(),
        }
    }
}

impl Group {
    /// Returns when everything up to `wanted` lasts. `sync` is called by one caller at a time and answers the number up to which all lasts now.
    pub(crate) fn reach<E>(&self, wanted: u64, sync: impl Fn() -> Result<u64, E>) -> Result<(), E> {
        loop {
            let mut state = lock(&self.state);
            while state.running && state.durable < wanted {
                state = self
                    .done
                    .wait(state)
                    .expect("no thread panics while it holds this lock");
            }
            if state.durable >= wanted {
                return Ok(());
            }
            state.running = true;
            drop(state);
            let turn = Turn(self);
            let durable = sync()?;
            let mut state = lock(&self.state);
            state.durable = state.durable.max(durable);
            drop(state);
            drop(turn);
        }
    }

    /// Runs `work` while nobody syncs.
    pub(crate) fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        let mut state = lock(&self.state);
        while state.running {
            state = self
                .done
                .wait(state)
                .expect("no thread panics while it holds this lock");
        }
        state.running = true;
        drop(state);
        let _turn = Turn(self);
        work()
    }
}

/// Takes a lock that no thread leaves in disorder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no thread panics while it holds this lock")
}

/// What a simulated disk does wrong, and when. All false by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation is cut short at a random place and the machine stands still: all fails until [`SimDisk::crash`].
    Die,
    /// The operation fails once with an I/O error; an append leaves a part of its bytes behind.
    Error,
    /// The operation fails once for want of room; an append leaves a part of its bytes behind.
    Full,
}

/// How much of what was not synced a crash takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: the system still writes all it was given.
    Kill,
    /// Power fails; of each file a random first part of what was not synced is there.
    Prefix,
    /// Power fails; of what was not synced any sectors are there, others hold zeros or half of their bytes.
    Scatter,
}

/// A disk in memory with the vices of a real one, driven by a seed.
///
/// Clones are handles of the same disk.
///
/// Spec: `protocol/spec/store.md`, "The simulated disk".
#[derive(Clone, Debug)]
pub struct SimDisk {
    inner: Arc<Mutex<Sim>>,
}

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Clone, Debug, Default)]
struct Sim {
    files: BTreeMap<u64, SimFile>,
    /// Names as a running process sees them.
    names: BTreeMap<String, u64>,
    /// Names as of the last [`Disk::sync_names`].
    durable: BTreeMap<String, u64>,
    /// What happened to names since, oldest first.
    changes: Vec<NameChange>,
    next_file: u64,
    capacity: u64,
    /// Operations that change something, since the start.
    writes: u64,
    /// The operation, counted as `writes`, at which a fault comes.
    fault: Option<(u64, Fault)>,
    /// Fails the next sync of a file or of names.
    sync_error: bool,
    dead: bool,
    /// Feeds the place at which an operation is cut short.
    noise: u64,
    stats: SimStats,
}

/// What a simulated disk was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Calls of [`Disk::sync`].
    pub syncs: u64,
    /// Calls of [`Disk::sync_names`].
    pub name_syncs: u64,
    /// Bytes appended.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default)]
struct SimFile {
    /// What a running process reads.
    data: Vec<u8>,
    /// How much of the front of `data` is as it was synced.
    synced: usize,
    /// Synced bytes that stood behind `synced` before the file was cut.
    cut: Vec<u8>,
    /// Sectors that can no longer be read.
    lost: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create { name: String, file: u64 },
    Rename { from: String, to: String, file: u64 },
    Remove { name: String, file: u64 },
}

impl NameChange {
    fn file(&self) -> u64 {
        match self {
            Self::Create { file, .. } | Self::Rename { file, .. } | Self::Remove { file, .. } => {
                *file
            }
        }
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        let sim = Sim {
            capacity: u64::MAX,
            ..Sim::default()
        };
        Self {
            inner: Arc::new(Mutex::new(sim)),
        }
    }

    /// Limits the bytes of all files together; beyond, an append writes what fits and fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.inner).capacity = bytes;
    }

    /// Lets a fault happen at the `after`-th change from now (0: the next one): append, create, truncate, rename, remove, sync.
    pub fn fail_after(&self, after: u64, fault: Fault) {
        let mut sim = lock(&self.inner);
        sim.fault = Some((sim.writes + after, fault));
    }

    /// Fails the next sync of a file or of names, after which its bytes stay as unsafe as before.
    pub fn fail_next_sync(&self) {
        lock(&self.inner).sync_error = true;
    }

    /// Takes back every fault that has not happened.
    pub fn heal(&self) {
        let mut sim = lock(&self.inner);
        sim.fault = None;
        sim.sync_error = false;
    }

    /// Whether a [`Fault::Die`] has happened and no crash since.
    pub fn is_dead(&self) -> bool {
        lock(&self.inner).dead
    }

    /// Inverts one bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such bit: tests name bits that are there.
    pub fn flip(&self, name: &str, bit: u64) {
        let mut sim = lock(&self.inner);
        let file = sim.names.get(name).copied().expect("the file is there");
        let file = sim.files.get_mut(&file).expect("every name has a file");
        let at = usize::try_from(bit / 8).expect("files fit in memory");
        *file.data.get_mut(at).expect("the byte is there") ^= 1 << (bit % 8);
    }

    /// Lets the medium lose the sector that holds this byte: reads that touch it fail with `InvalidData`.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn lose_sector(&self, name: &str, offset: u64) {
        let mut sim = lock(&self.inner);
        let file = sim.names.get(name).copied().expect("the file is there");
        let file = sim.files.get_mut(&file).expect("every name has a file");
        file.lost.insert(offset / SECTOR_BYTES as u64);
    }

    /// Inverts one random bit of a random non-empty file; answers which.
    pub fn flip_random(&self, rng: &mut Rng) -> Option<(String, u64)> {
        let (name, len) = self.random(rng)?;
        let bit = rng.below(len * 8);
        self.flip(&name, bit);
        Some((name, bit))
    }

    /// Loses one random sector of a random non-empty file; answers which.
    pub fn lose_random(&self, rng: &mut Rng) -> Option<(String, u64)> {
        let (name, len) = self.random(rng)?;
        let offset = rng.below(len);
        self.lose_sector(&name, offset);
        Some((name, offset / SECTOR_BYTES as u64))
    }

    /// A random file that is not empty, and its length.
    fn random(&self, rng: &mut Rng) -> Option<(String, u64)> {
        let candidates: Vec<(String, u64)> = {
            let sim = lock(&self.inner);
            let len = |file: &u64| sim.files.get(file).map_or(0, |file| file.data.len() as u64);
            sim.names
                .iter()
                .map(|(name, file)| (name.clone(), len(file)))
                .filter(|(_, len)| *len > 0)
                .collect()
        };
        let chosen = usize::try_from(rng.below(candidates.len().max(1) as u64)).ok()?;
        candidates.get(chosen).cloned()
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        lock(&self.inner).used()
    }

    /// Whether its room is limited, or a fault is still to happen.
    pub fn is_faulty(&self) -> bool {
        let sim = lock(&self.inner);
        sim.capacity != u64::MAX || sim.fault.is_some() || sim.sync_error
    }

    /// Ends the process and, unless it was only killed, the power; what was not synced is lost in part. The disk works again afterwards.
    pub fn crash(&self, how: Crash, rng: &mut Rng) {
        let mut sim = lock(&self.inner);
        sim.dead = false;
        sim.fault = None;
        sim.sync_error = false;
        sim.noise = rng.below(u64::MAX);
        if how == Crash::Kill {
            return;
        }
        let sim = &mut *sim;
        sim.crash_names(how, rng);
        for file in sim.files.values_mut() {
            file.crash(how, rng);
        }
    }

    /// Another disk with the same on it, as a backup is.
    #[must_use]
    pub fn copied(&self) -> Self {
        let sim = lock(&self.inner).clone();
        Self {
            inner: Arc::new(Mutex::new(sim)),
        }
    }

    /// What was asked for so far.
    pub fn stats(&self) -> SimStats {
        lock(&self.inner).stats
    }

    /// How many changes there were so far; [`SimDisk::fail_after`] counts the same.
    pub fn changes(&self) -> u64 {
        lock(&self.inner).writes
    }
}

impl Sim {
    /// Of the changes to each file's names a first part has reached the disk: all of one common time if `Prefix`, else of any.
    fn crash_names(&mut self, how: Crash, rng: &mut Rng) {
        let changes = std::mem::take(&mut self.changes);
        let common = rng.below(changes.len() as u64 + 1);
        let mut stopped = BTreeSet::new();
        let mut names = std::mem::take(&mut self.durable);
        for (number, change) in (0_u64..).zip(changes) {
            let lost = match how {
                Crash::Kill => false,
                Crash::Prefix => number >= common,
                Crash::Scatter => rng.below(3) == 0,
            };
            if lost {
                stopped.insert(change.file());
            }
            if stopped.contains(&change.file()) {
                continue;
            }
            match change {
                NameChange::Create { name, file } => {
                    names.insert(name, file);
                }
                NameChange::Rename { from, to, file } => {
                    names.remove(&from);
                    names.insert(to, file);
                }
                NameChange::Remove { name, .. } => {
                    names.remove(&name);
                }
            }
        }
        let kept: BTreeSet<u64> = names.values().copied().collect();
        self.files.retain(|file, _| kept.contains(file));
        self.names.clone_from(&names);
        self.durable = names;
    }

    fn file(&self, name: &str) -> io::Result<&SimFile> {
        if self.dead {
            return Err(died());
        }
        let file = self.names.get(name).ok_or_else(|| missing(name))?;
        self.files.get(file).ok_or_else(|| missing(name))
    }

    fn file_mut(&mut self, name: &str) -> io::Result<&mut SimFile> {
        let file = self.names.get(name).ok_or_else(|| missing(name))?;
        self.files.get_mut(file).ok_or_else(|| missing(name))
    }

    /// Counts a change; the fault, if it is due now.
    fn change(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(died());
        }
        let due = self
            .fault
            .filter(|(at, _)| *at <= self.writes)
            .map(|(_, fault)| fault);
        self.writes += 1;
        if let Some(fault) = due {
            self.fault = None;
            self.dead = fault == Fault::Die;
        }
        Ok(due)
    }

    /// As [`Sim::change`], for what happens whole or not at all.
    fn whole_change(&mut self) -> io::Result<()> {
        match self.change()? {
            None => Ok(()),
            Some(fault) => Err(failure(fault)),
        }
    }

    /// A number below `limit`, other at every call.
    fn noise(&mut self, limit: usize) -> usize {
        self.noise = self
            .noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.noise >> 33) % (limit.max(1) as u64)).unwrap_or(0)
    }

    /// Bytes of all files that have a name; a removed one gives its room back at once, as file systems do.
    fn used(&self) -> u64 {
        let named = self.names.values().filter_map(|file| self.files.get(file));
        named.map(|file| file.data.len() as u64).sum()
    }
}

impl SimFile {
    /// Chooses what of the file is there after a power cut: between what was synced and what stands now.
    fn crash(&mut self, how: Crash, rng: &mut Rng) {
        let new = std::mem::take(&mut self.data);
        let synced = new.get(..self.synced).unwrap_or(&new);
        let old = [synced, &self.cut].concat();
        let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
        let all = rng.below(4) == 0;
        let len = if all {
            new.len()
        } else {
            short + index(rng, long - short + 1)
        };
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let sector = data.len()..(data.len() + SECTOR_BYTES).min(len);
            let before = part(&old, sector.clone());
            let after = part(&new, sector.clone());
            if before == after {
                data.extend_from_slice(&after);
                continue;
            }
            let torn = match how {
                Crash::Kill => sector.len(),
                Crash::Prefix => sector.len(),
                Crash::Scatter => match rng.below(4) {
                    0 => 0,
                    1 => index(rng, sector.len() + 1),
                    _ => sector.len(),
                },
            };
            data.extend(after.iter().take(torn).chain(before.iter().skip(torn)));
        }
        self.synced = data.len();
        self.cut = Vec::new();
        self.data = data;
    }
}

/// The bytes of a range; zeros where there are none.
fn part(bytes: &[u8], range: Range<usize>) -> Vec<u8> {
    let mut part: Vec<u8> = bytes
        .iter()
        .skip(range.start)
        .take(range.len())
        .copied()
        .collect();
    part.resize(range.len(), 0);
    part
}

/// A random index below `limit`, which is not zero.
fn index(rng: &mut Rng, limit: usize) -> usize {
    usize::try_from(rng.below(limit as u64)).expect("below a usize")
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

fn died() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

fn failure(fault: Fault) -> io::Error {
    match fault {
        Fault::Die => died(),
        Fault::Error => io::Error::other("simulated I/O error"),
        Fault::Full => io::Error::new(io::ErrorKind::StorageFull, "simulated disk is full"),
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        if !is_name(name) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a file name: {name:?}"),
            ));
        }
        sim.whole_change()?;
        if sim.names.contains_key(name) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("file {name} exists"),
            ));
        }
        let file = sim.next_file;
        sim.next_file += 1;
        sim.files.insert(file, SimFile::default());
        sim.names.insert(name.to_owned(), file);
        sim.changes.push(NameChange::Create {
            name: name.to_owned(),
            file,
        });
        Ok(())
    }

    fn append_parts(&self, name: &str, parts: &[&[u8]]) -> io::Result<u64> {
        let mut sim = lock(&self.inner);
        let fault = sim.change()?;
        let bytes = parts.concat();
        let room = usize::try_from(sim.capacity.saturating_sub(sim.used())).unwrap_or(usize::MAX);
        let written = match fault {
            None => bytes.len().min(room),
            Some(_) => sim.noise(bytes.len() + 1).min(room),
        };
        sim.stats.bytes += written as u64;
        let file = sim.file_mut(name)?;
        let offset = file.data.len() as u64;
        // Many files are in memory at once: no more room than an eighth is kept for what comes.
        if file.data.capacity() - file.data.len() < written {
            let eighth = file.data.len() / 8;
            file.data.reserve_exact(written.max(eighth));
        }
        file.data.extend(bytes.iter().take(written));
        match fault {
            Some(fault) => Err(failure(fault)),
            None if written < bytes.len() => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "simulated disk is full",
            )),
            None => Ok(offset),
        }
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let sim = lock(&self.inner);
        let file = sim.file(name)?;
        let end = || {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("file {name} ends before"),
            )
        };
        let start = usize::try_from(offset).map_err(|_| end())?;
        let stop = start.checked_add(len).ok_or_else(end)?;
        let sectors = start / SECTOR_BYTES..stop.div_ceil(SECTOR_BYTES);
        let lost = |sector: &u64| usize::try_from(*sector).is_ok_and(|at| sectors.contains(&at));
        if stop <= file.data.len() && file.lost.iter().any(lost) {
            let text = format!("file {name} has lost bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        file.data
            .get(start..stop)
            .map(<[u8]>::to_vec)
            .ok_or_else(end)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(lock(&self.inner).file(name)?.data.len() as u64)
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        sim.whole_change()?;
        let file = sim.file_mut(name)?;
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= file.data.len());
        let len = len.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a file is only cut shorter")
        })?;
        if len < file.synced {
            let mut cut = file.data.get(len..file.synced).unwrap_or_default().to_vec();
            cut.append(&mut file.cut);
            file.cut = cut;
            file.synced = len;
        }
        file.data.truncate(len);
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        sim.stats.syncs += 1;
        sim.whole_change()?;
        if std::mem::take(&mut sim.sync_error) {
            return Err(failure(Fault::Error));
        }
        let file = sim.file_mut(name)?;
        file.synced = file.data.len();
        file.cut = Vec::new();
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        sim.stats.name_syncs += 1;
        sim.whole_change()?;
        if std::mem::take(&mut sim.sync_error) {
            return Err(failure(Fault::Error));
        }
        sim.durable = sim.names.clone();
        sim.changes.clear();
        let kept: BTreeSet<u64> = sim.names.values().copied().collect();
        sim.files.retain(|file, _| kept.contains(file));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        if !is_name(to) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a file name: {to:?}"),
            ));
        }
        sim.whole_change()?;
        let file = sim.names.remove(from).ok_or_else(|| missing(from))?;
        sim.names.insert(to.to_owned(), file);
        sim.changes.push(NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            file,
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut sim = lock(&self.inner);
        sim.whole_change()?;
        let file = sim.names.remove(name).ok_or_else(|| missing(name))?;
        sim.changes.push(NameChange::Remove {
            name: name.to_owned(),
            file,
        });
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let sim = lock(&self.inner);
        if sim.dead {
            return Err(died());
        }
        Ok(sim.names.keys().cloned().collect())
    }

    fn free(&self) -> Option<u64> {
        let sim = lock(&self.inner);
        (sim.capacity != u64::MAX).then(|| sim.capacity.saturating_sub(sim.used()))
    }

    fn size(&self) -> Option<u64> {
        let sim = lock(&self.inner);
        (sim.capacity != u64::MAX).then_some(sim.capacity)
    }
}
