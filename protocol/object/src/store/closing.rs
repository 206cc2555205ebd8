//! Making what was put last, and giving full packs their footers and names.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::open_pack::{Finish, PackFile, SealedPack, Writer};
use super::{Born, Keep, PACK_IDLE, Store, StoreError, closed_name};
use crate::disk::{Disk, lock};
use crate::id::PackId;
use crate::index::{Index, PackInfo};
use crate::pack::Class;
use crate::time::Time;

/// What one commit syncs.
struct Batch {
    written: u64,
    open: Vec<((Class, Keep), Arc<PackFile>, u64)>,
    /// Full packs whose records do not last yet.
    sealed: Vec<SealedPack>,
    names_new: bool,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Returns once every block put before would outlast a power cut. Callers on many threads share one sync.
    ///
    /// # Errors
    /// [`StoreError::Sync`], [`StoreError::Broken`]: then nothing is known of the blocks put since the last flush.
    pub fn flush(&self) -> Result<(), StoreError> {
        let wanted = lock(&self.writer).written;
        self.group.reach(wanted, || self.commit())?;
        // Names and index of full packs are nobody's to wait for: one caller sees to them, while the others commit.
        match self.finishing.try_lock() {
            Ok(mut turn) => self.finish_whole(&mut turn),
            Err(_) => Ok(()),
        }
    }

    /// Closes all open packs, and returns once they last and the index knows them.
    ///
    /// # Errors
    /// As [`Store::flush`]; also [`StoreError::Write`] and [`StoreError::Index`] if a pack could not be finished: its blocks last all the same.
    pub fn close_packs(&self) -> Result<(), StoreError> {
        {
            let mut state = lock(&self.writer);
            for kind in state.kinds_with_blocks() {
                state.seal(kind);
            }
        }
        self.finish()
    }

    /// Closes packs that got no block for [`PACK_IDLE`] and finishes full ones; call it every few seconds.
    ///
    /// # Errors
    /// As [`Store::close_packs`].
    pub fn tick(&self, now: Time) -> Result<(), StoreError> {
        self.cached().settle();
        let waiting = {
            let mut state = lock(&self.writer);
            for kind in state.kinds_with_blocks() {
                let Some(open) = state.open.get_mut(&kind) else {
                    continue;
                };
                let len = open.writer.len_bytes();
                match open.grown {
                    Some((seen, since)) if seen == len => {
                        if now.since(since) >= PACK_IDLE {
                            state.seal(kind);
                        }
                    }
                    _ => open.grown = Some((len, now)),
                }
            }
            !state.sealed.is_empty()
        };
        if waiting {
            self.finish()?;
        }
        self.trim_cache()
    }

    pub(super) fn finish(&self) -> Result<(), StoreError> {
        lock(&self.trouble).take();
        self.commit_and_finish()?;
        lock(&self.trouble).take().map_or(Ok(()), Err)
    }

    /// Commits, and finishes every full pack that can be.
    pub(super) fn commit_and_finish(&self) -> Result<(), StoreError> {
        self.group.alone(|| self.commit())?;
        self.finish_whole(&mut lock(&self.finishing))
    }

