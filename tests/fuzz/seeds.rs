//! The seeds of the corpus: the vectors, good and bad, and what the program itself makes. The same each time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::net::Ipv4Addr;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use data_encoding::HEXLOWER;
use kith_crdt::access::{Member, Removal, Role};
use kith_crdt::catalogue::{
    Born, CatalogueRecord, Coded, Fixed, HolderRecord, Kept, Leaving, LeavingRecord, PolicyRecord,
    Retired,
};
use kith_crdt::chain::{Codec, Entry, SealKind, padded_len, records};
use kith_crdt::names::Retention;
use kith_object::car::{Item, Reader};
use kith_object::coding::{self, Coding, Shard};
use kith_object::id::{Cid, DeviceId, EntryId, PackId};
use kith_object::key::{DeviceKeys, Rng, Words};
use kith_object::manifest::{ChunkRef, Manifest};
use kith_object::pack::Class;
use kith_object::seal::{Kind, SealedBlock};
use kith_object::time::Time;
use kith_object::unixfs::{FileBuilder, Profile, folder, symlink};
use kith_protocol::bulk::{Answer, GetRequest, PackAt};
use kith_protocol::gossip::Key;
use kith_protocol::gossip::message::Message as Gossip;
use kith_protocol::lan::{self, LanKey, Notice, Ports};
use kith_protocol::pairing::Ticket;
use kith_protocol::record::{AddressRecord, Key as RecordKey, Ledger};
use kith_tests::{noise, repository};
use serde_json::Value;

use crate::targets::{
    PIECE, blob, blob_id, blob_tree, door_frames, fixture, forge, log_record, object_parts, pack_of,
};

/// Longest seed: what is longer says nothing more, and mutations miss its parts that matter.
const LEN_MAX: usize = 8 << 10;
/// Largest share of a vector file in one target.
const NAME_LEN_MAX: usize = 48;

/// Seeds by target and file name.
pub(crate) type Seeds = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

fn ledger_of(ledger: &mut Ledger) -> Vec<u8> {
    ledger.remove(&RecordKey([200; 32]), &DeviceId([200; 32]));
    ledger.provide(Time(1), RecordKey([200; 32]), DeviceId([200; 32]));
    ledger.to_keep(Time(1)).expect("something is new")
}

#[derive(Default)]
struct Making(Seeds);

impl Making {
    /// Adds a seed; one that is there already is not added again.
    fn add(&mut self, target: &str, name: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let seeds = self.0.entry(target.to_owned()).or_default();
        if bytes.len() > LEN_MAX || seeds.values().any(|known| *known == bytes) {
            return;
        }
        let name: String = name
            .chars()
            .map(|letter| match letter {
                'a'..='z' | '0'..='9' => letter,
                'A'..='Z' => letter.to_ascii_lowercase(),
                _ => '-',
            })
            .take(NAME_LEN_MAX)
            .collect();
        let mut file = format!("seed-{name}");
        let mut number = 2;
        while seeds.contains_key(&file) {
            file = format!("seed-{name}-{number}");
            number += 1;
        }
        seeds.insert(file, bytes);
    }

    /// What stands in that field of a file of vectors goes to these targets.
    fn take(&mut self, file: &str, field: &str, targets: &[&str]) {
        for (name, bytes) in hex_fields(file, field) {
            for target in targets {
                self.add(target, &name, bytes.clone());
            }
        }
    }
}

