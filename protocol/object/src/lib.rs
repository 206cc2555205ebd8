//! What is stored, byte for byte: identifiers, keys, chunks, sealed blocks, manifests, folder listings and packs.
//!
//! Pure: no runtime, socket, file or clock. Bytes come in as arguments; a [`disk::Disk`] stands for storage.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod backup;
pub mod buffer;
pub mod car;
pub mod chunk;
mod cipher;
pub mod coding;
pub mod disk;
pub mod erasure;
pub mod id;
pub mod index;
pub mod key;
pub mod log;
pub mod manifest;
pub mod object;
pub mod pack;
pub mod scrub;
pub mod seal;
pub mod store;
pub mod time;
pub mod tree;
pub mod unixfs;
