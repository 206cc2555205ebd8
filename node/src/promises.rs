//! Proves to other devices that packs are here, and gives up copies that are too many.
//!
//! Spec: `protocol/spec/promises.md`, "Keeping a promise" and "Giving up".

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kith_core::collect;
use kith_core::device::Input;
use kith_core::promises::{GaveUp, GiveUp, Vouch, Vouched, Wish};
use kith_core::vouch;
use kith_crdt::names::Kept;
use kith_object::disk::Disk;
use kith_object::id::{Cid, PackId};
use kith_object::log::{Log, LogError};
use kith_object::object::{Leaves, Reach, Reached};
use kith_object::seal::Opener;
use kith_object::store::StoreError;
use kith_object::time::Time;
use kith_protocol::promise::{Promised, Refused};
use tokio::sync::mpsc;

use crate::config::{Durability, fresh_rng, now};
use crate::pins::PinFile;
use crate::run::{Asker, held};
use crate::store::{self, DiskStore, OpenStoreError, RealDisk, Settler};

/// The log of what was promised.
const LOG: &str = "promises.log";
/// A log below that is not written anew while the device is up.
const ANEW_BYTES: u64 = 1 << 20;
/// What a record takes in it.
const RECORD_BYTES: u64 = 88;

/// Why promises cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum PromisesError {
    /// There is no folder for the log.
    #[error(transparent)]
    Folder(#[from] OpenStoreError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Promises, each on disk before it is given.
pub(crate) struct PromiseLog {
    log: Log<RealDisk>,
    /// Where each pack's last promise stands, and when it ends.
    standing: BTreeMap<PackId, (u64, Time)>,
}

/// What the log held.
#[derive(Debug, Default)]
pub(crate) struct Recalled {
    pub(crate) promised: Vec<Promised>,
    /// Others may have been promised what it does not say.
    pub(crate) is_damaged: bool,
}

impl PromiseLog {
    /// Opens the log, and writes it anew if that is worth it. One that is none any more is set aside.
    pub(crate) fn open(home: &Path) -> Result<(Self, Recalled), PromisesError> {
        // Whatever durability the owner chose: others give up their copies on the word of this one.
        let disk = || store::open_logs(home, Durability::Group);
        match Self::open_on(disk()?) {
            Err(LogError::NotALog { name }) => {
                tracing::warn!("the log of promises is damaged: no copy is given up for a day");
                let disk = disk()?;
                disk.rename(&name, &format!("{name}.bad"))
                    .map_err(|source| LogError::Write { name, source })?;
                let (log, mut recalled) = Self::open_on(disk)?;
                recalled.is_damaged = true;
                Ok((log, recalled))
            }
            opened => Ok(opened?),
        }
    }

    fn open_on(disk: RealDisk) -> Result<(Self, Recalled), LogError> {
        let mut standing = BTreeMap::new();
        let mut is_damaged = false;
        let (log, report) = Log::open_each(disk, LOG, |offset, record| {
            match Promised::decode(&record) {
                Ok(Promised { pack, until }) => {
                    standing.insert(pack, (offset, until));
                }
                Err(_) => is_damaged = true,
            }
        })?;
        is_damaged |= !report.damaged.is_empty();
        let mut log = Self { log, standing };
        log.tidy(0);
        let promised = log.standing.iter();
        let promised = promised.map(|(pack, (_, until))| Promised {
            pack: *pack,
            until: *until,
        });
        let recalled = Recalled {
            promised: promised.collect(),
            is_damaged,
        };
        Ok((log, recalled))
    }

    /// Writes down that these packs are promised until then; it lasts when this returns.
    fn write(&mut self, packs: &[PackId], until: Time) -> Result<(), LogError> {
        self.tidy(ANEW_BYTES);
        for &pack in packs {
            let offset = self.log.append(&Promised { pack, until }.encode())?;
            self.standing.insert(pack, (offset, until));
        }
        self.log.sync()
    }

    /// Leaves out what has ended, if the log is longer than that and twice as long as it has to be.
    fn tidy(&mut self, least: u64) {
        let len = self.log.len_bytes();
        if len <= least || len <= 2 * RECORD_BYTES * (self.standing.len() as u64 + 1) && least > 0 {
            return;
        }
        let now = now();
        self.standing.retain(|_, (_, until)| *until > now);
        if len <= 2 * RECORD_BYTES * (self.standing.len() as u64 + 1) {
            return;
        }
        let mut offsets: Vec<u64> = self.standing.values().map(|(offset, _)| *offset).collect();
        offsets.sort_unstable();
        let mut moved = BTreeMap::new();
        let written = self.log.write_anew(
            &offsets,
            |from, to| {
                moved.insert(from, to);
            },
            || Ok(()),
        );
        for (offset, _) in self.standing.values_mut() {
            *offset = moved.get(offset).copied().unwrap_or(*offset);
        }
        if let Err(error) = written {
            tracing::debug!(%error, "the log of promises is not written anew");
        }
    }
}

/// Writes promises down and proves packs.
pub(crate) struct Voucher {
    pub(crate) log: PromiseLog,
    pub(crate) store: Arc<DiskStore>,
    /// Does what relaxed durability has put off.
    pub(crate) settler: Settler,
    pub(crate) asker: Asker,
    /// Packs that turned out to be damaged, for whoever checks them.
    pub(crate) doubted: Arc<Mutex<BTreeSet<PackId>>>,
    pub(crate) ending: Arc<AtomicBool>,
}

impl Voucher {
    /// Works in order until the machine ends.
    pub(crate) async fn vouch_all(mut self, mut vouches: mpsc::UnboundedReceiver<Vouch>) {
        let work = move || {
            while let Some(vouch) = vouches.blocking_recv() {
                if self.ending.load(Ordering::Relaxed) {
                    return;
                }
                let outcome = self.prove(&vouch);
                let (wish, peer) = (&vouch.wish, vouch.challenge.asker);
                if let (Err(why), Wish::Pack(pack)) = (&outcome, wish) {
                    tracing::debug!(%pack, ?why, %peer, "not promised");
                    if *why == Refused::Damaged {
                        held(&self.doubted).insert(*pack);
                    }
                }
                let nonce = vouch.challenge.nonce;
                self.asker.input(Input::Vouched {
                    peer,
                    nonce,
                    outcome,
                });
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }

    fn prove(&mut self, vouch: &Vouch) -> Result<Vouched, Refused> {
        let vouched = vouch::vouch(&self.store, vouch)?;
        // With relaxed durability its bytes may not last yet.
        self.settler.settle().map_err(|_| Refused::Unwritten)?;
        let written = self.log.write(&vouched.packs, vouch.until);
        written.map_err(|error| {
            tracing::warn!(%error, "nothing is promised");
            Refused::Unwritten
        })?;
        Ok(vouched)
    }
}

/// What to do about a copy that is too many.
pub(crate) enum Surplus {
    /// Say which blocks of a pack lie in no other here that stays.
    List(PackId),
    GiveUp(GiveUp),
}

/// Gives up what others have promised to keep, one after the other, until the machine ends.
pub(crate) async fn give_up_all(
    store: Arc<DiskStore>,
    pins: Arc<PinFile>,
    asker: Asker,
    mut surplus: mpsc::UnboundedReceiver<Surplus>,
    ending: Arc<AtomicBool>,
) {
    let mut pinned = Pinned::default();
    while let Some(next) = surplus.recv().await {
        let give_up = match next {
            Surplus::GiveUp(give_up) => give_up,
            Surplus::List(pack) => {
                list(store.clone(), &asker, pack).await;
                continue;
            }
        };
        let opener = asker.look(|device| Opener::new(device.replica().dedup_secrets()));
        let Some(opener) = opener.await else { return };
        let (store, pins, ending) = (store.clone(), pins.clone(), ending.clone());
        let pack = give_up.pack;
        let work = move || {
            let how = if ending.load(Ordering::Relaxed) {
                Ok(GaveUp::Stays)
            } else {
                give_one_up(&store, &pins, &mut pinned, opener, &give_up, &ending)
            };
            (pinned, how)
        };
        let Ok((kept, how)) = tokio::task::spawn_blocking(work).await else {
            return;
        };
        pinned = kept;
        let how = how.unwrap_or_else(|error| {
            tracing::warn!(%pack, %error, "a copy that is too many stays");
            GaveUp::Stays
        });
        if how == GaveUp::Gone {
            tracing::debug!(%pack, "given up: others keep it");
            let (added, removed) = (Vec::new(), vec![pack]);
            asker.input(Input::Kept { added, removed });
        }
        asker.input(Input::GaveUp { pack, how });
    }
}

/// Lists the blocks of a pack that others are to be asked for.
async fn list(store: Arc<DiskStore>, asker: &Asker, pack: PackId) {
    let list = tokio::task::spawn_blocking(move || vouch::list(&*store, &pack));
    let digests = match list.await {
        Ok(Ok(digests)) => digests,
        Ok(Err(error)) => {
            tracing::debug!(%pack, %error, "what was replaced cannot be listed");
            None
        }
        Err(_) => None,
    };
    asker.input(Input::Listed { pack, digests });
}

/// What the pins reach, as long as they are the same.
#[derive(Default)]
struct Pinned {
    roots: Vec<Cid>,
    reached: Option<Reached>,
}

fn give_one_up(
    store: &DiskStore,
    pins: &PinFile,
    pinned: &mut Pinned,
    opener: Opener,
    give_up: &GiveUp,
    ending: &AtomicBool,
) -> Result<GaveUp, StoreError> {
    // What begins to rely on packs from here on counts until this is over, a pin that is being made too.
    let _run = store.begin_run();
    let kept = match pins.kept() {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(%error, "as long as it is not known what is pinned here, no copy is given up");
            return Ok(GaveUp::Stays);
        }
    };
    let roots: Vec<Cid> = kept.iter().map(|kept| kept.link.cid()).collect();
    if pinned.roots != roots || pinned.reached.is_none() {
        *pinned = Pinned {
            reached: reached(store, &kept, opener, ending)?,
            roots,
        };
    }
    // Pinned, and not all here: it may be in this very pack.
    let Some(reached) = &pinned.reached else {
        return Ok(GaveUp::Stays);
    };
    vouch::give_up(store, give_up, &|cid| reached.has(cid))
}

/// All that the pins reach; none if something of it is not here, or the device is ending.
fn reached(
    store: &DiskStore,
    kept: &[Kept],
    opener: Opener,
    ending: &AtomicBool,
) -> Result<Option<Reached>, StoreError> {
    let leaves = Leaves::new(fresh_rng().bytes());
    let mut reach = Reach::new(opener, leaves, [].into());
    for kept in kept {
        reach.enter(kept.link.clone(), kept.is_listing);
    }
    let is_over = || ending.load(Ordering::Relaxed);
    if !collect::walk(store, &mut reach, &is_over)? {
        return Ok(None);
    }
    let reached = reach.finish().0;
    Ok(reached.is_complete().then_some(reached))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(n: u8, until: Time) -> Promised {
        let pack = PackId([n; 32]);
        Promised { pack, until }
    }

    #[test]
    fn promises_outlast_the_process_and_those_that_ended_go() {
        let home = tempfile::tempdir().unwrap();
        let open = || PromiseLog::open(home.path()).unwrap();
        let later = Time(now().0 + 1_000_000);
        let (mut log, recalled) = open();
        assert!(recalled.promised.is_empty() && !recalled.is_damaged);
        for n in 0..40 {
            let until = if n < 30 { Time(5) } else { later };
            log.write(&[PackId([n; 32])], until).unwrap();
        }
        log.write(&[PackId([39; 32])], Time(later.0 + 1)).unwrap();
        let long = log.log.len_bytes();
        drop(log);
        let (mut log, recalled) = open();
        let mut expected: Vec<Promised> = (30..39).map(|n| promised(n, later)).collect();
        expected.push(promised(39, Time(later.0 + 1)));
        assert_eq!(recalled.promised, expected);
        assert!(log.log.len_bytes() < long / 3, "{}", log.log.len_bytes());
        // And goes on where it was.
        log.write(&[PackId([50; 32])], later).unwrap();
        drop(log);
        expected.push(promised(50, later));
        let (_, recalled) = open();
        assert_eq!(recalled.promised, expected);
        assert!(!recalled.is_damaged);
    }

    #[test]
    fn a_damaged_log_is_told_of_and_one_that_is_none_set_aside() {
        let home = tempfile::tempdir().unwrap();
        let later = Time(now().0 + 1_000_000);
        let (mut log, _) = PromiseLog::open(home.path()).unwrap();
        for n in 0..3 {
            log.write(&[PackId([n; 32])], later).unwrap();
        }
        drop(log);
        let path = home.path().join("logs").join(LOG);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.get_mut(16 + 88 + 60).unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (_, recalled) = PromiseLog::open(home.path()).unwrap();
        assert!(recalled.is_damaged);
        assert_eq!(recalled.promised.len(), 2);
        std::fs::write(&path, [7; 1000]).unwrap();
        let (mut log, recalled) = PromiseLog::open(home.path()).unwrap();
        assert!(recalled.is_damaged && recalled.promised.is_empty());
        log.write(&[PackId([1; 32])], later).unwrap();
        drop(log);
        assert!(home.path().join("logs").join("promises.log.bad").exists());
        let (_, recalled) = PromiseLog::open(home.path()).unwrap();
        assert_eq!(recalled.promised, [promised(1, later)]);
    }
}
