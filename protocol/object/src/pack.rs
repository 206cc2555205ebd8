//! Packs: blocks in one immutable file, the unit of placement, replication and announcement.
//!
//! Spec: `protocol/spec/pack.md`, "Layout".

use std::ops::Range;

use crate::id::{Cid, PackId, SpaceId};

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 64;
/// Bytes behind the index.
pub const TRAILER_BYTES: usize = 52;
/// Longest block a pack takes; IPFS peers exchange at most 2 MiB, our chunks stay under 1 MiB, entries under 2.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Longest pack anybody reads. Writers close one at 16 MiB; the rest is room for what merging may want.
pub const PACK_BYTES_MAX: usize = 64 << 20;
/// Most blocks of one pack, so that its index stays a small thing to read and to sort.
pub const PACK_BLOCKS_MAX: usize = 1 << 16;

const MAGIC: [u8; 8] = *b"kithpack";
const TRAILER_MAGIC: [u8; 8] = *b"kithpend";
const VERSION: u8 = 1;
/// Blocks as IPFS has them, not sealed.
const SUITE_PUBLIC: u8 = 0;
/// The suite of `seal`.
const SUITE_SEALED: u8 = 1;
/// Separates the hash of an index from every other hash.
const INDEX_DOMAIN: &str = "kith pack index 1";
/// CID kind: raw BLAKE3-256, only the digest is written.
const KIND_OURS: u8 = 1;
/// CID kind: length and any other CID.
const KIND_ANY: u8 = 255;

/// What a pack's blocks are for; a pack holds one class, so that tiers and policies treat it as a whole.
///
/// Spec: `protocol/spec/pack.md`, "Header".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Class {
    /// Folder listings and what names need.
    Names = 1,
    /// Segments of the lifelog.
    Stream = 2,
    /// Contents of files.
    Bulk = 3,
    /// Unsealed blocks, as IPFS knows them.
    Public = 4,
    /// Genesis and chain entries.
    Entries = 5,
    /// Copies sealed for the holder of a link.
    Link = 6,
    /// Parity of other packs, which no name leads to.
    Parity = 7,
}

impl Class {
    /// All classes, by their number.
    pub const ALL: [Self; 7] = [
        Self::Names,
        Self::Stream,
        Self::Bulk,
        Self::Public,
        Self::Entries,
        Self::Link,
        Self::Parity,
    ];

    /// The byte that stands for the class.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Names => 1,
            Self::Stream => 2,
            Self::Bulk => 3,
            Self::Public => 4,
            Self::Entries => 5,
            Self::Link => 6,
            Self::Parity => 7,
        }
    }

    /// The class of that byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.to_byte() == byte)
    }
}

/// The first bytes of a pack.
///
/// Spec: `protocol/spec/pack.md`, "Header".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The suite of its blocks: 0 for class public, else the one under which they are sealed. Holders need not know it.
    pub suite: u8,
    /// What its blocks are for.
    pub class: Class,
    /// The one space they belong to.
    pub space: SpaceId,
}

/// Why bytes are not a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Too short or too long to be one.
    #[error("not the length of a pack")]
    Length,
    /// The first 64 bytes are not a header of version 1.
    #[error("bad pack header")]
    Header,
    /// The last 52 bytes do not end a pack of this length.
    #[error("bad pack trailer")]
    Trailer,
    /// The index does not have the hash that the trailer names, or is not in canonical form.
    #[error("bad pack index")]
    Index,
    /// A record is not what the index says.
    #[error("bad pack record at {offset}")]
    Record {
        /// Where it begins.
        offset: u32,
    },
    /// A block does not match its CID.
    #[error("block at {offset} of the pack does not match its name")]
    Block {
        /// Where it begins.
        offset: u32,
    },
    /// The whole does not have the expected name.
    #[error("pack is not the one it is named after")]
    Name,
}

impl Header {
    /// The header of a pack of that class and space, with the suite that such a pack has.
    pub fn new(class: Class, space: SpaceId) -> Self {
        let suite = if class == Class::Public {
            SUITE_PUBLIC
        } else {
            SUITE_SEALED
        };
        Self {
            suite,
            class,
            space,
        }
    }

