//! Where the tree keeps its versions: rows in pages, everything that repeats written once.
//!
//! A million files of twenty-byte names take about 250 MB here: 56 for a version, 76 for its link, 40 for its inode, the name, and eight to
//! twelve for each of the four indexes.

use std::borrow::Cow;
use std::cmp::Ordering;

use kith_object::id::{DeviceId, EntryId, InodeId};
use kith_object::object::ObjectLink;
use kith_object::seal::BlockKey;
use kith_object::time::Hlc;
use kith_object::tree::FileKind;

use super::record::{ROOT, Record, VersionId, VersionInfo};
use super::slab::{NameAt, Names, NamesMark, Slab};
use super::sorted::Sorted;

/// No row.
pub(super) const NONE: u32 = u32::MAX;

/// Row of the root folder.
pub(super) const ROOT_ROW: u32 = 0;

/// One version.
pub(super) struct Version {
    pub(super) entry: u32,
    pub(super) index: u32,
    pub(super) inode: u32,
    pub(super) parent: u32,
    name: NameAt,
    mtime_ms: u64,
    link: u32,
    replaces: u32,
    /// How many versions of the same inode replace this one.
    pub(super) replaced: u32,
    /// Another version of the inode.
    next: u32,
    mode: u16,
    pub(super) kind: FileKind,
    pub(super) deleted: bool,
}

const BLANK_VERSION: Version = Version {
    entry: NONE,
    index: 0,
    inode: NONE,
    parent: NONE,
    name: NameAt::NOWHERE,
    mtime_ms: 0,
    link: NONE,
    replaces: NONE,
    replaced: 0,
    next: NONE,
    mode: 0,
    kind: FileKind::File,
    deleted: true,
};

/// One inode: named by a version of its own, or as the parent in one of another.
pub(super) struct Inode {
    pub(super) id: InodeId,
    /// The only head; [`NONE`] without versions; [`MANY`] if the tree keeps a list.
    pub(super) head: u32,
    /// A version; the others hang on it.
    first: u32,
    /// The folder it is shown in.
    pub(super) parent: u32,
    /// The version that gave it its name there; [`NONE`] without versions.
    pub(super) place: u32,
    /// How many things are shown in it.
    pub(super) support: u32,
    /// How many versions name it as their parent.
    pub(super) named: u32,
}

/// In [`Inode::head`]: several heads.
pub(super) const MANY: u32 = u32::MAX - 1;

struct Entry {
    id: EntryId,
    hlc: Hlc,
    author: u32,
    versions: u32,
}

/// All versions, inodes, entries, links and names, and the ways to find them.
#[derive(Default)]
pub(super) struct Rows {
    versions: Slab<Version>,
    by_version: Sorted,
    inodes: Slab<Inode>,
    by_inode: Sorted,
    entries: Slab<Entry>,
    by_entry: Sorted,
    authors: Vec<DeviceId>,
    links: Slab<(ObjectLink, u32)>,
    by_link: Sorted,
    replaces: Slab<Box<[VersionId]>>,
    names: Names,
}

/// What decides between versions: the stamp, then the id.
pub(super) type Rank = (Hlc, VersionId);

fn prefix(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |first| u32::from_be_bytes(*first))
}

fn link_order(a: &ObjectLink, b: &ObjectLink) -> Ordering {
    let key = |link: &ObjectLink| (link.digest, *link.key.expose(), link.size);
    key(a).cmp(&key(b))
}

impl Rows {
    pub(super) fn new() -> Self {
        let mut rows = Self::default();
        let root = rows.inode(ROOT);
        debug_assert_eq!(root, ROOT_ROW);
        rows
    }

    // Inodes.

    pub(super) fn find_inode(&self, id: InodeId) -> Option<u32> {
        self.by_inode
            .find(prefix(&id.0), |row| self.inodes.get(row).id.cmp(&id))
    }

    /// The row of that inode, made if it is new.
    pub(super) fn inode(&mut self, id: InodeId) -> u32 {
        if let Some(row) = self.find_inode(id) {
            return row;
        }
        let row = self.inodes.insert(Inode {
            id,
            head: NONE,
            first: NONE,
            parent: ROOT_ROW,
            place: NONE,
            support: 0,
            named: 0,
        });
        let inodes = &self.inodes;
        self.by_inode
            .insert(prefix(&id.0), row, |other| inodes.get(other).id.cmp(&id));
        row
    }

    pub(super) fn at(&self, inode: u32) -> &Inode {
        self.inodes.get(inode)
    }

    pub(super) fn at_mut(&mut self, inode: u32) -> &mut Inode {
        self.inodes.get_mut(inode)
    }

    pub(super) fn all_inodes(&self) -> impl Iterator<Item = u32> {
        self.by_inode.rows()
    }

    /// Forgets an inode that no version names any more; says whether it did.
    pub(super) fn forget_unnamed(&mut self, inode: u32) -> bool {
        let row = self.inodes.get(inode);
        if inode == ROOT_ROW || row.named > 0 || row.first != NONE {
            return false;
        }
        let id = row.id;
        if self.find_inode(id) != Some(inode) {
            return false;
        }
        let inodes = &self.inodes;
        self.by_inode
            .remove(prefix(&id.0), |other| inodes.get(other).id.cmp(&id));
        let blank = Inode {
            id: ROOT,
            head: NONE,
            first: NONE,
            parent: ROOT_ROW,
            place: NONE,
            support: 0,
            named: 0,
        };
        self.inodes.remove(inode, blank);
        true
    }

