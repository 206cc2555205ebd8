//! Which blocks objects consist of, without reading their bytes.

use std::collections::BTreeSet;

use super::ObjectLink;
use crate::id::Cid;
use crate::manifest::{ChunkRef, Manifest};
use crate::seal::{Kind, OpenError, Opened, Opener};

/// Lists the blocks of objects, each once, in the order in which they are read; opens only what may be a manifest.
///
/// However few blocks a malicious member lets stand for however much, each is opened at most once for all links that are true. Keeps sixteen bytes of
/// each name that it met.
///
/// Spec: `protocol/spec/backup.md`, "Blocks".
#[derive(Debug)]
pub struct BlockWalk {
    opener: Opener,
    /// Nothing where repeats do no harm, which spares their memory.
    listed: Option<BTreeSet<[u8; 16]>>,
    /// What was opened, or could not be had. Apart from what was listed: a false manifest may name a manifest as its leaf, and that must not hide it.
    opened: BTreeSet<[u8; 16]>,
    /// What is still to be listed, the next one last.
    todo: Vec<(ChunkRef, Place)>,
}

/// What a block may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A leaf or a manifest of any level.
    Root,
    /// A leaf.
    Leaf,
    /// A manifest of that level.
    Manifest(u8),
}

/// The next block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A block that has nothing below it, listed for the first time.
    Leaf(Cid),
    /// A block that may have something below it, to be brought by [`BlockWalk::feed`], or given up by [`BlockWalk::give_up`].
    Open {
        /// Which.
        cid: Cid,
        /// Whether it is listed for the first time.
        new: bool,
    },
}

impl BlockWalk {
    /// A walk that has met nothing yet.
    pub fn new(opener: Opener) -> Self {
        Self {
            opener,
            listed: Some(BTreeSet::new()),
            opened: BTreeSet::new(),
            todo: Vec::new(),
        }
    }

    /// A walk that lists a block as often as it stands somewhere, and remembers only what may have others below it.
    pub fn repeating(opener: Opener) -> Self {
        Self {
            listed: None,
            ..Self::new(opener)
        }
    }

    /// Goes through another object; false if its root was opened before, and with it all below.
    pub fn enter(&mut self, link: &ObjectLink) -> bool {
        let new = self.opened.insert(half(&link.digest));
        if new {
            let part = ChunkRef {
                digest: link.digest,
                key: link.key.clone(),
                len: link.size,
            };
            self.todo.push((part, Place::Root));
        }
        new
    }

    /// Notes a block that is no object's; false if it was listed before.
    pub fn note(&mut self, cid: &Cid) -> bool {
        cid.digest().is_some_and(|digest| self.list(&digest))
    }

    fn list(&mut self, digest: &[u8; 32]) -> bool {
        let listed = self.listed.as_mut();
        listed.is_none_or(|listed| listed.insert(half(digest)))
    }

    /// The next block; `None` at the end of what was entered. After [`Step::Open`] comes [`feed`](Self::feed) or [`give_up`](Self::give_up).
    pub fn step(&mut self) -> Option<Step> {
        loop {
            let (part, place) = self.todo.last()?;
            let (digest, leaf) = (part.digest, *place == Place::Leaf);
            let cid = Cid::from_digest(digest);
            let new = self.list(&digest);
            if !leaf {
                return Some(Step::Open { cid, new });
            }
            self.todo.pop();
            if new {
                return Some(Step::Leaf(cid));
            }
        }
    }

    /// Brings the block that the last step was to open; its bytes are what its CID says.
    ///
    /// # Errors
    /// Why it does not belong where the object has it; the walk goes on behind it.
    pub fn feed(&mut self, block: &[u8]) -> Result<Kind, OpenError> {
        let Some((part, place)) = self.todo.pop() else {
            return Ok(Kind::Chunk);
        };
        let outcome = self.open(&part, place, block);
        if outcome.is_err() {
            // Another link may hold the true key.
            self.opened.remove(&half(&part.digest));
        }
        outcome
    }

    fn open(&mut self, part: &ChunkRef, place: Place, block: &[u8]) -> Result<Kind, OpenError> {
        let cid = Cid::from_digest(part.digest);
        let Opened { kind, data, .. } = self.opener.open_verified(&cid, block, &part.key)?;
        let malformed = |what| OpenError::Malformed { cid, what };
        if kind != Kind::Manifest && place == Place::Root {
            if data.len() as u64 != part.len {
                return Err(malformed("it is not as long as its link says"));
            }
            return Ok(kind);
        }
        if kind != Kind::Manifest {
            return Err(malformed(
                "it stands at another level than its manifest says",
            ));
        }
        let manifest = Manifest::decode(&data).map_err(|_| malformed("it is no manifest"))?;
        if matches!(place, Place::Manifest(level) if level != manifest.level) {
            return Err(malformed(
                "it stands at another level than its manifest says",
            ));
        }
        let below = match manifest.level {
            1 => Place::Leaf,
            level => Place::Manifest(level - 1),
        };
        // The last comes off first.
        for child in manifest.children.into_iter().rev() {
            if below == Place::Leaf || self.opened.insert(half(&child.digest)) {
                self.todo.push((child, below));
            }
        }
        Ok(kind)
    }

