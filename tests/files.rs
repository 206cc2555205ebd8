//! Files and folders in and out of one device: what comes back, what is refused, what damage does.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kith_tests::{
    Kith, Place, Ran, Running, files_below, noise, number, plain_command, run, say_loudly, text,
};

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

fn one() -> (Place, Kith) {
    let place = place();
    let (first, _) = place.first("first");
    (place, first)
}

fn get(device: &Kith, what: &str, dest: &Path) -> Ran {
    device.run([
        OsStr::new("get"),
        OsStr::new(what),
        OsStr::new("-o"),
        dest.as_os_str(),
    ])
}

/// What is below a folder: name, kind and content of each thing, permission bits too.
fn tree(folder: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        let name = path.strip_prefix(folder).unwrap().to_owned();
        if metadata.is_symlink() {
            found.push((
                name,
                "symlink".into(),
                fs::read_link(&path).unwrap().into_os_string().into_vec(),
            ));
        } else if metadata.is_dir() {
            found.push((name, format!("folder {mode:o}"), Vec::new()));
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            let modified = metadata
                .modified()
                .unwrap()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_millis();
            found.push((
                name,
                format!("file {mode:o} {modified}"),
                fs::read(&path).unwrap(),
            ));
        }
    }
    found.sort();
    found
}

/// A folder with everything a folder may hold.
fn awkward_folder(place: &Place) -> PathBuf {
    let folder = place.file("source");
    fs::create_dir_all(folder.join("empty/emptier")).unwrap();
    fs::write(folder.join("empty file"), b"").unwrap();
    fs::write(folder.join("small"), b"x").unwrap();
    fs::write(folder.join("large"), noise(1, 1_500_000)).unwrap();
    fs::write(folder.join("same"), noise(1, 1_500_000)).unwrap();
    fs::write(
        folder.join("text"),
        "the same line again and again\n".repeat(5000),
    )
    .unwrap();
    fs::write(
        folder.join("name with \"quotes\", \n a line's end and \u{1b}[31mcolour"),
        b"awkward",
    )
    .unwrap();
    fs::write(
        folder.join(OsStr::from_bytes(b"not \xff utf\xfe8")),
        b"bytes for a name",
    )
    .unwrap();
    fs::write(folder.join("-begins-with-a-dash"), b"dash").unwrap();
    fs::write(folder.join("grüße 日本.txt"), "unicode").unwrap();
    fs::write(folder.join("n".repeat(255)), b"long name").unwrap();
    fs::write(folder.join("run.sh"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("read only"), b"do not touch").unwrap();
    fs::set_permissions(folder.join("read only"), fs::Permissions::from_mode(0o400)).unwrap();
    symlink("small", folder.join("link")).unwrap();
    symlink("nowhere/at/all", folder.join("dangling")).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), folder.join("link to bytes")).unwrap();
    symlink("..", folder.join("empty/up")).unwrap();
    let mut deep = folder.clone();
    for _ in 0..40 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("deep"), b"deep").unwrap();
    folder
}

#[test]
fn folder_comes_back_as_it_was() {
    let (place, mut first) = one();
    let source = awkward_folder(&place);
    let put = first.put(&source, "/source");
    assert_eq!(put["path"], "/source");
    let before = tree(&source);
    let files = before
        .iter()
        .filter(|(_, kind, _)| !kind.starts_with("folder"))
        .count();
    assert_eq!(number(&put, "files"), files as u64);
    let cid = text(&put, "cid").to_owned();
    // By path and by CID, without a daemon and with one.
    get(&first, "/source", &place.file("by-path")).expect_code(0);
    assert!(tree(&place.file("by-path")) == before);
    let got = get(&first, &cid, &place.file("by-cid"));
    got.expect_code(0);
    assert_eq!(got.event("got")["cid"], cid.as_str());
    // The mode and time of the folder itself stand in its name, not in its listing.
    assert!(tree(&place.file("by-cid"))[1..] == before[1..]);
    first.up();
    get(&first, "/source", &place.file("by-path-up")).expect_code(0);
    assert!(tree(&place.file("by-path-up")) == before);
    get(&first, &cid, &place.file("by-cid-up")).expect_code(0);
    assert!(tree(&place.file("by-cid-up"))[1..] == before[1..]);
    // The same again is the same root, and takes no room.
    let blocks = first.status()["blocks"].clone();
    let again = first.put(&source, "/again");
    assert_eq!(again["cid"], cid.as_str());
    assert!(number(&again, "dedup") > 0);
    assert_eq!(first.status()["blocks"], blocks);
}

