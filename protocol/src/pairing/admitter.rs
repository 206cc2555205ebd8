//! The door's side of both ways in, for all its streams at once.
//!
//! Spec: `protocol/spec/pairing.md`, "Door".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::key::{AgreeKey, DeviceKeys, Rng, seal_to, verify};
use kith_object::time::{Span, Time};
use subtle::ConstantTimeEq;
use tracing::debug;

use super::book::{Session, Stage, TicketBook, declined_by_time};
use super::handshake::{Code, Opening, Peers, Proved, Side, Transcript, parts_info};
use super::message::{
    Declined, Gather, Guide, Hello, REFUSED, Welcome, again_body, decode_admission, fixed, kind,
    pieces, read_fixed,
};
use super::ticket::{Ticket, TicketError, TicketId};
use super::words::{is_root_proof, words_transcript};
use super::{
    ANSWER_MAX, DeviceName, GENESIS_BYTES_MAX, KNOCKS_MAX, Mesh, PROOF_MAX, Role, SecretBytes,
    TICKET_LIFE_MAX,
};
use crate::wire::{DOOR_FRAME_BYTES_MAX, DOOR_FRAME_BYTES_MAX_PROVED};

/// Knocks that may fail in a row; then one a second. More than any person does, and little work for us.
const ALLOWANCE_MAX: u32 = 32;
/// How often one device may come again with one ticket: a bad line, not a siege.
const REPEATS_MAX: u32 = 32;

/// One stream at the door, numbered by the owner and never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Knock(pub u64);

/// What happens to the door.
#[derive(Debug)]
pub enum Input {
    /// A stream was opened by a stranger.
    Knocked {
        /// Its number.
        knock: Knock,
        /// Both ends of its connection.
        peers: Peers,
    },
    /// A frame came, whole and without its length.
    Message {
        /// On which stream.
        knock: Knock,
        /// The frame.
        message: Bytes,
    },
    /// The stream is gone, by whoever's hand.
    Left {
        /// Which.
        knock: Knock,
    },
    /// The book of that number, or a later one, is durable.
    Saved {
        /// Its number.
        save: u64,
    },
    /// The book of that number could not be written.
    NotSaved {
        /// Its number.
        save: u64,
    },
    /// A person compared the codes.
    Confirmed {
        /// Of which ticket.
        ticket: TicketId,
        /// Whether both screens show the same.
        accept: bool,
    },
    /// Answers [`Effect::Admit`]: the admission is durable.
    Admitted {
        /// Of which ticket.
        ticket: TicketId,
        /// What to send.
        welcome: Box<Welcome>,
    },
    /// Answers [`Effect::Admit`]: it cannot be done.
    NotAdmitted {
        /// Of which ticket.
        ticket: TicketId,
    },
    /// Answers [`Effect::Guide`].
    Guide {
        /// For which stream.
        knock: Knock,
        /// What to send.
        guide: Box<Guide>,
    },
    /// Answers [`Effect::Store`]: the entries are durable and count.
    Stored {
        /// Of which stream.
        knock: Knock,
    },
    /// Answers [`Effect::Guide`] or [`Effect::Store`]: it cannot be done.
    Failed {
        /// Of which stream.
        knock: Knock,
    },
    /// The owner takes a ticket back. Without effect once a person has confirmed.
    Withdraw {
        /// Which.
        ticket: TicketId,
    },
    /// Time has come to [`Admitter::next_wakeup`].
    Wake,
}

