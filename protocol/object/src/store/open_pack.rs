//! Packs that are not in the index yet: where their blocks are, and how blocks come into them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use super::room::{Lack, Wanted};
use super::{Keep, Lease, Store, StoreError, Verified, open_name};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::Index;
use crate::pack::{
    BLOCK_BYTES_MAX, Class, HEADER_BYTES, Header, PACK_BLOCKS_MAX, PackWriter, TRAILER_BYTES,
};
use crate::time::Time;

/// Full packs that wait to be finished before a put finishes them itself; they are synced together.
pub(super) const SEALED_MAX: usize = 8;
/// Full packs that could not be finished before puts are refused: their blocks are listed in memory.
pub(super) const UNFINISHED_MAX: usize = 64;
/// How a block is written.
pub(super) struct Writing<'a> {
    pub(super) keep: Keep,
    /// Who is to rely on it.
    pub(super) lease: Option<&'a Lease>,
    /// How many packs were closed when it was looked for and not found.
    pub(super) closed: Option<u64>,
    pub(super) room: Room,
}

/// What may be done for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Cached packs go. Not while the caller judges packs.
    Evicting,
    /// Nothing.
    Tight,
    /// Cached packs go, and what is held in reserve may be taken: more will be free again.
    Spare,
    /// Only the latter.
    SpareNotEvicting,
}

impl Room {
    fn evicts(self) -> bool {
        matches!(self, Self::Evicting | Self::Spare)
    }

    /// Whether the reserve stays untouched.
    fn reserve(self) -> bool {
        matches!(self, Self::Evicting | Self::Tight)
    }
}

/// How often a put lets cached packs go before it gives up: what it frees, others may take.
const EVICTIONS_MAX: usize = 4;
/// Bytes put between two looks at the free space.
pub(super) const ROOM_CHECK_BYTES: u64 = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) open: BTreeMap<(Class, Keep), OpenPack>,
    /// Packs that take no more blocks and wait for footer, name and index.
    pub(super) sealed: Vec<SealedPack>,
    pub(super) next_number: u64,
    /// Blocks written so far.
    pub(super) written: u64,
    /// A file was made whose name does not last yet.
    pub(super) names_new: bool,
    pub(super) since_room_check: u64,
    pub(super) broken: bool,
}

/// The file of a pack that is not in the index.
#[derive(Debug)]
pub(super) struct PackFile {
    /// Held for reading during every read, so that no rename comes between.
    pub(super) name: RwLock<String>,
    /// A block of it was found damaged: its name would be a lie. The next start sorts it out.
    pub(super) spoilt: AtomicBool,
    pub(super) keep: Keep,
}

#[derive(Debug)]
pub(super) struct OpenPack {
    pub(super) file: Arc<PackFile>,
    pub(super) writer: PackWriter,
    pub(super) synced: u64,
    /// Length and time at which a tick last saw it grown.
    pub(super) grown: Option<(u64, Time)>,
}

