//! What the records of `catalogue` come to.
//!
//! Spec: `protocol/spec/garbage.md`, "Retention".

use kith_crdt::access::Access;
use kith_crdt::catalogue::CatalogueRecord;
use kith_crdt::names::Retention;
use kith_crdt::replica::RecordChange;
use kith_object::disk::Disk;
use kith_object::id::{DeviceId, PackId};
use kith_object::index::{Index, PackInfo};
use kith_object::pack::Class;
use kith_object::store::{Keep, Store};

use crate::arrangement::Arrangement;
use crate::packs::Packs;
use crate::retirement::Retirements;
use crate::settings::{Setting, Settings};

/// Of the packs of a store those that lie there to stay, and are other devices' business.
pub fn kept<D: Disk, I: Index>(
    store: &Store<D, I>,
    packs: &[(PackId, PackInfo)],
) -> Vec<(PackId, PackInfo)> {
    let kept = packs
        .iter()
        .filter(|(pack, info)| info.class != Class::Public && store.keep_of(pack) == Keep::Kept);
    kept.copied().collect()
}

/// The fold over those records of `catalogue` that count: a function of the set of them, whatever order they came in.
#[derive(Debug, Default)]
pub struct Upkeep {
    retention: Settings<(), Retention>,
    retirements: Retirements,
    arrangement: Arrangement,
    /// Whether that has changed since this was asked last.
    is_rearranged: bool,
    packs: Packs,
}

impl Upkeep {
    /// Nothing yet, as that device sees it.
    pub fn new(me: DeviceId) -> Self {
        Self {
            retirements: Retirements::new(me),
            ..Self::default()
        }
    }

