//! The calls of the local API, answered by a node.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use kith_core::device::{Command, CommandError, Device};
use kith_crdt::access::Role;
use kith_crdt::names::{Change, HistoryItem, Listed, PlanError, TreePath, VersionId};
use kith_crdt::replica::SealState;
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::{Cid, DeviceId};
use kith_object::key::Secret;
use kith_object::object::ObjectLink;
use kith_object::pack::Class;
use kith_object::seal::{Opener, SealedBlock, Sealer};
use kith_object::store::{StoreError, Verified};
use kith_object::tree::FileKind;
use kith_protocol::api::{self, Event, Failure, FailureKind, Name, Request, What};

use super::driver::CommandFailure;
use super::{Node, held};
use crate::config::now;
use crate::ingest::{Ingest, Progress, Skipped, Stored};
use crate::local::{Input, Service, Teller};
use crate::restore::{self, Item, RestoreError};
use crate::source::{Keeper, ReadError, Source, Tally};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How much of a refused stream is read to its end, and for how long.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How often a put is begun anew because keys changed meanwhile.
const PUT_TRIES: usize = 3;
/// Bytes of a file told at once.
const DATA_BYTES: usize = 1 << 20;

impl Service for Node {
    fn call(
        self: Arc<Self>,
        request: Request,
        input: Input,
        tell: Teller,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
        Box::pin(async move {
            match request {
                Request::Status => self.status(&tell).await,
                Request::Devices => self.devices(&tell).await,
                Request::Put { sources, to } => self.put(sources, to, &tell).await,
                Request::PutStream { to } => self.put_stream(to, input, &tell).await,
                Request::Get {
                    what,
                    dest,
                    force,
                    wait,
                } => self.get(what, dest, force, wait, &tell).await,
                Request::Cat { what, wait } => self.cat(what, wait, &tell).await,
                Request::Ls { path } => self.ls(path, &tell).await,
                Request::Mkdir { path, parents } => self.mkdir(path, parents).await,
                Request::Mv { from, to } => self.mv(from, to).await,
                Request::Rm { path, recursive } => self.rm(path, recursive).await,
                Request::History { path } => self.history(path, &tell).await,
                Request::Restore { path, version } => self.restore(path, version).await,
                Request::Pair { role, yes } => super::door::pair(&self, role, yes, &tell).await,
                Request::Confirm { ticket, accept } => {
                    super::door::confirm(&self, &ticket, accept).await
                }
                Request::DeviceRemove { device } => self.device_remove(device, &tell).await,
                Request::Stop => {
                    self.stop.notify_one();
                    Ok(())
                }
            }
        })
    }
}

/// The node is ending: nothing can be looked at any more.
fn ending() -> Failure {
    Failure::new(FailureKind::Failed, "ask the device: it is ending")
}

async fn told(tell: &Teller, event: Event) -> Result<(), Failure> {
    tell.send((event, Bytes::new())).await.map_err(|_| {
        Failure::new(
            FailureKind::Failed,
            "tell the result: nobody listens any more",
        )
    })
}

fn tree_path(name: &Name) -> Result<TreePath, Failure> {
    TreePath::parse(&name.0).map_err(|error| {
        Failure::new(
            FailureKind::Usage,
            format!("understand the path {}", name.lossy()),
        )
        .because(&error)
        .hint("a path looks like /photos/2019/lake.jpg")
    })
}

fn shown(path: &TreePath) -> String {
    path.to_string()
}

fn not_found(path: &TreePath) -> Failure {
    Failure::new(
        FailureKind::NotFound,
        format!("find {}: there is no such path in the tree", shown(path)),
    )
    .hint("see what is there with `kith ls`, or what was there with `kith history`")
}

/// Why a change was refused, for a person.
fn change_failure(what: String, error: CommandFailure) -> Failure {
    let kind = match &error {
        CommandFailure::Refused(CommandError::Plan(plan)) => match plan {
            PlanError::NotFound { .. } => FailureKind::NotFound,
            PlanError::Exists { .. } => FailureKind::Exists,
            _ => FailureKind::Usage,
        },
        CommandFailure::Refused(CommandError::KeysChanged) => FailureKind::Failed,
        CommandFailure::Refused(CommandError::Author(_) | CommandError::NotAccepted(_)) => {
            FailureKind::Denied
        }
        CommandFailure::Refused(CommandError::Record(_)) => FailureKind::Usage,
        CommandFailure::Log(_) | CommandFailure::Ending => FailureKind::Failed,
    };
    Failure::new(kind, what).because(&error)
}

