//! Both machines against each other, and against those who should not get in.

mod by_ticket;
mod by_words;
mod hostile;
mod random;
mod vectors;

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::{DeviceKeys, Rng, SignKey};
use kith_object::time::{Span, Time};

use super::message::{REFUSED, kind};
use super::*;

const START: Time = Time(1_700_000_000_000);

fn rng(seed: u8) -> Rng {
    Rng::from_seed([seed; 32])
}

fn keys(seed: u8) -> DeviceKeys {
    DeviceKeys::generate(&mut rng(seed))
}

fn root() -> SignKey {
    SignKey::from_seed(&[77; 32])
}

fn door() -> DeviceId {
    SignKey::from_seed(&[78; 32]).id()
}

fn mesh() -> Mesh {
    let genesis = [&[1], root().id().0.as_slice(), &[5; 32], &[6; 32]].concat();
    Mesh {
        id: space_of(&genesis),
        genesis,
        root: root().id(),
    }
}

fn addresses() -> Vec<String> {
    vec![
        "/ip4/127.0.0.1/tcp/4001".into(),
        "/ip4/127.0.0.1/udp/4001/quic-v1".into(),
    ]
}

fn guide(entries: usize, len: usize) -> Guide {
    Guide {
        frontier: vec![EntryId([1; 32]), EntryId([2; 32])],
        addresses: vec![(DeviceId([3; 32]), addresses())],
        entries: (0..entries)
            .map(|place| Bytes::from(vec![place as u8; len]))
            .collect(),
    }
}

fn welcome(role: Role) -> Welcome {
    Welcome {
        epoch: EpochId([8; 32]),
        holder_part: SecretBytes::new(vec![9; 64]),
        member_part: (role == Role::Member).then(|| SecretBytes::new(vec![10; 64])),
        guide: guide(3, 500),
    }
}

/// Peers as a fresh connection to the door has them.
fn peers(newcomer: u8) -> Peers {
    Peers {
        door: door().to_peer_id_bytes().to_vec(),
        newcomer: DeviceId([newcomer; 32]).to_peer_id_bytes().to_vec(),
    }
}

fn admitter(now: Time, book: TicketBook, seed: u8) -> Admitter {
    Admitter::new(now, keys(1), mesh(), book, rng(seed))
}

fn name() -> DeviceName {
    DeviceName::new("old laptop").unwrap()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    ToDoor,
    ToNewcomer,
}

/// One door, one newcomer, and the line between them.
struct Pair {
    now: Time,
    door: Admitter,
    newcomer: Joiner,
    /// Fresh for each connection.
    knock: u64,
    connected: bool,
    /// All frames that were sent.
    frames: Vec<(Way, Bytes)>,
    /// Loses the frame with this first byte, and breaks the connection; once each.
    lose: Vec<u8>,
    /// A person says this at once; nothing: says nothing.
    person: Option<bool>,
    /// The owner writes the book at once.
    disk: bool,
    /// What the owner of the door answers.
    welcome: Option<Welcome>,
    accept: bool,
    book: SecretBytes,
    remembered: Option<SecretBytes>,
    door_codes: Vec<Code>,
    newcomer_codes: Vec<Code>,
    admitted: Vec<(DeviceId, Role)>,
    outcomes: Vec<Outcome>,
    arrivals: Vec<Arrival>,
    finished: Option<bool>,
    failed: Option<JoinError>,
}

impl Pair {
    fn new(role: Role) -> Self {
        let mut door = admitter(START, TicketBook::new(), 2);
        let ticket = door
            .issue(START, role, TICKET_LIFE, self::door(), addresses())
            .unwrap();
        Self::with(door, ticket)
    }

    fn with(door: Admitter, ticket: Ticket) -> Self {
        let role = ticket.role;
        Self {
            now: START,
            door,
            newcomer: Joiner::new(START, keys(3), name(), ticket, rng(4)),
            knock: 0,
            connected: false,
            frames: Vec::new(),
            lose: Vec::new(),
            person: Some(true),
            disk: true,
            welcome: Some(welcome(role)),
            accept: true,
            book: SecretBytes::new(Vec::new()),
            remembered: None,
            door_codes: Vec::new(),
            newcomer_codes: Vec::new(),
            admitted: Vec::new(),
            outcomes: Vec::new(),
            arrivals: Vec::new(),
            finished: None,
            failed: None,
        }
    }

