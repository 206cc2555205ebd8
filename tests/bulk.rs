//! Whole packs between devices: from several at once, on after a kill, and nothing twice.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::PathBuf;

use kith_tests::{Kith, Place, Running, files_below, noise, number, text, wait_until};

/// More than two packs, of 16 MiB each.
const BYTES: usize = 40_000_000;

/// The parts that a device has under way, and how long they are.
fn parts(device: &Kith) -> Vec<(PathBuf, u64)> {
    let files = files_below(&device.home().join("packs"));
    let parts = files.into_iter().filter(|file| {
        let ending = file.extension();
        ending.is_some_and(|ending| ending == "part")
    });
    // One may become a pack while it is looked at.
    let parts = parts.filter_map(|file| Some((file.metadata().ok()?.len(), file)));
    parts.map(|(len, file)| (file, len)).collect()
}

fn part_bytes(device: &Kith) -> u64 {
    parts(device).iter().map(|(_, len)| len).sum()
}

/// A device that holds a file, in packs that are closed.
fn holder(place: &Place) -> (Kith, String, Vec<u8>) {
    let (mut first, _) = place.first("first");
    first.up();
    let body = noise(11, BYTES);
    let cid = first.put_bytes(&body, "/big.bin");
    // The last pack is closed when the store is opened again.
    first.stop();
    first.up();
    (first, cid, body)
}

#[test]
fn packs_come_whole_from_all_who_have_them() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, cid, body) = holder(&place);
    let mut second = place.join("second", &first);
    second.up();
    second.agrees_with(&first);
    let pinned = second.ok(["pin", &cid, "--wait"]).event("pinned");
    assert_eq!(number(&pinned, "missing"), 0);
    assert_eq!(number(&pinned, "size"), BYTES as u64);
    let moved = second.status()["bulk"].clone();
    assert!(number(&moved, "packs") >= 3, "{moved}");
    let received = number(&moved, "received");
    assert!(
        (BYTES as u64..BYTES as u64 * 102 / 100).contains(&received),
        "{received}"
    );
    assert_eq!(number(&moved, "wasted"), 0, "{moved}");
    assert!(number(&first.status()["bulk"], "pieces_sent") >= 38);
    // The very packs: what one holds, the other does.
    let names = |device: &Kith| {
        let files = files_below(&device.home().join("packs")).into_iter();
        let mut names: Vec<_> = files
            .map(|file| file.file_name().unwrap().to_owned())
            .collect();
        names.retain(|name| !name.to_string_lossy().starts_with("open-"));
        names
    };
    let have = names(&second);
    assert!(names(&first).iter().all(|name| have.contains(name)));
    // Again: nothing moves.
    second.ok(["pin", &cid]);
    assert_eq!(number(&second.status()["bulk"], "received"), received);
    // A third has them of both.
    let mut third = place.join("third", &first);
    third.up();
    third.agrees_with(&second);
    wait_until("the third is connected with both", || {
        (number(&third.status(), "connected") == 2).then_some(())
    });
    let pinned = third.ok(["pin", &cid, "--wait"]).event("pinned");
    assert_eq!(number(&pinned, "missing"), 0);
    let status = third.status();
    let from = |name: &str| {
        let traffic = status["traffic"].as_array().unwrap();
        let of = traffic.iter().find(|traffic| text(traffic, "name") == name);
        of.map_or(0, |traffic| number(traffic, "received"))
    };
    assert!(
        from("first") > 1 << 20 && from("second") > 1 << 20,
        "{status}"
    );
    assert!(
        number(&status["bulk"], "received") < BYTES as u64 * 102 / 100,
        "{status}"
    );
    // It is theirs: the others are not needed.
    drop((first, second));
    assert!(third.cat("/big.bin") == body);
    third.stop();
    let verified = third.ok(["verify"]).event("verified");
    assert_eq!(number(&verified, "damaged"), 0, "{verified}");
    assert!(parts(&third).is_empty());
}

#[test]
fn killed_fetch_goes_on_where_it_was() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, cid, body) = holder(&place);
    let mut second = place.join("second", &first);
    // Some seconds for all of it.
    let slowly = ["--max-download", "8M"];
    second.up_with(&slowly);
    second.agrees_with(&first);
    let mut kept = 0;
    for _ in 0..3 {
        let pinning = Running::start(second.command(["pin", &cid, "--wait"]));
        wait_until("more is there than before", || {
            (part_bytes(&second) >= kept + (3 << 20)).then_some(())
        });
        second.kill();
        drop(pinning);
        let there = part_bytes(&second);
        assert!(there >= kept, "{there} of {kept}");
        kept = there;
        second.up_with(&slowly);
        wait_until("they are connected", || {
            (number(&second.status(), "connected") == 1).then_some(())
        });
    }
    second.stop();
    second.up();
    let pinned = second.ok(["pin", &cid, "--wait"]).event("pinned");
    assert_eq!(number(&pinned, "missing"), 0);
    let received = number(&second.status()["bulk"], "received");
    let all = BYTES as u64 * 102 / 100;
    assert!(received <= all - kept, "{received} after {kept}");
    drop(first);
    assert!(second.cat("/big.bin") == body);
    assert!(parts(&second).is_empty());
}

#[test]
fn what_is_left_of_a_fetch_that_nobody_wants_goes() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, cid, _) = holder(&place);
    let mut second = place.join("second", &first);
    second.up_with(&["--max-download", "8M"]);
    second.agrees_with(&first);
    let pinning = Running::start(second.command(["pin", &cid, "--wait"]));
    wait_until("something is there", || {
        (part_bytes(&second) >= 3 << 20).then_some(())
    });
    second.kill();
    drop(pinning);
    second.up();
    second.ok(["unpin", &cid]);
    assert!(part_bytes(&second) > 0);
    second.ok(["gc"]);
    assert_eq!(part_bytes(&second), 0);
}

#[test]
fn without_room_for_whole_packs_the_blocks_come_alone() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    first.up();
    // In one pack, of which more than half is wanted.
    let body = noise(12, 10_000_000);
    let cid = first.put_bytes(&body, "/wanted.bin");
    first.put_bytes(&noise(13, 6_000_000), "/other.bin");
    first.stop();
    first.up();
    let mut second = place.join("second", &first);
    second.up_with(&["--quota", "16M"]);
    second.agrees_with(&first);
    let pinned = second.ok(["pin", &cid, "--wait"]).event("pinned");
    assert_eq!(number(&pinned, "missing"), 0);
    let status = second.status();
    assert_eq!(number(&status["bulk"], "packs"), 0, "{status}");
    assert!(number(&status, "disk_bytes") <= number(&status, "quota_bytes"));
    assert!(parts(&second).is_empty());
    assert!(second.cat(&cid) == body);
    // With room for it the pack comes.
    let mut third = place.join("third", &first);
    third.up();
    third.agrees_with(&first);
    third.ok(["pin", &cid, "--wait"]);
    assert_eq!(number(&third.status()["bulk"], "packs"), 1);
}
