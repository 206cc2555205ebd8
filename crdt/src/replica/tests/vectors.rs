//! Fixed bytes: entries with the keys that open them, epochs with their links and envelopes.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use kith_object::id::{EpochId, PackId};
use kith_object::key::{AgreeSecret, Secret};
use serde_json::{Value as Json, json};

use super::mesh::{Home, Mesh};
use crate::access::Role;
use crate::catalogue::{Born, CatalogueRecord, Fixed, Retired, Seen};
use crate::chain::{Codec, Entry, SealKind, records};
use crate::epoch::{Envelope, EpochRecord, HolderPart, KeyPart, Link, MemberPart};

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn unhex(json: &Json) -> Vec<u8> {
    HEXLOWER.decode(json.as_str().unwrap().as_bytes()).unwrap()
}

fn unhex_32(json: &Json) -> [u8; 32] {
    unhex(json).try_into().unwrap()
}

/// Compares with the file, after writing it if told to, and returns what it holds.
fn compare(path: &str, fresh: Json) -> Vec<Json> {
    if std::env::var_os("KITH_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&fresh).unwrap() + "\n";
        std::fs::write(path, text).unwrap();
    }
    let stored: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(
        stored == fresh,
        "{path} differs from what today's code makes"
    );
    stored.as_array().unwrap().clone()
}

fn seal_name(seal: SealKind) -> &'static str {
    match seal {
        SealKind::Open => "open",
        SealKind::Holder => "holder key",
        SealKind::Change => "change key",
    }
}

/// What a vector says of a part that opens.
fn describe_parts(
    entry: &Entry,
    holder: Option<&Secret>,
    change: Option<&Secret>,
) -> Option<Vec<Json>> {
    let parts = entry.parts()?;
    let mut list = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let key = match part.seal {
            SealKind::Open => None,
            SealKind::Holder => holder,
            SealKind::Change => change,
        };
        let plain = part.open(entry.header(), index, parts.len(), key)?;
        let listed = match plain.codec {
            Codec::Change => Vec::new(),
            Codec::Records => records(&plain.body).ok()?,
        };
        let listed: Vec<Json> = listed
            .iter()
            .map(|record| json!({ "type": record.kind, "body": hex(record.body) }))
            .collect();
        list.push(json!({
            "seal": seal_name(part.seal),
            "codec": match plain.codec { Codec::Change => 1, Codec::Records => 2 },
            "body": hex(&plain.body),
            "records": listed,
        }));
    }
    Some(list)
}

struct Sample {
    home: Home,
    entries: Vec<(&'static str, Entry)>,
}

fn sample() -> Sample {
    let (mut mesh, mut home) = Mesh::new(42);
    let mut entries = Vec::new();
    let mut add = |name, entry: &Entry| entries.push((name, entry.clone()));
    add("genesis", &home.log[&home.order[0]]);
    add(
        "admission of the first device by the root",
        &home.log[&home.order[1]],
    );
    let second = mesh.join(&mut home, Role::Member, "phone");
    let admission = *home.order.last().unwrap();
    add("admission of a member by an admin", &home.log[&admission]);
    let now = mesh.tick();
    let versions = vec![b"first record".to_vec(), b"second record".to_vec()];
    let names = home
        .replica
        .names(&home.keys, now, &mut mesh.rng, versions)
        .unwrap();
    add("two records of names", &home.keep(names)[0]);
    let now = mesh.tick();
    let statements = [
        CatalogueRecord::Born(Born {
            pack: PackId([0x11; 32]),
            class: 1,
            blocks: 7,
            bytes: 123_456,
        }),
        CatalogueRecord::Retired(Retired {
            pack: PackId([0x11; 32]),
            replacements: vec![PackId([0x22; 32]), PackId([0x33; 32])],
            basis: vec![home.order[0]],
            left_out: vec![[0x44; 32]],
        }),
        CatalogueRecord::Seen(Seen {
            entry: home.order[0],
            in_full: false,
        }),
        CatalogueRecord::Fixed(Fixed {
            generation: 0,
            frontier: vec![home.order[0]],
            snapshot: kith_object::id::Cid::of_block(b"snapshot"),
        }),
        CatalogueRecord::Erased(vec![(home.order[0], 1)]),
    ];
    let catalogue = home
        .replica
        .catalogue(&home.keys, now, &mut mesh.rng, &statements)
        .unwrap();
    add("all statements of catalogue", &home.keep(catalogue)[0]);
    add(
        "removal of a member",
        &mesh.remove(&mut home, second.id())[0],
    );
    add("renewal of the keys", &mesh.mint(&mut home)[0]);
    add(
        "second entry of a chain",
        &mesh.write(&mut home, "third record")[0],
    );
    Sample { home, entries }
}

fn keys_of<'a>(home: &'a Home, entry: &Entry) -> (Option<&'a Secret>, Option<&'a Secret>) {
    let epoch = entry.header().epoch;
    let ring = &home.replica.ring;
    (
        ring.holder(&epoch).map(|part| &part.key),
        ring.member(&epoch).map(|part| &part.change),
    )
}

