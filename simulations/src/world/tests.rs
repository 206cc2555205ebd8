//! What stands between devices, and what fails in them, as a run shows it.

use std::collections::BTreeSet;

use kith_core::device::Command;
use kith_core::{shards, upkeep};
use kith_crdt::catalogue::{Coded, Kept, PolicyRecord};
use kith_object::coding::{self, Coding};
use kith_object::id::{DeviceId, PackId};
use kith_object::time::Span;

use super::World;
use crate::scenario::{Report, of_text};
use crate::schedule::schedule;
use crate::trace::Trace;

/// Three devices at three sites, of which the last is reached from everywhere.
fn apart(first: &str, second: &str, rest: &str) -> String {
    format!(
        "about = 'x'\nduration = '1h'\n[between]\nlatency = '20ms..30ms'\n\
         [[site]]\nname = 'one'\n{first}\n[[site]]\nname = 'two'\n{second}\n[[site]]\nname = 'cloud'\n\
         [[device]]\nname = 'a'\nsite = 'one'\nadmin = true\n[[device]]\nname = 'b'\nsite = 'two'\n[[device]]\nname = 'box'\nsite = 'cloud'\n\
         [[work]]\nwhat = 'edits'\nevery = '90s'\nsize = '1KB..20KB'\n{rest}"
    )
}

fn run(text: &str) -> Report {
    let scenario = of_text("test", text).unwrap();
    let report = scenario.run(1, true);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    report
}

fn relayed(report: &Report) -> u64 {
    let sent = report.devices[2].sent.iter();
    sent.filter(|(what, _)| *what == "relay")
        .map(|(_, bytes)| bytes)
        .sum()
}

/// Times at which the trace says that of a device, milliseconds.
fn times(report: &Report, device: &str, says: &str) -> Vec<u64> {
    let lines = report.trace_text.lines();
    let at = lines.filter_map(|line| {
        let (at, rest) = line.split_once(' ')?;
        let (who, what) = rest.trim_start().split_once(' ')?;
        (who == device && what.trim_start().starts_with(says)).then(|| at.parse().unwrap())
    });
    at.collect()
}

#[test]
fn those_behind_routers_are_relayed_until_they_find_a_direct_way() {
    let open = run(&apart("", "", ""));
    assert_eq!(relayed(&open), 0);
    let strict = run(&apart("nat = 'symmetric'", "nat = 'cone'", ""));
    assert!(relayed(&strict) > 10_000, "{}", relayed(&strict));
    assert!(!strict.trace_text.contains("directly"));
    // Both let answers in: from then on nobody relays.
    let cone = run(&apart("nat = 'cone'", "nat = 'cone'", ""));
    assert!(cone.trace_text.contains("through d2") && cone.trace_text.contains("directly"));
    let (some, all) = (relayed(&cone), relayed(&strict));
    assert!(some > 0 && some < all / 4, "{some} of {all}");
    // Whoever is reached from everywhere is dialled back.
    let back =
        run(&apart("nat = 'symmetric'", "", "")
            .replace("name = 'box'", "name = 'box'\nrelay = true"));
    assert!(relayed(&back) < all / 4);
    // Without it nothing goes between the two.
    let away = "[[fault]]\nwhat = 'away'\ndevices = ['box']\nat = '10m'\nlasts = '20m'\n";
    let alone = run(&apart("nat = 'symmetric'", "nat = 'symmetric'", away));
    assert!(!times(&alone, "d0", "disconnects d1").is_empty());
}

#[test]
fn what_a_partition_holds_up_comes_when_it_heals_soon_and_connections_go_when_it_does_not() {
    let parted = |lasts: &str| {
        let fault = format!(
            "[[fault]]\nwhat = 'partition'\ngroups = [['one'], ['two', 'cloud']]\nat = '10m'\nlasts = '{lasts}'\n"
        );
        run(&apart("", "", &fault).replace("every = '90s'", "every = '500ms'"))
    };
    let short = parted("3s");
    assert!(times(&short, "d0", "disconnects").is_empty());
    assert!(
        short.delay_ms(1000) > Some(2_000),
        "{:?}",
        short.delay_ms(1000)
    );
    let long = parted("5m");
    let gone = times(&long, "d0", "disconnects");
    let begins = times(&long, "d0", "partition")[0];
    assert!(!gone.is_empty());
    assert!(
        gone.iter()
            .all(|at| (5_000..=35_000).contains(&(at - begins))),
        "{gone:?}"
    );
}

