//! How much room there is: the quota, the floor, and what goes when either is reached.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::open_pack::ROOM_CHECK_BYTES;
use super::part::part_id;
use super::{Keep, Store, StoreError, closed_id, open_number};
use crate::disk::{Disk, lock};
use crate::id::Cid;
use crate::index::Index;

/// What stays free on a disk, so that logs, the index and the rest of the system can go on.
pub const FREE_FLOOR: u64 = 1 << 30;
/// On a disk of less than this many times [`FREE_FLOOR`] the floor is that part of it: 64 MiB of a GiB.
const FLOOR_PART: u64 = 16;

/// What the store takes, and what it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in packs; one that lies in two counts twice.
    pub blocks: u64,
    /// Bytes of the files of packs, those set aside included.
    pub bytes: u64,
    /// Of these, in cached packs: dropped when room is needed.
    pub cached: u64,
    /// Most bytes there may be.
    pub quota: Option<u64>,
    /// Most bytes of cached packs.
    pub cache: Option<u64>,
    /// Bytes free on the disk, where it can tell.
    pub free: Option<u64>,
    /// Bytes that must stay free.
    pub floor: u64,
}

/// What of a quota or a floor is held in reserve: without it a store that is full could not copy what is kept of a pack that is mostly garbage, and would
/// stay full.
fn reserve_of(limit: u64) -> u64 {
    if limit == u64::MAX {
        return 0;
    }
    RESERVE_MAX.min(limit / RESERVE_PART)
}

/// A pack: of one that is half garbage, half is copied, and a large block may begin another.
const RESERVE_MAX: u64 = 16 << 20;
/// Of a small limit the reserve is that part.
const RESERVE_PART: u64 = 4;

/// Of how many packs a cache is made at least, and how long each may become whatever that comes to.
const CACHED_PACKS_LEAST: u64 = 4;
const CACHED_PACK_LEAST: u64 = 1 << 20;

/// Room that is wanted for a block.
pub(super) struct Wanted {
    pub(super) bytes: u64,
    pub(super) cid: Cid,
    pub(super) len: u32,
    /// Whether the reserve stays untouched.
    pub(super) reserve: bool,
}

/// Why a block was not written, and how many bytes are lacking for it; none if room is not the matter.
pub(super) struct Lack {
    pub(super) bytes: u64,
    pub(super) error: Box<StoreError>,
}

impl From<StoreError> for Lack {
    fn from(error: StoreError) -> Self {
        Self {
            bytes: 0,
            error: Box::new(error),
        }
    }
}

impl<D: Disk, I: Index> Store<D, I> {
    /// What must stay free.
    fn floor(&self) -> u64 {
        self.config.free_floor.unwrap_or_else(|| {
            let part = self.disk.size().map_or(u64::MAX, |size| size / FLOOR_PART);
            FREE_FLOOR.min(part)
        })
    }

