//! Which devices hold the pieces of a pack, as placement has it, over packs enough to tell what is to be expected.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, PackId};
use kith_object::key::derive;
use kith_protocol::placement::{Holder, Placement, Policy, Redundancy, SCHEMES};

use crate::plan::Plan;

/// Packs that are placed to tell what is to be expected of all.
const SAMPLES: u32 = 4000;
/// What each device holds where nothing is said of any, bytes.
const USUAL: u64 = 1 << 40;

/// Those that so many holders can keep.
pub(super) fn possible(holders: usize) -> impl Iterator<Item = Redundancy> {
    let copies = (1..=4).map(Redundancy::Replicas);
    let coded = SCHEMES.map(|(needed, spare)| Redundancy::Erasure(needed, spare));
    copies
        .chain(coded)
        .filter(move |policy| policy.pieces() <= holders)
}

/// What share of a pack a piece is.
fn piece(of: Redundancy) -> f64 {
    match of {
        Redundancy::Replicas(_) => 1.0,
        Redundancy::Erasure(needed, _) => 1.0 / f64::from(needed.max(1)),
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) policy: Redundancy,
    /// Of all data, on each device.
    pub(super) share: Vec<f64>,
    /// Devices that hold the pieces of a pack, and how many of the sampled packs they do.
    pub(super) holders: BTreeMap<Vec<usize>, u32>,
    site_of: Vec<usize>,
}

impl Placed {
    /// Places [`SAMPLES`] packs.
    pub(super) fn new(plan: &Plan, policy: Redundancy) -> Self {
        let site_of: Vec<usize> = plan.devices.iter().map(|device| device.site).collect();
        // Devices of which nothing is said are as large as the largest.
        let largest = plan
            .devices
            .iter()
            .filter_map(|device| device.capacity)
            .max();
        let name = |device: usize| DeviceId(derive("kith plan device 1", &device.to_le_bytes()));
        let all = plan.devices.iter().enumerate();
        let holding: Vec<Holder> = all
            .map(|(place, device)| Holder {
                device: name(place),
                site: device.site.to_string(),
                capacity: device.capacity.or(largest).unwrap_or(USUAL),
            })
            .collect();
        let places: BTreeMap<DeviceId, usize> = holding
            .iter()
            .map(|holder| holder.device)
            .zip(0..)
            .collect();
        let wanted = Policy {
            redundancy: Some(policy),
            ..Policy::default()
        };
        let placement = Placement::as_far_as_possible(&holding, &wanted).ok();
        let mut share = vec![0.0; plan.devices.len()];
        let mut holders: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
        for pack in 0..SAMPLES {
            let pack = PackId(derive("kith plan pack 1", &pack.to_le_bytes()));
            let placed = placement.iter().flat_map(|of| of.holders(&pack));
            let mut chosen: Vec<usize> = placed
                .filter_map(|device| places.get(&device).copied())
                .collect();
            chosen.sort_unstable();
            for device in &chosen {
                if let Some(share) = share.get_mut(*device) {
                    *share += piece(policy) / f64::from(SAMPLES);
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
