//! The DHT as devices see it: tables of those they have met, and lookups that go from one to the next.
//!
//! Figures are those of rust-libp2p's Kademlia, which Kith leaves as they are; compared with real swarms in `tests/calibration.rs`.
//! Spec: `protocol/spec/simulation.md`, "DHT".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kith_object::id::DeviceId;
use kith_object::key::Rng;

/// Devices in a bucket, devices that keep a record, devices that an answer names.
pub const CLOSEST: usize = 20;
/// Devices asked at once.
const AT_ONCE: usize = 3;

type Key = [u8; 32];
/// How far a device is from a key: the first half of the distance, which no two share.
type Far = u128;

/// What all devices know of each other.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    keys: Vec<Key>,
    /// By device and bucket.
    buckets: Vec<BTreeMap<usize, Vec<usize>>>,
}

/// What a lookup came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Those closest to the key that answered, the closest first.
    pub closest: Vec<usize>,
    /// Who was asked, answering or not, in order.
    pub asked: Vec<usize>,
    /// How many were asked one after the other until the closest was found.
    pub hops: u32,
}

fn half(key: &Key) -> Far {
    Far::from_be_bytes(key.first_chunk().copied().unwrap_or_default())
}

/// Leading zeros.
fn depth(distance: Far) -> usize {
    usize::try_from(distance.leading_zeros()).unwrap_or(0)
}

impl Tables {
    /// Of devices that have not met yet.
    pub fn new(devices: &[DeviceId]) -> Self {
        Self {
            keys: devices
                .iter()
                .map(|id| *blake3::hash(&id.0).as_bytes())
                .collect(),
            buckets: vec![BTreeMap::new(); devices.len()],
        }
    }

    fn key(&self, device: usize) -> Key {
        self.keys.get(device).copied().unwrap_or_default()
    }

    fn far(&self, device: usize, key: Far) -> Far {
        self.keys.get(device).map_or(0, half) ^ key
    }

    /// Two devices are connected: each notes the other, where it has room.
    pub fn meet(&mut self, one: usize, other: usize) {
        let depth = depth(self.far(one, half(&self.key(other))));
        for (here, there) in [(one, other), (other, one)] {
            let Some(buckets) = self.buckets.get_mut(here) else {
                continue;
            };
            let bucket = buckets.entry(depth).or_default();
            if bucket.len() < CLOSEST && !bucket.contains(&there) && one != other {
                bucket.push(there);
            }
        }
    }

    /// Those that a device knows, closest to a key first.
    fn known(&self, at: usize, key: Far) -> Vec<(Far, usize)> {
        let buckets = self.buckets.get(at);
        let known = buckets.into_iter().flatten().flat_map(|(_, list)| list);
        let known = known.map(|device| (self.far(*device, key), *device));
        let mut known: Vec<(Far, usize)> = known.collect();
        if known.len() > CLOSEST {
            known.select_nth_unstable(CLOSEST);
            known.truncate(CLOSEST);
        }
        known.sort_unstable();
        known
    }

    /// A device looks for itself, and then for somebody at each distance up to that of its nearest, as it does when it joins.
    pub fn join(&mut self, device: usize, rng: &mut Rng, answers: impl Fn(usize) -> bool) {
        let own = self.key(device);
        self.lookup(device, &own, &answers);
        let buckets = self.buckets.get(device);
        let nearest = buckets.and_then(|buckets| buckets.keys().next_back().copied());
        for far in 0..nearest.unwrap_or(0) {
            // The first bits of its own key, then another one, then any.
            let mut key: Key = rng.bytes();
            for bit in 0..=far {
                let (Some(byte), Some(mine)) = (key.get_mut(bit / 8), own.get(bit / 8)) else {
                    continue;
                };
                let mask = 128 >> (bit % 8);
                let wanted = (mine & mask) ^ if bit == far { mask } else { 0 };
                *byte = (*byte & !mask) | wanted;
            }
            self.lookup(device, &key, &answers);
        }
    }

