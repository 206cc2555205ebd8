//! From what a person asks for to the records that do it.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, EntryId, InodeId};
use kith_object::key::Rng;
use kith_object::object::ObjectLink;
use kith_object::time::Hlc;
use kith_object::tree::{FileKind, MODE_MASK};

use super::change::{Change, PlanError};
use super::path::TreePath;
use super::record::{REPLACES_MAX, Record, VersionId, VersionInfo};
use super::rows::{NONE, ROOT_ROW};
use super::tree::{Item, Tree};
use super::view::{FOLDER_MODE, Unit};

/// The entry under which planned versions stand in the tree while the plan is made.
const DRAFT: EntryId = EntryId([0xff; 32]);

impl Tree {
    /// The records that do these changes, one after another, each upon what those before it have done; all or none.
    ///
    /// A change that changes nothing gives no record: the same bytes, time and mode put again. The tree comes out as it went in; it needs
    /// `&mut` because planned versions stand in it meanwhile, so that names, clashes and cycles are judged by the same rules as ever. Give
    /// each record its place in an entry and both to [`Tree::apply_all`] to see them done.
    ///
    /// # Errors
    /// [`PlanError`] for the first change that cannot be done.
    pub fn plan(&mut self, changes: &[Change], rng: &mut Rng) -> Result<Vec<Record>, PlanError> {
        let mark = self.rows.names_mark();
        let mut draft = Draft {
            tree: self,
            rng,
            records: BTreeMap::new(),
            next: 0,
        };
        let done = changes.iter().try_for_each(|change| draft.change(change));
        let records = draft.records;
        self.void(&DRAFT);
        self.rows.names_back_to(mark);
        done.map(|()| records.into_values().collect())
    }
}

/// A plan being made.
struct Draft<'a> {
    tree: &'a mut Tree,
    rng: &'a mut Rng,
    /// What is planned so far, by its index in [`DRAFT`].
    records: BTreeMap<u32, Record>,
    next: u32,
}

/// What a version holds, apart from where it stands.
struct Content {
    kind: FileKind,
    link: Option<ObjectLink>,
    mtime_ms: u64,
    mode: u32,
    deleted: bool,
}

/// A place: the folder and the name in it.
#[derive(Clone)]
struct Place {
    parent: InodeId,
    name: Vec<u8>,
}

