//! Those who should not get in.

use super::super::handshake::{Opening, ProofKey, Side, Transcript};
use super::super::message::{Hello, again_body, fixed};
use super::*;

/// A newcomer by hand: every field can be wrong.
struct Forger {
    keys: DeviceKeys,
    proof_key: ProofKey,
    opening: Opening,
    hello: Vec<u8>,
    transcript: Transcript,
}

impl Forger {
    /// Says message 1 and takes message 2.
    fn knock(bare: &mut Bare, knock: u64, ticket: &Ticket, keys: DeviceKeys) -> Self {
        let opening = Opening::of(&keys, [knock as u8; 32], b"forger");
        Self::knock_with(bare, knock, ticket, keys, opening)
    }

    fn knock_with(
        bare: &mut Bare,
        knock: u64,
        ticket: &Ticket,
        keys: DeviceKeys,
        opening: Opening,
    ) -> Self {
        let peers = peers(knock as u8);
        bare.knock(knock, peers.clone());
        let hello = Hello::Ticket {
            ticket: ticket.id(),
            commitment: opening.commitment(Side::Newcomer),
        }
        .encode();
        let replies = sent(&bare.say(knock, &hello));
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0][0], kind::COMMIT);
        let transcript = Transcript::start(&peers)
            .absorb(&[&hello])
            .absorb(&[&replies[0]]);
        Self {
            proof_key: ProofKey::of(ticket),
            keys,
            opening,
            hello,
            transcript,
        }
    }

    fn proof(&self) -> Vec<u8> {
        let mut body = vec![kind::NEWCOMER_PROOF];
        body.extend_from_slice(&self.opening.encode());
        self.proof_key
            .prove(Side::Newcomer, &self.transcript, &self.keys, body)
    }
}

/// Whether the effects say that the ticket is reserved: the book is to be saved, and nothing else.
fn is_reserved(effects: &[AdmitterEffect]) -> bool {
    matches!(effects, [AdmitterEffect::Save { .. }])
}

#[test]
fn forger_that_forges_nothing_gets_as_far_as_anyone() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
    assert!(is_reserved(&bare.say(1, &forger.proof())));
}

#[test]
fn wrong_secret_mesh_or_role_does_not_prove() {
    let (_, ticket) = Bare::new();
    let mut other_secret = ticket.clone();
    other_secret.secret[0] ^= 1;
    let mut other_mesh = ticket.clone();
    other_mesh.mesh = SpaceId([9; 32]);
    let mut other_role = ticket.clone();
    other_role.role = Role::Blind;
    for wrong in [other_secret, other_mesh, other_role] {
        let (mut bare, ticket) = Bare::new();
        let mut forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
        forger.proof_key = ProofKey::of(&wrong);
        assert!(is_refusal(&bare.say(1, &forger.proof())));
        assert!(
            bare.door.book().is_open(&ticket.id()),
            "a failure costs the ticket nothing"
        );
    }
}

#[test]
fn unknown_used_expired_reserved_and_burnt_tickets_get_one_answer() {
    let hello = |ticket: &Ticket| {
        Hello::Ticket {
            ticket: ticket.id(),
            commitment: [0; 32],
        }
        .encode()
    };
    let ask = |bare: &mut Bare, ticket: &Ticket| {
        bare.knock(40, peers(40));
        bare.say(40, &hello(ticket))
    };
    // Unknown.
    let (mut bare, mut ticket) = Bare::new();
    ticket.secret[3] ^= 1;
    assert!(is_refusal(&ask(&mut bare, &ticket)));
    // Expired.
    let (mut bare, ticket) = Bare::new();
    bare.now = START + TICKET_LIFE;
    bare.handle(AdmitterInput::Wake);
    assert!(is_refusal(&ask(&mut bare, &ticket)));
    // Taken back.
    let (mut bare, ticket) = Bare::new();
    let id = ticket.id();
    bare.handle(AdmitterInput::Withdraw { ticket: id });
    assert!(is_refusal(&ask(&mut bare, &ticket)));
    // Reserved, then used, then declined.
    for person in [None, Some(true), Some(false)] {
        let mut pair = Pair::new(Role::Member);
        pair.person = person;
        pair.settle();
        let ticket = pair.newcomer.ticket().clone();
        let (now, door) = (pair.now, pair.door);
        assert!(is_refusal(&ask(&mut Bare { now, door }, &ticket)));
    }
    // Nonsense and a future version.
    for nonsense in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[kind::TICKET, 2],
        &[0; 66],
    ] {
        let (mut bare, _) = Bare::new();
        bare.knock(40, peers(40));
        assert!(is_refusal(&bare.say(40, nonsense)));
    }
}

