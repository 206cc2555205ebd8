//! The bytes of both handshakes, fixed in `tests/vectors/pairing.json`.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::super::handshake::{Opening, ProofKey, Side, Transcript, parts_info};
use super::super::message::{Hello, SealedWelcome, decode_admission};
use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/pairing.json");

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn agree_secret(keys: &DeviceKeys) -> String {
    hex(&keys.to_bytes()[32..])
}

fn refusal_words<T, E: fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => error.to_string(),
    }
}

fn tickets() -> Vec<Value> {
    let ticket = Ticket {
        mesh: mesh().id,
        secret: Zeroizing::new([0xa5; 16]),
        door: door(),
        role: Role::Member,
        expiry: START + TICKET_LIFE,
        addresses: addresses(),
    };
    let text = ticket.to_text();
    let mistyped = text.replacen('a', "b", 1);
    let bytes = ticket.encode().to_vec();
    let checked = |change: fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let [a, b, c, d, ..] = kith_object::key::derive("kith ticket checksum 1", &bytes);
        bytes.extend([a, b, c, d]);
        format!(
            "kith1{}",
            data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase()
        )
    };
    let case = |name: &str, text: &str| {
        let parsed = Ticket::parse(text);
        let mut value = json!({
            "name": name,
            "what": "ticket",
            "expect": refusal_words(parsed.as_ref()),
            "text": text,
        });
        if let Ok(ticket) = parsed {
            value["mesh"] = hex(&ticket.mesh.0).into();
            value["secret"] = hex(ticket.secret.as_slice()).into();
            value["door"] = hex(&ticket.door.0).into();
            value["role"] = ticket.role.byte().into();
            value["expiry"] = ticket.expiry.0.into();
            value["addresses"] = ticket.addresses.clone().into();
            value["id"] = hex(&ticket.id().0).into();
        }
        value
    };
    vec![
        case("ticket", &text),
        case("ticket in capitals", &text.to_uppercase()),
        case("ticket over two lines", &text.replacen('q', "\n q", 1)),
        case("ticket with one wrong letter", &mistyped),
        case("ticket cut short", &text[..text.len() - 8]),
        case(
            "ticket of a newer form",
            &text.replacen("kith1", "kith2", 1),
        ),
        case("no ticket", "https://example.com/"),
        case("ticket with trailing byte", &checked(|bytes| bytes.push(0))),
        case("ticket for an admin", &checked(|bytes| bytes[81] = 3)),
        case(
            "ticket with bytes of a newer form",
            &checked(|bytes| bytes[0] = 2),
        ),
        case(
            "ticket without address",
            &checked(|bytes| {
                bytes.truncate(90);
                bytes.push(0);
            }),
        ),
    ]
}

/// One conversation from end to end, with everything that can be computed from it.
fn conversation(role: Role) -> (Value, Pair) {
    let mut pair = Pair::new(role);
    pair.run();
    assert_eq!(pair.finished, Some(true));
    let ticket = pair.newcomer.ticket().clone();
    let frames: Vec<&Bytes> = pair.frames.iter().map(|(_, frame)| frame).collect();
    let peers = peers(101);
    let start = Transcript::start(&peers);
    let committed = start.absorb(&[frames[0]]).absorb(&[frames[1]]);
    let proved = committed.absorb(&[frames[2]]);
    let replied = proved.absorb(&[frames[3]]);
    // One frame: after its kind and the mark of the last comes the content.
    let content = &frames[4][2..];
    let welcomed = replied.absorb(&[&[kind::WELCOME]]).absorb(&[content]);
    let opening = |frame: &Bytes| Opening::decode(&frame[1..frame.len() - 96]).unwrap();
    let (newcomer, admitter) = (opening(frames[2]), opening(frames[3]));
    let key = ProofKey::of(&ticket);
    let again = key.prove(
        Side::Again,
        &Transcript::start(&super::peers(102)),
        &keys(3),
        message::again_body(&ticket.id(), &proved.0),
    );
    let epoch = welcome(role).epoch;
    let info = parts_info(
        &mesh().id,
        &epoch,
        &admitter.device,
        &newcomer.device,
        &replied,
    );
    let value = json!({
        "name": format!("ticket handshake of a {role}"),
        "what": "ticket handshake",
        "expect": "ok",
        "ticket": ticket.to_text().as_str(),
        "door_peer": hex(&peers.door),
        "newcomer_peer": hex(&peers.newcomer),
        "newcomer_ed25519_seed": hex(keys(3).sign_key().seed().expose()),
        "newcomer_x25519_secret": agree_secret(&keys(3)),
        "admitter_ed25519_seed": hex(keys(1).sign_key().seed().expose()),
        "admitter_x25519_secret": agree_secret(&keys(1)),
        "newcomer_name": name().as_str(),
        "genesis": hex(&mesh().genesis),
        "proof_key": hex(key.0.expose()),
        "messages": frames.iter().map(|frame| hex(frame)).collect::<Vec<_>>(),
        "transcript_start": hex(&start.0),
        "transcript_2": hex(&committed.0),
        "transcript_3": hex(&proved.0),
        "transcript_4": hex(&replied.0),
        "transcript_5": hex(&welcomed.0),
        "code": pair.door_codes[0].to_string(),
        "parts_info": hex(&info),
        "epoch": hex(&epoch.0),
        "holder_part": hex(welcome(role).holder_part.expose()),
        "member_part": welcome(role).member_part.map(|part| hex(part.expose())),
        "again_newcomer_peer": hex(&super::peers(102).newcomer),
        "again": hex(&again),
        "book_after": hex(pair.book.expose()),
    });
    (value, pair)
}

