use super::*;
use kith_crdt::access::{self, Role};
use kith_crdt::catalogue::{Born, CatalogueRecord, Retired};
use kith_object::id::{EntryId, SpaceId};
use kith_object::key::{DeviceKeys, Rng};
use kith_object::time::Hlc;
use kith_protocol::holdings;
use proptest::prelude::*;

mod coded;

const SPACE: SpaceId = SpaceId([9; 32]);
const NOW: Time = Time(1_700_000_000_000);

fn keys(n: usize) -> DeviceKeys {
    DeviceKeys::generate(&mut Rng::from_seed([n as u8; 32]))
}

fn pack(n: usize) -> PackId {
    PackId(kith_object::key::derive("test pack", &n.to_le_bytes()))
}

/// A keeper with what it sees.
struct Desk {
    devices: Vec<DeviceKeys>,
    access: Access,
    packs: Packs,
    holdings: Holdings,
    connected: BTreeSet<DeviceId>,
    givers: BTreeMap<DeviceId, Giver>,
    policy: Policy,
    keeper: Keeper,
    now: Time,
    stamp: u64,
    entry: u64,
    pulls: Vec<Pull>,
}

impl Desk {
    fn new(count: usize, copies: u8) -> Self {
        let devices: Vec<DeviceKeys> = (0..count).map(keys).collect();
        let device = || access::Device {
            role: Role::Member,
            name: String::new(),
            agree: None,
        };
        let members: BTreeMap<DeviceId, access::Device> =
            devices.iter().map(|keys| (keys.id(), device())).collect();
        let ids: BTreeSet<DeviceId> = members.keys().copied().collect();
        let giver = Giver {
            capacity: 1 << 30,
            is_said: true,
            ..Giver::default()
        };
        let mut holdings = Holdings::new(keys(0), SPACE);
        holdings.handle(NOW, holdings::Input::Members(ids.clone()));
        let mut desk = Self {
            access: Access {
                members,
                ..Access::default()
            },
            packs: Packs::default(),
            holdings,
            connected: BTreeSet::new(),
            givers: ids.iter().map(|id| (*id, giver.clone())).collect(),
            policy: Policy {
                redundancy: Some(Redundancy::Replicas(copies)),
                ..Policy::default()
            },
            keeper: Keeper::new(keys(0).id(), NOW),
            now: NOW,
            stamp: NOW.0,
            entry: 0,
            pulls: Vec::new(),
            devices,
        };
        desk.arrange();
        for n in 0..count {
            desk.holds(n, &[]);
        }
        desk.settle();
        desk
    }

