//! When which key is announced.

use std::collections::{BTreeSet, VecDeque};

use kith_object::time::{Span, Time};

use super::Key;

/// Announcements a day, all together: one in ten seconds.
pub const PER_DAY_MAX: u64 = 8640;
/// Announcements in a rush.
pub const RUSH_MAX: u64 = 128;
/// How long one sweep takes, unless there are more keys than may be announced meanwhile. Twice that is less than a record lasts.
const SWEEP: Span = Span::from_secs(22 * 3600);
/// Time for which one announcement is saved up.
const PACE: Span = Span::from_secs(24 * 3600 / PER_DAY_MAX);
/// Keys in all; more are left to the catalogue.
const KEYS_MAX: usize = 1 << 20;
/// New keys that wait to be announced at once; the sweep comes by the others.
const FRESH_MAX: usize = 4096;

/// Announces keys in sweeps and new ones at once, within a budget.
///
/// Spec: `protocol/spec/record.md`, "Announcing".
#[derive(Debug)]
pub struct Announcements {
    keys: BTreeSet<Key>,
    fresh: VecDeque<Key>,
    /// The last key that the sweep came by.
    place: Key,
    /// When the next of the sweep is due.
    next: Time,
    /// Since when announcements are saved up: each takes [`PACE`] of the time since then, and no more is saved than for a rush.
    saved_since: Time,
    /// Whether anybody is there to be told.
    heard: bool,
}

impl Announcements {
    /// Nothing yet; the sweep will begin behind that key.
    pub fn new(now: Time, place: Key) -> Self {
        Self {
            keys: BTreeSet::new(),
            fresh: VecDeque::new(),
            place,
            next: now,
            saved_since: Time(now.0.saturating_sub(PACE.0 * RUSH_MAX)),
            heard: false,
        }
    }

    /// A key is to be announced, and at once if it is new.
    pub fn add(&mut self, key: Key) {
        if self.keys.len() < KEYS_MAX && self.keys.insert(key) && self.fresh.len() < FRESH_MAX {
            self.fresh.push_back(key);
        }
    }

    /// A key is to be announced in the sweep, as one that was announced before.
    pub fn resume(&mut self, key: Key) {
        if self.keys.len() < KEYS_MAX {
            self.keys.insert(key);
        }
    }