/// What the door wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame.
    Send {
        /// On which stream.
        knock: Knock,
        /// The frame, without its length.
        message: Bytes,
    },
    /// Close the stream once all is sent.
    Close {
        /// Which.
        knock: Knock,
    },
    /// Make the book durable, then say [`Input::Saved`]. A later one replaces an earlier one.
    Save {
        /// Its number.
        save: u64,
        /// The book's bytes.
        book: SecretBytes,
    },
    /// Show the code and ask; answered by [`Input::Confirmed`]. Comes again, the same, when the device comes again.
    ShowCode {
        /// Of which ticket.
        ticket: TicketId,
        /// The code that the other screen must show too.
        code: Code,
        /// What the newcomer calls itself.
        name: DeviceName,
        /// Who it is.
        device: DeviceId,
        /// What it becomes.
        role: Role,
    },
    /// Author the admission unless the device is in already, make it durable, answer [`Input::Admitted`] or [`Input::NotAdmitted`]. A removed device is
    /// not to be admitted again.
    Admit {
        /// By which ticket.
        ticket: TicketId,
        /// Who.
        device: DeviceId,
        /// Where its envelopes are sealed to.
        agree: AgreeKey,
        /// What it calls itself.
        name: DeviceName,
        /// What it becomes.
        role: Role,
    },
    /// Someone with the words is here: collect what they need, answer [`Input::Guide`] or [`Input::Failed`].
    Guide {
        /// On which stream.
        knock: Knock,
    },
    /// Someone with the words hands in its own admission: judge, make durable, answer [`Input::Stored`] or [`Input::Failed`].
    Store {
        /// On which stream.
        knock: Knock,
        /// The entries as they came.
        entries: Vec<Bytes>,
    },
    /// A ticket's story is over; said once for each. After [`Outcome::Done`] the device may still come again for a while.
    Ended {
        /// Which.
        ticket: TicketId,
        /// How.
        outcome: Outcome,
    },
}

/// How a ticket ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The device is in and has everything.
    Done,
    /// The device is in, but has not said that it has everything.
    Unacknowledged,
    /// Nobody came in time.
    Expired,
    /// Nobody confirmed in time.
    TimedOut,
    /// A person said no.
    Declined,
    /// The owner took it back.
    Withdrawn,
    /// The admission or the book could not be written.
    Failed,
}

/// Why no ticket was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// [`super::TICKETS_MAX`] are in the book.
    #[error("too many tickets are open or were used just now; wait until one has ended")]
    TooMany,
    /// No address, or one that a ticket cannot hold.
    #[error("the door's addresses do not fit a ticket")]
    Addresses(#[source] TicketError),
}

/// What the door has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Streams that strangers opened.
    pub knocks: u64,
    /// Of these, turned away at once: too many at a time, or too many failures.
    pub turned_away: u64,
    /// Conversations ended without a proof.
    pub refused: u64,
    /// Tickets that were proved.
    pub reserved: u64,
    /// Newcomers that proved the words.
    pub by_words: u64,
}

/// The mesh's side of pairing: the ticket book, and all streams of the door.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Admitter::next_wakeup`]. Any device can serve newcomers with words; one that is an admin also
/// [`Admitter::issue`]s tickets.
///
/// Spec: `protocol/spec/pairing.md`, "Door".
pub struct Admitter {
    keys: DeviceKeys,
    mesh: Mesh,
    book: TicketBook,
    rng: Rng,
    visits: BTreeMap<Knock, Visit>,
    /// Number of the last book handed out to be saved.
    save: u64,
    /// What waits for that book to be durable.
    after_save: BTreeMap<u64, Vec<After>>,
    /// Tickets whose [`Effect::Admit`] is unanswered.
    admitting: BTreeSet<TicketId>,
    /// How often the reserved device came again.
    repeats: BTreeMap<TicketId, u32>,
    /// Failures still allowed, and when that was counted.
    allowance: u32,
    allowance_at: Time,
    stats: Stats,
    effects: VecDeque<Effect>,
}

/// One stream.
#[derive(Debug)]
struct Visit {
    peers: Peers,
    deadline: Time,
    step: Step,
}

/// How far a conversation has come.
#[derive(Debug)]
enum Step {
    /// Nothing was said.
    Silent,
    /// Message 2 is sent.
    Committed {
        ticket: TicketId,
        /// After message 2.
        transcript: Transcript,
        commitment: [u8; 32],
        opening: Opening,
    },
    /// The ticket is reserved for this newcomer. Nothing is due from it until message 5 is sent.
    Reserved { ticket: TicketId },
    /// Message 5 is sent.
    Welcomed {
        ticket: TicketId,
        /// After message 5.
        transcript: Transcript,
    },
    /// The nonce is sent.
    Asked { transcript: Transcript },
    /// The words are proved; the owner collects.
    Proved,
    /// The entries are sent, the admission is due.
    Guided { admission: Gather },
    /// The owner stores the admission.
    Storing,
}

impl Step {
    /// Whether the stranger is one no more.
    fn is_proved(&self) -> bool {
        !matches!(
            self,
            Self::Silent | Self::Committed { .. } | Self::Asked { .. }
        )
    }

    fn reserved(&self) -> Option<&TicketId> {
        match self {
            Self::Reserved { ticket } | Self::Welcomed { ticket, .. } => Some(ticket),
            _ => None,
        }
    }
}

