//! Writes entries: versions, statements about packs, admissions, removals, epochs.

use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{AgreeKey, DeviceKeys, Rng, RootKeys, SignKey};
use kith_object::time::{Hlc, Time};
use zeroize::Zeroizing;

use std::collections::BTreeSet;

use super::link::Origin;
use super::seal::recipients;
use super::{NotReady, Reading, Replica, SealState};
use crate::access::bits::Bits;
use crate::access::{Genesis, Newcomer, Opened, Removal, Role, Sealed};
use crate::catalogue::CatalogueRecord;
use crate::chain::{
    ACCESS_HEADS_MAX, Codec, DEPENDENCIES_MAX, DocumentKind, Draft, Entry, Header, Nonce, Plain,
    SealKeys, SealKind,
};
use crate::document::{self, Place, RECORD_BYTES_MAX, RECORDS_MAX};
use crate::epoch::{
    Envelope, EpochRecord, HolderPart, KeyPart, LINKS_MAX, Link, MemberPart, PARENTS_MAX,
};

/// Bytes of a part's body that leave room for padding, nonce and tag within the largest payload.
const BODY_BYTES_MAX: usize = 1_000_000;
/// Epochs opened in a row before an entry is given up: each links as many earlier ones as fit.
const MINTS_MAX: usize = 8;

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
    /// A record is empty or too long, or there are more than an entry holds.
    #[error("a record is empty or longer than an entry can hold")]
    Record,
}

/// The end of a chain that this device is writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tip {
    nonce: Nonce,
    next: u64,
    node: u32,
    hlc: Hlc,
}

/// Who writes.
#[derive(Clone, Copy)]
struct Signer<'a> {
    key: &'a SignKey,
    id: DeviceId,
    is_root: bool,
}

/// Where the next entry of a chain goes.
struct Slot {
    header: Header,
    place: Place,
}

/// An epoch in the making.
struct Minted {
    record: EpochRecord,
    links: Vec<Link>,
    envelopes: Vec<Envelope>,
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
        let envelopes = replica.envelopes(record.id(&replica.space), &to, &holder, &member, rng);
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
    /// Of what the device wrote, all that counts here now goes on counting, and nothing else ever will.
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

