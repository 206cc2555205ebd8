//! Memory that is used again: a buffer for each block, fresh from the system, costs more than filling it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Shorter buffers are left to the allocator, which is good at them.
const POOLED_BYTES_MIN: usize = 16 << 10;
/// Buffers that lie idle at most; they are looked through one by one.
const IDLE_MAX: usize = 64;

/// Lends buffers and takes them back when the last reader lets go of them. Cheap to clone; clones share what lies idle.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<Idle>);

#[derive(Debug)]
struct Idle {
    /// Bytes that may lie idle.
    bytes_max: usize,
    state: Mutex<Lying>,
}

#[derive(Debug, Default)]
struct Lying {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer of a given length. What is in it at first is zeros or left from earlier use: whoever lends one fills it.
#[derive(Debug)]
pub struct Buffer {
    /// As long as it was made, so that it need not be zeroed again.
    bytes: Vec<u8>,
    len: usize,
    home: Option<Arc<Idle>>,
}

impl Buffers {
    /// No buffers yet; never keeps more than that many bytes idle.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self(Arc::new(Idle {
            bytes_max: idle_bytes_max,
            state: Mutex::default(),
        }))
    }

    /// A buffer of that length, at most twice as long underneath.
    pub fn lend(&self, len: usize) -> Buffer {
        if len < POOLED_BYTES_MIN {
            return Buffer {
                bytes: vec![0; len],
                len,
                home: None,
            };
        }
        let bytes = self.0.take(len).unwrap_or_else(|| vec![0; rounded(len)]);
        Buffer {
            bytes,
            len,
            home: Some(Arc::clone(&self.0)),
        }
    }
}

/// Lengths that serve their neighbours too: an eighth longer at most, save for what rounding to pages adds.
fn rounded(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(4096);
    len.next_multiple_of(step)
}

impl Idle {
    fn lying(&self) -> MutexGuard<'_, Lying> {
        // Nothing that is done under this lock leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shortest buffer that is long enough, if one is not too long.
    fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut lying = self.lying();
        let fits = |buffer: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&buffer.len());
        let (at, _) = lying
            .buffers
            .iter()
            .enumerate()
            .filter(|(_, buffer)| fits(buffer))
            .min_by_key(|(_, buffer)| buffer.len())?;
        let buffer = lying.buffers.swap_remove(at);
        lying.bytes -= buffer.len();
        Some(buffer)
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut lying = self.lying();
        if lying.buffers.len() < IDLE_MAX && lying.bytes + buffer.len() <= self.bytes_max {
            lying.bytes += buffer.len();
            lying.buffers.push(buffer);
        }
    }
}

impl Buffer {
    /// Hands it on; it returns to where it was lent when the last slice of it is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn last_reader_gives_the_buffer_back() {
        let buffers = Buffers::new(1 << 20);
        let mut buffer = buffers.lend(100_000);
        buffer.fill(7);
        let place = buffer.as_ptr();
        let whole = buffer.freeze();
        let part = whole.slice(1..9);
        drop(whole);
        assert_ne!(buffers.lend(100_000).as_ptr(), place);
        assert_eq!(part, [7; 8][..]);
        drop(part);
        let again = [buffers.lend(99_000), buffers.lend(99_000)];
        assert!(again.iter().any(|buffer| buffer.as_ptr() == place));
        assert!(again.iter().all(|buffer| buffer.len() == 99_000));
    }

    #[test]
    fn short_buffers_are_not_kept() {
        let buffers = Buffers::new(1 << 20);
        drop(buffers.lend(10).freeze());
        assert_eq!(buffers.0.lying().buffers.len(), 0);
    }

    proptest! {
        #[test]
        fn what_lies_idle_is_bounded(lens in proptest::collection::vec(1usize..1 << 21, 1..80), max in 0usize..1 << 22) {
            let buffers = Buffers::new(max);
            let mut lent = Vec::new();
            for len in lens {
                let buffer = buffers.lend(len);
                prop_assert_eq!(buffer.len(), len);
                prop_assert!(buffer.bytes.len() <= len * 2);
                lent.push(buffer.freeze());
                if lent.len() % 3 == 0 {
                    lent.clear();
                }
                let lying = buffers.0.lying();
                prop_assert_eq!(lying.bytes, lying.buffers.iter().map(Vec::len).sum::<usize>());
                prop_assert!(lying.bytes <= max && lying.buffers.len() <= IDLE_MAX);
            }
        }
    }
}
