//! Out of the store and back: ranges, plain folders, backups, and what damage to a backup costs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

use kith_object::car;
use kith_object::id::Cid;
use kith_tests::{Kith, Place, Ran, Running, files_below, noise, number, text};

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn export(device: &Kith, file: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["export", "--car", file.to_str().unwrap()];
    args.extend(more);
    device.run(args)
}

fn import(device: &Kith, file: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["import", "--car", file.to_str().unwrap()];
    args.extend(more);
    device.run(args)
}

/// A device made from words and a backup alone.
fn revive(place: &Place, name: &str, words: &str, file: &Path) -> (Kith, Ran) {
    let device = place.device(name);
    let args = [
        "import",
        "--car",
        file.to_str().unwrap(),
        "--words",
        "--name",
        name,
    ];
    let ran = device.run_with(args, words.as_bytes());
    (device, ran)
}

/// A mesh of one device with a small history: a file in two versions, one that was removed, a folder.
struct Past {
    place: Place,
    first: Kith,
    words: String,
    file: PathBuf,
}

fn past() -> Past {
    let place = place();
    let (first, words) = place.first("first");
    first.put_bytes(&noise(1, 300_000), "/twice");
    first.put_bytes(&noise(2, 300_000), "/twice");
    first.put_bytes(b"gone", "/gone");
    first.ok(["rm", "/gone"]);
    let folder = place.file("folder");
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::write(folder.join("small"), b"small").unwrap();
    fs::write(folder.join("deep/er/large"), noise(3, 700_000)).unwrap();
    std::os::unix::fs::symlink("small", folder.join("link")).unwrap();
    first.put(&folder, "/folder");
    let file = place.file("all.car");
    export(&first, &file, &[]).expect_code(0);
    Past {
        place,
        first,
        words,
        file,
    }
}

fn history(device: &Kith, path: &str) -> Vec<String> {
    let values = device.ok(["history", path]).values();
    values
        .iter()
        .map(|value| text(value, "version").to_owned())
        .collect()
}

#[test]
fn range_of_a_file_reads_and_fetches_only_what_it_needs() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let data = noise(9, 24 << 20);
    let cid = first.put_bytes(&data, "/big");
    second.agrees_with(&first);
    let cat = |device: &Kith, what: &str, offset: usize, length: usize| {
        let (offset, length) = (offset.to_string(), length.to_string());
        let ran = device.ok(["cat", what, "--offset", &offset, "--length", &length]);
        ran.stdout
    };
    let before = number(&second.status(), "blocks");
    assert!(cat(&second, "/big", 11_000_000, 100_000) == data[11_000_000..11_100_000]);
    let after = kith_tests::wait_until("what came is kept", || {
        let blocks = number(&second.status(), "blocks");
        (blocks > before).then_some(blocks)
    });
    // The manifest, and the two or three chunks that the range touches.
    assert!(
        after - before <= 6,
        "{} blocks for a small range",
        after - before
    );
    // By CID as well, without the first leaf that would say what it is.
    assert!(cat(&second, &cid, 20_000_000, 10) == data[20_000_000..20_000_010]);
    assert!(number(&second.status(), "blocks") <= after + 2);
    // At the edges.
    assert!(cat(&second, "/big", 0, 1) == data[..1]);
    assert!(cat(&second, "/big", data.len() - 3, 100) == data[data.len() - 3..]);
    assert!(cat(&second, "/big", data.len(), 100).is_empty());
    assert!(cat(&second, "/big", usize::MAX, usize::MAX).is_empty());
    assert!(cat(&second, "/big", 5, 0).is_empty());
    // From there on: the rest, in order.
    let rest = second.ok(["cat", "/big", "--offset", "23000000"]).stdout;
    assert!(rest == data[23_000_000..]);
    assert!(second.cat("/big") == data);
}

