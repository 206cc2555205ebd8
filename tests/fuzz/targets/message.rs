//! Messages: Bitswap, gossip, the local network, the local API, tickets as text and bytes.

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use kith_object::id::{DeviceId, PackId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, derive};
use kith_object::time::Time;
use kith_protocol::api::{Event, Request};
use kith_protocol::bulk::get::{Tree, read_piece};
use kith_protocol::bulk::place::{decode_question, encode_question};
use kith_protocol::bulk::{Answer, GetRequest};
use kith_protocol::exchange::message::Message as Bitswap;
use kith_protocol::gossip::message::Message as Gossip;
use kith_protocol::holdings::message::Message;
use kith_protocol::holdings::{Holdings, Input};
use kith_protocol::lan::{self, LanKey};
use kith_protocol::pairing::{Ticket, TicketBook};
use kith_protocol::promise;
use kith_protocol::record::{AddressRecord, Ledger};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Target, proved};

/// The root key of the mesh in the local network.
const ROOT: DeviceId = DeviceId([7; 32]);

pub(super) const TARGETS: &[Target] = &[
    // An entry of 4 bytes has 120 in memory, and the message is read twice.
    Target::new("bitswap", bitswap).holds(160, 32 << 10),
    // A path of 2 bytes has 40 in memory.
    Target::new("gossip", gossip).holds(64, 32 << 10),
    // A tag is read into a list that grows, and then compared.
    Target::new("holdings", holdings).holds(64, 64 << 10),
    Target::new("promises", promises),
    Target::new("address", address),
    Target::new("address-proved", address_proved),
    Target::new("ledger", ledger),
    // It is answered as well.
    Target::new("get", get).holds(16, 128 << 10),
    Target::new("piece", piece).holds(16, 128 << 10),
    Target::new("where", place),
    Target::new("lan", lan),
    Target::new("lan-proved", lan_proved),
    Target::new("ticket", ticket),
    Target::new("ticket-bytes", ticket_bytes),
    Target::new("tickets", tickets),
    // JSON is read by way of its values.
    Target::new("api-request", api::<Request>).holds(200, 32 << 10),
    Target::new("api-event", api::<Event>).holds(200, 32 << 10),
];

fn bitswap(bytes: &[u8]) -> bool {
    let Ok(message) = Bitswap::decode(&Bytes::copy_from_slice(bytes)) else {
        return false;
    };
    // Others write it in other ways; what it says stays.
    let again = message.encode().into_bytes();
    assert_eq!(Bitswap::decode(&again).as_ref(), Ok(&message));
    assert_eq!(message.encode().len_bytes(), again.len());
    true
}

fn gossip(bytes: &[u8]) -> bool {
    let Ok(message) = Gossip::decode(&Bytes::copy_from_slice(bytes)) else {
        return false;
    };
    assert!(message.encode() == bytes, "a message has one form");
    true
}

/// What a device says of its own holdings and others'; a machine takes it.
fn holdings(bytes: &[u8]) -> bool {
    let decoded = Message::decode(bytes);
    if let Ok(message) = &decoded {
        assert!(message.encode() == bytes, "a message has one form");
    }
    let keys = |n| DeviceKeys::generate(&mut Rng::from_seed([n; 32]));
    let (peer, now) = (keys(7).id(), Time(1_700_000_000_000));
    let mut machine = Holdings::new(keys(8), SpaceId([9; 32]));
    machine.handle(now, Input::Members([peer, keys(8).id()].into()));
    machine.handle(now, Input::PeerUp(peer));
    let bytes = Bytes::copy_from_slice(bytes);
    machine.handle(now, Input::Frame { peer, bytes });
    machine.check_invariants();
    decoded.is_ok()
}

/// What a device asks to be promised, and what it is told.
fn promises(bytes: &[u8]) -> bool {
    let Ok(message) = promise::Message::decode(bytes) else {
        return false;
    };
    assert!(message.encode() == bytes, "a message has one form");
    true
}

/// A record of where a device listens.
fn address(bytes: &[u8]) -> bool {
    let Ok(record) = AddressRecord::decode(bytes) else {
        return false;
    };
    assert!(record.bytes() == bytes, "a record has one form");
    assert!((1..=16).contains(&record.addrs().len()));
    true
}

/// The same, signed by a device that means harm.
fn address_proved(said: &[u8]) -> bool {
    let keys = DeviceKeys::generate(&mut Rng::from_seed([7; 32]));
    let mut said = said.to_vec();
    if let Some(name) = said.get_mut(1..33) {
        name.copy_from_slice(&keys.id().0);
    }
    let signature = keys.sign("kith address 1", &said);
    said.extend_from_slice(&signature);
    address(&said)
}

/// What a device keeps for the DHT.
fn ledger(bytes: &[u8]) -> bool {
    let Some(ledger) = Ledger::recall(Time(1), bytes) else {
        return false;
    };
    ledger.check_invariants();
    true
}

