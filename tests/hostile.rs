//! Devices of the mesh whose programs break the rules, one test for each way: what it costs the others is bounded, and what an honest device has is had.
//!
//! The victim is the built program; what attacks it writes its bytes by hand. Who is a stranger, or was removed, gets no stream at all (`impolite.rs`, `public.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kith_node::config::Home;
use kith_object::id::{Cid, DeviceId, PackId};
use kith_protocol::bulk::{Answer, GetRequest, PackAt};
use kith_protocol::exchange::message::{Block, Entry, EntryKind, Message, Prefix, Presence};
use kith_tests::traitor::{Traitor, varint};
use kith_tests::{Kith, Place, Running, files_below, noise, number, text, wait_until};
use serde_json::Value;

const BITSWAP: &str = "/ipfs/bitswap/1.2.0";
const SYNC: &str = "/kith/sync/1";
const PACKS: &str = "/iroh-bytes/4";
const WHERE: &str = "/kith/where/1";
/// What an attack may cost the victim in memory at its highest: twice what its queues hold for one device, and as much again for the exchange.
const MEMORY_KB: u64 = 128 << 10;
/// Bytes of the file that the victim wants: some hundred blocks.
const WANTED_BYTES: usize = 6_000_000;

/// A mesh of three: one that is attacked, one that is honest, and the key of the third.
struct Mesh {
    place: Place,
    victim: Kith,
    honest: Kith,
    seed: [u8; 32],
    traitor: DeviceId,
    before_kb: u64,
}

impl Mesh {
    fn new() -> Self {
        let place = Place::new(env!("CARGO_BIN_EXE_kith"));
        let (mut victim, _) = place.first("victim");
        victim.up();
        let mut honest = place.join("honest", &victim);
        honest.up();
        let mut third = place.join("traitor", &victim);
        third.up();
        third.agrees_with(&victim);
        third.agrees_with(&honest);
        third.stop();
        let identity = Home::at(third.home()).identity().unwrap();
        let before_kb = highest_kb(&victim);
        Self {
            seed: *identity.keys.sign_key().seed().expose(),
            traitor: identity.keys.id(),
            place,
            victim,
            honest,
            before_kb,
        }
    }

    /// Stands before the victim under the third's name.
    fn attack(&self) -> Traitor {
        self.before(&self.victim)
    }

    fn before(&self, device: &Kith) -> Traitor {
        let status = device.status();
        let addrs = status["inside"].as_array().unwrap().iter();
        let mut addrs = addrs.map(|addr| addr.as_str().unwrap());
        let addr = addrs.find(|addr| addr.contains("/tcp/")).unwrap();
        Traitor::connect(self.seed, addr).unwrap()
    }

    /// The honest one puts a file and goes, once the victim knows of it.
    fn put_and_go(&mut self) -> (Vec<u8>, String) {
        let body = noise(5, WANTED_BYTES);
        let cid = self.honest.put_bytes(&body, "/wanted");
        self.victim.agrees_with(&self.honest);
        self.honest.stop();
        (body, cid)
    }

    /// The victim begins to get it, and waits for whoever has it.
    fn begin_to_get(&self, cid: &str) -> Running {
        let dest = self.place.file("got");
        let args = ["get", "--wait", cid, "-o", dest.to_str().unwrap()];
        Running::start(self.victim.command(args))
    }

    /// With the honest one there, it comes.
    fn comes(&mut self, getting: Running, body: &[u8]) {
        self.honest.up();
        getting.finish().expect_code(0);
        assert!(std::fs::read(self.place.file("got")).unwrap() == body);
    }

    fn cheap(&self) {
        let grown = highest_kb(&self.victim).saturating_sub(self.before_kb);
        assert!(grown < MEMORY_KB, "{grown} KiB more than before");
    }

    /// The victim has ended it, and remembers.
    fn is_kept_out(&self, traitor: &Traitor) {
        wait_until("the connection is cut", || {
            traitor.is_cut_off().then_some(())
        });
        let told = self.victim.ok(["doctor"]).values();
        let peer = told
            .iter()
            .find(|value| value["device"] == self.traitor.to_string())
            .unwrap();
        let why = text(peer, "why");
        assert!(why.contains("broke the rules"), "{why}");
        // Even if it comes at once.
        let again = self.attack();
        wait_until("it is not let in", || again.is_cut_off().then_some(()));
    }
}

