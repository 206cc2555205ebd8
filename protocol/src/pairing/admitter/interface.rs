//! What the door's machine is told and what it asks for.

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::key::AgreeKey;

use super::super::handshake::{Code, Peers};
use super::super::message::{Guide, Welcome};
use super::super::ticket::{TicketError, TicketId};
use super::super::{DeviceName, Role, SecretBytes};

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
    /// Time has come to [`super::Admitter::next_wakeup`].
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
    /// [`crate::pairing::TICKETS_MAX`] are in the book.
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
