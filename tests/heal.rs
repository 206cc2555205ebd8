//! Damage beside a second device: named, and healed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kith_tests::{Kith, Place, Ran, files_below, noise, number, text, wait_until};

/// A device with a few objects, and a second one that holds them all; both serve.
struct Pair {
    first: Kith,
    second: Kith,
    objects: BTreeMap<String, Vec<u8>>,
    _place: Place,
}

impl Pair {
    fn new() -> Self {
        Self::with(&[3000, 40_000, 500])
    }

    /// With objects of these lengths.
    fn with(lens: &[usize]) -> Self {
        let place = Place::new(env!("CARGO_BIN_EXE_kith"));
        let (mut first, _) = place.first("first");
        // With a quota there is a file of settings.
        first.up_with(&["--listen", "127.0.0.1", "--quota", "1G"]);
        let mut second = place.join("second", &first);
        second.up();
        let mut objects = BTreeMap::new();
        for (seed, &len) in (1..).zip(lens) {
            let path = format!("/object {seed}");
            first.put_bytes(&noise(seed, len), &path);
            objects.insert(path, noise(seed, len));
        }
        second.agrees_with(&first);
        for (path, bytes) in &objects {
            assert_eq!(second.cat_waiting(path), *bytes);
        }
        first.ok(["verify"]);
        Self {
            first,
            second,
            objects,
            _place: place,
        }
    }

    /// Every object reads back on the first device alone.
    fn first_has_all(&mut self) {
        self.second.stop();
        for (path, bytes) in &self.objects {
            assert_eq!(self.first.cat(path), *bytes, "{path}");
        }
        self.second.up();
    }

    fn packs(&self, suffix: &str) -> Vec<PathBuf> {
        let mut packs = files_below(&self.first.home().join("packs"));
        packs.retain(|file| file.extension().is_some_and(|is| is == suffix));
        packs
    }

    /// The pack with the most bytes.
    fn pack(&self) -> PathBuf {
        let packs = self.packs("pack").into_iter();
        packs
            .max_by_key(|pack| fs::metadata(pack).unwrap().len())
            .unwrap()
    }

    /// The file's name as `verify` says it.
    fn name(&self, file: &Path) -> String {
        let name = file.strip_prefix(self.first.home()).unwrap();
        name.to_str().unwrap().to_owned()
    }
}

/// Flips a bit where the file stands, as a disk does it: whoever has it open sees it.
///
/// Returns what the byte is now.
fn flip(file: &Path, at: usize) -> u8 {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= 1 << (at % 8);
    open.write_all_at(&byte, at as u64).unwrap();
    byte[0]
}

/// The byte at that place, if the file is as long.
fn byte_at(file: &Path, at: usize) -> Option<u8> {
    let mut byte = [0];
    let open = fs::File::open(file).ok()?;
    open.read_exact_at(&mut byte, at as u64).ok()?;
    Some(byte[0])
}

fn len(file: &Path) -> usize {
    usize::try_from(fs::metadata(file).unwrap().len()).unwrap()
}

/// Where the frames of a log begin.
fn frames(log: &Path) -> Vec<usize> {
    let bytes = fs::read(log).unwrap();
    let magic = [0xf1, b'k', b'l', 0x1f];
    let starts = bytes.windows(4).enumerate();
    starts
        .filter(|(_, four)| *four == magic)
        .map(|(at, _)| at)
        .collect()
}

fn lost(ran: &Ran) -> usize {
    ran.event("verified")["lost"].as_array().unwrap().len()
}

#[test]
fn lost_block_comes_back_with_the_device_that_has_it() {
    let mut pair = Pair::new();
    pair.second.stop();
    wait_until("the second device is gone", || {
        (number(&pair.first.status(), "connected") == 0).then_some(())
    });
    let pack = pair.pack();
    flip(&pack, 1000);
    let alone = pair.first.fails(1, ["verify"]);
    assert_eq!(text(&alone.event("damage"), "file"), pair.name(&pack));
    assert_eq!(lost(&alone), 1);
    assert_eq!(number(&alone.event("verified"), "healed"), 0);
    assert_eq!(number(&pair.first.status(), "lost"), 1);
    assert_eq!(pair.packs("bad").len(), 1);
    // It is not forgotten by a restart, and comes back by itself.
    pair.first.stop();
    assert_eq!(number(&pair.first.status(), "lost"), 1);
    pair.first.up();
    pair.second.up();
    wait_until("the block is back", || {
        let status = pair.first.status();
        (number(&status, "lost") == 0 && number(&status, "healed") == 1).then_some(())
    });
    wait_until("the damaged file is gone", || {
        pair.packs("bad").is_empty().then_some(())
    });
    pair.first.ok(["verify"]);
    pair.first_has_all();
}

