//! What a scenario does to the world.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use std::collections::BTreeSet;

use kith_core::device::{Command, Input, Removal};
use kith_crdt::names::Change;
use kith_object::id::EntryId;
use kith_object::key::Rng;
use kith_object::time::Span;

use super::record::Mark;
use super::{Event, NOBODY, World, change_command, tree_path};
use crate::disk::Disks;
use crate::plan::Harm;

/// What a scenario does to the world.
#[derive(Debug, Clone)]
pub enum Act {
    /// A device stores a file.
    Put {
        device: usize,
        path: String,
        content: Vec<u8>,
    },
    /// A device moves something.
    Move {
        device: usize,
        from: String,
        to: String,
    },
    /// A device reads something that was put and that it knows of.
    Read(usize),
    /// A device removes something.
    Remove { device: usize, path: String },
    /// An admin removes a device from the mesh.
    Expel { by: usize, device: usize },
    /// Only devices of the same group reach each other, until the partition of that number heals.
    Partition(u64, Vec<BTreeSet<usize>>),
    /// What devices of the first group send does not reach those of the second, until that of this number heals.
    OneWay(u64, BTreeSet<usize>, BTreeSet<usize>),
    /// It heals.
    Heal(u64),
    /// A device loses its power.
    Crash(usize),
    /// It is shut down in order.
    Stop(usize),
    /// It starts again, unless something else keeps it down.
    Start(usize),
    /// It reaches nobody.
    Leave(usize),
    /// It is back, unless something else keeps it away.
    Return(usize),
    /// A bit of one of its packs turns over.
    Rot(usize),
    /// A sector of one of its packs cannot be read any more.
    LoseSector(usize),
    /// Its disks have room for so many bytes more, and no others.
    Fill(usize, u64),
    /// They have room again; if it could not write its log, somebody starts it again.
    Empty(usize),
    /// Its disks fail to make durable what they are given next.
    FailSync(usize),
    /// They do not any more; if it could not write its log, somebody starts it again.
    Mend(usize),
    /// Each input takes its processor, and each access its disk, so many milliseconds longer.
    Slow(usize, (u64, u64)),
    /// That is over.
    Quick(usize, (u64, u64)),
    /// Its disks are copied.
    Backup(usize),
    /// They are put back to what they were then.
    Restore(usize),
    /// It stands still for so long.
    Pause(usize, Span),
    /// All of these are lost for good.
    Lose(Vec<usize>),
    /// It is reached at another address from now on.
    Relocate(usize),
    /// So many more packets of a million are lost.
    Storm(u64),
    /// That is over.
    Calm(u64),
    /// It harms others.
    Harm(usize, Harm),
    /// Its clock jumps, by so many milliseconds.
    Jump {
        /// Which.
        device: usize,
        /// How far.
        by: i64,
    },
}

