//! Where the other devices were last heard to listen, and when to try them again.
//!
//! Spec: `protocol/spec/device.md`, "Addresses".

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

/// Most devices remembered: far more than a person has.
pub const BOOK_DEVICES_MAX: usize = 256;
/// Most addresses remembered of one device.
pub const BOOK_ADDRS_MAX: usize = 16;
/// Longest address, as text.
pub const ADDR_BYTES_MAX: usize = 256;
/// First pause after a failed dial; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Span = Span::from_secs(1);
/// Longest pause between dials of a device that is away.
const RETRY_MAX: Span = Span::from_secs(60);

/// The address book.
#[derive(Debug, Default)]
pub struct Book {
    devices: BTreeMap<DeviceId, Known>,
}

#[derive(Debug)]
struct Known {
    addrs: BTreeSet<String>,
    retry: Span,
    next_dial: Time,
}

impl Book {
    /// Notes addresses of a device. Those heard from the device itself replace what was known; those from others add to it.
    ///
    /// Returns whether anything new was learnt.
    pub fn learn(
        &mut self,
        now: Time,
        device: DeviceId,
        addrs: &[String],
        from_itself: bool,
    ) -> bool {
        let addrs: BTreeSet<String> = addrs
            .iter()
            .filter(|addr| addr.len() <= ADDR_BYTES_MAX && !addr.is_empty())
            .take(BOOK_ADDRS_MAX)
            .cloned()
            .collect();
        if addrs.is_empty()
            || (!self.devices.contains_key(&device) && self.devices.len() >= BOOK_DEVICES_MAX)
        {
            return false;
        }
        let known = self.devices.entry(device).or_insert_with(|| Known {
            addrs: BTreeSet::new(),
            retry: RETRY_FIRST,
            next_dial: now,
        });
        let before = known.addrs.clone();
        if from_itself {
            known.addrs = addrs;
        } else {
            // Old ones that led nowhere make room for what others have heard since.
            if known.addrs.union(&addrs).count() > BOOK_ADDRS_MAX {
                known.addrs.clear();
            }
            known.addrs.extend(addrs);
        }
        let learnt = known.addrs != before;
        if learnt {
            known.retry = RETRY_FIRST;
            known.next_dial = now;
        }
        learnt
    }

    /// Forgets who may not be inside any more.
    pub fn keep(&mut self, allowed: &BTreeSet<DeviceId>) {
        self.devices.retain(|device, _| allowed.contains(device));
    }

    /// What to dial now; each call counts as an attempt.
    pub fn due(
        &mut self,
        now: Time,
        absent: impl Fn(&DeviceId) -> bool,
    ) -> Vec<(DeviceId, Vec<String>)> {
        let mut due = Vec::new();
        for (device, known) in &mut self.devices {
            if known.next_dial <= now && absent(device) {
                known.next_dial = now + known.retry;
                known.retry = Span(known.retry.0.saturating_mul(2).min(RETRY_MAX.0));
                due.push((*device, known.addrs.iter().cloned().collect()));
            }
        }
        due
    }

    /// When [`Book::due`] has something next.
    pub fn next_due(&self, absent: impl Fn(&DeviceId) -> bool) -> Option<Time> {
        self.devices
            .iter()
            .filter(|(device, _)| absent(device))
            .map(|(_, known)| known.next_dial)
            .min()
    }

    /// A connection came about: the next absence begins with quick tries.
    pub fn met(&mut self, now: Time, device: &DeviceId) {
        if let Some(known) = self.devices.get_mut(device) {
            known.retry = RETRY_FIRST;
            known.next_dial = now + RETRY_FIRST;
        }
    }

    /// All that is known.
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, Vec<String>)> {
        self.devices
            .iter()
            .map(|(device, known)| (device, known.addrs.iter().cloned().collect()))
    }

    /// The book as bytes, with the addresses of the device itself first: what peers tell each other, and what is kept on disk.
    pub fn encode(&self, me: &DeviceId, own: &[String]) -> Bytes {
        let own = (
            me,
            own.iter().take(BOOK_ADDRS_MAX).cloned().collect::<Vec<_>>(),
        );
        let mut out = Vec::new();
        for (device, addrs) in std::iter::once(own)
            .chain(self.iter())
            .take(BOOK_DEVICES_MAX)
        {
            out.extend_from_slice(&device.0);
            out.push(u8::try_from(addrs.len()).expect("at most BOOK_ADDRS_MAX"));
            for addr in addrs {
                let len = u16::try_from(addr.len()).unwrap_or(0);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(addr.as_bytes().get(..usize::from(len)).unwrap_or_default());
            }
        }
        out.into()
    }

    /// Reads what [`Book::encode`] wrote; `None` if it is anything else.
    pub fn decode(mut bytes: &[u8]) -> Option<Vec<(DeviceId, Vec<String>)>> {
        let mut book = Vec::new();
        while !bytes.is_empty() {
            let (device, rest) = bytes.split_first_chunk::<32>()?;
            let (count, mut rest) = rest.split_first()?;
            if usize::from(*count) > BOOK_ADDRS_MAX || book.len() >= BOOK_DEVICES_MAX {
                return None;
            }
            let mut addrs = Vec::new();
            for _ in 0..*count {
                let (len, after) = rest.split_first_chunk::<2>()?;
                let (addr, after) =
                    after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
                if addr.len() > ADDR_BYTES_MAX {
                    return None;
                }
                addrs.push(String::from_utf8(addr.to_vec()).ok()?);
                rest = after;
            }
            book.push((DeviceId(*device), addrs));
            bytes = rest;
        }
        Some(book)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(n: u8) -> DeviceId {
        DeviceId([n; 32])
    }

    #[test]
    fn absent_devices_are_tried_less_and_less_until_met() {
        let mut book = Book::default();
        assert!(book.learn(Time(0), device(1), &["a".into()], true));
        assert!(!book.learn(Time(0), device(1), &["a".into()], false));
        let mut now = Time(0);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(book.due(now, |_| true).len(), 1);
            assert!(book.due(now, |_| true).is_empty());
            let next = book.next_due(|_| true).unwrap();
            pauses.push(next.since(now).0 / 1000);
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        book.met(now, &device(1));
        assert_eq!(book.next_due(|_| true), Some(now + RETRY_FIRST));
        assert_eq!(book.next_due(|_| false), None);
    }

    #[test]
    fn book_is_bounded_and_survives_its_bytes() {
        let mut book = Book::default();
        for n in 0..1000u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            let addrs: Vec<String> = (0..100)
                .map(|i| format!("/ip4/127.0.0.1/tcp/{i}"))
                .collect();
            book.learn(Time(0), DeviceId(id), &addrs, false);
        }
        assert_eq!(book.iter().count(), BOOK_DEVICES_MAX);
        assert!(book.iter().all(|(_, addrs)| addrs.len() == BOOK_ADDRS_MAX));
        let decoded = Book::decode(&book.encode(&device(9), &["own".into()])).unwrap();
        assert_eq!(decoded[0], (device(9), vec!["own".to_owned()]));
        assert_eq!(decoded.len(), BOOK_DEVICES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Book::decode(&bytes);
        }
    }
}
