//! One version of an inode, byte for byte.

use std::fmt;
use std::str::FromStr;

use kith_object::id::{DeviceId, EntryId, InodeId};
use kith_object::object::ObjectLink;
use kith_object::time::Hlc;
use kith_object::tree::{FileKind, MODE_MASK, NAME_BYTES_MAX, is_name};

/// The root folder: always there, without a version of its own.
pub const ROOT: InodeId = InodeId([0; 16]);

/// Most versions that one record replaces: its count is one byte. More heads than that stay a conflict for another record.
pub const REPLACES_MAX: usize = 255;

/// Record type of a version.
const TYPE_VERSION: u16 = 1;
const FLAG_KIND: u8 = 0b0011;
const FLAG_DELETED: u8 = 0b0100;
const FLAG_LINK: u8 = 0b1000;

/// Longest record in bytes.
pub const RECORD_BYTES_MAX: usize =
    6 + 1 + 16 + 16 + 4 + 8 + 1 + NAME_BYTES_MAX + 1 + REPLACES_MAX * 36 + ObjectLink::BYTES;

/// A version, named by the entry that brought it and its place among the records of that entry.
///
/// Spec: `protocol/spec/names.md`, "Version".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VersionId {
    /// The entry.
    pub entry: EntryId,
    /// Which of its records, counted from zero.
    pub index: u32,
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.entry, self.index)
    }
}

/// The text does not name a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version: 64 hexadecimal digits, a point and a number are expected")]
pub struct VersionIdError;

impl FromStr for VersionId {
    type Err = VersionIdError;

    fn from_str(text: &str) -> Result<Self, VersionIdError> {
        let (entry, index) = text.split_once('.').ok_or(VersionIdError)?;
        let version = Self {
            entry: entry.parse().map_err(|_| VersionIdError)?,
            index: index.parse().map_err(|_| VersionIdError)?,
        };
        // Neither signs nor leading zeros: one text for one version.
        if version.to_string() == text {
            Ok(version)
        } else {
            Err(VersionIdError)
        }
    }
}

/// What the entry around a version says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionInfo {
    /// The version's name.
    pub id: VersionId,
    /// Who wrote it.
    pub author: DeviceId,
    /// When, as far as clocks tell; later stamps win where one has to.
    pub hlc: Hlc,
}

/// A version of an inode: where it stands and what it holds.
///
/// Spec: `protocol/spec/names.md`, "Version".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The file, folder or symlink of which this is a version; never [`ROOT`].
    pub inode: InodeId,
    /// The versions of the same inode that this one takes the place of; sorted, unique.
    pub replaces: Vec<VersionId>,
    /// The folder it stands in; never itself.
    pub parent: InodeId,
    /// Its name there.
    pub name: Vec<u8>,
    /// File, folder or symlink.
    pub kind: FileKind,
    /// Its bytes: always there for a file or symlink unless deleted; for a folder the snapshot made by the put, if any.
    pub link: Option<ObjectLink>,
    /// Time of last change on the file system it came from, milliseconds since 1970.
    pub mtime_ms: u64,
    /// Permission bits, within [`MODE_MASK`].
    pub mode: u32,
    /// It was removed. A removed version keeps its place and holds nothing.
    pub deleted: bool,
}

/// Why bytes are not a version, or a version may not be written so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record of a type that this program does not know: kept by the entry, ignored here.
    #[error("record type {0} is not known")]
    UnknownType(u16),
    /// Cut short, too long, or bytes left over.
    #[error("record has a wrong length")]
    Length,
    /// Some value is not written the one way it may be.
    #[error("record is not canonical: {0}")]
    NotCanonical(&'static str),
}

impl Record {
    /// The size of the bytes in it; zero for a folder or a removed version.
    pub fn size(&self) -> u64 {
        match (&self.link, self.kind) {
            (Some(link), FileKind::File | FileKind::Symlink) => link.size,
            _ => 0,
        }
    }

