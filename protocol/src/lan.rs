//! Finds devices of the mesh in the local network, and doors for one who has only the words.
//!
//! Spec: `protocol/spec/lan.md`, "Exchange".

mod packet;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use bytes::Bytes;
use kith_object::id::DeviceId;
use kith_object::key::Rng;
use kith_object::time::{Span, Time};

pub use packet::{DATAGRAM_BYTES_MAX, LanKey, Notice, Ports, encode, open, sealed_in};

/// Addresses of this machine that take part.
pub const INTERFACES_MAX: usize = 32;
/// Neighbours remembered, so that none is told of twice at once; far more than a person has devices.
const NEIGHBOURS_MAX: usize = 256;
/// Between two tellings of one neighbour that says nothing new.
const RETELL: Span = Span::from_secs(5);
/// Tellings a second, of all neighbours.
const FOUND_MAX: u32 = 64;
/// Sealed notices tried to open a second; each costs about a microsecond.
const OPENED_MAX: u32 = 512;
/// The same of one address, so that who floods crowds out nobody else.
const OPENED_PER_SOURCE_MAX: u32 = 16;
/// A device that is here says so this often, unasked.
const REPEAT: Span = Span::from_secs(60);
/// Between two answers, however many ask.
const ANSWER_PAUSE: Span = Span::from_secs(1);
/// Answers wait this long at random, so that many do not speak at once.
const ANSWER_DELAY_MS: (u64, u64) = (20, 100);
/// When something is new it is said three times: a datagram may get lost. Seconds between.
const INSIST: [u64; 2] = [1, 3];
/// Seconds between the questions of one who seeks; the last repeats.
const SEEK: [u64; 4] = [1, 2, 4, 8];
/// The window of the limits by second.
const WINDOW: Span = Span::from_secs(1);

/// Who speaks.
#[derive(Clone, Debug)]
pub enum Speaker {
    /// A device of the mesh.
    Device {
        /// Which.
        device: DeviceId,
        /// Where devices of the mesh connect.
        inside: Ports,
        /// Where newcomers knock.
        door: Ports,
    },
    /// One who has only the words.
    Newcomer,
}

/// What happens.
#[derive(Debug)]
pub enum Input {
    /// The addresses of this machine that take part, from now on.
    Interfaces(BTreeSet<Ipv4Addr>),
    /// A datagram came.
    Heard {
        /// From where; anybody can write anything there.
        from: Ipv4Addr,
        /// What.
        datagram: Bytes,
    },
    /// Time has come to [`Lan::next_wakeup`].
    Wake,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this from that address of ours to all in its network.
    Send {
        /// The address.
        from: Ipv4Addr,
        /// The datagram.
        datagram: Bytes,
    },
    /// A device of the mesh says that it is here. Whoever has ever read `access` can say so: who answers there has to prove its key.
    Found(Neighbour),
}

/// A device that says where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Which.
    pub device: DeviceId,
    /// Its address.
    pub addr: Ipv4Addr,
    /// Where devices of the mesh connect.
    pub inside: Ports,
    /// Where newcomers knock.
    pub door: Ports,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Notices of this mesh, our own among them.
    pub opened: u64,
    /// Notices of others, or altered.
    pub foreign: u64,
    /// What was over a limit.
    pub dropped: u64,
}

/// Finds devices of one mesh in the local network.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Lan::next_wakeup`]. Spec: `protocol/spec/lan.md`, "Exchange".
pub struct Lan {
    key: LanKey,
    speaker: Speaker,
    rng: Rng,
    interfaces: BTreeSet<Ipv4Addr>,
    /// When to speak next unasked, and how often it was said since something was new.
    next_say: Option<(Time, usize)>,
    /// When to answer, if somebody asked.
    next_answer: Option<Time>,
    last_said: Option<Time>,
    /// When each was told of last, and what.
    neighbours: BTreeMap<DeviceId, (Time, Neighbour)>,
    window: Window,
    stats: Stats,
    effects: VecDeque<Effect>,
}

