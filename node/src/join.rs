//! A machine becomes a device of a mesh that exists: by a ticket, or by the 24 words.
//!
//! Spec: `protocol/spec/pairing.md`, "Newcomer".

use std::time::Duration;

use bytes::Bytes;
use kith_crdt::access::{Newcomer, Role};
use kith_crdt::chain::Entry;
use kith_crdt::replica::Replica;
use kith_object::id::{DeviceId, SpaceId};
use kith_object::key::{DeviceKeys, Secret, Words};
use kith_protocol::api::{Failure, FailureKind};
use kith_protocol::pairing::{
    Arrival, DeviceName, Guide, JoinError, Joiner, JoinerEffect, JoinerInput, Peers, Ticket,
    WordsEffect, WordsInput, WordsJoinError, WordsJoiner,
};
use kith_protocol::wire::DOOR_FRAME_BYTES_MAX;
use zeroize::Zeroizing;

use crate::config::{Home, Identity, fresh_rng, now};
use crate::net::Multiaddr;
use crate::net::door::{DoorStream, knock};
use crate::run::{BOOK_FILE, NodeError, UNSETTLED_FILE, lock, write_first_entries};

/// How long a frame may take once the codes are being compared.
const PROVED_WAIT: Duration = Duration::from_secs(600);

/// A device that came to be.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The mesh it belongs to.
    pub mesh: SpaceId,
    /// Which device it is.
    pub device: DeviceId,
    /// What it may do.
    pub role: &'static str,
}

fn failed(error: &NodeError, home: &Home) -> Failure {
    let what = format!("make a device in {}", home.path().display());
    match error {
        NodeError::Home(crate::config::HomeError::Exists { .. }) => {
            Failure::new(FailureKind::Exists, format!("{what}: there is one already"))
                .hint("choose another folder with --home DIR")
        }
        other => Failure::new(FailureKind::Failed, what).because(other),
    }
}

fn device_name(name: &str) -> Result<DeviceName, Failure> {
    DeviceName::new(name).map_err(|error| {
        Failure::new(FailureKind::Usage, format!("call this device {name:?}"))
            .because(&error)
            .hint("choose another with --name")
    })
}

/// The next thing on a stream: a frame, or that it ended, or that the machine wants to be woken.
enum Next {
    Frame(Bytes),
    Ended,
    Wake,
}

