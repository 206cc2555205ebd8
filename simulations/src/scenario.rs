//! Scenarios that come with Kith.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use bytes::Bytes;
use kith_crdt::access::{Newcomer, Role};
use kith_crdt::replica::Replica;
use kith_object::id::SpaceId;
use kith_object::key::{DeviceKeys, Rng, Words};
use kith_object::time::{Span, Time};

use crate::check;
use crate::file::{self, FileError};
use crate::plan::Plan;
use crate::schedule::schedule;
use crate::trace::Trace;
use crate::world::World;
use crate::world::record::Record;

/// A way to run a mesh.
#[derive(Debug, Clone)]
pub struct Scenario(Plan);

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Every event, a line each, if they were to be kept.
    pub trace_text: String,
    /// A hash over them.
    pub trace_hash: String,
    /// How many there are.
    pub trace_lines: u64,
    /// Events of the world.
    pub events: u64,
    /// Virtual time of the run.
    pub virtual_ms: u64,
    /// How many puts were acknowledged.
    pub promises: usize,
    /// How many objects were read back whole on the devices.
    pub read_back: u64,
    /// How long entries took from the first device that had them to the last, milliseconds, sorted.
    pub delays_ms: Vec<u64>,
    /// How many hops each lookup in the DHT took, and how many devices were asked in it.
    pub lookups: Vec<(u32, u32)>,
    /// Messages between devices.
    pub messages: u64,
    /// Packets sent again.
    pub lost_packets: u64,
    /// What each device moved.
    pub devices: Vec<Moved>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// What a device sent and got, bytes by purpose.
#[derive(Debug, Clone)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub sent: Vec<(&'static str, u64)>,
    /// Bytes.
    pub got: Vec<(&'static str, u64)>,
    /// Bytes of both that went over a line that is paid for.
    pub metered: u64,
}

impl Report {
    /// That share of the entries, in thousandths, took no longer, milliseconds; nothing if no entry reached all.
    pub fn delay_ms(&self, thousandths: usize) -> Option<u64> {
        let last = self.delays_ms.len().checked_sub(1)?;
        self.delays_ms.get(last * thousandths / 1000).copied()
    }
}

/// Those that come with Kith.
const ALL: [(&str, &str); 9] = [
    ("split-brain", include_str!("../scenarios/split-brain.toml")),
    ("family-five", include_str!("../scenarios/family-five.toml")),
    ("slow-uplink", include_str!("../scenarios/slow-uplink.toml")),
    ("crash-storm", include_str!("../scenarios/crash-storm.toml")),
    (
        "month-of-laptops",
        include_str!("../scenarios/month-of-laptops.toml"),
    ),
    (
        "hostile-neighbour",
        include_str!("../scenarios/hostile-neighbour.toml"),
    ),
    ("lost-phone", include_str!("../scenarios/lost-phone.toml")),
    ("site-fire", include_str!("../scenarios/site-fire.toml")),
    (
        "thousand-nodes",
        include_str!("../scenarios/thousand-nodes.toml"),
    ),
];

/// The scenario of that name.
pub fn find(name: &str) -> Option<Scenario> {
    let plan = file::read(name, text(name)?).expect("scenarios that come with Kith are sound");
    Some(Scenario(plan))
}

/// Its file.
pub fn text(name: &str) -> Option<&'static str> {
    let (_, text) = ALL.iter().find(|(known, _)| *known == name)?;
    Some(text)
}

/// One that somebody wrote.
///
/// # Errors
/// [`FileError`]: the first thing that is wrong, and where.
pub fn of_text(name: &str, text: &str) -> Result<Scenario, FileError> {
    file::read(name, text).map(Scenario)
}

/// Names of those that come with Kith.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

impl Scenario {
    /// What it is about.
    pub fn about(&self) -> &str {
        &self.0.about
    }

    /// The same without comparing digests: what gossip did not deliver then stays missing.
    #[must_use]
    pub fn without_anti_entropy(mut self) -> Self {
        self.0.anti_entropy = false;
        self
    }

    /// The same without gossip of entries: everything goes by comparing digests.
    #[must_use]
    pub fn without_gossip(mut self) -> Self {
        self.0.spread_entries = false;
        self
    }

    /// Runs it.
    pub fn run(&self, seed: u64, keep_trace: bool) -> Report {
        self.go(seed, keep_trace, &mut |world, to| world.run_until(to))
    }

    /// Runs it, and looks at it all along.
    pub fn run_recorded(&self, seed: u64, keep_trace: bool) -> (Report, Record) {
        let plan = &self.0;
        let mut record = Record::default();
        // Reading goes on after that, but happens at once.
        let whole = Span(plan.length.0 + plan.settle.0);
        let report = self.go(seed, keep_trace, &mut |world, to| {
            world.run_recorded(to, whole, &mut record);
        });
        (report, record)
    }

    /// That of a plan.
    pub(crate) fn of_plan(plan: Plan) -> Self {
        Self(plan)
    }

    /// What the run is to be.
    pub fn plan(&self) -> &Plan {
        &self.0
    }