/// What waits for a durable book.
#[derive(Clone, PartialEq, Eq, Debug)]
enum After {
    Reply(TicketId),
    Admit(TicketId),
}

impl After {
    fn ticket(&self) -> &TicketId {
        match self {
            Self::Reply(ticket) | Self::Admit(ticket) => ticket,
        }
    }
}

/// The stranger proved nothing, or said what it should not.
struct Refused;

impl Admitter {
    /// A door with the tickets it had.
    ///
    /// # Panics
    /// If the genesis record is longer than [`GENESIS_BYTES_MAX`].
    pub fn new(now: Time, keys: DeviceKeys, mesh: Mesh, book: TicketBook, rng: Rng) -> Self {
        assert!(
            mesh.genesis.len() <= GENESIS_BYTES_MAX,
            "a genesis record has 97 bytes"
        );
        Self {
            keys,
            mesh,
            book,
            rng,
            visits: BTreeMap::new(),
            save: 0,
            after_save: BTreeMap::new(),
            admitting: BTreeSet::new(),
            repeats: BTreeMap::new(),
            allowance: ALLOWANCE_MAX,
            allowance_at: now,
            stats: Stats::default(),
            effects: VecDeque::new(),
        }
    }

    /// Makes a ticket. Whether this device may admit is for the owner to know.
    ///
    /// # Errors
    /// [`IssueError`] if there are too many, or the addresses do not fit.
    pub fn issue(
        &mut self,
        now: Time,
        role: Role,
        life: Span,
        door: DeviceId,
        addresses: Vec<String>,
    ) -> Result<Ticket, IssueError> {
        self.pass(now);
        let expiry = now + life.min(TICKET_LIFE_MAX);
        let ticket = Ticket::generate(self.mesh.id, door, role, expiry, addresses, &mut self.rng)
            .map_err(IssueError::Addresses)?;
        if !self.book.issue(&ticket) {
            return Err(IssueError::TooMany);
        }
        self.drop_forgotten();
        self.save();
        Ok(ticket)
    }

    /// Follows a `root` record: new words.
    pub fn set_root(&mut self, root: DeviceId) {
        self.mesh.root = root;
    }

    /// The tickets as they stand.
    pub fn book(&self) -> &TicketBook {
        &self.book
    }

    /// What the door has seen.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The largest frame to accept on that stream.
    pub fn message_bytes_max(&self, knock: Knock) -> usize {
        match self.visits.get(&knock) {
            Some(visit) if visit.step.is_proved() => DOOR_FRAME_BYTES_MAX_PROVED,
            _ => DOOR_FRAME_BYTES_MAX,
        }
    }

    /// The next wish, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come with [`Input::Wake`] at the latest.
    pub fn next_wakeup(&self) -> Option<Time> {
        let visits = self.visits.values().map(|visit| visit.deadline);
        visits.chain(self.book.next_expiry()).min()
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.pass(now);
        match input {
            Input::Knocked { knock, peers } => self.knocked(now, knock, peers),
            Input::Message { knock, message } => self.message(now, knock, &message),
            Input::Left { knock } => self.left(knock),
            Input::Saved { save } => self.saved(save),
            Input::NotSaved { save } => self.not_saved(save),
            Input::Confirmed { ticket, accept } => self.confirmed(now, ticket, accept),
            Input::Admitted { ticket, welcome } => self.admitted(now, ticket, &welcome),
            Input::NotAdmitted { ticket } => {
                self.admitting.remove(&ticket);
                self.burn(&ticket, Declined::Failed, Outcome::Failed);
            }
            Input::Guide { knock, guide } => self.guide(now, knock, &guide),
            Input::Stored { knock } => self.stored(knock),
            Input::Failed { knock } => self.failed(knock),
            Input::Withdraw { ticket } => self.withdraw(&ticket),
            Input::Wake => {}
        }
    }

