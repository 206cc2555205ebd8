//! Says which pack to check next, so that each is read at least every [`CHECK_WITHIN`], at a bounded rate, however often the process ends.
//!
//! Spec: `protocol/spec/store.md`, "Scrub".

use std::collections::{BTreeSet, VecDeque};

use crate::id::PackId;
use crate::key::derive;
use crate::time::{Span, Time};

/// Each pack is read at least this often, as long as the device runs.
pub const CHECK_WITHIN: Span = Span::from_secs(30 * 24 * 3600);
/// From the beginning of one round to that of the next. Rounds go through the packs in one order, so a pack waits a round and the length of
/// one, which [`ROUND_MAX`] bounds: together less than [`CHECK_WITHIN`].
pub const ROUND: Span = Span::from_secs(14 * 24 * 3600);
/// A round is paced to end within this.
pub const ROUND_MAX: Span = Span::from_secs(14 * 24 * 3600);
/// Bytes a second at which the daemon reads for this, unless the round would not end in time: under a thousandth of a core.
pub const RATE: u64 = 1 << 20;
/// Packs after which the place in the round is kept.
const KEEP_EVERY: u64 = 16;

const MAGIC: [u8; 8] = *b"kithscr1";
/// Separates the check of a kept place from every other hash.
const DOMAIN: &str = "kith scrub 1";

/// What drives the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is time, or the process has started.
    Wake,
    /// Answers [`Effect::List`]: all closed packs and their lengths.
    Packs(Vec<(PackId, u64)>),
    /// Answers [`Effect::Pack`].
    Checked {
        /// The pack.
        pack: PackId,
        /// Bytes read.
        bytes: u64,
    },
    /// Answers [`Effect::Rest`].
    RestChecked,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Say which packs there are.
    List,
    /// Read this pack to the last byte.
    Pack(PackId),
    /// All packs are read: compare the index with them, and check logs and keys.
    Rest,
    /// Keep these bytes, for [`Scrub::resume`].
    Keep(Vec<u8>),
}

/// How a round goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the beginning of one round to that of the next; without it there is one round, now.
    pub every: Option<Span>,
    /// Bytes a second; without it as fast as the disk gives.
    pub rate: Option<u64>,
    /// How many packs of a hundred; chosen anew by each seed.
    pub percent: u8,
    /// Which packs, if not all.
    pub seed: u64,
}

impl Pace {
    /// As the daemon does it.
    pub const STEADY: Self = Self {
        every: Some(ROUND),
        rate: Some(RATE),
        percent: 100,
        seed: 0,
    };
}

/// Goes through all packs in the order of their names, in rounds.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Scrub::next_wakeup`].
///
/// Spec: `protocol/spec/store.md`, "Scrub".
#[derive(Debug)]
pub struct Scrub {
    pace: Pace,
    /// When the round began; none has yet if there is no time.
    began: Option<Time>,
    stage: Stage,
    /// All packs up to this one are done in this round.
    cursor: Option<PackId>,
    /// Packs still to come, with their lengths.
    ahead: VecDeque<(PackId, u64)>,
    /// Bytes still to come.
    bytes_ahead: u64,
    /// Before this nothing more is read.
    not_before: Time,
    /// Checks since the place was kept last.
    unkept: u64,
    effects: VecDeque<Effect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Between rounds.
    Idle,
    Listing,
    /// Waits for the rate to allow the next pack.
    Waiting,
    Checking(PackId),
    Rest,
}

