//! Which packs there are, as the catalogue has it.
//!
//! Spec: `protocol/spec/upkeep.md`, "Packs".

use std::collections::{BTreeMap, BTreeSet};

use kith_crdt::access::Access;
use kith_crdt::catalogue::{Born, CatalogueRecord, Coded};
use kith_object::coding::Coding;
use kith_object::id::{DeviceId, EntryId, PackId};
use kith_object::pack::{Class, PACK_BYTES_MAX};
use kith_object::time::Hlc;

/// What is said of a pack.
#[derive(Debug, Default)]
struct Pack {
    bytes: u64,
    blocks: u32,
    class: u8,
    born: Vec<(Hlc, EntryId, DeviceId)>,
    retired: Vec<Retirement>,
    coded: Vec<Code>,
}

/// That a pack has shards, as somebody said it.
#[derive(Debug)]
struct Code {
    hlc: Hlc,
    entry: EntryId,
    coded: Coded,
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

    /// What was said of its shards since it came to be last: to say that anew takes it back. Whoever said it may be gone: what the shards of a pack are never changes.
    fn codes(&self) -> impl Iterator<Item = &Code> {
        let born = self.born.iter().map(|(hlc, _, _)| *hlc).max();
        self.coded
            .iter()
            .filter(move |code| born.is_some_and(|born| code.hlc >= born))
    }

    /// The first of that, if the pack is to be kept: one who lies about shards that are there already changes nothing.
    fn code(&self, access: &Access) -> Option<&Coded> {
        let first = self.codes().min_by_key(|code| (code.hlc, code.entry))?;
        self.standing(access)?.is_none().then_some(&first.coded)
    }
}

/// A pack that is a shard of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardOf<'a> {
    /// What was coded, and how.
    pub coded: &'a Coded,
    /// Which shard it is.
    pub at: usize,
    /// Whether that is the code of the pack that stands; the shards of others go once there is enough without them.
    pub stands: bool,
}

/// How it stands with a pack, as far as the catalogue goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands<'a> {
    /// It is to be kept.
    Live,
    /// A member has retired it, and said in which packs what is kept of it lies.
    Retired(&'a [PackId]),
}

fn ids(coded: &Coded) -> Vec<PackId> {
    coded.coding.ids().collect()
}