    fn knock(&self) -> Knock {
        Knock(self.knock)
    }

    fn break_line(&mut self) {
        if self.connected {
            self.connected = false;
            let knock = self.knock();
            self.door_handle(AdmitterInput::Left { knock });
            self.newcomer_handle(JoinerInput::Closed);
        }
    }

    fn door_handle(&mut self, input: AdmitterInput) {
        self.door.handle(self.now, input);
        self.door.check_invariants();
    }

    fn newcomer_handle(&mut self, input: JoinerInput) {
        self.newcomer.handle(self.now, input);
        self.newcomer.check_invariants();
    }

    /// Whether the frame gets through.
    fn carry(&mut self, way: Way, message: &Bytes) -> bool {
        self.frames.push((way, message.clone()));
        let lost = self
            .lose
            .iter()
            .position(|kind| Some(kind) == message.first());
        if let Some(lost) = lost {
            self.lose.remove(lost);
            self.break_line();
            return false;
        }
        self.connected
    }

    /// Until nothing happens any more without time passing.
    fn settle(&mut self) {
        loop {
            if let Some(effect) = self.door.poll_effect() {
                self.perform_door(effect);
            } else if let Some(effect) = self.newcomer.poll_effect() {
                self.perform_newcomer(effect);
            } else {
                return;
            }
        }
    }

    /// Until both are done, or nothing happens for ever.
    fn run(&mut self) {
        self.settle();
        while self.finished.is_none() && self.failed.is_none() {
            let next = [self.door.next_wakeup(), self.newcomer.next_wakeup()];
            let Some(next) = next.into_iter().flatten().min() else {
                return;
            };
            self.wake(next);
        }
    }

    fn wake(&mut self, at: Time) {
        self.now = self.now.max(at);
        self.door_handle(AdmitterInput::Wake);
        self.newcomer_handle(JoinerInput::Wake);
        self.settle();
    }

    fn perform_door(&mut self, effect: AdmitterEffect) {
        match effect {
            AdmitterEffect::Send { knock, message } => {
                if knock == self.knock() && self.carry(Way::ToNewcomer, &message) {
                    self.newcomer_handle(JoinerInput::Message(message));
                }
            }
            AdmitterEffect::Close { knock } => {
                if knock == self.knock() && self.connected {
                    self.connected = false;
                    self.newcomer_handle(JoinerInput::Closed);
                }
            }
            AdmitterEffect::Save { save, book } => {
                self.book = book;
                if self.disk {
                    self.door_handle(AdmitterInput::Saved { save });
                }
            }
            AdmitterEffect::ShowCode { ticket, code, .. } => {
                self.door_codes.push(code);
                if let Some(accept) = self.person {
                    self.door_handle(AdmitterInput::Confirmed { ticket, accept });
                }
            }
            AdmitterEffect::Admit {
                ticket,
                device,
                role,
                ..
            } => {
                self.admitted.push((device, role));
                let input = match self.welcome.clone() {
                    Some(welcome) => AdmitterInput::Admitted {
                        ticket,
                        welcome: Box::new(welcome),
                    },
                    None => AdmitterInput::NotAdmitted { ticket },
                };
                self.door_handle(input);
            }
            AdmitterEffect::Ended { outcome, .. } => self.outcomes.push(outcome),
            AdmitterEffect::Guide { .. } | AdmitterEffect::Store { .. } => unreachable!(),
        }
    }

