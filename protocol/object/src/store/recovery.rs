//! Opening: what was left open is closed, the index brought up to date, damaged files set aside.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use super::open_pack::{
    Finish, Held, PackFile, ROOM_CHECK_BYTES, Room, SealedPack, UNFINISHED_MAX, Writer, Writing,
};
use super::{
    Keep, RecoveryReport, Store, StoreConfig, StoreError, Verified, closed_id, closed_name,
    open_number,
};
use crate::disk::{Disk, Group, lock};
use crate::id::{Cid, PackId};
use crate::index::{Index, Location};
use crate::pack::{self, Class, Header, PACK_BYTES_MAX, PackWriter};

impl<D: Disk, I: Index> Store<D, I> {
    /// Opens the store on a disk: closes what was left open, brings the index up to date, sets damaged files aside.
    ///
    /// # Errors
    /// [`StoreError`] if the disk or the index cannot be used at all. Damage and a full disk are none: see [`RecoveryReport`].
    ///
    /// Spec: `protocol/spec/store.md`, "Opening".
    pub fn open(
        disk: D,
        index: I,
        config: StoreConfig,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        Self::open_telling(disk, index, config, &mut |_, _| {})
    }

    /// As [`Store::open`]; tells how many of the packs that the index did not know are taken up, and how many there are.
    ///
    /// Ending the process in between loses nothing: the next opening takes up the rest.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_telling(
        disk: D,
        index: I,
        mut config: StoreConfig,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(Self, RecoveryReport), StoreError> {
        config.pack_bytes_max = config.pack_bytes_max.min(PACK_BYTES_MAX as u64);
        let store = Self {
            disk,
            index,
            config,
            writer: Mutex::new(Writer {
                since_room_check: ROOM_CHECK_BYTES,
                ..Writer::default()
            }),
            held: RwLock::default(),
            group: Group::default(),
            finishing: Mutex::default(),
            born: Mutex::default(),
            trouble: Mutex::default(),
            stats: Mutex::default(),
            used: AtomicU64::new(0),
            quota: AtomicU64::new(config.quota.unwrap_or(u64::MAX)),
            cached: RwLock::default(),
            given_up: Mutex::default(),
            retiring: Arc::default(),
            parts: Arc::default(),
            upkeep: Mutex::default(),
        };
        let mut report = RecoveryReport::default();
        // Of a hundred thousand packs each look at a file counts.
        let files = store.measure()?;
        let mut closed: BTreeMap<PackId, &String> = BTreeMap::new();
        for (pack, keep, name) in files
            .keys()
            .filter_map(|name| closed_id(name).map(|(pack, keep)| (pack, keep, name)))
        {
            // Of one that is both, the kept one counts; the other goes below, once that has proved to be sound.
            if keep == Keep::Kept {
                closed.insert(pack, name);
                store.cached_mut().remove(&pack);
            } else if let Entry::Vacant(place) = closed.entry(pack) {
                let len = files.get(name).copied().flatten().unwrap_or_default();
                place.insert(name);
                store.cached_mut().insert(pack, len);
            }
        }
        let open: BTreeMap<(u64, Keep), &String> = files
            .keys()
            .filter_map(|name| Some((open_number(name)?, name)))
            .collect();
        lock(&store.writer).next_number = open.keys().last().map_or(0, |(last, _)| last + 1);
        let mut damaged = Vec::new();

        let mut known: BTreeMap<PackId, u64> = store
            .packs()?
            .into_iter()
            .map(|(pack, info)| (pack, info.bytes))
            .collect();
        let gone = known.keys().filter(|pack| !closed.contains_key(pack));
        report.vanished = gone.copied().collect();
        // Cut off or grown behind our back: judged anew below, from its own bytes.
        let mut odd = Vec::new();
        for (pack, name) in &closed {
            if let Some(bytes) = known.get(pack)
                && files.get(*name) != Some(&Some(*bytes))
            {
                odd.push(*pack);
            }
        }
        for pack in report.vanished.iter().chain(&odd) {
            store
                .index
                .remove_pack(pack, &[])
                .map_err(|source| StoreError::Index { source })?;
            known.remove(pack);
        }
        let unknown: Vec<_> = closed
            .iter()
            .filter(|(pack, _)| !known.contains_key(pack))
            .collect();
        for (done, (pack, name)) in (0_u64..).zip(&unknown) {
            tell(done, unknown.len() as u64);
            match store.read_footer(pack) {
                Ok((info, blocks)) => match store.index.insert_pack(pack, info, &blocks) {
                    Ok(()) => {
                        store.note_born(**pack, info, true, store.keep_of(pack));
                        report.indexed += 1;
                    }
                    Err(source)
                        if source.kind() == io::ErrorKind::StorageFull
                            && report.waiting.len() < UNFINISHED_MAX =>
                    {
                        store.hold_in_place(name)?;
                        report.waiting.push(((**name).clone(), source.to_string()));
                    }
                    Err(source) => return Err(StoreError::Index { source }),
                },
                Err(StoreError::Pack { .. }) => damaged.push((**name).clone()),
                Err(error) => return Err(error),
            }
        }
        for ((_, keep), name) in open {
            if !store.recover(name, keep, &mut report)? {
                damaged.push(name.clone());
            }
        }
        for name in damaged {
            if store.is_mended(&name)? {
                continue;
            }
            let salvaged = match closed_id(&name) {
                Some((pack, _)) => store.quarantine(&pack),
                None => store.salvage(&name, None),
            };
            match salvaged {
                Ok(kept) => report.damaged.push(kept),
                Err(error @ (StoreError::Sync { .. } | StoreError::Broken)) => return Err(error),
                Err(error) => {
                    store.hold_in_place(&name)?;
                    report.waiting.push((name, error.to_string()));
                }
            }
        }
        // What the next put finds present must last, even if the process that wrote it never came to sync it.
        store
            .disk
            .sync_names()
            .map_err(|source| StoreError::Sync { source })?;
        tell(unknown.len() as u64, unknown.len() as u64);
        store.drop_twins(&files);
        if report != RecoveryReport::default() {
            store.measure()?;
        }
        Ok((store, report))
    }

