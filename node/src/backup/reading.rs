//! Reads a backup: what is sound in it goes where it belongs, what is missing is told.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use kith_crdt::chain::Entry;
use kith_object::backup::{self, Record};
use kith_object::car::{self, Block, CarError, Item, Reader};
use kith_object::id::{Cid, EntryId, SpaceId};
use kith_object::seal::SUITE_1;

use super::{ArchiveError, open};

/// Least and most bytes of a sealed block.
const SEALED_BYTES: std::ops::RangeInclusive<usize> = 23..=1_048_593;
/// Most lists remembered; a record names no more.
const LISTS_MAX: usize = 2 * backup::LISTS_MAX;
/// Where the space stands in the header of an entry.
const ENTRY_SPACE: std::ops::Range<usize> = 4..36;
/// Most names of missing blocks that are told.
const TOLD_MAX: usize = 10;

/// What was found in an archive, in its order.
pub(crate) enum Found {
    /// An entry of the space.
    Entry(Bytes),
    /// A block that may be a sealed one.
    Block(Cid, Bytes),
}

/// What an archive held.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Entries, with where they stand in the file, in its order.
    entries: Vec<(EntryId, Place)>,
    /// Hashes of those entries.
    entry_cids: std::collections::BTreeSet<[u8; 32]>,
    /// Lists by their names.
    lists: BTreeMap<Cid, Place>,
    /// Places where the file is not sound.
    pub(crate) damaged: u64,
    pub(crate) damaged_bytes: u64,
}

/// Where in the file some bytes stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// What a record names and is not there.
#[derive(Debug, Default)]
pub(crate) struct Lacking {
    pub(crate) blocks: u64,
    pub(crate) entries: u64,
    /// Lists: what they name is not known.
    pub(crate) lists: u64,
    /// The first of them all.
    pub(crate) told: Vec<Cid>,
}

impl Lacking {
    pub(crate) fn is_nothing(&self) -> bool {
        self.blocks + self.entries + self.lists == 0
    }
}

pub(super) fn reader(path: &Path, file: File) -> Result<Reader<File>, ArchiveError> {
    Reader::open_damaged(file).map_err(|error| match error {
        CarError::Header => ArchiveError::NoArchive {
            path: path.to_owned(),
        },
        CarError::Read(source) => ArchiveError::Read {
            path: path.to_owned(),
            source,
        },
    })
}

