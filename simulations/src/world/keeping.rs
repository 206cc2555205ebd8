//! Packs: closed and told of, fetched from others, proved to them, given up; and devices that are lost for good.
//!
//! Spec: `protocol/spec/simulation.md`, "Packs".

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_core::device::{Command, Device, Input};
use kith_core::keeper::{Pull, Pulled, Way};
use kith_core::probing::{Probe, Probed};
use kith_core::promises::{GaveUp, GiveUp, Giving, Vouch, Wish};
use kith_core::shards::{self, MakeError};
use kith_core::{upkeep, vouch};
use kith_crdt::catalogue::{Born, HolderRecord, Leaving, LeavingRecord};
use kith_object::coding::{self, Coding};
use kith_object::id::{Cid, DeviceId, PackId};
use kith_object::object::ObjectReader;
use kith_object::pack;
use kith_object::seal::Opener;
use kith_object::store::{self, Keep};
use kith_object::time::Span;
use kith_protocol::promise::{Promised, Refused};

use super::record::Mark;
use super::{Event, NOBODY, Promise, World};
use crate::disk::Storage;
use crate::network::Purpose;
use crate::plan::Plan;

/// How often a device looks after its packs, and how often of these it looks for some that the catalogue does not know.
const TEND: Span = Span::from_secs(60);
const UNTOLD_TENDS: u64 = 10;
/// Until a device says what it gives, after its start; and that a device is lost, after it is.
const OFFER: (u64, u64) = (1000, 5000);
const DECLARE: (u64, u64) = (3_600_000, 12 * 3_600_000);
/// What was acknowledged so long before a device is lost outlasts it, where others give room.
const SPREAD: Span = Span::from_secs(86_400);
/// Blocks asked for at once.
const WINDOW: usize = 32;

/// What a device gives for packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gives {
    capacity: u64,
    /// Seconds.
    grace: u32,
    site: String,
}

impl Gives {
    /// Of each device of a plan, if any of them gives anything.
    pub(super) fn of(plan: &Plan) -> Vec<Option<Self>> {
        let any = plan.devices.iter().any(|device| device.gives > 0);
        let devices = plan.devices.iter().map(|device| {
            any.then(|| Self {
                capacity: device.gives,
                grace: u32::try_from(device.grace.as_ms() / 1000).unwrap_or(u32::MAX),
                site: plan
                    .sites
                    .get(device.site)
                    .map(|site| site.name.clone())
                    .unwrap_or_default(),
            })
        });
        devices.collect()
    }
}

/// A pack on its way.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) connection: u64,
    pub(super) pack: PackId,
    pub(super) bytes: u64,
}

/// A pack that is being made of shards.
#[derive(Debug)]
pub(super) struct Making {
    pub(super) device: usize,
    pack: PackId,
    at: Option<usize>,
    coding: Coding,
    /// Which, and from whom by which connection; none of those that are here.
    from: Vec<(usize, Option<(usize, u64)>)>,
}

impl World {
    fn storage(&self, device: usize) -> Option<&Storage> {
        let running = self.slots.get(device)?.running.as_ref()?;
        Some(&running.storage)
    }

    /// A device that has just started says what lies on its disk, and looks after it from now on.
    pub(super) fn begin_to_keep(&mut self, device: usize) {
        let gives = self.slots.get(device).and_then(|slot| slot.gives.clone());
        let (Some(gives), Some(storage)) = (gives, self.storage(device)) else {
            return;
        };
        let store = &storage.store;
        let kept = upkeep::kept(store, &store.packs().unwrap_or_default());
        let kept = kept.into_iter().map(|(pack, _)| pack).collect();
        let cached = store.cached_packs();
        if let Some(running) = self.running(device) {
            let (device, store) = (&running.device, &running.storage.store);
            let packs = device.upkeep().packs();
            let given_up = cached.into_iter();
            let given_up = given_up.filter(|pack| packs.live(pack, device.access()).is_some());
            store.set_given_up(given_up);
        }
        let subjects = Default::default();
        self.input(device, Input::Holds { subjects, kept });
        let id = self.id(device);
        let said = |device: &Device| {
            let given = device.keeper().givers().get(&id).cloned();
            given.is_some_and(|given| given.is_said && given.capacity == gives.capacity)
        };
        if !self
            .running(device)
            .is_some_and(|running| said(&running.device))
        {
            let life = self.life(device);
            self.after(OFFER, Event::Offer { device, life });
        }
        let life = self.life(device);
        self.after((1, TEND.0), Event::Tend { device, life });
    }

