//! In which packs an object lies.
//!
//! Spec: `protocol/spec/upkeep.md`, "Telling".

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_object::id::{Cid, PackId};
use kith_object::index::Index;
use kith_object::object::{BlockWalk, ObjectLink, Step};
use kith_object::seal::Kind;
use kith_object::store::StoreError;
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX};
use kith_protocol::bulk::place::DIGESTS_MAX;

use crate::bulk::Bulk;
use crate::source::{ReadError, Source};

/// Most blocks that are not here whose packs are asked for; the rest are counted.
const ASKED_MAX: usize = 16 * DIGESTS_MAX;

/// What an object is, and where it begins.
pub(crate) type Root = (FileKind, ObjectLink);

/// In which packs an object lies.
#[derive(Debug, Default)]
pub(crate) struct Whereabouts {
    /// Packs, and how many of its blocks lie in each.
    pub(crate) packs: BTreeMap<PackId, u64>,
    /// Blocks that lie here in no closed pack.
    pub(crate) open: u64,
    /// Blocks of which no place is known; what is below them is not counted.
    pub(crate) missing: u64,
}

/// Looks here, and asks the others for what is not. On a thread that may block.
pub(crate) fn of(
    source: &Source,
    bulk: Option<Bulk>,
    roots: Vec<Root>,
) -> Result<Whereabouts, ReadError> {
    let mut look = Look {
        source,
        found: Whereabouts::default(),
        absent: Vec::new(),
        given_up: source.store.given_up(),
    };
    let mut folders = BTreeSet::new();
    let mut todo = roots;
    let mut walk = BlockWalk::new(source.opener.clone());
    while let Some((kind, link)) = todo.pop() {
        look.object(&mut walk, &link)?;
        if kind == FileKind::Folder && folders.insert(link.cid()) {
            todo.extend(look.below(&link)?);
        }
    }
    let Look {
        mut found, absent, ..
    } = look;
    for cids in absent.chunks(DIGESTS_MAX) {
        let asked = bulk.as_ref();
        let places = asked.map_or_else(Vec::new, |bulk| bulk.runtime.block_on(bulk.places(cids)));
        let mut told = 0;
        for place in places {
            let wanted = u64::from(place.wanted);
            *found.packs.entry(place.pack).or_default() += wanted;
            told += wanted;
        }
        let asked = u64::try_from(cids.len()).unwrap_or(u64::MAX);
        found.missing += asked.saturating_sub(told);
    }
    Ok(found)
}

struct Look<'a> {
    source: &'a Source,
    found: Whereabouts,
    absent: Vec<Cid>,
    given_up: BTreeSet<PackId>,
}

impl Look<'_> {
    fn object(&mut self, walk: &mut BlockWalk, link: &ObjectLink) -> Result<(), ReadError> {
        walk.enter(link);
        while let Some(step) = walk.step() {
            match step {
                Step::Leaf(cid) => self.note(&cid)?,
                Step::Open { cid, new } => {
                    if new {
                        self.note(&cid)?;
                    }
                    match self.block(&cid)? {
                        // What does not open hides nothing: it was listed.
                        Some(block) => drop(walk.feed(&block)),
                        None => walk.give_up(),
                    }
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, cid: &Cid) -> Result<(), ReadError> {
        let store = &self.source.store;
        let packs = store.replacements(&[*cid]).map_err(ReadError::Store)?;
        let is_open = || store.lies_live(cid).map_err(ReadError::Store);
        let pack = match packs.and_then(|packs| packs.first().copied()) {
            None if !is_open()? => self.given_up(cid)?,
            pack => pack,
        };
        match pack {
            Some(pack) => *self.found.packs.entry(pack).or_default() += 1,
            None if is_open()? => self.found.open += 1,
            None if self.absent.len() < ASKED_MAX => self.absent.push(*cid),
            None => self.found.missing += 1,
        }
        Ok(())
    }

    /// The pack that was given up here, of those that a block lies in: others keep it, and it can be read here for now.
    fn given_up(&self, cid: &Cid) -> Result<Option<PackId>, ReadError> {
        if self.given_up.is_empty() {
            return Ok(None);
        }
        let places = self.source.store.index().locations(cid);
        let places = places.map_err(|source| ReadError::Store(StoreError::Index { source }))?;
        let mut packs = places.into_iter().map(|place| place.pack);
        Ok(packs.find(|pack| self.given_up.contains(pack)))
    }

    /// A block that has to be read to go on, from here or from others.
    fn block(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        match self.source.store.get(cid) {
            Ok(Some(block)) => return Ok(Some(block)),
            Ok(None) | Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(ReadError::Store(error)),
        }
        Ok(self.source.blocks(&[*cid])?.remove(cid))
    }

    /// What a folder's listing names, if it can be had.
    fn below(&self, link: &ObjectLink) -> Result<Vec<Root>, ReadError> {
        let entries = match self.source.read_whole(link, TREE_BYTES_MAX) {
            Ok(Some((whole, Some(Kind::Tree)))) => tree::decode(&whole).unwrap_or_default(),
            Ok(_) | Err(ReadError::Unreachable { .. } | ReadError::Open(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let roots = entries.into_iter().map(|entry| (entry.kind, entry.link));
        Ok(roots.collect())
    }
}
