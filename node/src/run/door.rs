//! Who knocks: drives the pairing machine over the door's streams, and lets newcomers in.
//!
//! Spec: `protocol/spec/pairing.md`, "Door".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kith_core::device::{Command, Device};
use kith_crdt::access::{Newcomer, Role as AccessRole};
use kith_object::id::DeviceId;
use kith_protocol::api::{Event, Failure, FailureKind};
use kith_protocol::pairing::{
    Admitter, AdmitterEffect as Effect, AdmitterInput as Input, Guide, IssueError, Knock, Mesh,
    Outcome, Peers, Role, SecretBytes, TICKET_LIFE, Ticket, TicketBook, TicketId, Welcome,
};
use kith_protocol::wire::DOOR_FRAME_BYTES_MAX;
use tokio::sync::{mpsc, oneshot};

use super::{Node, TICKETS_FILE};
use crate::config::{fresh_rng, now};
use crate::local::Teller;
use crate::net::door::{DoorEvent, DoorEvents, DoorStream};

/// Messages that wait for the keeper of the door.
const ASKS_MAX: usize = 64;
/// How long a frame may take once the other side has proved what it had to: a person may be comparing codes.
const PROVED_WAIT: Duration = Duration::from_secs(600);

/// Something for the keeper of the door.
pub(super) enum DoorAsk {
    /// Make a ticket, and tell what comes of it.
    Issue {
        role: Role,
        yes: bool,
        tell: mpsc::UnboundedSender<News>,
        answer: oneshot::Sender<Result<Ticket, IssueError>>,
    },
    /// Tell what the book of tickets is now.
    Book(oneshot::Sender<SecretBytes>),
    /// Something for the machine.
    Machine(Input),
}

/// What comes of a ticket.
pub(super) enum News {
    Knock(Event),
    Ended(Outcome),
}

struct Follower {
    yes: bool,
    tell: mpsc::UnboundedSender<News>,
    /// Who proved the ticket.
    newcomer: Option<(String, DeviceId)>,
}

/// What a stream's task is told.
enum ToStream {
    Send(Bytes),
    Proved,
    Close,
}

/// The keeper's handle.
#[derive(Clone)]
pub(super) struct DoorKeeper {
    asks: mpsc::Sender<DoorAsk>,
}

/// A handle and the queue behind it.
pub(super) fn keeper() -> (DoorKeeper, mpsc::Receiver<DoorAsk>) {
    let (asks, queue) = mpsc::channel(ASKS_MAX);
    (DoorKeeper { asks }, queue)
}

impl DoorKeeper {
    async fn ask(&self, ask: DoorAsk) {
        let _ = self.asks.send(ask).await;
    }

    /// The book of tickets as it is now; `None` if nobody keeps the door.
    pub(super) async fn book(&self) -> Option<SecretBytes> {
        let (answer, book) = oneshot::channel();
        self.ask(DoorAsk::Book(answer)).await;
        book.await.ok()
    }

    fn machine(&self, input: Input) {
        let asks = self.asks.clone();
        tokio::spawn(async move {
            let _ = asks.send(DoorAsk::Machine(input)).await;
        });
    }
}

struct Keeper {
    node: Arc<Node>,
    handle: DoorKeeper,
    door: DeviceId,
    machine: Admitter,
    streams: BTreeMap<Knock, mpsc::UnboundedSender<ToStream>>,
    proved: std::collections::BTreeSet<Knock>,
    followers: BTreeMap<TicketId, Follower>,
    next: u64,
}

/// Keeps the door until the process ends.
pub(super) async fn keep(
    node: Arc<Node>,
    door: DeviceId,
    mut knocks: DoorEvents,
    mut asks: mpsc::Receiver<DoorAsk>,
) {
    let Some(Some(mesh)) = node.asker.look(mesh_of).await else {
        tracing::error!("the door stays shut: this device does not know its own mesh");
        return;
    };
    let kept = node.home.read_sealed(TICKETS_FILE, node.keys());
    let book = kept
        .and_then(|bytes| TicketBook::decode(&bytes).ok())
        .unwrap_or_default();
    let machine = Admitter::new(now(), node.keys().clone(), mesh, book, fresh_rng());
    let handle = node.keeper.clone();
    let mut keeper = Keeper {
        node,
        handle,
        door,
        machine,
        streams: BTreeMap::new(),
        proved: std::collections::BTreeSet::new(),
        followers: BTreeMap::new(),
        next: 0,
    };
    loop {
        let pause = keeper
            .machine
            .next_wakeup()
            .map_or(Duration::from_secs(3600), |at| {
                Duration::from_millis(at.since(now()).as_ms())
            });
        tokio::select! {
            event = knocks.recv() => match event {
                Some(DoorEvent::Listening(addr)) => super::held(&keeper.node.door).push(addr.to_string()),
                Some(DoorEvent::Knock(stream)) => keeper.knocked(*stream),
                None => return,
            },
            ask = asks.recv() => match ask {
                Some(DoorAsk::Machine(input)) => {
                    if let Input::Left { knock } = &input {
                        keeper.streams.remove(knock);
                        keeper.proved.remove(knock);
                    }
                    keeper.machine.handle(now(), input);
                }
                Some(DoorAsk::Book(answer)) => {
                    let _ = answer.send(keeper.machine.book().encode());
                }
                Some(DoorAsk::Issue { role, yes, tell, answer }) => keeper.issue(role, yes, tell, answer),
                None => return,
            },
            () = tokio::time::sleep(pause) => keeper.machine.handle(now(), Input::Wake),
        }
        keeper.perform();
    }
}