#[test]
fn names_that_are_not_utf8_are_told_exactly() {
    let (place, first) = one();
    let name = OsStr::from_bytes(b"a\xffb");
    let source = place.write(name, b"content");
    let put = first
        .ok([OsStr::new("put"), source.as_os_str()])
        .event("put");
    assert_eq!(put["path"], "/a\u{fffd}b");
    assert_eq!(put["path_base64"], "L2H/Yg==");
    let listed = first.ls("/");
    assert_eq!(
        (
            listed[0]["name"].as_str(),
            listed[0]["name_base64"].as_str()
        ),
        (Some("a\u{fffd}b"), Some("Yf9i"))
    );
    // The exact name finds it, the lossy one does not.
    let path: OsString = [OsStr::new("/"), name].concat_os();
    assert_eq!(first.ok([OsStr::new("cat"), &path]).stdout, b"content");
    first.fails(1, ["cat", "/a\u{fffd}b"]);
    first.ok([OsStr::new("mv"), path.as_os_str(), OsStr::new("/plain")]);
    assert_eq!(first.cat("/plain"), b"content");
}

trait ConcatOs {
    fn concat_os(&self) -> OsString;
}

impl ConcatOs for [&OsStr; 2] {
    fn concat_os(&self) -> OsString {
        let mut whole = self[0].to_owned();
        whole.push(self[1]);
        whole
    }
}

#[test]
fn standard_input_and_output_carry_any_bytes() {
    let (_place, first) = one();
    for (number, len) in [0usize, 1, 100, 200_000, 3_000_000].into_iter().enumerate() {
        let bytes = noise(number as u64, len);
        let path = format!("/stream-{number}");
        if bytes.is_empty() {
            first.ok(["put", "-", "--to", &path]);
        } else {
            first.put_bytes(&bytes, &path);
        }
        assert!(first.cat(&path) == bytes, "{len} bytes");
    }
    // A place has to be said, and it cannot stand among others.
    first.fails(2, ["put", "-"]);
    first.fails(2, ["put", "-", "/etc/hostname", "--to", "/x"]);
}

