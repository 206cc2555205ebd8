//! Reading the tree: names without clashes, listings, paths, history.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use data_encoding::HEXLOWER;
use kith_object::id::InodeId;
use kith_object::object::ObjectLink;
use kith_object::tree::{FileKind, NAME_BYTES_MAX};

use super::path::TreePath;
use super::record::{VersionId, VersionInfo};
use super::rows::{NONE, ROOT_ROW, Rank};
use super::tree::{Item, Tree};

/// `~` and eight hexadecimal digits: what tells things of one name apart.
const SUFFIX_BYTES: usize = 9;

/// Longest part of a name that keeps room for the suffix.
const STEM_BYTES_MAX: usize = NAME_BYTES_MAX - SUFFIX_BYTES;

/// Stems as long as this may be those of a longer name, cut at a character.
const STEM_BYTES_CUT: usize = STEM_BYTES_MAX - 3;

/// One thing in a folder, as it shows there.
///
/// Spec: `protocol/spec/names.md`, "Names shown".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name, with a suffix if several would have the same.
    pub name: Vec<u8>,
    /// What stands there; of folders of one name that show as one, the oldest.
    pub inode: InodeId,
    /// File, folder or symlink.
    pub kind: FileKind,
    /// Size of its bytes; zero for a folder.
    pub size: u64,
    /// Time of last change in milliseconds since 1970.
    pub mtime_ms: u64,
    /// Permission bits.
    pub mode: u32,
    /// Its bytes; for a folder the snapshot of the put that wrote it, if any.
    pub link: Option<ObjectLink>,
    /// The version shown. The root has none, and neither has a folder whose own versions do not count while others stand in it.
    pub version: Option<VersionInfo>,
    /// Devices changed it without knowing of each other: it has several current versions.
    pub conflict: bool,
}

/// One version of what stands, or ever stood, at a path.
///
/// Spec: `protocol/spec/names.md`, "History".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryItem {
    /// Which version, by whom, when.
    pub version: VersionInfo,
    /// Of what.
    pub inode: InodeId,
    /// Where it stood, by the present names of the folders above; `None` if that path has become too long to write.
    pub path: Option<TreePath>,
    /// File, folder or symlink.
    pub kind: FileKind,
    /// Size of its bytes; zero for a folder.
    pub size: u64,
    /// Time of last change in milliseconds since 1970.
    pub mtime_ms: u64,
    /// Permission bits.
    pub mode: u32,
    /// Its bytes.
    pub link: Option<ObjectLink>,
    /// This version removed it.
    pub deleted: bool,
    /// No later version replaces this one.
    pub current: bool,
}

/// What one name in a folder stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// Folders of one name, oldest first; they show as one.
    Folder(Vec<u32>),
    /// An inode with the bytes of its winner.
    File(u32),
    /// A head that did not win.
    Extra(u32),
}

/// Who comes first when several want one name: folders and files by age, then versions that lost.
type Claim = (bool, (bool, Option<Rank>), bool, InodeId);

/// Units that want one name, with that name.
type Group = (Vec<u8>, Vec<Unit>);

/// The part of a name that stays when a suffix comes: all of it, unless it is too long; never half of a character.
fn stem(name: &[u8]) -> &[u8] {
    let mut len = name.len();
    if len > STEM_BYTES_MAX {
        len = STEM_BYTES_MAX;
        let continues = |len: usize| {
            name.get(len)
                .is_some_and(|byte| (0x80..0xc0).contains(byte))
        };
        while len > STEM_BYTES_CUT && continues(len) {
            len -= 1;
        }
    }
    name.get(..len).unwrap_or(name)
}

/// The stem of a name that ends like one with a suffix.
fn without_suffix(name: &[u8]) -> Option<&[u8]> {
    let (stem, suffix) = name.split_at_checked(name.len().checked_sub(SUFFIX_BYTES)?)?;
    let (tilde, digits) = suffix.split_first()?;
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (*tilde == b'~' && digits.iter().all(hex) && !stem.is_empty()).then_some(stem)
}

impl Tree {
    /// What stands at the path.
    pub fn resolve(&self, path: &TreePath) -> Option<Listed> {
        if path.is_root() {
            return Some(root());
        }
        let (_, unit) = self.find(path)?;
        Some(self.listed(path.name()?.to_vec(), &unit))
    }

