use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::*;
use crate::id::SpaceId;
use crate::key::Rng;

const SCHEMES: [(usize, usize); 5] = [(2, 1), (4, 2), (6, 3), (8, 4), (10, 6)];
const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/vectors/erasure.json"
);

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::from_seed(crate::key::derive("test noise", &seed.to_le_bytes())).fill(&mut bytes);
    bytes
}

/// A pack of blocks of these lengths.
fn pack(class: Class, lens: &[usize]) -> Shard {
    let blocks: Vec<Vec<u8>> = (0..).zip(lens).map(|(n, len)| noise(*len, n)).collect();
    let header = Header::new(class, SpaceId([9; 32]));
    let named = blocks
        .iter()
        .map(|block| (Cid::of_block(block), &block[..]));
    pack_of(header, named).0
}

/// Lengths of so many blocks, up to so long.
fn lens(count: usize, most: u64, seed: u8) -> Vec<usize> {
    let mut rng = Rng::from_seed([seed; 32]);
    let len = |_| usize::try_from(1 + rng.below(most)).unwrap();
    (0..count).map(len).collect()
}

fn files(shards: &[Shard]) -> BTreeMap<usize, Bytes> {
    let files = shards.iter().map(|shard| shard.bytes.clone());
    files.enumerate().collect()
}

fn without(files: &BTreeMap<usize, Bytes>, lost: &[usize]) -> BTreeMap<usize, Bytes> {
    let mut left = files.clone();
    left.retain(|at, _| !lost.contains(at));
    left
}

#[test]
fn shards_are_packs_and_any_so_many_bring_the_others_and_the_pack_back() {
    let mut rng = Rng::from_seed([3; 32]);
    for (needed, spare) in SCHEMES {
        for (count, most) in [(needed * 3, 1000), (40, 90_000), (300, 3_000)] {
            let whole = pack(Class::Bulk, &lens(count, most, 1));
            let Ok((coding, shards)) = code(&whole.bytes, needed, spare) else {
                // A few blocks of very different lengths may leave a shard with none.
                assert!(count < 40);
                continue;
            };
            assert!(coding.is_sound());
            assert_eq!(coding.pack, whole.id);
            assert_eq!(shards.len(), needed + spare);
            let mut blocks = Vec::new();
            for (at, (shard, id)) in shards.iter().zip(coding.ids()).enumerate() {
                let checked = pack::check(&shard.bytes).unwrap();
                assert_eq!((checked.id, shard.id), (id, id));
                assert_eq!(shard.bytes.len() as u64, coding.len(at));
                match coding.data.get(at) {
                    Some(of) => {
                        assert_eq!(checked.header.class, Class::Bulk);
                        assert_eq!(of.blocks as usize, checked.blocks.len());
                        blocks.extend(checked.blocks.iter().map(|block| block.cid));
                        assert_eq!(read_parity(&shard.bytes), None);
                    }
                    None => {
                        assert_eq!(checked.header.class, Class::Parity);
                        let (table, _) = read_parity(&shard.bytes).unwrap();
                        assert_eq!((table.pack, table.parity), (whole.id, at - needed));
                        let of_all: Vec<Cid> = (0..needed)
                            .flat_map(|shard| table.blocks_of(shard))
                            .map(|(digest, _)| Cid::from_digest(*digest))
                            .collect();
                        assert_eq!(of_all, blocks);
                    }
                }
            }
            let in_pack = pack::check(&whole.bytes).unwrap().blocks;
            assert!(in_pack.iter().map(|block| block.cid).eq(blocks));
            let all = files(&shards);
            let data: Vec<Bytes> = all.values().take(needed).cloned().collect();
            assert!(coding.join(&data).unwrap() == whole.bytes);
            for _ in 0..3 {
                let mut order: Vec<usize> = (0..shards.len()).collect();
                for place in (1..order.len()).rev() {
                    let with = usize::try_from(rng.below(place as u64 + 1)).unwrap();
                    order.swap(place, with);
                }
                let left = without(&all, &order[..spare]);
                for lost in &order[..spare] {
                    let restored = coding.restore(*lost, &left);
                    assert!(restored.unwrap() == all[lost], "{needed}+{spare} {order:?}");
                }
                let less = without(&all, &order[..=spare]);
                assert!(matches!(
                    coding.restore(order[0], &less),
                    Err(CodingError::Erasure(ErasureError::TooFew { .. }))
                ));
            }
        }
    }
}