fn chain_vectors() -> Json {
    let Sample { home, entries } = sample();
    let secret = |key: Option<&Secret>| key.map_or(Json::Null, |key| json!(hex(key.expose())));
    let mut list: Vec<Json> = Vec::new();
    for (name, entry) in &entries {
        let (holder, change) = keys_of(&home, entry);
        list.push(json!({
            "name": name,
            "expect": "ok",
            "entry": hex(&entry.encode()),
            "id": hex(&entry.id().0),
            "space": hex(&home.replica.space().0),
            "author": hex(&entry.header().author.0),
            "payload_root": hex(&entry.header().payload_root),
            "holder_key": secret(holder),
            "change_key": secret(change),
            "parts": describe_parts(entry, holder, change).unwrap(),
        }));
    }
    let names = &entries[3].1;
    let (_, change) = keys_of(&home, names);
    list.push(json!({
        "name": "header and signature without the payload",
        "expect": "ok",
        "entry": hex(&names.without_payload().encode()),
        "id": hex(&names.id().0),
        "space": hex(&home.replica.space().0),
        "author": hex(&names.header().author.0),
        "payload_root": hex(&names.header().payload_root),
        "holder_key": Json::Null,
        "change_key": secret(change),
        "parts": [],
    }));
    let good = names.encode();
    let header_len = names.header().encode().len();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let flipped = |at: usize| with(at, good[at] ^ 1);
    let longer = [good.as_slice(), &[0]].concat();
    let signed_by_other = flipped(header_len + 2);
    let bad = [
        (
            "version 2",
            "header of an unknown version or kind",
            with(0, 2),
        ),
        (
            "signature suite 3",
            "header of an unknown version or kind",
            with(1, 3),
        ),
        ("flag set", "header is not in canonical form", with(2, 1)),
        (
            "reserved byte set",
            "header is not in canonical form",
            with(3, 1),
        ),
        (
            "document 9",
            "header of an unknown version or kind",
            with(36, 9),
        ),
        (
            "shard depth 1",
            "header of an unknown version or kind",
            with(37, 1),
        ),
        (
            "generation 1",
            "header of an unknown version or kind",
            with(44, 1),
        ),
        (
            "place 1 without a previous entry",
            "header is not in canonical form",
            with(96, 1),
        ),
        (
            "payload of 16 MiB and more",
            "header is not in canonical form",
            with(179, 1),
        ),
        (
            "17 heads of access",
            "header is not in canonical form",
            with(212, 17),
        ),
        (
            "cut in the header",
            "header is cut short",
            good[..100].to_vec(),
        ),
        (
            "cut in the payload",
            "payload is not the one its header names",
            good[..good.len() - 1].to_vec(),
        ),
        (
            "byte after the payload",
            "payload is not the one its header names",
            longer,
        ),
        (
            "byte of the payload altered",
            "payload is not the one its header names",
            flipped(good.len() - 1),
        ),
        (
            "no word whether a payload follows",
            "entry is malformed",
            good[..header_len + 66].to_vec(),
        ),
        (
            "signature of 65 bytes",
            "entry is malformed",
            with(header_len, 65),
        ),
        (
            "signature altered",
            "signature does not hold",
            signed_by_other,
        ),
        ("stamp altered", "signature does not hold", flipped(136)),
    ];
    for (name, expect, bytes) in bad {
        list.push(json!({ "name": name, "expect": expect, "entry": hex(&bytes) }));
    }
    list.push(json!({
        "name": "change key of another epoch",
        "expect": "part does not open",
        "entry": hex(&good),
        "change_key": hex(&[5; 32]),
    }));
    Json::Array(list)
}

