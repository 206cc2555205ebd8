//! Secrets and what they do: sign, agree, derive; the 24 words; a generator of random bytes that is an argument like time.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::SimpleHkdf;
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use rand_core::{TryCryptoRng, TryRng};
use sha3::Sha3_256;
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::DeviceId;

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::ChaCha20Poly1305;

/// What HPKE adds to a plaintext: 32 bytes of encapsulated key, 16 of tag.
pub const ENVELOPE_OVERHEAD: usize = 48;

/// Derives a key: BLAKE3 in its key derivation mode, one domain string per purpose.
pub fn derive(domain: &str, material: &[u8]) -> [u8; 32] {
    blake3::derive_key(domain, material)
}

/// Thirty-two secret bytes: zeroed when dropped, never printed, compared in constant time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes as a secret.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh secret.
    pub fn generate(rng: &mut Rng) -> Self {
        Self(rng.bytes())
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A secret for one purpose, from this one.
    pub fn derive(&self, domain: &str) -> Secret {
        Secret(derive(domain, &self.0))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A deterministic generator of random bytes: BLAKE3 in its extendable output mode, rekeyed as it goes.
///
/// Machines get one as an argument, seeded by the shell from the operating system and by the simulator from its seed.
pub struct Rng {
    key: Secret,
    counter: u64,
}

impl Rng {
    /// A generator whose whole output follows from the seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self {
            key: Secret(derive("kith rng 1", &seed)),
            counter: 0,
        }
    }

    /// Fills the buffer.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(self.key.expose());
        hasher.update(&self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        let mut reader = hasher.finalize_xof();
        // The next key comes first, so that nobody who later learns the state can go back.
        let mut next = [0; 32];
        reader.fill(&mut next);
        self.key = Secret(next);
        next.zeroize();
        reader.fill(out);
    }

    /// That many random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A random number.
    #[expect(
        clippy::should_implement_trait,
        reason = "a generator never ends; as an iterator it would seem to"
    )]
    pub fn next(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A number below `limit` (zero if `limit` is zero), without noticeable bias for the small limits it serves.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 {
            return 0;
        }
        let wide = u128::from(self.next()) * u128::from(limit);
        u64::try_from(wide >> 64).expect("the high half of a product of two u64 fits one")
    }

    /// A generator of its own, for a part that must not disturb the sequence of the rest.
    pub fn split(&mut self) -> Rng {
        Rng::from_seed(self.bytes())
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(..)")
    }
}

impl TryRng for Rng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_le_bytes(self.bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.fill(out);
        Ok(())
    }
}

impl TryCryptoRng for Rng {}

/// An X25519 public key: where envelopes are sealed to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AgreeKey(pub [u8; 32]);

/// Encodings of the points of low order, on the curve and on its twist, without the bit that X25519 leaves out (<https://cr.yp.to/ecdh.html#validate>).
const LOW_ORDER: [[u8; 32]; 7] = [
    low_order(0x00, 0x00, 0x00),
    low_order(0x01, 0x00, 0x00),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    low_order(0xec, 0xff, 0x7f),
    low_order(0xed, 0xff, 0x7f),
    low_order(0xee, 0xff, 0x7f),
];

