//! Objects back into files and folders of this machine: under a temporary name, then renamed, so that a destination is absent or whole.
//!
//! Spec: `protocol/spec/ingest.md`, "What is restored".

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use kith_object::object::ObjectLink;
use kith_object::seal::Kind;
use kith_object::tree::{self, FileKind, TREE_BYTES_MAX, TREE_DEPTH_MAX, TreeError};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_OMIT};

use crate::source::{ReadError, Source, Whole};

/// Files read at a time: enough to hide the round trips of small ones.
const WORKERS: usize = 8;
/// Small pieces are written together; most chunks are larger and go straight to the file.
const WRITE_BYTES: usize = 32 << 10;
/// Objects from this length on are written by a thread of their own.
const LONG_BYTES: u64 = 4 << 20;
/// Pieces of a long object that wait to be written: some MiB.
const PIECES_AHEAD: usize = 32;
/// How much of a long object is written before the system is told to write it out.
const WRITE_OUT_BYTES: u64 = 8 << 20;
/// How far behind what was written last the system is told so again, for what it was still busy with.
const BEHIND_BYTES: u64 = 64 << 20;
/// Longest target of a symlink.
const TARGET_BYTES_MAX: u64 = 4096;

/// What to restore.
#[derive(Debug)]
pub(crate) enum Item {
    /// A file or symlink.
    Leaf {
        kind: FileKind,
        link: ObjectLink,
        mode: u32,
        mtime_ms: u64,
    },
    /// A folder as the tree of names shows it.
    Folder {
        mode: u32,
        mtime_ms: u64,
        children: Vec<(Vec<u8>, Item)>,
    },
    /// A folder as it was put; its listing says what is in it.
    Snapshot {
        link: ObjectLink,
        mode: u32,
        mtime_ms: u64,
    },
    /// A root of which only the CID is known: its leaves tell whether it is a file or a folder.
    Root { link: ObjectLink },
}

/// Why something was not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("{path} is there already", path = path.display())]
    Exists { path: PathBuf },
    #[error("write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read the object of {path}", path = path.display())]
    Read {
        path: PathBuf,
        source: Box<ReadError>,
    },
    #[error("the folder listing of {path} is malformed", path = path.display())]
    Listing { path: PathBuf, source: TreeError },
    #[error("{path} is not what its listing says", path = path.display())]
    Misnamed { path: PathBuf },
}

struct Work {
    path: PathBuf,
    kind: FileKind,
    link: ObjectLink,
    mode: u32,
    mtime_ms: u64,
}

/// What a walk finds: files to fill, folders to finish once they are full.
#[derive(Default)]
struct Layout {
    leaves: Vec<Work>,
    folders: Vec<(PathBuf, u32, u64)>,
}

/// What each worker is to do. The files of one folder are in one lane, since a folder takes one new file at a time: whoever makes a second
/// there meanwhile only waits, and keeps a core busy with it.
struct Lanes(Vec<Mutex<VecDeque<Work>>>);

impl Lanes {
    /// Deals out the files, folder by folder, to whoever has least.
    fn of(leaves: Vec<Work>, count: usize) -> Self {
        let mut lanes: Vec<VecDeque<Work>> = Vec::new();
        lanes.resize_with(count, VecDeque::new);
        let mut at = 0;
        let mut folder: Option<PathBuf> = None;
        for leaf in leaves {
            if folder.as_deref() != leaf.path.parent() {
                folder = leaf.path.parent().map(Path::to_owned);
                let least = lanes.iter().enumerate().min_by_key(|(_, lane)| lane.len());
                at = least.map_or(0, |(at, _)| at);
            }
            if let Some(lane) = lanes.get_mut(at) {
                lane.push_back(leaf);
            }
        }
        Self(lanes.into_iter().map(Mutex::new).collect())
    }

    /// The next of a worker's own lane; once that is empty, the last of another's, so that one large folder keeps them all busy.
    fn next(&self, own: usize) -> Option<Work> {
        let lock = |lane: &'_ Mutex<VecDeque<Work>>,
                    take: fn(&mut VecDeque<Work>) -> Option<Work>| {
            take(&mut lane.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let mine = self.0.get(own);
        mine.and_then(|lane| lock(lane, VecDeque::pop_front))
            .or_else(|| {
                self.0
                    .iter()
                    .find_map(|lane| lock(lane, VecDeque::pop_back))
            })
    }
}

/// Removes what is unfinished, however the restore ends.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove_any(&self.0);
    }
}