    /// The 64 bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.suite, self.class.to_byte(), 0]);
        bytes.extend_from_slice(&self.space.0);
        bytes.resize(HEADER_BYTES, 0);
        bytes.try_into().expect("resized to that length")
    }

    /// Reads the header at the front of a pack.
    ///
    /// # Errors
    /// [`PackError::Header`] if it is not one.
    pub fn decode(pack: &[u8]) -> Result<Self, PackError> {
        let bytes = pack
            .first_chunk::<HEADER_BYTES>()
            .ok_or(PackError::Header)?;
        let mut read = Reader(bytes);
        let magic = read.array::<8>();
        let [version, suite, class, flags] = read.array::<4>().ok_or(PackError::Header)?;
        let space = read.array::<32>().ok_or(PackError::Header)?;
        let class = Class::from_byte(class).ok_or(PackError::Header)?;
        let reserved_zero = read.0.iter().all(|byte| *byte == 0);
        let suite_fits = (suite == SUITE_PUBLIC) == (class == Class::Public);
        if magic == Some(MAGIC) && version == VERSION && flags == 0 && reserved_zero && suite_fits {
            Ok(Self {
                suite,
                class,
                space: SpaceId(space),
            })
        } else {
            Err(PackError::Header)
        }
    }
}

/// A block of a pack and where its bytes stand in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockAt {
    /// Its name.
    pub cid: Cid,
    /// Where the block itself begins, behind the head of its record.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

impl BlockAt {
    /// Its place in the bytes of the pack.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.len as usize
    }
}

/// Kind and CID as they stand in records and in the index.
fn cid_key(cid: &Cid) -> Vec<u8> {
    match cid.digest() {
        Some(digest) => [&[KIND_OURS][..], &digest].concat(),
        None => {
            let bytes = cid.to_bytes();
            let len = u8::try_from(bytes.len()).expect("a CID is at most 128 bytes");
            [&[KIND_ANY, len][..], &bytes].concat()
        }
    }
}

/// Reads from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn cid(&mut self) -> Option<Cid> {
        let [kind] = self.array()?;
        match kind {
            KIND_OURS => self.array().map(Cid::from_digest),
            KIND_ANY => {
                let [len] = self.array()?;
                let cid = Cid::from_bytes(self.slice(usize::from(len))?).ok()?;
                cid.digest().is_none().then_some(cid)
            }
            _ => None,
        }
    }
}

/// The head of the record at the front of these bytes: CID, length of its block, length of the head.
fn record_head(bytes: &[u8]) -> Option<(Cid, usize, usize)> {
    let mut read = Reader(bytes);
    let len = usize::try_from(read.u32()?).ok()?;
    let cid = read.cid()?;
    (len <= BLOCK_BYTES_MAX).then_some((cid, len, bytes.len() - read.0.len()))
}

/// Writes a pack from front to back; the owner appends what it answers to the file.
///
/// Spec: `protocol/spec/pack.md`, "Records".
#[derive(Debug, Clone)]
pub struct PackWriter {
    header: Header,
    hasher: blake3::Hasher,
    len: u64,
    blocks: Vec<BlockAt>,
    /// Bytes the index will take.
    index_bytes: usize,
}

/// The part of a record before its block.
#[derive(Debug, Clone)]
pub struct RecordHead {
    cid: Cid,
    block_len: u32,
    bytes: Vec<u8>,
}

