//! What the newcomer's machine is told and what it asks for.

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::key::AgreeKey;

use super::super::handshake::{Code, Peers};
use super::super::message::Welcome;
use super::super::ticket::TicketError;
use super::super::{Role, SecretBytes};

/// What happens to the newcomer.
#[derive(Debug)]
pub enum Input {
    /// The stream that [`Effect::Dial`] asked for is open.
    Opened(Peers),
    /// The stream is gone, or could not be opened.
    Closed,
    /// A frame came, whole and without its length.
    Message(Bytes),
    /// The owner judged what [`Effect::Judge`] brought: the mesh is the one of the ticket, its admitter an admin that counts, and all is durable.
    Accepted,
    /// The owner judged otherwise.
    Rejected,
    /// Time has come to [`super::Joiner::next_wakeup`].
    Wake,
}

/// What the newcomer wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Open a stream to the door of that key at one of those addresses; answered by [`Input::Opened`] or [`Input::Closed`].
    Dial {
        /// The door's key.
        door: DeviceId,
        /// Its addresses, the best first.
        addresses: Vec<String>,
    },
    /// Keep these bytes (a secret) before the next effect, to go on with [`super::Joiner::resume`] after a crash.
    Remember(SecretBytes),
    /// Send a frame.
    Send(Bytes),
    /// Show the code.
    ShowCode(Code),
    /// Judge what came, make it durable, then say [`Input::Accepted`] or [`Input::Rejected`].
    Judge(Box<Arrival>),
    /// Close the stream once all is sent.
    Close,
    /// It is over: the device is in. What was remembered can go.
    Finished {
        /// Whether the last message was handed to the stream; the door may not have read it, and it does not matter.
        told: bool,
    },
    /// It is over: the device is not in.
    Fail(JoinError),
}

/// What the door sent to the newcomer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Who let it in: must be an admin that counts.
    pub admitter: DeviceId,
    /// That one's key for envelopes, as its `member` record must have it.
    pub admitter_agree: AgreeKey,
    /// The body of the genesis record; its hash is the ticket's mesh id.
    pub genesis: Vec<u8>,
    /// What the newcomer has become.
    pub role: Role,
    /// The rest.
    pub welcome: Welcome,
}

/// Why a newcomer is not in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No connection, or no word over it.
    #[error("the door does not answer at any address of the ticket")]
    Unreachable,
    /// Someone with another key answered.
    #[error("who answers is not the door of the ticket")]
    WrongDoor,
    /// The one answer to all that is wrong with a ticket.
    #[error(
        "the door refuses the ticket: it has expired, was used or taken back, or is not one of this door"
    )]
    Refused,
    /// A person said no.
    #[error("the other device did not confirm the code")]
    Declined,
    /// No person said anything.
    #[error("nobody confirmed the code on the other device in time, or the ticket was taken back")]
    TimedOut,
    /// The other device could not do its part.
    #[error("the other device could not admit this one")]
    Failed,
    /// The answer does not prove the ticket's secret, or opens another commitment.
    #[error("the door does not know the ticket's secret")]
    NotAuthentic,
    /// The door's mesh is another.
    #[error("the door belongs to another mesh than the ticket")]
    WrongMesh,
    /// Bytes that are no message.
    #[error("the door sends what it should not: {0}")]
    Malformed(&'static str),
    /// The owner's judgement.
    #[error("what the door sent does not prove that the one who let this device in may do so")]
    NotTrusted,
}

/// Why a join cannot be taken up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// Altered, or of another program.
    #[error("what was remembered of the join is damaged")]
    Damaged,
    /// The device has other keys now.
    #[error("what was remembered of the join belongs to other keys")]
    OtherKeys,
    /// The ticket in it cannot be read.
    #[error("what was remembered of the join holds no ticket")]
    Ticket(#[source] TicketError),
}