#[test]
fn reader_that_closes_the_pipe_is_no_failure() {
    let (_place, first) = one();
    first.put_bytes(&noise(5, 4_000_000), "/long");
    let mut command = first.command(["cat", "/long"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn basename_is_the_default_both_ways() {
    let (place, first) = one();
    let source = place.write("in/lake.jpg", b"a lake");
    let put = first
        .ok([OsStr::new("put"), source.as_os_str()])
        .event("put");
    assert_eq!(put["path"], "/lake.jpg");
    let out = place.file("out");
    fs::create_dir(&out).unwrap();
    let mut command = first.command(["get", "lake.jpg"]);
    command.current_dir(&out);
    run(command, &[]).expect_code(0);
    assert_eq!(fs::read(out.join("lake.jpg")).unwrap(), b"a lake");
    let cid = text(&put, "cid");
    let mut command = first.command(["get", cid]);
    command.current_dir(&out);
    run(command, &[]).expect_code(0);
    assert_eq!(fs::read(out.join(cid)).unwrap(), b"a lake");
    // Several sources, and a folder that exists: into it.
    let other = place.write("in/hill.jpg", b"a hill");
    first.ok(["mkdir", "/photos"]);
    let args = [
        OsStr::new("put"),
        source.as_os_str(),
        other.as_os_str(),
        OsStr::new("--to"),
        OsStr::new("/photos"),
    ];
    let paths: Vec<String> = first
        .ok(args)
        .values()
        .iter()
        .map(|put| text(put, "path").to_owned())
        .collect();
    assert_eq!(paths, ["/photos/lake.jpg", "/photos/hill.jpg"]);
}

#[test]
fn nothing_is_overwritten_without_force() {
    let (place, first) = one();
    first.put_bytes(b"stored", "/file");
    let dest = place.write("dest", b"precious");
    let failed = get(&first, "/file", &dest);
    failed.expect_code(1);
    assert_eq!(failed.failure_kind(), "exists");
    assert!(text(&failed.failure(), "hint").contains("--force"));
    assert_eq!(fs::read(&dest).unwrap(), b"precious");
    first.ok([
        OsStr::new("get"),
        OsStr::new("/file"),
        OsStr::new("--force"),
        OsStr::new("-o"),
        dest.as_os_str(),
    ]);
    assert_eq!(fs::read(&dest).unwrap(), b"stored");
    // A folder in the place of a file, and a file in the place of a full folder.
    first.ok(["mkdir", "/folder"]);
    first.put_bytes(b"inner", "/folder/inner");
    get(&first, "/folder", &dest).expect_code(1);
    first.ok([
        OsStr::new("get"),
        OsStr::new("/folder"),
        OsStr::new("--force"),
        OsStr::new("-o"),
        dest.as_os_str(),
    ]);
    assert_eq!(fs::read(dest.join("inner")).unwrap(), b"inner");
    fs::write(dest.join("mine"), b"mine").unwrap();
    get(&first, "/file", &dest).expect_code(1);
    assert_eq!(fs::read(dest.join("mine")).unwrap(), b"mine");
    first.ok([
        OsStr::new("get"),
        OsStr::new("/file"),
        OsStr::new("--force"),
        OsStr::new("-o"),
        dest.as_os_str(),
    ]);
    assert_eq!(fs::read(&dest).unwrap(), b"stored");
    // A destination that cannot be: no trace of it is left.
    get(&first, "/file", &place.file("missing/folder/file")).expect_code(1);
    let left: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains(".part")),
        "{left:?}"
    );
}

#[test]
fn tree_is_changed_as_asked() {
    let (_place, first) = one();
    first.ok(["mkdir", "/a"]);
    first.fails(1, ["mkdir", "/a"]);
    first.ok(["mkdir", "--parents", "/a"]);
    first.fails(1, ["mkdir", "/b/c"]);
    first.ok(["mkdir", "-p", "/b/c"]);
    first.put_bytes(b"one", "/a/file");
    first.put_bytes(b"two", "/a/file");
    assert_eq!(first.cat("/a/file"), b"two");
    // Into a folder that exists, and to a name that does not.
    first.ok(["mv", "/a/file", "/b"]);
    assert_eq!(first.names("/b"), ["c", "file"]);
    first.ok(["mv", "/b/file", "/b/renamed"]);
    assert_eq!(first.cat("b/renamed"), b"two");
    assert!(first.ls("/a").is_empty());
    first.put_bytes(b"in the way", "/a/renamed");
    assert_eq!(
        first
            .fails(1, ["mv", "/b/renamed", "/a/renamed"])
            .failure_kind(),
        "exists"
    );
    // A folder goes with all that is in it, but not into itself.
    first.run(["mv", "/b", "/b/c"]).failure();
    first.ok(["mv", "/b", "/a"]);
    assert_eq!(first.cat("/a/b/renamed"), b"two");
    // History of the place where it is now knows where it was.
    let versions = first.ok(["history", "/a/b/renamed"]).values();
    assert!(versions.iter().any(|version| version["current"] == true));

    let refused = first.run(["rm", "/a/b"]);
    assert_ne!(
        refused.code,
        Some(0),
        "a folder that is not empty wants --recursive"
    );
    first.ok(["rm", "/a/b/renamed"]);
    first.fails(1, ["cat", "/a/b/renamed"]);
    assert_eq!(
        first.fails(1, ["rm", "/a/b/renamed"]).failure_kind(),
        "not-found"
    );
    first.ok(["restore", "/a/b/renamed"]);
    assert_eq!(first.cat("/a/b/renamed"), b"two");
    first.ok(["rm", "--recursive", "/a"]);
    assert!(first.ls("/").is_empty());
    first.ok(["restore", "/a/b/renamed"]);
    assert_eq!(
        first.cat("/a/b/renamed"),
        b"two",
        "with the folders it stood in"
    );
}

#[test]
fn every_version_stays_and_can_be_restored() {
    let (_place, mut first) = one();
    first.up();
    let contents = ["first", "second", "third"];
    for content in contents {
        first.put_bytes(content.as_bytes(), "/diary");
    }
    let versions = first.ok(["history", "/diary"]).values();
    assert_eq!(versions.len(), 3);
    assert_eq!(
        versions
            .iter()
            .filter(|version| version["current"] == true)
            .count(),
        1
    );
    assert_eq!(versions[0]["current"], true, "newest first");
    for (version, content) in versions.iter().zip(contents.iter().rev()) {
        // An old version is read by its CID.
        assert_eq!(first.cat(text(version, "cid")), content.as_bytes());
    }
    first.ok(["restore", "/diary"]);
    assert_eq!(first.cat("/diary"), b"second");
    let oldest = text(&versions[2], "version").to_owned();
    first.ok(["restore", "/diary", "--version", &oldest]);
    assert_eq!(first.cat("/diary"), b"first");
    assert_eq!(first.ok(["history", "/diary"]).values().len(), 5);
    first.fails(2, ["restore", "/diary", "--version", "nonsense"]);
    assert_eq!(
        first.fails(1, ["restore", "/never"]).failure_kind(),
        "not-found"
    );
    assert_eq!(
        first.fails(1, ["history", "/never"]).failure_kind(),
        "not-found"
    );
}

#[test]
fn what_is_not_there_is_told_apart() {
    let (place, first) = one();
    // A CID nobody knows: that of some other bytes.
    let (other, _) = place.first("other");
    let cid = other.put_bytes(b"elsewhere", "/x");
    for command in [vec!["cat", &cid], vec!["get", &cid]] {
        assert_eq!(first.fails(1, command).failure_kind(), "not-found");
    }
    for path in ["/missing", "/missing/too", "missing"] {
        let failed = first.fails(1, ["cat", path]);
        assert_eq!(failed.failure_kind(), "not-found");
        assert!(
            failed.failure_text().contains("missing"),
            "it says what was looked for"
        );
        first.fails(1, ["ls", path]);
        first.fails(1, ["get", path]);
    }
    let failed = first.fails(1, ["put", "/no/such/file"]);
    assert_eq!(failed.failure_kind(), "not-found");
    assert!(failed.failure_text().contains("/no/such/file"));
    for path in ["/a/../b", "/./x"] {
        assert_eq!(first.fails(2, ["cat", path]).failure_kind(), "usage");
    }
    first.ok(["mkdir", "/folder"]);
    assert_eq!(first.fails(2, ["cat", "/folder"]).failure_kind(), "usage");
    // What begins with a slash is a path, even if it looks like a CID.
    first.put_bytes(b"named like a CID", &format!("/{cid}"));
    assert_eq!(first.cat(&format!("/{cid}")), b"named like a CID");
    first.fails(1, ["cat", &cid]);
}

#[test]
fn wrong_usage_ends_with_two() {
    let (_place, first) = one();
    for args in [
        vec!["no-such-verb"],
        vec!["put"],
        vec!["ls", "--no-such-flag"],
        vec!["get"],
        vec!["device"],
        vec![],
    ] {
        let ran = first.run(args);
        ran.expect_code(2);
        assert!(!ran.stderr.is_empty());
    }
    first.ok(["--help"]);
    first.ok(["--version"]);
}

#[test]
fn what_cannot_be_read_is_skipped_and_said() {
    let (place, first) = one();
    let folder = place.file("partly");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("good"), b"good").unwrap();
    let made = Command::new("mkfifo").arg(folder.join("pipe")).status();
    if !made.is_ok_and(|status| status.success()) {
        say_loudly("NOT TESTED: a pipe among files; there is no mkfifo on this machine");
        return;
    }
    let ran = first.run([OsStr::new("put"), folder.as_os_str()]);
    ran.expect_code(3);
    assert!(
        ran.stderr.contains("pipe"),
        "it says what was left out: {}",
        ran.stderr
    );
    assert_eq!(
        ran.event("put")["path"],
        "/partly",
        "the rest is stored, and said so"
    );
    assert_eq!(first.cat("/partly/good"), b"good");
    assert_eq!(first.names("/partly"), ["good"]);
    // Alone, it is no part but a failure.
    first
        .run([OsStr::new("put"), folder.join("pipe").as_os_str()])
        .expect_code(1);
}

