//! Public objects: put by one device for anybody, had by another of a different mesh, and nothing else with them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use kith_tests::{Kith, Place, Ran, files_below, noise, number, text};
use serde_json::Value;

const UP: [&str; 3] = ["--listen", "127.0.0.1", "--public"];

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn publish(device: &Kith, source: &Path, profile: &str) -> Value {
    let args = [
        "put",
        "--public",
        "--profile",
        profile,
        source.to_str().unwrap(),
    ];
    device.ok(args).event("published")
}

fn addr(ready: &Value, transport: &str) -> String {
    let addrs = ready["public"].as_array().unwrap().iter();
    let mut addrs = addrs.map(|addr| addr.as_str().unwrap());
    addrs
        .find(|addr| addr.contains(transport))
        .unwrap()
        .to_owned()
}

fn fetch(device: &Kith, cid: &str, peers: &[&str], dest: &Path) -> Ran {
    let mut args = vec!["get", cid, "-o", dest.to_str().unwrap()];
    for peer in peers {
        args.extend(["--peer", peer]);
    }
    device.run(args)
}

fn from_peers(ran: &Ran) -> u64 {
    let got = ran.event("got");
    let from = got["from"].as_array().unwrap().iter();
    from.map(|peer| number(peer, "bytes")).sum()
}

