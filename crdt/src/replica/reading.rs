//! Reads payloads: opens them, checks them, hands their records on. What cannot be read yet is asked for again later.

use kith_object::id::EpochId;
use kith_object::key::Secret;

use super::{Reading, RecordChange, Replica};
use crate::access::{Content, Member, Role, Sealed};
use crate::chain::{Codec, DocumentKind, Entry, Plain, SealKind, push_record, records};
use crate::document::{self, Place};

/// What reading a payload came to.
struct Read {
    reading: Reading,
    records: Vec<Vec<u8>>,
}

impl Read {
    fn unfit() -> Self {
        Self {
            reading: Reading::Unfit,
            records: Vec::new(),
        }
    }
}

impl Replica {
    /// Reads an entry of `names` or `catalogue` that just got its place.
    pub(super) fn read(&mut self, at: u32, entry: &Entry) {
        match self.try_read(at, entry) {
            Some(read) => {
                self.conclude(at, read.reading);
                self.fresh.insert(at, read.records);
            }
            None => self.await_reading(at),
        }
    }

    /// Reads an entry whose payload came again.
    pub(super) fn read_again(&mut self, at: u32, entry: &Entry) {
        let wanted = self.node(at).is_some_and(|node| {
            node.place.is_none() && !node.told && node.reading != Reading::Unfit
        });
        if !wanted || entry.payload().is_none() {
            return;
        }
        let Some(read) = self.try_read(at, entry) else {
            self.await_reading(at);
            return;
        };
        if self
            .node(at)
            .is_some_and(|node| node.reading == Reading::Waiting)
        {
            self.conclude(at, read.reading);
            self.join_heads(at);
        }
        if self.node(at).is_some_and(|node| node.counted) {
            self.tell(at, read.records);
        }
    }

    /// Opens and checks; `None` if a key or what it builds upon is missing.
    fn try_read(&self, at: u32, entry: &Entry) -> Option<Read> {
        let node = self.node(at)?;
        let key = match node.document {
            DocumentKind::Names => self.change_key(&node.epoch)?,
            DocumentKind::Catalogue | DocumentKind::Access => self.holder_key(&node.epoch)?,
        };
        let place = self.place_of(at)?;
        let plain = open_first(entry, key);
        Some(match (node.document, plain) {
            (
                DocumentKind::Catalogue,
                Some(Plain {
                    codec: Codec::Records,
                    body,
                }),
            ) => match records(&body) {
                Ok(list) => {
                    let framed = list.iter().map(|record| {
                        let mut out = Vec::new();
                        push_record(&mut out, record.kind, record.body);
                        out
                    });
                    Read {
                        reading: Reading::Plain,
                        records: framed.collect(),
                    }
                }
                Err(_) => Read::unfit(),
            },
            (
                DocumentKind::Names | DocumentKind::Access,
                Some(Plain {
                    codec: Codec::Change,
                    body,
                }),
            ) => {
                let change = place.and_then(|place| {
                    let change = document::read(&place, &body).ok()?;
                    let reading = Reading::Fed {
                        hash: change.hash,
                        op_max: change.op_max,
                        seq: place.seq,
                    };
                    Some(Read {
                        reading,
                        records: change.records,
                    })
                });
                change.unwrap_or_else(Read::unfit)
            }
            _ => Read::unfit(),
        })
    }

    /// The records of an entry of `catalogue` that has its place here, for whoever did not keep them; `None` if it cannot be read.
    pub fn catalogue_records(&self, entry: &Entry) -> Option<Vec<Vec<u8>>> {
        let at = *self.index.get(&entry.id())?;
        let is_catalogue = entry.header().document == DocumentKind::Catalogue;
        let read = is_catalogue.then(|| self.try_read(at, entry))??;
        (read.reading == Reading::Plain).then_some(read.records)
    }

    fn holder_key(&self, epoch: &EpochId) -> Option<&Secret> {
        self.ring.holder(epoch).map(|part| &part.key)
    }

    /// The key that seals `names` in that epoch, if this device has it.
    pub fn change_key(&self, epoch: &EpochId) -> Option<&Secret> {
        self.ring.member(epoch).map(|part| &part.change)
    }