#[test]
fn words_and_a_backup_alone_bring_a_lost_mesh_back() {
    let Past {
        place,
        first,
        words,
        file,
    } = past();
    let history_before = history(&first, "/twice");
    let (status, versions) = (first.status(), history(&first, "/gone"));
    let old = text(&first.ok(["history", "/twice"]).values()[1], "cid").to_owned();
    fs::remove_dir_all(first.home()).unwrap();

    let (second, ran) = revive(&place, "second", &words, &file);
    ran.expect_code(0);
    assert_eq!(number(&ran.event("imported"), "missing"), 0);
    assert_eq!(text(&second.status(), "tree"), text(&status, "tree"));
    assert_eq!(history(&second, "/twice"), history_before);
    assert_eq!(history(&second, "/gone"), versions);
    assert!(second.cat("/twice") == noise(2, 300_000));
    assert!(second.cat(&old) == noise(1, 300_000));
    assert!(second.cat("/folder/deep/er/large") == noise(3, 700_000));
    let gone = text(&second.ok(["history", "/gone"]).values()[1], "cid").to_owned();
    assert_eq!(second.cat(&gone), b"gone");
}

#[test]
fn device_from_a_backup_writes_once_the_lost_ones_are_removed() {
    let Past {
        place, words, file, ..
    } = past();
    let (second, ran) = revive(&place, "second", &words, &file);
    ran.expect_code(0);
    assert_eq!(second.status()["writable"], false);
    let args = ["device", "remove", "first", "--words", "--force", "--yes"];
    second.run_with(args, words.as_bytes()).expect_code(0);
    second.put_bytes(b"on", "/goes on");
    assert_eq!(second.cat("/goes on"), b"on");
    // What it backs up now, the same words open again.
    let again = place.file("again.car");
    export(&second, &again, &[]).expect_code(0);
    let (third, ran) = revive(&place, "third", &words, &again);
    ran.expect_code(0);
    assert_eq!(third.cat("/goes on"), b"on");
    assert!(third.cat("/twice") == noise(2, 300_000));
}

#[test]
fn wrong_words_another_mesh_and_what_is_no_backup_change_nothing() {
    let Past {
        place, first, file, ..
    } = past();
    let (other, other_words) = place.first("other");
    let (second, ran) = revive(&place, "second", &other_words, &file);
    ran.expect_code(1);
    assert_eq!(ran.failure_kind(), "denied");
    assert!(!second.home().join("device.key").exists());
    let entries = number(&other.status(), "entries");
    let ran = import(&other, &file, &[]);
    ran.expect_code(1);
    assert_eq!(ran.failure_kind(), "denied");
    assert_eq!(number(&other.status(), "entries"), entries);
    assert_eq!(number(&other.status(), "blocks"), 0);
    let no_archive = place.write("no archive", noise(5, 100_000));
    assert_eq!(import(&other, &no_archive, &[]).failure_kind(), "usage");
    let missing = place.file("missing.car");
    assert_eq!(import(&other, &missing, &[]).failure_kind(), "not-found");
    import(&other, place.path(), &[]).expect_code(1);
    // A device that is there is not made anew.
    let args = ["import", "--car", file.to_str().unwrap(), "--words"];
    let ran = first.run_with(args, other_words.as_bytes());
    assert_eq!(ran.failure_kind(), "exists");
}

#[test]
fn file_is_not_overwritten_unasked_and_nothing_is_left_of_a_failed_export() {
    let Past {
        place, first, file, ..
    } = past();
    let before = fs::read(&file).unwrap();
    let ran = export(&first, &file, &[]);
    ran.expect_code(1);
    assert_eq!(ran.failure_kind(), "exists");
    assert_eq!(fs::read(&file).unwrap(), before);
    // The same again, byte for byte, but for nothing.
    export(&first, &file, &["--force"]).expect_code(0);
    assert_eq!(fs::read(&file).unwrap(), before);
    let nowhere = place.file("no folder/x.car");
    export(&first, &nowhere, &[]).expect_code(1);
    assert_eq!(
        export(&first, &place.file("y.car"), &["/nothing"]).failure_kind(),
        "not-found"
    );
    let leftovers = files_below(place.path());
    let left = |path: &PathBuf| path.to_string_lossy().ends_with(".part");
    assert!(!leftovers.iter().any(left));
    assert!(!place.file("y.car").exists());
}

