//! Cuts objects into chunks where their content says so, so that an edit changes few chunks and equal stretches give equal ones.

use std::fmt;

use gearhash::{Hasher, Table};
use zeroize::Zeroize;

use crate::key::Secret;
use crate::seal::DATA_BYTES_MAX;

/// Lengths that a chunker aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// No chunk but an object's last is shorter. At least [`WINDOW_BYTES`].
    pub min: usize,
    /// Where cutting becomes easy: most chunks end within half of this after it. A power of two.
    pub mean: usize,
    /// No chunk is longer.
    pub max: usize,
}

impl Profile {
    /// The profile of a space that has chosen none.
    ///
    /// 32 KiB, 128 KiB and 512 KiB less the 6 bytes of a block's header: a chunk cut at the maximum then pads to nothing. Smaller chunks find few more
    /// duplicates (three points of a hundred between two releases of a toolchain at a fourth of the size) and cost four times the index.
    pub const DEFAULT: Profile = Profile {
        min: 32 * 1024,
        mean: 128 * 1024,
        max: 512 * 1024 - 6,
    };
}

/// How many bytes before a place decide whether a chunk ends there.
pub const WINDOW_BYTES: usize = 64;

/// Mask bits more before the mean, and fewer after it: "level 2" of FastCDC's normalised chunking.
const NORMALISATION: u32 = 2;

/// Finds chunk boundaries, by a rolling hash whose table only the space's members know.
///
/// Without the table, the lengths of the chunks do not tell which known file they come from.
///
/// Spec: `protocol/spec/chunk.md`, "Boundaries". Method: FastCDC 2020 with normalised cutting; the scan is `gearhash`.
pub struct Chunker {
    gear: Box<Table>,
    profile: Profile,
    /// At and before the mean.
    hard: u64,
    /// After it.
    easy: u64,
}

impl Chunker {
    /// A chunker for objects sealed under that dedup secret.
    ///
    /// # Panics
    /// If the profile is not `WINDOW_BYTES <= min < mean < max <= DATA_BYTES_MAX` with a power of two as mean.
    pub fn new(dedup: &Secret, profile: Profile) -> Self {
        let Profile { min, mean, max } = profile;
        assert!(
            WINDOW_BYTES <= min
                && min < mean
                && mean < max
                && max <= DATA_BYTES_MAX
                && mean.is_power_of_two(),
            "chunk lengths out of order: {profile:?}"
        );
        let bits = mean.ilog2();
        Self {
            gear: gear(dedup),
            profile,
            hard: high_bits(bits + NORMALISATION),
            easy: high_bits(bits - NORMALISATION),
        }
    }

    /// The lengths aimed at.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The length of the chunk that `buf` begins with; `None` if that takes more bytes, or if there are none.
    ///
    /// `last` says that nothing follows `buf` in the object. With [`Profile::max`] bytes at hand the answer is never `None`.
    pub fn cut(&self, buf: &[u8], last: bool) -> Option<usize> {
        self.cut_from(buf, 0, last)
    }

    /// [`cut`](Self::cut), knowing that no chunk ends within the first `scanned` bytes, because an earlier call with just those said `None`.
    pub fn cut_from(&self, buf: &[u8], scanned: usize, last: bool) -> Option<usize> {
        let Profile { min, mean, max } = self.profile;
        let end = buf.len().min(max);
        let first = min.max(scanned.saturating_add(1));
        self.find(buf, first, end.min(mean), self.hard)
            .or_else(|| self.find(buf, first.max(mean + 1), end, self.easy))
            .or_else(|| (end == max).then_some(max))
            .or_else(|| (last && end > 0).then_some(end))
    }

    /// The least length from `first` to `end`, both included, where the hash has no bit of the mask.
    fn find(&self, buf: &[u8], first: usize, end: usize, mask: u64) -> Option<usize> {
        if first > end {
            return None;
        }
        let mut hasher = Hasher::new(&self.gear);
        hasher.update(buf.get(first - WINDOW_BYTES..first - 1)?);
        let offset = hasher.next_match(buf.get(first - 1..end)?, mask)?;
        Some(first - 1 + offset)
    }
}

impl Drop for Chunker {
    fn drop(&mut self) {
        self.gear.zeroize();
    }
}

impl fmt::Debug for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunker")
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

/// One number per byte value, all from the dedup secret.
///
/// Spec: `protocol/spec/chunk.md`, "Gear table".
fn gear(dedup: &Secret) -> Box<Table> {
    let key = dedup.derive("kith gear 1");
    let mut bytes = [0; 256 * 8];
    blake3::Hasher::new_keyed(key.expose())
        .finalize_xof()
        .fill(&mut bytes);
    let mut table = Box::new([0; 256]);
    for (entry, number) in table.iter_mut().zip(bytes.as_chunks().0) {
        *entry = u64::from_le_bytes(*number);
    }
    bytes.zeroize();
    table
}

