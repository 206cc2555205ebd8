//! Packs that have shards.

use kith_crdt::catalogue::Coded;
use kith_object::coding::{Coding, DataShard};

use super::*;

/// Shard of a pack by its number, of one of its codes.
fn shard(n: usize, code: usize, at: usize) -> PackId {
    let said = [n, code, at].map(|part| part.to_le_bytes()).concat();
    PackId(kith_object::key::derive("test shard", &said))
}

fn coding(n: usize, code: usize, (needed, spare): (usize, usize)) -> Coding {
    let data = (0..needed).map(|at| DataShard {
        id: shard(n, code, at),
        len: 400,
        blocks: 1,
    });
    Coding {
        pack: pack(n),
        data: data.collect(),
        parity: (needed..needed + spare)
            .map(|at| shard(n, code, at))
            .collect(),
    }
}

impl Desk {
    /// A mesh that codes 4+2.
    fn coding(count: usize) -> Self {
        let mut desk = Self::new(count, 3);
        desk.policy.redundancy = Some(Redundancy::Erasure(4, 2));
        desk.arrange();
        desk.settle();
        desk
    }

    fn placement(&self) -> &Placement {
        self.keeper.placement.as_ref().unwrap()
    }

    /// Somebody says which shards a pack has, as of now placed on six devices.
    fn coded(&mut self, n: usize, code: usize, hlc: u64) -> Vec<DeviceId> {
        let mut devices = self.placement().holders(&pack(n));
        // Where there are fewer, some that are gone were named.
        let all: Vec<DeviceId> = self.devices.iter().map(DeviceKeys::id).collect();
        devices.extend(
            all.into_iter()
                .filter(|one| !devices.contains(one))
                .collect::<Vec<_>>(),
        );
        devices.truncate(6);
        let coded = Coded {
            coding: coding(n, code, (4, 2)),
            devices: devices.clone(),
        };
        assert!(coded.is_sound());
        self.say(&CatalogueRecord::Coded(coded), hlc);
        devices
    }

    fn at(&self, device: &DeviceId) -> usize {
        let place = self.devices.iter().position(|keys| keys.id() == *device);
        place.unwrap()
    }

    /// What each device holds, by name.
    fn hold(&mut self, held: &[(usize, Vec<PackId>)]) {
        for (n, packs) in held {
            self.holds_these(*n, packs.iter().copied());
        }
        self.settle();
    }

    fn connect_all(&mut self) {
        for n in 1..self.devices.len() {
            self.connect(n, true);
        }
        self.settle();
    }

    fn health(&self) -> Health {
        self.keeper.health(self.now)
    }

    /// The first pack of which this device should hold a copy, or should not.
    fn a_pack(&self, is_placed: bool) -> usize {
        let me = self.devices[0].id();
        let is_so =
            |n: &usize| self.keeper.placed(&pack(*n), self.view()).contains(&me) == is_placed;
        (0..).find(is_so).unwrap()
    }
}

#[test]
fn who_has_the_pack_makes_its_own_shard_and_the_first_those_of_others() {
    let mut desk = Desk::coding(6);
    let n = desk.a_pack(true);
    desk.born(n, 5);
    let placed = desk.keeper.placed(&pack(n), desk.view());
    assert_eq!(placed.len(), 3, "copies, as long as it has no shards");
    let copies: Vec<(usize, Vec<PackId>)> = placed
        .iter()
        .map(|of| (desk.at(of), vec![pack(n)]))
        .collect();
    desk.hold(&copies);
    desk.connect_all();
    assert!(desk.pulls.is_empty());
    let devices = desk.coded(n, 0, 6);
    for _ in 0..6 {
        desk.settle();
        for pull in std::mem::take(&mut desk.pulls) {
            assert!(matches!(pull.way, Way::Cut(_)), "{pull:?}");
            let mut own: Vec<PackId> = desk.mine();
            own.push(pull.pack);
            desk.keeper.pulled(desk.now, pull.pack, Pulled::Came);
            desk.hold(&[(0, own)]);
        }
    }
    let mine = desk.mine();
    let first = *placed.iter().min().unwrap();
    for (at, device) in devices.iter().enumerate() {
        let is_first = first == desk.devices[0].id();
        let is_mine = *device == desk.devices[0].id();
        // The others make their own of their copies.
        let is_made = is_mine || is_first && !placed.contains(device);
        assert_eq!(mine.contains(&shard(n, 0, at)), is_made, "{at}");
    }
    let health = desk.health();
    assert_eq!((health.lost, health.unheard), (0, 0));
    // Shards that lie somewhere else than they should are at risk as before.
    let settled = usize::from(devices.contains(&desk.devices[0].id()));
    assert_eq!(health.at_risk, 6 - settled, "{health:?}");
}

