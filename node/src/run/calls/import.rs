//! Takes archives in.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kith_core::device::{Command, Device};
use kith_crdt::names::{Change, TreePath};
use kith_object::backup::{Record, SealedLink};
use kith_object::id::{Cid, EntryId, SpaceId};
use kith_object::object::{BlockWalk, ObjectLink, Step};
use kith_object::pack::Class;
use kith_object::store::Verified;
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX, TREE_DEPTH_MAX, TreeEntry};
use kith_protocol::api::{self, Event, Failure, FailureKind, Name};
use tokio::runtime::Handle;

use super::super::Node;
use super::super::driver::Asker;
use super::failure::{archive_failure, change_failure, keys_changed, put_failure, read_failure};
use super::{CancelOnDrop, PROGRESS_EVERY, shown, told, tree_path};
use crate::backup::public::Archive;
use crate::backup::{ArchiveError, Found, Lacking, Taken, read_backup, record_of};
use crate::config::now;
use crate::local::Teller;
use crate::source::{ReadError, Source};
use crate::store::DiskStore;

/// Entries given to the machine at once, and their bytes.
const ENTRIES_AT_ONCE: usize = 1024;
const ENTRY_BYTES_AT_ONCE: usize = 16 << 20;
/// Most names that a folder of a backup may unfold to: a malicious member can build more, from few blocks, than any tree holds.
const NAMES_MAX: usize = 2_000_000;

/// How often a plain archive is stored anew because keys changed meanwhile.
const PUBLIC_TRIES: usize = 3;

/// How far an import is.
#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    new: AtomicU64,
    known: AtomicU64,
}

impl Node {
    pub(super) async fn import(
        &self,
        file: Name,
        to: Name,
        public: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let to = tree_path(&to)?;
        // What it finds here it relies on, until all of it has its names.
        let _lease = self.store.lease_all();
        if public {
            self.import_public(file, to, tell).await
        } else {
            self.import_backup(file, to, tell).await
        }
    }

    /// Stores what the roots of a plain archive lead to, each under its CID.
    async fn import_public(&self, file: Name, to: TreePath, tell: &Teller) -> Result<(), Failure> {
        let path = PathBuf::from(OsStr::from_bytes(&file.0));
        let doing = || format!("import {}", file.lossy());
        let archive = tokio::task::spawn_blocking(move || Archive::open(&path)).await;
        let mut archive = archive
            .map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?
            .map_err(|error| archive_failure(doing(), &error, self.asker.is_online()))?;
        for root in archive.roots.clone() {
            let target = to.child(root.to_string().as_bytes()).map_err(|error| {
                Failure::new(FailureKind::Usage, format!("name {root}")).because(&error)
            })?;
            let mut tries = 0;
            loop {
                let (ingest, secret) = self.ingest().await?;
                let work = {
                    let ingest = ingest.clone();
                    move || {
                        let stored = archive.store(&ingest, &root, now().0);
                        stored.map(|stored| (archive, stored))
                    }
                };
                let stored = self.ingesting(&ingest, tell, work).await;
                let stored = stored.map_err(|error| {
                    let failure = put_failure(Path::new(&file.lossy()), &error);
                    if failure.kind == FailureKind::Full {
                        return failure;
                    }
                    Failure::new(FailureKind::Corrupt, format!("{}: {root}", doing()))
                        .because(&error)
                });
                let (back, stored) = stored?;
                archive = back;
                if self.name(&target, &stored, secret).await? {
                    let put = api::Put {
                        cid: stored.link.cid().to_string(),
                        path: Name(target.to_bytes()),
                        size: stored.size,
                        files: stored.files,
                        dedup: ingest.progress.dedup.load(Ordering::Relaxed),
                    };
                    told(tell, Event::Put(put)).await?;
                    break;
                }
                // A device was removed meanwhile, and could confirm what is in the blocks.
                tries += 1;
                if tries == PUBLIC_TRIES {
                    return Err(keys_changed(&target));
                }
            }
        }
        Ok(())
    }

