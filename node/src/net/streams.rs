//! Messages between two devices: one outgoing stream for each device and channel, reused; any number of incoming ones, read no faster than the owner takes.
//!
//! libp2p only negotiates the streams. Each is then pumped by a task of its own, so that bytes pass neither through the swarm's loop nor through the connection's:
//! an outgoing message goes from the owner's call to the pump's queue, an incoming one from the reader to the owner's queue.
//!
//! Spec: `protocol/spec/net.md`, "Streams".

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{self, Future};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use kith_object::buffer::Buffers;
use kith_object::id::DeviceId;
use kith_protocol::exchange::Parts;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId,
    FromSwarm, NetworkBehaviour, Stream, StreamProtocol, SubstreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::debug;

use super::event::{NetEvent, Outbox, OwnerGone};
use super::frame::{FrameError, MESSAGE_BYTES_MAX, put_prefix, read_prefix};
use super::{Channel, device_of, is_tcp};

/// Open streams a device may have towards us on one connection. An honest one needs two; each may hold 256 KiB unread in the muxer.
const INBOUND_STREAMS_MAX: usize = 64;
/// Bytes of unfinished messages a device may have us hold: two of the largest, so that one is read while the other waits for the owner.
const INBOUND_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// Bytes of unfinished messages that strangers may have us hold, all together, and each of them: one of the largest.
const STRANGERS_BYTES_MAX: usize = 32 << 20;
const STRANGER_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// Bytes of buffers kept for messages to come, of all devices together: those of a few dozen blocks.
const READ_IDLE_BYTES_MAX: usize = 8 << 20;
/// Silence inside a message after which the sender is cut off.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Messages that wait to be written on one channel to one device.
const LANE_MESSAGES_MAX: usize = 4096;
/// Bytes that wait to be written on one channel to one device.
const LANE_BYTES_MAX: usize = 16 << 20;
/// Small messages, and small parts of large ones, are written together up to this much, which is what the muxer puts into one frame.
const BATCH_BYTES: usize = 16 << 10;
/// Time to open and negotiate a stream.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Streams asked of one connection at a time; there are two channels.
const OPEN_REQUESTS_MAX: usize = 4;
/// Time for which a device that broke the rules is not let in again.
const REFUSAL: Duration = Duration::from_secs(60);
/// Names remembered of those that are refused: strangers make new ones as they like.
const REFUSED_MAX: usize = 4096;

/// Who may have streams here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Devices, under their names: both channels, and connections that stay.
    Devices,
    /// Anybody, under a name of our own for each: Bitswap only, and connections that somebody else dialled end when nothing is said.
    Anyone,
}

impl Who {
    fn channels(self) -> &'static [Channel] {
        match self {
            Self::Devices => &Channel::ALL,
            Self::Anyone => &[Channel::Bitswap],
        }
    }

    /// What a peer is called here; `None` for one that may not be here.
    pub(super) fn name(self, peer: &PeerId) -> Option<DeviceId> {
        match self {
            Self::Devices => device_of(peer),
            Self::Anyone => Some(device_of(peer).unwrap_or_else(|| {
                // Of another kind of key: no device is called so, since nobody has a key of which this is the public part.
                DeviceId(blake3::derive_key(STRANGER_DOMAIN, &peer.to_bytes()))
            })),
        }
    }
}

/// Domain of the hash that names peers whose keys are not Ed25519.
const STRANGER_DOMAIN: &str = "kith outside peer 1";

impl Channel {
    const ALL: [Self; 2] = [Self::Bitswap, Self::Sync];

