//! What the machine of a device wants done.
//!
//! Spec: `protocol/spec/device.md`, "Shell"; `protocol/spec/simulation.md`, "World".

use bytes::Bytes;
use kith_core::device::{Channel, Effect, Input};
use kith_object::id::{DeviceId, EntryId};
use kith_protocol::exchange::Loaded;

use super::{Event, World};

impl World {
    /// Does what a machine wants.
    pub(super) fn perform(&mut self, device: usize, effect: Effect, appended: &mut Option<u64>) {
        match effect {
            Effect::Allow(allowed) => {
                let cut: Vec<usize> = self
                    .neighbours(device)
                    .filter(|peer| !allowed.contains(&self.id(*peer)))
                    .collect();
                for peer in cut {
                    self.disconnect(device, peer);
                }
            }
            Effect::Dial { device: to, addrs } => {
                if let Some(to) = self.by_id.get(&to).copied() {
                    // TCP and Noise: there, back, there.
                    let way = (device, to);
                    let way = 3 * self.network.latency(self.now, way, &mut self.rng);
                    let from = device;
                    // Without an address, the DHT is asked, which knows.
                    let rightly = addrs.is_empty() || addrs.contains(&self.address(to));
                    self.after((way, way), Event::Dialled { from, to, rightly });
                }
            }
            Effect::Send {
                peer,
                channel,
                message,
            } => self.send(device, peer, channel, message.into_bytes()),
            Effect::Disconnect { peer, reason } => {
                self.trace
                    .note(self.now, device, format_args!("cuts {peer}: {reason}"));
                if let Some(peer) = self.by_id.get(&peer).copied() {
                    self.disconnect(device, peer);
                }
            }
            Effect::Publish(bytes) => {
                self.publish(device, device, bytes);
            }
            Effect::Verdict { message, accept } => {
                if let (true, Ok(message)) =
                    (accept, message.as_ref().try_into().map(u64::from_le_bytes))
                {
                    self.spread(device, message);
                }
            }
            Effect::Append { number, id, entry } => {
                let Some(slot) = self.slots.get_mut(device) else {
                    return;
                };
                let Some(running) = slot.running.as_mut().filter(|_| !slot.log_failed) else {
                    return;
                };
                let offset = match running.storage.log.append(&entry) {
                    Ok(offset) => offset,
                    Err(error) => return self.cannot_log(device, &error),
                };
                running.storage.offsets.insert(id, offset);
                *appended = Some(number);
                self.wrote(device, &entry);
                self.took(device, id);
                self.trace
                    .note(self.now, device, format_args!("takes {}", id.short()));
            }
            Effect::LoadBlock { peer, cid, block } => {
                let Some(running) = self.running(device) else {
                    return;
                };
                let store = &running.storage.store;
                let found = if block {
                    running.storage.block(&cid).map(Loaded::Block)
                } else {
                    store
                        .size(&cid)
                        .expect("sizes are read from memory")
                        .map(Loaded::Size)
                };
                let read = self.reads(device);
                self.later(read, device, Input::LoadedBlock { peer, cid, found });
            }
            Effect::LoadEntries { token, ids } => {
                let Some(slot) = self.slots.get(device) else {
                    return;
                };
                // Who writes the log reads it too, and has given up.
                let Some(running) = slot.running.as_ref().filter(|_| !slot.log_failed) else {
                    return;
                };
                let storage = &running.storage;
                let read =
                    |id: EntryId| Some((id, storage.log.read(*storage.offsets.get(&id)?).ok()?));
                let entries = ids.into_iter().filter_map(read).collect();
                let read = self.reads(device);
                self.later(read, device, Input::LoadedEntries { token, entries });
            }
            Effect::Got {
                requests,
                cid,
                block,
                ..
            } => self.got(device, &requests, cid, &block),
            Effect::Held { requests, cid } => self.arrived(device, &requests, cid),
            Effect::Unavailable { .. } | Effect::Sought { .. } | Effect::Settled => {}
            Effect::KeepBook(book) => {
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.book = Some(book);
                }
            }
            Effect::Pull(pull) => self.pull(device, &pull),
            Effect::Vouch(vouch) => self.vouch(device, &vouch),
            Effect::Probe(probe) => self.probe(device, &probe),
            Effect::List(pack) => self.list(device, pack),
            Effect::GiveUp(give_up) => self.give_copy_up(device, &give_up),
            Effect::Provide(key) => self.provide(device, key),
            Effect::FindProviders(key) => self.find_providers(device, key),
            Effect::PutRecord { key, record } => self.put_record(device, key, &record),
            Effect::KeepRecord { key, record } => self.dht.keep(device, key, record),
            Effect::FindRecord(key) => self.find_record(device, key),
            Effect::Done { request, outcome } => {
                let Some(slot) = self.slots.get_mut(device) else {
                    return;
                };
                let promises = slot.pending.remove(&request).unwrap_or_default();
                let expelled = self.expelling.remove(&request);
                self.told_of(request, outcome.is_ok());
                match outcome {
                    Ok(()) => {
                        if let Some(expelled) = expelled {
                            self.expelled(expelled);
                        }
                        self.trace
                            .note(self.now, device, format_args!("acknowledges"));
                        self.promised_by
                            .resize(self.promises.len() + promises.len(), device);
                        self.promises.extend(promises);
                        self.acked.resize(self.promises.len(), self.now);
                        self.may_crash(device);
                    }
                    Err(error) => {
                        self.trace
                            .note(self.now, device, format_args!("refuses: {error}"))
                    }
                }
            }
        }
    }

    fn send(&mut self, from: usize, peer: DeviceId, channel: Channel, bytes: Bytes) {
        let Some(to) = self.by_id.get(&peer).copied() else {
            return;
        };
        self.serves_no_stranger(from, to);
        let len = bytes.len();
        let flushed = self.told(from, Input::Flushed { peer, channel, len });
        // What one that means harm keeps to itself counts as written at once.
        let written = self
            .tampered(from, channel, bytes)
            .and_then(|bytes| self.hand_over((from, to), channel, bytes));
        let at = written.unwrap_or(self.now);
        self.push_unless_stuck((from, to), at, flushed);
    }

    /// The log of a device takes no more: nothing of what waits for it will be acknowledged.
    pub(super) fn cannot_log(&mut self, device: usize, error: &dyn std::error::Error) {
        self.trace
            .note(self.now, device, format_args!("cannot log: {error}"));
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        slot.log_failed = true;
        for request in std::mem::take(&mut slot.pending).into_keys() {
            self.expelling.remove(&request);
        }
    }

    /// How long a device takes to read from its disk.
    fn reads(&self, device: usize) -> (u64, u64) {
        let slot = self.slots.get(device);
        slot.map_or((0, 0), |slot| {
            let (least, most) = slot.speed.reads;
            (least + slot.slow.1, most + slot.slow.1)
        })
    }

    /// How long a device takes to make an entry durable.
    pub(super) fn syncs(&self, device: usize) -> (u64, u64) {
        let slot = self.slots.get(device);
        slot.map_or((0, 0), |slot| {
            let (least, most) = slot.speed.syncs;
            (least + slot.slow.1, most + slot.slow.1)
        })
    }
}