#[test]
fn expired_ticket_is_refused_without_a_wake() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
    bare.now = START + TICKET_LIFE;
    let effects = bare.say(1, &forger.proof());
    assert!(!sent(&effects).iter().any(|frame| *frame != REFUSED));
    assert!(bare.door.book().is_empty());
}

#[test]
fn ticket_reserved_for_one_is_closed_to_all_others() {
    let (mut bare, ticket) = Bare::new();
    let first = Forger::knock(&mut bare, 1, &ticket, keys(8));
    let second = Forger::knock(&mut bare, 2, &ticket, keys(9));
    let same_again = Forger::knock(&mut bare, 3, &ticket, keys(8));
    assert!(is_reserved(&bare.say(1, &first.proof())));
    assert!(is_refusal(&bare.say(2, &second.proof())));
    // Also to the same device in another handshake: it would bring another code.
    assert!(is_refusal(&bare.say(3, &same_again.proof())));
}

#[test]
fn replayed_messages_are_worth_nothing() {
    let mut pair = Pair::new(Role::Member);
    pair.lose = vec![kind::WELCOME];
    pair.person = Some(true);
    pair.run();
    let said: Vec<Bytes> = pair
        .frames
        .iter()
        .filter(|(way, _)| *way == Way::ToDoor)
        .map(|(_, frame)| frame.clone())
        .collect();
    let mut bare = Bare {
        now: pair.now,
        door: pair.door,
    };
    let fresh = bare
        .door
        .issue(pair.now, Role::Member, TICKET_LIFE, door(), addresses())
        .unwrap();
    bare.drain();
    for (place, message) in said.iter().enumerate() {
        let knock = 100 + place as u64;
        bare.knock(knock, peers(200 + place as u8));
        let effects = bare.say(knock, message);
        assert!(is_refusal(&effects), "{:#x}", message[0]);
    }
    assert!(bare.door.book().is_open(&fresh.id()));
}

#[test]
fn message_3_of_one_connection_does_not_fit_another() {
    let (mut bare, ticket) = Bare::new();
    let first = Forger::knock(&mut bare, 1, &ticket, keys(9));
    let proof = first.proof();
    bare.handle(AdmitterInput::Left { knock: Knock(1) });
    // The very same message 1 from the very same peer: only the door's nonce differs.
    bare.knock(2, peers(1));
    assert_eq!(sent(&bare.say(2, &first.hello)).len(), 1);
    assert!(is_refusal(&bare.say(2, &proof)));
}

