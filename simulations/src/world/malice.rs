//! Devices that mean harm: members with keys, or such as were members, whose programs keep to no rule.
//!
//! Each runs the machine that ships besides, so that it is one among the others; what it does on top is made here, byte by byte.
//!
//! Spec: `protocol/spec/simulation.md`, "Harm".

use std::collections::VecDeque;

use bytes::Bytes;
use kith_core::device::{Channel, Command, Device};
use kith_crdt::chain::{DocumentKind, Entry, Header};
use kith_object::id::{Cid, DeviceId, EntryId};
use kith_object::key::DeviceKeys;
use kith_object::time::{Hlc, Span};
use kith_protocol::exchange::message::{self as bitswap, EntryKind, Message as Wantlist};
use kith_protocol::gossip::digest::TreeId;
use kith_protocol::gossip::message::Message;
use kith_protocol::gossip::{Key, SPREAD_BYTES_MAX};

use super::record::Mark;
use super::rumours::Rumour;
use super::{REMEMBERED as KEPT, World};
use crate::plan::Harm;

/// What entries are signed under.
const SIGN_DOMAIN: &str = "kith entry 1";
/// First byte of a frame of the sync channel that is the gossip machine's.
const KIND_GOSSIP: u8 = 0;
/// Messages remembered, to be sent again.
const REMEMBERED: usize = 64;
/// Sent again at once.
const REPLAYED: usize = 24;
/// Blocks asked for that are nowhere, a message each so many, and how many messages.
const WANTS: usize = 1500;
const WANTLISTS: usize = 2;
/// Entries that build upon nothing.
const ORPHANS: u64 = 40;
/// Roots that nobody has.
const ROOTS: usize = 60;
/// Blocks that an intruder asks each for.
const LOOT: usize = 8;
/// How far ahead a stamp lies.
const AHEAD: Span = Span(365 * 24 * 3_600_000);

/// What a device that means harm does besides what all do.
#[derive(Debug, Default)]
pub(super) struct Malice {
    corrupts: bool,
    withholds: bool,
    /// What it sent, and what others published.
    said: VecDeque<(Channel, Bytes)>,
    heard: VecDeque<(usize, Bytes)>,
}

fn remember<T>(list: &mut VecDeque<T>, one: T) {
    if list.len() >= REMEMBERED {
        list.pop_front();
    }
    list.push_back(one);
}

/// The entry with another header, signed with these keys, whoever it says wrote it.
fn crafted(keys: &DeviceKeys, from: &Entry, change: impl FnOnce(&mut Header)) -> Entry {
    let mut header = from.header().clone();
    change(&mut header);
    let mut bytes = header.encode();
    bytes.extend(64u16.to_le_bytes());
    bytes.extend(keys.sign(SIGN_DOMAIN, &header.id().0));
    bytes.push(1);
    bytes.extend_from_slice(from.payload().map(AsRef::as_ref).unwrap_or_default());
    Entry::decode(&bytes).expect("headers are changed within their form")
}

/// Makes a header that of the next entry of the same chain.
fn follow(header: &mut Header, before: &Entry) {
    header.previous = before.id();
    header.seq += 1;
    header.hlc = Hlc(header.hlc.0 + 1);
}

fn key_of(entry: &Entry) -> Key {
    Key {
        hlc: entry.header().hlc.0,
        id: entry.id().0,
    }
}

impl World {
    pub(super) fn is_hostile(&self, device: usize) -> bool {
        let slot = self.slots.get(device);
        slot.is_some_and(|slot| slot.malice.is_some())
    }