const fn low_order(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

impl AgreeKey {
    /// Whether a secret may belong to it: it is no point of low order, to which nothing can be sealed.
    pub fn is_usable(&self) -> bool {
        let mut point = self.0;
        if let Some(last) = point.last_mut() {
            *last &= 0x7f;
        }
        !LOW_ORDER.contains(&point)
    }
}

impl fmt::Debug for AgreeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgreeKey({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// The secret half of an [`AgreeKey`]; `StaticSecret` zeroes itself.
#[derive(Clone)]
pub struct AgreeSecret(StaticSecret);

impl AgreeSecret {
    /// The key of those secret bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// The public half.
    pub fn public(&self) -> AgreeKey {
        AgreeKey(PublicKey::from(&self.0).to_bytes())
    }

    /// Opens what [`seal_to`] sealed to the public half; `None` if anything differs.
    pub fn open(
        &self,
        info: &[u8],
        associated: &[u8],
        envelope: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let (encapped, sealed) = envelope.split_at_checked(32)?;
        let secret = <Kem as hpke::Kem>::PrivateKey::from_bytes(self.0.as_bytes()).ok()?;
        let encapped = <Kem as hpke::Kem>::EncappedKey::from_bytes(encapped).ok()?;
        let opened = hpke::single_shot_open::<Aead, Kdf, Kem>(
            &OpModeR::Base,
            &secret,
            &encapped,
            info,
            sealed,
            associated,
        );
        opened.ok().map(Zeroizing::new)
    }
}

impl fmt::Debug for AgreeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgreeSecret(..)")
    }
}

/// Seals bytes to a key: HPKE base mode, X25519-HKDF-SHA256, HKDF-SHA256, ChaCha20-Poly1305.
///
/// Returns the 32 bytes of encapsulated key, then ciphertext and tag. `None` if the key is one that no secret belongs to (a low order point).
///
/// Spec: `protocol/spec/keys.md`, "Envelopes".
pub fn seal_to(
    recipient: &AgreeKey,
    info: &[u8],
    associated: &[u8],
    plaintext: &[u8],
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    let recipient = <Kem as hpke::Kem>::PublicKey::from_bytes(&recipient.0).ok()?;
    let (encapped, sealed) = hpke::single_shot_seal_with_rng::<Aead, Kdf, Kem>(
        &OpModeS::Base,
        &recipient,
        info,
        plaintext,
        associated,
        rng,
    )
    .ok()?;
    let mut envelope = encapped.to_bytes().to_vec();
    envelope.extend_from_slice(&sealed);
    Some(envelope)
}

/// An Ed25519 key that signs. What it signs begins with a domain string, so that no signature means two things.
#[derive(Clone)]
pub struct SignKey(SigningKey);

impl SignKey {
    /// The key of that seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public key, as the name of a device (or of the root).
    pub fn id(&self) -> DeviceId {
        DeviceId(self.0.verifying_key().to_bytes())
    }

    /// The secret seed; for the device's key file and for libp2p, which signs with the same key.
    pub fn seed(&self) -> Secret {
        Secret(self.0.to_bytes())
    }

    /// Signs domain, a zero byte, message.
    ///
    /// Spec: `protocol/spec/keys.md`, "Signatures".
    pub fn sign(&self, domain: &str, message: &[u8]) -> [u8; 64] {
        self.0.sign(&signed_bytes(domain, message)).to_bytes()
    }
}

impl fmt::Debug for SignKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignKey({})", self.id())
    }
}

fn signed_bytes(domain: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(domain.len() + 1 + message.len());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(message);
    bytes
}

/// Whether the signature is by that key over domain and message. Strict: the one verification used everywhere.
pub fn verify(signer: &DeviceId, domain: &str, message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&signer.0) else {
        return false;
    };
    key.verify_strict(
        &signed_bytes(domain, message),
        &Signature::from_bytes(signature),
    )
    .is_ok()
}

/// A device's own two key pairs. They never leave it.
#[derive(Clone, Debug)]
pub struct DeviceKeys {
    sign: SignKey,
    agree: AgreeSecret,
}

impl DeviceKeys {
    /// Fresh keys.
    pub fn generate(rng: &mut Rng) -> Self {
        Self::from_bytes(&rng.bytes())
    }

    /// Keys from their 64 secret bytes: Ed25519 seed, X25519 secret.
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let (mut seed, mut agree) = ([0; 32], [0; 32]);
        let (first, second) = bytes.split_at(32);
        seed.copy_from_slice(first);
        agree.copy_from_slice(second);
        let keys = Self {
            sign: SignKey::from_seed(&seed),
            agree: AgreeSecret::from_bytes(agree),
        };
        seed.zeroize();
        agree.zeroize();
        keys
    }

    /// The 64 secret bytes.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 64]> {
        let mut bytes = Zeroizing::new([0; 64]);
        let (first, second) = bytes.split_at_mut(32);
        first.copy_from_slice(self.sign.seed().expose());
        second.copy_from_slice(self.agree.0.as_bytes());
        bytes
    }

    /// The device's name.
    pub fn id(&self) -> DeviceId {
        self.sign.id()
    }

    /// The signing key.
    pub fn sign_key(&self) -> &SignKey {
        &self.sign
    }

    /// Signs as the device.
    pub fn sign(&self, domain: &str, message: &[u8]) -> [u8; 64] {
        self.sign.sign(domain, message)
    }

    /// Where envelopes for the device are sealed to.
    pub fn agree_public(&self) -> AgreeKey {
        self.agree.public()
    }

    /// The secret that opens them.
    pub fn agree_secret(&self) -> &AgreeSecret {
        &self.agree
    }

    /// A secret that only this device has, for what it keeps for itself on disk.
    pub fn local_secret(&self, domain: &str) -> Secret {
        Secret(derive(domain, self.to_bytes().as_slice()))
    }
}