/// A tree with what people have in trees; answers its files.
fn tree(place: &Place) -> (PathBuf, Vec<(&'static str, Vec<u8>)>) {
    let files = vec![
        ("tree/empty", Vec::new()),
        ("tree/one", vec![1]),
        ("tree/below/exactly", noise(1, 1 << 20)),
        ("tree/below/more", noise(2, (1 << 20) + 1)),
        ("tree/below/long", noise(3, 5_000_000)),
    ];
    for (path, bytes) in &files {
        place.write(path, bytes);
    }
    fs::create_dir(place.file("tree/nothing")).unwrap();
    std::os::unix::fs::symlink("below/more", place.file("tree/link")).unwrap();
    (place.file("tree"), files)
}

fn assert_tree(at: &Path, files: &[(&str, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = at.join(path.strip_prefix("tree/").unwrap());
        assert!(fs::read(&path).unwrap() == *bytes, "{}", path.display());
    }
    assert!(at.join("nothing").is_dir());
    assert_eq!(
        fs::read_link(at.join("link")).unwrap(),
        Path::new("below/more")
    );
}

#[test]
fn what_is_public_is_had_by_anybody_and_stays_where_it_came() {
    let place = place();
    let (mut first, _) = place.first("first");
    // Of another mesh.
    let (other, _) = place.first("other");
    let (source, files) = tree(&place);
    let ready = first.up_with(&UP);
    for (profile, transport) in [("unixfs-v1-2025", "/tcp/"), ("unixfs-v0-2015", "/quic-v1")] {
        let put = publish(&first, &source, profile);
        assert_eq!(text(&put, "name"), "tree");
        let cid = text(&put, "cid");
        let dest = place.file(profile);
        let ran = fetch(&other, cid, &[&addr(&ready, transport)], &dest);
        ran.expect_code(0);
        assert_tree(&dest, &files);
        assert!(from_peers(&ran) > 7_000_000);
        // It is all here now, and nobody is asked again.
        let again = place.file(format!("{profile}-again"));
        let ran = fetch(&other, cid, &[&addr(&ready, transport)], &again);
        ran.expect_code(0);
        assert_eq!(from_peers(&ran), 0);
        assert_tree(&again, &files);
        // What is there is not overwritten.
        assert_eq!(
            fetch(&other, cid, &[&addr(&ready, transport)], &again).failure_kind(),
            "exists"
        );
    }
    let listed = first.ok(["published"]).values();
    assert_eq!(listed.len(), 2);
    // The same again is the same once.
    publish(&first, &source, "unixfs-v1-2025");
    assert_eq!(first.ok(["published"]).values().len(), 2);
    // Its place is kept, so that who knows it finds it again; and a collection leaves it alone.
    first.ok(["gc"]);
    first.stop();
    let again = first.up_with(&UP);
    assert_eq!(again["public"], ready["public"]);
    let dest = place.file("later");
    let (third, _) = place.first("third");
    fetch(
        &third,
        text(&listed[0], "cid"),
        &[&addr(&again, "/tcp/")],
        &dest,
    )
    .expect_code(0);
    assert_tree(&dest, &files);
    first.ok(["verify"]);
}

#[test]
fn what_is_private_or_only_passed_through_is_not_served() {
    let place = place();
    let (mut first, _) = place.first("first");
    let (mut other, _) = place.first("other");
    let ready = first.up_with(&UP);
    let there = addr(&ready, "/tcp/");
    let file = place.write("file", noise(9, 300_000));
    let sealed = text(&first.put(&file, "/file"), "cid").to_owned();
    let refused = fetch(&other, &sealed, &[&there], &place.file("out"));
    assert_eq!(
        refused.failure_kind(),
        "unreachable",
        "{}",
        refused.failure()
    );
    assert!(
        refused.failure().to_string().contains(&sealed),
        "{}",
        refused.failure()
    );
    assert!(
        refused.failure().to_string().contains(&there),
        "{}",
        refused.failure()
    );
    assert!(!place.file("out").exists());
    // What this one had from the first it does not pass on: it published nothing.
    let cid = text(&publish(&first, &file, "unixfs-v1-2025"), "cid").to_owned();
    let other_ready = other.up_with(&UP);
    fetch(&other, &cid, &[&there], &place.file("had")).expect_code(0);
    let (third, _) = place.first("third");
    let refused = fetch(
        &third,
        &cid,
        &[&addr(&other_ready, "/tcp/")],
        &place.file("none"),
    );
    assert_eq!(refused.failure_kind(), "unreachable");
    // Of two peers, the one that has it is enough.
    let both = [addr(&other_ready, "/quic-v1"), there];
    fetch(&third, &cid, &[&both[0], &both[1]], &place.file("some")).expect_code(0);
    assert!(fs::read(place.file("some")).unwrap() == noise(9, 300_000));
}

fn pack_bytes(device: &Kith) -> u64 {
    let packs = files_below(&device.home().join("packs"));
    let bytes = packs.iter().map(|file| fs::metadata(file).unwrap().len());
    bytes.sum()
}

/// Fetches into a new file by a device of a mesh of its own, which has nothing of it yet.
fn fetch_anew(place: &Place, name: &str, cid: &str, peer: &str) -> Ran {
    let (device, _) = place.first(name);
    fetch(&device, cid, &[peer], &place.file(format!("{name}-out")))
}

#[test]
fn what_is_taken_back_is_served_no_more_and_its_room_comes_back() {
    let place = place();
    let (mut first, _) = place.first("first");
    let ready = first.up_with(&UP);
    let there = addr(&ready, "/tcp/");
    // Two folders that share a file, and each has one of its own.
    let (shared, one, two) = (noise(1, 1_500_000), noise(2, 3_000_000), noise(3, 900_000));
    for (path, bytes) in [
        ("one/shared", &shared),
        ("one/own", &one),
        ("two/shared", &shared),
        ("two/own", &two),
    ] {
        place.write(path, bytes);
    }
    // The older profile has leaves that only reading tells from nodes.
    let cid_of = |device: &Kith, path: &str, profile: &str| {
        text(&publish(device, &place.file(path), profile), "cid").to_owned()
    };
    let gone = [
        cid_of(&first, "one", "unixfs-v0-2015"),
        cid_of(&first, "one", "unixfs-v1-2025"),
    ];
    let stays = cid_of(&first, "two", "unixfs-v1-2025");
    let own = cid_of(&first, "one/own", "unixfs-v1-2025");
    let shared_cid = cid_of(&first, "one/shared", "unixfs-v1-2025");
    let private = place.write("private", noise(7, 500_000));
    first.put(&private, "/private");
    fetch_anew(&place, "before", &gone[0], &there).expect_code(0);

    // All or nothing.
    let unknown = first.run(["unpublish", &gone[0], "bafkqaaa"]);
    assert_eq!(unknown.failure_kind(), "not-found", "{}", unknown.failure());
    assert_eq!(first.ok(["published"]).values().len(), 5);
    let wrong = first.run(["unpublish", "no-cid"]);
    assert_eq!(wrong.failure_kind(), "usage", "{}", wrong.failure());

    let taken = first.ok(["unpublish", &gone[0], &gone[1], &own, &shared_cid]);
    let taken: Vec<String> = taken
        .values()
        .iter()
        .map(|event| text(event, "cid").to_owned())
        .collect();
    let wanted = [&gone[0], &gone[1], &own, &shared_cid];
    assert!(taken.iter().eq(wanted), "{taken:?}");
    assert_eq!(first.ok(["published"]).values().len(), 1);
    // It lies there still, and is served to nobody, across a restart too.
    let before = pack_bytes(&first);
    for round in ["at-once", "restarted"] {
        for (at, cid) in gone.iter().chain([&own]).enumerate() {
            let ran = fetch_anew(&place, &format!("{round}-{at}"), cid, &there);
            assert_eq!(ran.failure_kind(), "unreachable", "{}", ran.failure());
        }
        // What is part of something else that is public is.
        fetch_anew(&place, &format!("{round}-shared"), &shared_cid, &there).expect_code(0);
        let whole = format!("{round}-whole");
        fetch_anew(&place, &whole, &stays, &there).expect_code(0);
        let out = place.file(format!("{whole}-out"));
        assert!(fs::read(out.join("own")).unwrap() == two);
        first.stop();
        first.up_with(&UP);
    }
    // What is put meanwhile is served, be it new or taken back before.
    let again = cid_of(&first, "one/own", "unixfs-v1-2025");
    assert_eq!(again, own);
    fetch_anew(&place, "again", &own, &there).expect_code(0);
    first.ok(["unpublish", &own]);

    let done = first.ok(["gc"]).event("collected");
    assert!(number(&done, "dropped") > 0, "{done}");
    let left = pack_bytes(&first);
    assert!(before > 8_500_000 && left < 3_500_000, "{before} {left}");
    fetch_anew(&place, "collected", &stays, &there).expect_code(0);
    fetch_anew(&place, "collected-shared", &shared_cid, &there).expect_code(0);
    let ran = fetch_anew(&place, "collected-gone", &gone[0], &there);
    assert_eq!(ran.failure_kind(), "unreachable", "{}", ran.failure());
    // Nothing is left of it, so a later put is told of as it is stored.
    let again = cid_of(&first, "one", "unixfs-v0-2015");
    assert_eq!(again, gone[0]);
    fetch_anew(&place, "later", &again, &there).expect_code(0);
    assert_eq!(first.cat("/private"), noise(7, 500_000));
    first.ok(["verify"]);
    let done = first.ok(["gc"]).event("collected");
    assert_eq!(number(&done, "dropped"), 0, "{done}");

    // Without the list it is not known what is garbage, and with a damaged one not what may be served.
    first.stop();
    let list = first.home().join("published");
    let bytes = fs::read(&list).unwrap();
    let mut damaged = bytes.clone();
    damaged[40] ^= 1;
    fs::write(&list, &damaged).unwrap();
    first.up_with(&UP);
    let ran = fetch_anew(&place, "damaged", &stays, &there);
    assert_eq!(ran.failure_kind(), "unreachable", "{}", ran.failure());
    let held = pack_bytes(&first);
    first.ok(["gc"]);
    assert_eq!(pack_bytes(&first), held);
    first.fails(1, ["verify"]);
    first.stop();
    fs::remove_file(&list).unwrap();
    first.up_with(&UP);
    first.ok(["gc"]);
    fetch_anew(&place, "no-list", &stays, &there).expect_code(0);
}

#[test]
fn public_objects_are_off_unless_asked_for_and_wrong_use_is_told() {
    let place = place();
    let (mut first, _) = place.first("first");
    let ready = first.up();
    assert_eq!(ready["public"].as_array().unwrap().len(), 0);
    let file = place.write("file", b"file");
    let cid = text(&publish(&first, &file, "unixfs-v1-2025"), "cid").to_owned();
    // Version 1, raw, SHA2-256.
    assert_eq!(
        cid,
        "bafkreib3tq2y6nxqumnwvu7bj4yjy7hrtcwjerxigfxzzzkd2wyzvqblqa"
    );
    let nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBmAwcd4PJNJvfV89HwE48nwkRmAgo8Vy3uQEyNNHBox2";
    let out = place.file("out");
    // What is here needs nobody.
    fetch(&first, &cid, &[nobody], &place.file("here")).expect_code(0);
    let elsewhere = "bafkreigicxwvav6t72kj2gdczzdhpzrljspk5bgzaknuhjxyn5smvbjdru";
    assert_eq!(
        fetch(&first, elsewhere, &[nobody], &out).failure_kind(),
        "unreachable"
    );
    assert_eq!(
        fetch(&first, &cid, &["nonsense"], &out).failure_kind(),
        "usage"
    );
    assert_eq!(
        fetch(&first, "/file", &[nobody], &out).failure_kind(),
        "usage"
    );
    let home = first.home().to_str().unwrap().to_owned();
    assert_eq!(
        first.run(["put", "--public", &home]).failure_kind(),
        "usage"
    );
    let missing = place.file("missing");
    let missing = missing.to_str().unwrap();
    assert_eq!(
        first.run(["put", "--public", missing]).failure_kind(),
        "not-found"
    );
    assert_eq!(first.ok(["published"]).values().len(), 1);
    assert_eq!(first.names("/").len(), 0);
}
