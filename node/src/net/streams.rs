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
/// Small messages, and small parts of large ones, are written together up to this much, which goes in one frame.
const BATCH_BYTES: usize = 16 << 10;
/// Time to open and negotiate a stream.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Streams asked of one connection at a time; there are two channels.
const OPEN_REQUESTS_MAX: usize = 4;
/// Time for which a device that broke the rules is not let in again; twice as long each further time, up to [`REFUSAL_MAX`].
const REFUSAL: Duration = Duration::from_secs(60);
const REFUSAL_MAX: Duration = Duration::from_secs(3600);
/// Time after which a device that kept to the rules since is taken for one that always did.
const FORGIVEN: Duration = Duration::from_secs(24 * 3600);
/// Names remembered of those that broke the rules: strangers make new ones as they like.
const REFUSED_MAX: usize = 4096;

/// Streams of [`Raw`] kinds that a device may have towards us on one connection.
const RAW_STREAMS_MAX: usize = 64;
/// Those that we open towards a device at a time: half of it, since the other side is done with one a moment later.
const RAW_OUT_MAX: usize = RAW_STREAMS_MAX / 2;
/// Streams of others that nobody has taken yet, of all devices together.
const RAW_WAITING_MAX: usize = 256;

/// Protocols whose streams are handed to the owner as they are: a request, then its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// Ranges of packs.
    Packs,
    /// Where blocks lie.
    Where,
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Messages(Channel),
    Raw(Raw),
}

impl Use {
    const fn protocol(self) -> StreamProtocol {
        match self {
            Self::Messages(channel) => channel.protocol(),
            Self::Raw(Raw::Packs) => StreamProtocol::new("/iroh-bytes/4"),
            Self::Raw(Raw::Where) => StreamProtocol::new("/kith/where/1"),
        }
    }
}

/// Who may have streams here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Devices, under their names: both channels, and connections that stay.
    Devices,
    /// Anybody, under a name of our own for each: Bitswap only, and connections that somebody else dialled end when nothing is said.
    Anyone,
}

impl Who {
    fn uses(self) -> &'static [Use] {
        match self {
            Self::Devices => &[
                Use::Messages(Channel::Bitswap),
                Use::Messages(Channel::Sync),
                Use::Raw(Raw::Packs),
                Use::Raw(Raw::Where),
            ],
            Self::Anyone => &[Use::Messages(Channel::Bitswap)],
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
    /// Streams of others that the owner is to take.
    raw: mpsc::Sender<RawStream>,
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
    /// As many as there are raw streams we may open towards it.
    raw_turns: Arc<Semaphore>,
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
    relayed: bool,
    opens: mpsc::Sender<OpenRequest>,
    /// As many as there are incoming streams are taken.
    slots: Arc<Semaphore>,
    raw_slots: Arc<Semaphore>,
    /// Held by each raw stream that we opened on it.
    raw_out: Arc<()>,
}

/// How well a connection carries messages: without a relay, then by TCP.
type Rank = (bool, bool);

impl Connection {
    fn rank(&self) -> Rank {
        (self.relayed, !self.tcp)
    }
}

#[derive(Debug)]
struct OpenRequest {
    wanted: Use,
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
    /// On which connection its stream is.
    on: Option<ConnectionId>,
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
            Lane {
                queue,
                bytes,
                on: None,
            }
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

    /// Who is connected.
    pub(super) fn connected(&self) -> Vec<DeviceId> {
        locked(&self.peers).keys().copied().collect()
    }

    /// Whether nobody is connected.
    pub(super) fn is_alone(&self) -> bool {
        locked(&self.peers).is_empty()
    }

    /// Whether messages pass over that connection, or may.
    pub(super) fn is_used(&self, peer: &PeerId, id: ConnectionId) -> bool {
        let device = self.who.name(peer);
        let Some(peer) = device.and_then(|device| self.peer(&device)) else {
            return false;
        };
        let state = locked(&peer.state);
        let sends = state.lanes.values().any(|lane| lane.on == Some(id));
        let receives = state.connections.iter().any(|connection| {
            connection.id == id
                && (connection.slots.available_permits() < INBOUND_STREAMS_MAX
                    || connection.raw_slots.available_permits() < RAW_STREAMS_MAX
                    || Arc::strong_count(&connection.raw_out) > 1)
        });
        sends || receives
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
        let opened = peer.open(Use::Messages(channel)).await;
        opened.map(|(stream, _, _)| stream)
    }