#[test]
fn second_process_on_one_folder_is_named_the_first() {
    let (place, first) = one();
    // A put that reads from a pipe of ours and so holds the folder as long as we like.
    let mut command = first.command(["put", "-", "--to", "/slow"]);
    command.stdin(Stdio::piped());
    let mut holding = Running::start(command);
    holding.write(b"begun");
    let pid = holding.id().to_string();
    let names_it = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .any(|number| number == pid)
    };
    kith_tests::wait_until("the first process has the folder", || {
        let text = fs::read_to_string(first.home().join("lock")).unwrap_or_default();
        names_it(&text).then_some(())
    });
    let failed = first.fails(1, ["ls", "/"]);
    assert_eq!(failed.failure_kind(), "exists");
    assert!(
        names_it(&failed.failure_text()),
        "it names the process: {}",
        failed.failure()
    );
    holding.finish().expect_code(0);
    assert_eq!(first.cat("/slow"), b"begun");
    drop(place);
}

#[test]
fn second_daemon_is_refused_and_commands_use_the_first() {
    let (_place, mut first) = one();
    first.up();
    first.fails(1, ["up", "--listen", "127.0.0.1"]);
    first.put_bytes(b"through the socket", "/x");
    assert_eq!(first.cat("/x"), b"through the socket");
    first.stop();
    first.fails(4, ["stop"]);
    assert_eq!(first.cat("/x"), b"through the socket");
    first.up();
    first.kill();
    // A socket is left over, and nobody answers there.
    first.fails(4, ["stop"]);
    assert_eq!(first.cat("/x"), b"through the socket");
    first.up();
    assert_eq!(first.cat("/x"), b"through the socket");
}

