//! A pack as shards, each a pack itself, and back.
//!
//! Spec: `protocol/spec/erasure.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use crate::erasure::{ErasureError, SHARDS_MAX, Scheme};
use crate::id::{Cid, PackId};
use crate::pack::{
    self, BlockAt, Class, HEADER_BYTES, Header, PACK_BLOCKS_MAX, PACK_BYTES_MAX, PackError,
    PackWriter, TRAILER_BYTES,
};

/// Parity is cut into blocks of so many bytes.
const PIECE_BYTES: usize = 1 << 20;
/// What a block takes of a pack besides its own bytes: the head of its record, and its place in the index.
const RECORD_BYTES: usize = 37 + 37;
const TABLE_VERSION: u8 = 1;
/// Bytes of a table before the data shards; of each of these; of each block.
const TABLE_HEAD_BYTES: usize = 36;
const TABLE_SHARD_BYTES: usize = 40;
const TABLE_BLOCK_BYTES: usize = 36;

/// What a data shard is called, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataShard {
    /// Its name.
    pub id: PackId,
    /// Bytes of its file.
    pub len: u32,
    /// How many blocks it holds.
    pub blocks: u32,
}

/// Which shards a pack has: what is said of it in the catalogue, by which shards are checked and restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coding {
    /// The pack.
    pub pack: PackId,
    /// Its data shards, in their order.
    pub data: Vec<DataShard>,
    /// The names of its parity shards, in their order.
    pub parity: Vec<PackId>,
}

/// A shard with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub id: PackId,
    /// Its file.
    pub bytes: Bytes,
}

/// Why a pack has no shards, or a shard does not come back.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodingError {
    /// It is no pack.
    #[error("only packs are coded")]
    Pack(#[from] PackError),
    /// It is one that is kept in copies.
    #[error("the pack is not coded: {0}")]
    Kept(&'static str),
    /// There is no such code.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// A shard is another one than it should be.
    #[error("shard {0} is not the one it is named after")]
    Shard(usize),
    /// A parity shard holds something else.
    #[error("shard {0} is no parity shard of that pack")]
    Parity(usize),
    /// All that was used is what it is named after, and does not restore what it should.
    #[error("the shards do not restore one another: whoever named them erred or lied")]
    Named,
}

/// What a parity shard says of the data shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The pack.
    pub pack: PackId,
    /// How many parity shards there are.
    pub spare: usize,
    /// Which of them this is.
    pub parity: usize,
    /// The data shards.
    pub data: Vec<DataShard>,
    /// The digests of all their blocks and the lengths of these, in the order of the shards.
    pub blocks: Vec<([u8; 32], u32)>,
}

impl Table {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let byte = |count: usize| u8::try_from(count).expect("at most 64 shards");
        let mut bytes = vec![
            TABLE_VERSION,
            byte(self.data.len()),
            byte(self.spare),
            byte(self.parity),
        ];
        bytes.extend_from_slice(&self.pack.0);
        for shard in &self.data {
            bytes.extend_from_slice(&shard.id.0);
            bytes.extend_from_slice(&shard.len.to_le_bytes());
            bytes.extend_from_slice(&shard.blocks.to_le_bytes());
        }
        for (digest, len) in &self.blocks {
            bytes.extend_from_slice(digest);
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        bytes
    }

