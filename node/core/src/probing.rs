//! Has others show, from time to time, that they hold what they say they hold.
//!
//! Spec: `protocol/spec/promises.md`, "Samples".

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, PackId};
use kith_object::key::Rng;
use kith_object::time::{Span, Time};
use kith_protocol::bulk::get::GROUP_BYTES;
use kith_protocol::holdings::HoldingTag;

use crate::keeper::View;

/// Between two rounds with a device.
const EVERY: Span = Span::from_secs(4 * 3600);
/// After a device came, until the first; others ask it too, so not all at once.
const FIRST: Span = Span::from_secs(60);
const FIRST_SPREAD: Span = Span::from_secs(540);
/// The same where it was due before it went.
const RETURNED: Span = Span::from_secs(10);
/// Packs that a device is asked about in a round.
const SAMPLE: u8 = 4;
/// Between two of these.
const BETWEEN: Span = Span::from_secs(2);
/// Until one that failed is asked for again: the connection may have been at fault.
const AGAIN: Span = Span::from_secs(60);
/// Packs that are looked at for those that a device holds.
const LOOKS: usize = 512;
/// Found ones of which one is taken.
const CHOICES: usize = 16;
/// At a time, of all devices.
const UNDER_WAY_MAX: usize = 2;
/// Of that many answers of a device so many are false, and none of its copies counts.
const REMEMBERED: usize = 8;
const FALSE_MAX: usize = 3;

/// A range of a pack to be had from a device, with the hashes that prove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// From whom.
    pub device: DeviceId,
    /// Of which pack.
    pub pack: PackId,
    /// The length of the pack.
    pub bytes: u64,
    /// Where the range begins; it is a chunk group, or what is left of the pack.
    pub offset: u64,
}

/// What came of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// The range, and it is of that pack.
    Sound,
    /// Something else, or that the pack is not there.
    False,
    /// Nothing: the device was not reached, or went.
    Nothing,
}

/// What is known of a device's answers.
#[derive(Debug)]
struct Peer {
    due: Time,
    /// Still to be asked about in this round.
    left: u8,
    /// Failed once.
    again: Option<PackId>,
    /// The last answers, the youngest last; whether each was sound.
    answers: Vec<bool>,
}

/// What to make of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether the copy exists.
    pub(crate) is_there: bool,
    /// Whether anything the device says it holds counts.
    pub(crate) is_trusted: bool,
}

/// When to ask whom for what.
#[derive(Debug)]
pub(crate) struct Probing {
    rng: Rng,
    peers: BTreeMap<DeviceId, Peer>,
    /// Those that are connected, by when they are due.
    order: BTreeSet<(Time, DeviceId)>,
    under_way: BTreeSet<(DeviceId, PackId)>,
}