impl RecordHead {
    /// The bytes to write before the block.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl PackWriter {
    /// Begins a pack; the file begins with [`Header::encode`].
    pub fn new(header: Header) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header.encode());
        Self {
            header,
            hasher,
            len: HEADER_BYTES as u64,
            blocks: Vec::new(),
            index_bytes: 0,
        }
    }

    /// Takes up a pack again from the sound front part of its file, as [`scan`] found it.
    pub(crate) fn resume(header: Header, bytes: &[u8], scan: &Scan) -> Self {
        let mut writer = Self::new(header);
        writer
            .hasher
            .update(bytes.get(HEADER_BYTES..scan.end).unwrap_or_default());
        writer.len = writer.len.max(scan.end as u64);
        for block in scan
            .blocks
            .iter()
            .filter(|block| block.range().end <= scan.end)
        {
            writer.index_bytes += cid_key(&block.cid).len() + 4;
            writer.blocks.push(*block);
        }
        writer
    }

    /// The pack's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The length of the file so far.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The length the file would have if it were finished after one more block of that length.
    pub fn len_with(&self, head: &RecordHead) -> u64 {
        let record = (head.bytes.len() as u64) + u64::from(head.block_len);
        let index = (self.index_bytes + head.bytes.len()) as u64;
        self.len + record + index + TRAILER_BYTES as u64
    }

    /// What [`PackWriter::footer`] will take.
    pub fn footer_bytes(&self) -> u64 {
        (self.index_bytes + TRAILER_BYTES) as u64
    }

    /// The blocks so far, in the order of the file.
    pub fn blocks(&self) -> &[BlockAt] {
        &self.blocks
    }

    /// The head to write before a block.
    ///
    /// # Panics
    /// If the block is longer than [`BLOCK_BYTES_MAX`]: the caller has checked.
    pub fn record_head(cid: &Cid, block_len: usize) -> RecordHead {
        assert!(
            block_len <= BLOCK_BYTES_MAX,
            "the caller checks the length of a block"
        );
        let block_len = u32::try_from(block_len).expect("BLOCK_BYTES_MAX fits");
        let bytes = [&block_len.to_le_bytes()[..], &cid_key(cid)].concat();
        RecordHead {
            cid: *cid,
            block_len,
            bytes,
        }
    }

    /// Notes that head and block now stand at the end of the file; answers where the block is.
    ///
    /// The caller has checked that the block matches its CID, that the pack does not hold it yet and that all limits are kept.
    pub fn push(&mut self, head: &RecordHead, block: &[u8]) -> BlockAt {
        debug_assert_eq!(head.block_len as usize, block.len());
        self.hasher.update(&head.bytes);
        self.hasher.update(block);
        let offset = self.len + head.bytes.len() as u64;
        let at = BlockAt {
            cid: head.cid,
            offset: u32::try_from(offset).expect("a pack stays below 64 MiB"),
            len: head.block_len,
        };
        self.len = offset + block.len() as u64;
        self.index_bytes += head.bytes.len();
        self.blocks.push(at);
        at
    }

    /// The footer that ends the file, and the name of the pack. `self` is as before, so that a failed write can be tried again.
    pub fn footer(&self) -> (Vec<u8>, PackId) {
        let mut keys: Vec<(Vec<u8>, u32)> = self
            .blocks
            .iter()
            .map(|block| {
                let key = cid_key(&block.cid);
                let head = u32::try_from(key.len() + 4).expect("a record head is short");
                (key, block.offset - head)
            })
            .collect();
        keys.sort_unstable();
        let mut footer = Vec::with_capacity(self.index_bytes + TRAILER_BYTES);
        for (key, offset) in keys {
            footer.extend_from_slice(&key);
            footer.extend_from_slice(&offset.to_le_bytes());
        }
        let hash = index_hash(&footer);
        let count = u32::try_from(self.blocks.len()).expect("at most PACK_BLOCKS_MAX");
        footer.extend_from_slice(&count.to_le_bytes());
        footer.extend_from_slice(&self.len.to_le_bytes());
        footer.extend_from_slice(&hash);
        footer.extend_from_slice(&TRAILER_MAGIC);
        let id = *self.hasher.clone().update(&footer).finalize().as_bytes();
        (footer, PackId(id))
    }
}

fn index_hash(index: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_derive_key(INDEX_DOMAIN)
        .update(index)
        .finalize()
        .as_bytes()
}

/// The end of a pack: where its index is.
///
/// Spec: `protocol/spec/pack.md`, "Footer".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// How many blocks there are.
    pub count: u32,
    /// Where the index begins.
    pub index_offset: u64,
    /// How long it is.
    pub index_len: usize,
    hash: [u8; 32],
}

impl Trailer {
    /// Reads the last [`TRAILER_BYTES`] of a pack of that length.
    ///
    /// # Errors
    /// [`PackError::Length`], [`PackError::Trailer`].
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<Self, PackError> {
        if pack_len > PACK_BYTES_MAX as u64 || pack_len < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(PackError::Length);
        }
        let bytes: &[u8; TRAILER_BYTES] = bytes.try_into().map_err(|_| PackError::Trailer)?;
        let mut read = Reader(bytes);
        let parts = (
            read.u32(),
            read.array().map(u64::from_le_bytes),
            read.array::<32>(),
            read.array::<8>(),
        );
        let (Some(count), Some(index_offset), Some(hash), Some(TRAILER_MAGIC)) = parts else {
            return Err(PackError::Trailer);
        };
        let index_end = pack_len - TRAILER_BYTES as u64;
        let index_len = index_end
            .checked_sub(index_offset)
            .and_then(|len| usize::try_from(len).ok());
        let count_ok = count >= 1 && count as usize <= PACK_BLOCKS_MAX;
        match index_len {
            Some(index_len) if count_ok && index_offset >= HEADER_BYTES as u64 => Ok(Self {
                count,
                index_offset,
                index_len,
                hash,
            }),
            _ => Err(PackError::Trailer),
        }
    }
}

