//! A folder of the file system as a [`Disk`].

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kith_object::disk::{Disk, is_name};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

/// Open files kept: enough for the packs that are read at once, far below the usual limit of 1,024.
const FILES_OPEN_MAX: usize = 256;

/// Files in one real folder, which is for its owner alone (0700, files 0600).
///
/// Files stay open between calls, the longest unused closed first; one with unsynced bytes is not closed, since the system tells an error
/// of writing only to those who had the file open.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    /// For syncing names.
    folder_file: Arc<File>,
    open: Arc<Mutex<OpenFiles>>,
    later: Arc<Later>,
}

/// What relaxed durability has put off.
#[derive(Debug, Default)]
struct Later {
    relaxed: AtomicBool,
    names: AtomicBool,
    /// A sync that was put off has failed: from then on every sync fails, since what was acknowledged may be gone.
    failed: AtomicBool,
}

/// Syncs what relaxed durability has put off; a handle of the same disk.
#[derive(Debug, Clone)]
pub struct Settler {
    folder_file: Arc<File>,
    open: Arc<Mutex<OpenFiles>>,
    later: Arc<Later>,
}

impl Settler {
    /// Returns once everything that was acknowledged so far would outlast a power cut.
    ///
    /// # Errors
    /// Whatever the system says; the disk takes no more then.
    pub fn settle(&self) -> io::Result<()> {
        if !self.later.relaxed.load(Ordering::Acquire) {
            return Ok(());
        }
        let result = self.try_settle();
        if result.is_err() {
            self.later.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Files that wait for their sync.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        let open = self.open.lock().unwrap();
        let files = open.files.values();
        files
            .filter(|(_, file)| file.unsynced.load(Ordering::Acquire))
            .count()
    }

    /// As if a sync that was put off had failed.
    #[cfg(test)]
    pub(super) fn fail(&self) {
        self.later.failed.store(true, Ordering::Release);
    }

    fn try_settle(&self) -> io::Result<()> {
        let unsynced: Vec<Arc<OpenFile>> = {
            let open = self
                .open
                .lock()
                .expect("no thread panics while it holds this lock");
            let files = open.files.values().map(|(_, file)| file);
            files
                .filter(|file| file.unsynced.load(Ordering::Acquire))
                .cloned()
                .collect()
        };
        for file in unsynced {
            sync_file(&file)?;
        }
        if self.later.names.swap(false, Ordering::AcqRel) {
            self.folder_file.sync_all()?;
        }
        Ok(())
    }
}

fn sync_file(open: &OpenFile) -> io::Result<()> {
    // Before the sync: what is appended during it is unsynced again.
    open.unsynced.store(false, Ordering::Release);
    let result = open.file.sync_data();
    if result.is_err() {
        open.unsynced.store(true, Ordering::Release);
    }
    result.map_err(plain)
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: BTreeMap<String, (u64, Arc<OpenFile>)>,
    /// Counts uses, so that the longest unused is known.
    uses: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    unsynced: AtomicBool,
}

impl RealDisk {
    /// Opens a folder, making it and those above it if there are none.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        make_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            folder_file: Arc::new(File::open(folder)?),
            open: Arc::default(),
            later: Arc::default(),
        })
    }

    /// With relaxed durability a sync returns at once, and [`Settler::settle`] does what was asked, some seconds later.
    ///
    /// Spec: `protocol/spec/store.md`, "Durability".
    pub fn set_relaxed(&self, relaxed: bool) {
        self.later.relaxed.store(relaxed, Ordering::Release);
    }

    /// What does the syncs that relaxed durability puts off.
    pub fn settler(&self) -> Settler {
        Settler {
            folder_file: Arc::clone(&self.folder_file),
            open: Arc::clone(&self.open),
            later: Arc::clone(&self.later),
        }
    }

    /// Whether a sync is put off; an error if one that was put off has failed.
    fn put_off(&self) -> io::Result<bool> {
        if self.later.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        Ok(self.later.relaxed.load(Ordering::Acquire))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        if is_name(name) {
            Ok(self.folder.join(name))
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a file name: {name:?}"),
            ))
        }
    }

    fn open_files(&self) -> MutexGuard<'_, OpenFiles> {
        self.open
            .lock()
            .expect("no thread panics while it holds this lock")
    }

    /// The file, opened now or before.
    fn file(&self, name: &str) -> io::Result<Arc<OpenFile>> {
        let path = self.path(name)?;
        let mut open = self.open_files();
        open.uses += 1;
        let uses = open.uses;
        if let Some((used, file)) = open.files.get_mut(name) {
            *used = uses;
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        Ok(open.keep(name, file))
    }
}

