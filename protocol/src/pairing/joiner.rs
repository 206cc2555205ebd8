//! The newcomer's side of the ticket handshake, over as many connections as it takes.
//!
//! Spec: `protocol/spec/pairing.md`, "Newcomer".

use std::collections::VecDeque;

use bytes::Bytes;
use kith_object::key::{DeviceKeys, Rng};
use kith_object::time::{Span, Time};

mod interface;
mod resume;

pub use interface::{Arrival, Effect, Input, JoinError, ResumeError};

use self::resume::{read_resume, write_resume};
use super::admitter::RECEIVED_DOMAIN;
use super::handshake::{Code, Opening, Peers, ProofKey, Side, Transcript, parts_info};
use super::message::{
    Declined, Gather, Hello, REFUSED, SealedWelcome, again_body, fixed, kind, read_fixed,
};
use super::ticket::Ticket;
use super::{ANSWER_MAX, CONFIRM_MAX, DeviceName, PROOF_MAX, REPEAT_MAX, Role, space_of};
use crate::wire::{DOOR_FRAME_BYTES_MAX, DOOR_FRAME_BYTES_MAX_PROVED};

/// Connections tried without a word from the door before the newcomer gives up, with pauses of 1, 2, 4 seconds: a person is waiting.
const TRIES_MAX: u32 = 4;
/// The same once the ticket may be reserved for this device: giving up would burn it.
const PROVED_TRIES_MAX: u32 = 12;
/// How long one attempt to connect may take.
const DIAL_MAX: Span = Span::from_secs(15);
/// First pause between attempts.
const PAUSE_MIN: Span = Span::from_secs(1);
/// Longest pause between attempts.
const PAUSE_MAX: Span = Span::from_secs(8);
/// How often the newcomer may begin anew after it has opened its commitment. Each new beginning gives one who stands between a new short code to hope
/// for, so few.
const RESTARTS_MAX: u8 = 2;
/// Connections tried only to say that everything was received.
const THANKS_MAX: u32 = 3;

/// A new device that joins by a ticket.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Joiner::next_wakeup`]. It dials again when a connection breaks.
///
/// Spec: `protocol/spec/pairing.md`, "Newcomer".
pub struct Joiner {
    keys: DeviceKeys,
    name: DeviceName,
    ticket: Ticket,
    proof_key: ProofKey,
    rng: Rng,
    step: Step,
    /// What message 3 was sent with; from then on there is no other beginning.
    session: Option<Session>,
    restarts: u8,
    /// Attempts since the door last said something.
    tries: u32,
    code_shown: bool,
    accepted: bool,
    /// When waiting ends, once the code is shown.
    give_up: Option<Time>,
    effects: VecDeque<Effect>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    /// After message 2.
    committed: Transcript,
    /// What the admitter committed to.
    commitment: [u8; 32],
    opening: Opening,
    message: Vec<u8>,
}

impl Session {
    /// After message 3.
    fn transcript(&self) -> Transcript {
        self.committed.absorb(&[&self.message])
    }
}

#[derive(Debug)]
enum Step {
    /// Between two attempts.
    Pause { until: Time },
    /// Waiting for a stream.
    Dialing { deadline: Time },
    /// Message 1 is sent.
    Knocked {
        deadline: Time,
        opening: Opening,
        /// After message 1.
        transcript: Transcript,
    },
    /// Message 3 or "again" is sent.
    Proved { deadline: Time, again: bool },
    /// Message 4 came: the code is shown.
    Confirming {
        admitter: Opening,
        /// After message 4.
        transcript: Transcript,
        welcome: Gather,
    },
    /// Message 5 came.
    Judging {
        /// After message 5.
        transcript: Transcript,
        connected: bool,
    },
    /// It is over.
    Over,
}

impl Joiner {
    /// Begins to join.
    pub fn new(now: Time, keys: DeviceKeys, name: DeviceName, ticket: Ticket, rng: Rng) -> Self {
        let mut joiner = Self {
            proof_key: ProofKey::of(&ticket),
            keys,
            name,
            ticket,
            rng,
            step: Step::Over,
            session: None,
            restarts: 0,
            tries: 0,
            code_shown: false,
            accepted: false,
            give_up: None,
            effects: VecDeque::new(),
        };
        joiner.dial(now);
        joiner
    }