    fn role_of(&self, signer: Signer<'_>) -> Role {
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

    /// An epoch to seal under; opens one if none will do and this author can.
    fn ready(
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

    fn mint_as(&mut self, signer: Signer<'_>, now: Time, rng: &mut Rng) -> Result<(), AuthorError> {
        let to = recipients(&self.access, None);
        let Minted {
            record,
            links,
            envelopes,
        } = self.minted(&to, rng)?;
        let open = Opened {
            epoch: Some(record),
            links,
            envelopes,
            ..Opened::default()
        };
        let slot = self.slot(signer, DocumentKind::Access, EpochId::default(), now, rng);
        self.commit(signer, slot, vec![open_part(&open)], rng)
    }

    /// Fresh keys, sealed to these, that lead to all earlier ones.
    fn minted(
        &self,
        to: &BTreeSet<(AgreeKey, KeyPart)>,
        rng: &mut Rng,
    ) -> Result<Minted, AuthorError> {
        let parents: Vec<EpochId> = self
            .access
            .epoch_heads
            .iter()
            .take(PARENTS_MAX)
            .copied()
            .collect();
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
                parents.iter().all(shared) && !self.is_exposed(first, to)
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
        let envelopes = self.envelopes(id, to, &holder, &member, rng);
        Ok(Minted {
            record,
            links,
            envelopes,
        })
    }

    fn envelopes(
        &self,
        epoch: EpochId,
        to: &BTreeSet<(AgreeKey, KeyPart)>,
        holder: &HolderPart,
        member: &MemberPart,
        rng: &mut Rng,
    ) -> Vec<Envelope> {
        let seal = |(recipient, part): &(AgreeKey, KeyPart)| {
            let keys = match part {
                KeyPart::Holder => holder.to_bytes(),
                KeyPart::Member => member.to_bytes(),
            };
            Envelope::seal(&self.space, epoch, *recipient, *part, &keys, rng)
        };
        to.iter().filter_map(seal).collect()
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
        for head in &self.access.epoch_heads {
            if let (Some(holder), Some(member)) = (self.ring.holder(head), self.ring.member(head)) {
                envelopes.extend(self.envelopes(*head, &to, holder, member, rng));
            }
        }
        let open = Opened {
            envelopes,
            ..Opened::default()
        };
        let slot = self.slot(signer, DocumentKind::Access, epoch, now, rng);
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
        let Some(role) = self.access.role(&device) else {
            return Err(AuthorError::UnknownDevice);
        };
        let own = device == signer.id;
        if role == Role::Admin && !signer.is_root && !own {
            return Err(AuthorError::NotAllowed);
        }
        let epoch = self.ready(signer, now, rng)?;
        let removal = Removal {
            device,
            frontier: self.frontier_of(&device),
        };
        let open = if own {
            // Who leaves must not choose the keys of those who stay: another member opens the epoch.
            None
        } else {
            let Minted {
                record,
                links,
                envelopes,
            } = self.minted(&recipients(&self.access, Some(&device)), rng)?;
            Some(Opened {
                epoch: Some(record),
                links,
                envelopes,
                ..Opened::default()
            })
        };
        let slot = self.slot(signer, DocumentKind::Access, epoch, now, rng);
        let mut parts = vec![sealed_part(&slot.place, &Sealed::Removal(removal))?];
        parts.extend(open.as_ref().map(open_part));
        self.commit(signer, slot, parts, rng)
    }

    /// The entries of a device that count and that no other one of them has in its past.
    fn frontier_of(&self, device: &DeviceId) -> Vec<EntryId> {
        let mut covered = Bits::default();
        let mut frontier = Vec::new();
        let numbered = (0u32..).zip(&self.nodes).collect::<Vec<_>>();
        for (at, node) in numbered.into_iter().rev() {
            let theirs = node.author == *device && node.counted;
            if theirs && !covered.contains(at) {
                frontier.push(node.id);
            }
            if theirs || covered.contains(at) {
                for parent in node.parents() {
                    covered.insert(parent);
                }
            }
        }
        frontier.sort_unstable();
        frontier
    }

    /// Where the signer's next entry of a document goes.
    fn slot(
        &self,
        signer: Signer<'_>,
        document: DocumentKind,
        epoch: EpochId,
        now: Time,
        rng: &mut Rng,
    ) -> Slot {
        // The root's chains end with the entry: its words are typed anew each time.
        let tip = self
            .tips
            .get(&document)
            .filter(|_| !signer.is_root && self.me == Some(signer.id))
            .copied();
        let previous = tip.map(|tip| tip.node);
        let before = previous.and_then(|at| self.node(at)?.chain_fed);
        let mut bases = match document {
            DocumentKind::Access => self.fed_access_heads(),
            DocumentKind::Catalogue | DocumentKind::Names => self
                .heads
                .get(&document)
                .into_iter()
                .flatten()
                .copied()
                .collect(),
        };
        bases.retain(|at| Some(*at) != previous && Some(*at) != before);
        // The latest first; what is left out stays a head, and a later entry takes it in.
        bases.sort_by_key(|at| std::cmp::Reverse(self.node(*at).map(|node| (node.hlc, node.id))));
        bases.truncate(DEPENDENCIES_MAX);
        let access_heads = self.named_access_heads(&signer.id);
        let seen = bases
            .iter()
            .chain(&access_heads)
            .filter_map(|at| self.node(*at))
            .map(|node| node.hlc);
        let clock = seen.fold(tip.map_or(Hlc::default(), |tip| tip.hlc), |clock, hlc| {
            clock.seeing(hlc, now)
        });
        let sorted = |list: &[u32]| {
            let mut ids: Vec<EntryId> = list
                .iter()
                .filter_map(|at| self.node(*at))
                .map(|node| node.id)
                .collect();
            ids.sort_unstable();
            ids
        };
        let header = Header {
            space: self.space,
            document,
            author: signer.id,
            nonce: tip.map_or_else(|| Nonce(rng.bytes()), |tip| tip.nonce),
            seq: tip.map_or(0, |tip| tip.next),
            previous: previous
                .and_then(|at| self.node(at))
                .map_or(EntryId::default(), |node| node.id),
            hlc: clock.next(now),
            epoch,
            payload_len: 0,
            payload_root: [0; 32],
            access_heads: sorted(&access_heads),
            dependencies: sorted(&bases),
        };
        let (mut hashes, mut op_max, mut seq) = (Vec::new(), 0, 1);
        for at in bases.iter().chain(&before) {
            if let Some(Reading::Fed {
                hash,
                op_max: theirs,
                seq: place,
            }) = self.node(*at).map(|node| &node.reading)
            {
                hashes.push(*hash);
                op_max = op_max.max(*theirs);
                if Some(*at) == before {
                    seq = place + 1;
                }
            }
        }
        hashes.sort_unstable();
        let place = Place {
            nonce: header.nonce,
            entry_seq: header.seq,
            seq,
            start_op: op_max + 1,
            dependencies: hashes,
        };
        Slot { header, place }
    }

    /// Entries of `access` with a change, that count and that no other such builds upon.
    fn fed_access_heads(&self) -> Vec<u32> {
        let fed = |at: u32| {
            self.node(at)
                .filter(|node| node.counted && matches!(node.reading, Reading::Fed { .. }))
        };
        let mut heads = BTreeSet::new();
        for at in self.entries.iter().map(|entry| entry.node) {
            if let Some(node) = fed(at) {
                let before = node
                    .previous
                    .and_then(|previous| self.node(previous)?.chain_fed);
                for base in node.dependencies.iter().copied().chain(before) {
                    heads.remove(&base);
                }
                heads.insert(at);
            }
        }
        heads.into_iter().collect()
    }

    /// The heads of `access` that the author's entry names: above all one that certifies the author, then the latest.
    fn named_access_heads(&self, author: &DeviceId) -> Vec<u32> {
        let mut heads = self.access_heads();
        let certificates = self
            .verdict
            .certificates
            .get(author)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let certifies = |at: u32| {
            let entry = self
                .node(at)
                .and_then(|node| Some((node.place?, self.past(node)?)));
            entry.is_some_and(|(own, past)| {
                certificates
                    .iter()
                    .any(|(place, _)| *place == own || past.contains(*place))
            })
        };
        heads.sort_by_key(|at| {
            std::cmp::Reverse((
                certifies(*at),
                self.node(*at).map(|node| (node.hlc, node.id)),
            ))
        });
        heads.truncate(ACCESS_HEADS_MAX);
        heads
    }

    /// Seals, signs and takes in an entry of this device or of the root.
    fn commit(
        &mut self,
        signer: Signer<'_>,
        slot: Slot,
        parts: Vec<(SealKind, Plain)>,
        rng: &mut Rng,
    ) -> Result<(), AuthorError> {
        let header = slot.header;
        let (document, nonce, hlc, next) =
            (header.document, header.nonce, header.hlc, header.seq + 1);
        let epoch = header.epoch;
        let keys = SealKeys {
            holder: self.ring.holder(&epoch).map(|part| &part.key),
            change: self.ring.member(&epoch).map(|part| &part.change),
        };
        let entry = Draft { header, parts }
            .seal(keys, signer.key, rng)
            .ok_or(AuthorError::Record)?;
        self.take(entry.clone(), Origin::Author);
        let Some(node) = self
            .index
            .get(&entry.id())
            .copied()
            .filter(|_| self.counts(&entry.id()))
        else {
            return Err(AuthorError::NotAllowed);
        };
        if !signer.is_root {
            self.tips.insert(
                document,
                Tip {
                    nonce,
                    next,
                    node,
                    hlc,
                },
            );
        }
        self.written.push(entry);
        Ok(())
    }
}

impl<'a> Signer<'a> {
    fn device(keys: &'a DeviceKeys) -> Self {
        Self {
            key: keys.sign_key(),
            id: keys.id(),
            is_root: false,
        }
    }

    fn root(root: &'a RootKeys) -> Self {
        Self {
            key: &root.sign,
            id: root.sign.id(),
            is_root: true,
        }
    }
}

fn open_part(open: &Opened) -> (SealKind, Plain) {
    (
        SealKind::Open,
        Plain {
            codec: Codec::Records,
            body: Zeroizing::new(open.encode()),
        },
    )
}

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
