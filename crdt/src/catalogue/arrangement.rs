//! Records about where packs are to be kept: policies, and what each device gives.
//!
//! Spec: `protocol/spec/documents.md`, "Catalogue".

use std::collections::BTreeSet;

use kith_object::id::DeviceId;

use crate::chain::read::Reader;

/// Longest label of a site, in bytes.
pub const SITE_BYTES_MAX: usize = 32;
/// Most sites that a policy names.
pub const SITES_MAX: usize = 16;

/// How often, or in which pieces, packs are to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// By the number of holders.
    Auto,
    /// So many whole copies.
    Copies(u8),
    /// So many shards that restore a pack, and so many besides.
    Shards(u8, u8),
}

/// Where a space's packs are to be, from now on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyRecord {
    /// How often.
    pub kept: Kept,
    /// Over how many sites at least.
    pub min_sites: u8,
    /// The sites at which they may be; all if there are none here.
    pub sites: BTreeSet<String>,
}

/// What a device gives for packs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderRecord {
    /// Which device.
    pub device: DeviceId,
    /// Bytes for packs; 0, and it holds none that others rely on.
    pub capacity: u64,
    /// After how many seconds of silence others take it for gone.
    pub grace: u32,
    /// Where it is; empty if that was not said.
    pub site: String,
}

/// Whether a device goes on holding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// It does.
    Stays,
    /// It is to be emptied; it counts as holder no more, and gives what it has.
    Drains,
    /// It is gone, whatever its grace.
    Lost,
}

/// What an admin says of a device's leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeavingRecord {
    /// Which device.
    pub device: DeviceId,
    /// Whether it leaves.
    pub leaving: Leaving,
}

/// Whether that may be the label of a site: 1 to [`SITE_BYTES_MAX`] bytes, nothing that would be misread in a list or on a line.
pub fn is_site(label: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=SITE_BYTES_MAX).contains(&label.len()) && label.chars().all(plain)
}

fn push_label(out: &mut Vec<u8>, label: &str) {
    out.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(label.as_bytes());
}

fn read_label(reader: &mut Reader<'_>) -> Option<String> {
    let len = usize::from(reader.u8()?);
    let text = reader.take(len)?;
    String::from_utf8(text.to_vec()).ok()
}

impl PolicyRecord {
    pub(super) fn body(&self) -> Vec<u8> {
        let (kind, first, second) = match self.kept {
            Kept::Auto => (0, 0, 0),
            Kept::Copies(copies) => (1, copies, 0),
            Kept::Shards(needed, spare) => (2, needed, spare),
        };
        let count = u8::try_from(self.sites.len()).unwrap_or(u8::MAX);
        let mut out = vec![kind, first, second, self.min_sites, count];
        for site in &self.sites {
            push_label(&mut out, site);
        }
        out
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [kind, first, second, min_sites, count] = reader.array()?;
        let kept = match (kind, first, second) {
            (0, 0, 0) => Kept::Auto,
            (1, copies @ 1.., 0) => Kept::Copies(copies),
            (2, needed @ 1.., spare @ 1..) => Kept::Shards(needed, spare),
            _ => return None,
        };
        if min_sites == 0 || usize::from(count) > SITES_MAX {
            return None;
        }
        let mut sites = BTreeSet::new();
        for _ in 0..count {
            let site = read_label(reader).filter(|site| is_site(site))?;
            if sites.last().is_some_and(|last| *last >= site) {
                return None;
            }
            sites.insert(site);
        }
        Some(Self {
            kept,
            min_sites,
            sites,
        })
    }
}

impl HolderRecord {
    pub(super) fn body(&self) -> Vec<u8> {
        let mut out = self.device.0.to_vec();
        out.extend_from_slice(&self.capacity.to_le_bytes());
        out.extend_from_slice(&self.grace.to_le_bytes());
        push_label(&mut out, &self.site);
        out
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let record = Self {
            device: DeviceId(reader.array()?),
            capacity: reader.u64()?,
            grace: reader.u32()?,
            site: read_label(reader)?,
        };
        (record.site.is_empty() || is_site(&record.site)).then_some(record)
    }
}

