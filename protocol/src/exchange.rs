//! Asks other devices for blocks and serves them: Bitswap 1.2.0, sessions over several peers, bounds on everything.
//!
//! A block is asked of one peer at a time, of whichever would be done with it first. Who refuses is passed over, who refuses a lot is
//! asked *whether* before it is asked *for*, who falls silent loses its asks to others. Blocks are hashed once, on arrival, and never
//! copied: they leave as the parts of a message and arrive as slices of one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use kith_object::id::{Cid, DeviceId};
use kith_object::time::Time;
use tracing::debug;

mod asking;
pub mod message;
#[cfg(test)]
mod network;
mod outbox;
mod serving;
mod shunned;
mod source;
#[cfg(test)]
mod tests;

pub use asking::WANTS_MAX;
pub use message::{BLOCK_BYTES_MAX, MESSAGE_BYTES_MAX, Parts};
pub use serving::{LEDGER_MAX, SERVE_BYTES_MAX};

use asking::{Asking, Received};
use message::{Message, MessageError};
use outbox::{Link, Outbox, PeerNo};
use serving::Serving;
use shunned::{SHUNNED_MAX, Shunned};
use source::Recent;

/// The name under which the messages travel, each with its length before it as a varint.
pub const PROTOCOL: &str = "/ipfs/bitswap/1.2.0";
/// Most peers at once.
pub const PEERS_MAX: usize = 1024;
/// What of our own asking the shell may hold for a peer beyond what is served to it.
const CONTROL_BYTES_MAX: usize = 1024 * 1024;
/// Wantlist changes in one message: some 200 KB.
const ENTRIES_MAX: usize = 4096;
/// Wantlist changes that may wait for a peer that takes nothing off our hands, before it is cut off.
const ENTRIES_WAITING_MAX: usize = 16_384;
/// Devices that went lately and are known to owe us blocks, which may still arrive on their next connection.
const DEPARTED_MAX: usize = 16;

/// What happens to an [`Exchange`].
#[derive(Debug, Clone)]
pub enum Input {
    /// A peer is connected and speaks [`PROTOCOL`].
    PeerUp(DeviceId),
    /// A peer is gone; what the shell held for it is dropped.
    PeerDown(DeviceId),
    /// One message arrived, without its length. `peer` may see what it asks for: whoever may not is not fed.
    Message {
        /// From whom.
        peer: DeviceId,
        /// The protobuf.
        bytes: Bytes,
    },
    /// Somebody here wants blocks that are not in the store. More may be added under the same request until its last one came.
    Want {
        /// The caller's number.
        request: u64,
        /// What it wants, in the order it wants it.
        cids: Vec<Cid>,
    },
    /// A caller no longer wants what it has not got yet.
    Cancel {
        /// The caller's number.
        request: u64,
    },
    /// Answers [`Effect::Load`].
    Loaded {
        /// As in the effect.
        peer: DeviceId,
        /// As in the effect.
        cid: Cid,
        /// What was found; `None` too for a block this peer may not have.
        found: Option<Loaded>,
    },
    /// The shell has written that many bytes of what [`Effect::Send`] gave it.
    Flushed {
        /// To whom.
        peer: DeviceId,
        /// Length of what was written, as [`Parts::len_bytes`].
        len: usize,
    },
    /// The store holds these now, got from here or from elsewhere: wants that wait for them are served and end.
    Stored(Vec<Cid>),
    /// [`Exchange::next_wakeup`] has come.
    Wake,
}

/// What a load found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// The block is here and this long.
    Size(u32),
    /// The block, verified by the store.
    Block(Bytes),
}