#[test]
fn again_is_for_the_reserved_device_on_its_own_connection() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
    let proof = forger.proof();
    let effects = bare.say(1, &proof);
    let [AdmitterEffect::Save { save, .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    let effects = bare.handle(AdmitterInput::Saved { save });
    let reply = sent(&effects);
    let Some(AdmitterEffect::ShowCode { code, .. }) = effects.last() else {
        panic!("{effects:?}");
    };
    let session = forger.transcript.absorb(&[&proof]);
    let again = |keys: &DeviceKeys, peers: &Peers, session: &[u8; 32]| {
        let body = again_body(&ticket.id(), session);
        let start = Transcript::start(peers);
        forger.proof_key.prove(Side::Again, &start, keys, body)
    };
    let good = again(&keys(9), &peers(2), &session.0);
    // Seen on its way and tried from elsewhere.
    bare.knock(3, peers(3));
    assert!(is_refusal(&bare.say(3, &good)));
    // The right ticket, another device.
    bare.knock(4, peers(4));
    assert!(is_refusal(
        &bare.say(4, &again(&keys(8), &peers(4), &session.0))
    ));
    // Another handshake.
    bare.knock(5, peers(5));
    assert!(is_refusal(
        &bare.say(5, &again(&keys(9), &peers(5), &[1; 32]))
    ));
    // The device itself: the same reply, the same code, and its older stream is closed.
    bare.knock(2, peers(2));
    let effects = bare.say(2, &good);
    assert_eq!(sent(&effects), reply);
    let closed =
        |effect: &AdmitterEffect| matches!(effect, AdmitterEffect::Close { knock: Knock(1) });
    assert!(effects.iter().any(closed));
    let same = |effect: &AdmitterEffect| matches!(effect, AdmitterEffect::ShowCode { code: shown, .. } if shown == code);
    assert!(effects.iter().any(same));
}

#[test]
fn coming_again_has_an_end() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
    let proof = forger.proof();
    bare.say(1, &proof);
    bare.handle(AdmitterInput::Saved { save: 2 });
    let session = forger.transcript.absorb(&[&proof]);
    let mut times = 0;
    loop {
        let knock = 2 + times;
        let peers = peers(knock as u8);
        bare.knock(knock, peers.clone());
        let body = again_body(&ticket.id(), &session.0);
        let start = Transcript::start(&peers);
        let again = forger.proof_key.prove(Side::Again, &start, &keys(9), body);
        if is_refusal(&bare.say(knock, &again)) {
            break;
        }
        times += 1;
        assert!(times < 100);
    }
    assert_eq!(times, 32);
}

#[test]
fn opening_must_be_what_was_committed_to() {
    let change: [fn(&mut Opening); 4] = [
        |opening| opening.nonce[0] ^= 1,
        |opening| opening.about = b"other".to_vec(),
        |opening| opening.agree = keys(8).agree_public(),
        // Swapped keys.
        |opening| {
            let device = opening.device;
            opening.device = DeviceId(opening.agree.0);
            opening.agree = kith_object::key::AgreeKey(device.0);
        },
    ];
    for change in change {
        let (mut bare, ticket) = Bare::new();
        let mut forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
        change(&mut forger.opening);
        assert!(is_refusal(&bare.say(1, &forger.proof())));
    }
}

#[test]
fn keys_and_names_that_cannot_be_are_refused_even_when_committed_to() {
    let with = |change: fn(&mut Opening)| {
        let (mut bare, ticket) = Bare::new();
        let mut opening = Opening::of(&keys(9), [1; 32], b"forger");
        change(&mut opening);
        let forger = Forger::knock_with(&mut bare, 1, &ticket, keys(9), opening);
        bare.say(1, &forger.proof())
    };
    assert!(is_reserved(&with(|_| {})));
    // Another's device key; keys swapped; keys of no secret; names that fool a reader.
    assert!(is_refusal(&with(|opening| opening.device = keys(8).id())));
    assert!(is_refusal(&with(|opening| {
        let device = opening.device;
        opening.device = DeviceId(opening.agree.0);
        opening.agree = kith_object::key::AgreeKey(device.0);
    })));
    assert!(is_refusal(&with(
        |opening| opening.device = DeviceId([0; 32])
    )));
    assert!(is_refusal(&with(
        |opening| opening.agree = Default::default()
    )));
    assert!(is_refusal(&with(|opening| opening.about = Vec::new())));
    assert!(is_refusal(&with(
        |opening| opening.about = b"\x1b[2Jroot".to_vec()
    )));
    assert!(is_refusal(&with(|opening| opening.about = vec![0xff])));
    assert!(is_refusal(&with(|opening| opening.about = vec![b'a'; 65])));
}

#[test]
fn device_does_not_pair_with_itself() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(1));
    assert!(is_refusal(&bare.say(1, &forger.proof())));
    let mut pair = Pair::new(Role::Member);
    let ticket = pair.newcomer.ticket().clone();
    pair.newcomer = Joiner::new(START, keys(1), name(), ticket, rng(4));
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Refused));
}

