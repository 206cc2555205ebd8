//! Composes the machines of one device, and nothing else.
//!
//! Spec: `protocol/spec/device.md`, "Shell".

mod keeping;
mod unreadable;
mod waking;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use kith_crdt::access::{Access, Newcomer, Role};
use kith_crdt::catalogue::{
    Born, CatalogueRecord, Coded, HolderRecord, LeavingRecord, PolicyRecord, Retired, Seen,
};
use kith_crdt::chain::{DocumentKind, Entry};
use kith_crdt::names::{
    Change, PlanError, Record, RecordError, Retention, Tree, TreePath, VersionId, VersionInfo,
};
use kith_crdt::replica::{AuthorError, Inserted, RecordChange, Replica, Resealed, SealState};
use kith_object::id::{Cid, DeviceId, EntryId, PackId, SpaceId};
use kith_object::key::{DeviceKeys, Rng, RootKeys, Secret, derive};
use kith_object::time::{Span, Time};
use kith_protocol::exchange::{self, Exchange, Parts};
use kith_protocol::gossip::{self, Gossip};
use kith_protocol::holdings::{self, HoldingTag, Holdings};
use kith_protocol::placement::Unmet;
use kith_protocol::promise::{Digest, Nonce, Refused};
use kith_protocol::record::{AddressRecord, Key, Subject};

use crate::book::{Book, News, Telling};
use crate::crowd::Crowd;
use crate::group;
use crate::keeper::{Keeper, Pull, Pulled};
use crate::policy::Policy;
use crate::probing::{Probe, Probed, Probing};
use crate::promises::{GaveUp, GiveUp, Promises, Vouch, Vouched};
use crate::routing::Routing;
use crate::seeking::Seeking;
use crate::steady::Steady;
use crate::upkeep::Upkeep;

pub use waking::Waking;

/// How a device is set up.
#[derive(Debug)]
pub struct Setup {
    /// Its keys.
    pub keys: DeviceKeys,
    /// Its mesh.
    pub space: SpaceId,
    /// Seed of every random choice it makes.
    pub seed: [u8; 32],
    /// Whether new entries are sent at once by gossip. The walk finds them without it.
    pub spread_entries: bool,
    /// Whether it came in by the words and has agreed with no other device since: it seals nothing before it has.
    pub unsettled: bool,
    /// How many others it connects with by itself; beyond that it waits to be dialled, and dials only who has what it looks for.
    pub connections: usize,
    /// Whether digests are told and walked. Without it, what gossip missed stays missed; only tests turn it off.
    pub anti_entropy: bool,
    /// What envelopes must hold: one of its own, but for many devices in one process.
    pub resealed: Resealed,
}

/// What a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// `/ipfs/bitswap/1.2.0`.
    Bitswap,
    /// `/kith/sync/1`.
    Sync,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A connection to that device stands.
    Connected(DeviceId),
    /// The last connection to it is gone.
    Disconnected(DeviceId),
    /// A message arrived from it.
    Received {
        /// From whom.
        peer: DeviceId,
        /// On what.
        channel: Channel,
        /// One whole message.
        bytes: Bytes,
    },
    /// That much of what was sent is written.
    Flushed {
        /// To whom.
        peer: DeviceId,
        /// On what.
        channel: Channel,
        /// Bytes of messages.
        len: usize,
    },
    /// A gossip message, signed by a device.
    Published {
        /// Who signed it.
        from: DeviceId,
        /// What the shell calls it.
        message: Bytes,
        /// The message.
        bytes: Bytes,
    },
    /// Devices that say they provide what was looked for.
    Providers(Vec<DeviceId>),
    /// What this device has now.
    Holds {
        /// Packs, and roots that are pinned: what it gives to others.
        subjects: BTreeSet<Subject>,
        /// Packs that lie on this disk for good.
        kept: Vec<PackId>,
    },
    /// Packs that came to lie on this disk for good, or do so no more, since that was said.
    Kept {
        /// Which came.
        added: Vec<PackId>,
        /// Which went.
        removed: Vec<PackId>,
    },
    /// A promise lasts and its proof was made, or not.
    Vouched {
        /// Who asked.
        peer: DeviceId,
        /// As it was asked.
        nonce: Nonce,
        /// The proof, or why there is none.
        outcome: Result<Vouched, Refused>,
    },
    /// Which blocks of a pack lie in no other here that stays.
    Listed {
        /// Which pack.
        pack: PackId,
        /// Their digests; none if the pack is not to be given up by these.
        digests: Option<Vec<Digest>>,
    },
    /// What came of having a device show that it holds a pack.
    Probed {
        /// Which device.
        device: DeviceId,
        /// Which pack.
        pack: PackId,
        /// How.
        how: Probed,
    },
    /// A copy was given up, or stays.
    GaveUp {
        /// Of which pack.
        pack: PackId,
        /// How it went.
        how: GaveUp,
    },
    /// A fetch of a pack ended.
    Pulled {
        /// Which.
        pack: PackId,
        /// How.
        how: Pulled,
    },
    /// A device wants a record kept in the DHT.
    Offered {
        /// Under which key.
        key: [u8; 32],
        /// The record.
        record: Bytes,
    },
    /// A record that was looked for, or something else in its place.
    Record {
        /// Its key.
        key: [u8; 32],
        /// The record.
        record: Bytes,
    },
    /// A dial came to nothing.
    Unreachable(DeviceId),
    /// Where this device listens now.
    Listening(Vec<String>),
    /// Addresses that a device told of itself.
    Addresses {
        /// Which.
        device: DeviceId,
        /// Where it listens.
        addrs: Vec<String>,
    },
    /// A device says in the local network that it is there. Anybody who ever was of the mesh can have said so.
    Sighted {
        /// Which.
        device: DeviceId,
        /// Where.
        addrs: Vec<String>,
    },
    /// All appends up to that number are durable.
    Appended(u64),
    /// A block was read, or is not there.
    LoadedBlock {
        /// For whom.
        peer: DeviceId,
        /// Which.
        cid: Cid,
        /// The block or its size.
        found: Option<exchange::Loaded>,
    },
    /// Entries were read; those not found are left out.
    LoadedEntries {
        /// As the effect said.
        token: u64,
        /// The entries.
        entries: Vec<(EntryId, Bytes)>,
    },
    /// The bytes of these entries in the log are not what was written.
    Unreadable(Vec<EntryId>),
    /// Blocks are now on this disk.
    Stored(Vec<Cid>),
    /// The owner wants something done.
    Command {
        /// Repeated in the answer.
        request: u64,
        /// What.
        command: Command,
    },
    /// Blocks are wanted from others.
    Fetch {
        /// Repeated in what comes of it.
        request: u64,
        /// Which.
        cids: Vec<Cid>,
    },
    /// They are not wanted any more.
    CancelFetch {
        /// As given with the fetch.
        request: u64,
    },
    /// The time the machine asked for has come.
    Wake,
}

