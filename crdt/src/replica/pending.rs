//! Entries whose parents have not come yet. Bounded: out of order is normal, but not by thousands.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, EntryId};

use super::link::Origin;
use crate::chain::Entry;

/// Entries that may wait: what a walk over a stream delivers out of order is far less.
const ENTRIES_MAX: usize = 4096;
/// Bytes of theirs that may be held.
const BYTES_MAX: usize = 64 << 20;
/// What part of either one author may take.
const SHARE: usize = 4;

struct Waiting {
    entry: Entry,
    origin: Origin,
    missing: BTreeSet<EntryId>,
    bytes: usize,
}

/// Entries that wait for others.
pub(super) struct Pending {
    entries_max: usize,
    bytes_max: usize,
    waiting: BTreeMap<EntryId, Waiting>,
    by_missing: BTreeMap<EntryId, BTreeSet<EntryId>>,
    by_author: BTreeMap<DeviceId, (usize, usize)>,
    bytes: usize,
}

fn weight(entry: &Entry) -> usize {
    // Header, signature and what the maps here take.
    let parents = entry.header().access_heads.len() + entry.header().dependencies.len();
    entry.payload().map_or(0, bytes::Bytes::len) + 1024 + parents * 256
}

impl Default for Pending {
    fn default() -> Self {
        Self::with_limits(ENTRIES_MAX, BYTES_MAX)
    }
}

