//! Columns of shards of any lengths, and the parity that restores them.
//!
//! Spec: `protocol/spec/erasure.md`, "Columns". Method: Reed-Solomon over GF(2^16), `reed-solomon-simd`.

use std::collections::BTreeMap;
use std::ops::Range;

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

/// What is coded at once of every shard: small enough to stay in the cache.
pub const COLUMN_BYTES: usize = 64 << 10;
/// Most shards of a scheme.
pub const SHARDS_MAX: usize = 64;

/// Data shards of certain lengths, and how many parities there are of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    data: Vec<usize>,
    spare: usize,
    len: usize,
}

/// Why shards are not coded or not restored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ErasureError {
    /// No such scheme, or nothing to code.
    #[error("no code of {needed} shards, the longest of {len} bytes, and {spare} besides")]
    Scheme {
        /// Shards that restore all others.
        needed: usize,
        /// Shards besides.
        spare: usize,
        /// Bytes of the longest.
        len: usize,
    },
    /// Too few are there.
    #[error("{have} shards do not restore what {needed} of them would")]
    TooFew {
        /// Those that are there.
        have: usize,
        /// Those that it takes.
        needed: usize,
    },
    /// A shard is not as long as it has to be.
    #[error("shard {shard} has {len} bytes and not {expected}")]
    Length {
        /// Which.
        shard: usize,
        /// What it has.
        len: usize,
        /// What it should have.
        expected: usize,
    },
    /// There is no such shard, or nothing there.
    #[error("there is nothing at {0:?} of a shard")]
    Range(Range<usize>),
    /// The library refuses.
    #[error("code a column")]
    Code(#[from] reed_solomon_simd::Error),
}

impl Scheme {
    /// Of data shards of such lengths, with so many parities.
    ///
    /// # Errors
    /// [`ErasureError::Scheme`].
    pub fn new(data: Vec<usize>, spare: usize) -> Result<Self, ErasureError> {
        let (needed, len) = (data.len(), data.iter().copied().max().unwrap_or(0));
        let sound = spare > 0 && needed + spare <= SHARDS_MAX && len > 0 && len < usize::MAX;
        if !sound {
            return Err(ErasureError::Scheme { needed, spare, len });
        }
        let len = len.next_multiple_of(2);
        Ok(Self { data, spare, len })
    }

    /// How many shards restore all others.
    pub fn needed(&self) -> usize {
        self.data.len()
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.data.len() + self.spare
    }

    /// Bytes of each parity.
    pub fn parity_len(&self) -> usize {
        self.len
    }

    /// Bytes of a shard.
    fn len(&self, shard: usize) -> usize {
        self.data.get(shard).copied().unwrap_or(self.len)
    }

    /// The whole columns that hold a range of a shard: what it takes of others to restore it.
    pub fn columns(&self, range: &Range<usize>) -> Range<usize> {
        let begin = range.start / COLUMN_BYTES * COLUMN_BYTES;
        begin..range.end.next_multiple_of(COLUMN_BYTES).min(self.len)
    }

    /// The parities of data shards, in their order.
    ///
    /// # Errors
    /// [`ErasureError::Length`] if these are others.
    pub fn encode(&self, data: &[&[u8]]) -> Result<Vec<Vec<u8>>, ErasureError> {
        let lens = data.iter().map(|shard| shard.len());
        let wrong = lens.zip(&self.data).enumerate();
        let wrong = wrong
            .into_iter()
            .find(|(_, (len, expected))| len != *expected);
        if let Some((shard, (len, expected))) = wrong {
            return Err(ErasureError::Length {
                shard,
                len,
                expected: *expected,
            });
        }
        if data.len() != self.data.len() {
            return Err(ErasureError::TooFew {
                have: data.len(),
                needed: self.data.len(),
            });
        }
        let mut parity = vec![Vec::with_capacity(self.len); self.spare];
        let mut coder = Coder::new(self);
        for column in each_column(0..self.len) {
            let data = data.iter().map(|shard| part(shard, &column));
            for (parity, coded) in parity.iter_mut().zip(coder.encode(column.len(), data)?) {
                parity.extend_from_slice(coded);
            }
        }
        Ok(parity)
    }