#[test]
fn each_message_cut_lengthened_or_altered_is_refused() {
    let (mut bare, ticket) = Bare::new();
    let forger = Forger::knock(&mut bare, 1, &ticket, keys(9));
    let (hello, proof) = (forger.hello.clone(), forger.proof());
    let refused = |message: &[u8], third: bool| {
        let (mut bare, ticket) = Bare::new();
        if third {
            Forger::knock(&mut bare, 1, &ticket, keys(9));
        } else {
            bare.knock(1, peers(1));
        }
        is_refusal(&bare.say(1, message))
    };
    for (message, third) in [(&hello, false), (&proof, true)] {
        for len in 0..message.len() {
            assert!(refused(&message[..len], third), "cut at {len}");
        }
        assert!(refused(&[message, &[0][..]].concat(), third));
    }
    for place in 0..proof.len() {
        let mut altered = proof.clone();
        altered[place] ^= 1;
        assert!(refused(&altered, true), "altered at {place}");
    }
    assert!(is_reserved(&bare.say(1, &proof)));
}

#[test]
fn message_too_long_for_a_stranger_is_refused_unread() {
    let (mut bare, ticket) = Bare::new();
    bare.knock(1, peers(1));
    assert_eq!(bare.door.message_bytes_max(Knock(1)), 16 << 10);
    assert!(is_refusal(&bare.say(1, &vec![1; (16 << 10) + 1])));
    let forger = Forger::knock(&mut bare, 2, &ticket, keys(9));
    bare.say(2, &forger.proof());
    assert_eq!(bare.door.message_bytes_max(Knock(2)), 1 << 20);
    assert_eq!(bare.door.message_bytes_max(Knock(1)), 16 << 10);
}

#[test]
fn newcomer_believes_no_altered_reply() {
    let mut smooth = Pair::new(Role::Member);
    smooth.run();
    let replies: Vec<Bytes> = smooth
        .frames
        .iter()
        .filter(|(way, _)| *way == Way::ToNewcomer)
        .map(|(_, frame)| frame.clone())
        .collect();
    // Every bit of every reply in turn, then every cut; the newcomer before it has seen what went before unaltered.
    for (turn, reply) in replies.iter().enumerate() {
        let step = if turn == 2 { 19 } else { 1 };
        for place in (0..reply.len()).step_by(step) {
            let mut altered = reply.to_vec();
            altered[place] ^= 1;
            for odd in [&altered[..], &reply[..place]] {
                let mut joiner = Joiner::new(
                    START,
                    keys(3),
                    name(),
                    smooth.newcomer.ticket().clone(),
                    rng(4),
                );
                joiner.handle(START, JoinerInput::Opened(peers(101)));
                for before in &replies[..turn] {
                    joiner.handle(START, JoinerInput::Message(before.clone()));
                }
                while joiner.poll_effect().is_some() {}
                joiner.handle(START, JoinerInput::Message(Bytes::copy_from_slice(odd)));
                joiner.check_invariants();
                let effects: Vec<JoinerEffect> =
                    std::iter::from_fn(|| joiner.poll_effect()).collect();
                // A commitment is any 32 bytes; that it is another shows when it is opened.
                let late = turn == 0 && place > 0 && odd.len() == reply.len();
                let mark = turn == 2 && place == 1 && odd.len() == reply.len();
                let fails = matches!(effects.last(), Some(JoinerEffect::Fail(_)));
                assert!(
                    fails || late || mark,
                    "turn {turn} place {place} {effects:?}"
                );
                let shown = effects.iter().any(|effect| {
                    matches!(effect, JoinerEffect::ShowCode(_) | JoinerEffect::Judge(_))
                });
                assert!(!shown, "turn {turn} place {place}");
            }
        }
    }
}