/// What the owner may want done.
#[derive(Debug)]
pub enum Command {
    /// Change the tree of names.
    Change {
        /// How.
        changes: Vec<Change>,
        /// The dedup secret that their objects were sealed under, if they bring any: refused if it is the newest no more.
        sealed_under: Option<Secret>,
    },
    /// Let a device in.
    Admit(Newcomer),
    /// Take in entries that came through the door.
    Deliver(Vec<Bytes>),
    /// Take in entries out of a backup: each is judged as one that another device sends, and those that do not count are passed over.
    Gather(Vec<Bytes>),
    /// Remove a device.
    Remove(Removal),
    /// Say that packs were closed here.
    Born(Vec<Born>),
    /// Say which shards packs have. Those who should have them get them by that.
    Coded(Vec<Coded>),
    /// Say that packs are on their way out.
    Retire(Vec<Retired>),
    /// Say that this device misses nothing of what these retirements leave out.
    Seen(Vec<Seen>),
    /// Say which versions keep their content, from now on and for all devices.
    SetRetention(Retention),
    /// Say where packs are to be kept, from now on.
    SetPolicy(PolicyRecord),
    /// Say what a device gives for packs.
    SetHolder(HolderRecord),
    /// Say that a device is to be emptied, or is gone, or stays.
    SetLeaving(LeavingRecord),
}

/// A device to be removed.
pub struct Removal {
    /// Which.
    pub device: DeviceId,
    /// The keys of the words, which may remove an admin.
    pub root: Option<Box<RootKeys>>,
    /// Even though this device may not know all that the other has written, so that the rest will not count.
    pub force: bool,
}

impl fmt::Debug for Removal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Removal")
            .field("device", &self.device)
            .field("by_root", &self.root.is_some())
            .field("force", &self.force)
            .finish()
    }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The change does not fit the tree.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device cannot write it.
    #[error(transparent)]
    Author(#[from] AuthorError),
    /// A version cannot be written so.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A device was removed since the objects were sealed: it could confirm what is in them.
    #[error("the keys of the mesh have changed since the bytes were sealed")]
    KeysChanged,
    /// This device came in by the words and has not yet met one that knows what it knows.
    #[error(
        "this device came in by the words and has not yet agreed with any other device on what the mesh knows"
    )]
    Unsettled,
    /// It may not know all that a device to be removed has written.
    #[error(
        "this device has not agreed with any other device lately, and what the removed device wrote that is not known here would no longer count"
    )]
    Behind,
    /// Only an admin says how long versions keep their content.
    #[error("this device is not an admin, and only an admin may change how long versions are kept")]
    NotAdmin,
    /// Only an admin arranges where packs are kept.
    #[error("this device is not an admin, and only an admin may change {0}")]
    OnlyAdmins(&'static str),
    /// What there is cannot keep what is wanted.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// There is no such device.
    #[error("no device of the mesh is {0}")]
    NoDevice(DeviceId),
    /// Versions would be kept for no day at all.
    #[error("versions are kept for at least one day")]
    NoDays,
    /// What stands has a later stamp.
    #[error(
        "another device has set it with a clock that is ahead of this one's, and the later setting holds; set it there"
    )]
    Outrun,
    /// What was delivered does not count here.
    #[error("an entry that was delivered is not accepted: {0}")]
    NotAccepted(&'static str),
}

/// What should be done.
#[derive(Debug)]
pub enum Effect {
    /// Let these devices in and nobody else.
    Allow(BTreeSet<DeviceId>),
    /// Connect to a device.
    Dial {
        /// Which.
        device: DeviceId,
        /// Where it may be.
        addrs: Vec<String>,
    },
    /// Send a message.
    Send {
        /// To whom.
        peer: DeviceId,
        /// On what.
        channel: Channel,
        /// One whole message; its parts are written one after the other.
        message: Parts,
    },
    /// Cut the connection.
    Disconnect {
        /// To whom.
        peer: DeviceId,
        /// Why, for the log.
        reason: String,
    },
    /// Tell everyone by gossip.
    Publish(Bytes),
    /// Whether to spread a gossip message on.
    Verdict {
        /// As the input called it.
        message: Bytes,
        /// Whether it is sound.
        accept: bool,
    },
    /// Write an entry to the log.
    Append {
        /// Rises by one; [`Input::Appended`] repeats the last durable one.
        number: u64,
        /// The entry's id.
        id: EntryId,
        /// The entry.
        entry: Bytes,
    },
    /// Read a block for a peer.
    LoadBlock {
        /// For whom.
        peer: DeviceId,
        /// Which.
        cid: Cid,
        /// The block itself, or only its size.
        block: bool,
    },
    /// Read entries.
    LoadEntries {
        /// Repeated in the answer.
        token: u64,
        /// Which.
        ids: Vec<EntryId>,
    },
    /// A block arrived, and is what its CID says.
    Got {
        /// The fetches that wanted it.
        requests: Vec<u64>,
        /// Which.
        cid: Cid,
        /// The block.
        block: Bytes,
        /// From whom.
        from: DeviceId,
    },
    /// A wanted block came onto this disk some other way.
    Held {
        /// The fetches that wanted it.
        requests: Vec<u64>,
        /// Which.
        cid: Cid,
    },
    /// No device within reach has it now; it stays wanted until the fetch is cancelled.
    Unavailable {
        /// The fetch.
        request: u64,
        /// Which.
        cid: Cid,
    },
    /// There is hope again for one that was unavailable: a device came that may have it.
    Sought {
        /// The fetch.
        request: u64,
        /// Which.
        cid: Cid,
    },
    /// Say in the DHT that this device provides something.
    Provide([u8; 32]),
    /// Look in the DHT for who provides something.
    FindProviders([u8; 32]),
    /// Put a record into the DHT.
    PutRecord {
        /// Under which key.
        key: [u8; 32],
        /// The record.
        record: Bytes,
    },
    /// Keep a record of another device for the DHT.
    KeepRecord {
        /// Under which key.
        key: [u8; 32],
        /// The record.
        record: Bytes,
    },
    /// Look in the DHT for a record.
    FindRecord([u8; 32]),
    /// A command was carried out and is durable, or was not.
    Done {
        /// As the command said.
        request: u64,
        /// How it went.
        outcome: Result<(), CommandError>,
    },
    /// Fetch a pack, to stay; [`Input::Pulled`] says what came of it.
    Pull(Pull),
    /// Write a promise down, and prove that the pack, or blocks, are here; [`Input::Vouched`] answers.
    Vouch(Vouch),
    /// Ask a device for a range of a pack that it says it holds; [`Input::Probed`] answers.
    Probe(Probe),
    /// Say which blocks of a pack lie in no other here that stays; [`Input::Listed`] answers.
    List(PackId),
    /// Give up a copy if its proofs hold; [`Input::GaveUp`] answers.
    GiveUp(GiveUp),
    /// The address book changed and may be kept.
    KeepBook(Bytes),
    /// A device that came in by the words agrees with another; it need not open as [`Setup::unsettled`] again.
    Settled,
}