impl Probing {
    /// Of a device that has asked nobody.
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            peers: BTreeMap::new(),
            order: BTreeSet::new(),
            under_way: BTreeSet::new(),
        }
    }

    /// A device came.
    pub(crate) fn peer_up(&mut self, now: Time, device: DeviceId) {
        let first = now + FIRST + Span(self.rng.below(FIRST_SPREAD.0));
        let peer = self.peers.entry(device).or_insert_with(|| Peer {
            due: first,
            left: SAMPLE,
            again: None,
            answers: Vec::new(),
        });
        // Not put off by much: who comes and goes all the time is asked too.
        let due = peer.due.max(now + RETURNED);
        self.order.remove(&(peer.due, device));
        self.order.insert((due, device));
        peer.due = due;
    }

    /// A device went.
    pub(crate) fn peer_down(&mut self, device: DeviceId) {
        if let Some(peer) = self.peers.get(&device) {
            self.order.remove(&(peer.due, device));
        }
    }

    /// Forgets who does not belong any more.
    pub(crate) fn keep(&mut self, belongs: impl Fn(&DeviceId) -> bool) {
        self.peers.retain(|device, _| belongs(device));
        let peers = &self.peers;
        self.order.retain(|(_, device)| peers.contains_key(device));
    }

    /// Puts a device off until then, if it is connected.
    fn put_off(&mut self, device: DeviceId, due: Time) {
        if let Some(peer) = self.peers.get_mut(&device) {
            if self.order.remove(&(peer.due, device)) {
                self.order.insert((due, device));
            }
            peer.due = due;
        }
    }

    /// What to ask for now.
    pub(crate) fn work(&mut self, now: Time, view: View<'_>) -> Vec<Probe> {
        let mut probes = Vec::new();
        while self.under_way.len() < UNDER_WAY_MAX
            && let Some((_, device)) = self.order.first().copied().filter(|(due, _)| *due <= now)
        {
            self.put_off(device, now + EVERY);
            let Some(peer) = self.peers.get_mut(&device) else {
                continue;
            };
            let failed = peer.again.and_then(|pack| holds(&pack, &device, view));
            let sample = failed.or_else(|| {
                peer.again = None;
                sample(&mut self.rng, &device, view)
            });
            let Some((pack, bytes)) = sample else {
                continue;
            };
            peer.left = peer.left.saturating_sub(1);
            if self.under_way.insert((device, pack)) {
                let groups = bytes.div_ceil(GROUP_BYTES).max(1);
                probes.push(Probe {
                    device,
                    pack,
                    bytes,
                    offset: self.rng.below(groups) * GROUP_BYTES,
                });
            }
        }
        probes
    }

    /// What came of asking; none if nothing is to be made of it yet.
    pub(crate) fn probed(
        &mut self,
        now: Time,
        device: DeviceId,
        pack: PackId,
        how: Probed,
    ) -> Option<Verdict> {
        if !self.under_way.remove(&(device, pack)) {
            return None;
        }
        let peer = self.peers.get_mut(&device)?;
        let was_again = peer.again.take() == Some(pack);
        if how == Probed::False && !was_again {
            peer.again = Some(pack);
            peer.left += 1;
            self.put_off(device, now + AGAIN);
            return None;
        }
        if peer.left > 0 {
            self.put_off(device, now + BETWEEN);
        } else {
            peer.left = SAMPLE;
        }
        match how {
            Probed::Nothing => None,
            Probed::Sound => self.note(&device, true),
            Probed::False => self.note(&device, false),
        }
    }

    /// An answer that came some other way.
    pub(crate) fn note(&mut self, device: &DeviceId, is_there: bool) -> Option<Verdict> {
        let peer = self.peers.get_mut(device)?;
        peer.answers.push(is_there);
        let surplus = peer.answers.len().saturating_sub(REMEMBERED);
        peer.answers.drain(..surplus);
        let false_ones = peer.answers.iter().filter(|sound| !**sound).count();
        Some(Verdict {
            is_there,
            is_trusted: false_ones < FALSE_MAX,
        })
    }

    /// When something is due next.
    pub(crate) fn next_due(&self) -> Option<Time> {
        let next = self.order.first().map(|(due, _)| *due);
        next.filter(|_| self.under_way.len() < UNDER_WAY_MAX)
    }

    /// Laws that hold between any two inputs.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check_invariants(&self) {
        assert!(
            self.under_way.len() <= UNDER_WAY_MAX,
            "what is asked for is bounded"
        );
        assert!(
            self.peers.values().all(|of| of.answers.len() <= REMEMBERED),
            "what is remembered is bounded"
        );
        assert!(
            self.order
                .iter()
                .all(|(due, device)| { self.peers.get(device).is_some_and(|of| of.due == *due) }),
            "each is asked when it is due"
        );
    }
}

/// A pack and its length, if the device says that it holds it.
fn holds(pack: &PackId, device: &DeviceId, view: View<'_>) -> Option<(PackId, u64)> {
    let held = view.holdings.of(device)?;
    let (_, bytes) = view.packs.stands(pack, view.access)?;
    held.contains(HoldingTag::from(*pack))
        .then_some((*pack, bytes))
}

/// A pack that a device says it holds, by chance, and its length.
fn sample(rng: &mut Rng, device: &DeviceId, view: View<'_>) -> Option<(PackId, u64)> {
    let from = PackId(rng.bytes());
    // Round the end, once, and no pack twice.
    let round = view.packs.from(from);
    let round = round.chain(view.packs.from(PackId::default()));
    let round = round.take(LOOKS.min(view.packs.len()));
    let held = round.filter_map(|pack| holds(&pack, device, view));
    let held: Vec<(PackId, u64)> = held.take(CHOICES).collect();
    // The first alone would hardly ever be one whose name follows closely on that of another.
    let at = usize::try_from(rng.below(held.len().max(1) as u64)).ok()?;
    held.get(at).copied()
}
