//! The asking side.
//!
//! Spec: `protocol/spec/bulk.md`, "Fetching".

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kith_object::id::{Cid, DeviceId, PackId};
use kith_object::store::{AdoptError, Keep, Part, StoreError};
use kith_protocol::bulk::get::{GROUP_BYTES, answer_bytes_max, read_piece};
use kith_protocol::bulk::place::{
    DIGESTS_MAX, answer_bytes_max as places_bytes_max, encode_question,
};
use kith_protocol::bulk::{
    Answer, Ask, Came, Download, Failure, GetError, GetRequest, PIECE_BYTES,
};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

use super::Bulk;
use crate::config::now;
use crate::net::{Raw, RawError};

/// How long nothing may come of a piece.
const STALL: Duration = Duration::from_secs(10);
/// How often a download looks whether it was cancelled, and whether somebody is slow.
const LOOK: Duration = Duration::from_millis(250);
/// Devices that are asked where blocks lie.
const ASKED_MAX: usize = 16;

/// A pack, its length, and who has it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) pack: PackId,
    pub(crate) bytes: u64,
    pub(crate) sources: Vec<DeviceId>,
    /// Blocks in it.
    pub(crate) blocks: u32,
    /// Of these, those that were asked about.
    pub(crate) wanted: u32,
}

/// Why packs were not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// This disk refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was cancelled; what came is kept.
    #[error("it was cancelled")]
    Cancelled,
}

/// What came of a download.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// Packs that are here now.
    pub(crate) packs: Vec<PackId>,
    /// Packs that nobody had after all.
    pub(crate) lost: Vec<PackId>,
    /// Bytes that came from each device.
    pub(crate) from: BTreeMap<DeviceId, u64>,
}

impl Bulk {
    /// Where others have those blocks, of at most [`DIGESTS_MAX`].
    pub(crate) async fn places(&self, cids: &[Cid]) -> Vec<Wanted> {
        let digests: Vec<[u8; 32]> = cids
            .iter()
            .filter_map(Cid::digest)
            .take(DIGESTS_MAX)
            .collect();
        if digests.is_empty() {
            return Vec::new();
        }
        let question: Arc<[u8]> = encode_question(&digests).into();
        let mut asking = JoinSet::new();
        for device in self.inside.connected().into_iter().take(ASKED_MAX) {
            let (bulk, question) = (self.clone(), question.clone());
            asking.spawn(async move { (device, bulk.ask_where(device, &question).await) });
        }
        let mut found: BTreeMap<PackId, Wanted> = BTreeMap::new();
        while let Some(Ok((device, answer))) = asking.join_next().await {
            let Some(answer) = answer else { continue };
            let mut counts = vec![0_u32; answer.packs.len()];
            for place in answer.places.into_iter().flatten() {
                if let Some(count) = counts.get_mut(usize::from(place)) {
                    *count += 1;
                }
            }
            for (at, count) in answer.packs.into_iter().zip(counts) {
                let bytes = u64::from(at.bytes);
                let known = found.entry(at.pack).or_insert_with(|| Wanted {
                    pack: at.pack,
                    bytes,
                    sources: Vec::new(),
                    blocks: at.blocks,
                    wanted: 0,
                });
                // Whoever has a block in two packs names one of them.
                known.wanted = known.wanted.max(count);
                if known.bytes == bytes {
                    known.sources.push(device);
                }
            }
        }
        found.into_values().collect()
    }

    async fn ask_where(&self, device: DeviceId, question: &[u8]) -> Option<Answer> {
        let count = question.len() / 32;
        let mut stream = self.inside.open_raw(device, Raw::Where).await.ok()?;
        stream.write_all(question, STALL).await.ok()?;
        stream.close(STALL).await.ok()?;
        let answer = stream
            .read_to_end(places_bytes_max(count), STALL)
            .await
            .ok()?;
        Answer::decode(&answer, count)
    }

