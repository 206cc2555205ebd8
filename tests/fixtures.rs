//! Homes and backups that earlier programs left behind open with today's, and go on.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kith_object::id::Cid;
use kith_tests::{Kith, Place, copy_folder, files_below, noise, number, repository, text};

/// Each folder, and the hash of all that is in it: nothing there is ever made anew.
const FIXTURES: &[(&str, &str)] = &[(
    "home-1",
    "bafkr4icnhvgqb4zoif45ddgrg5panl2rlnr27rsk4ymmrgfv43yyo55nhu",
)];

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// A device whose home is a copy of that of a fixture.
fn copied(place: &Place, name: &str) -> Kith {
    let device = place.device(name);
    fs::create_dir_all(device.home().parent().unwrap()).unwrap();
    copy_folder(&fixture(name).join("home"), device.home());
    device
}

fn lines(of: &str, count: usize) -> Vec<u8> {
    let lines = (0..count).map(|n| format!("line {n} of the {of}: the same words each time\n"));
    lines.collect::<String>().into_bytes()
}

/// What stood at each path of `home-1` when the backup was made.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("/moved", b"a small file\n".to_vec()),
        ("/large", lines("large file", 9000)),
        ("/twice", b"the second version\n".to_vec()),
        ("/folder/one", b"one\n".to_vec()),
        ("/folder/empty", Vec::new()),
        ("/folder/deep/er/two", lines("file two", 40)),
    ])
}

/// Everything of the backup reads back, names and history too.
fn assert_reads_back(device: &Kith, late: bool) {
    for (path, bytes) in files() {
        assert!(device.cat(path) == bytes, "{path}");
    }
    let mut names = vec!["empty", "folder", "large", "moved", "twice"];
    if late {
        names.insert(3, "late");
        assert_eq!(device.cat("/late"), b"put before the daemon was killed\n");
    }
    assert_eq!(device.names("/"), names);
    assert_eq!(device.names("/folder"), ["deep", "empty", "link", "one"]);
    assert!(device.names("/empty").is_empty());
    let history = |path: &str| device.ok(["history", path]).values();
    let gone = history("/gone");
    assert_eq!(gone.len(), 2);
    assert_eq!(
        device.cat(text(&gone[1], "cid")),
        b"removed, and kept by history\n"
    );
    let twice = history("/twice");
    assert_eq!(twice.len(), 2);
    assert_eq!(device.cat(text(&twice[1], "cid")), b"the first version\n");
    let folder = device.home().join("../got");
    let dest = folder.to_str().unwrap();
    device.ok(["get", "/folder", "--force", "--output", dest]);
    assert_eq!(
        fs::read_link(folder.join("link")).unwrap(),
        Path::new("one")
    );
}

fn assert_sound(device: &Kith) {
    let verified = device.ok(["verify"]).event("verified");
    assert!(number(&verified, "packs") > 0);
    assert_eq!(number(&verified, "damaged"), 0);
}

#[test]
fn no_fixture_was_made_anew() {
    let there: Vec<String> = fs::read_dir(fixture(""))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    assert_eq!(there.len(), FIXTURES.len(), "{there:?}");
    for (name, hash) in FIXTURES {
        let folder = fixture(name);
        let mut all = Vec::new();
        for file in files_below(&folder) {
            let bytes = fs::read(&file).unwrap();
            let shown = file.strip_prefix(&folder).unwrap().display();
            all.extend_from_slice(format!("{shown} {}\n", Cid::of_block(&bytes)).as_bytes());
        }
        assert_eq!(Cid::of_block(&all).to_string(), *hash, "{name} has changed");
    }
}

#[test]
fn home_of_version_1_reads_back_and_goes_on() {
    let place = place();
    let mut device = copied(&place, "home-1");
    // First without a daemon: the unfinished pack is taken up, and the index with it.
    assert_reads_back(&device, true);
    assert_sound(&device);
    let bytes = noise(1, 300_000);
    device.put_bytes(&bytes, "/today");
    assert_eq!(device.cat("/today"), bytes);
    let rebuilt = device.ok(["store", "rebuild"]).event("rebuilt");
    assert!(number(&rebuilt, "blocks") > 16);
    assert_sound(&device);
    assert_eq!(device.cat("/today"), bytes);
    device.ok(["rm", "/today"]);
    // What the owner had set holds.
    device.up();
    let status = device.status();
    assert_eq!(number(&status, "quota_bytes"), 1 << 30);
    assert_eq!(text(&status, "durability"), "relaxed");
    assert_reads_back(&device, true);
    device.stop();
}

#[test]
fn index_of_a_home_of_version_1_is_not_needed() {
    let place = place();
    let device = copied(&place, "home-1");
    fs::remove_dir_all(device.home().join("index")).unwrap();
    assert_reads_back(&device, true);
    assert_sound(&device);
}

#[test]
fn backup_of_version_1_and_the_words_bring_all_back() {
    let place = place();
    let device = place.device("revived");
    let file = fixture("home-1").join("all.car");
    let words = fs::read(fixture("home-1").join("words")).unwrap();
    let args = [
        "import",
        "--car",
        file.to_str().unwrap(),
        "--words",
        "--name",
        "revived",
    ];
    let imported = device.run_with(args, &words);
    let imported = imported.expect_code(0).event("imported");
    assert_eq!(number(&imported, "damaged"), 0);
    assert_eq!(number(&imported, "missing"), 0);
    assert_reads_back(&device, false);
    assert_sound(&device);
    // The device of that time is gone; the words may remove it.
    let args = ["device", "remove", "first", "--words", "--force", "--yes"];
    device.run_with(args, &words).expect_code(0);
    device.put_bytes(b"today", "/today");
    assert_eq!(device.cat("/today"), b"today");
}

#[test]
fn backup_of_version_1_fills_a_home_that_lost_its_packs() {
    let place = place();
    let device = copied(&place, "home-1");
    for pack in files_below(&device.home().join("packs")) {
        fs::remove_file(pack).unwrap();
    }
    let file = fixture("home-1").join("all.car");
    let imported = device.ok(["import", "--car", file.to_str().unwrap()]);
    assert_eq!(number(&imported.event("imported"), "missing"), 0);
    for (path, bytes) in files() {
        assert!(device.cat(path) == bytes, "{path}");
    }
}