#[test]
fn single_things_go_from_tree_to_tree_with_all_below_them() {
    let Past {
        place,
        first,
        words,
        ..
    } = past();
    let folder = place.file("folder.car");
    let cid = text(&first.ok(["ls", "/"]).values()[0], "cid").to_owned();
    let ran = export(&first, &folder, &["/folder"]);
    ran.expect_code(0);
    assert_eq!(text(&ran.event("exported"), "cid"), cid);
    let one = place.file("one.car");
    export(&first, &one, &["/twice"]).expect_code(0);
    let old = text(&first.ok(["history", "/twice"]).values()[1], "cid").to_owned();
    let by_cid = place.file("cid.car");
    export(&first, &by_cid, &[&old]).expect_code(0);
    let root = place.file("root.car");
    export(&first, &root, &["/"]).expect_code(0);
    // Into the same tree, under another folder.
    import(&first, &folder, &["--to", "/back"]).expect_code(0);
    assert!(first.cat("/back/folder/deep/er/large") == noise(3, 700_000));
    import(&first, &by_cid, &["--to", "/back"]).expect_code(0);
    assert!(first.cat(&format!("/back/{old}")) == noise(1, 300_000));
    import(&first, &root, &["--to", "/back/all"]).expect_code(0);
    assert_eq!(first.names("/back/all"), ["folder", "twice"]);
    // Into the empty tree of a device that has nothing but the words and the file.
    let (second, ran) = revive(&place, "second", &words, &one);
    // It may not name it before the lost device is removed; then it may.
    ran.expect_code(1);
    let args = ["device", "remove", "first", "--words", "--force", "--yes"];
    second.run_with(args, words.as_bytes()).expect_code(0);
    let ran = import(&second, &one, &[]);
    ran.expect_code(0);
    assert_eq!(text(&ran.event("put"), "path"), "/twice");
    assert_eq!(second.names("/"), ["twice"]);
    assert!(second.cat("/twice") == noise(2, 300_000));
    // It holds this and nothing else of the mesh.
    assert!(fs::metadata(&one).unwrap().len() < 330_000);
}

#[test]
fn current_tree_alone_keeps_names_of_older_versions_and_not_their_bytes() {
    let Past {
        place,
        first,
        words,
        file,
    } = past();
    let current = place.file("current.car");
    export(&first, &current, &["--current"]).expect_code(0);
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(len(&current) + 290_000 < len(&file));
    let (second, ran) = revive(&place, "second", &words, &current);
    ran.expect_code(0);
    assert_eq!(
        text(&second.status(), "tree"),
        text(&first.status(), "tree")
    );
    assert!(second.cat("/twice") == noise(2, 300_000));
    let old = text(&second.ok(["history", "/twice"]).values()[1], "cid").to_owned();
    assert_eq!(second.fails(1, ["cat", &old]).failure_kind(), "unreachable");
    // The full backup brings the rest.
    import(&second, &file, &[]).expect_code(0);
    assert!(second.cat(&old) == noise(1, 300_000));
}

#[test]
fn member_and_blind_holder_take_in_what_they_lack() {
    let Past {
        place,
        mut first,
        file,
        ..
    } = past();
    first.up();
    let second = place.join("second", &first);
    let pairing = first.pair(&["--yes", "--role", "blind"]);
    let blind = place.device("blind");
    blind.ok(["join", pairing.ticket(), "--name", "blind"]);
    pairing.finish();
    first.stop();
    for device in [&second, &blind] {
        let ran = import(device, &file, &[]);
        ran.expect_code(0);
        let imported = ran.event("imported");
        assert!(number(&imported, "blocks") > 0 && number(&imported, "missing") == 0);
        let again = import(device, &file, &[]).event("imported");
        assert_eq!(
            (number(&again, "blocks"), number(&again, "known")),
            (0, number(&imported, "blocks"))
        );
    }
    assert!(second.cat("/twice") == noise(2, 300_000));
    // A backup by a device without keys is as good.
    let by_blind = place.file("blind.car");
    export(&blind, &by_blind, &[]).expect_code(0);
}

