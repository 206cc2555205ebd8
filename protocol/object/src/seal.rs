//! Seals one chunk, manifest or listing into a block, and opens it: codec, padding, encryption.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::buffer::{Buffer, Buffers};
use crate::cipher::{Cipher, TAG_BYTES};
use crate::id::Cid;
use crate::key::Secret;

/// Suite 1: zstd level 1, Padmé, keyed BLAKE3, ChaCha20-Poly1305.
pub const SUITE_1: u8 = 1;

/// Longest data of one block: with its header exactly 1 MiB, which pads to itself. Bitswap peers take blocks up to 2 MiB.
pub const DATA_BYTES_MAX: usize = PLAIN_BYTES_MAX - HEADER_BYTES;

/// Longest block.
pub const BLOCK_BYTES_MAX: usize = 1 + PLAIN_BYTES_MAX + TAG_BYTES;

/// Shortest block: one of no data.
pub const BLOCK_BYTES_MIN: usize = 1 + HEADER_BYTES + TAG_BYTES;

const PLAIN_BYTES_MAX: usize = 1 << 20;
/// Kind, codec, length.
const HEADER_BYTES: usize = 6;
/// Of the suite. Level 3 stores 4-6 % less of programs and source text, and takes 1.3-1.6 times as long.
const ZSTD_LEVEL: i32 = 1;
/// Shorter data is stored as it is: a frame's own bytes and the padding eat what it would save.
const ZSTD_BYTES_MIN: usize = 128;
/// What the probe looks at, at most.
const PROBE_BYTES: usize = 4096;
/// The probe takes its bytes in this many stretches, evenly spread.
const PROBE_STRETCHES: usize = 16;
/// Contexts kept for the next block; more threads than this at once make their own.
const CONTEXTS_MAX: usize = 8;

/// Bytes of buffers for opened blocks that an opener keeps for the next: a few blocks' worth, as they are written out soon.
const PLAIN_IDLE_BYTES_MAX: usize = 4 << 20;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A piece of a file, or of what a symlink points to.
    Chunk = 0,
    /// A list of chunks or of manifests.
    Manifest = 1,
    /// A piece of a folder's listing.
    Tree = 2,
}

impl Kind {
    /// The kind of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Chunk),
            1 => Some(Self::Manifest),
            2 => Some(Self::Tree),
            _ => None,
        }
    }
}

/// How a block's data is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Stored = 0,
    /// As one zstd frame that states its content's size.
    Zstd = 1,
}

/// The key of one block: follows from its content, so it also commits to it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// Takes the bytes as a key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn cipher(&self) -> Cipher {
        Cipher::new(&self.0)
    }
}

impl PartialEq for BlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BlockKey {}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockKey(..)")
    }
}

/// A block ready to be stored, and what opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBlock {
    /// Names the block.
    pub cid: Cid,
    /// Opens it.
    pub key: BlockKey,
    /// The block itself.
    pub bytes: Bytes,
}

/// Seals blocks under one dedup secret. One serves any number of threads.
///
/// Same data, same secret: same block, whichever device seals it.
///
/// Spec: `protocol/spec/seal.md`, "Block".
pub struct Sealer {
    dedup: Secret,
    packers: Pool<Packer>,
}

impl Sealer {
    /// A sealer under that dedup secret.
    pub fn new(dedup: &Secret) -> Self {
        Self {
            dedup: dedup.clone(),
            packers: Pool::new(),
        }
    }

    /// Seals data into a block.
    ///
    /// # Panics
    /// If the data is longer than [`DATA_BYTES_MAX`].
    pub fn seal(&self, kind: Kind, data: &[u8]) -> SealedBlock {
        assert!(
            data.len() <= DATA_BYTES_MAX,
            "a block holds at most {DATA_BYTES_MAX} bytes, not {}",
            data.len()
        );
        if kind == Kind::Manifest || data.len() < ZSTD_BYTES_MIN || looks_random(data) {
            return self.finish(kind, Codec::Stored, data);
        }
        self.packers.with(Packer::new, |packer| {
            let packed = packer.pack(data);
            if saves_enough(packed.len(), data.len()) {
                self.finish(kind, Codec::Zstd, packed)
            } else {
                self.finish(kind, Codec::Stored, data)
            }
        })
    }

