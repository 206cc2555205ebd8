//! Packs on their way out: who relies on which, what is kept of them, and when their files go.
//!
//! Spec: `protocol/spec/garbage.md`, "Retiring".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::open_pack::{Room, Writing};
use super::{Keep, Store, StoreError, Verified, closed_name};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::Index;
use crate::pack::{self, BlockAt};

/// Packs on their way out, and what work under way relies on.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    /// No put relies on these any more.
    marked: BTreeSet<PackId>,
    leases: BTreeMap<u64, Relied>,
    /// Leases that ended while a run was under way: it may have begun before what they were for counted.
    lingering: Vec<Relied>,
    runs: u32,
    next_lease: u64,
    /// How many packs were closed so far.
    closed: u64,
    /// Which one each was, as long as a lease may be older; [`CLOSING`] for those that are being closed.
    closed_at: BTreeMap<PackId, u64>,
}

/// Younger than every lease.
const CLOSING: u64 = u64::MAX;

/// The packs that somebody relies on.
#[derive(Debug, Default)]
struct Relied {
    /// How many packs were closed when it began: whatever was closed later may hold its blocks.
    since: u64,
    found: BTreeSet<PackId>,
    /// Every pack that is here.
    all: bool,
}

/// Keeps the packs that work under way relies on from being retired, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    id: u64,
    shared: Arc<Mutex<Retiring>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.shared).end(self.id);
    }
}

/// As long as it lives, leases that end still count.
#[derive(Debug)]
pub struct Run {
    shared: Arc<Mutex<Retiring>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.runs -= 1;
        if shared.runs == 0 {
            shared.lingering.clear();
        }
        shared.forget_old();
    }
}

impl Retiring {
    fn begin(&mut self, all: bool) -> u64 {
        self.next_lease += 1;
        let relied = Relied {
            since: self.closed,
            all,
            ..Relied::default()
        };
        self.leases.insert(self.next_lease, relied);
        self.next_lease
    }

    fn end(&mut self, id: u64) {
        if let Some(relied) = self.leases.remove(&id)
            && self.runs > 0
        {
            self.lingering.push(relied);
        }
        self.forget_old();
    }

    /// Whether one of these packs may be relied upon; a lease is then told of it.
    pub(super) fn rely(
        &mut self,
        mut packs: impl Iterator<Item = PackId>,
        lease: Option<&Lease>,
    ) -> bool {
        let Some(pack) = packs.find(|pack| !self.marked.contains(pack)) else {
            return false;
        };
        if let Some(relied) = lease.and_then(|lease| self.leases.get_mut(&lease.id)) {
            relied.found.insert(pack);
        }
        true
    }

    pub(super) fn closing(&mut self, pack: PackId) {
        self.closed_at.insert(pack, CLOSING);
    }

    pub(super) fn closed(&mut self, pack: PackId) {
        self.closed += 1;
        self.closed_at.insert(pack, self.closed);
        self.forget_old();
    }

    pub(super) fn unmark(&mut self, pack: &PackId) {
        self.marked.remove(pack);
    }

    pub(super) fn is_marked(&self, pack: &PackId) -> bool {
        self.marked.contains(pack)
    }

    pub(super) fn is_relied_on(&self, pack: &PackId) -> bool {
        let at = self.closed_at.get(pack).copied().unwrap_or_default();
        let mut relied = self.leases.values().chain(&self.lingering);
        at == CLOSING
            || relied.any(|relied| relied.all || at > relied.since || relied.found.contains(pack))
    }

    fn forget_old(&mut self) {
        let relied = self.leases.values().chain(&self.lingering);
        let oldest = relied.map(|relied| relied.since).min();
        let oldest = oldest.unwrap_or(CLOSING - 1);
        self.closed_at.retain(|_, at| *at > oldest);
    }
}

