//! Who reaches whom, directly or through another; what stands between them, and what becomes of what is under way then.
//!
//! Spec: `protocol/spec/simulation.md`, "Network", "Ways".

use std::collections::{BTreeMap, BTreeSet};

use kith_core::device::{Channel, Input};
use kith_object::id::DeviceId;
use kith_object::time::{Span, Time};

use super::{CONNECTIONS, Event, World, pair};
use crate::network::{Purpose, Way};
use crate::plan::{Nat, Plan};

/// Without an answer for so long a connection counts as gone: a ping every 15 s that waits for 20 s.
const SILENCE: (u64, u64) = (5_000, 35_000);
/// So much of what is sent arrives when no acknowledgement comes back: what a connection has under way at most.
const UNACKNOWLEDGED_MAX: u64 = 64 << 10;
/// What was held up goes out again after at least so long, and after a minute at most, as TCP tries less and less often.
const AGAIN: Span = Span(200);
const AGAIN_MAX: Span = Span::from_secs(60);
/// Connections that a device relays at most.
const CIRCUITS_MAX: usize = 128;
/// A direct way is looked for so long after a relayed one has come about; after each try in vain twice as long as before, up to ten minutes.
const PUNCH_FIRST: Span = Span::from_secs(5);
const PUNCH_MAX: Span = Span::from_secs(600);
/// Two routers that let in what comes from where something went out to are got through so often, of 100.
const PUNCHED: u64 = 80;

/// A connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) since: Time,
    /// Who relays it.
    pub(super) via: Option<usize>,
    /// Nothing came for a while, and it is waited whether something still does.
    failing: bool,
}

/// Connections by pair.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By the smaller of the two, then by the other.
    pairs: Vec<BTreeMap<usize, Link>>,
    /// Those that somebody relays.
    relayed: BTreeSet<(usize, usize)>,
}

impl Links {
    pub(super) fn new(devices: usize) -> Self {
        Self {
            pairs: vec![BTreeMap::new(); devices],
            relayed: BTreeSet::new(),
        }
    }

    pub(super) fn get(&self, one: usize, other: usize) -> Option<Link> {
        let (less, more) = pair(one, other);
        self.pairs.get(less)?.get(&more).copied()
    }

    fn get_mut(&mut self, one: usize, other: usize) -> Option<&mut Link> {
        let (less, more) = pair(one, other);
        self.pairs.get_mut(less)?.get_mut(&more)
    }

    fn insert(&mut self, one: usize, other: usize, link: Link) {
        let (less, more) = pair(one, other);
        if link.via.is_some() {
            self.relayed.insert((less, more));
        }
        if let Some(links) = self.pairs.get_mut(less) {
            links.insert(more, link);
        }
    }

    fn remove(&mut self, one: usize, other: usize) -> Option<Link> {
        let (less, more) = pair(one, other);
        self.relayed.remove(&(less, more));
        self.pairs.get_mut(less)?.remove(&more)
    }

    fn iter(&self) -> impl Iterator<Item = ((usize, usize), Link)> {
        let all = self.pairs.iter().enumerate();
        all.flat_map(|(less, links)| links.iter().map(move |(more, link)| ((less, *more), *link)))
    }

    /// Relayed connections, and who relays them.
    fn relayed(&self) -> impl Iterator<Item = ((usize, usize), usize)> {
        let relayed = self.relayed.iter().copied();
        relayed.filter_map(|(one, other)| Some(((one, other), self.get(one, other)?.via?)))
    }

    /// Laws that hold between any two calls.
    pub(super) fn check_invariants(&self) {
        for ((one, other), link) in self.iter() {
            assert!(one < other, "a connection is between two");
            assert_eq!(
                self.relayed.contains(&(one, other)),
                link.via.is_some(),
                "what is relayed is known"
            );
            if let Some(via) = link.via {
                let direct = |end: usize| self.get(end, via).is_some_and(|link| link.via.is_none());
                assert!(
                    direct(one) || direct(other),
                    "who relays is connected with one of them at least"
                );
            }
        }
    }
}