impl Scrub {
    /// A machine that has done nothing yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            began: None,
            stage: Stage::Idle,
            cursor: None,
            ahead: VecDeque::new(),
            bytes_ahead: 0,
            not_before: Time(0),
            unkept: 0,
            effects: VecDeque::new(),
        }
    }

    /// A machine that goes on where the one was that wanted these bytes kept; what is not such bytes begins anew.
    pub fn resume(pace: Pace, kept: &[u8]) -> Self {
        let mut scrub = Self::new(pace);
        if let Some((began, under_way, cursor)) = decode(kept) {
            if under_way {
                scrub.cursor = cursor;
                scrub.stage = Stage::Waiting;
            }
            // A single round that is over says nothing of the next.
            scrub.began = Some(began).filter(|_| under_way || pace.every.is_some());
        }
        scrub
    }

    /// Whether these are bytes that [`Effect::Keep`] wanted kept.
    pub fn is_place(kept: &[u8]) -> bool {
        decode(kept).is_some()
    }

    /// Advances the machine. A `now` before an earlier one does no harm: the rounds count from it.
    pub fn handle(&mut self, now: Time, input: Input) {
        match (input, self.stage) {
            (Input::Wake, Stage::Idle) if self.next_round(now) <= now => {
                self.began = Some(now);
                self.cursor = None;
                self.list(now);
            }
            (Input::Wake, Stage::Waiting) => {
                if self.began.is_some_and(|began| began > now) {
                    self.began = Some(now);
                }
                if self.not_before > now + Span::from_secs(PAUSE_MAX_SECS) {
                    // The clock was set back.
                    self.not_before = now;
                }
                if self.not_before <= now {
                    if self.ahead.is_empty() {
                        self.list(now);
                    } else {
                        self.check_next();
                    }
                }
            }
            (Input::Packs(mut packs), Stage::Listing) => {
                packs.sort_unstable();
                packs.retain(|(pack, _)| Some(*pack) > self.cursor && self.is_chosen(pack));
                self.bytes_ahead = packs.iter().map(|(_, bytes)| *bytes).sum();
                self.ahead = packs.into();
                self.check_next();
            }
            (Input::Checked { pack, bytes }, Stage::Checking(asked)) if pack == asked => {
                self.cursor = Some(pack);
                self.not_before = now + self.pause(now, bytes);
                self.bytes_ahead = self.bytes_ahead.saturating_sub(bytes);
                self.stage = Stage::Waiting;
                self.unkept += 1;
                if self.unkept >= KEEP_EVERY {
                    self.keep();
                }
                if self.ahead.is_empty() || self.not_before <= now {
                    self.check_next();
                }
            }
            (Input::RestChecked, Stage::Rest) => {
                self.stage = Stage::Idle;
                self.cursor = None;
                self.keep();
            }
            _ => {}
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Scrub::handle`] with [`Input::Wake`]; not at all while an answer is awaited, or after the only round.
    pub fn next_wakeup(&self) -> Option<Time> {
        match self.stage {
            Stage::Idle => match (self.began, self.pace.every) {
                (None, _) => Some(Time(0)),
                (Some(_), None) => None,
                (Some(began), Some(every)) => Some(began + every),
            },
            Stage::Waiting => Some(self.not_before),
            Stage::Listing | Stage::Checking(_) | Stage::Rest => None,
        }
    }

    /// Whether the only round, or the present one, is over.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.began.is_some()
    }

    /// Bytes still to read in this round.
    pub fn bytes_ahead(&self) -> u64 {
        self.bytes_ahead
    }

    fn next_round(&self, now: Time) -> Time {
        match (self.began, self.pace.every) {
            // A round that began in the future: the clock was set back.
            (Some(began), Some(every)) if began <= now => began + every,
            (Some(_), None) => Time(u64::MAX),
            _ => now,
        }
    }

    fn list(&mut self, now: Time) {
        self.began.get_or_insert(now);
        self.stage = Stage::Listing;
        self.effects.push_back(Effect::List);
    }

    fn check_next(&mut self) {
        match self.ahead.pop_front() {
            Some((pack, _)) => {
                self.stage = Stage::Checking(pack);
                self.effects.push_back(Effect::Pack(pack));
            }
            None => {
                self.bytes_ahead = 0;
                self.stage = Stage::Rest;
                self.effects.push_back(Effect::Rest);
            }
        }
    }

    /// How long to wait after reading so many bytes.
    fn pause(&self, now: Time, bytes: u64) -> Span {
        let Some(rate) = self.pace.rate else {
            return Span::from_ms(0);
        };
        // Faster than asked for, if the round would not end in time otherwise.
        let needed = match (self.pace.every, self.began) {
            (Some(_), Some(began)) => {
                let left = ROUND_MAX.as_ms().saturating_sub(now.since(began).as_ms());
                self.bytes_ahead.saturating_mul(1000) / left.max(1)
            }
            _ => 0,
        };
        let millis = bytes.saturating_mul(1000) / rate.max(needed).max(1);
        Span::from_ms(millis.min(PAUSE_MAX_SECS * 1000))
    }

    fn is_chosen(&self, pack: &PackId) -> bool {
        if self.pace.percent >= 100 {
            return true;
        }
        let choice = derive(
            DOMAIN,
            &[&self.pace.seed.to_le_bytes()[..], &pack.0].concat(),
        );
        let choice = choice
            .first_chunk()
            .map_or(0, |four| u32::from_le_bytes(*four));
        u64::from(choice) * 100 < (u64::from(self.pace.percent) << 32)
    }

    fn keep(&mut self) {
        self.unkept = 0;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.began.map_or(0, |began| began.0).to_le_bytes());
        bytes.push(u8::from(self.stage != Stage::Idle));
        bytes.push(u8::from(self.cursor.is_some()));
        bytes.extend_from_slice(&self.cursor.map_or([0; 32], |pack| pack.0));
        let check = derive(DOMAIN, &bytes);
        bytes.extend_from_slice(check.split_at(16).0);
        self.effects.push_back(Effect::Keep(bytes));
    }

    /// What holds between any two calls.
    pub fn check_invariants(&self) {
        let order: Vec<&PackId> = self.ahead.iter().map(|(pack, _)| pack).collect();
        assert!(order.is_sorted(), "packs come in order");
        if let (Some(cursor), Some(first)) = (&self.cursor, order.first()) {
            assert!(*first > cursor, "no pack comes twice in a round");
        }
        let all: BTreeSet<&PackId> = order.iter().copied().collect();
        assert_eq!(all.len(), order.len(), "each pack comes once");
        assert!(
            self.stage != Stage::Idle || self.ahead.is_empty(),
            "a round ends when all is read"
        );
    }
}

/// Longest pause after one pack: a pack is at most 64 MiB, and no rate is below a few KiB a second.
const PAUSE_MAX_SECS: u64 = 3600;

/// Beginning of the round, whether it is under way, and the last pack done.
fn decode(bytes: &[u8]) -> Option<(Time, bool, Option<PackId>)> {
    let (body, check) = bytes.split_last_chunk::<16>()?;
    if derive(DOMAIN, body).split_at(16).0 != check {
        return None;
    }
    let rest = body.strip_prefix(&MAGIC)?;
    let (began, rest) = rest.split_first_chunk::<8>()?;
    let ([under_way, has_cursor], rest) = rest.split_first_chunk::<2>()?;
    let cursor: [u8; 32] = rest.try_into().ok()?;
    let cursor = (*has_cursor == 1).then_some(PackId(cursor));
    Some((Time(u64::from_le_bytes(*began)), *under_way == 1, cursor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Rng;

    const DAY: u64 = 24 * 3600 * 1000;

    fn pack(number: u64) -> PackId {
        PackId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    /// A disk's packs, and when each was checked last.
    struct World {
        packs: std::collections::BTreeMap<PackId, (u64, Time)>,
        kept: Vec<u8>,
        read: u64,
        rests: u64,
    }

    impl World {
        /// Does all that the machine wants at that moment.
        fn run(&mut self, scrub: &mut Scrub, now: Time) {
            scrub.handle(now, Input::Wake);
            while let Some(effect) = scrub.poll_effect() {
                scrub.check_invariants();
                match effect {
                    Effect::List => {
                        let packs = self.packs.iter();
                        let packs = packs.map(|(pack, (bytes, _))| (*pack, *bytes)).collect();
                        scrub.handle(now, Input::Packs(packs));
                    }
                    Effect::Pack(pack) => {
                        let bytes = match self.packs.get_mut(&pack) {
                            Some((bytes, checked)) => {
                                *checked = now;
                                *bytes
                            }
                            None => 0,
                        };
                        self.read += bytes;
                        scrub.handle(now, Input::Checked { pack, bytes });
                    }
                    Effect::Rest => {
                        self.rests += 1;
                        scrub.handle(now, Input::RestChecked);
                    }
                    Effect::Keep(bytes) => self.kept = bytes,
                }
            }
        }
    }

    fn world(packs: u64, bytes: u64) -> World {
        World {
            packs: (0..packs).map(|at| (pack(at), (bytes, Time(0)))).collect(),
            kept: Vec::new(),
            read: 0,
            rests: 0,
        }
    }

    /// A year of packs coming and going, restarts at any moment, a clock that jumps: no pack is older than it may be.
    #[test]
    fn each_pack_is_checked_within_its_time() {
        for seed in 0..6 {
            let mut rng = Rng::from_seed([seed; 32]);
            let mut world = world(400, 16 << 20);
            let mut scrub = Scrub::new(Pace::STEADY);
            let mut now = Time(DAY);
            let mut next = 400;
            while now.0 < 200 * DAY {
                world.run(&mut scrub, now);
                for (checked, (_, last)) in world.packs.values().map(|pack| (now, pack)) {
                    let since = last.0.max(DAY);
                    assert!(
                        checked.0 - since <= CHECK_WITHIN.as_ms(),
                        "seed {seed}: a pack waits since {since} at {}",
                        now.0
                    );
                }
                if rng.below(200) == 0 {
                    scrub = Scrub::resume(Pace::STEADY, &world.kept);
                }
                if rng.below(50) == 0 {
                    world.packs.insert(pack(next), (16 << 20, now));
                    next += 1;
                    let gone = *world.packs.keys().next().unwrap();
                    world.packs.remove(&gone);
                }
                // The machine is woken when it asks to be, or a little later.
                let wake = scrub.next_wakeup().unwrap().0.max(now.0);
                now = Time(wake.min(now.0 + DAY) + rng.below(60_000) + 1);
            }
            assert!(world.rests >= 10, "{} rounds", world.rests);
        }
    }

    #[test]
    fn clock_set_back_stops_nothing() {
        let mut world = world(3, 1000);
        let mut scrub = Scrub::new(Pace::STEADY);
        world.run(&mut scrub, Time(300 * DAY));
        let mut scrub = Scrub::resume(Pace::STEADY, &world.kept);
        for hour in 0..48 {
            world.run(&mut scrub, Time(10 * DAY + hour * DAY / 24));
        }
        assert!(world.rests >= 1);
        assert!(
            world
                .packs
                .values()
                .all(|(_, checked)| checked.0 < 13 * DAY)
        );
    }

    #[test]
    fn rate_is_kept_and_one_round_ends() {
        let pace = Pace {
            every: None,
            rate: Some(1 << 20),
            percent: 100,
            seed: 0,
        };
        let mut world = world(20, 4 << 20);
        let mut scrub = Scrub::new(pace);
        let mut now = Time(5);
        world.run(&mut scrub, now);
        while !scrub.is_idle() {
            now = scrub.next_wakeup().unwrap();
            world.run(&mut scrub, now);
            assert!(
                world.read <= (now.0 - 5) * 1049 + (4 << 20),
                "{}",
                world.read
            );
        }
        assert_eq!((world.read, world.rests), (80 << 20, 1));
        assert_eq!(scrub.next_wakeup(), None);
    }

    #[test]
    fn interrupted_round_goes_on_where_it_was() {
        let pace = Pace {
            every: None,
            rate: Some(1),
            percent: 100,
            seed: 0,
        };
        let mut world = world(100, 1000);
        let mut scrub = Scrub::new(pace);
        let mut now = Time(0);
        for _ in 0..40 {
            world.run(&mut scrub, now);
            now = scrub.next_wakeup().unwrap();
        }
        assert_eq!(world.read, 40_000);
        let mut scrub = Scrub::resume(Pace { rate: None, ..pace }, &world.kept);
        world.run(&mut scrub, now);
        assert!(scrub.is_idle());
        // At most what was done since the place was kept is done again.
        assert!(world.read <= 100_000 + KEEP_EVERY * 1000, "{}", world.read);
        assert!(world.read >= 100_000);
        for bit in 0..world.kept.len() * 8 {
            let mut bad = world.kept.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!Scrub::is_place(&bad), "bit {bit}");
        }
    }

    #[test]
    fn sample_takes_about_its_part() {
        let pace = Pace {
            every: None,
            rate: None,
            percent: 10,
            seed: 7,
        };
        let mut world = world(2000, 1);
        let mut scrub = Scrub::new(pace);
        world.run(&mut scrub, Time(1));
        assert!((120..280).contains(&world.read), "{}", world.read);
    }
}
