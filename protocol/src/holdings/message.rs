//! Messages about holdings, byte for byte.
//!
//! Spec: `protocol/spec/holdings.md`, "Messages".

use kith_object::id::{DeviceId, SpaceId};
use kith_object::key::{DeviceKeys, verify};

use super::set::{DEPTH_MAX, HoldingTag, TAGS_MAX, TagSet};
use crate::wire::{Malformed, Reader, Writer};

/// Most devices in a list.
pub(super) const DEVICES_MAX: usize = 1024;
/// A give ends after the bucket that takes it past that.
pub(super) const GIVE_BYTES: usize = 128 << 10;
/// No honest stamp is later.
pub(super) const STAMP_MAX: u64 = 1 << 62;
const DOMAIN: &str = "kith holdings 1";
const LAST: u16 = u16::MAX;
const SIGNED_BYTES: usize = 81;

/// What a device signs of its holdings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whose.
    pub device: DeviceId,
    /// Later than those before it; milliseconds of the device's clock.
    pub stamp: u64,
    /// How many tags.
    pub count: u32,
    /// Bits that name a bucket.
    pub depth: u8,
    /// Over all buckets.
    pub root: [u8; 32],
    signature: [u8; 64],
}

impl Head {
    /// Signs what the device holds.
    pub fn sign(keys: &DeviceKeys, space: &SpaceId, stamp: u64, set: &TagSet) -> Self {
        let mut head = Self {
            device: keys.id(),
            stamp,
            count: u32::try_from(set.len()).unwrap_or(u32::MAX),
            depth: set.depth(),
            root: set.root(),
            signature: [0; 64],
        };
        head.signature = keys.sign(DOMAIN, &head.signed(space));
        head
    }

    /// Whether the device signed it, for that mesh.
    pub fn is_signed(&self, space: &SpaceId) -> bool {
        verify(&self.device, DOMAIN, &self.signed(space), &self.signature)
    }

    fn signed(&self, space: &SpaceId) -> Vec<u8> {
        let mut out = Writer::with_capacity(32 + SIGNED_BYTES);
        out.raw(&space.0);
        self.write_signed(&mut out);
        out.finish()
    }

    fn write_signed(&self, out: &mut Writer) {
        out.raw(&self.device.0)
            .u64(self.stamp)
            .u32(self.count)
            .u8(self.depth)
            .u32(0)
            .raw(&self.root);
    }

    fn write(&self, out: &mut Writer) {
        self.write_signed(out);
        out.raw(&self.signature);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (device, stamp) = (DeviceId(reader.array()?), reader.u64()?);
        let (count, depth, reserved) = (reader.u32()?, reader.u8()?, reader.u32()?);
        let sound = stamp < STAMP_MAX
            && usize::try_from(count).is_ok_and(|count| count <= TAGS_MAX)
            && depth <= DEPTH_MAX
            && reserved == 0;
        if !sound {
            return Err(Malformed("head out of range"));
        }
        Ok(Self {
            device,
            stamp,
            count,
            depth,
            root: reader.array()?,
            signature: reader.array()?,
        })
    }
}

/// Buckets that are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Give {
    /// What they belong to.
    pub head: Head,
    /// Where to go on asking.
    pub next: Option<u16>,
    /// By their number.
    pub buckets: Vec<(u16, Vec<HoldingTag>)>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// What all heads known come to.
    Summary([u8; 16]),
    /// All heads known.
    Stamps(Vec<(DeviceId, u64)>),
    /// A head that is new.
    Head(Head),
    /// Asks for what differs of a device's holdings.
    Ask {
        /// Whose.
        device: DeviceId,
        /// Of the set that is here.
        depth: u8,
        /// Its buckets; none if there is no such set.
        hashes: Vec<[u8; 16]>,
        /// The first bucket of interest.
        from: u16,
    },
    /// Answers it.
    Give(Give),
}

impl Message {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Summary(hash) => {
                out.u8(1).raw(hash);
            }
            Self::Stamps(stamps) => {
                out.u8(2).count_u32(stamps.len());
                for (device, stamp) in stamps {
                    out.raw(&device.0).u64(*stamp);
                }
            }
            Self::Head(head) => {
                out.u8(3);
                head.write(&mut out);
            }
            Self::Ask {
                device,
                depth,
                hashes,
                from,
            } => {
                out.u8(4).raw(&device.0).u8(*depth).count_u32(hashes.len());
                out.raw(hashes.as_flattened()).u16(*from);
            }
            Self::Give(give) => {
                out.u8(5);
                give.head.write(&mut out);
                out.u16(give.next.unwrap_or(LAST));
                out.u16(u16::try_from(give.buckets.len()).unwrap_or(u16::MAX));
                for (at, tags) in &give.buckets {
                    out.u16(*at).count_u32(tags.len());
                    for tag in tags {
                        out.u64(tag.0);
                    }
                }
            }
        }
        out.finish()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] if [`Message::encode`] would not have made these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            1 => Self::Summary(reader.array()?),
            2 => {
                let count = reader.count_u32(DEVICES_MAX, 40)?;
                let mut stamps: Vec<(DeviceId, u64)> = Vec::with_capacity(count);
                for _ in 0..count {
                    let (device, stamp) = (DeviceId(reader.array()?), reader.u64()?);
                    if stamps.last().is_some_and(|(last, _)| *last >= device) || stamp >= STAMP_MAX
                    {
                        return Err(Malformed("stamps not in order or out of range"));
                    }
                    stamps.push((device, stamp));
                }
                Self::Stamps(stamps)
            }
            3 => Self::Head(Head::read(&mut reader)?),
            4 => {
                let (device, depth) = (DeviceId(reader.array()?), reader.u8()?);
                let count = reader.count_u32(1 << DEPTH_MAX, 16)?;
                if depth > DEPTH_MAX || (count != 0 && count != 1 << depth) {
                    return Err(Malformed("not as many buckets as there are"));
                }
                let hashes: Result<Vec<_>, _> = (0..count).map(|_| reader.array()).collect();
                Self::Ask {
                    device,
                    depth,
                    hashes: hashes?,
                    from: reader.u16()?,
                }
            }
            5 => Self::Give(read_give(&mut reader)?),
            _ => return Err(Malformed("message of no known kind")),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn read_give(reader: &mut Reader<'_>) -> Result<Give, Malformed> {
    let head = Head::read(reader)?;
    let buckets_len = 1_u32 << head.depth;
    let next = Some(reader.u16()?).filter(|next| *next != LAST);
    let count = reader.u16()?;
    let mut buckets: Vec<(u16, Vec<HoldingTag>)> = Vec::new();
    for _ in 0..count {
        let at = reader.u16()?;
        if buckets.last().is_some_and(|(last, _)| *last >= at) || u32::from(at) >= buckets_len {
            return Err(Malformed("buckets not in order"));
        }
        let len = reader.count_u32(TAGS_MAX, 8)?;
        let mut tags = Vec::with_capacity(len);
        for _ in 0..len {
            let tag = HoldingTag(reader.u64()?);
            if tags.last().is_some_and(|last| *last >= tag) {
                return Err(Malformed("tags not in order"));
            }
            tags.push(tag);
        }
        buckets.push((at, tags));
    }
    // What is to come lies beyond what came.
    let last = buckets.last().map(|(at, _)| *at);
    let sound = next
        .is_none_or(|next| u32::from(next) < buckets_len && last.is_some_and(|last| next > last));
    if !sound {
        return Err(Malformed("goes on where it has been"));
    }
    Ok(Give {
        head,
        next,
        buckets,
    })
}