/// What was done in the current second.
#[derive(Debug, Default)]
struct Window {
    began: Time,
    opened: u32,
    found: u32,
    /// Notices tried to open, by where they came from.
    by_source: BTreeMap<Ipv4Addr, u32>,
}

impl Lan {
    /// Begins; nothing is said before there are interfaces.
    pub fn new(key: LanKey, speaker: Speaker, rng: Rng) -> Self {
        Self {
            key,
            speaker,
            rng,
            interfaces: BTreeSet::new(),
            next_say: None,
            next_answer: None,
            last_said: None,
            neighbours: BTreeMap::new(),
            window: Window::default(),
            stats: Stats::default(),
            effects: VecDeque::new(),
        }
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Interfaces(interfaces) => self.moved(now, interfaces),
            Input::Heard { from, datagram } => self.heard(now, from, &datagram),
            Input::Wake => {}
        }
        self.pass(now);
    }

    /// The next wish, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come with [`Input::Wake`] at the latest.
    pub fn next_wakeup(&self) -> Option<Time> {
        let say = self.next_say.map(|(at, _)| at);
        say.into_iter().chain(self.next_answer).min()
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Panics if the machine is not as it should be.
    pub fn check_invariants(&self) {
        assert!(self.interfaces.len() <= INTERFACES_MAX, "too many of ours");
        assert!(self.neighbours.len() <= NEIGHBOURS_MAX, "too many others");
        assert!(
            self.window.opened <= OPENED_MAX && self.window.found <= FOUND_MAX,
            "more than may be in a second"
        );
        let sum: u32 = self.window.by_source.values().sum();
        assert!(
            sum == self.window.opened
                && self
                    .window
                    .by_source
                    .values()
                    .all(|count| *count <= OPENED_PER_SOURCE_MAX),
            "one source more than its share"
        );
        assert!(
            self.next_say.is_some() != self.interfaces.is_empty(),
            "speaks exactly where there is a network"
        );
        assert!(
            self.next_answer.is_none() || matches!(self.speaker, Speaker::Device { .. }),
            "who only seeks has nothing to answer"
        );
    }

    fn moved(&mut self, now: Time, interfaces: BTreeSet<Ipv4Addr>) {
        let interfaces: BTreeSet<Ipv4Addr> = interfaces.into_iter().take(INTERFACES_MAX).collect();
        if interfaces.is_empty() {
            self.next_say = None;
            self.next_answer = None;
        } else if !interfaces.is_subset(&self.interfaces) {
            self.next_say = Some((now, 0));
            // Whom it knew in another network may be where it is now, and elsewhere.
            self.neighbours.clear();
        }
        self.interfaces = interfaces;
    }

    fn heard(&mut self, now: Time, from: Ipv4Addr, datagram: &[u8]) {
        if self.interfaces.is_empty() {
            return;
        }
        if now.since(self.window.began) >= WINDOW {
            self.window = Window {
                began: now,
                ..Window::default()
            };
        }
        for sealed in sealed_in(datagram) {
            // At most as many sources as notices are looked at.
            let of_source = self.window.by_source.get(&from).copied().unwrap_or(0);
            if self.window.opened >= OPENED_MAX || of_source >= OPENED_PER_SOURCE_MAX {
                self.stats.dropped += 1;
                return;
            }
            self.window.opened += 1;
            self.window.by_source.insert(from, of_source + 1);
            match open(&self.key, sealed) {
                Some(notice) => {
                    self.stats.opened += 1;
                    self.noticed(now, from, notice);
                }
                None => self.stats.foreign += 1,
            }
        }
    }

    fn noticed(&mut self, now: Time, from: Ipv4Addr, notice: Notice) {
        let answer = match notice {
            Notice::Seek => true,
            Notice::Here {
                answer,
                device,
                addr,
                inside,
                door,
            } => {
                if let Speaker::Device { device: me, .. } = &self.speaker
                    && *me == device
                {
                    return;
                }
                let neighbour = Neighbour {
                    device,
                    addr,
                    inside,
                    door,
                };
                if !is_near(addr, from) {
                    self.stats.dropped += 1;
                    return;
                }
                self.found(now, neighbour);
                answer
            }
        };
        if answer && matches!(self.speaker, Speaker::Device { .. }) && self.next_answer.is_none() {
            let (least, spread) = ANSWER_DELAY_MS;
            let soon = now + Span::from_ms(least + self.rng.below(spread));
            let polite = self.last_said.map_or(soon, |last| last + ANSWER_PAUSE);
            self.next_answer = Some(soon.max(polite));
        }
    }

    fn found(&mut self, now: Time, neighbour: Neighbour) {
        let known = self.neighbours.get(&neighbour.device);
        let again = known.is_some_and(|(told, known)| {
            // One who is told of anew each second may as well be told of each second.
            let pause = if *known == neighbour { RETELL } else { WINDOW };
            now.since(*told) < pause
        });
        if again {
            return;
        }
        if self.window.found >= FOUND_MAX
            || (known.is_none() && self.neighbours.len() >= NEIGHBOURS_MAX && !self.make_room(now))
        {
            self.stats.dropped += 1;
            return;
        }
        self.window.found += 1;
        self.neighbours.insert(neighbour.device, (now, neighbour));
        self.effects.push_back(Effect::Found(neighbour));
    }

    /// Forgets those who say nothing any more.
    fn make_room(&mut self, now: Time) -> bool {
        self.neighbours
            .retain(|_, (told, _)| now.since(*told) < REPEAT);
        self.neighbours.len() < NEIGHBOURS_MAX
    }

    fn pass(&mut self, now: Time) {
        if let Some((at, said)) = self.next_say
            && at <= now
        {
            let pause = match self.speaker {
                Speaker::Newcomer => Span::from_secs(
                    SEEK.get(said)
                        .or(SEEK.last())
                        .copied()
                        .unwrap_or(REPEAT.as_ms() / 1000),
                ),
                Speaker::Device { .. } => INSIST
                    .get(said)
                    .map_or(REPEAT, |seconds| Span::from_secs(*seconds)),
            };
            self.next_say = Some((now + pause, said + 1));
            // It wants to know the others as long as it is new itself.
            self.say(now, said <= INSIST.len());
            self.next_answer = None;
        }
        if self.next_answer.is_some_and(|at| at <= now) {
            self.next_answer = None;
            self.say(now, false);
        }
    }

    fn say(&mut self, now: Time, answer: bool) {
        self.last_said = Some(now);
        for addr in self.interfaces.clone() {
            let notice = match self.speaker {
                Speaker::Newcomer => Notice::Seek,
                Speaker::Device {
                    device,
                    inside,
                    door,
                } => Notice::Here {
                    answer,
                    device,
                    addr,
                    inside,
                    door,
                },
            };
            let datagram = encode(&self.key, &mut self.rng, notice);
            self.effects.push_back(Effect::Send {
                from: addr,
                datagram,
            });
        }
    }
}

