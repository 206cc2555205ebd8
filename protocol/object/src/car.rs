//! CAR archives, as the IPFS world has them: writes CARv1, reads CARv1 and CARv2, block by block, and finds its way again behind damage.
//!
//! Spec: `protocol/spec/car.md`, "What is written".

pub(crate) mod cbor;

use std::io::{self, Read};
use std::ops::Range;

use bytes::Bytes;

use crate::id::{CID_BYTES_MAX, Cid};
use cbor::{CborError, Decoder, Encoder};

/// Longest header read: some twenty thousand roots.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest section read, as in the reference reader: blocks that travel have at most 2 MiB.
pub const SECTION_BYTES_MAX: usize = 8 << 20;

/// What a CARv2 begins with: the header of a CARv1 of version 2 without roots.
const PRAGMA: &[u8; 11] = b"\x0a\xa1gversion\x02";
/// Characteristics, offset and size of the data, offset of the index.
const V2_HEADER_BYTES: usize = 40;
/// Longest varint that stands for a length here.
const VARINT_BYTES_MAX: usize = 4;
/// Read at once.
const READ_BYTES: usize = 64 << 10;
/// How often, behind damage, what looks like a block is hashed in vain before the rest is given up: an archive made to waste time ends then.
const TRIES_MAX: u32 = 1024;

/// Why an archive cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// The system refused.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// Neither a CARv1 nor a CARv2.
    #[error("it does not begin as a CAR archive does")]
    Header,
}

/// The bytes before the first section.
pub fn header(roots: &[Cid]) -> Vec<u8> {
    let mut cbor = Encoder::default();
    cbor.map(2);
    cbor.text("roots");
    cbor.links(roots);
    cbor.text("version");
    cbor.uint(1);
    let cbor = cbor.finish();
    let mut bytes = varint(cbor.len() as u64);
    bytes.extend_from_slice(&cbor);
    bytes
}

/// The bytes before a block in its section; the block follows.
pub fn section_head(cid: &Cid, len: usize) -> Vec<u8> {
    let cid = cid.to_bytes();
    let mut bytes = varint(cid.len() as u64 + len as u64);
    bytes.extend_from_slice(&cid);
    bytes
}

/// Whether these bytes are what the CID names; an identity CID holds its bytes itself.
pub fn verifies(cid: &Cid, block: &[u8]) -> bool {
    let (version, _, hash, len) = cid.prefix();
    if (version, hash) == (1, 0) {
        return len == block.len() as u64 && cid.to_bytes().ends_with(block);
    }
    cid.verifies(block)
}

/// A number as LEB128, seven bits a byte, the lowest first.
pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Reads such a number in its shortest form, at most nine bytes long: the number and what follows.
pub(crate) fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (place, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let shortest = place == 0 || *byte != 0;
            return shortest.then(|| (value, bytes.get(place + 1..).unwrap_or_default()));
        }
    }
    None
}

/// The CID that the bytes begin with, and what follows.
fn read_cid(bytes: &[u8]) -> Option<(Cid, &[u8])> {
    let len = if bytes.starts_with(&[0x12, 0x20]) {
        34
    } else {
        let (version, rest) = read_varint(bytes)?;
        let (_, rest) = read_varint(rest)?;
        let (_, rest) = read_varint(rest)?;
        let (digest, rest) = read_varint(rest)?;
        if version != 1 || digest > CID_BYTES_MAX as u64 {
            return None;
        }
        bytes.len() - rest.len() + usize::try_from(digest).ok()?
    };
    let (cid, rest) = bytes.split_at_checked(len)?;
    Some((Cid::from_bytes(cid).ok()?, rest))
}

/// What an archive holds, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A block that is what its CID says.
    Block(Block),
    /// Bytes that are no sound section: damaged, cut short, or under a CID that cannot be checked.
    Damaged(Range<u64>),
}

