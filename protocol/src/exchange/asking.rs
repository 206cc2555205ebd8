//! The half that asks: which block is asked of whom, and what happens when the answer is no, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use kith_object::id::Cid;
use kith_object::time::Time;

use super::message::{Entry, EntryKind};
use super::outbox::{Outbox, PeerNo};
use super::source::{Ask, AskKind, Recent, Source};
use super::{Effect, RefusedReason};

mod patience;
mod place;

/// Most wants at once, over all requests; about 300 bytes each.
pub const WANTS_MAX: usize = 131_072;
/// A block somebody here waits for.
#[derive(Debug)]
struct Want {
    cid: Cid,
    /// Lower is asked earlier.
    order: u64,
    requests: Vec<u64>,
    state: State,
    /// Who lacks it, by its own word or by silence, since all were last asked.
    refused: Vec<PeerNo>,
    /// Who said it has it.
    holders: Vec<PeerNo>,
    /// Who holds an ask of ours for it.
    asked: Vec<PeerNo>,
    /// The requests were told that it is unavailable.
    reported: bool,
    /// How often all were asked again.
    rounds: u32,
}

impl Want {
    /// How it is asked: for the block, whether it is there, or to be told when it is.
    fn entry(&self, kind: AskKind) -> Entry {
        Entry {
            cid: self.cid,
            priority: priority(self.order),
            kind: if kind == AskKind::Block {
                EntryKind::Block
            } else {
                EntryKind::Have
            },
            send_dont_have: !matches!(kind, AskKind::Standing { .. }),
            once: kind == AskKind::Block,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has refused it: any warm peer may be asked. Stands in `fresh`.
    Fresh,
    /// Stands in the `todo` or `probe` of some peers, or waits for the answer to a probe.
    Spread,
    /// Asked of this peer.
    Flight(PeerNo),
    /// Nobody in reach has it; all are asked again at that time. Stands in `idle`.
    Idle(Time),
}

/// What one caller waits for.
#[derive(Debug, Default)]
struct Request {
    wants: BTreeSet<u64>,
    /// Order of its next want: wants of several requests interleave, however many each has.
    next_order: u64,
}

/// What a received block turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Wanted,
    /// Asked for once, here already.
    Again,
    /// Here already, and more often than can be chance.
    AgainTooOften,
    /// Never asked for.
    Unasked,
}

/// All wants and all sources.
#[derive(Debug, Default)]
pub(super) struct Asking {
    wants: BTreeMap<u64, Want>,
    by_cid: BTreeMap<Cid, u64>,
    requests: BTreeMap<u64, Request>,
    fresh: BTreeSet<(u64, u64)>,
    idle: BTreeSet<(Time, u64)>,
    sources: BTreeMap<PeerNo, Source>,
    timers: BTreeSet<(Time, PeerNo)>,
    steal_at: Option<Time>,
    /// Sources that may have room and work.
    ready: BTreeSet<PeerNo>,
    ready_all: bool,
    next_want: u64,
    /// Highest order asked so far; a new request begins here.
    clock: u64,
}

impl Asking {
    pub(super) fn want(&mut self, now: Time, request: u64, cids: Vec<Cid>, out: &mut Outbox) {
        self.requests.entry(request).or_default();
        for cid in cids {
            if let Some(&id) = self.by_cid.get(&cid) {
                let want = self.wants.get_mut(&id).expect("each CID leads to its want");
                if !want.requests.contains(&request) {
                    want.requests.push(request);
                    if want.reported {
                        out.effects.push_back(Effect::Unavailable { request, cid });
                    }
                }
                self.requests.entry(request).or_default().wants.insert(id);
                continue;
            }
            let (_, _, hash, hash_len) = cid.prefix();
            let refused = if !matches!((hash, hash_len), (0x12 | 0x1e, 32)) {
                Some(RefusedReason::Unverifiable)
            } else if self.wants.len() >= WANTS_MAX {
                Some(RefusedReason::TooMany)
            } else {
                None
            };
            if let Some(reason) = refused {
                out.effects.push_back(Effect::Refused {
                    request,
                    cid,
                    reason,
                });
                continue;
            }
            let id = self.next_want;
            self.next_want += 1;
            let entry = self.requests.entry(request).or_default();
            let order = entry.next_order.max(self.clock + 1);
            entry.next_order = order + 1;
            entry.wants.insert(id);
            self.by_cid.insert(cid, id);
            self.wants.insert(
                id,
                Want {
                    cid,
                    order,
                    requests: vec![request],
                    state: State::Spread,
                    refused: Vec::new(),
                    holders: Vec::new(),
                    asked: Vec::new(),
                    reported: false,
                    rounds: 0,
                },
            );
            self.place(now, id, out);
        }
        if self
            .requests
            .get(&request)
            .is_some_and(|request| request.wants.is_empty())
        {
            self.requests.remove(&request);
        }
    }

