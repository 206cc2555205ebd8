//! The store of one device: blocks in packs on a [`Disk`], found by an [`Index`].
//!
//! Spec: `protocol/spec/store.md`, "Order of writes".

mod cache;
mod closing;
mod error;
mod open_pack;
mod part;
mod reading;
mod recovery;
mod retire;
mod room;
mod scrub;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::disk::{Disk, Group, lock};
use crate::id::{Cid, PackId, SpaceId};
use crate::index::{Index, PackInfo};
use crate::time::Span;

use cache::{Cached, GivenUp};
pub use error::StoreError;
use open_pack::{Held, Writer};
pub use part::{AdoptError, Part};
use retire::Retiring;
pub use retire::{CopyOut, Lease, Run};
pub use room::{FREE_FLOOR, Usage};
pub use scrub::{Aside, Damage, IndexFault};

/// How a store is set up.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The space that new packs belong to.
    pub space: SpaceId,
    /// A pack is closed before it would grow beyond this.
    pub pack_bytes_max: u64,
    /// With less than this free, the store takes no more blocks; [`FREE_FLOOR`], or less on a small disk, if not said.
    pub free_floor: Option<u64>,
    /// Most bytes that the files of packs may take together.
    pub quota: Option<u64>,
    /// Most bytes that cached packs may take together.
    pub cache: Option<u64>,
}

impl StoreConfig {
    /// The usual set-up for a space: packs of 16 MiB, no quota, and the last GiB of the disk stays free.
    pub fn new(space: SpaceId) -> Self {
        Self {
            space,
            pack_bytes_max: 16 << 20,
            free_floor: None,
            quota: None,
            cache: None,
        }
    }
}

/// How long a pack stays open without a new block.
pub const PACK_IDLE: Span = Span::from_secs(60);

/// Whether a pack may be dropped to make room.
///
/// Spec: `protocol/spec/store.md`, "Kept and cached".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Keep {
    /// Never dropped to make room: what was put here, pinned, promised or placed.
    Kept,
    /// Fetched for a reader only; nobody relies on it.
    Cached,
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

    /// Its length, as errors tell it: none that is stored is longer.
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
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
    /// It was not closed now: it was fetched, or an opening met it that the index did not know.
    pub found: bool,
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
    /// Which packs these bytes were cut off from, and where.
    pub cut: Vec<(String, u64)>,
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
    /// Packs of other devices taken over whole.
    pub packs_adopted: u64,
    /// Cached packs dropped to make room.
    pub packs_evicted: u64,
    /// Retired packs dropped.
    pub packs_dropped: u64,
    /// Bytes that these took.
    pub bytes_dropped: u64,
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
    /// Held by who gives full packs their names and tells the index of them.
    finishing: Mutex<()>,
    born: Mutex<Vec<Born>>,
    /// Why a full pack could not be finished; not a matter of durability.
    trouble: Mutex<Option<StoreError>>,
    stats: Mutex<StoreStats>,
    /// Bytes that all files here take, footers to come included.
    used: AtomicU64,
    /// Most that they may take; `u64::MAX` if there is no limit.
    quota: AtomicU64,
    cached: RwLock<Cached>,
    /// Cached packs that others keep, which are kept again rather than written anew; and those that were since that was asked.
    given_up: Mutex<GivenUp>,
    /// Which packs are on their way out, and who relies on which.
    retiring: Arc<Mutex<Retiring>>,
    /// Packs of other devices that are under way.
    parts: Arc<Mutex<BTreeSet<PackId>>>,
    /// Held by who takes closed packs away, or judges them.
    upkeep: Mutex<()>,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Kept packs closed since the last call, those found unknown at the opening included. [`Store::packs`] has them all.
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

    /// Counts since the store was opened.
    pub fn stats(&self) -> StoreStats {
        *lock(&self.stats)
    }

    /// The index of the store. Changing it behind the store's back is for tests.
    pub fn index(&self) -> &I {
        &self.index
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

    fn cached(&self) -> RwLockReadGuard<'_, Cached> {
        self.cached
            .read()
            .expect("no thread panics while it holds this lock")
    }

    fn cached_mut(&self) -> RwLockWriteGuard<'_, Cached> {
        self.cached
            .write()
            .expect("no thread panics while it holds this lock")
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Cid, Held>> {
        self.held
            .write()
            .expect("no thread panics while it holds this lock")
    }
}

impl Keep {
    /// What the names of such files end in. The name alone says it: whatever is not called a cache is kept.
    fn suffix(self) -> &'static str {
        match self {
            Self::Kept => "pack",
            Self::Cached => "cache",
        }
    }

    /// A file's name without the suffix.
    fn split(name: &str) -> Option<(&str, Self)> {
        let (stem, suffix) = name.rsplit_once('.')?;
        let keep = [Self::Kept, Self::Cached]
            .into_iter()
            .find(|keep| keep.suffix() == suffix)?;
        Some((stem, keep))
    }
}

/// The file of a closed pack.
fn closed_name(pack: &PackId, keep: Keep) -> String {
    format!("{pack}.{}", keep.suffix())
}

fn closed_id(name: &str) -> Option<(PackId, Keep)> {
    let (stem, keep) = Keep::split(name)?;
    Some((stem.parse().ok()?, keep))
}

/// The file of a pack that still grows, or was left so.
fn open_name(number: u64, keep: Keep) -> String {
    format!("open-{number}.{}", keep.suffix())
}

fn open_number(name: &str) -> Option<(u64, Keep)> {
    let (stem, keep) = Keep::split(name)?;
    let parsed = stem.strip_prefix("open-")?.parse().ok()?;
    (open_name(parsed, keep) == name).then_some((parsed, keep))
}

#[cfg(test)]
mod tests;
