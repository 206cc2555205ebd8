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
    /// The disk has no room. What was stored is as before.
    #[error("no room on the disk for block {cid} of {len} bytes")]
    Full {
        /// The block that was not stored.
        cid: Cid,
        /// Its length.
        len: u32,
        /// What the disk said.
        source: io::Error,
    },
    /// Less than the floor would stay free, and no cached pack is left to go. What was stored is as before.
    #[error(
        "block {cid} of {len} bytes would leave less than {floor} bytes free on the disk; {free} are free"
    )]
    Floor {
        /// The block that was not stored.
        cid: Cid,
        /// Its length.
        len: u32,
        /// What is free.
        free: u64,
        /// What must stay free.
        floor: u64,
    },
    /// The quota would be exceeded, and no cached pack is left to go. What was stored is as before.
    #[error(
        "block {cid} of {len} bytes would exceed the quota of {quota} bytes; the store takes {used}, and some of it is for collecting garbage"
    )]
    Quota {
        /// The block that was not stored.
        cid: Cid,
        /// Its length.
        len: u32,
        /// What the store takes.
        used: u64,
        /// What it may take.
        quota: u64,
    },
    /// The pack is not a cached one, so it is not dropped to make room.
    #[error("pack {pack} is kept: it is not dropped to make room")]
    Kept {
        /// Its name.
        pack: PackId,
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
    /// Whether room was lacking: the disk was full, or the floor or the quota was reached.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Floor { .. } | Self::Quota { .. } => true,
            Self::Write { source, .. } | Self::Sync { source } | Self::Index { source } => {
                source.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }
}