    fn view(&self) -> View<'_> {
        View {
            access: &self.access,
            packs: &self.packs,
            holdings: &self.holdings,
            connected: &self.connected,
        }
    }

    fn arrange(&mut self) {
        let view = View {
            access: &self.access,
            packs: &self.packs,
            holdings: &self.holdings,
            connected: &self.connected,
        };
        let givers = self.givers.clone();
        self.keeper
            .arrange(self.now, givers, self.policy.clone(), view);
    }

    fn say(&mut self, record: &CatalogueRecord, hlc: u64) {
        self.entry += 1;
        let author = self.devices[0].id();
        let mut entry = EntryId([1; 32]);
        entry.0[..8].copy_from_slice(&self.entry.to_le_bytes());
        self.packs.add(entry, author, Hlc(hlc), record);
        let changed = self.packs.take_changed();
        self.keeper.packs_changed(self.now, changed, &self.packs);
    }

    fn born(&mut self, n: usize, hlc: u64) {
        let born = Born {
            pack: pack(n),
            class: 3,
            blocks: 1,
            bytes: 1000,
        };
        self.say(&CatalogueRecord::Born(born), hlc);
    }

    fn retired(&mut self, n: usize, hlc: u64) {
        self.replaced(n, &[], hlc);
    }

    fn replaced(&mut self, n: usize, by: &[usize], hlc: u64) {
        let mut replacements: Vec<PackId> = by.iter().map(|n| pack(*n)).collect();
        replacements.sort_unstable();
        let retired = Retired {
            pack: pack(n),
            replacements,
            basis: Vec::new(),
            left_out: Vec::new(),
        };
        self.say(&CatalogueRecord::Retired(retired), hlc);
    }

    /// An entry counts no more.
    fn unsay(&mut self, entry: u64) {
        let mut id = EntryId([1; 32]);
        id.0[..8].copy_from_slice(&entry.to_le_bytes());
        self.packs.remove(&id);
        let changed = self.packs.take_changed();
        self.keeper.packs_changed(self.now, changed, &self.packs);
    }

    /// That device holds just these packs.
    fn holds(&mut self, n: usize, packs: &[usize]) {
        self.holds_these(n, packs.iter().map(|n| pack(*n)));
    }

    fn holds_these(&mut self, n: usize, packs: impl Iterator<Item = PackId>) {
        let tags: Vec<HoldingTag> = packs.map(HoldingTag::from).collect();
        if n == 0 {
            self.holdings.handle(self.now, holdings::Input::Own(tags));
        } else {
            // As the device itself would have kept it.
            self.stamp += 1;
            let mut other = Holdings::new(self.devices[n].clone(), SPACE);
            let at = Time(self.stamp);
            let ids = self.access.members.keys().copied().collect();
            other.handle(at, holdings::Input::Members(ids));
            other.handle(at, holdings::Input::Own(tags));
            let due = other.next_wakeup().unwrap();
            other.handle(due, holdings::Input::Wake);
            self.stamp = due.0;
            self.holdings.handle(self.now, holdings::Input::Wake);
            self.holdings.recall(&other.encode());
        }
        while let Some(effect) = self.holdings.poll_effect() {
            if let holdings::Effect::News {
                device,
                added,
                removed,
            } = effect
            {
                let tags = [added, removed].concat();
                self.keeper
                    .holdings_changed(self.now, &device, &tags, &self.packs);
            }
        }
    }

    fn connect(&mut self, n: usize, up: bool) {
        let id = self.devices[n].id();
        if up {
            self.connected.insert(id);
        } else {
            self.connected.remove(&id);
        }
        self.keeper.reach_changed(self.now);
    }

    fn pass(&mut self, span: Span) {
        self.now = self.now + span;
        self.settle();
    }

    /// Does what is due, without time passing but for its own pauses.
    fn settle(&mut self) {
        loop {
            let view = View {
                access: &self.access,
                packs: &self.packs,
                holdings: &self.holdings,
                connected: &self.connected,
            };
            self.pulls.extend(self.keeper.work(self.now, view));
            self.keeper.check_invariants();
            let soon = self.now + Span::from_ms(50);
            match self.keeper.next_due().filter(|due| *due <= soon) {
                Some(due) if due > self.now => self.now = due,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// What of packs and shards this device holds.
    fn mine(&self) -> Vec<PackId> {
        let own = self.holdings.of(&self.devices[0].id());
        let all = self.packs.from(PackId::default());
        all.filter(|pack| own.is_some_and(|own| own.contains((*pack).into())))
            .collect()
    }

    fn me_holds(&self, n: usize) -> bool {
        let own = self.holdings.of(&self.devices[0].id());
        own.is_some_and(|own| own.contains(pack(n).into()))
    }
}

#[test]
fn the_most_endangered_are_fetched_first_and_few_at_once() {
    let mut desk = Desk::new(3, 3);
    for n in 0..10 {
        desk.born(n, 5);
    }
    desk.holds(1, &(0..10).collect::<Vec<_>>());
    desk.holds(2, &(0..7).collect::<Vec<_>>());
    desk.connect(1, true);
    desk.settle();
    assert_eq!(desk.pulls.len(), PULLS_MAX);
    let first: Vec<PackId> = desk.pulls.iter().map(|pull| pull.pack).collect();
    assert!(
        first.iter().all(|of| (7..10).any(|n| pack(n) == *of)),
        "of one copy alone"
    );
    assert!(
        desk.pulls
            .iter()
            .all(|pull| pull.sources() == BTreeSet::from([desk.devices[1].id()]))
    );
    let mut held = Vec::new();
    while let Some(pull) = desk.pulls.pop() {
        let n = (0..10).find(|n| pack(*n) == pull.pack).unwrap();
        held.push(n);
        desk.holds(0, &held.clone());
        desk.keeper.pulled(desk.now, pull.pack, Pulled::Came);
        desk.settle();
    }
    held.sort_unstable();
    assert_eq!(held, (0..10).collect::<Vec<_>>());
    let health = desk.keeper.health(desk.now);
    assert_eq!((health.packs, health.at_risk, health.wanted), (10, 3, 0));
}

/// All are connected, and the one that should not hold it has a new pack; who should is told in order.
fn told_of_one(is_first: bool) -> (Desk, usize, Vec<usize>) {
    let mut desk = Desk::new(4, 3);
    for n in 1..4 {
        desk.connect(n, true);
    }
    let at = |desk: &Desk, id: &DeviceId| desk.devices.iter().position(|of| of.id() == *id);
    for n in 0.. {
        let placed = desk.keeper.placed(&pack(n), desk.view());
        let placed: Vec<usize> = placed.iter().filter_map(|id| at(&desk, id)).collect();
        if placed.contains(&0) && (placed[0] == 0) == is_first {
            let from = (0..4).find(|n| !placed.contains(n)).unwrap();
            desk.born(n, 5);
            desk.holds(from, &[n]);
            desk.settle();
            return (desk, n, placed);
        }
    }
    unreachable!("there are names enough")
}

#[test]
fn what_one_device_has_is_left_to_the_first_who_should_have_it() {
    let (desk, ..) = told_of_one(true);
    assert_eq!(desk.pulls.len(), 1, "that is this one");
    let (mut desk, n, placed) = told_of_one(false);
    assert_eq!(desk.pulls, []);
    assert_eq!(desk.keeper.health(desk.now).wanted, 1);
    desk.pass(Span::from_secs(30));
    assert_eq!(desk.pulls, []);
    desk.holds(placed[0], &[n]);
    desk.settle();
    assert_eq!(desk.pulls.len(), 1);
    assert_eq!(desk.pulls[0].sources().len(), 2, "now there are two to ask");
    // It went before it had it.
    let (mut desk, _, placed) = told_of_one(false);
    desk.connect(placed[0], false);
    desk.settle();
    assert_eq!(desk.pulls.len(), 1);
    // It takes its time.
    let (mut desk, n, _) = told_of_one(false);
    desk.pass(TURN);
    assert_eq!(desk.pulls.len(), 1);
    desk.keeper.pulled(desk.now, pack(n), Pulled::Failed);
    desk.settle();
    assert_eq!(desk.pulls.len(), 1, "and is left to nobody any more");
    desk.pass(RETRY_FIRST);
    assert_eq!(desk.pulls.len(), 2);
}

#[test]
fn what_does_not_come_is_tried_ever_less_often_and_a_full_disk_rests() {
    let mut desk = Desk::new(3, 3);
    desk.born(0, 5);
    desk.holds(1, &[0]);
    desk.connect(1, true);
    desk.settle();
    for wait in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
        assert_eq!(desk.pulls.len(), 1, "{wait}");
        desk.pulls.clear();
        desk.keeper.pulled(desk.now, pack(0), Pulled::Failed);
        desk.pass(Span::from_secs(wait - 1));
        assert!(desk.pulls.is_empty(), "{wait}");
        desk.pass(Span::from_secs(1));
    }
    // Another holder gives new hope, though not at once.
    desk.pulls.clear();
    desk.keeper.pulled(desk.now, pack(0), Pulled::Failed);
    desk.holds(2, &[0]);
    desk.settle();
    desk.pass(Span::from_secs(59));
    assert!(desk.pulls.is_empty());
    desk.pass(Span::from_secs(2));
    assert_eq!(desk.pulls.len(), 1);
    desk.pulls.clear();
    desk.keeper.pulled(desk.now, pack(0), Pulled::NoRoom);
    desk.born(1, 5);
    desk.holds(1, &[0, 1]);
    desk.pass(Span::from_secs(599));
    assert!(desk.pulls.is_empty() && desk.keeper.health(desk.now).no_room);
    desk.pass(Span::from_secs(1));
    assert_eq!(desk.pulls.len(), 1, "the other one");
}

#[test]
fn silent_drained_and_lost_devices_are_replaced_and_returners_welcomed() {
    let mut desk = Desk::new(3, 2);
    for giver in desk.givers.values_mut() {
        giver.grace = Span::from_secs(3600);
    }
    desk.arrange();
    for n in 0..12 {
        desk.born(n, 5);
    }
    let all: Vec<usize> = (0..12).collect();
    desk.holds(1, &all);
    desk.holds(2, &all);
    desk.connect(1, true);
    desk.settle();
    let wanted = |desk: &Desk| desk.keeper.health(desk.now).wanted;
    let before = wanted(&desk);
    assert!((1..12).contains(&before), "its share: {before}");
    assert_eq!(desk.keeper.health(desk.now).at_risk, 0);
    // The third stays silent past its grace.
    desk.pass(Span::from_secs(3700));
    assert_eq!(
        (wanted(&desk), desk.keeper.health(desk.now).at_risk),
        (12, 12)
    );
    let gone = BTreeSet::from([desk.devices[2].id()]);
    assert_eq!(desk.keeper.uncounted(), &gone);
    desk.connect(2, true);
    desk.settle();
    assert_eq!(
        (wanted(&desk), desk.keeper.health(desk.now).at_risk),
        (before, 0)
    );
    for leaving in [Leaving::Drains, Leaving::Lost] {
        let id = desk.devices[2].id();
        let said = Hlc::new(desk.now + Span::from_secs(60), 0);
        desk.givers.get_mut(&id).unwrap().leaving = (leaving, said);
        desk.arrange();
        desk.settle();
        assert_eq!(wanted(&desk), 12, "{leaving:?}");
        desk.givers.get_mut(&id).unwrap().leaving = (Leaving::Stays, said);
        desk.arrange();
        desk.settle();
        assert_eq!(wanted(&desk), before);
    }
}

#[test]
fn what_was_merged_is_kept_until_there_is_enough_of_the_merge() {
    let mut desk = Desk::new(3, 2);
    let state = |desk: &Desk| {
        let health = desk.keeper.health(desk.now);
        (health.packs, health.at_risk, health.lost, health.wanted)
    };
    // Packs 0 and 1 lie on the second and the third; the third merges them into 2, and drops its own.
    for n in [0, 1] {
        desk.born(n, 5);
    }
    desk.holds(1, &[0, 1]);
    desk.holds(2, &[0, 1]);
    desk.connect(1, true);
    desk.born(2, 6);
    for n in [0, 1] {
        desk.replaced(n, &[2], 6);
    }
    desk.holds(2, &[2]);
    desk.settle();
    // One copy of each and one of the merge: only that is to spread.
    assert_eq!((state(&desk).0, state(&desk).1), (3, 1));
    let wants = |desk: &Desk| desk.keeper.wants.keys().copied().collect::<BTreeSet<_>>();
    assert!(wants(&desk).is_subset(&[pack(2)].into()));
    // The third burns before anybody else has it: what was merged is repaired.
    let id = desk.devices[2].id();
    desk.givers.get_mut(&id).unwrap().leaving =
        (Leaving::Lost, Hlc::new(desk.now + Span::from_secs(60), 0));
    desk.arrange();
    desk.settle();
    assert!(wants(&desk).contains(&pack(0)) && wants(&desk).contains(&pack(1)));
    assert_eq!(state(&desk).2, 0, "nothing is lost");
    // Once this device and the second have the merge, they may go.
    desk.holds(0, &[2]);
    desk.holds(1, &[0, 1, 2]);
    desk.settle();
    assert_eq!(state(&desk), (1, 0, 0, 0));
    // That nobody has the merge is no loss while all have what it was made of.
    desk.holds(0, &[]);
    desk.holds(1, &[0, 1]);
    desk.holds(2, &[]);
    desk.settle();
    assert_eq!((state(&desk).0, state(&desk).2), (2, 0));
}

#[test]
fn packs_said_to_replace_each_other_in_a_ring_end_no_device() {
    let mut desk = Desk::new(2, 2);
    for n in 0..3 {
        desk.born(n, 5);
        desk.replaced(n, &[(n + 1) % 3], 6);
    }
    desk.holds(1, &[0]);
    desk.connect(1, true);
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).lost, 0);
    assert!(
        desk.keeper.health(desk.now).packs > 0,
        "what is held is not given up"
    );
    // Nor one of two that were said to replace each other, or itself.
    for by in [3, 4] {
        let mut desk = Desk::new(2, 2);
        desk.born(3, 5);
        desk.born(4, 5);
        desk.replaced(3, &[by], 6);
        desk.replaced(4, &[3], 6);
        desk.holds(1, &[3]);
        desk.connect(1, true);
        desk.settle();
        assert!(desk.keeper.needed(&pack(3), desk.view()).is_some(), "{by}");
    }
}

