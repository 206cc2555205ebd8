//! `kith verify`, the daemon's own rounds of the same, and `kith store rebuild`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kith_object::scrub::{Effect, Input, Pace, Scrub};
use kith_object::store::StoreError;
use kith_protocol::api::{Event, Failure, FailureKind};

use super::calls::told;
use super::heal::Pass;
use super::{Node, NodeError, blocking, held, lock};
use crate::config::{Home, fresh_rng, now};
use crate::local::Teller;
use crate::store::{self, DiskStore};
use crate::verify::{self, Finding, PLACE_FILE, ROUND_FILE};

/// Longest wait in one go, so that a call that is given up ends soon.
const WAIT_MAX: std::time::Duration = std::time::Duration::from_millis(200);

/// What a check has come to.
#[derive(Default)]
pub(crate) struct Checked {
    packs: AtomicU64,
    bytes: AtomicU64,
    ahead: AtomicU64,
    cancelled: AtomicBool,
}

impl Checked {
    /// Tells how far it is, if whoever listens is not behind.
    fn tell(&self, tell: &Teller) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let progress = Event::Progress {
            bytes,
            total: Some(bytes + self.ahead.load(Ordering::Relaxed)),
            files: self.packs.load(Ordering::Relaxed),
        };
        let _ = tell.try_send((progress, bytes::Bytes::new()));
    }
}

/// A check under way, with all it needs.
struct Checker {
    home: Home,
    keys: kith_object::key::DeviceKeys,
    store: Arc<DiskStore>,
    place_file: &'static str,
    found: Vec<Finding>,
    /// What was told already: found when the device was opened.
    told: Vec<(String, Option<u64>)>,
}

