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

    /// Whether the device belongs, blind holders included: who may enter the inside.
    pub fn belongs(&self, device: &DeviceId) -> bool {
        self.members.contains_key(device)
    }
}
