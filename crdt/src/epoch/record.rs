//! The records that open an epoch: what it commits to, links to earlier ones, envelopes to those who get its keys.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use kith_object::id::{EpochId, SpaceId};
use kith_object::key::{AgreeKey, AgreeSecret, ENVELOPE_OVERHEAD, Rng, Secret, derive, seal_to};
use zeroize::Zeroizing;

use super::keys::PART_LEN;
use crate::chain::fresh_nonce;
use crate::chain::read::Reader;

/// Parents an epoch may have: heads that one merge brings together.
pub const PARENTS_MAX: usize = 16;
/// Links in one entry: two for each parent, and to what other links do not reach.
pub const LINKS_MAX: usize = 128;
/// Envelopes in one entry: two for each device of a large mesh and for recovery; as many as fit a payload.
pub const ENVELOPES_MAX: usize = 4096;

const NONCE_LEN: usize = 24;
const LINK_SEALED_LEN: usize = NONCE_LEN + PART_LEN + 16;
const ENVELOPE_SEALED_LEN: usize = PART_LEN + ENVELOPE_OVERHEAD;

/// Which part of an epoch's keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KeyPart {
    /// For members and blind holders.
    Holder = 1,
    /// For members.
    Member = 2,
}

impl KeyPart {
    fn byte(self) -> u8 {
        match self {
            Self::Holder => 1,
            Self::Member => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Holder),
            2 => Some(Self::Member),
            _ => None,
        }
    }
}

/// What an epoch's id commits to.
///
/// Spec: `protocol/spec/epoch.md`, "Epoch".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochRecord {
    /// Commitment to the holder part.
    pub holder: [u8; 32],
    /// Commitment to the member part.
    pub member: [u8; 32],
    /// The epochs it follows; none in genesis.
    pub parents: Vec<EpochId>,
}

impl EpochRecord {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [self.holder, self.member].concat();
        out.push(u8::try_from(self.parents.len()).expect("at most 16 parents"));
        for parent in &self.parents {
            out.extend_from_slice(&parent.0);
        }
        out
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let (holder, member) = (reader.array()?, reader.array()?);
        let count = usize::from(reader.u8()?);
        if count > PARENTS_MAX {
            return None;
        }
        let parents = reader.names(count, EpochId)?;
        reader.is_empty().then_some(Self {
            holder,
            member,
            parents,
        })
    }

    /// The epoch's id in that space.
    pub fn id(&self, space: &SpaceId) -> EpochId {
        EpochId(derive(
            "kith epoch 1",
            &[space.0.as_slice(), &self.encode()].concat(),
        ))
    }
}

/// A part of an earlier epoch, sealed under the same part of this one.
///
/// Spec: `protocol/spec/epoch.md`, "Links".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link {
    /// The epoch whose keys open it.
    pub epoch: EpochId,
    /// The epoch whose keys it holds.
    pub earlier: EpochId,
    /// Which part, of both.
    pub part: KeyPart,
    /// Nonce, ciphertext, tag.
    pub sealed: [u8; LINK_SEALED_LEN],
}

impl Link {
    fn associated(space: &SpaceId, epoch: &EpochId, earlier: &EpochId, part: KeyPart) -> Vec<u8> {
        [space.0.as_slice(), &epoch.0, &earlier.0, &[part.byte()]].concat()
    }

    /// Seals a part of an earlier epoch; `key` is this epoch's holder or change key.
    pub fn seal(
        space: &SpaceId,
        (epoch, key): (EpochId, &Secret),
        (earlier, keys): (EpochId, &[u8; PART_LEN]),
        part: KeyPart,
        rng: &mut Rng,
    ) -> Self {
        let cipher = XChaCha20Poly1305::new(key.derive("kith link 1").expose().into());
        let aad = Self::associated(space, &epoch, &earlier, part);
        let nonce = fresh_nonce(&aad, keys, rng);
        let body = cipher
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: keys,
                    aad: &aad,
                },
            )
            .expect("64 bytes are below the cipher's limit");
        let sealed = [nonce.as_slice(), &body].concat();
        let sealed = sealed.try_into().expect("nonce, 64 bytes and tag");
        Self {
            epoch,
            earlier,
            part,
            sealed,
        }
    }

    /// The earlier epoch's part; `None` if the key is wrong. The caller checks it against the epoch's id.
    pub fn open(&self, space: &SpaceId, key: &Secret) -> Option<Zeroizing<[u8; PART_LEN]>> {
        let cipher = XChaCha20Poly1305::new(key.derive("kith link 1").expose().into());
        let (nonce, body) = self.sealed.split_first_chunk::<NONCE_LEN>()?;
        let aad = Self::associated(space, &self.epoch, &self.earlier, self.part);
        let plain = Zeroizing::new(
            cipher
                .decrypt(
                    &XNonce::from(*nonce),
                    Payload {
                        msg: body,
                        aad: &aad,
                    },
                )
                .ok()?,
        );
        Some(Zeroizing::new(plain.as_slice().try_into().ok()?))
    }

    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        [
            self.epoch.0.as_slice(),
            &self.earlier.0,
            &[self.part.byte()],
            &self.sealed,
        ]
        .concat()
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let link = Self {
            epoch: EpochId(reader.array()?),
            earlier: EpochId(reader.array()?),
            part: KeyPart::from_byte(reader.u8()?)?,
            sealed: reader.array()?,
        };
        reader.is_empty().then_some(link)
    }

    /// Records stand in this order.
    pub(crate) fn order(&self) -> (EpochId, EpochId, KeyPart) {
        (self.epoch, self.earlier, self.part)
    }
}

