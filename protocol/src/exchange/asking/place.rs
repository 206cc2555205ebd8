//! Where a want stands: with whom, in which queue, and how it gets from one to the next.

use std::mem;

use kith_object::time::{Span, Time};

use super::super::Effect;
use super::super::outbox::{Outbox, PeerNo};
use super::super::source::{AskKind, Source};
use super::{Asking, State, Want};

/// Wait before all are asked again for what nobody had; doubles each time. Kubo rebroadcasts after as long.
const REASK_MIN: Span = Span::from_secs(30);

/// Spec: `protocol/spec/exchange.md`, "Asking".
impl Asking {
    /// Decides who is to be asked for a want that is in nobody's hands.
    pub(super) fn place(&mut self, now: Time, id: u64, out: &mut Outbox) {
        self.unqueue(id);
        let want = self.wants.get_mut(&id).expect("the caller found it");
        let key = (want.order, id);
        want.state = State::Spread;

        // Who said it has it.
        let mut placed = false;
        for peer in &want.holders {
            if let Some(source) = self
                .sources
                .get_mut(peer)
                .filter(|source| !source.is_stalled())
            {
                source.todo.insert(key);
                self.ready.insert(*peer);
                placed = true;
            }
        }
        if placed {
            return;
        }

        // Anybody who has been of use.
        if want.refused.is_empty() && self.sources.values().any(Source::is_warm) {
            want.state = State::Fresh;
            self.fresh.insert(key);
            self.ready_all = true;
            return;
        }
        for (peer, source) in &mut self.sources {
            if source.is_warm() && !want.refused.contains(peer) {
                source.todo.insert(key);
                self.ready.insert(*peer);
                placed = true;
            }
        }
        if placed {
            return;
        }

        // The others: a single one is asked for the block, several are asked whether they have it.
        let open = |(peer, source): &(&PeerNo, &mut Source)| {
            !source.is_stalled() && !want.refused.contains(peer)
        };
        let alone = self.sources.iter_mut().filter(open).take(2).count() == 1;
        for (peer, source) in self.sources.iter_mut().filter(open) {
            placed = true;
            if source.ask(id).is_none_or(|ask| ask.kind != AskKind::Probe) {
                if alone {
                    source.todo.insert(key)
                } else {
                    source.probe.insert(key)
                };
                self.ready.insert(*peer);
            }
        }
        if placed {
            return;
        }

        // Nobody. A question is left with everybody, so that who gets the block says so.
        let due = now + Span::from_ms(REASK_MIN.as_ms() << want.rounds);
        want.state = State::Idle(due);
        self.idle.insert((due, id));
        for (peer, source) in &mut self.sources {
            if !source.is_stalled() && source.ask(id).is_none() && source.has_standing_room() {
                let kind = AskKind::Standing { block: false };
                source.add(id, kind, now);
                want.asked.push(*peer);
                out.ask(*peer, want.entry(kind));
            }
        }
        if !want.reported {
            want.reported = true;
            for request in &want.requests {
                out.effects.push_back(Effect::Unavailable {
                    request: *request,
                    cid: want.cid,
                });
            }
        }
    }

    /// Places an idle want of which there is news. Whoever was told that nobody has it learns that there is hope.
    pub(super) fn place_again(&mut self, now: Time, id: u64, out: &mut Outbox) {
        let want = self.wants.get_mut(&id).expect("the caller found it");
        if mem::take(&mut want.reported) {
            for request in &want.requests {
                out.effects.push_back(Effect::Sought {
                    request: *request,
                    cid: want.cid,
                });
            }
        }
        self.place(now, id, out);
    }

    /// Places a spread want anew if nothing leads on from where it is.
    pub(super) fn place_if_stranded(&mut self, now: Time, id: u64, out: &mut Outbox) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        if want.state == State::Spread && !self.is_queued(id, want) {
            self.place(now, id, out);
        }
    }

    /// Whether a spread want still stands with somebody.
    pub(super) fn is_queued(&self, id: u64, want: &Want) -> bool {
        let key = (want.order, id);
        self.sources.values().any(|source| {
            source.todo.contains(&key)
                || source.probe.contains(&key)
                || source.ask(id).is_some_and(|ask| ask.kind == AskKind::Probe)
        })
    }

    /// Takes a want out of the queues it stands in; its state is the caller's to set.
    pub(super) fn unqueue(&mut self, id: u64) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let key = (want.order, id);
        match want.state {
            State::Fresh => {
                self.fresh.remove(&key);
            }
            State::Spread => {
                for source in self.sources.values_mut() {
                    source.todo.remove(&key);
                    source.probe.remove(&key);
                }
            }
            State::Idle(due) => {
                self.idle.remove(&(due, id));
            }
            State::Flight(_) => {}
        }
    }

    /// Ends a want and takes back what was asked for it, except of the peer that answered.
    pub(super) fn finish(&mut self, id: u64, from: Option<PeerNo>, out: &mut Outbox) -> Vec<u64> {
        self.unqueue(id);
        let want = self.wants.remove(&id).expect("the caller found it");
        self.by_cid.remove(&want.cid);
        for peer in want.asked {
            let Some(source) = self.sources.get_mut(&peer) else {
                continue;
            };
            source.remove(id);
            source.recent.add(&want.cid);
            if Some(peer) != from {
                out.cancel(peer, want.cid);
            }
            self.ready.insert(peer);
        }
        for request in &want.requests {
            let Some(entry) = self.requests.get_mut(request) else {
                continue;
            };
            entry.wants.remove(&id);
            if entry.wants.is_empty() {
                self.requests.remove(request);
            }
        }
        want.requests
    }

    /// Takes an ask back.
    pub(super) fn take_back(&mut self, peer: PeerNo, id: u64, out: &mut Outbox) {
        let (Some(source), Some(want)) = (self.sources.get_mut(&peer), self.wants.get_mut(&id))
        else {
            return;
        };
        source.remove(id);
        source.recent.add(&want.cid);
        want.asked.retain(|other| *other != peer);
        out.cancel(peer, want.cid);
    }

    pub(super) fn refuse(&mut self, peer: PeerNo, id: u64) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.holders.retain(|other| *other != peer);
        if !want.refused.contains(&peer) {
            want.refused.push(peer);
        }
    }

    /// Whether anybody is left to be asked.
    pub(super) fn is_obtainable(&self, id: u64) -> bool {
        let Some(want) = self.wants.get(&id) else {
            return false;
        };
        self.sources
            .iter()
            .any(|(peer, source)| !source.is_stalled() && !want.refused.contains(peer))
    }

    pub(super) fn any_stalled(&self) -> bool {
        self.sources.values().any(Source::is_stalled)
    }

    /// What waited for a probe of this peer is asked of it at once.
    pub(super) fn turned_warm(&mut self, peer: PeerNo) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        let mut probes = mem::take(&mut source.probe);
        source.todo.append(&mut probes);
        self.ready.insert(peer);
    }

    /// Fresh wants are for warm peers; if none is left, others must be asked about them.
    pub(super) fn empty_fresh_if_all_cold(&mut self, now: Time, out: &mut Outbox) {
        if self.fresh.is_empty() || self.sources.values().any(Source::is_warm) {
            return;
        }
        for (_, id) in mem::take(&mut self.fresh) {
            self.place(now, id, out);
        }
    }

    pub(super) fn arm(&mut self, peer: PeerNo) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        if source.timer.is_none()
            && let Some(deadline) = source.deadline()
        {
            source.timer = Some(deadline);
            self.timers.insert((deadline, peer));
        }
    }
}
