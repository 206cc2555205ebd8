//! What makes an archive of sealed blocks a backup: a record of what is in it, and the way from the words, or a member's keys, to what was exported.
//!
//! Spec: `protocol/spec/backup.md`, "Record".

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use crate::car::cbor::{CborError, Decoder, Encoder};
use crate::id::{Cid, EpochId, SpaceId};
use crate::key::{Rng, Secret};
use crate::object::ObjectLink;

/// Codec of DAG-CBOR and number of BLAKE3, for the CIDs of records and lists.
const DAG_CBOR: u64 = 0x71;
const BLAKE3: u64 = 0x1e;
const VERSION: u64 = 1;
/// Links in one list.
pub const LIST_LINKS_MAX: usize = 8192;
/// Longest list or record read.
pub const NODE_BYTES_MAX: usize = 1 << 20;
/// Most lists of one kind in a record, so that it stays a block that travels: some 160 million blocks.
pub const LISTS_MAX: usize = 20_000;
/// Nonce, link, tag.
const SEALED_BYTES: usize = 24 + ObjectLink::BYTES + 16;

/// The bytes are no record, list, or sealed link of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of a backup")]
pub struct BackupError;

impl From<CborError> for BackupError {
    fn from(_: CborError) -> Self {
        Self
    }
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of which space.
    pub space: SpaceId,
    /// Lists of the entries, parents before children.
    pub entries: Vec<Cid>,
    /// Lists of the sealed blocks.
    pub blocks: Vec<Cid>,
    /// Where single objects were exported: the way to the listing of them.
    pub sealed: Option<SealedLink>,
}

/// A link that only members can read: who has the words comes to it by the envelopes of the epochs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedLink {
    /// Whose change key opens it.
    pub epoch: EpochId,
    bytes: [u8; SEALED_BYTES],
}

impl SealedLink {
    /// Seals a link for the members of a space.
    pub fn seal(
        space: SpaceId,
        epoch: EpochId,
        change: &Secret,
        link: &ObjectLink,
        rng: &mut Rng,
    ) -> Self {
        let nonce = rng.bytes::<24>();
        let sealed = cipher(change)
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: &link.encode(),
                    aad: &bound(space, epoch),
                },
            )
            .expect("72 bytes can be sealed");
        let mut bytes = [0; SEALED_BYTES];
        let (front, back) = bytes.split_at_mut(24);
        front.copy_from_slice(&nonce);
        back.copy_from_slice(&sealed);
        Self { epoch, bytes }
    }

    /// Opens it with the change key of its epoch; `None` if that is not the key it was sealed with.
    pub fn open(&self, space: SpaceId, change: &Secret) -> Option<ObjectLink> {
        let (nonce, sealed) = self.bytes.split_first_chunk::<24>()?;
        let payload = Payload {
            msg: sealed,
            aad: &bound(space, self.epoch),
        };
        let plain = cipher(change)
            .decrypt(&XNonce::from(*nonce), payload)
            .ok()?;
        ObjectLink::decode(&plain).ok()
    }
}

fn cipher(change: &Secret) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(change.derive("kith backup 1").expose().into())
}

fn bound(space: SpaceId, epoch: EpochId) -> Vec<u8> {
    [space.0, epoch.0].concat()
}

/// The CID of a record or list.
pub fn node_cid(bytes: &[u8]) -> Cid {
    Cid::from_prefix(1, DAG_CBOR, BLAKE3, 32, bytes).expect("BLAKE3 is one that we compute")
}

/// Whether a block is named as records and lists are.
pub fn is_node(cid: &Cid) -> bool {
    cid.prefix() == (1, DAG_CBOR, BLAKE3, 32)
}

