//! Requests for ranges of one blob, and what answers them, as iroh-blobs has them.
//!
//! Spec: `protocol/spec/bulk.md`, "Getting a pack".

use std::io::{self, Read, Write};

use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{
    DecodeResponseIter, ReadAt, Size, encode_ranges, encode_ranges_validated,
};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use kith_object::id::PackId;

/// Longest request taken.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// Most boundaries of ranges in a request.
pub const BOUNDARIES_MAX: usize = 64;
/// Chunk groups: 16 chunks of 1,024 bytes.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
/// Bytes of a group.
pub const GROUP_BYTES: u64 = 16 << 10;
const CHUNK_BYTES: u64 = 1024;
/// Bytes that a response begins with: the length of the blob.
pub const SIZE_BYTES: usize = 8;
/// Bytes of a parent in a response.
const PARENT_BYTES: u64 = 64;
/// What a request begins with.
const GET: u8 = 0;

/// Ranges of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetRequest {
    /// The blob: its BLAKE3.
    pub pack: PackId,
    /// Where ranges begin and end, in turn, in chunks, rising; the last goes to the end of the blob if their number is odd.
    pub boundaries: Vec<u64>,
}

/// Why a request or a response was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GetError {
    /// Not a request of iroh-blobs, or not one for a single blob.
    #[error("not a request for ranges of one blob")]
    Request,
    /// The sender says that the blob has another length.
    #[error("the blob is said to have another length")]
    Length,
    /// It ended before all that was asked for had come.
    #[error("the answer ends too early")]
    Short,
    /// The bytes are not those of the blob.
    #[error("the answer does not match the name of the blob")]
    Wrong,
}

fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        let [low, ..] = number.to_le_bytes();
        out.push(low | 0x80);
        number >>= 7;
    }
    let [low, ..] = number.to_le_bytes();
    out.push(low);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            // In its shortest form.
            return (shift == 0 || part > 0).then_some(number);
        }
    }
    None
}

impl GetRequest {
    /// Bytes `offset..offset + len` of a pack, rounded to groups.
    pub fn piece(pack: PackId, offset: u64, len: u64) -> Self {
        let start = offset / GROUP_BYTES * GROUP_BYTES / CHUNK_BYTES;
        let end = (offset + len).div_ceil(GROUP_BYTES) * GROUP_BYTES / CHUNK_BYTES;
        let boundaries = vec![start, end];
        Self { pack, boundaries }
    }

    /// As it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![GET];
        out.extend_from_slice(&self.pack.0);
        // The ranges of the blob itself, then none of all that follow.
        out.extend_from_slice(&[2, 0]);
        put_varint(self.boundaries.len() as u64, &mut out);
        let mut before = 0;
        for boundary in &self.boundaries {
            put_varint(boundary - before, &mut out);
            before = *boundary;
        }
        out.extend_from_slice(&[1, 0]);
        out
    }

    /// Reads what [`GetRequest::encode`] wrote.
    ///
    /// # Errors
    /// [`GetError::Request`].
    pub fn decode(bytes: &[u8]) -> Result<Self, GetError> {
        Self::read(bytes).ok_or(GetError::Request)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return None;
        }
        let (kind, rest) = bytes.split_first()?;
        let (hash, mut rest) = rest.split_first_chunk::<32>()?;
        if *kind != GET || varint(&mut rest)? != 2 || varint(&mut rest)? != 0 {
            return None;
        }
        let count = usize::try_from(varint(&mut rest)?).ok()?;
        if count == 0 || count > BOUNDARIES_MAX {
            return None;
        }
        let mut boundaries: Vec<u64> = Vec::with_capacity(count);
        for _ in 0..count {
            let delta = varint(&mut rest)?;
            let boundary = match boundaries.last() {
                None => delta,
                Some(_) if delta == 0 => return None,
                Some(last) => last.checked_add(delta)?,
            };
            boundaries.push(boundary);
        }
        let pack = PackId(*hash);
        (varint(&mut rest)? == 1 && varint(&mut rest)? == 0 && rest.is_empty())
            .then_some(Self { pack, boundaries })
    }

    fn ranges(&self) -> ChunkRanges {
        let mut ranges = ChunkRanges::empty();
        for pair in self.boundaries.chunks(2) {
            match pair {
                [start, end] => ranges |= ChunkRanges::from(ChunkNum(*start)..ChunkNum(*end)),
                [start] => ranges |= ChunkRanges::from(ChunkNum(*start)..),
                _ => {}
            }
        }
        ranges
    }
}

/// The hashes between the groups of a pack and its name.
#[derive(Debug)]
pub struct Tree(PreOrderOutboard<Vec<u8>>);

