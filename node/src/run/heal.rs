//! Gets back what damage took, while another device has it.
//!
//! What is lost is worked out from the files that were set aside, so nothing has to be remembered: a restart goes on where the last process stopped.
//!
//! Spec: `protocol/spec/store.md`, "Healing".

mod files;
mod log;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kith_object::id::{Cid, DeviceId};
use kith_object::log::LogReport;
use kith_object::store::{Aside, StoreError, Verified};

pub(super) use log::LogHealed;

use super::calls::CancelOnDrop;
use super::{Asker, Node};
use crate::source::Arrival;
use crate::store::DiskStore;

/// Blocks asked of others at once, as many as a reader asks for: some 20 MiB under way.
const ASK_AT_ONCE: usize = 160;
/// Pause after a pass that left something lost; doubles while nothing comes, since what nobody has is not had by asking more often.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// How often it is looked whether a device has come that was not asked, or whoever waits has gone.
const LOOK: Duration = Duration::from_secs(1);
/// How long nothing may come of a fetch: the exchange gives up sooner on whoever is silent.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// How healing stands.
#[derive(Debug, Default)]
pub(super) struct Healer {
    /// One pass at a time.
    turn: tokio::sync::Mutex<()>,
    /// Damage was found: what is lost has to be worked out anew.
    found: tokio::sync::Notify,
    /// Blocks that the last pass left lost.
    lost: AtomicU64,
    /// Blocks that came back since the start.
    healed: AtomicU64,
    /// The log has damaged places.
    log_damaged: AtomicBool,
    /// Some were there before this process read it, so that nobody here knows what stood in them.
    log_unknown: AtomicBool,
    /// The settings could not be read at the start.
    settings_lost: bool,
}

impl Healer {
    /// As it stands once the log was read.
    pub(super) fn of(log: &LogReport, settings_lost: bool) -> Self {
        Self {
            log_damaged: AtomicBool::new(!log.damaged.is_empty()),
            log_unknown: AtomicBool::new(!log.damaged.is_empty()),
            settings_lost,
            ..Self::default()
        }
    }

    /// Says that damage was found.
    pub(super) fn wake(&self) {
        self.found.notify_one();
    }

    /// Blocks that came back since the start.
    pub(super) fn healed(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }

    /// Blocks that the last pass left lost.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// What a pass came to.
pub(super) struct Pass {
    /// Blocks that are nowhere on this disk.
    pub(super) lost: BTreeSet<Cid>,
    /// Devices that were asked.
    asked: BTreeSet<DeviceId>,
    /// Blocks that came back.
    healed: u64,
    /// Why something could not be read or put back.
    pub(super) trouble: Option<StoreError>,
    /// The log is still damaged.
    log_left: bool,
}

impl Node {
    /// Heals for as long as the daemon runs: at once when damage is found or a device comes that was not asked, else again and again, ever less often.
    pub(super) async fn heal_rounds(&self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let pass = self.heal().await;
            if let Some(error) = &pass.trouble {
                tracing::warn!(%error, "not all that was lost could be put back");
            }
            if pass.healed > 0 {
                pause = PAUSE_FIRST;
            }
            if pass.lost.is_empty() && pass.trouble.is_none() && !pass.log_left {
                pause = PAUSE_FIRST;
                self.healer.found.notified().await;
                continue;
            }
            let until = tokio::time::Instant::now() + pause;
            pause = (2 * pause).min(PAUSE_MAX);
            loop {
                tokio::select! {
                    () = self.healer.found.notified() => break,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let comers = !self.connected().await.is_subset(&pass.asked);
                if comers || tokio::time::Instant::now() >= until {
                    break;
                }
            }
        }
    }