/// The most memory that a daemon has had.
fn highest_kb(device: &Kith) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", device.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn sealed() -> Prefix {
    Prefix {
        version: 1,
        codec: 0x55,
        hash: 0x1e,
        hash_len: 32,
    }
}

fn blocks(blocks: Vec<Bytes>) -> Vec<u8> {
    let blocks = blocks.into_iter().map(|data| Block {
        prefix: sealed(),
        data,
    });
    let message = Message {
        blocks: blocks.collect(),
        ..Message::default()
    };
    message.encode().into_bytes().to_vec()
}

/// Reads what the victim wants, and answers each message with what `say` makes of it, until the connection ends or enough was said.
fn answer(traitor: &Traitor, mut say: impl FnMut(Vec<Entry>) -> Option<Vec<u8>>) {
    let mut out = None;
    while let Some((protocol, mut stream)) = traitor.accept() {
        if protocol != BITSWAP {
            continue;
        }
        while let Ok(Some(message)) = stream.read_message() {
            let message = Message::decode(&message.into()).unwrap();
            let wanted: Vec<Entry> = message
                .entries
                .into_iter()
                .filter(|entry| entry.kind != EntryKind::Cancel)
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let Some(said) = say(wanted) else { return };
            if out.is_none() {
                out = traitor.open(BITSWAP).ok();
            }
            let written = out.as_mut().map(|out| out.write_message(&said).is_ok());
            if written != Some(true) {
                return;
            }
        }
    }
}

/// A block that a member may have, had as any member has it.
fn asked_of(traitor: &Traitor, cid: Cid) -> Bytes {
    let want = Entry {
        cid,
        priority: 1,
        kind: EntryKind::Block,
        send_dont_have: true,
        once: true,
    };
    let message = Message {
        entries: vec![want],
        ..Message::default()
    };
    let mut out = traitor.open(BITSWAP).unwrap();
    out.write_message(&message.encode().into_bytes()).unwrap();
    while let Some((protocol, mut stream)) = traitor.accept() {
        while protocol == BITSWAP
            && let Ok(Some(message)) = stream.read_message()
        {
            let message = Message::decode(&message.into()).unwrap();
            if let Some(block) = message.blocks.into_iter().next() {
                assert!(cid.verifies(&block.data));
                return block.data;
            }
        }
    }
    panic!("the connection ended");
}

#[test]
fn wrong_bytes_are_never_taken_and_end_the_connection() {
    // Of another block, altered, cut short, and with more behind.
    let lies: [fn(&[u8]) -> Bytes; 3] = [
        |_| noise(1, 50_000).into(),
        |_| Bytes::from_static(b""),
        |_| noise(2, 2 << 20).into(),
    ];
    for lie in lies {
        let mut mesh = Mesh::new();
        let (body, cid) = mesh.put_and_go();
        let traitor = mesh.attack();
        let getting = mesh.begin_to_get(&cid);
        answer(&traitor, |wanted| {
            let lies = wanted.iter().map(|entry| lie(&entry.cid.to_bytes()));
            Some(blocks(lies.take(2).collect()))
        });
        mesh.is_kept_out(&traitor);
        mesh.comes(getting, &body);
        mesh.cheap();
    }
}

#[test]
fn who_says_that_it_has_all_and_sends_nothing_is_passed_over() {
    let mut mesh = Mesh::new();
    let (body, cid) = mesh.put_and_go();
    let traitor = mesh.attack();
    let getting = mesh.begin_to_get(&cid);
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            answer(&traitor, |wanted| {
                asked.fetch_add(wanted.len(), Ordering::SeqCst);
                let presences = wanted.iter().map(|entry| Presence {
                    cid: entry.cid,
                    have: true,
                });
                let message = Message {
                    presences: presences.collect(),
                    ..Message::default()
                };
                Some(message.encode().into_bytes().to_vec())
            });
        });
        wait_until("it was asked", || {
            (asked.load(Ordering::SeqCst) > 0).then_some(())
        });
        mesh.comes(getting, &body);
        mesh.cheap();
        mesh.victim.kill();
    });
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked < 2000, "asked of it {asked} times");
}

#[test]
fn who_stops_in_the_middle_of_a_message_holds_nobody_up() {
    let mut mesh = Mesh::new();
    let (body, cid) = mesh.put_and_go();
    let traitor = mesh.attack();
    // As much as one device may have the victim hold, promised on many streams.
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = traitor.open(BITSWAP).unwrap();
        stream.write(&varint(4 << 20)).unwrap();
        stream.write(&[7; 1000]).unwrap();
        streams.push(stream);
    }
    let getting = mesh.begin_to_get(&cid);
    mesh.comes(getting, &body);
    mesh.cheap();
}