    const fn protocol(self) -> StreamProtocol {
        match self {
            Self::Bitswap => StreamProtocol::new("/ipfs/bitswap/1.2.0"),
            Self::Sync => StreamProtocol::new("/kith/sync/1"),
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendError {
    NotConnected,
    Full,
    TooLong,
}

/// What a device did to be cut off.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Length,
    Empty,
    Stalled,
    Streams,
    /// The owner says so.
    Judged,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) cut: AtomicU64,
}

/// What the behaviour, the handlers, the pumps and the owner's handle share.
#[derive(Debug)]
pub(super) struct Shared {
    peers: Mutex<BTreeMap<DeviceId, Arc<Peer>>>,
    who: Who,
    /// Bytes that the readers of strangers may hold together.
    strangers: Semaphore,
    outbox: Outbox,
    runtime: runtime::Handle,
    /// At most one for each incoming stream, and those are counted; else the owner's word.
    faults: mpsc::UnboundedSender<(DeviceId, Fault)>,
    pub(super) counters: Counters,
    /// For messages that come.
    buffers: Buffers,
    /// Incoming messages whose stream breaks behind the prefix.
    #[cfg(test)]
    pub(super) breaks: AtomicUsize,
}

/// A connected device.
#[derive(Debug)]
struct Peer {
    device: DeviceId,
    /// Its name in libp2p.
    id: PeerId,
    /// Bytes its readers may hold. None until the owner has been told of the device, so that no message comes before.
    inbound: Arc<Semaphore>,
    /// Ends its pumps and readers, wherever they stand.
    ended: watch::Sender<bool>,
    state: Mutex<PeerState>,
}

#[derive(Debug, Default)]
struct PeerState {
    /// No event about this device may follow.
    closed: bool,
    connections: Vec<Connection>,
    lanes: BTreeMap<Channel, Lane>,
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    tcp: bool,
    opens: mpsc::Sender<OpenRequest>,
}

#[derive(Debug)]
struct OpenRequest {
    channel: Channel,
    reply: oneshot::Sender<Result<Stream, OpenError>>,
}

/// Why there is no stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum OpenError {
    /// No connection is left.
    Gone,
    /// The device does not speak the protocol, or not in time.
    Refused,
}

/// The queue of one channel to one device.
#[derive(Debug)]
struct Lane {
    queue: mpsc::Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Outgoing {
    message: Parts,
    token: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks leaves them half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Queues a message.
    pub(super) fn send(
        self: &Arc<Self>,
        device: &DeviceId,
        channel: Channel,
        message: Parts,
        token: u64,
    ) -> Result<(), SendError> {
        let len = message.len_bytes();
        if len == 0 || len > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLong);
        }
        let peer = self.peer(device).ok_or(SendError::NotConnected)?;
        let mut state = locked(&peer.state);
        if state.closed {
            return Err(SendError::NotConnected);
        }
        let lane = state.lanes.entry(channel).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(LANE_MESSAGES_MAX);
            let bytes = Arc::new(AtomicUsize::new(0));
            let pump = Pump {
                shared: self.clone(),
                peer: peer.clone(),
                channel,
                stream: None,
                scratch: Vec::new(),
                waiting: bytes.clone(),
            };
            self.runtime
                .spawn(peer.clone().while_there(pump.run(messages)));
            Lane { queue, bytes }
        });
        if lane.bytes.load(Ordering::Relaxed) + len > LANE_BYTES_MAX {
            return Err(SendError::Full);
        }
        // Counted first: the pump may be done with it before this function is.
        lane.bytes.fetch_add(len, Ordering::Relaxed);
        if lane.queue.try_send(Outgoing { message, token }).is_err() {
            lane.bytes.fetch_sub(len, Ordering::Relaxed);
            return Err(SendError::Full);
        }
        Ok(())
    }

    /// Whether a device is there, as its owner has been or will be told.
    pub(super) fn is_connected(&self, device: &DeviceId) -> bool {
        self.peer(device).is_some()
    }

    /// A stream of its own to a device, to write on it what no honest device would.
    #[cfg(test)]
    pub(super) async fn open(
        &self,
        device: &DeviceId,
        channel: Channel,
    ) -> Result<Stream, OpenError> {
        let peer = self.peer(device).ok_or(OpenError::Gone)?;
        peer.open(channel).await
    }

    /// Whether each connection to a device is over TCP.
    #[cfg(test)]
    pub(super) fn transports(&self, device: &DeviceId) -> Vec<bool> {
        let peer = self.peer(device).expect("the test has connected it");
        let state = locked(&peer.state);
        state
            .connections
            .iter()
            .map(|connection| connection.tcp)
            .collect()
    }

    /// Asks for a device to be cut off and kept out for a while.
    pub(super) fn cut(&self, device: DeviceId) {
        let _ = self.faults.send((device, Fault::Judged));
    }

    /// Ends everything, when the swarm does.
    pub(super) fn close(&self) {
        let peers = std::mem::take(&mut *locked(&self.peers));
        for peer in peers.values() {
            peer.close();
        }
    }

    fn peer(&self, device: &DeviceId) -> Option<Arc<Peer>> {
        locked(&self.peers).get(device).cloned()
    }

    /// Tells the owner about a device, unless its end has been told.
    async fn tell(&self, peer: &Peer, event: NetEvent, len: usize) -> Result<(), OwnerGone> {
        let room = self.outbox.room(len).await?;
        let state = locked(&peer.state);
        if !state.closed {
            self.outbox.push(event, room);
        }
        Ok(())
    }
}