impl Record {
    /// Its bytes, DAG-CBOR.
    pub fn encode(&self) -> Vec<u8> {
        let mut cbor = Encoder::default();
        let (epoch, sealed): (&[u8], &[u8]) = match &self.sealed {
            Some(sealed) => (&sealed.epoch.0, &sealed.bytes),
            None => (&[], &[]),
        };
        cbor.map(6);
        cbor.text("kith");
        cbor.uint(VERSION);
        cbor.text("epoch");
        cbor.bytes(epoch);
        cbor.text("space");
        cbor.bytes(&self.space.0);
        cbor.text("blocks");
        cbor.links(&self.blocks);
        cbor.text("sealed");
        cbor.bytes(sealed);
        cbor.text("entries");
        cbor.links(&self.entries);
        cbor.finish()
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`BackupError`] for any bytes that [`encode`](Self::encode) would not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        if bytes.len() > NODE_BYTES_MAX {
            return Err(BackupError);
        }
        let mut cbor = Decoder::new(bytes);
        cbor.map_of(6)?;
        cbor.key("kith")?;
        if cbor.uint()? != VERSION {
            return Err(BackupError);
        }
        cbor.key("epoch")?;
        let epoch = cbor.bytes()?;
        cbor.key("space")?;
        let space = cbor.bytes()?.try_into().map_err(|_| BackupError)?;
        cbor.key("blocks")?;
        let blocks = lists(&mut cbor)?;
        cbor.key("sealed")?;
        let sealed = cbor.bytes()?;
        cbor.key("entries")?;
        let entries = lists(&mut cbor)?;
        cbor.end()?;
        let sealed = if epoch.is_empty() && sealed.is_empty() {
            None
        } else {
            Some(SealedLink {
                epoch: EpochId(epoch.try_into().map_err(|_| BackupError)?),
                bytes: sealed.try_into().map_err(|_| BackupError)?,
            })
        };
        Ok(Self {
            space: SpaceId(space),
            entries,
            blocks,
            sealed,
        })
    }
}

/// Links to lists.
fn lists(cbor: &mut Decoder<'_>) -> Result<Vec<Cid>, BackupError> {
    let links = cbor.links()?;
    if links.len() > LISTS_MAX || !links.iter().all(is_node) {
        return Err(BackupError);
    }
    Ok(links)
}

/// The bytes of a list: at most [`LIST_LINKS_MAX`] names of raw blocks, none left out.
pub fn encode_list(links: &[Cid]) -> Vec<u8> {
    let mut cbor = Encoder::default();
    cbor.links(links);
    cbor.finish()
}

