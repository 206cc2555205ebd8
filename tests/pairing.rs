//! The two ways in: a ticket, and the 24 words; and who is not let in.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use kith_tests::{Kith, Pairing, Place, Running, keys, text, wait_until};
use serde_json::Value;

/// Words that pass the checksum and are nobody's here.
fn others_words() -> String {
    format!("{}art", "abandon ".repeat(23))
}

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

/// Nothing of a device is left in the folder of one that was not let in.
fn assert_no_device(device: &Kith) {
    assert!(
        !device.home().join("device.key").exists(),
        "a device came into being"
    );
    assert_eq!(device.fails(1, ["status"]).failure_kind(), "not-found");
}

fn names(device: &Kith) -> Vec<String> {
    let devices = device.ok(["devices"]).values();
    let mut names: Vec<String> = devices
        .iter()
        .filter(|device| device["removed"] == false)
        .map(|device| text(device, "name").to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn ticket_lets_one_device_in_once() {
    let place = place();
    let (mut first, _) = place.first("first");
    let mesh = first.status()["mesh"].clone();
    let ready = first.up();
    assert_eq!(
        keys(&ready),
        ["addrs", "device", "event", "inside", "public"]
    );
    assert_eq!(ready["event"], "ready");
    assert!(!ready["addrs"].as_array().unwrap().is_empty());

    let pairing = first.pair(&["--yes"]);
    let ticket = pairing.ticket().to_owned();
    assert_eq!(pairing.first()["event"], "ticket");
    assert_eq!(
        keys(pairing.first()),
        ["event", "expires_ms", "id", "ticket"]
    );
    let mut second = place.device("second");
    let joined = second.ok(["join", &ticket, "--name", "second"]);
    let paired = pairing.finish();
    paired.expect_code(0);
    let (shown, knock) = (joined.event("code"), paired.event("knock"));
    assert_eq!(
        shown["code"], knock["code"],
        "both screens show the same code"
    );
    assert!(!text(&shown, "code").is_empty());
    assert_eq!(knock["name"], "second");
    let joined = joined.event("joined");
    assert_eq!(
        (&joined["mesh"], joined["role"].as_str()),
        (&mesh, Some("member"))
    );
    assert_eq!(paired.event("paired")["device"], joined["device"]);

    second.up();
    second.agrees_with(&first);
    assert_eq!(names(&first), ["first", "second"]);
    assert_eq!(names(&second), ["first", "second"]);

    // A second newcomer with the same ticket.
    let third = place.device("third");
    let failed = third.fails(1, ["join", &ticket, "--name", "third"]);
    assert!(!failed.failure()["hint"].is_null(), "{}", failed.failure());
    assert_no_device(&third);
    assert_eq!(names(&first), ["first", "second"]);
}

#[test]
fn tickets_that_are_none_are_refused_with_a_reason() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let pairing = first.pair(&["--yes"]);
    let ticket = pairing.ticket().to_owned();
    let second = place.device("second");

    // One character mistyped, each third place in turn.
    for place in (6..ticket.len()).step_by(3) {
        let mut typed = ticket.clone().into_bytes();
        typed[place] = if typed[place] == b'a' { b'b' } else { b'a' };
        let typed = String::from_utf8(typed).unwrap();
        let failed = second.run(["join", &typed, "--name", "second"]);
        failed.expect_code(2);
        assert_no_device_quickly(&second);
    }
    for typed in [
        "",
        "hello",
        "kith1",
        &ticket[..ticket.len() - 1],
        &ticket[..20],
    ] {
        let failed = second.run_with(["join", "-", "--name", "second"], typed.as_bytes());
        failed.expect_code(2);
        assert!(!text(&failed.failure(), "what").is_empty());
    }
    assert_no_device(&second);
    // The ticket is not used up by that; upper case, as a QR code gives it, is the same ticket, and so is one with space around it.
    let typed = format!("  {}\n", ticket.to_uppercase());
    second
        .run_with(["join", "-", "--name", "second"], typed.as_bytes())
        .expect_code(0);
    pairing.finish().expect_code(0);
}

fn assert_no_device_quickly(device: &Kith) {
    assert!(
        !device.home().join("device.key").exists(),
        "a device came into being"
    );
}

#[test]
fn ticket_of_a_mesh_that_is_away_says_so() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let pairing = first.pair(&["--yes"]);
    let ticket = pairing.ticket().to_owned();
    first.kill();
    let second = place.device("second");
    let failed = second.fails(1, ["join", &ticket, "--name", "second"]);
    assert!(!failed.failure()["hint"].is_null(), "{}", failed.failure());
    assert_no_device(&second);
    drop(pairing);
}