    pub(super) fn cancel(&mut self, request: u64, out: &mut Outbox) {
        let Some(ended) = self.requests.remove(&request) else {
            return;
        };
        for id in ended.wants {
            let want = self
                .wants
                .get_mut(&id)
                .expect("a request names wants that exist");
            want.requests.retain(|other| *other != request);
            if want.requests.is_empty() {
                self.finish(id, None, out);
            }
        }
    }

    /// We hold this block now, however it came.
    pub(super) fn stored(&mut self, cid: &Cid, out: &mut Outbox) {
        let Some(&id) = self.by_cid.get(cid) else {
            return;
        };
        let requests = self.finish(id, None, out);
        out.effects.push_back(Effect::Held {
            requests,
            cid: *cid,
        });
    }

    pub(super) fn peer_up(&mut self, now: Time, peer: PeerNo, recent: Recent, out: &mut Outbox) {
        self.sources.insert(peer, Source::new(now, recent));
        let source = self.sources.get_mut(&peer).expect("inserted above");
        let mut idle = Vec::new();
        for (id, want) in &self.wants {
            match want.state {
                State::Spread => {
                    source.todo.insert((want.order, *id));
                }
                State::Idle(_) => idle.push(*id),
                State::Fresh | State::Flight(_) => {}
            }
        }
        for id in idle {
            self.place_again(now, id, out);
        }
        self.ready.insert(peer);
    }

    /// Forgets a peer; what was asked of it is asked elsewhere. Returns what it may still send.
    pub(super) fn peer_down(&mut self, now: Time, peer: PeerNo, out: &mut Outbox) -> Recent {
        let Some(source) = self.sources.remove(&peer) else {
            return Recent::default();
        };
        if let Some(at) = source.timer {
            self.timers.remove(&(at, peer));
        }
        self.ready.remove(&peer);
        let mut moved: BTreeSet<u64> = source
            .todo
            .iter()
            .chain(&source.probe)
            .map(|(_, id)| *id)
            .collect();
        for (id, want) in &mut self.wants {
            want.refused.retain(|other| *other != peer);
            want.holders.retain(|other| *other != peer);
            want.asked.retain(|other| *other != peer);
            if want.state == State::Flight(peer) && !cfg!(planted = "forget-a-want") {
                want.state = State::Spread;
                moved.insert(*id);
            }
        }
        moved.extend(
            source
                .wants_asked()
                .filter(|(_, ask)| ask.kind == AskKind::Probe)
                .map(|(id, _)| id),
        );
        for id in moved {
            if self
                .wants
                .get(&id)
                .is_some_and(|want| want.state == State::Spread)
            {
                self.place(now, id, out);
            }
        }
        self.empty_fresh_if_all_cold(now, out);
        source.into_recent(|id| self.wants.get(&id).map(|want| want.cid))
    }

    /// Whether this peer may have been asked for anything at all.
    pub(super) fn expects_blocks(&self, peer: PeerNo) -> bool {
        self.sources.get(&peer).is_some_and(|source| {
            !source.recent.is_empty() || source.wants_asked().next().is_some()
        })
    }

    /// What was asked of a peer first and has not come.
    #[cfg(planted = "skip-a-hash")]
    pub(super) fn under_way(&self, peer: PeerNo) -> Option<Cid> {
        let mut wants = self.wants.values();
        wants
            .find(|want| want.state == State::Flight(peer))
            .map(|want| want.cid)
    }

