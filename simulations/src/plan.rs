//! What a run is to be: devices, where they are, how they are connected, what people do and what goes wrong. Everything in it has been checked.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use std::collections::BTreeSet;

use kith_object::time::Span;

/// A scenario.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it is about, in a line.
    pub about: String,
    /// How long things happen.
    pub length: Span,
    /// How long the devices have to agree after that, with everything up and connected again.
    pub settle: Span,
    /// How long they have to read everything after that.
    pub read: Span,
    /// Where devices are.
    pub sites: Vec<Site>,
    /// What lies between two sites, by their places, the smaller first; what is not here is [`Plan::path`].
    pub paths: Vec<((usize, usize), Path)>,
    /// Between sites of which nothing else is said.
    pub path: Path,
    /// Gossip messages that come to nothing between two neighbours, of a million.
    pub gossip_lost: u64,
    /// The devices.
    pub devices: Vec<DevicePlan>,
    /// What people do.
    pub works: Vec<Work>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What devices that mean harm do.
    pub harms: Vec<HarmPlan>,
    /// Whether new entries are gossiped, and whether digests are compared; only tests turn them off.
    pub spread_entries: bool,
    /// See [`Plan::spread_entries`].
    pub anti_entropy: bool,
}

/// A place with one way to the rest of the world.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Bits a second out of it and into it; as many as one likes if absent.
    pub up: Option<u64>,
    /// See [`Site::up`].
    pub down: Option<u64>,
    /// What its line adds to every way out of it and into it.
    pub access: Access,
    /// Between two devices there.
    pub inner: Path,
    /// What stands between it and the rest.
    pub nat: Nat,
    /// What its line is at certain hours; the first that fits holds.
    pub hours: Vec<LineHours>,
}

/// What a line adds to the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// One way, at least and at most, milliseconds.
    pub latency: (u64, u64),
    /// Packets lost, of a million.
    pub loss: u64,
}

/// What a router at a site lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nat {
    /// Everything: no such router.
    #[default]
    Open,
    /// Answers, and whatever comes to a port from which something went out.
    Cone,
    /// Answers only from where something went out to.
    Symmetric,
}

impl Nat {
    /// All of them, by name.
    pub const ALL: [(&str, Self); 3] = [
        ("open", Self::Open),
        ("cone", Self::Cone),
        ("symmetric", Self::Symmetric),
    ];
}

/// What the line of a site is at some hours of each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineHours {
    /// From and to, minutes since midnight.
    pub hours: (u64, u64),
    /// Bits a second out of it and into it; as many as one likes if absent.
    pub up: Option<u64>,
    /// See [`LineHours::up`].
    pub down: Option<u64>,
    /// What it adds to every way out or in, besides what the line always does.
    pub access: Access,
    /// Whether what it carries is paid for.
    pub metered: bool,
    /// Whether there is no line at all.
    pub shut: bool,
}

/// What a message meets on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// One way, at least and at most, milliseconds.
    pub latency: (u64, u64),
    /// Packets lost, of a million.
    pub loss: u64,
    /// Times at which more are lost.
    pub bursts: Option<Bursts>,
    /// Packets that later ones overtake, of a million.
    pub reordered: u64,
    /// Packets that come twice, of a million.
    pub duplicated: u64,
    /// Bytes of a packet with all its heads.
    pub mtu: u64,
}

impl Path {
    /// The same over a line that adds something.
    #[must_use]
    pub fn over(mut self, access: Access) -> Self {
        self.latency.0 += access.latency.0;
        self.latency.1 += access.latency.1;
        self.loss += access.loss;
        self
    }

    /// One that loses nothing.
    pub fn new(latency: (u64, u64)) -> Self {
        Self {
            latency,
            loss: 0,
            bursts: None,
            reordered: 0,
            duplicated: 0,
            mtu: MTU,
        }
    }
}

/// Bytes of a packet with all its heads, unless something else is said.
pub const MTU: u64 = 1500;

/// Losses that come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bursts {
    /// Packets lost while one lasts, of a million.
    pub loss: u64,
    /// From one to the next, on average.
    pub every: Span,
    /// How long one lasts, at least and at most.
    pub lasts: (Span, Span),
}

/// A device.
#[derive(Debug, Clone)]
pub struct DevicePlan {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub site: usize,
    /// Whether it is an admin.
    pub admin: bool,
    /// How far its clock is ahead at first, milliseconds.
    pub skew: i64,
    /// How much faster its clock goes, parts of a million.
    pub drift: i64,
    /// When it is on each day, minutes since midnight, which is when the run begins; always if absent.
    pub online: Option<(u64, u64)>,
    /// Whether it relays between others, if it is reached from everywhere.
    pub relay: bool,
    /// How long its processor takes for each input, milliseconds.
    pub cpu: u64,
    /// How long its disk takes to read a block or an entry, and to make an entry durable, milliseconds.
    pub reads: (u64, u64),
    /// See [`DevicePlan::reads`].
    pub syncs: (u64, u64),
    /// Bytes of packs it may hold; as many as one likes if absent.
    pub capacity: Option<u64>,
    /// Bytes it gives for packs that others rely on.
    pub gives: u64,
    /// The silence after which others count it as gone.
    pub grace: Span,
    /// How many of such devices are lost or break in a year, of a million.
    pub fails: Option<u64>,
}

/// How often something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// So often in all.
    Count(u64),
    /// Each so long, on average.
    Every(Span),
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When {
    /// Not before.
    pub from: Span,
    /// Not after.
    pub to: Span,
    /// How often, spread at random; one that happens once, from a moment to the same, happens then.
    pub times: Times,
}

