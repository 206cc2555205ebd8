//! Packs that have shards: who should hold which, what they are worth together, and how a shard comes to be where it should.
//!
//! Spec: `protocol/spec/upkeep.md`, "Packs that are coded".

use kith_crdt::catalogue::Coded;
use kith_object::coding::Coding;
use kith_object::id::{DeviceId, PackId};

use super::{Keeper, KeptBy, SOURCES_MAX, ShardsKept, View};
use crate::packs::ShardOf;

/// How a pack comes here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As it is, from devices that have it and are connected.
    Whole(Vec<DeviceId>),
    /// As a shard of a pack that lies here.
    Cut(Shard),
    /// Made of others, which lie here or with devices that are connected.
    Restored {
        /// Which shard it is; none if it is the pack itself.
        at: Option<usize>,
        /// All of them.
        coding: Coding,
        /// As many as it takes, and who has each; nobody where it lies here.
        from: Vec<(usize, Vec<DeviceId>)>,
    },
}

/// A shard of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Which.
    pub at: usize,
    /// All of them.
    pub coding: Coding,
}

/// How the shards of a pack lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lie {
    /// Who should hold each; nobody where there are too few holders.
    placed: Vec<Option<DeviceId>>,
    /// How many lie where they should.
    pub(super) settled: usize,
    /// How many lie anywhere with one that counts.
    pub(super) left: usize,
    /// How many restore the pack.
    pub(super) needed: usize,
}

impl Lie {
    /// How many copies of the pack they are worth: one more than the devices that may be lost.
    pub(super) fn worth(&self) -> usize {
        (self.settled + 1).saturating_sub(self.needed)
    }

    /// Whether enough are left to restore the pack and all others.
    pub(super) fn restore(&self) -> bool {
        self.left >= self.needed
    }

    /// What they are worth once each lies where it should.
    pub(super) fn may_be_worth(&self) -> usize {
        let placed = self.placed.iter().flatten().count();
        (placed + 1).saturating_sub(self.needed)
    }

    /// Whether each lies where it should.
    pub(super) fn is_whole(&self) -> bool {
        self.settled == self.placed.len()
    }
}

impl Keeper {
    /// How the shards of a pack lie, as far as that is known.
    pub(super) fn lie(&self, coded: &Coded, view: View<'_>) -> Lie {
        let placed = self.shard_places(coded, view);
        let (mut settled, mut left) = (0, 0);
        for (id, place) in coded.coding.ids().zip(&placed) {
            let mut is_left = false;
            for holder in self.holders(&id, view) {
                is_left |= !self.uncounted.contains(&holder);
                settled += usize::from(Some(holder) == *place);
            }
            left += usize::from(is_left);
        }
        Lie {
            placed,
            settled,
            left,
            needed: coded.coding.data.len(),
        }
    }

    fn shard_places(&self, coded: &Coded, view: View<'_>) -> Vec<Option<DeviceId>> {
        let Some(placement) = &self.placement else {
            return vec![None; coded.devices.len()];
        };
        let ids: Vec<PackId> = coded.coding.ids().collect();
        placement.shards(&coded.coding.pack, &coded.devices, |at, device| {
            let id = ids.get(at);
            id.is_some_and(|id| self.holders(id, view).any(|holder| holder == *device))
        })
    }

    /// Who should hold a shard.
    pub(super) fn shard_place(&self, shard: ShardOf<'_>, view: View<'_>) -> Option<DeviceId> {
        // What another code wanted is nowhere wanted any more.
        let places = self.shard_places(shard.coded, view);
        places
            .get(shard.at)
            .copied()
            .flatten()
            .filter(|_| shard.stands)
    }

