//! The ticket handshake on good and on bad lines.

use super::*;

#[test]
fn ticket_lets_a_device_in() {
    for role in [Role::Member, Role::Blind] {
        let mut pair = Pair::new(role);
        pair.run();
        assert_eq!(pair.finished, Some(true));
        assert_eq!(pair.failed, None);
        assert_eq!(pair.kinds(), SMOOTH);
        assert_eq!(pair.outcomes, [Outcome::Done]);
        assert_eq!(pair.door_codes.len(), 1);
        assert_eq!(pair.door_codes, pair.newcomer_codes);
        assert_eq!(pair.admitted, [(keys(3).id(), role)]);
        let [arrival] = &pair.arrivals[..] else {
            panic!("one arrival");
        };
        assert_eq!(arrival.welcome, welcome(role));
        assert_eq!(arrival.admitter, keys(1).id());
        assert_eq!(arrival.admitter_agree, keys(1).agree_public());
        assert_eq!(arrival.genesis, mesh().genesis);
        assert_eq!(arrival.role, role);
    }
}

#[test]
fn nothing_readable_of_the_parts_is_on_the_wire() {
    let mut pair = Pair::new(Role::Member);
    pair.run();
    for (_, frame) in &pair.frames {
        assert!(!frame.windows(16).any(|window| window == [9; 16]));
        assert!(!frame.windows(16).any(|window| window == [10; 16]));
    }
}

#[test]
fn large_access_travels_in_frames() {
    let mut pair = Pair::new(Role::Member);
    let mut big = welcome(Role::Member);
    big.guide = guide(5, 1 << 20);
    pair.welcome = Some(big.clone());
    pair.run();
    assert_eq!(pair.finished, Some(true));
    assert_eq!(pair.arrivals[0].welcome, big);
    assert_eq!(count(&pair.kinds())[&kind::WELCOME], 6);
    let longest = pair.frames.iter().map(|(_, frame)| frame.len()).max();
    assert_eq!(longest, Some(crate::wire::DOOR_FRAME_BYTES_MAX_PROVED));
}

#[test]
fn access_beyond_the_limit_is_not_sent() {
    let mut pair = Pair::new(Role::Member);
    let mut big = welcome(Role::Member);
    big.guide = guide(65, 1 << 20);
    pair.welcome = Some(big);
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Failed));
    assert_eq!(pair.outcomes, [Outcome::Failed]);
}

#[test]
fn each_lost_message_is_made_good() {
    for lost in SMOOTH {
        let mut pair = Pair::new(Role::Member);
        pair.lose = vec![lost];
        pair.run();
        assert_eq!(pair.failed, None, "lost {lost:#x}");
        assert!(pair.finished.is_some(), "lost {lost:#x}");
        let mut codes = pair.door_codes.clone();
        codes.dedup();
        assert_eq!(codes, pair.newcomer_codes, "lost {lost:#x}");
        // The message that says thanks is not worth a second connection.
        let told = lost != kind::RECEIVED;
        assert_eq!(
            pair.outcomes.contains(&Outcome::Done),
            told,
            "lost {lost:#x}"
        );
        assert_eq!(pair.arrivals.len(), 1);
        assert!(
            pair.admitted
                .iter()
                .all(|(device, _)| *device == keys(3).id())
        );
    }
}

#[test]
fn a_line_that_breaks_again_and_again_is_no_matter() {
    let mut pair = Pair::new(Role::Member);
    pair.lose = vec![
        kind::ADMITTER_PROOF,
        kind::AGAIN,
        kind::AGAIN,
        kind::ADMITTER_PROOF,
        kind::WELCOME,
        kind::AGAIN,
        kind::WELCOME,
    ];
    pair.run();
    assert_eq!((pair.finished, pair.failed), (Some(true), None));
    let mut codes = pair.door_codes.clone();
    codes.dedup();
    assert_eq!(codes, pair.newcomer_codes);
}