/// What people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Write, move and remove under a few names, the same on all devices.
    Edits,
    /// Put photographs into a folder of their own, all at once.
    Photos,
    /// Put a tree of source code: many small files in folders, all at once.
    Source,
    /// Note what was done: something small, under a new name.
    Lifelog,
    /// Read something that was put, on whichever device.
    Reads,
}

/// What people do, who and when.
#[derive(Debug, Clone)]
pub struct Work {
    /// What.
    pub doing: Doing,
    /// On which devices; on one of them, by chance, each time.
    pub devices: Vec<usize>,
    /// When.
    pub when: When,
    /// Bytes of a file, at least and at most.
    pub size: (u64, u64),
    /// Files each time.
    pub files: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// Only devices of one group reach each other. Without groups, all are split in two by chance.
    Partition(Vec<Vec<usize>>),
    /// What devices of the first group send does not reach those of the second. Without groups, as above.
    OneWay(Vec<Vec<usize>>),
    /// A device loses its power.
    Crash,
    /// A device loses its power just after it has acknowledged a put, each time by that chance, of a million.
    Unlucky(u64),
    /// A device reaches nobody.
    Away,
    /// A clock jumps, milliseconds.
    Clock(i64),
    /// An admin removes a device from the mesh.
    Removed,
    /// A bit of a pack on a device's disk turns over.
    Rot,
    /// A sector of a pack cannot be read any more.
    Sector,
    /// Others fill a device's disk, but for so many bytes.
    Full(u64),
    /// A device's disk fails to make durable what it was given; the process ends, and starts again afterwards.
    Unwritable,
    /// A device's processor takes so much longer for each input, and its disk for each access, milliseconds.
    Slow {
        /// The processor.
        cpu: u64,
        /// The disk.
        disk: u64,
    },
    /// A device's disk is put back to what it was so long before.
    Restored((Span, Span)),
    /// A device is somewhere else: reached at another address, and at the old one no more.
    Moved,
    /// More packets are lost everywhere, so many of a million.
    Storm(u64),
    /// A device stands still: nothing it is told gets through to it, and then all does.
    Paused,
    /// All of the devices are lost for good, at once.
    Lost,
}

impl Wrong {
    /// Whether it lasts and then ends.
    pub fn ends(&self) -> bool {
        !matches!(
            self,
            Self::Clock(_)
                | Self::Removed
                | Self::Rot
                | Self::Sector
                | Self::Restored(_)
                | Self::Moved
                | Self::Lost
        )
    }
}

/// What goes wrong, where and when.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What.
    pub wrong: Wrong,
    /// Which devices may be hit; one of them, by chance, each time.
    pub devices: Vec<usize>,
    /// When.
    pub when: When,
    /// How long it lasts, at least and at most.
    pub lasts: (Span, Span),
}

/// What a device does that means harm: it has the keys of a member, or had them, and a program of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// Signs an entry in the name of another.
    Forge,
    /// Writes an entry whose stamp lies before that of the one it follows.
    Backdate,
    /// Writes an entry whose stamp lies a year ahead.
    Ahead,
    /// Writes two entries that follow the same one of its own.
    Equivocate,
    /// Sends other bytes than were asked for, from then on.
    Corrupt,
    /// Says that it has blocks and entries and does not send them, from then on.
    Withhold,
    /// Sends again what it and others sent before.
    Replay,
    /// Asks for thousands of blocks that are nowhere, and sends entries that build upon nothing.
    Flood,
    /// Goes on after it was removed: comes in, asks for blocks, writes.
    Intrude,
}

impl Harm {
    /// All of them, by name.
    pub const ALL: [(&str, Self); 9] = [
        ("forge", Self::Forge),
        ("backdate", Self::Backdate),
        ("ahead", Self::Ahead),
        ("equivocate", Self::Equivocate),
        ("corrupt", Self::Corrupt),
        ("withhold", Self::Withhold),
        ("replay", Self::Replay),
        ("flood", Self::Flood),
        ("intrude", Self::Intrude),
    ];

    /// That of a name.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, harm)| *harm)
    }

    /// Their names, for people.
    pub fn names() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }
}

/// What devices that mean harm do, and when.
#[derive(Debug, Clone)]
pub struct HarmPlan {
    /// What.
    pub harm: Harm,
    /// Which devices; one of them, by chance, each time.
    pub devices: Vec<usize>,
    /// When.
    pub when: When,
}

impl Plan {
    /// What lies between two sites, or within one, at most hours.
    pub fn way(&self, one: usize, other: usize) -> Path {
        let site = |place: usize| self.sites.get(place);
        if one == other {
            return site(one).map_or(self.path, |site| site.inner);
        }
        let pair = (one.min(other), one.max(other));
        let known = self.paths.iter().find(|(sites, _)| *sites == pair);
        let access = |place: usize| site(place).map_or(Access::default(), |site| site.access);
        let path = known.map_or(self.path, |(_, path)| *path);
        path.over(access(one)).over(access(other))
    }

    /// Devices that mean harm.
    pub fn hostile(&self) -> BTreeSet<usize> {
        let devices = self.harms.iter().flat_map(|harm| &harm.devices);
        devices.copied().collect()
    }

    /// Devices that may be removed from the mesh.
    pub fn removed(&self) -> BTreeSet<usize> {
        let removals = self.faults.iter();
        let removals = removals.filter(|fault| fault.wrong == Wrong::Removed);
        removals
            .flat_map(|fault| fault.devices.iter().copied())
            .collect()
    }
}
