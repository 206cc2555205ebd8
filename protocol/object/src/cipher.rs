//! ChaCha20-Poly1305 of one block, put together from the two so that both run at full speed.
//!
//! The usual crate hands the associated data to Poly1305 as a block of its own. Our suite byte then shifts all that follows against the groups of four blocks
//! that are computed together, which takes half as long again. Here the first group is filled up with text.

use chacha20::ChaCha20;
use chacha20::cipher::inout::InOutBuf;
use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use poly1305::universal_hash::{KeyInit, UniversalHash};
use poly1305::{Block, Poly1305};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes that Poly1305 takes at a time.
const MAC_BYTES: usize = 16;
/// Where the keystream of the text begins: behind the block that the key of Poly1305 comes from.
const TEXT_AT: u64 = 64;
/// And at its best: four blocks together.
const GROUP_BYTES: usize = 4 * MAC_BYTES;
/// Text in the first group, behind the associated data.
const HEAD_BYTES: usize = GROUP_BYTES - MAC_BYTES;
/// Encrypted and tagged in one go, so that memory is read once: source and target stay in the innermost cache. Larger ones are slower.
const PIECE_BYTES: usize = 4096;

/// A block's cipher: its key serves one text, so the nonce is zero; the associated data is the suite byte.
///
/// Spec: `protocol/spec/seal.md`, "Block".
pub(crate) struct Cipher {
    stream: ChaCha20,
    mac: Poly1305,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let mut stream = ChaCha20::new(key.into(), &[0; 12].into());
        let mut mac_key = Zeroizing::new([0; 32]);
        stream.apply_keystream(mac_key.as_mut_slice());
        stream.seek(TEXT_AT);
        Self {
            stream,
            mac: Poly1305::new((&*mac_key).into()),
        }
    }

    /// Encrypts in place; returns the tag.
    pub(crate) fn seal(mut self, suite: u8, text: &mut [u8]) -> [u8; TAG_BYTES] {
        let mut tag = Tagging::begin(self.mac, suite);
        let mut taken = 0;
        while taken < text.len() {
            let end = text.len().min(taken + PIECE_BYTES);
            self.stream
                .apply_keystream(text.get_mut(taken..end).unwrap_or_default());
            tag.take(text.get(..end).unwrap_or_default(), false);
            taken = end;
        }
        tag.finish(text)
    }

    /// Decrypts from one buffer into another; if the tag does not fit, zeros are all that is left there.
    ///
    /// # Panics
    /// If the buffers differ in length.
    #[must_use]
    pub(crate) fn open(
        mut self,
        suite: u8,
        sealed: &[u8],
        tag_there: &[u8; TAG_BYTES],
        text: &mut [u8],
    ) -> bool {
        assert_eq!(
            sealed.len(),
            text.len(),
            "the caller gives two of one length"
        );
        let mut tag = Tagging::begin(self.mac, suite);
        let mut taken = 0;
        for (sealed_piece, text_piece) in
            sealed.chunks(PIECE_BYTES).zip(text.chunks_mut(PIECE_BYTES))
        {
            taken += sealed_piece.len();
            tag.take(sealed.get(..taken).unwrap_or_default(), false);
            let both = InOutBuf::new(sealed_piece, text_piece).expect("pieces of one length");
            self.stream.apply_keystream_inout(both);
        }
        let fits: bool = tag.finish(sealed).ct_eq(tag_there).into();
        if !fits {
            text.fill(0);
        }
        fits
    }
}

/// Poly1305 over the suite byte, the text and both lengths, as RFC 8439 lays them out.
struct Tagging {
    mac: Poly1305,
    suite: u8,
    /// Text that is in it already.
    taken: usize,
}

impl Tagging {
    fn begin(mac: Poly1305, suite: u8) -> Self {
        Self {
            mac,
            suite,
            taken: 0,
        }
    }

