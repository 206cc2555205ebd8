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
/// Text in the first group of four, behind the associated data.
const HEAD_BYTES: usize = 3 * MAC_BYTES;

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
        self.stream.apply_keystream(text);
        tag(self.mac, suite, text)
    }

    /// Decrypts from one buffer into another, unless the tag does not fit: then nothing is written.
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
        let fits = tag(self.mac, suite, sealed).ct_eq(tag_there).into();
        if fits {
            let both = InOutBuf::new(sealed, text).expect("the caller gives two of one length");
            self.stream.apply_keystream_inout(both);
        }
        fits
    }
}

/// Poly1305 over the suite byte, the text and both lengths, as RFC 8439 lays them out.
fn tag(mut mac: Poly1305, suite: u8, text: &[u8]) -> [u8; TAG_BYTES] {
    let (head, rest) = text.split_at(text.len().min(HEAD_BYTES));
    let mut first = [Block::default(); 1 + HEAD_BYTES / MAC_BYTES];
    let mut blocks = first.iter_mut();
    if let Some(block) = blocks.next() {
        block.copy_from_slice(&padded(&[suite]));
    }
    for (block, text) in blocks.zip(head.chunks(MAC_BYTES)) {
        block.copy_from_slice(&padded(text));
    }
    let filled = 1 + head.len().div_ceil(MAC_BYTES);
    mac.update(first.get(..filled).unwrap_or_default());
    mac.update_padded(rest);
    let mut lengths = [0; MAC_BYTES];
    let (suite_len, text_len) = lengths.split_at_mut(8);
    suite_len.copy_from_slice(&1u64.to_le_bytes());
    text_len.copy_from_slice(&(text.len() as u64).to_le_bytes());
    mac.update(&[Block::from(lengths)]);
    mac.finalize().into()
}

/// At most sixteen bytes, zeros behind them.
fn padded(bytes: &[u8]) -> [u8; MAC_BYTES] {
    let mut padded = [0; MAC_BYTES];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    padded
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
        let text: Vec<u8> = (0..=255).cycle().take(1300).collect();
        for len in 0..text.len() {
            check([9; 32], 1, &text[..len]);
        }
    }

    #[test]
    fn whatever_does_not_fit_writes_nothing() {
        let text = [5; 100];
        let (sealed, tag) = reference(&[9; 32], 1, &text);
        let refused = |key: [u8; 32], suite, sealed: &[u8], tag: &[u8; TAG_BYTES]| {
            let mut out = [0xee; 100];
            !Cipher::new(&key).open(suite, sealed, tag, &mut out) && out == [0xee; 100]
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
