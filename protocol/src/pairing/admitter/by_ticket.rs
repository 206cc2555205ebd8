//! The conversation with one who has a ticket.

use bytes::Bytes;
use kith_object::key::{seal_to, verify};
use kith_object::time::Time;
use subtle::ConstantTimeEq;

use super::super::book::Session;
use super::super::handshake::{Code, Opening, Peers, Proved, Side, Transcript, parts_info};
use super::super::message::{Declined, Welcome, again_body, fixed, kind, pieces, read_fixed};
use super::super::ticket::TicketId;
use super::super::{ANSWER_MAX, DeviceName, Role};
use super::{Admitter, After, Effect, Knock, Outcome, RECEIVED_DOMAIN, REPEATS_MAX, Refused, Step};

impl Admitter {
    /// Message 1 came: commits in turn.
    pub(super) fn commit(
        &mut self,
        knock: Knock,
        peers: &Peers,
        ticket: TicketId,
        commitment: [u8; 32],
        message: &[u8],
    ) -> Result<Step, Refused> {
        // Unknown, expired, reserved, used: one answer. What has expired is out of the book by now.
        if !self.book.is_open(&ticket) {
            return Err(Refused);
        }
        let opening = Opening::of(&self.keys, self.rng.bytes(), &self.mesh.genesis);
        let reply = fixed(kind::COMMIT, &opening.commitment(Side::Admitter));
        let transcript = Transcript::start(peers)
            .absorb(&[message])
            .absorb(&[&reply]);
        self.send(knock, reply);
        Ok(Step::Committed {
            ticket,
            transcript,
            commitment,
            opening,
        })
    }

    /// Message 3 came: reserves the ticket if it proves the secret. Returns until when.
    pub(super) fn reserve(
        &mut self,
        now: Time,
        ticket: TicketId,
        transcript: &Transcript,
        commitment: &[u8; 32],
        opening: &Opening,
        message: &[u8],
    ) -> Result<Time, Refused> {
        let record = self.book.get(&ticket).filter(|record| record.is_open());
        let record = record.ok_or(Refused)?;
        let proved = record.proof_key.check(Side::Newcomer, transcript, message);
        let newcomer = newcomer_of(&proved.ok_or(Refused)?, commitment).ok_or(Refused)?;
        let name = DeviceName::from_bytes(&newcomer.about).ok_or(Refused)?;
        // A key that no secret belongs to would fail every envelope later.
        let sealable = seal_to(&newcomer.agree, &[], &[], &[], &mut self.rng).is_some();
        if !sealable || newcomer.device == self.keys.id() {
            return Err(Refused);
        }
        let after = transcript.absorb(&[message]);
        let mut reply = vec![kind::ADMITTER_PROOF];
        reply.extend_from_slice(&opening.encode());
        let reply = record
            .proof_key
            .prove(Side::Admitter, &after, &self.keys, reply);
        let session = Session {
            device: newcomer.device,
            agree: newcomer.agree,
            name,
            transcript: after,
            reply,
            code: Code::of(transcript, &newcomer, opening),
        };
        if !self.book.reserve(&ticket, session, now) {
            return Err(Refused);
        }
        self.stats.reserved += 1;
        self.save_then(After::Reply(ticket));
        Ok(self.book.get(&ticket).map_or(now, |record| record.until))
    }

    /// The message "again" came: is it the device the ticket is reserved for? Returns until when.
    pub(super) fn again(
        &mut self,
        peers: &Peers,
        ticket: TicketId,
        transcript: &[u8; 32],
        message: &[u8],
    ) -> Result<Time, Refused> {
        let record = self.book.get(&ticket).ok_or(Refused)?;
        let session = record.session().ok_or(Refused)?;
        let same: bool = session.transcript.0.ct_eq(transcript).into();
        let proved = record
            .proof_key
            .check(Side::Again, &Transcript::start(peers), message)
            .ok_or(Refused)?;
        let fine = proved.body == again_body(&ticket, transcript).as_slice()
            && proved.is_signed_by(&session.device);
        let repeats = self.repeats.entry(ticket).or_default();
        if !same || !fine || *repeats >= REPEATS_MAX {
            return Err(Refused);
        }
        *repeats += 1;
        Ok(record.until)
    }

    /// Takes up the conversation with the reserved device where it was, on a fresh stream.
    pub(super) fn attach(&mut self, knock: Knock, ticket: TicketId) {
        if let Some(older) = self.visit_of(&ticket) {
            self.visits.remove(&older);
            self.effects.push_back(Effect::Close { knock: older });
        }
        let waiting = |after: &After| *after == After::Reply(ticket);
        if self.after_save.values().flatten().any(waiting) {
            return;
        }
        self.reply(knock, ticket);
        let confirmed = self
            .book
            .get(&ticket)
            .is_some_and(|record| !record.is_reserved());
        let under_way = self
            .after_save
            .values()
            .flatten()
            .any(|after| *after == After::Admit(ticket));
        if confirmed && !under_way {
            self.admit(ticket);
        }
    }

