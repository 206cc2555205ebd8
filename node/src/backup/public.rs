//! Plain archives, for anybody to read: files and folders as UnixFS.
//!
//! Spec: `protocol/spec/unixfs.md`, "Archives".

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};
use kith_object::car::{self, Block, CarError, Item as Section, Reader};
use kith_object::id::Cid;
use kith_object::object::ObjectLink;
use kith_object::seal::Kind;
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX, TREE_DEPTH_MAX};
use kith_object::unixfs::{
    self, FileBuilder, FolderError, Node, NodeLink, Profile, Written, placeholder, read_node,
};

use super::reading::{Place, next, read_at};
use super::{ArchiveError, NewFile, Seen, open};
use crate::ingest::{Ingest, Stored};
use crate::restore::Item;
use crate::source::Source;

/// Longest target of a symlink.
const TARGET_BYTES_MAX: u64 = 4096;
/// Most names that something may unfold to, written or read.
const NAMES_MAX: usize = 2_000_000;
/// Most blocks of an archive that is read: their places are held in memory.
const BLOCKS_MAX: usize = 4 << 20;
/// Deepest tree over a file; with two links a node that is more than any disk holds.
const FILE_DEPTH_MAX: usize = 32;
/// How many times its own length an archive may unfold to, beside a first GiB: a file of zeros does so honestly, some blocks that stand for all there is
/// do not.
const UNFOLD_MAX: u64 = 1024;

/// Writes files and folders into an archive.
pub(crate) struct PublicWriter<'a> {
    source: &'a Source,
    profile: Profile,
    file: NewFile,
    dest: PathBuf,
    written: BTreeSet<Cid>,
    names: usize,
    seen: &'a Seen,
}

impl<'a> PublicWriter<'a> {
    /// Writes the item; its root is the archive's only one.
    pub(crate) fn write(
        source: &'a Source,
        profile: Profile,
        item: Item,
        dest: &Path,
        force: bool,
        seen: &'a Seen,
    ) -> Result<Cid, ArchiveError> {
        let mut file = NewFile::create(dest, force)?;
        // The root comes to be last. Its CID has the length of this one.
        file.write(&car::header(&[placeholder(profile)]))?;
        let mut writer = Self {
            source,
            profile,
            file,
            dest: dest.to_owned(),
            written: BTreeSet::new(),
            names: 0,
            seen,
        };
        let root = writer.item(item, 0)?.cid;
        writer.file.write_beginning(&car::header(&[root]))?;
        seen.bytes.store(writer.file.len(), Ordering::Relaxed);
        writer.file.finish()?;
        Ok(root)
    }

    fn item(&mut self, item: Item, depth: usize) -> Result<Written, ArchiveError> {
        self.names += 1;
        if depth > TREE_DEPTH_MAX || self.names > NAMES_MAX {
            return Err(ArchiveError::Unfolds);
        }
        match item {
            Item::Leaf {
                kind: FileKind::Symlink,
                link,
                ..
            } => {
                let target = self
                    .source
                    .read_whole(&link, TARGET_BYTES_MAX)
                    .map_err(ArchiveError::block)?;
                let Some((target, _)) = target else {
                    return Err(ArchiveError::Unfolds);
                };
                let profile = self.profile;
                let written =
                    unixfs::symlink(profile, &target, &mut |cid, block| self.keep(cid, &block));
                self.done(written)
            }
            Item::Leaf { link, .. } => self.file(&link),
            Item::Folder { mut children, .. } => {
                children.sort_by(|one, other| one.0.cmp(&other.0));
                self.folder(children, depth)
            }
            Item::Snapshot { link, .. } => self.snapshot(&link, depth),
            Item::Root { link } => match self.source.first_kind(&link) {
                Ok(Some(Kind::Tree)) => self.snapshot(&link, depth),
                Ok(_) => self.file(&link),
                Err(error) => Err(ArchiveError::block(error)),
            },
        }
    }

    fn snapshot(&mut self, link: &ObjectLink, depth: usize) -> Result<Written, ArchiveError> {
        let listing = self.source.read_whole(link, TREE_BYTES_MAX);
        let listing = listing.map_err(ArchiveError::block)?;
        let entries = listing.and_then(|(bytes, _)| tree::decode(&bytes).ok());
        let entries =
            entries.ok_or_else(|| ArchiveError::Device("a listing in it is malformed".into()))?;
        let children = entries.into_iter().map(|entry| {
            let (link, mode, mtime_ms) = (entry.link, entry.mode, entry.mtime_ms);
            let item = match entry.kind {
                FileKind::Folder => Item::Snapshot {
                    link,
                    mode,
                    mtime_ms,
                },
                kind => Item::Leaf {
                    kind,
                    link,
                    mode,
                    mtime_ms,
                },
            };
            (entry.name, item)
        });
        self.folder(children.collect(), depth)
    }

