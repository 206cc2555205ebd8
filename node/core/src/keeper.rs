//! What this device should hold, and gets; and how well what there is is kept.
//!
//! Spec: `protocol/spec/upkeep.md`, "Keeping".

mod coded;

use std::collections::{BTreeMap, BTreeSet};

pub use coded::{Shard, Way};

use kith_crdt::access::Access;
use kith_crdt::catalogue::Leaving;
use kith_object::coding::Coding;
use kith_object::id::{DeviceId, PackId};
use kith_object::time::{Span, Time};
use kith_protocol::holdings::{HoldingTag, Holdings};
use kith_protocol::placement::{Placement, Policy, Redundancy};

use crate::arrangement::{Giver, holders_of};
use crate::packs::{Packs, Stands};

/// Packs that are looked at in one go, and the pause between two: a few percent of a core while something changes.
const LOOK_MAX: usize = 128;
const LOOK_PAUSE: Span = Span::from_ms(20);
/// Packs that are found one by one when something changes about them; for more, all are looked at, a few at a time.
const FEW: usize = 1024;
/// How often it is judged who is gone.
const JUDGE: Span = Span::from_secs(60);
/// Packs that are fetched at a time.
pub const PULLS_MAX: usize = 2;
/// Pause after a pack did not come; doubles with each time.
const RETRY_FIRST: Span = Span::from_secs(60);
const RETRY_MAX: Span = Span::from_secs(3600);
/// How long the others leave a pack that one device has to the first of those who should hold it: then there are two to fetch it from.
const TURN: Span = Span::from_secs(120);
/// Pause of everything after this disk had no room.
const NO_ROOM_PAUSE: Span = Span::from_secs(600);
/// So many times over what replaces a pack is looked for where that was replaced too.
const REPLACED_DEEP: usize = 16;
/// And so many packs are looked at for that; a merge makes no more than a few.
const REPLACED_MAX: usize = 1024;
/// Devices that a pack is fetched from at once.
const SOURCES_MAX: usize = 4;
/// Copies that count but do not exist: so many are remembered, and so long.
const DISPROVED_MAX: usize = 65_536;
const DISPROVED_FOR: Span = Span::from_secs(86_400);
/// Fewer copies than that are not left elsewhere by a device that stays.
const LEFT_MIN: usize = 2;

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// The pack is here to stay.
    Came,
    /// It did not come, or was not what it should be.
    Failed,
    /// This disk has no room, or cannot be written.
    NoRoom,
    /// The pack of which it is to be a shard lies here and has others.
    Misnamed,
}

/// A pack to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// Which.
    pub pack: PackId,
    /// Its length.
    pub bytes: u64,
    /// How it is to be had.
    pub way: Way,
}

impl Pull {
    /// Bytes that others send for it.
    pub fn moves(&self) -> u64 {
        match &self.way {
            Way::Whole(_) => self.bytes,
            Way::Cut(_) => 0,
            Way::Restored { coding, from, .. } => {
                let sent = from.iter().filter(|(_, sources)| !sources.is_empty());
                sent.map(|(at, _)| coding.len(*at)).sum()
            }
        }
    }

    /// All who give something for it.
    pub fn sources(&self) -> BTreeSet<DeviceId> {
        match &self.way {
            Way::Whole(sources) => sources.iter().copied().collect(),
            Way::Cut(_) => BTreeSet::new(),
            Way::Restored { from, .. } => {
                let sources = from.iter().flat_map(|(_, sources)| sources);
                sources.copied().collect()
            }
        }
    }
}

/// How well packs are kept, as far as this device knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Packs that are to be kept.
    pub packs: usize,
    /// Of these, those with fewer copies than there should be.
    pub at_risk: usize,
    /// Those of which no holder is known, though not all devices have told what they hold.
    pub unheard: usize,
    /// Those that no device holds.
    pub lost: usize,
    /// Those that this device should hold and lacks.
    pub wanted: usize,
    /// Of these, those that nobody within reach has.
    pub out_of_reach: usize,
    /// Copies that there should be of each.
    pub copies: usize,
    /// Copies that are too many here, and go once those who should have them have proved that they do.
    pub surplus: usize,
    /// Copies that devices say they hold, and do not.
    pub disproved: usize,
    /// Devices of which so many do not exist that none counts.
    pub distrusted: usize,
    /// Whether this disk had no room the last time.
    pub no_room: bool,
    /// Whether something has changed and not all was looked at since.
    pub is_looking: bool,
}

