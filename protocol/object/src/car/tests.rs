use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::seal::vectors::{bytes, hex, load};

fn archive(roots: &[Cid], blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut out = header(roots);
    for (cid, block) in blocks {
        out.extend(section_head(cid, block.len()));
        out.extend(block);
    }
    out
}

fn block(seed: u8, len: usize) -> (Cid, Vec<u8>) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    (Cid::of_block(&bytes), bytes)
}

/// A small archive of five blocks.
fn small() -> (Vec<(Cid, Vec<u8>)>, Vec<u8>) {
    let blocks: Vec<_> = (0..5).map(|n| block(n, 40 + 37 * usize::from(n))).collect();
    let bytes = archive(&[blocks[0].0], &blocks);
    (blocks, bytes)
}

/// Gives its bytes in pieces of odd sizes.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let len = self.0.len().min(buffer.len()).min(self.1);
        let (now, rest) = self.0.split_at(len);
        buffer[..len].copy_from_slice(now);
        self.0 = rest;
        Ok(len)
    }
}

fn all<R: Read>(mut reader: Reader<R>) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(item) = reader.next().unwrap() {
        items.push(item);
    }
    items
}

fn read(bytes: &[u8]) -> Option<Vec<Item>> {
    Reader::open_damaged(bytes).ok().map(all)
}

fn blocks_of(items: &[Item]) -> Vec<Cid> {
    items
        .iter()
        .filter_map(|item| match item {
            Item::Block(block) => Some(block.cid),
            Item::Damaged(_) => None,
        })
        .collect()
}

/// Whatever the bytes: what comes out matches its CID and stands where it says, in order, and together with the damage covers the file.
fn check(bytes: &[u8]) -> Vec<Item> {
    let Some(items) = read(bytes) else {
        return Vec::new();
    };
    let mut at = 0;
    for item in &items {
        match item {
            Item::Block(block) => {
                assert!(verifies(&block.cid, &block.bytes));
                let offset = usize::try_from(block.offset).unwrap();
                assert_eq!(bytes[offset..offset + block.bytes.len()], block.bytes[..]);
                assert!(block.offset >= at);
                at = block.offset + block.bytes.len() as u64;
            }
            Item::Damaged(range) => {
                assert!(range.start >= at && range.end > range.start);
                at = range.end.min(bytes.len() as u64);
            }
        }
    }
    items
}

#[test]
fn archive_is_read_as_it_was_written_however_it_comes() {
    let (blocks, bytes) = small();
    let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
    let reader = Reader::open(&bytes[..]).unwrap();
    assert_eq!(
        (reader.version(), reader.roots()),
        (1, [blocks[0].0].as_slice())
    );
    assert_eq!(blocks_of(&all(reader)), cids);
    let dribbled = all(Reader::open(Dribble(&bytes, 0)).unwrap());
    assert_eq!(blocks_of(&dribbled), cids);
    check(&bytes);
}

#[test]
fn every_altered_byte_costs_at_most_the_block_it_is_in_and_is_told() {
    let (blocks, good) = small();
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let items = check(&bytes);
            let kept = blocks_of(&items);
            assert!(
                kept.len() >= blocks.len() - 1,
                "byte {at}: {} left",
                kept.len()
            );
            let told = items.iter().any(|item| matches!(item, Item::Damaged(_)));
            // An altered root is a header as good as any, and the codec in a CID is bound to nothing: but then it is another CID.
            let in_header = at < header(&[blocks[0].0]).len();
            let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
            assert!(
                told || in_header || kept != cids,
                "byte {at} altered unnoticed"
            );
            assert!(told || kept.len() == blocks.len());
        }
    }
}

#[test]
fn archive_cut_short_anywhere_gives_all_before_the_cut() {
    let (blocks, good) = small();
    let mut ends = Vec::new();
    let mut end = header(&[blocks[0].0]).len();
    for (cid, block) in &blocks {
        end += section_head(cid, block.len()).len() + block.len();
        ends.push(end);
    }
    for cut in 0..good.len() {
        let kept = blocks_of(&check(&good[..cut]));
        assert_eq!(kept.len(), ends.iter().filter(|end| **end <= cut).count());
    }
}

#[test]
fn bytes_put_in_or_taken_out_cost_what_they_hit() {
    let (blocks, good) = small();
    for at in header(&[blocks[0].0]).len()..good.len() {
        let mut longer = good.clone();
        longer.insert(at, 0x55);
        assert!(blocks_of(&check(&longer)).len() >= blocks.len() - 1, "{at}");
        let mut shorter = good.clone();
        shorter.remove(at);
        assert!(
            blocks_of(&check(&shorter)).len() >= blocks.len() - 1,
            "{at}"
        );
    }
}

