//! The messages at the door, byte for byte.
//!
//! Spec: `protocol/spec/pairing.md`, "Messages".

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{AgreeKey, AgreeSecret, ENVELOPE_OVERHEAD, Rng, seal_to};

use super::handshake::Part;
use super::ticket::TicketId;
use super::{ADMISSION_BYTES_MAX, GUIDE_BYTES_MAX, SecretBytes, VERSION};
use crate::wire::{DOOR_FRAME_BYTES_MAX_PROVED, Malformed, Reader, Writer};

/// First byte of each message. The first three begin a conversation.
///
/// Spec: `protocol/spec/pairing.md`, "Messages".
pub(super) mod kind {
    pub(in super::super) const REFUSED: u8 = 0x00;
    pub(in super::super) const TICKET: u8 = 0x01;
    pub(in super::super) const WORDS: u8 = 0x02;
    pub(in super::super) const AGAIN: u8 = 0x03;
    pub(in super::super) const COMMIT: u8 = 0x12;
    pub(in super::super) const NEWCOMER_PROOF: u8 = 0x13;
    pub(in super::super) const ADMITTER_PROOF: u8 = 0x14;
    pub(in super::super) const WELCOME: u8 = 0x15;
    pub(in super::super) const RECEIVED: u8 = 0x16;
    pub(in super::super) const DECLINED: u8 = 0x1f;
    pub(in super::super) const NONCE: u8 = 0x22;
    pub(in super::super) const ROOT_PROOF: u8 = 0x23;
    pub(in super::super) const GUIDE: u8 = 0x24;
    pub(in super::super) const ADMISSION: u8 = 0x25;
    pub(in super::super) const STORED: u8 = 0x26;
}

/// The one answer to whoever proved nothing, whatever was wrong.
pub(super) const REFUSED: Bytes = Bytes::from_static(&[kind::REFUSED]);

/// Why the door ends a conversation with one who proved itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Declined {
    /// A person said no.
    No,
    /// No person answered in time, or the ticket was taken back.
    TimeOut,
    /// The door could not do its part.
    Failed,
}

impl Declined {
    pub(super) fn encode(self) -> Bytes {
        let reason = match self {
            Self::No => 1,
            Self::TimeOut => 2,
            Self::Failed => 3,
        };
        Bytes::copy_from_slice(&[kind::DECLINED, reason])
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        match message {
            [kind::DECLINED, 1] => Ok(Self::No),
            [kind::DECLINED, 2] => Ok(Self::TimeOut),
            [kind::DECLINED, 3] => Ok(Self::Failed),
            _ => Err(Malformed("no reason to decline")),
        }
    }
}

/// How a stranger begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Hello {
    Ticket {
        ticket: TicketId,
        commitment: [u8; 32],
    },
    Words {
        nonce: [u8; 32],
    },
    Again {
        ticket: TicketId,
        transcript: [u8; 32],
        /// Signature and MAC.
        proof: [u8; 96],
    },
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Ticket { ticket, commitment } => writer
                .u8(kind::TICKET)
                .u8(VERSION)
                .raw(&ticket.0)
                .raw(commitment),
            Self::Words { nonce } => writer.u8(kind::WORDS).u8(VERSION).raw(nonce),
            Self::Again {
                ticket,
                transcript,
                proof,
            } => writer.raw(&again_body(ticket, transcript)).raw(proof),
        };
        writer.finish()
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(message);
        let first = reader.u8()?;
        if reader.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let hello = match first {
            kind::TICKET => Self::Ticket {
                ticket: TicketId(reader.array()?),
                commitment: reader.array()?,
            },
            kind::WORDS => Self::Words {
                nonce: reader.array()?,
            },
            kind::AGAIN => Self::Again {
                ticket: TicketId(reader.array()?),
                transcript: reader.array()?,
                proof: reader.array()?,
            },
            _ => return Err(Malformed("no way to begin")),
        };
        reader.finish()?;
        Ok(hello)
    }
}

/// The message "again" without its proof.
pub(super) fn again_body(ticket: &TicketId, transcript: &[u8; 32]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer
        .u8(kind::AGAIN)
        .u8(VERSION)
        .raw(&ticket.0)
        .raw(transcript);
    writer.finish()
}

/// A message of a kind byte and an array.
pub(super) fn fixed<const N: usize>(kind: u8, body: &[u8; N]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + N);
    message.push(kind);
    message.extend_from_slice(body);
    message
}