    /// Goes on to the end of the text so far, or to the last whole group of it if it is not `all`.
    fn take(&mut self, text: &[u8], all: bool) {
        if self.taken == 0 {
            let (head, _) = text.split_at(text.len().min(HEAD_BYTES));
            let mut first = [Block::default(); GROUP_BYTES / MAC_BYTES];
            let suite = [self.suite];
            let parts = std::iter::once(&suite[..]).chain(head.chunks(MAC_BYTES));
            for (block, part) in first.iter_mut().zip(parts) {
                for (to, from) in block.iter_mut().zip(part) {
                    *to = *from;
                }
            }
            let filled = 1 + head.len().div_ceil(MAC_BYTES);
            self.mac.update(first.get(..filled).unwrap_or_default());
            self.taken = head.len();
        }
        let rest = text.get(self.taken..).unwrap_or_default();
        let len = if all {
            rest.len()
        } else {
            rest.len() / GROUP_BYTES * GROUP_BYTES
        };
        self.mac.update_padded(rest.get(..len).unwrap_or_default());
        self.taken += len;
    }

    /// The tag of the whole text.
    fn finish(mut self, text: &[u8]) -> [u8; TAG_BYTES] {
        self.take(text, true);
        let mut lengths = [0; MAC_BYTES];
        let (suite_len, text_len) = lengths.split_at_mut(8);
        suite_len.copy_from_slice(&1u64.to_le_bytes());
        text_len.copy_from_slice(&(text.len() as u64).to_le_bytes());
        self.mac.update(&[Block::from(lengths)]);
        self.mac.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::AeadInOut;
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
    use proptest::prelude::*;

    use super::*;

    /// The same by the crate that puts the two together.
    fn reference(key: &[u8; 32], suite: u8, text: &[u8]) -> (Vec<u8>, [u8; TAG_BYTES]) {
        let mut sealed = text.to_vec();
        let tag = ChaCha20Poly1305::new(key.into())
            .encrypt_inout_detached(&Nonce::default(), &[suite], sealed.as_mut_slice().into())
            .unwrap();
        (sealed, tag.into())
    }

    fn check(key: [u8; 32], suite: u8, text: &[u8]) {
        let (sealed, tag) = reference(&key, suite, text);
        let mut ours = text.to_vec();
        assert_eq!(Cipher::new(&key).seal(suite, &mut ours), tag);
        assert_eq!(ours, sealed);
        let mut opened = vec![0xee; text.len()];
        assert!(Cipher::new(&key).open(suite, &sealed, &tag, &mut opened));
        assert_eq!(opened, text);
    }

    #[test]
    fn every_short_length_is_as_the_usual_crate_has_it() {
        let text: Vec<u8> = (0..=255).cycle().take(PIECE_BYTES * 2 + 200).collect();
        let near_pieces =
            [1, 2].map(|pieces| PIECE_BYTES * pieces - 70..PIECE_BYTES * pieces + 200);
        for len in (0..400).chain(near_pieces.into_iter().flatten()) {
            check([9; 32], 1, &text[..len]);
        }
    }

    #[test]
    fn whatever_does_not_fit_leaves_nothing() {
        let text = [5; 100];
        let (sealed, tag) = reference(&[9; 32], 1, &text);
        let refused = |key: [u8; 32], suite, sealed: &[u8], tag: &[u8; TAG_BYTES]| {
            let mut out = [0xee; 100];
            !Cipher::new(&key).open(suite, sealed, tag, &mut out) && out == [0; 100]
        };
        assert!(refused([8; 32], 1, &sealed, &tag));
        assert!(refused([9; 32], 2, &sealed, &tag));
        for at in 0..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 1;
            assert!(refused([9; 32], 1, &other, &tag));
        }
        for at in 0..TAG_BYTES {
            let mut other = tag;
            other[at] ^= 0x80;
            assert!(refused([9; 32], 1, &sealed, &other));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_as_the_usual_crate_has_it(key: [u8; 32], suite: u8, text in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            check(key, suite, &text);
        }
    }
}