    /// Syncs all that was written so far, footers of full packs included. One thread at a time.
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
                .map(|(kind, open)| (*kind, Arc::clone(&open.file), open.writer.len_bytes()))
                .collect();
            Batch {
                written: state.written,
                open,
                sealed: state.take_sealed(|pack| matches!(pack.state, Finish::Records)),
                names_new: std::mem::take(&mut state.names_new),
            }
        };
        lock(&self.stats).commits += 1;
        let result = self.sync_batch(&mut batch);
        let mut state = lock(&self.writer);
        state.put_back(batch.sealed, result.is_err());
        result?;
        for (kind, file, len) in batch.open {
            if let Some(open) = state
                .open
                .get_mut(&kind)
                .filter(|open| Arc::ptr_eq(&open.file, &file))
            {
                open.synced = len;
            }
        }
        Ok(batch.written)
    }

    /// Gives packs that last with their footers their names, and tells the index of them. One thread at a time.
    fn finish_whole(&self, _turn: &mut MutexGuard<'_, ()>) -> Result<(), StoreError> {
        let mut whole = {
            let mut state = lock(&self.writer);
            if state.broken {
                return Err(StoreError::Broken);
            }
            state.take_sealed(|pack| !matches!(pack.state, Finish::Records))
        };
        if whole.is_empty() {
            return Ok(());
        }
        let result = self.finish_packs(&mut whole);
        lock(&self.writer).put_back(whole, result.is_err());
        result
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

    /// Failing here costs no block; what was finished is no longer among the packs afterwards.
    fn finish_packs(&self, whole: &mut Vec<SealedPack>) -> Result<(), StoreError> {
        let mut renamed = false;
        for pack in whole.iter_mut() {
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
            let closed = closed_name(&id, pack.file.keep);
            match self.name(&name, &id, pack.file.keep) {
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
        for pack in std::mem::take(whole) {
            let Finish::Named(id) = pack.state else {
                whole.push(pack);
                continue;
            };
            if let Err(source) = self.enter(&id, &pack) {
                *lock(&self.trouble) = Some(StoreError::Index { source });
                whole.push(pack);
            }
        }
        Ok(())
    }

    /// Gives a whole pack its name. No pack is both kept and cached: what is kept already, or becomes it now, is not cached.
    pub(super) fn name(&self, from: &str, id: &PackId, keep: Keep) -> io::Result<()> {
        let kept = closed_name(id, Keep::Kept);
        let mut cached = self.cached_mut();
        match keep {
            // The same bytes as in a kept pack, which may be damaged: these are sound. `enter` finds the kept one.
            Keep::Cached if self.disk.len(&kept).is_ok() => {
                let replaced = self.disk.len(&kept)?;
                self.disk.rename(from, &kept)?;
                self.less_used(replaced);
                Ok(())
            }
            Keep::Cached => {
                let bytes = self.disk.len(from)?;
                let name = closed_name(id, keep);
                let replaced = self.disk.len(&name).unwrap_or_default();
                self.disk.rename(from, &name)?;
                self.less_used(replaced);
                cached.insert(*id, bytes);
                Ok(())
            }
            Keep::Kept => {
                // The same bytes may come to be again: they are not on their way out, and nobody marks them before their place in the order is known.
                lock(&self.retiring).closing(*id);
                let replaced = self.disk.len(&kept).unwrap_or_default();
                self.disk.rename(from, &kept)?;
                self.less_used(replaced);
                lock(&self.retiring).unmark(id);
                if cached.keep_of(id) == Keep::Cached {
                    cached.remove(id);
                    let twin = closed_name(id, Keep::Cached);
                    let bytes = self.disk.len(&twin).unwrap_or_default();
                    // If it stays, the next start removes it.
                    if self.disk.remove(&twin).is_ok() {
                        self.less_used(bytes);
                    }
                }
                Ok(())
            }
        }
    }

    /// Tells the index of a closed pack, and forgets where its blocks were.
    fn enter(&self, id: &PackId, pack: &SealedPack) -> io::Result<()> {
        let blocks = pack.writer.blocks();
        let info = PackInfo {
            class: pack.writer.header().class,
            blocks: u32::try_from(blocks.len()).expect("at most PACK_BLOCKS_MAX"),
            bytes: self.disk.len(&closed_name(id, self.keep_of(id)))?,
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
        // After its blocks have left `held`: who found one there began before, and relies on a pack that is younger than itself.
        lock(&self.retiring).closed(*id);
        self.note_born(*id, info, false, pack.file.keep);
        Ok(())
    }

    /// Of a cached pack nobody is to be told: it goes when room is needed.
    pub(super) fn note_born(&self, pack: PackId, info: PackInfo, found: bool, keep: Keep) {
        if keep == Keep::Kept {
            lock(&self.born).push(Born { pack, info, found });
        }
    }

    pub(super) fn sync_failed(&self, source: io::Error) -> StoreError {
        lock(&self.writer).broken = true;
        StoreError::Sync { source }
    }
}

impl Writer {
    /// Takes those of the full packs that are so.
    fn take_sealed(&mut self, is_so: impl Fn(&SealedPack) -> bool) -> Vec<SealedPack> {
        self.sealed.extract_if(.., |pack| is_so(pack)).collect()
    }

    /// What is not finished is tried again; a spoilt pack stays as it is, its sound blocks readable.
    fn put_back(&mut self, packs: Vec<SealedPack>, failed: bool) {
        let kept = packs
            .into_iter()
            .filter(|pack| failed || !pack.file.spoilt.load(Ordering::Relaxed));
        self.sealed.extend(kept);
    }
}