    /// Who keeps the shards of a pack that are not here, if each lies where it should and they are worth as much as the policy wants.
    pub(super) fn shards_kept(&self, coded: &Coded, view: View<'_>) -> Option<ShardsKept> {
        let lie = self.lie(coded, view);
        if lie.worth() < self.copies() || !lie.is_whole() {
            return None;
        }
        let placed = coded.coding.ids().zip(lie.placed);
        let kept = placed.filter_map(|(pack, place)| {
            let devices = vec![place.filter(|place| *place != self.me)?];
            Some(KeptBy { pack, devices })
        });
        let kept: Vec<KeptBy> = kept.collect();
        let coding = coded.coding.clone();
        (!kept.is_empty()).then_some(ShardsKept { coding, kept })
    }

    /// Whether a pack is to be kept as shards alone, which all lie where they should.
    pub(super) fn is_in_shards(&self, pack: &PackId, view: View<'_>) -> bool {
        let coded = view.packs.coded(pack, view.access);
        coded.is_some_and(|coded| {
            let lie = self.lie(coded, view);
            lie.is_whole() && lie.worth() >= self.copies()
        })
    }

    /// Whether anybody is known to hold a data shard.
    pub(super) fn is_left(&self, coding: &Coding, view: View<'_>) -> bool {
        let mut data = coding.data.iter();
        data.any(|shard| self.holders(&shard.id, view).next().is_some())
    }

    /// Whether it is for this device to make a shard that somebody else should hold: nobody within reach has it, the one who should does not have the pack, and this device is the first within reach that does.
    pub(super) fn is_maker(&self, id: &PackId, shard: ShardOf<'_>, view: View<'_>) -> bool {
        let place = self.shard_place(shard, view);
        // Who has it and is away may be so for good.
        if place.is_none() || self.is_own(id, view) || !self.sources(id, view).is_empty() {
            return false;
        }
        let holders: Vec<DeviceId> = self.holders(&shard.coded.coding.pack, view).collect();
        let has_pack = place.is_some_and(|place| holders.contains(&place));
        let is_there = |device: &DeviceId| *device == self.me || view.connected.contains(device);
        !has_pack && holders.into_iter().find(is_there) == Some(self.me)
    }

    /// How a pack that this device wants can come here now; none if it cannot.
    pub(super) fn way(&self, pack: &PackId, view: View<'_>) -> Option<Way> {
        let shard = view.packs.shard_of(pack, view.access);
        if let Some(shard) = shard
            && self.is_own(&shard.coded.coding.pack, view)
        {
            return Some(Way::Cut(Shard {
                at: shard.at,
                coding: shard.coded.coding.clone(),
            }));
        }
        let sources = self.sources(pack, view);
        if !sources.is_empty() {
            return Some(Way::Whole(sources));
        }
        let coded = match shard {
            Some(shard) => shard.coded,
            None => view.packs.coded(pack, view.access)?,
        };
        // Whoever has the pack makes its shards without anybody's help.
        if shard.is_some() && !self.sources(&coded.coding.pack, view).is_empty() {
            return None;
        }
        let mut from = Vec::new();
        for (at, id) in coded.coding.ids().enumerate() {
            let sources = self.sources(&id, view);
            if self.is_own(&id, view) {
                from.push((at, Vec::new()));
            } else if !sources.is_empty() {
                from.push((at, sources));
            }
        }
        // What lies here costs nothing, and of data shards nothing has to be computed.
        from.sort_by_key(|(at, sources)| (!sources.is_empty(), *at));
        from.truncate(coded.coding.data.len());
        let is_enough = from.len() == coded.coding.data.len();
        is_enough.then(|| Way::Restored {
            at: shard.map(|shard| shard.at),
            coding: coded.coding.clone(),
            from,
        })
    }

    /// Whether this device holds a pack.
    fn is_own(&self, pack: &PackId, view: View<'_>) -> bool {
        self.holders(pack, view).any(|holder| holder == self.me)
    }

    /// Connected devices that hold a pack.
    fn sources(&self, pack: &PackId, view: View<'_>) -> Vec<DeviceId> {
        let sources = self.holders(pack, view);
        let sources = sources.filter(|device| view.connected.contains(device));
        sources.take(SOURCES_MAX).collect()
    }
}