impl Peer {
    fn is_closed(&self) -> bool {
        locked(&self.state).closed
    }

    /// Ends all that concerns the device; no event about it follows.
    fn close(&self) {
        let mut state = locked(&self.state);
        state.closed = true;
        state.lanes.clear();
        state.connections.clear();
        self.inbound.close();
        self.ended.send_replace(true);
    }

    /// Runs a task until it or the device's presence ends; a transport may take its time to break a stream.
    async fn while_there(self: Arc<Self>, task: impl Future<Output = ()>) {
        let mut ended = self.ended.subscribe();
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => {}
            () = task => {}
        }
    }

    /// Opens a stream, on TCP if there is a choice.
    async fn open(&self, channel: Channel) -> Result<Stream, OpenError> {
        loop {
            let (id, opens) = {
                let state = locked(&self.state);
                let best = state
                    .connections
                    .iter()
                    .min_by_key(|connection| (!connection.tcp, connection.id));
                let best = best.ok_or(OpenError::Gone)?;
                (best.id, best.opens.clone())
            };
            let (reply, answer) = oneshot::channel();
            if opens.send(OpenRequest { channel, reply }).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer;
            }
            // That connection has ended, and the swarm has not said so yet.
            locked(&self.state)
                .connections
                .retain(|connection| connection.id != id);
        }
    }
}

/// Writes what is queued on one channel to one device, until the device is gone.
struct Pump {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    channel: Channel,
    stream: Option<Stream>,
    scratch: Vec<u8>,
    waiting: Arc<AtomicUsize>,
}

impl Pump {
    async fn run(mut self, mut messages: mpsc::Receiver<Outgoing>) {
        let mut batch = Vec::new();
        while let Some(first) = messages.recv().await {
            if self.peer.is_closed() {
                return;
            }
            let mut len = first.message.len_bytes();
            batch.push(first);
            while len < BATCH_BYTES
                && let Ok(next) = messages.try_recv()
            {
                len += next.message.len_bytes();
                batch.push(next);
            }
            let written = self.write_or_retry(&batch).await;
            for message in batch.drain(..) {
                if self.report(message, written).await.is_err() {
                    return;
                }
            }
        }
        if let Some(mut stream) = self.stream {
            let _ = stream.close().await;
        }
    }

    /// Writes a batch, once more on a fresh stream if the first broke.
    async fn write_or_retry(&mut self, batch: &[Outgoing]) -> bool {
        for _ in 0..2 {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => match self.peer.open(self.channel).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        debug!(peer = %self.peer.device, channel = ?self.channel, ?error, "no stream");
                        return false;
                    }
                },
            };
            match write(&mut stream, self.channel, batch, &mut self.scratch).await {
                Ok(()) => {
                    self.stream = Some(stream);
                    return true;
                }
                Err(error) => {
                    debug!(peer = %self.peer.device, channel = ?self.channel, %error, "stream broke")
                }
            }
        }
        false
    }

    async fn report(&mut self, message: Outgoing, written: bool) -> Result<(), OwnerGone> {
        let len = message.message.len_bytes();
        self.waiting.fetch_sub(len, Ordering::Relaxed);
        let (peer, channel, token) = (self.peer.device, self.channel, message.token);
        let event = if written {
            let counted = u64::try_from(len).unwrap_or(u64::MAX);
            self.shared
                .counters
                .sent_bytes
                .fetch_add(counted, Ordering::Relaxed);
            NetEvent::Sent {
                peer,
                channel,
                token,
                len,
            }
        } else {
            NetEvent::Unsent {
                peer,
                channel,
                token,
                len,
            }
        };
        self.shared.tell(&self.peer, event, 0).await
    }
}

