use data_encoding::HEXLOWER;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;

/// The schema as boxo publishes it, read and written by an implementation that is not ours.
mod schema {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Message {
        #[prost(message, optional, tag = "1")]
        pub(super) wantlist: Option<Wantlist>,
        #[prost(bytes = "vec", repeated, tag = "2")]
        pub(super) blocks: Vec<Vec<u8>>,
        #[prost(message, repeated, tag = "3")]
        pub(super) payload: Vec<Block>,
        #[prost(message, repeated, tag = "4")]
        pub(super) presences: Vec<Presence>,
        #[prost(int32, tag = "5")]
        pub(super) pending_bytes: i32,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Wantlist {
        #[prost(message, repeated, tag = "1")]
        pub(super) entries: Vec<Entry>,
        #[prost(bool, tag = "2")]
        pub(super) full: bool,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) block: Vec<u8>,
        #[prost(int32, tag = "2")]
        pub(super) priority: i32,
        #[prost(bool, tag = "3")]
        pub(super) cancel: bool,
        #[prost(int32, tag = "4")]
        pub(super) want_type: i32,
        #[prost(bool, tag = "5")]
        pub(super) send_dont_have: bool,
        #[prost(bool, tag = "15")]
        pub(super) once: bool,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Block {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) prefix: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) data: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Presence {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) cid: Vec<u8>,
        #[prost(int32, tag = "2")]
        pub(super) kind: i32,
    }
}

fn to_schema(message: &Message) -> schema::Message {
    let entry = |entry: &Entry| schema::Entry {
        block: entry.cid.to_bytes(),
        priority: entry.priority,
        cancel: entry.kind == EntryKind::Cancel,
        want_type: i32::from(entry.kind == EntryKind::Have),
        send_dont_have: entry.send_dont_have,
        once: entry.once,
    };
    let prefix = |prefix: &Prefix| {
        let mut bytes = BytesMut::new();
        for number in [prefix.version, prefix.codec, prefix.hash, prefix.hash_len] {
            put_varint(&mut bytes, number);
        }
        bytes.to_vec()
    };
    let wantlist = schema::Wantlist {
        entries: message.entries.iter().map(entry).collect(),
        full: message.full,
    };
    schema::Message {
        wantlist: (wantlist != schema::Wantlist::default()).then_some(wantlist),
        blocks: Vec::new(),
        payload: message
            .blocks
            .iter()
            .map(|block| schema::Block {
                prefix: prefix(&block.prefix),
                data: block.data.to_vec(),
            })
            .collect(),
        presences: message
            .presences
            .iter()
            .map(|presence| schema::Presence {
                cid: presence.cid.to_bytes(),
                kind: i32::from(!presence.have),
            })
            .collect(),
        pending_bytes: i32::try_from(message.pending_bytes).unwrap(),
    }
}

fn any_cid() -> impl Strategy<Value = Cid> {
    let sha256 =
        |digest: [u8; 32]| Cid::from_bytes(&[&[1, 0x70, 0x12, 32][..], &digest].concat()).unwrap();
    let version_0 =
        |digest: [u8; 32]| Cid::from_bytes(&[&[0x12, 32][..], &digest].concat()).unwrap();
    prop_oneof![
        any::<[u8; 32]>().prop_map(Cid::from_digest),
        any::<[u8; 32]>().prop_map(sha256),
        any::<[u8; 32]>().prop_map(version_0),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![
        Just(EntryKind::Block),
        Just(EntryKind::Have),
        Just(EntryKind::Cancel)
    ];
    let entry = (any_cid(), any::<i32>(), kind, any::<bool>(), any::<bool>()).prop_map(
        |(cid, priority, kind, send_dont_have, once)| Entry {
            cid,
            priority,
            kind,
            send_dont_have,
            once,
        },
    );
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        (4_090..4_100_usize).prop_map(|len| vec![7; len])
    ];
    let block = (any_cid(), data).prop_map(|(cid, data)| Block {
        prefix: Prefix::of(&cid),
        data: Bytes::from(data),
    });
    let presence = (any_cid(), any::<bool>()).prop_map(|(cid, have)| Presence { cid, have });
    (
        any::<bool>(),
        proptest::collection::vec(entry, 0..6),
        proptest::collection::vec(block, 0..6),
        proptest::collection::vec(presence, 0..6),
        0..=i32::MAX.cast_unsigned(),
    )
        .prop_map(
            |(full, entries, blocks, presences, pending_bytes)| Message {
                full,
                entries,
                blocks,
                presences,
                pending_bytes,
            },
        )
}