    /// Reads one; none if it is not one, to the last byte.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(TABLE_HEAD_BYTES)?;
        let (&[version, needed, spare, parity], pack) = head.split_first_chunk()?;
        let (needed, spare) = (usize::from(needed), usize::from(spare));
        let parity = usize::from(parity);
        let sound = version == TABLE_VERSION
            && needed > 0
            && parity < spare
            && needed + spare <= SHARDS_MAX
            && bytes.len() <= table_bytes(needed, PACK_BLOCKS_MAX);
        if !sound {
            return None;
        }
        let (shards, blocks) = rest.split_at_checked(needed * TABLE_SHARD_BYTES)?;
        let data = shards.chunks_exact(TABLE_SHARD_BYTES).map(|shard| {
            let (id, sizes) = shard.split_first_chunk()?;
            let (len, blocks) = sizes.split_first_chunk()?;
            Some(DataShard {
                id: PackId(*id),
                len: u32::from_le_bytes(*len),
                blocks: u32::from_le_bytes(blocks.try_into().ok()?),
            })
        });
        let data: Vec<DataShard> = data.collect::<Option<_>>()?;
        let of_block = |block: &[u8]| {
            let (digest, len) = block.split_first_chunk()?;
            Some((*digest, u32::from_le_bytes(len.try_into().ok()?)))
        };
        let list = blocks.chunks_exact(TABLE_BLOCK_BYTES);
        let is_whole = list.remainder().is_empty();
        let blocks: Vec<([u8; 32], u32)> = list.map(of_block).collect::<Option<_>>()?;
        let table = Self {
            pack: PackId(pack.try_into().ok()?),
            spare,
            parity,
            data,
            blocks,
        };
        (is_whole && table.adds_up()).then_some(table)
    }

    /// Whether the shards have the blocks and the lengths that they are said to have.
    fn adds_up(&self) -> bool {
        let mut left = self.blocks.as_slice();
        for shard in &self.data {
            let count = usize::try_from(shard.blocks).unwrap_or(usize::MAX);
            let Some((own, others)) = left.split_at_checked(count) else {
                return false;
            };
            let lens = own.iter().map(|(_, len)| u64::from(*len));
            let bytes = lens.sum::<u64>() + (own.len() * RECORD_BYTES) as u64;
            let len = bytes + (HEADER_BYTES + TRAILER_BYTES) as u64;
            let fits = len == u64::from(shard.len) && len <= PACK_BYTES_MAX as u64;
            if own.is_empty() || !fits {
                return false;
            }
            left = others;
        }
        left.is_empty()
    }

    /// The blocks of a data shard.
    pub fn blocks_of(&self, shard: usize) -> &[([u8; 32], u32)] {
        let count = |shard: &DataShard| usize::try_from(shard.blocks).unwrap_or(0);
        let before: usize = self.data.iter().take(shard).map(count).sum();
        let own = self.data.get(shard).map_or(0, count);
        self.blocks.get(before..before + own).unwrap_or_default()
    }
}

fn table_bytes(needed: usize, blocks: usize) -> usize {
    TABLE_HEAD_BYTES + needed * TABLE_SHARD_BYTES + blocks * TABLE_BLOCK_BYTES
}

/// A pack of these blocks, one behind the other.
fn pack_of<'a>(header: Header, blocks: impl IntoIterator<Item = (Cid, &'a [u8])>) -> (Shard, u32) {
    let mut writer = PackWriter::new(header);
    let mut bytes = header.encode().to_vec();
    for (cid, block) in blocks {
        let head = PackWriter::record_head(&cid, block.len());
        bytes.extend_from_slice(head.bytes());
        bytes.extend_from_slice(block);
        writer.push(&head, block);
    }
    let count = u32::try_from(writer.blocks().len()).expect("PACK_BLOCKS_MAX fits");
    let (footer, id) = writer.footer();
    bytes.extend_from_slice(&footer);
    let bytes = Bytes::from(bytes);
    (Shard { id, bytes }, count)
}

/// In which data shard each record of a pack lies: how many each has.
fn runs(blocks: &[BlockAt], needed: usize) -> Result<Vec<usize>, CodingError> {
    let end = blocks.last().map_or(HEADER_BYTES, |last| last.range().end);
    let total = (end - HEADER_BYTES).max(1) as u64;
    let mut runs = vec![0; needed];
    let mut begin = HEADER_BYTES;
    for block in blocks {
        let end = block.range().end;
        let middle = (begin + end - 2 * HEADER_BYTES) as u64;
        let shard = usize::try_from(middle * needed as u64 / (2 * total)).unwrap_or(needed);
        if let Some(run) = runs.get_mut(shard) {
            *run += 1;
        }
        begin = end;
    }
    match runs.contains(&0) {
        true => Err(CodingError::Kept("one of its shards would be empty")),
        false => Ok(runs),
    }
}

