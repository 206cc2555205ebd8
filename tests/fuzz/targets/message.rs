//! Messages: Bitswap, gossip, the local network, the local API, tickets as text and bytes.

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use kith_object::id::DeviceId;
use kith_object::key::{Rng, derive};
use kith_object::time::Time;
use kith_protocol::api::{Event, Request};
use kith_protocol::exchange::message::Message as Bitswap;
use kith_protocol::gossip::message::Message as Gossip;
use kith_protocol::lan::{self, LanKey};
use kith_protocol::pairing::{Ticket, TicketBook};
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
