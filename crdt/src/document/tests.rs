//! What our changes look like to Automerge, and what becomes of those that are not ours.

use automerge::legacy::{Key, ObjectId, Op, OpId, OpType, SortedVec};
use automerge::{
    ActorId, Automerge, Change as Foreign, ChangeHash, ExpandedChange, ROOT, ReadDoc, ScalarValue,
    Value,
};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

use super::*;
use crate::chain::Nonce;

fn place(byte: u8, entry_seq: u64) -> Place {
    Place {
        nonce: Nonce([byte; 16]),
        entry_seq,
        seq: 1,
        start_op: 1,
        dependencies: Vec::new(),
    }
}

fn bytes_of(value: &Value<'_>) -> Vec<u8> {
    match value {
        Value::Scalar(scalar) => match scalar.as_ref() {
            ScalarValue::Bytes(bytes) => bytes.clone(),
            other => panic!("not bytes: {other:?}"),
        },
        Value::Object(_) => panic!("an object"),
    }
}

/// Every value of every key of a document, as Automerge sees it.
fn shown(document: &Automerge) -> BTreeMap<String, Vec<Vec<u8>>> {
    let values = |key: &str| {
        let all = document.get_all(ROOT, key).unwrap();
        all.iter().map(|(value, _)| bytes_of(value)).collect()
    };
    document
        .keys(ROOT)
        .map(|key| (key.clone(), values(&key)))
        .collect()
}

