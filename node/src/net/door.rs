//! The listener that strangers may knock at: a swarm of its own, under a key of its own, with one protocol.
//!
//! It moves frames and keeps time; what is said on a [`DoorStream`] is the owner's.
//!
//! Spec: `protocol/spec/net.md`, "Door".

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::num::NonZeroU8;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use kith_object::id::DeviceId;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialError,
    FromSwarm, NetworkBehaviour, Stream, StreamProtocol, SubstreamProtocol, SwarmEvent, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::debug;
use zeroize::Zeroizing;

use super::inside::StartError;
use super::{keypair_of, peer_of};

/// Connections at once; a person lets in one device at a time, and eight strangers cost next to nothing.
pub const KNOCKS_MAX: usize = 8;
/// Time a stranger has from its stream's opening to the end of its proof.
pub const PROOF_WAIT: Duration = Duration::from_secs(10);
/// Bytes a stranger may send before its proof, prefixes included.
pub const PROOF_BYTES_MAX: usize = 16 << 10;
/// Longest frame after the proof.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Time for the whole of a frame that we send: a stranger that does not read holds nothing up.
const SEND_WAIT: Duration = Duration::from_secs(60);
/// Time that a close waits for the other side to have read everything.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Time to reach a door: connection, handshake and stream.
const KNOCK_WAIT: Duration = Duration::from_secs(10);
/// A connection without a stream is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Addresses of one door that are tried.
const ADDRESSES_MAX: usize = 8;
/// Bytes before each frame.
const PREFIX_BYTES: usize = 4;
/// Name of the protocol.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/kith/door/1");

/// A door; a namespace for [`Door::start`].
#[derive(Debug)]
pub struct Door;

/// Keeps a door open; dropping it closes the door and cuts its streams.
#[derive(Debug)]
pub struct DoorHandle {
    /// The door's key, which tickets carry.
    key: DeviceId,
    _open: oneshot::Sender<Infallible>,
}

/// What happens at the door.
#[derive(Debug)]
pub enum DoorEvent {
    /// Somebody may knock at this address.
    Listening(Multiaddr),
    /// Somebody knocks.
    Knock(Box<DoorStream>),
}

/// The owner's side of a door.
#[derive(Debug)]
pub struct DoorEvents {
    queue: mpsc::Receiver<DoorEvent>,
}

/// Frames both ways between a door and one that knocks: a little-endian u32 length, then that many bytes.
///
/// It is strict with a stranger: until [`DoorStream::proven`], all of [`PROOF_BYTES_MAX`] and [`PROOF_WAIT`] count for everything together. The side that knocks
/// is under the same rule, since what answers may be no door of ours.
#[derive(Debug)]
pub struct DoorStream {
    /// Binary peer id of our side: of the door's key, or of the key made for this knock.
    pub local_peer: Vec<u8>,
    /// Binary peer id of the other side, proven by the transport's handshake.
    pub remote_peer: Vec<u8>,
    stream: Stream,
    allowance: Allowance,
    partial: Partial,
    /// Ends the swarm that carries a knock.
    _open: Option<oneshot::Sender<Infallible>>,
}

#[derive(Debug)]
enum Allowance {
    /// Before the proof.
    Stranger { until: Instant, bytes_left: usize },
    /// After it: time for one frame to come.
    Proven { wait: Duration },
}

/// A frame that has come in part, so that a cancelled [`DoorStream::recv`] loses nothing.
#[derive(Debug, Default)]
struct Partial {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of prefix and body that have come.
    filled: usize,
    body: Vec<u8>,
}

/// Why a frame was not received or sent.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The other side closed its half, between two frames.
    #[error("the other side has closed the door")]
    Closed,
    /// No frame in time.
    #[error("the other side took too long")]
    Late,
    /// A frame, or all frames before the proof, over the limit.
    #[error("frame over the limit")]
    TooLong,
    /// The connection broke.
    #[error("the connection at the door broke")]
    Broken { source: io::Error },
}