pub(super) fn next(path: &Path, reader: &mut Reader<File>) -> Result<Option<Item>, ArchiveError> {
    reader.next().map_err(|source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The record of a backup. A root that is one, else the first block that is: the header may be damaged, or written anew by another program.
pub(crate) fn record_of(path: &Path) -> Result<Record, ArchiveError> {
    let mut reader = reader(path, open(path)?)?;
    let mut other = None;
    let roots = reader.roots().to_vec();
    while let Some(item) = next(path, &mut reader)? {
        let Item::Block(Block { cid, bytes, .. }) = item else {
            continue;
        };
        if !backup::is_node(&cid) {
            continue;
        }
        let Ok(record) = Record::decode(&bytes) else {
            continue;
        };
        if roots.contains(&cid) {
            return Ok(record);
        }
        other.get_or_insert(record);
        if !roots.iter().any(backup::is_node) {
            break;
        }
    }
    other.ok_or_else(|| ArchiveError::NoRecord {
        path: path.to_owned(),
    })
}

/// Reads an archive from beginning to end and hands on what is sound in it.
pub(crate) fn read_backup(
    path: &Path,
    space: SpaceId,
    out: &mut dyn FnMut(Found) -> Result<(), ArchiveError>,
) -> Result<Taken, ArchiveError> {
    let mut reader = reader(path, open(path)?)?;
    let mut taken = Taken::default();
    while let Some(item) = next(path, &mut reader)? {
        let Block { cid, offset, bytes } = match item {
            Item::Block(block) => block,
            Item::Damaged(range) => {
                taken.damaged += 1;
                taken.damaged_bytes += range.end - range.start;
                continue;
            }
        };
        let Ok(len) = u32::try_from(bytes.len()) else {
            continue;
        };
        let place = Place { offset, len };
        if backup::is_node(&cid) {
            if taken.lists.len() < LISTS_MAX {
                taken.lists.insert(cid, place);
            }
            continue;
        }
        let Some(digest) = cid.digest() else { continue };
        if let Some(entry) = entry_of(space, &bytes) {
            if taken.entry_cids.insert(digest) {
                taken.entries.push((entry.id(), place));
                out(Found::Entry(bytes))?;
            }
        } else if bytes.first() == Some(&SUITE_1) && SEALED_BYTES.contains(&bytes.len()) {
            out(Found::Block(cid, bytes))?;
        }
    }
    Ok(taken)
}

/// The entry, if the bytes are one of that space.
pub(super) fn entry_of(space: SpaceId, bytes: &[u8]) -> Option<Entry> {
    if bytes.get(ENTRY_SPACE) != Some(space.0.as_slice()) {
        return None;
    }
    Entry::decode(bytes).ok()
}

impl Taken {
    /// The entries that were found, in the order of the file.
    pub(crate) fn entry_ids(&self) -> Vec<EntryId> {
        self.entries.iter().map(|(id, _)| *id).collect()
    }

    /// Reads some of the entries once more, in the order of the file.
    pub(crate) fn entries_again(
        &self,
        path: &Path,
        wanted: &dyn Fn(&EntryId) -> bool,
        out: &mut dyn FnMut(EntryId, Bytes) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let file = open(path)?;
        for (id, place) in self.entries.iter().filter(|(id, _)| wanted(id)) {
            out(*id, read_at(path, &file, *place)?)?;
        }
        Ok(())
    }

    /// What the record names and neither the file nor `has` has.
    pub(crate) fn lacking(
        &self,
        path: &Path,
        record: &Record,
        has: &dyn Fn(&Cid) -> Result<bool, ArchiveError>,
    ) -> Result<Lacking, ArchiveError> {
        let file = open(path)?;
        let mut lacking = Lacking::default();
        let tell = |told: &mut Vec<Cid>, cid: &Cid| {
            if told.len() < TOLD_MAX {
                told.push(*cid);
            }
        };
        for name in &record.entries {
            let Some(list) = self.list(path, &file, name)? else {
                lacking.lists += 1;
                tell(&mut lacking.told, name);
                continue;
            };
            for cid in list {
                let here = |digest| self.entry_cids.contains(&digest);
                if !cid.digest().is_some_and(here) {
                    lacking.entries += 1;
                    tell(&mut lacking.told, &cid);
                }
            }
        }
        for name in &record.blocks {
            let Some(list) = self.list(path, &file, name)? else {
                lacking.lists += 1;
                tell(&mut lacking.told, name);
                continue;
            };
            for cid in list {
                if !has(&cid)? {
                    lacking.blocks += 1;
                    tell(&mut lacking.told, &cid);
                }
            }
        }
        Ok(lacking)
    }

    fn list(&self, path: &Path, file: &File, name: &Cid) -> Result<Option<Vec<Cid>>, ArchiveError> {
        let Some(place) = self.lists.get(name) else {
            return Ok(None);
        };
        let bytes = read_at(path, file, *place)?;
        // The file may have changed since.
        let list = car::verifies(name, &bytes).then(|| backup::decode_list(&bytes));
        Ok(list.and_then(Result::ok))
    }
}

pub(super) fn read_at(path: &Path, file: &File, place: Place) -> Result<Bytes, ArchiveError> {
    let len = usize::try_from(place.len).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    let read: io::Result<()> = file.read_exact_at(&mut bytes, place.offset);
    read.map_err(|source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes.into())
}
