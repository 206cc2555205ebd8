//! Tells how the device and the mesh are, and removes devices.

use std::sync::atomic::Ordering;

use kith_core::device::{Command, CommandError, Removal};
use kith_crdt::replica::SealState;
use kith_object::id::DeviceId;
use kith_object::key::Words;
use kith_object::store::StoreError;
use kith_protocol::api::{self, Event, Failure, FailureKind, Spoken};

use super::super::{Node, held};
use super::describe::{described, device_name, role_name};
use super::failure::{change_failure, store_failure};
use super::keeping::keeping;
use super::told;
use crate::local::Teller;

impl Node {
    pub(super) async fn status(&self, tell: &Teller) -> Result<(), Failure> {
        let online = self.asker.is_online();
        let addrs = held(&self.door).clone();
        let traffic = held(&self.traffic).clone();
        let store = self.store.clone();
        let packs = tokio::task::spawn_blocking(move || {
            // A daemon keeps count; without one there are seldom files to look at.
            let lost = if online {
                0
            } else {
                store.lost_blocks()?.len()
            };
            Ok((store.usage()?, lost as u64))
        })
        .await;
        let settings = self.settings;
        let damaged = self.damage.load(Ordering::Relaxed);
        let dying = self.dying();
        let (usage, lost) = packs
            .map_err(|error| {
                Failure::new(FailureKind::Failed, "count what is stored").because(&error)
            })?
            .map_err(|error: StoreError| {
                store_failure("count what is stored".to_owned(), &error)
            })?;
        let (lost, healed) = (lost + self.healer.lost(), self.healer.healed());
        let mesh = self.identity.space;
        let reach = self.reach().await?;
        let bulk = held(&self.bulk).as_ref().map(|bulk| bulk.counters.told());
        let status = self
            .look(move |device| {
                let me = device.id();
                let (digest, entries) = device.digest();
                let access = device.access();
                api::Status {
                    mesh: mesh.to_string(),
                    device: me.to_string(),
                    name: device_name(device, &me),
                    role: access.role(&me).map_or("removed", role_name).to_owned(),
                    online,
                    addrs,
                    inside: device.own_addrs().to_vec(),
                    reach: reach.verdict,
                    reach_says: reach.says.into_iter().next().unwrap_or_default(),
                    devices: access.members.len() as u64,
                    connected: device.peers().len() as u64,
                    entries,
                    digest: data_encoding::HEXLOWER.encode(&digest),
                    tree: data_encoding::HEXLOWER.encode(&device.tree().fingerprint()),
                    versions: device.tree().version_count() as u64,
                    blocks: usage.blocks,
                    disk_bytes: usage.bytes,
                    cached_bytes: usage.cached,
                    cache_bytes: usage.cache,
                    quota_bytes: usage.quota,
                    free_bytes: usage.free,
                    floor_bytes: usage.floor,
                    damaged,
                    dying_packs: dying.0,
                    dying_bytes: dying.1,
                    lost,
                    healed,
                    durability: settings.durability.name().to_owned(),
                    conflicts: device.tree().conflicts().len() as u64,
                    writable: device.is_settled()
                        && matches!(device.replica().seal_state(), SealState::Ready(_)),
                    read_only: match device.replica().seal_state() {
                        SealState::Ready(_) if device.is_settled() => None,
                        SealState::Ready(_) => Some(CommandError::Unsettled.to_string()),
                        SealState::NeedsEpoch(why) => Some(why.to_string()),
                    },
                    traffic: traffic
                        .iter()
                        .map(|(peer, (received, sent))| api::Traffic {
                            device: peer.to_string(),
                            name: device_name(device, peer),
                            received: *received,
                            sent: *sent,
                        })
                        .collect(),
                    bulk: bulk.unwrap_or_default(),
                    keeping: keeping(device),
                }
            })
            .await?;
        told(tell, Event::Status(Box::new(status))).await
    }

    pub(super) async fn devices(&self, tell: &Teller) -> Result<(), Failure> {
        let devices = self
            .look(|device| {
                let access = device.access();
                let present = access.members.keys();
                let removed = access.removed.keys();
                present
                    .chain(removed)
                    .map(|id| described(device, id))
                    .collect::<Vec<_>>()
            })
            .await?;
        for device in devices {
            told(tell, Event::Device(device)).await?;
        }
        Ok(())
    }

    pub(super) async fn device_remove(
        &self,
        named: String,
        words: Option<Spoken>,
        force: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let what = format!("remove the device {named}");
        let (id, name) = self.device_named(named, &what).await?;
        let me = self.identity.keys.id();
        let root = match words {
            Some(words) => Some(Box::new(
                Words::parse(&words.0)
                    .map_err(|error| {
                        Failure::new(FailureKind::Usage, format!("{what}: read the 24 words"))
                            .because(&error)
                    })?
                    .root(),
            )),
            None => None,
        };
        if !force && id != me {
            // It may be about to agree with another device.
            self.until(move |device| device.knows_lately(&id)).await?;
        }
        let removal = Removal {
            device: id,
            root,
            force,
        };
        self.asker
            .command(Command::Remove(removal))
            .await
            .map_err(|error| change_failure(what, error))?;
        let device = api::Device {
            name,
            role: "removed".to_owned(),
            connected: false,
            removed: true,
            ..self.look(move |device| described(device, &id)).await?
        };
        told(tell, Event::Device(device)).await
    }

    /// The one device of the mesh that has this name or id.
    pub(super) async fn device_named(
        &self,
        named: String,
        what: &str,
    ) -> Result<(DeviceId, String), Failure> {
        let found = self
            .look(move |device| {
                let members = device.access().members.iter();
                members
                    .filter(|(id, member)| member.name == named || id.to_string() == named)
                    .map(|(id, member)| (*id, member.name.clone()))
                    .collect::<Vec<_>>()
            })
            .await?;
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Failure::new(
                FailureKind::NotFound,
                format!("{what}: there is no such device in the mesh"),
            )
            .hint("see the devices with `kith devices`")),
            _ => Err(Failure::new(
                FailureKind::Usage,
                format!("{what}: several devices have that name"),
            )
            .hint("give its id, as `kith devices` shows it")),
        }
    }
}