    /// Looks for those closest to a key; `answers` says who does.
    pub fn lookup(&mut self, from: usize, key: &Key, answers: impl Fn(usize) -> bool) -> Lookup {
        // By distance: who it is, and on how many hops it became known.
        let key = half(key);
        let mut found: BTreeMap<Far, (usize, u32)> = BTreeMap::new();
        let mut done: BTreeMap<usize, bool> = BTreeMap::from([(from, false)]);
        let mut asked = Vec::new();
        for (at, device) in self.known(from, key) {
            found.insert(at, (device, 1));
        }
        let mut under_way: VecDeque<(usize, u32)> = VecDeque::new();
        // So many answers in a row brought nobody closer than the closest known.
        let mut idle = 0;
        loop {
            // Once nobody closer turns up, as many are asked at once as are wanted.
            let room = if idle < AT_ONCE { AT_ONCE } else { CLOSEST };
            let mut best = 0;
            let mut sure = true;
            for (device, hop) in found.values() {
                match done.get(device) {
                    Some(true) if sure => best += 1,
                    Some(_) => {}
                    None if under_way.iter().any(|(other, _)| other == device) => sure = false,
                    None if under_way.len() < room => {
                        sure = false;
                        asked.push(*device);
                        under_way.push_back((*device, *hop));
                    }
                    None => break,
                }
                if best >= CLOSEST {
                    break;
                }
            }
            if best >= CLOSEST {
                break;
            }
            let Some((device, hop)) = under_way.pop_front() else {
                break;
            };
            let answered = answers(device);
            done.insert(device, answered);
            if !answered {
                continue;
            }
            // Being asked is how devices meet.
            self.meet(from, device);
            let closest = found.keys().next().copied();
            let mut nearer = found.len() < CLOSEST;
            for (at, told) in self.known(device, key) {
                if told != from && !found.contains_key(&at) {
                    nearer |= closest.is_none_or(|closest| at < closest);
                    found.insert(at, (told, hop + 1));
                }
            }
            idle = if nearer { 0 } else { idle + 1 };
        }
        let answered = found
            .values()
            .filter(|(device, _)| done.get(device) == Some(&true));
        let closest: Vec<(usize, u32)> = answered.take(CLOSEST).copied().collect();
        Lookup {
            hops: closest.first().map_or(0, |(_, hop)| *hop),
            closest: closest.into_iter().map(|(device, _)| device).collect(),
            asked,
        }
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        for (device, buckets) in self.buckets.iter().enumerate() {
            for bucket in buckets.values() {
                let once: BTreeSet<&usize> = bucket.iter().collect();
                assert!(bucket.len() <= CLOSEST && once.len() == bucket.len());
                assert!(!bucket.contains(&device), "nobody is in its own table");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(devices: usize, met: usize) -> Tables {
        let mut rng = Rng::from_seed([3; 32]);
        let ids: Vec<DeviceId> = (0..devices).map(|_| DeviceId(rng.bytes())).collect();
        let mut tables = Tables::new(&ids);
        for one in 0..devices {
            for _ in 0..met {
                let other = usize::try_from(rng.below(devices as u64)).unwrap();
                tables.meet(one, other);
            }
        }
        tables
    }

    #[test]
    fn lookups_find_those_who_are_closest_of_all() {
        let mut tables = tables(1000, 20);
        let mut rng = Rng::from_seed([4; 32]);
        for device in 0..1000 {
            tables.join(device, &mut rng, |_| true);
        }
        tables.check_invariants();
        let mut hops = Vec::new();
        for nth in 0..50u8 {
            let key = *blake3::hash(&[nth]).as_bytes();
            let mut all: Vec<usize> = (0..1000).collect();
            all.sort_by_key(|device| tables.far(*device, half(&key)));
            let from = usize::from(nth) * 7;
            let found = tables.lookup(from, &key, |_| true);
            let best: Vec<usize> = all.into_iter().filter(|d| *d != from).take(10).collect();
            let hit = best.iter().filter(|device| found.closest.contains(device));
            assert!(hit.count() >= 9, "{nth}");
            assert!(
                (CLOSEST..80).contains(&found.asked.len()),
                "{}",
                found.asked.len()
            );
            hops.push(found.hops);
            tables.check_invariants();
        }
        hops.sort_unstable();
        assert!((2..=5).contains(&hops[25]), "{hops:?}");
    }

    #[test]
    fn of_few_all_are_asked_and_who_is_away_is_passed_over() {
        let mut tables = tables(8, 20);
        let key = [9; 32];
        let found = tables.lookup(0, &key, |device| device != 3);
        assert_eq!(found.closest.len(), 6);
        assert!(found.asked.contains(&3) && !found.closest.contains(&3));
        assert_eq!(depth(0), 128);
        assert_eq!(depth(half(&[1; 32])), 7);
    }
}