    /// A stream of its own to a device.
    pub(super) async fn open_raw(
        self: &Arc<Self>,
        device: &DeviceId,
        raw: Raw,
    ) -> Result<RawStream, OpenError> {
        let peer = self.peer(device).ok_or(OpenError::Gone)?;
        let turn = peer.raw_turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| OpenError::Gone)?;
        let (stream, _, held) = peer.open(Use::Raw(raw)).await?;
        Ok(RawStream {
            device: *device,
            raw,
            stream,
            ended: peer.ended.subscribe(),
            shared: self.clone(),
            _slot: turn,
            _held: Some(held),
        })
    }

    /// Whether messages to a device go over TCP.
    #[cfg(test)]
    pub(super) fn sends_by_tcp(&self, device: &DeviceId, channel: Channel) -> bool {
        let peer = self.peer(device).expect("the test has connected it");
        let state = locked(&peer.state);
        let on = state.lanes.get(&channel).and_then(|lane| lane.on);
        let mut connections = state.connections.iter();
        connections.any(|connection| Some(connection.id) == on && connection.tcp)
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
        self.raw_turns.close();
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

    /// Whether there is a connection that carries messages better than one of that rank.
    fn has_better(&self, rank: Rank) -> bool {
        let state = locked(&self.state);
        let mut ranks = state.connections.iter().map(Connection::rank);
        ranks.any(|other| other < rank)
    }

    /// Opens a stream on the connection that carries messages best.
    async fn open(&self, wanted: Use) -> Result<(Stream, Rank, Arc<()>), OpenError> {
        loop {
            let (id, rank, opens, held) = {
                let state = locked(&self.state);
                let best = state
                    .connections
                    .iter()
                    .min_by_key(|connection| (connection.rank(), connection.id));
                let best = best.ok_or(OpenError::Gone)?;
                let held = best.raw_out.clone();
                (best.id, best.rank(), best.opens.clone(), held)
            };
            let (reply, answer) = oneshot::channel();
            if opens.send(OpenRequest { wanted, reply }).await.is_ok()
                && let Ok(answer) = answer.await
            {
                if let Use::Messages(channel) = wanted
                    && let Some(lane) = locked(&self.state).lanes.get_mut(&channel)
                {
                    lane.on = Some(id);
                }
                return answer.map(|stream| (stream, rank, held));
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
    stream: Option<(Stream, Rank)>,
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
        if let Some((mut stream, _)) = self.stream {
            let _ = stream.close().await;
        }
    }

    /// Leaves a stream whose connection is not the best any more: one over TCP has come since, or one without a relay.
    fn move_on(&mut self) {
        let better = |(_, rank): &(Stream, Rank)| self.peer.has_better(*rank);
        if self.stream.as_ref().is_some_and(better)
            && let Some((mut stream, _)) = self.stream.take()
        {
            // What was written arrives all the same, however long that takes on a slow one.
            self.shared.runtime.spawn(async move {
                let _ = tokio::time::timeout(STALL_MAX, stream.close()).await;
            });
        }
    }

    /// Writes a batch, once more on a fresh stream if the first broke.
    async fn write_or_retry(&mut self, batch: &[Outgoing]) -> bool {
        self.move_on();
        for _ in 0..2 {
            let (mut stream, rank) = match self.stream.take() {
                Some(stream) => stream,
                None => match self.peer.open(Use::Messages(self.channel)).await {
                    Ok((stream, rank, _)) => (stream, rank),
                    Err(error) => {
                        debug!(peer = %self.peer.device, channel = ?self.channel, ?error, "no stream");
                        return false;
                    }
                },
            };
            match write(&mut stream, self.channel, batch, &mut self.scratch).await {
                Ok(()) => {
                    self.stream = Some((stream, rank));
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

/// A stream that the owner reads and writes: one message each way, each ended by closing.
#[derive(Debug)]
pub struct RawStream {
    device: DeviceId,
    raw: Raw,
    stream: Stream,
    ended: watch::Receiver<bool>,
    shared: Arc<Shared>,
    _slot: OwnedSemaphorePermit,
    _held: Option<Arc<()>>,
}

/// Why a raw stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RawError {
    /// The stream broke, or the device is gone.
    #[error("the stream broke")]
    Broken,
    /// Nothing moved for too long.
    #[error("nothing came for too long")]
    Stalled,
    /// More came than may.
    #[error("more came than was asked for")]
    TooLong,
}

impl RawStream {
    /// Who is at the other end.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// What it is for.
    pub fn raw(&self) -> Raw {
        self.raw
    }

    /// Reads to the end, at most `max` bytes; `stall` is how long nothing may come.
    ///
    /// # Errors
    /// [`RawError`].
    pub async fn read_to_end(&mut self, max: usize, stall: Duration) -> Result<Vec<u8>, RawError> {
        let mut bytes = vec![0; max + 1];
        let len = self.fill(&mut bytes, stall).await?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Reads to the end into a buffer that is one byte longer than what may come; answers how much came.
    ///
    /// # Errors
    /// [`RawError`].
    pub async fn fill(&mut self, buffer: &mut [u8], stall: Duration) -> Result<usize, RawError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..)
            && !rest.is_empty()
        {
            let read = self.stream.read(rest);
            let count = tokio::select! {
                read = read => read.map_err(|_| RawError::Broken)?,
                _ = self.ended.wait_for(|ended| *ended) => return Err(RawError::Broken),
                () = tokio::time::sleep(stall) => return Err(RawError::Stalled),
            };
            if count == 0 {
                return Ok(filled);
            }
            filled += count;
            let counted = u64::try_from(count).unwrap_or(0);
            let counters = &self.shared.counters;
            counters
                .received_bytes
                .fetch_add(counted, Ordering::Relaxed);
        }
        Err(RawError::TooLong)
    }

    /// Writes all of it; `stall` is how long the other end may take nothing.
    ///
    /// # Errors
    /// [`RawError`].
    pub async fn write_all(&mut self, bytes: &[u8], stall: Duration) -> Result<(), RawError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // As much as goes in one frame.
            let written = tokio::select! {
                _ = self.ended.wait_for(|ended| *ended) => return Err(RawError::Broken),
                () = tokio::time::sleep(stall) => return Err(RawError::Stalled),
                written = self.stream.write(rest) => written,
            };
            let count = written.map_err(|_| RawError::Broken)?;
            rest = match rest.get(count..) {
                Some(rest) if count > 0 => rest,
                _ => return Err(RawError::Broken),
            };
            let counted = u64::try_from(count).unwrap_or(0);
            let counters = &self.shared.counters;
            counters.sent_bytes.fetch_add(counted, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Says that nothing more is written. Reading goes on.
    ///
    /// # Errors
    /// [`RawError`].
    pub async fn close(&mut self, stall: Duration) -> Result<(), RawError> {
        let closed = tokio::select! {
            _ = self.ended.wait_for(|ended| *ended) => return Err(RawError::Broken),
            () = tokio::time::sleep(stall) => return Err(RawError::Stalled),
            closed = self.stream.close() => closed,
        };
        closed.map_err(|_| RawError::Broken)
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
    pending: BTreeMap<ConnectionId, Pending>,
    actions: VecDeque<ToSwarm<StreamsEvent, Infallible>>,
    faults: mpsc::UnboundedReceiver<(DeviceId, Fault)>,
    /// Who broke the rules.
    offenders: BTreeMap<PeerId, Offender>,
    /// Until the owner has it.
    raw: Option<mpsc::Receiver<RawStream>>,
}

/// One that broke the rules.
#[derive(Debug, Clone, Copy)]
struct Offender {
    /// How often, without a long time between.
    times: u32,
    /// Until then it is not let in.
    until: Instant,
}

impl Offender {
    /// After one more fault, at that time.
    fn again(before: Option<Self>, now: Instant) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let factor = 1_u32.checked_shl(times - 1).unwrap_or(u32::MAX);
        let refusal = REFUSAL.saturating_mul(factor).min(REFUSAL_MAX);
        Self {
            times,
            until: now + refusal,
        }
    }
}

/// A connection that other behaviours may still deny.
type Pending = (
    Arc<Peer>,
    mpsc::Sender<OpenRequest>,
    Arc<Semaphore>,
    Arc<Semaphore>,
);

/// A device that broke the rules is refused for a while.
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
        let (raw_sender, raw) = mpsc::channel(RAW_WAITING_MAX);
        let shared = Arc::new(Shared {
            peers: Mutex::default(),
            who,
            strangers: Semaphore::new(STRANGERS_BYTES_MAX),
            outbox,
            runtime,
            faults: fault_sender,
            counters: Counters::default(),
            buffers: Buffers::new(READ_IDLE_BYTES_MAX),
            raw: raw_sender,
            #[cfg(test)]
            breaks: AtomicUsize::new(0),
        });
        Self {
            shared,
            pending: BTreeMap::new(),
            actions: VecDeque::new(),
            faults,
            offenders: BTreeMap::new(),
            raw: Some(raw),
        }
    }

    /// Streams of others, for the owner to answer; once.
    pub(super) fn take_raw(&mut self) -> Option<mpsc::Receiver<RawStream>> {
        self.raw.take()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Devices that are kept out now, and for how long.
    pub(super) fn refused(&self) -> Vec<(DeviceId, Duration)> {
        let now = Instant::now();
        let refused = self.offenders.iter().filter_map(|(peer, offender)| {
            let left = offender.until.checked_duration_since(now)?;
            Some((self.shared.who.name(peer)?, left))
        });
        refused.collect()
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
        self.offenders
            .retain(|_, offender| offender.until + FORGIVEN > now);
        let known = self.offenders.get(&peer);
        if known.is_some_and(|offender| offender.until > now) {
            return Err(ConnectionDenied::new(CutOff));
        }
        let name = self.shared.who.name(&peer);
        let device = name.ok_or_else(|| ConnectionDenied::new(NotADevice))?;
        let known = self.shared.peer(&device).unwrap_or_else(|| {
            Arc::new(Peer {
                device,
                id: peer,
                inbound: Arc::new(Semaphore::new(0)),
                raw_turns: Arc::new(Semaphore::new(RAW_OUT_MAX)),
                ended: watch::Sender::new(false),
                state: Mutex::default(),
            })
        });
        let (opens, requests) = mpsc::channel(OPEN_REQUESTS_MAX);
        let slots = Arc::new(Semaphore::new(INBOUND_STREAMS_MAX));
        let raw_slots = Arc::new(Semaphore::new(RAW_STREAMS_MAX));
        self.pending
            .insert(id, (known.clone(), opens, slots.clone(), raw_slots.clone()));
        Ok(Handler {
            shared: self.shared.clone(),
            peer: known,
            stays: dialled || self.shared.who == Who::Devices,
            requests,
            slots,
            raw_slots,
        })
    }

    fn established(&mut self, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some((peer, opens, slots, raw_slots)) = self.pending.remove(&id) else {
            return;
        };
        locked(&peer.state).connections.push(Connection {
            id,
            tcp: is_tcp(endpoint.get_remote_address()),
            relayed: endpoint.is_relayed(),
            opens,
            slots,
            raw_slots,
            raw_out: Arc::default(),
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
            let before = self.offenders.remove(&peer);
            if self.offenders.len() >= REFUSED_MAX {
                let first = self.offenders.iter().min_by_key(|(_, known)| known.until);
                let first = first.map(|(peer, _)| *peer);
                first.and_then(|first| self.offenders.remove(&first));
            }
            let offender = Offender::again(before, Instant::now());
            self.offenders.insert(peer, offender);
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
    raw_slots: Arc<Semaphore>,
}

/// Offers or asks for uses of streams; yields the stream with the use that was agreed.
#[derive(Debug, Clone)]
pub(super) struct Speaks(Vec<Use>);

/// A use under the name it has on the wire.
#[derive(Debug, Clone)]
pub(super) struct Spoken(Use, StreamProtocol);

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
            .map(|wanted| Spoken(*wanted, wanted.protocol()))
            .collect()
    }
}

impl InboundUpgrade<Stream> for Speaks {
    type Output = (Use, Stream);
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
        SubstreamProtocol::new(Speaks(self.shared.who.uses().to_vec()), ()).with_timeout(OPEN_WAIT)
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
        let speaks = Speaks(vec![request.wanted]);
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
                protocol: (Use::Raw(raw), stream),
                ..
            }) => {
                let Ok(slot) = self.raw_slots.clone().try_acquire_owned() else {
                    let _ = self.shared.faults.send((self.peer.device, Fault::Streams));
                    return;
                };
                let stream = RawStream {
                    device: self.peer.device,
                    raw,
                    stream,
                    ended: self.peer.ended.subscribe(),
                    shared: self.shared.clone(),
                    _slot: slot,
                    _held: None,
                };
                let (to, peer) = (self.shared.raw.clone(), self.peer.clone());
                // As many wait as have a slot.
                self.shared.runtime.spawn(peer.while_there(async move {
                    let _ = to.send(stream).await;
                }));
            }
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (Use::Messages(channel), stream),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_breaks_the_rules_again_is_kept_out_longer() {
        let now = Instant::now();
        let mut offender = None;
        let mut refusals = Vec::new();
        for _ in 0..100 {
            let next = Offender::again(offender, now);
            refusals.push(next.until.duration_since(now));
            offender = Some(next);
        }
        assert_eq!(refusals.first(), Some(&REFUSAL));
        assert_eq!(refusals.get(1), Some(&(2 * REFUSAL)));
        assert!(refusals.is_sorted());
        assert_eq!(refusals.last(), Some(&REFUSAL_MAX));
    }
}