    /// Fetches packs, from all who have them; each that came is a pack of this store when this returns.
    pub(crate) async fn fetch(
        &self,
        wanted: Vec<Wanted>,
        keep: Keep,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, FetchError> {
        let mut download = Download::new();
        for pack in wanted {
            download.add(pack.pack, pack.bytes, pack.sources);
        }
        let mut run = Run {
            bulk: self,
            keep,
            download,
            parts: BTreeMap::new(),
            asking: JoinSet::new(),
            handles: BTreeMap::new(),
            whole: VecDeque::new(),
            adopting: JoinSet::new(),
            fetched: Fetched::default(),
        };
        let done = run.drive(cancelled).await;
        let wasted = run.download.wasted_bytes();
        self.counters
            .bytes_wasted
            .fetch_add(wasted, Ordering::Relaxed);
        done.map(|()| run.fetched)
    }

    /// A range of a pack as long as a chunk group, from a device that says it holds the pack: whether it can be had.
    pub(crate) async fn range(
        &self,
        source: DeviceId,
        pack: PackId,
        total: u64,
        offset: u64,
    ) -> Result<(), Failure> {
        let ask = Ask {
            id: 0,
            source,
            pack,
            total,
            offset,
            len: GROUP_BYTES.min(total.saturating_sub(offset)),
        };
        match self.ask(ask).await {
            Ok(_) => Ok(()),
            // Whoever told of the pack may have erred as well.
            Err(Trouble::Answer(GetError::Length)) => Err(Failure::Broken),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// One piece of a pack.
    async fn piece(&self, ask: Ask) -> Result<Bytes, Failure> {
        Ok(self.ask(ask).await?)
    }

    async fn ask(&self, ask: Ask) -> Result<Bytes, Trouble> {
        let broken = |error: RawError| match error {
            RawError::TooLong => Trouble::Answer(GetError::Wrong),
            RawError::Broken | RawError::Stalled => Trouble::Way,
        };
        let opened = self.inside.open_raw(ask.source, Raw::Packs).await;
        let mut stream = opened.map_err(|_| Trouble::Way)?;
        let request = GetRequest::piece(ask.pack, ask.offset, ask.len).encode();
        stream.write_all(&request, STALL).await.map_err(broken)?;
        stream.close(STALL).await.map_err(broken)?;
        let length = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
        let most = length(answer_bytes_max(ask.total, ask.len)) + 1;
        let mut answer = self.buffers.lend(most);
        let len = stream.fill(&mut answer, STALL).await.map_err(broken)?;
        let answer = answer.get(..len).unwrap_or_default();
        let came = u64::try_from(len).unwrap_or(0);
        self.counters.bytes_came.fetch_add(came, Ordering::Relaxed);
        crate::run::held(&self.traffic)
            .entry(ask.source)
            .or_default()
            .0 += came;
        let mut piece = self.buffers.lend(length(ask.len));
        let read = read_piece(&ask.pack, ask.total, ask.offset, answer, &mut piece);
        read.map_err(Trouble::Answer)?;
        Ok(piece.freeze())
    }
}

/// Why a piece did not come.
enum Trouble {
    Way,
    Answer(GetError),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Way => Self::Broken,
            // It has not got it, or it is damaged there, or the one who told of its length erred.
            Trouble::Answer(GetError::Short | GetError::Length) => Self::Lacks,
            Trouble::Answer(GetError::Wrong | GetError::Request) => Self::Lied,
        }
    }
}

/// A download that goes on.
struct Run<'a> {
    bulk: &'a Bulk,
    keep: Keep,
    download: Download,
    parts: BTreeMap<PackId, Part>,
    asking: JoinSet<(Ask, Result<Bytes, Failure>)>,
    handles: BTreeMap<u64, AbortHandle>,
    /// Parts that are all there.
    whole: VecDeque<Part>,
    /// The one of them that is being read and checked.
    adopting: JoinSet<(PackId, Result<Vec<Cid>, AdoptError>)>,
    fetched: Fetched,
}