/// A mask of that many high bits: those that depend on the whole window.
fn high_bits(count: u32) -> u64 {
    !(u64::MAX >> count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::seal::vectors::{array, bytes, hex, load, noise};

    const SMALL: Profile = Profile {
        min: 64,
        mean: 256,
        max: 1000,
    };

    fn chunker(secret: u8, profile: Profile) -> Chunker {
        Chunker::new(&Secret::new([secret; 32]), profile)
    }

    fn lengths(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while let Some(len) = chunker.cut(data, true) {
            lengths.push(len);
            data = &data[len..];
        }
        assert!(data.is_empty());
        lengths
    }

    /// The rule as the spec has it, byte by byte.
    fn plain_cut(chunker: &Chunker, data: &[u8]) -> usize {
        let Profile { min, mean, max } = chunker.profile;
        for len in min..=data.len().min(max) {
            let window = &data[len - WINDOW_BYTES..len];
            let hash = window.iter().fold(0u64, |hash, byte| {
                (hash << 1).wrapping_add(chunker.gear[usize::from(*byte)])
            });
            if hash
                & if len <= mean {
                    chunker.hard
                } else {
                    chunker.easy
                }
                == 0
            {
                return len;
            }
        }
        data.len().min(max)
    }

    #[test]
    fn inserted_byte_changes_few_chunks() {
        let chunker = chunker(1, SMALL);
        let data = noise(1, 100_000);
        let mut edited = data.clone();
        edited.insert(33_333, 7);
        let chunks = |data: &[u8]| {
            let mut start = 0;
            let cut = |len| {
                start += len;
                data[start - len..start].to_vec()
            };
            lengths(&chunker, data)
                .into_iter()
                .map(cut)
                .collect::<BTreeSet<_>>()
        };
        let (before, after) = (chunks(&data), chunks(&edited));
        assert!(after.difference(&before).count() <= 3);
        assert!(before.len() > 200);
    }

    #[test]
    fn other_secret_cuts_elsewhere() {
        let data = noise(1, 50_000);
        assert_ne!(
            lengths(&chunker(1, SMALL), &data),
            lengths(&chunker(2, SMALL), &data)
        );
    }

    #[test]
    fn mean_of_the_default_profile_is_a_little_above_its_name() {
        let data = noise(1, 16 << 20);
        let lengths = lengths(&chunker(1, Profile::DEFAULT), &data);
        let mean = data.len() / lengths.len();
        assert!((128 << 10..192 << 10).contains(&mean), "{mean}");
    }

    #[test]
    fn nothing_gives_no_chunk_and_the_maximum_always_one() {
        let chunker = chunker(1, SMALL);
        assert_eq!(chunker.cut(&[], true), None);
        assert_eq!(chunker.cut(&[], false), None);
        assert_eq!(chunker.cut(&[0; 10], false), None);
        assert_eq!(chunker.cut(&[0; 10], true), Some(10));
        assert!(chunker.cut(&[0; SMALL.max], false).is_some());
    }

    fn input(vector: &Value) -> Vec<u8> {
        let len = vector["input_len"].as_u64().unwrap() as usize;
        match vector["input_byte"].as_u64() {
            Some(byte) => vec![byte as u8; len],
            None => noise(bytes(&vector["input_noise"])[0], len),
        }
    }

    fn made() -> Vec<Value> {
        let vector = |name: &str, secret: u8, profile: Profile, seed: Option<u8>, len: usize| {
            let Profile { min, mean, max } = profile;
            let chunker = chunker(secret, profile);
            let mut vector = json!({
                "name": name, "expect": "ok", "secret": hex(&[secret; 32]), "min": min, "mean": mean, "max": max,
                "input_len": len, "gear_first": chunker.gear[0].to_string(), "gear_last": chunker.gear[255].to_string(),
            });
            match seed {
                Some(seed) => vector["input_noise"] = hex(&[seed]).into(),
                None => vector["input_byte"] = 0.into(),
            }
            vector["lengths"] = lengths(&chunker, &input(&vector)).into();
            vector
        };
        vec![
            vector("nothing", 1, Profile::DEFAULT, Some(1), 0),
            vector("one byte", 1, Profile::DEFAULT, Some(1), 1),
            vector(
                "shorter than the minimum",
                1,
                Profile::DEFAULT,
                Some(1),
                32_767,
            ),
            vector("two MiB of noise", 1, Profile::DEFAULT, Some(1), 2 << 20),
            vector(
                "same noise, other secret",
                2,
                Profile::DEFAULT,
                Some(1),
                2 << 20,
            ),
            vector("zeros", 1, Profile::DEFAULT, None, 2 << 20),
            vector("small chunks", 1, SMALL, Some(2), 10_000),
            vector(
                "smallest window",
                3,
                Profile {
                    min: 64,
                    mean: 128,
                    max: 129,
                },
                Some(3),
                1000,
            ),
        ]
    }

    #[test]
    fn vectors_cut_as_they_say() {
        for vector in load("chunk", &made()) {
            let length = |name: &str| vector[name].as_u64().unwrap() as usize;
            let profile = Profile {
                min: length("min"),
                mean: length("mean"),
                max: length("max"),
            };
            let chunker = Chunker::new(&Secret::new(array(&vector["secret"])), profile);
            assert_eq!(
                Value::from(lengths(&chunker, &input(&vector))),
                vector["lengths"],
                "{}",
                vector["name"]
            );
        }
    }

    proptest! {
        #[test]
        fn scan_agrees_with_the_plain_rule(secret: u8, seed: u8, len in 1usize..5000, min in 64usize..300, span in 1usize..1000) {
            let profile = Profile { min, mean: 512, max: 512 + span };
            let chunker = chunker(secret, profile);
            let mut data = &noise(seed, len)[..];
            while let Some(len) = chunker.cut(data, true) {
                prop_assert_eq!(len, plain_cut(&chunker, data));
                data = &data[len..];
            }
        }

        #[test]
        fn scan_may_be_interrupted(seed: u8, len in 1usize..3000, first: prop::sample::Index) {
            let chunker = chunker(1, SMALL);
            let data = noise(seed, len);
            let first = first.index(len);
            if chunker.cut(&data[..first], false).is_none() {
                prop_assert_eq!(chunker.cut_from(&data, first, true), chunker.cut(&data, true));
            }
        }
    }
}