#[test]
fn a_large_pack_takes_little_more_than_its_code_wants() {
    let whole = pack(Class::Bulk, &lens(200, 90_000, 5));
    let (coding, _) = code(&whole.bytes, 4, 2).unwrap();
    let stored: u64 = (0..6).map(|shard| coding.len(shard)).sum();
    let ideal = whole.bytes.len() as u64 * 6 / 4;
    assert!(stored < ideal + ideal / 40, "{stored} of {ideal}");
}

#[test]
fn what_is_kept_in_copies_is_not_coded() {
    let kept = |coded: Result<_, CodingError>| matches!(coded, Err(CodingError::Kept(_)));
    let few = pack(Class::Bulk, &[50_000, 10, 10, 10, 10]);
    assert!(kept(code(&few.bytes, 4, 2)), "the second shard is empty");
    assert!(code(&few.bytes, 2, 1).is_ok());
    assert!(kept(code(&pack(Class::Bulk, &[7]).bytes, 2, 1)));
    let public = pack(Class::Public, &[70; 9]);
    assert!(kept(code(&public.bytes, 2, 1)));
    let sealed = pack(Class::Bulk, &[70; 9]);
    let (_, shards) = code(&sealed.bytes, 2, 1).unwrap();
    assert!(kept(code(&shards[2].bytes, 2, 1)), "parity of parity");
    assert!(code(&sealed.bytes, 0, 1).is_err());
    assert!(code(&sealed.bytes, 2, 0).is_err());
    assert!(code(&sealed.bytes, usize::MAX, 1).is_err());
    assert!(matches!(
        code(&sealed.bytes[1..], 2, 1),
        Err(CodingError::Pack(_))
    ));
    let foreign = {
        let block = b"a block with a name of others".as_slice();
        let digest = <sha2::Sha256 as sha2::Digest>::digest(block);
        let name = [&[1, 0x55, 0x12, 32][..], &digest[..]].concat();
        let named = |n: u64| {
            let block = noise(70, n);
            (Cid::of_block(&block), block)
        };
        let ours: Vec<(Cid, Vec<u8>)> = (0..5).map(named).collect();
        let header = Header::new(Class::Bulk, SpaceId([9; 32]));
        let all = ours.iter().map(|(cid, block)| (*cid, &block[..]));
        pack_of(
            header,
            all.chain([(Cid::from_bytes(&name).unwrap(), block)]),
        )
        .0
    };
    assert!(kept(code(&foreign.bytes, 2, 1)));
    let zeros = vec![0; 4 << 20];
    let header = Header::new(Class::Bulk, SpaceId([9; 32]));
    let (empty, _) = pack_of(header, [(Cid::of_block(&zeros), &zeros[..])]);
    assert!(kept(code(&empty.bytes, 1, 1)), "two blocks of one name");
}