    /// Where the entry's change must stand. Outer `None`: something it builds upon was not read yet. Inner `None`: it
    /// builds upon what is no change, which no honest device does.
    fn place_of(&self, at: u32) -> Option<Option<Place>> {
        let node = self.node(at)?;
        if node.document == DocumentKind::Catalogue {
            return Some(None);
        }
        let mut base: Vec<u32> = node.dependencies.to_vec();
        let mut seq = 1;
        if let Some(previous) = node.previous.and_then(|previous| self.node(previous)) {
            if previous.reading == Reading::Waiting {
                return None;
            }
            if let Some(fed) = previous.chain_fed {
                base.push(fed);
                seq = self.node(fed).map_or(1, |node| {
                    if let Reading::Fed { seq, .. } = node.reading {
                        seq + 1
                    } else {
                        1
                    }
                });
            }
        }
        let (mut hashes, mut op_max) = (Vec::new(), 0);
        for node in base.iter().filter_map(|at| self.node(*at)) {
            match &node.reading {
                Reading::Waiting => return None,
                Reading::Fed {
                    hash,
                    op_max: theirs,
                    ..
                } => {
                    hashes.push(*hash);
                    op_max = op_max.max(*theirs);
                }
                Reading::Plain | Reading::Unfit => return Some(None),
            }
        }
        hashes.sort_unstable();
        hashes.dedup();
        Some(Some(Place {
            nonce: node.nonce,
            entry_seq: node.seq,
            seq,
            start_op: op_max + 1,
            dependencies: hashes,
        }))
    }

    /// Notes what a payload turned out to be, and asks for those that waited for that.
    fn conclude(&mut self, at: u32, reading: Reading) {
        let fed = matches!(reading, Reading::Fed { .. });
        let before = self
            .node(at)
            .and_then(|node| node.previous)
            .and_then(|previous| self.node(previous)?.chain_fed);
        if let Some(node) = self.node_mut(at) {
            node.reading = reading;
            node.chain_fed = if fed { Some(at) } else { before };
        }
        self.waiting.remove(&at);
        let next = self.waiting_on.remove(&at).unwrap_or_default();
        self.ask_again(&next);
    }

    fn ask_again(&mut self, list: &[u32]) {
        let ids: Vec<_> = list
            .iter()
            .filter_map(|at| self.node(*at))
            .map(|node| node.id)
            .collect();
        self.replay.extend(ids);
    }

    /// The payload cannot be read now: notes what it waits for.
    fn await_reading(&mut self, at: u32) {
        self.waiting.insert(at);
        let Some(node) = self.node(at) else { return };
        let key = match node.document {
            DocumentKind::Names => self.change_key(&node.epoch),
            DocumentKind::Catalogue | DocumentKind::Access => self.holder_key(&node.epoch),
        };
        if key.is_none() {
            // The key's coming asks for it.
            return;
        }
        let mut bases = node.previous.iter().chain(&node.dependencies).copied();
        let base = bases.find(|base| {
            self.node(*base)
                .is_some_and(|node| node.reading == Reading::Waiting)
        });
        if let Some(base) = base {
            let list = self.waiting_on.entry(base).or_default();
            if !list.contains(&at) {
                list.push(at);
            }
        }
    }

    /// Hands out the records of an entry that counts.
    pub(super) fn tell(&mut self, at: u32, records: Vec<Vec<u8>>) {
        let Some(node) = self.node_mut(at) else {
            return;
        };
        node.told = true;
        let (entry, author, hlc, document) = (node.id, node.author, node.hlc, node.document);
        let changes = (0u32..)
            .zip(records)
            .map(|(index, record)| RecordChange::Added {
                entry,
                index,
                author,
                hlc,
                record,
            });
        match document {
            DocumentKind::Names => self.version_changes.extend(changes),
            DocumentKind::Catalogue => self.catalogue_changes.extend(changes),
            DocumentKind::Access => {}
        }
    }