#[test]
fn folder_with_a_long_path_is_served() {
    let place = place();
    let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    let mut first = place.device(&long);
    first.ok(["init", "--name", "first"]);
    first.up();
    first.put_bytes(b"far down", "/x");
    assert_eq!(first.cat("/x"), b"far down");
    first.stop();
}

#[test]
fn folder_without_a_device_says_what_to_do() {
    let place = place();
    let nobody = place.device("nobody");
    for args in [
        vec!["status"],
        vec!["ls"],
        vec!["put", "/etc/hostname"],
        vec!["up"],
        vec!["pair"],
        vec!["stop"],
    ] {
        let failed = nobody.fails(1, args);
        assert_eq!(failed.failure_kind(), "not-found");
        assert!(text(&failed.failure(), "hint").contains("kith init"));
    }
}

#[test]
fn data_folder_comes_from_the_environment_too() {
    let (place, first) = one();
    first.put_bytes(b"here", "/x");
    let program = Path::new(env!("CARGO_BIN_EXE_kith"));
    let mut command = plain_command(program);
    command.env("KITH_HOME", first.home()).args(["cat", "/x"]);
    assert_eq!(run(command, &[]).expect_code(0).stdout, b"here");
    let xdg = place.file("xdg");
    let mut command = plain_command(program);
    command
        .env("XDG_DATA_HOME", &xdg)
        .args(["init", "--name", "xdg", "--json"]);
    run(command, &[]).expect_code(0);
    assert!(xdg.join("kith/device.key").is_file());
}

