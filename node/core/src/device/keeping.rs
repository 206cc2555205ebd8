//! What this device holds and should hold: its machines' way to the rest of the device.
//!
//! Spec: `protocol/spec/upkeep.md`, "Keeping".

use std::collections::{BTreeMap, BTreeSet};

use kith_crdt::access::Role;
use kith_crdt::catalogue::{CatalogueRecord, HolderRecord, LeavingRecord, PolicyRecord};
use kith_crdt::replica::Replica;
use kith_object::id::{DeviceId, PackId};
use kith_object::index::PackInfo;
use kith_object::store;
use kith_object::time::Time;
use kith_protocol::holdings::{self, HoldingTag, Holdings};
use kith_protocol::placement::Placement;
use kith_protocol::promise::{Digest, Message, Nonce, Promised, Refused};

use super::{CommandError, Device, Effect, KIND_HOLDINGS, KIND_PROMISES};
use crate::arrangement::{holders_of, policy_of};
use crate::keeper::{Health, Keeper, Pulled, Standing, View};
use crate::packs::Stands;
use crate::probing::{Probed, Verdict};
use crate::promises::{Action, GaveUp, Promises, Vouched};
use crate::upkeep::Upkeep;

/// Most messages about promises on the way to one device.
const PROMISES_UNDER_WAY_MAX: usize = 128;

