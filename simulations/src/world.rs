//! Virtual time, a queue of events, devices with disks, a network between them.
//!
//! Spec: `protocol/spec/simulation.md`, "World".

mod laws;
mod lookups;
mod malice;
mod objects;
pub mod record;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_core::book::Book;
use kith_core::device::{Channel, Command, Device, Effect, Input, Removal, Setup};
use kith_crdt::names::{Change, TreePath};
use kith_crdt::replica::Resealed;
use kith_object::id::{Cid, DeviceId, EntryId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, Secret};
use kith_object::time::{Span, Time};
use kith_protocol::exchange::Loaded;

use self::laws::Laws;
use self::lookups::Dht;
use self::malice::Malice;
use self::objects::Fetch;
use self::record::Mark;
use crate::disk::{Disks, Storage};
use crate::gossip::Overlay;
use crate::network::Network;
use crate::plan::{Harm, Plan};
use crate::trace::Trace;

/// Writing to the log and its fsync.
const SYNC: (u64, u64) = (1, 12);
/// Reading from a disk.
const READ: (u64, u64) = (0, 4);
/// More events than any scenario has use for, and for each device and virtual second: a run that gets there goes round in circles.
const EVENTS_MAX: u64 = 5_000_000;
const EVENTS_PER_SECOND_MAX: u64 = 500;
/// Inputs after each of which the machine's invariants are checked, which costs more than the input where much is under way; and how often from then on, in meshes that are not large.
const CHECKED_FIRST: u64 = 20_000;
const CHECKED_EVERY: u64 = 31;
/// Of wants and debts so many are looked through for each input that is checked; where there are more, fewer inputs are.
const CHECK_CREDIT: usize = 64;
/// Connections that a device dials by itself, and that it has in all: as the node has it unless told otherwise.
const DIALS: usize = 33;
const CONNECTIONS: usize = 50;
/// How long a dial that nobody answers is waited for, milliseconds.
const DIAL_PATIENCE: u64 = 5000;
/// Owes what a device had acknowledged before its disks were put back.
const NOBODY: usize = usize::MAX;
/// Heartbeats of gossip come each second; a message waits for the next.
const HEARTBEAT: (u64, u64) = (0, 1000);
/// Bytes of a message's name on the way.
const IHAVE: u64 = 70;
/// So long a message of gossip is remembered.
const REMEMBERED: Span = Span::from_secs(120);
/// How often it is looked whether entries lag, while things happen; once a minute at most.
const LOOKS: u64 = 40;
/// When every run begins, since 1970.
const START: Time = Time(1_700_000_000_000);

/// Something that happens at a time.
#[derive(Debug)]
enum Event {
    /// The device's machine gets an input, if it still is the same run of it.
    Input {
        device: usize,
        life: u64,
        input: Input,
    },
    /// The log of a device is synced, and says so.
    Synced {
        device: usize,
        life: u64,
        number: u64,
    },
    /// A message arrives, if the connection it was sent on still stands.
    Arrives {
        from: usize,
        to: usize,
        connection: u64,
        channel: Channel,
        bytes: Bytes,
    },
    /// A dial comes about, if the two can reach each other.
    Dialled {
        from: usize,
        to: usize,
        /// At the address where it is.
        rightly: bool,
    },
    /// A gossip message reaches a device from a neighbour.
    Gossip {
        from: usize,
        to: usize,
        message: u64,
    },
    /// A device tells some of those outside its mesh what it has got.
    Lazily { device: usize, message: u64 },
    /// A device is to look at the time.
    Wake { device: usize, life: u64 },
    /// The scenario does something.
    Act(Act),
    /// Whoever reads loses interest.
    GiveUp { device: usize, life: u64, read: u64 },
    /// It is looked whether entries lag.
    Look,
    /// A device that stood still goes on, if it still is to.
    GoOn(usize),
}

/// What a scenario does to the world.
#[derive(Debug, Clone)]
pub enum Act {
    /// A device stores a file.
    Put {
        device: usize,
        path: String,
        content: Vec<u8>,
    },
    /// A device moves something.
    Move {
        device: usize,
        from: String,
        to: String,
    },
    /// A device reads something that was put and that it knows of.
    Read(usize),
    /// A device removes something.
    Remove { device: usize, path: String },
    /// An admin removes a device from the mesh.
    Expel { by: usize, device: usize },
    /// Only devices of the same group reach each other, until the partition of that number heals.
    Partition(u64, Vec<BTreeSet<usize>>),
    /// It heals.
    Heal(u64),
    /// A device loses its power.
    Crash(usize),
    /// It is shut down in order.
    Stop(usize),
    /// It starts again, unless something else keeps it down.
    Start(usize),
    /// It reaches nobody.
    Leave(usize),
    /// It is back, unless something else keeps it away.
    Return(usize),
    /// A bit of one of its packs turns over.
    Rot(usize),
    /// Its disks are copied.
    Backup(usize),
    /// They are put back to what they were then.
    Restore(usize),
    /// It stands still for so long.
    Pause(usize, Span),
    /// It is reached at another address from now on.
    Relocate(usize),
    /// So many more packets of a million are lost.
    Storm(u64),
    /// That is over.
    Calm(u64),
    /// It harms others.
    Harm(usize, Harm),
    /// Its clock jumps, by so many milliseconds.
    Jump {
        /// Which.
        device: usize,
        /// How far.
        by: i64,
    },
}