#[test]
fn the_only_one_with_the_pack_makes_all_shards_that_nobody_in_reach_has() {
    let mut desk = Desk::coding(6);
    desk.born(0, 5);
    desk.hold(&[(0, vec![pack(0)])]);
    let devices = desk.coded(0, 0, 6);
    let others: Vec<usize> = (0..6).filter(|at| desk.at(&devices[*at]) != 0).collect();
    // One is said to lie with somebody who is away, one with somebody who is there.
    let (away, there) = (desk.at(&devices[others[0]]), desk.at(&devices[others[1]]));
    desk.hold(&[
        (away, vec![shard(0, 0, others[1])]),
        (there, vec![shard(0, 0, others[2])]),
    ]);
    desk.connect(there, true);
    desk.settle();
    let mut made = BTreeSet::new();
    while let Some(pull) = desk.pulls.pop() {
        assert!(matches!(pull.way, Way::Cut(_)), "{pull:?}");
        made.insert(pull.pack);
        let own: Vec<PackId> = desk.mine().into_iter().chain([pull.pack]).collect();
        desk.keeper.pulled(desk.now, pull.pack, Pulled::Came);
        desk.hold(&[(0, own)]);
    }
    let all = (0..6).filter(|at| *at != others[2]);
    let all: BTreeSet<PackId> = all.map(|at| shard(0, 0, at)).collect();
    assert_eq!(made, all);
}

#[test]
fn a_pack_goes_once_all_its_shards_lie_where_they_should() {
    let mut desk = Desk::coding(6);
    let n = desk.a_pack(false);
    desk.born(n, 5);
    let placed = desk.keeper.placed(&pack(n), desk.view());
    let devices = desk.coded(n, 0, 6);
    desk.connect_all();
    let mut held: Vec<(usize, Vec<PackId>)> = Vec::new();
    for (at, device) in devices.iter().enumerate() {
        let mut packs = vec![shard(n, 0, at)];
        packs.extend(placed.contains(device).then_some(pack(n)));
        held.push((desk.at(device), packs));
    }
    desk.hold(&held);
    assert_eq!(
        desk.health(),
        Health {
            packs: 6,
            copies: 3,
            ..Health::default()
        },
        "the shards, and not the pack"
    );
    // One copy of it is as good as the parity.
    for (device, packs) in &mut held {
        packs.retain(|of| *of != pack(n) || *device == desk.at(&placed[0]));
    }
    desk.hold(&held);
    assert_eq!(desk.health().at_risk, 0);
    held.iter_mut()
        .for_each(|(_, packs)| packs.retain(|of| *of != pack(n)));
    desk.hold(&held);
    let standing = desk.keeper.standing(&pack(n), desk.view());
    assert!(standing.is_kept() && !standing.is_needed && standing.held.is_empty());
    assert_eq!(desk.health().at_risk, 0);
    // This device lost its own: it comes back of four others.
    let mine = devices.iter().position(|of| desk.at(of) == 0).unwrap();
    desk.hold(&[(0, Vec::new())]);
    let health = desk.health();
    assert_eq!((health.lost, health.at_risk, health.wanted), (0, 2, 1));
    let pull = desk.pulls.pop().unwrap();
    assert_eq!(
        (pull.pack, pull.bytes),
        (shard(n, 0, mine), coding(n, 0, (4, 2)).len(mine))
    );
    let Way::Restored { at, from, .. } = &pull.way else {
        panic!("{pull:?}")
    };
    assert_eq!((*at, from.len()), (Some(mine), 4));
    assert!(
        from.iter()
            .all(|(at, sources)| *at != mine && sources.len() == 1)
    );
    assert_eq!(pull.sources().len(), 4);
    let sent: u64 = from
        .iter()
        .map(|(at, _)| coding(n, 0, (4, 2)).len(*at))
        .sum();
    assert_eq!(pull.moves(), sent);
    // Not where there are only three.
    desk.keeper.pulled(desk.now, pull.pack, Pulled::Failed);
    for (device, packs) in held.iter().filter(|(device, _)| *device != 0).take(2) {
        assert!(!packs.is_empty());
        desk.hold(&[(*device, Vec::new())]);
    }
    desk.pass(Span::from_secs(7200));
    assert!(desk.pulls.is_empty());
    let health = desk.health();
    assert_eq!(
        (health.lost, health.at_risk, health.out_of_reach),
        (4, 0, 1),
        "the pack, and three shards"
    );
    assert_eq!(health.wanted, 1);
}

