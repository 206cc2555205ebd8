//! Under which epoch, if any, a device may seal.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EpochId};
use kith_object::key::AgreeKey;

use super::Replica;
use crate::access::{Access, Role};
use crate::epoch::KeyPart;

/// Whether a device may seal, and under which epoch.
///
/// Spec: `protocol/spec/epoch.md`, "Sealing".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealState {
    /// Under this one.
    Ready(EpochId),
    /// Under none that is there.
    NeedsEpoch(NotReady),
}

/// Why no epoch will do. Of several heads it is said of the last in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotReady {
    /// Genesis has not come.
    #[error("no epoch is known yet")]
    NoEpoch,
    /// This device does not belong to the space.
    #[error("this device does not belong to the space")]
    NotMember,
    /// Its keys were not sent to this device, or have not arrived.
    #[error("the keys of the current epoch have not arrived yet")]
    Unopened,
    /// Its keys were sent to other devices than belong now.
    #[error("the current epoch is not sealed to exactly the devices that belong")]
    Recipients,
    /// Its dedup secret was known to a device that no longer belongs.
    #[error("a device that no longer belongs knows the current dedup secret")]
    Exposed,
    /// Its keys do not lead to all earlier ones, nor do those of another head, so that a newcomer could not read everything.
    #[error("the current epoch does not lead to all earlier keys")]
    Unlinked,
}

impl Replica {
    pub(super) fn renew_sealing(&mut self) {
        self.sealing = match self.me.and_then(|me| self.access.role(&me)) {
            Some(role) => self.sealing_as(role),
            None => SealState::NeedsEpoch(NotReady::NotMember),
        };
    }

    /// The epoch that a device of this role may seal under. Of several that will do, the first in order, so that devices
    /// that opened one each at the same time agree without opening yet another.
    pub(super) fn sealing_as(&self, role: Role) -> SealState {
        let wanted = recipients(&self.access, None);
        let mut reason = NotReady::NoEpoch;
        for epoch in &self.access.epoch_heads {
            match self.check_epoch(epoch, role >= Role::Member, &wanted) {
                Ok(()) => return SealState::Ready(*epoch),
                Err(why) => reason = why,
            }
        }
        SealState::NeedsEpoch(reason)
    }

    fn check_epoch(
        &self,
        epoch: &EpochId,
        keyed: bool,
        wanted: &BTreeSet<(AgreeKey, KeyPart)>,
    ) -> Result<(), NotReady> {
        // Who opened it knows its keys, also if it did not send them to itself.
        if self.verdict.epochs.get(epoch) != Some(wanted) || !self.made_by_members(epoch, None) {
            return Err(NotReady::Recipients);
        }
        if self.ring.holder(epoch).is_none() || (keyed && self.ring.member(epoch).is_none()) {
            return Err(NotReady::Unopened);
        }
        if keyed && self.is_exposed(epoch, wanted, None) {
            return Err(NotReady::Exposed);
        }
        let parts: &[KeyPart] = if keyed {
            &[KeyPart::Holder, KeyPart::Member]
        } else {
            &[KeyPart::Holder]
        };
        // A newcomer is sent the keys of every head, so it is enough that some head leads there.
        let heads = || self.access.epoch_heads.iter().copied();
        if parts
            .iter()
            .any(|part| !self.unlinked(heads(), *part).is_empty())
        {
            return Err(NotReady::Unlinked);
        }
        Ok(())
    }

    /// Whether all who opened the epoch are members now, save `except`.
    fn made_by_members(&self, epoch: &EpochId, except: Option<&DeviceId>) -> bool {
        let stays = |maker: &DeviceId| Some(maker) != except && self.access.is_member(maker);
        let makers = self.verdict.makers.get(epoch);
        makers.is_none_or(|makers| makers.iter().all(stays))
    }

    /// Whether the epoch's dedup secret was ever sent to a device that is not among those wanted now, or chosen by one that is no member, or is `except`.
    pub(super) fn is_exposed(
        &self,
        epoch: &EpochId,
        wanted: &BTreeSet<(AgreeKey, KeyPart)>,
        except: Option<&DeviceId>,
    ) -> bool {
        let Some(secret) = self.ring.member(epoch).map(|part| &part.dedup) else {
            return true;
        };
        self.verdict.epochs.iter().any(|(other, sent)| {
            let same = self
                .ring
                .member(other)
                .is_some_and(|part| part.dedup == *secret);
            let strangers = sent
                .iter()
                .any(|to| to.1 == KeyPart::Member && !wanted.contains(to));
            same && (strangers || !self.made_by_members(other, except))
        })
    }

    /// Epochs that matter, whose part this device has and the keys of these epochs do not lead to.
    pub(super) fn unlinked(
        &self,
        from: impl IntoIterator<Item = EpochId>,
        part: KeyPart,
    ) -> Vec<EpochId> {
        let reached = self.ring.reached(from, part);
        let has = |epoch: &EpochId| match part {
            KeyPart::Holder => self.ring.holder(epoch).is_some(),
            KeyPart::Member => self.ring.member(epoch).is_some(),
        };
        let matter: BTreeSet<&EpochId> =
            self.verdict.epochs.keys().chain(self.used.keys()).collect();
        matter
            .into_iter()
            .filter(|epoch| has(epoch) && !reached.contains(epoch))
            .copied()
            .collect()
    }
}

/// Who is to have which part: every device that belongs, save `except`, and the recovery key.
pub(super) fn recipients(
    access: &Access,
    except: Option<&DeviceId>,
) -> BTreeSet<(AgreeKey, KeyPart)> {
    let mut list = BTreeSet::new();
    for (device, member) in &access.members {
        if let Some(agree) = member.agree.filter(|_| Some(device) != except) {
            list.insert((agree, KeyPart::Holder));
            if member.role >= Role::Member {
                list.insert((agree, KeyPart::Member));
            }
        }
    }
    if let Some(recovery) = access.recovery {
        list.extend([(recovery, KeyPart::Holder), (recovery, KeyPart::Member)]);
    }
    list
}
