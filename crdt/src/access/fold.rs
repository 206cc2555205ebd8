//! The fold: from all entries of `access` to who counts. A pure function of the set; the order they came in is not in it.
//!
//! Three layers, each judged by what lies above it only, so that no two removals can void one another: the root, the
//! devices it made admins, everybody else. Spec: `protocol/spec/access.md`, "Who counts".

use std::collections::{BTreeMap, BTreeSet};

use kith_object::id::{DeviceId, EntryId, EpochId, SpaceId};
use kith_object::key::AgreeKey;

use super::bits::Bits;
use super::content::Content;
use super::record::{Member, Removal, Role};
use crate::chain::DocumentKind;
use crate::epoch::KeyPart;

/// One entry of `access`, as the fold sees it. Entries are numbered so that each comes after its past.
pub(crate) struct Item<'a> {
    pub(crate) author: DeviceId,
    pub(crate) id: EntryId,
    pub(crate) payload_len: u32,
    /// Its number among all entries.
    pub(crate) node: u32,
    /// The entries of `access` in its past, by their place in the list.
    pub(crate) past: &'a Bits,
    /// It was thrown out: it never counts. It says nothing then.
    pub(crate) thrown_out: bool,
    /// What it says; `None` while its keys are missing.
    pub(crate) content: Option<&'a Content>,
    /// If it is a removal: all entries in the past of its frontier, by number.
    pub(crate) spared: Option<&'a Bits>,
}

/// What the fold comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Verdict {
    /// Which entries of `access` count, by their place.
    pub(crate) counted: Vec<bool>,
    /// Certificates in force, by device: the entry's place, and the role it gives.
    pub(crate) certificates: BTreeMap<DeviceId, Vec<(u32, Role)>>,
    /// Removals in force, by device: the places of their entries.
    pub(crate) removals: BTreeMap<DeviceId, Vec<u32>>,
    /// Epochs that count, and who was sent which part of their keys by entries that count.
    pub(crate) epochs: BTreeMap<EpochId, BTreeSet<(AgreeKey, KeyPart)>>,
    /// The entries whose envelopes of it those are, by their places.
    pub(crate) envelopes: BTreeMap<EpochId, Vec<u32>>,
    /// Devices that opened each of them, and so chose its keys, whoever they were sent to; the root is not told.
    pub(crate) makers: BTreeMap<EpochId, BTreeSet<DeviceId>>,
    /// Devices that wrote more entries of `access` than one has use for, and of those entries the ones that prove it.
    pub(crate) overrun: BTreeMap<DeviceId, Overrun>,
    /// An entry of an admin or the root holds what this program does not know.
    pub(crate) outdated: bool,
}

/// Entries of `access` that a device of that role may write, and the bytes of their payloads.
///
/// A member opens an epoch a few times a year, and one is some hundred kilobytes where hundreds of devices belong. A blind
/// holder ends its membership, once.
pub(crate) const fn access_limits(role: Role) -> (usize, usize) {
    match role {
        Role::Blind => (64, 1 << 20),
        // Tests reach the limit in less.
        Role::Member => (if cfg!(test) { 64 } else { 4096 }, 16 << 20),
        Role::Admin => (usize::MAX, usize::MAX),
    }
}

/// The first entries of `access` of a device that overran its limits, as many as it takes to show that.
///
/// First by how many of its own they have in their past, then by id: so what each has in its past stands before it, and
/// whoever knows of more entries than another can only put others in the place of these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Overrun {
    pub(crate) proof: Bits,
    /// The rank of the last of them.
    pub(crate) last: (u32, EntryId),
}

impl Verdict {
    /// The role that certificates in this past give the device.
    pub(crate) fn role_at(&self, device: &DeviceId, past: &Bits) -> Option<Role> {
        highest(&self.certificates, device, past)
    }
}

/// The highest role that these certificates give the device in this past.
fn highest(
    certificates: &BTreeMap<DeviceId, Vec<(u32, Role)>>,
    device: &DeviceId,
    past: &Bits,
) -> Option<Role> {
    let list = certificates.get(device)?;
    list.iter()
        .filter(|(place, _)| past.contains(*place))
        .map(|(_, role)| *role)
        .max()
}