#[test]
fn the_shard_of_a_device_that_is_gone_goes_to_another_and_without_one_copies_come_back() {
    let mut desk = Desk::coding(7);
    // A pack of which this device holds no shard.
    let me = desk.devices[0].id();
    let n = (0..)
        .find(|n| !desk.placement().holders(&pack(*n)).contains(&me))
        .unwrap();
    desk.born(n, 5);
    let devices = desk.coded(n, 0, 6);
    desk.connect_all();
    let held: Vec<(usize, Vec<PackId>)> = (0..)
        .zip(&devices)
        .map(|(at, device)| (desk.at(device), vec![shard(n, 0, at)]))
        .collect();
    desk.hold(&held);
    assert_eq!((desk.health().at_risk, desk.health().wanted), (0, 0));
    let gone = devices[2];
    desk.givers.get_mut(&gone).unwrap().leaving = (Leaving::Drains, Hlc(1));
    desk.arrange();
    desk.settle();
    assert_eq!(desk.keeper.placed(&shard(n, 0, 2), desk.view()), [me]);
    // It is still there, and gives what it has.
    let pull = desk.pulls.pop().unwrap();
    assert_eq!(pull.way, Way::Whole(vec![gone]));
    desk.keeper.pulled(desk.now, pull.pack, Pulled::Came);
    desk.hold(&[(0, vec![shard(n, 0, 2)])]);
    assert_eq!(desk.health().at_risk, 0);
    // Two more are gone: five hold, and nobody can take a sixth shard. One copy makes up for it.
    for gone in [devices[0], devices[5]] {
        desk.givers.get_mut(&gone).unwrap().leaving = (Leaving::Drains, Hlc(1));
        let at = desk.at(&gone);
        desk.connect(at, false);
        desk.holds(at, &[]);
    }
    desk.policy.redundancy = None;
    desk.arrange();
    desk.settle();
    let lie = desk.keeper.lie(
        desk.packs.coded(&pack(n), &desk.access).unwrap(),
        desk.view(),
    );
    assert_eq!((lie.settled, lie.left, lie.needed), (4, 4, 4));
    let wants = |desk: &Desk| desk.keeper.wants.contains_key(&pack(n));
    let is_placed = desk.keeper.placed(&pack(n), desk.view()).contains(&me);
    assert_eq!(wants(&desk), is_placed);
    if is_placed {
        let pull = desk.pulls.iter().find(|pull| pull.pack == pack(n)).unwrap();
        assert!(matches!(&pull.way, Way::Restored { at: None, from, .. } if from.len() == 4));
    }
    let standing = desk.keeper.standing(&pack(n), desk.view());
    assert_eq!((standing.elsewhere, standing.copies), (1, 3));
}

#[test]
fn what_somebody_calls_a_shard_and_was_born_is_kept_as_any_pack() {
    let mut desk = Desk::coding(6);
    desk.born(0, 5);
    desk.born(1, 5);
    let devices = desk.placement().holders(&pack(0));
    let mut lying = coding(0, 0, (4, 2));
    lying.data[1].id = pack(1);
    let coding = lying;
    desk.say(&CatalogueRecord::Coded(Coded { coding, devices }), 6);
    desk.settle();
    let standing = desk.keeper.standing(&pack(1), desk.view());
    assert_eq!((standing.copies, standing.placed.len()), (3, 3));
    assert!(desk.packs.shard_of(&pack(1), &desk.access).is_none());
    assert!(desk.packs.shard_of(&shard(0, 0, 0), &desk.access).is_some());
}

