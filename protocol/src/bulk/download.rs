//! What to ask whom: packs in pieces, from all who have them, put together in order.
//!
//! Invariants: the bytes of a pack are handed out in order and each once; a piece is asked of one source at a time, or of a second that takes it over; no more than
//! [`WAITING_BYTES_MAX`] are under way or wait for what comes before them, but for the next piece of each pack; a download ends, whatever sources do, once each
//! ask has been answered.
//!
//! Spec: `protocol/spec/bulk.md`, "Fetching".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_object::id::{DeviceId, PackId};
use kith_object::time::{Span, Time};

use super::PIECE_BYTES;

/// Packs under way at a time.
pub const PACKS_MAX: usize = 4;
/// Bytes that are under way or wait for what comes before them.
pub const WAITING_BYTES_MAX: u64 = 8 << 20;
const WINDOW_FIRST: u32 = 2;
const WINDOW_MAX: u32 = 8;
/// A piece that comes within this makes the window larger.
const QUICK: Span = Span::from_secs(1);
/// What a source that has sent nothing yet is taken to need for a piece.
const PIECE_GUESS: Span = Span::from_ms(100);
/// Failures in a row that are the end of a source.
const STRIKES_MAX: u32 = 3;
/// How much slower one has to be for another to take a piece over.
const SLOWER: u64 = 4;

/// One piece to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Repeated when it comes, or does not.
    pub id: u64,
    /// Of whom.
    pub source: DeviceId,
    /// Of which pack.
    pub pack: PackId,
    /// Length of that pack, as was said.
    pub total: u64,
    /// Where the piece begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// What became of an ask that did not bring a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The source does not have the pack, or not whole.
    Lacks,
    /// Nothing came for a while, or the way to it broke.
    Broken,
    /// What it sent is not what was asked for.
    Lied,
}

/// What follows from a piece that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// What is next in its pack, to be written in this order.
    pub write: Vec<Bytes>,
    /// Asks whose answers are of no use any more.
    pub cancel: Vec<u64>,
    /// The pack is whole with this.
    pub whole: bool,
}

/// Packs that are being fetched.
#[derive(Debug, Default)]
pub struct Download {
    waiting: VecDeque<PackId>,
    packs: BTreeMap<PackId, Pack>,
    sources: BTreeMap<DeviceId, Source>,
    asks: BTreeMap<u64, Asked>,
    next_ask: u64,
    lost: Vec<PackId>,
    /// Bytes that came for nothing: twice, or wrong.
    wasted: u64,
}

#[derive(Debug)]
struct Pack {
    total: u64,
    sources: BTreeSet<DeviceId>,
    /// Who lied about it, or had it no more, included: who is to be named where it is lost.
    named: BTreeSet<DeviceId>,
    open: Option<Open>,
}

/// A pack under way.
#[derive(Debug)]
struct Open {
    /// Before this everything has been handed out.
    written: u64,
    /// Pieces that are neither here nor asked for.
    free: BTreeSet<u64>,
    /// Pieces that came before their turn.
    early: BTreeMap<u64, Bytes>,
}

#[derive(Debug)]
struct Source {
    window: u32,
    under_way: u32,
    strikes: u32,
    per_piece: Option<Span>,
    last: Option<Time>,
}

#[derive(Debug)]
struct Asked {
    ask: Ask,
    at: Time,
}

impl Source {
    fn new() -> Self {
        Self {
            window: WINDOW_FIRST,
            under_way: 0,
            strikes: 0,
            per_piece: None,
            last: None,
        }
    }

    fn has_room(&self) -> bool {
        let window = if self.strikes > 0 { 1 } else { self.window };
        self.under_way < window
    }

    /// How long a piece would take that it is asked for now.
    fn would_take(&self) -> u64 {
        u64::from(self.under_way + 1) * self.per_piece.unwrap_or(PIECE_GUESS).0.max(1)
    }
}

fn piece_len(total: u64, offset: u64) -> u64 {
    let end = (offset / PIECE_BYTES + 1) * PIECE_BYTES;
    end.min(total) - offset
}

impl Download {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants a pack of that length, which those sources say they have. One that is wanted already gets more sources.
    pub fn add(&mut self, pack: PackId, total: u64, sources: impl IntoIterator<Item = DeviceId>) {
        let known = self.packs.entry(pack).or_insert_with(|| {
            self.waiting.push_back(pack);
            Pack {
                total,
                sources: BTreeSet::new(),
                named: BTreeSet::new(),
                open: None,
            }
        });
        // Of another length than the others say: one of them errs, and the first is believed.
        if known.total != total {
            return;
        }
        for source in sources {
            if known.named.insert(source) {
                known.sources.insert(source);
            }
            self.sources.entry(source).or_insert_with(Source::new);
        }
        if known.sources.is_empty() {
            self.lose(pack);
        }
    }

