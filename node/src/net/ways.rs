//! How a device is reached from other networks: which of its addresses work from outside, and who relays to it where none does.
//!
//! Spec: `protocol/spec/net.md`, "Ways in".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use kith_object::id::DeviceId;
use libp2p::autonat::v2 as autonat;
use libp2p::core::Endpoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewListenAddr, StreamProtocol,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, dcutr, relay, upnp};

use super::is_tcp;

/// Devices that are asked to relay to this one, at a time: one may go at any moment.
pub(super) const RELAYS_MAX: usize = 2;
/// Addresses that work from outside, as far as is known.
const PUBLIC_MAX: usize = 8;
/// Addresses to be tried from outside that are remembered: other devices say what they see, and may say anything.
const CANDIDATES_MAX: usize = 64;
/// Devices that have this one relay to them, and connections relayed at a time: those of a mesh.
const RESERVATIONS_MAX: usize = 256;
const CIRCUITS_MAX: usize = 128;
const CIRCUITS_PER_DEVICE_MAX: usize = 32;
/// How long one relayed connection may last; who still needs it makes another.
const CIRCUIT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The protocol of those that relay.
pub(super) const HOP: StreamProtocol = relay::HOP_PROTOCOL_NAME;

/// What finds ways in, behaviour by behaviour.
#[derive(NetworkBehaviour)]
pub(super) struct Ways {
    pub(super) relayed: relay::client::Behaviour,
    pub(super) relaying: relay::Behaviour,
    punch: dcutr::Behaviour,
    tried: Sieve<autonat::client::Behaviour>,
    trying: Careful<autonat::server::Behaviour>,
    router: Toggle<upnp::tokio::Behaviour>,
}

impl Ways {
    pub(super) fn new(me: PeerId, relayed: relay::client::Behaviour, router: bool) -> Self {
        let config = relay::Config {
            max_reservations: RESERVATIONS_MAX,
            max_circuits: CIRCUITS_MAX,
            max_circuits_per_peer: CIRCUITS_PER_DEVICE_MAX,
            max_circuit_duration: CIRCUIT_LIFE,
            // Devices of one mesh move whole files this way where there is no other.
            max_circuit_bytes: 0,
            ..relay::Config::default()
        };
        let mut relaying = relay::Behaviour::new(me, config);
        relaying.set_status(Some(relay::Status::Disable));
        let router = router.then(upnp::tokio::Behaviour::default);
        Self {
            relayed,
            relaying,
            punch: dcutr::Behaviour::new(me),
            tried: Sieve::new(autonat::client::Behaviour::default()),
            trying: Careful::new(autonat::server::Behaviour::default()),
            router: router.into(),
        }
    }
}

impl Ways {
    /// Asks for a router anew, for these listeners: the one that asks gives up for good when none answers at once, and networks come and go.
    pub(super) fn ask_router(&mut self, listeners: &BTreeMap<Multiaddr, ListenerId>) {
        if !self.router.is_enabled() {
            return;
        }
        let router = router_asked(listeners);
        self.router = Some(router).into();
    }
}

/// Asks for a router to forward to these listeners.
pub(super) fn router_asked(listeners: &BTreeMap<Multiaddr, ListenerId>) -> upnp::tokio::Behaviour {
    let mut router = upnp::tokio::Behaviour::default();
    for (addr, listener_id) in listeners {
        let listening = NewListenAddr {
            listener_id: *listener_id,
            addr,
        };
        router.on_swarm_event(FromSwarm::NewListenAddr(listening));
    }
    router
}

/// When a router that did not answer is asked again.
#[derive(Debug)]
pub(super) struct Patience {
    rounds: u32,
    next: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rounds: 0, next: 1 }
    }
}

impl Patience {
    /// Counts a round of tidying; whether to ask now: after one, then after twice as many each time, up to an hour.
    pub(super) fn is_over(&mut self) -> bool {
        self.rounds += 1;
        let over = self.rounds >= self.next;
        if over {
            self.rounds = 0;
            self.next = (self.next * 2).min(ROUNDS_HOUR);
        }
        over
    }
}

/// Rounds of tidying in an hour.
const ROUNDS_HOUR: u32 = 720;

/// Whether an address leads through a relay.
pub(super) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The first address in an address.
pub(super) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(ip.into()),
        Some(Protocol::Ip6(ip)) => Some(ip.into()),
        _ => None,
    }
}

