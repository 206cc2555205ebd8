//! The swarm that only members and blind holders enter.
//!
//! Spec: `protocol/spec/net.md`, "Order of behaviours".

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kith_object::id::{DeviceId, SpaceId};
use kith_protocol::exchange::Parts;
use kith_protocol::record::{ADDRESS_RECORD_BYTES_MAX, AddressRecord, Key, Ledger};
use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::kad::{
    self, GetProvidersOk, GetRecordOk, InboundRequest, QueryId, QueryResult, Quorum, Record,
};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, Transport, TransportError, identify, noise, ping, quic,
    relay, tcp, upnp, yamux,
};
use tokio::runtime;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::debug;
use zeroize::Zeroizing;

use super::dht::{self, ADDRESSES_MAX, KAD, Records};
use super::direct::{Pinholes, Shortcuts};
use super::event::{GossipId, NetEvent, NetEvents, Outbox, OwnerGone, queue};
use super::mux::{Muxing, Wide};
use super::rate::{Limited, Limits, Rates};
use super::streams::{Raw, RawStream, SendError, Shared, Streams, StreamsEvent, Who};
use super::ways::{
    self, HOP, Known, Link, Links, Patience, Proof, Reach, Router, Standing, Ways, WaysEvent,
    ip_of, is_relayed,
};
use super::{Channel, device_of, is_tcp, keypair_of, listen, peer_of};
use crate::config::now;

/// Longest gossip message; larger things are announced and fetched. Below gossipsub's 64 KiB, which count the envelope.
pub const PUBLISH_BYTES_MAX: usize = 60 << 10;
/// Commands that wait for the swarm.
const COMMANDS_MAX: usize = 1024;
/// Connections to one device: two dials at once on two transports, one that is relayed, and one that tries an address.
const CONNECTIONS_PER_DEVICE_MAX: u32 = 6;
/// Handshakes under way in either direction; they are what a stranger can cost.
const HANDSHAKES_MAX: u32 = 64;
/// Devices being dialled on the owner's behalf.
const DIALS_MAX: usize = 256;
/// Addresses tried at a time in one dial.
const DIALS_AT_ONCE: NonZeroU8 = NonZeroU8::new(8).expect("8 is not zero");
/// How long TCP goes before QUIC is tried as well: several round trips within a continent.
const TCP_HEAD_START: Duration = Duration::from_millis(500);
/// How long both go before somebody is asked to relay.
const DIRECT_HEAD_START: Duration = Duration::from_millis(1000);
/// Between two looks at which connections are too many, and whether somebody has to relay.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Failed dials that are told to the owner.
const FAILED_MAX: usize = 256;
/// Searches for providers under way.
const SEARCHES_MAX: usize = 256;
/// Devices named in the answer to one search.
const PROVIDERS_MAX: usize = 64;
/// What stands before gossipsub's versions in its protocol names.
const GOSSIP_PREFIX: &str = "/kith/gossip";
/// Domain of the hash that turns a mesh id into its gossip topic.
const TOPIC_DOMAIN: &str = "kith topic 1";

/// What an inside is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on: `/ip4/../tcp/..` and `/ip4/../udp/../quic-v1`; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// The mesh, whose hash is the gossip topic.
    pub mesh: SpaceId,
    /// How fast it may send and receive.
    pub rates: Rates,
    /// Most connections in all.
    pub connections_max: u32,
    /// Whether it relays between devices that cannot reach each other, once it is reachable itself.
    pub relay: bool,
    /// Whether the router is asked for a port (UPnP).
    pub router: bool,
    /// What it keeps for the others, as [`InsideHandle::records`] gave it before.
    pub records: Vec<u8>,
}

impl Config {
    /// The usual: no limit on speed, [`CONNECTIONS_USUAL`], relaying, and no router asked.
    pub fn new(mesh: SpaceId, listen: Vec<Multiaddr>) -> Self {
        Self {
            listen,
            mesh,
            rates: Rates::default(),
            connections_max: CONNECTIONS_USUAL,
            relay: true,
            router: false,
            records: Vec::new(),
        }
    }
}

/// Connections in all, unless the owner says otherwise: what the cheapest routers at home bear, as far as people tell.
pub const CONNECTIONS_USUAL: u32 = 50;

/// Why an inside did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, not ours, or of no transport we speak.
    #[error("listen on {addr}")]
    Listen { addr: Multiaddr, source: io::Error },
    /// The transports could not be set up.
    #[error("set up transport")]
    Transport {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a command was not taken; nothing has happened then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The device is not connected.
    #[error("device is not connected")]
    NotConnected,
    /// A queue is full; it empties as [`NetEvent::Sent`] come.
    #[error("queue is full")]
    Full,
    /// Empty, or over the limit of its kind.
    #[error("message is empty or too long")]
    TooLong,
    /// The inside has stopped.
    #[error("the inside has stopped")]
    Stopped,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of messages received whole, without prefixes.
    pub received_bytes: u64,
    /// Bytes of messages handed to the transport, without prefixes.
    pub sent_bytes: u64,
    /// Devices cut off for breaking the rules, or on the owner's word.
    pub cut: u64,
    /// Gossip messages dropped because the owner was behind.
    pub gossip_dropped: u64,
}

/// The inside swarm; a namespace for [`Inside::start`].
#[derive(Debug)]
pub struct Inside;

/// The owner's handle. Calls never block; commands are performed in the order in which they were given, except that [`InsideHandle::send`] takes a way of its own.
///
/// The inside stops when its last handle is dropped.
#[derive(Clone)]
pub struct InsideHandle {
    device: DeviceId,
    commands: mpsc::Sender<Command>,
    streams: Arc<Shared>,
    control: Arc<Control>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    raw: Arc<Mutex<Option<mpsc::Receiver<RawStream>>>>,
}