    /// Checks the rules that every version keeps.
    ///
    /// # Errors
    /// [`RecordError::NotCanonical`] names the broken rule.
    pub fn check(&self) -> Result<(), RecordError> {
        let rule = |held: bool, broken: &'static str| {
            if held {
                Ok(())
            } else {
                Err(RecordError::NotCanonical(broken))
            }
        };
        rule(self.inode != ROOT, "a version of the root")?;
        rule(self.parent != self.inode, "inside itself")?;
        rule(is_name(&self.name), "name")?;
        rule(self.mode & !MODE_MASK == 0, "mode")?;
        rule(
            self.replaces.len() <= REPLACES_MAX,
            "too many versions replaced",
        )?;
        rule(
            self.replaces.is_sorted_by(|a, b| a < b),
            "order of versions replaced",
        )?;
        match (self.deleted, self.kind) {
            (true, _) => rule(self.link.is_none(), "deleted but with bytes"),
            (false, FileKind::File | FileKind::Symlink) => {
                rule(self.link.is_some(), "without bytes")
            }
            (false, FileKind::Folder) => Ok(()),
        }
    }

    /// The bytes of the record.
    ///
    /// # Errors
    /// [`RecordError::NotCanonical`] if [`Record::check`] fails.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut flags = self.kind as u8;
        if self.deleted {
            flags |= FLAG_DELETED;
        }
        if self.link.is_some() {
            flags |= FLAG_LINK;
        }
        let mut body = Vec::with_capacity(160 + self.name.len() + 36 * self.replaces.len());
        body.push(flags);
        body.extend_from_slice(&self.inode.0);
        body.extend_from_slice(&self.parent.0);
        body.extend_from_slice(&self.mode.to_le_bytes());
        body.extend_from_slice(&self.mtime_ms.to_le_bytes());
        body.push(u8::try_from(self.name.len()).expect("checked to be at most 255"));
        body.extend_from_slice(&self.name);
        body.push(u8::try_from(self.replaces.len()).expect("checked to be at most 255"));
        for version in &self.replaces {
            body.extend_from_slice(&version.entry.0);
            body.extend_from_slice(&version.index.to_le_bytes());
        }
        if let Some(link) = &self.link {
            body.extend_from_slice(&link.encode());
        }
        let mut record = Vec::with_capacity(6 + body.len());
        record.extend_from_slice(&TYPE_VERSION.to_le_bytes());
        record.extend_from_slice(
            &u32::try_from(body.len())
                .expect("far below 4 GiB")
                .to_le_bytes(),
        );
        record.extend_from_slice(&body);
        Ok(record)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`]; whatever [`Record::encode`] would write otherwise is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let kind = u16::from_le_bytes(reader.array()?);
        let len = u32::from_le_bytes(reader.array()?);
        if usize::try_from(len).ok() != Some(reader.0.len()) {
            return Err(RecordError::Length);
        }
        if kind != TYPE_VERSION {
            return Err(RecordError::UnknownType(kind));
        }
        let [flags] = reader.array()?;
        if flags & !(FLAG_KIND | FLAG_DELETED | FLAG_LINK) != 0 {
            return Err(RecordError::NotCanonical("flags"));
        }
        let kind = FileKind::from_u8(flags & FLAG_KIND).ok_or(RecordError::NotCanonical("kind"))?;
        let inode = InodeId(reader.array()?);
        let parent = InodeId(reader.array()?);
        let mode = u32::from_le_bytes(reader.array()?);
        let mtime_ms = u64::from_le_bytes(reader.array()?);
        let [name_len] = reader.array()?;
        let name = reader.take(usize::from(name_len))?.to_vec();
        let [count] = reader.array()?;
        let mut replaces = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let entry = EntryId(reader.array()?);
            let index = u32::from_le_bytes(reader.array()?);
            replaces.push(VersionId { entry, index });
        }
        let link = if flags & FLAG_LINK == 0 {
            None
        } else {
            Some(
                ObjectLink::decode(reader.take(ObjectLink::BYTES)?)
                    .map_err(|_| RecordError::Length)?,
            )
        };
        if !reader.0.is_empty() {
            return Err(RecordError::Length);
        }
        let record = Self {
            inode,
            replaces,
            parent,
            name,
            kind,
            link,
            mtime_ms,
            mode,
            deleted: flags & FLAG_DELETED != 0,
        };
        record.check()?;
        Ok(record)
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecordError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(RecordError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::seal::BlockKey;
    use proptest::prelude::*;

    prop_compose! {
        fn any_version()(entry: [u8; 32], index: u32) -> VersionId {
            VersionId { entry: EntryId(entry), index }
        }
    }

    prop_compose! {
        fn any_record()(
            inode: [u8; 16],
            parent: [u8; 16],
            replaces in proptest::collection::btree_set(any_version(), 0..4),
            name in proptest::collection::vec(any::<u8>(), 1..40),
            kind in 0_u8..3,
            link in proptest::option::of((any::<[u8; 32]>(), any::<[u8; 32]>(), any::<u64>())),
            mtime_ms: u64,
            mode in 0..=MODE_MASK,
            deleted: bool,
        ) -> Record {
            Record {
                inode: InodeId(inode),
                replaces: replaces.into_iter().collect(),
                parent: InodeId(parent),
                name,
                kind: FileKind::from_u8(kind).unwrap(),
                link: link.map(|(digest, key, size)| ObjectLink { digest, key: BlockKey::new(key), size }),
                mtime_ms,
                mode,
                deleted,
            }
        }
    }

    #[test]
    fn longest_record_is_as_long_as_said() {
        let version = |index| VersionId {
            entry: EntryId([1; 32]),
            index,
        };
        let record = Record {
            inode: InodeId([1; 16]),
            replaces: (0..255).map(version).collect(),
            parent: ROOT,
            name: vec![b'x'; 255],
            kind: FileKind::File,
            link: Some(ObjectLink {
                digest: [2; 32],
                key: BlockKey::new([3; 32]),
                size: 4,
            }),
            mtime_ms: 5,
            mode: 0o644,
            deleted: false,
        };
        assert_eq!(record.encode().unwrap().len(), RECORD_BYTES_MAX);
        let mut more = record.clone();
        more.replaces.push(version(255));
        assert!(more.encode().is_err());
    }

    #[test]
    fn version_text_is_one_for_each() {
        let version = VersionId {
            entry: EntryId([0xab; 32]),
            index: 7,
        };
        let text = version.to_string();
        assert_eq!(text.parse(), Ok(version));
        let entry = "ab".repeat(32);
        for wrong in [
            entry.clone(),
            format!("{entry}."),
            format!("{entry}.07"),
            format!("{entry}.+7"),
            ".7".into(),
            String::new(),
        ] {
            assert_eq!(wrong.parse::<VersionId>(), Err(VersionIdError), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(record in any_record()) {
            match record.encode() {
                Ok(bytes) => prop_assert_eq!(Record::decode(&bytes), Ok(record)),
                Err(_) => prop_assert!(record.check().is_err()),
            }
        }

        #[test]
        fn altered_records_are_refused_or_canonical(record in any_record(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let Ok(mut bytes) = record.encode() else { return Ok(()) };
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode().unwrap(), bytes.clone());
            }
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Record::decode(&bytes);
            let _ = String::from_utf8_lossy(&bytes).parse::<VersionId>();
        }
    }
}
