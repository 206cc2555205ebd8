//! The DHT of the IPFS world: who has a public object, asked for and told. Off unless the owner wants it.
//!
//! Spec: `protocol/spec/outside.md`, "DHT".

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{self, Caching, ProviderRecord, Record, RecordKey, StoreInserts};
use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};

use super::ways::{ip_of, is_public, is_relayed};

/// How long a record of a provider is kept.
const LIFE: Duration = Duration::from_secs(48 * 3600);
/// Records in all, and of one provider.
const RECORDS_MAX: usize = 8192;
const RECORDS_PER_PEER_MAX: usize = 1024;
/// Providers of one key.
const PROVIDERS_MAX: usize = 20;
/// Addresses kept with a record, each as long as one of two parts and a peer id.
const ADDRS_MAX: usize = 4;
const ADDR_BYTES_MAX: usize = 128;
/// Longest key: a multihash of 64 bytes, and its head.
const KEY_BYTES_MAX: usize = 68;

/// Which DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// That of the local network, `/ipfs/lan/kad/1.0.0`: private addresses, and everybody keeps records.
    Lan,
    /// That of all, `/ipfs/kad/1.0.0`: public addresses, and those that have one keep records.
    Wan,
}

impl Scope {
    pub(super) fn protocol(self) -> StreamProtocol {
        match self {
            Self::Lan => StreamProtocol::new("/ipfs/lan/kad/1.0.0"),
            Self::Wan => StreamProtocol::new("/ipfs/kad/1.0.0"),
        }
    }

    /// Whether somebody in it could reach that address.
    pub(super) fn reaches(self, addr: &Multiaddr) -> bool {
        let public = ip_of(addr).is_some_and(|ip| is_public(&ip));
        !is_relayed(addr) && public == (self == Self::Wan)
    }
}

/// The DHT, in which this node keeps records for others if it `serves`.
pub(super) fn behaviour(me: PeerId, scope: Scope, serves: bool) -> kad::Behaviour<Strangers> {
    let mut config = kad::Config::new(scope.protocol());
    config
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(Caching::Disabled);
    let mut dht = kad::Behaviour::with_config(me, Strangers::new(me), config);
    dht.set_mode(Some(if serves {
        kad::Mode::Server
    } else {
        kad::Mode::Client
    }));
    dht
}

/// What the IPFS world calls something with that SHA2-256.
pub(super) fn key_of(digest: &[u8; 32]) -> RecordKey {
    let mut multihash = vec![0x12, 0x20];
    multihash.extend_from_slice(digest);
    multihash.into()
}

/// What strangers have said that they have, and what this node has.
#[derive(Debug)]
pub(super) struct Strangers {
    me: PeerId,
    records: BTreeMap<(Vec<u8>, PeerId), (Instant, Vec<Multiaddr>)>,
    counts: BTreeMap<PeerId, usize>,
    ages: BTreeSet<(Instant, Vec<u8>, PeerId)>,
}

impl Strangers {
    fn new(me: PeerId) -> Self {
        Self {
            me,
            records: BTreeMap::new(),
            counts: BTreeMap::new(),
            ages: BTreeSet::new(),
        }
    }

    /// Keeps a record, in place of the oldest if there are too many.
    pub(super) fn keep(&mut self, now: Instant, record: ProviderRecord) {
        let key = record.key.to_vec();
        let Some(expires) = now.checked_add(LIFE) else {
            return;
        };
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        self.forget(&key, &record.provider);
        while let Some((first, key, peer)) = self.ages.first().cloned()
            && (first <= now || self.records.len() >= RECORDS_MAX)
        {
            self.forget(&key, &peer);
        }
        let full = self.counts.get(&record.provider).copied().unwrap_or(0) >= RECORDS_PER_PEER_MAX
            || self.of(&key).count() >= PROVIDERS_MAX;
        if full && record.provider != self.me {
            return;
        }
        let addrs = record.addresses.into_iter();
        let addrs = addrs
            .filter(|addr| addr.len() <= ADDR_BYTES_MAX)
            .take(ADDRS_MAX)
            .collect();
        *self.counts.entry(record.provider).or_default() += 1;
        self.ages.insert((expires, key.clone(), record.provider));
        self.records
            .insert((key, record.provider), (expires, addrs));
    }

