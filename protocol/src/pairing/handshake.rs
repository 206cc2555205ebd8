//! What both sides of the ticket handshake compute: transcript, commitments, proofs, the short code.
//!
//! Spec: `protocol/spec/pairing.md`, "Transcript".

use std::fmt;

use kith_object::id::{DeviceId, EpochId, SpaceId};
use kith_object::key::{AgreeKey, DeviceKeys, Secret, verify};
use subtle::ConstantTimeEq;

use super::ticket::Ticket;
use super::{GENESIS_BYTES_MAX, Role};
use crate::wire::{Malformed, Reader, Writer};

/// Longest binary peer id; ours have 38 bytes.
pub const PEER_BYTES_MAX: usize = 64;

/// The two ends of a connection as the transport proved them: binary libp2p peer ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peers {
    /// Of the door.
    pub door: Vec<u8>,
    /// Of who came; a temporary key.
    pub newcomer: Vec<u8>,
}

impl Peers {
    /// Whether they can stand in a transcript.
    pub(super) fn is_valid(&self) -> bool {
        [&self.door, &self.newcomer]
            .into_iter()
            .all(|peer| (1..=PEER_BYTES_MAX).contains(&peer.len()))
    }
}

/// A running hash over both peer ids and all messages so far.
///
/// Spec: `protocol/spec/pairing.md`, "Transcript".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Transcript(pub(super) [u8; 32]);

impl Transcript {
    /// Before any message.
    pub(super) fn start(peers: &Peers) -> Self {
        let mut writer = Writer::new();
        writer.bytes_u16(&peers.door).bytes_u16(&peers.newcomer);
        Self(kith_object::key::derive(
            "kith pairing start 1",
            &writer.finish(),
        ))
    }

    /// With one message more, given in pieces.
    pub(super) fn absorb(&self, message: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kith pairing transcript 1");
        hasher.update(&self.0);
        for piece in message {
            hasher.update(piece);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// What a side commits to first and opens later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Opening {
    pub(super) nonce: [u8; 32],
    pub(super) device: DeviceId,
    pub(super) agree: AgreeKey,
    /// The newcomer's name, or the mesh's genesis record.
    pub(super) about: Vec<u8>,
}

impl Opening {
    pub(super) fn of(keys: &DeviceKeys, nonce: [u8; 32], about: &[u8]) -> Self {
        Self {
            nonce,
            device: keys.id(),
            agree: keys.agree_public(),
            about: about.to_vec(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .raw(&self.nonce)
            .raw(&self.device.0)
            .raw(&self.agree.0)
            .bytes_u16(&self.about);
        writer.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let opening = Self {
            nonce: reader.array()?,
            device: DeviceId(reader.array()?),
            agree: AgreeKey(reader.array()?),
            about: reader.bytes_u16(GENESIS_BYTES_MAX)?.to_vec(),
        };
        reader.finish()?;
        Ok(opening)
    }

    pub(super) fn commitment(&self, side: Side) -> [u8; 32] {
        kith_object::key::derive(side.commit_domain(), &self.encode())
    }

    /// Whether this is what was committed to.
    pub(super) fn opens(&self, side: Side, commitment: &[u8; 32]) -> bool {
        self.commitment(side).ct_eq(commitment).into()
    }
}

/// Who speaks, and on what occasion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// The newcomer, J.
    Newcomer,
    /// The device that lets it in, M.
    Admitter,
    /// The newcomer once more, on a fresh connection.
    Again,
    /// M, for message 5.
    Welcome,
}

impl Side {
    fn commit_domain(self) -> &'static str {
        match self {
            Self::Admitter | Self::Welcome => "kith pairing commit admitter 1",
            Self::Newcomer | Self::Again => "kith pairing commit newcomer 1",
        }
    }

    fn proof_domain(self) -> &'static str {
        match self {
            Self::Newcomer => "kith pairing proof newcomer 1",
            Self::Admitter => "kith pairing proof admitter 1",
            Self::Again => "kith pairing proof again 1",
            Self::Welcome => "kith pairing proof welcome 1",
        }
    }

    fn letter(self) -> u8 {
        match self {
            Self::Newcomer => b'J',
            Self::Admitter => b'M',
            Self::Again => b'A',
            Self::Welcome => b'W',
        }
    }
}

/// K: what only those have who know the ticket's secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ProofKey(pub(super) Secret);

impl ProofKey {
    pub(super) fn of(ticket: &Ticket) -> Self {
        Self::derive(&ticket.secret, &ticket.mesh, ticket.role)
    }