#[test]
fn an_import_that_finds_no_room_or_is_killed_is_given_again() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let data = noise(4, 12_000_000);
    first.put_bytes(&data, "/big");
    let file = place.file("all.car");
    export(&first, &file, &[]).expect_code(0);
    let mut second = place.join("second", &first);
    second.up_with(&["--quota", "4M"]);
    second.agrees_with(&first);
    first.kill();
    let refused = import(&second, &file, &[]);
    refused.expect_code(1);
    assert_eq!(refused.failure_kind(), "full");
    second.stop();
    second.up_with(&["--quota", "none"]);
    second.stop();
    // What was taken in before a kill stays, and nothing of it is half.
    for _ in 0..3 {
        let mut importing =
            Running::start(second.command(["import", "--car", file.to_str().unwrap()]));
        importing.next_value();
        importing.kill();
        second.ok(["verify"]);
    }
    import(&second, &file, &[]).expect_code(0);
    assert!(second.cat("/big") == data);
}

#[test]
fn a_killed_export_leaves_nothing_under_the_name_of_the_file() {
    let place = place();
    let (first, _) = place.first("first");
    first.put_bytes(&noise(5, 20_000_000), "/big");
    let file = place.file("all.car");
    let args = ["export", "--car", file.to_str().unwrap()];
    let mut exporting = Running::start(first.command(args));
    exporting.next_value();
    exporting.kill();
    // Either it was over before, and whole, or there is no such file.
    if file.exists() {
        import(&first, &file, &[]).expect_code(0);
    }
    export(&first, &file, &["--force"]).expect_code(0);
    import(&first, &file, &[]).expect_code(0);
}

#[test]
fn plain_folder_goes_out_and_in() {
    let Past { place, first, .. } = past();
    let plain = place.file("plain");
    first.ok(["export", plain.to_str().unwrap()]);
    assert_eq!(
        fs::read(plain.join("folder/deep/er/large")).unwrap(),
        noise(3, 700_000)
    );
    assert_eq!(fs::read(plain.join("twice")).unwrap(), noise(2, 300_000));
    let ran = first.fails(1, ["export", plain.to_str().unwrap()]);
    assert_eq!(ran.failure_kind(), "exists");
    let (second, _) = place.first("second");
    second.ok(["import", plain.to_str().unwrap()]);
    assert_eq!(second.names("/"), ["folder", "twice"]);
    second.ok(["import", plain.to_str().unwrap(), "--to", "/in/here"]);
    assert_eq!(second.names("/in/here"), ["folder", "twice"]);
    // One thing alone goes into the folder too, and does not become it.
    fs::remove_file(plain.join("twice")).unwrap();
    second.ok(["import", plain.to_str().unwrap(), "--to", "/alone"]);
    assert_eq!(second.names("/alone"), ["folder"]);
    second.fails(1, ["import", place.file("nowhere").to_str().unwrap()]);
}

#[test]
fn damage_costs_the_block_it_hits_and_two_copies_heal_each_other() {
    let Past {
        place, words, file, ..
    } = past();
    let good = fs::read(&file).unwrap();
    let damaged = |name: &str, at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        place.write(name, bytes)
    };
    // In the middle are blocks.
    let (one, other) = (
        damaged("one.car", good.len() / 2),
        damaged("other.car", good.len() / 3),
    );
    let (device, ran) = revive(&place, "revived", &words, &one);
    ran.expect_code(3);
    let imported = ran.event("imported");
    assert_eq!(
        (number(&imported, "damaged"), number(&imported, "missing")),
        (1, 1)
    );
    let ran = import(&device, &other, &[]);
    ran.expect_code(0);
    assert!(device.cat("/twice") == noise(2, 300_000));
    assert!(device.cat("/folder/deep/er/large") == noise(3, 700_000));
    // Cut short: what is there is kept, and what is missing is counted.
    let cut = place.write("cut.car", &good[..good.len() / 2]);
    let (device, ran) = revive(&place, "cut", &words, &cut);
    ran.expect_code(3);
    assert!(number(&ran.event("imported"), "missing") > 1);
    assert_eq!(device.names("/"), ["folder", "twice"]);
    import(&device, &file, &[]).expect_code(0);
    assert!(device.cat("/folder/deep/er/large") == noise(3, 700_000));
}

