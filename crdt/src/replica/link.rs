//! Gives entries their place: signature, parents, and what headers must say of one another.
//!
//! Whether an entry is refused follows from itself and its past alone, so that every device refuses the same.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EntryId, EpochId};

use super::{AccessEntry, Inserted, Node, Reading, Replica, VOID_BYTES_MAX, VOID_ENTRIES_MAX};
use crate::access::bits::Bits;
use crate::access::fold::may_write;
use crate::access::{Content, Opened, Role};
use crate::chain::{Codec, DocumentKind, Entry, Header, Part, SealKind};

/// Refused entries that are remembered, so that nobody waits for one.
const REJECTED_MAX: usize = 4096;

/// Entries taken whose authors' certificates cannot be read for want of keys. Pairing and words bring the keys first.
const UNPROVEN_MAX: usize = 65_536;

/// Where an entry comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Another device: everything is checked, and the entry is handed out for the log.
    Peer,
    /// Our own log, which keeps checksums and holds only what was checked before.
    Log,
    /// This device just wrote it.
    Author,
}

/// What linking one entry came to.
enum Linked {
    Taken,
    Full,
    Rejected(&'static str),
}

/// What an author's certificates come to.
enum Standing {
    Certified,
    /// The certificate may stand in what cannot be opened yet.
    Unproven,
    /// There is no room for more of this author's.
    Full,
    Never(&'static str),
}

/// The entries that a header names.
struct Parents {
    previous: Option<u32>,
    dependencies: Box<[u32]>,
    access_heads: Box<[u32]>,
}

impl Parents {
    fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.previous
            .iter()
            .chain(&self.dependencies)
            .chain(&self.access_heads)
            .copied()
    }
}

impl Replica {
    /// Takes in an entry from another device.
    pub fn insert(&mut self, entry: Entry) -> Inserted {
        self.take(entry, Origin::Peer)
    }

    /// Takes in an entry from this device's own log: what was checked before it was written there is not checked again.
    pub fn restore(&mut self, entry: Entry) -> Inserted {
        self.take(entry, Origin::Log)
    }

    /// The same for many. What they come to is worked out once for all of them, where one by one every entry of `access`
    /// costs a fold over all; their records are held in memory meanwhile, so some hundred at a time are enough.
    pub fn restore_all(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.take_unsettled(entry, Origin::Log);
        }
        self.settle();
    }

    pub(super) fn take(&mut self, entry: Entry, origin: Origin) -> Inserted {
        let outcome = self.take_unsettled(entry, origin);
        if outcome == Inserted::Taken {
            self.settle();
        }
        outcome
    }

    /// Gives an entry its place and draws no conclusions from it yet.
    fn take_unsettled(&mut self, entry: Entry, origin: Origin) -> Inserted {
        let id = entry.id();
        if let Some(at) = self
            .index
            .get(&id)
            .copied()
            .filter(|at| !self.is_thrown_out(*at))
        {
            self.read_again(at, &entry);
            return Inserted::Known;
        }
        if self.is_refused(&id) {
            return Inserted::Rejected("refused before");
        }
        if self.pending.contains(&id) {
            return Inserted::Pending {
                missing: self.not_here(&self.pending.missing_of(&id)),
            };
        }
        if entry.header().space != self.space {
            return self.refuse(None, "of another space");
        }
        if entry.payload().is_none() {
            return self.refuse(None, "without its payload");
        }
        if origin == Origin::Peer && !entry.is_signed() && !cfg!(planted = "skip-a-signature") {
            return self.refuse(None, "signature does not hold");
        }
        if entry
            .header()
            .parents()
            .any(|parent| self.rejected.contains(&parent))
        {
            return self.refuse(Some(id), "builds upon a refused entry");
        }
        let missing: BTreeSet<EntryId> = entry
            .header()
            .parents()
            .filter(|parent| !self.contains(parent))
            .collect();
        if !missing.is_empty() {
            return self.hold((entry, origin), missing);
        }
        self.link_all(vec![(entry, origin)])
    }

    fn is_thrown_out(&self, at: u32) -> bool {
        self.node(at).is_some_and(|node| node.thrown_out)
    }

    fn is_refused(&self, id: &EntryId) -> bool {
        let thrown_out = self.index.get(id).is_some_and(|at| self.is_thrown_out(*at));
        thrown_out || self.rejected.contains(id)
    }

    fn not_here(&self, ids: &[EntryId]) -> Vec<EntryId> {
        ids.iter()
            .filter(|id| !self.contains(id))
            .copied()
            .collect()
    }

