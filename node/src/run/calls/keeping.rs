//! Where packs are kept: `policy`, `quota`, `device set`, `where`, and waiting for holders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kith_core::arrangement::{holders_of, policy_of};
use kith_core::device::{Command, Device};
use kith_core::keeper::Standing;
use kith_crdt::catalogue::{
    HolderRecord, Kept, Leaving, LeavingRecord, PolicyRecord, SITES_MAX, is_site,
};
use kith_object::id::{DeviceId, PackId};
use kith_protocol::api::{self, Event, Failure, FailureKind, PolicyWish, What};
use kith_protocol::placement::Placement;

use super::super::Node;
use super::describe::{described, device_name};
use super::failure::{change_failure, read_failure};
use super::{ending, told};
use crate::local::Teller;
use crate::restore::Item;
use crate::source::ReadError;
use crate::whereabouts::{self, Whereabouts};
use kith_object::tree::FileKind;

/// The only space there is.
const HOME: &str = "home";
/// How often it is looked whether there are as many holders as there should be.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Packs that are counted in one go.
const COUNT_MAX: usize = 4096;

/// What a device is to give.
pub(super) struct Wish {
    pub(super) capacity: Option<u64>,
    pub(super) site: Option<String>,
    pub(super) grace_s: Option<u32>,
    pub(super) leaving: Option<String>,
}

/// How well packs are kept, in numbers and one word.
pub(super) fn keeping(device: &Device) -> api::Keeping {
    let health = device.health();
    let weak = health.at_risk + health.unheard + health.lost;
    let verdict = if health.lost > 0 {
        "lost"
    } else if health.unheard > 0 || health.is_looking {
        "unknown"
    } else if health.at_risk > 0 {
        "at risk"
    } else {
        "healthy"
    };
    api::Keeping {
        verdict: verdict.to_owned(),
        packs: health.packs as u64,
        copies: health.copies as u64,
        healthy: health.packs.saturating_sub(weak) as u64,
        at_risk: health.at_risk as u64,
        unheard: health.unheard as u64,
        lost: health.lost as u64,
        wanted: health.wanted as u64,
        out_of_reach: health.out_of_reach as u64,
        surplus: health.surplus as u64,
        disproved: health.disproved as u64,
        distrusted: health.distrusted as u64,
        no_room: health.no_room,
    }
}

impl Node {
    /// Shows where packs are to be kept, after setting it if that is wanted.
    pub(super) async fn policy(
        &self,
        set: Option<PolicyWish>,
        tell: &Teller,
    ) -> Result<(), Failure> {
        if let Some(wish) = set {
            let record = record_of(&wish)?;
            let what = "change where packs are kept".to_owned();
            self.asker
                .command(Command::SetPolicy(record))
                .await
                .map_err(|error| change_failure(what, error))?;
        }
        let event = self.look(policy_event).await?;
        told(tell, event).await
    }

    /// Shows what each device takes of the room there is.
    pub(super) async fn quota(&self, tell: &Teller) -> Result<(), Failure> {
        let (mut shares, mut from) = (BTreeMap::new(), Some(PackId::default()));
        while let Some(next) = from {
            // A few at a time: whatever else the device has to do is not held up.
            let count = move |device: &Device| {
                let mut shares = shares;
                let next = device.count_shares(next, COUNT_MAX, &mut shares);
                (shares, next)
            };
            (shares, from) = self.look(count).await?;
        }
        let quotas = self.look(move |device| {
            let access = device.access();
            let known = access.members.keys().chain(access.removed.keys());
            let quota = |id: &DeviceId| {
                let share = shares.get(id).copied().unwrap_or_default();
                let given = device.keeper().givers().get(id);
                let removed = !access.members.contains_key(id);
                // Of whom nothing is left nothing is told.
                (!removed || share.wrote_packs > 0).then(|| api::Quota {
                    space: HOME.to_owned(),
                    device: id.to_string(),
                    name: device_name(device, id),
                    removed,
                    wrote_packs: share.wrote_packs,
                    wrote: share.wrote,
                    takes: share.takes,
                    held_packs: share.held_packs,
                    held: share.held,
                    gives: given.map_or(0, |given| given.capacity),
                })
            };
            known.filter_map(quota).collect::<Vec<_>>()
        });
        for quota in quotas.await? {
            told(tell, Event::Quota(quota)).await?;
        }
        Ok(())
    }

