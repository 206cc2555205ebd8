//! Devices that keep, give up and promise, with keeper and holdings as they ship; connections, clocks, disks and views of the mesh that differ.

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_crdt::access::{self, Access, Role};
use kith_crdt::catalogue::{Born, CatalogueRecord, Coded, Leaving, Retired};
use kith_object::coding::{Coding, DataShard};
use kith_object::id::{EntryId, SpaceId};
use kith_object::key::{DeviceKeys, derive};
use kith_object::time::Hlc;
use kith_protocol::holdings::{self, Holdings};
use kith_protocol::placement::{Policy, Redundancy};

use kith_protocol::promise::BlocksProver;

use super::*;
use crate::arrangement::Giver;
use crate::keeper::{Pull, Pulled, Way};
use crate::packs::Packs;
use crate::probing::{Probe, Probed, Probing};

const SPACE: SpaceId = SpaceId([9; 32]);
const START: Time = Time(1_700_000_000_000);

fn keys(n: usize) -> DeviceKeys {
    DeviceKeys::generate(&mut Rng::from_seed([n as u8; 32]))
}

fn pack(n: u64) -> PackId {
    PackId(derive("test pack", &n.to_le_bytes()))
}

/// A pack's bytes are its name, for these tests.
fn proof(challenge: &Challenge, pack: &PackId) -> Proof {
    let said = [
        &challenge.nonce[..],
        &challenge.holder.0,
        &challenge.asker.0,
        &pack.0,
    ];
    derive("test proof", &said.concat())
}

/// Two blocks of each pack that is no merge.
fn blocks(n: u64) -> BTreeSet<Digest> {
    let block = |at: u64| derive("test block", &[n.to_le_bytes(), at.to_le_bytes()].concat());
    BTreeSet::from([block(0), block(1)])
}

/// A block's bytes are its digest.
fn blocks_proof(challenge: &Challenge, digests: &[Digest], has: &Bits) -> Proof {
    let mut prover = BlocksProver::new(challenge);
    let had = digests
        .iter()
        .enumerate()
        .filter(|(at, _)| has.contains(*at));
    had.for_each(|(_, digest)| prover.update(digest));
    prover.finish()
}

#[derive(Debug)]
enum Event {
    Frame {
        from: usize,
        to: usize,
        is_promise: bool,
        bytes: Bytes,
    },
    Pulled(usize, Pull),
    Vouched(usize, Vouch),
    Listed(usize, PackId),
    GiveUp(usize, GiveUp),
    Probed(usize, Probe),
    /// A device hears how the mesh is arranged.
    Arranged(usize, BTreeMap<DeviceId, Giver>),
}

struct Device {
    keys: DeviceKeys,
    keeper: Keeper,
    promises: Promises,
    probing: Probing,
    holdings: Holdings,
    packs: Packs,
    givers: BTreeMap<DeviceId, Giver>,
    connected: BTreeSet<DeviceId>,
    is_up: bool,
    /// Of which life an event is.
    life: usize,
    /// What truly lies there.
    disk: BTreeSet<PackId>,
    /// What was promised, as it lasts.
    log: BTreeMap<PackId, Time>,
    /// What would be promised by an answer, and what others were told.
    answers: BTreeMap<Nonce, (Vec<PackId>, Time)>,
    told: BTreeMap<PackId, Time>,
    kept: Vec<u8>,
}

struct Mesh {
    seed: u64,
    now: Time,
    rng: Rng,
    access: Access,
    policy: Policy,
    devices: Vec<Device>,
    events: BTreeMap<(Time, u64), (usize, Event)>,
    number: u64,
    /// How many copies were given up, and how many of packs that were replaced.
    given_up: usize,
    dropped: usize,
    /// Of these, copies of packs that have shards, and parity of what was nowhere any more; and lies about shards that were found out.
    coded_away: usize,
    spent: usize,
    taken_back: usize,
    /// What lies in each pack.
    blocks: BTreeMap<PackId, BTreeSet<Digest>>,
    /// Packs that were replaced, and by which.
    replaced: BTreeMap<PackId, PackId>,
    /// Devices that say yes to whatever they are asked, with a proof of their own making.
    liars: BTreeSet<usize>,
    /// Copies that are left must be as many.
    least: usize,
    /// The shards that packs truly have, and what somebody said last.
    codes: BTreeMap<PackId, Coding>,
    /// Shards that are none.
    lies: BTreeSet<PackId>,
    /// What is said later has the greater stamp.
    hlc: u64,
}

impl Mesh {
    fn new(seed: u64, count: usize, copies: u8) -> Self {
        let mut rng = Rng::from_seed(derive("test mesh", &seed.to_le_bytes()));
        let member = || access::Device {
            role: Role::Member,
            name: String::new(),
            agree: None,
        };
        let all: Vec<DeviceKeys> = (0..count).map(keys).collect();
        let ids: BTreeSet<DeviceId> = all.iter().map(DeviceKeys::id).collect();
        let giver = Giver {
            capacity: 1 << 30,
            grace: Span::from_secs(3 * 86_400),
            is_said: true,
            ..Giver::default()
        };
        let givers: BTreeMap<DeviceId, Giver> = ids.iter().map(|id| (*id, giver.clone())).collect();
        let devices = all.into_iter().map(|keys| Device {
            keeper: Keeper::new(keys.id(), START),
            promises: Promises::new(keys.id(), rng.split()),
            probing: Probing::new(rng.split()),
            holdings: Holdings::new(keys.clone(), SPACE),
            packs: Packs::default(),
            givers: givers.clone(),
            connected: BTreeSet::new(),
            is_up: false,
            life: 0,
            disk: BTreeSet::new(),
            log: BTreeMap::new(),
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            kept: Vec::new(),
            keys,
        });
        let devices = devices.collect();
        let mut mesh = Self {
            seed,
            now: START,
            rng,
            access: Access {
                members: ids.iter().map(|id| (*id, member())).collect(),
                ..Access::default()
            },
            policy: Policy {
                redundancy: Some(Redundancy::Replicas(copies)),
                ..Policy::default()
            },
            devices,
            events: BTreeMap::new(),
            number: 0,
            given_up: 0,
            dropped: 0,
            coded_away: 0,
            spent: 0,
            taken_back: 0,
            blocks: BTreeMap::new(),
            replaced: BTreeMap::new(),
            liars: BTreeSet::new(),
            least: usize::from(copies),
            codes: BTreeMap::new(),
            lies: BTreeSet::new(),
            hlc: 5,
        };
        for at in 0..count {
            mesh.start(at);
        }
        mesh
    }

    fn id(&self, at: usize) -> DeviceId {
        self.devices[at].keys.id()
    }

    fn place(&self, id: &DeviceId) -> usize {
        self.devices
            .iter()
            .position(|of| of.keys.id() == *id)
            .unwrap()
    }

    fn later(&mut self, at: usize, most_ms: u64, event: Event) {
        let due = self.now + Span::from_ms(1 + self.rng.below(most_ms));
        self.number += 1;
        let life = self.devices[at].life;
        self.events.insert((due, self.number), (life, event));
    }

