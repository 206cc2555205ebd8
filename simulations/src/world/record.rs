//! What a run looked like over time, for its report: looked at, never touched, so a run that is recorded is the same run.
//!
//! Spec: `protocol/spec/simulation.md`, "Report".

use std::collections::BTreeMap;

use kith_object::time::Span;

use super::World;
use crate::network::Counts;

/// So often a run is looked at.
const SAMPLES: u64 = 240;
/// Objects whose copies are counted: at most so many of those acknowledged, evenly spread over them.
const OBJECTS_MAX: usize = 400;
/// Marks that are kept; of a run with more, those that come first.
const MARKS_MAX: usize = 20_000;

/// Something that happened to a device, or to all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// It runs from now on.
    Starts,
    /// It was shut down.
    Stops,
    /// It lost its power.
    Crashes,
    /// It reaches nobody from now on.
    Leaves,
    /// It is back.
    Returns,
    /// Its clock jumped, milliseconds.
    Jumps(i64),
    /// A bit on its disk turned over, or a sector was lost.
    Rots,
    /// Its disks are nearly full.
    Fills,
    /// Its disks fail to make something durable.
    Unwritable,
    /// It is slow from now on, or as quick again as before.
    Slows(bool),
    /// Its disks were put back to a backup.
    Restored,
    /// It stands still for a while.
    Pauses,
    /// It is somewhere else.
    Moves,
    /// Packets are lost everywhere from now on, or no more.
    Storms(bool),
    /// It did harm.
    Harms(&'static str),
    /// It was removed from the mesh.
    Removed,
    /// It is lost for good.
    Lost,
    /// The partition of that number begins.
    Parted(u64),
    /// It is over.
    Healed(u64),
    /// Everything is up and connected.
    AllWell,
}

/// A moment of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since its start, milliseconds.
    pub at_ms: u64,
    /// Bytes of packs and log of each device, as it was when it last ran.
    pub stored: Vec<u64>,
    /// Bytes sent so far by all devices, by purpose.
    pub sent: BTreeMap<&'static str, u64>,
    /// Entries that some device has and another has not.
    pub spreading: u64,
    /// How many of the objects looked at are on no device, on one, on two, ...
    pub copies: Vec<u64>,
    /// Objects acknowledged so far.
    pub promises: u64,
}

/// A run over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Moments, in order.
    pub samples: Vec<Sample>,
    /// What happened, when (milliseconds), to which device.
    pub marks: Vec<(u64, usize, Mark)>,
    stored: Vec<u64>,
    has: Vec<BTreeMap<usize, bool>>,
}

/// One of so many objects is looked at. Those looked at now were looked at before, so that what a device had when it went down says something of them.
fn stride(objects: usize) -> usize {
    objects.div_ceil(OBJECTS_MAX).next_power_of_two()
}

impl World {
    /// Notes something for the record.
    pub(super) fn mark(&mut self, device: usize, mark: Mark) {
        if self.marks.len() < MARKS_MAX {
            let at = self.elapsed().as_ms();
            self.marks.push((at, device, mark));
        }
    }

    /// As [`World::run_until`], looking at the run all along; `whole` is how long it will be in all.
    pub fn run_recorded(&mut self, after: Span, whole: Span, record: &mut Record) {
        let step = (whole.as_ms() / SAMPLES).max(1);
        let mut next = record.samples.last().map_or(0, |last| last.at_ms + step);
        while next < after.as_ms() {
            self.run_until(Span(next));
            self.look(record);
            next += step;
        }
        self.run_until(after);
        self.look(record);
        record.marks.clone_from(&self.marks);
    }

    fn look(&self, record: &mut Record) {
        let devices = self.slots.len();
        record.stored.resize(devices, 0);
        record.has.resize(devices, BTreeMap::new());
        let stride = stride(self.promises.len());
        let objects = || self.promises.iter().enumerate().step_by(stride);
        for (slot, (stored, has)) in self
            .slots
            .iter()
            .zip(record.stored.iter_mut().zip(&mut record.has))
        {
            let Some(running) = &slot.running else {
                continue;
            };
            let store = &running.storage.store;
            let packs = store.usage().map_or(0, |usage| usage.bytes);
            *stored = packs + running.storage.log.len_bytes();
            has.clear();
            for (place, promise) in objects() {
                has.insert(place, store.has(&promise.cid).unwrap_or(false));
            }
        }
        let mut copies = vec![0; devices + 1];
        for (place, _) in objects() {
            let by = self.promised_by.get(place).copied();
            let have = record.has.iter().enumerate().filter(|(device, has)| {
                let down = || {
                    self.slots
                        .get(*device)
                        .is_some_and(|slot| slot.running.is_none())
                };
                // One that is down may have been looked at for the last time before it acknowledged this.
                has.get(&place).copied().unwrap_or(false) || (by == Some(*device) && down())
            });
            if let Some(count) = copies.get_mut(have.count()) {
                *count += 1;
            }
        }
        let mut sent = BTreeMap::new();
        for (what, bytes) in self.network.sent.iter().flat_map(Counts::named) {
            *sent.entry(what).or_insert(0) += bytes;
        }
        record.samples.push(Sample {
            at_ms: self.elapsed().as_ms(),
            stored: record.stored.clone(),
            sent,
            spreading: self.spreading.len() as u64,
            copies,
            promises: self.promises.len() as u64,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_looked_at_was_looked_at_before() {
        assert_eq!((stride(0), stride(OBJECTS_MAX)), (1, 1));
        for objects in 1..10_000 {
            assert_eq!(stride(objects) % stride(objects - 1), 0, "{objects}");
            assert!(objects.div_ceil(stride(objects)) <= OBJECTS_MAX);
        }
    }
}
