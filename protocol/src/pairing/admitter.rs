//! The door's side of both ways in, for all its streams at once.
//!
//! Spec: `protocol/spec/pairing.md`, "Door".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::key::{DeviceKeys, Rng};
use kith_object::time::{Span, Time};
use tracing::debug;

mod by_ticket;
mod by_words;
mod interface;

pub use interface::{Effect, Input, IssueError, Knock, Outcome, Stats};

use super::book::{Stage, TicketBook, declined_by_time};
use super::handshake::{Opening, Peers, Transcript};
use super::message::{Declined, Gather, Hello, REFUSED, decode_admission, fixed, kind};
use super::ticket::{Ticket, TicketId};
use super::words::{is_root_proof, words_transcript};
use super::{ANSWER_MAX, GENESIS_BYTES_MAX, KNOCKS_MAX, Mesh, PROOF_MAX, Role, TICKET_LIFE_MAX};
use crate::wire::{DOOR_FRAME_BYTES_MAX, DOOR_FRAME_BYTES_MAX_PROVED};

/// Knocks that may fail in a row; then one a second. More than any person does, and little work for us.
const ALLOWANCE_MAX: u32 = 32;
/// How often one device may come again with one ticket: a bad line, not a siege.
const REPEATS_MAX: u32 = 32;

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
