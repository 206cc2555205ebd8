//! A few exchanges wired together in virtual time, with weather: what the tests of this module run on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_object::id::{Cid, DeviceId};
use kith_object::time::Time;

use super::message::{EntryKind, Message, Presence};
use super::{CutReason, Effect, Exchange, Input, Loaded, RefusedReason};

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Honest,
    /// Flips a bit in every block it sends.
    Corrupt,
    /// Reads and says nothing.
    Silent,
    /// Says that it has everything and sends nothing.
    Promiser,
    /// Says that it lacks a block, then that it has it, for ever.
    Waverer,
    /// Answers with noise.
    Noise,
    /// Sends every block it is asked for many times.
    Repeater,
}

pub(super) struct Node {
    pub(super) id: DeviceId,
    pub(super) exchange: Exchange,
    pub(super) store: BTreeMap<Cid, Bytes>,
    pub(super) manner: Manner,
    /// When each block came.
    pub(super) got: BTreeMap<Cid, u64>,
    pub(super) got_from: BTreeMap<DeviceId, usize>,
    pub(super) unavailable: Vec<(u64, Cid)>,
    pub(super) refused: Vec<(Cid, RefusedReason)>,
    pub(super) cut: Vec<(DeviceId, CutReason)>,
    pub(super) load_us: u64,
    wake_at: Option<Time>,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    pub(super) up: bool,
    pub(super) latency_us: u64,
    pub(super) bytes_per_ms: u64,
    epoch: u32,
    busy_until: u64,
}

#[derive(Debug)]
enum Event {
    Deliver {
        from: usize,
        to: usize,
        epoch: u32,
        bytes: Bytes,
    },
    Flushed {
        from: usize,
        to: usize,
        epoch: u32,
        len: usize,
    },
    Loaded {
        node: usize,
        peer: DeviceId,
        cid: Cid,
        block: bool,
    },
    Wake {
        node: usize,
    },
    Connect(usize, usize),
    Disconnect(usize, usize),
    Store(usize, Cid, Bytes),
}

pub(super) struct Network {
    pub(super) nodes: Vec<Node>,
    pub(super) wires: BTreeMap<(usize, usize), Wire>,
    events: BTreeMap<(u64, u64), Event>,
    pub(super) now_us: u64,
    next_event: u64,
    random: u64,
    steps: u64,
    /// Invariants are checked every so many steps.
    pub(super) check_every: u64,
    /// Hash of all that happened.
    pub(super) trace: u64,
}

