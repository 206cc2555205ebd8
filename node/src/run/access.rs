//! A second copy of who belongs to the mesh. Without those entries a device whose log is damaged could not let in the devices that would heal it.
//!
//! Spec: `protocol/spec/home.md`, "Copy of access".

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kith_core::device::{Device, Waking};
use kith_crdt::chain::{ENTRY_BYTES_MAX, Entry};
use kith_object::id::EntryId;
use kith_object::key::DeviceKeys;
use kith_object::log::{Log, LogError};

use super::Node;
use crate::config::{Home, HomeError, fresh_rng};
use crate::store::RealDisk;

/// The file of the copy.
pub(crate) const ACCESS_FILE: &str = "access";
const MAGIC: &[u8; 8] = b"kithacc1";
/// Longest copy: some ten thousand entries. A longer one is not kept.
const COPY_BYTES_MAX: u64 = 32 << 20;

/// Whether the copy has all that it should.
#[derive(Debug)]
pub(super) struct AccessCopy {
    /// Entries of `access` that the device knew when the copy was last like them.
    like: AtomicUsize,
}

impl AccessCopy {
    /// As it stands beside a device that has read its log.
    pub(super) fn beside(home: &Home, keys: &DeviceKeys, device: &Device) -> Self {
        let entries = device.access_from_genesis();
        let same = read(home, keys).is_some_and(|kept| kept == entries);
        let like = if same { device.access_entry_count() } else { 0 };
        Self {
            like: AtomicUsize::new(like),
        }
    }
}

impl Node {
    /// Writes the copy again if entries have come since.
    pub(super) async fn keep_access(&self) {
        let like = self.access_copy.like.load(Ordering::Relaxed);
        let changed = move |device: &Device| {
            let count = device.access_entry_count();
            (count != like).then(|| (count, device.access_from_genesis()))
        };
        let Some(Some((count, entries))) = self.asker.look(changed).await else {
            return;
        };
        match self.write_access(entries).await {
            Ok(()) => self.access_copy.like.store(count, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(%error, "there is no second copy of who belongs to the mesh");
            }
        }
    }

    /// Writes the copy, whatever was there.
    pub(super) async fn write_access(&self, entries: Vec<Bytes>) -> Result<(), HomeError> {
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let write = move || write(&home, &keys, &entries);
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn write(home: &Home, keys: &DeviceKeys, entries: &[Bytes]) -> Result<(), HomeError> {
    let plain = encode(entries);
    if plain.len() as u64 >= COPY_BYTES_MAX {
        return Ok(());
    }
    home.write_sealed(ACCESS_FILE, keys, &mut fresh_rng(), &plain)
}

/// The entries in the copy; `None` if there is none, or it is not what was written.
pub(crate) fn read(home: &Home, keys: &DeviceKeys) -> Option<Vec<Bytes>> {
    let plain = home
        .read_sealed_strictly(ACCESS_FILE, keys, COPY_BYTES_MAX)
        .ok()??;
    decode(&plain)
}

/// Writes what the copy has, and a damaged log has not, to the end of the log; says how much that is.
pub(super) fn mend(
    home: &Home,
    keys: &DeviceKeys,
    log: &mut Log<RealDisk>,
    offsets: &mut BTreeMap<EntryId, u64>,
    waking: &mut Waking,
) -> Result<usize, LogError> {
    let mut count = 0;
    for bytes in read(home, keys).unwrap_or_default() {
        let Ok(entry) = Entry::decode(&bytes) else {
            continue;
        };
        let id = entry.id();
        if offsets.contains_key(&id) {
            continue;
        }
        let offset = log.append(&bytes)?;
        waking.recover(entry);
        offsets.insert(id, offset);
        count += 1;
    }
    if count > 0 {
        log.sync()?;
    }
    Ok(count)
}

fn encode(entries: &[Bytes]) -> Vec<u8> {
    let mut plain = MAGIC.to_vec();
    for entry in entries {
        let len = u32::try_from(entry.len()).expect("an entry is at most ENTRY_BYTES_MAX");
        plain.extend(len.to_le_bytes());
        plain.extend_from_slice(entry);
    }
    plain
}

fn decode(plain: &[u8]) -> Option<Vec<Bytes>> {
    let mut rest = plain.strip_prefix(MAGIC)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        if len > ENTRY_BYTES_MAX {
            return None;
        }
        let (entry, after) = after.split_at_checked(len)?;
        entries.push(Bytes::copy_from_slice(entry));
        rest = after;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_read_as_it_was_written_and_nothing_else_is() {
        let entries: Vec<Bytes> = [&b""[..], b"one", &[7; 5000]]
            .map(Bytes::copy_from_slice)
            .to_vec();
        let plain = encode(&entries);
        assert_eq!(decode(&plain), Some(entries));
        assert_eq!(decode(&encode(&[])), Some(Vec::new()));
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"kithacc2"), None);
        // A copy that ends between two entries is shorter, and one that ends elsewhere is none.
        let ends = (0..plain.len()).filter(|end| decode(&plain[..*end]).is_some());
        assert_eq!(ends.collect::<Vec<_>>(), [8, 12, 19]);
        let long = [&MAGIC[..], &u32::MAX.to_le_bytes()].concat();
        assert_eq!(decode(&long), None);
    }
}
