//! Kill -9 during put, close, merge and collection, while puts find blocks that are on their way out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use kith_tests::{Kith, Place, noise, number, run, text};

/// Rounds of the ordinary run; `KITH_ROUNDS=500` for a long one.
const ROUNDS: u64 = 30;
/// Rounds that share their contents; then come others, so that there is always something that no name stands for yet.
const ROUNDS_ALIKE: u64 = 10;
/// Contents of so many rounds, each of several chunks that two of them have in common.
const CONTENTS: u64 = 24;
/// Clients that put at a time.
const PUTTERS: u64 = 3;
/// Contents of earlier rounds that a full check reads besides those of its own.
const READ_AGAIN: u64 = 4;

/// What was acknowledged under a path.
#[derive(Clone)]
struct Acknowledged {
    content: u64,
    cid: String,
}

type Names = BTreeMap<String, Acknowledged>;

fn rounds() -> u64 {
    let said = std::env::var("KITH_ROUNDS").ok();
    said.map_or(ROUNDS, |text| {
        text.parse().expect("KITH_ROUNDS is a number")
    })
}

/// Two neighbours share half of their bytes, so that a pack holds blocks of what is kept beside others of what is not.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = noise(1_000_000 + number / 2, 350_000);
    bytes.extend(noise(2_000_000 + number, 250_000));
    bytes
}

fn source(place: &Place, content: u64) -> PathBuf {
    place.file(format!("source/{}", content % CONTENTS))
}

/// Puts until the daemon is gone: what is put under a name is acknowledged, what is refused its name is garbage that the next one finds.
fn churn(
    device: &Kith,
    place: &Place,
    (round, putter): (u64, u64),
    dead: &AtomicBool,
    acks: &Sender<(String, Acknowledged)>,
) {
    let seed = round * PUTTERS + putter;
    for step in 0_u64.. {
        if dead.load(Ordering::SeqCst) {
            return;
        }
        let content = round / ROUNDS_ALIKE * CONTENTS + (seed * 7 + step * 5) % CONTENTS;
        let refused = step.is_multiple_of(2);
        let path = format!("/{seed}-{step}");
        let to = if refused { "/blocker/below" } else { &path };
        let mut command = device.command(["put"]);
        command.arg(source(place, content)).args(["--to", to]);
        for value in run(command, &[]).values() {
            if value["event"] == "put" && !refused {
                let cid = text(&value, "cid").to_owned();
                let _ = acks.send((path.clone(), Acknowledged { content, cid }));
            }
        }
    }
}

/// One client collects all the time; answers how many packs were dropped.
fn collect(device: &Kith, dead: &AtomicBool) -> u64 {
    let mut dropped = 0;
    while !dead.load(Ordering::SeqCst) {
        for value in run(device.command(["gc"]), &[]).values() {
            if value["event"] == "collected" {
                dropped += number(&value, "dropped");
            }
        }
    }
    dropped
}

fn check(device: &Kith, path: &str, acknowledged: &Acknowledged, label: &str) {
    assert!(
        device.cat(path) == content(acknowledged.content),
        "{label}: {path} was acknowledged and is not what it was"
    );
}

/// Every name stands for what was put there, no block that it needs is missing, none that is here is damaged, and contents of the past read as they were.
fn full_check(device: &Kith, all: &Names, round: u64, label: &str) {
    // Whatever is found is what a write leaves that was cut short, and is mended: nobody was told yet that it is stored.
    let ran = device.run(["verify"]);
    for value in ran.values() {
        match value["event"].as_str() {
            Some("damage") => assert_eq!(value["mended"], "cut off there", "{label}: {value}"),
            Some("verified") => assert_eq!(
                value["lost"].as_array().unwrap().len(),
                0,
                "{label}: {value}"
            ),
            _ => {}
        }
    }
    ran.event("verified");
    let walked = device.ok(["gc", "--dry-run"]).event("collected");
    assert_eq!(number(&walked, "missing"), 0, "{label}: {walked}");
    let listed: BTreeMap<String, String> = device
        .ls("/")
        .iter()
        .map(|entry| {
            let path = format!("/{}", text(entry, "name"));
            (path, text(entry, "cid").to_owned())
        })
        .collect();
    let mut contents = BTreeMap::new();
    for (path, acknowledged) in all {
        assert_eq!(
            listed.get(path),
            Some(&acknowledged.cid),
            "{label}: {path} was acknowledged and does not stand for what was put there"
        );
        contents.insert(acknowledged.content, path);
    }
    let count = contents.len() as u64;
    for (place, path) in (0..).zip(contents.into_values()) {
        if (place + count - round % count).is_multiple_of((count / READ_AGAIN).max(1)) {
            check(device, path, &all[path], label);
        }
    }
}

/// Puts and collects until the daemon is killed; answers what was acknowledged, and how many packs were dropped.
fn round(device: &mut Kith, place: &Place, round: u64, program: &Path) -> (Names, u64) {
    device.up();
    let dead = AtomicBool::new(false);
    let (sender, acks) = channel();
    let client = Kith::new(program, device.home());
    let mut acknowledged = Names::new();
    // Another moment each round, by what was acknowledged and not by the clock.
    let after = 1 + round * 3 % 8;
    let dropped = std::thread::scope(|scope| {
        for putter in 0..PUTTERS {
            let (sender, client, dead) = (sender.clone(), &client, &dead);
            scope.spawn(move || churn(client, place, (round, putter), dead, &sender));
        }
        let collector = scope.spawn(|| collect(&client, &dead));
        drop(sender);
        for count in 1.. {
            let Ok((path, what)) = acks.recv() else { break };
            acknowledged.insert(path, what);
            if count == after {
                dead.store(true, Ordering::SeqCst);
                device.kill();
            }
        }
        collector.join().unwrap()
    });
    device.kill();
    (acknowledged, dropped)
}

#[test]
fn no_kill_during_collection_loses_what_was_acknowledged() {
    let program = Path::new(env!("CARGO_BIN_EXE_kith"));
    let place = Place::new(program);
    let (mut device, _) = place.first("first");
    let blocker = place.write("blocker", b"a file, below which nothing can stand");
    device.put(&blocker, "/blocker");
    let (mut all, mut dropped) = (Names::new(), 0);
    for number in 0..rounds() {
        if number.is_multiple_of(ROUNDS_ALIKE) {
            for content_number in 0..CONTENTS {
                let of_these = number / ROUNDS_ALIKE * CONTENTS + content_number;
                place.write(format!("source/{content_number}"), content(of_these));
            }
        }
        let label = format!("round {number}");
        let (acknowledged, gone) = round(&mut device, &place, number, program);
        assert!(
            !acknowledged.is_empty(),
            "{label}: nothing was acknowledged"
        );
        dropped += gone;
        device.up();
        for (path, what) in &acknowledged {
            check(&device, path, what, &label);
        }
        all.extend(acknowledged);
        full_check(&device, &all, number, &label);
        device.kill();
    }
    device.up();
    device.ok(["gc"]);
    full_check(&device, &all, rounds(), "after a last collection");
    assert!(dropped >= rounds() / 3, "only {dropped} packs were dropped");
    eprintln!(
        "{} rounds, each with a full check: {} files acknowledged, all there; {dropped} packs dropped meanwhile",
        rounds(),
        all.len()
    );
}
