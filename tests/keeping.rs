//! What is stored is kept by as many devices as the policy says, by itself.
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use kith_tests::{Kith, Place, noise, number, text, wait_until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kith");
/// Every device gives that much.
const GIVES: [&str; 4] = ["--listen", "127.0.0.1", "--capacity", "1G"];

/// A mesh of devices that are up and give room for packs; the first is the admin.
fn mesh(place: &Place, names: &[&str]) -> Vec<Kith> {
    let (first, _) = place.first(names[0]);
    let mut devices = vec![first];
    devices[0].up_with(&GIVES);
    for name in &names[1..] {
        let mut device = place.join(name, &devices[0]);
        device.up_with(&GIVES);
        devices.push(device);
    }
    for device in &devices {
        wait_until("all are connected and have said what they give", || {
            let known = device.ok(["devices"]).values();
            let ready = |value: &Value| {
                (value["connected"] == true || value["this"] == true)
                    && value["capacity"] == 1 << 30
                    && value["told"] == true
            };
            (known.len() == names.len() && known.iter().all(ready)).then_some(())
        });
    }
    devices
}

/// Names of the devices that hold each pack of what stands there.
fn holders(device: &Kith, what: &str) -> Vec<BTreeSet<String>> {
    let packs = device.ok(["where", what]).values();
    let named = |value: &Value| {
        let held = value["held"].as_array().expect("holders");
        let names = held.iter().map(|name| name.as_str().expect("a name"));
        names.map(str::to_owned).collect()
    };
    packs.iter().map(named).collect()
}

/// Files of closed packs that count as copies.
fn packs_on_disk(device: &Kith) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(device.home().join("packs")).expect("the store's folder");
    let files = files.map(|file| file.expect("a name").path());
    let is_pack = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "pack");
    files.filter(is_pack).collect()
}

fn verdict(device: &Kith) -> String {
    text(&device.status()["keeping"], "verdict").to_owned()
}

fn wait_until_healthy(device: &Kith) {
    wait_until("all is kept as often as it should be", || {
        (verdict(device) == "healthy").then_some(())
    });
}

#[test]
fn what_is_put_is_kept_by_as_many_as_should_and_outlasts_them() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["desk", "attic", "cellar", "phone"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    let bytes = noise(1, 30 << 20);
    let file = place.write("film", &bytes);
    let file = file.to_str().expect("a path");
    // On a device that holds by itself: the others fetch.
    devices[0].ok(["put", file, "--wait", "replicated"]);
    let kept = holders(&devices[0], "/film");
    assert!(kept.len() >= 2, "two packs are full: {kept:?}");
    for pack in &kept {
        assert!(pack.len() >= 2, "{kept:?}");
    }
    let why = devices[0].ok(["why", "/film"]).values();
    assert!(
        why.iter()
            .all(|pack| pack["waits"] == serde_json::json!([]))
    );
    wait_until_healthy(&devices[0]);
    let quotas = || devices[1].ok(["quota"]).values();
    let sum =
        |quotas: &[Value], key: &str| -> u64 { quotas.iter().map(|of| number(of, key)).sum() };
    let all = wait_until("all know what each of them holds", || {
        let all = quotas();
        let counted = sum(&all, "takes") == sum(&all, "held");
        (counted && sum(&all, "wrote_packs") >= 2).then_some(all)
    });
    assert_eq!(all.len(), 4);
    for quota in &all {
        assert_eq!(quota["gives"], 1 << 30, "{quota}");
        let is_writer = quota["name"] == "desk";
        assert_eq!(number(quota, "wrote") > 30 << 20, is_writer, "{quota}");
        assert_eq!(number(quota, "wrote") == 0, !is_writer, "{quota}");
    }
    let (wrote, takes) = (sum(&all, "wrote"), sum(&all, "takes"));
    assert!(takes >= 2 * wrote && takes <= 3 * wrote, "{wrote} {takes}");
    // Where it was put is gone for good: nothing is lost, and what is missing comes back by itself.
    devices[0].kill();
    devices.remove(0);
    for device in &devices {
        wait_until("it is seen that one is away", || {
            let away = |value: &Value| value["name"] == "desk" && value["connected"] == false;
            device
                .ok(["devices"])
                .values()
                .iter()
                .any(away)
                .then_some(())
        });
        assert_eq!(device.cat("/film"), bytes);
    }
}

