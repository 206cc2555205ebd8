//! Reads blocks as they are, sealed: from this disk, and what is missing from others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;

use bytes::Bytes;
use kith_object::id::Cid;
use kith_object::store::StoreError;

use super::{Arrival, Fetching, HOPE, LOOK, ReadError, Source};
use std::time::Instant;

impl Source {
    /// Those blocks, as far as they can be had, each verified; on the calling thread, which may block. The caller bounds how many it asks for at once.
    pub(crate) fn blocks(&self, cids: &[Cid]) -> Result<BTreeMap<Cid, Bytes>, ReadError> {
        let mut found = BTreeMap::new();
        let mut fetching = self.fetching();
        self.look_here(cids, &mut found, &mut fetching)?;
        if fetching.wanted.is_empty() || !self.asker.is_online() {
            return Ok(found);
        }
        let missing = fetching.wanted.iter().copied().collect();
        let request = self.asker.fetch(missing, fetching.to.clone());
        fetching.requests.push(request);
        while !fetching.wanted.is_empty() {
            if self.tally.cancelled.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            match fetching.arrivals.recv_timeout(LOOK) {
                Ok(arrival) => self.take(arrival, &mut found, &mut fetching)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ReadError::Cancelled),
            }
            // What nobody has is done without, what is still under way is waited for.
            if !self.wait && fetching.hopeless().is_some() {
                for cid in std::mem::take(&mut fetching.lacking) {
                    fetching.wanted.remove(&cid);
                }
                fetching.hope = None;
            }
        }
        Ok(found)
    }

    fn look_here(
        &self,
        cids: &[Cid],
        found: &mut BTreeMap<Cid, Bytes>,
        fetching: &mut Fetching<'_>,
    ) -> Result<(), ReadError> {
        for cid in cids {
            if self.tally.cancelled.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled);
            }
            match self.store.get(cid) {
                Ok(Some(block)) => {
                    found.insert(*cid, block);
                    fetching.wanted.remove(cid);
                }
                Ok(None) | Err(StoreError::Corrupt { .. }) => {
                    fetching.wanted.insert(*cid);
                }
                Err(error) => return Err(ReadError::Store(error)),
            }
        }
        Ok(())
    }

    fn take(
        &self,
        arrival: Arrival,
        found: &mut BTreeMap<Cid, Bytes>,
        fetching: &mut Fetching<'_>,
    ) -> Result<(), ReadError> {
        match arrival {
            Arrival::Block { cid, block, from } => {
                if fetching.wanted.remove(&cid) {
                    fetching.came(&cid);
                    self.tally.came(from, block.len() as u64);
                    self.keeper.keep(vec![(cid, block.clone())])?;
                    found.insert(cid, block);
                }
            }
            Arrival::Held { cid } => {
                fetching.came(&cid);
                self.look_here(&[cid], found, fetching)?;
            }
            Arrival::Sought { cid } => fetching.came(&cid),
            Arrival::Unavailable { cid } => {
                if fetching.wanted.contains(&cid) {
                    fetching.lacking.insert(cid);
                    fetching.hope.get_or_insert_with(|| Instant::now() + HOPE);
                }
            }
        }
        Ok(())
    }
}
