use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::key::Rng;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/pack.json");

/// The pack of these blocks, in this order.
fn build(class: Class, space: SpaceId, blocks: &[(Cid, Vec<u8>)]) -> (Vec<u8>, PackId) {
    let header = Header::new(class, space);
    let mut writer = PackWriter::new(header);
    let mut bytes = header.encode().to_vec();
    for (cid, block) in blocks {
        let head = PackWriter::record_head(cid, block.len());
        bytes.extend_from_slice(head.bytes());
        bytes.extend_from_slice(block);
        writer.push(&head, block);
        assert_eq!(writer.len_bytes(), bytes.len() as u64);
    }
    let (footer, id) = writer.footer();
    bytes.extend_from_slice(&footer);
    (bytes, id)
}

fn ours(block: &[u8]) -> (Cid, Vec<u8>) {
    (Cid::of_block(block), block.to_vec())
}

fn foreign(block: &[u8]) -> (Cid, Vec<u8>) {
    let cid = Cid::from_prefix(1, 0x55, 0x12, 32, block).unwrap();
    (cid, block.to_vec())
}

/// A pack from loose parts, for packs that no writer makes.
fn assemble(header: &[u8], records: &[u8], index: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = [header, records, index].concat();
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&((header.len() + records.len()) as u64).to_le_bytes());
    bytes.extend_from_slice(&index_hash(index));
    bytes.extend_from_slice(&TRAILER_MAGIC);
    bytes
}

fn record(cid: &Cid, block: &[u8]) -> Vec<u8> {
    [PackWriter::record_head(cid, block.len()).bytes(), block].concat()
}

fn index_of(entries: &[(&Cid, u32)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(cid, offset)| [cid_key(cid), offset.to_le_bytes().to_vec()].concat())
        .collect()
}

/// Name, what to expect, bytes.
fn cases() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let space = SpaceId([0x11; 32]);
    let one = ours(b"a block");
    let two = ours(b"");
    let kubo = foreign(b"a block of the IPFS world");
    let header = Header::new(Class::Bulk, space).encode();
    let good = build(Class::Bulk, space, &[one.clone(), two.clone()]).0;
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let records = [record(&one.0, &one.1), record(&two.0, &two.1)].concat();
    let second = 64 + record(&one.0, &one.1).len() as u32;
    // The digest of the empty block, af13.., comes before that of the other.
    let (low, high) = if cid_key(&one.0) < cid_key(&two.0) {
        ((&one.0, 64), (&two.0, second))
    } else {
        ((&two.0, second), (&one.0, 64))
    };
    let end = 64 + records.len();
    let tail = good.len() - TRAILER_BYTES;
    vec![
        ("two blocks, one of them empty", "ok", good.clone()),
        (
            "public, CIDs of both kinds",
            "ok",
            build(Class::Public, space, &[kubo.clone(), one.clone()]).0,
        ),
        (
            "entries",
            "ok",
            build(Class::Entries, SpaceId([0; 32]), &[ours(&[7; 300])]).0,
        ),
        (
            "cut in the trailer",
            "bad pack trailer",
            good[..good.len() - 1].to_vec(),
        ),
        ("nothing", "not the length of a pack", Vec::new()),
        (
            "one byte too many",
            "bad pack trailer",
            [&good[..], &[0]].concat(),
        ),
        ("header: other magic", "bad pack header", changed(0, b'K')),
        ("header: version 2", "bad pack header", changed(8, 2)),
        (
            "header: suite 0 in class bulk",
            "bad pack header",
            changed(9, 0),
        ),
        ("header: unknown class", "bad pack header", changed(10, 8)),
        ("header: flags", "bad pack header", changed(11, 1)),
        ("header: reserved byte", "bad pack header", changed(63, 1)),
        (
            "no blocks",
            "bad pack trailer",
            assemble(&header, &[], &[], 0),
        ),
        (
            "count too high",
            "bad pack index",
            assemble(&header, &records, &index_of(&[low, high]), 3),
        ),
        (
            "index: hash differs",
            "bad pack index",
            changed(tail - 1, 0xff),
        ),
        (
            "index: not sorted",
            "bad pack index",
            assemble(&header, &records, &index_of(&[high, low]), 2),
        ),
        (
            "index: a block twice",
            "bad pack index",
            assemble(&header, &records, &index_of(&[low, low]), 2),
        ),
        (
            "index: a record is missing",
            "bad pack index",
            assemble(&header, &records, &index_of(&[(&two.0, second)]), 1),
        ),
        (
            "index: offset into a record",
            "bad pack index",
            assemble(&header, &records, &index_of(&[(low.0, low.1 + 1), high]), 2),
        ),
        (
            "index: bytes left over",
            "bad pack index",
            assemble(
                &header,
                &records,
                &[index_of(&[low, high]), vec![1]].concat(),
                2,
            ),
        ),
        ("index: a CID of ours written out", "bad pack index", {
            let cid = one.0.to_bytes();
            let key = [&[255, cid.len() as u8][..], &cid].concat();
            let record = [&7_u32.to_le_bytes()[..], &key, b"a block"].concat();
            let index = [&key[..], &64_u32.to_le_bytes()].concat();
            assemble(&header, &record, &index, 1)
        }),
        ("index: unknown CID kind", "bad pack index", {
            let mut records = records.clone();
            records[4] = 2;
            let mut index = index_of(&[low, high]);
            index[0] = 2;
            assemble(&header, &records, &index, 2)
        }),
        (
            "record: length differs",
            "bad pack record at 64",
            changed(64, 8),
        ),
        (
            "record: other CID",
            "bad pack record at 64",
            changed(70, good[70] ^ 1),
        ),
        (
            "block: one bit differs",
            "block at 101 of the pack does not match its name",
            changed(101, good[101] ^ 1),
        ),
        ("trailer: index offset differs", "bad pack index", {
            let mut bytes = good.clone();
            bytes[tail + 4..tail + 12].copy_from_slice(&(end as u64 - 1).to_le_bytes());
            bytes
        }),
        (
            "trailer: other magic",
            "bad pack trailer",
            changed(good.len() - 1, b'!'),
        ),
    ]
}

