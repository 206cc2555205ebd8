//! What happens in a run and when: the chances of a plan, thrown by a seed.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use std::collections::BTreeSet;

use kith_object::key::{Rng, derive};
use kith_object::time::Span;

use crate::plan::{Doing, Fault, Plan, Times, When, Work, Wrong};
use crate::world::{Act, World};

/// Names that everybody writes under.
const NAMES: [&str; 7] = [
    "/a.txt",
    "/b.txt",
    "/notes/one",
    "/notes/two",
    "/photos/lake.jpg",
    "/photos/old/sea.jpg",
    "/big",
];
/// Folders that everybody moves things into.
const FOLDERS: [&str; 5] = ["/notes", "/photos", "/photos/old", "/moved", "/notes/inner"];
/// Between two files that are put together: as long as a quick device takes.
const NEXT_FILE: Span = Span(40);
const DAY: u64 = 24 * 60;
const HOUR_MS: u64 = 3_600_000;
/// How much of a day's use falls into each of its hours, in parts of the busiest: little at night, most before and after noon, some in the evening.
const USE: [u64; 24] = [
    10, 4, 2, 1, 1, 3, 12, 35, 65, 90, 100, 95, 60, 75, 95, 100, 95, 80, 55, 50, 65, 70, 50, 25,
];

/// Has everything in a plan happen in its world.
pub fn schedule(world: &mut World, plan: &Plan, seed: u64) {
    let mut rng = Rng::from_seed(derive("kith scenario 1", &seed.to_le_bytes()));
    world.look_for_lag(plan.length);
    for work in &plan.works {
        let moments = if work.doing == Doing::Lifelog && plan.length.0 >= 24 * HOUR_MS {
            as_used(&work.when, &mut rng)
        } else {
            moments(&work.when, &mut rng)
        };
        for (number, at) in moments.into_iter().enumerate() {
            let device = one(&work.devices, &mut rng);
            do_work(world, work, (device, number), at, &mut rng);
        }
    }
    for fault in &plan.faults {
        if let Wrong::Unlucky(chance) = fault.wrong {
            let devices = fault.devices.iter().copied().collect();
            let when = (fault.when.from, fault.when.to);
            world.unlucky(devices, when, chance, fault.lasts);
            continue;
        }
        for at in moments(&fault.when, &mut rng) {
            go_wrong(world, plan, fault, at, &mut rng);
        }
    }
    for harm in &plan.harms {
        for at in moments(&harm.when, &mut rng) {
            let device = one(&harm.devices, &mut rng);
            world.at(at, Act::Harm(device, harm.harm));
        }
    }
    for (site, of) in plan.sites.iter().enumerate() {
        for line in of.hours.iter().filter(|line| line.shut) {
            shut(world, plan, site, line.hours);
        }
    }
    for (device, of) in plan.devices.iter().enumerate() {
        if let Some((from, to)) = of.online {
            hours(world, plan, device, (from, to), &mut rng);
        }
    }
}

/// One of these, by chance; nothing if there are none.
pub(crate) fn choose<T: Copy>(from: &[T], rng: &mut Rng) -> Option<T> {
    let place = usize::try_from(rng.below(from.len().max(1) as u64)).unwrap_or(0);
    from.get(place).copied()
}

fn one(devices: &[usize], rng: &mut Rng) -> usize {
    choose(devices, rng).unwrap_or(0)
}

fn pick(from: &[&str], rng: &mut Rng) -> String {
    choose(from, rng).unwrap_or("/x").to_owned()
}

fn between(least: u64, most: u64, rng: &mut Rng) -> u64 {
    least + rng.below(most.saturating_sub(least) + 1)
}

fn moments(when: &When, rng: &mut Rng) -> Vec<Span> {
    let (from, to) = (when.from.0, when.to.0);
    let mut moments = match when.times {
        Times::Count(count) => (0..count).map(|_| Span(between(from, to, rng))).collect(),
        Times::Every(each) => {
            let mut moments = Vec::new();
            // From nothing to twice as long, evenly.
            let mut at = from + rng.below(2 * each.0 + 1);
            while at <= to {
                moments.push(Span(at));
                at += 1 + rng.below(2 * each.0);
            }
            moments
        }
    };
    moments.sort_unstable();
    moments
}