/// A device of the world.
pub struct Slot {
    keys: DeviceKeys,
    disks: Disks,
    running: Option<Running>,
    /// Counts its runs; what was meant for an earlier one is lost.
    life: u64,
    seed: Rng,
    /// Requests of commands under way, with what their acknowledgement makes certain.
    pending: BTreeMap<u64, Vec<Promise>>,
    fetches: BTreeMap<u64, Fetch>,
    clock: Clock,
    /// How much keeps it down, and how much keeps it away.
    down: u32,
    away: u32,
    /// When it started last.
    since: Time,
    /// It means harm.
    malice: Option<Malice>,
    /// It was removed from the mesh, and the removal is durable.
    expelled: bool,
    /// Something on its disk has turned over.
    rotten: bool,
    /// Its disks as they were, and how much had been promised by all then.
    backup: Option<(Disks, usize)>,
    /// It stands still until then.
    paused: Time,
    /// What it was told meanwhile, in order.
    held: VecDeque<Event>,
    /// How often it went elsewhere.
    moves: u64,
    /// Where it knows the others to be, as it had that kept.
    book: Option<Bytes>,
}

impl Slot {
    /// Whether it is held to the rules, and owed what they promise.
    fn is_honest(&self) -> bool {
        self.malice.is_none() && !self.expelled
    }
}

/// Something published.
struct Rumour {
    author: usize,
    bytes: Bytes,
    /// Who has it, and from whom.
    seen: BTreeMap<usize, usize>,
    /// When it first reaches each device, as far as it is under way: who is to have it sooner takes no notice.
    comes: BTreeMap<usize, Time>,
}

/// A connection.
#[derive(Debug, Clone, Copy)]
struct Link {
    number: u64,
    since: Time,
}

/// How a device's clock differs from the world's.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// Ahead, milliseconds.
    ahead: i64,
    /// Faster, parts of a million.
    drift: i64,
}

impl Clock {
    fn read(&self, now: Time) -> Time {
        let since = i64::try_from(now.0.saturating_sub(START.0)).unwrap_or(i64::MAX);
        let drifted = since.saturating_mul(self.drift) / 1_000_000;
        Time(
            now.0
                .saturating_add_signed(self.ahead.saturating_add(drifted)),
        )
    }
}

struct Running {
    device: Device,
    storage: Storage,
    /// When its next wake is queued for.
    wake: Option<Time>,
}

/// What an acknowledged put promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The root.
    pub cid: Cid,
    /// The BLAKE3 of its bytes.
    pub content: [u8; 32],
}

/// Devices that may lose power just after an acknowledgement.
#[derive(Debug)]
struct Unlucky {
    devices: BTreeSet<usize>,
    from: Time,
    to: Time,
    /// Of a million.
    chance: u64,
    lasts: (Span, Span),
}

/// The world of a run.
pub struct World {
    now: Time,
    rng: Rng,
    queue: BTreeMap<(Time, u64), Event>,
    next: u64,
    slots: Vec<Slot>,
    by_id: BTreeMap<DeviceId, usize>,
    /// What envelopes must hold, worked out by one of them for all.
    resealed: Resealed,
    /// Where everyone is, as devices keep it.
    book: Bytes,
    space: SpaceId,
    spread_entries: bool,
    anti_entropy: bool,
    /// Groups that cannot reach each other, for each partition that stands.
    partitions: BTreeMap<u64, Vec<BTreeSet<usize>>>,
    /// Connections by pair.
    connections: BTreeMap<(usize, usize), Link>,
    /// Who may lose power just after an acknowledgement.
    unlucky: Vec<Unlucky>,
    /// Gossip messages that come to nothing between two neighbours, of a million.
    gossip_lost: u64,
    /// What lies between the devices.
    pub network: Network,
    /// Entries that not all honest devices have yet: when the first had it, and who has since when.
    spreading: BTreeMap<EntryId, (Time, BTreeMap<usize, Time>)>,
    /// Entries that all had.
    everywhere: BTreeSet<EntryId>,
    /// How many honest devices there are.
    everyone: usize,
    laws: Laws,
    /// Removals on their way to the disk: whom they remove, by the number of the command.
    expelling: BTreeMap<u64, usize>,
    /// How long entries took from the first device to the last, milliseconds.
    pub delays: Vec<u64>,
    events: u64,
    inputs: u64,
    check_credit: usize,
    /// One that stood still, and hears what it missed: the next of it.
    let_through: Option<usize>,
    /// What was published lately, oldest first.
    messages: BTreeMap<u64, Rumour>,
    /// When each of them was, to forget it in time.
    published: VecDeque<(Time, u64)>,
    overlay: Overlay,
    dht: Dht,
    promises: Vec<Promise>,
    /// Which device acknowledged each of them.
    promised_by: Vec<usize>,
    read_back: u64,
    /// What happened.
    pub trace: Trace,
    marks: Vec<(u64, usize, Mark)>,
    /// What was found wrong while running.
    pub failures: Vec<String>,
}

