//! One device running: opens its home, drives its machine, answers its owner.

mod access;
mod calls;
mod door;
mod driver;
mod gc;
mod heal;
mod keeping;
mod log;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kith_core::device::{Command, Input, Setup, Waking};
use kith_crdt::catalogue::Born;
use kith_crdt::chain::Entry;
use kith_crdt::replica::{AuthorError, Replica, Resealed};
use kith_object::buffer::Buffers;
use kith_object::id::{DeviceId, PackId, SpaceId};
use kith_object::key::{DeviceKeys, Secret, Words};
use kith_object::log::{Log, LogError, LogReport};
use kith_object::object::Reached;
use kith_object::scrub::{Pace, Scrub};
use kith_protocol::lan::{LanKey, Speaker};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

pub use verify::event as damage_event;

pub(crate) use access::{ACCESS_FILE, read as access_copy};
pub(crate) use driver::Asker;
pub(crate) use driver::Traffic;
use driver::{Parts, asks, drive};
pub(crate) use gc::AGES_FILE;

use crate::bulk::Bulk;
use crate::config::{
    Durability, Home, HomeError, Identity, Settings, checked_text, fresh_rng, now, unchecked_text,
};
use crate::local;
use crate::net::door::{Door, DoorHandle};
use crate::net::outside::OutsideConfig;
use crate::net::rate::Rates;
use crate::net::wide::Scope;
use crate::net::{self, Inside, InsideHandle, Multiaddr, lan};
use crate::outside::driver::Outside;
use crate::outside::published;
use crate::pins::PinFile;
use crate::promises::{self, PromiseLog, PromisesError, Voucher};
use crate::store::{
    self, DiskStore, HomeLock, LOCK_WAIT, LockError, OpenStoreError, RealDisk, Settler,
};
use crate::upkeep::Queues;
use crate::verify::Finding;

/// The side file with other devices' addresses.
pub(crate) const BOOK_FILE: &str = "peers";
/// The side file with tickets.
pub(crate) const TICKETS_FILE: &str = "tickets";
/// The log of entries.
pub(crate) const LOG: &str = "entries.log";
/// How often it is looked whether anybody outside is connected.
const MEET_EVERY: std::time::Duration = std::time::Duration::from_secs(30);
/// The side file with what is kept for the DHT.
pub(crate) const RECORDS_FILE: &str = "records";
/// Most bytes of it.
pub(crate) const RECORDS_BYTES_MAX: u64 = 16 << 20;
/// The side file with what other devices hold.
pub(crate) const HOLDINGS_FILE: &str = "holdings";
/// Most bytes of it.
pub(crate) const HOLDINGS_BYTES_MAX: u64 = 256 << 20;
/// How often they are written, and how often it is looked what this device holds, in ticks of a second.
const RECORDS_TICKS: u64 = 600;
/// The file with the ports listened on last.
pub(crate) const PORTS_FILE: &str = "ports";
/// Separates its check from that of other files.
pub(crate) const PORTS_DOMAIN: &str = "kith ports 1";

/// How often it is tried to say what this device gives, until that is done, in ticks of a second.
const OFFER_TICKS: u64 = 5;

/// There while a device that came in by the words has agreed with no other yet.
pub(crate) const UNSETTLED_FILE: &str = "unsettled";

/// How long it may take until all addresses are listened on.
const LISTEN_WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Between two syncs with relaxed durability, in ticks of a second: what a power cut may take.
const SETTLE_TICKS: u64 = 5;

/// How long calls under way may take to end when the daemon is told to stop.
const LAST_ANSWERS: std::time::Duration = std::time::Duration::from_secs(2);