    async fn import_backup(&self, file: Name, to: TreePath, tell: &Teller) -> Result<(), Failure> {
        let path = PathBuf::from(OsStr::from_bytes(&file.0));
        let doing = || format!("import {}", file.lossy());
        let failed = |error: &ArchiveError| archive_failure(doing(), error, self.asker.is_online());
        let source = self.source(false).await?;
        let tally = source.tally.clone();
        let _cancel = CancelOnDrop({
            let tally = tally.clone();
            move || tally.cancelled.store(true, Ordering::Relaxed)
        });
        let progress = Arc::new(Progress::default());
        let work = {
            let into = Into {
                space: self.identity.space,
                store: self.store.clone(),
                asker: self.asker.clone(),
                handle: Handle::current(),
                progress: progress.clone(),
                source: source.clone(),
            };
            let path = path.clone();
            move || into.take_in(&path)
        };
        let mut task = tokio::task::spawn_blocking(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let outcome = loop {
            tokio::select! {
                done = &mut task => break done,
                _ = ticks.tick() => {
                    let event = Event::Progress { bytes: progress.bytes.load(Ordering::Relaxed), total: None, files: 0 };
                    let _ = tell.try_send((event, Bytes::new()));
                }
            }
        };
        let (record, taken, lacking) = outcome
            .map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?
            .map_err(|error| match error {
                Refused::Foreign => Failure::new(FailureKind::Denied, format!("{}: it is of another mesh", doing()))
                    .hint("make a device of that mesh in another folder: kith --home DIR import --car FILE --words"),
                Refused::Archive(error) => failed(&error),
            })?;
        let mut unnamed = 0;
        if let Some(sealed) = &record.sealed {
            unnamed = self.name_things(&doing, &source, sealed, &to, tell).await?;
        }
        if taken.damaged > 0 {
            let text = format!(
                "{} is damaged or cut short at {} places, {} bytes in all",
                file.lossy(),
                taken.damaged,
                taken.damaged_bytes
            );
            told(tell, Event::Warning { text }).await?;
        }
        for cid in &lacking.told {
            let text = format!("missing: {cid}");
            told(tell, Event::Warning { text }).await?;
        }
        let missing = lacking.blocks + lacking.entries + lacking.lists;
        let imported = Event::Imported {
            file: file.clone(),
            blocks: progress.new.load(Ordering::Relaxed),
            known: progress.known.load(Ordering::Relaxed),
            entries: taken.entry_ids().len() as u64,
            damaged: taken.damaged,
            missing,
        };
        told(tell, imported).await?;
        if !lacking.is_nothing() || unnamed > 0 {
            let lists = match lacking.lists {
                0 => String::new(),
                lists => format!(", and {lists} lists of more"),
            };
            let what = format!(
                "{}: {} blocks and {} entries{lists} are neither in it nor here; all that is sound in it is kept",
                doing(),
                lacking.blocks,
                lacking.entries,
            );
            return Err(Failure::new(FailureKind::Partial, what)
                .hint("import another copy of the file too: what one lacks the other may have"));
        }
        Ok(())
    }

    /// Names what a backup of single objects holds, and tells each; returns how much had to stay unnamed.
    async fn name_things(
        &self,
        doing: &impl Fn() -> String,
        source: &Source,
        sealed: &SealedLink,
        to: &TreePath,
        tell: &Teller,
    ) -> Result<usize, Failure> {
        self.until(Device::is_settled).await?;
        let epoch = sealed.epoch;
        let change = self
            .look(move |device| device.replica().change_key(&epoch).cloned())
            .await?;
        let link = change.and_then(|change| sealed.open(self.identity.space, &change));
        let Some(link) = link else {
            return Err(Failure::new(
                FailureKind::Denied,
                format!(
                    "{}: this device has not the keys to see what it holds; its blocks are kept",
                    doing()
                ),
            )
            .hint("import it on a member of the mesh"));
        };
        // The entries of the archive may have brought keys.
        let source = Source {
            opener: self.source(false).await?.opener,
            ..source.clone()
        };
        let work = {
            let (source, to) = (source, to.clone());
            move || Naming::new(&source).all(&link, &to)
        };
        let named = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?;
        let (changes, things, skipped) = named.map_err(|error| match error {
            NamingError::Read(error) => read_failure(doing(), &error, self.asker.is_online()),
            NamingError::Unfit(why) => {
                Failure::new(FailureKind::Corrupt, format!("{}: {why}", doing()))
            }
        })?;
        let command = Command::Change {
            changes,
            sealed_under: None,
        };
        let what = format!("name in {} what was imported", shown(to));
        let outcome = self.asker.command(command).await;
        outcome.map_err(|error| change_failure(what, error))?;
        for path in &skipped {
            let text = format!("{} is not wholly here, and was not named", shown(path));
            told(tell, Event::Warning { text }).await?;
        }
        for put in things {
            told(tell, Event::Put(put)).await?;
        }
        Ok(skipped.len())
    }
}

/// Why an archive was not taken in.
enum Refused {
    /// It is of another mesh.
    Foreign,
    Archive(ArchiveError),
}

impl From<ArchiveError> for Refused {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

/// What an archive is taken into.
struct Into {
    space: SpaceId,
    store: Arc<DiskStore>,
    asker: Asker,
    handle: Handle,
    progress: Arc<Progress>,
    source: Source,
}

impl Into {
    /// Takes in all that is sound; when this returns it is durable.
    fn take_in(&self, path: &Path) -> Result<(Record, Taken, Lacking), Refused> {
        let record = record_of(path)?;
        if record.space != self.space {
            return Err(Refused::Foreign);
        }
        let mut entries = Batch::default();
        let taken = read_backup(path, self.space, &mut |found| {
            self.check()?;
            match found {
                Found::Entry(bytes) => {
                    self.progress
                        .bytes
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    entries.push(bytes, |batch| self.gather(batch))
                }
                Found::Block(cid, bytes) => self.keep(cid, &bytes),
            }
        })?;
        self.gather(entries.take())?;
        self.gather_late(path, &taken)?;
        // Entries are durable by now, and may name what is not here: so they do on every device.
        self.store.flush().map_err(ArchiveError::store)?;
        let has = |cid: &Cid| {
            self.check()?;
            self.store.has(cid).map_err(ArchiveError::store)
        };
        let lacking = taken.lacking(path, &record, &has)?;
        Ok((record, taken, lacking))
    }

