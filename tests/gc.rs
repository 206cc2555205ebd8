//! Room that comes back, and nothing that is kept going with it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::Path;

use kith_tests::{Kith, Place, files_below, noise, number, text};
use serde_json::Value;

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

/// Stores bytes and has their name refused: no version ever names them.
fn litter(device: &Kith, file: &Path) {
    let ran = device.run(["put", file.to_str().unwrap(), "--to", "/kept/below"]);
    assert_ne!(ran.failure_kind(), "", "nothing may stand below a file");
}

fn pack_bytes(device: &Kith) -> u64 {
    let packs = files_below(&device.home().join("packs"));
    packs
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum()
}

fn gc(device: &Kith, args: &[&str]) -> Value {
    let mut all = vec!["gc"];
    all.extend(args);
    device.ok(all).event("collected")
}

#[test]
fn what_nothing_needs_goes_and_what_is_kept_stays() {
    let place = place();
    let (mut device, _) = place.first("first");
    device.up();
    let kept = place.write("kept", noise(1, 1_000_000));
    let garbage = place.write("garbage", noise(2, 4_000_000));
    device.put(&kept, "/kept");
    litter(&device, &garbage);
    let before = pack_bytes(&device);
    assert!(before > 5_000_000);

    let ran = device.ok(["gc", "--dry-run"]);
    let said = ran.event("garbage");
    assert_eq!(text(&said, "why"), "garbage");
    assert!(number(&said, "garbage_bytes") >= 4_000_000);
    let looked = ran.event("collected");
    assert_eq!(looked["dry_run"], true);
    assert!(number(&looked, "garbage_bytes") >= 4_000_000);
    assert_eq!(number(&looked, "missing"), 0);

    let done = gc(&device, &[]);
    assert_eq!(number(&done, "retired"), 1);
    assert_eq!(number(&done, "dropped"), 1);
    assert!(number(&done, "freed_bytes") > 5_000_000);
    assert!(number(&done, "copied_bytes") < 1_100_000);
    assert!(pack_bytes(&device) < 1_200_000, "{}", pack_bytes(&device));
    assert_eq!(device.cat("/kept"), noise(1, 1_000_000));
    device.ok(["verify"]);
    // A second run finds nothing more.
    let again = gc(&device, &[]);
    assert_eq!(
        (number(&again, "retired"), number(&again, "dropped")),
        (0, 0)
    );
    assert_eq!(number(&again, "garbage_bytes"), 0);

    // What went can come again, and is not taken for what is on its way out.
    device.put(&garbage, "/again");
    let again = gc(&device, &[]);
    assert_eq!(number(&again, "dropped"), 0);
    device.stop();
    device.ok(["store", "rebuild"]);
    let again = gc(&device, &[]);
    assert_eq!(number(&again, "garbage_bytes"), 0);
    assert_eq!(device.cat("/again"), noise(2, 4_000_000));
    assert_eq!(device.cat("/kept"), noise(1, 1_000_000));
    device.ok(["verify"]);
}

#[test]
fn damage_to_what_nothing_needs_is_forgotten_with_it() {
    let place = place();
    let (device, _) = place.first("first");
    let kept = place.write("kept", noise(1, 200_000));
    let garbage = place.write("garbage", noise(2, 4_000_000));
    device.put(&kept, "/kept");
    litter(&device, &garbage);
    device.ok(["verify"]);
    let files = || files_below(&device.home().join("packs"));
    let largest = files()
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&largest, bytes).unwrap();
    device.fails(1, ["verify"]);
    let aside = || {
        files()
            .iter()
            .any(|file| file.extension().is_some_and(|end| end == "bad"))
    };
    assert!(aside());
    gc(&device, &[]);
    assert!(!aside());
    device.ok(["verify"]);
    assert_eq!(device.cat("/kept"), noise(1, 200_000));
}

#[test]
fn a_pin_keeps_what_no_version_names() {
    let place = place();
    let (mut device, _) = place.first("first");
    device.up();
    let kept = place.write("kept", noise(1, 100_000));
    device.put(&kept, "/kept");
    // A folder's listing, pinned by its path, is named by no version: it is made for the pin.
    device.put(&kept, "/folder/one");
    device.ok(["pin", "/folder"]);
    let pins = device.ok(["pins"]).values();
    let cid = text(&pins[0], "cid").to_owned();
    gc(&device, &[]);
    let dest = place.file("out");
    device.ok(["get", &cid, "-o", dest.to_str().unwrap()]);
    assert_eq!(fs::read(dest.join("one")).unwrap(), noise(1, 100_000));
}

