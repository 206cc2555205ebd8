//! One device's copy of one space: its entries, which of them count, and what they say.
//!
//! What it comes to is a function of the set of entries, whatever order and however often they came: see
//! `protocol/spec/access.md`.

mod author;
mod check;
mod count;
mod link;
mod mint;
mod pending;
mod reading;
mod seal;
mod slot;

pub use author::AuthorError;
pub use seal::{NotReady, Resealed, SealState};

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kith_object::id::{DeviceId, EntryId, EpochId, SpaceId};
use kith_object::key::{AgreeSecret, DeviceKeys, Secret};
use kith_object::time::Hlc;

use crate::access::bits::Bits;
use crate::access::fold::Verdict;
use crate::access::{Access, Content, Genesis, Opened, Role};
use crate::chain::{DocumentKind, Entry, Nonce};
use crate::epoch::{HolderPart, KeyPart, KeyRing, MemberPart, PART_LEN};
use pending::Pending;

/// Entries kept of a removed device beyond all frontiers: what it wrote honestly before it heard of its removal is less.
pub const VOID_ENTRIES_MAX: usize = if cfg!(test) { 64 } else { 65_536 };
/// Bytes of their payloads.
pub const VOID_BYTES_MAX: usize = 256 << 20;

/// What became of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// It has its place; whether it counts is another matter.
    Taken,
    /// It was there already.
    Known,
    /// It waits until these come.
    Pending {
        /// Entries it names that are not here.
        missing: Vec<EntryId>,
    },
    /// There is no room for it now; it was not kept and may be offered again.
    Full,
    /// It breaks a rule, for good; the words say which.
    Rejected(&'static str),
}

/// An entry entered or left the set that digests cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DigestChange {
    /// Its document.
    pub document: DocumentKind,
    /// Its stamp: the first half of its key in the digest.
    pub hlc: Hlc,
    /// The second half.
    pub id: EntryId,
    /// Entered, or left.
    pub added: bool,
}

/// Records of `names` or `catalogue` began to count or ceased to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordChange {
    /// A record counts.
    Added {
        /// Its entry.
        entry: EntryId,
        /// Its place among the entry's records.
        index: u32,
        /// Who wrote it.
        author: DeviceId,
        /// The entry's stamp.
        hlc: Hlc,
        /// The record.
        record: Vec<u8>,
    },
    /// No record of that entry counts any longer: a removal voided it.
    Removed {
        /// The entry.
        entry: EntryId,
    },
}

/// Numbers for `status` and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Entries that have their place.
    pub entries: usize,
    /// Those that count.
    pub counted: usize,
    /// Those that wait for others.
    pub pending: usize,
    /// Those whose payload cannot be read for want of a key.
    pub unread: usize,
    /// Those whose payload is not what it must be, and which contribute nothing.
    pub unfit: usize,
    /// Entries refused for good since this replica was opened.
    pub rejected: u64,
}

/// What is known of a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Reading {
    /// Its key, or what it builds upon, is missing.
    Waiting,
    /// A change that passed every check.
    Fed {
        hash: [u8; 32],
        op_max: u64,
        seq: u64,
    },
    /// Read, and no change: an open entry of `access`, or one of `catalogue`.
    Plain,
    /// Not what it must be: it contributes nothing.
    Unfit,
}

/// An entry that has its place. Its payload is not kept.
#[derive(Debug)]
struct Node {
    id: EntryId,
    document: DocumentKind,
    author: DeviceId,
    nonce: Nonce,
    seq: u64,
    hlc: Hlc,
    epoch: EpochId,
    payload_len: u32,
    previous: Option<u32>,
    dependencies: Box<[u32]>,
    access_heads: Box<[u32]>,
    /// Entries of `access` in its past: an index into [`Replica::pasts`].
    past: u32,
    /// Its place among the entries of `access`.
    place: Option<u32>,
    reading: Reading,
    /// The last entry of its chain, up to itself, whose change passed.
    chain_fed: Option<u32>,
    counted: bool,
    in_digest: bool,
    /// Its records were handed out.
    told: bool,
    /// Its author turned out never to have been admitted: it is as if it had been refused.
    thrown_out: bool,
}

impl Node {
    fn parents(&self) -> impl Iterator<Item = u32> + '_ {
        self.previous
            .iter()
            .chain(&self.dependencies)
            .chain(&self.access_heads)
            .copied()
    }
}

