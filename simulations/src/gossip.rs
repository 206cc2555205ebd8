//! The mesh of gossip over the connections of the devices, as gossipsub keeps it: whom a message goes on to.
//!
//! Figures are those of rust-libp2p, which Kith leaves as they are; compared with real swarms in `tests/calibration.rs`.
//! Spec: `protocol/spec/simulation.md`, "Gossip".

use std::collections::{BTreeMap, BTreeSet};

use kith_object::key::Rng;

/// A device with fewer neighbours in the mesh takes in more, up to as many as it should have; one with most takes in no more.
const LOW: usize = 5;
const WANTED: usize = 6;
const HIGH: usize = 12;
/// So many others are told of a message by name.
const LAZY: usize = 6;

/// Who is connected with whom, and who passes messages on to whom.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    links: Vec<BTreeSet<usize>>,
    mesh: Vec<BTreeSet<usize>>,
}

impl Overlay {
    /// So many devices, none of them connected.
    pub fn new(devices: usize) -> Self {
        Self {
            links: vec![BTreeSet::new(); devices],
            mesh: vec![BTreeSet::new(); devices],
        }
    }

    /// These two are connected now.
    pub fn connect(&mut self, one: usize, other: usize) {
        self.link(one, other, true);
        if self.degree(one) < LOW || self.degree(other) < LOW {
            self.graft(one, other);
        }
    }

    /// They are not any more; whoever has too few neighbours left takes in others.
    pub fn disconnect(&mut self, one: usize, other: usize, rng: &mut Rng) {
        self.link(one, other, false);
        let were = self
            .mesh
            .get_mut(one)
            .is_some_and(|mesh| mesh.remove(&other));
        if let Some(mesh) = self.mesh.get_mut(other) {
            mesh.remove(&one);
        }
        if were {
            self.heartbeat(one, rng);
            self.heartbeat(other, rng);
        }
    }

    fn link(&mut self, one: usize, other: usize, up: bool) {
        for (here, there) in [(one, other), (other, one)] {
            if let Some(links) = self.links.get_mut(here) {
                match up {
                    true => links.insert(there),
                    false => links.remove(&there),
                };
            }
        }
    }

    fn degree(&self, device: usize) -> usize {
        self.mesh.get(device).map_or(0, BTreeSet::len)
    }

    /// The other takes it, unless it has most.
    fn graft(&mut self, one: usize, other: usize) {
        if self.degree(one) >= HIGH || self.degree(other) >= HIGH {
            return;
        }
        for (here, there) in [(one, other), (other, one)] {
            if let Some(mesh) = self.mesh.get_mut(here) {
                mesh.insert(there);
            }
        }
    }

    /// Takes in others if there are too few.
    pub fn heartbeat(&mut self, device: usize, rng: &mut Rng) {
        if self.degree(device) >= LOW {
            return;
        }
        let mut others = self.beside(device);
        while self.degree(device) < WANTED && !others.is_empty() {
            let place = usize::try_from(rng.below(others.len() as u64)).unwrap_or(0);
            let other = others.swap_remove(place);
            self.graft(device, other);
        }
    }

    /// Connected, but not in the mesh.
    fn beside(&self, device: usize) -> Vec<usize> {
        let mesh = self.mesh.get(device);
        let links = self.links.get(device).into_iter().flatten();
        let beside = links.filter(|other| mesh.is_none_or(|mesh| !mesh.contains(other)));
        beside.copied().collect()
    }

    /// Whom a device is connected with: all of them get what it publishes itself.
    pub fn links(&self, device: usize) -> impl Iterator<Item = usize> + '_ {
        self.links.get(device).into_iter().flatten().copied()
    }

    /// Whom it passes on to what others published.
    pub fn mesh(&self, device: usize) -> impl Iterator<Item = usize> + '_ {
        self.mesh.get(device).into_iter().flatten().copied()
    }

    /// Whom it tells, at its next heartbeat, what it has lately got.
    pub fn lazily(&self, device: usize, rng: &mut Rng) -> Vec<usize> {
        let mut others = self.beside(device);
        let mut told = Vec::new();
        // A quarter of them, where that is more.
        let count = LAZY.max(others.len() / 4);
        while told.len() < count && !others.is_empty() {
            let place = usize::try_from(rng.below(others.len() as u64)).unwrap_or(0);
            told.push(others.swap_remove(place));
        }
        told
    }

    /// Whether anybody is told by name only.
    pub fn has_others(&self, device: usize) -> bool {
        let links = self.links.get(device).map_or(0, BTreeSet::len);
        links > self.degree(device)
    }

    /// How one message spreads, when some hops take longer than others: over how many hops each device gets it, and how often it is sent in all.
    pub fn wave(&self, from: usize, rng: &mut Rng) -> (Vec<Option<u32>>, u64) {
        let mut hops = vec![None; self.links.len()];
        // By when it arrives, and a number.
        let mut under_way: BTreeMap<(u64, u64), (usize, usize, u32)> = BTreeMap::new();
        let mut sent = 0;
        let mut send = |at: u64, from: usize, to: usize, hop: u32, queue: &mut BTreeMap<_, _>| {
            sent += 1;
            queue.insert((at + 50 + rng.below(100), sent), (from, to, hop));
        };
        if let Some(hop) = hops.get_mut(from) {
            *hop = Some(0);
        }
        for to in self.links(from) {
            send(0, from, to, 1, &mut under_way);
        }
        while let Some(((at, _), (before, device, hop))) = under_way.pop_first() {
            let Some(slot) = hops.get_mut(device).filter(|slot| slot.is_none()) else {
                continue;
            };
            *slot = Some(hop);
            for to in self.mesh(device).filter(|to| *to != before && *to != from) {
                send(at, device, to, hop + 1, &mut under_way);
            }
        }
        (hops, sent)
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        for (device, mesh) in self.mesh.iter().enumerate() {
            assert!(mesh.len() <= HIGH, "neighbours in the mesh are bounded");
            for other in mesh {
                let both = |list: &[BTreeSet<usize>]| {
                    list.get(*other).is_some_and(|of| of.contains(&device))
                };
                assert!(both(&self.mesh) && both(&self.links), "both know");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_all_in_the_mesh_and_of_many_each_has_some() {
        let mut rng = Rng::from_seed([1; 32]);
        let mut few = Overlay::new(5);
        for one in 0..5 {
            for other in 0..one {
                few.connect(one, other);
            }
        }
        assert!((0..5).all(|device| few.mesh(device).count() == 4 && !few.has_others(device)));
        let mut many = Overlay::new(300);
        for one in 0..300usize {
            for _ in 0..15 {
                let other = usize::try_from(rng.below(300)).unwrap();
                if other != one {
                    many.connect(one, other);
                }
            }
        }
        let (hops, sent) = many.wave(7, &mut rng);
        assert!(hops.iter().all(Option::is_some));
        assert!(sent > 1000 && sent < 300 * 13, "{sent}");
        for _ in 0..500 {
            let one = usize::try_from(rng.below(300)).unwrap();
            let other = many.links(one).next();
            if let Some(other) = other {
                many.disconnect(one, other, &mut rng);
            }
            many.check_invariants();
        }
        // Whoever lost neighbours has others.
        let (hops, _) = many.wave(7, &mut rng);
        assert!(hops.iter().filter(|hop| hop.is_some()).count() > 290);
        assert!(many.lazily(7, &mut rng).iter().all(|to| *to != 7));
    }
}