/// Moments as people have them who use a device all day: as many as at any hour alike, but more of them when it is used more.
fn as_used(when: &When, rng: &mut Rng) -> Vec<Span> {
    let Times::Every(each) = when.times else {
        return moments(when, rng);
    };
    let (sum, busiest) = (USE.iter().sum::<u64>(), 100 * USE.len() as u64);
    let often = When {
        times: Times::Every(Span((each.0 * sum / busiest).max(1))),
        ..*when
    };
    let hour = |at: &Span| usize::try_from(at.0 / HOUR_MS % 24).unwrap_or(0);
    let mut moments = moments(&often, rng);
    moments.retain(|at| rng.below(100) < USE.get(hour(at)).copied().unwrap_or(0));
    moments
}

fn content(size: (u64, u64), rng: &mut Rng) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(between(size.0, size.1, rng)).unwrap_or(0)];
    rng.fill(&mut content);
    content
}

fn do_work(
    world: &mut World,
    work: &Work,
    (device, number): (usize, usize),
    at: Span,
    rng: &mut Rng,
) {
    match work.doing {
        Doing::Edits => {
            let act = match rng.below(10) {
                0..6 => Act::Put {
                    device,
                    path: pick(&NAMES, rng),
                    content: content(work.size, rng),
                },
                6..8 => {
                    let from = if rng.below(2) == 0 {
                        pick(&NAMES, rng)
                    } else {
                        pick(&FOLDERS, rng)
                    };
                    let to = format!("{}/m{}", pick(&FOLDERS, rng), rng.below(4));
                    Act::Move { device, from, to }
                }
                _ => {
                    let path = if rng.below(3) == 0 {
                        pick(&FOLDERS, rng)
                    } else {
                        pick(&NAMES, rng)
                    };
                    Act::Remove { device, path }
                }
            };
            world.at(at, act);
        }
        Doing::Reads => world.at(at, Act::Read(device)),
        Doing::Lifelog => {
            let act = Act::Put {
                device,
                path: format!("/log/d{device}/{}", at.0),
                content: content(work.size, rng),
            };
            world.at(at, act);
        }
        Doing::Photos | Doing::Source => {
            for file in 0..work.files {
                let path = match work.doing {
                    Doing::Photos => format!("/camera/d{device}-{number}/{file}.jpg"),
                    _ => format!("/source/d{device}-{number}/{}/{file}.rs", file % 17),
                };
                let act = Act::Put {
                    device,
                    path,
                    content: content(work.size, rng),
                };
                world.at(Span(at.0 + file * NEXT_FILE.0), act);
            }
        }
    }
}

fn go_wrong(world: &mut World, plan: &Plan, fault: &Fault, at: Span, rng: &mut Rng) {
    let ends = Span(at.0 + between(fault.lasts.0.0, fault.lasts.1.0, rng));
    match &fault.wrong {
        Wrong::Partition(groups) => world.part(sides(plan, groups, rng), at, ends),
        Wrong::OneWay(groups) => {
            let mut sides = sides(plan, groups, rng).into_iter();
            if let (Some(these), Some(those)) = (sides.next(), sides.next()) {
                world.part_one_way((these, those), at, ends);
            }
        }
        Wrong::Crash => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Crash(device));
            world.at(ends, Act::Start(device));
        }
        Wrong::Unlucky(_) => {}
        Wrong::Away => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Leave(device));
            world.at(ends, Act::Return(device));
        }
        Wrong::Removed => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Expel { by: 0, device });
        }
        Wrong::Rot => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Rot(device));
        }
        Wrong::Sector => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::LoseSector(device));
        }
        Wrong::Full(room) => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Fill(device, *room));
            world.at(ends, Act::Empty(device));
        }
        Wrong::Unwritable => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::FailSync(device));
            world.at(ends, Act::Mend(device));
        }
        Wrong::Slow { cpu, disk } => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Slow(device, (*cpu, *disk)));
            world.at(ends, Act::Quick(device, (*cpu, *disk)));
        }
        Wrong::Restored((least, most)) => {
            let device = one(&fault.devices, rng);
            let age = between(least.0, most.0, rng);
            world.at(Span(at.0.saturating_sub(age)), Act::Backup(device));
            world.at(at, Act::Restore(device));
        }
        Wrong::Lost => world.at(at, Act::Lose(fault.devices.clone())),
        Wrong::Moved => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Relocate(device));
        }
        Wrong::Storm(loss) => {
            world.at(at, Act::Storm(*loss));
            world.at(ends, Act::Calm(*loss));
        }
        Wrong::Paused => {
            let device = one(&fault.devices, rng);
            world.at(at, Act::Pause(device, Span(ends.0 - at.0)));
        }
        Wrong::Clock(jump) => {
            let device = one(&fault.devices, rng);
            let by = *jump;
            world.at(at, Act::Jump { device, by });
        }
    }
}

