//! Reads objects: from this disk, and what is missing from others, through a window that bounds memory whatever the object's size.

mod blocks;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kith_object::id::{Cid, DeviceId};
use kith_object::object::{ObjectLink, ObjectReader};
use kith_object::seal::{Kind, OpenError, Opener};

use crate::bulk::Bulk;
use crate::run::Asker;
use crate::store::DiskStore;
use kith_object::pack::Class;
use kith_object::store::{Keep, StoreError, Verified};

/// Blocks asked for ahead of the reader: at the usual sizes some 20 MiB under way. More measured slower.
const WINDOW_BLOCKS: usize = 160;
/// Blocks taken in before more are asked for: many, so that threads wake one another less; not so many that the wire runs dry.
const BATCH_BLOCKS: usize = 24;
/// Blocks asked for ahead at first where only a range of a file is read: who reads on is read ahead for, twice as far each time.
const FIRST_WINDOW_BLOCKS: usize = 4;
/// How long a read goes on hoping once every device within reach said it has not got a block: others may be connecting just now.
const HOPE: Duration = Duration::from_secs(3);
/// How often a waiting read looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(200);

/// What comes of a fetch.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A block, verified against its CID.
    Block {
        cid: Cid,
        block: Bytes,
        from: DeviceId,
    },
    /// It came onto this disk some other way.
    Held { cid: Cid },
    /// Nobody within reach has it now.
    Unavailable { cid: Cid },
    /// A device came that may have it.
    Sought { cid: Cid },
}

/// Why an object was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Nobody within reach has a block of it.
    #[error("no device within reach has block {cid}")]
    Unreachable {
        /// Which.
        cid: Cid,
    },
    /// A block does not open: it was not made under a key of this mesh.
    #[error("open a block")]
    Open(#[source] OpenError),
    /// This disk refused.
    #[error("use the store")]
    Store(#[source] StoreError),
    /// Whoever takes the bytes refused.
    #[error("write what was read")]
    Write(#[source] io::Error),
    /// It was cancelled.
    #[error("it was cancelled")]
    Cancelled,
}

/// An object read whole, and the kind of its leaves.
pub(crate) type Whole = (Vec<u8>, Option<Kind>);

/// Where objects are read from, for one call.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) store: Arc<DiskStore>,
    pub(crate) asker: Asker,
    pub(crate) opener: Opener,
    pub(crate) wait: bool,
    pub(crate) tally: Arc<Tally>,
    pub(crate) keeper: Arc<Keeper>,
    /// What moves whole packs, on a device that serves.
    pub(crate) bulk: Option<Bulk>,
}

/// What a call has read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) bytes: AtomicU64,
    pub(crate) files: AtomicU64,
    pub(crate) cancelled: AtomicBool,
    from: std::sync::Mutex<BTreeMap<DeviceId, u64>>,
}

impl Tally {
    /// Bytes of blocks that came from each device.
    pub(crate) fn from(&self) -> BTreeMap<DeviceId, u64> {
        self.from
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn came(&self, device: DeviceId, bytes: u64) {
        let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        *from.entry(device).or_default() += bytes;
    }
}

/// Batches of blocks fetched that may wait to be written to the store.
const KEEP_MAX: usize = 8;

/// Blocks that came together.
type Fetched = Vec<(Cid, Bytes)>;

/// Writes fetched blocks into the store beside the thread that reads the object.
pub(crate) struct Keeper {
    queue: std::sync::Mutex<Option<SyncSender<Fetched>>>,
    worker: std::sync::Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
}

impl Keeper {
    pub(crate) fn start(store: Arc<DiskStore>, asker: Asker, keep: Keep) -> Arc<Self> {
        let (queue, blocks) = sync_channel::<Fetched>(KEEP_MAX);
        let worker = std::thread::spawn(move || {
            while let Ok(first) = blocks.recv() {
                let mut stored = Vec::new();
                let more = blocks.try_iter().take(KEEP_MAX);
                for (cid, block) in std::iter::once(first).chain(more).flatten() {
                    let block = Verified::computed(cid, &block);
                    match keep {
                        Keep::Kept => store.put_verified(Class::Bulk, block)?,
                        Keep::Cached => store.put_cached(Class::Bulk, block)?,
                    };
                    stored.push(cid);
                }
                asker.stored(stored);
            }
            Ok(())
        });
        Arc::new(Self {
            queue: std::sync::Mutex::new(Some(queue)),
            worker: std::sync::Mutex::new(Some(worker)),
        })
    }

