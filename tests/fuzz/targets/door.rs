//! The door: both ways in, with one frame of an honest conversation replaced, and what a newcomer keeps of one.

use std::collections::VecDeque;

use bytes::Bytes;
use kith_object::id::{DeviceId, EntryId, EpochId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, SignKey, derive};
use kith_object::time::Time;
use kith_protocol::pairing::{
    Admitter, AdmitterEffect, AdmitterInput, DeviceName, Guide, Joiner, JoinerEffect, JoinerInput,
    Knock, Mesh, Peers, Role, SecretBytes, TICKET_LIFE, TicketBook, Welcome, WordsEffect,
    WordsInput, WordsJoiner,
};

use super::{Target, proved};

pub(super) const TARGETS: &[Target] = &[
    // Both machines, their frames and their books; each handshake signs and agrees some times.
    Target::new("door-ticket", by_ticket)
        .holds(64, 1 << 20)
        .costs(30),
    Target::new("door-words", by_words)
        .holds(64, 1 << 20)
        .costs(20),
    Target::new("resume", resume).costs(8),
];

const NOW: Time = Time(1_700_000_000_000);
const KNOCK: Knock = Knock(1);

fn keys(seed: u8) -> DeviceKeys {
    DeviceKeys::generate(&mut Rng::from_seed([seed; 32]))
}

fn root() -> SignKey {
    SignKey::from_seed(&[77; 32])
}

fn door_key() -> DeviceId {
    SignKey::from_seed(&[78; 32]).id()
}

fn mesh() -> Mesh {
    let genesis = [&[1], root().id().0.as_slice(), &[5; 32], &[6; 32]].concat();
    Mesh {
        id: SpaceId(derive("kith genesis 1", &genesis)),
        genesis,
        root: root().id(),
    }
}

fn peers() -> Peers {
    Peers {
        door: door_key().to_peer_id_bytes().to_vec(),
        newcomer: DeviceId([101; 32]).to_peer_id_bytes().to_vec(),
    }
}

fn guide() -> Guide {
    Guide {
        frontier: vec![EntryId([1; 32]), EntryId([2; 32])],
        addresses: vec![(DeviceId([3; 32]), vec!["/ip4/127.0.0.1/tcp/4001".into()])],
        entries: vec![Bytes::from_static(b"entry"), Bytes::from_static(b"another")],
    }
}

fn welcome() -> Welcome {
    Welcome {
        epoch: EpochId([8; 32]),
        holder_part: SecretBytes::new(vec![9; 64]),
        member_part: Some(SecretBytes::new(vec![10; 64])),
        guide: guide(),
    }
}

/// The newcomer's machine.
enum Newcomer {
    Ticket(Box<Joiner>),
    Words(Box<WordsJoiner>),
}

/// Both ends, and the frames between them.
struct Meeting {
    door: Admitter,
    newcomer: Newcomer,
    /// Which frame to replace, and by what.
    replace: Option<(usize, Bytes)>,
    /// All frames as they were sent, and whether to the door.
    frames: Vec<(bool, Bytes)>,
    /// What is under way; nothing stands for the door's end of the stream.
    line: VecDeque<(bool, Option<Bytes>)>,
    remembered: Vec<SecretBytes>,
    finished: bool,
    effects: usize,
}

impl Meeting {
    fn new(words: bool, replace: Option<(usize, Bytes)>) -> Self {
        let seed = |number| Rng::from_seed([number; 32]);
        let mut door = Admitter::new(NOW, keys(1), mesh(), TicketBook::new(), seed(2));
        let addresses = vec!["/ip4/127.0.0.1/tcp/4001".to_owned()];
        let ticket = door
            .issue(NOW, Role::Member, TICKET_LIFE, door_key(), addresses)
            .expect("the book has room");
        let newcomer = if words {
            Newcomer::Words(Box::new(WordsJoiner::new(NOW, root(), None, seed(8))))
        } else {
            let name = DeviceName::new("old laptop").expect("a name");
            Newcomer::Ticket(Box::new(Joiner::new(NOW, keys(3), name, ticket, seed(4))))
        };
        let mut meeting = Self {
            door,
            newcomer,
            replace,
            frames: Vec::new(),
            line: VecDeque::new(),
            remembered: Vec::new(),
            finished: false,
            effects: 0,
        };
        if words {
            meeting.connect();
        }
        meeting.run();
        meeting
    }

    fn connect(&mut self) {
        let peers = peers();
        self.say_door(AdmitterInput::Knocked {
            knock: KNOCK,
            peers: peers.clone(),
        });
        match &mut self.newcomer {
            Newcomer::Ticket(joiner) => joiner.handle(NOW, JoinerInput::Opened(peers)),
            Newcomer::Words(joiner) => joiner.handle(NOW, WordsInput::Opened(peers)),
        }
    }

    fn say_door(&mut self, input: AdmitterInput) {
        self.door.handle(NOW, input);
        self.door.check_invariants();
    }

    fn say_ticket(&mut self, input: JoinerInput) {
        if let Newcomer::Ticket(joiner) = &mut self.newcomer {
            joiner.handle(NOW, input);
            joiner.check_invariants();
        }
    }

    fn say_words(&mut self, input: WordsInput) {
        if let Newcomer::Words(joiner) = &mut self.newcomer {
            joiner.handle(NOW, input);
            joiner.check_invariants();
        }
    }

    fn send(&mut self, to_door: bool, frame: Bytes) {
        let frame = match &self.replace {
            Some((number, other)) if *number == self.frames.len() => other.clone(),
            _ => frame,
        };
        self.frames.push((to_door, frame.clone()));
        self.line.push_back((to_door, Some(frame)));
    }

