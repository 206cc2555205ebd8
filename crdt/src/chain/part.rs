//! The payload of an entry: a few parts, each open or sealed under a key of the entry's epoch.

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use kith_object::key::{Rng, Secret, SignKey, derive};
use zeroize::Zeroizing;

use super::entry::{Entry, SIGN_DOMAIN};
use super::header::Header;
use super::read::{Reader, len_u32};

/// Largest payload: what a phone on a bad line still gets in one go, and bounds the work an entry can ask for.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Parts a payload may have.
pub const PARTS_MAX: usize = 8;

const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
/// Codec and length, before a part's body.
const PLAIN_OVERHEAD: usize = 5;

/// Which key seals a part.
///
/// Spec: `protocol/spec/chain.md`, "Payload".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SealKind {
    /// None: anyone who has the entry reads it.
    Open = 0,
    /// The epoch's holder key: members and blind holders.
    Holder = 1,
    /// The epoch's change key: members.
    Change = 2,
}

impl SealKind {
    fn byte(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Holder => 1,
            Self::Change => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Open),
            1 => Some(Self::Holder),
            2 => Some(Self::Change),
            _ => None,
        }
    }

    /// The key that parts of this kind are sealed with, from the epoch's key of that kind.
    fn part_key(self, key: &Secret) -> Option<Secret> {
        match self {
            Self::Open => None,
            Self::Holder => Some(key.derive("kith holder seal 1")),
            Self::Change => Some(key.derive("kith change seal 1")),
        }
    }
}

/// How a part's body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// An Automerge change.
    Change = 1,
    /// A list of records.
    Records = 2,
}

impl Codec {
    fn byte(self) -> u8 {
        match self {
            Self::Change => 1,
            Self::Records => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Change),
            2 => Some(Self::Records),
            _ => None,
        }
    }
}

/// One part as it stands in a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// Which key opens it.
    pub seal: SealKind,
    /// Its bytes: plaintext if open, else nonce, ciphertext, tag.
    pub bytes: &'a [u8],
}

/// What a part says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plain {
    /// How the body is written.
    pub codec: Codec,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

/// Why bytes are not a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload is malformed")]
pub struct PartError;

/// Reads the parts of a payload.
///
/// # Errors
/// [`PartError`] if it is too long, has no parts or too many, or is not made of them exactly.
pub fn parts(payload: &[u8]) -> Result<Vec<Part<'_>>, PartError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(PartError);
    }
    let mut reader = Reader::new(payload);
    let count = usize::from(reader.u16().ok_or(PartError)?);
    if count == 0 || count > PARTS_MAX {
        return Err(PartError);
    }
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        let seal = reader.u8().and_then(SealKind::from_byte).ok_or(PartError)?;
        let len = reader
            .u32()
            .and_then(|len| usize::try_from(len).ok())
            .ok_or(PartError)?;
        let bytes = reader.take(len).ok_or(PartError)?;
        let least = if seal == SealKind::Open {
            0
        } else {
            NONCE_LEN + TAG_LEN
        };
        if bytes.len() < least + PLAIN_OVERHEAD {
            return Err(PartError);
        }
        list.push(Part { seal, bytes });
    }
    if reader.is_empty() {
        Ok(list)
    } else {
        Err(PartError)
    }
}

/// The root over a payload's parts, so that one can be dropped later and the rest still verifies.
///
/// Spec: `protocol/spec/chain.md`, "Payload".
pub fn payload_root(parts: &[Part<'_>]) -> [u8; 32] {
    let mut list = Vec::with_capacity(2 + parts.len() * 37);
    list.extend_from_slice(&u16::try_from(parts.len()).unwrap_or(u16::MAX).to_le_bytes());
    for part in parts {
        list.push(part.seal.byte());
        list.extend_from_slice(&len_u32(part.bytes.len()).to_le_bytes());
        list.extend_from_slice(blake3::hash(part.bytes).as_bytes());
    }
    derive("kith payload 1", &list)
}

/// The length that many bytes are padded to: Padmé, which leaks O(log log n) bits of it.
///
/// Spec: `protocol/spec/chain.md`, "Sealed parts".
pub fn padded_len(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let kept = exponent.checked_ilog2().unwrap_or(0) + 1;
    let mask = (1usize << exponent.saturating_sub(kept)) - 1;
    (len + mask) & !mask
}

impl Part<'_> {
    /// Opens the part at that place of the payload; `key` is the epoch's holder or change key, as [`Part::seal`] says.
    ///
    /// `None` if the key is wrong, a byte was altered, or the plaintext is not what an encoder writes.
    ///
    /// Spec: `protocol/spec/chain.md`, "Sealed parts".
    pub fn open(
        &self,
        header: &Header,
        index: usize,
        count: usize,
        key: Option<&Secret>,
    ) -> Option<Plain> {
        if self.seal == SealKind::Open {
            return Plain::decode(self.bytes, false);
        }
        let key = self.seal.part_key(key?)?;
        let (nonce, sealed) = self.bytes.split_first_chunk::<NONCE_LEN>()?;
        let associated = header.associated(u16::try_from(index).ok()?, u16::try_from(count).ok()?);
        let cipher = XChaCha20Poly1305::new(key.expose().into());
        let payload = Payload {
            msg: sealed,
            aad: &associated,
        };
        let plain = Zeroizing::new(cipher.decrypt(&XNonce::from(*nonce), payload).ok()?);
        Plain::decode(&plain, true)
    }
}

