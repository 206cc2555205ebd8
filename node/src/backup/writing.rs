//! Plans and writes a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kith_object::backup::{
    LIST_LINKS_MAX, NODE_BYTES_MAX, Record, SealedLink, encode_list, node_cid,
};
use kith_object::car;
use kith_object::id::{Cid, EntryId, SpaceId};
use kith_object::object::{BlockWalk, ObjectLink, Step};
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX};

use super::{ArchiveError, NewFile};
use crate::source::{ReadError, Source};

/// Blocks read at once, and entries.
const BATCH: usize = 32;
/// Most blocks whose names are told where they are missing; the rest are counted.
pub(crate) const TOLD_MAX: usize = 10;

/// How far an export is, for whoever shows it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) bytes: AtomicU64,
    pub(crate) blocks: AtomicU64,
}

/// Reads entries from the log, for the thread that writes.
pub(crate) type ReadEntries<'a> =
    dyn Fn(Vec<EntryId>) -> Result<Vec<(EntryId, Bytes)>, ArchiveError> + 'a;

/// What a backup is to hold.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Objects named in the header.
    pub(crate) roots: Vec<Cid>,
    pub(crate) entries: Vec<EntryId>,
    /// Digests of the blocks, in the order in which objects are read.
    blocks: Vec<[u8; 32]>,
    /// Blocks that were made for this backup: listings of folders as the tree shows them.
    made: BTreeMap<Cid, Bytes>,
    pub(crate) sealed: Option<SealedLink>,
    /// Blocks that could not be had, the first of them, and what else is left out and why.
    pub(crate) missing: u64,
    pub(crate) told: Vec<String>,
}

impl Plan {
    fn lacks(&mut self, what: impl FnOnce() -> String) {
        self.missing += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(what());
        }
    }
}

