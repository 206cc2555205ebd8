//! The fixed bytes in `tests/vectors/names.json`: records, good and bad, and small trees.

use data_encoding::HEXLOWER;
use kith_object::id::{DeviceId, EntryId, InodeId};
use kith_object::object::ObjectLink;
use kith_object::seal::BlockKey;
use kith_object::time::Hlc;
use kith_object::tree::FileKind;
use serde_json::{Value, json};

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/names.json");

fn record() -> Record {
    Record {
        inode: InodeId([0x11; 16]),
        replaces: Vec::new(),
        parent: ROOT,
        name: b"lake.jpg".to_vec(),
        kind: FileKind::File,
        link: Some(ObjectLink {
            digest: [0x22; 32],
            key: BlockKey::new([0x33; 32]),
            size: 123_456,
        }),
        mtime_ms: 1_700_000_000_000,
        mode: 0o644,
        deleted: false,
    }
}

fn folder(inode: u8, parent: u8, name: &str) -> Record {
    Record {
        inode: InodeId([inode; 16]),
        parent: InodeId([parent; 16]),
        name: name.as_bytes().to_vec(),
        kind: FileKind::Folder,
        link: None,
        mode: 0o755,
        ..record()
    }
}

fn file(inode: u8, parent: u8, name: &str) -> Record {
    Record {
        inode: InodeId([inode; 16]),
        parent: InodeId([parent; 16]),
        name: name.as_bytes().to_vec(),
        ..record()
    }
}

fn version(entry: u8, index: u32) -> VersionId {
    VersionId {
        entry: EntryId([entry; 32]),
        index,
    }
}

fn info(entry: u8, index: u32) -> VersionInfo {
    VersionInfo {
        id: version(entry, index),
        author: DeviceId([entry; 32]),
        hlc: Hlc(u64::from(entry) << 16),
    }
}

fn fields(record: &Record) -> Value {
    let replaces: Vec<Value> = record
        .replaces
        .iter()
        .map(
            |version| json!({ "entry": HEXLOWER.encode(&version.entry.0), "index": version.index }),
        )
        .collect();
    json!({
        "inode": HEXLOWER.encode(&record.inode.0),
        "parent": HEXLOWER.encode(&record.parent.0),
        "name": HEXLOWER.encode(&record.name),
        "kind": record.kind as u8,
        "deleted": record.deleted,
        "mode": record.mode,
        "mtime_ms": record.mtime_ms,
        "replaces": replaces,
        "link": record.link.as_ref().map(|link| HEXLOWER.encode(&link.encode())),
    })
}

fn good(name: &str, record: &Record) -> Value {
    let bytes = record.encode().unwrap();
    json!({ "name": name, "expect": "ok", "record": HEXLOWER.encode(&bytes), "fields": fields(record) })
}

fn bad(name: &str, bytes: &[u8]) -> Value {
    let error = Record::decode(bytes).unwrap_err();
    json!({ "name": name, "expect": error.to_string(), "record": HEXLOWER.encode(bytes) })
}

/// The bytes of the plain record, altered.
fn altered(alter: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Record {
        replaces: vec![version(1, 0), version(1, 2)],
        ..record()
    }
    .encode()
    .unwrap();
    alter(&mut bytes);
    bytes
}

fn tree(name: &str, versions: &[(VersionInfo, Record)]) -> Value {
    let mut tree = Tree::new();
    tree.apply_all(versions.iter().cloned());
    tree.check_invariants();
    let mut shown = Vec::new();
    let mut open = vec![TreePath::root()];
    while let Some(path) = open.pop() {
        for listed in tree.list(&path).unwrap() {
            let here = path.child(&listed.name).unwrap();
            shown.push(json!({
                "path": HEXLOWER.encode(&here.to_bytes()),
                "text": here.to_string(),
                "kind": listed.kind as u8,
                "inode": HEXLOWER.encode(&listed.inode.0),
                "version": listed.version.map(|version| version.id.to_string()),
                "conflict": listed.conflict,
            }));
            if listed.kind == FileKind::Folder {
                open.push(here);
            }
        }
    }
    shown.sort_by_key(|listed| listed["path"].to_string());
    let versions: Vec<Value> = versions
        .iter()
        .map(|(info, record)| {
            json!({
                "version": info.id.to_string(),
                "author": HEXLOWER.encode(&info.author.0),
                "hlc": info.hlc.0,
                "record": HEXLOWER.encode(&record.encode().unwrap()),
            })
        })
        .collect();
    json!({ "name": name, "expect": "ok", "versions": versions, "tree": shown, "fingerprint": HEXLOWER.encode(&tree.fingerprint()) })
}

fn replacing(replaces: Vec<VersionId>, record: Record) -> Record {
    Record { replaces, ..record }
}

fn removed(record: Record) -> Record {
    Record {
        link: None,
        deleted: true,
        ..record
    }
}

