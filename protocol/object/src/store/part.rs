//! Packs of other devices: they come in order into a part file, and become packs of this store once all of it has been checked.
//!
//! Spec: `protocol/spec/store.md`, "Parts".

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::open_pack::ROOM_CHECK_BYTES;
use super::room::Wanted;
use super::{Keep, Store, StoreError};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::{Index, PackInfo};
use crate::pack::{
    self, BlockAt, Class, HEADER_BYTES, Header, PACK_BYTES_MAX, PackError, PackWriter,
    TRAILER_BYTES, Trailer,
};

/// A part file that grows. Nobody else has this pack under way as long as it lives.
#[derive(Debug)]
pub struct Part {
    pack: PackId,
    keep: Keep,
    bytes: u64,
    total: u64,
    /// All that is there was proved to be the pack's when it came.
    proved: bool,
    under_way: Arc<Mutex<BTreeSet<PackId>>>,
}

impl Drop for Part {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.pack);
    }
}

impl Part {
    /// Which pack it is to become.
    pub fn pack(&self) -> PackId {
        self.pack
    }

    /// Bytes that are there. What an earlier run has left is believed until [`Store::adopt`] has seen all of it.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that it shall have.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.bytes == self.total
    }
}

/// Why a part did not become a pack.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// What came is not the pack that was asked for, or none at all; it is removed.
    #[error("pack {pack} of another device is not what its name says")]
    Pack {
        /// Its name.
        pack: PackId,
        /// What is wrong first.
        source: PackError,
    },
    /// It belongs to another space, or to anybody; it is removed.
    #[error("pack {pack} of another device is not one of this mesh")]
    Foreign {
        /// Its name.
        pack: PackId,
    },
    /// The store failed; what came is kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a file is.
struct Found {
    id: PackId,
    header: Header,
    blocks: Vec<BlockAt>,
}

/// The file of a pack that is not all there yet.
fn part_name(pack: &PackId) -> String {
    format!("{pack}.part")
}

