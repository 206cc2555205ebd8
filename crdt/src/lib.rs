//! What all devices come to agree on: chains of signed entries, who counts, the tree of names.
//!
//! Pure: a fold over sets of entries, the same on every device whatever order they came in.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod access;
pub mod catalogue;
pub mod chain;
pub mod document;
pub mod epoch;
pub mod names;
pub mod replica;
