//! One process per home.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::disk::make_folder;

/// The file that is locked.
const FILE: &str = "lock";
/// How long a second process waits for the first.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Between two tries: the system has no lock that waits with a limit.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// Longest description of a holder that is read.
const HOLDER_BYTES_MAX: u64 = 256;

/// A home taken for this process until the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

/// Why a home could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("data folder {} is in use by {holder}", home.display())]
    InUse {
        /// The home.
        home: PathBuf,
        /// What the other process says of itself: `process 123 (kith up)`.
        holder: String,
    },
    /// The lock file could not be used.
    #[error("lock data folder {}", home.display())]
    Io {
        /// The home.
        home: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl HomeLock {
    /// Takes a home, making the folder if there is none; waits up to `wait` for another process to leave it.
    ///
    /// `what` says to others what this process is, say `kith up`. Blocks the thread.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(home: &Path, what: &str, wait: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            home: home.to_owned(),
            source,
        };
        make_folder(home).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(home.join(FILE))
            .map_err(failed)?;
        let end = Instant::now() + wait;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                    std::thread::sleep(TRY_EVERY);
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    return Err(LockError::InUse {
                        home: home.to_owned(),
                        holder: holder(&mut file),
                    });
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        // A full disk must not keep anybody out: the text only helps others to know the holder.
        let _ = file.set_len(0);
        let _ = write!(file, "process {} ({what})", std::process::id());
        Ok(Self { _file: file })
    }
}

/// What the holder says of itself.
fn holder(file: &mut File) -> String {
    let mut text = Vec::new();
    let _ = file.take(HOLDER_BYTES_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let text: String = text.chars().filter(|char| !char.is_control()).collect();
    if text.is_empty() {
        "another process".to_owned()
    } else {
        text
    }
}
