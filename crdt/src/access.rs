//! Who belongs to a space and who counted when: members, removals, epochs, folded from the records of `access`.
//!
//! Spec: `protocol/spec/access.md`, "Who counts".

pub(crate) mod bits;
mod content;
pub(crate) mod fold;
mod record;

pub(crate) use content::{Content, Opened, Sealed};
pub use record::{Genesis, Member, NAME_BYTES_MAX, Newcomer, Removal, Role};

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, EntryId, EpochId};
use kith_object::key::AgreeKey;

/// A device that belongs to the space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// What it may do.
    pub role: Role,
    /// What people call it.
    pub name: String,
    /// Where its envelopes are sealed to; `None` if its certificates disagree, and then it gets none.
    pub agree: Option<AgreeKey>,
}

/// A device that belonged to the space, or was refused before it ever did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// What people called it; empty if it never was admitted.
    pub name: String,
    /// What it could do before; `None` if it never was admitted.
    pub role: Option<Role>,
    /// The removals, each by its entry.
    pub removals: BTreeSet<EntryId>,
}

/// Who belongs to a space, as the entries that count say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// The root key, once genesis is known.
    pub root: Option<DeviceId>,
    /// The recovery key, once genesis is known.
    pub recovery: Option<AgreeKey>,
    /// Devices that belong.
    pub members: BTreeMap<DeviceId, Device>,
    /// Devices that were removed; a removed key never returns.
    pub removed: BTreeMap<DeviceId, Removed>,
    /// Epochs that count and that no other one follows.
    pub epoch_heads: BTreeSet<EpochId>,
    /// An admin's entry holds what this program does not know: nothing may be written until it is updated.
    pub outdated: bool,
}

impl Access {
    /// The device's role, if it belongs.
    pub fn role(&self, device: &DeviceId) -> Option<Role> {
        self.members.get(device).map(|member| member.role)
    }

    /// Whether the device has the keys of what is stored: a member or an admin.
    pub fn is_member(&self, device: &DeviceId) -> bool {
        self.role(device) >= Some(Role::Member)
    }

    /// Whether the device is an admin or the root, or was an admin when it was removed: what of its words counts is an admin's.
    pub fn was_ever_admin(&self, device: &DeviceId) -> bool {
        let gone = || self.removed.get(device).and_then(|removed| removed.role);
        self.root == Some(*device) || self.role(device).or_else(gone) == Some(Role::Admin)
    }

    /// Whether the device belongs, blind holders included: who may enter the inside.
    pub fn belongs(&self, device: &DeviceId) -> bool {
        self.members.contains_key(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::push_record;
    use crate::epoch::{Envelope, EpochRecord, KeyPart, Link};
    use kith_object::id::SpaceId;
    use kith_object::key::{DeviceKeys, Rng, Secret};
    use proptest::prelude::*;

    fn member(name: &str) -> Member {
        let keys = DeviceKeys::generate(&mut Rng::from_seed([1; 32]));
        Member {
            device: keys.id(),
            agree: keys.agree_public(),
            role: Role::Member,
            name: name.to_owned(),
        }
    }

    #[test]
    fn names_of_devices_are_short_and_plain() {
        for good in ["a", "Großmutters Laptop", &"x".repeat(64)] {
            assert_eq!(Member::decode(&member(good).encode()), Some(member(good)));
        }
        for bad in [
            "",
            "two\nlines",
            "bell\u{7}",
            "tur\u{202e}ned",
            &"x".repeat(65),
        ] {
            assert!(!member(bad).is_valid() && Member::decode(&member(bad).encode()).is_none());
        }
        let dead = Member {
            agree: AgreeKey([0; 32]),
            ..member("a")
        };
        assert_eq!(
            Member::decode(&dead.encode()),
            None,
            "no secret belongs to that key"
        );
    }

    #[test]
    fn open_part_stands_in_one_order() {
        let mut rng = Rng::from_seed([2; 32]);
        let space = SpaceId([3; 32]);
        let record = EpochRecord {
            holder: [4; 32],
            member: [5; 32],
            parents: vec![EpochId([6; 32])],
        };
        let id = record.id(&space);
        let key = Secret::new([7; 32]);
        let link = |earlier: u8, rng: &mut Rng| {
            Link::seal(
                &space,
                (id, &key),
                (EpochId([earlier; 32]), &[8; 64]),
                KeyPart::Holder,
                rng,
            )
        };
        let to = DeviceKeys::generate(&mut rng).agree_public();
        let envelope = |epoch, part| Envelope::seal(&space, epoch, to, part, &[8; 64]).unwrap();
        let good = Opened {
            epoch: Some(record),
            links: vec![link(6, &mut rng), link(7, &mut rng)],
            envelopes: vec![envelope(id, KeyPart::Holder), envelope(id, KeyPart::Member)],
            ..Opened::default()
        };
        let read = |opened: &Opened| Opened::decode(&opened.encode(), &space);
        assert_eq!(read(&good), Some(good.clone()));
        let spoilt: [&dyn Fn(&mut Opened); 6] = [
            &|opened| opened.links.reverse(),
            &|opened| opened.envelopes.reverse(),
            &|opened| opened.links[1] = opened.links[0].clone(),
            &|opened| opened.links[0].epoch = EpochId([1; 32]),
            &|opened| opened.envelopes[0].epoch = EpochId([1; 32]),
            &|opened| opened.epoch = None,
        ];
        for spoil in spoilt {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert_eq!(read(&bad), None);
        }
        let mut twice = good.encode();
        twice.extend_from_slice(&good.encode());
        assert_eq!(Opened::decode(&twice, &space), None);
        let many: Vec<Envelope> = (0..17)
            .map(|n| envelope(EpochId([n; 32]), KeyPart::Holder))
            .collect();
        assert_eq!(
            read(&Opened {
                envelopes: many,
                ..Opened::default()
            }),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(kind in 0u16..10, body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let space = SpaceId([3; 32]);
            let mut framed = Vec::new();
            push_record(&mut framed, kind, &body);
            if let Some(opened) = Opened::decode(&framed, &space).filter(|opened| !opened.unknown) {
                prop_assert_eq!(opened.encode(), framed.clone());
            }
            if let Some(sealed) = Sealed::decode(&framed).filter(|sealed| *sealed != Sealed::Unknown) {
                prop_assert_eq!(sealed.encode(), framed.clone());
            }
            let _ = Opened::decode(&body, &space);
            let _ = Sealed::decode(&body);
            prop_assert!(Genesis::decode(&body).is_none_or(|genesis| genesis.encode() == body));
            prop_assert!(Removal::decode(&body).is_none_or(|removal| removal.encode() == body));
            prop_assert!(Member::decode(&body).is_none_or(|member| member.encode() == body));
            prop_assert!(EpochRecord::decode(&body).is_none_or(|record| record.encode() == body));
            prop_assert!(Link::decode(&body).is_none_or(|link| link.encode() == body));
            prop_assert!(Envelope::decode(&body).is_none_or(|envelope| envelope.encode() == body));
        }

        #[test]
        fn mutated_certificates_read_as_what_they_say(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = member("laptop").encode();
            let at = at.index(bytes.len());
            bytes[at] = to;
            prop_assert!(Member::decode(&bytes).is_none_or(|member| member.encode() == bytes));
            prop_assert!(Member::decode(&bytes[..at]).is_none());
        }
    }
}
