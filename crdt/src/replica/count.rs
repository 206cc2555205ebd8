//! Decides which entries count, and what digests cover: those and all they name.

use std::collections::BTreeSet;

use kith_object::id::DeviceId;

use super::{DigestChange, Node, Reading, RecordChange, Replica};
use crate::access::bits::Bits;
use crate::access::fold::{Item, Verdict, fold, may_write};
use crate::access::{Access, Device, Removed, Role};
use crate::chain::DocumentKind;

impl Replica {
    /// Draws all conclusions from what was linked, opened or learned.
    pub(super) fn settle(&mut self) {
        while self.use_new_keys() {}
        let keys_changed = std::mem::take(&mut self.keys_changed);
        let folded = self.stale;
        if self.stale && self.refold() {
            self.count_all();
        } else {
            self.count_fresh();
        }
        if folded {
            self.renew_access();
        }
        let used_changed = std::mem::take(&mut self.used_changed);
        if folded || keys_changed || used_changed {
            self.renew_sealing();
        }
    }

    /// Folds `access` anew; `true` if that changes anything for entries that were judged before.
    fn refold(&mut self) -> bool {
        self.stale = false;
        let mut spared_anew = false;
        let stale: Vec<usize> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.spared_is_stale)
            .map(|(place, _)| place)
            .collect();
        for place in stale {
            let spared = self.entries.get(place).map(|entry| self.spared(entry));
            if let (Some(entry), Some(spared)) = (self.entries.get_mut(place), spared) {
                entry.spared_is_stale = false;
                spared_anew |= entry.spared != spared;
                entry.spared = spared;
            }
        }
        let items: Vec<Item<'_>> = self
            .entries
            .iter()
            .filter_map(|entry| {
                let Node {
                    id,
                    author,
                    payload_len,
                    thrown_out,
                    ..
                } = self.node(entry.node)?;
                Some(Item {
                    author: *author,
                    id: *id,
                    payload_len: *payload_len,
                    thrown_out: *thrown_out,
                    node: entry.node,
                    past: &entry.past,
                    content: entry.content.as_deref().filter(|_| !thrown_out),
                    spared: entry.spared.as_ref(),
                })
            })
            .collect();
        let verdict = fold(
            &self.space,
            self.genesis.as_ref().map(|genesis| genesis.root),
            &items,
        );
        let same = !std::mem::take(&mut self.threw_out)
            && !spared_anew
            && agrees_on_the_old(&self.verdict, &verdict);
        self.verdict = verdict;
        !same
    }

    /// All entries in the past of a removal's frontier, the frontier included.
    fn spared(&self, entry: &super::AccessEntry) -> Option<Bits> {
        let removal = entry.content.as_ref()?.removal.as_ref()?;
        let mut queue: Vec<u32> = removal
            .frontier
            .iter()
            .filter_map(|id| self.index.get(id))
            .copied()
            .collect();
        let mut spared = Bits::default();
        while let Some(at) = queue.pop() {
            if spared.insert(at) {
                queue.extend(
                    self.node(at)
                        .into_iter()
                        .flat_map(|node| node.parents())
                        .filter(|at| !spared.contains(*at)),
                );
            }
        }
        Some(spared)
    }

    /// Whether an entry counts.
    pub(super) fn judge(&self, at: u32) -> bool {
        let Some(node) = self.node(at).filter(|node| !node.thrown_out) else {
            return false;
        };
        if let Some(place) = node.place {
            return usize::try_from(place)
                .is_ok_and(|place| self.verdict.counted.get(place) == Some(&true));
        }
        let Some(past) = self.past(node) else {
            return false;
        };
        if self.verdict.overrun.contains_key(&node.author) {
            return false;
        }
        let role = self.verdict.role_at(&node.author, past);
        role.is_some_and(|role| may_write(role, node.document)) && self.is_spared(&node.author, at)
    }

    fn is_spared(&self, author: &DeviceId, at: u32) -> bool {
        let places = self.verdict.removals.get(author).into_iter().flatten();
        places.into_iter().all(|place| {
            let spared = self.entry(*place).and_then(|entry| entry.spared.as_ref());
            spared.is_some_and(|spared| spared.contains(at))
                || cfg!(planted = "ignore-the-frontier")
        })
    }

    /// Judges what got its place since the last time; for all others nothing has changed.
    fn count_fresh(&mut self) {
        while let Some((at, records)) = self.fresh.pop_first() {
            if self.judge(at) {
                self.set_counted(at, true);
                self.cover(at);
                self.join_heads(at);
                self.begin(at, Some(records));
            } else {
                self.note_void(at);
            }
        }
    }

    /// Judges every entry.
    fn count_all(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        let count =
            u32::try_from(self.nodes.len()).expect("four billion entries do not fit memory");
        let (mut gained, mut lost) = (Vec::new(), Vec::new());
        for at in 0..count {
            let counts = self.judge(at);
            match (self.node(at).is_some_and(|node| node.counted), counts) {
                (false, true) => gained.push(at),
                (true, false) => lost.push(at),
                (false, false) if fresh.contains_key(&at) => self.note_void(at),
                _ => {}
            }
            self.set_counted(at, counts);
        }
        for at in &lost {
            self.cease(*at);
        }
        if lost.is_empty() {
            for at in &gained {
                self.cover(*at);
            }
        } else {
            self.cover_all();
        }
        self.heads.clear();
        for at in 0..count {
            self.join_heads(at);
        }
        for at in gained {
            let records = fresh.remove(&at);
            self.begin(at, records);
        }
    }

    fn set_counted(&mut self, at: u32, counts: bool) {
        let Some(node) = self.node_mut(at) else {
            return;
        };
        let before = std::mem::replace(&mut node.counted, counts);
        let epoch = node.epoch;
        match (before, counts) {
            (false, true) => {
                let users = self.used.entry(epoch).or_default();
                self.used_changed |= *users == 0;
                *users += 1;
            }
            (true, false) => {
                if let Some(users) = self.used.get_mut(&epoch) {
                    *users -= 1;
                    if *users == 0 {
                        self.used.remove(&epoch);
                        self.used_changed = true;
                    }
                }
            }
            _ => {}
        }
    }

    fn note_void(&mut self, at: u32) {
        let Some((author, len)) = self.node(at).map(|node| (node.author, node.payload_len)) else {
            return;
        };
        if self.is_void(&author) {
            let (entries, bytes) = self.voids.entry(author).or_default();
            *entries += 1;
            *bytes = bytes.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        }
    }

    /// Hands out the records of an entry that counts now, or asks for its payload if they are not at hand.
    fn begin(&mut self, at: u32, records: Option<Vec<Vec<u8>>>) {
        let Some(node) = self.node(at) else { return };
        let id = node.id;
        let read =
            node.place.is_none() && matches!(node.reading, Reading::Fed { .. } | Reading::Plain);
        match records {
            Some(records) if read => self.tell(at, records),
            None if read => self.replay.push(id),
            _ => {}
        }
    }

    /// Takes back the records of an entry that counts no longer.
    fn cease(&mut self, at: u32) {
        let Some(node) = self.node_mut(at) else {
            return;
        };
        let (entry, document) = (node.id, node.document);
        if std::mem::take(&mut node.told) {
            let change = RecordChange::Removed { entry };
            match document {
                DocumentKind::Names => self.version_changes.push(change),
                DocumentKind::Catalogue => self.catalogue_changes.push(change),
                DocumentKind::Access => {}
            }
        }
    }

    /// Lets digests cover an entry and all it names.
    fn cover(&mut self, at: u32) {
        let mut queue = vec![at];
        while let Some(at) = queue.pop() {
            let Some(node) = self.node_mut(at) else {
                continue;
            };
            if std::mem::replace(&mut node.in_digest, true) {
                continue;
            }
            queue.extend(node.parents());
            self.note_digest(at, true);
        }
    }

    /// Works out what digests cover from scratch.
    fn cover_all(&mut self) {
        let mut covered = Bits::default();
        let mut queue: Vec<u32> = (0u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.counted)
            .map(|(at, _)| at)
            .collect();
        while let Some(at) = queue.pop() {
            if covered.insert(at) {
                queue.extend(
                    self.node(at)
                        .into_iter()
                        .flat_map(|node| node.parents())
                        .filter(|at| !covered.contains(*at)),
                );
            }
        }
        let changes: Vec<(u32, bool)> = (0u32..)
            .zip(&self.nodes)
            .filter(|(at, node)| node.in_digest != covered.contains(*at))
            .map(|(at, node)| (at, !node.in_digest))
            .collect();
        for (at, added) in changes {
            if let Some(node) = self.node_mut(at) {
                node.in_digest = added;
            }
            self.note_digest(at, added);
        }
    }

    fn note_digest(&mut self, at: u32, added: bool) {
        let change = self.node(at).map(|node| DigestChange {
            document: node.document,
            hlc: node.hlc,
            id: node.id,
            added,
        });
        self.digest_changes.extend(change);
    }

    /// Makes an entry a head of its document in place of what it builds upon.
    pub(super) fn join_heads(&mut self, at: u32) {
        let Some(document) = self.node(at).map(|node| node.document) else {
            return;
        };
        let mut heads = self.heads.remove(&document).unwrap_or_default();
        self.replace_heads(at, &mut heads);
        self.heads.insert(document, heads);
    }

    pub(super) fn replace_heads(&self, at: u32, heads: &mut BTreeSet<u32>) {
        let Some(node) = self.node(at).filter(|node| node.counted) else {
            return;
        };
        let before = match node.document {
            DocumentKind::Names if matches!(node.reading, Reading::Fed { .. }) => node
                .previous
                .and_then(|previous| self.node(previous)?.chain_fed),
            DocumentKind::Catalogue => node.previous,
            DocumentKind::Names | DocumentKind::Access => return,
        };
        for at in node.dependencies.iter().copied().chain(before) {
            heads.remove(&at);
        }
        heads.insert(at);
    }

    /// The entries of `access` that count and are in the past of no other such.
    pub(super) fn access_heads(&self) -> Vec<u32> {
        let counted = |place: u32| {
            usize::try_from(place).is_ok_and(|place| self.verdict.counted.get(place) == Some(&true))
        };
        let mut covered = Bits::default();
        for (place, entry) in (0u32..).zip(&self.entries) {
            if counted(place) {
                covered.union(&entry.past);
            }
        }
        let heads = (0u32..)
            .zip(&self.entries)
            .filter(|(place, _)| counted(*place) && !covered.contains(*place));
        heads.map(|(_, entry)| entry.node).collect()
    }

    /// Shows what the fold came to.
    fn renew_access(&mut self) {
        let mut access = Access {
            root: self.genesis.as_ref().map(|genesis| genesis.root),
            recovery: self.genesis.as_ref().map(|genesis| genesis.recovery),
            outdated: self.verdict.outdated,
            ..Access::default()
        };
        for (device, certificates) in &self.verdict.certificates {
            let shown = self.show_device(certificates);
            let overrun = self.verdict.overrun.contains_key(device);
            let none = Vec::new();
            let removals = self.verdict.removals.get(device);
            match removals.or(overrun.then_some(&none)) {
                None => {
                    access.members.insert(*device, shown);
                }
                Some(places) => {
                    let removals = self.ids_of(places);
                    access.removed.insert(
                        *device,
                        Removed {
                            name: shown.name,
                            role: Some(shown.role),
                            removals,
                        },
                    );
                }
            }
        }
        for (device, places) in &self.verdict.removals {
            let removals = self.ids_of(places);
            access.removed.entry(*device).or_insert(Removed {
                name: String::new(),
                role: None,
                removals,
            });
        }
        let counted = self.verdict.epochs.keys().copied();
        let followed = self.ring.ancestors(counted.clone());
        access.epoch_heads = counted.filter(|epoch| !followed.contains(epoch)).collect();
        if access != self.access {
            self.access = access;
            self.access_changed = true;
        }
    }

    fn ids_of(&self, places: &[u32]) -> BTreeSet<kith_object::id::EntryId> {
        places
            .iter()
            .filter_map(|place| self.node(self.entry(*place)?.node))
            .map(|node| node.id)
            .collect()
    }

    /// A device as its certificates describe it. The root's word goes before an admin's.
    fn show_device(&self, certificates: &[(u32, Role)]) -> Device {
        let mut list: Vec<_> = certificates
            .iter()
            .filter_map(|(place, role)| {
                let entry = self.entry(*place)?;
                let node = self.node(entry.node)?;
                let member = entry.content.as_ref()?.member.as_ref()?;
                Some((self.is_root(&node.author), node.hlc, node.id, *role, member))
            })
            .collect();
        list.sort_by_key(|(by_root, hlc, id, ..)| (*by_root, *hlc, *id));
        let role = list
            .iter()
            .map(|(.., role, _)| *role)
            .max()
            .unwrap_or(Role::Blind);
        let Some((by_root, .., latest)) = list.last() else {
            return Device {
                role,
                name: String::new(),
                agree: None,
            };
        };
        // Two certificates with two keys: one of them is false, and a key that an enemy chose must get no envelope.
        let mut weighty = list.iter().filter(|(root, ..)| root == by_root);
        let agreed = weighty.all(|(.., member)| member.agree == latest.agree);
        Device {
            role,
            name: latest.name.clone(),
            agree: agreed.then_some(latest.agree),
        }
    }
}

/// Whether the new verdict says of all entries that the old one knew what the old one said.
fn agrees_on_the_old(old: &Verdict, new: &Verdict) -> bool {
    let known = u32::try_from(old.counted.len()).unwrap_or(u32::MAX);
    let earlier = new.certificates.iter().filter_map(|(device, list)| {
        let list: Vec<(u32, Role)> = list
            .iter()
            .filter(|(place, _)| *place < known)
            .copied()
            .collect();
        (!list.is_empty()).then_some((device, list))
    });
    new.counted.starts_with(&old.counted)
        && old.removals == new.removals
        && old.overrun.keys().eq(new.overrun.keys())
        && old
            .certificates
            .iter()
            .map(|(device, list)| (device, list.clone()))
            .eq(earlier)
}