    /// Asks the devices that are connected for whatever is lost, puts it back, and removes the files set aside that are of no use any more.
    pub(super) async fn heal(&self) -> Pass {
        let _turn = self.healer.turn.lock().await;
        let asked = self.connected().await;
        let given_up = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop({
            let given_up = given_up.clone();
            move || given_up.store(true, Ordering::Relaxed)
        });
        let mut blocks = Blocks {
            store: self.store.clone(),
            asker: self.asker.clone(),
            ask: !asked.is_empty(),
            given_up,
            lost: BTreeSet::new(),
            healed: 0,
            trouble: None,
        };
        let done = tokio::task::spawn_blocking(move || {
            blocks.heal();
            blocks
        });
        let mut pass = Pass {
            lost: BTreeSet::new(),
            asked,
            healed: 0,
            trouble: None,
            log_left: false,
        };
        if self.healer.log_damaged.load(Ordering::Relaxed) {
            pass.log_left = matches!(self.heal_log_now().await, LogHealed::Left(_));
        }
        if let Ok(blocks) = done.await {
            pass.lost = blocks.lost;
            pass.healed = blocks.healed;
            pass.trouble = blocks.trouble;
        }
        self.healer
            .lost
            .store(pass.lost.len() as u64, Ordering::Relaxed);
        self.healer.healed.fetch_add(pass.healed, Ordering::Relaxed);
        if pass.healed > 0 {
            tracing::info!(
                blocks = pass.healed,
                lost = pass.lost.len(),
                "lost blocks came back from other devices"
            );
        }
        pass
    }

    /// Has the entries of a damaged log written again.
    pub(super) async fn heal_log(&self) -> LogHealed {
        let _turn = self.healer.turn.lock().await;
        self.heal_log_now().await
    }

    async fn connected(&self) -> BTreeSet<DeviceId> {
        if !self.asker.is_online() {
            return BTreeSet::new();
        }
        let peers = self.asker.look(|device| device.peers().clone()).await;
        peers.unwrap_or_default()
    }
}

/// Blocks on their way back, on a thread that may block. A file at a time, so that memory is bounded by the longest pack.
struct Blocks {
    store: Arc<DiskStore>,
    asker: Asker,
    /// Whether there is anybody to ask.
    ask: bool,
    given_up: Arc<AtomicBool>,
    lost: BTreeSet<Cid>,
    healed: u64,
    trouble: Option<StoreError>,
}

impl Blocks {
    fn heal(&mut self) {
        let files = match self.store.set_aside() {
            Ok(files) => files,
            Err(error) => return self.trouble = Some(error),
        };
        for file in files {
            if self.given_up.load(Ordering::Relaxed) {
                return;
            }
            // What is wrong with one file, or with the room for it, is tried with the next all the same: it may be smaller.
            if let Err(error) = self.heal_file(&file) {
                self.trouble = Some(error);
            }
        }
    }

    fn heal_file(&mut self, file: &str) -> Result<(), StoreError> {
        let Some(aside) = self.store.look_aside(file)? else {
            return Ok(());
        };
        let mut outcome = Ok(());
        if self.ask {
            for few in aside.lost.chunks(ASK_AT_ONCE) {
                outcome = self.fetch(&aside, few);
                if outcome.is_err() || self.given_up.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        for cid in &aside.lost {
            if !self.store.has(cid)? {
                self.lost.insert(*cid);
            }
        }
        outcome?;
        if self.store.drop_aside(file, &|_| false)? {
            tracing::info!(%file, "all blocks of the damaged file are sound elsewhere; it is removed");
        }
        Ok(())
    }

    /// Asks for a few blocks and puts back what comes; it lasts when this returns.
    fn fetch(&mut self, aside: &Aside, cids: &[Cid]) -> Result<(), StoreError> {
        let (to, arrivals) = channel();
        let request = self.asker.fetch(cids.to_vec(), to);
        let _cancel = CancelOnDrop(|| self.asker.cancel_fetch(request));
        let mut wanted: BTreeSet<Cid> = cids.iter().copied().collect();
        let mut lacking = BTreeSet::new();
        let mut came = Vec::new();
        let mut heard = Instant::now();
        while wanted.len() > lacking.len() && !self.given_up.load(Ordering::Relaxed) {
            match arrivals.recv_timeout(LOOK) {
                Ok(arrival) => {
                    heard = Instant::now();
                    match arrival {
                        Arrival::Block { cid, block, .. } => {
                            lacking.remove(&cid);
                            if wanted.remove(&cid) {
                                self.store
                                    .put_back(aside, Verified::computed(cid, &block))?;
                                came.push(cid);
                            }
                        }
                        Arrival::Held { cid } => {
                            lacking.remove(&cid);
                            wanted.remove(&cid);
                        }
                        Arrival::Sought { cid } => {
                            lacking.remove(&cid);
                        }
                        Arrival::Unavailable { cid } => {
                            if wanted.contains(&cid) {
                                lacking.insert(cid);
                            }
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) if heard.elapsed() < QUIET_MAX => {}
                Err(_) => break,
            }
        }
        self.store.flush()?;
        self.healed += came.len() as u64;
        self.asker.stored(came);
        Ok(())
    }
}
