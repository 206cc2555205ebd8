//! The half that serves: what each peer wants of us, what is being loaded for it, and what waits to be sent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_object::id::Cid;

use super::message::{BLOCK_BYTES_MAX, Block, Entry, EntryKind, Message, Prefix, Presence};
use super::outbox::{Outbox, PeerNo};
use super::{Effect, Loaded};

/// Wants remembered of each peer; Kubo remembers as many.
pub const LEDGER_MAX: usize = 1024;
/// Most bytes that wait for one peer, loaded or handed to the shell.
pub const SERVE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Least that may wait for one peer however many there are: two average blocks.
const SERVE_BYTES_MIN: usize = 256 * 1024;
/// Bytes that may wait for all peers together, shared among those that want something.
const SERVE_BYTES_ALL: usize = 64 * 1024 * 1024;
/// Most loads at once for one peer, so that a long list does not keep the disk from others.
const LOADS_MAX: usize = 32;
/// Most loads at once for all peers: more than any disk's queue.
const LOADS_ALL_MAX: usize = 128;
/// Answers other than blocks that may wait for one peer; whoever does not read loses some.
const PRESENCES_MAX: usize = 4096;
/// Blocks up to this size are sent at once when asked whether they are here; Kubo does so too.
const SMALL_BYTES_MAX: u32 = 1024;
/// A message is closed once it has grown to this: large enough to cost little, small enough that the other side works meanwhile.
const MESSAGE_BYTES_TARGET: usize = 256 * 1024;
/// While the shell holds less than this, a message may go before it is full.
const UNFLUSHED_LOW: usize = 256 * 1024;
/// And then it should at least be this long, unless nothing more is on its way from the disk.
const MESSAGE_BYTES_FAIR: usize = 64 * 1024;
/// What an answer other than a block takes in a message.
const PRESENCE_BYTES: usize = 44;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for a load.
    Queued,
    /// Being loaded.
    Loading {
        /// Stored meanwhile: if the load found nothing, look again.
        again: bool,
    },
    /// Loaded, waits for room in the connection.
    Staged { len: usize },
    /// Answered that we lack it; served if it comes.
    Standing,
}

/// What a peer wants.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    number: u64,
    priority: i32,
    /// The block itself, not the word that it is here.
    block: bool,
    send_dont_have: bool,
    once: bool,
    state: State,
}

impl Wanted {
    fn key(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.number)
    }
}

/// One peer's wants.
#[derive(Debug, Default)]
struct Ledger {
    wants: BTreeMap<Cid, Wanted>,
    queue: BTreeMap<(Reverse<i32>, u64), Cid>,
    /// Answered wants, oldest first; they make room for new ones.
    standing: BTreeMap<u64, Cid>,
    /// Loads not yet answered, and whether they are for a whole block. Some may be of wants that ended.
    loading: BTreeMap<Cid, bool>,
    presences: BTreeMap<Cid, bool>,
    /// Some may be of wants that ended; the number tells.
    staged: VecDeque<(Cid, u64, Bytes)>,
    staged_bytes: usize,
    next_number: u64,
    /// Stands in `turns`.
    in_turn: bool,
}

/// All peers' wants.
///
/// Spec: `protocol/spec/exchange.md`, "Serving".
#[derive(Debug, Default)]
pub(super) struct Serving {
    ledgers: BTreeMap<PeerNo, Ledger>,
    /// Whose ledger names a CID.
    wanted_by: BTreeMap<Cid, BTreeSet<PeerNo>>,
    /// Peers with something to load, in turn.
    turns: VecDeque<PeerNo>,
    /// Peers with something queued, loading or staged: they share what may wait.
    busy: BTreeSet<PeerNo>,
    loads: usize,
    /// Average bytes of a block served.
    size: usize,
}

impl Serving {
    pub(super) fn new() -> Self {
        Self {
            size: 128 * 1024,
            ..Self::default()
        }
    }

