//! What moves bytes between devices: the [`inside`], which only members and blind holders enter, and the [`door`], where strangers may knock.
//!
//! The only module that names libp2p. Both are tasks of their own; their owner holds a handle that never blocks and a queue of events that never grows past its
//! limits. Nothing here decides anything: who may enter, what a message means and what to say is the owner's.
//!
//! Spec: `protocol/spec/net.md`, "Inside".

mod dht;
mod direct;
pub mod door;
pub mod event;
mod frame;
pub mod inside;
pub mod lan;
mod mux;
pub mod outside;
pub mod rate;
mod streams;
#[cfg(test)]
mod tests;
mod unheard;
pub mod ways;
pub mod wide;

pub use event::{GossipId, NetEvent, NetEvents};
pub use frame::MESSAGE_BYTES_MAX;
pub use inside::{CONNECTIONS_USUAL, Config, Inside, InsideHandle, Refused, StartError, Stats};
pub use libp2p::Multiaddr;
pub use streams::{Raw, RawError, RawStream};

use std::io;
use std::net::{IpAddr, TcpListener};

use kith_object::id::DeviceId;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, Swarm, TransportError};
use zeroize::Zeroizing;

/// What a message inside belongs to; each has its own stream, protocol name and length prefix.
///
/// Spec: `protocol/spec/net.md`, "Channels".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Blocks: `/ipfs/bitswap/1.2.0`, as the IPFS world speaks it.
    Bitswap,
    /// Digest walks and entries: `/kith/sync/1`.
    Sync,
}

/// The libp2p name of a device.
fn peer_of(device: &DeviceId) -> Option<PeerId> {
    PeerId::from_bytes(&device.to_peer_id_bytes()).ok()
}

/// The device behind a libp2p name; `None` unless the name holds an Ed25519 key.
fn device_of(peer: &PeerId) -> Option<DeviceId> {
    DeviceId::from_peer_id_bytes(&peer.to_bytes())
}

/// The libp2p key pair of an Ed25519 seed.
fn keypair_of(mut seed: Zeroizing<[u8; 32]>) -> Keypair {
    Keypair::ed25519_from_bytes(seed.as_mut_slice()).expect("32 bytes are a seed")
}

/// Whether an address is reached by TCP, the transport preferred where both are known.
fn is_tcp(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

/// Listens on all of these addresses, or says which of them is taken.
fn listen<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    addrs: &[Multiaddr],
) -> Result<(), StartError> {
    for addr in addrs {
        let failed = |source| StartError::Listen {
            addr: addr.clone(),
            source,
        };
        probe(addr).map_err(failed)?;
        swarm.listen_on(addr.clone()).map_err(|error| {
            failed(match error {
                TransportError::Other(source) => source,
                TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
            })
        })?;
    }
    Ok(())
}

/// Fails if another program listens on that TCP port. libp2p lets ports be shared, and then each of two daemons would get half of the calls.
fn probe(addr: &Multiaddr) -> io::Result<()> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}
