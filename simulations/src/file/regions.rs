//! Lines of the usual kinds, and how far regions of the world are from each other.
//!
//! The figures are round ones: of round trips as providers of computers in several regions publish them, and of lines as people have them at home and on the road.
//! Spec: `protocol/spec/simulation.md`, "Kinds and regions".

use crate::plan::Access;

const MEGABIT: u64 = 1_000_000;

/// A usual kind of line.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Bits a second.
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) access: Access,
}

const fn kind(name: &'static str, (up, down): (u64, u64), latency: (u64, u64), loss: u64) -> Kind {
    Kind {
        name,
        up: up * MEGABIT,
        down: down * MEGABIT,
        access: Access { latency, loss },
    }
}

/// All of them.
pub(super) const KINDS: [Kind; 6] = [
    kind("datacentre", (1000, 1000), (0, 1), 0),
    kind("fibre", (100, 300), (1, 3), 0),
    kind("cable", (20, 250), (5, 15), 500),
    kind("dsl", (10, 50), (8, 25), 1000),
    kind("mobile", (10, 40), (20, 80), 3000),
    kind("satellite", (15, 100), (25, 60), 5000),
];

/// Regions, in the order of [`ROUND_TRIPS`].
pub(super) const REGIONS: [&str; 9] = [
    "europe-west",
    "europe-central",
    "america-east",
    "america-west",
    "america-south",
    "asia-south",
    "asia-east",
    "asia-southeast",
    "oceania",
];

/// Milliseconds there and back, from each region to those before it.
const ROUND_TRIPS: [&[u64]; 9] = [
    &[],
    &[25],
    &[75, 90],
    &[135, 150, 65],
    &[180, 205, 115, 175],
    &[125, 120, 190, 220, 300],
    &[215, 230, 150, 105, 255, 125],
    &[175, 160, 215, 170, 325, 60, 70],
    &[260, 255, 200, 140, 310, 150, 105, 95],
];
/// Within a region.
const NEAR: (u64, u64) = (2, 8);

/// One way between two regions, at least and at most, milliseconds.
pub(super) fn latency(one: usize, other: usize) -> (u64, u64) {
    let (less, more) = (one.min(other), one.max(other));
    let trips = ROUND_TRIPS.get(more).and_then(|row| row.get(less));
    trips.map_or(NEAR, |there_and_back| {
        (there_and_back / 2, there_and_back * 3 / 4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_is_somewhere_and_no_way_round_is_much_shorter() {
        for (one, row) in ROUND_TRIPS.iter().enumerate() {
            assert_eq!(row.len(), one);
            for other in 0..REGIONS.len() {
                let direct = latency(one, other);
                assert!(direct.0 > 0 && direct.1 > direct.0);
                assert_eq!(direct, latency(other, one));
                for via in 0..REGIONS.len() {
                    let round = latency(one, via).0 + latency(via, other).0;
                    assert!(direct.0 <= round * 5 / 4 + NEAR.1, "{one} {via} {other}");
                }
            }
        }
    }
}