fn vectors(file: &str) -> Vec<Value> {
    let path = repository().join("tests/vectors").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn named(vector: &Value) -> String {
    vector["name"].as_str().unwrap().to_owned()
}

fn hex(value: &Value) -> Option<Vec<u8>> {
    HEXLOWER.decode(value.as_str()?.as_bytes()).ok()
}

fn hex_fields(file: &str, field: &str) -> Vec<(String, Vec<u8>)> {
    let vectors = vectors(file);
    let fields = vectors.iter();
    fields
        .filter_map(|vector| Some((named(vector), hex(&vector[field])?)))
        .collect()
}

/// All of them.
pub(crate) fn all() -> Seeds {
    let mut seeds = Making::default();
    names(&mut seeds);
    disk(&mut seeds);
    objects(&mut seeds);
    archives(&mut seeds);
    messages(&mut seeds);
    doors(&mut seeds);
    entries(&mut seeds);
    devices(&mut seeds);
    homes(&mut seeds);
    seeds.0
}

fn names(seeds: &mut Making) {
    for vector in vectors("car.json") {
        for block in vector["blocks"].as_array().into_iter().flatten() {
            let bytes = hex(&block["cid"]).unwrap();
            if let Ok(cid) = Cid::from_bytes(&bytes) {
                seeds.add("cid", "text", cid.to_string());
            }
            seeds.add("cid", "binary", bytes);
        }
    }
    let ours = Cid::of_block(b"x");
    seeds.add("cid", "ours", ours.to_bytes());
    seeds.add("cid", "ours as text", ours.to_string());
    seeds.add("cid", "cut short", ours.to_bytes().split_at(20).0);
    seeds.add("cid", "nothing", b"");
    let space = fixture().space.to_string();
    seeds.add("ids", "32 bytes", space.as_bytes());
    seeds.add("ids", "16 bytes", space.split_at(32).0);
    seeds.add("ids", "version", format!("{space}.17"));
    seeds.add("ids", "version with a zero", format!("{space}.017"));
    seeds.add("ids", "device", DeviceId([7; 32]).to_peer_id_bytes());
    seeds.add("ids", "device name", "old laptop");
    seeds.add("ids", "name that turns", "abc\u{202e}txt.exe");
    for (name, path) in [
        ("root", "/"),
        ("deep", "/photos/2019/lake.jpg"),
        ("slashes", "//a///b/"),
        ("not absolute", "photos"),
        ("above", "/photos/.."),
        ("no ascii", "/füße/\u{202e}"),
    ] {
        seeds.add("path", name, path);
    }
    seeds.add("path", "no text", b"/\xff\xfe/\x01");
    seeds.add("path", "long", "/name".repeat(900));
    let words = Words::generate(&mut Rng::from_seed([3; 32])).phrase();
    seeds.add("words", "words", words.as_bytes());
    seeds.add("words", "capitals", words.to_uppercase());
    seeds.add("words", "white space", words.replace(' ', " \n\t"));
    seeds.add("words", "one less", words.rsplit_once(' ').unwrap().0);
    seeds.add("words", "one word", "abandon ".repeat(24));
}

/// A pack of three blocks as shards.
fn coded_three() -> (Coding, Vec<Shard>) {
    let blocks = [b"one".as_slice(), b"two", b"three"].map(|block| (Cid::of_block(block), block));
    coding::code(&pack_of(Class::Bulk, &blocks), 2, 1).unwrap()
}

fn disk(seeds: &mut Making) {
    seeds.take("pack.json", "pack", &["pack", "pack-proved"]);
    let of_blocks =
        [b"one".as_slice(), b"two", b"three"].map(|block| (Cid::of_block(block), block));
    let (_, shards) = coding::code(&pack_of(Class::Bulk, &of_blocks), 2, 1).unwrap();
    for (at, shard) in shards.iter().enumerate() {
        seeds.add("pack-proved", &format!("shard {at}"), shard.bytes.to_vec());
    }
    let dag = Cid::from_prefix(1, 0x70, 0x12, 32, b"a node").unwrap();
    let old = Cid::from_prefix(0, 0x70, 0x12, 32, b"an old node").unwrap();
    let long = noise(1, 3000);
    let blocks: [(Cid, &[u8]); 4] = [
        (dag, b"a node"),
        (old, b"an old node"),
        (Cid::of_block(&long), &long),
        (Cid::of_block(b""), b""),
    ];
    for target in ["pack", "pack-proved"] {
        seeds.add(
            target,
            "all kinds of names",
            pack_of(Class::Public, &blocks),
        );
    }
    let inner = pack_of(Class::Bulk, &[(Cid::of_block(b"x"), b"x")]);
    let outer = pack_of(Class::Bulk, &[(Cid::of_block(&inner), &inner)]);
    seeds.add("pack", "pack in a pack", outer);
    seeds.take("log.json", "log", &["log", "log-proved"]);
    let mut place = b"kithscr1".to_vec();
    place.extend_from_slice(&1_700_000_000_000u64.to_le_bytes());
    place.extend_from_slice(&[1, 1]);
    place.extend_from_slice(&[9; 32]);
    seeds.add("scrub", "under way", place.clone());
    place[16] = 0;
    place[17] = 0;
    seeds.add("scrub", "over", place.clone());
    seeds.add("scrub", "cut short", place.split_at(20).0);
}

/// The plaintext of a stored block.
fn stored(kind: Kind, data: &[u8]) -> Vec<u8> {
    let mut plain = vec![kind as u8, 0];
    plain.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
    plain.extend_from_slice(data);
    plain.resize(kith_object::seal::padded_len(plain.len()), 0);
    plain
}

fn objects(seeds: &mut Making) {
    for vector in vectors("seal.json") {
        let (Some(key), Some(block)) = (hex(&vector["key"]), hex(&vector["block"])) else {
            continue;
        };
        let name = named(&vector);
        seeds.add("sealed", &name, [&key[..], &block].concat());
        let key: [u8; 32] = key.try_into().unwrap();
        let payload = Payload {
            msg: block.get(1..).unwrap_or_default(),
            aad: &[1],
        };
        let opened = ChaCha20Poly1305::new(&key.into()).decrypt(&Nonce::default(), payload);
        if let Ok(plain) = opened {
            seeds.add("sealed-proved", &name, plain);
        }
    }
    seeds.take("manifest.json", "manifest", &["manifest"]);
    seeds.take("tree.json", "listing", &["tree"]);
    seeds.take("erasure.json", "bytes", &["table"]);
    let parts = object_parts();
    let rooted = |size: u64, level: u8, children: Vec<ChunkRef>| {
        let manifest = Manifest { level, children }.encode();
        let plain = stored(Kind::Manifest, &manifest);
        [&size.to_le_bytes()[..], &plain].concat()
    };
    let chunk =
        |size: u64, data: &[u8]| [&size.to_le_bytes()[..], &stored(Kind::Chunk, data)].concat();
    let lens = [5, 12, 11];
    let of = |part: usize| ChunkRef::to(&parts[part], lens[part]);
    seeds.add("object", "one chunk", chunk(5, b"whole"));
    seeds.add("object", "no bytes", chunk(0, b""));
    seeds.add("object", "longer than said", chunk(4, b"whole"));
    seeds.add(
        "object",
        "three chunks",
        rooted(28, 1, vec![of(0), of(1), of(2)]),
    );
    seeds.add(
        "object",
        "one chunk twice",
        rooted(10, 1, vec![of(0), of(0)]),
    );
    let below = ChunkRef::to(&parts[3], 17);
    seeds.add(
        "object",
        "two levels",
        rooted(34, 2, vec![below.clone(), below]),
    );
    let wrong = ChunkRef::to(&parts[0], 6);
    seeds.add("object", "chunk of wrong length", rooted(6, 1, vec![wrong]));
    let absent: SealedBlock = forge(&stored(Kind::Chunk, b"absent"));
    let absent = ChunkRef::to(&absent, 6);
    seeds.add("object", "absent chunk", rooted(6, 1, vec![absent]));
}

fn archives(seeds: &mut Making) {
    seeds.take("car.json", "car", &["car"]);
    let folder_of_files = repository().join("tests/vectors/car");
    let mut files: Vec<_> = fs::read_dir(folder_of_files)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "car"))
        .collect();
    files.sort();
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if let Ok(mut reader) = Reader::open(Cursor::new(&bytes)) {
            while let Some(item) = reader.next().unwrap() {
                if let Item::Block(block) = item
                    && block.cid.prefix().1 == 0x70
                    && block.bytes.len() < 2000
                {
                    seeds.add("unixfs", &name, block.bytes);
                }
            }
        }
        seeds.add("car", &name, bytes);
    }
    for profile in [Profile::V0, Profile::V1] {
        let mut blocks: Vec<Bytes> = Vec::new();
        let mut sink = |cid: Cid, block: Bytes| {
            if cid.prefix().1 == 0x70 {
                blocks.push(block);
            }
            Ok(())
        };
        let mut builder = FileBuilder::new(profile);
        builder.leaf(b"one", &mut sink).unwrap();
        builder.leaf(b"two", &mut sink).unwrap();
        let file = builder.finish(&mut sink).unwrap();
        let link = symlink(profile, b"to/there", &mut sink).unwrap();
        let entries = [(b"file".to_vec(), file), (b"link".to_vec(), link)];
        folder(profile, &entries, &mut sink).unwrap();
        for block in blocks {
            seeds.add("unixfs", "made here", block);
        }
    }
    seeds.take("backup.json", "record", &["backup"]);
    seeds.take("backup.json", "list", &["backup-list"]);
}

