//! The tickets of one door: open, reserved for a device, used.
//!
//! Spec: `protocol/spec/pairing.md`, "Ticket book".

use std::collections::BTreeMap;

use kith_object::id::DeviceId;
use kith_object::key::{AgreeKey, Secret, derive};
use kith_object::time::{Span, Time};
use subtle::ConstantTimeEq;

use super::handshake::{Code, ProofKey, Transcript};
use super::message::Declined;
use super::ticket::{Ticket, TicketId};
use super::{CONFIRM_MAX, DeviceName, NAME_BYTES_MAX, REPEAT_MAX, Role, SecretBytes, TICKETS_MAX};
use crate::wire::{Malformed, Reader, Writer};

/// The form of the bytes.
const FORM: u8 = 1;
/// Message 4 in the book: opening with the longest genesis, signature, MAC.
const REPLY_BYTES_MAX: usize = 2048;

/// The tickets a door knows, and how far each has come. Kept on disk by the owner, so that a restart neither opens a used ticket nor loses a reserved one.
///
/// Spec: `protocol/spec/pairing.md`, "Ticket book".
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TicketBook {
    tickets: BTreeMap<TicketId, Record>,
}

/// Why the bytes of a ticket book cannot be used. Tickets live for minutes: go on with an empty book, and say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// Altered or cut off.
    #[error("the ticket book is damaged")]
    Damaged,
    /// Made by a later program.
    #[error("the ticket book is of a newer form")]
    Newer,
}

impl From<Malformed> for BookError {
    fn from(_: Malformed) -> Self {
        Self::Damaged
    }
}

/// One ticket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) proof_key: ProofKey,
    pub(super) role: Role,
    pub(super) stage: Stage,
    /// When the stage ends.
    pub(super) until: Time,
}

/// How far a ticket has come. It only ever goes forward.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Open,
    /// One device has proved the secret; nobody else gets in by this ticket.
    Reserved(Session),
    /// A person said yes.
    Confirmed(Session),
    /// The device has said that it has everything.
    Done(Session),
}

/// The handshake that a ticket is reserved for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Session {
    pub(super) device: DeviceId,
    pub(super) agree: AgreeKey,
    pub(super) name: DeviceName,
    /// After message 3.
    pub(super) transcript: Transcript,
    /// Message 4, sent the same again to the same device.
    pub(super) reply: Vec<u8>,
    pub(super) code: Code,
}

impl Session {
    /// After message 4.
    pub(super) fn transcript_after_reply(&self) -> Transcript {
        self.transcript.absorb(&[&self.reply])
    }
}