/// Why a knock was not answered.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// Neither address could be connected to.
    #[error("reach the door")]
    Unreachable {
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Connected, but no door opened in time, or there is none.
    #[error("nobody answers at the door")]
    Silent,
    /// Something else than the door that was sought answered there.
    #[error("another door stands at that address")]
    AnotherDoor,
    /// The transports could not be set up.
    #[error("set up transport")]
    Transport {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Door {
    /// Starts listening on the current tokio runtime, under the key of that Ed25519 seed, which should be no device's.
    ///
    /// # Errors
    /// [`StartError`] if an address cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        seed: Zeroizing<[u8; 32]>,
        listen: &[Multiaddr],
    ) -> Result<(DoorHandle, DoorEvents), StartError> {
        let limit = u32::try_from(KNOCKS_MAX).expect("8 fits");
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(limit))
            .with_max_established(Some(limit))
            .with_max_established_outgoing(Some(0));
        let mut swarm =
            swarm(seed, limits, false).map_err(|source| StartError::Transport { source })?;
        super::listen(&mut swarm, listen)?;
        let key = super::device_of(swarm.local_peer_id()).expect("the key is Ed25519");
        let (sender, queue) = mpsc::channel(KNOCKS_MAX);
        let (open, closed) = oneshot::channel();
        tokio::spawn(serve(swarm, sender, closed));
        Ok((DoorHandle { key, _open: open }, DoorEvents { queue }))
    }
}

impl DoorHandle {
    /// The door's public key. It names no device; the type is that of any Ed25519 name of libp2p.
    pub fn key(&self) -> DeviceId {
        self.key
    }
}

impl DoorEvents {
    /// The next event; `None` once the door is closed. Cancel safe.
    pub async fn recv(&mut self) -> Option<DoorEvent> {
        self.queue.recv().await
    }
}

