//! An entry: header, signature, payload.

use bytes::Bytes;
use kith_object::id::EntryId;
use kith_object::key::verify;

use super::header::{Header, HeaderError};
use super::part::{self, PAYLOAD_BYTES_MAX, Part, PartError};
use super::read::Reader;

/// What entries are signed under.
pub(super) const SIGN_DOMAIN: &str = "kith entry 1";
const SIGNATURE_LEN: usize = 64;
/// Longest encoded entry: the longest header, its signature, the longest payload.
pub const ENTRY_BYTES_MAX: usize = 4096 + PAYLOAD_BYTES_MAX;

/// One signed link of a chain, with its payload or without.
///
/// A payload at hand always fits the header; whether the signature holds is asked by [`Entry::is_signed`].
///
/// Spec: `protocol/spec/chain.md`, "Entry".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    id: EntryId,
    header: Header,
    signature: [u8; SIGNATURE_LEN],
    payload: Option<Bytes>,
}

/// Why bytes are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The header does not read.
    #[error("entry does not read")]
    Header(#[source] HeaderError),
    /// Fewer or more bytes than an entry has, or a signature of another length.
    #[error("entry is malformed")]
    Malformed,
    /// The payload does not read.
    #[error("payload of entry does not read")]
    Payload(#[source] PartError),
    /// The payload is not the one that the header names.
    #[error("payload is not the one its header names")]
    OtherPayload,
}

impl Entry {
    pub(super) fn assemble(
        header: Header,
        signature: [u8; SIGNATURE_LEN],
        payload: Option<Bytes>,
    ) -> Self {
        Self {
            id: header.id(),
            header,
            signature,
            payload,
        }
    }

    /// Its name.
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its signature.
    pub fn signature(&self) -> &[u8; SIGNATURE_LEN] {
        &self.signature
    }

    /// Its payload, if at hand.
    pub fn payload(&self) -> Option<&Bytes> {
        self.payload.as_ref()
    }

    /// The parts of its payload, if at hand.
    pub fn parts(&self) -> Option<Vec<Part<'_>>> {
        part::parts(self.payload.as_ref()?).ok()
    }

    /// The same entry without its payload.
    pub fn without_payload(&self) -> Self {
        Self {
            payload: None,
            ..self.clone()
        }
    }

    /// The same entry with this payload.
    ///
    /// # Errors
    /// [`EntryError`] if it is not the one that the header names.
    pub fn with_payload(&self, payload: Bytes) -> Result<Self, EntryError> {
        check_payload(&self.header, &payload)?;
        Ok(Self {
            payload: Some(payload),
            ..self.clone()
        })
    }

    /// Whether its author signed it.
    pub fn is_signed(&self) -> bool {
        verify(
            &self.header.author,
            SIGN_DOMAIN,
            &self.id.0,
            &self.signature,
        )
    }

    /// The entry as it travels and is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.header.encode();
        // As many as it takes: a device keeps those of `access` as bytes.
        let payload = self.payload.as_ref().map_or(0, |payload| payload.len());
        out.reserve_exact(2 + self.signature.len() + 1 + payload);
        out.extend_from_slice(&64u16.to_le_bytes());
        out.extend_from_slice(&self.signature);
        out.push(u8::from(self.payload.is_some()));
        out.extend_from_slice(self.payload.as_deref().unwrap_or_default());
        out
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`EntryError`] for anything that [`Entry::encode`] would not have written. The signature is not checked here.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::Malformed);
        }
        let (header, taken) = Header::decode(bytes).map_err(EntryError::Header)?;
        let mut reader = Reader::new(bytes.get(taken..).unwrap_or_default());
        if reader.u16() != Some(64) {
            return Err(EntryError::Malformed);
        }
        let signature = reader.array().ok_or(EntryError::Malformed)?;
        let payload = match (reader.u8(), reader.rest()) {
            (Some(0), []) => None,
            (Some(1), payload) => {
                check_payload(&header, payload)?;
                Some(Bytes::copy_from_slice(payload))
            }
            _ => return Err(EntryError::Malformed),
        };
        Ok(Self::assemble(header, signature, payload))
    }
}

fn check_payload(header: &Header, payload: &[u8]) -> Result<(), EntryError> {
    if u32::try_from(payload.len()) != Ok(header.payload_len) {
        return Err(EntryError::OtherPayload);
    }
    let parts = part::parts(payload).map_err(EntryError::Payload)?;
    if part::payload_root(&parts) == header.payload_root {
        Ok(())
    } else {
        Err(EntryError::OtherPayload)
    }
}
