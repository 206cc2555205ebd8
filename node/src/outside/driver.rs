//! Runs an exchange of its own with whoever is outside: what it asks for is had from anybody, and it serves what anybody may have.
//!
//! Spec: `protocol/spec/outside.md`, "What is served".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kith_object::id::{Cid, DeviceId};
use kith_object::object::Reached;
use kith_protocol::exchange::{Effect, Exchange, Input, Loaded};
use kith_protocol::record::{Announcements, Key};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::config::{fresh_rng, now};
use crate::net::outside::{self, OutsideConfig, OutsideHandle};
use crate::net::{Multiaddr, NetEvent, NetEvents, StartError};
use crate::source::Arrival;
use crate::store::DiskStore;

/// Loads that may wait for the reader; the exchange has at most 128 under way.
const LOADS_MAX: usize = 256;

/// The exchange with whoever is outside, and its swarm.
pub(crate) struct Outside {
    asks: mpsc::UnboundedSender<Ask>,
    net: OutsideHandle,
    requests: AtomicU64,
    listening: Arc<Mutex<Vec<Multiaddr>>>,
    /// What may be served of what lies in public packs; all of it if absent.
    only: Arc<Mutex<Option<Arc<Reached>>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

enum Ask {
    Input(Input),
    Fetch {
        request: u64,
        cids: Vec<Cid>,
        to: blocking::Sender<Arrival>,
    },
    Cancel(u64),
    /// Digests of roots that anybody is told of.
    Announce(Vec<[u8; 32]>),
    /// Digests of roots that nobody is told of any more.
    Withdraw(Vec<[u8; 32]>),
    Stop,
}

impl Outside {
    /// Starts it under that key. Without a store it serves nothing; `only` is as in [`Outside::serve_only`].
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start(
        seed: Zeroizing<[u8; 32]>,
        config: &OutsideConfig,
        store: Option<Arc<DiskStore>>,
        only: Option<Arc<Reached>>,
    ) -> Result<Arc<Self>, StartError> {
        let only = Arc::new(Mutex::new(only));
        let (net, events) = outside::start(seed, config)?;
        let (asks, queue) = mpsc::unbounded_channel();
        let listening = Arc::new(Mutex::new(Vec::new()));
        let (to_reader, loads) = blocking::sync_channel(LOADS_MAX);
        let (answers, serves) = (asks.clone(), only.clone());
        std::thread::spawn(move || read(store.as_deref(), &serves, &loads, &answers));
        let driver = Driver {
            exchange: Exchange::new(),
            net: net.clone(),
            fetches: BTreeMap::new(),
            to_reader,
            listening: listening.clone(),
            announcements: Announcements::new(now(), Key(fresh_rng().bytes())),
            peers: BTreeSet::new(),
        };
        let task = tokio::spawn(driver.run(queue, events));
        Ok(Arc::new(Self {
            asks,
            net,
            requests: AtomicU64::new(1),
            listening,
            only,
            task: Mutex::new(Some(task)),
        }))
    }

    /// Connects to whoever is there.
    pub(crate) async fn dial(&self, addr: Multiaddr) -> Result<DeviceId, String> {
        self.net.dial(addr).await
    }

    /// Looks in the DHT for who has it, and connects to them; those that it is connected with then.
    pub(crate) async fn find(&self, cid: &Cid) -> Vec<DeviceId> {
        match cid.public_digest() {
            Some(digest) => self.net.find(digest).await,
            None => Vec::new(),
        }
    }

    /// Has roots announced in the DHT, if there is one, now and again.
    pub(crate) fn announce<'a>(&self, roots: impl Iterator<Item = &'a Cid>) {
        let digests = roots.filter_map(Cid::public_digest).collect();
        let _ = self.asks.send(Ask::Announce(digests));
    }