    /// A device says what it gives.
    pub(super) fn offer(&mut self, device: usize) {
        let gives = self.slots.get(device).and_then(|slot| slot.gives.clone());
        let Some(gives) = gives else { return };
        let holder = HolderRecord {
            device: self.id(device),
            capacity: gives.capacity,
            grace: gives.grace,
            site: gives.site,
        };
        self.command(device, Command::SetHolder(holder), Vec::new());
    }

    /// A device closes packs that stand idle, and says which were closed.
    pub(super) fn tend(&mut self, device: usize) {
        let (life, local) = (self.life(device), self.clock(device));
        self.after((TEND.0, TEND.0), Event::Tend { device, life });
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let Some(running) = &slot.running else { return };
        let store = &running.storage.store;
        // What cannot be closed now is closed another time.
        let _ = store.tick(local);
        let fresh = store.born().into_iter();
        slot.unborn
            .extend(fresh.filter(|born| running.device.is_untold(born)));
        if (self.now.0 / TEND.0).is_multiple_of(UNTOLD_TENDS) {
            let kept = upkeep::kept(store, &store.packs().unwrap_or_default());
            let untold = running.device.untold(kept).into_iter();
            let is_new = |one: &store::Born| slot.unborn.iter().all(|born| born.pack != one.pack);
            let untold: Vec<_> = untold.filter(is_new).collect();
            slot.unborn.extend(untold);
        }
        let again = store.kept_again();
        let born: Vec<Born> = slot
            .unborn
            .iter()
            .map(|born| Born {
                pack: born.pack,
                class: born.info.class.to_byte(),
                blocks: born.info.blocks,
                bytes: born.info.bytes,
            })
            .collect();
        if !again.is_empty() {
            self.keeps(device, again, Vec::new());
        }
        if born.is_empty() {
            return;
        }
        let packs = born.iter().map(|born| born.pack).collect();
        if let Some(request) = self.command(device, Command::Born(born), Vec::new()) {
            self.telling.insert(request, (device, packs));
        }
    }

    /// What became of telling of packs that were closed.
    pub(super) fn told_of(&mut self, request: u64, is_done: bool) {
        let Some((device, packs)) = self.telling.remove(&request) else {
            return;
        };
        if is_done {
            if let Some(slot) = self.slots.get_mut(device) {
                slot.unborn.retain(|born| !packs.contains(&born.pack));
            }
            let life = self.life(device);
            let (added, removed) = (packs, Vec::new());
            let input = Input::Kept { added, removed };
            self.push(
                self.now,
                Event::Input {
                    device,
                    life,
                    input,
                },
            );
        }
    }

    fn keeps(&mut self, device: usize, added: Vec<PackId>, removed: Vec<PackId>) {
        self.later((0, 0), device, Input::Kept { added, removed });
    }

    /// A pack is fetched, from the first that has it, or made of what is here.
    pub(super) fn pull(&mut self, device: usize, pull: &Pull) {
        let pack = pull.pack;
        let sources = match &pull.way {
            Way::Whole(sources) => sources,
            Way::Cut(shard) => {
                let cut = |storage: &Storage| shards::cut(&storage.store, &shard.coding, shard.at);
                return self.make(device, pack, cut);
            }
            Way::Restored { at, coding, from } => {
                return self.gather(device, pack, (*at, coding), from);
            }
        };
        let sources = sources.iter().filter_map(|id| self.by_id.get(id));
        let mut sources = sources.copied().filter_map(|source| {
            let connection = self.links.get(source, device)?.number;
            let info = self.storage(source)?.store.pack_info(&pack).ok()??;
            Some((source, connection, info.bytes))
        });
        let Some((from, connection, bytes)) = sources.next() else {
            let how = Pulled::Failed;
            return self.later((1000, 1000), device, Input::Pulled { pack, how });
        };
        drop(sources);
        let way = self.way(from, device);
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let (_, at) = self
            .network
            .send(self.now, way, len, Purpose::Blocks, &mut self.rng);
        let moving = Moving {
            from,
            to: device,
            connection,
            pack,
            bytes,
        };
        let life = self.life(device);
        self.push(at, Event::Moved { life, moving });
    }

