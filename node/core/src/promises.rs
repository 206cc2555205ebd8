//! Gives up copies that are too many, and promises others to keep what they give up.
//!
//! Spec: `protocol/spec/promises.md`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kith_object::id::{DeviceId, PackId};
use kith_object::key::Rng;
use kith_object::time::{Span, Time};
use kith_protocol::holdings::HoldingTag;
use kith_protocol::promise::{
    BLOCKS_MAX, Bits, Challenge, Digest, KEPT_FOR, Message, Nonce, Promised, Proof, Refused,
    USED_FOR, rank,
};

use crate::keeper::{Keeper, KeptBy, ShardsKept, Surplus, View};

/// Packs that are being given up at a time.
const ATTEMPTS_MAX: usize = 4;
/// Packs that are looked at in one go for whether they may be, and the pause between two.
const LOOK_MAX: usize = 64;
const LOOK_PAUSE: Span = Span::from_ms(20);
/// How long an answer may take: the other end may have many packs to read.
const ANSWER_WAIT: Span = Span::from_secs(600);
/// Pause after a pack could not be given up; doubles with each time.
const RETRY_FIRST: Span = Span::from_secs(600);
const RETRY_MAX: Span = Span::from_secs(6 * 3600);
/// Proofs that are made at a time.
pub const PROOFS_MAX: usize = 2;
/// Asks that wait, and those of one device.
const WAITING_MAX: usize = 64;
const WAITING_EACH_MAX: usize = 16;
/// Blocks that all of these ask for.
const WAITING_BLOCKS_MAX: usize = 65_536;
/// Packs that one answer promises to keep.
pub const PACKS_MAX: usize = 64;

/// What another device asks this one to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A pack.
    Pack(PackId),
    /// Those of these blocks that are here.
    Blocks(Arc<[Digest]>),
}

/// A proof to be made for another device; the promise has to last before it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouch {
    /// Of what.
    pub wish: Wish,
    /// How long that is to be kept.
    pub until: Time,
    /// What makes the proof.
    pub challenge: Challenge,
}

/// What a device has of what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Proves it.
    pub proof: Proof,
    /// Packs that are to be kept for that.
    pub packs: Vec<PackId>,
    /// Which of the blocks that were asked for.
    pub has: Bits,
}

/// A copy to be given up, if these proofs hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GiveUp {
    /// Which.
    pub pack: PackId,
    /// What each of those who keep it, or its blocks, has answered.
    pub proofs: Vec<(Challenge, Proof)>,
    /// How it is to go.
    pub how: Giving,
}

/// How a copy is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Giving {
    /// It stays until room is needed.
    Slowly,
    /// It goes at once.
    AtOnce,
    /// It has shards, and goes if these are those that others have; it stays until room is needed.
    Coded(ShardsKept),
    /// It was replaced, and goes if all its blocks lie in what replaces it.
    Replaced(Replaced),
    /// It is parity of what nobody holds any more, and goes at once.
    Spent,
}

/// What others have of a pack that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The blocks they were asked for.
    pub digests: Arc<[Digest]>,
    /// Which of these each has, in the order of the proofs.
    pub has: Vec<Bits>,
    /// Who should keep what.
    pub kept: Vec<KeptBy>,
}

/// What came of giving one up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GaveUp {
    /// It is no copy that counts any more.
    Gone,
    /// Something here needs it, or it could not be read or taken away.
    Stays,
    /// These devices do not have it.
    False(Vec<DeviceId>),
    /// It has other shards than were named.
    Misnamed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Send(DeviceId, Message),
    Vouch(Vouch),
    GiveUp(GiveUp),
    /// Say which blocks of a pack lie in no other here that stays.
    List(PackId),
    /// That device does not hold the pack, whatever it says.
    Disprove(PackId, DeviceId),
}

/// When a pack is tried again, and how often it was.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// None while it is tried.
    due: Option<Time>,
    tries: u32,
}

/// One that was asked.
#[derive(Debug, Clone)]
struct Asked {
    nonce: Nonce,
    /// The proof, and of which blocks.
    answer: Option<(Proof, Bits)>,
}

/// What those who were asked are to prove.
#[derive(Debug, Clone)]
enum Of {
    Pack,
    /// Each has another one.
    Shards,
    /// Nobody is asked.
    Nothing,
    /// Which blocks is not known yet.
    Listing,
    Blocks(Arc<[Digest]>),
}

