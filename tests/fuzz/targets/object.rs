//! Objects: sealed blocks, manifests, listings, and what is read through them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use kith_object::coding::Table;
use kith_object::id::Cid;
use kith_object::key::Secret;
use kith_object::manifest::{ChunkRef, FANOUT, Manifest};
use kith_object::object::{BlockWalk, ObjectLink, ObjectReader, Step};
use kith_object::seal::{
    BLOCK_BYTES_MAX, BlockKey, DATA_BYTES_MAX, Kind, Opener, SUITE_1, SealedBlock, Sealer,
    padded_len,
};
use kith_object::tree;

use super::Target;

/// The dedup secret of these tests, as in the vectors.
const SECRET: [u8; 32] = [1; 32];

pub(super) const TARGETS: &[Target] = &[
    // A block unpacks to a MiB at most, and sealing it again takes the same once more.
    Target::new("sealed", sealed).holds(40, 6 << 20).costs(2),
    Target::new("sealed-proved", sealed_proved)
        .holds(40, 6 << 20)
        .costs(2),
    Target::new("manifest", manifest),
    Target::new("table", table),
    Target::new("tree", listing),
    // Up to a thousand names of chunks, each of which may be asked for.
    Target::new("object", object).holds(64, 6 << 20).costs(4),
];

fn opener() -> Opener {
    Opener::new(vec![Secret::new(SECRET)])
}

/// What a member can make that lies: any plaintext, kind and codec first, rightly sealed.
pub(crate) fn forge(plain: &[u8]) -> SealedBlock {
    let whole = [&[SUITE_1], plain].concat();
    let key = *blake3::keyed_hash(&SECRET, &whole).as_bytes();
    let payload = Payload {
        msg: plain,
        aad: &[SUITE_1],
    };
    let sealed = ChaCha20Poly1305::new(&key.into())
        .encrypt(&Nonce::default(), payload)
        .expect("short enough");
    let bytes = [vec![SUITE_1], sealed].concat();
    SealedBlock {
        cid: Cid::of_block(&bytes),
        key: BlockKey::new(key),
        bytes: bytes.into(),
    }
}

/// A key, and a block that it opens or not.
fn sealed(bytes: &[u8]) -> bool {
    let Some((key, block)) = bytes.split_first_chunk::<32>() else {
        return false;
    };
    opened(&Cid::of_block(block), block, &BlockKey::new(*key)).is_some()
}

fn opened(cid: &Cid, block: &[u8], key: &BlockKey) -> Option<(Kind, Vec<u8>)> {
    let opened = opener().open(cid, block, key).ok()?;
    assert!(block.len() <= BLOCK_BYTES_MAX && opened.data.len() <= DATA_BYTES_MAX);
    let sealer = Sealer::new(&Secret::new(SECRET));
    let honest = sealer.seal(opened.kind, &opened.data);
    let again = opener()
        .open(&honest.cid, &honest.bytes, &honest.key)
        .expect("sealed just now");
    assert_eq!(
        (again.kind, &again.data),
        (opened.kind, &opened.data),
        "what opens can be sealed"
    );
    Some((opened.kind, opened.data.to_vec()))
}

/// A plaintext, rightly sealed.
fn sealed_proved(plain: &[u8]) -> bool {
    let block = forge(plain);
    let Some((kind, data)) = opened(&block.cid, &block.bytes, &block.key) else {
        return false;
    };
    if plain.get(1) == Some(&0) {
        let mut again = vec![kind as u8, 0];
        again.extend_from_slice(&u32::try_from(data.len()).expect("short").to_le_bytes());
        again.extend_from_slice(&data);
        again.resize(padded_len(again.len()), 0);
        assert!(again == plain, "a stored plaintext has one form");
    } else {
        assert_ne!(kind, Kind::Manifest, "a manifest is never packed");
    }
    true
}

fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifest::decode(bytes) else {
        return false;
    };
    assert!(manifest.encode() == bytes, "a manifest has one form");
    assert!((1..=FANOUT).contains(&manifest.children.len()));
    let total = manifest
        .children
        .iter()
        .try_fold(0u64, |total, child| total.checked_add(child.len));
    assert_eq!(total, Some(manifest.total()));
    true
}

/// What a parity shard says of the shards that it restores.
fn table(bytes: &[u8]) -> bool {
    let Some(table) = Table::decode(bytes) else {
        return false;
    };
    assert!(table.encode() == bytes, "a table has one form");
    let listed = (0..table.data.len()).map(|shard| table.blocks_of(shard).len());
    assert_eq!(listed.sum::<usize>(), table.blocks.len());
    true
}

fn listing(bytes: &[u8]) -> bool {
    let Ok(entries) = tree::decode(bytes) else {
        return false;
    };
    let again = tree::encode(&entries).expect("what was read can be written");
    assert!(again == bytes, "a listing has one form");
    true
}

/// Chunks that a root may name: three of them, and a manifest over the first two.
pub(crate) fn parts() -> &'static [SealedBlock] {
    static PARTS: OnceLock<Vec<SealedBlock>> = OnceLock::new();
    PARTS.get_or_init(|| {
        let sealer = Sealer::new(&Secret::new(SECRET));
        let mut parts: Vec<SealedBlock> = [&b"first"[..], b"second chunk", b"a third one"]
            .iter()
            .map(|data| sealer.seal(Kind::Chunk, data))
            .collect();
        let children = vec![ChunkRef::to(&parts[0], 5), ChunkRef::to(&parts[1], 12)];
        let manifest = Manifest { level: 1, children };
        parts.push(sealer.seal(Kind::Manifest, &manifest.encode()));
        parts
    })
}

/// A length, then the plaintext of a root: the object is read through, as far as it leads to blocks that are there.
fn object(bytes: &[u8]) -> bool {
    let Some((size, plain)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let root = forge(plain);
    let link = ObjectLink {
        digest: root.cid.digest().expect("one of ours"),
        key: root.key.clone(),
        size: u64::from_le_bytes(*size),
    };
    let blocks: BTreeMap<Cid, &[u8]> = parts()
        .iter()
        .chain([&root])
        .map(|block| (block.cid, &block.bytes[..]))
        .collect();
    walk(&link, &blocks);
    let mut reader = ObjectReader::new(link.clone(), opener());
    let mut taken = 0;
    loop {
        while let Some(bytes) = reader.next() {
            taken += bytes.len() as u64;
            assert!(taken <= link.size, "no more than the link says");
        }
        if reader.done() {
            assert_eq!(taken, link.size, "all that the link says");
            return true;
        }
        let wanted = reader.wanted(4);
        assert!(!wanted.is_empty(), "it says what it waits for");
        for cid in wanted {
            let Some(block) = blocks.get(&cid) else {
                return false;
            };
            if reader.feed(&cid, block).is_err() {
                return false;
            }
        }
    }
}

fn walk(link: &ObjectLink, blocks: &BTreeMap<Cid, &[u8]>) {
    let mut walk = BlockWalk::new(opener());
    assert!(walk.enter(link));
    let mut steps = 0;
    while let Some(step) = walk.step() {
        steps += 1;
        assert!(steps <= 4 * FANOUT, "a walk ends");
        let Step::Open { cid, .. } = step else {
            continue;
        };
        match blocks.get(&cid) {
            Some(block) => drop(walk.feed(block)),
            None => walk.give_up(),
        }
    }
}