/// An entry of `access`.
#[derive(Debug)]
struct AccessEntry {
    node: u32,
    /// Entries of `access` in its past, by their places.
    past: Bits,
    open: Option<Box<Opened>>,
    /// Has an open part that breaks a rule.
    malformed: bool,
    /// The whole entry, as long as its sealed part could not be opened.
    sealed: Option<Box<Entry>>,
    /// What it says; `None` until its sealed part was opened.
    content: Option<Box<Content>>,
    /// For a removal: all entries in the past of its frontier, and whether that is to be worked out anew.
    spared: Option<Bits>,
    spared_is_stale: bool,
    /// It can do no more than to end its author's membership, by its shape and length.
    ends_at_most: bool,
}

/// One device's copy of one space.
///
/// Feed entries by [`Replica::insert`], in any order; write by [`Replica::names`] and its neighbours; then drain the
/// `take_` functions. The device's log holds what [`Replica::take_accepted`] and the writing functions return, in that
/// order, and [`Replica::restore`] reads it back. Payloads are not kept in memory: what [`Replica::take_replay`] names is
/// to be read from the log and inserted again.
///
/// Spec: `protocol/spec/access.md`, "Who counts".
pub struct Replica {
    space: SpaceId,
    me: Option<DeviceId>,
    genesis: Option<Genesis>,
    ring: KeyRing,
    nodes: Vec<Node>,
    index: BTreeMap<EntryId, u32>,
    entries: Vec<AccessEntry>,
    /// Sets of entries of `access` that are the past of some entry; each once.
    pasts: Vec<Bits>,
    past_index: BTreeMap<Bits, u32>,
    /// Certificates by the root, or by whom the root made an admin, in force or not: by device, place and role.
    certificates: BTreeMap<DeviceId, Vec<(u32, Role)>>,
    /// Places of entries of `access` that could not be opened yet.
    unopened: Bits,
    keys_changed: bool,
    /// Entries whose author's certificate may stand in what cannot be opened yet.
    unproven: BTreeSet<u32>,
    threw_out: bool,
    /// Epochs by the places of the entries that open them.
    opened_at: BTreeMap<EpochId, Vec<u32>>,
    /// Entries that frontiers of removals name, here or not.
    frontier: BTreeSet<EntryId>,
    verdict: Verdict,
    access: Access,
    sealing: SealState,
    resealed: Resealed,
    /// Epochs that entries which count are sealed under, and how many.
    used: BTreeMap<EpochId, usize>,
    used_changed: bool,
    /// The fold is to be done anew.
    stale: bool,
    heads: BTreeMap<DocumentKind, BTreeSet<u32>>,
    /// Entries waiting for a key or for what they build upon.
    waiting: BTreeSet<u32>,
    /// Those among them that wait for an entry to be read, by that entry.
    waiting_on: BTreeMap<u32, Vec<u32>>,
    pending: Pending,
    /// Entries refused for good by their header alone, the latest of them.
    rejected: VecDeque<EntryId>,
    /// Entries and bytes taken of removed devices beyond all frontiers.
    voids: BTreeMap<DeviceId, (usize, usize)>,
    /// Entries that got their place since they were last judged, with the records read from them.
    fresh: BTreeMap<u32, Vec<Vec<u8>>>,
    tips: BTreeMap<DocumentKind, slot::Tip>,
    accepted: Vec<Entry>,
    /// Entries of this device that the function writing them has yet to return.
    written: Vec<Entry>,
    digest_changes: Vec<DigestChange>,
    version_changes: Vec<RecordChange>,
    catalogue_changes: Vec<RecordChange>,
    replay: Vec<EntryId>,
    access_changed: bool,
    stats: Stats,
}

impl Replica {
    /// An empty replica of a space, for a device with these keys, or for an onlooker without.
    pub fn open(space: SpaceId, me: Option<&DeviceKeys>) -> Self {
        Self::with_secrets(space, me, None)
    }

    /// The same, able to open every epoch by the recovery key that follows from the words.
    pub fn open_with_recovery(
        space: SpaceId,
        me: Option<&DeviceKeys>,
        recovery: AgreeSecret,
    ) -> Self {
        Self::with_secrets(space, me, Some(recovery))
    }