    fn hold(&mut self, entry: (Entry, Origin), missing: BTreeSet<EntryId>) -> Inserted {
        let list: Vec<EntryId> = missing.iter().copied().collect();
        let root = self.genesis.as_ref().map(|genesis| genesis.root);
        let certificates = &self.certificates;
        let is_known =
            |author: &DeviceId| Some(*author) == root || certificates.contains_key(author);
        if self.pending.add(entry, missing, is_known) {
            Inserted::Pending {
                missing: self.not_here(&list),
            }
        } else {
            Inserted::Full
        }
    }

    /// Gives these entries their place, and those that waited for them; says what became of the first.
    pub(super) fn link_all(&mut self, mut ready: Vec<(Entry, Origin)>) -> Inserted {
        let mut first = None;
        ready.reverse();
        while let Some((entry, origin)) = ready.pop() {
            let id = entry.id();
            let outcome = match self.link(&entry, origin) {
                Linked::Taken => {
                    if origin == Origin::Peer {
                        self.accepted.push(entry);
                    }
                    ready.extend(self.pending.release(&id));
                    Inserted::Taken
                }
                Linked::Full => Inserted::Full,
                Linked::Rejected(why) => self.refuse(Some(id), why),
            };
            first.get_or_insert(outcome);
        }
        first.unwrap_or(Inserted::Taken)
    }

    /// Refuses an entry; by `id` if its header is to blame. A bad signature or a lost payload says nothing about the id.
    fn refuse(&mut self, id: Option<EntryId>, why: &'static str) -> Inserted {
        self.stats.rejected += 1;
        let mut list: Vec<EntryId> = id.into_iter().collect();
        while let Some(id) = list.pop() {
            if self.rejected.len() == REJECTED_MAX {
                self.rejected.pop_front();
            }
            self.rejected.push_back(id);
            // Nobody shall wait for a refused entry.
            list.extend(self.pending.doom(&id));
        }
        Inserted::Rejected(why)
    }

    /// Gives an entry its place; all its parents have theirs.
    fn link(&mut self, entry: &Entry, origin: Origin) -> Linked {
        let header = entry.header();
        let (Some(parts), Some(parents)) = (entry.parts(), self.resolve(header)) else {
            return Linked::Rejected("without its payload");
        };
        // One that waited for something else may have been overtaken by the fate of another parent.
        if parents.all().any(|at| self.is_thrown_out(at)) {
            return Linked::Rejected("builds upon a refused entry");
        }
        if let Err(why) = self
            .check_chain(header, &parents)
            .and_then(|()| check_shape(header, &parts))
        {
            return Linked::Rejected(why);
        }
        if cfg!(planted = "ignore-a-fork") && self.nodes.iter().any(|node| is_beside(node, header))
        {
            return Linked::Rejected("another stands in its place");
        }
        let open = open_part(header, &parts).and_then(|body| Opened::decode(&body, &self.space));
        if header.access_heads.is_empty() {
            let genesis = open.as_ref().and_then(|open| open.genesis.as_ref());
            let Some(genesis) = genesis
                .filter(|genesis| genesis.space() == self.space && genesis.root == header.author)
            else {
                return Linked::Rejected("names no head of access and is not genesis");
            };
            self.genesis.get_or_insert_with(|| genesis.clone());
        }
        let past = self.past_of(parents.all());
        if !self.epoch_is_known(&header.epoch, &past) {
            return Linked::Rejected("sealed under an epoch that nobody opened");
        }
        let ends = ends_at_most(header, &parts);
        let standing = self.check_author((entry.id(), header), ends, &past, origin);
        match standing {
            Standing::Certified => {}
            Standing::Unproven if self.unproven.len() < UNPROVEN_MAX => {}
            Standing::Unproven | Standing::Full => return Linked::Full,
            Standing::Never(why) => return Linked::Rejected(why),
        }
        let at = u32::try_from(self.nodes.len()).expect("four billion entries do not fit memory");
        let is_access = header.document == DocumentKind::Access;
        let place =
            is_access.then(|| u32::try_from(self.entries.len()).expect("fewer than all entries"));
        let past_index = self.intern(past.clone());
        self.nodes.push(Node {
            id: entry.id(),
            document: header.document,
            author: header.author,
            nonce: header.nonce,
            seq: header.seq,
            hlc: header.hlc,
            epoch: header.epoch,
            payload_len: header.payload_len,
            previous: parents.previous,
            dependencies: parents.dependencies,
            access_heads: parents.access_heads,
            past: past_index,
            place,
            reading: Reading::Waiting,
            chain_fed: None,
            counted: false,
            in_digest: false,
            told: false,
            thrown_out: false,
        });
        if matches!(standing, Standing::Unproven) {
            self.unproven.insert(at);
        }
        self.index.insert(entry.id(), at);
        self.fresh.insert(at, Vec::new());
        if self.frontier.contains(&entry.id()) {
            self.spare_again(&entry.id());
        }
        if let Some(place) = place {
            self.add_access(at, place, past, entry, open);
        } else {
            self.read(at, entry);
        }
        Linked::Taken
    }

