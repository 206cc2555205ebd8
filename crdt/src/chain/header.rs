//! The header of an entry: what everybody may read, blind holders too.

use std::fmt;

use kith_object::id::{DeviceId, EntryId, EpochId, SpaceId};
use kith_object::key::derive;
use kith_object::time::Hlc;

use super::part::PAYLOAD_BYTES_MAX;
use super::read::Reader;

/// Access heads an entry may name. Honest devices see one or two.
pub const ACCESS_HEADS_MAX: usize = 16;
/// Dependencies an entry may name: one per device that wrote at the same time.
pub const DEPENDENCIES_MAX: usize = 64;

const VERSION: u8 = 1;
const SUITE_ED25519: u8 = 1;
/// Where payload length and root lie; both are zeroed in the associated data of sealed parts.
const PAYLOAD_FIELDS: std::ops::Range<usize> = 176..212;

/// What a document holds. One chain writes to one document.
///
/// Spec: `protocol/spec/chain.md`, "Header".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DocumentKind {
    /// Members, removals, epochs.
    Access = 1,
    /// Packs born, retired, coded, seen.
    Catalogue = 2,
    /// Versions of files and folders.
    Names = 3,
}

impl DocumentKind {
    /// The byte in the header.
    pub fn byte(self) -> u8 {
        match self {
            Self::Access => 1,
            Self::Catalogue => 2,
            Self::Names => 3,
        }
    }

    /// The document of that byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Access),
            2 => Some(Self::Catalogue),
            3 => Some(Self::Names),
            _ => None,
        }
    }
}

/// Sixteen random bytes that name one chain of an author.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// What stands in front of an entry's payload and decides whether it counts.
///
/// Spec: `protocol/spec/chain.md`, "Header".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The space it belongs to.
    pub space: SpaceId,
    /// The document it adds to.
    pub document: DocumentKind,
    /// Who signed it: a device, or the root key.
    pub author: DeviceId,
    /// Which of the author's chains.
    pub nonce: Nonce,
    /// Place in that chain, from zero.
    pub seq: u64,
    /// The entry before it in that chain; zero at the start.
    pub previous: EntryId,
    /// Orders entries for people and for the digest; decides nothing.
    pub hlc: Hlc,
    /// The epoch whose keys seal its parts; zero if all are open.
    pub epoch: EpochId,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Root over the payload's parts.
    pub payload_root: [u8; 32],
    /// Heads of `access` as the author knew it; empty in genesis only.
    pub access_heads: Vec<EntryId>,
    /// Heads of the same document as the author knew it, without `previous`.
    pub dependencies: Vec<EntryId>,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than the fields need.
    #[error("header is cut short")]
    Short,
    /// A version, suite or document this program does not know.
    #[error("header of an unknown version or kind")]
    Unknown,
    /// Not what an encoder writes: a reserved bit set, a list unsorted, a rule of the fields broken.
    #[error("header is not in canonical form")]
    NotCanonical,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(256 + 32 * (self.access_heads.len() + self.dependencies.len()));
        out.extend_from_slice(&[VERSION, SUITE_ED25519, 0, 0]);
        out.extend_from_slice(&self.space.0);
        // Kind, then shard depth, reserved and prefix: documents are not sharded yet.
        out.extend_from_slice(&[self.document.byte(), 0, 0, 0, 0, 0, 0, 0]);
        // Generation.
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.author.0);
        out.extend_from_slice(&self.nonce.0);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.previous.0);
        out.extend_from_slice(&self.hlc.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.0);
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.payload_root);
        for list in [&self.access_heads, &self.dependencies] {
            out.push(u8::try_from(list.len()).expect("both limits are below 256"));
            for id in list {
                out.extend_from_slice(&id.0);
            }
        }
        out
    }

    /// Reads a header from the start of the bytes and says how many it took.
    ///
    /// # Errors
    /// [`HeaderError`] for anything that [`Header::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), HeaderError> {
        let mut reader = Reader::new(bytes);
        let header = Self::read(&mut reader)?;
        Ok((header, bytes.len() - reader.rest().len()))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, HeaderError> {
        use HeaderError::{NotCanonical, Short, Unknown};
        let [version, suite, flags, reserved] = reader.array().ok_or(Short)?;
        if (version, suite) != (VERSION, SUITE_ED25519) {
            return Err(Unknown);
        }
        if (flags, reserved) != (0, 0) {
            return Err(NotCanonical);
        }
        let space = SpaceId(reader.array().ok_or(Short)?);
        let [kind, shard @ ..] = reader.array::<12>().ok_or(Short)?;
        let document = DocumentKind::from_byte(kind).ok_or(Unknown)?;
        if shard != [0; 11] {
            return Err(Unknown);
        }
        let mut header = Self {
            space,
            document,
            author: DeviceId(reader.array().ok_or(Short)?),
            nonce: Nonce(reader.array().ok_or(Short)?),
            seq: reader.u64().ok_or(Short)?,
            previous: EntryId(reader.array().ok_or(Short)?),
            hlc: Hlc(reader.u64().ok_or(Short)?),
            epoch: EpochId(reader.array().ok_or(Short)?),
            payload_len: reader.u32().ok_or(Short)?,
            payload_root: reader.array().ok_or(Short)?,
            access_heads: Vec::new(),
            dependencies: Vec::new(),
        };
        for (list, max) in [
            (&mut header.access_heads, ACCESS_HEADS_MAX),
            (&mut header.dependencies, DEPENDENCIES_MAX),
        ] {
            let count = usize::from(reader.u8().ok_or(Short)?);
            if count > max {
                return Err(NotCanonical);
            }
            if reader.rest().len() < count * 32 {
                return Err(Short);
            }
            *list = reader.names(count, EntryId).ok_or(NotCanonical)?;
        }
        if header.is_consistent() {
            Ok(header)
        } else {
            Err(NotCanonical)
        }
    }

    /// What the fields alone say about one another.
    fn is_consistent(&self) -> bool {
        let zero = EntryId::default();
        let starts = self.seq == 0;
        let genesis = self.access_heads.is_empty();
        let listed =
            |id: &EntryId| self.access_heads.contains(id) || self.dependencies.contains(id);
        let fits = usize::try_from(self.payload_len).is_ok_and(|len| len <= PAYLOAD_BYTES_MAX);
        fits && starts == (self.previous == zero)
            && !listed(&zero)
            && !self.dependencies.contains(&self.previous)
            && (!genesis
                || (starts
                    && self.document == DocumentKind::Access
                    && self.dependencies.is_empty()))
    }

    /// The entry's name: the hash of its header.
    pub fn id(&self) -> EntryId {
        EntryId(derive("kith entry id 1", &self.encode()))
    }

    /// What a sealed part is bound to: this header with payload length and root zeroed, index and count of the part.
    ///
    /// Spec: `protocol/spec/chain.md`, "Sealed parts".
    pub fn associated(&self, index: u16, count: u16) -> Vec<u8> {
        let mut bytes = self.encode();
        for byte in bytes.get_mut(PAYLOAD_FIELDS).into_iter().flatten() {
            *byte = 0;
        }
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes
    }

    /// All entries it names: `previous`, access heads, dependencies.
    pub fn parents(&self) -> impl Iterator<Item = EntryId> + '_ {
        let previous = (self.seq > 0).then_some(self.previous);
        previous
            .into_iter()
            .chain(self.access_heads.iter().copied())
            .chain(self.dependencies.iter().copied())
    }
}