#[test]
fn person_who_says_no_burns_the_ticket() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut pairing = first.pair(&[]);
    let ticket = pairing.ticket().to_owned();
    let second = place.device("second");
    let joining = std::thread::spawn({
        let (home, ticket) = (second.home().to_owned(), ticket.clone());
        move || {
            Kith::new(env!("CARGO_BIN_EXE_kith"), home).run(["join", &ticket, "--name", "second"])
        }
    });
    assert_eq!(pairing.next_value().unwrap()["event"], "knock");
    pairing.answer("n\n");
    pairing.finish().expect_code(1);
    joining.join().unwrap().expect_code(1);
    assert_no_device(&second);
    second.fails(1, ["join", &ticket, "--name", "second"]);
    assert_eq!(names(&first), ["first"]);
}

#[test]
fn person_who_says_yes_lets_it_in() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut pairing = first.pair(&[]);
    let ticket = pairing.ticket().to_owned();
    let second = place.device("second");
    let joining = std::thread::spawn({
        let home = second.home().to_owned();
        move || {
            Kith::new(env!("CARGO_BIN_EXE_kith"), home).run(["join", &ticket, "--name", "second"])
        }
    });
    assert_eq!(pairing.next_value().unwrap()["event"], "knock");
    pairing.answer("y\n");
    joining.join().unwrap().expect_code(0);
    pairing.finish().expect_code(0);
    assert_eq!(names(&first), ["first", "second"]);
}

#[test]
fn blind_holder_gets_no_keys() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let cid = first.put_bytes(b"not for everybody", "/secret.txt");
    let pairing = first.pair(&["--yes", "--role", "blind"]);
    let mut blind = place.device("blind");
    let joined = blind
        .ok(["join", pairing.ticket(), "--name", "blind"])
        .event("joined");
    pairing.finish().expect_code(0);
    assert_eq!(joined["role"], "blind");
    blind.up();
    wait_until("the blind holder knows all entries", || {
        (blind.status()["digest"] == first.status()["digest"]).then_some(())
    });
    blind.fails(1, ["cat", &cid]);
    blind.fails(1, ["cat", "/secret.txt"]);
    assert_eq!(
        blind
            .run_with(["put", "-", "--to", "/x"], b"x")
            .expect_code(1)
            .failure_kind(),
        "denied"
    );
    assert_eq!(blind.fails(1, ["mkdir", "/x"]).failure_kind(), "denied");
    assert!(blind.ok(["ls", "/"]).stdout.is_empty());
    // Nor may it let others in.
    let failed = blind.run(["pair", "--yes"]);
    failed.expect_code(1);
}

#[test]
fn words_alone_make_a_device() {
    let place = place();
    let (mut first, words) = place.first("first");
    assert_eq!(words.split(' ').count(), 24);
    first.up();
    first.put_bytes(b"kept", "/kept.txt");
    let mut second = place.device("second");
    let joined = second.join_by_words(&words, "second", &first.addrs());
    joined.expect_code(0);
    let joined = joined.event("joined");
    assert_eq!(joined["mesh"], first.status()["mesh"]);
    assert_eq!(joined["name"], "second");
    second.up();
    second.agrees_with(&first);
    assert_eq!(names(&first), ["first", "second"]);
    assert_eq!(second.cat_waiting("/kept.txt"), b"kept");
    // As people type them: capitals, lines, tabs.
    let typed = words
        .to_uppercase()
        .replacen(' ', "\n", 3)
        .replacen(' ', "\t  ", 3);
    place
        .device("third")
        .join_by_words(&typed, "third", &first.addrs())
        .expect_code(0);
}

#[test]
fn wrong_words_are_named() {
    let place = place();
    let (mut first, words) = place.first("first");
    first.up();
    let (device, peers) = (place.device("second"), first.addrs());
    let split: Vec<&str> = words.split(' ').collect();

    let failed = device.join_by_words(&split[..23].join(" "), "second", &peers);
    failed.expect_code(2);
    assert!(
        failed.failure_text().contains("23"),
        "it says how many there are: {}",
        failed.failure()
    );

    let mut unknown = split.clone();
    unknown[4] = "kiths";
    let failed = device.join_by_words(&unknown.join(" "), "second", &peers);
    failed.expect_code(2);
    let said = failed.failure_text();
    assert!(said.contains('5'), "it says which word: {said}");

    // All in the list, but the checksum is another.
    let failed = device.join_by_words("abandon ".repeat(24).trim(), "second", &peers);
    failed.expect_code(2);
    assert!(
        failed.failure_text().contains("checksum") || failed.failure_text().contains("order"),
        "{}",
        failed.failure()
    );

    // Nothing at all.
    device.run_with(["join", "--words"], b"\n").expect_code(2);
    // Never as an argument.
    device.fails(2, ["join", "--words", &words]);
    assert_no_device(&device);
}