    /// Lays out, pads, keys and encrypts, in the one buffer that becomes the block.
    fn finish(&self, kind: Kind, codec: Codec, data: &[u8]) -> SealedBlock {
        let plain_len = padded_len(HEADER_BYTES + data.len());
        let length = u32::try_from(data.len()).expect("at most DATA_BYTES_MAX");
        let mut block = Vec::with_capacity(1 + plain_len + TAG_BYTES);
        block.extend_from_slice(&[SUITE_1, kind as u8, codec as u8]);
        block.extend_from_slice(&length.to_le_bytes());
        block.extend_from_slice(data);
        block.resize(1 + plain_len, 0);
        encrypt(&self.dedup, block)
    }
}

/// Turns suite and padded plaintext, with room for the tag, into the block.
fn encrypt(dedup: &Secret, mut block: Vec<u8>) -> SealedBlock {
    let key = block_key(dedup, &block);
    let (suite, plain) = block
        .split_first_mut()
        .expect("the suite stands before the plaintext");
    let tag = key.cipher().seal(*suite, plain);
    block.extend_from_slice(&tag);
    SealedBlock {
        cid: Cid::of_block(&block),
        key,
        bytes: Bytes::from(block),
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// What was in a block that opened. Only an [`Opener`] makes one.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What the data is.
    pub kind: Kind,
    /// The data, unpacked.
    pub data: Bytes,
    pub(crate) cid: Cid,
    pub(crate) key: BlockKey,
}

/// Why a block did not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes are another block's, or none's: ask elsewhere.
    #[error("bytes are not those of block {cid}")]
    WrongBytes {
        /// The block that was to open.
        cid: Cid,
    },
    /// Sealed by a later version, or no block of ours at all.
    #[error("block {cid} has unknown suite {suite}")]
    UnknownSuite {
        /// The block that was to open.
        cid: Cid,
        /// The suite it states.
        suite: u8,
    },
    /// Wrong key or altered bytes; the cipher cannot tell which.
    #[error("block {cid} does not open with this key")]
    NotAuthentic {
        /// The block that was to open.
        cid: Cid,
    },
    /// It decrypts, but its key does not follow from its content and a dedup secret we know.
    #[error("block {cid} was not sealed under a known secret")]
    UnknownSecret {
        /// The block that was to open.
        cid: Cid,
    },
    /// A member sealed what no honest device would.
    #[error("block {cid} is malformed: {what}")]
    Malformed {
        /// The block that was to open.
        cid: Cid,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Opens blocks sealed under any of a space's dedup secrets. Cheap to clone, one serves any number of threads.
///
/// Spec: `protocol/spec/seal.md`, "Opening".
#[derive(Clone)]
pub struct Opener(Arc<OpenerParts>);

struct OpenerParts {
    secrets: Vec<Secret>,
    unpackers: Pool<Decompressor<'static>>,
    plain: Buffers,
}

impl Opener {
    /// An opener that knows these dedup secrets, the newest first: each costs one hash of the block until one fits.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self(Arc::new(OpenerParts {
            secrets,
            unpackers: Pool::new(),
            plain: Buffers::new(PLAIN_IDLE_BYTES_MAX),
        }))
    }

    /// Opens the block of that name.
    ///
    /// # Errors
    /// [`OpenError::WrongBytes`] if `block` is not what `cid` names; the other kinds if it is, and does not open.
    pub fn open(&self, cid: &Cid, block: &[u8], key: &BlockKey) -> Result<Opened, OpenError> {
        if block.len() > BLOCK_BYTES_MAX || !cid.verifies(block) {
            return Err(OpenError::WrongBytes { cid: *cid });
        }
        self.open_verified(cid, block, key)
    }

    /// [`open`](Self::open) for bytes that were already checked against their CID, as the store and the exchange do.
    ///
    /// What it returns is right even if they were not: the key pins the content.
    ///
    /// # Errors
    /// As [`open`](Self::open), except that wrong bytes are [`OpenError::NotAuthentic`].
    pub fn open_verified(
        &self,
        cid: &Cid,
        block: &[u8],
        key: &BlockKey,
    ) -> Result<Opened, OpenError> {
        let malformed = |what| OpenError::Malformed { cid: *cid, what };
        match block.first() {
            Some(&SUITE_1) => {}
            Some(&suite) => return Err(OpenError::UnknownSuite { cid: *cid, suite }),
            None => return Err(malformed("it is empty")),
        }
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block.len()) {
            return Err(malformed("its length is none of a block"));
        }
        let (sealed, tag) = block
            .split_last_chunk::<TAG_BYTES>()
            .ok_or_else(|| malformed("its length is none of a block"))?;
        // Into another buffer: somebody else may still read the block.
        let mut plain = self.0.plain.lend(sealed.len());
        let ((suite, sealed), (first, text)) = sealed
            .split_first()
            .zip(plain.split_first_mut())
            .expect("both are as long as a block without its tag");
        *first = *suite;
        if !key.cipher().open(*suite, sealed, tag, text) {
            return Err(OpenError::NotAuthentic { cid: *cid });
        }
        // Nothing is believed before this: whoever lacks the secret cannot have made what is parsed below.
        if !self
            .0
            .secrets
            .iter()
            .any(|secret| block_key(secret, &plain) == *key)
        {
            return Err(OpenError::UnknownSecret { cid: *cid });
        }
        let (kind, data) = self.parse(plain).map_err(malformed)?;
        Ok(Opened {
            kind,
            data,
            cid: *cid,
            key: key.clone(),
        })
    }

    /// Reads suite and plaintext.
    fn parse(&self, plain: Buffer) -> Result<(Kind, Bytes), &'static str> {
        let Some(([_suite, kind, codec, length @ ..], rest)) =
            plain.split_first_chunk::<{ 1 + HEADER_BYTES }>()
        else {
            return Err("it is too short");
        };
        let kind = Kind::from_u8(*kind).ok_or("it is of unknown kind")?;
        let length =
            usize::try_from(u32::from_le_bytes(*length)).map_err(|_| "its length is wrong")?;
        if length > rest.len() || padded_len(HEADER_BYTES + length) != HEADER_BYTES + rest.len() {
            return Err("its padding has the wrong length");
        }
        let (data, padding) = rest.split_at(length);
        if padding.iter().any(|byte| *byte != 0) {
            return Err("its padding is not zero");
        }
        match codec {
            0 => {
                let start = 1 + HEADER_BYTES;
                Ok((kind, plain.freeze().slice(start..start + length)))
            }
            1 if kind == Kind::Manifest => Err("a manifest is never packed"),
            1 => Ok((kind, self.unpack(data)?.into())),
            _ => Err("it has an unknown codec"),
        }
    }

    /// Unpacks one frame; its size is known, and bounded, before anything is allocated.
    fn unpack(&self, data: &[u8]) -> Result<Vec<u8>, &'static str> {
        const BROKEN: &str = "its data does not unpack";
        let frame = data.starts_with(&zstd_safe::MAGICNUMBER.to_le_bytes());
        if !frame || zstd_safe::find_frame_compressed_size(data) != Ok(data.len()) {
            return Err("its data is not one zstd frame");
        }
        let Ok(Some(size)) = zstd_safe::get_frame_content_size(data) else {
            return Err("its frame does not state its size");
        };
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= DATA_BYTES_MAX);
        let size = size.ok_or("its data unpacks to too much")?;
        if size < ZSTD_BYTES_MIN || !saves_enough(data.len(), size) {
            return Err("it is packed for nothing");
        }
        let mut unpacked = Vec::with_capacity(size);
        let len = self.0.unpackers.with(Decompressor::default, |unpacker| {
            unpacker
                .decompress_to_buffer(data, &mut unpacked)
                .map_err(|_| BROKEN)
        })?;
        if len == size {
            Ok(unpacked)
        } else {
            Err(BROKEN)
        }
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(..)")
    }
}