    /// Sets the quota from now on. What is stored stays; cached packs go when the next block needs room.
    pub fn set_quota(&self, quota: Option<u64>) {
        self.quota
            .store(quota.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What the store takes, and what it may.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage {
            blocks: self.held().len() as u64,
            bytes: self.used.load(Ordering::Relaxed),
            cached: self.cached().bytes(),
            quota: Some(self.quota.load(Ordering::Relaxed)).filter(|quota| *quota != u64::MAX),
            cache: self.config.cache,
            free: self.disk.free(),
            floor: self.floor(),
        };
        for (_, info) in self.packs()? {
            usage.blocks += u64::from(info.blocks);
        }
        Ok(usage)
    }

    /// Counts what is on the disk, and footers to come; answers all names, with the lengths of the files that are ours.
    pub(super) fn measure(&self) -> Result<BTreeMap<String, Option<u64>>, StoreError> {
        let list = |source| StoreError::List { source };
        let mut files = BTreeMap::new();
        let mut used = 0;
        for name in self.disk.list().map_err(list)? {
            let ours = closed_id(&name).is_some()
                || open_number(&name).is_some()
                || part_id(&name).is_some()
                || name.ends_with(".bad");
            let len = if ours {
                let len = self.disk.len(&name).map_err(list)?;
                used += len;
                Some(len)
            } else {
                None
            };
            files.insert(name, len);
        }
        let state = lock(&self.writer);
        let open = state.open.values().map(|open| &open.writer);
        let unfinished = open.chain(state.sealed.iter().map(|pack| &pack.writer));
        used += unfinished.map(|writer| writer.footer_bytes()).sum::<u64>();
        drop(state);
        self.used.store(used, Ordering::Relaxed);
        Ok(files)
    }

    pub(super) fn more_used(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn less_used(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Refuses more bytes when the quota would be exceeded or less than the floor would be free.
    pub(super) fn check_room(&self, since_look: &mut u64, what: Wanted) -> Result<(), Lack> {
        let Wanted {
            bytes,
            cid,
            len,
            reserve,
        } = what;
        let (used, quota) = (
            self.used.load(Ordering::Relaxed),
            self.quota.load(Ordering::Relaxed),
        );
        let reserved = |limit| if reserve { reserve_of(limit) } else { 0 };
        let wanted = used.saturating_add(bytes).saturating_add(reserved(quota));
        if wanted > quota {
            return Err(Lack {
                bytes: wanted - quota,
                error: Box::new(StoreError::Quota {
                    cid,
                    len,
                    used,
                    quota,
                }),
            });
        }
        if *since_look < ROOM_CHECK_BYTES {
            return Ok(());
        }
        let floor = self.floor();
        let wanted = floor.saturating_add(bytes).saturating_add(reserved(floor));
        if let Some(free) = self.disk.free().filter(|free| *free < wanted) {
            return Err(Lack {
                bytes: wanted - free,
                error: Box::new(StoreError::Floor {
                    cid,
                    len,
                    free,
                    floor,
                }),
            });
        }
        *since_look = 0;
        Ok(())
    }

    /// Drops cached packs for so many bytes; false if there are none.
    pub(super) fn make_room(&self, bytes: u64) -> Result<bool, StoreError> {
        let mut dropped = self.drop_cached(bytes)?;
        if dropped < bytes {
            // What was fetched last goes as well; it has to be a pack first.
            {
                let mut state = lock(&self.writer);
                for kind in state.kinds_with_blocks() {
                    if kind.1 == Keep::Cached {
                        state.seal(kind);
                    }
                }
            }
            self.finish()?;
            dropped += self.drop_cached(bytes - dropped)?;
        }
        Ok(dropped > 0)
    }

    /// How long a pack becomes before it is closed. A small cache is made of small packs: they go one by one.
    pub(super) fn pack_max(&self, keep: Keep) -> u64 {
        let most = self.config.pack_bytes_max;
        match self.config.cache.filter(|_| keep == Keep::Cached) {
            Some(cache) => most.min(CACHED_PACK_LEAST.max(cache / CACHED_PACKS_LEAST)),
            None => most,
        }
    }

    /// Drops cached packs until they take no more than they may.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Write`].
    ///
    /// Spec: `protocol/spec/store.md`, "Kept and cached".
    pub(super) fn trim_cache(&self) -> Result<(), StoreError> {
        let Some(most) = self.config.cache else {
            return Ok(());
        };
        // Of the rest the open one makes use.
        let closed = most.saturating_sub(self.pack_max(Keep::Cached));
        let surplus = self.cached().bytes().saturating_sub(closed);
        if surplus > 0 {
            self.drop_cached(surplus)?;
        }
        Ok(())
    }

    fn drop_cached(&self, bytes: u64) -> Result<u64, StoreError> {
        let victims = self.cached().victims(bytes);
        let mut dropped = 0;
        for pack in victims {
            if dropped >= bytes {
                break;
            }
            match self.evict(&pack) {
                Ok(bytes) => dropped += bytes,
                // Somebody was faster: it is kept now, or gone.
                Err(_) if self.keep_of(&pack) == Keep::Kept => {}
                Err(error) => return Err(error),
            }
        }
        Ok(dropped)
    }
}
