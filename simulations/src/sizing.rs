//! What a mesh of one's own would come to, before it is built: how long the first sync takes, what survives which failures, traffic, the policy to choose.
//!
//! Spec: `protocol/spec/simulation.md`, "Planning".

mod durability;
mod overhead;
mod placing;

use std::collections::BTreeSet;

use kith_protocol::placement::Redundancy;

use crate::plan::Plan;
pub use overhead::Overhead;
use placing::Placed;

/// Bytes a second between two devices at one place, and to or from any disk.
const LOCAL_RATE: f64 = 100e6;
/// Of a line that much is used.
const LINE_SHARE: f64 = 0.9;
/// What a connection that loses packets carries: by the usual law, 1.22 packets of that many bytes for each round trip, divided by the root of the loss.
const PACKET_BYTES: f64 = 1400.0;
/// Devices lost or broken in a year, unless the file says otherwise.
pub const FAILS: f64 = 0.05;
/// Places lost in a year with all that is there: fire, water, theft.
pub const SITE_FAILS: f64 = 0.002;
/// A policy under which something is lost more often in a year is not recommended if there is another.
const LOSS_WANTED: f64 = 1e-4;
const DAY: f64 = 86_400.0;
/// Days ahead for which there has to be room.
const ROOM_DAYS: f64 = 365.0;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Bytes there are.
    pub data: u64,
    /// Bytes that come each day.
    pub growth: u64,
    /// Which device has them at first, by its place in the plan.
    pub from: usize,
}

/// What one policy comes to.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Which.
    pub policy: Redundancy,
    /// Bytes on all devices together, with `data` alone.
    pub stored: u64,
    /// Bytes on each device.
    pub on_device: Vec<u64>,
    /// So many devices may be lost at once, whichever they are.
    pub survives_devices: usize,
    /// Names of places of which one may not be lost.
    pub not_without: Vec<String>,
    /// Chance that anything at all is lost in a year, at most.
    pub loss_a_year: f64,
    /// Seconds until every device has what it is to hold; nothing if two devices are never on together.
    pub first_sync: Option<f64>,
    /// Days until the first device is full; nothing if none ever is.
    pub full_after_days: Option<f64>,
    /// Bytes sent, and got, in 30 days by each device, with what the mesh itself takes.
    pub month: Vec<(u64, u64)>,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Sizing {
    /// What was asked.
    pub demand: Demand,
    /// How many devices hold something.
    pub holders: usize,
    /// At so many places.
    pub sites: usize,
    /// What each policy that is possible comes to.
    pub choices: Vec<Choice>,
    /// Which of them is recommended, and why not without reserve, if there is one.
    pub recommended: Option<(usize, Vec<String>)>,
    /// What the mesh itself takes.
    pub overhead: Overhead,
    /// What all this rests upon.
    pub assumptions: Vec<String>,
}

/// A number of bytes or the like, for reckoning.
#[expect(clippy::cast_precision_loss, reason = "estimates")]
fn real(number: u64) -> f64 {
    number as f64
}

fn count(number: usize) -> f64 {
    real(number as u64)
}

/// Back.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float stays within bounds"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Bytes, as `300GB` or `2TB`, of 1,000 each.
///
/// # Errors
/// Plain words.
pub fn bytes(text: &str) -> Result<u64, String> {
    crate::file::bytes(text)
}

/// Bytes a day, as `5GB/day`, `30GB/week` or `100GB/month`.
///
/// # Errors
/// Plain words.
pub fn a_day(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is no growth, which looks like 5GB/day, 30GB/week or 100GB/month");
    let (size, period) = text.split_once('/').ok_or_else(wrong)?;
    let days = match period {
        "day" => 1,
        "week" => 7,
        "month" => 30,
        _ => return Err(wrong()),
    };
    Ok(bytes(size)? / days)
}

/// Works it all out.
pub fn size(plan: &Plan, demand: Demand) -> Sizing {
    let holders: Vec<usize> = (0..plan.devices.len())
        .filter(|device| {
            plan.devices
                .get(*device)
                .is_some_and(|of| of.capacity != Some(0))
        })
        .collect();
    let sites: BTreeSet<usize> = holders
        .iter()
        .filter_map(|device| Some(plan.devices.get(*device)?.site))
        .collect();
    let overhead = Overhead::of(plan, demand.growth);
    let choices: Vec<Choice> = placing::possible(holders.len())
        .map(|policy| choice(plan, demand, policy, &overhead))
        .collect();
    let recommended = recommend(plan, &choices, sites.len());
    Sizing {
        demand,
        holders: holders.len(),
        sites: sites.len(),
        recommended,
        choices,
        assumptions: assumptions(plan, &overhead),
        overhead,
    }
}

