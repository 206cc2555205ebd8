//! Writes archives.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kith_core::device::Device;
use kith_crdt::names::TreePath;
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::{Cid, EntryId};
use kith_object::key::Secret;
use kith_object::object::{ObjectLink, ObjectWriter};
use kith_object::seal::{Kind, SealedBlock, Sealer};
use kith_object::tree::{self, FileKind, TreeEntry};
use kith_object::{backup::SealedLink, id::EpochId, unixfs};
use kith_protocol::api::{Event, Failure, FailureKind, Name, What};
use tokio::runtime::Handle;

use super::super::Node;
use super::failure::archive_failure;
use super::get::item_at;
use super::public::profile_named;
use super::{CancelOnDrop, PROGRESS_EVERY, told};
use crate::backup::public::PublicWriter;
use crate::backup::{ArchiveError, Plan, Planner, Seen, write_backup};
use crate::config::fresh_rng;
use crate::local::Teller;
use crate::restore::Item;
use crate::source::Source;

/// How an archive is written.
pub(super) struct How {
    pub(super) current: bool,
    pub(super) public: Option<String>,
    pub(super) force: bool,
    pub(super) wait: bool,
}

/// What goes into a backup.
enum Subject {
    /// The space, with these objects.
    Space(Vec<(FileKind, ObjectLink)>),
    /// One thing, by the name that it is to have when it comes back; without a name what is in it.
    Thing { name: Option<Vec<u8>>, item: Item },
}

/// What single objects are sealed with.
struct Seals {
    epoch: EpochId,
    change: Secret,
    dedup: Secret,
}

impl Node {
    pub(super) async fn export(
        &self,
        what: Option<What>,
        file: Name,
        how: How,
        tell: &Teller,
    ) -> Result<(), Failure> {
        match &how.public {
            None => self.export_backup(what, file, how, tell).await,
            Some(name) => {
                let profile = profile_named(name)?;
                self.export_public(what, file, how, profile, tell).await
            }
        }
    }

    async fn export_public(
        &self,
        what: Option<What>,
        file: Name,
        how: How,
        profile: unixfs::Profile,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let dest = PathBuf::from(OsStr::from_bytes(&file.0));
        let doing = || format!("export into {}", file.lossy());
        let what = what.unwrap_or_else(|| What::Path(Name(b"/".to_vec())));
        let (_, item) = self.find(&what, how.wait, tell).await?;
        let source = self.source(how.wait).await?;
        let seen = Arc::new(Seen::default());
        let work = {
            let seen = seen.clone();
            let source = source.clone();
            move || {
                let root = PublicWriter::write(&source, profile, item, &dest, how.force, &seen)?;
                source.keeper.finish().map_err(ArchiveError::block)?;
                Ok(root)
            }
        };
        let root = self.exporting(&doing, &source, &seen, tell, work).await?;
        let exported = Event::Exported {
            cid: root.to_string(),
            file: file.clone(),
            size: seen.bytes.load(Ordering::Relaxed),
            blocks: seen.blocks.load(Ordering::Relaxed),
            entries: 0,
        };
        told(tell, exported).await
    }

