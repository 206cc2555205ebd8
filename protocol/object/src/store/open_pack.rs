//! Packs that are not in the index yet: where their blocks are, and how blocks come into them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use super::{Store, StoreError, Verified, open_name};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::Index;
use crate::pack::{BLOCK_BYTES_MAX, Class, Header, PACK_BLOCKS_MAX, PackWriter};
use crate::time::Time;

/// Full packs that wait to be finished before a put finishes them itself; they are synced together.
pub(super) const SEALED_MAX: usize = 8;
/// Full packs that could not be finished before puts are refused: their blocks are listed in memory.
pub(super) const UNFINISHED_MAX: usize = 64;
/// Bytes put between two looks at the free space.
pub(super) const ROOM_CHECK_BYTES: u64 = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) open: BTreeMap<Class, OpenPack>,
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
    pub(super) fn write(
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
}

impl Writer {
    /// Lets the open pack of a class take no more blocks.
    ///
    /// One without blocks is dropped: there are no empty packs, and the next start removes the file.
    pub(super) fn seal(&mut self, class: Class) {
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
    pub(super) fn has_blocks(&self, class: Class) -> bool {
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
