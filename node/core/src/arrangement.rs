//! Where packs are to be kept and what each device gives, as the records of `catalogue` have it.
//!
//! Spec: `protocol/spec/upkeep.md`, "Records".

use std::collections::BTreeMap;

use kith_crdt::access::Access;
use kith_crdt::catalogue::{
    CatalogueRecord, HolderRecord, Kept, Leaving, LeavingRecord, PolicyRecord,
};
use kith_object::id::{DeviceId, EntryId};
use kith_object::time::{Hlc, Span};
use kith_protocol::placement::{self, Redundancy};

use crate::settings::{Setting, Settings};

/// After so long a silence a device counts as gone that has said nothing of it: a laptop may stay closed for a holiday.
pub const GRACE: Span = Span::from_secs(14 * 86_400);

/// What a device gives, as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Giver {
    /// Bytes for packs that others rely on.
    pub capacity: u64,
    /// After how long a silence it counts as gone.
    pub grace: Span,
    /// Where it is; empty if that was not said.
    pub site: String,
    /// Whether it goes on, and since when that was said.
    pub leaving: (Leaving, Hlc),
    /// Whether anything was said of it at all.
    pub is_said: bool,
}

impl Default for Giver {
    fn default() -> Self {
        Self {
            capacity: 0,
            grace: GRACE,
            site: String::new(),
            leaving: (Leaving::Stays, Hlc(0)),
            is_said: false,
        }
    }
}

/// The fold of `policy`, `holder` and `leaving`: a function of the set of those that count.
#[derive(Debug, Default)]
pub struct Arrangement {
    policies: Settings<(), PolicyRecord>,
    holders: Settings<DeviceId, HolderRecord>,
    leaving: Settings<DeviceId, Leaving>,
}

impl Arrangement {
    /// Takes in a record that counts; whether it belongs here.
    pub(crate) fn add(
        &mut self,
        (entry, index): (EntryId, u32),
        author: DeviceId,
        hlc: Hlc,
        record: &CatalogueRecord,
    ) -> bool {
        fn setting<T>(hlc: Hlc, index: u32, author: DeviceId, value: T) -> Setting<T> {
            Setting {
                hlc,
                index,
                author,
                value,
            }
        }
        match record {
            CatalogueRecord::Policy(policy) => {
                let set = setting(hlc, index, author, policy.clone());
                self.policies.set(entry, (), set);
            }
            CatalogueRecord::Holder(holder) => {
                let set = setting(hlc, index, author, holder.clone());
                self.holders.set(entry, holder.device, set);
            }
            CatalogueRecord::Leaving(LeavingRecord { device, leaving }) => {
                let set = setting(hlc, index, author, *leaving);
                self.leaving.set(entry, *device, set);
            }
            _ => return false,
        }
        true
    }

    /// Takes back what an entry said; whether it had said anything.
    pub(crate) fn remove(&mut self, entry: &EntryId) -> bool {
        let policy = self.policies.remove(entry);
        let holder = self.holders.remove(entry);
        self.leaving.remove(entry) | holder | policy
    }

    /// What holds now, as an admin has set it.
    pub fn policy_record(&self, access: &Access) -> Option<PolicyRecord> {
        let holding = self
            .policies
            .holding(|(), author| access.was_ever_admin(author));
        holding.get(&()).map(|setting| setting.value.clone())
    }

    /// The same, as placement wants it.
    pub fn policy(&self, access: &Access) -> placement::Policy {
        self.policy_record(access)
            .map(|record| policy_of(&record))
            .unwrap_or_default()
    }

    /// What every device of the mesh gives: as it says itself, or as an admin says of it.
    pub fn givers(&self, access: &Access) -> BTreeMap<DeviceId, Giver> {
        let may = |device: &DeviceId, author: &DeviceId| {
            device == author || access.was_ever_admin(author)
        };
        let holders = self.holders.holding(may);
        let leaving = self
            .leaving
            .holding(|_, author| access.was_ever_admin(author));
        let members = access.members.keys();
        members
            .map(|device| {
                let mut giver = Giver::default();
                if let Some(setting) = holders.get(device) {
                    giver.capacity = setting.value.capacity;
                    giver.grace = Span::from_secs(u64::from(setting.value.grace));
                    giver.site.clone_from(&setting.value.site);
                    giver.is_said = true;
                }
                if let Some(setting) = leaving.get(device) {
                    giver.leaving = (setting.value, setting.hlc);
                }
                (*device, giver)
            })
            .collect()
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.policies.values().all(|policy| policy.min_sites > 0));
    }
}

