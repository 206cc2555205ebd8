//! The simulator's models of gossip and of the DHT beside real swarms: libp2p's own code, many nodes in one process, memory for a wire.
//!
//! `KITH_LARGE=1` takes 50, 100 and 200 nodes instead of 60.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its numbers are small"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite, StreamExt};
use kith_object::id::DeviceId;
use kith_object::key::Rng;
use kith_simulations::dht::Tables;
use kith_simulations::gossip::Overlay;
use libp2p::core::Transport;
use libp2p::core::transport::MemoryTransport;
use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::{self, QueryResult, store::MemoryStore};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{self, NetworkBehaviour, StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, noise, yamux};

/// Bytes that all nodes have written.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// A wire that counts.
struct Counted<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, buffer);
        if let Poll::Ready(Ok(len)) = &written {
            WRITTEN.fetch_add(*len as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context)
    }
}

#[derive(NetworkBehaviour)]
struct Both {
    kad: Toggle<kad::Behaviour<MemoryStore>>,
    gossip: Toggle<gossipsub::Behaviour>,
}

/// By then all are connected, on a slow machine too; the model has them all begin at once.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(15);
/// Others that each node dials.
const DIALS: usize = 8;
const LOOKUPS: usize = 40;
const MESSAGES: usize = 25;
/// Bytes of messages; of longer ones gossipsub warns its neighbours, which then do not send them.
const SHORT: usize = 50;
const LONG: usize = 800;

/// A node that does the one or the other: lookups connect whom they meet, and change the mesh of gossip.
fn node(keys: &Keypair, with_kad: bool) -> Swarm<Both> {
    let peer = keys.public().to_peer_id();
    let transport = MemoryTransport::default()
        .map(|wire, _| Counted(wire))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keys).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let mut kad = kad::Behaviour::with_config(
        peer,
        MemoryStore::new(peer),
        kad::Config::new(StreamProtocol::new("/test/kad/1")),
    );
    kad.set_mode(Some(kad::Mode::Server));
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .heartbeat_initial_delay(FIRST_HEARTBEAT)
        .build()
        .unwrap();
    let signed = MessageAuthenticity::Signed(keys.clone());
    let mut gossip = gossipsub::Behaviour::new(signed, config).unwrap();
    gossip.subscribe(&IdentTopic::new("mesh")).unwrap();
    let config =
        swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
    let both = Both {
        kad: with_kad.then_some(kad).into(),
        gossip: (!with_kad).then_some(gossip).into(),
    };
    Swarm::new(transport, both, peer, config)
}

/// What happened at a node.
enum Seen {
    Nothing,
    Connected,
    /// A message of that first byte came from a neighbour.
    Message(u8, PeerId),
    /// A lookup is over, and asked so many.
    Lookup(u32),
}

enum Order {
    Look([u8; 32]),
    Publish(u8, usize),
}

/// Runs a node until its orders end; tells what happens there.
fn drive(
    nth: usize,
    mut node: Swarm<Both>,
    mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>,
    said: tokio::sync::mpsc::UnboundedSender<(usize, Seen)>,
    addrs: BTreeMap<PeerId, Multiaddr>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Look(key)) => {
                        if let Some(kad) = node.behaviour_mut().kad.as_mut() {
                            kad.get_closest_peers(key.to_vec());
                        }
                    }
                    Some(Order::Publish(byte, len)) => {
                        let data = vec![byte; len];
                        if let Some(gossip) = node.behaviour_mut().gossip.as_mut() {
                            gossip.publish(IdentTopic::new("mesh"), data).unwrap();
                        }
                    }
                    None => return,
                },
                event = node.select_next_some() => {
                    let seen = match event {
                        SwarmEvent::ConnectionEstablished { peer_id, num_established, .. } => {
                            let addr = addrs[&peer_id].clone();
                            if let Some(kad) = node.behaviour_mut().kad.as_mut() {
                                kad.add_address(&peer_id, addr);
                            }
                            if num_established.get() == 1 { Seen::Connected } else { Seen::Nothing }
                        }
                        SwarmEvent::Behaviour(BothEvent::Gossip(gossipsub::Event::Message { propagation_source, message, .. })) => {
                            Seen::Message(message.data[0], propagation_source)
                        }
                        SwarmEvent::Behaviour(BothEvent::Kad(kad::Event::OutboundQueryProgressed {
                            result: QueryResult::GetClosestPeers(_), stats, step, ..
                        })) if step.last => Seen::Lookup(stats.num_requests()),
                        _ => Seen::Nothing,
                    };
                    if !matches!(seen, Seen::Nothing) && said.send((nth, seen)).is_err() {
                        return;
                    }
                }
            }
        }
    })
}

