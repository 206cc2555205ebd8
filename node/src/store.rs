//! Where a device keeps its blocks and logs: folders on the real disk, fjall for the index, a lock on the whole.
//!
//! In a device's home: `packs/` with the packs, `logs/` with the logs, `index/` with what both can rebuild, `lock`.
//!
//! Spec: `protocol/spec/store.md`, "The real disk".

mod disk;
mod filter;
mod index;
mod lock;

use std::io;
use std::path::{Path, PathBuf};

use kith_object::id::SpaceId;
use kith_object::key::Secret;
use kith_object::store::{RecoveryReport, Store, StoreConfig, StoreError};

use crate::config::{Durability, Settings};

pub use disk::{RealDisk, Settler};
pub use index::FjallIndex;
pub use lock::{HomeLock, LOCK_WAIT, LockError};

/// The store of a real device.
pub type DiskStore = Store<RealDisk, FjallIndex>;

/// The folder of packs in a home.
pub(crate) const PACKS: &str = "packs";
/// The folder of logs in a home.
pub(crate) const LOGS: &str = "logs";
/// The folder of the index in a home.
const INDEX: &str = "index";
/// There while the index is made anew on demand.
const REBUILDING: &str = "index.rebuild";

/// Why a device's store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// A folder could not be made or read.
    #[error("open folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The index could neither be opened nor made anew.
    #[error("open the index in {}", path.display())]
    Index {
        /// The folder.
        path: PathBuf,
        /// What fjall or the system said.
        source: io::Error,
    },
    /// The packs could not be brought into order.
    #[error("open the store in {}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: Box<StoreError>,
    },
}

/// Opens the store in a home that the caller has locked ([`HomeLock`]).
///
/// `key` is the device's own, for the index alone: names in it are hashed and values masked under it. An index that is damaged, or was
/// made under another key, is made anew from the packs; that reads the footer of each.
///
/// # Errors
/// [`OpenStoreError`].
pub fn open_store(
    home: &Path,
    space: SpaceId,
    key: &Secret,
    settings: Settings,
) -> Result<(DiskStore, RecoveryReport), OpenStoreError> {
    open_store_telling(home, space, key, settings, &mut |_, _| {})
}

fn open_store_telling(
    home: &Path,
    space: SpaceId,
    key: &Secret,
    settings: Settings,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<(DiskStore, RecoveryReport), OpenStoreError> {
    let path = home.join(PACKS);
    let disk = RealDisk::open(&path).map_err(|source| OpenStoreError::Folder {
        path: path.clone(),
        source,
    })?;
    disk.set_relaxed(settings.durability == Durability::Relaxed);
    let index = home.join(INDEX);
    let index = FjallIndex::open(&index, key).map_err(|source| OpenStoreError::Index {
        path: index,
        source,
    })?;
    let config = StoreConfig {
        quota: settings.quota,
        cache: settings.cache,
        free_floor: settings.keep_free,
        ..StoreConfig::new(space)
    };
    Store::open_telling(disk, index, config, tell).map_err(|source| OpenStoreError::Store {
        path,
        source: Box::new(source),
    })
}

/// Opens the store with its index made anew from the packs; one that was interrupted goes on where it was.
///
/// # Errors
/// [`OpenStoreError`].
pub fn rebuild_index(
    home: &Path,
    space: SpaceId,
    key: &Secret,
    settings: Settings,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<DiskStore, OpenStoreError> {
    let index = home.join(INDEX);
    let under_way = home.join(REBUILDING);
    let failed = |source| OpenStoreError::Index {
        path: index.clone(),
        source,
    };
    if !under_way.exists() {
        // In this order: what says that a rebuild is under way must not outlive the wish to begin it.
        index::mark_damaged(&index).map_err(failed)?;
        std::fs::File::create(&under_way).map_err(failed)?;
    }
    let (store, _) = open_store_telling(home, space, key, settings, tell)?;
    std::fs::remove_file(&under_way).map_err(failed)?;
    Ok(store)
}

/// Removes the logs of a home in which no device came to be.
///
/// # Errors
/// [`OpenStoreError::Folder`].
pub fn forget_logs(home: &Path) -> Result<(), OpenStoreError> {
    let path = home.join(LOGS);
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OpenStoreError::Folder { path, source })
        }
        _ => Ok(()),
    }
}

/// Opens the folder of logs in a home that the caller has locked; `kith_object::log::Log` does the rest.
///
/// # Errors
/// [`OpenStoreError::Folder`].
pub fn open_logs(home: &Path, durability: Durability) -> Result<RealDisk, OpenStoreError> {
    let path = home.join(LOGS);
    let disk = RealDisk::open(&path).map_err(|source| OpenStoreError::Folder { path, source })?;
    disk.set_relaxed(durability == Durability::Relaxed);
    Ok(disk)
}

#[cfg(test)]
mod tests;