#[test]
fn a_million_empty_sections_are_one_damaged_place() {
    let (blocks, mut bytes) = small();
    bytes.extend(vec![0; 1_000_000]);
    let (last, data) = block(9, 50);
    bytes.extend(section_head(&last, data.len()));
    bytes.extend(data);
    let items = check(&bytes);
    assert_eq!(items.len(), blocks.len() + 2);
    assert!(
        matches!(&items[blocks.len()], Item::Damaged(range) if range.end - range.start == 1_000_000)
    );
}

#[test]
fn giant_lengths_are_damage_and_no_allocation() {
    let (blocks, good) = small();
    for len in [
        SECTION_BYTES_MAX as u64 + 1,
        u64::from(u32::MAX),
        (1 << 62) - 1,
        0,
        1,
    ] {
        let mut bytes = good.clone();
        bytes.extend(varint(len));
        bytes.extend(block(7, 60).1);
        let items = check(&bytes);
        assert_eq!(blocks_of(&items).len(), blocks.len());
        assert!(matches!(items.last(), Some(Item::Damaged(_))));
    }
    // A header of any length.
    for len in [0, HEADER_BYTES_MAX as u64 + 1, u64::MAX >> 1] {
        assert!(Reader::open(&[varint(len), vec![0; 100]].concat()[..]).is_err());
    }
}

#[test]
fn what_only_looks_like_blocks_is_given_up_in_time() {
    let (blocks, mut bytes) = small();
    // A length that does not lead to another section, then sixty thousand places that look like the begin of a block.
    bytes.extend(varint(3));
    let false_one = [varint(2_000_000), vec![0x01, 0x55, 0x1e, 0x20, 7]].concat();
    for _ in 0..60_000 {
        bytes.extend(&false_one);
    }
    bytes.extend(vec![7; 4_000_000]);
    let items = check(&bytes);
    assert_eq!(blocks_of(&items).len(), blocks.len());
}

#[test]
fn identity_is_checked_and_an_unknown_hash_is_not_believed() {
    // Identity of "abc", and the same with another byte behind it.
    let identity = Cid::from_bytes(&[1, 0x55, 0, 3, b'a', b'b', b'c']).unwrap();
    assert!(verifies(&identity, b"abc"));
    assert!(!verifies(&identity, b"abd"));
    assert!(!verifies(&identity, b"bc"));
    let unknown = Cid::from_bytes(&[[1, 0x55, 0x13, 64].as_slice(), &[0; 64]].concat()).unwrap();
    let items = check(&archive(
        &[],
        &[
            (identity, b"abc".to_vec()),
            (unknown, b"x".to_vec()),
            block(1, 9),
        ],
    ));
    assert_eq!(blocks_of(&items), [identity, block(1, 9).0]);
    assert_eq!(items.len(), 3);
}

