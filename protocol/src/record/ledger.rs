//! Records that a device keeps for others.

use std::collections::BTreeMap;

use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

use super::{ADDRESS_RECORD_BYTES_MAX, AddressRecord, Key};

/// Providers kept of one key.
pub const PROVIDERS_MAX: usize = 20;
/// Provider records in all, some 10 MB.
const RECORDS_MAX: usize = 65_536;
/// Of one device.
const RECORDS_PER_DEVICE_MAX: usize = RECORDS_MAX / 4;
/// Address records: a mesh has hundreds of devices.
const ADDRESSES_MAX: usize = 1024;
/// How long a provider record lasts.
const LIFE: Span = Span::from_secs(48 * 3600);
/// What the kept bytes begin with.
const MAGIC: &[u8] = b"kith records 1";

/// Who provides what, and where devices are, as others have told.
///
/// Spec: `protocol/spec/record.md`, "Kept for others".
#[derive(Debug, Default)]
pub struct Ledger {
    providers: BTreeMap<(Key, DeviceId), Time>,
    /// The same by device and expiry.
    of_device: BTreeMap<(DeviceId, Time, Key), ()>,
    counts: BTreeMap<DeviceId, usize>,
    addresses: BTreeMap<Key, AddressRecord>,
    changed: bool,
}

impl Ledger {
    /// A device says that it provides that key.
    pub fn provide(&mut self, now: Time, key: Key, device: DeviceId) {
        self.remove(&key, &device);
        let others: Vec<(Time, DeviceId)> = self
            .providers(now, &key)
            .into_iter()
            .map(|(device, expires)| (expires, device))
            .collect();
        if others.len() >= PROVIDERS_MAX
            && let Some((_, first)) = others.into_iter().min()
        {
            self.remove(&key, &first);
        }
        if self.counts.get(&device).copied().unwrap_or(0) >= RECORDS_PER_DEVICE_MAX {
            let oldest = self.of_device.range((device, Time(0), Key([0; 32]))..);
            let oldest = oldest.map(|((_, _, key), ())| *key).next();
            if let Some(oldest) = oldest {
                self.remove(&oldest, &device);
            }
        }
        if self.providers.len() >= RECORDS_MAX {
            self.expire(now);
        }
        if self.providers.len() < RECORDS_MAX {
            self.insert(key, device, now + LIFE);
        }
    }

    fn insert(&mut self, key: Key, device: DeviceId, expires: Time) {
        self.providers.insert((key, device), expires);
        self.of_device.insert((device, expires, key), ());
        *self.counts.entry(device).or_default() += 1;
        self.changed = true;
    }