#[test]
fn what_goes_one_way_only_does_not_come_to_a_standstill_for_good() {
    let fault = "[[fault]]\nwhat = 'partition'\none-way = true\ngroups = [['a'], ['b']]\nat = '10m'\nlasts = '30m'\n";
    let report = run(&apart("", "", fault));
    // Both give their connection up, and dial in vain.
    assert_eq!(
        times(&report, "d0", "disconnects d1").len() + times(&report, "d1", "disconnects d0").len(),
        1
    );
    // What one writes goes by the third.
    assert!(
        report.delay_ms(900) < Some(60_000),
        "{:?}",
        report.delay_ms(900)
    );
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let fault =
        "[[fault]]\nwhat = 'full'\ndevices = ['a']\nroom = '1KB'\nat = '10m'\nlasts = '20m'\n";
    let report = run(&apart("", "", fault));
    let refused = times(&report, "d0", "cannot put").len() + times(&report, "d0", "refuses").len();
    assert!(refused > 3, "{refused}");
    assert_eq!(times(&report, "d0", "cannot log").len(), 1);
    assert_eq!(times(&report, "d0", "starts").len(), 2);
    // Packs may take no more than was said; a block that does not fit is not kept, and a put of it is refused.
    let text = apart("", "", "").replace("name = 'b'", "name = 'b'\ncapacity = '30KB'");
    let small = run(&text);
    assert!(times(&small, "d1", "cannot put").len() > 3);
}

#[test]
fn a_disk_that_does_not_make_durable_acknowledges_nothing() {
    let fault = "[[fault]]\nwhat = 'unwritable'\ndevices = ['a']\nbetween = ['10m', '40m']\ncount = 3\nlasts = '2m'\n";
    let report = run(&apart("", "", fault));
    assert!(
        report.trace_text.contains("cannot log"),
        "the log is written all the time"
    );
    assert!(times(&report, "d0", "starts").len() > 1);
}

#[test]
fn a_lost_sector_is_read_from_others() {
    let fault = "[[fault]]\nwhat = 'sector'\nbetween = ['30m', '1h']\ncount = 20\n";
    run(&apart("", "", fault));
}

#[test]
fn a_slow_device_falls_behind_and_catches_up() {
    let quick = run(&apart("", "", ""));
    let fault = "[[fault]]\nwhat = 'slow'\ncpu = '800ms'\ndisk = '900ms'\nbetween = ['0s', '0s']\ncount = 1\nlasts = '1h'\ndevices = ['b']\n";
    let slow = run(&apart("", "", fault));
    let (late, usual) = (slow.delay_ms(600), quick.delay_ms(600));
    assert!(late > usual.map(|usual| usual + 500), "{late:?} {usual:?}");
    // Its processor does one thing at a time.
    let text = apart("", "", "").replace(
        "name = 'b'",
        "name = 'b'\ncpu = '20ms'\nreads = '50ms'\nsyncs = '100ms'",
    );
    let old = run(&text);
    let (late, usual) = (old.delay_ms(600), quick.delay_ms(600));
    assert!(late > usual.map(|usual| usual + 15), "{late:?} {usual:?}");
}

#[test]
fn a_line_that_is_shut_by_night_is_open_by_day() {
    let line = "[[line]]\nsite = 'one'\nhours = '00:10-00:40'\nshut = true\n[[line]]\nsite = 'one'\nhours = '00:40-01:00'\nmetered = true\n";
    let report = run(&apart("", "", line));
    assert_eq!(times(&report, "d0", "partition").len(), 1);
    assert!(times(&report, "d0", "disconnects").len() >= 2);
    assert!(report.devices[0].metered > 10_000 && report.devices[1].metered == 0);
}

