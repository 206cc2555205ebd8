//! Brings all that a root reaches onto this disk, for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kith_object::id::Cid;
use kith_object::object::{BlockWalk, ObjectLink, Step};
use kith_object::pack::Class;
use kith_object::seal::Kind;
use kith_object::store::{Keep, StoreError, Verified};
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX, TreeEntry};
use kith_protocol::bulk::place::DIGESTS_MAX;

use crate::backup::Seen;
use crate::bulk::{FetchError, Fetched};
use crate::source::{ReadError, Source};

/// Blocks asked for at once: at the usual sizes some 16 MiB under way.
const BATCH: usize = 128;
/// Blocks that are lacking before packs are looked for in which they lie: as many as one question names.
const GATHERED: usize = DIGESTS_MAX;
/// With fewer, it is not worth a question.
const PACKS_LEAST: usize = 32;
/// Times in a row that nothing of a batch could be had, before no more is asked for: each costs seconds of hope.
const VAIN_MAX: u32 = 3;
/// Most things that are told by name where they are missing; the rest are counted.
const TOLD_MAX: usize = 10;

/// What a root reaches, as far as it is here now.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// Blocks that are here.
    pub(crate) blocks: u64,
    /// Blocks and listings that could not be had or read; what is below them is not counted.
    pub(crate) missing: u64,
    /// The first of these.
    pub(crate) told: Vec<String>,
    /// Bytes of all files, each listing counted once.
    pub(crate) size: u64,
}

/// A walk through an object and all below it, which fetches what is not here.
pub(crate) struct Fetch<'a> {
    source: &'a Source,
    seen: &'a Seen,
    walk: BlockWalk,
    /// Listings gone through.
    folders: BTreeSet<[u8; 32]>,
    /// Blocks that are not here, to be asked for together.
    absent: Vec<Cid>,
    /// How many there are before they are.
    gathered: usize,
    /// There are packs that may go to make room: what lies in them only is written anew.
    has_cached: bool,
    vain: u32,
    reached: Reached,
}

impl<'a> Fetch<'a> {
    pub(crate) fn new(source: &'a Source, seen: &'a Seen) -> Self {
        Self {
            source,
            seen,
            walk: BlockWalk::new(source.opener.clone()),
            folders: BTreeSet::new(),
            absent: Vec::new(),
            gathered: source.bulk.as_ref().map_or(BATCH, |_| GATHERED),
            has_cached: !source.store.cached_packs().is_empty(),
            vain: 0,
            reached: Reached::default(),
        }
    }

    /// Fetches what the root reaches, on the calling thread, which may block; all that is here then lasts.
    pub(crate) fn run(mut self, kind: FileKind, link: ObjectLink) -> Result<Reached, ReadError> {
        let mut todo = vec![(kind, link)];
        while let Some((kind, link)) = todo.pop() {
            self.object(&link)?;
            if kind == FileKind::Folder {
                let below = self.listing(&link)?.into_iter().rev();
                todo.extend(below.map(|entry| (entry.kind, entry.link)));
            } else {
                self.reached.size = self.reached.size.saturating_add(link.size);
            }
        }
        self.fetch()?;
        self.source.keeper.finish()?;
        self.source.store.flush().map_err(ReadError::Store)?;
        Ok(self.reached)
    }

    fn object(&mut self, link: &ObjectLink) -> Result<(), ReadError> {
        self.walk.enter(link);
        while let Some(step) = self.walk.step() {
            match step {
                Step::Leaf(cid) => {
                    if !self.is_here(&cid, true)? {
                        self.absent.push(cid);
                    }
                    if self.absent.len() >= self.gathered {
                        self.fetch()?;
                    }
                }
                Step::Open { cid, new } => match self.opened(&cid, new)? {
                    Some(block) => {
                        if let Err(error) = self.walk.feed(&block) {
                            self.lacks(|| error.to_string());
                        }
                    }
                    None => {
                        self.walk.give_up();
                        self.lacks(|| format!("block {cid} and what is below it"));
                    }
                },
            }
        }
        Ok(())
    }

    /// A block that has to be read to go on.
    fn opened(&mut self, cid: &Cid, new: bool) -> Result<Option<Bytes>, ReadError> {
        if self.is_here(cid, new)? {
            match self.source.store.get(cid) {
                Ok(Some(block)) => return Ok(Some(block)),
                Ok(None) | Err(StoreError::Corrupt { .. }) => {}
                Err(error) => return Err(ReadError::Store(error)),
            }
        }
        let block = self.ask(&[*cid])?.remove(cid);
        if new && let Some(block) = &block {
            self.count(block.len());
        }
        Ok(block)
    }

