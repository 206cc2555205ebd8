//! Fetches what this device should hold, and says what it gives and holds.
//!
//! Spec: `protocol/spec/upkeep.md`, "Keeping".

use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kith_core::device::Input;
use kith_core::keeper::{PULLS_MAX, Pull, Pulled, Way};
use kith_core::probing::{Probe, Probed};
use kith_core::promises::Vouch;
use kith_core::shards::{self, MakeError};
use kith_object::id::{DeviceId, PackId};
use kith_object::index::Index;
use kith_object::store::{Keep, StoreError};
use kith_protocol::bulk::Failure;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bulk::{Bulk, FetchError, Wanted};
use crate::promises::Surplus;
use crate::store::DiskStore;

/// What the machine wants done about packs; it wants little at once.
#[derive(Debug, Clone)]
pub(crate) struct ToDo {
    pub(crate) pulls: mpsc::UnboundedSender<Pull>,
    pub(crate) vouches: mpsc::UnboundedSender<Vouch>,
    pub(crate) give_ups: mpsc::UnboundedSender<Surplus>,
    pub(crate) probes: mpsc::UnboundedSender<Probe>,
}

/// The same on the other side.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) pulls: mpsc::UnboundedReceiver<Pull>,
    pub(crate) vouches: mpsc::UnboundedReceiver<Vouch>,
    pub(crate) give_ups: mpsc::UnboundedReceiver<Surplus>,
    pub(crate) probes: mpsc::UnboundedReceiver<Probe>,
}

/// Both ends.
pub(crate) fn queues() -> (ToDo, Queues) {
    let (pulls, to_pull) = mpsc::unbounded_channel();
    let (vouches, to_vouch) = mpsc::unbounded_channel();
    let (give_ups, to_give_up) = mpsc::unbounded_channel();
    let (probes, to_probe) = mpsc::unbounded_channel();
    let to_do = ToDo {
        pulls,
        vouches,
        give_ups,
        probes,
    };
    let queues = Queues {
        pulls: to_pull,
        vouches: to_vouch,
        give_ups: to_give_up,
        probes: to_probe,
    };
    (to_do, queues)
}

/// Fetches packs as the machine wants them, no more bytes a second than that; until the machine ends.
pub(crate) async fn pull_all(
    bulk: Bulk,
    mut pulls: mpsc::UnboundedReceiver<Pull>,
    rate: Option<NonZeroU64>,
) {
    let mut fetching = JoinSet::new();
    let mut not_before = tokio::time::Instant::now();
    loop {
        // The machine wants no more at once; this is the belt to its braces.
        while fetching.len() >= PULLS_MAX {
            fetching.join_next().await;
        }
        let Some(pull) = pulls.recv().await else {
            return;
        };
        tokio::time::sleep_until(not_before).await;
        if let Some(rate) = rate {
            let takes = Duration::from_secs_f64(pull.moves() as f64 / rate.get() as f64);
            not_before = not_before.max(tokio::time::Instant::now()) + takes;
        }
        let bulk = bulk.clone();
        fetching.spawn(async move {
            let pack = pull.pack;
            let how = fetch(&bulk, pull).await;
            if how == Pulled::Came {
                let (added, removed) = (vec![pack], Vec::new());
                bulk.asker.input(Input::Kept { added, removed });
            }
            bulk.asker.input(Input::Pulled { pack, how });
        });
    }
}

/// Has others show that they hold what they say, one after the other; until the machine ends.
pub(crate) async fn probe_all(bulk: Bulk, mut probes: mpsc::UnboundedReceiver<Probe>) {
    while let Some(probe) = probes.recv().await {
        let Probe {
            device,
            pack,
            bytes,
            offset,
        } = probe;
        let how = match bulk.range(device, pack, bytes, offset).await {
            Ok(()) => Probed::Sound,
            Err(Failure::Lacks | Failure::Lied) => Probed::False,
            Err(Failure::Broken) => Probed::Nothing,
        };
        if how != Probed::Sound {
            tracing::debug!(%device, %pack, ?how, "not shown to be there");
        }
        bulk.asker.input(Input::Probed { device, pack, how });
    }
}

async fn fetch(bulk: &Bulk, pull: Pull) -> Pulled {
    let pack = pull.pack;
    let made = make(bulk, pull).await;
    let Err(error) = made else {
        return Pulled::Came;
    };
    tracing::debug!(%pack, %error, "a pack that should be here is not kept");
    error.pulled()
}

async fn make(bulk: &Bulk, pull: Pull) -> Result<(), MakeError> {
    let pack = pull.pack;
    match pull.way {
        Way::Whole(sources) => {
            have(bulk, vec![(pack, pull.bytes, sources)], Keep::Kept).await?;
            // It may have been here as one that goes first when room is needed.
            let kept = move |store: &DiskStore| match keep(store, &pack)? {
                true => Ok(()),
                false => Err(MakeError::Lacking(pack)),
            };
            work(bulk, pack, kept).await
        }
        Way::Cut(shard) => {
            let cut = move |store: &DiskStore| shards::cut(store, &shard.coding, shard.at);
            work(bulk, pack, cut).await
        }
        Way::Restored { at, coding, from } => {
            let ids: Vec<PackId> = coding.ids().collect();
            let wanted = from.iter().filter(|(_, sources)| !sources.is_empty());
            let wanted = wanted.filter_map(|(at, sources)| {
                Some((*ids.get(*at)?, coding.len(*at), sources.clone()))
            });
            have(bulk, wanted.collect(), Keep::Cached).await?;
            let restore = move |store: &DiskStore| {
                let some = from.iter().map(|(at, _)| *at);
                let files = shards::read_some(store, &coding, some)?;
                shards::restore(store, &coding, at, &files)
            };
            work(bulk, pack, restore).await
        }
    }
}

/// Has computed and written, apart from what answers others; a pack of which that comes to no end is not here.
async fn work(
    bulk: &Bulk,
    pack: PackId,
    job: impl FnOnce(&DiskStore) -> Result<(), MakeError> + Send + 'static,
) -> Result<(), MakeError> {
    let store = bulk.store.clone();
    let done = tokio::task::spawn_blocking(move || job(&store)).await;
    done.unwrap_or(Err(MakeError::Lacking(pack)))
}

/// Fetches whole packs of such lengths from such devices. One that does not come is missed by whoever needs it.
async fn have(
    bulk: &Bulk,
    packs: Vec<(PackId, u64, Vec<DeviceId>)>,
    keep: Keep,
) -> Result<(), StoreError> {
    let wanted = packs.into_iter().map(|(pack, bytes, sources)| Wanted {
        pack,
        bytes,
        sources,
        blocks: 0,
        wanted: 0,
    });
    let is_over = AtomicBool::new(false);
    match bulk.fetch(wanted.collect(), keep, &is_over).await {
        Err(FetchError::Store(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Keeps a pack that is here; whether it is.
fn keep(store: &DiskStore, pack: &PackId) -> Result<bool, StoreError> {
    let info = store.index().info(pack);
    let here = info
        .map_err(|source| StoreError::Index { source })?
        .is_some();
    if here && store.keep_of(pack) == Keep::Cached {
        store.keep(pack)?;
    }
    Ok(here)
}