    /// The next pack whose part file is to be opened, and its length; [`Download::opened`] or [`Download::drop_pack`] follows.
    pub fn to_open(&mut self) -> Option<(PackId, u64)> {
        let open = self.packs.values().filter(|pack| pack.open.is_some());
        if open.count() >= PACKS_MAX {
            return None;
        }
        let pack = self.waiting.pop_front()?;
        let known = self.packs.get(&pack)?;
        Some((pack, known.total))
    }

    /// Its part file has that many bytes already. Whether that is all.
    pub fn opened(&mut self, pack: PackId, have: u64) -> bool {
        let Some(known) = self.packs.get_mut(&pack) else {
            return false;
        };
        if have >= known.total {
            self.packs.remove(&pack);
            return true;
        }
        let first = (have / PIECE_BYTES + 1) * PIECE_BYTES;
        let mut free = BTreeSet::from([have]);
        let mut at = first;
        while at < known.total {
            free.insert(at);
            at += PIECE_BYTES;
        }
        known.open = Some(Open {
            written: have,
            free,
            early: BTreeMap::new(),
        });
        false
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.packs.is_empty() && self.asks.is_empty()
    }

    /// Packs that no source is left for, since the last call.
    pub fn lost(&mut self) -> Vec<PackId> {
        std::mem::take(&mut self.lost)
    }

    /// Bytes that came for nothing.
    pub fn wasted_bytes(&self) -> u64 {
        self.wasted
    }

    fn waiting_bytes(&self) -> u64 {
        let asked: u64 = self.asks.values().map(|asked| asked.ask.len).sum();
        let open = self.packs.values().filter_map(|pack| pack.open.as_ref());
        let early = open.flat_map(|open| open.early.values());
        asked + early.map(|piece| piece.len() as u64).sum::<u64>()
    }

    /// What to ask for now.
    pub fn asks(&mut self, now: Time) -> Vec<Ask> {
        let mut asks = Vec::new();
        let mut room = WAITING_BYTES_MAX.saturating_sub(self.waiting_bytes());
        let packs: Vec<PackId> = self.packs.keys().copied().collect();
        for id in packs {
            while let Some((pack, written, offset)) = self.next_free(&id) {
                let len = piece_len(pack.total, offset);
                // What all that waits is waiting for is never held up by it.
                if len > room && offset != written {
                    break;
                }
                let free = pack.sources.iter().filter_map(|name| {
                    let source = self.sources.get(name)?;
                    source.has_room().then_some((source.would_take(), *name))
                });
                let Some((_, source)) = free.min() else { break };
                room = room.saturating_sub(len);
                asks.push(self.ask(now, source, id, offset));
            }
        }
        asks.extend(self.take_over(now));
        asks
    }

    /// A pack that is under way, where it has got to, and the first of its pieces that nobody has been asked for.
    fn next_free(&self, id: &PackId) -> Option<(&Pack, u64, u64)> {
        let pack = self.packs.get(id)?;
        let open = pack.open.as_ref()?;
        Some((pack, open.written, *open.free.first()?))
    }

    fn ask(&mut self, now: Time, source: DeviceId, pack: PackId, offset: u64) -> Ask {
        let total = self.packs.get(&pack).map_or(0, |pack| pack.total);
        let ask = Ask {
            id: self.next_ask,
            source,
            pack,
            total,
            offset,
            len: piece_len(total, offset),
        };
        self.next_ask += 1;
        if let Some(source) = self.sources.get_mut(&source) {
            source.under_way += 1;
        }
        if let Some(open) = self
            .packs
            .get_mut(&pack)
            .and_then(|pack| pack.open.as_mut())
        {
            open.free.remove(&offset);
        }
        self.asks.insert(ask.id, Asked { ask, at: now });
        ask
    }

