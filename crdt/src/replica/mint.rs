//! Opens epochs: fresh keys, sealed to those who belong, that lead to all earlier ones.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EpochId};
use kith_object::key::{AgreeKey, Rng};
use kith_object::time::Time;
use zeroize::Zeroizing;

use super::author::AuthorError;
use super::seal::recipients;
use super::slot::Signer;
use super::{NotReady, Replica, SealState};
use crate::access::bits::Bits;
use crate::access::fold::access_limits;
use crate::access::{Opened, Role};
use crate::chain::{Codec, DocumentKind, Plain, SealKind};
use crate::epoch::{
    Envelope, EpochRecord, HolderPart, KeyPart, LINKS_MAX, Link, MemberPart, PARENTS_MAX,
};

/// Epochs opened in a row before an entry is given up: each links as many earlier ones as fit.
const MINTS_MAX: usize = 8;

/// An epoch in the making.
pub(super) struct Minted {
    pub(super) record: EpochRecord,
    pub(super) links: Vec<Link>,
    pub(super) envelopes: Vec<Envelope>,
}

impl Replica {
    /// An epoch to seal under; opens one if none will do and this author can.
    pub(super) fn ready(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
    ) -> Result<EpochId, AuthorError> {
        let mut minted = 0;
        loop {
            let role = self.role_of(signer);
            match self.sealing_as(role) {
                SealState::Ready(epoch) => return Ok(epoch),
                SealState::NeedsEpoch(why) => {
                    let waits = matches!(
                        why,
                        NotReady::Unopened | NotReady::NoEpoch | NotReady::NotMember
                    );
                    if waits || role < Role::Member || minted == MINTS_MAX {
                        return Err(AuthorError::NotReady(why));
                    }
                    self.mint_as(signer, now, rng)?;
                    minted += 1;
                }
            }
        }
    }

    pub(super) fn mint_as(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
    ) -> Result<(), AuthorError> {
        if self.is_spent(signer) {
            return Err(AuthorError::Spent);
        }
        let to = recipients(&self.access, None);
        let slot = self.slot(signer, DocumentKind::Access, EpochId::default(), now, rng);
        let Minted {
            record,
            links,
            envelopes,
        } = self.minted(&slot.past, &to, None, rng)?;
        let open = Opened {
            epoch: Some(record),
            links,
            envelopes,
            ..Opened::default()
        };
        self.commit(signer, slot, vec![open_part(&open)], rng)
    }

    /// Whether another epoch by this author would bring it near the limits beyond which it counts as a flooder. An enemy that
    /// provokes one epoch after another must not drive an honest device out.
    fn is_spent(&self, signer: Signer<'_>) -> bool {
        let role = self.role_of(signer);
        let (entries_max, bytes_max) = access_limits(role);
        if role == Role::Admin {
            return false;
        }
        let (mut entries, mut bytes) = (0usize, 0usize);
        for node in self
            .entries
            .iter()
            .filter_map(|entry| self.node(entry.node))
        {
            if node.author == signer.id {
                entries += 1;
                bytes =
                    bytes.saturating_add(usize::try_from(node.payload_len).unwrap_or(usize::MAX));
            }
        }
        // What is left is for the largest epoch there can be, and for leaving.
        entries + entries_max / 16 >= entries_max || bytes + bytes_max / 8 >= bytes_max
    }

    /// Fresh keys, sealed to these, that lead to all earlier ones.
    pub(super) fn minted(
        &self,
        past: &Bits,
        to: &BTreeSet<(AgreeKey, KeyPart)>,
        except: Option<&DeviceId>,
        rng: &mut Rng,
    ) -> Result<Minted, AuthorError> {
        let heads = &self.access.epoch_heads;
        let opened = heads.iter().filter(|epoch| self.is_opened_in(epoch, past));
        let parents: Vec<EpochId> = opened.take(PARENTS_MAX).copied().collect();
        let Some(first) = parents.first() else {
            return Err(AuthorError::NotReady(NotReady::NoEpoch));
        };
        // The dedup secret goes on if all heads share it and nobody has it who must not.
        let carried = self
            .ring
            .member(first)
            .map(|part| part.dedup.clone())
            .filter(|secret| {
                let shared = |epoch: &EpochId| {
                    self.ring
                        .member(epoch)
                        .is_some_and(|part| part.dedup == *secret)
                };
                heads.iter().all(shared) && !self.is_exposed(first, to, except)
            });
        let (holder, member) = (
            HolderPart::generate(rng),
            MemberPart::generate(carried, rng),
        );
        let record = EpochRecord {
            holder: holder.commitment(),
            member: member.commitment(),
            parents,
        };
        let id = record.id(&self.space);
        let mut links = Vec::new();
        let mut link_all = |part: KeyPart, earlier: Vec<EpochId>| {
            for earlier in earlier {
                let (key, keys) = match part {
                    KeyPart::Holder => (
                        &holder.key,
                        self.ring.holder(&earlier).map(HolderPart::to_bytes),
                    ),
                    KeyPart::Member => (
                        &member.change,
                        self.ring.member(&earlier).map(MemberPart::to_bytes),
                    ),
                };
                if let Some(keys) = keys.filter(|_| links.len() < LINKS_MAX) {
                    links.push(Link::seal(
                        &self.space,
                        (id, key),
                        (earlier, &keys),
                        part,
                        rng,
                    ));
                }
            }
        };
        let parts = [KeyPart::Holder, KeyPart::Member];
        for part in parts {
            link_all(part, record.parents.clone());
        }
        for part in parts {
            let others = self.unlinked(record.parents.iter().copied(), part);
            link_all(
                part,
                others
                    .into_iter()
                    .filter(|epoch| !record.parents.contains(epoch))
                    .collect(),
            );
        }
        links.sort_by_key(Link::order);
        let envelopes = self.envelopes(id, to, &holder, &member);
        Ok(Minted {
            record,
            links,
            envelopes,
        })
    }

    pub(super) fn envelopes(
        &self,
        epoch: EpochId,
        to: &BTreeSet<(AgreeKey, KeyPart)>,
        holder: &HolderPart,
        member: &MemberPart,
    ) -> Vec<Envelope> {
        let seal = |(recipient, part): &(AgreeKey, KeyPart)| {
            let keys = match part {
                KeyPart::Holder => holder.to_bytes(),
                KeyPart::Member => member.to_bytes(),
            };
            Envelope::seal(&self.space, epoch, *recipient, *part, &keys)
        };
        to.iter().filter_map(seal).collect()
    }
}

pub(super) fn open_part(open: &Opened) -> (SealKind, Plain) {
    (
        SealKind::Open,
        Plain {
            codec: Codec::Records,
            body: Zeroizing::new(open.encode()),
        },
    )
}
