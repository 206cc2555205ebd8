//! What the mesh itself takes, objects aside: told by running it.

use std::collections::BTreeMap;

use kith_object::time::Span;

use super::{count, real};
use crate::plan::{Doing, Plan, Times, When, Work};
use crate::scenario::Scenario;

/// Devices of a mesh that is run for this; of larger ones so many, from all of it.
const RUN_MAX: usize = 48;
/// As many as were ever run at once.
const VALID_MAX: usize = 1000;
/// The mesh is looked at between these two moments, once it has settled.
const FROM: Span = Span::from_secs(30 * 60);
const TO: Span = Span::from_secs(150 * 60);
/// Between two entries of the busy run.
const STEP: Span = Span::from_secs(120);
/// Bytes of an object, on average: a photograph.
const OBJECT_BYTES: u64 = 4_000_000;
const DAY: Span = Span::from_secs(86_400);

/// What the mesh itself takes.
#[derive(Debug, Clone)]
pub struct Overhead {
    /// Devices in the runs.
    pub devices: usize,
    /// Bytes that a device sends in a day, on average, by purpose, if nothing happens.
    pub idle: BTreeMap<&'static str, f64>,
    /// What each object that is put adds, on each device.
    pub an_entry: BTreeMap<&'static str, f64>,
    /// Objects a day.
    pub entries: f64,
}

/// Devices that write.
pub(super) fn origins(plan: &Plan) -> Vec<usize> {
    let mut origins: Vec<usize> = plan
        .works
        .iter()
        .filter(|work| work.doing != Doing::Reads)
        .flat_map(|work| work.devices.iter().copied())
        .collect();
    origins.sort_unstable();
    origins.dedup();
    if origins.is_empty() {
        origins = (0..plan.devices.len()).collect();
    }
    origins
}

impl Overhead {
    /// That of a mesh in which so many bytes a day are put.
    pub(super) fn of(plan: &Plan, growth: u64) -> Self {
        let quiet = part_of(plan);
        let mut busy = quiet.clone();
        busy.works = vec![Work {
            doing: Doing::Lifelog,
            devices: (0..busy.devices.len()).collect(),
            when: When {
                from: FROM,
                to: TO,
                times: Times::Every(STEP),
            },
            size: (300, 600),
            files: 0,
        }];
        let devices = quiet.devices.len();
        let between = |plan: &Plan| {
            let mut short = plan.clone();
            short.length = FROM;
            short.works.clear();
            let (early, late) = (sent(&short), sent(plan));
            let each = late.into_iter().map(|(purpose, bytes)| {
                let before = early.get(purpose).copied().unwrap_or(0);
                (purpose, real(bytes.saturating_sub(before)) / count(devices))
            });
            each.collect::<BTreeMap<&'static str, f64>>()
        };
        let (idle, busy) = (between(&quiet), between(&busy));
        let span = TO.0 - FROM.0;
        let entries_run = real(span) / real(STEP.0);
        // Hops of lookups grow with the logarithm of the number of devices; what gossip a device gets does not grow.
        let larger = count(plan.devices.len()).ln() / count(devices.max(2)).ln();
        let scaled = |purpose: &&'static str, bytes: f64| match *purpose {
            "dht" => (*purpose, bytes * f64::max(larger, 1.0)),
            _ => (*purpose, bytes),
        };
        let an_entry = busy.iter().map(|(purpose, bytes)| {
            let before = idle.get(purpose).copied().unwrap_or(0.0);
            scaled(purpose, (bytes - before).max(0.0) / entries_run)
        });
        Self {
            devices,
            an_entry: an_entry.collect(),
            idle: idle
                .iter()
                .map(|(purpose, bytes)| scaled(purpose, bytes * real(DAY.0) / real(span)))
                .collect(),
            entries: real(growth) / real(OBJECT_BYTES),
        }
    }

    /// Bytes a day, each way.
    pub fn a_day_total(&self) -> f64 {
        let idle: f64 = self.idle.values().sum();
        let an_entry: f64 = self.an_entry.values().sum();
        idle + an_entry * self.entries
    }

    pub(super) fn assumptions(&self, all: usize) -> Vec<String> {
        let mut said = vec![format!(
            "what the mesh itself takes was measured on {} devices by the simulator, with {:.0} objects a day of 4 MB each",
            self.devices, self.entries
        )];
        if all > self.devices {
            said.push(format!(
                "for all {all} devices it is taken from there: what gossip each device sends stays the same, for it has as many neighbours; lookups grow with the logarithm of the number"
            ));
        }
        if all > VALID_MAX {
            said.push(format!(
                "beyond {VALID_MAX} devices nothing of this was ever tried: an address book holds 1,024 devices, and every device reads every entry and knows every member"
            ));
        }
        said
    }
}

/// The mesh, or so many devices from all of it, always on and without anything that goes wrong.
fn part_of(plan: &Plan) -> Plan {
    let mut part = plan.clone();
    let step = plan.devices.len().div_ceil(RUN_MAX).max(1);
    part.devices = plan.devices.iter().step_by(step).cloned().collect();
    if part.devices.len() < 2 {
        part.devices.extend(plan.devices.first().cloned());
    }
    for device in &mut part.devices {
        device.online = None;
    }
    part.works.clear();
    part.faults.clear();
    part.harms.clear();
    part.length = TO;
    part.settle = Span::from_secs(60);
    part.read = Span::from_secs(60);
    part
}

/// Bytes that all devices sent, by purpose, without objects themselves.
fn sent(plan: &Plan) -> BTreeMap<&'static str, u64> {
    let report = Scenario::of_plan(plan.clone()).run(1, false);
    let mut sum = BTreeMap::new();
    for device in &report.devices {
        for (purpose, bytes) in &device.sent {
            *sum.entry(*purpose).or_default() += bytes;
        }
    }
    sum.remove("blocks");
    sum
}