async fn next(stream: &mut Option<DoorStream>, wake: Option<kith_object::time::Time>) -> Next {
    let pause = wake.map_or(Duration::from_secs(3600), |at| {
        Duration::from_millis(at.since(now()).as_ms())
    });
    let frame = async {
        match stream {
            Some(stream) => stream.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        frame = frame => match frame {
            Ok(frame) => Next::Frame(frame),
            Err(_) => Next::Ended,
        },
        () = tokio::time::sleep(pause) => Next::Wake,
    }
}

fn peers(stream: &DoorStream) -> Peers {
    Peers {
        door: stream.remote_peer.clone(),
        newcomer: stream.local_peer.clone(),
    }
}

/// Joins by a ticket; `show` is told the short code that the other screen shows too.
///
/// # Errors
/// A [`Failure`] that says what is wrong with the ticket, the way, or the answer.
pub async fn by_ticket(
    home: &Home,
    ticket: &str,
    name: &str,
    mut show: impl FnMut(&str),
) -> Result<Joined, Failure> {
    let what = "join by the ticket";
    let ticket = Ticket::parse(ticket).map_err(|error| {
        Failure::new(FailureKind::Usage, what)
            .because(&error)
            .hint("copy the whole ticket that `kith pair` shows")
    })?;
    let name = device_name(name)?;
    home.prepare()
        .map_err(|error| failed(&error.into(), home))?;
    let _lock = lock(home, "kith join").map_err(|error| failed(&error, home))?;
    // Another process may have made one while this one waited.
    home.prepare()
        .map_err(|error| failed(&error.into(), home))?;
    let mut rng = fresh_rng();
    let keys = DeviceKeys::generate(&mut rng);
    let mesh = ticket.mesh;
    let mut machine = Joiner::new(now(), keys.clone(), name, ticket, rng.split());
    let mut stream: Option<DoorStream> = None;
    let mut joined = None;
    loop {
        while let Some(effect) = machine.poll_effect() {
            match effect {
                JoinerEffect::Dial { door, addresses } => {
                    let addrs: Vec<Multiaddr> = addresses
                        .iter()
                        .filter_map(|addr| addr.parse().ok())
                        .collect();
                    match knock(Zeroizing::new(rng.bytes()), &addrs, Some(door)).await {
                        Ok(opened) => {
                            let peers = peers(&opened);
                            stream = Some(opened);
                            machine.handle(now(), JoinerInput::Opened(peers));
                        }
                        Err(error) => {
                            tracing::debug!(%error, "door not reached");
                            machine.handle(now(), JoinerInput::Closed);
                        }
                    }
                }
                // A device that fails before it is in starts anew with another ticket: nothing of it is kept.
                JoinerEffect::Remember(_) => {}
                JoinerEffect::Send(frame) => {
                    let sent = match &mut stream {
                        Some(stream) => stream.send(&frame).await.is_ok(),
                        None => false,
                    };
                    if !sent {
                        stream = None;
                        machine.handle(now(), JoinerInput::Closed);
                    }
                }
                JoinerEffect::ShowCode(code) => show(&code.to_string()),
                JoinerEffect::Judge(arrival) => match judge(home, &keys, mesh, &arrival) {
                    Ok(role) => {
                        joined = Some(Joined {
                            mesh,
                            device: keys.id(),
                            role,
                        });
                        machine.handle(now(), JoinerInput::Accepted);
                    }
                    Err(Judgement::NotTrusted) => machine.handle(now(), JoinerInput::Rejected),
                    Err(Judgement::NotWritten(error)) => return Err(failed(&error, home)),
                },
                JoinerEffect::Close => {
                    if let Some(stream) = stream.take() {
                        stream.close().await;
                    }
                }
                JoinerEffect::Finished { .. } => {
                    return joined.ok_or_else(|| Failure::new(FailureKind::Failed, what));
                }
                JoinerEffect::Fail(error) => return Err(join_failure(what, error)),
            }
        }
        if machine.message_bytes_max() > DOOR_FRAME_BYTES_MAX
            && let Some(stream) = &mut stream
        {
            stream.proven(PROVED_WAIT);
        }
        match next(&mut stream, machine.next_wakeup()).await {
            Next::Frame(frame) => machine.handle(now(), JoinerInput::Message(frame)),
            Next::Ended => {
                stream = None;
                machine.handle(now(), JoinerInput::Closed);
            }
            Next::Wake => machine.handle(now(), JoinerInput::Wake),
        }
    }
}

fn join_failure(what: &str, error: JoinError) -> Failure {
    let (kind, hint) = match error {
        JoinError::Unreachable => (
            FailureKind::Unreachable,
            "see that the other device is up and that this one can reach it, then make a new ticket with `kith pair`",
        ),
        JoinError::Refused | JoinError::TimedOut | JoinError::Declined => (
            FailureKind::Denied,
            "make a new ticket with `kith pair` on the other device",
        ),
        _ => (
            FailureKind::Denied,
            "this may be an attack; make a new ticket with `kith pair` on the other device, and compare the codes",
        ),
    };
    Failure::new(kind, what).because(&error).hint(hint)
}

enum Judgement {
    NotTrusted,
    NotWritten(NodeError),
}

/// Judges what the door sent from genesis on, and makes it this device's own if it holds.
fn judge(
    home: &Home,
    keys: &DeviceKeys,
    mesh: SpaceId,
    arrival: &Arrival,
) -> Result<&'static str, Judgement> {
    let mut replica = Replica::open(mesh, Some(keys));
    let holder = arrival
        .welcome
        .holder_part
        .expose()
        .try_into()
        .map_err(|_| Judgement::NotTrusted)?;
    let member = match &arrival.welcome.member_part {
        Some(part) => Some(
            part.expose()
                .try_into()
                .map_err(|_| Judgement::NotTrusted)?,
        ),
        None => None,
    };
    replica.learn(arrival.welcome.epoch, holder, member);
    let entries = take_in(&mut replica, &arrival.welcome.guide).ok_or(Judgement::NotTrusted)?;
    let access = replica.access();
    let admitter = access
        .members
        .get(&arrival.admitter)
        .filter(|device| device.role >= Role::Admin);
    let trusted = admitter.is_some_and(|device| device.agree == Some(arrival.admitter_agree));
    let me = access
        .members
        .get(&keys.id())
        .filter(|device| device.agree == Some(keys.agree_public()));
    let (true, Some(me)) = (trusted, me) else {
        return Err(Judgement::NotTrusted);
    };
    let role = role_name(me.role);
    settle_in(home, keys, mesh, &entries, &arrival.welcome.guide, true)
        .map_err(Judgement::NotWritten)?;
    Ok(role)
}

