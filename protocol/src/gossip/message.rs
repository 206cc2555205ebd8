//! Messages of gossip and of the walk, byte for byte.
//!
//! Spec: `protocol/spec/gossip.md`, "Messages".

use bytes::Bytes;

use super::digest::{Key, Label, Path, TreeId};
use super::walk::{Item, LEAF_NIBBLES, Section, Step};
use crate::wire::{Malformed, Reader, Writer};

/// First byte of [`Message::Root`].
pub(super) const KIND_ROOT: u8 = 1;
/// First byte of [`Message::Step`].
pub(super) const KIND_STEP: u8 = 2;
/// First byte of [`Message::Entries`].
pub(super) const KIND_ENTRIES: u8 = 3;
/// First byte of [`Message::Spread`].
pub(super) const KIND_SPREAD: u8 = 4;
/// First byte of [`Message::Announce`].
pub(super) const KIND_ANNOUNCE: u8 = 5;
/// Largest entry that any message carries: the largest payload (1 MiB), its header and signature with room.
pub const ENTRY_BYTES_MAX: usize = (1 << 20) + (32 << 10);
/// Largest step: room for the differences of some thousand keys; a walk that finds more is taken up again.
pub const STEP_BYTES_MAX: usize = 256 << 10;
/// Most entries in a message.
const ENTRIES_MAX: usize = 4096;

/// The first bytes of an id: enough to tell entries under way apart, too few to be relied on.
pub type Tag = [u8; 4];

/// The tag of a key.
pub fn tag(key: &Key) -> Tag {
    *key.id.first_chunk().expect("32 bytes begin with 4")
}

/// One message, on the sync channel or published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// What a device's tree comes to. Both ways of sending.
    Root {
        /// Which tree.
        tree: TreeId,
        /// Its root.
        root: [u8; 32],
        /// How many keys it covers.
        count: u64,
    },
    /// A step of a walk. Sync channel.
    Step {
        /// Which tree.
        tree: TreeId,
        /// Whether it begins a walk.
        opening: bool,
        /// What the entries that are fetched are to be answered under.
        number: u32,
        /// The step.
        step: Step,
    },
    /// Entries that were fetched. Sync channel.
    Entries {
        /// The number of the step that fetched them.
        number: u32,
        /// Whether these are the last of them.
        last: bool,
        /// Each with the tag of its id.
        entries: Vec<(Tag, Bytes)>,
    },
    /// A new entry. Published.
    Spread {
        /// The key its author has it under.
        key: Key,
        /// The entry.
        entry: Bytes,
    },
    /// A new entry that is too large to be spread; its author gives it. Published.
    Announce(Key),
}

impl Message {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Root { tree, root, count } => {
                out.u8(KIND_ROOT);
                write_tree(&mut out, *tree);
                out.raw(root).u64(*count);
            }
            Self::Step {
                tree,
                opening,
                number,
                step,
            } => {
                out.u8(KIND_STEP);
                write_tree(&mut out, *tree);
                out.bool(*opening).u32(*number);
                write_step(&mut out, step);
            }
            Self::Entries {
                number,
                last,
                entries,
            } => {
                out.u8(KIND_ENTRIES)
                    .u32(*number)
                    .bool(*last)
                    .count_u32(entries.len());
                for (tag, entry) in entries {
                    out.raw(tag).bytes_u32(entry);
                }
            }
            Self::Spread { key, entry } => {
                out.u8(KIND_SPREAD).raw(&key.to_bytes()).bytes_u32(entry);
            }
            Self::Announce(key) => {
                out.u8(KIND_ANNOUNCE).raw(&key.to_bytes());
            }
        }
        out.finish()
    }

    /// Reads a message; entries stay slices of the same memory.
    ///
    /// # Errors
    /// [`Malformed`] if [`Message::encode`] would not have made these bytes.
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8()? {
            KIND_ROOT => Self::Root {
                tree: read_tree(&mut reader)?,
                root: reader.array()?,
                count: reader.u64()?,
            },
            KIND_STEP if bytes.len() > STEP_BYTES_MAX => {
                return Err(Malformed("longer than allowed"));
            }
            KIND_STEP => Self::Step {
                tree: read_tree(&mut reader)?,
                opening: reader.bool()?,
                number: reader.u32()?,
                step: read_step(&mut reader)?,
            },
            KIND_ENTRIES => {
                let (number, last) = (reader.u32()?, reader.bool()?);
                let count = reader.count_u32(ENTRIES_MAX, 8)?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push((reader.array()?, read_entry(&mut reader, bytes)?));
                }
                Self::Entries {
                    number,
                    last,
                    entries,
                }
            }
            KIND_SPREAD => Self::Spread {
                key: read_key(&mut reader)?,
                entry: read_entry(&mut reader, bytes)?,
            },
            KIND_ANNOUNCE => Self::Announce(read_key(&mut reader)?),
            _ => return Err(Malformed("message of no known kind")),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn write_tree(out: &mut Writer, tree: TreeId) {
    out.u8(tree.kind).u32(tree.generation);
}

