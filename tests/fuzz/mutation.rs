//! Alters bytes the way disks, lines and enemies do. The same seed alters in the same way.

/// Numbers that look random and follow from the seed: SplitMix64.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below that number; 0 if it is 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("64 bits").max(1);
        usize::try_from(self.next() % limit).expect("it is below one")
    }

    /// A length that is mostly short.
    fn length(&mut self, limit: usize) -> usize {
        let most = 1 << self.below(12);
        1 + self.below(most.min(limit.max(1)))
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Numbers at which parsers err.
const EXTREMES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Longest outcome: nothing of interest needs more.
const LEN_MAX: usize = 64 << 10;

/// Another input: `bytes` altered once to some times, perhaps with parts of `other`.
pub(crate) fn mutated(chance: &mut Chance, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + chance.below(4).min(chance.below(8)) {
        alter(chance, &mut bytes, other);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn alter(chance: &mut Chance, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    let at = chance.below(len);
    match chance.below(12) {
        // A flipped bit.
        0 | 1 => {
            let bit = 1 << chance.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        // Another byte.
        2 => {
            let with = chance.byte();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
        }
        // Cut short.
        3 => bytes.truncate(at),
        // Longer.
        4 => {
            let more = chance.length(256);
            let fill = if chance.below(2) == 0 { None } else { Some(0) };
            bytes.extend((0..more).map(|_| fill.unwrap_or_else(|| chance.byte())));
        }
        // A length that lies: to an extreme, or by a little.
        5 | 6 => number(chance, bytes, at),
        // A stretch that comes twice.
        7 => {
            let stretch = chance.length(len - at);
            let piece: Vec<u8> = bytes.iter().skip(at).take(stretch).copied().collect();
            let to = chance.below(len + 1);
            bytes.splice(to..to, piece);
        }
        // A stretch that is lost.
        8 => {
            let stretch = chance.length(len - at).min(len - at);
            bytes.drain(at..at + stretch);
        }
        // A stretch that went elsewhere.
        9 => {
            let stretch = chance.length(len - at).min(len - at);
            let piece: Vec<u8> = bytes.drain(at..at + stretch).collect();
            let to = chance.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
        // A stretch of another input, in between or over what is there.
        10 => {
            let from = chance.below(other.len());
            let piece: Vec<u8> = other
                .iter()
                .skip(from)
                .take(chance.length(other.len()))
                .copied()
                .collect();
            let over = if chance.below(2) == 0 { 0 } else { piece.len() };
            bytes.splice(at..len.min(at + over), piece);
        }
        // The front of this, the back of another.
        _ => {
            bytes.truncate(at);
            let from = if chance.below(2) == 0 {
                at.min(other.len())
            } else {
                chance.below(other.len() + 1)
            };
            bytes.extend(other.iter().skip(from));
        }
    }
}

/// A number of 1, 2, 4 or 8 bytes, either way round.
fn number(chance: &mut Chance, bytes: &mut [u8], at: usize) {
    let width = 1 << chance.below(4);
    let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..width)) else {
        return;
    };
    let swap = chance.below(4) == 0;
    let mut whole = [0; 8];
    for (to, from) in whole.iter_mut().zip(place.iter()) {
        *to = *from;
    }
    let value = if chance.below(3) == 0 {
        u64::from_le_bytes(whole)
            .wrapping_add(1 + chance.next() % 4)
            .wrapping_sub(chance.next() % 4)
    } else {
        *EXTREMES
            .get(chance.below(EXTREMES.len()))
            .expect("below its length")
    };
    let value = value.to_le_bytes();
    let (value, _) = value.split_at(width);
    place.copy_from_slice(value);
    if swap {
        place.reverse();
    }
}
