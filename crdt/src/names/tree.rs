//! The fold: from a set of versions to what stands where.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{Cid, EntryId};
use kith_object::object::ObjectLink;
use kith_object::tree::FileKind;

use super::record::{Record, VersionId, VersionInfo};
use super::rows::{MANY, NONE, ROOT_ROW, Rank, Rows};
use super::sorted::Sorted;

/// The tree of names of one space: a pure function of the set of versions put in, whatever order they came in.
///
/// [`Tree::apply_all`] adds versions, [`Tree::void_all`] takes those of an entry out again; both keep the view up to date, so that reading
/// costs no fold. Spec: `protocol/spec/names.md`, "Tree".
pub struct Tree {
    pub(super) rows: Rows,
    /// All that is shown, by folder and name.
    pub(super) items: Sorted,
    /// The heads of the inodes that have several.
    heads: BTreeMap<u32, Vec<u32>>,
    /// Inodes shown elsewhere than they ask for, because that would close a cycle.
    pub(super) displaced: BTreeSet<u32>,
    /// Versions replaced before they came (inode, version): by how many.
    absent: BTreeMap<(u32, VersionId), u32>,
}

/// One thing shown in a folder, in 32 bits: what it is, and the row that says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// The inode of that version as a file; the version gives place and name, the inode's winner the rest.
    File(u32),
    /// The inode of that version as a folder.
    Folder(u32),
    /// That version itself, a head that did not win.
    Extra(u32),
    /// That inode, of which no version counts, as a folder.
    Lost(u32),
}

impl Item {
    fn pack(self) -> u32 {
        match self {
            Item::File(row) => row,
            Item::Folder(row) => (1 << 30) | row,
            Item::Extra(row) => (2 << 30) | row,
            Item::Lost(row) => (3 << 30) | row,
        }
    }

    pub(super) fn unpack(packed: u32) -> Self {
        let row = packed & ((1 << 30) - 1);
        match packed >> 30 {
            0 => Item::File(row),
            1 => Item::Folder(row),
            2 => Item::Extra(row),
            _ => Item::Lost(row),
        }
    }
}

/// What a batch has touched: inodes whose items are out of the view until [`Tree::settle`].
#[derive(Default)]
struct Batch {
    open: BTreeSet<u32>,
    /// Inodes that lost a version which named them as parent.
    unnamed: BTreeSet<u32>,
}

/// Where an inode stands on trial while cycles are looked for.
struct Stand {
    parent: u32,
    place: u32,
    /// How many of its places were tried before this one.
    tried: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A tree without versions: the root folder, empty.
    pub fn new() -> Self {
        Self {
            rows: Rows::new(),
            items: Sorted::default(),
            heads: BTreeMap::new(),
            displaced: BTreeSet::new(),
            absent: BTreeMap::new(),
        }
    }

    /// Adds one version; one that is there already changes nothing.
    ///
    /// Records that break a rule of [`Record::check`] are ignored. Many at once go faster by [`Tree::apply_all`].
    pub fn apply(&mut self, info: VersionInfo, record: Record) {
        self.apply_all([(info, record)]);
    }

    /// Adds versions, then brings the view up to date once.
    pub fn apply_all(&mut self, versions: impl IntoIterator<Item = (VersionInfo, Record)>) {
        let mut batch = Batch::default();
        for (info, record) in versions {
            if record.check().is_ok() {
                self.enter(&mut batch, info, &record);
            }
        }
        self.settle(batch);
    }

    /// Takes out the versions of an entry that does not count any more.
    pub fn void(&mut self, entry: &EntryId) {
        self.void_all([*entry]);
    }

    /// Takes out the versions of several entries.
    pub fn void_all(&mut self, entries: impl IntoIterator<Item = EntryId>) {
        let mut batch = Batch::default();
        for entry in entries {
            for row in self.rows.versions_in(entry) {
                self.leave(&mut batch, row);
            }
        }
        self.settle(batch);
    }

    /// Takes out one version.
    pub(super) fn void_version(&mut self, id: VersionId) {
        if let Some(row) = self.rows.find_version(id) {
            let mut batch = Batch::default();
            self.leave(&mut batch, row);
            self.settle(batch);
        }
    }

    /// How many versions there are, deleted and replaced ones included.
    pub fn version_count(&self) -> usize {
        self.rows.count()
    }