fn read_tree(reader: &mut Reader<'_>) -> Result<TreeId, Malformed> {
    Ok(TreeId {
        kind: reader.u8()?,
        generation: reader.u32()?,
    })
}

fn read_key(reader: &mut Reader<'_>) -> Result<Key, Malformed> {
    Ok(Key::from_bytes(&reader.array()?))
}

fn read_entry(reader: &mut Reader<'_>, whole: &Bytes) -> Result<Bytes, Malformed> {
    Ok(whole.slice_ref(reader.bytes_u32(ENTRY_BYTES_MAX)?))
}

/// Writes a path as what it adds to the one before.
fn write_path(out: &mut Writer, before: &Path, path: &Path) {
    let shared = before.shared(path);
    out.u8(shared).u8(path.nibbles() - shared);
    let mut pending = None;
    for at in shared..path.nibbles() {
        match pending.take() {
            None => pending = Some(path.nibble(at) << 4),
            Some(high) => {
                out.u8(high | path.nibble(at));
            }
        }
    }
    if let Some(high) = pending {
        out.u8(high);
    }
}

fn read_path(reader: &mut Reader<'_>, before: &Path, nibbles_max: u8) -> Result<Path, Malformed> {
    let (shared, added) = (reader.u8()?, reader.u8()?);
    let len = shared.saturating_add(added);
    if shared > before.nibbles() || len > nibbles_max {
        return Err(Malformed("path longer than allowed"));
    }
    let packed = reader.take(usize::from(added).div_ceil(2))?;
    let mut bytes = *before.cut(shared).bytes();
    for (n, at) in (shared..len).enumerate() {
        let byte = packed.get(n / 2).copied().unwrap_or_default();
        let nibble = if n.is_multiple_of(2) {
            byte >> 4
        } else {
            byte & 0xf
        };
        if let Some(byte) = bytes.get_mut(usize::from(at / 2)) {
            *byte |= if at.is_multiple_of(2) {
                nibble << 4
            } else {
                nibble
            };
        }
    }
    let filling = packed.last().filter(|_| !added.is_multiple_of(2));
    if filling.is_some_and(|byte| byte & 0xf != 0) {
        return Err(Malformed("path not in its shortest form"));
    }
    let path = Path::from_parts(bytes, len).ok_or(Malformed("path not in its shortest form"))?;
    if before.shared(&path) != shared {
        return Err(Malformed("path not in its shortest form"));
    }
    Ok(path)
}

/// Refuses paths that are not in order or stand one within another.
fn in_order(before: Option<Path>, path: Path) -> Result<(), Malformed> {
    match before {
        Some(before) if before >= path || before.begins(&path) => {
            Err(Malformed("paths not in order"))
        }
        _ => Ok(()),
    }
}

fn write_items(out: &mut Writer, prefix: &Path, items: &[Item]) {
    out.count_u32(items.len());
    let mut before = *prefix;
    for item in items {
        write_path(out, &before, &item.path());
        if let Item::Node {
            magnitude, label, ..
        } = item
        {
            out.u8(*magnitude).raw(label);
        }
        before = item.path();
    }
}