/// Reads the index of a pack; the blocks in the order of the file.
///
/// The records are contiguous and all in the index, so their lengths follow from the offsets: nothing else has to be read.
///
/// # Errors
/// [`PackError::Index`].
pub fn read_index(index: &[u8], trailer: &Trailer) -> Result<Vec<BlockAt>, PackError> {
    if index.len() != trailer.index_len || index_hash(index) != trailer.hash {
        return Err(PackError::Index);
    }
    let mut read = Reader(index);
    let mut last: &[u8] = &[];
    let mut records: Vec<(u32, u32, Cid)> = Vec::new();
    while !read.0.is_empty() {
        let before = read.0;
        let cid = read.cid().ok_or(PackError::Index)?;
        let key_len = before.len() - read.0.len();
        let key = before.get(..key_len).ok_or(PackError::Index)?;
        let offset = read.u32().ok_or(PackError::Index)?;
        // Sorted by these bytes, each once; kinds and lengths come first in them, so that no key is the front of another.
        if key <= last || records.len() >= PACK_BLOCKS_MAX {
            return Err(PackError::Index);
        }
        last = key;
        let head_len = u32::try_from(key_len + 4).map_err(|_| PackError::Index)?;
        records.push((offset, head_len, cid));
    }
    if records.len() != trailer.count as usize {
        return Err(PackError::Index);
    }
    records.sort_unstable_by_key(|(offset, ..)| *offset);
    let end = u32::try_from(trailer.index_offset).map_err(|_| PackError::Index)?;
    let ends = records
        .iter()
        .skip(1)
        .map(|(offset, ..)| *offset)
        .chain([end]);
    let mut blocks = Vec::with_capacity(records.len());
    let mut expected = u32::try_from(HEADER_BYTES).map_err(|_| PackError::Index)?;
    for ((offset, head_len, cid), end) in records.iter().copied().zip(ends) {
        let start = offset.checked_add(head_len).ok_or(PackError::Index)?;
        let len = end.checked_sub(start).ok_or(PackError::Index)?;
        if offset != expected || len as usize > BLOCK_BYTES_MAX {
            return Err(PackError::Index);
        }
        expected = end;
        blocks.push(BlockAt {
            cid,
            offset: start,
            len,
        });
    }
    Ok(blocks)
}

/// A whole pack that has been checked to the last byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Its name: the BLAKE3 of all its bytes.
    pub id: PackId,
    /// Its first bytes.
    pub header: Header,
    /// Its blocks in the order of the file.
    pub blocks: Vec<BlockAt>,
}

/// The blocks of a whole pack by its index, in the order of the file; records and blocks are not looked at.
///
/// # Errors
/// What of header, index and trailer is wrong first, as [`PackError`].
pub fn blocks_of(bytes: &[u8]) -> Result<Vec<BlockAt>, PackError> {
    let tail = bytes
        .len()
        .checked_sub(TRAILER_BYTES)
        .ok_or(PackError::Length)?;
    let trailer = Trailer::decode(bytes.get(tail..).unwrap_or_default(), bytes.len() as u64)?;
    Header::decode(bytes)?;
    let index_offset = usize::try_from(trailer.index_offset).map_err(|_| PackError::Trailer)?;
    read_index(bytes.get(index_offset..tail).unwrap_or_default(), &trailer)
}

/// Checks a whole pack: form, index, every record and every block.
///
/// # Errors
/// What is wrong first, as [`PackError`].
pub fn check(bytes: &[u8]) -> Result<Pack, PackError> {
    let blocks = blocks_of(bytes)?;
    let header = Header::decode(bytes)?;
    let mut offset = HEADER_BYTES;
    for block in &blocks {
        let wrong = || PackError::Record {
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
        };
        let (cid, len, head_len) = bytes
            .get(offset..)
            .and_then(record_head)
            .ok_or_else(wrong)?;
        if cid != block.cid
            || len != block.len as usize
            || offset + head_len != block.offset as usize
        {
            return Err(wrong());
        }
        if !cid.verifies(bytes.get(block.range()).ok_or_else(wrong)?) {
            return Err(PackError::Block {
                offset: block.offset,
            });
        }
        offset = block.range().end;
    }
    Ok(Pack {
        id: PackId(*blake3::hash(bytes).as_bytes()),
        header,
        blocks,
    })
}