    /// Says no longer in the DHT that these are to be had here; what others were told before they forget within two days.
    pub(crate) fn withdraw<'a>(&self, roots: impl Iterator<Item = &'a Cid>) {
        let digests = roots.filter_map(Cid::public_digest).collect();
        let _ = self.asks.send(Ask::Withdraw(digests));
    }

    /// From here on only these blocks are served, of those in public packs; all of them if there is no such set.
    pub(crate) fn serve_only(&self, only: Option<Arc<Reached>>) {
        *self.only.lock().unwrap_or_else(PoisonError::into_inner) = only;
    }

    /// Whether nobody is connected.
    pub(crate) fn is_alone(&self) -> bool {
        self.net.is_alone()
    }

    /// Where it can be reached, with the name it has there.
    pub(crate) fn addrs(&self) -> Vec<String> {
        let listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = self.net.name();
        listening
            .iter()
            .map(|addr| format!("{addr}/p2p/{name}"))
            .collect()
    }

    /// A number for fetches that belong together.
    pub(crate) fn request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks for blocks; what comes of it is told to `to` until the request is cancelled.
    pub(crate) fn fetch(&self, request: u64, cids: Vec<Cid>, to: blocking::Sender<Arrival>) {
        let _ = self.asks.send(Ask::Fetch { request, cids, to });
    }

    pub(crate) fn cancel(&self, request: u64) {
        let _ = self.asks.send(Ask::Cancel(request));
    }

    /// Says that these are in the store now: whoever waits for them outside gets them.
    pub(crate) fn stored(&self, cids: Vec<Cid>) {
        let _ = self.asks.send(Ask::Input(Input::Stored(cids)));
    }

    /// Ends it, and waits until its connections are closed.
    pub(crate) async fn stop(&self) {
        let _ = self.asks.send(Ask::Stop);
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

impl Drop for Outside {
    /// Whoever started it may be gone before it could wait for the end.
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Stop);
    }
}

struct Driver {
    exchange: Exchange,
    net: OutsideHandle,
    fetches: BTreeMap<u64, blocking::Sender<Arrival>>,
    to_reader: blocking::SyncSender<(DeviceId, Cid, bool)>,
    listening: Arc<Mutex<Vec<Multiaddr>>>,
    announcements: Announcements,
    peers: BTreeSet<DeviceId>,
}