    /// Pieces that a slow source has had for long, for those that have nothing to do.
    fn take_over(&mut self, now: Time) -> Vec<Ask> {
        let idle: Vec<(DeviceId, Span)> = self
            .sources
            .iter()
            .filter(|(_, source)| source.under_way == 0 && source.strikes == 0)
            .filter_map(|(name, source)| Some((*name, source.per_piece?)))
            .collect();
        let mut asks = Vec::new();
        for (name, per_piece) in idle {
            let patience = Span(per_piece.0.saturating_mul(SLOWER).max(QUICK.0));
            let mut pieces: BTreeMap<(PackId, u64), u32> = BTreeMap::new();
            for asked in self.asks.values() {
                *pieces
                    .entry((asked.ask.pack, asked.ask.offset))
                    .or_default() += 1;
            }
            let slow = self.asks.values().find(|asked| {
                let ask = &asked.ask;
                now.since(asked.at) > patience
                    && ask.source != name
                    && pieces.get(&(ask.pack, ask.offset)) == Some(&1)
                    && self
                        .packs
                        .get(&ask.pack)
                        .is_some_and(|pack| pack.sources.contains(&name))
            });
            if let Some((pack, offset)) = slow.map(|asked| (asked.ask.pack, asked.ask.offset)) {
                asks.push(self.ask(now, name, pack, offset));
            }
        }
        asks
    }

    /// When to call [`Download::asks`] again though nothing has happened.
    pub fn next_wakeup(&self, now: Time) -> Option<Time> {
        (!self.asks.is_empty()).then(|| now + QUICK)
    }

    fn take(&mut self, id: u64) -> Option<Asked> {
        let asked = self.asks.remove(&id)?;
        if let Some(source) = self.sources.get_mut(&asked.ask.source) {
            source.under_way -= 1;
        }
        Some(asked)
    }

    /// The same piece, asked of others.
    fn twins(&self, ask: &Ask) -> Vec<u64> {
        let same = self.asks.values().map(|asked| &asked.ask);
        same.filter(|other| other.pack == ask.pack && other.offset == ask.offset)
            .map(|other| other.id)
            .collect()
    }

    /// A piece came, and is what was asked for.
    pub fn came(&mut self, now: Time, id: u64, bytes: Bytes) -> Came {
        let mut came = Came::default();
        let Some(Asked { ask, at }) = self.take(id) else {
            self.wasted += bytes.len() as u64;
            return came;
        };
        if let Some(source) = self.sources.get_mut(&ask.source) {
            // It worked on this one since it had done the one before.
            let since = source.last.map_or(at, |last| last.max(at));
            let took = now.since(since);
            source.per_piece = Some(match source.per_piece {
                None => took,
                Some(before) => Span((before.0 * 3 + took.0) / 4),
            });
            source.last = Some(now);
            source.strikes = 0;
            if now.since(at) < QUICK {
                source.window = (source.window + 1).min(WINDOW_MAX);
            }
        }
        came.cancel = self.twins(&ask);
        for twin in &came.cancel {
            self.take(*twin);
        }
        let Some(open) = self
            .packs
            .get_mut(&ask.pack)
            .and_then(|pack| pack.open.as_mut())
        else {
            self.wasted += bytes.len() as u64;
            return came;
        };
        open.early.insert(ask.offset, bytes);
        while let Some(piece) = open.early.remove(&open.written) {
            open.written += piece.len() as u64;
            came.write.push(piece);
        }
        if open.written == ask.total {
            self.packs.remove(&ask.pack);
            came.whole = true;
        }
        came
    }

    /// A piece did not come. Asks that are of no use any more.
    pub fn failed(&mut self, id: u64, failure: Failure) -> Vec<u64> {
        let Some(Asked { ask, .. }) = self.take(id) else {
            return Vec::new();
        };
        self.put_back(&ask);
        match failure {
            Failure::Lacks => {
                if let Some(pack) = self.packs.get_mut(&ask.pack) {
                    pack.sources.remove(&ask.source);
                    if pack.sources.is_empty() {
                        return self.lose(ask.pack);
                    }
                }
                Vec::new()
            }
            Failure::Broken => {
                let Some(source) = self.sources.get_mut(&ask.source) else {
                    return Vec::new();
                };
                source.strikes += 1;
                source.window = WINDOW_FIRST;
                if source.strikes >= STRIKES_MAX {
                    self.left(&ask.source)
                } else {
                    Vec::new()
                }
            }
            Failure::Lied => {
                self.wasted += ask.len;
                self.left(&ask.source)
            }
        }
    }

    /// The piece is to be asked for again, unless somebody else has been.
    fn put_back(&mut self, ask: &Ask) {
        if self.twins(ask).is_empty()
            && let Some(open) = self
                .packs
                .get_mut(&ask.pack)
                .and_then(|pack| pack.open.as_mut())
        {
            open.free.insert(ask.offset);
        }
    }

