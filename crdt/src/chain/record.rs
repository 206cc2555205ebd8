//! Records: type, length, body, one after the other.

use super::read::{Reader, len_u32};

/// What a record's type and length take.
pub const RECORD_OVERHEAD: usize = 6;

/// One record of a list.
///
/// Spec: `protocol/spec/chain.md`, "Record list".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What it is; unknown types are kept and ignored, save in `access`.
    pub kind: u16,
    /// Its body.
    pub body: &'a [u8],
}

/// The bytes are not a list of records: one is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("list of records is cut short")]
pub struct RecordError;

/// Appends a record.
pub fn push_record(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&len_u32(body.len()).to_le_bytes());
    out.extend_from_slice(body);
}

/// Reads a whole list of records.
///
/// # Errors
/// [`RecordError`] if the last one is cut short.
pub fn records(bytes: &[u8]) -> Result<Vec<Record<'_>>, RecordError> {
    let mut reader = Reader::new(bytes);
    let mut list = Vec::new();
    while !reader.is_empty() {
        let kind = reader.u16().ok_or(RecordError)?;
        let len = reader.u32().ok_or(RecordError)?;
        let body = usize::try_from(len)
            .ok()
            .and_then(|len| reader.take(len))
            .ok_or(RecordError)?;
        list.push(Record { kind, body });
    }
    Ok(list)
}
