//! Putting objects and reading them.
//!
//! Spec: `protocol/spec/simulation.md`, "World".

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kith_core::device::{Command, Input};
use kith_crdt::names::Change;
use kith_crdt::replica::SealState;
use kith_object::chunk::{Chunker, Profile};
use kith_object::id::Cid;
use kith_object::object::{ObjectLink, ObjectReader, ObjectWriter};
use kith_object::pack::Class;
use kith_object::seal::{Kind, Opener, Sealer};
use kith_object::store::Verified;
use kith_object::tree::FileKind;

use super::{Promise, World, change_command, tree_path};

/// Reads at the end, all devices together.
const READS_MAX: usize = 5_000;
/// Blocks a fetch asks for at once.
const FETCH_WINDOW: usize = 32;

/// An object that is being read.
pub(super) struct Fetch {
    root: Cid,
    reader: ObjectReader,
    wanted: BTreeSet<Cid>,
    requests: Vec<u64>,
    got: blake3::Hasher,
    content: [u8; 32],
}

impl World {
    /// Has a device read every promised object, from its own disk or from others. In a large mesh each reads some of them, evenly spread, so that all
    /// together read no more than [`READS_MAX`], and at least one each: as many devices read each object as read any other, but for one.
    pub fn read_all(&mut self, (nth, devices): (usize, usize), device: usize) {
        let owed: Vec<Promise> = self.owed().cloned().collect();
        let step = (owed.len() * devices)
            .div_ceil(READS_MAX)
            .clamp(1, owed.len().max(1));
        for promise in owed.into_iter().skip(nth % step).step_by(step) {
            self.fetch(device, promise);
        }
    }

    /// Leaves out what was promised and of which no sound copy is left, if a disk rotted that held it: redundancy is not there yet.
    pub fn forgive_rot(&mut self) {
        if !self.slots.iter().any(|slot| slot.rotten) {
            return;
        }
        let whole = |promise: &Promise| {
            let holders = || self.slots.iter().filter(|slot| slot.is_honest());
            let running = holders().find_map(|slot| slot.running.as_ref())?;
            let link = running.device.tree().link_of(&promise.cid)?;
            let opener = Opener::new(running.device.replica().dedup_secrets());
            let mut reader = ObjectReader::new(link, opener);
            loop {
                while reader.next().is_some() {}
                if reader.done() {
                    return Some(());
                }
                for cid in reader.wanted(FETCH_WINDOW) {
                    let running = holders().filter_map(|slot| slot.running.as_ref());
                    let block = running.into_iter().find_map(|of| of.storage.block(&cid))?;
                    reader.feed_verified(&cid, &block).ok()?;
                }
            }
        };
        let rotten = |by: usize| self.slots.get(by).is_some_and(|slot| slot.rotten);
        // Where copies move, what one acknowledged may have been kept by another.
        let moves = self.slots.iter().any(|slot| slot.gives.is_some());
        let pairs = self.promises.iter().zip(&self.promised_by);
        let kept: Vec<(Promise, usize)> = pairs
            .filter(|(promise, by)| !(moves || rotten(**by)) || whole(promise).is_some())
            .map(|(promise, by)| (promise.clone(), *by))
            .collect();
        // When they were acknowledged is asked no more.
        (self.promises, self.promised_by) = kept.into_iter().unzip();
    }

    /// Reads under way of what is owed.
    pub fn reads_open(&self) -> usize {
        let owed: BTreeSet<Cid> = self.owed().map(|promise| promise.cid).collect();
        let honest = self.slots.iter().filter(|slot| slot.is_honest());
        let fetches = honest.flat_map(|slot| slot.fetches.values());
        fetches.filter(|fetch| owed.contains(&fetch.root)).count()
    }

