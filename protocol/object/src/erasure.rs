//! A pack as shards, of which any so many restore it.
//!
//! Spec: `protocol/spec/erasure.md`, "Shards". Method: Reed-Solomon over GF(2^16), `reed-solomon-simd`.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use crate::id::Cid;

/// What is coded at once of every shard: small enough to stay in the cache.
pub const COLUMN_BYTES: usize = 64 << 10;
/// Most shards of a scheme.
const SHARDS_MAX: usize = 64;

/// How a pack is cut and coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    needed: usize,
    spare: usize,
    pack: usize,
    slice: usize,
}

/// Why a pack is not coded or not restored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ErasureError {
    /// No such scheme, or nothing to code.
    #[error("a pack of {pack} bytes is not coded as {needed}+{spare}")]
    Scheme {
        /// Shards that restore it.
        needed: usize,
        /// Shards besides.
        spare: usize,
        /// Its length.
        pack: usize,
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
    #[error("there is nothing at {0:?} of a pack or shard")]
    Range(Range<usize>),
    /// The library refuses.
    #[error("code a column")]
    Code(#[from] reed_solomon_simd::Error),
}

/// The shards of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coded {
    /// The names of all, data first.
    pub names: Vec<Cid>,
    /// Those that are not slices of the pack.
    pub parity: Vec<Bytes>,
}

impl Scheme {
    /// Of a pack of so many bytes.
    ///
    /// # Errors
    /// [`ErasureError::Scheme`].
    pub fn new(needed: usize, spare: usize, pack: usize) -> Result<Self, ErasureError> {
        let sound = needed > 0 && spare > 0 && needed + spare <= SHARDS_MAX && pack > 0;
        if !sound {
            return Err(ErasureError::Scheme {
                needed,
                spare,
                pack,
            });
        }
        Ok(Self {
            needed,
            spare,
            pack,
            slice: pack.div_ceil(needed).next_multiple_of(2),
        })
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.needed + self.spare
    }

    /// Bytes of a slice, and of each parity shard.
    pub fn slice(&self) -> usize {
        self.slice
    }

    /// Where in the pack a data shard lies.
    fn place(&self, shard: usize) -> Range<usize> {
        let begin = (shard * self.slice).min(self.pack);
        begin..(begin + self.slice).min(self.pack)
    }

    /// Bytes of a shard.
    pub fn len(&self, shard: usize) -> usize {
        if shard < self.needed {
            self.place(shard).len()
        } else {
            self.slice
        }
    }