    /// A source is there no more. Asks that are of no use any more.
    pub fn left(&mut self, source: &DeviceId) -> Vec<u64> {
        let mut gone: Vec<u64> = Vec::new();
        let of_it: Vec<Ask> = self
            .asks
            .values()
            .map(|asked| asked.ask)
            .filter(|ask| ask.source == *source)
            .collect();
        for ask in of_it {
            self.take(ask.id);
            self.put_back(&ask);
            gone.push(ask.id);
        }
        self.sources.remove(source);
        let packs: Vec<PackId> = self.packs.keys().copied().collect();
        for id in packs {
            if let Some(pack) = self.packs.get_mut(&id) {
                pack.sources.remove(source);
                if pack.sources.is_empty() {
                    gone.extend(self.lose(id));
                }
            }
        }
        gone
    }

    fn lose(&mut self, pack: PackId) -> Vec<u64> {
        if self.packs.contains_key(&pack) {
            self.lost.push(pack);
        }
        self.drop_pack(pack)
    }

    /// Wants a pack no longer. Asks that are of no use any more.
    pub fn drop_pack(&mut self, pack: PackId) -> Vec<u64> {
        let ids: Vec<u64> = self
            .asks
            .values()
            .map(|asked| &asked.ask)
            .filter(|ask| ask.pack == pack)
            .map(|ask| ask.id)
            .collect();
        for id in &ids {
            self.take(*id);
        }
        self.waiting.retain(|waiting| *waiting != pack);
        if let Some(open) = self.packs.remove(&pack).and_then(|pack| pack.open) {
            let early = open.early.values().map(|piece| piece.len() as u64);
            self.wasted += early.sum::<u64>();
        }
        ids
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use kith_object::key::Rng;

    use super::*;

    fn device(n: u64) -> DeviceId {
        DeviceId([n as u8; 32])
    }

    fn pack(n: u64) -> PackId {
        PackId([n as u8; 32])
    }

    /// How a source behaves.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Nature {
        /// A piece takes it that many milliseconds, one after the other.
        Honest(u64),
        Lacking,
        Lying,
        Silent,
        /// Breaks now and then.
        Flaky(u64),
    }

    struct World {
        now: Time,
        natures: Vec<Nature>,
        /// When a source has done what it was asked for.
        busy: Vec<Time>,
        /// When an ask is answered, and how.
        due: BTreeMap<(Time, u64), (Ask, Result<(), Failure>)>,
        written: BTreeMap<PackId, u64>,
        whole: BTreeSet<PackId>,
        lost: BTreeSet<PackId>,
        asked: u64,
    }

    impl World {
        fn new(natures: Vec<Nature>) -> Self {
            Self {
                now: Time(0),
                busy: vec![Time(0); natures.len()],
                natures,
                due: BTreeMap::new(),
                written: BTreeMap::new(),
                whole: BTreeSet::new(),
                lost: BTreeSet::new(),
                asked: 0,
            }
        }

        fn run(&mut self, download: &mut Download, have: &BTreeMap<PackId, u64>, rng: &mut Rng) {
            for _ in 0..100_000 {
                while let Some((pack, _)) = download.to_open() {
                    let have = have.get(&pack).copied().unwrap_or(0);
                    self.written.insert(pack, have);
                    if download.opened(pack, have) {
                        self.whole.insert(pack);
                    }
                }
                for ask in download.asks(self.now) {
                    self.asked += ask.len;
                    let n = usize::from(ask.source.0[0]);
                    let nature = self.natures[n];
                    let (takes, result) = match nature {
                        Nature::Honest(takes) => (takes, Ok(())),
                        Nature::Lacking => (5, Err(Failure::Lacks)),
                        Nature::Lying => (50, Err(Failure::Lied)),
                        Nature::Silent => (10_000, Err(Failure::Broken)),
                        Nature::Flaky(takes) if rng.below(8) == 0 => (takes, Err(Failure::Broken)),
                        Nature::Flaky(takes) => (takes, Ok(())),
                    };
                    let begins = self.busy[n].max(self.now);
                    let ends = begins + Span::from_ms(takes);
                    self.busy[n] = ends;
                    self.due.insert((ends, ask.id), (ask, result));
                }
                let early: u64 = download.waiting_bytes();
                assert!(early <= WAITING_BYTES_MAX + PACKS_MAX as u64 * PIECE_BYTES * 2);
                self.lost.extend(download.lost());
                if download.is_over() {
                    return;
                }
                let next = self.due.keys().next().copied();
                let wakeup = download.next_wakeup(self.now).unwrap();
                let Some((at, id)) = next.filter(|(at, _)| *at <= wakeup) else {
                    self.now = wakeup;
                    continue;
                };
                self.now = self.now.max(at);
                let (ask, result) = self.due.remove(&(at, id)).unwrap();
                let cancel = match result {
                    Ok(()) => {
                        let bytes = Bytes::from(vec![0; usize::try_from(ask.len).unwrap()]);
                        let came = download.came(self.now, id, bytes);
                        let written = self.written.get_mut(&ask.pack).unwrap();
                        *written += came
                            .write
                            .iter()
                            .map(|bytes| bytes.len() as u64)
                            .sum::<u64>();
                        assert!(*written <= ask.total, "each byte once");
                        if came.whole {
                            assert_eq!(*written, ask.total);
                            assert!(self.whole.insert(ask.pack));
                        }
                        came.cancel
                    }
                    Err(failure) => download.failed(id, failure),
                };
                self.due.retain(|(_, id), _| !cancel.contains(id));
            }
            panic!("it does not end");
        }
    }

