//! What devices keep for each other in the DHT: who holds what, and where a device is.
//!
//! Spec: `protocol/spec/record.md`, "Keys".

mod address;
mod announce;
mod ledger;

pub use address::{ADDRESS_RECORD_BYTES_MAX, AddressRecord, BadAddressRecord};
pub use announce::{Announcements, PER_DAY_MAX, RUSH_MAX};
pub use ledger::{Ledger, PROVIDERS_MAX};

use kith_object::id::{Cid, DeviceId, PackId};
use kith_object::key::{Secret, derive};

/// What something is called in the DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// What a key may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An object, by its root.
    Root(Cid),
    /// A pack.
    Pack(PackId),
    /// A device.
    Device(DeviceId),
}

impl Subject {
    /// Its key under that blinding secret.
    ///
    /// Spec: `protocol/spec/record.md`, "Keys".
    pub fn key(&self, blinding: &Secret) -> Key {
        let mut material = blinding.expose().to_vec();
        match self {
            Self::Root(cid) => material.extend_from_slice(&cid.to_bytes()),
            Self::Pack(pack) => {
                material.extend_from_slice(b"pack");
                material.extend_from_slice(&pack.0);
            }
            Self::Device(device) => {
                material.extend_from_slice(b"device");
                material.extend_from_slice(&device.0);
            }
        }
        Key(derive("kith dht key 1", &material))
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use kith_object::key::{DeviceKeys, Rng};
    use kith_object::time::Time;
    use serde_json::{Value, json};

    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/record.json");

    fn signed(keys: &DeviceKeys, said: &[u8]) -> Vec<u8> {
        [said, &keys.sign("kith address 1", said)].concat()
    }

    fn cases() -> Vec<Value> {
        let keys = DeviceKeys::generate(&mut Rng::from_seed([7; 32]));
        let addrs = ["/ip4/192.0.2.7/tcp/4001", "/ip4/192.0.2.7/udp/4001/quic-v1"];
        let addrs = addrs.map(str::to_owned);
        let good = AddressRecord::sign(&keys, Time(1_700_000_000_000), &addrs).unwrap();
        let said = &good.bytes()[..good.bytes().len() - 64];
        let mut cases = Vec::new();
        let mut case = |name: &str, bytes: Vec<u8>| {
            let read = AddressRecord::decode(&bytes);
            let expect = read
                .as_ref()
                .map_or_else(ToString::to_string, |_| "ok".into());
            let mut value = json!({
                "name": name,
                "kind": "address",
                "expect": expect,
                "record": HEXLOWER.encode(&bytes),
            });
            if let Ok(record) = read {
                value["device"] = HEXLOWER.encode(&record.device().0).into();
                value["addresses"] = record.addrs().into();
            }
            cases.push(value);
        };
        case("two addresses", good.bytes().to_vec());
        let long = vec!["a".repeat(255); 16];
        let long = AddressRecord::sign(&keys, Time(1), &long).unwrap();
        case("longest", long.bytes().to_vec());
        let altered = |place: usize, byte: u8| {
            let mut said = said.to_vec();
            said[place] = byte;
            signed(&keys, &said)
        };
        case("of a later version", altered(0, 2));
        case("of another device", altered(1, said[1] ^ 1));
        case(
            "without addresses",
            signed(&keys, &[&said[..41], &[0]].concat()),
        );
        case("count too high", altered(41, 3));
        case("count of seventeen", altered(41, 17));
        case(
            "an empty address",
            signed(&keys, &[&said[..41], &[1, 0]].concat()),
        );
        case(
            "no text",
            signed(&keys, &[&said[..41], &[1, 1, 0xff]].concat()),
        );
        case("bytes behind", signed(&keys, &[said, &[0]].concat()));
        case("cut short", said.to_vec());
        case("nothing", Vec::new());
        let mut unsigned = good.bytes().to_vec();
        *unsigned.last_mut().unwrap() ^= 1;
        case("signature altered", unsigned);
        let blinding = Secret::new([5; 32]);
        for (name, subject, bytes) in [
            (
                "key of a root",
                Subject::Root(Cid::of_block(b"x")),
                Cid::of_block(b"x").to_bytes(),
            ),
            (
                "key of a pack",
                Subject::Pack(PackId([6; 32])),
                [&b"pack"[..], &[6; 32]].concat(),
            ),
            (
                "key of a device",
                Subject::Device(keys.id()),
                [&b"device"[..], &keys.id().0].concat(),
            ),
        ] {
            cases.push(json!({
                "name": name,
                "kind": "key",
                "expect": "ok",
                "blinding": HEXLOWER.encode(blinding.expose()),
                "subject": HEXLOWER.encode(&bytes),
                "key": HEXLOWER.encode(&subject.key(&blinding).0),
            }));
        }
        cases
    }

    #[test]
    fn vectors_hold() {
        let today = cases();
        if std::env::var_os("KITH_BLESS").is_some() {
            std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
        }
        let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        assert_eq!(kept, today);
    }
}
