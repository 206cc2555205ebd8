//! Gets objects back by CID and path.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kith_core::device::Device;
use kith_crdt::names::{PathError, TreePath};
use kith_object::id::{Cid, DeviceId};
use kith_object::object::ObjectLink;
use kith_object::seal::Opener;
use kith_object::store::Keep;
use kith_object::tree::FileKind;
use kith_protocol::api::{self, Event, Failure, FailureKind, Name, What};

use super::super::Node;
use super::describe::device_name;
use super::failure::{not_found, read_failure, restore_failure};
use super::{CancelOnDrop, PROGRESS_EVERY, shown, told, tree_path};
use crate::local::Teller;
use crate::restore::{self, Item};
use crate::source::{Keeper, ReadError, Source, Tally};

/// Devices named where something cannot be had.
const AUTHORS_MAX: usize = 8;
/// Bytes of a file told at once.
const DATA_BYTES: usize = 1 << 20;

impl Node {
    /// What is meant: a label for people, a name for the destination, and the item.
    pub(super) async fn find(
        &self,
        what: &What,
        wait: bool,
        tell: &Teller,
    ) -> Result<(String, Item), Failure> {
        loop {
            match self.find_now(what).await {
                // What another device put may not be known here yet.
                Err(failure)
                    if wait && failure.kind == FailureKind::NotFound && self.asker.is_online() =>
                {
                    // Nobody waits any more once the client has gone.
                    if tokio::time::timeout(PROGRESS_EVERY, tell.closed())
                        .await
                        .is_ok()
                    {
                        return Err(failure);
                    }
                }
                found => return found,
            }
        }
    }

    async fn find_now(&self, what: &What) -> Result<(String, Item), Failure> {
        match what {
            What::Cid(text) => {
                let cid: Cid = text.parse().map_err(|error| {
                    Failure::new(FailureKind::Usage, format!("understand the CID {text}"))
                        .because(&error)
                })?;
                let known = self.look(move |device| device.tree().link_of(&cid)).await?;
                // The listing of a folder that was pinned by its path is named by no version.
                let pinned = || {
                    let pins = self.pins().ok()?.into_iter();
                    let mut links = pins.map(|pin| pin.link);
                    links.find(|link| link.cid() == cid)
                };
                let found = known.or_else(pinned);
                let link = found.ok_or_else(|| {
                    Failure::new(FailureKind::NotFound, format!("open {cid}: no version this device knows has that root"))
                        .hint("if it was put on another device just now, let the two connect (`kith status`) and try again")
                })?;
                Ok((cid.to_string(), Item::Root { link }))
            }
            What::Path(name) => {
                let path = tree_path(name)?;
                let label = shown(&path);
                let item = {
                    let path = path.clone();
                    self.look(move |device| item_at(device, &path)).await?
                };
                let item = item.map_err(|error| {
                    Failure::new(
                        FailureKind::Usage,
                        format!("open {label}: a path below it is too long"),
                    )
                    .because(&error)
                    .hint(
                        "get the folders in it one by one, by CID, or move them up with `kith mv`",
                    )
                })?;
                item.map(|item| (label, item))
                    .ok_or_else(|| not_found(&path))
            }
        }
    }

    pub(super) async fn source(&self, wait: bool) -> Result<Source, Failure> {
        let look = |device: &Device| {
            // Where nobody gives room for packs, who read something may be the second one to hold it.
            let keep = match device.keeper().redundancy() {
                Some(_) => Keep::Cached,
                None => Keep::Kept,
            };
            (device.replica().dedup_secrets(), keep)
        };
        let (secrets, keep) = self.look(look).await?;
        Ok(self.source_with(Opener::new(secrets), wait, keep))
    }

    /// A source that opens what this opener can, and keeps so what it fetches.
    pub(in crate::run) fn source_with(&self, opener: Opener, wait: bool, keep: Keep) -> Source {
        Source {
            store: self.store.clone(),
            asker: self.asker.clone(),
            opener,
            wait,
            tally: Arc::new(Tally::default()),
            keeper: Keeper::start(self.store.clone(), self.asker.clone(), keep),
            bulk: crate::run::held(&self.bulk).clone(),
        }
    }

    pub(super) async fn get(
        &self,
        what: What,
        dest: Name,
        force: bool,
        wait: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let (label, item) = self.find(&what, wait, tell).await?;
        let source = self.source(wait).await?;
        let tally = source.tally.clone();
        let _cancel = CancelOnDrop({
            let tally = tally.clone();
            move || tally.cancelled.store(true, Ordering::Relaxed)
        });
        let root = root_of(&item).map(|link| link.cid().to_string());
        let path = PathBuf::from(OsStr::from_bytes(&dest.0));
        let mut task =
            tokio::task::spawn_blocking(move || restore::restore(&source, item, &path, force));
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let outcome = loop {
            tokio::select! {
                done = &mut task => break done,
                _ = ticks.tick() => {
                    let (bytes, files) = (tally.bytes.load(Ordering::Relaxed), tally.files.load(Ordering::Relaxed));
                    let _ = tell.try_send((Event::Progress { bytes, total: None, files }, Bytes::new()));
                }
            }
        };
        let doing = || format!("get {label} into {}", dest.lossy());
        let restored =
            outcome.map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?;
        if let Err(error) = restored {
            let failure = restore_failure(doing(), &error, self.asker.is_online());
            return Err(self.with_holders(failure, &what).await);
        }
        let from = tally.from();
        let from = self
            .look(move |device| {
                from.iter()
                    .map(|(id, bytes)| api::FromDevice {
                        device: id.to_string(),
                        name: device_name(device, id),
                        bytes: *bytes,
                    })
                    .collect()
            })
            .await?;
        let (size, files) = (
            tally.bytes.load(Ordering::Relaxed),
            tally.files.load(Ordering::Relaxed),
        );
        told(
            tell,
            Event::Got {
                cid: root,
                dest,
                size,
                files,
                from,
            },
        )
        .await
    }

