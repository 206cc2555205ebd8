//! Several machines on a network of the tests' own: loss, delay, partitions, liars; the same seed gives the same run.

use std::collections::{BTreeMap, BTreeSet};

use kith_object::key::Rng;
use proptest::prelude::*;

use super::*;
use crate::wire::SYNC_FRAME_BYTES_MAX;

/// How long a device takes to make an entry durable.
const FSYNC: Span = Span(4);
/// Where the clocks of the tests begin.
const START: Time = Time(1_700_000_000_000);

/// How a device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Honest,
    /// Takes everything and says nothing.
    Silent,
    /// Sends bytes of no meaning.
    Babbler,
    /// Publishes and tells a new root all the time, and answers every step with an offer of everything; gives junk under true keys.
    Pretender,
    /// Opens walks without pause, and fetches everything over and over.
    Glutton,
}

struct Machine {
    nature: Nature,
    gossip: Gossip,
    /// What it counts.
    entries: BTreeMap<EntryId, (Key, Bytes)>,
    /// Entries that it takes for void, whoever sends them.
    void: BTreeSet<EntryId>,
    wake: Option<Time>,
    /// When its disk is done with what it was given last.
    delivered: u64,
}

#[derive(Debug)]
enum Event {
    Wake,
    Frame(DeviceId, Bytes),
    Flushed(DeviceId, usize),
    Published(DeviceId, Bytes),
    Loaded(u64, Vec<EntryId>),
    Durable(Key),
    Act,
}

struct World {
    now: Time,
    rng: Rng,
    machines: BTreeMap<DeviceId, Machine>,
    /// Pairs that are connected, the lower first; with their delay, and when the last frame each way arrives.
    links: BTreeMap<(DeviceId, DeviceId), u64>,
    arrives: BTreeMap<(DeviceId, DeviceId), Time>,
    events: BTreeMap<(Time, u64), (DeviceId, Event)>,
    next: u64,
    /// Of a hundred published messages so many do not reach a device.
    loss: u64,
    /// Bytes sent on links, and of those in steps; published messages and their bytes, once per receiver.
    sent: BTreeMap<(DeviceId, DeviceId), usize>,
    step_frames: usize,
    published: usize,
    published_bytes: usize,
    disconnected: Vec<(DeviceId, &'static str)>,
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 32])
}

/// An entry is its stamp and a body; its id is the hash.
fn entry(hlc: u64, body: &[u8]) -> (Key, Bytes) {
    let bytes = Bytes::from([&hlc.to_le_bytes(), body].concat());
    let id = *blake3::hash(&bytes).as_bytes();
    (Key { hlc, id }, bytes)
}

fn judge(bytes: &Bytes) -> Option<Key> {
    let hlc = u64::from_le_bytes(*bytes.first_chunk()?);
    if bytes.len() < 10 {
        return None;
    }
    Some(entry(hlc, &bytes[8..]).0)
}