fn read_items(reader: &mut Reader<'_>, prefix: &Path) -> Result<Vec<Item>, Malformed> {
    let count = reader.count_u32(usize::MAX, 2)?;
    let mut items = Vec::new();
    let mut before = None;
    for _ in 0..count {
        let path = read_path(reader, &before.unwrap_or(*prefix), LEAF_NIBBLES)?;
        in_order(before, path)?;
        if !prefix.begins(&path) {
            return Err(Malformed("item outside its section"));
        }
        before = Some(path);
        items.push(if path.nibbles() == LEAF_NIBBLES {
            Item::Leaf(path)
        } else {
            let magnitude = reader.u8()?;
            if !(2..=64).contains(&magnitude) {
                return Err(Malformed("magnitude out of range"));
            }
            let label: Label = reader.array()?;
            Item::Node {
                path,
                magnitude,
                label,
            }
        });
    }
    Ok(items)
}

fn write_step(out: &mut Writer, step: &Step) {
    out.count_u32(step.sections.len());
    let mut before = Path::ALL;
    for section in &step.sections {
        write_path(out, &before, &section.prefix);
        write_items(out, &section.prefix, &section.items);
        before = section.prefix;
    }
    write_items(out, &Path::ALL, &step.offers);
    out.count_u32(step.fetches.len());
    let mut before = Path::ALL;
    for path in &step.fetches {
        write_path(out, &before, path);
        before = *path;
    }
}

fn read_step(reader: &mut Reader<'_>) -> Result<Step, Malformed> {
    let mut step = Step::default();
    let count = reader.count_u32(usize::MAX, 6)?;
    let mut before = None;
    for _ in 0..count {
        let prefix = read_path(reader, &before.unwrap_or(Path::ALL), LEAF_NIBBLES - 1)?;
        in_order(before, prefix)?;
        before = Some(prefix);
        let items = read_items(reader, &prefix)?;
        step.sections.push(Section { prefix, items });
    }
    step.offers = read_items(reader, &Path::ALL)?;
    let count = reader.count_u32(usize::MAX, 2)?;
    let mut before = None;
    for _ in 0..count {
        let path = read_path(
            reader,
            &before.unwrap_or(Path::ALL),
            super::digest::KEY_NIBBLES,
        )?;
        in_order(before, path)?;
        before = Some(path);
        step.fetches.push(path);
    }
    Ok(step)
}

