//! What becomes of asks that take too long: to another peer, or back to the same one later.

use std::collections::BTreeSet;
use std::mem;

use kith_object::time::{Span, Time};

use super::super::outbox::{Outbox, PeerNo};
use super::super::source::{AskKind, Source};
use super::{Asking, State};

/// How often the wait for an idle want doubles: up to an hour or so.
const REASK_DOUBLINGS_MAX: u32 = 7;
/// Blocks that a peer will not have sent within this time may be asked of an idle one instead.
const STEAL_AFTER_US: u64 = 1_000_000;
/// An ask is left alone for this long, so that a long round trip is not taken for slowness.
const STEAL_AGE_MIN: Span = Span::from_ms(500);
/// How often an idle peer looks for such blocks.
const STEAL_EVERY: Span = Span::from_ms(250);

/// Spec: `protocol/spec/exchange.md`, "Silence".
impl Asking {
    /// Lets a peer with nothing to do take over what a much slower one would still be long about.
    pub(super) fn steal(&mut self, now: Time, thief: PeerNo, out: &mut Outbox) {
        let Some(source) = self.sources.get(&thief) else {
            return;
        };
        if cfg!(planted = "wait-for-ever") {
            return;
        }
        if !source.is_proven() || source.free() < source.flight() || self.next_for(thief).is_some()
        {
            return;
        }
        let others = self
            .sources
            .iter()
            .filter(|(peer, other)| **peer != thief && other.flight() > 0);
        let waiting = |other: &Source| multiply(other.flight(), other.pace_now_us(now));
        let Some((&victim, slow)) = others.max_by_key(|(_, other)| waiting(other)) else {
            return;
        };
        self.steal_at.get_or_insert(now + STEAL_EVERY);
        let pace = slow.pace_now_us(now);
        let candidates: Vec<u64> = slow
            .latest_in_flight()
            .filter(|(_, at)| *at + STEAL_AGE_MIN <= now)
            .map(|(id, _)| id)
            .take(source.free())
            .collect();
        let mut place_in_line = slow.flight();
        for id in candidates {
            let source = self.sources.get(&thief).expect("found above");
            let worth = STEAL_AFTER_US.max(source.cost_us().saturating_mul(4));
            if multiply(place_in_line, pace) <= worth || source.free() < source.flight() {
                break;
            }
            place_in_line -= 1;
            let want = self
                .wants
                .get_mut(&id)
                .expect("what is in flight is wanted");
            if want.refused.contains(&thief) {
                continue;
            }
            want.state = State::Spread;
            self.take_back(victim, id, out);
            self.ask_for_block(now, thief, id, out);
            out.stats.stolen += 1;
        }
    }

    /// The peer left asks unanswered for too long: they go elsewhere, or stay with it if there is nowhere else.
    pub(super) fn time_out(&mut self, now: Time, peer: PeerNo, out: &mut Outbox) {
        let source = self.sources.get_mut(&peer).expect("its timer fired");
        let silent = source.is_silent(now);
        let overdue = source.overdue(now);
        let mut moved: BTreeSet<u64> = overdue.iter().copied().collect();
        if silent {
            source.stall(now);
            moved.extend(mem::take(&mut source.todo).into_iter().map(|(_, id)| id));
            moved.extend(mem::take(&mut source.probe).into_iter().map(|(_, id)| id));
        }
        out.stats.timeouts += u64::try_from(overdue.len()).unwrap_or(u64::MAX);
        for id in overdue {
            let source = self.sources.get(&peer).expect("its timer fired");
            let ask = source.ask(id).expect("what is overdue is asked");
            let was_block = ask.kind == AskKind::Block;
            let stays =
                source.has_standing_room() && (!was_block || (silent && !self.is_obtainable(id)));
            if stays {
                let kind = AskKind::Standing { block: was_block };
                self.sources
                    .get_mut(&peer)
                    .expect("its timer fired")
                    .add(id, kind, now);
            } else {
                self.take_back(peer, id, out);
            }
            if !silent {
                self.refuse(peer, id);
            }
            let want = self.wants.get_mut(&id).expect("what is asked is wanted");
            if want.state == State::Flight(peer) {
                want.state = State::Spread;
            }
        }
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
    }

    /// A peer that had stalled sent a block: it will send the others as well.
    pub(super) fn revive(&mut self, now: Time, peer: PeerNo, out: &mut Outbox) {
        let idle: Vec<u64> = self.idle.iter().map(|(_, id)| *id).collect();
        for id in idle {
            let want = self.wants.get(&id).expect("only wants are idle");
            if want.refused.contains(&peer) {
                continue;
            }
            let source = self.sources.get_mut(&peer).expect("it sent a block");
            let on_its_way = source
                .ask(id)
                .is_some_and(|ask| ask.kind == AskKind::Standing { block: true });
            if on_its_way {
                source.add(id, AskKind::Block, now);
                self.unqueue(id);
                self.wants.get_mut(&id).expect("only wants are idle").state = State::Flight(peer);
            } else {
                self.place(now, id, out);
            }
        }
        self.arm(peer);
    }

    /// Starts over with the wants nobody had.
    pub(super) fn ask_again(&mut self, now: Time, out: &mut Outbox) {
        let due: Vec<u64> = self
            .idle
            .iter()
            .take_while(|(due, _)| *due <= now)
            .map(|(_, id)| *id)
            .collect();
        let mut another_chance = false;
        for source in self.sources.values_mut() {
            another_chance |= source.unstall(now);
        }
        for id in due {
            let want = self.wants.get_mut(&id).expect("only wants are idle");
            want.refused.clear();
            want.holders.clear();
            want.rounds = (want.rounds + 1).min(REASK_DOUBLINGS_MAX);
            self.place(now, id, out);
        }
        if another_chance {
            let others: Vec<u64> = self.idle.iter().map(|(_, id)| *id).collect();
            for id in others {
                if self.is_obtainable(id) {
                    self.place(now, id, out);
                }
            }
        }
    }
}

fn multiply(count: usize, by: u64) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(by)
}
