//! The store as its owner meets it: limits, checks, repair.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use kith_tests::{Kith, Place, files_below, noise, number, text};

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn packs(device: &Kith) -> Vec<PathBuf> {
    let mut packs = files_below(&device.home().join("packs"));
    packs.retain(|file| file.extension().is_some_and(|suffix| suffix == "pack"));
    packs
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn what_stays_free_is_kept_and_said() {
    let place = place();
    let (mut device, _) = place.first("first");
    let small = place.write("small", noise(1, 100_000));
    device.up_with(&["--keep-free", "5M"]);
    device.put(&small, "/small");
    device.stop();
    assert_eq!(number(&device.status(), "floor_bytes"), 5 << 20);
    // No disk has that much.
    device.up_with(&["--keep-free", "1048576T"]);
    assert_eq!(number(&device.status(), "floor_bytes"), 1 << 60);
    let other = place.write("other", noise(2, 100_000));
    let refused = device.fails(1, ["put", other.to_str().unwrap()]).failure();
    assert_eq!(text(&refused, "kind"), "full");
    let told = refused.to_string();
    assert!(told.contains("kith up --keep-free"), "{told}");
    assert_eq!(device.cat("/small"), noise(1, 100_000));
}

#[test]
fn quota_is_kept_and_said() {
    let place = place();
    let (mut device, _) = place.first("first");
    let mut command = device.command(["up", "--quota", "3M", "--durability", "relaxed"]);
    command.arg("--listen").arg("127.0.0.1");
    let mut running = kith_tests::Running::start(command);
    running.next_value().unwrap();
    let status = device.status();
    assert_eq!(number(&status, "quota_bytes"), 3 << 20);
    assert_eq!(text(&status, "durability"), "relaxed");
    assert!(number(&status, "floor_bytes") > 0 && number(&status, "free_bytes") > 0);
    let small = place.write("small", noise(1, 1_000_000));
    let big = place.write("big", noise(2, 5_000_000));
    device.put(&small, "/small");
    let refused = device.fails(1, ["put", big.to_str().unwrap()]).failure();
    assert_eq!(text(&refused, "kind"), "full");
    let told = refused.to_string();
    assert!(told.contains("the quota of 3145728 bytes"), "{told}");
    assert!(told.contains("kith up --quota"), "{told}");
    let on_disk: u64 = files_below(&device.home().join("packs"))
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(on_disk <= 3 << 20, "{on_disk}");
    assert_eq!(device.cat("/small"), noise(1, 1_000_000));
    device.ok(["stop"]);
    running.finish();
    // Kept for the next start, until it is lifted.
    device.up();
    assert_eq!(number(&device.status(), "quota_bytes"), 3 << 20);
    device.stop();
    let mut command = device.command(["up", "--quota", "none", "--durability", "group"]);
    command.arg("--listen").arg("127.0.0.1");
    let mut running = kith_tests::Running::start(command);
    running.next_value().unwrap();
    assert!(device.status()["quota_bytes"].is_null());
    assert_eq!(text(&device.status(), "durability"), "group");
    device.put(&big, "/big");
    device.ok(["stop"]);
    running.finish();
}

#[test]
fn verify_names_a_damaged_block_and_put_heals_it() {
    let place = place();
    let (mut device, _) = place.first("first");
    let bytes = noise(3, 600_000);
    let file = place.write("file", &bytes);
    device.put(&file, "/file");
    let sound = device.ok(["verify"]).event("verified");
    assert_eq!(number(&sound, "damaged"), 0);
    assert!(number(&sound, "packs") > 0 && number(&sound, "bytes") > 600_000);
    for daemon in [false, true] {
        if daemon {
            device.up();
        }
        let packs = packs(&device);
        let pack = packs
            .iter()
            .max_by_key(|pack| fs::metadata(pack).unwrap().len());
        let pack = pack.unwrap();
        flip(pack, 1000);
        let ran = device.fails(1, ["verify"]);
        let damage = ran.event("damage");
        let name = pack.file_name().unwrap().to_str().unwrap();
        assert_eq!(text(&damage, "file"), format!("packs/{name}"));
        assert_eq!(damage["blocks"].as_array().unwrap().len(), 1);
        assert_eq!(damage["lost"], damage["blocks"]);
        assert!(text(&damage, "mended").contains(".bad"));
        assert_eq!(ran.event("verified")["lost"], damage["lost"]);
        // It stays said until the block is back.
        let again = device.fails(1, ["verify"]);
        assert_eq!(number(&again.event("verified"), "damaged"), 0);
        assert_eq!(again.event("verified")["lost"], damage["lost"]);
        device.put(&file, "/again");
        let healed = device.ok(["verify", "--sample", "100", "--rate", "500"]);
        assert_eq!(
            healed.event("verified")["lost"].as_array().unwrap().len(),
            0
        );
        assert_eq!(device.cat("/file"), bytes);
    }
    device.stop();
}

#[test]
fn daemon_finds_damage_on_its_own() {
    let place = place();
    let (mut device, _) = place.first("first");
    let bytes = noise(7, 100_000);
    let file = place.write("file", &bytes);
    device.put(&file, "/file");
    device.ok(["verify"]);
    let packs = packs(&device);
    let pack = packs
        .iter()
        .max_by_key(|pack| fs::metadata(pack).unwrap().len());
    flip(pack.unwrap(), 500);
    device.up();
    kith_tests::wait_until("the daemon's own check", || {
        (number(&device.status(), "damaged") == 1).then_some(())
    });
    let said = device.fails(1, ["verify"]).event("verified");
    assert_eq!(said["lost"].as_array().unwrap().len(), 1);
    device.put(&file, "/again");
    device.ok(["verify"]);
    assert_eq!(device.cat("/file"), bytes);
    device.stop();
}

#[test]
fn verify_says_what_it_can_of_a_device_that_does_not_open() {
    let place = place();
    let (device, _) = place.first("first");
    device.put_bytes(&noise(4, 50_000), "/file");
    device.ok(["verify"]);
    let key = device.home().join("device.key");
    flip(&key, 60);
    flip(&packs(&device)[0], 300);
    let ran = device.fails(1, ["verify"]);
    let files: Vec<String> = ran
        .values()
        .iter()
        .filter(|value| value["event"] == "damage")
        .map(|value| text(value, "file").to_owned())
        .collect();
    assert!(files.iter().any(|file| file == "device.key"), "{files:?}");
    assert!(
        files.iter().any(|file| file.starts_with("packs/")),
        "{files:?}"
    );
    assert_eq!(ran.failure_kind(), "corrupt");
}

#[test]
fn index_is_rebuilt_also_after_an_interruption() {
    let place = place();
    let (mut device, _) = place.first("first");
    let bytes = noise(5, 300_000);
    device.put_bytes(&bytes, "/file");
    device.ok(["verify"]);
    let blocks = number(&device.status(), "blocks");
    // The index of another time: what was there before the second file.
    let index = device.home().join("index");
    let before = place.file("before");
    kith_tests::copy_folder(&index, &before);
    device.put_bytes(&noise(6, 300_000), "/other");
    device.ok(["verify"]);
    let more = number(&device.status(), "blocks");
    assert!(more > blocks);
    fs::remove_dir_all(&index).unwrap();
    kith_tests::copy_folder(&before, &index);
    assert_eq!(number(&device.status(), "blocks"), more);
    assert_eq!(device.cat("/other"), noise(6, 300_000));
    let rebuilt = device.ok(["store", "rebuild"]).event("rebuilt");
    assert_eq!(number(&rebuilt, "blocks"), more);
    // As a rebuild leaves it that ended right after it began.
    fs::remove_dir_all(&index).unwrap();
    fs::write(device.home().join("index.rebuild"), b"").unwrap();
    let rebuilt = device.ok(["store", "rebuild"]).event("rebuilt");
    assert_eq!(number(&rebuilt, "blocks"), more);
    assert!(!device.home().join("index.rebuild").exists());
    assert_eq!(device.cat("/file"), bytes);
    device.ok(["verify"]);
    device.up();
    let refused = device.fails(1, ["store", "rebuild"]).failure_text();
    assert!(refused.contains("in use by"), "{refused}");
    device.stop();
}
