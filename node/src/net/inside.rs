//! The swarm that only members and blind holders enter.
//!
//! Spec: `protocol/spec/net.md`, "Order of behaviours".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
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
use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig, RecordStore};
use libp2p::kad::{self, GetProvidersOk, InboundRequest, QueryId, QueryResult, StoreInserts};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, identify, noise, ping, tcp, yamux};
use tokio::runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tracing::debug;
use zeroize::Zeroizing;

use super::event::{GossipId, NetEvent, NetEvents, Outbox, OwnerGone, queue};
use super::streams::{SendError, Shared, Streams, StreamsEvent, Who};
use super::{Channel, device_of, is_tcp, keypair_of, listen, peer_of};

/// Longest gossip message; larger things are announced and fetched. Below gossipsub's 64 KiB, which count the envelope.
pub const PUBLISH_BYTES_MAX: usize = 60 << 10;
/// Commands that wait for the swarm.
const COMMANDS_MAX: usize = 1024;
/// Connections to one device: two dials at once on two transports, and no more.
const CONNECTIONS_PER_DEVICE_MAX: u32 = 4;
/// Connections in all; a mesh has hundreds of devices.
const CONNECTIONS_MAX: u32 = 1024;
/// Handshakes under way in either direction; they are what a stranger can cost.
const HANDSHAKES_MAX: u32 = 64;
/// Addresses kept of one device, as told by it or by the owner.
const ADDRESSES_MAX: usize = 16;
/// Devices being dialled on the owner's behalf.
const DIALS_MAX: usize = 256;
/// Addresses tried at a time in one dial.
const DIALS_AT_ONCE: NonZeroU8 = NonZeroU8::new(8).expect("8 is not zero");
/// How long TCP goes before QUIC is tried as well: several round trips within a continent.
const TCP_HEAD_START: Duration = Duration::from_millis(500);
/// Searches for providers under way.
const SEARCHES_MAX: usize = 256;
/// Devices named in the answer to one search.
const PROVIDERS_MAX: usize = 64;
/// Keys this device provides, and keys of others it keeps records of.
const PROVIDED_MAX: usize = 100_000;
/// Name of the DHT protocol.
const KAD: StreamProtocol = StreamProtocol::new("/kith/kad/1");
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
}

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

    /// Announces in the DHT that this device provides what `key` stands for, from now on, twice a day, until [`InsideHandle::stop_providing`] or a restart.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn provide(&self, key: [u8; 32]) -> Result<(), Refused> {
        self.command(Command::Provide { key })
    }

    /// Announces a key no longer; others forget it within two days.
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

    /// Cuts off a device that misbehaves, and refuses it for a minute.
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
    kad: kad::Behaviour<MemoryStore>,
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// What one of the behaviours says.
#[derive(Debug)]
enum Happening {
    Streams(StreamsEvent),
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
        let streams = Streams::new(outbox.clone(), runtime::Handle::current(), Who::Devices);
        let shared = streams.shared().clone();
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
            links: HashMap::new(),
        };
        let task = tokio::spawn(task.run(command_queue));
        let handle = InsideHandle {
            device,
            commands,
            streams: shared,
            control,
            task: Arc::new(Mutex::new(Some(task))),
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
    let mut swarm = SwarmBuilder::with_existing_identity(keypair_of(seed))
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .map_err(|source| transport(source.into()))?
        .with_quic()
        .with_behaviour(|keys| {
            let peer = keys.public().to_peer_id();
            let gossip = gossipsub::ConfigBuilder::default()
                .protocol_id_prefix(GOSSIP_PREFIX)
                .validation_mode(ValidationMode::Strict)
                .validate_messages()
                .build()?;
            let mut gossip =
                gossipsub::Behaviour::new(MessageAuthenticity::Signed(keys.clone()), gossip)?;
            gossip.subscribe(topic)?;
            let mut dht = kad::Config::new(KAD);
            dht.set_record_filtering(StoreInserts::FilterBoth);
            let store = MemoryStoreConfig {
                max_records: 0,
                max_provided_keys: PROVIDED_MAX,
                ..MemoryStoreConfig::default()
            };
            let mut dht =
                kad::Behaviour::with_config(peer, MemoryStore::with_config(peer, store), dht);
            dht.set_mode(Some(kad::Mode::Server));
            Ok(Behaviours {
                allowed: allow_block_list::Behaviour::default(),
                limits: connection_limits::Behaviour::new(
                    ConnectionLimits::default()
                        .with_max_pending_incoming(Some(HANDSHAKES_MAX))
                        .with_max_pending_outgoing(Some(HANDSHAKES_MAX))
                        .with_max_established(Some(CONNECTIONS_MAX))
                        .with_max_established_per_peer(Some(CONNECTIONS_PER_DEVICE_MAX)),
                ),
                streams,
                kad: dht,
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
    links: HashMap<ConnectionId, Link>,
}

/// Between which addresses a connection goes.
#[derive(Debug, Clone, Copy)]
struct Link {
    peer: PeerId,
    /// Ours; the system does not tell for connections that we dialled.
    local: Option<IpAddr>,
    remote: Option<IpAddr>,
}

/// A dial on the owner's behalf.
struct Dial {
    under_way: BTreeSet<ConnectionId>,
    /// QUIC addresses, tried when TCP has failed or had its head start.
    later: Vec<Multiaddr>,
}

struct Search {
    token: u64,
    found: BTreeSet<DeviceId>,
}

impl Task {
    async fn run(mut self, commands: mpsc::Receiver<Command>) {
        self.drive(commands).await;
        self.streams.close();
        self.outbox.finish();
    }

    async fn drive(&mut self, mut commands: mpsc::Receiver<Command>) {
        let control = self.control.clone();
        loop {
            let done = tokio::select! {
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
        let allow: BTreeSet<PeerId> = allow.iter().filter_map(peer_of).collect();
        let behaviours = self.swarm.behaviour_mut();
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
        }
        Ok(())
    }

    /// TCP first, QUIC after a head start; whichever comes up first is told.
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
        let known = addrs.is_empty();
        let (first, later): (Vec<_>, Vec<_>) = addrs.into_iter().partition(is_tcp);
        let (first, later) = if first.is_empty() {
            (later, first)
        } else {
            (first, later)
        };
        if !later.is_empty() {
            self.head_starts.push(Box::pin(async move {
                tokio::time::sleep(TCP_HEAD_START).await;
                device
            }));
        }
        let under_way = BTreeSet::new();
        self.dials.insert(device, Dial { under_way, later });
        if known || !first.is_empty() {
            self.attempt(device, peer, first);
        }
        self.settle(device).await
    }

    /// QUIC's turn, unless the dial is over.
    async fn dial_later(&mut self, device: DeviceId) -> Result<(), OwnerGone> {
        let later = self
            .dials
            .get_mut(&device)
            .map(|dial| std::mem::take(&mut dial.later));
        if let Some(later) = later
            && !later.is_empty()
            && let Some(peer) = peer_of(&device)
        {
            self.attempt(device, peer, later);
        }
        self.settle(device).await
    }

    fn attempt(&mut self, device: DeviceId, peer: PeerId, addrs: Vec<Multiaddr>) {
        // From a port of its own: two devices that dial each other from the ports they listen on would open one and the same connection, both as its dialler.
        let opts = if addrs.is_empty() {
            DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .override_dial_concurrency_factor(DIALS_AT_ONCE)
                .allocate_new_port()
                .build()
        } else {
            DialOpts::peer_id(peer)
                .addresses(addrs)
                .condition(PeerCondition::Always)
                .override_dial_concurrency_factor(DIALS_AT_ONCE)
                .allocate_new_port()
                .build()
        };
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                if let Some(dial) = self.dials.get_mut(&device) {
                    dial.under_way.insert(id);
                }
            }
            Err(error) => debug!(peer = %device, %error, "dial not begun"),
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
            SwarmEvent::NewListenAddr { address, .. } => {
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
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.links.remove(&connection_id);
                Ok(())
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
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
        let (local, remote) = match endpoint {
            ConnectedPoint::Listener {
                local_addr,
                send_back_addr,
            } => (ip_of(local_addr), ip_of(send_back_addr)),
            ConnectedPoint::Dialer { address, .. } => (None, ip_of(address)),
        };
        if endpoint.is_listener() && remote.is_some() {
            self.drop_links(|link| {
                link.peer == peer && link.remote.is_some() && link.remote != remote
            });
        }
        let link = Link {
            peer,
            local,
            remote,
        };
        self.links.insert(id, link);
    }

    /// An address of ours is gone, and with it the connections from it. Those we dialled may have left from it: they are dialled again.
    fn moved(&mut self, gone: &Multiaddr) {
        let gone = ip_of(gone);
        if gone.is_none() || self.swarm.listeners().any(|addr| ip_of(addr) == gone) {
            return;
        }
        self.drop_links(|link| match link.local {
            Some(_) => link.local == gone,
            None => link.remote.is_none_or(|remote| !remote.is_loopback()),
        });
    }

    fn drop_links(&mut self, which: impl Fn(&Link) -> bool) {
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
        let Some(device) = peer.as_ref().and_then(device_of) else {
            return Ok(());
        };
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
            Happening::Ping(event) => {
                if let Err(error) = event.result
                    && !matches!(error, ping::Failure::Unsupported)
                {
                    debug!(peer = %event.peer, %error, "device does not answer");
                    self.swarm
                        .behaviour_mut()
                        .streams
                        .lost(event.peer, event.connection);
                    self.swarm.close_connection(event.connection);
                }
                Ok(())
            }
        }
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
                if let Err(error) = self
                    .swarm
                    .behaviour_mut()
                    .kad
                    .store_mut()
                    .add_provider(record)
                {
                    debug!(%error, "provider record not kept");
                }
                Ok(())
            }
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
        let identify::Event::Received { peer_id, info, .. } = event else {
            return Ok(());
        };
        let Some(device) = device_of(&peer_id) else {
            return Ok(());
        };
        let mut addrs = info.listen_addrs;
        addrs.truncate(ADDRESSES_MAX);
        if info.protocols.contains(&KAD) {
            remember(&mut self.swarm.behaviour_mut().kad, &peer_id, &addrs);
        }
        self.outbox
            .notice(NetEvent::Addresses { device, addrs })
            .await
    }
}

fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(ip.into()),
        Some(Protocol::Ip6(ip)) => Some(ip.into()),
        _ => None,
    }
}

