//! Signed entries: the links of a device's chains, one header and one detachable payload each.
//!
//! Spec: `protocol/spec/chain.md`, "Entry".

mod entry;
mod header;
mod part;
pub(crate) mod read;
mod record;

pub use entry::{ENTRY_BYTES_MAX, Entry, EntryError};
pub use header::{ACCESS_HEADS_MAX, DEPENDENCIES_MAX, DocumentKind, Header, HeaderError, Nonce};
pub use part::{
    Codec, PARTS_MAX, PAYLOAD_BYTES_MAX, Part, PartError, Plain, SealKind, padded_len, parts,
    payload_root,
};
pub(crate) use part::{Draft, SealKeys, fresh_nonce};
pub use record::{RECORD_OVERHEAD, Record, RecordError, push_record, records};

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kith_object::id::{EntryId, EpochId, SpaceId};
    use kith_object::key::{DeviceKeys, Rng, Secret};
    use kith_object::time::Hlc;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn header(heads: u8, dependencies: u8, seq: u64) -> Header {
        let ids = |first: u8, count: u8| (0..count).map(|n| EntryId([first + n; 32])).collect();
        Header {
            space: SpaceId([1; 32]),
            document: DocumentKind::Names,
            author: DeviceKeys::generate(&mut Rng::from_seed([2; 32])).id(),
            nonce: Nonce([3; 16]),
            seq,
            previous: EntryId([u8::from(seq > 0) * 4; 32]),
            hlc: Hlc(5),
            epoch: EpochId([6; 32]),
            payload_len: 0,
            payload_root: [0; 32],
            access_heads: ids(10, heads),
            dependencies: ids(30, dependencies),
        }
    }

    fn entry(header: Header, bodies: &[Vec<u8>]) -> Entry {
        let mut rng = Rng::from_seed([7; 32]);
        let keys = DeviceKeys::generate(&mut Rng::from_seed([2; 32]));
        let (holder, change) = (Secret::new([8; 32]), Secret::new([9; 32]));
        let seals = [SealKind::Open, SealKind::Holder, SealKind::Change];
        let parts = bodies
            .iter()
            .zip(seals.into_iter().cycle())
            .map(|(body, seal)| {
                let plain = Plain {
                    codec: Codec::Records,
                    body: Zeroizing::new(body.clone()),
                };
                (seal, plain)
            });
        let draft = Draft {
            header,
            parts: parts.collect(),
        };
        let sealing = SealKeys {
            holder: Some(&holder),
            change: Some(&change),
        };
        draft.seal(sealing, keys.sign_key(), &mut rng).unwrap()
    }

    #[test]
    fn sealed_part_opens_in_its_place_only() {
        let made = entry(header(1, 0, 0), &[vec![1; 10], vec![2; 1000], vec![3; 10]]);
        let parts = made.parts().unwrap();
        let (holder, change) = (Secret::new([8; 32]), Secret::new([9; 32]));
        let open = |index: usize, count, key| parts[index].open(made.header(), index, count, key);
        assert_eq!(
            open(1, 3, Some(&holder)).unwrap().body.as_slice(),
            [2; 1000]
        );
        assert_eq!(open(2, 3, Some(&change)).unwrap().body.as_slice(), [3; 10]);
        assert!(open(1, 3, Some(&change)).is_none() && open(1, 3, None).is_none());
        assert!(open(1, 4, Some(&holder)).is_none());
        assert!(parts[1].open(made.header(), 2, 3, Some(&holder)).is_none());
        let mut moved = made.header().clone();
        moved.hlc = Hlc(6);
        assert!(parts[1].open(&moved, 1, 3, Some(&holder)).is_none());
        // What was sealed does not show its length to the byte.
        assert_eq!(parts[1].bytes.len(), 24 + padded_len(1005) + 16);
        assert!(padded_len(1005) > 1005);
    }

    #[test]
    fn padding_follows_padme() {
        let known = [
            (0, 0),
            (1, 1),
            (2, 2),
            (9, 10),
            (100, 104),
            (1005, 1024),
            (1 << 20, 1 << 20),
        ];
        assert!(
            known
                .iter()
                .all(|(len, padded)| padded_len(*len) == *padded)
        );
        assert!((2..100_000).all(|len| (len..len + len / 8 + 1).contains(&padded_len(len))));
    }

    #[test]
    fn payload_comes_and_goes_apart_from_its_header() {
        let made = entry(header(1, 2, 7), &[vec![1]]);
        let bare = Entry::decode(&made.without_payload().encode()).unwrap();
        assert_eq!((bare.id(), bare.payload()), (made.id(), None));
        assert_eq!(
            bare.with_payload(made.payload().unwrap().clone()).unwrap(),
            made
        );
        let other = entry(header(1, 2, 7), &[vec![2]]);
        let wrong = bare.with_payload(other.payload().unwrap().clone());
        assert_eq!(wrong.unwrap_err(), EntryError::OtherPayload);
        assert!(bare.with_payload(Bytes::new()).is_err());
    }

    #[test]
    fn largest_entry_is_within_its_limit() {
        let headroom = entry(header(16, 64, 1), &[vec![1]])
            .without_payload()
            .encode()
            .len();
        assert!(headroom + PAYLOAD_BYTES_MAX <= ENTRY_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn entries_survive_their_bytes(
            heads in 1u8..=16,
            dependencies in 0u8..=64,
            seq in any::<u64>(),
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8),
        ) {
            let made = entry(header(heads, dependencies, seq), &bodies);
            let bytes = made.encode();
            let read = Entry::decode(&bytes).unwrap();
            prop_assert!(read.is_signed() && read == made && read.encode() == bytes);
            prop_assert!(Entry::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        }

        #[test]
        fn mutated_entries_never_panic_and_never_verify(
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let good = entry(header(2, 3, 4), &[vec![1; 50], vec![2; 50]]).encode();
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] = to;
            if let Ok(read) = Entry::decode(&bad) {
                prop_assert_eq!(read.encode(), bad.clone());
                prop_assert_eq!(read.is_signed(), bad == good);
            }
            prop_assert!(Entry::decode(&good[..cut.index(good.len())]).is_err());
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(read) = Entry::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            let _ = parts(&bytes);
            if let Ok(list) = records(&bytes) {
                let mut again = Vec::new();
                for record in list {
                    push_record(&mut again, record.kind, record.body);
                }
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