    /// Whether an unfinished pack has been closed under the name of a damaged one: the same blocks in the same order, all of them sound.
    fn is_mended(&self, name: &str) -> Result<bool, StoreError> {
        let Some((pack, _)) = closed_id(name) else {
            return Ok(false);
        };
        match self.read_footer(&pack) {
            Ok(_) => Ok(true),
            Err(StoreError::Pack { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the cached file of a pack whose kept file is there and sound: a change of name that a crash undid in part.
    fn drop_twins(&self, files: &BTreeMap<String, Option<u64>>) {
        for (pack, keep) in files.keys().filter_map(|name| closed_id(name)) {
            if keep == Keep::Cached
                && self.keep_of(&pack) == Keep::Kept
                && files.contains_key(&closed_name(&pack, Keep::Kept))
                && self.judge_pack(&pack).is_ok()
            {
                // If it stays, the next start removes it.
                let _ = self.disk.remove(&closed_name(&pack, Keep::Cached));
            }
        }
    }

    /// Takes up a pack that was open; false if it is damaged in the middle.
    fn recover(
        &self,
        name: &str,
        keep: Keep,
        report: &mut RecoveryReport,
    ) -> Result<bool, StoreError> {
        let Some(bytes) = self.read_whole(name)? else {
            return Ok(false);
        };
        let scan = pack::scan(&bytes);
        if scan.blocks.is_empty() {
            // Whatever was to come here was cut short before its first block was whole.
            report.torn_bytes += bytes.len() as u64;
            report.cut.push((name.to_owned(), 0));
            self.disk.remove(name).map_err(|source| StoreError::Write {
                name: name.to_owned(),
                source,
            })?;
            return Ok(true);
        }
        let header = Header::decode(&bytes);
        let (Ok(header), false) = (header, scan.is_damaged()) else {
            return Ok(false);
        };
        if scan.end < bytes.len() {
            report.torn_bytes += (bytes.len() - scan.end) as u64;
            report.cut.push((name.to_owned(), scan.end as u64));
        }
        let writer = PackWriter::resume(header, &bytes, &scan);
        let file = Arc::new(PackFile {
            name: RwLock::new(name.to_owned()),
            spoilt: AtomicBool::new(false),
            keep,
        });
        {
            let mut held = self.held_mut();
            for block in writer.blocks() {
                held.insert(
                    block.cid,
                    Held {
                        file: Arc::clone(&file),
                        offset: block.offset,
                        len: block.len,
                    },
                );
            }
        }
        {
            let mut state = lock(&self.writer);
            state.written += 1;
            state.sealed.push(SealedPack {
                file,
                writer,
                state: Finish::Records,
            });
        }
        self.flush()?;
        match lock(&self.trouble).take() {
            None => report.recovered += 1,
            Some(trouble) => report.waiting.push((name.to_owned(), trouble.to_string())),
        }
        Ok(true)
    }

    /// Copies the sound blocks of a damaged file into new packs and keeps the file aside; answers the name under which.
    ///
    /// `pack` is its name if the index knows it.
    fn salvage(&self, name: &str, pack: Option<&PackId>) -> Result<String, StoreError> {
        if let Some(bytes) = self.read_whole(name)? {
            let keep = keep_of_name(name);
            let class = Header::decode(&bytes).map_or(Class::Bulk, |header| header.class);
            for block in pack::scan(&bytes).blocks {
                let places = self
                    .index
                    .locations(&block.cid)
                    .map_err(|source| StoreError::Index { source })?;
                // What is kept is not left to a cached copy.
                let relies = |place: &Location| {
                    let is_kept = self.keep_of(&place.pack) == Keep::Kept;
                    // Nor to one that is on its way out.
                    Some(&place.pack) != pack
                        && (keep == Keep::Cached || is_kept && !self.is_retired(&place.pack))
                };
                if !places.iter().any(relies) {
                    let data = bytes.get(block.range()).unwrap_or_default();
                    let block = Verified {
                        cid: block.cid,
                        bytes: data,
                    };
                    let how = Writing {
                        keep,
                        lease: None,
                        closed: None,
                        room: Room::Tight,
                    };
                    self.write(class, block, &how)?;
                }
            }
            self.flush()?;
        }
        let mut kept = format!("{name}.bad");
        let mut number = 1;
        while self.disk.len(&kept).is_ok() {
            number += 1;
            kept = format!("{name}.{number}.bad");
        }
        self.disk
            .rename(name, &kept)
            .map_err(|source| StoreError::Write {
                name: name.to_owned(),
                source,
            })?;
        self.disk
            .sync_names()
            .map_err(|source| self.sync_failed(source))?;
        Ok(kept)
    }

    /// Makes the sound blocks of a damaged file readable where they are.
    fn hold_in_place(&self, name: &str) -> Result<(), StoreError> {
        let Some(bytes) = self.read_whole(name)? else {
            return Ok(());
        };
        // From here on a put of one of these blocks writes nothing, so they must last.
        self.disk
            .sync(name)
            .map_err(|source| self.sync_failed(source))?;
        let file = Arc::new(PackFile {
            name: RwLock::new(name.to_owned()),
            spoilt: AtomicBool::new(true),
            keep: keep_of_name(name),
        });
        let mut held = self.held_mut();
        for block in pack::scan(&bytes).blocks {
            let place = Held {
                file: Arc::clone(&file),
                offset: block.offset,
                len: block.len,
            };
            held.entry(block.cid).or_insert(place);
        }
        Ok(())
    }

    /// Takes a damaged pack out of use: its sound blocks go into new packs, the file is kept; answers the name under which.
    ///
    /// # Errors
    /// Any of [`StoreError`]; then the pack is as before.
    pub fn quarantine(&self, pack: &PackId) -> Result<String, StoreError> {
        let _upkeep = lock(&self.upkeep);
        let name = self.name_of(pack);
        let known: Vec<Cid> = match self.read_whole(&name)? {
            // The footer may be what is damaged: sound blocks are found without it.
            Some(bytes) => pack::scan(&bytes)
                .blocks
                .into_iter()
                .chain(self.pack_blocks(pack).unwrap_or_default())
                .map(|block| block.cid)
                .collect(),
            None => Vec::new(),
        };
        let salvaged = self.salvage(&name, Some(pack));
        if salvaged.is_err() && self.disk.len(&name).is_err() {
            // It has its new name, which may not last: the store takes no more, and the next start settles it.
            self.cached_mut().remove(pack);
        }
        let kept = salvaged?;
        self.index
            .remove_pack(pack, &known)
            .map_err(|source| StoreError::Index { source })?;
        self.cached_mut().remove(pack);
        Ok(kept)
    }
}

/// Whether the file of a pack, closed or open, is a cached one.
pub(super) fn keep_of_name(name: &str) -> Keep {
    Keep::split(name).map_or(Keep::Kept, |(_, keep)| keep)
}