    fn forget(&mut self, key: &[u8], peer: &PeerId) {
        let at = (key.to_vec(), *peer);
        let Some((expires, _)) = self.records.remove(&at) else {
            return;
        };
        self.ages.remove(&(expires, at.0, *peer));
        if let Some(count) = self.counts.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(peer);
            }
        }
    }

    fn of(&self, key: &[u8]) -> impl Iterator<Item = (&PeerId, &(Instant, Vec<Multiaddr>))> {
        let range = self
            .records
            .range((key.to_vec(), lowest())..)
            .take_while(move |((found, _), _)| found.as_slice() == key);
        let key = key.to_vec();
        range
            .filter(move |((found, _), _)| *found == key)
            .map(|((_, peer), record)| (peer, record))
    }
}

/// No peer id sorts before it.
fn lowest() -> PeerId {
    PeerId::from_bytes(&[0, 0]).unwrap_or_else(|_| PeerId::random())
}

impl RecordStore for Strangers {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        self.keep(Instant::now(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let now = Instant::now();
        self.of(&key.to_vec())
            .filter(|(_, (expires, _))| *expires > now)
            .map(|(peer, (expires, addresses))| ProviderRecord {
                key: key.clone(),
                provider: *peer,
                expires: Some(*expires),
                addresses: addresses.clone(),
            })
            .collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        self.forget(&key.to_vec(), peer);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn record(key: u32, provider: PeerId, addrs: usize) -> ProviderRecord {
        let addr: Multiaddr = "/ip4/1.2.3.4/tcp/5".parse().unwrap();
        ProviderRecord {
            key: key.to_le_bytes().to_vec().into(),
            provider,
            expires: None,
            addresses: vec![addr; addrs],
        }
    }

    fn check(store: &Strangers) {
        assert!(store.records.len() <= RECORDS_MAX);
        assert_eq!(store.records.len(), store.ages.len());
        assert_eq!(store.counts.values().sum::<usize>(), store.records.len());
    }

    #[test]
    fn no_stranger_fills_it_and_what_is_old_goes() {
        let me = PeerId::random();
        let mut store = Strangers::new(me);
        let begin = Instant::now();
        let hostile = PeerId::random();
        for n in 0..5000 {
            store.keep(begin, record(n, hostile, 1000));
        }
        assert_eq!(store.records.len(), RECORDS_PER_PEER_MAX);
        let addrs = store.records.values().map(|(_, addrs)| addrs.len());
        assert!(addrs.into_iter().all(|addrs| addrs == ADDRS_MAX));
        check(&store);
        // Many names, many keys: the oldest go.
        for n in 0..20_000 {
            let now = begin + Duration::from_millis(n.into());
            store.keep(now, record(10_000 + n, PeerId::random(), 1));
        }
        assert_eq!(store.records.len(), RECORDS_MAX);
        check(&store);
        // One key: so many and no more, and ours has room.
        let now = begin + Duration::from_secs(60);
        for _ in 0..100 {
            store.keep(now, record(7_000_000, PeerId::random(), 1));
        }
        store.keep(now, record(7_000_000, me, 0));
        let found = store.providers(&7_000_000_u32.to_le_bytes().to_vec().into());
        assert_eq!(found.len(), PROVIDERS_MAX + 1);
        assert!(found.iter().any(|record| record.provider == me));
        store.keep(
            begin,
            ProviderRecord {
                key: vec![1; 10_000].into(),
                ..record(1, me, 0)
            },
        );
        check(&store);
        store.keep(begin + 2 * LIFE, record(1, me, 0));
        assert_eq!(store.records.len(), 1, "all else has ended");
        check(&store);
    }

    #[test]
    fn each_dht_has_addresses_of_its_own() {
        for (addr, lan) in [
            ("/ip4/127.0.0.1/tcp/1", true),
            ("/ip4/192.168.1.5/udp/1/quic-v1", true),
            ("/ip4/1.2.3.4/tcp/1", false),
        ] {
            let addr = addr.parse().unwrap();
            assert_eq!(Scope::Lan.reaches(&addr), lan);
            assert_eq!(Scope::Wan.reaches(&addr), !lan);
        }
    }
}