impl Checker {
    /// Does all that the machine wants now. An error is one of the disk or the index as a whole.
    fn step(&mut self, scrub: &mut Scrub, checked: &Checked) -> Result<(), StoreError> {
        scrub.handle(now(), Input::Wake);
        while let Some(effect) = scrub.poll_effect() {
            if checked.cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            match effect {
                Effect::List => {
                    let packs = self.store.packs()?.into_iter();
                    let packs = packs.map(|(pack, info)| (pack, info.bytes)).collect();
                    scrub.handle(now(), Input::Packs(packs));
                }
                Effect::Pack(pack) => {
                    let bytes = self
                        .store
                        .packs()?
                        .iter()
                        .find(|(known, _)| *known == pack)
                        .map_or(0, |(_, info)| info.bytes);
                    match self.store.scrub_pack(&pack) {
                        Ok(damage) => self.found.extend(damage.map(verify::of_damage)),
                        // The others are read all the same.
                        Err(error) => self.found.push(verify::of_failure(&pack, &error)),
                    }
                    checked.packs.fetch_add(1, Ordering::Relaxed);
                    checked.bytes.fetch_add(bytes, Ordering::Relaxed);
                    scrub.handle(now(), Input::Checked { pack, bytes });
                }
                Effect::Rest => {
                    let mut found = verify::check_files(&self.home, Some(&self.keys));
                    found.extend(verify::check_logs(&self.home));
                    found.retain(|found| {
                        let mut told = self.told.iter();
                        !told.any(|(file, offset)| (file, offset) == (&found.file, &found.offset))
                    });
                    self.found.extend(found);
                    self.found.extend(verify::compare_index(&self.store));
                    scrub.handle(now(), Input::RestChecked);
                }
                Effect::Keep(place) => {
                    if let Err(error) = self.home.write_whole(self.place_file, &place) {
                        tracing::warn!(%error, "the place in the check is not kept");
                    }
                }
            }
            checked.ahead.store(scrub.bytes_ahead(), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Node {
    fn checker(&self, place_file: &'static str) -> Checker {
        Checker {
            home: self.home.clone(),
            keys: self.identity.keys.clone(),
            store: self.store.clone(),
            place_file,
            found: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Checks packs that did not prove to be what they should be, out of their turn.
    async fn check_doubted(&self) {
        let doubted = std::mem::take(&mut *held(&self.doubted));
        if doubted.is_empty() {
            return;
        }
        let store = self.store.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for pack in doubted {
                match store.scrub_pack(&pack) {
                    Ok(damage) => found.extend(damage.map(verify::of_damage)),
                    Err(error) => found.push(verify::of_failure(&pack, &error)),
                }
            }
            found
        });
        if let Ok(found) = checked.await {
            self.found_damage(found).await;
        }
    }

    /// Tells of what was found, and has it mended.
    async fn found_damage(&self, found: Vec<Finding>) {
        if !found.is_empty() {
            // What is set aside is held no more.
            self.tell_holdings().await;
        }
        let mut log = None;
        for mut finding in found {
            self.mend(&mut finding, &mut log).await;
            tracing::error!(file = %finding.file, offset = ?finding.offset, what = %finding.what, lost = finding.lost.len(), "damage found");
            self.damage.fetch_add(1, Ordering::Relaxed);
            self.healer.wake();
        }
    }

    /// One step of the daemon's own rounds; what it finds is told to the log and counted for the status.
    pub(super) async fn scrub_step(&self) {
        self.check_doubted().await;
        let Some(mut scrub) = held(&self.scrub).take() else {
            return;
        };
        if scrub.next_wakeup().is_some_and(|at| at <= now()) {
            let mut checker = self.checker(ROUND_FILE);
            let stepped = tokio::task::spawn_blocking(move || {
                let outcome = checker.step(&mut scrub, &Checked::default());
                (scrub, checker.found, outcome)
            })
            .await;
            let Ok((stepped, found, outcome)) = stepped else {
                return;
            };
            self.found_damage(found).await;
            if let Err(error) = outcome {
                // The index is of no use; the next start makes it anew and goes on with the round.
                tracing::error!(%error, "the store could not be checked");
                return;
            }
            scrub = stepped;
        }
        *held(&self.scrub) = Some(scrub);
    }

    /// Blocks that lay in damaged packs and are nowhere on this disk any more: what to ask others for.
    ///
    /// # Errors
    /// If the packs set aside cannot be read.
    pub fn lost_blocks(&self) -> Result<Vec<kith_object::id::Cid>, StoreError> {
        self.store.lost_blocks()
    }

    /// Checks packs, index, logs and keys; tells of each damage as it is found.
    pub(super) async fn verify(
        &self,
        percent: u8,
        rate: Option<u64>,
        resume: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let pace = Pace {
            every: None,
            rate,
            percent: percent.clamp(1, 100),
            seed: u64::from_le_bytes(fresh_rng().bytes()),
        };
        let scrub = if resume {
            Scrub::resume(pace, &verify::kept_place(&self.home, PLACE_FILE))
        } else {
            Scrub::new(pace)
        };
        let healed_before = self.healer.healed();
        let checked = Arc::new(Checked::default());
        let _cancel = super::calls::CancelOnDrop({
            let checked = checked.clone();
            move || checked.cancelled.store(true, Ordering::Relaxed)
        });
        let (found_to, mut found) = tokio::sync::mpsc::unbounded_channel();
        let mut before: Vec<Finding> = held(&self.opening).drain(..).collect();
        // This check is about to write its own place there.
        let place = verify::kept_place(&self.home, PLACE_FILE);
        let named = before.iter().any(|finding| finding.file == PLACE_FILE);
        if !named && !place.is_empty() && !Scrub::is_place(&place) {
            before.push(Finding::of(PLACE_FILE, "not what was written"));
        }
        let mut checker = self.checker(PLACE_FILE);
        for finding in before {
            checker.told.push((finding.file.clone(), finding.offset));
            let _ = found_to.send(finding);
        }
        let work = {
            let checked = checked.clone();
            move || {
                let mut scrub = scrub;
                // Blocks of packs that are still open are checked once those are closed.
                checker.store.close_packs()?;
                while !scrub.is_idle() && !checked.cancelled.load(Ordering::Relaxed) {
                    checker.step(&mut scrub, &checked)?;
                    for finding in checker.found.drain(..) {
                        let _ = found_to.send(finding);
                    }
                    if let Some(at) = scrub.next_wakeup() {
                        std::thread::sleep(verify::until(now(), at).min(WAIT_MAX));
                    }
                }
                let _ = std::fs::remove_file(checker.home.path().join(PLACE_FILE));
                Ok(())
            }
        };
        let mut task = tokio::task::spawn_blocking(work);
        let mut ticks = tokio::time::interval(super::calls::PROGRESS_EVERY);
        let (mut damaged, mut mended, mut log) = (0, 0, None);
        let done = loop {
            tokio::select! {
                Some(mut finding) = found.recv() => {
                    self.mend(&mut finding, &mut log).await;
                    damaged += 1;
                    mended += u64::from(finding.mended.is_some());
                    told(tell, event(&finding)).await?;
                }
                done = &mut task => break done,
                _ = ticks.tick() => checked.tell(tell),
            }
        };
        while let Ok(mut finding) = found.try_recv() {
            self.mend(&mut finding, &mut log).await;
            damaged += 1;
            mended += u64::from(finding.mended.is_some());
            told(tell, event(&finding)).await?;
        }
        done.map_err(|error| Failure::new(FailureKind::Failed, "check the store").because(&error))?
            .map_err(|error: StoreError| {
                super::calls::failure::store_failure("check the store".to_owned(), &error)
            })?;
        if damaged > 0 {
            // What is set aside is held no more.
            self.tell_holdings().await;
        }
        let pass = self.heal_telling(&checked, tell).await;
        if let Some(error) = pass.trouble {
            let text = format!(
                "not all that was lost could be put back: {}",
                verify::told(&error)
            );
            told(tell, Event::Warning { text }).await?;
        }
        told(
            tell,
            Event::Verified {
                packs: checked.packs.load(Ordering::Relaxed),
                bytes: checked.bytes.load(Ordering::Relaxed),
                damaged,
                lost: pass.lost.iter().map(ToString::to_string).collect(),
                healed: self.healer.healed() - healed_before,
            },
        )
        .await?;
        judge(damaged, mended, pass.lost.len())
    }

    /// Puts back what is lost while somebody listens.
    async fn heal_telling(&self, checked: &Checked, tell: &Teller) -> Pass {
        let mut pass = std::pin::pin!(self.heal());
        let mut ticks = tokio::time::interval(super::calls::PROGRESS_EVERY);
        loop {
            tokio::select! {
                pass = &mut pass => return pass,
                _ = ticks.tick() => checked.tell(tell),
            }
        }
    }

    /// Checks what can be checked of a device that does not open, and changes nothing.
    ///
    /// # Errors
    /// [`NodeError`] if the home cannot be locked.
    pub async fn verify_closed(home: Home) -> Result<Vec<Finding>, NodeError> {
        blocking(move || {
            let _lock = lock(&home, "kith verify")?;
            Ok(verify::check_closed(&home))
        })
        .await
    }

    /// Makes the whole index anew from the packs. One that was interrupted goes on where it was.
    ///
    /// `tell` hears how many packs are taken up, of how many. Answers packs and blocks.
    ///
    /// # Errors
    /// [`NodeError`]; no daemon may run.
    pub async fn rebuild(
        home: Home,
        tell: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(u64, u64), NodeError> {
        blocking(move || {
            let identity = home.identity()?;
            let _lock = lock(&home, "kith store rebuild")?;
            let settings = super::settings(&home, None)?;
            let key = identity.keys.local_secret("kith index 1");
            let store = store::rebuild_index(
                home.path(),
                identity.space,
                &key,
                settings,
                &mut |done, all| {
                    tell(done, all);
                },
            )
            .map_err(NodeError::Store)?;
            let usage = store
                .usage()
                .map_err(|error| NodeError::Task(error.to_string()))?;
            let packs = store
                .packs()
                .map_err(|error| NodeError::Task(error.to_string()))?;
            store.disk().settler().settle().map_err(NodeError::Local)?;
            Ok((packs.len() as u64, usage.blocks))
        })
        .await
    }
}

/// How a check ends for who started it.
fn judge(damaged: u64, mended: u64, lost: usize) -> Result<(), Failure> {
    if damaged == 0 && lost == 0 {
        return Ok(());
    }
    if mended == damaged && lost == 0 {
        return Err(Failure::new(
            FailureKind::Partial,
            format!("find everything sound: {damaged} damaged, all of it mended"),
        )
        .hint("nothing is lost; a disk that does this once does it again"));
    }
    Err(Failure::new(
        FailureKind::Corrupt,
        format!("find everything sound: {damaged} damaged, {lost} blocks are nowhere on this disk"),
    )
    .hint("what another device has comes back when it is connected to `kith up`; put again what none has"))
}

/// A finding as clients read it.
pub fn event(finding: &Finding) -> Event {
    Event::Damage {
        file: finding.file.clone(),
        offset: finding.offset,
        what: finding.what.clone(),
        blocks: finding.blocks.iter().map(ToString::to_string).collect(),
        lost: finding.lost.iter().map(ToString::to_string).collect(),
        mended: finding.mended.clone(),
    }
}
