//! The event loop around the device machine: inputs in, effects out, and nothing decided here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use bytes::Bytes;
use kith_core::device::{Channel, Command, CommandError, Device, Effect, Input};
use kith_object::id::{Cid, DeviceId, EntryId};
use kith_protocol::exchange::Loaded;
use tokio::sync::{mpsc, oneshot};

use super::log::{LoadFor, LogKeeper, ToLog};
use crate::config::now;
use crate::net::{self, GossipId, InsideHandle, NetEvent, NetEvents};
use crate::promises::Surplus;
use crate::source::Arrival;
use crate::store::{DiskStore, RealDisk, Settler};
use crate::upkeep::ToDo;
use kith_object::log::{Log, LogError};

/// Blocks read for peers that wait for the reading thread; the exchange bounds what it asks for, this is the belt to its braces.
const LOADS_MAX: usize = 4096;

/// Something for the driver.
pub(crate) enum Ask {
    Input(Input),
    Command {
        command: Command,
        answer: oneshot::Sender<Result<(), CommandFailure>>,
    },
    Look(Box<dyn FnOnce(&Device) + Send>),
    Fetch {
        request: u64,
        cids: Vec<Cid>,
        to: blocking::Sender<Arrival>,
    },
    CancelFetch(u64),
    Entries {
        ids: Vec<EntryId>,
        answer: oneshot::Sender<Vec<(EntryId, Bytes)>>,
    },
    /// Something for the log's thread.
    Log(ToLog),
    /// Keep the address book, though nothing in it is new.
    KeepBook(oneshot::Sender<()>),
    /// The log could not be written: nothing can be acknowledged any more.
    LogFailed(Arc<str>),
    Stop,
}

/// Why a command had no durable effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandFailure {
    #[error(transparent)]
    Refused(#[from] CommandError),
    #[error("write the log: {0}; nothing can be written until the device is started again")]
    Log(Arc<str>),
    #[error("the device is ending")]
    Ending,
}

/// A handle on the driver.
#[derive(Clone)]
pub(crate) struct Asker {
    asks: mpsc::UnboundedSender<Ask>,
    requests: Arc<AtomicU64>,
    online: bool,
}

impl Asker {
    /// Whether there is a network at all.
    pub(crate) fn is_online(&self) -> bool {
        self.online
    }

    /// Asks for blocks of others; what comes of it is told to `to`.
    pub(crate) fn fetch(&self, cids: Vec<Cid>, to: blocking::Sender<Arrival>) -> u64 {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let _ = self.asks.send(Ask::Fetch { request, cids, to });
        request
    }

    /// Asks for them no more.
    pub(crate) fn cancel_fetch(&self, request: u64) {
        let _ = self.asks.send(Ask::CancelFetch(request));
    }

    /// Says that blocks are on this disk now.
    pub(crate) fn stored(&self, cids: Vec<Cid>) {
        let _ = self.asks.send(Ask::Input(Input::Stored(cids)));
    }

    /// Has a command carried out; returns once it is durable.
    pub(crate) async fn command(&self, command: Command) -> Result<(), CommandFailure> {
        let (answer, outcome) = oneshot::channel();
        let _ = self.asks.send(Ask::Command { command, answer });
        outcome.await.unwrap_or(Err(CommandFailure::Ending))
    }

    /// Looks at the device as it is now.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Device) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, seen) = oneshot::channel();
        let look = Box::new(move |device: &Device| {
            let _ = answer.send(look(device));
        });
        let _ = self.asks.send(Ask::Look(look));
        seen.await.ok()
    }

    /// Entries from the log; those not found are left out. `None` if the device is ending.
    pub(crate) async fn entries(&self, ids: Vec<EntryId>) -> Option<Vec<(EntryId, Bytes)>> {
        let (answer, read) = oneshot::channel();
        let _ = self.asks.send(Ask::Entries { ids, answer });
        read.await.ok()
    }

    /// Feeds the machine.
    pub(crate) fn input(&self, input: Input) {
        let _ = self.asks.send(Ask::Input(input));
    }

    /// Entries that stand in damaged places of the log and cannot be read any more; they are asked for again.
    pub(super) async fn judge_log(&self, damaged: Vec<Range<u64>>) -> Option<Vec<EntryId>> {
        let (answer, judged) = oneshot::channel();
        let _ = self.asks.send(Ask::Log(ToLog::Judge { damaged, answer }));
        judged.await.ok()
    }

    /// Writes the log anew; false if an entry besides these cannot be read. `None` if the device is ending.
    pub(super) async fn write_log_anew(
        &self,
        without: Vec<EntryId>,
    ) -> Option<Result<bool, LogError>> {
        let (answer, written) = oneshot::channel();
        let anew = ToLog::WriteAnew { without, answer };
        let _ = self.asks.send(Ask::Log(anew));
        written.await.ok()
    }

    /// Has the address book kept, though nothing in it is new. `None` if the device is ending.
    pub(super) async fn keep_book(&self) -> Option<()> {
        let (answer, kept) = oneshot::channel();
        let _ = self.asks.send(Ask::KeepBook(answer));
        kept.await.ok()
    }

    /// Says that the log can be written no more.
    pub(super) fn log_failed(&self, why: Arc<str>) {
        let _ = self.asks.send(Ask::LogFailed(why));
    }

    /// Ends the driver.
    pub(crate) fn stop(&self) {
        let _ = self.asks.send(Ask::Stop);
    }
}