    /// Runs blocking work and tells its progress; dropping the future cancels it.
    pub(super) async fn exporting<T: Send + 'static>(
        &self,
        doing: &(impl Fn() -> String + Sync),
        source: &Source,
        seen: &Seen,
        tell: &Teller,
        work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, Failure> {
        let tally = source.tally.clone();
        let _cancel = CancelOnDrop(move || tally.cancelled.store(true, Ordering::Relaxed));
        let mut task = tokio::task::spawn_blocking(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let outcome = loop {
            tokio::select! {
                done = &mut task => break done,
                _ = ticks.tick() => {
                    let progress = Event::Progress { bytes: seen.bytes.load(Ordering::Relaxed), total: None, files: 0 };
                    let _ = tell.try_send((progress, Bytes::new()));
                }
            }
        };
        outcome
            .map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?
            .map_err(|error| archive_failure(doing(), &error, self.asker.is_online()))
    }

    async fn export_backup(
        &self,
        what: Option<What>,
        file: Name,
        how: How,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let dest = PathBuf::from(OsStr::from_bytes(&file.0));
        let doing = || format!("export into {}", file.lossy());
        let whole = what.is_none();
        let (subject, seals) = self.subject(what, &how, tell).await?;
        let space = self.identity.space;
        let entries: Vec<EntryId> = self
            .look(move |device| match whole {
                true => device.replica().entries(),
                // Who belongs, and what gives them the keys.
                false => device.replica().access_entries(),
            })
            .await?;
        let source = self.source(how.wait).await?;
        let seen = Arc::new(Seen::default());
        let asker = self.asker.clone();
        let work = {
            let (seen, dest, handle) = (seen.clone(), dest.clone(), Handle::current());
            let source = source.clone();
            move || -> Result<(Cid, Plan), ArchiveError> {
                let read_entries = |ids: Vec<EntryId>| {
                    let read = handle.block_on(asker.entries(ids));
                    read.ok_or(ArchiveError::Cancelled)
                };
                let mut plan = plan(&source, subject, seals.as_ref(), |link, seals| {
                    SealedLink::seal(space, seals.epoch, &seals.change, link, &mut fresh_rng())
                })?;
                plan.entries = entries;
                let record = write_backup(
                    &source,
                    space,
                    &mut plan,
                    &read_entries,
                    &dest,
                    how.force,
                    &seen,
                )?;
                source.keeper.finish().map_err(ArchiveError::block)?;
                Ok((record, plan))
            }
        };
        let (record, plan) = self.exporting(&doing, &source, &seen, tell, work).await?;
        for text in &plan.told {
            let text = format!("left out {text}");
            told(tell, Event::Warning { text }).await?;
        }
        let exported = Event::Exported {
            cid: plan.roots.first().unwrap_or(&record).to_string(),
            file: file.clone(),
            size: seen.bytes.load(Ordering::Relaxed),
            blocks: seen.blocks.load(Ordering::Relaxed),
            entries: plan.entries.len() as u64,
        };
        told(tell, exported).await?;
        if plan.missing > 0 {
            let what = format!(
                "{}: {} blocks could not be had; the rest is in it",
                doing(),
                plan.missing
            );
            return Err(Failure::new(FailureKind::Partial, what)
                .hint("bring the devices that hold them online and export again, or wait for them with --wait"));
        }
        Ok(())
    }

    /// What is to be exported, and what a way to it is sealed with where it needs one.
    async fn subject(
        &self,
        what: Option<What>,
        how: &How,
        tell: &Teller,
    ) -> Result<(Subject, Option<Seals>), Failure> {
        let Some(what) = what else {
            let current = how.current;
            let objects = self.look(move |device| objects_of(device, current)).await?;
            let objects = objects.map_err(|error| {
                Failure::new(
                    FailureKind::Usage,
                    "export the tree: a path in it is too long",
                )
                .because(&error)
            })?;
            return Ok((Subject::Space(objects), None));
        };
        let (label, item) = self.find(&what, how.wait, tell).await?;
        let name = match &what {
            What::Cid(_) => Some(label.into_bytes()),
            What::Path(path) => super::tree_path(path)?.name().map(<[u8]>::to_vec),
        };
        let seals = self
            .look(|device| {
                let (epoch, _, member) = device.replica().epoch_parts()?;
                let member = member?;
                Some(Seals {
                    epoch,
                    change: member.change.clone(),
                    dedup: member.dedup.clone(),
                })
            })
            .await?;
        let seals = seals.ok_or_else(|| {
            Failure::new(FailureKind::Denied, "seal the way to what is exported: this device has no keys for it now")
                .hint("export the whole space, which needs none, or try again once this device can write (`kith status`)")
        })?;
        Ok((Subject::Thing { name, item }, Some(seals)))
    }
}

/// Every object that a version names, or that the tree shows now.
fn objects_of(
    device: &Device,
    current: bool,
) -> Result<Vec<(FileKind, ObjectLink)>, kith_crdt::names::PathError> {
    if !current {
        let versions = device.tree().versions();
        return Ok(versions
            .filter_map(|(_, record)| Some((record.kind, record.link?)))
            .collect());
    }
    let mut objects = Vec::new();
    let mut todo: Vec<Item> = item_at(device, &TreePath::root())?.into_iter().collect();
    while let Some(item) = todo.pop() {
        match item {
            Item::Leaf { kind, link, .. } => objects.push((kind, link)),
            Item::Folder { children, .. } => {
                todo.extend(children.into_iter().rev().map(|(_, child)| child));
            }
            Item::Snapshot { .. } | Item::Root { .. } => {}
        }
    }
    Ok(objects)
}

/// Plans a backup; a way to single objects leads to a listing with them.
fn plan(
    source: &Source,
    subject: Subject,
    seals: Option<&Seals>,
    seal: impl FnOnce(&ObjectLink, &Seals) -> SealedLink,
) -> Result<Plan, ArchiveError> {
    let mut planner = Planner::new(source);
    match (subject, seals) {
        (Subject::Space(objects), _) => {
            for (kind, link) in objects {
                planner.object(kind, link)?;
            }
            Ok(planner.finish())
        }
        (Subject::Thing { name, item }, Some(seals)) => {
            let mut made = Made::new(&seals.dedup);
            let entry = made.entry(source, name.clone().unwrap_or_default(), item)?;
            let root = entry.link.cid();
            // What is in the root folder comes back one by one: that folder itself has no name.
            let link = match name {
                Some(_) => made.listing(&[entry])?,
                None => entry.link,
            };
            for (cid, block) in made.blocks {
                planner.made(cid, block);
            }
            planner.object(FileKind::Folder, link.clone())?;
            let mut plan = planner.finish();
            plan.roots = vec![root];
            plan.sealed = Some(seal(&link, seals));
            Ok(plan)
        }
        (Subject::Thing { .. }, None) => Err(ArchiveError::Cancelled),
    }
}

/// Listings made of folders as the tree shows them.
pub(super) struct Made {
    sealer: Arc<Sealer>,
    chunker: Arc<Chunker>,
    /// Their blocks, which are stored nowhere yet.
    pub(super) blocks: BTreeMap<Cid, Bytes>,
}

impl Made {
    pub(super) fn new(dedup: &Secret) -> Self {
        Self {
            sealer: Arc::new(Sealer::new(dedup)),
            chunker: Arc::new(Chunker::new(dedup, Profile::DEFAULT)),
            blocks: BTreeMap::new(),
        }
    }

