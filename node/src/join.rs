//! A machine becomes a device of a mesh that exists: by a ticket, or by the 24 words.
//!
//! Spec: `protocol/spec/pairing.md`, "Newcomer".

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kith_crdt::access::{Newcomer, Role};
use kith_crdt::chain::Entry;
use kith_crdt::replica::Replica;
use kith_object::id::{DeviceId, SpaceId};
use kith_object::key::{DeviceKeys, Secret, Words};
use kith_object::time::Time;
use kith_protocol::api::{Failure, FailureKind};
use kith_protocol::lan::{LanKey, Ports, Speaker};
use kith_protocol::pairing::{
    Arrival, DeviceName, Guide, JoinError, Joiner, JoinerEffect, JoinerInput, Peers,
    Role as TicketRole, Ticket, WordsEffect, WordsInput, WordsJoinError, WordsJoiner,
};
use kith_protocol::wire::DOOR_FRAME_BYTES_MAX;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::config::{Home, HomeError, Identity, Joining, fresh_rng, now};
use crate::net::door::{DoorStream, KnockError, knock};
use crate::net::{Multiaddr, lan};
use crate::run::{BOOK_FILE, NodeError, UNSETTLED_FILE, lock, write_first_entries};
use crate::store::HomeLock;

/// How long a frame may take once the codes are being compared.
const PROVED_WAIT: Duration = Duration::from_secs(600);
/// How long a device that is in already tries to say so.
const THANKS_WAIT: Duration = Duration::from_secs(20);
/// How long the local network is searched while no door there lets us in.
const SEARCH_WAIT: Duration = Duration::from_secs(20);
/// How long doors may keep us waiting in all, unless one is just letting us in.
const DOORS_WAIT: Duration = Duration::from_secs(120);
/// Knocks at doors found in the local network; a mesh has fewer devices there that matter, and one who once was of the mesh can name as many as it likes.
const KNOCKS_MAX: usize = 16;
/// Knocks at the same door: the first may come while it is starting.
const KNOCKS_PER_DOOR_MAX: u8 = 2;
/// Doors knocked at side by side in the local network, so that one that stalls holds up no other.
const KNOCKS_AT_ONCE: usize = 8;

/// A device that came to be.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The mesh it belongs to.
    pub mesh: SpaceId,
    /// Which device it is.
    pub device: DeviceId,
    /// What it is called: as was said when the join began.
    pub name: String,
    /// What it may do.
    pub role: &'static str,
}

/// What a person who waits is told.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A join that was begun here before goes on, under the name given then.
    Resumed {
        /// The name.
        name: &'a str,
    },
    /// The short code, which the other screen shows too.
    Code(&'a str),
    /// The local network is being searched.
    Searching,
    /// A door of the mesh is there, and is knocked at.
    Door {
        /// Where.
        addrs: &'a [String],
    },
}