#[test]
fn a_device_that_stays_silent_is_replaced_unattended_and_welcomed_back() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["desk", "attic", "cellar"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    for device in ["attic", "cellar"] {
        devices[0].ok(["device", "set", device, "--grace", "3s"]);
    }
    let bytes = noise(2, 3 << 20);
    let file = place.write("notes", &bytes);
    devices[0].ok([
        "put",
        file.to_str().expect("a path"),
        "--wait",
        "replicated",
    ]);
    wait_until_healthy(&devices[0]);
    let kept = holders(&devices[0], "/notes");
    let place_of = |name: &str| match name {
        "attic" => 1,
        _ => 2,
    };
    let gone = kept[0]
        .iter()
        .find(|name| *name != "desk")
        .expect("another")
        .clone();
    let left = if gone == "attic" { "cellar" } else { "attic" };
    devices[place_of(&gone)].kill();
    let is_gone = |value: &Value| value["name"] == gone.as_str() && value["gone"] == true;
    wait_until("it counts as gone", || {
        let seen = devices[0].ok(["devices"]).values();
        seen.iter().any(is_gone).then_some(())
    });
    wait_until("another takes its place", || {
        let kept = holders(&devices[0], "/notes");
        kept.iter().all(|pack| pack.contains(left)).then_some(())
    });
    wait_until_healthy(&devices[0]);
    devices[place_of(&gone)].up_with(&GIVES);
    wait_until("it counts again", || {
        let seen = devices[0].ok(["devices"]).values();
        (!seen.iter().any(is_gone)).then_some(())
    });
    wait_until_healthy(&devices[0]);
    assert_eq!(devices[place_of(left)].cat("/notes"), bytes);
}

#[test]
fn drained_and_lost_devices_are_replaced_at_once() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["desk", "attic", "cellar"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    let file = place.write("notes", noise(3, 2 << 20));
    devices[0].ok([
        "put",
        file.to_str().expect("a path"),
        "--wait",
        "replicated",
    ]);
    devices[0].ok(["device", "drain", "desk"]);
    // What the first holds counts no more: the other two have to hold it.
    wait_until("all is taken over", || {
        let kept = holders(&devices[0], "/notes");
        let both = |pack: &BTreeSet<String>| pack.contains("attic") && pack.contains("cellar");
        kept.iter().all(both).then_some(())
    });
    wait_until_healthy(&devices[1]);
    wait_until("the first is empty", || {
        let known = devices[1].ok(["devices"]).values();
        let desk = known.iter().find(|value| value["name"] == "desk");
        let empty = number(desk.expect("it belongs"), "packs") == 0;
        (empty && packs_on_disk(&devices[0]).is_empty()).then_some(())
    });
    devices[0].ok(["device", "stay", "desk"]);
    devices[2].kill();
    let said = devices[0].ok(["device", "lost", "cellar"]);
    assert_eq!(said.values()[0]["leaving"], "lost");
    wait_until("its copies count no more", || {
        let seen = devices[1].ok(["devices"]).values();
        let gone = |value: &Value| value["name"] == "cellar" && value["gone"] == true;
        seen.iter().any(gone).then_some(())
    });
    wait_until_healthy(&devices[1]);
    // Only an admin says so.
    let refused = devices[1].fails(1, ["device", "lost", "desk"]);
    assert!(
        refused.failure_text().contains("not an admin"),
        "{}",
        refused.failure_text()
    );
}

