//! The listing of a folder in a snapshot. Listings are objects of their own, so a folder's CID names all below it.

use crate::object::{LinkError, ObjectLink};

/// Longest name, as on the file systems it comes from.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest listing, about two million entries. Who reads one checks [`ObjectLink::size`] against this first.
pub const TREE_BYTES_MAX: u64 = 256 << 20;

/// Deepest folder. Who restores a snapshot stops there: a malicious member can nest folders without end at little cost.
pub const TREE_DEPTH_MAX: usize = 255;

/// Permission bits that a listing keeps: those of `chmod`.
pub const MODE_MASK: u32 = 0o7777;

const VERSION: u8 = 1;
/// Version and count.
const HEADER_BYTES: usize = 5;
/// Kind, mode, mtime, link: what follows the name.
const FIXED_BYTES: usize = 1 + 4 + 8 + ObjectLink::BYTES;

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Bytes.
    File = 0,
    /// Names.
    Folder = 1,
    /// A path, kept as it was found and never followed.
    Symlink = 2,
}

impl FileKind {
    /// The kind of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::File),
            1 => Some(Self::Folder),
            2 => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// One name in a folder.
///
/// Spec: `protocol/spec/tree.md`, "Listing".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Any bytes that [`is_name`] accepts.
    pub name: Vec<u8>,
    /// What the link leads to.
    pub kind: FileKind,
    /// Permission bits; those outside [`MODE_MASK`] are not kept.
    pub mode: u32,
    /// When the content last changed: milliseconds since 1970.
    pub mtime_ms: u64,
    /// A file's bytes, a folder's listing, a symlink's target.
    pub link: ObjectLink,
}

/// Why something is not a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Of a later version, or something else.
    #[error("listing is of an unknown version")]
    Version,
    /// Ends too early, goes on too long, or counts wrongly.
    #[error("listing counts its entries wrongly")]
    Count,
    /// A name that no folder may hold.
    #[error("listing has an impossible name")]
    Name,
    /// Names out of order, or one twice.
    #[error("listing has its names out of order")]
    Order,
    /// An unknown kind, or mode bits that are no permissions.
    #[error("listing has an entry of unknown kind or mode")]
    Kind,
    /// Above [`TREE_BYTES_MAX`].
    #[error("listing is too long")]
    TooLong,
}

/// Whether these bytes may be a name: 1 to [`NAME_BYTES_MAX`] of any but `/` and NUL, and neither `.` nor `..`.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Writes a listing; the entries may come in any order.
///
/// # Errors
/// [`TreeError::Name`] for an impossible name, [`TreeError::Order`] if one comes twice, [`TreeError::TooLong`] for millions of entries.
pub fn encode(entries: &[TreeEntry]) -> Result<Vec<u8>, TreeError> {
    let mut sorted: Vec<&TreeEntry> = entries.iter().collect();
    sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if sorted
        .windows(2)
        .any(|pair| matches!(pair, [a, b] if a.name == b.name))
    {
        return Err(TreeError::Order);
    }
    let names: usize = sorted.iter().map(|entry| entry.name.len()).sum();
    let len = HEADER_BYTES + sorted.len() * (1 + FIXED_BYTES) + names;
    let count = u32::try_from(sorted.len()).map_err(|_| TreeError::TooLong)?;
    if len as u64 > TREE_BYTES_MAX {
        return Err(TreeError::TooLong);
    }
    let mut bytes = Vec::with_capacity(len);
    bytes.push(VERSION);
    bytes.extend_from_slice(&count.to_le_bytes());
    for entry in sorted {
        let name_len = u8::try_from(entry.name.len())
            .ok()
            .filter(|_| is_name(&entry.name));
        bytes.push(name_len.ok_or(TreeError::Name)?);
        bytes.extend_from_slice(&entry.name);
        bytes.push(entry.kind as u8);
        bytes.extend_from_slice(&(entry.mode & MODE_MASK).to_le_bytes());
        bytes.extend_from_slice(&entry.mtime_ms.to_le_bytes());
        bytes.extend_from_slice(&entry.link.encode());
    }
    Ok(bytes)
}

/// Reads a listing; the names come in order.
///
/// # Errors
/// [`TreeError`] for any bytes that [`encode`] would not write.
pub fn decode(bytes: &[u8]) -> Result<Vec<TreeEntry>, TreeError> {
    if bytes.len() as u64 > TREE_BYTES_MAX {
        return Err(TreeError::TooLong);
    }
    let Some(([version, count @ ..], mut rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(TreeError::Count);
    };
    if *version != VERSION {
        return Err(TreeError::Version);
    }
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| TreeError::Count)?;
    // An entry takes at least these bytes, so a lie about the count allocates nothing.
    if count > rest.len() / (2 + FIXED_BYTES) {
        return Err(TreeError::Count);
    }
    let mut entries: Vec<TreeEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, after) = decode_entry(rest)?;
        if entries
            .last()
            .is_some_and(|before| before.name >= entry.name)
        {
            return Err(TreeError::Order);
        }
        entries.push(entry);
        rest = after;
    }
    if rest.is_empty() {
        Ok(entries)
    } else {
        Err(TreeError::Count)
    }
}

