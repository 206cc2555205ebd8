//! Entries and the records in them.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use kith_crdt::access::{Genesis, Member, Removal};
use kith_crdt::catalogue::CatalogueRecord;
use kith_crdt::chain::{
    self, Entry, Header, Nonce, Part, SealKind, padded_len, parts, payload_root, push_record,
};
use kith_crdt::document::{self, Place};
use kith_crdt::epoch::{Envelope, EpochRecord, Link};
use kith_crdt::names::Record as VersionRecord;
use kith_object::key::Secret;

use super::{Target, fixture};

pub(super) const TARGETS: &[Target] = &[
    Target::new("entry", entry),
    Target::new("payload", payload),
    Target::new("part", part),
    Target::new("part-proved", part_proved),
    Target::new("records", records),
    Target::new("version", version),
    Target::new("epoch", epoch),
    // A member's key is tried, which takes a sealing.
    Target::new("member", member).costs(4),
    Target::new("catalogue", catalogue),
    // The change is built anew to be compared, and Automerge reckons with columns of some KiB.
    Target::new("change", change).holds(200, 256 << 10).costs(4),
];

fn entry(bytes: &[u8]) -> bool {
    if let Ok((header, taken)) = Header::decode(bytes) {
        assert!(
            bytes.get(..taken) == Some(&header.encode()),
            "a header has one form"
        );
        assert_eq!(header.associated(0, 1).len(), taken + 4);
    }
    let Ok(entry) = Entry::decode(bytes) else {
        return false;
    };
    assert!(entry.encode() == bytes, "an entry has one form");
    assert_eq!(entry.id(), entry.header().id());
    let bare = entry.without_payload();
    assert_eq!(
        Entry::decode(&bare.encode()).map(|entry| entry.id()).ok(),
        Some(entry.id())
    );
    if let Some(payload) = entry.payload() {
        let whole = bare.with_payload(payload.clone()).expect("its own payload");
        assert!(whole.encode() == bytes);
        assert!(entry.parts().is_some_and(|parts| !parts.is_empty()));
    }
    let _ = entry.is_signed();
    true
}

fn payload(bytes: &[u8]) -> bool {
    let Ok(list) = parts(bytes) else {
        return false;
    };
    let count = u16::try_from(list.len()).expect("a count of two bytes");
    let mut again = count.to_le_bytes().to_vec();
    for part in &list {
        again.push(part.seal as u8);
        again.extend_from_slice(
            &u32::try_from(part.bytes.len())
                .expect("short")
                .to_le_bytes(),
        );
        again.extend_from_slice(part.bytes);
    }
    assert!(again == bytes, "a payload has one form");
    let root = payload_root(&list);
    assert_eq!(payload_root(&parts(&again).expect("the same")), root);
    true
}

/// The header of an entry to bind parts to.
fn header() -> &'static Header {
    fixture().entries[0].header()
}

/// A part that is not sealed.
fn part(bytes: &[u8]) -> bool {
    let part = Part {
        seal: SealKind::Open,
        bytes,
    };
    let Some(plain) = part.open(header(), 0, 1, None) else {
        return false;
    };
    let mut again = vec![plain.codec as u8];
    again.extend_from_slice(
        &u32::try_from(plain.body.len())
            .expect("short")
            .to_le_bytes(),
    );
    again.extend_from_slice(&plain.body);
    assert!(again == bytes, "a part has one form");
    true
}

/// What is in a sealed part.
fn part_proved(plain: &[u8]) -> bool {
    let key = Secret::new([5; 32]);
    let nonce = [6; 24];
    let payload = Payload {
        msg: plain,
        aad: &header().associated(0, 1),
    };
    let derived = key.derive("kith change seal 1");
    let sealed = XChaCha20Poly1305::new(derived.expose().into())
        .encrypt(&XNonce::from(nonce), payload)
        .expect("short enough");
    let bytes = [&nonce[..], &sealed].concat();
    let part = Part {
        seal: SealKind::Change,
        bytes: &bytes,
    };
    assert!(
        part.open(header(), 1, 2, Some(&key)).is_none(),
        "bound to its place"
    );
    let Some(opened) = part.open(header(), 0, 1, Some(&key)) else {
        return false;
    };
    let mut again = vec![opened.codec as u8];
    again.extend_from_slice(
        &u32::try_from(opened.body.len())
            .expect("short")
            .to_le_bytes(),
    );
    again.extend_from_slice(&opened.body);
    again.resize(padded_len(again.len()), 0);
    assert!(again == plain, "a sealed part has one form");
    true
}

fn records(bytes: &[u8]) -> bool {
    let Ok(list) = chain::records(bytes) else {
        return false;
    };
    let mut again = Vec::new();
    for record in &list {
        push_record(&mut again, record.kind, record.body);
    }
    assert!(again == bytes, "a list of records has one form");
    true
}

fn version(bytes: &[u8]) -> bool {
    let Ok(record) = VersionRecord::decode(bytes) else {
        return false;
    };
    let again = record.encode().expect("what was read can be written");
    assert!(again == bytes, "a version has one form");
    true
}

fn epoch(bytes: &[u8]) -> bool {
    let forms = [
        EpochRecord::decode(bytes).map(|record| record.encode()),
        Link::decode(bytes).map(|link| link.encode()),
        Envelope::decode(bytes).map(|envelope| envelope.encode()),
    ];
    one_form(bytes, forms)
}

fn member(bytes: &[u8]) -> bool {
    let forms = [
        Genesis::decode(bytes).map(|genesis| genesis.encode()),
        Member::decode(bytes).map(|member| member.encode()),
        Removal::decode(bytes).map(|removal| removal.encode()),
    ];
    one_form(bytes, forms)
}

fn one_form<const N: usize>(bytes: &[u8], forms: [Option<Vec<u8>>; N]) -> bool {
    let mut taken = false;
    for form in forms.into_iter().flatten() {
        assert!(form == bytes, "a record has one form");
        taken = true;
    }
    taken
}

fn catalogue(bytes: &[u8]) -> bool {
    match CatalogueRecord::decode(bytes) {
        None => false,
        // Of a later version: passed over.
        Some(CatalogueRecord::Unknown) => true,
        Some(record) => {
            assert!(record.encode() == bytes, "a record has one form");
            true
        }
    }
}

/// The place of a change: chain, entry, number, first operation, and how many hashes follow; then the change.
fn change(bytes: &[u8]) -> bool {
    let Some((place, change)) = place(bytes) else {
        return false;
    };
    let Ok(read) = document::read(&place, change) else {
        return false;
    };
    let again = document::author(&place, &read.records);
    assert!(again.as_deref() == Some(change), "a change has one form");
    assert!(read.op_max >= place.start_op);
    true
}

fn place(bytes: &[u8]) -> Option<(Place, &[u8])> {
    let (nonce, rest) = bytes.split_first_chunk::<16>()?;
    let (numbers, rest) = rest.split_first_chunk::<24>()?;
    let mut numbers = numbers
        .as_chunks::<8>()
        .0
        .iter()
        .map(|number| u64::from_le_bytes(*number));
    let (entry_seq, seq, start_op) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let (count, rest) = rest.split_first()?;
    let (hashes, change) = rest.split_at_checked(usize::from(*count) * 32)?;
    let place = Place {
        nonce: Nonce(*nonce),
        entry_seq,
        seq,
        start_op,
        dependencies: hashes.as_chunks::<32>().0.to_vec(),
    };
    Some((place, change))
}
