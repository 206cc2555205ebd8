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
/// Of these, told by the device itself: there is always room for what others have heard since.
const OWN_MAX: usize = 12;
/// Longest address, as text.
pub const ADDR_BYTES_MAX: usize = 256;
/// First pause after a failed dial; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Span = Span::from_secs(1);
/// Longest pause between dials of a device that is away.
const RETRY_MAX: Span = Span::from_secs(60);

/// Addresses remembered of a sighting in the local network.
const SIGHTED_MAX: usize = 4;
/// Changes are gathered this long before they are told: a device that starts learns many in a moment.
pub const TELL_DELAY: Span = Span::from_secs(5);
/// Between two books for one peer.
pub const TELL_PAUSE: Span = Span::from_secs(1);

/// The address book.
#[derive(Debug, Default)]
pub struct Book {
    devices: BTreeMap<DeviceId, Known>,
}

#[derive(Debug)]
struct Known {
    /// As the device itself told, since the start.
    own: BTreeSet<String>,
    /// As others told, where that is something else.
    hearsay: BTreeSet<String>,
    /// Where it was last seen in the local network. Never told on and never kept: who told of it is not known.
    sighted: Vec<String>,
    dialled: Option<Time>,
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
        let known = self
            .devices
            .entry(device)
            .or_insert_with(|| Known::new(now));
        let before = (known.own.clone(), known.hearsay.clone());
        if from_itself {
            known.own = addrs.into_iter().take(OWN_MAX).collect();
            known.hearsay.clear();
        } else {
            let news = addrs.difference(&known.own).cloned();
            let news: BTreeSet<String> = news.collect();
            // Old ones that led nowhere make room for what others have heard since; what the device itself told does not, or anybody could have it forgotten.
            let room = BOOK_ADDRS_MAX - known.own.len();
            if known.hearsay.union(&news).count() > room {
                known.hearsay.clear();
            }
            known.hearsay.extend(news.into_iter().take(room));
        }
        let learnt = (&known.own, &known.hearsay) != (&before.0, &before.1);
        if learnt {
            known.retry = RETRY_FIRST;
            known.next_dial = now;
        }
        learnt
    }

    /// Notes that a device says in the local network where it is: worth a try now. What was known of it stays, since anybody who ever was of the mesh can say so.
    pub fn sight(&mut self, now: Time, device: DeviceId, addrs: &[String]) {
        let addrs: Vec<String> = addrs
            .iter()
            .filter(|addr| addr.len() <= ADDR_BYTES_MAX && !addr.is_empty())
            .take(SIGHTED_MAX)
            .cloned()
            .collect();
        if addrs.is_empty()
            || (!self.devices.contains_key(&device) && self.devices.len() >= BOOK_DEVICES_MAX)
        {
            return;
        }
        let known = self
            .devices
            .entry(device)
            .or_insert_with(|| Known::new(now));
        if known.sighted != addrs {
            known.sighted = addrs;
            known.retry = RETRY_FIRST;
        }
        let soonest = known.dialled.map_or(now, |at| now.max(at + RETRY_FIRST));
        known.next_dial = known.next_dial.min(soonest);
    }

    /// Where to try a device: where it was sighted first.
    pub fn addrs_to_dial(&self, device: &DeviceId) -> Vec<String> {
        self.devices
            .get(device)
            .map_or_else(Vec::new, Known::to_dial)
    }

    /// Forgets who may not be inside any more.
    pub fn keep(&mut self, allowed: &BTreeSet<DeviceId>) {
        self.devices.retain(|device, _| allowed.contains(device));
    }

    /// What to dial now, `most` at a time; each call counts as an attempt. Those that have waited longest come first, and else those nearest to `me` by their
    /// names: where there are more devices than each can be connected with, each dials others, and all hang together.
    pub fn due(
        &mut self,
        now: Time,
        me: &DeviceId,
        most: usize,
        absent: impl Fn(&DeviceId) -> bool,
    ) -> Vec<(DeviceId, Vec<String>)> {
        let due = self.devices.iter();
        let mut due: Vec<(Time, [u8; 32], DeviceId)> = due
            .filter(|(device, known)| known.next_dial <= now && absent(device))
            .map(|(device, known)| {
                let mut distance = device.0;
                for (byte, mine) in distance.iter_mut().zip(me.0) {
                    *byte ^= mine;
                }
                (known.next_dial, distance, *device)
            })
            .collect();
        due.sort_unstable();
        due.truncate(most);
        let mut dials = Vec::new();
        for (_, _, device) in due {
            if let Some(known) = self.devices.get_mut(&device) {
                known.dialled = Some(now);
                known.next_dial = now + known.retry;
                known.retry = Span(known.retry.0.saturating_mul(2).min(RETRY_MAX.0));
                dials.push((device, known.to_dial()));
            }
        }
        dials
    }

    /// When [`Book::due`] has something next.
    pub fn next_due(&self, most: usize, absent: impl Fn(&DeviceId) -> bool) -> Option<Time> {
        if most == 0 {
            return None;
        }
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

    /// All that is known, but for sightings.
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, Vec<String>)> {
        self.devices
            .iter()
            .map(|(device, known)| (device, known.told().cloned().collect::<Vec<_>>()))
            .filter(|(_, addrs)| !addrs.is_empty())
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

impl Known {
    fn new(now: Time) -> Self {
        Self {
            own: BTreeSet::new(),
            hearsay: BTreeSet::new(),
            sighted: Vec::new(),
            dialled: None,
            retry: RETRY_FIRST,
            next_dial: now,
        }
    }

    /// What is told on and kept, its own words first.
    fn told(&self) -> impl Iterator<Item = &String> {
        self.own.iter().chain(&self.hearsay)
    }

    fn to_dial(&self) -> Vec<String> {
        let others = self.told().filter(|addr| !self.sighted.contains(addr));
        self.sighted
            .iter()
            .chain(others)
            .take(BOOK_ADDRS_MAX)
            .cloned()
            .collect()
    }
}

/// Whom to tell of the book, and when.
///
/// A change is told [`TELL_DELAY`] after the first that is untold, whatever comes meanwhile; a peer that is met is told at once; and no peer is told twice
/// within [`TELL_PAUSE`].
#[derive(Debug, Default)]
pub struct Telling {
    /// Since when something is untold; and the peer that all of it came from, if it was one.
    untold: Option<(Time, Option<DeviceId>)>,
    peers: BTreeMap<DeviceId, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    connected: bool,
    owed: bool,
    told: Option<Time>,
}

impl Peer {
    /// From when on it may be told.
    fn free_at(&self) -> Time {
        self.told.map_or(Time(0), |told| told + TELL_PAUSE)
    }
}

impl Telling {
    /// A peer is connected: it is owed the book.
    pub fn met(&mut self, now: Time, peer: DeviceId) {
        self.peers
            .retain(|_, peer| peer.connected || peer.free_at() > now);
        let peer = self.peers.entry(peer).or_default();
        peer.connected = true;
        peer.owed = true;
    }

    /// A peer is connected no more. When it was told last is remembered: coming again makes it no hungrier.
    pub fn left(&mut self, peer: &DeviceId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.connected = false;
            known.owed = false;
            if known.told.is_none() {
                self.peers.remove(peer);
            }
        }
    }

    /// The book changed, by what that peer said if one did.
    pub fn changed(&mut self, now: Time, from: Option<DeviceId>) {
        self.untold = Some(match self.untold {
            None => (now, from),
            Some((since, before)) => (since, before.filter(|before| Some(*before) == from)),
        });
    }

    /// Who is to be told now.
    pub fn due(&mut self, now: Time) -> Vec<DeviceId> {
        if let Some((since, from)) = self.untold
            && since + TELL_DELAY <= now
        {
            self.untold = None;
            for (id, peer) in &mut self.peers {
                peer.owed |= peer.connected && Some(*id) != from;
            }
        }
        let mut due = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.owed && peer.free_at() <= now {
                peer.owed = false;
                peer.told = Some(now);
                due.push(*id);
            }
        }
        due
    }

    /// When [`Telling::due`] has something next.
    pub fn next_due(&self) -> Option<Time> {
        let owed = self.peers.values().filter(|peer| peer.owed);
        let untold = self.untold.map(|(since, _)| since + TELL_DELAY);
        owed.map(Peer::free_at).chain(untold).min()
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.peers.values().all(|peer| peer.connected || !peer.owed),
            "nothing is owed to one that is away"
        );
        assert!(
            self.peers
                .values()
                .all(|peer| peer.connected || peer.told.is_some()),
            "one that is away is remembered for when it was told"
        );
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
            assert_eq!(book.due(now, &device(0), 9, |_| true).len(), 1);
            assert!(book.due(now, &device(0), 9, |_| true).is_empty());
            let next = book.next_due(9, |_| true).unwrap();
            pauses.push(next.since(now).0 / 1000);
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        book.met(now, &device(1));
        assert_eq!(book.next_due(9, |_| true), Some(now + RETRY_FIRST));
        assert_eq!(book.next_due(9, |_| false), None);
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

    #[test]
    fn what_a_device_told_of_itself_is_not_crowded_out_by_others() {
        let mut book = Book::default();
        book.learn(Time(0), device(1), &["/true".into()], true);
        for n in 0..100 {
            let lies: Vec<String> = (0..16).map(|i| format!("/lie/{n}/{i}")).collect();
            book.learn(Time(n), device(1), &lies, false);
            let known = book.addrs_to_dial(&device(1));
            assert_eq!(known[0], "/true");
            assert!(known.len() <= BOOK_ADDRS_MAX);
        }
        // Its own word ends what others said.
        book.learn(Time(200), device(1), &["/moved".into()], true);
        assert_eq!(book.addrs_to_dial(&device(1)), ["/moved"]);
    }

    #[test]
    fn no_more_are_dialled_than_there_is_room_for_and_each_device_prefers_others() {
        let mut firsts = BTreeSet::new();
        for me in 0..16 {
            let mut book = Book::default();
            for n in 0..16 {
                book.learn(Time(0), device(n), &["there".into()], true);
            }
            assert_eq!(book.next_due(0, |_| true), None, "there is no room");
            assert!(book.due(Time(0), &device(me), 0, |_| true).is_empty());
            let mut dialled = BTreeSet::new();
            for _ in 0..4 {
                let due = book.due(Time(0), &device(me), 4, |_| true);
                assert_eq!(due.len(), 4);
                firsts.insert(due[0].0);
                dialled.extend(due.into_iter().map(|(device, _)| device));
            }
            assert_eq!(dialled.len(), 16, "those that wait have their turn");
        }
        assert_eq!(firsts.len(), 16);
    }

    #[test]
    fn sighted_device_is_tried_at_once_and_what_was_known_stays() {
        let mut book = Book::default();
        book.learn(Time(0), device(1), &["far".into()], true);
        let mut now = Time(0);
        for _ in 0..9 {
            assert_eq!(book.due(now, &device(0), 9, |_| true).len(), 1);
            now = book.next_due(9, |_| true).unwrap();
        }
        assert_eq!(book.due(now, &device(0), 9, |_| true).len(), 1);
        // It is away for long; then it says that it is here.
        now = now + Span::from_secs(10);
        book.sight(now, device(1), &["near".into()]);
        let due = book.due(now, &device(0), 9, |_| true);
        assert_eq!(
            due,
            [(device(1), vec!["near".to_owned(), "far".to_owned()])]
        );
        // Whoever repeats that has it dialled once a second at most.
        let mut dials = 0;
        for ms in 0..10_000 {
            let now = now + Span::from_ms(ms);
            book.sight(now, device(1), &[format!("near {}", ms % 2)]);
            dials += book.due(now, &device(0), 9, |_| true).len();
        }
        assert!((9..=10).contains(&dials), "{dials} dials in ten seconds");
        // Others are told what it said of itself, and the book keeps that.
        let told = Book::decode(&book.encode(&device(9), &[])).unwrap();
        assert_eq!(told[1], (device(1), vec!["far".to_owned()]));
        // A device known from sightings alone is not told of at all.
        book.sight(now, device(2), &["here".into()]);
        assert_eq!(book.iter().count(), 1);
        assert_eq!(book.addrs_to_dial(&device(2)), ["here"]);
    }

    #[test]
    fn false_sightings_push_nothing_out() {
        let mut book = Book::default();
        book.learn(Time(0), device(1), &["far".into()], true);
        for n in 0..1000 {
            let addrs: Vec<String> = (0..100).map(|i| format!("false {n} {i}")).collect();
            book.sight(Time(n), device(1), &addrs);
        }
        let addrs = book.addrs_to_dial(&device(1));
        assert_eq!(addrs.len(), SIGHTED_MAX + 1);
        assert!(addrs.contains(&"far".to_owned()));
    }

    #[test]
    fn changes_are_gathered_and_told_to_all_but_their_source() {
        let mut telling = Telling::default();
        let second = |s: u64| Time(s * 1000);
        telling.met(second(0), device(1));
        telling.met(second(0), device(2));
        assert_eq!(telling.due(second(0)), [device(1), device(2)], "at once");
        for s in 10..15 {
            telling.changed(second(s), Some(device(1)));
            assert_eq!(telling.next_due(), Some(second(15)));
            assert!(telling.due(second(s)).is_empty());
        }
        assert_eq!(telling.due(second(15)), [device(2)], "1 has said so itself");
        assert_eq!(telling.next_due(), None);
        telling.changed(second(20), Some(device(1)));
        telling.changed(second(21), Some(device(2)));
        assert_eq!(telling.due(second(25)), [device(1), device(2)]);
        telling.changed(second(30), Some(device(1)));
        telling.changed(second(31), None);
        telling.left(&device(2));
        assert_eq!(telling.due(second(35)), [device(1)]);
    }

    proptest! {
        #[test]
        fn nobody_is_told_twice_a_second_and_every_change_in_time(
            steps in proptest::collection::vec((0u8..5, 1u8..5, 0u64..1500), 1..300),
        ) {
            let mut telling = Telling::default();
            let mut now = Time(0);
            let mut told: BTreeMap<DeviceId, Time> = BTreeMap::new();
            let mut connected = BTreeSet::new();
            // What each peer has not been told yet, and since when.
            let mut news: BTreeMap<DeviceId, Time> = BTreeMap::new();
            for (step, n, ms) in steps {
                let until = now + Span::from_ms(ms);
                loop {
                    for peer in telling.due(now) {
                        prop_assert!(connected.contains(&peer));
                        let last = told.insert(peer, now);
                        prop_assert!(last.is_none_or(|last| now.since(last) >= TELL_PAUSE));
                        news.remove(&peer);
                    }
                    telling.check_invariants();
                    for since in news.values() {
                        prop_assert!(now <= *since + TELL_DELAY + TELL_PAUSE);
                    }
                    match telling.next_due().filter(|next| *next <= until) {
                        Some(next) => now = now.max(next),
                        None => break,
                    }
                }
                now = until;
                match step {
                    0 => { telling.met(now, device(n)); connected.insert(device(n)); }
                    1 => { telling.left(&device(n)); connected.remove(&device(n)); news.remove(&device(n)); }
                    _ => {
                        let from = (step == 2).then_some(device(n));
                        telling.changed(now, from);
                        for peer in connected.iter().filter(|peer| Some(**peer) != from) {
                            news.entry(*peer).or_insert(now);
                        }
                    }
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Book::decode(&bytes);
        }
    }
}
