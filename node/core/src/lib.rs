//! One device as one state machine: the daemon drives it with tokio, the simulator with virtual time.
//!
//! Pure: no runtime, socket, file or clock. What it decides leaves as an [`device::Effect`]; what happened comes in as an [`device::Input`].

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod ages;
pub mod arrangement;
pub mod book;
pub mod collect;
mod crowd;
pub mod device;
mod group;
pub mod keeper;
pub mod packs;
pub mod policy;
pub mod probing;
pub mod promises;
pub mod retirement;
mod routing;
mod seeking;
mod settings;
pub mod shards;
mod steady;
pub mod upkeep;
pub mod vouch;
