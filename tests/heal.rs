//! Damage beside a second device: named, and healed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
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
        let place = Place::new(env!("CARGO_BIN_EXE_kith"));
        let (mut first, _) = place.first("first");
        first.up();
        let mut second = place.join("second", &first);
        second.up();
        let mut objects = BTreeMap::new();
        for (seed, len) in [(1, 3000), (2, 40_000), (3, 500)] {
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

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1 << (at % 8);
    fs::write(file, bytes).unwrap();
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
