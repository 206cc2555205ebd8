//! Which shards a pack has.

use std::collections::BTreeSet;

use kith_object::coding::{Coding, DataShard};
use kith_object::id::{DeviceId, PackId};

use crate::chain::read::Reader;

/// A pack has shards, any so many of which restore it.
///
/// Spec: `protocol/spec/documents.md`, "Catalogue".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coded {
    /// The pack, and its shards.
    pub coding: Coding,
    /// Which device should hold which shard, as it was when the pack was coded.
    pub devices: Vec<DeviceId>,
}

impl Coded {
    /// Whether there can be such shards, on such devices: one for each, none with two.
    pub fn is_sound(&self) -> bool {
        let devices: BTreeSet<&DeviceId> = self.devices.iter().collect();
        devices.len() == self.devices.len()
            && devices.len() == self.coding.shards()
            && self.coding.is_sound()
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let count = |all: usize| u8::try_from(all).unwrap_or(u8::MAX);
        let mut body = self.coding.pack.0.to_vec();
        body.push(count(self.coding.data.len()));
        body.push(count(self.coding.parity.len()));
        for shard in &self.coding.data {
            body.extend_from_slice(&shard.id.0);
            body.extend_from_slice(&shard.len.to_le_bytes());
            body.extend_from_slice(&shard.blocks.to_le_bytes());
        }
        for shard in &self.coding.parity {
            body.extend_from_slice(&shard.0);
        }
        for device in &self.devices {
            body.extend_from_slice(&device.0);
        }
        body
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let pack = PackId(reader.array()?);
        let (needed, spare) = (usize::from(reader.u8()?), usize::from(reader.u8()?));
        let mut data = Vec::new();
        for _ in 0..needed {
            data.push(DataShard {
                id: PackId(reader.array()?),
                len: reader.u32()?,
                blocks: reader.u32()?,
            });
        }
        let mut parity = Vec::new();
        for _ in 0..spare {
            parity.push(PackId(reader.array()?));
        }
        let mut devices = Vec::new();
        for _ in 0..needed + spare {
            devices.push(DeviceId(reader.array()?));
        }
        let coding = Coding { pack, data, parity };
        let coded = Self { coding, devices };
        coded.is_sound().then_some(coded)
    }
}
