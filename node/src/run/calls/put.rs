//! Stores files, folders and streams.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use kith_core::device::{Command, CommandError, Device};
use kith_crdt::names::{Change, TreePath};
use kith_crdt::replica::SealState;
use kith_object::chunk::{Chunker, Profile};
use kith_object::key::Secret;
use kith_object::pack::Class;
use kith_object::seal::{SealedBlock, Sealer};
use kith_object::store::Verified;
use kith_object::tree::FileKind;
use kith_protocol::api::{self, Event, Failure, FailureKind, Name};

use super::super::Node;
use super::super::driver::CommandFailure;
use super::failure::{change_failure, keys_changed, put_failure, store_failure};
use super::{CancelOnDrop, PROGRESS_EVERY, shown, told, tree_path};
use crate::config::now;
use crate::ingest::{Ingest, Progress, Skipped, Stored};
use crate::local::{Input, Teller};

/// How much of a refused stream is read to its end, and for how long.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How often a put is begun anew because keys changed meanwhile.
const PUT_TRIES: usize = 3;

impl Node {
    /// What files are sealed with now; fails on a device that cannot write.
    pub(super) async fn ingest(&self) -> Result<(Ingest, Secret), Failure> {
        self.until(Device::is_settled).await?;
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
        // Held as long as the ingest is: until what was stored has its name.
        let lease = store.lease();
        let sink = move |block: &SealedBlock| {
            let verified = Verified::computed(block.cid, &block.bytes);
            store
                .put_leased(Class::Bulk, verified, &lease)
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
    pub(super) async fn ingesting<T: Send + 'static>(
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

    pub(super) async fn put(
        &self,
        sources: Vec<Name>,
        to: Option<Name>,
        contents: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let to = to.as_ref().map(tree_path).transpose()?;
        let several = sources.len() > 1 || contents;
        let sources = if contents {
            contents_of(&sources)?
        } else {
            sources
        };
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

    pub(super) async fn put_stream(
        &self,
        to: Name,
        input: Input,
        tell: &Teller,
    ) -> Result<(), Failure> {
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
    pub(super) async fn name(
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
}

/// What is in those folders, by name.
fn contents_of(folders: &[Name]) -> Result<Vec<Name>, Failure> {
    let mut sources = Vec::new();
    for folder in folders {
        let path = Path::new(OsStr::from_bytes(&folder.0));
        let failed = |error: &io::Error| put_failure(path, error);
        for entry in std::fs::read_dir(path).map_err(|error| failed(&error))? {
            let path = entry.map_err(|error| failed(&error))?.path();
            sources.push(Name(path.as_os_str().as_bytes().to_vec()));
        }
    }
    sources.sort();
    Ok(sources)
}

pub(super) fn progress_event(progress: &Progress) -> Event {
    let total = progress.total.load(Ordering::Relaxed);
    Event::Progress {
        bytes: progress.bytes.load(Ordering::Relaxed),
        total: (total > 0).then_some(total),
        files: progress.files.load(Ordering::Relaxed),
    }
}

/// The changes that name what was stored: a folder, then all in it.
pub(super) fn changes_for(
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