    /// What stands in the folder at the path, sorted by name; `None` if there is no such folder.
    pub fn list(&self, path: &TreePath) -> Option<Vec<Listed>> {
        let folder = self.folder(path)?;
        let units = self.units(&folder);
        Some(
            units
                .into_iter()
                .map(|(name, unit)| self.listed(name, &unit))
                .collect(),
        )
    }

    /// Every version of all that stands or ever stood at the path, latest first: deleted things, and folders long gone, too.
    pub fn history(&self, path: &TreePath) -> Vec<HistoryItem> {
        let mut ever = BTreeSet::from([ROOT_ROW]);
        let mut now = Some(vec![ROOT_ROW]);
        for name in path.names() {
            let mut next: BTreeSet<u32> = BTreeSet::new();
            for row in self.rows.all_versions() {
                let version = self.rows.version(row);
                if ever.contains(&version.parent) && self.rows.name(row) == name {
                    next.insert(version.inode);
                }
            }
            let unit = now.and_then(|folder| self.lookup(&folder, name));
            now = match unit {
                Some(Unit::Folder(inodes)) => {
                    next.extend(&inodes);
                    Some(inodes)
                }
                Some(Unit::File(inode)) => {
                    next.insert(inode);
                    None
                }
                Some(Unit::Extra(row)) => {
                    next.insert(self.rows.version(row).inode);
                    None
                }
                None => None,
            };
            ever = next;
        }
        let mut paths = BTreeMap::new();
        let mut rows: Vec<u32> = ever
            .iter()
            .flat_map(|inode| self.rows.versions_of(*inode))
            .collect();
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(self.rows.rank(*row)));
        rows.into_iter()
            .map(|row| self.history_item(row, &mut paths))
            .collect()
    }

    fn history_item(&self, row: u32, paths: &mut BTreeMap<u32, Option<TreePath>>) -> HistoryItem {
        let version = self.rows.version(row);
        let folder = paths
            .entry(version.parent)
            .or_insert_with(|| self.path_of_folder(version.parent));
        HistoryItem {
            version: self.rows.info(row),
            inode: self.rows.at(version.inode).id,
            path: folder
                .as_ref()
                .and_then(|folder| folder.child(self.rows.name(row)).ok()),
            kind: version.kind,
            size: self.rows.size(row),
            mtime_ms: self.rows.mtime_ms(row),
            mode: self.rows.mode(row),
            link: self.rows.link_in(row).cloned(),
            deleted: version.deleted,
            current: self.heads(version.inode).contains(&row),
        }
    }

    /// The paths at which several current versions wait for someone to choose.
    pub fn conflicts(&self) -> Vec<TreePath> {
        let contested = self
            .contested()
            .filter(|inode| self.live(*inode).nth(1).is_some());
        let paths = contested.filter_map(|inode| {
            let folder = self.path_of_folder(self.rows.at(inode).parent)?;
            let name = self.shown_name(&self.folder(&folder)?, inode)?;
            folder.child(&name).ok()
        });
        let paths: BTreeSet<TreePath> = paths.collect();
        paths.into_iter().collect()
    }

    /// A hash of all that shows: equal on two devices that see the same tree.
    ///
    /// Spec: `protocol/spec/names.md`, "Fingerprint".
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("kith names fingerprint 1");
        let mut folders = VecDeque::from([vec![ROOT_ROW]]);
        while let Some(folder) = folders.pop_front() {
            let units = self.units(&folder);
            hasher.update(&(units.len() as u64).to_le_bytes());
            for (name, unit) in units {
                let listed = self.listed(name, &unit);
                hasher.update(&(listed.name.len() as u64).to_le_bytes());
                hasher.update(&listed.name);
                hasher.update(&listed.inode.0);
                hasher.update(&[
                    listed.kind as u8,
                    u8::from(listed.conflict),
                    u8::from(listed.version.is_some()),
                ]);
                hasher.update(&listed.mtime_ms.to_le_bytes());
                hasher.update(&listed.mode.to_le_bytes());
                hasher.update(
                    &listed
                        .link
                        .map_or([0; ObjectLink::BYTES], |link| link.encode()),
                );
                let version = listed.version.map(|version| version.id).unwrap_or_default();
                hasher.update(&version.entry.0);
                hasher.update(&version.index.to_le_bytes());
                if let Unit::Folder(inodes) = unit {
                    folders.push_back(inodes);
                }
            }
        }
        *hasher.finalize().as_bytes()
    }

    // Paths.

    /// The folders that show as one at the path.
    pub(super) fn folder(&self, path: &TreePath) -> Option<Vec<u32>> {
        let mut folder = vec![ROOT_ROW];
        for name in path.names() {
            let Unit::Folder(inodes) = self.lookup(&folder, name)? else {
                return None;
            };
            folder = inodes;
        }
        Some(folder)
    }

    /// What stands at the path, with the folders that show as one around it; `None` for the root too.
    pub(super) fn find(&self, path: &TreePath) -> Option<(Vec<u32>, Unit)> {
        let name = path.name()?;
        let folder = self.folder(&path.parent()?)?;
        let unit = self.lookup(&folder, name)?;
        Some((folder, unit))
    }

    /// The path of a folder, or of what was one, by the names that show.
    pub(super) fn path_of_folder(&self, inode: u32) -> Option<TreePath> {
        let mut chain = Vec::new();
        let mut at = inode;
        while at != ROOT_ROW {
            chain.push(at);
            at = self.rows.at(at).parent;
        }
        let mut path = TreePath::root();
        let mut folder = vec![ROOT_ROW];
        for inode in chain.into_iter().rev() {
            let name = self.shown_name(&folder, inode);
            let name = name.unwrap_or_else(|| match self.rows.at(inode).place {
                NONE => self.rows.lost_name(inode).into_owned(),
                place => self.rows.name(place).to_vec(),
            });
            path = path.child(&name).ok()?;
            folder = match self.lookup(&folder, &name) {
                Some(Unit::Folder(inodes)) if inodes.contains(&inode) => inodes,
                _ => vec![inode],
            };
        }
        Some(path)
    }

    /// The name under which an inode itself, not a losing version of it, shows in a folder.
    fn shown_name(&self, folder: &[u32], inode: u32) -> Option<Vec<u8>> {
        let raw = match self.rows.at(inode).place {
            NONE => self.rows.lost_name(inode),
            place => Cow::Borrowed(self.rows.name(place)),
        };
        let units = self.settle_names(folder, self.family(folder, stem(&raw)));
        let found = units.into_iter().find(|(_, unit)| match unit {
            Unit::Folder(inodes) => inodes.contains(&inode),
            Unit::File(file) => *file == inode,
            Unit::Extra(_) => false,
        });
        found.map(|(name, _)| name)
    }

    // Names.

    /// What that name in a folder stands for.
    pub(super) fn lookup(&self, folder: &[u32], name: &[u8]) -> Option<Unit> {
        let units = self.group(folder, name);
        let plain = units
            .into_iter()
            .filter(|unit| !matches!(unit, Unit::Extra(_)));
        if let Some(unit) = plain.min_by_key(|unit| self.claim(unit)) {
            return Some(unit);
        }
        let stem = without_suffix(name)?;
        let units = self.settle_names(folder, self.family(folder, stem));
        units
            .into_iter()
            .find(|(shown, _)| shown == name)
            .map(|(_, unit)| unit)
    }

    /// All that shows in a folder, sorted by the names shown.
    pub(super) fn units(&self, folder: &[u32]) -> Vec<(Vec<u8>, Unit)> {
        let mut items: Vec<(Cow<'_, [u8]>, Item)> = Vec::new();
        for inode in folder {
            items.extend(
                self.items_from(*inode, b"")
                    .map(|item| (self.raw_name(item), item)),
            );
        }
        if folder.len() > 1 {
            items.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let mut shown = Vec::with_capacity(items.len());
        let mut long = BTreeSet::new();
        for run in items.chunk_by(|a, b| a.0 == b.0) {
            let [(name, _), ..] = run else { continue };
            let stem = stem(name);
            if stem.len() >= STEM_BYTES_CUT {
                if long.insert(stem.to_vec()) {
                    shown.extend(self.settle_names(folder, self.family(folder, stem)));
                }
                continue;
            }
            let units = self.merge(run.iter().map(|(_, item)| *item));
            match units.as_slice() {
                [Unit::Folder(_) | Unit::File(_)] => {
                    shown.extend(units.into_iter().map(|unit| (name.to_vec(), unit)))
                }
                _ => shown.extend(self.settle_names(folder, vec![(name.to_vec(), units)])),
            }
        }
        shown.sort_by(|a, b| a.0.cmp(&b.0));
        shown
    }

    /// Items of one name as units: folders become one.
    fn merge(&self, items: impl Iterator<Item = Item>) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut folders = Vec::new();
        for item in items {
            match item {
                Item::File(row) => units.push(Unit::File(self.rows.version(row).inode)),
                Item::Extra(row) => units.push(Unit::Extra(row)),
                Item::Folder(row) => folders.push(self.rows.version(row).inode),
                Item::Lost(inode) => folders.push(inode),
            }
        }
        if folders.len() > 1 {
            folders.sort_by_cached_key(|inode| (self.birth(*inode), self.rows.at(*inode).id));
        }
        if !folders.is_empty() {
            units.push(Unit::Folder(folders));
        }
        units
    }

    /// The units that want this very name.
    fn group(&self, folder: &[u32], name: &[u8]) -> Vec<Unit> {
        self.merge(folder.iter().flat_map(|inode| {
            let items = self.items_from(*inode, name);
            items.take_while(move |item| self.raw_name(*item).as_ref() == name)
        }))
    }

    /// The groups whose names have this stem: those that share suffixed names.
    fn family(&self, folder: &[u32], of: &[u8]) -> Vec<Group> {
        if of.len() < STEM_BYTES_CUT {
            return vec![(of.to_vec(), self.group(folder, of))];
        }
        let mut names = BTreeSet::new();
        for inode in folder {
            let items = self.items_from(*inode, of).map(|item| self.raw_name(item));
            let begin_so = items.take_while(|name| name.starts_with(of));
            names.extend(
                begin_so
                    .filter(|name| stem(name) == of)
                    .map(Cow::into_owned),
            );
        }
        names
            .into_iter()
            .map(|name| {
                let units = self.group(folder, &name);
                (name, units)
            })
            .collect()
    }

    fn claim(&self, unit: &Unit) -> Claim {
        match unit {
            Unit::Folder(inodes) => {
                let oldest = inodes.first().copied().unwrap_or(ROOT_ROW);
                (false, self.birth(oldest), true, self.rows.at(oldest).id)
            }
            Unit::File(inode) => (false, self.birth(*inode), false, self.rows.at(*inode).id),
            Unit::Extra(row) => (
                true,
                (false, Some(self.rows.rank(*row))),
                true,
                InodeId::default(),
            ),
        }
    }

    /// Gives every unit of a family a name of its own: of each group the oldest file or folder keeps the plain one.
    fn settle_names(&self, folder: &[u32], family: Vec<Group>) -> Vec<(Vec<u8>, Unit)> {
        let mut shown = Vec::new();
        let mut rest = Vec::new();
        for (name, mut units) in family {
            units.sort_by_cached_key(|unit| self.claim(unit));
            let mut units = units.into_iter().peekable();
            if let Some(unit) = units.next_if(|unit| !matches!(unit, Unit::Extra(_))) {
                shown.push((name.clone(), unit));
            }
            rest.extend(units.map(|unit| (name.clone(), unit)));
        }
        let mut taken = BTreeSet::new();
        for (name, unit) in rest {
            let free = (0..)
                .map(|round: u32| self.suffixed(&name, &unit, round))
                .find(|candidate| {
                    let plain = self
                        .group(folder, candidate)
                        .iter()
                        .any(|unit| !matches!(unit, Unit::Extra(_)));
                    !plain && !taken.contains(candidate)
                });
            let name = free.expect("finitely many names are taken, and tags have no end");
            taken.insert(name.clone());
            shown.push((name, unit));
        }
        shown
    }

    fn suffixed(&self, name: &[u8], unit: &Unit, round: u32) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_derive_key("kith name tag 1");
        match unit {
            Unit::Folder(inodes) => {
                let oldest = inodes.first().copied().unwrap_or(ROOT_ROW);
                hasher.update(&[1]).update(&self.rows.at(oldest).id.0);
            }
            Unit::File(inode) => {
                hasher.update(&[0]).update(&self.rows.at(*inode).id.0);
            }
            Unit::Extra(row) => {
                let id = self.rows.info(*row).id;
                hasher
                    .update(&[2])
                    .update(&id.entry.0)
                    .update(&id.index.to_le_bytes());
            }
        }
        let hash = hasher.update(&round.to_le_bytes()).finalize();
        let [a, b, c, d, ..] = *hash.as_bytes();
        [stem(name), b"~", HEXLOWER.encode(&[a, b, c, d]).as_bytes()].concat()
    }

    // Units.

    /// The version that says how a folder shows: the latest that is one, else the one that gives its place.
    pub(super) fn folder_version(&self, inode: u32) -> Option<u32> {
        let folders = self
            .live(inode)
            .filter(|head| self.rows.version(*head).kind == FileKind::Folder);
        folders
            .max_by_key(|head| self.rows.rank(*head))
            .or_else(|| self.winner(inode))
    }

    pub(super) fn listed(&self, name: Vec<u8>, unit: &Unit) -> Listed {
        let (inode, kind, row, conflict) = match unit {
            Unit::Folder(inodes) => {
                let oldest = inodes.first().copied().unwrap_or(ROOT_ROW);
                let conflict = inodes
                    .iter()
                    .any(|inode| self.live(*inode).nth(1).is_some());
                (
                    oldest,
                    FileKind::Folder,
                    self.folder_version(oldest),
                    conflict,
                )
            }
            Unit::File(inode) => {
                let winner = self.winner(*inode);
                let kind = winner.map_or(FileKind::File, |winner| self.rows.version(winner).kind);
                (*inode, kind, winner, self.live(*inode).nth(1).is_some())
            }
            Unit::Extra(row) => {
                let version = self.rows.version(*row);
                (version.inode, version.kind, Some(*row), true)
            }
        };
        Listed {
            name,
            inode: self.rows.at(inode).id,
            kind,
            size: if kind == FileKind::Folder {
                0
            } else {
                row.map_or(0, |row| self.rows.size(row))
            },
            mtime_ms: row.map_or(0, |row| self.rows.mtime_ms(row)),
            mode: row.map_or(FOLDER_MODE, |row| self.rows.mode(row)),
            link: row
                .filter(|row| self.rows.version(*row).kind == kind)
                .and_then(|row| self.rows.link_in(row).cloned()),
            version: row.map(|row| self.rows.info(row)),
            conflict,
        }
    }

    /// Panics unless every current version shows somewhere.
    pub(super) fn check_reachable(&self) {
        let mut shown: BTreeSet<VersionId> = BTreeSet::new();
        let mut seen: BTreeSet<u32> = BTreeSet::new();
        let mut folders = vec![(TreePath::root(), vec![ROOT_ROW])];
        while let Some((path, folder)) = folders.pop() {
            let units = self.units(&folder);
            assert!(
                units.is_sorted_by(|a, b| a.0 < b.0),
                "no two things show under one name"
            );
            for (name, unit) in units {
                assert_eq!(
                    self.lookup(&folder, &name).as_ref(),
                    Some(&unit),
                    "a name leads to what shows under it"
                );
                shown.extend(
                    self.listed(name.clone(), &unit)
                        .version
                        .map(|version| version.id),
                );
                if let Unit::Folder(inodes) = unit {
                    assert!(
                        inodes.iter().all(|inode| seen.insert(*inode)),
                        "no folder shows twice"
                    );
                    let path = path.child(&name).expect("names that show can be names");
                    folders.push((path, inodes));
                }
            }
        }
        for inode in self.rows.all_inodes() {
            for head in self.live(inode) {
                // Of a folder one head shows, and the others in its history: its children can stand in one place only.
                let shows = match self.rows.version(head).kind {
                    FileKind::Folder => seen.contains(&inode),
                    FileKind::File | FileKind::Symlink => shown.contains(&self.rows.info(head).id),
                };
                assert!(shows, "every current version shows somewhere");
            }
        }
    }
}

/// Permission bits of folders that nobody gave any.
pub(super) const FOLDER_MODE: u32 = 0o755;

fn root() -> Listed {
    Listed {
        name: Vec::new(),
        inode: InodeId::default(),
        kind: FileKind::Folder,
        size: 0,
        mtime_ms: 0,
        mode: FOLDER_MODE,
        link: None,
        version: None,
        conflict: false,
    }
}