/// What there is of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Devices that hold it.
    pub held: Vec<DeviceId>,
    /// Devices that should.
    pub placed: Vec<DeviceId>,
    /// Of those that hold it, such as will not be there for long, or are gone.
    pub leaving: Vec<DeviceId>,
    /// Copies that there should be.
    pub copies: usize,
    /// Counted copies of what it was replaced by.
    pub elsewhere: usize,
    /// Whether it is to be kept, or was replaced and there is enough of that.
    pub is_needed: bool,
}

impl Standing {
    /// Whether there is as much of it as there should be.
    pub fn is_kept(&self) -> bool {
        let counted = self.held.len().saturating_sub(self.leaving.len());
        !self.is_needed || counted.saturating_add(self.elsewhere) >= self.copies
    }
}

/// What is known of a pack that is not well kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weak {
    AtRisk,
    Unheard,
    Lost,
}

/// A pack that this device should hold.
#[derive(Debug, Clone, Copy)]
struct Want {
    bytes: u64,
    /// Devices that hold it.
    copies: usize,
    /// Whether one of those is connected.
    in_reach: bool,
    tries: u32,
    due: Time,
    /// It is left to another device first.
    is_left: bool,
}

/// A copy that is too many here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// Of a pack that is to be kept.
    Kept {
        /// Those who should keep it, and say that they do.
        by: Vec<DeviceId>,
        /// Whether it should not lie here at all.
        at_once: bool,
    },
    /// Of one that has shards.
    Coded(ShardsKept),
    /// Of one that was replaced.
    Replaced(Vec<KeptBy>),
    /// Parity of what nobody holds any more.
    Spent,
}

/// The shards of a pack, and who should keep those that do not lie here, and says that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardsKept {
    /// All of them.
    pub coding: Coding,
    /// Those that lie elsewhere, each with one device, no two with the same.
    pub kept: Vec<KeptBy>,
}

/// A pack and all who should keep it, and say that they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBy {
    /// Which.
    pub pack: PackId,
    /// Who.
    pub devices: Vec<DeviceId>,
}

impl Surplus {
    /// All who are to be asked.
    pub(crate) fn kept_by(&self) -> BTreeSet<DeviceId> {
        match self {
            Self::Kept { by, .. } => by.iter().copied().collect(),
            Self::Coded(ShardsKept { kept: by, .. }) | Self::Replaced(by) => {
                by.iter().flat_map(|kept| &kept.devices).copied().collect()
            }
            Self::Spent => BTreeSet::new(),
        }
    }
}

/// What the rest of the device knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) access: &'a Access,
    pub(crate) packs: &'a Packs,
    pub(crate) holdings: &'a Holdings,
    pub(crate) connected: &'a BTreeSet<DeviceId>,
}

/// Decides what to fetch, and judges what there is.
#[derive(Debug)]
pub struct Keeper {
    me: DeviceId,
    started: Time,
    givers: BTreeMap<DeviceId, Giver>,
    policy: Policy,
    /// Devices whose copies count for nothing: gone, or leaving.
    uncounted: BTreeSet<DeviceId>,
    placement: Option<Placement>,
    judge_due: Option<Time>,
    /// Where the round through all packs is.
    round: Option<PackId>,
    /// Packs to be looked at besides.
    changed: BTreeSet<PackId>,
    look_due: Option<Time>,
    live: BTreeSet<PackId>,
    weak: BTreeMap<PackId, Weak>,
    wants: BTreeMap<PackId, Want>,
    /// Those of them that are in reach, the most endangered first.
    ready: BTreeSet<(usize, PackId)>,
    /// Those that did not come, until they are tried again.
    later: BTreeSet<(Time, PackId)>,
    pulling: BTreeSet<PackId>,
    no_room_until: Option<Time>,
    /// Copies that are too many here.
    surplus: BTreeSet<PackId>,
    /// Packs of which that has changed.
    turned: Vec<(PackId, bool)>,
    /// Copies that do not exist, whatever their device says; since when that is known.
    disproved: BTreeMap<(PackId, DeviceId), Time>,
    /// Devices of which so many do not that none counts.
    distrusted: BTreeSet<DeviceId>,
}

impl Keeper {
    /// Of a device that knows nothing yet.
    pub(crate) fn new(me: DeviceId, started: Time) -> Self {
        Self {
            me,
            started,
            givers: BTreeMap::new(),
            policy: Policy::default(),
            uncounted: BTreeSet::new(),
            placement: None,
            judge_due: None,
            round: None,
            changed: BTreeSet::new(),
            look_due: None,
            live: BTreeSet::new(),
            weak: BTreeMap::new(),
            wants: BTreeMap::new(),
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            pulling: BTreeSet::new(),
            no_room_until: None,
            surplus: BTreeSet::new(),
            turned: Vec::new(),
            disproved: BTreeMap::new(),
            distrusted: BTreeSet::new(),
        }
    }