/// Puts a device's addresses into the DHT's table, which never forgets one by itself: those it tells now, and of the others the youngest, [`ADDRESSES_MAX`] in all.
fn remember(dht: &mut kad::Behaviour<MemoryStore>, peer: &PeerId, told: &[Multiaddr]) {
    // As the table writes them.
    let told: Vec<Multiaddr> = told
        .iter()
        .filter_map(|addr| addr.clone().with_p2p(*peer).ok())
        .take(ADDRESSES_MAX)
        .collect();
    if told.is_empty() {
        return;
    }
    // As the table has them: the oldest first.
    let known: Vec<Multiaddr> = dht
        .kbucket(*peer)
        .into_iter()
        .flat_map(|bucket| {
            let entry = bucket
                .iter()
                .find(|entry| entry.node.key.preimage() == peer)
                .map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>());
            entry.unwrap_or_default()
        })
        .collect();
    let others = known.iter().filter(|addr| !told.contains(addr));
    let surplus = (others.clone().count() + told.len()).saturating_sub(ADDRESSES_MAX);
    // Before the new ones come; the table drops a device with its last address, and takes it in again with its next.
    for addr in others.take(surplus) {
        dht.remove_address(peer, addr);
    }
    for addr in told {
        dht.add_address(peer, addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u32) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{n}").parse().unwrap()
    }

    fn known(dht: &mut kad::Behaviour<MemoryStore>, peer: PeerId) -> Vec<Multiaddr> {
        let bucket = dht.kbucket(peer).unwrap();
        let entry = bucket
            .iter()
            .find(|entry| *entry.node.key.preimage() == peer)
            .map(|entry| entry.node.value.iter().cloned().collect());
        entry.unwrap_or_default()
    }

    #[test]
    fn addresses_of_a_device_in_the_dht_are_bounded_and_the_newest_stay() {
        let (me, peer) = (PeerId::random(), PeerId::random());
        let mut dht = kad::Behaviour::with_config(me, MemoryStore::new(me), kad::Config::new(KAD));
        for n in 1..500_u32 {
            // Three listeners that move on and on, as a laptop that goes from net to net.
            let told = [addr(3 * n), addr(3 * n + 1), addr(3 * n + 2)];
            remember(&mut dht, &peer, &told);
            let known = known(&mut dht, peer);
            assert!(known.len() <= ADDRESSES_MAX, "{} addresses", known.len());
            let written = told.map(|addr| addr.with_p2p(peer).unwrap());
            assert!(written.iter().all(|addr| known.contains(addr)));
        }
        assert_eq!(known(&mut dht, peer).len(), ADDRESSES_MAX);
        // One that tells more than may be kept.
        let many: Vec<Multiaddr> = (5000..5100).map(addr).collect();
        remember(&mut dht, &peer, &many);
        let kept = known(&mut dht, peer);
        assert_eq!(kept.len(), ADDRESSES_MAX);
        let newest = addr(5000).with_p2p(peer).unwrap();
        assert!(kept.contains(&newest));
        remember(&mut dht, &peer, &[]);
        assert_eq!(known(&mut dht, peer).len(), ADDRESSES_MAX);
    }
}
