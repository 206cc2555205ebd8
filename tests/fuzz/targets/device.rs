//! A device on the whole: what it wakes from, and what others send it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use kith_core::book::Book;
use kith_core::device::{Channel, Device, Input, Setup, Waking};
use kith_crdt::access::{Newcomer, Role};
use kith_crdt::chain::Entry;
use kith_crdt::names::{ROOT, Record};
use kith_crdt::replica::{Replica, Resealed};
use kith_object::id::{DeviceId, EntryId, InodeId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, Words};
use kith_object::time::Time;
use kith_object::tree::FileKind;

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    Target::new("peers", peers),
    // A device is built each time: its machines, and its entries in several indices.
    Target::new("wake", wake).holds(200, 8 << 20).costs(30),
    Target::new("inbox", inbox).holds(400, 8 << 20).costs(60),
];

/// A mesh of two devices with a short history.
pub(crate) struct Fixture {
    /// The keys of the first.
    pub(crate) keys: DeviceKeys,
    /// The keys of the second.
    pub(crate) other: DeviceKeys,
    /// The mesh.
    pub(crate) space: SpaceId,
    /// All entries, in order.
    pub(crate) entries: Vec<Entry>,
}

/// Made once.
pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let mut rng = Rng::from_seed([0x5a; 32]);
        let root = Words::generate(&mut rng).root();
        let keys = DeviceKeys::generate(&mut rng);
        let other = DeviceKeys::generate(&mut rng);
        let now = Time(1_700_000_000_000);
        let (mut replica, mut entries) =
            Replica::create(&root, &keys, "first", now, &mut rng).expect("a new mesh");
        let newcomer = Newcomer {
            device: other.id(),
            agree: other.agree_public(),
            role: Role::Member,
            name: "second".to_owned(),
        };
        let admitted = replica.admit(&keys, now, &mut rng, &newcomer);
        entries.extend(admitted.expect("an admin admits"));
        for (number, name) in [(1u8, &b"folder"[..]), (2, b"another")] {
            let record = Record {
                inode: InodeId([number; 16]),
                replaces: Vec::new(),
                parent: ROOT,
                name: name.to_vec(),
                kind: FileKind::Folder,
                link: None,
                mtime_ms: 7,
                mode: 0o755,
                deleted: false,
            };
            let record = record.encode().expect("a sound version");
            let named = replica.names(&keys, now, &mut rng, vec![record]);
            entries.extend(named.expect("a member names"));
        }
        Fixture {
            keys,
            other,
            space: replica.space(),
            entries,
        }
    })
}

fn setup() -> Setup {
    let fixture = fixture();
    Setup {
        keys: DeviceKeys::from_bytes(&fixture.keys.to_bytes()),
        space: fixture.space,
        seed: [9; 32],
        spread_entries: true,
        connections: 64,
        unsettled: false,
        anti_entropy: true,
        resealed: Resealed::default(),
    }
}

fn peers(bytes: &[u8]) -> bool {
    let Some(book) = Book::decode(bytes) else {
        return false;
    };
    let mut again = Vec::new();
    for (device, addrs) in &book {
        again.extend_from_slice(&device.0);
        again.push(u8::try_from(addrs.len()).expect("a count of one byte"));
        for addr in addrs {
            let len = u16::try_from(addr.len()).expect("a length of two bytes");
            again.extend_from_slice(&len.to_le_bytes());
            again.extend_from_slice(addr.as_bytes());
        }
    }
    assert!(again == bytes, "a book has one form");
    true
}

/// A record with its length before it, as the input of `wake` has them.
pub(crate) fn record(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("short");
    [&len.to_le_bytes(), bytes].concat()
}

/// Records of the log, each after its length; the last may be cut.
fn wake(mut bytes: &[u8]) -> bool {
    let now = Time(1_700_000_100_000);
    let mut waking = Waking::new(now, setup());
    let mut entries: BTreeMap<EntryId, Bytes> = BTreeMap::new();
    let mut records = 0;
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (record, rest) = rest.split_at(len.min(rest.len()));
        if let Some(id) = waking.record(record) {
            entries.insert(id, Bytes::copy_from_slice(record));
        }
        records += 1;
        bytes = rest;
    }
    let mut device = waking.finish(records % 2 == 1, |id| entries.get(id).cloned());
    device.check_invariants();
    let known = device.replica().entries();
    assert!(
        known.iter().all(|id| entries.contains_key(id)),
        "it knows what the log holds"
    );
    drain(&mut device);
    !known.is_empty()
}

/// A channel, and a message on it from another member; published, if the channel is 2.
fn inbox(bytes: &[u8]) -> bool {
    let Some((channel, bytes)) = bytes.split_first() else {
        return false;
    };
    let now = Time(1_700_000_100_000);
    let fixture = fixture();
    let log: Vec<Bytes> = fixture
        .entries
        .iter()
        .map(|entry| entry.encode().into())
        .collect();
    let mut device = Device::open(now, setup(), &log);
    let peer: DeviceId = fixture.other.id();
    assert!(device.admits(&peer));
    device.handle(now, Input::Connected(peer));
    drain(&mut device);
    let bytes = Bytes::copy_from_slice(bytes);
    let input = match channel % 3 {
        0 => Input::Received {
            peer,
            channel: Channel::Bitswap,
            bytes,
        },
        1 => Input::Received {
            peer,
            channel: Channel::Sync,
            bytes,
        },
        _ => Input::Published {
            from: peer,
            message: Bytes::from_static(b"id"),
            bytes,
        },
    };
    device.handle(now, input);
    device.check_invariants();
    let effects = drain(&mut device);
    assert!(effects < 1000, "bounded work");
    effects > 0
}

/// Takes all that the device wants; how much it was.
fn drain(device: &mut Device) -> usize {
    std::iter::from_fn(|| device.poll_effect()).count()
}