fn median<T: Copy + Ord>(list: &mut [T]) -> T {
    list.sort_unstable();
    list[list.len() / 2]
}

/// Figures of one mesh: requests of a lookup, hops of a message on average, and how often a message is sent.
#[derive(Debug)]
struct Figures {
    requests: u32,
    hops: f64,
    sent: f64,
}

/// Who dials whom.
fn dials(nodes: usize) -> Vec<(usize, usize)> {
    let mut rng = Rng::from_seed([nodes as u8; 32]);
    let mut dials = BTreeSet::new();
    for one in 0..nodes {
        for _ in 0..DIALS {
            let other = rng.below(nodes as u64) as usize;
            if other != one && !dials.contains(&(other, one)) {
                dials.insert((one, other));
            }
        }
    }
    dials.into_iter().collect()
}

type Said = tokio::sync::mpsc::UnboundedReceiver<(usize, Seen)>;

/// Hears what is said until it is enough.
async fn until(said: &mut Said, mut enough: impl FnMut(usize, Seen) -> bool) {
    let listen = async {
        while let Some((nth, seen)) = said.recv().await {
            if enough(nth, seen) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), listen)
        .await
        .expect("what was waited for happens within a minute");
}

/// Nodes that are connected, and by whom they are told what to do.
struct Mesh {
    said: Said,
    orders: Vec<tokio::sync::mpsc::UnboundedSender<Order>>,
    running: Vec<tokio::task::JoinHandle<()>>,
    place: BTreeMap<PeerId, usize>,
}

impl Mesh {
    async fn new(nodes: usize, with_kad: bool, attempt: usize) -> Self {
        let mut rng = Rng::from_seed([7; 32]);
        let keys: Vec<Keypair> = (0..nodes)
            .map(|_| Keypair::ed25519_from_bytes(rng.bytes::<32>()).unwrap())
            .collect();
        let peers = keys.iter().map(|keys| keys.public().to_peer_id());
        let place: BTreeMap<PeerId, usize> = peers.zip(0..).collect();
        // Addresses in memory are those of the process.
        let addr = |nth: usize| -> Multiaddr {
            let port = 1_000_000 * (7 + attempt) + 1000 * nodes + 500 * usize::from(with_kad) + nth;
            format!("/memory/{port}").parse().unwrap()
        };
        let addrs: BTreeMap<PeerId, Multiaddr> = place
            .iter()
            .map(|(peer, nth)| (*peer, addr(*nth)))
            .collect();
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let began = tokio::time::Instant::now();
        let mut swarms: Vec<Swarm<Both>> = keys.iter().map(|keys| node(keys, with_kad)).collect();
        for (nth, swarm) in swarms.iter_mut().enumerate() {
            swarm.listen_on(addr(nth)).unwrap();
        }
        for (one, other) in dials(nodes) {
            swarms[one].dial(addr(other)).unwrap();
        }
        let mut mesh = Self {
            said,
            orders: Vec::new(),
            running: Vec::new(),
            place,
        };
        for (nth, swarm) in swarms.into_iter().enumerate() {
            let (order, receive) = tokio::sync::mpsc::unbounded_channel();
            mesh.orders.push(order);
            mesh.running
                .push(drive(nth, swarm, receive, say.clone(), addrs.clone()));
        }
        let (mut connected, wanted) = (0, 2 * dials(nodes).len());
        until(&mut mesh.said, |_, seen| {
            connected += usize::from(matches!(seen, Seen::Connected));
            connected >= wanted
        })
        .await;
        if !with_kad {
            tokio::time::sleep_until(began + FIRST_HEARTBEAT + Duration::from_secs(2)).await;
        }
        // What comes of that is over when hardly anything is written any more.
        let mut before = WRITTEN.load(Ordering::Relaxed);
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = WRITTEN.load(Ordering::Relaxed);
            if now - before < nodes as u64 * 4000 {
                break;
            }
            before = now;
        }
        mesh
    }

    async fn end(self) {
        drop(self.orders);
        for task in self.running {
            task.await.unwrap();
        }
    }
}