impl World {
    fn new(seed: u8, natures: &[Nature], spread: bool) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let machines = natures.iter().zip(1..).map(|(nature, n)| {
            let machine = Machine {
                nature: *nature,
                gossip: Gossip::new(device(n), spread, rng.split()),
                entries: BTreeMap::new(),
                void: BTreeSet::new(),
                wake: None,
                delivered: 0,
            };
            (device(n), machine)
        });
        let machines = machines.collect();
        let mut world = Self {
            now: START,
            rng,
            machines,
            links: BTreeMap::new(),
            arrives: BTreeMap::new(),
            events: BTreeMap::new(),
            next: 0,
            loss: 0,
            sent: BTreeMap::new(),
            step_frames: 0,
            published: 0,
            published_bytes: 0,
            disconnected: Vec::new(),
        };
        for id in world.ids() {
            if world.machines[&id].nature != Nature::Honest {
                world.after(Span(50), id, Event::Act);
            }
        }
        world
    }

    fn honest(count: u8, seed: u8, spread: bool) -> Self {
        Self::new(seed, &vec![Nature::Honest; usize::from(count)], spread)
    }

    fn ids(&self) -> Vec<DeviceId> {
        self.machines.keys().copied().collect()
    }

    fn good(&self) -> Vec<DeviceId> {
        let honest = |(_, machine): &(&DeviceId, &Machine)| machine.nature == Nature::Honest;
        self.machines
            .iter()
            .filter(honest)
            .map(|(id, _)| *id)
            .collect()
    }

    fn after(&mut self, span: Span, at: DeviceId, event: Event) {
        self.next += 1;
        self.events
            .insert((self.now + span, self.next), (at, event));
    }

    fn connect(&mut self, a: DeviceId, b: DeviceId) {
        let pair = (a.min(b), a.max(b));
        let delay = 1 + self.rng.below(40);
        if a != b && self.links.insert(pair, delay).is_none() {
            self.feed(a, Input::PeerUp(b));
            self.feed(b, Input::PeerUp(a));
        }
    }

    fn connect_all(&mut self) {
        for a in self.ids() {
            for b in self.ids() {
                self.connect(a, b);
            }
        }
    }

    fn cut(&mut self, a: DeviceId, b: DeviceId) {
        if self.links.remove(&(a.min(b), a.max(b))).is_some() {
            self.arrives.remove(&(a, b));
            self.arrives.remove(&(b, a));
            let between = |at: &DeviceId, event: &Event| match event {
                Event::Frame(from, _) | Event::Flushed(from, _) => {
                    (*from == a && *at == b) || (*from == b && *at == a)
                }
                _ => false,
            };
            self.events.retain(|_, (at, event)| !between(at, event));
            self.feed(a, Input::PeerDown(b));
            self.feed(b, Input::PeerDown(a));
        }
    }

    fn feed(&mut self, id: DeviceId, input: Input) {
        let now = self.now;
        let machine = self.machines.get_mut(&id).unwrap();
        if machine.nature != Nature::Honest {
            return;
        }
        machine.gossip.handle(now, input);
        machine.gossip.check_invariants();
        let mut effects = Vec::new();
        while let Some(effect) = machine.gossip.poll_effect() {
            effects.push(effect);
        }
        let wake = machine.gossip.next_wakeup();
        if wake != machine.wake {
            machine.wake = wake;
            if let Some(at) = wake {
                self.after(Span(at.since(now).as_ms().max(1)), id, Event::Wake);
            }
        }
        for effect in effects {
            self.perform(id, effect);
        }
    }

    fn perform(&mut self, id: DeviceId, effect: Effect) {
        match effect {
            Effect::Send { peer, bytes } => self.send(id, peer, bytes),
            Effect::Publish { bytes } => self.publish(id, &bytes),
            Effect::Load { token, ids } => self.after(Span(1), id, Event::Loaded(token, ids)),
            Effect::Deliver { entry, .. } => {
                let machine = self.machines.get_mut(&id).unwrap();
                machine.delivered += 1;
                if let Some(key) = judge(&entry)
                    && !machine.void.contains(&key.entry())
                    && machine.entries.insert(key.entry(), (key, entry)).is_none()
                {
                    self.after(FSYNC, id, Event::Durable(key));
                }
            }
            Effect::Disconnect { peer, reason } => {
                self.disconnected.push((peer, reason));
                self.cut(id, peer);
            }
        }
    }

    fn send(&mut self, from: DeviceId, to: DeviceId, bytes: Bytes) {
        assert!(
            bytes.len() < SYNC_FRAME_BYTES_MAX,
            "a frame fits the channel"
        );
        let Some(delay) = self.links.get(&(from.min(to), from.max(to))).copied() else {
            return;
        };
        *self.sent.entry((from, to)).or_default() += bytes.len();
        self.step_frames += usize::from(bytes.first() == Some(&message::KIND_STEP));
        // 20 MB/s, and frames of one link keep their order.
        let busy = self
            .arrives
            .get(&(from, to))
            .copied()
            .unwrap_or_default()
            .max(self.now + Span(delay));
        let at = busy + Span(1 + u64::try_from(bytes.len()).unwrap() / 20_000);
        self.arrives.insert((from, to), at);
        let span = at.since(self.now);
        self.after(span, from, Event::Flushed(to, bytes.len()));
        self.after(span, to, Event::Frame(from, bytes));
    }

    fn publish(&mut self, from: DeviceId, bytes: &Bytes) {
        assert!(bytes.len() <= GOSSIP_MESSAGE_BYTES_MAX);
        // Reaches whoever is connected by any way, each with luck of its own.
        let (mut reached, mut edge) = (BTreeSet::from([from]), vec![from]);
        while let Some(at) = edge.pop() {
            for (a, b) in self.links.keys() {
                for (near, far) in [(a, b), (b, a)] {
                    if *near == at && reached.insert(*far) {
                        edge.push(*far);
                    }
                }
            }
        }
        for to in reached {
            if to != from && self.rng.below(100) >= self.loss {
                self.published += 1;
                self.published_bytes += bytes.len();
                let span = Span(5 + self.rng.below(195));
                self.after(span, to, Event::Published(from, bytes.clone()));
            }
        }
    }

    /// A device writes an entry.
    fn write(&mut self, id: DeviceId, body: &[u8]) -> Key {
        let hlc = (self.now.0 << 16) | self.rng.below(1 << 8);
        let unique = [&self.rng.bytes::<8>(), body].concat();
        let (key, bytes) = entry(hlc, &unique);
        let machine = self.machines.get_mut(&id).unwrap();
        machine.entries.insert(key.entry(), (key, bytes.clone()));
        self.feed(id, Input::Added(key));
        self.feed(id, Input::NewLocal { key, entry: bytes });
        key
    }

    /// Gives a device entries before the run.
    fn load(&mut self, id: DeviceId, entries: &[(Key, Bytes)]) {
        let machine = self.machines.get_mut(&id).unwrap();
        for (key, bytes) in entries {
            machine.entries.insert(key.entry(), (*key, bytes.clone()));
            machine.gossip.handle(self.now, Input::Added(*key));
        }
    }

    fn run(&mut self, span: Span) {
        self.run_until(span, |_| false);
    }

    /// Runs until a condition holds; says whether it came to hold in that time, and when.
    fn run_until(&mut self, span: Span, done: impl Fn(&Self) -> bool) -> Option<Span> {
        let (start, end) = (self.now, self.now + span);
        let mut steps = 0_u64;
        while let Some(next) = self.events.first_entry().filter(|next| next.key().0 <= end) {
            let ((at, _), (id, event)) = next.remove_entry();
            self.now = self.now.max(at);
            self.happen(id, event);
            steps += 1;
            // Looking is dear where there is much.
            if (self.machines.len() <= 3 || steps.is_multiple_of(16)) && done(self) {
                return Some(self.now.since(start));
            }
        }
        self.now = end;
        done(self).then_some(span)
    }

    fn happen(&mut self, id: DeviceId, event: Event) {
        if self.machines[&id].nature != Nature::Honest {
            self.misbehave(id, event);
            return;
        }
        let input = match event {
            Event::Wake => {
                let machine = self.machines.get_mut(&id).unwrap();
                if machine.wake.is_none_or(|wake| wake > self.now) {
                    return;
                }
                machine.wake = None;
                Input::Wake
            }
            Event::Frame(peer, bytes) => Input::Frame { peer, bytes },
            Event::Flushed(peer, len) => Input::Flushed { peer, len },
            Event::Published(from, bytes) => Input::Published { from, bytes },
            Event::Loaded(token, ids) => {
                let machine = &self.machines[&id];
                let found = ids
                    .iter()
                    .filter_map(|id| Some((*id, machine.entries.get(id)?.1.clone())));
                Input::Loaded {
                    token,
                    entries: found.collect(),
                }
            }
            Event::Durable(key) => Input::Added(key),
            Event::Act => return,
        };
        self.feed(id, input);
    }

    fn neighbours(&self, id: DeviceId) -> Vec<DeviceId> {
        self.links
            .keys()
            .filter(|(a, b)| *a == id || *b == id)
            .map(|(a, b)| if *a == id { *b } else { *a })
            .collect()
    }

    fn misbehave(&mut self, id: DeviceId, event: Event) {
        let everything = || {
            let offer = walk::Item::Node {
                path: Path::ALL,
                magnitude: 30,
                label: [7; 16],
            };
            Step {
                offers: vec![offer],
                ..Step::default()
            }
        };
        let frame = |opening: bool, step: Step| {
            let tree = TreeId::default();
            let number = 9;
            Bytes::from(
                Message::Step {
                    tree,
                    opening,
                    number,
                    step,
                }
                .encode(),
            )
        };
        let nature = self.machines[&id].nature;
        match (nature, event) {
            (Nature::Babbler, Event::Act) => {
                for to in self.neighbours(id) {
                    let noise = self.rng.bytes::<64>().to_vec();
                    self.send(id, to, noise.into());
                    let noise = self.rng.bytes::<64>().to_vec();
                    self.publish(id, &noise.into());
                }
                self.after(Span(1000), id, Event::Act);
            }
            (Nature::Pretender, Event::Act) => {
                let root = Message::Root {
                    tree: TreeId::default(),
                    root: self.rng.bytes(),
                    count: 1,
                };
                let root = Bytes::from(root.encode());
                self.publish(id, &root);
                for to in self.neighbours(id) {
                    self.send(id, to, root.clone());
                }
                self.after(Span(100), id, Event::Act);
            }
            (Nature::Pretender, Event::Frame(from, bytes)) => {
                if let Ok(Message::Step { step, number, .. }) = Message::decode(&bytes) {
                    if step.asks() {
                        self.send(id, from, frame(false, everything()));
                    }
                    if !step.fetches.is_empty() {
                        // Claims the keys of what others have.
                        let honest = self.good()[0];
                        let keys: Vec<Key> = self.machines[&honest]
                            .entries
                            .values()
                            .map(|(key, _)| *key)
                            .take(50)
                            .collect();
                        let junk = keys
                            .iter()
                            .map(|key| (message::tag(key), Bytes::from_static(b"junk")));
                        let entries = Message::Entries {
                            number,
                            last: false,
                            entries: junk.collect(),
                        };
                        self.send(id, from, entries.encode().into());
                    }
                }
            }
            (Nature::Glutton, Event::Act) => {
                for to in self.neighbours(id) {
                    let mut step = everything();
                    step.fetches = vec![Path::ALL];
                    step.sections = vec![walk::Section {
                        prefix: Path::ALL,
                        items: Vec::new(),
                    }];
                    self.send(id, to, frame(true, step));
                }
                self.after(Span(25), id, Event::Act);
            }
            _ => {}
        }
    }

    fn agree(&self) -> bool {
        let good = self.good();
        let roots: BTreeSet<[u8; 32]> = good
            .iter()
            .map(|id| self.machines[id].gossip.root())
            .collect();
        roots.len() == 1
    }

    /// Whether all have all that was written.
    fn complete(&self) -> bool {
        if !self.agree() {
            return false;
        }
        let good = self.good();
        let all: BTreeSet<&EntryId> = good
            .iter()
            .flat_map(|id| self.machines[id].entries.keys())
            .collect();
        let all = u64::try_from(all.len()).unwrap();
        good.iter().all(|id| self.machines[id].gossip.len() == all)
    }

    fn stats(&self, n: u8) -> Stats {
        self.machines[&device(n)].gossip.stats()
    }

    fn link_bytes(&self) -> usize {
        self.sent.values().sum()
    }
}