fn choice(plan: &Plan, demand: Demand, policy: Redundancy, overhead: &Overhead) -> Choice {
    let placed = Placed::new(plan, policy);
    let (data, growth) = (real(demand.data), real(demand.growth));
    let on_device = placed.share.iter().map(|share| whole(share * data));
    let on_device: Vec<u64> = on_device.collect();
    let full_after_days = plan
        .devices
        .iter()
        .zip(&placed.share)
        .filter_map(|(device, share)| {
            let room = real(device.capacity?) - share * data;
            // One that holds nothing is never full.
            (*share > 0.0).then(|| {
                let daily = share * growth;
                if room < 0.0 { 0.0 } else { room / daily }
            })
        })
        .filter(|days| days.is_finite())
        .min_by(f64::total_cmp);
    let site_name = |site: usize| plan.sites.get(site).map(|site| site.name.clone());
    let not_without: Vec<String> = placed
        .not_without()
        .into_iter()
        .filter_map(site_name)
        .collect();
    Choice {
        policy,
        stored: on_device.iter().sum(),
        survives_devices: policy.spare(),
        loss_a_year: durability::loss_a_year(plan, &placed, demand.data, slowest_line(plan)),
        first_sync: first_sync(plan, demand, &placed),
        month: month(plan, demand, &placed, overhead),
        not_without,
        full_after_days,
        on_device,
    }
}

/// The one that stores least among those that will do; or else the safest that there is room for, and what is wrong with it.
fn recommend(plan: &Plan, choices: &[Choice], sites: usize) -> Option<(usize, Vec<String>)> {
    let wrong = |choice: &Choice| {
        let mut wrong = Vec::new();
        if choice.full_after_days.is_some_and(|days| days <= 0.0) {
            wrong.push("it does not fit".to_owned());
        } else if choice.full_after_days.is_some_and(|days| days < ROOM_DAYS) {
            wrong.push("a device is full within a year".to_owned());
        }
        if choice.survives_devices < 2 && plan.devices.len() > 3 {
            wrong.push("two devices lost at once may be too many".to_owned());
        }
        if !choice.not_without.is_empty() {
            wrong.push(match sites {
                1 => "all is at one place: a fire there takes everything".to_owned(),
                _ => format!(
                    "the loss of {} may be too much",
                    choice.not_without.join(" or ")
                ),
            });
        }
        if choice.loss_a_year > LOSS_WANTED {
            wrong.push("something is lost more often than once in 10,000 years".to_owned());
        }
        wrong
    };
    let fits = |choice: &&Choice| choice.full_after_days.is_none_or(|days| days > 0.0);
    let good = choices.iter().filter(|choice| wrong(choice).is_empty());
    let best = good
        .min_by_key(|choice| (choice.stored, choice.policy.pieces()))
        .or_else(|| {
            let safest = |choice: &&Choice| (wrong(choice).len(), choice.loss_a_year);
            choices.iter().filter(fits).min_by(|one, other| {
                let (one, other) = (safest(one), safest(other));
                one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
            })
        })?;
    let place = choices
        .iter()
        .position(|choice| choice.policy == best.policy)?;
    Some((place, wrong(best)))
}

/// What the slowest line of the mesh carries, bytes a second.
fn slowest_line(plan: &Plan) -> f64 {
    let lines = plan.sites.iter().flat_map(|site| [site.up, site.down]);
    let lines = lines.flatten().map(|bits| real(bits) / 8.0);
    lines.fold(LOCAL_RATE, f64::min) * LINE_SHARE
}

/// Bytes a second that one connection carries between two places, lines aside.
fn connection_rate(plan: &Plan, one: usize, other: usize) -> f64 {
    let path = plan.way(one, other);
    if path.loss == 0 {
        return LOCAL_RATE;
    }
    let round_trip = real((path.latency.0 + path.latency.1).max(1)) / 1000.0;
    let rate = 1.22 * PACKET_BYTES / (round_trip * (real(path.loss) / 1e6).sqrt());
    rate.min(LOCAL_RATE)
}