fn store_failure(what: String, error: &StoreError) -> Failure {
    if error.is_full() {
        Failure::new(FailureKind::Full, what)
            .because(error)
            .hint("free some space on this disk and try again; nothing stored before is lost")
    } else {
        Failure::new(FailureKind::Failed, what).because(error)
    }
}

fn read_failure(what: String, error: &ReadError, online: bool) -> Failure {
    match error {
        ReadError::Unreachable { .. } if online => Failure::new(FailureKind::Unreachable, what)
            .because(error)
            .hint("bring a device that holds it online, or wait with --wait"),
        ReadError::Unreachable { .. } => Failure::new(FailureKind::Unreachable, what)
            .because(error)
            .hint("this device is not connected; start the daemon with `kith up` so that others can be asked"),
        ReadError::Store(store) => store_failure(what, store),
        ReadError::Open(_) => Failure::new(FailureKind::Corrupt, what).because(error),
        ReadError::Write(_) | ReadError::Cancelled => Failure::new(FailureKind::Failed, what).because(error),
    }
}

fn restore_failure(what: String, error: &RestoreError, online: bool) -> Failure {
    match error {
        RestoreError::Exists { .. } => Failure::new(FailureKind::Exists, what)
            .because(error)
            .hint("overwrite it with --force, or choose another place with -o"),
        RestoreError::Read { path, source } => {
            read_failure(format!("{what}: {}", path.display()), source, online)
        }
        RestoreError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Failure::new(FailureKind::Full, what)
                .because(error)
                .hint("free some space there and try again")
        }
        RestoreError::Listing { .. } | RestoreError::Misnamed { .. } => {
            Failure::new(FailureKind::Corrupt, what).because(error)
        }
        RestoreError::Write { .. } => Failure::new(FailureKind::Failed, what).because(error),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Blind => "blind",
        Role::Member => "member",
        Role::Admin => "admin",
    }
}

fn kind_name(kind: FileKind) -> String {
    match kind {
        FileKind::File => "file",
        FileKind::Folder => "folder",
        FileKind::Symlink => "symlink",
    }
    .to_owned()
}

fn device_name(device: &Device, id: &DeviceId) -> String {
    let access = device.access();
    let member = access.members.get(id).map(|member| &member.name);
    let removed = || access.removed.get(id).map(|removed| &removed.name);
    member
        .or_else(removed)
        .filter(|name| !name.is_empty())
        .cloned()
        .unwrap_or_else(|| id.to_string())
}

fn entry(device: &Device, listed: &Listed) -> api::Entry {
    api::Entry {
        name: Name(listed.name.clone()),
        kind: kind_name(listed.kind),
        size: listed.size,
        mtime_ms: listed.mtime_ms,
        mode: listed.mode,
        cid: listed.link.as_ref().map(|link| link.cid().to_string()),
        version: listed.version.map(|version| version.id.to_string()),
        device: listed
            .version
            .map(|version| device_name(device, &version.author)),
        conflict: listed.conflict,
    }
}

fn version(device: &Device, item: &HistoryItem) -> api::Version {
    api::Version {
        version: item.version.id.to_string(),
        path: item.path.as_ref().map(|path| Name(path.to_bytes())),
        kind: kind_name(item.kind),
        size: item.size,
        mtime_ms: item.mtime_ms,
        written_ms: item.version.hlc.time().0,
        cid: item.link.as_ref().map(|link| link.cid().to_string()),
        device: device_name(device, &item.version.author),
        deleted: item.deleted,
        current: item.current,
    }
}