    pub(super) fn harm(&mut self, device: usize, harm: Harm) {
        let running = self
            .slots
            .get(device)
            .and_then(|slot| slot.running.as_ref());
        if running.is_none() {
            return;
        }
        let name = Harm::ALL.iter().find(|(_, known)| *known == harm);
        let name = name.map_or("", |(name, _)| *name);
        self.mark(device, Mark::Harms(name));
        self.trace
            .note(self.now, device, format_args!("does harm: {name}"));
        match harm {
            Harm::Forge => self.forge(device),
            Harm::Backdate => self.extend(
                device,
                "its stamp lies before that of the one it follows",
                |header, before| {
                    follow(header, before);
                    header.hlc = Hlc(before.header().hlc.0.saturating_sub(1));
                },
            ),
            Harm::Ahead => {
                let far = Hlc::new(self.now + AHEAD, 0);
                self.extend(device, "", |header, before| {
                    follow(header, before);
                    header.hlc = far.max(header.hlc);
                });
            }
            Harm::Equivocate => self.equivocate(device),
            Harm::Corrupt | Harm::Withhold => {
                let slot = self.slots.get_mut(device);
                if let Some(malice) = slot.and_then(|slot| slot.malice.as_mut()) {
                    malice.corrupts |= harm == Harm::Corrupt;
                    malice.withholds |= harm == Harm::Withhold;
                }
            }
            Harm::Replay => self.replay(device),
            Harm::Flood => self.flood(device),
            Harm::Intrude => self.intrude(device),
        }
    }

    fn keys(&self, device: usize) -> Option<DeviceKeys> {
        Some(self.slots.get(device)?.keys.clone())
    }

    /// The last entry by that author in the names that a device knows.
    fn newest(&self, at: usize, author: &DeviceId) -> Option<Entry> {
        let storage = &self.slots.get(at)?.running.as_ref()?.storage;
        let read = |offset: &u64| Entry::decode(&storage.log.read(*offset).ok()?).ok();
        let entries = storage.offsets.values().filter_map(read);
        let theirs = entries.filter(|entry| {
            entry.header().author == *author && entry.header().document == DocumentKind::Names
        });
        theirs.max_by_key(|entry| (entry.header().hlc, entry.id()))
    }

    /// Signs an entry in the name of another.
    fn forge(&mut self, device: usize) {
        let honest: Vec<usize> = self.honest().map(|(place, _)| place).collect();
        let Some(victim) = crate::schedule::choose(&honest, &mut self.rng) else {
            return;
        };
        let (victim, Some(keys)) = (self.id(victim), self.keys(device)) else {
            return;
        };
        if let Some(before) = self.newest(device, &victim) {
            let forged = crafted(&keys, &before, |header| follow(header, &before));
            self.laws.never(forged.id(), "another signed it");
            self.publish_entry(device, &forged);
        }
    }

    /// Publishes an entry that goes on from the device's own last one; it must never count if there is a reason.
    fn extend(
        &mut self,
        device: usize,
        never: &'static str,
        change: impl FnOnce(&mut Header, &Entry),
    ) {
        let Some(keys) = self.keys(device) else {
            return;
        };
        if let Some(before) = self.newest(device, &keys.id()) {
            let made = crafted(&keys, &before, |header| change(header, &before));
            if !never.is_empty() {
                self.laws.never(made.id(), never);
            }
            self.publish_entry(device, &made);
        }
    }

    /// Writes two entries that follow the same one, and tells some of the one first and others of the other.
    fn equivocate(&mut self, device: usize) {
        let Some(keys) = self.keys(device) else {
            return;
        };
        let Some(before) = self.newest(device, &keys.id()) else {
            return;
        };
        let messages: Vec<u64> = [1, 2]
            .into_iter()
            .filter_map(|later| {
                let made = crafted(&keys, &before, |header| {
                    follow(header, &before);
                    header.hlc = Hlc(before.header().hlc.0 + later);
                });
                let bytes = made.encode();
                let (key, short) = (key_of(&made), bytes.len() <= SPREAD_BYTES_MAX);
                let entry = Bytes::from(bytes);
                let bytes = short.then(|| framed(&Message::Spread { key, entry }))?;
                Some(self.note_message(device, device, bytes))
            })
            .collect();
        for peer in self.reached_by(device) {
            let mut order = messages.clone();
            if self.rng.below(2) == 0 {
                order.reverse();
            }
            for message in order {
                self.whisper(device, peer, message);
            }
        }
    }