    /// Tries the sealed part of an entry of `access`; `true` if it could be opened, whatever came out.
    pub(super) fn read_access(&mut self, place: u32) -> bool {
        let Some((at, entry)) = self
            .entry(place)
            .and_then(|entry| Some((entry.node, entry.sealed.clone()?)))
        else {
            return false;
        };
        let Some(read) = self.try_read(at, &entry) else {
            return false;
        };
        let sealed = match read.records.as_slice() {
            [value] => Sealed::decode(value),
            _ => None,
        };
        let access = self.entry(place);
        let open = access.and_then(|access| access.open.as_deref().cloned());
        let malformed = access.is_some_and(|access| access.malformed);
        let author = entry.header().author;
        let content = sealed
            .filter(|_| !malformed)
            .map(|sealed| Content::new(&author, Some(sealed), open));
        self.conclude_access(place, read.reading, content);
        true
    }

    /// Notes what an entry of `access` says. What breaks a rule says nothing.
    pub(super) fn conclude_access(
        &mut self,
        place: u32,
        reading: Reading,
        content: Option<Content>,
    ) {
        let content = content.unwrap_or_default();
        let Some(at) = self.entry(place).map(|entry| entry.node) else {
            return;
        };
        self.conclude(at, reading);
        self.stale = true;
        self.unopened.remove(place);
        if let Some(removal) = &content.removal {
            self.frontier.extend(removal.frontier.iter().copied());
        }
        let entry = usize::try_from(place)
            .ok()
            .and_then(|place| self.entries.get_mut(place));
        if let Some(entry) = entry {
            entry.sealed = None;
            // What is needed of it went into the content.
            entry.open = None;
            entry.spared_is_stale = content.removal.is_some();
            entry.content = Some(Box::new(content));
        }
        self.certify(place);
    }

    /// Opens what new keys open, and asks for the payloads that they can read; `false` if there were none.
    pub(super) fn use_new_keys(&mut self) -> bool {
        let news = self.ring.take_news();
        if news.is_empty() {
            return false;
        }
        self.keys_changed = true;
        // In order of places, so that each finds what it builds upon read. Late opening can certify authors anew.
        let unopened: Vec<u32> = self.unopened.iter().collect();
        let mut any = false;
        for place in unopened {
            any |= self.read_access(place);
        }
        if any {
            self.certify_all();
            self.prove();
        }
        let readable: Vec<u32> = self
            .waiting
            .iter()
            .filter(|at| {
                let node = self.node(**at).filter(|node| node.place.is_none());
                node.is_some_and(|node| news.contains(&node.epoch))
            })
            .copied()
            .collect();
        self.ask_again(&readable);
        true
    }

    /// Notes the certificate in an entry, if whoever wrote it could ever give one.
    fn certify(&mut self, place: u32) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let Some(Member { device, role, .. }) = entry
            .content
            .as_ref()
            .and_then(|content| content.member.as_ref())
        else {
            return;
        };
        let (device, role) = (*device, *role);
        let node = self.node(entry.node).filter(|node| !node.thrown_out);
        let Some(author) = node.map(|node| node.author) else {
            return;
        };
        let by_root = self.is_root(&author);
        let made_admin = |list: &Vec<(u32, Role)>| {
            list.iter()
                .any(|(at, role)| *role == Role::Admin && entry.past.contains(*at))
        };
        let by_admin = role < Role::Admin && self.certificates.get(&author).is_some_and(made_admin);
        if by_root || by_admin {
            let list = self.certificates.entry(device).or_default();
            list.push((place, role));
        }
    }

    pub(super) fn certify_all(&mut self) {
        self.certificates.clear();
        let count = u32::try_from(self.entries.len()).expect("fewer than all entries");
        for place in 0..count {
            self.certify(place);
        }
    }
}

/// The first part, opened with this key; for all documents it is the sealed one.
fn open_first(entry: &Entry, key: &Secret) -> Option<Plain> {
    let parts = entry.parts()?;
    let part = parts.first().filter(|part| part.seal != SealKind::Open)?;
    part.open(entry.header(), 0, parts.len(), Some(key))
}
