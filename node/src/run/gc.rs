//! Garbage collection: what a run does, and when the daemon runs one.
//!
//! The jobs are `kith_core::collect`, the decisions those of the device; here they are put in order.
//!
//! Spec: `protocol/spec/garbage.md`, "Retiring".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kith_core::ages::Ages;
use kith_core::collect::{self, Candidate, Survey, Why};
use kith_core::device::{Command, Device};
use kith_core::retirement::{Retirement, Ripeness};
use kith_crdt::catalogue::{CatalogueRecord, Retired, Seen};
use kith_crdt::chain::{DocumentKind, Entry};
use kith_crdt::names::Kept;
use kith_object::id::{Cid, DeviceId, EntryId, PackId};
use kith_object::object::{Leaves, Reach, Reached};
use kith_object::pack::Class;
use kith_object::seal::Opener;
use kith_object::store::{Keep, StoreError, Verified};
use kith_object::time::{Span, Time};
use kith_protocol::api::{self, Event, Failure, FailureKind};

use super::calls::failure::store_failure;
use super::calls::{CancelOnDrop, PROGRESS_EVERY, told};
use super::{Node, held};
use crate::config::{fresh_rng, now};
use crate::local::Teller;
use crate::outside::published::{self, Published};
use crate::source::{ReadError, Source};
use crate::verify;

/// The side file with the days of this device.
pub(crate) const AGES_FILE: &str = "ages";
/// Blocks that a walk lacks that others are asked for before it is begun anew. If even one of the first few comes, of many, the device is one that keeps
/// only part of what there is, and does not fetch the rest.
const ASKED_MAX: usize = 1024;
/// More missing blocks than this mean such a device, unless none of them can be had.
const PART_MAX: u64 = 256;
/// A block that no other device had counts as lost once it was so in two runs that far apart: one of them may have been unable to look.
const LOST_AFTER: Span = Span::from_secs(4 * 3600);
/// Most blocks remembered that no other device had.
const LOST_MAX: usize = 1 << 16;
/// How often a walk is begun anew because blocks that it lacked came: each may name more.
const WALKS_MAX: usize = 64;
/// Blocks fetched at once.
const FETCH_BATCH: usize = 32;
/// Packs that wait for other devices take so much of the disk at most beside what they hold, or a twentieth of the store: beyond, garbage stays where it is.
const WAITING_BYTES: u64 = 256 << 20;
const WAITING_PART: u64 = 20;
/// Ticks of a second after the start of the daemon until its first run, and between two.
const FIRST_TICKS: u64 = 600;
const EVERY_TICKS: u64 = 6 * 3600;
/// Between two looks for small packs to be merged.
const MERGE_TICKS: u64 = 600;
/// A run of the daemon's own works so long at a time, and rests as long: nobody waits for it.
const WORK: Duration = Duration::from_millis(20);

/// What is kept from one run to the next.
pub(super) struct Collector {
    /// Held during a run.
    memory: tokio::sync::Mutex<Memory>,
    /// A run of the daemon's own is under way.
    is_running: AtomicBool,
    /// What the last run left waiting: packs and bytes.
    waiting: Mutex<(u64, u64)>,
}

/// What a run may know from those before it.
struct Memory {
    leaves: Leaves,
    /// Blocks that no other device had, and since when.
    absent: BTreeMap<Cid, Time>,
    /// The days of this device.
    ages: Arc<Ages>,
}

impl Default for Collector {
    fn default() -> Self {
        let memory = Memory {
            leaves: Leaves::new(fresh_rng().bytes()),
            absent: BTreeMap::new(),
            ages: Arc::default(),
        };
        Self {
            memory: tokio::sync::Mutex::new(memory),
            is_running: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }
}

/// How a run is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Say what would be done.
    Look,
    /// Do all of it.
    Full,
    /// Merge small packs; walk through nothing.
    Merge,
}

/// How far a run is, and whether to go on.
#[derive(Default)]
struct Pace {
    cancelled: AtomicBool,
    blocks: AtomicU64,
    /// When to rest next, where nobody waits for the run.
    rest_at: Option<Mutex<Instant>>,
}

impl Pace {
    /// For a run that nobody waits for.
    fn gentle() -> Self {
        Self {
            rest_at: Some(Mutex::new(Instant::now() + WORK)),
            ..Self::default()
        }
    }