    fn publish_entry(&mut self, device: usize, entry: &Entry) {
        let bytes = entry.encode();
        if bytes.len() <= SPREAD_BYTES_MAX {
            let key = key_of(entry);
            let entry = Bytes::from(bytes);
            self.publish(device, device, framed(&Message::Spread { key, entry }));
        }
    }

    /// A device passes on a message that it or another has signed.
    pub(super) fn publish(&mut self, device: usize, author: usize, bytes: Bytes) {
        let message = self.note_message(device, author, bytes);
        self.spread(device, message);
    }

    fn note_message(&mut self, device: usize, author: usize, bytes: Bytes) -> u64 {
        self.next += 1;
        let mut rumour = Rumour::new(author, bytes, self.slots.len());
        rumour.reached(device, author);
        self.messages.insert(self.next, rumour);
        self.published.push_back((self.now, self.next));
        while let Some((at, old)) = self.published.front().copied()
            && at + KEPT < self.now
        {
            self.published.pop_front();
            self.messages.remove(&old);
        }
        self.next
    }

    /// A device that means harm overhears something.
    pub(super) fn overhears(&mut self, device: usize, author: usize, bytes: &Bytes) {
        let slot = self.slots.get_mut(device);
        if let Some(malice) = slot.and_then(|slot| slot.malice.as_mut()) {
            remember(&mut malice.heard, (author, bytes.clone()));
        }
    }

    /// What becomes of a message that the machine of a device sends; nothing if it keeps it to itself.
    pub(super) fn tampered(
        &mut self,
        from: usize,
        channel: Channel,
        bytes: Bytes,
    ) -> Option<Bytes> {
        let malice = self.slots.get_mut(from)?.malice.as_mut();
        let Some(malice) = malice else {
            return Some(bytes);
        };
        remember(&mut malice.said, (channel, bytes.clone()));
        if channel == Channel::Sync {
            let gives = bytes.first() == Some(&KIND_GOSSIP)
                && matches!(
                    Message::decode(&bytes.slice(1..)),
                    Ok(Message::Entries { .. })
                );
            return (!gives || !malice.withholds).then_some(bytes);
        }
        if !malice.withholds && !malice.corrupts {
            return Some(bytes);
        }
        let Ok(mut message) = Wantlist::decode(&bytes) else {
            return Some(bytes);
        };
        if malice.withholds {
            message.blocks.clear();
        } else if let Some(block) = message.blocks.first_mut() {
            let mut data = block.data.to_vec();
            let place = usize::try_from(self.rng.below(data.len().max(1) as u64)).unwrap_or(0);
            if let Some(byte) = data.get_mut(place) {
                *byte ^= 1;
            }
            block.data = Bytes::from(data);
        }
        (!message.is_empty()).then(|| message.encode().into_bytes())
    }

    /// Devices that this one is connected with.
    fn reached_by(&self, device: usize) -> Vec<usize> {
        self.neighbours(device).collect()
    }

    /// Puts a message on the way, whatever the device's machine thinks.
    fn slip(&mut self, from: usize, to: usize, channel: Channel, bytes: Bytes) {
        self.hand_over((from, to), channel, bytes);
    }

