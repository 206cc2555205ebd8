//! Epochs: the lifetimes of a space's keys, who has them, and how one leads to those before it.
//!
//! Spec: `protocol/spec/epoch.md`, "Epoch".

mod keys;
mod record;
mod ring;

pub use keys::{HolderPart, MemberPart, PART_LEN};
pub use record::{ENVELOPES_MAX, Envelope, EpochRecord, KeyPart, LINKS_MAX, Link, PARENTS_MAX};
pub use ring::KeyRing;
