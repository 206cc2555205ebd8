//! Gossip between the devices: what one publishes goes from one to the next.
//!
//! Spec: `protocol/spec/simulation.md`, "Gossip".

use bytes::Bytes;
use kith_object::time::Time;

use super::{Event, World};
use crate::network::Purpose;

/// Heartbeats of gossip come each second; a message waits for the next.
const HEARTBEAT: (u64, u64) = (0, 1000);
/// Bytes of a message's name on the way.
const IHAVE: u64 = 70;

/// What one device knows of something that was published.
#[derive(Debug, Clone, Copy)]
struct Hearing {
    /// Who told it; nobody yet if it is [`NOBODY`].
    by: u32,
    /// When it first reaches it, as far as it is under way: who is to have it sooner takes no notice.
    comes: Time,
}

const NOBODY: u32 = u32::MAX;

/// Something published.
#[derive(Debug)]
pub(super) struct Rumour {
    pub(super) author: usize,
    pub(super) bytes: Bytes,
    /// By device: looked up for each copy of each message.
    hearings: Vec<Hearing>,
}

impl Rumour {
    /// Only its author knows it.
    pub(super) fn new(author: usize, bytes: Bytes, devices: usize) -> Self {
        let none = Hearing {
            by: NOBODY,
            comes: Time(u64::MAX),
        };
        let mut rumour = Self {
            author,
            bytes,
            hearings: vec![none; devices],
        };
        rumour.reached(author, author);
        rumour
    }

    fn hearing(&self, device: usize) -> Option<&Hearing> {
        self.hearings.get(device)
    }

    /// A device has it, from another.
    pub(super) fn reached(&mut self, device: usize, by: usize) {
        if let Some(hearing) = self.hearings.get_mut(device) {
            hearing.by = u32::try_from(by).unwrap_or(0);
        }
    }

    pub(super) fn is_known_to(&self, device: usize) -> bool {
        self.told_by(device).is_some()
    }

    /// From whom a device has it.
    fn told_by(&self, device: usize) -> Option<usize> {
        let by = self.hearing(device)?.by;
        (by != NOBODY).then(|| usize::try_from(by).ok())?
    }

    /// Whether it is under way and reaches a device by then.
    fn comes_by(&self, device: usize, at: Time) -> bool {
        self.hearing(device)
            .is_some_and(|hearing| hearing.comes <= at)
    }

    fn comes(&mut self, device: usize, at: Time) {
        if let Some(hearing) = self.hearings.get_mut(device) {
            hearing.comes = at;
        }
    }

    /// What was under way to a device is held up.
    pub(super) fn comes_no_more(&mut self, device: usize) {
        self.comes(device, Time(u64::MAX));
    }
}

impl World {
    /// A device passes a gossip message on: its own to all, those of others to its mesh.
    pub(super) fn spread(&mut self, device: usize, message: u64) {
        let Some(rumour) = self.messages.get(&message) else {
            return;
        };
        let (author, before) = (rumour.author, rumour.told_by(device));
        let to: Vec<usize> = if author == device {
            self.overlay.links(device).collect()
        } else {
            let mesh = self.overlay.mesh(device);
            mesh.filter(|to| *to != author && Some(*to) != before)
                .collect()
        };
        for to in to {
            self.whisper(device, to, message);
        }
        if self.overlay.has_others(device) {
            self.after(HEARTBEAT, Event::Lazily { device, message });
        }
    }

    /// Those outside its mesh that lack a message hear of it, ask for it, and get it.
    pub(super) fn tell_lazily(&mut self, device: usize, message: u64) {
        for to in self.overlay.lazily(device, &mut self.rng) {
            let rumour = self.messages.get(&message);
            let has = rumour.is_none_or(|rumour| rumour.is_known_to(to));
            self.counts_gossip((device, to), IHAVE);
            if !has {
                self.counts_gossip((to, device), IHAVE);
                self.whisper(device, to, message);
            }
        }
    }

    /// A device passes a gossip message to another.
    pub(super) fn whisper(&mut self, device: usize, to: usize, message: u64) {
        let way = self.way(device, to);
        let Some(rumour) = self.messages.get_mut(&message) else {
            return;
        };
        let bytes = &rumour.bytes;
        let soonest = self.now + self.network.least_latency(device, to);
        if rumour.comes_by(to, soonest) || rumour.is_known_to(to) {
            self.network
                .send_in_vain(self.now, way, bytes.len(), Purpose::Gossip);
            return;
        }
        let (_, arrives) =
            self.network
                .send(self.now, way, bytes.len(), Purpose::Gossip, &mut self.rng);
        let lost = self.gossip_lost > 0 && self.rng.below(1_000_000) < self.gossip_lost;
        if !lost && !rumour.comes_by(to, arrives) {
            rumour.comes(to, arrives);
            let from = device;
            self.push(arrives, Event::Gossip { from, to, message });
        }
    }

    fn counts_gossip(&mut self, way: (usize, usize), bytes: u64) {
        let via = self.way(way.0, way.1).via;
        self.network.count(way, bytes, (Purpose::Gossip, via));
    }
}