/// A policy as placement wants it.
pub fn policy_of(record: &PolicyRecord) -> placement::Policy {
    placement::Policy {
        redundancy: match record.kept {
            Kept::Auto => None,
            Kept::Copies(copies) => Some(Redundancy::Replicas(copies)),
            Kept::Shards(needed, spare) => Some(Redundancy::Erasure(needed, spare)),
        },
        sites: (!record.sites.is_empty()).then(|| record.sites.clone()),
        min_sites: usize::from(record.min_sites),
    }
}

/// The devices that may hold, as placement wants them: whoever stays.
pub fn holders_of<'a>(
    givers: impl IntoIterator<Item = (&'a DeviceId, &'a Giver)>,
) -> Vec<placement::Holder> {
    let staying = givers
        .into_iter()
        .filter(|(_, giver)| giver.leaving.0 == Leaving::Stays);
    staying
        .map(|(device, giver)| placement::Holder {
            device: *device,
            site: giver.site.clone(),
            capacity: giver.capacity,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_crdt::access::{self, Role};
    use std::collections::BTreeSet;

    const ADMIN: DeviceId = DeviceId([1; 32]);
    const MEMBER: DeviceId = DeviceId([2; 32]);
    const BLIND: DeviceId = DeviceId([3; 32]);

    fn access() -> Access {
        let device = |role| access::Device {
            role,
            name: "a".to_owned(),
            agree: None,
        };
        Access {
            members: [
                (ADMIN, device(Role::Admin)),
                (MEMBER, device(Role::Member)),
                (BLIND, device(Role::Blind)),
            ]
            .into(),
            ..Access::default()
        }
    }

    fn holder(device: DeviceId, capacity: u64) -> CatalogueRecord {
        CatalogueRecord::Holder(HolderRecord {
            device,
            capacity,
            grace: 60,
            site: "home".to_owned(),
        })
    }

    fn policy(copies: u8) -> CatalogueRecord {
        CatalogueRecord::Policy(PolicyRecord {
            kept: Kept::Copies(copies),
            min_sites: 1,
            sites: BTreeSet::new(),
        })
    }

    fn leaving(device: DeviceId, leaving: Leaving) -> CatalogueRecord {
        CatalogueRecord::Leaving(LeavingRecord { device, leaving })
    }

    #[test]
    fn each_speaks_for_itself_and_admins_for_all() {
        let access = access();
        let mut all = Arrangement::default();
        let mut add = |n: u8, author, hlc, record: CatalogueRecord| {
            all.add((EntryId([n; 32]), 0), author, Hlc(hlc), &record)
        };
        assert!(add(1, BLIND, 10, holder(BLIND, 100)));
        assert!(add(2, MEMBER, 20, holder(BLIND, 1)));
        assert!(add(3, MEMBER, 20, policy(9)));
        assert!(add(4, MEMBER, 20, leaving(BLIND, Leaving::Lost)));
        assert!(!add(5, MEMBER, 20, CatalogueRecord::Unknown));
        let giver = |all: &Arrangement, device: &DeviceId| all.givers(&access)[device].clone();
        let said = giver(&all, &BLIND);
        assert_eq!((said.capacity, said.leaving.0), (100, Leaving::Stays));
        assert_eq!(giver(&all, &MEMBER), Giver::default());
        assert_eq!(all.policy(&access), placement::Policy::default());
        let mut add = |n: u8, author, hlc, record: CatalogueRecord| {
            all.add((EntryId([n; 32]), 0), author, Hlc(hlc), &record)
        };
        add(6, ADMIN, 30, holder(BLIND, 7));
        add(7, ADMIN, 30, leaving(BLIND, Leaving::Drains));
        add(8, ADMIN, 30, policy(3));
        let said = giver(&all, &BLIND);
        assert_eq!((said.capacity, said.leaving.0), (7, Leaving::Drains));
        assert!(
            !holders_of(&all.givers(&access))
                .iter()
                .any(|of| of.device == BLIND)
        );
        let redundancy = all.policy(&access).redundancy;
        assert_eq!(redundancy, Some(Redundancy::Replicas(3)));
        // What ceases to count leaves what was said before.
        for n in 6..9 {
            assert!(all.remove(&EntryId([n; 32])));
        }
        assert_eq!(giver(&all, &BLIND).capacity, 100);
        assert_eq!(all.policy(&access), placement::Policy::default());
        assert!(!all.remove(&EntryId([6; 32])));
    }
}