    /// Restores part of a shard, data or parity, from the same columns of others: see [`Scheme::columns`].
    ///
    /// # Errors
    /// [`ErasureError`]: too few, or not the bytes of those columns.
    pub fn restore(
        &self,
        shard: usize,
        range: Range<usize>,
        have: &BTreeMap<usize, &[u8]>,
    ) -> Result<Vec<u8>, ErasureError> {
        if shard >= self.shards() || range.start > range.end || range.end > self.len(shard) {
            return Err(ErasureError::Range(range));
        }
        let columns = self.columns(&range);
        for (shard, bytes) in have {
            let len = self.len(*shard);
            let expected = len.min(columns.end) - len.min(columns.start);
            if *shard >= self.shards() || bytes.len() != expected {
                return Err(ErasureError::Length {
                    shard: *shard,
                    len: bytes.len(),
                    expected,
                });
            }
        }
        if have.len() < self.needed() && !have.contains_key(&shard) {
            return Err(ErasureError::TooFew {
                have: have.len(),
                needed: self.needed(),
            });
        }
        let mut coder = Coder::new(self);
        let mut restored = Vec::with_capacity(columns.len());
        for column in each_column(columns.clone()) {
            let within = column.start - columns.start..column.end - columns.start;
            let have = have
                .iter()
                .map(|(shard, bytes)| (*shard, part(bytes, &within)));
            coder.restore(shard, column.len(), have, &mut restored)?;
        }
        let end = range.end - columns.start;
        restored.truncate(end);
        Ok(restored.split_off(range.start - columns.start))
    }

    /// Restores a whole shard from others that are whole.
    ///
    /// # Errors
    /// As [`Scheme::restore`].
    pub fn restore_whole(
        &self,
        shard: usize,
        have: &BTreeMap<usize, &[u8]>,
    ) -> Result<Vec<u8>, ErasureError> {
        let range = 0..self.len(shard);
        let columns = self.columns(&range);
        let mut cut = BTreeMap::new();
        for (at, bytes) in have {
            let expected = self.len(*at);
            if bytes.len() != expected {
                return Err(ErasureError::Length {
                    shard: *at,
                    len: bytes.len(),
                    expected,
                });
            }
            cut.insert(*at, part(bytes, &columns));
        }
        self.restore(shard, range, &cut)
    }
}

fn each_column(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns
        .step_by(COLUMN_BYTES)
        .map(move |begin| begin..(begin + COLUMN_BYTES).min(end))
}

/// What of some bytes stands at those places, as far as there is any.
fn part<'a>(bytes: &'a [u8], places: &Range<usize>) -> &'a [u8] {
    let end = places.end.min(bytes.len());
    bytes.get(places.start.min(end)..end).unwrap_or_default()
}

/// Codes columns, one after the other.
struct Coder {
    needed: usize,
    spare: usize,
    encoder: Option<ReedSolomonEncoder>,
    decoder: Option<ReedSolomonDecoder>,
    /// One column of a shard that is shorter, filled up.
    filled: Vec<u8>,
    parity: Vec<Vec<u8>>,
}

impl Coder {
    fn new(scheme: &Scheme) -> Self {
        Self {
            needed: scheme.needed(),
            spare: scheme.spare,
            encoder: None,
            decoder: None,
            filled: Vec::new(),
            parity: vec![Vec::new(); scheme.spare],
        }
    }

    fn fill(filled: &mut Vec<u8>, bytes: &[u8], len: usize) {
        filled.clear();
        filled.extend_from_slice(bytes);
        filled.resize(len, 0);
    }