/// What an [`Exchange`] wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this message, with its length before it, then say [`Input::Flushed`].
    Send {
        /// To whom.
        peer: DeviceId,
        /// The protobuf, in parts.
        message: Parts,
    },
    /// Look a block up and answer with [`Input::Loaded`].
    Load {
        /// For whom; repeat it in the answer.
        peer: DeviceId,
        /// Which block.
        cid: Cid,
        /// Whether the block itself is needed, or only its size.
        block: bool,
    },
    /// A wanted block, verified against its CID. Its wants are over.
    Got {
        /// Who waited for it.
        requests: Vec<u64>,
        /// Which block.
        cid: Cid,
        /// Its bytes, a slice of the message they came in.
        block: Bytes,
        /// From whom.
        from: DeviceId,
    },
    /// A wanted block was stored some other way. Its wants are over.
    Held {
        /// Who waited for it.
        requests: Vec<u64>,
        /// Which block.
        cid: Cid,
    },
    /// Every connected peer said that it lacks this block, or said nothing. The want stays: it is asked of peers that come, and of all
    /// again from time to time. Said once for each want of a request, and anew after [`Effect::Sought`].
    Unavailable {
        /// Who waits for it.
        request: u64,
        /// Which block.
        cid: Cid,
    },
    /// A block that was said to be unavailable may be had after all: a peer came, or says that it has it.
    Sought {
        /// Who waits for it.
        request: u64,
        /// Which block.
        cid: Cid,
    },
    /// This CID is not taken on as a want.
    Refused {
        /// Who asked.
        request: u64,
        /// Which block.
        cid: Cid,
        /// Why.
        reason: RefusedReason,
    },
    /// Close all connections to this peer. Its messages no longer count; it may connect again.
    Disconnect {
        /// Whom.
        peer: DeviceId,
        /// Why.
        reason: CutReason,
    },
}

/// Why a CID was not taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedReason {
    /// Its hash function is not one we compute, so a block could not be checked.
    Unverifiable,
    /// There are [`WANTS_MAX`] wants already; ask again when some have come.
    TooMany,
}

/// Why a peer is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutReason {
    /// It sent what is no message.
    Garbage,
    /// It sent a message, block or list above the limits.
    Oversize,
    /// It sent a block that nobody asked it for, which is what a block altered on the way looks like.
    Unasked,
    /// It keeps sending blocks that it sent before.
    Repeats,
    /// It takes nothing off our hands.
    Stuck,
    /// There are [`PEERS_MAX`] peers already.
    Crowded,
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Garbage => "it sent what is no message",
            Self::Oversize => "it sent more than the limits allow",
            Self::Unasked => "it sent a block that was not asked for, or not the one that was",
            Self::Repeats => "it keeps sending the same blocks",
            Self::Stuck => "it does not take what is sent to it",
            Self::Crowded => "too many peers are connected",
        })
    }
}

/// What an [`Exchange`] has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received and understood.
    pub messages_received: u64,
    /// Blocks received that were wanted.
    pub blocks_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Blocks received that were here already.
    pub duplicates: u64,
    /// Their bytes.
    pub duplicate_bytes: u64,
    /// Blocks sent.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Asks sent: for blocks, and whether they are there.
    pub asks: u64,
    /// Answers that a block is not there.
    pub refusals: u64,
    /// Asks that were left unanswered.
    pub timeouts: u64,
    /// Asks moved from a slow peer to an idle one.
    pub stolen: u64,
    /// Peers cut off.
    pub cut_off: u64,
}

