//! Gets a public object from peers and writes it out as files.
//!
//! Spec: `protocol/spec/outside.md`, "Getting".

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kith_object::id::{Cid, DeviceId};
use kith_object::pack::Class;
use kith_object::store::{StoreError, Verified};

use super::dag::{Blocks, DagError, Maker};
use super::driver::Outside;
use crate::source::{Arrival, Tally};
use crate::store::DiskStore;

/// Blocks asked for ahead and not taken yet, and their bytes; a block is at most 2 MiB.
const AHEAD_MAX: usize = 128;
const AHEAD_BYTES_MAX: usize = 32 << 20;
/// How long a block is hoped for that every peer said it has not got.
const HOPE: Duration = Duration::from_secs(3);
/// How often a waiting read looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(200);
/// How much of a file is copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Why a block did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// None of those that were asked has it.
    #[error("none of the peers that were asked has block {0}")]
    Unavailable(Cid),
    #[error("use the store")]
    Store(#[source] StoreError),
    #[error("it was cancelled")]
    Cancelled,
}

impl From<FetchError> for io::Error {
    fn from(error: FetchError) -> Self {
        let kind = match &error {
            FetchError::Unavailable(_) => io::ErrorKind::NotFound,
            FetchError::Store(error) if error.is_full() => io::ErrorKind::StorageFull,
            FetchError::Store(_) => io::ErrorKind::Other,
            FetchError::Cancelled => io::ErrorKind::Interrupted,
        };
        Self::new(kind, error)
    }
}

/// Blocks from this disk, else from peers. What comes stays on this disk as long as there is room.
pub(crate) struct PeerBlocks {
    store: Arc<DiskStore>,
    outside: Arc<Outside>,
    tally: Arc<Tally>,
    request: u64,
    to: Sender<Arrival>,
    arrivals: Receiver<Arrival>,
    ahead: RefCell<Ahead>,
}

/// What was asked for and has not been taken.
#[derive(Default)]
struct Ahead {
    asked: BTreeSet<Cid>,
    here: BTreeMap<Cid, Bytes>,
    here_bytes: usize,
    /// Blocks that nobody has, as far as is known.
    lacking: BTreeSet<Cid>,
    from: BTreeMap<DeviceId, u64>,
}

impl PeerBlocks {
    pub(crate) fn new(store: Arc<DiskStore>, outside: Arc<Outside>, tally: Arc<Tally>) -> Self {
        let (to, arrivals) = channel();
        Self {
            store,
            request: outside.request(),
            outside,
            tally,
            to,
            arrivals,
            ahead: RefCell::default(),
        }
    }

    /// Bytes of blocks that came from each peer.
    pub(crate) fn from(&self) -> BTreeMap<DeviceId, u64> {
        self.ahead.borrow().from.clone()
    }

    fn ask(&self, cids: Vec<Cid>) {
        if !cids.is_empty() {
            self.outside.fetch(self.request, cids, self.to.clone());
        }
    }

