//! Under which epoch, if any, a device may seal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use kith_object::id::{DeviceId, EpochId, SpaceId};
use kith_object::key::{AgreeKey, derive};
use zeroize::Zeroizing;

use super::Replica;
use crate::access::{Access, Role};
use crate::epoch::{Envelope, KeyPart, PART_LEN};

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
    /// An envelope of it does not hold its keys: who opened it keeps them from a device or from the words.
    #[error("an envelope of the current epoch does not hold its keys")]
    False,
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

/// What envelopes must hold, as far as that was ever asked: hashes of their sealed bytes.
///
/// Everybody who has a part of an epoch comes to the same, so many replicas in one process, as in the simulator, may share what one has worked out
/// ([`Replica::share_resealed`]): each of a thousand would have to seal to each other.
#[derive(Clone, Debug, Default)]
pub struct Resealed(Arc<Mutex<BTreeMap<Asked, [u8; 32]>>>);

/// A hash over space, epoch and the keys of the part; recipient, part.
type Asked = ([u8; 32], AgreeKey, KeyPart);

impl Resealed {
    /// Hashes of the envelopes of these keys, by recipient: what goes into all of them is hashed once.
    fn prints(
        &self,
        space: &SpaceId,
        epoch: EpochId,
        part: KeyPart,
        keys: &[u8; PART_LEN],
    ) -> impl Fn(AgreeKey) -> [u8; 32] {
        let material = Zeroizing::new([space.0.as_slice(), &epoch.0, keys.as_slice()].concat());
        let of = derive("kith resealed 1", &material);
        move |recipient| {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *known.entry((of, recipient, part)).or_insert_with(|| {
                let made = Envelope::seal(space, epoch, recipient, part, keys);
                made.map_or([0; 32], |made| made.fingerprint())
            })
        }
    }
}

/// Epochs looked at before a new one is opened: a member that heaps up unfit ones finds an end here.
const EPOCHS_WEIGHED_MAX: usize = 1024;

/// A removal opens an epoch that the removed device has no part in; but for one planted defect.
pub(super) const KEEPS_OUT: bool = !cfg!(planted = "seal-to-the-removed");

impl Replica {
    /// Shares what envelopes must hold with the other replicas that are given the same.
    pub fn share_resealed(&mut self, with: &Resealed) {
        self.resealed = with.clone();
    }

    pub(super) fn renew_sealing(&mut self) {
        self.sealing = match self.me.and_then(|me| self.access.role(&me)) {
            Some(role) => self.sealing_as(role),
            None => SealState::NeedsEpoch(NotReady::NotMember),
        };
    }

    /// The epoch that a device of this role may seal under: one that is fit and that no other fit one follows. Of several,
    /// the first in order, so that devices that opened one each at the same time agree without opening yet another.
    ///
    /// Unfit followers do not matter as long as nothing is sealed under them: what makes an epoch fit is judged by who
    /// belongs now. So a member that opens one unfit epoch after another makes nobody answer each with one more.
    pub(super) fn sealing_as(&mut self, role: Role) -> SealState {
        let wanted = recipients(&self.access, None);
        let mut reason = NotReady::NoEpoch;
        let heads: BTreeSet<EpochId> = self.access.epoch_heads.clone();
        for epoch in &heads {
            match self.check_epoch(epoch, role >= Role::Member, &wanted) {
                Ok(()) => return SealState::Ready(*epoch),
                Err(why) => reason = why,
            }
        }
        // No head will do: those before them, each once all that follow it were found unfit.
        let mut followers: BTreeMap<EpochId, usize> = BTreeMap::new();
        for epoch in self.verdict.epochs.keys() {
            for parent in self.ring.parents(epoch) {
                *followers.entry(*parent).or_default() += 1;
            }
        }
        let mut layer = heads;
        let mut left = EPOCHS_WEIGHED_MAX;
        while !layer.is_empty() {
            let mut before = BTreeSet::new();
            for parent in layer.iter().flat_map(|epoch| self.ring.parents(epoch)) {
                if let Some(count) = followers.get_mut(parent) {
                    *count -= 1;
                    if *count == 0 && self.verdict.epochs.contains_key(parent) {
                        before.insert(*parent);
                    }
                }
            }
            for epoch in &before {
                if left == 0 {
                    return SealState::NeedsEpoch(reason);
                }
                left -= 1;
                if self
                    .check_epoch(epoch, role >= Role::Member, &wanted)
                    .is_ok()
                {
                    return SealState::Ready(*epoch);
                }
            }
            layer = before;
        }
        SealState::NeedsEpoch(reason)
    }