/// Asks for blocks and serves them.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`Exchange::next_wakeup`]. Spec: `protocol/spec/exchange.md`, "Asking".
#[derive(Debug)]
pub struct Exchange {
    numbers: BTreeMap<DeviceId, PeerNo>,
    next_number: u64,
    /// What devices that went may still send, oldest first.
    departed: VecDeque<(DeviceId, Recent)>,
    shunned: Shunned,
    /// Connected, and asked for nothing until then.
    aside: BTreeSet<(Time, DeviceId)>,
    asking: Asking,
    serving: Serving,
    out: Outbox,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// An exchange without peers and wants.
    pub fn new() -> Self {
        Self {
            numbers: BTreeMap::new(),
            next_number: 0,
            departed: VecDeque::new(),
            shunned: Shunned::default(),
            aside: BTreeSet::new(),
            asking: Asking::default(),
            serving: Serving::new(),
            out: Outbox::default(),
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> &Stats {
        &self.out.stats
    }

    /// Whether that block is wanted and has not come.
    pub fn wants(&self, cid: &Cid) -> bool {
        self.asking.wants(cid)
    }

    /// How many blocks are wanted and have not come.
    pub fn wants_len(&self) -> usize {
        self.asking.wants_len()
    }

    /// How many wants of all peers are remembered.
    pub fn serving_len(&self) -> usize {
        self.serving.wants_len()
    }

    /// Connected peers.
    pub fn peers(&self) -> impl Iterator<Item = &DeviceId> {
        self.numbers.keys()
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.asking.tick(now, &mut self.out);
        self.take_back_in(now);
        match input {
            Input::PeerUp(device) => self.peer_up(now, device),
            Input::PeerDown(device) => self.peer_down(now, &device, true),
            Input::Message { peer, bytes } => {
                if let Some(&number) = self.numbers.get(&peer)
                    && let Err(reason) = self.message(now, number, peer, &bytes)
                {
                    self.cut_off(now, peer, reason);
                }
            }
            Input::Want { request, cids } => self.asking.want(now, request, cids, &mut self.out),
            Input::Cancel { request } => self.asking.cancel(request, &mut self.out),
            Input::Loaded { peer, cid, found } => {
                if let Some(&number) = self.numbers.get(&peer) {
                    self.serving.loaded(number, cid, found, &mut self.out);
                }
            }
            Input::Flushed { peer, len } => {
                if let Some(&number) = self.numbers.get(&peer)
                    && let Some(link) = self.out.links.get_mut(&number)
                {
                    link.unflushed = link.unflushed.saturating_sub(len);
                    self.out.touched.insert(number);
                    self.serving.touch(number);
                }
            }
            Input::Stored(cids) => {
                for cid in cids {
                    self.asking.stored(&cid, &mut self.out);
                    self.serving.stored(&cid);
                }
            }
            Input::Wake => {}
        }
        self.asking.settle(now, &mut self.out);
        self.flush(now);
        self.serving.pump(&mut self.out);
    }

    /// The next thing to do, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// When to call [`Self::handle`] with [`Input::Wake`], if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Time> {
        let aside = self.aside.first().map(|(until, _)| *until);
        [self.asking.next_wakeup(), aside]
            .into_iter()
            .flatten()
            .min()
    }

    /// Panics if the machine is in a state it should never be in; for tests and simulations.
    ///
    /// # Panics
    /// On a defect of this module.
    pub fn check_invariants(&self) {
        self.asking.check_invariants();
        self.serving.check_invariants(&self.out);
        assert_eq!(
            self.numbers.len(),
            self.out.links.len(),
            "each peer has a link"
        );
        assert!(self.numbers.len() <= PEERS_MAX, "peers are bounded");
        assert!(self.shunned.len() <= SHUNNED_MAX, "offences are bounded");
        assert!(
            self.aside
                .iter()
                .all(|(_, device)| self.numbers.contains_key(device)),
            "who is put aside is connected"
        );
        assert!(
            self.departed.len() <= DEPARTED_MAX,
            "memory of departed peers is bounded"
        );
        for link in self.out.links.values() {
            assert!(
                link.entries.len() <= ENTRIES_WAITING_MAX,
                "wantlist changes that wait are bounded"
            );
            let most = SERVE_BYTES_MAX + 2 * CONTROL_BYTES_MAX + BLOCK_BYTES_MAX;
            assert!(
                link.unflushed <= most,
                "what the shell holds for a peer is bounded"
            );
        }
    }

    fn peer_up(&mut self, now: Time, device: DeviceId) {
        if self.numbers.contains_key(&device) {
            return;
        }
        if self.numbers.len() >= PEERS_MAX {
            self.out.effects.push_back(Effect::Disconnect {
                peer: device,
                reason: CutReason::Crowded,
            });
            return;
        }
        let number = PeerNo(self.next_number);
        self.next_number += 1;
        self.numbers.insert(device, number);
        self.out.links.insert(
            number,
            Link {
                device,
                entries: BTreeMap::new(),
                first: true,
                unflushed: 0,
            },
        );
        let recent = self.departed.iter().position(|(other, _)| *other == device);
        let recent = recent
            .and_then(|index| self.departed.remove(index))
            .map(|(_, recent)| recent)
            .unwrap_or_default();
        self.serving.peer_up(number);
        if let Some(until) = self.shunned.until(now, &device) {
            self.aside.insert((until, device));
        } else {
            self.asking.peer_up(now, number, recent, &mut self.out);
        }
    }

    /// Asks those again who were cut off and have waited long enough.
    fn take_back_in(&mut self, now: Time) {
        while self.aside.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, device)) = self.aside.pop_first()
        {
            if let Some(number) = self.numbers.get(&device).copied() {
                self.asking
                    .peer_up(now, number, Recent::default(), &mut self.out);
            }
        }
    }

    fn peer_down(&mut self, now: Time, device: &DeviceId, may_return: bool) {
        let Some(number) = self.numbers.remove(device) else {
            return;
        };
        self.aside.retain(|(_, other)| other != device);
        self.out.links.remove(&number);
        self.out.touched.remove(&number);
        self.serving.peer_down(number);
        let recent = self.asking.peer_down(now, number, &mut self.out);
        if may_return && !recent.is_empty() {
            self.departed.push_back((*device, recent));
            if self.departed.len() > DEPARTED_MAX {
                self.departed.pop_front();
            }
        }
    }

    fn cut_off(&mut self, now: Time, peer: DeviceId, reason: CutReason) {
        debug!(%peer, %reason, "peer cut off");
        self.out.stats.cut_off += 1;
        self.shunned.offends(now, peer);
        self.peer_down(now, &peer, false);
        self.out
            .effects
            .push_back(Effect::Disconnect { peer, reason });
    }

    fn message(
        &mut self,
        now: Time,
        number: PeerNo,
        peer: DeviceId,
        bytes: &Bytes,
    ) -> Result<(), CutReason> {
        let message = Message::decode(bytes).map_err(|error| match error {
            MessageError::Malformed => CutReason::Garbage,
            MessageError::TooLong | MessageError::TooMany => CutReason::Oversize,
        })?;
        self.out.stats.messages_received += 1;
        for block in message.blocks {
            // Not worth a hash if nothing was ever asked.
            if !self.asking.expects_blocks(number) {
                return Err(CutReason::Unasked);
            }
            let cid = block.prefix.cid(&block.data).ok_or(CutReason::Unasked)?;
            #[cfg(planted = "skip-a-hash")]
            let cid = self.asking.under_way(number).unwrap_or(cid);
            let len = block.data.len();
            let len_bytes = u64::try_from(len).unwrap_or(u64::MAX);
            let (received, requests) = self.asking.block(now, number, &cid, len, &mut self.out);
            match received {
                Received::Wanted => {
                    self.out.stats.blocks_received += 1;
                    self.out.stats.bytes_received += len_bytes;
                    self.out.effects.push_back(Effect::Got {
                        requests,
                        cid,
                        block: block.data,
                        from: peer,
                    });
                }
                Received::Again | Received::AgainTooOften => {
                    self.out.stats.duplicates += 1;
                    self.out.stats.duplicate_bytes += len_bytes;
                    if received == Received::AgainTooOften {
                        return Err(CutReason::Repeats);
                    }
                }
                Received::Unasked => return Err(CutReason::Unasked),
            }
        }
        for presence in message.presences {
            self.asking
                .presence(now, number, &presence.cid, presence.have, &mut self.out);
        }
        if message.full || !message.entries.is_empty() {
            self.serving
                .entries(number, message.full, &message.entries, &mut self.out);
        }
        Ok(())
    }

    /// Sends what is ready, to the peers for which something changed.
    fn flush(&mut self, now: Time) {
        let mut stuck = BTreeSet::new();
        while let Some(number) = self.out.touched.pop_first() {
            while let Some(message) = self.next_message(number) {
                let link = self
                    .out
                    .links
                    .get_mut(&number)
                    .expect("there is a message for it");
                let stats = &mut self.out.stats;
                stats.messages_sent += 1;
                for block in &message.blocks {
                    stats.blocks_sent += 1;
                    stats.bytes_sent += u64::try_from(block.data.len()).unwrap_or(u64::MAX);
                }
                let message = message.encode();
                link.first = false;
                link.unflushed += message.len_bytes();
                self.out.effects.push_back(Effect::Send {
                    peer: link.device,
                    message,
                });
            }
            if let Some(link) = self.out.links.get(&number)
                && link.entries.len() > ENTRIES_WAITING_MAX
            {
                stuck.insert(link.device);
            }
        }
        let any_stuck = !stuck.is_empty();
        for device in stuck {
            self.cut_off(now, device, CutReason::Stuck);
        }
        if any_stuck {
            self.asking.settle(now, &mut self.out);
            self.flush(now);
        }
    }

    fn next_message(&mut self, number: PeerNo) -> Option<Message> {
        let link = self.out.links.get_mut(&number)?;
        let with_entries =
            !link.entries.is_empty() && link.unflushed < SERVE_BYTES_MAX + CONTROL_BYTES_MAX;
        let reply = self.serving.reply(number, link.unflushed, with_entries);
        if reply.is_none() && !with_entries {
            return None;
        }
        let mut message = reply.unwrap_or_default();
        if with_entries {
            message.full = link.first;
            while message.entries.len() < ENTRIES_MAX
                && let Some((_, entry)) = link.entries.pop_first()
            {
                message.entries.push(entry);
            }
        }
        Some(message)
    }
}
