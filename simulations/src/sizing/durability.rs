//! How likely something is lost in a year.
//!
//! Each device is lost by itself at a steady rate, and what it held is missing until it is made again: grace, then the time to move it. Of a pack more pieces are
//! lost than it can do without when, while as many are missing as it can do without, one more device is lost.
//!
//! Spec: `protocol/spec/durability.md`.

use std::collections::BTreeSet;

use super::placing::Placed;
use super::{DAY, FAILS, SITE_FAILS, count, real};
use crate::plan::Plan;

/// Seconds before a silent device counts as gone: one that is always on, any other (`device.md`).
pub(super) const GRACE_ALWAYS_ON: f64 = 48.0 * 3600.0;
pub(super) const GRACE_OTHERS: f64 = 14.0 * DAY;
/// Bytes of a pack.
const PACK_BYTES: u64 = 16 << 20;
const YEAR: f64 = 365.25 * DAY;

/// The chance that anything is lost in a year, at most: packs are taken to be lost independently, as many as there are or as there are sets of holders.
pub(super) fn loss_a_year(plan: &Plan, placed: &Placed, data: u64, line: f64) -> f64 {
    // For each device: losses in a year, and the chance at any time that what it held is missing.
    let devices: Vec<(f64, f64)> = plan
        .devices
        .iter()
        .zip(&placed.share)
        .map(|(device, share)| {
            let fails = device.fails.map_or(FAILS, |parts| real(parts) / 1e6);
            let rate = -(1.0 - fails.min(0.999)).ln();
            let grace = if device.online.is_some() {
                GRACE_OTHERS
            } else {
                GRACE_ALWAYS_ON
            };
            let window = grace + share * real(data) / (line / 2.0);
            (rate, (rate * window / YEAR).min(1.0))
        })
        .collect();
    let spare = placed.policy.spare();
    let mut rate = 0.0;
    let mut sampled = 0.0;
    for (holders, packs) in &placed.holders {
        let holders: Vec<(f64, f64)> = holders
            .iter()
            .filter_map(|device| devices.get(*device).copied())
            .collect();
        rate += f64::from(*packs) * pack_loss_rate(&holders, spare);
        sampled += f64::from(*packs);
    }
    let packs = real(data.div_ceil(PACK_BYTES).max(1));
    let holding = placed.share.iter().filter(|share| **share > 0.0).count();
    let sets = packs.min(combinations(holding, placed.policy.pieces()));
    let places: BTreeSet<usize> = placed.not_without();
    let all = sets * rate / f64::max(sampled, 1.0) + SITE_FAILS * count(places.len());
    1.0 - (-all).exp()
}

/// How often in a year one of these is lost while `spare` others are missing.
fn pack_loss_rate(holders: &[(f64, f64)], spare: usize) -> f64 {
    let mut sum = 0.0;
    for (place, (rate, _)) in holders.iter().enumerate() {
        // By how many others are missing: the chance of that.
        let mut missing = vec![1.0];
        for (other, (_, chance)) in holders.iter().enumerate() {
            if other == place {
                continue;
            }
            let mut next = vec![0.0; missing.len() + 1];
            for (number, of) in missing.iter().enumerate() {
                if let Some(stays) = next.get_mut(number) {
                    *stays += of * (1.0 - chance);
                }
                if let Some(grows) = next.get_mut(number + 1) {
                    *grows += of * chance;
                }
            }
            missing = next;
        }
        sum += rate * missing.iter().skip(spare).sum::<f64>();
    }
    sum
}

fn combinations(of: usize, taken: usize) -> f64 {
    (0..taken)
        .map(|place| count(of.saturating_sub(place)) / count(place + 1))
        .product::<f64>()
        .max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against chance itself: devices that break and are made again, over many years.
    #[test]
    fn rate_is_that_of_many_years_thrown_by_chance() {
        use kith_object::key::Rng;
        let mut rng = Rng::from_seed([1; 32]);
        for (holders, spare, rate) in [(2, 1, 1.5), (3, 1, 0.8), (6, 2, 2.0)] {
            let window = 0.05;
            let steps_a_year = 1000_u32;
            let years = 3000_u32;
            let chance = rate / f64::from(steps_a_year);
            let mut back = vec![0_u64; holders];
            let mut lost = 0.0;
            for step in 0..u64::from(years * steps_a_year) {
                for device in 0..holders {
                    let hit = real(rng.below(1_000_000)) / 1e6 < chance;
                    if back[device] <= step && hit {
                        let missing = back.iter().filter(|back| **back > step).count();
                        lost += if missing >= spare { 1.0 } else { 0.0 };
                        back[device] = step + 50;
                    }
                }
            }
            let thrown = lost / f64::from(years);
            let worked_out = pack_loss_rate(&vec![(rate, rate * window); holders], spare);
            let ratio = worked_out / thrown;
            assert!(
                (0.8..1.35).contains(&ratio),
                "{holders} {spare}: {worked_out} {thrown}"
            );
        }
    }

    #[test]
    fn numbers_of_sets_are_right() {
        assert!((combinations(6, 2) - 15.0).abs() < 1e-9);
        assert!((combinations(16, 16) - 1.0).abs() < 1e-9);
    }
}