impl Tree {
    /// That of a pack of `total` bytes, which are read in order; `None` if it is not the pack of that name.
    ///
    /// # Errors
    /// What reading says.
    pub fn of(pack: &PackId, total: u64, bytes: impl Read) -> io::Result<Option<Self>> {
        let tree = BaoTree::new(total, GROUP);
        let len = usize::try_from(tree.outboard_size()).map_err(io::Error::other)?;
        let mut outboard = PreOrderOutboard {
            root: pack.0.into(),
            tree,
            data: vec![0; len],
        };
        let root = bao_tree::io::sync::outboard(bytes, tree, &mut outboard)?;
        Ok((root == outboard.root).then_some(Self(outboard)))
    }

    /// Bytes that it takes.
    pub fn len_bytes(&self) -> usize {
        self.0.data.len()
    }

    /// Length of the pack.
    pub fn pack_bytes(&self) -> u64 {
        self.0.tree.size()
    }

    /// Writes the answer to a request; each group is read by `read` and compared before it is sent.
    ///
    /// # Errors
    /// `InvalidData` if what is read is not the pack; what reading or writing says.
    pub fn answer(
        &self,
        request: &GetRequest,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
        mut out: impl Write,
    ) -> io::Result<()> {
        out.write_all(&self.pack_bytes().to_le_bytes())?;
        let ranges = request.ranges();
        encode_ranges_validated(Reading(read, self.pack_bytes()), &self.0, &ranges, out)
            .map_err(refused)
    }

    /// As [`Tree::answer`], without comparing what is read: the other side finds out what is wrong.
    ///
    /// # Errors
    /// What reading or writing says.
    pub fn answer_unread(
        &self,
        request: &GetRequest,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
        mut out: impl Write,
    ) -> io::Result<()> {
        out.write_all(&self.pack_bytes().to_le_bytes())?;
        encode_ranges(
            Reading(read, self.pack_bytes()),
            &self.0,
            &request.ranges(),
            out,
        )
        .map_err(refused)
    }
}

fn refused(error: bao_tree::io::EncodeError) -> io::Error {
    match error {
        bao_tree::io::EncodeError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

struct Reading<F>(F, u64);

impl<F: Fn(u64, &mut [u8]) -> io::Result<()>> ReadAt for Reading<F> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        (self.0)(offset, buffer)?;
        Ok(buffer.len())
    }
}

impl<F> Size for Reading<F> {
    fn size(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.1))
    }
}

/// Longest answer to a request for that many bytes of a pack, rounded to groups.
pub fn answer_bytes_max(total: u64, len: u64) -> u64 {
    let groups = len.div_ceil(GROUP_BYTES) + 2;
    let depth = u64::from(u64::BITS - (total / GROUP_BYTES).leading_zeros()) + 1;
    SIZE_BYTES as u64 + groups * (GROUP_BYTES + PARENT_BYTES) + 2 * depth * PARENT_BYTES
}

