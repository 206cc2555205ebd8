//! Writes entries: versions, statements about packs, admissions, removals, epochs.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{DeviceKeys, Rng, RootKeys};
use kith_object::time::Time;
use zeroize::Zeroizing;

use super::mint::{Minted, open_part};
use super::seal::{KEEPS_OUT, recipients};
use super::slot::Signer;
use super::{NotReady, Replica};
use crate::access::bits::Bits;
use crate::access::fold::may_write;
use crate::access::{Genesis, Newcomer, Opened, Removal, Role, Sealed};
use crate::catalogue::CatalogueRecord;
use crate::chain::{Codec, DEPENDENCIES_MAX, DocumentKind, Entry, Plain, SealKind};
use crate::document::{self, Place, RECORD_BYTES_MAX, RECORDS_MAX};
use crate::epoch::{EpochRecord, HolderPart, KeyPart, MemberPart, PARENTS_MAX};

/// Bytes of a part's body that leave room for padding, nonce and tag within the largest payload.
const BODY_BYTES_MAX: usize = 1_000_000;

/// Why an entry was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorError {
    /// The author has no right to it.
    #[error("this device has no right to do that in this space")]
    NotAllowed,
    /// The space holds what this program does not know.
    #[error(
        "the space was changed by a newer version of kith; update this device before it writes"
    )]
    Outdated,
    /// No epoch to seal under, and this author cannot open one now.
    #[error("nothing can be sealed now")]
    NotReady(#[source] NotReady),
    /// No such device belongs to the space.
    #[error("no such device belongs to the space")]
    UnknownDevice,
    /// A removed key never returns.
    #[error("this device was removed; it can join again with new keys only")]
    Removed,
    /// Name, role or keys of a newcomer are not ones that can be admitted.
    #[error("the newcomer's name or key cannot be admitted")]
    Newcomer,
    /// One more entry of `access` and this device would count as one that floods it; another member must write it.
    #[error("this device has opened as many epochs as one may; another member must open the next")]
    Spent,
    /// A record is empty or too long, or there are more than an entry holds.
    #[error("a record is empty or longer than an entry can hold")]
    Record,
}

impl Replica {
    /// Founds a space with its first device, an admin; returns the entries to be stored.
    ///
    /// # Errors
    /// [`AuthorError::Newcomer`] if the name cannot be one.
    pub fn create(
        root: &RootKeys,
        first: &DeviceKeys,
        name: &str,
        now: Time,
        rng: &mut Rng,
    ) -> Result<(Self, Vec<Entry>), AuthorError> {
        let genesis = Genesis {
            root: root.sign.id(),
            recovery: root.recovery.public(),
            nonce: rng.bytes(),
        };
        let mut replica =
            Self::open_with_recovery(genesis.space(), Some(first), root.recovery.clone());
        let (holder, member) = (HolderPart::generate(rng), MemberPart::generate(None, rng));
        let record = EpochRecord {
            holder: holder.commitment(),
            member: member.commitment(),
            parents: Vec::new(),
        };
        let to = BTreeSet::from([
            (genesis.recovery, KeyPart::Holder),
            (genesis.recovery, KeyPart::Member),
        ]);
        let envelopes = replica.envelopes(record.id(&replica.space), &to, &holder, &member);
        let open = Opened {
            genesis: Some(genesis),
            epoch: Some(record),
            envelopes,
            ..Opened::default()
        };
        let signer = Signer::root(root);
        let slot = replica.slot(signer, DocumentKind::Access, EpochId::default(), now, rng);
        replica.commit(signer, slot, vec![open_part(&open)], rng)?;
        let newcomer = Newcomer {
            device: first.id(),
            agree: first.agree_public(),
            role: Role::Admin,
            name: name.to_owned(),
        };
        let entries = replica.admit_by_root(root, now, rng, &newcomer)?;
        replica.ring.forget(&root.recovery.public());
        Ok((replica, entries))
    }