/// One device.
pub struct Device {
    keys: DeviceKeys,
    me: DeviceId,
    rng: Rng,
    /// What is waited for is waited for by this; it never falls.
    now: Time,
    clock: Steady,
    anti_entropy: bool,
    replica: Replica,
    tree: Tree,
    upkeep: Upkeep,
    gossip: Gossip,
    exchange: Exchange,
    policy: Policy,
    /// The entries of `access`, for newcomers: they are few.
    access_log: BTreeMap<EntryId, Bytes>,
    /// Entries whose bytes on disk are damaged, until they come again.
    unreadable: BTreeMap<EntryId, gossip::Key>,
    /// Entries of the log that are left out since their group was cut short.
    cut_short: BTreeSet<EntryId>,
    book: Book,
    telling: Telling,
    own_addrs: Vec<String>,
    connected: BTreeSet<DeviceId>,
    /// As [`Setup::connections`].
    connections: usize,
    /// Number of the last append asked for, and of the last known durable.
    appended: (u64, u64),
    /// What waits for an append to be durable, in order.
    waiting: VecDeque<(u64, Waiting)>,
    /// When this device is to open an epoch, if nobody else has by then.
    epoch_due: Option<Time>,
    /// As [`Setup::unsettled`].
    unsettled: bool,
    /// Entries that the replica asked to see again, not read yet; and whether some are being read.
    replay: VecDeque<EntryId>,
    replaying: bool,
    /// Kinds and lengths of what is on the way to each device on the sync channel and is not the gossip machine's.
    under_way: BTreeMap<DeviceId, Vec<(u8, usize)>>,
    seeking: Seeking,
    crowd: Crowd,
    routing: Routing,
    holdings: Holdings,
    keeper: Keeper,
    promises: Promises,
    probing: Probing,
    effects: VecDeque<Effect>,
}

/// What is held back until what it rests on is durable.
#[derive(Debug)]
enum Waiting {
    Digest(gossip::Key, bool),
    Lost(gossip::Key),
    Spread(gossip::Key, Bytes),
    Done(u64),
    Provide(Cid),
}

/// First byte of a message of the gossip machine.
const KIND_GOSSIP: u8 = 0;
/// First byte of an address book.
const KIND_BOOK: u8 = 1;
/// Share of the epoch duty per place in the order of members.
const EPOCH_DUTY_STEP: Span = Span::from_secs(2);
/// Pause after an epoch could not be opened.
const EPOCH_DUTY_PAUSE: Span = Span::from_secs(60);
/// How long it counts that another device knew what this one knows. Digests are told at least once a minute.
const AGREED_LATELY: Span = Span::from_secs(600);
/// Marks entries that the replica asked to see again.
const REPLAY_TOKEN: u64 = u64::MAX;
/// Most of them read at once; each has up to a megabyte.
const REPLAY_AT_ONCE: usize = 16;
/// First byte of a message about holdings.
const KIND_HOLDINGS: u8 = 2;
/// First byte of a message about promises.
const KIND_PROMISES: u8 = 3;
/// Most address books on the way to one device.
const BOOKS_UNDER_WAY_MAX: usize = 64;
/// Most roots of one command that are announced; the folder's own root comes first.
const PROVIDED_MAX: usize = 64;
/// Most roots at the top of the tree that are announced.
const ROOTS_MAX: usize = 4096;

impl Device {
    /// Wakes a device from a log that is in memory; [`Waking`] reads one that is not.
    pub fn open(now: Time, setup: Setup, log: &[Bytes]) -> Self {
        let mut waking = Waking::new(now, setup);
        let mut records = BTreeMap::new();
        let forgotten = usize::from(cfg!(planted = "forget-the-last-entry"));
        for record in log.iter().rev().skip(forgotten).rev() {
            if let Some(id) = waking.record(record) {
                records.insert(id, record);
            }
        }
        waking.finish(false, |id| records.get(id).map(|record| (*record).clone()))
    }

    /// A device that knows nothing of its mesh yet.
    fn asleep(now: Time, setup: Setup) -> Self {
        let mut rng = Rng::from_seed(setup.seed);
        let me = setup.keys.id();
        let mut replica = Replica::open(setup.space, Some(&setup.keys));
        replica.share_resealed(&setup.resealed);
        Self {
            me,
            now,
            clock: Steady::new(now),
            anti_entropy: setup.anti_entropy,
            replica,
            tree: Tree::new(),
            upkeep: Upkeep::new(me),
            gossip: Gossip::new(me, setup.spread_entries, rng.split()),
            exchange: Exchange::new(),
            policy: Policy::default(),
            access_log: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            cut_short: BTreeSet::new(),
            book: Book::default(),
            telling: Telling::default(),
            own_addrs: Vec::new(),
            connected: BTreeSet::new(),
            connections: setup.connections,
            appended: (0, 0),
            waiting: VecDeque::new(),
            epoch_due: None,
            unsettled: setup.unsettled,
            replay: VecDeque::new(),
            replaying: false,
            under_way: BTreeMap::new(),
            seeking: Seeking::default(),
            crowd: Crowd::default(),
            routing: Routing::new(now, &mut rng),
            holdings: Holdings::new(setup.keys.clone(), setup.space),
            keeper: Keeper::new(me, now),
            promises: Promises::new(me, Rng::from_seed(derive("kith nonces 1", &setup.seed))),
            probing: Probing::new(Rng::from_seed(derive("kith samples 1", &setup.seed))),
            effects: VecDeque::new(),
            keys: setup.keys,
            rng,
        }
    }