    /// Whether it runs or not, the device is killed, and begins anew with what lasts.
    fn start(&mut self, at: usize) {
        self.kill(at);
        let (rng, chance) = (self.rng.split(), self.rng.split());
        let (now, members) = (self.now, self.access.members.keys().copied().collect());
        let device = &mut self.devices[at];
        device.is_up = true;
        device.keeper = Keeper::new(device.keys.id(), now);
        device.promises = Promises::new(device.keys.id(), rng);
        device.probing = Probing::new(chance);
        let promised = device.log.iter().map(|(pack, until)| Promised {
            pack: *pack,
            until: *until,
        });
        device.promises.recall(now, promised, false);
        device.holdings = Holdings::new(device.keys.clone(), SPACE);
        device
            .holdings
            .handle(now, holdings::Input::Members(members));
        device.holdings.recall(&device.kept.clone());
        let own = device.disk.iter().map(|pack| HoldingTag::from(*pack));
        let own = holdings::Input::Own(own.collect());
        device.holdings.handle(now, own);
        self.arrange(at);
        self.settle(at);
    }

    fn kill(&mut self, at: usize) {
        for other in 0..self.devices.len() {
            self.link(at, other, false);
        }
        let device = &mut self.devices[at];
        device.kept = device.holdings.encode();
        device.is_up = false;
        device.life += 1;
    }

    fn link(&mut self, one: usize, other: usize, up: bool) {
        if one == other || up && !(self.devices[one].is_up && self.devices[other].is_up) {
            return;
        }
        for (at, peer) in [(one, other), (other, one)] {
            let (now, peer) = (self.now, self.id(peer));
            let device = &mut self.devices[at];
            if up && device.connected.insert(peer) {
                device.holdings.handle(now, holdings::Input::PeerUp(peer));
                device.keeper.reach_changed(now);
                device.promises.peer_up(now);
                device.probing.peer_up(now, peer);
            } else if !up && device.connected.remove(&peer) {
                device.holdings.handle(now, holdings::Input::PeerDown(peer));
                device.keeper.reach_changed(now);
                device.promises.peer_down(now, peer);
                device.probing.peer_down(peer);
            }
            self.settle(at);
        }
    }

    fn arrange(&mut self, at: usize) {
        let policy = self.policy.clone();
        let device = &mut self.devices[at];
        let view = View {
            access: &self.access,
            packs: &device.packs,
            holdings: &device.holdings,
            connected: &device.connected,
        };
        let givers = device.givers.clone();
        device.keeper.arrange(self.now, givers, policy, view);
    }

    /// Everybody hears of it, each in its own time.
    fn rearrange(&mut self, givers: &BTreeMap<DeviceId, Giver>, most_ms: u64) {
        for at in 0..self.devices.len() {
            self.later(at, most_ms, Event::Arranged(at, givers.clone()));
        }
    }

    /// A pack comes to be on a device.
    fn born(&mut self, n: u64, at: usize) {
        let record = CatalogueRecord::Born(Born {
            pack: pack(n),
            class: 3,
            blocks: 1,
            bytes: 1000,
        });
        self.blocks.insert(pack(n), blocks(n));
        let hlc = self.hlc;
        self.say("born", n, Hlc(hlc), at, &record);
        self.holds(at, pack(n), true);
    }

    /// All devices hear at once what one says.
    fn say(&mut self, what: &str, n: u64, hlc: Hlc, by: usize, record: &CatalogueRecord) {
        let author = self.id(by);
        let entry = EntryId(derive(what, &n.to_le_bytes()));
        for device in &mut self.devices {
            device.packs.add(entry, author, hlc, record);
            let changed = device.packs.take_changed();
            device
                .keeper
                .packs_changed(self.now, changed, &device.packs);
        }
    }

    /// A device merges packs into one.
    fn merge(&mut self, at: usize, old: &[PackId], n: u64) {
        self.born(n, at);
        let all = old.iter().flat_map(|old| self.blocks[old].clone());
        let all = all.collect();
        self.blocks.insert(pack(n), all);
        for (place, old) in (0..).zip(old) {
            let retired = CatalogueRecord::Retired(Retired {
                pack: *old,
                replacements: vec![pack(n)],
                basis: Vec::new(),
                left_out: Vec::new(),
            });
            self.hlc += 1;
            let hlc = self.hlc;
            self.say("retired", 1000 * n + place, Hlc(hlc), at, &retired);
            self.replaced.insert(*old, pack(n));
        }
    }

    /// A device drops what was replaced and lies in other packs there, as its collector does.
    fn collect(&mut self, at: usize) {
        for old in self.devices[at].disk.clone() {
            let lies = |block: &Digest| self.found(at, block, &old).is_some();
            if self.is_replaced(&old) && self.blocks[&old].iter().all(lies) {
                self.holds(at, old, false);
            }
        }
    }

    /// Whether a pack, or that of which it is a shard, was merged into another one.
    fn is_replaced(&self, pack: &PackId) -> bool {
        let whole = self.shard_of(pack).map_or(*pack, |(code, _)| code.pack);
        self.replaced.contains_key(&whole)
    }

    /// A pack on a disk that has a block and stays, besides that.
    fn found(&self, at: usize, block: &Digest, besides: &PackId) -> Option<PackId> {
        let disk = self.devices[at].disk.iter();
        let mut has = disk.filter(|pack| {
            *pack != besides && !self.is_replaced(pack) && self.blocks[*pack].contains(block)
        });
        has.next().copied()
    }

    /// What a device answers when it is asked to promise this.
    fn vouch(&mut self, at: usize, vouch: &Vouch) -> Result<Vouched, Refused> {
        let (packs, has, proof) = match &vouch.wish {
            Wish::Pack(pack) if self.devices[at].disk.contains(pack) => {
                let proof = proof(&vouch.challenge, pack);
                (vec![*pack], Bits::default(), proof)
            }
            Wish::Pack(_) => return Err(Refused::Damaged),
            Wish::Blocks(digests) => {
                let mut has = Bits::none_of(digests.len());
                let mut packs = BTreeSet::new();
                for (place, block) in digests.iter().enumerate() {
                    if let Some(pack) = self.found(at, block, &PackId::default()) {
                        packs.insert(pack);
                        has.insert(place);
                    }
                }
                let proof = blocks_proof(&vouch.challenge, digests, &has);
                (packs.into_iter().collect(), has, proof)
            }
        };
        let log = &mut self.devices[at].log;
        log.extend(packs.iter().map(|pack| (*pack, vouch.until)));
        let answer = (packs.clone(), vouch.until);
        let answers = &mut self.devices[at].answers;
        answers.insert(vouch.challenge.nonce, answer);
        Ok(Vouched { proof, packs, has })
    }

    fn holds(&mut self, at: usize, pack: PackId, holds: bool) {
        let device = &mut self.devices[at];
        let tag = vec![HoldingTag::from(pack)];
        let (added, removed) = if holds {
            device.disk.insert(pack);
            (tag, Vec::new())
        } else {
            device.disk.remove(&pack);
            (Vec::new(), tag)
        };
        let changed = holdings::Input::Changed { added, removed };
        device.holdings.handle(self.now, changed);
        self.settle(at);
    }