/// Cuts a pack into so many data shards and adds so many parity shards: all of them in their order, and what is said of them.
///
/// Spec: `protocol/spec/erasure.md`, "Data shards", "Parity shards".
///
/// # Errors
/// [`CodingError`]: it is no pack, one that is kept in copies, or there is no such code.
pub fn code(
    bytes: &[u8],
    needed: usize,
    spare: usize,
) -> Result<(Coding, Vec<Shard>), CodingError> {
    // Before anything is made of so many.
    Scheme::new(vec![1; needed.min(SHARDS_MAX + 1)], spare)?;
    let pack = pack::check(bytes)?;
    if matches!(pack.header.class, Class::Public | Class::Parity) {
        return Err(CodingError::Kept("packs of its class are kept in copies"));
    }
    let mut digests = Vec::with_capacity(pack.blocks.len());
    for block in &pack.blocks {
        let digest = block.cid.digest();
        let digest = digest.ok_or(CodingError::Kept("a block of it has a name of others"))?;
        digests.push((digest, block.len));
    }
    let mut left = pack.blocks.as_slice();
    let mut data = Vec::with_capacity(needed);
    let mut shards = Vec::with_capacity(needed + spare);
    for run in runs(&pack.blocks, needed)? {
        let (own, others) = left.split_at(run.min(left.len()));
        left = others;
        let blocks = own
            .iter()
            .map(|block| (block.cid, bytes.get(block.range()).unwrap_or_default()));
        let (shard, blocks) = pack_of(pack.header, blocks);
        data.push(DataShard {
            id: shard.id,
            len: u32::try_from(shard.bytes.len()).expect("no longer than the pack"),
            blocks,
        });
        shards.push(shard);
    }
    let mut table = Table {
        pack: pack.id,
        spare,
        parity: 0,
        data,
        blocks: digests,
    };
    let files: Vec<&[u8]> = shards.iter().map(|shard| &shard.bytes[..]).collect();
    let scheme = Scheme::new(files.iter().map(|file| file.len()).collect(), spare)?;
    let parities = scheme.encode(&files)?;
    let mut names = Vec::with_capacity(spare);
    for (at, parity) in parities.into_iter().enumerate() {
        table.parity = at;
        let shard = parity_shard(pack.header, &table, &parity)?;
        names.push(shard.id);
        shards.push(shard);
    }
    let coding = Coding {
        pack: pack.id,
        data: table.data,
        parity: names,
    };
    Ok((coding, shards))
}

/// A parity as a pack.
fn parity_shard(of: Header, table: &Table, parity: &[u8]) -> Result<Shard, CodingError> {
    let header = Header::new(Class::Parity, of.space);
    let table = table.encode();
    let pieces = parity.chunks(PIECE_BYTES);
    let blocks: Vec<(Cid, &[u8])> = std::iter::once(&table[..])
        .chain(pieces)
        .map(|block| (Cid::of_block(block), block))
        .collect();
    let names: BTreeSet<&Cid> = blocks.iter().map(|(cid, _)| cid).collect();
    if names.len() < blocks.len() {
        return Err(CodingError::Kept("its parity repeats itself"));
    }
    let (shard, _) = pack_of(header, blocks);
    match shard.bytes.len() <= PACK_BYTES_MAX {
        true => Ok(shard),
        false => Err(CodingError::Kept("its parity is longer than a pack")),
    }
}