#[test]
fn message_3_lost_before_the_door_had_it_begins_anew_but_not_for_ever() {
    let mut pair = Pair::new(Role::Member);
    pair.lose = vec![kind::NEWCOMER_PROOF; 2];
    pair.run();
    assert_eq!((pair.finished, pair.failed), (Some(true), None));
    assert_eq!(count(&pair.kinds())[&kind::TICKET], 3);

    let mut pair = Pair::new(Role::Member);
    pair.lose = vec![kind::NEWCOMER_PROOF; 9];
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Refused));
    assert_eq!(count(&pair.kinds())[&kind::TICKET], 3);
}

#[test]
fn line_lost_while_the_owner_judges_still_says_thanks() {
    let mut pair = Pair::new(Role::Member);
    pair.settle_until_arrival();
    pair.break_line();
    pair.newcomer_handle(JoinerInput::Accepted);
    pair.run();
    assert_eq!(pair.finished, Some(true));
    assert_eq!(pair.outcomes, [Outcome::Done]);
    // Judged once; the second welcome only served to say thanks.
    assert_eq!(pair.arrivals.len(), 0);
}

impl Pair {
    /// Stops with the owner of the newcomer judging.
    fn settle_until_arrival(&mut self) {
        loop {
            if let Some(effect) = self.door.poll_effect() {
                self.perform_door(effect);
            } else if let Some(effect) = self.newcomer.poll_effect() {
                if matches!(effect, JoinerEffect::Judge(_)) {
                    return;
                }
                self.perform_newcomer(effect);
            } else {
                panic!("no arrival");
            }
        }
    }
}

#[test]
fn door_gone_for_good_after_acceptance_takes_nothing_back() {
    let mut pair = Pair::new(Role::Member);
    pair.settle_until_arrival();
    pair.break_line();
    pair.lose = vec![kind::AGAIN; 100];
    pair.newcomer_handle(JoinerInput::Accepted);
    pair.run();
    assert_eq!((pair.finished, pair.failed), (Some(false), None));
}

#[test]
fn door_restarted_between_any_two_messages_goes_on() {
    for lost in [kind::ADMITTER_PROOF, kind::WELCOME] {
        let mut pair = Pair::new(Role::Member);
        pair.lose = vec![lost];
        pair.settle();
        let before = pair.door_codes.clone();
        let book = TicketBook::decode(pair.book.expose()).unwrap();
        assert_eq!(&book, pair.door.book());
        pair.door = admitter(pair.now, book, 99);
        pair.run();
        assert_eq!((pair.finished, pair.failed), (Some(true), None));
        assert_eq!(pair.outcomes, [Outcome::Done]);
        let mut codes = [before, pair.door_codes.clone()].concat();
        codes.dedup();
        assert_eq!(codes, pair.newcomer_codes);
    }
}

#[test]
fn newcomer_restarted_after_its_proof_goes_on() {
    for lost in [kind::ADMITTER_PROOF, kind::WELCOME] {
        let mut pair = Pair::new(Role::Member);
        pair.lose = vec![lost];
        pair.settle();
        let remembered = pair.remembered.clone().unwrap();
        pair.newcomer = Joiner::resume(pair.now, keys(3), remembered.expose(), rng(50)).unwrap();
        pair.run();
        assert_eq!((pair.finished, pair.failed), (Some(true), None));
        let mut codes = pair.newcomer_codes.clone();
        codes.extend(&pair.door_codes);
        codes.dedup();
        assert_eq!(codes.len(), 1, "one code throughout");
    }
}