    /// What is wanted of whom has changed, or who belongs.
    pub(crate) fn arrange(
        &mut self,
        now: Time,
        givers: BTreeMap<DeviceId, Giver>,
        policy: Policy,
        view: View<'_>,
    ) {
        self.givers = givers;
        self.policy = policy;
        self.judge(now, view, true);
    }

    /// Something was said of these packs.
    pub(crate) fn packs_changed(&mut self, now: Time, changed: BTreeSet<PackId>, packs: &Packs) {
        if !changed.is_empty() {
            self.judge_due.get_or_insert(now);
            // At a start all are new.
            match packs.with_replaced(changed, FEW) {
                Some(mut concerned) => {
                    self.changed.append(&mut concerned);
                    self.look_soon(now);
                }
                None => self.look_at_all(now),
            }
        }
    }

    /// A device came to hold these, or holds them no more.
    pub(crate) fn holdings_changed(
        &mut self,
        now: Time,
        device: &DeviceId,
        tags: &[HoldingTag],
        packs: &Packs,
    ) {
        if !self.disproved.is_empty() {
            // Whatever was found out before.
            let tags: BTreeSet<&HoldingTag> = tags.iter().collect();
            self.disproved
                .retain(|(pack, of), _| of != device || !tags.contains(&HoldingTag::from(*pack)));
        }
        if tags.len() > FEW {
            self.look_at_all(now);
            return;
        }
        for tag in tags {
            let mut first = [0; 32];
            if let Some(start) = first.first_chunk_mut() {
                *start = tag.0.to_be_bytes();
            }
            let named = packs.from(PackId(first));
            let named = named.take_while(|pack| HoldingTag::from(*pack) == *tag);
            match packs.with_replaced(named.collect(), FEW) {
                Some(mut concerned) => self.changed.append(&mut concerned),
                None => return self.look_at_all(now),
            }
        }
        if !tags.is_empty() {
            self.look_soon(now);
        }
    }

    /// A device came or went: what is wanted here may be in reach now, or no more, and shards that are nowhere may be for this device to make.
    pub(crate) fn reach_changed(&mut self, now: Time) {
        self.judge_due = self.judge_due.map(|due| due.min(now));
        let concerned = self.wants.keys().chain(self.weak.keys());
        if self.wants.len() + self.weak.len() > FEW {
            self.look_at_all(now);
        } else if !self.weak.is_empty() || !self.wants.is_empty() {
            self.changed.extend(concerned);
            self.look_soon(now);
        }
    }

    /// A fetch ended.
    pub(crate) fn pulled(&mut self, now: Time, pack: PackId, how: Pulled) {
        if !self.pulling.remove(&pack) {
            return;
        }
        match how {
            Pulled::Came => self.no_room_until = None,
            Pulled::NoRoom => self.no_room_until = Some(now + NO_ROOM_PAUSE),
            Pulled::Failed | Pulled::Misnamed => {}
        }
        if let Some(want) = self.wants.get_mut(&pack) {
            // What came is known to be here only once its holding was told.
            let pause = Span(RETRY_FIRST.0 << want.tries.min(6));
            want.due = now + pause.min(RETRY_MAX);
            want.tries = want.tries.saturating_add(1);
            want.is_left = false;
        }
        self.changed.insert(pack);
        self.look_soon(now);
    }

    /// A device that says it holds a pack does not.
    pub(crate) fn disprove(&mut self, now: Time, pack: PackId, device: DeviceId) {
        if device != self.me && self.disproved.len() < DISPROVED_MAX {
            self.disproved.insert((pack, device), now);
            self.changed.insert(pack);
            self.look_soon(now);
        }
    }

    /// It does after all.
    pub(crate) fn prove(&mut self, now: Time, pack: PackId, device: DeviceId) {
        if self.disproved.remove(&(pack, device)).is_some() {
            self.changed.insert(pack);
            self.look_soon(now);
        }
    }

    /// Whether the copies of a device count is to be judged anew: many do not exist, or they do again.
    pub(crate) fn trust(&mut self, now: Time, device: DeviceId, is_trusted: bool) {
        let turned = if is_trusted {
            self.distrusted.remove(&device)
        } else {
            device != self.me && self.distrusted.insert(device)
        };
        if turned {
            self.judge_due = Some(now);
        }
    }

    /// Packs of which there came to be a copy too many here, or no more.
    pub(crate) fn take_turned(&mut self) -> Vec<(PackId, bool)> {
        std::mem::take(&mut self.turned)
    }

