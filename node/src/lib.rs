//! One device in the real world: disks, sockets, clocks and threads around the machine of `kith-core`.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod backup;
mod bulk;
pub mod config;
pub mod ingest;
pub mod join;
pub mod local;
pub mod net;
mod outside;
pub mod pins;
pub mod promises;
mod restore;
pub mod run;
mod source;
pub mod store;
mod upkeep;
pub mod verify;
mod whereabouts;
