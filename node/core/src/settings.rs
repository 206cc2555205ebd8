//! What is set by records, of which the latest by somebody who may set it holds.
//!
//! Spec: `protocol/spec/upkeep.md`, "Records".

use std::collections::BTreeMap;

use kith_object::id::{DeviceId, EntryId};
use kith_object::time::Hlc;

/// All that was set, by entry and by what it was set for.
///
/// All of it, though one holds: which one that is changes when an entry ceases to count or an author is made an admin, and a record once let go would have to
/// be read from the log again. An entry takes some hundred bytes here for each thing it sets, which is in proportion to what the replica holds of it; so what
/// bounds entries bounds this too.
#[derive(Debug)]
pub(crate) struct Settings<K, T> {
    all: BTreeMap<(EntryId, K), Setting<T>>,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) hlc: Hlc,
    /// Its place in its entry.
    pub(crate) index: u32,
    pub(crate) author: DeviceId,
    pub(crate) value: T,
}

impl<K, T> Default for Settings<K, T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Copy + Default, T> Settings<K, T> {
    /// Takes in a record that counts. Of one entry and thing the last holds.
    pub(crate) fn set(&mut self, entry: EntryId, key: K, setting: Setting<T>) {
        match self.all.get(&(entry, key)) {
            Some(last) if last.index >= setting.index => {}
            _ => {
                self.all.insert((entry, key), setting);
            }
        }
    }

    /// Takes back what an entry set; whether it had set anything.
    pub(crate) fn remove(&mut self, entry: &EntryId) -> bool {
        let from = (*entry, K::default())..;
        let of_entry = self.all.range(from).take_while(|((of, _), _)| of == entry);
        let gone: Vec<(EntryId, K)> = of_entry.map(|(key, _)| *key).collect();
        for key in &gone {
            self.all.remove(key);
        }
        !gone.is_empty()
    }

    /// What holds for each thing: the record with the greatest stamp and entry among those by somebody who may set it.
    pub(crate) fn holding(&self, may: impl Fn(&K, &DeviceId) -> bool) -> BTreeMap<K, &Setting<T>> {
        let mut holding: BTreeMap<K, (&EntryId, &Setting<T>)> = BTreeMap::new();
        for ((entry, key), setting) in &self.all {
            if !may(key, &setting.author) {
                continue;
            }
            let best = holding.entry(*key).or_insert((entry, setting));
            if (best.1.hlc, best.0) < (setting.hlc, entry) {
                *best = (entry, setting);
            }
        }
        let only = |(key, (_, setting))| (key, setting);
        holding.into_iter().map(only).collect()
    }

    /// All that was set.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.all.values().map(|setting| &setting.value)
    }
}