/// What reaches the swarm without passing through the queue of commands.
#[derive(Debug, Default)]
struct Control {
    /// The newest allow-list, until the swarm takes it.
    allow: Mutex<Option<BTreeSet<DeviceId>>>,
    stop: std::sync::atomic::AtomicBool,
    changed: Notify,
    gossip_dropped: AtomicU64,
}

#[derive(Debug)]
enum Command {
    Dial {
        device: DeviceId,
        addrs: Vec<Multiaddr>,
    },
    Publish {
        bytes: Bytes,
    },
    Verdict {
        id: GossipId,
        accept: bool,
    },
    Provide {
        key: [u8; 32],
    },
    StopProviding {
        key: [u8; 32],
    },
    FindProviders {
        key: [u8; 32],
        token: u64,
    },
    PutRecord {
        key: [u8; 32],
        record: Bytes,
    },
    KeepRecord {
        key: [u8; 32],
        record: Bytes,
    },
    FindRecord {
        key: [u8; 32],
    },
    Records {
        answer: oneshot::Sender<Option<Vec<u8>>>,
    },
    Reach {
        answer: oneshot::Sender<Reach>,
    },
    #[cfg(test)]
    Panic,
}

impl fmt::Debug for InsideHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsideHandle")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl InsideHandle {
    /// The device this is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Says who may be connected. Everyone else is refused and, if connected, cut; at the start nobody is allowed.
    pub fn allow(&self, devices: BTreeSet<DeviceId>) {
        *self
            .control
            .allow
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(devices);
        self.control.changed.notify_one();
    }

    /// Connects to a device; without addresses, to those the DHT knows. Answered by [`NetEvent::Connected`] or [`NetEvent::Unreachable`], and by nothing if it is
    /// connected already; while one dial is under way a second to the same device is ignored.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn dial(&self, device: DeviceId, addrs: Vec<Multiaddr>) -> Result<(), Refused> {
        self.command(Command::Dial { device, addrs })
    }

    /// Sends a message. Answered by one [`NetEvent::Sent`] or [`NetEvent::Unsent`] with its token, unless [`NetEvent::Disconnected`] comes first. Messages of one
    /// channel arrive in order; if a stream breaks, one may arrive twice.
    ///
    /// # Errors
    /// [`Refused::NotConnected`], [`Refused::Full`] with over 16 MiB or 4,096 messages waiting on the channel, [`Refused::TooLong`] over
    /// [`super::MESSAGE_BYTES_MAX`].
    pub fn send(
        &self,
        peer: DeviceId,
        channel: Channel,
        message: impl Into<Parts>,
        token: u64,
    ) -> Result<(), Refused> {
        self.streams
            .send(&peer, channel, message.into(), token)
            .map_err(|error| match error {
                SendError::NotConnected => Refused::NotConnected,
                SendError::Full => Refused::Full,
                SendError::TooLong => Refused::TooLong,
            })
    }

    /// Signs a message and gossips it; whoever is not reached hears nothing of it.
    ///
    /// # Errors
    /// [`Refused::TooLong`] over [`PUBLISH_BYTES_MAX`], [`Refused::Full`], [`Refused::Stopped`].
    pub fn publish(&self, bytes: Bytes) -> Result<(), Refused> {
        if bytes.is_empty() || bytes.len() > PUBLISH_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        self.command(Command::Publish { bytes })
    }

    /// Says whether a gossip message may be passed on. One without a verdict is forgotten within seconds.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn verdict(&self, id: GossipId, accept: bool) -> Result<(), Refused> {
        self.command(Command::Verdict { id, accept })
    }

    /// Announces in the DHT, once, that this device provides what `key` stands for; the others believe it for two days.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn provide(&self, key: [u8; 32]) -> Result<(), Refused> {
        self.command(Command::Provide { key })
    }

    /// Tells no longer that a key is provided; others forget it within two days.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn stop_providing(&self, key: [u8; 32]) -> Result<(), Refused> {
        self.command(Command::StopProviding { key })
    }

    /// Searches the DHT; answered by one [`NetEvent::Providers`] with the token, empty if nobody is found.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn find_providers(&self, key: [u8; 32], token: u64) -> Result<(), Refused> {
        self.command(Command::FindProviders { key, token })
    }

    /// Puts an address record of this device into the DHT.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn put_record(&self, key: [u8; 32], record: Bytes) -> Result<(), Refused> {
        self.command(Command::PutRecord { key, record })
    }

    /// Keeps a record that came as [`NetEvent::Offered`].
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn keep_record(&self, key: [u8; 32], record: Bytes) -> Result<(), Refused> {
        self.command(Command::KeepRecord { key, record })
    }

    /// Searches the DHT for an address record; whatever stands under that key comes as [`NetEvent::Record`].
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn find_record(&self, key: [u8; 32]) -> Result<(), Refused> {
        self.command(Command::FindRecord { key })
    }

    /// What this device keeps for the others, as bytes; `None` if it is as the last time.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub async fn records(&self) -> Result<Option<Vec<u8>>, Refused> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Records { answer })?;
        answered.await.map_err(|_| Refused::Stopped)
    }

    /// How this device is reached, and how it reaches the others.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub async fn reach(&self) -> Result<Reach, Refused> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Reach { answer })?;
        answered.await.map_err(|_| Refused::Stopped)
    }

    /// Opens a stream to a device; what it is for is the caller's to say there.
    ///
    /// # Errors
    /// [`Refused::NotConnected`]; also if the device does not speak that protocol.
    pub async fn open_raw(&self, device: DeviceId, raw: Raw) -> Result<RawStream, Refused> {
        let opened = self.streams.open_raw(&device, raw).await;
        opened.map_err(|_| Refused::NotConnected)
    }

    /// Streams that other devices open, for the one who answers them; `None` if somebody has them already.
    pub fn take_raw(&self) -> Option<mpsc::Receiver<RawStream>> {
        self.raw
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Devices that are connected.
    pub fn connected(&self) -> Vec<DeviceId> {
        self.streams.connected()
    }

    /// Cuts off a device that misbehaves, and refuses it for a while.
    pub fn disconnect(&self, device: DeviceId) {
        self.streams.cut(device);
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        let streams = &self.streams.counters;
        Stats {
            received_bytes: streams.received_bytes.load(Ordering::Relaxed),
            sent_bytes: streams.sent_bytes.load(Ordering::Relaxed),
            cut: streams.cut.load(Ordering::Relaxed),
            gossip_dropped: self.control.gossip_dropped.load(Ordering::Relaxed),
        }
    }

    /// Stops the inside for all its handles and waits until its listeners and connections are closed.
    pub async fn shutdown(&self) {
        self.control.stop.store(true, Ordering::Release);
        self.control.changed.notify_one();
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Ends the task as a defect in it would.
    #[cfg(test)]
    pub(super) fn panic(&self) {
        let _ = self.command(Command::Panic);
    }

    /// The streams beneath, to break rules on them.
    #[cfg(test)]
    pub(super) fn streams(&self) -> &Shared {
        &self.streams
    }

    fn command(&self, command: Command) -> Result<(), Refused> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Full,
                mpsc::error::TrySendError::Closed(_) => Refused::Stopped,
            })
    }
}

