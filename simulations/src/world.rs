//! Virtual time, a queue of events, devices with disks, a network between them.
//!
//! Spec: `protocol/spec/simulation.md`, "World".

pub mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kith_core::device::{Channel, Command, Device, Effect, Input, Removal, Setup};
use kith_crdt::names::{Change, TreePath};
use kith_crdt::replica::SealState;
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::{Cid, DeviceId, EntryId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, Secret};
use kith_object::object::{ObjectLink, ObjectReader, ObjectWriter};
use kith_object::pack::Class;
use kith_object::seal::{Kind, Opener, Sealer};
use kith_object::store::Verified;
use kith_object::time::{Span, Time};
use kith_object::tree::FileKind;
use kith_protocol::exchange::Loaded;

use self::record::Mark;
use crate::disk::{Disks, Storage};
use crate::network::Network;
use crate::plan::Plan;
use crate::trace::Trace;

/// Writing to the log and its fsync.
const SYNC: (u64, u64) = (1, 12);
/// Reading from a disk.
const READ: (u64, u64) = (0, 4);
/// Looking something up in the DHT.
const LOOKUP: (u64, u64) = (10, 400);
/// Blocks a fetch asks for at once.
const FETCH_WINDOW: usize = 32;
/// More events than any scenario has use for, and for each device and virtual second: a run that gets there goes round in circles.
const EVENTS_MAX: u64 = 5_000_000;
const EVENTS_PER_SECOND_MAX: u64 = 500;
/// Inputs after each of which the machine's invariants are checked, which costs more than the input where much is under way; and how often from then on.
const CHECKED_FIRST: u64 = 20_000;
const CHECKED_EVERY: u64 = 31;
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
    Dialled { from: usize, to: usize },
    /// A gossip message reaches a device from a neighbour.
    Gossip { to: usize, message: u64 },
    /// A device is to look at the time.
    Wake { device: usize, life: u64 },
    /// The scenario does something.
    Act(Act),
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

