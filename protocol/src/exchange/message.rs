//! Bitswap messages: protobuf in, protobuf out, the blocks inside never copied.
//!
//! Written by hand rather than derived: blocks stay slices of the message they came in, and a message is turned away as soon as it
//! holds more items than anybody needs, before memory is spent on them.

use bytes::{BufMut, Bytes, BytesMut};
use kith_object::id::{Cid, CidError};

/// Longest message read or written. Kubo reads no more either.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest block that travels; a block must fit a message with room to spare, and Kubo's limit is the same.
pub const BLOCK_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most items of one kind in a message read: Kubo fills at most 2 MiB with entries, which is some 50,000.
pub const ITEMS_MAX: usize = 65_536;
/// Blocks shorter than this are copied into the bytes around them, which is cheaper than a part of their own.
const PART_BYTES_MIN: usize = 4096;

/// One Bitswap 1.2.0 message.
///
/// Spec: `protocol/spec/exchange.md`, "Message".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// The entries replace everything the sender wanted before.
    pub full: bool,
    /// What the sender wants, and what no longer.
    pub entries: Vec<Entry>,
    /// Blocks the receiver asked for.
    pub blocks: Vec<Block>,
    /// Which blocks the sender has or lacks.
    pub presences: Vec<Presence>,
    /// How many bytes of blocks the sender still has queued for the receiver.
    pub pending_bytes: u32,
}

/// One line of a wantlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What is wanted.
    pub cid: Cid,
    /// Higher is served earlier.
    pub priority: i32,
    /// What to do about it.
    pub kind: EntryKind,
    /// Whether the sender wants to hear of a block that the receiver lacks.
    pub send_dont_have: bool,
    /// Whether the receiver may forget the entry once it has answered. Ours alone: field 15, which others pass over.
    ///
    /// Bitswap keeps a want that was answered with "don't have" and sends the block whenever it comes. Devices that fetch the same
    /// things at the same time would send each other a good part of them in vain: the block comes just before the cancel does.
    pub once: bool,
}

/// What an [`Entry`] asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Send the block.
    Block,
    /// Say whether you have it.
    Have,
    /// Forget an earlier entry of this CID.
    Cancel,
}

/// A block as it travels: not its CID, but all of the CID except the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What the CID begins with.
    pub prefix: Prefix,
    /// The bytes, a slice of the message.
    pub data: Bytes,
}

/// The four numbers a CID begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// CID version.
    pub version: u64,
    /// Codec of the content.
    pub codec: u64,
    /// Hash function.
    pub hash: u64,
    /// Digest length in bytes.
    pub hash_len: u64,
}

impl Prefix {
    /// The prefix of that CID.
    pub fn of(cid: &Cid) -> Self {
        let (version, codec, hash, hash_len) = cid.prefix();
        Self {
            version,
            codec,
            hash,
            hash_len,
        }
    }

    /// The CID of data with this prefix, by hashing the data; `None` if the hash function is not one we compute.
    pub fn cid(&self, data: &[u8]) -> Option<Cid> {
        Cid::from_prefix(self.version, self.codec, self.hash, self.hash_len, data)
    }
}

