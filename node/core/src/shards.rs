//! Makes shards, and packs of shards, out of what lies in a store. Jobs: they read and compute, and may take a while.
//!
//! Spec: `protocol/spec/upkeep.md`, "Packs that are coded".

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_object::coding::{self, Coding, CodingError, Shard};
use kith_object::disk::Disk;
use kith_object::id::PackId;
use kith_object::index::Index;
use kith_object::store::{AdoptError, Keep, Store, StoreError};

use crate::keeper::Pulled;

/// Why a pack was not made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of a pack cannot be read.
    #[error("read a pack")]
    Read(#[from] std::io::Error),
    /// What it is to be made of is not here.
    #[error("pack {0} is not here")]
    Lacking(PackId),
    /// What it is to be made of is here and makes something else.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// The shards that were named are not those of the pack.
    #[error("pack {0} has other shards than somebody said: whoever said it erred or lied")]
    Misnamed(PackId),
    /// It is made, and the store does not take it.
    #[error("pack {0} was made and is no pack")]
    Refused(PackId),
}

impl MakeError {
    /// What that comes to for whoever wants it.
    pub fn pulled(&self) -> Pulled {
        match self {
            Self::Store(error) if error.is_full() => Pulled::NoRoom,
            Self::Misnamed(_) => Pulled::Misnamed,
            _ => Pulled::Failed,
        }
    }
}

/// The whole file of a pack.
///
/// # Errors
/// [`MakeError::Lacking`], [`MakeError::Read`], [`MakeError::Store`].
pub fn read<D: Disk, I: Index>(store: &Store<D, I>, pack: &PackId) -> Result<Bytes, MakeError> {
    let info = store.pack_info(pack)?.ok_or(MakeError::Lacking(*pack))?;
    let len = usize::try_from(info.bytes).unwrap_or(usize::MAX);
    let whole = store.read_pack(pack, 0, len)?;
    Ok(whole.ok_or(MakeError::Lacking(*pack))?.into())
}

/// Puts the whole file of a pack into a store, to stay; goes on with what came of an earlier try.
///
/// # Errors
/// [`MakeError::Refused`], [`MakeError::Store`].
pub fn take_in<D: Disk, I: Index>(
    store: &Store<D, I>,
    pack: &PackId,
    whole: &[u8],
) -> Result<(), MakeError> {
    if let Some(mut part) = store.part(*pack, whole.len() as u64, Keep::Kept)? {
        let have = usize::try_from(part.len_bytes()).unwrap_or(0);
        store.append(&mut part, whole.get(have..).unwrap_or_default())?;
        match store.adopt(part) {
            Ok(_) => {}
            Err(AdoptError::Store(error)) => return Err(error.into()),
            Err(_) => return Err(MakeError::Refused(*pack)),
        }
    }
    if store.pack_info(pack)?.is_none() {
        return Err(MakeError::Refused(*pack));
    }
    // It may have been here as one that goes first when room is needed.
    if store.keep_of(pack) == Keep::Cached {
        store.keep(pack)?;
    }
    Ok(())
}

/// Makes all shards of a pack that lies here.
///
/// # Errors
/// [`MakeError`]; it is misnamed if any of them is called otherwise, or there are none.
pub fn all_of<D: Disk, I: Index>(
    store: &Store<D, I>,
    coding: &Coding,
) -> Result<Vec<Shard>, MakeError> {
    let pack = read(store, &coding.pack)?;
    match coding::code(&pack, coding.data.len(), coding.parity.len()) {
        Ok((own, shards)) if own == *coding => Ok(shards),
        Ok(_) | Err(CodingError::Kept(_) | CodingError::Erasure(_)) => {
            Err(MakeError::Misnamed(coding.pack))
        }
        // It is damaged.
        Err(error) => Err(error.into()),
    }
}

/// Makes a shard of a pack that lies here, and keeps it.
///
/// # Errors
/// As [`all_of`], and those of writing it.
pub fn cut<D: Disk, I: Index>(
    store: &Store<D, I>,
    coding: &Coding,
    at: usize,
) -> Result<(), MakeError> {
    let shards = all_of(store, coding)?;
    let shard = shards.get(at).ok_or(CodingError::Shard(at))?;
    take_in(store, &shard.id, &shard.bytes)
}

/// The files of such shards as lie here.
///
/// # Errors
/// [`MakeError`].
pub fn read_some<D: Disk, I: Index>(
    store: &Store<D, I>,
    coding: &Coding,
    some: impl IntoIterator<Item = usize>,
) -> Result<BTreeMap<usize, Bytes>, MakeError> {
    let ids: Vec<PackId> = coding.ids().collect();
    let files = some.into_iter().map(|at| {
        let id = ids.get(at).ok_or(CodingError::Shard(at))?;
        Ok((at, read(store, id)?))
    });
    files.collect()
}