    pub(super) fn peer_up(&mut self, peer: PeerNo) {
        self.ledgers.insert(peer, Ledger::default());
    }

    pub(super) fn peer_down(&mut self, peer: PeerNo) {
        let Some(ledger) = self.ledgers.remove(&peer) else {
            return;
        };
        for cid in ledger.wants.keys() {
            forget(&mut self.wanted_by, cid, peer);
        }
        self.loads -= ledger.loading.len();
        self.busy.remove(&peer);
    }

    /// A wantlist arrived.
    pub(super) fn entries(
        &mut self,
        peer: PeerNo,
        full: bool,
        entries: &[Entry],
        out: &mut Outbox,
    ) {
        let Some(ledger) = self.ledgers.get_mut(&peer) else {
            return;
        };
        if full {
            let known: Vec<Cid> = ledger.wants.keys().copied().collect();
            for cid in known {
                ledger.remove(&cid);
                forget(&mut self.wanted_by, &cid, peer);
            }
            ledger.presences.clear();
        }
        for entry in entries {
            if entry.kind == EntryKind::Cancel {
                if ledger.remove(&entry.cid) {
                    forget(&mut self.wanted_by, &entry.cid, peer);
                }
                ledger.presences.remove(&entry.cid);
                continue;
            }
            match ledger.add(entry) {
                Added::Yes => {
                    self.wanted_by.entry(entry.cid).or_default().insert(peer);
                }
                Added::InPlaceOf(evicted) => {
                    forget(&mut self.wanted_by, &evicted, peer);
                    self.wanted_by.entry(entry.cid).or_default().insert(peer);
                }
                Added::NoRoom => {
                    if entry.send_dont_have && ledger.presences.len() < PRESENCES_MAX {
                        ledger.presences.insert(entry.cid, false);
                    }
                }
                Added::Known => {}
            }
        }
        out.touched.insert(peer);
        self.touch(peer);
    }

    /// A load was answered.
    pub(super) fn loaded(
        &mut self,
        peer: PeerNo,
        cid: Cid,
        found: Option<Loaded>,
        out: &mut Outbox,
    ) {
        let Some(ledger) = self.ledgers.get_mut(&peer) else {
            return;
        };
        if ledger.loading.remove(&cid).is_none() {
            return;
        }
        self.loads -= 1;
        if let Some(&wanted) = ledger.wants.get(&cid)
            && let State::Loading { again } = wanted.state
        {
            match found.filter(|found| found.len() <= BLOCK_BYTES_MAX) {
                None if again => ledger.queue(&cid),
                None => {
                    ledger.lack(&cid);
                    if wanted.once {
                        ledger.remove(&cid);
                        forget(&mut self.wanted_by, &cid, peer);
                    }
                }
                Some(Loaded::Size(len)) if wanted.block || len <= SMALL_BYTES_MAX => {
                    ledger.queue_block(&cid)
                }
                Some(Loaded::Block(block)) if wanted.block || block.len() <= small_bytes() => {
                    self.size = (self.size * 7 + block.len()) / 8;
                    ledger.stage(&cid, block);
                }
                Some(_) => {
                    ledger.remove(&cid);
                    forget(&mut self.wanted_by, &cid, peer);
                    ledger.presences.insert(cid, true);
                }
            }
        }
        out.touched.insert(peer);
        self.touch(peer);
    }

    /// We hold this block now: who waits for it is served.
    pub(super) fn stored(&mut self, cid: &Cid) {
        let Some(peers) = self.wanted_by.get(cid).cloned() else {
            return;
        };
        for peer in peers {
            let ledger = self
                .ledgers
                .get_mut(&peer)
                .expect("only connected peers want");
            let wanted = ledger
                .wants
                .get_mut(cid)
                .expect("the index of wants is exact");
            match &mut wanted.state {
                State::Standing => ledger.queue(cid),
                State::Loading { again } => *again = true,
                State::Queued | State::Staged { .. } => {}
            }
            self.touch(peer);
        }
    }