    /// A pack is to be made of shards: those that are not here are fetched, each from the first that has it.
    fn gather(
        &mut self,
        device: usize,
        pack: PackId,
        (at, coding): (Option<usize>, &Coding),
        from: &[(usize, Vec<DeviceId>)],
    ) {
        let mut making = Making {
            device,
            pack,
            at,
            coding: coding.clone(),
            from: Vec::new(),
        };
        let mut comes = self.now;
        for (place, sources) in from {
            let id = coding.ids().nth(*place).unwrap_or_default();
            let sources = sources.iter().filter_map(|id| self.by_id.get(id).copied());
            let found = sources.filter_map(|source| {
                let connection = self.links.get(source, device)?.number;
                self.storage(source)?.store.pack_info(&id).ok()??;
                Some((source, connection))
            });
            let source = found.min();
            if let Some((source, _)) = source {
                let (way, len) = (self.way(source, device), coding.len(*place));
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let sent = self
                    .network
                    .send(self.now, way, len, Purpose::Blocks, &mut self.rng);
                comes = comes.max(sent.1);
            }
            making.from.push((*place, source));
        }
        let life = self.life(device);
        self.push(comes, Event::Made { life, making });
    }

    /// The shards have come, as far as their connections still stand.
    pub(super) fn made(&mut self, making: &Making) {
        let Making {
            device,
            pack,
            at,
            ref coding,
            ref from,
        } = *making;
        let mut files = BTreeMap::new();
        for (place, source) in from {
            let of = match source {
                Some((source, connection)) => {
                    let link = self.links.get(*source, device);
                    let is_up = link.is_some_and(|link| link.number == *connection);
                    is_up
                        .then_some(*source)
                        .filter(|of| self.reach(*of, device))
                }
                None => Some(device),
            };
            let storage = of.and_then(|of| self.storage(of));
            let file = storage.and_then(|of| shards::read_some(&of.store, coding, [*place]).ok());
            files.extend(file.unwrap_or_default());
        }
        self.make(device, pack, |here| {
            shards::restore(&here.store, coding, at, &files)
        });
    }

    /// A pack is made of what is here.
    fn make(
        &mut self,
        device: usize,
        pack: PackId,
        make: impl FnOnce(&Storage) -> Result<(), MakeError>,
    ) {
        let made = self.storage(device).map(make);
        let how = made.map_or(Pulled::Failed, came);
        self.has_come(device, pack, how, &format!("makes {pack}"));
    }

    /// A pack was to come: if it did, it is said to be held, and its blocks are there for whoever waits for them.
    fn has_come(&mut self, device: usize, pack: PackId, how: Pulled, note: &str) {
        if how == Pulled::Came {
            self.trace.note(self.now, device, format_args!("{note}"));
            self.keeps(device, vec![pack], Vec::new());
            let blocks = self.storage(device).map(|of| of.store.pack_blocks(&pack));
            let blocks = blocks.and_then(Result::ok).unwrap_or_default();
            let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
            self.later((0, 0), device, Input::Stored(cids));
        }
        self.later((0, 0), device, Input::Pulled { pack, how });
    }

    /// A pack has come, if the connection still stands and it is what it should be.
    pub(super) fn moved(&mut self, moving: &Moving) {
        let Moving {
            from,
            to,
            connection,
            pack,
            bytes,
        } = *moving;
        let link = self.links.get(from, to);
        let is_up = link.is_some_and(|link| link.number == connection) && self.reach(from, to);
        let whole = self.storage(from).filter(|_| is_up).and_then(|storage| {
            let len = usize::try_from(bytes).ok()?;
            storage.store.read_pack(&pack, 0, len).ok()?
        });
        let how = match (whole, self.storage(to)) {
            (Some(whole), Some(storage)) => came(shards::take_in(&storage.store, &pack, &whole)),
            _ => Pulled::Failed,
        };
        self.has_come(to, pack, how, &format!("holds {pack} from d{from}"));
    }