/// Whether an address may be reached from other networks.
pub(super) fn is_public(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || first == 0
                || shared)
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_public(&ip.into()),
            None => {
                !(ip.is_loopback()
                    || ip.is_unspecified()
                    || ip.is_multicast()
                    || ip.is_unique_local()
                    || ip.is_unicast_link_local())
            }
        },
    }
}

/// Whether an address is one that strangers' networks could reach, without a relay.
pub(super) fn is_outward(addr: &Multiaddr) -> bool {
    !is_relayed(addr) && ip_of(addr).is_some_and(|ip| is_public(&ip))
}

/// Lets through only candidates that are worth a try, and no more than some: the behaviour within keeps all that it hears of for ever.
pub(super) struct Sieve<B> {
    within: B,
    candidates: BTreeSet<Multiaddr>,
}

impl<B> Sieve<B> {
    fn new(within: B) -> Self {
        Self {
            within,
            candidates: BTreeSet::new(),
        }
    }

    fn takes(&mut self, addr: &Multiaddr) -> bool {
        if self.candidates.contains(addr) {
            return true;
        }
        let takes = is_outward(addr) && self.candidates.len() < CANDIDATES_MAX;
        if takes {
            self.candidates.insert(addr.clone());
        }
        takes
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Sieve<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.within
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.within
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.within
            .handle_pending_outbound_connection(id, peer, addrs, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.within
            .handle_established_outbound_connection(id, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::NewExternalAddrCandidate(candidate) = &event
            && !self.takes(candidate.addr)
        {
            return;
        }
        self.within.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.within.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.within.poll(cx)
    }
}

/// Dials only addresses that other networks could reach. Who asks for an address of its own to be tried would else have this device knock at whatever stands in its own
/// network, and hear how that went.
pub(super) struct Careful<B> {
    within: B,
    dials: BTreeSet<ConnectionId>,
}

/// It was asked for an address that nobody in another network could reach.
#[derive(Debug, thiserror::Error)]
#[error("not an address of another network")]
struct NotOutward;

impl<B> Careful<B> {
    fn new(within: B) -> Self {
        Self {
            within,
            dials: BTreeSet::new(),
        }
    }

    /// Whether a dial to these may go on; each is asked about once.
    fn may(&mut self, id: ConnectionId, addrs: &[Multiaddr]) -> bool {
        !self.dials.remove(&id) || addrs.iter().all(is_outward)
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Careful<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.within
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.within
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if !self.may(id, addrs) {
            return Err(ConnectionDenied::new(NotOutward));
        }
        self.within
            .handle_pending_outbound_connection(id, peer, addrs, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.within
            .handle_established_outbound_connection(id, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        // One that another behaviour refused was not asked about.
        if let FromSwarm::DialFailure(failure) = &event {
            self.dials.remove(&failure.connection_id);
        }
        self.within.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.within.on_connection_handler_event(peer, id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let action = self.within.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &action {
            self.dials.insert(opts.connection_id());
        }
        action
    }
}

/// Why an address is believed to work from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// A device in another network dialled it.
    Dialled,
    /// A device tried it on our behalf (AutoNAT).
    Tried,
    /// The router gave it to us (UPnP).
    Router,
}

/// What the router said when it was asked for a port (UPnP).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Router {
    /// It is not asked.
    #[default]
    NotAsked,
    /// It has not answered yet.
    Asked,
    /// No router answers.
    Silent,
    /// It has no public address itself.
    NotPublic,
    /// It gave one.
    Mapped,
}

/// What keeps another device connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// To which device.
    pub device: DeviceId,
    /// Its address there.
    pub addr: String,
    /// Whether another device relays.
    pub relayed: bool,
    /// Whether this device dialled.
    pub dialled: bool,
    /// Last round trip.
    pub round_trip: Option<Duration>,
}

/// How a device is reached, for its owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Addresses that work from outside, and how that is known.
    pub public: Vec<(String, Proof)>,
    /// Addresses that were tried from outside in vain.
    pub closed: Vec<String>,
    /// Devices that relay to this one.
    pub relays: Vec<DeviceId>,
    /// Whether this device relays for others.
    pub relaying: bool,
    /// What the router said.
    pub router: Router,
    /// Connections.
    pub links: Vec<Link>,
    /// Devices whose last dial failed, and why.
    pub failed: Vec<(DeviceId, String)>,
    /// Devices that broke the rules, and for how long they are kept out.
    pub refused: Vec<(DeviceId, Duration)>,
}

/// A device that relays for others.
#[derive(Debug, Default)]
struct Relay {
    addrs: Vec<Multiaddr>,
    listener: Option<ListenerId>,
    granted: bool,
}

/// What is known of the ways in. Decides who is asked to relay: nobody while there is an address that works from outside.
#[derive(Debug, Default)]
pub(super) struct Known {
    public: BTreeMap<Multiaddr, Proof>,
    closed: BTreeSet<Multiaddr>,
    relays: BTreeMap<PeerId, Relay>,
    pub(super) router: Router,
}

impl Known {
    /// Nothing yet, whether or not the router is being asked.
    pub(super) fn new(router: bool) -> Self {
        let router = if router {
            Router::Asked
        } else {
            Router::NotAsked
        };
        Self {
            router,
            ..Self::default()
        }
    }