    /// Goes on after a crash, with the bytes of the last [`Effect::Remember`].
    ///
    /// # Errors
    /// [`ResumeError`] if they are not such bytes, or of other keys.
    pub fn resume(
        now: Time,
        keys: DeviceKeys,
        remembered: &[u8],
        rng: Rng,
    ) -> Result<Self, ResumeError> {
        let (ticket, session, restarts) = read_resume(remembered)?;
        if session.opening.device != keys.id() || session.opening.agree != keys.agree_public() {
            return Err(ResumeError::OtherKeys);
        }
        let name = DeviceName::from_bytes(&session.opening.about).ok_or(ResumeError::Damaged)?;
        let mut joiner = Self::new(now, keys, name, ticket, rng);
        joiner.session = Some(session);
        joiner.restarts = restarts;
        Ok(joiner)
    }

    /// The largest frame to accept.
    pub fn message_bytes_max(&self) -> usize {
        match self.step {
            Step::Confirming { .. } => DOOR_FRAME_BYTES_MAX_PROVED,
            _ => DOOR_FRAME_BYTES_MAX,
        }
    }

    /// The ticket it joins by.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Whether the door may have reserved the ticket for this device: message 3 was made, here or before a crash.
    pub fn is_resumed(&self) -> bool {
        self.session.is_some()
    }

    /// Whether [`Effect::Finished`] or [`Effect::Fail`] was said.
    pub fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// The next wish, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come with [`Input::Wake`] at the latest.
    pub fn next_wakeup(&self) -> Option<Time> {
        let step = match &self.step {
            Step::Pause { until } => Some(*until),
            Step::Dialing { deadline }
            | Step::Knocked { deadline, .. }
            | Step::Proved { deadline, .. } => Some(*deadline),
            Step::Confirming { .. } | Step::Judging { .. } | Step::Over => None,
        };
        let give_up = self.give_up.filter(|_| self.may_give_up());
        step.into_iter().chain(give_up).min()
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        if self.is_over() {
            return;
        }
        match input {
            Input::Opened(peers) => self.opened(now, &peers),
            Input::Closed => self.lost(now),
            Input::Message(message) => self.message(now, &message),
            Input::Accepted => self.judged(now, true),
            Input::Rejected => self.judged(now, false),
            Input::Wake => {}
        }
        self.pass(now);
    }

    fn pass(&mut self, now: Time) {
        if self.may_give_up() && self.give_up.is_some_and(|at| at <= now) {
            self.end_waiting();
            return;
        }
        match self.step {
            Step::Pause { until } if until <= now => self.dial(now),
            Step::Dialing { deadline }
            | Step::Knocked { deadline, .. }
            | Step::Proved { deadline, .. }
                if deadline <= now =>
            {
                self.effects.push_back(Effect::Close);
                self.lost(now);
            }
            _ => {}
        }
    }

    /// While the owner judges, nothing runs out.
    fn may_give_up(&self) -> bool {
        !matches!(self.step, Step::Judging { .. } | Step::Over)
    }

    fn end_waiting(&mut self) {
        if self.accepted {
            self.effects.push_back(Effect::Close);
            self.effects.push_back(Effect::Finished { told: false });
            self.step = Step::Over;
        } else {
            self.fail(JoinError::TimedOut);
        }
    }

    fn dial(&mut self, now: Time) {
        self.step = Step::Dialing {
            deadline: now + DIAL_MAX,
        };
        self.effects.push_back(Effect::Dial {
            door: self.ticket.door,
            addresses: self.ticket.addresses.clone(),
        });
    }

    fn opened(&mut self, now: Time, peers: &Peers) {
        if !matches!(self.step, Step::Dialing { .. }) {
            return;
        }
        // The transport proves the door's key; a ticket is good for no other.
        if peers.door != self.ticket.door.to_peer_id_bytes() || !peers.is_valid() {
            self.fail(JoinError::WrongDoor);
            return;
        }
        let deadline = now + PROOF_MAX;
        if let Some(session) = &self.session {
            let body = again_body(&self.ticket.id(), &session.transcript().0);
            let message =
                self.proof_key
                    .prove(Side::Again, &Transcript::start(peers), &self.keys, body);
            self.effects.push_back(Effect::Send(message.into()));
            self.step = Step::Proved {
                deadline,
                again: true,
            };
            return;
        }
        let opening = Opening::of(&self.keys, self.rng.bytes(), self.name.as_str().as_bytes());
        let hello = Hello::Ticket {
            ticket: self.ticket.id(),
            commitment: opening.commitment(Side::Newcomer),
        };
        let message = hello.encode();
        let transcript = Transcript::start(peers).absorb(&[&message]);
        self.effects.push_back(Effect::Send(message.into()));
        self.step = Step::Knocked {
            deadline,
            opening,
            transcript,
        };
    }