#[test]
fn second_version_is_read_without_its_index_and_its_padding() {
    let (blocks, data) = small();
    let wrap = |padding: usize, size: u64| {
        let mut bytes = PRAGMA.to_vec();
        bytes.extend([0; 16]);
        bytes.extend((51 + padding as u64).to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(vec![0; padding]);
        bytes.extend(&data);
        bytes
    };
    for padding in [0, 1, 1000, 200_000] {
        let mut bytes = wrap(padding, data.len() as u64);
        // What stands behind the data looks like sections, and is none of its.
        let (cid, block) = block(77, 30);
        bytes.extend(section_head(&cid, block.len()));
        bytes.extend(block);
        let reader = Reader::open(&bytes[..]).unwrap();
        assert_eq!((reader.version(), reader.roots().len()), (2, 1));
        assert_eq!(blocks_of(&all(reader)).len(), blocks.len());
        // Cut short: told.
        let cut = &bytes[..51 + padding + data.len() - 3];
        assert!(matches!(check(cut).last(), Some(Item::Damaged(_))));
    }
    // Offsets and sizes that overflow, or lead into the header.
    for (at, number) in [(27, u64::MAX), (35, u64::MAX), (27, 3)] {
        let mut bytes = wrap(0, data.len() as u64);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        assert!(Reader::open(&bytes[..]).is_err());
    }
}

#[test]
fn second_version_that_leads_past_the_header_of_its_data_is_damaged_at_its_beginning() {
    let (blocks, first) = small();
    let header_len = header(&[blocks[0].0]).len();
    let mut bytes = PRAGMA.to_vec();
    bytes.extend_from_slice(&[0; 16]);
    let data = PRAGMA.len() + V2_HEADER_BYTES;
    for number in [data + header_len, first.len() - header_len, 0] {
        bytes.extend_from_slice(&(number as u64).to_le_bytes());
    }
    bytes.extend_from_slice(&first);
    assert!(Reader::open(&bytes[..]).is_err());
    let items = read(&bytes).unwrap();
    assert_eq!(items[0], Item::Damaged(0..(data + header_len) as u64));
    assert_eq!(blocks_of(&items).len(), blocks.len());
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/car");
    std::fs::read(format!("{folder}/{name}.car")).unwrap()
}

fn vector(name: &str, bytes: &[u8]) -> Value {
    let Ok(reader) = Reader::open(bytes) else {
        return json!({"name": name, "expect": "header", "car": hex(bytes)});
    };
    let (version, roots) = (reader.version(), reader.roots().to_vec());
    let items = all(reader);
    let list = items.iter().filter_map(|item| match item {
        Item::Block(block) => Some(
            json!({"cid": hex(&block.cid.to_bytes()), "offset": block.offset, "len": block.bytes.len()}),
        ),
        Item::Damaged(_) => None,
    });
    let damaged = items.iter().filter_map(|item| match item {
        Item::Damaged(range) => Some(json!([range.start, range.end])),
        Item::Block(_) => None,
    });
    json!({
        "name": name, "expect": "ok", "car": hex(bytes), "version": version,
        "roots": roots.iter().map(|cid| hex(&cid.to_bytes())).collect::<Vec<_>>(),
        "blocks": list.collect::<Vec<_>>(), "damaged": damaged.collect::<Vec<_>>(),
    })
}

#[test]
fn vectors_are_read_as_they_say() {
    let (blocks, good) = small();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    let head = header(&[blocks[0].0]).len();
    let zeros = [good.as_slice(), &[0; 20]].concat();
    let unshort = [
        &good[..head],
        &[0x80 | 76, 0x80, 0x00],
        &good[head + 1..head + 77],
    ]
    .concat();
    let mut made: Vec<Value> = [
        "carv1-basic",
        "carv2-basic",
        "sample-unixfs-v2",
        "sample-rw-bs-v2",
        "sample-corrupt-pragma",
        "sample-rootless-v42",
    ]
    .iter()
    .map(|name| vector(name, &fixture(name)))
    .collect();
    made.extend([
        vector("five blocks", &good),
        vector("no blocks and no roots", &header(&[])),
        vector("no bytes", &[]),
        vector("one byte of a block altered", &with(head + 60, 1)),
        vector("a length altered", &with(head, 0x20)),
        vector("cut short", &good[..good.len() - 1]),
        vector("empty sections at the end", &zeros),
        vector("length not in its shortest form", &unshort),
        vector("header with another version", &with(head - 1, 2)),
    ]);
    for vector in load("car", &made) {
        let opened = Reader::open(&bytes(&vector["car"])[..]).is_ok();
        assert_eq!(opened, vector["expect"] == "ok", "{}", vector["name"]);
        check(&bytes(&vector["car"]));
    }
}

#[test]
fn cbor_has_one_form() {
    let good = header(&[block(1, 1).0]);
    let cbor = read_varint(&good).unwrap().1;
    assert!(decode_header(cbor).is_ok());
    for cut in 0..cbor.len() {
        assert!(decode_header(&cbor[..cut]).is_err());
    }
    assert!(decode_header(&[cbor, &[0]].concat()).is_err());
    for longer in [
        &[0x18, 0x01][..],
        &[0x19, 0, 1],
        &[0x1a, 0, 0, 0, 1],
        &[0x1b, 0, 0, 0, 0, 0, 0, 0, 1],
    ] {
        let version = [&cbor[..cbor.len() - 1], longer].concat();
        assert!(decode_header(&version).is_err(), "{longer:?}");
    }
}

proptest! {
    #[test]
    fn varints_have_one_form(value in 0u64..1 << 63) {
        let bytes = varint(value);
        prop_assert_eq!(read_varint(&bytes), Some((value, &[][..])));
        let longer = [&bytes[..bytes.len() - 1], &[bytes[bytes.len() - 1] | 0x80, 0]].concat();
        prop_assert_eq!(read_varint(&longer), None);
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
        let _ = decode_header(&bytes);
        let mut behind = header(&[]);
        behind.extend(&bytes);
        check(&behind);
    }

    #[test]
    fn mutated_archives_never_panic_and_give_only_what_verifies(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..12)) {
        let (_, mut bytes) = small();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
            if bytes.is_empty() { break }
        }
        check(&bytes);
    }
}