/// What came of copying out what is kept of a pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyOut {
    /// Blocks that are kept; each lies in another live pack, or in one that is still open.
    pub kept: Vec<Cid>,
    /// Digests of blocks that are not.
    pub left_out: Vec<[u8; 32]>,
    /// Bytes of blocks that had to be copied.
    pub copied_bytes: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// A lease for work that will put blocks and name them later.
    pub fn lease(&self) -> Lease {
        self.new_lease(false)
    }

    /// A lease on everything that is here, for work that gives a name to blocks that lie here already.
    pub fn lease_all(&self) -> Lease {
        self.new_lease(true)
    }

    fn new_lease(&self, all: bool) -> Lease {
        Lease {
            id: lock(&self.retiring).begin(all),
            shared: self.retiring.clone(),
        }
    }

    /// Says that a run begins: what is kept is to be asked for after this.
    pub fn begin_run(&self) -> Run {
        lock(&self.retiring).runs += 1;
        Run {
            shared: self.retiring.clone(),
        }
    }

    /// From here on no put relies on that pack; false, and nothing is changed, if somebody does, or it is no closed and kept pack here.
    ///
    /// The mark is only memory.
    pub fn mark_retired(&self, pack: &PackId) -> bool {
        let here = self.disk.len(&closed_name(pack, Keep::Kept)).is_ok();
        let mut retiring = lock(&self.retiring);
        let free = here && !retiring.is_relied_on(pack);
        if free {
            retiring.marked.insert(*pack);
        }
        free
    }

    /// Takes the mark back.
    pub fn unmark_retired(&self, pack: &PackId) {
        lock(&self.retiring).unmark(pack);
    }

    /// Whether a pack is on its way out.
    pub fn is_retired(&self, pack: &PackId) -> bool {
        lock(&self.retiring).is_marked(pack)
    }

    /// Whether work under way relies on a pack.
    pub fn is_relied_on(&self, pack: &PackId) -> bool {
        lock(&self.retiring).is_relied_on(pack)
    }

    /// Whether a block lies in a pack that is kept and not on its way out, or will be.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn lies_live(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.holds_for(cid, Keep::Kept) || !self.live_packs(cid)?.is_empty())
    }

    /// The same, of other packs than that.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn lies_live_besides(&self, cid: &Cid, pack: &PackId) -> Result<bool, StoreError> {
        let live = self.live_packs(cid)?;
        Ok(self.holds_for(cid, Keep::Kept) || live.iter().any(|other| other != pack))
    }

    /// Reads a block from a closed pack that is kept and not on its way out, and that it may be in; and says from which.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn read_live(
        &self,
        cid: &Cid,
        may_be_in: &dyn Fn(&PackId) -> bool,
    ) -> Result<Option<(PackId, Bytes)>, StoreError> {
        let places = self.index.locations(cid);
        let places = places.map_err(|source| StoreError::Index { source })?;
        let live = self.live_packs(cid)?;
        let mut live = places
            .iter()
            .filter(|place| live.contains(&place.pack) && may_be_in(&place.pack));
        Ok(live.find_map(|place| Some((place.pack, self.read_at(cid, place)?))))
    }

    /// The closed packs, kept and not on their way out, that a block lies in.
    fn live_packs(&self, cid: &Cid) -> Result<Vec<PackId>, StoreError> {
        // In this order, as in `has_for`.
        let cached = self.cached();
        let places = self.index.locations(cid);
        let places = places.map_err(|source| StoreError::Index { source })?;
        let retiring = lock(&self.retiring);
        let mut packs: Vec<PackId> = places.into_iter().map(|place| place.pack).collect();
        packs.retain(|pack| cached.keep_of(pack) == Keep::Kept && !retiring.is_marked(pack));
        Ok(packs)
    }

    /// Copies what is kept of a marked pack into open packs, so far as it lies in no other live pack. Of the rest, at most `left_out_max` blocks are left
    /// out; what is beyond is copied too. Public blocks are left out besides, and not named. With `spare`, what is held in reserve of quota and floor may be taken: the pack has to go soon, then.
    ///
    /// The copies last once [`Store::flush`] has returned.
    ///
    /// # Errors
    /// [`StoreError::Pack`] if the pack is damaged, and as [`Store::put`]; then there may be copies too many.
    pub fn copy_out(
        &self,
        pack: &PackId,
        left_out_max: usize,
        spare: bool,
        is_kept: &dyn Fn(&Cid) -> bool,
    ) -> Result<CopyOut, StoreError> {
        let room = if spare { Room::Spare } else { Room::Evicting };
        let (bytes, found) = self.read_sound(pack)?;
        let mut out = CopyOut {
            bytes: bytes.len() as u64,
            ..CopyOut::default()
        };
        for block in &found.blocks {
            if !is_kept(&block.cid) {
                match block.cid.digest() {
                    Some(digest) if out.left_out.len() < left_out_max => {
                        out.left_out.push(digest);
                        continue;
                    }
                    Some(_) => {}
                    // What is public here no other device relies on.
                    None => continue,
                }
            }
            out.kept.push(block.cid);
            if !self.lies_live(&block.cid)? {
                self.copy(&found, &bytes, block, room)?;
                out.copied_bytes += u64::from(block.len);
            }
        }
        out.left_out.sort_unstable();
        Ok(out)
    }

    fn read_sound(&self, pack: &PackId) -> Result<(Vec<u8>, pack::Pack), StoreError> {
        // So that nobody gives it another name while it is read.
        let _upkeep = lock(&self.upkeep);
        self.judge_pack(pack)
    }

    /// The packs that are marked.
    pub fn retired_packs(&self) -> Vec<PackId> {
        lock(&self.retiring).marked.iter().copied().collect()
    }

    fn copy(
        &self,
        found: &pack::Pack,
        bytes: &[u8],
        block: &BlockAt,
        room: Room,
    ) -> Result<(), StoreError> {
        let verified = Verified {
            cid: block.cid,
            bytes: bytes.get(block.range()).unwrap_or_default(),
        };
        let how = Writing {
            keep: Keep::Kept,
            lease: None,
            closed: None,
            room,
        };
        self.write(found.header.class, verified, &how).map(|_| ())
    }

    /// Closed packs that these blocks lie in, live ones, one for each block; `None` if one lies in none.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn replacements(&self, blocks: &[Cid]) -> Result<Option<BTreeSet<PackId>>, StoreError> {
        let mut packs = BTreeSet::new();
        for cid in blocks {
            let live = self.live_packs(cid)?;
            // One that is among them already, if there is.
            let known = live.iter().any(|pack| packs.contains(pack));
            match live.first() {
                None => return Ok(None),
                Some(pack) if !known => drop(packs.insert(*pack)),
                Some(_) => {}
            }
        }
        Ok(Some(packs))
    }

    /// Removes a marked pack for good. Every block that may not go is read from a live pack first, or copied into one and flushed.
    ///
    /// Answers the bytes that are free again; nothing, and the pack stays, if somebody relies on it or the mark was taken back.
    ///
    /// # Errors
    /// [`StoreError::Pack`] if the pack is damaged and something in it may be needed, and as [`Store::put`]; then the pack stays.
    pub fn drop_retired(
        &self,
        pack: &PackId,
        may_go: &dyn Fn(&Cid) -> bool,
    ) -> Result<Option<u64>, StoreError> {
        // Nobody sets another pack aside while this one's blocks are sought there.
        let _upkeep = lock(&self.upkeep);
        if !self.is_retired(pack) || self.is_relied_on(pack) {
            return Ok(None);
        }
        let (bytes, found) = self.judge_pack(pack)?;
        let mut copied = false;
        for block in &found.blocks {
            if !may_go(&block.cid) && !self.reads_live(&block.cid)? {
                self.copy(&found, &bytes, block, Room::SpareNotEvicting)?;
                copied = true;
            }
        }
        if copied {
            self.flush()?;
        }
        let blocks: Vec<Cid> = found.blocks.iter().map(|block| block.cid).collect();
        let name = closed_name(pack, Keep::Kept);
        // Nobody gives a pack this name, or looks it up, meanwhile.
        let cached = self.cached_mut();
        {
            let retiring = lock(&self.retiring);
            if !retiring.is_marked(pack) || retiring.is_relied_on(pack) {
                return Ok(None);
            }
        }
        // The index first: a start in between takes the pack up again, and nobody is sent to a file that is gone.
        self.index
            .remove_pack(pack, &blocks)
            .map_err(|source| StoreError::Index { source })?;
        self.disk
            .remove(&name)
            .map_err(|source| StoreError::Write { name, source })?;
        lock(&self.retiring).unmark(pack);
        drop(cached);
        let freed = bytes.len() as u64;
        self.less_used(freed);
        let mut stats = lock(&self.stats);
        stats.packs_dropped += 1;
        stats.bytes_dropped += freed;
        Ok(Some(freed))
    }

    /// Whether a block can be read from a pack that is kept and not on its way out: closed, or still open.
    fn reads_live(&self, cid: &Cid) -> Result<bool, StoreError> {
        if self.holds_for(cid, Keep::Kept) {
            // It is on this disk already, but may not last yet.
            self.flush()?;
            if self.get(cid)?.is_some() {
                return self.lies_live(cid);
            }
        }
        let places = self.index.locations(cid);
        let places = places.map_err(|source| StoreError::Index { source })?;
        let live = self.live_packs(cid)?;
        let mut live = places.iter().filter(|place| live.contains(&place.pack));
        Ok(live.any(|place| self.reads(cid, place)))
    }
}

#[cfg(test)]
mod tests;
