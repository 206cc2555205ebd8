//! Where a device says that it listens, signed by itself.

use kith_object::id::DeviceId;
use kith_object::key::{self, DeviceKeys};
use kith_object::time::{Span, Time};

/// Longest record: 16 addresses of 255 bytes.
pub const ADDRESS_RECORD_BYTES_MAX: usize = HEAD_BYTES + ADDRS_MAX * (1 + 255) + SIGNATURE_BYTES;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 32 + 8 + 1;
const SIGNATURE_BYTES: usize = 64;
const ADDRS_MAX: usize = 16;
const DOMAIN: &str = "kith address 1";
/// How far ahead of the clock a record may be.
const AHEAD_MAX: Span = Span::from_secs(600);
/// How old a record may be to be of use.
const LIFE: Span = Span::from_secs(7 * 24 * 3600);

/// Where a device listens, in its own words.
///
/// Spec: `protocol/spec/record.md`, "Address record".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRecord {
    device: DeviceId,
    sequence: u64,
    addrs: Vec<String>,
    bytes: Vec<u8>,
}

/// Why bytes are no address record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddressRecord {
    /// Cut short, too long, or not in its one form.
    #[error("malformed")]
    Malformed,
    /// Of a version that is not known here.
    #[error("unknown version")]
    Version,
    /// Somebody else wrote it.
    #[error("not signed by its device")]
    Signature,
}

impl AddressRecord {
    /// Says where the device listens; `None` without any address. Those that are too long, and those after the sixteenth, are left out.
    pub fn sign(keys: &DeviceKeys, now: Time, addrs: &[String]) -> Option<Self> {
        let addrs: Vec<String> = addrs
            .iter()
            .filter(|addr| (1..=255).contains(&addr.len()))
            .take(ADDRS_MAX)
            .cloned()
            .collect();
        if addrs.is_empty() {
            return None;
        }
        let device = keys.id();
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&device.0);
        bytes.extend_from_slice(&now.0.to_le_bytes());
        bytes.push(u8::try_from(addrs.len()).unwrap_or(u8::MAX));
        for addr in &addrs {
            bytes.push(u8::try_from(addr.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(addr.as_bytes());
        }
        let signature = keys.sign(DOMAIN, &bytes);
        bytes.extend_from_slice(&signature);
        Some(Self {
            device,
            sequence: now.0,
            addrs,
            bytes,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BadAddressRecord`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadAddressRecord> {
        if bytes.len() > ADDRESS_RECORD_BYTES_MAX {
            return Err(BadAddressRecord::Malformed);
        }
        let (said, signature) = bytes
            .split_last_chunk::<SIGNATURE_BYTES>()
            .ok_or(BadAddressRecord::Malformed)?;
        let (version, rest) = said.split_first().ok_or(BadAddressRecord::Malformed)?;
        if *version != VERSION {
            return Err(BadAddressRecord::Version);
        }
        let (device, sequence, addrs) = parts(rest).ok_or(BadAddressRecord::Malformed)?;
        if !key::verify(&device, DOMAIN, said, signature) {
            return Err(BadAddressRecord::Signature);
        }
        Ok(Self {
            device,
            sequence,
            addrs,
            bytes: bytes.to_vec(),
        })
    }

    /// Whose addresses they are.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Where it listens.
    pub fn addrs(&self) -> &[String] {
        &self.addrs
    }

    /// As it goes over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether this one holds, of two of one device.
    pub fn is_newer(&self, other: &Self) -> bool {
        (self.sequence, &self.bytes) > (other.sequence, &other.bytes)
    }

    /// Whether it may be kept: nobody knows yet what is written tomorrow.
    pub fn may_be(&self, now: Time) -> bool {
        Time(self.sequence) <= now + AHEAD_MAX
    }

    /// Whether it is young enough to be of use.
    pub fn is_of_use(&self, now: Time) -> bool {
        self.may_be(now) && now <= Time(self.sequence) + LIFE
    }
}

fn parts(bytes: &[u8]) -> Option<(DeviceId, u64, Vec<String>)> {
    let (device, rest) = bytes.split_first_chunk::<32>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (count, mut rest) = rest.split_first()?;
    if !(1..=ADDRS_MAX).contains(&usize::from(*count)) {
        return None;
    }
    let mut addrs = Vec::new();
    for _ in 0..*count {
        let (len, after) = rest.split_first()?;
        let (addr, after) = after.split_at_checked(usize::from(*len))?;
        if addr.is_empty() {
            return None;
        }
        addrs.push(String::from_utf8(addr.to_vec()).ok()?);
        rest = after;
    }
    rest.is_empty()
        .then(|| (DeviceId(*device), u64::from_le_bytes(*sequence), addrs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;

    fn keys(seed: u8) -> DeviceKeys {
        DeviceKeys::generate(&mut Rng::from_seed([seed; 32]))
    }

    fn record(seed: u8, at: u64, addrs: &[&str]) -> AddressRecord {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        AddressRecord::sign(&keys(seed), Time(at), &addrs).unwrap()
    }

    #[test]
    fn what_is_signed_is_read_and_nothing_else() {
        let record = record(1, 7, &["/ip4/1.2.3.4/tcp/5", "/ip4/1.2.3.4/udp/5/quic-v1"]);
        assert_eq!(AddressRecord::decode(record.bytes()), Ok(record.clone()));
        for place in 0..record.bytes().len() {
            let mut bytes = record.bytes().to_vec();
            bytes[place] ^= 1;
            assert!(AddressRecord::decode(&bytes).is_err(), "byte {place}");
            assert!(AddressRecord::decode(&record.bytes()[..place]).is_err());
        }
        let mut long = record.bytes().to_vec();
        long.push(0);
        assert!(AddressRecord::decode(&long).is_err());
        // Another's addresses under one's own name.
        let mut forged = record.bytes().to_vec();
        forged[1..33].copy_from_slice(&keys(2).id().0);
        assert_eq!(
            AddressRecord::decode(&forged),
            Err(BadAddressRecord::Signature)
        );
        assert_eq!(
            AddressRecord::decode(&[9; 200]),
            Err(BadAddressRecord::Version)
        );
    }

    #[test]
    fn longest_record_fits_and_no_address_makes_none() {
        let addrs = vec!["a".repeat(255); 40];
        let record = AddressRecord::sign(&keys(1), Time(1), &addrs).unwrap();
        assert_eq!(record.bytes().len(), ADDRESS_RECORD_BYTES_MAX);
        assert_eq!(AddressRecord::decode(record.bytes()).unwrap(), record);
        let none = [String::new(), "a".repeat(256)];
        assert_eq!(AddressRecord::sign(&keys(1), Time(1), &none), None);
    }

    #[test]
    fn the_later_holds_whatever_order_they_come_in() {
        let (old, new) = (record(1, 5, &["a"]), record(1, 6, &["b"]));
        assert!(new.is_newer(&old) && !old.is_newer(&new));
        let twin = record(1, 6, &["c"]);
        assert!(twin.is_newer(&new) != new.is_newer(&twin));
        let day = 24 * 3600 * 1000;
        let at = record(1, 10 * day, &["a"]);
        assert!(at.is_of_use(Time(10 * day)) && at.is_of_use(Time(17 * day)));
        assert!(!at.is_of_use(Time(17 * day + 1)));
        assert!(at.may_be(Time(10 * day - 600_000)) && !at.may_be(Time(10 * day - 600_001)));
    }
}
