//! A device's folder restored from a backup goes on: what was written after the backup counts, and what is written now counts too.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;

use kith_tests::{Kith, Place, copy_folder, noise};

fn restore_backup(device: &Kith, backup: &std::path::Path) {
    fs::remove_dir_all(device.home()).unwrap();
    copy_folder(backup, device.home());
}

#[test]
fn restored_backup_goes_on_and_both_branches_count() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let large = noise(1, 400_000);
    second.put_bytes(b"before", "/before");
    first.agrees_with(&second);
    second.stop();

    let backup = place.file("backup");
    copy_folder(second.home(), &backup);

    second.up();
    second.put_bytes(b"first branch", "/first-branch");
    second.put_bytes(&large, "/large");
    second.put_bytes(b"before, edited in the first branch", "/before");
    first.agrees_with(&second);
    assert!(first.cat_waiting("/large") == large);
    assert_eq!(first.cat_waiting("/first-branch"), b"first branch");
    second.kill();

    restore_backup(&second, &backup);
    // It writes before it sees anybody, so it cannot know of the other branch.
    second.put_bytes(b"second branch", "/second-branch");
    second.put_bytes(b"before, edited in the second branch", "/before");
    second.up();
    second.agrees_with(&first);
    for device in [&first, &second] {
        let names = device.names("/");
        for name in ["before", "first-branch", "large", "second-branch"] {
            assert!(
                names.iter().any(|shown| shown == name),
                "{name} in {names:?}"
            );
        }
        assert!(
            names.iter().any(|shown| shown.starts_with("before~")),
            "both edits are shown: {names:?}"
        );
        assert_eq!(device.cat_waiting("/first-branch"), b"first branch");
        assert_eq!(device.cat_waiting("/second-branch"), b"second branch");
        assert!(
            device.cat_waiting("/large") == large,
            "what the backup did not hold comes back from the other device"
        );
    }
    // And it goes on after that, under both branches.
    second.put_bytes(b"settled", "/before");
    second.stop();
    second.up();
    second.put_bytes(b"later", "/later");
    first.agrees_with(&second);
    assert_eq!(first.cat_waiting("/later"), b"later");
    assert_eq!(first.cat_waiting("/before"), b"settled");
}

#[test]
fn copy_that_runs_elsewhere_loses_nothing() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    first.up();
    let second = place.join("second", &first);
    let mut clone = place.device("clone");
    copy_folder(second.home(), clone.home());
    let mut second = second;
    // The same device twice, each writing on its own; they meet the first one after the other.
    second.put_bytes(b"here", "/here");
    clone.put_bytes(b"there", "/there");
    second.up();
    first.agrees_with(&second);
    second.stop();
    clone.up();
    first.agrees_with(&clone);
    assert_eq!(first.names("/"), ["here", "there"]);
    assert_eq!(clone.cat("/there"), b"there");
    // The bytes of the one that is off are not within reach, which is no loss: they come with it.
    assert_eq!(first.cat_waiting("/there"), b"there");
    clone.stop();
    second.up();
    first.agrees_with(&second);
    assert_eq!(first.cat_waiting("/here"), b"here");
    assert_eq!(second.names("/"), ["here", "there"]);
}