/// The behaviours, in the order in which they are asked: who may not enter is turned away before any protocol hears of it.
#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "Happening")]
struct Behaviours {
    allowed: allow_block_list::Behaviour<AllowedPeers>,
    limits: connection_limits::Behaviour,
    streams: Streams,
    ways: Ways,
    kad: kad::Behaviour<Records>,
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// What one of the behaviours says.
#[derive(Debug)]
enum Happening {
    Streams(StreamsEvent),
    Ways(Box<WaysEvent>),
    Kad(kad::Event),
    Gossip(gossipsub::Event),
    Identify(Box<identify::Event>),
    Ping(ping::Event),
}

impl From<StreamsEvent> for Happening {
    fn from(event: StreamsEvent) -> Self {
        Self::Streams(event)
    }
}

impl From<WaysEvent> for Happening {
    fn from(event: WaysEvent) -> Self {
        Self::Ways(Box::new(event))
    }
}

impl From<kad::Event> for Happening {
    fn from(event: kad::Event) -> Self {
        Self::Kad(event)
    }
}

impl From<gossipsub::Event> for Happening {
    fn from(event: gossipsub::Event) -> Self {
        Self::Gossip(event)
    }
}

impl From<identify::Event> for Happening {
    fn from(event: identify::Event) -> Self {
        Self::Identify(Box::new(event))
    }
}

impl From<ping::Event> for Happening {
    fn from(event: ping::Event) -> Self {
        Self::Ping(event)
    }
}

impl From<std::convert::Infallible> for Happening {
    fn from(event: std::convert::Infallible) -> Self {
        match event {}
    }
}

impl Inside {
    /// Starts listening and runs the swarm on the current tokio runtime. `seed` is the device's Ed25519 seed.
    ///
    /// # Errors
    /// [`StartError`] if an address cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        seed: Zeroizing<[u8; 32]>,
        config: Config,
    ) -> Result<(InsideHandle, NetEvents), StartError> {
        let (outbox, events) = queue();
        let mut streams = Streams::new(outbox.clone(), runtime::Handle::current(), Who::Devices);
        let shared = streams.shared().clone();
        let raw = streams.take_raw();
        let topic = IdentTopic::new(
            blake3::Hash::from_bytes(blake3::derive_key(TOPIC_DOMAIN, &config.mesh.0))
                .to_hex()
                .as_str(),
        );
        let swarm = swarm(seed, &config, &topic, streams)?;
        let device = device_of(swarm.local_peer_id()).expect("the key is Ed25519");
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let control = Arc::new(Control::default());
        let task = Task {
            swarm,
            topic,
            device,
            streams: shared.clone(),
            outbox,
            control: control.clone(),
            dials: BTreeMap::new(),
            head_starts: FuturesUnordered::new(),
            searches: HashMap::new(),
            links: Links::default(),
            shortcuts: Shortcuts::default(),
            pinholes: Pinholes::default(),
            known: Known::new(config.router),
            failed: BTreeMap::new(),
            relay: config.relay,
            listeners: BTreeMap::new(),
            patience: Patience::default(),
        };
        let task = tokio::spawn(task.run(command_queue));
        let handle = InsideHandle {
            device,
            commands,
            streams: shared,
            control,
            task: Arc::new(Mutex::new(Some(task))),
            raw: Arc::new(Mutex::new(raw)),
        };
        Ok((handle, events))
    }
}

