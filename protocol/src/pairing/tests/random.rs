//! Whatever comes, in whatever order: nothing panics, nothing grows, nobody gets in.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::message::{Declined, Gather, Hello, SealedWelcome, decode_admission};
use super::*;

#[derive(Clone, Debug)]
enum Act {
    Knock(u8),
    Left(u8),
    Say(u8, Vec<u8>),
    /// A frame of a real conversation, one byte of it changed or not.
    Replay(u8, usize, Option<(usize, u8)>),
    Saved(u64),
    NotSaved(u64),
    Confirm(bool),
    Admitted,
    NotAdmitted,
    Guide(u8),
    Stored(u8),
    Failed(u8),
    Withdraw,
    Wait(u64),
    Issue,
}

fn act() -> impl Strategy<Value = Act> {
    let knock = 0_u8..10;
    prop_oneof![
        4 => knock.clone().prop_map(Act::Knock),
        1 => knock.clone().prop_map(Act::Left),
        2 => (knock.clone(), vec(any::<u8>(), 0..80)).prop_map(|(knock, bytes)| Act::Say(knock, bytes)),
        6 => (knock.clone(), any::<usize>(), proptest::option::of((any::<usize>(), any::<u8>())))
            .prop_map(|(knock, frame, change)| Act::Replay(knock, frame, change)),
        1 => (0_u64..8).prop_map(Act::Saved),
        1 => (0_u64..8).prop_map(Act::NotSaved),
        1 => any::<bool>().prop_map(Act::Confirm),
        1 => Just(Act::Admitted),
        1 => Just(Act::NotAdmitted),
        1 => knock.clone().prop_map(Act::Guide),
        1 => knock.clone().prop_map(Act::Stored),
        1 => knock.prop_map(Act::Failed),
        1 => Just(Act::Withdraw),
        2 => (0_u64..20_000).prop_map(Act::Wait),
        1 => Just(Act::Issue),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn door_keeps_its_invariants(acts in vec(act(), 0..60)) {
        let mut real = Pair::new(Role::Member);
        real.lose = vec![kind::WELCOME];
        real.run();
        let said: Vec<Bytes> = real.frames.iter().map(|(_, frame)| frame.clone()).collect();
        let ticket = real.newcomer.ticket().clone();
        let mut book = TicketBook::new();
        prop_assert!(book.issue(&ticket));
        let id = ticket.id();
        let mut bare = Bare { now: START, door: admitter(START, book, 2) };
        for act in acts {
            let input = match act {
                Act::Knock(knock) => AdmitterInput::Knocked { knock: Knock(knock.into()), peers: peers(101) },
                Act::Left(knock) => AdmitterInput::Left { knock: Knock(knock.into()) },
                Act::Say(knock, bytes) => AdmitterInput::Message { knock: Knock(knock.into()), message: bytes.into() },
                Act::Replay(knock, frame, change) => {
                    let mut bytes = said[frame % said.len()].to_vec();
                    if let Some((at, to)) = change {
                        let at = at % bytes.len();
                        bytes[at] = to;
                    }
                    AdmitterInput::Message { knock: Knock(knock.into()), message: bytes.into() }
                }
                Act::Saved(save) => AdmitterInput::Saved { save },
                Act::NotSaved(save) => AdmitterInput::NotSaved { save },
                Act::Confirm(accept) => AdmitterInput::Confirmed { ticket: id, accept },
                Act::Admitted => AdmitterInput::Admitted { ticket: id, welcome: Box::new(welcome(Role::Member)) },
                Act::NotAdmitted => AdmitterInput::NotAdmitted { ticket: id },
                Act::Guide(knock) => AdmitterInput::Guide { knock: Knock(knock.into()), guide: Box::new(guide(1, 1)) },
                Act::Stored(knock) => AdmitterInput::Stored { knock: Knock(knock.into()) },
                Act::Failed(knock) => AdmitterInput::Failed { knock: Knock(knock.into()) },
                Act::Withdraw => AdmitterInput::Withdraw { ticket: id },
                Act::Wait(ms) => {
                    bare.now = bare.now + Span::from_ms(ms);
                    AdmitterInput::Wake
                }
                Act::Issue => {
                    let _ = bare.door.issue(bare.now, Role::Blind, TICKET_LIFE, door(), addresses());
                    AdmitterInput::Wake
                }
            };
            let effects = bare.handle(input);
            prop_assert!(effects.len() < 40);
            // Nothing of the real conversation proves anything here.
            let dangerous = |effect: &AdmitterEffect| matches!(
                effect,
                AdmitterEffect::Admit { .. } | AdmitterEffect::ShowCode { .. } | AdmitterEffect::Guide { .. } | AdmitterEffect::Store { .. }
            );
            prop_assert!(!effects.iter().any(dangerous));
            let book = bare.door.book();
            prop_assert_eq!(&TicketBook::decode(book.encode().expose()).unwrap(), book);
        }
    }

    #[test]
    fn newcomer_keeps_its_invariants(acts in vec((0_u8..8, any::<usize>(), any::<usize>(), any::<u8>(), 0_u64..20_000), 0..60)) {
        let mut real = Pair::new(Role::Member);
        real.run();
        let said: Vec<Bytes> = real.frames.iter().map(|(_, frame)| frame.clone()).collect();
        let mut joiner = Joiner::new(START, keys(3), name(), real.newcomer.ticket().clone(), rng(4));
        let mut now = START;
        let mut over = 0;
        for (act, frame, at, to, ms) in acts {
            let mut bytes = said[frame % said.len()].to_vec();
            let input = match act {
                0 => JoinerInput::Opened(peers(101)),
                1 => JoinerInput::Closed,
                2 | 3 => JoinerInput::Message(bytes.into()),
                4 => {
                    let at = at % bytes.len();
                    bytes[at] = to;
                    JoinerInput::Message(bytes.into())
                }
                5 => JoinerInput::Accepted,
                6 => JoinerInput::Rejected,
                _ => {
                    now = now + Span::from_ms(ms);
                    JoinerInput::Wake
                }
            };
            joiner.handle(now, input);
            joiner.check_invariants();
            let effects: Vec<JoinerEffect> = std::iter::from_fn(|| joiner.poll_effect()).collect();
            prop_assert!(effects.len() < 12);
            over += effects.iter().filter(|effect| matches!(effect, JoinerEffect::Finished { .. } | JoinerEffect::Fail(_))).count();
        }
        prop_assert!(over <= 1);
        prop_assert_eq!(over == 1, joiner.is_over());
    }

    #[test]
    fn words_newcomer_keeps_its_invariants(acts in vec((0_u8..7, vec(any::<u8>(), 0..60), 0_u64..20_000), 0..40)) {
        let mut joiner = WordsJoiner::new(START, root(), None, rng(4));
        let mut now = START;
        let mut over = 0;
        for (act, bytes, ms) in acts {
            let input = match act {
                0 => WordsInput::Opened(peers(101)),
                1 => WordsInput::Closed,
                2 => WordsInput::Message(bytes.into()),
                3 => WordsInput::Message(Bytes::from([&[kind::NONCE][..], &[7; 32]].concat())),
                4 => WordsInput::Admission(vec![Bytes::from_static(b"x")]),
                5 => WordsInput::Rejected,
                _ => {
                    now = now + Span::from_ms(ms);
                    WordsInput::Wake
                }
            };
            joiner.handle(now, input);
            joiner.check_invariants();
            over += std::iter::from_fn(|| joiner.poll_effect())
                .filter(|effect| matches!(effect, WordsEffect::Finished | WordsEffect::Fail(_)))
                .count();
        }
        prop_assert_eq!(over, usize::from(joiner.is_over()));
    }

    #[test]
    fn any_line_between_honest_ends_ends_well_or_is_said(lost in vec(proptest::sample::select(vec![
        kind::TICKET, kind::COMMIT, kind::NEWCOMER_PROOF, kind::ADMITTER_PROOF, kind::WELCOME, kind::RECEIVED, kind::AGAIN,
    ]), 0..8)) {
        let mut pair = Pair::new(Role::Member);
        pair.lose = lost;
        pair.run();
        prop_assert!(pair.finished.is_some() != pair.failed.is_some());
        let mut codes = pair.newcomer_codes.clone();
        codes.extend(&pair.door_codes);
        codes.dedup();
        prop_assert!(pair.finished.is_none() || codes.len() == 1);
        prop_assert!(pair.admitted.iter().all(|(device, _)| *device == keys(3).id()));
    }

    #[test]
    fn any_bytes_never_panic_and_only_canonical_ones_pass(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(hello) = Hello::decode(&bytes) {
            prop_assert_eq!(hello.encode(), bytes.clone());
        }
        if let Ok(guide) = Guide::decode(&bytes) {
            prop_assert_eq!(guide.encode().unwrap(), bytes.clone());
        }
        if let Ok(declined) = Declined::decode(&bytes) {
            prop_assert_eq!(declined.encode().to_vec(), bytes.clone());
        }
        let _ = SealedWelcome::decode(&bytes);
        let _ = decode_admission(&bytes);
        let _ = TicketBook::decode(&bytes);
        let _ = Joiner::resume(START, keys(3), &bytes, rng(1));
        let mut gather = Gather::guide();
        let _ = gather.push(&bytes);
    }

    #[test]
    fn mutated_guide_is_another_or_none(at in any::<usize>(), to in any::<u8>(), cut in any::<usize>()) {
        let bytes = guide(3, 5).encode().unwrap();
        let mut changed = bytes.clone();
        let at = at % changed.len();
        changed[at] = to;
        if let Ok(other) = Guide::decode(&changed) {
            prop_assert_eq!(other.encode().unwrap(), changed);
        }
        prop_assert!(Guide::decode(&bytes[..cut % bytes.len()]).is_err());
    }
}

#[test]
fn guide_tells_what_fits_in_canonical_order() {
    let mut many = Guide {
        frontier: vec![EntryId([2; 32]), EntryId([1; 32]), EntryId([2; 32])],
        addresses: (0..=255_u8)
            .rev()
            .map(|device| (DeviceId([device; 32]), vec![format!("/{device}"); 2]))
            .collect(),
        entries: vec![Bytes::from_static(b"entry")],
    };
    many.addresses.push((
        DeviceId([7; 32]),
        (0..40).map(|n| format!("/more/{n}")).collect(),
    ));
    many.addresses
        .push((DeviceId([9; 32]), vec!["bad\n".into(), "a".repeat(300)]));
    let mut extra = [0; 32];
    extra[1] = 1;
    many.addresses
        .push((DeviceId(extra), vec!["/too/many".into()]));
    let told = Guide::decode(&many.encode().unwrap()).unwrap();
    assert_eq!(told.frontier, [EntryId([1; 32]), EntryId([2; 32])]);
    assert_eq!(told.addresses.len(), 256);
    assert_eq!(told.addresses[7].1.len(), 16);
    assert_eq!(told.addresses[9].1, ["/9"]);
    assert_eq!(told.entries, many.entries);
}

#[test]
fn guide_without_entries_is_none() {
    assert_eq!(Guide::default().encode(), Err(GuideError::Entries));
    let mut odd = guide(1, 1);
    odd.entries.push(Bytes::new());
    assert_eq!(odd.encode(), Err(GuideError::Entries));
    let mut odd = guide(1, 1);
    odd.frontier = (0..1025_u32)
        .map(|n| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            EntryId(id)
        })
        .collect();
    assert_eq!(odd.encode(), Err(GuideError::Frontier));
}
