//! Cached packs: which there are, and which goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Mutex;

use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::{Keep, Store, StoreError, closed_name};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::Index;
use crate::pack;

/// Cached packs that the order expects; more are fine.
const PACKS_EXPECTED: usize = 1024;
/// The order takes weights beyond this as zero, so it never starts there.
const CAPACITY_LEAST: u64 = 1 << 20;

/// A pack counts by the bytes of its file.
#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<PackId, u64> for ByBytes {
    fn weight(&self, _: &PackId, bytes: &u64) -> u64 {
        *bytes
    }
}

/// Same packs, same uses: same order, so no random hasher.
type Hasher = BuildHasherDefault<DefaultHasher>;

/// The cached packs, and the order in which they go.
///
/// The order is that of `quick_cache`: like ARC it tells what was used once from what is used again, so that one long read of many packs
/// does not push out those that are read daily. It begins anew with each start.
#[derive(Debug)]
pub(super) struct Cached {
    packs: BTreeMap<PackId, u64>,
    bytes: u64,
    order: Mutex<Cache<PackId, u64, ByBytes, Hasher>>,
    /// Packs read since the last look: a file read from one pack is one use of it, not a hundred.
    touched: Mutex<BTreeSet<PackId>>,
}

impl Default for Cached {
    fn default() -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(PACKS_EXPECTED)
            .weight_capacity(CAPACITY_LEAST)
            .build()
            .expect("both numbers are given");
        let order = Cache::with_options(
            options,
            ByBytes,
            Hasher::default(),
            DefaultLifecycle::default(),
        );
        Self {
            packs: BTreeMap::new(),
            bytes: 0,
            order: Mutex::new(order),
            touched: Mutex::default(),
        }
    }
}

impl Cached {
    pub(super) fn keep_of(&self, pack: &PackId) -> Keep {
        if self.packs.contains_key(pack) {
            Keep::Cached
        } else {
            Keep::Kept
        }
    }

    /// Bytes of all cached packs.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = &PackId> {
        self.packs.keys()
    }

    pub(super) fn insert(&mut self, pack: PackId, bytes: u64) {
        self.remove(&pack);
        self.packs.insert(pack, bytes);
        self.bytes += bytes;
        let mut order = lock(&self.order);
        // Nothing is pushed out by what comes in: that is decided in `victims` alone.
        let needed = order.weight().saturating_add(bytes);
        if order.capacity() < needed {
            order.set_capacity(needed);
        }
        order.insert(pack, bytes);
    }

    pub(super) fn remove(&mut self, pack: &PackId) {
        if let Some(bytes) = self.packs.remove(pack) {
            self.bytes -= bytes;
            lock(&self.order).remove(pack);
            lock(&self.touched).remove(pack);
        }
    }

    /// Notes that a pack is of use.
    pub(super) fn touch(&self, pack: &PackId) {
        if self.packs.contains_key(pack) {
            lock(&self.touched).insert(*pack);
        }
    }

    /// Takes what was noted into the order.
    pub(super) fn settle(&self) {
        let touched = std::mem::take(&mut *lock(&self.touched));
        let order = lock(&self.order);
        for pack in touched {
            let _ = order.get(&pack);
        }
    }

    /// Which packs to drop for so many bytes, first those that are least of use; as many as there are if that is not enough.
    pub(super) fn victims(&self, bytes: u64) -> Vec<PackId> {
        self.settle();
        let mut order = lock(&self.order);
        let left = order.weight().saturating_sub(bytes);
        order.set_capacity(left.max(1));
        // Which went is read from what is left. Whatever the order lost on its own goes as well.
        let gone = |pack: &&PackId| left == 0 || !order.contains_key(*pack);
        let victims: Vec<PackId> = self.packs.keys().filter(gone).copied().collect();
        // Who is not dropped after all is as good as new.
        for pack in &victims {
            let bytes = self.packs.get(pack).copied().unwrap_or_default();
            let needed = order.weight().saturating_add(bytes);
            if order.capacity() < needed {
                order.set_capacity(needed);
            }
            order.insert(*pack, bytes);
        }
        victims
    }
}