    /// A block arrived and its CID was computed from its bytes.
    pub(super) fn block(
        &mut self,
        now: Time,
        peer: PeerNo,
        cid: &Cid,
        len: usize,
        out: &mut Outbox,
    ) -> (Received, Vec<u64>) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return (Received::Unasked, Vec::new());
        };
        let Some(&id) = self.by_cid.get(cid) else {
            if !source.recent.contains(cid) {
                return (Received::Unasked, Vec::new());
            }
            let what = if source.wasted(len) {
                Received::AgainTooOften
            } else {
                Received::Again
            };
            return (what, Vec::new());
        };
        let was_warm = source.is_warm();
        let was_stalled = source.is_stalled();
        source.delivered(now, source.ask(id), len);
        let requests = self.finish(id, Some(peer), out);
        self.ready.insert(peer);
        if was_stalled {
            self.revive(now, peer, out);
        }
        if !was_warm {
            self.turned_warm(peer);
        }
        (Received::Wanted, requests)
    }

    pub(super) fn presence(
        &mut self,
        now: Time,
        peer: PeerNo,
        cid: &Cid,
        have: bool,
        out: &mut Outbox,
    ) {
        let Some(&id) = self.by_cid.get(cid) else {
            return;
        };
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        // Answers to asks that we took back say nothing new.
        let Some(ask) = source.ask(id) else { return };
        source.answered(now);
        if have {
            self.promised(now, peer, id, ask, out);
        } else {
            self.lacks(now, peer, id, ask, out);
        }
    }

    fn promised(&mut self, now: Time, peer: PeerNo, id: u64, ask: Ask, out: &mut Outbox) {
        let source = self.sources.get_mut(&peer).expect("the caller found it");
        let want = self.wants.get_mut(&id).expect("the caller found it");
        if ask.kind != AskKind::Block {
            // The peer has forgotten the question by answering it.
            source.remove(id);
            source.recent.add(&want.cid);
            want.asked.retain(|other| *other != peer);
        }
        if !want.holders.contains(&peer) {
            want.holders.push(peer);
        }
        // It may have got the block since it refused. A liar gains one ask by this: the next refusal ends the question.
        want.refused.retain(|other| *other != peer);
        let stalled = source.is_stalled();
        let turned_warm = source.promised();
        match want.state {
            State::Idle(_) if !stalled => self.place_again(now, id, out),
            State::Spread if !stalled => {
                source.todo.insert((want.order, id));
            }
            _ => self.place_if_stranded(now, id, out),
        }
        if turned_warm {
            self.turned_warm(peer);
        }
        self.ready.insert(peer);
    }

    fn lacks(&mut self, now: Time, peer: PeerNo, id: u64, ask: Ask, out: &mut Outbox) {
        if matches!(ask.kind, AskKind::Standing { .. }) {
            return;
        }
        out.stats.refusals += 1;
        let source = self.sources.get_mut(&peer).expect("the caller found it");
        let turned_cold = source.refused();
        let keep = ask.kind == AskKind::Probe && source.has_standing_room();
        if keep {
            source.add(id, AskKind::Standing { block: false }, now);
        } else {
            self.take_back(peer, id, out);
        }
        self.refuse(peer, id);
        self.ready.insert(peer);
        if turned_cold {
            self.empty_fresh_if_all_cold(now, out);
        }
        let any_stalled = self.any_stalled();
        let want = self.wants.get_mut(&id).expect("the caller found it");
        match want.state {
            State::Flight(flight) if flight == peer => {
                want.state = State::Spread;
                self.place(now, id, out);
            }
            // While two or more have not refused, the want still stands with each of them.
            State::Spread if self.sources.len() <= want.refused.len() + 1 || any_stalled => {
                self.place(now, id, out);
            }
            _ => {}
        }
    }

    /// Runs what is due.
    pub(super) fn tick(&mut self, now: Time, out: &mut Outbox) {
        while let Some(&(at, peer)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(source) = self.sources.get_mut(&peer) else {
                continue;
            };
            source.timer = None;
            let overdue = source.deadline().is_some_and(|deadline| deadline <= now);
            if overdue && !cfg!(planted = "wait-for-ever") {
                self.time_out(now, peer, out);
            }
            self.arm(peer);
        }
        if self.idle.first().is_some_and(|(due, _)| *due <= now) {
            self.ask_again(now, out);
        }
        if self.steal_at.is_some_and(|at| at <= now) {
            self.steal_at = None;
            self.ready_all = true;
        }
    }

    pub(super) fn next_wakeup(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let idle = self.idle.first().map(|(due, _)| *due);
        [timer, idle, self.steal_at].into_iter().flatten().min()
    }

    /// Asks for as much as fits now.
    pub(super) fn settle(&mut self, now: Time, out: &mut Outbox) {
        let mut ready = mem::take(&mut self.ready);
        if mem::take(&mut self.ready_all) {
            ready.extend(self.sources.keys());
        }
        let with_room = |peer: &PeerNo| {
            let source = self.sources.get(peer)?;
            (source.room() > 0).then(|| (source.cost_us(), *peer))
        };
        // Whoever would be done first is asked next, so that equal peers get equal parts and a small request goes to the fastest.
        let mut queue: BTreeSet<(u64, PeerNo)> = ready.iter().filter_map(with_room).collect();
        while let Some((_, peer)) = queue.pop_first() {
            let Some(id) = self.next_for(peer) else {
                continue;
            };
            self.ask_for_block(now, peer, id, out);
            let source = self.sources.get(&peer).expect("it was asked");
            if source.free() > 0 {
                queue.insert((source.cost_us(), peer));
            }
        }
        for peer in &ready {
            self.ask_whether(now, *peer, out);
            self.steal(now, *peer, out);
        }
    }

    fn next_for(&self, peer: PeerNo) -> Option<u64> {
        let source = self.sources.get(&peer)?;
        let known = source.todo.first();
        let fresh = if source.is_warm() {
            self.fresh.first()
        } else {
            None
        };
        [known, fresh]
            .into_iter()
            .flatten()
            .min()
            .map(|(_, id)| *id)
    }

    fn ask_for_block(&mut self, now: Time, peer: PeerNo, id: u64, out: &mut Outbox) {
        self.unqueue(id);
        let want = self.wants.get_mut(&id).expect("only wants are queued");
        want.state = State::Flight(peer);
        if !want.asked.contains(&peer) {
            want.asked.push(peer);
        }
        self.clock = self.clock.max(want.order);
        out.ask(peer, want.entry(AskKind::Block));
        self.sources
            .get_mut(&peer)
            .expect("the caller found it")
            .add(id, AskKind::Block, now);
        self.arm(peer);
    }

    fn ask_whether(&mut self, now: Time, peer: PeerNo, out: &mut Outbox) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        while source.probe_room() > 0
            && let Some((_, id)) = source.probe.pop_first()
        {
            let want = self.wants.get_mut(&id).expect("only wants are queued");
            if !want.asked.contains(&peer) {
                want.asked.push(peer);
            }
            source.add(id, AskKind::Probe, now);
            out.ask(peer, want.entry(AskKind::Probe));
        }
        self.arm(peer);
    }

    pub(super) fn wants(&self, cid: &Cid) -> bool {
        self.by_cid.contains_key(cid)
    }

    pub(super) fn wants_len(&self) -> usize {
        self.wants.len()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.wants.len(), self.by_cid.len(), "each want has one CID");
        assert!(self.wants.len() <= WANTS_MAX, "wants are bounded");
        let any_warm = self.sources.values().any(Source::is_warm);
        for (id, want) in &self.wants {
            let key = (want.order, *id);
            assert_eq!(
                self.by_cid.get(&want.cid),
                Some(id),
                "each CID leads to its want"
            );
            assert!(!want.requests.is_empty(), "somebody waits for each want");
            for request in &want.requests {
                assert!(
                    self.requests
                        .get(request)
                        .is_some_and(|request| request.wants.contains(id)),
                    "requests know their wants"
                );
            }
            assert_eq!(
                self.fresh.contains(&key),
                want.state == State::Fresh,
                "fresh wants stand in fresh"
            );
            let queued = self
                .sources
                .values()
                .any(|source| source.todo.contains(&key) || source.probe.contains(&key));
            match want.state {
                State::Fresh => assert!(any_warm, "a fresh want has somebody to be asked of"),
                State::Spread => assert!(
                    self.is_queued(*id, want),
                    "a spread want stands with somebody"
                ),
                State::Flight(peer) => {
                    let ask = self.sources.get(&peer).and_then(|source| source.ask(*id));
                    assert!(
                        ask.is_some_and(|ask| ask.kind == AskKind::Block),
                        "a want in flight is asked of that peer"
                    );
                }
                State::Idle(due) => {
                    assert!(
                        self.idle.contains(&(due, *id)),
                        "an idle want is due some time"
                    );
                    assert!(want.reported, "an idle want is known to be unavailable");
                    assert!(
                        !self.is_obtainable(*id),
                        "an idle want has nobody to be asked of"
                    );
                }
            }
            assert!(
                !queued || want.state == State::Spread,
                "only spread wants stand with peers"
            );
            for (peer, source) in &self.sources {
                let ask = source.ask(*id);
                assert_eq!(
                    ask.is_some(),
                    want.asked.contains(peer),
                    "a want knows who was asked"
                );
                let here = want.state == State::Flight(*peer);
                assert_eq!(
                    ask.is_some_and(|ask| ask.kind == AskKind::Block),
                    here,
                    "a block is asked of one peer at a time"
                );
            }
        }
        assert_eq!(
            self.idle.len(),
            self.wants
                .values()
                .filter(|want| matches!(want.state, State::Idle(_)))
                .count(),
            "idle is exact"
        );
        assert!(
            self.requests
                .values()
                .all(|request| !request.wants.is_empty()),
            "requests end with their last want"
        );
        for (peer, source) in &self.sources {
            source.check_invariants();
            assert!(
                source
                    .wants_asked()
                    .all(|(id, _)| self.wants.contains_key(&id)),
                "only wants are asked for"
            );
            assert!(
                source
                    .timer
                    .is_none_or(|at| self.timers.contains(&(at, *peer))),
                "a timer that is armed fires"
            );
            assert!(
                !source.is_stalled() || (source.todo.is_empty() && source.probe.is_empty()),
                "nothing waits for a stalled peer"
            );
        }
        assert!(self.timers.len() <= self.sources.len(), "one timer a peer");
    }
}

/// Earlier wants first, among those of one peer.
fn priority(order: u64) -> i32 {
    i32::MAX - i32::try_from(order & 0x3fff_ffff).expect("30 bits fit")
}