#[test]
fn automerge_shows_exactly_the_records_that_we_read() {
    // Two chains side by side, then one that builds upon both.
    let one = place(1, 0);
    let first = author(&one, &[b"a".to_vec(), b"b".to_vec()]).unwrap();
    let read_one = read(&one, &first).unwrap();
    let two = place(2, 0);
    let second = author(&two, &[vec![7; 300]]).unwrap();
    let read_two = read(&two, &second).unwrap();
    let mut dependencies = vec![read_one.hash, read_two.hash];
    dependencies.sort_unstable();
    let three = Place {
        nonce: Nonce([1; 16]),
        entry_seq: 5,
        seq: 2,
        start_op: 3,
        dependencies,
    };
    let records: Vec<Vec<u8>> = (0..500u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let third = author(&three, &records).unwrap();
    let read_three = read(&three, &third).unwrap();
    assert_eq!((read_three.op_max, &read_three.records), (502, &records));

    let mut document = Automerge::new();
    for bytes in [&second, &third, &first] {
        document
            .apply_changes([Foreign::from_bytes(bytes.clone()).unwrap()])
            .unwrap();
    }
    let mut wanted = BTreeMap::new();
    for (place, change) in [(&one, read_one), (&two, read_two), (&three, read_three)] {
        for (index, record) in change.records.into_iter().enumerate() {
            wanted.insert(place.key(index), vec![record]);
        }
    }
    assert_eq!(shown(&document), wanted);
    // And it saves and loads as any other document.
    let again = Automerge::load(&document.save()).unwrap();
    assert_eq!(shown(&again), wanted);
}

#[test]
fn limits_hold_when_writing_and_when_reading() {
    let here = place(1, 0);
    assert_eq!(author(&here, &[]), None);
    assert_eq!(author(&here, &[Vec::new()]), None);
    assert_eq!(author(&here, &[vec![0; RECORD_BYTES_MAX + 1]]), None);
    assert!(author(&here, &[vec![0; RECORD_BYTES_MAX]]).is_some());
    assert_eq!(author(&here, &vec![vec![0]; RECORDS_MAX + 1]), None);
    let full = author(&here, &vec![vec![0]; RECORDS_MAX]).unwrap();
    assert_eq!(read(&here, &full).unwrap().records.len(), RECORDS_MAX);
    let late = Place {
        start_op: OPS_MAX,
        ..place(1, 0)
    };
    assert!(author(&late, &[vec![1]]).is_some());
    assert_eq!(author(&late, &[vec![1], vec![2]]), None);
}

#[test]
fn estimate_of_the_length_is_never_too_small() {
    for (count, len) in [(1, 1), (3, 60_000), (2_000, 100), (10_000, 1), (40, 16_000)] {
        let records = vec![vec![9; len]; count];
        let here = Place {
            seq: u64::from(u32::MAX),
            start_op: 1 << 30,
            dependencies: (0..65).map(|n| [n; 32]).collect(),
            ..place(3, u64::MAX)
        };
        let bytes = author(&here, &records).unwrap();
        assert!(bytes.len() <= change_len(count, count * len, 65));
    }
}

/// A change with these operations in the place where an honest one would stand.
fn hostile(place: &Place, operations: Vec<Op>, start_op: u64) -> Vec<u8> {
    Foreign::from(ExpandedChange {
        operations,
        actor_id: ActorId::from(place.nonce.0.as_slice()),
        hash: None,
        seq: place.seq,
        start_op: start_op.try_into().unwrap(),
        time: 0,
        message: None,
        deps: place
            .dependencies
            .iter()
            .map(|hash| ChangeHash(*hash))
            .collect(),
        extra_bytes: Vec::new(),
        author: None,
    })
    .raw_bytes()
    .to_vec()
}

fn operation(action: OpType, key: String, pred: Vec<OpId>) -> Op {
    Op {
        action,
        obj: ObjectId::Root,
        key: Key::Map(key.into()),
        pred: SortedVec::from(pred),
        insert: false,
    }
}

fn put(value: &[u8]) -> OpType {
    OpType::Put(ScalarValue::Bytes(value.to_vec()))
}

/// Changes that must not pass, and what each is about.
fn hostile_changes() -> Vec<(&'static str, Place, Vec<u8>)> {
    let victim = place(1, 0);
    let theirs = author(&victim, &[b"of the victim".to_vec()]).unwrap();
    let hash = read(&victim, &theirs).unwrap().hash;
    let here = Place {
        start_op: 2,
        dependencies: vec![hash],
        ..place(2, 0)
    };
    let of_victim = OpId::new(1, &ActorId::from([1; 16].as_slice()));
    let good = author(&here, &[b"one".to_vec(), b"two".to_vec()]).unwrap();
    let mut list = Vec::new();
    let mut add = |name, bytes| list.push((name, here.clone(), bytes));
    let deletion = operation(OpType::Delete, victim.key(0), vec![of_victim.clone()]);
    add(
        "deletes a record of another",
        hostile(&here, vec![deletion], 2),
    );
    let overwriting = operation(put(b"mine"), victim.key(0), vec![of_victim.clone()]);
    add(
        "overwrites a record of another",
        hostile(&here, vec![overwriting], 2),
    );
    let own = || vec![operation(put(b"late"), here.key(0), vec![])];
    add(
        "counts operations from near 2^32",
        hostile(&here, own(), u64::from(u32::MAX)),
    );
    add("skips operations", hostile(&here, own(), 3));
    let beside = operation(put(b"mine"), victim.key(0), vec![]);
    add(
        "writes beside a record of another",
        hostile(&here, vec![beside], 2),
    );
    let hiding = operation(put(b"own"), here.key(0), vec![of_victim]);
    add(
        "names a predecessor under a key of its own",
        hostile(&here, vec![hiding], 2),
    );
    let text = operation(
        OpType::Put(ScalarValue::Str("text".into())),
        here.key(0),
        vec![],
    );
    add("puts text", hostile(&here, vec![text], 2));
    let nested = operation(OpType::Make(automerge::ObjType::Map), here.key(0), vec![]);
    add("makes an object", hostile(&here, vec![nested], 2));
    add("puts nothing", hostile(&here, vec![], 2));
    let swapped = vec![
        operation(put(b"two"), here.key(1), vec![]),
        operation(put(b"one"), here.key(0), vec![]),
    ];
    add("orders its keys otherwise", hostile(&here, swapped, 2));
    let other_seq = Place {
        entry_seq: 1,
        ..here.clone()
    };
    add(
        "uses the keys of another entry",
        author(&other_seq, &[b"one".to_vec()]).unwrap(),
    );
    let alone = Place {
        dependencies: Vec::new(),
        ..here.clone()
    };
    add(
        "leaves a dependency out",
        author(&alone, &[b"one".to_vec()]).unwrap(),
    );
    let again = Place {
        seq: 2,
        ..here.clone()
    };
    add(
        "counts its chain otherwise",
        author(&again, &[b"one".to_vec()]).unwrap(),
    );
    let mut squeezed = Foreign::from_bytes(author(&here, &[vec![0; 900]]).unwrap()).unwrap();
    add("is compressed", squeezed.bytes().into_owned());
    let mut longer = good.clone();
    longer.push(0);
    add("has a byte too many", longer);
    let mut checksum = good.clone();
    checksum[4] ^= 1;
    add("has a wrong checksum", checksum);
    add("is a whole document", {
        let mut document = Automerge::new();
        document
            .apply_changes([Foreign::from_bytes(theirs).unwrap()])
            .unwrap();
        document.save()
    });
    add("repeats one value 2^40 times", bomb(&here));
    list
}

/// Some bytes of run-length encoding that claim 2^40 operations: reading them one by one would take hours.
fn bomb(place: &Place) -> Vec<u8> {
    let mut run = Vec::new();
    let mut count: u64 = 1 << 40;
    while count >= 64 {
        run.push(u8::try_from(count & 0x7f).unwrap() | 0x80);
        count >>= 7;
    }
    run.push(u8::try_from(count).unwrap());
    let repeated = |value: u8| [run.as_slice(), &[value]].concat();
    // Insert, action, value type and length, predecessors: the last three of them repeated.
    let columns: [(u8, Vec<u8>); 4] = [
        (0x34, run.clone()),
        (0x42, repeated(1)),
        (0x56, repeated(0x07)),
        (0x70, repeated(0)),
    ];
    let mut data = vec![1];
    data.extend_from_slice(&place.dependencies[0]);
    data.push(16);
    data.extend_from_slice(&place.nonce.0);
    data.extend_from_slice(&[1, 2, 0, 0, 0, 4]);
    for (column, bytes) in &columns {
        data.extend_from_slice(&[*column, u8::try_from(bytes.len()).unwrap()]);
    }
    for (_, bytes) in &columns {
        data.extend_from_slice(bytes);
    }
    let mut out = vec![0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, 1];
    out.push(u8::try_from(data.len() & 0x7f).unwrap() | 0x80);
    out.push(u8::try_from(data.len() >> 7).unwrap());
    out.extend_from_slice(&data);
    out
}

#[test]
fn hostile_changes_do_not_pass() {
    for (name, place, bytes) in hostile_changes() {
        assert_eq!(read(&place, &bytes), Err(Misfit), "a change that {name}");
    }
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn vectors() -> Json {
    let describe = |name: &str, expect: &str, place: &Place, bytes: &[u8], records: &[Vec<u8>]| {
        json!({
            "name": name,
            "expect": expect,
            "nonce": hex(&place.nonce.0),
            "entry_seq": place.entry_seq,
            "seq": place.seq,
            "start_op": place.start_op,
            "dependencies": place.dependencies.iter().map(|hash| hex(hash)).collect::<Vec<_>>(),
            "change": hex(bytes),
            "records": records.iter().map(|record| hex(record)).collect::<Vec<_>>(),
        })
    };
    let mut list = Vec::new();
    let here = Place {
        nonce: Nonce([0xab; 16]),
        entry_seq: 300,
        seq: 129,
        start_op: 70_000,
        dependencies: vec![[3; 32], [4; 32]],
    };
    let lengths = [
        vec![5usize],
        vec![5, 5, 5],
        vec![1, 2, 2, 2, 3, 300],
        vec![4, 4, 9],
    ];
    for lens in lengths {
        let records: Vec<Vec<u8>> = (1u8..).zip(&lens).map(|(n, len)| vec![n; *len]).collect();
        let bytes = author(&here, &records).unwrap();
        let name = format!("adds records of {lens:?} bytes");
        list.push(describe(&name, "ok", &here, &bytes, &records));
    }
    for (name, place, bytes) in hostile_changes() {
        list.push(describe(name, "misfit", &place, &bytes, &[]));
    }
    Json::Array(list)
}

#[test]
fn vectors_are_what_todays_code_makes_and_read_as_they_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/hostile.json");
    let fresh = vectors();
    if std::env::var_os("KITH_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&fresh).unwrap() + "\n";
        std::fs::write(path, text).unwrap();
    }
    let stored: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(stored == fresh, "bytes of changes differ from the vectors");
    for vector in stored.as_array().unwrap() {
        let unhex = |json: &Json| HEXLOWER.decode(json.as_str().unwrap().as_bytes()).unwrap();
        let list = |name: &str| vector[name].as_array().unwrap().iter().map(unhex);
        let place = Place {
            nonce: Nonce(unhex(&vector["nonce"]).try_into().unwrap()),
            entry_seq: vector["entry_seq"].as_u64().unwrap(),
            seq: vector["seq"].as_u64().unwrap(),
            start_op: vector["start_op"].as_u64().unwrap(),
            dependencies: list("dependencies")
                .map(|hash| hash.try_into().unwrap())
                .collect(),
        };
        let outcome = read(&place, &unhex(&vector["change"]));
        match vector["expect"].as_str().unwrap() {
            "ok" => assert!(outcome.unwrap().records.into_iter().eq(list("records"))),
            _ => assert_eq!(outcome, Err(Misfit), "{}", vector["name"]),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        lens in proptest::collection::vec(1usize..40, 1..60),
        seq in 1u64..1 << 40,
        start_op in 1u64..1 << 30,
        deps in 0u8..4,
    ) {
        let records: Vec<Vec<u8>> = lens.iter().enumerate().map(|(n, len)| vec![n as u8; *len]).collect();
        let here = Place {
            seq,
            start_op,
            dependencies: (0..deps).map(|n| [n; 32]).collect(),
            ..place(9, seq)
        };
        let bytes = author(&here, &records).unwrap();
        prop_assert_eq!(read(&here, &bytes).unwrap().records, records);
        // Automerge agrees about the name.
        prop_assert_eq!(Foreign::from_bytes(bytes.clone()).unwrap().hash().0, read(&here, &bytes).unwrap().hash);
    }

    #[test]
    fn mutated_changes_never_panic_and_never_pass(
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
        count in 1usize..20,
    ) {
        let here = place(9, 4);
        let records: Vec<Vec<u8>> = (0..count).map(|n| vec![n as u8; 1 + n % 3]).collect();
        let good = author(&here, &records).unwrap();
        let mut bad = good.clone();
        let at = at.index(bad.len());
        bad[at] = to;
        // A changed value byte would need a changed checksum with it.
        prop_assert_eq!(read(&here, &bad).is_ok(), bad == good);
        let _ = read(&here, &bad[..at]);
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(read(&place(1, 0), &bytes), Err(Misfit));
        let dressed = [&[0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, 1, bytes.len() as u8 & 0x7f], bytes.as_slice()].concat();
        let _ = read(&place(1, 0), &dressed);
    }
}