#[test]
fn whoever_lies_is_found_out() {
    let whole = pack(Class::Bulk, &lens(60, 5_000, 8));
    let (coding, shards) = code(&whole.bytes, 4, 2).unwrap();
    let all = files(&shards);
    let left = without(&all, &[0, 5]);
    // Rotten shards, and others.
    for at in [1, 2, 3, 4] {
        let mut rotten = all[&at].to_vec();
        rotten[100] ^= 1;
        let with = |bytes: Bytes| {
            let mut files = left.clone();
            files.insert(at, bytes);
            coding.restore(0, &files)
        };
        assert_eq!(with(rotten.into()), Err(CodingError::Shard(at)));
        assert_eq!(with(all[&0].clone()), Err(CodingError::Shard(at)));
    }
    assert_eq!(coding.restore(6, &all), Err(CodingError::Shard(6)));
    // An encoder whose parity is that of something else, or no parity at all.
    let other = pack(Class::Bulk, &lens(60, 5_000, 9));
    let (of_other, others) = code(&other.bytes, 4, 2).unwrap();
    let mut lying = coding.clone();
    lying.parity[0] = of_other.parity[0];
    let mut files = left.clone();
    files.insert(4, others[4].bytes.clone());
    assert_eq!(lying.restore(0, &files), Err(CodingError::Parity(4)));
    let (table, _) = read_parity(&all[&4]).unwrap();
    let len = usize::try_from(coding.data.iter().map(|of| of.len).max().unwrap()).unwrap();
    let header = Header::new(Class::Bulk, SpaceId([9; 32]));
    let false_parity = noise(len.next_multiple_of(2), 77);
    let forged = parity_shard(header, &table, &false_parity).unwrap();
    lying.parity[0] = forged.id;
    files.insert(4, forged.bytes);
    assert_eq!(lying.restore(0, &files), Err(CodingError::Named));
    assert_eq!(lying.restore(5, &files), Err(CodingError::Named));
    // Data shards of another pack do not make this one.
    let mut mixed = coding.clone();
    mixed.data[0] = of_other.data[0];
    let mut data: Vec<Bytes> = all.values().take(4).cloned().collect();
    assert_eq!(mixed.join(&data), Err(CodingError::Shard(0)));
    data[0] = others[0].bytes.clone();
    assert_eq!(mixed.join(&data), Err(CodingError::Named));
    assert_eq!(coding.join(&data[..3]), Err(CodingError::Shard(0)));
}

#[test]
fn what_cannot_be_is_not_sound() {
    let whole = pack(Class::Bulk, &lens(60, 5_000, 8));
    let (coding, _) = code(&whole.bytes, 4, 2).unwrap();
    let is_sound = |change: &dyn Fn(&mut Coding)| {
        let mut changed = coding.clone();
        change(&mut changed);
        changed.is_sound()
    };
    assert!(is_sound(&|_| {}));
    assert!(!is_sound(&|of| of.parity.clear()));
    assert!(!is_sound(&|of| of.data.clear()));
    assert!(!is_sound(&|of| of.parity[1] = of.parity[0]));
    assert!(!is_sound(&|of| of.parity[1] = of.pack));
    assert!(!is_sound(&|of| of.data[0].id = of.data[1].id));
    assert!(!is_sound(&|of| of.data[0].blocks = 0));
    assert!(!is_sound(&|of| of.data[0].blocks = u32::MAX));
    assert!(!is_sound(&|of| of.data[0].len = 300));
    assert!(!is_sound(&|of| of.data[0].len = u32::MAX));
    assert!(
        !is_sound(&|of| of.data[0].len = 64 << 20),
        "no room for the table"
    );
    let many = |of: &mut Coding| of.parity = (0..61).map(|n| PackId([n; 32])).collect();
    assert!(!is_sound(&many));
}

#[test]
fn tables_have_one_form() {
    let whole = pack(Class::Names, &lens(9, 50, 4));
    let (_, shards) = code(&whole.bytes, 2, 1).unwrap();
    let (table, _) = read_parity(&shards[2].bytes).unwrap();
    let bytes = table.encode();
    assert_eq!(Table::decode(&bytes), Some(table.clone()));
    for cut in 0..bytes.len() {
        assert_eq!(Table::decode(&bytes[..cut]), None, "{cut}");
    }
    for bit in 0..8 * bytes.len() {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        if let Some(read) = Table::decode(&other) {
            assert_eq!(read.encode(), other);
        }
    }
    assert_eq!(Table::decode(&[&bytes[..], &[0; 36]].concat()), None);
}

