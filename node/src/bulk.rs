//! Moves whole packs between devices: answers what others ask for, and fetches what is wanted here.
//!
//! Spec: `protocol/spec/bulk.md`.

mod fetch;
mod serve;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kith_object::buffer::Buffers;
use kith_protocol::api;

use crate::net::InsideHandle;
use crate::run::{Asker, Traffic};
use crate::store::DiskStore;

pub(crate) use fetch::{FetchError, Fetched, Wanted};
pub(crate) use serve::serve;

/// Bytes of buffers that lie idle for pieces to come: those of some pieces.
pub(crate) const IDLE_BYTES_MAX: usize = 4 << 20;

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests for pieces that were answered whole.
    pub(crate) pieces_sent: AtomicU64,
    /// Requests for packs that are not here; nothing was read for them.
    pub(crate) lacked: AtomicU64,
    /// Packs that came and are here now.
    pub(crate) packs_taken: AtomicU64,
    /// Bytes of pieces that came.
    pub(crate) bytes_came: AtomicU64,
    /// Of these, for nothing.
    pub(crate) bytes_wasted: AtomicU64,
}

impl Counters {
    /// For the owner.
    pub(crate) fn told(&self) -> api::Bulk {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        api::Bulk {
            packs: count(&self.packs_taken),
            received: count(&self.bytes_came),
            wasted: count(&self.bytes_wasted),
            pieces_sent: count(&self.pieces_sent),
            lacked: count(&self.lacked),
        }
    }
}

/// What it takes to move packs.
#[derive(Clone)]
pub(crate) struct Bulk {
    pub(crate) inside: InsideHandle,
    pub(crate) store: Arc<DiskStore>,
    pub(crate) asker: Asker,
    pub(crate) counters: Arc<Counters>,
    pub(crate) traffic: Arc<Mutex<Traffic>>,
    /// For pieces on their way.
    pub(crate) buffers: Buffers,
    pub(crate) runtime: tokio::runtime::Handle,
}