    /// Until nothing happens without time passing.
    fn run(&mut self) {
        loop {
            assert!(self.effects < 100, "a conversation ends");
            self.effects += 1;
            if let Some(effect) = self.door.poll_effect() {
                self.perform_door(effect);
                continue;
            }
            if self.perform_newcomer() {
                continue;
            }
            match self.line.pop_front() {
                None => return,
                Some((_, None)) => {
                    self.say_ticket(JoinerInput::Closed);
                    self.say_words(WordsInput::Closed);
                }
                Some((true, Some(message))) => {
                    let knock = KNOCK;
                    self.say_door(AdmitterInput::Message { knock, message });
                }
                Some((false, Some(message))) => {
                    self.say_ticket(JoinerInput::Message(message.clone()));
                    self.say_words(WordsInput::Message(message));
                }
            }
        }
    }

    fn perform_door(&mut self, effect: AdmitterEffect) {
        match effect {
            AdmitterEffect::Send { message, .. } => self.send(false, message),
            AdmitterEffect::Close { .. } => self.line.push_back((false, None)),
            AdmitterEffect::Save { save, .. } => self.say_door(AdmitterInput::Saved { save }),
            AdmitterEffect::ShowCode { ticket, .. } => self.say_door(AdmitterInput::Confirmed {
                ticket,
                accept: true,
            }),
            AdmitterEffect::Admit { ticket, device, .. } => {
                assert_eq!(device, keys(3).id(), "who proved the ticket gets in");
                self.say_door(AdmitterInput::Admitted {
                    ticket,
                    welcome: Box::new(welcome()),
                });
            }
            AdmitterEffect::Guide { knock } => self.say_door(AdmitterInput::Guide {
                knock,
                guide: Box::new(guide()),
            }),
            AdmitterEffect::Store { knock, entries } => {
                assert!(!entries.is_empty(), "an admission has entries");
                self.say_door(AdmitterInput::Stored { knock });
            }
            AdmitterEffect::Ended { .. } => {}
        }
        let book = self.door.book().encode();
        let again = TicketBook::decode(book.expose()).expect("a book of ours");
        assert!(again == *self.door.book());
    }

    /// Whether there was anything to do.
    fn perform_newcomer(&mut self) -> bool {
        match &mut self.newcomer {
            Newcomer::Ticket(joiner) => match joiner.poll_effect() {
                None => return false,
                Some(JoinerEffect::Dial { .. }) if self.frames.is_empty() => self.connect(),
                Some(JoinerEffect::Dial { .. }) => self.say_ticket(JoinerInput::Closed),
                Some(JoinerEffect::Remember(bytes)) => self.remembered.push(bytes),
                Some(JoinerEffect::Send(frame)) => self.send(true, frame),
                Some(JoinerEffect::Judge(_)) => self.say_ticket(JoinerInput::Accepted),
                Some(JoinerEffect::Finished { .. }) => self.finished = true,
                Some(JoinerEffect::Close) => self.say_door(AdmitterInput::Left { knock: KNOCK }),
                Some(JoinerEffect::ShowCode(_) | JoinerEffect::Fail(_)) => {}
            },
            Newcomer::Words(joiner) => match joiner.poll_effect() {
                None => return false,
                Some(WordsEffect::Send(frame)) => self.send(true, frame),
                Some(WordsEffect::Judge(guide)) => {
                    assert!(!guide.entries.is_empty(), "a guide has entries");
                    let entries = vec![Bytes::from_static(b"admission")];
                    self.say_words(WordsInput::Admission(entries));
                }
                Some(WordsEffect::Close) => self.say_door(AdmitterInput::Left { knock: KNOCK }),
                Some(WordsEffect::Finished) => self.finished = true,
                Some(WordsEffect::Fail(_)) => {}
            },
        }
        true
    }
}

/// The inputs that replace a frame of an honest conversation by itself; and what a newcomer keeps of one by ticket.
pub(crate) fn frames(words: bool) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let meeting = Meeting::new(words, None);
    let inputs = (0u8..).zip(&meeting.frames);
    let inputs = inputs.map(|(number, (_, frame))| [&[number][..], frame].concat());
    let kept = meeting.remembered.iter();
    let bodies = kept.filter_map(|kept| Some(kept.expose().split_last_chunk::<32>()?.0.to_vec()));
    (inputs.collect(), bodies.collect())
}

fn meet(words: bool, bytes: &[u8]) -> bool {
    let Some((number, frame)) = bytes.split_first() else {
        return false;
    };
    let replace = (usize::from(*number), Bytes::copy_from_slice(frame));
    Meeting::new(words, Some(replace)).finished
}

/// Which frame to replace, and by what.
fn by_ticket(bytes: &[u8]) -> bool {
    meet(false, bytes)
}

/// As [`by_ticket`], on the way in by words.
fn by_words(bytes: &[u8]) -> bool {
    meet(true, bytes)
}

/// What a newcomer keeps, its proof put on.
fn resume(body: &[u8]) -> bool {
    let bytes = proved::<32>("kith pairing resume 1", body);
    let rng = Rng::from_seed([5; 32]);
    let Ok(mut joiner) = Joiner::resume(NOW, keys(3), &bytes, rng) else {
        return false;
    };
    joiner.check_invariants();
    assert!(joiner.is_resumed() && !joiner.is_over());
    assert!(matches!(
        joiner.poll_effect(),
        Some(JoinerEffect::Dial { .. })
    ));
    joiner.handle(NOW, JoinerInput::Opened(peers()));
    joiner.check_invariants();
    std::iter::from_fn(|| joiner.poll_effect()).count() > 0
}