    /// A device provides that key no longer.
    pub fn remove(&mut self, key: &Key, device: &DeviceId) {
        let Some(expires) = self.providers.remove(&(*key, *device)) else {
            return;
        };
        self.of_device.remove(&(*device, expires, *key));
        self.changed = true;
        if let Some(count) = self.counts.get_mut(device) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(device);
            }
        }
    }

    /// Who provides that key, and how long that is believed.
    pub fn providers(&self, now: Time, key: &Key) -> Vec<(DeviceId, Time)> {
        let first = (*key, DeviceId([0; 32]));
        let last = (*key, DeviceId([255; 32]));
        self.providers
            .range(first..=last)
            .filter(|(_, expires)| **expires > now)
            .map(|((_, device), expires)| (*device, *expires))
            .collect()
    }

    /// Keeps an address record, if it is newer than what is kept; `key` has been compared with its device by whoever can. Whether it is kept.
    pub fn put(&mut self, now: Time, key: Key, record: AddressRecord) -> bool {
        if !record.may_be(now) {
            return false;
        }
        let known = self.addresses.get(&key);
        if known.is_some_and(|known| known.device() != record.device() || !record.is_newer(known)) {
            return false;
        }
        if known.is_none() && self.addresses.len() >= ADDRESSES_MAX {
            return false;
        }
        self.addresses.insert(key, record);
        self.changed = true;
        true
    }

    /// The address record under that key.
    pub fn address(&self, key: &Key) -> Option<&AddressRecord> {
        self.addresses.get(key)
    }

    /// Forgets what is told by or of devices that do not belong.
    pub fn keep(&mut self, belongs: impl Fn(&DeviceId) -> bool) {
        let out: Vec<(Key, DeviceId)> = self
            .providers
            .keys()
            .filter(|(_, device)| !belongs(device))
            .copied()
            .collect();
        for (key, device) in out {
            self.remove(&key, &device);
        }
        let before = self.addresses.len();
        self.addresses.retain(|_, record| belongs(&record.device()));
        self.changed |= self.addresses.len() != before;
    }

    fn expire(&mut self, now: Time) {
        let out: Vec<(Key, DeviceId)> = self
            .providers
            .iter()
            .filter(|(_, expires)| **expires <= now)
            .map(|(at, _)| *at)
            .collect();
        for (key, device) in out {
            self.remove(&key, &device);
        }
    }

    /// Records kept.
    pub fn len(&self) -> usize {
        self.providers.len() + self.addresses.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that is kept, as bytes, if it has changed since the last time.
    pub fn to_keep(&mut self, now: Time) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.expire(now);
        self.changed = false;
        let mut out = MAGIC.to_vec();
        let count = |count: usize| u32::try_from(count).unwrap_or(0).to_le_bytes();
        out.extend_from_slice(&count(self.providers.len()));
        for ((key, device), expires) in &self.providers {
            out.extend_from_slice(&key.0);
            out.extend_from_slice(&device.0);
            out.extend_from_slice(&expires.0.to_le_bytes());
        }
        out.extend_from_slice(&count(self.addresses.len()));
        for (key, record) in &self.addresses {
            out.extend_from_slice(&key.0);
            let len = u16::try_from(record.bytes().len()).unwrap_or(0);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(record.bytes());
        }
        Some(out)
    }

    /// Reads what was kept; `None` if it is anything else. What has ended meanwhile is left out.
    pub fn recall(now: Time, bytes: &[u8]) -> Option<Self> {
        let mut ledger = Self::default();
        let rest = bytes.strip_prefix(MAGIC)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        for _ in 0..u32::from_le_bytes(*count) {
            let (key, after) = rest.split_first_chunk::<32>()?;
            let (device, after) = after.split_first_chunk::<32>()?;
            let (expires, after) = after.split_first_chunk::<8>()?;
            rest = after;
            let (key, device) = (Key(*key), DeviceId(*device));
            let expires = Time(u64::from_le_bytes(*expires)).min(now + LIFE);
            let full = ledger.providers.len() >= RECORDS_MAX
                || ledger.providers(now, &key).len() >= PROVIDERS_MAX
                || ledger.counts.get(&device).copied().unwrap_or(0) >= RECORDS_PER_DEVICE_MAX
                || ledger.providers.contains_key(&(key, device));
            if full {
                return None;
            }
            if expires > now {
                ledger.insert(key, device, expires);
            }
        }
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        for _ in 0..u32::from_le_bytes(*count) {
            let (key, after) = rest.split_first_chunk::<32>()?;
            let (len, after) = after.split_first_chunk::<2>()?;
            let len = usize::from(u16::from_le_bytes(*len));
            if len > ADDRESS_RECORD_BYTES_MAX || ledger.addresses.len() >= ADDRESSES_MAX {
                return None;
            }
            let (record, after) = after.split_at_checked(len)?;
            rest = after;
            let record = AddressRecord::decode(record).ok()?;
            ledger.addresses.insert(Key(*key), record);
        }
        ledger.changed = false;
        rest.is_empty().then_some(ledger)
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(self.providers.len() <= RECORDS_MAX && self.addresses.len() <= ADDRESSES_MAX);
        assert_eq!(self.providers.len(), self.of_device.len());
        assert_eq!(self.counts.values().sum::<usize>(), self.providers.len());
        assert!(
            self.counts
                .values()
                .all(|count| (1..=RECORDS_PER_DEVICE_MAX).contains(count))
        );
        for (key, device) in self.providers.keys() {
            let expires = self.providers.get(&(*key, *device));
            let expires = expires.expect("it was just there");
            assert!(self.of_device.contains_key(&(*device, *expires, *key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::{DeviceKeys, Rng};

    fn key(n: u64) -> Key {
        Key(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn device(n: u64) -> DeviceId {
        DeviceId(*blake3::hash(&[9, n as u8]).as_bytes())
    }

    #[test]
    fn random_records_keep_the_laws_and_come_back() {
        let mut rng = Rng::from_seed([1; 32]);
        let keys: Vec<DeviceKeys> = (0..5).map(|_| DeviceKeys::generate(&mut rng)).collect();
        let mut ledger = Ledger::default();
        let mut now = Time(1_000_000_000);
        for step in 0..4000_u64 {
            now = now + Span(rng.below(200_000));
            match rng.below(8) {
                0 => ledger.remove(&key(rng.below(60)), &device(rng.below(30))),
                1 if step % 50 == 0 => ledger.keep(|one| *one != device(rng_free(step))),
                2 => {
                    let author = &keys[rng.below(5) as usize];
                    let at = Time(now.0 - rng.below(1000));
                    let record = AddressRecord::sign(author, at, &[format!("/a/{step}")]).unwrap();
                    ledger.put(now, key(rng.below(5)), record);
                }
                _ => ledger.provide(now, key(rng.below(60)), device(rng.below(30))),
            }
            if step % 100 == 0 {
                ledger.check_invariants();
            }
            let at = key(rng.below(60));
            let found = ledger.providers(now, &at);
            assert!(found.len() <= PROVIDERS_MAX);
            assert!(found.iter().all(|(_, expires)| *expires > now));
        }
        let kept = ledger.to_keep(now).unwrap();
        assert_eq!(ledger.to_keep(now), None, "nothing has changed since");
        let back = Ledger::recall(now, &kept).unwrap();
        back.check_invariants();
        assert_eq!(back.providers, ledger.providers);
        assert_eq!(back.addresses, ledger.addresses);
        let later = Ledger::recall(now + LIFE, &kept).unwrap();
        assert!(later.providers.is_empty(), "all has ended");
        for cut in 0..kept.len().min(3000) {
            assert!(Ledger::recall(now, &kept[..cut]).is_none());
        }
        let mut longer = kept;
        longer.push(0);
        assert!(Ledger::recall(now, &longer).is_none());
    }

    fn rng_free(step: u64) -> u64 {
        step / 50 % 30
    }

    #[test]
    fn one_device_cannot_fill_it() {
        let mut ledger = Ledger::default();
        let now = Time(5);
        ledger.provide(now, key(1), device(1));
        for n in 0..(RECORDS_PER_DEVICE_MAX as u64 + 100) {
            ledger.provide(now + Span(n), key(n), device(2));
        }
        ledger.check_invariants();
        assert_eq!(ledger.counts[&device(2)], RECORDS_PER_DEVICE_MAX);
        assert_eq!(ledger.providers(now, &key(1)).len(), 1, "of the other");
        // Its oldest made room.
        let newest = RECORDS_PER_DEVICE_MAX as u64 + 99;
        assert_eq!(ledger.providers(now, &key(newest)).len(), 1);
    }

    #[test]
    fn an_older_address_never_replaces_a_newer() {
        let keys = DeviceKeys::generate(&mut Rng::from_seed([4; 32]));
        let other = DeviceKeys::generate(&mut Rng::from_seed([5; 32]));
        let record = |keys, at| AddressRecord::sign(keys, Time(at), &["x".to_owned()]).unwrap();
        let mut ledger = Ledger::default();
        let now = Time(1000);
        assert!(ledger.put(now, key(1), record(&keys, 10)));
        assert!(!ledger.put(now, key(1), record(&keys, 9)));
        assert!(!ledger.put(now, key(1), record(&keys, 10)));
        assert!(
            !ledger.put(now, key(1), record(&other, 99)),
            "not its place"
        );
        assert!(!ledger.put(now, key(1), record(&keys, 1000 + 600_001)));
        assert!(ledger.put(now, key(1), record(&keys, 11)));
        assert_eq!(ledger.address(&key(1)).unwrap().device(), keys.id());
    }
}
