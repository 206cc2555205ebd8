//! How long this device has known what it knows, counted by its own days and not by anybody's stamps.
//!
//! Stamps order; whoever writes a version may stamp it anywhere in the past. If content went by stamps, one backdated version would age out at once what it
//! replaces. So a version counts as replaced only since this device learned of it.
//!
//! Spec: `protocol/spec/garbage.md`, "Days".

use kith_crdt::names::Retention;
use kith_object::id::EntryId;
use kith_object::time::{Span, Time};

/// A day begins so long after the last one at the earliest: daemons that start at the same hour each morning begin one each time.
const DAY_LEAST: Span = Span::from_secs(20 * 3600);
/// A day of the calendar, in milliseconds.
const DAY_MS: u64 = 86_400_000;
/// All of the last so many days are kept, and of those before every thirtieth.
const DAYS_KEPT: u32 = 70;
const SPARSE: u32 = 30;
/// Most days remembered: the last ones and ten years of the others.
const DAYS_MAX: usize = 192;
/// Most heads kept of a day; with fewer than there were, more counts as young.
const HEADS_MAX: usize = 64;
/// How far the clock may be ahead of the days that were counted: a device is not used every day.
const AHEAD_MAX: Span = Span::from_secs(366 * 86_400);
const MAGIC: &[u8; 8] = b"kithday1";

/// The days of a device on which it collected garbage, and what it knew on each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    days: Vec<Day>,
}

/// What was known on a day.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Day {
    /// Rises by one each day.
    number: u32,
    /// By the clock of the device then.
    time: Time,
    /// Heads of `names`. Sorted.
    heads: Vec<EntryId>,
}

impl Ages {
    /// Begins a new day if the last one is over; answers whether it did.
    pub fn note(&mut self, now: Time, mut heads: Vec<EntryId>) -> bool {
        let number = match self.days.last() {
            // A clock that was set back begins no day before it has caught up, and one that never catches up none at all: then nothing ages.
            Some(last) if now < last.time + DAY_LEAST => return false,
            Some(last) => last.number.saturating_add(1),
            None => 0,
        };
        heads.sort_unstable();
        heads.dedup();
        heads.truncate(HEADS_MAX);
        self.days.push(Day {
            number,
            time: now,
            heads,
        });
        self.days
            .retain(|day| number - day.number < DAYS_KEPT || day.number.is_multiple_of(SPARSE));
        if self.days.len() > DAYS_MAX {
            self.days.remove(0);
        }
        true
    }

    /// What was known so many days ago at the latest: by the days that were counted since, and by the clock. `None` if that is not known.
    pub fn heads_before(&self, days: u32, now: Time) -> Option<&[EntryId]> {
        let last = self.days.last()?;
        let is_old = |day: &&Day| {
            last.number - day.number >= days
                && now.0.saturating_sub(day.time.0) / DAY_MS >= u64::from(days)
        };
        let day = self.days.iter().rev().find(is_old)?;
        (days != Retention::FOREVER).then_some(&day.heads)
    }