    /// An address works from outside; whether that is news.
    pub(super) fn opened(&mut self, addr: &Multiaddr, proof: Proof) -> bool {
        self.closed.remove(addr);
        if !is_outward(addr) || self.public.len() >= PUBLIC_MAX {
            return false;
        }
        self.public.insert(addr.clone(), proof).is_none()
    }

    /// An address does not work from outside.
    pub(super) fn closed(&mut self, addr: &Multiaddr) {
        if self.closed.len() < PUBLIC_MAX && !self.public.contains_key(addr) {
            self.closed.insert(addr.clone());
        }
    }

    /// An address works no longer; whether it did.
    pub(super) fn expired(&mut self, addr: &Multiaddr) -> bool {
        self.public.remove(addr).is_some()
    }

    /// The network has changed: what was known of this device's addresses is worth nothing. Those that are given up.
    pub(super) fn moved(&mut self) -> Vec<Multiaddr> {
        self.closed.clear();
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.public)
            .into_iter()
            .partition(|(_, proof)| *proof == Proof::Router);
        self.public = kept;
        gone.into_keys().collect()
    }

    pub(super) fn is_public(&self) -> bool {
        !self.public.is_empty()
    }

    /// A device is connected and says where it listens, and whether it relays.
    pub(super) fn told(&mut self, peer: PeerId, relays: bool, addrs: &[Multiaddr]) {
        let addrs: Vec<Multiaddr> = addrs
            .iter()
            .filter(|addr| is_outward(addr))
            .take(PUBLIC_MAX)
            .cloned()
            .collect();
        if relays && !addrs.is_empty() {
            self.relays.entry(peer).or_default().addrs = addrs;
        } else if self
            .relays
            .get(&peer)
            .is_some_and(|relay| relay.listener.is_none())
        {
            self.relays.remove(&peer);
        }
    }

    /// A device is connected no more.
    pub(super) fn gone(&mut self, peer: &PeerId) {
        self.relays.remove(peer);
    }

    /// A reservation was asked for.
    pub(super) fn reserving(&mut self, peer: &PeerId, listener: ListenerId) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.listener = Some(listener);
        }
    }

    /// A device relays to this one from now on. Where it can be reached by QUIC, from the socket that is listened on: only so does a router tell, and keep, what
    /// the others have to dial to get through it.
    pub(super) fn granted(&mut self, peer: &PeerId) -> Option<Multiaddr> {
        let relay = self.relays.get_mut(peer)?;
        relay.granted = true;
        relay.addrs.iter().find(|addr| !is_tcp(addr)).cloned()
    }

    /// A reservation has ended.
    pub(super) fn ended(&mut self, listener: ListenerId) {
        for relay in self.relays.values_mut() {
            if relay.listener == Some(listener) {
                relay.listener = None;
                relay.granted = false;
            }
        }
    }

    /// Who is to be asked to relay to this device now, and at which of its addresses. Who does so already goes on until its connection ends, whatever works meanwhile:
    /// the behaviour beneath panics if a reservation is given up in the moment in which it is granted or renewed.
    pub(super) fn wanted(&self) -> Option<(PeerId, Multiaddr)> {
        if self.is_public() {
            return None;
        }
        let held = self
            .relays
            .values()
            .filter(|relay| relay.listener.is_some());
        if held.count() >= RELAYS_MAX {
            return None;
        }
        let free = self
            .relays
            .iter()
            .find(|(_, relay)| relay.listener.is_none());
        free.and_then(|(peer, relay)| {
            let addr = relay.addrs.iter().find(|addr| is_tcp(addr));
            Some((*peer, addr.or(relay.addrs.first())?.clone()))
        })
    }

    /// For the owner, with what only the swarm knows left open.
    pub(super) fn report(&self, name: impl Fn(&PeerId) -> Option<DeviceId>) -> Reach {
        let granted = self.relays.iter().filter(|(_, relay)| relay.granted);
        Reach {
            public: self
                .public
                .iter()
                .map(|(addr, proof)| (addr.to_string(), *proof))
                .collect(),
            closed: self.closed.iter().map(ToString::to_string).collect(),
            relays: granted.filter_map(|(peer, _)| name(peer)).collect(),
            router: self.router,
            ..Reach::default()
        }
    }
}