    fn check(&self) -> Result<(), ArchiveError> {
        if self.source.tally.cancelled.load(Ordering::Relaxed) {
            return Err(ArchiveError::Cancelled);
        }
        Ok(())
    }

    fn keep(&self, cid: Cid, bytes: &[u8]) -> Result<(), ArchiveError> {
        let new = self
            .store
            .put_verified(Class::Bulk, Verified::computed(cid, bytes))
            .map_err(ArchiveError::store)?;
        let count = if new {
            &self.progress.new
        } else {
            &self.progress.known
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.progress
            .bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Gives entries to the machine; they are durable when this returns, as far as it takes them.
    fn gather(&self, entries: Vec<Bytes>) -> Result<(), ArchiveError> {
        let command = Command::Gather(entries);
        self.handle
            .block_on(self.asker.command(command))
            .map_err(|error| ArchiveError::Device(error.to_string()))
    }

    /// Entries that came before what they build upon may have found no room to wait: they are brought again as long as that helps.
    fn gather_late(&self, path: &Path, taken: &Taken) -> Result<(), ArchiveError> {
        let mut late: BTreeSet<EntryId> = taken.entry_ids().into_iter().collect();
        loop {
            let before = late.len();
            late = self.not_here(late)?;
            if late.is_empty() || late.len() == before {
                return Ok(());
            }
            let mut entries = Batch::default();
            let wanted = |id: &EntryId| late.contains(id);
            taken.entries_again(path, &wanted, &mut |_, bytes| {
                self.check()?;
                entries.push(bytes, |batch| self.gather(batch))
            })?;
            self.gather(entries.take())?;
        }
    }

    fn not_here(&self, ids: BTreeSet<EntryId>) -> Result<BTreeSet<EntryId>, ArchiveError> {
        let look = self.asker.look(move |device| {
            ids.into_iter()
                .filter(|id| !device.replica().contains(id))
                .collect()
        });
        self.handle.block_on(look).ok_or(ArchiveError::Cancelled)
    }
}

/// Entries on their way to the machine.
#[derive(Default)]
struct Batch {
    entries: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn push(
        &mut self,
        entry: Bytes,
        gather: impl FnOnce(Vec<Bytes>) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        self.bytes += entry.len();
        self.entries.push(entry);
        if self.entries.len() < ENTRIES_AT_ONCE && self.bytes < ENTRY_BYTES_AT_ONCE {
            return Ok(());
        }
        gather(self.take())
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.entries)
    }
}

enum NamingError {
    Read(Box<ReadError>),
    Unfit(&'static str),
}

/// What was named: the changes that do it, what is told of each thing, what had to be left out.
type Named = (Vec<Change>, Vec<api::Put>, Vec<TreePath>);

/// Finds the names in a backup of single objects. Names only what is wholly here.
struct Naming<'a> {
    source: &'a Source,
    changes: Vec<Change>,
    skipped: Vec<TreePath>,
}

/// What a thing comes to.
#[derive(Default)]
struct Sum {
    size: u64,
    files: u64,
    whole: bool,
}

impl<'a> Naming<'a> {
    fn new(source: &'a Source) -> Self {
        Self {
            source,
            changes: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn all(mut self, listing: &ObjectLink, to: &TreePath) -> Result<Named, NamingError> {
        let Some(entries) = self.listing(listing)? else {
            return Err(NamingError::Unfit(
                "the listing of what it holds is missing; its sound blocks are kept",
            ));
        };
        let mut things = Vec::new();
        for entry in entries {
            let path = below(to, &entry.name)?;
            let cid = entry.link.cid().to_string();
            let sum = self.thing(&path, &entry, 0)?;
            if sum.files > 0 || sum.whole {
                things.push(api::Put {
                    cid,
                    path: Name(path.to_bytes()),
                    size: sum.size,
                    files: sum.files,
                    dedup: 0,
                });
            }
        }
        Ok((self.changes, things, self.skipped))
    }

    fn thing(
        &mut self,
        path: &TreePath,
        entry: &TreeEntry,
        depth: usize,
    ) -> Result<Sum, NamingError> {
        if self.changes.len() + self.skipped.len() >= NAMES_MAX {
            return Err(NamingError::Unfit(
                "it unfolds to more names than a tree holds",
            ));
        }
        if depth > TREE_DEPTH_MAX {
            return Err(NamingError::Unfit("its folders are nested too deep"));
        }
        if !self.is_here(&entry.link)? {
            self.skipped.push(path.clone());
            return Ok(Sum::default());
        }
        if entry.kind != FileKind::Folder {
            self.changes.push(Change::File {
                path: path.clone(),
                kind: entry.kind,
                link: entry.link.clone(),
                mtime_ms: entry.mtime_ms,
                mode: entry.mode,
            });
            return Ok(Sum {
                size: entry.link.size,
                files: 1,
                whole: true,
            });
        }
        let Some(children) = self.listing(&entry.link)? else {
            self.skipped.push(path.clone());
            return Ok(Sum::default());
        };
        let place = self.changes.len();
        self.changes.push(Change::Folder {
            path: path.clone(),
            link: None,
            mtime_ms: entry.mtime_ms,
            mode: entry.mode,
        });
        let mut sum = Sum {
            whole: true,
            ..Sum::default()
        };
        for child in children {
            let child = self.thing(&below(path, &child.name)?, &child, depth + 1)?;
            sum.size = sum.size.saturating_add(child.size);
            sum.files += child.files;
            sum.whole &= child.whole;
        }
        // The CID of a folder promises all that is in it.
        if let Some(Change::Folder { link, .. }) = self.changes.get_mut(place) {
            *link = sum.whole.then(|| entry.link.clone());
        }
        Ok(sum)
    }

    /// What a listing names, if all of it is here.
    fn listing(&self, link: &ObjectLink) -> Result<Option<Vec<TreeEntry>>, NamingError> {
        if !self.is_here(link)? {
            return Ok(None);
        }
        match self.source.read_whole(link, TREE_BYTES_MAX) {
            Ok(Some((bytes, _))) => tree::decode(&bytes)
                .map(Some)
                .map_err(|_| NamingError::Unfit("a listing in it is malformed")),
            Ok(None) => Err(NamingError::Unfit("a listing in it is too long")),
            Err(error) => Err(NamingError::Read(Box::new(error))),
        }
    }

    /// Whether every block of the object is on this disk.
    fn is_here(&self, link: &ObjectLink) -> Result<bool, NamingError> {
        let failed = |error| NamingError::Read(Box::new(ReadError::Store(error)));
        let mut walk = BlockWalk::new(self.source.opener.clone());
        walk.enter(link);
        while let Some(step) = walk.step() {
            match step {
                Step::Leaf(cid) => {
                    if !self.source.store.has(&cid).map_err(failed)? {
                        return Ok(false);
                    }
                }
                Step::Open { cid, .. } => match self.source.store.get(&cid).map_err(failed)? {
                    Some(block) => {
                        if let Err(error) = walk.feed(&block) {
                            let error = Box::new(ReadError::Open(error));
                            return Err(NamingError::Read(error));
                        }
                    }
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }
}

fn below(path: &TreePath, name: &[u8]) -> Result<TreePath, NamingError> {
    path.child(name)
        .map_err(|_| NamingError::Unfit("a path in it is too long"))
}