    /// Every version, in no particular order.
    pub fn versions(&self) -> impl Iterator<Item = (VersionInfo, Record)> {
        self.rows
            .all_versions()
            .map(|row| (self.rows.info(row), self.rows.record(row)))
    }

    /// One version.
    pub fn version(&self, id: VersionId) -> Option<(VersionInfo, Record)> {
        let row = self.rows.find_version(id)?;
        Some((self.rows.info(row), self.rows.record(row)))
    }

    /// What opens the object of that CID, if any version, current or not, names it.
    pub fn link_of(&self, cid: &Cid) -> Option<ObjectLink> {
        self.links_of(cid).next()
    }

    /// All links of that CID: several only if some device wrote a wrong key or size; then try each.
    pub fn links_of(&self, cid: &Cid) -> impl Iterator<Item = ObjectLink> {
        let digest = cid.digest();
        digest
            .into_iter()
            .flat_map(|digest| self.rows.links_of(digest))
            .cloned()
    }

    /// Every link that some version names, current or not: what must be kept.
    pub fn roots(&self) -> impl Iterator<Item = ObjectLink> {
        self.rows.links().cloned()
    }

    // Heads.

    /// The versions of an inode that none replaces.
    pub(super) fn heads(&self, inode: u32) -> &[u32] {
        let head = &self.rows.at(inode).head;
        match *head {
            NONE => &[],
            MANY => self.heads.get(&inode).map_or(&[], Vec::as_slice),
            _ => std::slice::from_ref(head),
        }
    }

    fn set_heads(&mut self, inode: u32, heads: Vec<u32>) {
        self.rows.at_mut(inode).head = match heads.as_slice() {
            [] => NONE,
            [head] => *head,
            _ => MANY,
        };
        if heads.len() > 1 {
            self.heads.insert(inode, heads);
        } else {
            self.heads.remove(&inode);
        }
    }

    /// The heads that are not deleted.
    pub(super) fn live(&self, inode: u32) -> impl Iterator<Item = u32> {
        self.heads(inode)
            .iter()
            .copied()
            .filter(|head| !self.rows.version(*head).deleted)
    }

    /// The head that gives the inode its place: the latest that is not deleted, else the latest.
    pub(super) fn winner(&self, inode: u32) -> Option<u32> {
        let latest =
            |heads: &mut dyn Iterator<Item = u32>| heads.max_by_key(|head| self.rows.rank(*head));
        latest(&mut self.live(inode)).or_else(|| latest(&mut self.heads(inode).iter().copied()))
    }

    /// The rank of the first version of an inode: its age. Inodes without versions are the youngest.
    pub(super) fn birth(&self, inode: u32) -> (bool, Option<Rank>) {
        let first = self
            .rows
            .versions_of(inode)
            .map(|row| self.rows.rank(row))
            .min();
        (first.is_none(), first)
    }

    /// Inodes with more than one head.
    pub(super) fn contested(&self) -> impl Iterator<Item = u32> {
        self.heads.keys().copied()
    }

    /// Heads from scratch. Ids commit to what they replace, so no honest set replaces in a circle; for one that does, the latest version
    /// stands in, since nothing may vanish.
    fn count_heads(&mut self, inode: u32) {
        let mut heads: Vec<u32> = self
            .rows
            .versions_of(inode)
            .filter(|row| self.rows.version(*row).replaced == 0)
            .collect();
        if heads.is_empty() {
            heads.extend(
                self.rows
                    .versions_of(inode)
                    .max_by_key(|row| self.rows.rank(*row)),
            );
        }
        self.set_heads(inode, heads);
    }

    // Versions in and out.

    fn enter(&mut self, batch: &mut Batch, info: VersionInfo, record: &Record) {
        if self.rows.find_version(info.id).is_some() {
            return;
        }
        let inode = self.rows.inode(record.inode);
        self.open(batch, inode);
        let row = self.rows.insert(inode, info, record);

        let mut heads = self.heads(inode).to_vec();
        let stood_in = heads
            .iter()
            .any(|head| self.rows.version(*head).replaced > 0);
        for id in &record.replaces {
            match self.rows.find_version(*id) {
                Some(other) if self.rows.version(other).inode == inode => {
                    self.rows.version_mut(other).replaced += 1;
                    heads.retain(|head| *head != other);
                }
                _ => *self.absent.entry((inode, *id)).or_default() += 1,
            }
        }
        let replaced = self.absent.remove(&(inode, info.id)).unwrap_or(0);
        self.rows.version_mut(row).replaced += replaced;
        if self.rows.version(row).replaced == 0 {
            heads.push(row);
        }
        if heads.is_empty() || stood_in {
            self.count_heads(inode);
        } else {
            self.set_heads(inode, heads);
        }
    }

