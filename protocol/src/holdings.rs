//! What each device of the mesh holds, as each has signed it.
//!
//! Spec: `protocol/spec/holdings.md`.

pub mod message;
mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_object::id::{DeviceId, SpaceId};
use kith_object::key::DeviceKeys;
use kith_object::time::{Span, Time};

use crate::wire::{Reader, Writer};
use message::{DEVICES_MAX, GIVE_BYTES, Give, Head, Message, STAMP_MAX};

pub use set::{HoldingTag, TAGS_MAX, TagSet};

/// Between two heads that are signed because something changed, for every [`CROWD`] devices.
const GATHER: Span = Span::from_secs(1);
/// A head is signed anew so often, likewise: it is a sign of life too.
const ANEW: Span = Span::from_secs(3600);
/// One device by turns is told a summary so often, likewise.
const ROUND: Span = Span::from_secs(30);
/// Devices for which intervals hold; with more they grow.
const CROWD: usize = 16;
/// How long an answer may take.
const ANSWER_MAX: Span = Span::from_secs(30);
/// Nothing is given to a device while so much is on its way.
const UNFLUSHED_MAX: usize = 512 << 10;
/// Questions that are answered at once, and a second.
const ASKS_BURST: u64 = 128;
const ASKS_RATE: u64 = 16;
/// First bytes of what is kept from one start to the next.
const KEPT_MAGIC: &[u8; 8] = b"kithhld1";

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// That device is connected.
    PeerUp(DeviceId),
    /// It is not any more.
    PeerDown(DeviceId),
    /// Who belongs to the mesh, this device itself too.
    Members(BTreeSet<DeviceId>),
    /// All that this device holds.
    Own(Vec<HoldingTag>),
    /// What came to that and what went.
    Changed {
        /// What came.
        added: Vec<HoldingTag>,
        /// What went.
        removed: Vec<HoldingTag>,
    },
    /// A frame from a device.
    Frame {
        /// From whom.
        peer: DeviceId,
        /// The frame.
        bytes: Bytes,
    },
    /// So many bytes of frames are written to a device.
    Flushed {
        /// To whom.
        peer: DeviceId,
        /// How many bytes.
        len: usize,
    },
    /// The time of [`Holdings::next_wakeup`] has come.
    Wake,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame.
    Send {
        /// To whom.
        peer: DeviceId,
        /// The frame.
        bytes: Bytes,
    },
    /// What is known of a device's holdings, or its sign of life, has changed.
    News {
        /// Whose.
        device: DeviceId,
        /// What came.
        added: Vec<HoldingTag>,
        /// What went.
        removed: Vec<HoldingTag>,
    },
    /// Cut the connection.
    Disconnect {
        /// Whose.
        peer: DeviceId,
        /// Why.
        reason: &'static str,
    },
}

/// Of one device, the newest that is known.
#[derive(Debug)]
struct Known {
    head: Head,
    set: TagSet,
    /// When it was there last, so far as that can be told.
    heard: Time,
}

#[derive(Debug)]
struct Peer {
    unflushed: usize,
    /// Asks that it may still put, in thousandths, and since when.
    credit: (u64, Time),
}

/// Holdings of one device on their way here.
#[derive(Debug)]
struct Fetch {
    peer: DeviceId,
    since: Time,
    head: Option<Head>,
    buckets: BTreeMap<u16, Vec<HoldingTag>>,
    /// Tags in them.
    tags: usize,
    /// Where the last ask began.
    from: u16,
}

/// Keeps what every device holds.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Holdings::next_wakeup`].
///
/// Spec: `protocol/spec/holdings.md`, "Machine".
#[derive(Debug)]
pub struct Holdings {
    keys: DeviceKeys,
    space: SpaceId,
    me: DeviceId,
    now: Time,
    members: BTreeSet<DeviceId>,
    peers: BTreeMap<DeviceId, Peer>,
    known: BTreeMap<DeviceId, Known>,
    /// What this device holds, once it was told; not all of it signed yet.
    own: Option<TagSet>,
    fetches: BTreeMap<DeviceId, Fetch>,
    sign_due: Option<Time>,
    /// When that was done last.
    signed: Option<Time>,
    round_due: Option<Time>,
    /// Who was told a summary last.
    told: Option<DeviceId>,
    effects: VecDeque<Effect>,
}

