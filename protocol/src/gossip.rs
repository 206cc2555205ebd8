//! Spreads entries, and finds what is missing.
//!
//! New entries are published at once. Every device keeps a digest of what counts for it and tells its root now and then; two that differ walk their trees
//! and give each other what is missing. The walk alone suffices: publishing only makes it faster.

mod beacon;
pub mod digest;
pub mod message;
mod peer;
#[cfg(test)]
mod tests;
pub mod walk;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kith_object::id::{DeviceId, EntryId};
use kith_object::key::Rng;
use kith_object::time::{Span, Time};

pub use digest::Key;

use crate::wire::GOSSIP_MESSAGE_BYTES_MAX;
use beacon::Beacon;
use digest::{Path, RadixTree, TreeId};
use message::{ENTRY_BYTES_MAX, Message, STEP_BYTES_MAX, Tag};
use peer::{
    ASKED_MAX, Asked, Awaiting, Batch, Credit, DELIVERED_MAX, Delivered, Peer, REQUESTS_MAX,
};
use walk::Step;

/// Largest entry that is published whole; a larger one is announced, and fetched.
pub const SPREAD_BYTES_MAX: usize = 32 << 10;
/// Bytes that one device publishes at once, and per second in the long run; what is beyond is left to the walk, which moves much at once for less.
const SPREAD_BURST: u64 = 256 << 10;
const SPREAD_RATE: u64 = 64 << 10;
/// How long roots may differ before a walk, while entries are being published: most differences are messages under way.
const SETTLE: Span = Span::from_ms(300);
/// The same if nothing is published.
const SETTLE_SHORT: Span = Span::from_ms(50);
/// Of two devices the one with the higher id waits so much longer, so that they seldom open at once.
const SETTLE_SECOND: Span = Span::from_ms(400);
/// After a walk, how long what it brought may take to count before the root is told.
const TELL_AFTER: Span = Span::from_ms(300);
/// Wait after a walk that brought nothing; doubles with each.
const BACKOFF_FIRST: Span = Span::from_ms(500);
/// Longest such wait, if either root has changed since.
const BACKOFF_MAX_CHANGED: Span = Span::from_secs(10);
/// Longest such wait, if neither has: the other counts what we do not, or lies.
const BACKOFF_MAX_SAME: Span = Span::from_secs(60);
/// How long the other may take to answer a step.
const ANSWER_MAX: Span = Span::from_secs(10);
/// How long nothing may come of a fetch.
const FETCH_QUIET_MAX: Span = Span::from_secs(30);
/// For so long after the fetch, or the last useful entry, what is asked of one device is not asked of another.
const GOING_MAX: Span = Span::from_secs(20);
/// Most walks of this device's own at once. Others wait their turn: after the first, most will have nothing new.
const WALKS_MAX: usize = 3;
/// How long one waits whose turn it is not.
const TURN: Span = Span::from_ms(500);
/// Steps of one side in a walk. Each opens parts until there are sixteen, or all: the 48 levels there could be are done in a few.
const STEPS_MAX: u32 = 16;
/// One device, in turn, is told the root directly so often, should publishing fail altogether.
const DIRECT: Span = Span::from_secs(60);
/// Entries are given in frames of about this size.
const FRAME_BYTES: usize = 256 << 10;
/// No entries are read for a device while so much is on the way to it.
const UNFLUSHED_ENTRIES_MAX: usize = 1 << 20;
/// So much of what was read is given at once; the rest is read again later.
const GIVE_BYTES_MAX: usize = 2 << 20;
/// Nothing at all is sent to a device while so much is on the way to it.
const UNFLUSHED_MAX: usize = 4 << 20;
/// Most reads of entries at once.
const LOADS_MAX: usize = 4;
/// Most devices whose published roots are remembered.
const HEARD_MAX: usize = 1024;

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// That device is connected.
    PeerUp(DeviceId),
    /// It is not any more.
    PeerDown(DeviceId),
    /// The entry of that key counts, and is on disk.
    Added(Key),
    /// It does not count any more.
    Removed(Key),
    /// The entry of that key counts, and is not on disk any more: it is asked for again.
    Lost(Key),
    /// This device has written an entry; it is on disk.
    NewLocal {
        /// Its key.
        key: Key,
        /// Its bytes.
        entry: Bytes,
    },
    /// A frame of the sync channel.
    Frame {
        /// From whom.
        peer: DeviceId,
        /// The frame.
        bytes: Bytes,
    },
    /// A published message.
    Published {
        /// Who signed it.
        from: DeviceId,
        /// The message.
        bytes: Bytes,
    },
    /// Frames of that many bytes are written to the device.
    Flushed {
        /// To whom.
        peer: DeviceId,
        /// How many bytes.
        len: usize,
    },
    /// Entries were read; those that are not there are left out.
    Loaded {
        /// As the effect said.
        token: u64,
        /// What was found.
        entries: Vec<(EntryId, Bytes)>,
    },
    /// The time of [`Gossip::next_wakeup`] has come.
    Wake,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame on the sync channel; frames keep their order.
    Send {
        /// To whom.
        peer: DeviceId,
        /// The frame.
        bytes: Bytes,
    },
    /// Publish a message to all of the mesh, signed.
    Publish {
        /// The message.
        bytes: Bytes,
    },
    /// Read entries, then say [`Input::Loaded`].
    Load {
        /// Repeated in the answer.
        token: u64,
        /// Which.
        ids: Vec<EntryId>,
    },
    /// Judge an entry; if it comes to count, say [`Input::Added`].
    Deliver {
        /// Who gave it, or published it.
        from: DeviceId,
        /// The entry.
        entry: Bytes,
    },
    /// Cut the connection.
    Disconnect {
        /// Whose.
        peer: DeviceId,
        /// Why.
        reason: &'static str,
    },
}