/// The connections of a swarm, and which of them are too many.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: HashMap<ConnectionId, Standing>,
}

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) peer: PeerId,
    pub(super) addr: Multiaddr,
    pub(super) relayed: bool,
    pub(super) tcp: bool,
    pub(super) dialled: bool,
    /// Whether it shows that anybody gets in.
    pub(super) unasked: bool,
    /// Our end; the system does not tell for connections that we dialled, and there is none of one that is relayed.
    pub(super) local: Option<IpAddr>,
    pub(super) remote: Option<IpAddr>,
    pub(super) round_trip: Option<Duration>,
    /// Rounds of tidying that it has seen.
    pub(super) age: u32,
}

/// Rounds that a connection is left alone: what was begun together comes up together.
const ROUNDS_MIN: u32 = 2;

impl Links {
    pub(super) fn insert(&mut self, id: ConnectionId, link: Standing) {
        self.links.insert(id, link);
    }

    pub(super) fn remove(&mut self, id: &ConnectionId) -> Option<Standing> {
        self.links.remove(id)
    }

    pub(super) fn get(&self, id: &ConnectionId) -> Option<&Standing> {
        self.links.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ConnectionId, &Standing)> {
        self.links.iter()
    }

    pub(super) fn heard(&mut self, id: &ConnectionId, round_trip: Duration) {
        if let Some(link) = self.links.get_mut(id) {
            link.round_trip = Some(round_trip);
        }
    }

    /// Whether there is a connection with a device on that kind of transport, without a relay.
    pub(super) fn has(&self, peer: &PeerId, tcp: bool) -> bool {
        let mut links = self.links.values();
        links.any(|link| link.peer == *peer && link.tcp == tcp && !link.relayed)
    }