fn failed(error: &NodeError, home: &Home) -> Failure {
    let what = format!("make a device in {}", home.path().display());
    match error {
        NodeError::Home(HomeError::Exists { .. }) => {
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

/// What happens on a stream, for either machine.
enum Wire {
    Opened(Peers),
    Closed,
    Message(Bytes),
    Wake,
}

/// What a machine wants done: on its stream, or by its owner.
enum Wish<E> {
    Send(Bytes),
    Close,
    Own(E),
}

/// What the newcomer's two machines have in common.
trait Conversation {
    type Effect;
    fn wire(&mut self, now: Time, happened: Wire);
    fn wish(&mut self) -> Option<Wish<Self::Effect>>;
    fn frame_bytes_max(&self) -> usize;
    fn wakeup(&self) -> Option<Time>;
}

impl Conversation for Joiner {
    type Effect = JoinerEffect;

    fn wire(&mut self, now: Time, happened: Wire) {
        let input = match happened {
            Wire::Opened(peers) => JoinerInput::Opened(peers),
            Wire::Closed => JoinerInput::Closed,
            Wire::Message(message) => JoinerInput::Message(message),
            Wire::Wake => JoinerInput::Wake,
        };
        self.handle(now, input);
    }

    fn wish(&mut self) -> Option<Wish<JoinerEffect>> {
        self.poll_effect().map(|effect| match effect {
            JoinerEffect::Send(frame) => Wish::Send(frame),
            JoinerEffect::Close => Wish::Close,
            own => Wish::Own(own),
        })
    }

    fn frame_bytes_max(&self) -> usize {
        self.message_bytes_max()
    }

    fn wakeup(&self) -> Option<Time> {
        self.next_wakeup()
    }
}

impl Conversation for WordsJoiner {
    type Effect = WordsEffect;

    fn wire(&mut self, now: Time, happened: Wire) {
        let input = match happened {
            Wire::Opened(peers) => WordsInput::Opened(peers),
            Wire::Closed => WordsInput::Closed,
            Wire::Message(message) => WordsInput::Message(message),
            Wire::Wake => WordsInput::Wake,
        };
        self.handle(now, input);
    }

    fn wish(&mut self) -> Option<Wish<WordsEffect>> {
        self.poll_effect().map(|effect| match effect {
            WordsEffect::Send(frame) => Wish::Send(frame),
            WordsEffect::Close => Wish::Close,
            own => Wish::Own(own),
        })
    }

    fn frame_bytes_max(&self) -> usize {
        self.message_bytes_max()
    }

    fn wakeup(&self) -> Option<Time> {
        self.next_wakeup()
    }
}

/// A machine and the stream it speaks on.
struct Line<M> {
    machine: M,
    stream: Option<DoorStream>,
}

impl<M: Conversation> Line<M> {
    fn new(machine: M) -> Self {
        Self {
            machine,
            stream: None,
        }
    }

    /// Goes on over this stream.
    fn opened(&mut self, stream: DoorStream) {
        let peers = Peers {
            door: stream.remote_peer.clone(),
            newcomer: stream.local_peer.clone(),
        };
        self.stream = Some(stream);
        self.machine.wire(now(), Wire::Opened(peers));
    }

    /// There is no stream, or none any more.
    fn closed(&mut self) {
        self.stream = None;
        self.machine.wire(now(), Wire::Closed);
    }

    /// Carries frames both ways until the machine wants something that is its owner's to do.
    async fn next(&mut self) -> M::Effect {
        loop {
            while let Some(wish) = self.machine.wish() {
                match wish {
                    Wish::Send(frame) => {
                        let sent = match &mut self.stream {
                            Some(stream) => stream.send(&frame).await.is_ok(),
                            None => false,
                        };
                        if !sent {
                            self.closed();
                        }
                    }
                    Wish::Close => {
                        if let Some(stream) = self.stream.take() {
                            stream.close().await;
                        }
                    }
                    Wish::Own(effect) => return effect,
                }
            }
            if self.machine.frame_bytes_max() > DOOR_FRAME_BYTES_MAX
                && let Some(stream) = &mut self.stream
            {
                stream.proven(PROVED_WAIT);
            }
            let pause = self
                .machine
                .wakeup()
                .map_or(Duration::from_secs(3600), |at| {
                    Duration::from_millis(at.since(now()).as_ms())
                });
            let frame = async {
                match &mut self.stream {
                    Some(stream) => stream.recv().await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                frame = frame => Some(frame),
                () = tokio::time::sleep(pause) => None,
            };
            match frame {
                Some(Ok(frame)) => self.machine.wire(now(), Wire::Message(frame)),
                Some(Err(_)) => self.closed(),
                None => self.machine.wire(now(), Wire::Wake),
            }
        }
    }
}

impl Line<Joiner> {
    /// Opens a stream to the door of that key, or says that there is none.
    async fn dial(&mut self, door: DeviceId, addresses: &[String]) {
        let addrs: Vec<Multiaddr> = addresses
            .iter()
            .filter_map(|addr| addr.parse().ok())
            .collect();
        match knock(Zeroizing::new(fresh_rng().bytes()), &addrs, Some(door)).await {
            Ok(stream) => self.opened(stream),
            Err(error) => {
                tracing::debug!(%error, "door not reached");
                self.closed();
            }
        }
    }
}

/// A folder in which a device is being made, and what an earlier attempt left there.
enum Begun {
    Here {
        kept: Option<Box<Joining>>,
        _lock: HomeLock,
    },
    /// That attempt was ended when all was done, but before it could say so.
    Done(Joined),
}

/// Takes the folder. `ours` says whether an attempt that was ended there is the one that is asked for.
fn begin(home: &Home, ours: impl Fn(&Joining) -> bool) -> Result<Begun, Failure> {
    let broken = |error: HomeError| failed(&error.into(), home);
    let taken = match home.prepare() {
        Ok(()) => lock(home, "kith join").map_err(|error| failed(&error, home)),
        Err(error) => Err(broken(error)),
    };
    // Another process may have made a device while this one waited.
    if !home.exists() {
        let lock = taken?;
        let kept = match home.joining() {
            Ok(kept) => kept,
            Err(error @ HomeError::Damaged { .. }) => {
                tracing::warn!(%error, "a join that was begun here cannot be taken up again");
                None
            }
            Err(error) => return Err(broken(error)),
        };
        return Ok(Begun::Here {
            kept: kept.map(Box::new),
            _lock: lock,
        });
    }
    let kept = home.joining().ok().flatten();
    let identity = home.identity().map_err(broken)?;
    match kept {
        Some(kept) if kept.keys.id() == identity.keys.id() && ours(&kept) => {
            Ok(Begun::Done(Joined {
                mesh: kept.mesh,
                device: kept.keys.id(),
                role: match ticket_of(&kept).map(|ticket| ticket.role) {
                    Some(TicketRole::Blind) => role_name(Role::Blind),
                    Some(TicketRole::Member) => role_name(Role::Member),
                    None => role_name(Role::Admin),
                },
                name: kept.name,
            }))
        }
        _ => Err(broken(HomeError::Exists {
            path: home.path().to_owned(),
        })),
    }
}

/// The conversation that an earlier attempt was in.
fn resume(kept: &Joining) -> Option<Joiner> {
    let bytes = kept.conversation.as_ref()?.expose();
    Joiner::resume(now(), kept.keys.clone(), bytes, fresh_rng()).ok()
}

fn ticket_of(kept: &Joining) -> Option<Ticket> {
    resume(kept).map(|machine| machine.ticket().clone())
}

/// Whether a join by a ticket that was begun in this folder can be taken up again.
pub fn is_under_way(home: &Home) -> bool {
    let kept = home.joining().ok().flatten();
    kept.is_some_and(|kept| ticket_of(&kept).is_some())
}

/// Forgets what would be needed to take a join up again: it was told that the device is in. Until then the same command can be given again.
///
/// # Errors
/// A [`Failure`] if it cannot be removed.
pub fn done(home: &Home) -> Result<(), Failure> {
    home.forget_joining()
        .map_err(|error| failed(&error.into(), home))
}

/// Joins by a ticket, or goes on with the join by a ticket that was begun in this folder.
///
/// From the moment the ticket may be reserved for this device until [`done`], what is needed to go on stands on the disk: whenever the process is ended, the same
/// call goes on with the same device and the same ticket.
///
/// # Errors
/// A [`Failure`] that says what is wrong with the ticket, the way, or the answer.
pub async fn by_ticket(
    home: &Home,
    ticket: Option<&str>,
    name: &str,
    mut tell: impl FnMut(Progress<'_>),
) -> Result<Joined, Failure> {
    let what = "join by the ticket";
    let ticket = match ticket {
        Some(ticket) => Some(Ticket::parse(ticket).map_err(|error| {
            Failure::new(FailureKind::Usage, what)
                .because(&error)
                .hint("copy the whole ticket that `kith pair` shows")
        })?),
        None => None,
    };
    let name = device_name(name)?;
    let is_asked_for = |kept: &Joining| {
        let begun = ticket_of(kept);
        begun.is_some_and(|begun| ticket.as_ref().is_none_or(|asked| asked.id() == begun.id()))
    };
    let (kept, _lock) = match begin(home, is_asked_for)? {
        Begun::Here { kept, _lock } => (kept, _lock),
        Begun::Done(joined) => {
            // The other side may still wait for the last word. The device is in whether or not it hears it.
            let kept = home.joining().ok().flatten();
            if let Some(machine) = kept.as_ref().and_then(resume) {
                let _ = tokio::time::timeout(THANKS_WAIT, thank(machine)).await;
            }
            return Ok(joined);
        }
    };
    let kept = kept.map(|kept| *kept);
    let resumed = kept
        .as_ref()
        .filter(|kept| is_asked_for(kept))
        .and_then(resume);
    let (machine, keys, name) = match (resumed, ticket, kept) {
        (Some(machine), _, Some(kept)) => {
            tell(Progress::Resumed { name: &kept.name });
            (machine, kept.keys, kept.name)
        }
        (_, Some(ticket), kept) => {
            // An earlier attempt may have got so far that the mesh knows these keys: then it is the same device that comes.
            let keys = kept
                .filter(|kept| kept.mesh == ticket.mesh)
                .map_or_else(|| DeviceKeys::generate(&mut fresh_rng()), |kept| kept.keys);
            let machine = Joiner::new(now(), keys.clone(), name.clone(), ticket, fresh_rng());
            (machine, keys, name.to_string())
        }
        (_, None, _) => {
            return Err(Failure::new(
                FailureKind::Usage,
                format!("{what}: none is given, and no join was begun in {}", home.path().display()),
            )
            .hint("`kith join TICKET`, with the ticket that `kith pair` shows; or `kith join --words`"));
        }
    };
    let mesh = machine.ticket().mesh;
    let keep = |conversation| {
        let joining = Joining {
            mesh,
            keys: keys.clone(),
            name: name.clone(),
            conversation,
        };
        home.write_joining(&joining)
            .map_err(|error| failed(&error.into(), home))
    };
    let mut line = Line::new(machine);
    let mut is_kept = line.machine.is_resumed();
    let mut joined = None;
    loop {
        match line.next().await {
            JoinerEffect::Dial { door, addresses } => line.dial(door, &addresses).await,
            JoinerEffect::Remember(conversation) => {
                keep(Some(conversation))?;
                is_kept = true;
            }
            JoinerEffect::ShowCode(code) => tell(Progress::Code(&code.to_string())),
            JoinerEffect::Judge(arrival) => match judge(home, &keys, mesh, &arrival) {
                Ok(role) => {
                    joined = Some(Joined {
                        mesh,
                        device: keys.id(),
                        name: name.clone(),
                        role,
                    });
                    line.machine.handle(now(), JoinerInput::Accepted);
                }
                Err(Judgement::NotTrusted) => line.machine.handle(now(), JoinerInput::Rejected),
                Err(Judgement::NotWritten(error)) => return Err(failed(&error, home)),
            },
            JoinerEffect::Finished { .. } => {
                return joined.ok_or_else(|| Failure::new(FailureKind::Failed, what));
            }
            JoinerEffect::Fail(error) => {
                if is_kept {
                    match after(error) {
                        After::GoOn => {}
                        // Perhaps the mesh has let these keys in: another ticket is for the same device.
                        After::KeepKeys => keep(None)?,
                        After::Forget => done(home)?,
                    }
                }
                return Err(join_failure(what, error, is_kept));
            }
            JoinerEffect::Send(_) | JoinerEffect::Close => {}
        }
    }
}

/// Goes through the conversation once more for a device that was made by it, to say that all was received.
async fn thank(machine: Joiner) {
    let mut line = Line::new(machine);
    loop {
        match line.next().await {
            JoinerEffect::Dial { door, addresses } => line.dial(door, &addresses).await,
            // It was judged, and is on the disk.
            JoinerEffect::Judge(_) => line.machine.handle(now(), JoinerInput::Accepted),
            JoinerEffect::Finished { .. } | JoinerEffect::Fail(_) => return,
            JoinerEffect::Remember(_)
            | JoinerEffect::ShowCode(_)
            | JoinerEffect::Send(_)
            | JoinerEffect::Close => {}
        }
    }
}

/// What is kept of a join that failed after its proof was sent.
enum After {
    /// All: the same ticket may still do.
    GoOn,
    /// The keys: the ticket will not do any more.
    KeepKeys,
    Forget,
}

fn after(error: JoinError) -> After {
    match error {
        JoinError::Unreachable | JoinError::WrongDoor => After::GoOn,
        JoinError::Refused | JoinError::TimedOut => After::KeepKeys,
        JoinError::Declined
        | JoinError::Failed
        | JoinError::NotAuthentic
        | JoinError::WrongMesh
        | JoinError::Malformed(_)
        | JoinError::NotTrusted => After::Forget,
    }
}

fn join_failure(what: &str, error: JoinError, is_kept: bool) -> Failure {
    let (kind, hint) = match error {
        JoinError::Unreachable if is_kept => (
            FailureKind::Unreachable,
            "see that the other device is up and that this one can reach it, then go on with `kith join`",
        ),
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
    home.write_sealed(BOOK_FILE, keys, &mut rng, &book.encode())?;
    if is_in {
        home.write_identity(&Identity {
            space: mesh,
            keys: keys.clone(),
            door: Secret::generate(&mut rng),
        })?;
    }
    Ok(())
}

/// Joins by the words alone, at the first door that knows them: at `peers`, or, if none are given, at those found in the local network. The device becomes an
/// admin: who has the words has every right.
///
/// # Errors
/// A [`Failure`] that says what was tried, and what failed where.
pub async fn by_words(
    home: &Home,
    words: &Words,
    peers: &[String],
    name: &str,
    tell: impl FnMut(Progress<'_>),
) -> Result<Joined, Failure> {
    let what = "join by the words";
    let name = device_name(name)?;
    let mut doors = VecDeque::new();
    for peer in peers {
        let addr = address(peer).ok_or_else(|| {
            Failure::new(
                FailureKind::Usage,
                format!("{what}: understand the address {peer}"),
            )
            .hint("an address looks like /ip4/192.168.1.7/tcp/4101 or 192.168.1.7:4101")
        })?;
        doors.push_back((peer.clone(), vec![addr]));
    }
    let by_words = |kept: &Joining| kept.conversation.is_none();
    let _lock = match begin(home, by_words)? {
        Begun::Here { _lock, .. } => _lock,
        Begun::Done(joined) => return Ok(joined),
    };
    let way_in = WayIn {
        home,
        words,
        name: name.as_str(),
        settling: tokio::sync::Mutex::new(()),
    };
    if !doors.is_empty() {
        return way_in.at_given(doors).await;
    }
    way_in.in_the_local_network(tell).await
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

#[derive(Debug, thiserror::Error)]
enum AtDoor {
    /// The door did not help; another may.
    #[error(transparent)]
    Door(WordsJoinError),
    /// It was not reached.
    #[error(transparent)]
    Way(KnockError),
    /// This machine cannot do its part.
    #[error("{}", .0.what)]
    Local(Failure),
}

/// What failed at which door.
#[derive(Default)]
struct Tried {
    causes: Vec<String>,
    /// Whether one was reached, but did not help.
    answered: bool,
}

impl Tried {
    /// Notes a failure; one of this machine ends all.
    fn note(&mut self, place: &str, error: AtDoor) -> Result<(), Failure> {
        if let AtDoor::Local(failure) = error {
            return Err(failure);
        }
        self.answered |= matches!(error, AtDoor::Door(_));
        let mut text = format!("at {place}: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        // A door that was tried twice fails twice alike.
        if !self.causes.contains(&text) {
            self.causes.push(text);
        }
        Ok(())
    }

    fn failure(self, what: &str, hint: &str) -> Failure {
        let kind = if self.answered {
            FailureKind::Denied
        } else {
            FailureKind::Unreachable
        };
        let mut failure = Failure::new(kind, what).hint(hint);
        failure.causes = self.causes;
        failure
    }
}

/// All that the words need besides a door.
struct WayIn<'a> {
    home: &'a Home,
    words: &'a Words,
    name: &'a str,
    /// Held from a door's guide on: one device is made, though several doors may answer.
    settling: tokio::sync::Mutex<()>,
}

impl WayIn<'_> {
    /// Tries the doors that the person names, one after another.
    async fn at_given(&self, doors: VecDeque<(String, Vec<Multiaddr>)>) -> Result<Joined, Failure> {
        let mut tried = Tried::default();
        for (place, addrs) in doors {
            match self.at_door(&addrs).await {
                Ok(joined) => return Ok(joined),
                Err(error) => tried.note(&place, error)?,
            }
        }
        Err(tried.failure(
            "join by the words",
            "see that the address is one that `kith status` shows as `door` on a device of this mesh, and that the words are those of this mesh",
        ))
    }

    /// Tries the doors that are found in the local network, several at a time.
    async fn in_the_local_network(
        &self,
        mut tell: impl FnMut(Progress<'_>),
    ) -> Result<Joined, Failure> {
        tell(Progress::Searching);
        let key = LanKey::of(&self.words.root().sign.id());
        let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let mut lan = lan::start(key, Speaker::Newcomer, &everywhere, fresh_rng());
        let began = Instant::now();
        let mut hears = true;
        let mut searched = false;
        let mut knocks = 0;
        let mut known: BTreeMap<(Ipv4Addr, Ports), u8> = BTreeMap::new();
        let mut waiting: VecDeque<(Ipv4Addr, Ports)> = VecDeque::new();
        let mut under_way = FuturesUnordered::new();
        let mut tried = Tried::default();
        loop {
            while under_way.len() < KNOCKS_AT_ONCE
                && let Some((ip, ports)) = waiting.pop_front()
            {
                let addrs = lan::multiaddrs(ip, ports);
                let shown: Vec<String> = addrs.iter().map(ToString::to_string).collect();
                tell(Progress::Door { addrs: &shown });
                under_way.push(async move {
                    let joined = self.at_door(&addrs).await;
                    ((ip, ports), joined)
                });
            }
            let looks = hears && !searched && knocks < KNOCKS_MAX;
            if under_way.is_empty() && !looks {
                break;
            }
            tokio::select! {
                found = lan.found(), if looks => match found {
                    Some(found) => {
                        let place = (found.addr, found.door);
                        let times = known.entry(place).or_default();
                        let new = *times == 0;
                        if found.door.tcp != 0 && new {
                            *times = 1;
                            knocks += 1;
                            waiting.push_back(place);
                        }
                    }
                    None => hears = false,
                },
                Some((place, outcome)) = under_way.next(), if !under_way.is_empty() => match outcome {
                    Ok(joined) => return Ok(joined),
                    Err(error) => {
                        tried.note(&place.0.to_string(), error)?;
                        let times = known.entry(place).or_default();
                        if *times < KNOCKS_PER_DOOR_MAX && knocks < KNOCKS_MAX {
                            *times += 1;
                            knocks += 1;
                            waiting.push_back(place);
                        }
                    }
                },
                () = tokio::time::sleep_until(began + SEARCH_WAIT), if !searched => searched = true,
                // Whoever is being let in is let in: the lock is taken then.
                _ = async {
                    tokio::time::sleep_until(began + DOORS_WAIT).await;
                    self.settling.lock().await
                } => {
                    tried.causes.push(format!("{} doors do not come to an end", under_way.len()));
                    break;
                }
            }
        }
        let what = if knocks == 0 {
            format!(
                "find a device of this mesh in the local network within {} s",
                SEARCH_WAIT.as_secs()
            )
        } else {
            "join by the words at a device found in the local network".to_owned()
        };
        Err(tried.failure(
            &what,
            "see that `kith up` runs on a device of this mesh in the same network, without --no-lan, and that the words are those of this mesh; or say where one listens: --peer ADDR, as its `kith status` shows as `door`",
        ))
    }

    /// Tries one door.
    async fn at_door(&self, addrs: &[Multiaddr]) -> Result<Joined, AtDoor> {
        let mut rng = fresh_rng();
        let stream = knock(Zeroizing::new(rng.bytes()), addrs, None)
            .await
            .map_err(AtDoor::Way)?;
        let root = self.words.root().sign.clone();
        let mut line = Line::new(WordsJoiner::new(now(), root, None, rng.split()));
        line.opened(stream);
        let mut made: Option<Made> = None;
        let mut settling = None;
        let broken = |error: HomeError| AtDoor::Local(failed(&error.into(), self.home));
        loop {
            match line.next().await {
                WordsEffect::Judge(guide) => {
                    settling = Some(self.settling.lock().await);
                    let Some(device) = self.admit(&guide)? else {
                        line.machine.handle(now(), WordsInput::Rejected);
                        continue;
                    };
                    let own = device
                        .own
                        .iter()
                        .map(|entry| Bytes::from(entry.encode()))
                        .collect();
                    made = Some(device);
                    line.machine.handle(now(), WordsInput::Admission(own));
                }
                WordsEffect::Finished => {
                    let made = made.ok_or(AtDoor::Door(WordsJoinError::Failed))?;
                    let identity = Identity {
                        space: made.joining.mesh,
                        keys: made.joining.keys.clone(),
                        door: Secret::generate(&mut rng),
                    };
                    self.home.write_identity(&identity).map_err(broken)?;
                    drop(settling);
                    return Ok(Joined {
                        mesh: made.joining.mesh,
                        device: made.joining.keys.id(),
                        name: made.joining.name,
                        role: role_name(Role::Admin),
                    });
                }
                WordsEffect::Fail(error) => return Err(AtDoor::Door(error)),
                WordsEffect::Send(_) | WordsEffect::Close => {}
            }
        }
    }

    /// Judges a mesh by its root key and makes a device of it, on the disk, but for who it is; `None` if the mesh is not that of the words.
    fn admit(&self, guide: &Guide) -> Result<Option<Made>, AtDoor> {
        let broken = |error: &NodeError| AtDoor::Local(failed(error, self.home));
        let Some(mesh) = mesh_of(guide) else {
            return Ok(None);
        };
        let kept = self.home.joining().ok().flatten();
        // The mesh may have been told of these keys by an attempt that was ended in the middle; unless they were removed since, it is the same device that comes.
        let kept = kept.filter(|kept| kept.mesh == mesh).and_then(|kept| {
            Some((
                admit_self(self.words, &kept.keys, &kept.name, mesh, guide)?,
                kept,
            ))
        });
        let (admission, joining) = match kept {
            Some((admission, kept)) => (
                admission,
                Joining {
                    conversation: None,
                    ..kept
                },
            ),
            None => {
                let joining = Joining {
                    mesh,
                    keys: DeviceKeys::generate(&mut fresh_rng()),
                    name: self.name.to_owned(),
                    conversation: None,
                };
                match admit_self(self.words, &joining.keys, &joining.name, mesh, guide) {
                    Some(admission) => (admission, joining),
                    None => return Ok(None),
                }
            }
        };
        // Before the mesh can hear of them.
        self.home
            .write_joining(&joining)
            .map_err(|error| broken(&error.into()))?;
        let all: Vec<Entry> = admission
            .entries
            .iter()
            .chain(&admission.own)
            .cloned()
            .collect();
        settle_in(self.home, &joining.keys, mesh, &all, guide, false)
            .map_err(|error| broken(&error))?;
        // The door may have been behind the others: nothing is sealed before one agrees.
        self.home
            .write_whole(UNSETTLED_FILE, b"")
            .map_err(|error| broken(&error.into()))?;
        Ok(Some(Made {
            joining,
            own: admission.own,
        }))
    }
}

/// A device on the disk whose admission the door has still to take.
struct Made {
    joining: Joining,
    own: Vec<Entry>,
}

struct Admission {
    /// Those of the mesh.
    entries: Vec<Entry>,
    /// Those by which the device comes in; none if it is in already.
    own: Vec<Entry>,
}

fn mesh_of(guide: &Guide) -> Option<SpaceId> {
    Some(Entry::decode(guide.entries.first()?).ok()?.header().space)
}

/// Judges a mesh by its root key and, as the root, admits this device.
fn admit_self(
    words: &Words,
    keys: &DeviceKeys,
    name: &str,
    mesh: SpaceId,
    guide: &Guide,
) -> Option<Admission> {
    let root = words.root();
    let mut replica = Replica::open_with_recovery(mesh, Some(keys), root.recovery.clone());
    let entries = take_in(&mut replica, guide)?;
    if replica.access().root != Some(root.sign.id()) {
        return None;
    }
    let is_in = |replica: &Replica| {
        let member = replica.access().members.get(&keys.id());
        member.is_some_and(|member| {
            member.role >= Role::Admin && member.agree == Some(keys.agree_public())
        })
    };
    if is_in(&replica) {
        let own = Vec::new();
        return Some(Admission { entries, own });
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
    is_in(&replica).then_some(Admission { entries, own })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;

    fn kept(home: &Home) -> Joining {
        let joining = Joining {
            mesh: SpaceId([5; 32]),
            keys: DeviceKeys::generate(&mut Rng::from_seed([1; 32])),
            name: "attic".to_owned(),
            conversation: None,
        };
        home.prepare().unwrap();
        home.write_joining(&joining).unwrap();
        joining
    }

    fn make(home: &Home, keys: DeviceKeys) {
        let identity = Identity {
            space: SpaceId([5; 32]),
            keys,
            door: Secret::generate(&mut Rng::from_seed([2; 32])),
        };
        home.write_identity(&identity).unwrap();
    }

    fn words() -> Words {
        Words::generate(&mut Rng::from_seed([3; 32]))
    }

    #[tokio::test]
    async fn join_ended_when_all_was_done_says_so_when_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let joining = kept(&home);
        make(&home, joining.keys.clone());
        let joined = by_words(&home, &words(), &[], "another", |_| {})
            .await
            .unwrap();
        assert_eq!(
            (joined.device, joined.name.as_str(), joined.role),
            (joining.keys.id(), "attic", "admin")
        );
        // By a ticket it was another join.
        let failure = by_ticket(&home, None, "another", |_| {}).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Exists);
        done(&home).unwrap();
        let again = by_words(&home, &words(), &[], "another", |_| {}).await;
        assert_eq!(again.unwrap_err().kind, FailureKind::Exists);
    }

    #[tokio::test]
    async fn device_of_other_keys_is_no_end_of_a_join() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        kept(&home);
        make(&home, DeviceKeys::generate(&mut Rng::from_seed([9; 32])));
        let failure = by_words(&home, &words(), &[], "another", |_| {}).await;
        assert_eq!(failure.unwrap_err().kind, FailureKind::Exists);
    }

    #[tokio::test]
    async fn damaged_join_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        kept(&home);
        std::fs::write(folder.path().join("joining.key"), b"kithjoi1 torn").unwrap();
        assert!(!is_under_way(&home));
        let failure = by_ticket(&home, None, "another", |_| {}).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
    }
}
