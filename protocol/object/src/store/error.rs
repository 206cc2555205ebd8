//! What may go wrong in the store.

use std::io;

use crate::id::{Cid, PackId};
use crate::pack::PackError;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the CID names.
    #[error("block does not match its name {cid}")]
    Mismatch {
        /// The name given.
        cid: Cid,
    },
    /// The block is longer than [`BLOCK_BYTES_MAX`].
    #[error("block {cid} of {len} bytes is too long to store")]
    TooLong {
        /// Its name.
        cid: Cid,
        /// Its length.
        len: usize,
    },
    /// The copy on this disk is damaged; it counts as absent from now on.
    #[error("block {cid} is damaged on this disk")]
    Corrupt {
        /// Its name.
        cid: Cid,
    },
    /// No room, or less than the floor. What was stored is as before.
    #[error("no room on the disk for block {cid}")]
    Full {
        /// The block that was not stored.
        cid: Cid,
        /// What the disk said; nothing if the floor was reached.
        source: Option<io::Error>,
    },
    /// The disk did not take a block or the end of a pack.
    #[error("write pack {name}")]
    Write {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The disk did not give a block.
    #[error("read pack {name}")]
    Read {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// What was put could not be made to last.
    #[error("sync the store")]
    Sync {
        /// What the disk said.
        source: io::Error,
    },
    /// An earlier failure left it open what is on the disk; opening the store again settles it. Reading goes on.
    #[error("the store takes no more blocks since a sync failed; open it again")]
    Broken,
    /// The index failed.
    #[error("use the index of the store")]
    Index {
        /// What it said.
        source: io::Error,
    },
    /// The folder of packs could not be listed.
    #[error("list the packs of the store")]
    List {
        /// What the disk said.
        source: io::Error,
    },
    /// A pack is not what its name says.
    #[error("pack {pack} is damaged")]
    Pack {
        /// Its name.
        pack: PackId,
        /// What is wrong first.
        source: PackError,
    },
}

impl StoreError {
    /// Whether the disk was full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Write { source, .. } | Self::Sync { source } | Self::Index { source } => {
                source.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }
}