    /// Advances the machine; `now` is what the clock says, which may stand still, fall or leap, as clocks do.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = self.clock.tick(now);
        match input {
            Input::Connected(peer) => self.connected(peer),
            Input::Disconnected(peer) => self.disconnected(peer),
            Input::Received {
                peer,
                channel,
                bytes,
            } => self.received(peer, channel, bytes),
            Input::Flushed { peer, channel, len } => match channel {
                Channel::Bitswap => self
                    .exchange
                    .handle(self.now, exchange::Input::Flushed { peer, len }),
                Channel::Sync => {
                    let kind = self.arrived(&peer, len);
                    // The kind byte before each message is not the machine's.
                    let len = len.saturating_sub(1);
                    match kind {
                        KIND_BOOK | KIND_PROMISES => {}
                        KIND_HOLDINGS => self
                            .holdings
                            .handle(self.now, holdings::Input::Flushed { peer, len }),
                        _ => self
                            .gossip
                            .handle(self.now, gossip::Input::Flushed { peer, len }),
                    }
                }
            },
            Input::Published {
                from,
                message,
                bytes,
            } => self.published(from, message, &bytes),
            Input::Providers(devices) => self.providers(&devices),
            Input::Holds { subjects, kept } => {
                let own = kept.into_iter().map(HoldingTag::from).collect();
                let own = holdings::Input::Own(own);
                self.holdings.handle(self.now, own);
                let roots = self.roots();
                self.routing.holds(subjects, roots);
            }
            Input::Kept { added, removed } => {
                let tags = |packs: Vec<PackId>| packs.into_iter().map(HoldingTag::from).collect();
                let (added, removed) = (tags(added), tags(removed));
                self.holdings
                    .handle(self.now, holdings::Input::Changed { added, removed });
            }
            Input::Vouched {
                peer,
                nonce,
                outcome,
            } => self.vouched(peer, nonce, outcome),
            Input::Probed { device, pack, how } => self.probed(device, pack, how),
            Input::Listed { pack, digests } => self.listed(pack, digests),
            Input::GaveUp { pack, how } => self.gave_up(pack, how),
            Input::Pulled { pack, how } => self.pulled(pack, how),
            Input::Offered { key, record } => {
                let known = AddressRecord::decode(&record).is_ok_and(|said| {
                    let device = said.device();
                    self.policy.admits(&device)
                        && said.may_be(self.clock.wall())
                        && self.key_of(&Subject::Device(device)) == Some(Key(key))
                });
                if known {
                    self.effects.push_back(Effect::KeepRecord { key, record });
                }
            }
            Input::Record { key, record } => self.found_record(Key(key), &record),
            Input::Unreachable(device) => {
                self.book.missed(&device);
                if self.routing.missed(self.now, device)
                    && let Some(key) = self.key_of(&Subject::Device(device))
                {
                    self.effects.push_back(Effect::FindRecord(key.0));
                }
            }
            Input::Listening(addrs) => {
                if self.own_addrs != addrs {
                    self.own_addrs = addrs;
                    self.routing.moved(self.now);
                    self.tell_book([self.me], None);
                }
            }
            Input::Addresses { device, addrs } => {
                if self.policy.admits(&device) && self.book.learn(self.now, device, &addrs, true) {
                    self.tell_book([device], Some(device));
                }
            }
            Input::Sighted { device, addrs } => {
                if device != self.me && self.policy.admits(&device) {
                    self.book.sight(self.now, device, &addrs);
                }
            }
            Input::Appended(number) => {
                self.appended.1 = self.appended.1.max(number);
            }
            Input::LoadedBlock { peer, cid, found } => {
                self.exchange
                    .handle(self.now, exchange::Input::Loaded { peer, cid, found });
            }
            Input::LoadedEntries {
                token: REPLAY_TOKEN,
                entries,
            } => {
                self.replaying = false;
                for (_, bytes) in entries {
                    if let Ok(entry) = Entry::decode(&bytes) {
                        self.replica.restore(entry);
                    }
                }
                self.absorb();
            }
            Input::LoadedEntries { token, entries } => {
                self.gossip
                    .handle(self.now, gossip::Input::Loaded { token, entries });
            }
            Input::Unreadable(ids) => self.found_unreadable(&ids),
            Input::Stored(cids) => self
                .exchange
                .handle(self.now, exchange::Input::Stored(cids)),
            Input::Command { request, command } => self.command(request, command),
            Input::Fetch { request, cids } => {
                // Whoever asks anew has the DHT asked anew.
                for cid in &cids {
                    self.seeking.forget(cid);
                }
                self.exchange
                    .handle(self.now, exchange::Input::Want { request, cids });
            }
            Input::CancelFetch { .. } if cfg!(planted = "forget-a-cancel") => {}
            Input::CancelFetch { request } => {
                self.exchange
                    .handle(self.now, exchange::Input::Cancel { request });
                if self.exchange.wants_len() == 0 {
                    self.seeking.clear();
                }
            }
            Input::Wake => {
                self.exchange.handle(self.now, exchange::Input::Wake);
                self.gossip.handle(self.now, gossip::Input::Wake);
                self.holdings.handle(self.now, holdings::Input::Wake);
                self.epoch_duty();
            }
        }
        self.settle();
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come back with [`Input::Wake`], if nothing happens before, as the clock goes now.
    pub fn next_wakeup(&self) -> Option<Time> {
        let absent = |device: &DeviceId| !self.connected.contains(device);
        [
            self.exchange.next_wakeup(),
            self.gossip.next_wakeup(),
            self.book.next_due(self.room_for_dials(), absent),
            self.telling.next_due(),
            self.routing.next_wakeup(),
            self.seeking.next_due(),
            self.crowd.next_due(self.connections),
            self.holdings.next_wakeup(),
            self.keeper.next_due(),
            self.promises.next_due(self.now),
            self.probing.next_due(),
            self.epoch_due,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| self.clock.wall_at(at))
    }

    /// The device's name.
    pub fn id(&self) -> DeviceId {
        self.me
    }

    /// The tree of names.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What the catalogue says.
    pub fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    /// Which versions keep their content, as the admins have set it.
    pub fn retention(&self) -> Retention {
        self.upkeep.retention(self.access())
    }

    /// Devices, roles, epochs.
    pub fn access(&self) -> &Access {
        self.replica.access()
    }

    /// The entries of `access` that count and what they rest on, parents first: what a newcomer judges the mesh by.
    pub fn access_from_genesis(&self) -> Vec<Bytes> {
        let entries = self.replica.access_entries();
        entries
            .iter()
            .filter_map(|id| self.access_log.get(id).cloned())
            .collect()
    }

    /// How many entries of `access` are known, those that do not count included.
    pub fn access_entry_count(&self) -> usize {
        self.access_log.len()
    }

    /// Whether that device may be inside.
    pub fn admits(&self, device: &DeviceId) -> bool {
        self.policy.admits(device)
    }

    /// Chains and what counts of them.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Digest over what counts, and how many entries it covers.
    pub fn digest(&self) -> ([u8; 32], u64) {
        (self.gossip.root(), self.gossip.len())
    }

    /// Whether another device has said since the start that it knows exactly what this one knows.
    pub fn has_agreed(&self) -> bool {
        self.gossip.agreed().is_some()
    }

    /// Devices connected now.
    pub fn peers(&self) -> &BTreeSet<DeviceId> {
        &self.connected
    }

