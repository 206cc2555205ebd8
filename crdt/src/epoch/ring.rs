//! All keys of a space that one device could open.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{EpochId, SpaceId};
use kith_object::key::{AgreeKey, AgreeSecret, Secret};
use zeroize::Zeroizing;

use super::keys::{HolderPart, MemberPart, PART_LEN};
use super::record::{Envelope, EpochRecord, KeyPart, Link};

/// Parts given for epochs whose record has not come yet; a pairing gives one epoch's two.
const GIVEN_MAX: usize = 16;
/// Envelopes to this device for epochs whose record has not come yet. Honest ones come after the record.
const EARLY_ENVELOPES_MAX: usize = 1024;

/// An epoch whose record is known, with what could be opened of it.
#[derive(Debug)]
struct Known {
    record: EpochRecord,
    holder: Option<HolderPart>,
    member: Option<MemberPart>,
    /// Epochs whose part its own part was seen to lead to.
    leads_to: BTreeSet<(EpochId, KeyPart)>,
}

/// The epochs of a space and their keys, as far as this device's secrets open them.
///
/// Everything in here proves itself: a record by hashing to its id, a key by the commitment in that record. So it does
/// not matter who brought it, nor in which order.
///
/// Spec: `protocol/spec/epoch.md`, "Opening".
#[derive(Debug)]
pub struct KeyRing {
    space: SpaceId,
    /// Each with its public half, which takes a multiplication on the curve to find.
    secrets: Vec<(AgreeKey, AgreeSecret)>,
    known: BTreeMap<EpochId, Known>,
    given: Vec<(EpochId, KeyPart, Zeroizing<[u8; PART_LEN]>)>,
    early: Vec<Envelope>,
    /// Links that wait for the key of their epoch, by that.
    locked: BTreeMap<(EpochId, KeyPart), BTreeSet<Link>>,
    /// Links that wait for the record of the epoch they lead to, by that.
    dangling: BTreeMap<EpochId, BTreeSet<Link>>,
    /// Epochs of which a key was learned since last asked.
    news: BTreeSet<EpochId>,
}

impl KeyRing {
    /// An empty ring for a space, which opens envelopes with these secrets.
    pub fn new(space: SpaceId, secrets: Vec<AgreeSecret>) -> Self {
        Self {
            space,
            secrets: secrets
                .into_iter()
                .map(|secret| (secret.public(), secret))
                .collect(),
            known: BTreeMap::new(),
            given: Vec::new(),
            early: Vec::new(),
            locked: BTreeMap::new(),
            dangling: BTreeMap::new(),
            news: BTreeSet::new(),
        }
    }

    /// Drops a secret; what it opened stays.
    pub fn forget(&mut self, secret: &AgreeKey) {
        self.secrets.retain(|(held, _)| held != secret);
    }

    /// Takes in an epoch's record.
    pub fn add_record(&mut self, record: &EpochRecord) {
        let id = record.id(&self.space);
        if self.known.contains_key(&id) {
            return;
        }
        let known = Known {
            record: record.clone(),
            holder: None,
            member: None,
            leads_to: BTreeSet::new(),
        };
        self.known.insert(id, known);
        for (epoch, part, keys) in std::mem::take(&mut self.given) {
            self.give(epoch, part, &keys);
        }
        let (now, later) = std::mem::take(&mut self.early)
            .into_iter()
            .partition::<Vec<_>, _>(|envelope| envelope.epoch == id);
        self.early = later;
        for envelope in &now {
            self.add_envelope(envelope);
        }
        for link in self.dangling.remove(&id).unwrap_or_default() {
            self.add_link(&link);
        }
    }

    /// Takes in a link; it is tried once, as soon as all it needs is here.
    pub fn add_link(&mut self, link: &Link) {
        let mut queue = vec![link.clone()];
        while let Some(link) = queue.pop() {
            if !self.known.contains_key(&link.earlier) {
                self.dangling.entry(link.earlier).or_default().insert(link);
                continue;
            }
            let Some(key) = self.link_key(&link.epoch, link.part) else {
                let list = self.locked.entry((link.epoch, link.part)).or_default();
                list.insert(link);
                continue;
            };
            let Some(keys) = link.open(&self.space, key) else {
                continue;
            };
            if !self.fits(&link.earlier, link.part, &keys) {
                continue;
            }
            if let Some(known) = self.known.get_mut(&link.epoch) {
                known.leads_to.insert((link.earlier, link.part));
            }
            queue.extend(self.put(link.earlier, link.part, &keys));
        }
    }

    /// Whether this ring can open envelopes to that key.
    pub fn is_sealed_to(&self, recipient: &AgreeKey) -> bool {
        self.secrets.iter().any(|(key, _)| key == recipient)
    }

    /// Takes in an envelope; ignores it if it is for others.
    pub fn add_envelope(&mut self, envelope: &Envelope) {
        let found = self
            .secrets
            .iter()
            .find(|(key, _)| *key == envelope.recipient);
        let Some((_, secret)) = found else { return };
        if !self.known.contains_key(&envelope.epoch) {
            if self.early.len() < EARLY_ENVELOPES_MAX {
                self.early.push(envelope.clone());
            }
        } else if !self.has(&envelope.epoch, envelope.part)
            && let Some(keys) = envelope.open(&self.space, secret)
        {
            self.give(envelope.epoch, envelope.part, &keys);
        }
    }

