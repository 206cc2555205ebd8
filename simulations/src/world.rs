//! Virtual time, a queue of events, devices with disks, a network between them.
//!
//! Spec: `protocol/spec/simulation.md`, "World".

mod acts;
mod effects;
mod keeping;
mod laws;
mod lookups;
mod malice;
mod objects;
pub mod record;
mod rumours;
mod ways;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kith_core::book::Book;
use kith_core::device::{Channel, Command, Device, Input, Setup};
use kith_crdt::names::{Change, TreePath};
use kith_crdt::replica::Resealed;
use kith_object::id::{Cid, DeviceId, EntryId, PackId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, Secret};
use kith_object::store::{Born, Keep};
use kith_object::time::{Span, Time};

pub use self::acts::Act;
use self::keeping::{Gives, Making, Moving};
use self::laws::Laws;
use self::lookups::Dht;
use self::malice::Malice;
use self::objects::Fetch;
use self::record::Mark;
use self::rumours::Rumour;
use self::ways::{Links, Obstacles};
use crate::disk::{Disks, Storage};
use crate::gossip::Overlay;
use crate::network::Network;
use crate::plan::Plan;
use crate::trace::Trace;

/// More events than any scenario has use for, and for each device and virtual second: a run that gets there goes round in circles.
const EVENTS_MAX: u64 = 2_000_000;
const EVENTS_PER_SECOND_MAX: u64 = 20;
/// Of each thing that the scenario does, for each device.
const EVENTS_PER_ACT_MAX: u64 = 500;
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
    /// A device says what it gives for packs.
    Offer { device: usize, life: u64 },
    /// A device looks after its packs.
    Tend { device: usize, life: u64 },
    /// A pack comes, to the run of the device that asked for it.
    Moved { life: u64, moving: Moving },
    /// The shards that a pack is to be made of have come.
    Made { life: u64, making: Making },
    /// An admin says that a device is lost.
    Declare(usize),
    /// A device that stood still goes on, if it still is to.
    GoOn(usize),
    /// A connection over which nothing came for a while counts as gone, if nothing comes still.
    Silent {
        one: usize,
        other: usize,
        number: u64,
    },
    /// A direct way is tried for, beside a relayed connection.
    Punch {
        one: usize,
        other: usize,
        number: u64,
        pause: Span,
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
    /// How much keeps it down.
    down: u32,
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
    /// How long it takes for things, and how much longer now: its processor, and its disk, milliseconds.
    speed: Speed,
    slow: (u64, u64),
    /// Its processor is at work until then.
    busy: Time,
    /// Bytes of packs it may hold.
    capacity: Option<u64>,
    /// It could not write its log, and acknowledges nothing until it is started again.
    log_failed: bool,
    /// It stands still until then.
    paused: Time,
    /// What it was told meanwhile, in order.
    held: VecDeque<Event>,
    /// How often it went elsewhere.
    moves: u64,
    /// Where it knows the others to be, as it had that kept.
    book: Option<Bytes>,
    /// What it gives for packs, where any device does.
    gives: Option<Gives>,
    /// Packs that were closed and not told of yet.
    unborn: Vec<Born>,
    /// It is gone for good.
    is_lost: bool,
}

impl Slot {
    /// Whether it is held to the rules, and owed what they promise.
    fn is_honest(&self) -> bool {
        self.malice.is_none() && !self.expelled && !self.is_lost
    }

    /// Whether a pack lies there to stay, as far as its disk goes.
    fn keeps(&self, pack: &PackId) -> bool {
        match &self.running {
            Some(running) => {
                let store = &running.storage.store;
                let known = store.pack_info(pack).ok().flatten().is_some();
                known && store.keep_of(pack) == Keep::Kept
            }
            None => !self.is_lost && self.disks.holds(pack),
        }
    }

    /// Whether it has to be started again before it takes anything more.
    fn is_stuck(&self) -> bool {
        let store = self.running.as_ref().map(|running| &running.storage.store);
        // Where packs are kept for others a store that takes nothing is missed.
        let is_broken =
            || self.gives.is_some() && store.is_some_and(|store| store.flush().is_err());
        self.log_failed || is_broken()
    }

    /// How long its processor takes for an input, milliseconds.
    fn takes(&self) -> u64 {
        self.speed.cpu + self.slow.0
    }
}

