//! Devices and versions as the local API shows them.

use kith_core::device::Device;
use kith_crdt::access::Role;
use kith_crdt::catalogue::Leaving;
use kith_crdt::names::{HistoryItem, Listed};
use kith_object::id::DeviceId;
use kith_object::tree::FileKind;
use kith_protocol::api::{self, Name};

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Blind => "blind",
        Role::Member => "member",
        Role::Admin => "admin",
    }
}

pub(super) fn kind_name(kind: FileKind) -> String {
    match kind {
        FileKind::File => "file",
        FileKind::Folder => "folder",
        FileKind::Symlink => "symlink",
    }
    .to_owned()
}

pub(super) fn device_name(device: &Device, id: &DeviceId) -> String {
    let access = device.access();
    let member = access.members.get(id).map(|member| &member.name);
    let removed = || access.removed.get(id).map(|removed| &removed.name);
    member
        .or_else(removed)
        .filter(|name| !name.is_empty())
        .cloned()
        .unwrap_or_else(|| id.to_string())
}

/// A device of the mesh, or one that was.
pub(super) fn described(device: &Device, id: &DeviceId) -> api::Device {
    let access = device.access();
    let member = access.members.get(id);
    let given = device
        .keeper()
        .givers()
        .get(id)
        .cloned()
        .unwrap_or_default();
    let holds = device.holdings().of(id);
    api::Device {
        device: id.to_string(),
        name: device_name(device, id),
        role: member
            .map_or("removed", |member| role_name(member.role))
            .to_owned(),
        this: *id == device.id(),
        connected: device.peers().contains(id),
        removed: member.is_none(),
        capacity: given.capacity,
        site: given.site,
        grace_s: given.grace.as_ms() / 1000,
        leaving: leaving_name(given.leaving.0).to_owned(),
        gone: given.leaving.0 != Leaving::Drains && device.keeper().uncounted().contains(id),
        told: holds.is_some(),
        packs: holds.map_or(0, |set| set.len() as u64),
        heard_ms: device.heard(id).map_or(0, |heard| heard.0),
    }
}

pub(super) fn leaving_name(leaving: Leaving) -> &'static str {
    match leaving {
        Leaving::Stays => "stays",
        Leaving::Drains => "drains",
        Leaving::Lost => "lost",
    }
}

pub(super) fn entry(device: &Device, listed: &Listed) -> api::Entry {
    api::Entry {
        name: Name(listed.name.clone()),
        kind: kind_name(listed.kind),
        size: listed.size,
        mtime_ms: listed.mtime_ms,
        mode: listed.mode,
        cid: listed.link.as_ref().map(|link| link.cid().to_string()),
        version: listed.version.map(|version| version.id.to_string()),
        device: listed
            .version
            .map(|version| device_name(device, &version.author)),
        conflict: listed.conflict,
    }
}

pub(super) fn version(device: &Device, item: &HistoryItem) -> api::Version {
    api::Version {
        version: item.version.id.to_string(),
        path: item.path.as_ref().map(|path| Name(path.to_bytes())),
        kind: kind_name(item.kind),
        size: item.size,
        mtime_ms: item.mtime_ms,
        written_ms: item.version.hlc.time().0,
        cid: item.link.as_ref().map(|link| link.cid().to_string()),
        device: device_name(device, &item.version.author),
        deleted: item.deleted,
        current: item.current,
    }
}