#[test]
fn newcomer_speaks_to_the_tickets_door_only() {
    let ticket = Pair::new(Role::Member).newcomer.ticket().clone();
    let mut joiner = Joiner::new(START, keys(3), name(), ticket, rng(4));
    let mut other = peers(1);
    other.door = DeviceId([66; 32]).to_peer_id_bytes().to_vec();
    joiner.handle(START, JoinerInput::Opened(other));
    let effects: Vec<JoinerEffect> = std::iter::from_fn(|| joiner.poll_effect()).collect();
    assert!(matches!(
        effects[..],
        [
            JoinerEffect::Dial { .. },
            JoinerEffect::Close,
            JoinerEffect::Fail(JoinError::WrongDoor)
        ]
    ));
}

#[test]
fn door_of_another_mesh_is_left() {
    // A door that knows the secret, the mesh id and the role, but has another genesis record.
    let ticket = Pair::new(Role::Member).newcomer.ticket().clone();
    let mut book = TicketBook::new();
    assert!(book.issue(&ticket));
    let mut other = mesh();
    other.genesis[40] ^= 1;
    let door = Admitter::new(START, keys(1), other, book, rng(2));
    let mut pair = Pair::with(door, ticket);
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::WrongMesh));
    assert!(pair.newcomer_codes.is_empty());
}

#[test]
fn door_that_does_not_know_the_secret_is_left() {
    let ticket = Pair::new(Role::Member).newcomer.ticket().clone();
    let mut joiner = Joiner::new(START, keys(3), name(), ticket.clone(), rng(4));
    joiner.handle(START, JoinerInput::Opened(peers(1)));
    let opening = Opening::of(&keys(1), [1; 32], &mesh().genesis);
    let commit = fixed(kind::COMMIT, &opening.commitment(Side::Admitter));
    joiner.handle(START, JoinerInput::Message(commit.clone().into()));
    let sends: Vec<Bytes> = std::iter::from_fn(|| joiner.poll_effect())
        .filter_map(|effect| match effect {
            JoinerEffect::Send(message) => Some(message),
            _ => None,
        })
        .collect();
    let after = Transcript::start(&peers(1))
        .absorb(&[&sends[0]])
        .absorb(&[&commit])
        .absorb(&[&sends[1]]);
    let mut guessed = ticket;
    guessed.secret[0] ^= 1;
    let mut body = vec![kind::ADMITTER_PROOF];
    body.extend_from_slice(&opening.encode());
    let reply = ProofKey::of(&guessed).prove(Side::Admitter, &after, &keys(1), body);
    joiner.handle(START, JoinerInput::Message(reply.into()));
    let last = std::iter::from_fn(|| joiner.poll_effect()).last();
    assert!(matches!(
        last,
        Some(JoinerEffect::Fail(JoinError::NotAuthentic))
    ));
}

/// One in the middle who saw the ticket, and shows the newcomer a ticket of its own with the same secret.
#[test]
fn one_in_the_middle_makes_the_codes_differ() {
    let mut same = 0;
    for seed in 0..40 {
        let mut door = Admitter::new(START, keys(1), mesh(), TicketBook::new(), rng(seed));
        let ticket = door
            .issue(START, Role::Member, TICKET_LIFE, super::door(), addresses())
            .unwrap();
        let mut book = TicketBook::new();
        assert!(book.issue(&ticket));
        // Towards the newcomer it plays the door, towards the door the newcomer; it knows all but the device keys.
        let false_door = Admitter::new(START, keys(60), mesh(), book, rng(100 + seed));
        let mut first = Pair::with(false_door, ticket.clone());
        let mut second = Pair::with(door, ticket.clone());
        second.newcomer = Joiner::new(START, keys(61), name(), ticket, rng(200));
        first.newcomer = Joiner::new(
            START,
            keys(3),
            name(),
            first.newcomer.ticket().clone(),
            rng(50 + seed),
        );
        for pair in [&mut first, &mut second] {
            pair.person = None;
            pair.settle();
        }
        assert_eq!(first.newcomer_codes.len(), 1);
        assert_eq!(second.door_codes.len(), 1);
        same += usize::from(first.newcomer_codes == second.door_codes);
    }
    assert_eq!(same, 0);
}