    /// The parts of a range of the pack: in which shard each lies, and where there.
    ///
    /// # Errors
    /// [`ErasureError::Range`] where it goes beyond the pack.
    pub fn parts(&self, range: Range<usize>) -> Result<Vec<(usize, Range<usize>)>, ErasureError> {
        if range.start > range.end || range.end > self.pack {
            return Err(ErasureError::Range(range));
        }
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let shard = at / self.slice;
            let begin = at - shard * self.slice;
            let end = (range.end - shard * self.slice).min(self.slice);
            parts.push((shard, begin..end));
            at = shard * self.slice + end;
        }
        Ok(parts)
    }

    /// The whole columns that hold a range of a shard: what it takes of others to restore it.
    pub fn columns(&self, range: &Range<usize>) -> Range<usize> {
        let begin = range.start / COLUMN_BYTES * COLUMN_BYTES;
        begin..range.end.next_multiple_of(COLUMN_BYTES).min(self.slice)
    }

    /// Cuts and codes a pack; the slices are not copied.
    ///
    /// # Errors
    /// [`ErasureError::Scheme`] if the pack has another length.
    pub fn encode(&self, pack: &[u8]) -> Result<Coded, ErasureError> {
        let slices: Option<Vec<&[u8]>> = (0..self.needed)
            .map(|shard| pack.get(self.place(shard)))
            .collect();
        let slices = slices.filter(|_| pack.len() == self.pack);
        let slices = slices.ok_or(ErasureError::Scheme {
            needed: self.needed,
            spare: self.spare,
            pack: pack.len(),
        })?;
        let mut parity = vec![Vec::with_capacity(self.slice); self.spare];
        let mut coder = Coder::new(self);
        for column in self.each_column(0..self.slice) {
            let data = slices.iter().map(|slice| part(slice, &column));
            for (parity, coded) in parity.iter_mut().zip(coder.encode(column.len(), data)?) {
                parity.extend_from_slice(coded);
            }
        }
        let parity: Vec<Bytes> = parity.into_iter().map(Bytes::from).collect();
        let all = slices.into_iter().chain(parity.iter().map(AsRef::as_ref));
        Ok(Coded {
            names: all.map(Cid::of_block).collect(),
            parity,
        })
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
        if have.len() < self.needed && !have.contains_key(&shard) {
            return Err(ErasureError::TooFew {
                have: have.len(),
                needed: self.needed,
            });
        }
        let mut coder = Coder::new(self);
        let mut restored = Vec::with_capacity(columns.len());
        for column in self.each_column(columns.clone()) {
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

    fn each_column(&self, columns: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = columns.end;
        columns
            .step_by(COLUMN_BYTES)
            .map(move |begin| begin..(begin + COLUMN_BYTES).min(end))
    }
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
            needed: scheme.needed,
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
    use data_encoding::HEXLOWER;
    use serde_json::{Value, json};

    use super::*;
    use crate::key::Rng;

    const SCHEMES: [(usize, usize); 5] = [(2, 1), (4, 2), (6, 3), (8, 4), (10, 6)];
    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/erasure.json"
    );

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Rng::from_seed([seed; 32]).fill(&mut bytes);
        bytes
    }

    /// All shards of a pack.
    fn shards(scheme: &Scheme, pack: &[u8]) -> Vec<Bytes> {
        let coded = scheme.encode(pack).unwrap();
        let slices =
            (0..scheme.needed).map(|shard| Bytes::copy_from_slice(&pack[scheme.place(shard)]));
        let all: Vec<Bytes> = slices.chain(coded.parity).collect();
        for (shard, (bytes, name)) in all.iter().zip(&coded.names).enumerate() {
            assert_eq!(bytes.len(), scheme.len(shard));
            assert!(name.verifies(bytes));
        }
        all
    }

    /// Restores part of a shard from the columns of others.
    fn restored(
        scheme: &Scheme,
        all: &[Bytes],
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
            for len in [1, 2, 63, 1000, 65_536, 700_001] {
                let scheme = Scheme::new(needed, spare, len).unwrap();
                let pack = noise(len, 7);
                let all = shards(&scheme, &pack);
                for _ in 0..2 {
                    let mut order: Vec<usize> = (0..all.len()).collect();
                    for place in (1..order.len()).rev() {
                        let with = usize::try_from(rng.below(place as u64 + 1)).unwrap();
                        order.swap(place, with);
                    }
                    let lost = &order[..spare];
                    for shard in lost {
                        let whole = restored(&scheme, &all, lost, (*shard, 0..scheme.len(*shard)));
                        assert!(
                            whole.unwrap() == all[*shard],
                            "{needed}+{spare} {len} {lost:?}"
                        );
                    }
                    let one_more = &order[..=spare];
                    if scheme.len(one_more[0]) > 0 {
                        let refused = restored(&scheme, &all, one_more, (one_more[0], 0..1));
                        let have = needed - 1;
                        assert_eq!(refused, Err(ErasureError::TooFew { have, needed }));
                    }
                }
            }
        }
    }

    #[test]
    fn ranges_need_their_columns_alone() {
        let scheme = Scheme::new(4, 2, 1_000_003).unwrap();
        let pack = noise(1_000_003, 3);
        let all = shards(&scheme, &pack);
        let mut rng = Rng::from_seed([5; 32]);
        for _ in 0..60 {
            let begin = usize::try_from(rng.below(1_000_003)).unwrap();
            let end = (begin + usize::try_from(rng.below(300_000)).unwrap()).min(pack.len());
            let mut read = Vec::new();
            for (shard, range) in scheme.parts(begin..end).unwrap() {
                let columns = scheme.columns(&range);
                assert!(columns.len() <= range.len().next_multiple_of(COLUMN_BYTES) + COLUMN_BYTES);
                read.extend(restored(&scheme, &all, &[shard, 5], (shard, range)).unwrap());
            }
            assert!(read == pack[begin..end], "{begin} {end}");
        }
        assert_eq!(scheme.parts(7..7).unwrap(), []);
        assert!(scheme.parts(0..1_000_004).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Scheme::new(0, 1, 5).is_err());
        assert!(Scheme::new(4, 0, 5).is_err());
        assert!(Scheme::new(60, 5, 5).is_err());
        assert!(Scheme::new(4, 2, 0).is_err());
        let scheme = Scheme::new(4, 2, 100).unwrap();
        assert!(scheme.encode(&[0; 99]).is_err());
        let pack = noise(100, 1);
        let all = shards(&scheme, &pack);
        let mut have: BTreeMap<usize, &[u8]> =
            all.iter().map(AsRef::as_ref).enumerate().skip(1).collect();
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
        have.insert(2, &all[2]);
        have.insert(9, &all[2]);
        assert!(scheme.restore(0, 0..26, &have).is_err());
        // Rotten bytes give rotten bytes: names tell.
        have.remove(&9);
        let mut rotten = all[1].to_vec();
        rotten[3] ^= 1;
        have.insert(1, &rotten);
        have.remove(&5);
        let wrong = scheme.restore(0, 0..26, &have).unwrap();
        assert!(!Cid::of_block(&all[0]).verifies(&wrong));
    }

    fn cases() -> Vec<Value> {
        let lens = [1_usize, 700, 65_537, 300_000];
        let each = SCHEMES
            .iter()
            .flat_map(|scheme| lens.map(|len| (*scheme, len)));
        each.map(|((needed, spare), len)| {
            let name = format!("{needed}+{spare} of {len} bytes");
            let mut pack = vec![0; len];
            blake3::Hasher::new()
                .update(name.as_bytes())
                .finalize_xof()
                .fill(&mut pack);
            let coded = Scheme::new(needed, spare, len)
                .unwrap()
                .encode(&pack)
                .unwrap();
            let names = coded
                .names
                .iter()
                .map(|name| HEXLOWER.encode(&name.to_bytes()));
            json!({
                "name": name,
                "expect": "ok",
                "needed": needed,
                "spare": spare,
                "input_noise": HEXLOWER.encode(name.as_bytes()),
                "input_len": len,
                "names": names.collect::<Vec<_>>(),
            })
        })
        .collect()
    }

    #[test]
    fn vectors_hold() {
        let today = cases();
        if std::env::var_os("KITH_BLESS").is_some() {
            std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
        }
        let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        assert_eq!(kept, today);
    }
}
