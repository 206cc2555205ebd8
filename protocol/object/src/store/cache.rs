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

impl<D: Disk, I: Index> Store<D, I> {
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
        }
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))
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
        drop(cached);
        self.less_used(bytes);
        lock(&self.stats).packs_evicted += 1;
        Ok(bytes)
    }
}
