//! The ticket: what the QR code holds, and the same as text.

use std::fmt;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use kith_object::id::{DeviceId, SpaceId};
use kith_object::key::{Rng, derive};
use kith_object::time::Time;
use zeroize::Zeroizing;

use super::Role;
use crate::wire::{Malformed, Reader, Writer};

/// How ticket text begins; QR codes hold it in capitals.
const PREFIX: &str = "kith";
/// The form of the text and of the bytes in it.
const FORM: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// Most addresses of the door in a ticket: what a screen's QR code holds with ease.
const ADDRESSES_MAX: usize = 8;
/// Longest address.
const ADDRESS_BYTES_MAX: usize = 128;
/// More than the largest ticket has.
const BYTES_MAX: usize = 128 + ADDRESSES_MAX * (1 + ADDRESS_BYTES_MAX);
/// Longest text looked at: the largest ticket, spread over lines.
const TEXT_BYTES_MAX: usize = 4096;

/// The hash of a ticket's secret: names the ticket without giving it away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub [u8; 32]);

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TicketId({})",
            HEXLOWER.encode(&self.0).get(..8).unwrap_or_default()
        )
    }
}

impl std::str::FromStr for TicketId {
    type Err = kith_object::id::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| kith_object::id::NameError)?;
        Ok(Self(
            bytes.try_into().map_err(|_| kith_object::id::NameError)?,
        ))
    }
}

/// The right to join one mesh once: where its door is, and a secret.
///
/// Spec: `protocol/spec/pairing.md`, "Ticket".
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The mesh to join.
    pub mesh: SpaceId,
    /// Known to the door and to whoever saw the ticket.
    pub secret: Zeroizing<[u8; 16]>,
    /// The door's key: who else answers is not the door.
    pub door: DeviceId,
    /// What the holder becomes.
    pub role: Role,
    /// When the door forgets the ticket, by the door's clock.
    pub expiry: Time,
    /// Where the door listens, as multiaddr texts, the best first; 1 to 8.
    pub addresses: Vec<String>,
}

/// Why a text is not a ticket that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Does not begin as a ticket does.
    #[error("this is not a ticket: one begins with {PREFIX}{FORM}")]
    NotATicket,
    /// Made by a later program.
    #[error("the ticket is of a newer form; update this program")]
    Newer,
    /// The checksum does not fit, or a character no ticket holds.
    #[error("the ticket is mistyped or cut short: its checksum does not fit")]
    Mistyped,
    /// The checksum fits, the content is not what a ticket holds.
    #[error("the ticket is malformed")]
    Malformed,
    /// Its time is over.
    #[error("the ticket has expired")]
    Expired,
}

impl From<Malformed> for TicketError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Ticket {
    /// A ticket with a fresh secret.
    ///
    /// # Errors
    /// [`TicketError::Malformed`] if the addresses are none, too many, too long, twice the same, or not printable ASCII that begins with `/`.
    pub fn generate(
        mesh: SpaceId,
        door: DeviceId,
        role: Role,
        expiry: Time,
        addresses: Vec<String>,
        rng: &mut Rng,
    ) -> Result<Self, TicketError> {
        check_addresses(&addresses)?;
        Ok(Self {
            mesh,
            secret: Zeroizing::new(rng.bytes()),
            door,
            role,
            expiry,
            addresses,
        })
    }

    /// The name of the ticket.
    pub fn id(&self) -> TicketId {
        TicketId(derive("kith ticket id 1", self.secret.as_slice()))
    }

    /// Whether its time is over by this clock. The door's clock decides; this one serves for a better message.
    pub fn is_expired(&self, now: Time) -> bool {
        self.expiry <= now
    }