    /// Says what a device gives for packs.
    pub(super) async fn device_set(
        &self,
        named: Option<String>,
        wish: Wish,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let what = format!(
            "change what {} gives",
            named.as_deref().unwrap_or("this device")
        );
        let id = match named {
            Some(named) => self.device_named(named, &what).await?.0,
            None => self.identity.keys.id(),
        };
        if let Some(site) = wish.site.as_deref().filter(|site| !site.is_empty()) {
            check_site(&what, site)?;
        }
        let leaving = match wish.leaving.as_deref() {
            None => None,
            Some("stays") => Some(Leaving::Stays),
            Some("drains") => Some(Leaving::Drains),
            Some("lost") => Some(Leaving::Lost),
            Some(other) => {
                let text = format!("{what}: {other:?} is neither `stays`, `drains` nor `lost`");
                return Err(Failure::new(FailureKind::Usage, text));
            }
        };
        let given = self
            .look(move |device| device.keeper().givers().get(&id).cloned())
            .await?
            .unwrap_or_default();
        if wish.capacity.is_some() || wish.site.is_some() || wish.grace_s.is_some() {
            let said = u32::try_from(given.grace.as_ms() / 1000).unwrap_or(u32::MAX);
            let holder = HolderRecord {
                device: id,
                capacity: wish.capacity.unwrap_or(given.capacity),
                grace: wish.grace_s.unwrap_or(said),
                site: wish.site.unwrap_or(given.site),
            };
            let set = self.asker.command(Command::SetHolder(holder)).await;
            set.map_err(|error| change_failure(what.clone(), error))?;
        }
        if let Some(leaving) = leaving {
            let device = id;
            let record = LeavingRecord { device, leaving };
            let set = self.asker.command(Command::SetLeaving(record)).await;
            set.map_err(|error| change_failure(what, error))?;
        }
        let device = self.look(move |device| described(device, &id)).await?;
        told(tell, Event::Device(device)).await
    }

    /// Shows in which packs an object lies, and who holds them.
    pub(super) async fn whereabouts(&self, what: &What, tell: &Teller) -> Result<(), Failure> {
        let found = self.lies_in(what, tell).await?;
        let packs = found.packs;
        let events = self
            .look(move |device| {
                let shown = packs
                    .iter()
                    .map(|(pack, blocks)| where_event(device, pack, *blocks));
                shown.collect::<Vec<Event>>()
            })
            .await?;
        for event in events {
            told(tell, event).await?;
        }
        let nowhere = |blocks: u64, waits: &str| Event::Where {
            pack: None,
            blocks,
            copies: 0,
            held: Vec::new(),
            placed: Vec::new(),
            waits: vec![waits.to_owned()],
        };
        if found.open > 0 {
            let waits = "they lie on this device, in a pack that is closed a minute after the last is written";
            told(tell, nowhere(found.open, waits)).await?;
        }
        if found.missing > 0 {
            let waits = "no device within reach has them";
            told(tell, nowhere(found.missing, waits)).await?;
        }
        Ok(())
    }

