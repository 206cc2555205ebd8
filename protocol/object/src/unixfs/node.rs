//! The two protobuf messages of a UnixFS node: dag-pb with its links, and the UnixFS data in it.

use super::{DAG_PB, RAW, Written};
use crate::car::{read_varint, varint};
use crate::id::Cid;

/// Kinds of node, as UnixFS numbers them.
const RAW_LEAF: u64 = 0;
const FOLDER: u64 = 1;
const FILE: u64 = 2;
const SYMLINK: u64 = 4;
const SHARD: u64 = 5;
/// Characters before each name in a shard: two hexadecimal digits, of 256 children.
const SHARD_PREFIX: usize = 2;
/// What such a folder is spread by, as a multihash code; and over how many places.
const MURMUR3_64: u64 = 0x22;
const SHARD_PLACES: u64 = 256;
/// Most links read in one node: more do not fit a block that travels.
const LINKS_MAX: usize = 1 << 16;

/// Why a block is no node that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Not dag-pb, or not the UnixFS data in it.
    #[error("a block is no UnixFS node")]
    Malformed,
    /// Its sizes and its links do not agree.
    #[error("a node of a file does not agree with itself")]
    Sizes,
    /// A kind of node, or a codec, that is not known.
    #[error("a block is of a kind that is not known")]
    Unknown,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file, or a part of one.
    File(FileNode),
    /// A folder: names, each once, and what they lead to.
    Folder(Vec<(Vec<u8>, Cid)>),
    /// A part of a folder: what stands under a name of two characters is a further part.
    Shard {
        /// Names and what they lead to.
        entries: Vec<(Vec<u8>, Cid)>,
        /// Further parts.
        parts: Vec<Cid>,
    },
    /// A symlink and its target.
    Symlink(Vec<u8>),
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// Bytes that stand in the node itself, before what the links lead to.
    pub data: Vec<u8>,
    /// The parts that follow, in order.
    pub links: Vec<NodeLink>,
    /// Bytes in all.
    pub size: u64,
}

/// A part of a file, below a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLink {
    /// Its block.
    pub cid: Cid,
    /// How many bytes of the file it stands for.
    pub size: u64,
}

/// Reads a block by the codec of its CID; the caller has checked that it is what the CID says.
///
/// # Errors
/// [`NodeError`].
pub fn read_node(cid: &Cid, block: &[u8]) -> Result<Node, NodeError> {
    match cid.prefix() {
        (1, RAW, ..) => Ok(Node::File(FileNode {
            data: block.to_vec(),
            links: Vec::new(),
            size: block.len() as u64,
        })),
        (_, DAG_PB, ..) => read(block),
        _ => Err(NodeError::Unknown),
    }
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    out.extend(varint(bytes.len() as u64));
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    out.extend(varint(value));
}

fn node<'a>(links: impl Iterator<Item = (&'a [u8], &'a Written)>, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, written) in links {
        let mut link = Vec::new();
        field(&mut link, 1, &written.cid.to_bytes());
        field(&mut link, 2, name);
        number(&mut link, 3, written.tsize);
        field(&mut out, 2, &link);
    }
    field(&mut out, 1, data);
    out
}

pub(super) fn file_leaf(data: &[u8]) -> Vec<u8> {
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, FILE);
    if !data.is_empty() {
        field(&mut unixfs, 2, data);
    }
    number(&mut unixfs, 3, data.len() as u64);
    node(std::iter::empty(), &unixfs)
}

pub(super) fn file_node(links: &[Written]) -> Vec<u8> {
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, FILE);
    number(&mut unixfs, 3, links.iter().map(|link| link.size).sum());
    for link in links {
        number(&mut unixfs, 4, link.size);
    }
    node(links.iter().map(|link| (&[][..], link)), &unixfs)
}

pub(super) fn folder_node(entries: &[(Vec<u8>, Written)]) -> Vec<u8> {
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, FOLDER);
    let links = entries.iter().map(|(name, written)| (&name[..], written));
    node(links, &unixfs)
}

/// A part of a folder: links whose names begin with their place, and the set of places.
pub(super) fn shard_node(entries: &[(Vec<u8>, Written)], places: &[u8]) -> Vec<u8> {
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, SHARD);
    field(&mut unixfs, 2, places);
    number(&mut unixfs, 5, MURMUR3_64);
    number(&mut unixfs, 6, SHARD_PLACES);
    let links = entries.iter().map(|(name, written)| (&name[..], written));
    node(links, &unixfs)
}