/// A block in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub cid: Cid,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Reads an archive in one pass, holding one section at a time.
///
/// Nothing is yielded that does not match its CID. Damage costs what it hits: the reader goes on at the next sound section.
///
/// Spec: `protocol/spec/car.md`, "What is read".
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Read and not yet passed; its first byte stands at `at`.
    buffer: Vec<u8>,
    /// The part of the buffer that was passed already.
    passed: usize,
    at: u64,
    /// Where the sections end, if the archive says so.
    end: u64,
    /// The source has no more.
    dry: bool,
    roots: Vec<Cid>,
    version: u8,
    tries: u32,
    /// Found behind damage, yielded after it.
    found: Option<Block>,
    header_damage: Option<Range<u64>>,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`CarError`].
    pub fn open(source: R) -> Result<Self, CarError> {
        let mut reader = Self::empty(source);
        if reader.begin().map_err(CarError::Read)?.is_none() {
            return Err(CarError::Header);
        }
        Ok(reader)
    }

    /// As [`open`](Self::open), but where the header is damaged looks for sections from the beginning, and knows no roots.
    ///
    /// # Errors
    /// [`CarError::Read`]; [`CarError::Header`] if there is no sound section either.
    pub fn open_damaged(source: R) -> Result<Self, CarError> {
        let mut reader = Self::empty(source);
        if reader.begin().map_err(CarError::Read)?.is_some() {
            return Ok(reader);
        }
        let start = reader.place();
        let mut damaged = reader.search(start).map_err(CarError::Read)?;
        if reader.found.is_none() {
            return Err(CarError::Header);
        }
        if damaged.is_empty() {
            // Headers of a CARv2 that lead past the header of its data: they are what is wrong.
            damaged.start = 0;
        }
        reader.header_damage = Some(damaged);
        Ok(reader)
    }

    /// The roots that the header names.
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The next block or damaged place; `None` at the end.
    ///
    /// # Errors
    /// Those of the source.
    #[expect(clippy::should_implement_trait, reason = "no iterator: it can fail")]
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        if let Some(damaged) = self.header_damage.take() {
            return Ok(Some(Item::Damaged(damaged)));
        }
        if let Some(found) = self.found.take() {
            return Ok(Some(Item::Block(found)));
        }
        let start = self.place();
        self.fill(VARINT_BYTES_MAX)?;
        if self.rest().is_empty() {
            // An archive that says how long it is and is not was cut short.
            let short = self.end != u64::MAX && self.place() < self.end;
            let lacking = self.place()..self.end;
            self.end = self.place();
            return Ok(short.then_some(Item::Damaged(lacking)));
        }
        match self.section()? {
            Section::Sound(block, len) => {
                self.pass(len);
                Ok(Some(Item::Block(block)))
            }
            Section::Altered(len) if self.stands_at(len)? => {
                self.pass(len);
                Ok(Some(Item::Damaged(start..self.place())))
            }
            Section::Altered(_) | Section::None => {
                self.pass(1);
                Ok(Some(Item::Damaged(self.search(start)?)))
            }
        }
    }

    fn empty(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            passed: 0,
            at: 0,
            end: u64::MAX,
            dry: false,
            roots: Vec::new(),
            version: 1,
            tries: 0,
            found: None,
            header_damage: None,
        }
    }

    /// Reads the headers; `None` if they are not those of an archive.
    fn begin(&mut self) -> io::Result<Option<()>> {
        self.fill(PRAGMA.len())?;
        if self.rest().starts_with(PRAGMA) {
            self.fill(PRAGMA.len() + V2_HEADER_BYTES)?;
            let Some(header) = self
                .rest()
                .get(PRAGMA.len()..PRAGMA.len() + V2_HEADER_BYTES)
            else {
                return Ok(None);
            };
            let number = |at: usize| {
                let bytes = header.get(at..)?.first_chunk::<8>()?;
                Some(u64::from_le_bytes(*bytes))
            };
            let (Some(offset), Some(size)) = (number(16), number(24)) else {
                return Ok(None);
            };
            let least = (PRAGMA.len() + V2_HEADER_BYTES) as u64;
            let Some(end) = offset.checked_add(size).filter(|_| offset >= least) else {
                return Ok(None);
            };
            // The index behind the data is not read, nor what came with these headers of it.
            (self.version, self.end) = (2, end);
            let within = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            self.buffer.truncate(within);
            // What stands between the headers and the data is padding.
            while self.place() < offset && self.fill(1)? {
                let skip = (offset - self.place()).min(self.rest().len() as u64);
                self.pass(usize::try_from(skip).unwrap_or(usize::MAX));
            }
        }
        self.fill(9)?;
        let Some((len, rest)) = read_varint(self.rest()) else {
            return Ok(None);
        };
        let head = self.rest().len() - rest.len();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 || len > HEADER_BYTES_MAX || !self.fill(head + len)? {
            return Ok(None);
        }
        let header = self.rest().get(head..head + len).unwrap_or_default();
        let Ok(roots) = decode_header(header) else {
            return Ok(None);
        };
        self.roots = roots;
        self.pass(head + len);
        Ok(Some(()))
    }

    /// Where in the file the next byte stands.
    fn place(&self) -> u64 {
        self.at + self.passed as u64
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.passed..).unwrap_or_default()
    }

    fn pass(&mut self, len: usize) {
        self.passed = self.buffer.len().min(self.passed.saturating_add(len));
    }

    /// Sees that so many bytes are in the buffer; false if there are not so many.
    fn fill(&mut self, len: usize) -> io::Result<bool> {
        if self.rest().len() >= len {
            return Ok(true);
        }
        self.buffer.drain(..self.passed);
        self.at += self.passed as u64;
        self.passed = 0;
        while self.buffer.len() < len && !self.dry {
            let have = self.at + self.buffer.len() as u64;
            let want = READ_BYTES.max(len - self.buffer.len()) as u64;
            let want = want.min(self.end.saturating_sub(have));
            let read = (&mut self.source)
                .take(want)
                .read_to_end(&mut self.buffer)?;
            self.dry = read == 0;
        }
        Ok(self.buffer.len() >= len)
    }

    /// The section that the buffer begins with.
    fn section(&mut self) -> io::Result<Section> {
        let Some((len, rest)) = read_varint(self.rest()) else {
            return Ok(Section::None);
        };
        let head = self.rest().len() - rest.len();
        let len = match usize::try_from(len) {
            Ok(len) if (2..=SECTION_BYTES_MAX).contains(&len) => len,
            _ => return Ok(Section::None),
        };
        if !self.fill(head + len)? {
            return Ok(Section::None);
        }
        let body = self.rest().get(head..head + len).unwrap_or_default();
        let Some((cid, block)) = read_cid(body) else {
            return Ok(Section::None);
        };
        if !verifies(&cid, block) {
            return Ok(Section::Altered(head + len));
        }
        let offset = self.place() + (head + len - block.len()) as u64;
        let bytes = Bytes::copy_from_slice(block);
        Ok(Section::Sound(Block { cid, offset, bytes }, head + len))
    }

    /// Whether a section, or the end, stands that far on: then what is wrong with the one before is only its block.
    fn stands_at(&mut self, len: usize) -> io::Result<bool> {
        self.fill(len + VARINT_BYTES_MAX + 2)?;
        let rest = self.rest().get(len..).unwrap_or_default();
        Ok(rest.is_empty()
            || read_varint(rest).is_some_and(|(next, rest)| {
                (2..=SECTION_BYTES_MAX as u64).contains(&next)
                    && (rest.starts_with(&[0x12, 0x20]) || rest.first() == Some(&1))
            }))
    }

    /// Goes to the next sound section, or to the end; returns what it passed over.
    fn search(&mut self, start: u64) -> io::Result<Range<u64>> {
        loop {
            if !self.fill(VARINT_BYTES_MAX + 4)? {
                self.pass(usize::MAX);
                return Ok(start..self.place());
            }
            let Some(place) = likely(self.rest()) else {
                // A CID may begin in the last bytes.
                let whole = self.rest().len().saturating_sub(VARINT_BYTES_MAX + 3);
                self.pass(whole.max(1));
                continue;
            };
            self.pass(place);
            if self.tries < TRIES_MAX {
                if let Section::Sound(block, len) = self.section()? {
                    let damaged = start..self.place();
                    self.pass(len);
                    self.found = Some(block);
                    return Ok(damaged);
                }
                self.tries += 1;
            }
            self.pass(1);
        }
    }
}

