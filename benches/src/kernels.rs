//! Chunk + seal + hash of the object layer, against its kernels one after another on one core.

use std::sync::Arc;
use std::time::Instant;

use blake3::Hasher;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use kith_object::chunk::{Chunker, Profile};
use kith_object::key::{Rng, Secret};
use kith_object::object::ObjectWriter;
use kith_object::seal::{Kind, Sealer};

use crate::Measured;

/// Random bytes, which neither compress nor repeat.
pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::from_seed([7; 32]).fill(&mut bytes);
    bytes
}

/// What the object layer takes for the bytes.
///
/// # Panics
/// If it fails.
pub fn writer(bytes: &[u8]) -> Measured {
    let secret = Secret::new([1; 32]);
    let sealer = Arc::new(Sealer::new(&secret));
    let chunker = Arc::new(Chunker::new(&secret, Profile::DEFAULT));
    let began = Instant::now();
    let writer = ObjectWriter::new(sealer, chunker, Kind::Chunk);
    writer
        .finish_with(bytes, &mut |_| Ok(()))
        .expect("a sink that takes all");
    Measured {
        bytes: bytes.len() as u64,
        took: began.elapsed(),
    }
}

/// What its kernels take, each over all the bytes in chunks of the same mean size: cut, keyed hash, seal, hash.
///
/// # Panics
/// If it fails.
pub fn kernels(bytes: &[u8]) -> Measured {
    let secret = Secret::new([1; 32]);
    let chunker = Chunker::new(&secret, Profile::DEFAULT);
    let began = Instant::now();
    let mut chunks = Vec::new();
    let mut rest = bytes;
    while let Some(len) = chunker.cut(rest, true).filter(|_| !rest.is_empty()) {
        let (chunk, after) = rest.split_at(len);
        chunks.push(chunk);
        rest = after;
    }
    let mut took = began.elapsed();
    for chunk in chunks {
        let mut buffer = chunk.to_vec();
        let began = Instant::now();
        let mut hasher = Hasher::new_keyed(&[2; 32]);
        let key = *hasher.update(&buffer).finalize().as_bytes();
        let cipher = ChaCha20Poly1305::new(&key.into());
        cipher
            .encrypt_inout_detached(&Nonce::default(), &[1], buffer.as_mut_slice().into())
            .expect("a chunk can be sealed");
        std::hint::black_box(blake3::hash(&buffer));
        took += began.elapsed();
    }
    Measured {
        bytes: bytes.len() as u64,
        took,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_ways_run() {
        let bytes = super::random(2 << 20);
        assert!(super::writer(&bytes).mb_s() > 0.0);
        assert!(super::kernels(&bytes).mb_s() > 0.0);
    }
}
