//! What a newcomer keeps of a conversation, to go on after a crash.
//!
//! Spec: `protocol/spec/pairing.md`, "Newcomer".

use super::super::SecretBytes;
use super::super::handshake::{Opening, Transcript};
use super::super::ticket::Ticket;
use super::{RESTARTS_MAX, ResumeError, Session};
use crate::wire::{Reader, Writer};

/// The form of the bytes.
const FORM: u8 = 1;
/// Longest message 3: opening, signature, MAC.
const MESSAGE_3_BYTES_MAX: usize = 2048;

pub(super) fn write_resume(ticket: &Ticket, session: &Session, restarts: u8) -> SecretBytes {
    let ticket = ticket.encode();
    let mut writer = Writer::with_capacity(8 * 1024);
    writer
        .u8(FORM)
        .u8(restarts)
        .bytes_u16(&ticket)
        .raw(&session.committed.0)
        .raw(&session.commitment)
        .bytes_u16(&session.message);
    let mut bytes = writer.finish();
    let checksum = kith_object::key::derive("kith pairing resume 1", &bytes);
    bytes.extend_from_slice(&checksum);
    SecretBytes::new(bytes)
}

pub(super) fn read_resume(bytes: &[u8]) -> Result<(Ticket, Session, u8), ResumeError> {
    let damaged = |_| ResumeError::Damaged;
    let (body, checksum) = bytes.split_last_chunk::<32>().ok_or(ResumeError::Damaged)?;
    if kith_object::key::derive("kith pairing resume 1", body) != *checksum {
        return Err(ResumeError::Damaged);
    }
    let mut reader = Reader::new(body);
    if reader.u8().map_err(damaged)? != FORM {
        return Err(ResumeError::Damaged);
    }
    let restarts = reader.u8().map_err(damaged)?;
    let ticket = reader.bytes_u16(u16::MAX.into()).map_err(damaged)?;
    let ticket = Ticket::decode(ticket).map_err(ResumeError::Ticket)?;
    let committed = Transcript(reader.array().map_err(damaged)?);
    let commitment = reader.array().map_err(damaged)?;
    let message = reader.bytes_u16(MESSAGE_3_BYTES_MAX).map_err(damaged)?;
    reader.finish().map_err(damaged)?;
    let opening = message
        .split_first()
        .and_then(|(_, rest)| rest.split_last_chunk::<96>())
        .ok_or(ResumeError::Damaged)?;
    let session = Session {
        committed,
        commitment,
        opening: Opening::decode(opening.0).map_err(damaged)?,
        message: message.to_vec(),
    };
    if restarts > RESTARTS_MAX {
        return Err(ResumeError::Damaged);
    }
    Ok((ticket, session, restarts))
}
