//! The swarm in which anybody may ask for public blocks, and in which we ask others for theirs. It knows nothing of the mesh: neither its key nor its ports are the
//! device's.
//!
//! Spec: `protocol/spec/outside.md`, "Swarm".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kith_object::id::DeviceId;
use kith_protocol::exchange::Parts;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, Transport, identify, noise, ping, quic, tcp, yamux};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::debug;
use zeroize::Zeroizing;

use super::event::{NetEvent, NetEvents, Outbox, OwnerGone, queue};
use super::inside::{Refused, StartError};
use super::streams::{SendError, Shared, Streams, StreamsEvent, Who};
use super::unheard::Unheard;
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

    /// Connects to whoever is there; the answer is what it is called here, or why it is not reached.
    pub async fn dial(&self, addr: Multiaddr) -> Result<DeviceId, String> {
        let stopped = || "it was stopped".to_owned();
        let (answer, answered) = oneshot::channel();
        let dial = Command::Dial { addr, answer };
        self.commands.send(dial).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
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
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// Starts the swarm on the current runtime, listening on those addresses, if any.
///
/// # Errors
/// [`StartError`] if an address cannot be listened on.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(
    seed: Zeroizing<[u8; 32]>,
    addrs: &[Multiaddr],
) -> Result<(OutsideHandle, NetEvents), StartError> {
    let (outbox, events) = queue();
    let streams = Streams::new(outbox.clone(), runtime::Handle::current(), Who::Anyone);
    let shared = streams.shared().clone();
    let swarm = swarm(seed, addrs, streams)?;
    let name = swarm.local_peer_id().to_string().into();
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let task = Task {
        swarm,
        outbox,
        streams: shared.clone(),
        dials: BTreeMap::new(),
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
    addrs: &[Multiaddr],
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
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keys.public())
                    .with_agent_version("kith".to_owned()),
            ),
            ping: ping::Behaviour::default(),
        })
        .map_err(|source| transport(source.into()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_MAX))
        .build();
    listen(&mut swarm, addrs)?;
    Ok(swarm)
}

struct Task {
    swarm: Swarm<Behaviours>,
    outbox: Outbox,
    streams: Arc<Shared>,
    dials: BTreeMap<ConnectionId, oneshot::Sender<Result<DeviceId, String>>>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let done = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Dial { addr, answer }) => {
                        self.dial(addr, answer);
                        Ok(())
                    }
                    Some(Command::Stop) | None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event).await,
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
            SwarmEvent::NewListenAddr { address, .. } => {
                self.outbox.notice(NetEvent::Listening(address)).await
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.outbox.notice(NetEvent::NotListening(address)).await
            }
            SwarmEvent::ConnectionEstablished {
                connection_id,
                peer_id,
                ..
            } => {
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
            let tried = tried.iter().map(|(_, error)| error.to_string());
            tried.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}
