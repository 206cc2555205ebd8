//! The DHT inside: what devices keep for each other, and where each is.
//!
//! Spec: `protocol/spec/net.md`, "DHT".

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kith_object::id::DeviceId;
use kith_object::time::Time;
use kith_protocol::record::{AddressRecord, Key, Ledger};
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{self, Caching, ProviderRecord, Record, StoreInserts};
use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};

use super::{device_of, peer_of};
use crate::config::now;

/// Name of the DHT protocol.
pub(super) const KAD: StreamProtocol = StreamProtocol::new("/kith/kad/1");
/// Addresses kept of one device, as told by it or by the owner.
pub(super) const ADDRESSES_MAX: usize = 16;

/// The DHT of a device with what it keeps for the others.
pub(super) fn behaviour(me: PeerId, ledger: Ledger) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(KAD);
    // Whoever announces does it again by itself, in its own order and pace.
    config
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(Caching::Disabled);
    let mut dht = kad::Behaviour::with_config(me, Records { ledger }, config);
    dht.set_mode(Some(kad::Mode::Server));
    dht
}

/// What is kept for the others, as the DHT's code asks for it. Nothing in it is announced again by that code.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) ledger: Ledger,
}

impl Records {
    /// A device says that it provides a key.
    pub(super) fn provide(&mut self, record: &ProviderRecord) {
        if let (Some(key), Some(device)) = (key_of(&record.key), device_of(&record.provider)) {
            self.ledger.provide(now(), key, device);
        }
    }
}

/// The key, if it is one of ours.
pub(super) fn key_of(key: &kad::RecordKey) -> Option<Key> {
    key.as_ref().try_into().ok().map(Key)
}

fn until(expires: Time) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(expires.0.saturating_sub(now().0)))
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &kad::RecordKey) -> Option<Cow<'_, Record>> {
        let found = self.ledger.address(&key_of(key)?)?;
        Some(Cow::Owned(Record::new(key.clone(), found.bytes().to_vec())))
    }

    /// Only what this device says itself comes this way; what others say is looked at first.
    fn put(&mut self, record: Record) -> Result<()> {
        let key = key_of(&record.key).ok_or(Error::ValueTooLarge)?;
        let said = AddressRecord::decode(&record.value).map_err(|_| Error::ValueTooLarge)?;
        self.ledger.put(now(), key, said);
        Ok(())
    }

    fn remove(&mut self, _: &kad::RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        self.provide(&record);
        Ok(())
    }

    fn providers(&self, key: &kad::RecordKey) -> Vec<ProviderRecord> {
        let Some(ours) = key_of(key) else {
            return Vec::new();
        };
        self.ledger
            .providers(now(), &ours)
            .into_iter()
            .filter_map(|(device, expires)| {
                Some(ProviderRecord {
                    key: key.clone(),
                    provider: peer_of(&device)?,
                    expires: until(expires),
                    addresses: Vec::new(),
                })
            })
            .collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &kad::RecordKey, provider: &PeerId) {
        if let (Some(key), Some(device)) = (key_of(key), device_of(provider)) {
            self.ledger.remove(&key, &device);
        }
    }
}

/// Whose records are kept: those of devices that belong, and our own.
pub(super) fn keep(dht: &mut kad::Behaviour<Records>, me: &DeviceId, allowed: &BTreeSet<DeviceId>) {
    let ledger = &mut dht.store_mut().ledger;
    ledger.keep(|device| device == me || allowed.contains(device));
}

/// Puts a device's addresses into the DHT's table, which never forgets one by itself: those it tells now, and of the others the youngest, [`ADDRESSES_MAX`] in all.
pub(super) fn remember(dht: &mut kad::Behaviour<Records>, peer: &PeerId, told: &[Multiaddr]) {
    // As the table writes them.
    let told: Vec<Multiaddr> = told
        .iter()
        .filter_map(|addr| addr.clone().with_p2p(*peer).ok())
        .take(ADDRESSES_MAX)
        .collect();
    if told.is_empty() {
        return;
    }
    // As the table has them: the oldest first.
    let known: Vec<Multiaddr> = dht
        .kbucket(*peer)
        .into_iter()
        .flat_map(|bucket| {
            let entry = bucket
                .iter()
                .find(|entry| entry.node.key.preimage() == peer)
                .map(|entry| entry.node.value.iter().cloned().collect::<Vec<_>>());
            entry.unwrap_or_default()
        })
        .collect();
    let others = known.iter().filter(|addr| !told.contains(addr));
    let surplus = (others.clone().count() + told.len()).saturating_sub(ADDRESSES_MAX);
    // Before the new ones come; the table drops a device with its last address, and takes it in again with its next.
    for addr in others.take(surplus) {
        dht.remove_address(peer, addr);
    }
    for addr in told {
        dht.add_address(peer, addr);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn addr(n: u32) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{n}").parse().unwrap()
    }

    fn known(dht: &mut kad::Behaviour<Records>, peer: PeerId) -> Vec<Multiaddr> {
        let bucket = dht.kbucket(peer).unwrap();
        let entry = bucket
            .iter()
            .find(|entry| *entry.node.key.preimage() == peer)
            .map(|entry| entry.node.value.iter().cloned().collect());
        entry.unwrap_or_default()
    }

    #[test]
    fn addresses_of_a_device_in_the_dht_are_bounded_and_the_newest_stay() {
        let (me, peer) = (PeerId::random(), PeerId::random());
        let mut dht = behaviour(me, Ledger::default());
        for n in 1..500_u32 {
            // Three listeners that move on and on, as a laptop that goes from net to net.
            let told = [addr(3 * n), addr(3 * n + 1), addr(3 * n + 2)];
            remember(&mut dht, &peer, &told);
            let known = known(&mut dht, peer);
            assert!(known.len() <= ADDRESSES_MAX, "{} addresses", known.len());
            let written = told.map(|addr| addr.with_p2p(peer).unwrap());
            assert!(written.iter().all(|addr| known.contains(addr)));
        }
        assert_eq!(known(&mut dht, peer).len(), ADDRESSES_MAX);
        // One that tells more than may be kept.
        let many: Vec<Multiaddr> = (5000..5100).map(addr).collect();
        remember(&mut dht, &peer, &many);
        let kept = known(&mut dht, peer);
        assert_eq!(kept.len(), ADDRESSES_MAX);
        let newest = addr(5000).with_p2p(peer).unwrap();
        assert!(kept.contains(&newest));
        remember(&mut dht, &peer, &[]);
        assert_eq!(known(&mut dht, peer).len(), ADDRESSES_MAX);
    }
}
