//! What this device says of itself as a holder: what it gives, and what it holds.
//!
//! Spec: `protocol/spec/upkeep.md`, "Records"; `protocol/spec/holdings.md`.

use std::collections::BTreeSet;

use kith_core::device::{Command, Device, Input};
use kith_core::upkeep;
use kith_crdt::catalogue::HolderRecord;
use kith_object::disk::Disk;
use kith_protocol::record::Subject;

use super::{HOLDINGS_FILE, Node, held};
use crate::config::fresh_rng;

/// Packs that are looked up in one go, while the machine does nothing else.
const UNTOLD_LOOKS: usize = 4096;

impl Node {
    /// Says to the machine what this device holds, so that others know of it; what of that the catalogue does not know is told to it next.
    pub(super) async fn tell_holdings(&self) {
        let (store, pins) = (self.store.clone(), self.pins.clone());
        let listing = tokio::task::spawn_blocking(move || {
            // As long as it is not known what is here, nothing is said of it.
            let packs = store.packs();
            let packs = packs.inspect_err(|error| tracing::warn!(%error, "packs are not counted"));
            let packs = packs.ok()?;
            let mut held: BTreeSet<Subject> =
                packs.iter().map(|(id, _)| Subject::Pack(*id)).collect();
            if let Ok(pins) = pins.read() {
                held.extend(pins.all().map(|pin| Subject::Root(pin.link.cid())));
            }
            Some((held, upkeep::kept(&store, &packs)))
        });
        let Ok(Some((subjects, listed))) = listing.await else {
            return;
        };
        let kept = listed.iter().map(|(pack, _)| *pack).collect();
        self.asker.input(Input::Holds { subjects, kept });
        for some in listed.chunks(UNTOLD_LOOKS) {
            let some = some.to_vec();
            let untold = move |device: &Device| device.untold(some);
            let Some(mut untold) = self.asker.look(untold).await else {
                return;
            };
            let mut unborn = held(&self.unborn);
            untold.retain(|one| unborn.iter().all(|born| born.pack != one.pack));
            unborn.extend(untold);
        }
    }

    /// Says what this device gives for packs, unless it was said, or as the owner wants it with this start; whether that is done.
    pub(super) async fn offer(&self, capacity: Option<u64>) -> bool {
        let me = self.identity.keys.id();
        let said = move |device: &Device| {
            let given = device.keeper().givers().get(&me).cloned();
            (given.unwrap_or_default(), device.is_settled())
        };
        let Some((said, true)) = self.asker.look(said).await else {
            return false;
        };
        let wanted = match capacity {
            None if said.is_said => return true,
            None => {
                let disk = self.store.disk().size().unwrap_or(0);
                self.settings.quota.unwrap_or(disk)
            }
            Some(capacity) => capacity,
        };
        if said.capacity == wanted {
            return true;
        }
        let holder = HolderRecord {
            device: me,
            capacity: wanted,
            grace: u32::try_from(said.grace.as_ms() / 1000).unwrap_or(u32::MAX),
            site: said.site,
        };
        let told = self.asker.command(Command::SetHolder(holder)).await;
        if let Err(error) = &told {
            tracing::debug!(%error, "what this device gives for packs is not said yet");
        }
        told.is_ok()
    }

    /// Writes what is known of other devices' holdings.
    pub(super) async fn keep_holdings(&self) {
        let encode = |device: &Device| device.holdings().encode();
        let Some(holdings) = self.asker.look(encode).await else {
            return;
        };
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let written = tokio::task::spawn_blocking(move || {
            home.write_sealed(HOLDINGS_FILE, &keys, &mut fresh_rng(), &holdings)
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "what other devices hold is not kept");
        }
    }
}
