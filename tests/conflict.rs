//! Two devices change one thing without seeing each other: nothing is lost when they meet, and both show the same.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use kith_tests::{Kith, Place, number, text};

/// Two devices that agree on one file, `/shared`, and then part.
fn parted(place: &Place) -> (Kith, Kith) {
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    first.put_bytes(b"as it was", "/shared");
    second.agrees_with(&first);
    assert_eq!(second.cat_waiting("/shared"), b"as it was");
    first.stop();
    second.stop();
    (first, second)
}

fn meet(first: &mut Kith, second: &mut Kith) {
    first.up();
    second.up();
    second.agrees_with(first);
    assert_eq!(first.names("/"), second.names("/"), "both show the same");
}

fn contents(device: &Kith, folder: &str) -> BTreeSet<Vec<u8>> {
    let prefix = folder.trim_end_matches('/');
    device
        .names(folder)
        .iter()
        .map(|name| device.cat_waiting(&format!("{prefix}/{name}")))
        .collect()
}

fn set(contents: &[&str]) -> BTreeSet<Vec<u8>> {
    contents
        .iter()
        .map(|content| content.as_bytes().to_vec())
        .collect()
}

#[test]
fn both_versions_are_shown_until_one_is_chosen() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, mut second) = parted(&place);
    first.put_bytes(b"by the first", "/shared");
    second.put_bytes(b"by the second", "/shared");
    meet(&mut first, &mut second);
    for device in [&first, &second] {
        let shown = device.ls("/");
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(
            shown.iter().all(|entry| entry["conflict"] == true),
            "{shown:?}"
        );
        let names: Vec<&str> = shown.iter().map(|entry| text(entry, "name")).collect();
        assert!(
            names.contains(&"shared") && names.iter().any(|name| name.starts_with("shared~")),
            "{names:?}"
        );
        let by: BTreeSet<&str> = shown.iter().map(|entry| text(entry, "device")).collect();
        assert_eq!(by, BTreeSet::from(["first", "second"]));
        assert_eq!(
            contents(device, "/"),
            set(&["by the first", "by the second"])
        );
        assert_eq!(number(&device.status(), "conflicts"), 1);
        // Both come back when all is restored.
        let dest = place.file(format!("all-{}", text(&device.status(), "name")));
        device.ok(["get", "/", "-o", dest.to_str().unwrap()]);
        assert_eq!(std::fs::read_dir(&dest).unwrap().count(), 2);
    }
    // Writing under the name settles it, everywhere; history keeps all.
    second.put_bytes(b"both together", "/shared");
    second.agrees_with(&first);
    for device in [&first, &second] {
        assert_eq!(device.names("/"), ["shared"]);
        assert_eq!(device.cat_waiting("/shared"), b"both together");
        assert_eq!(number(&device.status(), "conflicts"), 0);
        let history = device.ok(["history", "/shared"]).values();
        assert_eq!(history.len(), 4, "{history:?}");
    }
}

#[test]
fn same_edit_on_both_sides_is_kept_too() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, mut second) = parted(&place);
    let one = first.put_bytes(b"the same words", "/shared");
    let other = second.put_bytes(b"the same words", "/shared");
    assert_eq!(
        one, other,
        "the same bytes have the same root on every device"
    );
    meet(&mut first, &mut second);
    assert_eq!(contents(&first, "/"), set(&["the same words"]));
}

#[test]
fn edit_beats_a_removal_that_did_not_know_it() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, mut second) = parted(&place);
    first.ok(["rm", "/shared"]);
    second.put_bytes(b"edited meanwhile", "/shared");
    meet(&mut first, &mut second);
    for device in [&first, &second] {
        assert_eq!(device.cat_waiting("/shared"), b"edited meanwhile");
    }
}

#[test]
fn two_files_of_one_name_both_stay() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, mut second) = parted(&place);
    first.put_bytes(b"mine", "/new");
    second.put_bytes(b"yours", "/new");
    first.ok(["mkdir", "/folder"]);
    first.put_bytes(b"in mine", "/folder/a");
    second.ok(["mkdir", "/folder"]);
    second.put_bytes(b"in yours", "/folder/b");
    meet(&mut first, &mut second);
    for device in [&first, &second] {
        let names = device.names("/");
        assert!(
            names.iter().any(|name| name == "new")
                && names.iter().any(|name| name.starts_with("new~")),
            "{names:?}"
        );
        let new: BTreeSet<Vec<u8>> = names
            .iter()
            .filter(|name| name.starts_with("new"))
            .map(|name| device.cat_waiting(&format!("/{name}")))
            .collect();
        assert_eq!(new, set(&["mine", "yours"]));
        // Two folders of one name are shown as one.
        assert_eq!(
            names
                .iter()
                .filter(|name| name.starts_with("folder"))
                .count(),
            1,
            "{names:?}"
        );
        assert_eq!(contents(device, "/folder"), set(&["in mine", "in yours"]));
    }
}

#[test]
fn moves_in_circles_lose_nothing() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    for folder in ["/a", "/b"] {
        first.ok(["mkdir", folder]);
        first.put_bytes(folder.as_bytes(), &format!("{folder}/file"));
    }
    second.agrees_with(&first);
    first.stop();
    second.stop();
    first.ok(["mv", "/a", "/b"]);
    second.ok(["mv", "/b", "/a"]);
    meet(&mut first, &mut second);
    for device in [&first, &second] {
        let dest = place.file(format!("got-{}", text(&device.status(), "name")));
        device.ok(["get", "/", "--wait", "-o", dest.to_str().unwrap()]);
        let files: BTreeSet<Vec<u8>> = kith_tests::files_below(&dest)
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        assert_eq!(files, set(&["/a", "/b"]));
    }
}

#[test]
fn edit_of_a_file_moved_meanwhile_follows_it() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, mut second) = parted(&place);
    first.ok(["mv", "/shared", "/moved"]);
    second.put_bytes(b"edited", "/shared");
    meet(&mut first, &mut second);
    for device in [&first, &second] {
        assert!(
            contents(device, "/").contains("edited".as_bytes()),
            "the edit is there under some name"
        );
    }
}