impl World {
    /// A mesh whose devices are all paired and running, at time zero of the run.
    pub fn new(seed: u64, plan: &Plan, trace: Trace) -> Self {
        let mut rng = Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
        let keys: Vec<DeviceKeys> = plan
            .devices
            .iter()
            .map(|_| DeviceKeys::generate(&mut rng))
            .collect();
        let (space, entries) = crate::scenario::found_mesh(&keys, plan, START, &mut rng);
        let by_id = keys
            .iter()
            .enumerate()
            .map(|(place, keys)| (keys.id(), place))
            .collect();
        let ids: Vec<DeviceId> = keys.iter().map(DeviceKeys::id).collect();
        let dht = Dht::new(&ids);
        let mut book = Book::default();
        for (place, id) in ids.iter().enumerate() {
            book.learn(START, *id, &[format!("sim/{place}")], true);
        }
        let book = book.encode();
        let hostile = plan.hostile();
        let slots = keys
            .into_iter()
            .zip(&plan.devices)
            .enumerate()
            .map(|(place, (keys, of))| Slot {
                keys,
                since: START,
                malice: hostile.contains(&place).then(Malice::default),
                expelled: false,
                rotten: false,
                backup: None,
                paused: START,
                held: VecDeque::new(),
                moves: 0,
                book: None,
                clock: Clock {
                    ahead: of.skew,
                    drift: of.drift,
                },
                down: 0,
                away: 0,
                disks: Disks::default(),
                running: None,
                life: 0,
                seed: rng.split(),
                pending: BTreeMap::new(),
                fetches: BTreeMap::new(),
            })
            .collect();
        let mut world = Self {
            now: START,
            rng,
            queue: BTreeMap::new(),
            next: 0,
            slots,
            by_id,
            resealed: Resealed::default(),
            book,
            space,
            spread_entries: plan.spread_entries,
            anti_entropy: plan.anti_entropy,
            partitions: BTreeMap::new(),
            connections: BTreeMap::new(),
            unlucky: Vec::new(),
            network: Network::new(plan),
            spreading: BTreeMap::new(),
            everywhere: BTreeSet::new(),
            everyone: plan.devices.len() - hostile.len(),
            laws: Laws::default(),
            expelling: BTreeMap::new(),
            delays: Vec::new(),
            events: 0,
            inputs: 0,
            check_credit: 0,
            let_through: None,
            messages: BTreeMap::new(),
            published: VecDeque::new(),
            overlay: Overlay::new(plan.devices.len()),
            gossip_lost: plan.gossip_lost,
            dht,
            promises: Vec::new(),
            promised_by: Vec::new(),
            read_back: 0,
            trace,
            marks: Vec::new(),
            failures: Vec::new(),
        };
        for device in 0..plan.devices.len() {
            let Some(slot) = world.slots.get(device) else {
                continue;
            };
            let (storage, _) = slot.disks.open(space);
            for entry in &entries {
                storage
                    .log
                    .append(entry)
                    .expect("a new disk takes the first entries");
            }
            storage
                .log
                .sync()
                .expect("a new disk keeps the first entries");
            drop(storage);
            world.start(device);
        }
        world
    }

    /// Virtual time since the start of the run.
    pub fn elapsed(&self) -> Span {
        Span(self.now.0.saturating_sub(START.0))
    }

    /// Has something done that long after the start of the run.
    pub fn at(&mut self, after: Span, act: Act) {
        self.push(START + after, Event::Act(act));
    }

    /// Has it looked so often in that time whether entries lag.
    pub fn look_for_lag(&mut self, length: Span) {
        let step = (length.0 / LOOKS).max(60_000);
        let mut at = step;
        while at <= length.0 {
            self.push(START + Span(at), Event::Look);
            at += step;
        }
    }

    /// Has a partition stand from then until then.
    pub fn part(&mut self, groups: Vec<BTreeSet<usize>>, from: Span, to: Span) {
        self.next += 1;
        let number = self.next;
        self.at(from, Act::Partition(number, groups));
        self.at(to, Act::Heal(number));
    }

    /// From then until then these devices may lose power just after they have acknowledged something, by that chance of a million, and for so long.
    pub fn unlucky(
        &mut self,
        devices: BTreeSet<usize>,
        (from, to): (Span, Span),
        chance: u64,
        lasts: (Span, Span),
    ) {
        self.unlucky.push(Unlucky {
            devices,
            from: START + from,
            to: START + to,
            chance,
            lasts,
        });
    }

    /// A device has acknowledged something.
    fn may_crash(&mut self, device: usize) {
        for place in 0..self.unlucky.len() {
            let Some(unlucky) = self.unlucky.get(place) else {
                continue;
            };
            if !unlucky.devices.contains(&device)
                || self.now < unlucky.from
                || self.now > unlucky.to
            {
                continue;
            }
            let (chance, lasts) = (unlucky.chance, unlucky.lasts);
            if self.rng.below(1_000_000) < chance {
                let down = lasts.0.0 + self.rng.below(lasts.1.0.saturating_sub(lasts.0.0) + 1);
                self.after((0, 1), Event::Act(Act::Crash(device)));
                self.after((down + 2, down + 2), Event::Act(Act::Start(device)));
            }
        }
    }

    /// Everything is up and connected from now on, whatever was to keep it from that.
    pub fn all_well(&mut self) {
        self.queue
            .retain(|_, event| !matches!(event, Event::Act(_) | Event::Look));
        self.partitions.clear();
        self.unlucky.clear();
        for device in 0..self.slots.len() {
            if let Some(slot) = self.slots.get_mut(device) {
                slot.away = 0;
                slot.down = 0;
                slot.paused = self.now;
            }
            self.go_on(device);
            self.start(device);
        }
        self.network.storm(0, u64::MAX);
        self.bring_together();
        self.mark(0, Mark::AllWell);
        self.trace.note(self.now, 0, format_args!("all is well"));
    }

    /// Whoever went elsewhere is seen by all, as in one local network: two that went at the same time, and knew nobody else, would never meet.
    fn bring_together(&mut self) {
        let moved = |(place, slot): (usize, &Slot)| (slot.moves > 0).then_some(place);
        let moved: Vec<usize> = self.slots.iter().enumerate().filter_map(moved).collect();
        for of in moved {
            for device in 0..self.slots.len() {
                let sighted = Input::Sighted {
                    device: self.id(of),
                    addrs: vec![self.address(of)],
                };
                if device != of {
                    self.input(device, sighted);
                }
            }
        }
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Runs until that long after the start.
    pub fn run_until(&mut self, after: Span) {
        let end = START + after;
        let most = EVENTS_MAX + self.slots.len() as u64 * after.0 / 1000 * EVENTS_PER_SECOND_MAX;
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > end {
                break;
            }
            let event = entry.remove();
            self.now = self.now.max(at);
            self.happen(event);
            self.events += 1;
            if self.events > most {
                self.failures
                    .push("the run goes round in circles".to_owned());
                break;
            }
        }
        self.now = end;
    }

