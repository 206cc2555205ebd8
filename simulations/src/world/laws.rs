//! What must hold while a run goes on.
//!
//! Spec: `protocol/spec/simulation.md`, "Checks".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use bytes::Bytes;
use kith_crdt::chain::{DocumentKind, Entry};
use kith_crdt::names::Record as Version;
use kith_crdt::replica::{RecordChange, Replica};
use kith_object::id::{DeviceId, EntryId};
use kith_object::key::Secret;
use kith_object::time::{HLC_AHEAD_MAX, Span, Time};
use kith_protocol::gossip::message::Message;

use super::{Promise, Running, World};

/// So long two devices may be connected while one lacks what the other has: three tellings of the digest, and the walk.
const LAG_MAX: Span = Span::from_secs(240);
/// Entries that are looked at each time.
const LOOKED_AT: usize = 500;
/// A stamp may be as far ahead as others may be, and a little more for what happens within one millisecond.
const STAMP_SLACK: Span = Span::from_secs(1);

/// What a run knows that the devices of it do not.
#[derive(Debug, Default)]
pub(super) struct Laws {
    /// Entries that must count nowhere, and why.
    never: BTreeMap<EntryId, &'static str>,
    /// Entries that honest devices wrote.
    written: BTreeSet<EntryId>,
    /// The latest that the clock of an honest device has said.
    latest: Time,
    /// What honest devices wrote when they knew that a device was removed, and what they sealed it under: by that device.
    later: BTreeMap<DeviceId, (Vec<EntryId>, Vec<Secret>)>,
}

impl Laws {
    /// That entry must never count.
    pub(super) fn never(&mut self, id: EntryId, why: &'static str) {
        self.never.insert(id, why);
    }

    /// The clock of an honest device says that.
    pub(super) fn clock(&mut self, says: Time) {
        self.latest = self.latest.max(says);
    }
}

impl World {
    pub(super) fn fail(&mut self, failure: impl Display) {
        // One of a kind is enough.
        if self.failures.len() < 50 {
            self.failures.push(self.now_that(failure));
        }
    }

    /// Something was found wrong, and when: in milliseconds since the start, as the trace has it.
    pub fn now_that(&self, failure: impl Display) -> String {
        format!("at {} ms: {failure}", self.elapsed().as_ms())
    }

    /// A device that has just started has all that it acknowledged: names, entries and blocks.
    pub(super) fn keeps_its_word(&mut self, device: usize) {
        let Some(slot) = self.slots.get(device).filter(|slot| slot.is_honest()) else {
            return;
        };
        let Some(Running {
            device: machine,
            storage,
            ..
        }) = &slot.running
        else {
            return;
        };
        let own = self.promises.iter().zip(&self.promised_by);
        let own = own.filter(|(_, by)| **by == device);
        for (Promise { cid, .. }, _) in own {
            let known = machine.tree().link_of(cid).is_some();
            // What it gave up others have, or it is found when it is read.
            let held =
                slot.rotten || slot.gives.is_some() || storage.store.has(cid).unwrap_or(false);
            if known && held {
                continue;
            }
            let what = if known { "its block" } else { "its entry" };
            let failure = format!(
                "d{device} has acknowledged {cid}, and is without {what} when it starts again"
            );
            self.fail(failure);
            return;
        }
    }

    /// A device writes an entry to its log, of its own or of another.
    pub(super) fn wrote(&mut self, device: usize, bytes: &Bytes) {
        if !self.is_honest(device) {
            return;
        }
        let author = self.id(device);
        let Ok(entry) = Entry::decode(bytes) else {
            return;
        };
        // A device that was put back to a backup is given what it wrote since by the others.
        if entry.header().author != author || !self.laws.written.insert(entry.id()) {
            return;
        }
        let most = self.laws.latest + HLC_AHEAD_MAX + STAMP_SLACK;
        if entry.header().hlc.time() > most {
            let ahead = entry.header().hlc.time().since(self.laws.latest);
            self.fail(format!(
                "d{device} stamps an entry {} s ahead of every clock",
                ahead.as_ms() / 1000
            ));
        }
        if entry.header().document != DocumentKind::Names {
            return;
        }
        let slot = self.slots.get(device);
        let Some(running) = slot.and_then(|slot| slot.running.as_ref()) else {
            return;
        };
        let secret = running.device.replica().dedup_secrets().into_iter().next();
        let gone = self.slots.iter().filter(|slot| slot.expelled);
        let gone: Vec<DeviceId> = gone
            .map(|slot| slot.keys.id())
            .filter(|id| !running.device.access().belongs(id))
            .collect();
        for id in gone {
            let (entries, secrets) = self.laws.later.entry(id).or_default();
            entries.push(entry.id());
            if let Some(secret) = &secret
                && !secrets.contains(secret)
            {
                secrets.push(secret.clone());
            }
        }
    }

    /// What an honest device publishes is in the others, or waits in them for what it builds upon.
    pub(super) fn keeps_what_comes(&mut self, author: usize, to: usize, bytes: &Bytes) {
        self.overhears(to, author, bytes);
        if !self.is_honest(author) || !self.is_honest(to) {
            return;
        }
        let Ok(Message::Spread { entry, .. }) = Message::decode(&bytes.slice(1..)) else {
            return;
        };
        let (from, Ok(entry)) = (self.id(author), Entry::decode(&entry)) else {
            return;
        };
        let slot = self.slots.get(to);
        let Some(running) = slot.and_then(|slot| slot.running.as_ref()) else {
            return;
        };
        let replica = running.device.replica();
        let id = entry.id();
        let kept = self.stands_still(to) || replica.contains(&id) || replica.waits(&id);
        if !kept && running.device.admits(&from) {
            self.fail(format!(
                "d{to} was given {} by d{author}, and neither has it nor lets it wait",
                id.short()
            ));
        }
    }