#[test]
fn packs_stay_at_the_sites_that_were_named() {
    let place = Place::new(PROGRAM);
    let devices = mesh(&place, &["desk", "attic", "cloud"]);
    for (device, site) in [("desk", "home"), ("attic", "home"), ("cloud", "elsewhere")] {
        devices[0].ok(["device", "set", device, "--site", site]);
    }
    let sites = [
        "policy",
        "set",
        "home",
        "--replicas",
        "2",
        "--sites",
        "home",
    ];
    devices[0].ok(sites);
    for n in 0..4 {
        let file = place.write(format!("file {n}"), noise(4 + n, 1 << 20));
        devices[0].ok([
            "put",
            file.to_str().expect("a path"),
            "--wait",
            "replicated",
        ]);
    }
    for n in 0..4 {
        for pack in holders(&devices[0], &format!("/file {n}")) {
            assert_eq!(pack, ["attic", "desk"].map(str::to_owned).into());
        }
    }
    // It may read all the same, and write; but what it wrote does not stay there.
    let packs = || number(&devices[0].status()["keeping"], "packs");
    let before = packs();
    assert_eq!(devices[2].cat("/file 0"), noise(4, 1 << 20));
    // What was read is closed now, and is nobody's business.
    devices[2].ok(["gc"]);
    devices[2].agrees_with(&devices[0]);
    assert_eq!(packs(), before);
    let file = place.write("from afar", noise(9, 1 << 20));
    let file = file.to_str().expect("a path");
    devices[2].ok(["put", file, "--wait", "replicated"]);
    wait_until("it is at home alone", || {
        let home: BTreeSet<String> = ["attic", "desk"].map(str::to_owned).into();
        let held = holders(&devices[2], "/from afar");
        (held.iter().all(|pack| *pack == home)).then_some(())
    });
    assert_eq!(devices[2].cat("/from afar"), noise(9, 1 << 20));
}