/// What a device has between itself and the rest.
#[derive(Debug, Clone, Copy)]
struct Door {
    nat: Nat,
    relays: bool,
}

/// What is under way between two devices and does not get through.
#[derive(Debug)]
struct Stalled {
    since: Time,
    events: Vec<Event>,
    /// Bytes that got through without being acknowledged.
    unacknowledged: u64,
}

/// What stands between devices.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    doors: Vec<Door>,
    /// Groups that cannot reach each other, for each partition that stands.
    partitions: BTreeMap<u64, Vec<BTreeSet<usize>>>,
    /// What the first send does not reach the second.
    one_way: BTreeMap<u64, (BTreeSet<usize>, BTreeSet<usize>)>,
    /// Devices that reach nobody, for how many reasons.
    away: BTreeMap<usize, u32>,
    /// By who sends, and to whom.
    stalled: BTreeMap<(usize, usize), Stalled>,
}

impl Obstacles {
    pub(super) fn new(plan: &Plan) -> Self {
        let doors = plan.devices.iter().map(|device| Door {
            nat: plan
                .sites
                .get(device.site)
                .map_or(Nat::Open, |site| site.nat),
            relays: device.relay,
        });
        Self {
            doors: doors.collect(),
            ..Self::default()
        }
    }

    /// Whether nothing stands between any two.
    fn none(&self) -> bool {
        self.partitions.is_empty() && self.one_way.is_empty() && self.away.is_empty()
    }

    /// Whether what one sends gets to the other, if both run.
    fn pass(&self, from: usize, to: usize) -> bool {
        if self.none() {
            return true;
        }
        let together = |groups: &Vec<BTreeSet<usize>>| {
            let mut groups = groups.iter();
            groups.any(|group| group.contains(&from) && group.contains(&to))
        };
        let swallowed = |(these, those): &(BTreeSet<usize>, BTreeSet<usize>)| {
            these.contains(&from) && those.contains(&to)
        };
        !self.away.contains_key(&from)
            && !self.away.contains_key(&to)
            && self.partitions.values().all(together)
            && !self.one_way.values().any(swallowed)
    }

    fn pass_both_ways(&self, one: usize, other: usize) -> bool {
        self.pass(one, other) && self.pass(other, one)
    }

    fn door(&self, device: usize) -> Door {
        let door = self.doors.get(device).copied();
        door.unwrap_or(Door {
            nat: Nat::Open,
            relays: false,
        })
    }

    /// What is under way between two devices and does not get through, from now on if not before.
    fn stall(&mut self, from: usize, to: usize, now: Time) -> &mut Stalled {
        self.stalled.entry((from, to)).or_insert_with(|| Stalled {
            since: now,
            events: Vec::new(),
            unacknowledged: 0,
        })
    }

    /// A partition stands from now on.
    pub(super) fn part(&mut self, number: u64, groups: Vec<BTreeSet<usize>>) {
        self.partitions.insert(number, groups);
    }

    /// What the first send does not reach the second from now on.
    pub(super) fn swallow(&mut self, number: u64, from: BTreeSet<usize>, to: BTreeSet<usize>) {
        self.one_way.insert(number, (from, to));
    }

    /// What bore that number is over.
    pub(super) fn heal(&mut self, number: u64) {
        self.partitions.remove(&number);
        self.one_way.remove(&number);
    }

    /// A device reaches nobody for one more reason.
    pub(super) fn leave(&mut self, device: usize) {
        *self.away.entry(device).or_default() += 1;
    }

    /// One reason less.
    pub(super) fn back(&mut self, device: usize) {
        if let Some(reasons) = self.away.get_mut(&device) {
            *reasons -= 1;
            if *reasons == 0 {
                self.away.remove(&device);
            }
        }
    }

    /// All of it is over.
    pub(super) fn clear(&mut self) {
        self.partitions.clear();
        self.one_way.clear();
        self.away.clear();
    }
}