/// The keys that follow from the 24 words.
#[derive(Clone, Debug)]
pub struct RootKeys {
    /// Certifies devices; the name of the mesh's owner.
    pub sign: SignKey,
    /// Opens every epoch's envelopes when all devices are lost.
    pub recovery: AgreeSecret,
}

/// Twenty-four BIP-39 words: the whole secret of a mesh. Shown once, never stored.
///
/// Spec: `protocol/spec/keys.md`, "Words".
pub struct Words(bip39::Mnemonic);

/// Number of words.
pub const WORD_COUNT: usize = 24;

/// What is wrong with typed words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Not 24 of them.
    #[error("{found} words were given, {WORD_COUNT} are needed")]
    Count {
        /// How many there were.
        found: usize,
    },
    /// One is not in the list. Its place is counted from 1; the word itself is not repeated, since errors reach logs.
    #[error("word {place} is not in the word list")]
    Unknown {
        /// Its place, from 1.
        place: usize,
    },
    /// All are in the list, but the checksum in the last word does not fit: a word is wrong or two are swapped.
    #[error(
        "every word is in the list, but their checksum does not fit: a word is wrong or two are swapped"
    )]
    Checksum,
}

impl Words {
    /// Fresh words.
    pub fn generate(rng: &mut Rng) -> Self {
        let entropy = Zeroizing::new(rng.bytes::<32>());
        Self(bip39::Mnemonic::from_entropy(&*entropy).expect("32 bytes make 24 words"))
    }

    /// Reads words as typed: any case, any white space between.
    ///
    /// # Errors
    /// [`WordsError`] says which word, or that the checksum does not fit.
    pub fn parse(text: &str) -> Result<Self, WordsError> {
        let typed: Vec<Zeroizing<String>> = text
            .split_whitespace()
            .map(|word| Zeroizing::new(word.to_lowercase()))
            .collect();
        if typed.len() != WORD_COUNT {
            return Err(WordsError::Count { found: typed.len() });
        }
        let list = bip39::Language::English.word_list();
        if let Some(place) = typed.iter().position(|word| !list.contains(&word.as_str())) {
            return Err(WordsError::Unknown { place: place + 1 });
        }
        let mut joined = Zeroizing::new(String::new());
        for word in &typed {
            joined.push_str(word);
            joined.push(' ');
        }
        bip39::Mnemonic::parse_in_normalized(bip39::Language::English, joined.trim_end())
            .map(Self)
            .map_err(|_| WordsError::Checksum)
    }

