//! The local network: a multicast socket on the port of mDNS, driven for the machine that finds devices.
//!
//! Spec: `protocol/spec/lan.md`, "Socket".

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use if_watch::tokio::IfWatcher;
use if_watch::{IfEvent, IpNet};
use kith_object::key::Rng;
use kith_object::time::{Span, Time};
use kith_protocol::lan::{
    DATAGRAM_BYTES_MAX, Effect, Input, Lan, LanKey, Neighbour, Ports, Speaker,
};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::now;

/// Where mDNS speaks.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;
/// Neighbours that wait for the owner; more are found again.
const FOUND_MAX: usize = 64;
/// After a socket that could not be made.
const RETRY: Duration = Duration::from_secs(30);
/// Narrowest network that more than two machines fit in; others are lines to one other machine.
const PREFIX_MAX: u8 = 30;

/// Keeps looking; dropping it ends that.
#[derive(Debug)]
pub struct LanHandle {
    found: mpsc::Receiver<Neighbour>,
    _open: oneshot::Sender<Infallible>,
}

impl LanHandle {
    /// The next device that says it is here. `None` if this machine cannot look at all. Cancel safe.
    pub async fn found(&mut self) -> Option<Neighbour> {
        self.found.recv().await
    }
}

/// Whether somebody in a local network can reach what listens on these addresses: on loopback nobody can, and nothing is ever multicast for it.
pub fn is_reachable(listen: &[IpAddr]) -> bool {
    listen
        .iter()
        .any(|addr| addr.is_ipv4() && !addr.is_loopback())
}

/// Where a neighbour is reached at that address.
pub fn multiaddrs(addr: Ipv4Addr, ports: Ports) -> Vec<Multiaddr> {
    let ip = Multiaddr::empty().with(Protocol::Ip4(addr));
    let tcp = (ports.tcp != 0).then(|| ip.clone().with(Protocol::Tcp(ports.tcp)));
    let quic = (ports.udp != 0).then(|| ip.with(Protocol::Udp(ports.udp)).with(Protocol::QuicV1));
    tcp.into_iter().chain(quic).collect()
}

/// Takes part in the local networks of `listen`; an unspecified address stands for all of this machine.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(key: LanKey, speaker: Speaker, listen: &[IpAddr], rng: Rng) -> LanHandle {
    let (found, receiver) = mpsc::channel(FOUND_MAX);
    let (open, closed) = oneshot::channel();
    let only = listen
        .iter()
        .filter_map(|addr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        })
        .collect();
    let shell = Shell {
        machine: Lan::new(key, speaker, rng),
        only,
        networks: BTreeMap::new(),
        found,
        socket: None,
        began: (now(), Instant::now()),
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = closed => {}
            ended = shell.run() => if let Err(error) = ended {
                warn!(%error, "devices in the local network are not looked for");
            }
        }
    });
    LanHandle {
        found: receiver,
        _open: open,
    }
}

struct Shell {
    machine: Lan,
    /// What is listened on.
    only: BTreeSet<Ipv4Addr>,
    /// Addresses of this machine, and how often the system named each.
    networks: BTreeMap<Ipv4Addr, u32>,
    found: mpsc::Sender<Neighbour>,
    socket: Option<UdpSocket>,
    began: (Time, Instant),
}