/// The bytes of a pack of `total` bytes from `offset` on, as many as `piece` is long, out of the whole answer to [`GetRequest::piece`].
///
/// # Errors
/// [`GetError`]; then there is no telling what `piece` is.
pub fn read_piece(
    pack: &PackId,
    total: u64,
    offset: u64,
    answer: &[u8],
    piece: &mut [u8],
) -> Result<(), GetError> {
    let len = piece.len() as u64;
    let (size, encoded) = answer
        .split_first_chunk::<SIZE_BYTES>()
        .ok_or(GetError::Short)?;
    if u64::from_le_bytes(*size) != total {
        return Err(GetError::Length);
    }
    let ranges = GetRequest::piece(*pack, offset, len).ranges();
    let tree = BaoTree::new(total, GROUP);
    let mut encoded = encoded;
    let mut filled = 0;
    for item in DecodeResponseIter::new(pack.0.into(), tree, &mut encoded, &ranges) {
        let leaf = match item {
            Ok(BaoContentItem::Leaf(leaf)) => leaf,
            Ok(BaoContentItem::Parent(_)) => continue,
            Err(
                bao_tree::io::DecodeError::ParentHashMismatch(_)
                | bao_tree::io::DecodeError::LeafHashMismatch(_),
            ) => return Err(GetError::Wrong),
            Err(_) => return Err(GetError::Short),
        };
        let skip = offset.saturating_sub(leaf.offset);
        let until = (offset + len).saturating_sub(leaf.offset);
        let at = |place: u64| {
            usize::try_from(place)
                .unwrap_or(usize::MAX)
                .min(leaf.data.len())
        };
        let part = leaf.data.get(at(skip)..at(until)).unwrap_or_default();
        // Leaves come in order, each once.
        let place = piece.get_mut(filled..filled + part.len());
        place.ok_or(GetError::Wrong)?.copy_from_slice(part);
        filled += part.len();
    }
    if filled != piece.len() {
        return Err(GetError::Short);
    }
    if !encoded.is_empty() {
        return Err(GetError::Wrong);
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use data_encoding::HEXLOWER;
    use serde_json::Value;

    use super::*;

    fn blob(len: u64) -> Vec<u8> {
        (0..len)
            .map(|i| ((i * 251 + i / 1021) % 256) as u8)
            .collect()
    }

    fn id(bytes: &[u8]) -> PackId {
        PackId(*blake3::hash(bytes).as_bytes())
    }

    fn tree_of(pack: &PackId, bytes: &[u8]) -> Option<Tree> {
        Tree::of(pack, bytes.len() as u64, bytes).unwrap()
    }

    fn answered(bytes: &[u8], request: &GetRequest) -> Vec<u8> {
        let tree = tree_of(&id(bytes), bytes).unwrap();
        let mut out = Vec::new();
        let read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
            Ok(())
        };
        tree.answer(request, read, &mut out).unwrap();
        let mut unread = Vec::new();
        tree.answer_unread(request, read, &mut unread).unwrap();
        assert!(unread == out);
        out
    }

    #[test]
    fn iroh_blobs_says_the_same() {
        let text = include_str!("../../../tests/vectors/bulk.json");
        let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
        assert!(vectors.len() > 40);
        for vector in vectors {
            let name = &vector["name"];
            let hex = |field: &str| HEXLOWER.decode(vector[field].as_str().unwrap().as_bytes());
            let bytes = blob(vector["len"].as_u64().unwrap());
            assert_eq!(hex("hash").unwrap(), id(&bytes).0, "{name}");
            let ranges = vector["ranges"].as_array().unwrap().iter();
            let boundaries = ranges.flat_map(|range| range.as_array().unwrap());
            let request = GetRequest {
                pack: id(&bytes),
                boundaries: boundaries.filter_map(Value::as_u64).collect(),
            };
            let wire = hex("request").unwrap();
            assert_eq!(request.encode(), wire, "{name}");
            assert_eq!(GetRequest::decode(&wire), Ok(request.clone()), "{name}");
            for end in 0..wire.len() {
                assert!(GetRequest::decode(&wire[..end]).is_err(), "{name}");
            }
            let longer = [&wire[..], &[0]].concat();
            assert!(GetRequest::decode(&longer).is_err(), "{name}");
            let said = answered(&bytes, &request);
            assert_eq!(
                said.len() as u64,
                vector["response_len"].as_u64().unwrap(),
                "{name}"
            );
            let hash = hex("response_blake3").unwrap();
            assert_eq!(blake3::hash(&said).as_bytes()[..], hash, "{name}");
            if vector.get("response").is_some() {
                assert_eq!(said, hex("response").unwrap(), "{name}");
            }
        }
    }

    #[test]
    fn pieces_are_what_stands_there() {
        for total in [1_u64, 1000, 16 << 10, (16 << 10) + 1, 1 << 20, 3_000_001] {
            let bytes = blob(total);
            let mut offset = 0;
            // At places that are no multiples of anything, as an interrupted fetch leaves them.
            for step in [1_u64, 700, 16 << 10, 100_000, 1 << 20].into_iter().cycle() {
                if offset >= total {
                    break;
                }
                let len = step.min(total - offset);
                let request = GetRequest::piece(id(&bytes), offset, len);
                let said = answered(&bytes, &request);
                assert!(said.len() as u64 <= answer_bytes_max(total, len));
                let mut piece = vec![0; usize::try_from(len).unwrap()];
                read_piece(&id(&bytes), total, offset, &said, &mut piece).unwrap();
                let from = usize::try_from(offset).unwrap();
                assert_eq!(piece[..], bytes[from..from + piece.len()]);
                offset += len;
            }
        }
    }

    #[test]
    fn no_other_bytes_are_taken() {
        let bytes = blob(200_000);
        let pack = id(&bytes);
        let request = GetRequest::piece(pack, 40_000, 50_000);
        let said = answered(&bytes, &request);
        let read = |said: &[u8]| read_piece(&pack, 200_000, 40_000, said, &mut [0; 50_000]);
        read(&said).unwrap();
        for at in (0..said.len()).step_by(37) {
            let mut other = said.clone();
            other[at] ^= 0x10;
            let error = read(&other).unwrap_err();
            let expected = if at < 8 {
                GetError::Length
            } else {
                GetError::Wrong
            };
            assert_eq!(error, expected, "{at}");
            assert_eq!(read(&said[..at]).unwrap_err(), GetError::Short, "{at}");
        }
        let mut longer = said.clone();
        longer.push(0);
        assert_eq!(read(&longer).unwrap_err(), GetError::Wrong);
        // Another length of the same shape is found out by who has the whole.
        assert!(tree_of(&pack, &bytes[1..]).is_none());
        assert!(Tree::of(&pack, 200_001, &bytes[..]).is_err());
    }

    #[test]
    fn damaged_pack_is_not_sent() {
        let bytes = blob(200_000);
        let tree = tree_of(&id(&bytes), &bytes).unwrap();
        let read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
            if offset >= 65_536 {
                buffer[0] ^= 1;
            }
            Ok(())
        };
        let mut out = Vec::new();
        let request = GetRequest::piece(id(&bytes), 0, 200_000);
        let error = tree.answer(&request, read, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            out.len() < 70_000,
            "what stands before it is sound: {}",
            out.len()
        );
    }
}