/// Writes messages, each behind its prefix. Little is copied: of a long part only what shares a frame with what stands before it.
async fn write(
    stream: &mut Stream,
    channel: Channel,
    batch: &[Outgoing],
    scratch: &mut Vec<u8>,
) -> io::Result<()> {
    scratch.clear();
    for message in batch {
        put_prefix(channel, message.message.len_bytes(), scratch);
        for part in message.message.iter() {
            let copied = part.len().min(BATCH_BYTES.saturating_sub(scratch.len()));
            let (head, rest) = part.split_at(copied);
            scratch.extend_from_slice(head);
            if !rest.is_empty() {
                stream.write_all(scratch).await?;
                scratch.clear();
                stream.write_all(rest).await?;
            }
        }
    }
    stream.write_all(scratch).await?;
    stream.flush().await
}

/// Reads one incoming stream to its end and hands its messages to the owner.
async fn read(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    channel: Channel,
    mut stream: Stream,
    _slot: OwnedSemaphorePermit,
) {
    match read_messages(&shared, &peer, channel, &mut stream).await {
        Ok(()) => {}
        Err(Some(fault)) => {
            let _ = shared.faults.send((peer.device, fault));
        }
        Err(None) => debug!(peer = %peer.device, ?channel, "incoming stream broke"),
    }
}

/// As [`read`]; `None` is an end that is nobody's fault.
async fn read_messages(
    shared: &Shared,
    peer: &Peer,
    channel: Channel,
    stream: &mut Stream,
) -> Result<(), Option<Fault>> {
    loop {
        let len = match read_prefix(channel, stream).await {
            Ok(Some(len)) => len,
            Ok(None) => return Ok(()),
            Err(FrameError::Length) => return Err(Some(Fault::Length)),
            Err(FrameError::Read(_)) => return Err(None),
        };
        #[cfg(test)]
        if shared
            .breaks
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok()
        {
            return Err(None);
        }
        if len == 0 {
            match channel {
                // Bitswap peers send an empty message to say nothing.
                Channel::Bitswap => continue,
                Channel::Sync => return Err(Some(Fault::Empty)),
            }
        }
        // Before the buffer exists: this device's share of memory.
        let count = u32::try_from(len).expect("checked against MESSAGE_BYTES_MAX");
        let _share = peer.inbound.acquire_many(count).await.map_err(|_| None)?;
        let _of_all = match shared.who {
            Who::Devices => None,
            Who::Anyone => Some(
                shared
                    .strangers
                    .acquire_many(count)
                    .await
                    .map_err(|_| None)?,
            ),
        };
        let mut buffer = shared.buffers.lend(len);
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..)
            && !rest.is_empty()
        {
            match tokio::time::timeout(STALL_MAX, stream.read(rest)).await {
                Ok(Ok(0)) | Ok(Err(_)) => return Err(None),
                Ok(Ok(count)) => filled += count,
                Err(_) => return Err(Some(Fault::Stalled)),
            }
        }
        shared
            .counters
            .received_bytes
            .fetch_add(u64::from(count), Ordering::Relaxed);
        let event = NetEvent::Received {
            peer: peer.device,
            channel,
            bytes: buffer.freeze(),
        };
        shared
            .tell(peer, event, len)
            .await
            .map_err(|OwnerGone| None)?;
    }
}

/// A device that has come, of which the owner is still to be told, and how many bytes its readers may hold then.
#[derive(Debug)]
pub(super) struct Newcomer(Arc<Peer>, usize);

impl Newcomer {
    pub(super) fn device(&self) -> DeviceId {
        self.0.device
    }

    /// Lets its messages through, once the owner knows of it.
    pub(super) fn announced(self) {
        self.0.inbound.add_permits(self.1);
    }
}

/// A device came or went.
#[derive(Debug)]
pub(super) enum StreamsEvent {
    Connected(Newcomer),
    Disconnected(DeviceId),
}

