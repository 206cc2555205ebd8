//! One peer as a source of blocks: what was asked of it, how fast it answers, how much more may be asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kith_object::id::Cid;
use kith_object::time::{Span, Time};

/// Blocks asked at once of a peer of which nothing is known: 2 MiB of average blocks, some 10 ms of a fast network.
const WINDOW_START: usize = 16;
/// Most blocks asked at once: with the probes and standing asks below it makes the 1,024 entries that a peer remembers.
pub(super) const WINDOW_MAX: usize = 512;
/// Fewest blocks asked at once of a slow peer: one is sent while the next is asked for.
const WINDOW_MIN: usize = 2;
/// Most bytes asked at once, by the average size of what came: 100 ms of 160 MB/s.
const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most unanswered questions whether a peer has a block.
pub(super) const PROBES_MAX: usize = 256;
/// Most answered questions left with a peer, so that it tells us when a block arrives.
pub(super) const STANDING_MAX: usize = 256;
/// Waiting time above which a window is too large: what is asked further ahead cannot be asked elsewhere when a faster peer is free.
const LATENCY_MAX: Span = Span::from_secs(1);
/// Silence after which a peer that was asked counts as stalled; Kubo's figure for the same.
const SILENCE_MAX: Span = Span::from_secs(5);
/// How long a peer that does answer others may leave one ask unanswered.
const ANSWER_MAX: Span = Span::from_secs(30);
/// Refusals in a row after which a peer is no longer asked for blocks on the off chance: one window.
const COLD_AFTER: u32 = 16;
/// Time a block takes from a peer of which nothing is known, in microseconds.
const PACE_START_US: u64 = 10_000;
/// Size of a block before any came: the mean chunk.
const SIZE_START: u64 = 128 * 1024;
/// CIDs remembered of each peer after the ask ended, so that a block that crossed its cancel is no offence.
const RECENT_MAX: usize = 2048;
/// Bytes of blocks that came twice, above the bytes that were of use, before a peer is cut off.
const WASTED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What is asked of a peer about one want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskKind {
    /// Send it.
    Block,
    /// Say whether you have it.
    Probe,
    /// It has answered that it lacks the block, or fell silent; the ask stays with it. `block`: as one for the block itself.
    Standing { block: bool },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) at: Time,
    pub(super) kind: AskKind,
}

/// A peer to ask.
///
/// Spec: `protocol/spec/exchange.md`, "Window".
#[derive(Debug)]
pub(super) struct Source {
    /// Wants to ask this peer for, by order: those others have refused, and those it said it has.
    pub(super) todo: BTreeSet<(u64, u64)>,
    /// Wants to ask this peer about, by order.
    pub(super) probe: BTreeSet<(u64, u64)>,
    asks: BTreeMap<u64, Ask>,
    /// Unanswered asks, oldest first.
    sequence: BTreeMap<u64, u64>,
    next_number: u64,
    flight: usize,
    probing: usize,
    standing: usize,
    window: usize,
    shrunk_at: Time,
    /// Microseconds from one block to the next.
    pace_us: u64,
    /// Average bytes of a block.
    size: u64,
    /// Last answer, or connection.
    progress_at: Time,
    delivered_at: Time,
    /// Refusals since the last block or promise of one.
    streak: u32,
    stalled_at: Option<Time>,
    /// When its timer fires, if it is armed.
    pub(super) timer: Option<Time>,
    pub(super) recent: Recent,
    useful_bytes: u64,
    wasted_bytes: u64,
}

impl Source {
    pub(super) fn new(now: Time, recent: Recent) -> Self {
        Self {
            todo: BTreeSet::new(),
            probe: BTreeSet::new(),
            asks: BTreeMap::new(),
            sequence: BTreeMap::new(),
            next_number: 0,
            flight: 0,
            probing: 0,
            standing: 0,
            window: WINDOW_START,
            shrunk_at: now,
            pace_us: PACE_START_US,
            size: SIZE_START,
            progress_at: now,
            delivered_at: now,
            streak: 0,
            stalled_at: None,
            timer: None,
            recent,
            useful_bytes: 0,
            wasted_bytes: 0,
        }
    }

    /// Whether it is asked for blocks of which nobody knows where they are.
    pub(super) fn is_warm(&self) -> bool {
        self.stalled_at.is_none() && self.streak < COLD_AFTER
    }