/// A pack whose blocks are noise by name, so that another decoder can make them.
fn case(needed: usize, spare: usize, class: Class, lens: &[usize]) -> Value {
    let name = format!("{needed}+{spare} of {} blocks", lens.len());
    let block = |(n, len): (usize, &usize)| {
        let mut bytes = vec![0; *len];
        blake3::Hasher::new()
            .update(format!("{name} {n}").as_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    };
    let blocks: Vec<Vec<u8>> = lens.iter().enumerate().map(block).collect();
    let header = Header::new(class, SpaceId([9; 32]));
    let named = blocks
        .iter()
        .map(|block| (Cid::of_block(block), &block[..]));
    let (whole, _) = pack_of(header, named);
    let hex = |id: &PackId| HEXLOWER.encode(&id.0);
    let base = json!({
        "kind": "coding",
        "name": name,
        "needed": needed,
        "spare": spare,
        "class": class.to_byte(),
        "space": HEXLOWER.encode(&[9; 32]),
        "block_lens": lens,
        "pack": hex(&whole.id),
    });
    let mut value = base;
    let more = match code(&whole.bytes, needed, spare) {
        Ok((coding, shards)) => {
            let data = coding
                .data
                .iter()
                .map(|of| json!({"name": hex(&of.id), "len": of.len, "blocks": of.blocks}));
            let tables = shards.iter().skip(needed).map(|shard| {
                let (table, _) = read_parity(&shard.bytes).unwrap();
                HEXLOWER.encode(Cid::of_block(&table.encode()).digest().unwrap().as_slice())
            });
            json!({
                "expect": "ok",
                "data": data.collect::<Vec<_>>(),
                "tables": tables.collect::<Vec<_>>(),
                "parity": coding.parity.iter().map(hex).collect::<Vec<_>>(),
                "parity_len": coding.len(needed),
            })
        }
        Err(error) => json!({"expect": error.to_string()}),
    };
    let (Some(all), Some(more)) = (value.as_object_mut(), more.as_object()) else {
        unreachable!()
    };
    all.extend(more.clone());
    value
}

fn tables() -> Vec<Value> {
    let whole = pack(Class::Names, &[5, 0, 77, 31, 8]);
    let (_, shards) = code(&whole.bytes, 2, 1).unwrap();
    let (table, _) = read_parity(&shards[2].bytes).unwrap();
    let good = table.encode();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let all = [
        ("table", "ok", good.clone()),
        ("table: version 2", "malformed", changed(0, 2)),
        ("table: no data shards", "malformed", changed(1, 0)),
        ("table: more data shards", "malformed", changed(1, 3)),
        ("table: no parity", "malformed", changed(2, 0)),
        ("table: too many shards", "malformed", changed(2, 63)),
        ("table: a parity too far", "malformed", changed(3, 1)),
        (
            "table: another length of a shard",
            "malformed",
            changed(68, 1),
        ),
        (
            "table: one block more in a shard",
            "malformed",
            changed(72, 4),
        ),
        ("table: no blocks in a shard", "malformed", changed(72, 0)),
        (
            "table: one byte short",
            "malformed",
            good[..good.len() - 1].to_vec(),
        ),
        (
            "table: one byte over",
            "malformed",
            [&good[..], &[0]].concat(),
        ),
    ];
    all.into_iter()
        .map(|(name, expect, bytes)| {
            json!({"kind": "table", "name": name, "expect": expect, "bytes": HEXLOWER.encode(&bytes)})
        })
        .collect()
}

fn cases() -> Vec<Value> {
    let mut all = Vec::new();
    for (needed, spare) in SCHEMES {
        all.push(case(needed, spare, Class::Bulk, &lens(50, 3_000, 1)));
        all.push(case(needed, spare, Class::Names, &lens(16, 90_000, 2)));
    }
    all.push(case(2, 1, Class::Stream, &[0, 1]));
    all.push(case(
        2,
        1,
        Class::Bulk,
        &[1_000_000, 900_000, 800_000, 700_000],
    ));
    all.push(case(4, 2, Class::Bulk, &[50_000, 10, 10, 10, 10]));
    all.push(case(4, 2, Class::Bulk, &[100, 100, 100]));
    all.extend(tables());
    all
}

#[test]
fn vectors_hold() {
    let today = cases();
    if std::env::var_os("KITH_BLESS").is_some() {
        std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
    }
    let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
    assert_eq!(kept, today);
}