/// Seven devices that keep packs as 4+2, and a pack for each; what packs there are when all have copies.
fn seven(seed: u64) -> (World, Vec<PackId>) {
    let text = "about = 'x'\nduration = '2h'\n[[site]]\nname = 'house'\n\
         [[device]]\nname = 'd'\nsite = 'house'\nadmin = true\ncount = 7\ngives = '1GB'\ngrace = '2h'\n\
         [[work]]\nwhat = 'photos'\nevery = '25m'\nfiles = 12\nsize = '100KB..300KB'\n";
    let scenario = of_text("test", text).unwrap();
    let mut world = World::new(seed, scenario.plan(), Trace::new(true));
    schedule(&mut world, scenario.plan(), seed);
    world.run_until(hours(1));
    let policy = PolicyRecord {
        kept: Kept::Shards(4, 2),
        min_sites: 1,
        sites: Default::default(),
    };
    world.command(0, Command::SetPolicy(policy), Vec::new());
    world.run_until(hours(3));
    let packs: BTreeSet<PackId> = (0..7).flat_map(|at| kept(&world, at)).collect();
    (world, packs.into_iter().collect())
}

fn hours(hours: u64) -> Span {
    Span::from_secs(3600 * hours)
}

/// The packs that a device keeps.
fn kept(world: &World, at: usize) -> Vec<PackId> {
    let Some(running) = &world.slots[at].running else {
        return Vec::new();
    };
    let store = &running.storage.store;
    let kept = upkeep::kept(store, &store.packs().unwrap());
    kept.into_iter().map(|(pack, _)| pack).collect()
}

/// Where a pack is kept.
fn keepers(world: &World, pack: &PackId) -> Vec<usize> {
    let keeps = |at: &usize| kept(world, *at).contains(pack);
    (0..world.slots.len()).filter(keeps).collect()
}

#[test]
fn packs_become_shards_and_lost_shards_are_restored_on_others() {
    let (mut world, packs) = seven(1);
    // Whoever has one says which shards it has.
    let mut codings = Vec::new();
    for pack in packs {
        let at = keepers(&world, &pack)[0];
        let running = world.slots[at].running.as_ref().unwrap();
        let whole = shards::read(&running.storage.store, &pack).unwrap();
        let Ok((coding, _)) = coding::code(&whole, 4, 2) else {
            continue;
        };
        let devices: Vec<DeviceId> = (1..7).map(|at| world.id(at)).collect();
        codings.push(coding.clone());
        let coded = Coded { coding, devices };
        world.command(at, Command::Coded(vec![coded]), Vec::new());
    }
    assert!(codings.len() > 2, "{}", codings.len());
    world.run_until(hours(40));
    assert_eq!(world.failures, Vec::<String>::new());
    let mut on = BTreeSet::new();
    for coding in &codings {
        assert_eq!(keepers(&world, &coding.pack), Vec::<usize>::new());
        let places: Vec<usize> = coding.ids().flat_map(|id| keepers(&world, &id)).collect();
        let distinct: BTreeSet<usize> = places.iter().copied().collect();
        assert_eq!((places.len(), distinct.len()), (6, 6), "one on each of six");
        on.extend(distinct);
    }
    assert_eq!(on.len(), 7, "and all take part");
    assert_eq!(world.badly_kept(), Vec::<String>::new());
    assert!(world.trace.text().contains("makes"));
    // Two at once are gone for good: nothing is lost, and their shards are restored where there is a place.
    let lost = [2, 5];
    let missed: usize = codings
        .iter()
        .flat_map(Coding::ids)
        .filter(|id| keepers(&world, id).iter().any(|at| lost.contains(at)))
        .count();
    world.lose(&lost);
    world.run_until(hours(80));
    assert_eq!(world.failures, Vec::<String>::new());
    let there: usize = codings
        .iter()
        .flat_map(Coding::ids)
        .filter(|id| keepers(&world, id).iter().any(|at| !lost.contains(at)))
        .count();
    assert_eq!(
        there,
        5 * codings.len(),
        "five devices are left: {missed} were missed"
    );
    // A copy makes up for the sixth.
    for coding in &codings {
        assert!(!keepers(&world, &coding.pack).is_empty());
    }
    assert_eq!(world.badly_kept(), Vec::<String>::new());
    for (nth, at) in [0, 1, 3, 4, 6].into_iter().enumerate() {
        world.read_all((nth, 5), at);
    }
    world.run_until(hours(82));
    assert_eq!(world.reads_open(), 0);
    world.check_laws();
    assert_eq!(world.failures, Vec::<String>::new());
}