/// Restores an item at `dest`, on the calling thread and a few of its own.
pub(crate) fn restore(
    source: &Source,
    item: Item,
    dest: &Path,
    force: bool,
) -> Result<(), RestoreError> {
    make(dest, force, |temporary| {
        build(source, item, temporary)?;
        source.keeper.finish().map_err(|source| RestoreError::Read {
            path: dest.to_owned(),
            source: Box::new(source),
        })
    })
}

/// Has something made under a temporary name beside `dest`, and renamed once it is whole. However that ends, nothing unfinished is left.
pub(crate) fn make(
    dest: &Path,
    force: bool,
    build: impl FnOnce(&Path) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let exists = fs::symlink_metadata(dest).is_ok();
    if exists && !force {
        return Err(RestoreError::Exists {
            path: dest.to_owned(),
        });
    }
    let temporary = Unfinished(temporary_beside(dest));
    build(&temporary.0)?;
    let failed = |source| RestoreError::Write {
        path: dest.to_owned(),
        source,
    };
    if force {
        replace(&temporary.0, dest).map_err(failed)
    } else {
        match rustix::fs::renameat_with(CWD, &temporary.0, CWD, dest, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => Err(RestoreError::Exists {
                path: dest.to_owned(),
            }),
            // Some file systems cannot promise it in one step.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS)
                if fs::symlink_metadata(dest).is_err() =>
            {
                fs::rename(&temporary.0, dest).map_err(failed)
            }
            other => other.map_err(|errno| failed(errno.into())),
        }
    }
}

/// Puts the new in the place of the old, which is removed once the new stands.
fn replace(new: &Path, dest: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, new, CWD, dest, RenameFlags::EXCHANGE) {
        Ok(()) => {
            // The old one stands under the temporary name now and goes with it.
            Ok(())
        }
        Err(rustix::io::Errno::NOENT) => fs::rename(new, dest),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let aside = temporary_beside(dest);
            fs::rename(dest, &aside)?;
            let renamed = fs::rename(new, dest);
            if renamed.is_err() {
                fs::rename(&aside, dest)?;
            }
            remove_any(&aside);
            renamed
        }
        Err(errno) => Err(errno.into()),
    }
}

fn remove_any(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            open_up(path);
            let _ = fs::remove_dir_all(path);
        }
        Ok(_) => {
            let _ = fs::remove_file(path);
        }
        Err(_) => {}
    }
}

