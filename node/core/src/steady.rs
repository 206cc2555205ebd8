//! Time that never falls, made of a clock that does.
//!
//! Spec: `protocol/spec/device.md`, "Time".

use kith_object::time::{Span, Time};

/// A clock that was put back by less is taken to stand still until it has caught up: what is measured a moment apart may come out of order.
const STEP: Span = Span::from_secs(1);

/// Turns what the clock says into time by which one can wait: it goes on where it was when the clock is put back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    /// What the clock said last.
    wall: Time,
    /// How far it has been put back so far.
    back: Span,
}

impl Steady {
    pub(crate) fn new(wall: Time) -> Self {
        Self {
            wall,
            back: Span(0),
        }
    }

    /// The clock says that now; answers the time to wait by.
    pub(crate) fn tick(&mut self, wall: Time) -> Time {
        let fell = self.wall.since(wall);
        if fell > STEP {
            self.back = Span(self.back.0.saturating_add(fell.0));
            self.wall = wall;
        }
        self.wall = self.wall.max(wall);
        self.wall + self.back
    }

    /// What the clock said last, to date things by.
    pub(crate) fn wall(&self) -> Time {
        self.wall
    }

    /// What the clock will say at a time that is waited for.
    pub(crate) fn wall_at(&self, time: Time) -> Time {
        Time(time.0.saturating_sub(self.back.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn time_goes_on_when_the_clock_is_put_back_and_never_falls() {
        let mut steady = Steady::new(Time(10 * HOUR));
        assert_eq!(steady.tick(Time(11 * HOUR)), Time(11 * HOUR));
        // Out of order by a moment: it stands still.
        assert_eq!(steady.tick(Time(11 * HOUR - 900)), Time(11 * HOUR));
        assert_eq!(steady.tick(Time(11 * HOUR + 5)), Time(11 * HOUR + 5));
        // Put back by two hours, and then by one more.
        assert_eq!(steady.tick(Time(9 * HOUR)), Time(11 * HOUR + 5));
        assert_eq!(steady.wall(), Time(9 * HOUR));
        assert_eq!(steady.tick(Time(9 * HOUR + 7)), Time(11 * HOUR + 12));
        assert_eq!(steady.tick(Time(8 * HOUR)), Time(11 * HOUR + 12));
        // What is due in a minute is due when the clock says a minute more.
        let due = Time(11 * HOUR + 12 + 60_000);
        assert_eq!(steady.wall_at(due), Time(8 * HOUR + 60_000));
        assert_eq!(steady.tick(steady.wall_at(due)), due);
        // Put forward it goes forward.
        assert_eq!(steady.tick(Time(20 * HOUR)), Time(23 * HOUR + 12));
    }
}
