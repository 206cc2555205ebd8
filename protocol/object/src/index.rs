//! Where blocks are: a map from CID to places in packs, which packs can always rebuild.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use crate::disk::lock;
use crate::id::{Cid, PackId};
use crate::pack::{BlockAt, Class};

/// Where a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Location {
    /// The closed pack that holds it.
    pub pack: PackId,
    /// Where in the file the block begins.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// What is known of a closed pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackInfo {
    /// What its blocks are for.
    pub class: Class,
    /// How many it holds.
    pub blocks: u32,
    /// The length of the file.
    pub bytes: u64,
}

/// Most places kept of one block; a block rarely lies in more than two packs at once.
pub const LOCATIONS_MAX: usize = 8;

/// A map from CIDs to places in closed packs.
///
/// It holds nothing that packs cannot rebuild: it may forget, if it forgets whole packs, and it need not sync.
///
/// Spec: `protocol/spec/store.md`, "Index".
pub trait Index: Send + Sync {
    /// The places of a block, at most [`LOCATIONS_MAX`].
    ///
    /// # Errors
    /// Whatever the index' own storage says.
    fn locations(&self, cid: &Cid) -> io::Result<Vec<Location>>;

    /// Takes up a pack and all its blocks, all or nothing.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn insert_pack(&self, pack: &PackId, info: PackInfo, blocks: &[BlockAt]) -> io::Result<()>;

    /// Every pack that was taken up.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn packs(&self) -> io::Result<Vec<(PackId, PackInfo)>>;

    /// What is known of a pack that was taken up.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn info(&self, pack: &PackId) -> io::Result<Option<PackInfo>>;

    /// Drops one place of a block.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn forget(&self, cid: &Cid, pack: &PackId) -> io::Result<()>;

    /// Drops a pack. `blocks` names those of its blocks that are known; places of others are no longer answered either.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> io::Result<()>;

    /// Shows every block with a place in a pack that is known, in no particular order: what stands for the block here, and its places.
    ///
    /// # Errors
    /// As [`Index::locations`].
    fn each(&self, see: &mut dyn FnMut(&[u8], &[Location])) -> io::Result<()>;

    /// What stands for a block in [`Index::each`].
    fn key_of(&self, cid: &Cid) -> Vec<u8>;
}

impl<I: Index + ?Sized> Index for Arc<I> {
    fn locations(&self, cid: &Cid) -> io::Result<Vec<Location>> {
        (**self).locations(cid)
    }
    fn insert_pack(&self, pack: &PackId, info: PackInfo, blocks: &[BlockAt]) -> io::Result<()> {
        (**self).insert_pack(pack, info, blocks)
    }
    fn packs(&self) -> io::Result<Vec<(PackId, PackInfo)>> {
        (**self).packs()
    }
    fn info(&self, pack: &PackId) -> io::Result<Option<PackInfo>> {
        (**self).info(pack)
    }
    fn forget(&self, cid: &Cid, pack: &PackId) -> io::Result<()> {
        (**self).forget(cid, pack)
    }
    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> io::Result<()> {
        (**self).remove_pack(pack, blocks)
    }
    fn each(&self, see: &mut dyn FnMut(&[u8], &[Location])) -> io::Result<()> {
        (**self).each(see)
    }
    fn key_of(&self, cid: &Cid) -> Vec<u8> {
        (**self).key_of(cid)
    }
}

/// An index in memory: for the simulator and for tests. It grows with the data.
#[derive(Debug, Default)]
pub struct MemIndex {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    blocks: BTreeMap<Cid, Vec<Location>>,
    packs: BTreeMap<PackId, PackInfo>,
}

impl MemIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Index for MemIndex {
    fn locations(&self, cid: &Cid) -> io::Result<Vec<Location>> {
        let inner = lock(&self.inner);
        let all = inner.blocks.get(cid).into_iter().flatten();
        Ok(all
            .filter(|location| inner.packs.contains_key(&location.pack))
            .copied()
            .collect())
    }

    fn insert_pack(&self, pack: &PackId, info: PackInfo, blocks: &[BlockAt]) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        for block in blocks {
            let locations = inner.blocks.entry(block.cid).or_default();
            add_location(
                locations,
                Location {
                    pack: *pack,
                    offset: block.offset,
                    len: block.len,
                },
            );
        }
        inner.packs.insert(*pack, info);
        Ok(())
    }

    fn packs(&self) -> io::Result<Vec<(PackId, PackInfo)>> {
        Ok(lock(&self.inner)
            .packs
            .iter()
            .map(|(pack, info)| (*pack, *info))
            .collect())
    }

    fn info(&self, pack: &PackId) -> io::Result<Option<PackInfo>> {
        Ok(lock(&self.inner).packs.get(pack).copied())
    }

    fn forget(&self, cid: &Cid, pack: &PackId) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        if let Some(locations) = inner.blocks.get_mut(cid) {
            locations.retain(|location| location.pack != *pack);
            if locations.is_empty() {
                inner.blocks.remove(cid);
            }
        }
        Ok(())
    }

    fn remove_pack(&self, pack: &PackId, blocks: &[Cid]) -> io::Result<()> {
        for cid in blocks {
            self.forget(cid, pack)?;
        }
        lock(&self.inner).packs.remove(pack);
        Ok(())
    }

    fn each(&self, see: &mut dyn FnMut(&[u8], &[Location])) -> io::Result<()> {
        let inner = lock(&self.inner);
        for (cid, locations) in &inner.blocks {
            let known = locations.iter();
            let known: Vec<Location> = known
                .filter(|location| inner.packs.contains_key(&location.pack))
                .copied()
                .collect();
            if !known.is_empty() {
                see(&cid.to_bytes(), &known);
            }
        }
        Ok(())
    }

    fn key_of(&self, cid: &Cid) -> Vec<u8> {
        cid.to_bytes()
    }
}

/// Puts a place into a block's list: the newest first, one per pack, the oldest dropped beyond [`LOCATIONS_MAX`].
pub fn add_location(locations: &mut Vec<Location>, new: Location) {
    locations.retain(|location| location.pack != new.pack);
    locations.insert(0, new);
    locations.truncate(LOCATIONS_MAX);
}