    fn with_secrets(
        space: SpaceId,
        me: Option<&DeviceKeys>,
        recovery: Option<AgreeSecret>,
    ) -> Self {
        let own = me.map(|keys| keys.agree_secret().clone());
        Self {
            space,
            me: me.map(DeviceKeys::id),
            genesis: None,
            ring: KeyRing::new(space, own.into_iter().chain(recovery).collect()),
            nodes: Vec::new(),
            index: BTreeMap::new(),
            entries: Vec::new(),
            pasts: vec![Bits::default()],
            past_index: BTreeMap::from([(Bits::default(), 0)]),
            certificates: BTreeMap::new(),
            unopened: Bits::default(),
            keys_changed: false,
            unproven: BTreeSet::new(),
            threw_out: false,
            opened_at: BTreeMap::new(),
            frontier: BTreeSet::new(),
            verdict: Verdict::default(),
            access: Access::default(),
            sealing: SealState::NeedsEpoch(NotReady::NoEpoch),
            resealed: Resealed::default(),
            used: BTreeMap::new(),
            used_changed: false,
            stale: false,
            heads: BTreeMap::new(),
            waiting: BTreeSet::new(),
            waiting_on: BTreeMap::new(),
            pending: Pending::default(),
            rejected: VecDeque::new(),
            voids: BTreeMap::new(),
            fresh: BTreeMap::new(),
            tips: BTreeMap::new(),
            accepted: Vec::new(),
            written: Vec::new(),
            digest_changes: Vec::new(),
            version_changes: Vec::new(),
            catalogue_changes: Vec::new(),
            replay: Vec::new(),
            access_changed: false,
            stats: Stats::default(),
        }
    }

    /// The space.
    pub fn space(&self) -> SpaceId {
        self.space
    }

    /// The record the space was founded with, once it is known.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// The device whose replica this is.
    pub fn device(&self) -> Option<DeviceId> {
        self.me
    }

    /// Who belongs.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Whether the entry has its place here.
    pub fn contains(&self, id: &EntryId) -> bool {
        self.index.contains_key(id)
    }

    /// Whether an entry came and waits here for what it builds upon.
    pub fn waits(&self, id: &EntryId) -> bool {
        self.pending.contains(id)
    }

    /// Whether digests cover the entry.
    pub fn in_digest(&self, id: &EntryId) -> bool {
        self.find(id).is_some_and(|node| node.in_digest)
    }

    /// The stamp of an entry that digests cover: with its id, its key in them.
    pub fn stamp(&self, id: &EntryId) -> Option<Hlc> {
        let node = self.find(id).filter(|node| node.in_digest)?;
        Some(node.hlc)
    }

    /// Whether the entry counts.
    pub fn counts(&self, id: &EntryId) -> bool {
        self.find(id).is_some_and(|node| node.counted)
    }

    /// Entries that others wait for and that are not here, at most some thousands.
    pub fn missing(&self) -> Vec<EntryId> {
        self.pending.missing()
    }

    /// The entries of a document that no other one builds upon.
    pub fn heads(&self, document: DocumentKind) -> Vec<EntryId> {
        if document == DocumentKind::Access {
            return self
                .access_heads()
                .into_iter()
                .filter_map(|at| self.node(at))
                .map(|node| node.id)
                .collect();
        }
        self.heads
            .get(&document)
            .into_iter()
            .flatten()
            .filter_map(|at| self.node(*at))
            .map(|node| node.id)
            .collect()
    }

    /// Entries of a document that count and are not among these or in their past; `None` if one of these is not here.
    pub fn beyond(&self, document: DocumentKind, basis: &[EntryId]) -> Option<BTreeSet<EntryId>> {
        let mut todo: Vec<u32> = Vec::with_capacity(basis.len());
        for id in basis {
            todo.push(*self.index.get(id)?);
        }
        let mut past = BTreeSet::new();
        while let Some(at) = todo.pop() {
            let Some(node) = self.node(at) else { continue };
            if node.document == document && past.insert(node.id) {
                todo.extend(node.previous);
                todo.extend(node.dependencies.iter());
            }
        }
        let here = self.nodes.iter();
        let beyond = here
            .filter(|node| node.document == document && node.counted && !past.contains(&node.id));
        Some(beyond.map(|node| node.id).collect())
    }