fn decode_entry(bytes: &[u8]) -> Result<(TreeEntry, &[u8]), TreeError> {
    let (name_len, rest) = bytes.split_first().ok_or(TreeError::Count)?;
    let (name, rest) = rest
        .split_at_checked(usize::from(*name_len))
        .ok_or(TreeError::Count)?;
    if !is_name(name) {
        return Err(TreeError::Name);
    }
    let (fixed, after) = rest
        .split_first_chunk::<FIXED_BYTES>()
        .ok_or(TreeError::Count)?;
    let [
        kind,
        m0,
        m1,
        m2,
        m3,
        t0,
        t1,
        t2,
        t3,
        t4,
        t5,
        t6,
        t7,
        link @ ..,
    ] = fixed;
    let mode = u32::from_le_bytes([*m0, *m1, *m2, *m3]);
    if mode & !MODE_MASK != 0 {
        return Err(TreeError::Kind);
    }
    let entry = TreeEntry {
        name: name.to_vec(),
        kind: FileKind::from_u8(*kind).ok_or(TreeError::Kind)?,
        mode,
        mtime_ms: u64::from_le_bytes([*t0, *t1, *t2, *t3, *t4, *t5, *t6, *t7]),
        link: ObjectLink::decode(link).map_err(|LinkError| TreeError::Count)?,
    };
    Ok((entry, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::seal::BlockKey;
    use crate::seal::vectors::{bytes, hex, load};

    fn entry(name: &[u8], kind: FileKind) -> TreeEntry {
        TreeEntry {
            name: name.to_vec(),
            kind,
            mode: 0o644,
            mtime_ms: 1_700_000_000_000,
            link: ObjectLink {
                digest: [1; 32],
                key: BlockKey::new([2; 32]),
                size: 3,
            },
        }
    }

    /// An entry's bytes with nothing checked.
    fn raw(name: &[u8], kind: u8, mode: u32) -> Vec<u8> {
        let mut bytes = vec![name.len() as u8];
        bytes.extend_from_slice(name);
        bytes.push(kind);
        bytes.extend_from_slice(&mode.to_le_bytes());
        bytes.extend_from_slice(&[0; 8 + ObjectLink::BYTES]);
        bytes
    }

    fn listing(version: u8, count: u32, entries: &[Vec<u8>]) -> Vec<u8> {
        [&[version][..], &count.to_le_bytes(), &entries.concat()].concat()
    }

    fn words(error: TreeError) -> &'static str {
        match error {
            TreeError::Version => "version",
            TreeError::Count => "count",
            TreeError::Name => "name",
            TreeError::Order => "order",
            TreeError::Kind => "kind",
            TreeError::TooLong => "too long",
        }
    }

    #[test]
    fn order_of_entries_is_invisible() {
        let entries = [
            entry(b"b", FileKind::File),
            entry(b"a", FileKind::Folder),
            entry(b"\xff", FileKind::Symlink),
        ];
        let mut reversed = entries.clone();
        reversed.reverse();
        assert_eq!(encode(&entries), encode(&reversed));
        let names: Vec<_> = decode(&encode(&entries).unwrap())
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, [b"a".to_vec(), b"b".to_vec(), b"\xff".to_vec()]);
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert_eq!(encode(&[entry(name, FileKind::File)]), Err(TreeError::Name));
        }
        assert!(
            encode(&[
                entry(&[b'x'; 255], FileKind::File),
                entry(b"...", FileKind::File)
            ])
            .is_ok()
        );
        assert_eq!(
            encode(&[entry(b"a", FileKind::File), entry(b"a", FileKind::Folder)]),
            Err(TreeError::Order)
        );
    }

    #[test]
    fn bits_that_are_no_permissions_are_not_kept() {
        let listing = encode(&[TreeEntry {
            mode: 0o100_755,
            ..entry(b"a", FileKind::File)
        }])
        .unwrap();
        assert_eq!(decode(&listing).unwrap()[0].mode, 0o755);
    }

    fn made() -> Vec<Value> {
        let good = |name: &str, entries: &[TreeEntry]| {
            let listing = encode(entries).unwrap();
            let fields = decode(&listing).unwrap().into_iter().map(|entry| {
                json!({
                    "name": hex(&entry.name), "kind": entry.kind as u8, "mode": entry.mode, "mtime_ms": entry.mtime_ms,
                    "digest": hex(&entry.link.digest), "key": hex(entry.link.key.expose()), "size": entry.link.size,
                })
            });
            json!({"name": name, "expect": "ok", "listing": hex(&listing), "entries": fields.collect::<Vec<_>>()})
        };
        let bad = |name: &str, expect: &str, listing: &[u8]| json!({"name": name, "expect": expect, "listing": hex(listing)});
        let one = raw(b"a", 0, 0);
        vec![
            good("empty folder", &[]),
            good("one file", &[entry(b"lake.jpg", FileKind::File)]),
            good(
                "all kinds",
                &[
                    entry(b"b", FileKind::Folder),
                    entry(b"a", FileKind::File),
                    entry(b"c", FileKind::Symlink),
                ],
            ),
            good(
                "names that are no text",
                &[
                    entry(b"\xff\n", FileKind::File),
                    entry(b"...", FileKind::File),
                ],
            ),
            good(
                "prefix comes first",
                &[
                    entry(b"ab", FileKind::File),
                    entry(b"a", FileKind::File),
                    entry(b"a.", FileKind::File),
                ],
            ),
            bad("no bytes", "count", &[]),
            bad("version 2", "version", &listing(2, 0, &[])),
            bad(
                "count too high",
                "count",
                &listing(1, 2, std::slice::from_ref(&one)),
            ),
            bad(
                "count of four thousand million",
                "count",
                &listing(1, u32::MAX, std::slice::from_ref(&one)),
            ),
            bad(
                "count too low",
                "count",
                &listing(1, 0, std::slice::from_ref(&one)),
            ),
            bad(
                "entry cut short",
                "count",
                &listing(1, 1, &[one[..one.len() - 1].to_vec()]),
            ),
            bad(
                "one byte more",
                "count",
                &listing(1, 1, &[one.clone(), vec![0]]),
            ),
            bad(
                "empty name",
                "name",
                &listing(1, 1, &[raw(b"", 0, 0), vec![0]]),
            ),
            bad(
                "name with a slash",
                "name",
                &listing(1, 1, &[raw(b"a/b", 0, 0)]),
            ),
            bad(
                "name with a zero byte",
                "name",
                &listing(1, 1, &[raw(b"a\0b", 0, 0)]),
            ),
            bad(
                "name of the folder itself",
                "name",
                &listing(1, 1, &[raw(b".", 0, 0)]),
            ),
            bad(
                "name of the folder above",
                "name",
                &listing(1, 1, &[raw(b"..", 0, 0)]),
            ),
            bad(
                "out of order",
                "order",
                &listing(1, 2, &[raw(b"b", 0, 0), one.clone()]),
            ),
            bad(
                "same name twice",
                "order",
                &listing(1, 2, &[one.clone(), one]),
            ),
            bad("unknown kind", "kind", &listing(1, 1, &[raw(b"a", 3, 0)])),
            bad(
                "mode beyond permissions",
                "kind",
                &listing(1, 1, &[raw(b"a", 0, 0o10000)]),
            ),
        ]
    }

    #[test]
    fn vectors_decode_as_they_say() {
        for vector in load("tree", &made()) {
            let listing = bytes(&vector["listing"]);
            match decode(&listing) {
                Ok(entries) => {
                    assert_eq!(vector["expect"], "ok", "{}", vector["name"]);
                    assert_eq!(encode(&entries).unwrap(), listing);
                    assert_eq!(entries.len(), vector["entries"].as_array().unwrap().len());
                }
                Err(error) => assert_eq!(vector["expect"], words(error), "{}", vector["name"]),
            }
        }
    }

    fn any_entry() -> impl Strategy<Value = TreeEntry> {
        let name = proptest::collection::vec(any::<u8>(), 0..20);
        (
            name,
            0u8..3,
            any::<u32>(),
            any::<u64>(),
            any::<[u8; 32]>(),
            any::<u64>(),
        )
            .prop_map(|(name, kind, mode, mtime_ms, digest, size)| TreeEntry {
                name,
                kind: FileKind::from_u8(kind).unwrap(),
                mode: mode & MODE_MASK,
                mtime_ms,
                link: ObjectLink {
                    digest,
                    key: BlockKey::new(digest),
                    size,
                },
            })
    }

    proptest! {
        #[test]
        fn whatever_encodes_decodes(mut entries in proptest::collection::vec(any_entry(), 0..20)) {
            if let Ok(listing) = encode(&entries) {
                entries.sort_by(|a, b| a.name.cmp(&b.name));
                prop_assert_eq!(decode(&listing), Ok(entries));
            }
        }

        #[test]
        fn altered_listing_is_refused_or_canonical(entries in proptest::collection::vec(any_entry(), 0..5), at: prop::sample::Index, byte: u8) {
            let Ok(mut listing) = encode(&entries) else { return Ok(()) };
            let at = at.index(listing.len());
            listing[at] = byte;
            if let Ok(entries) = decode(&listing) {
                prop_assert_eq!(encode(&entries).unwrap(), listing);
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(entries) = decode(&bytes) {
                prop_assert_eq!(encode(&entries).unwrap(), bytes);
            }
        }
    }
}
