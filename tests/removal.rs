//! A removed device gets neither block nor entry nor key that is newer than its removal, and nothing it writes later counts.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use kith_tests::{Kith, Place, copy_folder, files_below, noise, number, text, wait_until};

fn removed(device: &Kith, name: &str) -> bool {
    device
        .ok(["devices"])
        .values()
        .iter()
        .any(|device| text(device, "name") == name && device["removed"] == true)
}

/// A file in the folder that holds those bytes.
fn holds(device: &Kith, needle: &[u8]) -> bool {
    files_below(device.home()).iter().any(|path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

/// The digest in a CID as text: the end of its bytes, in base32 without padding behind the `b`.
fn digest(cid: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for letter in cid.bytes().skip(1) {
        let value = if letter.is_ascii_lowercase() {
            letter - b'a'
        } else {
            letter - b'2' + 26
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(((bits >> count) & 0xff) as u8);
        }
    }
    bytes.split_off(bytes.len() - 32)
}

/// Three devices that agree on `/before`: the third is to go, the second shows that the mesh goes on without it.
struct Three {
    place: Place,
    first: Kith,
    second: Kith,
    third: Kith,
}

fn three() -> Three {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let mut third = place.join("third", &first);
    third.up();
    third.put_bytes(b"written while it belonged", "/by-the-third");
    first.put_bytes(&noise(1, 200_000), "/before");
    second.agrees_with(&first);
    third.agrees_with(&first);
    assert!(third.cat_waiting("/before") == noise(1, 200_000));
    assert_eq!(
        first.cat_waiting("/by-the-third"),
        b"written while it belonged"
    );
    Three {
        place,
        first,
        second,
        third,
    }
}

#[test]
fn device_that_is_up_is_cut_off_at_once() {
    let Three {
        place: _place,
        first,
        second,
        third,
    } = three();
    first.ok(["device", "remove", "third", "--yes"]);
    second.agrees_with(&first);
    assert!(removed(&first, "third") && removed(&second, "third"));
    wait_until("the removed device stands alone", || {
        (number(&third.status(), "connected") == 0).then_some(())
    });
    let entries = number(&third.status(), "entries");
    let cid = first.put_bytes(b"after", "/after");
    second.agrees_with(&first);
    assert_eq!(second.cat_waiting("/after"), b"after");
    assert!(!third.names("/").iter().any(|name| name == "after"));
    third.fails(1, ["cat", &cid]);
    assert!(
        number(&third.status(), "entries") <= entries + 1,
        "at most its own removal"
    );
    // What it wrote while it belonged stays.
    assert_eq!(
        second.cat_waiting("/by-the-third"),
        b"written while it belonged"
    );
}

#[test]
fn old_folder_of_a_removed_device_gets_nothing_new() {
    let Three {
        place,
        mut first,
        mut second,
        mut third,
    } = three();
    third.stop();
    let backup = place.file("backup");
    copy_folder(third.home(), &backup);
    let old = third.status();

    first.ok(["device", "remove", "third", "--yes"]);
    let secret = noise(2, 300_000);
    let cid = first.put_bytes(&secret, "/after");
    let old_again = first.put_bytes(&noise(1, 200_000), "/before-again");
    second.agrees_with(&first);
    assert!(second.cat_waiting("/after") == secret);
    // A fresh dedup secret: even what it knows has another name now, so that it can confirm nothing of what comes later.
    let names = first.ls("/");
    let before = names
        .iter()
        .find(|entry| entry["name"] == "before")
        .unwrap();
    assert_ne!(before["cid"], old_again.as_str());

    for round in 0..2 {
        if round == 1 {
            // The backup knows nothing of any removal, whatever the device was told meanwhile.
            std::fs::remove_dir_all(third.home()).unwrap();
            copy_folder(&backup, third.home());
        }
        third.up();
        // It writes, and would spread it if anybody listened.
        let voided = third.run_with(["put", "-", "--to", "/void"], b"by a removed device");
        assert!(
            voided.code == Some(0) || voided.failure_kind() == "denied",
            "{}",
            voided.stderr
        );
        // The others go on meanwhile, so that there is something to be got, and time for it.
        let marker = format!("/marker-{round}");
        for n in 0..5 {
            let to = format!("{marker}-{n}");
            first.put_bytes(to.as_bytes(), &to);
            second.agrees_with(&first);
            assert_eq!(second.cat_waiting(&to), to.as_bytes());
        }
        // Both restart, so that every connection there could be is tried anew.
        first.stop();
        second.stop();
        second.up();
        first.up();
        first.agrees_with(&second);
        let status = third.status();
        assert_eq!(number(&status, "connected"), 0);
        let allowed = number(&old, "entries") + 2;
        assert!(
            number(&status, "entries") <= allowed,
            "it got entries: {} of {allowed}",
            number(&status, "entries")
        );
        let names = third.names("/");
        assert!(
            !names
                .iter()
                .any(|name| name.starts_with("after") || name.starts_with("marker")),
            "{names:?}"
        );
        third.fails(1, ["cat", &cid]);
        third.fails(1, ["cat", "/after"]);
        // It keeps what it had: that cannot be taken back.
        assert!(third.cat("/before") == noise(1, 200_000));
        for device in [&first, &second] {
            assert!(
                !device.names("/").iter().any(|name| name == "void"),
                "what a removed device writes does not count"
            );
            assert!(device.run(["history", "/void"]).code == Some(1));
        }
        third.kill();
    }
    // No block newer than the removal lies on its disk. (The look finds them where they may be.)
    for cid in [&cid, &old_again] {
        assert!(
            holds(&first, &digest(cid)) && !holds(&third, &digest(cid)),
            "the block {cid}"
        );
    }
    assert!(holds(&third, &digest(text(before, "cid"))));
    first.put_bytes(b"the mesh goes on", "/on");
    second.agrees_with(&first);
}

#[test]
fn removed_device_is_not_let_back_in_under_its_key_but_its_owner_is() {
    let Three {
        place,
        first,
        second,
        third,
    } = three();
    first.ok(["device", "remove", "third", "--yes"]);
    second.agrees_with(&first);
    // Again, and one that never was.
    assert_eq!(
        first
            .fails(1, ["device", "remove", "third", "--yes"])
            .failure_kind(),
        "not-found"
    );
    assert_eq!(
        first
            .fails(1, ["device", "remove", "nobody", "--yes"])
            .failure_kind(),
        "not-found"
    );
    // Without --yes a person is asked, and no answer is no.
    first.fails(1, ["device", "remove", "second"]);
    assert!(!removed(&first, "second"));
    drop(third);
    // The same machine, paired anew: another key, and welcome.
    let mut again = place.device("third-anew");
    let pairing = first.pair(&["--yes"]);
    again.ok(["join", pairing.ticket(), "--name", "third"]);
    pairing.finish().expect_code(0);
    again.up();
    again.agrees_with(&first);
    assert!(again.cat_waiting("/before") == noise(1, 200_000));
    again.put_bytes(b"back", "/back");
    first.agrees_with(&again);
    assert_eq!(first.cat_waiting("/back"), b"back");
}

#[test]
fn member_cannot_remove_those_above_it() {
    let Three {
        place: _place,
        first,
        second,
        third: _third,
    } = three();
    let failed = second.fails(1, ["device", "remove", "first", "--yes"]);
    assert_eq!(failed.failure_kind(), "denied");
    assert!(!removed(&first, "first") && !removed(&second, "first"));
}

#[test]
fn stolen_admin_is_removed_by_the_words_only() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, words) = place.first("first");
    first.up();
    let mut second = place.device("second");
    second
        .join_by_words(&words, "second", &first.addrs())
        .expect_code(0);
    second.up();
    second.agrees_with(&first);
    let mut third = place.join("third", &first);
    third.up();
    third.agrees_with(&first);

    let failed = first.fails(1, ["device", "remove", "second", "--yes"]);
    assert_eq!(failed.failure_kind(), "denied");
    assert!(
        failed.failure_text().contains("--words"),
        "{}",
        failed.stderr
    );
    let by_words = |input: &str| {
        first.run_with(
            ["device", "remove", "second", "--words", "--yes"],
            input.as_bytes(),
        )
    };
    by_words("abandon ability").expect_code(2);
    // Good words, but not of this mesh.
    let others = format!("{}art", "abandon ".repeat(23));
    by_words(&others).expect_code(1);
    assert!(!removed(&first, "second"));
    let done = by_words(&words);
    done.expect_code(0);
    third.agrees_with(&first);
    assert!(removed(&third, "second"));
    wait_until("the removed device stands alone", || {
        (number(&second.status(), "connected") == 0).then_some(())
    });
    let cid = first.put_bytes(b"after", "/after");
    second.fails(1, ["cat", &cid]);
    assert_eq!(third.cat_waiting("/after"), b"after");
}

#[test]
fn device_that_met_nobody_removes_only_when_forced() {
    let Three {
        place: _place,
        mut first,
        mut second,
        mut third,
    } = three();
    for device in [&mut first, &mut second, &mut third] {
        device.stop();
    }
    // Nobody else is up: what the lost device told the others may not be known here.
    let failed = first.fails(1, ["device", "remove", "third", "--yes"]);
    assert!(
        failed.failure_text().contains("--force"),
        "{}",
        failed.stderr
    );
    assert!(!removed(&first, "third"));
    first.ok(["device", "remove", "third", "--yes", "--force"]);
    assert!(removed(&first, "third"));
    first.up();
    second.up();
    second.agrees_with(&first);
    assert!(removed(&second, "third"));
    assert_eq!(
        second.cat_waiting("/by-the-third"),
        b"written while it belonged"
    );
}