/// A ring with a few chords.
fn ring(world: &mut World) {
    let ids = world.ids();
    for n in 0..ids.len() {
        world.connect(ids[n], ids[(n + 1) % ids.len()]);
        world.connect(ids[n], ids[(n * n + 3) % ids.len()]);
    }
}

fn past(count: u64, body_bytes: usize) -> Vec<(Key, Bytes)> {
    (0..count)
        .map(|n| {
            let mut body = n.to_le_bytes().to_vec();
            body.resize(body_bytes.max(8), 0);
            entry((START.0 - 1000 * (count - n)) << 16, &body)
        })
        .collect()
}

#[test]
fn entries_reach_everyone_though_messages_are_lost() {
    for seed in 0..4 {
        let mut world = World::honest(8, seed, true);
        world.loss = 30;
        ring(&mut world);
        for n in 0..160_u64 {
            let writer = world.ids()[usize::try_from(n % 8).unwrap()];
            world.write(writer, b"a thought");
            world.run(Span(60));
        }
        let took = world.run_until(Span::from_secs(30), World::complete);
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn without_publishing_entries_the_walk_alone_suffices() {
    for (seed, loss) in [(1, 0), (2, 50), (3, 100)] {
        let mut world = World::honest(6, seed, false);
        world.loss = loss;
        ring(&mut world);
        world.run(Span::from_secs(5));
        for id in world.ids() {
            for _ in 0..20 {
                world.write(id, b"a thought");
            }
        }
        // With every published root lost there is only what is told directly.
        let took = world.run_until(
            Span::from_secs(if loss == 100 { 600 } else { 15 }),
            World::complete,
        );
        assert!(took.is_some(), "loss {loss}");
        assert_eq!(world.stats(1).entries_published, 0);
        println!("loss {loss} %: {took:?}");
    }
}

#[test]
fn single_entry_arrives_within_moments() {
    for spread in [true, false] {
        let mut world = World::honest(3, 5, spread);
        world.connect_all();
        world.run(Span::from_secs(300));
        world.write(device(2), b"now");
        let took = world
            .run_until(Span::from_secs(60), World::complete)
            .unwrap();
        println!("published {spread}: {took:?}");
        assert!(
            took <= Span::from_ms(if spread { 300 } else { 3000 }),
            "{took:?}"
        );
    }
}

#[test]
fn partitions_heal() {
    for seed in 0..4 {
        let mut world = World::honest(8, seed, true);
        ring(&mut world);
        world.run(Span::from_secs(5));
        let links: Vec<_> = world
            .links
            .keys()
            .copied()
            .filter(|(a, b)| (a.0[0] < 5) != (b.0[0] < 5))
            .collect();
        for (a, b) in &links {
            world.cut(*a, *b);
        }
        for n in 0..200_u64 {
            let writer = world.ids()[usize::try_from(n % 8).unwrap()];
            world.write(writer, b"apart");
            world.run(Span(300));
        }
        world.run(Span::from_secs(30));
        assert!(!world.agree(), "the two halves know nothing of each other");
        for (a, b) in links {
            world.connect(a, b);
        }
        let took = world.run_until(Span::from_secs(20), World::complete);
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn connections_that_break_all_the_time_only_delay() {
    let mut world = World::honest(5, 9, true);
    world.loss = 50;
    world.connect_all();
    let ids = world.ids();
    let large = vec![1; 200 << 10];
    for n in 0..200_u64 {
        let pick = |rng: &mut Rng| ids[usize::try_from(rng.below(5)).unwrap()];
        let (a, b) = (pick(&mut world.rng), pick(&mut world.rng));
        world.cut(a, b);
        world.run(Span(200));
        world.connect(a, b);
        if n % 4 == 0 {
            world.write(a, &large);
        }
    }
    assert!(
        world
            .run_until(Span::from_secs(60), World::complete)
            .is_some()
    );
}

#[test]
fn liars_cannot_keep_the_others_apart() {
    use Nature::{Babbler, Glutton, Honest, Pretender, Silent};
    for seed in 0..2 {
        let natures = [
            Pretender, Honest, Honest, Silent, Honest, Glutton, Honest, Honest, Babbler, Pretender,
        ];
        let mut world = World::new(seed, &natures, seed != 1);
        world.loss = 30;
        world.connect_all();
        for round in 0..20 {
            for id in world.good() {
                world.write(id, b"a thought");
            }
            world.run(Span::from_secs(1));
            if round == 10 {
                let good = world.good();
                world.cut(good[0], good[1]);
                world.cut(good[0], good[2]);
                world.cut(good[0], good[3]);
            }
        }
        let took = world.run_until(Span::from_secs(60), World::complete);
        assert!(took.is_some(), "seed {seed}");
        println!("seed {seed}: {took:?}");
        assert!(
            world.disconnected.iter().any(|(who, _)| *who == device(9)),
            "the babbler is cut off"
        );
        assert!(
            world.disconnected.iter().any(|(who, _)| *who == device(6)),
            "and the glutton"
        );
        assert!(
            world
                .disconnected
                .iter()
                .all(|(who, _)| world.machines[who].nature != Honest)
        );
        // What a liar draws from one honest device in a minute is bounded.
        let before: usize = world.link_bytes();
        let steps = world.step_frames;
        world.run(Span::from_secs(60));
        let per_link = |nature: Nature| {
            let to = |to: &DeviceId| world.machines[to].nature == nature;
            let sent = world
                .sent
                .iter()
                .filter(|((from, of), _)| world.machines[from].nature == Honest && to(of));
            sent.map(|(_, bytes)| *bytes).max().unwrap()
        };
        println!(
            "{} bytes and {} steps a minute; to one silent device {} in all, to a pretender {}",
            world.link_bytes() - before,
            world.step_frames - steps,
            per_link(Silent),
            per_link(Pretender)
        );
        assert!(per_link(Silent) < 64 << 10);
        assert!(per_link(Pretender) < 1 << 20);
    }
}

#[test]
fn what_one_counts_and_another_does_not_makes_no_storm() {
    let mut world = World::honest(3, 4, true);
    world.connect_all();
    let void = entry(START.0 << 16, b"not to be counted");
    for n in [1, 3] {
        world
            .machines
            .get_mut(&device(n))
            .unwrap()
            .void
            .insert(void.0.entry());
    }
    world.load(device(2), std::slice::from_ref(&void));
    world.run(Span::from_secs(600));
    let (walks, bytes) = (
        world.stats(1).walks + world.stats(2).walks,
        world.link_bytes(),
    );
    world.run(Span::from_secs(3600));
    let walks = world.stats(1).walks + world.stats(2).walks - walks;
    let bytes = world.link_bytes() - bytes;
    println!("an hour of disagreement: {walks} walks, {bytes} bytes");
    assert!(walks < 200, "{walks}");
    assert!(bytes < 200_000, "{bytes}");
    // Once it is counted nowhere, all agree again.
    world.machines.get_mut(&device(2)).unwrap().entries.clear();
    world.feed(device(2), Input::Removed(void.0));
    assert!(world.run_until(Span::from_secs(90), World::agree).is_some());
}

#[test]
fn newcomer_gets_everything_about_once() {
    let mut world = World::honest(5, 7, true);
    let all = past(6000, 600);
    for n in 1..=4 {
        world.load(device(n), &all);
    }
    world.connect_all();
    let took = world.run_until(Span::from_secs(60), World::complete);
    assert!(took.is_some());
    let delivered = world.machines[&device(5)].delivered;
    println!(
        "6,000 entries in {took:?}, delivered {delivered}, {} bytes in all",
        world.link_bytes()
    );
    assert!(delivered <= 6300, "{delivered}");
    assert!(
        world.link_bytes() < 6000 * 700 * 11 / 10,
        "{}",
        world.link_bytes()
    );
}

#[test]
fn large_entries_are_announced_and_fetched() {
    let mut world = World::honest(4, 8, true);
    world.connect_all();
    world.run(Span::from_secs(5));
    for n in 0..40_u8 {
        world.write(device(1), &vec![n; 1 << 20]);
    }
    world.write(device(2), &vec![1; SPREAD_BYTES_MAX]);
    let took = world.run_until(Span::from_secs(60), World::complete);
    println!("40 MiB to three in {took:?}");
    assert!(took.is_some());
    let delivered: u64 = (2..=4).map(|n| world.machines[&device(n)].delivered).sum();
    assert!(delivered <= 41 * 3 + 12, "{delivered}");
}

/// Budget: an idle device sends less than 1 KB/s per peer.
#[test]
fn idle_mesh_is_quiet() {
    let mut world = World::honest(12, 3, true);
    world.connect_all();
    for id in world.ids() {
        world.write(id, b"a thought");
    }
    world.run(Span::from_secs(60));
    assert!(world.complete());
    let (bytes, published, published_bytes) =
        (world.link_bytes(), world.published, world.published_bytes);
    world.run(Span::from_secs(3600));
    let bytes = world.link_bytes() - bytes;
    let (published, published_bytes) = (
        world.published - published,
        world.published_bytes - published_bytes,
    );
    println!(
        "12 idle devices, an hour: {bytes} bytes told directly, {published} messages ({published_bytes} bytes) received"
    );
    // Twelve devices, eleven peers each, an hour: a thousandth of the budget for the machine itself.
    assert!(
        bytes + published_bytes < 12 * 11 * 3600,
        "{bytes} + {published_bytes}"
    );
}

#[test]
fn same_seed_gives_the_same_run() {
    let run = |seed: u8| {
        let mut world = World::honest(6, seed, true);
        world.loss = 20;
        ring(&mut world);
        for id in world.ids() {
            world.write(id, b"a thought");
        }
        world.run(Span::from_secs(100));
        let stats: Vec<Stats> = (1..=6).map(|n| world.stats(n)).collect();
        (stats, world.sent, world.next)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).2, run(2).2);
}

/// Budget: 1,000 recent differences cost less than 64 KB besides the entries, and less than five round trips, the entries' own included.
/// `KITH_LARGE=1` measures a million keys.
#[test]
fn recent_differences_are_found_within_the_budget() {
    let common = if std::env::var_os("KITH_LARGE").is_some() {
        1_000_000
    } else {
        100_000
    };
    let mut world = World::honest(2, 6, false);
    let keys = past(common, 8);
    for n in [1, 2] {
        let machine = world.machines.get_mut(&device(n)).unwrap();
        for (key, _) in &keys {
            machine.gossip.handle(START, Input::Added(*key));
        }
        machine.gossip.root();
    }
    let recent = |whose: u8| -> Vec<(Key, Bytes)> {
        (0..500_u64)
            .map(|n| {
                entry(
                    (START.0 + n * 3600) << 16,
                    &[&[whose; 300][..], &n.to_le_bytes()].concat(),
                )
            })
            .collect()
    };
    world.load(device(1), &recent(1));
    world.load(device(2), &recent(2));
    world.connect(device(1), device(2));
    let delay = world.links.values().copied().next().unwrap();
    let took = world.run_until(Span::from_secs(30), World::agree).unwrap();
    let (one, two) = (world.stats(1), world.stats(2));
    let entries = usize::try_from(one.entry_bytes_given + two.entry_bytes_given).unwrap();
    let steps = usize::try_from(one.step_bytes + two.step_bytes).unwrap();
    let other = world.link_bytes() - entries;
    println!(
        "{common} keys: {steps} bytes in {} steps, {other} besides the entries, {took:?} at {delay} ms one way",
        one.steps + two.steps
    );
    assert_eq!((one.entries_given, two.entries_given), (500, 500));
    assert_eq!(one.walks + two.walks, 1);
    assert!(steps < 64 << 10, "{steps}");
    assert!(other < 64 << 10, "{other}");
    assert!(
        one.steps + two.steps < 9,
        "fewer than five round trips with the entries"
    );
}

/// What a test feeds a machine in any order.
#[derive(Debug, Clone)]
enum Whim {
    Up(u8),
    Down(u8),
    Add(u8),
    Remove(u8),
    Local(u8, bool),
    Frame(u8, Vec<u8>),
    Message(u8, u8, bool),
    Flushed(u8, usize),
    Loaded(u64, u8),
    Wake,
    Pass(u64),
}

fn whims() -> impl Strategy<Value = Whim> {
    prop_oneof![
        (0_u8..4).prop_map(Whim::Up),
        (0_u8..4).prop_map(Whim::Down),
        any::<u8>().prop_map(Whim::Add),
        any::<u8>().prop_map(Whim::Remove),
        (any::<u8>(), any::<bool>()).prop_map(|(n, large)| Whim::Local(n, large)),
        (0_u8..4, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(of, bytes)| Whim::Frame(of, bytes)),
        (0_u8..4, 0_u8..8, any::<bool>())
            .prop_map(|(of, kind, open)| Whim::Message(of, kind, open)),
        (0_u8..4, 0_usize..100_000).prop_map(|(of, len)| Whim::Flushed(of, len)),
        (0_u64..8, any::<u8>()).prop_map(|(token, mask)| Whim::Loaded(token, mask)),
        Just(Whim::Wake),
        (0_u64..40_000).prop_map(Whim::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_input_breaks_the_invariants(whims in proptest::collection::vec(whims(), 0..120)) {
        let mut gossip = Gossip::new(device(2), true, Rng::from_seed([0; 32]));
        let key = |n: u8| entry(u64::from(n) << 20, &[n; 8]).0;
        let (mut now, mut loads) = (START, BTreeMap::new());
        for whim in whims {
            let input = match whim {
                Whim::Up(n) => Input::PeerUp(device(n)),
                Whim::Down(n) => Input::PeerDown(device(n)),
                Whim::Add(n) => Input::Added(key(n)),
                Whim::Remove(n) => Input::Removed(key(n)),
                Whim::Local(n, large) => Input::NewLocal { key: key(n), entry: vec![n; if large { 100_000 } else { 100 }].into() },
                Whim::Frame(of, bytes) => Input::Frame { peer: device(of), bytes: bytes.into() },
                Whim::Message(of, kind, open) => {
                    let mut other = RadixTree::default();
                    for n in 0..kind {
                        other.insert(key(n.wrapping_mul(37)));
                    }
                    let tree = TreeId::default();
                    let step = match kind {
                        0..4 => walk::opening(&other),
                        4 => Step { fetches: vec![Path::ALL], ..Step::default() },
                        5 => Step::default(),
                        _ => walk::answer(&other, &walk::opening(&gossip.tree), 4096, |_| true).step,
                    };
                    let message = match kind {
                        3 => Message::Root { tree, root: other.root(), count: 3 },
                        7 => Message::Entries { number: 0, last: open, entries: vec![(message::tag(&key(200)), Bytes::from_static(b"xxxxxxxxxxx"))] },
                        _ => Message::Step { tree, opening: open, number: 3, step },
                    };
                    Input::Frame { peer: device(of), bytes: message.encode().into() }
                }
                Whim::Flushed(of, len) => Input::Flushed { peer: device(of), len },
                Whim::Loaded(token, mask) => {
                    let ids: Vec<EntryId> = loads.remove(&token).unwrap_or_default();
                    let found = ids.into_iter().filter(|id| id.0[0] & mask == 0);
                    Input::Loaded { token, entries: found.map(|id| (id, vec![1; 2000 * usize::from(mask)].into())).collect() }
                }
                Whim::Wake => Input::Wake,
                Whim::Pass(ms) => {
                    now = now + Span(ms);
                    Input::Wake
                }
            };
            let waking = matches!(input, Input::Wake);
            gossip.handle(now, input);
            gossip.check_invariants();
            gossip.tree.check_invariants();
            if waking {
                prop_assert!(gossip.next_wakeup().is_none_or(|at| at > now), "waking settles what is due");
            }
            while let Some(effect) = gossip.poll_effect() {
                if let Effect::Load { token, ids } = effect {
                    loads.insert(token, ids);
                }
            }
        }
    }
}
