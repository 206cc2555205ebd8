//! Roots that this device keeps whatever retention says.
//!
//! Spec: `protocol/spec/garbage.md`, "Pins".

pub(crate) mod fetch;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use kith_crdt::names::{Kept, PATH_BYTES_MAX};
use kith_object::id::Cid;
use kith_object::key::DeviceKeys;
use kith_object::object::ObjectLink;
use kith_object::tree::FileKind;

use crate::config::{Home, HomeError, fresh_rng};

/// The side file with pins.
pub(crate) const PINS_FILE: &str = "pins";
/// Most pins of a device: each is one that a person typed, and all of them are written anew with each.
pub(crate) const PINS_MAX: usize = 65_536;
/// Most bytes that they take, names included: 256 for each.
const PINS_BYTES_MAX: usize = 16 << 20;
/// What sealing adds.
const SEAL_BYTES: usize = 24 + 16;
const MAGIC: &[u8; 8] = b"kithpin1";

/// Why pins could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The file is not what was written, or the system refused.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is no room for another.
    #[error(
        "there are as many pins as one device may have: {PINS_MAX}, or {PINS_BYTES_MAX} bytes of them"
    )]
    Full,
}

/// A pin, known by the digest of its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// The root.
    pub(crate) link: ObjectLink,
    /// What it is; a folder is the listing that stands for it.
    pub(crate) kind: FileKind,
    /// Bytes of all files in it, as far as it is known.
    pub(crate) size: u64,
    /// The path at which it was pinned; empty if it was pinned by its CID.
    pub(crate) name: Vec<u8>,
}

/// All pins of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pins(BTreeMap<[u8; 32], Pin>);

impl Pins {
    /// The pins, sorted by their roots, as they stand in the file; `None` if there are too many.
    fn encode(&self) -> Option<Vec<u8>> {
        let count = u32::try_from(self.0.len()).ok()?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&count.to_le_bytes());
        for pin in self.0.values() {
            bytes.extend_from_slice(&pin.link.encode());
            bytes.push(pin.kind as u8);
            bytes.extend_from_slice(&pin.size.to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(pin.name.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(&pin.name);
        }
        (self.0.len() <= PINS_MAX && bytes.len() <= PINS_BYTES_MAX).then_some(bytes)
    }

    /// Reads what [`Pins::encode`] wrote, and nothing else.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .filter(|_| bytes.len() <= PINS_BYTES_MAX)?;
        let count = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).ok()?;
        let mut pins = BTreeMap::new();
        for _ in 0..count {
            let link = take::<{ ObjectLink::BYTES }>(&mut rest)?;
            let link = ObjectLink::decode(&link).ok()?;
            let [kind] = take(&mut rest)?;
            let kind = FileKind::from_u8(kind)?;
            let size = u64::from_le_bytes(take(&mut rest)?);
            let len = usize::from(u16::from_le_bytes(take(&mut rest)?));
            let (name, after) = rest.split_at_checked(len)?;
            rest = after;
            let in_order = pins
                .last_key_value()
                .is_none_or(|(last, _)| *last < link.digest);
            if !in_order || name.len() > PATH_BYTES_MAX {
                return None;
            }
            let pin = Pin {
                kind,
                size,
                name: name.to_vec(),
                link,
            };
            pins.insert(pin.link.digest, pin);
        }
        (rest.is_empty() && pins.len() <= PINS_MAX).then_some(Self(pins))
    }

    /// The pin of that root.
    pub(crate) fn of(&self, cid: &Cid) -> Option<&Pin> {
        self.0.get(&cid.digest()?)
    }

    /// The roots that were pinned at a path: several if the path was pinned again with something else there.
    pub(crate) fn named(&self, name: &[u8]) -> Vec<Cid> {
        let found = self.0.values().filter(|pin| pin.name == name);
        found.map(|pin| pin.link.cid()).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Pin> {
        self.0.values()
    }

    /// Adds a pin, or puts it in the place of one of the same root.
    pub(crate) fn add(&mut self, pin: Pin) {
        self.0.insert(pin.link.digest, pin);
    }

    /// Notes how large a pinned thing is; one that is not pinned any more stays so.
    pub(crate) fn set_size(&mut self, cid: &Cid, size: u64) {
        let pin = cid.digest().and_then(|digest| self.0.get_mut(&digest));
        if let Some(pin) = pin {
            pin.size = size;
        }
    }

    /// Takes a pin out.
    pub(crate) fn remove(&mut self, cid: &Cid) -> Option<Pin> {
        self.0.remove(&cid.digest()?)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*head)
}