    /// The versions of an inode, in no particular order.
    pub(super) fn versions_of(&self, inode: u32) -> impl Iterator<Item = u32> {
        let start = self.inodes.get(inode).first;
        std::iter::successors((start != NONE).then_some(start), |row| {
            let next = self.versions.get(*row).next;
            (next != NONE).then_some(next)
        })
    }

    // Versions.

    pub(super) fn version(&self, row: u32) -> &Version {
        self.versions.get(row)
    }

    pub(super) fn version_mut(&mut self, row: u32) -> &mut Version {
        self.versions.get_mut(row)
    }

    fn find_entry(&self, id: EntryId) -> Option<u32> {
        self.by_entry
            .find(prefix(&id.0), |row| self.entries.get(row).id.cmp(&id))
    }

    pub(super) fn find_version(&self, id: VersionId) -> Option<u32> {
        let entry = self.find_entry(id.entry)?;
        self.by_version
            .find(entry, |row| self.versions.get(row).index.cmp(&id.index))
    }

    /// The versions of an entry.
    pub(super) fn versions_in(&self, id: EntryId) -> Vec<u32> {
        let Some(entry) = self.find_entry(id) else {
            return Vec::new();
        };
        let first = self
            .by_version
            .from(entry, |row| self.versions.get(row).index.cmp(&0));
        first
            .take_while(|(of, _)| *of == entry)
            .map(|(_, row)| row)
            .collect()
    }

    /// The newest stamp of any entry that has versions here.
    pub(super) fn newest(&self) -> Option<Hlc> {
        self.by_entry
            .rows()
            .map(|row| self.entries.get(row).hlc)
            .max()
    }

    pub(super) fn all_versions(&self) -> impl Iterator<Item = u32> {
        self.by_version.rows()
    }

    pub(super) fn count(&self) -> usize {
        self.by_version.len()
    }

    /// Adds a version of that inode that is not there yet. Its parent gets a row; nothing else about either changes but the counts.
    pub(super) fn insert(&mut self, inode: u32, info: VersionInfo, record: &Record) -> u32 {
        let parent = self.inode(record.parent);
        self.inodes.get_mut(parent).named += 1;
        let entry = self.entry(&info);
        self.entries.get_mut(entry).versions += 1;
        let link = record.link.as_ref().map_or(NONE, |link| self.link(link));
        let replaces = if record.replaces.is_empty() {
            NONE
        } else {
            self.replaces
                .insert(record.replaces.clone().into_boxed_slice())
        };
        let version = Version {
            entry,
            index: info.id.index,
            inode,
            parent,
            name: self.names.insert(&record.name),
            mtime_ms: record.mtime_ms,
            link,
            replaces,
            replaced: 0,
            next: self.inodes.get(inode).first,
            mode: u16::try_from(record.mode).expect("checked to be within the permission bits"),
            kind: record.kind,
            deleted: record.deleted,
        };
        let row = self.versions.insert(version);
        self.inodes.get_mut(inode).first = row;
        let versions = &self.versions;
        self.by_version.insert(entry, row, |other| {
            versions.get(other).index.cmp(&info.id.index)
        });
        row
    }

    fn entry(&mut self, info: &VersionInfo) -> u32 {
        if let Some(row) = self.find_entry(info.id.entry) {
            return row;
        }
        let author = self
            .authors
            .iter()
            .position(|author| *author == info.author)
            .unwrap_or_else(|| {
                self.authors.push(info.author);
                self.authors.len() - 1
            });
        let id = info.id.entry;
        let row = self.entries.insert(Entry {
            id,
            hlc: info.hlc,
            author: u32::try_from(author).expect("a mesh has a few devices"),
            versions: 0,
        });
        let entries = &self.entries;
        self.by_entry
            .insert(prefix(&id.0), row, |other| entries.get(other).id.cmp(&id));
        row
    }

    fn link(&mut self, link: &ObjectLink) -> u32 {
        let first = prefix(&link.digest);
        let links = &self.links;
        if let Some(row) = self
            .by_link
            .find(first, |other| link_order(&links.get(other).0, link))
        {
            self.links.get_mut(row).1 += 1;
            return row;
        }
        let row = self.links.insert((link.clone(), 1));
        let links = &self.links;
        self.by_link
            .insert(first, row, |other| link_order(&links.get(other).0, link));
        row
    }

