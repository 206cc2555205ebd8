//! How devices speak and decide: exchange of blocks, gossip and anti-entropy, pairing, the local API.
//!
//! Pure: machines that own no socket, disk, clock or randomness.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod api;
pub mod bulk;
pub mod exchange;
pub mod gossip;
pub mod holdings;
pub mod lan;
pub mod pairing;
pub mod placement;
pub mod promise;
pub mod record;
pub mod wire;
