//! Files and folders of this machine into objects: walks, reads, cuts, seals, stores.
//!
//! Spec: `protocol/spec/ingest.md`, "What is stored".

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use kith_object::chunk::Chunker;
use kith_object::object::{ObjectLink, ObjectWriter};
use kith_object::seal::{Kind, SealedBlock, Sealer};
use kith_object::tree::{self, FileKind, MODE_MASK, TREE_DEPTH_MAX, TreeEntry};

/// Stores a block; says whether it was new.
pub type Sink = Arc<dyn Fn(&SealedBlock) -> io::Result<bool> + Send + Sync>;

/// Bytes read from a file at once.
const READ_BYTES: usize = 1 << 20;
/// Blocks of a long object that are sealed ahead of the thread that stores them: some MiB.
const BLOCKS_AHEAD: usize = 32;
/// How often a file that changed while it was read is read again.
const READ_TRIES: usize = 3;

/// Turns bytes into objects under one dedup secret.
#[derive(Clone)]
pub struct Ingest {
    sealer: Arc<Sealer>,
    chunker: Arc<Chunker>,
    sink: Sink,
    /// Device and inode of a folder that is left out: Kith's own, whose keys never leave the device.
    without: Option<(u64, u64)>,
    /// How far it is; shared with whoever shows it.
    pub progress: Arc<Progress>,
}

/// How far an ingest is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of files read.
    pub bytes: AtomicU64,
    /// Files done.
    pub files: AtomicU64,
    /// Bytes of files in all, once the walk knows.
    pub total: AtomicU64,
    /// Bytes of blocks that were there already.
    pub dedup: AtomicU64,
    /// Set to end early.
    pub cancelled: AtomicBool,
}

/// A file, symlink or folder as stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What it is.
    pub kind: FileKind,
    /// Its object; of a folder, the listing.
    pub link: ObjectLink,
    /// Bytes of the file, or of all files in the folder.
    pub size: u64,
    /// Files in it, itself included.
    pub files: u64,
    /// Modification time, milliseconds since 1970.
    pub mtime_ms: u64,
    /// Unix permission bits.
    pub mode: u32,
    /// What is in the folder, by name, in order.
    pub children: Vec<(Vec<u8>, Stored)>,
}

/// Something that could not be stored; the rest was.
#[derive(Debug)]
pub struct Skipped {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

struct Found {
    path: PathBuf,
    name: Vec<u8>,
    kind: FileKind,
    size: u64,
    mtime_ms: u64,
    mode: u32,
    children: Vec<usize>,
    stored: Option<Stored>,
}

impl Ingest {
    /// An ingest that seals with `sealer` and cuts with `chunker` into `sink`.
    pub fn new(sealer: Arc<Sealer>, chunker: Arc<Chunker>, sink: Sink) -> Self {
        Self {
            sealer,
            chunker,
            sink,
            without: None,
            progress: Arc::new(Progress::default()),
        }
    }

    /// Leaves that folder out wherever it is met.
    #[must_use]
    pub fn without(mut self, folder: &Path) -> Self {
        self.without = fs::metadata(folder)
            .ok()
            .map(|found| (found.dev(), found.ino()));
        self
    }

