//! A sorted list of row numbers in small chunks: what a `BTreeSet` would be if it could ask the rows for their keys.
//!
//! Eight bytes an item: the first four of its key, and the row. Items whose first four bytes agree are told apart by asking the rows,
//! through a closure; so nobody can slow it down by choosing keys that agree.

use std::cmp::Ordering;

/// Items in a full chunk; one chunk is a page of memory.
const CHUNK_MAX: usize = 512;

/// First bytes of the key, and the row.
type Item = (u32, u32);

/// Row numbers, sorted by keys that stand in the rows.
#[derive(Default)]
pub(super) struct Sorted {
    /// None is empty; each is sorted, and all of it comes before the next.
    chunks: Vec<Chunk>,
}

struct Chunk {
    /// The last of the items: here too, so that a search touches no other chunk than the one it ends in.
    last: Item,
    items: Vec<Item>,
}

impl Chunk {
    /// A chunk of these items, with room for as many as it may take; `None` of none.
    fn of(items: impl IntoIterator<Item = Item>) -> Option<Self> {
        let mut all = Vec::with_capacity(CHUNK_MAX);
        all.extend(items);
        Some(Self {
            last: *all.last()?,
            items: all,
        })
    }

    fn insert(&mut self, at: usize, item: Item) {
        if at == self.items.len() {
            self.last = item;
        }
        self.items.insert(at, item);
    }
}

impl Sorted {
    /// The chunk and the place in it of the first item that is not below the sought one.
    fn position(&self, prefix: u32, order: &impl Fn(u32) -> Ordering) -> (usize, usize) {
        let before =
            |item: &Item| item.0.cmp(&prefix).then_with(|| order(item.1)) == Ordering::Less;
        let index = self.chunks.partition_point(|chunk| before(&chunk.last));
        let chunk = self.chunks.get(index);
        (
            index,
            chunk.map_or(0, |chunk| chunk.items.partition_point(before)),
        )
    }

    fn at(&self, index: usize, at: usize) -> Option<Item> {
        self.chunks.get(index)?.items.get(at).copied()
    }

    /// The row whose key is the sought one: that begins with `prefix` and of which `order` says equal.
    ///
    /// `order` compares the key of the row it is given with the sought key.
    pub(super) fn find(&self, prefix: u32, order: impl Fn(u32) -> Ordering) -> Option<u32> {
        let (index, at) = self.position(prefix, &order);
        let (found, row) = self.at(index, at)?;
        (found == prefix && order(row) == Ordering::Equal).then_some(row)
    }

    /// Adds a row; false if one of the same key is there.
    pub(super) fn insert(
        &mut self,
        prefix: u32,
        row: u32,
        order: impl Fn(u32) -> Ordering,
    ) -> bool {
        let (mut index, mut at) = self.position(prefix, &order);
        if let Some((found, other)) = self.at(index, at)
            && found == prefix
            && order(other) == Ordering::Equal
        {
            return false;
        }
        let item = (prefix, row);
        if index == self.chunks.len() {
            // Rows that come in order fill their chunks to the brim.
            match self.chunks.last() {
                Some(last) if last.items.len() < CHUNK_MAX => {
                    (index, at) = (index - 1, last.items.len())
                }
                _ => {
                    self.chunks.extend(Chunk::of([item]));
                    return true;
                }
            }
        }
        let chunk = self
            .chunks
            .get_mut(index)
            .expect("if there was none, one was made above");
        if chunk.items.len() < CHUNK_MAX {
            chunk.insert(at, item);
            return true;
        }
        let mut upper =
            Chunk::of(chunk.items.drain(CHUNK_MAX / 2..)).expect("half of a full chunk");
        chunk.last = *chunk.items.last().expect("the other half");
        if at <= CHUNK_MAX / 2 {
            chunk.insert(at, item);
        } else {
            upper.insert(at - CHUNK_MAX / 2, item);
        }
        self.chunks.insert(index + 1, upper);
        true
    }