#[test]
fn only_the_owner_can_read_the_data_folder() {
    let (_place, mut first) = one();
    first.put_bytes(b"private", "/x");
    first.up();
    assert_eq!(
        fs::metadata(first.home()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    // The index is another library's, and stands behind the folder's mode like everything else.
    let index = first.home().join("index");
    for path in files_below(first.home())
        .iter()
        .filter(|path| !path.starts_with(&index))
    {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    let socket = fs::metadata(first.home().join("api.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_elsewhere_is_unreachable_while_alone() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let bytes = noise(9, 300_000);
    let cid = first.put_bytes(&bytes, "/far");
    second.agrees_with(&first);
    first.kill();
    second.stop();
    // It knows the name, and nobody who has the bytes is within reach; without a daemon, and with one.
    assert_eq!(second.names("/"), ["far"]);
    let failed = second.fails(1, ["cat", "/far"]);
    assert_eq!(failed.failure_kind(), "unreachable");
    assert!(text(&failed.failure(), "hint").contains("kith up"));
    assert_eq!(
        get(&second, &cid, &place.file("dest"))
            .expect_code(1)
            .failure_kind(),
        "unreachable"
    );
    assert!(!place.file("dest").exists());
    second.up();
    assert_eq!(second.fails(1, ["cat", &cid]).failure_kind(), "unreachable");
    // With --wait it comes as soon as the other is back.
    let waiting = Running::start(second.command([
        "get",
        "--wait",
        "/far",
        "-o",
        place.file("dest").to_str().unwrap(),
    ]));
    first.up();
    waiting.finish().expect_code(0);
    assert!(fs::read(place.file("dest")).unwrap() == bytes);
}

/// Flips one byte in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let place = bytes.len() / 2;
    bytes[place] ^= 0x20;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Files of the data folder whose name ends so, largest first.
fn stored_files(device: &Kith, ending: &str) -> Vec<PathBuf> {
    let mut files = files_below(device.home());
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    files
}

#[test]
fn flipped_byte_in_a_pack_is_noticed_and_healed() {
    let place = place();
    let (mut first, _) = place.first("first");
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|n| (format!("/f{n:02}"), noise(100 + n, 100_000)))
        .collect();
    for (path, bytes) in &files {
        first.put_bytes(bytes, path);
    }
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    second.agrees_with(&first);
    for (path, bytes) in &files {
        assert!(second.cat_waiting(path) == *bytes);
    }
    first.stop();
    second.stop();

    let packs = stored_files(&first, ".pack");
    flip(packs.first().expect("the store has a pack"));
    let mut damaged = Vec::new();
    for (path, bytes) in &files {
        let ran = first.run(["cat", path]);
        if ran.code == Some(0) {
            assert!(ran.stdout == *bytes, "{path} was returned with other bytes");
        } else {
            assert!(
                ran.stdout.len() < bytes.len() && bytes.starts_with(&ran.stdout),
                "{path} was returned with other bytes"
            );
            damaged.push(path.clone());
        }
    }
    assert_eq!(damaged.len(), 1, "one byte is in one file: {damaged:?}");
    // Writing goes on, and the other device brings the block back.
    first.put_bytes(b"still writable", "/new");
    first.up();
    second.up();
    for (path, bytes) in &files {
        assert!(first.cat_waiting(path) == *bytes, "{path} is not healed");
    }
    first.agrees_with(&second);
    second.kill();
    for (path, bytes) in &files {
        assert!(first.cat(path) == *bytes, "{path} is not healed for good");
    }
}

#[test]
fn flipped_byte_in_the_log_is_noticed_and_other_entries_count() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    for n in 0..20 {
        first.put_bytes(format!("content {n}").as_bytes(), &format!("/f{n:02}"));
    }
    second.agrees_with(&first);
    for n in 0..20 {
        assert_eq!(
            second.cat_waiting(&format!("/f{n:02}")),
            format!("content {n}").as_bytes()
        );
    }
    first.stop();
    second.stop();
    let logs = stored_files(&second, ".log");
    let log = logs.first().expect("the store has a log of entries");
    let before = fs::read(log).unwrap();
    flip(log);
    // What an entry in the middle of the log said is missing, nothing else; and it is no silent loss.
    let names = second.names("/");
    assert!(names.len() < 20, "the flipped byte lies in an entry");
    for name in &names {
        assert_eq!(
            second.cat(&format!("/{name}")),
            format!("content {}", name[1..].parse::<u32>().unwrap()).as_bytes()
        );
    }
    let kept = files_below(second.home()).iter().any(|path| {
        let bytes = fs::read(path).unwrap();
        let (middle, len) = (before.len() / 2, 16);
        let flipped: Vec<u8> = before[middle - len..middle].to_vec();
        bytes.windows(len).any(|window| window == flipped)
    });
    assert!(kept, "the damaged bytes are kept aside");
    // The other device brings the entry back, and then it is back for good.
    second.up();
    first.up();
    second.agrees_with(&first);
    second.stop();
    assert_eq!(second.names("/").len(), 20);
    for n in 0..20 {
        assert_eq!(
            second.cat(&format!("/f{n:02}")),
            format!("content {n}").as_bytes()
        );
    }
}

#[test]
fn index_that_is_gone_is_built_again() {
    let (_place, first) = one();
    let bytes = noise(77, 500_000);
    let cid = first.put_bytes(&bytes, "/x");
    fs::remove_dir_all(first.home().join("index")).unwrap();
    assert!(first.cat(&cid) == bytes);
    assert!(first.cat("/x") == bytes);
    first.put_bytes(b"and on", "/y");
    assert_eq!(first.cat("/y"), b"and on");
}

#[test]
fn damaged_key_file_is_named() {
    let (_place, first) = one();
    let key = first.home().join("device.key");
    flip(&key);
    let failed = first.fails(1, ["status"]);
    assert_eq!(failed.failure_kind(), "corrupt");
    assert!(failed.failure_text().contains("device.key"));
    // Nothing was made anew over it.
    first.fails(1, ["init"]);
    flip(&key);
    first.status();
}

/// A small file system of its own, if this machine lets us.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then(|| Self { at: at.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[test]
fn full_disk_is_a_clear_error_and_loses_nothing() {
    let place = place();
    let Some(disk) = SmallDisk::mount(&place.file("small"), "24m") else {
        say_loudly(
            "NOT TESTED: a full disk; this machine does not let us mount a small file system (needs root)",
        );
        return;
    };
    let device = Kith::new(env!("CARGO_BIN_EXE_kith"), disk.at.join("home"));
    device.ok(["init", "--name", "first"]);
    let mut stored: Vec<(String, Vec<u8>)> = Vec::new();
    let mut refused = None;
    for n in 0..40 {
        let bytes = noise(500 + n, 1_000_000);
        let ran = device.run_with(["put", "-", "--to", &format!("/f{n:02}")], &bytes);
        if ran.code == Some(0) {
            stored.push((format!("/f{n:02}"), bytes));
        } else {
            refused = Some(ran);
            break;
        }
    }
    let refused = refused.expect("24 MiB do not hold 40 MB");
    refused.expect_code(1);
    assert_eq!(refused.failure_kind(), "full", "{}", refused.failure());
    assert!(!refused.failure()["hint"].is_null());
    for (path, bytes) in &stored {
        assert!(
            device.cat(path) == *bytes,
            "{path} was acknowledged before the disk was full"
        );
    }
    device.ok(["status"]);
    // The restore into a full file system says so as well, and leaves nothing.
    let filler = disk.at.join("filler");
    let _ = fs::write(&filler, noise(1, 24 << 20));
    if let Some((path, _)) = stored.first() {
        let ran = get(&device, path, &disk.at.join("out"));
        ran.expect_code(1);
        assert!(!disk.at.join("out").exists());
    }
    // Room again: it goes on.
    fs::remove_file(&filler).unwrap();
    let _ = fs::remove_file(disk.at.join("out"));
    for (path, bytes) in &stored {
        assert!(device.cat(path) == *bytes);
    }
}

#[test]
fn long_file_that_finds_no_room_half_way_is_a_clear_error_and_leaves_nothing() {
    let place = place();
    let Some(disk) = SmallDisk::mount(&place.file("small"), "12m") else {
        say_loudly(
            "NOT TESTED: a restore that runs out of room; this machine does not let us mount a small file system (needs root)",
        );
        return;
    };
    let (device, _) = place.first("first");
    let bytes = noise(900, 20_000_000);
    let source = place.write("long", &bytes);
    device.put(&source, "/long");
    let refused = get(&device, "/long", &disk.at.join("out"));
    refused.expect_code(1);
    assert_eq!(refused.failure_kind(), "full", "{}", refused.failure());
    assert_eq!(fs::read_dir(&disk.at).unwrap().count(), 0);
    let whole = place.file("whole");
    get(&device, "/long", &whole).expect_code(0);
    assert!(fs::read(whole).unwrap() == bytes);
}

#[test]
fn mesh_whose_words_nobody_saw_is_not_made() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let device = place.device("first");
    // What the words should be shown on takes nothing.
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = device.command(["init", "--name", "first"]);
    let ended = command.stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(ended.code(), Some(1));
    device.fails(1, ["status"]);
    // The next try is the first.
    assert_eq!(
        text(&device.ok(["init", "--name", "first"]).last(), "words")
            .split(' ')
            .count(),
        24
    );
    device.ok(["status"]);
}