/// A pack that is being given up.
#[derive(Debug)]
struct Attempt {
    began: Time,
    of: Of,
    asked: BTreeMap<DeviceId, Asked>,
    /// Who keeps its shards, or what replaces it, once that is decided.
    kept: Vec<KeptBy>,
    /// It is no more promised to anybody.
    is_decided: bool,
}

/// An ask that waits for its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    peer: DeviceId,
    nonce: Nonce,
    wish: Wish,
}

impl Wish {
    fn blocks(&self) -> usize {
        match self {
            Self::Pack(_) => 0,
            Self::Blocks(digests) => digests.len(),
        }
    }
}

/// What this device has promised, and what it asks others to promise.
#[derive(Debug)]
pub struct Promises {
    me: DeviceId,
    rng: Rng,
    given: BTreeMap<PackId, Time>,
    /// The same by when they end.
    ends: BTreeSet<(Time, PackId)>,
    /// Somebody may have been promised anything.
    unsure_until: Option<Time>,
    /// Asks, the first ones being proved.
    waiting: VecDeque<Waiting>,
    /// Whether it is a proof of blocks.
    proving: BTreeMap<(DeviceId, Nonce), bool>,
    /// Packs of which this device has a copy too many.
    candidates: BTreeMap<PackId, Candidate>,
    due: BTreeSet<(Time, PackId)>,
    attempts: BTreeMap<PackId, Attempt>,
    /// What else is to be sent.
    actions: VecDeque<Action>,
}

