//! The jobs of garbage collection on one store: which packs are worth retiring, copying out what is kept, dropping what is ripe.
//!
//! Each is a plain function that may block on the disk: a job for the daemon's threads, and run inline by the simulator. What they are given was asked of
//! the device after [`Store::begin_run`].
//!
//! Spec: `protocol/spec/garbage.md`, "Retiring".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kith_crdt::catalogue::Retired;
use kith_object::disk::Disk;
use kith_object::id::{Cid, PackId};
use kith_object::index::Index;
use kith_object::object::{Reach, Reached};
use kith_object::pack::Class;
use kith_object::store::{Store, StoreError};

/// A pack below this is small: it is merged with others.
pub const SMALL_BYTES: u64 = 4 << 20;
/// So many small packs of a class are worth merging.
pub const SMALL_COUNT: usize = 8;
/// So many bytes of them, too.
pub const SMALL_TOGETHER_BYTES: u64 = 16 << 20;
/// Most blocks that one retirement leaves out: their digests then fit an entry. What is beyond is copied like what is kept.
pub const LEFT_OUT_MAX: usize = 30_000;
/// Packs retired together: their copies share packs, and one entry tells of them.
pub const BATCH_PACKS: usize = 16;
/// Bytes copied out together, at most, and a pack more: what the disk needs beside what is there until the old packs go.
pub const BATCH_BYTES: u64 = 64 << 20;

/// Why a pack is retired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    /// At least half of it is not reached.
    Garbage,
    /// It is small, and so are others of its class.
    Small,
}

/// A pack worth retiring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub pack: PackId,
    /// What its blocks are for.
    pub class: Class,
    /// Why.
    pub why: Why,
    /// Bytes of its file.
    pub bytes: u64,
    /// Its blocks that are not reached, and their bytes.
    pub garbage: (u64, u64),
}

/// What a look at all packs came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Packs worth retiring, those that free most first.
    pub candidates: Vec<Candidate>,
    /// Kept packs looked at.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, bytes of blocks that are not reached, wherever they lie; none if the walk was incomplete.
    pub garbage_bytes: u64,
    /// Packs passed over because work under way relies on them.
    pub relied_on: u64,
    /// Packs passed over because they are damaged: for scrub to find.
    pub damaged: u64,
}