#[test]
fn verify_fetches_what_it_finds_lost() {
    let mut pair = Pair::new();
    let pack = pair.pack();
    flip(&pack, 1000);
    let ran = pair.first.fails(3, ["verify"]);
    let damage = ran.event("damage");
    assert_eq!(text(&damage, "file"), pair.name(&pack));
    assert_eq!(damage["lost"].as_array().unwrap().len(), 1);
    let verified = ran.event("verified");
    assert_eq!(
        (lost(&ran), number(&verified, "healed")),
        (0, 1),
        "{verified}"
    );
    assert_eq!(ran.failure_kind(), "partial");
    assert!(pair.packs("bad").is_empty());
    let again = pair.first.ok(["verify"]).event("verified");
    assert_eq!(
        (number(&again, "damaged"), number(&again, "healed")),
        (0, 0)
    );
    pair.first_has_all();
}

/// Where in a file, whose length changes a little when it is healed.
#[derive(Clone, Copy, Debug)]
enum At {
    Start(usize),
    Thousandth(usize),
    End(usize),
}

impl At {
    fn of(self, len: usize) -> usize {
        match self {
            Self::Start(at) => at.min(len - 1),
            Self::Thousandth(part) => len * part / 1000,
            Self::End(at) => len - at.min(len),
        }
    }
}

/// The small files of a home that have to be what was written.
const SMALL: [&str; 5] = ["device.key", "settings", "ports", "peers", "tickets"];

impl Pair {
    /// Flips one bit while the device runs; the check names it, heals it, and then finds everything sound.
    fn flip_and_heal(&self, file: &Path, at: usize) {
        let name = self.name(file);
        let damage = |ran: &Ran| -> BTreeSet<String> {
            ran.values()
                .iter()
                .filter(|value| value["event"] == "damage")
                .map(|value| text(value, "file").to_owned())
                .collect()
        };
        let mut byte = flip(file, at);
        let mut ran = self.first.run(["verify"]);
        // The device may have been writing the file anew, after what was flipped before: then there was nothing to find.
        for _ in 0..3 {
            if !damage(&ran).is_empty() || byte_at(file, at) == Some(byte) {
                break;
            }
            byte = flip(file, at.min(len(file) - 1));
            ran = self.first.run(["verify"]);
        }
        let damaged = damage(&ran);
        let context = || format!("byte {at} of {name}: {:?} {}", ran.values(), ran.stderr);
        assert_eq!(damaged, [name.clone()].into(), "{}", context());
        assert_eq!(lost(&ran), 0, "{}", context());
        assert_eq!(ran.code, Some(3), "{}", context());
        let again = self.first.run(["verify"]);
        assert_eq!(again.code, Some(0), "{}: {:?}", context(), again.values());
    }
}

/// All of it by `KITH_LARGE=1`, else a part with all kinds of places.
#[test]
fn every_flipped_byte_is_named_and_healed() {
    let large = std::env::var_os("KITH_LARGE").is_some();
    let mut pair = if large {
        Pair::with(&[300])
    } else {
        Pair::new()
    };
    let log = pair.first.home().join("logs/entries.log");
    let mut flipped = 0;
    let told = |what: &str, flipped: usize| {
        if large {
            kith_tests::say_loudly(&format!("{what}: {flipped} bytes so far"));
        }
    };
    for small in SMALL {
        let file = pair.first.home().join(small);
        let step = if large { 1 } else { 1 + len(&file) / 2 };
        for at in (0..len(&file)).step_by(step) {
            pair.flip_and_heal(&file, at);
            flipped += 1;
        }
    }
    told("small files", flipped);
    // Behind the header, in it, and in the frames; the last byte is that of a record which may be under way.
    let places = [At::Start(0), At::Start(10), At::Start(20), At::Start(40)];
    let parts = (1..16).map(|part| At::Thousandth(part * 62));
    let log_places: Vec<At> = if large {
        (0..len(&log)).map(At::Start).collect()
    } else {
        places
            .into_iter()
            .chain(parts)
            .chain([At::End(1)])
            .collect()
    };
    for at in log_places {
        pair.flip_and_heal(&log, at.of(len(&log)));
        flipped += 1;
        if flipped.is_multiple_of(500) {
            told("small files, in the log", flipped);
        }
    }
    told("small files and the log", flipped);
    // Header, head of a record, blocks; trailer, index.
    let starts = [0, 9, 10, 20, 63, 64, 69].map(At::Start);
    let parts = (1..20).map(|part| At::Thousandth(part * 50));
    let ends = [1, 9, 20, 50, 55, 80].map(At::End);
    let packs = pair.packs("pack").len();
    for nth in 0..packs {
        let longest = pair.packs("pack").iter().map(|pack| len(pack)).max();
        let pack_places: Vec<At> = if large {
            (0..longest.unwrap()).map(At::Start).collect()
        } else {
            let ends = ends.iter().copied();
            starts
                .into_iter()
                .chain(parts.clone())
                .chain(ends)
                .collect()
        };
        for at in pack_places {
            let mut packs = pair.packs("pack");
            packs.sort_by_key(|pack| len(pack));
            // Healing may have joined two.
            let pack = &packs[nth.min(packs.len() - 1)];
            pair.flip_and_heal(pack, at.of(len(pack)));
            flipped += 1;
        }
    }
    assert!(flipped >= 60, "{flipped}");
    kith_tests::say_loudly(&format!("{flipped} bytes flipped, named and healed"));
    pair.first_has_all();
    pair.second.stop();
    // What was healed lasts.
    pair.first.stop();
    pair.first.up();
    pair.first.ok(["verify"]);
    for (path, bytes) in &pair.objects {
        assert_eq!(pair.first.cat(path), *bytes, "{path}");
    }
}