#[test]
fn words_of_another_mesh_open_nothing() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let device = place.device("second");
    let failed = device.join_by_words(&others_words(), "second", &first.addrs());
    failed.expect_code(1);
    assert!(!failed.failure()["hint"].is_null(), "{}", failed.failure());
    assert_no_device(&device);
    assert_eq!(names(&first), ["first"]);
    // Nobody listens there.
    let failed = device.join_by_words(
        &others_words(),
        "second",
        &["/ip4/127.0.0.1/tcp/1".to_owned()],
    );
    failed.expect_code(1);
    assert_no_device(&device);
    // No address at all.
    device.join_by_words(&others_words(), "second", &["nowhere".to_owned()]);
    assert_no_device(&device);
}

#[test]
fn folder_holds_one_device() {
    let place = place();
    let (first, words) = place.first("first");
    let made: Value = first.status();
    let failed = first.fails(1, ["init", "--name", "again"]);
    assert_eq!(failed.failure_kind(), "exists");
    assert_eq!(
        first
            .join_by_words(&words, "again", &["/ip4/127.0.0.1/tcp/1".to_owned()])
            .expect_code(1)
            .failure_kind(),
        "exists"
    );
    assert_eq!(first.status()["device"], made["device"]);
}

#[test]
fn commands_that_need_a_daemon_say_so() {
    let place = place();
    let (first, _) = place.first("first");
    for command in ["pair", "stop"] {
        let failed = first.fails(4, [command]);
        assert!(text(&failed.failure(), "hint").contains("kith up"));
    }
}

#[test]
fn three_devices_meet_though_each_knows_only_one() {
    let place = place();
    let (mut first, words) = place.first("first");
    first.up();
    let mut second = place.join("second", &first);
    second.up();
    let mut third = place.device("third");
    third
        .join_by_words(&words, "third", &second.addrs())
        .expect_code(0);
    third.up();
    third.agrees_with(&second);
    first.agrees_with(&third);
    assert_eq!(names(&first), ["first", "second", "third"]);
    // The first leaves; the other two go on, and find each other by themselves.
    first.kill();
    second.put_bytes(b"from the second", "/two.txt");
    third.agrees_with(&second);
    assert_eq!(third.cat_waiting("/two.txt"), b"from the second");
}

#[test]
fn who_came_by_the_words_writes_once_it_has_met_another() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, words) = place.first("first");
    first.up();
    let mut second = place.device("second");
    second
        .join_by_words(&words, "second", &first.addrs())
        .expect_code(0);
    first.stop();
    // The door it came by may not have known of every removal: what it seals now, a removed device might read.
    let refused = second.run_with(["put", "-", "--to", "/early"], b"early");
    refused.expect_code(1);
    assert!(
        refused.failure_text().contains("kith up"),
        "{}",
        refused.stderr
    );
    assert_eq!(second.status()["writable"], false);
    first.up();
    second.up();
    second.agrees_with(&first);
    second.put_bytes(b"now", "/now");
    assert_eq!(first.cat_waiting("/now"), b"now");
    // It need not be told twice.
    second.stop();
    second.put_bytes(b"alone", "/alone");
}

/// What a join that is under way keeps.
fn joining(device: &Kith) -> std::path::PathBuf {
    device.home().join("joining.key")
}

/// Kills a join by a ticket when `moment` returns, has the person say yes if nobody has yet, and gives the command again.
fn killed_join_goes_on(
    yes: bool,
    again: &[&str],
    moment: impl Fn(&Kith, &mut Running, &mut Pairing),
) {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let mut pairing = first.pair(if yes { &["--yes"] } else { &[] });
    let ticket = pairing.ticket().to_owned();
    let mut second = place.device("second");
    let mut join = Running::start(second.command(["join", &ticket, "--name", "second"]));
    moment(&second, &mut join, &mut pairing);
    join.kill();
    let first_try = join.finish();
    let is_in = first_try
        .values()
        .iter()
        .any(|value| value["event"] == "joined");
    if !is_in {
        assert!(joining(&second).exists(), "nothing is kept");
        if !yes {
            pairing.answer("y\n");
        }
        let mut args = vec!["join"];
        args.extend(again.iter().map(|arg| {
            if *arg == "TICKET" {
                ticket.as_str()
            } else {
                arg
            }
        }));
        // Another name now changes nothing: it was said, and perhaps read on the other screen.
        args.extend(["--name", "another"]);
        let joined = second.ok(args).event("joined");
        assert_eq!(joined["name"], "second");
    }
    let paired = pairing.finish();
    paired.expect_code(0);
    let device = paired.event("paired")["device"].clone();
    assert_eq!(paired.event("knock")["device"], device);
    assert_eq!(second.up()["device"], device, "the same device came again");
    // One killed after its last word had no time to take it away.
    assert!(
        !joining(&second).exists(),
        "the ticket is still on the disk"
    );
    second.agrees_with(&first);
    assert_eq!(names(&first), ["first", "second"]);
    assert_eq!(first.ok(["devices"]).values().len(), 2);
    second.fails(1, ["join", &ticket]);
}

