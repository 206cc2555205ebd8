//! The swarm in which anybody may ask for public blocks, and in which we ask others for theirs. It knows nothing of the mesh: neither its key nor its ports are the
//! device's.
//!
//! Spec: `protocol/spec/outside.md`, "Swarm".

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kith_object::id::DeviceId;
use kith_protocol::exchange::Parts;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::transport::ListenerId;
use libp2p::kad::{self, GetProvidersOk, InboundRequest, QueryId, QueryResult};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, Transport, identify, noise, ping, quic, tcp, upnp,
    yamux,
};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::debug;
use zeroize::Zeroizing;

use super::event::{NetEvent, NetEvents, Outbox, OwnerGone, queue};
use super::inside::{Refused, StartError};
use super::streams::{SendError, Shared, Streams, StreamsEvent, Who};
use super::unheard::Unheard;
use super::ways::router_asked;
use super::wide::{self, Scope, Strangers};
use super::{Channel, keypair_of, listen};

/// Commands that wait for the swarm.
const COMMANDS_MAX: usize = 256;
/// Connections that others may have with us at once, and of one peer in all.
const INCOMING_MAX: u32 = 50;
const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Handshakes under way in either direction.
const HANDSHAKES_MAX: u32 = 16;
/// How long a connection may stand on which nothing is said, if it was not we who dialled.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Providers that one search connects to.
const PROVIDERS_MAX: usize = 16;
/// Searches under way or waiting for somebody to ask.
const SEARCHES_MAX: usize = 16;
/// Roots that wait to be announced; what is beyond comes with the sweep.
const UNTOLD_MAX: usize = 4096;
/// How often a router that did not answer is asked again.
const ASK_ROUTER_EVERY: Duration = Duration::from_secs(600);
/// What identify says of us. The version of a protocol that all speak who speak of it at all; no version of ours is told.
const IDENTIFY_PROTOCOL: &str = "ipfs/0.1.0";

/// The owner's handle. Calls never block; the swarm ends when its last handle is dropped.
#[derive(Clone)]
pub struct OutsideHandle {
    commands: mpsc::Sender<Command>,
    streams: Arc<Shared>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    name: Arc<str>,
}

#[derive(Debug)]
enum Command {
    Dial {
        addr: Multiaddr,
        answer: oneshot::Sender<Result<DeviceId, String>>,
    },
    Provide([u8; 32]),
    Withdraw([u8; 32]),
    Find {
        digest: [u8; 32],
        answer: oneshot::Sender<Vec<DeviceId>>,
    },
    Stop,
}

impl fmt::Debug for OutsideHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutsideHandle").finish_non_exhaustive()
    }
}

impl OutsideHandle {
    /// The peer id under which others know us there.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether nobody is connected.
    pub fn is_alone(&self) -> bool {
        self.streams.is_alone()
    }