    /// A device promises to keep a pack, and proves that it has it.
    pub(super) fn vouch(&mut self, device: usize, vouch: &Vouch) {
        let Some(storage) = self.storage(device) else {
            return;
        };
        let proved = vouch::vouch(&storage.store, vouch);
        let written = proved.and_then(|vouched| {
            let log = storage.promises.as_ref().ok_or(Refused::Unwritten)?;
            let until = vouch.until;
            let mut packs = vouched.packs.iter();
            let written = packs
                .try_for_each(|&pack| log.append(&Promised { pack, until }.encode()).map(drop))
                .and_then(|()| log.sync());
            written.map(|()| vouched).map_err(|_| Refused::Unwritten)
        });
        if let (Err(Refused::Damaged), Wish::Pack(pack)) = (&written, &vouch.wish) {
            self.check(device, pack);
        }
        let input = Input::Vouched {
            peer: vouch.challenge.asker,
            nonce: vouch.challenge.nonce,
            outcome: written,
        };
        let syncs = self.syncs(device);
        self.later(syncs, device, input);
    }

    /// A device lists the blocks of a pack that are nowhere else on its disk.
    pub(super) fn list(&mut self, device: usize, pack: PackId) {
        if let Some(storage) = self.storage(device) {
            let digests = vouch::list(&storage.store, &pack).ok().flatten();
            self.later((0, 0), device, Input::Listed { pack, digests });
        }
    }

    /// A pack that is not what it should be is set aside.
    fn check(&mut self, device: usize, pack: &PackId) {
        if let Some(storage) = self.storage(device)
            && let Ok(Some(_)) = storage.store.scrub_pack(pack)
        {
            self.keeps(device, Vec::new(), vec![*pack]);
        }
    }

    /// A device gives a copy up, if the others have proved that they have theirs.
    pub(super) fn give_copy_up(&mut self, device: usize, give_up: &GiveUp) {
        let Some(storage) = self.storage(device) else {
            return;
        };
        let how = vouch::give_up(&storage.store, give_up, &|_| false).unwrap_or(GaveUp::Stays);
        let pack = give_up.pack;
        if how == GaveUp::Gone {
            self.is_kept_elsewhere(device, give_up);
            self.trace
                .note(self.now, device, format_args!("gives {pack} up"));
            self.keeps(device, Vec::new(), vec![pack]);
        }
        self.later((0, 0), device, Input::GaveUp { pack, how });
    }

    /// Law: of a pack that is given up two others have a copy to stay, or one has each shard of it that is not here, unless disks rot or are put back; of a shard one other has a copy.
    fn is_kept_elsewhere(&mut self, device: usize, give_up: &GiveUp) {
        if self.slots.iter().any(|slot| slot.rotten) {
            return;
        }
        let copies = |pack: &PackId| -> usize {
            let others = self.slots.iter().enumerate();
            let others = others.filter(|(place, _)| *place != device);
            others.filter(|(_, slot)| slot.keeps(pack)).count()
        };
        let running = self
            .slots
            .get(device)
            .and_then(|slot| slot.running.as_ref());
        let packs = running.map(|running| running.device.upkeep().packs());
        let is_shard = packs.is_some_and(|packs| packs.is_shard(&give_up.pack));
        let (least, given): (usize, Vec<PackId>) = match &give_up.how {
            Giving::Coded(shards) => (1, shards.kept.iter().map(|kept| kept.pack).collect()),
            // It restores nothing that anybody has.
            Giving::Spent => return,
            _ if is_shard => (1, vec![give_up.pack]),
            _ => (2, vec![give_up.pack]),
        };
        let missed = given.iter().map(|pack| (pack, copies(pack)));
        let missed = missed.filter(|(_, copies)| *copies < least);
        let missed: Vec<String> = missed
            .map(|(pack, copies)| {
                let gone = give_up.pack;
                format!("d{device} gives {gone} up, and {copies} others have {pack}")
            })
            .collect();
        missed.into_iter().for_each(|failure| self.fail(failure));
    }

