//! Checking what is stored, and setting aside what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::recovery::keep_of_name;
use super::{Keep, Store, StoreError, Verified, closed_id, closed_name};
use crate::disk::{Disk, lock};
use crate::id::{Cid, PackId};
use crate::index::Index;
use crate::pack::{self, BlockAt, Class, Header, PackError, TRAILER_BYTES};

/// What the names of files that were set aside end in.
const ASIDE: &str = ".bad";

/// What is wrong with a file of the store.
#[derive(Debug)]
pub struct Damage {
    /// The file as it was called.
    pub file: String,
    /// Where the first fault is: the beginning of the part of the file that is not what it should be.
    pub offset: u64,
    /// What is wrong there.
    pub what: PackError,
    /// Blocks of it that are not sound, and where they were.
    pub bad: Vec<BlockAt>,
    /// Of these, blocks that no other pack here has: only other devices can give them back.
    pub lost: Vec<Cid>,
    /// What the file is called now that it is set aside, its sound blocks copied; or why that could not be done.
    pub aside: Result<String, StoreError>,
}

/// A damaged file that was set aside, and what of it is not back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its blocks that no pack here has, in the order of the file.
    pub lost: Vec<Cid>,
    /// What its blocks are for.
    pub class: Class,
    /// Whether its blocks are relied upon.
    pub keep: Keep,
    /// Whether all blocks are known that it held: only then it is of no use once they are back.
    pub all_known: bool,
}