    /// Waits until as many devices as should hold every pack of these objects.
    pub(super) async fn await_holders(&self, what: &[What], tell: &Teller) -> Result<(), Failure> {
        let doing = || "wait until all of it is kept as often as it should be";
        if !self.asker.is_online() {
            return Err(Failure::new(FailureKind::Failed, doing())
                .hint("start the daemon with `kith up`: others fetch it from there"));
        }
        self.close_packs(doing()).await?;
        let packs = Arc::new(self.all_lie_in(what, doing(), tell).await?);
        let total = packs_len(packs.len());
        loop {
            let all = packs.clone();
            let done = self
                .look(move |device| {
                    let kept = |pack: &&PackId| device.standing(pack).is_kept();
                    packs_len(all.iter().filter(kept).count())
                })
                .await?;
            if done == total {
                return Ok(());
            }
            let progress = Event::Progress {
                bytes: done,
                total: Some(total),
                files: done,
            };
            let _ = tell.try_send((progress, Bytes::new()));
            self.unless_gone(doing(), tell).await?;
        }
    }

    /// Waits a while; fails if nobody waits any more because the client has gone.
    async fn unless_gone(&self, doing: &str, tell: &Teller) -> Result<(), Failure> {
        match tokio::time::timeout(LOOK_EVERY, tell.closed()).await {
            Ok(()) => Err(Failure::new(FailureKind::Failed, doing)),
            Err(_) => Ok(()),
        }
    }

    /// In which packs these objects lie; all of them have to be within reach.
    async fn all_lie_in(
        &self,
        what: &[What],
        doing: &str,
        tell: &Teller,
    ) -> Result<BTreeSet<PackId>, Failure> {
        let mut packs = BTreeSet::new();
        for what in what {
            let found = self.lies_in(what, tell).await?;
            packs.extend(found.packs.into_keys());
            if found.missing > 0 {
                let text = format!("{doing}: {} blocks are nowhere within reach", found.missing);
                return Err(Failure::new(FailureKind::Unreachable, text));
            }
        }
        Ok(packs)
    }

    /// Closes what is open and says so, so that others may fetch it.
    async fn close_packs(&self, doing: &str) -> Result<(), Failure> {
        let store = self.store.clone();
        let closed = tokio::task::spawn_blocking(move || store.close_packs());
        let closed = closed.await.map_err(|_| ending())?;
        closed.map_err(|error| super::failure::store_failure(doing.to_owned(), &error))?;
        self.tend_packs().await;
        Ok(())
    }

    /// In which packs an object lies.
    async fn lies_in(&self, what: &What, tell: &Teller) -> Result<Whereabouts, Failure> {
        let (label, item) = self.find(what, false, tell).await?;
        let doing = format!("find where {label} lies");
        let roots = match item {
            Item::Root { link } => vec![(self.kind_of(link.clone()).await?, link)],
            item => roots(&item),
        };
        let mut source = self.source(false).await?;
        // What is not here is asked for by its place, not for itself.
        let bulk = source.bulk.take();
        let online = self.asker.is_online();
        let looked = tokio::task::spawn_blocking(move || whereabouts::of(&source, bulk, roots));
        let looked = looked.await.map_err(|_| ending())?;
        looked.map_err(|error: ReadError| read_failure(doing, &error, online))
    }
}