#[test]
fn what_was_remembered_is_checked() {
    let mut pair = Pair::new(Role::Member);
    pair.run();
    let remembered = pair.remembered.unwrap();
    let resume = |bytes: &[u8], keys| Joiner::resume(START, keys, bytes, rng(1)).map(|_| ());
    assert_eq!(resume(remembered.expose(), keys(3)), Ok(()));
    assert_eq!(
        resume(remembered.expose(), keys(9)),
        Err(ResumeError::OtherKeys)
    );
    for place in 0..remembered.expose().len() {
        let mut changed = remembered.expose().to_vec();
        changed[place] ^= 1;
        assert_eq!(resume(&changed, keys(3)), Err(ResumeError::Damaged));
        assert!(resume(&changed[..place], keys(3)).is_err());
    }
}

#[test]
fn a_no_burns_the_ticket() {
    let mut pair = Pair::new(Role::Member);
    pair.person = Some(false);
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Declined));
    assert_eq!(pair.outcomes, [Outcome::Declined]);
    assert!(pair.admitted.is_empty());
    assert!(pair.door.book().is_empty());
    assert!(TicketBook::decode(pair.book.expose()).unwrap().is_empty());
}

#[test]
fn silence_burns_the_ticket() {
    let mut pair = Pair::new(Role::Member);
    pair.person = None;
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::TimedOut));
    assert_eq!(pair.outcomes, [Outcome::TimedOut]);
    assert_eq!(pair.now, START + CONFIRM_MAX);
    assert!(pair.door.book().is_empty());
}

#[test]
fn ticket_taken_back_ends_the_wait() {
    let mut pair = Pair::new(Role::Member);
    pair.person = None;
    pair.settle();
    let ticket = pair.newcomer.ticket().id();
    pair.door_handle(AdmitterInput::Withdraw { ticket });
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::TimedOut));
    assert_eq!(pair.outcomes, [Outcome::Withdrawn]);
}

#[test]
fn confirmed_ticket_is_not_taken_back() {
    let mut pair = Pair::new(Role::Member);
    pair.lose = vec![kind::WELCOME];
    pair.settle();
    let ticket = pair.newcomer.ticket().id();
    pair.door_handle(AdmitterInput::Withdraw { ticket });
    pair.run();
    assert_eq!(pair.finished, Some(true));
}

#[test]
fn person_may_confirm_while_the_line_is_down() {
    let mut pair = Pair::new(Role::Member);
    pair.person = None;
    pair.settle();
    pair.break_line();
    let ticket = pair.newcomer.ticket().id();
    let accept = true;
    pair.door_handle(AdmitterInput::Confirmed { ticket, accept });
    pair.run();
    assert_eq!((pair.finished, pair.failed), (Some(true), None));
    assert_eq!(pair.outcomes, [Outcome::Done]);
}

#[test]
fn nothing_is_sent_before_the_reservation_is_durable() {
    let mut pair = Pair::new(Role::Member);
    pair.disk = false;
    pair.settle();
    assert_eq!(pair.kinds(), SMOOTH[..3]);
    assert!(pair.door_codes.is_empty());
    pair.disk = true;
    pair.door_handle(AdmitterInput::Saved { save: u64::MAX - 1 });
    pair.run();
    assert_eq!(pair.finished, Some(true));
}

#[test]
fn nobody_is_admitted_before_the_ticket_is_durably_used() {
    let mut pair = Pair::new(Role::Member);
    pair.person = None;
    pair.settle();
    pair.disk = false;
    let ticket = pair.newcomer.ticket().id();
    let accept = true;
    pair.door_handle(AdmitterInput::Confirmed { ticket, accept });
    pair.settle();
    assert!(pair.admitted.is_empty());
    pair.disk = true;
    pair.door_handle(AdmitterInput::Saved { save: u64::MAX });
    pair.run();
    assert_eq!(pair.admitted.len(), 1);
    assert_eq!(pair.finished, Some(true));
}

#[test]
fn full_disk_lets_nobody_in() {
    let mut pair = Pair::new(Role::Member);
    pair.disk = false;
    pair.settle();
    pair.door_handle(AdmitterInput::NotSaved { save: u64::MAX });
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Failed));
    assert_eq!(pair.outcomes, [Outcome::Failed]);
    assert!(pair.admitted.is_empty() && pair.door.book().is_empty());
}