impl Shell {
    /// Time for the machine: it does not fall when the clock is set.
    fn now(&self) -> Time {
        let passed = u64::try_from(self.began.1.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.0 + Span::from_ms(passed)
    }

    async fn run(mut self) -> io::Result<()> {
        let mut interfaces = IfWatcher::new()?;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX + 1];
        let mut retry = false;
        loop {
            let wake = self.machine.next_wakeup().map_or(RETRY, |at| {
                Duration::from_millis(at.since(self.now()).as_ms()).min(RETRY)
            });
            let heard = async {
                match &self.socket {
                    Some(socket) => socket.recv_from(&mut buffer).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = interfaces.select_next_some() => {
                    let mut changed = self.changed(event?);
                    // Those that stand in line are one change.
                    while let Some(Some(event)) = futures::FutureExt::now_or_never(interfaces.next()) {
                        changed |= self.changed(event?);
                    }
                    if changed {
                        retry = !self.move_to();
                    }
                }
                heard = heard => match heard {
                    Ok((len, SocketAddr::V4(from))) if from.port() == PORT => {
                        let datagram = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                        self.machine.handle(self.now(), Input::Heard { from: *from.ip(), datagram });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        debug!(%error, "the local network is not heard");
                        self.socket = None;
                        retry = true;
                    }
                },
                () = tokio::time::sleep(wake) => {
                    if retry {
                        retry = !self.move_to();
                    }
                    self.machine.handle(self.now(), Input::Wake);
                }
            }
            if !self.perform() {
                return Ok(());
            }
        }
    }

    /// Notes an address that came or went; whether that concerns us.
    fn changed(&mut self, event: IfEvent) -> bool {
        let (network, up) = match event {
            IfEvent::Up(IpNet::V4(network)) => (network, true),
            IfEvent::Down(IpNet::V4(network)) => (network, false),
            _ => return false,
        };
        let addr = network.addr();
        let wanted = self.only.contains(&Ipv4Addr::UNSPECIFIED) || self.only.contains(&addr);
        if !wanted || addr.is_loopback() || network.prefix_len() > PREFIX_MAX {
            return false;
        }
        let count = self.networks.entry(addr).or_default();
        if up {
            *count += 1;
            *count == 1
        } else {
            *count = count.saturating_sub(1);
            let gone = *count == 0;
            if gone {
                self.networks.remove(&addr);
            }
            gone
        }
    }

    /// A socket in the networks as they are now; `false` if none could be had.
    fn move_to(&mut self) -> bool {
        self.socket = None;
        let addrs: BTreeSet<Ipv4Addr> = self.networks.keys().copied().collect();
        let opened = if addrs.is_empty() {
            Ok(None)
        } else {
            open(&addrs).map(Some)
        };
        let (socket, addrs, ok) = match opened {
            Ok(socket) => (socket, addrs, true),
            Err(error) => {
                debug!(%error, "no socket for the local network");
                (None, BTreeSet::new(), false)
            }
        };
        self.socket = socket;
        self.machine.handle(self.now(), Input::Interfaces(addrs));
        ok
    }

    /// `false` once nobody wants to know any more.
    fn perform(&mut self) -> bool {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Send { from, datagram } => self.send(from, &datagram),
                Effect::Found(neighbour) => match self.found.try_send(neighbour) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => debug!("device not noted"),
                    Err(mpsc::error::TrySendError::Closed(_)) => return false,
                },
            }
        }
        true
    }

    fn send(&self, from: Ipv4Addr, datagram: &[u8]) {
        let Some(socket) = &self.socket else { return };
        let to = SocketAddr::V4(SocketAddrV4::new(GROUP, PORT));
        // Past the runtime, which would have to be asked first whether a new socket can be written to: one that cannot be is no loss.
        let socket = SockRef::from(socket);
        let sent = socket
            .set_multicast_if_v4(&from)
            .and_then(|()| socket.send_to(datagram, &to.into()));
        if let Err(error) = sent {
            debug!(%from, %error, "nothing said in the local network");
        }
    }
}

/// A socket that hears the group in the networks of these addresses, beside other programs that do the same.
fn open(addrs: &BTreeSet<Ipv4Addr>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_multicast_ttl_v4(255)?;
    // Two devices may be on one machine.
    socket.set_multicast_loop_v4(true)?;
    // Linux would pass on what other programs have joined for.
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v4(false)?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    let mut joined = false;
    for addr in addrs {
        match socket.join_multicast_v4(&GROUP, addr) {
            Ok(()) => joined = true,
            // Two addresses of one interface: once is enough.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => joined = true,
            Err(error) => debug!(%addr, %error, "network not joined"),
        }
    }
    if !joined {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_never_speaks() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(!is_reachable(&[
            ip("127.0.0.1"),
            ip("127.0.0.5"),
            ip("::1")
        ]));
        assert!(!is_reachable(&[]));
        assert!(is_reachable(&[ip("127.0.0.1"), ip("0.0.0.0")]));
        assert!(is_reachable(&[ip("192.168.1.7")]));
    }
}