impl Plain {
    fn decode(bytes: &[u8], padded: bool) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let codec = Codec::from_byte(reader.u8()?)?;
        let len = usize::try_from(reader.u32()?).ok()?;
        let body = Zeroizing::new(reader.take(len)?.to_vec());
        let whole = PLAIN_OVERHEAD.checked_add(len)?;
        let wanted = if padded { padded_len(whole) } else { whole };
        let clean = bytes.len() == wanted && reader.rest().iter().all(|byte| *byte == 0);
        clean.then_some(Self { codec, body })
    }

    fn encode(&self, padded: bool) -> Zeroizing<Vec<u8>> {
        let whole = PLAIN_OVERHEAD + self.body.len();
        let len = if padded { padded_len(whole) } else { whole };
        let mut out = Zeroizing::new(Vec::with_capacity(len));
        out.push(self.codec.byte());
        out.extend_from_slice(&len_u32(self.body.len()).to_le_bytes());
        out.extend_from_slice(&self.body);
        out.resize(len, 0);
        out
    }
}

/// An entry in the making: a header whose payload fields are not filled in yet, and the parts to be.
pub(crate) struct Draft {
    pub(crate) header: Header,
    pub(crate) parts: Vec<(SealKind, Plain)>,
}

impl Draft {
    /// Seals the parts, fills in the header, signs it. `None` if the payload exceeds its limit or a key is missing.
    pub(crate) fn seal(self, keys: SealKeys<'_>, signer: &SignKey, rng: &mut Rng) -> Option<Entry> {
        let Self {
            mut header,
            parts: plain,
        } = self;
        let count = u16::try_from(plain.len()).ok()?;
        let mut payload = count.to_le_bytes().to_vec();
        for (index, (seal, plain)) in plain.iter().enumerate() {
            let bytes = match seal {
                SealKind::Open => plain.encode(false).to_vec(),
                SealKind::Holder | SealKind::Change => {
                    let key = if *seal == SealKind::Holder {
                        keys.holder
                    } else {
                        keys.change
                    };
                    let key = seal.part_key(key?)?;
                    let associated = header.associated(u16::try_from(index).ok()?, count);
                    let cipher = XChaCha20Poly1305::new(key.expose().into());
                    let body = plain.encode(true);
                    let nonce = fresh_nonce(&associated, &body, rng);
                    let sealed = cipher
                        .encrypt(
                            &XNonce::from(nonce),
                            Payload {
                                msg: &body,
                                aad: &associated,
                            },
                        )
                        .expect("a payload is far below the cipher's limit");
                    [nonce.as_slice(), &sealed].concat()
                }
            };
            payload.push(seal.byte());
            payload.extend_from_slice(&len_u32(bytes.len()).to_le_bytes());
            payload.extend_from_slice(&bytes);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return None;
        }
        header.payload_len = len_u32(payload.len());
        header.payload_root = payload_root(&parts(&payload).ok()?);
        let signature = signer.sign(SIGN_DOMAIN, &header.id().0);
        Some(Entry::assemble(
            header,
            signature,
            Some(Bytes::from(payload)),
        ))
    }
}

/// A nonce that is random, and that differs for two contents even where the randomness repeats, as in a copy of a running
/// machine.
pub(crate) fn fresh_nonce(associated: &[u8], body: &[u8], rng: &mut Rng) -> [u8; NONCE_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(&rng.bytes());
    hasher.update(associated);
    hasher.update(body);
    let mut nonce = [0; NONCE_LEN];
    hasher.finalize_xof().fill(&mut nonce);
    nonce
}

/// The keys a draft is sealed with.
#[derive(Clone, Copy, Default)]
pub(crate) struct SealKeys<'a> {
    pub(crate) holder: Option<&'a Secret>,
    pub(crate) change: Option<&'a Secret>,
}
