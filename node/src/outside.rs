//! Public objects: what anybody may have, and what is had from anybody, as UnixFS by Bitswap.
//!
//! Spec: `protocol/spec/outside.md`.

pub(crate) mod dag;
pub(crate) mod driver;
pub(crate) mod fetch;
pub(crate) mod published;
