//! What a device keeps: pins and retention, as their owner meets them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use kith_tests::{Kith, Place, Running, noise, number, text, wait_until};
use serde_json::{Value, json};

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn roots(device: &Kith) -> Vec<String> {
    let pins = device.ok(["pins"]).values();
    pins.iter().map(|pin| text(pin, "cid").to_owned()).collect()
}

/// What is held here, by how `kith pin` says so.
fn held(pinned: &Value) -> (u64, u64) {
    (number(pinned, "blocks"), number(pinned, "missing"))
}

#[test]
fn pin_is_of_what_stood_there_and_outlasts_restarts() {
    let place = place();
    let (mut device, _) = place.first("first");
    device.up();
    let old = device.put_bytes(&noise(1, 300_000), "/notes");
    let pinned = device.ok(["pin", "/notes"]).event("pinned");
    assert_eq!(text(&pinned, "cid"), old);
    assert_eq!(
        (text(&pinned, "name"), text(&pinned, "kind")),
        ("/notes", "file")
    );
    assert_eq!(number(&pinned, "size"), 300_000);
    assert!(held(&pinned).0 > 1 && held(&pinned).1 == 0);
    // Something else comes to stand there, and the name goes.
    let new = device.put_bytes(&noise(2, 200_000), "/notes");
    assert_ne!(old, new);
    assert_eq!(roots(&device), [old.as_str()]);
    device.ok(["rm", "/notes"]);
    device.kill();
    let pins = device.ok(["pins"]).values();
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (text(&pins[0], "cid"), text(&pins[0], "name")),
        (old.as_str(), "/notes")
    );
    device.up();
    assert_eq!(roots(&device), [old.as_str()]);
    // By CID, and again: one pin each.
    device.ok(["pin", &new]);
    let again = device.ok(["pin", &new]).event("pinned");
    assert!(again["name"].is_null());
    assert_eq!(roots(&device).len(), 2);
    // A path means what was pinned there.
    let gone = device.ok(["unpin", "/notes"]).event("unpinned");
    assert_eq!(text(&gone, "cid"), old);
    assert_eq!(roots(&device), [new.as_str()]);
    device.ok(["unpin", &new]);
    assert!(roots(&device).is_empty());
    for what in ["/notes", new.as_str()] {
        let refused = device.fails(1, ["unpin", what]);
        assert_eq!(refused.failure_kind(), "not-found");
    }
    device.stop();
}

#[test]
fn folder_is_pinned_as_it_is_and_fetched_from_others() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let big = noise(3, 2_000_000);
    place.write("photos/a.jpg", &big);
    place.write("photos/2019/b.jpg", noise(4, 70_000));
    first.put(&place.file("photos"), "/photos");
    first.ok(["mkdir", "/photos/empty"]);
    second.agrees_with(&first);
    let pinned = second.ok(["pin", "/photos", "--wait"]).event("pinned");
    assert_eq!(text(&pinned, "kind"), "folder");
    assert_eq!(number(&pinned, "size"), 2_070_000);
    assert_eq!(held(&pinned).1, 0);
    assert!(number(&pinned, "bytes") > 2_070_000);
    let blocks = held(&pinned).0;
    // All of it is here: nobody else is needed.
    first.stop();
    second.stop();
    assert_eq!(second.cat("/photos/a.jpg"), big);
    let cid = text(&pinned, "cid").to_owned();
    let again = second.ok(["pin", &cid]).event("pinned");
    assert_eq!(
        (held(&again), text(&again, "name")),
        ((blocks, 0), "/photos")
    );
    // The same folder has the same root, another folder another, and a pin of either ends with its path.
    assert_eq!(
        text(&second.ok(["pin", "/photos"]).event("pinned"), "cid"),
        cid
    );
    second.ok(["mkdir", "/photos/more"]);
    let other = second.ok(["pin", "/photos"]).event("pinned");
    assert_ne!(text(&other, "cid"), cid);
    assert_eq!(roots(&second).len(), 2);
    assert_eq!(second.ok(["unpin", "/photos"]).values().len(), 2);
    assert!(roots(&second).is_empty());
}

