//! Backups: one file with the sealed blocks of a space or of single objects, and what opens them again.
//!
//! Spec: `protocol/spec/backup.md`, "Backup".

mod founding;
pub(crate) mod public;
mod reading;
mod writing;

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kith_object::store::StoreError;
use rustix::fs::{CWD, RenameFlags};

use crate::restore::temporary_beside;
use crate::source::ReadError;

pub use founding::by_backup;
pub(crate) use reading::{Found, Lacking, Taken, read_backup, record_of};
pub(crate) use writing::{Plan, Planner, Seen, write_backup};

/// Why an archive was not written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("{path} is there already", path = path.display())]
    Exists { path: PathBuf },
    #[error("write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no CAR archive", path = path.display())]
    NoArchive { path: PathBuf },
    #[error("{path} has no record of a backup in it", path = path.display())]
    NoRecord { path: PathBuf },
    #[error("read a block")]
    Block(#[source] Box<ReadError>),
    #[error("use the store")]
    Store(#[source] Box<StoreError>),
    #[error("read the log of entries: some of what it held is not there any more")]
    Log,
    #[error("there are more blocks than one backup can list")]
    TooMany,
    #[error(
        "two names of a large folder in it cannot be told apart by the hash that spreads it over several nodes"
    )]
    Sharded,
    #[error("it unfolds to more than its length can honestly stand for")]
    Unfolds,
    #[error("{0}")]
    Device(String),
    #[error("it was cancelled")]
    Cancelled,
}

impl ArchiveError {
    pub(crate) fn block(source: ReadError) -> Self {
        Self::Block(Box::new(source))
    }

    pub(crate) fn store(source: StoreError) -> Self {
        Self::Store(Box::new(source))
    }
}

/// A file under a temporary name until it is whole.
pub(crate) struct NewFile {
    file: BufWriter<File>,
    temporary: PathBuf,
    dest: PathBuf,
    force: bool,
    written: u64,
}

impl NewFile {
    /// Begins one, readable by nobody else.
    pub(crate) fn create(dest: &Path, force: bool) -> Result<Self, ArchiveError> {
        if !force && fs::symlink_metadata(dest).is_ok() {
            let path = dest.to_owned();
            return Err(ArchiveError::Exists { path });
        }
        let temporary = temporary_beside(dest);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|source| ArchiveError::Write {
                path: dest.to_owned(),
                source,
            })?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            temporary,
            dest: dest.to_owned(),
            force,
            written: 0,
        })
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.written
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.written += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        self.failed(written)
    }

    /// Writes over what stands at the beginning.
    pub(crate) fn write_beginning(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let written = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(bytes));
        self.failed(written)
    }

    /// Makes it last, under its name.
    pub(crate) fn finish(mut self) -> Result<(), ArchiveError> {
        let synced = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        self.failed(synced)?;
        let renamed = if self.force {
            fs::rename(&self.temporary, &self.dest)
        } else {
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.dest, flags) {
                Err(rustix::io::Errno::EXIST) => {
                    let path = self.dest.clone();
                    return Err(ArchiveError::Exists { path });
                }
                // Some file systems cannot promise it in one step.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS)
                    if fs::symlink_metadata(&self.dest).is_err() =>
                {
                    fs::rename(&self.temporary, &self.dest)
                }
                other => other.map_err(io::Error::from),
            }
        };
        self.failed(renamed)?;
        let folder = match self.dest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        self.failed(synced)
    }

    fn failed<T>(&self, outcome: io::Result<T>) -> Result<T, ArchiveError> {
        outcome.map_err(|source| ArchiveError::Write {
            path: self.dest.clone(),
            source,
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Once it is finished, nothing has that name any more.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Opens an archive for reading; never waits for a pipe.
fn open(path: &Path) -> Result<File, ArchiveError> {
    let failed = |source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    };
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        Ok(file)
    } else {
        Err(failed(io::Error::other("it is no file")))
    }
}
