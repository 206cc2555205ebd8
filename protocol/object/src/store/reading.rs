//! Reading blocks and packs, each checked against its name.

use std::io;

use bytes::Bytes;

use super::{Keep, Store, StoreError, closed_name};
use crate::disk::{Disk, lock, read_around};
use crate::id::{Cid, PackId};
use crate::index::{Index, Location, PackInfo};
use crate::pack::{
    self, BlockAt, Class, HEADER_BYTES, Header, PACK_BYTES_MAX, Pack, PackError, TRAILER_BYTES,
    Trailer,
};

/// What reading one copy of a block gave.
enum Copy {
    Sound(Bytes),
    Damaged,
    Gone,
    Failed(StoreError),
}

impl<D: Disk, I: Index> Store<D, I> {
    /// The file of a closed pack.
    pub(super) fn name_of(&self, pack: &PackId) -> String {
        closed_name(pack, self.keep_of(pack))
    }

    /// Whether a block is here, as far as is known without reading it.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.size(cid)?.is_some())
    }

    /// Whether anybody may have a block: it lies in a kept pack of class `public`, where only what was meant for anybody is put.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    ///
    /// Spec: `protocol/spec/outside.md`, "What is served".
    pub fn is_public(&self, cid: &Cid) -> Result<bool, StoreError> {
        let held = self.held().get(cid).cloned();
        if let Some(held) = held {
            let writer = lock(&self.writer);
            let open = writer.open.values();
            let open = open.map(|open| (&open.file, open.writer.header().class));
            let sealed = writer.sealed.iter();
            let sealed = sealed.map(|pack| (&pack.file, pack.writer.header().class));
            let mut files = open.chain(sealed);
            if held.file.keep == Keep::Kept
                && files.any(|(file, class)| {
                    class == Class::Public && std::sync::Arc::ptr_eq(file, &held.file)
                })
            {
                return Ok(true);
            }
        }
        let failed = |source| StoreError::Index { source };
        // Before the index is asked: a pack that goes meanwhile would count as kept.
        let cached = self.cached();
        for place in self.index.locations(cid).map_err(failed)? {
            let info = self.index.info(&place.pack).map_err(failed)?;
            if info.is_some_and(|info| info.class == Class::Public)
                && cached.keep_of(&place.pack) == Keep::Kept
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The length of a block, if it is here.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn size(&self, cid: &Cid) -> Result<Option<u32>, StoreError> {
        if let Some(held) = self.held().get(cid) {
            return Ok(Some(held.len));
        }
        let places = self
            .index
            .locations(cid)
            .map_err(|source| StoreError::Index { source })?;
        Ok(places.first().map(|place| place.len))
    }

    /// Reads a block; it matches its CID.
    ///
    /// Every copy is tried. A damaged one counts as absent from then on, so that the block is fetched and put again.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if all copies here are damaged, [`StoreError::Read`], [`StoreError::Index`].
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        // A second look, for a block whose pack was set aside between finding and reading it.
        let mut failure = None;
        for _ in 0..2 {
            let mut gone = false;
            let held = self.held().get(cid).cloned();
            if let Some(held) = held {
                let copy = {
                    let name = held
                        .file
                        .name
                        .read()
                        .expect("no thread panics while it holds this lock");
                    self.read_copy(cid, &name, held.offset, held.len)
                };
                match copy {
                    Copy::Sound(block) => return Ok(Some(block)),
                    Copy::Damaged | Copy::Gone => {
                        self.spoil(cid, &held);
                        failure = Some(StoreError::Corrupt { cid: *cid });
                    }
                    Copy::Failed(error) => failure = Some(error),
                }
            }
            for place in self
                .index
                .locations(cid)
                .map_err(|source| StoreError::Index { source })?
            {
                let copy = self.read_copy(cid, &self.name_of(&place.pack), place.offset, place.len);
                match copy {
                    Copy::Sound(block) => {
                        self.cached().touch(&place.pack);
                        return Ok(Some(block));
                    }
                    Copy::Damaged => {
                        lock(&self.stats).corrupt += 1;
                        self.index
                            .forget(cid, &place.pack)
                            .map_err(|source| StoreError::Index { source })?;
                        failure = Some(StoreError::Corrupt { cid: *cid });
                    }
                    Copy::Gone => gone = true,
                    Copy::Failed(error) => failure = Some(error),
                }
            }
            if !gone {
                break;
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Whether the block is sound at that place.
    pub(super) fn reads(&self, cid: &Cid, place: &Location) -> bool {
        self.read_at(cid, place).is_some()
    }

    /// The block at that place, if it is sound.
    pub(super) fn read_at(&self, cid: &Cid, place: &Location) -> Option<Bytes> {
        let name = self.name_of(&place.pack);
        match self.read_copy(cid, &name, place.offset, place.len) {
            Copy::Sound(block) => Some(block),
            _ => None,
        }
    }

    fn read_copy(&self, cid: &Cid, name: &str, offset: u32, len: u32) -> Copy {
        match self.disk.read_at(name, u64::from(offset), len as usize) {
            Ok(bytes) if cid.verifies(&bytes) || cfg!(planted = "trust-the-disk") => {
                Copy::Sound(Bytes::from(bytes))
            }
            Ok(_) => Copy::Damaged,
            Err(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Copy::Damaged,
                io::ErrorKind::NotFound => Copy::Gone,
                _ => Copy::Failed(StoreError::Read {
                    name: name.to_owned(),
                    source,
                }),
            },
        }
    }

    /// All bytes of a pack file, zeros for what the medium has lost; nothing if it is longer than any pack.
    pub(super) fn read_whole(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = |source| StoreError::Read {
            name: name.to_owned(),
            source,
        };
        let len = self.disk.len(name).map_err(read)?;
        match usize::try_from(len) {
            Ok(len) if len <= PACK_BYTES_MAX => read_around(&self.disk, name, 0, len)
                .map(Some)
                .map_err(read),
            _ => Ok(None),
        }
    }

    /// Class, size and blocks of a closed pack, from header and footer alone.
    pub(super) fn read_footer(
        &self,
        pack: &PackId,
    ) -> Result<(PackInfo, Vec<BlockAt>), StoreError> {
        let name = self.name_of(pack);
        let bad = |source| StoreError::Pack {
            pack: *pack,
            source,
        };
        let read = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => bad(PackError::Length),
            io::ErrorKind::InvalidData => bad(PackError::Index),
            _ => StoreError::Read {
                name: name.clone(),
                source,
            },
        };
        let len = self.disk.len(&name).map_err(read)?;
        let tail = len
            .checked_sub(TRAILER_BYTES as u64)
            .ok_or_else(|| bad(PackError::Length))?;
        let trailer = self
            .disk
            .read_at(&name, tail, TRAILER_BYTES)
            .map_err(read)?;
        let trailer = Trailer::decode(&trailer, len).map_err(bad)?;
        let header = Header::decode(&self.disk.read_at(&name, 0, HEADER_BYTES).map_err(read)?)
            .map_err(bad)?;
        let index = self
            .disk
            .read_at(&name, trailer.index_offset, trailer.index_len)
            .map_err(read)?;
        let blocks = pack::read_index(&index, &trailer).map_err(bad)?;
        Ok((
            PackInfo {
                class: header.class,
                blocks: trailer.count,
                bytes: len,
            },
            blocks,
        ))
    }

    /// The blocks of a closed pack, in the order of the file.
    ///
    /// # Errors
    /// [`StoreError::Pack`], [`StoreError::Read`].
    pub fn pack_blocks(&self, pack: &PackId) -> Result<Vec<BlockAt>, StoreError> {
        self.read_footer(pack).map(|(_, blocks)| blocks)
    }

    /// Reads a closed pack to the last byte and compares it with its name; puts into the index what that has lost.
    ///
    /// # Errors
    /// [`StoreError::Pack`] if it is damaged: [`Store::quarantine`] is the answer. [`StoreError::Read`], [`StoreError::Index`].
    pub fn check_pack(&self, pack: &PackId) -> Result<(), StoreError> {
        let _upkeep = lock(&self.upkeep);
        let (bytes, found) = self.judge_pack(pack)?;
        let len = bytes.len() as u64;
        let index = |source| StoreError::Index { source };
        for block in &found.blocks {
            let places = self.index.locations(&block.cid).map_err(index)?;
            if !places.iter().any(|place| {
                place.pack == *pack && place.offset == block.offset && place.len == block.len
            }) {
                let info = PackInfo {
                    class: found.header.class,
                    blocks: u32::try_from(found.blocks.len()).expect("at most PACK_BLOCKS_MAX"),
                    bytes: len,
                };
                return self
                    .index
                    .insert_pack(pack, info, &found.blocks)
                    .map_err(index);
            }
        }
        Ok(())
    }

    /// Reads a closed pack to the last byte and compares it with its name; answers its bytes and what they are.
    pub(super) fn judge_pack(&self, pack: &PackId) -> Result<(Vec<u8>, Pack), StoreError> {
        let bad = |source| StoreError::Pack {
            pack: *pack,
            source,
        };
        let bytes = self
            .read_whole(&self.name_of(pack))?
            .ok_or_else(|| bad(PackError::Length))?;
        let found = pack::check(&bytes).map_err(bad)?;
        if found.id != *pack {
            return Err(bad(PackError::Name));
        }
        Ok((bytes, found))
    }
}
