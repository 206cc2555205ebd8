//! Bytes on the wire: how numbers and byte strings stand in every message of ours, and how large a message may be.
//!
//! A [`Reader`] never allocates more than what it was given and never panics; [`Reader::finish`] refuses trailing bytes.
//!
//! Spec: `protocol/spec/gossip.md`, "Numbers and frames".

/// Largest Bitswap message, as the IPFS world has it.
pub const BITSWAP_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest frame on the synchronisation channel: one entry of the largest payload and its header, with room.
pub const SYNC_FRAME_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Largest gossip message as published, the envelope of gossipsub (author, number, signature, topic) aside; that one is limited to 64 KiB.
pub const GOSSIP_MESSAGE_BYTES_MAX: usize = 48 << 10;
/// Largest frame at the door before the newcomer has proved anything.
pub const DOOR_FRAME_BYTES_MAX: usize = 16 << 10;
/// Largest frame at the door after the proof.
pub const DOOR_FRAME_BYTES_MAX_PROVED: usize = 1 << 20;

/// The bytes are not the canonical form of what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Reads canonical bytes from front to back.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the first of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are still unread.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Malformed`] if fewer are left.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed("ends too early"))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`Malformed`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed("ends too early"))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    /// Two bytes, little-endian.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// [`Malformed`] at the end.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A truth value: one byte, 0 or 1.
    ///
    /// # Errors
    /// [`Malformed`] at the end or for any other byte.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("neither 0 nor 1")),
        }
    }

    /// Bytes after a length of one byte.
    ///
    /// # Errors
    /// [`Malformed`] if longer than `max` or than what is left.
    pub fn bytes_u8(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u8()?);
        self.limited(len, max)
    }

    /// Bytes after a length of two bytes.
    ///
    /// # Errors
    /// [`Malformed`] if longer than `max` or than what is left.
    pub fn bytes_u16(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u16()?);
        self.limited(len, max)
    }

    /// Bytes after a length of four bytes.
    ///
    /// # Errors
    /// [`Malformed`] if longer than `max` or than what is left.
    pub fn bytes_u32(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed("longer than allowed"))?;
        self.limited(len, max)
    }

    /// A number of things that follow, each at least `each_min` bytes (at least one): refused at once if so many cannot follow.
    ///
    /// # Errors
    /// [`Malformed`] if more than `max` or than can stand in what is left.
    pub fn count_u32(&mut self, max: usize, each_min: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u32()?).map_err(|_| Malformed("more than allowed"))?;
        if count > max {
            return Err(Malformed("more than allowed"));
        }
        if count > self.rest.len() / each_min.max(1) {
            return Err(Malformed("ends too early"));
        }
        Ok(count)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Malformed`] if bytes are left over.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("trailing bytes"))
        }
    }

    fn limited(&mut self, len: usize, max: usize) -> Result<&'a [u8], Malformed> {
        if len > max {
            return Err(Malformed("longer than allowed"));
        }
        self.take(len)
    }
}

/// Writes canonical bytes front to back.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for that many bytes.
    pub fn with_capacity(len_bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(len_bytes),
        }
    }

    /// How many bytes are written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A truth value: one byte, 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// These bytes as they are; also for arrays of fixed length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A length of one byte, then the bytes. Longer ones are the caller's mistake: limit them before.
    pub fn bytes_u8(&mut self, bytes: &[u8]) -> &mut Self {
        self.u8(u8::try_from(bytes.len()).expect("callers keep to lengths below 2^8"))
            .raw(bytes)
    }

    /// A length of two bytes, then the bytes. Longer ones are the caller's mistake: limit them before.
    pub fn bytes_u16(&mut self, bytes: &[u8]) -> &mut Self {
        self.u16(u16::try_from(bytes.len()).expect("callers keep to lengths below 2^16"))
            .raw(bytes)
    }

    /// A length of four bytes, then the bytes. Longer ones are the caller's mistake: limit them before.
    pub fn bytes_u32(&mut self, bytes: &[u8]) -> &mut Self {
        self.count_u32(bytes.len()).raw(bytes)
    }

    /// A number of things that follow.
    pub fn count_u32(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("callers keep to counts below 2^32"))
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_little_endian_without_padding() {
        let mut writer = Writer::new();
        writer
            .u8(1)
            .u16(2)
            .u32(3)
            .u64(4)
            .bool(true)
            .raw(&[9; 3])
            .bytes_u8(b"a")
            .bytes_u16(b"bc")
            .bytes_u32(b"def");
        let bytes = writer.finish();
        assert_eq!(
            bytes,
            b"\x01\x02\0\x03\0\0\0\x04\0\0\0\0\0\0\0\x01\x09\x09\x09\x01a\x02\0bc\x03\0\0\0def"
        );
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.array(), Ok([9; 3]));
        assert_eq!(reader.bytes_u8(1), Ok(&b"a"[..]));
        assert_eq!(reader.bytes_u16(2), Ok(&b"bc"[..]));
        assert_eq!(reader.bytes_u32(3), Ok(&b"def"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn excess_is_refused() {
        assert!(Reader::new(b"\x02\0\0\0ab").bytes_u32(1).is_err());
        assert!(
            Reader::new(b"\xff\xff\xff\xffab")
                .bytes_u32(usize::MAX)
                .is_err()
        );
        assert!(
            Reader::new(b"\xff\xff\xff\xff")
                .count_u32(usize::MAX, 0)
                .is_err()
        );
        assert!(Reader::new(b"\x02\0\0\0abc").count_u32(5, 2).is_err());
        assert_eq!(Reader::new(b"\x02\0\0\0abcd").count_u32(5, 2), Ok(2));
        assert!(Reader::new(b"\x02").bool().is_err());
        assert!(Reader::new(b"x").finish().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), steps in proptest::collection::vec(0_u8..10, 0..20)) {
            let mut reader = Reader::new(&bytes);
            for step in steps {
                let before = reader.remaining();
                let read = match step {
                    0 => reader.u8().map(|_| ()),
                    1 => reader.u16().map(|_| ()),
                    2 => reader.u32().map(|_| ()),
                    3 => reader.u64().map(|_| ()),
                    4 => reader.bool().map(|_| ()),
                    5 => reader.array::<7>().map(|_| ()),
                    6 => reader.bytes_u8(9).map(|_| ()),
                    7 => reader.bytes_u16(9).map(|_| ()),
                    8 => reader.bytes_u32(9).map(|_| ()),
                    _ => reader.count_u32(9, 3).map(|_| ()),
                };
                prop_assert!(reader.remaining() <= before);
                if read.is_err() {
                    break;
                }
            }
        }
    }
}