/// Folders without write permission could not be emptied.
fn open_up(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

pub(crate) fn temporary_beside(dest: &Path) -> PathBuf {
    let mut rng = crate::config::fresh_rng();
    let suffix = data_encoding::HEXLOWER.encode(&rng.bytes::<8>());
    dest.with_file_name(format!(".kith-{suffix}.part"))
}

fn build(source: &Source, item: Item, at: &Path) -> Result<(), RestoreError> {
    let mut layout = Layout::default();
    lay_out(source, item, at.to_owned(), 0, &mut layout)?;
    let lanes = Lanes::of(layout.leaves, WORKERS);
    let work = |own: usize| -> Result<(), RestoreError> {
        loop {
            let Some(leaf) = lanes.next(own) else {
                return Ok(());
            };
            if let Err(error) = restore_leaf(source, &leaf) {
                // The others need not go on: nothing of it will stand.
                source.tally.cancelled.store(true, Ordering::Relaxed);
                return Err(error);
            }
            source.tally.files.fetch_add(1, Ordering::Relaxed);
        }
    };
    let outcomes: Vec<Result<(), RestoreError>> = std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..WORKERS)
            .map(|own| scope.spawn(move || work(own)))
            .collect();
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut failures: Vec<RestoreError> = outcomes.into_iter().filter_map(Result::err).collect();
    // Those that only heard of the cancellation say nothing of the cause.
    failures.sort_by_key(|error| {
        matches!(error, RestoreError::Read { source, .. } if matches!(**source, ReadError::Cancelled))
    });
    if let Some(error) = failures.into_iter().next() {
        return Err(error);
    }
    for (path, mode, mtime_ms) in layout.folders.iter().rev() {
        finish(path, Some(*mode), *mtime_ms).map_err(|source| RestoreError::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn lay_out(
    source: &Source,
    item: Item,
    path: PathBuf,
    depth: usize,
    layout: &mut Layout,
) -> Result<(), RestoreError> {
    match item {
        Item::Leaf {
            kind,
            link,
            mode,
            mtime_ms,
        } => layout.leaves.push(Work {
            path,
            kind,
            link,
            mode,
            mtime_ms,
        }),
        Item::Folder {
            mode,
            mtime_ms,
            children,
        } => {
            make_folder(&path, mode, mtime_ms, layout)?;
            for (name, child) in children {
                let at = path.join(std::ffi::OsStr::from_bytes(&name));
                lay_out(source, child, at, depth + 1, layout)?;
            }
        }
        Item::Snapshot {
            link,
            mode,
            mtime_ms,
        } => {
            let Some((listing, kind)) = read_listing(source, &link, &path)? else {
                return Err(RestoreError::Misnamed { path });
            };
            if kind == Some(Kind::Chunk) {
                return Err(RestoreError::Misnamed { path });
            }
            lay_out_listing(source, &listing, path, (mode, mtime_ms), depth, layout)?;
        }
        Item::Root { link } => {
            let root = Item::Leaf {
                kind: FileKind::File,
                link: link.clone(),
                mode: 0o644,
                mtime_ms: 0,
            };
            match root_kind(source, &link, &path)? {
                Some(Kind::Tree) => {
                    let at = Item::Snapshot {
                        link,
                        mode: 0o755,
                        mtime_ms: 0,
                    };
                    lay_out(source, at, path, depth, layout)?;
                }
                _ => lay_out(source, root, path, depth, layout)?,
            }
        }
    }
    Ok(())
}

fn lay_out_listing(
    source: &Source,
    listing: &[u8],
    path: PathBuf,
    (mode, mtime_ms): (u32, u64),
    depth: usize,
    layout: &mut Layout,
) -> Result<(), RestoreError> {
    let entries = tree::decode(listing).map_err(|source| RestoreError::Listing {
        path: path.clone(),
        source,
    })?;
    if depth >= TREE_DEPTH_MAX {
        return Err(RestoreError::Misnamed { path });
    }
    make_folder(&path, mode, mtime_ms, layout)?;
    for entry in entries {
        let at = path.join(std::ffi::OsStr::from_bytes(&entry.name));
        let item = match entry.kind {
            FileKind::Folder => Item::Snapshot {
                link: entry.link,
                mode: entry.mode,
                mtime_ms: entry.mtime_ms,
            },
            kind => Item::Leaf {
                kind,
                link: entry.link,
                mode: entry.mode,
                mtime_ms: entry.mtime_ms,
            },
        };
        lay_out(source, item, at, depth + 1, layout)?;
    }
    Ok(())
}

fn read_listing(
    source: &Source,
    link: &ObjectLink,
    path: &Path,
) -> Result<Option<Whole>, RestoreError> {
    source
        .read_whole(link, TREE_BYTES_MAX)
        .map_err(|source| RestoreError::Read {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

/// What the leaves of a root are: found by reading its first bytes.
fn root_kind(
    source: &Source,
    link: &ObjectLink,
    path: &Path,
) -> Result<Option<Kind>, RestoreError> {
    source
        .first_kind(link)
        .map_err(|source| RestoreError::Read {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

fn make_folder(
    path: &Path,
    mode: u32,
    mtime_ms: u64,
    layout: &mut Layout,
) -> Result<(), RestoreError> {
    // Its own mode comes once it is full: until then nobody else looks in.
    let made = fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|source| RestoreError::Write {
        path: path.to_owned(),
        source,
    })?;
    layout.folders.push((path.to_owned(), mode, mtime_ms));
    Ok(())
}

fn restore_leaf(source: &Source, leaf: &Work) -> Result<(), RestoreError> {
    let wrote = |error| RestoreError::Write {
        path: leaf.path.clone(),
        source: error,
    };
    let read = |source| RestoreError::Read {
        path: leaf.path.clone(),
        source: Box::new(source),
    };
    if leaf.kind == FileKind::Symlink {
        let Some((target, _)) = source
            .read_whole(&leaf.link, TARGET_BYTES_MAX)
            .map_err(read)?
        else {
            return Err(RestoreError::Misnamed {
                path: leaf.path.clone(),
            });
        };
        let len = target.len() as u64;
        source.tally.bytes.fetch_add(len, Ordering::Relaxed);
        std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), &leaf.path)
            .map_err(wrote)?;
        return finish(&leaf.path, None, leaf.mtime_ms).map_err(wrote);
    }
    // Nobody else reads it before its own mode is set at the end.
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&leaf.path)
        .map_err(wrote)?;
    let kind = if leaf.link.size < LONG_BYTES {
        fill(source, &leaf.link, &file)
    } else {
        fill_long(source, &leaf.link, &file)
    };
    let kind = kind.map_err(|error| match error {
        ReadError::Write(error) => wrote(error),
        other => read(other),
    })?;
    if kind == Some(Kind::Tree) {
        return Err(RestoreError::Misnamed {
            path: leaf.path.clone(),
        });
    }
    finish_file(&file, leaf.mode, leaf.mtime_ms).map_err(wrote)
}

/// Reads an object and writes it to the file.
fn fill(source: &Source, link: &ObjectLink, file: &File) -> Result<Option<Kind>, ReadError> {
    let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
    let kind = source.read(link, &mut |data| {
        let len = data.len() as u64;
        file.write_all(&data)?;
        source.tally.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    })?;
    file.flush().map_err(ReadError::Write)?;
    Ok(kind)
}

/// As [`fill`], with a thread that writes beside this one that reads and opens: either keeps a core busy.
fn fill_long(
    source: &Source,
    link: &ObjectLink,
    mut file: &File,
) -> Result<Option<Kind>, ReadError> {
    std::thread::scope(|scope| {
        let (to, pieces) = sync_channel::<Bytes>(PIECES_AHEAD);
        let writing = scope.spawn(move || {
            let (mut written, mut begun) = (0_u64, 0);
            for piece in pieces {
                file.write_all(&piece)?;
                let len = piece.len() as u64;
                source.tally.bytes.fetch_add(len, Ordering::Relaxed);
                written += len;
                if written - begun >= WRITE_OUT_BYTES {
                    write_out(file, written);
                    begun = written;
                }
            }
            Ok(())
        });
        // It ends before its time only if the file refused, which it then tells itself.
        let read = source.read(link, &mut |data| {
            to.send(data)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        });
        drop(to);
        match writing.join() {
            Ok(written) => written.map_err(ReadError::Write).and(read),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Has the system write out what was just written, and let go of what it wrote out before: a large restore neither heaps up what is still to be written,
/// nor drives out of memory what others have there. It waits for nothing, and what fails here costs only that.
fn write_out(file: &File, written: u64) {
    let from = written.saturating_sub(BEHIND_BYTES);
    let _ = rustix::fs::fadvise(file, from, None, rustix::fs::Advice::DontNeed);
}

/// Sets mode and modification time of a folder or a symlink. A time of zero is none that was ever kept: the present one stays.
fn finish(path: &Path, mode: Option<u32>, mtime_ms: u64) -> io::Result<()> {
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    if mtime_ms == 0 {
        return Ok(());
    }
    let times = modified_at(mtime_ms);
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// As [`finish`], of an open file: its path need not be looked up again.
fn finish_file(file: &File, mode: u32, mtime_ms: u64) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if mtime_ms != 0 {
        rustix::fs::futimens(file, &modified_at(mtime_ms))?;
    }
    Ok(())
}

fn modified_at(mtime_ms: u64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: i64::try_from(mtime_ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(mtime_ms % 1000 * 1_000_000).unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::seal::BlockKey;

    fn leaf(path: &str) -> Work {
        Work {
            path: PathBuf::from(path),
            kind: FileKind::File,
            link: ObjectLink {
                digest: [0; 32],
                key: BlockKey::new([0; 32]),
                size: 0,
            },
            mode: 0o644,
            mtime_ms: 0,
        }
    }

    #[test]
    fn workers_share_all_files_and_no_folder_as_long_as_there_is_one_for_each() {
        let leaves = (0..12).flat_map(|folder| (0..=folder).map(move |n| format!("/{folder}/{n}")));
        let all: Vec<String> = leaves.collect();
        let lanes = Lanes::of(all.iter().map(|path| leaf(path)).collect(), 4);
        let firsts: Vec<PathBuf> = (0..4).map(|own| lanes.next(own).unwrap().path).collect();
        let mut folders: Vec<&Path> = firsts.iter().filter_map(|path| path.parent()).collect();
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), 4);
        // One worker alone finishes what the others leave.
        let mut done: Vec<PathBuf> = firsts;
        done.extend(std::iter::from_fn(|| lanes.next(2)).map(|work| work.path));
        done.sort();
        let mut expected: Vec<PathBuf> = all.iter().map(PathBuf::from).collect();
        expected.sort();
        assert_eq!(done, expected);
    }

    #[test]
    fn one_large_folder_keeps_every_worker_busy() {
        let lanes = Lanes::of((0..9).map(|n| leaf(&format!("/a/{n}"))).collect(), 3);
        assert!((0..9).all(|turn| lanes.next(turn % 3).is_some()));
        assert!(lanes.next(0).is_none());
    }
}