/// Packs that were kept here, and that other devices keep now.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    packs: BTreeSet<PackId>,
    kept_again: Vec<PackId>,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Says which cached packs others keep, as [`Store::let_go`] does of each: a put that finds its blocks there keeps the pack again, and writes nothing.
    pub fn set_given_up(&self, packs: impl IntoIterator<Item = PackId>) {
        let cached = self.cached();
        let packs = packs.into_iter();
        let packs = packs.filter(|pack| cached.keep_of(pack) == Keep::Cached);
        lock(&self.given_up).packs = packs.collect();
    }

    /// Cached packs that others keep.
    pub fn given_up(&self) -> BTreeSet<PackId> {
        lock(&self.given_up).packs.clone()
    }

    /// Packs that were kept again since this was asked last.
    pub fn kept_again(&self) -> Vec<PackId> {
        std::mem::take(&mut lock(&self.given_up).kept_again)
    }

    /// Keeps a pack again that others keep and that holds this block; whether there is one.
    pub(super) fn keep_again(&self, cid: &Cid) -> Result<bool, StoreError> {
        if lock(&self.given_up).packs.is_empty() {
            return Ok(false);
        }
        let places = self.index.locations(cid);
        let places = places.map_err(|source| StoreError::Index { source })?;
        let known = {
            let given_up = lock(&self.given_up);
            let mut packs = places.iter().map(|place| place.pack);
            packs.find(|pack| given_up.packs.contains(pack))
        };
        let Some(pack) = known else { return Ok(false) };
        self.keep(&pack)?;
        Ok(true)
    }

    /// Whether a closed pack may be dropped to make room. One that is not here counts as kept.
    pub fn keep_of(&self, pack: &PackId) -> Keep {
        self.cached().keep_of(pack)
    }

    /// All cached packs.
    pub fn cached_packs(&self) -> Vec<PackId> {
        self.cached().packs().copied().collect()
    }

    /// Makes a cached pack a kept one, for good; returns once that lasts. Call it before a pack is pinned, promised or counted as a copy.
    ///
    /// A kept pack stays as it is.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::Sync`], [`StoreError::Broken`]; then the pack counts as cached.
    pub fn keep(&self, pack: &PackId) -> Result<(), StoreError> {
        let _upkeep = lock(&self.upkeep);
        if lock(&self.writer).broken {
            return Err(StoreError::Broken);
        }
        {
            // Nobody looks up the name while it changes.
            let mut cached = self.cached_mut();
            if cached.keep_of(pack) == Keep::Kept {
                return Ok(());
            }
            let (from, to) = (
                closed_name(pack, Keep::Cached),
                closed_name(pack, Keep::Kept),
            );
            self.disk
                .rename(&from, &to)
                .map_err(|source| StoreError::Write { name: from, source })?;
            cached.remove(pack);
            let mut given_up = lock(&self.given_up);
            if given_up.packs.remove(pack) {
                given_up.kept_again.push(*pack);
            }
        }
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))
    }

    /// Makes a kept pack a cached one, which counts as a copy no more; returns once that lasts. False, and nothing is changed, if work under way relies on it, or it is on its way out, or
    /// no closed pack here.
    ///
    /// A pack that is cached already stays so.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::Sync`], [`StoreError::Broken`]; it may count as either then.
    ///
    /// Spec: `protocol/spec/promises.md`, "Giving up".
    pub fn let_go(&self, pack: &PackId) -> Result<bool, StoreError> {
        let _upkeep = lock(&self.upkeep);
        if lock(&self.writer).broken {
            return Err(StoreError::Broken);
        }
        {
            // Nobody comes to rely on it, or looks up the name, while it changes.
            let mut cached = self.cached_mut();
            if cached.keep_of(pack) == Keep::Cached {
                return Ok(true);
            }
            let (from, to) = (
                closed_name(pack, Keep::Kept),
                closed_name(pack, Keep::Cached),
            );
            let Ok(bytes) = self.disk.len(&from) else {
                return Ok(false);
            };
            {
                let retiring = lock(&self.retiring);
                if retiring.is_marked(pack) || retiring.is_relied_on(pack) {
                    return Ok(false);
                }
            }
            self.disk
                .rename(&from, &to)
                .map_err(|source| StoreError::Write { name: from, source })?;
            cached.insert(*pack, bytes);
            lock(&self.given_up).packs.insert(*pack);
        }
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))?;
        Ok(true)
    }

    /// Drops a cached pack; answers the bytes that are free again.
    ///
    /// # Errors
    /// [`StoreError::Kept`] if it is not a cached pack, [`StoreError::Index`], [`StoreError::Write`].
    ///
    /// Spec: `protocol/spec/store.md`, "Kept and cached".
    pub fn evict(&self, pack: &PackId) -> Result<u64, StoreError> {
        let _upkeep = lock(&self.upkeep);
        let name = closed_name(pack, Keep::Cached);
        if self.keep_of(pack) == Keep::Kept {
            return Err(StoreError::Kept { pack: *pack });
        }
        let write = |source| StoreError::Write {
            name: name.clone(),
            source,
        };
        let bytes = self.disk.len(&name).map_err(write)?;
        let blocks: Vec<Cid> = match self.read_footer(pack) {
            Ok((_, blocks)) => blocks.iter().map(|block| block.cid).collect(),
            // Places of blocks that are not named here are no longer answered either.
            Err(_) => match self.read_whole(&name)? {
                Some(bytes) => pack::scan(&bytes)
                    .blocks
                    .iter()
                    .map(|block| block.cid)
                    .collect(),
                None => Vec::new(),
            },
        };
        // Nobody names a kept pack the same, or looks up this one, meanwhile.
        let mut cached = self.cached_mut();
        if cached.keep_of(pack) == Keep::Kept {
            return Err(StoreError::Kept { pack: *pack });
        }
        // The index first: a start in between takes the pack up again, and nobody is sent to a file that is gone.
        self.index
            .remove_pack(pack, &blocks)
            .map_err(|source| StoreError::Index { source })?;
        self.disk.remove(&name).map_err(write)?;
        cached.remove(pack);
        lock(&self.given_up).packs.remove(pack);
        drop(cached);
        self.less_used(bytes);
        lock(&self.stats).packs_evicted += 1;
        Ok(bytes)
    }
}