    fn derive(secret: &[u8; 16], mesh: &SpaceId, role: Role) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kith pairing proof key 1");
        hasher.update(secret).update(&mesh.0).update(&[role.byte()]);
        Self(Secret::new(*hasher.finalize().as_bytes()))
    }

    fn mac(&self, side: Side, transcript: &Transcript) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.0.expose());
        hasher.update(&[side.letter()]).update(&transcript.0);
        hasher.finalize()
    }

    /// The message, with signature and MAC over it and all before appended.
    ///
    /// Spec: `protocol/spec/pairing.md`, "Proof".
    pub(super) fn prove(
        &self,
        side: Side,
        before: &Transcript,
        keys: &DeviceKeys,
        mut message: Vec<u8>,
    ) -> Vec<u8> {
        let signature = keys.sign(side.proof_domain(), &before.absorb(&[&message]).0);
        message.extend_from_slice(&signature);
        let mac = self.mac(side, &before.absorb(&[&message]));
        message.extend_from_slice(mac.as_bytes());
        message
    }

    /// The message without its proof, if the MAC holds; the signature is left to [`Proved::is_signed_by`].
    pub(super) fn check<'a>(
        &self,
        side: Side,
        before: &Transcript,
        message: &'a [u8],
    ) -> Option<Proved<'a>> {
        let (signed, mac) = message.split_last_chunk::<32>()?;
        let (body, signature) = signed.split_last_chunk::<64>()?;
        // `blake3::Hash` compares in constant time.
        if self.mac(side, &before.absorb(&[signed])) != blake3::Hash::from_bytes(*mac) {
            return None;
        }
        Some(Proved {
            side,
            body,
            signature,
            transcript: before.absorb(&[body]),
        })
    }
}

/// A message by one who knows the ticket's secret.
pub(super) struct Proved<'a> {
    side: Side,
    /// The message without signature and MAC.
    pub(super) body: &'a [u8],
    signature: &'a [u8; 64],
    transcript: Transcript,
}

impl Proved<'_> {
    pub(super) fn is_signed_by(&self, device: &DeviceId) -> bool {
        verify(
            device,
            self.side.proof_domain(),
            &self.transcript.0,
            self.signature,
        )
    }
}

/// The short code that both screens show, six digits.
///
/// Spec: `protocol/spec/pairing.md`, "Code".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Code(u32);

impl Code {
    /// How many codes there are.
    const COUNT: u64 = 1_000_000;

    /// Follows from what was committed to before either side knew the other's nonce, and from nothing else: signatures are not part of it, since their
    /// maker can make many for one message and so choose among codes.
    pub(super) fn of(committed: &Transcript, newcomer: &Opening, admitter: &Opening) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("kith pairing code 1");
        hasher
            .update(&committed.0)
            .update(&newcomer.encode())
            .update(&admitter.encode());
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]) % Self::COUNT;
        Self(u32::try_from(number).expect("below a million"))
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        (u64::from(number) < Self::COUNT).then_some(Self(number))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03} {:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Which part of an epoch an envelope holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Holder,
    Member,
}

impl Part {
    /// Associated data of its envelope.
    pub(super) fn associated(self) -> [u8; 1] {
        match self {
            Self::Holder => [1],
            Self::Member => [2],
        }
    }
}

/// HPKE `info` of the parts in message 5: opens nowhere but in this very handshake.
pub(super) fn parts_info(
    space: &SpaceId,
    epoch: &EpochId,
    admitter: &DeviceId,
    newcomer: &DeviceId,
    transcript: &Transcript,
) -> Vec<u8> {
    [
        b"kith pairing parts 1".as_slice(),
        &space.0,
        &epoch.0,
        &admitter.0,
        &newcomer.0,
        &transcript.0,
    ]
    .concat()
}