    /// Nobody waits any more for what is not owed: nobody may have it.
    pub fn give_up_the_rest(&mut self) {
        let owed: BTreeSet<Cid> = self.owed().map(|promise| promise.cid).collect();
        for device in 0..self.slots.len() {
            let fetches = self.slots.get(device).map(|slot| &slot.fetches);
            let others = fetches.into_iter().flatten();
            let others = others.filter(|(_, fetch)| !owed.contains(&fetch.root));
            let others: Vec<u64> = others.map(|(number, _)| *number).collect();
            for number in others {
                self.give_up(device, number);
            }
        }
    }

    pub(super) fn put(&mut self, device: usize, path: &str, content: Vec<u8>) {
        let (now, local) = (self.now, self.clock(device));
        let Some(running) = self.running(device) else {
            return;
        };
        let replica = running.device.replica();
        let (SealState::Ready(_), Some(secret)) = (
            replica.seal_state(),
            replica.dedup_secrets().into_iter().next(),
        ) else {
            self.trace
                .note(now, device, format_args!("cannot put {path}"));
            return;
        };
        let writer = ObjectWriter::new(
            Arc::new(Sealer::new(&secret)),
            Arc::new(Chunker::new(&secret, Profile::DEFAULT)),
            Kind::Chunk,
        );
        let store = &running.storage.store;
        let stored = writer
            .finish_with(&content, &mut |block| {
                let verified = Verified::computed(block.cid, &block.bytes);
                store
                    .put_verified(Class::Bulk, verified)
                    .map(|_| ())
                    .map_err(std::io::Error::other)
            })
            .and_then(|link| {
                store.flush().map_err(std::io::Error::other)?;
                Ok(link)
            });
        let link = match stored {
            Ok(link) => link,
            Err(error) => {
                self.trace
                    .note(now, device, format_args!("cannot put {path}: {error}"));
                return;
            }
        };
        let change = Change::File {
            path: tree_path(path),
            kind: FileKind::File,
            link: link.clone(),
            mtime_ms: local.0,
            mode: 0o644,
        };
        let promise = Promise {
            cid: link.cid(),
            content: *blake3::hash(&content).as_bytes(),
        };
        self.trace.note(
            now,
            device,
            format_args!("puts {path} as {}", promise.cid.short()),
        );
        let change = change_command(vec![change], Some(secret));
        self.command(device, change, vec![promise]);
    }

    /// Has a device's machine carry out a command; answers its number, if the device runs.
    pub(super) fn command(
        &mut self,
        device: usize,
        command: Command,
        promises: Vec<Promise>,
    ) -> Option<u64> {
        self.next += 1;
        let request = self.next;
        let slot = self.slots.get_mut(device)?;
        slot.running.as_ref()?;
        if slot.log_failed {
            self.trace.note(
                self.now,
                device,
                format_args!("refuses: its log takes no more"),
            );
            return None;
        }
        slot.pending.insert(request, promises);
        self.input(device, Input::Command { request, command });
        Some(request)
    }