#[test]
fn what_is_said_to_replace_what_keeps_no_device_busy() {
    let mut desk = Desk::new(2, 2);
    let all: Vec<usize> = (0..300).collect();
    for n in &all {
        desk.born(*n, 5);
        desk.replaced(*n, &all, 6);
    }
    desk.holds(1, &all);
    desk.settle();
    // Four times over all of them would be eight thousand million.
    assert!(desk.keeper.needed(&pack(0), desk.view()).is_some());
}

#[test]
fn a_full_disk_is_tried_again_when_it_has_rested() {
    let mut desk = Desk::new(2, 2);
    for n in 0..3 {
        desk.born(n, 5);
    }
    desk.holds(1, &[0, 1, 2]);
    desk.connect(1, true);
    desk.settle();
    for pull in std::mem::take(&mut desk.pulls) {
        desk.keeper.pulled(desk.now, pull.pack, Pulled::NoRoom);
    }
    desk.keeper.judge_due = None;
    desk.settle();
    let due = desk.keeper.next_due().unwrap();
    assert!(due >= desk.now + Span::from_secs(599), "{due:?}");
    desk.now = due;
    desk.settle();
    assert_eq!(desk.pulls.len(), PULLS_MAX);
}

#[test]
fn many_changes_at_once_are_looked_at_in_a_round() {
    let mut desk = Desk::new(2, 2);
    let many = FEW + 200;
    for n in 0..many {
        desk.born(n, 5);
    }
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).lost, many);
    desk.holds(1, &(0..many).collect::<Vec<_>>());
    assert!(desk.keeper.changed.is_empty() && desk.keeper.round.is_some());
    desk.connect(1, true);
    desk.settle();
    let health = desk.keeper.health(desk.now);
    assert_eq!(
        (health.at_risk, health.wanted, health.out_of_reach),
        (many, many, 0)
    );
    desk.connect(1, false);
    assert!(desk.keeper.changed.is_empty() && desk.keeper.round.is_some());
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).out_of_reach, many);
}

