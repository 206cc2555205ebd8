//! The log's own thread: writes entries, reads them for whoever asks, and writes the log anew without its damage.
//!
//! Spec: `protocol/spec/device.md`, "Shell"; `protocol/spec/log.md`, "Writing anew".

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use kith_core::device::Input;
use kith_object::id::EntryId;
use kith_object::log::{Log, LogError};
use tokio::sync::oneshot;

use super::driver::Asker;
use crate::store::{RealDisk, Settler};

/// Something for the log's thread, in the order in which the machine wanted it.
pub(super) enum ToLog {
    Append {
        number: u64,
        id: EntryId,
        entry: Bytes,
    },
    Load {
        ids: Vec<EntryId>,
        to: LoadFor,
    },
    /// Which entries stand in these places and cannot be read any more?
    Judge {
        damaged: Vec<Range<u64>>,
        answer: oneshot::Sender<Vec<EntryId>>,
    },
    /// Write the log anew; these entries may be left out, since they do not count.
    WriteAnew {
        without: Vec<EntryId>,
        answer: oneshot::Sender<Result<bool, LogError>>,
    },
}

/// Whom entries are read for.
pub(super) enum LoadFor {
    /// The machine, which gave this token.
    Machine(u64),
    /// A call of this process.
    Call(oneshot::Sender<Vec<(EntryId, Bytes)>>),
}

/// The log, where each entry is in it, and who hears of it.
pub(super) struct LogKeeper {
    pub(super) log: Log<RealDisk>,
    pub(super) offsets: BTreeMap<EntryId, u64>,
    pub(super) settler: Settler,
    pub(super) asker: Asker,
}

impl LogKeeper {
    /// Works until the queue ends: writes all that waits, makes it durable with one fsync, says so.
    pub(super) fn keep(mut self, queue: &Receiver<ToLog>) {
        while let Ok(first) = queue.recv() {
            if let Err(error) = self.work(std::iter::once(first).chain(queue.try_iter())) {
                return fail(&error, &self.asker);
            }
        }
    }

    fn work(&mut self, items: impl Iterator<Item = ToLog>) -> Result<(), LogError> {
        let mut last = None;
        let mut loads = Vec::new();
        for item in items {
            match item {
                ToLog::Append { number, id, entry } => {
                    let offset = self.log.append(&entry)?;
                    // The mark before a group is no entry.
                    if id != EntryId::default() {
                        self.offsets.insert(id, offset);
                    }
                    last = Some(number);
                }
                ToLog::Load { ids, to } => loads.push((ids, to)),
                ToLog::Judge { damaged, answer } => {
                    let _ = answer.send(self.judge(&damaged));
                }
                ToLog::WriteAnew { without, answer } => {
                    // What it comes before is written first, and what the machine waits for is told.
                    self.settle(last.take())?;
                    let outcome = self.write_anew(&without);
                    if let Err(LogError::Sync { .. } | LogError::Broken { .. }) = outcome {
                        return outcome.map(|_| ());
                    }
                    let _ = answer.send(outcome);
                }
            }
        }
        self.settle(last)?;
        for (ids, to) in loads {
            self.load(ids, to);
        }
        Ok(())
    }

    fn settle(&self, last: Option<u64>) -> Result<(), LogError> {
        if let Some(last) = last {
            self.log.sync()?;
            self.asker.input(Input::Appended(last));
        }
        Ok(())
    }

    fn load(&self, ids: Vec<EntryId>, to: LoadFor) {
        let mut unreadable = Vec::new();
        let mut entries = Vec::new();
        for id in ids {
            let Some(offset) = self.offsets.get(&id) else {
                continue;
            };
            match self.log.read(*offset) {
                Ok(entry) => entries.push((id, entry)),
                Err(error) => {
                    tracing::error!(%error, "an entry of the log cannot be read; other devices are asked for it");
                    unreadable.push(id);
                }
            }
        }
        if !unreadable.is_empty() {
            self.asker.input(Input::Unreadable(unreadable));
        }
        match to {
            LoadFor::Machine(token) => self.asker.input(Input::LoadedEntries { token, entries }),
            // Who asked may have gone.
            LoadFor::Call(answer) => drop(answer.send(entries)),
        }
    }

    /// The entries in these places that cannot be read any more; the machine has them come again.
    fn judge(&self, damaged: &[Range<u64>]) -> Vec<EntryId> {
        let inside = |offset: u64| damaged.iter().any(|range| range.contains(&offset));
        let unreadable: Vec<EntryId> = self
            .offsets
            .iter()
            .filter(|(_, offset)| inside(**offset) && self.log.read(**offset).is_err())
            .map(|(id, _)| *id)
            .collect();
        if !unreadable.is_empty() {
            self.asker.input(Input::Unreadable(unreadable.clone()));
        }
        unreadable
    }

    /// Writes the log anew with every entry that this process knows: no damage, no marks of groups (all are whole here, since the machine's wishes come
    /// in order), nothing that a crash cut short. False if an entry that counts cannot be read; it is asked for.
    fn write_anew(&mut self, without: &[EntryId]) -> Result<bool, LogError> {
        let mut known: Vec<(u64, EntryId)> = self
            .offsets
            .iter()
            .map(|(id, offset)| (*offset, *id))
            .collect();
        known.sort_unstable();
        let mut unreadable = Vec::new();
        let mut keep = Vec::with_capacity(known.len());
        for (offset, id) in &known {
            match self.log.read(*offset) {
                Ok(_) => keep.push(*offset),
                Err(_) if without.contains(id) => {}
                Err(_) => unreadable.push(*id),
            }
        }
        if !unreadable.is_empty() {
            self.asker.input(Input::Unreadable(unreadable));
            return Ok(false);
        }
        let mut places = BTreeMap::new();
        let written = self.log.write_anew(
            &keep,
            |from, to| {
                places.insert(from, to);
            },
            || self.settler.settle(),
        );
        if !places.is_empty() {
            self.offsets = known
                .into_iter()
                .filter_map(|(offset, id)| Some((id, *places.get(&offset)?)))
                .collect();
        }
        written.map(|()| true)
    }
}

fn fail(error: &dyn std::error::Error, asker: &Asker) {
    let why = crate::verify::told(error);
    asker.log_failed(why.into());
}
