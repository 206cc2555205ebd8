//! Entries of the log that belong together: all of them or none.
//!
//! Spec: `protocol/spec/device.md`, "Groups".

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_crdt::chain::{Entry, EntryError};
use kith_object::id::EntryId;

/// What a mark begins with: no entry does, since its first byte is no version of one.
const MARK: &[u8; 16] = b"\xffkith group 1\0\0\0";

/// The mark before a group of those entries.
pub(crate) fn mark(entries: &[Entry]) -> Bytes {
    let mut mark = MARK.to_vec();
    for entry in entries {
        mark.extend_from_slice(&entry.id().0);
    }
    mark.into()
}

fn marked(record: &[u8]) -> Option<BTreeSet<EntryId>> {
    let ids = record.strip_prefix(MARK)?.chunks_exact(32);
    Some(
        ids.filter_map(|id| Some(EntryId(id.try_into().ok()?)))
            .collect(),
    )
}

/// Reads a log in order and holds each group back until it is whole.
///
/// The entries of a group follow their mark directly. Those of one that a crash cut short come out at the end, apart: whether they count depends on
/// whether the log is damaged, since in a damaged one what is missing may have been acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// What the group under way still lacks.
    lacking: BTreeSet<EntryId>,
    /// What of it has come.
    held: Vec<Entry>,
    /// Entries of groups that were cut short.
    unfinished: Vec<EntryId>,
}

impl Groups {
    /// The next record of the log: the entries that stand as written now, and the id of the record if it is an entry.
    ///
    /// # Errors
    /// The record is neither mark nor entry.
    pub(crate) fn record(
        &mut self,
        record: &[u8],
    ) -> Result<(Vec<Entry>, Option<EntryId>), EntryError> {
        if let Some(group) = marked(record) {
            self.cut_short();
            self.lacking = group;
            return Ok((Vec::new(), None));
        }
        let entry = match Entry::decode(record) {
            Ok(entry) => entry,
            Err(error) => {
                self.cut_short();
                return Err(error);
            }
        };
        let id = entry.id();
        if self.lacking.remove(&id) {
            self.held.push(entry);
            let whole = if self.lacking.is_empty() {
                std::mem::take(&mut self.held)
            } else {
                Vec::new()
            };
            return Ok((whole, Some(id)));
        }
        self.cut_short();
        Ok((vec![entry], Some(id)))
    }

    /// The entries of groups that were cut short.
    pub(crate) fn unfinished(mut self) -> Vec<EntryId> {
        self.cut_short();
        self.unfinished
    }

    fn cut_short(&mut self) {
        self.lacking.clear();
        self.unfinished
            .extend(self.held.drain(..).map(|entry| entry.id()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_crdt::replica::Replica;
    use kith_object::key::{DeviceKeys, Rng, Words};
    use kith_object::time::Time;

    #[test]
    fn group_that_was_cut_short_is_told_apart() {
        let mut rng = Rng::from_seed([1; 32]);
        let (root, keys) = (
            Words::generate(&mut rng).root(),
            DeviceKeys::generate(&mut rng),
        );
        let (mut replica, first) = Replica::create(&root, &keys, "one", Time(1), &mut rng).unwrap();
        let group: Vec<Entry> = (0..3)
            .flat_map(|n| {
                replica
                    .names(&keys, Time(2), &mut rng, vec![vec![n; 9]])
                    .unwrap()
            })
            .collect();
        let bytes = |entries: &[Entry]| -> Vec<Bytes> {
            entries.iter().map(|entry| entry.encode().into()).collect()
        };
        let read = |log: &[Bytes]| {
            let mut groups = Groups::default();
            let mut sound = Vec::new();
            for record in log {
                sound.extend(groups.record(record).unwrap().0);
            }
            (sound.len(), groups.unfinished().len())
        };
        let mut whole = bytes(&first);
        whole.push(mark(&group));
        whole.extend(bytes(&group));
        assert_eq!(read(&whole), (first.len() + 3, 0));
        for cut in 1..=3 {
            let log = &whole[..whole.len() - cut];
            assert_eq!(read(log), (first.len(), 3 - cut), "{cut}");
        }
        // What is written after the restart is not taken for the rest of the group.
        let mut later = whole[..whole.len() - 1].to_vec();
        later.extend(bytes(
            &replica
                .names(&keys, Time(3), &mut rng, vec![vec![7; 9]])
                .unwrap(),
        ));
        assert_eq!(read(&later), (first.len() + 1, 2));
        // Nor is a second group taken for the rest of the first.
        let mut twice = whole[..whole.len() - 1].to_vec();
        twice.extend_from_slice(&whole[first.len()..]);
        assert_eq!(read(&twice), (first.len() + 3, 2));
        let mut groups = Groups::default();
        assert!(groups.record(b"no entry").is_err());
    }
}