/// What happened so far, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Roots published.
    pub roots_published: u64,
    /// Entries published, whole or by their key.
    pub entries_published: u64,
    /// Walks opened.
    pub walks: u64,
    /// Steps sent.
    pub steps: u64,
    /// Bytes of those.
    pub step_bytes: u64,
    /// Entries given.
    pub entries_given: u64,
    /// Bytes of those.
    pub entry_bytes_given: u64,
    /// Entries handed over to be judged.
    pub entries_delivered: u64,
    /// Entries published by others that were here already.
    pub entries_twice: u64,
    /// Messages that were malformed, too many, or of no use here.
    pub ignored: u64,
}

/// Keeps the digest of one space, and all devices' digests alike.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Gossip::next_wakeup`]. Entries are opaque here: whoever feeds the machine judges them, and says what
/// counts.
///
/// Spec: `protocol/spec/gossip.md`, "Machine".
#[derive(Debug)]
pub struct Gossip {
    me: DeviceId,
    spread_entries: bool,
    rng: Rng,
    now: Time,
    tree: RadixTree,
    peers: BTreeMap<DeviceId, Peer>,
    beacon: Beacon,
    /// When the next device is told the root directly.
    direct_due: Option<Time>,
    /// When there is something to do next, as of the last input: it is asked for far more often than it changes.
    next_due: Option<Time>,
    /// Roots that devices published last.
    heard: BTreeMap<DeviceId, [u8; 32]>,
    /// When another device's root was last found equal to the own.
    agreed: Option<Time>,
    /// Paths asked for, none within another, of whom and when.
    going: BTreeMap<Path, (DeviceId, Time)>,
    delivered: Delivered,
    /// Reads under way, and for whom.
    loads: BTreeMap<u64, DeviceId>,
    /// Who was served last.
    served: Option<DeviceId>,
    next_token: u64,
    next_number: u32,
    spread_credit: Credit,
    stats: Stats,
    effects: VecDeque<Effect>,
}

