//! Unfolds a graph of UnixFS nodes, wherever its blocks come from, into whatever is made of it.
//!
//! Spec: `protocol/spec/unixfs.md`, "Archives".

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use kith_object::id::Cid;
use kith_object::tree::{self, TREE_DEPTH_MAX};
use kith_object::unixfs::{FileNode, Node, NodeLink, read_node};

/// Most names that something may unfold to.
pub(crate) const NAMES_MAX: usize = 2_000_000;
/// Deepest tree over a file, and over the parts of a folder; with two links a node that is more than any disk holds.
const DEPTH_MAX: usize = 32;
/// Blocks that are said to be needed soon.
const AHEAD: usize = 128;

/// Where blocks come from; each is checked against its CID by whoever gives it.
pub(crate) trait Blocks {
    /// The block of that CID.
    fn block(&self, cid: &Cid) -> io::Result<Bytes>;

    /// These are needed next, in this order.
    fn ahead(&self, cids: &mut dyn Iterator<Item = Cid>) {
        let _ = cids;
    }
}

/// What is made of it. `path` is where it stands below the root, which itself has none.
pub(crate) trait Maker {
    /// A thing made.
    type Made;

    /// A file of that many bytes.
    fn file(&mut self, path: &[Vec<u8>], size: u64, bytes: &mut dyn Read)
    -> io::Result<Self::Made>;

    /// A symlink to that target.
    fn symlink(&mut self, path: &[Vec<u8>], target: &[u8]) -> io::Result<Self::Made>;

    /// What follows stands in this folder, until it is made.
    fn begin_folder(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let _ = path;
        Ok(())
    }

    /// A folder of what was made, by name, in order.
    fn folder(
        &mut self,
        path: &[Vec<u8>],
        children: Vec<(Vec<u8>, Self::Made)>,
    ) -> io::Result<Self::Made>;
}

/// Something in it is not as it has to be.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum DagError {
    #[error("it unfolds to more than its length can honestly stand for")]
    Unfolds,
    #[error("a part of a folder is none")]
    NoFolder,
    #[error("a part of a file is none")]
    NoFile,
    #[error("a part of a file is not as long as the part above says")]
    Size,
    #[error("a name in it is one that no folder can hold")]
    Name,
    #[error("a folder in it has one name twice")]
    Twice,
}

impl From<DagError> for io::Error {
    fn from(error: DagError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Makes what a root leads to.
pub(crate) fn unfold<M: Maker>(
    blocks: &dyn Blocks,
    root: &Cid,
    maker: &mut M,
) -> io::Result<M::Made> {
    let mut walk = Walk {
        blocks,
        maker,
        path: Vec::new(),
        names_left: NAMES_MAX,
    };
    walk.make(root)
}

struct Walk<'a, M> {
    blocks: &'a dyn Blocks,
    maker: &'a mut M,
    path: Vec<Vec<u8>>,
    names_left: usize,
}

impl<M: Maker> Walk<'_, M> {
    fn make(&mut self, cid: &Cid) -> io::Result<M::Made> {
        self.names_left = self.names_left.checked_sub(1).ok_or(DagError::Unfolds)?;
        if self.path.len() > TREE_DEPTH_MAX {
            return Err(DagError::Unfolds.into());
        }
        match node(self.blocks, cid)? {
            Node::File(file) => {
                let mut reader = FileReader {
                    blocks: self.blocks,
                    todo: Vec::new(),
                    current: Bytes::new(),
                };
                let size = file.size;
                reader.begin(file, 0);
                self.maker.file(&self.path, size, &mut reader)
            }
            Node::Symlink(target) => self.maker.symlink(&self.path, &target),
            Node::Folder(entries) => self.folder(entries),
            Node::Shard { entries, parts } => {
                let mut all = entries;
                let mut todo: Vec<(Cid, usize)> = parts.into_iter().map(|part| (part, 0)).collect();
                while let Some((part, below)) = todo.pop() {
                    self.blocks
                        .ahead(&mut todo.iter().rev().take(AHEAD).map(|(cid, _)| *cid));
                    let Node::Shard { entries, parts } = node(self.blocks, &part)? else {
                        return Err(DagError::NoFolder.into());
                    };
                    if below > DEPTH_MAX || all.len() + todo.len() > NAMES_MAX {
                        return Err(DagError::Unfolds.into());
                    }
                    all.extend(entries);
                    todo.extend(parts.into_iter().map(|part| (part, below + 1)));
                }
                self.folder(all)
            }
        }
    }

    fn folder(&mut self, mut entries: Vec<(Vec<u8>, Cid)>) -> io::Result<M::Made> {
        entries.sort();
        let names = entries.iter().map(|(name, _)| name);
        if names
            .clone()
            .zip(names.skip(1))
            .any(|(one, next)| one == next)
        {
            return Err(DagError::Twice.into());
        }
        if entries.iter().any(|(name, _)| !tree::is_name(name)) {
            return Err(DagError::Name.into());
        }
        self.maker.begin_folder(&self.path)?;
        let mut children = Vec::with_capacity(entries.len());
        for (at, (name, cid)) in entries.iter().enumerate() {
            let next = entries.iter().skip(at + 1).take(AHEAD);
            self.blocks.ahead(&mut next.map(|(_, cid)| *cid));
            self.path.push(name.clone());
            let child = self.make(cid)?;
            self.path.pop();
            children.push((name.clone(), child));
        }
        self.maker.folder(&self.path, children)
    }
}

fn node(blocks: &dyn Blocks, cid: &Cid) -> io::Result<Node> {
    // An identity CID is its own block.
    let (version, _, hash, len) = cid.prefix();
    let block = if (version, hash) == (1, 0) {
        let bytes = cid.to_bytes();
        let from = bytes.len() - usize::try_from(len).unwrap_or(0).min(bytes.len());
        Bytes::from(bytes).slice(from..)
    } else {
        blocks.block(cid)?
    };
    read_node(cid, &block).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The bytes of a file, in order.
struct FileReader<'a> {
    blocks: &'a dyn Blocks,
    /// Parts to come, the next one last, and how deep each stands.
    todo: Vec<(NodeLink, usize)>,
    current: Bytes,
}

impl FileReader<'_> {
    fn begin(&mut self, node: FileNode, depth: usize) {
        self.current = node.data.into();
        let parts = node.links.into_iter().rev();
        // Parts of no bytes would make work without end.
        let parts = parts.filter(|part| part.size > 0);
        self.todo.extend(parts.map(|part| (part, depth + 1)));
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let next = self.todo.iter().rev().take(AHEAD);
            self.blocks.ahead(&mut next.map(|(part, _)| part.cid));
            let Some((part, depth)) = self.todo.pop() else {
                return Ok(0);
            };
            let Node::File(file) = node(self.blocks, &part.cid)? else {
                return Err(DagError::NoFile.into());
            };
            // Sizes add up in every node, so what is promised is what comes.
            if file.size != part.size || depth > DEPTH_MAX {
                return Err(DagError::Size.into());
            }
            self.begin(file, depth);
        }
        let len = self.current.len().min(buffer.len());
        if let Some(room) = buffer.get_mut(..len) {
            self.current.copy_to_slice(room);
        }
        Ok(len)
    }
}