/// The pins on disk: changed one at a time, each change durable before it is told.
pub(crate) struct PinFile {
    home: Home,
    keys: DeviceKeys,
    turn: Mutex<()>,
}

impl PinFile {
    pub(crate) fn new(home: Home, keys: DeviceKeys) -> Self {
        Self {
            home,
            keys,
            turn: Mutex::default(),
        }
    }

    /// All pins; none if there is no file.
    ///
    /// A file that is damaged is an error and not an absence: whoever frees space must not take it for no pins.
    pub(crate) fn read(&self) -> Result<Pins, PinsError> {
        read(&self.home, &self.keys).map_err(PinsError::from)
    }

    /// The roots that must be kept.
    pub(crate) fn kept(&self) -> Result<Vec<Kept>, PinsError> {
        let kept = |pin: &Pin| Kept {
            link: pin.link.clone(),
            is_listing: pin.kind == FileKind::Folder,
        };
        Ok(self.read()?.all().map(kept).collect())
    }

    /// Changes the pins; nothing is changed unless it lasts.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Pins) -> T) -> Result<T, PinsError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read()?;
        let mut pins = before.clone();
        let outcome = change(&mut pins);
        if pins != before {
            let bytes = pins.encode().ok_or(PinsError::Full)?;
            self.home
                .write_sealed(PINS_FILE, &self.keys, &mut fresh_rng(), &bytes)?;
        }
        Ok(outcome)
    }
}

