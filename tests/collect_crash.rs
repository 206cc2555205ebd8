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
/// Files that all rounds share, each of several chunks that two of them have in common.
const FILES: u64 = 24;
/// Clients that put at a time.
const PUTTERS: u64 = 3;
/// A full check of everything that was ever acknowledged, on top of those that each round reads.
const FULL_EVERY: u64 = 10;

fn rounds() -> u64 {
    let said = std::env::var("KITH_ROUNDS").ok();
    said.map_or(ROUNDS, |text| {
        text.parse().expect("KITH_ROUNDS is a number")
    })
}

/// Two neighbours share half of their bytes, so that a pack holds blocks of what is kept beside others of what is not.
fn content(file: u64) -> Vec<u8> {
    let mut bytes = noise(1000 + file / 2, 700_000);
    bytes.extend(noise(2000 + file, 500_000));
    bytes
}

fn source(place: &Place, file: u64) -> PathBuf {
    place.file(format!("source/{file}"))
}

/// Puts and removes until the daemon is gone: what is put under a name is acknowledged, what is refused its name is garbage that the next one finds.
fn churn(device: &Kith, place: &Place, seed: u64, dead: &AtomicBool, acks: &Sender<(u64, u64)>) {
    for step in 0_u64.. {
        if dead.load(Ordering::SeqCst) {
            return;
        }
        let file = (seed * 7 + step * 5) % FILES;
        let refused = step.is_multiple_of(2);
        let to = if refused {
            "/blocker/below".to_owned()
        } else {
            format!("/{seed}-{step}")
        };
        let mut command = device.command(["put"]);
        command.arg(source(place, file)).args(["--to", &to]);
        for value in run(command, &[]).values() {
            if value["event"] == "put" && !refused {
                let _ = acks.send((file, seed * 1000 + step));
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

fn check(device: &Kith, files: &BTreeMap<String, u64>, label: &str) {
    for (path, file) in files {
        assert!(
            device.cat(path) == content(*file),
            "{label}: {path} was acknowledged and is not what it was"
        );
    }
}

/// Everything reads, and nothing is damaged.
fn full_check(device: &Kith, files: &BTreeMap<String, u64>, label: &str) {
    let ran = device.run(["verify"]);
    let verified = ran.event("verified");
    assert_eq!(number(&verified, "damaged"), 0, "{label}: {verified}");
    assert_eq!(
        verified["lost"].as_array().unwrap().len(),
        0,
        "{label}: {verified}"
    );
    check(device, files, label);
}

fn round(
    device: &mut Kith,
    place: &Place,
    round: u64,
    program: &Path,
) -> (BTreeMap<String, u64>, u64) {
    device.up();
    let dead = AtomicBool::new(false);
    let (sender, acks) = channel();
    let client = Kith::new(program, device.home());
    let mut acknowledged = BTreeMap::new();
    // Another moment each round, by what was acknowledged and not by the clock.
    let after = 1 + round * 3 % 8;
    let dropped = std::thread::scope(|scope| {
        for putter in 0..PUTTERS {
            let (sender, client, dead) = (sender.clone(), &client, &dead);
            let seed = round * PUTTERS + putter;
            scope.spawn(move || churn(client, place, seed, dead, &sender));
        }
        let collector = scope.spawn(|| collect(&client, &dead));
        drop(sender);
        for count in 1.. {
            let Ok((file, name)) = acks.recv() else { break };
            acknowledged.insert(format!("/{}-{}", name / 1000, name % 1000), file);
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
    device.ok(["mkdir", "/folder"]);
    for file in 0..FILES {
        place.write(format!("source/{file}"), content(file));
    }
    let blocker = place.write("blocker", b"a file, below which nothing can stand");
    device.put(&blocker, "/blocker");
    let (mut all, mut dropped) = (BTreeMap::new(), 0);
    for number in 0..rounds() {
        let label = format!("round {number}");
        let (acknowledged, gone) = round(&mut device, &place, number, program);
        assert!(
            !acknowledged.is_empty(),
            "{label}: nothing was acknowledged"
        );
        dropped += gone;
        device.up();
        check(&device, &acknowledged, &label);
        all.extend(acknowledged);
        // Most of what was put goes again, so that there is garbage of every kind: its content stays for the days of retention, the packs do not grow for ever.
        if number % FULL_EVERY == FULL_EVERY - 1 {
            full_check(&device, &all, &label);
        }
        device.kill();
    }
    device.up();
    full_check(&device, &all, "at the end");
    device.ok(["gc"]);
    full_check(&device, &all, "after a last collection");
    let left = device.ok(["gc", "--dry-run"]).event("collected");
    assert_eq!(number(&left, "missing"), 0);
    assert_eq!(text(&left, "event"), "collected");
    assert!(dropped >= rounds() / 3, "only {dropped} packs were dropped");
    eprintln!(
        "{} rounds: {} files acknowledged, all there; {dropped} packs dropped meanwhile",
        rounds(),
        all.len()
    );
}