    /// Connects to whoever is there; the answer is what it is called here, or why it is not reached.
    pub async fn dial(&self, addr: Multiaddr) -> Result<DeviceId, String> {
        let stopped = || "it was stopped".to_owned();
        let (answer, answered) = oneshot::channel();
        let dial = Command::Dial { addr, answer };
        self.commands.send(dial).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Says in the DHT, once, that what has this SHA2-256 is here. Nothing without a DHT.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn provide(&self, digest: [u8; 32]) -> Result<(), Refused> {
        let sent = self.commands.try_send(Command::Provide(digest));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Full,
            mpsc::error::TrySendError::Closed(_) => Refused::Stopped,
        })
    }

    /// Says no longer that what has this SHA2-256 is here.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::Stopped`].
    pub fn withdraw(&self, digest: [u8; 32]) -> Result<(), Refused> {
        let sent = self.commands.try_send(Command::Withdraw(digest));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Full,
            mpsc::error::TrySendError::Closed(_) => Refused::Stopped,
        })
    }

    /// Looks in the DHT for who has what has this SHA2-256, and connects to them; those that it is connected with then. Waits for somebody who can be asked.
    pub async fn find(&self, digest: [u8; 32]) -> Vec<DeviceId> {
        let (answer, answered) = oneshot::channel();
        let find = Command::Find { digest, answer };
        if self.commands.send(find).await.is_err() {
            return Vec::new();
        }
        answered.await.unwrap_or_default()
    }

    /// Sends a Bitswap message. Answered by one [`NetEvent::Sent`] or [`NetEvent::Unsent`], unless [`NetEvent::Disconnected`] comes first.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn send(&self, peer: DeviceId, message: Parts) -> Result<(), Refused> {
        let sent = self.streams.send(&peer, Channel::Bitswap, message, 0);
        sent.map_err(|error| match error {
            SendError::NotConnected => Refused::NotConnected,
            SendError::Full => Refused::Full,
            SendError::TooLong => Refused::TooLong,
        })
    }

    /// Cuts off a peer that misbehaves, and refuses it for a minute.
    pub fn disconnect(&self, peer: DeviceId) {
        self.streams.cut(peer);
    }

    /// Stops the swarm and waits until its listeners and connections are closed.
    pub async fn shutdown(&self) {
        let _ = self.commands.send(Command::Stop).await;
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

#[derive(NetworkBehaviour)]
struct Behaviours {
    limits: connection_limits::Behaviour,
    streams: Streams,
    dht: Toggle<kad::Behaviour<Strangers>>,
    router: Toggle<upnp::tokio::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// How the swarm is to be; by default it only dials.
#[derive(Debug, Clone, Default)]
pub struct OutsideConfig {
    /// Where to listen.
    pub addrs: Vec<Multiaddr>,
    /// Which DHT to be in.
    pub dht: Option<Scope>,
    /// Where others reach it, as the owner says: a router forwards a port.
    pub public: Vec<Multiaddr>,
    /// Ask the router for a port, if the DHT is that of all.
    pub router: bool,
}

/// Starts the swarm under that key on the current runtime.
///
/// # Errors
/// [`StartError`] if an address cannot be listened on.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(
    seed: Zeroizing<[u8; 32]>,
    config: &OutsideConfig,
) -> Result<(OutsideHandle, NetEvents), StartError> {
    let (outbox, events) = queue();
    let streams = Streams::new(outbox.clone(), runtime::Handle::current(), Who::Anyone);
    let shared = streams.shared().clone();
    let swarm = swarm(seed, config, streams)?;
    let name = swarm.local_peer_id().to_string().into();
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let task = Task {
        swarm,
        outbox,
        streams: shared.clone(),
        dials: BTreeMap::new(),
        dht: config.dht,
        untold: VecDeque::new(),
        listeners: BTreeMap::new(),
        router_is_silent: false,
        unasked: Vec::new(),
        searches: HashMap::new(),
    };
    let task = tokio::spawn(task.run(command_queue));
    let handle = OutsideHandle {
        commands,
        streams: shared,
        task: Arc::new(Mutex::new(Some(task))),
        name,
    };
    Ok((handle, events))
}

fn swarm(
    seed: Zeroizing<[u8; 32]>,
    config: &OutsideConfig,
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
        .with_other_transport(|keys| {
            let quic = quic::tokio::Transport::new(quic::Config::new(keys));
            quic.map(|(peer, connection), _| (peer, Unheard(connection)))
        })
        .map_err(|source| transport(source.into()))?
        .with_behaviour(|keys| Behaviours {
            limits: connection_limits::Behaviour::new(
                ConnectionLimits::default()
                    .with_max_pending_incoming(Some(HANDSHAKES_MAX))
                    .with_max_pending_outgoing(Some(HANDSHAKES_MAX))
                    .with_max_established_incoming(Some(INCOMING_MAX))
                    .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX)),
            ),
            streams,
            dht: config
                .dht
                .map(|scope| {
                    // Who only asks keeps nothing; in the DHT of all neither does who has no address there, as far as is known.
                    let mut addrs = config.addrs.iter().chain(&config.public);
                    let serves = addrs.any(|addr| scope == Scope::Lan || scope.reaches(addr));
                    wide::behaviour(keys.public().to_peer_id(), scope, serves)
                })
                .into(),
            router: (config.router && config.dht == Some(Scope::Wan))
                .then(upnp::tokio::Behaviour::default)
                .into(),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keys.public())
                    .with_agent_version("kith".to_owned()),
            ),
            ping: ping::Behaviour::default(),
        })
        .map_err(|source| transport(source.into()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_MAX))
        .build();
    listen(&mut swarm, &config.addrs)?;
    for addr in &config.public {
        swarm.add_external_address(addr.clone());
    }
    Ok(swarm)
}

struct Task {
    swarm: Swarm<Behaviours>,
    outbox: Outbox,
    streams: Arc<Shared>,
    dials: BTreeMap<ConnectionId, oneshot::Sender<Result<DeviceId, String>>>,
    dht: Option<Scope>,
    /// What nobody was there to be told of, or not where it is to be had.
    untold: VecDeque<[u8; 32]>,
    listeners: BTreeMap<Multiaddr, ListenerId>,
    router_is_silent: bool,
    /// Searches for which nobody was there to ask.
    unasked: Vec<([u8; 32], oneshot::Sender<Vec<DeviceId>>)>,
    searches: HashMap<QueryId, Search>,
}

