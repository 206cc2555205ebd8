//! Direct ways between devices that a third one relays between, and what a direct connection does not prove.
//!
//! Spec: `protocol/spec/net.md`, "Ways in".

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId};

use super::dht::ADDRESSES_MAX;
use super::ways::{Links, is_public, is_relayed};

/// Rounds between two tries, at most: ten minutes.
const ROUNDS_MAX: u32 = 120;
/// Rounds for which a router may let in what comes from where something was sent to: five minutes, and most forget sooner.
const OPEN_ROUNDS: u32 = 60;
/// Addresses that something was sent to, remembered.
const SENT_MAX: usize = 1024;

/// When to look for a direct way to a device that is reached through another.
#[derive(Debug, Default)]
pub(super) struct Shortcuts {
    peers: BTreeMap<PeerId, Shortcut>,
}

#[derive(Debug)]
struct Shortcut {
    addrs: BTreeSet<Multiaddr>,
    wait: u32,
    left: u32,
}

impl Shortcuts {
    /// A connected device says where it listens. Addresses that are new are worth a try in the next round.
    pub(super) fn told(&mut self, peer: PeerId, addrs: &[Multiaddr]) {
        let addrs: BTreeSet<Multiaddr> = addrs
            .iter()
            .filter(|addr| !is_relayed(addr))
            .take(ADDRESSES_MAX)
            .cloned()
            .collect();
        match self.peers.get_mut(&peer) {
            Some(known) if known.addrs.is_superset(&addrs) => known.addrs = addrs,
            _ => {
                let shortcut = Shortcut {
                    addrs,
                    wait: 1,
                    left: 0,
                };
                self.peers.insert(peer, shortcut);
            }
        }
    }

    /// A device is connected no more.
    pub(super) fn gone(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// Counts a round: what to dial now, of the devices that are reached through another alone. Each try in vain doubles the pause.
    pub(super) fn due(&mut self, links: &Links) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let (relayed, direct): (Vec<_>, Vec<_>) = links
            .iter()
            .map(|(_, link)| (link.peer, link.relayed))
            .partition(|(_, relayed)| *relayed);
        let direct: HashSet<PeerId> = direct.into_iter().map(|(peer, _)| peer).collect();
        let relayed: HashSet<PeerId> = relayed.into_iter().map(|(peer, _)| peer).collect();
        let mut due = Vec::new();
        for peer in relayed.difference(&direct) {
            let Some(shortcut) = self.peers.get_mut(peer) else {
                continue;
            };
            if shortcut.left > 0 {
                shortcut.left -= 1;
            } else if !shortcut.addrs.is_empty() {
                shortcut.left = shortcut.wait;
                shortcut.wait = (shortcut.wait * 2).min(ROUNDS_MAX);
                due.push((*peer, shortcut.addrs.iter().cloned().collect()));
            }
        }
        due
    }
}

/// Where something was sent to from here, a while ago at most. A router lets in what comes from there, as an answer: that it got in proves nothing about what
/// comes from elsewhere.
#[derive(Debug, Default)]
pub(super) struct Pinholes {
    round: u32,
    sent: BTreeMap<IpAddr, u32>,
}

impl Pinholes {
    /// Counts a round. What is open stays open as long as there are connections through it.
    pub(super) fn pass(&mut self, links: &Links) {
        self.round = self.round.saturating_add(1);
        for (_, link) in links.iter() {
            if let Some(ip) = link.remote
                && (link.dialled || self.sent.contains_key(&ip))
            {
                self.sent(ip);
            }
        }
        let round = self.round;
        self.sent.retain(|_, sent| round - *sent <= OPEN_ROUNDS);
    }

    /// Something was sent there.
    pub(super) fn sent(&mut self, ip: IpAddr) {
        if is_public(&ip) && (self.sent.len() < SENT_MAX || self.sent.contains_key(&ip)) {
            self.sent.insert(ip, self.round);
        }
    }

    /// Another network, another router.
    pub(super) fn moved(&mut self) {
        self.sent.clear();
    }