    fn here(&self, cid: &Cid) -> io::Result<Option<Bytes>> {
        match self.store.get(cid) {
            Ok(block) => Ok(block),
            // As good as not here.
            Err(StoreError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(FetchError::Store(error).into()),
        }
    }

    fn came(&self, arrival: Arrival) -> io::Result<()> {
        let mut ahead = self.ahead.borrow_mut();
        match arrival {
            Arrival::Block { cid, block, from } => {
                ahead.lacking.remove(&cid);
                if !ahead.asked.remove(&cid) {
                    return Ok(());
                }
                let verified = Verified::computed(cid, &block);
                let kept = self.store.put_cached(Class::Public, verified);
                match kept {
                    Ok(_) => {}
                    // There is no room to keep it; it is of use all the same.
                    Err(error) if error.is_full() => {}
                    Err(error) => return Err(FetchError::Store(error).into()),
                }
                *ahead.from.entry(from).or_default() += block.len() as u64;
                ahead.here_bytes += block.len();
                ahead.here.insert(cid, block);
            }
            Arrival::Held { cid } => {
                ahead.lacking.remove(&cid);
                ahead.asked.remove(&cid);
            }
            Arrival::Sought { cid } => {
                ahead.lacking.remove(&cid);
            }
            Arrival::Unavailable { cid } => {
                ahead.lacking.insert(cid);
            }
        }
        Ok(())
    }

    fn take(&self, cid: &Cid) -> Option<Bytes> {
        let mut ahead = self.ahead.borrow_mut();
        let block = ahead.here.remove(cid)?;
        ahead.here_bytes -= block.len();
        Some(block)
    }
}

impl Drop for PeerBlocks {
    fn drop(&mut self) {
        self.outside.cancel(self.request);
    }
}

impl Blocks for PeerBlocks {
    fn block(&self, cid: &Cid) -> io::Result<Bytes> {
        let mut hope = None;
        loop {
            if self.tally.cancelled.load(Ordering::Relaxed) {
                return Err(FetchError::Cancelled.into());
            }
            while let Ok(arrival) = self.arrivals.try_recv() {
                self.came(arrival)?;
            }
            if let Some(block) = self.take(cid) {
                return Ok(block);
            }
            if !self.ahead.borrow().asked.contains(cid) {
                if let Some(block) = self.here(cid)? {
                    return Ok(block);
                }
                self.ahead.borrow_mut().asked.insert(*cid);
                self.ask(vec![*cid]);
            }
            if self.ahead.borrow().lacking.contains(cid) {
                let until = *hope.get_or_insert_with(|| Instant::now() + HOPE);
                if until <= Instant::now() {
                    return Err(FetchError::Unavailable(*cid).into());
                }
            } else {
                hope = None;
            }
            match self.arrivals.recv_timeout(LOOK) {
                Ok(arrival) => self.came(arrival)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(FetchError::Cancelled.into()),
            }
        }
    }

    fn ahead(&self, cids: &mut dyn Iterator<Item = Cid>) {
        let mut wanted = Vec::new();
        {
            let mut ahead = self.ahead.borrow_mut();
            for cid in cids {
                if ahead.asked.len() + ahead.here.len() >= AHEAD_MAX
                    || ahead.here_bytes >= AHEAD_BYTES_MAX
                {
                    break;
                }
                let known = ahead.asked.contains(&cid) || ahead.here.contains_key(&cid);
                // What the store cannot tell is asked for when it is needed.
                if known || self.store.has(&cid).unwrap_or(true) {
                    continue;
                }
                ahead.asked.insert(cid);
                wanted.push(cid);
            }
        }
        self.ask(wanted);
    }
}

/// Makes plain files and folders below a place that nobody else uses.
pub(crate) struct IntoFiles<'a> {
    root: PathBuf,
    tally: &'a Tally,
    buffer: Vec<u8>,
}

impl<'a> IntoFiles<'a> {
    pub(crate) fn new(root: &Path, tally: &'a Tally) -> Self {
        Self {
            root: root.to_owned(),
            tally,
            buffer: vec![0; COPY_BYTES],
        }
    }

    fn at(&self, path: &[Vec<u8>]) -> PathBuf {
        let mut at = self.root.clone();
        at.extend(path.iter().map(|name| OsStr::from_bytes(name)));
        at
    }

    fn has_room(&self, bytes: u64) -> io::Result<()> {
        let folder = self.root.parent().unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(folder)?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Maker for IntoFiles<'_> {
    type Made = ();

    fn file(&mut self, path: &[Vec<u8>], size: u64, bytes: &mut dyn Read) -> io::Result<()> {
        // A few blocks can say that they stand for more than any disk holds.
        self.has_room(size)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(self.at(path))?;
        let mut written = 0;
        loop {
            let len = bytes.read(&mut self.buffer)?;
            let Some(part) = self.buffer.get(..len).filter(|part| !part.is_empty()) else {
                break;
            };
            file.write_all(part)?;
            written += len as u64;
            self.tally.bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        if written != size {
            return Err(DagError::Size.into());
        }
        self.tally.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn symlink(&mut self, path: &[Vec<u8>], target: &[u8]) -> io::Result<()> {
        std::os::unix::fs::symlink(OsStr::from_bytes(target), self.at(path))?;
        self.tally.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn begin_folder(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        fs::create_dir(self.at(path))
    }

    fn folder(&mut self, _: &[Vec<u8>], _: Vec<(Vec<u8>, ())>) -> io::Result<()> {
        Ok(())
    }
}