#[test]
fn small_packs_are_merged() {
    let place = place();
    let (device, _) = place.first("first");
    // Each command without a daemon leaves a pack of its own.
    for seed in 0..9 {
        let file = place.write(format!("file-{seed}"), noise(seed, 30_000));
        device.put(&file, &format!("/{seed}"));
    }
    let packs = || files_below(&device.home().join("packs")).len();
    assert!(packs() >= 8, "{}", packs());
    let ran = device.ok(["gc", "--dry-run"]);
    let small = ran
        .values()
        .into_iter()
        .filter(|value| value["why"] == "small")
        .count();
    assert!(small >= 8, "{small}");
    let done = gc(&device, &[]);
    assert_eq!(number(&done, "merged"), number(&done, "dropped"));
    assert!(number(&done, "merged") >= 8);
    assert_eq!(packs(), 1);
    for seed in 0..9 {
        assert_eq!(device.cat(&format!("/{seed}")), noise(seed, 30_000));
    }
    device.ok(["verify"]);
}

#[test]
fn nothing_goes_before_the_other_members_have_said_that_they_miss_nothing() {
    let place = place();
    let (mut first, _) = place.first("first");
    let kept = place.write("kept", noise(1, 200_000));
    let garbage = place.write("garbage", noise(2, 4_000_000));
    first.up();
    first.put(&kept, "/kept");
    let mut second = place.join("second", &first);
    second.up();
    second.agrees_with(&first);
    litter(&first, &garbage);
    let before = pack_bytes(&first);
    let done = gc(&first, &[]);
    assert_eq!((number(&done, "retired"), number(&done, "dropped")), (1, 0));
    let waiting = &done["waiting"][0];
    assert_eq!(waiting["on"][0], "second");
    assert!(number(waiting, "until_ms") > 0);
    assert!(pack_bytes(&first) >= before);
    assert!(number(&first.status(), "dying_packs") == 1);

    // The second holds no content at all, and still can say so.
    second.agrees_with(&first);
    let seen = gc(&second, &[]);
    assert_eq!(number(&seen, "seen"), 1);
    assert_eq!(number(&gc(&second, &[]), "seen"), 0, "once is enough");
    first.agrees_with(&second);
    let done = gc(&first, &[]);
    assert_eq!(number(&done, "dropped"), 0, "a day has not passed");
    assert_eq!(done["waiting"][0]["on"].as_array().unwrap().len(), 0);

    // A restart forgets nothing: the same pack is not retired again.
    first.stop();
    first.up();
    let again = gc(&first, &[]);
    assert_eq!(number(&again, "retired"), 0, "{again}");
    assert_eq!(again["waiting"].as_array().unwrap().len(), 1);

    // With nobody else in the mesh there is nobody to wait for, also after a restart.
    first.ok(["--yes", "device", "remove", "second"]);
    first.stop();
    first.up();
    let done = gc(&first, &[]);
    assert_eq!(number(&done, "dropped"), 1, "{done}");
    assert!(pack_bytes(&first) < 600_000, "{}", pack_bytes(&first));
    assert_eq!(first.cat("/kept"), noise(1, 200_000));
    first.ok(["verify"]);
}

#[test]
fn a_full_device_gets_room_back() {
    let place = place();
    let (mut device, _) = place.first("first");
    device.up_with(&["--quota", "8M"]);
    let kept = place.write("kept", noise(1, 1_500_000));
    device.put(&kept, "/kept");
    let garbage = place.write("garbage", noise(2, 20_000_000));
    // Whatever of it was stored before the quota was reached has no name.
    let refused = device.fails(1, ["put", garbage.to_str().unwrap()]);
    assert_eq!(refused.failure_kind(), "full");
    let more = place.write("more", noise(3, 4_000_000));
    assert_eq!(
        device
            .fails(1, ["put", more.to_str().unwrap()])
            .failure_kind(),
        "full"
    );
    let done = gc(&device, &[]);
    assert!(number(&done, "freed_bytes") > 5_000_000, "{done}");
    device.put(&more, "/more");
    assert_eq!(device.cat("/kept"), noise(1, 1_500_000));
    assert_eq!(device.cat("/more"), noise(3, 4_000_000));
}