struct Fetch {
    reader: ObjectReader,
    wanted: BTreeSet<Cid>,
    requests: Vec<u64>,
    got: blake3::Hasher,
    content: [u8; 32],
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
    space: SpaceId,
    spread_entries: bool,
    anti_entropy: bool,
    /// Groups that cannot reach each other, for each partition that stands.
    partitions: BTreeMap<u64, Vec<BTreeSet<usize>>>,
    /// Connections by pair, with a number each.
    connections: BTreeMap<(usize, usize), u64>,
    /// Who may lose power just after an acknowledgement.
    unlucky: Vec<Unlucky>,
    /// What lies between the devices.
    pub network: Network,
    /// Entries that not all devices have yet: when the first had it, and who has.
    spreading: BTreeMap<EntryId, (Time, BTreeSet<usize>)>,
    /// How long entries took from the first device to the last, milliseconds.
    pub delays: Vec<u64>,
    events: u64,
    inputs: u64,
    messages: BTreeMap<u64, (usize, Bytes, BTreeSet<usize>)>,
    providers: BTreeMap<[u8; 32], BTreeSet<usize>>,
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
        let slots = keys
            .into_iter()
            .zip(&plan.devices)
            .map(|(keys, of)| Slot {
                keys,
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
            space,
            spread_entries: plan.spread_entries,
            anti_entropy: plan.anti_entropy,
            partitions: BTreeMap::new(),
            connections: BTreeMap::new(),
            unlucky: Vec::new(),
            network: Network::new(plan),
            spreading: BTreeMap::new(),
            delays: Vec::new(),
            events: 0,
            inputs: 0,
            messages: BTreeMap::new(),
            providers: BTreeMap::new(),
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
            .retain(|_, event| !matches!(event, Event::Act(_)));
        self.partitions.clear();
        self.unlucky.clear();
        for device in 0..self.slots.len() {
            if let Some(slot) = self.slots.get_mut(device) {
                slot.away = 0;
                slot.down = 0;
            }
            self.start(device);
        }
        self.mark(0, Mark::AllWell);
        self.trace.note(self.now, 0, format_args!("all is well"));
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

    /// What was acknowledged.
    pub fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// Objects read back whole so far.
    pub fn read_back(&self) -> u64 {
        self.read_back
    }

    /// Has a device read every promised object, from its own disk or from others.
    pub fn read_all(&mut self, device: usize) {
        for promise in self.promises.clone() {
            self.fetch(device, promise);
        }
    }

    /// Reads under way.
    pub fn reads_open(&self) -> usize {
        self.slots.iter().map(|slot| slot.fetches.len()).sum()
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
        let pairs = self.connections.keys();
        pairs.filter_map(move |(one, other)| {
            if *one == device {
                Some(*other)
            } else {
                (*other == device).then_some(*one)
            }
        })
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
                if self.connections.get(&pair(from, to)) == Some(&connection) {
                    let peer = self.id(from);
                    self.input(
                        to,
                        Input::Received {
                            peer,
                            channel,
                            bytes,
                        },
                    );
                }
            }
            Event::Dialled { from, to } => self.connect(from, to),
            Event::Gossip { to, message } => {
                let Some((author, bytes, seen)) = self.messages.get_mut(&message) else {
                    return;
                };
                if !seen.insert(to) {
                    return;
                }
                let (author, bytes) = (*author, bytes.clone());
                let from = self.id(author);
                let name = Bytes::copy_from_slice(&message.to_le_bytes());
                self.input(
                    to,
                    Input::Published {
                        from,
                        message: name,
                        bytes,
                    },
                );
            }
            Event::Act(act) => self.act(act),
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
        // The allow-lists come first on both sides.
        let (a, b) = (self.id(one), self.id(other));
        let admits = |world: &Self, at: usize, whom: &DeviceId| {
            world
                .devices()
                .any(|(place, device)| place == at && device.admits(whom))
        };
        if !admits(self, one, &b) || !admits(self, other, &a) {
            return;
        }
        self.next += 1;
        self.connections.insert(pair(one, other), self.next);
        self.trace
            .note(self.now, one, format_args!("connects d{other}"));
        self.input(one, Input::Connected(b));
        self.input(other, Input::Connected(a));
    }

    fn disconnect(&mut self, one: usize, other: usize) {
        if self.connections.remove(&pair(one, other)).is_none() {
            return;
        }
        self.network.cut(one, other);
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
            connections: 1024,
            anti_entropy,
        };
        let mut machine = Device::open(local, setup, &entries);
        // Everyone knows where everyone is; how that is learnt is not what these runs are about.
        let book: Vec<(DeviceId, String)> = self
            .by_id
            .iter()
            .map(|(id, place)| (*id, format!("sim/{place}")))
            .collect();
        for (id, addr) in book {
            machine.handle(
                local,
                Input::Addresses {
                    device: id,
                    addrs: vec![addr],
                },
            );
        }
        if let Some(slot) = self.slots.get_mut(device) {
            slot.life += 1;
            slot.running = Some(Running {
                device: machine,
                storage,
                wake: None,
            });
        }
        self.mark(device, Mark::Starts);
        self.trace.note(now, device, format_args!("starts"));
        self.keeps_its_word(device);
        self.input(device, Input::Listening(vec![format!("sim/{device}")]));
    }