fn swarm(
    seed: Zeroizing<[u8; 32]>,
    config: &Config,
    topic: &IdentTopic,
    streams: Streams,
) -> Result<Swarm<Behaviours>, StartError> {
    let transport =
        |source: Box<dyn std::error::Error + Send + Sync>| StartError::Transport { source };
    let limits = Limits::new(config.rates);
    let ledger = Ledger::recall(now(), &config.records).unwrap_or_default();
    let mut swarm = SwarmBuilder::with_existing_identity(keypair_of(seed))
        .with_tokio()
        .with_other_transport(|keys| {
            let limits = limits.clone();
            let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
                .map(|stream, _| Wide::new(stream))
                .upgrade(Version::V1Lazy)
                .authenticate(noise::Config::new(keys)?)
                .multiplex(Muxing::new());
            Ok(tcp.map(move |(peer, connection), _| (peer, Limited::new(connection, limits))))
        })
        .map_err(|source| transport(source.into()))?
        .with_other_transport(|keys| {
            let limits = limits.clone();
            let quic = quic::tokio::Transport::new(quic::Config::new(keys));
            quic.map(move |(peer, connection), _| (peer, Limited::new(connection, limits)))
        })
        .map_err(|source| transport(source.into()))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|source| transport(source.into()))?
        .with_behaviour(|keys, relayed| {
            let peer = keys.public().to_peer_id();
            let gossip = gossipsub::ConfigBuilder::default()
                .protocol_id_prefix(GOSSIP_PREFIX)
                .validation_mode(ValidationMode::Strict)
                .validate_messages()
                .build()?;
            let mut gossip =
                gossipsub::Behaviour::new(MessageAuthenticity::Signed(keys.clone()), gossip)?;
            gossip.subscribe(topic)?;
            Ok(Behaviours {
                allowed: allow_block_list::Behaviour::default(),
                limits: connection_limits::Behaviour::new(
                    ConnectionLimits::default()
                        .with_max_pending_incoming(Some(HANDSHAKES_MAX))
                        .with_max_pending_outgoing(Some(HANDSHAKES_MAX))
                        .with_max_established(Some(config.connections_max))
                        .with_max_established_per_peer(Some(CONNECTIONS_PER_DEVICE_MAX)),
                ),
                streams,
                ways: Ways::new(peer, relayed, config.router),
                kad: dht::behaviour(peer, ledger),
                gossip,
                identify: identify::Behaviour::new(
                    identify::Config::new("kith/1".to_owned(), keys.public())
                        .with_agent_version("kith".to_owned()),
                ),
                ping: ping::Behaviour::default(),
            })
        })
        .map_err(|source| transport(source.into()))?
        .build();
    listen(&mut swarm, &config.listen)?;
    Ok(swarm)
}

/// The task that drives the swarm.
struct Task {
    swarm: Swarm<Behaviours>,
    topic: IdentTopic,
    device: DeviceId,
    streams: Arc<Shared>,
    outbox: Outbox,
    control: Arc<Control>,
    dials: BTreeMap<DeviceId, Dial>,
    head_starts: FuturesUnordered<BoxFuture<'static, DeviceId>>,
    searches: HashMap<QueryId, Search>,
    links: Links,
    shortcuts: Shortcuts,
    pinholes: Pinholes,
    known: Known,
    /// Why the last dial to a device failed.
    failed: BTreeMap<DeviceId, String>,
    /// As [`Config::relay`].
    relay: bool,
    listeners: BTreeMap<Multiaddr, ListenerId>,
    patience: Patience,
}

/// A dial on the owner's behalf.
struct Dial {
    under_way: BTreeSet<ConnectionId>,
    /// Addresses for which the others have failed or had their head start: QUIC, then those that lead through a relay.
    later: VecDeque<Vec<Multiaddr>>,
}

struct Search {
    token: u64,
    found: BTreeSet<DeviceId>,
}

/// However it ends: a defect in one of the behaviours must not leave an owner waiting for events that never come.
impl Drop for Task {
    fn drop(&mut self) {
        self.streams.close();
        self.outbox.finish();
    }
}

impl Task {
    async fn run(mut self, commands: mpsc::Receiver<Command>) {
        self.drive(commands).await;
    }