    /// The bytes of the ticket, without checksum.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::with_capacity(BYTES_MAX);
        writer
            .u8(FORM)
            .raw(&self.mesh.0)
            .raw(self.secret.as_slice())
            .raw(&self.door.0)
            .u8(self.role.byte())
            .u64(self.expiry.0)
            .u8(u8::try_from(self.addresses.len()).expect("at most 8 addresses"));
        for address in &self.addresses {
            writer.bytes_u8(address.as_bytes());
        }
        Zeroizing::new(writer.finish())
    }

    /// Reads the bytes of a ticket.
    ///
    /// # Errors
    /// [`TicketError::Newer`] or [`TicketError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORM {
            return Err(TicketError::Newer);
        }
        let mesh = SpaceId(reader.array()?);
        let secret = Zeroizing::new(reader.array()?);
        let door = DeviceId(reader.array()?);
        let role = Role::from_byte(reader.u8()?).ok_or(TicketError::Malformed)?;
        let expiry = Time(reader.u64()?);
        let count = reader.u8()?;
        let mut addresses = Vec::new();
        for _ in 0..count {
            let address = std::str::from_utf8(reader.bytes_u8(ADDRESS_BYTES_MAX)?)
                .map_err(|_| TicketError::Malformed)?;
            addresses.push(address.to_owned());
        }
        reader.finish()?;
        check_addresses(&addresses)?;
        Ok(Self {
            mesh,
            secret,
            door,
            role,
            expiry,
            addresses,
        })
    }

    /// The ticket as text, in small letters; in capitals it reads the same.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = self.encode();
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        // Room for all at once, so that no half of the secret stays behind in memory that was outgrown.
        let len = PREFIX.len() + 1 + BASE32_NOPAD.encode_len(bytes.len());
        let mut text = Zeroizing::new(String::with_capacity(len));
        text.push_str(PREFIX);
        text.push(char::from(b'0' + FORM));
        BASE32_NOPAD.encode_append(&bytes, &mut text);
        text.make_ascii_lowercase();
        text
    }

    /// Reads a ticket as typed or pasted: capitals and small letters alike, white space anywhere.
    ///
    /// # Errors
    /// [`TicketError`] says whether it is no ticket, of a newer form, mistyped or malformed; never [`TicketError::Expired`], since only the door's
    /// clock knows.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TicketError::NotATicket);
        }
        let mut typed = Zeroizing::new(String::with_capacity(text.len()));
        typed.extend(text.chars().filter(|letter| !letter.is_whitespace()));
        typed.make_ascii_uppercase();
        let rest = typed
            .strip_prefix(PREFIX.to_ascii_uppercase().as_str())
            .ok_or(TicketError::NotATicket)?;
        let mut letters = rest.chars();
        match letters.next().and_then(|form| form.to_digit(10)) {
            Some(form) if form == u32::from(FORM) => {}
            Some(form) if form > u32::from(FORM) => return Err(TicketError::Newer),
            _ => return Err(TicketError::NotATicket),
        }
        let bytes = BASE32_NOPAD
            .decode(letters.as_str().as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| TicketError::Mistyped)?;
        let (body, found) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(TicketError::Mistyped)?;
        if checksum(body) != *found {
            return Err(TicketError::Mistyped);
        }
        Self::decode(body)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?}, {})", self.id(), self.role)
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = derive("kith ticket checksum 1", bytes);
    [a, b, c, d]
}