/// Whether an address may be one in the local network: a private one, or the very one the datagram came from. So nobody sends us to an address in the world.
fn is_near(addr: Ipv4Addr, from: Ipv4Addr) -> bool {
    let host = !addr.is_unspecified()
        && !addr.is_loopback()
        && !addr.is_multicast()
        && !addr.is_broadcast();
    host && (addr.is_private() || addr.is_link_local() || addr == from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;
    use proptest::prelude::*;

    fn key(n: u8) -> LanKey {
        LanKey::of(&DeviceId([n; 32]))
    }

    fn ports(n: u16) -> Ports {
        Ports { tcp: n, udp: n + 1 }
    }

    fn ip(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 1, n)
    }

    fn device(mesh: u8, n: u8) -> Lan {
        let speaker = Speaker::Device {
            device: DeviceId([n; 32]),
            inside: ports(4000),
            door: ports(5000),
        };
        Lan::new(key(mesh), speaker, Rng::from_seed([n; 32]))
    }

    fn newcomer(mesh: u8, n: u8) -> Lan {
        Lan::new(key(mesh), Speaker::Newcomer, Rng::from_seed([n; 32]))
    }

    fn here(mesh: u8, seed: u64, device: DeviceId, addr: Ipv4Addr, answer: bool) -> Bytes {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let notice = Notice::Here {
            answer,
            device,
            addr,
            inside: ports(4000),
            door: ports(5000),
        };
        encode(&key(mesh), &mut Rng::from_seed(bytes), notice)
    }

    /// Machines in one network, in which every datagram arrives at everybody at once.
    struct Network {
        now: Time,
        members: Vec<Lan>,
        sent: Vec<(usize, Time)>,
        found: Vec<(usize, Neighbour)>,
    }

    impl Network {
        fn new(members: Vec<Lan>) -> Self {
            let now = Time(1_000_000);
            let mut network = Self {
                now,
                members,
                sent: Vec::new(),
                found: Vec::new(),
            };
            for n in 0..network.members.len() {
                let addr = ip(u8::try_from(n + 1).unwrap());
                network.members[n].handle(now, Input::Interfaces([addr].into()));
                network.settle();
            }
            network
        }

        fn settle(&mut self) {
            loop {
                let mut datagrams = Vec::new();
                for (n, member) in self.members.iter_mut().enumerate() {
                    while let Some(effect) = member.poll_effect() {
                        match effect {
                            Effect::Send { from, datagram } => datagrams.push((n, from, datagram)),
                            Effect::Found(neighbour) => self.found.push((n, neighbour)),
                        }
                    }
                    member.check_invariants();
                }
                if datagrams.is_empty() {
                    return;
                }
                for (n, from, datagram) in datagrams {
                    self.sent.push((n, self.now));
                    for member in &mut self.members {
                        let datagram = datagram.clone();
                        member.handle(self.now, Input::Heard { from, datagram });
                    }
                }
            }
        }

        fn run(&mut self, span: Span) {
            let until = self.now + span;
            while let Some(next) = self.members.iter().filter_map(Lan::next_wakeup).min() {
                if next > until {
                    break;
                }
                self.now = self.now.max(next);
                for member in &mut self.members {
                    member.handle(self.now, Input::Wake);
                }
                self.settle();
            }
            self.now = until;
        }

        fn has_found(&self, who: usize, whom: u8) -> bool {
            self.found
                .iter()
                .any(|(n, found)| *n == who && found.device == DeviceId([whom; 32]))
        }
    }

    #[test]
    fn devices_of_one_mesh_find_each_other_and_nobody_else() {
        let mut network = Network::new(vec![device(1, 1), device(1, 2), device(9, 3)]);
        network.run(Span::from_secs(1));
        assert!(network.has_found(0, 2) && network.has_found(1, 1));
        assert!(!network.has_found(0, 3) && !network.has_found(2, 1) && !network.has_found(0, 1));
        assert!(network.members[2].stats().foreign > 0);
    }

    #[test]
    fn newcomer_finds_the_doors_of_its_mesh_and_nobody_finds_it() {
        let mut network = Network::new(vec![device(1, 1), device(9, 2)]);
        network.run(Span::from_secs(30));
        network.found.clear();
        network.members.push(newcomer(1, 7));
        let now = network.now;
        network.members[2].handle(now, Input::Interfaces([ip(7)].into()));
        network.settle();
        network.run(Span::from_ms(500));
        let found: Vec<_> = network.found.iter().map(|(n, _)| *n).collect();
        assert_eq!(found, [2], "it alone finds anything");
        let (_, door) = network.found[0];
        assert_eq!((door.addr, door.door), (ip(1), ports(5000)));
    }

    #[test]
    fn moved_device_is_found_at_its_new_address() {
        let mut network = Network::new(vec![device(1, 1), device(1, 2)]);
        network.run(Span::from_secs(100));
        network.found.clear();
        let now = network.now;
        network.members[0].handle(now, Input::Interfaces([ip(77)].into()));
        network.settle();
        network.run(Span::from_secs(2));
        let at = |who: usize| {
            let found = network.found.iter().find(|(n, _)| *n == who);
            found.map(|(_, neighbour)| neighbour.addr)
        };
        assert_eq!((at(1), at(0)), (Some(ip(77)), Some(ip(2))));
    }

    #[test]
    fn quiet_network_stays_quiet() {
        let devices = (1..=10).map(|n| device(1, n)).collect();
        let mut network = Network::new(devices);
        network.run(Span::from_secs(60));
        network.sent.clear();
        network.run(Span::from_secs(600));
        assert_eq!(network.sent.len(), 10 * 10, "once a minute each");
    }

    #[test]
    fn lost_datagrams_are_said_again() {
        // The first two of each are lost: the machines are fed by hand.
        let mut one = device(1, 1);
        let mut now = Time(0);
        one.handle(now, Input::Interfaces([ip(1)].into()));
        let mut said = Vec::new();
        for _ in 0..4 {
            while let Some(effect) = one.poll_effect() {
                assert!(matches!(effect, Effect::Send { .. }));
                said.push(now.0 / 1000);
            }
            now = one.next_wakeup().unwrap();
            one.handle(now, Input::Wake);
        }
        assert_eq!(said, [0, 1, 4, 64]);
    }

    #[test]
    fn answers_do_not_multiply() {
        let mut one = device(1, 1);
        one.handle(Time(0), Input::Interfaces([ip(1)].into()));
        let mut sent = 0;
        for ms in 0..10_000 {
            let seek = encode(&key(1), &mut Rng::from_seed([3; 32]), Notice::Seek);
            let from = ip(9);
            one.handle(
                Time(ms),
                Input::Heard {
                    from,
                    datagram: seek,
                },
            );
            while let Some(effect) = one.poll_effect() {
                assert!(matches!(effect, Effect::Send { .. }));
                sent += 1;
            }
            one.check_invariants();
        }
        assert!(sent <= 12, "{sent} datagrams in ten seconds");
    }

    #[test]
    fn flood_of_one_who_has_the_key_is_bounded_and_crowds_out_nobody() {
        let mut one = device(1, 1);
        one.handle(Time(0), Input::Interfaces([ip(1)].into()));
        while one.poll_effect().is_some() {}
        let (mut found, mut friend_found) = (0, false);
        for n in 0..5_000_u64 {
            let mut id = [8; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            let datagram = here(1, n, DeviceId(id), ip(5), true);
            let from = ip(5);
            one.handle(Time(n / 5), Input::Heard { from, datagram });
            if n == 4_000 {
                let (from, device) = (ip(2), DeviceId([2; 32]));
                let datagram = here(1, 1, device, from, false);
                one.handle(Time(n / 5), Input::Heard { from, datagram });
            }
            while let Some(effect) = one.poll_effect() {
                if let Effect::Found(neighbour) = effect {
                    found += 1;
                    friend_found |= neighbour.device == DeviceId([2; 32]);
                }
            }
            one.check_invariants();
        }
        assert_eq!(found, OPENED_PER_SOURCE_MAX + 1, "a second's worth");
        assert!(friend_found);
        assert!(one.stats().dropped > 4_000);
    }

    #[test]
    fn flood_from_many_places_is_bounded() {
        let mut one = device(1, 1);
        one.handle(Time(0), Input::Interfaces([ip(1)].into()));
        while one.poll_effect().is_some() {}
        let mut found = 0;
        for n in 0..5_000_u32 {
            let mut id = [8; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            let from = Ipv4Addr::from(0x0a00_0001 + n);
            let datagram = here(1, n.into(), DeviceId(id), from, true);
            let now = Time(u64::from(n / 5));
            one.handle(now, Input::Heard { from, datagram });
            while let Some(effect) = one.poll_effect() {
                found += u32::from(matches!(effect, Effect::Found(_)));
            }
            one.check_invariants();
        }
        assert_eq!(found, FOUND_MAX, "a second's worth");
        // When it is over, whoever is really there is found.
        let (from, device) = (ip(2), DeviceId([2; 32]));
        let datagram = here(1, 1, device, from, false);
        one.handle(Time(70_000), Input::Heard { from, datagram });
        let effects: Vec<Effect> = std::iter::from_fn(|| one.poll_effect()).collect();
        let is_friend =
            |effect: &Effect| matches!(effect, Effect::Found(found) if found.device == device);
        assert!(effects.iter().any(is_friend));
    }

    #[test]
    fn flood_of_strangers_leaves_nothing() {
        let mut one = device(1, 1);
        one.handle(Time(0), Input::Interfaces([ip(1)].into()));
        while one.poll_effect().is_some() {}
        for n in 0..5_000_u64 {
            let datagram = here(2, n, DeviceId([3; 32]), ip(5), true);
            let from = ip(u8::try_from(n % 200).unwrap());
            one.handle(Time(500), Input::Heard { from, datagram });
            one.check_invariants();
        }
        assert_eq!(one.poll_effect(), None);
        assert_eq!(one.next_answer, None, "strangers are not answered");
        assert!(one.neighbours.is_empty());
        assert_eq!(one.stats().foreign, u64::from(OPENED_MAX));
    }

    #[test]
    fn nobody_is_sent_into_the_world() {
        let mut one = device(1, 1);
        one.handle(Time(0), Input::Interfaces([ip(1)].into()));
        while one.poll_effect().is_some() {}
        let far = Ipv4Addr::new(93, 184, 216, 34);
        for (n, addr) in [
            far,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(224, 0, 0, 251),
        ]
        .into_iter()
        .enumerate()
        {
            let datagram = here(1, n as u64, DeviceId([5; 32]), addr, false);
            let from = ip(5);
            one.handle(Time(5), Input::Heard { from, datagram });
            assert_eq!(one.poll_effect(), None, "{addr}");
        }
        // In a network of public addresses the sender's own is good.
        let datagram = here(1, 99, DeviceId([5; 32]), far, false);
        one.handle(
            Time(5),
            Input::Heard {
                from: far,
                datagram,
            },
        );
        assert!(matches!(one.poll_effect(), Some(Effect::Found(_))));
    }

    proptest! {
        #[test]
        fn any_order_of_inputs_keeps_the_laws(steps in proptest::collection::vec((0u8..6, any::<u8>(), 0u64..3000), 1..200)) {
            let mut machine = device(1, 1);
            let mut now = Time(0);
            for (step, n, ms) in steps {
                now = now + Span::from_ms(ms);
                let input = match step {
                    0 => Input::Interfaces((0..n % 40).map(ip).collect()),
                    1 => Input::Wake,
                    2 => Input::Heard { from: ip(n), datagram: encode(&key(1), &mut Rng::from_seed([n; 32]), Notice::Seek) },
                    3 => Input::Heard { from: ip(n), datagram: here(n % 2, ms, DeviceId([n; 32]), ip(n), n > 128) },
                    _ => Input::Heard { from: ip(n), datagram: Bytes::from(vec![n; usize::from(n)]) },
                };
                machine.handle(now, input);
                machine.check_invariants();
                while machine.poll_effect().is_some() {}
            }
        }
    }
}