#[test]
fn no_single_byte_takes_names_or_keys_away() {
    let place = place();
    let (first, words) = place.first("first");
    first.put_bytes(b"x", "/file");
    let file = place.file("small.car");
    export(&first, &file, &[]).expect_code(0);
    let good = fs::read(&file).unwrap();
    let tree = text(&first.status(), "tree").to_owned();
    // Every 61st byte, the header's among them; and of course all around the record.
    for at in (0..good.len()).step_by(61) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x04;
        let damaged = place.write("damaged.car", bytes);
        let (device, ran) = revive(&place, &format!("at {at}"), &words, &damaged);
        assert!(matches!(ran.code, Some(0 | 3)), "byte {at}: {}", ran.stderr);
        assert_eq!(text(&device.status(), "tree"), tree, "byte {at}");
        fs::remove_dir_all(device.home()).unwrap();
    }
}

/// A dag-pb node with that UnixFS data.
fn dag_pb(links: &[(&str, &Cid)], data: &[u8]) -> (Cid, Vec<u8>) {
    let field = |out: &mut Vec<u8>, number: u8, bytes: &[u8]| {
        out.extend([
            number << 3 | 2,
            u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80,
        ]);
        out.push(u8::try_from(bytes.len() >> 7).unwrap());
        out.extend(bytes);
    };
    let mut node = Vec::new();
    for (name, cid) in links {
        let mut link = Vec::new();
        field(&mut link, 1, &cid.to_bytes());
        field(&mut link, 2, name.as_bytes());
        field(&mut node, 2, &link);
    }
    field(&mut node, 1, data);
    (Cid::from_prefix(1, 0x70, 0x12, 32, &node).unwrap(), node)
}

/// A plain archive of those blocks.
fn plain_archive(root: &Cid, blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut archive = car::header(&[*root]);
    for (cid, block) in blocks {
        archive.extend(car::section_head(cid, block.len()));
        archive.extend(block);
    }
    archive
}

#[test]
fn plain_archive_has_the_cids_that_others_give_and_comes_back_as_files() {
    let place = place();
    let (first, _) = place.first("first");
    let hello = first.put_bytes(b"hello world", "/hello");
    let out = place.file("hello.car");
    let public = |what: &str, more: &[&str]| {
        let mut args = vec![what, "--public", "--force"];
        args.extend(more);
        let ran = export(&first, &out, &args);
        ran.expect_code(0);
        text(&ran.event("exported"), "cid").to_owned()
    };
    let v1 = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    assert_eq!(public("/hello", &[]), v1);
    assert_eq!(public(&hello, &[]), v1);
    let v0 = ["--profile", "unixfs-v0-2015"];
    assert_eq!(
        public("/hello", &v0),
        "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
    );

    let folder = place.file("folder");
    fs::create_dir_all(folder.join("deep/empty")).unwrap();
    fs::write(folder.join("deep/large"), noise(4, 3_000_000)).unwrap();
    fs::write(folder.join("nothing"), b"").unwrap();
    std::os::unix::fs::symlink("deep/large", folder.join("link")).unwrap();
    first.put(&folder, "/folder");
    let (second, _) = place.first("second");
    for more in [&[][..], &v0] {
        let cid = public("/folder", more);
        import(&second, &out, &["--public", "--to", "/in"]).expect_code(0);
        let back = place.file("back");
        second.ok(["get", &format!("/in/{cid}"), "-o", back.to_str().unwrap()]);
        assert!(fs::read(back.join("deep/large")).unwrap() == noise(4, 3_000_000));
        assert_eq!(fs::read(back.join("nothing")).unwrap(), b"");
        assert_eq!(
            fs::read_link(back.join("link")).unwrap(),
            Path::new("deep/large")
        );
        assert!(back.join("deep/empty").is_dir());
        fs::remove_dir_all(&back).unwrap();
        // The same files, the same CID.
        let again = export(
            &second,
            &out,
            &[&[&*format!("/in/{cid}"), "--public", "--force"], more].concat(),
        );
        assert_eq!(text(&again.event("exported"), "cid"), cid);
    }
    // A sealed archive is none of these, nor the other way round.
    assert_eq!(import(&second, &out, &[]).failure_kind(), "usage");
}

