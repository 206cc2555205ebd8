//! Which connections to let go where there are more than are needed, so that there is room for those who come for something.
//!
//! Spec: `protocol/spec/device.md`, "Addresses".

use std::collections::BTreeMap;

use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

use crate::book::distance;

/// A connection over which blocks went so lately is in use; a new one has as long to be used.
const IDLE: Span = Span::from_secs(60);
/// Between two that are let go.
const STEP: Span = Span::from_secs(5);

/// Connections, and when each was last of use.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    used: BTreeMap<DeviceId, Time>,
    /// When one was let go last.
    last: Option<Time>,
}

/// More than a device makes by itself, and so many besides, are too many.
fn enough(target: usize) -> usize {
    target + (target / 8).max(2)
}

impl Crowd {
    /// A connection came about, or is of use: a block goes over it.
    pub(crate) fn used(&mut self, now: Time, peer: DeviceId) {
        self.used.insert(peer, now);
    }

    /// A connection ended.
    pub(crate) fn left(&mut self, peer: &DeviceId) {
        self.used.remove(peer);
    }

    /// One to let go now, where `target` are wanted: at the distance from `me` at which there are most, the one that has been idle longest.
    pub(crate) fn surplus(&mut self, now: Time, me: &DeviceId, target: usize) -> Option<DeviceId> {
        if self.next_due(target).is_none_or(|due| due > now) {
            return None;
        }
        let mut near: BTreeMap<u32, Vec<(Time, DeviceId)>> = BTreeMap::new();
        for (peer, used) in &self.used {
            let (common, _) = distance(me, peer);
            near.entry(common).or_default().push((*used, *peer));
        }
        let idle = |(used, _): &&(Time, DeviceId)| *used + IDLE <= now;
        let least = |peers: &Vec<(Time, DeviceId)>| peers.iter().filter(idle).min().copied();
        let (_, (_, peer)) = near
            .values()
            .filter_map(|peers| Some((peers.len(), least(peers)?)))
            .max_by_key(|(len, _)| *len)?;
        self.last = Some(now);
        Some(peer)
    }

    /// When [`Crowd::surplus`] may have one next.
    pub(crate) fn next_due(&self, target: usize) -> Option<Time> {
        if self.used.len() <= enough(target) {
            return None;
        }
        let idle = self.used.values().min().map(|used| *used + IDLE)?;
        Some(self.last.map_or(idle, |last| idle.max(last + STEP)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u8) -> DeviceId {
        DeviceId([n; 32])
    }

    #[test]
    fn what_is_more_than_needed_and_idle_goes_one_by_one() {
        let mut crowd = Crowd::default();
        for n in 1..=50 {
            crowd.used(Time(0), device(n));
        }
        let mut now = Time(0);
        let mut gone = Vec::new();
        while let Some(due) = crowd.next_due(33) {
            assert!(due > now, "one at a time");
            now = due;
            // Some are in use all the time.
            for n in 1..=5 {
                crowd.used(now, device(n));
            }
            let peer = crowd.surplus(now, &device(0), 33).unwrap();
            assert!(!(1..=5).any(|n| peer == device(n)));
            crowd.left(&peer);
            gone.push(peer);
        }
        assert_eq!(gone.len(), 50 - 37);
        assert!(now >= Time(0) + IDLE);
    }

    #[test]
    fn where_all_are_in_use_or_few_nobody_goes() {
        let mut crowd = Crowd::default();
        for n in 1..=50 {
            crowd.used(Time(0), device(n));
        }
        for second in 1..300 {
            let now = Time(second * 1000);
            for n in 1..=50 {
                crowd.used(now, device(n));
            }
            assert_eq!(crowd.surplus(now, &device(0), 33), None);
        }
        assert_eq!(crowd.next_due(50), None);
        assert_eq!(crowd.surplus(Time(10_000_000), &device(0), 50), None);
    }
}