/// Entries are lost while nobody is there, and come back with the device that has them, into the log.
#[test]
fn damaged_log_is_written_again() {
    let mut pair = Pair::new();
    let log = pair.first.home().join("logs/entries.log");
    pair.second.stop();
    wait_until("the second device is gone", || {
        (number(&pair.first.status(), "connected") == 0).then_some(())
    });
    let at = len(&log) - 100;
    flip(&log, at);
    let alone = pair.first.fails(1, ["verify"]);
    let damage = alone.event("damage");
    assert_eq!(text(&damage, "file"), "logs/entries.log");
    assert!(
        text(&damage, "what").contains("1 entries are lost"),
        "{damage}"
    );
    assert!(damage["mended"].is_null());
    pair.second.up();
    wait_until("the log is sound", || {
        (pair.first.run(["verify"]).code == Some(0)).then_some(())
    });
    pair.second.agrees_with(&pair.first);
    // Damage of which the process that finds it does not know what it took: the device starts with it.
    pair.first.stop();
    // Of a name: who may connect is not in question.
    let frames = frames(&log);
    flip(&log, frames[frames.len() - 3] + 100);
    pair.first.up();
    wait_until("the devices meet", || {
        (number(&pair.first.status(), "connected") == 1).then_some(())
    });
    let named = pair.first.fails(3, ["verify"]).event("damage");
    assert_eq!(text(&named, "file"), "logs/entries.log");
    assert!(text(&named, "mended").len() > 10, "{named}");
    assert!(pair.first.home().join("logs/entries.log.bad").exists());
    pair.first.ok(["verify"]);
    pair.second.agrees_with(&pair.first);
    pair.second.stop();
    // It is all in the log: nobody is there to ask.
    pair.first.stop();
    pair.first.up();
    pair.first.ok(["verify"]);
    for (path, bytes) in &pair.objects {
        assert_eq!(pair.first.cat(path), *bytes, "{path}");
    }
}

/// Who belongs to the mesh is kept twice: without it a damaged device could not let in the one that heals it.
#[test]
fn device_whose_first_entries_are_damaged_while_it_is_off_still_knows_its_mesh() {
    let mut pair = Pair::new();
    let log = pair.first.home().join("logs/entries.log");
    let copy = pair.first.home().join("access");
    pair.first.stop();
    let frames = frames(&log);
    for frame in frames.iter().take(6) {
        flip(&log, frame + 60);
    }
    pair.first.up();
    wait_until("the devices meet", || {
        (number(&pair.first.status(), "connected") == 1).then_some(())
    });
    let named = pair.first.fails(3, ["verify"]).event("damage");
    assert_eq!(text(&named, "file"), "logs/entries.log");
    assert!(text(&named, "mended").len() > 10, "{named}");
    pair.first.ok(["verify"]);
    pair.second.agrees_with(&pair.first);
    for (path, bytes) in &pair.objects {
        assert_eq!(pair.first.cat(path), *bytes, "{path}");
    }
    // The copy is one of the files that are checked, and is written again.
    let at = len(&copy) / 2;
    flip(&copy, at);
    let named = pair.first.fails(3, ["verify"]).event("damage");
    assert_eq!(text(&named, "file"), "access");
    assert_eq!(text(&named, "mended"), "written again from memory");
    pair.first.ok(["verify"]);
    // With both gone nothing is made up.
    pair.first.stop();
    flip(&copy, at);
    flip(&log, frames[0] + 60);
    let refused = pair.first.fails(1, ["status"]);
    assert_eq!(refused.failure_kind(), "corrupt", "{}", refused.failure());
}

/// A pack that is gone altogether is named; what was in it comes from another device when it is read, and stays.
#[test]
fn pack_that_is_gone_is_named_and_its_blocks_come_back_when_they_are_read() {
    let mut pair = Pair::new();
    let pack = pair.pack();
    let name = pair.name(&pack);
    pair.first.stop();
    fs::remove_file(&pack).unwrap();
    pair.first.up();
    wait_until("the devices meet", || {
        (number(&pair.first.status(), "connected") == 1).then_some(())
    });
    let named = pair.first.run(["verify"]).event("damage");
    assert_eq!(text(&named, "file"), name);
    for (path, bytes) in &pair.objects {
        assert_eq!(pair.first.cat(path), *bytes, "{path}");
    }
    pair.second.stop();
    wait_until("the second device is gone", || {
        (number(&pair.first.status(), "connected") == 0).then_some(())
    });
    for (path, bytes) in &pair.objects {
        assert_eq!(pair.first.cat(path), *bytes, "{path}");
    }
    pair.first.ok(["verify"]);
}
