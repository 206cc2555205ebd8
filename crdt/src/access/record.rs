//! The records of `access`, byte for byte.

use kith_object::id::{DeviceId, EntryId, SpaceId};
use kith_object::key::{AgreeKey, derive};

use crate::chain::read::{Reader, len_u32};

/// Record types of `access`.
///
/// Spec: `protocol/spec/access.md`, "Records".
pub(crate) mod kind {
    pub(crate) const GENESIS: u16 = 1;
    pub(crate) const MEMBER: u16 = 3;
    pub(crate) const REMOVAL: u16 = 4;
    pub(crate) const EPOCH: u16 = 5;
    pub(crate) const LINK: u16 = 6;
    pub(crate) const ENVELOPE: u16 = 7;
}

/// Longest name of a device; a line on a small screen.
pub const NAME_BYTES_MAX: usize = 64;

const GENESIS_VERSION: u8 = 1;

/// What a device may do. Each may do what those before it may.
///
/// Spec: `protocol/spec/access.md`, "Roles".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Keeps packs without the keys of what is in them; writes `catalogue`.
    Blind = 1,
    /// Has the keys; writes `names` and opens epochs.
    Member = 2,
    /// Admits and removes members and blind holders.
    Admin = 3,
}

impl Role {
    /// The byte in records and tickets.
    pub fn byte(self) -> u8 {
        match self {
            Self::Blind => 1,
            Self::Member => 2,
            Self::Admin => 3,
        }
    }

    /// The role of that byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Blind),
            2 => Some(Self::Member),
            3 => Some(Self::Admin),
            _ => None,
        }
    }
}

/// The first record of a space; its hash is the space's id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// The key that counts above all.
    pub root: DeviceId,
    /// Every epoch is sealed to this key too.
    pub recovery: AgreeKey,
    /// Makes two spaces of the same words differ.
    pub nonce: [u8; 32],
}

impl Genesis {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        [
            &[GENESIS_VERSION],
            self.root.0.as_slice(),
            &self.recovery.0,
            &self.nonce,
        ]
        .concat()
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        if reader.u8()? != GENESIS_VERSION {
            return None;
        }
        let genesis = Self {
            root: DeviceId(reader.array()?),
            recovery: AgreeKey(reader.array()?),
            nonce: reader.array()?,
        };
        reader.is_empty().then_some(genesis)
    }

    /// The id of the space it founds.
    pub fn space(&self) -> SpaceId {
        SpaceId(derive("kith genesis 1", &self.encode()))
    }
}

/// A certificate: this device belongs, with this role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which device.
    pub device: DeviceId,
    /// Where its envelopes are sealed to.
    pub agree: AgreeKey,
    /// What it may do.
    pub role: Role,
    /// What people call it: 1 to 64 bytes of UTF-8 without control characters.
    pub name: String,
}

/// A device to be admitted: its [`Member`] record to be.
pub type Newcomer = Member;

impl Member {
    /// Whether its fields are ones that a record may hold.
    pub fn is_valid(&self) -> bool {
        let len = self.name.len();
        let printable = !self
            .name
            .chars()
            .any(|letter| letter.is_control() || is_direction(letter));
        // A key that no secret belongs to would make every later epoch fail to seal.
        (1..=NAME_BYTES_MAX).contains(&len) && printable && self.agree.is_usable()
    }

    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [self.device.0, self.agree.0].concat();
        out.push(self.role.byte());
        out.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(self.name.as_bytes());
        out
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let (device, agree) = (DeviceId(reader.array()?), AgreeKey(reader.array()?));
        let role = Role::from_byte(reader.u8()?)?;
        let len = usize::from(reader.u8()?);
        let name = std::str::from_utf8(reader.take(len)?).ok()?.to_owned();
        let member = Self {
            device,
            agree,
            role,
            name,
        };
        (reader.is_empty() && member.is_valid()).then_some(member)
    }
}

/// Letters that turn the writing direction: a name could pose as another.
fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// A device no longer belongs; of its entries count only those in the past of the frontier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    /// Which device.
    pub device: DeviceId,
    /// Entries that count; with them all that they depend on. Sorted.
    pub frontier: Vec<EntryId>,
}

impl Removal {
    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.device.0.to_vec();
        out.extend_from_slice(&len_u32(self.frontier.len()).to_le_bytes());
        for id in &self.frontier {
            out.extend_from_slice(&id.0);
        }
        out
    }

    /// Reads the record's body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let device = DeviceId(reader.array()?);
        let count = usize::try_from(reader.u32()?).ok()?;
        let frontier = reader.names(count, EntryId)?;
        reader.is_empty().then_some(Self { device, frontier })
    }
}
