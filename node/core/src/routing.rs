//! What this device says in the DHT, and when it asks there where another one is.
//!
//! Spec: `protocol/spec/record.md`, "Announcing".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kith_object::id::DeviceId;
use kith_object::id::EpochId;
use kith_object::key::Rng;
use kith_object::time::{Span, Time};
use kith_protocol::record::{AddressRecord, Announcements, Key, Subject};

/// Roots put since the start that are announced besides those at the top of the tree.
const PUT_MAX: usize = 4096;
/// Changes of addresses are gathered this long.
const ADDRESS_DELAY: Span = Span::from_secs(30);
/// How often a device says where it is, though nothing changed.
const ADDRESS_EVERY: Span = Span::from_secs(22 * 3600);
/// Dials in a row that come to nothing before the DHT is asked.
const MISSED_MAX: u32 = 3;
/// Between two questions about one device.
const ASK_PAUSE: Span = Span::from_secs(600);
/// Devices about which something is remembered.
const DEVICES_MAX: usize = 256;

/// Announces what this device holds and where it is.
#[derive(Debug)]
pub(crate) struct Routing {
    sweep: Announcements,
    /// Under which epoch's keys, once there is one.
    epoch: Option<EpochId>,
    subjects: BTreeSet<Subject>,
    put: VecDeque<Subject>,
    /// Whether it was said before what is held.
    told: bool,
    address_due: Option<Time>,
    heard: bool,
    missed: BTreeMap<DeviceId, Missed>,
    newest: BTreeMap<DeviceId, AddressRecord>,
    /// Not under keys yet: whether it is new.
    unnamed: Vec<(Subject, bool)>,
    gone: Vec<Subject>,
}

#[derive(Debug, Default)]
struct Missed {
    times: u32,
    asked: Option<Time>,
}