/// Which pack a part file is to become.
pub(super) fn part_id(name: &str) -> Option<PackId> {
    name.strip_suffix(".part")?.parse().ok()
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Begins a part file of `total` bytes, or goes on with one. `None` if the pack is here, as one that is kept if that is wanted, or if somebody else has it
    /// under way.
    ///
    /// # Errors
    /// [`StoreError::Pack`] if no pack is that long; those of a full store before anything is fetched; [`StoreError::Write`], [`StoreError::Index`],
    /// [`StoreError::Broken`].
    pub fn part(&self, pack: PackId, total: u64, keep: Keep) -> Result<Option<Part>, StoreError> {
        if total > PACK_BYTES_MAX as u64 || total < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            let source = PackError::Length;
            return Err(StoreError::Pack { pack, source });
        }
        if lock(&self.writer).broken {
            return Err(StoreError::Broken);
        }
        let known = self
            .index
            .info(&pack)
            .map_err(|source| StoreError::Index { source })?;
        if known.is_some() && !self.is_retired(&pack) {
            if keep == Keep::Kept {
                self.keep(&pack)?;
            }
            return Ok(None);
        }
        if !lock(&self.parts).insert(pack) {
            return Ok(None);
        }
        let mut part = Part {
            pack,
            keep,
            bytes: 0,
            total,
            proved: true,
            under_way: Arc::clone(&self.parts),
        };
        let name = part_name(&pack);
        let write = |source| StoreError::Write {
            name: name.clone(),
            source,
        };
        let there = match self.disk.len(&name) {
            // Of another length than was said then.
            Ok(len) if len > total => {
                self.disk.remove(&name).map_err(write)?;
                self.less_used(len);
                None
            }
            Ok(len) => Some(len),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(write(source)),
        };
        part.bytes = there.unwrap_or(0);
        part.proved = part.bytes == 0;
        self.room_for(&part, total - part.bytes)?;
        if there.is_none() {
            self.disk.create(&name).map_err(write)?;
        }
        Ok(Some(part))
    }

    /// Puts what came next behind what is there.
    ///
    /// # Errors
    /// [`StoreError::Full`] and its like, [`StoreError::Write`]; the part is as before.
    pub fn append(&self, part: &mut Part, bytes: &[u8]) -> Result<(), StoreError> {
        part.proved = false;
        self.append_proved(part, bytes)
    }

    /// The same for bytes that were proved to stand there in the pack of that name, by the hashes between them and it. Of a part that has come so altogether
    /// [`Store::adopt`] need not compute the name again.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn append_proved(&self, part: &mut Part, bytes: &[u8]) -> Result<(), StoreError> {
        let name = part_name(&part.pack);
        let write = |source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull => StoreError::Full {
                cid: Cid::from_digest(part.pack.0),
                len: u32::try_from(part.total).unwrap_or(u32::MAX),
                source,
            },
            _ => StoreError::Write {
                name: name.clone(),
                source,
            },
        };
        let len = bytes.len() as u64;
        if part.bytes + len > part.total {
            let (pack, source) = (part.pack, PackError::Length);
            return Err(StoreError::Pack { pack, source });
        }
        self.room_for(part, len)?;
        if let Err(error) = self.disk.append(&name, bytes) {
            // Whatever stands behind what was there is of no use.
            let _ = self.disk.truncate(&name, part.bytes);
            return Err(write(error));
        }
        self.more_used(len);
        part.bytes += len;
        Ok(())
    }

    fn room_for(&self, part: &Part, bytes: u64) -> Result<(), StoreError> {
        for attempt in 0..2 {
            let wanted = Wanted {
                bytes,
                cid: Cid::from_digest(part.pack.0),
                len: u32::try_from(part.total).unwrap_or(u32::MAX),
                reserve: true,
            };
            let Err(lack) = self.check_room(&mut { ROOM_CHECK_BYTES }, wanted) else {
                return Ok(());
            };
            if attempt > 0 || lack.bytes == 0 || !self.make_room(lack.bytes)? {
                return Err(*lack.error);
            }
        }
        Ok(())
    }

    /// Makes a pack of a part that is whole: it lasts, each of its blocks is what its CID says, and the index knows them when this returns.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn adopt(&self, part: Part) -> Result<PackInfo, AdoptError> {
        let name = part_name(&part.pack);
        let bad = |source| AdoptError::Pack {
            pack: part.pack,
            source,
        };
        let judged = self
            .judge_part(&name, part.proved)
            .and_then(|found| match found {
                Found { id, .. } if id != part.pack => Err(bad(PackError::Name)),
                // What lies in a kept pack of this class is served to anybody: that is for the owner of this device to say.
                Found { header, .. }
                    if header.space != self.config.space || header.class == Class::Public =>
                {
                    Err(AdoptError::Foreign { pack: part.pack })
                }
                found => Ok(found),
            });
        let found = match judged {
            Ok(found) => found,
            Err(error @ AdoptError::Store(_)) => return Err(error),
            Err(error) => {
                self.discard(part)?;
                return Err(error);
            }
        };
        if lock(&self.writer).broken {
            return Err(StoreError::Broken.into());
        }
        let _turn = lock(&self.finishing);
        self.disk
            .sync(&name)
            .map_err(|source| self.sync_failed(source))?;
        self.name(&name, &part.pack, part.keep)
            .map_err(|source| StoreError::Write {
                name: name.clone(),
                source,
            })?;
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))?;
        let info = PackInfo {
            class: found.header.class,
            blocks: u32::try_from(found.blocks.len()).expect("at most PACK_BLOCKS_MAX"),
            bytes: part.bytes,
        };
        // Should this fail, the next opening finds the pack.
        self.index
            .insert_pack(&part.pack, info, &found.blocks)
            .map_err(|source| StoreError::Index { source })?;
        lock(&self.stats).packs_adopted += 1;
        lock(&self.retiring).closed(part.pack);
        self.note_born(part.pack, info, true, part.keep);
        Ok(info)
    }

    /// Checks a file as [`pack::check`] does, without having all of it in memory; what it is called, too, unless that was `proved`.
    fn judge_part(&self, name: &str, proved: bool) -> Result<Found, AdoptError> {
        let pack = part_id(name).unwrap_or(PackId([0; 32]));
        let bad = |source| AdoptError::Pack { pack, source };
        let read = |offset: u64, len: usize| {
            self.disk.read_at(name, offset, len).map_err(|source| {
                // What the medium has lost is as good as never come.
                match source.kind() {
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                        bad(PackError::Length)
                    }
                    _ => AdoptError::Store(StoreError::Read {
                        name: name.to_owned(),
                        source,
                    }),
                }
            })
        };
        let len = self.disk.len(name).map_err(|source| StoreError::Read {
            name: name.to_owned(),
            source,
        })?;
        let tail = len.checked_sub(TRAILER_BYTES as u64);
        let end = read(tail.ok_or(bad(PackError::Length))?, TRAILER_BYTES)?;
        let trailer = Trailer::decode(&end, len).map_err(bad)?;
        let begin = read(0, HEADER_BYTES)?;
        let header = Header::decode(&begin).map_err(bad)?;
        let index = read(trailer.index_offset, trailer.index_len)?;
        let blocks = pack::read_index(&index, &trailer).map_err(bad)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&begin);
        for block in &blocks {
            let head = PackWriter::record_head(&block.cid, block.len as usize);
            let head = head.bytes();
            // The records fill the file up to the index, as that says.
            let at = u64::from(block.offset) - head.len() as u64;
            let record = read(at, head.len() + block.len as usize)?;
            let offset = u32::try_from(at).unwrap_or(u32::MAX);
            let data = record
                .strip_prefix(head)
                .ok_or(bad(PackError::Record { offset }))?;
            if !block.cid.verifies(data) {
                let offset = block.offset;
                return Err(bad(PackError::Block { offset }));
            }
            if !proved {
                hasher.update(&record);
            }
        }
        hasher.update(&index).update(&end);
        let id = if proved {
            pack
        } else {
            PackId(*hasher.finalize().as_bytes())
        };
        Ok(Found { id, header, blocks })
    }

    /// Removes a part.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn discard(&self, part: Part) -> Result<(), StoreError> {
        self.remove_part(&part_name(&part.pack))
    }

    fn remove_part(&self, name: &str) -> Result<(), StoreError> {
        let write = |source| StoreError::Write {
            name: name.to_owned(),
            source,
        };
        let bytes = self.disk.len(name).map_err(write)?;
        self.disk.remove(name).map_err(write)?;
        self.less_used(bytes);
        Ok(())
    }

    /// Removes all parts that nobody has under way; answers the bytes that are free again.
    ///
    /// # Errors
    /// [`StoreError::List`], [`StoreError::Write`].
    pub fn discard_parts(&self) -> Result<u64, StoreError> {
        let names = self
            .disk
            .list()
            .map_err(|source| StoreError::List { source })?;
        let mut freed = 0;
        for name in names {
            let Some(pack) = part_id(&name) else {
                continue;
            };
            let parts = lock(&self.parts);
            if !parts.contains(&pack) {
                freed += self.disk.len(&name).unwrap_or(0);
                self.remove_part(&name)?;
            }
        }
        Ok(freed)
    }

    /// Reads of the file of a closed pack, whatever stands there; `None` if it is not here.
    ///
    /// # Errors
    /// What the disk says; `UnexpectedEof` beyond its end.
    pub fn read_pack(&self, pack: &PackId, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        match self.disk.read_at(&self.name_of(pack), offset, len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is known of a closed pack that is here, and not on its way out.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn pack_info(&self, pack: &PackId) -> Result<Option<PackInfo>, StoreError> {
        if self.is_retired(pack) {
            return Ok(None);
        }
        self.index
            .info(pack)
            .map_err(|source| StoreError::Index { source })
    }

    /// The pack in which a block lies, if it lies in a closed one that is not on its way out.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn pack_of(&self, cid: &Cid) -> Result<Option<PackId>, StoreError> {
        let places = self
            .index
            .locations(cid)
            .map_err(|source| StoreError::Index { source })?;
        let mut packs = places.iter().map(|place| place.pack);
        Ok(packs.find(|pack| !self.is_retired(pack)))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests;
