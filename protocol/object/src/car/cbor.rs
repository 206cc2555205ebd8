//! As much of DAG-CBOR as archives need: unsigned numbers, bytes, text, lists, maps, links. What would be written otherwise is refused.

use crate::id::{CID_BYTES_MAX, Cid};

const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const LIST: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
/// The tag of a link.
const LINK: u64 = 42;

/// The bytes are not the DAG-CBOR expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CborError;

/// Writes values one after another; keys of a map in their canonical order are the caller's duty.
#[derive(Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn uint(&mut self, value: u64) {
        self.head(UINT, value);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn list(&mut self, len: usize) {
        self.head(LIST, len as u64);
    }

    pub(crate) fn map(&mut self, len: usize) {
        self.head(MAP, len as u64);
    }

    pub(crate) fn link(&mut self, cid: &Cid) {
        self.head(TAG, LINK);
        let cid = cid.to_bytes();
        self.head(BYTES, cid.len() as u64 + 1);
        self.0.push(0);
        self.0.extend_from_slice(&cid);
    }

    pub(crate) fn links(&mut self, links: &[Cid]) {
        self.list(links.len());
        for link in links {
            self.link(link);
        }
    }

    fn head(&mut self, major: u8, value: u64) {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_be_bytes();
        let head = |low: u8| major << 5 | low;
        match value {
            0..=23 => self.0.push(head(b7)),
            24..=0xff => self.0.extend_from_slice(&[head(24), b7]),
            0x100..=0xffff => self.0.extend_from_slice(&[head(25), b6, b7]),
            0x1_0000..=0xffff_ffff => self.0.extend_from_slice(&[head(26), b4, b5, b6, b7]),
            _ => self
                .0
                .extend_from_slice(&[head(27), b0, b1, b2, b3, b4, b5, b6, b7]),
        }
    }
}

/// Reads values one after another.
pub(crate) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// All was read.
    pub(crate) fn end(&self) -> Result<(), CborError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(CborError)
        }
    }

    pub(crate) fn uint(&mut self) -> Result<u64, CborError> {
        self.head(UINT)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        let len = self.head(BYTES)?;
        self.take(len)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, CborError> {
        let len = self.head(TEXT)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| CborError)
    }

    /// The length of a list. Each item takes at least a byte, so a length beyond what is left is refused here.
    pub(crate) fn list(&mut self) -> Result<usize, CborError> {
        self.counted(LIST, 1)
    }

    pub(crate) fn map(&mut self) -> Result<usize, CborError> {
        self.counted(MAP, 2)
    }

    /// A map of exactly that many keys begins.
    pub(crate) fn map_of(&mut self, len: usize) -> Result<(), CborError> {
        if self.map()? == len {
            Ok(())
        } else {
            Err(CborError)
        }
    }

    /// Exactly that key comes next.
    pub(crate) fn key(&mut self, key: &str) -> Result<(), CborError> {
        if self.text()? == key {
            Ok(())
        } else {
            Err(CborError)
        }
    }

    pub(crate) fn link(&mut self) -> Result<Cid, CborError> {
        if self.head(TAG)? != LINK {
            return Err(CborError);
        }
        let len = self.head(BYTES)?;
        if len > CID_BYTES_MAX as u64 + 1 {
            return Err(CborError);
        }
        let cid = self.take(len)?.strip_prefix(&[0]).ok_or(CborError)?;
        Cid::from_bytes(cid).map_err(|_| CborError)
    }

    pub(crate) fn links(&mut self) -> Result<Vec<Cid>, CborError> {
        let len = self.list()?;
        (0..len).map(|_| self.link()).collect()
    }

    fn counted(&mut self, major: u8, bytes_each: u64) -> Result<usize, CborError> {
        let len = self.head(major)?;
        if len.saturating_mul(bytes_each) > self.0.len() as u64 {
            return Err(CborError);
        }
        usize::try_from(len).map_err(|_| CborError)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], CborError> {
        let len = usize::try_from(len).map_err(|_| CborError)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CborError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn head(&mut self, major: u8) -> Result<u64, CborError> {
        let first = *self.take(1)?.first().ok_or(CborError)?;
        if first >> 5 != major {
            return Err(CborError);
        }
        let (value, least) = match first & 0x1f {
            low @ 0..=23 => (u64::from(low), 0),
            24 => (self.number(1)?, 24),
            25 => (self.number(2)?, 0x100),
            26 => (self.number(4)?, 0x1_0000),
            27 => (self.number(8)?, 0x1_0000_0000),
            _ => return Err(CborError),
        };
        // A shorter form would have done.
        if value < least {
            return Err(CborError);
        }
        Ok(value)
    }

    fn number(&mut self, len: u64) -> Result<u64, CborError> {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Ok(self.take(len)?.iter().fold(0, fold))
    }
}
