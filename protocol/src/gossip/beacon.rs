//! When to tell everyone the root: soon after it changed, ever more rarely while all agree, and not at all if enough others have said the same.
//!
//! Spec: `protocol/spec/gossip.md`, "Telling the root". Method: Trickle, RFC 6206.

use kith_object::key::Rng;
use kith_object::time::{Span, Time};

/// How long changes are gathered before the root is told; the second half is random, and longer where there are many devices: those
/// who speak first have then been heard by the others, who need not say the same.
const GATHER: Span = Span::from_ms(500);
/// Least time between two tellings of one device.
const SPACING_MIN: Span = Span::from_secs(1);
/// Share of that time per device heard of, so that a busy mesh as a whole tells some twenty roots a second, however large.
const SPACING_STEP: Span = Span::from_ms(50);
/// Most time between two tellings while nothing changes.
const INTERVAL_MAX: Span = Span::from_secs(60);
/// So many others that say the same make it needless to say it again.
const SAME_ENOUGH: u32 = 3;

/// The clock of one device's tellings.
#[derive(Debug, Default)]
pub(super) struct Beacon {
    /// When it is time to tell; `None` while nobody is there to hear.
    due: Option<Time>,
    /// Doubles while nothing happens.
    interval: Span,
    /// When the last one was due.
    last: Option<Time>,
    /// How often others have said the same since.
    same: u32,
}

impl Beacon {
    /// When to come back.
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Nobody is there any more.
    pub(super) fn rest(&mut self) {
        self.due = None;
    }

    /// Our root changed, or someone has another: it is to be told soon.
    pub(super) fn stir(&mut self, now: Time, devices: usize, changed: bool, rng: &mut Rng) {
        if changed {
            self.same = 0;
        }
        self.interval = Span(0);
        let half = GATHER.as_ms() / 2;
        let crowd = SPACING_STEP.as_ms() * u64::try_from(devices).unwrap_or(u64::MAX).min(10_000);
        let soon = now + Span(half + rng.below(half.max(crowd)));
        let spaced = self.last.map_or(soon, |last| last + spacing(devices));
        let at = soon.max(spaced);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Someone has said what we would say.
    pub(super) fn heard_same(&mut self) {
        self.same = self.same.saturating_add(1);
    }

    /// Whether to tell now; sets the next time.
    pub(super) fn fire(&mut self, now: Time, devices: usize, rng: &mut Rng) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        let needed = self.same < SAME_ENOUGH;
        self.same = 0;
        self.last = Some(now);
        let spacing = spacing(devices);
        let doubled = Span(self.interval.as_ms().saturating_mul(2));
        self.interval = doubled.max(spacing).min(INTERVAL_MAX.max(spacing));
        let half = self.interval.as_ms() / 2;
        // Spread over the second half of the interval, or two devices would always speak at once.
        self.due = Some(now + Span(half + rng.below(half)).max(spacing));
        needed
    }
}

fn spacing(devices: usize) -> Span {
    let devices = u64::try_from(devices).unwrap_or(u64::MAX);
    Span(SPACING_STEP.as_ms().saturating_mul(devices)).max(SPACING_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> Rng {
        Rng::from_seed([1; 32])
    }

    /// Times of the tellings that are due up to `until`.
    fn run(beacon: &mut Beacon, rng: &mut Rng, until: Time) -> Vec<Time> {
        let mut times = Vec::new();
        while let Some(due) = beacon.due().filter(|due| *due <= until) {
            if beacon.fire(due, 4, rng) {
                times.push(due);
            }
        }
        times
    }

    #[test]
    fn change_is_told_soon_and_then_ever_more_rarely() {
        let (mut beacon, mut rng) = (Beacon::default(), rng());
        beacon.stir(Time(10_000), 4, true, &mut rng);
        let times = run(&mut beacon, &mut rng, Time(10_000 + 3_600_000));
        assert!(times[0] <= Time(10_000) + GATHER);
        assert!(
            (70..140).contains(&times.len()),
            "{} in an hour",
            times.len()
        );
        let gaps: Vec<Span> = times
            .windows(2)
            .map(|pair| pair[1].since(pair[0]))
            .collect();
        assert!(
            gaps.iter()
                .all(|gap| (SPACING_MIN..=INTERVAL_MAX).contains(gap))
        );
    }

    #[test]
    fn steady_change_is_told_once_in_a_while() {
        let (mut beacon, mut rng) = (Beacon::default(), rng());
        let mut told = 0;
        for ms in 0..60_000 {
            beacon.stir(Time(ms), 4, true, &mut rng);
            told += u32::from(beacon.fire(Time(ms), 4, &mut rng));
        }
        assert!((40..=61).contains(&told), "{told}");
    }

    #[test]
    fn what_others_say_is_not_repeated() {
        let (mut beacon, mut rng) = (Beacon::default(), rng());
        beacon.stir(Time(0), 4, true, &mut rng);
        for _ in 0..SAME_ENOUGH {
            beacon.heard_same();
        }
        assert!(!beacon.fire(Time(500), 4, &mut rng));
        assert!(beacon.due().is_some());
    }
}