    /// A device that has just started has all that it acknowledged: names, entries and blocks.
    fn keeps_its_word(&mut self, device: usize) {
        let running = self
            .slots
            .get(device)
            .and_then(|slot| slot.running.as_ref());
        let Some(Running {
            device: machine,
            storage,
            ..
        }) = running
        else {
            return;
        };
        let own = self.promises.iter().zip(&self.promised_by);
        let own = own.filter(|(_, by)| **by == device);
        for (Promise { cid, .. }, _) in own {
            let known = machine.tree().link_of(cid).is_some();
            if known && storage.store.has(cid).unwrap_or(false) {
                continue;
            }
            let what = if known { "its block" } else { "its entry" };
            let failure = format!(
                "d{device} has acknowledged {cid}, and is without {what} when it starts again"
            );
            self.failures.push(failure);
            return;
        }
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
        for peer in 0..self.slots.len() {
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
                    self.fetch(device, promise);
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
                self.command(by, Command::Remove(removal), Vec::new());
            }
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

    fn put(&mut self, device: usize, path: &str, content: Vec<u8>) {
        let (now, local) = (self.now, self.clock(device));
        let Some(running) = self.running(device) else {
            return;
        };
        let replica = running.device.replica();
        let (SealState::Ready(_), Some(secret)) = (
            replica.seal_state(),
            replica.dedup_secrets().into_iter().next(),
        ) else {
            self.trace
                .note(now, device, format_args!("cannot put {path}"));
            return;
        };
        let writer = ObjectWriter::new(
            Arc::new(Sealer::new(&secret)),
            Arc::new(Chunker::new(&secret, Profile::DEFAULT)),
            Kind::Chunk,
        );
        let store = &running.storage.store;
        let link = writer
            .finish_with(&content, &mut |block| {
                let verified = Verified::computed(block.cid, &block.bytes);
                store
                    .put_verified(Class::Bulk, verified)
                    .map(|_| ())
                    .map_err(std::io::Error::other)
            })
            .expect("a disk without faults takes blocks");
        store.flush().expect("a disk without faults syncs");
        let change = Change::File {
            path: tree_path(path),
            kind: FileKind::File,
            link: link.clone(),
            mtime_ms: local.0,
            mode: 0o644,
        };
        let promise = Promise {
            cid: link.cid(),
            content: *blake3::hash(&content).as_bytes(),
        };
        self.trace.note(
            now,
            device,
            format_args!("puts {path} as {}", promise.cid.short()),
        );
        self.command(
            device,
            change_command(vec![change], Some(secret)),
            vec![promise],
        );
    }

    fn command(&mut self, device: usize, command: Command, promises: Vec<Promise>) {
        self.next += 1;
        let request = self.next;
        let Some(slot) = self
            .slots
            .get_mut(device)
            .filter(|slot| slot.running.is_some())
        else {
            return;
        };
        slot.pending.insert(request, promises);
        self.input(device, Input::Command { request, command });
    }

    /// Feeds a machine and performs what it wants.
    fn input(&mut self, device: usize, input: Input) {
        let (now, local) = (self.now, self.clock(device));
        self.inputs += 1;
        let checked = self.inputs < CHECKED_FIRST || self.inputs.is_multiple_of(CHECKED_EVERY);
        let Some(running) = self.running(device) else {
            return;
        };
        running.device.handle(local, input);
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
            Effect::Dial { device: to, .. } => {
                if let Some(to) = self.by_id.get(&to).copied() {
                    // TCP and Noise: there, back, there.
                    let way = 3 * self.network.latency(device, to, &mut self.rng);
                    self.after((way, way), Event::Dialled { from: device, to });
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
                self.next += 1;
                let message = self.next;
                self.messages
                    .insert(message, (device, bytes, BTreeSet::from([device])));
                self.spread(device, message);
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
                    store
                        .get(&cid)
                        .expect("a disk without faults reads")
                        .map(Loaded::Block)
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
            Effect::Held { requests, cid } => {
                let Some(slot) = self.slots.get_mut(device) else {
                    return;
                };
                let mut advanced = Vec::new();
                for (number, fetch) in &mut slot.fetches {
                    if fetch
                        .requests
                        .iter()
                        .any(|request| requests.contains(request))
                        && fetch.wanted.remove(&cid)
                    {
                        advanced.push(*number);
                    }
                }
                for number in advanced {
                    self.advance(device, number);
                }
            }
            Effect::Unavailable { .. }
            | Effect::Sought { .. }
            | Effect::KeepBook(_)
            | Effect::PutRecord { .. }
            | Effect::KeepRecord { .. }
            | Effect::FindRecord(_)
            | Effect::Settled => {}
            Effect::Provide(key) => {
                self.providers.entry(key).or_default().insert(device);
            }
            Effect::FindProviders(key) => {
                let found: Vec<DeviceId> = self
                    .providers
                    .get(&key)
                    .into_iter()
                    .flatten()
                    .filter(|place| self.reach(device, **place))
                    .map(|place| self.id(*place))
                    .collect();
                self.later(LOOKUP, device, Input::Providers(found));
            }
            Effect::Done { request, outcome } => {
                let Some(slot) = self.slots.get_mut(device) else {
                    return;
                };
                let promises = slot.pending.remove(&request).unwrap_or_default();
                match outcome {
                    Ok(()) => {
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
        let len = bytes.len();
        let mut written = self.now;
        if let Some(connection) = self.connections.get(&pair(from, to)).copied() {
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
        let all = self.slots.len();
        let (since, who) = self
            .spreading
            .entry(entry)
            .or_insert_with(|| (self.now, BTreeSet::new()));
        who.insert(device);
        if who.len() == all {
            self.delays.push(self.now.since(*since).as_ms());
            self.spreading.remove(&entry);
        }
    }

    /// A device passes a gossip message to those it is connected with.
    fn spread(&mut self, device: usize, message: u64) {
        let Some((_, bytes, seen)) = self.messages.get(&message) else {
            return;
        };
        let len = bytes.len();
        let to: Vec<usize> = self
            .neighbours(device)
            .filter(|peer| !seen.contains(peer))
            .collect();
        for to in to {
            let way = (device, to);
            let (_, arrives) = self
                .network
                .send(self.now, way, len, "gossip", &mut self.rng);
            self.push(arrives, Event::Gossip { to, message });
        }
    }

    fn fetch(&mut self, device: usize, promise: Promise) {
        self.next += 1;
        let number = self.next;
        let now = self.now;
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let Some(running) = &slot.running else { return };
        let Some(link) = running.device.tree().link_of(&promise.cid) else {
            self.failures.push(format!(
                "d{device} does not know {}, which was acknowledged",
                promise.cid
            ));
            return;
        };
        let opener = Opener::new(running.device.replica().dedup_secrets());
        slot.fetches
            .insert(number, new_fetch(link, opener, promise.content));
        self.trace
            .note(now, device, format_args!("reads {}", promise.cid.short()));
        self.advance(device, number);
    }

    /// Feeds a read what is on disk, and asks for what is not.
    fn advance(&mut self, device: usize, number: u64) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let (Some(running), Some(fetch)) = (&slot.running, slot.fetches.get_mut(&number)) else {
            return;
        };
        let mut missing = Vec::new();
        loop {
            while let Some(data) = fetch.reader.next() {
                fetch.got.update(&data);
            }
            let mut fed = false;
            for cid in fetch.reader.wanted(FETCH_WINDOW) {
                if fetch.wanted.contains(&cid) {
                    continue;
                }
                match running
                    .storage
                    .store
                    .get(&cid)
                    .expect("a disk without faults reads")
                {
                    Some(block) => {
                        fetch
                            .reader
                            .feed_verified(&cid, &block)
                            .expect("a stored block opens");
                        fed = true;
                    }
                    None => {
                        fetch.wanted.insert(cid);
                        missing.push(cid);
                    }
                }
            }
            if !fed {
                break;
            }
        }
        if fetch.reader.done() {
            let sound = *fetch.got.finalize().as_bytes() == fetch.content;
            slot.fetches.remove(&number);
            if sound {
                self.read_back += 1;
            } else {
                self.failures
                    .push(format!("d{device} read other bytes than were put"));
            }
        } else if !missing.is_empty() {
            self.next += 1;
            let request = self.next;
            if let Some(fetch) = self
                .slots
                .get_mut(device)
                .and_then(|slot| slot.fetches.get_mut(&number))
            {
                fetch.requests.push(request);
            }
            self.input(
                device,
                Input::Fetch {
                    request,
                    cids: missing,
                },
            );
        }
    }

    fn got(&mut self, device: usize, requests: &[u64], cid: Cid, block: &Bytes) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let Some(running) = &slot.running else { return };
        let verified =
            Verified::check(&cid, block).expect("the exchange hands over what it verified");
        running
            .storage
            .store
            .put_verified(Class::Bulk, verified)
            .expect("a disk without faults takes blocks");
        let mut advanced = Vec::new();
        for (number, fetch) in &mut slot.fetches {
            if fetch
                .requests
                .iter()
                .any(|request| requests.contains(request))
                && fetch.wanted.remove(&cid)
            {
                advanced.push(*number);
            }
        }
        self.later((0, 0), device, Input::Stored(vec![cid]));
        for number in advanced {
            self.advance(device, number);
        }
    }
}

fn new_fetch(link: ObjectLink, opener: Opener, content: [u8; 32]) -> Fetch {
    Fetch {
        reader: ObjectReader::new(link, opener),
        wanted: BTreeSet::new(),
        requests: Vec::new(),
        got: blake3::Hasher::new(),
        content,
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