#[test]
fn policies_that_cannot_be_kept_are_refused_in_plain_words() {
    let place = Place::new(PROGRAM);
    let devices = mesh(&place, &["desk", "attic"]);
    let refused = |args: &[&str]| devices[0].fails(2, args).failure_text();
    let set = ["policy", "set", "home"];
    let of = |more: &[&'static str]| [&set[..], more].concat();
    let told = refused(&of(&["--erasure", "10+6"]));
    assert!(
        told.contains("2 holders cannot keep 10+6; best is 2 copies"),
        "{told}"
    );
    let told = refused(&of(&["--erasure", "3+9"]));
    assert!(told.contains("there is no 3+9"), "{told}");
    let told = refused(&of(&["--auto", "--min-sites", "2"]));
    assert!(
        told.contains("holders are at 1 sites, and 2 are wanted"),
        "{told}"
    );
    let told = refused(&of(&["--replicas", "2", "--sites", "a b"]));
    assert!(told.contains("no name of a site"), "{told}");
    let told = refused(&of(&["--auto", "--sites", "mars"]));
    assert!(told.contains("no device may hold packs"), "{told}");
    let told = devices[0]
        .fails(1, ["policy", "set", "work", "--auto"])
        .failure_text();
    assert!(told.contains("there is no space"), "{told}");
    let told = devices[1].fails(1, of(&["--replicas", "2"])).failure_text();
    assert!(told.contains("only an admin"), "{told}");
    let shown = devices[0].ok(["policy", "show"]).last();
    assert_eq!(
        (text(&shown, "redundancy"), &shown["copies"]),
        ("auto", &Value::from(2))
    );
}

#[test]
fn one_device_merges_small_packs_and_the_others_follow() {
    let place = Place::new(PROGRAM);
    let devices = mesh(&place, &["desk", "attic"]);
    let contents: Vec<Vec<u8>> = (0..9).map(|n| noise(20 + n, 100_000)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        let file = place.write(format!("small {n}"), bytes);
        devices[0].ok([
            "put",
            file.to_str().expect("a path"),
            "--wait",
            "replicated",
        ]);
    }
    let collected = |device: &Kith| device.ok(["gc"]).event("collected");
    let packs_of = |asked: &Kith, name: &str| {
        let devices = asked.ok(["devices"]).values();
        let named = devices.iter().find(|value| value["name"] == name);
        number(named.expect("it is there"), "packs")
    };
    // They came to be on the other one: this one merges none of them.
    let run = collected(&devices[1]);
    assert_eq!(
        (&run["merged"], &run["packs"]),
        (&Value::from(0), &Value::from(9))
    );
    let run = collected(&devices[0]);
    assert_eq!(
        (&run["merged"], &run["dropped"]),
        (&Value::from(9), &Value::from(9))
    );
    wait_until("what they were merged into is here too", || {
        (packs_of(&devices[1], "attic") == 10).then_some(())
    });
    let run = collected(&devices[1]);
    assert_eq!(
        (&run["merged"], &run["dropped"]),
        (&Value::from(0), &Value::from(9))
    );
    wait_until("both know that each holds the one pack", || {
        let all = devices.iter().all(|device| {
            ["desk", "attic"]
                .iter()
                .all(|name| packs_of(device, name) == 1)
        });
        all.then_some(())
    });
    for device in &devices {
        wait_until_healthy(device);
        for (n, bytes) in contents.iter().enumerate() {
            assert_eq!(&device.cat(&format!("/small {n}")), bytes);
        }
    }
    assert_eq!(holders(&devices[1], "/small 3").len(), 1);
}

#[test]
fn what_was_merged_elsewhere_goes_once_others_have_proved_its_blocks() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["desk", "attic"]);
    let mut cellar = place.join("cellar", &devices[0]);
    up_without_room(&mut cellar);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    let contents: Vec<Vec<u8>> = (0..9).map(|n| noise(60 + n, 100_000)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        let file = place.write(format!("small {n}"), bytes);
        let file = file.to_str().expect("a path");
        devices[0].ok(["put", file, "--wait", "replicated"]);
    }
    assert_eq!(packs_on_disk(&devices[1]).len(), 9);
    // While one of the two is away its place is given to the third, and all is merged.
    devices[1].stop();
    for (name, room) in [("attic", "0"), ("cellar", "1G")] {
        devices[0].ok(["device", "set", name, "--capacity", room]);
    }
    let run = devices[0].ok(["gc"]).event("collected");
    assert_eq!(
        (&run["merged"], &run["dropped"]),
        (&Value::from(9), &Value::from(9))
    );
    let both: BTreeSet<String> = ["desk", "cellar"].map(str::to_owned).into();
    wait_until("what it was merged into is where it should be", || {
        let held = holders(&devices[0], "/small 3");
        held.contains(&both).then_some(())
    });
    // It has what was merged, and not what that was merged into.
    up_without_room(&mut devices[1]);
    wait_until("the first one is empty", || {
        packs_on_disk(&devices[1]).is_empty().then_some(())
    });
    // The third may have fetched what was merged before the merge; there it goes as it does at home.
    cellar.ok(["gc"]);
    wait_until("nothing else is left", || {
        (holders(&devices[1], "/small 3") == std::slice::from_ref(&both)).then_some(())
    });
    for device in [&devices[1], &cellar] {
        for (n, bytes) in contents.iter().enumerate() {
            assert_eq!(&device.cat(&format!("/small {n}")), bytes);
        }
    }
}