/// How long a device takes for things, milliseconds.
#[derive(Debug, Clone, Copy)]
struct Speed {
    cpu: u64,
    reads: (u64, u64),
    syncs: (u64, u64),
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
    links: Links,
    obstacles: Obstacles,
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
    /// Things that the scenario was to do.
    acts: u64,
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
    /// And when.
    acked: Vec<Time>,
    /// Packs that are being told of, by the number of the command.
    telling: BTreeMap<u64, (usize, Vec<PackId>)>,
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
            .zip(plan.devices.iter().zip(Gives::of(plan)))
            .enumerate()
            .map(|(place, (keys, (of, gives)))| Slot {
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
                gives,
                unborn: Vec::new(),
                is_lost: false,
                clock: Clock {
                    ahead: of.skew,
                    drift: of.drift,
                },
                down: 0,
                speed: Speed {
                    cpu: of.cpu,
                    reads: of.reads,
                    syncs: of.syncs,
                },
                slow: (0, 0),
                busy: START,
                capacity: of.capacity,
                log_failed: false,
                disks: Disks::of(of.capacity),
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
            links: Links::new(plan.devices.len()),
            obstacles: Obstacles::new(plan),
            unlucky: Vec::new(),
            network: Network::new(plan, START),
            spreading: BTreeMap::new(),
            everywhere: BTreeSet::new(),
            everyone: plan.devices.len() - hostile.len(),
            laws: Laws::default(),
            expelling: BTreeMap::new(),
            delays: Vec::new(),
            events: 0,
            acts: 0,
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
            acked: Vec::new(),
            telling: BTreeMap::new(),
            read_back: 0,
            trace,
            marks: Vec::new(),
            failures: Vec::new(),
        };
        for device in 0..plan.devices.len() {
            let Some(slot) = world.slots.get(device) else {
                continue;
            };
            let opened = slot.disks.open(space, slot.gives.is_some());
            let (storage, _) = opened.expect("a new disk opens");
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
        self.acts += 1;
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

    /// What the first send does not reach the second from then until then.
    pub fn part_one_way(
        &mut self,
        (these, those): (BTreeSet<usize>, BTreeSet<usize>),
        from: Span,
        to: Span,
    ) {
        self.next += 1;
        let number = self.next;
        self.at(from, Act::OneWay(number, these, those));
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
        self.obstacles.clear();
        self.unlucky.clear();
        for device in 0..self.slots.len() {
            if let Some(slot) = self.slots.get_mut(device) {
                slot.paused = self.now;
                slot.slow = (0, 0);
                slot.capacity = None;
                slot.disks.mend();
                slot.disks.leave_room(None, None);
            }
            self.go_on(device);
            if self.slots.get(device).is_some_and(Slot::is_stuck) {
                self.end(device, true);
            }
            if let Some(slot) = self.slots.get_mut(device) {
                slot.down = 0;
            }
            self.start(device);
        }
        self.get_going();
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
        let devices = self.slots.len() as u64;
        let most = EVENTS_MAX
            + devices * after.0 / 1000 * EVENTS_PER_SECOND_MAX
            + devices * self.acts * EVENTS_PER_ACT_MAX;
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
                self.fail("the run goes round in circles");
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
                let failed = self.slots.get(device).is_none_or(|slot| slot.log_failed);
                if self.life(device) == life
                    && !failed
                    && let Some(running) = self.running(device)
                {
                    match running.storage.log.sync() {
                        Ok(()) => self.input(device, Input::Appended(number)),
                        Err(error) => self.cannot_log(device, &error),
                    }
                }
            }
            Event::Arrives {
                from,
                to,
                connection,
                channel,
                bytes,
            } => {
                let link = self.links.get(from, to);
                if link.is_none_or(|link| link.number != connection) {
                    return;
                }
                let len = bytes.len();
                let arrives = Event::Arrives {
                    from,
                    to,
                    connection,
                    channel,
                    bytes,
                };
                let Some(arrives) = self.gets_through((from, to), len, arrives) else {
                    return;
                };
                if self.stands_still(to) {
                    // If the connection is cut meanwhile, it is lost.
                    self.hold(to, arrives);
                    return;
                }
                let Event::Arrives { bytes, .. } = arrives else {
                    return;
                };
                let peer = self.id(from);
                let received = Input::Received {
                    peer,
                    channel,
                    bytes,
                };
                self.input(to, received);
            }
            Event::Dialled { from, to, rightly } => self.dialled(from, to, rightly),
            Event::Lazily { device, message } => self.tell_lazily(device, message),
            Event::Gossip { from, to, message } => {
                let Some(rumour) = self.messages.get(&message) else {
                    return;
                };
                let (len, gossip) = (rumour.bytes.len(), Event::Gossip { from, to, message });
                if self.gets_through((from, to), len, gossip).is_none() {
                    // Whoever has it for this one does not keep it back any more.
                    if let Some(rumour) = self.messages.get_mut(&message) {
                        rumour.comes_no_more(to);
                    }
                    return;
                }
                // One that was cut off meanwhile does not hear it.
                let runs = self.running(to).is_some();
                let Some(rumour) = self.messages.get_mut(&message) else {
                    return;
                };
                if !runs || rumour.is_known_to(to) {
                    return;
                }
                rumour.reached(to, from);
                let (author, bytes) = (rumour.author, rumour.bytes.clone());
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
            Event::Offer { device, life } => {
                if self.life(device) == life {
                    self.offer(device);
                }
            }
            Event::Tend { device, life } => {
                if self.life(device) == life {
                    self.tend(device);
                }
            }
            Event::Moved { life, moving } => {
                if self.life(moving.to) == life {
                    self.moved(&moving);
                }
            }
            Event::Made { life, making } => {
                if self.life(making.device) == life {
                    self.made(&making);
                }
            }
            Event::Declare(device) => self.declare(device),
            Event::GoOn(device) => self.go_on(device),
            Event::Silent { one, other, number } => self.is_given_up(one, other, number),
            Event::Punch {
                one,
                other,
                number,
                pause,
            } => self.punch((one, other), number, pause),
        }
    }

    fn running(&mut self, device: usize) -> Option<&mut Running> {
        self.slots.get_mut(device)?.running.as_mut()
    }

    fn start(&mut self, device: usize) {
        let (now, space) = (self.now, self.space);
        let local = self.clock(device);
        let (spread_entries, anti_entropy) = (self.spread_entries, self.anti_entropy);
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        if slot.running.is_some() || slot.is_lost {
            return;
        }
        let (mut storage, entries) = match slot.disks.open(space, slot.gives.is_some()) {
            Ok(opened) => opened,
            Err(error) => {
                self.trace
                    .note(now, device, format_args!("does not start: {error}"));
                return;
            }
        };
        slot.log_failed = false;
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
        let (promised, is_damaged) = std::mem::take(&mut storage.promised);
        machine.recall_promises(promised, is_damaged);
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
        self.begin_to_keep(device);
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
        // If its disk does not take it, it ends all the same.
        let mut by_crash = by_crash;
        if !by_crash && let Some(running) = &slot.running {
            let Storage { log, store, .. } = &running.storage;
            by_crash = log.sync().is_err() | store.flush().is_err();
        }
        slot.running = None;
        slot.life += 1;
        slot.paused = self.now;
        slot.busy = self.now;
        slot.held.clear();
        slot.pending.clear();
        slot.fetches.clear();
        slot.unborn.clear();
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

    /// Feeds a machine and performs what it wants.
    fn input(&mut self, device: usize, input: Input) {
        if self.stands_still(device) || self.takes_time(device) {
            let later = self.told(device, input);
            self.hold(device, later);
            self.works(device);
            return;
        }
        self.let_through = None;
        let (now, local) = (self.now, self.clock(device));
        let checked = self.is_checked_now(device);
        let Some(running) = self.running(device) else {
            return;
        };
        running.device.handle(local, input);
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
            let syncs = self.syncs(device);
            self.after(
                syncs,
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

    /// Whether the laws of a device's machine are checked after its next input: after few where there are many, and where much is under way.
    fn is_checked_now(&mut self, device: usize) -> bool {
        self.inputs += 1;
        let every = CHECKED_EVERY.max(self.slots.len() as u64 / 4);
        if self.inputs >= CHECKED_FIRST && !self.inputs.is_multiple_of(every) {
            return false;
        }
        let Some(running) = self.running(device) else {
            return false;
        };
        let exchange = running.device.exchange();
        let cost = exchange.serving_len() + exchange.wants_len();
        self.check_credit += CHECK_CREDIT;
        let enough = self.check_credit >= cost;
        if enough {
            self.check_credit = (self.check_credit - cost).min(CHECK_CREDIT);
        }
        enough
    }

    /// An input for the run that a device is in now.
    fn told(&self, device: usize, input: Input) -> Event {
        Event::Input {
            device,
            life: self.life(device),
            input,
        }
    }

    /// Whether a device's processor takes time for what it is told now.
    fn takes_time(&self, device: usize) -> bool {
        let slot = self.slots.get(device);
        self.let_through != Some(device) && slot.is_some_and(|slot| slot.takes() > 0)
    }

    /// A device's processor begins with the next thing to do, if it has nothing under way.
    fn works(&mut self, device: usize) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let takes = Span(slot.takes());
        if takes > Span(0) && slot.busy <= now && !slot.held.is_empty() {
            slot.busy = now + takes;
            self.push(now + takes, Event::GoOn(device));
        }
    }

    /// Whether a device hears nothing now, or has not heard yet what it missed.
    fn stands_still(&self, device: usize) -> bool {
        let slot = self.slots.get(device);
        self.let_through != Some(device)
            && slot.is_some_and(|slot| {
                slot.paused > self.now || slot.busy > self.now || !slot.held.is_empty()
            })
    }

    fn hold(&mut self, device: usize, event: Event) {
        if let Some(slot) = self.slots.get_mut(device) {
            slot.held.push_back(event);
        }
    }

    /// A device that stood still hears what it missed, in order.
    fn go_on(&mut self, device: usize) {
        let now = self.now;
        let ready = |slot: &&mut Slot| slot.paused <= now && slot.busy <= now;
        while let Some(slot) = self.slots.get_mut(device).filter(ready) {
            let Some(event) = slot.held.pop_front() else {
                return;
            };
            // What it leads to at once comes after what came before.
            self.let_through = Some(device);
            self.happen(event);
            self.let_through = None;
            self.works(device);
        }
    }

    fn later(&mut self, pause: (u64, u64), device: usize, input: Input) {
        let told = self.told(device, input);
        self.after(pause, told);
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
        self.forgotten(device);
    }

    /// Nobody waits for a device any more that was honest so far.
    fn forget(&mut self, device: usize) {
        self.everyone -= 1;
        self.forgotten(device);
    }

    fn forgotten(&mut self, device: usize) {
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

#[cfg(test)]
mod tests;