    /// The clock, as far as the days that were counted bear it out: one that is set years ahead ages nothing at once.
    pub fn believed(&self, now: Time) -> Time {
        let (Some(first), Some(last)) = (self.days.first(), self.days.last()) else {
            return now;
        };
        let counted = u64::from(last.number - first.number) * DAY_MS;
        now.min(Time(first.time.0.saturating_add(counted)) + AHEAD_MAX)
    }

    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for day in &self.days {
            bytes.extend_from_slice(&day.number.to_le_bytes());
            bytes.extend_from_slice(&day.time.0.to_le_bytes());
            let count = u8::try_from(day.heads.len()).expect("at most HEADS_MAX");
            bytes.push(count);
            for head in &day.heads {
                bytes.extend_from_slice(&head.0);
            }
        }
        bytes
    }

    /// Reads what was kept; `None` if it is nothing that [`Ages::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut days: Vec<Day> = Vec::new();
        while !rest.is_empty() {
            let (number, after) = rest.split_first_chunk()?;
            let (time, after) = after.split_first_chunk()?;
            let (count, mut after) = after.split_first()?;
            let mut heads = Vec::new();
            for _ in 0..*count {
                let (head, next) = after.split_first_chunk()?;
                heads.push(EntryId(*head));
                after = next;
            }
            let day = Day {
                number: u32::from_le_bytes(*number),
                time: Time(u64::from_le_bytes(*time)),
                heads,
            };
            let follows = days
                .last()
                .is_none_or(|last| last.number < day.number && last.time < day.time);
            let sorted = day.heads.is_sorted_by(|one, other| one < other);
            if !follows || !sorted || day.heads.len() > HEADS_MAX || days.len() == DAYS_MAX {
                return None;
            }
            days.push(day);
            rest = after;
        }
        Some(Self { days })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Time = Time(20_000 * DAY_MS);

    fn id(number: u32) -> EntryId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        EntryId(bytes)
    }

    fn day(number: u64) -> Time {
        Time(START.0 + number * DAY_MS)
    }

    fn daily(days: u32) -> Ages {
        let mut ages = Ages::default();
        for number in 0..days {
            assert!(ages.note(day(u64::from(number)), vec![id(number)]));
            assert!(
                !ages.note(day(u64::from(number)), vec![id(999)]),
                "once a day"
            );
        }
        ages
    }

    #[test]
    fn what_was_known_so_long_ago_is_told_once_it_is_so_long_ago() {
        let ages = daily(40);
        assert_eq!(ages.heads_before(30, day(39)), Some(&[id(9)][..]));
        assert_eq!(ages.heads_before(39, day(39)), Some(&[id(0)][..]));
        assert_eq!(ages.heads_before(40, day(39)), None);
        assert_eq!(ages.heads_before(Retention::FOREVER, day(39)), None);
        assert_eq!(Ages::default().heads_before(1, day(39)), None);
        // Far back, every thirtieth day is known.
        let ages = daily(1000);
        assert_eq!(ages.heads_before(365, day(999)), Some(&[id(630)][..]));
        assert!(ages.days.len() < 110);
    }

    #[test]
    fn no_clock_makes_a_day_old_that_was_not_lived() {
        // Set ahead by years: one day more, and no older.
        let mut ages = daily(10);
        assert!(ages.note(day(4000), vec![id(10)]));
        assert_eq!(ages.heads_before(30, day(4000)), None);
        assert_eq!(ages.heads_before(9, day(4000)), Some(&[id(1)][..]));
        assert_eq!(ages.believed(day(4000)), day(10) + AHEAD_MAX);
        assert_eq!(ages.believed(day(12)), day(12));
        // And set right again: no day begins until then.
        assert!(!ages.note(day(11), vec![id(11)]));
        // Days that were not used do not count, though the calendar went on.
        let mut ages = Ages::default();
        for week in 0..10 {
            assert!(ages.note(day(week * 7), vec![id(week as u32)]));
        }
        assert_eq!(ages.heads_before(9, day(63)), Some(&[id(0)][..]));
        assert_eq!(ages.heads_before(10, day(63)), None);
        // Days that the clock made short do not count as whole ones.
        let mut ages = Ages::default();
        for turn in 0..10 {
            assert!(ages.note(
                START + Span::from_secs(turn * 20 * 3600),
                vec![id(turn as u32)]
            ));
        }
        let now = START + Span::from_secs(9 * 20 * 3600);
        assert_eq!(ages.heads_before(8, now), None);
        assert_eq!(ages.heads_before(7, now), Some(&[id(0)][..]));
    }

    #[test]
    fn too_many_heads_make_more_count_as_young() {
        let mut ages = Ages::default();
        ages.note(day(0), (0..500).rev().map(id).collect());
        assert_eq!(ages.days[0].heads.len(), HEADS_MAX);
        assert_eq!(Ages::decode(&ages.encode()), Some(ages));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Ages::decode(&bytes);
            let with_magic = [&MAGIC[..], &bytes].concat();
            if let Some(ages) = Ages::decode(&with_magic) {
                prop_assert_eq!(ages.encode(), with_magic);
            }
        }

        #[test]
        fn what_was_kept_is_read_back(gaps in proptest::collection::vec(0u64..5_000, 0..300)) {
            let mut ages = Ages::default();
            let mut now = START;
            for (number, gap) in gaps.into_iter().enumerate() {
                now = now + Span::from_secs(gap * 600);
                ages.note(now, vec![id(number as u32)]);
                prop_assert!(ages.days.len() <= DAYS_MAX);
                prop_assert!(ages.believed(now) <= now);
            }
            let bytes = ages.encode();
            prop_assert_eq!(Ages::decode(&bytes), Some(ages));
            prop_assert!(bytes.len() == 8 || Ages::decode(&bytes[..bytes.len() - 1]).is_none());
        }
    }
}
