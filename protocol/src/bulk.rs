//! Bulk transfer: whole packs, in verified pieces, from several devices at once.
//!
//! Spec: `protocol/spec/bulk.md`.

pub mod download;
pub mod get;
pub mod place;

pub use download::{Ask, Came, Download, Failure};
pub use get::{GetError, GetRequest, Tree};
pub use place::{Answer, PackAt};

/// What is asked for at a time.
pub const PIECE_BYTES: u64 = 1 << 20;