/// A request for ranges of a pack.
fn get(bytes: &[u8]) -> bool {
    let Ok(request) = GetRequest::decode(bytes) else {
        return false;
    };
    assert!(request.encode() == bytes, "a request has one form");
    assert!((1..=64).contains(&request.boundaries.len()));
    // Whatever is asked for, what is sent is part of the pack.
    let blob = blob();
    let tree = tree();
    let read = |offset: u64, buffer: &mut [u8]| {
        let from = usize::try_from(offset).expect("within the blob");
        let there = blob.get(from..from + buffer.len());
        buffer.copy_from_slice(there.expect("within the blob"));
        Ok(())
    };
    let mut said = Vec::new();
    let answered = tree.answer(&request, read, &mut said);
    assert!(answered.is_ok() && said.len() < blob.len() + 1024);
    true
}

/// What is got from.
pub(crate) fn blob() -> Vec<u8> {
    (0..17_000_u32).map(|n| (n % 251) as u8).collect()
}

pub(crate) fn blob_id() -> PackId {
    PackId(*blake3::hash(&blob()).as_bytes())
}

pub(crate) fn tree() -> Tree {
    let blob = blob();
    let tree = Tree::of(&blob_id(), blob.len() as u64, &blob[..]);
    tree.expect("it is read").expect("it is that of the blob")
}

/// What of it a piece is.
pub(crate) const PIECE: (u64, u64) = (16_500, 400);

/// The answer to a request for a piece.
fn piece(answer: &[u8]) -> bool {
    let blob = blob();
    let (offset, len) = PIECE;
    let mut piece = vec![0; usize::try_from(len).expect("small")];
    if read_piece(&blob_id(), blob.len() as u64, offset, answer, &mut piece).is_err() {
        return false;
    }
    let from = usize::try_from(offset).expect("small");
    assert!(blob.get(from..from + piece.len()) == Some(&piece[..]));
    true
}

/// Where blocks lie: how many were asked about, then the answer.
fn place(bytes: &[u8]) -> bool {
    let Some((count, answer)) = bytes.split_first() else {
        return false;
    };
    let count = usize::from(*count);
    let question = decode_question(answer);
    assert!(question.is_none_or(|digests| encode_question(&digests) == answer));
    let Some(said) = Answer::decode(answer, count) else {
        return false;
    };
    assert!(said.encode() == answer, "an answer has one form");
    assert!(said.places.len() == count && said.packs.len() <= count);
    true
}

fn lan(datagram: &[u8]) -> bool {
    let found = lan::sealed_in(datagram);
    assert!(found.len() <= 4, "bounded work");
    let key = LanKey::of(&ROOT);
    let mut notices = found.iter().filter_map(|sealed| lan::open(&key, sealed));
    notices.next().is_some()
}

/// What is sealed in a notice.
fn lan_proved(plain: &[u8]) -> bool {
    let secret = derive("kith lan key 1", &ROOT.0);
    let payload = Payload {
        msg: plain,
        aad: &[1],
    };
    let nonce = [3; 24];
    let sealed = XChaCha20Poly1305::new(&secret.into())
        .encrypt(&XNonce::from(nonce), payload)
        .expect("short enough");
    let key = LanKey::of(&ROOT);
    let Some(notice) = lan::open(&key, &[&[1][..], &nonce, &sealed].concat()) else {
        return false;
    };
    let datagram = lan::encode(&key, &mut Rng::from_seed([4; 32]), notice);
    let found = lan::sealed_in(&datagram);
    let again: Vec<_> = found
        .iter()
        .filter_map(|sealed| lan::open(&key, sealed))
        .collect();
    assert_eq!(again, [notice], "what is heard can be said");
    true
}

fn ticket(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(ticket) = Ticket::parse(text) else {
        return false;
    };
    let again = Ticket::parse(&ticket.to_text()).expect("a ticket's text");
    assert!(again == ticket);
    ticket_bytes(&ticket.encode())
}

fn ticket_bytes(bytes: &[u8]) -> bool {
    let Ok(ticket) = Ticket::decode(bytes) else {
        return false;
    };
    assert!(ticket.encode()[..] == *bytes, "a ticket has one form");
    let again = Ticket::parse(&ticket.to_text()).expect("a ticket's text");
    assert!(again == ticket);
    let _ = ticket.is_expired(Time(0));
    true
}

/// The book of tickets, its proof put on.
fn tickets(body: &[u8]) -> bool {
    assert!(
        TicketBook::decode(body).is_err() || body.len() > 32,
        "a book ends with a proof"
    );
    let bytes = proved::<32>("kith ticket book 1", body);
    let Ok(book) = TicketBook::decode(&bytes) else {
        return false;
    };
    assert!(book.encode().expose() == bytes, "a book has one form");
    true
}

fn api<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(said) = serde_json::from_slice::<T>(bytes) else {
        return false;
    };
    let value = serde_json::to_value(&said).expect("it came as JSON");
    let line = serde_json::to_vec(&said).expect("it came as JSON");
    assert!(!line.contains(&b'\n'), "it stands on one line");
    let again: T = serde_json::from_slice(&line).expect("what is written can be read");
    assert_eq!(serde_json::to_value(&again).ok(), Some(value));
    true
}