#[test]
fn join_killed_once_the_ticket_is_reserved_goes_on() {
    killed_join_goes_on(false, &["TICKET"], |second, join, pairing| {
        assert_eq!(pairing.next_value().unwrap()["event"], "knock");
        join.kill();
        let mode = std::fs::metadata(joining(second)).unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
    });
}

#[test]
fn join_killed_while_the_code_is_shown_goes_on() {
    killed_join_goes_on(false, &[], |_, join, pairing| {
        let shown = join.next_value().unwrap();
        assert_eq!(shown["event"], "code");
        assert_eq!(pairing.next_value().unwrap()["code"], shown["code"]);
    });
}

#[test]
fn join_killed_while_it_is_let_in_goes_on() {
    for moment in ["code", "joined"] {
        killed_join_goes_on(true, &["TICKET"], |_, join, _| {
            while let Some(value) = join.next_value() {
                if value["event"] == moment {
                    return;
                }
            }
        });
    }
}

#[test]
fn join_killed_as_its_first_word_is_kept_goes_on() {
    // No output tells of this moment; the file does.
    for again in [&[][..], &["TICKET"]] {
        killed_join_goes_on(true, again, |second, _, _| {
            wait_until("the join is kept", || {
                let begun = joining(second).exists() || second.home().join("device.key").exists();
                begun.then_some(())
            });
        });
    }
}

#[test]
fn join_begun_nowhere_and_join_refused_leave_no_way_on() {
    let place = place();
    let (mut first, _) = place.first("first");
    first.up();
    let second = place.device("second");
    let failed = second.fails(2, ["join"]);
    assert!(text(&failed.failure(), "hint").contains("kith pair"));
    assert_no_device(&second);

    // A person says no while the newcomer is gone: the ticket is burnt, which it is told when it comes again.
    let mut pairing = first.pair(&[]);
    let ticket = pairing.ticket().to_owned();
    let mut join = Running::start(second.command(["join", &ticket, "--name", "second"]));
    assert_eq!(join.next_value().unwrap()["event"], "code");
    join.kill();
    assert_eq!(pairing.next_value().unwrap()["event"], "knock");
    pairing.answer("n\n");
    pairing.finish().expect_code(1);
    second.fails(1, ["join"]);
    assert_no_device(&second);
    // The ticket is gone from the disk, and nothing goes on any more; another one does.
    second.fails(2, ["join"]);
    let pairing = first.pair(&["--yes"]);
    second.ok(["join", pairing.ticket(), "--name", "second"]);
    pairing.finish().expect_code(0);
    assert!(!joining(&second).exists());
    assert_eq!(names(&first), ["first", "second"]);
}

#[test]
fn join_by_words_that_is_killed_makes_no_second_device() {
    let place = place();
    let (mut first, words) = place.first("first");
    first.up();
    let mut second = place.device("second");
    let mut args = vec![
        "join".to_owned(),
        "--words".to_owned(),
        "--name".to_owned(),
        "second".to_owned(),
    ];
    for peer in first.addrs() {
        args.extend(["--peer".to_owned(), peer]);
    }
    let mut command = second.command(&args);
    command.stdin(std::process::Stdio::piped());
    let mut join = Running::start(command);
    join.write(words.as_bytes());
    join.close_input();
    wait_until("the admission is kept", || {
        let begun = joining(&second).exists() || second.home().join("device.key").exists();
        begun.then_some(())
    });
    join.kill();
    let ended = join.finish();
    if !ended
        .values()
        .iter()
        .any(|value| value["event"] == "joined")
    {
        second
            .join_by_words(&words, "another", &first.addrs())
            .expect_code(0);
    }
    second.up();
    second.agrees_with(&first);
    assert_eq!(first.ok(["devices"]).values().len(), 2);
    assert_eq!(names(&first), ["first", "second"]);
    assert!(!joining(&second).exists());
}