    /// Loads what there is room for, one peer after the other.
    pub(super) fn pump(&mut self, out: &mut Outbox) {
        let share = self.share();
        while self.loads < LOADS_ALL_MAX
            && let Some(peer) = self.turns.pop_front()
        {
            let Some(ledger) = self.ledgers.get_mut(&peer) else {
                continue;
            };
            ledger.in_turn = false;
            let Some(cid) = ledger.next_load(share, out.unflushed(peer), self.size) else {
                continue;
            };
            let wanted = ledger.wants.get_mut(&cid).expect("only wants are queued");
            ledger.queue.remove(&wanted.key());
            wanted.state = State::Loading { again: false };
            ledger.loading.insert(cid, wanted.block);
            self.loads += 1;
            let device = out
                .links
                .get(&peer)
                .expect("a ledger belongs to a link")
                .device;
            out.effects.push_back(Effect::Load {
                peer: device,
                cid,
                block: wanted.block,
            });
            self.take_turn(peer);
        }
    }

    /// What to send to this peer now, if it is time to.
    pub(super) fn reply(
        &mut self,
        peer: PeerNo,
        unflushed: usize,
        with_entries: bool,
    ) -> Option<Message> {
        let share = self.share();
        let ledger = self.ledgers.get_mut(&peer)?;
        let waiting = ledger.staged_bytes + ledger.presences.len() * PRESENCE_BYTES;
        let hurry = unflushed < UNFLUSHED_LOW
            && (waiting >= MESSAGE_BYTES_FAIR || ledger.loading.is_empty());
        let due = unflushed == 0 || with_entries || waiting >= MESSAGE_BYTES_TARGET || hurry;
        if waiting == 0 || unflushed >= share || !due {
            return None;
        }
        let mut message = Message::default();
        while message.presences.len() < PRESENCES_MAX
            && let Some((cid, have)) = ledger.presences.pop_first()
        {
            message.presences.push(Presence { cid, have });
        }
        let mut len = message.presences.len() * PRESENCE_BYTES;
        while len < MESSAGE_BYTES_TARGET
            && let Some((cid, number, block)) = ledger.staged.front()
        {
            let (cid, block) = (*cid, block.clone());
            let live = ledger
                .wants
                .get(&cid)
                .is_some_and(|wanted| wanted.number == *number);
            if live && len + unflushed > 0 && unflushed + len + block.len() > share {
                break;
            }
            ledger.staged.pop_front();
            if !live {
                continue;
            }
            len += block.len();
            ledger.remove(&cid);
            forget(&mut self.wanted_by, &cid, peer);
            message.blocks.push(Block {
                prefix: Prefix::of(&cid),
                data: block,
            });
        }
        message.pending_bytes = u32::try_from(ledger.staged_bytes)
            .unwrap_or(u32::MAX)
            .min(i32::MAX.cast_unsigned());
        self.touch(peer);
        (!message.is_empty()).then_some(message)
    }

    pub(super) fn wants_len(&self) -> usize {
        self.ledgers.values().map(|ledger| ledger.wants.len()).sum()
    }

    /// How many bytes may wait for each peer now.
    fn share(&self) -> usize {
        (SERVE_BYTES_ALL / self.busy.len().max(1)).clamp(SERVE_BYTES_MIN, SERVE_BYTES_MAX)
    }

    /// Notes whether a peer is busy, and gives it a turn if it has something to load.
    pub(super) fn touch(&mut self, peer: PeerNo) {
        let Some(ledger) = self.ledgers.get(&peer) else {
            return;
        };
        if ledger.queue.is_empty() && ledger.loading.is_empty() && ledger.staged.is_empty() {
            self.busy.remove(&peer);
        } else {
            self.busy.insert(peer);
        }
        self.take_turn(peer);
    }