    /// Removes the row of the sought key, and says which it was.
    pub(super) fn remove(&mut self, prefix: u32, order: impl Fn(u32) -> Ordering) -> Option<u32> {
        let (index, at) = self.position(prefix, &order);
        let (found, row) = self.at(index, at)?;
        if found != prefix || order(row) != Ordering::Equal {
            return None;
        }
        let chunk = self.chunks.get_mut(index).expect("the row was found in it");
        chunk.items.remove(at);
        match chunk.items.last() {
            Some(last) => {
                chunk.last = *last;
                self.join(index);
            }
            None => {
                self.chunks.remove(index);
            }
        }
        Some(row)
    }

    /// Joins a chunk that has become small with the next, if both fit well into one.
    fn join(&mut self, index: usize) {
        let len = |index: usize| {
            self.chunks
                .get(index)
                .map_or(CHUNK_MAX, |chunk| chunk.items.len())
        };
        if len(index) < CHUNK_MAX / 4 && len(index) + len(index + 1) <= CHUNK_MAX / 2 {
            let next = self.chunks.remove(index + 1);
            let chunk = self.chunks.get_mut(index).expect("it was just measured");
            chunk.last = next.last;
            chunk.items.extend(next.items);
        }
    }

    /// The rows from the first whose key is not below the sought one, with the first bytes of their keys.
    pub(super) fn from(
        &self,
        prefix: u32,
        order: impl Fn(u32) -> Ordering,
    ) -> impl Iterator<Item = (u32, u32)> {
        let (index, at) = self.position(prefix, &order);
        let chunks = self.chunks.iter().skip(index).enumerate();
        chunks.flat_map(move |(later, chunk)| {
            let skipped = if later == 0 { at } else { 0 };
            chunk.items.iter().skip(skipped).copied()
        })
    }

    /// All rows in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = u32> {
        let items = self.chunks.iter().flat_map(|chunk| &chunk.items);
        items.map(|(_, row)| *row)
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.items.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Rows are keys here: the prefix is the key's upper part.
    fn prefix(row: u32) -> u32 {
        row / 64
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((any::<bool>(), 0_u32..4000), 0..4000)) {
            let mut sorted = Sorted::default();
            let mut set = BTreeSet::new();
            for (add, row) in steps {
                let order = |other: u32| other.cmp(&row);
                if add {
                    prop_assert_eq!(sorted.insert(prefix(row), row, order), set.insert(row));
                } else {
                    prop_assert_eq!(sorted.remove(prefix(row), order).is_some(), set.remove(&row));
                }
                prop_assert_eq!(sorted.find(prefix(row), order).is_some(), add);
            }
            prop_assert_eq!(sorted.len(), set.len());
            prop_assert!(sorted.rows().eq(set.iter().copied()));
            for chunk in &sorted.chunks {
                prop_assert_eq!(Some(&chunk.last), chunk.items.last());
                prop_assert!(chunk.items.len() <= CHUNK_MAX);
            }
            let from: Vec<u32> = sorted.from(prefix(2000), |other| other.cmp(&2000)).map(|(_, row)| row).collect();
            prop_assert!(from.iter().copied().eq(set.range(2000..).copied()));
        }
    }

    #[test]
    fn many_rows_in_order_fill_their_chunks() {
        let mut sorted = Sorted::default();
        for row in 0..100_000_u32 {
            assert!(sorted.insert(prefix(row), row, |other| other.cmp(&row)));
        }
        assert_eq!(sorted.chunks.len(), 100_000_usize.div_ceil(CHUNK_MAX));
        for row in (0..100_000_u32).rev() {
            assert_eq!(
                sorted.remove(prefix(row), |other| other.cmp(&row)),
                Some(row)
            );
        }
        assert_eq!(sorted.len(), 0);
        assert!(sorted.chunks.is_empty());
    }
}