impl Driver {
    async fn run(mut self, mut asks: mpsc::UnboundedReceiver<Ask>, mut events: NetEvents) {
        loop {
            let wakeups = [
                self.exchange.next_wakeup(),
                self.announcements.next_wakeup(),
            ];
            let wakeup = wakeups.into_iter().flatten().min();
            let pause = wakeup.map(|at| Duration::from_millis(at.since(now()).as_ms()));
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(Ask::Input(input)) => self.exchange.handle(now(), input),
                    Some(Ask::Fetch { request, cids, to }) => {
                        self.fetches.insert(request, to);
                        self.exchange.handle(now(), Input::Want { request, cids });
                    }
                    Some(Ask::Cancel(request)) => {
                        self.fetches.remove(&request);
                        self.exchange.handle(now(), Input::Cancel { request });
                    }
                    Some(Ask::Announce(digests)) => {
                        for digest in digests {
                            self.announcements.add(Key(digest));
                        }
                    }
                    Some(Ask::Withdraw(digests)) => {
                        for digest in digests {
                            self.announcements.remove(&Key(digest));
                            let _ = self.net.withdraw(digest);
                        }
                    }
                    Some(Ask::Stop) | None => break,
                },
                event = events.recv() => match event {
                    Some(event) => self.happened(event),
                    None => break,
                },
                () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(3600))) => {
                    self.exchange.handle(now(), Input::Wake);
                }
            }
            self.perform();
        }
        // A swarm that waits for room among the events would not hear that it is to stop.
        drop(events);
        self.net.shutdown().await;
    }

    fn happened(&mut self, event: NetEvent) {
        let input = match event {
            NetEvent::Listening(addr) => {
                let mut listening = self
                    .listening
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                listening.push(addr);
                return;
            }
            NetEvent::NotListening(addr) => {
                let mut listening = self
                    .listening
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                listening.retain(|known| *known != addr);
                return;
            }
            NetEvent::Connected(peer) => {
                self.peers.insert(peer);
                Input::PeerUp(peer)
            }
            NetEvent::Disconnected(peer) => {
                self.peers.remove(&peer);
                Input::PeerDown(peer)
            }
            NetEvent::Received { peer, bytes, .. } => Input::Message { peer, bytes },
            NetEvent::Sent { peer, len, .. } | NetEvent::Unsent { peer, len, .. } => {
                Input::Flushed { peer, len }
            }
            _ => return,
        };
        self.exchange.handle(now(), input);
    }

    fn perform(&mut self) {
        self.announcements.heard(!self.peers.is_empty());
        while let Some(key) = self.announcements.due(now()) {
            let _ = self.net.provide(key.0);
        }
        while let Some(effect) = self.exchange.poll_effect() {
            match effect {
                Effect::Send { peer, message } => {
                    let len = message.len_bytes();
                    if let Err(refused) = self.net.send(peer, message) {
                        tracing::debug!(%peer, %refused, "message not taken");
                        // As lost as on a broken connection: it is asked for again.
                        self.exchange.handle(now(), Input::Flushed { peer, len });
                    }
                }
                Effect::Load { peer, cid, block } => {
                    // There is always room, by the exchange's own limit; without a reader nothing is found.
                    if self.to_reader.try_send((peer, cid, block)).is_err() {
                        let found = None;
                        self.exchange
                            .handle(now(), Input::Loaded { peer, cid, found });
                    }
                }
                Effect::Got {
                    requests,
                    cid,
                    block,
                    from,
                } => self.tell(&requests, |_| Arrival::Block {
                    cid,
                    block: block.clone(),
                    from,
                }),
                Effect::Held { requests, cid } => self.tell(&requests, |_| Arrival::Held { cid }),
                Effect::Unavailable { request, cid } | Effect::Refused { request, cid, .. } => {
                    self.tell(&[request], |_| Arrival::Unavailable { cid });
                }
                Effect::Sought { request, cid } => {
                    self.tell(&[request], |_| Arrival::Sought { cid });
                }
                Effect::Disconnect { peer, reason } => {
                    tracing::debug!(%peer, %reason, "connection cut");
                    self.net.disconnect(peer);
                }
            }
        }
    }

    fn tell(&self, requests: &[u64], arrival: impl Fn(u64) -> Arrival) {
        for request in requests {
            if let Some(to) = self.fetches.get(request) {
                let _ = to.send(arrival(*request));
            }
        }
    }
}

/// The reading thread: of all that is in the store, only what anybody may have. For a sealed block nothing is looked up, so that not even the time it takes tells
/// whether it is here.
fn read(
    store: Option<&DiskStore>,
    only: &Mutex<Option<Arc<Reached>>>,
    queue: &blocking::Receiver<(DeviceId, Cid, bool)>,
    answers: &mpsc::UnboundedSender<Ask>,
) {
    while let Ok((peer, cid, block)) = queue.recv() {
        let is_served = cid.public_digest().is_some() && {
            let only = only.lock().unwrap_or_else(PoisonError::into_inner);
            only.as_ref().is_none_or(|only| only.has_public(&cid))
        };
        let store = store.filter(|_| is_served);
        let found = store.and_then(|store| {
            let looked = match store.is_public(&cid) {
                Ok(true) if block => store.get(&cid).map(|found| found.map(Loaded::Block)),
                Ok(true) => store.size(&cid).map(|found| found.map(Loaded::Size)),
                Ok(false) => Ok(None),
                Err(error) => Err(error),
            };
            looked.unwrap_or_else(|error| {
                tracing::warn!(%error, "public block cannot be read");
                None
            })
        });
        if answers
            .send(Ask::Input(Input::Loaded { peer, cid, found }))
            .is_err()
        {
            return;
        }
    }
}