proptest! {
    #[test]
    fn message_survives_the_way(message in any_message()) {
        let parts = message.encode();
        prop_assert_eq!(parts.len_bytes(), parts.iter().map(Bytes::len).sum::<usize>());
        prop_assert!(parts.iter().all(|part| !part.is_empty()));
        let bytes = parts.into_bytes();
        prop_assert_eq!(&Message::decode(&bytes).unwrap(), &message);
        // Byte for byte what an ordinary protobuf library writes.
        prop_assert_eq!(HEXLOWER.encode(&bytes), HEXLOWER.encode(&to_schema(&message).encode_to_vec()));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let ours = Message::decode(&bytes);
        if let Ok(message) = ours {
            let again = message.encode().into_bytes();
            prop_assert_eq!(Message::decode(&again).unwrap(), message);
        }
    }

    #[test]
    fn altered_messages_never_panic(
        message in any_message(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = message.encode().into_bytes().to_vec();
        if bytes.is_empty() {
            return Ok(());
        }
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        if let Ok(message) = Message::decode(&Bytes::from(bytes)) {
            let again = message.encode().into_bytes();
            prop_assert_eq!(Message::decode(&again).unwrap(), message);
        }
    }
}

#[test]
fn blocks_are_neither_copied_in_nor_out() {
    let data = Bytes::from(vec![5; 100_000]);
    let cid = Cid::of_block(&data);
    let block = Block {
        prefix: Prefix::of(&cid),
        data: data.clone(),
    };
    let parts = Message {
        blocks: vec![block.clone(), block],
        ..Message::default()
    }
    .encode();
    assert_eq!(
        parts
            .iter()
            .filter(|part| part.as_ptr() == data.as_ptr())
            .count(),
        2
    );
    let bytes = parts.into_bytes();
    let message = Message::decode(&bytes).unwrap();
    let whole = bytes.as_ptr_range();
    for block in &message.blocks {
        assert!(whole.contains(&block.data.as_ptr()));
        assert_eq!(block.prefix.cid(&block.data), Some(cid));
    }
}

#[test]
fn limits_are_kept() {
    let block = |len: usize| {
        let block = Block {
            prefix: PREFIX_V0,
            data: Bytes::from(vec![0; len]),
        };
        Message {
            blocks: vec![block],
            ..Message::default()
        }
        .encode()
        .into_bytes()
    };
    assert!(Message::decode(&block(BLOCK_BYTES_MAX)).is_ok());
    assert_eq!(
        Message::decode(&block(BLOCK_BYTES_MAX + 1)),
        Err(MessageError::TooLong)
    );
    let long = Bytes::from(vec![0x28; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(Message::decode(&long), Err(MessageError::TooLong));
    // The shortest of each kind, again and again: identity CIDs of nothing, empty blocks.
    let shortest: [&[u8]; 3] = [
        &[0x0a, 0x08, 0x0a, 0x06, 0x0a, 0x04, 0x01, 0x55, 0x00, 0x00],
        &[0x22, 0x06, 0x0a, 0x04, 0x01, 0x55, 0x00, 0x00],
        &[0x12, 0x00],
    ];
    for item in shortest {
        assert!(Message::decode(&Bytes::from(item.repeat(ITEMS_MAX))).is_ok());
        assert_eq!(
            Message::decode(&Bytes::from(item.repeat(ITEMS_MAX + 1))),
            Err(MessageError::TooMany)
        );
    }
}

// Vectors.

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/bitswap.json");

fn words(error: MessageError) -> &'static str {
    match error {
        MessageError::TooLong => "too long",
        MessageError::TooMany => "too many items",
        MessageError::Malformed => "malformed",
    }
}

/// What a message says, in words that any language reads.
fn describe(message: &Message) -> Value {
    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    let entries = message.entries.iter().map(|entry| {
        json!({
            "cid": hex(&entry.cid.to_bytes()),
            "kind": match entry.kind {
                EntryKind::Block => "block",
                EntryKind::Have => "have",
                EntryKind::Cancel => "cancel",
            },
            "once": entry.once,
            "priority": entry.priority,
            "send_dont_have": entry.send_dont_have,
        })
    });
    let blocks = message.blocks.iter().map(|block| {
        let Prefix {
            version,
            codec,
            hash,
            hash_len,
        } = block.prefix;
        let cid = block
            .prefix
            .cid(&block.data)
            .map(|cid| hex(&cid.to_bytes()));
        json!({"cid": cid, "data": hex(&block.data), "prefix": [version, codec, hash, hash_len]})
    });
    let presences = message
        .presences
        .iter()
        .map(|presence| json!({"cid": hex(&presence.cid.to_bytes()), "have": presence.have}));
    json!({
        "blocks": blocks.collect::<Value>(),
        "entries": entries.collect::<Value>(),
        "full": message.full,
        "pending_bytes": message.pending_bytes,
        "presences": presences.collect::<Value>(),
    })
}

fn ok(name: &str, bytes: &[u8]) -> Value {
    let message = Message::decode(&Bytes::copy_from_slice(bytes)).expect(name);
    let canonical = message.encode().into_bytes() == bytes;
    json!({"canonical": canonical, "expect": "ok", "message": HEXLOWER.encode(bytes), "name": name, "says": describe(&message)})
}

fn bad(name: &str, bytes: &[u8]) -> Value {
    let error = Message::decode(&Bytes::copy_from_slice(bytes)).expect_err(name);
    json!({"expect": words(error), "message": HEXLOWER.encode(bytes), "name": name})
}

fn vectors() -> Vec<Value> {
    let ours = Cid::of_block(b"a block of ours");
    let other = Cid::of_block(b"another");
    let version_0: Cid = "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"
        .parse()
        .unwrap();
    let entry = |cid, priority, kind, send_dont_have, once| Entry {
        cid,
        priority,
        kind,
        send_dont_have,
        once,
    };
    let list = |full, entries: Vec<Entry>| {
        Message {
            full,
            entries,
            ..Message::default()
        }
        .encode()
        .into_bytes()
    };
    let block = |cid: &Cid, data: &'static [u8]| Block {
        prefix: Prefix::of(cid),
        data: Bytes::from_static(data),
    };
    let blocks = |blocks| {
        Message {
            blocks,
            ..Message::default()
        }
        .encode()
        .into_bytes()
    };
    let presences = |presences| {
        Message {
            presences,
            ..Message::default()
        }
        .encode()
        .into_bytes()
    };
    let want = list(false, vec![entry(ours, 1, EntryKind::Block, true, true)]);
    let cid = ours.to_bytes();

    let everything = Message {
        full: true,
        entries: vec![
            entry(ours, i32::MAX, EntryKind::Have, true, false),
            entry(other, 0, EntryKind::Cancel, false, false),
        ],
        blocks: vec![block(&ours, b"a block of ours"), block(&other, b"another")],
        presences: vec![Presence {
            cid: version_0,
            have: false,
        }],
        pending_bytes: 300,
    };
    let reordered = {
        // Priority before the CID, an unknown field of each wire type, the wantlist in two pieces.
        let mut entry = vec![0x10, 0x05, 0x0a, 0x24];
        entry.extend(&cid);
        entry.extend([
            0x38, 0x96, 0x01, 0x3a, 0x02, 0xff, 0xff, 0x41, 1, 2, 3, 4, 5, 6, 7, 8, 0x4d, 1, 2, 3,
            4,
        ]);
        let mut list = vec![0x0a, u8::try_from(entry.len()).unwrap()];
        list.extend(entry);
        let mut message = vec![0x28, 0x07, 0x0a, u8::try_from(list.len()).unwrap()];
        message.extend(list);
        message.extend([0x0a, 0x02, 0x10, 0x01]);
        message
    };
    let mut long_cid = vec![
        0x0a, 0x8a, 0x01, 0x0a, 0x87, 0x01, 0x0a, 0x84, 0x01, 0x01, 0x55, 0x00, 0x80, 0x01,
    ];
    long_cid.extend([9; 127]);
    let prefix = |prefix: &[u8]| {
        let mut body = vec![0x0a, u8::try_from(prefix.len()).unwrap()];
        body.extend(prefix);
        body.extend([0x12, 0x01, 0x61]);
        let mut message = vec![0x1a, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        message
    };
    vec![
        ok("nothing", &[]),
        ok("want a block", &want),
        ok(
            "ask whether, with a negative priority",
            &list(false, vec![entry(ours, -2, EntryKind::Have, true, false)]),
        ),
        ok("want nothing any more", &list(true, vec![])),
        ok(
            "cancel",
            &list(
                false,
                vec![entry(version_0, 0, EntryKind::Cancel, false, false)],
            ),
        ),
        ok(
            "a block of ours",
            &blocks(vec![block(&ours, b"a block of ours")]),
        ),
        ok(
            "a block of version 0, with its prefix",
            &blocks(vec![block(&version_0, b"hello world")]),
        ),
        ok("an empty block", &blocks(vec![block(&ours, b"")])),
        ok(
            "a block of protocol 1.0.0",
            &[&[0x12, 0x05][..], b"hello"].concat(),
        ),
        ok(
            "a block whose hash we do not compute",
            &prefix(&[1, 0x55, 0x13, 64]),
        ),
        ok(
            "have and have not",
            &presences(vec![
                Presence {
                    cid: ours,
                    have: true,
                },
                Presence {
                    cid: other,
                    have: false,
                },
            ]),
        ),
        ok("everything at once", &everything.encode().into_bytes()),
        ok(
            "other order, unknown fields, wantlist in pieces",
            &reordered,
        ),
        ok(
            "entry of default values",
            &list(false, vec![entry(ours, 0, EntryKind::Block, false, false)]),
        ),
        ok("a CID too long to be one is passed over", &long_cid),
        bad("cut in a length", &want[..1]),
        bad("cut in a CID", &want[..want.len() - 8]),
        bad("entry without a CID", &[0x0a, 0x02, 0x0a, 0x00]),
        bad("presence without a CID", &[0x22, 0x02, 0x10, 0x01]),
        bad("field number zero", &[0x00, 0x01]),
        bad(
            "field number above 29 bits",
            &[0x80, 0x80, 0x80, 0x80, 0x10, 0x01],
        ),
        bad("a group", &[0x0b, 0x0c]),
        bad(
            "varint of eleven bytes",
            &[
                0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
        ),
        bad(
            "varint above 64 bits",
            &[
                0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
        ),
        bad("length beyond the end", &[0x12, 0x02, 0x61]),
        bad(
            "length beyond all memory",
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
        ),
        bad(
            "inner length beyond the outer",
            &[0x1a, 0x03, 0x12, 0x02, 0x61, 0x62],
        ),
        bad(
            "want of an unknown type",
            &[
                &[0x0a, 0x2a, 0x0a, 0x28, 0x0a, 0x24][..],
                &cid,
                &[0x20, 0x02],
            ]
            .concat(),
        ),
        bad(
            "presence of an unknown type",
            &[&[0x22, 0x28, 0x0a, 0x24][..], &cid, &[0x10, 0x02]].concat(),
        ),
        bad("block without a prefix", &[0x1a, 0x03, 0x12, 0x01, 0x61]),
        bad("prefix of three numbers", &prefix(&[1, 0x55, 0x1e])),
        bad("prefix of five numbers", &prefix(&[1, 0x55, 0x1e, 32, 0])),
        bad(
            "prefix not in its shortest form",
            &prefix(&[0x81, 0x00, 0x55, 0x1e, 32]),
        ),
    ]
}

#[test]
fn vectors_hold() {
    let made = vectors();
    if std::env::var_os("KITH_BLESS").is_some() {
        let lines: Vec<String> = made.iter().map(Value::to_string).collect();
        std::fs::write(VECTORS, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(VECTORS).unwrap()).unwrap();
    for vector in &kept {
        let name = vector["name"].as_str().unwrap();
        let bytes = Bytes::from(
            HEXLOWER
                .decode(vector["message"].as_str().unwrap().as_bytes())
                .unwrap(),
        );
        match Message::decode(&bytes) {
            Ok(message) => {
                assert_eq!(vector["expect"], "ok", "{name}");
                assert_eq!(describe(&message), vector["says"], "{name}");
                assert_eq!(
                    vector["canonical"],
                    message.encode().into_bytes() == bytes,
                    "{name}"
                );
            }
            Err(error) => assert_eq!(vector["expect"], words(error), "{name}"),
        }
    }
    assert_eq!(
        made, kept,
        "the vectors are what today's code makes; bless them if they should change"
    );
    let canonical = kept
        .iter()
        .filter(|vector| vector["canonical"] == true)
        .count();
    assert!(
        canonical >= 10,
        "most good vectors are what we write ourselves"
    );
}
