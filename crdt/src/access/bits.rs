//! Sets of small numbers.

/// A growing set of numbers, one bit each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// Adds a number; `true` if it is new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let (word, mask) = place(number);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let Some(slot) = self.0.get_mut(word) else {
            return false;
        };
        let new = *slot & mask == 0;
        *slot |= mask;
        new
    }

    pub(crate) fn remove(&mut self, number: u32) {
        let (word, mask) = place(number);
        if let Some(slot) = self.0.get_mut(word) {
            *slot &= !mask;
        }
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        let (word, mask) = place(number);
        self.0.get(word).is_some_and(|slot| slot & mask != 0)
    }

    /// Adds all of another set.
    pub(crate) fn union(&mut self, other: &Bits) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (slot, add) in self.0.iter_mut().zip(&other.0) {
            *slot |= add;
        }
    }

    /// How many numbers both sets hold.
    pub(crate) fn common(&self, other: &Bits) -> u32 {
        let words = self.0.iter().zip(&other.0);
        words.map(|(one, other)| (one & other).count_ones()).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).step_by(64).zip(&self.0).flat_map(|(base, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(base + bit)
            })
        })
    }
}

fn place(number: u32) -> (usize, u64) {
    let word = usize::try_from(number / 64).expect("a usize has 32 bits at least");
    (word, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let numbers = [0, 63, 64, 65, 1000, 4_000];
        let mut bits = Bits::default();
        assert!(numbers.iter().all(|number| bits.insert(*number)));
        assert!(!bits.insert(64));
        assert!(bits.iter().eq(numbers));
        assert!(bits.contains(1000) && !bits.contains(999) && !bits.contains(1 << 20));
        let mut other = Bits::default();
        other.insert(7);
        other.union(&bits);
        assert_eq!(other.iter().count(), numbers.len() + 1);
        assert_eq!((other.common(&bits), bits.common(&other)), (6, 6));
    }
}