    /// Writes versions to `names`; returns the entries to be stored.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn names(
        &mut self,
        keys: &DeviceKeys,
        now: Time,
        rng: &mut Rng,
        records: Vec<Vec<u8>>,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::device(keys);
        self.may(signer, Role::Member)?;
        if records
            .iter()
            .any(|record| !(1..=RECORD_BYTES_MAX).contains(&record.len()))
        {
            return Err(AuthorError::Record);
        }
        let result = self.names_as(signer, now, rng, records);
        self.finish(result)
    }

    /// Writes statements about packs to `catalogue`; returns the entries to be stored.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn catalogue(
        &mut self,
        keys: &DeviceKeys,
        now: Time,
        rng: &mut Rng,
        records: &[CatalogueRecord],
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::device(keys);
        self.may(signer, Role::Blind)?;
        let records: Vec<Vec<u8>> = records.iter().map(CatalogueRecord::encode).collect();
        if records
            .iter()
            .any(|record| !(1..=BODY_BYTES_MAX).contains(&record.len()))
        {
            return Err(AuthorError::Record);
        }
        let result = self.catalogue_as(signer, now, rng, records);
        self.finish(result)
    }

    /// Admits a device, as an admin; returns the entries to be stored.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn admit(
        &mut self,
        keys: &DeviceKeys,
        now: Time,
        rng: &mut Rng,
        newcomer: &Newcomer,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::device(keys);
        self.may(signer, Role::Admin)?;
        let result = self.admit_as(signer, now, rng, newcomer);
        self.finish(result)
    }

    /// Admits a device with the words.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn admit_by_root(
        &mut self,
        root: &RootKeys,
        now: Time,
        rng: &mut Rng,
        newcomer: &Newcomer,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::root(root);
        self.may(signer, Role::Admin)?;
        let result = self.admit_as(signer, now, rng, newcomer);
        self.finish(result)
    }

    /// Removes a device, as an admin, or ends this device's own membership; returns the entries to be stored.
    ///
    /// Of what the device wrote, all that counts here now goes on counting, and nothing else ever will. A device that ended
    /// its own membership can be removed too: then what counted before it did counts again.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn remove(
        &mut self,
        keys: &DeviceKeys,
        now: Time,
        rng: &mut Rng,
        device: DeviceId,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::device(keys);
        self.may(
            signer,
            if device == signer.id {
                Role::Blind
            } else {
                Role::Admin
            },
        )?;
        let result = self.remove_as(signer, now, rng, device);
        self.finish(result)
    }

    /// Removes a device with the words; the only way to remove an admin.
    ///
    /// # Errors
    /// [`AuthorError`]. If an epoch was opened nevertheless, [`Replica::take_accepted`] hands it out.
    pub fn remove_by_root(
        &mut self,
        root: &RootKeys,
        now: Time,
        rng: &mut Rng,
        device: DeviceId,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::root(root);
        self.may(signer, Role::Admin)?;
        let result = self.remove_as(signer, now, rng, device);
        self.finish(result)
    }

    /// Opens a new epoch that follows all heads, sealed to the devices that belong.
    ///
    /// # Errors
    /// [`AuthorError`] if this device may not, or if no epoch is known.
    pub fn mint_epoch(
        &mut self,
        keys: &DeviceKeys,
        now: Time,
        rng: &mut Rng,
    ) -> Result<Vec<Entry>, AuthorError> {
        let signer = Signer::device(keys);
        self.may(signer, Role::Member)?;
        let result = self.mint_as(signer, now, rng);
        self.finish(result)
    }

    /// Whether the signer belongs with at least this role, and this program knows all there is.
    fn may(&self, signer: Signer<'_>, role: Role) -> Result<(), AuthorError> {
        let allowed = if signer.is_root {
            self.is_root(&signer.id)
        } else {
            self.access.role(&signer.id) >= Some(role)
        };
        match (allowed, self.access.outdated) {
            (false, _) => Err(AuthorError::NotAllowed),
            (true, true) => Err(AuthorError::Outdated),
            (true, false) => Ok(()),
        }
    }

    pub(super) fn role_of(&self, signer: Signer<'_>) -> Role {
        if signer.is_root {
            Role::Admin
        } else {
            self.access.role(&signer.id).unwrap_or(Role::Blind)
        }
    }

    /// What was written. Should a later entry have failed, the earlier ones have their place already: they are handed out
    /// as if they had come from elsewhere, and none is lost.
    fn finish(&mut self, result: Result<(), AuthorError>) -> Result<Vec<Entry>, AuthorError> {
        let written = std::mem::take(&mut self.written);
        match result {
            Ok(()) => Ok(written),
            Err(error) => {
                self.accepted.extend(written);
                Err(error)
            }
        }
    }

    fn names_as(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
        records: Vec<Vec<u8>>,
    ) -> Result<(), AuthorError> {
        let epoch = self.ready(signer, now, rng)?;
        for group in group(records, |count, bytes| {
            document::change_len(count, bytes, DEPENDENCIES_MAX + 1)
        }) {
            let slot = self.slot(signer, DocumentKind::Names, epoch, now, rng);
            let body = document::author(&slot.place, &group).ok_or(AuthorError::Record)?;
            let plain = Plain {
                codec: Codec::Change,
                body: Zeroizing::new(body),
            };
            self.commit(signer, slot, vec![(SealKind::Change, plain)], rng)?;
        }
        Ok(())
    }

    fn catalogue_as(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
        records: Vec<Vec<u8>>,
    ) -> Result<(), AuthorError> {
        let epoch = self.ready(signer, now, rng)?;
        for group in group(records, |_, bytes| bytes) {
            let slot = self.slot(signer, DocumentKind::Catalogue, epoch, now, rng);
            let plain = Plain {
                codec: Codec::Records,
                body: Zeroizing::new(group.concat()),
            };
            self.commit(signer, slot, vec![(SealKind::Holder, plain)], rng)?;
        }
        Ok(())
    }

    fn admit_as(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
        newcomer: &Newcomer,
    ) -> Result<(), AuthorError> {
        if self.access.removed.contains_key(&newcomer.device) {
            return Err(AuthorError::Removed);
        }
        if !newcomer.is_valid() || self.is_root(&newcomer.device) {
            return Err(AuthorError::Newcomer);
        }
        if newcomer.role == Role::Admin && !signer.is_root {
            return Err(AuthorError::NotAllowed);
        }
        let epoch = self.ready(signer, now, rng)?;
        let mut to = BTreeSet::from([(newcomer.agree, KeyPart::Holder)]);
        if newcomer.role >= Role::Member {
            to.insert((newcomer.agree, KeyPart::Member));
        }
        let mut envelopes = Vec::new();
        let slot = self.slot(signer, DocumentKind::Access, epoch, now, rng);
        // The keys of every head, that of the epoch sealed under first if there are very many.
        let others = self
            .access
            .epoch_heads
            .iter()
            .filter(|head| **head != epoch && self.is_opened_in(head, &slot.past));
        let heads: BTreeSet<&EpochId> = std::iter::once(&epoch)
            .chain(others)
            .take(PARENTS_MAX)
            .collect();
        for head in heads {
            if let (Some(holder), Some(member)) = (self.ring.holder(head), self.ring.member(head)) {
                envelopes.extend(self.envelopes(*head, &to, holder, member));
            }
        }
        let open = Opened {
            envelopes,
            ..Opened::default()
        };
        let sealed = sealed_part(&slot.place, &Sealed::Member(newcomer.clone()))?;
        self.commit(signer, slot, vec![sealed, open_part(&open)], rng)
    }

    fn remove_as(
        &mut self,
        signer: Signer<'_>,
        now: Time,
        rng: &mut Rng,
        device: DeviceId,
    ) -> Result<(), AuthorError> {
        let own = device == signer.id;
        // Of one that was removed only by itself, others may still say what counts.
        let role = self
            .access
            .role(&device)
            .or_else(|| self.role_before_it_left(&device));
        let Some(role) = role else {
            return Err(AuthorError::UnknownDevice);
        };
        if role == Role::Admin && !signer.is_root && !own {
            return Err(AuthorError::NotAllowed);
        }
        let epoch = self.ready(signer, now, rng)?;
        let removal = Removal {
            device,
            frontier: self.frontier_of(&device),
        };
        let slot = self.slot(signer, DocumentKind::Access, epoch, now, rng);
        let open = if own {
            // Who leaves must not choose the keys of those who stay: another member opens the epoch.
            None
        } else {
            let Minted {
                record,
                links,
                envelopes,
            } = self.minted(
                &slot.past,
                &recipients(&self.access, Some(&device).filter(|_| KEEPS_OUT)),
                Some(&device).filter(|_| KEEPS_OUT),
                rng,
            )?;
            Some(Opened {
                epoch: Some(record),
                links,
                envelopes,
                ..Opened::default()
            })
        };
        let mut parts = vec![sealed_part(&slot.place, &Sealed::Removal(removal))?];
        parts.extend(open.as_ref().map(open_part));
        self.commit(signer, slot, parts, rng)
    }

    /// The places of the entries by which a device ended its own membership, if nobody else removed it; none if it overran
    /// its limits.
    fn left_by(&self, device: &DeviceId) -> Option<&[u32]> {
        let overrun = self.verdict.overrun.contains_key(device);
        let removals = self.verdict.removals.get(device).map(Vec::as_slice);
        let places: &[u32] = removals.or(overrun.then_some(&[]))?;
        let own = |place: &u32| {
            let node = self.entry(*place).and_then(|entry| self.node(entry.node));
            node.is_some_and(|node| node.author == *device)
        };
        places.iter().all(own).then_some(places)
    }

    /// The role of a device that ended its own membership, and that nobody else removed.
    fn role_before_it_left(&self, device: &DeviceId) -> Option<Role> {
        self.left_by(device)?;
        let certificates = self.verdict.certificates.get(device)?;
        certificates.iter().map(|(_, role)| *role).max()
    }

    /// Whether the entry counts, or would if its author had not ended its own membership where it did not know of that.
    fn counts_but_for_leaving(&self, at: u32, left_by: &[u32]) -> bool {
        let Some(node) = self.node(at).filter(|node| !node.thrown_out) else {
            return false;
        };
        let Some(past) = self.past(node) else {
            return false;
        };
        let later = left_by
            .iter()
            .any(|place| node.place == Some(*place) || past.contains(*place));
        let role = self.verdict.role_at(&node.author, past);
        // Of one that wrote too much of it, nothing in `access` itself is worth keeping.
        let flood = node.place.is_some() && self.verdict.overrun.contains_key(&node.author);
        !later && !flood && role.is_some_and(|role| may_write(role, node.document))
    }

    /// The entries of a device that count and that no other one of them has in its past. If it ended its own membership,
    /// those that counted before: what it said itself of what counts is not taken over, since a thief may have said it.
    fn frontier_of(&self, device: &DeviceId) -> Vec<EntryId> {
        let mut covered = Bits::default();
        let mut frontier = Vec::new();
        let left_by = self.left_by(device);
        let numbered = (0u32..).zip(&self.nodes).collect::<Vec<_>>();
        for (at, node) in numbered.into_iter().rev() {
            let counts = match left_by {
                None => node.counted,
                Some(places) => self.counts_but_for_leaving(at, places),
            };
            let theirs = node.author == *device && counts;
            if theirs && !covered.contains(at) {
                frontier.push(node.id);
            }
            if theirs || covered.contains(at) {
                for parent in node.parents() {
                    covered.insert(parent);
                }
            }
        }
        // Latest first until here. One that wrote thousands of chains side by side, so that no record could hold its frontier, keeps the earliest.
        frontier.reverse();
        frontier.truncate(FRONTIER_MAX);
        frontier.sort_unstable();
        frontier
    }
}

/// Most entries that the frontier of a removal names, so that its record fits.
const FRONTIER_MAX: usize = 2000;

fn sealed_part(place: &Place, sealed: &Sealed) -> Result<(SealKind, Plain), AuthorError> {
    let body = document::author(place, &[sealed.encode()]).ok_or(AuthorError::Record)?;
    Ok((
        SealKind::Holder,
        Plain {
            codec: Codec::Change,
            body: Zeroizing::new(body),
        },
    ))
}

/// Splits records into groups that fit an entry each, in their order.
fn group(records: Vec<Vec<u8>>, len: impl Fn(usize, usize) -> usize) -> Vec<Vec<Vec<u8>>> {
    let mut groups: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let fits = groups.last().is_some_and(|group| {
            group.len() < RECORDS_MAX
                && len(group.len() + 1, bytes + record.len()) <= BODY_BYTES_MAX
        });
        if !fits {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += record.len();
        if let Some(group) = groups.last_mut() {
            group.push(record);
        }
    }
    groups
}