    /// A key is announced no longer; others forget it by themselves.
    pub fn remove(&mut self, key: &Key) {
        if self.keys.remove(key) {
            self.fresh.retain(|fresh| fresh != key);
        }
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.fresh.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether anybody is connected.
    pub fn heard(&mut self, heard: bool) {
        self.heard = heard;
    }

    /// The next key to announce now.
    pub fn due(&mut self, now: Time) -> Option<Key> {
        if self.next_wakeup().is_none_or(|at| at > now) {
            return None;
        }
        let oldest = Time(now.0.saturating_sub(PACE.0 * RUSH_MAX));
        self.saved_since = self.saved_since.max(oldest) + PACE;
        if let Some(fresh) = self.fresh.pop_front() {
            return Some(fresh);
        }
        let after = (
            std::ops::Bound::Excluded(self.place),
            std::ops::Bound::Unbounded,
        );
        let next = self.keys.range(after).next().or_else(|| self.keys.first());
        let next = *next?;
        self.place = next;
        let many = u64::try_from(self.keys.len()).unwrap_or(u64::MAX);
        self.next = now + Span((SWEEP.0 / many).max(PACE.0));
        Some(next)
    }

    /// When [`Announcements::due`] has something next.
    pub fn next_wakeup(&self) -> Option<Time> {
        if !self.heard || self.keys.is_empty() {
            return None;
        }
        let allowed = self.saved_since + PACE;
        if self.fresh.is_empty() {
            return Some(allowed.max(self.next));
        }
        Some(allowed)
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(self.keys.len() <= KEYS_MAX && self.fresh.len() <= FRESH_MAX);
        assert!(
            self.fresh.iter().all(|key| self.keys.contains(key)),
            "what is announced is to be announced"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use kith_object::key::Rng;

    const DAY: u64 = 24 * 3600 * 1000;

    fn key(n: u64) -> Key {
        Key(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    /// Runs to that time; each announcement with its time.
    fn run(machine: &mut Announcements, now: &mut Time, until: Time) -> Vec<(Time, Key)> {
        let mut said = Vec::new();
        while let Some(at) = machine.next_wakeup()
            && at <= until
        {
            *now = (*now).max(at);
            while let Some(key) = machine.due(*now) {
                said.push((*now, key));
                machine.check_invariants();
            }
        }
        *now = until;
        said
    }

    #[test]
    fn every_key_is_announced_again_before_its_record_ends() {
        for count in [1, 2, 50, 5000] {
            let mut now = Time(5 * DAY);
            let mut machine = Announcements::new(now, key(77));
            machine.heard(true);
            for n in 0..count {
                machine.add(key(n));
            }
            let until = Time(9 * DAY);
            let said = run(&mut machine, &mut now, until);
            let mut last: BTreeMap<Key, Time> = BTreeMap::new();
            for (at, key) in said {
                if let Some(before) = last.insert(key, at) {
                    assert!(at.0 - before.0 < 2 * DAY, "{count}: {}", at.0 - before.0);
                }
            }
            assert_eq!(last.len() as u64, count);
            assert!(last.values().all(|at| until.0 - at.0 < 2 * DAY));
        }
    }

    #[test]
    fn budget_holds_whatever_happens() {
        let mut rng = Rng::from_seed([3; 32]);
        let mut now = Time(5 * DAY);
        let mut machine = Announcements::new(now, key(1));
        let mut said = Vec::new();
        for step in 0..3000_u64 {
            match rng.below(6) {
                0 => (0..rng.below(300)).for_each(|n| machine.add(key(step * 1000 + n))),
                1 => machine.remove(&key(rng.below(3000) * 1000 + rng.below(300))),
                2 => machine.heard(rng.below(3) > 0),
                3 if step % 100 == 0 => machine.clear(),
                _ => {}
            }
            machine.check_invariants();
            let until = now + Span(rng.below(DAY / 100));
            said.extend(run(&mut machine, &mut now, until));
        }
        assert!(said.len() > 10_000, "{}", said.len());
        // In any window of a day, and in any shorter one in its proportion.
        let mut first = 0;
        for (place, (at, _)) in said.iter().enumerate() {
            while at.0 - said[first].0.0 > DAY {
                first += 1;
            }
            let in_a_day = (place - first + 1) as u64;
            assert!(in_a_day <= PER_DAY_MAX + RUSH_MAX + 1, "{in_a_day}");
            if let Some((before, _)) = place
                .checked_sub(RUSH_MAX as usize + 1)
                .map(|place| said[place])
            {
                assert!(at.0 - before.0 >= PACE.0, "a rush is bounded");
            }
        }
    }

    #[test]
    fn what_is_new_goes_at_once_and_the_sweep_in_order() {
        let mut now = Time(DAY);
        let mut machine = Announcements::new(now, key(0));
        for n in 0..20 {
            machine.resume(key(n));
        }
        assert_eq!(machine.next_wakeup(), None, "nobody would hear it");
        machine.heard(true);
        machine.add(key(100));
        assert_eq!(machine.due(now), Some(key(100)));
        machine.add(key(100));
        let until = now + SWEEP;
        let said = run(&mut machine, &mut now, until);
        let keys: Vec<Key> = said.iter().map(|(_, key)| *key).collect();
        let mut turned = keys.clone();
        turned.sort_unstable();
        let start = turned.iter().position(|key| *key == keys[0]).unwrap();
        turned.rotate_left(start);
        turned.dedup();
        assert!(keys.len() >= 21);
        assert_eq!(keys[..21], turned[..21]);
        assert!(keys[0] > key(0) || keys[0] == *machine.keys.first().unwrap());
        machine.clear();
        assert_eq!(machine.due(now + SWEEP), None);
    }
}