impl Record {
    pub(super) fn session(&self) -> Option<&Session> {
        match &self.stage {
            Stage::Open => None,
            Stage::Reserved(session) | Stage::Confirmed(session) | Stage::Done(session) => {
                Some(session)
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    pub(super) fn is_reserved(&self) -> bool {
        matches!(self.stage, Stage::Reserved(_))
    }
}

impl TicketBook {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tickets are in the book.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether there is no ticket.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Whether the ticket waits for a device.
    pub fn is_open(&self, ticket: &TicketId) -> bool {
        self.get(ticket).is_some_and(Record::is_open)
    }

    pub(super) fn get(&self, ticket: &TicketId) -> Option<&Record> {
        self.tickets.get(ticket)
    }

    /// Adds a ticket; `false` if the book is full of tickets still needed. The oldest whose device has everything gives way.
    pub(super) fn issue(&mut self, ticket: &Ticket) -> bool {
        if self.tickets.len() >= TICKETS_MAX {
            let done = |record: &Record| matches!(record.stage, Stage::Done(_));
            let oldest = self
                .tickets
                .iter()
                .filter(|(_, record)| done(record))
                .min_by_key(|(id, record)| (record.until, **id))
                .map(|(id, _)| *id);
            let Some(oldest) = oldest else {
                return false;
            };
            self.tickets.remove(&oldest);
        }
        let record = Record {
            proof_key: ProofKey::of(ticket),
            role: ticket.role,
            stage: Stage::Open,
            until: ticket.expiry,
        };
        self.tickets.insert(ticket.id(), record);
        true
    }

    /// Takes a ticket out, for good.
    pub(super) fn burn(&mut self, ticket: &TicketId) -> Option<Record> {
        self.tickets.remove(ticket)
    }

    /// Reserves an open ticket; `false` if it is not open.
    pub(super) fn reserve(&mut self, ticket: &TicketId, session: Session, now: Time) -> bool {
        self.advance(ticket, now, CONFIRM_MAX, |stage| match stage {
            Stage::Open => Some(Stage::Reserved(session)),
            _ => None,
        })
    }

    /// Notes a person's yes; `false` if the ticket is not reserved.
    pub(super) fn confirm(&mut self, ticket: &TicketId, now: Time) -> bool {
        self.advance(ticket, now, REPEAT_MAX, |stage| match stage {
            Stage::Reserved(session) => Some(Stage::Confirmed(session.clone())),
            _ => None,
        })
    }

    /// Notes that the device has everything; `false` if it was known or nobody confirmed.
    pub(super) fn finish(&mut self, ticket: &TicketId, now: Time) -> bool {
        self.advance(ticket, now, REPEAT_MAX, |stage| match stage {
            Stage::Confirmed(session) => Some(Stage::Done(session.clone())),
            _ => None,
        })
    }

    fn advance(
        &mut self,
        ticket: &TicketId,
        now: Time,
        span: Span,
        next: impl FnOnce(&Stage) -> Option<Stage>,
    ) -> bool {
        let Some(record) = self.tickets.get_mut(ticket) else {
            return false;
        };
        let Some(stage) = next(&record.stage) else {
            return false;
        };
        record.stage = stage;
        record.until = now + span;
        true
    }

    /// Takes out and returns all whose time is over.
    pub(super) fn expire(&mut self, now: Time) -> Vec<(TicketId, Record)> {
        self.tickets
            .extract_if(.., |_, record| record.until <= now)
            .collect()
    }

    /// When the next one's time is over.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.tickets.values().map(|record| record.until).min()
    }

    /// The bytes of the book. They hold keys made of the tickets' secrets: seal them or guard them like a key file.
    pub fn encode(&self) -> SecretBytes {
        let each = 256 + NAME_BYTES_MAX + REPLY_BYTES_MAX;
        let mut writer = Writer::with_capacity(64 + self.tickets.len() * each);
        writer
            .u8(FORM)
            .u8(u8::try_from(self.tickets.len()).expect("at most 64 tickets"));
        for (ticket, record) in &self.tickets {
            record.write(ticket, &mut writer);
        }
        let mut bytes = writer.finish();
        let checksum = derive("kith ticket book 1", &bytes);
        bytes.extend_from_slice(&checksum);
        SecretBytes::new(bytes)
    }

    /// Reads the bytes of a book.
    ///
    /// # Errors
    /// [`BookError`] if they are not such bytes to the last bit.
    pub fn decode(bytes: &[u8]) -> Result<Self, BookError> {
        let (body, checksum) = bytes.split_last_chunk::<32>().ok_or(BookError::Damaged)?;
        if !bool::from(derive("kith ticket book 1", body).ct_eq(checksum)) {
            return Err(BookError::Damaged);
        }
        let mut reader = Reader::new(body);
        if reader.u8()? != FORM {
            return Err(BookError::Newer);
        }
        let count = usize::from(reader.u8()?);
        if count > TICKETS_MAX {
            return Err(BookError::Damaged);
        }
        let mut tickets: BTreeMap<TicketId, Record> = BTreeMap::new();
        for _ in 0..count {
            let (ticket, record) = Record::read(&mut reader)?;
            if tickets
                .last_key_value()
                .is_some_and(|(last, _)| *last >= ticket)
            {
                return Err(BookError::Damaged);
            }
            tickets.insert(ticket, record);
        }
        reader.finish()?;
        Ok(Self { tickets })
    }

    /// Panics if the book is not as it should be.
    pub(super) fn check_invariants(&self) {
        assert!(self.tickets.len() <= TICKETS_MAX, "too many tickets");
        for record in self.tickets.values() {
            let reply = record.session().map_or(0, |session| session.reply.len());
            assert!(reply <= REPLY_BYTES_MAX, "reply too long for the book");
        }
    }
}

impl Record {
    fn write(&self, ticket: &TicketId, writer: &mut Writer) {
        let stage = match &self.stage {
            Stage::Open => 1,
            Stage::Reserved(_) => 2,
            Stage::Confirmed(_) => 3,
            Stage::Done(_) => 4,
        };
        writer
            .raw(&ticket.0)
            .raw(self.proof_key.0.expose())
            .u8(self.role.byte())
            .u8(stage)
            .u64(self.until.0);
        if let Some(session) = self.session() {
            writer
                .raw(&session.device.0)
                .raw(&session.agree.0)
                .bytes_u8(session.name.as_str().as_bytes())
                .raw(&session.transcript.0)
                .u32(session.code.number())
                .bytes_u16(&session.reply);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<(TicketId, Self), BookError> {
        let ticket = TicketId(reader.array()?);
        let proof_key = ProofKey(Secret::new(reader.array()?));
        let role = Role::from_byte(reader.u8()?).ok_or(BookError::Damaged)?;
        let stage = reader.u8()?;
        let until = Time(reader.u64()?);
        let stage = match stage {
            1 => Stage::Open,
            2 => Stage::Reserved(Session::read(reader)?),
            3 => Stage::Confirmed(Session::read(reader)?),
            4 => Stage::Done(Session::read(reader)?),
            _ => return Err(BookError::Damaged),
        };
        let record = Self {
            proof_key,
            role,
            stage,
            until,
        };
        Ok((ticket, record))
    }
}

impl Session {
    fn read(reader: &mut Reader<'_>) -> Result<Self, BookError> {
        Ok(Self {
            device: DeviceId(reader.array()?),
            agree: AgreeKey(reader.array()?),
            name: DeviceName::from_bytes(reader.bytes_u8(NAME_BYTES_MAX)?)
                .ok_or(BookError::Damaged)?,
            transcript: Transcript(reader.array()?),
            code: Code::from_number(reader.u32()?).ok_or(BookError::Damaged)?,
            reply: reader.bytes_u16(REPLY_BYTES_MAX)?.to_vec(),
        })
    }
}

/// How a ticket's end reads to a device that still waits.
pub(super) fn declined_by_time(stage: &Stage) -> Declined {
    match stage {
        Stage::Open | Stage::Reserved(_) => Declined::TimeOut,
        Stage::Confirmed(_) | Stage::Done(_) => Declined::Failed,
    }
}