/// Reads a message of a kind byte and an array.
pub(super) fn read_fixed<const N: usize>(kind: u8, message: &[u8]) -> Result<[u8; N], Malformed> {
    let mut reader = Reader::new(message);
    if reader.u8()? != kind {
        return Err(Malformed("another message was due"));
    }
    let body = reader.array()?;
    reader.finish()?;
    Ok(body)
}

/// What of a long message one frame holds, beside its kind and the mark of the last.
pub(super) const PIECE_BYTES_MAX: usize = DOOR_FRAME_BYTES_MAX_PROVED - 2;

/// Cuts a long message into frames.
///
/// Spec: `protocol/spec/pairing.md`, "Long messages".
pub(super) fn pieces(kind: u8, content: &[u8]) -> Vec<Bytes> {
    let count = content.len().div_ceil(PIECE_BYTES_MAX);
    content
        .chunks(PIECE_BYTES_MAX)
        .enumerate()
        .map(|(place, piece)| {
            let last = u8::from(place + 1 == count);
            Bytes::from([&[kind, last], piece].concat())
        })
        .collect()
}

/// Puts the frames of a long message together, never more than allowed.
#[derive(Debug)]
pub(super) struct Gather {
    kind: u8,
    max: usize,
    content: Vec<u8>,
}

impl Gather {
    pub(super) fn welcome() -> Self {
        Self::new(kind::WELCOME, GUIDE_BYTES_MAX)
    }

    pub(super) fn guide() -> Self {
        Self::new(kind::GUIDE, GUIDE_BYTES_MAX)
    }

    pub(super) fn admission() -> Self {
        Self::new(kind::ADMISSION, ADMISSION_BYTES_MAX)
    }

    fn new(kind: u8, max: usize) -> Self {
        Self {
            kind,
            max,
            content: Vec::new(),
        }
    }

    /// Takes the next frame; the whole content after the last.
    pub(super) fn push(&mut self, message: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let mut reader = Reader::new(message);
        if reader.u8()? != self.kind {
            return Err(Malformed("another message was due"));
        }
        let last = reader.bool()?;
        let piece = reader.rest();
        if piece.is_empty() || piece.len() > PIECE_BYTES_MAX {
            return Err(Malformed("frame of no proper length"));
        }
        if !last && piece.len() != PIECE_BYTES_MAX {
            return Err(Malformed("frame cut short"));
        }
        if self.content.len() + piece.len() > self.max {
            return Err(Malformed("longer than allowed"));
        }
        self.content.extend_from_slice(piece);
        Ok(last.then(|| std::mem::take(&mut self.content)))
    }
}

/// Most heads of `access`, far above the 16 an entry names.
const FRONTIER_MAX: usize = 1024;
/// Most devices whose addresses are told. Hints, so the rest is left out.
const DEVICES_MAX: usize = 256;
/// Most addresses of one device.
const DEVICE_ADDRESSES_MAX: usize = 16;
/// Longest of them.
const DEVICE_ADDRESS_BYTES_MAX: usize = 256;
/// Largest entry: header with all its lists, signature, 1 MiB of payload.
const ENTRY_BYTES_MAX: usize = (1 << 20) + (16 << 10);
/// Most entries.
const ENTRIES_MAX: usize = 1 << 18;
/// Largest part of an epoch in the clear; ours have 64 bytes.
const PART_BYTES_MAX: usize = 1024;

/// What a newcomer needs to judge the mesh and to find it.
///
/// Spec: `protocol/spec/pairing.md`, "Guide".
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Guide {
    /// Heads of `access` as the door's device knows it.
    pub frontier: Vec<EntryId>,
    /// Where devices listen inside, as multiaddr texts. Hints: what does not fit is left out.
    pub addresses: Vec<(DeviceId, Vec<String>)>,
    /// All of `access` from genesis, in an order in which each stands after what it names.
    pub entries: Vec<Bytes>,
}

/// What cannot be sent to a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    /// No entries, or more or larger ones than a newcomer takes.
    #[error("the entries of `access` are none, or more than the door hands out")]
    Entries,
    /// More heads than a newcomer takes.
    #[error("`access` has more heads than the door hands out")]
    Frontier,
    /// An epoch's part is empty or too long, is missing, or cannot be sealed to the newcomer's key.
    #[error("the epoch's parts cannot be sealed to the newcomer")]
    Parts,
}