impl Run<'_> {
    async fn drive(&mut self, cancelled: &AtomicBool) -> Result<(), FetchError> {
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(FetchError::Cancelled);
            }
            while let Some((pack, total)) = self.download.to_open() {
                self.open(pack, total).await?;
            }
            for ask in self.download.asks(now()) {
                let bulk = self.bulk.clone();
                let handle = self
                    .asking
                    .spawn(async move { (ask, bulk.piece(ask).await) });
                self.handles.insert(ask.id, handle);
            }
            let lost = self.download.lost();
            for pack in &lost {
                // What came of it stays, for another time.
                self.parts.remove(pack);
            }
            self.fetched.lost.extend(lost);
            self.adopt_next();
            if self.download.is_over() && self.adopting.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some(Ok((pack, adopted))) = self.adopting.join_next() => {
                    self.adopted(pack, adopted)?;
                }
                Some(done) = self.asking.join_next() => {
                    // Those that were cancelled are known already.
                    if let Ok((ask, result)) = done {
                        self.handles.remove(&ask.id);
                        self.answered(ask, result).await?;
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn open(&mut self, pack: PackId, total: u64) -> Result<(), FetchError> {
        let (store, keep) = (self.bulk.store.clone(), self.keep);
        let part = blocking(move || store.part(pack, total, keep)).await?;
        match part {
            Ok(Some(part)) => {
                let have = part.len_bytes();
                self.parts.insert(pack, part);
                if self.download.opened(pack, have) {
                    self.whole.extend(self.parts.remove(&pack));
                }
            }
            // Here already, or somebody else fetches it.
            Ok(None) => self.stop(pack),
            Err(StoreError::Pack { .. }) => {
                self.stop(pack);
                self.fetched.lost.push(pack);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn stop(&mut self, pack: PackId) {
        let ids = self.download.drop_pack(pack);
        self.cancel(ids);
    }

    fn cancel(&mut self, ids: Vec<u64>) {
        for id in ids {
            if let Some(handle) = self.handles.remove(&id) {
                handle.abort();
            }
        }
    }

    async fn answered(
        &mut self,
        ask: Ask,
        result: Result<Bytes, Failure>,
    ) -> Result<(), FetchError> {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(failure) => {
                debug!(peer = %ask.source, pack = %ask.pack, ?failure, "piece did not come");
                if failure == Failure::Lied {
                    self.bulk.inside.disconnect(ask.source);
                }
                let ids = self.download.failed(ask.id, failure);
                self.cancel(ids);
                return Ok(());
            }
        };
        *self.fetched.from.entry(ask.source).or_default() += bytes.len() as u64;
        let Came {
            write,
            cancel,
            whole,
        } = self.download.came(now(), ask.id, bytes);
        self.cancel(cancel);
        if !write.is_empty()
            && let Some(mut part) = self.parts.remove(&ask.pack)
        {
            let store = self.bulk.store.clone();
            let part = blocking(move || {
                for bytes in write {
                    store.append_proved(&mut part, &bytes)?;
                }
                Ok::<_, StoreError>(part)
            })
            .await??;
            self.parts.insert(ask.pack, part);
        }
        if whole {
            self.whole.extend(self.parts.remove(&ask.pack));
        }
        Ok(())
    }

    fn adopt_next(&mut self) {
        if self.adopting.is_empty()
            && let Some(part) = self.whole.pop_front()
        {
            let store = self.bulk.store.clone();
            self.adopting.spawn_blocking(move || {
                let pack = part.pack();
                let adopted = store.adopt(part).map(|_| {
                    let blocks = store.pack_blocks(&pack).unwrap_or_default();
                    blocks.into_iter().map(|block| block.cid).collect()
                });
                (pack, adopted)
            });
        }
    }

    fn adopted(
        &mut self,
        pack: PackId,
        adopted: Result<Vec<Cid>, AdoptError>,
    ) -> Result<(), FetchError> {
        match adopted {
            Ok(cids) => {
                // Whoever waits for one of them elsewhere need not any more.
                self.bulk.asker.stored(cids);
                let taken = &self.bulk.counters.packs_taken;
                taken.fetch_add(1, Ordering::Relaxed);
                self.fetched.packs.push(pack);
            }
            Err(AdoptError::Store(error)) => return Err(error.into()),
            Err(error) => {
                warn!(%pack, %error, "a pack came, and is not taken");
                self.fetched.lost.push(pack);
            }
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| FetchError::Cancelled)
}

// What is asked for fits what is read for it.
const _: () = assert!(PIECE_BYTES <= 4 << 20);