#[test]
fn flood_of_wants_costs_little() {
    let mut mesh = Mesh::new();
    let (body, cid) = mesh.put_and_go();
    let traitor = mesh.attack();
    let mut stream = traitor.open(BITSWAP).unwrap();
    let getting = mesh.begin_to_get(&cid);
    // It never reads what is answered; beyond what is remembered of one device its wants are refused, and then passed over.
    for round in 0..2000_u64 {
        let entries = (0..1000).map(|n| Entry {
            cid: Cid::of_block(&(round * 1000 + n).to_le_bytes()),
            priority: 1,
            kind: EntryKind::Have,
            send_dont_have: true,
            once: false,
        });
        let message = Message {
            entries: entries.collect(),
            ..Message::default()
        };
        stream
            .write_message(&message.encode().into_bytes())
            .unwrap();
        if round == 1000 {
            // In the middle of it.
            mesh.honest.up();
        }
    }
    getting.finish().expect_code(0);
    assert!(std::fs::read(mesh.place.file("got")).unwrap() == body);
    mesh.cheap();
    assert!(!traitor.is_cut_off(), "it may want what it likes");
}

#[test]
fn thousands_of_streams_end_the_connection() {
    let mesh = Mesh::new();
    let traitor = mesh.attack();
    let mut streams = Vec::new();
    for _ in 0..5000 {
        match traitor.open(BITSWAP) {
            Ok(stream) => streams.push(stream),
            Err(_) => break,
        }
    }
    assert!(streams.len() <= 200, "{} streams", streams.len());
    mesh.is_kept_out(&traitor);
    mesh.cheap();
}

#[test]
fn frame_that_is_too_long_ends_the_connection_before_it_is_read() {
    for protocol in [BITSWAP, SYNC] {
        let mesh = Mesh::new();
        let traitor = mesh.attack();
        let mut stream = traitor.open(protocol).unwrap();
        let len = 5_u32 << 20;
        let prefix = if protocol == BITSWAP {
            varint(5 << 20)
        } else {
            len.to_le_bytes().to_vec()
        };
        stream.write(&prefix).unwrap();
        // Until it is cut off; it may not be heard to the end.
        let piece = vec![9; 64 << 10];
        for _ in 0..80 {
            if stream.write(&piece).is_err() {
                break;
            }
        }
        mesh.is_kept_out(&traitor);
        mesh.cheap();
    }
}

#[test]
fn what_is_sent_again_and_again_ends_the_connection() {
    let mut mesh = Mesh::new();
    let body = noise(5, WANTED_BYTES);
    let cid = mesh.honest.put_bytes(&body, "/wanted");
    mesh.victim.agrees_with(&mesh.honest);
    // One block that it will be asked for, as honest as can be, and that without end.
    let root: Cid = cid.parse().unwrap();
    let block = asked_of(&mesh.before(&mesh.honest), root);
    mesh.honest.stop();
    let traitor = mesh.attack();
    let getting = mesh.begin_to_get(&cid);
    answer(&traitor, |wanted| {
        let asked = wanted.iter().any(|entry| entry.cid == root);
        asked.then(|| blocks(vec![block.clone()]))
    });
    let mut stream = traitor.open(BITSWAP).unwrap();
    let mut sent = 0;
    let again = blocks(vec![block.clone(); 1000]);
    while stream.write_message(&again).is_ok() {
        sent += 1000 * block.len();
        assert!(sent < 256 << 20, "it goes on for ever");
    }
    mesh.is_kept_out(&traitor);
    mesh.comes(getting, &body);
    mesh.cheap();
}

#[test]
fn false_addresses_of_another_device_lead_nobody_astray() {
    let mut mesh = Mesh::new();
    let honest: DeviceId = text(&mesh.honest.status(), "device").parse().unwrap();
    let traitor = mesh.attack();
    let mut stream = traitor.open(SYNC).unwrap();
    for round in 0..20 {
        // An address book: first who tells it, without addresses.
        let mut book = [&[1][..], &mesh.traitor.0, &[0], &honest.0, &[16]].concat();
        for n in 0..16 {
            let lie = format!("/ip4/127.0.0.{}/tcp/{}", 2 + n, 1000 + round);
            book.extend(u16::try_from(lie.len()).unwrap().to_le_bytes());
            book.extend(lie.as_bytes());
        }
        let len = u32::try_from(book.len()).unwrap();
        stream
            .write(&[&len.to_le_bytes()[..], &book].concat())
            .unwrap();
    }
    // Half a million of them would be no better.
    let (body, cid) = mesh.put_and_go();
    let getting = mesh.begin_to_get(&cid);
    mesh.comes(getting, &body);
    mesh.cheap();
}