    /// The connection is gone.
    fn lost(&mut self, now: Time) {
        match &mut self.step {
            Step::Pause { .. } | Step::Over => return,
            Step::Judging { connected, .. } => {
                *connected = false;
                return;
            }
            _ => {}
        }
        self.tries += 1;
        if self.accepted && self.tries >= THANKS_MAX {
            self.end_waiting();
            return;
        }
        let tries_max = match self.session {
            Some(_) => PROVED_TRIES_MAX,
            None => TRIES_MAX,
        };
        if !self.code_shown && self.tries >= tries_max {
            self.fail(JoinError::Unreachable);
            return;
        }
        let doubled = PAUSE_MIN.as_ms() << (self.tries.clamp(1, 8) - 1);
        let until = now + Span::from_ms(doubled).min(PAUSE_MAX);
        self.step = Step::Pause { until };
    }

    fn message(&mut self, now: Time, message: &Bytes) {
        if message.len() > self.message_bytes_max() {
            self.fail(JoinError::Malformed("a message too long"));
            return;
        }
        let step = std::mem::replace(&mut self.step, Step::Over);
        let next = match step {
            Step::Knocked { .. } | Step::Proved { .. } | Step::Confirming { .. }
                if *message == REFUSED =>
            {
                self.refused(now, &step)
            }
            Step::Proved { .. } | Step::Confirming { .. }
                if message.first() == Some(&kind::DECLINED) =>
            {
                Err(match Declined::decode(message) {
                    Ok(Declined::No) => JoinError::Declined,
                    Ok(Declined::TimeOut) => JoinError::TimedOut,
                    Ok(Declined::Failed) => JoinError::Failed,
                    Err(malformed) => JoinError::Malformed(malformed.0),
                })
            }
            Step::Knocked {
                opening,
                transcript,
                ..
            } => self.committed(now, opening, &transcript, message),
            Step::Proved { .. } => self.opened_commitment(now, message),
            Step::Confirming {
                admitter,
                transcript,
                mut welcome,
            } => match welcome.push(message) {
                Ok(None) => Ok(Step::Confirming {
                    admitter,
                    transcript,
                    welcome,
                }),
                Ok(Some(content)) => self.welcomed(&admitter, &transcript, &content),
                Err(malformed) => Err(JoinError::Malformed(malformed.0)),
            },
            // Nothing is due; what crossed a close on its way is dropped.
            other => Ok(other),
        };
        match next {
            Ok(next) => self.step = next,
            Err(error) => self.fail(error),
        }
    }

    fn refused(&mut self, now: Time, step: &Step) -> Result<Step, JoinError> {
        // The door does not know the session: it never got message 3, or lost what it had not yet made durable.
        let anew = matches!(step, Step::Proved { again: true, .. })
            && !self.code_shown
            && self.restarts < RESTARTS_MAX;
        if !anew {
            return Err(JoinError::Refused);
        }
        self.restarts += 1;
        self.session = None;
        self.effects.push_back(Effect::Close);
        Ok(Step::Pause { until: now })
    }

    /// Message 2 came: opens the commitment.
    fn committed(
        &mut self,
        now: Time,
        opening: Opening,
        transcript: &Transcript,
        message: &[u8],
    ) -> Result<Step, JoinError> {
        let commitment =
            read_fixed(kind::COMMIT, message).map_err(|error| JoinError::Malformed(error.0))?;
        self.tries = 0;
        let committed = transcript.absorb(&[message]);
        let mut body = vec![kind::NEWCOMER_PROOF];
        body.extend_from_slice(&opening.encode());
        let message = self
            .proof_key
            .prove(Side::Newcomer, &committed, &self.keys, body);
        let session = Session {
            committed,
            commitment,
            opening,
            message,
        };
        let remember = write_resume(&self.ticket, &session, self.restarts);
        self.effects.push_back(Effect::Remember(remember));
        let message = Bytes::copy_from_slice(&session.message);
        self.effects.push_back(Effect::Send(message));
        self.session = Some(session);
        Ok(Step::Proved {
            deadline: now + PROOF_MAX,
            again: false,
        })
    }

