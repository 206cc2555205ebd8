//! The way in by words.

use super::*;

struct Run {
    bare: Bare,
    joiner: WordsJoiner,
    guide: Option<Guide>,
    admission: Option<Vec<Bytes>>,
    stored: Option<bool>,
    got: Option<Guide>,
    handed_in: Option<Vec<Bytes>>,
    finished: bool,
    failed: Option<WordsJoinError>,
    frames: Vec<(Way, Bytes)>,
}

impl Run {
    fn new(root: SignKey, mesh: Option<SpaceId>) -> Self {
        Self {
            bare: Bare::new().0,
            joiner: WordsJoiner::new(START, root, mesh, rng(8)),
            guide: Some(guide(4, 700)),
            admission: Some(vec![
                Bytes::from_static(b"admission"),
                Bytes::from_static(b"epoch"),
            ]),
            stored: Some(true),
            got: None,
            handed_in: None,
            finished: false,
            failed: None,
            frames: Vec::new(),
        }
    }

    fn run(&mut self, door_sees: Peers, newcomer_sees: Peers) {
        let silent = self.bare.knock(1, door_sees);
        assert!(silent.is_empty(), "the door says nothing first");
        self.joiner.handle(START, WordsInput::Opened(newcomer_sees));
        while let Some(effect) = self.joiner.poll_effect() {
            self.joiner.check_invariants();
            match effect {
                WordsEffect::Send(message) => {
                    self.frames.push((Way::ToDoor, message.clone()));
                    let effects = self.bare.say(1, &message);
                    self.answer(effects);
                }
                WordsEffect::Judge(guide) => {
                    self.got = Some(*guide);
                    let input = match self.admission.clone() {
                        Some(entries) => WordsInput::Admission(entries),
                        None => WordsInput::Rejected,
                    };
                    self.joiner.handle(START, input);
                }
                WordsEffect::Close => {
                    let knock = Knock(1);
                    self.bare.handle(AdmitterInput::Left { knock });
                }
                WordsEffect::Finished => self.finished = true,
                WordsEffect::Fail(error) => self.failed = Some(error),
            }
        }
    }