/// The length that `len` bytes are padded to: Padmé, which adds at most 12 % and tells little more than the order of magnitude.
///
/// Spec: `protocol/spec/seal.md`, "Padding".
pub fn padded_len(len: usize) -> usize {
    let Some(exponent) = len.checked_ilog2().filter(|exponent| *exponent > 0) else {
        return len;
    };
    let free_bits = exponent.saturating_sub(exponent.ilog2() + 1);
    let mask = (1 << free_bits) - 1;
    len.saturating_add(mask) & !mask
}

/// Keyed BLAKE3 over the suite and the padded plaintext.
///
/// Spec: `protocol/spec/seal.md`, "Key".
fn block_key(dedup: &Secret, suite_and_plain: &[u8]) -> BlockKey {
    BlockKey(*blake3::keyed_hash(dedup.expose(), suite_and_plain).as_bytes())
}

/// Whether packing was worth the time that unpacking takes: a sixteenth at least.
fn saves_enough(packed: usize, len: usize) -> bool {
    packed <= len - len / 16
}

/// Whether a sample of the data has its byte values spread so evenly that zstd would hardly save a sixteenth.
///
/// Counts the pairs of equal bytes: even bytes have one in 256, JPEG little more, text one in 16.
///
/// Spec: `protocol/spec/seal.md`, "Codec".
fn looks_random(data: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    let mut count = |bytes: &[u8]| {
        for byte in bytes {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    };
    let sampled = if data.len() <= PROBE_BYTES {
        count(data);
        data.len()
    } else {
        let stretch = PROBE_BYTES / PROBE_STRETCHES;
        let step = (data.len() - stretch) / (PROBE_STRETCHES - 1);
        for start in (0..PROBE_STRETCHES).map(|i| i * step) {
            count(data.get(start..start + stretch).unwrap_or_default());
        }
        PROBE_BYTES
    };
    let sampled = sampled as u64;
    let pairs: u64 = counts
        .iter()
        .map(|count| count * count.saturating_sub(1))
        .sum();
    pairs * 512 < 3 * sampled * (sampled - 1)
}

/// A compressor and where it writes, both kept from block to block.
struct Packer {
    compressor: Compressor<'static>,
    packed: Vec<u8>,
}

impl Packer {
    fn new() -> Self {
        Self {
            compressor: Compressor::new(ZSTD_LEVEL).expect("zstd knows its own levels"),
            packed: Vec::new(),
        }
    }

    fn pack(&mut self, data: &[u8]) -> &[u8] {
        self.packed.clear();
        self.packed.reserve(zstd_safe::compress_bound(data.len()));
        self.compressor
            .compress_to_buffer(data, &mut self.packed)
            .expect("the buffer is as long as zstd asks for");
        &self.packed
    }
}

/// Things worth keeping between blocks, as many as threads use at once.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn with<R>(&self, make: impl FnOnce() -> T, use_it: impl FnOnce(&mut T) -> R) -> R {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut thing = kept.unwrap_or_else(make);
        let result = use_it(&mut thing);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < CONTEXTS_MAX {
            kept.push(thing);
        }
        result
    }
}

