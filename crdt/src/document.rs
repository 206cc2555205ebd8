//! Documents carried by Automerge: the one place that names it.
//!
//! A payload is an Automerge change that puts one record per key and does nothing else. Whether it is one is decided
//! without letting Automerge read it: the records are cut out, the one change that an honest author would have made of
//! them is built anew, and the bytes are compared. So no hostile change ever reaches Automerge's parser.
//!
//! Spec: `protocol/spec/documents.md`, "Changes".

mod change;
mod extract;

pub use change::{
    Change, Misfit, OPS_MAX, Place, RECORD_BYTES_MAX, RECORDS_MAX, author, change_len, read,
};

#[cfg(test)]
mod tests;