    fn go(
        &self,
        seed: u64,
        keep_trace: bool,
        run_until: &mut dyn FnMut(&mut World, Span),
    ) -> Report {
        let plan = &self.0;
        let mut world = World::new(seed, plan, Trace::new(keep_trace));
        schedule(&mut world, plan, seed);
        run_until(&mut world, plan.length);
        world.all_well();
        let agree_at = Span(plan.length.0 + plan.settle.0);
        run_until(&mut world, agree_at);
        let mut failures = check::agreement(&world);
        failures.extend(world.badly_kept());
        let honest: Vec<usize> = world.honest().map(|(device, _)| device).collect();
        world.forgive_rot();
        world.give_up_the_rest();
        for (nth, device) in honest.iter().enumerate() {
            world.read_all((nth, honest.len()), *device);
        }
        run_until(&mut world, Span(agree_at.0 + plan.read.0));
        if world.reads_open() > 0 {
            let what = format!(
                "{} reads of acknowledged objects do not end",
                world.reads_open()
            );
            failures.push(world.now_that(what));
        }
        world.check_laws();
        for failure in &world.failures {
            if !failures.contains(failure) {
                failures.push(failure.clone());
            }
        }
        let mut delays_ms = std::mem::take(&mut world.delays);
        delays_ms.sort_unstable();
        let network = &world.network;
        let moved = plan
            .devices
            .iter()
            .zip(network.sent.iter().zip(&network.got))
            .zip(&network.metered);
        let devices = moved.map(|((device, (sent, got)), metered)| Moved {
            name: device.name.clone(),
            sent: sent.named(),
            got: got.named(),
            metered: *metered,
        });
        Report {
            trace_hash: world.trace.hash(),
            trace_text: world.trace.text().to_owned(),
            trace_lines: world.trace.events(),
            events: world.events(),
            virtual_ms: world.elapsed().as_ms(),
            promises: world.promises().len(),
            read_back: world.read_back(),
            delays_ms,
            lookups: world.lookups().to_vec(),
            messages: network.messages,
            lost_packets: network.lost,
            devices: devices.collect(),
            failures,
        }
    }
}

/// Founds a mesh of those devices; returns the entries every one of them begins with.
pub(crate) fn found_mesh(
    keys: &[DeviceKeys],
    plan: &Plan,
    now: Time,
    rng: &mut Rng,
) -> (SpaceId, Vec<Bytes>) {
    let words = Words::generate(rng);
    let root = words.root();
    let first = keys.first().expect("a mesh has a device");
    let (mut replica, mut entries) =
        Replica::create(&root, first, "d0", now, rng).expect("a mesh can be founded");
    for (place, (keys, of)) in keys.iter().zip(&plan.devices).enumerate().skip(1) {
        let role = if of.admin { Role::Admin } else { Role::Member };
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

    /// Those that take seconds.
    const SLOW: [&str; 5] = [
        "family-five",
        "month-of-laptops",
        "thousand-nodes",
        "lost-phone",
        "site-fire",
    ];

    /// Those that come with Kith; of a thousand devices one in 25, unless the long form is asked for.
    fn to_test() -> impl Iterator<Item = (&'static str, Scenario)> {
        let large = std::env::var_os("KITH_LARGE").is_some();
        names().map(move |name| {
            let text = text(name).unwrap();
            let lines = text
                .lines()
                .map(|line| match line.strip_prefix("count = ") {
                    Some(count) if name == "thousand-nodes" && !large => {
                        let count: u64 = count.parse().unwrap();
                        format!("count = {}\n", count.div_ceil(25).max(2))
                    }
                    _ => format!("{line}\n"),
                });
            (name, of_text(name, &lines.collect::<String>()).unwrap())
        })
    }

    fn sound(name: &str, seed: u64, scenario: &Scenario) -> Report {
        let report = scenario.run(seed, false);
        assert!(
            report.failures.is_empty(),
            "{name}, seed {seed}: {:?}\nreplay: kith sim run {name} --seed {seed} --trace FILE",
            report.failures
        );
        report
    }

    #[test]
    fn same_seed_gives_the_same_trace_and_another_seed_another() {
        let mut hashes = std::collections::BTreeSet::new();
        for name in names().filter(|name| !SLOW.contains(name)) {
            let scenario = find(name).unwrap();
            let (one, same) = (scenario.run(1, true), scenario.run(1, true));
            assert!(one.trace_text == same.trace_text, "{name}");
            assert_eq!(one.trace_hash, same.trace_hash);
            assert_eq!(one.delays_ms, same.delays_ms);
            assert!(one.events > 1000 && one.trace_lines > 300, "{name}");
            hashes.insert(one.trace_hash);
            hashes.insert(scenario.run(2, false).trace_hash);
        }
        assert_eq!(hashes.len(), 2 * (names().count() - SLOW.len()));
    }

    #[test]
    fn two_hundred_seeds_end_in_agreement() {
        let scenario = find("split-brain").unwrap();
        for seed in 1..=200 {
            let report = sound("split-brain", seed, &scenario);
            assert!(report.promises > 5, "seed {seed} puts hardly anything");
            assert_eq!(report.read_back, 5 * report.promises as u64);
        }
    }

    #[test]
    fn those_that_come_with_kith_end_in_agreement() {
        for (name, scenario) in to_test() {
            let seeds = if SLOW.contains(&name) { 1 } else { 3 };
            for seed in 1..=seeds {
                let report = sound(name, seed, &scenario);
                assert!(report.promises > 15, "{name}: {}", report.promises);
                assert!(report.delay_ms(500) < report.delay_ms(1000));
                assert!(report.devices.iter().all(|device| !device.sent.is_empty()));
            }
        }
    }

    #[test]
    fn gossip_of_entries_is_not_needed() {
        let scenario = find("split-brain").unwrap().without_gossip();
        for seed in 1..=20 {
            sound("split-brain", seed, &scenario);
        }
    }

    #[test]
    fn without_anti_entropy_the_same_check_fails() {
        let scenario = find("split-brain").unwrap().without_anti_entropy();
        let failed = (1..=10).filter(|seed| !scenario.run(*seed, false).failures.is_empty());
        assert_eq!(failed.count(), 10);
    }
}
