//! What devices keep for each other in the DHT, and how long it takes to find.
//!
//! Spec: `protocol/spec/simulation.md`, "DHT".

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_core::device::Input;
use kith_object::id::DeviceId;
use kith_object::key::Rng;
use kith_object::time::{Span, Time};

use super::World;
use crate::dht::{CLOSEST, Lookup, Tables};
use crate::network::Purpose;

/// So long a record of who provides something is kept.
const KEPT: Span = Span::from_secs(48 * 3600);
/// Bytes of a question, and of each device that an answer names.
const QUESTION: u64 = 90;
const NAMED: u64 = 90;
/// How long one that does not answer is waited for.
const SILENCE: u64 = 10_000;

/// The DHT of a run.
#[derive(Debug)]
pub(super) struct Dht {
    pub(super) tables: Tables,
    /// In which of its runs each device has joined.
    joined: BTreeMap<usize, u64>,
    /// By key and keeper: who provides it, and until when that is kept.
    providers: BTreeMap<([u8; 32], usize), BTreeMap<usize, Time>>,
    /// By key and keeper.
    records: BTreeMap<([u8; 32], usize), Bytes>,
    /// How many hops each lookup took, and how many were asked in it.
    pub(super) hops: Vec<(u32, u32)>,
}

impl Dht {
    pub(super) fn new(devices: &[DeviceId]) -> Self {
        Self {
            tables: Tables::new(devices),
            joined: BTreeMap::new(),
            providers: BTreeMap::new(),
            records: BTreeMap::new(),
            hops: Vec::new(),
        }
    }

    /// A device keeps a record for the others.
    pub(super) fn keep(&mut self, device: usize, key: [u8; 32], record: Bytes) {
        self.records.insert((key, device), record);
    }
}

impl World {
    /// How many hops each lookup in the DHT took, and how many devices were asked in it.
    pub fn lookups(&self) -> &[(u32, u32)] {
        &self.dht.hops
    }

    /// Goes from one to the next; answers who is closest, and how long it took.
    fn look_up(&mut self, device: usize, key: &[u8; 32]) -> (Lookup, u64) {
        let life = self.life(device);
        let joins = self.dht.joined.insert(device, life) != Some(life);
        let mut tables = std::mem::take(&mut self.dht.tables);
        let mut rng = std::mem::replace(&mut self.rng, Rng::from_seed([0; 32]));
        let answers = |other| other != device && self.asks(device, other);
        if joins {
            tables.join(device, &mut rng, answers);
        }
        let found = tables.lookup(device, key, answers);
        (self.dht.tables, self.rng) = (tables, rng);
        let mut took = 0;
        for (nth, peer) in found.asked.iter().enumerate() {
            let via = self.way(device, *peer).via;
            let purpose = (Purpose::Dht, via);
            self.network.count((device, *peer), QUESTION, purpose);
            let trip = if *peer != device && self.asks(device, *peer) {
                let named = CLOSEST.min(self.slots.len().saturating_sub(1));
                let answer = NAMED * named as u64;
                self.network.count((*peer, device), answer, purpose);
                2 * self
                    .network
                    .latency(self.now, (device, *peer), &mut self.rng)
            } else {
                SILENCE
            };
            // Three at once: every third is waited for.
            if nth.is_multiple_of(3) {
                took += trip;
            }
        }
        let asked = u32::try_from(found.asked.len()).unwrap_or(u32::MAX);
        self.dht.hops.push((found.hops, asked));
        (found, took)
    }

    pub(super) fn provide(&mut self, device: usize, key: [u8; 32]) {
        let (found, _) = self.look_up(device, &key);
        let until = self.now + KEPT;
        // The one that announces keeps it too.
        for keeper in found.closest.into_iter().chain([device]) {
            let kept = self.dht.providers.entry((key, keeper)).or_default();
            kept.insert(device, until);
        }
    }

    pub(super) fn find_providers(&mut self, device: usize, key: [u8; 32]) {
        let (found, took) = self.look_up(device, &key);
        let mut providers = BTreeSet::new();
        for keeper in found.closest.into_iter().chain([device]) {
            let kept = self.dht.providers.get(&(key, keeper));
            let fresh = kept.into_iter().flatten();
            let fresh = fresh.filter(|(_, until)| **until > self.now);
            providers.extend(fresh.map(|(provider, _)| *provider));
        }
        providers.remove(&device);
        let providers: Vec<DeviceId> = providers.into_iter().map(|of| self.id(of)).collect();
        self.later((took, took), device, Input::Providers(providers));
    }

    pub(super) fn put_record(&mut self, device: usize, key: [u8; 32], record: &Bytes) {
        let (found, took) = self.look_up(device, &key);
        for keeper in found.closest {
            let input = Input::Offered {
                key,
                record: record.clone(),
            };
            self.later((took, took), keeper, input);
        }
    }

    pub(super) fn find_record(&mut self, device: usize, key: [u8; 32]) {
        let (found, took) = self.look_up(device, &key);
        let records = found.closest.iter();
        let records = records.filter_map(|keeper| self.dht.records.get(&(key, *keeper)));
        let records: BTreeSet<Bytes> = records.cloned().collect();
        for record in records {
            self.later((took, took), device, Input::Record { key, record });
        }
    }
}
