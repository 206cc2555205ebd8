//! Says of most blocks that are not here that they are not, without asking the index.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

/// Bits for each block: one in about a hundred that are not here is asked of the index all the same. 10 million blocks take 15 MB, and half
/// as much again to grow into.
const BITS_PER_BLOCK: u64 = 12;
/// Bits set for a block, all in one line.
const BITS_SET: u32 = 6;
/// Words of a line: what a processor fetches from memory at once.
const LINE_WORDS: usize = 8;
/// Bits that name one of a line.
const BIT_BITS: u32 = 9;
/// Blocks that the smallest filter is for.
const BLOCKS_LEAST: u64 = 1 << 16;

/// What stands for a block: bytes of a keyed hash, so that nobody can choose blocks that meet in one place.
pub(super) type Name = [u8; 12];

/// A filter that is there from the moment it has been built, and may be built anew beside its use.
#[derive(Debug, Default)]
pub(super) struct Filter {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Arc<Bits>>,
    /// Takes up whatever comes while it is filled with what is there.
    building: Option<Arc<Bits>>,
}

/// A Bloom filter in lines: one fetch from memory a question.
#[derive(Debug)]
pub(super) struct Bits {
    words: Box<[AtomicU64]>,
    lines: u64,
    /// How many blocks it is for.
    room: u64,
    count: AtomicU64,
}

impl Filter {
    /// Whether the block may be here; always, until a filter has been built.
    pub(super) fn may_hold(&self, name: &Name) -> bool {
        let state = self.state();
        state
            .current
            .as_ref()
            .is_none_or(|bits| bits.may_hold(name))
    }

    /// Notes a block, before the index has it; says whether there are now more than the filter is for.
    pub(super) fn insert(&self, name: &Name) -> bool {
        let state = self.state();
        if let Some(building) = &state.building {
            building.insert(name);
        }
        match &state.current {
            Some(current) => {
                current.insert(name);
                state.building.is_none() && current.is_full()
            }
            None => false,
        }
    }

    /// Begins a filter for so many blocks and half as many more. From now on it takes up what is inserted; the caller adds what is there,
    /// as of a moment when nobody inserts, and ends with [`Filter::finish`].
    pub(super) fn begin(&self, blocks: u64) -> Arc<Bits> {
        let bits = Arc::new(Bits::new(blocks + blocks / 2));
        self.state_mut().building = Some(Arc::clone(&bits));
        bits
    }

    /// Uses the filter that was begun, or forgets it if it could not be filled.
    pub(super) fn finish(&self, bits: &Arc<Bits>, whole: bool) {
        let mut state = self.state_mut();
        let is_latest = state
            .building
            .as_ref()
            .is_some_and(|building| Arc::ptr_eq(building, bits));
        if is_latest {
            let built = state.building.take();
            if whole {
                state.current = built;
            }
        }
    }

    /// Whether one is in use.
    pub(super) fn is_built(&self) -> bool {
        self.state().current.is_some()
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .expect("no thread panics while it holds this lock")
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .expect("no thread panics while it holds this lock")
    }
}

impl Bits {
    fn new(blocks: u64) -> Self {
        let room = blocks.max(BLOCKS_LEAST);
        let line_bits = LINE_WORDS as u64 * 64;
        let lines = (room * BITS_PER_BLOCK).div_ceil(line_bits);
        let words = usize::try_from(lines).unwrap_or(usize::MAX) * LINE_WORDS;
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            lines,
            room,
            count: AtomicU64::new(0),
        }
    }

    pub(super) fn insert(&self, name: &Name) {
        self.count.fetch_add(1, Ordering::Relaxed);
        for (word, bit) in self.places(name) {
            if let Some(word) = self.words.get(word) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    fn may_hold(&self, name: &Name) -> bool {
        self.places(name).all(|(word, bit)| {
            let word = self.words.get(word);
            word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.room
    }

    /// The words and bits of a block.
    fn places(&self, name: &Name) -> impl Iterator<Item = (usize, u64)> {
        let [a, b, c, d, rest @ ..] = *name;
        // Four bytes choose the line, the other eight the bits in it.
        let line = (u64::from(u32::from_le_bytes([a, b, c, d])) * self.lines) >> 32;
        let first = usize::try_from(line).unwrap_or(usize::MAX) * LINE_WORDS;
        let chosen = u64::from_le_bytes(rest);
        (0..BITS_SET).map(move |number| {
            let bit = (chosen >> (number * BIT_BITS)) % (LINE_WORDS as u64 * 64);
            let word = usize::try_from(bit / 64).unwrap_or(0);
            (first + word, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> Name {
        let hash = blake3::hash(&number.to_le_bytes());
        *hash.as_bytes().first_chunk().unwrap()
    }

    #[test]
    fn nothing_that_is_here_is_denied_and_little_else_is_not() {
        let filter = Filter::default();
        assert!(filter.may_hold(&name(0)), "unknown until it is built");
        let bits = filter.begin(100_000);
        for number in 0..50_000 {
            bits.insert(&name(number));
        }
        // What comes meanwhile is in it too.
        for number in 50_000..100_000 {
            assert!(!filter.insert(&name(number)));
        }
        filter.finish(&bits, true);
        assert!((0..100_000).all(|number| filter.may_hold(&name(number))));
        let wrong = (100_000..300_000).filter(|number| filter.may_hold(&name(*number)));
        let wrong = wrong.count();
        assert!(wrong < 2000, "{wrong} of 200,000 asked for nothing");
        let memory = bits.words.len() * 8;
        assert!(memory < 100_000 * 3, "{memory} bytes");
        assert!((100_000..150_001).any(|number| filter.insert(&name(number))));
        let given_up = filter.begin(10);
        filter.finish(&bits, true);
        filter.finish(&given_up, false);
        assert!(filter.may_hold(&name(1)));
    }
}
