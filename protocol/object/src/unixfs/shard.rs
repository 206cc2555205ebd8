//! Folders with so many names that they are spread over several nodes, as the IPFS world spreads them: a trie by the hash of the name.
//!
//! Spec: `protocol/spec/unixfs.md`, "Shards".

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{FolderError, Profile, Sink, Written, folder_block, node};

/// Bytes of the hash: one is used up at each level, so there are no more levels than these.
const LEVELS_MAX: usize = 8;

/// A part of a folder: what stands at each of 256 places.
#[derive(Default)]
struct Shard<'a>(BTreeMap<u8, Place<'a>>);

enum Place<'a> {
    Entry(&'a [u8], &'a Written),
    Part(Shard<'a>),
}

impl<'a> Shard<'a> {
    fn insert(&mut self, level: usize, name: &'a [u8], written: &'a Written) -> Option<()> {
        let at = *hash(name).get(level)?;
        match self.0.remove(&at) {
            None => {
                self.0.insert(at, Place::Entry(name, written));
            }
            Some(Place::Entry(other, others)) => {
                let mut part = Shard::default();
                part.insert(level + 1, other, others)?;
                part.insert(level + 1, name, written)?;
                self.0.insert(at, Place::Part(part));
            }
            Some(Place::Part(mut part)) => {
                part.insert(level + 1, name, written)?;
                self.0.insert(at, Place::Part(part));
            }
        }
        Some(())
    }

    fn write(&self, profile: Profile, sink: &mut Sink<'_>) -> Result<Written, FolderError> {
        let mut links = Vec::with_capacity(self.0.len());
        let mut places = [0; 32];
        for (at, place) in &self.0 {
            if let Some(byte) = places.get_mut(31 - usize::from(at / 8)) {
                *byte |= 1 << (at % 8);
            }
            let mut name = format!("{at:02X}").into_bytes();
            let below = match place {
                Place::Entry(rest, written) => {
                    name.extend_from_slice(rest);
                    **written
                }
                Place::Part(part) => part.write(profile, sink)?,
            };
            links.push((name, below));
        }
        // Without the bytes in front in which nothing stands.
        let first = places.iter().position(|byte| *byte != 0).unwrap_or(32);
        let places = places.get(first..).unwrap_or_default();
        let block = Bytes::from(node::shard_node(&links, places));
        folder_block(profile, block, &links, sink)
    }
}

/// Writes a folder in parts.
pub(super) fn folder(
    profile: Profile,
    entries: &[(Vec<u8>, Written)],
    sink: &mut Sink<'_>,
) -> Result<Written, FolderError> {
    let mut root = Shard::default();
    for (name, written) in entries {
        root.insert(0, name, written).ok_or(FolderError::Collide)?;
    }
    root.write(profile, sink)
}

/// The first half of MurmurHash3 for 64-bit machines, with 128 bits and seed 0, highest byte first.
fn hash(name: &[u8]) -> [u8; LEVELS_MAX] {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mixed = |k: u64, first: u64, turn: u32, second: u64| {
        k.wrapping_mul(first).rotate_left(turn).wrapping_mul(second)
    };
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    };
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let mut blocks = name.chunks_exact(16);
    for block in &mut blocks {
        let (one, two) = block.split_at(8);
        h1 ^= mixed(word(one), C1, 31, C2);
        h1 = h1
            .rotate_left(27)
            .wrapping_add(h2)
            .wrapping_mul(5)
            .wrapping_add(0x52dc_e729);
        h2 ^= mixed(word(two), C2, 33, C1);
        h2 = h2
            .rotate_left(31)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(0x3849_5ab5);
    }
    let rest = blocks.remainder();
    let (one, two) = rest.split_at(rest.len().min(8));
    h2 ^= mixed(word(two), C2, 33, C1);
    h1 ^= mixed(word(one), C1, 31, C2);
    let len = name.len() as u64;
    let last = |mut k: u64| {
        k ^= k >> 33;
        k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
        k ^= k >> 33;
        k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ (k >> 33)
    };
    h1 ^= len;
    h2 ^= len;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    last(h1).wrapping_add(last(h2)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the reference implementation (public domain), first 64 bits.
    #[test]
    fn hashes_are_those_of_everybody() {
        for (text, first) in [
            ("", 0),
            ("hello", 0xcbd8_a7b3_41bd_9b02),
            ("hello, world", 0x342f_ac62_3a5e_bc8e),
            ("19 Jan 2038 at 3:14:07 AM", 0xb89e_5988_b737_affc),
            (
                "The quick brown fox jumps over the lazy dog.",
                0xcd99_481f_9ee9_02c9,
            ),
        ] {
            assert_eq!(u64::from_be_bytes(hash(text.as_bytes())), first, "{text}");
        }
    }
}
