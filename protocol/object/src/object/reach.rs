//! Which blocks are reached from the objects that are kept; what is not reached is garbage.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{BlockWalk, ObjectLink, ObjectReader, Step};
use crate::id::Cid;
use crate::seal::{Kind, Opener};
use crate::tree::{self, FileKind, TREE_BYTES_MAX};
use crate::unixfs::{Node, read_node};

/// Most missing blocks whose names are kept; the rest are counted.
const MISSING_MAX: usize = 1024;
/// Prefixes that gather before they are sorted in among the others.
const SORT_EVERY: usize = 1 << 18;

/// Walks through objects and listings, and through what is public, and notes every block that it meets.
///
/// Ask [`next`](Self::next) which block is to be read, answer by [`feed`](Self::feed), until there is none. Reads what may be a manifest, and listings; no
/// other block.
///
/// Spec: `protocol/spec/garbage.md`, "Reach".
#[derive(Debug)]
pub struct Reach {
    opener: Opener,
    walk: BlockWalk,
    leaves: Leaves,
    lost: BTreeSet<Cid>,
    /// Listings gone through.
    listings: BTreeSet<[u8; 32]>,
    todo: Vec<(ObjectLink, bool)>,
    /// What is public, and what of it was met; absent if it is not gone through.
    public: Option<Public>,
    at: At,
    reached: Prefixes<u64>,
    missing: Vec<Cid>,
    missing_count: u64,
}

/// A walk through what is public.
#[derive(Debug, Default)]
struct Public {
    todo: Vec<Cid>,
    met: BTreeSet<Cid>,
    /// Nodes that cannot be read, and others may hang on.
    missing_count: u64,
}

/// What is being gone through.
#[derive(Debug)]
enum At {
    Nothing,
    Object {
        link: ObjectLink,
        is_listing: bool,
        /// The root was asked for and nothing else.
        at_root: bool,
        /// Some of it cannot be had.
        torn: bool,
        asked: Option<Cid>,
    },
    Listing {
        digest: [u8; 32],
        reader: Box<ObjectReader>,
        whole: Vec<u8>,
        asked: Option<Cid>,
    },
    /// A node of what is public.
    Node(Cid),
}

/// Objects that were found to consist of one block, so that the next walk need not read them again: half of the files of most people do.
///
/// Known by sixteen bytes of a hash under a key that nobody else knows: who could make another object look like one of these would have what is in it
/// passed over.
#[derive(Debug, Clone)]
pub struct Leaves {
    key: [u8; 32],
    known: Prefixes<u128>,
}

/// What a walk has come to.
#[derive(Debug, Default)]
pub struct Reached {
    prefixes: Prefixes<u64>,
    /// Blocks that could not be read and that others may hang on, the first of them.
    pub missing: Vec<Cid>,
    /// How many there are.
    pub missing_count: u64,
    /// Nodes of what is public that could not be read; absent if it was not gone through.
    pub public_missing: Option<u64>,
}

/// A set of numbers that mostly grows.
#[derive(Debug, Default, Clone)]
struct Prefixes<T> {
    sorted: Vec<T>,
    fresh: Vec<T>,
}

impl<T: Ord> Prefixes<T> {
    fn insert(&mut self, number: T) {
        self.fresh.push(number);
        if self.fresh.len() >= SORT_EVERY.max(self.sorted.len() / 4) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.sorted.append(&mut self.fresh);
        // Stable sorting merges what is in order already.
        self.sorted.sort();
        self.sorted.dedup();
    }

    /// Of what has settled.
    fn has(&self, number: T) -> bool {
        self.sorted.binary_search(&number).is_ok()
    }
}