/// The proof that these are as many as that, if they are.
fn overrun_of(
    written: &[(u32, &Item<'_>)],
    entries_max: usize,
    bytes_max: usize,
) -> Option<Overrun> {
    let len = |item: &Item<'_>| usize::try_from(item.payload_len).unwrap_or(usize::MAX);
    let total = written
        .iter()
        .fold(0usize, |sum, (_, item)| sum.saturating_add(len(item)));
    if written.len() < entries_max && total < bytes_max {
        return None;
    }
    let mut own = Bits::default();
    for (place, _) in written {
        own.insert(*place);
    }
    let mut ranked: Vec<((u32, EntryId), u32, usize)> = written
        .iter()
        .map(|(place, item)| ((item.past.common(&own), item.id), *place, len(item)))
        .collect();
    ranked.sort_unstable();
    let mut found = Overrun::default();
    let (mut entries, mut bytes) = (0usize, 0usize);
    for (rank, place, len) in ranked {
        if entries >= entries_max || bytes >= bytes_max {
            break;
        }
        found.proof.insert(place);
        found.last = rank;
        entries += 1;
        bytes = bytes.saturating_add(len);
    }
    Some(found)
}

/// Whether a role may write to a document at all.
pub(crate) fn may_write(role: Role, document: DocumentKind) -> bool {
    match document {
        DocumentKind::Access | DocumentKind::Catalogue => true,
        DocumentKind::Names => role >= Role::Member,
    }
}

/// Removals that void entries of a device.
type Limits<'a> = BTreeMap<DeviceId, Vec<(u32, Option<&'a Bits>)>>;

struct Fold<'a> {
    root: DeviceId,
    items: &'a [Item<'a>],
    /// Whether the entry makes an admin and stands: by the root, and no removal of that device that counts is in its past.
    makes_admin: Vec<bool>,
    /// Whether the entry is an admin's and stands.
    by_admin: Vec<bool>,
    /// Devices that the root made admins.
    admins: BTreeSet<DeviceId>,
    by_root: Limits<'a>,
    by_admins: Limits<'a>,
    by_themselves: Limits<'a>,
}