    /// Sends message 4, and shows the code if nobody has confirmed it yet.
    pub(super) fn reply(&mut self, knock: Knock, ticket: TicketId) {
        let Some(record) = self.book.get(&ticket) else {
            return;
        };
        let Some(session) = record.session() else {
            return;
        };
        let message = Bytes::copy_from_slice(&session.reply);
        self.effects.push_back(Effect::Send { knock, message });
        if record.is_reserved() {
            self.effects.push_back(Effect::ShowCode {
                ticket,
                code: session.code,
                name: session.name.clone(),
                device: session.device,
                role: record.role,
            });
        }
    }

    pub(super) fn admit(&mut self, ticket: TicketId) {
        let Some(record) = self.book.get(&ticket) else {
            return;
        };
        let Some(session) = record.session() else {
            return;
        };
        if self.admitting.insert(ticket) {
            self.effects.push_back(Effect::Admit {
                ticket,
                device: session.device,
                agree: session.agree,
                name: session.name.clone(),
                role: record.role,
            });
        }
    }

    pub(super) fn confirmed(&mut self, now: Time, ticket: TicketId, accept: bool) {
        let reserved = self
            .book
            .get(&ticket)
            .is_some_and(|record| record.is_reserved());
        if !reserved {
            return;
        }
        if !accept {
            self.burn(&ticket, Declined::No, Outcome::Declined);
            return;
        }
        self.book.confirm(&ticket, now);
        if let Some(record) = self.book.get(&ticket) {
            let until = record.until;
            let visit = self.visit_of(&ticket);
            if let Some(visit) = visit.and_then(|knock| self.visits.get_mut(&knock)) {
                visit.deadline = until;
            }
        }
        // Used before admitted: a crash between the two repeats the admission for this very device, never for another.
        self.save_then(After::Admit(ticket));
    }

    pub(super) fn withdraw(&mut self, ticket: &TicketId) {
        let record = self.book.get(ticket);
        // What a person confirmed is carried through.
        if record.is_some_and(|record| record.is_open() || record.is_reserved()) {
            self.burn(ticket, Declined::TimeOut, Outcome::Withdrawn);
        }
    }

    pub(super) fn admitted(&mut self, now: Time, ticket: TicketId, welcome: &Welcome) {
        if !self.admitting.remove(&ticket) {
            return;
        }
        let Some(record) = self.book.get(&ticket) else {
            return;
        };
        let Some(session) = record.session() else {
            return;
        };
        let right = welcome.member_part.is_some() == (record.role == Role::Member);
        let after_reply = session.transcript_after_reply();
        let info = parts_info(
            &self.mesh.id,
            &welcome.epoch,
            &self.keys.id(),
            &session.device,
            &after_reply,
        );
        let sealed = welcome.seal(&session.agree, &info, &mut self.rng);
        let Some(content) = sealed.ok().filter(|_| right) else {
            self.burn(&ticket, Declined::Failed, Outcome::Failed);
            return;
        };
        let before = after_reply.absorb(&[&[kind::WELCOME]]);
        let content = record
            .proof_key
            .prove(Side::Welcome, &before, &self.keys, content);
        // It may have gone; then it comes again and gets it then.
        let Some(knock) = self.visit_of(&ticket) else {
            return;
        };
        let transcript = before.absorb(&[&content]);
        if let Some(visit) = self.visits.get_mut(&knock) {
            visit.deadline = now + ANSWER_MAX;
            visit.step = Step::Welcomed { ticket, transcript };
        }
        for message in pieces(kind::WELCOME, &content) {
            self.effects.push_back(Effect::Send { knock, message });
        }
    }

    /// Message 6 came.
    pub(super) fn received(
        &mut self,
        now: Time,
        ticket: TicketId,
        transcript: &Transcript,
        message: &[u8],
    ) -> Result<(), Refused> {
        let signature = read_fixed(kind::RECEIVED, message).map_err(|_| Refused)?;
        let record = self.book.get(&ticket).ok_or(Refused)?;
        let session = record.session().ok_or(Refused)?;
        if !verify(&session.device, RECEIVED_DOMAIN, &transcript.0, &signature) {
            return Err(Refused);
        }
        if self.book.finish(&ticket, now) {
            self.save();
            let outcome = Outcome::Done;
            self.effects.push_back(Effect::Ended { ticket, outcome });
        }
        Ok(())
    }
}

/// The newcomer that message 3 opens, if it is what message 1 committed to and signed.
fn newcomer_of(proved: &Proved<'_>, commitment: &[u8; 32]) -> Option<Opening> {
    let (first, opening) = proved.body.split_first()?;
    if *first != kind::NEWCOMER_PROOF {
        return None;
    }
    let opening = Opening::decode(opening).ok()?;
    let fine = opening.opens(Side::Newcomer, commitment) && proved.is_signed_by(&opening.device);
    fine.then_some(opening)
}