    fn resolve(&self, header: &Header) -> Option<Parents> {
        let find = |ids: &[EntryId]| {
            ids.iter()
                .map(|id| self.index.get(id).copied())
                .collect::<Option<Box<[u32]>>>()
        };
        let previous = if header.seq == 0 {
            None
        } else {
            Some(*self.index.get(&header.previous)?)
        };
        Some(Parents {
            previous,
            dependencies: find(&header.dependencies)?,
            access_heads: find(&header.access_heads)?,
        })
    }

    /// What the header says of its parents.
    fn check_chain(&self, header: &Header, parents: &Parents) -> Result<(), &'static str> {
        if let Some(previous) = parents.previous.and_then(|at| self.node(at)) {
            if (previous.author, previous.nonce) != (header.author, header.nonce) {
                return Err("follows an entry of another chain");
            }
            if previous.document != header.document {
                return Err("changes the document within a chain");
            }
            if previous.seq.checked_add(1) != Some(header.seq) {
                return Err("is out of sequence");
            }
            if header.hlc <= previous.hlc && !cfg!(planted = "stamp-may-fall") {
                return Err("stamp does not rise along the chain");
            }
        }
        let all_of = |list: &[u32], document| {
            list.iter()
                .all(|at| self.node(*at).is_some_and(|node| node.document == document))
        };
        if !all_of(&parents.access_heads, DocumentKind::Access) {
            return Err("names a head of access that is none");
        }
        if !all_of(&parents.dependencies, header.document) {
            return Err("depends on an entry of another document");
        }
        Ok(())
    }

    /// The entries of `access` in the past of an entry with these parents.
    pub(super) fn past_of(&self, parents: impl Iterator<Item = u32>) -> Bits {
        let mut past = Bits::default();
        let mut seen = BTreeSet::new();
        for node in parents.filter_map(|at| self.node(at)) {
            if seen.insert(node.past)
                && let Some(theirs) = self.past(node)
            {
                past.union(theirs);
            }
            if let Some(place) = node.place {
                past.insert(place);
            }
        }
        past
    }

    fn intern(&mut self, past: Bits) -> u32 {
        if let Some(found) = self.past_index.get(&past) {
            return *found;
        }
        let index = u32::try_from(self.pasts.len()).expect("no more pasts than entries");
        self.pasts.push(past.clone());
        self.past_index.insert(past, index);
        index
    }

    /// Whether an entry in this past opens the epoch.
    pub(super) fn is_opened_in(&self, epoch: &EpochId, past: &Bits) -> bool {
        let places = self.opened_at.get(epoch);
        places.is_some_and(|places| places.iter().any(|place| past.contains(*place)))
    }

    fn epoch_is_known(&self, epoch: &EpochId, past: &Bits) -> bool {
        *epoch == EpochId::default() || self.is_opened_in(epoch, past)
    }

    /// The highest role that certificates in this past give a device, in force or not.
    fn certified(&self, device: &DeviceId, past: &Bits) -> Option<Role> {
        let list = self.certificates.get(device)?;
        list.iter()
            .filter(|(place, _)| past.contains(*place))
            .map(|(_, role)| *role)
            .max()
    }

    /// Whether the author could ever have the right to write this, and whether there is room for more of it.
    fn check_author(
        &self,
        (id, header): (EntryId, &Header),
        ends_at_most: bool,
        past: &Bits,
        origin: Origin,
    ) -> Standing {
        if self.is_root(&header.author) {
            return match header.document {
                DocumentKind::Access => Standing::Certified,
                _ => Standing::Never("root key wrote something else than access"),
            };
        }
        let role = self.certified(&header.author, past);
        if !role.is_some_and(|role| may_write_so(role, header.document, ends_at_most)) {
            let hidden = past.iter().any(|place| self.unopened.contains(place));
            return if hidden {
                Standing::Unproven
            } else {
                Standing::Never("author was not admitted to this document")
            };
        }
        if origin == Origin::Peer
            && self.is_crowded(id, header, past)
            && !self.is_lifted(&header.author)
        {
            return Standing::Full;
        }
        Standing::Certified
    }

    /// Whether an entry that cannot count is one too many: of a device that was removed or that overran its limits.
    fn is_crowded(&self, id: EntryId, header: &Header, past: &Bits) -> bool {
        let author = &header.author;
        if header.document == DocumentKind::Access
            && let Some(overrun) = self.verdict.overrun.get(author)
        {
            let mut own = Bits::default();
            for (place, entry) in (0u32..).zip(&self.entries) {
                let theirs = |node: &Node| node.author == *author;
                if self.node(entry.node).is_some_and(theirs) {
                    own.insert(place);
                }
            }
            return (past.common(&own), id) > overrun.last;
        }
        let (entries, bytes) = self.voids.get(author).copied().unwrap_or_default();
        let many = entries >= VOID_ENTRIES_MAX || bytes >= VOID_BYTES_MAX;
        many && self.is_void(author)
    }

    /// Whether what this author wrote is taken in although it is too much, since what others wrote may depend on it: one
    /// whose entries may count waits for an entry that is not here. The id of that entry does not say whose it is.
    fn is_lifted(&self, author: &DeviceId) -> bool {
        self.pending.authors().any(|other| {
            let may_count = self.is_root(other)
                || (self.certificates.contains_key(other) && !self.is_void_by_others(other));
            other != author && may_count
        })
    }

    /// Judges those again whose certificates could not be read when they came. Who was not admitted is thrown out, with
    /// all that builds upon it, just as it would have been refused had the keys been here.
    pub(super) fn prove(&mut self) {
        let mut thrown = Bits::default();
        for at in self.unproven.iter().copied().collect::<Vec<_>>() {
            let Some(node) = self.node(at) else { continue };
            let Some(past) = self.past(node) else {
                continue;
            };
            let ends_at_most = node
                .place
                .and_then(|place| self.entry(place))
                .is_some_and(|entry| entry.ends_at_most);
            if self
                .certified(&node.author, past)
                .is_some_and(|role| may_write_so(role, node.document, ends_at_most))
            {
                self.unproven.remove(&at);
            } else if !past.iter().any(|place| self.unopened.contains(place)) {
                self.unproven.remove(&at);
                thrown.insert(at);
            }
        }
        let Some(first) = thrown.iter().next() else {
            return;
        };
        let count =
            u32::try_from(self.nodes.len()).expect("four billion entries do not fit memory");
        for at in first..count {
            let falls = self
                .node(at)
                .is_some_and(|node| node.parents().any(|parent| thrown.contains(parent)));
            if falls {
                thrown.insert(at);
            }
            if thrown.contains(at)
                && let Some(node) = self.node_mut(at)
            {
                node.thrown_out = true;
                let id = node.id;
                self.unproven.remove(&at);
                for waiting in self.pending.doom(&id) {
                    self.refuse(Some(waiting), "builds upon a refused entry");
                }
            }
        }
        self.certify_all();
        self.threw_out = true;
        self.stale = true;
    }

    /// Whether no entry of this author that comes now can count: by a removal whose whole frontier is here, or because it
    /// overran its limits.
    pub(super) fn is_void(&self, author: &DeviceId) -> bool {
        self.verdict.overrun.contains_key(author) || self.is_removed(author, |_| true)
    }

    /// The same, by a removal that others wrote.
    fn is_void_by_others(&self, author: &DeviceId) -> bool {
        self.is_removed(author, |remover| remover != author)
    }

    fn is_removed(&self, author: &DeviceId, by: impl Fn(&DeviceId) -> bool) -> bool {
        let places = self.verdict.removals.get(author).into_iter().flatten();
        let removals = places
            .filter_map(|place| self.entry(*place))
            .filter(|entry| {
                let node = self.node(entry.node);
                node.is_some_and(|node| by(&node.author))
            });
        removals.into_iter().any(|entry| {
            let removal = entry
                .content
                .as_ref()
                .and_then(|content| content.removal.as_ref());
            removal.is_some_and(|removal| removal.frontier.iter().all(|id| self.contains(id)))
        })
    }

    pub(super) fn is_root(&self, author: &DeviceId) -> bool {
        self.genesis
            .as_ref()
            .is_some_and(|genesis| genesis.root == *author)
    }

    pub(super) fn entry(&self, place: u32) -> Option<&AccessEntry> {
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// An entry came that frontiers name: what those removals spare is to be worked out anew.
    fn spare_again(&mut self, id: &EntryId) {
        for entry in &mut self.entries {
            let removal = entry
                .content
                .as_ref()
                .and_then(|content| content.removal.as_ref());
            if removal.is_some_and(|removal| removal.frontier.binary_search(id).is_ok()) {
                entry.spared_is_stale = true;
                self.stale = true;
            }
        }
    }

    fn add_access(&mut self, at: u32, place: u32, past: Bits, entry: &Entry, open: Option<Opened>) {
        if let Some(open) = &open {
            if let Some(record) = &open.epoch {
                self.ring.add_record(record);
                self.opened_at
                    .entry(record.id(&self.space))
                    .or_default()
                    .push(place);
            }
            for link in &open.links {
                self.ring.add_link(link);
            }
            for envelope in &open.envelopes {
                self.ring.add_envelope(envelope);
            }
        }
        self.stale = true;
        let sealed = entry
            .parts()
            .is_some_and(|parts| parts.iter().any(|part| part.seal == SealKind::Holder));
        let malformed = open.is_none()
            && entry
                .parts()
                .is_some_and(|parts| parts.iter().any(|part| part.seal == SealKind::Open));
        let ends_at_most = entry
            .parts()
            .is_some_and(|parts| ends_at_most(entry.header(), &parts));
        self.entries.push(AccessEntry {
            node: at,
            past,
            sealed: sealed.then(|| Box::new(entry.clone())),
            content: None,
            open: open.map(Box::new),
            malformed,
            spared: None,
            spared_is_stale: false,
            ends_at_most,
        });
        self.unopened.insert(place);
        if sealed {
            self.read_access(place);
        } else {
            let open = self
                .entry(place)
                .and_then(|entry| entry.open.as_deref().cloned());
            self.conclude_access(
                place,
                Reading::Plain,
                open.map(|open| Content::new(&entry.header().author, None, Some(open))),
            );
        }
    }
}