    /// Whoever waited for a read does not any more.
    pub(super) fn give_up(&mut self, device: usize, read: u64) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let Some(fetch) = slot.fetches.remove(&read) else {
            return;
        };
        self.trace
            .note(self.now, device, format_args!("gives up a read"));
        for request in fetch.requests {
            self.input(device, Input::CancelFetch { request });
        }
    }

    pub(super) fn fetch(&mut self, device: usize, promise: Promise) -> u64 {
        self.next += 1;
        let number = self.next;
        let now = self.now;
        let Some(slot) = self.slots.get_mut(device) else {
            return number;
        };
        let Some(running) = &slot.running else {
            return number;
        };
        let Some(link) = running.device.tree().link_of(&promise.cid) else {
            let cid = promise.cid;
            self.fail(format_args!(
                "d{device} does not know {cid}, which was acknowledged"
            ));
            return number;
        };
        let opener = Opener::new(running.device.replica().dedup_secrets());
        slot.fetches
            .insert(number, new_fetch(link, opener, &promise));
        self.trace
            .note(now, device, format_args!("reads {}", promise.cid.short()));
        self.advance(device, number);
        number
    }

    /// Feeds a read what is on disk, and asks for what is not.
    fn advance(&mut self, device: usize, number: u64) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let (Some(running), Some(fetch)) = (&slot.running, slot.fetches.get_mut(&number)) else {
            return;
        };
        let mut missing = Vec::new();
        loop {
            while let Some(data) = fetch.reader.next() {
                fetch.got.update(&data);
            }
            let mut fed = false;
            for cid in fetch.reader.wanted(FETCH_WINDOW) {
                if fetch.wanted.contains(&cid) {
                    continue;
                }
                match running.storage.block(&cid) {
                    Some(block) => {
                        fetch
                            .reader
                            .feed_verified(&cid, &block)
                            .expect("a stored block opens");
                        fed = true;
                    }
                    None => {
                        fetch.wanted.insert(cid);
                        missing.push(cid);
                    }
                }
            }
            if !fed {
                break;
            }
        }
        if fetch.reader.done() {
            let sound = *fetch.got.finalize().as_bytes() == fetch.content;
            slot.fetches.remove(&number);
            if sound {
                self.read_back += 1;
            } else if self.is_honest(device) {
                self.fail(format_args!("d{device} read other bytes than were put"));
            }
        } else if !missing.is_empty() {
            self.next += 1;
            let request = self.next;
            if let Some(fetch) = self
                .slots
                .get_mut(device)
                .and_then(|slot| slot.fetches.get_mut(&number))
            {
                fetch.requests.push(request);
            }
            self.input(
                device,
                Input::Fetch {
                    request,
                    cids: missing,
                },
            );
        }
    }

    pub(super) fn got(&mut self, device: usize, requests: &[u64], cid: Cid, block: &Bytes) {
        let reads = self.waiting(device, requests, &cid);
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        let Some(running) = &slot.running else { return };
        let verified =
            Verified::check(&cid, block).expect("the exchange hands over what it verified");
        let store = &running.storage.store;
        let stored = match slot.gives {
            // Others keep it.
            Some(_) => store.put_cached(Class::Bulk, verified),
            None => store.put_verified(Class::Bulk, verified),
        };
        if let Err(error) = stored {
            self.trace.note(
                self.now,
                device,
                format_args!("cannot store a block: {error}"),
            );
            for read in reads {
                self.give_up(device, read);
            }
            return;
        }
        for read in &reads {
            // Whoever reads has it, whatever becomes of what is stored.
            if let Some(fetch) = slot.fetches.get_mut(read) {
                let fed = fetch.reader.feed_verified(&cid, block);
                fed.expect("what a member sealed opens");
            }
        }
        self.later((0, 0), device, Input::Stored(vec![cid]));
        for read in reads {
            self.advance(device, read);
        }
    }

    /// A block is here that these requests waited for.
    pub(super) fn arrived(&mut self, device: usize, requests: &[u64], cid: Cid) {
        for read in self.waiting(device, requests, &cid) {
            self.advance(device, read);
        }
    }

    /// The reads that these requests are for and that waited for a block; they do not any more.
    fn waiting(&mut self, device: usize, requests: &[u64], cid: &Cid) -> Vec<u64> {
        let Some(slot) = self.slots.get_mut(device) else {
            return Vec::new();
        };
        let mut reads = Vec::new();
        for (number, fetch) in &mut slot.fetches {
            let mine = |request| requests.contains(request);
            if fetch.requests.iter().any(mine) && fetch.wanted.remove(cid) {
                reads.push(*number);
            }
        }
        reads
    }
}

fn new_fetch(link: ObjectLink, opener: Opener, promise: &Promise) -> Fetch {
    Fetch {
        root: promise.cid,
        reader: ObjectReader::new(link, opener),
        wanted: BTreeSet::new(),
        requests: Vec::new(),
        got: blake3::Hasher::new(),
        content: promise.content,
    }
}