    fn perform_newcomer(&mut self, effect: JoinerEffect) {
        match effect {
            JoinerEffect::Dial {
                door: key,
                addresses: at,
            } => {
                assert_eq!((key, at), (door(), addresses()));
                self.knock += 1;
                self.connected = true;
                let knock = self.knock();
                let peers = peers(100 + self.knock as u8);
                self.door_handle(AdmitterInput::Knocked {
                    knock,
                    peers: peers.clone(),
                });
                self.newcomer_handle(JoinerInput::Opened(peers));
            }
            JoinerEffect::Remember(bytes) => self.remembered = Some(bytes),
            JoinerEffect::Send(message) => {
                if self.carry(Way::ToDoor, &message) {
                    let knock = self.knock();
                    self.door_handle(AdmitterInput::Message { knock, message });
                }
            }
            JoinerEffect::ShowCode(code) => self.newcomer_codes.push(code),
            JoinerEffect::Judge(arrival) => {
                self.arrivals.push(*arrival);
                self.newcomer_handle(if self.accept {
                    JoinerInput::Accepted
                } else {
                    JoinerInput::Rejected
                });
            }
            JoinerEffect::Close => {
                if self.connected {
                    self.connected = false;
                    let knock = self.knock();
                    self.door_handle(AdmitterInput::Left { knock });
                }
            }
            JoinerEffect::Finished { told } => self.finished = Some(told),
            JoinerEffect::Fail(error) => self.failed = Some(error),
        }
    }

    /// First bytes of all frames.
    fn kinds(&self) -> Vec<u8> {
        self.frames.iter().map(|(_, frame)| frame[0]).collect()
    }
}

/// A door that is spoken to by hand.
struct Bare {
    now: Time,
    door: Admitter,
}

impl Bare {
    fn new() -> (Self, Ticket) {
        let mut door = admitter(START, TicketBook::new(), 2);
        let ticket = door
            .issue(START, Role::Member, TICKET_LIFE, self::door(), addresses())
            .unwrap();
        let mut bare = Self { now: START, door };
        bare.drain();
        (bare, ticket)
    }

    fn handle(&mut self, input: AdmitterInput) -> Vec<AdmitterEffect> {
        self.door.handle(self.now, input);
        self.door.check_invariants();
        self.drain()
    }

    fn drain(&mut self) -> Vec<AdmitterEffect> {
        std::iter::from_fn(|| self.door.poll_effect()).collect()
    }

    fn knock(&mut self, knock: u64, peers: Peers) -> Vec<AdmitterEffect> {
        self.handle(AdmitterInput::Knocked {
            knock: Knock(knock),
            peers,
        })
    }

    fn say(&mut self, knock: u64, message: &[u8]) -> Vec<AdmitterEffect> {
        self.handle(AdmitterInput::Message {
            knock: Knock(knock),
            message: Bytes::copy_from_slice(message),
        })
    }
}

/// The frames among the effects.
fn sent(effects: &[AdmitterEffect]) -> Vec<Bytes> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            AdmitterEffect::Send { message, .. } => Some(message.clone()),
            _ => None,
        })
        .collect()
}

/// Whether this is the one answer to strangers and nothing else.
fn is_refusal(effects: &[AdmitterEffect]) -> bool {
    matches!(
        effects,
        [AdmitterEffect::Send { message, knock }, AdmitterEffect::Close { knock: closed }]
            if *message == REFUSED && knock == closed
    )
}

#[test]
fn names_that_fool_a_reader_are_none() {
    for fine in ["x", "Großvaters Kiste", "ノート", &"a".repeat(64)] {
        assert_eq!(DeviceName::new(fine).unwrap().as_str(), fine);
    }
    for odd in [
        "",
        "a\nb",
        "\u{1b}[2J",
        "a\u{202e}b",
        "a\u{2066}b",
        "a\u{200f}",
        "a\u{2028}b",
        &"a".repeat(65),
    ] {
        assert_eq!(DeviceName::new(odd), Err(NameError), "{odd:?}");
    }
}

#[test]
fn secrets_do_not_print() {
    let welcome = welcome(Role::Member);
    let shown = format!("{welcome:?}");
    assert!(!shown.contains("9, 9, 9") && !shown.contains("10, 10"));
    let pair = Pair::new(Role::Member);
    let shown = format!("{:?}", pair.door.book());
    assert!(shown.contains("Secret(..)"));
}

/// Counts of first bytes, for messages.
fn count(kinds: &[u8]) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for kind in kinds {
        *counts.entry(*kind).or_default() += 1;
    }
    counts
}

/// The order of messages when nothing goes wrong.
const SMOOTH: [u8; 6] = [
    kind::TICKET,
    kind::COMMIT,
    kind::NEWCOMER_PROOF,
    kind::ADMITTER_PROOF,
    kind::WELCOME,
    kind::RECEIVED,
];

/// A span that is over.
fn past(span: Span) -> Span {
    Span::from_ms(span.as_ms() + 1)
}