/// The fold of `born`, `retired` and `coded`, whoever said it: a function of the set of those that count.
#[derive(Debug, Default)]
pub struct Packs {
    all: BTreeMap<PackId, Pack>,
    /// Of each pack, those that it replaces, whoever said so.
    replaced: BTreeMap<PackId, BTreeSet<PackId>>,
    /// Shards, and of which packs, whoever said so.
    shards: BTreeSet<(PackId, PackId)>,
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
                    (pack.bytes, pack.blocks, pack.class) = (born.bytes, born.blocks, born.class);
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
            CatalogueRecord::Coded(coded) => {
                let id = coded.coding.pack;
                self.shards.extend(coded.coding.ids().map(|of| (of, id)));
                let pack = self.all.entry(id).or_default();
                pack.coded.push(Code {
                    hlc,
                    entry,
                    coded: coded.clone(),
                });
                self.changed.insert(id);
            }
            _ => {}
        }
    }

    /// Takes back what an entry said.
    pub(crate) fn remove(&mut self, entry: &EntryId) {
        let (changed, shards) = (&mut self.changed, &mut self.shards);
        self.all.retain(|id, pack| {
            let count = |pack: &Pack| pack.born.len() + pack.retired.len() + pack.coded.len();
            let said = count(pack);
            pack.born.retain(|(_, by, _)| by != entry);
            pack.retired.retain(|retirement| retirement.entry != *entry);
            let codes = pack.coded.len();
            let gone = pack.coded.extract_if(.., |code| code.entry == *entry);
            let gone: Vec<PackId> = gone.flat_map(|code| ids(&code.coded)).collect();
            if pack.coded.len() != codes {
                let left: BTreeSet<PackId> =
                    pack.coded.iter().flat_map(|of| ids(&of.coded)).collect();
                for shard in gone.into_iter().filter(|shard| !left.contains(shard)) {
                    shards.remove(&(shard, *id));
                    // It is met no more on the way through what the pack has.
                    changed.insert(shard);
                }
            }
            if count(pack) != said {
                changed.insert(*id);
            }
            count(pack) > 0
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

    /// How it stands with a pack that came to be, or with a shard of one, and its length.
    pub fn stands(&self, id: &PackId, access: &Access) -> Option<(Stands<'_>, u64)> {
        let (standing, bytes) = self.standing(id, access)?;
        let stands = standing.map_or(Stands::Live, |one| Stands::Retired(&one.replacements));
        Some((stands, bytes))
    }

    /// The retirement that stands, if there is one, of a pack that came to be or of that of which it is a shard, and its length.
    fn standing(&self, id: &PackId, access: &Access) -> Option<(Option<&Retirement>, u64)> {
        if let Some(pack) = self.all.get(id)
            && let Some(standing) = pack.standing(access)
        {
            return Some((standing, pack.bytes));
        }
        let (pack, code, at) = self.shard(id)?;
        Some((pack.standing(access)?, code.coding.len(at)))
    }

    /// Of what a pack that did not come to be by itself is a shard: the pack, its code, and which of its shards. Of several the first by name of the pack, and of its codes the first that has it.
    fn shard(&self, id: &PackId) -> Option<(&Pack, &Coded, usize)> {
        let of = self.shards.range((*id, PackId::default())..);
        let of = of.take_while(|(shard, _)| shard == id);
        of.filter_map(|(_, of)| {
            let pack = self.all.get(of)?;
            let codes = pack.coded.iter().filter_map(|code| {
                let at = code.coded.coding.ids().position(|shard| shard == *id)?;
                Some((code.hlc, code.entry, &code.coded, at))
            });
            let (_, _, coded, at) = codes.min_by_key(|(hlc, entry, _, _)| (*hlc, *entry))?;
            Some((pack, coded, at))
        })
        .next()
    }

    /// The shards that a pack is to have: what was said of them first since it came to be last, if it is to be kept.
    pub fn coded(&self, id: &PackId, access: &Access) -> Option<&Coded> {
        self.all.get(id)?.code(access)
    }

    /// Of what a pack is a shard, if it did not come to be by itself and what it is a shard of is to be kept. What somebody calls a shard and was born is kept as any other.
    pub fn shard_of(&self, id: &PackId, access: &Access) -> Option<ShardOf<'_>> {
        let is_born = |pack: &Pack| !pack.born.is_empty();
        if self.all.get(id).is_some_and(is_born) {
            return None;
        }
        let (pack, coded, at) = self.shard(id)?;
        pack.standing(access)?.is_none().then_some(())?;
        let standing = pack.code(access);
        let standing = standing.filter(|of| of.coding.ids().nth(at) == Some(*id));
        Some(ShardOf {
            coded: standing.unwrap_or(coded),
            at,
            stands: standing.is_some(),
        })
    }

    /// Of what a pack is parity, whether that is to be kept or not.
    pub fn parity_of(&self, id: &PackId) -> Option<&Coding> {
        let (_, coded, at) = self.shard(id)?;
        (at >= coded.coding.data.len()).then_some(&coded.coding)
    }

    /// Whether anybody has called a pack a shard of another one.
    pub fn is_shard(&self, id: &PackId) -> bool {
        let of = self.shards.range((*id, PackId::default())..);
        of.take(1).any(|(shard, _)| shard == id)
    }

    /// The packs in which all of a pack lies that a member has retired, by the retirement that stands.
    pub(crate) fn replaced_whole(&self, id: &PackId, access: &Access) -> Option<&[PackId]> {
        let (standing, _) = self.standing(id, access)?;
        let standing = standing?;
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

    /// These, and all whose standing may hang on theirs: what they replace, and what that replaces, with the shards of it; and what replaces these. None if there are more than that.
    pub(crate) fn with_replaced(
        &self,
        packs: BTreeSet<PackId>,
        most: usize,
    ) -> Option<BTreeSet<PackId>> {
        let mut todo: Vec<PackId> = packs.iter().copied().collect();
        let (mut met, mut all) = (packs.clone(), packs);
        while let Some(pack) = todo.pop() {
            let said = self.all.get(&pack);
            // Nobody misses what nobody holds, if all is held that it replaces.
            let retired = said.into_iter().flat_map(|pack| &pack.retired);
            all.extend(retired.flat_map(|one| &one.replacements).copied());
            // How it stands with a pack hangs on its shards, and with these on it.
            let coded = said.into_iter().flat_map(|pack| &pack.coded);
            let shards = coded.flat_map(|code| ids(&code.coded));
            let of = self.shards.range((pack, PackId::default())..);
            let of = of.take_while(|(shard, _)| *shard == pack);
            let of = of.map(|(_, of)| *of);
            for concerned in self.replaced_by(&pack).copied().chain(shards).chain(of) {
                if met.insert(concerned) {
                    all.insert(concerned);
                    todo.push(concerned);
                }
            }
            if all.len() > most {
                return None;
            }
        }
        Some(all)
    }

    /// Whether anybody has retired a pack, or that of which it is a shard.
    pub fn is_retired(&self, id: &PackId) -> bool {
        let is_retired = |pack: &Pack| !pack.retired.is_empty();
        self.all.get(id).is_some_and(is_retired)
            || self.shard(id).is_some_and(|(pack, _, _)| is_retired(pack))
    }

    /// What is said of a pack that came to be.
    pub(crate) fn born(&self, id: &PackId) -> Option<Born> {
        let pack = self.all.get(id).filter(|pack| !pack.born.is_empty())?;
        Some(Born {
            pack: *id,
            class: pack.class,
            blocks: pack.blocks,
            bytes: pack.bytes,
        })
    }

    /// Who said first that a pack came to be.
    pub fn author(&self, id: &PackId) -> Option<DeviceId> {
        let born = self.all.get(id)?.born.iter();
        born.min().map(|(_, _, author)| *author)
    }

    /// All that anything was said of, and shards, from one on.
    pub fn from(&self, first: PackId) -> impl Iterator<Item = PackId> {
        let mut packs = self.all.range(first..).map(|(id, _)| *id).peekable();
        let shards = self.shards.range((first, PackId::default())..);
        let mut shards = shards.map(|(shard, _)| *shard).peekable();
        std::iter::from_fn(move || {
            let next = match (packs.peek(), shards.peek()) {
                (Some(pack), Some(shard)) => *pack.min(shard),
                (Some(one), None) | (None, Some(one)) => *one,
                (None, None) => return None,
            };
            while packs.next_if_eq(&next).is_some() || shards.next_if_eq(&next).is_some() {}
            Some(next)
        })
    }

    /// How many there are at most, shards included, of which anything was said.
    pub fn len(&self) -> usize {
        self.all.len() + self.shards.len()
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