    /// Removes a version, and what nothing else needs with it; but not its inode or parent, see [`Rows::forget_unnamed`].
    pub(super) fn remove(&mut self, row: u32) {
        let version = std::mem::replace(self.versions.get_mut(row), BLANK_VERSION);
        let versions = &self.versions;
        // The row is blank by now: it stands where its index says, so compare by row first.
        self.by_version.remove(version.entry, |other| {
            let index = if other == row {
                version.index
            } else {
                versions.get(other).index
            };
            index.cmp(&version.index)
        });
        self.versions.free(row);
        self.unchain(version.inode, row, version.next);
        self.inodes.get_mut(version.parent).named -= 1;
        if version.replaces != NONE {
            self.replaces.remove(version.replaces, Box::default());
        }
        if version.link != NONE {
            self.release_link(version.link);
        }
        let entry = self.entries.get_mut(version.entry);
        entry.versions -= 1;
        if entry.versions == 0 {
            let id = entry.id;
            let entries = &self.entries;
            self.by_entry
                .remove(prefix(&id.0), |other| entries.get(other).id.cmp(&id));
            let blank = Entry {
                id: EntryId::default(),
                hlc: Hlc::default(),
                author: 0,
                versions: 0,
            };
            self.entries.remove(version.entry, blank);
        }
    }

    fn unchain(&mut self, inode: u32, row: u32, next: u32) {
        let first = self.inodes.get(inode).first;
        if first == row {
            self.inodes.get_mut(inode).first = next;
            return;
        }
        let mut at = first;
        while self.versions.get(at).next != row {
            at = self.versions.get(at).next;
        }
        self.versions.get_mut(at).next = next;
    }

    fn release_link(&mut self, row: u32) {
        let (link, uses) = self.links.get_mut(row);
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        let link = link.clone();
        let links = &self.links;
        self.by_link.remove(prefix(&link.digest), |other| {
            link_order(&links.get(other).0, &link)
        });
        let blank = ObjectLink {
            digest: [0; 32],
            key: BlockKey::new([0; 32]),
            size: 0,
        };
        self.links.remove(row, (blank, 0));
    }

    pub(super) fn info(&self, row: u32) -> VersionInfo {
        let version = self.versions.get(row);
        let entry = self.entries.get(version.entry);
        let author = usize::try_from(entry.author)
            .ok()
            .and_then(|author| self.authors.get(author));
        VersionInfo {
            id: VersionId {
                entry: entry.id,
                index: version.index,
            },
            author: *author.expect("authors are never removed"),
            hlc: entry.hlc,
        }
    }

    pub(super) fn rank(&self, row: u32) -> Rank {
        let version = self.versions.get(row);
        let entry = self.entries.get(version.entry);
        let id = VersionId {
            entry: entry.id,
            index: version.index,
        };
        (entry.hlc, id)
    }

    pub(super) fn name(&self, row: u32) -> &[u8] {
        self.names.get(self.versions.get(row).name)
    }

    pub(super) fn replaces(&self, row: u32) -> &[VersionId] {
        match self.versions.get(row).replaces {
            NONE => &[],
            replaces => self.replaces.get(replaces),
        }
    }

    pub(super) fn link_in(&self, row: u32) -> Option<&ObjectLink> {
        match self.versions.get(row).link {
            NONE => None,
            link => Some(&self.links.get(link).0),
        }
    }

    pub(super) fn mtime_ms(&self, row: u32) -> u64 {
        self.versions.get(row).mtime_ms
    }

    pub(super) fn mode(&self, row: u32) -> u32 {
        u32::from(self.versions.get(row).mode)
    }

    pub(super) fn size(&self, row: u32) -> u64 {
        match self.versions.get(row).kind {
            FileKind::Folder => 0,
            FileKind::File | FileKind::Symlink => self.link_in(row).map_or(0, |link| link.size),
        }
    }

    /// The record as it came.
    pub(super) fn record(&self, row: u32) -> Record {
        let version = self.versions.get(row);
        Record {
            inode: self.inodes.get(version.inode).id,
            replaces: self.replaces(row).to_vec(),
            parent: self.inodes.get(version.parent).id,
            name: self.name(row).to_vec(),
            kind: version.kind,
            link: self.link_in(row).cloned(),
            mtime_ms: version.mtime_ms,
            mode: u32::from(version.mode),
            deleted: version.deleted,
        }
    }

    // Links.

    /// The links of that digest: one, unless a device wrote a wrong key.
    pub(super) fn links_of(&self, digest: [u8; 32]) -> impl Iterator<Item = &ObjectLink> {
        let first = prefix(&digest);
        self.by_link
            .from(first, move |row| {
                self.links
                    .get(row)
                    .0
                    .digest
                    .cmp(&digest)
                    .then(Ordering::Greater)
            })
            .map(|(_, row)| &self.links.get(row).0)
            .take_while(move |link| link.digest == digest)
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &ObjectLink> {
        self.by_link.rows().map(|row| &self.links.get(row).0)
    }

    // Names.

    pub(super) fn names_mark(&self) -> NamesMark {
        self.names.mark()
    }

    /// Drops the names that came after the mark, whose versions are gone.
    pub(super) fn names_back_to(&mut self, mark: NamesMark) {
        self.names.back_to(mark);
    }

    /// The name under which an inode without versions shows: a folder that others stand in, but whose own versions do not count.
    pub(super) fn lost_name(&self, inode: u32) -> Cow<'_, [u8]> {
        Cow::Owned(format!("lost~{}", self.inodes.get(inode).id.short()).into_bytes())
    }
}