fn check_addresses(addresses: &[String]) -> Result<(), TicketError> {
    let fine = |address: &String| {
        address.starts_with('/')
            && address.len() <= ADDRESS_BYTES_MAX
            && address.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let unique: std::collections::BTreeSet<&String> = addresses.iter().collect();
    let all = (1..=ADDRESSES_MAX).contains(&addresses.len())
        && unique.len() == addresses.len()
        && addresses.iter().all(fine);
    if all {
        Ok(())
    } else {
        Err(TicketError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    pub(crate) fn ticket() -> Ticket {
        Ticket::generate(
            SpaceId([1; 32]),
            DeviceId([2; 32]),
            Role::Member,
            Time(1_700_000_000_000),
            vec![
                "/ip4/192.168.1.20/tcp/40123".into(),
                "/ip4/192.168.1.20/udp/40123/quic-v1".into(),
            ],
            &mut Rng::from_seed([3; 32]),
        )
        .unwrap()
    }

    #[test]
    fn ticket_reads_in_capitals_and_over_lines() {
        let ticket = ticket();
        let text = ticket.to_text();
        assert!(text.starts_with("kith1"));
        assert_eq!(Ticket::parse(&text), Ok(ticket.clone()));
        let (head, tail) = text.split_at(50);
        let spread = format!("  {}\r\n\t{tail} \n", head.to_uppercase());
        assert_eq!(Ticket::parse(&spread), Ok(ticket));
    }

    #[test]
    fn each_wrong_letter_and_each_cut_is_noticed() {
        let ticket = ticket();
        let text = ticket.to_text();
        for place in 5..text.len() {
            let mut typed = text.to_string().into_bytes();
            typed[place] = if typed[place] == b'a' { b'b' } else { b'a' };
            let typed = String::from_utf8(typed).unwrap();
            assert_eq!(
                Ticket::parse(&typed),
                Err(TicketError::Mistyped),
                "letter {place}"
            );
            assert!(Ticket::parse(&text[..place]).is_err(), "cut at {place}");
        }
        assert_eq!(
            Ticket::parse(&format!("{}1", *text)),
            Err(TicketError::Mistyped)
        );
    }

    #[test]
    fn what_is_no_ticket_is_told_from_a_mistyped_one() {
        assert_eq!(Ticket::parse("bafkr4ih"), Err(TicketError::NotATicket));
        assert_eq!(Ticket::parse(""), Err(TicketError::NotATicket));
        assert_eq!(Ticket::parse("kith"), Err(TicketError::NotATicket));
        assert_eq!(Ticket::parse("kith1"), Err(TicketError::Mistyped));
        assert_eq!(Ticket::parse("kith2abc"), Err(TicketError::Newer));
        assert_eq!(
            Ticket::parse(&"k".repeat(5000)),
            Err(TicketError::NotATicket)
        );
    }

    #[test]
    fn odd_addresses_make_no_ticket() {
        let with = |addresses: Vec<String>| {
            Ticket::generate(
                SpaceId([1; 32]),
                DeviceId([2; 32]),
                Role::Blind,
                Time(1),
                addresses,
                &mut Rng::from_seed([3; 32]),
            )
        };
        assert!(with(vec!["/dns/a/tcp/1".into()]).is_ok());
        for bad in [
            vec![],
            vec!["/a".to_owned(); 2],
            vec![String::new()],
            vec!["no slash".into()],
            vec!["/a\n".into()],
            vec!["/é".into()],
            vec![format!("/{}", "a".repeat(128))],
            (0..9).map(|n| format!("/{n}")).collect(),
        ] {
            assert_eq!(with(bad).unwrap_err(), TicketError::Malformed);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let ticket = ticket();
        let shown = format!("{ticket:?}");
        assert!(!shown.contains(&HEXLOWER.encode(ticket.secret.as_slice())));
        assert!(shown.len() < 60);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_and_only_canonical_ones_pass(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(ticket) = Ticket::decode(&bytes) {
                prop_assert_eq!(ticket.encode().to_vec(), bytes.clone());
            }
            let _ = Ticket::parse(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn mutated_ticket_is_another_or_none(at in 0_usize..400, to in any::<u8>()) {
            let bytes = ticket().encode().to_vec();
            let mut changed = bytes.clone();
            let at = at % changed.len();
            changed[at] = to;
            if let Ok(other) = Ticket::decode(&changed) {
                prop_assert_eq!(other.encode().to_vec(), changed);
            }
        }

        #[test]
        fn any_text_never_panics(text in "\\PC{0,80}") {
            let _ = Ticket::parse(&text);
            let _ = Ticket::parse(&format!("kith1{text}"));
        }
    }
}