/// Where index and packs differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexFault {
    /// Blocks of a pack are not in the index; they have been put in.
    Lacks {
        /// The pack.
        pack: PackId,
        /// How many.
        blocks: u64,
    },
    /// The index knows more places in a pack than there are, or a pack that is not there; only a rebuild mends that.
    Exceeds {
        /// The pack.
        pack: PackId,
        /// How many.
        blocks: u64,
    },
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Reads a closed pack to the last byte; if it is damaged, sets it aside, its sound blocks copied into new packs.
    ///
    /// Nothing if it is sound, or no longer here.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Index`]: nothing is known of the pack then.
    ///
    /// Spec: `protocol/spec/store.md`, "Scrub".
    pub fn scrub_pack(&self, pack: &PackId) -> Result<Option<Damage>, StoreError> {
        let file = self.name_of(pack);
        let what = match self.check_pack(pack) {
            Ok(()) => return Ok(None),
            Err(StoreError::Pack { source, .. }) => source,
            Err(StoreError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return self.vanish(pack);
            }
            Err(error) => return Err(error),
        };
        let bytes = self.read_whole(&file)?.unwrap_or_default();
        let offset = match what {
            PackError::Record { offset } | PackError::Block { offset } => u64::from(offset),
            PackError::Trailer => bytes.len().saturating_sub(TRAILER_BYTES) as u64,
            PackError::Index => pack::said(&bytes)
                .last()
                .map_or(0, |last| last.range().end as u64),
            PackError::Length => bytes.len() as u64,
            PackError::Header | PackError::Name => 0,
        };
        let sound: BTreeSet<Cid> = pack::scan(&bytes)
            .blocks
            .iter()
            .map(|block| block.cid)
            .collect();
        let mut bad = pack::said(&bytes);
        bad.retain(|block| !sound.contains(&block.cid));
        let aside = self.quarantine(pack);
        let mut lost = Vec::new();
        for block in &bad {
            // What is still in the index lies in another pack, whose turn comes.
            if aside.is_ok() && !self.has(&block.cid)? {
                lost.push(block.cid);
            }
        }
        Ok(Some(Damage {
            file,
            offset,
            what,
            bad,
            lost,
            aside,
        }))
    }

    /// Takes a pack whose file is gone out of the index; damage, unless it went as a cached one does.
    fn vanish(&self, pack: &PackId) -> Result<Option<Damage>, StoreError> {
        let _upkeep = lock(&self.upkeep);
        let file = self.name_of(pack);
        let known = self.packs()?.iter().any(|(known, _)| known == pack);
        if !known || self.disk.len(&file).is_ok() {
            return Ok(None);
        }
        self.index
            .remove_pack(pack, &[])
            .map_err(|source| StoreError::Index { source })?;
        self.cached_mut().remove(pack);
        Ok(Some(Damage {
            aside: Ok(file.clone()),
            file,
            offset: 0,
            what: PackError::Length,
            bad: Vec::new(),
            lost: Vec::new(),
        }))
    }

    /// Blocks that files set aside held and no pack has: what to ask other devices for.
    ///
    /// Computed from the files themselves, so nothing has to be remembered; a block that was fetched or put again is not in it.
    ///
    /// # Errors
    /// [`StoreError::List`], [`StoreError::Read`], [`StoreError::Index`].
    pub fn lost_blocks(&self) -> Result<Vec<Cid>, StoreError> {
        let mut lost = BTreeSet::new();
        for name in self.set_aside()? {
            if let Some(aside) = self.look_aside(&name)? {
                lost.extend(aside.lost);
            }
        }
        Ok(lost.into_iter().collect())
    }

    /// The files that were set aside.
    ///
    /// # Errors
    /// [`StoreError::List`].
    pub fn set_aside(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self
            .disk
            .list()
            .map_err(|source| StoreError::List { source })?;
        names.retain(|name| name.ends_with(ASIDE));
        Ok(names)
    }

    /// What a file that was set aside held; nothing if it is gone, or longer than any pack.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Index`].
    pub fn look_aside(&self, name: &str) -> Result<Option<Aside>, StoreError> {
        let bytes = match self.read_whole(name) {
            Err(StoreError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            bytes => bytes?,
        };
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let said = pack::said(&bytes);
        let mut lost = Vec::new();
        for block in &said {
            if !self.has(&block.cid)? {
                lost.push(block.cid);
            }
        }
        Ok(Some(Aside {
            lost,
            class: class_of(&bytes),
            keep: keep_aside(name),
            all_known: pack::is_all(&bytes, &said),
        }))
    }

    /// Puts a block back that another device gave: where it was relied upon, it is again.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_back(&self, aside: &Aside, block: Verified<'_>) -> Result<bool, StoreError> {
        self.put_as(aside.class, aside.keep, block, None)
    }

    /// Removes a file that was set aside, once every block that it held has been read from a pack it may be left to, or may go for good; answers whether it
    /// did.
    ///
    /// One of which not all blocks are known stays: it is all there is of them.
    ///
    /// # Errors
    /// Any of [`StoreError`]; the file is then still there.
    pub fn drop_aside(
        &self,
        name: &str,
        may_go: &dyn Fn(&Cid) -> bool,
    ) -> Result<bool, StoreError> {
        let (class, keep) = match self.look_aside(name)? {
            Some(aside) if aside.all_known && aside.lost.iter().all(may_go) => {
                (aside.class, aside.keep)
            }
            _ => return Ok(false),
        };
        let Some(bytes) = self.read_whole(name)? else {
            return Ok(false);
        };
        for block in pack::said(&bytes) {
            let found = match self.get(&block.cid) {
                Ok(Some(found)) => found,
                Ok(None) | Err(StoreError::Corrupt { .. }) if may_go(&block.cid) => continue,
                Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(false),
                Err(error) => return Err(error),
            };
            // It may be in a cached pack only.
            self.put_as(
                class,
                keep,
                Verified {
                    cid: block.cid,
                    bytes: &found,
                },
                None,
            )?;
        }
        self.flush()?;
        let _upkeep = lock(&self.upkeep);
        self.disk.remove(name).map_err(|source| StoreError::Write {
            name: name.to_owned(),
            source,
        })?;
        self.less_used(bytes.len() as u64);
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))?;
        Ok(true)
    }

    /// Compares the whole index with the indexes of the packs, both ways; puts in what it lacks.
    ///
    /// With the blocks of a pack in the index at their places, and as many places as there are blocks, both say the same.
    ///
    /// # Errors
    /// [`StoreError::Index`] if it cannot be read, [`StoreError::Read`].
    ///
    /// Spec: `protocol/spec/store.md`, "Scrub".
    pub fn compare_index(&self) -> Result<Vec<IndexFault>, StoreError> {
        let _upkeep = lock(&self.upkeep);
        let index = |source| StoreError::Index { source };
        let mut faults = Vec::new();
        let known = self.packs()?;
        let mut footers: BTreeMap<PackId, u64> = BTreeMap::new();
        for (pack, info) in &known {
            let (found, blocks) = match self.read_footer(pack) {
                Ok(found) => found,
                // Damage is found when the pack is read; a file that is gone is an entry too many.
                Err(StoreError::Pack { .. }) => continue,
                Err(StoreError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    footers.insert(*pack, 0);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut lacking = 0;
            for block in &blocks {
                let places = self.index.locations(&block.cid).map_err(index)?;
                let there = places.iter().any(|place| {
                    place.pack == *pack && place.offset == block.offset && place.len == block.len
                });
                lacking += u64::from(!there);
            }
            if lacking > 0 || found != *info {
                self.index
                    .insert_pack(pack, found, &blocks)
                    .map_err(index)?;
                faults.push(IndexFault::Lacks {
                    pack: *pack,
                    blocks: lacking,
                });
            }
            footers.insert(*pack, blocks.len() as u64);
        }
        let mut counted: BTreeMap<PackId, u64> = BTreeMap::new();
        self.index
            .each(&mut |_, places| {
                for place in places {
                    *counted.entry(place.pack).or_default() += 1;
                }
            })
            .map_err(index)?;
        for (pack, places) in counted {
            // Packs closed since the list was made are not in it.
            let Some(blocks) = footers.get(&pack) else {
                continue;
            };
            if places > *blocks {
                faults.push(IndexFault::Exceeds {
                    pack,
                    blocks: places - blocks,
                });
            }
        }
        Ok(faults)
    }

    /// Closed packs that are on the disk and not in the index: none, unless somebody put them there since the start.
    ///
    /// # Errors
    /// [`StoreError::List`], [`StoreError::Index`].
    pub fn unknown_packs(&self) -> Result<Vec<String>, StoreError> {
        let known: BTreeSet<PackId> = self.packs()?.into_iter().map(|(pack, _)| pack).collect();
        let names = self
            .disk
            .list()
            .map_err(|source| StoreError::List { source })?;
        let unknown = names.into_iter().filter(|name| {
            closed_id(name).is_some_and(|(pack, keep)| {
                !known.contains(&pack) && *name == closed_name(&pack, keep)
            })
        });
        Ok(unknown.collect())
    }
}

/// What the blocks of a damaged file are for. A header that is damaged does not say: then they are taken for what most are.
fn class_of(bytes: &[u8]) -> Class {
    Header::decode(bytes).map_or(Class::Bulk, |header| header.class)
}

/// Whether a file that was set aside was a cached one: its name still says it.
fn keep_aside(name: &str) -> Keep {
    let name = name.trim_end_matches(ASIDE);
    let name = match name.rsplit_once('.') {
        Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    };
    keep_of_name(name)
}