    fn take_turn(&mut self, peer: PeerNo) {
        let Some(ledger) = self.ledgers.get_mut(&peer) else {
            return;
        };
        if !ledger.queue.is_empty() && !ledger.in_turn {
            ledger.in_turn = true;
            self.turns.push_back(peer);
        }
    }

    pub(super) fn check_invariants(&self, out: &Outbox) {
        assert_eq!(
            self.loads,
            self.ledgers
                .values()
                .map(|ledger| ledger.loading.len())
                .sum::<usize>(),
            "loads are counted"
        );
        assert!(self.loads <= LOADS_ALL_MAX, "loads are bounded");
        let named: usize = self.wanted_by.values().map(BTreeSet::len).sum();
        assert_eq!(
            named,
            self.ledgers
                .values()
                .map(|ledger| ledger.wants.len())
                .sum::<usize>(),
            "the index of wants is exact"
        );
        let in_turn = self
            .ledgers
            .values()
            .filter(|ledger| ledger.in_turn)
            .count();
        assert!(self.turns.len() >= in_turn, "who is in turn has one");
        for (peer, ledger) in &self.ledgers {
            ledger.check_invariants();
            assert!(
                ledger.wants.keys().all(|cid| self
                    .wanted_by
                    .get(cid)
                    .is_some_and(|peers| peers.contains(peer))),
                "indexed"
            );
            let idle =
                ledger.queue.is_empty() && ledger.loading.is_empty() && ledger.staged.is_empty();
            assert_eq!(idle, !self.busy.contains(peer), "busy is exact");
            let stuck = !ledger.queue.is_empty() && !ledger.in_turn;
            assert!(
                !stuck
                    || !ledger.loading.is_empty()
                    || !ledger.staged.is_empty()
                    || !ledger.presences.is_empty()
                    || out.unflushed(*peer) > 0,
                "what is queued gets its turn"
            );
        }
    }
}

/// What became of an entry.
enum Added {
    Yes,
    InPlaceOf(Cid),
    Known,
    NoRoom,
}

impl Ledger {
    /// Notes a want. A later entry of the same CID stands for both.
    fn add(&mut self, entry: &Entry) -> Added {
        let block = entry.kind == EntryKind::Block;
        if let Some(known) = self.wants.get_mut(&entry.cid) {
            if let State::Staged { .. } = known.state {
                return Added::Known;
            }
            self.queue.remove(&known.key());
            known.priority = entry.priority;
            known.block = block;
            known.send_dont_have = entry.send_dont_have;
            known.once = entry.once;
            match known.state {
                State::Queued => {
                    self.queue.insert(known.key(), entry.cid);
                }
                State::Standing => self.queue(&entry.cid),
                State::Loading { .. } | State::Staged { .. } => {}
            }
            return Added::Known;
        }
        let mut added = Added::Yes;
        if self.wants.len() >= LEDGER_MAX && !cfg!(planted = "unbounded-queue") {
            let Some((_, oldest)) = self.standing.pop_first() else {
                return Added::NoRoom;
            };
            self.wants.remove(&oldest);
            added = Added::InPlaceOf(oldest);
        }
        let number = self.next_number;
        self.next_number += 1;
        // A load that a cancelled want began will do for this one.
        let state = if self.loading.contains_key(&entry.cid) {
            State::Loading { again: false }
        } else {
            State::Queued
        };
        let (priority, send_dont_have, once) = (entry.priority, entry.send_dont_have, entry.once);
        let wanted = Wanted {
            number,
            priority,
            block,
            send_dont_have,
            once,
            state,
        };
        if state == State::Queued {
            self.queue.insert(wanted.key(), entry.cid);
        }
        self.wants.insert(entry.cid, wanted);
        added
    }