    /// Hands blocks over; waits while many are before them. One by one, each would wake the worker.
    fn keep(&self, blocks: Fetched) -> Result<(), ReadError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match queue.map(|queue| queue.send(blocks).is_ok()) {
            Some(true) => Ok(()),
            // The worker has ended, which it does before its time only if the store refused.
            _ => Err(self.finish().err().unwrap_or(ReadError::Cancelled)),
        }
    }

    /// Waits until all is written.
    pub(crate) fn finish(&self) -> Result<(), ReadError> {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let worker = self
            .worker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match worker.map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome.map_err(ReadError::Store),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

/// A fetch under way; dropping it cancels it.
struct Fetching<'a> {
    asker: &'a Asker,
    requests: Vec<u64>,
    wanted: BTreeSet<Cid>,
    to: Sender<Arrival>,
    arrivals: Receiver<Arrival>,
    /// Blocks that nobody within reach has, as far as is known.
    lacking: BTreeSet<Cid>,
    /// Until when to hope for them; begins anew whenever something comes.
    hope: Option<Instant>,
}

impl Fetching<'_> {
    /// What is hoped for in vain by now.
    fn hopeless(&self) -> Option<Cid> {
        let over = self.hope.is_some_and(|until| until <= Instant::now());
        self.lacking.first().filter(|_| over).copied()
    }

    fn came(&mut self, cid: &Cid) {
        self.lacking.remove(cid);
        self.hope = (!self.lacking.is_empty()).then(|| Instant::now() + HOPE);
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        for request in self.requests.drain(..) {
            self.asker.cancel_fetch(request);
        }
    }
}

impl Source {
    /// Reads an object in order, on the calling thread, which may block.
    ///
    /// Returns the kind of its leaves: a file's bytes or a folder's listing.
    pub(crate) fn read(
        &self,
        link: &ObjectLink,
        out: &mut dyn FnMut(Bytes) -> io::Result<()>,
    ) -> Result<Option<Kind>, ReadError> {
        let mut reader = ObjectReader::new(link.clone(), self.opener.clone());
        let mut fetching = self.fetching();
        loop {
            // What comes next is asked for before what is here is written out.
            let fed = self.ask(&mut reader, &mut fetching, WINDOW_BLOCKS)?;
            while let Some(data) = reader.next() {
                out(data).map_err(ReadError::Write)?;
            }
            if reader.done() {
                return Ok(reader.leaf_kind());
            }
            if !fed {
                self.arrive(&mut reader, &mut fetching)?;
            }
        }
    }

    /// Reads a range of a file in order, on the calling thread, and no block that is not needed for it. False, before anything was given out, if the
    /// object turns out to be a listing.
    pub(crate) fn read_file(
        &self,
        link: &ObjectLink,
        range: Range<u64>,
        out: &mut dyn FnMut(Bytes) -> io::Result<()>,
    ) -> Result<bool, ReadError> {
        let mut reader = ObjectReader::with_range(link.clone(), self.opener.clone(), range);
        let mut fetching = self.fetching();
        let mut ahead = FIRST_WINDOW_BLOCKS;
        loop {
            let fed = self.ask(&mut reader, &mut fetching, ahead)?;
            if reader.leaf_kind() == Some(Kind::Tree) {
                return Ok(false);
            }
            while let Some(data) = reader.next() {
                ahead = WINDOW_BLOCKS.min(2 * ahead);
                out(data).map_err(ReadError::Write)?;
            }
            if reader.done() {
                return Ok(true);
            }
            if !fed {
                self.arrive(&mut reader, &mut fetching)?;
            }
        }
    }