/// Reads the pins of a home.
pub(crate) fn read(home: &Home, keys: &DeviceKeys) -> Result<Pins, HomeError> {
    let most = (PINS_BYTES_MAX + SEAL_BYTES) as u64;
    let Some(bytes) = home.read_sealed_strictly(PINS_FILE, keys, most)? else {
        return Ok(Pins::default());
    };
    Pins::decode(&bytes).ok_or_else(|| HomeError::SideDamaged {
        path: home.path().join(PINS_FILE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;
    use kith_object::seal::BlockKey;
    use proptest::prelude::*;

    fn pin(byte: u8, name: &[u8]) -> Pin {
        Pin {
            link: ObjectLink {
                digest: [byte; 32],
                key: BlockKey::new([byte ^ 1; 32]),
                size: u64::from(byte) << 40,
            },
            kind: FileKind::from_u8(byte % 3).unwrap(),
            size: u64::from(byte),
            name: name.to_vec(),
        }
    }

    fn pins(list: impl IntoIterator<Item = Pin>) -> Pins {
        let mut pins = Pins::default();
        for pin in list {
            pins.add(pin);
        }
        pins
    }

    fn three() -> Pins {
        pins([pin(3, b""), pin(1, b"/a/b"), pin(2, b"/\xff")])
    }

    #[test]
    fn pins_are_known_by_root_and_by_name() {
        let mut pins = pins([pin(1, b"/a"), pin(2, b"/a"), pin(3, b"/b"), pin(4, b"")]);
        let cid = |byte| pin(byte, b"").link.cid();
        assert_eq!(pins.named(b"/a"), [cid(1), cid(2)]);
        assert_eq!(pins.of(&cid(3)).unwrap().name, b"/b");
        pins.add(pin(3, b"/c"));
        assert_eq!(pins.named(b"/b"), []);
        assert_eq!(pins.all().count(), 4);
        pins.set_size(&cid(3), 77);
        pins.set_size(&cid(9), 77);
        assert_eq!(pins.remove(&cid(3)).unwrap().size, 77);
        assert_eq!(pins.remove(&cid(3)), None);
        assert_eq!(pins.all().count(), 3);
    }

    #[test]
    fn layout_is_as_specified() {
        let bytes = pins([pin(1, b"/a")]).encode().unwrap();
        let mut expected = b"kithpin1\x01\0\0\0".to_vec();
        expected.extend([1; 32]);
        expected.extend([0; 32]);
        expected.extend((1u64 << 40).to_le_bytes());
        expected.push(1);
        expected.extend(1u64.to_le_bytes());
        expected.extend(b"\x02\0/a");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn file_is_read_only_as_it_was_written() {
        let good = three().encode().unwrap();
        assert_eq!(Pins::decode(&good), Some(three()));
        for len in 0..good.len() {
            assert_eq!(Pins::decode(&good[..len]), None, "cut to {len}");
        }
        assert_eq!(Pins::decode(&[&good[..], &[0]].concat()), None);
        // Twice the same root, and two in the wrong order.
        let one = |byte| pins([pin(byte, b"")]).encode().unwrap()[12..].to_vec();
        for (first, second) in [(1, 1), (2, 1)] {
            let bytes = [&MAGIC[..], &[2, 0, 0, 0], &one(first), &one(second)].concat();
            assert_eq!(Pins::decode(&bytes), None);
        }
        let ordered = [&MAGIC[..], &[2, 0, 0, 0], &one(1), &one(2)].concat();
        assert!(Pins::decode(&ordered).is_some());
        // More pins than bytes could hold.
        assert_eq!(Pins::decode(b"kithpin1\xff\xff\xff\xff"), None);
    }

    #[test]
    fn too_many_are_refused_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let keys = DeviceKeys::generate(&mut Rng::from_seed([1; 32]));
        let file = PinFile::new(home, keys);
        let root = |number: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let mut pin = pin(1, b"");
            pin.link.digest = digest;
            pin
        };
        file.change(|pins| (0..PINS_MAX).for_each(|number| pins.add(root(number))))
            .unwrap();
        let more = file.change(|pins| pins.add(root(PINS_MAX)));
        assert!(matches!(more, Err(PinsError::Full)));
        assert_eq!(file.read().unwrap().all().count(), PINS_MAX);
        // Fewer of them, with the longest names.
        let long = vec![b'x'; PATH_BYTES_MAX];
        let longer = file.change(|pins| {
            for number in 0..600 {
                pins.add(Pin {
                    name: long.clone(),
                    ..root(number)
                });
            }
        });
        assert!(matches!(longer, Err(PinsError::Full)));
        assert_eq!(file.kept().unwrap().len(), PINS_MAX);
    }

    #[test]
    fn damaged_file_is_not_taken_for_no_pins() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let keys = DeviceKeys::generate(&mut Rng::from_seed([1; 32]));
        let file = PinFile::new(home.clone(), keys.clone());
        assert_eq!(file.kept().unwrap(), []);
        file.change(|pins| *pins = three()).unwrap();
        assert_eq!(file.read().unwrap(), three());
        let kept = file.kept().unwrap();
        let listings: Vec<bool> = kept.iter().map(|kept| kept.is_listing).collect();
        assert_eq!(listings, [true, false, false]);
        // Sound as a seal, and no pins.
        home.write_sealed(PINS_FILE, &keys, &mut fresh_rng(), b"else")
            .unwrap();
        assert!(file.kept().is_err());
        assert!(file.change(|pins| pins.add(pin(9, b""))).is_err());
        home.write_whole(PINS_FILE, b"short").unwrap();
        assert!(matches!(
            file.kept(),
            Err(PinsError::Home(HomeError::SideDamaged { .. }))
        ));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(list in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)), 0..20)) {
            let pins = pins(list.iter().map(|(byte, name)| pin(*byte, name)));
            prop_assert_eq!(Pins::decode(&pins.encode().unwrap()), Some(pins));
        }

        #[test]
        fn random_bytes_are_read_only_if_they_are_written_so(tail in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..5, with_magic: bool) {
            let mut bytes = if with_magic { [&MAGIC[..], &count.to_le_bytes()].concat() } else { Vec::new() };
            bytes.extend(tail);
            if let Some(pins) = Pins::decode(&bytes) {
                prop_assert_eq!(pins.encode(), Some(bytes));
            }
        }

        #[test]
        fn mutated_bytes_are_read_as_what_they_say(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(), cuts: bool) {
            let mut bytes = three().encode().unwrap();
            for (at, to) in edits {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Some(pins) = Pins::decode(&bytes) {
                prop_assert_eq!(pins.encode(), Some(bytes));
            }
        }
    }
}
