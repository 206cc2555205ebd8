//! What a simulated device has on disk: packs and the log of entries, by the very engine of the real one.

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_crdt::chain::Entry;
use kith_object::disk::{Crash, SimDisk};
use kith_object::id::{Cid, EntryId, SpaceId};
use kith_object::index::MemIndex;
use kith_object::key::Rng;
use kith_object::log::Log;
use kith_object::store::{Store, StoreConfig, StoreError};

/// Packs on one simulated disk, the log on another, as they are in two folders on a real one.
#[derive(Clone, Debug, Default)]
pub struct Disks {
    packs: SimDisk,
    log: SimDisk,
}

/// A device's storage while it runs.
pub struct Storage {
    /// Its blocks.
    pub store: Store<SimDisk, MemIndex>,
    /// Its entries.
    pub log: Log<SimDisk>,
    /// Where each entry is.
    pub offsets: BTreeMap<EntryId, u64>,
}

impl Storage {
    /// A block, if it is here and sound. What is damaged counts as absent, so that it is fetched and put again.
    ///
    /// # Panics
    /// If the disk fails in a way that no scenario has it fail.
    pub fn block(&self, cid: &Cid) -> Option<Bytes> {
        match self.store.get(cid) {
            Ok(block) => block,
            Err(StoreError::Corrupt { .. }) => None,
            Err(error) => panic!("a disk that does not fail reads: {error}"),
        }
    }
}

/// Name of the log.
const LOG: &str = "entries.log";

impl Disks {
    /// Opens what is there, as a starting process does; returns the entries found too.
    ///
    /// # Panics
    /// If the storage does not open: after whatever crash, it must.
    pub fn open(&self, space: SpaceId) -> (Storage, Vec<Bytes>) {
        let config = StoreConfig::new(space);
        let (store, _) = Store::open(self.packs.clone(), MemIndex::new(), config)
            .expect("the store opens after any crash");
        let mut entries = Vec::new();
        let mut offsets = BTreeMap::new();
        let (log, _) = Log::open_each(self.log.clone(), LOG, |offset, bytes| {
            if let Ok(entry) = Entry::decode(&bytes) {
                offsets.insert(entry.id(), offset);
            }
            entries.push(bytes);
        })
        .expect("the log opens after any crash");
        (
            Storage {
                store,
                log,
                offsets,
            },
            entries,
        )
    }

    /// Lets a bit of a pack turn over, if there is one; answers of which file, and which.
    pub fn rot(&self, rng: &mut Rng) -> Option<(String, u64)> {
        self.packs.flip_random(rng)
    }

    /// A backup of both, as they are now.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self {
            packs: self.packs.copied(),
            log: self.log.copied(),
        }
    }

    /// Takes the power: what was not synced is lost in part.
    pub fn crash(&self, rng: &mut Rng) {
        let how = match rng.below(3) {
            0 => Crash::Kill,
            1 => Crash::Prefix,
            _ => Crash::Scatter,
        };
        self.packs.crash(how, rng);
        self.log.crash(how, rng);
    }
}