    #[test]
    fn every_pack_comes_whole_if_one_source_is_honest() {
        let mut tries = 0;
        for seed in 0..2000_u64 {
            let mut rng = Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
            let mut natures = vec![Nature::Honest(1 + rng.below(500))];
            for _ in 0..rng.below(5) {
                natures.push(match rng.below(5) {
                    0 => Nature::Lacking,
                    1 => Nature::Lying,
                    2 => Nature::Silent,
                    3 => Nature::Flaky(1 + rng.below(500)),
                    _ => Nature::Honest(1 + rng.below(2000)),
                });
            }
            let mut download = Download::new();
            let mut have = BTreeMap::new();
            let packs = 1 + rng.below(12);
            for n in 0..packs {
                let total = 116 + rng.below(20 << 20);
                have.insert(pack(n), rng.below(2) * rng.below(total + 1));
                download.add(pack(n), total, (0..natures.len() as u64).map(device));
            }
            let mut world = World::new(natures);
            world.run(&mut download, &have, &mut rng);
            assert_eq!(
                world.whole.len() as u64,
                packs,
                "seed {seed}: {:?}",
                world.natures
            );
            assert!(world.lost.is_empty(), "seed {seed}");
            tries += 1;
        }
        assert_eq!(tries, 2000);
    }

    #[test]
    fn what_nobody_has_is_lost_and_the_rest_comes() {
        let mut download = Download::new();
        download.add(pack(1), 5 << 20, [device(1), device(2), device(3)]);
        download.add(pack(2), 5 << 20, [device(0), device(1)]);
        download.add(pack(3), 5 << 20, []);
        let natures = vec![
            Nature::Honest(10),
            Nature::Lying,
            Nature::Silent,
            Nature::Lacking,
        ];
        let mut world = World::new(natures);
        let mut rng = Rng::from_seed([1; 32]);
        world.run(&mut download, &BTreeMap::new(), &mut rng);
        assert_eq!(world.whole, BTreeSet::from([pack(2)]));
        assert_eq!(world.lost, BTreeSet::from([pack(1), pack(3)]));
    }

    #[test]
    fn sources_share_by_their_speed_and_nothing_comes_twice() {
        let total = 16 << 20;
        let mut download = Download::new();
        for n in 0..16 {
            download.add(pack(n), total, (0..4).map(device));
        }
        let mut world = World::new(vec![
            Nature::Honest(10),
            Nature::Honest(10),
            Nature::Honest(20),
            Nature::Honest(40),
        ]);
        world.run(
            &mut download,
            &BTreeMap::new(),
            &mut Rng::from_seed([1; 32]),
        );
        assert_eq!(world.whole.len(), 16);
        let all = 16 * total;
        assert!(world.asked * 100 <= all * 102, "{} of {all}", world.asked);
        assert_eq!(download.wasted_bytes(), 0);
        // 256 pieces; the four together do one in 10/2.75 ms.
        let ideal = 256 * 1000 / 275;
        let took = world.now.since(Time(0)).as_ms();
        assert!(
            took * 10 <= ideal * 10 * 14 / 10,
            "{took} ms, ideal {ideal}"
        );
    }

    #[test]
    fn slow_source_does_not_hold_up_the_end() {
        let mut download = Download::new();
        download.add(pack(1), 16 << 20, (0..2).map(device));
        let mut world = World::new(vec![Nature::Honest(20), Nature::Honest(60_000)]);
        world.run(
            &mut download,
            &BTreeMap::new(),
            &mut Rng::from_seed([1; 32]),
        );
        assert!(world.whole.contains(&pack(1)));
        let took = world.now.since(Time(0));
        assert!(took < Span::from_secs(5), "{took:?}");
    }
}
