//! A device comes to be from the words and a backup, where no other device of the mesh is left.

use std::collections::BTreeSet;
use std::path::Path;

use kith_crdt::access::{Newcomer, Role};
use kith_crdt::chain::{DocumentKind, Entry};
use kith_crdt::replica::Replica;
use kith_object::backup::{self, Record};
use kith_object::car::{Block, Item};
use kith_object::id::{Cid, SpaceId};
use kith_object::key::{DeviceKeys, Secret, Words};
use kith_protocol::api::{Failure, FailureKind};
use kith_protocol::pairing::DeviceName;

use super::reading::{entry_of, next, reader, record_of};
use super::{ArchiveError, open};
use crate::config::{Home, HomeError, Identity, fresh_rng, now};
use crate::join::Joined;
use crate::run::{NodeError, UNSETTLED_FILE, lock, write_first_entries};

/// Most entries of `access` taken from a backup, and their bytes: as many as a door may send.
const ACCESS_ENTRIES_MAX: usize = 1 << 18;
const ACCESS_BYTES_MAX: usize = 64 << 20;

/// Makes a device in an empty home that can open all that the backup holds, and nothing more: what is in it is brought by an import.
///
/// The device becomes an admin, since who has the words has every right, and seals nothing before it has met another one or removed all others: the
/// backup may be older than what they know.
///
/// # Errors
/// A [`Failure`] that says what is wrong with the file, the words, or the folder.
pub fn by_backup(home: &Home, words: &Words, file: &Path, name: &str) -> Result<Joined, Failure> {
    let what = || format!("open {} with the words", file.display());
    let name = DeviceName::new(name).map_err(|error| {
        Failure::new(FailureKind::Usage, format!("call this device {name:?}"))
            .because(&error)
            .hint("choose another with --name")
    })?;
    let unusable = |error: &NodeError| {
        let what = format!("make a device in {}", home.path().display());
        match error {
            NodeError::Home(HomeError::Exists { .. }) => {
                Failure::new(FailureKind::Exists, format!("{what}: there is one already")).hint(
                    "import into it without --words, or choose another folder with --home DIR",
                )
            }
            other => Failure::new(FailureKind::Failed, what).because(other),
        }
    };
    home.prepare().map_err(|error| unusable(&error.into()))?;
    let _lock = lock(home, "kith import").map_err(|error| unusable(&error))?;
    // Another process may have made one while this one waited.
    home.prepare().map_err(|error| unusable(&error.into()))?;
    let archive = |error: &ArchiveError| match error {
        ArchiveError::NoArchive { .. } | ArchiveError::NoRecord { .. } => {
            Failure::new(FailureKind::Usage, what())
                .because(error)
                .hint("give a file that `kith export --car` made")
        }
        _ => Failure::new(FailureKind::Failed, what()).because(error),
    };
    let record = record_of(file).map_err(|error| archive(&error))?;
    let entries = access_entries(file, &record).map_err(|error| archive(&error))?;
    let keys = DeviceKeys::generate(&mut fresh_rng());
    let (entries, mesh) = admit(words, &keys, name.as_str(), record.space, entries)
        .map_err(|why| Failure::new(FailureKind::Denied, format!("{}: {why}", what())).hint("see that these are the words of the mesh that the backup is of, and try another copy of the file if there is one"))?;
    let settle = || -> Result<(), NodeError> {
        write_first_entries(home, &entries)?;
        home.write_whole(UNSETTLED_FILE, b"")?;
        home.write_identity(&Identity {
            space: mesh,
            keys: keys.clone(),
            door: Secret::generate(&mut fresh_rng()),
        })?;
        Ok(())
    };
    settle().map_err(|error| unusable(&error))?;
    Ok(Joined {
        mesh,
        device: keys.id(),
        name: name.as_str().to_owned(),
        role: "admin",
    })
}

/// The entries of `access` in a backup. Reads no further than to the last entry that the record names.
fn access_entries(path: &Path, record: &Record) -> Result<Vec<Entry>, ArchiveError> {
    let mut reader = reader(path, open(path)?)?;
    let mut lacking: BTreeSet<Cid> = record.entries.iter().copied().collect();
    let (mut seen, mut entries, mut bytes_held) = (BTreeSet::new(), Vec::new(), 0usize);
    while !lacking.is_empty()
        && let Some(item) = next(path, &mut reader)?
    {
        let Item::Block(Block { cid, bytes, .. }) = item else {
            continue;
        };
        if backup::is_node(&cid) {
            if lacking.remove(&cid)
                && let Ok(list) = backup::decode_list(&bytes)
            {
                lacking.extend(list.into_iter().filter(|cid| !seen.contains(cid)));
            }
            continue;
        }
        let Some(entry) = entry_of(record.space, &bytes) else {
            continue;
        };
        lacking.remove(&cid);
        if !seen.insert(cid) || entry.header().document != DocumentKind::Access {
            continue;
        }
        bytes_held = bytes_held.saturating_add(bytes.len());
        if entries.len() >= ACCESS_ENTRIES_MAX || bytes_held > ACCESS_BYTES_MAX {
            return Err(ArchiveError::TooMany);
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Judges a mesh by its root key and, as the root, admits this device: all entries to begin with.
fn admit(
    words: &Words,
    keys: &DeviceKeys,
    name: &str,
    mesh: SpaceId,
    entries: Vec<Entry>,
) -> Result<(Vec<Entry>, SpaceId), &'static str> {
    let root = words.root();
    let mut replica = Replica::open_with_recovery(mesh, Some(keys), root.recovery.clone());
    for entry in entries {
        replica.insert(entry);
    }
    let mut entries = replica.take_accepted();
    match replica.access().root {
        None => return Err("the entries that say which mesh it is are not in the file"),
        Some(found) if found != root.sign.id() => return Err("the words are of another mesh"),
        Some(_) => {}
    }
    let newcomer = Newcomer {
        device: keys.id(),
        agree: keys.agree_public(),
        name: name.to_owned(),
        role: Role::Admin,
    };
    let own = replica
        .admit_by_root(&root, now(), &mut fresh_rng(), &newcomer)
        .map_err(|_| "its keys cannot be opened with these words")?;
    entries.extend(own);
    Ok((entries, mesh))
}