/// The behaviour: keeps count of connections, hands streams to their tasks, cuts off who breaks the rules.
#[derive(Debug)]
pub(super) struct Streams {
    shared: Arc<Shared>,
    /// Connections that other behaviours may still deny.
    pending: BTreeMap<ConnectionId, (Arc<Peer>, mpsc::Sender<OpenRequest>)>,
    actions: VecDeque<ToSwarm<StreamsEvent, Infallible>>,
    faults: mpsc::UnboundedReceiver<(DeviceId, Fault)>,
    /// Who is not let in, and until when.
    refused: BTreeMap<PeerId, Instant>,
}

/// A device that broke the rules is refused for a minute.
#[derive(Debug, thiserror::Error)]
#[error("cut off a moment ago")]
struct CutOff;

/// The device's name holds no Ed25519 key.
#[derive(Debug, thiserror::Error)]
#[error("not the name of a device")]
struct NotADevice;

impl Streams {
    /// A behaviour whose events go to `outbox` and whose tasks run on `runtime`.
    pub(super) fn new(outbox: Outbox, runtime: runtime::Handle, who: Who) -> Self {
        let (fault_sender, faults) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            peers: Mutex::default(),
            who,
            strangers: Semaphore::new(STRANGERS_BYTES_MAX),
            outbox,
            runtime,
            faults: fault_sender,
            counters: Counters::default(),
            buffers: Buffers::new(READ_IDLE_BYTES_MAX),
            #[cfg(test)]
            breaks: AtomicUsize::new(0),
        });
        Self {
            shared,
            pending: BTreeMap::new(),
            actions: VecDeque::new(),
            faults,
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Says at once that a device is gone, whatever its connections still do.
    pub(super) fn close(&mut self, peer: PeerId) {
        let Some(device) = self.shared.who.name(&peer) else {
            return;
        };
        let known = locked(&self.shared.peers).remove(&device);
        if let Some(known) = known {
            known.close();
            self.actions
                .push_back(ToSwarm::GenerateEvent(StreamsEvent::Disconnected(device)));
            self.actions.push_back(ToSwarm::CloseConnection {
                peer_id: peer,
                connection: CloseConnection::All,
            });
        }
    }

    /// Forgets a connection that has ended, or answers no more: closing it may take as long as the transport likes.
    pub(super) fn lost(&mut self, peer: PeerId, id: ConnectionId) {
        let device = self.shared.who.name(&peer);
        let known = device.and_then(|device| self.shared.peer(&device));
        let Some(known) = known else { return };
        let last = {
            let mut state = locked(&known.state);
            state.connections.retain(|connection| connection.id != id);
            state.connections.is_empty()
        };
        if last {
            self.close(peer);
        }
    }

    fn admit(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        dialled: bool,
    ) -> Result<Handler, ConnectionDenied> {
        let now = Instant::now();
        self.refused.retain(|_, until| *until > now);
        if self.refused.contains_key(&peer) {
            return Err(ConnectionDenied::new(CutOff));
        }
        let name = self.shared.who.name(&peer);
        let device = name.ok_or_else(|| ConnectionDenied::new(NotADevice))?;
        let known = self.shared.peer(&device).unwrap_or_else(|| {
            Arc::new(Peer {
                device,
                id: peer,
                inbound: Arc::new(Semaphore::new(0)),
                ended: watch::Sender::new(false),
                state: Mutex::default(),
            })
        });
        let (opens, requests) = mpsc::channel(OPEN_REQUESTS_MAX);
        self.pending.insert(id, (known.clone(), opens));
        Ok(Handler {
            shared: self.shared.clone(),
            peer: known,
            stays: dialled || self.shared.who == Who::Devices,
            requests,
            slots: Arc::new(Semaphore::new(INBOUND_STREAMS_MAX)),
        })
    }

    fn established(&mut self, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some((peer, opens)) = self.pending.remove(&id) else {
            return;
        };
        locked(&peer.state).connections.push(Connection {
            id,
            tcp: is_tcp(endpoint.get_remote_address()),
            opens,
        });
        let known = locked(&self.shared.peers).insert(peer.device, peer.clone());
        if known.is_none() {
            let share = match self.shared.who {
                Who::Devices => INBOUND_BYTES_MAX,
                Who::Anyone => STRANGER_BYTES_MAX,
            };
            let newcomer = Newcomer(peer, share);
            self.actions
                .push_back(ToSwarm::GenerateEvent(StreamsEvent::Connected(newcomer)));
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = StreamsEvent;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, false)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, true)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                connection_id,
                endpoint,
                ..
            }) => self.established(connection_id, endpoint),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                connection_id,
                peer_id,
                ..
            }) => self.lost(peer_id, connection_id),
            FromSwarm::DialFailure(failure) => {
                self.pending.remove(&failure.connection_id);
            }
            FromSwarm::ListenFailure(failure) => {
                self.pending.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            let Poll::Ready(Some((device, fault))) = self.faults.poll_recv(cx) else {
                return Poll::Pending;
            };
            // Several of its streams may have found fault with one device.
            let Some(peer) = self.shared.peer(&device).map(|peer| peer.id) else {
                continue;
            };
            debug!(peer = %device, ?fault, "device cut off");
            self.shared.counters.cut.fetch_add(1, Ordering::Relaxed);
            if self.refused.len() >= REFUSED_MAX {
                let first = self.refused.iter().min_by_key(|(_, until)| **until);
                let first = first.map(|(peer, _)| *peer);
                first.and_then(|first| self.refused.remove(&first));
            }
            self.refused.insert(peer, Instant::now() + REFUSAL);
            self.close(peer);
        }
    }
}