fn mesh_of(device: &Device) -> Option<Mesh> {
    let root = device.access().root?;
    Some(Mesh {
        id: device.replica().space(),
        genesis: device.replica().genesis()?.encode(),
        root,
    })
}

fn guide_of(device: &Device) -> Guide {
    let own = (device.id(), device.own_addrs().to_vec());
    let others = device.book().iter().map(|(id, addrs)| (*id, addrs));
    Guide {
        frontier: device
            .replica()
            .heads(kith_crdt::chain::DocumentKind::Access),
        addresses: std::iter::once(own).chain(others).collect(),
        entries: device.access_from_genesis(),
    }
}

fn welcome_of(device: &Device, role: Role) -> Option<Welcome> {
    let (epoch, holder, member) = device.replica().epoch_parts()?;
    let member_part = match role {
        Role::Blind => None,
        Role::Member => Some(SecretBytes::new(member?.to_bytes().to_vec())),
    };
    Some(Welcome {
        epoch,
        holder_part: SecretBytes::new(holder.to_bytes().to_vec()),
        member_part,
        guide: guide_of(device),
    })
}

impl Keeper {
    fn knocked(&mut self, stream: DoorStream) {
        self.next += 1;
        let knock = Knock(self.next);
        let peers = Peers {
            door: stream.local_peer.clone(),
            newcomer: stream.remote_peer.clone(),
        };
        let (to_stream, orders) = mpsc::unbounded_channel();
        self.streams.insert(knock, to_stream);
        tokio::spawn(serve(stream, knock, orders, self.handle.clone()));
        self.machine.handle(now(), Input::Knocked { knock, peers });
    }

    fn issue(
        &mut self,
        role: Role,
        yes: bool,
        tell: mpsc::UnboundedSender<News>,
        answer: oneshot::Sender<Result<Ticket, IssueError>>,
    ) {
        let addrs = super::held(&self.node.door).clone();
        let best = best_first(addrs);
        let ticket = self
            .machine
            .issue(now(), role, TICKET_LIFE, self.door, best);
        if let Ok(ticket) = &ticket {
            self.followers.insert(
                ticket.id(),
                Follower {
                    yes,
                    tell,
                    newcomer: None,
                },
            );
        }
        let _ = answer.send(ticket);
    }