    fn fetching(&self) -> Fetching<'_> {
        let (to, arrivals) = channel();
        Fetching {
            asker: &self.asker,
            requests: Vec::new(),
            wanted: BTreeSet::new(),
            to,
            arrivals,
            lacking: BTreeSet::new(),
            hope: None,
        }
    }

    /// Feeds the reader what is here and asks others for what is not; says whether anything was fed.
    fn ask(
        &self,
        reader: &mut ObjectReader,
        fetching: &mut Fetching<'_>,
        window: usize,
    ) -> Result<bool, ReadError> {
        if self.tally.cancelled.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled);
        }
        let mut fed = false;
        let mut missing = Vec::new();
        for cid in reader.wanted(window) {
            if fetching.wanted.contains(&cid) {
                continue;
            }
            match self.store.get(&cid) {
                Ok(Some(block)) => {
                    reader
                        .feed_verified(&cid, &block)
                        .map_err(ReadError::Open)?;
                    fed = true;
                }
                // A damaged block is like a missing one: another device may have it whole.
                Ok(None) | Err(StoreError::Corrupt { .. }) => missing.push(cid),
                Err(error) => return Err(ReadError::Store(error)),
            }
        }
        if let Some(first) = missing.first().copied() {
            if !self.asker.is_online() {
                return Err(ReadError::Unreachable { cid: first });
            }
            fetching.wanted.extend(missing.iter().copied());
            fetching
                .requests
                .push(self.asker.fetch(missing, fetching.to.clone()));
        }
        Ok(fed)
    }

    /// Waits for something to arrive and takes in all that did.
    fn arrive(
        &self,
        reader: &mut ObjectReader,
        fetching: &mut Fetching<'_>,
    ) -> Result<(), ReadError> {
        let first = match fetching.arrivals.recv_timeout(LOOK) {
            Ok(arrival) => Some(arrival),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(ReadError::Cancelled),
        };
        let more = fetching.arrivals.try_iter().take(BATCH_BLOCKS);
        let batch: Vec<Arrival> = first.into_iter().chain(more).collect();
        let mut came = Vec::new();
        for arrival in batch {
            match arrival {
                Arrival::Block { cid, block, from } => {
                    if !fetching.wanted.remove(&cid) {
                        continue;
                    }
                    fetching.came(&cid);
                    self.tally.came(from, block.len() as u64);
                    came.push((cid, block));
                }
                // Read from the disk on the next round.
                Arrival::Held { cid } => {
                    fetching.wanted.remove(&cid);
                    fetching.came(&cid);
                }
                Arrival::Sought { cid } => fetching.came(&cid),
                Arrival::Unavailable { cid } => {
                    if fetching.wanted.contains(&cid) {
                        fetching.lacking.insert(cid);
                        fetching.hope.get_or_insert_with(|| Instant::now() + HOPE);
                    }
                }
            }
        }
        self.keeper.keep(came.clone())?;
        for (cid, block) in &came {
            reader.feed_verified(cid, block).map_err(ReadError::Open)?;
        }
        match fetching.hopeless() {
            Some(cid) if !self.wait => Err(ReadError::Unreachable { cid }),
            _ => Ok(()),
        }
    }

    /// Reads an object whole; `None` if it is longer than `max`.
    pub(crate) fn read_whole(
        &self,
        link: &ObjectLink,
        max: u64,
    ) -> Result<Option<Whole>, ReadError> {
        if link.size > max {
            return Ok(None);
        }
        let mut whole = Vec::new();
        let kind = self.read(link, &mut |data| {
            whole.extend_from_slice(&data);
            Ok(())
        })?;
        Ok(Some((whole, kind)))
    }
}

impl Source {
    /// What the leaves of an object are, found by reading no more than its first leaf.
    pub(crate) fn first_kind(&self, link: &ObjectLink) -> Result<Option<Kind>, ReadError> {
        let mut reader = ObjectReader::new(link.clone(), self.opener.clone());
        let mut fetching = self.fetching();
        loop {
            if let Some(kind) = reader.leaf_kind() {
                return Ok(Some(kind));
            }
            if reader.done() {
                return Ok(None);
            }
            if !self.ask(&mut reader, &mut fetching, 1)? {
                self.arrive(&mut reader, &mut fetching)?;
            }
        }
    }
}
