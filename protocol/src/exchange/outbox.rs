//! What waits to be sent: for each connected peer the wantlist changes not yet written, and how much the shell still holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kith_object::id::{Cid, DeviceId};

use super::message::{Entry, EntryKind};
use super::{Effect, Stats};

/// A connection to a peer: numbered, because every want and every ledger points to some, and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerNo(pub(super) u64);

/// The sending side of one connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) device: DeviceId,
    /// Wantlist changes not yet in a message, one for each CID: a later one stands for both.
    pub(super) entries: BTreeMap<Cid, Entry>,
    /// Nothing was sent yet: the first message says `full`, which ends whatever the peer remembers of an earlier connection.
    pub(super) first: bool,
    /// Bytes handed to the shell and not reported as written.
    pub(super) unflushed: usize,
}

/// Everything on its way out, shared by the asking and the serving half.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) links: BTreeMap<PeerNo, Link>,
    /// Links that may have something to send.
    pub(super) touched: BTreeSet<PeerNo>,
    pub(super) effects: VecDeque<Effect>,
    pub(super) stats: Stats,
}

impl Outbox {
    /// Asks a peer for a block, or whether it has one.
    pub(super) fn ask(&mut self, peer: PeerNo, entry: Entry) {
        self.stats.asks += 1;
        self.put(peer, entry);
    }

    /// Tells a peer that we no longer want a block.
    pub(super) fn cancel(&mut self, peer: PeerNo, cid: Cid) {
        self.put(
            peer,
            Entry {
                cid,
                priority: 0,
                kind: EntryKind::Cancel,
                send_dont_have: false,
                once: false,
            },
        );
    }

    fn put(&mut self, peer: PeerNo, entry: Entry) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.entries.insert(entry.cid, entry);
            self.touched.insert(peer);
        }
    }

    /// Bytes the shell holds for that peer.
    pub(super) fn unflushed(&self, peer: PeerNo) -> usize {
        self.links.get(&peer).map_or(0, |link| link.unflushed)
    }
}