impl LeavingRecord {
    pub(super) fn body(&self) -> Vec<u8> {
        let mut out = self.device.0.to_vec();
        out.push(match self.leaving {
            Leaving::Stays => 0,
            Leaving::Drains => 1,
            Leaving::Lost => 2,
        });
        out
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            device: DeviceId(reader.array()?),
            leaving: match reader.u8()? {
                0 => Leaving::Stays,
                1 => Leaving::Drains,
                2 => Leaving::Lost,
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use serde_json::{Value, json};

    use super::super::CatalogueRecord;
    use super::*;
    use crate::chain::push_record;

    fn policy(kept: Kept, sites: &[&str]) -> PolicyRecord {
        PolicyRecord {
            kept,
            min_sites: 1,
            sites: sites.iter().map(|site| (*site).to_owned()).collect(),
        }
    }

    #[test]
    fn records_survive_their_bytes() {
        let device = DeviceId([7; 32]);
        let holder = |site: &str| HolderRecord {
            device,
            capacity: 1 << 40,
            grace: 172_800,
            site: site.to_owned(),
        };
        let list = [
            CatalogueRecord::Policy(policy(Kept::Auto, &[])),
            CatalogueRecord::Policy(policy(Kept::Copies(3), &["cloud", "home"])),
            CatalogueRecord::Policy(policy(Kept::Shards(10, 6), &["größe.1"])),
            CatalogueRecord::Holder(holder("")),
            CatalogueRecord::Holder(holder("home")),
            CatalogueRecord::Leaving(LeavingRecord {
                device,
                leaving: Leaving::Drains,
            }),
        ];
        for record in list {
            let bytes = record.encode();
            assert_eq!(CatalogueRecord::decode(&bytes), Some(record));
            assert_eq!(CatalogueRecord::decode(&[&bytes[..], &[0]].concat()), None);
            assert_eq!(CatalogueRecord::decode(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn what_no_encoder_writes_is_no_record() {
        let policy = |body: &[u8]| {
            let mut framed = Vec::new();
            push_record(&mut framed, 8, body);
            CatalogueRecord::decode(&framed)
        };
        assert!(policy(&[1, 3, 0, 1, 2, 1, b'a', 1, b'b']).is_some());
        for body in [
            &[0, 1, 0, 1, 0][..],
            &[1, 0, 0, 1, 0],
            &[1, 3, 1, 1, 0],
            &[2, 4, 0, 1, 0],
            &[3, 4, 2, 1, 0],
            &[1, 3, 0, 0, 0],
            &[1, 3, 0, 1, 17],
            &[1, 3, 0, 1, 2, 1, b'b', 1, b'a'],
            &[1, 3, 0, 1, 2, 1, b'a', 1, b'a'],
            &[1, 3, 0, 1, 1, 0],
            &[1, 3, 0, 1, 1, 1, b','],
            &[1, 3, 0, 1, 1, 1, 0xff],
        ] {
            assert_eq!(policy(body), None, "{body:?}");
        }
        let long = "a".repeat(SITE_BYTES_MAX + 1);
        assert!(!is_site(&long) && !is_site("") && !is_site("a b") && is_site("home-2"));
    }

    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/arrangement.json"
    );

    fn cases() -> Vec<Value> {
        let device = DeviceId([7; 32]);
        let holder = |site: &str| {
            CatalogueRecord::Holder(HolderRecord {
                device,
                capacity: 3 << 40,
                grace: 172_800,
                site: site.to_owned(),
            })
        };
        let leaving = |leaving| CatalogueRecord::Leaving(LeavingRecord { device, leaving });
        let shards = policy(Kept::Shards(10, 6), &["cloud", "größe.1"]);
        let shards = CatalogueRecord::Policy(shards).encode();
        let altered = |place: usize, byte: u8| {
            let mut bytes = shards.clone();
            bytes[place] = byte;
            bytes
        };
        let coded = super::super::tests::coded();
        let with = |change: &dyn Fn(&mut super::super::Coded)| {
            let mut coded = coded.clone();
            change(&mut coded);
            CatalogueRecord::Coded(coded).encode()
        };
        let list = [
            ("coded", with(&|_| {})),
            (
                "coded, two shards on one device",
                with(&|of| of.devices[0] = of.devices[1]),
            ),
            (
                "coded, two shards of one name",
                with(&|of| of.coding.parity[0] = of.coding.data[0].id),
            ),
            (
                "coded, a shard of the pack's name",
                with(&|of| of.coding.parity[0] = of.coding.pack),
            ),
            (
                "coded, a shard without blocks",
                with(&|of| of.coding.data[1].blocks = 0),
            ),
            (
                "coded, a shard too short for its blocks",
                with(&|of| of.coding.data[1].len = 337),
            ),
            (
                "coded, a shard longer than a pack",
                with(&|of| of.coding.data[1].len = (64 << 20) + 1),
            ),
            (
                "coded, parity longer than a pack",
                with(&|of| of.coding.data[1].len = 64 << 20),
            ),
            (
                "coded, without parity",
                with(&|of| {
                    of.coding.parity.clear();
                    of.devices.pop();
                }),
            ),
            (
                "by the number of holders",
                CatalogueRecord::Policy(policy(Kept::Auto, &[])).encode(),
            ),
            (
                "three copies at two sites",
                CatalogueRecord::Policy(policy(Kept::Copies(3), &["cloud", "home"])).encode(),
            ),
            ("shards", shards.clone()),
            ("a holder", holder("home").encode()),
            ("a holder nowhere in particular", holder("").encode()),
            ("stays", leaving(Leaving::Stays).encode()),
            ("drains", leaving(Leaving::Drains).encode()),
            ("lost", leaving(Leaving::Lost).encode()),
            ("no known kind of redundancy", altered(6, 3)),
            ("no shards besides", altered(8, 0)),
            ("no site at all", altered(9, 0)),
            ("more sites than there are", altered(10, 3)),
            ("sites not in order", altered(12, b'z')),
            ("a label with a comma", altered(13, b',')),
            ("a label that is no text", altered(13, 0xff)),
            ("cut short", shards[..shards.len() - 1].to_vec()),
        ];
        let case = |(name, bytes): (&str, Vec<u8>)| {
            let read = CatalogueRecord::decode(&bytes);
            let expect = if read.is_some() { "ok" } else { "malformed" };
            json!({ "name": name, "expect": expect, "record": HEXLOWER.encode(&bytes) })
        };
        list.into_iter().map(case).collect()
    }

    #[test]
    fn vectors_hold() {
        let today = cases();
        if std::env::var_os("KITH_BLESS").is_some() {
            std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
        }
        let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        assert_eq!(kept, today);
    }
}