/// A search for providers.
struct Search {
    answer: oneshot::Sender<Vec<DeviceId>>,
    /// Who was named, and those of them being dialled.
    named: BTreeSet<PeerId>,
    dials: BTreeSet<ConnectionId>,
    /// The DHT has nothing more to say.
    over: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut ask_router = tokio::time::interval(ASK_ROUTER_EVERY);
        loop {
            let done = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Dial { addr, answer }) => {
                        self.dial(addr, answer);
                        Ok(())
                    }
                    Some(Command::Provide(digest)) => {
                        self.provide(&digest);
                        Ok(())
                    }
                    Some(Command::Withdraw(digest)) => {
                        self.untold.retain(|untold| *untold != digest);
                        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
                            dht.stop_providing(&wide::key_of(&digest));
                        }
                        Ok(())
                    }
                    Some(Command::Find { digest, answer }) => {
                        self.find(digest, answer);
                        Ok(())
                    }
                    Some(Command::Stop) | None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event).await,
                _ = ask_router.tick() => {
                    let router = &mut self.swarm.behaviour_mut().router;
                    if std::mem::take(&mut self.router_is_silent) && router.is_enabled() {
                        *router = Some(router_asked(&self.listeners)).into();
                    }
                    Ok(())
                }
            };
            if done.is_err() {
                break;
            }
        }
        self.streams.close();
        self.outbox.finish();
    }

    fn dial(&mut self, addr: Multiaddr, answer: oneshot::Sender<Result<DeviceId, String>>) {
        let opts = DialOpts::from(addr);
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, answer);
            }
            Err(error) => drop(answer.send(Err(why(&error)))),
        }
    }

    fn provide(&mut self, digest: &[u8; 32]) {
        let has_address = self.swarm.external_addresses().next().is_some();
        let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() else {
            return;
        };
        // Told to nobody, or without a place, it would be as good as not said until the next sweep.
        if !has_address || dht.kbuckets().all(|bucket| bucket.is_empty()) {
            if self.untold.len() >= UNTOLD_MAX {
                self.untold.pop_front();
            }
            self.untold.push_back(*digest);
            return;
        }
        if let Err(error) = dht.start_providing(wide::key_of(digest)) {
            debug!(%error, "public object not announced");
        }
    }

    fn find(&mut self, digest: [u8; 32], answer: oneshot::Sender<Vec<DeviceId>>) {
        let full = self.searches.len() + self.unasked.len() >= SEARCHES_MAX;
        let dht = self.swarm.behaviour_mut().dht.as_mut();
        let Some(dht) = dht.filter(|_| !full) else {
            let _ = answer.send(Vec::new());
            return;
        };
        if dht.kbuckets().all(|bucket| bucket.is_empty()) {
            self.unasked.push((digest, answer));
            return;
        }
        let query = dht.get_providers(wide::key_of(&digest));
        let search = Search {
            answer,
            named: BTreeSet::new(),
            dials: BTreeSet::new(),
            over: false,
        };
        self.searches.insert(query, search);
    }

    /// Somebody is there that can be asked, or there is a place to tell of: what waits has its turn.
    fn go_on(&mut self) {
        for digest in std::mem::take(&mut self.untold) {
            self.provide(&digest);
        }
        for (digest, answer) in std::mem::take(&mut self.unasked) {
            if !answer.is_closed() {
                self.find(digest, answer);
            }
        }
    }

    fn on_dht(&mut self, event: kad::Event) {
        match event {
            // The sender is the provider: kad has checked.
            kad::Event::InboundRequest {
                request:
                    InboundRequest::AddProvider {
                        record: Some(record),
                    },
            } => {
                if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
                    dht.store_mut().keep(std::time::Instant::now(), record);
                }
            }
            kad::Event::RoutingUpdated { .. } => self.go_on(),
            kad::Event::OutboundQueryProgressed {
                id,
                result: QueryResult::GetProviders(result),
                step,
                ..
            } => {
                if let Ok(GetProvidersOk::FoundProviders { providers, .. }) = result {
                    self.named(id, providers);
                }
                if let Some(search) = self.searches.get_mut(&id) {
                    search.over |= step.last;
                }
                self.settle();
            }
            _ => {}
        }
    }

    /// Dials who is said to have what is looked for, as long as the DHT still knows where.
    fn named(&mut self, id: QueryId, providers: impl IntoIterator<Item = PeerId>) {
        let me = *self.swarm.local_peer_id();
        for peer in providers {
            let Some(search) = self.searches.get_mut(&id) else {
                return;
            };
            if peer == me || search.named.len() >= PROVIDERS_MAX || !search.named.insert(peer) {
                continue;
            }
            if self.swarm.is_connected(&peer) {
                continue;
            }
            let opts = DialOpts::peer_id(peer).build();
            let dial = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    search.dials.insert(dial);
                }
                Err(error) => debug!(%peer, %error, "provider not dialled"),
            }
        }
    }

    /// Answers the searches of which all has come that will.
    fn settle(&mut self) {
        let done: Vec<QueryId> = self
            .searches
            .iter()
            .filter(|(_, search)| search.over && search.dials.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            if let Some(search) = self.searches.remove(&id) {
                let there = search.named.iter();
                let there = there.filter(|peer| self.swarm.is_connected(peer));
                let names = there.filter_map(|peer| Who::Anyone.name(peer)).collect();
                let _ = search.answer.send(names);
            }
        }
    }

    fn dialled(&mut self, id: ConnectionId) {
        for search in self.searches.values_mut() {
            search.dials.remove(&id);
        }
        self.settle();
    }

    /// A peer says what it speaks and where it listens.
    fn identified(&mut self, peer: &PeerId, info: &identify::Info) {
        let Some(scope) = self.dht else { return };
        if !info.protocols.contains(&scope.protocol()) {
            return;
        }
        let addrs = info.listen_addrs.iter();
        let addrs: Vec<Multiaddr> = addrs
            .filter(|addr| scope.reaches(addr))
            .take(PROVIDERS_MAX)
            .cloned()
            .collect();
        if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
            for addr in addrs {
                dht.add_address(peer, addr);
            }
        }
        self.go_on();
    }

    async fn on_event(&mut self, event: SwarmEvent<BehavioursEvent>) -> Result<(), OwnerGone> {
        match event {
            SwarmEvent::Behaviour(BehavioursEvent::Streams(event)) => match event {
                StreamsEvent::Connected(newcomer) => {
                    let connected = NetEvent::Connected(newcomer.device());
                    self.outbox.notice(connected).await?;
                    newcomer.announced();
                    Ok(())
                }
                StreamsEvent::Disconnected(peer) => {
                    self.outbox.notice(NetEvent::Disconnected(peer)).await
                }
            },
            SwarmEvent::Behaviour(BehavioursEvent::Dht(event)) => {
                self.on_dht(event);
                Ok(())
            }
            SwarmEvent::Behaviour(BehavioursEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                self.identified(&peer_id, &info);
                Ok(())
            }
            SwarmEvent::Behaviour(BehavioursEvent::Router(event)) => {
                match event {
                    upnp::Event::NewExternalAddr { external_addr, .. } => {
                        if self.dht.is_some_and(|scope| scope.reaches(&external_addr))
                            && let Some(dht) = self.swarm.behaviour_mut().dht.as_mut()
                        {
                            dht.set_mode(Some(kad::Mode::Server));
                        }
                        self.go_on();
                    }
                    upnp::Event::GatewayNotFound | upnp::Event::NonRoutableGateway => {
                        self.router_is_silent = true;
                    }
                    upnp::Event::ExpiredExternalAddr { .. } => {}
                }
                Ok(())
            }
            SwarmEvent::NewListenAddr {
                address,
                listener_id,
            } => {
                self.listeners.insert(address.clone(), listener_id);
                // Providers without addresses are passed over by others.
                if self.dht.is_some_and(|scope| scope.reaches(&address)) {
                    self.swarm.add_external_address(address.clone());
                    self.go_on();
                }
                self.outbox.notice(NetEvent::Listening(address)).await
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listeners.remove(&address);
                self.swarm.remove_external_address(&address);
                self.outbox.notice(NetEvent::NotListening(address)).await
            }
            SwarmEvent::ConnectionEstablished {
                connection_id,
                peer_id,
                ..
            } => {
                self.dialled(connection_id);
                if let Some(answer) = self.dials.remove(&connection_id) {
                    let name = Who::Anyone.name(&peer_id);
                    let _ = answer.send(name.ok_or_else(|| "it has no name".to_owned()));
                }
                Ok(())
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => {
                self.dialled(connection_id);
                if let Some(answer) = self.dials.remove(&connection_id) {
                    let _ = answer.send(Err(why(&error)));
                }
                Ok(())
            }
            SwarmEvent::Behaviour(BehavioursEvent::Ping(ping::Event {
                peer,
                connection,
                result: Err(error),
            })) if !matches!(error, ping::Failure::Unsupported) => {
                debug!(%peer, %error, "peer does not answer");
                let streams = &mut self.swarm.behaviour_mut().streams;
                streams.lost(peer, connection);
                self.swarm.close_connection(connection);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Why a dial failed, in one line.
fn why(error: &DialError) -> String {
    match error {
        DialError::Transport(tried) => {
            let tried = tried.iter().map(|(_, error)| {
                // Some causes have no words.
                let said = error.to_string();
                match said.is_empty() {
                    true => format!("{error:?}"),
                    false => said,
                }
            });
            tried.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}