#[test]
fn pin_stands_though_nothing_of_it_can_be_had() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let cid = first.put_bytes(&noise(5, 1_000_000), "/far");
    second.agrees_with(&first);
    first.stop();
    let lacking = second.fails(3, ["pin", "/far"]);
    assert_eq!(lacking.failure_kind(), "partial");
    assert_eq!(held(&lacking.event("pinned")), (0, 1));
    assert!(lacking.stderr.contains(&cid), "{}", lacking.stderr);
    assert_eq!(roots(&second), [cid.as_str()]);
    // Without a daemon too, which nobody can be asked by.
    second.stop();
    let lacking = second.fails(3, ["pin", &cid]);
    assert!(lacking.failure_text().contains("kith up"));
    second.up();
    first.up();
    let whole = second.ok(["pin", &cid, "--wait"]).event("pinned");
    assert!(held(&whole).0 > 1 && held(&whole).1 == 0);
    first.stop();
    assert_eq!(second.cat("/far"), noise(5, 1_000_000));
    second.stop();
}

#[test]
fn pin_that_is_interrupted_stands() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let cid = first.put_bytes(&noise(6, 900_000), "/far");
    second.agrees_with(&first);
    first.stop();
    let mut running = Running::start(second.command(["pin", "/far", "--wait"]));
    wait_until("the pin is written", || {
        (roots(&second) == [cid.as_str()]).then_some(())
    });
    running.kill();
    assert_eq!(roots(&second), [cid.as_str()]);
    first.up();
    let whole = second.ok(["pin", "/far", "--wait"]).event("pinned");
    assert_eq!(held(&whole).1, 0);
    assert_eq!(roots(&second), [cid]);
    first.stop();
    second.stop();
}

#[test]
fn damaged_pins_are_named_and_not_taken_for_none() {
    let place = place();
    let (device, _) = place.first("first");
    device.put_bytes(b"x", "/x");
    device.ok(["pin", "/x"]);
    device.ok(["verify"]);
    let file = device.home().join("pins");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let ran = device.fails(1, ["verify"]);
    assert_eq!(text(&ran.event("damage"), "file"), "pins");
    for args in [&["pins"][..], &["pin", "/x"], &["unpin", "/x"]] {
        assert_eq!(device.fails(1, args).failure_kind(), "corrupt");
    }
    std::fs::remove_file(&file).unwrap();
    device.ok(["pin", "/x"]);
    device.ok(["verify"]);
}

#[test]
fn what_cannot_be_pinned_is_refused() {
    let place = place();
    let (device, _) = place.first("first");
    // Of zeros.
    let unknown = "bafkr4iaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for what in ["/nothing", unknown] {
        let refused = device.fails(1, ["pin", what]);
        assert_eq!(refused.failure_kind(), "not-found");
    }
    device.fails(2, ["pin"]);
    assert!(roots(&device).is_empty());
    // An empty tree is a folder too.
    let root = device.ok(["pin", "/"]).event("pinned");
    assert_eq!((text(&root, "kind"), number(&root, "size")), ("folder", 0));
}

fn retention(device: &Kith) -> Value {
    let shown = device.ok(["retention"]).event("retention");
    json!([shown["all"], shown["daily"], shown["monthly"]])
}

#[test]
fn retention_set_on_one_device_holds_on_another() {
    let place = place();
    let (mut first, _) = place.first("first");
    assert_eq!(retention(&first), json!([30, 365, null]));
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let set = first.ok(["retention", "--all", "7", "--monthly", "100"]);
    let set = set.event("retention");
    assert_eq!(
        json!([set["all"], set["daily"], set["monthly"]]),
        json!([7, 365, 100])
    );
    wait_until("the other device hears of it", || {
        (retention(&second) == json!([7, 365, 100])).then_some(())
    });
    first.ok(["retention", "--all", "forever"]);
    wait_until("the other device hears of that too", || {
        (retention(&second) == json!([null, 365, 100])).then_some(())
    });
    // Only an admin sets it.
    let refused = second.fails(1, ["retention", "--all", "1"]);
    assert_eq!(refused.failure_kind(), "denied");
    assert!(refused.failure_text().contains("not an admin"));
    // It outlasts a restart.
    second.kill();
    assert_eq!(retention(&second), json!([null, 365, 100]));
    for nonsense in ["0", "-1", "1.5", "week", "", "4294967295", "99999999999"] {
        for flag in ["--all", "--daily", "--monthly"] {
            let flag = format!("{flag}={nonsense}");
            first.fails(2, ["retention", flag.as_str()]);
        }
    }
    assert_eq!(retention(&first), json!([null, 365, 100]));
    first.stop();
}