/// Which share of the day a device is on; two of them together.
fn together(plan: &Plan, one: usize, other: usize) -> f64 {
    let hours = |device: usize| plan.devices.get(device).and_then(|device| device.online);
    let all = (0, 24 * 60);
    let (one, other) = (hours(one).unwrap_or(all), hours(other).unwrap_or(all));
    let (from, to) = (one.0.max(other.0), one.1.min(other.1));
    real(to.saturating_sub(from)) / (24.0 * 60.0)
}

/// How long it takes until all that one device has is where it is to be: the slowest of all lines, connections and disks on the way.
fn first_sync(plan: &Plan, demand: Demand, placed: &Placed) -> Option<f64> {
    let from = demand.from;
    let here = plan.devices.get(from)?.site;
    let line = |bits: Option<u64>| bits.map_or(f64::INFINITY, |bits| real(bits) / 8.0 * LINE_SHARE);
    let mut slowest: f64 = 0.0;
    let mut out = 0.0;
    let mut all = 0.0;
    let mut into = vec![0.0; plan.sites.len()];
    for (device, share) in placed.share.iter().enumerate() {
        let bytes = share * real(demand.data);
        if device == from || bytes <= 0.0 {
            continue;
        }
        let there = plan.devices.get(device)?.site;
        let on = together(plan, from, device);
        if on <= 0.0 {
            return None;
        }
        all += bytes;
        if there != here {
            out += bytes / on;
            if let Some(into) = into.get_mut(there) {
                *into += bytes / on;
            }
        }
        slowest = slowest.max(bytes / connection_rate(plan, here, there) / on);
    }
    slowest = slowest.max(out / line(plan.sites.get(here)?.up));
    slowest = slowest.max(all / LOCAL_RATE / together(plan, from, from));
    for (site, bytes) in plan.sites.iter().zip(into) {
        slowest = slowest.max(bytes / line(site.down));
    }
    Some(slowest)
}

/// What each device sends and gets in 30 days once all is in place.
fn month(plan: &Plan, demand: Demand, placed: &Placed, overhead: &Overhead) -> Vec<(u64, u64)> {
    let origins = overhead::origins(plan);
    let daily = real(demand.growth);
    let all: f64 = placed.share.iter().sum();
    let itself = overhead.a_day_total();
    let each = plan.devices.iter().enumerate().map(|(device, _)| {
        let share = placed.share.get(device).copied().unwrap_or(0.0);
        let makes = if origins.contains(&device) {
            1.0 / count(origins.len())
        } else {
            0.0
        };
        let sent = daily * makes * (all - share);
        let got = daily * (1.0 - makes) * share;
        let on = together(plan, device, device);
        let traffic = |bytes: f64| whole(30.0 * (bytes + itself * on));
        (traffic(sent), traffic(got))
    });
    each.collect()
}

fn assumptions(plan: &Plan, overhead: &Overhead) -> Vec<String> {
    let mut said = vec![
        format!("{:.0} % of a line is used, and {:.0} MB/s within a place and by a disk", LINE_SHARE * 100.0, LOCAL_RATE / 1e6),
        "the first sync goes out from one device, each piece once; devices are on in the hours the file says".to_owned(),
        "lines are as at most hours, and all devices find a direct way to each other, whatever `[[line]]` and `nat` say".to_owned(),
        format!(
            "{:.0} % of the devices are lost or break in a year where the file does not say `fails`, each by itself; {} % of the places, with all that is there",
            FAILS * 100.0,
            SITE_FAILS * 100.0
        ),
        format!(
            "what is lost is made again after {} h, of devices that are not always on after {} d, at half of the slowest line",
            durability::GRACE_ALWAYS_ON / 3600.0,
            durability::GRACE_OTHERS / DAY
        ),
        "packs are placed by capacity, on every place before twice on one; a device without `capacity` has as much as is needed, and one with 0B holds nothing".to_owned(),
        "what grows is written by the devices of `[[work]]`, or by all alike, and read where it is".to_owned(),
    ];
    said.extend(overhead.assumptions(plan.devices.len()));
    said
}

#[cfg(test)]
mod tests;