    /// The words, separated by single spaces.
    pub fn phrase(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string())
    }

    /// The keys that follow: words, BIP-39 seed without passphrase, HKDF-SHA3-256 with one label per purpose.
    pub fn root(&self) -> RootKeys {
        let seed = Zeroizing::new(self.0.to_seed_normalized(""));
        let expand = |label: &str| {
            let mut out = Zeroizing::new([0; 32]);
            SimpleHkdf::<Sha3_256>::new(None, &*seed)
                .expand(label.as_bytes(), &mut *out)
                .expect("32 bytes are within what HKDF gives");
            out
        };
        RootKeys {
            sign: SignKey::from_seed(&expand("kith root signing 1")),
            recovery: AgreeSecret::from_bytes(*expand("kith root recovery 1")),
        }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Words(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> Rng {
        Rng::from_seed([1; 32])
    }

    #[test]
    fn same_seed_gives_the_same_bytes() {
        let (mut one, mut other) = (rng(), rng());
        assert_eq!(one.bytes::<100>(), other.bytes::<100>());
        assert_ne!(one.next(), one.next());
        assert!((0..1000).all(|_| one.below(7) < 7));
    }

    #[test]
    fn words_round_trip_and_tell_what_is_wrong() {
        let words = Words::generate(&mut rng());
        let phrase = words.phrase();
        let again = Words::parse(&format!("  {}\n", phrase.to_uppercase())).unwrap();
        assert_eq!(again.root().sign.id(), words.root().sign.id());
        assert_eq!(
            again.root().recovery.public(),
            words.root().recovery.public()
        );

        let mut list: Vec<&str> = phrase.split(' ').collect();
        assert_eq!(
            Words::parse("one two").unwrap_err(),
            WordsError::Count { found: 2 }
        );
        let kept = list[4];
        list[4] = "kith";
        assert_eq!(
            Words::parse(&list.join(" ")).unwrap_err(),
            WordsError::Unknown { place: 5 }
        );
        list[4] = if kept == "zoo" { "abandon" } else { "zoo" };
        // One wrong word of the list passes its 8-bit checksum once in 256; this fixed one does not.
        assert_eq!(
            Words::parse(&list.join(" ")).unwrap_err(),
            WordsError::Checksum
        );
    }

    #[test]
    fn known_words_give_known_keys() {
        let words = Words::parse(&format!("{}art", "abandon ".repeat(23))).unwrap();
        let root = words.root();
        let signing = data_encoding::HEXLOWER.encode(&root.sign.id().0);
        let recovery = data_encoding::HEXLOWER.encode(&root.recovery.public().0);
        assert_eq!(
            (signing.as_str(), recovery.as_str()),
            (
                "62a57d28b9a5baa448aa0ebfc8c831758313ed0ae65c7843707f8b2279d836a1",
                "c6170419fb678eb12895664ece4f406120fb723bebf1292d7546d0b79f926940"
            )
        );
    }

    #[test]
    fn signature_holds_for_its_domain_and_message_only() {
        let keys = DeviceKeys::generate(&mut rng());
        let signature = keys.sign("kith test 1", b"message");
        assert!(verify(&keys.id(), "kith test 1", b"message", &signature));
        assert!(!verify(&keys.id(), "kith test 2", b"message", &signature));
        assert!(!verify(&keys.id(), "kith test 1", b"massage", &signature));
        assert!(!verify(
            &DeviceId([0; 32]),
            "kith test 1",
            b"message",
            &signature
        ));
    }

    #[test]
    fn usable_keys_are_those_that_can_be_sealed_to() {
        let mut rng = Rng::from_seed([8; 32]);
        let mut keys: Vec<[u8; 32]> = (0..20).map(|_| rng.bytes()).collect();
        for low in LOW_ORDER {
            assert!(!AgreeKey(low).is_usable());
            keys.push(low);
            for (place, bit) in [(31, 0x80), (0, 2), (7, 1), (31, 1)] {
                let mut other = low;
                other[place] ^= bit;
                keys.push(other);
            }
        }
        // All that are not written in the shortest way.
        for first in 0xed..=0xff {
            keys.push(low_order(first, 0xff, 0x7f));
            keys.push(low_order(first, 0xff, 0xff));
        }
        for key in keys.into_iter().map(AgreeKey) {
            let sealed = seal_to(&key, &[], &[], &[], &mut Rng::from_seed([0; 32]));
            assert_eq!(key.is_usable(), sealed.is_some(), "{key:?}");
        }
    }

    #[test]
    fn envelope_opens_for_its_recipient_and_context_only() {
        let mut rng = rng();
        let (keys, other) = (
            DeviceKeys::generate(&mut rng),
            DeviceKeys::generate(&mut rng),
        );
        let envelope = seal_to(&keys.agree_public(), b"info", b"ad", b"secret", &mut rng).unwrap();
        assert_eq!(envelope.len(), b"secret".len() + ENVELOPE_OVERHEAD);
        let open = |keys: &DeviceKeys, info: &[u8], ad: &[u8], bytes: &[u8]| {
            keys.agree_secret()
                .open(info, ad, bytes)
                .map(|opened| opened.to_vec())
        };
        assert_eq!(
            open(&keys, b"info", b"ad", &envelope).as_deref(),
            Some(&b"secret"[..])
        );
        assert_eq!(open(&other, b"info", b"ad", &envelope), None);
        assert_eq!(open(&keys, b"else", b"ad", &envelope), None);
        assert_eq!(open(&keys, b"info", b"", &envelope), None);
        assert_eq!(open(&keys, b"info", b"ad", &envelope[..40]), None);
        assert_eq!(open(&keys, b"info", b"ad", b""), None);
    }

    #[test]
    fn device_keys_survive_their_bytes_and_print_no_secret() {
        let keys = DeviceKeys::generate(&mut rng());
        let again = DeviceKeys::from_bytes(&keys.to_bytes());
        assert_eq!(
            (again.id(), again.agree_public()),
            (keys.id(), keys.agree_public())
        );
        let seed = data_encoding::HEXLOWER.encode(keys.sign_key().seed().expose());
        assert!(!format!("{keys:?} {:?}", keys.sign_key().seed()).contains(&seed));
    }
}