    /// Does what is due; returns what to fetch.
    pub(crate) fn work(&mut self, now: Time, view: View<'_>) -> Vec<Pull> {
        if self.judge_due.is_some_and(|due| due <= now) {
            self.judge(now, view, false);
        }
        if self.look_due.is_some_and(|due| due <= now) {
            self.look(now, view);
        }
        self.next_pulls(now, view)
    }

    /// When something is due next.
    pub(crate) fn next_due(&self) -> Option<Time> {
        let retry = self.later.first().map(|(due, _)| *due);
        let retry = retry.filter(|_| self.pulling.len() < PULLS_MAX);
        let rested = self.no_room_until.unwrap_or_default();
        let retry = retry.map(|due| due.max(rested));
        let rest = self.no_room_until.filter(|_| !self.ready.is_empty());
        [self.judge_due, self.look_due, retry, rest]
            .into_iter()
            .flatten()
            .min()
    }

    /// How well packs are kept.
    pub fn health(&self, now: Time) -> Health {
        let weak = |kind| self.weak.values().filter(|weak| **weak == kind).count();
        Health {
            packs: self.live.len(),
            at_risk: weak(Weak::AtRisk),
            unheard: weak(Weak::Unheard),
            lost: weak(Weak::Lost),
            wanted: self.wants.len(),
            out_of_reach: self.wants.values().filter(|want| !want.in_reach).count(),
            copies: self.copies(),
            surplus: self.surplus.len(),
            disproved: self.disproved.len(),
            distrusted: self.distrusted.len(),
            no_room: self.no_room_until.is_some_and(|until| until > now),
            is_looking: self.look_due.is_some(),
        }
    }

    /// What each device gives.
    pub fn givers(&self) -> &BTreeMap<DeviceId, Giver> {
        &self.givers
    }

    /// Devices whose copies count for nothing: gone, or leaving.
    pub fn uncounted(&self) -> &BTreeSet<DeviceId> {
        &self.uncounted
    }

    /// How packs are to be kept, by the devices that are there.
    pub fn redundancy(&self) -> Option<Redundancy> {
        self.placement.as_ref().map(Placement::redundancy)
    }

    /// What there is of a pack.
    pub(crate) fn standing(&self, pack: &PackId, view: View<'_>) -> Standing {
        let held: Vec<DeviceId> = self.holders(pack, view).collect();
        let leaving = held
            .iter()
            .filter(|device| self.uncounted.contains(*device));
        let needed = self.needed(pack, view);
        Standing {
            elsewhere: needed.map_or(0, |(_, elsewhere)| elsewhere),
            // What the catalogue does not know yet is to be kept as well.
            is_needed: needed.is_some() || view.packs.stands(pack, view.access).is_none(),
            leaving: leaving.copied().collect(),
            placed: self.placed(pack, view),
            copies: self.copies_of(pack, view),
            held,
        }
    }

    /// Whether this device's copy of a pack is too many.
    pub(crate) fn surplus(&self, pack: &PackId, view: View<'_>) -> Option<Surplus> {
        let own = view.holdings.of(&self.me)?;
        if !own.contains(HoldingTag::from(*pack)) {
            return None;
        }
        let shard = view.packs.shard_of(pack, view.access);
        let is_live = view.packs.live(pack, view.access).is_some();
        if !is_live || shard.is_some_and(|shard| !shard.stands) {
            if self.needed(pack, view).is_some() {
                return None;
            }
            return match view.packs.parity_of(pack) {
                Some(_) => Some(Surplus::Spent),
                None => self.replaced(pack, view).map(Surplus::Replaced),
            };
        }
        if let Some(coded) = view.packs.coded(pack, view.access) {
            return self.shards_kept(coded, view).map(Surplus::Coded);
        }
        let by = self.kept_elsewhere(pack, view)?;
        let me = self.givers.get(&self.me)?;
        let at_once = drains(me) || self.is_foreign(me);
        Some(Surplus::Kept { by, at_once })
    }