    fn leave(&mut self, batch: &mut Batch, row: u32) {
        let (inode, parent) = (self.rows.version(row).inode, self.rows.version(row).parent);
        self.open(batch, inode);
        batch.unnamed.insert(parent);
        let id = self.rows.info(row).id;
        for replaced in self.rows.replaces(row).to_vec() {
            match self.rows.find_version(replaced) {
                Some(other) if self.rows.version(other).inode == inode => {
                    self.rows.version_mut(other).replaced -= 1
                }
                _ => {
                    if let Some(count) = self.absent.get_mut(&(inode, replaced)) {
                        *count -= 1;
                        if *count == 0 {
                            self.absent.remove(&(inode, replaced));
                        }
                    }
                }
            }
        }
        let replaced = self.rows.version(row).replaced;
        if replaced > 0 {
            self.absent.insert((inode, id), replaced);
        }
        self.rows.remove(row);
        self.count_heads(inode);
    }

    // The view.

    /// The name an item goes by before clashes are settled.
    pub(super) fn raw_name(&self, item: Item) -> Cow<'_, [u8]> {
        raw_name(&self.rows, item)
    }

    /// Items of a folder, from the first whose name is not below this one.
    pub(super) fn items_from(&self, folder: u32, name: &[u8]) -> impl Iterator<Item = Item> {
        self.items
            .from(folder, |packed| {
                raw_name(&self.rows, Item::unpack(packed))
                    .as_ref()
                    .cmp(name)
                    .then(Ordering::Greater)
            })
            .take_while(move |(of, _)| *of == folder)
            .map(|(_, packed)| Item::unpack(packed))
    }

    fn has_live_folder(&self, inode: u32) -> bool {
        self.live(inode)
            .any(|head| self.rows.version(head).kind == FileKind::Folder)
    }

    /// The item of an inode as a folder.
    fn folder_item(&self, inode: u32) -> Item {
        match self.rows.at(inode).place {
            NONE => Item::Lost(inode),
            place => Item::Folder(place),
        }
    }

    /// What an inode shows besides itself as a folder, and in which folder.
    fn file_items(&self, inode: u32) -> Vec<(u32, Item)> {
        let at = self.rows.at(inode);
        let winner = self.winner(inode);
        self.live(inode)
            .filter(|head| self.rows.version(*head).kind != FileKind::Folder)
            .map(|head| {
                if Some(head) == winner {
                    (at.parent, Item::File(at.place))
                } else {
                    (self.rows.version(head).parent, Item::Extra(head))
                }
            })
            .collect()
    }

    /// Puts an item into the view, and with it every folder above that shows only because of it.
    fn show(&mut self, batch: &Batch, folder: u32, item: Item) {
        let mut next = Some((folder, item));
        while let Some((folder, item)) = next.take() {
            if !self
                .items
                .insert(folder, item.pack(), item_order(&self.rows, item))
            {
                return;
            }
            let at = self.rows.at_mut(folder);
            at.support += 1;
            if at.support == 1 && self.shows_by_support(batch, folder) {
                next = Some((self.rows.at(folder).parent, self.folder_item(folder)));
            }
        }
    }

    /// Takes an item out of the view, and with it every folder above that showed only because of it.
    fn hide(&mut self, batch: &Batch, folder: u32, item: Item) {
        let mut next = Some((folder, item));
        while let Some((folder, item)) = next.take() {
            if self
                .items
                .remove(folder, item_order(&self.rows, item))
                .is_none()
            {
                return;
            }
            let at = self.rows.at_mut(folder);
            at.support -= 1;
            if at.support == 0 && self.shows_by_support(batch, folder) {
                next = Some((self.rows.at(folder).parent, self.folder_item(folder)));
            }
        }
    }

    fn shows_by_support(&self, batch: &Batch, inode: u32) -> bool {
        inode != ROOT_ROW && !batch.open.contains(&inode) && !self.has_live_folder(inode)
    }

    /// Takes all items of an inode out of the view, before it changes.
    fn open(&mut self, batch: &mut Batch, inode: u32) {
        if !batch.open.insert(inode) {
            return;
        }
        if self.heads(inode).is_empty() && self.rows.at(inode).support == 0 {
            return;
        }
        for (folder, item) in self.file_items(inode) {
            self.hide(batch, folder, item);
        }
        self.hide(batch, self.rows.at(inode).parent, self.folder_item(inode));
    }

    /// Puts the items of an inode back.
    fn close(&mut self, batch: &mut Batch, inode: u32) {
        batch.open.remove(&inode);
        for (folder, item) in self.file_items(inode) {
            self.show(batch, folder, item);
        }
        if self.has_live_folder(inode) || self.rows.at(inode).support > 0 {
            self.show(batch, self.rows.at(inode).parent, self.folder_item(inode));
        }
    }

    /// Finds a place for every inode that was touched, and shows them again.
    fn settle(&mut self, mut batch: Batch) {
        let stands = self.stands(&batch);
        for inode in stands.keys() {
            let at = self.rows.at(*inode);
            let stand = stands.get(inode).expect("it is one of the keys");
            if at.parent != stand.parent || at.place != stand.place {
                self.open(&mut batch, *inode);
            }
        }
        for inode in batch.open.clone() {
            let winner = self.winner(inode);
            let wish = winner.map_or((ROOT_ROW, NONE), |winner| {
                (self.rows.version(winner).parent, winner)
            });
            let (parent, place) = stands
                .get(&inode)
                .map_or(wish, |stand| (stand.parent, stand.place));
            let at = self.rows.at_mut(inode);
            at.parent = parent;
            at.place = place;
            if parent == wish.0 {
                self.displaced.remove(&inode);
            } else {
                self.displaced.insert(inode);
            }
        }
        for inode in batch.open.clone() {
            self.close(&mut batch, inode);
            batch.unnamed.insert(inode);
        }
        for inode in batch.unnamed {
            if self.rows.forget_unnamed(inode) {
                self.displaced.remove(&inode);
            }
        }
    }

    /// The places of an inode in the order in which it asks for them: the winner's, then those of its other versions, latest first.
    fn wishes(&self, inode: u32) -> Vec<u32> {
        let Some(winner) = self.winner(inode) else {
            return Vec::new();
        };
        let mut others: Vec<u32> = self
            .rows
            .versions_of(inode)
            .filter(|row| *row != winner)
            .collect();
        others.sort_unstable_by_key(|row| std::cmp::Reverse(self.rows.rank(*row)));
        others.insert(0, winner);
        others
    }

    /// Where those inodes stand that a cycle could run through and that changed, or that an earlier cycle displaced.
    ///
    /// Every cycle of first wishes runs through one of them: before the batch each was broken by a displaced inode, and an edge that is
    /// new starts at a touched one which some version names as its parent.
    fn stands(&self, batch: &Batch) -> BTreeMap<u32, Stand> {
        let mut stands = BTreeMap::new();
        let touched = batch
            .open
            .iter()
            .filter(|inode| self.rows.at(**inode).named > 0);
        if touched.clone().next().is_none() {
            return stands;
        }
        for inode in touched.chain(&self.displaced) {
            let stand = match self.winner(*inode) {
                Some(winner) => Stand {
                    parent: self.rows.version(winner).parent,
                    place: winner,
                    tried: 0,
                },
                None => Stand {
                    parent: ROOT_ROW,
                    place: NONE,
                    tried: 0,
                },
            };
            stands.insert(*inode, stand);
        }
        let starts: Vec<u32> = stands.keys().copied().collect();
        let mut rooted = BTreeSet::from([ROOT_ROW]);
        for start in starts {
            while let Err(cycle) = self.walk(&stands, &mut rooted, start) {
                self.step_back(&mut stands, &cycle);
            }
        }
        // A step back may have passed over versions of the same place; the latest of them names it.
        for (inode, stand) in &mut stands {
            if stand.tried > 0 && stand.place != NONE {
                let wishes = self.wishes(*inode);
                let same = wishes
                    .iter()
                    .find(|row| self.rows.version(**row).parent == stand.parent);
                stand.place = *same
                    .or_else(|| wishes.first())
                    .expect("an inode with a place has versions");
            }
        }
        stands
    }

    /// Walks up to the root; the cycle it runs into, if it does not get there.
    fn walk(
        &self,
        stands: &BTreeMap<u32, Stand>,
        rooted: &mut BTreeSet<u32>,
        start: u32,
    ) -> Result<(), Vec<u32>> {
        let mut path = Vec::new();
        let mut seen = BTreeSet::new();
        let mut at = start;
        while !rooted.contains(&at) {
            if !seen.insert(at) {
                let begin = path
                    .iter()
                    .position(|inode| *inode == at)
                    .expect("what was seen is on the path");
                return Err(path.split_off(begin));
            }
            path.push(at);
            at = stands
                .get(&at)
                .map_or_else(|| self.rows.at(at).parent, |stand| stand.parent);
        }
        rooted.extend(path);
        Ok(())
    }

    /// The latest move of the cycle gives way: its inode asks for its next place, in the end for the root.
    fn step_back(&self, stands: &mut BTreeMap<u32, Stand>, cycle: &[u32]) {
        let place = |stands: &BTreeMap<u32, Stand>, inode: u32| {
            stands
                .get(&inode)
                .map_or_else(|| self.rows.at(inode).place, |stand| stand.place)
        };
        let latest = cycle
            .iter()
            .copied()
            .max_by_key(|inode| self.rows.rank(place(stands, *inode)));
        let latest = latest.expect(
            "a cycle has members, and only inodes with versions stand elsewhere than in the root",
        );
        let tried = stands.get(&latest).map_or(0, |stand| stand.tried) + 1;
        let wishes = self.wishes(latest);
        let stand = match wishes.get(tried) {
            Some(row) => Stand {
                parent: self.rows.version(*row).parent,
                place: *row,
                tried,
            },
            None => Stand {
                parent: ROOT_ROW,
                place: *wishes.first().expect("it has a place, so it has versions"),
                tried,
            },
        };
        stands.insert(latest, stand);
    }

    /// Whether nothing is left of what was put in and taken out.
    #[cfg(test)]
    pub(super) fn is_blank(&self) -> bool {
        let rows = self.rows.count() + self.items.len() + self.rows.all_inodes().count() - 1;
        rows + self.heads.len()
            + self.displaced.len()
            + self.absent.len()
            + self.rows.links().count()
            == 0
    }

    /// Panics if the tree differs from one made afresh of the same versions, or if a current version is not to be found.
    pub fn check_invariants(&self) {
        let mut fresh = Tree::new();
        fresh.apply_all(self.versions());
        assert_eq!(self.version_count(), fresh.version_count());
        assert_eq!(self.items.len(), fresh.items.len());
        assert_eq!(
            self.fingerprint(),
            fresh.fingerprint(),
            "the view follows from the set of versions alone"
        );
        assert_eq!(self.displaced.len(), fresh.displaced.len());
        assert_eq!(self.absent.len(), fresh.absent.len());
        let mut support: BTreeMap<u32, u32> = BTreeMap::new();
        for inode in self.rows.all_inodes() {
            let count = self.items_from(inode, b"").count();
            support.insert(
                inode,
                u32::try_from(count).expect("rows are numbered by u32"),
            );
        }
        for (inode, count) in support {
            let at = self.rows.at(inode);
            assert_eq!(at.support, count);
            assert!(
                inode == ROOT_ROW || at.named > 0 || self.winner(inode).is_some(),
                "no row without use"
            );
            let mut steps = 0;
            let mut up = inode;
            while up != ROOT_ROW {
                up = self.rows.at(up).parent;
                steps += 1;
                assert!(steps <= self.version_count() + 1, "no cycles");
            }
        }
        self.check_reachable();
    }
}

fn raw_name(rows: &Rows, item: Item) -> Cow<'_, [u8]> {
    match item {
        Item::File(row) | Item::Folder(row) | Item::Extra(row) => Cow::Borrowed(rows.name(row)),
        Item::Lost(inode) => rows.lost_name(inode),
    }
}

/// Compares items of one folder with this one: by name, then by what they are.
fn item_order(rows: &Rows, sought: Item) -> impl Fn(u32) -> Ordering {
    let name = raw_name(rows, sought);
    move |other| {
        let by_name = raw_name(rows, Item::unpack(other)).cmp(&name);
        by_name.then_with(|| other.cmp(&sought.pack()))
    }
}