/// A part of an epoch, sealed to one device or to the recovery key.
///
/// Spec: `protocol/spec/epoch.md`, "Envelopes".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Envelope {
    /// The epoch whose keys it holds.
    pub epoch: EpochId,
    /// Whom it is sealed to.
    pub recipient: AgreeKey,
    /// Which part.
    pub part: KeyPart,
    /// Encapsulated key, ciphertext, tag.
    pub sealed: [u8; ENVELOPE_SEALED_LEN],
}

impl Envelope {
    fn info(space: &SpaceId, epoch: &EpochId, recipient: &AgreeKey, part: KeyPart) -> Vec<u8> {
        [
            b"kith envelope 1".as_slice(),
            &space.0,
            &epoch.0,
            &recipient.0,
            &[part.byte()],
        ]
        .concat()
    }

    /// Seals a part to a key; `None` if no secret belongs to that key.
    ///
    /// Whoever has the part gets the same bytes, and so can tell whether another's envelope holds it: see
    /// `protocol/spec/epoch.md`, "Envelopes".
    pub fn seal(
        space: &SpaceId,
        epoch: EpochId,
        recipient: AgreeKey,
        part: KeyPart,
        keys: &[u8; PART_LEN],
    ) -> Option<Self> {
        let info = Self::info(space, &epoch, &recipient, part);
        let material =
            Zeroizing::new([keys.as_slice(), &epoch.0, &recipient.0, &[part.byte()]].concat());
        let seed = Zeroizing::new(derive("kith envelope seed 1", &material));
        let sealed = seal_to(&recipient, &info, &[], keys, &mut Rng::from_seed(*seed))?;
        let sealed = sealed
            .try_into()
            .expect("encapsulated key, 64 bytes and tag");
        Some(Self {
            epoch,
            recipient,
            part,
            sealed,
        })
    }

    /// What a liar makes: it opens to those bytes, and is not what an honest device would have made.
    #[cfg(test)]
    pub(crate) fn falsely(&self, space: &SpaceId, keys: &[u8; PART_LEN], rng: &mut Rng) -> Self {
        let info = Self::info(space, &self.epoch, &self.recipient, self.part);
        let sealed =
            seal_to(&self.recipient, &info, &[], keys, rng).expect("a secret belongs to it");
        Self {
            sealed: sealed.try_into().expect("as long as a true one"),
            ..self.clone()
        }
    }

    /// A short name of the sealed bytes, to compare them by.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(&self.sealed).as_bytes()
    }

    /// The part; `None` if it is not for this key or was altered. The caller checks it against the epoch's id.
    pub fn open(&self, space: &SpaceId, secret: &AgreeSecret) -> Option<Zeroizing<[u8; PART_LEN]>> {
        let info = Self::info(space, &self.epoch, &self.recipient, self.part);
        let plain = secret.open(&info, &[], &self.sealed)?;
        Some(Zeroizing::new(plain.as_slice().try_into().ok()?))
    }

    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        [
            self.epoch.0.as_slice(),
            &self.recipient.0,
            &[self.part.byte()],
            &self.sealed,
        ]
        .concat()
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let envelope = Self {
            epoch: EpochId(reader.array()?),
            recipient: AgreeKey(reader.array()?),
            part: KeyPart::from_byte(reader.u8()?)?,
            sealed: reader.array()?,
        };
        reader.is_empty().then_some(envelope)
    }

    /// Records stand in this order.
    pub(crate) fn order(&self) -> (EpochId, AgreeKey, KeyPart) {
        (self.epoch, self.recipient, self.part)
    }
}