/// Altered messages 3, given to a door that has said the message 2 of the good conversation.
fn bad_proofs(pair: &Pair) -> Vec<Value> {
    let ticket = pair.newcomer.ticket().clone();
    let good = pair.frames[2].1.to_vec();
    let case = |name: &str, message: Vec<u8>| {
        // The same seed gives the same ticket, and then the same nonce.
        let mut door = admitter(START, TicketBook::new(), 2);
        let issued = door.issue(START, Role::Member, TICKET_LIFE, super::door(), addresses());
        assert_eq!(issued.as_ref(), Ok(&ticket));
        let mut bare = Bare { now: START, door };
        bare.drain();
        bare.knock(1, peers(101));
        assert_eq!(
            sent(&bare.say(1, &pair.frames[0].1)),
            [pair.frames[1].1.clone()]
        );
        let effects = bare.say(1, &message);
        let expect = if is_refusal(&effects) {
            "refused"
        } else {
            "ok"
        };
        json!({
            "name": name,
            "what": "message 3 after messages 1 and 2 of the first handshake",
            "expect": expect,
            "message": hex(&message),
        })
    };
    let altered = |place: usize| {
        let mut message = good.clone();
        message[place] ^= 1;
        message
    };
    let len = good.len();
    let mut swapped = good.clone();
    let (device, agree) = (good[33..65].to_vec(), good[65..97].to_vec());
    swapped[33..65].copy_from_slice(&agree);
    swapped[65..97].copy_from_slice(&device);
    let mut twice = good.clone();
    twice.push(0);
    vec![
        case("message 3 as it was sent", good.clone()),
        case("message 3 with another nonce", altered(1)),
        case("message 3 with another device key", altered(33)),
        case("message 3 with keys swapped", swapped),
        case("message 3 with another name", altered(99)),
        case("message 3 with an altered signature", altered(len - 96)),
        case("message 3 with an altered MAC", altered(len - 1)),
        case("message 3 cut short", good[..len - 1].to_vec()),
        case("message 3 with a trailing byte", twice),
        case("message 3 replaced by message 4", pair.frames[3].1.to_vec()),
    ]
}

fn by_words() -> Vec<Value> {
    let (mut bare, _) = Bare::new();
    let mut joiner = WordsJoiner::new(START, root(), Some(mesh().id), rng(8));
    let peers = peers(101);
    bare.knock(1, peers.clone());
    joiner.handle(START, WordsInput::Opened(peers.clone()));
    let mut frames: Vec<Bytes> = Vec::new();
    let entries = vec![Bytes::from_static(b"admission")];
    while let Some(effect) = joiner.poll_effect() {
        let input = match effect {
            WordsEffect::Send(message) => {
                frames.push(message.clone());
                AdmitterInput::Message {
                    knock: Knock(1),
                    message,
                }
            }
            WordsEffect::Judge(_) => {
                joiner.handle(START, WordsInput::Admission(entries.clone()));
                continue;
            }
            _ => continue,
        };
        let mut effects = bare.handle(input);
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match effect {
                    AdmitterEffect::Send { message, .. } => {
                        frames.push(message.clone());
                        joiner.handle(START, WordsInput::Message(message));
                    }
                    AdmitterEffect::Guide { knock } => {
                        more.extend(bare.handle(AdmitterInput::Guide {
                            knock,
                            guide: Box::new(guide(2, 20)),
                        }));
                    }
                    AdmitterEffect::Store { knock, .. } => {
                        more.extend(bare.handle(AdmitterInput::Stored { knock }));
                    }
                    _ => {}
                }
            }
            effects = more;
        }
    }
    let value = json!({
        "name": "way in by words",
        "what": "words",
        "expect": "ok",
        "root_ed25519_seed": hex(root().seed().expose()),
        "mesh": hex(&mesh().id.0),
        "door_peer": hex(&peers.door),
        "newcomer_peer": hex(&peers.newcomer),
        "messages": frames.iter().map(|frame| hex(frame)).collect::<Vec<_>>(),
        "frontier": guide(2, 20).frontier.iter().map(|id| hex(&id.0)).collect::<Vec<_>>(),
        "addresses": { hex(&[3; 32]): addresses() },
        "entries": guide(2, 20).entries.iter().map(|entry| hex(entry)).collect::<Vec<_>>(),
        "admission": entries.iter().map(|entry| hex(entry)).collect::<Vec<_>>(),
    });
    let proof = |name: &str, message: Vec<u8>| {
        let (mut bare, _) = Bare::new();
        bare.knock(1, peers.clone());
        assert_eq!(sent(&bare.say(1, &frames[0])), [frames[1].clone()]);
        let effects = bare.say(1, &message);
        let expect = if is_refusal(&effects) {
            "refused"
        } else {
            "ok"
        };
        json!({
            "name": name,
            "what": "root proof after the first two messages of the way in by words",
            "expect": expect,
            "message": hex(&message),
        })
    };
    let good = frames[2].to_vec();
    let mut any_mesh = good.clone();
    any_mesh[1..33].fill(0);
    let mut altered = good.clone();
    altered[60] ^= 1;
    vec![
        value,
        proof("root proof as it was sent", good.clone()),
        proof("root proof whose mesh id was taken out", any_mesh),
        proof("root proof with an altered signature", altered),
        proof(
            "root proof with a trailing byte",
            [&good[..], &[0]].concat(),
        ),
    ]
}

