//! What holders tell one another about packs: plain lists of records.
//!
//! Spec: `protocol/spec/documents.md`, "Catalogue".

mod arrangement;
mod coded;

pub use arrangement::{
    HolderRecord, Kept, Leaving, LeavingRecord, PolicyRecord, SITE_BYTES_MAX, SITES_MAX, is_site,
};
pub use coded::Coded;

use kith_object::id::{Cid, EntryId, PackId};

use crate::chain::push_record;
use crate::chain::read::{Reader, len_u32};
use crate::names::Retention;

const BORN: u16 = 1;
const RETIRED: u16 = 2;
const CODED: u16 = 3;
const SEEN: u16 = 4;
const FIXED: u16 = 5;
const ERASED: u16 = 6;
const RETENTION: u16 = 7;
const POLICY: u16 = 8;
const HOLDER: u16 = 9;
const LEAVING: u16 = 10;

/// A statement about packs or entries.
///
/// Spec: `protocol/spec/documents.md`, "Catalogue".
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogueRecord {
    /// A pack was closed.
    Born(Born),
    /// A pack may go once others stand for it.
    Retired(Retired),
    /// A pack has shards.
    Coded(Coded),
    /// The author misses nothing that a retirement leaves out.
    Seen(Seen),
    /// A generation ends. Written by no device yet.
    Fixed(Fixed),
    /// Payload parts that may be dropped. Written by no device yet.
    Erased(Vec<(EntryId, u16)>),
    /// Which versions keep their content, from now on.
    Retention(Retention),
    /// Where packs are to be, from now on.
    Policy(PolicyRecord),
    /// What a device gives for packs.
    Holder(HolderRecord),
    /// A device is to be emptied, or is gone.
    Leaving(LeavingRecord),
    /// A type this program does not know; kept and ignored.
    Unknown,
}

/// A pack came to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Born {
    /// Which pack.
    pub pack: PackId,
    /// Class of its blocks, as in the pack's header.
    pub class: u8,
    /// How many blocks it holds.
    pub blocks: u32,
    /// How long it is.
    pub bytes: u64,
}

/// A pack is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retired {
    /// Which pack.
    pub pack: PackId,
    /// Packs that hold what is kept of it. Sorted.
    pub replacements: Vec<PackId>,
    /// Entries the author had counted when it chose. Sorted.
    pub basis: Vec<EntryId>,
    /// Blocks left out, by their BLAKE3 digest. Sorted.
    pub left_out: Vec<[u8; 32]>,
}

/// A keyed member has looked what it would miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The entry that retires or erases.
    pub entry: EntryId,
    /// It went through everything that is kept, not only through what the retirer did not know.
    pub in_full: bool,
}

/// A generation of a document ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fixed {
    /// Which generation.
    pub generation: u32,
    /// Its last entries. Sorted.
    pub frontier: Vec<EntryId>,
    /// The snapshot that stands for them.
    pub snapshot: Cid,
}

fn push_names<'a>(out: &mut Vec<u8>, names: impl ExactSizeIterator<Item = &'a [u8; 32]>) {
    out.extend_from_slice(&len_u32(names.len()).to_le_bytes());
    for name in names {
        out.extend_from_slice(name);
    }
}

fn read_names<T: Ord>(reader: &mut Reader<'_>, name: impl Fn([u8; 32]) -> T) -> Option<Vec<T>> {
    let count = usize::try_from(reader.u32()?).ok()?;
    reader.names(count, name)
}