    fn folder(
        &mut self,
        children: Vec<(Vec<u8>, Item)>,
        depth: usize,
    ) -> Result<Written, ArchiveError> {
        let mut entries = Vec::with_capacity(children.len());
        for (name, child) in children {
            entries.push((name, self.item(child, depth + 1)?));
        }
        let profile = self.profile;
        let written = unixfs::folder(profile, &entries, &mut |cid, block| self.keep(cid, &block));
        match written {
            Err(FolderError::TooLong) => Err(ArchiveError::Sharded),
            Err(FolderError::Sink(error)) => self.done(Err(error)),
            Ok(written) => Ok(written),
        }
    }

    fn file(&mut self, link: &ObjectLink) -> Result<Written, ArchiveError> {
        let mut builder = FileBuilder::new(self.profile);
        let leaf_bytes = self.profile.leaf_bytes();
        let mut leaf: Vec<u8> = Vec::new();
        let source = self.source;
        source
            .read(link, &mut |mut data| {
                while data.has_remaining() {
                    let more = data.split_to(data.len().min(leaf_bytes - leaf.len()));
                    leaf.extend_from_slice(&more);
                    if leaf.len() == leaf_bytes {
                        builder.leaf(&leaf, &mut |cid, block| self.keep(cid, &block))?;
                        leaf.clear();
                    }
                }
                Ok(())
            })
            .map_err(ArchiveError::block)?;
        let sink = &mut |cid, block: Bytes| self.keep(cid, &block);
        if !leaf.is_empty()
            && let Err(error) = builder.leaf(&leaf, sink)
        {
            return self.done(Err(error));
        }
        let written = builder.finish(sink);
        self.done(written)
    }