#[cfg(test)]
pub(crate) mod vectors {
    //! Fixed bytes that today's code still has to make and to open.

    use std::fmt::Write;

    use data_encoding::HEXLOWER;
    use serde_json::Value;

    use super::OpenError;

    /// The vectors of a topic, after checking that they are what `made` holds; with `KITH_BLESS=1`, writes them first.
    pub(crate) fn load(topic: &str, made: &[Value]) -> Vec<Value> {
        let path = format!(
            "{}/../../tests/vectors/{topic}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        if std::env::var("KITH_BLESS").is_ok_and(|bless| bless == "1") {
            std::fs::write(&path, print(made)).unwrap();
        }
        let kept: Vec<Value> =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            kept.len(),
            made.len(),
            "{path} has other vectors than today's code makes"
        );
        for (kept, made) in kept.iter().zip(made) {
            assert_eq!(kept, made, "{path}: {}", made["name"]);
        }
        kept
    }

    /// One vector a line, its name and what to expect first.
    fn print(vectors: &[Value]) -> String {
        let lines = vectors.iter().map(|vector| {
            let mut line = format!(
                "{{\"name\": {}, \"expect\": {}",
                vector["name"], vector["expect"]
            );
            for (key, value) in vector.as_object().unwrap() {
                if key != "name" && key != "expect" {
                    write!(line, ", \"{key}\": {value}").unwrap();
                }
            }
            line + "}"
        });
        format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"))
    }

    /// The bytes of a hexadecimal field.
    pub(crate) fn bytes(value: &Value) -> Vec<u8> {
        HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
    }

    /// The thirty-two bytes of a hexadecimal field.
    pub(crate) fn array(value: &Value) -> [u8; 32] {
        bytes(value).try_into().unwrap()
    }

    /// Hexadecimal.
    pub(crate) fn hex(bytes: &[u8]) -> String {
        HEXLOWER.encode(bytes)
    }

    /// What a vector expects of a block that does not open.
    pub(crate) fn words(error: &OpenError) -> &'static str {
        match error {
            OpenError::WrongBytes { .. } => "wrong bytes",
            OpenError::UnknownSuite { .. } => "unknown suite",
            OpenError::NotAuthentic { .. } => "not authentic",
            OpenError::UnknownSecret { .. } => "unknown secret",
            OpenError::Malformed { .. } => "malformed",
        }
    }

    /// As many bytes as asked for that look random: the output stream of BLAKE3 over one byte.
    pub(crate) fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::vectors::{array, bytes, hex, noise, words};
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    fn open(block: &SealedBlock) -> Result<Opened, OpenError> {
        Opener::new(vec![secret(1)]).open(&block.cid, &block.bytes, &block.key)
    }

    /// A block of any plaintext, as a malicious member could make it.
    fn forge(kind: u8, codec: u8, length: usize, data: &[u8], plain_len: usize) -> SealedBlock {
        let mut block = vec![SUITE_1, kind, codec];
        block.extend_from_slice(&(length as u32).to_le_bytes());
        block.extend_from_slice(data);
        block.resize(1 + plain_len, 0);
        encrypt(&secret(1), block)
    }

    fn forge_padded(kind: u8, codec: u8, data: &[u8]) -> SealedBlock {
        forge(
            kind,
            codec,
            data.len(),
            data,
            padded_len(HEADER_BYTES + data.len()),
        )
    }

    /// A frame that states a TiB as the size of its content, then one block of 200 equal bytes.
    fn frame_of_a_tib() -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        frame.extend_from_slice(&(1u64 << 40).to_le_bytes());
        frame.extend_from_slice(&[(200u32 << 3 | 2 | 1) as u8, (200u32 >> 5) as u8, 0, b'x']);
        frame
    }

    /// A frame without the size of its content: a window descriptor instead, then one block of 200 equal bytes.
    fn frame_without_size() -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00];
        frame.extend_from_slice(&[(200u32 << 3 | 2 | 1) as u8, (200u32 >> 5) as u8, 0, b'x']);
        frame
    }

    #[test]
    fn same_data_gives_same_block_and_other_secret_another() {
        let data = noise(1, 5000);
        let first = Sealer::new(&secret(1)).seal(Kind::Chunk, &data);
        assert_eq!(first, Sealer::new(&secret(1)).seal(Kind::Chunk, &data));
        let other = Sealer::new(&secret(2)).seal(Kind::Chunk, &data);
        assert_ne!(first.cid, other.cid);
        assert_ne!(first.key, other.key);
        let tree = Sealer::new(&secret(1)).seal(Kind::Tree, &data);
        assert_ne!(first.key, tree.key);
    }

    #[test]
    fn longest_data_makes_longest_block_and_shortest_the_shortest() {
        let sealer = Sealer::new(&secret(1));
        let longest = sealer.seal(Kind::Chunk, &noise(1, DATA_BYTES_MAX));
        assert_eq!(longest.bytes.len(), BLOCK_BYTES_MAX);
        assert_eq!(open(&longest).unwrap().data, noise(1, DATA_BYTES_MAX));
        assert_eq!(sealer.seal(Kind::Chunk, &[]).bytes.len(), BLOCK_BYTES_MIN);
    }

    #[test]
    fn text_is_packed_and_noise_is_not() {
        let sealer = Sealer::new(&secret(1));
        let text = "a life's record, ".repeat(1000);
        assert!(sealer.seal(Kind::Chunk, text.as_bytes()).bytes.len() < 200);
        let noise = noise(1, 100_000);
        assert!(looks_random(&noise));
        assert!(!looks_random(text.as_bytes()));
        assert!(sealer.seal(Kind::Chunk, &noise).bytes.len() > 100_000);
    }

    #[test]
    fn what_was_packed_before_is_invisible() {
        let used = Sealer::new(&secret(1));
        for len in [50_000, 300, 200_000, 1000, 1_000_000, 4096] {
            let text: Vec<u8> = noise(len as u8, len)
                .iter()
                .map(|byte| b'a' + byte % 16)
                .collect();
            assert_eq!(
                used.seal(Kind::Chunk, &text),
                Sealer::new(&secret(1)).seal(Kind::Chunk, &text)
            );
        }
    }

    #[test]
    fn older_secret_still_opens() {
        let block = Sealer::new(&secret(1)).seal(Kind::Tree, b"listing");
        let opener = Opener::new(vec![secret(3), secret(2), secret(1)]);
        let opened = opener.open(&block.cid, &block.bytes, &block.key).unwrap();
        assert_eq!(
            (opened.kind, &opened.data[..]),
            (Kind::Tree, &b"listing"[..])
        );
        let error = Opener::new(vec![secret(2)])
            .open(&block.cid, &block.bytes, &block.key)
            .unwrap_err();
        assert_eq!(words(&error), "unknown secret");
    }

    #[test]
    fn padding_grows_by_an_eighth_at_most() {
        for len in 0..100_000 {
            let padded = padded_len(len);
            assert!(padded >= len && padded - len <= len / 8, "{len} {padded}");
            assert_eq!(padded_len(padded), padded);
        }
    }

    #[test]
    fn names_of_errors_tell_the_block_and_never_the_key() {
        let block = Sealer::new(&secret(1)).seal(Kind::Chunk, b"x");
        let error = OpenError::NotAuthentic { cid: block.cid };
        assert_eq!(
            error.to_string(),
            format!("block {} does not open with this key", block.cid)
        );
        assert_eq!(format!("{:?}", block.key), "BlockKey(..)");
    }

    fn good(name: &str, kind: Kind, data: &[u8]) -> Value {
        let block = Sealer::new(&secret(1)).seal(kind, data);
        let codec = open(&block).map(|_| {
            let (sealed, tag) = block.bytes.split_last_chunk::<TAG_BYTES>().unwrap();
            let mut plain = vec![0; sealed.len() - 1];
            let cipher = block.key.cipher();
            assert!(cipher.open(sealed[0], &sealed[1..], tag, &mut plain));
            plain[1]
        });
        json!({
            "name": name, "expect": "ok", "secrets": [hex(&[1; 32])], "kind": kind as u8, "codec": codec.unwrap(), "data": hex(data),
            "cid": block.cid.to_string(), "key": hex(block.key.expose()), "block": hex(&block.bytes),
        })
    }

    fn bad(name: &str, expect: &str, block: &SealedBlock) -> Value {
        let why = match open(block) {
            Err(OpenError::Malformed { what, .. }) => what,
            _ => "",
        };
        json!({
            "name": name, "expect": expect, "why": why, "secrets": [hex(&[1; 32])],
            "cid": block.cid.to_string(), "key": hex(block.key.expose()), "block": hex(&block.bytes),
        })
    }

    fn made() -> Vec<Value> {
        let text = "a life's record, ".repeat(12);
        let sealed = Sealer::new(&secret(1)).seal(Kind::Chunk, b"hello");
        let mut flipped = sealed.bytes.to_vec();
        flipped[9] ^= 1;
        let renamed = |bytes: Vec<u8>| SealedBlock {
            cid: Cid::of_block(&bytes),
            key: sealed.key.clone(),
            bytes: bytes.into(),
        };
        let mut other_suite = sealed.bytes.to_vec();
        other_suite[0] = 2;
        let packed = |data: &[u8]| zstd::bulk::compress(data, ZSTD_LEVEL).unwrap();
        let two_frames = [packed(&[7; 500]), packed(&[8; 500])].concat();
        let mut not_zero = vec![SUITE_1, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c'];
        not_zero.resize(1 + padded_len(HEADER_BYTES + 3), 1);
        let padding_at_9 = padded_len(HEADER_BYTES + 3) > HEADER_BYTES + 3;
        assert!(padding_at_9, "nine bytes pad to ten");
        let mut vectors = vec![
            good("nothing", Kind::Chunk, b""),
            good("one byte", Kind::Chunk, b"x"),
            good("five bytes", Kind::Chunk, b"hello"),
            good("same bytes as a listing", Kind::Tree, b"hello"),
            good("text is packed", Kind::Chunk, text.as_bytes()),
            good(
                "same text as a manifest is not",
                Kind::Manifest,
                text.as_bytes(),
            ),
            good(
                "text too short to pack",
                Kind::Chunk,
                &text.as_bytes()[..ZSTD_BYTES_MIN - 1],
            ),
            good("random bytes are not packed", Kind::Chunk, &noise(1, 300)),
            bad(
                "one bit flipped",
                "wrong bytes",
                &SealedBlock {
                    bytes: flipped.clone().into(),
                    ..sealed.clone()
                },
            ),
            bad(
                "one bit flipped and named anew",
                "not authentic",
                &renamed(flipped),
            ),
            bad(
                "another block's key",
                "not authentic",
                &SealedBlock {
                    key: BlockKey::new([9; 32]),
                    ..sealed.clone()
                },
            ),
            bad(
                "another secret",
                "unknown secret",
                &Sealer::new(&secret(2)).seal(Kind::Chunk, b"hello"),
            ),
            bad("suite 2", "unknown suite", &renamed(other_suite)),
            bad("no bytes", "malformed", &renamed(Vec::new())),
            bad(
                "too short for a tag",
                "malformed",
                &renamed(sealed.bytes[..BLOCK_BYTES_MIN - 1].to_vec()),
            ),
            bad(
                "padding not zero",
                "malformed",
                &encrypt(&secret(1), not_zero),
            ),
            bad("padded too much", "malformed", &forge(0, 0, 3, b"abc", 12)),
            bad("padded too little", "malformed", &forge(0, 0, 3, b"abc", 9)),
            bad(
                "length beyond the end",
                "malformed",
                &forge(0, 0, 1 << 31, b"abc", 10),
            ),
            bad("unknown kind", "malformed", &forge_padded(3, 0, b"abc")),
            bad("unknown codec", "malformed", &forge_padded(0, 2, b"abc")),
            bad(
                "packed manifest",
                "malformed",
                &forge_padded(1, 1, &packed(&[7; 500])),
            ),
            bad("no zstd frame", "malformed", &forge_padded(0, 1, b"abc")),
            bad(
                "two zstd frames",
                "malformed",
                &forge_padded(0, 1, &two_frames),
            ),
            bad(
                "bytes after the frame",
                "malformed",
                &forge_padded(0, 1, &[packed(&[7; 500]), vec![0]].concat()),
            ),
            bad(
                "frame without its size",
                "malformed",
                &forge_padded(0, 1, &frame_without_size()),
            ),
            bad(
                "unpacks to more than a block holds",
                "malformed",
                &forge_padded(0, 1, &packed(&vec![0; DATA_BYTES_MAX + 1])),
            ),
            bad(
                "claims to unpack to a TiB",
                "malformed",
                &forge_padded(0, 1, &frame_of_a_tib()),
            ),
            bad(
                "packed for nothing",
                "malformed",
                &forge_padded(0, 1, &packed(&noise(1, 300))),
            ),
            bad(
                "packed though short",
                "malformed",
                &forge_padded(0, 1, &packed(&[7; ZSTD_BYTES_MIN - 1])),
            ),
        ];
        for len in [
            0, 1, 2, 3, 7, 9, 15, 17, 100, 1000, 1029, 65_542, 131_078, 262_145, 1_048_575,
            1_048_576,
        ] {
            vectors.push(json!({"name": format!("padding of {len}"), "expect": "ok", "length": len, "padded": padded_len(len)}));
        }
        vectors
    }

    #[test]
    fn vectors_open_as_they_say() {
        for vector in vectors::load("seal", &made()) {
            if let Some(len) = vector["length"].as_u64() {
                assert_eq!(padded_len(len as usize) as u64, vector["padded"]);
                continue;
            }
            let secrets = vector["secrets"]
                .as_array()
                .unwrap()
                .iter()
                .map(|secret| Secret::new(array(secret)))
                .collect();
            let cid = vector["cid"].as_str().unwrap().parse().unwrap();
            let opened = Opener::new(secrets).open(
                &cid,
                &bytes(&vector["block"]),
                &BlockKey::new(array(&vector["key"])),
            );
            match opened {
                Ok(opened) => {
                    assert_eq!(vector["expect"], "ok", "{}", vector["name"]);
                    assert_eq!(opened.data, bytes(&vector["data"]));
                    assert_eq!(opened.kind as u64, vector["kind"]);
                }
                Err(error) => assert_eq!(
                    vector["expect"],
                    words(&error),
                    "{}: {error}",
                    vector["name"]
                ),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens(kind in 0u8..3, seed: u8, len in 0usize..20_000, repeat in 1usize..5) {
            let kind = Kind::from_u8(kind).unwrap();
            let data = noise(seed, len).repeat(repeat);
            let block = Sealer::new(&secret(1)).seal(kind, &data);
            prop_assert!(block.bytes.len() <= 1 + padded_len(HEADER_BYTES + data.len()) + TAG_BYTES);
            let opened = open(&block).unwrap();
            prop_assert_eq!(opened.kind, kind);
            prop_assert_eq!(opened.data, data);
        }

        #[test]
        fn altered_block_never_opens(data in proptest::collection::vec(any::<u8>(), 0..400), at: prop::sample::Index, bit in 0u8..8) {
            let block = Sealer::new(&secret(1)).seal(Kind::Chunk, &data);
            let mut bytes = block.bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let opener = Opener::new(vec![secret(1)]);
            prop_assert!(opener.open(&block.cid, &bytes, &block.key).is_err());
            prop_assert!(opener.open_verified(&block.cid, &bytes, &block.key).is_err());
            prop_assert!(opener.open(&Cid::of_block(&bytes), &bytes, &block.key).is_err());
        }

        #[test]
        fn any_plaintext_of_a_member_is_parsed_or_refused(plain in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..4, codec in 0u8..3, short: bool) {
            let mut block = vec![SUITE_1, kind, codec];
            if short {
                block.extend_from_slice(&(plain.len() as u32).to_le_bytes());
            }
            block.extend_from_slice(&plain);
            block.resize(1 + padded_len(block.len().max(1 + HEADER_BYTES) - 1), 0);
            let _ = open(&encrypt(&secret(1), block));
        }

        #[test]
        fn altered_frame_is_unpacked_or_refused(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut frame = zstd::bulk::compress("a life's record, ".repeat(40).as_bytes(), ZSTD_LEVEL).unwrap();
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = open(&forge_padded(0, 1, &frame));
            let _ = open(&forge_padded(0, 1, &frame[..cut.index(frame.len())]));
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let opener = Opener::new(vec![secret(1)]);
            let cid = Cid::of_block(&bytes);
            prop_assert!(opener.open(&cid, &bytes, &BlockKey::new([0; 32])).is_err());
        }
    }
}
