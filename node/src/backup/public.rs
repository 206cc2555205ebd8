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
use kith_object::unixfs::{self, FileBuilder, FolderError, Profile, Written, placeholder};

use super::reading::{Place, next, read_at};
use super::{ArchiveError, NewFile, Seen, open};
use crate::ingest::{Ingest, Stored};
use crate::outside::dag::{self, Blocks, DagError, Maker, NAMES_MAX};
use crate::restore::Item;
use crate::source::Source;

/// Longest target of a symlink.
const TARGET_BYTES_MAX: u64 = 4096;
/// Most blocks of an archive that is read: their places are held in memory.
const BLOCKS_MAX: usize = 4 << 20;
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
            Err(FolderError::Collide) => Err(ArchiveError::Sharded),
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
    /// Bytes of blocks that may still be read.
    bytes_left: Cell<u64>,
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
        })
    }

    /// Stores what a root leads to.
    pub(crate) fn store(&self, ingest: &Ingest, root: &Cid, now_ms: u64) -> io::Result<Stored> {
        let mut maker = IntoStore {
            ingest,
            now_ms,
            archive: self,
        };
        dag::unfold(self, root, &mut maker)
    }
}

impl Blocks for Archive {
    fn block(&self, cid: &Cid) -> io::Result<Bytes> {
        let missing = || malformed(&format!("block {cid} is missing in it, or damaged"));
        let place = self.places.get(cid).ok_or_else(missing)?;
        let left = self.bytes_left.get().checked_sub(u64::from(place.len));
        self.bytes_left.set(left.ok_or(DagError::Unfolds)?);
        let bytes = read_at(&self.path, &self.file, *place).map_err(io::Error::other)?;
        // The file may have changed since.
        if car::verifies(cid, &bytes) {
            Ok(bytes)
        } else {
            Err(missing())
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::other(ArchiveError::Device(what.to_owned()))
}

/// Makes sealed objects of what an archive holds.
struct IntoStore<'a> {
    ingest: &'a Ingest,
    now_ms: u64,
    archive: &'a Archive,
}

impl Maker for IntoStore<'_> {
    type Made = Stored;

    fn file(&mut self, _: &[Vec<u8>], size: u64, bytes: &mut dyn Read) -> io::Result<Stored> {
        if size > self.archive.bytes_left.get() {
            return Err(DagError::Unfolds.into());
        }
        self.ingest.stream(bytes, self.now_ms)
    }

    fn symlink(&mut self, _: &[Vec<u8>], target: &[u8]) -> io::Result<Stored> {
        self.ingest.symlink(target, self.now_ms)
    }

    fn folder(&mut self, _: &[Vec<u8>], children: Vec<(Vec<u8>, Stored)>) -> io::Result<Stored> {
        self.ingest.folder(children, 0o755, self.now_ms)
    }
}
