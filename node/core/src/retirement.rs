//! Packs on their way out, as the catalogue tells of them: who waits for whom until their files may go.
//!
//! Spec: `protocol/spec/garbage.md`, "Dropping".

use std::collections::{BTreeMap, BTreeSet};

use kith_crdt::access::{Access, Role};
use kith_crdt::catalogue::CatalogueRecord;
use kith_object::id::{DeviceId, EntryId, PackId};
use kith_object::time::{Hlc, Span, Time};

/// How long a retirement that leaves blocks out waits at least, where there is another device: an entry on its way may name one of them.
pub const RIPE_AFTER: Span = Span::from_secs(86_400);
/// A member that is silent for so long is not waited for.
pub const SILENT_AFTER: Span = Span::from_secs(90 * 86_400);

/// A pack that a device has retired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retirement {
    /// The entry that says so, and which of its records.
    pub entry: EntryId,
    /// Its place there.
    pub index: u32,
    /// Which pack.
    pub pack: PackId,
    /// Who retired it.
    pub author: DeviceId,
    /// When, by its own stamp.
    pub hlc: Hlc,
    /// How many blocks it leaves out.
    pub left_out: u32,
}

/// Whether the file of a retired pack may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ripeness {
    /// It may, once what is kept of it was found to lie elsewhere.
    Ripe,
    /// Not before that moment, and not before these devices have said that they miss nothing.
    Waits {
        /// Keyed members that have not said so.
        on: Vec<DeviceId>,
        /// The day is not over.
        until: Option<Time>,
    },
}

/// The fold of `born`, `retired` and `seen`. What it says is a function of the records that count, but that a `born` that ceases to count still voids
/// retirements before it until the next start: that keeps a file too long, which is harmless.
#[derive(Debug, Default)]
pub struct Retirements {
    /// Whose fold this is.
    me: DeviceId,
    /// When this device last said that a pack has come to be here. What others say of theirs voids none of its own retirements: else any of them could keep
    /// it from ever collecting.
    born: BTreeMap<PackId, Hlc>,
    list: BTreeMap<(EntryId, u32), Retirement>,
    /// Who has said `seen` of an entry: in which entry, and whether in full.
    seen: BTreeMap<EntryId, Vec<(DeviceId, EntryId, bool)>>,
}

impl Retirements {
    /// Nothing yet, as that device sees it.
    pub fn new(me: DeviceId) -> Self {
        Self {
            me,
            ..Self::default()
        }
    }

    /// Takes in a record that counts.
    pub(crate) fn add(
        &mut self,
        (entry, index): (EntryId, u32),
        author: DeviceId,
        hlc: Hlc,
        record: &CatalogueRecord,
    ) {
        match record {
            CatalogueRecord::Born(born) if author == self.me => {
                let last = self.born.entry(born.pack).or_insert(hlc);
                *last = (*last).max(hlc);
            }
            CatalogueRecord::Retired(retired) => {
                let retirement = Retirement {
                    entry,
                    index,
                    pack: retired.pack,
                    author,
                    hlc,
                    left_out: u32::try_from(retired.left_out.len()).unwrap_or(u32::MAX),
                };
                self.list.insert((entry, index), retirement);
            }
            CatalogueRecord::Seen(seen) => {
                let list = self.seen.entry(seen.entry).or_default();
                if !list.contains(&(author, entry, seen.in_full)) {
                    list.push((author, entry, seen.in_full));
                }
            }
            _ => {}
        }
    }

    /// Takes back what an entry said.
    pub(crate) fn remove(&mut self, entry: &EntryId) {
        let of_entry = (*entry, 0)..=(*entry, u32::MAX);
        let gone: Vec<_> = self.list.range(of_entry).map(|(key, _)| *key).collect();
        for key in gone {
            self.list.remove(&key);
        }
        self.seen.retain(|_, list| {
            list.retain(|(_, by, _)| by != entry);
            !list.is_empty()
        });
    }

    /// Whether this device has said of a pack that it came to be here.
    pub fn is_born(&self, pack: &PackId) -> bool {
        self.born.contains_key(pack)
    }