impl Guide {
    fn write(&self, writer: &mut Writer) -> Result<(), GuideError> {
        let mut frontier = self.frontier.clone();
        frontier.sort_unstable();
        frontier.dedup();
        if frontier.len() > FRONTIER_MAX {
            return Err(GuideError::Frontier);
        }
        writer.u16(u16::try_from(frontier.len()).expect("at most 1024"));
        for id in &frontier {
            writer.raw(&id.0);
        }
        let addresses = self.addresses_to_tell();
        writer.u16(u16::try_from(addresses.len()).expect("at most 256"));
        for (device, addresses) in addresses {
            writer
                .raw(&device.0)
                .u8(u8::try_from(addresses.len()).expect("at most 16"));
            for address in addresses {
                writer.bytes_u16(address.as_bytes());
            }
        }
        write_entries(&self.entries, writer)
    }

    /// What of the addresses fits, sorted by device.
    fn addresses_to_tell(&self) -> BTreeMap<DeviceId, Vec<&str>> {
        let mut tell: BTreeMap<DeviceId, Vec<&str>> = BTreeMap::new();
        for (device, addresses) in &self.addresses {
            if tell.len() == DEVICES_MAX && !tell.contains_key(device) {
                continue;
            }
            let list = tell.entry(*device).or_default();
            for address in addresses {
                let fits = is_address(address) && list.len() < DEVICE_ADDRESSES_MAX;
                if fits && !list.contains(&address.as_str()) {
                    list.push(address);
                }
            }
        }
        tell.retain(|_, list| !list.is_empty());
        tell
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = usize::from(reader.u16()?);
        if count > FRONTIER_MAX {
            return Err(Malformed("more than allowed"));
        }
        let mut frontier: Vec<EntryId> = Vec::new();
        for _ in 0..count {
            let id = EntryId(reader.array()?);
            if frontier.last().is_some_and(|last| *last >= id) {
                return Err(Malformed("frontier not in order"));
            }
            frontier.push(id);
        }
        let count = usize::from(reader.u16()?);
        if count > DEVICES_MAX {
            return Err(Malformed("more than allowed"));
        }
        let mut addresses: Vec<(DeviceId, Vec<String>)> = Vec::new();
        for _ in 0..count {
            let device = DeviceId(reader.array()?);
            if addresses.last().is_some_and(|(last, _)| *last >= device) {
                return Err(Malformed("devices not in order"));
            }
            addresses.push((device, read_addresses(reader)?));
        }
        Ok(Self {
            frontier,
            addresses,
            entries: read_entries(reader)?,
        })
    }

    /// The content of the words door's answer.
    pub(super) fn encode(&self) -> Result<Vec<u8>, GuideError> {
        let mut writer = Writer::new();
        self.write(&mut writer)?;
        within(writer.finish(), GUIDE_BYTES_MAX)
    }

    pub(super) fn decode(content: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(content);
        let guide = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(guide)
    }
}