impl Leaves {
    /// None yet; the key is random, and the same as long as these are used.
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            known: Prefixes::default(),
        }
    }

    /// Of a link or of a CID, which differ in length.
    fn number(&self, bytes: &[u8]) -> u128 {
        let hash = blake3::keyed_hash(&self.key, bytes);
        let (number, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
        u128::from_be_bytes(*number)
    }

    fn has(&self, link: &ObjectLink) -> bool {
        self.known.has(self.number(&link.encode()))
    }

    fn insert(&mut self, link: &ObjectLink) {
        let number = self.number(&link.encode());
        self.known.insert(number);
    }

    fn has_node(&self, cid: &Cid) -> bool {
        self.known.has(self.number(&cid.to_bytes()))
    }

    fn insert_node(&mut self, cid: &Cid) {
        let number = self.number(&cid.to_bytes());
        self.known.insert(number);
    }
}

impl Reached {
    /// Whether everything that is kept was gone through.
    pub fn is_complete(&self) -> bool {
        self.missing_count == 0
    }

    /// Whether something that is kept contains the block, so far as the walk came. What is no block of an object counts as reached, and so does every block
    /// that may be public, unless all that is public was gone through.
    ///
    /// Two blocks may share the prefix that is remembered: then garbage is kept, never the reverse.
    pub fn has(&self, cid: &Cid) -> bool {
        let digest = match cid.digest() {
            Some(digest) => digest,
            None if self.public_missing == Some(0) => match cid.public_digest() {
                Some(digest) => digest,
                None => return true,
            },
            None => return true,
        };
        self.prefixes.has(prefix(&digest))
    }

    /// Whether something that is public contains the block, so far as the walk came.
    pub fn has_public(&self, cid: &Cid) -> bool {
        cid.public_digest()
            .is_some_and(|digest| self.prefixes.has(prefix(&digest)))
    }

    /// Blocks met, those with the same prefix counted once.
    pub fn len(&self) -> usize {
        self.prefixes.sorted.len()
    }

    /// Whether nothing was met.
    pub fn is_empty(&self) -> bool {
        self.prefixes.sorted.is_empty()
    }
}

impl Reach {
    /// A walk that has met nothing yet; `leaves` as the last one left them, `lost` are blocks that nobody has, which hold up nothing.
    pub fn new(opener: Opener, mut leaves: Leaves, lost: BTreeSet<Cid>) -> Self {
        leaves.known.settle();
        Self {
            walk: BlockWalk::repeating(opener.clone()),
            opener,
            leaves,
            lost,
            listings: BTreeSet::new(),
            todo: Vec::new(),
            public: None,
            at: At::Nothing,
            reached: Prefixes::default(),
            missing: Vec::new(),
            missing_count: 0,
        }
    }

    /// Adds all that is public, and nothing else is.
    pub fn enter_public(&mut self, roots: Vec<Cid>) {
        let public = self.public.get_or_insert_default();
        public.todo.extend(roots);
    }

    /// Adds an object; of a folder's listing, all objects in it as well.
    pub fn enter(&mut self, link: ObjectLink, is_listing: bool) {
        self.todo.push((link, is_listing));
    }

    /// Adds a block that something relies on, whatever it is part of.
    pub fn note(&mut self, cid: &Cid) {
        if let Some(digest) = cid.digest().or_else(|| cid.public_digest()) {
            self.reached.insert(prefix(&digest));
        }
    }