async fn serve(
    mut swarm: Swarm<Behaviours>,
    events: mpsc::Sender<DoorEvent>,
    mut closed: oneshot::Receiver<Infallible>,
) {
    let local_peer = swarm.local_peer_id().to_bytes();
    loop {
        let event = tokio::select! {
            _ = &mut closed => return,
            event = swarm.select_next_some() => event,
        };
        let event = match event {
            SwarmEvent::NewListenAddr { address, .. } => DoorEvent::Listening(address),
            SwarmEvent::Behaviour(BehavioursEvent::Streams(Outcome {
                peer,
                stream: Some(stream),
            })) => DoorEvent::Knock(Box::new(DoorStream::new(
                local_peer.clone(),
                peer,
                stream,
                None,
            ))),
            _ => continue,
        };
        match events.try_send(event) {
            Ok(()) => {}
            // More knocks than the limit of connections cannot wait unless the owner has stopped looking.
            Err(mpsc::error::TrySendError::Full(_)) => debug!("knock not heard"),
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

/// Knocks at a door under a key made of `seed` for this once. All addresses are tried at a time. Without `door` whatever answers is taken, and the caller has to
/// find out by what it proves.
///
/// # Errors
/// [`KnockError`].
///
/// # Panics
/// Outside a tokio runtime.
pub async fn knock(
    seed: Zeroizing<[u8; 32]>,
    addrs: &[Multiaddr],
    door: Option<DeviceId>,
) -> Result<DoorStream, KnockError> {
    let limits = ConnectionLimits::default().with_max_established_incoming(Some(0));
    let mut swarm = swarm(seed, limits, true).map_err(|source| KnockError::Transport { source })?;
    let until = Instant::now() + KNOCK_WAIT;
    let addrs: Vec<Multiaddr> = addrs.iter().take(ADDRESSES_MAX).cloned().collect();
    let door = match door {
        Some(door) => Some(peer_of(&door).ok_or(KnockError::AnotherDoor)?),
        None => None,
    };
    let mut dials = 0_usize;
    let mut failure = None;
    for opts in dial_opts(addrs, door) {
        match swarm.dial(opts) {
            Ok(()) => dials += 1,
            Err(error) => failure = Some(knock_error(error)),
        }
    }
    let local_peer = swarm.local_peer_id().to_bytes();
    let mut connected = false;
    while dials > 0 {
        let Ok(event) = tokio::time::timeout_at(until, swarm.select_next_some()).await else {
            failure = Some(if connected {
                KnockError::Silent
            } else {
                KnockError::Unreachable { source: None }
            });
            break;
        };
        match event {
            SwarmEvent::Behaviour(BehavioursEvent::Streams(Outcome {
                peer,
                stream: Some(stream),
            })) => {
                let (open, closed) = oneshot::channel();
                tokio::spawn(carry(swarm, closed));
                return Ok(DoorStream::new(local_peer, peer, stream, Some(open)));
            }
            SwarmEvent::Behaviour(BehavioursEvent::Streams(Outcome { stream: None, .. })) => {
                failure = Some(KnockError::Silent);
                dials -= 1;
            }
            SwarmEvent::ConnectionEstablished { .. } => connected = true,
            SwarmEvent::ConnectionClosed { .. } => {
                failure = Some(KnockError::Silent);
                dials -= 1;
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => {
                failure = Some(knock_error(error));
                dials -= 1;
            }
            _ => {}
        }
    }
    Err(failure.unwrap_or(KnockError::Unreachable { source: None }))
}

fn dial_opts(addrs: Vec<Multiaddr>, door: Option<PeerId>) -> Vec<DialOpts> {
    match door {
        Some(door) => vec![
            DialOpts::peer_id(door)
                .addresses(addrs)
                .override_dial_concurrency_factor(NonZeroU8::new(8).expect("8 is not zero"))
                .build(),
        ],
        None => addrs
            .into_iter()
            .map(|addr| DialOpts::unknown_peer_id().address(addr).build())
            .collect(),
    }
}

fn knock_error(error: DialError) -> KnockError {
    match error {
        DialError::WrongPeerId { .. } => KnockError::AnotherDoor,
        error => KnockError::Unreachable {
            source: Some(Box::new(error)),
        },
    }
}

/// Drives the swarm of a knock for as long as its stream lives.
async fn carry(mut swarm: Swarm<Behaviours>, mut closed: oneshot::Receiver<Infallible>) {
    loop {
        tokio::select! {
            _ = &mut closed => return,
            _ = swarm.select_next_some() => {}
        }
    }
}

impl DoorStream {
    fn new(
        local_peer: Vec<u8>,
        remote_peer: PeerId,
        stream: Stream,
        open: Option<oneshot::Sender<Infallible>>,
    ) -> Self {
        Self {
            local_peer,
            remote_peer: remote_peer.to_bytes(),
            stream,
            allowance: Allowance::Stranger {
                until: Instant::now() + PROOF_WAIT,
                bytes_left: PROOF_BYTES_MAX,
            },
            partial: Partial::default(),
            _open: open,
        }
    }

    /// The other side has proven what it had to: from now on frames may be [`FRAME_BYTES_MAX`] long and each may take `wait` to come, which may be minutes
    /// while a person compares codes.
    pub fn proven(&mut self, wait: Duration) {
        self.allowance = Allowance::Proven { wait };
    }

    /// The bare stream, to break rules on it.
    #[cfg(test)]
    pub(super) fn raw(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Lets the time before the proof run out.
    #[cfg(test)]
    pub(super) fn expire(&mut self) {
        self.allowance = Allowance::Stranger {
            until: Instant::now(),
            bytes_left: 0,
        };
    }

    /// The next frame. Cancel safe: what has come of a frame is kept for the next call.
    ///
    /// # Errors
    /// [`DoorError`]; after any but a cancelled call the stream is of no more use.
    pub async fn recv(&mut self) -> Result<Bytes, DoorError> {
        let until = match self.allowance {
            Allowance::Stranger { until, .. } => until,
            Allowance::Proven { wait } => Instant::now() + wait,
        };
        match tokio::time::timeout_at(until, self.fill()).await {
            Ok(done) => done?,
            Err(_) => return Err(DoorError::Late),
        }
        Ok(Bytes::from(std::mem::take(&mut self.partial).body))
    }

    /// Reads until the frame is whole.
    async fn fill(&mut self) -> Result<(), DoorError> {
        let broken = |source| DoorError::Broken { source };
        while let Some(rest) = self.partial.prefix.get_mut(self.partial.filled..)
            && !rest.is_empty()
        {
            let count = self.stream.read(rest).await.map_err(broken)?;
            if count == 0 {
                let between = self.partial.filled == 0;
                return Err(if between {
                    DoorError::Closed
                } else {
                    broken(io::ErrorKind::UnexpectedEof.into())
                });
            }
            self.partial.filled += count;
            if self.partial.filled == PREFIX_BYTES {
                // Before the buffer exists.
                let len = usize::try_from(u32::from_le_bytes(self.partial.prefix))
                    .map_err(|_| DoorError::TooLong)?;
                self.spend(len)?;
                self.partial.body = vec![0; len];
            }
        }
        while let Some(rest) = self
            .partial
            .body
            .get_mut(self.partial.filled.saturating_sub(PREFIX_BYTES)..)
            && !rest.is_empty()
        {
            let count = self.stream.read(rest).await.map_err(broken)?;
            if count == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.partial.filled += count;
        }
        Ok(())
    }

    /// Takes a frame of that length off what the other side may send.
    fn spend(&mut self, len: usize) -> Result<(), DoorError> {
        match &mut self.allowance {
            Allowance::Stranger { bytes_left, .. } => {
                let cost = len.checked_add(PREFIX_BYTES).ok_or(DoorError::TooLong)?;
                *bytes_left = bytes_left.checked_sub(cost).ok_or(DoorError::TooLong)?;
                Ok(())
            }
            Allowance::Proven { .. } if len > FRAME_BYTES_MAX => Err(DoorError::TooLong),
            Allowance::Proven { .. } => Ok(()),
        }
    }

    /// Sends a frame of at most [`FRAME_BYTES_MAX`]. Not cancel safe.
    ///
    /// # Errors
    /// [`DoorError`]; after it the stream is of no more use.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), DoorError> {
        let len = u32::try_from(frame.len()).map_err(|_| DoorError::TooLong)?;
        if frame.len() > FRAME_BYTES_MAX {
            return Err(DoorError::TooLong);
        }
        let stream = &mut self.stream;
        let write = async {
            let mut bytes = Vec::with_capacity(PREFIX_BYTES + frame.len());
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(frame);
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        match tokio::time::timeout(SEND_WAIT, write).await {
            Ok(done) => done.map_err(|source| DoorError::Broken { source }),
            Err(_) => Err(DoorError::Late),
        }
    }

    /// Says that no frame follows, and waits up to 10 s until the other side has read all and closed in its turn. Dropping a stream instead may lose the last
    /// frame sent.
    pub async fn close(mut self) {
        let stream = &mut self.stream;
        let close = async {
            stream.close().await?;
            let mut late = [0; 64];
            while stream.read(&mut late).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        if tokio::time::timeout(CLOSE_WAIT, close).await.is_err() {
            debug!("the other side did not close the door");
        }
    }
}

#[derive(NetworkBehaviour)]
struct Behaviours {
    limits: connection_limits::Behaviour,
    streams: Streams,
}

fn swarm(
    seed: Zeroizing<[u8; 32]>,
    limits: ConnectionLimits,
    knocks: bool,
) -> Result<Swarm<Behaviours>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(SwarmBuilder::with_existing_identity(keypair_of(seed))
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_behaviour(|_| Behaviours {
            limits: connection_limits::Behaviour::new(limits),
            streams: Streams {
                knocks,
                outcomes: VecDeque::new(),
            },
        })?
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_MAX)
                .with_max_negotiating_inbound_streams(2)
        })
        .build())
}

/// One stream for each connection, and no more.
#[derive(Debug)]
struct Streams {
    /// Whether we open it, or the other side.
    knocks: bool,
    outcomes: VecDeque<Outcome>,
}

/// What became of a connection's stream.
#[derive(Debug)]
struct Outcome {
    peer: PeerId,
    stream: Option<Stream>,
}

impl Streams {
    fn handler(&self) -> Handler {
        Handler {
            opens: self.knocks,
            answers: !self.knocks,
            outcome: None,
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Outcome;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        stream: THandlerOutEvent<Self>,
    ) {
        self.outcomes.push_back(Outcome { peer, stream });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.outcomes.pop_front() {
            Some(outcome) => Poll::Ready(ToSwarm::GenerateEvent(outcome)),
            None => Poll::Pending,
        }
    }
}

/// One connection's end of [`Streams`].
#[derive(Debug)]
struct Handler {
    /// Whether to ask for the stream, once.
    opens: bool,
    /// Whether to take one, once; a second is dropped.
    answers: bool,
    outcome: Option<Option<Stream>>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Option<Stream>;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ()).with_timeout(PROOF_WAIT)
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<
        ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>,
    > {
        if let Some(outcome) = self.outcome.take() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(outcome));
        }
        if std::mem::take(&mut self.opens) {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
                    .with_timeout(KNOCK_WAIT),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) if std::mem::take(&mut self.answers) => self.outcome = Some(Some(stream)),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                ..
            }) => self.outcome = Some(Some(stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { .. }) => self.outcome = Some(None),
            _ => {}
        }
    }
}