fn contents(pair: &Pair) -> Vec<Value> {
    let case = |name: &str, what: &str, bytes: &[u8]| {
        let expect = match what {
            "first message" => refusal_words(Hello::decode(bytes)),
            "guide" => refusal_words(Guide::decode(bytes)),
            "welcome" => refusal_words(SealedWelcome::decode(bytes)),
            "admission" => refusal_words(decode_admission(bytes)),
            "book" => refusal_words(TicketBook::decode(bytes)),
            other => panic!("{other}"),
        };
        json!({ "name": name, "what": what, "expect": expect, "bytes": hex(bytes) })
    };
    let hello = pair.frames[0].1.to_vec();
    let welcome = &pair.frames[4].1[2..];
    let welcome = &welcome[..welcome.len() - 96];
    let guide = guide(2, 20).encode().unwrap();
    let book = pair.book.expose().to_vec();
    let with = |bytes: &[u8], change: fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        bytes
    };
    let entries = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let admission = message::encode_admission(&entries).unwrap();
    vec![
        case("first message", "first message", &hello),
        case(
            "first message of a newer version",
            "first message",
            &with(&hello, |bytes| bytes[1] = 2),
        ),
        case(
            "first message of no known way",
            "first message",
            &with(&hello, |bytes| bytes[0] = 4),
        ),
        case(
            "first message cut short",
            "first message",
            &hello[..hello.len() - 1],
        ),
        case("welcome", "welcome", welcome),
        case(
            "welcome cut short",
            "welcome",
            &welcome[..welcome.len() - 1],
        ),
        case("guide", "guide", &guide),
        case(
            "guide with its frontier out of order",
            "guide",
            &with(&guide, |bytes| bytes[2] = 9),
        ),
        case(
            "guide with a trailing byte",
            "guide",
            &with(&guide, |bytes| bytes.push(0)),
        ),
        case(
            "guide that claims 2^32 - 1 entries",
            "guide",
            &with(&guide, |bytes| {
                let place = bytes.len() - 52;
                bytes[place..place + 4].fill(0xff);
            }),
        ),
        case("admission", "admission", &admission),
        case("admission without entries", "admission", &[0; 4]),
        case(
            "admission with an empty entry",
            "admission",
            &[1, 0, 0, 0, 0, 0, 0, 0],
        ),
        case("book with one ticket used", "book", &book),
        case(
            "book with one bit flipped",
            "book",
            &with(&book, |bytes| bytes[40] ^= 4),
        ),
        case("book without its end", "book", &book[..book.len() - 1]),
        case("empty book", "book", TicketBook::new().encode().expose()),
    ]
}

fn todays() -> Value {
    let (member, pair) = conversation(Role::Member);
    let (blind, _) = conversation(Role::Blind);
    let mut all = tickets();
    all.push(member);
    all.push(blind);
    all.extend(bad_proofs(&pair));
    all.extend(by_words());
    all.extend(contents(&pair));
    Value::Array(all)
}

#[test]
fn vectors_are_what_todays_code_makes() {
    let todays = todays();
    if std::env::var_os("KITH_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&todays).unwrap();
        std::fs::write(FILE, text + "\n").unwrap();
    }
    let fixed: Value = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    let (fixed, todays) = (fixed.as_array().unwrap(), todays.as_array().unwrap());
    for (fixed, today) in fixed.iter().zip(todays) {
        assert_eq!(fixed, today, "{}", fixed["name"]);
    }
    assert_eq!(fixed.len(), todays.len());
}

#[test]
fn vectors_hold_good_and_bad_of_each_kind() {
    let all = todays();
    let expects = |what: &str| -> Vec<String> {
        all.as_array()
            .unwrap()
            .iter()
            .filter(|vector| vector["what"].as_str().unwrap().starts_with(what))
            .map(|vector| vector["expect"].as_str().unwrap().to_owned())
            .collect()
    };
    for what in [
        "ticket",
        "message 3",
        "words",
        "root proof",
        "first message",
        "welcome",
        "guide",
        "admission",
        "book",
    ] {
        let found = expects(what);
        assert!(found.iter().any(|expect| expect == "ok"), "{what}");
        let bad = found.iter().any(|expect| expect != "ok");
        assert!(bad || what == "words", "{what}");
    }
    let mut names: Vec<&str> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| vector["name"].as_str().unwrap())
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two vectors of one name");
}