impl CatalogueRecord {
    /// The record, framed as it stands in a list.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Born(born) => {
                body.extend_from_slice(&born.pack.0);
                body.push(born.class);
                body.extend_from_slice(&born.blocks.to_le_bytes());
                body.extend_from_slice(&born.bytes.to_le_bytes());
                BORN
            }
            Self::Retired(retired) => {
                body.extend_from_slice(&retired.pack.0);
                push_names(&mut body, retired.replacements.iter().map(|id| &id.0));
                push_names(&mut body, retired.basis.iter().map(|id| &id.0));
                push_names(&mut body, retired.left_out.iter());
                RETIRED
            }
            Self::Coded(coded) => {
                body = coded.body();
                CODED
            }
            Self::Seen(seen) => {
                body.extend_from_slice(&seen.entry.0);
                body.push(u8::from(seen.in_full));
                SEEN
            }
            Self::Fixed(fixed) => {
                body.extend_from_slice(&fixed.generation.to_le_bytes());
                push_names(&mut body, fixed.frontier.iter().map(|id| &id.0));
                body.extend_from_slice(&fixed.snapshot.to_bytes());
                FIXED
            }
            Self::Erased(parts) => {
                body.extend_from_slice(&len_u32(parts.len()).to_le_bytes());
                for (entry, part) in parts {
                    body.extend_from_slice(&entry.0);
                    body.extend_from_slice(&part.to_le_bytes());
                }
                ERASED
            }
            Self::Retention(retention) => {
                for days in [retention.all, retention.daily, retention.monthly] {
                    body.extend_from_slice(&days.to_le_bytes());
                }
                RETENTION
            }
            Self::Policy(policy) => {
                body = policy.body();
                POLICY
            }
            Self::Holder(holder) => {
                body = holder.body();
                HOLDER
            }
            Self::Leaving(leaving) => {
                body = leaving.body();
                LEAVING
            }
            Self::Unknown => return Vec::new(),
        };
        let mut out = Vec::new();
        push_record(&mut out, kind, &body);
        out
    }

    /// Reads a framed record; `None` if its type is known and its body is not what an encoder writes.
    pub fn decode(framed: &[u8]) -> Option<Self> {
        let mut frame = Reader::new(framed);
        let kind = frame.u16()?;
        let len = usize::try_from(frame.u32()?).ok()?;
        let body = frame.take(len)?;
        if !frame.is_empty() {
            return None;
        }
        let mut reader = Reader::new(body);
        let record = match kind {
            BORN => Self::Born(Born {
                pack: PackId(reader.array()?),
                class: reader.u8()?,
                blocks: reader.u32()?,
                bytes: reader.u64()?,
            }),
            RETIRED => Self::Retired(Retired {
                pack: PackId(reader.array()?),
                replacements: read_names(&mut reader, PackId)?,
                basis: read_names(&mut reader, EntryId)?,
                left_out: read_names(&mut reader, |digest| digest)?,
            }),
            CODED => Self::Coded(Coded::read(&mut reader)?),
            SEEN => Self::Seen(Seen {
                entry: EntryId(reader.array()?),
                in_full: match reader.u8()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
            }),
            FIXED => {
                let generation = reader.u32()?;
                let frontier = read_names(&mut reader, EntryId)?;
                let snapshot = Cid::from_bytes(reader.rest()).ok()?;
                return Some(Self::Fixed(Fixed {
                    generation,
                    frontier,
                    snapshot,
                }));
            }
            ERASED => {
                let count = reader.u32()?;
                let mut parts = Vec::new();
                for _ in 0..count {
                    parts.push((EntryId(reader.array()?), reader.u16()?));
                }
                if !parts.is_sorted_by(|one, other| one < other) {
                    return None;
                }
                Self::Erased(parts)
            }
            RETENTION => {
                let retention = Retention {
                    all: reader.u32()?,
                    daily: reader.u32()?,
                    monthly: reader.u32()?,
                };
                if !retention.is_valid() {
                    return None;
                }
                Self::Retention(retention)
            }
            POLICY => Self::Policy(PolicyRecord::read(&mut reader)?),
            HOLDER => Self::Holder(HolderRecord::read(&mut reader)?),
            LEAVING => Self::Leaving(LeavingRecord::read(&mut reader)?),
            _ => return Some(Self::Unknown),
        };
        reader.is_empty().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::coding::{Coding, DataShard};
    use kith_object::id::DeviceId;
    use proptest::prelude::*;

    pub(super) fn coded() -> Coded {
        let shard = |n| DataShard {
            id: PackId([n; 32]),
            len: 1000,
            blocks: 3,
        };
        Coded {
            coding: Coding {
                pack: PackId([1; 32]),
                data: vec![shard(2), shard(3)],
                parity: vec![PackId([4; 32])],
            },
            devices: (7..10).map(|n| DeviceId([n; 32])).collect(),
        }
    }

    #[test]
    fn what_cannot_be_coded_so_is_no_record() {
        let is_read = |change: &dyn Fn(&mut Coded)| {
            let mut coded = coded();
            change(&mut coded);
            CatalogueRecord::decode(&CatalogueRecord::Coded(coded).encode()).is_some()
        };
        assert!(is_read(&|_| {}));
        assert!(!is_read(&|of| of.devices[0] = of.devices[1]));
        assert!(!is_read(&|of| of.devices.truncate(2)));
        assert!(!is_read(&|of| of.coding.parity[0] = of.coding.pack));
        assert!(!is_read(&|of| of.coding.data[0].blocks = 0));
        assert!(!is_read(&|of| of.coding.data[0].len = 100));
        assert!(!is_read(&|of| of.coding.parity.clear()));
    }

    #[test]
    fn records_survive_their_bytes() {
        let id = |byte| EntryId([byte; 32]);
        let list = [
            CatalogueRecord::Born(Born {
                pack: PackId([1; 32]),
                class: 2,
                blocks: 3,
                bytes: 4,
            }),
            CatalogueRecord::Retired(Retired {
                pack: PackId([1; 32]),
                replacements: vec![PackId([2; 32])],
                basis: vec![id(1), id(2)],
                left_out: vec![[9; 32]],
            }),
            CatalogueRecord::Coded(coded()),
            CatalogueRecord::Seen(Seen {
                entry: id(7),
                in_full: true,
            }),
            CatalogueRecord::Fixed(Fixed {
                generation: 1,
                frontier: vec![id(3)],
                snapshot: Cid::of_block(b"x"),
            }),
            CatalogueRecord::Erased(vec![(id(1), 0), (id(1), 1)]),
            CatalogueRecord::Retention(Retention::default()),
        ];
        for record in list {
            let bytes = record.encode();
            assert_eq!(CatalogueRecord::decode(&bytes), Some(record));
            assert_eq!(CatalogueRecord::decode(&[&bytes[..], &[0]].concat()), None);
            assert_eq!(CatalogueRecord::decode(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(
            CatalogueRecord::decode(&[0xff, 0xff, 0, 0, 0, 0]),
            Some(CatalogueRecord::Unknown)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(kind in 0u16..12, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = Vec::new();
            push_record(&mut bytes, kind, &body);
            if let Some(record) = CatalogueRecord::decode(&bytes) && record != CatalogueRecord::Unknown {
                prop_assert_eq!(record.encode(), bytes);
            }
            let _ = CatalogueRecord::decode(&body);
        }
    }
}