    /// The block that the last step was to open cannot be had: what is below it stays unknown.
    pub fn give_up(&mut self) {
        self.todo.pop();
    }
}

/// What is kept of a name: nobody finds two blocks that agree in so much.
fn half(digest: &[u8; 32]) -> [u8; 16] {
    let (half, _) = digest.split_first_chunk::<16>().expect("32 bytes");
    *half
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::chunk::{Chunker, Profile};
    use crate::key::Secret;
    use crate::manifest::FANOUT;
    use crate::object::ObjectWriter;
    use crate::seal::{BlockKey, Sealer};

    type Blocks = BTreeMap<Cid, Bytes>;

    fn secret() -> Secret {
        Secret::new([1; 32])
    }

    fn write(data: &[u8], blocks: &mut Blocks) -> ObjectLink {
        let profile = Profile {
            min: 64,
            mean: 128,
            max: 512,
        };
        let chunker = Arc::new(Chunker::new(&secret(), profile));
        let sealer = Arc::new(Sealer::new(&secret()));
        let writer = ObjectWriter::new(sealer, chunker, Kind::Chunk);
        writer
            .finish_with(data, &mut |block| {
                blocks.insert(block.cid, block.bytes);
                Ok(())
            })
            .unwrap()
    }

    fn seal(kind: Kind, data: &[u8], blocks: &mut Blocks) -> ChunkRef {
        let block = Sealer::new(&secret()).seal(kind, data);
        blocks.insert(block.cid, block.bytes.clone());
        ChunkRef::to(&block, data.len() as u64)
    }

    /// What the walk lists, and how often it opened something.
    fn walk(walk: &mut BlockWalk, blocks: &Blocks) -> (Vec<Cid>, usize) {
        let (mut listed, mut opened) = (Vec::new(), 0);
        while let Some(step) = walk.step() {
            match step {
                Step::Leaf(cid) => listed.push(cid),
                Step::Open { cid, new } => {
                    listed.extend(new.then_some(cid));
                    opened += 1;
                    assert!(opened < 10_000, "walks in a circle");
                    let _ = walk.feed(&blocks[&cid]);
                }
            }
        }
        (listed, opened)
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    #[test]
    fn every_block_is_listed_once_and_only_manifests_are_opened() {
        for len in [0, 10, 1000, 300_000] {
            let mut blocks = Blocks::new();
            let link = write(&noise(1, len), &mut blocks);
            let mut machine = BlockWalk::new(Opener::new(vec![secret()]));
            assert!(machine.enter(&link));
            let (mut listed, opened) = walk(&mut machine, &blocks);
            listed.sort();
            assert_eq!(listed, blocks.keys().copied().collect::<Vec<_>>(), "{len}");
            assert!(opened <= 1 + blocks.len() / 100);
            // The same object again, and one that shares its beginning.
            assert!(!machine.enter(&link));
            let before = blocks.len();
            let more = [noise(1, len), noise(2, 5000)].concat();
            assert!(machine.enter(&write(&more, &mut blocks)));
            assert_eq!(walk(&mut machine, &blocks).0.len(), blocks.len() - before);
        }
    }

    #[test]
    fn few_blocks_that_stand_for_all_bytes_there_are_cost_few_steps() {
        let mut blocks = Blocks::new();
        let mut part = seal(Kind::Chunk, &noise(1, 1000), &mut blocks);
        for level in 1..=4 {
            let manifest = Manifest {
                level,
                children: vec![part.clone(); FANOUT],
            };
            let total = manifest.total();
            part = seal(Kind::Manifest, &manifest.encode(), &mut blocks);
            part.len = total;
        }
        let link = ObjectLink {
            digest: part.digest,
            key: part.key,
            size: part.len,
        };
        let mut machine = BlockWalk::new(Opener::new(vec![secret()]));
        machine.enter(&link);
        let (listed, opened) = walk(&mut machine, &blocks);
        assert_eq!((listed.len(), opened), (5, 4));
    }

    #[test]
    fn false_links_and_manifests_hide_nothing_of_a_true_object() {
        let mut blocks = Blocks::new();
        let link = write(&noise(3, 100_000), &mut blocks);
        let all = blocks.len();
        let mut machine = BlockWalk::new(Opener::new(vec![secret()]));
        // The same block under a wrong key; and a manifest that names it as its leaf.
        let mut wrong = link.clone();
        wrong.key = BlockKey::new([7; 32]);
        machine.enter(&wrong);
        let (mut listed, _) = walk(&mut machine, &blocks);
        let manifest = Manifest {
            level: 1,
            children: vec![
                ChunkRef {
                    digest: link.digest,
                    key: link.key.clone(),
                    len: 9,
                };
                2
            ],
        };
        let part = seal(Kind::Manifest, &manifest.encode(), &mut blocks);
        machine.enter(&ObjectLink {
            digest: part.digest,
            key: part.key,
            size: 18,
        });
        listed.extend(walk(&mut machine, &blocks).0);
        assert!(machine.enter(&link));
        listed.extend(walk(&mut machine, &blocks).0);
        listed.sort();
        assert_eq!(listed.len(), all + 1);
        assert_eq!(listed, blocks.keys().copied().collect::<Vec<_>>());
    }
}