    /// Lets time pass: failures are forgiven, tickets and conversations run out.
    fn pass(&mut self, now: Time) {
        let secs = now.since(self.allowance_at).as_ms() / 1000;
        if secs > 0 {
            let more = u32::try_from(secs).unwrap_or(u32::MAX);
            self.allowance = self.allowance.saturating_add(more).min(ALLOWANCE_MAX);
            self.allowance_at = self.allowance_at + Span::from_secs(secs);
        }
        let ended = self.book.expire(now);
        if !ended.is_empty() {
            self.save();
        }
        for (ticket, record) in ended {
            let outcome = match &record.stage {
                Stage::Open => Some(Outcome::Expired),
                Stage::Reserved(_) => Some(Outcome::TimedOut),
                Stage::Confirmed(_) => Some(Outcome::Unacknowledged),
                Stage::Done(_) => None,
            };
            self.forget(&ticket, declined_by_time(&record.stage), outcome);
        }
        let late: Vec<Knock> = self
            .visits
            .iter()
            .filter(|(_, visit)| visit.deadline <= now)
            .map(|(knock, _)| *knock)
            .collect();
        for knock in late {
            self.refuse_or_close(knock);
        }
    }

    fn knocked(&mut self, now: Time, knock: Knock, peers: Peers) {
        self.stats.knocks += 1;
        let room = self.visits.len() < KNOCKS_MAX && self.allowance > 0;
        if !room || !peers.is_valid() || self.visits.contains_key(&knock) {
            self.stats.turned_away += 1;
            self.effects.push_back(Effect::Close { knock });
            return;
        }
        let visit = Visit {
            peers,
            deadline: now + PROOF_MAX,
            step: Step::Silent,
        };
        self.visits.insert(knock, visit);
    }

    fn left(&mut self, knock: Knock) {
        let visit = self.visits.remove(&knock);
        if visit.is_some_and(|visit| !visit.step.is_proved()) {
            self.count_failure();
        }
    }

    fn message(&mut self, now: Time, knock: Knock, message: &Bytes) {
        let max = self.message_bytes_max(knock);
        // What comes after a close crossed it on the way.
        let Some(visit) = self.visits.remove(&knock) else {
            return;
        };
        let proved = visit.step.is_proved();
        let next = if message.len() > max {
            Err(Refused)
        } else {
            self.converse(now, knock, visit, message)
        };
        match next {
            Ok(Some(visit)) => {
                self.visits.insert(knock, visit);
            }
            Ok(None) => self.effects.push_back(Effect::Close { knock }),
            Err(Refused) if proved => self.effects.push_back(Effect::Close { knock }),
            Err(Refused) => self.refuse(knock),
        }
    }

    /// One message more; the conversation as it goes on, or nothing if it is over.
    fn converse(
        &mut self,
        now: Time,
        knock: Knock,
        visit: Visit,
        message: &[u8],
    ) -> Result<Option<Visit>, Refused> {
        let Visit {
            peers,
            deadline,
            step,
        } = visit;
        let (deadline, step) = match step {
            Step::Silent => match Hello::decode(message).map_err(|_| Refused)? {
                Hello::Ticket { ticket, commitment } => {
                    let step = self.commit(knock, &peers, ticket, commitment, message)?;
                    (deadline, step)
                }
                Hello::Words { .. } => {
                    let nonce = fixed(kind::NONCE, &self.rng.bytes::<32>());
                    let transcript = words_transcript(&peers, message, &nonce);
                    self.send(knock, nonce);
                    (deadline, Step::Asked { transcript })
                }
                Hello::Again {
                    ticket, transcript, ..
                } => {
                    let until = self.again(&peers, ticket, &transcript, message)?;
                    self.attach(knock, ticket);
                    (until, Step::Reserved { ticket })
                }
            },
            Step::Committed {
                ticket,
                transcript,
                commitment,
                opening,
            } => {
                let until =
                    self.reserve(now, ticket, &transcript, &commitment, &opening, message)?;
                (until, Step::Reserved { ticket })
            }
            Step::Welcomed { ticket, transcript } => {
                self.received(now, ticket, &transcript, message)?;
                return Ok(None);
            }
            Step::Asked { transcript } => {
                if !is_root_proof(&self.mesh, &transcript, message) {
                    return Err(Refused);
                }
                self.stats.by_words += 1;
                debug!(knock = knock.0, "words proved at the door");
                self.effects.push_back(Effect::Guide { knock });
                (now + ANSWER_MAX, Step::Proved)
            }
            Step::Guided { mut admission } => {
                let content = admission.push(message).map_err(|_| Refused)?;
                match content {
                    None => (deadline, Step::Guided { admission }),
                    Some(content) => {
                        let entries = decode_admission(&content).map_err(|_| Refused)?;
                        self.effects.push_back(Effect::Store { knock, entries });
                        (now + ANSWER_MAX, Step::Storing)
                    }
                }
            }
            Step::Reserved { .. } | Step::Proved | Step::Storing => return Err(Refused),
        };
        Ok(Some(Visit {
            peers,
            deadline,
            step,
        }))
    }