fn vectors() -> Vec<Value> {
    let long = format!("{}ü-{}", "n".repeat(244), "m".repeat(8));
    let mut vectors = vec![
        good("a file", &record()),
        good("a folder without snapshot", &folder(0x12, 0, "photos")),
        good(
            "a folder with its snapshot",
            &Record {
                link: record().link,
                ..folder(0x12, 0, "photos")
            },
        ),
        good(
            "a symlink, its name not UTF-8",
            &Record {
                kind: FileKind::Symlink,
                name: vec![0xff, 0x01],
                mode: 0o777,
                ..record()
            },
        ),
        good(
            "replaces two",
            &replacing(vec![version(1, 0), version(1, 2)], record()),
        ),
        good(
            "a removal",
            &replacing(vec![version(1, 0)], removed(record())),
        ),
        bad("empty", &[]),
        bad(
            "cut short",
            &altered(|bytes| bytes.truncate(bytes.len() - 1)),
        ),
        bad("a byte too many", &altered(|bytes| bytes.push(0))),
        bad("of another type", &altered(|bytes| bytes[0] = 2)),
        bad("unknown flag", &altered(|bytes| bytes[6] |= 0x10)),
        bad("unknown kind", &altered(|bytes| bytes[6] |= 3)),
        bad("deleted with a link", &altered(|bytes| bytes[6] |= 4)),
        bad("of the root", &altered(|bytes| bytes[7..23].fill(0))),
        bad("inside itself", &altered(|bytes| bytes[23..39].fill(0x11))),
        bad(
            "mode beyond permissions",
            &altered(|bytes| bytes[40] |= 0x10),
        ),
        bad("name with a slash", &altered(|bytes| bytes[52] = b'/')),
        bad(
            "replaced versions out of order",
            &altered(|bytes| bytes[61 + 32] = 9),
        ),
        bad(
            "replaced version twice",
            &altered(|bytes| bytes[61 + 32] = 2),
        ),
    ];
    let nameless = Record {
        name: Vec::new(),
        ..folder(0x12, 0, "x")
    };
    let mut bytes = folder(0x12, 0, "x").encode().unwrap();
    bytes.remove(52);
    bytes[51] = 0;
    bytes[2] -= 1;
    assert!(nameless.encode().is_err());
    vectors.push(bad("name empty", &bytes));
    let mut bytes = record().encode().unwrap();
    bytes.truncate(bytes.len() - 72);
    bytes[6] = 0;
    bytes[2] -= 72;
    vectors.push(bad("a file without a link", &bytes));

    vectors.extend([
        tree(
            "one after another",
            &[
                (info(1, 0), folder(1, 0, "photos")),
                (info(1, 1), file(2, 1, "lake.jpg")),
                (
                    info(2, 0),
                    replacing(vec![version(1, 1)], file(2, 0, "sea.jpg")),
                ),
            ],
        ),
        tree(
            "concurrent edits",
            &[
                (info(1, 0), file(1, 0, "n")),
                (info(2, 0), replacing(vec![version(1, 0)], file(1, 0, "n"))),
                (info(3, 0), replacing(vec![version(1, 0)], file(1, 0, "n"))),
            ],
        ),
        tree(
            "edit and removal",
            &[
                (info(1, 0), file(1, 0, "n")),
                (info(2, 0), replacing(vec![version(1, 0)], file(1, 0, "n"))),
                (
                    info(3, 0),
                    replacing(vec![version(1, 0)], removed(file(1, 0, "n"))),
                ),
            ],
        ),
        tree(
            "two files of one name",
            &[(info(1, 0), file(1, 0, "n")), (info(2, 0), file(2, 0, "n"))],
        ),
        tree(
            "two files of one long name",
            &[
                (info(1, 0), file(1, 0, &long)),
                (info(2, 0), file(2, 0, &long)),
            ],
        ),
        tree(
            "two folders of one name",
            &[
                (info(1, 0), folder(1, 0, "f")),
                (info(1, 1), file(3, 1, "a")),
                (info(2, 0), folder(2, 0, "f")),
                (info(2, 1), file(4, 2, "b")),
            ],
        ),
        tree(
            "a folder removed while something is put into it",
            &[
                (info(1, 0), folder(1, 0, "f")),
                (
                    info(2, 0),
                    replacing(vec![version(1, 0)], removed(folder(1, 0, "f"))),
                ),
                (info(3, 0), file(2, 1, "new")),
            ],
        ),
        tree(
            "a folder whose own versions do not count",
            &[
                (info(1, 0), file(2, 1, "a")),
                (info(1, 1), folder(3, 1, "b")),
            ],
        ),
        tree(
            "two folders moved into each other",
            &[
                (info(1, 0), folder(1, 0, "x")),
                (info(1, 1), folder(2, 0, "y")),
                (
                    info(2, 0),
                    replacing(vec![version(1, 0)], folder(1, 2, "x")),
                ),
                (
                    info(3, 0),
                    replacing(vec![version(1, 1)], folder(2, 1, "y")),
                ),
            ],
        ),
        tree(
            "three folders moved in a ring",
            &[
                (info(1, 0), folder(1, 0, "x")),
                (info(1, 1), folder(2, 1, "y")),
                (info(1, 2), folder(3, 0, "z")),
                (
                    info(2, 0),
                    replacing(vec![version(1, 2)], folder(3, 2, "z")),
                ),
                (
                    info(3, 0),
                    replacing(vec![version(1, 0)], folder(1, 3, "x2")),
                ),
                (
                    info(4, 0),
                    replacing(vec![version(3, 0)], folder(1, 3, "x3")),
                ),
            ],
        ),
    ]);
    vectors
}

#[test]
fn vectors_are_what_todays_code_makes() {
    let made = vectors();
    if std::env::var_os("KITH_BLESS").is_some() {
        std::fs::write(FILE, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
    }
    let kept: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    assert_eq!(
        kept, made,
        "bless with KITH_BLESS=1 only if the format was meant to change"
    );
    for vector in &kept {
        let Some(record) = vector["record"].as_str() else {
            continue;
        };
        let decoded = Record::decode(&HEXLOWER.decode(record.as_bytes()).unwrap());
        match vector["expect"].as_str().unwrap() {
            "ok" => assert_eq!(fields(&decoded.unwrap()), vector["fields"]),
            error => assert_eq!(decoded.unwrap_err().to_string(), error),
        }
    }
}