fn vector(name: &str, expect: &str, bytes: &[u8]) -> Value {
    let mut vector = json!({ "name": name, "expect": expect, "pack": HEXLOWER.encode(bytes) });
    if let Ok(pack) = check(bytes) {
        let blocks: Vec<Value> = pack
            .blocks
            .iter()
            .map(|block| {
                json!({
                    "cid": HEXLOWER.encode(&block.cid.to_bytes()),
                    "offset": block.offset,
                    "len": block.len,
                    "block": HEXLOWER.encode(&bytes[block.range()]),
                })
            })
            .collect();
        vector["id"] = json!(HEXLOWER.encode(&pack.id.0));
        vector["suite"] = json!(pack.header.suite);
        vector["class"] = json!(pack.header.class.to_byte());
        vector["space"] = json!(HEXLOWER.encode(&pack.header.space.0));
        vector["blocks"] = json!(blocks);
    }
    vector
}

#[test]
fn packs_are_judged_as_the_vectors_say() {
    for (name, expect, bytes) in cases() {
        let found = match check(&bytes) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expect, "{name}");
    }
    let vectors: Vec<Value> = cases()
        .iter()
        .map(|(name, expect, bytes)| vector(name, expect, bytes))
        .collect();
    let text = serde_json::to_string_pretty(&vectors).unwrap() + "\n";
    if std::env::var_os("KITH_BLESS").is_some() {
        std::fs::write(VECTORS, &text).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(VECTORS).unwrap(),
        text,
        "the bytes of a pack have changed; run with KITH_BLESS=1 only if that is meant"
    );
}

#[test]
fn name_of_a_pack_is_the_hash_of_its_file() {
    let (bytes, id) = build(Class::Names, SpaceId([1; 32]), &[ours(b"x"), ours(b"y")]);
    assert_eq!(id.0, *blake3::hash(&bytes).as_bytes());
    assert_eq!(check(&bytes).unwrap().id, id);
}

#[test]
fn torn_end_is_not_damage() {
    let (bytes, _) = build(
        Class::Bulk,
        SpaceId([1; 32]),
        &[ours(&[1; 500]), ours(&[2; 700]), ours(&[3; 40])],
    );
    let whole = check(&bytes).unwrap().blocks;
    for len in 0..bytes.len() {
        let found = scan(&bytes[..len]);
        let expected: Vec<BlockAt> = whole
            .iter()
            .copied()
            .filter(|block| block.range().end <= len)
            .collect();
        assert_eq!(found.blocks, expected, "cut at {len}");
        assert_eq!(
            found.end,
            expected
                .last()
                .map_or(HEADER_BYTES.min(len), |block| block.range().end)
        );
        assert!(!found.is_damaged());
    }
}