impl World {
    pub(super) fn act(&mut self, act: Act) {
        match act {
            Act::Put {
                device,
                path,
                content,
            } => self.put(device, &path, content),
            Act::Read(device) => {
                let place = self.rng.below(self.promises.len().max(1) as u64);
                let place = usize::try_from(place).unwrap_or(0);
                let promise = self.promises.get(place).cloned();
                let promise = promise.filter(|promise| {
                    let running = self
                        .slots
                        .get(device)
                        .and_then(|slot| slot.running.as_ref());
                    running.is_some_and(|running| {
                        running.device.tree().link_of(&promise.cid).is_some()
                    })
                });
                if let Some(promise) = promise {
                    let read = self.fetch(device, promise);
                    // One in four reads is not waited for.
                    if self.rng.below(4) == 0 {
                        let life = self.life(device);
                        self.after((0, 2000), Event::GiveUp { device, life, read });
                    }
                }
            }
            Act::Move { device, from, to } => {
                let change = Change::Move {
                    from: tree_path(&from),
                    to: tree_path(&to),
                };
                self.trace
                    .note(self.now, device, format_args!("moves {from} to {to}"));
                self.command(device, change_command(vec![change], None), Vec::new());
            }
            Act::Remove { device, path } => {
                self.trace
                    .note(self.now, device, format_args!("removes {path}"));
                let change = Change::Remove {
                    path: tree_path(&path),
                    recursive: true,
                };
                self.command(device, change_command(vec![change], None), Vec::new());
            }
            Act::Expel { by, device } => {
                self.trace
                    .note(self.now, by, format_args!("expels d{device}"));
                let out = self.id(device);
                // On both sides of a partition, as it comes.
                let removal = Removal {
                    device: out,
                    root: None,
                    force: true,
                };
                if let Some(request) = self.command(by, Command::Remove(removal), Vec::new()) {
                    self.expelling.insert(request, device);
                }
            }
            Act::Rot(device) => self.rot(device, Disks::rot),
            Act::LoseSector(device) => self.rot(device, Disks::lose_sector),
            Act::Fill(device, room) => self.fill(device, Some(room)),
            Act::Empty(device) => self.fill(device, None),
            Act::FailSync(device) => {
                self.mark(device, Mark::Unwritable);
                let what = format_args!("has disks that do not make durable what they are given");
                self.trace.note(self.now, device, what);
                if let Some(slot) = self.slots.get(device) {
                    slot.disks.fail_next_sync();
                }
            }
            Act::Mend(device) => {
                if let Some(slot) = self.slots.get(device) {
                    slot.disks.mend();
                }
                self.restart_if_stuck(device);
            }
            Act::Slow(device, by) => self.slow(device, by, (0, 0)),
            Act::Quick(device, by) => self.slow(device, (0, 0), by),
            Act::Backup(device) => {
                let promised = self.promises.len();
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.backup = Some((slot.disks.copied(), promised));
                }
            }
            Act::Restore(device) => self.restore(device),
            Act::Pause(device, lasts) => {
                self.mark(device, Mark::Pauses);
                self.trace
                    .note(self.now, device, format_args!("stands still"));
                let until = self.now + lasts;
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.paused = slot.paused.max(until);
                }
                self.push(until, Event::GoOn(device));
            }
            Act::Relocate(device) => self.relocate(device),
            Act::Lose(devices) => self.lose(&devices),
            Act::Storm(loss) => {
                self.mark(0, Mark::Storms(true));
                self.trace.note(self.now, 0, format_args!("storms"));
                self.network.storm(loss, 0);
            }
            Act::Calm(loss) => {
                self.mark(0, Mark::Storms(false));
                self.network.storm(0, loss);
            }
            Act::Harm(device, harm) => self.harm(device, harm),
            Act::Partition(number, groups) => {
                self.trace
                    .note(self.now, 0, format_args!("partition {groups:?}"));
                self.mark(0, Mark::Parted(number));
                self.obstacles.part(number, groups);
                self.fall_silent();
            }
            Act::OneWay(number, from, to) => {
                let what = format_args!("what {from:?} send does not reach {to:?}");
                self.trace.note(self.now, 0, what);
                self.mark(0, Mark::Parted(number));
                self.obstacles.swallow(number, from, to);
                self.fall_silent();
            }
            Act::Heal(number) => {
                self.mark(0, Mark::Healed(number));
                self.trace.note(self.now, 0, format_args!("heals"));
                self.obstacles.heal(number);
                self.get_going();
            }
            Act::Crash(device) => self.end(device, true),
            Act::Stop(device) => self.end(device, false),
            Act::Start(device) => {
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.down = slot.down.saturating_sub(1);
                    if slot.down == 0 {
                        self.start(device);
                    }
                }
            }
            Act::Leave(device) => {
                self.mark(device, Mark::Leaves);
                self.trace.note(self.now, device, format_args!("leaves"));
                self.obstacles.leave(device);
                self.fall_silent();
            }
            Act::Return(device) => {
                self.mark(device, Mark::Returns);
                self.trace.note(self.now, device, format_args!("returns"));
                self.obstacles.back(device);
                self.get_going();
            }
            Act::Jump { device, by } => {
                self.mark(device, Mark::Jumps(by));
                self.trace.note(
                    self.now,
                    device,
                    format_args!("has its clock jump by {by} ms"),
                );
                if let Some(slot) = self.slots.get_mut(device) {
                    slot.clock.ahead = slot.clock.ahead.saturating_add(by);
                }
            }
        }
    }

    /// Where a device is reached now.
    pub(super) fn address(&self, device: usize) -> String {
        match self.slots.get(device).map_or(0, |slot| slot.moves) {
            0 => format!("sim/{device}"),
            moves => format!("sim/{device}/{moves}"),
        }
    }

    /// A device is reached somewhere else from now on.
    fn relocate(&mut self, device: usize) {
        if let Some(slot) = self.slots.get_mut(device) {
            slot.moves += 1;
        }
        self.mark(device, Mark::Moves);
        let address = self.address(device);
        self.trace
            .note(self.now, device, format_args!("moves to {address}"));
        let peers: Vec<usize> = self.neighbours(device).collect();
        for peer in peers {
            self.disconnect(device, peer);
        }
        self.input(device, Input::Listening(vec![address]));
    }

    /// A device's disks are put back to what they were. What it has acknowledged since is owed by nobody.
    fn restore(&mut self, device: usize) {
        // Who has removed another is not: what the others were never told would then be no removal at all.
        let removed = !self.expelling.is_empty() || self.slots.iter().any(|slot| slot.expelled);
        if device == 0 && removed {
            return;
        }
        let slot = self.slots.get_mut(device);
        let Some((disks, promised)) = slot.and_then(|slot| slot.backup.take()) else {
            return;
        };
        self.end(device, true);
        // Places keep their number, for other backups count by it.
        for by in self.promised_by.iter_mut().skip(promised) {
            if *by == device {
                *by = NOBODY;
            }
        }
        self.spreading.retain(|_, (_, who)| {
            who.remove(&device);
            !who.is_empty()
        });
        self.mark(device, Mark::Restored);
        self.trace
            .note(self.now, device, format_args!("is put back to a backup"));
        if let Some(slot) = self.slots.get_mut(device) {
            slot.disks = disks;
            // What it had promised to keep it may have no more.
            slot.rotten |= slot.gives.is_some();
            slot.disks.mend();
            slot.disks.leave_room(slot.capacity, None);
        }
        self.act(Act::Start(device));
        let slot = self.slots.get(device);
        let running = slot.and_then(|slot| slot.running.as_ref());
        let has = |entry: &&EntryId| {
            running.is_some_and(|running| running.device.replica().contains(entry))
        };
        let kept: Vec<EntryId> = self.spreading.keys().filter(has).copied().collect();
        for entry in kept {
            self.took(device, entry);
        }
    }

    /// Something of a device's packs is not as it was written any more.
    fn rot(&mut self, device: usize, how: impl FnOnce(&Disks, &mut Rng) -> Option<String>) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        if let Some(what) = how(&slot.disks, &mut self.rng) {
            slot.rotten = true;
            self.mark(device, Mark::Rots);
            self.trace
                .note(self.now, device, format_args!("has {what}"));
        }
    }

    /// Others fill a device's disks but for so much, or go again.
    fn fill(&mut self, device: usize, room: Option<u64>) {
        let Some(slot) = self.slots.get(device) else {
            return;
        };
        slot.disks.leave_room(slot.capacity, room);
        match room {
            Some(room) => {
                self.mark(device, Mark::Fills);
                let what = format_args!("has room for {room} bytes more");
                self.trace.note(self.now, device, what);
            }
            None => {
                self.trace
                    .note(self.now, device, format_args!("has room again"));
                self.restart_if_stuck(device);
            }
        }
    }

    /// Somebody starts a device again that could not write its log.
    fn restart_if_stuck(&mut self, device: usize) {
        let slot = self.slots.get(device);
        if slot.is_some_and(|slot| slot.log_failed) {
            self.end(device, true);
            self.act(Act::Start(device));
        } else if slot.is_some_and(|slot| slot.down == 0) {
            // It could not even be started, maybe.
            self.start(device);
        }
    }

    /// A device's processor and disk take so much longer, or less long again.
    fn slow(&mut self, device: usize, more: (u64, u64), less: (u64, u64)) {
        self.mark(device, Mark::Slows(more != (0, 0)));
        let what = match more {
            (0, 0) => "is as quick again as it was",
            _ => "is slow",
        };
        self.trace.note(self.now, device, format_args!("{what}"));
        if let Some(slot) = self.slots.get_mut(device) {
            slot.slow.0 = (slot.slow.0 + more.0).saturating_sub(less.0);
            slot.slow.1 = (slot.slow.1 + more.1).saturating_sub(less.1);
        }
    }
}