/// Feeds the entries of a guide; returns those that have their place, or `None` if one is no entry.
fn take_in(replica: &mut Replica, guide: &Guide) -> Option<Vec<Entry>> {
    for bytes in &guide.entries {
        replica.insert(Entry::decode(bytes).ok()?);
    }
    Some(replica.take_accepted())
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Blind => "blind",
        Role::Member => "member",
        Role::Admin => "admin",
    }
}

/// Writes the home of a new device: its log, what it knows of others and, if it is in, who it is.
fn settle_in(
    home: &Home,
    keys: &DeviceKeys,
    mesh: SpaceId,
    entries: &[Entry],
    guide: &Guide,
    is_in: bool,
) -> Result<(), NodeError> {
    let mut rng = fresh_rng();
    write_first_entries(home, entries)?;
    let mut book = kith_core::book::Book::default();
    for (device, addrs) in &guide.addresses {
        book.learn(now(), *device, addrs, false);
    }
    home.write_sealed(BOOK_FILE, keys, &mut rng, &book.encode(&keys.id(), &[]))?;
    if is_in {
        home.write_identity(&Identity {
            space: mesh,
            keys: keys.clone(),
            door: Secret::generate(&mut rng),
        })?;
    }
    Ok(())
}

/// Joins by the words alone, at the first door that knows them. The device becomes an admin: who has the words has every right.
///
/// # Errors
/// A [`Failure`] that says at which address what failed.
pub async fn by_words(
    home: &Home,
    words: &Words,
    peers: &[String],
    name: &str,
) -> Result<Joined, Failure> {
    let what = "join by the words";
    let name = device_name(name)?;
    if peers.is_empty() {
        return Err(Failure::new(FailureKind::Usage, format!("{what}: no device to ask is given"))
            .hint("say where a device of the mesh listens: --peer ADDR, as its `kith status` shows as `door` (with --json: `addrs`)"));
    }
    let mut addrs = Vec::new();
    for peer in peers {
        addrs.push(address(peer).ok_or_else(|| {
            Failure::new(
                FailureKind::Usage,
                format!("{what}: understand the address {peer}"),
            )
            .hint("an address looks like /ip4/192.168.1.7/tcp/4101 or 192.168.1.7:4101")
        })?);
    }
    home.prepare()
        .map_err(|error| failed(&error.into(), home))?;
    let _lock = lock(home, "kith join").map_err(|error| failed(&error, home))?;
    // Another process may have made one while this one waited.
    home.prepare()
        .map_err(|error| failed(&error.into(), home))?;
    let keys = DeviceKeys::generate(&mut fresh_rng());
    let mut last = None;
    for (peer, addr) in peers.iter().zip(addrs) {
        match at_door(home, words, &keys, name.as_str(), addr).await {
            Ok(joined) => return Ok(joined),
            Err(AtDoor::Local(failure)) => return Err(failure),
            Err(AtDoor::Door(error)) => {
                last = Some(
                    Failure::new(FailureKind::Denied, format!("{what} at {peer}")).because(&error),
                )
            }
            Err(AtDoor::Way(error)) => {
                last = Some(
                    Failure::new(FailureKind::Unreachable, format!("{what} at {peer}"))
                        .because(&error),
                )
            }
        }
    }
    Err(last
        .unwrap_or_else(|| Failure::new(FailureKind::Failed, what))
        .hint("see that the address is one that `kith status` shows as `door` on a device of this mesh, and that the words are those of this mesh"))
}

/// A multiaddr, or host and port.
fn address(text: &str) -> Option<Multiaddr> {
    if let Ok(addr) = text.parse::<Multiaddr>() {
        // Whoever answers proves itself by what it knows; the name at the end is not needed.
        let parts = addr.iter().filter(|part| part.tag() != "p2p");
        return Some(parts.collect());
    }
    let socket: std::net::SocketAddr = text.parse().ok()?;
    let ip = if socket.is_ipv4() { "ip4" } else { "ip6" };
    format!("/{ip}/{}/tcp/{}", socket.ip(), socket.port())
        .parse()
        .ok()
}