    /// When each author last wrote an entry that counts, by its own stamps.
    pub fn last_written(&self) -> BTreeMap<DeviceId, Hlc> {
        let mut last = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.counted) {
            let newest = last.entry(node.author).or_insert(node.hlc);
            *newest = (*newest).max(node.hlc);
        }
        last
    }

    /// The entries of `access` that digests cover, parents first: what a newcomer is sent, to judge all from genesis.
    pub fn access_entries(&self) -> Vec<EntryId> {
        let nodes = self
            .entries
            .iter()
            .filter_map(|entry| self.node(entry.node));
        nodes
            .filter(|node| node.in_digest)
            .map(|node| node.id)
            .collect()
    }

    /// All entries that digests cover, parents first: what a copy of the whole space needs.
    pub fn entries(&self) -> Vec<EntryId> {
        let covered = self.nodes.iter().filter(|node| node.in_digest);
        covered.map(|node| node.id).collect()
    }

    /// All secrets that blocks may be sealed under, newest first; the first is the one to seal with.
    pub fn dedup_secrets(&self) -> Vec<Secret> {
        let mut list: Vec<Secret> = Vec::new();
        let depth = |epoch: &EpochId| self.ring.ancestors([*epoch]).len();
        let mut epochs: Vec<(bool, usize, EpochId)> = self
            .ring
            .epochs()
            .map(|(id, _)| (self.sealing_epoch() == Some(*id), depth(id), *id))
            .collect();
        epochs.sort_unstable_by(|one, other| other.cmp(one));
        for secret in epochs
            .iter()
            .filter_map(|(.., id)| self.ring.member(id))
            .map(|part| &part.dedup)
        {
            if !list.contains(secret) {
                list.push(secret.clone());
            }
        }
        list
    }

    /// The secret under which the mesh's lookups are blinded, of the epoch that is sealed under.
    pub fn blinding(&self) -> Option<Secret> {
        Some(self.ring.holder(&self.sealing_epoch()?)?.blinding.clone())
    }

    /// The keys that a newcomer is given: the parts of the epoch that is sealed under, as far as this device has them.
    pub fn epoch_parts(&self) -> Option<(EpochId, HolderPart, Option<MemberPart>)> {
        let epoch = self.sealing_epoch()?;
        Some((
            epoch,
            self.ring.holder(&epoch)?.clone(),
            self.ring.member(&epoch).cloned(),
        ))
    }

    /// Takes in keys that came by pairing, before the entries or after; they are used once an epoch's record proves them.
    pub fn learn(
        &mut self,
        epoch: EpochId,
        holder: &[u8; PART_LEN],
        member: Option<&[u8; PART_LEN]>,
    ) {
        self.ring.give(epoch, KeyPart::Holder, holder);
        if let Some(member) = member {
            self.ring.give(epoch, KeyPart::Member, member);
        }
        self.settle();
    }

    /// Whether, and under which epoch, this device may seal.
    pub fn seal_state(&self) -> SealState {
        self.sealing
    }

    fn sealing_epoch(&self) -> Option<EpochId> {
        match self.sealing {
            SealState::Ready(epoch) => Some(epoch),
            SealState::NeedsEpoch(_) => None,
        }
    }

    /// Entries that got their place since the last call, parents before children: to be appended to the log.
    ///
    /// Those that came from the log, and those that this device wrote, are not among them.
    pub fn take_accepted(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.accepted)
    }

    /// Changes of the set that digests cover, since the last call.
    pub fn take_digest_changes(&mut self) -> Vec<DigestChange> {
        std::mem::take(&mut self.digest_changes)
    }

    /// Records of `names` that began or ceased to count since the last call.
    pub fn take_version_changes(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.version_changes)
    }

    /// Records of `catalogue` that began or ceased to count since the last call, each framed with type and length.
    pub fn take_catalogue_changes(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.catalogue_changes)
    }

    /// Entries to be read from the log and inserted again, in this order: they count again, or their key came.
    pub fn take_replay(&mut self) -> Vec<EntryId> {
        let mut seen = BTreeSet::new();
        let mut list = std::mem::take(&mut self.replay);
        list.retain(|id| {
            let wanted = self
                .find(id)
                .is_some_and(|node| !node.told && !node.thrown_out);
            wanted && seen.insert(*id)
        });
        list
    }

    /// Whether [`Replica::access`] has changed since the last call.
    pub fn take_access_changed(&mut self) -> bool {
        std::mem::take(&mut self.access_changed)
    }

    /// Numbers for `status`.
    pub fn stats(&self) -> Stats {
        Stats {
            entries: self.nodes.len(),
            counted: self.nodes.iter().filter(|node| node.counted).count(),
            pending: self.pending.len(),
            unread: self.waiting.len() + self.unopened.iter().count(),
            unfit: self
                .nodes
                .iter()
                .filter(|node| node.reading == Reading::Unfit)
                .count(),
            rejected: self.stats.rejected,
        }
    }

    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(at).ok()?)
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(at).ok()?)
    }

    fn find(&self, id: &EntryId) -> Option<&Node> {
        self.node(*self.index.get(id)?)
    }

    fn past(&self, node: &Node) -> Option<&Bits> {
        self.pasts.get(usize::try_from(node.past).ok()?)
    }
}

#[cfg(test)]
mod tests;