#[test]
fn one_who_only_passes_messages_on_is_noticed() {
    // The middle has a door of its own and hands everything through unchanged.
    let (mut bare, ticket) = Bare::new();
    let mut middle = ticket.clone();
    middle.door = DeviceId([66; 32]);
    let mut joiner = Joiner::new(START, keys(3), name(), middle.clone(), rng(4));
    let seen = Peers {
        door: middle.door.to_peer_id_bytes().to_vec(),
        newcomer: peers(1).newcomer,
    };
    joiner.handle(START, JoinerInput::Opened(seen));
    bare.knock(1, peers(1));
    let mut refused = false;
    while let Some(effect) = joiner.poll_effect() {
        if let JoinerEffect::Send(message) = effect {
            let effects = bare.say(1, &message);
            refused |= is_refusal(&effects);
            for reply in sent(&effects) {
                joiner.handle(START, JoinerInput::Message(reply));
            }
        }
    }
    assert!(refused);
    assert!(bare.door.book().is_open(&ticket.id()));
}

#[test]
fn signature_made_otherwise_does_not_change_the_code() {
    // Who holds a key can make many signatures of one message; the code must not give them a choice.
    let (newcomer, admitter) = (
        Opening::of(&keys(3), [1; 32], b"a"),
        Opening::of(&keys(1), [2; 32], &mesh().genesis),
    );
    let committed = Transcript([3; 32]);
    let code = Code::of(&committed, &newcomer, &admitter);
    assert_eq!(code, Code::of(&committed, &newcomer, &admitter));
    // Whatever was committed to does change it.
    let mut other = newcomer.clone();
    other.nonce[0] ^= 1;
    assert_ne!(code, Code::of(&committed, &other, &admitter));
    let mut other = admitter.clone();
    other.agree.0[0] ^= 1;
    assert_ne!(code, Code::of(&committed, &newcomer, &other));
    assert_ne!(code, Code::of(&Transcript([4; 32]), &newcomer, &admitter));
}

#[test]
fn at_most_eight_are_at_the_door() {
    let (mut bare, _) = Bare::new();
    for knock in 0..8 {
        assert!(bare.knock(knock, peers(knock as u8)).is_empty());
    }
    let ninth = bare.knock(8, peers(8));
    assert!(matches!(
        ninth[..],
        [AdmitterEffect::Close { knock: Knock(8) }]
    ));
    bare.handle(AdmitterInput::Left { knock: Knock(3) });
    assert!(bare.knock(9, peers(9)).is_empty());
}

#[test]
fn stranger_has_ten_seconds_in_all() {
    let (mut bare, ticket) = Bare::new();
    Forger::knock(&mut bare, 1, &ticket, keys(9));
    assert_eq!(bare.door.next_wakeup(), Some(START + PROOF_MAX));
    bare.now = START + PROOF_MAX;
    assert!(is_refusal(&bare.handle(AdmitterInput::Wake)));
}

#[test]
fn failures_use_up_the_patience_of_the_door_and_time_restores_it() {
    let (mut bare, ticket) = Bare::new();
    let mut knock = 0;
    loop {
        knock += 1;
        let effects = bare.knock(knock, peers(1));
        if let [AdmitterEffect::Close { .. }] = effects[..] {
            break;
        }
        assert!(is_refusal(&bare.say(knock, b"nonsense")));
        assert!(knock < 100);
    }
    assert_eq!(knock, 33);
    bare.now = bare.now + Span::from_secs(1);
    let forger = Forger::knock(&mut bare, 200, &ticket, keys(9));
    assert!(is_reserved(&bare.say(200, &forger.proof())));
    assert_eq!(bare.door.stats().refused, 32);
    assert_eq!(bare.door.stats().turned_away, 1);
}

#[test]
fn book_that_was_altered_is_not_read() {
    let mut pair = Pair::new(Role::Member);
    pair.run();
    let bytes = pair.book.expose().to_vec();
    assert_eq!(TicketBook::decode(&bytes), Ok(pair.door.book().clone()));
    for place in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[place] ^= 1;
        assert_eq!(TicketBook::decode(&altered), Err(BookError::Damaged));
        assert!(TicketBook::decode(&bytes[..place]).is_err());
    }
}