    /// Counts a round, and names connections that others of the same device make superfluous: relayed ones next to a direct one, and, if `ours` says that it is
    /// on this side to close them, all but one of each transport. Those named may be in use; whoever closes looks.
    pub(super) fn superfluous(&mut self, ours: impl Fn(&PeerId) -> bool) -> Vec<ConnectionId> {
        for link in self.links.values_mut() {
            link.age = link.age.saturating_add(1);
        }
        let mut settled: Vec<(&ConnectionId, &Standing)> = self
            .links
            .iter()
            .filter(|(_, link)| link.age >= ROUNDS_MIN)
            .collect();
        settled.sort_by_key(|(id, _)| **id);
        let mut direct: BTreeSet<PeerId> = BTreeSet::new();
        let mut kinds: BTreeSet<(PeerId, bool)> = BTreeSet::new();
        let mut surplus = Vec::new();
        for (id, link) in settled.iter().filter(|(_, link)| !link.relayed) {
            direct.insert(link.peer);
            if !kinds.insert((link.peer, link.tcp)) && ours(&link.peer) {
                surplus.push(**id);
            }
        }
        for (id, link) in settled.iter().filter(|(_, link)| link.relayed) {
            if direct.contains(&link.peer) {
                surplus.push(**id);
            }
        }
        surplus
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_addresses_that_other_networks_could_reach_count_as_public() {
        for (text, public) in [
            ("1.2.3.4", true),
            ("10.0.0.1", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("0.1.2.3", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("2a00::1", true),
            ("::ffff:192.168.1.1", false),
            ("::ffff:1.2.3.4", true),
        ] {
            assert_eq!(is_public(&text.parse().unwrap()), public, "{text}");
        }
    }

    #[test]
    fn somebody_is_asked_to_relay_only_while_nothing_works_from_outside() {
        let mut known = Known::default();
        let (one, two, three) = (PeerId::random(), PeerId::random(), PeerId::random());
        let there = [addr("/ip4/10.0.0.7/tcp/1"), addr("/ip4/11.0.0.7/tcp/1")];
        assert_eq!(known.wanted(), None);
        known.told(one, false, &there);
        assert_eq!(known.wanted(), None, "it does not relay");
        known.told(one, true, &there[..1]);
        assert_eq!(known.wanted(), None, "nobody else could reach it there");
        for peer in [one, two, three] {
            known.told(peer, true, &there);
        }
        let mut asked = BTreeSet::new();
        while let Some((relay, addr)) = known.wanted() {
            assert_eq!(addr, there[1]);
            known.reserving(&relay, ListenerId::next());
            assert!(asked.insert(relay));
        }
        assert_eq!(asked.len(), RELAYS_MAX);
        // One goes: the third is asked.
        known.gone(asked.first().unwrap());
        let (relay, _) = known.wanted().unwrap();
        assert!(!asked.contains(&relay));
        known.reserving(&relay, ListenerId::next());
        assert_eq!(known.wanted(), None);
        // An address works: nobody else is asked when one goes.
        assert!(!known.opened(&addr("/ip4/10.0.0.1/tcp/5"), Proof::Tried));
        assert!(known.opened(&addr("/ip4/11.0.0.1/tcp/5"), Proof::Tried));
        known.gone(&relay);
        known.told(relay, true, &there);
        assert_eq!(known.wanted(), None);
        // In another network it does not.
        assert_eq!(known.moved(), [addr("/ip4/11.0.0.1/tcp/5")]);
        assert!(known.wanted().is_some());
    }

    #[test]
    fn what_others_say_of_our_addresses_is_bounded() {
        let mut known = Known::default();
        let mut sieve = Sieve::new(());
        for n in 0..10_000_u32 {
            let addr: Multiaddr = format!("/ip4/11.0.{}.{}/tcp/1", n / 250, n % 250)
                .parse()
                .unwrap();
            known.opened(&addr, Proof::Dialled);
            known.closed(&addr);
            sieve.takes(&addr);
        }
        assert_eq!(known.public.len(), PUBLIC_MAX);
        assert_eq!(known.closed.len(), PUBLIC_MAX);
        assert_eq!(sieve.candidates.len(), CANDIDATES_MAX);
        assert!(!sieve.takes(&addr("/ip4/11.1.0.1/tcp/1")));
        assert!(sieve.takes(&addr("/ip4/11.0.0.0/tcp/1")), "known before");
    }

    #[test]
    fn nobody_has_us_knock_in_our_own_network() {
        let mut careful = Careful::new(());
        for (text, may) in [
            ("/ip4/192.168.1.1/tcp/80", false),
            ("/ip4/127.0.0.1/tcp/22", false),
            ("/ip6/fe80::1/tcp/22", false),
            ("/dns/router.local/tcp/80", false),
            ("/ip4/11.0.0.1/tcp/80", true),
        ] {
            let id = ConnectionId::new_unchecked(7);
            careful.dials.insert(id);
            let there = [addr("/ip4/11.0.0.9/tcp/1"), addr(text)];
            assert_eq!(careful.may(id, &there), may, "{text}");
            assert!(careful.may(id, &there), "what others dial is theirs");
        }
    }

    #[test]
    fn silent_router_is_asked_again_and_ever_less() {
        let mut patience = Patience::default();
        let asked: Vec<u32> = (1..100_000).filter(|_| patience.is_over()).collect();
        assert_eq!(asked[..5], [1, 3, 7, 15, 31]);
        let pauses = asked.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(pauses.clone().max() == Some(ROUNDS_HOUR) && asked.len() > 100);
    }

    #[test]
    fn one_connection_of_each_kind_stays() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let mut links = Links::default();
        let mut ids = Vec::new();
        for (peer, tcp, relayed) in [
            (peer, true, true),
            (peer, false, false),
            (peer, true, false),
            (peer, true, false),
            (other, true, true),
            (other, true, true),
        ] {
            let id = ConnectionId::new_unchecked(ids.len());
            ids.push(id);
            links.insert(
                id,
                Standing {
                    peer,
                    addr: Multiaddr::empty(),
                    relayed,
                    tcp,
                    dialled: true,
                    unasked: false,
                    local: None,
                    remote: None,
                    round_trip: None,
                    age: 0,
                },
            );
        }
        assert!(links.superfluous(|_| true).is_empty(), "they are young");
        // The other side closes what is double; each closes what is relayed.
        assert_eq!(links.superfluous(|_| false), [ids[0]]);
        assert_eq!(links.superfluous(|_| true), [ids[3], ids[0]]);
        // A relayed one stays where there is no other.
        links.remove(&ids[0]);
        links.remove(&ids[3]);
        assert!(links.superfluous(|_| true).is_empty());
        assert!(links.has(&peer, true) && links.has(&peer, false) && !links.has(&other, true));
    }
}