    /// Message 1 came: commits in turn.
    fn commit(
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
    fn reserve(
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
    fn again(
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
    fn attach(&mut self, knock: Knock, ticket: TicketId) {
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
    fn reply(&mut self, knock: Knock, ticket: TicketId) {
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

    fn admit(&mut self, ticket: TicketId) {
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

    fn confirmed(&mut self, now: Time, ticket: TicketId, accept: bool) {
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

    fn withdraw(&mut self, ticket: &TicketId) {
        let record = self.book.get(ticket);
        // What a person confirmed is carried through.
        if record.is_some_and(|record| record.is_open() || record.is_reserved()) {
            self.burn(ticket, Declined::TimeOut, Outcome::Withdrawn);
        }
    }

    fn admitted(&mut self, now: Time, ticket: TicketId, welcome: &Welcome) {
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
        let before = session.transcript_after_reply();
        let info = parts_info(
            &self.mesh.id,
            &welcome.epoch,
            &self.keys.id(),
            &session.device,
            &before,
        );
        let sealed = welcome.seal(&session.agree, &info, &mut self.rng);
        let Some(content) = sealed.ok().filter(|_| right) else {
            self.burn(&ticket, Declined::Failed, Outcome::Failed);
            return;
        };
        // It may have gone; then it comes again and gets it then.
        let Some(knock) = self.visit_of(&ticket) else {
            return;
        };
        let transcript = before.absorb(&[&[kind::WELCOME], &content]);
        if let Some(visit) = self.visits.get_mut(&knock) {
            visit.deadline = now + ANSWER_MAX;
            visit.step = Step::Welcomed { ticket, transcript };
        }
        for message in pieces(kind::WELCOME, &content) {
            self.effects.push_back(Effect::Send { knock, message });
        }
    }

    /// Message 6 came.
    fn received(
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

    fn guide(&mut self, now: Time, knock: Knock, guide: &Guide) {
        let Some(visit) = self.visits.get_mut(&knock) else {
            return;
        };
        if !matches!(visit.step, Step::Proved) {
            return;
        }
        let Ok(content) = guide.encode() else {
            self.decline(knock, Declined::Failed);
            return;
        };
        visit.deadline = now + ANSWER_MAX;
        visit.step = Step::Guided {
            admission: Gather::admission(),
        };
        for message in pieces(kind::GUIDE, &content) {
            self.effects.push_back(Effect::Send { knock, message });
        }
    }

    fn stored(&mut self, knock: Knock) {
        let storing = |visit: &Visit| matches!(visit.step, Step::Storing);
        if self.visits.get(&knock).is_some_and(storing) {
            self.visits.remove(&knock);
            self.send(knock, vec![kind::STORED]);
            self.effects.push_back(Effect::Close { knock });
        }
    }

    fn failed(&mut self, knock: Knock) {
        let asked = |visit: &Visit| matches!(visit.step, Step::Proved | Step::Storing);
        if self.visits.get(&knock).is_some_and(asked) {
            self.decline(knock, Declined::Failed);
        }
    }

    fn saved(&mut self, save: u64) {
        let later = self.after_save.split_off(&save.saturating_add(1));
        for after in std::mem::replace(&mut self.after_save, later)
            .into_values()
            .flatten()
        {
            match after {
                After::Reply(ticket) => {
                    if let Some(knock) = self.visit_of(&ticket) {
                        self.reply(knock, ticket);
                    }
                }
                After::Admit(ticket) => self.admit(ticket),
            }
        }
    }

    /// Nothing that waits for this book may happen: its tickets are burnt.
    fn not_saved(&mut self, save: u64) {
        let later = self.after_save.split_off(&save.saturating_add(1));
        for after in std::mem::replace(&mut self.after_save, later)
            .into_values()
            .flatten()
        {
            self.burn(after.ticket(), Declined::Failed, Outcome::Failed);
        }
    }

    fn save(&mut self) -> u64 {
        self.save += 1;
        self.effects.push_back(Effect::Save {
            save: self.save,
            book: self.book.encode(),
        });
        self.save
    }

    fn save_then(&mut self, after: After) {
        let save = self.save();
        self.after_save.entry(save).or_default().push(after);
    }

    /// Ends a ticket before its time.
    fn burn(&mut self, ticket: &TicketId, declined: Declined, outcome: Outcome) {
        if let Some(record) = self.book.burn(ticket) {
            self.save();
            let told = matches!(record.stage, Stage::Done(_));
            self.forget(ticket, declined, (!told).then_some(outcome));
        }
    }

    /// The ticket is out of the book: ends what hangs on it.
    fn forget(&mut self, ticket: &TicketId, declined: Declined, outcome: Option<Outcome>) {
        self.admitting.remove(ticket);
        self.repeats.remove(ticket);
        for waiting in self.after_save.values_mut() {
            waiting.retain(|after| after.ticket() != ticket);
        }
        if let Some(knock) = self.visit_of(ticket) {
            self.decline(knock, declined);
        }
        if let Some(outcome) = outcome {
            let ticket = *ticket;
            self.effects.push_back(Effect::Ended { ticket, outcome });
        }
    }

    /// Ends what hangs on a finished ticket that made room for another.
    fn drop_forgotten(&mut self) {
        let hanging: BTreeSet<TicketId> = self
            .visits
            .values()
            .filter_map(|visit| visit.step.reserved().copied())
            .chain(self.repeats.keys().copied())
            .chain(self.admitting.iter().copied())
            .filter(|ticket| self.book.get(ticket).is_none())
            .collect();
        for ticket in hanging {
            self.forget(&ticket, Declined::Failed, None);
        }
    }

    /// The stream of the device that the ticket is reserved for.
    fn visit_of(&self, ticket: &TicketId) -> Option<Knock> {
        let found = self
            .visits
            .iter()
            .find(|(_, visit)| visit.step.reserved() == Some(ticket));
        found.map(|(knock, _)| *knock)
    }

    fn send(&mut self, knock: Knock, message: Vec<u8>) {
        let message = Bytes::from(message);
        self.effects.push_back(Effect::Send { knock, message });
    }

    /// Ends a conversation with one who proved itself.
    fn decline(&mut self, knock: Knock, declined: Declined) {
        self.visits.remove(&knock);
        let message = declined.encode();
        self.effects.push_back(Effect::Send { knock, message });
        self.effects.push_back(Effect::Close { knock });
    }

    /// Ends a conversation with a stranger. Always the same bytes.
    fn refuse(&mut self, knock: Knock) {
        self.count_failure();
        debug!(knock = knock.0, "stranger refused at the door");
        let message = REFUSED;
        self.effects.push_back(Effect::Send { knock, message });
        self.effects.push_back(Effect::Close { knock });
    }

    fn refuse_or_close(&mut self, knock: Knock) {
        match self.visits.remove(&knock) {
            Some(visit) if visit.step.is_proved() => {
                self.effects.push_back(Effect::Close { knock });
            }
            Some(_) => self.refuse(knock),
            None => {}
        }
    }

    fn count_failure(&mut self) {
        self.stats.refused += 1;
        self.allowance = self.allowance.saturating_sub(1);
    }

    /// Panics if the machine is not as it should be.
    pub fn check_invariants(&self) {
        self.book.check_invariants();
        assert!(self.visits.len() <= KNOCKS_MAX, "too many conversations");
        assert!(
            self.allowance <= ALLOWANCE_MAX,
            "more allowance than there is"
        );
        let mut seen = BTreeSet::new();
        for visit in self.visits.values() {
            if let Some(ticket) = visit.step.reserved() {
                let record = self
                    .book
                    .get(ticket)
                    .expect("reserved tickets are in the book");
                assert!(
                    record.session().is_some(),
                    "ticket with a visit is not reserved"
                );
                assert!(seen.insert(*ticket), "two conversations for one ticket");
            }
        }
        for ticket in self.admitting.iter().chain(self.repeats.keys()) {
            let record = self
                .book
                .get(ticket)
                .expect("tickets at work are in the book");
            assert!(record.session().is_some(), "an open ticket is at work");
        }
        for after in self.after_save.values().flatten() {
            assert!(
                self.book.get(after.ticket()).is_some(),
                "a burnt ticket waits"
            );
        }
        assert!(
            self.after_save.keys().all(|save| *save <= self.save),
            "something waits for a book that was never handed out"
        );
    }
}

/// Domain of the signature in message 6.
pub(super) const RECEIVED_DOMAIN: &str = "kith pairing received 1";

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