    /// Whether a block is here for good; counts it if so, unless it was before.
    fn is_here(&mut self, cid: &Cid, new: bool) -> Result<bool, ReadError> {
        if self.source.tally.cancelled.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled);
        }
        let store = &self.source.store;
        let Some(len) = store.size(cid).map_err(ReadError::Store)? else {
            return Ok(false);
        };
        if self.has_cached {
            match store.get(cid) {
                // Nothing is written if it lies in a pack that is kept.
                Ok(Some(block)) => store
                    .put_verified(Class::Bulk, Verified::computed(*cid, &block))
                    .map_err(ReadError::Store)?,
                Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(false),
                Err(error) => return Err(ReadError::Store(error)),
            };
        }
        if new {
            self.count(usize::try_from(len).unwrap_or(0));
        }
        Ok(true)
    }

    fn count(&mut self, len: usize) {
        self.reached.blocks += 1;
        self.seen.blocks.fetch_add(1, Ordering::Relaxed);
        self.seen.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// Asks others for what has gathered.
    fn fetch(&mut self) -> Result<(), ReadError> {
        let mut absent = std::mem::take(&mut self.absent);
        if absent.len() >= PACKS_LEAST {
            absent = self.fetch_packs(absent)?;
        }
        for batch in absent.chunks(BATCH) {
            let came = self.ask(batch)?;
            for cid in batch {
                match came.get(cid) {
                    Some(block) => self.count(block.len()),
                    None => self.lacks(|| format!("block {cid}")),
                }
            }
        }
        Ok(())
    }

    /// Fetches whole the packs of which much is lacking; answers what is lacking then.
    fn fetch_packs(&mut self, absent: Vec<Cid>) -> Result<Vec<Cid>, ReadError> {
        let Some(bulk) = &self.source.bulk else {
            return Ok(absent);
        };
        let cancelled = &self.source.tally.cancelled;
        let fetched = bulk.runtime.block_on(async {
            let mut packs = bulk.places(&absent).await;
            packs.retain(|pack| pack.wanted.saturating_mul(2) >= pack.blocks);
            if packs.is_empty() {
                return Ok(None);
            }
            bulk.fetch(packs, Keep::Kept, cancelled).await.map(Some)
        });
        let fetched = match fetched {
            Ok(None) => return Ok(absent),
            Ok(Some(fetched)) => fetched,
            Err(FetchError::Cancelled) => return Err(ReadError::Cancelled),
            // There may still be room for the blocks alone.
            Err(FetchError::Store(error)) if error.is_full() => {
                let store = &self.source.store;
                store.discard_parts().map_err(ReadError::Store)?;
                Fetched::default()
            }
            Err(FetchError::Store(error)) => return Err(ReadError::Store(error)),
        };
        for (device, bytes) in fetched.from {
            self.source.tally.came(device, bytes);
        }
        let mut left = Vec::new();
        for cid in absent {
            if !self.is_here(&cid, true)? {
                left.push(cid);
            }
        }
        Ok(left)
    }

    /// Those blocks, as far as they can be had; what comes is stored.
    fn ask(&mut self, cids: &[Cid]) -> Result<BTreeMap<Cid, Bytes>, ReadError> {
        if self.vain >= VAIN_MAX {
            return Ok(BTreeMap::new());
        }
        let found = self.source.blocks(cids)?;
        self.vain = if found.is_empty() { self.vain + 1 } else { 0 };
        Ok(found)
    }

    /// What is in a folder; nothing if its listing cannot be read.
    fn listing(&mut self, link: &ObjectLink) -> Result<Vec<TreeEntry>, ReadError> {
        if !self.folders.insert(link.digest) {
            return Ok(Vec::new());
        }
        // Its own blocks first, together; they come with those of other things if there are many.
        if self.absent.len() < PACKS_LEAST {
            self.fetch()?;
        }
        if self.vain >= VAIN_MAX
            && !self
                .source
                .store
                .has(&link.cid())
                .map_err(ReadError::Store)?
        {
            return Ok(self.unlisted(link));
        }
        let whole = match self.source.read_whole(link, TREE_BYTES_MAX) {
            Ok(Some((whole, Some(Kind::Tree)))) => tree::decode(&whole).ok(),
            Ok(_) | Err(ReadError::Unreachable { .. } | ReadError::Open(_)) => None,
            Err(error) => return Err(error),
        };
        match whole {
            Some(entries) => Ok(entries),
            None => Ok(self.unlisted(link)),
        }
    }

    fn unlisted(&mut self, link: &ObjectLink) -> Vec<TreeEntry> {
        self.lacks(|| format!("what is in the folder {}", link.cid()));
        Vec::new()
    }

    fn lacks(&mut self, what: impl FnOnce() -> String) {
        self.reached.missing += 1;
        if self.reached.told.len() < TOLD_MAX {
            self.reached.told.push(what());
        }
    }
}