    fn answer(&mut self, effects: Vec<AdmitterEffect>) {
        for effect in effects {
            let more = match effect {
                AdmitterEffect::Send { message, .. } => {
                    self.frames.push((Way::ToNewcomer, message.clone()));
                    self.joiner.handle(START, WordsInput::Message(message));
                    continue;
                }
                AdmitterEffect::Guide { knock } => match self.guide.clone() {
                    Some(guide) => self.bare.handle(AdmitterInput::Guide {
                        knock,
                        guide: Box::new(guide),
                    }),
                    None => self.bare.handle(AdmitterInput::Failed { knock }),
                },
                AdmitterEffect::Store { knock, entries } => {
                    self.handed_in = Some(entries);
                    match self.stored {
                        Some(true) => self.bare.handle(AdmitterInput::Stored { knock }),
                        Some(false) => self.bare.handle(AdmitterInput::Failed { knock }),
                        None => Vec::new(),
                    }
                }
                AdmitterEffect::Close { .. } => {
                    self.joiner.handle(START, WordsInput::Closed);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            self.answer(more);
        }
    }
}

#[test]
fn words_let_a_device_in_with_and_without_the_mesh_id() {
    for mesh in [None, Some(mesh().id)] {
        let mut run = Run::new(root(), mesh);
        run.run(peers(7), peers(7));
        assert!(run.finished);
        assert_eq!(run.failed, None);
        assert_eq!(run.got, Some(guide(4, 700)));
        assert_eq!(run.handed_in, run.admission);
        let kinds: Vec<u8> = run.frames.iter().map(|(_, frame)| frame[0]).collect();
        assert_eq!(
            kinds,
            [
                kind::WORDS,
                kind::NONCE,
                kind::ROOT_PROOF,
                kind::GUIDE,
                kind::ADMISSION,
                kind::STORED
            ]
        );
        assert_eq!(run.bare.door.stats().by_words, 1);
    }
}

#[test]
fn large_access_travels_in_frames() {
    let mut run = Run::new(root(), None);
    run.guide = Some(guide(3, 1 << 20));
    run.admission = Some(vec![Bytes::from(vec![1; 1 << 20]); 3]);
    run.run(peers(7), peers(7));
    assert!(run.finished);
    assert_eq!(run.got, run.guide);
    assert_eq!(run.handed_in, run.admission);
}

#[test]
fn one_who_only_wants_to_know_more_hands_nothing_in() {
    let mut run = Run::new(root(), None);
    run.admission = Some(Vec::new());
    run.run(peers(7), peers(7));
    assert!(run.finished && run.handed_in.is_none());
}

#[test]
fn other_words_or_another_mesh_are_refused_alike() {
    let other = SignKey::from_seed(&[99; 32]);
    for (root, mesh) in [
        (other.clone(), None),
        (other, Some(mesh().id)),
        (root(), Some(SpaceId([1; 32]))),
    ] {
        let mut run = Run::new(root, mesh);
        run.run(peers(7), peers(7));
        assert_eq!(run.failed, Some(WordsJoinError::Refused));
        assert_eq!(run.frames.last().unwrap().1, REFUSED);
        assert_eq!(run.frames.len(), 4);
    }
}

#[test]
fn false_door_gains_nothing_by_passing_the_proof_on() {
    let mut false_door = peers(7);
    false_door.door = DeviceId([66; 32]).to_peer_id_bytes().to_vec();
    for (door_sees, newcomer_sees) in [(peers(7), false_door), (peers(8), peers(7))] {
        let mut run = Run::new(root(), None);
        run.run(door_sees, newcomer_sees);
        assert_eq!(run.failed, Some(WordsJoinError::Refused));
    }
}

#[test]
fn proof_is_good_once() {
    let mut run = Run::new(root(), None);
    run.run(peers(7), peers(7));
    let said: Vec<Bytes> = run
        .frames
        .iter()
        .filter(|(way, _)| *way == Way::ToDoor)
        .map(|(_, frame)| frame.clone())
        .collect();
    run.bare.knock(2, peers(7));
    let nonce = sent(&run.bare.say(2, &said[0]));
    assert_eq!(nonce.len(), 1);
    assert!(is_refusal(&run.bare.say(2, &said[1])));
}

#[test]
fn old_words_do_not_count_after_new_ones() {
    let mut run = Run::new(root(), None);
    run.bare.door.set_root(SignKey::from_seed(&[99; 32]).id());
    run.run(peers(7), peers(7));
    assert_eq!(run.failed, Some(WordsJoinError::Refused));
    let mut run = Run::new(SignKey::from_seed(&[99; 32]), Some(mesh().id));
    run.bare.door.set_root(SignKey::from_seed(&[99; 32]).id());
    run.run(peers(7), peers(7));
    assert!(run.finished);
}

#[test]
fn what_goes_wrong_behind_the_door_is_said() {
    let mut run = Run::new(root(), None);
    run.guide = None;
    run.run(peers(7), peers(7));
    assert_eq!(run.failed, Some(WordsJoinError::Failed));

    let mut run = Run::new(root(), None);
    run.stored = Some(false);
    run.run(peers(7), peers(7));
    assert_eq!(run.failed, Some(WordsJoinError::Failed));

    let mut run = Run::new(root(), None);
    run.admission = None;
    run.run(peers(7), peers(7));
    assert_eq!(run.failed, Some(WordsJoinError::NotTrusted));
    assert_eq!(run.handed_in, None);

    let mut run = Run::new(root(), None);
    run.admission = Some(vec![Bytes::from(vec![0; 1 << 20]); 5]);
    run.run(peers(7), peers(7));
    assert_eq!(run.failed, Some(WordsJoinError::TooLarge));
}

#[test]
fn silence_is_not_waited_for() {
    let mut run = Run::new(root(), None);
    run.stored = None;
    run.run(peers(7), peers(7));
    assert!(!run.finished);
    let late = run.joiner.next_wakeup().unwrap();
    run.joiner.handle(late, WordsInput::Wake);
    let effects: Vec<WordsEffect> = std::iter::from_fn(|| run.joiner.poll_effect()).collect();
    assert!(matches!(
        effects[..],
        [
            WordsEffect::Close,
            WordsEffect::Fail(WordsJoinError::Unreachable)
        ]
    ));
    run.bare.now = START + past(ANSWER_MAX);
    let effects = run.bare.handle(AdmitterInput::Wake);
    assert!(matches!(effects[..], [AdmitterEffect::Close { .. }]));
}

#[test]
fn admission_is_cut_short_at_its_limit() {
    let mut run = Run::new(root(), None);
    run.admission = None;
    run.run(peers(7), peers(7));
    let mut run = Run::new(root(), None);
    run.stored = None;
    run.bare.knock(1, peers(7));
    run.joiner.handle(START, WordsInput::Opened(peers(7)));
    while run.got.is_none() {
        match run.joiner.poll_effect().unwrap() {
            WordsEffect::Send(message) => {
                let effects = run.bare.say(1, &message);
                run.answer(effects);
            }
            WordsEffect::Judge(guide) => run.got = Some(*guide),
            other => panic!("{other:?}"),
        }
    }
    let piece = [
        &[kind::ADMISSION, 0][..],
        &vec![0; crate::wire::DOOR_FRAME_BYTES_MAX_PROVED - 2],
    ]
    .concat();
    let mut said = 0;
    loop {
        said += piece.len();
        let effects = run.bare.say(1, &piece);
        if let [AdmitterEffect::Close { .. }] = effects[..] {
            break;
        }
        assert!(effects.is_empty());
    }
    assert!(said <= ADMISSION_BYTES_MAX + piece.len());
}