fn messages(seeds: &mut Making) {
    seeds.take("bitswap.json", "message", &["bitswap"]);
    seeds.take("digest.json", "message", &["gossip"]);
    seeds.take("holdings.json", "bytes", &["holdings"]);
    seeds.take("promises.json", "bytes", &["promises"]);
    let key = LanKey::of(&DeviceId([7; 32]));
    let here = |answer| Notice::Here {
        answer,
        device: DeviceId([8; 32]),
        addr: Ipv4Addr::new(192, 168, 1, 7),
        inside: Ports {
            tcp: 4001,
            udp: 4002,
        },
        door: Ports { tcp: 4003, udp: 0 },
    };
    for (name, notice) in [
        ("here", here(false)),
        ("answer", here(true)),
        ("seek", Notice::Seek),
    ] {
        let datagram = lan::encode(&key, &mut Rng::from_seed([2; 32]), notice);
        seeds.add("lan", name, datagram);
    }
    let other = LanKey::of(&DeviceId([9; 32]));
    let datagram = lan::encode(&other, &mut Rng::from_seed([2; 32]), Notice::Seek);
    seeds.add("lan", "of another mesh", datagram);
    let mut plain = vec![1];
    plain.extend_from_slice(&[8; 32]);
    plain.extend_from_slice(&[192, 168, 1, 7, 0xa1, 0x0f, 0xa2, 0x0f, 0xa3, 0x0f, 0, 0]);
    seeds.add("lan-proved", "here", plain.clone());
    plain[0] = 4;
    seeds.add("lan-proved", "of unknown kind", plain);
    let mut seek = vec![3];
    seek.resize(45, 0);
    seeds.add("lan-proved", "seek", seek);
    for vector in vectors("pairing.json") {
        let name = named(&vector);
        if let Some(text) = vector["text"].as_str() {
            seeds.add("ticket", &name, text);
            if let Ok(ticket) = Ticket::parse(text) {
                seeds.add("ticket-bytes", &name, &ticket.encode()[..]);
            }
        }
        let book = match vector["what"].as_str() {
            Some("book") => hex(&vector["bytes"]),
            _ => hex(&vector["book_after"]),
        };
        let body = book
            .as_deref()
            .and_then(|book| book.split_last_chunk::<32>());
        if let Some((body, _)) = body {
            seeds.add("tickets", &name, body);
        }
    }
    for (name, record) in hex_fields("record.json", "record") {
        seeds.add("address", &name, record.clone());
        if let Some((said, _)) = record.split_last_chunk::<64>() {
            seeds.add("address-proved", &name, said);
        }
    }
    for (name, request) in hex_fields("bulk.json", "request") {
        if name.starts_with("two ranges") {
            // Of a hash sequence, and of many blobs.
            seeds.add("get", "sequence", request.split_at(request.len() - 1).0);
            seeds.add("get", "many", [&[9], request.split_at(1).1].concat());
        }
        seeds.add("get", &name, request);
    }
    let (blob, pack) = (blob(), blob_id());
    let tree = blob_tree();
    let read = |offset: u64, buffer: &mut [u8]| {
        let from = usize::try_from(offset).expect("within the blob");
        let there = blob.get(from..from + buffer.len());
        buffer.copy_from_slice(there.expect("within the blob"));
        Ok(())
    };
    let request = GetRequest::piece(pack, PIECE.0, PIECE.1);
    let mut said = Vec::new();
    tree.answer(&request, read, &mut said)
        .expect("what is read is the blob");
    seeds.add("piece", "cut short", said.split_at(600).0);
    seeds.add("piece", "whole", said);
    let places = [Some(1), Some(2), None, Some(1)];
    let places = places.map(|pack: Option<u8>| pack.map(|n| PackId([n; 32])));
    let about = |pack: &PackId| {
        Ok::<_, ()>(Some(PackAt {
            pack: *pack,
            bytes: 16 << 20,
            blocks: 100,
        }))
    };
    let answer = Answer::of(places, about).expect("nothing fails");
    seeds.add("where", "some", [&[4], &answer.encode()[..]].concat());
    seeds.add("where", "none", [0, 0, 0]);
    seeds.add("where", "of fewer", [&[3], &answer.encode()[..]].concat());
    let mut ledger = Ledger::default();
    seeds.add("ledger", "empty", ledger_of(&mut ledger));
    for n in 0..9 {
        ledger.provide(Time(1), RecordKey([n % 3; 32]), DeviceId([n; 32]));
    }
    for (_, record) in hex_fields("record.json", "record") {
        if let Ok(record) = AddressRecord::decode(&record) {
            ledger.put(Time(1 << 41), RecordKey([9; 32]), record);
        }
    }
    let some = ledger_of(&mut ledger);
    seeds.add("ledger", "cut short", some.split_at(100).0);
    seeds.add("ledger", "some", some);
    seeds.add("tickets", "empty", [1, 0]);
    seeds.add("ticket-bytes", "newer", [2; 90]);
    for (name, json) in REQUESTS {
        seeds.add("api-request", name, *json);
    }
    for (name, json) in EVENTS {
        seeds.add("api-event", name, *json);
    }
}