    /// Takes in keys that came another way, as in pairing; they stand once the epoch's record proves them.
    pub fn give(&mut self, epoch: EpochId, part: KeyPart, keys: &[u8; PART_LEN]) {
        if self.known.contains_key(&epoch) {
            for link in self.put(epoch, part, keys) {
                self.add_link(&link);
            }
        } else if self.given.len() < GIVEN_MAX {
            self.given.push((epoch, part, Zeroizing::new(*keys)));
        }
    }

    /// Whether keys are those that an epoch's record commits to.
    fn fits(&self, epoch: &EpochId, part: KeyPart, keys: &[u8; PART_LEN]) -> bool {
        self.known.get(epoch).is_some_and(|known| match part {
            KeyPart::Holder => HolderPart::from_bytes(keys).commitment() == known.record.holder,
            KeyPart::Member => MemberPart::from_bytes(keys).commitment() == known.record.member,
        })
    }

    /// Keeps keys if they are new and fit their epoch; returns the links that they unlock.
    fn put(&mut self, epoch: EpochId, part: KeyPart, keys: &[u8; PART_LEN]) -> BTreeSet<Link> {
        if self.has(&epoch, part) || !self.fits(&epoch, part, keys) {
            return BTreeSet::new();
        }
        if let Some(known) = self.known.get_mut(&epoch) {
            match part {
                KeyPart::Holder => known.holder = Some(HolderPart::from_bytes(keys)),
                KeyPart::Member => known.member = Some(MemberPart::from_bytes(keys)),
            }
        }
        self.news.insert(epoch);
        self.locked.remove(&(epoch, part)).unwrap_or_default()
    }

    fn link_key(&self, epoch: &EpochId, part: KeyPart) -> Option<&Secret> {
        match part {
            KeyPart::Holder => self.holder(epoch).map(|keys| &keys.key),
            KeyPart::Member => self.member(epoch).map(|keys| &keys.change),
        }
    }

    fn has(&self, epoch: &EpochId, part: KeyPart) -> bool {
        self.link_key(epoch, part).is_some()
    }

    /// The epoch's holder part, if it could be opened.
    pub fn holder(&self, epoch: &EpochId) -> Option<&HolderPart> {
        self.known.get(epoch)?.holder.as_ref()
    }

    /// The epoch's member part, if it could be opened.
    pub fn member(&self, epoch: &EpochId) -> Option<&MemberPart> {
        self.known.get(epoch)?.member.as_ref()
    }

    /// The bytes of a part, if it could be opened.
    pub fn part(&self, epoch: &EpochId, part: KeyPart) -> Option<Zeroizing<[u8; PART_LEN]>> {
        match part {
            KeyPart::Holder => self.holder(epoch).map(HolderPart::to_bytes),
            KeyPart::Member => self.member(epoch).map(MemberPart::to_bytes),
        }
    }

    /// Epochs of which a key was learned since the last call.
    pub fn take_news(&mut self) -> BTreeSet<EpochId> {
        std::mem::take(&mut self.news)
    }

    /// All known epochs.
    pub fn epochs(&self) -> impl Iterator<Item = (&EpochId, &EpochRecord)> {
        self.known.iter().map(|(id, known)| (id, &known.record))
    }

    /// The parents in an epoch's record.
    pub fn parents(&self, epoch: &EpochId) -> &[EpochId] {
        self.known
            .get(epoch)
            .map(|known| known.record.parents.as_slice())
            .unwrap_or_default()
    }

    /// The epochs before these, by the parents in their records, however far.
    pub fn ancestors(&self, epochs: impl IntoIterator<Item = EpochId>) -> BTreeSet<EpochId> {
        let mut queue: Vec<EpochId> = epochs.into_iter().collect();
        let mut found = BTreeSet::new();
        while let Some(epoch) = queue.pop() {
            for parent in self
                .known
                .get(&epoch)
                .into_iter()
                .flat_map(|known| &known.record.parents)
            {
                if found.insert(*parent) {
                    queue.push(*parent);
                }
            }
        }
        found
    }

    /// The epochs whose part the keys of these lead to by links that this device tried, these included.
    pub fn reached(
        &self,
        epochs: impl IntoIterator<Item = EpochId>,
        part: KeyPart,
    ) -> BTreeSet<EpochId> {
        let mut queue: Vec<EpochId> = epochs.into_iter().collect();
        let mut found: BTreeSet<EpochId> = queue.iter().copied().collect();
        while let Some(epoch) = queue.pop() {
            let led = self.known.get(&epoch).into_iter();
            for (earlier, _) in led
                .flat_map(|known| &known.leads_to)
                .filter(|(_, other)| *other == part)
            {
                if found.insert(*earlier) {
                    queue.push(*earlier);
                }
            }
        }
        found
    }
}