    /// The parity of a column.
    fn encode<'a>(
        &mut self,
        len: usize,
        data: impl Iterator<Item = &'a [u8]>,
    ) -> Result<&[Vec<u8>], ErasureError> {
        let encoder = match &mut self.encoder {
            Some(encoder) => {
                encoder.reset(self.needed, self.spare, len)?;
                encoder
            }
            none => none.insert(ReedSolomonEncoder::new(self.needed, self.spare, len)?),
        };
        for bytes in data {
            if bytes.len() == len {
                encoder.add_original_shard(bytes)?;
            } else {
                Self::fill(&mut self.filled, bytes, len);
                encoder.add_original_shard(&self.filled)?;
            }
        }
        let coded = encoder.encode()?;
        for (parity, coded) in self.parity.iter_mut().zip(coded.recovery_iter()) {
            parity.clear();
            parity.extend_from_slice(coded);
        }
        Ok(&self.parity)
    }

    /// A column of one shard, from those of others.
    fn restore<'a>(
        &mut self,
        shard: usize,
        len: usize,
        have: impl Iterator<Item = (usize, &'a [u8])>,
        into: &mut Vec<u8>,
    ) -> Result<(), ErasureError> {
        let have: BTreeMap<usize, &[u8]> = have.collect();
        if let Some(bytes) = have.get(&shard) {
            Self::fill(&mut self.filled, bytes, len);
            into.extend_from_slice(&self.filled);
            return Ok(());
        }
        // Those that are as they were first: of them most is known already.
        let chosen: BTreeMap<usize, &[u8]> = have.into_iter().take(self.needed).collect();
        let data = self.restore_data(len, &chosen)?;
        match data.get(shard) {
            Some(bytes) => into.extend_from_slice(bytes),
            None => {
                let spare = shard - self.needed;
                let parity = self.encode(len, data.iter().map(Vec::as_slice))?;
                into.extend_from_slice(parity.get(spare).map(Vec::as_slice).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// The column of all data shards.
    fn restore_data(
        &mut self,
        len: usize,
        have: &BTreeMap<usize, &[u8]>,
    ) -> Result<Vec<Vec<u8>>, ErasureError> {
        let decoder = match &mut self.decoder {
            Some(decoder) => {
                decoder.reset(self.needed, self.spare, len)?;
                decoder
            }
            none => none.insert(ReedSolomonDecoder::new(self.needed, self.spare, len)?),
        };
        let mut data: Vec<Option<Vec<u8>>> = vec![None; self.needed];
        for (shard, bytes) in have {
            Self::fill(&mut self.filled, bytes, len);
            match data.get_mut(*shard) {
                Some(slot) => {
                    decoder.add_original_shard(*shard, &self.filled)?;
                    *slot = Some(self.filled.clone());
                }
                None => decoder.add_recovery_shard(*shard - self.needed, &self.filled)?,
            }
        }
        let decoded = decoder.decode()?;
        for (shard, bytes) in decoded.restored_original_iter() {
            if let Some(slot) = data.get_mut(shard) {
                *slot = Some(bytes.to_vec());
            }
        }
        let all: Option<Vec<Vec<u8>>> = data.into_iter().collect();
        all.ok_or(ErasureError::TooFew {
            have: have.len(),
            needed: self.needed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Rng;

    const SCHEMES: [(usize, usize); 5] = [(2, 1), (4, 2), (6, 3), (8, 4), (10, 6)];

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Rng::from_seed([seed; 32]).fill(&mut bytes);
        bytes
    }

    /// A scheme, and all of its shards; the data shards differ in length by some.
    fn shards(needed: usize, spare: usize, len: usize) -> (Scheme, Vec<Vec<u8>>) {
        let data = (0..needed).map(|n| noise(len + len * (n * 7 % 5) / 40, n as u8));
        let data: Vec<Vec<u8>> = data.collect();
        let scheme = Scheme::new(data.iter().map(Vec::len).collect(), spare).unwrap();
        let all: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let parity = scheme.encode(&all).unwrap();
        assert!(parity.iter().all(|bytes| bytes.len() == scheme.len));
        let all = data.into_iter().chain(parity).collect();
        (scheme, all)
    }

    /// Restores part of a shard from the columns of others.
    fn restored(
        scheme: &Scheme,
        all: &[Vec<u8>],
        lost: &[usize],
        (shard, range): (usize, Range<usize>),
    ) -> Result<Vec<u8>, ErasureError> {
        let columns = scheme.columns(&range);
        let have = all
            .iter()
            .enumerate()
            .filter(|(other, _)| !lost.contains(other));
        let have = have.map(|(other, bytes)| (other, part(bytes, &columns)));
        scheme.restore(shard, range, &have.collect())
    }

    #[test]
    fn any_so_many_restore_every_shard() {
        let mut rng = Rng::from_seed([2; 32]);
        for (needed, spare) in SCHEMES {
            for len in [1, 2, 63, 1000, 65_536, 100_001] {
                let (scheme, all) = shards(needed, spare, len);
                for _ in 0..2 {
                    let mut order: Vec<usize> = (0..all.len()).collect();
                    for place in (1..order.len()).rev() {
                        let with = usize::try_from(rng.below(place as u64 + 1)).unwrap();
                        order.swap(place, with);
                    }
                    let lost = &order[..spare];
                    let have = all.iter().map(Vec::as_slice).enumerate();
                    let have = have.filter(|(other, _)| !lost.contains(other)).collect();
                    for shard in lost {
                        let whole = scheme.restore_whole(*shard, &have);
                        assert!(
                            whole.unwrap() == all[*shard],
                            "{needed}+{spare} {len} {lost:?}"
                        );
                    }
                    let one_more = &order[..=spare];
                    let refused = restored(&scheme, &all, one_more, (one_more[0], 0..1));
                    let have = needed - 1;
                    assert_eq!(refused, Err(ErasureError::TooFew { have, needed }));
                }
            }
        }
    }

    #[test]
    fn ranges_need_their_columns_alone() {
        let (scheme, all) = shards(4, 2, 250_001);
        let mut rng = Rng::from_seed([5; 32]);
        for _ in 0..60 {
            let shard = usize::try_from(rng.below(6)).unwrap();
            let len = all[shard].len();
            let begin = usize::try_from(rng.below(len as u64)).unwrap();
            let end = (begin + usize::try_from(rng.below(150_000)).unwrap()).min(len);
            let columns = scheme.columns(&(begin..end));
            assert!(columns.len() <= (end - begin).next_multiple_of(COLUMN_BYTES) + COLUMN_BYTES);
            let lost = [shard, (shard + 1) % 6];
            let read = restored(&scheme, &all, &lost, (shard, begin..end)).unwrap();
            assert!(read == all[shard][begin..end], "{shard} {begin} {end}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Scheme::new(vec![], 1).is_err());
        assert!(Scheme::new(vec![5; 4], 0).is_err());
        assert!(Scheme::new(vec![5; 60], 5).is_err());
        assert!(Scheme::new(vec![0; 4], 2).is_err());
        assert!(Scheme::new(vec![usize::MAX; 4], 2).is_err());
        let scheme = Scheme::new(vec![26, 26, 26, 22], 2).unwrap();
        let pack = noise(100, 1);
        let mut data: Vec<&[u8]> = pack.chunks(26).collect();
        let parity = scheme.encode(&data).unwrap();
        assert!(scheme.encode(&data[..3]).is_err());
        data.swap(0, 3);
        assert!(scheme.encode(&data).is_err());
        data.swap(0, 3);
        data.push(&[]);
        assert!(scheme.encode(&data).is_err());
        data.pop();
        let all: Vec<&[u8]> = data
            .iter()
            .copied()
            .chain(parity.iter().map(Vec::as_slice))
            .collect();
        let mut have: BTreeMap<usize, &[u8]> = all.iter().copied().enumerate().skip(1).collect();
        assert_eq!(scheme.restore(0, 0..26, &have).unwrap(), all[0]);
        assert!(scheme.restore(6, 0..1, &have).is_err());
        assert!(scheme.restore(0, 0..27, &have).is_err());
        have.insert(2, &all[2][1..]);
        let short = ErasureError::Length {
            shard: 2,
            len: 25,
            expected: 26,
        };
        assert_eq!(scheme.restore(0, 0..26, &have), Err(short));
        have.insert(2, all[2]);
        have.insert(9, all[2]);
        assert!(scheme.restore(0, 0..26, &have).is_err());
        // Rotten bytes give rotten bytes: names tell.
        have.remove(&9);
        let mut rotten = all[1].to_vec();
        rotten[3] ^= 1;
        have.insert(1, &rotten);
        have.remove(&5);
        assert!(scheme.restore(0, 0..26, &have).unwrap() != all[0]);
    }
}