    fn holders(&self, pack: &PackId) -> Vec<usize> {
        let there = |at: &usize| self.devices[*at].disk.contains(pack);
        (0..self.devices.len()).filter(there).collect()
    }

    /// Lets a device do what is due.
    fn settle(&mut self, at: usize) {
        if !self.devices[at].is_up {
            return;
        }
        let (mut todo, mut frames, mut probes) = (Vec::new(), Vec::new(), Vec::new());
        let mut fetching = Vec::new();
        let device = &mut self.devices[at];
        loop {
            while let Some(effect) = device.holdings.poll_effect() {
                match effect {
                    holdings::Effect::Send { peer, bytes } => frames.push((peer, bytes)),
                    holdings::Effect::News {
                        device: whose,
                        added,
                        removed,
                    } => {
                        let tags = [added, removed].concat();
                        device
                            .keeper
                            .holdings_changed(self.now, &whose, &tags, &device.packs);
                    }
                    holdings::Effect::Disconnect { reason, .. } => panic!("{reason}"),
                }
            }
            let view = View {
                access: &self.access,
                packs: &device.packs,
                holdings: &device.holdings,
                connected: &device.connected,
            };
            let pulls = device.keeper.work(self.now, view);
            for (pack, surplus) in device.keeper.take_turned() {
                device.promises.is_surplus(self.now, pack, surplus);
            }
            device.promises.work(self.now, &device.keeper, view);
            let mut is_over = true;
            while let Some(action) = device.promises.poll_action() {
                is_over = false;
                match action {
                    Action::Disprove(pack, of) => {
                        device.keeper.disprove(self.now, pack, of);
                        if let Some(verdict) = device.probing.note(&of, false) {
                            device.keeper.trust(self.now, of, verdict.is_trusted);
                        }
                    }
                    other => todo.push(other),
                }
            }
            probes.extend(device.probing.work(self.now, view));
            device.keeper.check_invariants();
            device.probing.check_invariants();
            device.promises.check_invariants();
            fetching.extend(pulls);
            if is_over {
                break;
            }
        }
        for pull in fetching {
            self.later(at, 60_000, Event::Pulled(at, pull));
        }
        for probe in probes {
            self.later(at, 2000, Event::Probed(at, probe));
        }
        for (peer, bytes) in frames {
            let len = bytes.len();
            let to = self.place(&peer);
            let frame = Event::Frame {
                from: at,
                to,
                is_promise: false,
                bytes,
            };
            self.later(to, 300, frame);
            let flushed = holdings::Input::Flushed { peer, len };
            self.devices[at].holdings.handle(self.now, flushed);
        }
        for action in todo {
            match action {
                Action::Send(peer, message) => {
                    let to = self.place(&peer);
                    if let Message::Promise { nonce, .. } | Message::PromiseBlocks { nonce, .. } =
                        &message
                    {
                        let device = &mut self.devices[at];
                        let (packs, until) = device.answers.remove(nonce).unwrap_or_default();
                        device
                            .told
                            .extend(packs.into_iter().map(|pack| (pack, until)));
                    }
                    let frame = Event::Frame {
                        from: at,
                        to,
                        is_promise: true,
                        bytes: message.encode().into(),
                    };
                    self.later(to, 300, frame);
                }
                Action::Vouch(vouch) => self.later(at, 20_000, Event::Vouched(at, vouch)),
                Action::GiveUp(give_up) => self.later(at, 5000, Event::GiveUp(at, give_up)),
                Action::List(pack) => self.later(at, 50, Event::Listed(at, pack)),
                Action::Disprove(..) => {}
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Frame {
                from,
                to,
                is_promise,
                bytes,
            } => {
                let peer = self.id(from);
                let device = &mut self.devices[to];
                if !device.connected.contains(&peer) {
                    return;
                }
                if !is_promise {
                    let frame = holdings::Input::Frame { peer, bytes };
                    device.holdings.handle(now, frame);
                    return self.settle(to);
                }
                let message = Message::decode(&bytes).unwrap();
                let lie = match &message {
                    _ if !self.liars.contains(&to) => None,
                    Message::Ask { nonce, .. } => {
                        let (nonce, proof) = (*nonce, [7; 32]);
                        Some(Message::Promise { nonce, proof })
                    }
                    Message::AskBlocks { nonce, digests } => {
                        let mut has = Bits::none_of(digests.len());
                        (0..digests.len()).for_each(|at| has.insert(at));
                        let (nonce, proof) = (*nonce, [7; 32]);
                        Some(Message::PromiseBlocks { nonce, proof, has })
                    }
                    _ => None,
                };
                if let Some(lie) = lie {
                    let frame = Event::Frame {
                        from: to,
                        to: from,
                        is_promise: true,
                        bytes: lie.encode().into(),
                    };
                    return self.later(from, 300, frame);
                }
                let view = View {
                    access: &self.access,
                    packs: &device.packs,
                    holdings: &device.holdings,
                    connected: &device.connected,
                };
                device.promises.received(now, peer, message, view);
                self.settle(to);
            }
            Event::Pulled(at, pull) => {
                let (pack, came) = (pull.pack, self.comes(at, &pull));
                if came {
                    self.holds(at, pack, true);
                }
                let how = if came { Pulled::Came } else { Pulled::Failed };
                if let Way::Cut(shard) = &pull.way
                    && !came
                    && self.devices[at].disk.contains(&shard.coding.pack)
                {
                    self.take_code_back(at, shard.coding.pack);
                }
                self.devices[at].keeper.pulled(now, pack, how);
                self.settle(at);
            }
            Event::Vouched(at, vouch) => {
                let Challenge { nonce, asker, .. } = vouch.challenge;
                let outcome = self.vouch(at, &vouch);
                let is_damaged = outcome.is_err();
                let device = &mut self.devices[at];
                let view = View {
                    access: &self.access,
                    packs: &device.packs,
                    holdings: &device.holdings,
                    connected: &device.connected,
                };
                device.promises.vouched(now, asker, nonce, outcome, view);
                self.settle(at);
                if let (true, Wish::Pack(pack)) = (is_damaged, vouch.wish) {
                    // Scrub finds it too.
                    self.holds(at, pack, false);
                }
            }
            Event::Listed(at, pack) => {
                let blocks = self.blocks[&pack].iter();
                let left = blocks.filter(|block| self.found(at, block, &pack).is_none());
                let digests = Some(left.copied().collect());
                let digests = digests.filter(|_| self.devices[at].disk.contains(&pack));
                let device = &mut self.devices[at];
                let view = View {
                    access: &self.access,
                    packs: &device.packs,
                    holdings: &device.holdings,
                    connected: &device.connected,
                };
                let keeper = &device.keeper;
                device.promises.listed(now, pack, digests, keeper, view);
                self.settle(at);
            }
            Event::GiveUp(at, give_up) => self.give_up(at, &give_up),
            Event::Probed(at, probe) => self.probed(at, probe),
            Event::Arranged(at, givers) => {
                self.devices[at].givers = givers;
                self.arrange(at);
                self.settle(at);
            }
        }
    }

    fn probed(&mut self, at: usize, probe: Probe) {
        let (of, pack) = (self.place(&probe.device), probe.pack);
        let is_there = self.devices[of].disk.contains(&pack);
        let device = &mut self.devices[at];
        let how = match device.connected.contains(&probe.device) {
            true if is_there => Probed::Sound,
            true => Probed::False,
            false => Probed::Nothing,
        };
        if let Some(verdict) = device.probing.probed(self.now, probe.device, pack, how) {
            if verdict.is_there {
                device.keeper.prove(self.now, pack, probe.device);
            } else {
                device.keeper.disprove(self.now, pack, probe.device);
            }
            let trusted = verdict.is_trusted;
            device.keeper.trust(self.now, probe.device, trusted);
        }
        self.settle(at);
        if how == Probed::False && !self.liars.contains(&of) {
            // Who reads the pack for that finds out.
            self.holds(of, pack, false);
        }
    }

    fn give_up(&mut self, at: usize, give_up: &GiveUp) {
        let (now, pack) = (self.now, give_up.pack);
        let said = give_up.proofs.iter().enumerate();
        let false_ones = said.filter(|(place, (of, said))| match &give_up.how {
            Giving::Replaced(replaced) => {
                blocks_proof(of, &replaced.digests, &replaced.has[*place]) != *said
            }
            Giving::Coded(shards) => {
                let mut kept = shards.kept.iter();
                let kept = kept.find(|kept| kept.devices == [of.holder]).unwrap();
                proof(of, &kept.pack) != *said
            }
            _ => proof(of, &pack) != *said,
        });
        let false_ones: Vec<DeviceId> = false_ones.map(|(_, (of, _))| of.holder).collect();
        let is_misnamed = match &give_up.how {
            Giving::Coded(shards) => self.codes.get(&pack) != Some(&shards.coding),
            _ => false,
        };
        let how = if !self.devices[at].disk.contains(&pack) {
            GaveUp::Stays
        } else if is_misnamed {
            self.take_code_back(at, pack);
            GaveUp::Stays
        } else if !false_ones.is_empty() {
            GaveUp::False(false_ones)
        } else if !self.may_go(at, give_up) {
            GaveUp::Stays
        } else {
            let promised = self.devices[at].told.get(&pack);
            assert!(
                promised.is_none_or(|until| *until <= now),
                "nobody gives up what it has promised: {}",
                self.seed
            );
            self.given_up += 1;
            let had = self.recoverable(&[]);
            self.holds(at, pack, false);
            assert_eq!(self.recoverable(&[]), had, "nothing is lost: {}", self.seed);
            GaveUp::Gone
        };
        self.devices[at].promises.gave_up(now, pack, how);
        self.settle(at);
    }

    /// Whether a copy may go by sound proofs: then enough others have what is in it, and keep it.
    fn may_go(&mut self, at: usize, give_up: &GiveUp) -> bool {
        let (now, pack) = (self.now, give_up.pack);
        let keeps = |of: usize, pack: &PackId| {
            let until = self.devices[of].log.get(pack).copied();
            until.unwrap_or_default().since(now) > Span::from_secs(22 * 3600)
        };
        match &give_up.how {
            Giving::Coded(shards) => return self.may_go_coded(at, give_up, shards),
            Giving::Spent => {
                self.spent += 1;
                return true;
            }
            // One copy of each shard is enough.
            _ if self.shard_of(&pack).is_some() && !matches!(give_up.how, Giving::Replaced(_)) => {
                for (of, _) in &give_up.proofs {
                    let holder = self.place(&of.holder);
                    assert!(self.devices[holder].disk.contains(&pack) && keeps(holder, &pack));
                }
                return !give_up.proofs.is_empty();
            }
            _ => {}
        }
        let Giving::Replaced(replaced) = &give_up.how else {
            // Who merged it since has what is in it all the same.
            let has = |of: &usize, block| {
                let mut disk = self.devices[*of].disk.iter();
                disk.any(|pack| self.blocks[pack].contains(block))
            };
            let all = |of: &usize| self.blocks[&pack].iter().all(|block| has(of, block));
            let left: Vec<usize> = (0..self.devices.len())
                .filter(|of| *of != at && all(of))
                .collect();
            let is_last = give_up.how == Giving::AtOnce;
            let least = if is_last { 1 } else { self.least };
            assert!(
                left.len() >= least,
                "enough copies are left: {left:?}, seed {}",
                self.seed
            );
            for (of, _) in &give_up.proofs {
                let holder = self.place(&of.holder);
                assert!(left.contains(&holder), "who proved has it");
                assert!(keeps(holder, &pack), "and keeps it");
            }
            return true;
        };
        for block in &self.blocks[&pack] {
            if self.found(at, block, &pack).is_some() {
                continue;
            }
            let place = replaced.digests.iter().position(|digest| digest == block);
            let Some(place) = place else { return false };
            let proofs = give_up.proofs.iter().zip(&replaced.has);
            let with = proofs.filter(|(_, has)| has.contains(place));
            let with: BTreeSet<DeviceId> = with.map(|((of, _), _)| of.holder).collect();
            let by_all = |of: &KeptBy| of.devices.iter().all(|by| with.contains(by));
            if !replaced.kept.iter().any(by_all) {
                return false;
            }
            assert!(!with.is_empty());
            for of in with {
                let of = self.place(&of);
                let has = |pack: &PackId| self.blocks[pack].contains(block);
                // In the pack that it has promised, or in what it merged that into since.
                assert!(
                    self.devices[of].disk.iter().any(has),
                    "who proved has it: {:?}",
                    self.seed
                );
                let mut promised = self.devices[of].log.keys();
                assert!(
                    promised.any(|pack| has(pack) && keeps(of, pack)),
                    "and keeps it: {:?}",
                    self.seed
                );
            }
        }
        self.dropped += 1;
        true
    }

    /// Whether a pack may go, all shards of which others, and this device, have: any one device may be lost then.
    fn may_go_coded(&mut self, at: usize, give_up: &GiveUp, shards: &ShardsKept) -> bool {
        let ids: Vec<PackId> = shards.coding.ids().collect();
        let kept: BTreeSet<PackId> = shards.kept.iter().map(|kept| kept.pack).collect();
        let own = ids.iter().filter(|id| !kept.contains(id));
        if !own.into_iter().all(|id| self.devices[at].disk.contains(id)) {
            return false;
        }
        assert_eq!(give_up.proofs.len(), kept.len(), "each is proved");
        let (now, pack) = (self.now, give_up.pack);
        for of in &shards.kept {
            let holder = self.place(&of.devices[0]);
            let until = self.devices[holder].log.get(&of.pack).copied();
            assert!(until.unwrap_or_default().since(now) > Span::from_secs(22 * 3600));
        }
        self.devices[at].disk.remove(&pack);
        for lost in 0..self.devices.len() {
            let left = self.recoverable(&[lost]);
            assert!(
                self.blocks[&pack].is_subset(&left),
                "any one may be lost: {lost}, seed {}",
                self.seed
            );
        }
        self.devices[at].disk.insert(pack);
        self.coded_away += 1;
        true
    }

    /// How a pack is coded, and which of its shards that is.
    fn shard_of(&self, id: &PackId) -> Option<(&Coding, usize)> {
        let mut codes = self.codes.values();
        codes.find_map(|code| Some((code, code.ids().position(|shard| shard == *id)?)))
    }

    /// Whether what a device wants comes to it.
    fn comes(&self, at: usize, pull: &Pull) -> bool {
        let has = |device: usize, pack: &PackId| self.devices[device].disk.contains(pack);
        let gives = |sources: &[DeviceId], pack: &PackId| {
            let connected = &self.devices[at].connected;
            let mut there = sources.iter().filter(|source| connected.contains(*source));
            there.any(|source| has(self.place(source), pack))
        };
        match &pull.way {
            Way::Whole(sources) => gives(sources, &pull.pack),
            Way::Cut(shard) => {
                let pack = shard.coding.pack;
                has(at, &pack) && self.codes.get(&pack) == Some(&shard.coding)
            }
            Way::Restored { coding, from, .. } => {
                let ids: Vec<PackId> = coding.ids().collect();
                let there = from.iter().all(|(place, sources)| {
                    let id = &ids[*place];
                    if sources.is_empty() {
                        has(at, id)
                    } else {
                        gives(sources, id)
                    }
                });
                there && self.codes.get(&coding.pack) == Some(coding)
            }
        }
    }

    /// The blocks of files that lie on the disks of all but those, or come of shards that do.
    fn recoverable(&self, without: &[usize]) -> BTreeSet<Digest> {
        let disks = self.devices.iter().enumerate();
        let disks = disks.filter(|(at, _)| !without.contains(at));
        let packs: BTreeSet<PackId> = disks.flat_map(|(_, of)| &of.disk).copied().collect();
        let is_parity = |id: &PackId| {
            let shard = self.shard_of(id);
            shard.is_some_and(|(code, at)| at >= code.data.len())
        };
        let whole = packs.iter().filter(|id| !is_parity(id));
        let mut blocks: BTreeSet<Digest> = whole.flat_map(|id| self.blocks[id].clone()).collect();
        for (pack, code) in &self.codes {
            let there = code.ids().filter(|id| packs.contains(id)).count();
            if there >= code.data.len() {
                blocks.extend(self.blocks[pack].iter().copied());
            }
        }
        blocks
    }

    /// A device says which shards a pack has, truly or not; they come to be where somebody makes them.
    fn code(&mut self, n: u64, at: usize, is_lie: bool) {
        let id = pack(n);
        let holders = crate::arrangement::holders_of(self.devices[at].givers.iter());
        let Ok(placement) = kith_protocol::placement::Placement::new(&holders, &self.policy) else {
            return;
        };
        let named = |what: &str, place: u8| PackId(derive(what, &[&id.0[..], &[place]].concat()));
        let coding = |what: &str| Coding {
            pack: id,
            data: (0..2)
                .map(|place| DataShard {
                    id: named(what, place),
                    len: 400,
                    blocks: 1,
                })
                .collect(),
            parity: vec![named(what, 2)],
        };
        let truth = coding("test shard");
        let all: Vec<Digest> = self.blocks[&id].iter().copied().collect();
        let (first, second) = all.split_at(all.len() / 2);
        for (shard, blocks) in truth.ids().zip([first, second, &[named("parity", 0).0]]) {
            self.blocks.insert(shard, blocks.iter().copied().collect());
        }
        self.codes.insert(id, truth.clone());
        let said = if is_lie { coding("test lie") } else { truth };
        let devices = placement.holders(&id);
        if is_lie {
            // What it made up is a pack, too, and who should hold it has it of the liar.
            for (lie, device) in said.ids().zip(&devices) {
                self.blocks.insert(lie, BTreeSet::new());
                self.lies.insert(lie);
                self.holds(self.place(device), lie, true);
            }
        }
        let coded = CatalogueRecord::Coded(Coded {
            coding: said,
            devices,
        });
        self.hlc += 1;
        let hlc = self.hlc;
        self.say("coded", hlc, Hlc(hlc), at, &coded);
        (0..self.devices.len()).for_each(|at| self.settle(at));
    }

    /// It came out that a pack has other shards.
    fn take_code_back(&mut self, at: usize, id: PackId) {
        if self.devices[at].packs.coded(&id, &self.access).is_none() {
            return;
        }
        let record = CatalogueRecord::Born(Born {
            pack: id,
            class: 3,
            blocks: 1,
            bytes: 1000,
        });
        self.hlc += 1;
        let hlc = self.hlc;
        self.say("born anew", hlc, Hlc(hlc), at, &record);
        self.taken_back += 1;
        (0..self.devices.len()).for_each(|at| self.settle(at));
    }

    /// Lets time pass.
    fn pass(&mut self, span: Span) {
        let end = self.now + span;
        loop {
            let event = self.events.first_key_value().map(|((due, _), _)| *due);
            let wakes = self.devices.iter().enumerate().filter(|(_, of)| of.is_up);
            let wakes = wakes.filter_map(|(at, of)| {
                let due = [
                    of.holdings.next_wakeup(),
                    of.keeper.next_due(),
                    of.promises.next_due(self.now),
                    of.probing.next_due(),
                ];
                Some((due.into_iter().flatten().min()?, at))
            });
            let wake = wakes.min();
            let next = event.into_iter().chain(wake.map(|(due, _)| due)).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            // At least a millisecond, lest two wait for each other in the same one.
            self.now = next.max(self.now + Span::from_ms(1));
            if event.is_some_and(|event| event <= next) {
                let (_, (life, event)) = self.events.pop_first().unwrap();
                let at = match &event {
                    Event::Frame { to, .. } => *to,
                    Event::Pulled(at, ..)
                    | Event::Vouched(at, _)
                    | Event::Listed(at, _)
                    | Event::GiveUp(at, _)
                    | Event::Probed(at, _)
                    | Event::Arranged(at, _) => *at,
                };
                let device = &mut self.devices[at];
                if let Event::Arranged(_, givers) = event {
                    // That lasts.
                    device.givers = givers;
                    if device.is_up {
                        self.arrange(at);
                        self.settle(at);
                    }
                } else if device.is_up && device.life == life {
                    self.happen(event);
                }
            } else if let Some((_, at)) = wake {
                self.devices[at]
                    .holdings
                    .handle(self.now, holdings::Input::Wake);
                self.settle(at);
            }
        }
        self.now = end;
    }

    fn connect_all(&mut self) {
        for one in 0..self.devices.len() {
            if !self.devices[one].is_up {
                self.start(one);
            }
            for other in 0..one {
                self.link(one, other, true);
            }
        }
    }

    fn placed(&self, pack: &PackId) -> BTreeSet<usize> {
        let device = &self.devices[0];
        let view = View {
            access: &self.access,
            packs: &device.packs,
            holdings: &device.holdings,
            connected: &device.connected,
        };
        let placed = device.keeper.standing(pack, view).placed;
        placed.iter().map(|id| self.place(id)).collect()
    }
}

#[test]
fn a_copy_too_many_goes_once_those_who_should_have_one_have_proved_it() {
    let mut mesh = Mesh::new(1, 5, 2);
    mesh.connect_all();
    for n in 0..20 {
        mesh.born(n, 0);
    }
    mesh.pass(Span::from_secs(7200));
    for n in 0..20 {
        let (held, placed) = (mesh.holders(&pack(n)), mesh.placed(&pack(n)));
        assert_eq!(held, placed.into_iter().collect::<Vec<_>>(), "pack {n}");
    }
    assert!(mesh.given_up >= 8, "{}", mesh.given_up);
    // Those who have promised give up nothing for a day, though all they hold should be elsewhere.
    let mut givers = mesh.devices[0].givers.clone();
    let drains = mesh.id(1);
    givers.get_mut(&drains).unwrap().leaving = (Leaving::Drains, Hlc(1));
    let held = mesh.devices[1].disk.clone();
    let promised = mesh.devices[1].log.clone();
    assert!(!held.is_empty() && !promised.is_empty());
    mesh.rearrange(&givers, 10);
    mesh.pass(Span::from_secs(4 * 3600));
    let left = &mesh.devices[1].disk;
    assert!(
        left.iter().all(|pack| promised.contains_key(pack)),
        "{left:?}"
    );
    mesh.pass(Span::from_secs(2 * 86_400));
    assert!(mesh.devices[1].disk.is_empty(), "it is drained");
}

#[test]
fn what_was_replaced_goes_where_what_replaces_it_is_not_once_its_blocks_are_proved() {
    let mut mesh = Mesh::new(7, 6, 2);
    mesh.connect_all();
    for n in 0..12 {
        mesh.born(n, 0);
    }
    mesh.pass(Span::from_secs(3 * 86_400));
    let old: Vec<PackId> = (0..12).map(pack).collect();
    mesh.holds(0, old[0], true);
    mesh.merge(0, &old, 100);
    mesh.pass(Span::from_secs(86_400));
    let merged = mesh.holders(&pack(100));
    assert_eq!(
        merged.iter().copied().collect::<BTreeSet<_>>(),
        mesh.placed(&pack(100))
    );
    for at in merged.clone() {
        mesh.collect(at);
    }
    mesh.pass(Span::from_secs(2 * 86_400));
    assert!(mesh.dropped >= 8, "{}", mesh.dropped);
    for old in &old {
        assert_eq!(mesh.holders(old), [0_usize; 0], "{old}");
    }
    // A retirement that says what is not so: that pack has nothing of it.
    mesh.born(200, 0);
    mesh.pass(Span::from_secs(2 * 86_400));
    let (held, given_up) = (mesh.holders(&pack(200)), mesh.given_up);
    let retired = CatalogueRecord::Retired(Retired {
        pack: pack(200),
        replacements: vec![pack(100)],
        basis: Vec::new(),
        left_out: Vec::new(),
    });
    mesh.say("retired", 1, Hlc(6), 0, &retired);
    mesh.pass(Span::from_secs(4 * 86_400));
    assert_eq!(mesh.holders(&pack(200)), held, "all of it stays");
    assert_eq!(mesh.given_up, given_up);
    for device in &mesh.devices {
        let health = device.keeper.health(mesh.now);
        assert_eq!(health.disproved, 0, "nobody is blamed for that");
    }
}

#[test]
fn who_says_that_it_has_blocks_and_has_not_counts_for_nothing() {
    let mut mesh = Mesh::new(8, 6, 2);
    mesh.connect_all();
    mesh.born(0, 0);
    mesh.pass(Span::from_secs(2 * 86_400));
    let from = mesh.holders(&pack(0))[0];
    // Another name until it lies where the old pack does not.
    let n = (1..)
        .find(|n| {
            mesh.born(*n, from);
            mesh.placed(&pack(*n)).is_disjoint(&mesh.placed(&pack(0)))
        })
        .unwrap();
    let liar = *mesh.placed(&pack(n)).first().unwrap();
    mesh.liars.insert(liar);
    mesh.merge(from, &[pack(0)], n);
    let mut blamed = 0;
    for _ in 0..96 {
        mesh.pass(Span::from_secs(3600));
        for device in &mesh.devices {
            let health = device.keeper.health(mesh.now);
            blamed += health.disproved;
        }
    }
    assert!(blamed > 0, "those who asked found out");
    assert_eq!(mesh.dropped, 0);
    assert_eq!(mesh.holders(&pack(0)).len(), 2, "all of it stays");
}

#[test]
fn nothing_goes_on_the_word_of_a_liar_or_of_too_few() {
    // Three copies are wanted, and of four devices one holds nothing and says that it does.
    let mut mesh = Mesh::new(2, 4, 3);
    let mut givers = mesh.devices[0].givers.clone();
    // The first gives nothing, so all that it puts is for the others.
    let first = mesh.id(0);
    givers.get_mut(&first).unwrap().capacity = 0;
    mesh.rearrange(&givers, 1);
    mesh.connect_all();
    mesh.liars.insert(2);
    mesh.born(0, 0);
    mesh.pass(Span::from_secs(600));
    assert_eq!(mesh.holders(&pack(0)), [0, 1, 2, 3]);
    mesh.devices[2].disk.clear();
    mesh.devices[0].promises.peer_up(mesh.now);
    mesh.pass(Span::from_secs(86_400 / 2));
    assert_eq!(mesh.holders(&pack(0)), [0, 1, 3]);
    assert_eq!(mesh.given_up, 0);
    let health = mesh.devices[0].keeper.health(mesh.now);
    // It was asked for no other pack.
    assert_eq!((health.distrusted, health.at_risk), (1, 0), "{health:?}");
    // It has it after all.
    mesh.liars.clear();
    mesh.holds(2, pack(0), true);
    mesh.pass(Span::from_secs(2 * 86_400));
    assert_eq!(mesh.holders(&pack(0)), [1, 2, 3]);
    // With fewer holders than the policy wants a copy too many is the missing one.
    let third = mesh.id(3);
    givers.get_mut(&third).unwrap().leaving = (Leaving::Lost, Hlc::new(mesh.now, 0));
    mesh.kill(3);
    mesh.rearrange(&givers, 1);
    mesh.born(1, 0);
    mesh.pass(Span::from_secs(3 * 86_400));
    assert_eq!(mesh.holders(&pack(1)), [0, 1, 2]);
}

#[test]
fn of_two_that_rely_on_each_other_one_gives_in() {
    // Each believes that the other should hold the pack, and that itself should not.
    for seed in 0..40 {
        let mut mesh = Mesh::new(seed, 3, 2);
        mesh.connect_all();
        mesh.born(seed, 0);
        for at in 1..3 {
            mesh.holds(at, pack(seed), true);
        }
        for at in 0..2 {
            let mut givers = mesh.devices[at].givers.clone();
            let me = mesh.id(at);
            givers.get_mut(&me).unwrap().capacity = 0;
            mesh.later(at, 5, Event::Arranged(at, givers));
        }
        mesh.pass(Span::from_secs(20 * 3600));
        assert_eq!(mesh.given_up, 1, "seed {seed}");
        assert_eq!(mesh.holders(&pack(seed)).len(), 2);
    }
}

#[test]
fn asks_are_bounded_and_answered_for_what_is_here_alone() {
    let mut mesh = Mesh::new(3, 2, 2);
    mesh.connect_all();
    mesh.born(0, 0);
    mesh.pass(Span::from_secs(60));
    let peer = mesh.id(1);
    let device = &mut mesh.devices[0];
    let view = View {
        access: &mesh.access,
        packs: &device.packs,
        holdings: &device.holdings,
        connected: &device.connected,
    };
    let mut refused = BTreeMap::new();
    for n in 0..200 {
        let ask = Message::Ask {
            nonce: [n; 16],
            pack: pack(u64::from(n % 2)),
        };
        device.promises.received(mesh.now, peer, ask, view);
        device.promises.work(mesh.now, &device.keeper, view);
        device.promises.check_invariants();
        while let Some(action) = device.promises.poll_action() {
            if let Action::Send(_, Message::Refusal { why, .. }) = action {
                *refused.entry(why).or_insert(0) += 1;
            }
        }
    }
    let made = PROOFS_MAX + WAITING_EACH_MAX;
    let expected = [(Refused::Lacking, 100), (Refused::Busy, 100 - made)];
    assert_eq!(refused, expected.into());
    // Nor for more blocks than so many.
    let mut busy = 0;
    for n in 0..8 {
        let ask = Message::AskBlocks {
            nonce: [200 + n; 16],
            digests: vec![[1; 32]; BLOCKS_MAX].into(),
        };
        let other = DeviceId([n; 32]);
        device.promises.received(mesh.now, other, ask, view);
        device.promises.check_invariants();
        while let Some(action) = device.promises.poll_action() {
            let why = Refused::Busy;
            let nonce = [200 + n; 16];
            let refusal = Message::Refusal { nonce, why };
            assert_eq!(action, Action::Send(other, refusal));
            busy += 1;
        }
    }
    assert_eq!(busy, 4);
    // What nobody asked for is passed over.
    for message in [
        Message::Promise {
            nonce: [1; 16],
            proof: [1; 32],
        },
        Message::PromiseBlocks {
            nonce: [1; 16],
            proof: [1; 32],
            has: Bits::none_of(3),
        },
        Message::Refusal {
            nonce: [1; 16],
            why: Refused::Lacking,
        },
    ] {
        device.promises.received(mesh.now, peer, message, view);
        assert_eq!(device.promises.poll_action(), None);
    }
}

#[test]
fn what_was_promised_is_known_after_a_restart_and_with_damage_nothing_goes() {
    let promised = |pack, until| Promised { pack, until };
    let mut promises = Promises::new(keys(0).id(), Rng::from_seed([1; 32]));
    let day = START + KEPT_FOR;
    let said = [
        promised(pack(0), day),
        promised(pack(1), START),
        promised(pack(2), day + KEPT_FOR),
    ];
    promises.recall(START, said, false);
    assert!(promises.is_promised(&pack(0)) && !promises.is_promised(&pack(1)));
    promises.forget_ended(day);
    assert!(
        !promises.is_promised(&pack(2)),
        "none ends later than a day"
    );
    let mut mesh = Mesh::new(4, 3, 2);
    mesh.connect_all();
    mesh.devices[0].promises.recall(START, [], true);
    for n in 0..20 {
        mesh.born(n, 0);
    }
    mesh.pass(Span::from_secs(23 * 3600));
    assert_eq!(mesh.given_up, 0);
    mesh.pass(Span::from_secs(2 * 3600));
    assert!(mesh.given_up > 0);
}

#[test]
fn a_device_that_holds_nothing_of_what_it_says_is_replaced() {
    let mut mesh = Mesh::new(5, 4, 2);
    mesh.connect_all();
    for n in 0..30 {
        mesh.born(n, 0);
    }
    mesh.pass(Span::from_secs(1800));
    mesh.liars.insert(3);
    let lost = std::mem::take(&mut mesh.devices[3].disk);
    assert!(lost.len() > 5, "{}", lost.len());
    mesh.pass(Span::from_secs(12 * 3600));
    for n in 0..30 {
        let held = mesh.holders(&pack(n));
        assert!(held.len() >= 2, "pack {n}: {held:?}");
    }
    for at in 0..3 {
        let health = mesh.devices[at].keeper.health(mesh.now);
        assert_eq!((health.distrusted, health.at_risk), (1, 0), "{at}");
    }
    // It is honest again, and is trusted again.
    mesh.liars.clear();
    for pack in lost {
        mesh.holds(3, pack, true);
    }
    mesh.pass(Span::from_secs(2 * 86_400));
    for at in 0..3 {
        let health = mesh.devices[at].keeper.health(mesh.now);
        assert_eq!((health.distrusted, health.disproved), (0, 0), "{at}");
    }
}

#[test]
fn samples_are_few_and_what_fails_once_is_asked_for_again() {
    let mut mesh = Mesh::new(6, 2, 2);
    mesh.connect_all();
    for n in 0..20 {
        mesh.born(n, 0);
    }
    mesh.pass(Span::from_secs(1800));
    let (now, peer) = (mesh.now, mesh.id(1));
    let device = &mut mesh.devices[0];
    let view = View {
        access: &mesh.access,
        packs: &device.packs,
        holdings: &device.holdings,
        connected: &device.connected,
    };
    let mut probing = Probing::new(Rng::from_seed([1; 32]));
    probing.peer_up(now, peer);
    let mut asked: Vec<Probe> = Vec::new();
    let (mut at, end) = (now, now + Span::from_secs(60 * 86_400));
    while let Some(due) = probing.next_due().filter(|due| *due <= end) {
        at = due;
        for probe in probing.work(at, view) {
            assert!(probe.offset < probe.bytes);
            assert_eq!(
                probing.probed(at, probe.device, pack(99), Probed::False),
                None
            );
            let verdict = probing.probed(at, probe.device, probe.pack, Probed::Sound);
            assert!(verdict.unwrap().is_trusted);
            asked.push(probe);
        }
    }
    assert_eq!(asked.len(), 60 * 4 * 6, "four of them, six times a day");
    // Each about as often as any other, however close its name is to another's.
    for n in 0..20 {
        let times = asked.iter().filter(|probe| probe.pack == pack(n)).count();
        assert!((36..144).contains(&times), "{times} of {}", asked.len());
    }
    // One that fails is asked for once more, and it is no matter if it does not fail then.
    let mut fails = |probing: &mut Probing, second: Probed| {
        at = probing.next_due().unwrap();
        let first = probing.work(at, view).pop().unwrap();
        assert_eq!(probing.probed(at, peer, first.pack, Probed::False), None);
        let due = probing.next_due().unwrap();
        assert_eq!(due, at + Span::from_secs(60));
        let again = probing.work(due, view).pop().unwrap();
        assert_eq!(again.pack, first.pack);
        let verdict = probing.probed(due, peer, again.pack, second);
        verdict.map(|verdict| (verdict.is_there, verdict.is_trusted))
    };
    assert_eq!(fails(&mut probing, Probed::Sound), Some((true, true)));
    assert_eq!(fails(&mut probing, Probed::Nothing), None);
    assert_eq!(fails(&mut probing, Probed::False), Some((false, true)));
    assert_eq!(fails(&mut probing, Probed::False), Some((false, true)));
    assert_eq!(fails(&mut probing, Probed::False), Some((false, false)));
    for _ in 0..8 {
        probing.note(&peer, true);
    }
    assert_eq!(fails(&mut probing, Probed::False), Some((false, true)));
}

/// Some days of a mesh in which everything happens at random; the laws are looked at in [`Mesh::give_up`].
fn random_days(seed: u64, is_coded: bool) -> Mesh {
    let mut rng = Rng::from_seed(derive("test days", &seed.to_le_bytes()));
    let count = 3 + usize::try_from(rng.below(5)).unwrap();
    let copies = 2 + u8::try_from(rng.below(2)).unwrap();
    let copies = if is_coded { 2 } else { copies };
    let mut mesh = Mesh::new(seed, count, copies);
    if is_coded {
        mesh.policy.redundancy = Some(Redundancy::Erasure(2, 1));
        (0..count).for_each(|at| mesh.arrange(at));
    }
    mesh.connect_all();
    let mut born = 0;
    let mut givers = mesh.devices[0].givers.clone();
    for _ in 0..60 {
        let at = usize::try_from(rng.below(count as u64)).unwrap();
        let other = usize::try_from(rng.below(count as u64)).unwrap();
        match rng.below(if is_coded { 14 } else { 10 }) {
            0 | 1 if mesh.devices[at].is_up => {
                mesh.born(born, at);
                born += 1;
            }
            2 => mesh.kill(at),
            3 => mesh.start(at),
            4 => mesh.link(at, other, false),
            5 => mesh.link(at, other, true),
            6 => {
                let giver = givers.get_mut(&mesh.id(at)).unwrap();
                giver.capacity = rng.below(4) << 30;
                giver.leaving = match rng.below(4) {
                    0 => (Leaving::Drains, Hlc(1)),
                    _ => (Leaving::Stays, Hlc(1)),
                };
                mesh.rearrange(&givers, 6 * 3_600_000);
            }
            7 => {
                // A disk loses a pack, and nobody knows.
                let device = &mut mesh.devices[at];
                let lost = device
                    .disk
                    .iter()
                    .find(|pack| !device.log.contains_key(pack));
                if let Some(lost) = lost.copied() {
                    device.disk.remove(&lost);
                }
            }
            8 if mesh.devices[at].is_up => {
                let disk = mesh.devices[at].disk.iter();
                let is_live = |pack: &&PackId| {
                    !mesh.replaced.contains_key(*pack) && mesh.shard_of(pack).is_none()
                };
                let live = disk.filter(is_live);
                let old: Vec<PackId> = live.take(3).copied().collect();
                if old.len() > 1 {
                    mesh.merge(at, &old, born);
                    born += 1;
                }
                mesh.collect(other);
            }
            9..=12 if is_coded && mesh.devices[at].is_up => {
                let here = |n: &u64| mesh.devices[at].disk.contains(&pack(*n));
                let is_live = |n: &u64| here(n) && !mesh.replaced.contains_key(&pack(*n));
                let live: Vec<u64> = (0..born).filter(is_live).collect();
                if !live.is_empty() {
                    let n = live[usize::try_from(rng.below(live.len() as u64)).unwrap()];
                    mesh.code(n, at, rng.below(4) == 0);
                }
            }
            _ => mesh.connect_all(),
        }
        let span = match rng.below(4) {
            0 => rng.below(86_400_000),
            1 => rng.below(3_600_000),
            _ => rng.below(30_000),
        };
        mesh.pass(Span::from_ms(span));
    }
    // In the end all is where it should be, and nowhere else. What is still on its way came before that.
    mesh.pass(Span::from_secs(6 * 3600));
    for giver in givers.values_mut() {
        giver.capacity = 1 << 30;
        giver.leaving = (Leaving::Stays, Hlc(1));
    }
    let held = |mesh: &Mesh| -> BTreeSet<PackId> {
        let disks = mesh.devices.iter().flat_map(|of| &of.disk);
        disks.copied().collect()
    };
    let (before, had) = (held(&mesh), mesh.recoverable(&[]));
    mesh.rearrange(&givers, 1000);
    mesh.connect_all();
    // What a disk has lost is found by samples.
    mesh.pass(Span::from_secs(6 * 86_400));
    for at in 0..count {
        mesh.collect(at);
    }
    mesh.pass(Span::from_secs(2 * 86_400));
    assert_eq!(mesh.recoverable(&[]), had, "seed {seed}: nothing is lost");
    for pack in before.into_iter().filter(|pack| !mesh.lies.contains(pack)) {
        let held: BTreeSet<usize> = mesh.holders(&pack).into_iter().collect();
        let shard = mesh.shard_of(&pack);
        let whole = shard.map_or(pack, |(code, _)| code.pack);
        let device = &mesh.devices[0];
        let is_coded = device.packs.coded(&whole, &mesh.access).is_some();
        if !mesh.replaced.contains_key(&whole) && (is_coded || shard.is_some()) {
            if is_coded {
                let placed = shard.map_or(BTreeSet::new(), |_| mesh.placed(&pack));
                assert_eq!(held, placed, "seed {seed}, {pack} of {whole}");
            }
            continue;
        }
        let mut ends = std::iter::successors(Some(whole), |of| mesh.replaced.get(of).copied());
        let end = ends.by_ref().last().unwrap();
        let is_held = |id: PackId| !mesh.holders(&id).is_empty();
        let code = mesh.codes.get(&end);
        let is_end_coded = code.is_some_and(|code| code.ids().all(is_held));
        if end == pack {
            assert_eq!(held, mesh.placed(&pack), "seed {seed}, {pack}");
        } else if is_held(end) || is_end_coded {
            assert_eq!(held, BTreeSet::new(), "seed {seed}, {pack} was replaced");
        }
    }
    mesh
}

#[test]
fn nothing_is_given_up_that_others_do_not_have_whatever_happens() {
    let seeds = match std::env::var_os("KITH_LARGE") {
        Some(_) => 1000,
        None => 12,
    };
    let all = (0..seeds).map(|seed| random_days(seed, false));
    let counts = all.map(|mesh| (mesh.given_up, mesh.dropped));
    let (given_up, dropped): (Vec<usize>, Vec<usize>) = counts.unzip();
    let (given_up, dropped): (usize, usize) = (given_up.iter().sum(), dropped.iter().sum());
    let seeds = seeds as usize;
    assert!(given_up > seeds, "copies were given up: {given_up}");
    assert!(dropped > seeds / 4, "and what was replaced: {dropped}");
}

#[test]
fn nothing_is_given_up_that_shards_do_not_restore_whatever_happens() {
    let seeds = match std::env::var_os("KITH_LARGE") {
        Some(_) => 1000,
        None => 12,
    };
    let (mut coded, mut spent, mut taken_back) = (0, 0, 0);
    for seed in 0..seeds {
        let mesh = random_days(seed, true);
        coded += mesh.coded_away;
        spent += mesh.spent;
        taken_back += mesh.taken_back;
    }
    let seeds = seeds as usize;
    assert!(coded > seeds, "copies were given up for shards: {coded}");
    assert!(spent > seeds / 12, "and parity of what was merged: {spent}");
    assert!(
        taken_back > seeds / 12,
        "and lies were found out: {taken_back}"
    );
}