    fn perform(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Send { knock, message } => self.to_stream(knock, ToStream::Send(message)),
                Effect::Close { knock } => {
                    self.to_stream(knock, ToStream::Close);
                    self.streams.remove(&knock);
                    self.proved.remove(&knock);
                }
                Effect::Save { save, book } => self.save(save, book),
                Effect::ShowCode {
                    ticket,
                    code,
                    name,
                    device,
                    ..
                } => {
                    self.show_code(ticket, code.to_string(), name.to_string(), device);
                }
                Effect::Admit {
                    ticket,
                    device,
                    agree,
                    name,
                    role,
                } => {
                    let newcomer = Newcomer {
                        device,
                        agree,
                        name: name.to_string(),
                        role: access_role(role),
                    };
                    self.admit(ticket, newcomer, role);
                }
                Effect::Guide { knock } => {
                    let (node, handle) = (self.node.clone(), self.handle.clone());
                    tokio::spawn(async move {
                        let input = match node.asker.look(guide_of).await {
                            Some(guide) => Input::Guide {
                                knock,
                                guide: Box::new(guide),
                            },
                            None => Input::Failed { knock },
                        };
                        handle.ask(DoorAsk::Machine(input)).await;
                    });
                }
                Effect::Store { knock, entries } => {
                    let (node, handle) = (self.node.clone(), self.handle.clone());
                    tokio::spawn(async move {
                        let input = match node.asker.command(Command::Deliver(entries)).await {
                            Ok(()) => Input::Stored { knock },
                            Err(error) => {
                                tracing::warn!(%error, "admission by words not taken in");
                                Input::Failed { knock }
                            }
                        };
                        handle.ask(DoorAsk::Machine(input)).await;
                    });
                }
                Effect::Ended { ticket, outcome } => {
                    if let Some(follower) = self.followers.remove(&ticket) {
                        let (name, device) = follower.newcomer.unzip();
                        if let (Outcome::Done | Outcome::Unacknowledged, Some(name), Some(device)) =
                            (outcome, name, device)
                        {
                            let _ = follower.tell.send(News::Knock(Event::Paired {
                                name,
                                device: device.to_string(),
                            }));
                        }
                        let _ = follower.tell.send(News::Ended(outcome));
                    }
                }
            }
        }
        let proved: Vec<Knock> = self
            .streams
            .keys()
            .filter(|knock| {
                !self.proved.contains(knock)
                    && self.machine.message_bytes_max(**knock) > DOOR_FRAME_BYTES_MAX
            })
            .copied()
            .collect();
        for knock in proved {
            self.proved.insert(knock);
            self.to_stream(knock, ToStream::Proved);
        }
    }

    fn to_stream(&self, knock: Knock, order: ToStream) {
        if let Some(stream) = self.streams.get(&knock) {
            let _ = stream.send(order);
        }
    }

    fn save(&self, save: u64, book: SecretBytes) {
        let (node, handle) = (self.node.clone(), self.handle.clone());
        // One after another: a later book must not be replaced by an earlier one.
        let guard = node.saving.clone();
        tokio::spawn(async move {
            let mut last = guard.lock().await;
            if *last >= save {
                return handle.ask(DoorAsk::Machine(Input::Saved { save })).await;
            }
            let written = {
                let node = node.clone();
                tokio::task::spawn_blocking(move || {
                    node.home.write_sealed(
                        TICKETS_FILE,
                        node.keys(),
                        &mut fresh_rng(),
                        book.expose(),
                    )
                })
                .await
            };
            let input = match written {
                Ok(Ok(())) => {
                    *last = save;
                    Input::Saved { save }
                }
                _ => Input::NotSaved { save },
            };
            handle.ask(DoorAsk::Machine(input)).await;
        });
    }

    fn show_code(&mut self, ticket: TicketId, code: String, name: String, device: DeviceId) {
        let Some(follower) = self.followers.get_mut(&ticket) else {
            return;
        };
        // A newcomer whose connection broke comes again with the same code; a person is asked once.
        if follower.newcomer.is_some() {
            return;
        }
        follower.newcomer = Some((name.clone(), device));
        let knock = Event::Knock {
            ticket: ticket.to_string(),
            code,
            name,
            device: device.to_string(),
        };
        let _ = follower.tell.send(News::Knock(knock));
        if follower.yes {
            self.machine.handle(
                now(),
                Input::Confirmed {
                    ticket,
                    accept: true,
                },
            );
        }
    }

    fn admit(&self, ticket: TicketId, newcomer: Newcomer, role: Role) {
        let (node, handle) = (self.node.clone(), self.handle.clone());
        tokio::spawn(async move {
            let (device, agree, wanted) = (newcomer.device, newcomer.agree, newcomer.role);
            let in_already = move |this: &Device| {
                let member = this.access().members.get(&device);
                member.is_some_and(|member| member.role >= wanted && member.agree == Some(agree))
            };
            let in_already = node.asker.look(in_already).await.unwrap_or(false);
            if !in_already && let Err(error) = node.asker.command(Command::Admit(newcomer)).await {
                tracing::warn!(%error, "newcomer not admitted");
                return handle
                    .ask(DoorAsk::Machine(Input::NotAdmitted { ticket }))
                    .await;
            }
            let welcome = node
                .asker
                .look(move |this| welcome_of(this, role))
                .await
                .flatten();
            let input = match welcome {
                Some(welcome) => Input::Admitted {
                    ticket,
                    welcome: Box::new(welcome),
                },
                None => Input::NotAdmitted { ticket },
            };
            handle.ask(DoorAsk::Machine(input)).await;
        });
    }
}

