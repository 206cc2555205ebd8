//! Which devices hold the pieces of a pack: weighted rendezvous, sites before devices, over packs enough to tell what is to be expected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{count, real};
use crate::plan::Plan;

/// Packs that are placed to tell what is to be expected of all.
const SAMPLES: u32 = 4000;

/// How often, or in which pieces, everything is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// So many whole copies.
    Replicas(usize),
    /// So many pieces, any of which restore the whole, and so many besides.
    Coded(usize, usize),
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicas(1) => write!(f, "1 copy"),
            Self::Replicas(copies) => write!(f, "{copies} copies"),
            Self::Coded(needed, spare) => write!(f, "{needed}+{spare}"),
        }
    }
}

impl Policy {
    /// Those that so many holders can keep.
    pub(super) fn possible(holders: usize) -> impl Iterator<Item = Self> {
        let copies = (1..=4).map(Self::Replicas);
        let coded = [(2, 1), (4, 2), (6, 3), (8, 4), (10, 6)];
        let coded = coded.map(|(needed, spare)| Self::Coded(needed, spare));
        copies
            .chain(coded)
            .filter(move |policy| policy.pieces() <= holders)
    }

    /// Devices that hold a piece of a pack.
    pub fn pieces(self) -> usize {
        match self {
            Self::Replicas(copies) => copies,
            Self::Coded(needed, spare) => needed + spare,
        }
    }

    /// Pieces without which the rest still is the whole.
    pub fn spare(self) -> usize {
        match self {
            Self::Replicas(copies) => copies.saturating_sub(1),
            Self::Coded(_, spare) => spare,
        }
    }

    /// What share of a pack a piece is.
    fn piece(self) -> f64 {
        match self {
            Self::Replicas(_) => 1.0,
            Self::Coded(needed, _) => 1.0 / count(needed.max(1)),
        }
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) policy: Policy,
    /// Of all data, on each device.
    pub(super) share: Vec<f64>,
    /// Devices that hold the pieces of a pack, and how many of the sampled packs they do.
    pub(super) holders: BTreeMap<Vec<usize>, u32>,
    site_of: Vec<usize>,
}

impl Placed {
    /// Places [`SAMPLES`] packs.
    pub(super) fn new(plan: &Plan, policy: Policy) -> Self {
        let site_of: Vec<usize> = plan.devices.iter().map(|device| device.site).collect();
        let holding = |device: &usize| {
            let of = plan.devices.get(*device);
            of.is_some_and(|of| of.capacity != Some(0))
        };
        let holding: Vec<usize> = (0..plan.devices.len()).filter(holding).collect();
        // Devices of which nothing is said are as large as the largest.
        let largest = plan
            .devices
            .iter()
            .filter_map(|device| device.capacity)
            .max();
        let weight = |device: usize| {
            let said = plan.devices.get(device).and_then(|device| device.capacity);
            real(said.or(largest).unwrap_or(1))
        };
        let mut at_site: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for device in &holding {
            let site = site_of.get(*device).copied().unwrap_or(0);
            at_site.entry(site).or_default().push(*device);
        }
        let mut share = vec![0.0; plan.devices.len()];
        let mut holders: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
        for pack in 0..SAMPLES {
            let mut sites: Vec<(f64, Vec<usize>)> = at_site
                .iter()
                .map(|(site, devices)| {
                    let all = devices.iter().map(|device| weight(*device)).sum();
                    let mut devices: Vec<(f64, usize)> = devices
                        .iter()
                        .map(|device| (score(b"device", pack, *device, weight(*device)), *device))
                        .collect();
                    devices.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
                    let devices = devices.into_iter().map(|(_, device)| device);
                    (score(b"site", pack, *site, all), devices.collect())
                })
                .collect();
            sites.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
            let mut chosen = Vec::new();
            let mut round = 0;
            while chosen.len() < policy.pieces() {
                let before = chosen.len();
                for (_, devices) in &sites {
                    if chosen.len() < policy.pieces() {
                        chosen.extend(devices.get(round));
                    }
                }
                if chosen.len() == before {
                    break;
                }
                round += 1;
            }
            chosen.sort_unstable();
            for device in &chosen {
                if let Some(share) = share.get_mut(*device) {
                    *share += policy.piece() / f64::from(SAMPLES);
                }
            }
            *holders.entry(chosen).or_default() += 1;
        }
        Self {
            policy,
            share,
            holders,
            site_of,
        }
    }

    /// Places with more pieces of some pack than may be lost.
    pub(super) fn not_without(&self) -> BTreeSet<usize> {
        let mut sites = BTreeSet::new();
        for holders in self.holders.keys() {
            let mut pieces: BTreeMap<usize, usize> = BTreeMap::new();
            for device in holders {
                let site = self.site_of.get(*device).copied().unwrap_or(0);
                *pieces.entry(site).or_default() += 1;
            }
            let many = pieces.into_iter();
            let many = many.filter(|(_, pieces)| *pieces > self.policy.spare());
            sites.extend(many.map(|(site, _)| site));
        }
        sites
    }
}

/// The smaller, the sooner it is chosen; by weight.
fn score(kind: &[u8], pack: u32, of: usize, weight: f64) -> f64 {
    let text = [kind, &pack.to_le_bytes(), &(of as u64).to_le_bytes()].concat();
    let hash = blake3::hash(&text);
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    // Between zero and one, and neither.
    let chance = (f64::from(u32::from_le_bytes(first)) + 0.5) / 4_294_967_296.0;
    -chance.ln() / weight.max(1e-9)
}