/// Sets the flag when the call ends, however it ends, so that blocking work stops too.
struct CancelOnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for CancelOnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Node {
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Device) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.asker.look(look).await.ok_or_else(ending)
    }

    async fn status(&self, tell: &Teller) -> Result<(), Failure> {
        let online = self.asker.is_online();
        let addrs = held(&self.door).clone();
        let traffic = held(&self.traffic).clone();
        let store = self.store.clone();
        let packs = tokio::task::spawn_blocking(move || store.usage()).await;
        let (blocks, disk_bytes) = packs
            .map_err(|error| {
                Failure::new(FailureKind::Failed, "count what is stored").because(&error)
            })?
            .map_err(|error| store_failure("count what is stored".to_owned(), &error))?;
        let mesh = self.identity.space;
        let status = self
            .look(move |device| {
                let me = device.id();
                let (digest, entries) = device.digest();
                let access = device.access();
                api::Status {
                    mesh: mesh.to_string(),
                    device: me.to_string(),
                    name: device_name(device, &me),
                    role: access.role(&me).map_or("removed", role_name).to_owned(),
                    online,
                    addrs,
                    inside: device.own_addrs().to_vec(),
                    devices: access.members.len() as u64,
                    connected: device.peers().len() as u64,
                    entries,
                    digest: data_encoding::HEXLOWER.encode(&digest),
                    tree: data_encoding::HEXLOWER.encode(&device.tree().fingerprint()),
                    versions: device.tree().version_count() as u64,
                    blocks,
                    disk_bytes,
                    conflicts: device.tree().conflicts().len() as u64,
                    writable: matches!(device.replica().seal_state(), SealState::Ready(_)),
                    read_only: match device.replica().seal_state() {
                        SealState::Ready(_) => None,
                        SealState::NeedsEpoch(why) => Some(why.to_string()),
                    },
                    traffic: traffic
                        .iter()
                        .map(|(peer, (received, sent))| api::Traffic {
                            device: peer.to_string(),
                            name: device_name(device, peer),
                            received: *received,
                            sent: *sent,
                        })
                        .collect(),
                }
            })
            .await?;
        told(tell, Event::Status(Box::new(status))).await
    }

    async fn devices(&self, tell: &Teller) -> Result<(), Failure> {
        let devices = self
            .look(|device| {
                let (me, peers) = (device.id(), device.peers().clone());
                let access = device.access();
                let present = access
                    .members
                    .iter()
                    .map(|(id, member)| (*id, member.name.clone(), role_name(member.role), false));
                let removed = access
                    .removed
                    .iter()
                    .map(|(id, removed)| (*id, removed.name.clone(), "removed", true));
                present
                    .chain(removed)
                    .map(|(id, name, role, removed)| api::Device {
                        device: id.to_string(),
                        name,
                        role: role.to_owned(),
                        this: id == me,
                        connected: peers.contains(&id),
                        removed,
                    })
                    .collect::<Vec<_>>()
            })
            .await?;
        for device in devices {
            told(tell, Event::Device(device)).await?;
        }
        Ok(())
    }

    /// What files are sealed with now; fails on a device that cannot write.
    async fn ingest(&self) -> Result<(Ingest, Secret), Failure> {
        let secret = self
            .look(|device| match device.replica().seal_state() {
                SealState::Ready(_) => {
                    let newest = device.replica().dedup_secrets().into_iter().next();
                    newest.ok_or_else(|| "it has no keys of this space".to_owned())
                }
                SealState::NeedsEpoch(why) => Err(why.to_string()),
            })
            .await?;
        let secret = secret.map_err(|why| {
            let mut failure = Failure::new(FailureKind::Denied, "store on this device: it cannot write now")
                .hint("a blind or removed device never can; otherwise wait until a member has opened the next epoch");
            failure.causes.push(why);
            failure
        })?;
        let store = self.store.clone();
        let sink = move |block: &SealedBlock| {
            store
                .put_verified(Class::Bulk, Verified::computed(block.cid, &block.bytes))
                .map_err(|error| {
                    let kind = if error.is_full() {
                        io::ErrorKind::StorageFull
                    } else {
                        io::ErrorKind::Other
                    };
                    io::Error::new(kind, error)
                })
        };
        let ingest = Ingest::new(
            Arc::new(Sealer::new(&secret)),
            Arc::new(Chunker::new(&secret, Profile::DEFAULT)),
            Arc::new(sink),
        );
        Ok((ingest.without(self.home.path()), secret))
    }

    /// Runs a blocking ingest and tells its progress; dropping the future cancels it.
    async fn ingesting<T: Send + 'static>(
        &self,
        ingest: &Ingest,
        tell: &Teller,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let progress = ingest.progress.clone();
        let _cancel = CancelOnDrop({
            let progress = progress.clone();
            move || progress.cancelled.store(true, Ordering::Relaxed)
        });
        let mut task = tokio::task::spawn_blocking(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                done = &mut task => return done.unwrap_or_else(|error| Err(io::Error::other(error))),
                _ = ticks.tick() => {
                    // Progress that finds no room is not worth waiting for.
                    let _ = tell.try_send((progress_event(&progress), Bytes::new()));
                }
            }
        }
    }

    async fn put(
        &self,
        sources: Vec<Name>,
        to: Option<Name>,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let to = to.as_ref().map(tree_path).transpose()?;
        let several = sources.len() > 1;
        let mut partial = 0;
        for source in sources {
            let path = PathBuf::from(OsStr::from_bytes(&source.0));
            let target = self.target(&path, to.as_ref(), several).await?;
            let (ingest, stored, skipped) = self.put_path(&path, &target, tell).await?;
            partial += skipped.len();
            for Skipped { path, why } in skipped {
                told(
                    tell,
                    Event::Warning {
                        text: format!("{} was not stored: {why}", path.display()),
                    },
                )
                .await?;
            }
            let put = api::Put {
                cid: stored.link.cid().to_string(),
                path: Name(target.to_bytes()),
                size: stored.size,
                files: stored.files,
                dedup: ingest.progress.dedup.load(Ordering::Relaxed),
            };
            told(tell, Event::Put(put)).await?;
        }
        if partial > 0 {
            return Err(Failure::new(
                FailureKind::Partial,
                format!("store everything: {partial} could not be read; the rest is stored"),
            )
            .hint("the warnings above say which and why"));
        }
        Ok(())
    }

    /// Stores a path and names it; again if a device was removed meanwhile, since that one could confirm what is in the blocks.
    async fn put_path(
        &self,
        path: &Path,
        target: &TreePath,
        tell: &Teller,
    ) -> Result<(Ingest, Stored, Vec<Skipped>), Failure> {
        for _ in 0..PUT_TRIES {
            let (ingest, secret) = self.ingest().await?;
            let work = {
                let (ingest, path) = (ingest.clone(), path.to_owned());
                move || ingest.path(&path)
            };
            let (stored, skipped) = self
                .ingesting(&ingest, tell, work)
                .await
                .map_err(|error| put_failure(path, &error))?;
            if self.name(target, &stored, secret).await? {
                return Ok((ingest, stored, skipped));
            }
        }
        Err(keys_changed(target))
    }

    async fn put_stream(&self, to: Name, input: Input, tell: &Teller) -> Result<(), Failure> {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut pump = tokio::spawn(pump(input, sender));
        let outcome = self.store_stream(to, receiver, tell).await;
        if outcome.is_err() {
            // A client that is still sending would meet a broken connection instead of the answer.
            let _ = tokio::time::timeout(DRAIN_WAIT, &mut pump).await;
        }
        pump.abort();
        outcome
    }

    async fn store_stream(
        &self,
        to: Name,
        receiver: tokio::sync::mpsc::Receiver<io::Result<Bytes>>,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let to = tree_path(&to)?;
        let (ingest, secret) = self.ingest().await?;
        let work = {
            let ingest = ingest.clone();
            move || {
                ingest.stream(
                    &mut ChunkReader {
                        chunks: receiver,
                        current: Bytes::new(),
                    },
                    now().0,
                )
            }
        };
        let stored = self
            .ingesting(&ingest, tell, work)
            .await
            .map_err(|error| put_failure(Path::new("standard input"), &error))?;
        if !self.name(&to, &stored, secret).await? {
            return Err(keys_changed(&to));
        }
        let put = api::Put {
            cid: stored.link.cid().to_string(),
            path: Name(to.to_bytes()),
            size: stored.size,
            files: 1,
            dedup: ingest.progress.dedup.load(Ordering::Relaxed),
        };
        told(tell, Event::Put(put)).await
    }

    /// Where in the tree a source goes.
    async fn target(
        &self,
        source: &Path,
        to: Option<&TreePath>,
        several: bool,
    ) -> Result<TreePath, Failure> {
        let base = source.file_name().map(|name| name.as_bytes().to_vec());
        let into = match to {
            None => true,
            Some(_) if several => true,
            Some(to) => {
                let to = to.clone();
                self.look(move |device| {
                    device
                        .tree()
                        .resolve(&to)
                        .is_some_and(|node| node.kind == FileKind::Folder)
                })
                .await?
            }
        };
        let target = match (to, into, base) {
            (Some(to), false, _) => Ok(to.clone()),
            (to, _, Some(base)) => to.cloned().unwrap_or_else(TreePath::root).child(&base),
            (_, _, None) => {
                return Err(Failure::new(
                    FailureKind::Usage,
                    format!("name {} in the tree", source.display()),
                )
                .hint("say how it shall be called with --to PATH"));
            }
        };
        target.map_err(|error| {
            Failure::new(
                FailureKind::Usage,
                format!("name {} in the tree", source.display()),
            )
            .because(&error)
        })
    }

    /// Makes blocks durable, then the names that lead to them: the acknowledgement rests on both.
    ///
    /// False if the keys have changed since the blocks were sealed; then nothing is named.
    async fn name(
        &self,
        target: &TreePath,
        stored: &Stored,
        secret: Secret,
    ) -> Result<bool, Failure> {
        let what = || format!("store {}", shown(target));
        let store = self.store.clone();
        let flushed = tokio::task::spawn_blocking(move || store.flush()).await;
        flushed
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?
            .map_err(|error| store_failure(what(), &error))?;
        let mut changes = Vec::new();
        changes_for(target, stored, &mut changes)
            .map_err(|error| Failure::new(FailureKind::Usage, what()).because(&error))?;
        let command = Command::Change {
            changes,
            sealed_under: Some(secret),
        };
        match self.asker.command(command).await {
            Ok(()) => Ok(true),
            Err(CommandFailure::Refused(CommandError::KeysChanged)) => Ok(false),
            Err(error) => Err(change_failure(what(), error)),
        }
    }

    async fn change(&self, what: String, changes: Vec<Change>) -> Result<(), Failure> {
        self.asker
            .command(Command::Change {
                changes,
                sealed_under: None,
            })
            .await
            .map_err(|error| change_failure(what, error))
    }

    /// What is meant: a label for people, a name for the destination, and the item.
    async fn find(&self, what: &What, wait: bool) -> Result<(String, Item), Failure> {
        loop {
            match self.find_now(what).await {
                // What another device put may not be known here yet.
                Err(failure)
                    if wait && failure.kind == FailureKind::NotFound && self.asker.is_online() =>
                {
                    tokio::time::sleep(PROGRESS_EVERY).await;
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
                let found = self.look(move |device| device.tree().link_of(&cid)).await?;
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
                item.map(|item| (label, item))
                    .ok_or_else(|| not_found(&path))
            }
        }
    }

    async fn source(&self, wait: bool) -> Result<Source, Failure> {
        let secrets = self.look(|device| device.replica().dedup_secrets()).await?;
        Ok(Source {
            store: self.store.clone(),
            asker: self.asker.clone(),
            opener: Opener::new(secrets),
            wait,
            tally: Arc::new(Tally::default()),
            keeper: Keeper::start(self.store.clone(), self.asker.clone()),
        })
    }

    async fn get(
        &self,
        what: What,
        dest: Name,
        force: bool,
        wait: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let (label, item) = self.find(&what, wait).await?;
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
        let what = || format!("get {label} into {}", dest.lossy());
        outcome
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?
            .map_err(|error| restore_failure(what(), &error, self.asker.is_online()))?;
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

    async fn cat(&self, what: What, wait: bool, tell: &Teller) -> Result<(), Failure> {
        let (label, item) = self.find(&what, wait).await?;
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
        let is_root = matches!(item, Item::Root { .. });
        let read = tokio::task::spawn_blocking(move || {
            if is_root && source.first_kind(&link)? == Some(kith_object::seal::Kind::Tree) {
                return Ok(false);
            }
            source.read(&link, &mut |data| {
                for part in data.chunks(DATA_BYTES) {
                    let part = data.slice_ref(part);
                    let event = Event::Data {
                        len: part.len() as u64,
                    };
                    out.blocking_send((event, part))
                        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                }
                Ok(())
            })?;
            Ok(true)
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
            Err(error) => Err(read_failure(what(), &error, self.asker.is_online())),
        }
    }

    async fn ls(&self, path: Name, tell: &Teller) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let listed = {
            let path = path.clone();
            self.look(move |device| {
                let listed = device.tree().list(&path)?;
                Some(
                    listed
                        .iter()
                        .map(|listed| entry(device, listed))
                        .collect::<Vec<_>>(),
                )
            })
            .await?
        };
        for entry in listed.ok_or_else(|| not_found(&path))? {
            told(tell, Event::Entry(entry)).await?;
        }
        Ok(())
    }

    async fn mkdir(&self, path: Name, parents: bool) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let (exists, parent) = {
            let (path, parent) = (path.clone(), path.parent());
            self.look(move |device| {
                let parent = parent.is_none_or(|parent| device.tree().resolve(&parent).is_some());
                (device.tree().resolve(&path).map(|node| node.kind), parent)
            })
            .await?
        };
        match exists {
            Some(FileKind::Folder) if parents => return Ok(()),
            Some(_) => {
                return Err(Failure::new(
                    FailureKind::Exists,
                    format!("make the folder {}: it is there already", shown(&path)),
                ));
            }
            None => {}
        }
        if !parent && !parents {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!(
                    "make the folder {}: the folder it should be in is missing",
                    shown(&path)
                ),
            )
            .hint("make the missing folders too with --parents"));
        }
        let what = format!("make the folder {}", shown(&path));
        self.change(
            what,
            vec![Change::Folder {
                path,
                link: None,
                mtime_ms: now().0,
                mode: 0o755,
            }],
        )
        .await
    }

    async fn mv(&self, from: Name, to: Name) -> Result<(), Failure> {
        let (from, mut to) = (tree_path(&from)?, tree_path(&to)?);
        let into = {
            let to = to.clone();
            self.look(move |device| {
                device
                    .tree()
                    .resolve(&to)
                    .is_some_and(|node| node.kind == FileKind::Folder)
            })
            .await?
        };
        if let (true, Some(base)) = (into, from.name()) {
            to = to.child(base).map_err(|error| {
                Failure::new(FailureKind::Usage, format!("move {}", shown(&from))).because(&error)
            })?;
        }
        let what = format!("move {} to {}", shown(&from), shown(&to));
        self.change(what, vec![Change::Move { from, to }]).await
    }

    async fn rm(&self, path: Name, recursive: bool) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let what = format!("remove {}", shown(&path));
        self.change(what, vec![Change::Remove { path, recursive }])
            .await
    }

    async fn history(&self, path: Name, tell: &Teller) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let versions = {
            let path = path.clone();
            self.look(move |device| {
                device
                    .tree()
                    .history(&path)
                    .iter()
                    .map(|item| version(device, item))
                    .collect::<Vec<_>>()
            })
            .await?
        };
        if versions.is_empty() {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!(
                    "show the history of {}: nothing ever stood there",
                    shown(&path)
                ),
            ));
        }
        for version in versions {
            told(tell, Event::Version(version)).await?;
        }
        Ok(())
    }

    async fn restore(&self, path: Name, version: Option<String>) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let what = format!("restore {}", shown(&path));
        let items = {
            let path = path.clone();
            self.look(move |device| device.tree().history(&path))
                .await?
        };
        let chosen = match &version {
            Some(text) => {
                let wanted: VersionId = text.parse().map_err(|error| {
                    Failure::new(
                        FailureKind::Usage,
                        format!("{what}: understand the version {text}"),
                    )
                    .because(&error)
                })?;
                items.iter().find(|item| item.version.id == wanted)
            }
            None => items.iter().find(|item| !item.current && !item.deleted),
        };
        let Some(chosen) = chosen else {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("{what}: there is no such older version"),
            )
            .hint("see the versions with `kith history`"));
        };
        self.change(
            what,
            vec![Change::Restore {
                path,
                version: chosen.version.id,
            }],
        )
        .await
    }

    async fn device_remove(&self, named: String, tell: &Teller) -> Result<(), Failure> {
        let wanted = named.clone();
        let (found, me) = self
            .look(move |device| {
                let matching: Vec<(DeviceId, String)> = device
                    .access()
                    .members
                    .iter()
                    .filter(|(id, member)| member.name == wanted || id.to_string() == wanted)
                    .map(|(id, member)| (*id, member.name.clone()))
                    .collect();
                (matching, device.id())
            })
            .await?;
        let what = format!("remove the device {named}");
        let (id, name) = match found.as_slice() {
            [one] => one.clone(),
            [] => {
                return Err(Failure::new(
                    FailureKind::NotFound,
                    format!("{what}: there is no such device in the mesh"),
                )
                .hint("see the devices with `kith devices`"));
            }
            _ => {
                return Err(Failure::new(
                    FailureKind::Usage,
                    format!("{what}: several devices have that name"),
                )
                .hint("give its id, as `kith devices` shows it"));
            }
        };
        self.asker
            .command(Command::Remove(id))
            .await
            .map_err(|error| change_failure(what, error))?;
        let device = api::Device {
            device: id.to_string(),
            name,
            role: "removed".to_owned(),
            this: id == me,
            connected: false,
            removed: true,
        };
        told(tell, Event::Device(device)).await
    }
}