impl Network {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        let node = |index: usize| Node {
            id: device(index),
            exchange: Exchange::new(),
            store: BTreeMap::new(),
            manner: Manner::Honest,
            got: BTreeMap::new(),
            got_from: BTreeMap::new(),
            unavailable: Vec::new(),
            refused: Vec::new(),
            cut: Vec::new(),
            load_us: 50,
            wake_at: None,
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            wires: BTreeMap::new(),
            events: BTreeMap::new(),
            now_us: 1_000_000,
            next_event: 0,
            random: seed,
            steps: 0,
            check_every: 1,
            trace: 0,
        }
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Blocks of random bytes, each with its CID.
    pub(super) fn blocks(&mut self, count: usize, len: usize) -> Vec<(Cid, Bytes)> {
        let block = |network: &mut Self| {
            let mut bytes = vec![0; len];
            for chunk in bytes.chunks_mut(8) {
                let word = network.below(u64::MAX).to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
            (Cid::of_block(&bytes), Bytes::from(bytes))
        };
        (0..count).map(|_| block(self)).collect()
    }

    /// Both directions of a connection; it comes up at once.
    pub(super) fn connect(&mut self, a: usize, b: usize, latency_us: u64, bytes_per_ms: u64) {
        for (from, to) in [(a, b), (b, a)] {
            let wire = Wire {
                up: false,
                latency_us,
                bytes_per_ms,
                epoch: 0,
                busy_until: 0,
            };
            self.wires.insert((from, to), wire);
        }
        self.set_up(a, b);
    }

    pub(super) fn at(&mut self, after_ms: u64, what: Script) {
        let event = match what {
            Script::Connect(a, b) => Event::Connect(a, b),
            Script::Disconnect(a, b) => Event::Disconnect(a, b),
            Script::Store(node, cid, block) => Event::Store(node, cid, block),
        };
        self.schedule(self.now_us + after_ms * 1000, event);
    }

    fn set_up(&mut self, a: usize, b: usize) {
        if self.wires[&(a, b)].up {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let wire = self.wires.get_mut(&(from, to)).unwrap();
            wire.up = true;
            wire.epoch += 1;
            wire.busy_until = 0;
        }
        self.feed(a, Input::PeerUp(device(b)));
        self.feed(b, Input::PeerUp(device(a)));
    }

    pub(super) fn set_down(&mut self, a: usize, b: usize) {
        if !self.wires[&(a, b)].up {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let wire = self.wires.get_mut(&(from, to)).unwrap();
            wire.up = false;
            wire.epoch += 1;
        }
        self.feed(a, Input::PeerDown(device(b)));
        self.feed(b, Input::PeerDown(device(a)));
    }

    pub(super) fn want(&mut self, node: usize, request: u64, cids: Vec<Cid>) {
        self.feed(node, Input::Want { request, cids });
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.events.insert((at, self.next_event), event);
        self.next_event += 1;
    }

    pub(super) fn feed(&mut self, node: usize, input: Input) {
        let now = Time(self.now_us / 1000);
        self.nodes[node].exchange.handle(now, input);
        while let Some(effect) = self.nodes[node].exchange.poll_effect() {
            self.perform(node, effect);
        }
        self.steps += 1;
        if self.steps.is_multiple_of(self.check_every) {
            self.nodes[node].exchange.check_invariants();
        }
        let wake = self.nodes[node].exchange.next_wakeup();
        if let Some(at) = wake
            && self.nodes[node]
                .wake_at
                .is_none_or(|other| other > at || other <= now)
        {
            self.nodes[node].wake_at = Some(at);
            self.schedule((at.0 * 1000).max(self.now_us + 1), Event::Wake { node });
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send { peer, message } => {
                assert!(message.len_bytes() <= super::MESSAGE_BYTES_MAX);
                let to = index(&peer);
                let len = message.len_bytes();
                let bytes = message.into_bytes();
                assert_eq!(bytes.len(), len);
                if self.nodes[node].manner == Manner::Corrupt {
                    for bytes in corrupt(&bytes) {
                        self.transmit(node, to, bytes);
                    }
                    return;
                }
                if self.nodes[node].manner == Manner::Repeater {
                    for _ in 0..400 {
                        self.transmit(node, to, bytes.clone());
                    }
                }
                self.transmit(node, to, bytes);
            }
            Effect::Load { peer, cid, block } => {
                let at = self.now_us + self.nodes[node].load_us;
                self.schedule(
                    at,
                    Event::Loaded {
                        node,
                        peer,
                        cid,
                        block,
                    },
                );
            }
            Effect::Got {
                cid,
                block,
                from,
                requests,
            } => {
                assert!(cid.verifies(&block), "nothing unverified is handed on");
                assert!(!requests.is_empty());
                self.mix(&cid.digest().unwrap());
                let now_us = self.now_us;
                let node = &mut self.nodes[node];
                assert!(
                    node.got.insert(cid, now_us).is_none(),
                    "a block is got once"
                );
                *node.got_from.entry(from).or_default() += 1;
                // Out of its message, as a store would.
                node.store.insert(cid, Bytes::copy_from_slice(&block));
                let node = index(&node.id);
                self.schedule(now_us, Event::Store(node, cid, Bytes::new()));
            }
            Effect::Held { cid, .. } => assert!(self.nodes[node].store.contains_key(&cid)),
            Effect::Unavailable { request, cid } => {
                self.nodes[node].unavailable.push((request, cid))
            }
            Effect::Sought { request, cid } => {
                let told = &mut self.nodes[node].unavailable;
                let before = told.len();
                told.retain(|known| *known != (request, cid));
                assert_eq!(
                    told.len() + 1,
                    before,
                    "said of what was told to be unavailable"
                );
            }
            Effect::Refused { cid, reason, .. } => self.nodes[node].refused.push((cid, reason)),
            Effect::Disconnect { peer, reason } => {
                self.nodes[node].cut.push((peer, reason));
                let at = self.now_us;
                self.schedule(at, Event::Disconnect(node, index(&peer)));
            }
        }
    }

    fn transmit(&mut self, from: usize, to: usize, bytes: Bytes) {
        let now_us = self.now_us;
        let Some(wire) = self.wires.get_mut(&(from, to)).filter(|wire| wire.up) else {
            return;
        };
        let len = bytes.len();
        let start = now_us.max(wire.busy_until);
        let written = start + len as u64 * 1000 / wire.bytes_per_ms + 1;
        wire.busy_until = written;
        let (epoch, latency) = (wire.epoch, wire.latency_us);
        self.schedule(
            written,
            Event::Flushed {
                from,
                to,
                epoch,
                len,
            },
        );
        self.schedule(
            written + latency,
            Event::Deliver {
                from,
                to,
                epoch,
                bytes,
            },
        );
    }

    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&self.now_us.to_le_bytes()) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Runs until nothing is left to happen, `done`, or that many virtual milliseconds have passed; says whether it was `done`.
    pub(super) fn run_until(&mut self, limit_ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now_us + limit_ms * 1000;
        while !done(self) {
            let Some((&(at, number), _)) = self.events.first_key_value() else {
                return false;
            };
            if at > end {
                self.now_us = end;
                return false;
            }
            let event = self.events.remove(&(at, number)).unwrap();
            self.now_us = self.now_us.max(at);
            self.happen(event);
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver {
                from,
                to,
                epoch,
                bytes,
            } => {
                if self.wires[&(from, to)].epoch != epoch {
                    return;
                }
                self.mix(blake3::hash(&bytes).as_bytes());
                match self.nodes[to].manner {
                    Manner::Silent => {}
                    Manner::Promiser | Manner::Waverer | Manner::Noise => {
                        self.misbehave(to, from, &bytes)
                    }
                    _ => self.feed(
                        to,
                        Input::Message {
                            peer: device(from),
                            bytes,
                        },
                    ),
                }
            }
            Event::Flushed {
                from,
                to,
                epoch,
                len,
            } => {
                if self.wires[&(from, to)].epoch == epoch {
                    self.feed(
                        from,
                        Input::Flushed {
                            peer: device(to),
                            len,
                        },
                    );
                }
            }
            Event::Loaded {
                node,
                peer,
                cid,
                block,
            } => {
                let found = self.nodes[node].store.get(&cid).map(|bytes| {
                    if block {
                        Loaded::Block(bytes.clone())
                    } else {
                        Loaded::Size(bytes.len() as u32)
                    }
                });
                self.feed(node, Input::Loaded { peer, cid, found });
            }
            Event::Wake { node } => {
                if self.nodes[node]
                    .wake_at
                    .is_some_and(|at| at.0 * 1000 <= self.now_us)
                {
                    self.nodes[node].wake_at = None;
                    self.feed(node, Input::Wake);
                }
            }
            Event::Connect(a, b) => self.set_up(a, b),
            Event::Disconnect(a, b) => self.set_down(a, b),
            Event::Store(node, cid, block) => {
                if !block.is_empty() {
                    self.nodes[node].store.insert(cid, block);
                }
                self.feed(node, Input::Stored(vec![cid]));
            }
        }
    }