    /// Message 4 came: shows the code.
    fn opened_commitment(&mut self, now: Time, message: &[u8]) -> Result<Step, JoinError> {
        let session = self.session.as_ref().ok_or(JoinError::NotAuthentic)?;
        let before = session.transcript();
        let proved = self
            .proof_key
            .check(Side::Admitter, &before, message)
            .ok_or(JoinError::NotAuthentic)?;
        let admitter = match proved.body.split_first() {
            Some((&kind::ADMITTER_PROOF, opening)) => {
                Opening::decode(opening).map_err(|error| JoinError::Malformed(error.0))?
            }
            _ => return Err(JoinError::Malformed("another message was due")),
        };
        let honest = admitter.opens(Side::Admitter, &session.commitment)
            && proved.is_signed_by(&admitter.device)
            && admitter.device != self.keys.id();
        if !honest {
            return Err(JoinError::NotAuthentic);
        }
        if space_of(&admitter.about) != self.ticket.mesh {
            return Err(JoinError::WrongMesh);
        }
        let code = Code::of(&session.committed, &session.opening, &admitter);
        let transcript = before.absorb(&[message]);
        self.tries = 0;
        if !self.code_shown {
            self.code_shown = true;
            self.give_up = Some(now + CONFIRM_MAX + REPEAT_MAX);
            self.effects.push_back(Effect::ShowCode(code));
        }
        Ok(Step::Confirming {
            admitter,
            transcript,
            welcome: Gather::welcome(),
        })
    }

    /// Message 5 came whole.
    fn welcomed(
        &mut self,
        admitter: &Opening,
        before: &Transcript,
        content: &[u8],
    ) -> Result<Step, JoinError> {
        let before_content = before.absorb(&[&[kind::WELCOME]]);
        let proved = self
            .proof_key
            .check(Side::Welcome, &before_content, content)
            .filter(|proved| proved.is_signed_by(&admitter.device))
            .ok_or(JoinError::NotAuthentic)?;
        let sealed =
            SealedWelcome::decode(proved.body).map_err(|error| JoinError::Malformed(error.0))?;
        if sealed.has_member_part() != (self.ticket.role == Role::Member) {
            return Err(JoinError::Malformed("parts of another role"));
        }
        let info = parts_info(
            &self.ticket.mesh,
            &sealed.epoch,
            &admitter.device,
            &self.keys.id(),
            before,
        );
        let welcome = sealed
            .open(self.keys.agree_secret(), &info)
            .ok_or(JoinError::NotAuthentic)?;
        let transcript = before_content.absorb(&[content]);
        if self.accepted {
            // All was judged before; only the thanks got lost.
            self.thank(&transcript);
            return Ok(Step::Over);
        }
        self.effects.push_back(Effect::Judge(Box::new(Arrival {
            admitter: admitter.device,
            admitter_agree: admitter.agree,
            genesis: admitter.about.clone(),
            role: self.ticket.role,
            welcome,
        })));
        Ok(Step::Judging {
            transcript,
            connected: true,
        })
    }

    fn judged(&mut self, now: Time, accepted: bool) {
        let Step::Judging {
            transcript,
            connected,
        } = self.step
        else {
            return;
        };
        if !accepted {
            self.fail(JoinError::NotTrusted);
            return;
        }
        self.accepted = true;
        if connected {
            self.thank(&transcript);
            self.step = Step::Over;
        } else {
            self.give_up = Some(now + ANSWER_MAX);
            self.tries = 0;
            self.dial(now);
        }
    }

    /// Sends message 6 and ends.
    fn thank(&mut self, transcript: &Transcript) {
        let signature = self.keys.sign(RECEIVED_DOMAIN, &transcript.0);
        let message = fixed(kind::RECEIVED, &signature);
        self.effects.push_back(Effect::Send(message.into()));
        self.effects.push_back(Effect::Close);
        self.effects.push_back(Effect::Finished { told: true });
    }

    fn fail(&mut self, error: JoinError) {
        self.effects.push_back(Effect::Close);
        if self.accepted {
            // In is in: the door cannot take that back.
            self.effects.push_back(Effect::Finished { told: false });
        } else {
            self.effects.push_back(Effect::Fail(error));
        }
        self.step = Step::Over;
    }

    /// Panics if the machine is not as it should be.
    pub fn check_invariants(&self) {
        let needs_session = matches!(
            self.step,
            Step::Proved { .. } | Step::Confirming { .. } | Step::Judging { .. }
        );
        assert!(
            !needs_session || self.session.is_some(),
            "proved without a session"
        );
        assert!(self.restarts <= RESTARTS_MAX, "begun anew too often");
        assert!(
            !self.code_shown || self.give_up.is_some(),
            "waits for ever for a person"
        );
        assert!(
            self.is_over()
                || self.next_wakeup().is_some()
                || matches!(self.step, Step::Judging { .. }),
            "nothing will ever happen"
        );
    }
}