#[test]
fn archives_of_others_are_read() {
    let place = place();
    let (first, _) = place.first("first");
    let vectors = kith_tests::repository().join("tests/vectors/car");
    // A file of `ipld/js-car`; its other roots are no UnixFS.
    import(&first, &vectors.join("sample-unixfs-v2.car"), &["--public"]).expect_code(0);
    assert_eq!(first.names("/").len(), 1);
    let ran = import(&first, &vectors.join("carv1-basic.car"), &["--public"]);
    assert_eq!(ran.failure_kind(), "corrupt");
}

#[test]
fn hostile_plain_archives_name_nothing() {
    let place = place();
    let (first, _) = place.first("first");
    let raw = |bytes: &[u8]| {
        (
            Cid::from_prefix(1, 0x55, 0x12, 32, bytes).unwrap(),
            bytes.to_vec(),
        )
    };
    let refused = |why: &str, archive: Vec<u8>, said: &str| {
        let file = place.write("hostile.car", archive);
        let ran = import(&first, &file, &["--public"]);
        ran.expect_code(1);
        let text = ran.failure_text();
        assert!(text.contains(said), "{why}: {text}");
        assert!(first.names("/").is_empty(), "{why}");
    };
    let (leaf, bytes) = raw(b"leaf");
    let two = [8, 2, 0x18, 8, 0x20, 4, 0x20, 4];
    let (root, node) = dag_pb(&[("", &leaf), ("", &leaf)], &two);
    refused(
        "a block is missing",
        plain_archive(&root, &[(root, node.clone())]),
        "missing",
    );
    let altered = [(root, node.clone()), (leaf, b"fear".to_vec())];
    refused(
        "a block is not what its name says",
        plain_archive(&root, &altered),
        "missing",
    );
    // A node that names itself cannot be made; under a false name it is refused for that.
    let (_, circle) = dag_pb(&[("", &root), ("", &root)], &two);
    refused(
        "a circle",
        plain_archive(&root, &[(root, circle)]),
        "missing",
    );
    let (liar, lie) = dag_pb(
        &[("", &leaf), ("", &leaf)],
        &[8, 2, 0x18, 9, 0x20, 4, 0x20, 5],
    );
    let lies = [(liar, lie), (leaf, bytes.clone())];
    refused(
        "sizes that do not agree",
        plain_archive(&liar, &lies),
        "not as long",
    );
    for name in ["..", "a/b", ""] {
        let (folder, node) = dag_pb(&[(name, &leaf)], &[8, 1]);
        let blocks = [(folder, node), (leaf, bytes.clone())];
        refused(
            "a name that leads out",
            plain_archive(&folder, &blocks),
            "name",
        );
    }
    let (twice, node) = dag_pb(&[("a", &leaf), ("a", &leaf)], &[8, 1]);
    refused(
        "a name twice",
        plain_archive(&twice, &[(twice, node), (leaf, bytes.clone())]),
        "twice",
    );
    // Few blocks that stand for more folders, or more bytes, than there are disks.
    let deep = (0..300).fold((leaf, vec![(leaf, bytes)]), |(below, mut blocks), _| {
        let (folder, node) = dag_pb(&[("d", &below)], &[8, 1]);
        blocks.push((folder, node));
        (folder, blocks)
    });
    refused(
        "folders too deep",
        plain_archive(&deep.0, &deep.1),
        "unfolds",
    );
    let mut size = 4u64;
    let (mut part, mut parts) = (leaf, vec![raw(b"leaf")]);
    for _ in 0..20 {
        let mut data = vec![8, 2];
        for _ in 0..16 {
            data.push(0x20);
            let mut rest = size;
            while rest > 0x7f {
                data.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
                rest >>= 7;
            }
            data.push(u8::try_from(rest).unwrap());
        }
        let (above, node) = dag_pb(&[("", &part); 16], &data);
        part = above;
        parts.push((above, node));
        size = size.saturating_mul(16);
        if size > 1 << 56 {
            break;
        }
    }
    refused(
        "a file of all bytes there are",
        plain_archive(&part, &parts),
        "unfolds",
    );
}