/// Bytes of blocks exchanged with each device since the start: received, sent.
pub(crate) type Traffic = BTreeMap<DeviceId, (u64, u64)>;

/// What the driver works on.
pub(crate) struct Parts {
    pub(crate) device: Device,
    pub(crate) store: Arc<DiskStore>,
    pub(crate) log: Log<RealDisk>,
    /// Where each entry of the log begins.
    pub(crate) offsets: BTreeMap<EntryId, u64>,
    /// Does the syncs of the log that relaxed durability puts off.
    pub(crate) settler: Settler,
    pub(crate) net: Option<(InsideHandle, NetEvents)>,
    /// Keeps the address book.
    pub(crate) keep_book: Box<dyn Fn(Bytes) + Send>,
    /// The file that says that the device is unsettled.
    pub(crate) unsettled: PathBuf,
    pub(crate) traffic: Arc<std::sync::Mutex<Traffic>>,
    /// Fetches packs, proves them, gives them up.
    pub(crate) to_do: ToDo,
}

struct Driver {
    device: Device,
    net: Option<InsideHandle>,
    commands: BTreeMap<u64, oneshot::Sender<Result<(), CommandFailure>>>,
    fetches: BTreeMap<u64, blocking::Sender<Arrival>>,
    gossip: BTreeMap<u64, GossipId>,
    next: u64,
    listening: Vec<String>,
    to_log: blocking::Sender<ToLog>,
    to_reader: blocking::SyncSender<(DeviceId, Cid, bool)>,
    keep_book: Box<dyn Fn(Bytes) + Send>,
    unsettled: PathBuf,
    traffic: Arc<std::sync::Mutex<Traffic>>,
    to_do: ToDo,
    log_failed: Option<Arc<str>>,
}

/// A queue for asks, before the driver exists.
pub(crate) fn asks(online: bool) -> (Asker, mpsc::UnboundedReceiver<Ask>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Asker {
            asks: sender,
            requests: Arc::new(AtomicU64::new(1)),
            online,
        },
        receiver,
    )
}

/// Runs the device until it is told to stop; everything acknowledged is on disk by then.
pub(crate) async fn drive(parts: Parts, asker: Asker, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let (to_log, log_queue) = blocking::channel();
    let (to_reader, read_queue) = blocking::sync_channel(LOADS_MAX);
    let (net, mut events) = parts
        .net
        .map_or((None, None), |(net, events)| (Some(net), Some(events)));
    let logger = {
        let keeper = LogKeeper {
            log: parts.log,
            offsets: parts.offsets,
            settler: parts.settler,
            asker: asker.clone(),
        };
        std::thread::spawn(move || keeper.keep(&log_queue))
    };
    let reader = {
        let (asker, store) = (asker.clone(), parts.store);
        std::thread::spawn(move || read_blocks(&store, &read_queue, &asker))
    };
    let mut driver = Driver {
        device: parts.device,
        net,
        commands: BTreeMap::new(),
        fetches: BTreeMap::new(),
        gossip: BTreeMap::new(),
        next: 1,
        listening: Vec::new(),
        to_log,
        to_reader,
        keep_book: parts.keep_book,
        unsettled: parts.unsettled,
        traffic: parts.traffic,
        to_do: parts.to_do,
        log_failed: None,
    };
    driver.perform();
    loop {
        let pause = driver
            .device
            .next_wakeup()
            .map(|at| Duration::from_millis(at.since(now()).as_ms()));
        let net_event = async {
            match &mut events {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(Ask::Stop) | None => break,
                // What cannot be written down must not go on: whoever waits is told, and the process ends.
                Some(ask @ Ask::LogFailed(_)) => {
                    driver.asked(ask);
                    break;
                }
                Some(ask) => driver.asked(ask),
            },
            event = net_event => match event {
                Some(event) => driver.happened(event),
                None => break,
            },
            () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(3600))) => driver.device.handle(now(), Input::Wake),
        }
        driver.perform();
    }
    // A swarm that waits for room among the events would not hear that it is to stop.
    drop(events.take());
    if let Some(net) = driver.net.take() {
        net.shutdown().await;
    }
    // Their queues end with the driver; what was asked of them before is still done.
    drop(driver);
    let _ = tokio::task::spawn_blocking(move || {
        let _ = logger.join();
        let _ = reader.join();
    })
    .await;
}

