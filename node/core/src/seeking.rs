//! What is looked for in the DHT, and when again.
//!
//! Spec: `protocol/spec/device.md`, "Looking in the DHT".

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::Cid;
use kith_object::time::{Span, Time};

/// Most blocks looked for at the same time.
const SOUGHT_MAX: usize = 64;
/// Between the first two times; doubles up to [`AGAIN_MAX`].
const AGAIN_FIRST: Span = Span::from_secs(30);
/// Between two times at most.
const AGAIN_MAX: Span = Span::from_secs(600);

/// Blocks that nobody connected has.
#[derive(Debug, Default)]
pub(crate) struct Seeking {
    /// When each is looked for again, and the pause after that.
    blocks: BTreeMap<Cid, (Time, Span)>,
    due: BTreeSet<(Time, Cid)>,
}

impl Seeking {
    /// Nobody connected has it: whether it is to be looked for now.
    pub(crate) fn lacks(&mut self, now: Time, cid: Cid) -> bool {
        if self.blocks.contains_key(&cid) || self.blocks.len() >= SOUGHT_MAX {
            return false;
        }
        let at = now + AGAIN_FIRST;
        self.blocks.insert(cid, (at, AGAIN_FIRST));
        self.due.insert((at, cid));
        true
    }

    /// It came, or is asked for anew.
    pub(crate) fn forget(&mut self, cid: &Cid) {
        if let Some((at, _)) = self.blocks.remove(cid) {
            self.due.remove(&(at, *cid));
        }
    }

    /// Nothing is wanted any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What is to be looked for again now, of what still is wanted: who had it may not have been reached, or have had no room, and others may have it by now.
    pub(crate) fn due(&mut self, now: Time, wanted: impl Fn(&Cid) -> bool) -> Vec<Cid> {
        let mut again = Vec::new();
        while let Some((at, cid)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            let Some((_, pause)) = self.blocks.remove(&cid) else {
                continue;
            };
            if wanted(&cid) {
                let pause = Span(pause.0.saturating_mul(2).min(AGAIN_MAX.0));
                self.blocks.insert(cid, (now + pause, pause));
                self.due.insert((now + pause, cid));
                again.push(cid);
            }
        }
        again
    }

    /// When [`Seeking::due`] has something next.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check_invariants(&self) {
        let due = self.blocks.iter().map(|(cid, (at, _))| (*at, *cid));
        assert_eq!(due.collect::<BTreeSet<_>>(), self.due);
        assert!(self.blocks.len() <= SOUGHT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid(n: u8) -> Cid {
        Cid::of_block(&[n])
    }

    #[test]
    fn what_is_wanted_is_looked_for_ever_more_rarely() {
        let mut seeking = Seeking::default();
        assert!(seeking.lacks(Time(0), cid(1)));
        assert!(!seeking.lacks(Time(9), cid(1)), "once");
        let mut pauses = Vec::new();
        let mut now = Time(0);
        for _ in 0..7 {
            let next = seeking.next_due().unwrap();
            assert!(seeking.due(Time(next.0 - 1), |_| true).is_empty());
            assert_eq!(seeking.due(next, |_| true), [cid(1)]);
            pauses.push(next.since(now).0 / 1000);
            now = next;
            seeking.check_invariants();
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        // What nobody waits for is forgotten.
        let next = seeking.next_due().unwrap();
        assert!(seeking.due(next, |_| false).is_empty());
        assert_eq!(seeking.next_due(), None);
        assert!(seeking.lacks(next, cid(1)));
        seeking.forget(&cid(1));
        assert_eq!(seeking.next_due(), None);
    }

    #[test]
    fn no_more_than_so_many_at_once() {
        let mut seeking = Seeking::default();
        let taken = (0..200).filter(|n| seeking.lacks(Time(0), cid(*n)));
        assert_eq!(taken.count(), SOUGHT_MAX);
        seeking.check_invariants();
        seeking.clear();
        seeking.check_invariants();
        assert!(seeking.lacks(Time(0), cid(0)));
    }
}