/// Groups that a plan names, or all devices in two by chance, some on each side.
fn sides(plan: &Plan, groups: &[Vec<usize>], rng: &mut Rng) -> Vec<BTreeSet<usize>> {
    if !groups.is_empty() {
        let groups = groups.iter().map(|group| group.iter().copied().collect());
        return groups.collect();
    }
    let all = 0..plan.devices.len();
    let left: BTreeSet<usize> = loop {
        let left: BTreeSet<usize> = all.clone().filter(|_| rng.below(2) == 0).collect();
        if !left.is_empty() && left.len() < all.len() || all.len() < 2 {
            break left;
        }
    };
    let right = all.filter(|device| !left.contains(device)).collect();
    vec![left, right]
}

/// A site whose line is not there at some hours of each day: its devices reach each other, and nobody else.
fn shut(world: &mut World, plan: &Plan, site: usize, (from, to): (u64, u64)) {
    let all = 0..plan.devices.len();
    let here = |device: &usize| plan.devices.get(*device).is_some_and(|of| of.site == site);
    let (inside, outside): (BTreeSet<usize>, BTreeSet<usize>) = all.partition(here);
    if inside.is_empty() || outside.is_empty() {
        return;
    }
    let mut midnight = 0;
    while midnight <= plan.length.0 {
        let at = |minute: u64| Span(midnight + minute * 60_000);
        world.part(vec![inside.clone(), outside.clone()], at(from), at(to));
        midnight += DAY * 60_000;
    }
}

/// A device that is on for some hours of each day, half an hour more or less.
fn hours(world: &mut World, plan: &Plan, device: usize, online: (u64, u64), rng: &mut Rng) {
    let minutes = |minutes: u64| Span(minutes * 60_000);
    if online.0 > 0 {
        world.at(Span(0), Act::Stop(device));
    }
    for day in 0..=plan.length.0 / minutes(DAY).0 {
        let about =
            |minute: u64, rng: &mut Rng| minutes(day * DAY + minute).0 + rng.below(minutes(60).0);
        if online.0 > 0 {
            let on = about(online.0.saturating_sub(30), rng);
            world.at(Span(on), Act::Start(device));
        }
        if online.1 < DAY {
            let off = about(online.1.saturating_sub(30), rng);
            world.at(Span(off), Act::Stop(device));
            // One that is on from midnight goes on when the day has turned.
            if online.0 == 0 {
                world.at(minutes((day + 1) * DAY), Act::Start(device));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_used_by_day_and_as_often_as_was_said() {
        let when = When {
            from: Span(0),
            to: Span(10 * 24 * HOUR_MS),
            times: Times::Every(Span(60_000)),
        };
        let mut rng = Rng::from_seed([4; 32]);
        let moments = as_used(&when, &mut rng);
        let wanted = 10 * 24 * 60;
        assert!(
            moments.len().abs_diff(wanted) < wanted / 20,
            "{}",
            moments.len()
        );
        let at = |from: u64, to: u64| {
            let hours = moments.iter().map(|at| at.0 / HOUR_MS % 24);
            hours.filter(|hour| (from..to).contains(hour)).count()
        };
        assert!(at(1, 5) * 30 < at(9, 13), "{} {}", at(1, 5), at(9, 13));
        assert!(moments.is_sorted());
    }
}