    pub(super) async fn cat(
        &self,
        what: What,
        range: Range<u64>,
        wait: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let (label, item) = self.find(&what, wait, tell).await?;
        let meant = what;
        let what = || format!("print {label}");
        let link = match &item {
            Item::Leaf {
                kind: FileKind::File,
                link,
                ..
            }
            | Item::Root { link } => link.clone(),
            _ => {
                return Err(
                    Failure::new(FailureKind::Usage, format!("{}: it is no file", what()))
                        .hint("list a folder with `kith ls`, restore it with `kith get`"),
                );
            }
        };
        let source = self.source(wait).await?;
        let tally = source.tally.clone();
        let _cancel = CancelOnDrop(move || tally.cancelled.store(true, Ordering::Relaxed));
        let out = tell.clone();
        let read = tokio::task::spawn_blocking(move || {
            source.read_file(&link, range, &mut |data| {
                for part in data.chunks(DATA_BYTES) {
                    let part = data.slice_ref(part);
                    let event = Event::Data {
                        len: part.len() as u64,
                    };
                    out.blocking_send((event, part))
                        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                }
                Ok(())
            })
        });
        let read: Result<bool, ReadError> = read
            .await
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?;
        match read {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(
                FailureKind::Usage,
                format!("{}: it is a folder", what()),
            )
            .hint("restore it with `kith get`")),
            Err(error) => {
                let failure = read_failure(what(), &error, self.asker.is_online());
                Err(self.with_holders(failure, &meant).await)
            }
        }
    }

    /// Says of something that nobody within reach has who had it last, as far as is known here, and who is away.
    async fn with_holders(&self, mut failure: Failure, what: &What) -> Failure {
        if failure.kind != FailureKind::Unreachable || !self.asker.is_online() {
            return failure;
        }
        let path = match what {
            What::Path(name) => tree_path(name).ok(),
            What::Cid(_) => None,
        };
        let causes = self.look(move |device| {
            let authors = path.map_or_else(BTreeSet::new, |path| authors_of(device, &path));
            holders(device, &authors)
        });
        failure.causes.extend(causes.await.unwrap_or_default());
        failure
    }
}

/// Who wrote what stands at a path, or directly below it.
fn authors_of(device: &Device, path: &TreePath) -> BTreeSet<DeviceId> {
    let versions = device.tree().history(path).into_iter();
    let versions = versions.filter(|item| item.current);
    let below = device.tree().list(path).unwrap_or_default();
    let below = below.into_iter().filter_map(|listed| listed.version);
    versions
        .map(|item| item.version.author)
        .chain(below.map(|version| version.author))
        .take(AUTHORS_MAX)
        .collect()
}

fn holders(device: &Device, authors: &BTreeSet<DeviceId>) -> Vec<String> {
    let me = device.id();
    let is_here = |id: &DeviceId| device.peers().contains(id);
    let belongs = |id: &DeviceId| device.access().members.contains_key(id);
    let mut causes: Vec<String> = authors
        .iter()
        .filter(|id| **id != me)
        .map(|id| {
            let state = match (belongs(id), is_here(id)) {
                (false, _) => "does not belong to the mesh any more",
                (true, true) => "is connected, and has not got all of it now",
                (true, false) => "is away",
            };
            format!(
                "last known holder: {}, which put it and {state}",
                device_name(device, id)
            )
        })
        .collect();
    let members = device.access().members.keys();
    let away: Vec<String> = members
        .filter(|id| **id != me && !is_here(id) && !authors.contains(*id))
        .take(AUTHORS_MAX)
        .map(|id| device_name(device, id))
        .collect();
    if !away.is_empty() {
        causes.push(format!("may hold it and are away: {}", away.join(", ")));
    }
    causes
}

/// What the tree shows at a path, with all below it.
pub(super) fn item_at(device: &Device, path: &TreePath) -> Result<Option<Item>, PathError> {
    let Some(node) = device.tree().resolve(path) else {
        return Ok(None);
    };
    let item = match (node.kind, node.link) {
        (FileKind::Folder, _) => {
            let mut items = Vec::new();
            for child in device.tree().list(path).unwrap_or_default() {
                let below = path.child(&child.name)?;
                if let Some(item) = item_at(device, &below)? {
                    items.push((child.name, item));
                }
            }
            Some(Item::Folder {
                mode: node.mode,
                mtime_ms: node.mtime_ms,
                children: items,
            })
        }
        (kind, Some(link)) => Some(Item::Leaf {
            kind,
            link,
            mode: node.mode,
            mtime_ms: node.mtime_ms,
        }),
        (_, None) => None,
    };
    Ok(item)
}

fn root_of(item: &Item) -> Option<&ObjectLink> {
    match item {
        Item::Leaf { link, .. } | Item::Snapshot { link, .. } | Item::Root { link } => Some(link),
        Item::Folder { .. } => None,
    }
}