    /// The next block to be read, for [`Reach::feed`]; `None` once all that was added is gone through.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: each answer wants one of its own"
    )]
    pub fn next(&mut self) -> Option<Cid> {
        loop {
            match &mut self.at {
                At::Nothing => match self.todo.pop() {
                    Some((link, is_listing)) => self.begin(link, is_listing),
                    None => return self.next_node(),
                },
                At::Node(cid) => return Some(*cid),
                At::Object {
                    link,
                    is_listing,
                    asked,
                    torn,
                    ..
                } => match self.walk.step() {
                    Some(Step::Leaf(cid)) => self.note(&cid),
                    Some(Step::Open { cid, .. }) => {
                        *asked = Some(cid);
                        self.note(&cid);
                        return Some(cid);
                    }
                    None => {
                        let link = (*is_listing && !*torn).then(|| link.clone());
                        self.at = link.map_or(At::Nothing, |link| self.listing(link));
                    }
                },
                At::Listing {
                    reader,
                    whole,
                    asked,
                    ..
                } => {
                    while let Some(data) = reader.next() {
                        whole.extend_from_slice(&data);
                    }
                    if reader.done() {
                        self.end_listing();
                    } else if let Some(cid) = reader.wanted(1).first() {
                        *asked = Some(*cid);
                        return Some(*cid);
                    }
                }
            }
        }
    }

    /// The next node of what is public that has to be read.
    fn next_node(&mut self) -> Option<Cid> {
        loop {
            let public = self.public.as_mut()?;
            let cid = public.todo.pop()?;
            if cid.is_raw() || self.leaves.has_node(&cid) {
                self.note(&cid);
            } else if public.met.insert(cid) {
                self.note(&cid);
                self.at = At::Node(cid);
                return Some(cid);
            }
        }
    }

    fn feed_node(&mut self, cid: &Cid, block: Option<&Bytes>) {
        let Some(public) = &mut self.public else {
            return;
        };
        let links: Vec<Cid> = match block.map(|block| read_node(cid, block)) {
            Some(Ok(Node::File(file))) => file.links.into_iter().map(|link| link.cid).collect(),
            Some(Ok(Node::Folder(entries))) => entries.into_iter().map(|(_, cid)| cid).collect(),
            Some(Ok(Node::Shard { entries, parts })) => {
                let entries = entries.into_iter().map(|(_, cid)| cid);
                entries.chain(parts).collect()
            }
            Some(Ok(Node::Symlink(_))) => Vec::new(),
            // What it leads to is not known.
            Some(Err(_)) | None => {
                public.missing_count += 1;
                return;
            }
        };
        if links.is_empty() {
            public.met.remove(cid);
            self.leaves.insert_node(cid);
        }
        public.todo.extend(links);
    }

    fn begin(&mut self, link: ObjectLink, is_listing: bool) {
        if !is_listing && self.leaves.has(&link) {
            self.reached.insert(prefix(&link.digest));
            return;
        }
        if self.walk.enter(&link) {
            self.at = At::Object {
                link,
                is_listing,
                at_root: true,
                torn: false,
                asked: None,
            };
        } else if is_listing {
            self.at = self.listing(link);
        }
    }

    fn listing(&self, link: ObjectLink) -> At {
        // Too long to be one, for every reader.
        if link.size > TREE_BYTES_MAX || self.listings.contains(&link.digest) {
            return At::Nothing;
        }
        At::Listing {
            digest: link.digest,
            reader: Box::new(ObjectReader::new(link, self.opener.clone())),
            whole: Vec::new(),
            asked: None,
        }
    }

    fn end_listing(&mut self) {
        let at = std::mem::replace(&mut self.at, At::Nothing);
        let At::Listing {
            digest,
            reader,
            whole,
            ..
        } = at
        else {
            return;
        };
        self.listings.insert(digest);
        // What is no listing names nothing, for every reader.
        if reader.leaf_kind() == Some(Kind::Tree)
            && let Ok(entries) = tree::decode(&whole)
        {
            let below = entries
                .into_iter()
                .map(|entry| (entry.link, entry.kind == FileKind::Folder));
            self.todo.extend(below);
        }
    }

    /// Answers [`Reach::next`] with the block, which is what its CID says, or with nothing if it cannot be had.
    pub fn feed(&mut self, block: Option<&Bytes>) {
        match &mut self.at {
            At::Nothing => {}
            At::Node(cid) => {
                let cid = *cid;
                self.at = At::Nothing;
                self.feed_node(&cid, block);
            }
            At::Object {
                link,
                at_root,
                torn,
                asked,
                ..
            } => {
                let (root, asked) = (std::mem::take(at_root), asked.take());
                let Some(block) = block else {
                    *torn = true;
                    self.walk.give_up();
                    self.lack(asked);
                    return;
                };
                // One that does not open belongs to no object that can be read.
                if let Ok(kind) = self.walk.feed(block)
                    && root
                    && kind != Kind::Manifest
                {
                    self.leaves.insert(link);
                }
            }
            At::Listing { reader, asked, .. } => {
                let Some(cid) = asked.take() else { return };
                match block {
                    Some(block) if reader.feed_verified(&cid, block).is_ok() => {}
                    Some(_) => self.at = At::Nothing,
                    None => {
                        self.at = At::Nothing;
                        self.lack(Some(cid));
                    }
                }
            }
        }
    }

    fn lack(&mut self, cid: Option<Cid>) {
        let Some(cid) = cid.filter(|cid| !self.lost.contains(cid)) else {
            return;
        };
        self.missing_count += 1;
        if self.missing.len() < MISSING_MAX {
            self.missing.push(cid);
        }
    }

    /// What was met, and what the next walk may know.
    pub fn finish(mut self) -> (Reached, Leaves) {
        self.reached.settle();
        let reached = Reached {
            prefixes: self.reached,
            missing: self.missing,
            missing_count: self.missing_count,
            public_missing: self.public.map(|public| public.missing_count),
        };
        (reached, self.leaves)
    }
}

