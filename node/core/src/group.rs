//! Entries of the log that belong together: all of them or none.
//!
//! Spec: `protocol/spec/device.md`, "Groups".

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_crdt::chain::Entry;
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

/// The entries of a log that count as written: without marks, and without groups that a crash cut short.
///
/// In a log that is damaged nothing is dropped: what is missing there may have been acknowledged.
pub(crate) fn finished(log: &[Bytes], damaged: bool) -> Vec<&Bytes> {
    let groups: Vec<BTreeSet<EntryId>> = log.iter().filter_map(|record| marked(record)).collect();
    let mut dropped = BTreeSet::new();
    if !groups.is_empty() && !damaged {
        let here: BTreeSet<EntryId> = log
            .iter()
            .filter_map(|record| Some(Entry::decode(record).ok()?.id()))
            .collect();
        let unfinished = groups.into_iter().filter(|group| !group.is_subset(&here));
        dropped = unfinished.flatten().collect();
    }
    let is_dropped = |record: &Bytes| {
        !dropped.is_empty()
            && Entry::decode(record).is_ok_and(|entry| dropped.contains(&entry.id()))
    };
    log.iter()
        .filter(|record| marked(record).is_none() && !is_dropped(record))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_crdt::replica::Replica;
    use kith_object::key::{DeviceKeys, Rng, Words};
    use kith_object::time::Time;

    #[test]
    fn group_that_was_cut_short_is_dropped_unless_the_log_is_damaged() {
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
        let mut whole = bytes(&first);
        whole.push(mark(&group));
        whole.extend(bytes(&group));
        assert_eq!(finished(&whole, false).len(), first.len() + 3);
        for cut in 1..=3 {
            let log = &whole[..whole.len() - cut];
            assert_eq!(finished(log, false).len(), first.len(), "{cut}");
            assert_eq!(finished(log, true).len(), first.len() + 3 - cut, "{cut}");
        }
        // What is written after the restart is not taken for the rest of the group.
        let mut later = whole[..whole.len() - 1].to_vec();
        later.extend(bytes(
            &replica
                .names(&keys, Time(3), &mut rng, vec![vec![7; 9]])
                .unwrap(),
        ));
        assert_eq!(finished(&later, false).len(), first.len() + 1);
    }
}