/// Carries frames between a stream and the keeper.
async fn serve(
    mut stream: DoorStream,
    knock: Knock,
    mut orders: mpsc::UnboundedReceiver<ToStream>,
    keeper: DoorKeeper,
) {
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(ToStream::Send(message)) => {
                    if stream.send(&message).await.is_err() {
                        break;
                    }
                }
                Some(ToStream::Proved) => stream.proven(PROVED_WAIT),
                Some(ToStream::Close) | None => {
                    stream.close().await;
                    return;
                }
            },
            frame = stream.recv() => match frame {
                Ok(message) => keeper.ask(DoorAsk::Machine(Input::Message { knock, message })).await,
                Err(_) => break,
            },
        }
    }
    keeper.ask(DoorAsk::Machine(Input::Left { knock })).await;
}

fn access_role(role: Role) -> AccessRole {
    match role {
        Role::Blind => AccessRole::Blind,
        Role::Member => AccessRole::Member,
    }
}

/// At most eight addresses, those that reach farther first.
fn best_first(mut addrs: Vec<String>) -> Vec<String> {
    addrs.sort_by_key(|addr| addr.contains("/127.0.0.1/") || addr.contains("/::1/"));
    addrs.dedup();
    addrs.truncate(8);
    addrs
}

/// Takes the ticket back when the call ends before the ticket does.
struct Withdraw {
    keeper: DoorKeeper,
    ticket: TicketId,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.keeper.machine(Input::Withdraw {
            ticket: self.ticket,
        });
    }
}

/// Answers `pair`: makes a ticket and stays until it is used or ends.
pub(super) async fn pair(
    node: &Arc<Node>,
    role: String,
    yes: bool,
    tell: &Teller,
) -> Result<(), Failure> {
    let what = "let a device in";
    if !node.asker.is_online() {
        return Err(Failure::new(FailureKind::Failed, what).hint("start the daemon with `kith up`"));
    }
    let role = match role.as_str() {
        "member" => Role::Member,
        "blind" => Role::Blind,
        _ => {
            return Err(
                Failure::new(FailureKind::Usage, format!("{what} as {role}"))
                    .hint("a newcomer becomes `member` or `blind`"),
            );
        }
    };
    let admin = node
        .asker
        .look(|device| device.access().role(&device.id()) >= Some(AccessRole::Admin))
        .await;
    if admin != Some(true) {
        return Err(Failure::new(
            FailureKind::Denied,
            format!("{what}: this device is no admin of the mesh"),
        )
        .hint(
            "pair on the first device, or on one that joined by the words; or join by the words",
        ));
    }
    let (news, mut told) = mpsc::unbounded_channel();
    let (answer, ticket) = oneshot::channel();
    node.keeper
        .ask(DoorAsk::Issue {
            role,
            yes,
            tell: news,
            answer,
        })
        .await;
    let ending = || Failure::new(FailureKind::Failed, format!("{what}: the door is shut"));
    let ticket = ticket
        .await
        .map_err(|_| ending())?
        .map_err(|error| Failure::new(FailureKind::Failed, what).because(&error))?;
    let id = ticket.id();
    let withdraw = Withdraw {
        keeper: node.keeper.clone(),
        ticket: id,
    };
    let event = Event::Ticket {
        ticket: ticket.to_text().to_string(),
        id: id.to_string(),
        expires_ms: ticket.expiry.0,
    };
    let gone = |_| {
        Failure::new(
            FailureKind::Failed,
            "tell the ticket: nobody listens any more",
        )
    };
    tell.send((event, Bytes::new())).await.map_err(gone)?;
    loop {
        match told.recv().await {
            Some(News::Knock(event)) => tell.send((event, Bytes::new())).await.map_err(gone)?,
            Some(News::Ended(outcome)) => {
                std::mem::forget(withdraw);
                return ended(what, outcome);
            }
            None => return Err(ending()),
        }
    }
}

fn ended(what: &str, outcome: Outcome) -> Result<(), Failure> {
    let why = match outcome {
        Outcome::Done | Outcome::Unacknowledged => return Ok(()),
        Outcome::Expired => "nobody came with the ticket in time",
        Outcome::TimedOut => "nobody confirmed the code in time",
        Outcome::Declined => "the code was not confirmed",
        Outcome::Withdrawn => "the ticket was taken back",
        Outcome::Failed => "the admission could not be written",
    };
    Err(Failure::new(FailureKind::Failed, format!("{what}: {why}"))
        .hint("make another ticket with `kith pair`"))
}

/// Answers `confirm`.
pub(super) async fn confirm(node: &Arc<Node>, ticket: &str, accept: bool) -> Result<(), Failure> {
    let ticket: TicketId = ticket.parse().map_err(|_| {
        Failure::new(
            FailureKind::Usage,
            format!("confirm {ticket}: it does not name a ticket"),
        )
    })?;
    node.keeper
        .ask(DoorAsk::Machine(Input::Confirmed { ticket, accept }))
        .await;
    Ok(())
}