impl Driver {
    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Input(input) => self.device.handle(now(), input),
            Ask::Look(look) => look(&self.device),
            Ask::Command { command, answer } => {
                if let Some(why) = &self.log_failed {
                    let _ = answer.send(Err(CommandFailure::Log(why.clone())));
                    return;
                }
                let request = self.number();
                self.commands.insert(request, answer);
                self.device
                    .handle(now(), Input::Command { request, command });
            }
            Ask::Fetch { request, cids, to } => {
                self.fetches.insert(request, to);
                self.device.handle(now(), Input::Fetch { request, cids });
            }
            Ask::CancelFetch(request) => {
                if self.fetches.remove(&request).is_some() {
                    self.device.handle(now(), Input::CancelFetch { request });
                }
            }
            Ask::Entries { ids, answer } => {
                let to = LoadFor::Call(answer);
                let _ = self.to_log.send(ToLog::Load { ids, to });
            }
            Ask::KeepBook(answer) => {
                (self.keep_book)(self.device.book().encode());
                let _ = answer.send(());
            }
            Ask::Log(item) => {
                let _ = self.to_log.send(item);
            }
            Ask::LogFailed(why) => {
                tracing::error!(%why, "the log cannot be written");
                for (_, answer) in std::mem::take(&mut self.commands) {
                    let _ = answer.send(Err(CommandFailure::Log(why.clone())));
                }
                self.log_failed = Some(why);
            }
            Ask::Stop => {}
        }
    }

    fn happened(&mut self, event: NetEvent) {
        let input = match event {
            NetEvent::Listening(addr) => {
                self.listening.push(addr.to_string());
                Input::Listening(self.listening.clone())
            }
            NetEvent::NotListening(addr) => {
                let addr = addr.to_string();
                self.listening.retain(|known| *known != addr);
                Input::Listening(self.listening.clone())
            }
            NetEvent::Connected(device) => Input::Connected(device),
            NetEvent::Disconnected(device) => Input::Disconnected(device),
            NetEvent::Subscribed(_) => return,
            NetEvent::Unreachable(device) => Input::Unreachable(device),
            NetEvent::Offered { key, record } => Input::Offered { key, record },
            NetEvent::Record { key, record } => Input::Record { key, record },
            NetEvent::Received {
                peer,
                channel,
                bytes,
            } => Input::Received {
                peer,
                channel: to_core(channel),
                bytes,
            },
            NetEvent::Sent {
                peer, channel, len, ..
            }
            | NetEvent::Unsent {
                peer, channel, len, ..
            } => Input::Flushed {
                peer,
                channel: to_core(channel),
                len,
            },
            NetEvent::Published { from, bytes, id } => {
                let number = self.number();
                self.gossip.insert(number, id);
                Input::Published {
                    from,
                    message: Bytes::copy_from_slice(&number.to_le_bytes()),
                    bytes,
                }
            }
            NetEvent::Addresses { device, addrs } => Input::Addresses {
                device,
                addrs: addrs.iter().map(ToString::to_string).collect(),
            },
            NetEvent::Providers { devices, .. } => Input::Providers(devices),
        };
        self.device.handle(now(), input);
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Performs what the machine wants done.
    fn perform(&mut self) {
        while let Some(effect) = self.device.poll_effect() {
            match effect {
                Effect::Append { number, id, entry } => {
                    let _ = self.to_log.send(ToLog::Append { number, id, entry });
                }
                Effect::LoadEntries { token, ids } => {
                    let to = LoadFor::Machine(token);
                    let _ = self.to_log.send(ToLog::Load { ids, to });
                }
                Effect::LoadBlock { peer, cid, block } => {
                    if self.to_reader.try_send((peer, cid, block)).is_err() {
                        self.device.handle(
                            now(),
                            Input::LoadedBlock {
                                peer,
                                cid,
                                found: None,
                            },
                        );
                    }
                }
                Effect::Got {
                    requests,
                    cid,
                    block,
                    from,
                } => {
                    self.count(from, block.len() as u64, 0);
                    for request in requests {
                        if let Some(to) = self.fetches.get(&request) {
                            let _ = to.send(Arrival::Block {
                                cid,
                                block: block.clone(),
                                from,
                            });
                        }
                    }
                }
                Effect::Held { requests, cid } => {
                    for request in requests {
                        if let Some(to) = self.fetches.get(&request) {
                            let _ = to.send(Arrival::Held { cid });
                        }
                    }
                }
                Effect::Unavailable { request, cid } => {
                    if let Some(to) = self.fetches.get(&request) {
                        let _ = to.send(Arrival::Unavailable { cid });
                    }
                }
                Effect::Sought { request, cid } => {
                    if let Some(to) = self.fetches.get(&request) {
                        let _ = to.send(Arrival::Sought { cid });
                    }
                }
                Effect::Done { request, outcome } => {
                    if let Some(answer) = self.commands.remove(&request) {
                        let _ = answer.send(outcome.map_err(CommandFailure::from));
                    }
                }
                Effect::KeepBook(book) => (self.keep_book)(book),
                Effect::Pull(pull) => {
                    let _ = self.to_do.pulls.send(pull);
                }
                Effect::Vouch(vouch) => {
                    let _ = self.to_do.vouches.send(vouch);
                }
                Effect::Probe(probe) => {
                    let _ = self.to_do.probes.send(probe);
                }
                Effect::List(pack) => {
                    let _ = self.to_do.give_ups.send(Surplus::List(pack));
                }
                Effect::GiveUp(give_up) => {
                    let _ = self.to_do.give_ups.send(Surplus::GiveUp(give_up));
                }
                // Should it stay, the device only has to agree once more.
                Effect::Settled => {
                    let _ = std::fs::remove_file(&self.unsettled);
                }
                other => self.perform_on_net(other),
            }
        }
    }

    fn perform_on_net(&mut self, effect: Effect) {
        let Some(net) = &self.net else { return };
        match effect {
            Effect::Allow(devices) => net.allow(devices),
            Effect::Dial { device, addrs } => {
                let addrs = addrs.iter().filter_map(|addr| addr.parse().ok()).collect();
                if let Err(refused) = net.dial(device, addrs) {
                    tracing::debug!(%device, %refused, "dial not taken");
                }
            }
            Effect::Send {
                peer,
                channel,
                message,
            } => {
                let len = message.len_bytes();
                if channel == Channel::Bitswap {
                    self.count(peer, 0, len as u64);
                }
                let Some(net) = &self.net else { return };
                if let Err(refused) = net.send(peer, from_core(channel), message, 0) {
                    tracing::debug!(%peer, %refused, "message not taken");
                    // As lost as on a broken connection: the machines ask again.
                    self.device
                        .handle(now(), Input::Flushed { peer, channel, len });
                }
            }
            Effect::Disconnect { peer, reason } => {
                tracing::debug!(%peer, %reason, "connection cut");
                net.disconnect(peer);
            }
            Effect::Publish(bytes) => {
                if let Err(refused) = net.publish(bytes) {
                    tracing::debug!(%refused, "gossip not taken");
                }
            }
            Effect::Verdict { message, accept } => {
                let number = message.as_ref().try_into().map(u64::from_le_bytes);
                if let Some(id) = number.ok().and_then(|number| self.gossip.remove(&number)) {
                    let _ = net.verdict(id, accept);
                }
            }
            Effect::Provide(key) => {
                let _ = net.provide(key);
            }
            Effect::FindProviders(key) => {
                let _ = net.find_providers(key, 0);
            }
            Effect::PutRecord { key, record } => {
                let _ = net.put_record(key, record);
            }
            Effect::KeepRecord { key, record } => {
                let _ = net.keep_record(key, record);
            }
            Effect::FindRecord(key) => {
                let _ = net.find_record(key);
            }
            _ => {}
        }
    }

    fn count(&self, device: DeviceId, received: u64, sent: u64) {
        let mut traffic = self
            .traffic
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let entry = traffic.entry(device).or_default();
        entry.0 += received;
        entry.1 += sent;
    }
}

fn to_core(channel: net::Channel) -> Channel {
    match channel {
        net::Channel::Bitswap => Channel::Bitswap,
        net::Channel::Sync => Channel::Sync,
    }
}

fn from_core(channel: Channel) -> net::Channel {
    match channel {
        Channel::Bitswap => net::Channel::Bitswap,
        Channel::Sync => net::Channel::Sync,
    }
}

/// The reading thread for peers.
fn read_blocks(
    store: &DiskStore,
    queue: &blocking::Receiver<(DeviceId, Cid, bool)>,
    asker: &Asker,
) {
    while let Ok((peer, cid, block)) = queue.recv() {
        let found = if block {
            store.get(&cid).map(|found| found.map(Loaded::Block))
        } else {
            store.size(&cid).map(|found| found.map(Loaded::Size))
        };
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "block cannot be read for a peer");
            None
        });
        asker.input(Input::LoadedBlock { peer, cid, found });
    }
}
