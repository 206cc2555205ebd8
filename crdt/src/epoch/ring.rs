//! All keys of a space that one device could open.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{EpochId, SpaceId};
use kith_object::key::{AgreeKey, AgreeSecret, Secret};
use zeroize::Zeroizing;

use super::keys::{HolderPart, MemberPart, PART_LEN};
use super::record::{Envelope, EpochRecord, KeyPart, Link};

/// Parts given for epochs whose record has not come yet; a pairing gives one epoch's two.
const GIVEN_MAX: usize = 16;

/// An epoch whose record is known, with what could be opened of it.
#[derive(Debug)]
struct Known {
    record: EpochRecord,
    holder: Option<HolderPart>,
    member: Option<MemberPart>,
    /// Links that its keys open.
    links: BTreeSet<Link>,
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
    secrets: Vec<AgreeSecret>,
    known: BTreeMap<EpochId, Known>,
    given: Vec<(EpochId, KeyPart, Zeroizing<[u8; PART_LEN]>)>,
    /// Epochs of which a key was learned since last asked.
    news: BTreeSet<EpochId>,
}

impl KeyRing {
    /// An empty ring for a space, which opens envelopes with these secrets.
    pub fn new(space: SpaceId, secrets: Vec<AgreeSecret>) -> Self {
        Self {
            space,
            secrets,
            known: BTreeMap::new(),
            given: Vec::new(),
            news: BTreeSet::new(),
        }
    }

    /// Drops a secret; what it opened stays.
    pub fn forget(&mut self, secret: &AgreeKey) {
        self.secrets.retain(|held| held.public() != *secret);
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
            links: BTreeSet::new(),
        };
        self.known.insert(id, known);
        let given = std::mem::take(&mut self.given);
        for (epoch, part, keys) in given {
            self.give(epoch, part, &keys);
        }
    }

    /// Takes in a link between two epochs whose records are known; ignores any other.
    pub fn add_link(&mut self, link: &Link) {
        if !self.known.contains_key(&link.earlier) {
            return;
        }
        let Some(known) = self.known.get_mut(&link.epoch) else {
            return;
        };
        known.links.insert(link.clone());
        self.follow(link.epoch);
    }

    /// Takes in an envelope; ignores it if it is for others or for an epoch whose record is not known.
    pub fn add_envelope(&mut self, envelope: &Envelope) {
        if !self.known.contains_key(&envelope.epoch) || self.has(&envelope.epoch, envelope.part) {
            return;
        }
        let secret = self
            .secrets
            .iter()
            .find(|secret| secret.public() == envelope.recipient);
        if let Some(keys) = secret.and_then(|secret| envelope.open(&self.space, secret)) {
            self.put(envelope.epoch, envelope.part, &keys);
            self.follow(envelope.epoch);
        }
    }

    /// Takes in keys that came another way, as in pairing; they stand once the epoch's record proves them.
    pub fn give(&mut self, epoch: EpochId, part: KeyPart, keys: &[u8; PART_LEN]) {
        if self.known.contains_key(&epoch) {
            self.put(epoch, part, keys);
            self.follow(epoch);
        } else if self.given.len() < GIVEN_MAX {
            self.given.push((epoch, part, Zeroizing::new(*keys)));
        }
    }

    /// Keeps keys if they are new and fit their epoch.
    fn put(&mut self, epoch: EpochId, part: KeyPart, keys: &[u8; PART_LEN]) -> bool {
        let Some(known) = self.known.get_mut(&epoch) else {
            return false;
        };
        let fits = match part {
            KeyPart::Holder if known.holder.is_none() => {
                let keys = HolderPart::from_bytes(keys);
                let fits = keys.commitment() == known.record.holder;
                known.holder = fits.then_some(keys);
                fits
            }
            KeyPart::Member if known.member.is_none() => {
                let keys = MemberPart::from_bytes(keys);
                let fits = keys.commitment() == known.record.member;
                known.member = fits.then_some(keys);
                fits
            }
            KeyPart::Holder | KeyPart::Member => false,
        };
        if fits {
            self.news.insert(epoch);
        }
        fits
    }

    /// Opens what an epoch's links lead to, and what those lead to.
    fn follow(&mut self, epoch: EpochId) {
        let mut queue = vec![epoch];
        while let Some(epoch) = queue.pop() {
            let Some(known) = self.known.get(&epoch) else {
                continue;
            };
            let found: Vec<_> = known
                .links
                .iter()
                .filter(|link| !self.has(&link.earlier, link.part))
                .filter_map(|link| {
                    let keys = link.open(&self.space, self.link_key(&epoch, link.part)?)?;
                    Some((link.earlier, link.part, keys))
                })
                .collect();
            for (earlier, part, keys) in found {
                if self.put(earlier, part, &keys) {
                    queue.push(earlier);
                }
            }
        }
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

    /// Epochs of which a key was learned since the last call.
    pub fn take_news(&mut self) -> BTreeSet<EpochId> {
        std::mem::take(&mut self.news)
    }

    /// All known epochs.
    pub fn epochs(&self) -> impl Iterator<Item = (&EpochId, &EpochRecord)> {
        self.known.iter().map(|(id, known)| (id, &known.record))
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

    /// The epochs whose part the keys of these lead to by links that open to the right keys, these included.
    ///
    /// Only links from epochs whose keys this device has can be followed, and only those are.
    pub fn reached(
        &self,
        epochs: impl IntoIterator<Item = EpochId>,
        part: KeyPart,
    ) -> BTreeSet<EpochId> {
        let mut queue: Vec<EpochId> = epochs.into_iter().collect();
        let mut found: BTreeSet<EpochId> = queue.iter().copied().collect();
        while let Some(epoch) = queue.pop() {
            let (Some(known), Some(key)) = (self.known.get(&epoch), self.link_key(&epoch, part))
            else {
                continue;
            };
            for link in known.links.iter().filter(|link| link.part == part) {
                if !found.contains(&link.earlier) && self.leads(link, key) {
                    found.insert(link.earlier);
                    queue.push(link.earlier);
                }
            }
        }
        found
    }

    /// Whether a link opens to keys that fit the epoch it names.
    fn leads(&self, link: &Link, key: &Secret) -> bool {
        let (Some(keys), Some(earlier)) =
            (link.open(&self.space, key), self.known.get(&link.earlier))
        else {
            return false;
        };
        match link.part {
            KeyPart::Holder => HolderPart::from_bytes(&keys).commitment() == earlier.record.holder,
            KeyPart::Member => MemberPart::from_bytes(&keys).commitment() == earlier.record.member,
        }
    }
}