fn is_address(address: &str) -> bool {
    (1..=DEVICE_ADDRESS_BYTES_MAX).contains(&address.len())
        && address.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_addresses(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    let count = usize::from(reader.u8()?);
    if !(1..=DEVICE_ADDRESSES_MAX).contains(&count) {
        return Err(Malformed("no number of addresses"));
    }
    let mut addresses: Vec<String> = Vec::new();
    for _ in 0..count {
        let bytes = reader.bytes_u16(DEVICE_ADDRESS_BYTES_MAX)?;
        let address = std::str::from_utf8(bytes).map_err(|_| Malformed("no address"))?;
        if !is_address(address) || addresses.iter().any(|known| known == address) {
            return Err(Malformed("no address"));
        }
        addresses.push(address.to_owned());
    }
    Ok(addresses)
}

fn write_entries(entries: &[Bytes], writer: &mut Writer) -> Result<(), GuideError> {
    let total: usize = entries.iter().map(Bytes::len).sum();
    let fine = |entry: &Bytes| (1..=ENTRY_BYTES_MAX).contains(&entry.len());
    let fits = (1..=ENTRIES_MAX).contains(&entries.len()) && total <= GUIDE_BYTES_MAX;
    if !fits || !entries.iter().all(fine) {
        return Err(GuideError::Entries);
    }
    writer.count_u32(entries.len());
    for entry in entries {
        writer.bytes_u32(entry);
    }
    Ok(())
}

fn read_entries(reader: &mut Reader<'_>) -> Result<Vec<Bytes>, Malformed> {
    // Each has a length and at least one byte, so a liar's count buys no memory.
    let count = reader.count_u32(ENTRIES_MAX, 5)?;
    if count == 0 {
        return Err(Malformed("no entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let entry = reader.bytes_u32(ENTRY_BYTES_MAX)?;
        if entry.is_empty() {
            return Err(Malformed("empty entry"));
        }
        entries.push(Bytes::copy_from_slice(entry));
    }
    Ok(entries)
}

fn within(content: Vec<u8>, max: usize) -> Result<Vec<u8>, GuideError> {
    if content.len() <= max {
        Ok(content)
    } else {
        Err(GuideError::Entries)
    }
}

/// The entries by which a newcomer with the words admits itself.
pub(super) fn encode_admission(entries: &[Bytes]) -> Result<Vec<u8>, GuideError> {
    let mut writer = Writer::new();
    write_entries(entries, &mut writer)?;
    within(writer.finish(), ADMISSION_BYTES_MAX)
}

pub(super) fn decode_admission(content: &[u8]) -> Result<Vec<Bytes>, Malformed> {
    let mut reader = Reader::new(content);
    let entries = read_entries(&mut reader)?;
    reader.finish()?;
    Ok(entries)
}

/// What a device gets that was let in by a ticket.
///
/// Spec: `protocol/spec/pairing.md`, "Welcome".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The current epoch.
    pub epoch: EpochId,
    /// Its holder part.
    pub holder_part: SecretBytes,
    /// Its member part; blind holders get none.
    pub member_part: Option<SecretBytes>,
    /// `access` and where to find the others.
    pub guide: Guide,
}

impl Welcome {
    /// The content of message 5, its parts sealed to the newcomer.
    pub(super) fn seal(
        &self,
        recipient: &AgreeKey,
        info: &[u8],
        rng: &mut Rng,
    ) -> Result<Vec<u8>, GuideError> {
        let mut seal = |part: Part, plain: &SecretBytes| {
            if !(1..=PART_BYTES_MAX).contains(&plain.expose().len()) {
                return Err(GuideError::Parts);
            }
            seal_to(recipient, info, &part.associated(), plain.expose(), rng)
                .ok_or(GuideError::Parts)
        };
        let holder = seal(Part::Holder, &self.holder_part)?;
        let member = match &self.member_part {
            Some(part) => seal(Part::Member, part)?,
            None => Vec::new(),
        };
        let mut writer = Writer::new();
        writer
            .raw(&self.epoch.0)
            .bytes_u16(&holder)
            .bytes_u16(&member);
        self.guide.write(&mut writer)?;
        within(writer.finish(), GUIDE_BYTES_MAX)
    }
}

/// Message 5 as it came: its parts still sealed.
#[derive(Debug)]
pub(super) struct SealedWelcome {
    pub(super) epoch: EpochId,
    holder: Vec<u8>,
    member: Vec<u8>,
    guide: Guide,
}

impl SealedWelcome {
    pub(super) fn decode(content: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(content);
        let epoch = EpochId(reader.array()?);
        let max = PART_BYTES_MAX + ENVELOPE_OVERHEAD;
        let holder = reader.bytes_u16(max)?.to_vec();
        let member = reader.bytes_u16(max)?.to_vec();
        let guide = Guide::read(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            epoch,
            holder,
            member,
            guide,
        })
    }

    /// Whether there is a member part.
    pub(super) fn has_member_part(&self) -> bool {
        !self.member.is_empty()
    }

    /// Opens the parts; `None` if one does not open.
    pub(super) fn open(self, secret: &AgreeSecret, info: &[u8]) -> Option<Welcome> {
        let open = |part: Part, envelope: &[u8]| {
            let plain = secret.open(info, &part.associated(), envelope)?;
            (!plain.is_empty()).then(|| SecretBytes::new(plain.to_vec()))
        };
        Some(Welcome {
            epoch: self.epoch,
            holder_part: open(Part::Holder, &self.holder)?,
            member_part: if self.member.is_empty() {
                None
            } else {
                Some(open(Part::Member, &self.member)?)
            },
            guide: self.guide,
        })
    }
}