#[test]
fn shards_go_where_their_pack_was_replaced_and_those_of_another_code_once_there_is_the_one_that_holds()
 {
    let mut desk = Desk::coding(6);
    desk.born(0, 5);
    let devices = desk.coded(0, 0, 6);
    desk.connect_all();
    let held: Vec<(usize, Vec<PackId>)> = (0..)
        .zip(&devices)
        .map(|(at, device)| (desk.at(device), vec![shard(0, 0, at)]))
        .collect();
    desk.hold(&held);
    // What is said later changes nothing, unless it is said that the pack came to be anew.
    desk.coded(0, 1, 7);
    desk.settle();
    assert_eq!(desk.health().packs, 6);
    desk.born(0, 8);
    desk.coded(0, 1, 9);
    desk.settle();
    for at in 0..6 {
        assert!(
            desk.keeper.live.contains(&shard(0, 0, at)),
            "until there are the others"
        );
        assert!(desk.keeper.live.contains(&shard(0, 1, at)));
        assert!(!desk.keeper.wants.contains_key(&shard(0, 0, at)));
    }
    let both: Vec<(usize, Vec<PackId>)> = (0..)
        .zip(&devices)
        .map(|(at, device)| (desk.at(device), vec![shard(0, 0, at), shard(0, 1, at)]))
        .collect();
    desk.hold(&both);
    assert_eq!(desk.health().packs, 6 + 2, "parity goes last");
    let earlier = |at| {
        matches!(
            desk.keeper.surplus(&shard(0, 0, at), desk.view()),
            Some(Surplus::Replaced(_))
        )
    };
    let mine = devices.iter().position(|of| desk.at(of) == 0).unwrap();
    assert_eq!(earlier(mine), mine < 4, "its blocks are proved");
    let later: Vec<(usize, Vec<PackId>)> = (0..)
        .zip(&devices)
        .map(|(at, device)| {
            (
                desk.at(device),
                vec![shard(0, if at < 4 { 1 } else { 0 }, at), shard(0, 1, at)],
            )
        })
        .collect();
    desk.hold(&later);
    assert_eq!(desk.health().packs, 6);
    let spent = matches!(
        desk.keeper.surplus(&shard(0, 0, mine), desk.view()),
        Some(Surplus::Spent)
    );
    assert_eq!(spent, mine >= 4);
    desk.hold(&both);
    // The pack is merged into another one: all shards of it go as it would.
    desk.born(1, 10);
    desk.replaced(0, &[1], 10);
    desk.settle();
    let bytes = desk.packs.live(&shard(0, 1, 0), &desk.access);
    assert_eq!(bytes, None);
    assert!(
        desk.keeper.live.contains(&shard(0, 1, 0)),
        "until there is enough of that"
    );
    let placed = desk.keeper.placed(&pack(1), desk.view());
    for (device, packs) in both {
        let is_placed = placed.iter().any(|of| desk.at(of) == device);
        let packs = packs.into_iter().chain(is_placed.then_some(pack(1)));
        desk.hold(&[(device, packs.collect())]);
    }
    assert_eq!(
        (desk.health().packs, desk.health().at_risk),
        (1 + 4, 0),
        "and parity"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order, how it stands is what one who sees it all at once would say.
    #[test]
    fn step_by_step_is_as_good_as_at_once_with_shards(
        steps in prop::collection::vec((0usize..9, 0usize..7, 0usize..3, 0usize..13, any::<bool>()), 1..60),
    ) {
        let mut desk = Desk::coding(7);
        let mut held: Vec<BTreeSet<PackId>> = vec![BTreeSet::new(); 7];
        let mut entries = Vec::new();
        for (what, device, n, at, up) in steps {
            match what {
                0 => desk.born(n, 5),
                1 => {
                    desk.coded(n, usize::from(up), 6 + at as u64);
                    entries.push(desk.entry);
                }
                2 if at < 3 => desk.replaced(n, &[(n + 1) % 3], 6 + u64::from(up)),
                3 | 4 => {
                    let of = if at == 12 { pack(n) } else { shard(n, at / 6, at % 6) };
                    if up { held[device].insert(of); } else { held[device].remove(&of); }
                    desk.holds_these(device, held[device].iter().copied());
                }
                5 if device > 0 => desk.connect(device, up),
                6 => {
                    let leaving = if up { Leaving::Drains } else { Leaving::Stays };
                    let id = desk.devices[device].id();
                    desk.givers.get_mut(&id).unwrap().leaving = (leaving, Hlc(1));
                    desk.arrange();
                }
                7 => {
                    if let Some(entry) = entries.pop() {
                        desk.unsay(entry);
                    }
                }
                _ => {
                    if let Some(pull) = desk.pulls.pop() {
                        desk.keeper.pulled(desk.now, pull.pack, Pulled::Failed);
                    }
                }
            }
            if up {
                desk.settle();
            }
        }
        desk.pass(Span::from_secs(2));
        let mut at_once = Keeper::new(desk.devices[0].id(), NOW);
        at_once.arrange(desk.now, desk.givers.clone(), desk.policy.clone(), desk.view());
        let mut now = desk.now;
        while let Some(due) = at_once.look_due {
            now = now.max(due);
            at_once.look(now, desk.view());
        }
        prop_assert_eq!(&desk.keeper.live, &at_once.live);
        prop_assert_eq!(&desk.keeper.weak, &at_once.weak);
        let wants = |keeper: &Keeper| -> BTreeMap<PackId, (u64, usize, bool)> {
            let wants = keeper.wants.iter();
            wants.map(|(pack, want)| (*pack, (want.bytes, want.copies, want.in_reach))).collect()
        };
        prop_assert_eq!(wants(&desk.keeper), wants(&at_once));
        prop_assert_eq!(&desk.keeper.surplus, &at_once.surplus);
        // What restores itself is not called lost.
        for n in 0..3 {
            let Some(coded) = desk.packs.coded(&pack(n), &desk.access) else { continue };
            let lie = desk.keeper.lie(coded, desk.view());
            if lie.restore() {
                prop_assert_ne!(desk.keeper.weak.get(&pack(n)), Some(&Weak::Lost));
            }
        }
    }
}