    /// Whether the retirement stands: its author is a keyed member, and if that is this device, the pack did not come to be again since.
    pub fn stands(&self, retirement: &Retirement, access: &Access) -> bool {
        let born = self.born.get(&retirement.pack);
        access.is_member(&retirement.author)
            && (retirement.author != self.me || born.is_none_or(|born| *born <= retirement.hlc))
    }

    /// This device's own that stand: the only ones by which it drops anything. What another one retires it judges, and retires, itself.
    pub fn own<'a>(&'a self, access: &'a Access) -> impl Iterator<Item = &'a Retirement> + use<'a> {
        let me = self.me;
        self.standing(access)
            .filter(move |retirement| retirement.author == me)
    }

    /// All that stand.
    pub fn standing<'a>(
        &'a self,
        access: &'a Access,
    ) -> impl Iterator<Item = &'a Retirement> + use<'a> {
        let all = self.list.values();
        all.filter(|retirement| self.stands(retirement, access))
    }

    /// Whether the file may go on a device with the keys. `heard` is when each member last gave a sign of life.
    pub fn ripeness(
        &self,
        retirement: &Retirement,
        access: &Access,
        heard: &BTreeMap<DeviceId, Time>,
        now: Time,
    ) -> Ripeness {
        if retirement.left_out == 0 {
            return Ripeness::Ripe;
        }
        let seen = self.seen.get(&retirement.entry);
        let stamp = retirement.hlc.time();
        let others = access
            .members
            .iter()
            .filter(|(device, _)| **device != retirement.author);
        let alone = others.clone().count() == 0;
        let keyed = others.filter(|(_, member)| member.role >= Role::Member);
        let mut on: Vec<DeviceId> = keyed.map(|(device, _)| *device).collect();
        on.retain(|device| {
            let said = seen.is_some_and(|list| list.iter().any(|(by, _, _)| by == device));
            // Who was there after the retirement was waited for may still say it.
            let heard = heard.get(device).copied().unwrap_or_default().max(stamp);
            !said && now.since(heard) < SILENT_AFTER
        });
        let until = (!alone && stamp + RIPE_AFTER > now).then(|| stamp + RIPE_AFTER);
        if on.is_empty() && until.is_none() {
            Ripeness::Ripe
        } else {
            Ripeness::Waits { on, until }
        }
    }

    /// Whether a keyed member besides the author went through everything that it keeps.
    pub fn is_seen_in_full(&self, retirement: &Retirement, access: &Access) -> bool {
        let seen = self.seen.get(&retirement.entry).into_iter().flatten();
        let mut others =
            seen.filter(|(by, _, full)| *full && *by != retirement.author && access.is_member(by));
        others.next().is_some()
    }

    /// Entries of others that leave something out and of which this device has said nothing.
    pub fn unseen(&self, me: &DeviceId, access: &Access) -> BTreeSet<EntryId> {
        let standing = self.standing(access);
        let open = standing.filter(|retirement| {
            let seen = self.seen.get(&retirement.entry);
            retirement.left_out > 0
                && retirement.author != *me
                && !seen.is_some_and(|list| list.iter().any(|(by, _, _)| by == me))
        });
        open.map(|retirement| retirement.entry).collect()
    }

    /// Laws that hold between any two changes.
    ///
    /// # Panics
    /// If one does not.
    pub fn check_invariants(&self) {
        assert!(
            self.seen.values().all(|list| !list.is_empty()),
            "nobody is remembered to have seen nothing"
        );
        for (key, retirement) in &self.list {
            assert_eq!(
                *key,
                (retirement.entry, retirement.index),
                "each in its place"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use kith_crdt::access::Device;
    use kith_crdt::catalogue::{Born, Retired, Seen};
    use kith_crdt::replica::RecordChange;
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;
    const NOW: Time = Time(1_000 * DAY);

    fn device(byte: u8) -> DeviceId {
        DeviceId([byte; 32])
    }

    fn access(members: &[(u8, Role)]) -> Access {
        let members = members.iter().map(|(byte, role)| {
            let member = Device {
                role: *role,
                name: byte.to_string(),
                agree: None,
            };
            (device(*byte), member)
        });
        Access {
            members: members.collect(),
            ..Access::default()
        }
    }

    fn added(entry: u8, author: u8, days_ago: u64, record: &CatalogueRecord) -> RecordChange {
        RecordChange::Added {
            entry: EntryId([entry; 32]),
            index: 0,
            author: device(author),
            hlc: Hlc::new(Time(NOW.0 - days_ago * DAY), 0),
            record: record.encode(),
        }
    }

    fn retired(pack: u8, left_out: u8) -> CatalogueRecord {
        CatalogueRecord::Retired(Retired {
            pack: PackId([pack; 32]),
            replacements: Vec::new(),
            basis: Vec::new(),
            left_out: (0..left_out).map(|byte| [byte; 32]).collect(),
        })
    }

    fn seen(entry: u8, in_full: bool) -> CatalogueRecord {
        CatalogueRecord::Seen(Seen {
            entry: EntryId([entry; 32]),
            in_full,
        })
    }

    fn born(pack: u8) -> CatalogueRecord {
        CatalogueRecord::Born(Born {
            pack: PackId([pack; 32]),
            class: 3,
            blocks: 1,
            bytes: 1,
        })
    }

    fn fold(changes: &[RecordChange]) -> Retirements {
        let mut fold = Retirements::new(device(1));
        for change in changes {
            match change {
                RecordChange::Added {
                    entry,
                    index,
                    author,
                    hlc,
                    record,
                } => {
                    let record = CatalogueRecord::decode(record).unwrap();
                    fold.add((*entry, *index), *author, *hlc, &record);
                }
                RecordChange::Removed { entry } => fold.remove(entry),
            }
            fold.check_invariants();
        }
        fold
    }

    fn ripeness(fold: &Retirements, access: &Access, heard: &[(u8, u64)]) -> Ripeness {
        let heard = heard
            .iter()
            .map(|(byte, days)| (device(*byte), Time(NOW.0 - days * DAY)));
        let heard = heard.collect();
        let retirement = fold.standing(access).next().expect("one stands");
        fold.ripeness(retirement, access, &heard, NOW)
    }

    #[test]
    fn what_leaves_nothing_out_or_has_nobody_to_ask_is_ripe_at_once() {
        let two = access(&[(1, Role::Admin), (2, Role::Member)]);
        let merge = fold(&[added(1, 1, 0, &retired(9, 0))]);
        assert_eq!(ripeness(&merge, &two, &[]), Ripeness::Ripe);
        let garbage = fold(&[added(1, 1, 0, &retired(9, 2))]);
        assert_eq!(
            ripeness(&garbage, &access(&[(1, Role::Admin)]), &[]),
            Ripeness::Ripe
        );
        let waits = ripeness(&garbage, &two, &[]);
        assert!(matches!(waits, Ripeness::Waits { on, until: Some(_) } if on == [device(2)]));
        // A blind holder says nothing, but an entry may be on its way through it.
        let blind = access(&[(1, Role::Admin), (2, Role::Blind)]);
        let waits = ripeness(&garbage, &blind, &[]);
        assert!(matches!(waits, Ripeness::Waits { on, until: Some(_) } if on.is_empty()));
    }

    #[test]
    fn every_keyed_member_is_waited_for_unless_it_is_silent() {
        let three = access(&[(1, Role::Admin), (2, Role::Member), (3, Role::Admin)]);
        let old = fold(&[added(1, 1, 91, &retired(9, 2))]);
        let waits = ripeness(&old, &three, &[(2, 10), (3, 200)]);
        assert!(matches!(waits, Ripeness::Waits { on, until: None } if on == [device(2)]));
        // Silent before the retirement as well as since, but not for 90 days since.
        let young = fold(&[
            added(1, 1, 5, &retired(9, 2)),
            added(2, 2, 1, &seen(1, false)),
        ]);
        let waits = ripeness(&young, &three, &[(3, 200)]);
        assert!(matches!(waits, Ripeness::Waits { on, until: None } if on == [device(3)]));
        let all = fold(&[
            added(1, 1, 5, &retired(9, 2)),
            added(2, 2, 1, &seen(1, false)),
            added(3, 3, 1, &seen(1, true)),
        ]);
        assert_eq!(ripeness(&all, &three, &[]), Ripeness::Ripe);
        let retirement = all.standing(&three).next().unwrap();
        assert!(all.is_seen_in_full(retirement, &three));
        assert!(!all.is_seen_in_full(retirement, &access(&[(1, Role::Admin), (2, Role::Member)])));
    }

    #[test]
    fn a_pack_that_came_to_be_again_here_or_was_retired_by_a_stranger_stays() {
        let mesh = access(&[(1, Role::Admin), (2, Role::Blind)]);
        let stands = |changes: &[RecordChange]| fold(changes).standing(&mesh).count();
        let retire = added(1, 1, 3, &retired(9, 0));
        assert_eq!(stands(&[added(2, 1, 4, &born(9)), retire.clone()]), 1);
        assert_eq!(stands(&[added(2, 1, 2, &born(9)), retire.clone()]), 0);
        assert_eq!(stands(&[retire.clone(), added(2, 1, 2, &born(9))]), 0);
        assert_eq!(
            stands(&[retire, added(2, 2, 2, &born(9))]),
            1,
            "what another one says of its own packs is not of these"
        );
        assert_eq!(
            stands(&[added(1, 2, 3, &retired(9, 0))]),
            0,
            "a blind holder"
        );
        assert_eq!(stands(&[added(1, 7, 3, &retired(9, 0))]), 0);
    }

    #[test]
    fn own_retirements_and_those_already_seen_are_not_asked_about() {
        let mesh = access(&[(1, Role::Admin), (2, Role::Member)]);
        let fold = fold(&[
            added(1, 1, 3, &retired(7, 1)),
            added(2, 1, 3, &retired(8, 0)),
            added(3, 1, 3, &retired(9, 1)),
            added(4, 2, 2, &seen(3, false)),
        ]);
        assert_eq!(fold.unseen(&device(1), &mesh), BTreeSet::new());
        assert_eq!(
            fold.unseen(&device(2), &mesh),
            BTreeSet::from([EntryId([1; 32])])
        );
    }

    proptest! {
        #[test]
        fn order_and_repetition_are_invisible(
            order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
            gone in proptest::collection::btree_set(1u8..9, 0..4),
        ) {
            let mesh = access(&[(1, Role::Admin), (2, Role::Member), (3, Role::Member)]);
            let all = [
                added(1, 1, 9, &retired(7, 1)),
                added(2, 2, 8, &retired(7, 3)),
                added(3, 1, 7, &retired(8, 0)),
                added(4, 2, 6, &seen(1, true)),
                added(5, 3, 6, &seen(1, false)),
                added(6, 3, 5, &seen(2, true)),
                added(7, 3, 9, &retired(9, 1)),
                added(8, 2, 4, &seen(1, false)),
            ];
            let say = |fold: &Retirements| {
                let standing: Vec<Retirement> = fold.standing(&mesh).cloned().collect();
                let ripe: Vec<Ripeness> = standing
                    .iter()
                    .map(|retirement| fold.ripeness(retirement, &mesh, &BTreeMap::new(), NOW))
                    .collect();
                (standing, ripe, fold.unseen(&device(3), &mesh))
            };
            let mut changes: Vec<RecordChange> = order.iter().map(|at| all[*at].clone()).collect();
            changes.extend(order.iter().map(|at| all[*at].clone()));
            changes.extend(gone.iter().map(|entry| RecordChange::Removed { entry: EntryId([*entry; 32]) }));
            let left = all.iter().enumerate().filter(|(at, _)| !gone.contains(&(*at as u8 + 1)));
            let left: Vec<RecordChange> = left.map(|(_, change)| change.clone()).collect();
            prop_assert_eq!(say(&fold(&changes)), say(&fold(&left)));
        }
    }
}