fn packs_len(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Every object in what was named.
fn roots(item: &Item) -> Vec<whereabouts::Root> {
    match item {
        Item::Leaf { kind, link, .. } => vec![(*kind, link.clone())],
        Item::Snapshot { link, .. } => vec![(FileKind::Folder, link.clone())],
        Item::Root { link } => vec![(FileKind::File, link.clone())],
        Item::Folder { children, .. } => children
            .iter()
            .flat_map(|(_, child)| roots(child))
            .collect(),
    }
}

fn where_event(device: &Device, pack: &PackId, blocks: u64) -> Event {
    let standing = device.standing(pack);
    let name = |id: &DeviceId| device_name(device, id);
    Event::Where {
        pack: Some(pack.to_string()),
        blocks,
        copies: packs_len(standing.copies),
        held: standing.held.iter().map(name).collect(),
        placed: standing.placed.iter().map(name).collect(),
        waits: waits(device, &standing),
    }
}

/// What is being waited for, in sentences.
fn waits(device: &Device, standing: &Standing) -> Vec<String> {
    let mut waits = Vec::new();
    if standing.is_kept() {
        return waits;
    }
    let name = |id: &DeviceId| device_name(device, id);
    let in_reach = standing
        .held
        .iter()
        .any(|id| device.peers().contains(id) || *id == device.id());
    for id in &standing.leaving {
        waits.push(format!(
            "{} holds it, and is leaving or counts as gone",
            name(id)
        ));
    }
    for id in standing
        .placed
        .iter()
        .filter(|id| !standing.held.contains(id))
    {
        waits.push(if *id == device.id() && in_reach {
            "this device is to fetch it".to_owned()
        } else if *id == device.id() {
            "this device is to fetch it from a device that is away".to_owned()
        } else if device.peers().contains(id) {
            format!("{} is to fetch it", name(id))
        } else {
            format!("{} is to fetch it, and is away", name(id))
        });
    }
    if standing.placed.len() < standing.copies {
        waits.push(format!(
            "{} copies are wanted, and only {} devices give room for packs",
            standing.copies,
            standing.placed.len()
        ));
    }
    waits
}

fn check_site(what: &str, site: &str) -> Result<(), Failure> {
    if is_site(site) {
        return Ok(());
    }
    let text = format!("{what}: {site:?} is no name of a site");
    Err(Failure::new(FailureKind::Usage, text)
        .hint("a site is 1 to 32 letters, digits, `-`, `_` or `.`"))
}

fn record_of(wish: &PolicyWish) -> Result<PolicyRecord, Failure> {
    let what = "change where packs are kept";
    let wrong = |why: String| Failure::new(FailureKind::Usage, format!("{what}: {why}"));
    if wish.space != HOME {
        let text = format!("{what}: there is no space {:?}", wish.space);
        return Err(Failure::new(FailureKind::NotFound, text).hint("the only space is `home`"));
    }
    let number = |text: &str| text.parse::<u8>().ok().filter(|number| *number > 0);
    let kept = match wish.redundancy.split_once('+') {
        _ if wish.redundancy == "auto" => Some(Kept::Auto),
        Some((needed, spare)) => number(needed)
            .zip(number(spare))
            .map(|(needed, spare)| Kept::Shards(needed, spare)),
        None => number(&wish.redundancy).map(Kept::Copies),
    };
    let kept = kept.ok_or_else(|| {
        wrong(format!(
            "{:?} is neither `auto`, a number of copies nor shards as `10+6`",
            wish.redundancy
        ))
    })?;
    let sites: BTreeSet<String> = wish.sites.iter().cloned().collect();
    for site in &sites {
        check_site(what, site)?;
    }
    if sites.len() > SITES_MAX {
        return Err(wrong(format!("at most {SITES_MAX} sites can be named")));
    }
    if wish.min_sites == 0 {
        return Err(wrong("packs are at one site at least".to_owned()));
    }
    Ok(PolicyRecord {
        kept,
        min_sites: wish.min_sites,
        sites,
    })
}

fn policy_event(device: &Device) -> Event {
    let arrangement = device.upkeep().arrangement();
    let record = arrangement
        .policy_record(device.access())
        .unwrap_or(PolicyRecord {
            kept: Kept::Auto,
            min_sites: 1,
            sites: BTreeSet::new(),
        });
    let givers: &BTreeMap<_, _> = device.keeper().givers();
    let met = Placement::new(&holders_of(givers), &policy_of(&record));
    Event::Policy {
        space: HOME.to_owned(),
        redundancy: match record.kept {
            Kept::Auto => "auto".to_owned(),
            Kept::Copies(copies) => copies.to_string(),
            Kept::Shards(needed, spare) => format!("{needed}+{spare}"),
        },
        effective: device.keeper().redundancy().map(|kept| kept.to_string()),
        copies: packs_len(device.health().copies),
        min_sites: u64::from(record.min_sites),
        sites: record.sites.into_iter().collect(),
        unmet: met.err().map(|unmet| unmet.to_string()),
    }
}