    /// Forgets a want; says whether there was one.
    fn remove(&mut self, cid: &Cid) -> bool {
        let Some(wanted) = self.wants.remove(cid) else {
            return false;
        };
        match wanted.state {
            State::Queued => {
                self.queue.remove(&wanted.key());
            }
            State::Staged { len } => self.staged_bytes -= len,
            State::Standing => {
                self.standing.remove(&wanted.number);
            }
            State::Loading { .. } => {}
        }
        true
    }

    /// To be loaded, again.
    fn queue(&mut self, cid: &Cid) {
        let wanted = self.wants.get_mut(cid).expect("the caller found it");
        self.standing.remove(&wanted.number);
        wanted.state = State::Queued;
        self.queue.insert(wanted.key(), *cid);
    }

    /// To be loaded whole, whatever was asked.
    fn queue_block(&mut self, cid: &Cid) {
        self.wants.get_mut(cid).expect("the caller found it").block = true;
        self.queue(cid);
    }

    /// We lack it.
    fn lack(&mut self, cid: &Cid) {
        let wanted = self.wants.get_mut(cid).expect("the caller found it");
        wanted.state = State::Standing;
        self.standing.insert(wanted.number, *cid);
        if wanted.send_dont_have {
            self.presences.insert(*cid, false);
        }
    }

    fn stage(&mut self, cid: &Cid, block: Bytes) {
        let wanted = self.wants.get_mut(cid).expect("the caller found it");
        wanted.state = State::Staged { len: block.len() };
        self.staged_bytes += block.len();
        self.staged.push_back((*cid, wanted.number, block));
    }

    /// The first want in the queue, if there is room for what it may be.
    fn next_load(&self, share: usize, unflushed: usize, size: usize) -> Option<Cid> {
        let blocks = self.loading.values().filter(|block| **block).count();
        let waiting = unflushed + self.staged_bytes;
        let room = waiting + blocks * size < share || (waiting == 0 && blocks == 0);
        if self.loading.len() >= LOADS_MAX || self.presences.len() >= PRESENCES_MAX || !room {
            return None;
        }
        self.queue.values().next().copied()
    }

    fn check_invariants(&self) {
        assert!(self.wants.len() <= LEDGER_MAX, "a ledger is bounded");
        assert!(
            self.loading.len() <= LOADS_MAX,
            "loads of a peer are bounded"
        );
        assert!(
            self.presences.len() <= PRESENCES_MAX + LOADS_MAX,
            "answers that wait are bounded"
        );
        let mut staged_bytes = 0;
        for (cid, wanted) in &self.wants {
            assert_eq!(
                self.queue.get(&wanted.key()) == Some(cid),
                wanted.state == State::Queued,
                "the queue is exact"
            );
            assert_eq!(
                self.standing.get(&wanted.number) == Some(cid),
                wanted.state == State::Standing,
                "standing is exact"
            );
            match wanted.state {
                State::Loading { .. } => {
                    assert!(self.loading.contains_key(cid), "what loads is being loaded")
                }
                State::Staged { len } => staged_bytes += len,
                State::Queued | State::Standing => {}
            }
        }
        assert_eq!(staged_bytes, self.staged_bytes, "what is staged is counted");
        let queued = self
            .wants
            .values()
            .filter(|wanted| wanted.state == State::Queued)
            .count();
        assert_eq!(queued, self.queue.len(), "only wants are queued");
    }
}

impl Loaded {
    fn len(&self) -> usize {
        match self {
            Self::Size(len) => usize::try_from(*len).unwrap_or(usize::MAX),
            Self::Block(block) => block.len(),
        }
    }
}

fn small_bytes() -> usize {
    usize::try_from(SMALL_BYTES_MAX).expect("a small number fits")
}

fn forget(wanted_by: &mut BTreeMap<Cid, BTreeSet<PeerNo>>, cid: &Cid, peer: PeerNo) {
    if let Some(peers) = wanted_by.get_mut(cid) {
        peers.remove(&peer);
        if peers.is_empty() {
            wanted_by.remove(cid);
        }
    }
}