    /// How many more devices this one may dial by itself.
    fn room_for_dials(&self) -> usize {
        self.connections.saturating_sub(self.connected.len())
    }

    /// Where others are known to listen.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Where this device listens.
    pub fn own_addrs(&self) -> &[String] {
        &self.own_addrs
    }

    /// The exchange, for its counters.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Puts back an address book kept before.
    pub fn recall(&mut self, book: &[u8]) {
        for (device, addrs) in Book::decode_kept(book).unwrap_or_default() {
            if self.policy.admits(&device) {
                self.book.learn(self.now, device, &addrs, false);
            }
        }
    }

    /// Laws that hold between any two inputs.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.appended.1 <= self.appended.0,
            "nothing is durable before it was appended"
        );
        assert!(
            self.connected.iter().all(|peer| self.policy.admits(peer)),
            "only who may be inside is connected"
        );
        assert!(
            self.waiting
                .iter()
                .all(|(number, _)| *number > self.appended.1),
            "what is durable is let go"
        );
        self.upkeep.check_invariants();
        assert!(
            self.unreadable.keys().all(|id| self.replica.in_digest(id)),
            "only what counts is asked for again"
        );
        self.telling.check_invariants();
        self.holdings.check_invariants();
        self.keeper.check_invariants();
        self.promises.check_invariants();
        self.probing.check_invariants();
        self.seeking.check_invariants();
        self.routing.check_invariants();
        self.exchange.check_invariants();
        self.gossip.check_invariants();
    }

    fn connected(&mut self, peer: DeviceId) {
        if !self.policy.admits(&peer) {
            self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "not a device of this mesh".to_owned(),
            });
            return;
        }
        if !self.connected.insert(peer) {
            return;
        }
        self.book.met(self.now, &peer);
        self.routing.met(&peer);
        self.crowd.used(self.now, peer);
        self.telling.met(self.now, peer);
        self.exchange
            .handle(self.now, exchange::Input::PeerUp(peer));
        self.holdings
            .handle(self.now, holdings::Input::PeerUp(peer));
        self.keeper.reach_changed(self.now);
        self.promises.peer_up(self.now);
        self.probing.peer_up(self.now, peer);
        if self.anti_entropy {
            self.gossip.handle(self.now, gossip::Input::PeerUp(peer));
        }
    }

    fn disconnected(&mut self, peer: DeviceId) {
        if !self.connected.remove(&peer) {
            return;
        }
        self.book.met(self.now, &peer);
        self.under_way.remove(&peer);
        self.holdings
            .handle(self.now, holdings::Input::PeerDown(peer));
        self.keeper.reach_changed(self.now);
        self.promises.peer_down(self.now, peer);
        self.probing.peer_down(peer);
        self.crowd.left(&peer);
        self.telling.left(&peer);
        self.exchange
            .handle(self.now, exchange::Input::PeerDown(peer));
        self.gossip.handle(self.now, gossip::Input::PeerDown(peer));
    }

    fn received(&mut self, peer: DeviceId, channel: Channel, bytes: Bytes) {
        // A message may have been under way when the device was removed, or before its connection was told.
        if !self.policy.admits(&peer) || !self.connected.contains(&peer) {
            return;
        }
        match channel {
            Channel::Bitswap => self
                .exchange
                .handle(self.now, exchange::Input::Message { peer, bytes }),
            Channel::Sync => match bytes.first() {
                Some(&KIND_GOSSIP) if self.anti_entropy => {
                    self.gossip.handle(
                        self.now,
                        gossip::Input::Frame {
                            peer,
                            bytes: bytes.slice(1..),
                        },
                    );
                }
                Some(&KIND_GOSSIP) => {}
                Some(&KIND_BOOK) => self.heard_book(peer, bytes.get(1..).unwrap_or_default()),
                Some(&KIND_HOLDINGS) => {
                    let bytes = bytes.slice(1..);
                    self.holdings
                        .handle(self.now, holdings::Input::Frame { peer, bytes });
                }
                Some(&KIND_PROMISES) => {
                    self.heard_of_promises(peer, bytes.get(1..).unwrap_or_default())
                }
                _ => self.effects.push_back(Effect::Disconnect {
                    peer,
                    reason: "sent a message of no known kind".to_owned(),
                }),
            },
        }
    }

    fn heard_book(&mut self, peer: DeviceId, bytes: &[u8]) {
        let Some(book) = Book::decode(bytes) else {
            self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "sent a malformed address book".to_owned(),
            });
            return;
        };
        let mut learnt = Vec::new();
        for (device, addrs) in book {
            if self.policy.admits(&device)
                && self.book.learn(self.now, device, &addrs, device == peer)
            {
                learnt.push(device);
            }
        }
        if !learnt.is_empty() {
            self.tell_book(learnt, Some(peer));
        }
    }

    fn published(&mut self, from: DeviceId, message: Bytes, bytes: &Bytes) {
        let sound = self.policy.admits(&from) && bytes.first() == Some(&KIND_GOSSIP);
        if sound {
            self.gossip.handle(
                self.now,
                gossip::Input::Published {
                    from,
                    bytes: bytes.slice(1..),
                },
            );
        }
        // What is in it is judged entry by entry; it is spread on only if nothing in it was new and unsound.
        self.drain_gossip();
        self.effects.push_back(Effect::Verdict {
            message,
            accept: sound,
        });
    }

    fn providers(&mut self, devices: &[DeviceId]) {
        for device in devices {
            if self.policy.admits(device) && !self.connected.contains(device) {
                let addrs = self.book.addrs_to_dial(device);
                self.effects.push_back(Effect::Dial {
                    device: *device,
                    addrs,
                });
            }
        }
    }

    fn command(&mut self, request: u64, command: Command) {
        let outcome = match command {
            Command::Change {
                changes,
                sealed_under,
            } => self.change(&changes, sealed_under),
            Command::Admit(newcomer) => {
                self.author(|replica, keys, now, rng| replica.admit(keys, now, rng, &newcomer))
            }
            Command::Remove(removal) => self.remove(&removal),
            Command::Born(born) => {
                self.tell_catalogue(born.into_iter().map(CatalogueRecord::Born).collect())
            }
            Command::Coded(coded) => {
                self.tell_catalogue(coded.into_iter().map(CatalogueRecord::Coded).collect())
            }
            Command::Retire(retired) => {
                self.tell_catalogue(retired.into_iter().map(CatalogueRecord::Retired).collect())
            }
            Command::Seen(seen) => {
                self.tell_catalogue(seen.into_iter().map(CatalogueRecord::Seen).collect())
            }
            Command::SetRetention(retention) => self.set_retention(retention),
            Command::SetPolicy(policy) => self.set_policy(policy),
            Command::SetHolder(holder) => self.set_holder(holder),
            Command::SetLeaving(leaving) => self.set_leaving(leaving),
            Command::Deliver(entries) => self.accept(&entries),
            Command::Gather(entries) => {
                let me = self.me;
                for bytes in &entries {
                    self.deliver(me, bytes);
                }
                Ok(())
            }
        };
        match outcome {
            Ok(()) => self.hold(Waiting::Done(request)),
            Err(error) => self.effects.push_back(Effect::Done {
                request,
                outcome: Err(error),
            }),
        }
    }

    fn change(
        &mut self,
        changes: &[Change],
        sealed_under: Option<Secret>,
    ) -> Result<(), CommandError> {
        if sealed_under.is_some() && sealed_under.as_ref() != self.replica.dedup_secrets().first() {
            return Err(CommandError::KeysChanged);
        }
        let records = self.tree.plan(changes, &mut self.rng)?;
        let roots: Vec<Cid> = records
            .iter()
            .filter_map(|record| Some(record.link.as_ref()?.cid()))
            .collect();
        if records.is_empty() {
            return Ok(());
        }
        let records = records
            .iter()
            .map(Record::encode)
            .collect::<Result<Vec<_>, _>>()?;
        self.author(|replica, keys, now, rng| replica.names(keys, now, rng, records))?;
        for root in roots.into_iter().take(PROVIDED_MAX) {
            self.hold(Waiting::Provide(root));
        }
        Ok(())
    }

    fn tell_catalogue(&mut self, records: Vec<CatalogueRecord>) -> Result<(), CommandError> {
        self.author(|replica, keys, now, rng| replica.catalogue(keys, now, rng, &records))
    }

    fn set_retention(&mut self, retention: Retention) -> Result<(), CommandError> {
        if !retention.is_valid() {
            return Err(CommandError::NoDays);
        }
        if !self.is_admin() {
            return Err(CommandError::NotAdmin);
        }
        self.tell_catalogue(vec![CatalogueRecord::Retention(retention)])?;
        if self.retention() != retention {
            return Err(CommandError::Outrun);
        }
        Ok(())
    }

    fn remove(&mut self, removal: &Removal) -> Result<(), CommandError> {
        let device = removal.device;
        if device != self.me && !removal.force && !self.knows_lately(&device) {
            return Err(CommandError::Behind);
        }
        self.author_anyway(|replica, keys, now, rng| match &removal.root {
            Some(root) => replica.remove_by_root(root, now, rng, device),
            None => replica.remove(keys, now, rng, device),
        })
    }

    /// Whether this device knows what the others know, so far as one can: it agreed with one of them lately, or there is none besides itself and `but`.
    pub fn knows_lately(&self, but: &DeviceId) -> bool {
        let agreed = self.gossip.agreed();
        self.stands_alone(but) || agreed.is_some_and(|at| at + AGREED_LATELY >= self.now)
    }

    /// Whether it may seal: one that came in by the words first meets another that knows what it knows.
    pub fn is_settled(&self) -> bool {
        !self.unsettled || self.stands_alone(&self.me)
    }

    fn stands_alone(&self, but: &DeviceId) -> bool {
        let members = &self.replica.access().members;
        members.keys().all(|id| id == but || *id == self.me)
    }

    /// Writes entries of this device's own, if it may seal.
    fn author(
        &mut self,
        write: impl FnOnce(&mut Replica, &DeviceKeys, Time, &mut Rng) -> Result<Vec<Entry>, AuthorError>,
    ) -> Result<(), CommandError> {
        if !self.is_settled() {
            return Err(CommandError::Unsettled);
        }
        self.author_anyway(write)
    }

    fn author_anyway(
        &mut self,
        write: impl FnOnce(&mut Replica, &DeviceKeys, Time, &mut Rng) -> Result<Vec<Entry>, AuthorError>,
    ) -> Result<(), CommandError> {
        let now = self.clock.wall();
        let written = write(&mut self.replica, &self.keys, now, &mut self.rng);
        let entries = written.as_deref().unwrap_or_default();
        if entries.len() > 1 {
            // Killed in the middle, the device finds the group unfinished and drops it: absent or whole.
            self.appended.0 += 1;
            let mark = Effect::Append {
                number: self.appended.0,
                id: EntryId::default(),
                entry: group::mark(entries),
            };
            self.effects.push_back(mark);
        }
        let spread: Vec<(gossip::Key, Bytes)> =
            entries.iter().map(|entry| self.append(entry)).collect();
        // Told only once all of it is durable.
        for (key, bytes) in spread {
            self.hold(Waiting::Spread(key, bytes));
        }
        // Even a failed call may have opened an epoch first, which everyone should hear of.
        self.absorb_and(true);
        written.map(|_| ()).map_err(CommandError::from)
    }

    /// Takes in entries that came through the door; they must count, and are told to everyone.
    fn accept(&mut self, entries: &[Bytes]) -> Result<(), CommandError> {
        let mut refused = None;
        let mut ids = Vec::new();
        for bytes in entries {
            match Entry::decode(bytes) {
                Ok(entry) => {
                    ids.push(entry.id());
                    if let Inserted::Rejected(reason) = self.replica.insert(entry) {
                        refused = Some(reason);
                    }
                }
                Err(_) => refused = Some("it does not decode"),
            }
        }
        self.absorb_and(true);
        if ids.iter().any(|id| !self.replica.counts(id)) {
            refused = refused.or(Some("its author has not the right"));
        }
        refused.map_or(Ok(()), |reason| Err(CommandError::NotAccepted(reason)))
    }

    /// Takes in an entry from elsewhere.
    fn deliver(&mut self, from: DeviceId, bytes: &Bytes) {
        match Entry::decode(bytes) {
            Ok(entry) if self.comes_again(&entry) => {}
            Ok(entry) => {
                if let Inserted::Rejected(reason) = self.replica.insert(entry) {
                    tracing::debug!(peer = %from, reason, "entry rejected");
                }
            }
            Err(error) => tracing::debug!(peer = %from, %error, "entry does not decode"),
        }
        self.absorb();
    }

    fn remember_access(&mut self, entry: &Entry, bytes: &Bytes) {
        if entry.header().document == DocumentKind::Access {
            self.access_log.insert(entry.id(), bytes.clone());
        }
    }

    fn append(&mut self, entry: &Entry) -> (gossip::Key, Bytes) {
        let bytes = Bytes::from(entry.encode());
        self.remember_access(entry, &bytes);
        self.appended.0 += 1;
        self.effects.push_back(Effect::Append {
            number: self.appended.0,
            id: entry.id(),
            entry: bytes.clone(),
        });
        let key = gossip::Key {
            hlc: entry.header().hlc.0,
            id: entry.id().0,
        };
        (key, bytes)
    }

    fn absorb(&mut self) {
        self.absorb_and(false);
    }

    /// Draws the consequences of what the replica took in: appends, digest, tree, policy.
    fn absorb_and(&mut self, spread: bool) {
        for entry in self.replica.take_accepted() {
            let (key, bytes) = self.append(&entry);
            if spread {
                self.hold(Waiting::Spread(key, bytes));
            }
        }
        self.replay.extend(self.replica.take_replay());
        self.read_replay();
        self.draw_consequences();
    }

    /// Has the next entries read that the replica asked to see again, a few at a time.
    fn read_replay(&mut self) {
        if self.replaying || self.replay.is_empty() {
            return;
        }
        self.replaying = true;
        let few = self.replay.len().min(REPLAY_AT_ONCE);
        self.effects.push_back(Effect::LoadEntries {
            token: REPLAY_TOKEN,
            ids: self.replay.drain(..few).collect(),
        });
    }

    fn draw_consequences(&mut self) {
        for change in self.replica.take_digest_changes() {
            if !change.added {
                self.unreadable.remove(&change.id);
            }
            self.hold(Waiting::Digest(
                gossip::Key {
                    hlc: change.hlc.0,
                    id: change.id.0,
                },
                change.added,
            ));
        }
        self.grow_tree();
        self.keep_up();
        let access_changed = self.replica.take_access_changed();
        if access_changed {
            self.follow_access();
        }
        if self.upkeep.take_rearranged() || access_changed {
            self.arrange();
        }
        self.weigh_epoch_duty();
    }

    /// Brings the tree up to date with the versions that count.
    fn grow_tree(&mut self) {
        let mut added = Vec::new();
        for change in self.replica.take_version_changes() {
            match change {
                RecordChange::Added {
                    entry,
                    index,
                    author,
                    hlc,
                    record,
                } => match Record::decode(&record) {
                    Ok(record) => added.push((
                        VersionInfo {
                            id: VersionId { entry, index },
                            author,
                            hlc,
                        },
                        record,
                    )),
                    Err(error) => tracing::debug!(%error, "record of a version passed over"),
                },
                RecordChange::Removed { entry } => {
                    self.tree.apply_all(std::mem::take(&mut added));
                    self.tree.void(&entry);
                }
            }
        }
        self.tree.apply_all(added);
    }

    /// Brings upkeep up to date with the records of the catalogue that count.
    fn keep_up(&mut self) {
        let changes = self.replica.take_catalogue_changes();
        self.upkeep.apply(changes);
        let changed = self.upkeep.packs_mut().take_changed();
        let packs = self.upkeep.packs();
        self.keeper.packs_changed(self.now, changed, packs);
    }

    fn follow_access(&mut self) {
        let policy = Policy::of(self.replica.access(), &self.me);
        if policy == self.policy {
            return;
        }
        let out: Vec<DeviceId> = self
            .connected
            .iter()
            .filter(|peer| !policy.admits(peer))
            .copied()
            .collect();
        self.policy = policy;
        self.book.keep(self.policy.allowed());
        for peer in out {
            self.disconnected(peer);
            self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "removed from the mesh".to_owned(),
            });
        }
        self.effects
            .push_back(Effect::Allow(self.policy.allowed().clone()));
    }

    fn hold(&mut self, waiting: Waiting) {
        self.waiting.push_back((self.appended.0, waiting));
    }

    fn weigh_epoch_duty(&mut self) {
        let access = self.replica.access();
        if !access.is_member(&self.me) || matches!(self.replica.seal_state(), SealState::Ready(_)) {
            self.epoch_due = None;
        } else if self.epoch_due.is_none() {
            let before = access
                .members
                .iter()
                .filter(|(device, member)| member.role >= Role::Member && **device < self.me);
            let place = u64::try_from(before.count()).unwrap_or(u64::MAX);
            self.epoch_due = Some(self.now + Span(EPOCH_DUTY_STEP.0.saturating_mul(place)));
        }
    }

    fn epoch_duty(&mut self) {
        if self.epoch_due.is_none_or(|due| due > self.now) {
            return;
        }
        self.epoch_due = None;
        let minted = self.author(|replica, keys, now, rng| replica.mint_epoch(keys, now, rng));
        if let Err(error) = minted {
            tracing::debug!(%error, "epoch not opened");
        }
        // One that cannot be opened now is not tried again at once.
        if let Some(due) = &mut self.epoch_due {
            *due = (*due).max(self.now + EPOCH_DUTY_PAUSE);
        }
    }

    /// Lets go of what waited for the disk, moves effects of the machines out, dials who is due.
    fn settle(&mut self) {
        self.epoch_duty();
        while self.waiting.front().is_some_and(|(number, _)| {
            *number <= self.appended.1 || cfg!(planted = "acknowledge-before-sync")
        }) {
            let Some((_, waiting)) = self.waiting.pop_front() else {
                break;
            };
            match waiting {
                Waiting::Digest(key, true) => {
                    self.gossip.handle(self.now, gossip::Input::Added(key))
                }
                Waiting::Digest(key, false) => {
                    self.gossip.handle(self.now, gossip::Input::Removed(key))
                }
                Waiting::Lost(key) => self.gossip.handle(self.now, gossip::Input::Lost(key)),
                Waiting::Spread(key, entry) => self
                    .gossip
                    .handle(self.now, gossip::Input::NewLocal { key, entry }),
                Waiting::Done(request) => self.effects.push_back(Effect::Done {
                    request,
                    outcome: Ok(()),
                }),
                Waiting::Provide(cid) => self.routing.put(Subject::Root(cid)),
            }
        }
        self.drain_gossip();
        self.drain_exchange();
        self.drain_holdings();
        self.keep();
        if self.unsettled && self.gossip.agreed().is_some() {
            self.unsettled = false;
            self.weigh_epoch_duty();
            self.effects.push_back(Effect::Settled);
        }
        let connected = &self.connected;
        let most = self.connections.saturating_sub(connected.len());
        for (device, addrs) in self.book.due(self.now, &self.me, most, |device| {
            !connected.contains(device)
        }) {
            self.effects.push_back(Effect::Dial { device, addrs });
        }
        for (peer, news) in self.telling.due(self.now) {
            self.send_book(peer, &news);
        }
        let exchange = &self.exchange;
        for cid in self.seeking.due(self.now, |cid| exchange.wants(cid)) {
            self.find_providers(cid);
        }
        if let Some(peer) = self.crowd.surplus(self.now, &self.me, self.connections) {
            self.disconnected(peer);
            self.effects.push_back(Effect::Disconnect {
                peer,
                reason: "there are more connections than are needed".to_owned(),
            });
        }
        self.announce();
    }

    /// Announces in the DHT what is due.
    fn announce(&mut self) {
        let epoch = self.replica.epoch_parts();
        let Some((epoch, holder, _)) = epoch else {
            return;
        };
        let blinding = &holder.blinding;
        self.routing
            .under(epoch, !self.connected.is_empty(), |subject| {
                subject.key(blinding)
            });
        while let Some(key) = self.routing.due(self.now) {
            self.effects.push_back(Effect::Provide(key.0));
        }
        if self.routing.address_is_due(self.now)
            && let Some(record) =
                AddressRecord::sign(&self.keys, self.clock.wall(), &self.own_addrs)
        {
            let key = Subject::Device(self.me).key(blinding);
            let record = Bytes::copy_from_slice(record.bytes());
            self.effects
                .push_back(Effect::PutRecord { key: key.0, record });
        }
    }

    /// Roots at the top of the tree that can be announced.
    fn roots(&self) -> BTreeSet<Subject> {
        let listed = self.tree.list(&TreePath::root()).unwrap_or_default();
        let links = listed.into_iter().filter_map(|listed| listed.link);
        links
            .take(ROOTS_MAX)
            .map(|link| Subject::Root(link.cid()))
            .collect()
    }

    /// What a device says of its addresses, if the record is what was looked for.
    fn found_record(&mut self, key: Key, record: &[u8]) {
        let Ok(record) = AddressRecord::decode(record) else {
            return;
        };
        let device = record.device();
        let sought = self.policy.admits(&device)
            && record.is_of_use(self.clock.wall())
            && self.key_of(&Subject::Device(device)) == Some(key);
        if sought
            && self.routing.is_news(&record)
            && self.book.learn(self.now, device, record.addrs(), true)
        {
            self.tell_book([device], None);
        }
    }

    fn drain_gossip(&mut self) {
        while let Some(effect) = self.gossip.poll_effect() {
            match effect {
                gossip::Effect::Send { peer, bytes } => {
                    self.effects.push_back(Effect::Send {
                        peer,
                        channel: Channel::Sync,
                        message: prefixed(KIND_GOSSIP, &bytes).into(),
                    });
                }
                gossip::Effect::Publish { bytes } => self
                    .effects
                    .push_back(Effect::Publish(prefixed(KIND_GOSSIP, &bytes))),
                gossip::Effect::Load { token, ids } => {
                    self.effects.push_back(Effect::LoadEntries { token, ids })
                }
                gossip::Effect::Deliver { from, entry } => self.deliver(from, &entry),
                gossip::Effect::Disconnect { peer, reason } => {
                    let reason = reason.to_owned();
                    self.effects.push_back(Effect::Disconnect { peer, reason });
                }
            }
        }
    }

    fn drain_exchange(&mut self) {
        while let Some(effect) = self.exchange.poll_effect() {
            match effect {
                exchange::Effect::Send { peer, message } => {
                    self.effects.push_back(Effect::Send {
                        peer,
                        channel: Channel::Bitswap,
                        message,
                    });
                }
                exchange::Effect::Load { peer, cid, block } => {
                    if block {
                        self.is_of_use(peer);
                    }
                    self.effects
                        .push_back(Effect::LoadBlock { peer, cid, block });
                }
                exchange::Effect::Got {
                    requests,
                    cid,
                    block,
                    from,
                } => {
                    self.seeking.forget(&cid);
                    self.is_of_use(from);
                    self.effects.push_back(Effect::Got {
                        requests,
                        cid,
                        block,
                        from,
                    });
                }
                exchange::Effect::Unavailable { request, cid } => {
                    if self.seeking.lacks(self.now, cid) {
                        self.find_providers(cid);
                    }
                    self.effects.push_back(Effect::Unavailable { request, cid });
                }
                exchange::Effect::Sought { request, cid } => {
                    self.effects.push_back(Effect::Sought { request, cid });
                }
                exchange::Effect::Held { requests, cid } => {
                    self.seeking.forget(&cid);
                    self.effects.push_back(Effect::Held { requests, cid });
                }
                // Not taken on is as good as not to be had.
                exchange::Effect::Refused { request, cid, .. } => {
                    self.effects.push_back(Effect::Unavailable { request, cid });
                }
                exchange::Effect::Disconnect { peer, reason } => {
                    let reason = reason.to_string();
                    self.effects.push_back(Effect::Disconnect { peer, reason });
                }
            }
        }
    }

    fn is_of_use(&mut self, peer: DeviceId) {
        if self.connected.contains(&peer) {
            self.crowd.used(self.now, peer);
        }
    }

    fn find_providers(&mut self, cid: Cid) {
        if let Some(key) = self.key_of(&Subject::Root(cid)) {
            self.effects.push_back(Effect::FindProviders(key.0));
        }
    }

    /// What something is called in the DHT: only who has the holder key can tell what it stands for.
    fn key_of(&self, subject: &Subject) -> Option<Key> {
        let (_, holder, _) = self.replica.epoch_parts()?;
        Some(subject.key(&holder.blinding))
    }

    fn send_book(&mut self, peer: DeviceId, news: &News) {
        let under_way = self.under_way.entry(peer).or_default();
        let books = under_way.iter().filter(|(kind, _)| *kind == KIND_BOOK);
        if books.count() >= BOOKS_UNDER_WAY_MAX {
            // It reads nothing; what it misses it is told when it comes back.
            return;
        }
        for message in self.book.messages((&self.me, &self.own_addrs), news) {
            self.send_sync(peer, KIND_BOOK, &message);
        }
    }

    /// Sends what is not the gossip machine's.
    fn send_sync(&mut self, peer: DeviceId, kind: u8, message: &[u8]) {
        let message = prefixed(kind, message);
        let under_way = self.under_way.entry(peer).or_default();
        under_way.push((kind, message.len()));
        self.effects.push_back(Effect::Send {
            peer,
            channel: Channel::Sync,
            message: message.into(),
        });
    }

    /// Of which kind was what was written to a device on the sync channel.
    fn arrived(&mut self, peer: &DeviceId, len: usize) -> u8 {
        let Some(under_way) = self.under_way.get_mut(peer) else {
            return KIND_GOSSIP;
        };
        let found = under_way.iter().position(|(_, sent)| *sent == len);
        found.map_or(KIND_GOSSIP, |place| under_way.swap_remove(place).0)
    }

    /// Has everyone connected told what changed in the address book of these devices, but whom it came from; and has it kept.
    fn tell_book(&mut self, devices: impl IntoIterator<Item = DeviceId>, but: Option<DeviceId>) {
        self.telling.changed(self.now, devices, but);
        self.effects.push_back(Effect::KeepBook(self.book.encode()));
    }
}

fn prefixed(kind: u8, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + bytes.len());
    out.put_u8(kind);
    out.put_slice(bytes);
    out.freeze()
}