#[test]
fn one_flipped_bit_costs_at_most_one_block() {
    let blocks: Vec<_> = (0..12_u8)
        .map(|n| ours(&vec![n; usize::from(n) * 37]))
        .collect();
    let (bytes, _) = build(Class::Bulk, SpaceId([1; 32]), &blocks);
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = scan(&bytes);
        let sound = |(cid, _): &&(Cid, Vec<u8>)| found.blocks.iter().any(|block| block.cid == *cid);
        assert!(
            blocks.iter().filter(sound).count() >= blocks.len() - 1,
            "bit {bit}"
        );
        assert!(
            check(&bytes).map(|pack| pack.id)
                != Ok(build(Class::Bulk, SpaceId([1; 32]), &blocks).1)
        );
    }
}

#[test]
fn resumed_writer_goes_on_as_if_nothing_had_happened() {
    let blocks = [ours(&[1; 100]), foreign(&[2; 200]), ours(&[3; 300])];
    let (whole, id) = build(Class::Public, SpaceId([9; 32]), &blocks);
    let end = check(&whole).unwrap().blocks[1].range().end;
    let torn = &whole[..end + 20];
    let found = scan(torn);
    assert_eq!(found.end, end);
    let mut writer = PackWriter::resume(Header::decode(torn).unwrap(), torn, &found);
    let head = PackWriter::record_head(&blocks[2].0, blocks[2].1.len());
    writer.push(&head, &blocks[2].1);
    assert_eq!(writer.footer().1, id);
}

#[test]
fn hostile_bytes_do_not_make_a_scan_slow() {
    // Every place looks like a record with a long block; a flipped bit in front sets the scan searching.
    let mut lie = Vec::new();
    while lie.len() < 1 << 20 {
        lie.extend_from_slice(&[0xff, 0xff, 0x07, 0x00, 0x01]);
    }
    let mut bytes = Header::new(Class::Public, SpaceId([0; 32]))
        .encode()
        .to_vec();
    bytes.extend_from_slice(&lie);
    assert!(scan(&bytes).blocks.is_empty());
}

fn any_blocks() -> impl Strategy<Value = Vec<(Cid, Vec<u8>)>> {
    let block = (
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..200),
    );
    proptest::collection::vec(block, 1..12).prop_map(|blocks| {
        let mut seen = std::collections::BTreeSet::new();
        let named = blocks
            .into_iter()
            .map(|(own, block)| if own { ours(&block) } else { foreign(&block) });
        named.filter(|(cid, _)| seen.insert(*cid)).collect()
    })
}

proptest! {
    #[test]
    fn what_was_written_is_found(blocks in any_blocks(), class in 0..6_usize) {
        let (bytes, id) = build(Class::ALL[class], SpaceId([5; 32]), &blocks);
        let pack = check(&bytes).unwrap();
        prop_assert_eq!(pack.id, id);
        let found: Vec<(Cid, Vec<u8>)> = pack.blocks.iter().map(|block| (block.cid, bytes[block.range()].to_vec())).collect();
        prop_assert_eq!(&found, &blocks);
        let scanned = scan(&bytes);
        prop_assert_eq!(scanned.blocks, pack.blocks);
    }

    #[test]
    fn changed_pack_is_refused_or_another_one(blocks in any_blocks(), at in any::<prop::sample::Index>(), byte in 1..=255_u8) {
        let (mut bytes, id) = build(Class::Bulk, SpaceId([5; 32]), &blocks);
        let at = at.index(bytes.len());
        bytes[at] ^= byte;
        // Only suite, class and space are free to differ; they are part of the name.
        if let Ok(pack) = check(&bytes) {
            prop_assert!(pack.id != id && at < HEADER_BYTES);
        }
        let _ = scan(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(seed in any::<[u8; 32]>(), len in 0..4000_usize) {
        let mut bytes = vec![0; len];
        Rng::from_seed(seed).fill(&mut bytes);
        prop_assert!(check(&bytes).is_err());
        let _ = scan(&bytes);
        let _ = Header::decode(&bytes);
    }
}
