//! What a simulated device has on disk: packs and the log of entries, by the very engine of the real one.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use bytes::Bytes;
use kith_crdt::chain::Entry;
use kith_object::disk::{Crash, Disk, SimDisk};
use kith_object::id::{Cid, EntryId, PackId, SpaceId};
use kith_object::index::MemIndex;
use kith_object::key::Rng;
use kith_object::log::{Log, LogError};
use kith_object::store::{Store, StoreConfig, StoreError};
use kith_protocol::promise::Promised;

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
    /// What it promised to others, where packs are kept for others.
    pub promises: Option<Log<SimDisk>>,
    /// Of these, what was found at the start; and whether there was more.
    pub promised: (Vec<Promised>, bool),
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
            Err(StoreError::Read { source, .. }) if source.kind() == ErrorKind::InvalidData => None,
            Err(error) => panic!("a disk that does not fail reads: {error}"),
        }
    }
}

/// Name of the log.
const LOG: &str = "entries.log";
/// Name of the log of promises.
const PROMISES: &str = "promises.log";

/// Why a device does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The packs do not open.
    #[error(transparent)]
    Store(StoreError),
    /// The log does not open.
    #[error(transparent)]
    Log(LogError),
}

impl Disks {
    /// Empty ones, of which the packs may take so many bytes.
    pub fn of(capacity: Option<u64>) -> Self {
        let disks = Self::default();
        disks.leave_room(capacity, None);
        disks
    }

    /// Leaves so much room beside what is there, or else as much as the packs may take.
    pub fn leave_room(&self, capacity: Option<u64>, room: Option<u64>) {
        let most = capacity.unwrap_or(u64::MAX);
        let left = |disk: &SimDisk| room.map(|room| disk.used().saturating_add(room));
        self.packs
            .set_capacity(left(&self.packs).unwrap_or(most).min(most));
        self.log.set_capacity(left(&self.log).unwrap_or(u64::MAX));
    }

    /// Lets the next time fail at which either makes something durable.
    pub fn fail_next_sync(&self) {
        self.packs.fail_next_sync();
        self.log.fail_next_sync();
    }

    /// Takes back what was to fail and has not.
    pub fn mend(&self) {
        self.packs.heal();
        self.log.heal();
    }

    /// Opens what is there, as a starting process does, with the log of promises if there is to be one; returns the entries found too.
    ///
    /// # Errors
    /// [`OpenError`] where the disk has no room or fails just then.
    ///
    /// # Panics
    /// If the storage does not open for any other reason: after whatever crash, it must.
    pub fn open(&self, space: SpaceId, promises: bool) -> Result<(Storage, Vec<Bytes>), OpenError> {
        let config = StoreConfig::new(space);
        let faulty = self.packs.is_faulty() || self.log.is_faulty();
        let (store, _) = match Store::open(self.packs.clone(), MemIndex::new(), config) {
            Err(error) if faulty => return Err(OpenError::Store(error)),
            opened => opened.expect("the store opens after any crash"),
        };
        let mut entries = Vec::new();
        let mut offsets = BTreeMap::new();
        let opened = Log::open_each(self.log.clone(), LOG, |offset, bytes| {
            if let Ok(entry) = Entry::decode(&bytes) {
                offsets.insert(entry.id(), offset);
            }
            entries.push(bytes);
        });
        let (log, _) = match opened {
            Err(error) if faulty => return Err(OpenError::Log(error)),
            opened => opened.expect("the log opens after any crash"),
        };
        let mut promised = (Vec::new(), false);
        let promises = if promises {
            let opened =
                Log::open_each(
                    self.log.clone(),
                    PROMISES,
                    |_, record| match Promised::decode(&record) {
                        Ok(record) => promised.0.push(record),
                        Err(_) => promised.1 = true,
                    },
                );
            match opened {
                Err(error) if faulty => return Err(OpenError::Log(error)),
                opened => {
                    let (log, report) = opened.expect("the log of promises opens after any crash");
                    promised.1 |= !report.damaged.is_empty();
                    Some(log)
                }
            }
        } else {
            None
        };
        let storage = Storage {
            store,
            log,
            offsets,
            promises,
            promised,
        };
        Ok((storage, entries))
    }

    /// Whether a pack lies there to stay, of a device that does not run.
    pub fn holds(&self, pack: &PackId) -> bool {
        self.packs.len(&format!("{pack}.pack")).is_ok()
    }

    /// Lets a bit of a pack turn over, if there is one; answers what happened.
    pub fn rot(&self, rng: &mut Rng) -> Option<String> {
        let (file, bit) = self.packs.flip_random(rng)?;
        Some(format!("bit {bit} of {file} turn over"))
    }

    /// Lets a sector of a pack be lost, if there is one; answers what happened.
    pub fn lose_sector(&self, rng: &mut Rng) -> Option<String> {
        let (file, sector) = self.packs.lose_random(rng)?;
        Some(format!("sector {sector} of {file} lost"))
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
