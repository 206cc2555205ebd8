//! Scenarios that come with Kith.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_crdt::access::{Newcomer, Role};
use kith_crdt::replica::Replica;
use kith_object::id::SpaceId;
use kith_object::key::{DeviceKeys, Rng, Words};
use kith_object::time::{Span, Time};

use crate::check;
use crate::world::{Act, Rules, World};

/// A way to run a mesh.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    name: &'static str,
    rules: Rules,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    trace: String,
    hash: String,
    events: u64,
    virtual_ms: u64,
    promises: usize,
    read_back: u64,
    failures: Vec<String>,
}

impl Report {
    /// Every event, a line each.
    pub fn trace_text(&self) -> &str {
        &self.trace
    }

    /// A hash over them.
    pub fn trace_hash(&self) -> &str {
        &self.hash
    }

    /// How many there are.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Virtual time of the run.
    pub fn virtual_ms(&self) -> u64 {
        self.virtual_ms
    }

    /// How many puts were acknowledged.
    pub fn promises(&self) -> usize {
        self.promises
    }

    /// How many objects were read back whole on other devices.
    pub fn read_back(&self) -> u64 {
        self.read_back
    }

    /// What went wrong.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

/// Five devices of which all are members, two admins.
const FIVE: Rules = Rules {
    devices: 5,
    admins: 2,
    spread_entries: true,
    anti_entropy: true,
};

const ALL: [Scenario; 1] = [Scenario {
    name: "split-brain",
    rules: FIVE,
}];

/// The scenario of that name.
pub fn find(name: &str) -> Option<Scenario> {
    ALL.into_iter().find(|scenario| scenario.name == name)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|scenario| scenario.name)
}

/// Until when the two sides do not see each other.
const HEAL_AT: Span = Span::from_secs(60);
/// When the devices must agree at the latest.
const AGREE_AT: Span = Span::from_secs(300);
/// When everything must have been read back.
const READ_AT: Span = Span::from_secs(360);

impl Scenario {
    /// The same without comparing digests: what gossip did not deliver then stays missing.
    #[must_use]
    pub fn without_anti_entropy(mut self) -> Self {
        self.rules.anti_entropy = false;
        self
    }

    /// The same without gossip of entries: everything goes by comparing digests.
    #[must_use]
    pub fn without_gossip(mut self) -> Self {
        self.rules.spread_entries = false;
        self
    }

    /// Runs it.
    pub fn run(&self, seed: u64) -> Report {
        let mut world = World::new(seed, self.rules);
        split_brain(&mut world, seed);
        world.run_until(AGREE_AT);
        let mut failures = check::agreement(&world);
        for device in 0..self.rules.devices {
            world.read_all(device);
        }
        world.run_until(READ_AT);
        if world.reads_open() > 0 {
            failures.push(format!(
                "{} reads of acknowledged objects do not end",
                world.reads_open()
            ));
        }
        failures.extend(world.failures.iter().cloned());
        failures.dedup();
        Report {
            hash: world.trace.hash(),
            trace: world.trace.text().to_owned(),
            events: world.trace.events(),
            virtual_ms: world.elapsed().as_ms(),
            promises: world.promises().len(),
            read_back: world.read_back(),
            failures,
        }
    }
}

