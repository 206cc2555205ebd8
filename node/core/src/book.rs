//! Where the other devices were last heard to listen, and when to try them again.
//!
//! Spec: `protocol/spec/device.md`, "Addresses".

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

/// Most devices remembered: far more than a person has.
pub const BOOK_DEVICES_MAX: usize = 1024;
/// Most devices in one message.
pub const BOOK_MESSAGE_MAX: usize = 256;
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
/// So long a dial counts as a connection to come, unless it is told how it ended.
const DIAL_WAIT: Span = Span::from_secs(10);

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
    /// When to look again whom to dial, as it was found when last looked; nothing if that may be different now.
    next: Option<Next>,
}

/// When there is something to dial, if ever.
#[derive(Debug, Clone, Copy)]
struct Next {
    at: Option<Time>,
    /// For how many there was room.
    room: usize,
}

#[derive(Debug)]
struct Known {
    /// As the device itself told, since the start; in order, as are those that others told. Of a thousand devices mostly one each: no sets.
    own: Vec<String>,
    /// As others told, where that is something else.
    hearsay: Vec<String>,
    /// Where it was last seen in the local network. Never told on and never kept: who told of it is not known.
    sighted: Vec<String>,
    dialled: Option<Time>,
    /// A dial is under way, as far as is known.
    dialling: bool,
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
        let addrs = addrs
            .iter()
            .filter(|addr| addr.len() <= ADDR_BYTES_MAX && !addr.is_empty())
            .take(BOOK_ADDRS_MAX);
        // Mostly nothing of it is news.
        if let Some(known) = self.devices.get(&device)
            && !from_itself
            && addrs.clone().all(|addr| known.tells(addr))
        {
            return false;
        }
        let addrs: BTreeSet<&String> = addrs.collect();
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
            known.own = addrs.into_iter().take(OWN_MAX).cloned().collect();
            known.hearsay = Vec::new();
        } else {
            let mut news = addrs;
            news.retain(|addr| !known.own.contains(addr));
            // Old ones that led nowhere make room for what others have heard since; what the device itself told does not, or anybody could have it forgotten.
            let room = BOOK_ADDRS_MAX - known.own.len();
            let fresh = news.iter().filter(|addr| !known.hearsay.contains(addr));
            if known.hearsay.len() + fresh.count() > room {
                known.hearsay.clear();
            }
            known.hearsay.extend(news.into_iter().take(room).cloned());
            known.hearsay.sort_unstable();
            known.hearsay.dedup();
        }
        let learnt = (&known.own, &known.hearsay) != (&before.0, &before.1);
        if learnt {
            known.retry = RETRY_FIRST;
            known.next_dial = now;
            self.next = None;
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
        known.dialling = false;
        self.next = None;
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
        self.next = None;
    }

    /// What to dial now, where there is room for `room` more connections, dials under way included; each device that is named counts as tried.
    ///
    /// Those that have waited longest come first. Of those that have waited alike, those come first at whose distance from `me`, by the bits that their names
    /// begin with in common, it has the fewest connections, and at each distance the nearest: where there are more devices than each can be connected with, each
    /// has others, some near and some far, so that all hang together, as in Kademlia.
    pub fn due(
        &mut self,
        now: Time,
        me: &DeviceId,
        room: usize,
        absent: impl Fn(&DeviceId) -> bool,
    ) -> Vec<(DeviceId, Vec<String>)> {
        let looked = self.next.filter(|next| next.room == room);
        if room == 0 || looked.is_some_and(|next| next.at.is_none_or(|at| at > now)) {
            return Vec::new();
        }
        let mut near: BTreeMap<u32, usize> = BTreeMap::new();
        let mut waiting: Vec<(Time, u32, [u8; 32], DeviceId)> = Vec::new();
        let mut under_way = 0;
        for (device, known) in &mut self.devices {
            let (common, distance) = distance(me, device);
            known.dialling &= known.over() > now;
            if !absent(device) {
                *near.entry(common).or_default() += 1;
            } else if known.dialling {
                *near.entry(common).or_default() += 1;
                under_way += 1;
            } else if known.next_dial <= now {
                waiting.push((known.next_dial, common, distance, *device));
            }
        }
        waiting.sort_unstable();
        let mut due: Vec<(Time, usize, [u8; 32], DeviceId)> = Vec::new();
        for (since, common, distance, device) in waiting {
            let before = near.entry(common).or_default();
            due.push((since, *before, distance, device));
            *before += 1;
        }
        due.sort_unstable();
        due.truncate(room.saturating_sub(under_way));
        let mut dials = Vec::new();
        for (_, _, _, device) in due {
            if let Some(known) = self.devices.get_mut(&device) {
                known.dialled = Some(now);
                known.dialling = true;
                known.next_dial = now + known.retry;
                known.retry = Span(known.retry.0.saturating_mul(2).min(RETRY_MAX.0));
                dials.push((device, known.to_dial()));
            }
        }
        self.next = None;
        let at = self.next_due(room, absent);
        self.next = Some(Next { at, room });
        dials
    }

    /// When [`Book::due`] has something next.
    pub fn next_due(&self, room: usize, absent: impl Fn(&DeviceId) -> bool) -> Option<Time> {
        if room == 0 {
            return None;
        }
        if let Some(next) = self.next.filter(|next| next.room == room) {
            return next.at;
        }
        let mut under_way = 0;
        let (mut over, mut again, mut next) = (None, None, None);
        let sooner = |one: Option<Time>, other: Time| Some(one.map_or(other, |one| one.min(other)));
        for (_, known) in self.devices.iter().filter(|(device, _)| absent(device)) {
            if known.dialling {
                under_way += 1;
                over = sooner(over, known.over());
                again = sooner(again, known.next_dial);
            } else {
                next = sooner(next, known.next_dial);
            }
        }
        // Where there is no room, one of those under way has to end first.
        if under_way >= room {
            next = next
                .zip(over)
                .map(|(next, over): (Time, Time)| next.max(over));
        }
        again.into_iter().chain(next).min()
    }

    /// A dial came to nothing.
    pub fn missed(&mut self, device: &DeviceId) {
        if let Some(known) = self.devices.get_mut(device) {
            known.dialling = false;
        }
        self.next = None;
    }

    /// A connection came about, or ended: the next absence begins with quick tries.
    pub fn met(&mut self, now: Time, device: &DeviceId) {
        if let Some(known) = self.devices.get_mut(device) {
            known.retry = RETRY_FIRST;
            known.next_dial = now + RETRY_FIRST;
            known.dialling = false;
        }
        self.next = None;
    }

    /// All that is known, but for sightings.
    pub fn iter(&self) -> impl Iterator<Item = (&DeviceId, Vec<String>)> {
        self.devices
            .iter()
            .map(|(device, known)| (device, known.told().cloned().collect::<Vec<_>>()))
            .filter(|(_, addrs)| !addrs.is_empty())
    }

    /// The book as bytes: what is kept on disk.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        for (device, known) in &self.devices {
            write(&mut out, device, known.told());
        }
        out.into()
    }

    /// What a peer is told of it, with the addresses of the device itself first: messages of [`BOOK_MESSAGE_MAX`] devices at most.
    pub fn messages(&self, (me, own): (&DeviceId, &[String]), news: &News) -> Vec<Bytes> {
        let mut writing = Writing::default();
        if news.has(me) {
            writing.add(me, own.iter().take(BOOK_ADDRS_MAX));
        }
        match news {
            News::All => {
                for (device, known) in &self.devices {
                    writing.add(device, known.told());
                }
            }
            News::Of(devices) => {
                for device in devices {
                    if let Some(known) = self.devices.get(device) {
                        writing.add(device, known.told());
                    }
                }
            }
        }
        writing.finish()
    }

    /// Reads one message; `None` if it is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Vec<(DeviceId, Vec<String>)>> {
        Self::read(bytes, BOOK_MESSAGE_MAX)
    }

    /// Reads what [`Book::encode`] wrote; `None` if it is anything else.
    pub fn decode_kept(bytes: &[u8]) -> Option<Vec<(DeviceId, Vec<String>)>> {
        Self::read(bytes, BOOK_DEVICES_MAX)
    }

    fn read(mut bytes: &[u8], most: usize) -> Option<Vec<(DeviceId, Vec<String>)>> {
        let mut book = Vec::new();
        while !bytes.is_empty() {
            let (device, rest) = bytes.split_first_chunk::<32>()?;
            let (count, mut rest) = rest.split_first()?;
            if usize::from(*count) > BOOK_ADDRS_MAX || book.len() >= most {
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

/// Messages that are being written.
#[derive(Default)]
struct Writing {
    whole: Vec<Bytes>,
    message: Vec<u8>,
    devices: usize,
}

impl Writing {
    fn add<'a>(&mut self, device: &DeviceId, addrs: impl Iterator<Item = &'a String>) {
        if self.devices == BOOK_MESSAGE_MAX {
            self.devices = 0;
            self.whole.push(std::mem::take(&mut self.message).into());
        }
        if write(&mut self.message, device, addrs) {
            self.devices += 1;
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.message.is_empty() {
            self.whole.push(self.message.into());
        }
        self.whole
    }
}

/// Writes a device with these addresses; false if there are none.
fn write<'a>(
    out: &mut Vec<u8>,
    device: &DeviceId,
    addrs: impl Iterator<Item = &'a String>,
) -> bool {
    let begin = out.len();
    out.extend_from_slice(&device.0);
    let place = out.len();
    out.push(0);
    let mut count = 0_u8;
    for addr in addrs {
        let len = u16::try_from(addr.len()).unwrap_or(0);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(addr.as_bytes().get(..usize::from(len)).unwrap_or_default());
        count = count.checked_add(1).expect("at most BOOK_ADDRS_MAX");
    }
    match out.get_mut(place) {
        Some(byte) if count > 0 => *byte = count,
        _ => out.truncate(begin),
    }
    count > 0
}

/// Bits that two names begin with in common, and their distance by XOR.
pub(crate) fn distance(me: &DeviceId, device: &DeviceId) -> (u32, [u8; 32]) {
    let mut distance = device.0;
    for (byte, mine) in distance.iter_mut().zip(me.0) {
        *byte ^= mine;
    }
    let mut common = 0;
    for byte in distance {
        common += byte.leading_zeros();
        if byte != 0 {
            break;
        }
    }
    (common, distance)
}

impl Known {
    fn new(now: Time) -> Self {
        Self {
            own: Vec::new(),
            hearsay: Vec::new(),
            sighted: Vec::new(),
            dialled: None,
            dialling: false,
            retry: RETRY_FIRST,
            next_dial: now,
        }
    }

    fn tells(&self, addr: &String) -> bool {
        self.own.contains(addr) || self.hearsay.contains(addr)
    }

    /// When a dial that is under way counts as over, or is made again.
    fn over(&self) -> Time {
        let end = self.dialled.map_or(Time(0), |at| at + DIAL_WAIT);
        end.min(self.next_dial)
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

/// What somebody has not been told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Anything.
    All,
    /// Of these devices.
    Of(BTreeSet<DeviceId>),
}

impl Default for News {
    fn default() -> Self {
        Self::Of(BTreeSet::new())
    }
}

impl News {
    fn has(&self, device: &DeviceId) -> bool {
        match self {
            Self::All => true,
            Self::Of(devices) => devices.contains(device),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Of(devices) if devices.is_empty())
    }
}

/// Whom to tell of the book, what, and when.
///
/// A change is told [`TELL_DELAY`] after the first that is untold, whatever comes meanwhile, and nothing else with it; a peer that is met is told everything at
/// once; and no peer is told twice within [`TELL_PAUSE`].
#[derive(Debug, Default)]
pub struct Telling {
    /// Since when something is untold.
    since: Option<Time>,
    /// Of whom it is; and the peer that all of it came from, if it was one.
    untold: BTreeMap<DeviceId, Option<DeviceId>>,
    peers: BTreeMap<DeviceId, Peer>,
    /// Those that are owed something: mostly none, and it is asked after every input.
    owed: BTreeSet<DeviceId>,
}

#[derive(Debug, Default)]
struct Peer {
    connected: bool,
    owed: News,
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
        self.owed.insert(peer);
        let peer = self.peers.entry(peer).or_default();
        peer.connected = true;
        peer.owed = News::All;
    }

    /// A peer is connected no more. When it was told last is remembered: coming again makes it no hungrier.
    pub fn left(&mut self, peer: &DeviceId) {
        if let Some(known) = self.peers.get_mut(peer) {
            self.owed.remove(peer);
            known.connected = false;
            known.owed = News::default();
            if known.told.is_none() {
                self.peers.remove(peer);
            }
        }
    }

    /// What the book says of these devices changed, by what that peer said if one did.
    pub fn changed(
        &mut self,
        now: Time,
        devices: impl IntoIterator<Item = DeviceId>,
        from: Option<DeviceId>,
    ) {
        for device in devices {
            let source = self.untold.entry(device).or_insert(from);
            *source = source.filter(|before| Some(*before) == from);
            self.since.get_or_insert(now);
        }
    }

    /// Who is to be told now, and what.
    pub fn due(&mut self, now: Time) -> Vec<(DeviceId, News)> {
        if self.since.is_some_and(|since| since + TELL_DELAY <= now) {
            self.since = None;
            let untold = std::mem::take(&mut self.untold);
            for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.connected) {
                if let News::Of(owed) = &mut peer.owed {
                    let news = untold.iter().filter(|(_, from)| **from != Some(*id));
                    owed.extend(news.map(|(device, _)| *device));
                }
                if !peer.owed.is_empty() {
                    self.owed.insert(*id);
                }
            }
        }
        let mut due = Vec::new();
        let peers = &mut self.peers;
        self.owed.retain(|id| match peers.get_mut(id) {
            Some(peer) if peer.free_at() > now => true,
            Some(peer) => {
                peer.told = Some(now);
                due.push((*id, std::mem::take(&mut peer.owed)));
                false
            }
            None => false,
        });
        due
    }

    /// When [`Telling::due`] has something next.
    pub fn next_due(&self) -> Option<Time> {
        let owed = self.owed.iter().filter_map(|id| self.peers.get(id));
        let untold = self.since.map(|since| since + TELL_DELAY);
        owed.map(Peer::free_at).chain(untold).min()
    }

    /// Laws that hold between any two calls.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.peers
                .values()
                .all(|peer| peer.connected || peer.owed.is_empty()),
            "nothing is owed to one that is away"
        );
        assert!(
            self.peers
                .values()
                .all(|peer| peer.connected || peer.told.is_some()),
            "one that is away is remembered for when it was told"
        );
        assert_eq!(self.since.is_none(), self.untold.is_empty());
        let owed = self.peers.iter().filter(|(_, peer)| !peer.owed.is_empty());
        assert!(
            owed.map(|(id, _)| id).eq(&self.owed),
            "who is owed something is known"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::derive;
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
        for n in 0..1100u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            let addrs: Vec<String> = (0..100)
                .map(|i| format!("/ip4/127.0.0.1/tcp/{i}"))
                .collect();
            book.learn(Time(0), DeviceId(id), &addrs, false);
        }
        assert_eq!(book.iter().count(), BOOK_DEVICES_MAX);
        assert!(book.iter().all(|(_, addrs)| addrs.len() == BOOK_ADDRS_MAX));
        let kept = Book::decode_kept(&book.encode()).unwrap();
        assert!(
            kept.iter()
                .map(|(id, addrs)| (id, addrs.clone()))
                .eq(book.iter())
        );
        assert_eq!(Book::decode(&book.encode()), None, "too long for a message");
        // In messages that are short enough.
        let own = ["own".to_owned()];
        let messages = book.messages((&device(9), &own), &News::All);
        let decoded: Vec<_> = messages.iter().map(|m| Book::decode(m).unwrap()).collect();
        assert_eq!(decoded[0][0], (device(9), own.to_vec()));
        assert!(decoded.iter().all(|list| list.len() <= BOOK_MESSAGE_MAX));
        let told: Vec<_> = decoded.into_iter().flatten().skip(1).collect();
        assert_eq!(told, kept);
        // Of some, only of those that are known.
        let some = News::Of(BTreeSet::from([kept[3].0, kept[700].0, device(77)]));
        let messages = book.messages((&device(9), &own), &some);
        let told = Book::decode(&messages[0]).unwrap();
        assert_eq!(told, [kept[3].clone(), kept[700].clone()]);
    }

    /// As many as there may be, each dialling a few: all hang together, and no two halves by name.
    #[test]
    fn of_a_thousand_each_dials_some_and_all_hang_together() {
        let ids: Vec<DeviceId> = (0..1000u32)
            .map(|n| DeviceId(derive("test", &n.to_le_bytes())))
            .collect();
        let dials: BTreeMap<DeviceId, BTreeSet<DeviceId>> = ids
            .iter()
            .map(|me| {
                let mut book = Book::default();
                for other in ids.iter().filter(|other| *other != me) {
                    book.learn(Time(0), *other, &["there".into()], true);
                }
                let due = book.due(Time(0), me, 12, |_| true);
                (*me, due.into_iter().map(|(device, _)| device).collect())
            })
            .collect();
        let mut asked: BTreeMap<&DeviceId, u32> = BTreeMap::new();
        for device in dials.values().flatten() {
            *asked.entry(device).or_default() += 1;
        }
        assert!(asked.values().all(|count| *count < 40), "nobody is overrun");
        let mut reached = BTreeSet::from([ids[0]]);
        let mut todo = vec![ids[0]];
        while let Some(at) = todo.pop() {
            let back = dials.iter().filter(|(_, dials)| dials.contains(&at));
            let next = back.map(|(from, _)| from).chain(&dials[&at]);
            todo.extend(next.filter(|device| reached.insert(**device)));
        }
        assert_eq!(reached.len(), 1000);
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
                assert!(book.due(Time(0), &device(me), 4, |_| true).is_empty());
                let next = book.next_due(4, |_| true);
                assert_eq!(next, Some(Time(0) + RETRY_FIRST), "those under way count");
                firsts.insert(due[0].0);
                for (device, _) in due {
                    book.missed(&device);
                    dialled.insert(device);
                }
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
        let told = Book::decode_kept(&book.encode()).unwrap();
        assert_eq!(told, [(device(1), vec!["far".to_owned()])]);
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
        let all = |n| (device(n), News::All);
        let of = |n, about: &[u8]| {
            let about = about.iter().map(|n| device(*n));
            (device(n), News::Of(about.collect()))
        };
        assert_eq!(telling.due(second(0)), [all(1), all(2)], "at once");
        for s in 10..15 {
            telling.changed(second(s), [device(7)], Some(device(1)));
            assert_eq!(telling.next_due(), Some(second(15)));
            assert!(telling.due(second(s)).is_empty());
        }
        let due = telling.due(second(15));
        assert_eq!(due, [of(2, &[7])], "1 has said so itself");
        assert_eq!(telling.next_due(), None);
        telling.changed(second(20), [device(7), device(8)], Some(device(1)));
        telling.changed(second(21), [device(8), device(9)], Some(device(2)));
        let due = telling.due(second(25));
        assert_eq!(due, [of(1, &[8, 9]), of(2, &[7, 8])]);
        telling.changed(second(30), [device(7)], Some(device(1)));
        telling.changed(second(31), [device(7)], None);
        telling.left(&device(2));
        assert_eq!(telling.due(second(35)), [of(1, &[7])]);
        // Who comes back is told everything, once.
        telling.met(second(40), device(2));
        telling.changed(second(40), [device(8)], None);
        assert_eq!(telling.due(second(40)), [all(2)]);
        assert_eq!(telling.due(second(45)), [of(1, &[8]), of(2, &[8])]);
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
            // What each peer has not been told yet: of whom, and since when.
            let mut news: BTreeMap<(DeviceId, DeviceId), Time> = BTreeMap::new();
            for (step, n, ms) in steps {
                let until = now + Span::from_ms(ms);
                loop {
                    for (peer, of) in telling.due(now) {
                        prop_assert!(connected.contains(&peer));
                        let last = told.insert(peer, now);
                        prop_assert!(last.is_none_or(|last| now.since(last) >= TELL_PAUSE));
                        news.retain(|(to, about), _| *to != peer || !of.has(about));
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
                    1 => { telling.left(&device(n)); connected.remove(&device(n)); news.retain(|(to, _), _| *to != device(n)); }
                    _ => {
                        let from = (step == 2).then_some(device(n));
                        let about = device(100 + n % 3);
                        telling.changed(now, [about], from);
                        for peer in connected.iter().filter(|peer| Some(**peer) != from) {
                            news.entry((*peer, about)).or_insert(now);
                        }
                    }
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Book::decode(&bytes), Book::decode_kept(&bytes));
        }
    }
}