    async fn drive(&mut self, mut commands: mpsc::Receiver<Command>) {
        let control = self.control.clone();
        let mut tidying = tokio::time::interval(TIDY_EVERY);
        loop {
            let done = tokio::select! {
                _ = tidying.tick() => {
                    self.tidy();
                    Ok(())
                }
                command = commands.recv() => match command {
                    Some(command) => self.perform(command).await,
                    None => return,
                },
                () = control.changed.notified() => {
                    if control.stop.load(Ordering::Acquire) {
                        return;
                    }
                    self.apply_allow_list();
                    Ok(())
                }
                Some(device) = self.head_starts.next() => self.dial_later(device).await,
                event = self.swarm.select_next_some() => self.on_event(event).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn apply_allow_list(&mut self) {
        let allow = self
            .control
            .allow
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(allow) = allow else { return };
        let behaviours = self.swarm.behaviour_mut();
        dht::keep(&mut behaviours.kad, &self.device, &allow);
        let allow: BTreeSet<PeerId> = allow.iter().filter_map(peer_of).collect();
        let out: Vec<PeerId> = behaviours
            .allowed
            .allowed_peers()
            .iter()
            .filter(|peer| !allow.contains(peer))
            .copied()
            .collect();
        for peer in out {
            behaviours.allowed.disallow_peer(peer);
            behaviours.streams.close(peer);
            behaviours.kad.remove_peer(&peer);
            device_of(&peer).and_then(|device| self.failed.remove(&device));
        }
        for peer in allow {
            behaviours.allowed.allow_peer(peer);
        }
    }

    fn is_allowed(&self, peer: &PeerId) -> bool {
        self.swarm
            .behaviour()
            .allowed
            .allowed_peers()
            .contains(peer)
    }

    async fn perform(&mut self, command: Command) -> Result<(), OwnerGone> {
        // A command given after a new list is performed under it.
        self.apply_allow_list();
        match command {
            Command::Dial { device, addrs } => return self.dial(device, addrs).await,
            Command::Publish { bytes } => {
                if let Err(error) = self
                    .swarm
                    .behaviour_mut()
                    .gossip
                    .publish(self.topic.clone(), bytes)
                {
                    debug!(%error, "gossip reaches nobody");
                }
            }
            Command::Verdict { id, accept } => self.judge(
                &id,
                if accept {
                    MessageAcceptance::Accept
                } else {
                    MessageAcceptance::Reject
                },
            ),
            Command::Provide { key } => {
                if let Err(error) = self
                    .swarm
                    .behaviour_mut()
                    .kad
                    .start_providing(key.to_vec().into())
                {
                    debug!(%error, "key not provided");
                }
            }
            Command::StopProviding { key } => self
                .swarm
                .behaviour_mut()
                .kad
                .stop_providing(&key.to_vec().into()),
            Command::FindProviders { key, token } => {
                if self.searches.len() >= SEARCHES_MAX {
                    let devices = Vec::new();
                    return self
                        .outbox
                        .notice(NetEvent::Providers { token, devices })
                        .await;
                }
                let query = self
                    .swarm
                    .behaviour_mut()
                    .kad
                    .get_providers(key.to_vec().into());
                let found = BTreeSet::new();
                self.searches.insert(query, Search { token, found });
            }
            Command::PutRecord { key, record } => {
                let record = Record::new(key.to_vec(), record.to_vec());
                let dht = &mut self.swarm.behaviour_mut().kad;
                if let Err(error) = dht.put_record(record, Quorum::One) {
                    debug!(%error, "address not told");
                }
            }
            Command::KeepRecord { key, record } => {
                if let Ok(record) = AddressRecord::decode(&record) {
                    let dht = &mut self.swarm.behaviour_mut().kad;
                    dht.store_mut().ledger.put(now(), Key(key), record);
                }
            }
            Command::FindRecord { key } => {
                self.swarm
                    .behaviour_mut()
                    .kad
                    .get_record(key.to_vec().into());
            }
            Command::Records { answer } => {
                let dht = &mut self.swarm.behaviour_mut().kad;
                let _ = answer.send(dht.store_mut().ledger.to_keep(now()));
            }
            Command::Reach { answer } => {
                let _ = answer.send(self.reach());
            }
            #[cfg(test)]
            Command::Panic => panic!("as a defect would"),
        }
        Ok(())
    }

    fn reach(&self) -> Reach {
        let links = self.links.iter().filter_map(|(_, link)| {
            Some(Link {
                device: device_of(&link.peer)?,
                addr: link.addr.to_string(),
                relayed: link.relayed,
                dialled: link.dialled,
                round_trip: link.round_trip,
            })
        });
        let failed = self.failed.iter();
        Reach {
            links: links.collect(),
            failed: failed.map(|(device, why)| (*device, why.clone())).collect(),
            relaying: self.relay && self.known.is_public(),
            refused: self.swarm.behaviour().streams.refused(),
            ..self.known.report(device_of)
        }
    }

    /// TCP first, QUIC after a head start, through a relay after another; whichever comes up first is told.
    async fn dial(&mut self, device: DeviceId, mut addrs: Vec<Multiaddr>) -> Result<(), OwnerGone> {
        let Some(peer) = peer_of(&device) else {
            return self.outbox.notice(NetEvent::Unreachable(device)).await;
        };
        if self.dials.contains_key(&device) || self.streams.is_connected(&device) {
            return Ok(());
        }
        if self.dials.len() >= DIALS_MAX {
            return self.outbox.notice(NetEvent::Unreachable(device)).await;
        }
        addrs.truncate(ADDRESSES_MAX);
        let (relayed, direct): (Vec<_>, Vec<_>) = addrs.into_iter().partition(is_relayed);
        let (tcp, quic): (Vec<_>, Vec<_>) = direct.into_iter().partition(is_tcp);
        let mut stages: VecDeque<Vec<Multiaddr>> = [tcp, quic, relayed]
            .into_iter()
            .filter(|addrs| !addrs.is_empty())
            .collect();
        // Without any: those that the DHT knows.
        let first = stages.pop_front().unwrap_or_default();
        for wait in [TCP_HEAD_START, DIRECT_HEAD_START]
            .into_iter()
            .take(stages.len())
        {
            self.head_starts.push(Box::pin(async move {
                tokio::time::sleep(wait).await;
                device
            }));
        }
        let dial = Dial {
            under_way: BTreeSet::new(),
            later: stages,
        };
        self.dials.insert(device, dial);
        self.attempt(device, peer, first);
        self.settle(device).await
    }

    /// The turn of those that come next, unless the dial is over.
    async fn dial_later(&mut self, device: DeviceId) -> Result<(), OwnerGone> {
        let next = self
            .dials
            .get_mut(&device)
            .and_then(|dial| dial.later.pop_front());
        if let Some(next) = next
            && let Some(peer) = peer_of(&device)
        {
            self.attempt(device, peer, next);
        }
        self.settle(device).await
    }

    fn attempt(&mut self, device: DeviceId, peer: PeerId, addrs: Vec<Multiaddr>) {
        if let Some(id) = self.begin(peer, addrs)
            && let Some(dial) = self.dials.get_mut(&device)
        {
            dial.under_way.insert(id);
        }
    }

    /// Dials addresses of one transport; without any, those that the DHT knows.
    fn begin(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> Option<ConnectionId> {
        for ip in addrs.iter().filter_map(ip_of) {
            self.pinholes.sent(ip);
        }
        let opts = DialOpts::peer_id(peer);
        let quic = addrs.first().is_some_and(|addr| !is_tcp(addr));
        // TCP from a port of its own: two devices that dial each other from the ports they listen on would open one and the same connection, both as its dialler.
        // QUIC from the port that is listened on: a router then tells others, and keeps, the port at which this device is reached.
        let opts = match (addrs.is_empty(), quic) {
            (true, _) => opts
                .condition(PeerCondition::Always)
                .override_dial_concurrency_factor(DIALS_AT_ONCE)
                .allocate_new_port()
                .build(),
            (false, false) => opts
                .addresses(addrs)
                .condition(PeerCondition::Always)
                .override_dial_concurrency_factor(DIALS_AT_ONCE)
                .allocate_new_port()
                .build(),
            (false, true) => opts
                .addresses(addrs)
                .condition(PeerCondition::Always)
                .override_dial_concurrency_factor(DIALS_AT_ONCE)
                .build(),
        };
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => Some(id),
            Err(error) => {
                debug!(%peer, %error, "dial not begun");
                None
            }
        }
    }

    /// Looks for a direct way to those that others relay to.
    fn find_shortcuts(&mut self) {
        for (peer, addrs) in self.shortcuts.due(&self.links) {
            let (tcp, quic): (Vec<_>, Vec<_>) = addrs.into_iter().partition(is_tcp);
            for addrs in [tcp, quic] {
                if !addrs.is_empty() {
                    self.begin(peer, addrs);
                }
            }
        }
    }

    /// Ends a dial that has nothing left to try.
    async fn settle(&mut self, device: DeviceId) -> Result<(), OwnerGone> {
        let Some(dial) = self.dials.get(&device) else {
            return Ok(());
        };
        if !dial.under_way.is_empty() {
            return Ok(());
        }
        if !dial.later.is_empty() {
            return Box::pin(self.dial_later(device)).await;
        }
        self.dials.remove(&device);
        if self.streams.is_connected(&device) {
            return Ok(());
        }
        self.outbox.notice(NetEvent::Unreachable(device)).await
    }

    fn judge(&mut self, id: &GossipId, acceptance: MessageAcceptance) {
        self.swarm
            .behaviour_mut()
            .gossip
            .report_message_validation_result(&id.message, &id.via, acceptance);
    }

    async fn on_event(&mut self, event: SwarmEvent<Happening>) -> Result<(), OwnerGone> {
        match event {
            SwarmEvent::Behaviour(happening) => self.on_happening(happening).await,
            SwarmEvent::NewListenAddr {
                address,
                listener_id,
            } => {
                if !is_relayed(&address) {
                    self.listeners.insert(address.clone(), listener_id);
                    // Another network, another router.
                    self.patience = Patience::default();
                }
                self.outbox.notice(NetEvent::Listening(address)).await
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.linked(peer_id, connection_id, &endpoint);
                Ok(())
            }
            SwarmEvent::ConnectionClosed {
                connection_id,
                peer_id,
                num_established,
                ..
            } => {
                self.links.remove(&connection_id);
                if num_established == 0 {
                    self.known.gone(&peer_id);
                    self.shortcuts.gone(&peer_id);
                    self.find_ways();
                }
                Ok(())
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.known.ended(listener_id);
                Ok(())
            }
            SwarmEvent::ExternalAddrConfirmed { address } => {
                // What is relayed is listened on as well, and told so.
                if is_relayed(&address) {
                    return Ok(());
                }
                self.opened(address, Proof::Tried).await
            }
            SwarmEvent::ExternalAddrExpired { address } => self.expired(address).await,
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listeners.remove(&address);
                self.moved(&address);
                self.outbox.notice(NetEvent::NotListening(address)).await
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
                ..
            } => self.on_dial_failed(connection_id, peer_id, &error).await,
            SwarmEvent::IncomingConnectionError { peer_id, error, .. } => {
                debug!(?peer_id, %error, "incoming connection refused");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A device that comes from another address than before has moved: what it had is dead, and pings would need a minute to notice.
    fn linked(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let addr = endpoint.get_remote_address();
        let relayed = endpoint.is_relayed();
        let (local, remote) = match endpoint {
            _ if relayed => (None, None),
            ConnectedPoint::Listener {
                local_addr,
                send_back_addr,
            } => (ip_of(local_addr), ip_of(send_back_addr)),
            ConnectedPoint::Dialer { address, .. } => (None, ip_of(address)),
        };
        // One that has addresses of both families comes from either.
        if let Some(came) = remote.filter(|_| endpoint.is_listener()) {
            self.drop_links(|link| {
                link.peer == peer
                    && link
                        .remote
                        .is_some_and(|ip| ip != came && ip.is_ipv4() == came.is_ipv4())
            });
        }
        let unasked = endpoint.is_listener()
            && remote.is_some_and(|ip| self.pinholes.prove(&peer, ip, &self.links));
        if let (ConnectedPoint::Dialer { .. }, Some(ip)) = (endpoint, remote) {
            self.pinholes.sent(ip);
        }
        let link = Standing {
            peer,
            addr: addr.clone(),
            relayed,
            tcp: is_tcp(addr),
            dialled: endpoint.is_dialer(),
            unasked,
            local,
            remote,
            round_trip: None,
            age: 0,
        };
        self.links.insert(id, link);
        device_of(&peer).and_then(|device| self.failed.remove(&device));
    }

    /// An address of ours is gone, and with it the connections from it. Those we dialled may have left from it: they are dialled again.
    fn moved(&mut self, gone: &Multiaddr) {
        if is_relayed(gone) {
            return;
        }
        let gone = ip_of(gone);
        if gone.is_none() || self.swarm.listeners().any(|addr| ip_of(addr) == gone) {
            return;
        }
        self.drop_links(|link| match link.local {
            Some(_) => link.local == gone,
            None => link.remote.is_none_or(|remote| !remote.is_loopback()),
        });
        self.pinholes.moved();
        for addr in self.known.moved() {
            self.swarm.remove_external_address(&addr);
        }
    }

    fn drop_links(&mut self, which: impl Fn(&Standing) -> bool) {
        let dead: Vec<(ConnectionId, PeerId)> = self
            .links
            .iter()
            .filter(|(_, link)| which(link))
            .map(|(id, link)| (*id, link.peer))
            .collect();
        for (id, peer) in dead {
            debug!(%peer, "connection between addresses that are gone");
            self.links.remove(&id);
            self.swarm.behaviour_mut().streams.lost(peer, id);
            self.swarm.close_connection(id);
        }
    }

    async fn on_dial_failed(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
    ) -> Result<(), OwnerGone> {
        debug!(?peer, %error, "dial failed");
        // Those that the DHT knew among them.
        if let DialError::Transport(tried) = error {
            for ip in tried.iter().filter_map(|(addr, _)| ip_of(addr)) {
                self.pinholes.sent(ip);
            }
        }
        let Some(device) = peer.as_ref().and_then(device_of) else {
            return Ok(());
        };
        if self.failed.len() < FAILED_MAX || self.failed.contains_key(&device) {
            self.failed.insert(device, why(error));
        }
        let ours = self
            .dials
            .get_mut(&device)
            .is_some_and(|dial| dial.under_way.remove(&id));
        if ours {
            self.settle(device).await
        } else {
            Ok(())
        }
    }

    async fn on_happening(&mut self, happening: Happening) -> Result<(), OwnerGone> {
        match happening {
            Happening::Streams(StreamsEvent::Connected(newcomer)) => {
                let device = newcomer.device();
                self.dials.remove(&device);
                self.outbox.notice(NetEvent::Connected(device)).await?;
                newcomer.announced();
                Ok(())
            }
            Happening::Streams(StreamsEvent::Disconnected(device)) => {
                self.outbox.notice(NetEvent::Disconnected(device)).await
            }
            Happening::Gossip(event) => self.on_gossip(event).await,
            Happening::Kad(event) => self.on_kad(event).await,
            Happening::Identify(event) => self.on_identify(*event).await,
            Happening::Ways(event) => self.on_ways(*event).await,
            Happening::Ping(event) => {
                match event.result {
                    Ok(round_trip) => self.links.heard(&event.connection, round_trip),
                    Err(ping::Failure::Unsupported) => {}
                    Err(error) => {
                        debug!(peer = %event.peer, %error, "device does not answer");
                        self.swarm
                            .behaviour_mut()
                            .streams
                            .lost(event.peer, event.connection);
                        self.swarm.close_connection(event.connection);
                    }
                }
                Ok(())
            }
        }
    }

    async fn on_ways(&mut self, event: WaysEvent) -> Result<(), OwnerGone> {
        match event {
            WaysEvent::Relayed(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            }) => {
                let quic = self.known.granted(&relay_peer_id);
                if !renewal
                    && let Some(addr) = quic
                    && !self.links.has(&relay_peer_id, false)
                {
                    let opts = DialOpts::peer_id(relay_peer_id)
                        .addresses(vec![addr])
                        .condition(PeerCondition::Always)
                        .build();
                    if let Err(error) = self.swarm.dial(opts) {
                        debug!(peer = %relay_peer_id, %error, "dial not begun");
                    }
                }
            }
            WaysEvent::Punch(event) => {
                debug!(peer = %event.remote_peer_id, result = ?event.result, "direct way tried");
            }
            WaysEvent::Tried(event) => {
                if event.result.is_err() {
                    self.known.closed(&event.tested_addr);
                }
            }
            WaysEvent::Router(event) => match event {
                upnp::Event::NewExternalAddr { external_addr, .. } => {
                    self.known.router = Router::Mapped;
                    return self.opened(external_addr, Proof::Router).await;
                }
                upnp::Event::ExpiredExternalAddr { external_addr, .. } => {
                    return self.expired(external_addr).await;
                }
                upnp::Event::GatewayNotFound => self.known.router = Router::Silent,
                upnp::Event::NonRoutableGateway => self.known.router = Router::NotPublic,
            },
            WaysEvent::Relayed(_) | WaysEvent::Relaying(_) | WaysEvent::Trying(_) => {}
        }
        Ok(())
    }

    /// An address works from outside.
    async fn opened(&mut self, addr: Multiaddr, proof: Proof) -> Result<(), OwnerGone> {
        if !self.known.opened(&addr, proof) {
            return Ok(());
        }
        self.find_ways();
        if self.swarm.listeners().any(|listener| *listener == addr) {
            return Ok(());
        }
        self.outbox.notice(NetEvent::Listening(addr)).await
    }

    /// An address works no longer.
    async fn expired(&mut self, addr: Multiaddr) -> Result<(), OwnerGone> {
        if !self.known.expired(&addr) {
            return Ok(());
        }
        self.find_ways();
        if self.swarm.listeners().any(|listener| *listener == addr) {
            return Ok(());
        }
        self.outbox.notice(NetEvent::NotListening(addr)).await
    }

    /// Has others relay to this device as long as nothing else works, and relays for others once something does.
    fn find_ways(&mut self) {
        let status = if self.relay && self.known.is_public() {
            relay::Status::Enable
        } else {
            relay::Status::Disable
        };
        self.swarm
            .behaviour_mut()
            .ways
            .relaying
            .set_status(Some(status));
        // Each makes the next one another.
        for _ in 0..ways::RELAYS_MAX {
            let Some((relay, addr)) = self.known.wanted() else {
                return;
            };
            let through = addr.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(through) {
                Ok(listener) => self.known.reserving(&relay, listener),
                Err(error) => {
                    debug!(peer = %relay, %error, "not asked to relay");
                    return;
                }
            }
        }
    }

    /// Closes connections of which one is enough, and looks for ways anew.
    fn tidy(&mut self) {
        if self.known.router == Router::Silent && self.patience.is_over() {
            let ways = &mut self.swarm.behaviour_mut().ways;
            ways.ask_router(&self.listeners);
            self.known.router = Router::Asked;
        }
        let me = *self.swarm.local_peer_id();
        // One side closes, or both would, and not the same.
        let surplus = self.links.superfluous(|peer| me < *peer);
        for id in surplus {
            let Some(link) = self.links.get(&id) else {
                continue;
            };
            let (peer, relayed) = (link.peer, link.relayed);
            if !relayed && self.streams.is_used(&peer, id) {
                continue;
            }
            debug!(%peer, relayed, "connection not needed");
            self.links.remove(&id);
            self.swarm.behaviour_mut().streams.lost(peer, id);
            self.swarm.close_connection(id);
        }
        self.find_ways();
        self.pinholes.pass(&self.links);
        self.find_shortcuts();
    }

    async fn on_gossip(&mut self, event: gossipsub::Event) -> Result<(), OwnerGone> {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                let id = GossipId {
                    message: message_id,
                    via: propagation_source,
                };
                let author = message
                    .source
                    .filter(|author| self.is_allowed(author))
                    .as_ref()
                    .and_then(device_of);
                // Its author may have left a moment ago, which is no fault of the neighbour.
                let Some(from) = author else {
                    self.judge(&id, MessageAcceptance::Ignore);
                    return Ok(());
                };
                let Some(room) = self.outbox.room_now(message.data.len()) else {
                    self.control.gossip_dropped.fetch_add(1, Ordering::Relaxed);
                    self.judge(&id, MessageAcceptance::Ignore);
                    return Ok(());
                };
                let bytes = Bytes::from(message.data);
                self.outbox
                    .push(NetEvent::Published { from, bytes, id }, room);
                Ok(())
            }
            gossipsub::Event::Subscribed { peer_id, topic } if topic == self.topic.hash() => {
                match device_of(&peer_id) {
                    Some(device) => self.outbox.notice(NetEvent::Subscribed(device)).await,
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    async fn on_kad(&mut self, event: kad::Event) -> Result<(), OwnerGone> {
        match event {
            // The sender is the provider: kad has checked. Nobody but members reaches us, but a member may tell of one that has been removed.
            kad::Event::InboundRequest {
                request:
                    InboundRequest::AddProvider {
                        record: Some(record),
                    },
            } if self.is_allowed(&record.provider) => {
                self.swarm.behaviour_mut().kad.store_mut().provide(&record);
                Ok(())
            }
            // The owner knows what the keys stand for.
            kad::Event::InboundRequest {
                request:
                    InboundRequest::PutRecord {
                        record: Some(record),
                        ..
                    },
            } => match dht::key_of(&record.key) {
                Some(key) if record.value.len() <= ADDRESS_RECORD_BYTES_MAX => {
                    let record = record.value.into();
                    self.outbox
                        .notice(NetEvent::Offered { key: key.0, record })
                        .await
                }
                _ => Ok(()),
            },
            kad::Event::OutboundQueryProgressed {
                result: QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))),
                ..
            } => match dht::key_of(&found.record.key) {
                Some(key) if found.record.value.len() <= ADDRESS_RECORD_BYTES_MAX => {
                    let record = found.record.value.into();
                    self.outbox
                        .notice(NetEvent::Record { key: key.0, record })
                        .await
                }
                _ => Ok(()),
            },
            kad::Event::OutboundQueryProgressed {
                id,
                result: QueryResult::GetProviders(result),
                step,
                ..
            } => {
                let found: Vec<DeviceId> = match result {
                    Ok(GetProvidersOk::FoundProviders { providers, .. }) => providers
                        .iter()
                        .filter(|peer| self.is_allowed(peer))
                        .filter_map(device_of)
                        .collect(),
                    Ok(GetProvidersOk::FinishedWithNoAdditionalRecord { .. }) | Err(_) => {
                        Vec::new()
                    }
                };
                if let Some(search) = self.searches.get_mut(&id) {
                    for device in found {
                        if search.found.len() < PROVIDERS_MAX && device != self.device {
                            search.found.insert(device);
                        }
                    }
                }
                if step.last
                    && let Some(search) = self.searches.remove(&id)
                {
                    let devices = search.found.into_iter().collect();
                    return self
                        .outbox
                        .notice(NetEvent::Providers {
                            token: search.token,
                            devices,
                        })
                        .await;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn on_identify(&mut self, event: identify::Event) -> Result<(), OwnerGone> {
        let identify::Event::Received {
            peer_id,
            info,
            connection_id,
        } = event
        else {
            return Ok(());
        };
        let Some(device) = device_of(&peer_id) else {
            return Ok(());
        };
        let relays = info.protocols.contains(&HOP);
        self.known.told(peer_id, relays, &info.listen_addrs);
        self.find_ways();
        self.shortcuts.told(peer_id, &info.listen_addrs);
        // Who dialled us from another network, unasked, has shown that what it dialled works.
        let from_outside = self.links.get(&connection_id);
        if from_outside.is_some_and(|link| link.unasked) && ways::is_outward(&info.observed_addr) {
            self.swarm.add_external_address(info.observed_addr.clone());
            self.opened(info.observed_addr.clone(), Proof::Dialled)
                .await?;
        }
        let mut addrs = info.listen_addrs;
        addrs.truncate(ADDRESSES_MAX);
        if info.protocols.contains(&KAD) {
            dht::remember(&mut self.swarm.behaviour_mut().kad, &peer_id, &addrs);
        }
        self.outbox
            .notice(NetEvent::Addresses { device, addrs })
            .await
    }
}

/// Why a dial failed, in one line and without the addresses that did not answer either.
fn why(error: &DialError) -> String {
    match error {
        DialError::Transport(tried) => {
            let tried = tried.iter().take(ADDRESSES_MAX);
            let tried: Vec<String> = tried
                .map(|(addr, error)| format!("{addr}: {}", root(error)))
                .collect();
            tried.join("; ")
        }
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::WrongPeerId { .. } => "another device answers at its address".to_owned(),
        DialError::Denied { .. } => {
            "the most connections that are allowed stand already".to_owned()
        }
        other => other.to_string(),
    }
}

/// What stands at the bottom of an error.
fn root(error: &TransportError<io::Error>) -> String {
    match error {
        TransportError::MultiaddrNotSupported(_) => "no transport of ours".to_owned(),
        TransportError::Other(error) => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        }
    }
}