/// Concurrent puts, moves and removes on both sides of a partition, crash and restart of two, heal.
fn split_brain(world: &mut World, seed: u64) {
    let mut rng = Rng::from_seed(kith_object::key::derive(
        "kith split-brain 1",
        &seed.to_le_bytes(),
    ));
    let names = [
        "/a.txt",
        "/b.txt",
        "/notes/one",
        "/notes/two",
        "/photos/lake.jpg",
        "/photos/old/sea.jpg",
        "/big",
    ];
    let folders = ["/notes", "/photos", "/photos/old", "/moved", "/notes/inner"];
    let pick = |rng: &mut Rng, from: &[&str]| {
        let place = usize::try_from(rng.below(from.len() as u64)).unwrap_or(0);
        (*from.get(place).unwrap_or(&"/x")).to_owned()
    };
    // Before, while and after the two sides are apart.
    for _ in 0..60 {
        let at = Span(rng.below(HEAL_AT.as_ms() + 20_000));
        let device = usize::try_from(rng.below(5)).unwrap_or(0);
        let act = match rng.below(10) {
            0..6 => {
                let len = match rng.below(8) {
                    0 => rng.below(1_500_000),
                    _ => rng.below(4_000),
                };
                let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
                rng.fill(&mut content);
                Act::Put {
                    device,
                    path: pick(&mut rng, &names),
                    content,
                }
            }
            6..8 => {
                let from = if rng.below(2) == 0 {
                    pick(&mut rng, &names)
                } else {
                    pick(&mut rng, &folders)
                };
                let to = format!("{}/m{}", pick(&mut rng, &folders), rng.below(4));
                Act::Move { device, from, to }
            }
            _ => {
                let path = if rng.below(3) == 0 {
                    pick(&mut rng, &folders)
                } else {
                    pick(&mut rng, &names)
                };
                Act::Remove { device, path }
            }
        };
        world.at(at, act);
    }
    let left: BTreeSet<usize> = if rng.below(2) == 0 {
        [0, 1].into()
    } else {
        [0, 3].into()
    };
    let right = (0..5).filter(|device| !left.contains(device)).collect();
    world.at(Span::from_secs(10), Act::Partition(vec![left, right]));
    // One on each side, most of the time.
    for device in [0, 2] {
        let device = device + usize::try_from(rng.below(2)).unwrap_or(0);
        let down = Span(12_000 + rng.below(40_000));
        world.at(down, Act::Crash(device));
        world.at(Span(down.0 + 500 + rng.below(20_000)), Act::Start(device));
    }
    world.at(HEAL_AT, Act::Heal);
}

/// Founds a mesh of those devices; returns the entries every one of them begins with.
pub(crate) fn found_mesh(
    keys: &[DeviceKeys],
    admins: usize,
    now: Time,
    rng: &mut Rng,
) -> (SpaceId, Vec<Bytes>) {
    let words = Words::generate(rng);
    let root = words.root();
    let first = keys.first().expect("a mesh has a device");
    let (mut replica, mut entries) =
        Replica::create(&root, first, "d0", now, rng).expect("a mesh can be founded");
    for (place, keys) in keys.iter().enumerate().skip(1) {
        let role = if place < admins {
            Role::Admin
        } else {
            Role::Member
        };
        let newcomer = Newcomer {
            device: keys.id(),
            agree: keys.agree_public(),
            name: format!("d{place}"),
            role,
        };
        let admitted = if role == Role::Admin {
            replica.admit_by_root(&root, now, rng, &newcomer)
        } else {
            replica.admit(first, now, rng, &newcomer)
        };
        entries.extend(admitted.expect("the root and the first device may admit"));
    }
    let entries = entries
        .iter()
        .map(|entry| Bytes::from(entry.encode()))
        .collect();
    (replica.space(), entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_trace_and_another_seed_another() {
        let scenario = find("split-brain").unwrap();
        let (one, same, other) = (scenario.run(1), scenario.run(1), scenario.run(2));
        assert!(one.trace_text() == same.trace_text());
        assert!(one.trace_text() != other.trace_text());
        assert_eq!(one.trace_hash(), same.trace_hash());
    }

    #[test]
    fn two_hundred_seeds_end_in_agreement() {
        let scenario = find("split-brain").unwrap();
        for seed in 1..=200 {
            let report = scenario.run(seed);
            assert!(
                report.failures().is_empty(),
                "seed {seed}: {:?}\nreplay: kith sim run split-brain --seed {seed} --trace FILE",
                report.failures()
            );
            assert!(report.promises() > 5, "seed {seed} puts hardly anything");
            assert_eq!(report.read_back(), 5 * report.promises() as u64);
        }
    }

    #[test]
    fn gossip_of_entries_is_not_needed() {
        for seed in 1..=20 {
            let report = find("split-brain").unwrap().without_gossip().run(seed);
            assert!(
                report.failures().is_empty(),
                "seed {seed}: {:?}",
                report.failures()
            );
        }
    }

    #[test]
    fn without_anti_entropy_the_same_check_fails() {
        let failed = (1..=10).filter(|seed| {
            !find("split-brain")
                .unwrap()
                .without_anti_entropy()
                .run(*seed)
                .failures()
                .is_empty()
        });
        assert_eq!(failed.count(), 10);
    }
}