impl Gossip {
    /// A machine that knows no entries yet; `spread_entries` says whether new ones are published.
    pub fn new(me: DeviceId, spread_entries: bool, rng: Rng) -> Self {
        Self {
            me,
            spread_entries,
            rng,
            now: Time(0),
            tree: RadixTree::new(TreeId::default()),
            peers: BTreeMap::new(),
            beacon: Beacon::default(),
            agreed: None,
            direct_due: None,
            next_due: None,
            heard: BTreeMap::new(),
            going: BTreeMap::new(),
            delivered: Delivered::default(),
            loads: BTreeMap::new(),
            served: None,
            next_token: 0,
            next_number: 0,
            spread_credit: Credit::new(SPREAD_BURST, SPREAD_RATE),
            stats: Stats::default(),
            effects: VecDeque::new(),
        }
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::PeerUp(peer) => self.peer_up(peer),
            Input::PeerDown(peer) => self.peer_down(&peer),
            Input::Added(key) => self.added(key),
            Input::Removed(key) => {
                if self.tree.remove(&key) {
                    self.stir(true);
                }
            }
            Input::Lost(key) => self.lost(&key),
            Input::NewLocal { key, entry } => self.spread(key, entry),
            Input::Frame { peer, bytes } => self.frame(peer, &bytes),
            Input::Published { from, bytes } => self.published(from, &bytes),
            Input::Flushed { peer, len } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.unflushed = peer.unflushed.saturating_sub(len);
                }
                self.serve();
            }
            Input::Loaded { token, entries } => self.loaded(token, entries),
            Input::Wake => self.wake(),
        }
        self.next_due = self.find_next_due();
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come back with [`Input::Wake`], if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.next_due
    }

    fn find_next_due(&self) -> Option<Time> {
        let of_peers = self.peers.values().flat_map(|peer| {
            let answer = peer.awaiting.map(|awaiting| awaiting.since + ANSWER_MAX);
            let fetch = peer.asked.values().map(|asked| asked.heard).min();
            let fetch = fetch.map(|heard| heard + FETCH_QUIET_MAX);
            [peer.due, peer.tell_due, answer, fetch]
        });
        of_peers
            .chain([self.beacon.due(), self.direct_due])
            .flatten()
            .filter(|_| !cfg!(planted = "timer-never-rearms"))
            .min()
    }

    /// When another device last said that it knows exactly what this one knows; never since the start if `None`.
    pub fn agreed(&self) -> Option<Time> {
        self.agreed
    }

    /// The digest over what counts.
    pub fn root(&self) -> [u8; 32] {
        self.tree.root()
    }

    /// How many entries it covers.
    pub fn len(&self) -> u64 {
        self.tree.len()
    }

    /// Whether it covers none.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The tree.
    pub fn tree(&self) -> &RadixTree {
        &self.tree
    }

    /// What happened so far, in numbers.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Laws that hold between any two inputs; quick enough to be checked after each.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(self.heard.len() <= HEARD_MAX, "roots heard are bounded");
        assert!(
            self.delivered.len() <= DELIVERED_MAX,
            "deliveries are bounded"
        );
        assert!(self.loads.len() <= LOADS_MAX, "reads are bounded");
        assert_eq!(
            self.beacon.due().is_some(),
            !self.peers.is_empty(),
            "the root is told while someone is there"
        );
        for peer in self.peers.values() {
            assert!(peer.asked.len() <= ASKED_MAX, "fetches are bounded");
            assert!(
                peer.serve.requests() <= REQUESTS_MAX,
                "requests are bounded"
            );
            assert!(
                peer.unflushed <= UNFLUSHED_MAX + 2 * GIVE_BYTES_MAX,
                "what is on the way is bounded"
            );
        }
        let asked: usize = self
            .peers
            .values()
            .flat_map(|peer| peer.asked.values())
            .map(|asked| asked.paths.len())
            .sum();
        assert!(self.going.len() <= asked, "what is going on was asked for");
    }

    fn peer_up(&mut self, id: DeviceId) {
        if id == self.me || self.peers.contains_key(&id) {
            return;
        }
        self.peers.insert(id, Peer::new());
        if self.beacon.due().is_none() {
            self.stir(true);
        }
        if self.direct_due.is_none() {
            self.direct_due = Some(self.now + DIRECT);
        }
        self.tell(id);
    }

    fn peer_down(&mut self, id: &DeviceId) {
        if self.peers.remove(id).is_none() {
            return;
        }
        self.going.retain(|_, (of, _)| of != id);
        if self.peers.is_empty() {
            self.beacon.rest();
            self.direct_due = None;
        }
        self.serve();
    }

    fn added(&mut self, key: Key) {
        let giver = self.delivered.counted(&key);
        if !self.tree.insert(key) {
            return;
        }
        if let Some(peer) = giver.and_then(|giver| self.peers.get_mut(&giver)) {
            peer.fruitless = 0;
            peer.fruit = Some(self.now);
        }
        self.stir(true);
    }

    /// Takes an entry out of the digest and asks a connected device for it; if that has not got it, a walk finds who has.
    fn lost(&mut self, key: &Key) {
        if !self.tree.remove(key) {
            return;
        }
        self.stir(true);
        let count = u64::try_from(self.peers.len()).unwrap_or(u64::MAX);
        let nth = usize::try_from(self.rng.below(count.max(1))).unwrap_or_default();
        if let Some(peer) = self.peers.keys().nth(nth).copied() {
            self.call(peer, key);
        }
    }

    /// Has the root told soon.
    fn stir(&mut self, changed: bool) {
        if !self.peers.is_empty() {
            let devices = self.devices();
            self.beacon.stir(self.now, devices, changed, &mut self.rng);
        }
    }

    /// How many devices there seem to be.
    fn devices(&self) -> usize {
        self.heard.len().max(self.peers.len())
    }

    /// Publishes an entry of this device's own.
    fn spread(&mut self, key: Key, entry: Bytes) {
        if !self.spread_entries || entry.len() > ENTRY_BYTES_MAX {
            return;
        }
        let message = if entry.len() <= SPREAD_BYTES_MAX {
            Message::Spread { key, entry }
        } else {
            Message::Announce(key)
        };
        let bytes = Bytes::from(message.encode());
        let cost = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.spread_credit.spend(self.now, cost) {
            self.stats.entries_published += 1;
            self.effects.push_back(Effect::Publish { bytes });
        }
    }

    fn published(&mut self, from: DeviceId, bytes: &Bytes) {
        if from == self.me {
            return;
        }
        if bytes.len() > GOSSIP_MESSAGE_BYTES_MAX {
            self.stats.ignored += 1;
            return;
        }
        match Message::decode(bytes) {
            Ok(Message::Root { tree, root, .. }) if tree == self.tree.id() => {
                self.heard_published(from, root);
                self.heard_root(from, root);
            }
            Ok(Message::Spread { key, entry }) => {
                if self.tree.contains(&key) {
                    self.stats.entries_twice += 1;
                } else {
                    self.delivered.note(self.now, message::tag(&key), None);
                    self.deliver(from, entry);
                }
            }
            Ok(Message::Announce(key)) => self.call(from, &key),
            Ok(_) | Err(_) => {
                tracing::debug!(%from, "published message of no use here");
                self.stats.ignored += 1;
            }
        }
    }

    fn heard_published(&mut self, from: DeviceId, root: [u8; 32]) {
        let room = self.heard.len() < HEARD_MAX || self.heard.contains_key(&from);
        let news = room && self.heard.insert(from, root) != Some(root);
        if root == self.tree.root() {
            self.agreed = Some(self.now);
            self.beacon.heard_same();
        } else if news {
            // Whoever differs says so, that its neighbours may walk with it.
            self.stir(false);
        }
    }

    fn deliver(&mut self, from: DeviceId, entry: Bytes) {
        self.stats.entries_delivered += 1;
        self.effects.push_back(Effect::Deliver { from, entry });
    }

    /// Fetches an entry that was announced, if its author is connected; else the walk will find it.
    fn call(&mut self, from: DeviceId, key: &Key) {
        let path = Path::of(key, digest::KEY_NIBBLES);
        let wanted = !self.tree.contains(key) && self.wanted(&path);
        let now = self.now;
        let able = self.peers.get_mut(&from).is_some_and(|peer| {
            peer.asked.len() < ASKED_MAX
                && peer.unflushed <= UNFLUSHED_MAX
                && peer.calls_credit.spend(now, 1)
        });
        if wanted && able {
            let step = Step {
                fetches: vec![path],
                ..Step::default()
            };
            self.step(from, false, step);
        }
    }

    /// Whether what begins so is neither here in a moment nor asked for.
    fn wanted(&self, path: &Path) -> bool {
        if path.nibbles() >= walk::LEAF_NIBBLES && self.delivered.recent(self.now, path) {
            return false;
        }
        let before = self.going.range(..=*path).next_back();
        let after = self.going.range(*path..).next();
        !before.into_iter().chain(after).any(|(other, (of, since))| {
            let fruit = self.peers.get(of).and_then(|peer| peer.fruit);
            let alive = fruit.unwrap_or_default().max(*since);
            other.overlaps(path) && self.now.since(alive) < GOING_MAX
        })
    }

    fn frame(&mut self, from: DeviceId, bytes: &Bytes) {
        if !self.peers.contains_key(&from) {
            return;
        }
        match Message::decode(bytes) {
            Ok(Message::Root { tree, root, .. }) => {
                if tree == self.tree.id() {
                    self.heard_root(from, root);
                }
            }
            Ok(Message::Step {
                tree,
                opening,
                number,
                step,
            }) => {
                if tree == self.tree.id() {
                    self.stepped(from, opening, number, &step);
                }
            }
            Ok(Message::Entries {
                number,
                last,
                entries,
            }) => self.given(from, number, last, entries),
            Ok(Message::Spread { .. } | Message::Announce(_)) => {
                self.disconnect(from, "sent on the sync channel what is to be published");
            }
            Err(error) => {
                tracing::debug!(peer = %from, %error, "frame does not decode");
                self.disconnect(from, "sent a malformed sync frame");
            }
        }
    }

    fn disconnect(&mut self, peer: DeviceId, reason: &'static str) {
        self.stats.ignored += 1;
        self.peer_down(&peer);
        self.effects.push_back(Effect::Disconnect { peer, reason });
    }

    /// A connected device told its root, either way.
    fn heard_root(&mut self, from: DeviceId, root: [u8; 32]) {
        let mine = self.tree.root();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.root = Some(root);
        if root == mine {
            self.agreed = Some(self.now);
            peer.due = None;
            peer.fruitless = 0;
        } else {
            self.plan(from);
        }
    }

    /// Plans a walk with a device whose root differs.
    fn plan(&mut self, with: DeviceId) {
        let mine = self.tree.root();
        let Some(peer) = self.peers.get_mut(&with) else {
            return;
        };
        let Some(theirs) = peer.root.filter(|theirs| *theirs != mine) else {
            return;
        };
        if !peer.idle() || peer.due.is_some() {
            return;
        }
        let settle = if self.spread_entries && peer.walked.is_some() {
            SETTLE
        } else {
            SETTLE_SHORT
        };
        let turn = if self.me < with {
            Span(0)
        } else {
            SETTLE_SECOND
        };
        let jitter = Span(self.rng.below(settle.as_ms()));
        let backoff = if peer.fruitless == 0 {
            Span(0)
        } else {
            let max = if peer.walked == Some((mine, theirs)) {
                BACKOFF_MAX_SAME
            } else {
                BACKOFF_MAX_CHANGED
            };
            let doublings = (peer.fruitless - 1).min(16);
            Span(BACKOFF_FIRST.as_ms() << doublings).min(max)
        };
        peer.due = Some(self.now + settle + turn + jitter + backoff);
    }

    fn wake(&mut self) {
        self.give_up_waiting();
        self.open_walks();
        let now = self.now;
        let telling: Vec<DeviceId> = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| peer.tell_due.is_some_and(|due| due <= now))
            .map(|(id, peer)| {
                peer.tell_due = None;
                *id
            })
            .collect();
        for peer in telling {
            self.tell(peer);
        }
        let devices = self.devices();
        if self.beacon.fire(now, devices, &mut self.rng) {
            self.stats.roots_published += 1;
            let bytes = self.root_message();
            self.effects.push_back(Effect::Publish { bytes });
        }
        if self.direct_due.is_some_and(|due| due <= now) {
            self.direct_due = Some(now + DIRECT);
            let count = u64::try_from(self.peers.len()).unwrap_or(u64::MAX);
            let nth = usize::try_from(self.rng.below(count.max(1))).unwrap_or_default();
            if let Some(peer) = self.peers.keys().nth(nth).copied() {
                self.tell(peer);
            }
        }
        self.serve();
    }

    /// Ends the waiting for those who do not answer.
    fn give_up_waiting(&mut self) {
        let now = self.now;
        let mut again = Vec::new();
        for (id, peer) in &mut self.peers {
            let mut given_up = false;
            if peer
                .awaiting
                .is_some_and(|awaiting| awaiting.since + ANSWER_MAX <= now)
            {
                peer.awaiting = None;
                given_up = true;
            }
            let quiet = |asked: &Asked| asked.heard + FETCH_QUIET_MAX <= now;
            for (_, asked) in peer.asked.extract_if(.., |_, asked| quiet(asked)) {
                forget(&mut self.going, id, &asked.paths);
                given_up = true;
            }
            if given_up {
                tracing::debug!(peer = %id, "does not answer");
                peer.fruitless = peer.fruitless.saturating_add(1);
                again.push(*id);
            }
        }
        for peer in again {
            self.plan(peer);
        }
    }

    /// Opens the walks that are due, those with devices that were of use first.
    fn open_walks(&mut self) {
        let now = self.now;
        let mine = self.tree.root();
        // Those that have let us down do not take a turn from others.
        let under_way = |peer: &&Peer| peer.opened && peer.waits() && peer.fruitless <= 2;
        let mut walks = self.peers.values().filter(under_way).count();
        let mut due: Vec<(u32, DeviceId)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.due.is_some_and(|due| due <= now))
            .map(|(id, peer)| (peer.fruitless, *id))
            .collect();
        due.sort_unstable();
        for (_, id) in due {
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            peer.due = None;
            let Some(theirs) = peer.root.filter(|theirs| *theirs != mine) else {
                continue;
            };
            if !peer.idle() {
                continue;
            }
            if walks >= WALKS_MAX || peer.unflushed > UNFLUSHED_MAX {
                peer.due = Some(now + TURN);
                continue;
            }
            walks += 1;
            peer.walked = Some((mine, theirs));
            peer.fruitless = peer.fruitless.saturating_add(1);
            peer.steps = 0;
            peer.opened = true;
            self.stats.walks += 1;
            let step = walk::opening(&self.tree);
            self.step(id, true, step);
        }
    }

    /// Sends a step, and remembers what it asks for.
    fn step(&mut self, to: DeviceId, opening: bool, step: Step) {
        let Some(peer) = self.peers.get_mut(&to) else {
            return;
        };
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        if step.asks() {
            peer.awaiting = Some(Awaiting {
                since: self.now,
                opening,
            });
        }
        if !step.fetches.is_empty() {
            // One that has failed before is asked, but keeps nobody else from being asked.
            if peer.fruitless <= 1 {
                for path in &step.fetches {
                    reserve(&mut self.going, *path, to, self.now);
                }
            }
            peer.asked.insert(
                number,
                Asked {
                    paths: step.fetches.clone(),
                    heard: self.now,
                },
            );
        }
        let message = Message::Step {
            tree: self.tree.id(),
            opening,
            number,
            step,
        };
        let bytes = Bytes::from(message.encode());
        self.stats.steps += 1;
        self.stats.step_bytes += u64::try_from(bytes.len()).unwrap_or_default();
        self.send(to, bytes);
    }

    /// Answers a step.
    fn stepped(&mut self, from: DeviceId, opening: bool, number: u32, step: &Step) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if !peer.steps_credit.spend(self.now, 1) || peer.unflushed > UNFLUSHED_MAX {
            self.stats.ignored += 1;
            if !peer.excess_credit.spend(self.now, 1) {
                self.disconnect(from, "walks without pause");
            }
            return;
        }
        if opening {
            let crossed = peer.awaiting.is_some_and(|awaiting| awaiting.opening);
            if crossed && self.me < from {
                // Both opened at once: the walk of the lower id goes on.
                return;
            }
            peer.steps = 0;
            peer.opened = false;
        }
        if step.asks() || !opening {
            peer.awaiting = None;
        }
        peer.due = None;
        peer.steps = peer.steps.saturating_add(1);
        if !step.fetches.is_empty() && !peer.serve.ask(number, &step.fetches) {
            self.stats.ignored += 1;
        }
        if step.asks() && peer.steps <= STEPS_MAX {
            let full = peer.asked.len() >= ASKED_MAX;
            let room = STEP_BYTES_MAX - STEP_HEADER_BYTES_MAX;
            let answer = walk::answer(&self.tree, step, room, |path| !full && self.wanted(path));
            self.step(from, false, answer.step);
        }
        self.ended(from);
        self.serve();
    }

    /// If nothing goes on with a device any more, it is told the root, when what came of it counts.
    fn ended(&mut self, with: DeviceId) {
        if let Some(peer) = self.peers.get_mut(&with)
            && peer.idle()
        {
            // What it told before the walk is no longer so; it will tell again.
            peer.root = None;
            peer.due = None;
            peer.steps = 0;
            peer.opened = false;
            let jitter = Span(self.rng.below(TELL_AFTER.as_ms()));
            peer.tell_due = Some(self.now + TELL_AFTER + jitter);
        }
    }

    /// Takes in entries that were fetched.
    fn given(&mut self, from: DeviceId, number: u32, last: bool, entries: Vec<(Tag, Bytes)>) {
        // What was not asked for is not taken: a peer must not choose how fast we write.
        if !self
            .peers
            .get(&from)
            .is_some_and(|peer| peer.asked.contains_key(&number))
        {
            return;
        }
        for (tag, entry) in entries {
            self.delivered.note(self.now, tag, Some(from));
            self.deliver(from, entry);
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if let Some(asked) = peer.asked.get_mut(&number) {
            asked.heard = self.now;
            if last && let Some(asked) = peer.asked.remove(&number) {
                forget(&mut self.going, &from, &asked.paths);
                self.ended(from);
            }
        }
    }

    /// Has entries read for those who asked, in turn.
    fn serve(&mut self) {
        while self.loads.len() < LOADS_MAX {
            let ready = |(_, peer): &(&DeviceId, &Peer)| {
                peer.serve.ready() && peer.unflushed < UNFLUSHED_ENTRIES_MAX
            };
            let after = self.served.and_then(|served| {
                let rest = (
                    std::ops::Bound::Excluded(served),
                    std::ops::Bound::Unbounded,
                );
                self.peers.range(rest).find(ready)
            });
            let next = after.or_else(|| self.peers.iter().find(ready));
            let Some(id) = next.map(|(id, _)| *id) else {
                return;
            };
            self.served = Some(id);
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            let Some(batch) = peer.serve.next(&self.tree) else {
                continue;
            };
            if batch.keys.is_empty() {
                self.give(id, &batch, Vec::new());
                continue;
            }
            let count = u64::try_from(batch.keys.len()).unwrap_or(u64::MAX);
            if !peer.may_have(self.now, count, self.tree.len()) {
                self.disconnect(id, "fetches everything over and over");
                continue;
            }
            let token = self.next_token;
            self.next_token += 1;
            self.loads.insert(token, id);
            let ids = batch.keys.iter().map(Key::entry).collect();
            peer.serve.loading = Some((token, batch));
            self.effects.push_back(Effect::Load { token, ids });
        }
    }

    fn loaded(&mut self, token: u64, entries: Vec<(EntryId, Bytes)>) {
        if let Some(id) = self.loads.remove(&token)
            && let Some(peer) = self.peers.get_mut(&id)
            && let Some((_, mut batch)) =
                peer.serve.loading.take_if(|(loading, _)| *loading == token)
        {
            let mut found: BTreeMap<EntryId, Bytes> = entries.into_iter().collect();
            let mut entries: Vec<(Key, Bytes)> = batch
                .keys
                .iter()
                .filter_map(|key| Some((*key, found.remove(&key.entry())?)))
                .filter(|(_, entry)| entry.len() <= ENTRY_BYTES_MAX)
                .collect();
            let mut total = 0;
            let mut fits = |(_, entry): &(Key, Bytes)| {
                total += entry.len();
                total <= GIVE_BYTES_MAX
            };
            let given = entries
                .iter()
                .take_while(|entry| fits(entry))
                .count()
                .max(1);
            peer.serve
                .weigh(entries.iter().map(|(_, entry)| entry.len()).sum());
            if given < entries.len() {
                let rest = entries.split_off(given);
                peer.serve
                    .put_back(&mut batch, rest.into_iter().map(|(key, _)| key));
            }
            self.give(id, &batch, entries);
        }
        self.serve();
    }

    /// Sends entries in frames, the last of which says so if the batch is the last.
    fn give(&mut self, to: DeviceId, batch: &Batch, entries: Vec<(Key, Bytes)>) {
        let mut rest = entries.into_iter().peekable();
        loop {
            let (mut frame, mut len_bytes) = (Vec::new(), 0);
            while let Some((key, entry)) =
                rest.next_if(|(_, entry)| len_bytes == 0 || len_bytes + entry.len() <= FRAME_BYTES)
            {
                len_bytes += entry.len().max(1);
                frame.push((message::tag(&key), entry));
            }
            let last = rest.peek().is_none();
            if frame.is_empty() && !batch.last {
                break;
            }
            self.stats.entries_given += u64::try_from(frame.len()).unwrap_or_default();
            self.stats.entry_bytes_given += u64::try_from(len_bytes).unwrap_or_default();
            let message = Message::Entries {
                number: batch.number,
                last: last && batch.last,
                entries: frame,
            };
            self.send(to, message.encode().into());
            if last {
                break;
            }
        }
        if batch.last {
            self.ended(to);
        }
    }

    fn root_message(&self) -> Bytes {
        let message = Message::Root {
            tree: self.tree.id(),
            root: self.tree.root(),
            count: self.tree.len(),
        };
        message.encode().into()
    }

    /// Tells one device the root.
    fn tell(&mut self, peer: DeviceId) {
        if self
            .peers
            .get(&peer)
            .is_some_and(|peer| peer.unflushed <= UNFLUSHED_MAX)
        {
            let bytes = self.root_message();
            self.send(peer, bytes);
        }
    }

    fn send(&mut self, to: DeviceId, bytes: Bytes) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.unflushed += bytes.len();
            self.effects.push_back(Effect::Send { peer: to, bytes });
        }
    }
}

/// Room for what stands around a step in its frame: kind, tree, opening, number, three counts.
const STEP_HEADER_BYTES_MAX: usize = 1 + 5 + 1 + 4 + 12;

/// Notes that a path is asked for, unless it overlaps with one that is.
fn reserve(going: &mut BTreeMap<Path, (DeviceId, Time)>, path: Path, of: DeviceId, now: Time) {
    let before = going.range(..=path).next_back();
    let after = going.range(path..).next();
    if !before
        .into_iter()
        .chain(after)
        .any(|(other, _)| other.overlaps(&path))
    {
        going.insert(path, (of, now));
    }
}

fn forget(going: &mut BTreeMap<Path, (DeviceId, Time)>, of: &DeviceId, paths: &[Path]) {
    for path in paths {
        if going.get(path).is_some_and(|(device, _)| device == of) {
            going.remove(path);
        }
    }
}