/// What stands where a section should.
enum Section {
    /// A block, and the length of all of it.
    Sound(Block, usize),
    /// A frame of that length whose block is not what its CID says.
    Altered(usize),
    /// No frame.
    None,
}

/// Where a section may begin: a length in its shortest form, then a CID as archives have them: version 1; raw, dag-pb or dag-cbor; BLAKE3 or SHA2-256
/// of 32 bytes; or version 0.
fn likely(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|place| {
        let frame = bytes.get(*place..).unwrap_or_default();
        let Some((len, rest)) = read_varint(frame) else {
            return false;
        };
        let known = matches!(
            rest,
            [0x01, 0x55 | 0x70 | 0x71, 0x1e | 0x12, 0x20, ..] | [0x12, 0x20, _, _, ..]
        );
        known && (34..=SECTION_BYTES_MAX as u64).contains(&len)
    })
}

/// The roots in the header of a CARv1.
fn decode_header(bytes: &[u8]) -> Result<Vec<Cid>, CborError> {
    let mut cbor = Decoder::new(bytes);
    cbor.map_of(2)?;
    cbor.key("roots")?;
    let roots = cbor.links()?;
    cbor.key("version")?;
    if cbor.uint()? != 1 {
        return Err(CborError);
    }
    cbor.end()?;
    Ok(roots)
}

#[cfg(test)]
mod tests;