/// Hops of messages, and how often each is sent.
async fn real_gossip(nodes: usize, attempt: usize) -> (f64, f64) {
    let mut mesh = Mesh::new(nodes, false, attempt).await;
    let mut bytes = Vec::new();
    let mut hops = Vec::new();
    for len in [SHORT, LONG] {
        let before = WRITTEN.load(Ordering::Relaxed);
        for message in 0..MESSAGES {
            let from = (message * 37) % nodes;
            let order = Order::Publish(message as u8, len);
            mesh.orders[from].send(order).unwrap();
            let mut hop = BTreeMap::from([(from, 0u32)]);
            let place = &mesh.place;
            until(&mut mesh.said, |nth, seen| {
                if let Seen::Message(of, source) = seen
                    && usize::from(of) == message
                {
                    let before = hop.get(&place[&source]).copied().unwrap_or(0);
                    hop.entry(nth).or_insert(before + 1);
                }
                hop.len() == nodes
            })
            .await;
            hops.extend(hop.into_values().filter(|hop| *hop > 0));
        }
        // The last copies are still on their way.
        tokio::time::sleep(Duration::from_secs(2)).await;
        bytes.push(WRITTEN.load(Ordering::Relaxed) - before);
    }
    mesh.end().await;
    // What the longer messages took more is so much for each time one was sent.
    let more = bytes[1] as f64 - bytes[0] as f64;
    let sent = more / (LONG - SHORT) as f64 / MESSAGES as f64;
    (mean(&hops), sent)
}

/// Requests of lookups.
async fn real_lookups(nodes: usize, attempt: usize) -> u32 {
    let mut mesh = Mesh::new(nodes, true, attempt).await;
    let mut rng = Rng::from_seed([9; 32]);
    let mut requests = Vec::new();
    for lookup in 0..LOOKUPS {
        let from = (lookup * 29) % nodes;
        mesh.orders[from].send(Order::Look(rng.bytes())).unwrap();
        until(&mut mesh.said, |_, seen| {
            if let Seen::Lookup(asked) = seen {
                requests.push(asked);
            }
            requests.len() > lookup
        })
        .await;
    }
    mesh.end().await;
    median(&mut requests)
}

async fn real(nodes: usize, attempt: usize) -> Figures {
    let (hops, sent) = real_gossip(nodes, attempt).await;
    let requests = real_lookups(nodes, attempt).await;
    Figures {
        requests,
        hops,
        sent,
    }
}

fn mean(hops: &[u32]) -> f64 {
    hops.iter().map(|hop| f64::from(*hop)).sum::<f64>() / hops.len() as f64
}

fn modelled(nodes: usize) -> Figures {
    let mut rng = Rng::from_seed([8; 32]);
    let ids: Vec<DeviceId> = (0..nodes).map(|_| DeviceId(rng.bytes())).collect();
    let mut overlay = Overlay::new(nodes);
    let mut tables = Tables::new(&ids);
    for (one, other) in dials(nodes) {
        overlay.connect(one, other);
        tables.meet(one, other);
    }
    for device in 0..nodes {
        tables.join(device, &mut rng, |_| true);
    }
    let (mut hops, mut sent) = (Vec::new(), 0);
    for message in 0..MESSAGES {
        let (reached, times) = overlay.wave((message * 37) % nodes, &mut rng);
        hops.extend(reached.into_iter().flatten().filter(|hop| *hop > 0));
        sent += times;
    }
    let mut requests: Vec<u32> = (0..LOOKUPS)
        .map(|lookup| {
            let from = (lookup * 29) % nodes;
            tables.lookup(from, &rng.bytes(), |_| true).asked.len() as u32
        })
        .collect();
    Figures {
        requests: median(&mut requests),
        hops: mean(&hops),
        sent: sent as f64 / MESSAGES as f64,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_come_within_a_fifth_of_real_swarms() {
    let sizes: &[usize] = if std::env::var_os("KITH_LARGE").is_some() {
        &[50, 100, 200]
    } else {
        &[60]
    };
    for nodes in sizes.iter().copied() {
        let model = modelled(nodes);
        // Where the machine is busy, copies of a message arrive before it is passed on, and are not sent back: then once more.
        let mut far = Vec::new();
        for attempt in 0..3 {
            let real = real(nodes, attempt).await;
            println!("{nodes} nodes: real {real:?}, model {model:?}");
            far = [
                (
                    "requests",
                    f64::from(model.requests) / f64::from(real.requests),
                ),
                ("hops", model.hops / real.hops),
                ("sent", model.sent / real.sent),
            ]
            .into_iter()
            .filter(|(_, ratio)| !(0.8..=1.2).contains(ratio))
            .collect();
            if far.is_empty() {
                break;
            }
        }
        assert!(far.is_empty(), "{nodes} nodes, model to real: {far:?}");
    }
}