    /// All who should have a pack, if this device should not, they say that they do, and are as many, and at as many sites, as the policy wants. A device that is to be emptied waits for all there are, and no more.
    fn kept_elsewhere(&self, pack: &PackId, view: View<'_>) -> Option<Vec<DeviceId>> {
        let placement = self.placement.as_ref()?;
        let me = self.givers.get(&self.me)?;
        let holds = |device: &DeviceId| self.holders(pack, view).any(|holder| holder == *device);
        let kept_by = self.placed(pack, view);
        let all_hold = kept_by.iter().all(holds) || cfg!(planted = "drop-without-promise");
        if kept_by.contains(&self.me) || !all_hold {
            return None;
        }
        let sites = kept_by
            .iter()
            .filter_map(|of| Some(&self.givers.get(of)?.site));
        let sites = sites.collect::<BTreeSet<_>>().len();
        if view.packs.shard_of(pack, view.access).is_some() {
            // Of each there is one copy, and others restore it.
            return (!kept_by.is_empty()).then_some(kept_by);
        }
        let wanted = placement.redundancy().spare() + 1;
        let is_enough = kept_by.len() >= wanted && sites >= self.policy.min_sites;
        let may_go = drains(me) && !kept_by.is_empty()
            || is_enough && (self.is_foreign(me) || kept_by.len() >= LEFT_MIN);
        may_go.then_some(kept_by)
    }

    /// Whether the policy wants nothing at the site of that device.
    fn is_foreign(&self, giver: &Giver) -> bool {
        let sites = self.policy.sites.as_ref();
        sites.is_some_and(|sites| !sites.contains(&giver.site))
    }

    /// Who keeps all that a pack was replaced by, if there is enough of it, and something of it does not lie here.
    fn replaced(&self, pack: &PackId, view: View<'_>) -> Option<Vec<KeptBy>> {
        let own = view.holdings.of(&self.me)?;
        let mut kept = BTreeMap::new();
        let mut looks = REPLACED_MAX;
        let replacements = |pack: &PackId| -> Option<Vec<PackId>> {
            let other = view.packs.shard_of(pack, view.access);
            let other = other.filter(|shard| !shard.stands);
            let of = other.map(|shard| shard.coded.coding.pack);
            let whole = of.or(Some(*pack).filter(|pack| self.is_in_shards(pack, view)));
            if let Some(whole) = whole {
                return Some(match view.packs.coded(&whole, view.access) {
                    Some(coded) => coded.coding.data.iter().map(|shard| shard.id).collect(),
                    None => vec![whole],
                });
            }
            Some(view.packs.replaced_whole(pack, view.access)?.to_vec())
        };
        let mut todo: Vec<(PackId, usize)> =
            replacements(pack)?.into_iter().map(|of| (of, 0)).collect();
        while let Some((pack, deep)) = todo.pop() {
            looks = looks.checked_sub(1)?;
            let is_live = view.packs.live(&pack, view.access).is_some();
            if !is_live || self.is_in_shards(&pack, view) {
                let further = replacements(&pack)?;
                let deep = Some(deep + 1).filter(|deep| *deep <= REPLACED_DEEP)?;
                todo.extend(further.into_iter().map(|of| (of, deep)));
            } else if self.placed(&pack, view).contains(&self.me) {
                // What comes here in time says all.
                own.contains(HoldingTag::from(pack)).then_some(())?;
            } else {
                kept.insert(pack, self.kept_elsewhere(&pack, view)?);
            }
        }
        let kept = kept.into_iter();
        let kept: Vec<KeptBy> = kept
            .map(|(pack, devices)| KeptBy { pack, devices })
            .collect();
        (!kept.is_empty()).then_some(kept)
    }