    /// Devices that run, with their place.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &Device)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(place, slot)| Some((place, &slot.running.as_ref()?.device)))
    }

    /// The same without those that mean harm, and those that were removed.
    pub fn honest(&self) -> impl Iterator<Item = (usize, &Device)> {
        self.devices().filter(|(place, _)| self.is_honest(*place))
    }

    fn is_honest(&self, device: usize) -> bool {
        self.slots.get(device).is_some_and(Slot::is_honest)
    }

    /// What was acknowledged.
    pub fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// What honest devices have acknowledged.
    pub fn owed(&self) -> impl Iterator<Item = &Promise> {
        let by = self.promises.iter().zip(&self.promised_by);
        by.filter(|(_, by)| self.is_honest(**by))
            .map(|(promise, _)| promise)
    }

    /// Objects read back whole so far.
    pub fn read_back(&self) -> u64 {
        self.read_back
    }

    fn push(&mut self, at: Time, event: Event) {
        self.next += 1;
        self.queue.insert((at, self.next), event);
    }

    fn after(&mut self, (least, most): (u64, u64), event: Event) {
        let pause = Span(least + self.rng.below(most.saturating_sub(least) + 1));
        self.push(self.now + pause, event);
    }

    fn reach(&self, one: usize, other: usize) -> bool {
        let running = |device: usize| {
            self.slots
                .get(device)
                .is_some_and(|slot| slot.running.is_some() && slot.away == 0)
        };
        let together = |groups: &Vec<BTreeSet<usize>>| {
            groups
                .iter()
                .any(|group| group.contains(&one) && group.contains(&other))
        };
        running(one) && running(other) && self.partitions.values().all(together)
    }

    /// Cuts connections of devices that do not reach each other any more.
    fn cut_apart(&mut self) {
        let cut: Vec<(usize, usize)> = self
            .connections
            .keys()
            .filter(|(one, other)| !self.reach(*one, *other))
            .copied()
            .collect();
        for (one, other) in cut {
            self.disconnect(one, other);
        }
    }

    /// Devices that this one is connected with.
    fn neighbours(&self, device: usize) -> impl Iterator<Item = usize> {
        self.overlay.links(device)
    }

    /// What a device's clock says.
    fn clock(&self, device: usize) -> Time {
        self.slots
            .get(device)
            .map_or(self.now, |slot| slot.clock.read(self.now))
    }

    fn life(&self, device: usize) -> u64 {
        self.slots.get(device).map_or(0, |slot| slot.life)
    }

    fn id(&self, device: usize) -> DeviceId {
        self.slots
            .get(device)
            .map(|slot| slot.keys.id())
            .unwrap_or_default()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input {
                device,
                life,
                input,
            } if self.life(device) == life => self.input(device, input),
            Event::Wake { device, life } if self.life(device) == life => {
                let now = self.now;
                // One that an earlier one stood in for is over.
                if let Some(running) = self.running(device)
                    && running.wake == Some(now)
                {
                    running.wake = None;
                    self.input(device, Input::Wake);
                }
            }
            Event::Input { .. } | Event::Wake { .. } => {}
            Event::Synced {
                device,
                life,
                number,
            } => {
                if self.life(device) == life
                    && let Some(running) = self.running(device)
                {
                    running
                        .storage
                        .log
                        .sync()
                        .expect("a disk without faults syncs");
                    self.input(device, Input::Appended(number));
                }
            }
            Event::Arrives {
                from,
                to,
                connection,
                channel,
                bytes,
            } => {
                let link = self.connections.get(&pair(from, to));
                if link.is_none_or(|link| link.number != connection) {
                    return;
                }
                if self.stands_still(to) {
                    // If the connection is cut meanwhile, it is lost.
                    let arrives = Event::Arrives {
                        from,
                        to,
                        connection,
                        channel,
                        bytes,
                    };
                    self.hold(to, arrives);
                    return;
                }
                let peer = self.id(from);
                let received = Input::Received {
                    peer,
                    channel,
                    bytes,
                };
                self.input(to, received);
            }
            Event::Dialled { from, to, rightly } => {
                if rightly {
                    self.connect(from, to);
                }
                if !self.connections.contains_key(&pair(from, to)) {
                    let peer = self.id(to);
                    // Whoever is not there does not even refuse.
                    let refused = rightly && self.reach(from, to);
                    let wait = if refused { 0 } else { DIAL_PATIENCE };
                    self.later((wait, wait), from, Input::Unreachable(peer));
                }
            }
            Event::Lazily { device, message } => self.tell_lazily(device, message),
            Event::Gossip { from, to, message } => {
                let Some(Rumour {
                    author,
                    bytes,
                    seen,
                    ..
                }) = self.messages.get_mut(&message)
                else {
                    return;
                };
                // One that was cut off meanwhile does not hear it.
                let runs = self
                    .slots
                    .get(to)
                    .is_some_and(|slot| slot.running.is_some());
                if !runs || seen.contains_key(&to) {
                    return;
                }
                seen.insert(to, from);
                let (author, bytes) = (*author, bytes.clone());
                let signer = self.id(author);
                let name = Bytes::copy_from_slice(&message.to_le_bytes());
                self.input(
                    to,
                    Input::Published {
                        from: signer,
                        message: name,
                        bytes: bytes.clone(),
                    },
                );
                self.keeps_what_comes(author, to, &bytes);
            }
            Event::Act(act) => self.act(act),
            Event::GiveUp { device, life, read } => {
                if self.life(device) == life {
                    self.give_up(device, read);
                }
            }
            Event::Look => self.nothing_lags(),
            Event::GoOn(device) => self.go_on(device),
        }
    }

    fn running(&mut self, device: usize) -> Option<&mut Running> {
        self.slots.get_mut(device)?.running.as_mut()
    }

    fn connect(&mut self, one: usize, other: usize) {
        if one == other
            || !self.reach(one, other)
            || self.connections.contains_key(&pair(one, other))
        {
            return;
        }
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
        let link = Link {
            number: self.next,
            since: self.now,
        };
        self.connections.insert(pair(one, other), link);
        self.overlay.connect(one, other);
        self.dht.tables.meet(one, other);
        self.trace
            .note(self.now, one, format_args!("connects d{other}"));
        if one_admits {
            self.input(one, Input::Connected(b));
        }
        if other_admits {
            self.input(other, Input::Connected(a));
        }
    }

    fn disconnect(&mut self, one: usize, other: usize) {
        if self.connections.remove(&pair(one, other)).is_none() {
            return;
        }
        self.network.cut(one, other);
        self.overlay.disconnect(one, other, &mut self.rng);
        self.trace
            .note(self.now, one, format_args!("disconnects d{other}"));
        let (a, b) = (self.id(one), self.id(other));
        self.input(one, Input::Disconnected(b));
        self.input(other, Input::Disconnected(a));
    }

    fn start(&mut self, device: usize) {
        let (now, space) = (self.now, self.space);
        let local = self.clock(device);
        let (spread_entries, anti_entropy) = (self.spread_entries, self.anti_entropy);
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        if slot.running.is_some() {
            return;
        }
        let (storage, entries) = slot.disks.open(space);
        let setup = Setup {
            keys: slot.keys.clone(),
            space,
            seed: slot.seed.bytes(),
            spread_entries,
            unsettled: false,
            connections: DIALS,
            anti_entropy,
            resealed: self.resealed.clone(),
        };
        let mut machine = Device::open(local, setup, &entries);
        // Everyone knows where everyone was at first.
        machine.recall(slot.book.as_ref().unwrap_or(&self.book));
        if let Some(slot) = self.slots.get_mut(device) {
            slot.life += 1;
            slot.since = now;
            slot.running = Some(Running {
                device: machine,
                storage,
                wake: None,
            });
        }
        self.mark(device, Mark::Starts);
        self.trace.note(now, device, format_args!("starts"));
        self.keeps_its_word(device);
        self.input(device, Input::Listening(vec![self.address(device)]));
    }

    /// Where a device is reached now.
    fn address(&self, device: usize) -> String {
        match self.slots.get(device).map_or(0, |slot| slot.moves) {
            0 => format!("sim/{device}"),
            moves => format!("sim/{device}/{moves}"),
        }
    }

    /// A device is reached somewhere else from now on.
    fn relocate(&mut self, device: usize) {
        if let Some(slot) = self.slots.get_mut(device) {
            slot.moves += 1;
        }
        self.mark(device, Mark::Moves);
        let address = self.address(device);
        self.trace
            .note(self.now, device, format_args!("moves to {address}"));
        let peers: Vec<usize> = self.neighbours(device).collect();
        for peer in peers {
            self.disconnect(device, peer);
        }
        self.input(device, Input::Listening(vec![address]));
    }

    /// Ends a device's run, by a power cut or in order.
    fn end(&mut self, device: usize, by_crash: bool) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        slot.down += 1;
        if slot.running.is_none() {
            return;
        }
        if !by_crash && let Some(running) = &slot.running {
            running
                .storage
                .log
                .sync()
                .expect("a disk without faults syncs");
            let store = &running.storage.store;
            store.flush().expect("a disk without faults syncs");
        }
        slot.running = None;
        slot.life += 1;
        slot.paused = self.now;
        slot.held.clear();
        slot.pending.clear();
        slot.fetches.clear();
        if by_crash {
            slot.disks.crash(&mut self.rng);
        }
        let (how, mark) = match by_crash {
            true => ("crashes", Mark::Crashes),
            false => ("stops", Mark::Stops),
        };
        self.mark(device, mark);
        self.trace.note(self.now, device, format_args!("{how}"));
        let peers: Vec<usize> = self.neighbours(device).collect();
        for peer in peers {
            self.disconnect(device, peer);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Put {
                device,
                path,
                content,
            } => self.put(device, &path, content),
            Act::Read(device) => {
                let place = self.rng.below(self.promises.len().max(1) as u64);
                let place = usize::try_from(place).unwrap_or(0);
                let promise = self.promises.get(place).cloned();
                let promise = promise.filter(|promise| {
                    let running = self
                        .slots
                        .get(device)
                        .and_then(|slot| slot.running.as_ref());
                    running.is_some_and(|running| {
                        running.device.tree().link_of(&promise.cid).is_some()
                    })
                });
                if let Some(promise) = promise {
                    let read = self.fetch(device, promise);
                    // One in four reads is not waited for.
                    if self.rng.below(4) == 0 {
                        let life = self.life(device);
                        self.after((0, 2000), Event::GiveUp { device, life, read });
                    }
                }
            }
            Act::Move { device, from, to } => {
                let change = Change::Move {
                    from: tree_path(&from),
                    to: tree_path(&to),
                };
                self.trace
                    .note(self.now, device, format_args!("moves {from} to {to}"));
                self.command(device, change_command(vec![change], None), Vec::new());
            }
            Act::Remove { device, path } => {
                self.trace
                    .note(self.now, device, format_args!("removes {path}"));
                let change = Change::Remove {
                    path: tree_path(&path),
                    recursive: true,
                };
                self.command(device, change_command(vec![change], None), Vec::new());
            }
            Act::Expel { by, device } => {
                self.trace
                    .note(self.now, by, format_args!("expels d{device}"));
                let out = self.id(device);
                // On both sides of a partition, as it comes.
                let removal = Removal {
                    device: out,
                    root: None,
                    force: true,
                };
                if let Some(request) = self.command(by, Command::Remove(removal), Vec::new()) {
                    self.expelling.insert(request, device);
                }
            }
            Act::Rot(device) => self.rot(device),
            Act::Backup(device) => {
                let promised = self.promises.len();
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.backup = Some((slot.disks.copied(), promised));
                }
            }
            Act::Restore(device) => self.restore(device),
            Act::Pause(device, lasts) => {
                self.mark(device, Mark::Pauses);
                self.trace
                    .note(self.now, device, format_args!("stands still"));
                let until = self.now + lasts;
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.paused = slot.paused.max(until);
                }
                self.push(until, Event::GoOn(device));
            }
            Act::Relocate(device) => self.relocate(device),
            Act::Storm(loss) => {
                self.mark(0, Mark::Storms(true));
                self.trace.note(self.now, 0, format_args!("storms"));
                self.network.storm(loss, 0);
            }
            Act::Calm(loss) => {
                self.mark(0, Mark::Storms(false));
                self.network.storm(0, loss);
            }
            Act::Harm(device, harm) => self.harm(device, harm),
            Act::Partition(number, groups) => {
                self.trace
                    .note(self.now, 0, format_args!("partition {groups:?}"));
                self.mark(0, Mark::Parted(number));
                self.partitions.insert(number, groups);
                self.cut_apart();
            }
            Act::Heal(number) => {
                self.mark(0, Mark::Healed(number));
                self.trace.note(self.now, 0, format_args!("heals"));
                self.partitions.remove(&number);
            }
            Act::Crash(device) => self.end(device, true),
            Act::Stop(device) => self.end(device, false),
            Act::Start(device) => {
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.down = slot.down.saturating_sub(1);
                    if slot.down == 0 {
                        self.start(device);
                    }
                }
            }
            Act::Leave(device) => {
                self.mark(device, Mark::Leaves);
                self.trace.note(self.now, device, format_args!("leaves"));
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.away += 1;
                }
                self.cut_apart();
            }
            Act::Return(device) => {
                self.mark(device, Mark::Returns);
                self.trace.note(self.now, device, format_args!("returns"));
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.away = slot.away.saturating_sub(1);
                }
            }
            Act::Jump { device, by } => {
                self.mark(device, Mark::Jumps(by));
                self.trace.note(
                    self.now,
                    device,
                    format_args!("has its clock jump by {by} ms"),
                );
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.clock.ahead = slot.clock.ahead.saturating_add(by);
                }
            }
        }
    }

    /// Feeds a machine and performs what it wants.
    fn input(&mut self, device: usize, input: Input) {
        if self.stands_still(device) {
            let life = self.life(device);
            let later = Event::Input {
                device,
                life,
                input,
            };
            self.hold(device, later);
            return;
        }
        self.let_through = None;
        let (now, local) = (self.now, self.clock(device));
        self.inputs += 1;
        let every = CHECKED_EVERY.max(self.slots.len() as u64 / 4);
        let mut checked = self.inputs < CHECKED_FIRST || self.inputs.is_multiple_of(every);
        let mut credit = self.check_credit;
        let Some(running) = self.running(device) else {
            return;
        };
        if checked {
            let exchange = running.device.exchange();
            let cost = exchange.serving_len() + exchange.wants_len();
            credit += CHECK_CREDIT;
            checked = credit >= cost;
            credit = if checked {
                (credit - cost).min(CHECK_CREDIT)
            } else {
                credit
            };
        }
        running.device.handle(local, input);
        self.check_credit = credit;
        if self.is_honest(device) {
            self.laws.clock(local);
        }
        let Some(running) = self.running(device) else {
            return;
        };
        if checked {
            running.device.check_invariants();
        }
        let mut appended = None;
        while let Some(effect) = self
            .running(device)
            .and_then(|running| running.device.poll_effect())
        {
            self.perform(device, effect, &mut appended);
        }
        let life = self.life(device);
        if let Some(number) = appended {
            self.after(
                SYNC,
                Event::Synced {
                    device,
                    life,
                    number,
                },
            );
        }
        let Some(running) = self.running(device) else {
            return;
        };
        if let Some(wake) = running.device.next_wakeup() {
            // A timer goes by how long, not by what the clock says then.
            let at = now + wake.since(local).max(Span(1));
            if running.wake.is_none_or(|queued| at < queued) {
                running.wake = Some(at);
                self.push(at, Event::Wake { device, life });
            }
        }
    }

    /// Whether a device hears nothing now, or has not heard yet what it missed.
    fn stands_still(&self, device: usize) -> bool {
        let slot = self.slots.get(device);
        self.let_through != Some(device)
            && slot.is_some_and(|slot| slot.paused > self.now || !slot.held.is_empty())
    }

    fn hold(&mut self, device: usize, event: Event) {
        if let Some(slot) = self.slots.get_mut(device) {
            slot.held.push_back(event);
        }
    }

    /// A device that stood still hears what it missed, in order.
    fn go_on(&mut self, device: usize) {
        let now = self.now;
        let ready = |slot: &&mut Slot| slot.paused <= now;
        while let Some(slot) = self.slots.get_mut(device).filter(ready) {
            let Some(event) = slot.held.pop_front() else {
                return;
            };
            // What it leads to at once comes after what came before.
            self.let_through = Some(device);
            self.happen(event);
            self.let_through = None;
        }
    }

    fn later(&mut self, pause: (u64, u64), device: usize, input: Input) {
        let life = self.life(device);
        self.after(
            pause,
            Event::Input {
                device,
                life,
                input,
            },
        );
    }

    fn perform(&mut self, device: usize, effect: Effect, appended: &mut Option<u64>) {
        match effect {
            Effect::Allow(allowed) => {
                let cut: Vec<usize> = self
                    .neighbours(device)
                    .filter(|peer| !allowed.contains(&self.id(*peer)))
                    .collect();
                for peer in cut {
                    self.disconnect(device, peer);
                }
            }
            Effect::Dial { device: to, addrs } => {
                if let Some(to) = self.by_id.get(&to).copied() {
                    // TCP and Noise: there, back, there.
                    let way = 3 * self.network.latency(device, to, &mut self.rng);
                    let from = device;
                    // Without an address, the DHT is asked, which knows.
                    let rightly = addrs.is_empty() || addrs.contains(&self.address(to));
                    self.after((way, way), Event::Dialled { from, to, rightly });
                }
            }
            Effect::Send {
                peer,
                channel,
                message,
            } => self.send(device, peer, channel, message.into_bytes()),
            Effect::Disconnect { peer, reason } => {
                self.trace
                    .note(self.now, device, format_args!("cuts {peer}: {reason}"));
                if let Some(peer) = self.by_id.get(&peer).copied() {
                    self.disconnect(device, peer);
                }
            }
            Effect::Publish(bytes) => {
                self.publish(device, device, bytes);
            }
            Effect::Verdict { message, accept } => {
                if let (true, Ok(message)) =
                    (accept, message.as_ref().try_into().map(u64::from_le_bytes))
                {
                    self.spread(device, message);
                }
            }
            Effect::Append { number, id, entry } => {
                let Some(running) = self.running(device) else {
                    return;
                };
                let offset = running
                    .storage
                    .log
                    .append(&entry)
                    .expect("a disk without faults takes entries");
                running.storage.offsets.insert(id, offset);
                *appended = Some(number);
                self.wrote(device, &entry);
                self.took(device, id);
                self.trace
                    .note(self.now, device, format_args!("takes {}", id.short()));
            }
            Effect::LoadBlock { peer, cid, block } => {
                let Some(running) = self.running(device) else {
                    return;
                };
                let store = &running.storage.store;
                let found = if block {
                    running.storage.block(&cid).map(Loaded::Block)
                } else {
                    store
                        .size(&cid)
                        .expect("a disk without faults reads")
                        .map(Loaded::Size)
                };
                self.later(READ, device, Input::LoadedBlock { peer, cid, found });
            }
            Effect::LoadEntries { token, ids } => {
                let Some(running) = self.running(device) else {
                    return;
                };
                let storage = &running.storage;
                let read =
                    |id: EntryId| Some((id, storage.log.read(*storage.offsets.get(&id)?).ok()?));
                let entries = ids.into_iter().filter_map(read).collect();
                self.later(READ, device, Input::LoadedEntries { token, entries });
            }
            Effect::Got {
                requests,
                cid,
                block,
                ..
            } => self.got(device, &requests, cid, &block),
            Effect::Held { requests, cid } => self.arrived(device, &requests, cid),
            Effect::Unavailable { .. } | Effect::Sought { .. } | Effect::Settled => {}
            Effect::KeepBook(book) => {
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.book = Some(book);
                }
            }
            Effect::Provide(key) => self.provide(device, key),
            Effect::FindProviders(key) => self.find_providers(device, key),
            Effect::PutRecord { key, record } => self.put_record(device, key, &record),
            Effect::KeepRecord { key, record } => self.dht.keep(device, key, record),
            Effect::FindRecord(key) => self.find_record(device, key),
            Effect::Done { request, outcome } => {
                let Some(slot) = self.slots.get_mut(device) else {
                    return;
                };
                let promises = slot.pending.remove(&request).unwrap_or_default();
                let expelled = self.expelling.remove(&request);
                match outcome {
                    Ok(()) => {
                        if let Some(expelled) = expelled {
                            self.expelled(expelled);
                        }
                        self.trace
                            .note(self.now, device, format_args!("acknowledges"));
                        self.promised_by
                            .resize(self.promises.len() + promises.len(), device);
                        self.promises.extend(promises);
                        self.may_crash(device);
                    }
                    Err(error) => {
                        self.trace
                            .note(self.now, device, format_args!("refuses: {error}"))
                    }
                }
            }
        }
    }

    fn send(&mut self, from: usize, peer: DeviceId, channel: Channel, bytes: Bytes) {
        let Some(to) = self.by_id.get(&peer).copied() else {
            return;
        };
        self.serves_no_stranger(from, to);
        let Some(bytes) = self.tampered(from, channel, bytes.clone()) else {
            // It says that it was sent, and it was not.
            let (life, len) = (self.life(from), bytes.len());
            let input = Input::Flushed { peer, channel, len };
            let device = from;
            let flushed = Event::Input {
                device,
                life,
                input,
            };
            self.push(self.now, flushed);
            return;
        };
        let len = bytes.len();
        let mut written = self.now;
        let connection = self
            .connections
            .get(&pair(from, to))
            .map(|link| link.number);
        if let Some(connection) = connection {
            let purpose = match channel {
                Channel::Bitswap => "blocks",
                Channel::Sync => "sync",
            };
            let way = (from, to);
            let arrives;
            (written, arrives) = self
                .network
                .send(self.now, way, len, purpose, &mut self.rng);
            self.push(
                arrives,
                Event::Arrives {
                    from,
                    to,
                    connection,
                    channel,
                    bytes,
                },
            );
        }
        let life = self.life(from);
        let input = Input::Flushed { peer, channel, len };
        let device = from;
        self.push(
            written,
            Event::Input {
                device,
                life,
                input,
            },
        );
    }

    /// A device has an entry, which it may have had and lost before.
    fn took(&mut self, device: usize, entry: EntryId) {
        if !self.is_honest(device) {
            return;
        }
        // One that was everywhere may come once more to a device that lost it.
        if self.everywhere.contains(&entry) {
            return;
        }
        let all = self.everyone;
        let (since, who) = self
            .spreading
            .entry(entry)
            .or_insert_with(|| (self.now, BTreeMap::new()));
        who.entry(device).or_insert(self.now);
        if who.len() == all {
            self.delays.push(self.now.since(*since).as_ms());
            self.spreading.remove(&entry);
            self.everywhere.insert(entry);
        }
    }

    /// A device is not of the mesh any more.
    fn expelled(&mut self, device: usize) {
        if self.is_honest(device) {
            self.everyone -= 1;
        }
        self.mark(device, Mark::Removed);
        self.trace
            .note(self.now, device, format_args!("is removed from the mesh"));
        if let Some(slot) = self.slots.get_mut(device) {
            slot.expelled = true;
        }
        let all = self.everyone;
        let (now, delays) = (self.now, &mut self.delays);
        let everywhere = &mut self.everywhere;
        self.spreading.retain(|entry, (since, who)| {
            who.remove(&device);
            if who.len() == all {
                delays.push(now.since(*since).as_ms());
                everywhere.insert(*entry);
            }
            who.len() < all && !who.is_empty()
        });
    }

    /// A device's disks are put back to what they were. What it has acknowledged since is owed by nobody.
    fn restore(&mut self, device: usize) {
        // Who has removed another is not: what the others were never told would then be no removal at all.
        let removed = !self.expelling.is_empty() || self.slots.iter().any(|slot| slot.expelled);
        if device == 0 && removed {
            return;
        }
        let slot = self.slots.get_mut(device);
        let Some((disks, promised)) = slot.and_then(|slot| slot.backup.take()) else {
            return;
        };
        self.end(device, true);
        // Places keep their number, for other backups count by it.
        for by in self.promised_by.iter_mut().skip(promised) {
            if *by == device {
                *by = NOBODY;
            }
        }
        self.spreading.retain(|_, (_, who)| {
            who.remove(&device);
            !who.is_empty()
        });
        self.mark(device, Mark::Restored);
        self.trace
            .note(self.now, device, format_args!("is put back to a backup"));
        if let Some(slot) = self.slots.get_mut(device) {
            slot.disks = disks;
        }
        self.act(Act::Start(device));
        let slot = self.slots.get(device);
        let running = slot.and_then(|slot| slot.running.as_ref());
        let has = |entry: &&EntryId| {
            running.is_some_and(|running| running.device.replica().contains(entry))
        };
        let kept: Vec<EntryId> = self.spreading.keys().filter(has).copied().collect();
        for entry in kept {
            self.took(device, entry);
        }
    }

    /// A bit turns over among a device's packs.
    fn rot(&mut self, device: usize) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        if let Some((file, bit)) = slot.disks.rot(&mut self.rng) {
            slot.rotten = true;
            self.mark(device, Mark::Rots);
            self.trace.note(
                self.now,
                device,
                format_args!("has bit {bit} of {file} turn over"),
            );
        }
    }

    /// A device passes a gossip message on: its own to all, those of others to its mesh.
    fn spread(&mut self, device: usize, message: u64) {
        let Some(Rumour { author, seen, .. }) = self.messages.get(&message) else {
            return;
        };
        let (author, before) = (*author, seen.get(&device).copied());
        let to: Vec<usize> = if author == device {
            self.overlay.links(device).collect()
        } else {
            let mesh = self.overlay.mesh(device);
            mesh.filter(|to| *to != author && Some(*to) != before)
                .collect()
        };
        for to in to {
            self.whisper(device, to, message);
        }
        if self.overlay.has_others(device) {
            self.after(HEARTBEAT, Event::Lazily { device, message });
        }
    }

    /// Those outside its mesh that lack a message hear of it, ask for it, and get it.
    fn tell_lazily(&mut self, device: usize, message: u64) {
        for to in self.overlay.lazily(device, &mut self.rng) {
            let rumour = self.messages.get(&message);
            let has = rumour.is_none_or(|rumour| rumour.seen.contains_key(&to));
            self.network.count((device, to), IHAVE, "gossip");
            if !has {
                self.network.count((to, device), IHAVE, "gossip");
                self.whisper(device, to, message);
            }
        }
    }

    /// A device passes a gossip message to another.
    fn whisper(&mut self, device: usize, to: usize, message: u64) {
        let Some(rumour) = self.messages.get_mut(&message) else {
            return;
        };
        let (bytes, way) = (&rumour.bytes, (device, to));
        let soonest = self.now + self.network.least_latency(device, to);
        let comes = rumour.comes.get(&to).is_some_and(|at| *at <= soonest);
        if comes || rumour.seen.contains_key(&to) {
            self.network
                .send_in_vain(self.now, way, bytes.len(), "gossip");
            return;
        }
        let (_, arrives) = self
            .network
            .send(self.now, way, bytes.len(), "gossip", &mut self.rng);
        let lost = self.gossip_lost > 0 && self.rng.below(1_000_000) < self.gossip_lost;
        let comes = rumour.comes.get(&to).is_some_and(|at| *at <= arrives);
        if !lost && !comes {
            rumour.comes.insert(to, arrives);
            let from = device;
            self.push(arrives, Event::Gossip { from, to, message });
        }
    }
}

fn change_command(changes: Vec<Change>, sealed_under: Option<Secret>) -> Command {
    Command::Change {
        changes,
        sealed_under,
    }
}

fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

fn tree_path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).expect("paths of scenarios are paths")
}
