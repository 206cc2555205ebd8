//! Gossip between the devices: what one publishes goes from one to the next.
//!
//! Spec: `protocol/spec/simulation.md`, "Gossip".

use super::{Event, Rumour, World};
use crate::network::Purpose;

/// Heartbeats of gossip come each second; a message waits for the next.
const HEARTBEAT: (u64, u64) = (0, 1000);
/// Bytes of a message's name on the way.
const IHAVE: u64 = 70;

impl World {
    /// A device passes a gossip message on: its own to all, those of others to its mesh.
    pub(super) fn spread(&mut self, device: usize, message: u64) {
        let Some(Rumour { author, seen, .. }) = self.messages.get(&message) else {
            return;
        };
        let (author, before) = (*author, seen.get(&device).copied());
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
            let has = rumour.is_none_or(|rumour| rumour.seen.contains_key(&to));
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
        let comes = rumour.comes.get(&to).is_some_and(|at| *at <= soonest);
        if comes || rumour.seen.contains_key(&to) {
            self.network
                .send_in_vain(self.now, way, bytes.len(), Purpose::Gossip);
            return;
        }
        let (_, arrives) =
            self.network
                .send(self.now, way, bytes.len(), Purpose::Gossip, &mut self.rng);
        let lost = self.gossip_lost > 0 && self.rng.below(1_000_000) < self.gossip_lost;
        let comes = rumour.comes.get(&to).is_some_and(|at| *at <= arrives);
        if !lost && !comes {
            rumour.comes.insert(to, arrives);
            let from = device;
            self.push(arrives, Event::Gossip { from, to, message });
        }
    }

    fn counts_gossip(&mut self, way: (usize, usize), bytes: u64) {
        let via = self.way(way.0, way.1).via;
        self.network.count(way, bytes, (Purpose::Gossip, via));
    }
}