    fn keep(&mut self, cid: Cid, block: &[u8]) -> io::Result<()> {
        if !self.written.insert(cid) {
            return Ok(());
        }
        let head = car::section_head(&cid, block.len());
        let written = self.file.write(&head).and_then(|()| self.file.write(block));
        self.seen.blocks.fetch_add(1, Ordering::Relaxed);
        self.seen.bytes.store(self.file.len(), Ordering::Relaxed);
        written.map_err(|error| match error {
            ArchiveError::Write { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    fn done(&self, written: io::Result<Written>) -> Result<Written, ArchiveError> {
        written.map_err(|source| ArchiveError::Write {
            path: self.dest.clone(),
            source,
        })
    }
}

/// An archive of UnixFS, open to be read.
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    places: BTreeMap<Cid, Place>,
    pub(crate) roots: Vec<Cid>,
    /// Bytes of blocks that may still be read, and names it may still unfold to.
    bytes_left: Cell<u64>,
    names_left: usize,
}

impl Archive {
    /// Finds out where its blocks are; all are checked.
    pub(crate) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let (file, len) = open(path).and_then(|file| {
            let len = file.metadata().map_err(|source| ArchiveError::Read {
                path: path.to_owned(),
                source,
            })?;
            Ok((file, len.len()))
        })?;
        let mut reader = Reader::open(file).map_err(|error| match error {
            CarError::Header => ArchiveError::NoArchive {
                path: path.to_owned(),
            },
            CarError::Read(source) => ArchiveError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        let mut places = BTreeMap::new();
        while let Some(item) = next(path, &mut reader)? {
            let Section::Block(Block { cid, offset, bytes }) = item else {
                continue;
            };
            if places.len() == BLOCKS_MAX {
                return Err(ArchiveError::TooMany);
            }
            if let Ok(len) = u32::try_from(bytes.len()) {
                places.insert(cid, Place { offset, len });
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            places,
            roots: reader.roots().to_vec(),
            bytes_left: Cell::new(len.saturating_mul(UNFOLD_MAX).saturating_add(1 << 30)),
            names_left: NAMES_MAX,
        })
    }

    /// Stores what a root leads to.
    pub(crate) fn store(&mut self, ingest: &Ingest, root: &Cid, now_ms: u64) -> io::Result<Stored> {
        self.stored(ingest, root, now_ms, 0)
    }

    fn stored(
        &mut self,
        ingest: &Ingest,
        cid: &Cid,
        now_ms: u64,
        depth: usize,
    ) -> io::Result<Stored> {
        self.names_left = self.names_left.checked_sub(1).ok_or_else(unfolds)?;
        if depth > TREE_DEPTH_MAX {
            return Err(unfolds());
        }
        match self.node(cid)? {
            Node::File(file) => {
                if file.size > self.bytes_left.get() {
                    return Err(unfolds());
                }
                let root = NodeLink {
                    cid: *cid,
                    size: file.size,
                };
                let mut reader = FileReader {
                    archive: self,
                    todo: vec![(root, 0)],
                    current: Bytes::new(),
                };
                ingest.stream(&mut reader, now_ms)
            }
            Node::Symlink(target) => ingest.symlink(&target, now_ms),
            Node::Folder(entries) => self.folder(ingest, entries, now_ms, depth),
            Node::Shard { entries, parts } => {
                let mut all = entries;
                let mut todo: Vec<(Cid, usize)> = parts.into_iter().map(|part| (part, 0)).collect();
                while let Some((part, below)) = todo.pop() {
                    let Node::Shard { entries, parts } = self.node(&part)? else {
                        return Err(malformed("a part of a folder is none"));
                    };
                    if below > FILE_DEPTH_MAX || all.len() + todo.len() > NAMES_MAX {
                        return Err(unfolds());
                    }
                    all.extend(entries);
                    todo.extend(parts.into_iter().map(|part| (part, below + 1)));
                }
                self.folder(ingest, all, now_ms, depth)
            }
        }
    }

    fn folder(
        &mut self,
        ingest: &Ingest,
        mut entries: Vec<(Vec<u8>, Cid)>,
        now_ms: u64,
        depth: usize,
    ) -> io::Result<Stored> {
        entries.sort();
        let mut children: Vec<(Vec<u8>, Stored)> = Vec::new();
        for (name, cid) in entries {
            if !tree::is_name(&name) {
                return Err(malformed("a name in it is one that no folder can hold"));
            }
            if children.last().is_some_and(|(last, _)| *last == name) {
                return Err(malformed("a folder in it has one name twice"));
            }
            let child = self.stored(ingest, &cid, now_ms, depth + 1)?;
            children.push((name, child));
        }
        ingest.folder(children, 0o755, now_ms)
    }

    fn node(&self, cid: &Cid) -> io::Result<Node> {
        let block = self.block(cid)?;
        read_node(cid, &block).map_err(io::Error::other)
    }

    fn block(&self, cid: &Cid) -> io::Result<Bytes> {
        // An identity CID is its own block.
        let (version, _, hash, len) = cid.prefix();
        if (version, hash) == (1, 0) {
            let bytes = cid.to_bytes();
            let from = bytes.len() - usize::try_from(len).unwrap_or(0).min(bytes.len());
            return Ok(Bytes::from(bytes).slice(from..));
        }
        let missing = || malformed(&format!("block {cid} is missing in it, or damaged"));
        let place = self.places.get(cid).ok_or_else(missing)?;
        let left = self.bytes_left.get().checked_sub(u64::from(place.len));
        self.bytes_left.set(left.ok_or_else(unfolds)?);
        let bytes = read_at(&self.path, &self.file, *place).map_err(io::Error::other)?;
        // The file may have changed since.
        if car::verifies(cid, &bytes) {
            Ok(bytes)
        } else {
            Err(missing())
        }
    }
}

fn unfolds() -> io::Error {
    io::Error::other(ArchiveError::Unfolds)
}

fn malformed(what: &str) -> io::Error {
    io::Error::other(ArchiveError::Device(what.to_owned()))
}

/// The bytes of a file in an archive, in order.
struct FileReader<'a> {
    archive: &'a Archive,
    /// Parts to come, the next one last, and how deep each stands.
    todo: Vec<(NodeLink, usize)>,
    current: Bytes,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some((part, depth)) = self.todo.pop() else {
                return Ok(0);
            };
            let Node::File(node) = self.archive.node(&part.cid)? else {
                return Err(malformed("a part of a file is none"));
            };
            // Sizes add up in every node, so what is promised is what comes.
            if node.size != part.size || depth > FILE_DEPTH_MAX {
                return Err(malformed(
                    "a part of a file is not as long as the part above says",
                ));
            }
            self.current = node.data.into();
            let parts = node.links.into_iter().rev();
            // Parts of no bytes would make work without end.
            let parts = parts.filter(|part| part.size > 0);
            self.todo.extend(parts.map(|part| (part, depth + 1)));
        }
        let len = self.current.len().min(buffer.len());
        if let Some(room) = buffer.get_mut(..len) {
            self.current.copy_to_slice(room);
        }
        Ok(len)
    }
}