fn outcome(vector: &Json) -> Result<Json, String> {
    let entry = Entry::decode(&unhex(&vector["entry"])).map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        source.unwrap_or_else(|| error.to_string())
    })?;
    assert_eq!(entry.encode(), unhex(&vector["entry"]));
    if !entry.is_signed() {
        return Err("signature does not hold".to_owned());
    }
    let key = |name: &str| {
        vector[name]
            .as_str()
            .map(|_| Secret::new(unhex_32(&vector[name])))
    };
    let (holder, change) = (key("holder_key"), key("change_key"));
    let parts = match entry.payload() {
        Some(_) => describe_parts(&entry, holder.as_ref(), change.as_ref()),
        None => Some(Vec::new()),
    };
    let parts = parts.ok_or_else(|| "part does not open".to_owned())?;
    Ok(
        json!({ "id": hex(&entry.id().0), "payload_root": hex(&entry.header().payload_root), "parts": parts }),
    )
}

#[test]
fn entries_are_as_the_vectors_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/chain.json");
    for vector in compare(path, chain_vectors()) {
        match outcome(&vector) {
            Ok(found) => {
                assert_eq!(vector["expect"], "ok", "{}", vector["name"]);
                for field in ["id", "payload_root", "parts"] {
                    assert_eq!(found[field], vector[field], "{field} of {}", vector["name"]);
                }
            }
            Err(why) => assert_eq!(vector["expect"], why.as_str(), "{}", vector["name"]),
        }
    }
}