/// Folds the entries of `access` of a space.
pub(crate) fn fold(space: &SpaceId, root: Option<DeviceId>, items: &[Item<'_>]) -> Verdict {
    let Some(root) = root else {
        return Verdict::default();
    };
    let mut fold = Fold {
        root,
        items,
        makes_admin: Vec::with_capacity(items.len()),
        by_admin: Vec::with_capacity(items.len()),
        admins: BTreeSet::new(),
        by_root: Limits::new(),
        by_admins: Limits::new(),
        by_themselves: Limits::new(),
    };
    fold.judge_admins();
    fold.judge_others();
    fold.conclude(space)
}

impl<'a> Fold<'a> {
    fn removals(&self) -> impl Iterator<Item = (u32, &'a Item<'a>, &'a Removal)> + use<'a> {
        let items = self.items;
        (0u32..)
            .zip(items)
            .filter_map(|(place, item)| Some((place, item, item.content?.removal.as_ref()?)))
    }

    fn member_at(&self, place: u32) -> Option<&'a Member> {
        self.item(place)?.content?.member.as_ref()
    }

    fn item(&self, place: u32) -> Option<&'a Item<'a>> {
        self.items.get(usize::try_from(place).ok()?)
    }

    /// First and second layer: what the root says stands; what admins say is judged by the root's removals, and by
    /// their own of themselves.
    fn judge_admins(&mut self) {
        for (place, item, removal) in self.removals() {
            if item.author == self.root {
                self.by_root
                    .entry(removal.device)
                    .or_default()
                    .push((place, item.spared));
            }
        }
        for (place, item, removal) in self.removals() {
            let ends_own = item.author == removal.device && item.author != self.root;
            // Whoever ends its own membership does not say what of it counts once somebody above it has.
            if ends_own && !self.by_root.contains_key(&removal.device) {
                self.by_themselves
                    .entry(removal.device)
                    .or_default()
                    .push((place, item.spared));
            }
        }
        let mut certified: BTreeMap<DeviceId, Vec<u32>> = BTreeMap::new();
        let mut removed: BTreeMap<DeviceId, Vec<u32>> = BTreeMap::new();
        for (place, item) in (0u32..).zip(self.items) {
            let makes = self.makes_admin(item, &removed);
            self.makes_admin.push(makes);
            if let Some(member) = self.member_at(place).filter(|_| makes) {
                self.admins.insert(member.device);
                certified.entry(member.device).or_default().push(place);
            }
            let is_admin = certified
                .get(&item.author)
                .is_some_and(|places| places.iter().any(|at| item.past.contains(*at)));
            let stands = is_admin && spares(&self.by_root, item) && self.spared_by_itself(item);
            self.by_admin.push(stands);
            if let Some(removal) = item.content.and_then(|content| content.removal.as_ref())
                && (item.author == self.root || (stands && removal.device != item.author))
            {
                removed.entry(removal.device).or_default().push(place);
            }
        }
    }

    fn makes_admin(&self, item: &Item<'_>, removed: &BTreeMap<DeviceId, Vec<u32>>) -> bool {
        let Some(member) = item.content.and_then(|content| content.member.as_ref()) else {
            return false;
        };
        let returns = removed
            .get(&member.device)
            .is_some_and(|places| places.iter().any(|at| item.past.contains(*at)));
        item.author == self.root && member.role == Role::Admin && !returns
    }

    /// Third layer: members and blind holders, judged by all above them. A removal of an admin by an admin is nothing.
    fn judge_others(&mut self) {
        for (place, item, removal) in self.removals() {
            let device = removal.device;
            if self.stands_by_admin(place)
                && device != item.author
                && device != self.root
                && !self.admins.contains(&device)
            {
                self.by_admins
                    .entry(device)
                    .or_default()
                    .push((place, item.spared));
            }
        }
        let by_admins = &self.by_admins;
        self.by_themselves
            .retain(|device, _| !by_admins.contains_key(device));
    }

    fn stands_by_admin(&self, place: u32) -> bool {
        usize::try_from(place).is_ok_and(|place| self.by_admin.get(place) == Some(&true))
    }

    fn spared_by_itself(&self, item: &Item<'_>) -> bool {
        ends_own(item) || spares(&self.by_themselves, item)
    }

    /// Who wrote more entries of `access` than its role has use for, and was not removed by anybody above it.
    fn overrun(&self) -> BTreeMap<DeviceId, Overrun> {
        let mut certificates: BTreeMap<DeviceId, Vec<(u32, Role)>> = BTreeMap::new();
        let mut written: BTreeMap<DeviceId, Vec<(u32, &Item<'_>)>> = BTreeMap::new();
        for (place, item) in (0u32..).zip(self.items) {
            let role = highest(&certificates, &item.author, item.past);
            let judged = role.is_some_and(|role| role < Role::Admin)
                && item.author != self.root
                && !item.thrown_out
                && !self.by_root.contains_key(&item.author)
                && !self.by_admins.contains_key(&item.author);
            if judged {
                written.entry(item.author).or_default().push((place, item));
            }
            if let Some(member) = self.member_at(place).filter(|_| self.certifies(place)) {
                let list = certificates.entry(member.device).or_default();
                list.push((place, member.role));
            }
        }
        let role = |device| {
            let list = certificates.get(device).into_iter().flatten();
            list.map(|(_, role)| *role).max()
        };
        let mut overrun = BTreeMap::new();
        for (device, list) in &written {
            let (entries_max, bytes_max) = access_limits(role(device).unwrap_or(Role::Blind));
            if let Some(found) = overrun_of(list, entries_max, bytes_max) {
                overrun.insert(*device, found);
            }
        }
        overrun
    }

    /// Whether the certificate in that entry, if there is one, is in force.
    fn certifies(&self, place: u32) -> bool {
        let (Some(item), Some(member)) = (self.item(place), self.member_at(place)) else {
            return false;
        };
        let may = match member.role {
            Role::Admin => {
                usize::try_from(place).is_ok_and(|place| self.makes_admin.get(place) == Some(&true))
            }
            Role::Member | Role::Blind => item.author == self.root || self.stands_by_admin(place),
        };
        may && member.device != self.root
    }

    fn conclude(&self, space: &SpaceId) -> Verdict {
        let mut verdict = Verdict::default();
        for limits in [&self.by_root, &self.by_admins, &self.by_themselves] {
            for (device, list) in limits.iter().filter(|(device, _)| **device != self.root) {
                let places = list.iter().map(|(place, _)| *place);
                verdict.removals.entry(*device).or_default().extend(places);
            }
        }
        verdict.removals.retain(|_, list| !list.is_empty());
        verdict.overrun = self.overrun();
        let mut opened: BTreeMap<EpochId, Vec<u32>> = BTreeMap::new();
        let mut sent: Vec<(EpochId, AgreeKey, KeyPart, u32)> = Vec::new();
        for (place, item) in (0u32..).zip(self.items) {
            let by_root = item.author == self.root;
            let role = verdict.role_at(&item.author, item.past);
            let spared = spares(&self.by_root, item)
                && spares(&self.by_admins, item)
                && self.spared_by_itself(item);
            let counts = !item.thrown_out && (by_root || (role.is_some() && spared));
            let overrun = verdict.overrun.get(&item.author);
            let proves = overrun.is_none_or(|overrun| overrun.proof.contains(place));
            verdict.counted.push(counts && proves);
            // What proves that its author wrote too much says nothing else.
            let counts = counts && overrun.is_none();
            let Some(content) = item.content else {
                continue;
            };
            let commands = by_root || self.stands_by_admin(place);
            verdict.outdated |= content.unknown && commands;
            if let Some(member) = &content.member
                && self.certifies(place)
            {
                verdict
                    .certificates
                    .entry(member.device)
                    .or_default()
                    .push((place, member.role));
                sent.extend(
                    content
                        .envelopes
                        .iter()
                        .map(|envelope| (envelope.epoch, envelope.recipient, envelope.part, place)),
                );
            }
            if let Some(record) = &content.epoch {
                let id = record.id(space);
                let may = if content.removal.is_some() {
                    commands
                } else {
                    by_root || role >= Some(Role::Member)
                };
                let founds = by_root && content.genesis.is_some();
                let known = founds == record.parents.is_empty()
                    && record.parents.iter().all(|parent| {
                        opened
                            .get(parent)
                            .is_some_and(|places| places.iter().any(|at| item.past.contains(*at)))
                    });
                opened.entry(id).or_default().push(place);
                if counts && may && known {
                    if !by_root {
                        verdict.makers.entry(id).or_default().insert(item.author);
                    }
                    verdict.envelopes.entry(id).or_default().push(place);
                    let to = verdict.epochs.entry(id).or_default();
                    to.extend(
                        content
                            .envelopes
                            .iter()
                            .map(|envelope| (envelope.recipient, envelope.part)),
                    );
                }
            }
        }
        for (epoch, recipient, part, place) in sent {
            if let Some(to) = verdict.epochs.get_mut(&epoch) {
                to.insert((recipient, part));
                let places = verdict.envelopes.entry(epoch).or_default();
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        verdict
    }
}

/// Whether these removals leave the entry standing.
fn spares(limits: &Limits<'_>, item: &Item<'_>) -> bool {
    let limits = limits
        .get(&item.author)
        .map(Vec::as_slice)
        .unwrap_or_default();
    limits
        .iter()
        .all(|(_, spared)| spared.is_some_and(|spared| spared.contains(item.node)))
}

/// Whether the entry ends its author's own membership.
fn ends_own(item: &Item<'_>) -> bool {
    item.content
        .and_then(|content| content.removal.as_ref())
        .is_some_and(|removal| removal.device == item.author)
}
