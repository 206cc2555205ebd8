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
    chunks: Vec<Vec<Item>>,
}

impl Sorted {
    fn position(&self, prefix: u32, order: &impl Fn(u32) -> Ordering) -> (usize, usize) {
        let before =
            |item: &Item| item.0.cmp(&prefix).then_with(|| order(item.1)) == Ordering::Less;
        let chunk = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(before));
        let at = self
            .chunks
            .get(chunk)
            .map_or(0, |chunk| chunk.partition_point(before));
        (chunk, at)
    }

    fn at(&self, chunk: usize, at: usize) -> Option<Item> {
        self.chunks.get(chunk)?.get(at).copied()
    }

    /// The row whose key is the sought one: that begins with `prefix` and of which `order` says equal.
    ///
    /// `order` compares the key of the row it is given with the sought key.
    pub(super) fn find(&self, prefix: u32, order: impl Fn(u32) -> Ordering) -> Option<u32> {
        let (chunk, at) = self.position(prefix, &order);
        let (found, row) = self.at(chunk, at)?;
        (found == prefix && order(row) == Ordering::Equal).then_some(row)
    }

    /// Adds a row; false if one of the same key is there.
    pub(super) fn insert(
        &mut self,
        prefix: u32,
        row: u32,
        order: impl Fn(u32) -> Ordering,
    ) -> bool {
        let (index, at) = self.position(prefix, &order);
        if let Some((found, other)) = self.at(index, at)
            && found == prefix
            && order(other) == Ordering::Equal
        {
            return false;
        }
        let past_the_end = index == self.chunks.len();
        let (index, at) = match (past_the_end, self.chunks.last()) {
            (true, Some(last)) if last.len() < CHUNK_MAX => (index - 1, last.len()),
            (true, _) => {
                // Rows that come in order fill their chunks to the brim.
                self.chunks.push(Vec::with_capacity(CHUNK_MAX));
                (index, 0)
            }
            (false, _) => (index, at),
        };
        let chunk = self
            .chunks
            .get_mut(index)
            .expect("an existing chunk was chosen, or one pushed");
        if chunk.len() < CHUNK_MAX {
            chunk.insert(at, (prefix, row));
            return true;
        }
        let mut upper = Vec::with_capacity(CHUNK_MAX);
        upper.extend(chunk.drain(CHUNK_MAX / 2..));
        if at <= CHUNK_MAX / 2 {
            chunk.insert(at, (prefix, row));
        } else {
            upper.insert(at - CHUNK_MAX / 2, (prefix, row));
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
        chunk.remove(at);
        if chunk.is_empty() {
            self.chunks.remove(index);
        } else if chunk.len() < CHUNK_MAX / 4 {
            self.join(index);
        }
        Some(row)
    }

    /// Joins a chunk that has become small with the next, if both fit well into one.
    fn join(&mut self, index: usize) {
        let len = |index: usize| self.chunks.get(index).map_or(CHUNK_MAX, Vec::len);
        if len(index) + len(index + 1) <= CHUNK_MAX / 2 {
            let next = self.chunks.remove(index + 1);
            self.chunks
                .get_mut(index)
                .expect("it was just measured")
                .extend(next);
        }
    }

    /// The rows from the first whose key is not below the sought one, with the first bytes of their keys.
    pub(super) fn from(
        &self,
        prefix: u32,
        order: impl Fn(u32) -> Ordering,
    ) -> impl Iterator<Item = (u32, u32)> {
        let (chunk, at) = self.position(prefix, &order);
        self.chunks
            .iter()
            .skip(chunk)
            .enumerate()
            .flat_map(move |(later, chunk)| {
                chunk.iter().skip(if later == 0 { at } else { 0 }).copied()
            })
    }

    /// All rows in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = u32> {
        self.chunks.iter().flatten().map(|(_, row)| *row)
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
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
            prop_assert!(sorted.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
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