#[test]
fn who_dies_in_the_middle_costs_nothing_twice() {
    let mut mesh = Mesh::new();
    let (body, cid) = mesh.put_and_go();
    let getting = mesh.begin_to_get(&cid);
    // The honest one itself, killed while it sends: slowly, so that it is in the middle.
    mesh.honest
        .up_with(&["--listen", "127.0.0.1", "--max-upload", "1M"]);
    wait_until("some of it came", || {
        let blocks = number(&mesh.victim.status(), "blocks");
        (blocks > 8).then_some(())
    });
    mesh.honest.kill();
    let came = number(&mesh.victim.status(), "disk_bytes");
    assert!(came < WANTED_BYTES as u64, "it was not in the middle");
    mesh.comes(getting, &body);
    // All in all each byte came once: what came before the end is not fetched again.
    let received: u64 = mesh.victim.status()["traffic"]
        .as_array()
        .unwrap()
        .iter()
        .map(|traffic| number(traffic, "received"))
        .sum();
    let most = (WANTED_BYTES + WANTED_BYTES / 10 + (1 << 20)) as u64;
    assert!(received < most, "{received} bytes came");
    let again = mesh.place.file("again");
    let ran = mesh.victim.ok(["get", &cid, "-o", again.to_str().unwrap()]);
    assert_eq!(ran.event("got")["from"], serde_json::json!([]));
}

#[test]
fn what_nobody_honest_has_is_named_with_those_that_had_it() {
    let mut mesh = Mesh::new();
    let (_, cid) = mesh.put_and_go();
    let traitor = mesh.attack();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            answer(&traitor, |wanted| {
                let presences = wanted.iter().map(|entry| Presence {
                    cid: entry.cid,
                    have: false,
                });
                let message = Message {
                    presences: presences.collect(),
                    ..Message::default()
                };
                Some(message.encode().into_bytes().to_vec())
            });
        });
        let dest = mesh.place.file("out");
        let dest = dest.to_str().unwrap();
        let failed = mesh.victim.run(["get", "/wanted", "-o", dest]);
        assert_eq!(failed.failure_kind(), "unreachable");
        let said = failed.failure_text();
        assert!(said.contains(&cid), "which block: {said}");
        assert!(
            said.contains("last known holder: honest, which put it and is away"),
            "{said}"
        );
        let failed = mesh.victim.run(["get", &cid, "-o", dest]);
        let said = failed.failure_text();
        assert!(said.contains(&cid) && said.contains("honest"), "{said}");
        mesh.victim.kill();
    });
}

/// Closed packs of the honest one, by name and length.
fn packs_of(device: &Kith) -> Vec<PackAt> {
    let files = files_below(&device.home().join("packs")).into_iter();
    let packs = files.filter_map(|file| {
        let pack = file.file_stem()?.to_str()?.parse().ok()?;
        let bytes = u32::try_from(file.metadata().ok()?.len()).ok()?;
        let blocks = 1;
        Some(PackAt {
            pack,
            bytes,
            blocks,
        })
    });
    packs.collect()
}

/// What a traitor does with a request for a piece of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    /// Sends other bytes, as many as were asked for.
    Lies,
    /// Says nothing, and leaves the stream open.
    Stalls,
    /// Sends without end.
    Floods,
    /// Goes in the middle.
    Dies,
}