/// Finds out which blocks objects consist of; opens listings and manifests, and nothing else that it can help.
pub(crate) struct Planner<'a> {
    source: &'a Source,
    walk: BlockWalk,
    /// Listings gone through, by halves of their digests.
    folders: BTreeSet<Vec<u8>>,
    todo: Vec<(FileKind, ObjectLink)>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self {
            source,
            walk: BlockWalk::new(source.opener.clone()),
            folders: BTreeSet::new(),
            todo: Vec::new(),
            plan: Plan::default(),
        }
    }

    /// Adds a block made for this backup.
    pub(crate) fn made(&mut self, cid: Cid, block: Bytes) {
        self.plan.made.insert(cid, block);
    }

    /// Adds an object with all below it.
    pub(crate) fn object(&mut self, kind: FileKind, link: ObjectLink) -> Result<(), ArchiveError> {
        self.todo.push((kind, link));
        while let Some((kind, link)) = self.todo.pop() {
            self.list(&link)?;
            if kind == FileKind::Folder {
                self.descend(&link)?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Plan {
        self.plan
    }

    fn list(&mut self, link: &ObjectLink) -> Result<(), ArchiveError> {
        self.walk.enter(link);
        while let Some(step) = self.walk.step() {
            match step {
                Step::Leaf(cid) => self.plan.blocks.extend(cid.digest()),
                Step::Open { cid, new } => {
                    if new {
                        self.plan.blocks.extend(cid.digest());
                    }
                    let Some(block) = self.block(&cid)? else {
                        self.walk.give_up();
                        self.plan
                            .lacks(|| format!("what is below block {cid}: it cannot be had"));
                        continue;
                    };
                    if let Err(error) = self.walk.feed(&block) {
                        self.plan.lacks(|| error.to_string());
                    }
                }
            }
        }
        Ok(())
    }

    fn descend(&mut self, link: &ObjectLink) -> Result<(), ArchiveError> {
        let half = link.digest.split_at(16).0.to_vec();
        if self.folders.contains(&half) {
            return Ok(());
        }
        let listing = match self.listing(link) {
            Ok(Some(listing)) => tree::decode(&listing).ok(),
            Ok(None) => None,
            Err(error) => match *error {
                ReadError::Unreachable { .. } | ReadError::Open(_) => None,
                error => return Err(ArchiveError::block(error)),
            },
        };
        let Some(listing) = listing else {
            self.plan.lacks(|| {
                format!(
                    "what is in the folder {}: its listing cannot be read",
                    link.cid()
                )
            });
            return Ok(());
        };
        self.folders.insert(half);
        let below = listing.into_iter().map(|entry| (entry.kind, entry.link));
        self.todo.extend(below.rev());
        Ok(())
    }

    fn listing(&self, link: &ObjectLink) -> Result<Option<Vec<u8>>, Box<ReadError>> {
        if link.size > TREE_BYTES_MAX {
            return Ok(None);
        }
        let mut reader =
            kith_object::object::ObjectReader::new(link.clone(), self.source.opener.clone());
        let mut whole = Vec::new();
        while !reader.done() {
            let wanted = reader.wanted(BATCH);
            let mut found = BTreeMap::new();
            let (made, others): (Vec<Cid>, Vec<Cid>) = wanted
                .into_iter()
                .partition(|cid| self.plan.made.contains_key(cid));
            for cid in made {
                found.extend(self.plan.made.get(&cid).map(|block| (cid, block.clone())));
            }
            found.append(&mut self.source.blocks(&others)?);
            if let Some(cid) = others.iter().find(|cid| !found.contains_key(cid)) {
                return Err(Box::new(ReadError::Unreachable { cid: *cid }));
            }
            for (cid, block) in found {
                reader
                    .feed_verified(&cid, &block)
                    .map_err(|error| Box::new(ReadError::Open(error)))?;
            }
            while let Some(data) = reader.next() {
                whole.extend_from_slice(&data);
            }
        }
        Ok((reader.leaf_kind() == Some(kith_object::seal::Kind::Tree)).then_some(whole))
    }

    fn block(&self, cid: &Cid) -> Result<Option<Bytes>, ArchiveError> {
        if let Some(made) = self.plan.made.get(cid) {
            return Ok(Some(made.clone()));
        }
        let mut found = self.source.blocks(&[*cid]).map_err(ArchiveError::block)?;
        Ok(found.remove(cid))
    }
}

/// A node of the archive beside the blocks.
fn write_block(file: &mut NewFile, cid: &Cid, block: &[u8]) -> Result<(), ArchiveError> {
    file.write(&car::section_head(cid, block.len()))?;
    file.write(block)
}

fn lists(cids: impl Iterator<Item = Cid>) -> Vec<(Cid, Vec<u8>)> {
    let mut lists = Vec::new();
    let mut list = Vec::new();
    let end = |list: &mut Vec<Cid>, lists: &mut Vec<(Cid, Vec<u8>)>| {
        if !list.is_empty() {
            let bytes = encode_list(list);
            lists.push((node_cid(&bytes), bytes));
            list.clear();
        }
    };
    for cid in cids {
        list.push(cid);
        if list.len() == LIST_LINKS_MAX {
            end(&mut list, &mut lists);
        }
    }
    end(&mut list, &mut lists);
    lists
}

/// Writes what was planned: the record and the entries first, so that a file that is cut short can still be opened. Blocks that cannot be had are left
/// out and noted in the plan.
pub(crate) fn write_backup(
    source: &Source,
    space: SpaceId,
    plan: &mut Plan,
    read_entries: &ReadEntries<'_>,
    dest: &Path,
    force: bool,
    seen: &Seen,
) -> Result<Cid, ArchiveError> {
    let mut file = NewFile::create(dest, force)?;
    let mut entry_cids = Vec::with_capacity(plan.entries.len());
    for ids in plan.entries.chunks(BATCH) {
        for entry in in_order(read_entries, ids)? {
            entry_cids.push(Cid::of_block(&entry));
        }
    }
    let entry_lists = lists(entry_cids.iter().copied());
    let block_lists = lists(plan.blocks.iter().map(|digest| Cid::from_digest(*digest)));
    let names = |lists: &[(Cid, Vec<u8>)]| lists.iter().map(|(cid, _)| *cid).collect();
    let record = Record {
        space,
        entries: names(&entry_lists),
        blocks: names(&block_lists),
        sealed: plan.sealed.clone(),
    };
    let record = record.encode();
    if record.len() > NODE_BYTES_MAX {
        return Err(ArchiveError::TooMany);
    }
    let record_cid = node_cid(&record);
    let mut roots = vec![record_cid];
    roots.extend(&plan.roots);
    file.write(&car::header(&roots))?;
    write_block(&mut file, &record_cid, &record)?;
    for (cid, list) in &entry_lists {
        write_block(&mut file, cid, list)?;
    }
    drop(entry_lists);
    write_entries(&mut file, plan, &entry_cids, read_entries)?;
    seen.bytes.store(file.len(), Ordering::Relaxed);
    for (cid, list) in &block_lists {
        write_block(&mut file, cid, list)?;
    }
    drop(block_lists);
    let blocks = std::mem::take(&mut plan.blocks);
    for digests in blocks.chunks(BATCH) {
        let cids: Vec<Cid> = digests.iter().copied().map(Cid::from_digest).collect();
        let (made, others): (Vec<Cid>, Vec<Cid>) =
            cids.iter().partition(|cid| plan.made.contains_key(cid));
        let mut found = source.blocks(&others).map_err(ArchiveError::block)?;
        for cid in made {
            found.extend(plan.made.get(&cid).map(|block| (cid, block.clone())));
        }
        for cid in cids {
            match found.get(&cid) {
                Some(block) => {
                    write_block(&mut file, &cid, block)?;
                    seen.blocks.fetch_add(1, Ordering::Relaxed);
                }
                None => plan.lacks(|| format!("block {cid}: it cannot be had")),
            }
        }
        seen.bytes.store(file.len(), Ordering::Relaxed);
    }
    // All of the tree rests on these few bytes: they stand a second time, far from the first.
    write_entries(&mut file, plan, &entry_cids, read_entries)?;
    write_block(&mut file, &record_cid, &record)?;
    seen.bytes.store(file.len(), Ordering::Relaxed);
    file.finish()?;
    Ok(record_cid)
}

fn write_entries(
    file: &mut NewFile,
    plan: &Plan,
    cids: &[Cid],
    read_entries: &ReadEntries<'_>,
) -> Result<(), ArchiveError> {
    let mut expected = cids.iter();
    for ids in plan.entries.chunks(BATCH) {
        for entry in in_order(read_entries, ids)? {
            let cid = Cid::of_block(&entry);
            if expected.next() != Some(&cid) {
                return Err(ArchiveError::Log);
            }
            write_block(file, &cid, &entry)?;
        }
    }
    Ok(())
}

/// Those entries, all of them, in that order.
fn in_order(read_entries: &ReadEntries<'_>, ids: &[EntryId]) -> Result<Vec<Bytes>, ArchiveError> {
    let mut found: BTreeMap<EntryId, Bytes> = read_entries(ids.to_vec())?.into_iter().collect();
    let entries = ids
        .iter()
        .map(|id| found.remove(id).ok_or(ArchiveError::Log));
    entries.collect()
}