/// Reads a list.
///
/// # Errors
/// [`BackupError`] if it is none, is empty or too long, or names what is no block of ours.
pub fn decode_list(bytes: &[u8]) -> Result<Vec<Cid>, BackupError> {
    if bytes.len() > NODE_BYTES_MAX {
        return Err(BackupError);
    }
    let mut cbor = Decoder::new(bytes);
    let links = cbor.links()?;
    cbor.end()?;
    if !(1..=LIST_LINKS_MAX).contains(&links.len())
        || !links.iter().all(|link| link.digest().is_some())
    {
        return Err(BackupError);
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::seal::BlockKey;
    use crate::seal::vectors::{array, bytes, hex, load};

    const SPACE: SpaceId = SpaceId([3; 32]);
    const EPOCH: EpochId = EpochId([4; 32]);

    fn link() -> ObjectLink {
        ObjectLink {
            digest: [5; 32],
            key: BlockKey::new([6; 32]),
            size: 7,
        }
    }

    fn sealed() -> SealedLink {
        let mut rng = crate::key::Rng::from_seed([8; 32]);
        SealedLink::seal(SPACE, EPOCH, &Secret::new([9; 32]), &link(), &mut rng)
    }

    fn record(lists: u8, sealed: Option<SealedLink>) -> Record {
        let lists = |from: u8| (from..from + lists).map(|n| node_cid(&[n])).collect();
        Record {
            space: SPACE,
            entries: lists(10),
            blocks: lists(100),
            sealed,
        }
    }

    fn list(count: u32) -> Vec<Cid> {
        let blocks = (0..count).map(u32::to_le_bytes);
        blocks.map(|bytes| Cid::of_block(&bytes)).collect()
    }

    #[test]
    fn sealed_link_opens_for_its_space_and_key_only() {
        let change = Secret::new([9; 32]);
        assert_eq!(sealed().open(SPACE, &change), Some(link()));
        assert_eq!(sealed().open(SPACE, &Secret::new([1; 32])), None);
        assert_eq!(sealed().open(SpaceId([1; 32]), &change), None);
        let mut other = sealed();
        other.epoch = EpochId([1; 32]);
        assert_eq!(other.open(SPACE, &change), None);
        for at in 0..SEALED_BYTES {
            let mut altered = sealed();
            altered.bytes[at] ^= 1;
            assert_eq!(altered.open(SPACE, &change), None);
        }
    }

    fn made() -> Vec<Value> {
        let good = |name: &str, record: &Record| {
            let cids = |cids: &[Cid]| {
                cids.iter()
                    .map(|cid| hex(&cid.to_bytes()))
                    .collect::<Vec<_>>()
            };
            let bytes = record.encode();
            let mut value = json!({
                "name": name, "expect": "ok", "record": hex(&bytes), "cid": hex(&node_cid(&bytes).to_bytes()), "space": hex(&record.space.0),
                "entries": cids(&record.entries), "blocks": cids(&record.blocks),
            });
            if let Some(sealed) = &record.sealed {
                value["epoch"] = hex(&sealed.epoch.0).into();
                value["change_key"] = hex(&[9; 32]).into();
                value["link"] = hex(&link().encode()).into();
            }
            value
        };
        let bad = |name: &str, bytes: &[u8]| json!({"name": name, "expect": "refused", "record": hex(bytes)});
        let whole = record(2, None).encode();
        let edited = |edit: &dyn Fn(&mut Record)| {
            let mut record = record(1, Some(sealed()));
            edit(&mut record);
            record.encode()
        };
        let raw = edited(&|record| record.blocks = list(1));
        vec![
            good("a space without blocks", &record(0, None)),
            good("a space", &record(2, None)),
            good("an object", &record(1, Some(sealed()))),
            bad("one byte missing", &whole[..whole.len() - 1]),
            bad("one byte more", &[&whole[..], &[0]].concat()),
            bad("another version", &{
                let mut bytes = whole.clone();
                bytes[6] = 2;
                bytes
            }),
            bad("a list that is no list", &raw),
            json!({"name": "a list", "expect": "ok", "list": hex(&encode_list(&list(3))), "cids": list(3).iter().map(|cid| hex(&cid.to_bytes())).collect::<Vec<_>>()}),
            json!({"name": "an empty list", "expect": "refused", "list": hex(&encode_list(&[]))}),
            json!({"name": "a list of what is no block", "expect": "refused", "list": hex(&encode_list(&[node_cid(&[1])]))}),
        ]
    }

    #[test]
    fn vectors_decode_as_they_say() {
        for vector in load("backup", &made()) {
            let good = vector["expect"] == "ok";
            if vector["list"].is_string() {
                let decoded = decode_list(&bytes(&vector["list"]));
                assert_eq!(decoded.is_ok(), good, "{}", vector["name"]);
                continue;
            }
            let decoded = Record::decode(&bytes(&vector["record"]));
            assert_eq!(decoded.is_ok(), good, "{}", vector["name"]);
            let Ok(record) = decoded else { continue };
            assert_eq!(record.encode(), bytes(&vector["record"]));
            if let Some(sealed) = record.sealed {
                let change = Secret::new(array(&vector["change_key"]));
                let link = sealed.open(record.space, &change).unwrap();
                assert_eq!(link.encode(), bytes(&vector["link"])[..]);
            }
        }
    }

    #[test]
    fn longest_list_and_record_are_read() {
        let longest = encode_list(&list(u32::try_from(LIST_LINKS_MAX).unwrap()));
        assert_eq!(decode_list(&longest).unwrap().len(), LIST_LINKS_MAX);
        assert!(longest.len() < NODE_BYTES_MAX);
        let more = encode_list(&list(u32::try_from(LIST_LINKS_MAX).unwrap() + 1));
        assert!(decode_list(&more).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (Record::decode(&bytes), decode_list(&bytes));
        }

        #[test]
        fn altered_record_is_refused_or_canonical(at: prop::sample::Index, byte: u8) {
            let mut bytes = record(2, Some(sealed())).encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