    /// Stores a path with all below it, on all cores. What cannot be read is skipped and told.
    ///
    /// # Errors
    /// If the path itself cannot be read, the store refuses, or it was cancelled.
    pub fn path(&self, path: &Path) -> io::Result<(Stored, Vec<Skipped>)> {
        let mut skipped = Vec::new();
        let mut found = Vec::new();
        self.walk(path, Vec::new(), 0, &mut found, &mut skipped)?;
        if found.is_empty() {
            let why = skipped.pop().map_or_else(
                || "there is nothing to store".to_owned(),
                |skipped| skipped.why,
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let total = found
            .iter()
            .filter(|found| found.kind == FileKind::File)
            .map(|found| found.size)
            .sum();
        self.progress.total.store(total, Ordering::Relaxed);
        let outcomes = self.store_files(&found)?;
        for (place, outcome) in outcomes {
            let Some(entry) = found.get_mut(place) else {
                continue;
            };
            match outcome {
                Ok(stored) => entry.stored = Some(stored),
                Err(why) if place == 0 => return Err(why),
                Err(why) => skipped.push(Skipped {
                    path: entry.path.clone(),
                    why: why.to_string(),
                }),
            }
        }
        // Parents stand before their children, so that going backwards meets children first.
        for place in (0..found.len()).rev() {
            if found
                .get(place)
                .is_some_and(|entry| entry.kind == FileKind::Folder)
            {
                let folder = self.store_folder(&mut found, place)?;
                if let Some(entry) = found.get_mut(place) {
                    entry.stored = Some(folder);
                }
            }
        }
        let root = found.first_mut().and_then(|root| root.stored.take());
        root.map(|root| (root, skipped))
            .ok_or_else(|| io::Error::other("nothing was stored"))
    }

    /// Stores a stream as one file.
    ///
    /// # Errors
    /// If reading fails, the store refuses, or it was cancelled.
    pub fn stream(&self, reader: &mut dyn Read, mtime_ms: u64) -> io::Result<Stored> {
        let link = self.object(reader, Kind::Chunk)?;
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(Stored {
            kind: FileKind::File,
            size: link.size,
            link,
            files: 1,
            mtime_ms,
            mode: 0o644,
            children: Vec::new(),
        })
    }

    /// Stores a symlink to that target.
    pub(crate) fn symlink(&self, target: &[u8], mtime_ms: u64) -> io::Result<Stored> {
        let link = self.bytes(target, Kind::Chunk)?;
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(Stored {
            kind: FileKind::Symlink,
            size: link.size,
            link,
            files: 1,
            mtime_ms,
            mode: 0o777,
            children: Vec::new(),
        })
    }

    fn walk(
        &self,
        path: &Path,
        name: Vec<u8>,
        depth: usize,
        found: &mut Vec<Found>,
        skipped: &mut Vec<Skipped>,
    ) -> io::Result<Option<usize>> {
        self.check_cancelled()?;
        let metadata = fs::symlink_metadata(path)?;
        let kind = if metadata.is_file() {
            FileKind::File
        } else if metadata.is_dir() {
            FileKind::Folder
        } else if metadata.is_symlink() {
            FileKind::Symlink
        } else {
            skipped.push(Skipped {
                path: path.to_owned(),
                why: "is neither file, folder nor symlink".to_owned(),
            });
            return Ok(None);
        };
        if self.without == Some((metadata.dev(), metadata.ino())) {
            skipped.push(Skipped {
                path: path.to_owned(),
                why: "it is Kith's own data folder".to_owned(),
            });
            return Ok(None);
        }
        let place = found.len();
        found.push(Found {
            path: path.to_owned(),
            name,
            kind,
            size: metadata.len(),
            mtime_ms: mtime_ms(&metadata),
            mode: metadata.mode() & MODE_MASK,
            children: Vec::new(),
            stored: None,
        });
        if kind == FileKind::Folder {
            if depth >= TREE_DEPTH_MAX {
                return Err(io::Error::other(format!(
                    "folders are nested deeper than {TREE_DEPTH_MAX}: {}",
                    path.display()
                )));
            }
            let children = self.walk_children(path, depth, found, skipped)?;
            if let Some(folder) = found.get_mut(place) {
                folder.children = children;
            }
        }
        Ok(Some(place))
    }

    fn walk_children(
        &self,
        path: &Path,
        depth: usize,
        found: &mut Vec<Found>,
        skipped: &mut Vec<Skipped>,
    ) -> io::Result<Vec<usize>> {
        let mut names = Vec::new();
        match fs::read_dir(path) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => names.push(entry.file_name()),
                        Err(why) => skipped.push(Skipped {
                            path: path.to_owned(),
                            why: why.to_string(),
                        }),
                    }
                }
            }
            Err(why) if depth == 0 => return Err(why),
            Err(why) => skipped.push(Skipped {
                path: path.to_owned(),
                why: why.to_string(),
            }),
        }
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        let mut children = Vec::new();
        for name in names {
            let child = path.join(&name);
            match self.walk(&child, name.as_bytes().to_vec(), depth + 1, found, skipped) {
                Ok(Some(place)) => children.push(place),
                Ok(None) => {}
                Err(why) if self.progress.cancelled.load(Ordering::Relaxed) => return Err(why),
                Err(why) => skipped.push(Skipped {
                    path: child,
                    why: why.to_string(),
                }),
            }
        }
        Ok(children)
    }

    /// Stores all files and symlinks found, each core taking the next one.
    fn store_files(&self, found: &[Found]) -> io::Result<Vec<(usize, io::Result<Stored>)>> {
        let next = AtomicUsize::new(0);
        let fatal = AtomicBool::new(false);
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(found.len().max(1));
        let work = || {
            let mut done = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(entry) = found.get(place) else {
                    return Ok(done);
                };
                if fatal.load(Ordering::Relaxed) {
                    return Ok(done);
                }
                if entry.kind == FileKind::Folder {
                    continue;
                }
                match self.store_file(entry) {
                    Err(FileError::Store(why)) => {
                        fatal.store(true, Ordering::Relaxed);
                        return Err(why);
                    }
                    Err(FileError::Source(why)) => done.push((place, Err(why))),
                    Ok(stored) => done.push((place, Ok(stored))),
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut outcomes = Vec::new();
            for worker in workers {
                match worker.join() {
                    Ok(done) => outcomes.append(&mut done?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(outcomes)
        })
    }

    fn store_file(&self, entry: &Found) -> Result<Stored, FileError> {
        let (link, mtime_ms) = if entry.kind == FileKind::Symlink {
            let target = fs::read_link(&entry.path).map_err(FileError::Source)?;
            let link = self
                .bytes(target.as_os_str().as_bytes(), Kind::Chunk)
                .map_err(FileError::Store)?;
            (link, entry.mtime_ms)
        } else {
            self.read_steadily(&entry.path)?
        };
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        Ok(Stored {
            kind: entry.kind,
            size: link.size,
            link,
            files: 1,
            mtime_ms,
            mode: entry.mode,
            children: Vec::new(),
        })
    }

    /// Reads a file that may be written to meanwhile: again if it changed, and not at all if it never stands still.
    fn read_steadily(&self, path: &Path) -> Result<(ObjectLink, u64), FileError> {
        let mut file = open_file(path).map_err(FileError::Source)?;
        for _ in 0..READ_TRIES {
            let before = file.metadata().map_err(FileError::Source)?;
            let read_before = self.progress.bytes.load(Ordering::Relaxed);
            let link = self.object_of(&mut file)?;
            let after = file.metadata().map_err(FileError::Source)?;
            let same = before.len() == after.len()
                && link.size == after.len()
                && (before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec());
            if same {
                return Ok((link, mtime_ms(&after)));
            }
            let read = self
                .progress
                .bytes
                .load(Ordering::Relaxed)
                .saturating_sub(read_before)
                .min(link.size);
            self.progress.bytes.fetch_sub(read, Ordering::Relaxed);
            file = open_file(path).map_err(FileError::Source)?;
        }
        Err(FileError::Source(io::Error::other(
            "it changed each time while it was read; store it again when it stands still",
        )))
    }

    fn object_of(&self, file: &mut File) -> Result<ObjectLink, FileError> {
        let mut source = SourceReader { file, failed: None };
        let outcome = self.object(&mut source, Kind::Chunk);
        match (outcome, source.failed) {
            (_, Some(why)) => Err(FileError::Source(why)),
            (Err(why), None) => Err(FileError::Store(why)),
            (Ok(link), None) => Ok(link),
        }
    }

    fn object(&self, reader: &mut dyn Read, kind: Kind) -> io::Result<ObjectLink> {
        let writer = ObjectWriter::new(self.sealer.clone(), self.chunker.clone(), kind);
        let mut buffer = Vec::new();
        self.read_some(reader, &mut buffer)?;
        if buffer.len() < READ_BYTES {
            return writer.finish_with(&buffer, &mut |block| self.keep(&block));
        }
        self.long_object(writer, reader, buffer)
    }

    /// Reads, cuts and seals here, and stores on a thread beside it: either keeps a core busy.
    fn long_object(
        &self,
        mut writer: ObjectWriter,
        reader: &mut dyn Read,
        mut buffer: Vec<u8>,
    ) -> io::Result<ObjectLink> {
        std::thread::scope(|scope| {
            let (to, blocks) = sync_channel::<SealedBlock>(BLOCKS_AHEAD);
            let storing =
                scope.spawn(move || blocks.iter().try_for_each(|block| self.keep(&block)));
            // It ends before its time only if the store refused, which it then tells itself.
            let mut sink = |block| {
                to.send(block)
                    .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            };
            let sealed = loop {
                if buffer.len() < READ_BYTES {
                    break writer.finish_with(&buffer, &mut sink);
                }
                let pushed = writer.push(&buffer, &mut sink);
                if let Err(error) = pushed.and_then(|()| self.read_some(reader, &mut buffer)) {
                    break Err(error);
                }
            };
            drop(to);
            match storing.join() {
                Ok(stored) => stored.and(sealed),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The next [`READ_BYTES`], fewer only at the end.
    fn read_some(&self, reader: &mut dyn Read, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.check_cancelled()?;
        buffer.clear();
        let len = reader.take(READ_BYTES as u64).read_to_end(buffer)?;
        self.progress.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }

    fn bytes(&self, bytes: &[u8], kind: Kind) -> io::Result<ObjectLink> {
        let writer = ObjectWriter::new(self.sealer.clone(), self.chunker.clone(), kind);
        writer.finish_with(bytes, &mut |block| self.keep(&block))
    }

    fn keep(&self, block: &SealedBlock) -> io::Result<()> {
        if !(self.sink)(block)? {
            self.progress
                .dedup
                .fetch_add(block.bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn store_folder(&self, found: &mut [Found], place: usize) -> io::Result<Stored> {
        let Some(folder) = found.get_mut(place) else {
            return Err(io::Error::other("a folder that was found is gone"));
        };
        let (mode, mtime_ms) = (folder.mode, folder.mtime_ms);
        let mut children = Vec::new();
        for child in std::mem::take(&mut folder.children) {
            if let Some(entry) = found.get_mut(child)
                && let Some(stored) = entry.stored.take()
            {
                children.push((std::mem::take(&mut entry.name), stored));
            }
        }
        self.folder(children, mode, mtime_ms)
    }

    /// Stores a folder of what was stored, by name, in order.
    pub(crate) fn folder(
        &self,
        children: Vec<(Vec<u8>, Stored)>,
        mode: u32,
        mtime_ms: u64,
    ) -> io::Result<Stored> {
        let listing: Vec<TreeEntry> = children
            .iter()
            .map(|(name, child)| TreeEntry {
                name: name.clone(),
                kind: child.kind,
                mode: child.mode,
                mtime_ms: child.mtime_ms,
                link: child.link.clone(),
            })
            .collect();
        let encoded = tree::encode(&listing).map_err(io::Error::other)?;
        let link = self.bytes(&encoded, Kind::Tree)?;
        Ok(Stored {
            kind: FileKind::Folder,
            link,
            size: children.iter().map(|(_, child)| child.size).sum(),
            files: children.iter().map(|(_, child)| child.files).sum(),
            mtime_ms,
            mode,
            children,
        })
    }

    fn check_cancelled(&self) -> io::Result<()> {
        if self.progress.cancelled.load(Ordering::Relaxed) {
            Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "it was cancelled",
            ))
        } else {
            Ok(())
        }
    }
}

/// A failure of the source concerns one file; one of the store concerns all.
enum FileError {
    Source(io::Error),
    Store(io::Error),
}

/// Keeps an error of reading apart from one of storing.
struct SourceReader<'a> {
    file: &'a mut File,
    failed: Option<io::Error>,
}

impl Read for SourceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Err(why) if why.kind() != io::ErrorKind::Interrupted => {
                let kind = why.kind();
                self.failed = Some(why);
                Err(kind.into())
            }
            other => other,
        }
    }
}

/// Opens a file for reading, and never waits for a pipe that took its place.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no file any more"))
    }
}

fn mtime_ms(metadata: &fs::Metadata) -> u64 {
    let ms = metadata
        .mtime()
        .saturating_mul(1000)
        .saturating_add(metadata.mtime_nsec() / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::chunk::Profile;
    use kith_object::key::Secret;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;

    fn ingest() -> Ingest {
        let secret = Secret::new([1; 32]);
        let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
        Ingest::new(
            Arc::new(Sealer::new(&secret)),
            Arc::new(Chunker::new(&secret, Profile::DEFAULT)),
            Arc::new(move |block| Ok(seen.lock().unwrap().insert(block.cid))),
        )
    }

    #[test]
    fn folder_is_stored_with_every_kind_of_name_and_twice_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let odd = std::ffi::OsString::from_vec(vec![b'x', 0xff, 0xfe]);
        fs::create_dir(folder.path().join("empty")).unwrap();
        fs::write(folder.path().join("nothing"), b"").unwrap();
        fs::write(folder.path().join(&odd), vec![7; 2_000_000]).unwrap();
        symlink("nowhere", folder.path().join("link")).unwrap();
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            folder.path().join("pipe"),
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .unwrap();
        let ingest = ingest();
        let (stored, skipped) = ingest.path(folder.path()).unwrap();
        assert_eq!((stored.files, stored.size), (3, 2_000_007));
        let names: Vec<&[u8]> = stored
            .children
            .iter()
            .map(|(name, _)| name.as_slice())
            .collect();
        assert_eq!(
            names,
            [b"empty".as_slice(), b"link", b"nothing", odd.as_bytes()]
        );
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].path.ends_with("pipe"));
        let dedup = ingest.progress.dedup.load(Ordering::Relaxed);
        let (again, _) = ingest.path(folder.path()).unwrap();
        assert_eq!(again.link, stored.link);
        assert!(ingest.progress.dedup.load(Ordering::Relaxed) > dedup);
    }

    /// An ingest whose sink appends to `file` at the first `times` blocks: the file changes while it is read.
    fn disturbed(file: &Path, times: usize) -> Ingest {
        let (file, left) = (file.to_owned(), AtomicUsize::new(times));
        let mut ingest = ingest();
        ingest.sink = Arc::new(move |_| {
            if left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
            {
                let mut file = fs::OpenOptions::new().append(true).open(&file)?;
                io::Write::write_all(&mut file, b"more")?;
            }
            Ok(true)
        });
        ingest
    }

    #[test]
    fn file_that_changes_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("growing");
        fs::write(&file, b"some").unwrap();
        let (stored, skipped) = disturbed(&file, 1).path(folder.path()).unwrap();
        assert!(skipped.is_empty());
        assert_eq!(stored.size, b"somemore".len() as u64);
    }

    #[test]
    fn file_that_never_stands_still_is_skipped_and_told_and_the_rest_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("growing");
        fs::write(&file, b"some").unwrap();
        fs::write(folder.path().join("still"), b"still").unwrap();
        let (stored, skipped) = disturbed(&file, usize::MAX).path(folder.path()).unwrap();
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].path.ends_with("growing") && skipped[0].why.contains("changed"));
        assert_eq!(stored.children.len(), 1);
    }

    #[test]
    fn folder_of_the_device_itself_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("home")).unwrap();
        fs::write(folder.path().join("home/device.key"), b"secret").unwrap();
        fs::write(folder.path().join("file"), b"file").unwrap();
        let ingest = ingest().without(&folder.path().join("home"));
        let (stored, skipped) = ingest.path(folder.path()).unwrap();
        assert_eq!((stored.files, skipped.len()), (1, 1));
        assert!(ingest.path(&folder.path().join("home")).is_err());
    }

    #[test]
    fn path_that_is_not_there_and_a_refusing_store_are_errors() {
        assert!(ingest().path(Path::new("/nowhere/at/all")).is_err());
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), b"a").unwrap();
        let mut full = ingest();
        full.sink = Arc::new(|_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(
            full.path(folder.path()).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }

    #[test]
    fn long_file_is_the_same_object_as_a_stream_and_its_blocks_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        fs::write(folder.path().join("long"), &bytes).unwrap();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut ingest = ingest();
        let to = order.clone();
        ingest.sink = Arc::new(move |block| {
            to.lock().unwrap().push(block.cid);
            Ok(true)
        });
        let (stored, _) = ingest.path(&folder.path().join("long")).unwrap();
        assert_eq!(stored.size, bytes.len() as u64);
        let of_file = std::mem::take(&mut *order.lock().unwrap());
        // One writer, one thread: what the threads beside one another have to equal.
        let mut writer =
            ObjectWriter::new(ingest.sealer.clone(), ingest.chunker.clone(), Kind::Chunk);
        let mut alone = Vec::new();
        let mut keep = |block: SealedBlock| {
            alone.push(block.cid);
            Ok(())
        };
        writer.push(&bytes, &mut keep).unwrap();
        let link = writer.finish(&mut keep).unwrap();
        assert_eq!(stored.link, link);
        assert_eq!(of_file, alone);
        assert_eq!(of_file.last(), Some(&link.cid()));
    }

    #[test]
    fn long_file_that_the_store_refuses_half_way_ends_with_the_refusal_and_no_block_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("long"), vec![3; 30 << 20]).unwrap();
        for taken in [0, 1, 7] {
            let (came, mut ingest) = (Arc::new(AtomicUsize::new(0)), ingest());
            let count = came.clone();
            ingest.sink = Arc::new(move |_| {
                if count.fetch_add(1, Ordering::Relaxed) >= taken {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(true)
            });
            let refused = ingest.path(folder.path()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
            assert_eq!(came.load(Ordering::Relaxed), taken + 1);
        }
    }

    /// Gives zeros, then fails.
    struct Failing {
        left: usize,
    }

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let len = buffer.len().min(self.left);
            buffer[..len].fill(0);
            self.left -= len;
            Ok(len)
        }
    }

    #[test]
    fn long_stream_that_breaks_or_is_cancelled_tells_so() {
        let ingest = ingest();
        let broken = ingest.stream(&mut Failing { left: 20 << 20 }, 0);
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut cancelled = ingest.clone();
        let progress = cancelled.progress.clone();
        cancelled.sink = Arc::new(move |_| {
            progress.cancelled.store(true, Ordering::Relaxed);
            Ok(true)
        });
        let ended = cancelled.stream(&mut Failing { left: usize::MAX }, 0);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