    /// A device is to show that it has a pack.
    pub(super) fn probe(&mut self, device: usize, probe: &Probe) {
        let pack = probe.pack;
        let of = self.by_id.get(&probe.device).copied();
        let connected = of.filter(|of| self.links.get(*of, device).is_some());
        let mut damaged = None;
        let how = match connected.and_then(|of| Some((of, self.storage(of)?))) {
            None => Probed::Nothing,
            Some((of, storage)) => {
                let store = &storage.store;
                let info = store.pack_info(&pack).ok().flatten();
                let whole = info.and_then(|info| {
                    let len = usize::try_from(info.bytes).ok()?;
                    store.read_pack(&pack, 0, len).ok()?
                });
                match whole {
                    Some(whole) if *blake3::hash(&whole).as_bytes() == pack.0 => Probed::Sound,
                    whole => {
                        damaged = whole.map(|_| of);
                        Probed::False
                    }
                }
            }
        };
        if let Some(of) = damaged {
            self.check(of, &pack);
        }
        let input = Input::Probed {
            device: probe.device,
            pack,
            how,
        };
        let way = (of.unwrap_or(device), device);
        let takes = 2 * self.network.latency(self.now, way, &mut self.rng);
        self.later((takes, takes), device, input);
    }

    /// These devices are lost for good: nobody has their disks any more. An admin says so after a while.
    pub(super) fn lose(&mut self, devices: &[usize]) {
        let mut lost = Vec::new();
        for device in devices {
            if self.is_honest(*device) {
                lost.push(*device);
            }
        }
        for device in &lost {
            self.end(*device, true);
            self.mark(*device, Mark::Lost);
            self.trace
                .note(self.now, *device, format_args!("is lost for good"));
        }
        self.hand_on(&lost);
        for device in lost {
            self.forget(device);
            if let Some(slot) = self.slots.get_mut(device) {
                slot.is_lost = true;
            }
            self.after(DECLARE, Event::Declare(device));
        }
    }

    /// What lost devices had acknowledged is owed by those who have it. What was acknowledged long enough before somebody has.
    fn hand_on(&mut self, lost: &[usize]) {
        let gives = self.slots.iter().any(|slot| slot.gives.is_some());
        let mut left: BTreeMap<usize, Storage> = BTreeMap::new();
        for (place, slot) in self.slots.iter().enumerate() {
            let stays = slot.is_honest() && !lost.contains(&place);
            if stays
                && slot.running.is_none()
                && let Ok((storage, _)) = slot.disks.copied().open(self.space, false)
            {
                left.insert(place, storage);
            }
        }
        let mut failures = Vec::new();
        for at in 0..self.promises.len() {
            let (Some(promise), Some(by)) = (self.promises.get(at), self.promised_by.get(at))
            else {
                continue;
            };
            // What it owes may lie on those that are lost alone, whoever acknowledged it.
            let heir = self.heir(promise, lost, &left);
            let was_owed = lost.contains(by) || self.is_honest(*by);
            let since = self
                .now
                .since(self.acked.get(at).copied().unwrap_or_default());
            if heir.is_none() && was_owed && gives && since > SPREAD {
                failures.push(format!(
                    "{} is lost with {lost:?}, and was acknowledged {} h before",
                    promise.cid,
                    since.as_ms() / 3_600_000
                ));
            }
            let stays = self.is_honest(*by) && !lost.contains(by);
            let owes = match heir {
                Some(_) if stays => *by,
                Some(heir) if was_owed => heir,
                _ => NOBODY,
            };
            if let Some(by) = self.promised_by.get_mut(at) {
                *by = owes;
            }
        }
        for failure in failures {
            self.fail(failure);
        }
    }

