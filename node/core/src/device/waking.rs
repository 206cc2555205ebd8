//! A device wakes from its log, record by record, so that it never holds the whole log.

use bytes::Bytes;
use kith_crdt::chain::{DocumentKind, Entry};
use kith_object::id::EntryId;
use kith_object::time::Time;
use kith_protocol::gossip;

use super::{Device, Setup};
use crate::group::Groups;

/// How many entries are taken in at once: what they come to is worked out once for all of them.
const BATCH: usize = 256;

/// A device that is reading its log.
///
/// Spec: `protocol/spec/device.md`, "Waking".
pub struct Waking {
    device: Device,
    groups: Groups,
    /// Entries that found no place: they wait for others, or for a key.
    homeless: Vec<EntryId>,
    batch: Vec<Entry>,
}

impl Waking {
    /// A device that knows nothing yet.
    pub fn new(now: Time, setup: Setup) -> Self {
        Self {
            device: Device::asleep(now, setup),
            groups: Groups::default(),
            homeless: Vec::new(),
            batch: Vec::new(),
        }
    }

    /// The next record of the log; returns its id if it is an entry. What is damaged or does not belong is skipped; it comes back from others.
    pub fn record(&mut self, record: &[u8]) -> Option<EntryId> {
        match self.groups.record(record) {
            Ok((entries, id)) => {
                for entry in entries {
                    self.take(entry);
                }
                id
            }
            Err(error) => {
                tracing::debug!(%error, "record of the log skipped");
                None
            }
        }
    }

    /// An entry that a damaged log lacks and that was kept elsewhere.
    pub fn recover(&mut self, entry: Entry) {
        self.take(entry);
    }

    /// The log is read; what has to be looked at again is read by `read`.
    pub fn finish(
        mut self,
        log_is_damaged: bool,
        mut read: impl FnMut(&EntryId) -> Option<Bytes>,
    ) -> Device {
        let mut entry = |id: &EntryId| {
            let bytes = read(id)?;
            Entry::decode(&bytes).ok()
        };
        let unfinished = std::mem::take(&mut self.groups).unfinished();
        if log_is_damaged {
            for id in &unfinished {
                if let Some(entry) = entry(id) {
                    self.take(entry);
                }
            }
        }
        self.draw();
        // One damaged record makes all that follow it in its chain wait; more than may wait are fed again once what came later has healed it.
        let mut homeless = std::mem::take(&mut self.homeless);
        loop {
            let before = homeless.len();
            homeless.retain(|id| {
                if self.device.replica.contains(id) {
                    return false;
                }
                if let Some(entry) = entry(id) {
                    self.device.replica.restore(entry);
                }
                !self.device.replica.contains(id)
            });
            if homeless.is_empty() || homeless.len() == before {
                break;
            }
        }
        loop {
            let replay = self.device.replica.take_replay();
            if replay.is_empty() {
                break;
            }
            for batch in replay.chunks(BATCH) {
                self.device
                    .replica
                    .restore_all(batch.iter().filter_map(&mut entry));
                self.draw();
            }
        }
        self.draw();
        let dropped = unfinished
            .into_iter()
            .filter(|id| !log_is_damaged && !self.device.replica.contains(id));
        self.device.cut_short = dropped.collect();
        self.device.draw_consequences();
        self.device.arrange();
        self.device.settle();
        self.device
    }

    fn take(&mut self, entry: Entry) {
        let id = entry.id();
        if entry.header().document == DocumentKind::Access {
            let bytes = Bytes::from(entry.encode());
            self.device.access_log.insert(id, bytes);
        }
        self.batch.push(entry);
        if self.batch.len() >= BATCH {
            self.draw();
        }
    }

    /// Takes in what has gathered, and moves what comes of it to where it is kept. All of it is on disk already.
    fn draw(&mut self) {
        let device = &mut self.device;
        let ids: Vec<EntryId> = self.batch.iter().map(Entry::id).collect();
        device.replica.restore_all(self.batch.drain(..));
        let homeless = ids.into_iter().filter(|id| !device.replica.contains(id));
        self.homeless.extend(homeless);
        for change in device.replica.take_digest_changes() {
            let key = gossip::Key {
                hlc: change.hlc.0,
                id: change.id.0,
            };
            let input = if change.added {
                gossip::Input::Added(key)
            } else {
                gossip::Input::Removed(key)
            };
            device.gossip.handle(device.now, input);
        }
        device.grow_tree();
        device.keep_up();
    }
}
