//! Entries that are known here and whose bytes on disk are damaged.

use std::collections::BTreeSet;

use kith_crdt::chain::Entry;
use kith_object::id::EntryId;
use kith_protocol::gossip;

use super::{Device, Waiting};

impl Device {
    /// Entries whose bytes are damaged here and have not come again from another device.
    pub fn unreadable(&self) -> impl Iterator<Item = &EntryId> {
        self.unreadable.keys()
    }

    /// Entries of the log that a crash cut short within their group, and that were dropped: a log that is written anew leaves them out.
    pub fn cut_short(&self) -> &BTreeSet<EntryId> {
        &self.cut_short
    }

    /// Has entries written to the log again: those of `access` from memory, others once another device has given them.
    ///
    /// Until then they are not in the digest, which covers what is on this disk: so others find that they are lacking, and give them.
    pub(super) fn found_unreadable(&mut self, ids: &[EntryId]) {
        for id in ids {
            // What does not count is nobody's loss, and no other device would give it.
            let Some(hlc) = self.replica.stamp(id) else {
                continue;
            };
            let key = gossip::Key {
                hlc: hlc.0,
                id: id.0,
            };
            let kept = self.access_log.get(id).map(|bytes| Entry::decode(bytes));
            if let Some(Ok(entry)) = kept {
                self.append(&entry);
            } else if self.unreadable.insert(*id, key).is_none() {
                self.hold(Waiting::Lost(key));
            }
        }
    }

    /// Whether that was an entry whose bytes were damaged here; it is on its way to the log then, and into the digest.
    pub(super) fn comes_again(&mut self, entry: &Entry) -> bool {
        let id = entry.id();
        if !self.unreadable.contains_key(&id) || entry.payload().is_none() || !entry.is_signed() {
            return false;
        }
        self.unreadable.remove(&id);
        // It may have been asked to see it again.
        self.replica.restore(entry.clone());
        let (key, _) = self.append(entry);
        self.hold(Waiting::Digest(key, true));
        true
    }
}