impl Promises {
    /// Of a device that has promised nothing.
    pub(crate) fn new(me: DeviceId, rng: Rng) -> Self {
        Self {
            me,
            rng,
            given: BTreeMap::new(),
            ends: BTreeSet::new(),
            unsure_until: None,
            waiting: VecDeque::new(),
            proving: BTreeMap::new(),
            candidates: BTreeMap::new(),
            due: BTreeSet::new(),
            attempts: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes back what was promised before; with damage, anything may have been.
    pub(crate) fn recall(
        &mut self,
        now: Time,
        promised: impl IntoIterator<Item = Promised>,
        is_damaged: bool,
    ) {
        for promised in promised {
            // No honest one ends later.
            self.promise(promised.pack, promised.until.min(now + KEPT_FOR));
        }
        self.forget_ended(now);
        if is_damaged {
            self.unsure_until = Some(now + KEPT_FOR);
        }
    }

    /// Whether that pack was promised to somebody within the last day.
    pub fn is_promised(&self, pack: &PackId) -> bool {
        self.given.contains_key(pack)
    }

    fn promise(&mut self, pack: PackId, until: Time) {
        let before = self.given.get(&pack).copied();
        if before.is_none_or(|before| before < until) {
            self.given.insert(pack, until);
            self.ends.insert((until, pack));
            if let Some(before) = before {
                self.ends.remove(&(before, pack));
            }
        }
    }

    fn forget_ended(&mut self, now: Time) {
        while let Some((until, pack)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            self.ends.remove(&(until, pack));
            self.given.remove(&pack);
        }
    }

    /// Copies that are too many here, as far as is known.
    pub fn surplus(&self) -> usize {
        self.candidates.len()
    }

    /// There is a copy too many here of a pack, or no more.
    pub(crate) fn is_surplus(&mut self, now: Time, pack: PackId, surplus: bool) {
        if !surplus {
            if let Some(due) = self.candidates.remove(&pack).and_then(|known| known.due) {
                self.due.remove(&(due, pack));
            }
            // One that is decided is over when it is over.
            if self
                .attempts
                .get(&pack)
                .is_some_and(|attempt| !attempt.is_decided)
            {
                self.attempts.remove(&pack);
            }
            return;
        }
        self.candidates.entry(pack).or_insert_with(|| {
            let due = Some(now).filter(|_| !self.attempts.contains_key(&pack));
            if let Some(due) = due {
                self.due.insert((due, pack));
            }
            Candidate { due, tries: 0 }
        });
    }

    /// A device came: what waits for it may be given up.
    pub(crate) fn peer_up(&mut self, now: Time) {
        // Those that have not failed wait for somebody.
        for (pack, candidate) in &mut self.candidates {
            if candidate.tries == 0
                && let Some(due) = candidate.due.filter(|due| *due > now)
            {
                self.due.remove(&(due, *pack));
                self.due.insert((now, *pack));
                candidate.due = Some(now);
            }
        }
    }

    /// A device went.
    pub(crate) fn peer_down(&mut self, now: Time, peer: DeviceId) {
        self.waiting.retain(|ask| ask.peer != peer);
        let unanswered = |attempt: &Attempt| {
            !attempt.is_decided && attempt.asked.get(&peer).is_some_and(|a| a.answer.is_none())
        };
        let over = self.attempts.iter().filter(|(_, of)| unanswered(of));
        for pack in over.map(|(pack, _)| *pack).collect::<Vec<_>>() {
            self.is_over(now, pack);
        }
    }

    /// A message of another device.
    pub(crate) fn received(&mut self, now: Time, peer: DeviceId, message: Message, view: View<'_>) {
        match message {
            Message::Ask { nonce, pack } => {
                if let Err(why) = self.asked(now, peer, nonce, pack, view) {
                    self.refuse(peer, nonce, why);
                }
            }
            Message::AskBlocks { nonce, digests } => {
                let wish = Wish::Blocks(digests);
                if let Err(why) = self.enqueue(Waiting { peer, nonce, wish }) {
                    self.refuse(peer, nonce, why);
                }
            }
            Message::Promise { nonce, proof } => {
                if let Some((_, Of::Pack | Of::Shards, asked)) = self.answers(peer, nonce) {
                    asked.answer = Some((proof, Bits::default()));
                }
            }
            Message::PromiseBlocks { nonce, proof, has } => {
                if let Some((_, Of::Blocks(digests), asked)) = self.answers(peer, nonce)
                    && has.are_of(digests.len())
                {
                    asked.answer = Some((proof, has));
                }
            }
            Message::Refusal { nonce, why } => {
                let Some((pack, of, _)) = self.answers(peer, nonce) else {
                    return;
                };
                let disproved = match of {
                    Of::Pack => vec![pack],
                    Of::Shards => self.kept_by(&pack, &peer),
                    Of::Listing | Of::Blocks(_) | Of::Nothing => Vec::new(),
                };
                let disproved = disproved.into_iter().filter(|_| why.is_false());
                let disproved = disproved.map(|pack| Action::Disprove(pack, peer));
                self.actions.extend(disproved);
                self.is_over(now, pack);
            }
        }
    }

    /// What a device keeps, so that a pack may go.
    fn kept_by(&self, pack: &PackId, device: &DeviceId) -> Vec<PackId> {
        let attempt = self.attempts.get(pack).into_iter();
        let kept = attempt.flat_map(|attempt| &attempt.kept);
        let kept = kept.filter(|of| of.devices.contains(device));
        kept.map(|of| of.pack).collect()
    }

    /// What was asked with that nonce, unless it is answered or nobody waits for it.
    fn answers(&mut self, peer: DeviceId, nonce: Nonce) -> Option<(PackId, &Of, &mut Asked)> {
        let mut attempts = self.attempts.iter_mut();
        attempts.find_map(|(pack, attempt)| {
            let asked = attempt.asked.get_mut(&peer)?;
            let waits = asked.nonce == nonce && asked.answer.is_none();
            waits.then_some((*pack, &attempt.of, asked))
        })
    }

    fn asked(
        &mut self,
        now: Time,
        peer: DeviceId,
        nonce: Nonce,
        pack: PackId,
        view: View<'_>,
    ) -> Result<(), Refused> {
        if !self.is_here(&pack, view) {
            return Err(Refused::Lacking);
        }
        if let Some(attempt) = self.attempts.get(&pack) {
            let gives_in = rank(&pack, &self.me) > rank(&pack, &peer);
            if attempt.is_decided || !gives_in {
                return Err(Refused::Leaving);
            }
        }
        let wish = Wish::Pack(pack);
        self.enqueue(Waiting { peer, nonce, wish })?;
        // From here on it is promised, whether the answer comes to be or not.
        self.promise(pack, now + KEPT_FOR);
        if self.attempts.contains_key(&pack) {
            self.is_over(now, pack);
        }
        Ok(())
    }

    fn is_here(&self, pack: &PackId, view: View<'_>) -> bool {
        let own = view.holdings.of(&self.me);
        own.is_some_and(|own| own.contains(HoldingTag::from(*pack)))
    }

    /// Has an ask wait, unless there are too many.
    fn enqueue(&mut self, ask: Waiting) -> Result<(), Refused> {
        let each = self.waiting.iter().filter(|of| of.peer == ask.peer).count();
        let blocks: usize = self.waiting.iter().map(|of| of.wish.blocks()).sum();
        if self.waiting.len() >= WAITING_MAX
            || each >= WAITING_EACH_MAX
            || blocks + ask.wish.blocks() > WAITING_BLOCKS_MAX
        {
            return Err(Refused::Busy);
        }
        self.waiting.push_back(ask);
        Ok(())
    }

    /// A proof was made and the promise lasts, or not.
    pub(crate) fn vouched(
        &mut self,
        now: Time,
        peer: DeviceId,
        nonce: Nonce,
        outcome: Result<Vouched, Refused>,
        view: View<'_>,
    ) {
        let Some(is_of_blocks) = self.proving.remove(&(peer, nonce)) else {
            return;
        };
        let outcome = outcome.and_then(|vouched| {
            if is_of_blocks {
                self.promise_all(now, &vouched.packs, view)?;
            }
            Ok(vouched)
        });
        if !view.connected.contains(&peer) {
            return;
        }
        match outcome {
            Ok(Vouched { proof, has, .. }) => {
                let promise = if is_of_blocks {
                    Message::PromiseBlocks { nonce, proof, has }
                } else {
                    Message::Promise { nonce, proof }
                };
                self.actions.push_back(Action::Send(peer, promise));
            }
            Err(why) => self.refuse(peer, nonce, why),
        }
    }

    /// Promises the packs in which blocks were found that were asked for.
    fn promise_all(&mut self, now: Time, packs: &[PackId], view: View<'_>) -> Result<(), Refused> {
        if packs.iter().any(|pack| self.attempts.contains_key(pack)) {
            return Err(Refused::Leaving);
        }
        if !packs.iter().all(|pack| self.is_here(pack, view)) {
            return Err(Refused::Lacking);
        }
        for pack in packs {
            self.promise(*pack, now + KEPT_FOR);
        }
        Ok(())
    }

    fn refuse(&mut self, peer: DeviceId, nonce: Nonce, why: Refused) {
        let refusal = Message::Refusal { nonce, why };
        self.actions.push_back(Action::Send(peer, refusal));
    }

    /// What came of giving a pack up.
    pub(crate) fn gave_up(&mut self, now: Time, pack: PackId, how: GaveUp) {
        let attempt = self.attempts.get(&pack);
        let Some(attempt) = attempt.filter(|attempt| attempt.is_decided) else {
            return;
        };
        if let GaveUp::False(devices) = &how {
            let is_whole = matches!(attempt.of, Of::Pack);
            for device in devices {
                // Of one that has shards it has not its own, and of one that was replaced not what replaces it.
                let said = match is_whole {
                    true => vec![pack],
                    false => self.kept_by(&pack, device),
                };
                let disproved = said.into_iter().map(|pack| Action::Disprove(pack, *device));
                self.actions.extend(disproved);
            }
        }
        self.is_over(now, pack);
    }

    /// The blocks of a pack that lie in no other here that stays; none if it is not to be given up by these.
    pub(crate) fn listed(
        &mut self,
        now: Time,
        pack: PackId,
        digests: Option<Vec<Digest>>,
        keeper: &Keeper,
        view: View<'_>,
    ) {
        let Some(attempt) = self.attempts.get_mut(&pack) else {
            return;
        };
        if !matches!(attempt.of, Of::Listing) {
            return;
        }
        let digests = digests.filter(|list| !list.is_empty() && list.len() <= BLOCKS_MAX);
        let kept_by = keeper.surplus(&pack, view).map(|of| of.kept_by());
        let there = |devices: &BTreeSet<DeviceId>| devices.is_subset(view.connected);
        let (Some(digests), Some(kept_by)) = (digests, kept_by.filter(there)) else {
            self.is_over(now, pack);
            return;
        };
        let digests: Arc<[Digest]> = digests.into();
        attempt.of = Of::Blocks(Arc::clone(&digests));
        for device in kept_by {
            let nonce = self.rng.bytes();
            let digests = Arc::clone(&digests);
            let ask = Message::AskBlocks { nonce, digests };
            self.actions.push_back(Action::Send(device, ask));
            let answer = None;
            attempt.asked.insert(device, Asked { nonce, answer });
        }
    }

    /// An attempt came to nothing, or to an end.
    fn is_over(&mut self, now: Time, pack: PackId) {
        self.attempts.remove(&pack);
        if let Some(candidate) = self.candidates.get_mut(&pack) {
            let pause = Span(RETRY_FIRST.0 << candidate.tries.min(6));
            let due = now + pause.min(RETRY_MAX);
            candidate.tries = candidate.tries.saturating_add(1);
            candidate.due = Some(due);
            self.due.insert((due, pack));
        }
    }

    /// Does what is due.
    pub(crate) fn work(&mut self, now: Time, keeper: &Keeper, view: View<'_>) {
        self.forget_ended(now);
        self.unsure_until = self.unsure_until.filter(|until| *until > now);
        while self.proving.len() < PROOFS_MAX
            && let Some(Waiting { peer, nonce, wish }) = self.waiting.pop_front()
        {
            let Entry::Vacant(place) = self.proving.entry((peer, nonce)) else {
                continue;
            };
            place.insert(matches!(wish, Wish::Blocks(_)));
            let until = match &wish {
                Wish::Pack(pack) => self.given.get(pack).copied(),
                Wish::Blocks(_) => None,
            };
            self.actions.push_back(Action::Vouch(Vouch {
                wish,
                until: until.unwrap_or(now + KEPT_FOR),
                challenge: Challenge {
                    nonce,
                    holder: self.me,
                    asker: peer,
                },
            }));
        }
        self.decide(now, keeper, view);
        for _ in 0..LOOK_MAX {
            let next = self.due.first().copied().filter(|(due, _)| *due <= now);
            let Some((due, pack)) = next.filter(|_| self.attempts.len() < ATTEMPTS_MAX) else {
                break;
            };
            self.due.remove(&(due, pack));
            self.begin(now, pack, keeper, view);
        }
    }

    /// Decides on those that all have promised, and ends those that take too long.
    fn decide(&mut self, now: Time, keeper: &Keeper, view: View<'_>) {
        let open = self.attempts.iter().filter(|(_, of)| !of.is_decided);
        for pack in open.map(|(pack, _)| *pack).collect::<Vec<_>>() {
            let Some(attempt) = self.attempts.get_mut(&pack) else {
                continue;
            };
            let answers: Option<Vec<_>> = attempt
                .asked
                .iter()
                .map(|(holder, asked)| {
                    let challenge = Challenge {
                        nonce: asked.nonce,
                        holder: *holder,
                        asker: self.me,
                    };
                    let (proof, has) = asked.answer.clone()?;
                    Some(((challenge, proof), has))
                })
                .collect();
            let answers = answers.filter(|_| !matches!(attempt.of, Of::Listing));
            let Some(answers) = answers else {
                if now.since(attempt.began) >= ANSWER_WAIT {
                    self.is_over(now, pack);
                }
                continue;
            };
            let surplus = keeper.surplus(&pack, view).filter(|surplus| {
                let asked = |device| attempt.asked.contains_key(device);
                surplus.kept_by().iter().all(asked)
                    && now.since(attempt.began) <= USED_FOR
                    && self.unsure_until.is_none()
                    && !self.given.contains_key(&pack)
            });
            let (proofs, has) = answers.into_iter().unzip();
            let how = match (surplus, &attempt.of) {
                (Some(Surplus::Kept { at_once: true, .. }), Of::Pack) => Giving::AtOnce,
                (Some(Surplus::Kept { .. }), Of::Pack) => Giving::Slowly,
                // Each was asked for the shard that it had then.
                (Some(Surplus::Coded(shards)), Of::Shards) if shards.kept == attempt.kept => {
                    Giving::Coded(shards)
                }
                (Some(Surplus::Replaced(kept)), Of::Blocks(digests)) => {
                    attempt.kept.clone_from(&kept);
                    let digests = Arc::clone(digests);
                    Giving::Replaced(Replaced { digests, has, kept })
                }
                (Some(Surplus::Spent), Of::Nothing) => Giving::Spent,
                // It was replaced meanwhile, or is to be kept again.
                _ => {
                    self.is_over(now, pack);
                    continue;
                }
            };
            attempt.is_decided = true;
            let give_up = GiveUp { pack, proofs, how };
            self.actions.push_back(Action::GiveUp(give_up));
        }
    }

    /// Asks those who should keep a pack, or what replaces it, if all are there.
    fn begin(&mut self, now: Time, pack: PackId, keeper: &Keeper, view: View<'_>) {
        let Some(candidate) = self.candidates.get_mut(&pack) else {
            return;
        };
        let held_back = self.given.get(&pack).copied().max(self.unsure_until);
        let surplus = keeper
            .surplus(&pack, view)
            .filter(|surplus| held_back.is_none() && surplus.kept_by().is_subset(view.connected));
        let Some(surplus) = surplus else {
            let due = held_back.unwrap_or(now + RETRY_FIRST);
            candidate.due = Some(due);
            self.due.insert((due, pack));
            return;
        };
        candidate.due = None;
        if cfg!(planted = "drop-without-promise") {
            self.actions.push_back(Action::GiveUp(GiveUp {
                pack,
                proofs: Vec::new(),
                how: Giving::Slowly,
            }));
            return;
        }
        let mut asked = BTreeMap::new();
        let mut ask = |device: DeviceId, pack: PackId| {
            let nonce = self.rng.bytes();
            let ask = Message::Ask { nonce, pack };
            self.actions.push_back(Action::Send(device, ask));
            let answer = None;
            asked.insert(device, Asked { nonce, answer });
        };
        let (of, kept) = match surplus {
            Surplus::Kept { by, .. } => {
                by.into_iter().for_each(|device| ask(device, pack));
                (Of::Pack, Vec::new())
            }
            Surplus::Coded(ShardsKept { kept, .. }) => {
                for shard in &kept {
                    let devices = shard.devices.iter();
                    devices.for_each(|device| ask(*device, shard.pack));
                }
                (Of::Shards, kept)
            }
            Surplus::Replaced(_) => {
                self.actions.push_back(Action::List(pack));
                (Of::Listing, Vec::new())
            }
            Surplus::Spent => (Of::Nothing, Vec::new()),
        };
        let attempt = Attempt {
            began: now,
            of,
            asked,
            kept,
            is_decided: false,
        };
        self.attempts.insert(pack, attempt);
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, now: Time) -> Option<Time> {
        let open = self.attempts.values().filter(|of| !of.is_decided);
        let ends = open.map(|attempt| attempt.began + ANSWER_WAIT).min();
        let next = self
            .due
            .first()
            .map(|(due, _)| (*due).max(now + LOOK_PAUSE));
        let next = next.filter(|_| self.attempts.len() < ATTEMPTS_MAX);
        ends.into_iter().chain(next).min()
    }

    /// Laws that hold between any two inputs.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check_invariants(&self) {
        assert!(self.attempts.len() <= ATTEMPTS_MAX, "attempts are bounded");
        assert!(self.waiting.len() <= WAITING_MAX, "asks are bounded");
        let blocks: usize = self.waiting.iter().map(|of| of.wish.blocks()).sum();
        assert!(blocks <= WAITING_BLOCKS_MAX, "and what they ask for");
        assert!(self.proving.len() <= PROOFS_MAX, "proofs are bounded");
        assert_eq!(self.ends.len(), self.given.len(), "each promise ends");
        assert!(
            self.attempts
                .iter()
                .all(|(pack, of)| of.is_decided || !self.given.contains_key(pack)),
            "who has promised asks nobody to keep it instead"
        );
        assert!(
            self.attempts.iter().all(|(pack, of)| {
                of.is_decided || self.candidates.get(pack).is_some_and(|of| of.due.is_none())
            }),
            "only what is too many is given up"
        );
        let due = self.candidates.iter();
        let due = due.filter_map(|(pack, of)| Some((of.due?, *pack)));
        assert!(
            due.collect::<BTreeSet<_>>() == self.due,
            "what is too many is looked at"
        );
    }
}

#[cfg(test)]
mod tests;