pub(super) fn symlink_node(target: &[u8]) -> Vec<u8> {
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, SYMLINK);
    field(&mut unixfs, 2, target);
    node(std::iter::empty(), &unixfs)
}

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Takes a message apart, field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, NodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (key, rest) = loose_varint(self.0)?;
        let (value, rest) = match key & 7 {
            0 => {
                let (value, rest) = loose_varint(rest)?;
                (Field::Number(value), rest)
            }
            2 => {
                let (len, rest) = loose_varint(rest)?;
                let len = usize::try_from(len).map_err(|_| NodeError::Malformed)?;
                let (bytes, rest) = rest.split_at_checked(len).ok_or(NodeError::Malformed)?;
                (Field::Bytes(bytes), rest)
            }
            // Fixed widths: the fraction of a modification time has one.
            5 => {
                let (_, rest) = rest.split_at_checked(4).ok_or(NodeError::Malformed)?;
                (Field::Number(0), rest)
            }
            1 => {
                let (_, rest) = rest.split_at_checked(8).ok_or(NodeError::Malformed)?;
                (Field::Number(0), rest)
            }
            _ => return Err(NodeError::Malformed),
        };
        self.0 = rest;
        Ok(Some((key >> 3, value)))
    }
}

/// Protobuf's numbers go up to ten bytes.
fn loose_varint(bytes: &[u8]) -> Result<(u64, &[u8]), NodeError> {
    if let Some(read) = read_varint(bytes) {
        return Ok(read);
    }
    let mut value = 0u64;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f)
            .checked_shl(u32::try_from(7 * place).unwrap_or(64))
            .unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok((value, bytes.get(place + 1..).unwrap_or_default()));
        }
    }
    Err(NodeError::Malformed)
}

/// Links by name, in order; and the data.
type Parts<'a> = (Vec<(Vec<u8>, Cid)>, Option<&'a [u8]>);

fn parts(block: &[u8]) -> Result<Parts<'_>, NodeError> {
    let (mut links, mut data) = (Vec::new(), None);
    let mut fields = Fields(block);
    while let Some(found) = fields.next()? {
        match found {
            (1, Field::Bytes(bytes)) if data.is_none() => data = Some(bytes),
            (2, Field::Bytes(bytes)) if links.len() < LINKS_MAX => links.push(link(bytes)?),
            _ => return Err(NodeError::Malformed),
        }
    }
    Ok((links, data))
}

fn link(bytes: &[u8]) -> Result<(Vec<u8>, Cid), NodeError> {
    let (mut name, mut cid) = (Vec::new(), None);
    let mut fields = Fields(bytes);
    while let Some(found) = fields.next()? {
        match found {
            (1, Field::Bytes(bytes)) if cid.is_none() => {
                cid = Some(Cid::from_bytes(bytes).map_err(|_| NodeError::Malformed)?);
            }
            (2, Field::Bytes(bytes)) => name = bytes.to_vec(),
            (3, Field::Number(_)) => {}
            _ => return Err(NodeError::Malformed),
        }
    }
    Ok((name, cid.ok_or(NodeError::Malformed)?))
}

fn read(block: &[u8]) -> Result<Node, NodeError> {
    let (links, data) = parts(block)?;
    let (mut kind, mut data, mut size, mut sizes) = {
        let fields = Fields(data.ok_or(NodeError::Malformed)?);
        (None, fields, None, Vec::new())
    };
    let mut bytes = Vec::new();
    while let Some(found) = data.next()? {
        match found {
            (1, Field::Number(number)) => kind = Some(number),
            (2, Field::Bytes(found)) => bytes = found.to_vec(),
            (3, Field::Number(number)) => size = Some(number),
            (4, Field::Number(number)) if sizes.len() < LINKS_MAX => sizes.push(number),
            // As some programs pack them.
            (4, Field::Bytes(mut packed)) => {
                while !packed.is_empty() && sizes.len() < LINKS_MAX {
                    let (number, rest) = loose_varint(packed)?;
                    sizes.push(number);
                    packed = rest;
                }
            }
            // Hash and fan-out of a shard, mode, modification time.
            (5..=8, _) => {}
            _ => return Err(NodeError::Malformed),
        }
    }
    match kind {
        Some(RAW_LEAF | FILE) => {
            if sizes.len() != links.len() {
                return Err(NodeError::Sizes);
            }
            let sum = sizes
                .iter()
                .try_fold(bytes.len() as u64, |sum, size| sum.checked_add(*size))
                .ok_or(NodeError::Sizes)?;
            if size.is_some_and(|size| size != sum) {
                return Err(NodeError::Sizes);
            }
            let parts = links.into_iter().zip(sizes);
            let links = parts.map(|((_, cid), size)| NodeLink { cid, size });
            Ok(Node::File(FileNode {
                data: bytes,
                links: links.collect(),
                size: sum,
            }))
        }
        Some(FOLDER) => Ok(Node::Folder(links)),
        Some(SHARD) => {
            let (mut entries, mut parts) = (Vec::new(), Vec::new());
            for (name, cid) in links {
                let rest = name.get(SHARD_PREFIX..).ok_or(NodeError::Malformed)?;
                if rest.is_empty() {
                    parts.push(cid);
                } else {
                    entries.push((rest.to_vec(), cid));
                }
            }
            Ok(Node::Shard { entries, parts })
        }
        Some(SYMLINK) if links.is_empty() => Ok(Node::Symlink(bytes)),
        _ => Err(NodeError::Unknown),
    }
}
