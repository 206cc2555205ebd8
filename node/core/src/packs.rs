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
    retired: Vec<(Hlc, EntryId, DeviceId)>,
}

/// The fold of `born` and `retired`, whoever said it: a function of the set of those that count.
#[derive(Debug, Default)]
pub struct Packs {
    all: BTreeMap<PackId, Pack>,
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
                let pack = self.all.entry(retired.pack).or_default();
                pack.retired.push((hlc, entry, author));
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
            pack.retired.retain(|(_, by, _)| by != entry);
            if pack.born.len() + pack.retired.len() != said {
                changed.insert(*id);
            }
            !pack.born.is_empty() || !pack.retired.is_empty()
        });
    }

    /// The length of a pack that is to be kept: it came to be, and nobody who may has retired it since.
    pub fn live(&self, id: &PackId, access: &Access) -> Option<u64> {
        let pack = self.all.get(id)?;
        let born = pack.born.iter().map(|(hlc, _, _)| *hlc).max()?;
        let retired = pack.retired.iter();
        let mut standing = retired.filter(|(hlc, _, by)| *hlc >= born && access.is_member(by));
        standing.next().is_none().then_some(pack.bytes)
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