impl Routing {
    pub(crate) fn new(now: Time, rng: &mut Rng) -> Self {
        Self {
            sweep: Announcements::new(now, Key(rng.bytes())),
            epoch: None,
            subjects: BTreeSet::new(),
            put: VecDeque::new(),
            told: false,
            address_due: None,
            heard: false,
            missed: BTreeMap::new(),
            newest: BTreeMap::new(),
            unnamed: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// What is held now, and roots of which that can be assumed.
    pub(crate) fn holds(&mut self, held: BTreeSet<Subject>, roots: BTreeSet<Subject>) {
        let mut all = held;
        all.extend(roots);
        all.extend(self.put.iter().copied());
        let new = all.difference(&self.subjects).copied();
        // What is there at the start was announced before it, as far as is known.
        self.unnamed.extend(new.map(|subject| (subject, self.told)));
        self.gone.extend(self.subjects.difference(&all).copied());
        self.subjects = all;
        self.told = true;
    }

    /// Something was put here.
    pub(crate) fn put(&mut self, subject: Subject) {
        if self.put.len() >= PUT_MAX {
            self.put.pop_front();
        }
        self.put.push_back(subject);
        if self.subjects.insert(subject) {
            self.unnamed.push((subject, true));
        }
    }

    /// This device listens elsewhere.
    pub(crate) fn moved(&mut self, now: Time) {
        self.address_due = Some(now + ADDRESS_DELAY);
    }

    /// Gives all that is announced its key.
    pub(crate) fn under(&mut self, epoch: EpochId, heard: bool, key: impl Fn(&Subject) -> Key) {
        self.heard = heard;
        self.sweep.heard(heard);
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.sweep.clear();
            self.unnamed.clear();
            self.gone.clear();
            for subject in &self.subjects {
                self.sweep.resume(key(subject));
            }
            self.address_due = self.address_due.map(|due| due.min(Time(0)));
            return;
        }
        for subject in self.gone.drain(..) {
            self.sweep.remove(&key(&subject));
        }
        for (subject, new) in self.unnamed.drain(..) {
            if new {
                self.sweep.add(key(&subject));
            } else {
                self.sweep.resume(key(&subject));
            }
        }
    }

    /// The next key to announce now.
    pub(crate) fn due(&mut self, now: Time) -> Option<Key> {
        self.sweep.due(now)
    }

    /// Whether this device should say now where it is; asked once each time.
    pub(crate) fn address_is_due(&mut self, now: Time) -> bool {
        let due = self.heard && self.address_due.is_some_and(|due| due <= now);
        if due {
            self.address_due = Some(now + ADDRESS_EVERY);
        }
        due
    }

    /// A dial came to nothing; whether to ask in the DHT where that device is.
    pub(crate) fn missed(&mut self, now: Time, device: DeviceId) -> bool {
        if self.missed.len() >= DEVICES_MAX && !self.missed.contains_key(&device) {
            return false;
        }
        let missed = self.missed.entry(device).or_default();
        missed.times = missed.times.saturating_add(1);
        let rested = missed.asked.is_none_or(|asked| asked + ASK_PAUSE <= now);
        let ask = self.heard && missed.times >= MISSED_MAX && rested;
        if ask {
            missed.asked = Some(now);
        }
        ask
    }

    /// A device is there.
    pub(crate) fn met(&mut self, device: &DeviceId) {
        self.missed.remove(device);
    }

    /// Whether a record says more than those that came before.
    pub(crate) fn is_news(&mut self, record: &AddressRecord) -> bool {
        let device = record.device();
        let known = self.newest.get(&device);
        let news = known.is_none_or(|known| record.is_newer(known))
            && (known.is_some() || self.newest.len() < DEVICES_MAX);
        if news {
            self.newest.insert(device, record.clone());
        }
        news
    }

    /// When something is due next.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        let address = self.address_due.filter(|_| self.heard);
        [self.sweep.next_wakeup(), address]
            .into_iter()
            .flatten()
            .min()
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check_invariants(&self) {
        self.sweep.check_invariants();
        assert!(self.put.len() <= PUT_MAX);
        assert!(self.missed.len() <= DEVICES_MAX && self.newest.len() <= DEVICES_MAX);
        if self.unnamed.is_empty() && self.gone.is_empty() && self.epoch.is_some() {
            assert!(
                self.sweep.len() <= self.subjects.len(),
                "nothing else is announced"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(n: u8) -> Subject {
        Subject::Pack(kith_object::id::PackId([n; 32]))
    }

    fn key(subject: &Subject) -> Key {
        match subject {
            Subject::Pack(pack) => Key(pack.0),
            _ => Key([0; 32]),
        }
    }

    fn all_due(routing: &mut Routing, now: Time) -> Vec<Key> {
        std::iter::from_fn(|| routing.due(now)).collect()
    }

    #[test]
    fn what_comes_is_announced_at_once_and_what_goes_no_more() {
        let now = Time(1 << 40);
        let mut routing = Routing::new(now, &mut Rng::from_seed([1; 32]));
        let epoch = EpochId([1; 32]);
        routing.holds([pack(1), pack(2)].into(), BTreeSet::new());
        routing.under(epoch, true, key);
        // One of the sweep; the other has its time.
        assert_eq!(all_due(&mut routing, now).len(), 1);
        routing.holds([pack(1), pack(3)].into(), BTreeSet::new());
        routing.under(epoch, true, key);
        assert_eq!(all_due(&mut routing, now), [key(&pack(3))]);
        routing.check_invariants();
        let mut later: BTreeSet<Key> = BTreeSet::new();
        for hour in 1..50 {
            later.extend(all_due(&mut routing, now + Span::from_secs(hour * 3600)));
        }
        assert_eq!(later, [key(&pack(1)), key(&pack(3))].into());
        // A new epoch: the same under other keys.
        routing.under(EpochId([2; 32]), true, |subject| {
            let mut key = key(subject);
            key.0[0] ^= 0x80;
            key
        });
        routing.check_invariants();
        assert_eq!(routing.sweep.len(), 2);
    }

    #[test]
    fn dht_is_asked_after_three_misses_and_not_again_for_a_while() {
        let now = Time(1 << 40);
        let mut routing = Routing::new(now, &mut Rng::from_seed([1; 32]));
        let away = DeviceId([7; 32]);
        for _ in 0..9 {
            assert!(!routing.missed(now, away), "nobody could answer");
        }
        routing.under(EpochId([1; 32]), true, key);
        assert!(routing.missed(now, away));
        assert!(!routing.missed(now, away));
        assert!(routing.missed(now + ASK_PAUSE, away));
        routing.met(&away);
        let later = now + ASK_PAUSE + ASK_PAUSE;
        assert!(!routing.missed(later, away));
        assert!(!routing.missed(later, away));
        assert!(routing.missed(later, away));
    }

    #[test]
    fn address_is_told_once_after_a_rush_and_again_in_a_day() {
        let now = Time(1 << 40);
        let mut routing = Routing::new(now, &mut Rng::from_seed([1; 32]));
        routing.under(EpochId([1; 32]), true, key);
        for second in 0..20 {
            routing.moved(now + Span::from_secs(second));
            assert!(!routing.address_is_due(now + Span::from_secs(second)));
        }
        let due = now + Span::from_secs(19) + ADDRESS_DELAY;
        assert_eq!(routing.next_wakeup(), Some(due));
        assert!(routing.address_is_due(due) && !routing.address_is_due(due));
        assert_eq!(routing.next_wakeup(), Some(due + ADDRESS_EVERY));
    }
}