impl Holdings {
    /// A machine that knows nothing yet.
    pub fn new(keys: DeviceKeys, space: SpaceId) -> Self {
        Self {
            me: keys.id(),
            keys,
            space,
            now: Time(0),
            members: BTreeSet::new(),
            peers: BTreeMap::new(),
            known: BTreeMap::new(),
            own: None,
            fetches: BTreeMap::new(),
            sign_due: None,
            signed: None,
            round_due: None,
            told: None,
            effects: VecDeque::new(),
        }
    }

    /// Advances the machine; `now` is what the clock says.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = now;
        match input {
            Input::PeerUp(peer) => self.peer_up(peer),
            Input::PeerDown(peer) => {
                self.peers.remove(&peer);
                self.fetches.retain(|_, fetch| fetch.peer != peer);
                if self.peers.is_empty() {
                    self.round_due = None;
                }
            }
            Input::Members(members) => self.follow(members),
            Input::Own(tags) => {
                let before = self.own.take();
                let set = TagSet::of(tags);
                let empty = TagSet::default();
                let (added, removed) = before.as_ref().unwrap_or(&empty).difference(&set);
                self.own = Some(set);
                if before.is_none() || !added.is_empty() || !removed.is_empty() {
                    self.own_changed(added, removed);
                }
            }
            Input::Changed { added, removed } => {
                // Before all of it was told there is nothing to change: what is told will have it.
                let Some(own) = &mut self.own else { return };
                let new = |tag: &HoldingTag| !own.contains(*tag) && !removed.contains(tag);
                let added: Vec<HoldingTag> = added.iter().copied().filter(new).collect();
                let old = |tag: &HoldingTag| own.contains(*tag);
                let removed: Vec<HoldingTag> = removed.iter().copied().filter(old).collect();
                if own.change(&added, &removed) {
                    self.own_changed(added, removed);
                }
            }
            Input::Frame { peer, bytes } => self.frame(peer, &bytes),
            Input::Flushed { peer, len } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.unflushed = peer.unflushed.saturating_sub(len);
                }
            }
            Input::Wake => self.wake(),
        }
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come back with [`Input::Wake`], if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Time> {
        let answers = self.fetches.values().map(|fetch| fetch.since + ANSWER_MAX);
        answers.chain(self.sign_due).chain(self.round_due).min()
    }

    /// What a device holds, as far as it is known.
    pub fn of(&self, device: &DeviceId) -> Option<&TagSet> {
        if *device == self.me {
            return self.own.as_ref();
        }
        self.known.get(device).map(|known| &known.set)
    }

    /// When a device was there last, as far as that can be told from what it signed.
    pub fn heard(&self, device: &DeviceId) -> Option<Time> {
        self.known.get(device).map(|known| known.heard)
    }

    /// What is worth keeping from one start to the next.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(KEPT_MAGIC).count_u32(self.known.len());
        for known in self.known.values() {
            let give = Give {
                head: known.head.clone(),
                next: None,
                buckets: all_buckets(&known.set),
            };
            out.u64(known.heard.0)
                .bytes_u32(&Message::Give(give).encode());
        }
        out.finish()
    }

    /// Takes back what was kept; nothing of it is believed that is not signed.
    pub fn recall(&mut self, bytes: &[u8]) {
        let mut reader = Reader::new(bytes);
        if reader.array() != Ok(*KEPT_MAGIC) {
            return;
        }
        let count = reader.count_u32(DEVICES_MAX, 12).unwrap_or(0);
        for _ in 0..count {
            let (Ok(heard), Ok(give)) = (reader.u64(), reader.bytes_u32(usize::MAX)) else {
                return;
            };
            let Ok(Message::Give(give)) = Message::decode(give) else {
                continue;
            };
            let set = TagSet::default().with(give.head.depth, give.buckets.into_iter().collect());
            if let Some(set) = set
                && is_of(&give.head, &set)
                && give.head.is_signed(&self.space)
                && self.members.contains(&give.head.device)
                && self.is_news(&give.head)
            {
                self.take(give.head, set, Time(heard));
            }
        }
    }

    /// Laws that hold between any two inputs.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.known
                .iter()
                .all(|(device, known)| *device == known.head.device
                    && self.members.contains(device)
                    && is_of(&known.head, &known.set)),
            "what is known is what members have signed"
        );
        assert!(
            self.fetches.iter().all(|(device, fetch)| {
                let most = fetch.head.as_ref().map_or(0, |head| head.count);
                self.members.contains(device)
                    && self.peers.contains_key(&fetch.peer)
                    && fetch.tags <= usize::try_from(most).unwrap_or(usize::MAX)
            }),
            "what is fetched is bounded by what was signed"
        );
        let most = UNFLUSHED_MAX + 4 * GIVE_BYTES + (1 << 20);
        assert!(self.peers.values().all(|peer| peer.unflushed <= most));
    }

    /// An interval that grows with the mesh.
    fn stretched(&self, span: Span) -> Span {
        let crowds = self.members.len().div_ceil(CROWD).max(1);
        Span(span.0.saturating_mul(u64::try_from(crowds).unwrap_or(1)))
    }

    fn peer_up(&mut self, peer: DeviceId) {
        if peer == self.me || self.peers.contains_key(&peer) {
            return;
        }
        let fresh = Peer {
            unflushed: 0,
            credit: (1000 * ASKS_BURST, self.now),
        };
        self.peers.insert(peer, fresh);
        if self.round_due.is_none() {
            self.round_due = Some(self.now + self.stretched(ROUND));
        }
        self.sum_up(peer);
    }

    /// Tells a device what all that is known comes to.
    fn sum_up(&mut self, peer: DeviceId) {
        if !self.known.is_empty() {
            self.send(peer, &Message::Summary(self.summary()));
        }
    }

    fn follow(&mut self, members: BTreeSet<DeviceId>) {
        self.members = members;
        let members = &self.members;
        let gone: Vec<DeviceId> = self.known.keys().copied().collect();
        for device in gone.iter().filter(|device| !members.contains(*device)) {
            if let Some(known) = self.known.remove(device) {
                self.effects.push_back(Effect::News {
                    device: *device,
                    added: Vec::new(),
                    removed: known.set.iter().collect(),
                });
            }
        }
        let members = &self.members;
        self.fetches.retain(|device, _| members.contains(device));
        if self.own.is_some() && self.sign_due.is_none() && members.contains(&self.me) {
            self.sign_due = Some(self.sign_next());
        }
    }

    /// When the next head may be signed: at once, unless one was just now.
    fn sign_next(&self) -> Time {
        let rested = self.signed.map(|signed| signed + self.stretched(GATHER));
        rested.map_or(self.now, |rested| rested.max(self.now))
    }

    fn own_changed(&mut self, added: Vec<HoldingTag>, removed: Vec<HoldingTag>) {
        let due = self.sign_next();
        self.sign_due = Some(self.sign_due.map_or(due, |sooner| sooner.min(due)));
        let device = self.me;
        self.effects.push_back(Effect::News {
            device,
            added,
            removed,
        });
    }

    fn sign(&mut self) {
        self.sign_due = Some(self.now + self.stretched(ANEW));
        let Some(own) = self.own.clone().filter(|_| self.members.contains(&self.me)) else {
            self.sign_due = None;
            return;
        };
        self.signed = Some(self.now);
        let last = self.known.get(&self.me).map_or(0, |known| known.head.stamp);
        let stamp = self.now.0.max(last + 1).min(STAMP_MAX - 1);
        let head = Head::sign(&self.keys, &self.space, stamp, &own);
        let known = Known {
            head: head.clone(),
            set: own,
            heard: self.now,
        };
        self.known.insert(self.me, known);
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send(peer, &Message::Head(head.clone()));
        }
    }

    fn wake(&mut self) {
        if self.sign_due.is_some_and(|due| due <= self.now) {
            self.sign();
        }
        let now = self.now;
        self.fetches
            .retain(|_, fetch| fetch.since + ANSWER_MAX > now);
        if self.round_due.is_some_and(|due| due <= self.now) {
            self.round_due = Some(self.now + self.stretched(ROUND));
            let after = self.told.and_then(|told| {
                let mut later = self.peers.range(told..).map(|(peer, _)| *peer);
                later.find(|peer| *peer != told)
            });
            let next = after.or_else(|| self.peers.keys().next().copied());
            if let Some(peer) = next {
                self.told = Some(peer);
                self.sum_up(peer);
            }
        }
    }

    fn summary(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for (device, known) in &self.known {
            hasher.update(&device.0);
            hasher.update(&known.head.stamp.to_le_bytes());
        }
        let hash = hasher.finalize();
        hash.as_bytes().first_chunk().copied().unwrap_or_default()
    }

    fn send(&mut self, peer: DeviceId, message: &Message) {
        let Some(to) = self.peers.get_mut(&peer) else {
            return;
        };
        // Whoever reads nothing is told what it missed by a summary later.
        if to.unflushed > UNFLUSHED_MAX {
            return;
        }
        let bytes = Bytes::from(message.encode());
        to.unflushed += bytes.len();
        self.effects.push_back(Effect::Send { peer, bytes });
    }

    fn frame(&mut self, peer: DeviceId, bytes: &[u8]) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        match Message::decode(bytes) {
            Ok(Message::Summary(hash)) => {
                if hash != self.summary() && self.may_ask(peer) {
                    let stamps = self.known.iter().take(DEVICES_MAX);
                    let stamps = stamps.map(|(device, known)| (*device, known.head.stamp));
                    let stamps = Message::Stamps(stamps.collect());
                    self.send(peer, &stamps);
                }
            }
            Ok(Message::Stamps(stamps)) => {
                if self.may_ask(peer) {
                    self.stamps(peer, &stamps);
                }
            }
            Ok(Message::Head(head)) => self.told_head(peer, &head),
            Ok(Message::Ask {
                device,
                depth,
                hashes,
                from,
            }) => {
                if self.may_ask(peer) {
                    self.give(peer, &device, depth, &hashes, from);
                }
            }
            Ok(Message::Give(give)) => self.given(peer, give),
            Err(_) => self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "sent a malformed message about holdings",
            }),
        }
    }

    /// Whether a device gets an answer now: it has not asked too often, and takes what it gets.
    fn may_ask(&mut self, peer: DeviceId) -> bool {
        let now = self.now;
        let Some(asker) = self.peers.get_mut(&peer) else {
            return false;
        };
        let (credit, since) = asker.credit;
        let earned = now.since(since).as_ms().saturating_mul(ASKS_RATE);
        let credit = credit.saturating_add(earned).min(1000 * ASKS_BURST);
        let may = credit >= 1000 && asker.unflushed <= UNFLUSHED_MAX;
        asker.credit = (credit - if may { 1000 } else { 0 }, now);
        may
    }

    fn stamps(&mut self, peer: DeviceId, stamps: &[(DeviceId, u64)]) {
        let theirs: BTreeMap<DeviceId, u64> = stamps.iter().copied().collect();
        let newer: Vec<Head> = self
            .known
            .iter()
            .filter(|(device, known)| {
                let stamp = theirs.get(device);
                stamp.is_none_or(|stamp| *stamp < known.head.stamp)
            })
            .map(|(_, known)| known.head.clone())
            .collect();
        for head in newer {
            self.send(peer, &Message::Head(head));
        }
        for (device, stamp) in stamps {
            let here = self.known.get(device).map(|known| known.head.stamp);
            if here.is_none_or(|here| here < *stamp) {
                self.ask_for(peer, *device);
            }
        }
    }

    fn told_head(&mut self, peer: DeviceId, head: &Head) {
        if self.is_news(head) && head.is_signed(&self.space) {
            if head.device == self.me {
                self.outdo(head.stamp);
                return;
            }
            // The same set, said again: a sign of life alone.
            let same = self.known.get(&head.device).is_some_and(|known| {
                (known.head.root, known.head.count, known.head.depth)
                    == (head.root, head.count, head.depth)
            });
            if same {
                let set = self.known.remove(&head.device).map(|known| known.set);
                let heard = self.life(head);
                self.take(head.clone(), set.unwrap_or_default(), heard);
            } else {
                self.ask_for(peer, head.device);
            }
        }
    }

    /// A head of this device's own that it does not know: it says what it holds anew, and later.
    fn outdo(&mut self, stamp: u64) {
        if self.own.is_some() && stamp < STAMP_MAX - 1 {
            if let Some(known) = self.known.get_mut(&self.me) {
                known.head.stamp = stamp;
            } else {
                let set = TagSet::default();
                let head = Head::sign(&self.keys, &self.space, stamp, &set);
                let heard = self.now;
                self.known.insert(self.me, Known { head, set, heard });
            }
            self.sign();
        }
    }

    fn is_news(&self, head: &Head) -> bool {
        let known = self.known.get(&head.device);
        self.members.contains(&head.device)
            && known.is_none_or(|known| known.head.stamp < head.stamp)
    }

    fn ask_for(&mut self, peer: DeviceId, device: DeviceId) {
        let wanted = self.members.contains(&device)
            && self.peers.contains_key(&peer)
            && !self.fetches.contains_key(&device)
            && (device != self.me || self.own.is_some());
        if !wanted {
            return;
        }
        let fetch = Fetch {
            peer,
            since: self.now,
            head: None,
            buckets: BTreeMap::new(),
            tags: 0,
            from: 0,
        };
        self.fetches.insert(device, fetch);
        self.ask(peer, device, 0);
    }

    fn ask(&mut self, peer: DeviceId, device: DeviceId, from: u16) {
        let known = self.known.get(&device).map(|known| &known.set);
        let (depth, hashes) =
            known.map_or((0, Vec::new()), |set| (set.depth(), set.hashes().to_vec()));
        let ask = Message::Ask {
            device,
            depth,
            hashes,
            from,
        };
        self.send(peer, &ask);
    }

    fn give(
        &mut self,
        peer: DeviceId,
        device: &DeviceId,
        depth: u8,
        hashes: &[[u8; 16]],
        from: u16,
    ) {
        let Some(known) = self.known.get(device) else {
            return;
        };
        let same = depth == known.set.depth() && !hashes.is_empty();
        let (mut buckets, mut bytes, mut next) = (Vec::new(), 0, None);
        let all = known
            .set
            .buckets()
            .iter()
            .zip(known.set.hashes())
            .zip(0_u16..);
        for ((tags, hash), at) in all.skip(usize::from(from)) {
            let skip = if same {
                hashes.get(usize::from(at)) == Some(hash)
            } else {
                tags.is_empty()
            };
            if skip {
                continue;
            }
            if bytes >= GIVE_BYTES {
                next = Some(at);
                break;
            }
            bytes += 6 + 8 * tags.len();
            buckets.push((at, tags.clone()));
        }
        let head = known.head.clone();
        let give = Message::Give(Give {
            head,
            next,
            buckets,
        });
        self.send(peer, &give);
    }

    fn given(&mut self, peer: DeviceId, give: Give) {
        let device = give.head.device;
        let Some(mut fetch) = self.fetches.remove(&device) else {
            return;
        };
        if fetch.peer != peer {
            self.fetches.insert(device, fetch);
            return;
        }
        let lied = |machine: &mut Self| {
            machine.effects.push_back(Effect::Disconnect {
                peer,
                reason: "gave holdings that are not what their device signed",
            });
        };
        if !self.is_news(&give.head) {
            return;
        }
        match &fetch.head {
            Some(head) if *head == give.head => {}
            // It changed meanwhile: what came before belongs to another.
            Some(_) => return self.ask_for(peer, device),
            None if give.head.is_signed(&self.space) => {
                if device == self.me {
                    return self.outdo(give.head.stamp);
                }
                fetch.head = Some(give.head.clone());
            }
            None => return lied(self),
        }
        let before = fetch.from;
        let count = usize::try_from(give.head.count).unwrap_or(0);
        for (at, tags) in give.buckets {
            fetch.tags += tags.len();
            if at < before || fetch.tags > count || fetch.buckets.insert(at, tags).is_some() {
                return lied(self);
            }
        }
        if let Some(next) = give.next {
            fetch.since = self.now;
            fetch.from = next;
            self.fetches.insert(device, fetch);
            return self.ask(peer, device, next);
        }
        let empty = TagSet::default();
        let known = self.known.get(&device).map_or(&empty, |known| &known.set);
        let set = known.with(give.head.depth, fetch.buckets);
        match set.filter(|set| is_of(&give.head, set)) {
            Some(set) => {
                let heard = self.life(&give.head);
                self.take(give.head, set, heard);
            }
            None => lied(self),
        }
    }

    /// When the device that signed this was there, so far as one can know.
    fn life(&self, head: &Head) -> Time {
        Time(head.stamp.min(self.now.0))
    }

    fn take(&mut self, head: Head, set: TagSet, heard: Time) {
        let device = head.device;
        let before = self.known.get(&device);
        let heard = before.map_or(heard, |before| before.heard.max(heard));
        let (added, removed) = match before {
            Some(before) => before.set.difference(&set),
            None => (set.iter().collect(), Vec::new()),
        };
        self.known.insert(device, Known { head, set, heard });
        if device != self.me {
            self.effects.push_back(Effect::News {
                device,
                added,
                removed,
            });
        }
    }
}

/// Whether a set is the one that was signed.
fn is_of(head: &Head, set: &TagSet) -> bool {
    head.depth == set.depth()
        && usize::try_from(head.count) == Ok(set.len())
        && head.root == set.root()
}

fn all_buckets(set: &TagSet) -> Vec<(u16, Vec<HoldingTag>)> {
    let numbered = (0_u16..).zip(set.buckets());
    numbered
        .filter(|(_, tags)| !tags.is_empty())
        .map(|(at, tags)| (at, tags.clone()))
        .collect()
}
