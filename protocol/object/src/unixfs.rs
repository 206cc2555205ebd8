//! Files and folders as the IPFS world has them: UnixFS in dag-pb. Writes them with the CIDs that other programs give them, and reads them.
//!
//! Spec: `protocol/spec/unixfs.md`, "Profiles".

mod node;
mod shard;

use std::io;

use bytes::Bytes;

use crate::id::Cid;
pub use node::{FileNode, Node, NodeError, NodeLink, read_node};

/// Multicodecs and the hash.
const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const SHA2_256: u64 = 0x12;
/// Folders that are longer are spread over several nodes.
const FOLDER_BYTES_MAX: usize = 256 << 10;

/// A set of choices that decide which CID a file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `unixfs-v1-2025`: CIDv1, raw leaves of 1 MiB, 1,024 links.
    V1,
    /// `unixfs-v0-2015`: CIDv0, leaves of 256 KiB in dag-pb, 174 links.
    V0,
}

impl Profile {
    /// The profile of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "unixfs-v1-2025" => Some(Self::V1),
            "unixfs-v0-2015" => Some(Self::V0),
            _ => None,
        }
    }

    /// Bytes of a file in one leaf.
    pub fn leaf_bytes(self) -> usize {
        match self {
            Self::V1 => 1 << 20,
            Self::V0 => 256 << 10,
        }
    }

    fn links_max(self) -> usize {
        match self {
            Self::V1 => 1024,
            Self::V0 => 174,
        }
    }

    fn cid(self, codec: u64, block: &[u8]) -> Cid {
        let version = match self {
            Self::V1 => 1,
            Self::V0 => 0,
        };
        Cid::from_prefix(version, codec, SHA2_256, 32, block)
            .expect("SHA2-256 is one that we compute")
    }
}

/// A file, folder or symlink written: its root, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The root.
    pub cid: Cid,
    /// Bytes of all blocks, each as often as it stands in it.
    pub tsize: u64,
    /// Bytes of the file.
    size: u64,
}

/// Takes blocks as they are made, those below before those above.
pub type Sink<'a> = dyn FnMut(Cid, Bytes) -> io::Result<()> + 'a;

/// Why a folder is not written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Two of its names have the same hash, of 64 bits, by which such folders are spread.
    #[error("two names of a large folder cannot be told apart by the hash that spreads it")]
    Collide,
    /// Whoever takes the blocks refused.
    #[error("hand on a block")]
    Sink(#[source] io::Error),
}

/// Builds the tree over a file: balanced, all leaves at one depth. Holds the links of one node a level.
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    levels: Vec<Vec<Written>>,
}

impl FileBuilder {
    /// Begins a file.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            levels: Vec::new(),
        }
    }

    /// Takes the next leaf: [`Profile::leaf_bytes`], the last one less. An empty file has one leaf of no bytes.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn leaf(&mut self, data: &[u8], sink: &mut Sink<'_>) -> io::Result<()> {
        let (block, codec) = match self.profile {
            Profile::V1 => (Bytes::copy_from_slice(data), RAW),
            Profile::V0 => (node::file_leaf(data).into(), DAG_PB),
        };
        let written = Written {
            cid: self.profile.cid(codec, &block),
            tsize: block.len() as u64,
            size: data.len() as u64,
        };
        sink(written.cid, block)?;
        self.push(0, written, sink)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(mut self, sink: &mut Sink<'_>) -> io::Result<Written> {
        if self.levels.is_empty() {
            self.leaf(&[], sink)?;
        }
        let mut level = 0;
        loop {
            let links = self.levels.get(level).map_or(&[][..], Vec::as_slice);
            if let ([only], true) = (links, level + 1 >= self.levels.len()) {
                return Ok(*only);
            }
            // Also of one link, where others of its level are full: all leaves stand at one depth.
            self.close(level, sink)?;
            level += 1;
        }
    }

    fn push(&mut self, level: usize, written: Written, sink: &mut Sink<'_>) -> io::Result<()> {
        if self.levels.get(level).map_or(0, Vec::len) == self.profile.links_max() {
            self.close(level, sink)?;
        }
        if self.levels.len() <= level {
            self.levels.push(Vec::new());
        }
        self.levels
            .get_mut(level)
            .expect("made above")
            .push(written);
        Ok(())
    }

    fn close(&mut self, level: usize, sink: &mut Sink<'_>) -> io::Result<()> {
        let links = self.levels.get_mut(level).map(std::mem::take);
        let links = links.unwrap_or_default();
        let block = Bytes::from(node::file_node(&links));
        let below: u64 = links.iter().map(|link| link.tsize).sum();
        let written = Written {
            cid: self.profile.cid(DAG_PB, &block),
            tsize: block.len() as u64 + below,
            size: links.iter().map(|link| link.size).sum(),
        };
        sink(written.cid, block)?;
        self.push(level + 1, written, sink)
    }
}

/// Writes a folder of those names, which are in ascending order of their bytes; one that would be longer than 256 KiB is spread over several nodes.
///
/// # Errors
/// [`FolderError`].
pub fn folder(
    profile: Profile,
    entries: &[(Vec<u8>, Written)],
    sink: &mut Sink<'_>,
) -> Result<Written, FolderError> {
    let block = Bytes::from(node::folder_node(entries));
    let links_bytes =
        |(name, written): &(Vec<u8>, Written)| name.len() + written.cid.to_bytes().len();
    let measure = match profile {
        Profile::V1 => block.len(),
        Profile::V0 => entries.iter().map(links_bytes).sum(),
    };
    if measure > FOLDER_BYTES_MAX {
        return shard::folder(profile, entries, sink);
    }
    folder_block(profile, block, entries, sink)
}

/// Writes the block of a folder, or of a part of one, that links to what was written.
fn folder_block(
    profile: Profile,
    block: Bytes,
    links: &[(Vec<u8>, Written)],
    sink: &mut Sink<'_>,
) -> Result<Written, FolderError> {
    let below: u64 = links.iter().map(|(_, written)| written.tsize).sum();
    let written = Written {
        cid: profile.cid(DAG_PB, &block),
        tsize: block.len() as u64 + below,
        size: 0,
    };
    sink(written.cid, block).map_err(FolderError::Sink)?;
    Ok(written)
}

/// Writes a symlink.
///
/// # Errors
/// Those of the sink.
pub fn symlink(profile: Profile, target: &[u8], sink: &mut Sink<'_>) -> io::Result<Written> {
    let block = Bytes::from(node::symlink_node(target));
    let written = Written {
        cid: profile.cid(DAG_PB, &block),
        tsize: block.len() as u64,
        size: 0,
    };
    sink(written.cid, block)?;
    Ok(written)
}

/// Stands for a root until it is known: a CID of the length that all roots of the profile have.
pub fn placeholder(profile: Profile) -> Cid {
    profile.cid(DAG_PB, b"")
}

#[cfg(test)]
mod tests;
