//! Signed entries: the links of a device's chains, one header and one detachable payload each.
//!
//! Spec: `protocol/spec/chain.md`, "Entry".

mod entry;
mod header;
mod part;
pub(crate) mod read;
mod record;

pub use entry::{ENTRY_BYTES_MAX, Entry, EntryError};
pub use header::{ACCESS_HEADS_MAX, DEPENDENCIES_MAX, DocumentKind, Header, HeaderError, Nonce};
pub use part::{
    Codec, PARTS_MAX, PAYLOAD_BYTES_MAX, Part, PartError, Plain, SealKind, padded_len, parts,
    payload_root,
};
pub(crate) use part::{Draft, SealKeys};
pub use record::{RECORD_OVERHEAD, Record, RecordError, push_record, records};