/// Goes through what is kept; `fetch` is told of blocks that are not here and may bring them.
///
/// # Errors
/// [`StoreError`] of the disk or the index as a whole; nothing if `is_over` said to stop.
pub fn walk<D: Disk, I: Index>(
    store: &Store<D, I>,
    reach: &mut Reach,
    is_over: &dyn Fn() -> bool,
) -> Result<bool, StoreError> {
    while let Some(cid) = reach.next() {
        if is_over() {
            return Ok(false);
        }
        match store.get(&cid) {
            Ok(block) => reach.feed(block.as_ref()),
            // As if it were not here: it may be had from others.
            Err(StoreError::Corrupt { .. } | StoreError::Read { .. }) => reach.feed(None),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Looks at every kept pack that is not on its way out. `reached` is what a walk came to; without one, packs are merged and nothing is left out. Of `others`
/// another device takes care: they are counted, and are no candidates.
///
/// # Errors
/// [`StoreError::Index`], [`StoreError::Read`].
pub fn survey<D: Disk, I: Index>(
    store: &Store<D, I>,
    reached: Option<&Reached>,
    others: &BTreeSet<PackId>,
    is_over: &dyn Fn() -> bool,
) -> Result<Survey, StoreError> {
    let mut survey = Survey::default();
    let mut small: BTreeMap<u8, Vec<Candidate>> = BTreeMap::new();
    let cached: BTreeSet<PackId> = store.cached_packs().into_iter().collect();
    for (pack, info) in store.packs()? {
        if is_over() {
            break;
        }
        if cached.contains(&pack) || store.is_retired(&pack) {
            continue;
        }
        survey.packs += 1;
        survey.bytes += info.bytes;
        // No name leads to parity: it goes with what it restores.
        if info.class == Class::Parity {
            continue;
        }
        let mut garbage = (0, 0);
        if let Some(reached) = reached {
            match store.pack_blocks(&pack) {
                Ok(blocks) => {
                    for block in blocks.iter().filter(|block| !reached.has(&block.cid)) {
                        garbage = (garbage.0 + 1, garbage.1 + u64::from(block.len));
                    }
                }
                Err(StoreError::Pack { .. }) => {
                    survey.damaged += 1;
                    continue;
                }
                // It went meanwhile.
                Err(StoreError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        survey.garbage_bytes += garbage.1;
        let is_garbage = garbage.0 > 0 && garbage.1 * 2 >= info.bytes;
        if !is_garbage && info.bytes >= SMALL_BYTES || others.contains(&pack) {
            continue;
        }
        if store.is_relied_on(&pack) {
            survey.relied_on += 1;
            continue;
        }
        let candidate = Candidate {
            pack,
            class: info.class,
            why: if is_garbage { Why::Garbage } else { Why::Small },
            bytes: info.bytes,
            garbage,
        };
        if is_garbage {
            survey.candidates.push(candidate);
        } else {
            small
                .entry(info.class.to_byte())
                .or_default()
                .push(candidate);
        }
    }
    survey
        .candidates
        .sort_by_key(|candidate| std::cmp::Reverse(candidate.garbage.1));
    for (_, mut packs) in small {
        let bytes: u64 = packs.iter().map(|candidate| candidate.bytes).sum();
        if packs.len() >= SMALL_COUNT || bytes >= SMALL_TOGETHER_BYTES {
            // The smallest first, so that they fill packs together.
            packs.sort_by_key(|candidate| (candidate.bytes, candidate.pack));
            survey.candidates.append(&mut packs);
        }
    }
    Ok(survey)
}

/// The candidates in groups to be retired together.
pub fn batches(candidates: &[Candidate]) -> Vec<Vec<Candidate>> {
    let mut batches: Vec<Vec<Candidate>> = Vec::new();
    let (mut why, mut bytes) = (None, 0);
    for candidate in candidates {
        let kept = candidate.bytes.saturating_sub(candidate.garbage.1);
        // Merges stay among themselves: nobody has to say that they miss nothing.
        let fits = why == Some(candidate.why)
            && bytes + kept <= BATCH_BYTES
            && batches.last().is_some_and(|batch| {
                batch.len() < BATCH_PACKS
                    || candidate.why == Why::Small && batch.len() < BATCH_PACKS * 16
            });
        if !fits {
            batches.push(Vec::new());
            bytes = 0;
        }
        (why, bytes) = (Some(candidate.why), bytes + kept);
        if let Some(batch) = batches.last_mut() {
            batch.push(candidate.clone());
        }
    }
    batches
}

/// Packs that were copied out, and what could not be.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the catalogue is to be told, without its basis.
    pub retired: Vec<Retired>,
    /// Bytes of blocks that were copied.
    pub copied_bytes: u64,
    /// Bytes of the files of packs that are retired.
    pub bytes: u64,
    /// Why a pack stays, of the first one that does.
    pub trouble: Option<StoreError>,
}

/// Marks packs, copies out what is kept of them and has it last. Whatever comes in between, what is not in the outcome is as it was.
///
/// Of a merge everything is kept; so it is without `reached`. With `spare`, what the store holds in reserve may be taken: only where the packs go at once.
///
/// # Errors
/// [`StoreError`] if copies cannot be made to last: then nothing is retired.
pub fn retire<D: Disk, I: Index>(
    store: &Store<D, I>,
    batch: &[Candidate],
    reached: Option<&Reached>,
    spare: bool,
) -> Result<Outcome, StoreError> {
    let mut outcome = Outcome::default();
    let marked: Vec<&Candidate> = batch
        .iter()
        .filter(|candidate| store.mark_retired(&candidate.pack))
        .collect();
    let mut copied = Vec::new();
    let mut is_full = false;
    for candidate in &marked {
        if is_full {
            store.unmark_retired(&candidate.pack);
            continue;
        }
        let leaves_out = candidate.why == Why::Garbage;
        let is_kept = |cid: &Cid| !leaves_out || reached.is_none_or(|reached| reached.has(cid));
        match store.copy_out(&candidate.pack, LEFT_OUT_MAX, spare, &is_kept) {
            Ok(out) => {
                outcome.copied_bytes += out.copied_bytes;
                copied.push((candidate.pack, out));
            }
            Err(error) => {
                store.unmark_retired(&candidate.pack);
                is_full = error.is_full();
                outcome.trouble.get_or_insert(error);
            }
        }
    }
    if outcome.copied_bytes > 0
        && let Err(error) = store.close_packs()
    {
        for (pack, _) in &copied {
            store.unmark_retired(pack);
        }
        return Err(error);
    }
    for (pack, out) in copied {
        // The copies made the very same pack again: it is not on its way out.
        if !store.is_retired(&pack) {
            continue;
        }
        match store.replacements(&out.kept) {
            Ok(Some(replacements)) => {
                outcome.bytes += out.bytes;
                outcome.retired.push(Retired {
                    pack,
                    replacements: replacements.into_iter().collect(),
                    basis: Vec::new(),
                    left_out: out.left_out,
                });
            }
            Ok(None) => store.unmark_retired(&pack),
            Err(error) => {
                store.unmark_retired(&pack);
                outcome.trouble.get_or_insert(error);
            }
        }
    }
    Ok(outcome)
}

/// Takes the marks of a batch back, when the catalogue could not be told.
pub fn take_back<D: Disk, I: Index>(store: &Store<D, I>, retired: &[Retired]) {
    for retired in retired {
        store.unmark_retired(&retired.pack);
    }
}

/// Whether no walk reaches a block; without any, all are as good as reached.
fn is_garbage(walks: &[Arc<Reached>], cid: &Cid) -> bool {
    !walks.is_empty() && !walks.iter().any(|reached| reached.has(cid))
}

/// Drops a ripe pack if it is here and nobody relies on it; answers the bytes that are free again.
///
/// `left_out` are the blocks that its retirements leave out; one that is reached after all, by any of these walks, is copied first. Without a walk, all are.
///
/// # Errors
/// [`StoreError`]; then the pack stays.
pub fn drop_ripe<D: Disk, I: Index>(
    store: &Store<D, I>,
    pack: &PackId,
    left_out: &BTreeSet<[u8; 32]>,
    walks: &[Arc<Reached>],
) -> Result<Option<u64>, StoreError> {
    if !store.mark_retired(pack) {
        return Ok(None);
    }
    let may_go = |cid: &Cid| {
        // Retirements do not name what is public: it is this device's alone.
        cid.digest().is_none_or(|digest| left_out.contains(&digest)) && is_garbage(walks, cid)
    };
    if walks.is_empty() {
        // What a retirement leaves out of what is public is not known, and not copied for that.
        for block in store.pack_blocks(pack)? {
            if block.cid.digest().is_none() && !store.lies_live(&block.cid)? {
                return Ok(None);
            }
        }
    }
    store.drop_retired(pack, &may_go)
}

/// Drops a ripe pack that another device has retired, as [`drop_ripe`] does, but copies nothing: it stays until what is to stay of it lies elsewhere on this disk.
///
/// # Errors
/// [`StoreError`]; then the pack stays.
pub fn drop_superseded<D: Disk, I: Index>(
    store: &Store<D, I>,
    pack: &PackId,
    left_out: &BTreeSet<[u8; 32]>,
    walks: &[Arc<Reached>],
) -> Result<Option<u64>, StoreError> {
    if !store.mark_retired(pack) {
        return Ok(None);
    }
    for block in store.pack_blocks(pack)? {
        let is_left_out = block
            .cid
            .digest()
            .is_some_and(|digest| left_out.contains(&digest));
        let may_go = is_left_out && is_garbage(walks, &block.cid);
        if !may_go && !store.lies_live(&block.cid)? {
            return Ok(None);
        }
    }
    drop_ripe(store, pack, left_out, walks)
}

/// Whether a kept public pack has blocks that no public root leads to, by a walk through all of them.
///
/// # Errors
/// [`StoreError`].
pub fn has_strays<D: Disk, I: Index>(
    store: &Store<D, I>,
    reached: &Reached,
) -> Result<bool, StoreError> {
    let cached: BTreeSet<PackId> = store.cached_packs().into_iter().collect();
    for (pack, info) in store.packs()? {
        if info.class != Class::Public || cached.contains(&pack) {
            continue;
        }
        let blocks = match store.pack_blocks(&pack) {
            Ok(blocks) => blocks,
            // Whatever is in it.
            Err(StoreError::Pack { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        if blocks.iter().any(|block| !reached.has_public(&block.cid)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which of the blocks that others leave out this device reaches and does not have in a live pack.
///
/// # Errors
/// [`StoreError::Index`].
pub fn owed<D: Disk, I: Index>(
    store: &Store<D, I>,
    left_out: &[[u8; 32]],
    reached: &Reached,
) -> Result<Vec<Cid>, StoreError> {
    let mut owed = Vec::new();
    for digest in left_out {
        let cid = Cid::from_digest(*digest);
        if reached.has(&cid) && !store.lies_live(&cid)? {
            owed.push(cid);
        }
    }
    Ok(owed)
}