    /// Takes in what began to count or ceased to.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = RecordChange>) {
        for change in changes {
            match change {
                RecordChange::Added {
                    entry,
                    index,
                    author,
                    hlc,
                    record,
                } => match CatalogueRecord::decode(&record) {
                    Some(CatalogueRecord::Retention(value)) => {
                        let setting = Setting {
                            hlc,
                            index,
                            author,
                            value,
                        };
                        self.retention.set(entry, (), setting);
                    }
                    Some(record) => {
                        let place = (entry, index);
                        self.is_rearranged |= self.arrangement.add(place, author, hlc, &record);
                        self.retirements.add(place, author, hlc, &record);
                        self.packs.add(entry, author, hlc, &record);
                    }
                    None => tracing::debug!(%entry, index, "record of the catalogue passed over"),
                },
                RecordChange::Removed { entry } => {
                    self.retention.remove(&entry);
                    self.is_rearranged |= self.arrangement.remove(&entry);
                    self.retirements.remove(&entry);
                    self.packs.remove(&entry);
                }
            }
        }
    }

    /// Which versions keep their content, as the admins have set it.
    ///
    /// What an admin set goes on holding when it is removed, unless the removal voids the entry: a device that is lost
    /// must not shorten what the others keep.
    pub fn retention(&self, access: &Access) -> Retention {
        let holding = self
            .retention
            .holding(|(), author| access.was_ever_admin(author));
        holding
            .get(&())
            .map_or_else(Retention::default, |setting| setting.value)
    }

    /// Where packs are to be kept.
    pub fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// Which packs there are.
    pub fn packs(&self) -> &Packs {
        &self.packs
    }

    pub(crate) fn packs_mut(&mut self) -> &mut Packs {
        &mut self.packs
    }

    /// Whether the arrangement has changed since this was asked last.
    pub(crate) fn take_rearranged(&mut self) -> bool {
        std::mem::take(&mut self.is_rearranged)
    }

    /// Packs on their way out.
    pub fn retirements(&self) -> &Retirements {
        &self.retirements
    }

    /// Laws that hold between any two changes.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.retention.values().all(Retention::is_valid),
            "no setting keeps things for no day"
        );
        self.arrangement.check_invariants();
        self.retirements.check_invariants();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_crdt::access::{self, Removed, Role};
    use kith_object::id::EntryId;
    use kith_object::time::Hlc;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const ADMINS: [DeviceId; 2] = [DeviceId([1; 32]), DeviceId([2; 32])];
    const MEMBER: DeviceId = DeviceId([3; 32]);
    const GONE_ADMIN: DeviceId = DeviceId([4; 32]);
    const GONE_MEMBER: DeviceId = DeviceId([5; 32]);
    const STRANGER: DeviceId = DeviceId([6; 32]);
    const AUTHORS: [DeviceId; 6] = [
        ADMINS[0],
        ADMINS[1],
        MEMBER,
        GONE_ADMIN,
        GONE_MEMBER,
        STRANGER,
    ];
    const HOLDS: [DeviceId; 3] = [ADMINS[0], ADMINS[1], GONE_ADMIN];

    fn access() -> Access {
        let member = |role| access::Device {
            role,
            name: "a".to_owned(),
            agree: None,
        };
        let gone = |role| Removed {
            name: "b".to_owned(),
            role: Some(role),
            removals: BTreeSet::new(),
        };
        Access {
            members: BTreeMap::from([
                (ADMINS[0], member(Role::Admin)),
                (ADMINS[1], member(Role::Admin)),
                (MEMBER, member(Role::Member)),
            ]),
            removed: BTreeMap::from([
                (GONE_ADMIN, gone(Role::Admin)),
                (GONE_MEMBER, gone(Role::Member)),
            ]),
            ..Access::default()
        }
    }

    fn days(all: u32) -> Retention {
        Retention {
            all,
            daily: 1,
            monthly: 1,
        }
    }

    fn added(entry: u8, index: u32, author: DeviceId, hlc: u64, all: u32) -> RecordChange {
        RecordChange::Added {
            entry: EntryId([entry; 32]),
            index,
            author,
            hlc: Hlc(hlc),
            record: CatalogueRecord::Retention(days(all)).encode(),
        }
    }

    fn removed(entry: u8) -> RecordChange {
        RecordChange::Removed {
            entry: EntryId([entry; 32]),
        }
    }

    #[test]
    fn latest_setting_of_an_admin_holds() {
        let access = access();
        let mut upkeep = Upkeep::default();
        assert_eq!(upkeep.retention(&access), Retention::default());
        upkeep.apply([
            added(1, 0, ADMINS[0], 10, 7),
            added(2, 0, MEMBER, 99, 1),
            added(3, 0, STRANGER, 99, 2),
            added(4, 0, GONE_MEMBER, 99, 3),
        ]);
        assert_eq!(upkeep.retention(&access), days(7));
        // Of one stamp the greater entry; of one entry the last record.
        upkeep.apply([
            added(6, 2, ADMINS[1], 20, 9),
            added(6, 1, ADMINS[1], 20, 8),
            added(5, 0, ADMINS[0], 20, 5),
        ]);
        assert_eq!(upkeep.retention(&access), days(9));
        upkeep.apply([added(7, 0, GONE_ADMIN, 30, 11)]);
        assert_eq!(upkeep.retention(&access), days(11));
        for (entry, then) in [(7, days(9)), (6, days(5)), (5, days(7))] {
            upkeep.apply([removed(entry)]);
            assert_eq!(upkeep.retention(&access), then);
        }
        upkeep.apply([removed(1)]);
        assert_eq!(upkeep.retention(&access), Retention::default());
    }

    #[test]
    fn who_is_made_an_admin_later_has_set_it() {
        let mut access = access();
        let mut upkeep = Upkeep::default();
        upkeep.apply([added(1, 0, MEMBER, 10, 7)]);
        assert_eq!(upkeep.retention(&access), Retention::default());
        access.members.get_mut(&MEMBER).unwrap().role = Role::Admin;
        assert_eq!(upkeep.retention(&access), days(7));
    }

    #[test]
    fn other_and_malformed_records_are_passed_over() {
        let mut upkeep = Upkeep::default();
        let zero = {
            let mut record = CatalogueRecord::Retention(days(1)).encode();
            let end = record.len() - 4;
            record[end..].fill(0);
            record
        };
        let fixed = CatalogueRecord::Fixed(kith_crdt::catalogue::Fixed {
            generation: 1,
            frontier: Vec::new(),
            snapshot: kith_object::id::Cid::of_block(b"x"),
        });
        for record in [zero, fixed.encode(), vec![255; 9], Vec::new()] {
            upkeep.apply([RecordChange::Added {
                entry: EntryId([1; 32]),
                index: 0,
                author: ADMINS[0],
                hlc: Hlc(1),
                record,
            }]);
        }
        upkeep.check_invariants();
        assert_eq!(upkeep.retention.values().count(), 0);
    }

    proptest! {
        /// Entries come, go and come again, their records in any order; what holds depends only on which count in the end.
        #[test]
        fn order_of_arrival_is_invisible(
            entries in prop::collection::vec((0usize..6, 0u64..4, 1usize..4, 1usize..4), 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            // Of each entry the changes it goes through; those of one coming may be told in any order.
            let mut left: Vec<Vec<Vec<RecordChange>>> = Vec::new();
            let mut best: Option<((Hlc, EntryId), u32)> = None;
            for (place, (author, hlc, records, steps)) in entries.iter().enumerate() {
                let entry = place as u8;
                let all = |index: u32| 1 + index + 10 * u32::from(entry);
                let records = *records as u32;
                let coming = || -> Vec<RecordChange> {
                    (0..records)
                        .map(|index| added(entry, index, AUTHORS[*author], *hlc, all(index)))
                        .collect()
                };
                left.push(
                    (0..*steps)
                        .map(|step| if step % 2 == 0 { coming() } else { vec![removed(entry)] })
                        .collect(),
                );
                let counts = steps % 2 == 1 && HOLDS.contains(&AUTHORS[*author]);
                let key = (Hlc(*hlc), EntryId([entry; 32]));
                if counts && best.is_none_or(|(other, _)| other < key) {
                    best = Some((key, all(records - 1)));
                }
            }
            let mut upkeep = Upkeep::default();
            let mut order = order.into_iter();
            while !left.is_empty() {
                let pick = |len: usize, order: &mut std::vec::IntoIter<prop::sample::Index>| {
                    order.next().map_or(0, |index| index.index(len))
                };
                let at = pick(left.len(), &mut order);
                let step = &mut left[at][0];
                let which = pick(step.len(), &mut order);
                upkeep.apply([step.swap_remove(which)]);
                upkeep.check_invariants();
                if step.is_empty() {
                    left[at].remove(0);
                }
                if left[at].is_empty() {
                    left.swap_remove(at);
                }
            }
            let expected = best.map_or_else(Retention::default, |(_, all)| days(all));
            prop_assert_eq!(upkeep.retention(&access()), expected);
        }
    }
}
