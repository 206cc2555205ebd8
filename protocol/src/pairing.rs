//! Lets a new device in, by a ticket or by the 24 words.
//!
//! Both ways run over one stream to the door, a listener whose key is unlinked to the device's. On the side of the mesh stands [`Admitter`], which serves
//! every stream of the door at once; the newcomer runs a [`Joiner`] (ticket) or a [`WordsJoiner`] (words). They own no socket, disk or clock: bytes and
//! the outcomes of effects come in, bytes and wishes go out.
//!
//! Spec: `protocol/spec/pairing.md`, "Two ways in".

use std::fmt;

use kith_object::id::{DeviceId, SpaceId};
use kith_object::time::Span;
use zeroize::Zeroizing;

mod admitter;
mod book;
mod handshake;
mod joiner;
mod message;
mod ticket;
mod words;

pub use admitter::{
    Admitter, Effect as AdmitterEffect, Input as AdmitterInput, IssueError, Knock, Outcome, Stats,
};
pub use book::{BookError, TicketBook};
pub use handshake::{Code, PEER_BYTES_MAX, Peers};
pub use joiner::{
    Arrival, Effect as JoinerEffect, Input as JoinerInput, JoinError, Joiner, ResumeError,
};
pub use message::{Guide, GuideError, Welcome};
pub use ticket::{Ticket, TicketError, TicketId};
pub use words::{Effect as WordsEffect, Input as WordsInput, WordsJoinError, WordsJoiner};

/// The one version of both handshakes.
pub const VERSION: u8 = 1;
/// Streams at the door at once. Pairing needs one; the rest is for strangers, who get no more of us than this.
pub const KNOCKS_MAX: usize = 8;
/// Tickets in the book at once: a roomful of devices paired in one go. The book is rewritten whole, at about 500 bytes each.
pub const TICKETS_MAX: usize = 64;
/// How long a stranger may take to prove something, in all; three short messages even over a bad line.
pub const PROOF_MAX: Span = Span::from_secs(10);
/// How long a ticket is good for unless asked otherwise: time to walk to the other device.
pub const TICKET_LIFE: Span = Span::from_secs(600);
/// Longest life a ticket may get.
pub const TICKET_LIFE_MAX: Span = Span::from_secs(24 * 3600);
/// How long both screens show the code before the ticket is burnt.
pub const CONFIRM_MAX: Span = Span::from_secs(300);
/// How long a device that was let in may come again for what it did not receive.
pub const REPEAT_MAX: Span = Span::from_secs(600);
/// How long the other side may take to judge what it got, or to make it.
pub const ANSWER_MAX: Span = Span::from_secs(60);
/// Longest name of a device, the limit of its `member` record.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest genesis record.
pub const GENESIS_BYTES_MAX: usize = 1024;
/// Most bytes of `access` a newcomer is sent: twenty years of some hundred devices come to less than half.
pub const GUIDE_BYTES_MAX: usize = 64 << 20;
/// Most bytes of entries a newcomer by words hands back: its own admission and an epoch.
pub const ADMISSION_BYTES_MAX: usize = 4 << 20;

/// What a ticket makes of its holder. Only the root makes admins, so no ticket does.
///
/// Spec: `protocol/spec/pairing.md`, "Ticket".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Keeps packs without the keys of what is in them.
    Blind,
    /// A device with keys.
    Member,
}

impl Role {
    /// The byte in tickets, the same as in `member` records.
    pub fn byte(self) -> u8 {
        match self {
            Self::Blind => 1,
            Self::Member => 2,
        }
    }

    /// The role of that byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Blind),
            2 => Some(Self::Member),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blind => "blind",
            Self::Member => "member",
        })
    }
}

/// What a device calls itself: 1 to 64 bytes of UTF-8 that cannot fool a terminal or a reader.
///
/// Spec: `protocol/spec/pairing.md`, "Names".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeviceName(String);

/// The text cannot be the name of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device's name has 1 to {NAME_BYTES_MAX} bytes and no control or direction characters")]
pub struct NameError;

impl DeviceName {
    /// Takes the text as a name.
    ///
    /// # Errors
    /// [`NameError`] if it is empty, too long, or holds control characters or such that turn the direction of text.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let printable = !text
            .chars()
            .any(|letter| letter.is_control() || turns_text(letter));
        if printable && (1..=NAME_BYTES_MAX).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError)
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::new(std::str::from_utf8(bytes).ok()?).ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Marks and line ends that let one name look like another. The rule of `member` records.
fn turns_text(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What the door needs to know of its mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The space id of `home`.
    pub id: SpaceId,
    /// The body of the genesis record, whose hash is the id.
    pub genesis: Vec<u8>,
    /// The root key that counts now.
    pub root: DeviceId,
}

/// The space that a genesis record founds.
fn space_of(genesis: &[u8]) -> SpaceId {
    SpaceId(kith_object::key::derive("kith genesis 1", genesis))
}

/// Bytes that are zeroed when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes as secret.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests;