    /// A device sends something: not to one that it knows to have been removed.
    pub(super) fn serves_no_stranger(&mut self, from: usize, to: usize) {
        let gone = |slot: &super::Slot| slot.expelled;
        if !self.slots.get(to).is_some_and(gone) || !self.is_honest(from) {
            return;
        }
        let peer = self.id(to);
        let slot = self.slots.get(from);
        let knows = slot
            .and_then(|slot| slot.running.as_ref())
            .is_some_and(|running| !running.device.access().belongs(&peer));
        if knows {
            self.fail(format!(
                "d{from} sends to d{to}, of which it knows that it was removed"
            ));
        }
    }

    /// No two devices that have long been connected differ in what one of them has had for as long.
    pub(super) fn nothing_lags(&mut self) {
        self.check_ways();
        let before = |at: Time| at + LAG_MAX < self.now;
        let replicas: Vec<Option<&Replica>> = self
            .slots
            .iter()
            .map(|slot| {
                let running = slot.running.as_ref().filter(|_| slot.is_honest())?;
                let settled = before(slot.since) && before(slot.paused) && !slot.log_failed;
                // One whose processor does not keep up has not heard all it was told.
                (settled && slot.held.is_empty()).then_some(running.device.replica())
            })
            .collect();
        let replica = |device: usize| replicas.get(device).copied().flatten();
        let steady = |one: usize, other: usize| {
            self.sound_since(one, other).is_some_and(before)
                && before(self.network.late(one, other))
        };
        let mut found = None;
        for (entry, (_, who)) in self.spreading.iter().take(LOOKED_AT) {
            let lacks = (0..self.slots.len()).filter(|device| !who.contains_key(device));
            for lacks in lacks
                .filter(|device| replica(*device).is_some_and(|replica| !replica.in_digest(entry)))
            {
                let has = self.neighbours(lacks).find(|has| {
                    who.get(has).is_some_and(|at| before(*at))
                        && replica(*has).is_some_and(|replica| replica.in_digest(entry))
                        && steady(*has, lacks)
                });
                if let Some(has) = has {
                    found = Some((has, lacks, *entry));
                }
            }
        }
        if let Some((has, lacks, entry)) = found {
            self.fail(format!(
                "d{has} and d{lacks} have been connected for minutes, and d{lacks} still lacks {}",
                entry.short()
            ));
        }
    }

    /// What the world itself holds to: who is connected, who passes gossip on to whom, whom the DHT knows.
    ///
    /// # Panics
    /// If it does not, which is a defect of the simulator.
    pub(super) fn check_ways(&self) {
        self.links.check_invariants();
        self.overlay.check_invariants();
        self.dht.tables.check_invariants();
        for device in 0..self.slots.len() {
            assert!(
                self.neighbours(device)
                    .all(|other| self.links.get(device, other).is_some()),
                "gossip goes over connections"
            );
        }
    }

    /// What counts at the end, and must not; what those can read who were removed, and must not.
    pub fn check_laws(&mut self) {
        self.check_ways();
        let mut failures = Vec::new();
        for (place, device) in self.honest() {
            let counted = self.laws.never.iter();
            let counted = counted.filter(|(id, _)| device.replica().counts(id));
            failures.extend(
                counted
                    .take(1)
                    .map(|(id, why)| format!("d{place} lets {} count, but {why}", id.short())),
            );
            if device.exchange().wants_len() > 0 && self.reads_open() == 0 {
                failures.push(format!(
                    "d{place} still wants {} blocks that nobody waits for",
                    device.exchange().wants_len()
                ));
            }
        }
        failures.extend(self.what_removed_devices_read());
        for failure in failures {
            self.fail(failure);
        }
    }

    /// What a removed device can read of what was written later, with all entries of the others in its hands.
    fn what_removed_devices_read(&self) -> Vec<String> {
        let honest = self.honest().next().map(|(place, _)| place);
        let slot = honest.and_then(|place| self.slots.get(place));
        let Some(Running { storage, .. }) = slot.and_then(|slot| slot.running.as_ref()) else {
            return Vec::new();
        };
        let read = |offset: &u64| Entry::decode(&storage.log.read(*offset).ok()?).ok();
        let mut failures = Vec::new();
        for (place, slot) in self.slots.iter().enumerate() {
            let Some((later, secrets)) = self.laws.later.get(&slot.keys.id()) else {
                continue;
            };
            let mut replica = Replica::open(self.space, Some(&slot.keys));
            replica.restore_all(storage.offsets.values().filter_map(read));
            let opened = replica.take_version_changes().into_iter();
            let opened = opened.filter(|change| match change {
                RecordChange::Added { entry, record, .. } => {
                    later.contains(entry) && Version::decode(record).is_ok()
                }
                RecordChange::Removed { .. } => false,
            });
            if opened.count() > 0 {
                failures.push(format!(
                    "d{place} was removed, and can read what was written later"
                ));
            }
            if replica
                .dedup_secrets()
                .iter()
                .any(|secret| secrets.contains(secret))
            {
                failures.push(format!(
                    "d{place} was removed, and can confirm what was put later"
                ));
            }
        }
        failures
    }
}