impl Draft<'_> {
    fn change(&mut self, change: &Change) -> Result<(), PlanError> {
        match change {
            Change::File {
                path,
                kind: FileKind::Folder,
                link,
                mtime_ms,
                mode,
            } => self.folder(path, Some(link.clone()), *mtime_ms, mode & MODE_MASK),
            Change::File {
                path,
                kind,
                link,
                mtime_ms,
                mode,
            } => {
                let content = Content {
                    kind: *kind,
                    link: Some(link.clone()),
                    mtime_ms: *mtime_ms,
                    mode: mode & MODE_MASK,
                    deleted: false,
                };
                self.file(path, content)
            }
            Change::Folder {
                path,
                link,
                mtime_ms,
                mode,
            } => self.folder(path, link.clone(), *mtime_ms, mode & MODE_MASK),
            Change::Move { from, to } => self.shift(from, to),
            Change::Remove { path, recursive } => self.remove(path, *recursive),
            Change::Restore { path, version } => self.restore(path, *version),
        }
    }

    // Writing versions.

    /// Plans a version of that inode in place of those; planned ones among them go, and it takes over what they replace.
    ///
    /// What a cycle displaced stays where it shows: a version of its own says so, if this one would let it go elsewhere.
    fn write(&mut self, inode: InodeId, place: Place, content: Content, replaces: &[u32]) {
        let displaced: Vec<(u32, Option<VersionId>, Place)> = self
            .tree
            .displaced
            .iter()
            .map(|inode| (*inode, self.winner_id(*inode), self.place(*inode)))
            .collect();
        self.put(inode, place, content, replaces);
        for _ in 0..displaced.len() {
            let went = displaced.iter().find(|(inode, winner, place)| {
                let parent = self.tree.rows.at(*inode).parent;
                self.winner_id(*inode) == *winner && self.id(parent) != place.parent
            });
            let Some((inode, _, place)) = went else { break };
            self.stay(*inode, place.clone());
        }
    }

    fn winner_id(&self, inode: u32) -> Option<VersionId> {
        self.tree
            .winner(inode)
            .map(|winner| self.tree.rows.info(winner).id)
    }

    /// Writes down that an inode stands there, as it is.
    fn stay(&mut self, inode: u32, place: Place) {
        if let Some(winner) = self.tree.winner(inode) {
            let replaces = self.with_dead(inode, vec![winner]);
            self.put(self.id(inode), place, self.content(winner), &replaces);
        }
    }

    fn put(&mut self, inode: InodeId, place: Place, content: Content, replaces: &[u32]) {
        let mut ranked = BTreeSet::new();
        for row in replaces {
            let id = self.tree.rows.info(*row).id;
            if id.entry != DRAFT {
                ranked.insert(self.tree.rows.rank(*row));
            }
        }
        let drafts: Vec<VersionId> = replaces
            .iter()
            .map(|row| self.tree.rows.info(*row).id)
            .filter(|id| id.entry == DRAFT)
            .collect();
        for id in drafts {
            if let Some(earlier) = self.records.remove(&id.index) {
                let rows = earlier
                    .replaces
                    .iter()
                    .filter_map(|id| self.tree.rows.find_version(*id));
                ranked.extend(rows.map(|row| self.tree.rows.rank(row)));
            }
            self.tree.void_version(id);
        }
        if content.deleted && ranked.is_empty() {
            // Made and removed by one and the same plan.
            return;
        }
        let latest = ranked
            .into_iter()
            .rev()
            .take(REPLACES_MAX)
            .map(|(_, id)| id);
        let replaces: BTreeSet<VersionId> = latest.collect();
        let record = Record {
            inode,
            replaces: replaces.into_iter().collect(),
            parent: place.parent,
            name: place.name,
            kind: content.kind,
            link: content.link.filter(|_| !content.deleted),
            mtime_ms: content.mtime_ms,
            mode: content.mode,
            deleted: content.deleted,
        };
        debug_assert_eq!(record.check(), Ok(()));
        let info = VersionInfo {
            id: VersionId {
                entry: DRAFT,
                index: self.next,
            },
            author: DeviceId::default(),
            hlc: Hlc(u64::MAX),
        };
        self.tree.apply(info, record.clone());
        self.records.insert(self.next, record);
        self.next += 1;
    }

    fn new_inode(&mut self) -> InodeId {
        loop {
            let id = InodeId(self.rng.bytes());
            if self.tree.rows.find_inode(id).is_none() {
                return id;
            }
        }
    }

    fn id(&self, inode: u32) -> InodeId {
        self.tree.rows.at(inode).id
    }

    /// What a version holds.
    fn content(&self, row: u32) -> Content {
        let version = self.tree.rows.version(row);
        Content {
            kind: version.kind,
            link: self.tree.rows.link_in(row).cloned(),
            mtime_ms: self.tree.rows.mtime_ms(row),
            mode: self.tree.rows.mode(row),
            deleted: version.deleted,
        }
    }

    /// What stays of it in a version that says it was removed.
    fn removed(&self, row: u32) -> Content {
        Content {
            link: None,
            deleted: true,
            ..self.content(row)
        }
    }

    /// Where an inode shows.
    fn place(&self, inode: u32) -> Place {
        let at = self.tree.rows.at(inode);
        let name = match at.place {
            NONE => self.tree.rows.lost_name(inode).into_owned(),
            place => self.tree.rows.name(place).to_vec(),
        };
        Place {
            parent: self.id(at.parent),
            name,
        }
    }

    /// Where a version stands by its own word.
    fn own_place(&self, row: u32) -> Place {
        Place {
            parent: self.id(self.tree.rows.version(row).parent),
            name: self.tree.rows.name(row).to_vec(),
        }
    }

    /// The heads that say it was removed: whoever replaces another head of the inode takes them along.
    fn dead(&self, inode: u32) -> Vec<u32> {
        let heads = self.tree.heads(inode).iter().copied();
        heads
            .filter(|head| self.tree.rows.version(*head).deleted)
            .collect()
    }

    fn with_dead(&self, inode: u32, mut heads: Vec<u32>) -> Vec<u32> {
        heads.extend(self.dead(inode));
        heads
    }

    /// The heads that an inode shows as a folder, and the dead ones.
    fn folder_heads(&self, inode: u32) -> Vec<u32> {
        let live = self.tree.live(inode);
        let folders = live
            .filter(|head| self.tree.rows.version(*head).kind == FileKind::Folder)
            .collect();
        self.with_dead(inode, folders)
    }

    /// What an inode holds as a folder, also when it only shows for what stands in it.
    fn folder_content(&self, inode: u32) -> Content {
        let mut content = Content {
            kind: FileKind::Folder,
            link: None,
            mtime_ms: 0,
            mode: FOLDER_MODE,
            deleted: false,
        };
        if let Some(row) = self.tree.folder_version(inode) {
            let version = self.tree.rows.version(row);
            content.mtime_ms = self.tree.rows.mtime_ms(row);
            content.mode = self.tree.rows.mode(row);
            if version.kind == FileKind::Folder {
                content.link = self.tree.rows.link_in(row).cloned();
            }
        }
        content
    }

    /// The folders at the path that show as one, oldest first; those that miss are made.
    fn folders(&mut self, path: &TreePath, mtime_ms: u64) -> Result<Vec<u32>, PlanError> {
        let mut folder = vec![ROOT_ROW];
        let mut so_far = TreePath::root();
        for name in path.names() {
            so_far = so_far.child(name).expect("it is the begin of a path");
            folder = match self.tree.lookup(&folder, name) {
                Some(Unit::Folder(inodes)) => inodes,
                Some(_) => return Err(PlanError::NotAFolder { path: so_far }),
                None => {
                    let inode = self.new_inode();
                    let place = Place {
                        parent: self.id(first(&folder)),
                        name: name.to_vec(),
                    };
                    let content = Content {
                        kind: FileKind::Folder,
                        link: None,
                        mtime_ms,
                        mode: FOLDER_MODE,
                        deleted: false,
                    };
                    self.write(inode, place, content, &[]);
                    vec![
                        self.tree
                            .rows
                            .find_inode(inode)
                            .expect("it was just written"),
                    ]
                }
            };
        }
        Ok(folder)
    }

    /// The place at that path, with the folders around it.
    fn place_at(&mut self, path: &TreePath, mtime_ms: u64) -> Result<(Vec<u32>, Place), PlanError> {
        let (Some(parent), Some(name)) = (path.parent(), path.name()) else {
            return Err(PlanError::IsRoot);
        };
        let folder = self.folders(&parent, mtime_ms)?;
        let place = Place {
            parent: self.id(first(&folder)),
            name: name.to_vec(),
        };
        Ok((folder, place))
    }

    /// Writes down where these folders and all above them show, if a cycle displaced them: else a move that fits what shows could close
    /// a cycle with what they ask for, and be the one to give way.
    fn pin(&mut self, folder: &[u32]) {
        let mut displaced = BTreeSet::new();
        for inode in folder {
            let mut at = *inode;
            while at != ROOT_ROW {
                if self.tree.displaced.contains(&at) {
                    displaced.insert(at);
                }
                at = self.tree.rows.at(at).parent;
            }
        }
        for inode in displaced {
            if let Some(winner) = self.tree.winner(inode) {
                let replaces = self.with_dead(inode, vec![winner]);
                let place = self.place(inode);
                self.write(self.id(inode), place, self.content(winner), &replaces);
            }
        }
    }

    /// Whether these folders are that inode, or stand somewhere in it.
    fn is_inside(&self, folder: &[u32], inode: u32) -> bool {
        folder.iter().any(|folder| {
            let up = |at: &u32| (*at != ROOT_ROW).then(|| self.tree.rows.at(*at).parent);
            std::iter::successors(Some(*folder), up).any(|at| at == inode)
        })
    }

    // Changes.

    fn file(&mut self, path: &TreePath, content: Content) -> Result<(), PlanError> {
        if path.is_root() {
            return Err(PlanError::IsRoot);
        }
        match self.tree.find(path) {
            Some((_, Unit::Folder(_))) => Err(PlanError::IsAFolder { path: path.clone() }),
            Some((_, Unit::File(inode))) => {
                let heads = self.tree.heads(inode).to_vec();
                let alone = self.tree.live(inode).nth(1).is_none();
                if alone
                    && self
                        .tree
                        .winner(inode)
                        .is_some_and(|winner| self.holds(winner, &content))
                {
                    return Ok(());
                }
                self.write(self.id(inode), self.place(inode), content, &heads);
                Ok(())
            }
            Some((_, Unit::Extra(row))) => {
                if !self.holds(row, &content) {
                    self.split_off(row, path, content);
                }
                Ok(())
            }
            None => {
                let (_, place) = self.place_at(path, content.mtime_ms)?;
                let inode = self.new_inode();
                self.write(inode, place, content, &[]);
                Ok(())
            }
        }
    }

    fn holds(&self, row: u32, content: &Content) -> bool {
        let now = self.content(row);
        now.kind == content.kind
            && now.link == content.link
            && now.mtime_ms == content.mtime_ms
            && now.mode == content.mode
            && now.deleted == content.deleted
    }

    /// A losing version becomes a file of its own, under the name it shows by, with this content.
    fn split_off(&mut self, row: u32, path: &TreePath, content: Content) {
        let place = Place {
            name: path.name().unwrap_or_default().to_vec(),
            ..self.own_place(row)
        };
        self.remove_head(row);
        let inode = self.new_inode();
        self.write(inode, place, content, &[]);
    }

    /// Removes one head of an inode, and no other.
    fn remove_head(&mut self, row: u32) {
        let inode = self.tree.rows.version(row).inode;
        self.write(
            self.id(inode),
            self.own_place(row),
            self.removed(row),
            &[row],
        );
    }

    fn folder(
        &mut self,
        path: &TreePath,
        link: Option<ObjectLink>,
        mtime_ms: u64,
        mode: u32,
    ) -> Result<(), PlanError> {
        let content = Content {
            kind: FileKind::Folder,
            link,
            mtime_ms,
            mode,
            deleted: false,
        };
        if path.is_root() {
            return Err(PlanError::IsRoot);
        }
        match self.tree.find(path) {
            Some((_, Unit::File(_) | Unit::Extra(_))) => {
                Err(PlanError::NotAFolder { path: path.clone() })
            }
            Some((around, Unit::Folder(inodes))) => {
                let inode = first(&inodes);
                let alone = self.tree.live(inode).nth(1).is_none();
                if alone
                    && self
                        .tree
                        .folder_version(inode)
                        .is_some_and(|row| self.holds(row, &content))
                {
                    return Ok(());
                }
                self.pin(&around);
                let heads = self.folder_heads(inode);
                self.write(self.id(inode), self.place(inode), content, &heads);
                Ok(())
            }
            None => {
                let (_, place) = self.place_at(path, mtime_ms)?;
                let inode = self.new_inode();
                self.write(inode, place, content, &[]);
                Ok(())
            }
        }
    }

    fn shift(&mut self, from: &TreePath, to: &TreePath) -> Result<(), PlanError> {
        if from.is_root() {
            return Err(PlanError::IsRoot);
        }
        let Some((_, unit)) = self.tree.find(from) else {
            return Err(PlanError::NotFound { path: from.clone() });
        };
        if from == to {
            return Ok(());
        }
        let into_itself = || PlanError::IntoItself {
            from: from.clone(),
            to: to.clone(),
        };
        if matches!(unit, Unit::Folder(_)) && to.starts_with(from) {
            return Err(into_itself());
        }
        if to.is_root() || self.tree.find(to).is_some() {
            return Err(PlanError::Exists { path: to.clone() });
        }
        let mtime_ms = self.tree.listed(Vec::new(), &unit).mtime_ms;
        let (folder, place) = self.place_at(to, mtime_ms)?;
        let moved = match &unit {
            Unit::File(inode) => std::slice::from_ref(inode),
            Unit::Extra(_) => &[],
            Unit::Folder(inodes) => inodes.as_slice(),
        };
        if moved.iter().any(|inode| self.is_inside(&folder, *inode)) {
            return Err(into_itself());
        }
        match unit {
            Unit::File(inode) => {
                if let Some(winner) = self.tree.winner(inode) {
                    let replaces = self.with_dead(inode, vec![winner]);
                    self.write(self.id(inode), place, self.content(winner), &replaces);
                }
            }
            Unit::Extra(row) => {
                let content = self.content(row);
                self.remove_head(row);
                let inode = self.new_inode();
                self.write(inode, place, content, &[]);
            }
            Unit::Folder(inodes) => {
                self.pin(&folder);
                for inode in inodes {
                    let live = self.tree.live(inode).next().is_some();
                    let (content, heads) = match self.tree.folder_version(inode) {
                        // A file that other things name as their parent, as no plan of ours does: they follow the file.
                        Some(row) if live && self.content(row).kind != FileKind::Folder => {
                            (self.content(row), self.with_dead(inode, vec![row]))
                        }
                        _ => (self.folder_content(inode), self.folder_heads(inode)),
                    };
                    self.write(self.id(inode), place.clone(), content, &heads);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &TreePath, recursive: bool) -> Result<(), PlanError> {
        if path.is_root() {
            return Err(PlanError::IsRoot);
        }
        match self.tree.find(path) {
            None => return Err(PlanError::NotFound { path: path.clone() }),
            Some((_, Unit::File(inode))) => self.remove_file(inode),
            Some((_, Unit::Extra(row))) => self.remove_head(row),
            Some((_, Unit::Folder(inodes))) => {
                if !recursive
                    && inodes
                        .iter()
                        .any(|inode| self.tree.rows.at(*inode).support > 0)
                {
                    return Err(PlanError::NotEmpty { path: path.clone() });
                }
                self.remove_folders(inodes);
            }
        }
        Ok(())
    }

    fn remove_file(&mut self, inode: u32) {
        if let Some(winner) = self.tree.winner(inode) {
            let replaces = self.with_dead(inode, vec![winner]);
            self.write(
                self.id(inode),
                self.place(inode),
                self.removed(winner),
                &replaces,
            );
        }
    }

    /// Removes folders with all that shows in them; each before what it holds, see [`Draft::went_with`].
    fn remove_folders(&mut self, folders: Vec<u32>) {
        enum Doomed {
            Folder(u32),
            File(u32),
            Extra(u32),
        }
        let mut all = Vec::new();
        let mut open = folders;
        while let Some(folder) = open.pop() {
            all.push(Doomed::Folder(folder));
            for item in self.tree.items_from(folder, b"") {
                match item {
                    Item::File(row) => all.push(Doomed::File(self.tree.rows.version(row).inode)),
                    Item::Extra(row) => all.push(Doomed::Extra(row)),
                    Item::Folder(row) => open.push(self.tree.rows.version(row).inode),
                    Item::Lost(inode) => open.push(inode),
                }
            }
        }
        for doomed in all {
            match doomed {
                Doomed::File(inode) => self.remove_file(inode),
                Doomed::Extra(row) => self.remove_head(row),
                Doomed::Folder(inode) => {
                    let heads = self.folder_heads(inode);
                    let live = heads
                        .iter()
                        .copied()
                        .find(|head| !self.tree.rows.version(*head).deleted);
                    // Without a live head it shows only for what stands in it, and goes with that.
                    if live.is_some() {
                        let content = Content {
                            link: None,
                            deleted: true,
                            ..self.folder_content(inode)
                        };
                        self.write(self.id(inode), self.place(inode), content, &heads);
                    }
                }
            }
        }
    }

    fn restore(&mut self, path: &TreePath, version: VersionId) -> Result<(), PlanError> {
        let Some(row) = self.tree.rows.find_version(version) else {
            return Err(PlanError::NoSuchVersion { version });
        };
        let content = self.content(row);
        if content.deleted {
            return Err(PlanError::NothingInIt { version });
        }
        let inode = self.tree.rows.version(row).inode;
        let gone = self.tree.live(inode).next().is_none();
        match (content.kind, gone) {
            (FileKind::Folder, true) => self.restore_folder(path, inode, content),
            (FileKind::Folder, false) => match self.tree.path_of_folder(inode) {
                Some(now) if now != *path => Err(PlanError::StillThere { path: now }),
                _ => self.folder(path, content.link, content.mtime_ms, content.mode),
            },
            (FileKind::File | FileKind::Symlink, true) if self.tree.find(path).is_none() => {
                let (folder, place) = self.place_at(path, content.mtime_ms)?;
                let (id, heads) = if self.is_inside(&folder, inode) {
                    (self.new_inode(), Vec::new())
                } else {
                    (self.id(inode), self.dead(inode))
                };
                self.write(id, place, content, &heads);
                Ok(())
            }
            (FileKind::File | FileKind::Symlink, _) => self.file(path, content),
        }
    }

    fn restore_folder(
        &mut self,
        path: &TreePath,
        inode: u32,
        content: Content,
    ) -> Result<(), PlanError> {
        if let Some((_, Unit::File(_) | Unit::Extra(_))) = self.tree.find(path) {
            return Err(PlanError::NotAFolder { path: path.clone() });
        }
        let (folder, place) = self.place_at(path, content.mtime_ms)?;
        if self.is_inside(&folder, inode) {
            return Err(PlanError::IntoItself {
                from: self
                    .tree
                    .path_of_folder(inode)
                    .unwrap_or_else(|| path.clone()),
                to: path.clone(),
            });
        }
        self.pin(&folder);
        let went_with = self.went_with(inode);
        let heads = self.dead(inode);
        self.write(self.id(inode), place, content, &heads);
        for (dead, source) in went_with {
            let inode = self.tree.rows.version(dead).inode;
            self.write(
                self.id(inode),
                self.own_place(dead),
                self.content(source),
                &[dead],
            );
        }
        Ok(())
    }

    /// What was removed together with a folder: each removal below it, by the same device and not before the folder's own, with the
    /// version that was there until then. A recursive removal takes a folder before what it holds.
    fn went_with(&self, folder: u32) -> Vec<(u32, u32)> {
        let rows = &self.tree.rows;
        let Some(removal) = self.tree.winner(folder).map(|row| rows.info(row)) else {
            return Vec::new();
        };
        let with_it = |row: u32| {
            let info = rows.info(row);
            let same_entry = info.id.entry == removal.id.entry;
            let later = info.hlc > removal.hlc
                || (info.hlc == removal.hlc && (!same_entry || info.id.index >= removal.id.index));
            info.author == removal.author && later
        };
        let mut below: Vec<(u32, u32)> = rows
            .all_inodes()
            .map(|inode| (rows.at(inode).parent, inode))
            .collect();
        below.sort_unstable();
        let mut went = Vec::new();
        let mut seen = BTreeSet::from([folder]);
        let mut open = vec![folder];
        while let Some(folder) = open.pop() {
            let begin = below.partition_point(|(parent, _)| *parent < folder);
            for (_, inode) in below
                .iter()
                .skip(begin)
                .take_while(|(parent, _)| *parent == folder)
            {
                if !seen.insert(*inode) {
                    continue;
                }
                open.push(*inode);
                for dead in self.dead(*inode).into_iter().filter(|dead| with_it(*dead)) {
                    let before = rows
                        .replaces(dead)
                        .iter()
                        .filter_map(|id| rows.find_version(*id));
                    let kept = before
                        .filter(|row| !rows.version(*row).deleted)
                        .max_by_key(|row| rows.rank(*row));
                    went.extend(kept.map(|kept| (dead, kept)));
                }
            }
        }
        went
    }
}

/// The oldest of folders that show as one: where new things go.
fn first(folder: &[u32]) -> u32 {
    folder.first().copied().unwrap_or(ROOT_ROW)
}