/// Why a device did not open, start or come into being.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The home folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Another process uses it.
    #[error("the data folder {path} is in use by {holder}")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// By which process.
        holder: String,
    },
    /// The lock cannot be used.
    #[error("lock the data folder")]
    Lock(#[source] LockError),
    /// The store cannot be opened.
    #[error("open the store")]
    Store(#[source] OpenStoreError),
    /// The log cannot be opened or written.
    #[error("open the log of entries")]
    Log(#[source] LogError),
    /// The log of what was promised cannot be opened.
    #[error("open the log of promises")]
    Promises(#[source] PromisesError),
    /// The first entries cannot be written as asked.
    #[error("found the mesh")]
    Author(#[source] AuthorError),
    /// The words were not shown; nothing was made.
    #[error("show the 24 words; nothing was made")]
    Words(#[source] std::io::Error),
    /// The network.
    #[error("start the network")]
    Net(#[source] net::StartError),
    /// The local socket.
    #[error("serve the local socket")]
    Local(#[source] std::io::Error),
    /// The entries that say whose mesh this is are damaged.
    #[error("the log of entries is damaged where it says which mesh this is")]
    NoGenesis,
    /// A task of the process ended unexpectedly.
    #[error("run the device: {0}")]
    Task(String),
}

/// A device made by [`Node::create`].
#[derive(Debug)]
pub struct Created {
    /// The new mesh.
    pub mesh: SpaceId,
    /// Its first device.
    pub device: DeviceId,
    /// The only copy of the words.
    pub words: Words,
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Addresses to listen on.
    pub listen: Vec<IpAddr>,
    /// Sets the quota of the store for good; `Some(None)` lifts it.
    pub quota: Option<Option<u64>>,
    /// Sets for good how much may be cached; `Some(None)` lifts that.
    pub cache: Option<Option<u64>>,
    /// Sets for good how many bytes stay free on the disk.
    pub keep_free: Option<u64>,
    /// Sets for good what an acknowledgement promises.
    pub durability: Option<Durability>,
    /// Whether to find devices of the mesh in the local network, and be found. On loopback it never does.
    pub lan: bool,
    /// Whether to serve public objects to anybody, on ports of their own.
    pub public: bool,
    /// In which DHT of the IPFS world it says what is public, if any.
    pub dht: Option<Scope>,
    /// Peers by which it gets there.
    pub dht_peers: Vec<Multiaddr>,
    /// Where others reach what is public, because a router forwards a port there.
    pub public_addrs: Vec<Multiaddr>,
    /// How fast it may send to and receive from devices of the mesh.
    pub rates: Rates,
    /// Most connections with devices of the mesh.
    pub connections_max: u32,
    /// Whether it relays between devices that cannot reach each other.
    pub relay: bool,
    /// Whether the router is asked for a port.
    pub router: bool,
    /// How many bytes it gives for packs that others rely on, from now on.
    pub capacity: Option<u64>,
    /// Most bytes a second at which it fetches what it should hold.
    pub keep_rate: Option<NonZeroU64>,
}

/// Where a device that serves can be found.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Which it is.
    pub device: DeviceId,
    /// Where newcomers may knock.
    pub addrs: Vec<String>,
    /// Where other devices connect.
    pub inside: Vec<String>,
    /// Where anybody gets public objects; nowhere unless that was asked for.
    pub public: Vec<String>,
}

/// What a node is before its driver runs.
type Prepared = (
    Arc<Node>,
    Parts,
    Asker,
    tokio::sync::mpsc::UnboundedReceiver<driver::Ask>,
    tokio::sync::mpsc::Receiver<door::DoorAsk>,
);

/// A device open in this process.
pub struct Node {
    home: Home,
    identity: Identity,
    store: Arc<DiskStore>,
    asker: Asker,
    traffic: Arc<Mutex<Traffic>>,
    keeper: door::DoorKeeper,
    pins: Arc<PinFile>,
    /// Number of the last ticket book written.
    saving: Arc<tokio::sync::Mutex<u64>>,
    /// Where newcomers may knock; empty without a daemon.
    door: Mutex<Vec<String>>,
    stop: tokio::sync::Notify,
    /// Packs closed here of which the catalogue does not know yet.
    unborn: Mutex<Vec<kith_object::store::Born>>,
    settings: Settings,
    settlers: [Settler; 2],
    /// What opening met that a check should tell.
    opening: Mutex<Vec<Finding>>,
    /// The daemon's own rounds; nobody while one step is under way.
    scrub: Mutex<Option<Scrub>>,
    /// Damaged files found by them.
    damage: AtomicU64,
    /// Held by the one collection that runs.
    gc: gc::Collector,
    /// What other devices are reached by, while it serves.
    inside: Mutex<Option<InsideHandle>>,
    /// What moves whole packs, while it serves.
    bulk: Mutex<Option<Bulk>>,
    /// What is to be done about packs, and what was promised of them, until somebody does it.
    queues: Mutex<Option<(Queues, PromiseLog)>>,
    /// Fetches packs.
    puller: Mutex<Option<JoinHandle<()>>>,
    /// Has others show that they hold packs.
    prober: Mutex<Option<JoinHandle<()>>>,
    /// Prove packs, and give them up.
    promising: Mutex<Vec<JoinHandle<()>>>,
    /// Packs that are not what they should be, to be checked.
    doubted: Arc<Mutex<BTreeSet<PackId>>>,
    /// Long work on packs stops where it can.
    ending: Arc<AtomicBool>,
    /// Answers those who ask for packs.
    bulk_server: Mutex<Option<JoinHandle<()>>>,
    /// What serves public objects, while it does.
    outside: Mutex<Option<Arc<Outside>>>,
    /// Held by who changes the list of what is public.
    publishing: Arc<tokio::sync::Mutex<()>>,
    /// Whether the second copy of who belongs to the mesh is up to date.
    access_copy: access::AccessCopy,
    healer: heal::Healer,
    driver: Mutex<Option<JoinHandle<()>>>,
    _lock: HomeLock,
}

impl Node {
    /// Makes a new mesh with its first device in an empty home. It comes to be once `show` has shown the words: a mesh whose words nobody saw could
    /// not be brought back.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn create(
        home: &Home,
        name: &str,
        show: impl FnOnce(&Created) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), NodeError> {
        let (home, name) = (home.clone(), name.to_owned());
        blocking(move || {
            let mut rng = fresh_rng();
            home.prepare()?;
            let lock = lock(&home, "kith init")?;
            // Another process may have made one while this one waited.
            home.prepare()?;
            let words = Words::generate(&mut rng);
            let keys = DeviceKeys::generate(&mut rng);
            let (replica, entries) = Replica::create(&words.root(), &keys, &name, now(), &mut rng)
                .map_err(NodeError::Author)?;
            write_first_entries(&home, &entries)?;
            let identity = Identity {
                space: replica.space(),
                keys,
                door: Secret::generate(&mut rng),
            };
            let created = Created {
                mesh: identity.space,
                device: identity.keys.id(),
                words,
            };
            show(&created).map_err(NodeError::Words)?;
            home.write_identity(&identity)?;
            // Whoever makes a mesh here has given up a join that was under way.
            home.forget_joining()?;
            drop(lock);
            Ok(())
        })
        .await
    }

    /// Opens the device without a network, for commands on what is here.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn open(home: Home) -> Result<Arc<Self>, NodeError> {
        let (node, parts, asker, queue, _) = Self::prepare(home, None).await?;
        let driver = tokio::spawn(drive(parts, asker, queue));
        *held(&node.driver) = Some(driver);
        Ok(node)
    }

    /// Opens the device and serves: inside, door, local socket.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn up(home: Home, options: UpOptions) -> Result<Daemon, NodeError> {
        let (node, mut parts, asker, queue, door_asks) =
            Self::prepare(home, Some(options.clone())).await?;
        let ports = Ports::read(&node.home);
        // Nobody but this machine reaches what is on loopback.
        let asks_router = options.router && options.listen.iter().any(|ip| !ip.is_loopback());
        let seed = Zeroizing::new(*node.identity.keys.sign_key().seed().expose());
        let (inside, events) = with_ports(&ports.inside, |port| {
            let config = net::Config {
                rates: options.rates,
                connections_max: options.connections_max,
                relay: options.relay,
                records: records(&node.home, &node.identity.keys),
                router: asks_router,
                ..net::Config::new(node.identity.space, listen_addrs(&options.listen, port))
            };
            Inside::start(seed.clone(), config)
        })?;
        let door_seed = Zeroizing::new(*node.identity.door.expose());
        let (door, knocks) = with_ports(&ports.door, |port| {
            Door::start(door_seed.clone(), &listen_addrs(&options.listen, port))
        })?;
        *held(&node.inside) = Some(inside.clone());
        node.move_packs(&inside, options.keep_rate);
        parts.net = Some((inside, events));
        let driver = tokio::spawn(drive(parts, asker, queue));
        *held(&node.driver) = Some(driver);
        let door_key = door.key();
        let knocks = tokio::spawn(door::keep(node.clone(), door_key, knocks, door_asks));
        let service: Arc<dyn local::Service> = node.clone();
        let path = node.home.path().to_owned();
        let (close_socket, closing) = tokio::sync::oneshot::channel::<()>();
        let socket = tokio::spawn(async move {
            let closing = async move {
                let _ = closing.await;
            };
            local::serve(&path, service, closing).await
        });
        if options.public {
            // A key of its own, from which nobody finds the device's.
            let seed = node.identity.keys.local_secret("kith outside key 1");
            let only = node.served_only().await;
            let outside = with_ports(&ports.public, |port| {
                let config = OutsideConfig {
                    addrs: listen_addrs(&options.listen, port),
                    dht: options.dht,
                    public: options.public_addrs.clone(),
                    router: asks_router,
                };
                Outside::start(
                    Zeroizing::new(*seed.expose()),
                    &config,
                    Some(node.store.clone()),
                    only.clone(),
                )
            })?;
            if options.dht.is_some() {
                node.announce_published(&outside).await;
            }
            *held(&node.outside) = Some(outside);
        }
        let wanted = options.listen.len();
        let ready = node.wait_until_listening(wanted).await?;
        Ports::of(&ready, ports.public).write(&node.home);
        let lan = if options.lan {
            node.look_around(&options.listen, &ready).await
        } else {
            None
        };
        let meeting = {
            let (node, peers) = (node.clone(), options.dht_peers.clone());
            tokio::spawn(async move { node.meet(&peers).await })
        };
        Ok(Daemon {
            node,
            meeting,
            lan,
            ready,
            socket,
            close_socket: Some(close_socket),
            knocks,
            capacity: options.capacity,
            _door: door,
        })
    }

    /// Answers those who ask for packs, and lets calls ask others.
    fn move_packs(&self, inside: &InsideHandle, keep_rate: Option<NonZeroU64>) {
        let bulk = Bulk {
            inside: inside.clone(),
            store: self.store.clone(),
            asker: self.asker.clone(),
            counters: Arc::default(),
            traffic: self.traffic.clone(),
            buffers: Buffers::new(crate::bulk::IDLE_BYTES_MAX),
            runtime: tokio::runtime::Handle::current(),
        };
        if let Some(streams) = inside.take_raw() {
            let (store, counters) = (self.store.clone(), bulk.counters.clone());
            let traffic = self.traffic.clone();
            let doubted = self.doubted.clone();
            let serving = crate::bulk::serve(streams, store, counters, traffic, doubted);
            let server = tokio::spawn(serving);
            *held(&self.bulk_server) = Some(server);
        }
        let queues = held(&self.queues).take();
        if let Some((queues, promises)) = queues {
            let puller = crate::upkeep::pull_all(bulk.clone(), queues.pulls, keep_rate);
            *held(&self.puller) = Some(tokio::spawn(puller));
            let (store, asker) = (self.store.clone(), self.asker.clone());
            let [settler, _] = self.settlers.clone();
            let voucher = Voucher {
                log: promises,
                store: store.clone(),
                settler,
                asker: asker.clone(),
                doubted: self.doubted.clone(),
                ending: self.ending.clone(),
            };
            let vouching = voucher.vouch_all(queues.vouches);
            let giving_up = promises::give_up_all(
                store,
                self.pins.clone(),
                asker,
                queues.give_ups,
                self.ending.clone(),
            );
            *held(&self.promising) = vec![tokio::spawn(vouching), tokio::spawn(giving_up)];
            let probing = crate::upkeep::probe_all(bulk.clone(), queues.probes);
            *held(&self.prober) = Some(tokio::spawn(probing));
        }
        *held(&self.bulk) = Some(bulk);
    }

    /// With options it is to serve.
    async fn prepare(home: Home, options: Option<UpOptions>) -> Result<Prepared, NodeError> {
        let online = options.is_some();
        let (asker, queue) = asks(online);
        let (keeper, door_asks) = door::keeper();
        let traffic = Arc::new(Mutex::new(Traffic::new()));
        let (node, parts) = {
            let (asker, traffic) = (asker.clone(), traffic.clone());
            blocking(move || {
                let identity = home.identity()?;
                let lock = lock(&home, if online { "kith up" } else { "a kith command" })?;
                let settings_lost = home.settings().is_err();
                let settings = settings(&home, options.as_ref())?;
                // The device is in: what it would have needed to try again is a secret too many.
                home.forget_joining()?;
                let mut rng = fresh_rng();
                let index_key = identity.keys.local_secret("kith index 1");
                let (store, report) =
                    store::open_store(home.path(), identity.space, &index_key, settings)
                        .map_err(NodeError::Store)?;
                let mut opening = crate::verify::of_recovery(&report);
                opening.extend(crate::verify::check_files(&home, Some(&identity.keys)));
                let place = crate::verify::kept_place(&home, crate::verify::ROUND_FILE);
                let scrub = Mutex::new(online.then(|| Scrub::resume(Pace::STEADY, &place)));
                if report != kith_object::store::RecoveryReport::default() {
                    tracing::warn!(?report, "the store was mended while it was opened");
                }
                let setup = Setup {
                    keys: identity.keys.clone(),
                    space: identity.space,
                    seed: rng.bytes(),
                    unsettled: home.path().join(UNSETTLED_FILE).exists(),
                    spread_entries: true,
                    // The others are for those who dial.
                    connections: options.as_ref().map_or(0, |options| {
                        (options.connections_max as usize * 2 / 3).max(1)
                    }),
                    anti_entropy: true,
                    resealed: Resealed::default(),
                };
                let mut waking = Waking::new(now(), setup);
                let mut offsets = BTreeMap::new();
                let logs =
                    store::open_logs(home.path(), settings.durability).map_err(NodeError::Store)?;
                // Blocks, then the entries that name them.
                let log_settler = logs.settler();
                let settlers = [store.disk().settler(), log_settler.clone()];
                let (mut log, report) = open_log(logs, |offset, record| {
                    if let Some(id) = waking.record(&record) {
                        offsets.insert(id, offset);
                    }
                })?;
                opening.extend(crate::verify::of_log(log.len_bytes(), &report));
                if !report.damaged.is_empty() {
                    tracing::error!(
                        places = report.damaged.len(),
                        "entries in the log are damaged; others are asked for them"
                    );
                }
                let mut recovered = 0;
                if !report.damaged.is_empty() || report.torn_bytes > 0 {
                    recovered =
                        access::mend(&home, &identity.keys, &mut log, &mut offsets, &mut waking)
                            .map_err(NodeError::Log)?;
                    if recovered > 0 {
                        tracing::info!(
                            recovered,
                            "entries of `access` came from their second copy"
                        );
                    }
                }
                let mut device = waking.finish(!report.damaged.is_empty() || recovered > 0, |id| {
                    log.read(*offsets.get(id)?).ok()
                });
                if device.access().root.is_none() {
                    return Err(NodeError::NoGenesis);
                }
                let is_kept = |pack: &PackId| {
                    let packs = device.upkeep().packs();
                    packs.live(pack, device.access()).is_some()
                };
                // What was given up here; the rest was fetched to be read.
                store.set_given_up(store.cached_packs().into_iter().filter(is_kept));
                if let Some(book) = home.read_sealed(BOOK_FILE, &identity.keys) {
                    device.recall(&book);
                }
                let holdings =
                    home.read_sealed_strictly(HOLDINGS_FILE, &identity.keys, HOLDINGS_BYTES_MAX);
                if let Ok(Some(holdings)) = holdings {
                    device.recall_holdings(&holdings);
                }
                let promises = if online {
                    let opened = PromiseLog::open(home.path()).map_err(NodeError::Promises)?;
                    device.recall_promises(opened.1.promised, opened.1.is_damaged);
                    Some(opened.0)
                } else {
                    None
                };
                // They are in the log and count for nothing.
                for id in device.cut_short() {
                    offsets.remove(id);
                }
                let access_copy = access::AccessCopy::beside(&home, &identity.keys, &device);
                let store = Arc::new(store);
                let (to_do, queues) = crate::upkeep::queues();
                let parts = Parts {
                    device,
                    store: store.clone(),
                    log,
                    offsets,
                    settler: log_settler,
                    net: None,
                    keep_book: book_keeper(home.clone(), identity.keys.clone()),
                    unsettled: home.path().join(UNSETTLED_FILE),
                    traffic: traffic.clone(),
                    to_do,
                };
                let node = Self {
                    pins: Arc::new(PinFile::new(home.clone(), identity.keys.clone())),
                    home,
                    identity,
                    store,
                    asker,
                    traffic,
                    keeper,
                    saving: Arc::default(),
                    door: Mutex::new(Vec::new()),
                    stop: tokio::sync::Notify::new(),
                    unborn: Mutex::default(),
                    settings,
                    settlers,
                    opening: Mutex::new(opening),
                    scrub,
                    damage: AtomicU64::new(0),
                    gc: gc::Collector::default(),
                    inside: Mutex::default(),
                    bulk: Mutex::default(),
                    queues: Mutex::new(promises.map(|promises| (queues, promises))),
                    puller: Mutex::default(),
                    promising: Mutex::default(),
                    prober: Mutex::default(),
                    doubted: Arc::default(),
                    ending: Arc::default(),
                    bulk_server: Mutex::default(),
                    outside: Mutex::default(),
                    publishing: Arc::default(),
                    access_copy,
                    healer: heal::Healer::of(&report, settings_lost),
                    driver: Mutex::new(None),
                    _lock: lock,
                };
                Ok((node, parts))
            })
            .await?
        };
        Ok((Arc::new(node), parts, asker, queue, door_asks))
    }

    /// Finds devices in the local network, and lets itself be found, unless nobody there could reach this one.
    async fn look_around(&self, listen: &[IpAddr], ready: &Ready) -> Option<JoinHandle<()>> {
        if !lan::is_reachable(listen) {
            return None;
        }
        let root = self.asker.look(|device| device.access().root).await??;
        let (inside, addrs) = lan_ports(&ready.inside)?;
        let (door, _) = lan_ports(&ready.addrs)?;
        // One port is told for all addresses: those with another are left out.
        let listen: Vec<IpAddr> = if listen.contains(&IpAddr::V4(Ipv4Addr::UNSPECIFIED)) {
            vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
        } else {
            addrs
        };
        let speaker = Speaker::Device {
            device: self.identity.keys.id(),
            inside,
            door,
        };
        let mut neighbours = lan::start(LanKey::of(&root), speaker, &listen, fresh_rng());
        let asker = self.asker.clone();
        Some(tokio::spawn(async move {
            while let Some(found) = neighbours.found().await {
                asker.input(Input::Sighted {
                    device: found.device,
                    addrs: lan::multiaddrs(found.addr, found.inside)
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                });
            }
        }))
    }

    /// Waits until inside and door listen on all addresses.
    async fn wait_until_listening(&self, wanted: usize) -> Result<Ready, NodeError> {
        let until = tokio::time::Instant::now() + LISTEN_WAIT;
        loop {
            let inside = self
                .asker
                .look(|device| device.own_addrs().to_vec())
                .await
                .unwrap_or_default();
            let addrs = held(&self.door).clone();
            // TCP and QUIC on each address; an unspecified one gives several.
            let outside = held(&self.outside).clone();
            let public = outside.as_ref().map(|outside| outside.addrs());
            let all_public = public
                .as_ref()
                .is_none_or(|addrs| addrs.len() >= 2 * wanted);
            if inside.len() >= 2 * wanted && addrs.len() >= 2 * wanted && all_public {
                return Ok(Ready {
                    device: self.identity.keys.id(),
                    addrs,
                    inside,
                    public: public.unwrap_or_default(),
                });
            }
            if tokio::time::Instant::now() >= until {
                return Err(NodeError::Task("its addresses are not listened on".into()));
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// The device's keys, for the tasks of this module.
    fn keys(&self) -> &DeviceKeys {
        &self.identity.keys
    }

    /// Closes packs that stand idle or are full, and says in the catalogue which were closed.
    async fn tend_packs(&self) {
        let store = self.store.clone();
        let tended = tokio::task::spawn_blocking(move || (store.tick(now()), store.born())).await;
        let Ok((ticked, born)) = tended else { return };
        let added = self.store.kept_again();
        if !added.is_empty() {
            let removed = Vec::new();
            self.asker.input(Input::Kept { added, removed });
        }
        if let Err(error) = ticked {
            tracing::warn!(%error, "pack not closed");
        }
        let mut waiting = {
            let mut unborn = held(&self.unborn);
            let fresh =
                |one: &kith_object::store::Born| unborn.iter().all(|born| born.pack != one.pack);
            let fresh: Vec<_> = born.into_iter().filter(fresh).collect();
            unborn.extend(fresh);
            std::mem::take(&mut *unborn)
        };
        if waiting.iter().any(|born| born.found) {
            let part = move |device: &kith_core::device::Device| {
                let (untold, known): (Vec<_>, Vec<_>) =
                    waiting.into_iter().partition(|born| device.is_untold(born));
                let is_new = known.iter().any(|born| !device.holds(&born.pack));
                (untold, is_new)
            };
            let Some((untold, is_new)) = self.asker.look(part).await else {
                return;
            };
            waiting = untold;
            if is_new {
                self.tell_holdings().await;
            }
        }
        let records: Vec<Born> = waiting
            .iter()
            .map(|born| Born {
                pack: born.pack,
                class: born.info.class.to_byte(),
                blocks: born.info.blocks,
                bytes: born.info.bytes,
            })
            .collect();
        if records.is_empty() {
            return;
        }
        let packs = records.iter().map(|born| born.pack).collect();
        match self.asker.command(Command::Born(records)).await {
            Ok(()) => {
                let removed = Vec::new();
                let added = packs;
                self.asker.input(Input::Kept { added, removed });
            }
            Err(error) => {
                tracing::debug!(%error, "closed packs are not in the catalogue yet");
                held(&self.unborn).extend(waiting);
            }
        }
    }

    /// Has all that is public announced.
    async fn announce_published(&self, outside: &Outside) {
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let read = tokio::task::spawn_blocking(move || published::read(&home, &keys));
        if let Ok(Ok(Some(published))) = read.await {
            outside.announce(published.cids().iter());
        }
    }

    /// What may be served of what lies in public packs, if that is not all of it. As long as it is not known, nothing is.
    async fn served_only(&self) -> Option<Arc<Reached>> {
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let store = self.store.clone();
        let look = tokio::task::spawn_blocking(move || {
            let published = match published::read(&home, &keys) {
                Ok(published) => published?,
                Err(error) => {
                    tracing::warn!(%error, "nothing public is served: it is not known what was taken back");
                    return Some(Reached::default());
                }
            };
            published
                .has_strays
                .then(|| published::reached(&store, &published))
                .map(|reached| {
                    reached.unwrap_or_else(|error| {
                        tracing::warn!(%error, "nothing public is served: the store cannot be read");
                        Reached::default()
                    })
                })
        });
        let looked = look.await.unwrap_or_else(|_| Some(Reached::default()));
        looked.map(Arc::new)
    }

    /// Connects to these peers whenever nobody outside is connected.
    async fn meet(&self, peers: &[Multiaddr]) {
        while !peers.is_empty() {
            let outside = held(&self.outside).clone();
            if let Some(outside) = outside
                && outside.is_alone()
            {
                let dials = peers.iter().map(|peer| outside.dial(peer.clone()));
                for dialled in futures::future::join_all(dials).await {
                    if let Err(why) = dialled {
                        tracing::debug!(%why, "peer of the DHT not reached");
                    }
                }
            }
            tokio::time::sleep(MEET_EVERY).await;
        }
    }

    /// Writes what is kept for the DHT, if it has changed.
    async fn keep_records(&self) {
        let inside = held(&self.inside).clone();
        let Some(inside) = inside else { return };
        let Ok(Some(records)) = inside.records().await else {
            return;
        };
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let written = tokio::task::spawn_blocking(move || {
            home.write_sealed(RECORDS_FILE, &keys, &mut fresh_rng(), &records)
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "what others have told for the DHT is not kept");
        }
    }

    /// With relaxed durability, syncs what was acknowledged since the last time.
    async fn settle(&self) {
        let settlers = self.settlers.clone();
        let settled =
            tokio::task::spawn_blocking(move || settlers.iter().try_for_each(Settler::settle));
        if let Ok(Err(error)) = settled.await {
            tracing::error!(%error, "acknowledged blocks or entries may be lost with the power; start again");
        }
    }

    /// Ends the driver, after which all that was acknowledged is on disk and the packs are closed.
    pub async fn close(&self) {
        self.keep_access().await;
        self.keep_records().await;
        if self.asker.is_online() {
            self.keep_holdings().await;
        }
        drop(held(&self.inside).take());
        // Nothing may hold the store when this is over: its index is written down when it is let go of.
        drop(held(&self.bulk).take());
        for task in [&self.puller, &self.prober, &self.bulk_server] {
            let task = held(task).take();
            if let Some(task) = task {
                task.abort();
                let _ = task.await;
            }
        }
        let outside = held(&self.outside).take();
        if let Some(outside) = outside {
            outside.stop().await;
        }
        self.asker.stop();
        self.ending.store(true, Ordering::Relaxed);
        let driver = held(&self.driver).take();
        if let Some(driver) = driver {
            let _ = driver.await;
        }
        // Their queues end with the driver.
        let promising = std::mem::take(&mut *held(&self.promising));
        for task in promising {
            let _ = task.await;
        }
        let store = self.store.clone();
        let _ = tokio::task::spawn_blocking(move || {
            if let Err(error) = store.flush() {
                tracing::warn!(%error, "blocks not acknowledged may be lost");
            }
        })
        .await;
        self.settle().await;
    }
}

/// A device that serves.
pub struct Daemon {
    node: Arc<Node>,
    ready: Ready,
    socket: JoinHandle<std::io::Result<()>>,
    close_socket: Option<tokio::sync::oneshot::Sender<()>>,
    knocks: JoinHandle<()>,
    /// As [`UpOptions::capacity`].
    capacity: Option<u64>,
    /// Keeps in touch with somebody of the IPFS world.
    meeting: JoinHandle<()>,
    lan: Option<JoinHandle<()>>,
    _door: DoorHandle,
}

impl Daemon {
    /// Where it can be found.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Returns once a client asked it to stop, or it cannot go on.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub async fn ended(&self) -> Result<(), NodeError> {
        let broken = async {
            let (mut ticks, mut offered) = (0_u64, false);
            loop {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                if self.socket.is_finished()
                    || held(&self.node.driver)
                        .as_ref()
                        .is_none_or(JoinHandle::is_finished)
                {
                    return;
                }
                self.node.tend_packs().await;
                self.node.scrub_step().await;
                self.node.keep_access().await;
                self.node.clone().collect_when_due(ticks);
                if !offered && ticks.is_multiple_of(OFFER_TICKS) {
                    offered = self.node.offer(self.capacity).await;
                }
                if ticks.is_multiple_of(RECORDS_TICKS) {
                    self.node.tell_holdings().await;
                    self.node.keep_records().await;
                    self.node.keep_holdings().await;
                }
                ticks += 1;
                if ticks.is_multiple_of(SETTLE_TICKS) {
                    self.node.settle().await;
                }
            }
        };
        tokio::select! {
            () = self.node.stop.notified() => Ok(()),
            () = broken => Err(NodeError::Task("the event loop or the local socket ended".into())),
            () = self.node.heal_rounds() => Err(NodeError::Task("healing ended".into())),
        }
    }

    /// Ends it in order.
    pub async fn shut_down(mut self) {
        self.knocks.abort();
        self.meeting.abort();
        if let Some(lan) = &self.lan {
            lan.abort();
        }
        local::remove_socket(self.node.home.path());
        // Whoever asked for the end, or waits for an answer that is almost there, still gets it.
        drop(self.close_socket.take());
        let _ = tokio::time::timeout(LAST_ANSWERS, &mut self.socket).await;
        self.socket.abort();
        self.node.close().await;
    }
}

/// Runs blocking work beside the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(NodeError::Task(error.to_string())))
}

/// Takes the home's lock, waiting a while for whoever has it.
pub(crate) fn lock(home: &Home, what: &str) -> Result<HomeLock, NodeError> {
    HomeLock::take(home.path(), what, LOCK_WAIT).map_err(|error| match error {
        LockError::InUse { home, holder } => NodeError::InUse { path: home, holder },
        other => NodeError::Lock(other),
    })
}

/// Writes the entries a new device begins with, durably.
pub(crate) fn write_first_entries(home: &Home, entries: &[Entry]) -> Result<(), NodeError> {
    // What an attempt that failed before left behind belongs to keys that are gone. The caller holds the lock, and no device is here yet.
    if home.exists() {
        return Err(HomeError::Exists {
            path: home.path().to_owned(),
        }
        .into());
    }
    store::forget_logs(home.path()).map_err(NodeError::Store)?;
    let logs = store::open_logs(home.path(), Durability::Group).map_err(NodeError::Store)?;
    let (log, _) = open_log(logs, |_, _| {})?;
    for entry in entries {
        log.append(&entry.encode()).map_err(NodeError::Log)?;
    }
    log.sync().map_err(NodeError::Log)
}

/// Opens the log of entries, telling each record and where it is.
fn open_log(
    disk: RealDisk,
    each: impl FnMut(u64, Bytes),
) -> Result<(Log<RealDisk>, LogReport), NodeError> {
    Log::open_each(disk, LOG, each).map_err(NodeError::Log)
}

/// What the owner has set, with what is set now. Damaged settings are no reason to stand still: the defaults lose nothing.
fn settings(home: &Home, options: Option<&UpOptions>) -> Result<Settings, NodeError> {
    let kept = match home.settings() {
        Err(error) => {
            tracing::error!(%error, "the defaults are used");
            Settings::default()
        }
        Ok(kept) => kept,
    };
    let mut settings = kept;
    if let Some(options) = options {
        settings.quota = options.quota.unwrap_or(settings.quota);
        settings.cache = options.cache.unwrap_or(settings.cache);
        settings.keep_free = options.keep_free.or(settings.keep_free);
        settings.durability = options.durability.unwrap_or(settings.durability);
        let moved = options.keep_free.is_some() && settings.keep_free != kept.keep_free;
        if moved
            || options.quota.is_some()
            || options.cache.is_some()
            || options.durability.is_some()
        {
            home.write_settings(settings)?;
        }
    }
    Ok(settings)
}

/// What was kept for the DHT; what others have told they tell again.
fn records(home: &Home, keys: &DeviceKeys) -> Vec<u8> {
    let kept = home.read_sealed_strictly(RECORDS_FILE, keys, RECORDS_BYTES_MAX);
    kept.ok().flatten().unwrap_or_default()
}

fn book_keeper(home: Home, keys: DeviceKeys) -> Box<dyn Fn(Bytes) + Send> {
    Box::new(move |book| {
        if let Err(error) = home.write_sealed(BOOK_FILE, &keys, &mut fresh_rng(), &book) {
            tracing::warn!(%error, "addresses of other devices not kept");
        }
    })
}

pub(crate) fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The ports listened on last: TCP, UDP.
#[derive(Default)]
struct Ports {
    inside: (u16, u16),
    door: (u16, u16),
    public: (u16, u16),
}

impl Ports {
    fn read(home: &Home) -> Self {
        let text = std::fs::read_to_string(home.path().join(PORTS_FILE)).unwrap_or_default();
        let mut ports = unchecked_text(PORTS_DOMAIN, &text)
            .unwrap_or_default()
            .split_whitespace()
            .map(|port| port.parse().unwrap_or(0));
        let mut next = || (ports.next().unwrap_or(0), ports.next().unwrap_or(0));
        Self {
            inside: next(),
            door: next(),
            public: next(),
        }
    }

    /// Those of a device that serves; `public` are those that public objects were served on last, should they not be now.
    fn of(ready: &Ready, public: (u16, u16)) -> Self {
        let ports = |addrs: &[String]| {
            let port = |name: &str| {
                addrs
                    .iter()
                    .find_map(|addr| addr.split_once(name)?.1.split('/').next()?.parse().ok())
                    .unwrap_or(0)
            };
            (port("/tcp/"), port("/udp/"))
        };
        Self {
            inside: ports(&ready.inside),
            door: ports(&ready.addrs),
            public: if ready.public.is_empty() {
                public
            } else {
                ports(&ready.public)
            },
        }
    }

    fn write(&self, home: &Home) {
        let text = format!(
            "{} {} {} {} {} {}\n",
            self.inside.0, self.inside.1, self.door.0, self.door.1, self.public.0, self.public.1
        );
        let text = checked_text(PORTS_DOMAIN, text);
        if let Err(error) = home.write_whole(PORTS_FILE, text.as_bytes()) {
            tracing::warn!(%error, "ports not kept");
        }
    }
}

/// The ports that the local network is told, and the addresses that have them.
fn lan_ports(addrs: &[String]) -> Option<(kith_protocol::lan::Ports, Vec<IpAddr>)> {
    let mut near = Vec::new();
    for addr in addrs {
        let mut parts = addr.split('/').skip(1);
        let (Some("ip4"), Some(ip), Some(transport), Some(port)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (Ok(ip), Ok(port)) = (ip.parse::<Ipv4Addr>(), port.parse::<u16>()) else {
            continue;
        };
        if !ip.is_loopback() {
            near.push((IpAddr::V4(ip), transport, port));
        }
    }
    let port = |name: &str| {
        near.iter()
            .find_map(|(_, transport, port)| (*transport == name).then_some(*port))
    };
    let tcp = port("tcp")?;
    let ports = kith_protocol::lan::Ports {
        tcp,
        udp: port("udp").unwrap_or(0),
    };
    let addrs = near
        .iter()
        .filter(|(_, transport, port)| *transport == "tcp" && *port == tcp)
        .map(|(ip, _, _)| *ip)
        .collect();
    Some((ports, addrs))
}

/// Starts on the ports used last, or on free ones if those are taken.
fn with_ports<T>(
    ports: &(u16, u16),
    mut start: impl FnMut((u16, u16)) -> Result<T, net::StartError>,
) -> Result<T, NodeError> {
    match start(*ports) {
        Err(net::StartError::Listen { .. }) if *ports != (0, 0) => start((0, 0)),
        other => other,
    }
    .map_err(NodeError::Net)
}

fn listen_addrs(addrs: &[IpAddr], (tcp, udp): (u16, u16)) -> Vec<Multiaddr> {
    addrs
        .iter()
        .flat_map(|addr| {
            let ip = if addr.is_ipv4() { "ip4" } else { "ip6" };
            [
                format!("/{ip}/{addr}/tcp/{tcp}"),
                format!("/{ip}/{addr}/udp/{udp}/quic-v1"),
            ]
        })
        .filter_map(|addr| addr.parse().ok())
        .collect()
}