fn keys_changed(target: &TreePath) -> Failure {
    Failure::new(
        FailureKind::Failed,
        format!(
            "store {}: a device was removed meanwhile, and the keys have changed",
            shown(target)
        ),
    )
    .hint("store it again")
}

fn progress_event(progress: &Progress) -> Event {
    let total = progress.total.load(Ordering::Relaxed);
    Event::Progress {
        bytes: progress.bytes.load(Ordering::Relaxed),
        total: (total > 0).then_some(total),
        files: progress.files.load(Ordering::Relaxed),
    }
}

fn put_failure(path: &Path, error: &io::Error) -> Failure {
    let what = format!("store {}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(FailureKind::NotFound, what).because(error).hint("see whether the path is right"),
        io::ErrorKind::StorageFull => Failure::new(FailureKind::Full, what)
            .because(error)
            .hint("free some space on the disk of the data folder and try again; nothing stored before is lost"),
        _ => Failure::new(FailureKind::Failed, what).because(error),
    }
}

/// The changes that name what was stored: a folder, then all in it.
fn changes_for(
    at: &TreePath,
    stored: &Stored,
    changes: &mut Vec<Change>,
) -> Result<(), kith_crdt::names::PathError> {
    if stored.kind == FileKind::Folder {
        changes.push(Change::Folder {
            path: at.clone(),
            link: Some(stored.link.clone()),
            mtime_ms: stored.mtime_ms,
            mode: stored.mode,
        });
        for (name, child) in &stored.children {
            changes_for(&at.child(name)?, child, changes)?;
        }
    } else {
        changes.push(Change::File {
            path: at.clone(),
            kind: stored.kind,
            link: stored.link.clone(),
            mtime_ms: stored.mtime_ms,
            mode: stored.mode,
        });
    }
    Ok(())
}