/// Makes a shard, or the pack itself, of the files of other shards, and keeps it.
///
/// # Errors
/// [`MakeError`].
pub fn restore<D: Disk, I: Index>(
    store: &Store<D, I>,
    coding: &Coding,
    at: Option<usize>,
    files: &BTreeMap<usize, Bytes>,
) -> Result<(), MakeError> {
    if let Some(at) = at {
        let id = coding.ids().nth(at).ok_or(CodingError::Shard(at))?;
        return take_in(store, &id, &coding.restore(at, files)?);
    }
    let data = (0..coding.data.len()).map(|at| match files.get(&at) {
        Some(file) => Ok(file.clone()),
        None => coding.restore(at, files),
    });
    let data: Vec<Bytes> = data.collect::<Result<_, _>>()?;
    take_in(store, &coding.pack, &coding.join(&data)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use kith_object::disk::SimDisk;
    use kith_object::id::{Cid, SpaceId};
    use kith_object::index::MemIndex;
    use kith_object::pack::{Class, Header, PackWriter};
    use kith_object::store::StoreConfig;

    type SimStore = Store<SimDisk, Arc<MemIndex>>;

    fn store() -> SimStore {
        let config = StoreConfig::new(SpaceId([5; 32]));
        let (store, _) = Store::open(SimDisk::new(), Arc::default(), config).unwrap();
        store
    }

    fn blocks(seed: u8) -> Vec<Vec<u8>> {
        let block = |n: u8| {
            let mut block = vec![0; 900 + 7 * usize::from(n)];
            kith_object::key::Rng::from_seed([seed + n; 32]).fill(&mut block);
            block
        };
        (0..40).map(block).collect()
    }

    fn pack_of(blocks: &[Vec<u8>]) -> (PackId, Vec<u8>) {
        let header = Header::new(Class::Bulk, SpaceId([5; 32]));
        let mut writer = PackWriter::new(header);
        let mut file = header.encode().to_vec();
        for block in blocks {
            let head = PackWriter::record_head(&Cid::of_block(block), block.len());
            file.extend_from_slice(head.bytes());
            file.extend_from_slice(block);
            writer.push(&head, block);
        }
        let (footer, id) = writer.footer();
        (id, [file, footer].concat())
    }

    #[test]
    fn shards_come_of_a_pack_and_the_pack_and_lost_shards_of_shards() {
        let blocks = blocks(0);
        let (pack, whole) = pack_of(&blocks);
        let first = store();
        take_in(&first, &pack, &whole).unwrap();
        let (coding, _) = coding::code(&whole, 4, 2).unwrap();
        let others: Vec<SimStore> = (0..6).map(|_| store()).collect();
        let ids: Vec<PackId> = coding.ids().collect();
        for (at, other) in others.iter().enumerate() {
            cut(&first, &coding, at).unwrap();
            let shard = read(&first, &ids[at]).unwrap();
            take_in(other, &ids[at], &shard).unwrap();
            // Twice is once, and what was one to go is one to stay.
            take_in(other, &ids[at], &shard).unwrap();
            assert_eq!(other.keep_of(&ids[at]), Keep::Kept);
        }
        // Each block is read from one of them.
        for block in &blocks {
            let cid = Cid::of_block(block);
            let has = |store: &&SimStore| store.get(&cid).unwrap().is_some();
            assert_eq!(others.iter().filter(has).count(), 1);
        }
        let last = store();
        let from = [1, 3, 4, 5];
        let missing = read_some(&last, &coding, from);
        assert!(matches!(missing, Err(MakeError::Lacking(id)) if id == ids[1]));
        for at in from {
            take_in(&last, &ids[at], &read(&others[at], &ids[at]).unwrap()).unwrap();
        }
        let files = read_some(&last, &coding, from).unwrap();
        for at in [0, 2] {
            restore(&last, &coding, Some(at), &files).unwrap();
            assert_eq!(
                read(&last, &ids[at]).unwrap(),
                read(&others[at], &ids[at]).unwrap()
            );
        }
        let none = store();
        restore(&none, &coding, None, &files).unwrap();
        assert_eq!(read(&none, &pack).unwrap(), whole);
    }

    #[test]
    fn what_was_named_wrongly_is_not_made() {
        let (pack, whole) = pack_of(&blocks(0));
        let (_, other) = pack_of(&blocks(100));
        let here = store();
        take_in(&here, &pack, &whole).unwrap();
        let (coding, _) = coding::code(&whole, 4, 2).unwrap();
        let (of_other, _) = coding::code(&other, 4, 2).unwrap();
        let mut lying = coding.clone();
        lying.parity[1] = of_other.parity[1];
        // Any lie about it is told, whichever shard is wanted.
        let made = cut(&here, &lying, 0);
        assert!(matches!(made, Err(MakeError::Misnamed(id)) if id == pack));
        assert_eq!(here.packs().unwrap().len(), 1);
        assert!(cut(&here, &coding, 6).is_err());
        assert!(read_some(&here, &coding, [7]).is_err());
        assert!(restore(&here, &coding, Some(7), &BTreeMap::new()).is_err());
        let wrong = take_in(&here, &coding.data[0].id, &whole);
        assert!(matches!(wrong, Err(MakeError::Refused(_))));
    }
}
