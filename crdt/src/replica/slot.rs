//! Where an author's next entry goes: its place in the chain, what it names, and how it is sealed and signed.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{DeviceKeys, Rng, RootKeys, SignKey};
use kith_object::time::{Hlc, Time};

use super::author::AuthorError;
use super::link::Origin;
use super::{Reading, Replica};
use crate::access::bits::Bits;
use crate::chain::{
    ACCESS_HEADS_MAX, DEPENDENCIES_MAX, DocumentKind, Draft, Header, Nonce, Plain, SealKeys,
    SealKind,
};
use crate::document::Place;

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
pub(super) struct Signer<'a> {
    pub(super) key: &'a SignKey,
    pub(super) id: DeviceId,
    pub(super) is_root: bool,
}

/// Where the next entry of a chain goes.
pub(super) struct Slot {
    pub(super) header: Header,
    pub(super) place: Place,
    /// Entries of `access` in its past.
    pub(super) past: Bits,
}

impl Replica {
    /// Where the signer's next entry of a document goes.
    pub(super) fn slot(
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
        let access_heads = self.named_access_heads(&signer.id, &epoch);
        let parents = previous.iter().chain(&bases).chain(&access_heads);
        let past = self.past_of(parents.copied());
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
        Slot {
            header,
            place,
            past,
        }
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

    /// The heads of `access` that the author's entry names: one that certifies the author, one that opened the epoch, then
    /// the latest. There are more than it may name only if somebody makes them on purpose.
    fn named_access_heads(&self, author: &DeviceId, epoch: &EpochId) -> Vec<u32> {
        let certificates = self.verdict.certificates.get(author).into_iter().flatten();
        let certificates: Vec<u32> = certificates.map(|(place, _)| *place).collect();
        let openings = self.opened_at.get(epoch).cloned().unwrap_or_default();
        let holds = |at: u32, places: &[u32]| {
            let entry = self
                .node(at)
                .and_then(|node| Some((node.place?, self.past(node)?)));
            entry.is_some_and(|(own, past)| {
                places
                    .iter()
                    .any(|place| *place == own || past.contains(*place))
            })
        };
        let mut left = self.access_heads();
        left.sort_by_key(|at| std::cmp::Reverse(self.node(*at).map(|node| (node.hlc, node.id))));
        let mut heads = Vec::new();
        for needed in [certificates, openings] {
            if !heads.iter().any(|at| holds(*at, &needed))
                && let Some(found) = left.iter().position(|at| holds(*at, &needed))
            {
                heads.push(left.remove(found));
            }
        }
        heads.extend(left);
        heads.truncate(ACCESS_HEADS_MAX);
        heads
    }

    /// Seals, signs and takes in an entry of this device or of the root.
    pub(super) fn commit(
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
    pub(super) fn device(keys: &'a DeviceKeys) -> Self {
        Self {
            key: keys.sign_key(),
            id: keys.id(),
            is_root: false,
        }
    }

    pub(super) fn root(root: &'a RootKeys) -> Self {
        Self {
            key: &root.sign,
            id: root.sign.id(),
            is_root: true,
        }
    }
}