    /// Laws that hold between any two inputs.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn check_invariants(&self) {
        assert!(
            self.disproved.len() <= DISPROVED_MAX,
            "what is remembered of copies is bounded"
        );
        assert!(self.pulling.len() <= PULLS_MAX, "fetches are bounded");
        assert!(
            self.weak.keys().all(|pack| self.live.contains(pack))
                && self.wants.keys().all(|pack| self.live.contains(pack)),
            "only what is to be kept is cared for"
        );
        assert!(
            self.ready.iter().all(|(copies, pack)| {
                let want = self.wants.get(pack);
                want.is_some_and(|want| want.in_reach && want.copies == *copies)
                    && !self.pulling.contains(pack)
            }),
            "only what is wanted and in reach is fetched"
        );
        assert!(
            self.later.iter().all(|(due, pack)| {
                let want = self.wants.get(pack);
                want.is_some_and(|want| want.due == *due) && !self.pulling.contains(pack)
            }),
            "only what is wanted is tried again"
        );
        assert_eq!(
            self.look_due.is_some(),
            self.round.is_some() || !self.changed.is_empty(),
            "what has changed is looked at"
        );
    }

    /// Whole copies of a pack that survive as many failures as the policy wants.
    fn copies(&self) -> usize {
        self.placement.as_ref().map_or(1, |placement| {
            (placement.redundancy().spare() + 1).min(placement.len())
        })
    }

    /// Copies that there should be of a pack: of a shard one, others restore it.
    fn copies_of(&self, pack: &PackId, view: View<'_>) -> usize {
        match view.packs.shard_of(pack, view.access) {
            Some(_) => 1,
            None => self.copies(),
        }
    }

    /// Who should hold a pack.
    fn placed(&self, pack: &PackId, view: View<'_>) -> Vec<DeviceId> {
        if let Some(shard) = view.packs.shard_of(pack, view.access) {
            return self.shard_place(shard, view).into_iter().collect();
        }
        let Some(placement) = &self.placement else {
            return Vec::new();
        };
        let mut placed = placement.holders(pack);
        placed.truncate(self.copies());
        placed
    }

    /// Begins a round through all packs.
    fn look_at_all(&mut self, now: Time) {
        self.round = Some(PackId::default());
        self.look_soon(now);
    }

    fn look_soon(&mut self, now: Time) {
        self.look_due.get_or_insert(now);
    }

    /// Judges who is gone, and places anew if that has changed.
    fn judge(&mut self, now: Time, view: View<'_>, anew: bool) {
        let uncounted: BTreeSet<DeviceId> = self
            .givers
            .iter()
            .filter(|(device, giver)| !self.counts(device, giver, now, view))
            .map(|(device, _)| *device)
            .collect();
        if uncounted != self.uncounted || anew {
            self.uncounted = uncounted;
            let there = self
                .givers
                .iter()
                .filter(|(device, _)| !self.uncounted.contains(*device));
            self.placement = Placement::as_far_as_possible(&holders_of(there), &self.policy).ok();
            self.look_at_all(now);
        }
        let disproved = self.disproved.iter();
        let old = disproved.filter(|(_, since)| now.since(**since) >= DISPROVED_FOR);
        for (pack, device) in old.map(|(of, _)| *of).collect::<Vec<_>>() {
            self.disproved.remove(&(pack, device));
            self.changed.insert(pack);
            self.look_soon(now);
        }
        self.judge_due = Some(self.next_judgement(now, view)).filter(|_| !self.is_idle());
    }

    /// Whether there is nothing to judge for: no pack, and nobody who gives room.
    fn is_idle(&self) -> bool {
        self.placement.is_none() && self.live.is_empty()
    }

    /// When the next device may count as gone, if it stays silent.
    fn next_judgement(&self, now: Time, view: View<'_>) -> Time {
        let silent = self
            .givers
            .iter()
            .filter(|(device, _)| **device != self.me && !view.connected.contains(*device));
        let ends = silent.map(|(device, giver)| {
            let heard = view.holdings.heard(device).unwrap_or(self.started);
            heard + giver.grace + Span::from_ms(1)
        });
        let next = ends.filter(|end| *end > now).min();
        let latest = now + JUDGE;
        next.map_or(latest, |next| next.min(latest))
    }

    /// Whether the copies of a device count: it is there, or will be again, and stays.
    fn counts(&self, device: &DeviceId, giver: &Giver, now: Time, view: View<'_>) -> bool {
        if self.distrusted.contains(device) {
            return false;
        }
        let is_here = *device == self.me || view.connected.contains(device);
        let heard = view.holdings.heard(device);
        match giver.leaving {
            (Leaving::Drains, _) => false,
            (Leaving::Lost, said) => {
                *device == self.me || heard.is_some_and(|heard| heard > said.time())
            }
            // Of whom nothing was ever heard, one waits as long as of others from the start on.
            (Leaving::Stays, _) => {
                is_here || now.since(heard.unwrap_or(self.started)) <= giver.grace
            }
        }
    }

    /// Looks at some packs.
    fn look(&mut self, now: Time, view: View<'_>) {
        for _ in 0..LOOK_MAX {
            if let Some(pack) = self.changed.pop_first() {
                self.consider(now, pack, view);
                continue;
            }
            let Some(from) = self.round else { break };
            let mut rest = view.packs.from(from);
            let next = rest.next();
            self.round = rest.next();
            drop(rest);
            if let Some(pack) = next {
                self.consider(now, pack, view);
            }
            if self.round.is_none() {
                // Of what nothing is said any more is not met on the way.
                let live = |pack: &&PackId| view.packs.stands(pack, view.access).is_some();
                let gone = self.live.iter().filter(|pack| !live(pack));
                let gone: Vec<PackId> = gone.copied().collect();
                self.changed.extend(gone);
            }
        }
        let more = self.round.is_some() || !self.changed.is_empty();
        self.look_due = more.then(|| now + LOOK_PAUSE);
    }

    fn consider(&mut self, now: Time, pack: PackId, view: View<'_>) {
        let before = self.wants.remove(&pack);
        if let Some(want) = before {
            self.ready.remove(&(want.copies, pack));
            self.later.remove(&(want.due, pack));
        }
        self.weak.remove(&pack);
        let needed = self.needed(&pack, view);
        self.turn(pack, self.surplus(&pack, view).is_some());
        let Some((bytes, elsewhere)) = needed else {
            self.live.remove(&pack);
            return;
        };
        self.live.insert(pack);
        let held: Vec<DeviceId> = self.holders(&pack, view).collect();
        let is_here = held.contains(&self.me);
        let placed = self.placed(&pack, view);
        let shard = view.packs.shard_of(&pack, view.access);
        let coded = match shard {
            Some(shard) => Some(shard.coded),
            None => view.packs.coded(&pack, view.access),
        };
        let lie = coded.map(|coded| self.lie(coded, view));
        let wanted = self.copies_of(&pack, view);
        let counted = match shard {
            // Elsewhere it does not help if a device is lost that holds another one, too.
            Some(_) => held.iter().filter(|device| placed.contains(device)).count(),
            None => self.counted(&held),
        };
        let copies = elsewhere.saturating_add(counted);
        let way = self.way(&pack, view);
        let in_reach = way.is_some();
        if copies < wanted {
            let of = shard.map(|shard| shard.coded.coding.pack);
            let is_left = of.is_some_and(|of| self.holders(&of, view).next().is_some())
                || lie.as_ref().is_some_and(coded::Lie::restore);
            let has_told = |device: &DeviceId| view.holdings.of(device).is_some();
            let weak = if elsewhere > 0 || !held.is_empty() || is_left {
                Weak::AtRisk
            } else if self.givers.keys().all(has_told) {
                Weak::Lost
            } else {
                Weak::Unheard
            };
            self.weak.insert(pack, weak);
        }
        // One that was replaced is fetched only if that is not enough; one that has shards and lies nowhere only if these will not be.
        let is_enough = elsewhere > 0 && copies >= wanted
            || held.is_empty()
                && shard.is_none()
                && lie.is_some_and(|lie| lie.may_be_worth() >= wanted);
        let is_maker = shard.is_some_and(|shard| self.is_maker(&pack, shard, view));
        if is_here || is_enough || !placed.contains(&self.me) && !is_maker {
            return;
        }
        let first = placed.iter().find(|device| !held.contains(device));
        let is_left = held.len() == 1
            && first.is_some_and(|first| *first != self.me && view.connected.contains(first));
        let mut want = Want {
            bytes,
            copies,
            in_reach,
            tries: before.map_or(0, |before| before.tries),
            due: match before {
                None if is_left => now + TURN,
                Some(before) if is_left || !before.is_left => before.due,
                _ => now,
            },
            is_left: is_left && before.is_none_or(|before| before.is_left),
        };
        // Somebody else has it now. Whoever says so and has nothing is no reason to hurry.
        if before.is_some_and(|before| before.copies < copies) {
            want.due = want.due.min(now + RETRY_FIRST);
        }
        self.wants.insert(pack, want);
        if in_reach && !self.pulling.contains(&pack) {
            if want.due <= now {
                self.ready.insert((copies, pack));
            } else {
                self.later.insert((want.due, pack));
            }
        }
    }

    /// Notes whether there is a copy too many here.
    fn turn(&mut self, pack: PackId, surplus: bool) {
        let turned = if surplus {
            self.surplus.insert(pack)
        } else {
            self.surplus.remove(&pack)
        };
        if turned {
            self.turned.push((pack, surplus));
        }
    }

    /// The length of a pack that is to be kept, and how many counted copies there are of what it was replaced by. One that was retired is to be kept as long as
    /// there are not enough of these: whoever retired it may have been the only one that had them, and be gone.
    fn needed(&self, pack: &PackId, view: View<'_>) -> Option<(u64, usize)> {
        let (stands, bytes) = view.packs.stands(pack, view.access)?;
        if stands == Stands::Live
            && let Some(shard) = view.packs.shard_of(pack, view.access)
        {
            if shard.stands {
                // What nobody is there to hold is missed by nobody: copies of the pack make up for it.
                let elsewhere = self.shard_place(shard, view).map_or(usize::MAX, |_| 0);
                return Some((bytes, elsewhere));
            }
            // It stays until there is enough without it, and parity longer; it is not fetched any more.
            let coding = &shard.coded.coding;
            let is_enough = match view.packs.coded(&coding.pack, view.access) {
                Some(standing) => self.lie(standing, view).is_whole(),
                None => {
                    let held: Vec<DeviceId> = self.holders(&coding.pack, view).collect();
                    self.counted(&held) >= self.copies()
                }
            };
            let is_parity = shard.at >= coding.data.len();
            let stays = !is_enough || is_parity && self.is_left(coding, view);
            return stays.then_some((bytes, usize::MAX));
        }
        // Parity goes last, once there is nothing that it might restore.
        if stands != Stands::Live
            && let Some(coding) = view.packs.parity_of(pack)
        {
            return self.is_left(coding, view).then_some((bytes, usize::MAX));
        }
        if let Some(coded) = view.packs.coded(pack, view.access) {
            let worth = self.lie(coded, view).worth();
            return (worth < self.copies()).then_some((bytes, worth));
        }
        let Stands::Retired(_) = stands else {
            // Nobody misses one that nobody holds, if all that it was to replace is held.
            let replaced: Vec<&PackId> = view.packs.replaced_by(pack).collect();
            let is_held = |pack: &PackId| self.holders(pack, view).next().is_some();
            let spare = !replaced.is_empty()
                && !is_held(pack)
                && replaced.iter().all(|replaced| is_held(replaced));
            return (!spare).then_some((bytes, 0));
        };
        let mut looks = REPLACED_MAX;
        let elsewhere = self.replacing(pack, view, &mut Vec::new(), &mut looks);
        (elsewhere < self.copies()).then_some((bytes, elsewhere))
    }

    /// How many counted copies there are at least of what a pack was replaced by; as many as there may be if it was replaced by nothing. 0 where that would take
    /// too many `looks`, so that nobody keeps this device busy with what it says replaces what. What is on the `way` there replaces nothing: packs said to replace each other in a ring
    /// are not counted again and again.
    fn replacing(
        &self,
        pack: &PackId,
        view: View<'_>,
        way: &mut Vec<PackId>,
        looks: &mut usize,
    ) -> usize {
        let stands = view.packs.stands(pack, view.access);
        let Some((Stands::Retired(replacements), _)) = stands else {
            return 0;
        };
        let mut least = usize::MAX;
        for replacement in replacements {
            let Some(left) = looks.checked_sub(1) else {
                return 0;
            };
            *looks = left;
            if replacement == pack || way.contains(replacement) {
                return 0;
            }
            let further = if way.len() < REPLACED_DEEP {
                way.push(*pack);
                let further = self.replacing(replacement, view, way, looks);
                way.pop();
                further
            } else {
                0
            };
            let held: Vec<DeviceId> = self.holders(replacement, view).collect();
            let coded = view.packs.coded(replacement, view.access);
            let worth = coded.map_or(0, |coded| self.lie(coded, view).worth());
            let copies = self.counted(&held) + worth;
            least = least.min(copies.saturating_add(further));
        }
        least
    }

    /// Devices that hold a pack, as far as that is known.
    fn holders<'a>(
        &'a self,
        pack: &PackId,
        view: View<'a>,
    ) -> impl Iterator<Item = DeviceId> + use<'a> {
        let (pack, tag) = (*pack, HoldingTag::from(*pack));
        let is_false = move |device: &DeviceId| {
            !self.disproved.is_empty() && self.disproved.contains_key(&(pack, *device))
        };
        let holds = move |device: &&DeviceId| {
            let set = view.holdings.of(device);
            set.is_some_and(|set| set.contains(tag)) && !is_false(device)
        };
        self.givers.keys().filter(holds).copied()
    }

    /// How many of these count.
    fn counted(&self, devices: &[DeviceId]) -> usize {
        let counts = |device: &&DeviceId| !self.uncounted.contains(*device);
        devices.iter().filter(counts).count()
    }

    fn next_pulls(&mut self, now: Time, view: View<'_>) -> Vec<Pull> {
        match self.no_room_until {
            Some(until) if until > now => return Vec::new(),
            _ => self.no_room_until = None,
        }
        while let Some((due, pack)) = self.later.first().copied() {
            if due > now {
                break;
            }
            self.later.pop_first();
            if let Some(want) = self.wants.get(&pack) {
                self.ready.insert((want.copies, pack));
            }
        }
        let mut pulls = Vec::new();
        while self.pulling.len() < PULLS_MAX {
            let Some((_, pack)) = self.ready.pop_first() else {
                break;
            };
            let way = self.way(&pack, view);
            match (self.wants.get_mut(&pack), way) {
                (Some(want), Some(way)) => {
                    self.pulling.insert(pack);
                    let bytes = want.bytes;
                    pulls.push(Pull { pack, bytes, way });
                }
                (Some(want), None) => want.in_reach = false,
                (None, _) => {}
            }
        }
        pulls
    }
}

fn drains(giver: &Giver) -> bool {
    giver.leaving.0 == Leaving::Drains
}

#[cfg(test)]
mod tests;