    /// Whether it left asks unanswered for too long and has not sent a block since.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_at.is_some()
    }

    pub(super) fn ask(&self, want: u64) -> Option<Ask> {
        self.asks.get(&want).copied()
    }

    pub(super) fn flight(&self) -> usize {
        self.flight
    }

    fn limit(&self) -> usize {
        let by_bytes = usize::try_from(WINDOW_BYTES_MAX / self.size.max(1)).unwrap_or(WINDOW_MAX);
        self.window.min(by_bytes.max(4))
    }

    /// How many more blocks the window holds.
    pub(super) fn free(&self) -> usize {
        self.limit().saturating_sub(self.flight)
    }

    /// Like [`Self::free`], but waits until an eighth of the window is free, so that asks share messages.
    pub(super) fn room(&self) -> usize {
        let free = self.free();
        if self.flight > 0 && free < self.limit() / 8 {
            0
        } else {
            free
        }
    }

    /// Whether the last it did was to send a block, or to promise one.
    pub(super) fn is_proven(&self) -> bool {
        self.is_warm() && self.useful_bytes > 0 && self.streak == 0
    }

    pub(super) fn probe_room(&self) -> usize {
        PROBES_MAX.saturating_sub(self.probing)
    }

    pub(super) fn has_standing_room(&self) -> bool {
        self.standing < STANDING_MAX
    }

    /// Expected microseconds until one more block would be here.
    pub(super) fn cost_us(&self) -> u64 {
        u64::try_from(self.flight + 1)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.pace_us)
    }

    /// Like the pace, but a peer that has been silent is as slow as its silence is long.
    pub(super) fn pace_now_us(&self, now: Time) -> u64 {
        let asked = self
            .sequence
            .values()
            .next()
            .and_then(|want| self.asks.get(want))
            .map_or(now, |ask| ask.at);
        now.since(self.delivered_at.max(asked))
            .as_ms()
            .saturating_mul(1000)
            .max(self.pace_us)
    }

    /// The wants in flight here, latest first.
    pub(super) fn latest_in_flight(&self) -> impl Iterator<Item = (u64, Time)> {
        self.sequence.values().rev().filter_map(|want| {
            let ask = self.asks.get(want)?;
            (ask.kind == AskKind::Block).then_some((*want, ask.at))
        })
    }

    /// Notes an ask; one of the same want before is replaced by it.
    pub(super) fn add(&mut self, want: u64, kind: AskKind, now: Time) {
        self.remove(want);
        let number = self.next_number;
        self.next_number += 1;
        match kind {
            AskKind::Block => self.flight += 1,
            AskKind::Probe => self.probing += 1,
            AskKind::Standing { .. } => self.standing += 1,
        }
        if !matches!(kind, AskKind::Standing { .. }) {
            if self.sequence.is_empty() {
                // It owed nothing until now.
                self.progress_at = self.progress_at.max(now);
            }
            self.sequence.insert(number, want);
        }
        self.asks.insert(
            want,
            Ask {
                number,
                at: now,
                kind,
            },
        );
    }

    pub(super) fn remove(&mut self, want: u64) -> Option<Ask> {
        let ask = self.asks.remove(&want)?;
        self.sequence.remove(&ask.number);
        match ask.kind {
            AskKind::Block => self.flight -= 1,
            AskKind::Probe => self.probing -= 1,
            AskKind::Standing { .. } => self.standing -= 1,
        }
        Some(ask)
    }

    /// The peer answered something it was asked, other than by a block.
    pub(super) fn answered(&mut self, now: Time) {
        self.progress_at = now;
    }

    /// It lacks something; says whether it turned cold by that.
    pub(super) fn refused(&mut self) -> bool {
        let was_warm = self.is_warm();
        self.streak = self.streak.saturating_add(1);
        was_warm && !self.is_warm()
    }

    /// It says it has something; says whether it turned warm by that. A stalled peer must send a block first.
    pub(super) fn promised(&mut self) -> bool {
        let was_warm = self.is_warm();
        self.streak = 0;
        !was_warm && self.is_warm()
    }

    /// Learns from a block of use.
    pub(super) fn delivered(&mut self, now: Time, ask: Option<Ask>, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.useful_bytes = self.useful_bytes.saturating_add(len);
        self.progress_at = now;
        self.streak = 0;
        self.stalled_at = None;
        self.size = (self.size * 7 + len) / 8;
        let Some(ask) = ask.filter(|ask| ask.kind == AskKind::Block) else {
            return;
        };
        let gap_us = now
            .since(self.delivered_at.max(ask.at))
            .as_ms()
            .saturating_mul(1000);
        self.pace_us = ((self.pace_us * 7 + gap_us) / 8).max(1);
        self.delivered_at = now;
        let latency = now.since(ask.at);
        if latency > LATENCY_MAX {
            // Once for all that was asked before the last time.
            if ask.at >= self.shrunk_at {
                self.window = (self.window * 3 / 4).max(WINDOW_MIN);
                self.shrunk_at = now;
            }
        } else if latency.as_ms() * 2 <= LATENCY_MAX.as_ms()
            && self.flight + 1 + self.window / 4 >= self.window
        {
            self.window = (self.window + 1).min(WINDOW_MAX);
        }
    }

    /// Counts a block that was here already; says whether that is too many.
    pub(super) fn wasted(&mut self, len: usize) -> bool {
        self.wasted_bytes = self
            .wasted_bytes
            .saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        self.wasted_bytes > self.useful_bytes.saturating_add(WASTED_BYTES_MAX)
    }

    /// When the next ask runs out of time.
    pub(super) fn deadline(&self) -> Option<Time> {
        let ask = self
            .sequence
            .values()
            .next()
            .and_then(|want| self.asks.get(want))?;
        Some((ask.at.max(self.progress_at) + SILENCE_MAX).min(ask.at + ANSWER_MAX))
    }

    /// Whether it has been silent for too long with something to answer.
    pub(super) fn is_silent(&self, now: Time) -> bool {
        let oldest = self
            .sequence
            .values()
            .next()
            .and_then(|want| self.asks.get(want));
        oldest.is_some_and(|ask| ask.at.max(self.progress_at) + SILENCE_MAX <= now)
    }

    /// All that waits for an answer; for a peer that answers, only what has waited too long.
    pub(super) fn overdue(&self, now: Time) -> Vec<u64> {
        let all = self.is_silent(now);
        let asks = self
            .sequence
            .values()
            .filter_map(|want| Some((*want, self.asks.get(want)?)));
        asks.take_while(|(_, ask)| all || ask.at + ANSWER_MAX <= now)
            .map(|(want, _)| want)
            .collect()
    }

    pub(super) fn stall(&mut self, now: Time) {
        self.stalled_at = Some(now);
        self.window = WINDOW_MIN;
        self.streak = COLD_AFTER;
    }

    /// Gives a stalled peer another chance, if it had time.
    pub(super) fn unstall(&mut self, now: Time) -> bool {
        let long_ago = self.stalled_at.is_some_and(|at| at + SILENCE_MAX <= now);
        if long_ago {
            self.stalled_at = None;
        }
        long_ago
    }

    /// Everything ever asked lately, for the next connection of the same device.
    pub(super) fn into_recent(mut self, cid_of: impl Fn(u64) -> Option<Cid>) -> Recent {
        for cid in self.asks.keys().filter_map(|want| cid_of(*want)) {
            self.recent.add(&cid);
        }
        self.recent
    }

    pub(super) fn wants_asked(&self) -> impl Iterator<Item = (u64, Ask)> {
        self.asks.iter().map(|(want, ask)| (*want, *ask))
    }

    pub(super) fn check_invariants(&self) {
        let count =
            |wanted: fn(AskKind) -> bool| self.asks.values().filter(|ask| wanted(ask.kind)).count();
        assert_eq!(
            self.flight,
            count(|kind| kind == AskKind::Block),
            "blocks in flight are counted"
        );
        assert_eq!(
            self.probing,
            count(|kind| kind == AskKind::Probe),
            "probes are counted"
        );
        assert_eq!(
            self.standing,
            count(|kind| matches!(kind, AskKind::Standing { .. })),
            "standing asks are counted"
        );
        assert_eq!(
            self.sequence.len(),
            self.flight + self.probing,
            "what is unanswered stands in sequence"
        );
        for (number, want) in &self.sequence {
            let ask = self
                .asks
                .get(want)
                .expect("what stands in sequence is asked");
            assert_eq!(ask.number, *number, "an ask stands in sequence once");
        }
        assert!(self.probing <= PROBES_MAX, "probes are bounded");
        assert!(
            self.recent.order.len() <= RECENT_MAX,
            "memory of old asks is bounded"
        );
        assert!(
            (WINDOW_MIN..=WINDOW_MAX).contains(&self.window),
            "the window stays within its limits"
        );
        assert!(
            self.sequence.is_empty() || self.timer.is_some(),
            "what is unanswered has a timer"
        );
    }
}

/// Fingerprints of what was asked of a peer and is no longer, the latest only.
///
/// Spec: `protocol/spec/exchange.md`, "Cutting off".
#[derive(Debug, Default)]
pub(super) struct Recent {
    order: VecDeque<u64>,
    known: BTreeSet<u64>,
}

impl Recent {
    pub(super) fn add(&mut self, cid: &Cid) {
        let print = fingerprint(cid);
        if !self.known.insert(print) {
            return;
        }
        self.order.push_back(print);
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, cid: &Cid) -> bool {
        self.known.contains(&fingerprint(cid))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// The last eight bytes of the digest. Who makes two of them alike gains that one bogus block is overlooked.
fn fingerprint(cid: &Cid) -> u64 {
    let last = |bytes: &[u8]| {
        bytes
            .last_chunk::<8>()
            .copied()
            .map_or(0, u64::from_le_bytes)
    };
    cid.digest()
        .map_or_else(|| last(&cid.to_bytes()), |digest| last(&digest))
}