impl Pending {
    fn with_limits(entries_max: usize, bytes_max: usize) -> Self {
        Self {
            entries_max,
            bytes_max,
            waiting: BTreeMap::new(),
            by_missing: BTreeMap::new(),
            by_author: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whose entries wait.
    pub(super) fn authors(&self) -> impl Iterator<Item = &DeviceId> {
        self.by_author.keys()
    }

    pub(super) fn contains(&self, id: &EntryId) -> bool {
        self.waiting.contains_key(id)
    }

    /// What the entry waits for.
    pub(super) fn missing_of(&self, id: &EntryId) -> Vec<EntryId> {
        self.waiting
            .get(id)
            .into_iter()
            .flat_map(|waiting| &waiting.missing)
            .copied()
            .collect()
    }

    /// Keeps an entry until `missing` have come; `false` if there is no room.
    ///
    /// Anyone can sign with a key of their own, so an author that nobody admitted yet makes room for one that is.
    pub(super) fn add(
        &mut self,
        (entry, origin): (Entry, Origin),
        missing: BTreeSet<EntryId>,
        is_known: impl Fn(&DeviceId) -> bool,
    ) -> bool {
        if cfg!(planted = "lose-what-waits") {
            return true;
        }
        let bytes = weight(&entry);
        let author = entry.header().author;
        let (count, held) = self.by_author.get(&author).copied().unwrap_or_default();
        if count >= self.entries_max / SHARE || held + bytes > self.bytes_max / SHARE {
            return false;
        }
        while self.waiting.len() >= self.entries_max || self.bytes + bytes > self.bytes_max {
            let stranger = self
                .by_author
                .keys()
                .find(|other| !is_known(other) && **other != author)
                .copied();
            let Some(stranger) = stranger.filter(|_| is_known(&author)) else {
                return false;
            };
            let theirs: Vec<EntryId> = self
                .waiting
                .iter()
                .filter(|(_, held)| held.entry.header().author == stranger)
                .map(|(id, _)| *id)
                .collect();
            for id in theirs {
                self.remove(&id);
            }
        }
        for id in &missing {
            self.by_missing.entry(*id).or_default().insert(entry.id());
        }
        self.bytes += bytes;
        self.by_author.insert(author, (count + 1, held + bytes));
        self.waiting.insert(
            entry.id(),
            Waiting {
                entry,
                origin,
                missing,
                bytes,
            },
        );
        true
    }

    /// Takes out an entry.
    pub(super) fn remove(&mut self, id: &EntryId) -> Option<(Entry, Origin)> {
        let Waiting {
            entry,
            origin,
            missing,
            bytes,
        } = self.waiting.remove(id)?;
        for parent in missing {
            if let Some(children) = self.by_missing.get_mut(&parent) {
                children.remove(id);
                if children.is_empty() {
                    self.by_missing.remove(&parent);
                }
            }
        }
        self.bytes -= bytes;
        let author = entry.header().author;
        if let Some((count, held)) = self.by_author.get_mut(&author) {
            *count -= 1;
            *held -= bytes;
            if *count == 0 {
                self.by_author.remove(&author);
            }
        }
        Some((entry, origin))
    }

    /// `parent` has come: takes out the entries that waited for nothing else.
    pub(super) fn release(&mut self, parent: &EntryId) -> Vec<(Entry, Origin)> {
        let children = self.by_missing.remove(parent).unwrap_or_default();
        let mut free = Vec::new();
        for child in children {
            if let Some(waiting) = self.waiting.get_mut(&child) {
                waiting.missing.remove(parent);
                if waiting.missing.is_empty() {
                    free.push(child);
                }
            }
        }
        free.into_iter().filter_map(|id| self.remove(&id)).collect()
    }

    /// `parent` will never come: takes out the entries that waited for it.
    pub(super) fn doom(&mut self, parent: &EntryId) -> Vec<EntryId> {
        let children = self.by_missing.get(parent).cloned().unwrap_or_default();
        children
            .into_iter()
            .filter(|id| self.remove(id).is_some())
            .collect()
    }

    /// Parents waited for that do not wait themselves.
    pub(super) fn missing(&self) -> Vec<EntryId> {
        let wanted = self
            .by_missing
            .keys()
            .filter(|id| !self.waiting.contains_key(*id));
        wanted.take(ENTRIES_MAX).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Codec, DocumentKind, Draft, Header, Nonce, Plain, SealKeys, SealKind};
    use kith_object::id::{EpochId, SpaceId};
    use kith_object::key::{DeviceKeys, Rng};
    use kith_object::time::Hlc;
    use zeroize::Zeroizing;

    fn orphan(keys: &DeviceKeys, parent: u8, rng: &mut Rng) -> Entry {
        let header = Header {
            space: SpaceId([1; 32]),
            document: DocumentKind::Access,
            author: keys.id(),
            nonce: Nonce(rng.bytes()),
            seq: 0,
            previous: EntryId::default(),
            hlc: Hlc(1),
            epoch: EpochId::default(),
            payload_len: 0,
            payload_root: [0; 32],
            access_heads: vec![EntryId([parent; 32])],
            dependencies: Vec::new(),
        };
        let plain = Plain {
            codec: Codec::Records,
            body: Zeroizing::new(Vec::new()),
        };
        let draft = Draft {
            header,
            parts: vec![(SealKind::Open, plain)],
        };
        draft
            .seal(SealKeys::default(), keys.sign_key(), rng)
            .unwrap()
    }

    fn add(pending: &mut Pending, entry: &Entry, known: &[DeviceId]) -> bool {
        let missing = entry.header().parents().collect();
        pending.add((entry.clone(), Origin::Peer), missing, |author| {
            known.contains(author)
        })
    }

    #[test]
    fn flood_of_orphans_leaves_room_for_members() {
        let mut rng = Rng::from_seed([3; 32]);
        let member = DeviceKeys::generate(&mut rng);
        let known = [member.id()];
        let mut pending = Pending::with_limits(40, 1 << 20);
        // One stranger gets its share and no more; many get all that is left.
        let stranger = DeviceKeys::generate(&mut rng);
        let kept = (0..40)
            .filter(|_| {
                let entry = orphan(&stranger, 1, &mut rng);
                add(&mut pending, &entry, &known)
            })
            .count();
        assert_eq!(kept, 10);
        for _ in 0..60 {
            let keys = DeviceKeys::generate(&mut rng);
            let entry = orphan(&keys, 2, &mut rng);
            add(&mut pending, &entry, &known);
        }
        assert_eq!(pending.len(), 40);
        let mine: Vec<Entry> = (0..10).map(|_| orphan(&member, 3, &mut rng)).collect();
        assert!(mine.iter().all(|entry| add(&mut pending, entry, &known)));
        assert!(pending.len() <= 40);
        let freed = pending.release(&EntryId([3; 32]));
        assert_eq!(freed.len(), 10);
        for parent in [1, 2] {
            pending.release(&EntryId([parent; 32]));
        }
        assert_eq!((pending.len(), pending.bytes), (0, 0));
        assert!(pending.by_author.is_empty() && pending.by_missing.is_empty());
    }
}
