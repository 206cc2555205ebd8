//! What this device holds and should hold: its machines' way to the rest of the device.
//!
//! Spec: `protocol/spec/upkeep.md`, "Keeping".

use std::collections::BTreeSet;

use kith_crdt::access::Role;
use kith_crdt::catalogue::{CatalogueRecord, HolderRecord, LeavingRecord, PolicyRecord};
use kith_crdt::replica::Replica;
use kith_object::id::{DeviceId, PackId};
use kith_object::time::Time;
use kith_protocol::holdings::{self, Holdings};
use kith_protocol::placement::Placement;

use super::{CommandError, Device, Effect, KIND_HOLDINGS};
use crate::arrangement::{holders_of, policy_of};
use crate::keeper::{Health, Keeper, Standing, View};
use crate::upkeep::Upkeep;

impl Device {
    /// What every device holds.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// What this device should hold.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// How well packs are kept, as far as this device knows.
    pub fn health(&self) -> Health {
        self.keeper.health(self.now)
    }

    /// What there is of a pack.
    pub fn standing(&self, pack: &PackId) -> Standing {
        self.keeper.standing(pack, self.view())
    }

    /// Whether another device has retired a pack that is to be kept no more, as far as the catalogue goes.
    pub fn is_superseded(&self, pack: &PackId) -> bool {
        let (packs, access) = (self.upkeep.packs(), self.replica.access());
        packs.is_retired(pack) && packs.live(pack, access).is_none()
    }

    /// Whether it is for another device to collect what is garbage in a pack, or to merge it: for whom it came to be, or else for the first keyed member of those that hold it and
    /// are there. Each doing it for itself would make a copy of each copy.
    pub fn is_others_to_collect(&self, pack: &PackId) -> bool {
        let access = self.replica.access();
        let Some(author) = self.upkeep.packs().author(pack) else {
            return false;
        };
        let is_there = |device: &DeviceId| {
            access.is_member(device) && !self.keeper.uncounted().contains(device)
        };
        if is_there(&author) {
            return author != self.me;
        }
        let standing = self.standing(pack);
        let first = standing.held.into_iter().find(is_there);
        first.is_some_and(|first| first != self.me)
    }

    /// Takes back what was kept of other devices' holdings.
    pub fn recall_holdings(&mut self, kept: &[u8]) {
        self.holdings.recall(kept);
        self.drain_holdings();
        self.keep();
    }

    fn view(&self) -> View<'_> {
        view(&self.replica, &self.upkeep, &self.holdings, &self.connected)
    }

    /// Draws the consequences of what was arranged, or of who belongs.
    pub(super) fn arrange(&mut self) {
        let access = self.replica.access();
        let members = access.members.keys().copied().collect();
        self.holdings
            .handle(self.now, holdings::Input::Members(members));
        let arrangement = self.upkeep.arrangement();
        let (givers, policy) = (arrangement.givers(access), arrangement.policy(access));
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        self.keeper.arrange(self.now, givers, policy, view);
    }

    pub(super) fn drain_holdings(&mut self) {
        while let Some(effect) = self.holdings.poll_effect() {
            match effect {
                holdings::Effect::Send { peer, bytes } => {
                    self.send_sync(peer, KIND_HOLDINGS, &bytes);
                }
                holdings::Effect::News { added, removed, .. } => {
                    let packs = self.upkeep.packs();
                    self.keeper.holdings_changed(self.now, &added, packs);
                    self.keeper.holdings_changed(self.now, &removed, packs);
                }
                holdings::Effect::Disconnect { peer, reason } => {
                    let reason = reason.to_owned();
                    self.effects.push_back(Effect::Disconnect { peer, reason });
                }
            }
        }
    }

    /// Looks at what is due, and has fetched what should be here.
    pub(super) fn keep(&mut self) {
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        for pull in self.keeper.work(self.now, view) {
            for source in &pull.sources {
                self.is_of_use(*source);
            }
            self.effects.push_back(Effect::Pull(pull));
        }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.access().role(&self.me) == Some(Role::Admin)
    }

    pub(super) fn set_policy(&mut self, policy: PolicyRecord) -> Result<(), CommandError> {
        if !self.is_admin() {
            return Err(CommandError::OnlyAdmins("where packs are kept"));
        }
        Placement::new(&holders_of(self.keeper.givers()), &policy_of(&policy))?;
        self.tell_catalogue(vec![CatalogueRecord::Policy(policy.clone())])?;
        let access = self.replica.access();
        match self.upkeep.arrangement().policy_record(access) {
            Some(holds) if holds == policy => Ok(()),
            _ => Err(CommandError::Outrun),
        }
    }

    pub(super) fn set_holder(&mut self, holder: HolderRecord) -> Result<(), CommandError> {
        if holder.device != self.me && !self.is_admin() {
            return Err(CommandError::OnlyAdmins("what another device gives"));
        }
        if !self.access().belongs(&holder.device) {
            return Err(CommandError::NoDevice(holder.device));
        }
        self.tell_catalogue(vec![CatalogueRecord::Holder(holder.clone())])?;
        let givers = self.upkeep.arrangement().givers(self.replica.access());
        let holds = givers.get(&holder.device).is_some_and(|giver| {
            (giver.capacity, &giver.site) == (holder.capacity, &holder.site)
                && giver.grace.as_ms() == 1000 * u64::from(holder.grace)
        });
        if holds {
            Ok(())
        } else {
            Err(CommandError::Outrun)
        }
    }

    pub(super) fn set_leaving(&mut self, leaving: LeavingRecord) -> Result<(), CommandError> {
        if !self.is_admin() {
            return Err(CommandError::OnlyAdmins("whether a device stays"));
        }
        if !self.access().belongs(&leaving.device) {
            return Err(CommandError::NoDevice(leaving.device));
        }
        self.tell_catalogue(vec![CatalogueRecord::Leaving(leaving)])?;
        let givers = self.upkeep.arrangement().givers(self.replica.access());
        let said = givers.get(&leaving.device).map(|giver| giver.leaving.0);
        if said == Some(leaving.leaving) {
            Ok(())
        } else {
            Err(CommandError::Outrun)
        }
    }

    /// When a device gave its last sign of life, as far as this one knows.
    pub fn heard(&self, device: &DeviceId) -> Option<Time> {
        if self.connected.contains(device) {
            return Some(self.now);
        }
        self.holdings.heard(device)
    }
}

/// What the keeper sees of a device, apart from itself.
fn view<'a>(
    replica: &'a Replica,
    upkeep: &'a Upkeep,
    holdings: &'a Holdings,
    connected: &'a BTreeSet<DeviceId>,
) -> View<'a> {
    View {
        access: replica.access(),
        packs: upkeep.packs(),
        holdings,
        connected,
    }
}
