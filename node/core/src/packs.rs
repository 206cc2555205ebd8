//! Which packs there are, as the catalogue has it.
//!
//! Spec: `protocol/spec/upkeep.md`, "Packs".

use std::collections::{BTreeMap, BTreeSet};

use kith_crdt::access::Access;
use kith_crdt::catalogue::CatalogueRecord;
use kith_object::id::{DeviceId, EntryId, PackId};
use kith_object::pack::{Class, PACK_BYTES_MAX};
use kith_object::time::Hlc;

/// What is said of a pack.
#[derive(Debug, Default)]
struct Pack {
    bytes: u64,
    born: Vec<(Hlc, EntryId, DeviceId)>,
    retired: Vec<Retirement>,
}

#[derive(Debug)]
struct Retirement {
    hlc: Hlc,
    entry: EntryId,
    author: DeviceId,
    replacements: Vec<PackId>,
    /// All of the pack lies in these.
    is_whole: bool,
}

impl Pack {
    /// The retirement that stands, if there is one, of a pack that came to be.
    fn standing(&self, access: &Access) -> Option<Option<&Retirement>> {
        let born = self.born.iter().map(|(hlc, _, _)| *hlc).max()?;
        let retired = self.retired.iter();
        // Of several that stand the first, so that all go by the same.
        let standing = retired
            .filter(|one| one.hlc >= born && access.is_member(&one.author))
            .min_by_key(|one| (one.hlc, one.entry));
        Some(standing)
    }
}

/// How it stands with a pack, as far as the catalogue goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands<'a> {
    /// It is to be kept.
    Live,
    /// A member has retired it, and said in which packs what is kept of it lies.
    Retired(&'a [PackId]),
}

/// The fold of `born` and `retired`, whoever said it: a function of the set of those that count.
#[derive(Debug, Default)]
pub struct Packs {
    all: BTreeMap<PackId, Pack>,
    /// Of each pack, those that it replaces, whoever said so.
    replaced: BTreeMap<PackId, BTreeSet<PackId>>,
    /// Packs of which something was said or taken back since the last look.
    changed: BTreeSet<PackId>,
}

impl Packs {
    /// Takes in a record that counts.
    pub(crate) fn add(
        &mut self,
        entry: EntryId,
        author: DeviceId,
        hlc: Hlc,
        record: &CatalogueRecord,
    ) {
        match record {
            CatalogueRecord::Born(born) => {
                let class = Class::from_byte(born.class);
                // What is public is kept by whom it was put by, at its owner's risk.
                let sound = class.is_some_and(|class| class != Class::Public)
                    && born.bytes <= PACK_BYTES_MAX as u64;
                if sound {
                    let pack = self.all.entry(born.pack).or_default();
                    pack.bytes = born.bytes;
                    pack.born.push((hlc, entry, author));
                    self.changed.insert(born.pack);
                }
            }
            CatalogueRecord::Retired(retired) => {
                for replacement in &retired.replacements {
                    let replaced = self.replaced.entry(*replacement).or_default();
                    replaced.insert(retired.pack);
                }
                let pack = self.all.entry(retired.pack).or_default();
                pack.retired.push(Retirement {
                    hlc,
                    entry,
                    author,
                    replacements: retired.replacements.clone(),
                    is_whole: retired.left_out.is_empty(),
                });
                self.changed.insert(retired.pack);
            }
            _ => {}
        }
    }

    /// Takes back what an entry said.
    pub(crate) fn remove(&mut self, entry: &EntryId) {
        let changed = &mut self.changed;
        self.all.retain(|id, pack| {
            let said = pack.born.len() + pack.retired.len();
            pack.born.retain(|(_, by, _)| by != entry);
            pack.retired.retain(|retirement| retirement.entry != *entry);
            if pack.born.len() + pack.retired.len() != said {
                changed.insert(*id);
            }
            !pack.born.is_empty() || !pack.retired.is_empty()
        });
        let all = &self.all;
        self.replaced.retain(|by, replaced| {
            replaced.retain(|id| {
                let retired = all.get(id).into_iter().flat_map(|pack| &pack.retired);
                retired.into_iter().any(|one| one.replacements.contains(by))
            });
            !replaced.is_empty()
        });
    }

    /// How it stands with a pack that came to be, and its length.
    pub fn stands(&self, id: &PackId, access: &Access) -> Option<(Stands<'_>, u64)> {
        let pack = self.all.get(id)?;
        let standing = pack.standing(access)?;
        let stands = standing.map_or(Stands::Live, |one| Stands::Retired(&one.replacements));
        Some((stands, pack.bytes))
    }

    /// The packs in which all of a pack lies that a member has retired, by the retirement that stands.
    pub(crate) fn replaced_whole(&self, id: &PackId, access: &Access) -> Option<&[PackId]> {
        let standing = self.all.get(id)?.standing(access)??;
        standing.is_whole.then_some(&standing.replacements[..])
    }

    /// The length of a pack that came to be and that nobody who may has retired since.
    pub fn live(&self, id: &PackId, access: &Access) -> Option<u64> {
        let (stands, bytes) = self.stands(id, access)?;
        (stands == Stands::Live).then_some(bytes)
    }

    /// Packs that a pack replaces, whoever said so.
    pub fn replaced_by(&self, id: &PackId) -> impl Iterator<Item = &PackId> {
        self.replaced.get(id).into_iter().flatten()
    }

    /// These, and all whose standing may hang on theirs: what they replace, and what that replaces. None if there are more than that.
    pub(crate) fn with_replaced(
        &self,
        packs: BTreeSet<PackId>,
        most: usize,
    ) -> Option<BTreeSet<PackId>> {
        let mut todo: Vec<PackId> = packs.iter().copied().collect();
        let mut all = packs;
        while let Some(pack) = todo.pop() {
            for replaced in self.replaced_by(&pack) {
                if all.insert(*replaced) {
                    todo.push(*replaced);
                }
                if all.len() > most {
                    return None;
                }
            }
        }
        Some(all)
    }

    /// Whether anybody has retired a pack.
    pub fn is_retired(&self, id: &PackId) -> bool {
        let pack = self.all.get(id);
        pack.is_some_and(|pack| !pack.retired.is_empty())
    }

    /// Who said first that a pack came to be.
    pub fn author(&self, id: &PackId) -> Option<DeviceId> {
        let born = self.all.get(id)?.born.iter();
        born.min().map(|(_, _, author)| *author)
    }

    /// All that anything was said of, from one on.
    pub fn from(&self, first: PackId) -> impl Iterator<Item = PackId> {
        self.all.range(first..).map(|(id, _)| *id)
    }

    /// How many there are of which anything was said.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nothing was said of any.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those of which something has changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<PackId> {
        std::mem::take(&mut self.changed)
    }
}