impl World {
    fn runs(&self, device: usize) -> bool {
        let slot = self.slots.get(device);
        slot.is_some_and(|slot| slot.running.is_some())
    }

    /// Whether two devices get to each other and back, whatever routers there are.
    pub(super) fn reach(&self, one: usize, other: usize) -> bool {
        self.runs(one) && self.runs(other) && self.obstacles.pass_both_ways(one, other)
    }

    /// Whether what is sent on their connection gets through.
    fn carries(&self, from: usize, to: usize, via: Option<usize>) -> bool {
        match via {
            Some(via) => self.obstacles.pass(from, via) && self.obstacles.pass(via, to),
            None => self.obstacles.pass(from, to),
        }
    }

    fn carries_both_ways(&self, one: usize, other: usize, via: Option<usize>) -> bool {
        self.carries(one, other, via) && self.carries(other, one, via)
    }

    /// Whether a connection stands over which all gets through, since when.
    pub(super) fn sound_since(&self, one: usize, other: usize) -> Option<Time> {
        let link = self.links.get(one, other)?;
        self.carries_both_ways(one, other, link.via)
            .then_some(link.since)
    }

    /// The way to a device that is connected, or would be.
    pub(super) fn way(&self, from: usize, to: usize) -> Way {
        let via = self.links.get(from, to).and_then(|link| link.via);
        Way { from, to, via }
    }

    /// Puts a message on a connection; answers when it is written. Nothing if there is no such connection.
    pub(super) fn hand_over(
        &mut self,
        (from, to): (usize, usize),
        channel: Channel,
        bytes: bytes::Bytes,
    ) -> Option<Time> {
        let link = self.links.get(from, to)?;
        let purpose = match channel {
            Channel::Bitswap => Purpose::Blocks,
            Channel::Sync => Purpose::Sync,
        };
        let (via, connection) = (link.via, link.number);
        let way = Way { from, to, via };
        let (written, at) = self
            .network
            .send(self.now, way, bytes.len(), purpose, &mut self.rng);
        let arrives = Event::Arrives {
            from,
            to,
            connection,
            channel,
            bytes,
        };
        self.push(at, arrives);
        Some(written)
    }

    /// Whether something that would arrive now does; if not it is held, and comes later, if the connection stands as long.
    pub(super) fn gets_through(
        &mut self,
        (from, to): (usize, usize),
        len: usize,
        event: Event,
    ) -> Option<Event> {
        if self.obstacles.none() && self.obstacles.stalled.is_empty() {
            return Some(event);
        }
        let Some(Link { via, .. }) = self.links.get(from, to) else {
            return self.obstacles.pass(from, to).then_some(event);
        };
        let carries = self.carries(from, to, via);
        let answered = self.carries(to, from, via);
        let waiting = self.obstacles.stalled.contains_key(&(from, to));
        if carries && answered && !waiting {
            return Some(event);
        }
        let stalled = self.obstacles.stall(from, to, self.now);
        // What was sent before the acknowledgements stopped coming back.
        if carries && stalled.events.is_empty() {
            stalled.unacknowledged += len as u64;
            if stalled.unacknowledged <= UNACKNOWLEDGED_MAX {
                return Some(event);
            }
        }
        stalled.events.push(event);
        None
    }

    /// What comes of a message once it is written: not before it gets through, where it does not now.
    pub(super) fn push_unless_stuck(&mut self, (from, to): (usize, usize), at: Time, event: Event) {
        if !self.obstacles.none()
            && let Some(link) = self.links.get(from, to)
            && !self.carries_both_ways(from, to, link.via)
        {
            let stalled = self.obstacles.stall(from, to, self.now);
            stalled.events.push(event);
            return;
        }
        self.push(at, event);
    }