    /// A device that will be there and knows of a promise, if between them those that are left have all of it, to stay.
    fn heir(
        &self,
        promise: &Promise,
        lost: &[usize],
        left: &BTreeMap<usize, Storage>,
    ) -> Option<usize> {
        let others = self.slots.iter().enumerate();
        let others = others.filter(|(place, slot)| slot.is_honest() && !lost.contains(place));
        let running: Vec<(usize, &super::Running)> = others
            .filter_map(|(place, slot)| Some((place, slot.running.as_ref()?)))
            .collect();
        let (heir, link, opener) = running.iter().find_map(|(place, running)| {
            let link = running.device.tree().link_of(&promise.cid)?;
            let opener = Opener::new(running.device.replica().dedup_secrets());
            Some((*place, link, opener))
        })?;
        let stores = || {
            let up = running.iter().map(|(_, running)| &running.storage);
            up.chain(left.values())
        };
        let mut reader = ObjectReader::new(link, opener);
        loop {
            while reader.next().is_some() {}
            if reader.done() {
                return Some(heir);
            }
            for cid in reader.wanted(WINDOW) {
                let block = stores().find_map(|storage| {
                    let stays = storage.store.lies_live(&cid).unwrap_or(false);
                    storage.block(&cid).filter(|_| stays)
                });
                let codings = running
                    .iter()
                    .flat_map(|(_, running)| codings(&running.device));
                let block = block.or_else(|| restored(&cid, codings, stores))?;
                reader.feed_verified(&cid, &block).ok()?;
            }
        }
    }

    /// An admin says that a device is lost.
    pub(super) fn declare(&mut self, device: usize) {
        let admin = self
            .honest()
            .find(|(_, of)| of.access().role(&of.id()) == Some(kith_crdt::access::Role::Admin));
        let Some((admin, _)) = admin else {
            return self.after((3_600_000, 3_600_000), Event::Declare(device));
        };
        let leaving = LeavingRecord {
            device: self.id(device),
            leaving: Leaving::Lost,
        };
        self.command(admin, Command::SetLeaving(leaving), Vec::new());
    }

    /// What is not kept as often as it should be in the end, by what each device says.
    pub fn badly_kept(&self) -> Vec<String> {
        let mut failures = Vec::new();
        // What has rotted everywhere is lost, and what is put back is missed for a while.
        if self.slots.iter().any(|slot| slot.rotten) {
            return failures;
        }
        // What only one had that means harm, or was removed, went with it.
        let some_left = |slot: &super::Slot| !slot.is_honest() && !slot.is_lost;
        let some_left = self.slots.iter().any(some_left);
        for (place, device) in self.honest() {
            let gives = self
                .slots
                .get(place)
                .is_some_and(|slot| slot.gives.is_some());
            let health = device.health();
            let is_missed = health.lost + health.unheard > 0 && !some_left;
            let is_well = health.at_risk == 0 && !is_missed;
            if gives && !is_well {
                failures.push(self.now_that(format!("d{place} says: {health:?}")));
            }
        }
        failures
    }
}

/// What became of taking a pack in.
fn came(taken: Result<(), MakeError>) -> Pulled {
    taken.map_or_else(|error| error.pulled(), |()| Pulled::Came)
}

/// The shards that packs have, as far as a device knows.
fn codings(device: &Device) -> impl Iterator<Item = &Coding> {
    let packs = device.upkeep().packs();
    let all = packs.from(PackId::default());
    let coded = all.filter_map(|pack| packs.coded(&pack, device.access()));
    coded.map(|coded| &coded.coding)
}

/// A block of a shard that is restored of others which lie in those stores to stay.
fn restored<'a, S: Iterator<Item = &'a Storage>>(
    cid: &Cid,
    mut codings: impl Iterator<Item = &'a Coding>,
    stores: impl Fn() -> S,
) -> Option<Bytes> {
    let kept = |id: &PackId| {
        let mut with = stores().filter(|of| of.store.keep_of(id) == Keep::Kept);
        with.find_map(|of| shards::read(&of.store, id).ok())
    };
    codings.find_map(|coding| {
        let table = coding.parity.iter().find_map(kept)?;
        let (table, _) = coding::read_parity(&table)?;
        let has = |shard: &usize| {
            let mut blocks = table.blocks_of(*shard).iter();
            blocks.any(|(digest, _)| Cid::from_digest(*digest) == *cid)
        };
        let shard = (0..coding.data.len()).find(has)?;
        let files = coding.ids().enumerate();
        let files = files
            .filter_map(|(at, id)| Some((at, kept(&id)?)))
            .collect();
        let file = coding.restore(shard, &files).ok()?;
        let blocks = pack::blocks_of(&file).ok()?;
        let block = blocks.iter().find(|block| block.cid == *cid)?;
        Some(file.slice(block.range()))
    })
}
