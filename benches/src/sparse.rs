//! Closed packs whose blocks are holes: header, index and trailer are sound, so that a store with millions of blocks is made in seconds and
//! takes little disk. Whoever only opens the store, as every start does, cannot tell the difference; whoever reads a block can.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kith_node::config::Settings;
use kith_node::store::{DiskStore, open_store};
use kith_object::id::{Cid, PackId, SpaceId};
use kith_object::key::Secret;
use kith_object::pack::{Class, HEADER_BYTES, Header};
use kith_object::store::RecoveryReport;

use crate::{cpu_seconds, resident_bytes};

/// A pack is full before it would grow beyond this, as the store has it.
const PACK_BYTES: u64 = 16 << 20;
/// Bytes of a record's head: length, kind, digest.
const HEAD_BYTES: u64 = 37;
/// Bytes of an item of the index: kind, digest, offset.
const ITEM_BYTES: u64 = 37;
/// As `protocol/spec/pack.md` has them.
const KIND_OURS: u8 = 1;
const INDEX_DOMAIN: &str = "kith pack index 1";
const TRAILER_MAGIC: &[u8; 8] = b"kithpend";

/// Which packs to make.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks in all packs together.
    pub blocks: u64,
    /// Bytes of each.
    pub block_bytes: u32,
}

impl Shape {
    /// Blocks of one full pack.
    pub fn blocks_per_pack(&self) -> u64 {
        let each = u64::from(self.block_bytes) + HEAD_BYTES + ITEM_BYTES;
        ((PACK_BYTES - 116) / each).clamp(1, 1 << 16)
    }

    /// How many packs that makes.
    pub fn packs(&self) -> u64 {
        self.blocks.div_ceil(self.blocks_per_pack())
    }
}

/// The name of a made-up block.
pub fn cid(number: u64) -> Cid {
    Cid::from_digest(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// Makes the packs in a folder.
///
/// # Errors
/// Whatever the system says.
pub fn write(folder: &Path, shape: Shape) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut next = 0;
    while next < shape.blocks {
        let end = shape.blocks.min(next + shape.blocks_per_pack());
        // Nobody can know the hash of bytes that are not there: any name will do for a pack that is never read through.
        let name = PackId(*blake3::hash(&end.to_be_bytes()).as_bytes());
        let file = File::create_new(folder.join(format!("{name}.pack")))?;
        write_pack(&file, next..end, shape.block_bytes)?;
        next = end;
    }
    Ok(())
}

fn write_pack(file: &File, numbers: std::ops::Range<u64>, block_bytes: u32) -> io::Result<()> {
    let record = HEAD_BYTES + u64::from(block_bytes);
    let too_long = |_| io::Error::other("a pack is below 64 MiB");
    let mut items = Vec::new();
    let mut end = HEADER_BYTES as u64;
    for number in numbers {
        let digest = blake3::hash(&number.to_le_bytes());
        items.push((*digest.as_bytes(), u32::try_from(end).map_err(too_long)?));
        end += record;
    }
    items.sort_unstable();
    let mut footer = Vec::new();
    for (digest, offset) in &items {
        footer.push(KIND_OURS);
        footer.extend_from_slice(digest);
        footer.extend_from_slice(&offset.to_le_bytes());
    }
    let hash = blake3::derive_key(INDEX_DOMAIN, &footer);
    let count = u32::try_from(items.len()).map_err(too_long)?;
    footer.extend_from_slice(&count.to_le_bytes());
    footer.extend_from_slice(&end.to_le_bytes());
    footer.extend_from_slice(&hash);
    footer.extend_from_slice(TRAILER_MAGIC);
    let header = Header::new(Class::Bulk, SpaceId([5; 32]));
    file.write_all_at(&header.encode(), 0)?;
    file.write_all_at(&footer, end)
}

/// What an opening of a store came to.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Until it answers.
    pub took: Duration,
    /// CPU seconds until it answers; on a machine that others use, these say more.
    pub cpu: f64,
    /// Until the filter of the index is in use as well.
    pub filtered: Duration,
    /// What it met.
    pub report: RecoveryReport,
    /// Resident memory of this process then, after some questions.
    pub resident_bytes: u64,
}

/// Opens the store of a home with such packs, asks it for `asked` blocks that are there, and answers what that took.
///
/// # Panics
/// If the store does not open, or denies a block.
pub fn open(home: &Path, shape: Shape, asked: u64) -> (DiskStore, Opened) {
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let space = SpaceId([5; 32]);
    let (store, report) = open_store(home, space, &Secret::new([3; 32]), Settings::default())
        .expect("a store that opens");
    assert!(store.has(&cid(0)).expect("an answer"), "the first is there");
    let (took, cpu) = (began.elapsed(), cpu_seconds() - cpu);
    while !store.index().has_filter() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let filtered = began.elapsed();
    let step = (shape.blocks / asked.max(1)).max(1);
    for number in (0..shape.blocks).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        assert!(
            store.has(&cid(number)).expect("an answer"),
            "{number} is there"
        );
    }
    let opened = Opened {
        took,
        cpu,
        filtered,
        report,
        resident_bytes: resident_bytes("self"),
    };
    (store, opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_takes_up_sparse_packs_once() {
        let home = tempfile::tempdir().unwrap();
        let shape = Shape {
            blocks: 40_000,
            block_bytes: 1024,
        };
        write(&home.path().join("packs"), shape).unwrap();
        let (store, opened) = open(home.path(), shape, 1000);
        assert_eq!(u64::from(opened.report.indexed), shape.packs());
        assert!(opened.report.damaged.is_empty());
        assert_eq!(store.usage().unwrap().blocks, shape.blocks);
        assert!(!store.has(&cid(shape.blocks)).unwrap());
        drop(store);
        let (_, again) = open(home.path(), shape, 1000);
        assert_eq!(again.report, RecoveryReport::default());
        assert!(again.resident_bytes > 0);
    }
}