enum AtDoor {
    /// The door did not help; another may.
    Door(WordsJoinError),
    /// It was not reached.
    Way(crate::net::door::KnockError),
    /// This machine cannot do its part.
    Local(Failure),
}

async fn at_door(
    home: &Home,
    words: &Words,
    keys: &DeviceKeys,
    name: &str,
    addr: Multiaddr,
) -> Result<Joined, AtDoor> {
    let mut rng = fresh_rng();
    let root = words.root();
    let opened = knock(Zeroizing::new(rng.bytes()), &[addr], None)
        .await
        .map_err(AtDoor::Way)?;
    let mut machine = WordsJoiner::new(now(), root.sign.clone(), None, rng.split());
    machine.handle(now(), WordsInput::Opened(peers(&opened)));
    let mut stream = Some(opened);
    let mut joined = None;
    loop {
        while let Some(effect) = machine.poll_effect() {
            match effect {
                WordsEffect::Send(frame) => {
                    let sent = match &mut stream {
                        Some(stream) => stream.send(&frame).await.is_ok(),
                        None => false,
                    };
                    if !sent {
                        stream = None;
                        machine.handle(now(), WordsInput::Closed);
                    }
                }
                WordsEffect::Judge(guide) => {
                    let admitted = admit_self(words, keys, name, &guide);
                    let Some((mesh, mut entries, own)) = admitted else {
                        machine.handle(now(), WordsInput::Rejected);
                        continue;
                    };
                    entries.extend(own.iter().cloned());
                    settle_in(home, keys, mesh, &entries, &guide, false)
                        .map_err(|error| AtDoor::Local(failed(&error, home)))?;
                    // The door may have been behind the others: nothing is sealed before one agrees.
                    home.write_whole(UNSETTLED_FILE, b"")
                        .map_err(|error| AtDoor::Local(failed(&error.into(), home)))?;
                    joined = Some(Joined {
                        mesh,
                        device: keys.id(),
                        role: "admin",
                    });
                    let own = own
                        .iter()
                        .map(|entry| Bytes::from(entry.encode()))
                        .collect();
                    machine.handle(now(), WordsInput::Admission(own));
                }
                WordsEffect::Close => {
                    if let Some(stream) = stream.take() {
                        stream.close().await;
                    }
                }
                WordsEffect::Finished => {
                    let joined = joined.ok_or(AtDoor::Door(WordsJoinError::Failed))?;
                    let identity = Identity {
                        space: joined.mesh,
                        keys: keys.clone(),
                        door: Secret::generate(&mut rng),
                    };
                    home.write_identity(&identity)
                        .map_err(|error| AtDoor::Local(failed(&error.into(), home)))?;
                    return Ok(joined);
                }
                WordsEffect::Fail(error) => return Err(AtDoor::Door(error)),
            }
        }
        if machine.message_bytes_max() > DOOR_FRAME_BYTES_MAX
            && let Some(stream) = &mut stream
        {
            stream.proven(PROVED_WAIT);
        }
        match next(&mut stream, machine.next_wakeup()).await {
            Next::Frame(frame) => machine.handle(now(), WordsInput::Message(frame)),
            Next::Ended => {
                stream = None;
                machine.handle(now(), WordsInput::Closed);
            }
            Next::Wake => machine.handle(now(), WordsInput::Wake),
        }
    }
}

/// Judges a mesh by its root key and, as the root, admits this device: the mesh, its entries, the new ones.
fn admit_self(
    words: &Words,
    keys: &DeviceKeys,
    name: &str,
    guide: &Guide,
) -> Option<(SpaceId, Vec<Entry>, Vec<Entry>)> {
    let root = words.root();
    let mesh = Entry::decode(guide.entries.first()?).ok()?.header().space;
    let mut replica = Replica::open_with_recovery(mesh, Some(keys), root.recovery.clone());
    let entries = take_in(&mut replica, guide)?;
    if replica.access().root != Some(root.sign.id()) {
        return None;
    }
    let newcomer = Newcomer {
        device: keys.id(),
        agree: keys.agree_public(),
        name: name.to_owned(),
        role: Role::Admin,
    };
    let own = replica
        .admit_by_root(&root, now(), &mut fresh_rng(), &newcomer)
        .ok()?;
    Some((mesh, entries, own))
}
