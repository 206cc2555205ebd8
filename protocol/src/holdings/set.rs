//! A set of tags in buckets with one root.
//!
//! Spec: `protocol/spec/holdings.md`, "Sets".

use std::collections::BTreeMap;

use kith_object::id::PackId;
use kith_object::key::derive;

/// Most tags of one device.
pub const TAGS_MAX: usize = 1 << 22;
/// Most bits that name a bucket.
pub(super) const DEPTH_MAX: u8 = 12;

/// The first eight bytes of a pack's or shard's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HoldingTag(pub u64);

impl HoldingTag {
    /// Of a BLAKE3 name.
    pub fn of(name: &[u8; 32]) -> Self {
        let first = name.first_chunk().copied().unwrap_or_default();
        Self(u64::from_be_bytes(first))
    }
}

impl From<PackId> for HoldingTag {
    fn from(pack: PackId) -> Self {
        Self::of(&pack.0)
    }
}

/// What one device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSet {
    depth: u8,
    buckets: Vec<Vec<HoldingTag>>,
    hashes: Vec<[u8; 16]>,
    len: usize,
}

impl Default for TagSet {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

fn hash_of(bucket: &[HoldingTag]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for tag in bucket {
        hasher.update(&tag.0.to_le_bytes());
    }
    let hash = hasher.finalize();
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The buckets' bits for so many tags.
pub(super) fn depth_for(len: usize) -> u8 {
    let fits = |depth: &u8| (2_usize << (2 * depth)) >= len;
    (0..DEPTH_MAX).find(fits).unwrap_or(DEPTH_MAX)
}

impl TagSet {
    /// Of any tags.
    pub fn of(mut tags: Vec<HoldingTag>) -> Self {
        tags.sort_unstable();
        tags.dedup();
        let depth = depth_for(tags.len());
        let mut buckets = vec![Vec::new(); 1 << depth];
        let len = tags.len();
        for tag in tags {
            if let Some(bucket) = buckets.get_mut(place(depth, tag)) {
                bucket.push(tag);
            }
        }
        Self::from_buckets(depth, buckets, len)
    }

    fn from_buckets(depth: u8, mut buckets: Vec<Vec<HoldingTag>>, len: usize) -> Self {
        for bucket in &mut buckets {
            bucket.shrink_to_fit();
        }
        let hashes = buckets.iter().map(|bucket| hash_of(bucket)).collect();
        Self {
            depth,
            buckets,
            hashes,
            len,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it has that tag.
    pub fn contains(&self, tag: HoldingTag) -> bool {
        let bucket = self.buckets.get(place(self.depth, tag));
        bucket.is_some_and(|bucket| bucket.binary_search(&tag).is_ok())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = HoldingTag> {
        self.buckets.iter().flatten().copied()
    }

    /// Bits that name a bucket.
    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    pub(super) fn hashes(&self) -> &[[u8; 16]] {
        &self.hashes
    }

    pub(super) fn buckets(&self) -> &[Vec<HoldingTag>] {
        &self.buckets
    }

    /// What the device signs.
    pub fn root(&self) -> [u8; 32] {
        derive("kith holdings root 1", self.hashes.as_flattened())
    }

    /// Adds tags and removes tags; whether anything changed.
    pub fn change(&mut self, added: &[HoldingTag], removed: &[HoldingTag]) -> bool {
        let mut touched = Vec::new();
        for (tag, adds) in added
            .iter()
            .map(|tag| (*tag, true))
            .chain(removed.iter().map(|tag| (*tag, false)))
        {
            let at = place(self.depth, tag);
            let Some(bucket) = self.buckets.get_mut(at) else {
                continue;
            };
            match (bucket.binary_search(&tag), adds) {
                (Err(gap), true) => {
                    bucket.insert(gap, tag);
                    self.len += 1;
                    touched.push(at);
                }
                (Ok(found), false) => {
                    bucket.remove(found);
                    self.len -= 1;
                    touched.push(at);
                }
                _ => {}
            }
        }
        if touched.is_empty() {
            return false;
        }
        if depth_for(self.len) != self.depth {
            *self = Self::of(self.iter().collect());
            return true;
        }
        touched.sort_unstable();
        touched.dedup();
        for at in touched {
            if let (Some(bucket), Some(hash)) = (self.buckets.get(at), self.hashes.get_mut(at)) {
                *hash = hash_of(bucket);
            }
        }
        true
    }

    /// The set with other buckets in some places, or, with another depth, made of these alone. `None` if a tag stands in a bucket that is not its own.
    pub(super) fn with(&self, depth: u8, given: BTreeMap<u16, Vec<HoldingTag>>) -> Option<Self> {
        let mut buckets = if depth == self.depth {
            self.buckets.clone()
        } else {
            vec![Vec::new(); 1 << depth.min(DEPTH_MAX)]
        };
        for (at, tags) in given {
            let at = usize::from(at);
            let right = tags.iter().all(|tag| place(depth, *tag) == at)
                && tags.is_sorted_by(|one, other| one < other);
            *buckets.get_mut(at).filter(|_| right)? = tags;
        }
        let len = buckets.iter().map(Vec::len).sum();
        Some(Self::from_buckets(depth, buckets, len))
    }

    /// Tags that are in the other and not here, and the reverse.
    pub(super) fn difference(&self, other: &Self) -> (Vec<HoldingTag>, Vec<HoldingTag>) {
        if self.depth == other.depth {
            let differing = self.hashes.iter().zip(&other.hashes).enumerate();
            let differing = differing.filter(|(_, (one, other))| one != other);
            let (mut added, mut removed) = (Vec::new(), Vec::new());
            for (at, _) in differing {
                let (Some(here), Some(there)) = (self.buckets.get(at), other.buckets.get(at))
                else {
                    continue;
                };
                added.extend(there.iter().filter(|tag| here.binary_search(tag).is_err()));
                removed.extend(here.iter().filter(|tag| there.binary_search(tag).is_err()));
            }
            return (added, removed);
        }
        let added = other.iter().filter(|tag| !self.contains(*tag));
        let removed = self.iter().filter(|tag| !other.contains(*tag));
        (added.collect(), removed.collect())
    }
}

fn place(depth: u8, tag: HoldingTag) -> usize {
    let bits = tag.0.checked_shr(64 - u32::from(depth)).unwrap_or(0);
    usize::try_from(bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tags(numbers: &[u64]) -> Vec<HoldingTag> {
        let spread = |n: &u64| HoldingTag(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        numbers.iter().map(spread).collect()
    }

    #[test]
    fn buckets_grow_with_the_root_of_their_number() {
        let depths = [0, 2, 3, 8, 9, 32, 33, 100, 1 << 20, TAGS_MAX].map(depth_for);
        assert_eq!(depths, [0, 0, 1, 1, 2, 2, 3, 3, 10, 11]);
        let set = TagSet::of(tags(&(0..1000).collect::<Vec<_>>()));
        assert_eq!((set.len(), set.depth(), set.buckets().len()), (1000, 5, 32));
    }

    proptest! {
        #[test]
        fn changed_sets_are_those_made_at_once(
            first in prop::collection::vec(0u64..200, 0..120),
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0u64..200, 0..40)), 0..6),
        ) {
            let mut set = TagSet::of(tags(&first));
            let mut model: std::collections::BTreeSet<HoldingTag> = tags(&first).into_iter().collect();
            for (adds, numbers) in steps {
                let before = set.clone();
                let some = tags(&numbers);
                let changed = if adds { set.change(&some, &[]) } else { set.change(&[], &some) };
                for tag in &some {
                    if adds { model.insert(*tag); } else { model.remove(tag); }
                }
                prop_assert_eq!(changed, before != set);
                prop_assert_eq!(&set, &TagSet::of(model.iter().copied().collect()));
                let (added, removed) = before.difference(&set);
                let mut again = before.clone();
                again.change(&added, &removed);
                prop_assert_eq!(&again, &set);
                // What differs, put where it belongs, makes the one of the other.
                let given = set.buckets().iter().enumerate()
                    .filter(|(at, _)| before.depth() != set.depth() || before.hashes()[*at] != set.hashes()[*at])
                    .map(|(at, bucket)| (at as u16, bucket.clone()))
                    .collect();
                prop_assert_eq!(before.with(set.depth(), given), Some(set.clone()));
            }
            for n in 0..200 {
                let tag = tags(&[n])[0];
                prop_assert_eq!(set.contains(tag), model.contains(&tag));
            }
        }
    }
}