/// What a parity shard says, and where in its file the parity lies; none if it is not one.
///
/// The blocks themselves are not looked at: whoever restores from them compares the file with its name.
pub fn read_parity(file: &[u8]) -> Option<(Table, Vec<Range<usize>>)> {
    let header = Header::decode(file).ok()?;
    let blocks = pack::blocks_of(file).ok()?;
    let (table, pieces) = blocks.split_first()?;
    let table = Table::decode(file.get(table.range())?)?;
    let longest = table.data.iter().map(|shard| shard.len).max()?;
    let mut left = usize::try_from(longest).ok()?.next_multiple_of(2);
    for piece in pieces {
        let len = piece.range().len();
        let is_next = len == left.min(PIECE_BYTES);
        left = left.checked_sub(len).filter(|_| is_next)?;
    }
    let is_all = left == 0 && header.class == Class::Parity;
    let places = pieces.iter().map(BlockAt::range).collect();
    is_all.then_some((table, places))
}

impl Coding {
    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.data.len() + self.parity.len()
    }

    /// The names of all, data first.
    pub fn ids(&self) -> impl Iterator<Item = PackId> {
        let data = self.data.iter().map(|shard| shard.id);
        data.chain(self.parity.iter().copied())
    }

    /// Bytes of the file of a shard.
    pub fn len(&self, shard: usize) -> u64 {
        if let Some(shard) = self.data.get(shard) {
            return u64::from(shard.len);
        }
        let blocks: u64 = self.data.iter().map(|shard| u64::from(shard.blocks)).sum();
        let blocks = usize::try_from(blocks).unwrap_or(PACK_BLOCKS_MAX);
        let longest = self.data.iter().map(|shard| shard.len).max().unwrap_or(0);
        let parity = u64::from(longest).next_multiple_of(2);
        let table = table_bytes(self.data.len(), blocks.min(PACK_BLOCKS_MAX)) as u64;
        let pieces = parity.div_ceil(PIECE_BYTES as u64);
        (HEADER_BYTES + TRAILER_BYTES) as u64 + table + parity + (1 + pieces) * RECORD_BYTES as u64
    }

    /// Whether there can be such shards.
    pub fn is_sound(&self) -> bool {
        let blocks: u64 = self.data.iter().map(|shard| u64::from(shard.blocks)).sum();
        let fits = |shard: &DataShard| {
            let least = u64::from(shard.blocks) * RECORD_BYTES as u64;
            let least = least + (HEADER_BYTES + TRAILER_BYTES) as u64;
            shard.blocks > 0 && u64::from(shard.len) >= least
        };
        let ids: BTreeSet<PackId> = self.ids().chain([self.pack]).collect();
        !self.data.is_empty()
            && !self.parity.is_empty()
            && self.shards() <= SHARDS_MAX
            && ids.len() == self.shards() + 1
            && blocks <= PACK_BLOCKS_MAX as u64
            && self.data.iter().all(fits)
            && (0..self.shards()).all(|shard| self.len(shard) <= PACK_BYTES_MAX as u64)
    }

    fn scheme(&self) -> Result<Scheme, CodingError> {
        let len = |shard: &DataShard| usize::try_from(shard.len).unwrap_or(usize::MAX);
        let lens = self.data.iter().map(len).collect();
        Ok(Scheme::new(lens, self.parity.len())?)
    }

    /// Restores a shard from the files of others; each is compared with its name first. It takes as many as there are data shards.
    ///
    /// Spec: `protocol/spec/erasure.md`, "Restoring".
    ///
    /// # Errors
    /// [`CodingError`]: which of them is another one, that they are too few, or that all are what they are named after and restore something else.
    pub fn restore(
        &self,
        shard: usize,
        files: &BTreeMap<usize, Bytes>,
    ) -> Result<Bytes, CodingError> {
        let wanted = self.ids().nth(shard).ok_or(CodingError::Shard(shard))?;
        let scheme = self.scheme()?;
        let mut parities: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut have: BTreeMap<usize, &[u8]> = BTreeMap::new();
        let used = files.iter().take(self.data.len());
        for (at, file) in used.clone() {
            let name = self.ids().nth(*at);
            if name != Some(PackId(*blake3::hash(file).as_bytes())) {
                return Err(CodingError::Shard(*at));
            }
            if let Some(parity) = at.checked_sub(self.data.len()) {
                let (table, places) = read_parity(file).ok_or(CodingError::Parity(*at))?;
                let says = (table.pack, &table.data, table.spare, table.parity);
                if says != (self.pack, &self.data, self.parity.len(), parity) {
                    return Err(CodingError::Parity(*at));
                }
                let pieces = places.into_iter().filter_map(|place| file.get(place));
                parities.insert(*at, pieces.collect::<Vec<_>>().concat());
            }
        }
        for (at, file) in used {
            have.insert(*at, parities.get(at).map_or(&file[..], Vec::as_slice));
        }
        let restored = match self.data.get(shard) {
            Some(_) => Bytes::from(scheme.restore_whole(shard, &have)?),
            None => self.restore_parity(shard - self.data.len(), &scheme, &have)?,
        };
        match PackId(*blake3::hash(&restored).as_bytes()) == wanted {
            true => Ok(restored),
            false => Err(CodingError::Named),
        }
    }

    fn restore_parity(
        &self,
        parity: usize,
        scheme: &Scheme,
        have: &BTreeMap<usize, &[u8]>,
    ) -> Result<Bytes, CodingError> {
        let data = (0..self.data.len()).map(|shard| match have.get(&shard) {
            Some(file) => Ok(file.to_vec()),
            None => scheme.restore_whole(shard, have),
        });
        let data: Vec<Vec<u8>> = data.collect::<Result<_, _>>()?;
        let files: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let coded = scheme.encode(&files)?;
        let mut blocks = Vec::new();
        let mut header = None;
        for file in &files {
            // What was restored from lies may be anything.
            header = Some(Header::decode(file).map_err(|_| CodingError::Named)?);
            for block in pack::blocks_of(file).map_err(|_| CodingError::Named)? {
                blocks.push((block.cid.digest().ok_or(CodingError::Named)?, block.len));
            }
        }
        let table = Table {
            pack: self.pack,
            spare: self.parity.len(),
            parity,
            data: self.data.clone(),
            blocks,
        };
        let bytes = coded.get(parity).ok_or(CodingError::Named)?;
        let header = header.ok_or(CodingError::Named)?;
        Ok(parity_shard(header, &table, bytes)?.bytes)
    }

    /// The pack, from the files of all data shards in their order.
    ///
    /// # Errors
    /// [`CodingError`]: which of them is another one, or that together they are not that pack.
    pub fn join(&self, files: &[Bytes]) -> Result<Bytes, CodingError> {
        let mut header = None;
        let mut blocks = Vec::new();
        for (at, of) in self.data.iter().enumerate() {
            let file = files.get(at).ok_or(CodingError::Shard(at))?;
            if PackId(*blake3::hash(file).as_bytes()) != of.id {
                return Err(CodingError::Shard(at));
            }
            header = Some(Header::decode(file).map_err(|_| CodingError::Named)?);
            for block in pack::blocks_of(file).map_err(|_| CodingError::Named)? {
                blocks.push((block.cid, file.get(block.range()).unwrap_or_default()));
            }
        }
        let len: usize = files.iter().map(Bytes::len).sum();
        if blocks.len() > PACK_BLOCKS_MAX || len > 2 * PACK_BYTES_MAX {
            return Err(CodingError::Named);
        }
        let (pack, _) = pack_of(header.ok_or(CodingError::Named)?, blocks);
        match pack.id == self.pack {
            true => Ok(pack.bytes),
            false => Err(CodingError::Named),
        }
    }
}

#[cfg(test)]
mod tests;