/// The victim pins what the honest one has, while a traitor says that it has all of it too.
fn pins_beside(deed: Deed) -> (Mesh, Traitor, Value) {
    let mut mesh = Mesh::new();
    let body = noise(6, WANTED_BYTES);
    let cid = mesh.honest.put_bytes(&body, "/wanted");
    mesh.victim.agrees_with(&mesh.honest);
    // Its packs are closed then.
    mesh.honest.stop();
    mesh.honest.up();
    let packs = packs_of(&mesh.honest);
    let traitor = mesh.attack();
    wait_until("both are there", || {
        (number(&mesh.victim.status(), "connected") == 2).then_some(())
    });
    let asked = AtomicUsize::new(0);
    let pinned = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            while let Some((protocol, mut stream)) = traitor.accept() {
                if protocol == WHERE {
                    let question = stream.read_to_end().unwrap_or_default();
                    let count = question.len() / 32;
                    let places = (0..count).map(|n| u16::try_from(n % packs.len()).ok());
                    let answer = Answer {
                        packs: packs.clone(),
                        places: places.collect(),
                    };
                    let _ = stream.write(&answer.encode());
                    let _ = stream.close();
                } else if protocol == PACKS {
                    asked.fetch_add(1, Ordering::Relaxed);
                    match deed {
                        Deed::Lies | Deed::Dies => {
                            let request = stream.read_to_end().unwrap_or_default();
                            let pack = PackId(*request[1..33].first_chunk().unwrap());
                            let at = packs.iter().find(|at| at.pack == pack).unwrap();
                            let mut bytes = u64::from(at.bytes).to_le_bytes().to_vec();
                            bytes.resize(1 << 20, 7);
                            if deed == Deed::Dies {
                                bytes.truncate(100_000);
                                let _ = stream.write(&bytes);
                                return;
                            }
                            let _ = stream.write(&bytes);
                            let _ = stream.close();
                        }
                        Deed::Floods => while stream.write(&[7; 1 << 16]).is_ok() {},
                        Deed::Stalls => {}
                    }
                }
                if deed == Deed::Stalls {
                    held.push(stream);
                }
            }
        });
        let pinned = mesh.victim.ok(["pin", &cid, "--wait"]).event("pinned");
        mesh.cheap();
        // The traitor sees the end of it.
        mesh.victim.stop();
        pinned
    });
    assert_eq!(number(&pinned, "missing"), 0);
    assert!(asked.load(Ordering::Relaxed) > 0, "it was asked");
    assert!(mesh.victim.cat(&cid) == body);
    (mesh, traitor, pinned)
}

#[test]
fn false_pieces_of_packs_are_never_taken() {
    let (mesh, traitor, _) = pins_beside(Deed::Lies);
    assert!(traitor.is_cut_off());
    drop(mesh);
}

#[test]
fn who_says_nothing_of_a_pack_is_passed_over() {
    pins_beside(Deed::Stalls);
}

#[test]
fn who_sends_more_of_a_pack_than_was_asked_for_is_cut_off() {
    let (_, traitor, _) = pins_beside(Deed::Floods);
    assert!(traitor.is_cut_off());
}

#[test]
fn who_dies_in_the_middle_of_a_pack_is_passed_over() {
    pins_beside(Deed::Dies);
}

#[test]
fn requests_for_packs_that_are_none_cost_nothing() {
    let mesh = Mesh::new();
    mesh.victim.put_bytes(&noise(7, 2_000_000), "/secret");
    let traitor = mesh.attack();
    let ask = |protocol: &str, bytes: &[u8]| {
        let mut stream = traitor.open(protocol).unwrap();
        let _ = stream.write(bytes);
        let _ = stream.close();
        stream.read_to_end().unwrap_or_default()
    };
    // A pack that is not here: nothing is read, nothing is said.
    for n in 0..50_u8 {
        let request = GetRequest::piece(PackId([n; 32]), 0, 1 << 20);
        assert!(ask(PACKS, &request.encode()).is_empty());
    }
    assert_eq!(number(&mesh.victim.status()["bulk"], "lacked"), 50);
    // No requests at all.
    for bytes in [&b""[..], &[0; 40], &[9; 4096], &[0xff; 100_000]] {
        assert!(ask(PACKS, bytes).is_empty());
    }
    for bytes in [&b""[..], &[0; 31], &[0; 33], &vec![7; 32 * 8193]] {
        assert!(ask(WHERE, bytes).is_empty());
    }
    let status = mesh.victim.status();
    assert_eq!(number(&status["bulk"], "lacked"), 50);
    assert_eq!(number(&status["bulk"], "pieces_sent"), 0);
    assert!(!traitor.is_cut_off());
    // More streams than anybody needs.
    let mut streams = Vec::new();
    for _ in 0..200 {
        match traitor.open(PACKS) {
            Ok(stream) => streams.push(stream),
            Err(_) => break,
        }
    }
    assert!(streams.len() <= 100, "{}", streams.len());
    drop(streams);
    mesh.is_kept_out(&traitor);
    mesh.cheap();
}