/// Which parts an entry of each document has.
///
/// Spec: `protocol/spec/chain.md`, "Parts of each document".
fn check_shape(header: &Header, parts: &[Part<'_>]) -> Result<(), &'static str> {
    let seals: Vec<SealKind> = parts.iter().map(|part| part.seal).collect();
    let fits = match header.document {
        DocumentKind::Access => {
            matches!(
                seals.as_slice(),
                [SealKind::Open] | [SealKind::Holder] | [SealKind::Holder, SealKind::Open]
            )
        }
        DocumentKind::Catalogue => seals == [SealKind::Holder],
        DocumentKind::Names => seals == [SealKind::Change],
    };
    if !fits {
        return Err("has parts that its document does not know");
    }
    let all_open = seals.iter().all(|seal| *seal == SealKind::Open);
    if all_open != (header.epoch == EpochId::default()) {
        return Err("epoch does not fit its parts");
    }
    Ok(())
}

/// Largest payload by which a membership ends: a frontier of 2,000 entries, padded.
const ENDING_BYTES_MAX: u32 = 128 << 10;

/// Whether an entry of `access` can do no more than to end its author's membership: all that a blind holder may write there.
fn ends_at_most(header: &Header, parts: &[Part<'_>]) -> bool {
    let sealed_only = parts.iter().all(|part| part.seal == SealKind::Holder);
    header.document == DocumentKind::Access && sealed_only && header.payload_len <= ENDING_BYTES_MAX
}

/// Whether a role may write an entry of this document and, in `access`, of this shape.
fn may_write_so(role: Role, document: DocumentKind, ends_at_most: bool) -> bool {
    let small = document != DocumentKind::Access || role > Role::Blind || ends_at_most;
    small && may_write(role, document)
}

/// The body of the open part, if there is one and it is a list of records.
fn open_part(header: &Header, parts: &[Part<'_>]) -> Option<Vec<u8>> {
    let (index, part) = parts
        .iter()
        .enumerate()
        .find(|(_, part)| part.seal == SealKind::Open)?;
    let plain = part.open(header, index, parts.len(), None)?;
    (plain.codec == Codec::Records).then(|| plain.body.to_vec())
}

/// Whether an entry has the place in its chain that this header claims.
fn is_beside(node: &Node, header: &Header) -> bool {
    (node.author, node.nonce, node.seq) == (header.author, header.nonce, header.seq)
}