    /// Answers by hand, as no exchange of ours would.
    fn misbehave(&mut self, node: usize, peer: usize, bytes: &Bytes) {
        let wanted: BTreeSet<(Cid, EntryKind)> = Message::decode(bytes)
            .unwrap()
            .entries
            .iter()
            .filter(|entry| entry.kind != EntryKind::Cancel)
            .map(|entry| (entry.cid, entry.kind))
            .collect();
        let presence = |have: bool| {
            let presences = wanted
                .iter()
                .map(|(cid, _)| Presence { cid: *cid, have })
                .collect();
            Message {
                presences,
                ..Message::default()
            }
            .encode()
            .into_bytes()
        };
        match self.nodes[node].manner {
            Manner::Promiser => self.transmit(node, peer, presence(true)),
            Manner::Waverer => {
                self.transmit(node, peer, presence(false));
                self.transmit(node, peer, presence(true));
            }
            Manner::Noise => {
                let noise: Vec<u8> = (0..64).map(|_| self.below(256) as u8).collect();
                self.transmit(node, peer, Bytes::from(noise));
            }
            _ => {}
        }
    }

    pub(super) fn has_all(&self, node: usize, blocks: &[(Cid, Bytes)]) -> bool {
        self.nodes[node].got.len() >= blocks.len()
            && blocks
                .iter()
                .all(|(cid, _)| self.nodes[node].store.contains_key(cid))
    }
}

pub(super) enum Script {
    Connect(usize, usize),
    Disconnect(usize, usize),
    Store(usize, Cid, Bytes),
}

pub(super) fn device(index: usize) -> DeviceId {
    DeviceId([index as u8 + 1; 32])
}

pub(super) fn index(device: &DeviceId) -> usize {
    usize::from(device.0[0]) - 1
}

/// The same message with a bit of each block flipped; without blocks, the very same.
fn corrupt(bytes: &Bytes) -> Vec<Bytes> {
    let mut message = Message::decode(bytes).unwrap();
    for block in &mut message.blocks {
        let mut data = block.data.to_vec();
        if let Some(first) = data.first_mut() {
            *first ^= 1;
        }
        block.data = Bytes::from(data);
    }
    vec![message.encode().into_bytes()]
}

impl Ord for EntryKind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

impl PartialOrd for EntryKind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