    fn check_epoch(
        &mut self,
        epoch: &EpochId,
        keyed: bool,
        wanted: &BTreeSet<(AgreeKey, KeyPart)>,
    ) -> Result<(), NotReady> {
        // Who opened it knows its keys, also if it did not send them to itself.
        let sent = self.verdict.epochs.get(epoch);
        let fits = |sent: &BTreeSet<_>| sent == wanted || !KEEPS_OUT && sent.is_superset(wanted);
        if !sent.is_some_and(fits) || !self.made_by_members(epoch, None) {
            return Err(NotReady::Recipients);
        }
        let parts: &[KeyPart] = if keyed {
            &[KeyPart::Holder, KeyPart::Member]
        } else {
            &[KeyPart::Holder]
        };
        for part in parts {
            if self.ring.part(epoch, *part).is_none() {
                // All envelopes are here. If one of them is to a secret of ours, it does not hold what it should.
                let ours =
                    |(to, of): &(AgreeKey, KeyPart)| of == part && self.ring.is_sealed_to(to);
                let sent = wanted.iter().any(ours);
                return Err(if sent {
                    NotReady::False
                } else {
                    NotReady::Unopened
                });
            }
        }
        if keyed && KEEPS_OUT && self.is_exposed(epoch, wanted, None) {
            return Err(NotReady::Exposed);
        }
        if parts
            .iter()
            .any(|part| !self.leads_far_enough(epoch, *part))
        {
            return Err(NotReady::Unlinked);
        }
        if parts.iter().any(|part| self.is_false(epoch, *part, wanted)) {
            return Err(NotReady::False);
        }
        Ok(())
    }

    /// Whether those who are sent this epoch's keys can read everything.
    fn leads_far_enough(&mut self, epoch: &EpochId, part: KeyPart) -> bool {
        let heads = &self.access.epoch_heads;
        if heads.contains(epoch) {
            // A newcomer is sent the keys of every head, so it is enough that some head leads there.
            return self.unlinked(heads.iter().copied(), part).is_empty();
        }
        // What others wrote under a follower must be read too, so there is no way back behind it. Who writes under one
        // that it made false itself keeps nobody from going on without it.
        let reached = self.ring.reached([*epoch], part);
        let beyond: Vec<EpochId> = self
            .used
            .keys()
            .filter(|other| **other != EpochId::default() && !reached.contains(other))
            .copied()
            .collect();
        beyond.into_iter().all(|other| self.is_made_false(&other))
    }

    /// Whether the epoch withholds its keys from one it claims to be sealed to, as far as this device can tell.
    fn is_made_false(&mut self, epoch: &EpochId) -> bool {
        let Some(claimed) = self.verdict.epochs.get(epoch).cloned() else {
            return false;
        };
        [KeyPart::Holder, KeyPart::Member].into_iter().any(|part| {
            if self.ring.part(epoch, part).is_some() {
                return self.is_false(epoch, part, &claimed);
            }
            claimed
                .iter()
                .any(|(to, of)| *of == part && self.ring.is_sealed_to(to))
        })
    }

    /// Whether one of those who are to have this part has no envelope that holds it.
    ///
    /// Everybody who has the part comes to the same bytes, so an envelope to another can be tested without its secret.
    /// Several envelopes to one key may stand in several entries; one that is true is enough.
    fn is_false(
        &mut self,
        epoch: &EpochId,
        part: KeyPart,
        wanted: &BTreeSet<(AgreeKey, KeyPart)>,
    ) -> bool {
        let Some(keys) = self.ring.part(epoch, part) else {
            return true;
        };
        let mut missing: BTreeSet<AgreeKey> = wanted
            .iter()
            .filter(|(_, of)| *of == part)
            .map(|(to, _)| *to)
            .collect();
        let print = self.resealed.prints(&self.space, *epoch, part, &keys);
        let places = self.verdict.envelopes.get(epoch);
        let contents = places
            .into_iter()
            .flatten()
            .filter_map(|place| {
                self.entries
                    .get(usize::try_from(*place).ok()?)?
                    .content
                    .as_deref()
            })
            .flat_map(|content| &content.envelopes);
        for envelope in contents.filter(|other| other.epoch == *epoch && other.part == part) {
            if !missing.contains(&envelope.recipient) {
                continue;
            }
            if print(envelope.recipient) == envelope.fingerprint() {
                missing.remove(&envelope.recipient);
            }
        }
        !missing.is_empty()
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