    /// Sends again what was sent before, to whom it was not meant.
    fn replay(&mut self, device: usize) {
        let slot = self.slots.get(device);
        let Some(malice) = slot.and_then(|slot| slot.malice.as_ref()) else {
            return;
        };
        let (said, heard) = (malice.said.clone(), malice.heard.clone());
        let said: Vec<(Channel, Bytes)> = said.into();
        let heard: Vec<(usize, Bytes)> = heard.into();
        let peers = self.reached_by(device);
        let pick = |of: usize, world: &mut Self| {
            usize::try_from(world.rng.below(of.max(1) as u64)).unwrap_or(0)
        };
        for _ in 0..REPLAYED {
            let (message, peer) = (pick(said.len(), self), pick(peers.len(), self));
            if let (Some((channel, bytes)), Some(peer)) = (said.get(message), peers.get(peer)) {
                self.slip(device, *peer, *channel, bytes.clone());
            }
            let published = pick(heard.len(), self);
            if let Some((author, bytes)) = heard.get(published) {
                self.publish(device, *author, bytes.clone());
            }
        }
    }

    /// More than anybody has use for.
    fn flood(&mut self, device: usize) {
        let Some(keys) = self.keys(device) else {
            return;
        };
        for peer in self.reached_by(device) {
            for _ in 0..WANTLISTS {
                let mut wants = Wantlist::default();
                for _ in 0..WANTS {
                    let nowhere: [u8; 32] = self.rng.bytes();
                    wants.entries.push(want(Cid::from_digest(nowhere)));
                }
                self.slip(device, peer, Channel::Bitswap, wants.encode().into_bytes());
            }
            for _ in 0..ROOTS {
                let root = Message::Root {
                    tree: TreeId::default(),
                    root: self.rng.bytes(),
                    count: self.rng.below(1 << 40),
                };
                self.slip(device, peer, Channel::Sync, framed(&root));
            }
        }
        if let Some(before) = self.newest(device, &keys.id()) {
            for nth in 0..ORPHANS {
                let nobody: [u8; 32] = self.rng.bytes();
                let orphan = crafted(&keys, &before, |header| {
                    header.seq += 2 + nth;
                    header.previous = EntryId(nobody);
                });
                self.laws.never(orphan.id(), "what it follows is nowhere");
                self.publish_entry(device, &orphan);
            }
        }
    }

    /// One that was removed goes on.
    fn intrude(&mut self, device: usize) {
        if !self.slots.get(device).is_some_and(|slot| slot.expelled) {
            return;
        }
        let honest: Vec<usize> = self.honest().map(|(place, _)| place).collect();
        for peer in &honest {
            self.connect(device, *peer);
        }
        let loot: Vec<Cid> = self
            .promises
            .iter()
            .rev()
            .take(LOOT)
            .map(|p| p.cid)
            .collect();
        for peer in self.reached_by(device) {
            let mut wants = Wantlist::default();
            wants.entries.extend(loot.iter().copied().map(want));
            if !wants.is_empty() {
                self.slip(device, peer, Channel::Bitswap, wants.encode().into_bytes());
            }
        }
        // What it writes now comes by way of a backup, which each may take in.
        let Some(keys) = self.keys(device) else {
            return;
        };
        let Some(before) = self.newest(device, &keys.id()) else {
            return;
        };
        let now = Hlc::new(self.now, 0);
        let late = crafted(&keys, &before, |header| {
            follow(header, &before);
            header.hlc = now.max(header.hlc);
        });
        // One that it slipped in while it was let in, dated ahead, comes out the same: that one counts.
        let known = |(_, device): (usize, &Device)| device.replica().contains(&late.id());
        if self.honest().any(known) {
            return;
        }
        if let Some(to) = crate::schedule::choose(&honest, &mut self.rng) {
            self.laws
                .never(late.id(), "its author was removed before it wrote it");
            let entries = vec![Bytes::from(late.encode())];
            self.command(to, Command::Gather(entries), Vec::new());
        }
    }
}

fn want(cid: Cid) -> bitswap::Entry {
    bitswap::Entry {
        cid,
        priority: 1,
        kind: EntryKind::Block,
        send_dont_have: false,
        once: false,
    }
}

fn framed(message: &Message) -> Bytes {
    let mut bytes = vec![KIND_GOSSIP];
    bytes.extend(message.encode());
    Bytes::from(bytes)
}