impl OpenFiles {
    fn keep(&mut self, name: &str, file: File) -> Arc<OpenFile> {
        if self.files.len() >= FILES_OPEN_MAX {
            let synced = self
                .files
                .iter()
                .filter(|(_, (_, file))| !file.unsynced.load(Ordering::Acquire));
            let oldest = synced
                .min_by_key(|(_, (used, _))| *used)
                .map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.files.remove(&oldest);
            }
        }
        let file = Arc::new(OpenFile {
            file,
            unsynced: AtomicBool::new(false),
        });
        self.files
            .insert(name.to_owned(), (self.uses, Arc::clone(&file)));
        file
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut open = self.open_files();
        open.uses += 1;
        open.keep(name, file);
        Ok(())
    }

    fn append_parts(&self, name: &str, parts: &[&[u8]]) -> io::Result<u64> {
        let open = self.file(name)?;
        let offset = open.file.metadata()?.len();
        open.unsynced.store(true, Ordering::Release);
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        // Drops empty parts at the front, so that an empty write does not look like a full disk.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&open.file).write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(error)),
            }
        }
        Ok(offset)
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let open = self.file(name)?;
        // Beyond what the system counts in, no file has bytes.
        if offset.saturating_add(len as u64) > i64::MAX as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Into room that need not be zeroed first; the allocator may have given a little more of it.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&open.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::IO) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, Errno::IO));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        let path = self.path(name)?;
        // A start asks this of every pack: nothing is opened for it.
        let open = self.open_files().files.get(name).cloned();
        match open {
            Some((_, open)) => Ok(open.file.metadata()?.len()),
            None => Ok(fs::metadata(path)?.len()),
        }
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let open = self.file(name)?;
        if len > open.file.metadata()?.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a file is only cut shorter",
            ));
        }
        open.unsynced.store(true, Ordering::Release);
        open.file.set_len(len)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let open = self.file(name)?;
        if self.put_off()? {
            return Ok(());
        }
        sync_file(&open)
    }

    fn begin_sync(&self, name: &str, from: u64) {
        // Linux begins to write what is dirty when told that it is not needed, and keeps what it writes just now. What fails here, the sync tells.
        if let Ok(open) = self.file(name) {
            let _ = rustix::fs::fadvise(&open.file, from, None, rustix::fs::Advice::DontNeed);
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        if self.put_off()? {
            self.later.names.store(true, Ordering::Release);
            return Ok(());
        }
        self.folder_file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (source, target) = (self.path(from)?, self.path(to)?);
        let mut open = self.open_files();
        fs::rename(source, target)?;
        open.files.remove(to);
        if let Some(entry) = open.files.remove(from) {
            open.files.insert(to.to_owned(), entry);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        // What is removed may have been copied just now: the copy is to last first, though syncs are put off.
        self.settler().settle()?;
        let mut open = self.open_files();
        fs::remove_file(path)?;
        open.files.remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
                && is_name(&name)
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn free(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&*self.folder_file).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn size(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&*self.folder_file).ok()?;
        Some(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

/// Quota and file-size limits are full disks to us.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            io::Error::new(io::ErrorKind::StorageFull, error)
        }
        _ => error,
    }
}

/// Makes a folder for its owner alone, and those above it, durably.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = folder.parent().ok_or(error)?;
            make_folder(above)?;
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        Err(error) => return Err(error),
    }
    match folder.parent() {
        Some(above) if !above.as_os_str().is_empty() => File::open(above)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