/// Whether the sender has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Which block.
    pub cid: Cid,
    /// Whether it has it.
    pub have: bool,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MESSAGE_BYTES_MAX`], or with a block longer than [`BLOCK_BYTES_MAX`].
    #[error("too long")]
    TooLong,
    /// More than [`ITEMS_MAX`] items of a kind.
    #[error("too many items")]
    TooMany,
    /// Not this protobuf.
    #[error("malformed")]
    Malformed,
}

/// An encoded message, in parts so that blocks need not be copied into it.
///
/// The parts in order are the message. A shell that can write them one after the other does so; [`Parts::into_bytes`] joins them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    parts: Vec<Bytes>,
    len_bytes: usize,
}

impl Parts {
    /// Length of the whole message.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The parts in order, none empty.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter()
    }

    /// The message in one piece; copies if it has more than one part.
    pub fn into_bytes(mut self) -> Bytes {
        if self.parts.len() == 1
            && let Some(only) = self.parts.pop()
        {
            return only;
        }
        let mut joined = BytesMut::with_capacity(self.len_bytes);
        for part in &self.parts {
            joined.put_slice(part);
        }
        joined.freeze()
    }

    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len_bytes += part.len();
            self.parts.push(part);
        }
    }
}

impl From<Bytes> for Parts {
    fn from(bytes: Bytes) -> Self {
        let mut parts = Self::default();
        parts.push(bytes);
        parts
    }
}

impl IntoIterator for Parts {
    type Item = Bytes;
    type IntoIter = std::vec::IntoIter<Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.parts.into_iter()
    }
}

// Field numbers of the protobuf, with their wire types.
const WIRE_VARINT: u64 = 0;
const WIRE_FIXED64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED32: u64 = 5;

const fn key(field: u64, wire: u64) -> u64 {
    (field << 3) | wire
}

const WANTLIST: u64 = key(1, WIRE_BYTES);
const BLOCKS: u64 = key(2, WIRE_BYTES);
const PAYLOAD: u64 = key(3, WIRE_BYTES);
const PRESENCES: u64 = key(4, WIRE_BYTES);
const PENDING: u64 = key(5, WIRE_VARINT);

const WANTLIST_ENTRIES: u64 = key(1, WIRE_BYTES);
const WANTLIST_FULL: u64 = key(2, WIRE_VARINT);

const ENTRY_CID: u64 = key(1, WIRE_BYTES);
const ENTRY_PRIORITY: u64 = key(2, WIRE_VARINT);
const ENTRY_CANCEL: u64 = key(3, WIRE_VARINT);
const ENTRY_TYPE: u64 = key(4, WIRE_VARINT);
const ENTRY_DONT_HAVE: u64 = key(5, WIRE_VARINT);
const ENTRY_ONCE: u64 = key(15, WIRE_VARINT);

const BLOCK_PREFIX: u64 = key(1, WIRE_BYTES);
const BLOCK_DATA: u64 = key(2, WIRE_BYTES);

const PRESENCE_CID: u64 = key(1, WIRE_BYTES);
const PRESENCE_TYPE: u64 = key(2, WIRE_VARINT);

/// Prefix of the blocks of protocol 1.0.0, which come without: CIDv0 is dag-pb and SHA2-256.
const PREFIX_V0: Prefix = Prefix {
    version: 0,
    codec: 0x70,
    hash: 0x12,
    hash_len: 32,
};

impl Message {
    /// Reads one message; blocks become slices of `bytes`.
    ///
    /// As protobuf asks, fields may come in any order and unknown ones are passed over. Entries and presences whose CID is of a kind
    /// we cannot name (too long, other version) are passed over too: nobody here holds such a block.
    ///
    /// # Errors
    /// [`MessageError`] if the bytes are not such a message or exceed a limit.
    pub fn decode(bytes: &Bytes) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong);
        }
        let mut message = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some(key) = reader.key()? {
            match key {
                WANTLIST => message.read_wantlist(reader.message()?)?,
                BLOCKS => message.add_block(PREFIX_V0, reader.bytes()?)?,
                PAYLOAD => {
                    let mut prefix = Bytes::new();
                    let mut data = Bytes::new();
                    let mut reader = reader.message()?;
                    while let Some(key) = reader.key()? {
                        match key {
                            BLOCK_PREFIX => prefix = reader.bytes()?,
                            BLOCK_DATA => data = reader.bytes()?,
                            other => reader.skip(other)?,
                        }
                    }
                    message.add_block(read_prefix(&prefix)?, data)?;
                }
                PRESENCES => {
                    let mut cid = Bytes::new();
                    let mut have = true;
                    let mut reader = reader.message()?;
                    while let Some(key) = reader.key()? {
                        match key {
                            PRESENCE_CID => cid = reader.bytes()?,
                            PRESENCE_TYPE => have = !reader.one_of_two()?,
                            other => reader.skip(other)?,
                        }
                    }
                    if let Some(cid) = read_cid(&cid)? {
                        check_room(message.presences.len())?;
                        message.presences.push(Presence { cid, have });
                    }
                }
                PENDING => message.pending_bytes = low_32_bits(reader.varint()?),
                other => reader.skip(other)?,
            }
        }
        Ok(message)
    }

    fn read_wantlist(&mut self, mut reader: Reader<'_>) -> Result<(), MessageError> {
        while let Some(key) = reader.key()? {
            match key {
                WANTLIST_ENTRIES => {
                    let mut cid = Bytes::new();
                    let (mut priority, mut cancel, mut have) = (0, false, false);
                    let (mut send_dont_have, mut once) = (false, false);
                    let mut reader = reader.message()?;
                    while let Some(key) = reader.key()? {
                        match key {
                            ENTRY_CID => cid = reader.bytes()?,
                            ENTRY_PRIORITY => {
                                priority = low_32_bits(reader.varint()?).cast_signed()
                            }
                            ENTRY_CANCEL => cancel = reader.varint()? != 0,
                            ENTRY_TYPE => have = reader.one_of_two()?,
                            ENTRY_DONT_HAVE => send_dont_have = reader.varint()? != 0,
                            ENTRY_ONCE => once = reader.varint()? != 0,
                            other => reader.skip(other)?,
                        }
                    }
                    let Some(cid) = read_cid(&cid)? else { continue };
                    let kind = match (cancel, have) {
                        (true, _) => EntryKind::Cancel,
                        (false, true) => EntryKind::Have,
                        (false, false) => EntryKind::Block,
                    };
                    check_room(self.entries.len())?;
                    self.entries.push(Entry {
                        cid,
                        priority,
                        kind,
                        send_dont_have,
                        once,
                    });
                }
                WANTLIST_FULL => self.full = reader.varint()? != 0,
                other => reader.skip(other)?,
            }
        }
        Ok(())
    }

    fn add_block(&mut self, prefix: Prefix, data: Bytes) -> Result<(), MessageError> {
        if data.len() > BLOCK_BYTES_MAX {
            return Err(MessageError::TooLong);
        }
        check_room(self.blocks.len())?;
        self.blocks.push(Block { prefix, data });
        Ok(())
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        !self.full && self.entries.is_empty() && self.blocks.is_empty() && self.presences.is_empty()
    }

    /// Writes the message: fields by number, those of default value left out. The blocks are not copied, save small ones.
    pub fn encode(&self) -> Parts {
        let mut parts = Parts::default();
        let items = self.entries.len() + self.presences.len() + self.blocks.len();
        let mut buffer = BytesMut::with_capacity(items.saturating_mul(56).saturating_add(16));
        if self.full || !self.entries.is_empty() {
            let cids: Vec<Vec<u8>> = self
                .entries
                .iter()
                .map(|entry| entry.cid.to_bytes())
                .collect();
            let mut len = if self.full { 2 } else { 0 };
            for (entry, cid) in self.entries.iter().zip(&cids) {
                len += field_len(entry.len_bytes(cid.len()));
            }
            put_varint(&mut buffer, WANTLIST);
            put_len(&mut buffer, len);
            for (entry, cid) in self.entries.iter().zip(&cids) {
                put_varint(&mut buffer, WANTLIST_ENTRIES);
                put_len(&mut buffer, entry.len_bytes(cid.len()));
                entry.put(&mut buffer, cid);
            }
            if self.full {
                put_varint(&mut buffer, WANTLIST_FULL);
                put_varint(&mut buffer, 1);
            }
        }
        for block in &self.blocks {
            let prefix = [
                block.prefix.version,
                block.prefix.codec,
                block.prefix.hash,
                block.prefix.hash_len,
            ];
            let prefix_len = prefix.iter().map(|number| varint_len(*number)).sum();
            let data_len = if block.data.is_empty() {
                0
            } else {
                field_len(block.data.len())
            };
            put_varint(&mut buffer, PAYLOAD);
            put_len(&mut buffer, field_len(prefix_len) + data_len);
            put_varint(&mut buffer, BLOCK_PREFIX);
            put_len(&mut buffer, prefix_len);
            for number in prefix {
                put_varint(&mut buffer, number);
            }
            if !block.data.is_empty() {
                put_varint(&mut buffer, BLOCK_DATA);
                put_len(&mut buffer, block.data.len());
                if block.data.len() < PART_BYTES_MIN {
                    buffer.put_slice(&block.data);
                } else {
                    parts.push(buffer.split().freeze());
                    parts.push(block.data.clone());
                }
            }
        }
        for presence in &self.presences {
            let cid = presence.cid.to_bytes();
            put_varint(&mut buffer, PRESENCES);
            put_len(
                &mut buffer,
                field_len(cid.len()) + if presence.have { 0 } else { 2 },
            );
            put_varint(&mut buffer, PRESENCE_CID);
            put_len(&mut buffer, cid.len());
            buffer.put_slice(&cid);
            if !presence.have {
                put_varint(&mut buffer, PRESENCE_TYPE);
                put_varint(&mut buffer, 1);
            }
        }
        if self.pending_bytes != 0 {
            put_varint(&mut buffer, PENDING);
            put_varint(&mut buffer, u64::from(self.pending_bytes));
        }
        parts.push(buffer.freeze());
        parts
    }
}

impl Entry {
    fn len_bytes(&self, cid_len: usize) -> usize {
        let mut len = field_len(cid_len);
        if self.priority != 0 {
            len += 1 + varint_len(sign_extended(self.priority));
        }
        if self.kind != EntryKind::Block {
            len += 2;
        }
        len += 2 * usize::from(self.send_dont_have) + 2 * usize::from(self.once);
        len
    }

    fn put(&self, buffer: &mut BytesMut, cid: &[u8]) {
        put_varint(buffer, ENTRY_CID);
        put_len(buffer, cid.len());
        buffer.put_slice(cid);
        if self.priority != 0 {
            put_varint(buffer, ENTRY_PRIORITY);
            put_varint(buffer, sign_extended(self.priority));
        }
        match self.kind {
            EntryKind::Block => {}
            EntryKind::Cancel => {
                put_varint(buffer, ENTRY_CANCEL);
                put_varint(buffer, 1);
            }
            EntryKind::Have => {
                put_varint(buffer, ENTRY_TYPE);
                put_varint(buffer, 1);
            }
        }
        if self.send_dont_have {
            put_varint(buffer, ENTRY_DONT_HAVE);
            put_varint(buffer, 1);
        }
        if self.once {
            put_varint(buffer, ENTRY_ONCE);
            put_varint(buffer, 1);
        }
    }
}

/// A protobuf `int32` as the varint it is sent as: negative numbers take all ten bytes.
fn sign_extended(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}

/// What protobuf keeps of a varint in a 32-bit field.
fn low_32_bits(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn check_room(items: usize) -> Result<(), MessageError> {
    if items < ITEMS_MAX {
        Ok(())
    } else {
        Err(MessageError::TooMany)
    }
}

/// `None` for a CID that is none of ours to name.
fn read_cid(bytes: &[u8]) -> Result<Option<Cid>, MessageError> {
    if bytes.is_empty() {
        return Err(MessageError::Malformed);
    }
    match Cid::from_bytes(bytes) {
        Ok(cid) => Ok(Some(cid)),
        Err(CidError::TooLong | CidError::Malformed) => Ok(None),
    }
}

/// Four varints in their shortest form, and nothing after them.
fn read_prefix(bytes: &Bytes) -> Result<Prefix, MessageError> {
    let mut reader = Reader::new(bytes);
    let mut number = || {
        let from = reader.at;
        let number = reader.varint()?;
        if reader.at - from == varint_len(number) {
            Ok(number)
        } else {
            Err(MessageError::Malformed)
        }
    };
    let prefix = Prefix {
        version: number()?,
        codec: number()?,
        hash: number()?,
        hash_len: number()?,
    };
    if reader.at == reader.end {
        Ok(prefix)
    } else {
        Err(MessageError::Malformed)
    }
}

/// Length of a varint.
fn varint_len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).expect("at most ten")
}

/// Length of a field of bytes: key (one byte for every field here), length, content.
fn field_len(len: usize) -> usize {
    1 + varint_len(u64::try_from(len).expect("a length fits 64 bits")) + len
}

fn put_len(buffer: &mut BytesMut, len: usize) {
    put_varint(buffer, u64::try_from(len).expect("a length fits 64 bits"));
}

fn put_varint(buffer: &mut BytesMut, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            buffer.put_u8(low);
            return;
        }
        buffer.put_u8(low | 0x80);
    }
}

/// Walks protobuf fields.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            at: 0,
            end: bytes.len(),
        }
    }

    /// Key of the next field; `None` at the end.
    fn key(&mut self) -> Result<Option<u64>, MessageError> {
        if self.at == self.end {
            return Ok(None);
        }
        let key = self.varint()?;
        // Field number zero is never valid, nor is one above 29 bits.
        if key >> 3 == 0 || key >> 32 != 0 {
            Err(MessageError::Malformed)
        } else {
            Ok(Some(key))
        }
    }

    fn varint(&mut self) -> Result<u64, MessageError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at == self.end {
                return Err(MessageError::Malformed);
            }
            let byte = *self.bytes.get(self.at).ok_or(MessageError::Malformed)?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(MessageError::Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(MessageError::Malformed)
    }

    /// An enumeration with the values 0 and 1.
    fn one_of_two(&mut self) -> Result<bool, MessageError> {
        match self.varint()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MessageError::Malformed),
        }
    }

    /// Start and end of a field of bytes, which is passed over.
    fn span(&mut self) -> Result<(usize, usize), MessageError> {
        let len = usize::try_from(self.varint()?).map_err(|_| MessageError::Malformed)?;
        let from = self.at;
        let to = from.checked_add(len).ok_or(MessageError::Malformed)?;
        if to > self.end {
            return Err(MessageError::Malformed);
        }
        self.at = to;
        Ok((from, to))
    }

    fn bytes(&mut self) -> Result<Bytes, MessageError> {
        let (from, to) = self.span()?;
        Ok(self.bytes.slice(from..to))
    }

    fn message(&mut self) -> Result<Reader<'a>, MessageError> {
        let (at, end) = self.span()?;
        Ok(Reader {
            bytes: self.bytes,
            at,
            end,
        })
    }

    /// Passes over a field we do not know. A known one of another wire type ends here as well, and a group is never valid.
    fn skip(&mut self, key: u64) -> Result<(), MessageError> {
        let fixed = match key & 7 {
            WIRE_VARINT => {
                self.varint()?;
                0
            }
            WIRE_BYTES => {
                self.span()?;
                0
            }
            WIRE_FIXED64 => 8,
            WIRE_FIXED32 => 4,
            _ => return Err(MessageError::Malformed),
        };
        let to = self.at + fixed;
        if to > self.end {
            return Err(MessageError::Malformed);
        }
        self.at = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