/// What is remembered of a digest.
fn prefix(digest: &[u8; 32]) -> u64 {
    let (prefix, _) = digest.split_first_chunk().expect("32 bytes");
    u64::from_be_bytes(*prefix)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::chunk::{Chunker, Profile};
    use crate::key::Secret;
    use crate::object::ObjectWriter;
    use crate::seal::{BlockKey, Sealer};
    use crate::tree::TreeEntry;

    type Blocks = BTreeMap<Cid, Bytes>;

    fn secret() -> Secret {
        Secret::new([1; 32])
    }

    fn write(kind: Kind, data: &[u8], blocks: &mut Blocks) -> ObjectLink {
        let profile = Profile {
            min: 64,
            mean: 128,
            max: 512,
        };
        let chunker = Arc::new(Chunker::new(&secret(), profile));
        let sealer = Arc::new(Sealer::new(&secret()));
        let writer = ObjectWriter::new(sealer, chunker, kind);
        let mut sink = |block: crate::seal::SealedBlock| {
            blocks.insert(block.cid, block.bytes);
            Ok(())
        };
        writer.finish_with(data, &mut sink).unwrap()
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    fn entry(name: &str, kind: FileKind, link: ObjectLink) -> TreeEntry {
        TreeEntry {
            name: name.as_bytes().to_vec(),
            kind,
            mode: 0o644,
            mtime_ms: 0,
            link,
        }
    }

    /// A folder with a small file, a large one and a folder with another.
    fn folder(blocks: &mut Blocks) -> ObjectLink {
        let inner = write(Kind::Chunk, &noise(3, 3000), blocks);
        let inner = tree::encode(&[entry("inner", FileKind::File, inner)]).unwrap();
        let inner = write(Kind::Tree, &inner, blocks);
        let small = write(Kind::Chunk, b"small", blocks);
        let large = write(Kind::Chunk, &noise(4, 100_000), blocks);
        let listing = tree::encode(&[
            entry("folder", FileKind::Folder, inner),
            entry("large", FileKind::File, large),
            entry("small", FileKind::File, small),
        ])
        .unwrap();
        write(Kind::Tree, &listing, blocks)
    }

    fn start(leaves: Leaves) -> Reach {
        Reach::new(Opener::new(vec![secret()]), leaves, BTreeSet::new())
    }

    /// Goes on to the end; answers how many blocks were read.
    fn walk(reach: &mut Reach, blocks: &Blocks) -> usize {
        let mut reads = 0;
        while let Some(cid) = reach.next() {
            reads += 1;
            assert!(reads < 10_000, "walks in a circle");
            reach.feed(blocks.get(&cid));
        }
        reads
    }

    #[test]
    fn a_listing_reaches_everything_in_it_and_nothing_else() {
        let mut blocks = Blocks::new();
        let link = folder(&mut blocks);
        let mut other = Blocks::new();
        write(Kind::Chunk, &noise(9, 5000), &mut other);
        let mut reach = start(Leaves::new([9; 32]));
        reach.enter(link, true);
        let reads = walk(&mut reach, &blocks);
        let (reached, _) = reach.finish();
        assert!(reached.is_complete());
        assert!(blocks.keys().all(|cid| reached.has(cid)));
        assert_eq!(reached.len(), blocks.len());
        assert!(!other.keys().any(|cid| reached.has(cid)));
        assert!(reads * 5 < blocks.len(), "{reads} of {} read", blocks.len());
    }

    #[test]
    fn a_file_of_the_same_bytes_as_a_listing_does_not_hide_what_is_in_it() {
        let mut blocks = Blocks::new();
        let link = folder(&mut blocks);
        for order in [[true, false], [false, true]] {
            let mut reach = start(Leaves::new([9; 32]));
            for is_listing in order {
                reach.enter(link.clone(), is_listing);
            }
            walk(&mut reach, &blocks);
            assert_eq!(reach.finish().0.len(), blocks.len());
        }
    }

    #[test]
    fn what_is_one_block_is_read_once_for_all_walks() {
        let mut blocks = Blocks::new();
        let links: Vec<ObjectLink> = (0..50)
            .map(|seed| write(Kind::Chunk, &[seed; 9], &mut blocks))
            .collect();
        let mut leaves = Leaves::new([9; 32]);
        for expected in [50, 0] {
            let mut reach = start(leaves);
            for link in &links {
                reach.enter(link.clone(), false);
            }
            assert_eq!(walk(&mut reach, &blocks), expected);
            let (reached, kept) = reach.finish();
            assert!(blocks.keys().all(|cid| reached.has(cid)));
            leaves = kept;
        }
    }

    #[test]
    fn a_link_that_lies_about_its_length_is_not_remembered() {
        let mut blocks = Blocks::new();
        let link = write(Kind::Chunk, b"five!", &mut blocks);
        let mut long = link.clone();
        long.size = 1 << 40;
        let mut leaves = Leaves::new([9; 32]);
        for _ in 0..2 {
            let mut reach = start(leaves);
            reach.enter(long.clone(), false);
            assert_eq!(walk(&mut reach, &blocks), 1, "read each time");
            leaves = reach.finish().1;
        }
        assert!(!leaves.has(&long));
        let bytes = link.encode();
        assert_ne!(leaves.number(&bytes), Leaves::new([8; 32]).number(&bytes));
    }

    #[test]
    fn a_block_that_cannot_be_had_is_named_unless_it_is_lost() {
        let mut blocks = Blocks::new();
        let link = folder(&mut blocks);
        let whole = blocks.clone();
        let mut opened = Vec::new();
        let mut reach = start(Leaves::new([9; 32]));
        reach.enter(link.clone(), true);
        while let Some(cid) = reach.next() {
            opened.push(cid);
            reach.feed(blocks.get(&cid));
        }
        for gone in opened {
            blocks.remove(&gone);
            let mut reach = start(Leaves::new([9; 32]));
            reach.enter(link.clone(), true);
            walk(&mut reach, &blocks);
            let (reached, _) = reach.finish();
            assert!(!reached.is_complete());
            assert_eq!(reached.missing, [gone]);
            assert!(reached.has(&gone));
            let opener = Opener::new(vec![secret()]);
            let mut reach = Reach::new(opener, Leaves::new([9; 32]), BTreeSet::from([gone]));
            reach.enter(link.clone(), true);
            walk(&mut reach, &blocks);
            assert!(reach.finish().0.is_complete());
            blocks.insert(gone, whole[&gone].clone());
        }
    }

    #[test]
    fn false_links_hide_nothing() {
        let mut blocks = Blocks::new();
        let link = folder(&mut blocks);
        let mut wrong = link.clone();
        wrong.key = BlockKey::new([7; 32]);
        let mut reach = start(Leaves::new([9; 32]));
        // The last one entered is gone through first.
        reach.enter(link, true);
        reach.enter(wrong.clone(), true);
        reach.enter(wrong, false);
        walk(&mut reach, &blocks);
        let (reached, _) = reach.finish();
        assert!(reached.is_complete());
        assert!(blocks.keys().all(|cid| reached.has(cid)));
    }

    /// A public folder with a file of several leaves and a symlink, by that profile.
    fn public(profile: crate::unixfs::Profile, seed: u8, blocks: &mut Blocks) -> Cid {
        let mut sink = |cid, block: Bytes| {
            blocks.insert(cid, block);
            Ok(())
        };
        let mut file = crate::unixfs::FileBuilder::new(profile);
        let data = noise(seed, profile.leaf_bytes() * 2 + 10);
        for leaf in data.chunks(profile.leaf_bytes()) {
            file.leaf(leaf, &mut sink).unwrap();
        }
        let file = file.finish(&mut sink).unwrap();
        let link = crate::unixfs::symlink(profile, b"there", &mut sink).unwrap();
        let entries = [(b"file".to_vec(), file), (b"link".to_vec(), link)];
        crate::unixfs::folder(profile, &entries, &mut sink)
            .unwrap_or_else(|_| panic!("two names"))
            .cid
    }

    #[test]
    fn what_is_public_is_reached_from_its_roots_and_kept_altogether_unless_all_is_read() {
        for profile in ["unixfs-v1-2025", "unixfs-v0-2015"] {
            let profile = crate::unixfs::Profile::named(profile).unwrap();
            let (mut stays, mut goes) = (Blocks::new(), Blocks::new());
            let root = public(profile, 1, &mut stays);
            public(profile, 2, &mut goes);
            goes.retain(|cid, _| !stays.contains_key(cid));
            let mut sealed = Blocks::new();
            folder(&mut sealed);
            let mut leaves = Leaves::new([7; 32]);
            // A second walk knows which nodes lead nowhere, and does not read them.
            let mut reads = Vec::new();
            for _ in 0..2 {
                let opener = Opener::new(vec![secret()]);
                let mut reach = Reach::new(opener, leaves, BTreeSet::new());
                reach.enter_public(vec![root]);
                let mut count = 0;
                while let Some(cid) = reach.next() {
                    count += 1;
                    reach.feed(stays.get(&cid));
                }
                reads.push(count);
                let (reached, known) = reach.finish();
                leaves = known;
                assert_eq!(reached.public_missing, Some(0));
                assert!(
                    stays
                        .keys()
                        .all(|cid| reached.has(cid) && reached.has_public(cid))
                );
                assert!(
                    !goes
                        .keys()
                        .any(|cid| reached.has(cid) || reached.has_public(cid))
                );
                assert!(!sealed.keys().any(|cid| reached.has(cid)));
            }
            assert!(reads[1] < reads[0] && reads[1] == 2, "{reads:?}");
            // Without a node that may lead on, and without the walk, all of it is kept.
            for is_walked in [true, false] {
                let mut reach = start(Leaves::new([8; 32]));
                if is_walked {
                    reach.enter_public(vec![root]);
                }
                while let Some(cid) = reach.next() {
                    reach.feed(None);
                    assert_eq!(cid, root);
                }
                let (reached, _) = reach.finish();
                assert_eq!(reached.public_missing, is_walked.then_some(1));
                assert!(reached.is_complete());
                assert!(goes.keys().all(|cid| reached.has(cid)));
                assert!(!sealed.keys().any(|cid| reached.has(cid)));
                assert!(!goes.keys().any(|cid| reached.has_public(cid)));
            }
        }
    }
}