/// Requests of clients.
const REQUESTS: &[(&str, &str)] = &[
    ("status", r#"{"command":"status"}"#),
    (
        "put",
        r#"{"command":"put","sources":["/home/a",{"base64":"/2Y="}],"to":"/b"}"#,
    ),
    (
        "get",
        r#"{"command":"get","what":{"path":"/a"},"dest":"/tmp/a","force":false,"wait":true}"#,
    ),
    (
        "cat",
        r#"{"command":"cat","what":{"cid":"bafk"},"offset":18446744073709551615,"wait":false}"#,
    ),
    (
        "export",
        r#"{"command":"export","what":null,"file":"/f","current":true,"public":null,"force":false,"wait":false}"#,
    ),
    (
        "import",
        r#"{"command":"import","file":"/f","to":"/","public":true}"#,
    ),
    ("pair", r#"{"command":"pair","role":"member","yes":false}"#),
    (
        "remove",
        r#"{"command":"device-remove","device":"old","words":"abandon","force":true}"#,
    ),
    (
        "verify",
        r#"{"command":"verify","percent":255,"rate":null,"resume":true}"#,
    ),
    ("unknown", r#"{"command":"erase"}"#),
    ("of another kind", r#"["command","status"]"#),
    (
        "too large a number",
        r#"{"command":"verify","percent":256,"rate":-1,"resume":true}"#,
    ),
    ("deep", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["),
];

/// Events of the daemon.
const EVENTS: &[(&str, &str)] = &[
    (
        "progress",
        r#"{"event":"progress","bytes":1,"total":null,"files":0}"#,
    ),
    (
        "put",
        r#"{"event":"put","cid":"bafk","path":{"base64":"L/8="},"size":1,"files":1,"dedup":0}"#,
    ),
    (
        "damage",
        r#"{"event":"damage","file":"packs/a","offset":3,"what":"a bit","blocks":["bafk"],"lost":[],"mended":null}"#,
    ),
    ("data", r#"{"event":"data","len":18446744073709551615}"#),
    ("warning", r#"{"event":"warning","text":"line\nbreak"}"#),
    ("done", r#"{"event":"done"}"#),
    ("unknown", r#"{"event":"party"}"#),
];

fn doors(seeds: &mut Making) {
    for (target, words) in [("door-ticket", false), ("door-words", true)] {
        let (frames, kept) = door_frames(words);
        for frame in frames {
            let name = format!("frame {}", frame[0]);
            let mut other = frame.clone();
            *other.last_mut().unwrap() ^= 1;
            seeds.add(target, &format!("{name} altered"), other);
            seeds.add(target, &name, frame);
        }
        for body in kept {
            seeds.add("resume", "cut short", body.split_at(body.len() / 2).0);
            seeds.add("resume", "kept", body);
        }
    }
    for vector in vectors("pairing.json") {
        let Some(bytes) = hex(&vector["bytes"]) else {
            continue;
        };
        // What the door sends in pieces: kind, and whether it is the last, before each.
        if vector["what"].as_str() == Some("guide") {
            let frame = [&[3, 0x24, 1][..], &bytes].concat();
            seeds.add("door-words", &named(&vector), frame);
        }
    }
}

fn padded(codec: Codec, body: &[u8], seal: SealKind) -> Vec<u8> {
    let mut plain = vec![codec as u8];
    plain.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    plain.extend_from_slice(body);
    if seal != SealKind::Open {
        plain.resize(padded_len(plain.len()), 0);
    }
    plain
}

fn entries(seeds: &mut Making) {
    for (name, bytes) in hex_fields("chain.json", "entry") {
        if let Ok(entry) = Entry::decode(&bytes) {
            chained(seeds, &name, &entry);
        }
        seeds.add("entry", &name, bytes);
    }
    for entry in &fixture().entries {
        chained(seeds, "of a mesh", entry);
        seeds.add("entry", "of a mesh", entry.encode());
    }
    seeds.add("payload", "no parts", [0, 0]);
    seeds.add("part", "of unknown codec", [9, 1, 0, 0, 0, 7]);
    seeds.add(
        "part-proved",
        "padded too much",
        [2, 1, 0, 0, 0, 7, 0, 0, 0],
    );
    let text = padded(Codec::Records, b"ten bytes!", SealKind::Change);
    seeds.add("part-proved", "padded", text);
    let change = padded(Codec::Change, b"x", SealKind::Change);
    seeds.add("part-proved", "one byte", change);
    seeds.add("records", "cut short", [1, 0, 9, 0, 0, 0, 1]);
    seeds.take("names.json", "record", &["version"]);
    seeds.take("epoch.json", "body", &["epoch"]);
    seeds.take("pairing.json", "genesis", &["member"]);
    let keys = DeviceKeys::generate(&mut Rng::from_seed([6; 32]));
    let member = Member {
        device: keys.id(),
        agree: keys.agree_public(),
        role: Role::Admin,
        name: "attic".to_owned(),
    };
    seeds.add("member", "member", member.encode());
    let removal = Removal {
        device: keys.id(),
        frontier: vec![EntryId([1; 32]), EntryId([2; 32])],
    };
    seeds.add("member", "removal", removal.encode());
    seeds.add(
        "member",
        "removal cut short",
        removal.encode().split_at(50).0,
    );
    let statements = [
        CatalogueRecord::Born(Born {
            pack: PackId([1; 32]),
            class: 2,
            blocks: 3,
            bytes: 4,
        }),
        CatalogueRecord::Retired(Retired {
            pack: PackId([1; 32]),
            replacements: vec![PackId([2; 32])],
            basis: vec![EntryId([1; 32]), EntryId([2; 32])],
            left_out: vec![[9; 32]],
        }),
        CatalogueRecord::Coded(Coded {
            coding: coded_three().0,
            devices: (1..4).map(|n| DeviceId([n; 32])).collect(),
        }),
        CatalogueRecord::Policy(PolicyRecord {
            kept: Kept::Shards(4, 2),
            min_sites: 2,
            sites: ["cloud", "home"].map(str::to_owned).into(),
        }),
        CatalogueRecord::Holder(HolderRecord {
            device: DeviceId([7; 32]),
            capacity: 1 << 40,
            grace: 172_800,
            site: "home".to_owned(),
        }),
        CatalogueRecord::Leaving(LeavingRecord {
            device: DeviceId([7; 32]),
            leaving: Leaving::Drains,
        }),
        CatalogueRecord::Seen(kith_crdt::catalogue::Seen {
            entry: EntryId([7; 32]),
            in_full: true,
        }),
        CatalogueRecord::Fixed(Fixed {
            generation: 1,
            frontier: vec![EntryId([3; 32])],
            snapshot: Cid::of_block(b"x"),
        }),
        CatalogueRecord::Erased(vec![(EntryId([1; 32]), 0), (EntryId([1; 32]), 1)]),
        CatalogueRecord::Retention(Retention::default()),
    ];
    for statement in statements {
        let bytes = statement.encode();
        let kind = format!("kind {}", bytes[0]);
        seeds.add(
            "catalogue",
            &format!("{kind} cut short"),
            bytes.split_at(9).0,
        );
        seeds.add("catalogue", &kind, bytes);
    }
    for vector in vectors("hostile.json") {
        let number = |field: &str| vector[field].as_u64().unwrap().to_le_bytes();
        let hashes: Vec<Vec<u8>> = vector["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hash| hex(hash).unwrap())
            .collect();
        let mut bytes = hex(&vector["nonce"]).unwrap();
        for field in ["entry_seq", "seq", "start_op"] {
            bytes.extend_from_slice(&number(field));
        }
        bytes.push(u8::try_from(hashes.len()).unwrap());
        bytes.extend(hashes.concat());
        bytes.extend(hex(&vector["change"]).unwrap());
        seeds.add("change", &named(&vector), bytes);
    }
}

/// What is in an entry.
fn chained(seeds: &mut Making, name: &str, entry: &Entry) {
    if let Some(payload) = entry.payload() {
        seeds.add("payload", name, payload.to_vec());
    }
    let parts = entry.parts().unwrap_or_default();
    let open = parts.iter().filter(|part| part.seal == SealKind::Open);
    for part in open {
        seeds.add("part", name, part.bytes);
        let Some(plain) = part.open(entry.header(), 0, 1, None) else {
            continue;
        };
        if plain.codec != Codec::Records {
            continue;
        }
        seeds.add("records", name, &plain.body[..]);
        for record in records(&plain.body).unwrap_or_default() {
            let kind = format!("{name} kind {}", record.kind);
            for target in ["member", "epoch"] {
                seeds.add(target, &kind, record.body);
            }
        }
    }
}

fn devices(seeds: &mut Making) {
    let device = |seed: u8, addrs: &[&str]| {
        let mut bytes = [seed; 32].to_vec();
        bytes.push(u8::try_from(addrs.len()).unwrap());
        for addr in addrs {
            bytes.extend_from_slice(&u16::try_from(addr.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(addr.as_bytes());
        }
        bytes
    };
    let one = device(
        1,
        &["/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/udp/4001/quic-v1"],
    );
    let two = [one.clone(), device(2, &[]), device(3, &["/ip6/::1/tcp/9"])].concat();
    seeds.add("peers", "one", one.clone());
    seeds.add("peers", "three", two.clone());
    seeds.add("peers", "cut short", one.split_at(40).0);
    let entries: Vec<Vec<u8>> = fixture().entries.iter().map(Entry::encode).collect();
    let log = |entries: &[Vec<u8>]| -> Vec<u8> {
        let records = entries.iter().map(|entry| log_record(entry));
        records.collect::<Vec<_>>().concat()
    };
    let (group, before) = (entries.len() - 2, entries.len() - 2);
    seeds.add("wake", "a mesh", log(&entries));
    seeds.add("wake", "the last first", {
        let mut turned = entries.clone();
        turned.reverse();
        log(&turned)
    });
    let mut mark = b"\xffkith group 1\0\0\0".to_vec();
    for entry in &fixture().entries[group..] {
        mark.extend_from_slice(&entry.id().0);
    }
    let mut grouped = entries[..before].to_vec();
    grouped.push(mark);
    grouped.extend_from_slice(&entries[group..]);
    seeds.add("wake", "with a group", log(&grouped));
    grouped.pop();
    seeds.add("wake", "with half a group", log(&grouped));
    seeds.add("wake", "without its beginning", log(&entries[1..]));
    seeds.add("wake", "no entries", log_record(b"something else"));
    for (name, message) in hex_fields("bitswap.json", "message") {
        seeds.add("inbox", &name, [&[0][..], &message].concat());
    }
    for (name, message) in hex_fields("digest.json", "message") {
        seeds.add("inbox", &name, [&[1, 0][..], &message].concat());
    }
    seeds.add("inbox", "address book", [&[1, 1][..], &two].concat());
    seeds.add("inbox", "nothing", []);
    let last = fixture().entries.last().unwrap();
    let key = Key {
        hlc: last.header().hlc.0,
        id: last.id().0,
    };
    let spread = Gossip::Spread {
        key,
        entry: last.encode().into(),
    };
    seeds.add("inbox", "spread", [&[2, 0][..], &spread.encode()].concat());
    seeds.add(
        "inbox",
        "spread bare",
        [&[2][..], &spread.encode()].concat(),
    );
}

fn homes(seeds: &mut Making) {
    seeds.add("settings", "both", "quota 1000\ndurability relaxed\n");
    seeds.add("settings", "defaults", "durability group\n");
    seeds.add("settings", "of a later version", "colour blue\nquota 7\n");
    seeds.add("settings", "no number", "quota many\n");
    seeds.add("settings", "no text", b"\xff\xfe\n");
    let keys = DeviceKeys::generate(&mut Rng::from_seed([6; 32]));
    let identity = [b"kithkey1", &[1; 32][..], &keys.to_bytes()[..], &[2; 32]].concat();
    seeds.add("identity", "cut short", identity.split_at(100).0);
    seeds.add("identity", "keys", identity);
    let joining = |name: &[u8], conversation: &[u8]| {
        let mut bytes = [b"kithjoi1", &[1; 32][..], &keys.to_bytes()[..]].concat();
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&u32::try_from(conversation.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(conversation);
        bytes
    };
    seeds.add("joining", "by words", joining(b"attic", b""));
    seeds.add("joining", "by ticket", joining(b"attic", &[7; 300]));
    seeds.add("joining", "name that is no text", joining(b"\xff", b""));
}