#[test]
fn admission_that_cannot_be_is_said() {
    let mut pair = Pair::new(Role::Member);
    pair.welcome = None;
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Failed));
    assert_eq!(pair.outcomes, [Outcome::Failed]);
}

#[test]
fn welcome_of_another_role_is_not_sent() {
    let mut pair = Pair::new(Role::Blind);
    pair.welcome = Some(welcome(Role::Member));
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Failed));
    assert!(!pair.kinds().contains(&kind::WELCOME));
}

#[test]
fn newcomer_that_does_not_trust_the_entries_stays_out() {
    let mut pair = Pair::new(Role::Member);
    pair.accept = false;
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::NotTrusted));
    assert!(!pair.kinds().contains(&kind::RECEIVED));
    pair.wake(START + CONFIRM_MAX + REPEAT_MAX);
    assert_eq!(pair.outcomes, [Outcome::Unacknowledged]);
}

#[test]
fn unused_ticket_expires() {
    let mut pair = Pair::new(Role::Member);
    pair.now = START + TICKET_LIFE;
    pair.run();
    assert_eq!(pair.failed, Some(JoinError::Refused));
    assert_eq!(pair.outcomes, [Outcome::Expired]);
    let expired = pair.newcomer.ticket();
    assert!(expired.is_expired(pair.now) && !expired.is_expired(START));
}

#[test]
fn door_that_is_not_there_is_given_up_after_a_while() {
    let mut joiner = Joiner::new(
        START,
        keys(3),
        name(),
        Pair::new(Role::Blind).newcomer.ticket().clone(),
        rng(4),
    );
    let (mut now, mut dials) = (START, 0);
    let error = loop {
        match joiner.poll_effect() {
            Some(JoinerEffect::Dial { .. }) => {
                dials += 1;
                joiner.handle(now, JoinerInput::Closed);
            }
            Some(JoinerEffect::Fail(error)) => break error,
            Some(_) => {}
            None => {
                now = joiner.next_wakeup().unwrap();
                joiner.handle(now, JoinerInput::Wake);
            }
        }
    };
    assert_eq!((error, dials), (JoinError::Unreachable, 4));
    assert_eq!(now, START + Span::from_secs(1 + 2 + 4));
}

#[test]
fn silent_door_is_left() {
    let mut joiner = Joiner::new(
        START,
        keys(3),
        name(),
        Pair::new(Role::Blind).newcomer.ticket().clone(),
        rng(4),
    );
    let mut now = START;
    let error = loop {
        match joiner.poll_effect() {
            Some(JoinerEffect::Dial { .. }) => joiner.handle(now, JoinerInput::Opened(peers(9))),
            Some(JoinerEffect::Fail(error)) => break error,
            Some(_) => {}
            None => {
                now = joiner.next_wakeup().unwrap();
                joiner.handle(now, JoinerInput::Wake);
            }
        }
    };
    assert_eq!(error, JoinError::Unreachable);
}

#[test]
fn full_book_gives_no_ticket_but_finished_ones_make_room() {
    let mut pair = Pair::new(Role::Member);
    pair.run();
    let issue = |door: &mut Admitter| {
        door.issue(START, Role::Member, TICKET_LIFE, super::door(), addresses())
    };
    // One of the first 64 has done its part, so 64 more fit.
    for _ in 0..TICKETS_MAX {
        issue(&mut pair.door).unwrap();
        pair.door.check_invariants();
    }
    assert_eq!(issue(&mut pair.door).unwrap_err(), IssueError::TooMany);
    assert_eq!(pair.door.book().len(), TICKETS_MAX);
    let odd = pair.door.issue(
        START + TICKET_LIFE,
        Role::Blind,
        TICKET_LIFE,
        door(),
        vec![],
    );
    assert!(matches!(odd, Err(IssueError::Addresses(_))));
}