#[test]
fn what_a_removal_leaves_unsaid_is_said_by_those_that_keep_it() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["desk", "attic", "cellar"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    devices[0].ok(["device", "set", "desk", "--capacity", "0"]);
    let contents: Vec<Vec<u8>> = (0..9).map(|n| noise(80 + n, 100_000)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        let file = place.write(format!("small {n}"), bytes);
        let file = file.to_str().expect("a path");
        devices[1].ok(["put", file, "--wait", "replicated"]);
    }
    devices[0].agrees_with(&devices[1]);
    devices[0].stop();
    // The admin does not see that all is merged, and that another keeps what came of it.
    let run = devices[1].ok(["gc"]).event("collected");
    assert_eq!(run["merged"], 9, "{run}");
    let both: BTreeSet<String> = ["attic", "cellar"].map(str::to_owned).into();
    let merge = wait_until("the other one keeps what came of the merge", || {
        let packs = devices[1].ok(["where", "/small 3"]).values();
        let is_kept = holders(&devices[1], "/small 3") == std::slice::from_ref(&both);
        is_kept.then(|| text(&packs[0], "pack").to_owned())
    });
    devices[2].agrees_with(&devices[1]);
    devices[1].kill();
    devices[2].stop();
    // So the removal voids what was said of it.
    devices[0].ok(["device", "remove", "attic", "--yes", "--force"]);
    up_with_room(&mut devices[0]);
    up_with_room(&mut devices[2]);
    devices[2].agrees_with(&devices[0]);
    devices[2].stop();
    up_with_room(&mut devices[2]);
    wait_until("the admin keeps it, too", || {
        let packs = devices[0].ok(["where", "/small 3"]).values();
        let is_kept = |pack: &Value| {
            let held = pack["held"].as_array().expect("holders");
            pack["pack"] == merge.as_str() && held.len() == 2
        };
        packs.iter().any(is_kept).then_some(())
    });
    devices[2].kill();
    for (n, bytes) in contents.iter().enumerate() {
        assert_eq!(&devices[0].cat(&format!("/small {n}")), bytes);
    }
}

/// Starts a device that gives room.
fn up_with_room(device: &mut Kith) {
    device.up_with(&GIVES);
}

/// Starts a device that gives no room, so that whatever it puts is for others to keep.
fn up_without_room(device: &mut Kith) {
    device.up_with(&["--listen", "127.0.0.1", "--capacity", "0"]);
}

#[test]
fn copies_that_are_too_many_are_given_up_but_not_what_is_pinned() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["attic", "cellar", "phone"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    devices[2].stop();
    up_without_room(&mut devices[2]);
    let contents = [noise(30, 20 << 20), noise(31, 3 << 20)];
    let put = |name: &str, bytes: &[u8], more: &[&str]| {
        let file = place.write(name, bytes);
        devices[2].ok([&["put", file.to_str().expect("a path")], more].concat());
    };
    let waiting = ["--wait", "replicated"];
    put("film", &contents[0], &waiting);
    put("letters", &contents[1], &[]);
    devices[2].ok(["pin", "/letters"]);
    put("stamp", &noise(32, 1000), &waiting);
    let others: BTreeSet<String> = ["attic", "cellar"].map(str::to_owned).into();
    wait_until("the film is kept by the others alone", || {
        let held = holders(&devices[2], "/film");
        held.iter().all(|pack| *pack == others).then_some(())
    });
    wait_until("all others hold the letters", || {
        let held = holders(&devices[2], "/letters");
        held.iter()
            .all(|pack| pack.is_superset(&others))
            .then_some(())
    });
    // Those that have promised keep what they have over a restart.
    devices[0].kill();
    devices[0].up_with(&GIVES);
    for pack in holders(&devices[2], "/letters") {
        assert!(pack.contains("phone"), "it is pinned there: {pack:?}");
    }
    assert!(devices[0].home().join("logs").join("promises.log").exists());
    // What was given up is read from here still, as long as there is room.
    for device in &mut devices[..2] {
        device.kill();
    }
    for (name, bytes) in ["/film", "/letters"].iter().zip(&contents) {
        assert!(devices[2].cat(name) == *bytes, "{name}");
    }
}