/// One connection's end of [`Streams`].
#[derive(Debug)]
pub(super) struct Handler {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    stays: bool,
    requests: mpsc::Receiver<OpenRequest>,
    slots: Arc<Semaphore>,
}

/// Offers or asks for channels; yields the stream with the channel that was agreed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speaks(&'static [Channel]);

/// A channel under the name it has on the wire.
#[derive(Debug, Clone)]
pub(super) struct Spoken(Channel, StreamProtocol);

impl AsRef<str> for Spoken {
    fn as_ref(&self) -> &str {
        self.1.as_ref()
    }
}

impl UpgradeInfo for Speaks {
    type Info = Spoken;
    type InfoIter = Vec<Spoken>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0
            .iter()
            .map(|channel| Spoken(*channel, channel.protocol()))
            .collect()
    }
}

impl InboundUpgrade<Stream> for Speaks {
    type Output = (Channel, Stream);
    type Error = Infallible;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, spoken: Spoken) -> Self::Future {
        future::ready(Ok((spoken.0, stream)))
    }
}

impl OutboundUpgrade<Stream> for Speaks {
    type Output = Stream;
    type Error = Infallible;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, _: Spoken) -> Self::Future {
        future::ready(Ok(stream))
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Speaks;
    type OutboundProtocol = Speaks;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, OpenError>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(Speaks(self.shared.who.channels()), ()).with_timeout(OPEN_WAIT)
    }

    /// Devices of one mesh stay connected: only the allow-list, a fault or the network parts them. So does whomever we dialled.
    fn connection_keep_alive(&self) -> bool {
        self.stays
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<
        ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>,
    > {
        let Poll::Ready(Some(request)) = self.requests.poll_recv(cx) else {
            return Poll::Pending;
        };
        let speaks = match request.channel {
            Channel::Bitswap => Speaks(&[Channel::Bitswap]),
            Channel::Sync => Speaks(&[Channel::Sync]),
        };
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(speaks, request.reply).with_timeout(OPEN_WAIT),
        })
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (channel, stream),
                ..
            }) => {
                let Ok(slot) = self.slots.clone().try_acquire_owned() else {
                    let _ = self.shared.faults.send((self.peer.device, Fault::Streams));
                    return;
                };
                let reader = read(
                    self.shared.clone(),
                    self.peer.clone(),
                    channel,
                    stream,
                    slot,
                );
                self.shared
                    .runtime
                    .spawn(self.peer.clone().while_there(reader));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: reply,
            }) => {
                let _ = reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, .. }) => {
                let _ = reply.send(Err(OpenError::Refused));
            }
            _ => {}
        }
    }
}