/// What the tree shows at a path, with all below it.
fn item_at(device: &Device, path: &TreePath) -> Option<Item> {
    let node = device.tree().resolve(path)?;
    match (node.kind, node.link) {
        (FileKind::Folder, _) => {
            let children = device.tree().list(path)?;
            let mut items = Vec::new();
            for child in children {
                let below = path.child(&child.name).ok()?;
                if let Some(item) = item_at(device, &below) {
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
    }
}

fn root_of(item: &Item) -> Option<&ObjectLink> {
    match item {
        Item::Leaf { link, .. } | Item::Snapshot { link, .. } | Item::Root { link } => Some(link),
        Item::Folder { .. } => None,
    }
}

/// Hands chunks on; those that nobody takes any more are read and dropped, some of them.
async fn pump(mut input: Input, sender: tokio::sync::mpsc::Sender<io::Result<Bytes>>) {
    let mut left = DRAIN_BYTES_MAX;
    while let Some(chunk) = input.next().await {
        let (failed, len) = (chunk.is_err(), chunk.as_ref().map_or(0, Bytes::len));
        if sender.send(chunk).await.is_err() {
            left = left.saturating_sub(len);
        }
        if failed || left == 0 {
            return;
        }
    }
}

/// Chunks that arrive in the event loop, read on a blocking thread.
struct ChunkReader {
    chunks: tokio::sync::mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let len = self.current.len().min(buffer.len());
        let taken = self.current.split_to(len);
        if let Some(room) = buffer.get_mut(..len) {
            room.copy_from_slice(&taken);
        }
        Ok(len)
    }
}
