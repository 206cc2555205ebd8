//! The answering side.
//!
//! Spec: `protocol/spec/bulk.md`, "Serving".

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kith_object::id::{Cid, DeviceId, PackId};
use kith_protocol::bulk::get::{REQUEST_BYTES_MAX, Tree};
use kith_protocol::bulk::place::{QUESTION_BYTES_MAX, decode_question};
use kith_protocol::bulk::{Answer, GetRequest, PackAt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Counters;
use crate::net::{Raw, RawError, RawStream};
use crate::run::{Traffic, held};
use crate::store::DiskStore;

/// Streams that are answered at a time.
const SERVED_MAX: usize = 16;
/// Of these, for one device.
const SERVED_EACH_MAX: usize = 4;
/// How long a request may be on its way.
const REQUEST_STALL: Duration = Duration::from_secs(10);
/// How long the other end may take nothing.
const ANSWER_STALL: Duration = Duration::from_secs(60);
/// Bytes of trees that are kept.
const TREES_BYTES_MAX: usize = 8 << 20;
/// A pack that was read as a whole so lately is not compared again as it is sent: whoever gets it does.
const SOUND_FOR: Duration = Duration::from_secs(60);
/// Handed to the stream at a time.
const PART_BYTES: usize = 256 << 10;
/// Read of a pack at a time.
const AHEAD_BYTES: usize = 256 << 10;
/// Parts that are read ahead of the stream.
const PARTS_AHEAD: usize = 2;

/// Answers what other devices ask for, until the swarm ends.
pub(crate) async fn serve(
    mut streams: mpsc::Receiver<RawStream>,
    store: Arc<DiskStore>,
    counters: Arc<Counters>,
    traffic: Arc<Mutex<Traffic>>,
    doubted: Arc<Mutex<BTreeSet<PackId>>>,
) {
    let all = Arc::new(Semaphore::new(SERVED_MAX));
    let mut each: BTreeMap<DeviceId, Arc<Semaphore>> = BTreeMap::new();
    let server = Arc::new(Server {
        store,
        counters,
        traffic,
        doubted,
        trees: Mutex::default(),
        making: Mutex::default(),
    });
    // They end with this task.
    let mut answering = JoinSet::new();
    while let Some(stream) = streams.recv().await {
        while answering.try_join_next().is_some() {}
        each.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = each
            .entry(stream.device())
            .or_insert_with(|| Arc::new(Semaphore::new(SERVED_EACH_MAX)))
            .clone();
        let (all, server) = (all.clone(), server.clone());
        // As many wait for their turn as streams are let in.
        answering.spawn(async move {
            let _turn = turns.acquire().await;
            let _place = all.acquire().await;
            let (device, raw) = (stream.device(), stream.raw());
            if let Err(error) = server.answer(stream).await {
                debug!(peer = %device, ?raw, %error, "not answered");
            }
        });
    }
}

/// Why a stream was not answered.
#[derive(Debug, thiserror::Error)]
enum NotAnswered {
    #[error(transparent)]
    Stream(#[from] RawError),
    #[error("not a request")]
    Request,
    #[error("pack {0} is not here")]
    Lacking(PackId),
    #[error("read pack {0}")]
    Read(PackId, #[source] io::Error),
    #[error("use the store: {0}")]
    Store(String),
}

struct Server {
    store: Arc<DiskStore>,
    counters: Arc<Counters>,
    traffic: Arc<Mutex<Traffic>>,
    /// Packs that turned out to be damaged, for whoever checks them.
    doubted: Arc<Mutex<BTreeSet<PackId>>>,
    trees: Mutex<Trees>,
    /// Trees that are being made.
    making: Mutex<BTreeMap<PackId, Arc<Mutex<()>>>>,
}

/// Reads a pack in order, and more at a time than is asked for.
struct Ahead<'a> {
    store: &'a DiskStore,
    pack: PackId,
    total: u64,
    /// Where what was read begins, itself, and how much of it is used.
    at: u64,
    bytes: Vec<u8>,
    used: usize,
}

impl<'a> Ahead<'a> {
    fn new(store: &'a DiskStore, pack: PackId, total: u64) -> Self {
        Self {
            store,
            pack,
            total,
            at: 0,
            bytes: Vec::new(),
            used: 0,
        }
    }

    fn seek(&mut self, to: u64) {
        let within = to
            .checked_sub(self.at)
            .and_then(|to| usize::try_from(to).ok());
        match within.filter(|within| *within <= self.bytes.len()) {
            Some(within) => self.used = within,
            None => {
                self.at = to;
                self.bytes.clear();
                self.used = 0;
            }
        }
    }
}

impl Read for Ahead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used >= self.bytes.len() {
            self.at += self.bytes.len() as u64;
            let left = usize::try_from(self.total.saturating_sub(self.at)).unwrap_or(usize::MAX);
            let bytes = self
                .store
                .read_pack(&self.pack, self.at, left.min(AHEAD_BYTES))?;
            self.bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
            self.used = 0;
        }
        let rest = self.bytes.get(self.used..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.used += count;
        Ok(count)
    }
}

/// A tree, and when it was made.
struct Made {
    tree: Tree,
    at: Instant,
}

/// Trees of packs that were asked for lately, the last one at the end.
#[derive(Default)]
struct Trees {
    kept: VecDeque<(PackId, Arc<Made>)>,
    bytes: usize,
}

impl Trees {
    fn get(&mut self, pack: &PackId) -> Option<Arc<Made>> {
        let at = self.kept.iter().position(|(kept, _)| kept == pack)?;
        let found = self.kept.remove(at)?;
        let made = found.1.clone();
        self.kept.push_back(found);
        Some(made)
    }

    fn put(&mut self, pack: PackId, made: Arc<Made>) {
        self.forget(&pack);
        self.bytes += made.tree.len_bytes();
        self.kept.push_back((pack, made));
        while self.bytes > TREES_BYTES_MAX
            && let Some((_, gone)) = self.kept.pop_front()
        {
            self.bytes -= gone.tree.len_bytes();
        }
    }

    fn forget(&mut self, pack: &PackId) {
        if let Some(at) = self.kept.iter().position(|(kept, _)| kept == pack)
            && let Some((_, gone)) = self.kept.remove(at)
        {
            self.bytes -= gone.tree.len_bytes();
        }
    }
}

/// Gathers what is written into parts, and hands them to the stream.
struct Parts {
    part: Vec<u8>,
    to: mpsc::Sender<Vec<u8>>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES + 4096));
        let sent = self.to.blocking_send(part);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Server {
    async fn answer(self: Arc<Self>, stream: RawStream) -> Result<(), NotAnswered> {
        match stream.raw() {
            Raw::Packs => self.send_pieces(stream).await,
            Raw::Where => self.tell_places(stream).await,
        }
    }

    async fn send_pieces(self: Arc<Self>, mut stream: RawStream) -> Result<(), NotAnswered> {
        let request = stream.read_to_end(REQUEST_BYTES_MAX, REQUEST_STALL).await?;
        let request = GetRequest::decode(&request).map_err(|_| NotAnswered::Request)?;
        let (to, mut parts) = mpsc::channel(PARTS_AHEAD);
        let reading = {
            let server = self.clone();
            tokio::task::spawn_blocking(move || server.read_pieces(&request, to))
        };
        while let Some(part) = parts.recv().await {
            stream.write_all(&part, ANSWER_STALL).await?;
            held(&self.traffic).entry(stream.device()).or_default().1 += part.len() as u64;
        }
        let read = reading.await.map_err(|_| NotAnswered::Request)?;
        // However it ended, the other side is to see the end.
        stream.close(ANSWER_STALL).await?;
        read?;
        self.counters.pieces_sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read_pieces(
        &self,
        request: &GetRequest,
        to: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), NotAnswered> {
        let pack = request.pack;
        let made = self.tree(&pack)?;
        let tree = &made.tree;
        let mut parts = Parts {
            part: Vec::with_capacity(PART_BYTES + 4096),
            to,
        };
        let ahead = RefCell::new(Ahead::new(&self.store, pack, tree.pack_bytes()));
        let read = |offset: u64, buffer: &mut [u8]| {
            let mut ahead = ahead.borrow_mut();
            ahead.seek(offset);
            ahead.read_exact(buffer)
        };
        let answered = if made.at.elapsed() < SOUND_FOR {
            tree.answer_unread(request, read, &mut parts)
        } else {
            tree.answer(request, read, &mut parts)
        };
        let answered = answered.and_then(|()| parts.flush());
        answered.map_err(|error| {
            held(&self.trees).forget(&pack);
            if error.kind() == io::ErrorKind::InvalidData {
                self.is_damaged(pack);
            }
            NotAnswered::Read(pack, error)
        })
    }

    /// The tree of a pack that is here. Of one that is not, nothing is read.
    fn tree(&self, pack: &PackId) -> Result<Arc<Made>, NotAnswered> {
        let info = self
            .store
            .pack_info(pack)
            .map_err(|error| NotAnswered::Store(error.to_string()))?;
        let Some(info) = info else {
            self.counters.lacked.fetch_add(1, Ordering::Relaxed);
            return Err(NotAnswered::Lacking(*pack));
        };
        if let Some(tree) = held(&self.trees).get(pack) {
            return Ok(tree);
        }
        // Pieces of one pack are asked for together: the first makes its tree, the others wait for that.
        let turn = held(&self.making).entry(*pack).or_default().clone();
        let made = {
            let _turn = held(&turn);
            let known = held(&self.trees).get(pack);
            known.map_or_else(|| self.make_tree(pack, info.bytes), Ok)
        };
        drop(turn);
        held(&self.making).retain(|_, turn| Arc::strong_count(turn) > 1);
        made
    }

    fn make_tree(&self, pack: &PackId, bytes: u64) -> Result<Arc<Made>, NotAnswered> {
        let failed = |error| NotAnswered::Read(*pack, error);
        let at = Instant::now();
        let tree = Tree::of(pack, bytes, Ahead::new(&self.store, *pack, bytes)).map_err(failed)?;
        let Some(tree) = tree else {
            self.is_damaged(*pack);
            return Err(failed(io::ErrorKind::InvalidData.into()));
        };
        let made = Arc::new(Made { tree, at });
        held(&self.trees).put(*pack, made.clone());
        Ok(made)
    }

    fn is_damaged(&self, pack: PackId) {
        warn!(%pack, "a pack that was asked for is damaged, and is checked");
        held(&self.doubted).insert(pack);
    }

    async fn tell_places(self: Arc<Self>, mut stream: RawStream) -> Result<(), NotAnswered> {
        let question = stream
            .read_to_end(QUESTION_BYTES_MAX, REQUEST_STALL)
            .await?;
        let digests = decode_question(&question).ok_or(NotAnswered::Request)?;
        let server = self.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let store = &server.store;
            let places: Result<Vec<_>, _> = digests
                .into_iter()
                .map(|digest| store.pack_of(&Cid::from_digest(digest)))
                .collect();
            places.and_then(|places| {
                Answer::of(places, |pack| {
                    let info = store.pack_info(pack)?;
                    Ok(info.map(|info| PackAt {
                        pack: *pack,
                        bytes: u32::try_from(info.bytes).unwrap_or(u32::MAX),
                        blocks: info.blocks,
                    }))
                })
            })
        });
        let answer = answer.await.map_err(|_| NotAnswered::Request)?;
        let answer = answer.map_err(|error| NotAnswered::Store(error.to_string()))?;
        stream.write_all(&answer.encode(), ANSWER_STALL).await?;
        Ok(stream.close(ANSWER_STALL).await?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn trees_are_bounded_and_those_asked_for_last_stay() {
        let bytes = vec![7; 4 << 20];
        let pack = PackId(*blake3::hash(&bytes).as_bytes());
        let tree = Tree::of(&pack, bytes.len() as u64, &bytes[..]).unwrap();
        let tree = tree.unwrap();
        let each = tree.len_bytes();
        let at = Instant::now();
        let tree = Arc::new(Made { tree, at });
        let mut trees = Trees::default();
        let name = |n: u32| PackId(*blake3::hash(&n.to_le_bytes()).as_bytes());
        for n in 0..2000 {
            trees.put(name(n), tree.clone());
            assert!(
                trees.get(&name(0)).is_some(),
                "it is asked for all the time"
            );
            assert!(trees.bytes <= TREES_BYTES_MAX);
            assert_eq!(trees.bytes, trees.kept.len() * each);
        }
        assert!(trees.get(&name(1)).is_none());
        assert!(trees.get(&name(1999)).is_some());
        trees.forget(&name(1999));
        assert!(trees.get(&name(1999)).is_none());
    }
}