#[test]
fn a_phone_keeps_no_more_than_its_cache_and_reads_all() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["attic", "cellar", "phone"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    devices[2].stop();
    let room = [
        "--listen",
        "127.0.0.1",
        "--capacity",
        "0",
        "--cache-size",
        "4M",
    ];
    devices[2].up_with(&room);
    let contents = [noise(70, 20 << 20), noise(71, 1000)];
    for (name, bytes) in ["film", "note"].iter().zip(&contents) {
        let file = place.write(name, bytes);
        let file = file.to_str().expect("a path");
        devices[2].ok(["put", file, "--wait", "replicated"]);
    }
    let most = 4 << 20;
    let is_small = |device: &Kith| {
        let status = device.status();
        assert_eq!(number(&status, "cache_bytes"), most);
        (number(&status, "disk_bytes") <= most).then_some(())
    };
    wait_until("others keep what it put", || is_small(&devices[2]));
    for (name, bytes) in ["/film", "/note"].iter().zip(&contents) {
        assert!(devices[2].cat(name) == *bytes, "{name}");
    }
    // What it read is cached, and goes too; that holds for later starts.
    wait_until("what it read is gone", || is_small(&devices[2]));
    devices[2].stop();
    devices[2].up_with(&["--listen", "127.0.0.1"]);
    assert!(devices[2].cat("/film") == contents[0]);
    wait_until("it is again", || is_small(&devices[2]));
    devices[2].stop();
    devices[2].up_with(&["--listen", "127.0.0.1", "--cache-size", "none"]);
    assert!(devices[2].status()["cache_bytes"].is_null());
}

#[test]
fn a_copy_stays_while_one_that_counts_is_rotten() {
    let place = Place::new(PROGRAM);
    let mut devices = mesh(&place, &["attic", "cellar", "phone"]);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    devices[2].stop();
    up_without_room(&mut devices[2]);
    devices[1].kill();
    let bytes = noise(40, 3 << 20);
    devices[2].ok([
        "put",
        place.write("notes", &bytes).to_str().expect("a path"),
    ]);
    // Which closes the packs.
    devices[2].ok(["gc"]);
    wait_until("one of two holds it", || {
        let held = holders(&devices[2], "/notes");
        let there = held.iter().all(|pack| pack.contains("attic"));
        (!held.is_empty() && there).then_some(())
    });
    for path in packs_on_disk(&devices[0]) {
        let mut rotten = std::fs::read(&path).expect("a pack");
        let middle = rotten.len() / 2;
        rotten[middle] ^= 1;
        std::fs::write(&path, rotten).expect("a pack");
    }
    devices[1].up_with(&GIVES);
    wait_until("it is found out", || {
        (number(&devices[0].status(), "damaged") > 0).then_some(())
    });
    // What is rotten is set aside, and fetched anew.
    wait_until("the others have it whole", || {
        let held = holders(&devices[2], "/notes");
        let whole = |pack: &BTreeSet<String>| pack.contains("attic") && pack.contains("cellar");
        held.iter().all(whole).then_some(())
    });
    devices[2].kill();
    devices[1].kill();
    assert_eq!(devices[0].cat("/notes"), bytes);
}

#[test]
fn devices_that_are_killed_while_copies_move_lose_nothing() {
    let place = Place::new(PROGRAM);
    let names = ["attic", "cellar", "desk", "shed"];
    let mut devices = mesh(&place, &names);
    devices[0].ok(["policy", "set", "home", "--replicas", "2"]);
    let mut contents = Vec::new();
    for round in 0..8_usize {
        let bytes = noise(50 + round as u64, 2 << 20);
        let name = format!("file {round}");
        let file = place.write(&name, &bytes);
        let at = round % devices.len();
        devices[at].ok(["put", file.to_str().expect("a path")]);
        contents.push((format!("/{name}"), bytes));
        // Sooner or later after the put: packs close after a while, are told of, fetched, proved and given up.
        std::thread::sleep(std::time::Duration::from_millis(150 * round as u64));
        let victim = (at + 1 + round / 4) % devices.len();
        devices[victim].kill();
        devices[victim].up_with(&GIVES);
    }
    let (last, _) = contents.last().expect("there are some").clone();
    devices[3].ok([
        "put",
        place.file("file 7").to_str().expect("a path"),
        "--wait",
        "replicated",
    ]);
    for device in &devices {
        wait_until_healthy(device);
    }
    assert_eq!(last, "/file 7");
    for device in &devices {
        for (name, bytes) in &contents {
            assert!(device.cat_waiting(name) == *bytes, "{name}");
        }
    }
}