    /// Something has come between devices: connections over which nothing gets through any more count as gone, in a while.
    pub(super) fn fall_silent(&mut self) {
        if self.obstacles.none() {
            return;
        }
        let silent: Vec<(usize, usize)> = self
            .links
            .iter()
            .filter(|((one, other), link)| {
                !link.failing && !self.carries_both_ways(*one, *other, link.via)
            })
            .map(|(pair, _)| pair)
            .collect();
        for (one, other) in silent {
            let Some(link) = self.links.get_mut(one, other) else {
                continue;
            };
            link.failing = true;
            let number = link.number;
            self.after(SILENCE, Event::Silent { one, other, number });
        }
    }

    /// Nothing came for so long that the connection counts as gone, if nothing comes still.
    pub(super) fn is_given_up(&mut self, one: usize, other: usize, number: u64) {
        let link = self.links.get(one, other);
        let Some(link) = link.filter(|link| link.number == number) else {
            return;
        };
        if self.carries_both_ways(one, other, link.via) {
            if let Some(link) = self.links.get_mut(one, other) {
                link.failing = false;
            }
        } else {
            self.disconnect(one, other);
        }
    }

    /// Something does not stand between devices any more: what was held up goes on its way again.
    pub(super) fn get_going(&mut self) {
        let held: Vec<(usize, usize)> = self.obstacles.stalled.keys().copied().collect();
        for (from, to) in held {
            let via = self.way(from, to).via;
            if !self.carries_both_ways(from, to, via) {
                continue;
            }
            let Some(stalled) = self.obstacles.stalled.remove(&(from, to)) else {
                continue;
            };
            let longest = AGAIN_MAX.0.min(self.now.since(stalled.since).0);
            let at = self.now + AGAIN + Span(self.rng.below(longest + 1));
            self.network.held_until(from, to, at);
            for event in stalled.events {
                self.push(at, event);
            }
            if let Some(link) = self.links.get_mut(from, to) {
                link.since = link.since.max(at);
            }
        }
    }

    /// Devices that this one is connected with.
    pub(super) fn neighbours(&self, device: usize) -> impl Iterator<Item = usize> {
        self.overlay.links(device)
    }

    /// How a device would be dialled: directly, or through another, if at all.
    fn way_in(&self, from: usize, to: usize) -> Option<Option<usize>> {
        if !self.runs(from) || !self.runs(to) {
            return None;
        }
        let near = self.network.site(from) == self.network.site(to);
        if near || self.obstacles.door(to).nat == Nat::Open {
            return self.obstacles.pass_both_ways(from, to).then_some(None);
        }
        // One that is reached from everywhere and has the device connected, and both get to it.
        let relays = |via: &usize| {
            let via = *via;
            let direct = self
                .links
                .get(via, to)
                .is_some_and(|link| link.via.is_none());
            let door = self.obstacles.door(via);
            via != from
                && direct
                && door.relays
                && door.nat == Nat::Open
                && self.reach(from, via)
                && self.reach(via, to)
                && self.links.relayed().filter(|(_, by)| *by == via).count() < CIRCUITS_MAX
        };
        self.neighbours(to).find(relays).map(Some)
    }

    /// Whether a question that one asks the other gets there, and its answer back.
    pub(super) fn asks(&self, from: usize, to: usize) -> bool {
        match self.links.get(from, to) {
            Some(link) => self.carries_both_ways(from, to, link.via),
            None => self.way_in(from, to).is_some(),
        }
    }

    /// One dials the other, at the address where it is, or at an old one.
    pub(super) fn dialled(&mut self, from: usize, to: usize, rightly: bool) {
        if rightly {
            self.connect(from, to);
        }
        if self.links.get(from, to).is_none() {
            let peer = self.id(to);
            // Whoever is not there does not even refuse.
            let refused = rightly && self.way_in(from, to).is_some();
            let wait = if refused { 0 } else { super::DIAL_PATIENCE };
            self.later((wait, wait), from, Input::Unreachable(peer));
        }
    }