/// The blocks that a damaged pack file is said to hold: by its index if that is sound, else by the heads of its records as far as they
/// lead. The bytes of the blocks are not looked at.
pub fn said(bytes: &[u8]) -> Vec<BlockAt> {
    let tail = bytes.len().saturating_sub(TRAILER_BYTES);
    let by_index = || {
        let trailer = bytes.get(tail..)?;
        let trailer = Trailer::decode(trailer, bytes.len() as u64).ok()?;
        let start = usize::try_from(trailer.index_offset).ok()?;
        read_index(bytes.get(start..tail)?, &trailer).ok()
    };
    by_index().unwrap_or_else(|| {
        let mut blocks = Vec::new();
        let mut offset = HEADER_BYTES;
        while let Some((cid, len, head_len)) = bytes.get(offset..).and_then(record_head) {
            let start = offset + head_len;
            let (Ok(at), Ok(block_len)) = (u32::try_from(start), u32::try_from(len)) else {
                break;
            };
            // A footer may look like one more record.
            if start + len > bytes.len() || blocks.len() >= PACK_BLOCKS_MAX {
                break;
            }
            blocks.push(BlockAt {
                cid,
                offset: at,
                len: block_len,
            });
            offset = start + len;
        }
        blocks
    })
}

/// Whether these blocks, as [`said`] told them, are all that the file ever held.
///
/// They are if they follow one another to where the footer begins, or to the end of a file that has none.
pub fn is_all(bytes: &[u8], said: &[BlockAt]) -> bool {
    let footer: usize = said
        .iter()
        .map(|block| cid_key(&block.cid).len() + 4)
        .sum::<usize>()
        + TRAILER_BYTES;
    let end = said.last().map_or(HEADER_BYTES, |block| block.range().end);
    !said.is_empty() && (bytes.len() == end || bytes.len() == end + footer)
}

/// What [`scan`] found in a file that nobody finished, or that is damaged.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Every block that matches its CID, in the order of the file, each CID once.
    pub blocks: Vec<BlockAt>,
    /// Up to here the records follow each other without a fault.
    pub end: usize,
}

impl Scan {
    /// Whether there are blocks behind the first fault: the file is damaged, not only torn.
    pub fn is_damaged(&self) -> bool {
        self.blocks
            .last()
            .is_some_and(|block| block.range().end > self.end)
    }
}

/// How many bytes a scan hashes behind the first fault, per byte of the file, before it gives the rest up.
const SCAN_EFFORT_MAX: usize = 64;

/// Finds every block of a pack file that matches its CID, however the file ends and whatever is broken in between.
///
/// Behind a fault it tries the next record by the length of the broken one, then every byte; the work is bounded.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan {
        blocks: Vec::new(),
        end: HEADER_BYTES.min(bytes.len()),
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut sound = true;
    let mut effort = bytes.len().saturating_mul(SCAN_EFFORT_MAX);
    let mut offset = HEADER_BYTES;
    while offset < bytes.len() {
        let rest = bytes.get(offset..).unwrap_or_default();
        let head = record_head(rest).filter(|(_, len, head_len)| head_len + len <= rest.len());
        let Some((cid, len, head_len)) = head else {
            sound = false;
            offset += 1;
            continue;
        };
        let block = rest.get(head_len..head_len + len).unwrap_or_default();
        if !sound {
            let Some(left) = effort.checked_sub(len) else {
                break;
            };
            effort = left;
        }
        if cid.verifies(block) && found.blocks.len() < PACK_BLOCKS_MAX {
            let at = (u32::try_from(offset + head_len), u32::try_from(len));
            if let (Ok(start), Ok(len)) = at
                && seen.insert(cid)
            {
                found.blocks.push(BlockAt {
                    cid,
                    offset: start,
                    len,
                });
            } else {
                // A writer never writes a block twice: only a damaged file has one here.
                sound = false;
            }
            offset += head_len + len;
            if sound {
                found.end = offset;
            }
            continue;
        }
        sound = false;
        // The block may be broken and its length sound.
        let next = offset + head_len + len;
        let follows = bytes
            .get(next..)
            .and_then(record_head)
            .and_then(|(cid, len, head_len)| {
                let start = next + head_len;
                effort = effort.saturating_sub(len);
                Some(cid.verifies(bytes.get(start..start + len)?))
            });
        offset = if follows == Some(true) {
            next
        } else {
            offset + 1
        };
    }
    found
}

#[cfg(test)]
mod tests;
