//! Which packs blocks lie in: questions and answers.
//!
//! Spec: `protocol/spec/bulk.md`, "Finding packs".

use std::collections::BTreeMap;

use kith_object::id::PackId;
use kith_object::pack::PACK_BYTES_MAX;

/// Most digests of one question.
pub const DIGESTS_MAX: usize = 8192;
/// Longest question.
pub const QUESTION_BYTES_MAX: usize = 32 * DIGESTS_MAX;
const PACK_ITEM_BYTES: usize = 40;
const NOWHERE: u16 = u16::MAX;

/// A pack of the one who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackAt {
    /// Its name.
    pub pack: PackId,
    /// Length of its file.
    pub bytes: u32,
    /// Blocks in it.
    pub blocks: u32,
}

/// What a device says of where blocks lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The packs.
    pub packs: Vec<PackAt>,
    /// For each digest of the question the pack that holds it.
    pub places: Vec<Option<u16>>,
}

/// A question; of more than [`DIGESTS_MAX`] those that come first.
pub fn encode_question(digests: &[[u8; 32]]) -> Vec<u8> {
    digests
        .iter()
        .take(DIGESTS_MAX)
        .flatten()
        .copied()
        .collect()
}

/// The digests of a question; `None` if it is none.
pub fn decode_question(bytes: &[u8]) -> Option<Vec<[u8; 32]>> {
    let (digests, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && !digests.is_empty() && digests.len() <= DIGESTS_MAX)
        .then(|| digests.to_vec())
}

/// Longest answer to a question of that many digests.
pub fn answer_bytes_max(digests: usize) -> usize {
    2 + digests * (PACK_ITEM_BYTES + 2)
}

impl Answer {
    /// The answer in which each digest lies in that pack; `about` tells of packs, and is asked once for each.
    pub fn of<E>(
        places: impl IntoIterator<Item = Option<PackId>>,
        mut about: impl FnMut(&PackId) -> Result<Option<PackAt>, E>,
    ) -> Result<Self, E> {
        let mut answer = Self::default();
        let mut numbers: BTreeMap<PackId, Option<u16>> = BTreeMap::new();
        for pack in places {
            let number = match pack {
                None => None,
                Some(pack) => match numbers.get(&pack) {
                    Some(number) => *number,
                    None => {
                        let known = about(&pack)?;
                        let number = known.and_then(|_| u16::try_from(answer.packs.len()).ok());
                        answer.packs.extend(known);
                        numbers.insert(pack, number);
                        number
                    }
                },
            };
            answer.places.push(number);
        }
        Ok(answer)
    }

    /// As it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(answer_bytes_max(self.places.len()));
        // A question names fewer.
        let count = u16::try_from(self.packs.len()).unwrap_or(NOWHERE);
        out.extend_from_slice(&count.to_le_bytes());
        for pack in &self.packs {
            out.extend_from_slice(&pack.pack.0);
            out.extend_from_slice(&pack.bytes.to_le_bytes());
            out.extend_from_slice(&pack.blocks.to_le_bytes());
        }
        for place in &self.places {
            out.extend_from_slice(&place.unwrap_or(NOWHERE).to_le_bytes());
        }
        out
    }

    /// Reads the answer to a question of that many digests; `None` if it is none.
    pub fn decode(bytes: &[u8], digests: usize) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_le_bytes(*count));
        let (packs, places) = rest.split_at_checked(count * PACK_ITEM_BYTES)?;
        if count > digests || places.len() != 2 * digests {
            return None;
        }
        let mut answer = Self::default();
        for item in packs.as_chunks::<PACK_ITEM_BYTES>().0 {
            let (pack, numbers) = item.split_first_chunk::<32>()?;
            let (bytes, blocks) = numbers.split_first_chunk::<4>()?;
            let bytes = u32::from_le_bytes(*bytes);
            if bytes as usize > PACK_BYTES_MAX {
                return None;
            }
            answer.packs.push(PackAt {
                pack: PackId(*pack),
                bytes,
                blocks: u32::from_le_bytes(blocks.try_into().ok()?),
            });
        }
        let mut used = vec![false; count];
        for place in places.as_chunks::<2>().0 {
            answer.places.push(match u16::from_le_bytes(*place) {
                NOWHERE => None,
                number => {
                    *used.get_mut(usize::from(number))? = true;
                    Some(number)
                }
            });
        }
        let mut names: Vec<PackId> = answer.packs.iter().map(|pack| pack.pack).collect();
        names.sort_unstable();
        names.dedup();
        (used.into_iter().all(|used| used) && names.len() == count).then_some(answer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_and_nothing_else_is_taken() {
        let places = [Some(7), None, Some(9), Some(7), Some(8)];
        let places = places.map(|n: Option<u8>| n.map(|n| PackId([n; 32])));
        let mut asked = 0;
        let answer = Answer::of(places, |pack| {
            asked += 1;
            // One of them has gone meanwhile.
            Ok::<_, ()>((pack.0 != [8; 32]).then_some(PackAt {
                pack: *pack,
                bytes: 1000,
                blocks: 3,
            }))
        })
        .unwrap();
        assert_eq!(asked, 3);
        assert_eq!(answer.places, [Some(0), None, Some(1), Some(0), None]);
        let wire = answer.encode();
        assert_eq!(Answer::decode(&wire, 5), Some(answer.clone()));
        assert!(wire.len() <= answer_bytes_max(5));
        for end in 0..wire.len() {
            assert_eq!(Answer::decode(wire.get(..end).unwrap(), 5), None);
        }
        assert_eq!(Answer::decode(&wire, 4), None);
        let bad = |change: &dyn Fn(&mut Answer)| {
            let mut other = answer.clone();
            change(&mut other);
            assert_eq!(Answer::decode(&other.encode(), 5), None);
        };
        bad(&|answer| answer.places = vec![Some(0); 5]);
        bad(&|answer| answer.places = vec![Some(0), Some(1), Some(2), None, None]);
        bad(&|answer| answer.packs = vec![*answer.packs.first().unwrap(); 2]);
        bad(&|answer| answer.packs.first_mut().unwrap().bytes = (64 << 20) + 1);
        let question = encode_question(&vec![[1; 32]; 9000]);
        assert_eq!(decode_question(&question).unwrap().len(), DIGESTS_MAX);
        assert_eq!(decode_question(&[0; 33]), None);
        assert_eq!(decode_question(&[]), None);
        assert_eq!(decode_question(&vec![0; QUESTION_BYTES_MAX + 32]), None);
    }
}
