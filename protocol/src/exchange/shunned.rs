//! Whom nothing is asked of for a while: it sent what it should not, and was cut off.

use std::collections::BTreeMap;

use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

/// For how long, the first time; four times as long each time more.
const FIRST: Span = Span::from_secs(5);
/// And at most; after as long without another offence it begins anew.
const MOST: Span = Span::from_secs(3600);
/// Most devices remembered.
pub(super) const SHUNNED_MAX: usize = 1024;

/// Devices that were cut off.
#[derive(Debug, Default)]
pub(super) struct Shunned {
    devices: BTreeMap<DeviceId, Offence>,
}

#[derive(Debug, Clone, Copy)]
struct Offence {
    until: Time,
    lasts: Span,
}

impl Shunned {
    /// That device was cut off.
    pub(super) fn offends(&mut self, now: Time, device: DeviceId) {
        let before = self.devices.get(&device).copied();
        let lately = before.filter(|offence| now < offence.until + MOST);
        let lasts = lately.map_or(FIRST, |offence| {
            Span(offence.lasts.0.saturating_mul(4)).min(MOST)
        });
        let until = now + lasts;
        if self.devices.len() >= SHUNNED_MAX && before.is_none() {
            // Whose time is up first.
            let first = self.devices.iter().min_by_key(|(_, offence)| offence.until);
            if let Some(first) = first.map(|(device, _)| *device) {
                self.devices.remove(&first);
            }
        }
        self.devices.insert(device, Offence { until, lasts });
    }

    /// Until when nothing is asked of it, if that is still to come.
    pub(super) fn until(&self, now: Time, device: &DeviceId) -> Option<Time> {
        let until = self.devices.get(device)?.until;
        (until > now).then_some(until)
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offence_costs_four_times_the_last_up_to_an_hour() {
        let mut shunned = Shunned::default();
        let device = DeviceId([1; 32]);
        let mut now = Time(1000);
        let mut waits = Vec::new();
        for _ in 0..8 {
            shunned.offends(now, device);
            let until = shunned.until(now, &device).unwrap();
            assert_eq!(shunned.until(until, &device), None);
            waits.push(until.since(now).as_ms() / 1000);
            now = until + Span(10);
        }
        assert_eq!(waits, [5, 20, 80, 320, 1280, 3600, 3600, 3600]);
        now = now + MOST;
        shunned.offends(now, device);
        assert_eq!(shunned.until(now, &device), Some(now + FIRST));
    }

    #[test]
    fn as_many_as_there_is_room_for() {
        let mut shunned = Shunned::default();
        for nth in 0..2 * SHUNNED_MAX {
            let mut device = [0; 32];
            device[..8].copy_from_slice(&(nth as u64).to_le_bytes());
            shunned.offends(Time(nth as u64), DeviceId(device));
        }
        assert_eq!(shunned.len(), SHUNNED_MAX);
    }
}