    /// Whether to stop; rests when it is time to. On a blocking thread.
    fn is_over(&self) -> bool {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        if let Some(rest_at) = &self.rest_at {
            let mut rest_at = held(rest_at);
            if Instant::now() >= *rest_at {
                std::thread::sleep(WORK);
                *rest_at = Instant::now() + WORK;
            }
        }
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("use the store")]
    Store(#[from] StoreError),
    #[error("read what is kept")]
    Read(#[from] ReadError),
    #[error("read what is pinned: as long as that is not known, nothing can be told to be garbage")]
    Pins(#[from] crate::pins::PinsError),
    #[error("it was cancelled")]
    Cancelled,
    #[error("the device is ending")]
    Ending,
    #[error("write to the catalogue")]
    Tell(#[source] super::driver::CommandFailure),
}

/// What a run did.
#[derive(Debug, Default)]
pub(super) struct Report {
    survey: Survey,
    /// Objects of which something is neither here nor within reach.
    missing: u64,
    retired: u64,
    merged: u64,
    copied_bytes: u64,
    dropped: u64,
    freed_bytes: u64,
    seen: u64,
    waiting: Vec<api::Waiting>,
    trouble: Vec<String>,
}

/// What the device says at the beginning of a run.
struct Snapshot {
    kept: Vec<Kept>,
    opener: Opener,
    /// Keyed, and allowed to write.
    may_write: bool,
    /// Alone in the mesh.
    alone: bool,
    /// Packs that are for another device to collect.
    others: BTreeSet<PackId>,
    /// Entries of `names` that nothing here built upon.
    heads: Vec<EntryId>,
}

impl Snapshot {
    fn of(device: &Device, mode: Mode, ages: &Ages, packs: &[PackId]) -> Self {
        let me = device.id();
        let mut members = device.access().members.keys();
        let mut heads = device.replica().heads(DocumentKind::Names);
        heads.sort_unstable();
        Self {
            kept: match mode {
                Mode::Merge => Vec::new(),
                Mode::Look | Mode::Full => kept(device, ages, &|_| true),
            },
            opener: Opener::new(device.replica().dedup_secrets()),
            may_write: device.access().is_member(&me) && device.is_settled(),
            alone: members.all(|id| *id == me),
            others: {
                let others = packs
                    .iter()
                    .filter(|pack| device.is_others_to_collect(pack));
                others.copied().collect()
            },
            heads,
        }
    }
}

/// What is kept of the versions that these entries brought.
fn kept(device: &Device, ages: &Ages, is_wanted: &dyn Fn(&EntryId) -> bool) -> Vec<Kept> {
    let (retention, now) = (device.retention(), now());
    let heads = ages.heads_before(retention.all, now);
    let young = heads.and_then(|heads| device.replica().beyond(DocumentKind::Names, heads));
    let is_old = |entry: &EntryId| young.as_ref().is_some_and(|young| !young.contains(entry));
    let now = ages.believed(now);
    device.tree().kept_of(&retention, now, &is_old, is_wanted)
}

/// Whether every other device of the mesh is connected.
fn all_are_here(device: &Device) -> bool {
    let mut members = device.access().members.keys();
    members.all(|id| *id == device.id() || device.peers().contains(id))
}

/// When each member gave its last sign of life.
fn heard(device: &Device, now: Time) -> BTreeMap<DeviceId, Time> {
    let written = device.replica().last_written().into_iter();
    let mut heard: BTreeMap<DeviceId, Time> =
        written.map(|(device, hlc)| (device, hlc.time())).collect();
    heard.extend(device.peers().iter().map(|peer| (*peer, now)));
    heard
}

/// A pack on its way out that is on this disk.
struct Dying {
    /// This device has retired it itself; what others have, it drops without copying anything.
    is_own: bool,
    retirements: Vec<Retirement>,
    /// None once it may go.
    waits: Option<(Vec<String>, Option<Time>)>,
}

impl Node {
    /// Starts a run of the daemon's own if one is due; it goes on beside everything else.
    pub(super) fn collect_when_due(self: Arc<Self>, ticks: u64) {
        let since_first = ticks.checked_sub(FIRST_TICKS);
        let mode = match since_first {
            Some(since) if since.is_multiple_of(EVERY_TICKS) => Mode::Full,
            _ if ticks > 0 && ticks.is_multiple_of(MERGE_TICKS) => Mode::Merge,
            _ => return,
        };
        if self.gc.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        tokio::spawn(async move {
            match self.clone().collect(mode, Arc::new(Pace::gentle())).await {
                Ok(report) => {
                    let (dropped, freed_bytes) = (report.dropped, report.freed_bytes);
                    if dropped > 0 {
                        tracing::info!(dropped, freed_bytes, "garbage collected");
                    }
                    for trouble in report.trouble {
                        tracing::warn!(trouble, "garbage not collected");
                    }
                }
                Err(error) => tracing::warn!(%error, "garbage not collected"),
            }
            self.gc.is_running.store(false, Ordering::Release);
        });
    }

    /// Packs and their bytes that are on their way out and still here, as the last run left them.
    pub(super) fn dying(&self) -> (u64, u64) {
        *held(&self.gc.waiting)
    }

    /// `kith gc`.
    pub(super) async fn gc(self: Arc<Self>, dry_run: bool, tell: &Teller) -> Result<(), Failure> {
        let mode = if dry_run { Mode::Look } else { Mode::Full };
        let pace = Arc::new(Pace::default());
        let _cancel = CancelOnDrop({
            let pace = pace.clone();
            move || pace.cancelled.store(true, Ordering::Relaxed)
        });
        // By itself, so that a client that goes away ends it where it can end.
        let mut run = tokio::spawn(self.collect(mode, pace.clone()));
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let outcome = loop {
            tokio::select! {
                outcome = &mut run => break outcome,
                _ = ticks.tick() => {
                    let progress = Event::Progress {
                        bytes: 0,
                        total: None,
                        files: pace.blocks.load(Ordering::Relaxed),
                    };
                    let _ = tell.try_send((progress, Bytes::new()));
                }
            }
        };
        let outcome = outcome.unwrap_or(Err(RunError::Ending));
        let report = outcome.map_err(|error| {
            let what = "collect garbage".to_owned();
            match &error {
                RunError::Store(error) => store_failure(what, error),
                error => Failure::new(FailureKind::Failed, what).because(error),
            }
        })?;
        for candidate in report.survey.candidates.iter().filter(|_| dry_run) {
            told(tell, garbage_event(candidate)).await?;
        }
        for text in &report.trouble {
            told(tell, Event::Warning { text: text.clone() }).await?;
        }
        told(
            tell,
            Event::Collected {
                dry_run,
                packs: report.survey.packs,
                bytes: report.survey.bytes,
                garbage_bytes: report.survey.garbage_bytes,
                missing: report.missing,
                retired: report.retired,
                merged: report.merged,
                copied_bytes: report.copied_bytes,
                dropped: report.dropped,
                freed_bytes: report.freed_bytes,
                seen: report.seen,
                in_use: report.survey.relied_on,
                waiting: report.waiting,
            },
        )
        .await
    }

    /// One run.
    async fn collect(self: Arc<Self>, mode: Mode, pace: Arc<Pace>) -> Result<Report, RunError> {
        let mut memory = self.gc.memory.lock().await;
        let mut report = Report::default();
        // Before anything is asked: what ends from here on still counts.
        let run = self.store.begin_run();
        memory.ages = Arc::new(self.count_day(mode).await?);
        let ages = memory.ages.clone();
        let packs = self.job(|store| store.packs()).await?;
        let packs: Vec<PackId> = packs.into_iter().map(|(pack, _)| pack).collect();
        let mut snapshot = self
            .asker
            .look(move |device| Snapshot::of(device, mode, &ages, &packs))
            .await
            .ok_or(RunError::Ending)?;
        if !snapshot.may_write && mode != Mode::Look {
            return Ok(report);
        }
        if mode != Mode::Merge {
            // What lies in packs that are still open is to be looked at too.
            self.job(|store| store.close_packs()).await?;
        }
        self.tend_packs().await;
        self.mark_again().await?;
        let reached = if mode == Mode::Merge {
            None
        } else {
            let roots = self.roots(std::mem::take(&mut snapshot.kept))?;
            let reached = self.walk(&snapshot, roots, &mut memory, &pace).await?;
            report.missing = reached.missing_count;
            if let Some(missing @ 1..) = reached.public_missing {
                let what = format!(
                    "{missing} nodes of what is public cannot be read: nothing public goes"
                );
                report.trouble.push(what);
            }
            Some(Arc::new(reached))
        };
        let complete = reached.clone().filter(|reached| reached.is_complete());
        report.survey = {
            let (reached, pace) = (complete.clone(), pace.clone());
            let others = std::mem::take(&mut snapshot.others);
            self.job(move |store| {
                collect::survey(store, reached.as_deref(), &others, &|| pace.is_over())
            })
            .await?
        };
        if mode == Mode::Look {
            report.waiting = self
                .dying_now()
                .await?
                .into_iter()
                .filter_map(told_of)
                .collect();
            return Ok(report);
        }
        let walks: Vec<Arc<Reached>> = complete.into_iter().collect();
        let own = self.dying_now().await?.into_iter();
        let own = own.filter(|(_, _, dying)| dying.is_own);
        let own = own.map(|(_, bytes, _)| bytes);
        *held(&self.gc.waiting) = own.fold((0, 0), |(packs, sum), bytes| (packs + 1, sum + bytes));
        self.retire_all(&mut report, &snapshot, &walks, &pace)
            .await?;
        if mode == Mode::Full {
            self.see_all(&mut report, &snapshot, &walks, &mut memory, &pace)
                .await?;
        }
        let walks = self.walks_now(&snapshot, walks, &mut memory, &pace).await?;
        self.drop_all(&mut report, &walks, &pace).await?;
        if let Some(walk) = walks.first() {
            self.forget_strays(walk.clone()).await?;
        }
        self.drop_aside(walks).await?;
        // What came of packs that nobody fetches any more.
        self.job(|store| store.discard_parts().map(drop)).await?;
        drop(run);
        Ok(report)
    }

    /// What is kept: versions, and what the owner has pinned. Pins that cannot be read keep everything.
    fn roots(&self, mut kept: Vec<Kept>) -> Result<Vec<Kept>, RunError> {
        kept.append(&mut self.pins()?);
        Ok(kept)
    }

    /// What is public. Without a list nothing is known of it; one that cannot be read keeps everything that is.
    async fn published(&self) -> Result<Option<Published>, RunError> {
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let read = tokio::task::spawn_blocking(move || published::read(&home, &keys));
        let read = read.await.map_err(|_| RunError::Ending)?;
        Ok(read.unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing public is collected");
            None
        }))
    }

    /// Once nothing lies in public packs that was taken back, all that does is served again without looking. `walk` is the run's own: what it did not reach is
    /// a stray, or was put since and waits for the next run; only where it reached everything the list as it is now is walked through.
    async fn forget_strays(&self, walk: Arc<Reached>) -> Result<(), RunError> {
        let turn = self.publishing.clone().lock_owned().await;
        let Some(mut published) = self.published().await? else {
            return Ok(());
        };
        if !published.has_strays {
            return Ok(());
        }
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let outside = held(&self.outside).clone();
        self.job(move |store| {
            let _turn = turn;
            if collect::has_strays(store, &walk)? {
                return Ok(());
            }
            let reached = published::reached(store, &published)?;
            if reached.public_missing != Some(0) || collect::has_strays(store, &reached)? {
                return Ok(());
            }
            published.has_strays = false;
            match published::write(&home, &keys, &published) {
                Ok(()) => {
                    if let Some(outside) = outside {
                        outside.serve_only(None);
                    }
                }
                Err(error) => tracing::debug!(%error, "the list of what is public stays as it was"),
            }
            Ok(())
        })
        .await
    }

    async fn job<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::store::DiskStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RunError> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        Ok(done.map_err(|_| RunError::Ending)??)
    }

    /// The days that were counted, today's too if it has just begun. A file that cannot be read is as good as none: then nothing is old.
    async fn count_day(&self, mode: Mode) -> Result<Ages, RunError> {
        let heads = |device: &Device| device.replica().heads(DocumentKind::Names);
        let heads = self.asker.look(heads).await.ok_or(RunError::Ending)?;
        let (home, keys) = (self.home.clone(), self.keys().clone());
        let count = move || {
            let kept = home.read_sealed(AGES_FILE, &keys);
            let mut ages = kept
                .and_then(|bytes| Ages::decode(&bytes))
                .unwrap_or_default();
            if mode == Mode::Full
                && ages.note(now(), heads)
                && let Err(error) =
                    home.write_sealed(AGES_FILE, &keys, &mut fresh_rng(), &ages.encode())
            {
                tracing::warn!(%error, "the day is not counted, and what is replaced is kept longer");
            }
            ages
        };
        let counted = tokio::task::spawn_blocking(count).await;
        counted.map_err(|_| RunError::Ending)
    }

    /// Marks what this device and others have retired and what it waits for, which a restart has forgotten, and nothing else.
    async fn mark_again(&self) -> Result<(), RunError> {
        let retired = |device: &Device| {
            let all = device.upkeep().retirements().standing(device.access());
            let me = device.id();
            let dying = all.filter(|one| one.author == me || device.is_superseded(&one.pack));
            dying.map(|one| one.pack).collect::<BTreeSet<PackId>>()
        };
        let retired = self.asker.look(retired).await.ok_or(RunError::Ending)?;
        self.job(move |store| {
            for pack in store.retired_packs() {
                if !retired.contains(&pack) {
                    store.unmark_retired(&pack);
                }
            }
            for pack in retired.iter().filter(|pack| !store.is_retired(pack)) {
                store.mark_retired(pack);
            }
            Ok(())
        })
        .await
    }

    /// Goes through what is kept. What is missing is asked of others; what nobody has, though everybody was asked, and more than once, holds up nothing.
    async fn walk(
        &self,
        snapshot: &Snapshot,
        roots: Vec<Kept>,
        memory: &mut Memory,
        pace: &Arc<Pace>,
    ) -> Result<Reached, RunError> {
        let began = now();
        let mut lost: BTreeSet<Cid> = BTreeSet::new();
        if !snapshot.alone {
            let old = memory.absent.iter();
            let old = old.filter(|(_, since)| **since + LOST_AFTER <= began);
            lost.extend(old.map(|(cid, _)| *cid));
        }
        let mut walks = 0;
        loop {
            walks += 1;
            let leaves = memory.leaves.clone();
            let mut reach = Reach::new(snapshot.opener.clone(), leaves, lost.clone());
            for kept in &roots {
                reach.enter(kept.link.clone(), kept.is_listing);
            }
            if let Some(published) = self.published().await? {
                reach.enter_public(published.cids());
            }
            let walked = {
                let pace = pace.clone();
                self.job(move |store| {
                    let whole = collect::walk(store, &mut reach, &|| pace.is_over())?;
                    Ok(whole.then(|| reach.finish()))
                })
                .await?
            };
            let (reached, leaves) = walked.ok_or(RunError::Cancelled)?;
            memory.leaves = leaves;
            // Deeper than any honest object is as good as incomplete.
            if reached.is_complete() || walks == WALKS_MAX {
                return Ok(reached);
            }
            if snapshot.alone {
                // Nobody else can have it.
                lost.extend(&reached.missing);
                continue;
            }
            let asked: Vec<Cid> = reached.missing.iter().take(ASKED_MAX).copied().collect();
            let before = self.asker.look(all_are_here).await;
            if reached.missing_count > PART_MAX {
                // A few first: where one of these comes, most of the others would.
                let few: Vec<Cid> = asked.iter().take(FETCH_BATCH).copied().collect();
                let absent = self
                    .fetch(few.clone(), snapshot, pace, Keep::Cached)
                    .await?;
                if absent.len() < few.len() {
                    return Ok(reached);
                }
            }
            let absent = self
                .fetch(asked.clone(), snapshot, pace, Keep::Kept)
                .await?;
            let after = self.asker.look(all_are_here).await;
            for cid in asked.iter().filter(|cid| !absent.contains(cid)) {
                memory.absent.remove(cid);
            }
            if before == Some(true) && after == Some(true) {
                for cid in &absent {
                    if memory.absent.len() < LOST_MAX {
                        memory.absent.entry(*cid).or_insert(began);
                    }
                }
            }
            if absent.len() == asked.len() {
                return Ok(reached);
            }
        }
    }

    /// The walks that drops go by: the run's own, and one through the versions that came to count since its beginning, whoever wrote them. None if either is
    /// incomplete.
    async fn walks_now(
        &self,
        snapshot: &Snapshot,
        mut walks: Vec<Arc<Reached>>,
        memory: &mut Memory,
        pace: &Arc<Pace>,
    ) -> Result<Vec<Arc<Reached>>, RunError> {
        if walks.is_empty() {
            return Ok(walks);
        }
        let Some(kept) = self.kept_beyond(snapshot.heads.clone(), memory).await? else {
            return Ok(Vec::new());
        };
        if !kept.is_empty() {
            let roots = self.roots(kept)?;
            let late = self.walk(snapshot, roots, memory, pace).await?;
            if !late.is_complete() {
                return Ok(Vec::new());
            }
            walks.push(Arc::new(late));
        }
        Ok(walks)
    }

    /// What is kept of versions beyond these entries; `None` if one of them is not here.
    async fn kept_beyond(
        &self,
        basis: Vec<EntryId>,
        memory: &Memory,
    ) -> Result<Option<Vec<Kept>>, RunError> {
        let ages = memory.ages.clone();
        let look = move |device: &Device| {
            let beyond = device.replica().beyond(DocumentKind::Names, &basis)?;
            Some(kept(device, &ages, &|entry| beyond.contains(entry)))
        };
        self.asker.look(look).await.ok_or(RunError::Ending)
    }

    /// Asks others for blocks, which then lie here, to stay if so wanted; answers those that nobody within reach has.
    async fn fetch(
        &self,
        cids: Vec<Cid>,
        snapshot: &Snapshot,
        pace: &Arc<Pace>,
        keep: Keep,
    ) -> Result<BTreeSet<Cid>, RunError> {
        let source = self.source_with(snapshot.opener.clone(), false, keep);
        let pace = pace.clone();
        let fetched = tokio::task::spawn_blocking(move || fetch_all(&source, &cids, &pace, keep));
        let fetched = fetched.await;
        let absent = fetched.map_err(|_| RunError::Ending)??;
        self.job(|store| store.flush()).await?;
        Ok(absent)
    }

    async fn retire_all(
        &self,
        report: &mut Report,
        snapshot: &Snapshot,
        walks: &[Arc<Reached>],
        pace: &Arc<Pace>,
    ) -> Result<(), RunError> {
        let waiting_max = WAITING_BYTES.max(report.survey.bytes / WAITING_PART);
        for batch in collect::batches(&report.survey.candidates) {
            if pace.cancelled.load(Ordering::Relaxed) {
                return Err(RunError::Cancelled);
            }
            let merges = batch.iter().all(|candidate| candidate.why == Why::Small);
            let at_once = merges || snapshot.alone;
            if !at_once && self.dying().1 >= waiting_max {
                let why = "enough packs are on their way out: more follow once other devices have said that they miss nothing of these";
                report.trouble.push(why.to_owned());
                continue;
            }
            let outcome = {
                let (reached, pace) = (walks.first().cloned(), pace.clone());
                self.job(move |store| {
                    pace.is_over();
                    collect::retire(store, &batch, reached.as_deref(), at_once)
                })
                .await?
            };
            report.copied_bytes += outcome.copied_bytes;
            if let Some(trouble) = outcome.trouble {
                report.trouble.push(verify::told(&trouble));
            }
            // The catalogue is to know of the copies first.
            self.tend_packs().await;
            let count = outcome.retired.len() as u64;
            if count == 0 {
                continue;
            }
            let mut retired = outcome.retired.clone();
            for retired in &mut retired {
                // What was known when the walk began.
                retired.basis.clone_from(&snapshot.heads);
            }
            let told = self.asker.command(Command::Retire(retired));
            if let Err(error) = told.await {
                collect::take_back(&*self.store, &outcome.retired);
                return Err(RunError::Tell(error));
            }
            if merges {
                report.merged += count;
            } else {
                report.retired += count;
            }
            // Room is made as soon as it can be, so that the next batch has some. Where others write too, only what leaves nothing out goes before the walk
            // through what they wrote meanwhile.
            if at_once {
                let walks = if snapshot.alone { walks } else { &[] };
                self.drop_all(report, walks, pace).await?;
            } else {
                held(&self.gc.waiting).1 += outcome.bytes;
            }
        }
        Ok(())
    }

    /// Packs that were retired and that are on this disk.
    async fn dying_now(&self) -> Result<Vec<(PackId, u64, Dying)>, RunError> {
        let packs: BTreeMap<PackId, u64> = self
            .job(|store| store.packs())
            .await?
            .into_iter()
            .map(|(pack, info)| (pack, info.bytes))
            .collect();
        let look = move |device: &Device| {
            let now = now();
            let (access, retirements) = (device.access(), device.upkeep().retirements());
            let heard = heard(device, now);
            let mut dying: BTreeMap<PackId, Dying> = BTreeMap::new();
            for retirement in retirements.standing(access) {
                let is_own = retirement.author == device.id();
                let is_dying = is_own || device.is_superseded(&retirement.pack);
                if !is_dying || !packs.contains_key(&retirement.pack) {
                    continue;
                }
                let entry = dying.entry(retirement.pack).or_insert_with(|| Dying {
                    is_own: false,
                    retirements: Vec::new(),
                    waits: Some((Vec::new(), None)),
                });
                entry.is_own |= is_own;
                match retirements.ripeness(retirement, access, &heard, now) {
                    // Either of several is enough.
                    Ripeness::Ripe => {
                        entry.retirements.push(retirement.clone());
                        entry.waits = None;
                    }
                    Ripeness::Waits { on, until } => {
                        let name = |id: &DeviceId| access.members.get(id).map(|m| m.name.clone());
                        if entry.waits.is_some() {
                            entry.waits = Some((on.iter().filter_map(name).collect(), until));
                        }
                    }
                }
            }
            let list = dying.into_iter();
            list.map(|(pack, dying)| {
                let bytes = packs.get(&pack).copied().unwrap_or_default();
                (pack, bytes, dying)
            })
            .collect()
        };
        self.asker.look(look).await.ok_or(RunError::Ending)
    }

    /// Drops what is ripe.
    async fn drop_all(
        &self,
        report: &mut Report,
        walks: &[Arc<Reached>],
        pace: &Arc<Pace>,
    ) -> Result<(), RunError> {
        let dying = self.dying_now().await?;
        report.waiting.clear();
        let (mut packs, mut bytes_waiting) = (0, 0);
        for (pack, bytes, dying) in dying {
            let is_own = dying.is_own;
            if pace.cancelled.load(Ordering::Relaxed) {
                return Err(RunError::Cancelled);
            }
            // What others retired is theirs to wait for.
            let mut waits = || {
                if is_own {
                    (packs, bytes_waiting) = (packs + 1, bytes_waiting + bytes);
                }
            };
            if dying.waits.is_some() {
                waits();
                report.waiting.extend(told_of((pack, bytes, dying)));
                continue;
            }
            if walks.is_empty() && dying.retirements.iter().all(|one| one.left_out > 0) {
                // Without a walk all of it would have to be copied; the next run that goes through everything drops it.
                waits();
                continue;
            }
            let left_out = self.left_out(&dying.retirements).await?;
            let job = {
                let (walks, pace) = (walks.to_vec(), pace.clone());
                self.job(move |store| {
                    pace.is_over();
                    Ok(if is_own {
                        collect::drop_ripe(store, &pack, &left_out, &walks)
                    } else {
                        collect::drop_superseded(store, &pack, &left_out, &walks)
                    })
                })
            };
            match job.await? {
                Ok(Some(freed)) => {
                    report.dropped += 1;
                    report.freed_bytes += freed;
                }
                // Somebody relies on it: the next run tries again.
                Ok(None) => waits(),
                Err(error) => report.trouble.push(verify::told(&error)),
            }
        }
        *held(&self.gc.waiting) = (packs, bytes_waiting);
        self.tend_packs().await;
        if report.dropped > 0 {
            self.tell_holdings().await;
        }
        Ok(())
    }

    /// Removes damaged files that were set aside and have lost nothing but garbage: nobody is to be asked for that.
    async fn drop_aside(&self, walks: Vec<Arc<Reached>>) -> Result<(), RunError> {
        if walks.is_empty() {
            return Ok(());
        }
        self.job(move |store| {
            let may_go = |cid: &Cid| !walks.iter().any(|reached| reached.has(cid));
            for name in store.set_aside()? {
                match store.drop_aside(&name, &may_go) {
                    Ok(true) => {
                        tracing::info!(file = name, "nothing needs what damage took: file removed");
                    }
                    Ok(false) => {}
                    // What came back from others may have ended it meanwhile.
                    Err(error) => tracing::debug!(file = name, %error, "file not removed"),
                }
            }
            Ok(())
        })
        .await
    }

    /// What these retirements leave out, read again from the log.
    async fn left_out(&self, retirements: &[Retirement]) -> Result<BTreeSet<[u8; 32]>, RunError> {
        let mut left_out = BTreeSet::new();
        let wanted = retirements.iter().filter(|one| one.left_out > 0);
        let wanted: BTreeSet<(EntryId, u32)> = wanted.map(|one| (one.entry, one.index)).collect();
        let ids: BTreeSet<EntryId> = wanted.iter().map(|(entry, _)| *entry).collect();
        for (id, records) in self.records(ids).await? {
            for (index, retired) in records {
                if wanted.contains(&(id, index)) {
                    left_out.extend(retired.left_out);
                }
            }
        }
        Ok(left_out)
    }

    /// The retirements in these entries.
    async fn records(
        &self,
        ids: BTreeSet<EntryId>,
    ) -> Result<Vec<(EntryId, Vec<(u32, Retired)>)>, RunError> {
        let mut found = Vec::new();
        for id in ids {
            let read = self.asker.entries(vec![id]).await.ok_or(RunError::Ending)?;
            let look = move |device: &Device| {
                let (_, bytes) = read.first()?;
                let entry = Entry::decode(bytes).ok()?;
                let records = device.replica().catalogue_records(&entry)?;
                let records = (0..).zip(records);
                let retired =
                    records.filter_map(|(index, record)| match CatalogueRecord::decode(&record) {
                        Some(CatalogueRecord::Retired(retired)) => Some((index, retired)),
                        _ => None,
                    });
                Some(retired.collect())
            };
            if let Some(records) = self.asker.look(look).await.ok_or(RunError::Ending)? {
                found.push((id, records));
            }
        }
        Ok(found)
    }

    /// Says of others' retirements that this device misses nothing, once that is so.
    async fn see_all(
        &self,
        report: &mut Report,
        snapshot: &Snapshot,
        walks: &[Arc<Reached>],
        memory: &mut Memory,
        pace: &Arc<Pace>,
    ) -> Result<(), RunError> {
        let unseen = |device: &Device| {
            let retirements = device.upkeep().retirements();
            retirements.unseen(&device.id(), device.access())
        };
        let unseen = self.asker.look(unseen).await.ok_or(RunError::Ending)?;
        for id in unseen {
            for (entry, records) in self.records(BTreeSet::from([id])).await? {
                let reached = match walks.first() {
                    Some(reached) => reached.clone(),
                    None => match self.beyond(&records, snapshot, memory, pace).await? {
                        Some(reached) => Arc::new(reached),
                        None => continue,
                    },
                };
                let left_out: Vec<[u8; 32]> = records
                    .into_iter()
                    .flat_map(|(_, retired)| retired.left_out)
                    .collect();
                let left_out = Arc::new(left_out);
                let owed = {
                    let (left_out, reached) = (left_out.clone(), reached.clone());
                    self.job(move |store| collect::owed(store, &left_out, &reached))
                        .await?
                };
                if !owed.is_empty() {
                    self.fetch(owed, snapshot, pace, Keep::Kept).await?;
                    let still = self
                        .job(move |store| collect::owed(store, &left_out, &reached))
                        .await?;
                    if !still.is_empty() {
                        continue;
                    }
                }
                let seen = Seen {
                    entry,
                    in_full: !walks.is_empty(),
                };
                let told = self.asker.command(Command::Seen(vec![seen])).await;
                told.map_err(RunError::Tell)?;
                report.seen += 1;
            }
        }
        Ok(())
    }

    /// What the versions reach that whoever wrote these records did not know; `None` if that cannot be gone through now.
    async fn beyond(
        &self,
        records: &[(u32, Retired)],
        snapshot: &Snapshot,
        memory: &mut Memory,
        pace: &Arc<Pace>,
    ) -> Result<Option<Reached>, RunError> {
        let Some((_, first)) = records.first() else {
            return Ok(None);
        };
        let Some(kept) = self.kept_beyond(first.basis.clone(), memory).await? else {
            return Ok(None);
        };
        let roots = self.roots(kept)?;
        let reached = self.walk(snapshot, roots, memory, pace).await?;
        Ok(Some(reached).filter(Reached::is_complete))
    }
}

fn fetch_all(
    source: &Source,
    cids: &[Cid],
    pace: &Pace,
    keep: Keep,
) -> Result<BTreeSet<Cid>, ReadError> {
    let mut absent = BTreeSet::new();
    for few in cids.chunks(FETCH_BATCH) {
        if pace.cancelled.load(Ordering::Relaxed) {
            return Err(ReadError::Cancelled);
        }
        let found = source.blocks(few)?;
        for (cid, block) in found.iter().filter(|_| keep == Keep::Kept) {
            // One that lies here in a pack on its way out is written anew.
            source
                .store
                .put_verified(Class::Bulk, Verified::computed(*cid, block))
                .map_err(ReadError::Store)?;
        }
        absent.extend(few.iter().filter(|cid| !found.contains_key(cid)));
    }
    source.keeper.finish()?;
    Ok(absent)
}

fn told_of((pack, bytes, dying): (PackId, u64, Dying)) -> Option<api::Waiting> {
    let (on, until) = dying.waits?;
    Some(api::Waiting {
        pack: pack.to_string(),
        bytes,
        on,
        until_ms: until.map(|until| until.0),
    })
}

fn garbage_event(candidate: &Candidate) -> Event {
    Event::Garbage {
        pack: candidate.pack.to_string(),
        class: class_name(candidate.class).to_owned(),
        bytes: candidate.bytes,
        garbage_bytes: candidate.garbage.1,
        why: match candidate.why {
            Why::Garbage => "garbage",
            Why::Small => "small",
        }
        .to_owned(),
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Names => "names",
        Class::Stream => "stream",
        Class::Bulk => "bulk",
        Class::Public => "public",
        Class::Entries => "entries",
        Class::Link => "link",
        Class::Parity => "parity",
    }
}