#[derive(Debug)]
pub(super) struct SealedPack {
    pub(super) file: Arc<PackFile>,
    pub(super) writer: PackWriter,
    pub(super) state: Finish,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Finish {
    /// Footer to be written.
    Records,
    /// Footer written.
    Whole(PackId),
    /// Renamed; only the index is missing.
    Named(PackId),
}

#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) file: Arc<PackFile>,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Gives up a damaged block of a pack that is not finished, and the pack with it: no further block is added to it.
    pub(super) fn spoil(&self, cid: &Cid, bad: &Held) {
        lock(&self.stats).corrupt += 1;
        bad.file.spoilt.store(true, Ordering::Relaxed);
        {
            let mut state = lock(&self.writer);
            let kind = state
                .open
                .iter()
                .find(|(_, open)| Arc::ptr_eq(&open.file, &bad.file))
                .map(|(kind, _)| *kind);
            if let Some(kind) = kind {
                state.seal(kind);
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

    /// Stores a block; true if it was not here, or only in cached packs. It lasts once [`Store::flush`] has returned.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`], [`StoreError::TooLong`], [`StoreError::Full`], [`StoreError::Floor`], [`StoreError::Quota`],
    /// [`StoreError::Write`], [`StoreError::Broken`], [`StoreError::Index`]; the block is then not stored.
    pub fn put(&self, class: Class, cid: &Cid, block: &[u8]) -> Result<bool, StoreError> {
        let block = Verified::check(cid, block).ok_or(StoreError::Mismatch { cid: *cid })?;
        self.put_verified(class, block)
    }

    /// As [`Store::put`], for a block whose CID needs no check.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_verified(&self, class: Class, block: Verified<'_>) -> Result<bool, StoreError> {
        self.put_as(class, Keep::Kept, block, None)
    }

    /// As [`Store::put_verified`], and the packs that hold the block are not retired as long as the lease is held.
    ///
    /// # Errors
    /// As [`Store::put`].
    ///
    /// Spec: `protocol/spec/garbage.md`, "Leases".
    pub fn put_leased(
        &self,
        class: Class,
        block: Verified<'_>,
        lease: &Lease,
    ) -> Result<bool, StoreError> {
        self.put_as(class, Keep::Kept, block, Some(lease))
    }

    /// Stores a block that was fetched for a reader only, in a pack that may be dropped to make room; true if it was not here.
    ///
    /// # Errors
    /// As [`Store::put`].
    ///
    /// Spec: `protocol/spec/store.md`, "Kept and cached".
    pub fn put_cached(&self, class: Class, block: Verified<'_>) -> Result<bool, StoreError> {
        self.put_as(class, Keep::Cached, block, None)
    }

    pub(super) fn put_as(
        &self,
        class: Class,
        keep: Keep,
        block: Verified<'_>,
        lease: Option<&Lease>,
    ) -> Result<bool, StoreError> {
        if block.bytes.len() > BLOCK_BYTES_MAX {
            return Err(StoreError::TooLong {
                cid: block.cid,
                len: block.bytes.len(),
            });
        }
        let closed = lock(&self.stats).packs_closed;
        let how = Writing {
            keep,
            lease,
            closed: Some(closed),
            room: Room::Evicting,
        };
        let is_here = || {
            let is_here = self.has_for(&block.cid, keep, lease)?;
            let again = !is_here && keep == Keep::Kept && self.keep_again(&block.cid)?;
            Ok::<_, StoreError>(is_here || again && self.has_for(&block.cid, keep, lease)?)
        };
        if is_here()? || !self.write(class, block, &how)? {
            lock(&self.stats).blocks_known += 1;
            return Ok(false);
        }
        if keep == Keep::Cached {
            self.trim_cache()?;
        }
        Ok(true)
    }

    /// Whether a block is where a put of that kind may rely on it.
    ///
    /// A lease then knows in which pack.
    fn has_for(&self, cid: &Cid, keep: Keep, lease: Option<&Lease>) -> Result<bool, StoreError> {
        if self.holds_for(cid, keep) {
            return Ok(true);
        }
        // First this, then the index: whoever takes a pack away holds it over both, and a pack that is unknown here would count as kept.
        let cached = self.cached();
        let places = self
            .index
            .locations(cid)
            .map_err(|source| StoreError::Index { source })?;
        if keep == Keep::Cached {
            return Ok(!places.is_empty());
        }
        let mut kept = places
            .iter()
            .filter(|place| cached.keep_of(&place.pack) == Keep::Kept);
        Ok(lock(&self.retiring).rely(kept.by_ref().map(|place| place.pack), lease))
    }

    /// As [`Store::has_for`], among the packs that the index does not know.
    pub(super) fn holds_for(&self, cid: &Cid, keep: Keep) -> bool {
        let held = self.held();
        let held = held.get(cid);
        held.is_some_and(|held| keep == Keep::Cached || held.file.keep == Keep::Kept)
    }

    /// Writes a block unless an unfinished pack holds it, or one that was closed lately.
    pub(super) fn write(
        &self,
        class: Class,
        block: Verified<'_>,
        how: &Writing<'_>,
    ) -> Result<bool, StoreError> {
        let mut tries = if how.room.evicts() { EVICTIONS_MAX } else { 0 };
        loop {
            match self.try_write(class, block, how) {
                Ok(written) => return Ok(written),
                Err(lack) if tries > 0 && lack.bytes > 0 => {
                    tries -= 1;
                    if !self.make_room(lack.bytes)? {
                        return Err(*lack.error);
                    }
                }
                Err(lack) => return Err(*lack.error),
            }
        }
    }

    /// As [`Store::write`]; where room is lacking, says how much.
    fn try_write(
        &self,
        class: Class,
        block: Verified<'_>,
        how: &Writing<'_>,
    ) -> Result<bool, Lack> {
        let keep = how.keep;
        let cid = block.cid;
        let kind = (class, keep);
        let head = PackWriter::record_head(&cid, block.bytes.len());
        let mut state = lock(&self.writer);
        if state.broken {
            return Err(StoreError::Broken.into());
        }
        if self.holds_for(&cid, keep) {
            return Ok(false);
        }
        // It may have come and gone into the index since the caller looked there.
        let now = lock(&self.stats).packs_closed;
        if how.closed.is_some_and(|then| then != now) && self.has_for(&cid, keep, how.lease)? {
            return Ok(false);
        }
        // Of a record, and of its item in the footer, which is as long as its head.
        let record = (2 * head.bytes().len() + block.bytes.len()) as u64;
        let frame = (HEADER_BYTES + TRAILER_BYTES) as u64;
        self.check_room(
            &mut state.since_room_check,
            Wanted {
                bytes: record + frame,
                cid,
                len: block.len(),
                reserve: how.room.reserve(),
            },
        )?;
        let full = state.open.get(&kind).is_some_and(|open| {
            let blocks = open.writer.blocks().len();
            blocks >= PACK_BLOCKS_MAX
                || (blocks > 0 && open.writer.len_with(&head) > self.pack_max(keep))
        });
        let mut filled = None;
        if full {
            if state.sealed.len() >= UNFINISHED_MAX {
                drop(state);
                let trouble = lock(&self.trouble).take();
                return Err(trouble.unwrap_or(StoreError::Broken).into());
            }
            let open = state.open.get(&kind);
            filled = open.map(|open| (Arc::clone(&open.file), open.synced));
            state.seal(kind);
        }
        if !state.open.contains_key(&kind) {
            let open = self.begin(&mut state, kind, &block)?;
            self.more_used(frame);
            state.open.insert(kind, open);
        }
        let open = state.open.get_mut(&kind).expect("just made");
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
                }
                .into());
            }
            Err(source) => {
                if self.disk.truncate(&name, end).is_err() {
                    // The file may have a torn end, which is cut when the pack is finished.
                    state.seal(kind);
                }
                return Err(write_error(&block, name, source));
            }
        }
        self.more_used(record);
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
        if let Some((file, synced)) = filled {
            let name = file
                .name
                .read()
                .expect("no thread panics while it holds this lock");
            self.disk.begin_sync(&name, synced);
        }
        if crowded {
            // The block itself is written; what fails here will fail again, and be told, at the flush.
            let _ = self.commit_and_finish();
        }
        Ok(true)
    }

    /// Makes the file of a new pack.
    fn begin(
        &self,
        state: &mut Writer,
        (class, keep): (Class, Keep),
        block: &Verified<'_>,
    ) -> Result<OpenPack, Lack> {
        let name = open_name(state.next_number, keep);
        state.next_number += 1;
        let header = Header::new(class, self.config.space);
        if let Err(source) = self.disk.create(&name) {
            return Err(write_error(block, name, source));
        }
        if let Err(source) = self.disk.append(&name, &header.encode()) {
            // Nothing is in it; if it cannot be removed now, the next start does.
            let _ = self.disk.remove(&name);
            return Err(write_error(block, name, source));
        }
        state.names_new = true;
        let file = Arc::new(PackFile {
            name: RwLock::new(name),
            spoilt: AtomicBool::new(false),
            keep,
        });
        Ok(OpenPack {
            file,
            writer: PackWriter::new(header),
            synced: 0,
            grown: None,
        })
    }
}

impl Writer {
    /// Lets the open pack of a class take no more blocks.
    ///
    /// One without blocks is dropped: there are no empty packs, and the next start removes the file.
    pub(super) fn seal(&mut self, kind: (Class, Keep)) {
        let Some(open) = self.open.remove(&kind) else {
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

    /// Every kind of pack that is open and holds a block.
    pub(super) fn kinds_with_blocks(&self) -> Vec<(Class, Keep)> {
        let open = self.open.iter();
        open.filter(|(_, open)| !open.writer.blocks().is_empty())
            .map(|(kind, _)| *kind)
            .collect()
    }
}

fn write_error(block: &Verified<'_>, name: String, source: io::Error) -> Lack {
    if source.kind() == io::ErrorKind::StorageFull {
        Lack {
            bytes: block.bytes.len() as u64 + 1,
            error: Box::new(StoreError::Full {
                cid: block.cid,
                len: block.len(),
                source,
            }),
        }
    } else {
        StoreError::Write { name, source }.into()
    }
}