    /// Somebody from there has got in, by a connection that others do not stand for yet; whether that proves that anybody would. While a third one relays between
    /// the two, each asks the other to dial it.
    pub(super) fn prove(&mut self, peer: &PeerId, ip: IpAddr, links: &Links) -> bool {
        if !is_public(&ip) {
            return false;
        }
        let asked = links
            .iter()
            .any(|(_, link)| link.peer == *peer && link.relayed);
        if asked {
            self.sent(ip);
        }
        // With so many, one may have been left out.
        !(asked || self.sent.contains_key(&ip) || self.sent.len() >= SENT_MAX)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use libp2p::swarm::ConnectionId;

    use super::super::ways::Standing;
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn standing(peer: PeerId, text: &str, relayed: bool, dialled: bool) -> Standing {
        let remote = addr(text);
        Standing {
            peer,
            remote: super::super::ways::ip_of(&remote).filter(|_| !relayed),
            addr: remote,
            relayed,
            tcp: true,
            dialled,
            unasked: false,
            local: None,
            round_trip: None,
            age: 0,
        }
    }

    #[test]
    fn direct_way_is_looked_for_ever_less_and_at_once_where_there_is_news() {
        let mut shortcuts = Shortcuts::default();
        let mut links = Links::default();
        let (peer, id) = (PeerId::random(), ConnectionId::new_unchecked(1));
        let there = [
            addr("/ip4/11.0.0.7/tcp/1"),
            addr("/ip4/11.0.0.9/tcp/1/p2p-circuit"),
        ];
        shortcuts.told(peer, &there);
        assert!(shortcuts.due(&links).is_empty(), "not connected at all");
        links.insert(id, standing(peer, "/ip4/11.0.0.9/tcp/1", true, true));
        let mut tries = Vec::new();
        for round in 0..1000 {
            for (to, addrs) in shortcuts.due(&links) {
                assert_eq!((to, addrs), (peer, vec![there[0].clone()]));
                tries.push(round);
            }
        }
        assert_eq!(tries[..5], [0, 2, 5, 10, 19]);
        let pauses = tries.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(pauses.max(), Some(ROUNDS_MAX + 1));
        // What was known is no news, another address is.
        shortcuts.told(peer, &there[..1]);
        assert!(shortcuts.due(&links).is_empty());
        shortcuts.told(peer, &[addr("/ip4/11.0.0.7/tcp/2")]);
        assert_eq!(shortcuts.due(&links).len(), 1);
        // A direct one is there.
        let direct = ConnectionId::new_unchecked(2);
        links.insert(direct, standing(peer, "/ip4/11.0.0.7/tcp/1", false, true));
        assert!((0..1000).all(|_| shortcuts.due(&links).is_empty()));
        shortcuts.gone(&peer);
        links.remove(&direct);
        assert!((0..1000).all(|_| shortcuts.due(&links).is_empty()));
    }

    #[test]
    fn who_comes_in_by_a_hole_that_was_made_from_here_proves_nothing() {
        let ip = |n: u8| IpAddr::from([11, 0, 0, n]);
        let (one, two) = (PeerId::random(), PeerId::random());
        let mut links = Links::default();
        let mut holes = Pinholes::default();
        assert!(holes.prove(&one, ip(1), &links));
        assert!(holes.prove(&one, ip(1), &links), "by another transport");
        assert!(!holes.prove(&one, IpAddr::from([10, 0, 0, 1]), &links));
        // Dialled in vain a while ago.
        holes.sent(ip(1));
        assert!(!holes.prove(&one, ip(1), &links));
        assert!(holes.prove(&one, ip(2), &links));
        for _ in 0..=OPEN_ROUNDS {
            holes.pass(&links);
        }
        assert!(holes.prove(&one, ip(1), &links));
        // Reached through another: both dial.
        let relayed = ConnectionId::new_unchecked(1);
        links.insert(relayed, standing(one, "/ip4/11.0.0.9/tcp/1", true, true));
        assert!(!holes.prove(&one, ip(1), &links));
        assert!(holes.prove(&two, ip(2), &links));
        // What came in so is no longer relayed: it still keeps the hole open.
        links.remove(&relayed);
        let direct = ConnectionId::new_unchecked(2);
        links.insert(direct, standing(one, "/ip4/11.0.0.1/tcp/1", false, false));
        for _ in 0..=2 * OPEN_ROUNDS {
            holes.pass(&links);
        }
        assert!(!holes.prove(&one, ip(1), &links));
        // In another network there is none.
        holes.moved();
        assert!(holes.prove(&one, ip(1), &links));
        // What we dialled keeps one open too.
        links.insert(direct, standing(one, "/ip4/11.0.0.1/tcp/1", false, true));
        holes.pass(&links);
        assert!(!holes.prove(&two, ip(1), &links));
    }

    #[test]
    fn memory_of_holes_is_bounded_and_then_nothing_is_proof() {
        let mut holes = Pinholes::default();
        for n in 0..5000_u32 {
            holes.sent(IpAddr::from((0x0b00_0000 + n).to_be_bytes()));
        }
        assert_eq!(holes.sent.len(), SENT_MAX);
        let ip = IpAddr::from([12, 0, 0, 1]);
        assert!(!holes.prove(&PeerId::random(), ip, &Links::default()));
    }
}