    fn listing(&mut self, entries: &[TreeEntry]) -> Result<ObjectLink, ArchiveError> {
        let bytes =
            tree::encode(entries).map_err(|error| ArchiveError::Device(error.to_string()))?;
        let writer = ObjectWriter::new(self.sealer.clone(), self.chunker.clone(), Kind::Tree);
        let keep = &mut |block: SealedBlock| {
            self.blocks.insert(block.cid, block.bytes);
            Ok(())
        };
        writer
            .finish_with(&bytes, keep)
            .map_err(|error| ArchiveError::Device(error.to_string()))
    }

    /// The item under that name; of folders, listings of what the tree shows in them.
    pub(super) fn entry(
        &mut self,
        source: &Source,
        name: Vec<u8>,
        item: Item,
    ) -> Result<TreeEntry, ArchiveError> {
        let entry = match item {
            Item::Leaf {
                kind,
                link,
                mode,
                mtime_ms,
            } => TreeEntry {
                name,
                kind,
                mode,
                mtime_ms,
                link,
            },
            Item::Snapshot {
                link,
                mode,
                mtime_ms,
            } => TreeEntry {
                name,
                kind: FileKind::Folder,
                mode,
                mtime_ms,
                link,
            },
            Item::Root { link } => {
                let folder =
                    source.first_kind(&link).map_err(ArchiveError::block)? == Some(Kind::Tree);
                let (kind, mode) = match folder {
                    true => (FileKind::Folder, 0o755),
                    false => (FileKind::File, 0o644),
                };
                TreeEntry {
                    name,
                    kind,
                    mode,
                    mtime_ms: 0,
                    link,
                }
            }
            Item::Folder {
                mode,
                mtime_ms,
                children,
            } => {
                let mut entries = Vec::with_capacity(children.len());
                for (name, child) in children {
                    entries.push(self.entry(source, name, child)?);
                }
                entries.sort_by(|one, other| one.name.cmp(&other.name));
                TreeEntry {
                    name,
                    kind: FileKind::Folder,
                    mode,
                    mtime_ms,
                    link: self.listing(&entries)?,
                }
            }
        };
        Ok(entry)
    }
}