    pub(super) fn connect(&mut self, one: usize, other: usize) {
        if one == other || self.links.get(one, other).is_some() {
            return;
        }
        let Some(via) = self.way_in(one, other) else {
            return;
        };
        let full = |device: usize| self.overlay.links(device).count() >= CONNECTIONS;
        if full(one) || full(other) {
            return;
        }
        // The allow-lists come first on both sides; whoever means harm lets in everybody.
        let (a, b) = (self.id(one), self.id(other));
        let admits = |world: &Self, at: usize, whom: &DeviceId| {
            let slot = world.slots.get(at);
            let running = slot.and_then(|slot| slot.running.as_ref());
            running.is_some_and(|running| running.device.admits(whom))
        };
        let (one_admits, other_admits) = (admits(self, one, &b), admits(self, other, &a));
        if !one_admits && !self.is_hostile(one) || !other_admits && !self.is_hostile(other) {
            return;
        }
        self.next += 1;
        let number = self.next;
        let link = Link {
            number,
            since: self.now,
            via,
            failing: false,
        };
        self.links.insert(one, other, link);
        self.overlay.connect(one, other);
        self.dht.tables.meet(one, other);
        match via {
            None => self
                .trace
                .note(self.now, one, format_args!("connects d{other}")),
            Some(via) => {
                let how = format_args!("connects d{other} through d{via}");
                self.trace.note(self.now, one, how);
                self.look_for_shortcut((one, other), number, PUNCH_FIRST);
            }
        }
        if one_admits {
            self.input(one, Input::Connected(b));
        }
        if other_admits {
            self.input(other, Input::Connected(a));
        }
    }

    /// One of the two tries for a direct way after a while, if their routers let that happen.
    fn look_for_shortcut(&mut self, (one, other): (usize, usize), number: u64, pause: Span) {
        let nats = [one, other].map(|device| self.obstacles.door(device).nat);
        if nats.contains(&Nat::Symmetric) && !nats.contains(&Nat::Open) {
            return;
        }
        let punch = Event::Punch {
            one,
            other,
            number,
            pause,
        };
        self.push(self.now + pause, punch);
    }

    /// A direct way is tried for: to the one that is reached from everywhere, or through both routers at once.
    pub(super) fn punch(&mut self, (one, other): (usize, usize), number: u64, pause: Span) {
        let link = self.links.get(one, other);
        if link.is_none_or(|link| link.number != number) {
            return;
        }
        let nats = [one, other].map(|device| self.obstacles.door(device).nat);
        let through = nats.contains(&Nat::Open) || self.rng.below(100) < PUNCHED;
        if through && self.reach(one, other) {
            self.trace
                .note(self.now, one, format_args!("reaches d{other} directly"));
            if let Some(mut link) = self.links.remove(one, other) {
                link.via = None;
                self.links.insert(one, other, link);
            }
        } else {
            let pause = Span((2 * pause.0).min(PUNCH_MAX.0));
            self.look_for_shortcut((one, other), number, pause);
        }
    }

    pub(super) fn disconnect(&mut self, one: usize, other: usize) {
        let Some(link) = self.links.remove(one, other) else {
            return;
        };
        for way in [(one, other), (other, one)] {
            self.obstacles.stalled.remove(&way);
        }
        self.network.cut(one, other);
        self.overlay.disconnect(one, other, &mut self.rng);
        self.trace
            .note(self.now, one, format_args!("disconnects d{other}"));
        let (a, b) = (self.id(one), self.id(other));
        self.input(one, Input::Disconnected(b));
        self.input(other, Input::Disconnected(a));
        if link.via.is_none() {
            self.end_relayed(one, other);
        }
    }

    /// What one of the two relayed to or from the other is over too.
    fn end_relayed(&mut self, one: usize, other: usize) {
        let over = |((a, b), via): ((usize, usize), usize)| {
            let by = |relay: usize, end: usize| via == relay && (a == end || b == end);
            (by(one, other) || by(other, one)).then_some((a, b))
        };
        let over: Vec<(usize, usize)> = self.links.relayed().filter_map(over).collect();
        for (a, b) in over {
            self.disconnect(a, b);
        }
    }
}