#[test]
fn a_pack_that_nobody_holds_is_lost_only_once_all_have_told() {
    let mut desk = Desk::new(2, 2);
    desk.born(0, 5);
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).lost, 1);
    let stranger = DeviceId([1; 32]);
    let member = desk.access.members.values().next().unwrap().clone();
    desk.access.members.insert(stranger, member);
    desk.givers.insert(stranger, Giver::default());
    desk.arrange();
    desk.settle();
    let health = desk.keeper.health(desk.now);
    assert_eq!((health.lost, health.unheard), (0, 1));
    desk.retired(0, 5);
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).packs, 0);
    desk.born(0, 6);
    desk.settle();
    assert_eq!(desk.keeper.health(desk.now).packs, 1, "born again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: what is wanted, and how it stands, is what one who sees it all at once would say.
    #[test]
    fn step_by_step_is_as_good_as_at_once(
        copies in 1u8..4,
        steps in prop::collection::vec((0usize..7, 0usize..4, 0usize..9, any::<bool>()), 1..50),
    ) {
        let mut desk = Desk::new(4, copies);
        let mut held: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); 4];
        for (what, device, n, up) in steps {
            match what {
                0 | 1 => desk.born(n, 5),
                2 => desk.retired(n, 4 + u64::from(up)),
                3 => {
                    if up { held[device].insert(n); } else { held[device].remove(&n); }
                    let packs: Vec<usize> = held[device].iter().copied().collect();
                    desk.holds(device, &packs);
                }
                4 if device > 0 => desk.connect(device, up),
                5 => {
                    let leaving = if up { Leaving::Drains } else { Leaving::Stays };
                    let id = desk.devices[device].id();
                    desk.givers.get_mut(&id).unwrap().leaving = (leaving, Hlc(1));
                    desk.arrange();
                }
                _ => {
                    if let Some(pull) = desk.pulls.pop() {
                        let how = if up { Pulled::Came } else { Pulled::Failed };
                        desk.keeper.pulled(desk.now, pull.pack, how);
                    }
                }
            }
            if up {
                desk.settle();
            }
        }
        desk.pass(Span::from_secs(2));
        for n in 0..9 {
            let standing = desk.keeper.standing(&pack(n), desk.view());
            let live = desk.packs.live(&pack(n), &desk.access).is_some();
            prop_assert_eq!(live, desk.keeper.live.contains(&pack(n)));
            let wanted = live && !desk.me_holds(n) && standing.placed.contains(&desk.devices[0].id());
            prop_assert_eq!(desk.keeper.wants.contains_key(&pack(n)), wanted, "pack {}", n);
            let counted = standing.held.len() - standing.leaving.len();
            let weak = live && counted < standing.copies;
            prop_assert_eq!(desk.keeper.weak.contains_key(&pack(n)), weak, "pack {}", n);
            let drained = |id: &DeviceId| desk.givers[id].leaving.0 == Leaving::Drains;
            prop_assert!(!standing.placed.iter().any(drained));
        }
        let pulling: BTreeSet<PackId> = desk.pulls.iter().map(|pull| pull.pack).collect();
        prop_assert_eq!(&desk.keeper.pulling, &pulling);
    }
}