fn epoch_vectors() -> Json {
    let (mut mesh, mut home) = Mesh::new(43);
    mesh.mint(&mut home);
    let space = home.replica.space();
    let ring = &home.replica.ring;
    let head = *home.replica.access().epoch_heads.first().unwrap();
    let known: BTreeMap<EpochId, EpochRecord> = ring
        .epochs()
        .map(|(id, record)| (*id, record.clone()))
        .collect();
    let first = known[&head].parents[0];
    let mut list = Vec::new();
    for (name, id) in [("epoch of genesis", first), ("epoch that follows it", head)] {
        let (holder, member) = (ring.holder(&id).unwrap(), ring.member(&id).unwrap());
        list.push(json!({
            "name": name,
            "expect": "ok",
            "kind": "epoch",
            "space": hex(&space.0),
            "holder_part": hex(holder.to_bytes().as_slice()),
            "member_part": hex(member.to_bytes().as_slice()),
            "body": hex(&known[&id].encode()),
            "id": hex(&id.0),
        }));
    }
    let mut rng = kith_object::key::Rng::from_seed([44; 32]);
    let links = [
        (
            KeyPart::Holder,
            ring.holder(&head).unwrap().key.clone(),
            ring.holder(&first).unwrap().to_bytes(),
        ),
        (
            KeyPart::Member,
            ring.member(&head).unwrap().change.clone(),
            ring.member(&first).unwrap().to_bytes(),
        ),
    ];
    for (part, key, keys) in links {
        let link = Link::seal(&space, (head, &key), (first, &keys), part, &mut rng);
        let body = link.encode();
        let mut altered = body.clone();
        *altered.last_mut().unwrap() ^= 1;
        for (expect, body) in [("ok", body), ("does not open", altered)] {
            list.push(json!({
                "name": format!("link of the {part:?} part").to_lowercase(),
                "expect": expect,
                "kind": "link",
                "space": hex(&space.0),
                "key": hex(key.expose()),
                "body": hex(&body),
                "opens_to": hex(keys.as_slice()),
            }));
        }
    }
    let secret = AgreeSecret::from_bytes([0x55; 32]);
    for (part, keys) in [
        (KeyPart::Holder, ring.holder(&head).unwrap().to_bytes()),
        (KeyPart::Member, ring.member(&head).unwrap().to_bytes()),
    ] {
        let envelope = Envelope::seal(&space, head, secret.public(), part, &keys).unwrap();
        let mut moved = envelope.clone();
        moved.epoch = first;
        let random = envelope.falsely(&space, &keys, &mut rng);
        let cases = [
            ("ok", &envelope),
            ("does not open", &moved),
            ("is not the one that its part makes", &random),
        ];
        for (expect, envelope) in cases {
            list.push(json!({
                "name": format!("envelope of the {part:?} part").to_lowercase(),
                "expect": expect,
                "kind": "envelope",
                "space": hex(&space.0),
                "secret": hex(&[0x55; 32]),
                "recipient": hex(&secret.public().0),
                "body": hex(&envelope.encode()),
                "opens_to": hex(keys.as_slice()),
            }));
        }
    }
    let record = &known[&head];
    let twice = EpochRecord {
        parents: vec![first, first],
        ..record.clone()
    };
    let body = record.encode();
    for (name, body) in [
        ("parents twice", twice.encode()),
        ("cut", body[..body.len() - 1].to_vec()),
        ("byte too many", [body.as_slice(), &[0]].concat()),
    ] {
        list.push(
            json!({ "name": name, "expect": "malformed", "kind": "epoch", "body": hex(&body) }),
        );
    }
    Json::Array(list)
}

#[test]
fn epochs_are_as_the_vectors_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/epoch.json");
    for vector in compare(path, epoch_vectors()) {
        let body = unhex(&vector["body"]);
        let wanted = (vector["expect"] == "ok").then(|| vector["opens_to"].clone());
        let space = || kith_object::id::SpaceId(unhex_32(&vector["space"]));
        match vector["kind"].as_str().unwrap() {
            "epoch" => {
                let record = EpochRecord::decode(&body);
                assert_eq!(
                    record.is_some(),
                    vector["expect"] == "ok",
                    "{}",
                    vector["name"]
                );
                let Some(record) = record else { continue };
                assert_eq!(json!(hex(&record.id(&space()).0)), vector["id"]);
                let part = |name: &str| unhex(&vector[name]).try_into().unwrap();
                assert_eq!(
                    HolderPart::from_bytes(&part("holder_part")).commitment(),
                    record.holder
                );
                assert_eq!(
                    MemberPart::from_bytes(&part("member_part")).commitment(),
                    record.member
                );
            }
            "link" => {
                let opened = Link::decode(&body)
                    .unwrap()
                    .open(&space(), &Secret::new(unhex_32(&vector["key"])));
                assert_eq!(opened.map(|keys| json!(hex(keys.as_slice()))), wanted);
            }
            _ => {
                let secret = AgreeSecret::from_bytes(unhex_32(&vector["secret"]));
                let envelope = Envelope::decode(&body).unwrap();
                let opened = envelope.open(&space(), &secret);
                let made = opened.as_ref().and_then(|keys| {
                    let Envelope {
                        epoch,
                        recipient,
                        part,
                        ..
                    } = envelope;
                    Envelope::seal(&space(), epoch, recipient, part, keys)
                });
                let outcome = match &made {
                    None => "does not open",
                    Some(made) if *made != envelope => "is not the one that its part makes",
                    Some(_) => "ok",
                };
                assert_eq!(vector["expect"], outcome, "{}", vector["name"]);
                if let Some(keys) = opened {
                    assert_eq!(json!(hex(keys.as_slice())), vector["opens_to"]);
                }
            }
        }
    }
}