/// What a device takes of the room there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Packs it was the first to write, that are to be kept.
    pub wrote_packs: u64,
    /// Their bytes, once.
    pub wrote: u64,
    /// And of all copies that devices say they hold.
    pub takes: u64,
    /// Packs it says it holds, whoever wrote them.
    pub held_packs: u64,
    /// Their bytes.
    pub held: u64,
}

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

    /// Whether this device says that it holds a pack.
    pub fn holds(&self, pack: &PackId) -> bool {
        let own = self.holdings.of(&self.me);
        own.is_some_and(|own| own.contains(HoldingTag::from(*pack)))
    }

    /// Whether the catalogue is to be told of a pack that came to be here. One that was found or fetched, and is known there, may be on its way out: to say it anew would call it back.
    pub fn is_untold(&self, born: &store::Born) -> bool {
        !born.found || self.is_unsaid(&born.pack)
    }

    /// Whether nothing that counts says of a pack that it came to be, or is a shard.
    fn is_unsaid(&self, pack: &PackId) -> bool {
        let (packs, own) = (self.upkeep.packs(), self.upkeep.retirements());
        packs.author(pack).is_none() && !packs.is_shard(pack) && !own.is_born(pack)
    }

    /// Of packs that lie here to stay those that the catalogue is to be told of: whoever said that they came to be was removed, and that does not count any more.
    /// Until somebody says so again, they are nobody's to repair. Those on their way out here stay so.
    pub fn untold(&self, kept: impl IntoIterator<Item = (PackId, PackInfo)>) -> Vec<store::Born> {
        let unsaid = kept.into_iter().filter(|(pack, _)| self.is_unsaid(pack));
        let untold = unsaid.filter(|(pack, _)| {
            let mut own = self.upkeep.retirements().own(self.access());
            !own.any(|retirement| retirement.pack == *pack)
        });
        let untold = untold.map(|(pack, info)| store::Born {
            pack,
            info,
            found: true,
        });
        untold.collect()
    }

    /// Whether it is for another device to collect what is garbage in a pack, or to merge it: for whom it came to be, or else for the first keyed member of those that hold it and
    /// are there. Each doing it for itself would make a copy of each copy.
    pub fn is_others_to_collect(&self, pack: &PackId) -> bool {
        let access = self.replica.access();
        let Some(author) = self.upkeep.packs().author(pack) else {
            // What lies in a shard is the business of whoever collects the pack, unless somebody only said that it is one.
            let shard = self.upkeep.packs().shard_of(pack, access);
            return shard.is_some_and(|shard| shard.stands);
        };
        let is_there = |device: &DeviceId| {
            access.is_member(device) && !self.keeper.uncounted().contains(device)
        };
        // Whoever has given its copy up has nothing to collect.
        let held = self.standing(pack).held;
        if is_there(&author) && held.contains(&author) {
            return author != self.me;
        }
        let first = held.into_iter().find(is_there);
        first.is_some_and(|first| first != self.me)
    }

    /// Counts what each device wrote and holds, of so many packs from one on; where to go on.
    pub fn count_shares(
        &self,
        from: PackId,
        most: usize,
        shares: &mut BTreeMap<DeviceId, Share>,
    ) -> Option<PackId> {
        let (access, packs) = (self.access(), self.upkeep.packs());
        let mut left = packs.from(from);
        for pack in left.by_ref().take(most) {
            let Some((stands, bytes)) = packs.stands(&pack, access) else {
                continue;
            };
            let tag = HoldingTag::from(pack);
            let mut copies = 0;
            for device in access.members.keys() {
                if self.holdings.of(device).is_some_and(|of| of.contains(tag)) {
                    let share = shares.entry(*device).or_default();
                    share.held_packs += 1;
                    share.held += bytes;
                    copies += 1;
                }
            }
            if let (Stands::Live, Some(author)) = (stands, packs.author(&pack)) {
                let share = shares.entry(author).or_default();
                share.wrote_packs += 1;
                share.wrote += bytes;
                share.takes += copies * bytes;
            }
        }
        left.next()
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
        self.probing.keep(|device| access.belongs(device));
    }

    pub(super) fn drain_holdings(&mut self) {
        while let Some(effect) = self.holdings.poll_effect() {
            match effect {
                holdings::Effect::Send { peer, bytes } => {
                    self.send_sync(peer, KIND_HOLDINGS, &bytes);
                }
                holdings::Effect::News {
                    device,
                    added,
                    removed,
                } => {
                    let packs = self.upkeep.packs();
                    for tags in [added, removed] {
                        self.keeper
                            .holdings_changed(self.now, &device, &tags, packs);
                    }
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
        let seen = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        for pull in self.keeper.work(self.now, seen) {
            for source in pull.sources() {
                self.is_of_use(source);
            }
            self.effects.push_back(Effect::Pull(pull));
        }
        for (pack, surplus) in self.keeper.take_turned() {
            self.promises.is_surplus(self.now, pack, surplus);
        }
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        self.promises.work(self.now, &self.keeper, view);
        let probes = self.probing.work(self.now, view);
        self.effects.extend(probes.into_iter().map(Effect::Probe));
        self.drain_promises();
    }

    fn drain_promises(&mut self) {
        while let Some(action) = self.promises.poll_action() {
            match action {
                Action::Send(peer, message) => {
                    let under_way = self.under_way.entry(peer).or_default().iter();
                    let messages = under_way.filter(|(kind, _)| *kind == KIND_PROMISES);
                    if messages.count() >= PROMISES_UNDER_WAY_MAX {
                        // It reads nothing, and waits in vain.
                        continue;
                    }
                    self.is_of_use(peer);
                    self.send_sync(peer, KIND_PROMISES, &message.encode());
                }
                Action::Vouch(vouch) => self.effects.push_back(Effect::Vouch(vouch)),
                Action::List(pack) => self.effects.push_back(Effect::List(pack)),
                Action::GiveUp(give_up) => self.effects.push_back(Effect::GiveUp(give_up)),
                Action::Disprove(pack, device) => {
                    self.keeper.disprove(self.now, pack, device);
                    if let Some(verdict) = self.probing.note(&device, false) {
                        self.judge_copy(pack, device, verdict);
                    }
                }
            }
        }
    }

    fn judge_copy(&mut self, pack: PackId, device: DeviceId, verdict: Verdict) {
        if verdict.is_there {
            self.keeper.prove(self.now, pack, device);
        } else {
            tracing::warn!(%pack, %device, "a device says that it holds a pack, and does not");
            self.keeper.disprove(self.now, pack, device);
        }
        self.keeper.trust(self.now, device, verdict.is_trusted);
    }

    pub(super) fn probed(&mut self, device: DeviceId, pack: PackId, how: Probed) {
        if let Some(verdict) = self.probing.probed(self.now, device, pack, how) {
            self.judge_copy(pack, device, verdict);
        }
    }

    /// What others are promised, and asked for.
    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// Takes back what was promised before the last end of this device. With damage, anything may have been.
    pub fn recall_promises(
        &mut self,
        promised: impl IntoIterator<Item = Promised>,
        is_damaged: bool,
    ) {
        self.promises.recall(self.now, promised, is_damaged);
    }

    pub(super) fn heard_of_promises(&mut self, peer: DeviceId, bytes: &[u8]) {
        let Ok(message) = Message::decode(bytes) else {
            self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "sent a malformed message about promises".to_owned(),
            });
            return;
        };
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        self.promises.received(self.now, peer, message, view);
    }

    pub(super) fn vouched(
        &mut self,
        peer: DeviceId,
        nonce: Nonce,
        outcome: Result<Vouched, Refused>,
    ) {
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        self.promises.vouched(self.now, peer, nonce, outcome, view);
    }

    pub(super) fn gave_up(&mut self, pack: PackId, how: GaveUp) {
        if how == GaveUp::Misnamed {
            self.take_code_back(pack);
        }
        self.promises.gave_up(self.now, pack, how);
    }

    pub(super) fn pulled(&mut self, pack: PackId, how: Pulled) {
        if how == Pulled::Misnamed {
            let access = self.replica.access();
            let shard = self.upkeep.packs().shard_of(&pack, access);
            if let Some(of) = shard.map(|shard| shard.coded.coding.pack) {
                self.take_code_back(of);
            }
        }
        self.keeper.pulled(self.now, pack, how);
    }

    /// A pack that lies here has other shards than somebody said. That it came to be is said anew, so that the lie counts no more and copies are kept.
    fn take_code_back(&mut self, pack: PackId) {
        let packs = self.upkeep.packs();
        // One that was retired meanwhile would be called back.
        let coded = packs.coded(&pack, self.replica.access());
        let Some(born) = coded.and_then(|_| packs.born(&pack)) else {
            return;
        };
        tracing::warn!(%pack, "a pack has other shards than somebody said");
        if let Err(error) = self.tell_catalogue(vec![CatalogueRecord::Born(born)]) {
            // It is found out again when it is tried again.
            tracing::debug!(%pack, %error, "not taken back yet");
        }
    }

    pub(super) fn listed(&mut self, pack: PackId, digests: Option<Vec<Digest>>) {
        let view = view(&self.replica, &self.upkeep, &self.holdings, &self.connected);
        self.promises
            .listed(self.now, pack, digests, &self.keeper, view);
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