/// Vectors of messages, in the same file as those of the digest.
#[cfg(test)]
pub(super) fn vectors() -> Vec<serde_json::Value> {
    tests::vectors()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::digest::RadixTree;
    use super::super::walk;
    use super::*;

    fn key(n: u64) -> Key {
        Key {
            hlc: (1_700_000_000_000 + 1000 * n) << 16,
            id: *blake3::hash(&n.to_le_bytes()).as_bytes(),
        }
    }

    fn tree_of(numbers: impl IntoIterator<Item = u64>) -> RadixTree {
        let mut tree = RadixTree::default();
        for n in numbers {
            tree.insert(key(n));
        }
        tree
    }

    fn step(opening: bool, number: u32, step: Step) -> Message {
        Message::Step {
            tree: TreeId::default(),
            opening,
            number,
            step,
        }
    }

    fn samples() -> Vec<(&'static str, Message)> {
        let (a, b) = (
            tree_of((0..900).filter(|n| n % 400 != 3)),
            tree_of((0..900).filter(|n| n % 400 != 7)),
        );
        let opening = walk::opening(&a);
        let second = walk::answer(&b, &opening, 1 << 16, |_| true).step;
        let third = walk::answer(&a, &second, 1 << 16, |_| true).step;
        let fourth = walk::answer(&b, &third, 1 << 16, |_| true).step;
        assert!(third.asks() && !fourth.asks() && !fourth.fetches.is_empty());
        let root = Message::Root {
            tree: TreeId::default(),
            root: a.root(),
            count: a.len(),
        };
        let entries = Message::Entries {
            number: 7,
            last: true,
            entries: vec![
                (tag(&key(3)), Bytes::from_static(b"entry")),
                (tag(&key(4)), Bytes::new()),
            ],
        };
        vec![
            ("root", root),
            ("opening of a walk", step(true, 0, opening)),
            (
                "opening with nothing",
                step(true, 0, walk::opening(&RadixTree::default())),
            ),
            ("second step", step(false, 1, second)),
            ("third step", step(false, 2, third)),
            ("last step", step(false, 3, fourth)),
            ("entries", entries),
            (
                "spread",
                Message::Spread {
                    key: key(1),
                    entry: Bytes::from_static(b"entry"),
                },
            ),
            ("announce", Message::Announce(key(1))),
        ]
    }

    fn bad() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let header = [&[KIND_STEP][..], &[0; 5], &[0], &[0; 4]].concat();
        let fetches = |paths: &[u8], count: u8| {
            [&header[..], &[0; 4], &[0; 4], &[count, 0, 0, 0], paths].concat()
        };
        vec![
            ("no bytes", "ends too early", vec![]),
            ("kind 0", "message of no known kind", vec![0]),
            (
                "root cut off",
                "ends too early",
                samples()[0].1.encode()[..45].to_vec(),
            ),
            (
                "root with more",
                "trailing bytes",
                [samples()[0].1.encode(), vec![0]].concat(),
            ),
            (
                "opening neither 0 nor 1",
                "neither 0 nor 1",
                [&[KIND_STEP][..], &[0; 5], &[2], &[0; 16]].concat(),
            ),
            (
                "more fetches than bytes",
                "ends too early",
                fetches(&[], 255),
            ),
            (
                "path past 80 nibbles",
                "path longer than allowed",
                fetches(&[&[0, 81][..], &[0; 41]].concat(), 1),
            ),
            (
                "path shares more than there is",
                "path longer than allowed",
                fetches(&[1, 1, 0x10], 1),
            ),
            (
                "path with a dirty last half",
                "path not in its shortest form",
                fetches(&[0, 1, 0x11], 1),
            ),
            (
                "path shares less than it could",
                "path not in its shortest form",
                fetches(&[0, 2, 0x12, 0, 2, 0x13], 2),
            ),
            (
                "paths fall",
                "paths not in order",
                fetches(&[0, 2, 0x13, 1, 1, 0x20], 2),
            ),
            (
                "path within the one before",
                "paths not in order",
                fetches(&[0, 2, 0x13, 2, 1, 0x20], 2),
            ),
            (
                "path twice",
                "paths not in order",
                fetches(&[0, 2, 0x13, 2, 0], 2),
            ),
            (
                "node of one key",
                "magnitude out of range",
                [
                    &header[..],
                    &[0; 4],
                    &[1, 0, 0, 0],
                    &[0, 1, 0x10, 1],
                    &[0; 16],
                    &[0; 4],
                ]
                .concat(),
            ),
            (
                "item outside its section",
                "item outside its section",
                [
                    &header[..],
                    &[1, 0, 0, 0],
                    &[0, 1, 0x10],
                    &[1, 0, 0, 0],
                    &[0, 1, 0x20, 2],
                    &[0; 16],
                    &[0; 8],
                ]
                .concat(),
            ),
            (
                "section of a single key",
                "path longer than allowed",
                [
                    &header[..],
                    &[1, 0, 0, 0],
                    &[0, 48],
                    &[0; 24],
                    &[0; 4],
                    &[0; 8],
                ]
                .concat(),
            ),
        ]
    }

    pub(super) fn vectors() -> Vec<Value> {
        let good = samples().into_iter().map(|(name, message)| {
            let message = HEXLOWER.encode(&message.encode());
            json!({"name": format!("message: {name}"), "expect": "ok", "message": message})
        });
        let bad = bad().into_iter().map(|(name, error, bytes)| {
            json!({"name": format!("message: {name}"), "expect": error, "message": HEXLOWER.encode(&bytes)})
        });
        good.chain(bad).collect()
    }

    #[test]
    fn messages_come_back_as_they_were() {
        for (name, message) in samples() {
            let bytes = Bytes::from(message.encode());
            assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message), "{name}");
        }
    }

    #[test]
    fn bad_messages_are_refused_with_the_reason() {
        for (name, error, bytes) in bad() {
            assert_eq!(
                Message::decode(&bytes.into()),
                Err(Malformed(error)),
                "{name}"
            );
        }
    }

    static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let samples = samples().into_iter();
        samples.map(|(_, message)| message.encode()).collect()
    });

    proptest! {
        #[test]
        fn what_decodes_is_canonical(which in 0_usize..9, edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut in any::<Option<usize>>()) {
            let mut bytes = SAMPLES[which].clone();
            for (at, value) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut % (bytes.len() + 1));
            }
            let bytes = Bytes::from(bytes);
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_never_panic(kind in 0_u8..7, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from([vec![kind], bytes].concat());
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
