//! Promises to keep a pack: how they are asked for, and what proves that it is there.
//!
//! Spec: `protocol/spec/promises.md`.

use std::sync::Arc;

use kith_object::id::{DeviceId, PackId};
use kith_object::key::derive;
use kith_object::time::{Span, Time};

use crate::wire::{Malformed, Reader, Writer};

/// How long whoever promised keeps the pack.
pub const KEPT_FOR: Span = Span::from_secs(86_400);
/// How long a promise may be used to give up a copy.
pub const USED_FOR: Span = Span::from_secs(3600);
/// Most blocks that are asked for at once.
pub const BLOCKS_MAX: usize = 16_384;
const KEY_DOMAIN: &str = "kith promise 1";
const BLOCKS_KEY_DOMAIN: &str = "kith promise blocks 1";
const RANK_DOMAIN: &str = "kith promise rank 1";

/// Random, and used once.
pub type Nonce = [u8; 16];
/// The keyed hash of a whole pack, or of blocks.
pub type Proof = [u8; 32];
/// What a block is asked for by.
pub type Digest = [u8; 32];

/// Why a promise is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// The pack does not lie there to stay.
    Lacking,
    /// It is about to be given up there too.
    Leaving,
    /// Too much to do.
    Busy,
    /// It is not what it should be any more.
    Damaged,
    /// The promise cannot be written down.
    Unwritten,
}

impl Refused {
    const ALL: [Self; 5] = [
        Self::Lacking,
        Self::Leaving,
        Self::Busy,
        Self::Damaged,
        Self::Unwritten,
    ];

    /// Whether a copy that was counted does not exist.
    pub fn is_false(self) -> bool {
        matches!(self, Self::Lacking | Self::Damaged)
    }

    fn to_byte(self) -> u8 {
        let place = (1..).zip(Self::ALL).find(|(_, why)| *why == self);
        place.map_or(0, |(byte, _)| byte)
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks for a promise.
    Ask {
        /// For the key of the proof.
        nonce: Nonce,
        /// Of which pack.
        pack: PackId,
    },
    /// Gives it.
    Promise {
        /// As asked.
        nonce: Nonce,
        /// Shows that all of the pack is there.
        proof: Proof,
    },
    /// Does not.
    Refusal {
        /// As asked.
        nonce: Nonce,
        /// Why.
        why: Refused,
    },
    /// Asks for a promise to keep those of these blocks that are there.
    AskBlocks {
        /// For the key of the proof.
        nonce: Nonce,
        /// Of which blocks.
        digests: Arc<[Digest]>,
    },
    /// Gives it.
    PromiseBlocks {
        /// As asked.
        nonce: Nonce,
        /// Shows that the blocks are there.
        proof: Proof,
        /// Which.
        has: Bits,
    },
}

/// Some of the blocks that were asked for: a bit each, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bits(Vec<u8>);

impl Bits {
    /// None of so many.
    pub fn none_of(count: usize) -> Self {
        Self(vec![0; count.div_ceil(8)])
    }

    /// Puts one in.
    pub fn insert(&mut self, at: usize) {
        if let Some(byte) = self.0.get_mut(at / 8) {
            *byte |= 1 << (at % 8);
        }
    }

    /// Whether it is in.
    pub fn contains(&self, at: usize) -> bool {
        let byte = self.0.get(at / 8);
        byte.is_some_and(|byte| byte & (1 << (at % 8)) != 0)
    }

    /// Whether these are some of so many.
    pub fn are_of(&self, count: usize) -> bool {
        let beyond = count..self.0.len() * 8;
        self.0.len() == count.div_ceil(8) && !beyond.into_iter().any(|at| self.contains(at))
    }
}

impl Message {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(49);
        match self {
            Self::Ask { nonce, pack } => out.u8(1).raw(nonce).raw(&pack.0),
            Self::Promise { nonce, proof } => out.u8(2).raw(nonce).raw(proof),
            Self::Refusal { nonce, why } => out.u8(3).raw(nonce).u8(why.to_byte()),
            Self::AskBlocks { nonce, digests } => {
                let count = u32::try_from(digests.len()).unwrap_or(u32::MAX);
                out.u8(4).raw(nonce).u32(count).raw(digests.as_flattened())
            }
            Self::PromiseBlocks { nonce, proof, has } => {
                out.u8(5).raw(nonce).raw(proof).raw(&has.0)
            }
        };
        out.finish()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] if [`Message::encode`] would not have made these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let (kind, nonce) = (reader.u8()?, reader.array()?);
        let message = match kind {
            1 => Self::Ask {
                nonce,
                pack: PackId(reader.array()?),
            },
            2 => Self::Promise {
                nonce,
                proof: reader.array()?,
            },
            3 => Self::Refusal {
                nonce,
                why: Refused::from_byte(reader.u8()?).ok_or(Malformed("no such reason"))?,
            },
            4 => {
                let count = reader.u32()? as usize;
                if count == 0 || count > BLOCKS_MAX {
                    return Err(Malformed("too many blocks, or none"));
                }
                let (digests, _) = reader.take(32 * count)?.as_chunks();
                Self::AskBlocks {
                    nonce,
                    digests: digests.into(),
                }
            }
            5 => {
                let proof = reader.array()?;
                let has = reader.rest();
                if has.is_empty() || has.len() > BLOCKS_MAX / 8 {
                    return Err(Malformed("too many blocks, or none"));
                }
                Self::PromiseBlocks {
                    nonce,
                    proof,
                    has: Bits(has.to_vec()),
                }
            }
            _ => return Err(Malformed("message of no known kind")),
        };
        reader.finish()?;
        Ok(message)
    }
}

/// Whom a proof is by and for: it is worth nothing to anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// As asked.
    pub nonce: Nonce,
    /// Who is to prove.
    pub holder: DeviceId,
    /// To whom.
    pub asker: DeviceId,
}

impl Challenge {
    fn hasher(&self, domain: &str) -> blake3::Hasher {
        let mut bytes = Vec::with_capacity(80);
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.holder.0);
        bytes.extend_from_slice(&self.asker.0);
        blake3::Hasher::new_keyed(&derive(domain, &bytes))
    }
}

/// Makes proofs of one pack from one reading of it.
#[derive(Debug)]
pub struct Prover {
    name: blake3::Hasher,
    proofs: Vec<blake3::Hasher>,
}

impl Prover {
    /// For one challenge, or several.
    pub fn new(challenges: impl IntoIterator<Item = Challenge>) -> Self {
        let challenges = challenges.into_iter();
        Self {
            name: blake3::Hasher::new(),
            proofs: challenges
                .map(|challenge| challenge.hasher(KEY_DOMAIN))
                .collect(),
        }
    }

    /// Takes in what comes next in the pack.
    pub fn update(&mut self, bytes: &[u8]) {
        self.name.update(bytes);
        for proof in &mut self.proofs {
            proof.update(bytes);
        }
    }

    /// The proofs in the order of the challenges, if what was read is that pack.
    pub fn finish(self, pack: &PackId) -> Option<Vec<Proof>> {
        let proofs = self.proofs.iter().map(|of| *of.finalize().as_bytes());
        (*self.name.finalize().as_bytes() == pack.0).then(|| proofs.collect())
    }
}

/// Makes the proof of blocks.
#[derive(Debug)]
pub struct BlocksProver(blake3::Hasher);

impl BlocksProver {
    /// For one challenge.
    pub fn new(challenge: &Challenge) -> Self {
        Self(challenge.hasher(BLOCKS_KEY_DOMAIN))
    }

    /// Takes in the next block.
    pub fn update(&mut self, block: &[u8]) {
        let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
        self.0.update(&len.to_le_bytes());
        self.0.update(block);
    }

    /// The proof.
    pub fn finish(&self) -> Proof {
        *self.0.finalize().as_bytes()
    }
}

/// Of two devices that both want to give a pack up the one with the greater rank gives in.
pub fn rank(pack: &PackId, device: &DeviceId) -> [u8; 32] {
    let mut bytes = [0; 64];
    let (first, second) = bytes.split_at_mut(32);
    first.copy_from_slice(&pack.0);
    second.copy_from_slice(&device.0);
    derive(RANK_DOMAIN, &bytes)
}

/// A promise as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promised {
    /// What is kept.
    pub pack: PackId,
    /// How long.
    pub until: Time,
}

impl Promised {
    /// The record of the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(40);
        out.raw(&self.pack.0).u64(self.until.0);
        out.finish()
    }

    /// Reads a record of the log.
    ///
    /// # Errors
    /// [`Malformed`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let promised = Self {
            pack: PackId(reader.array()?),
            until: Time(reader.u64()?),
        };
        reader.finish()?;
        Ok(promised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use kith_object::key::{DeviceKeys, Rng};
    use serde_json::{Value, json};

    fn device(n: u8) -> DeviceId {
        DeviceKeys::generate(&mut Rng::from_seed([n; 32])).id()
    }

    fn proof(challenge: &Challenge, pack: &[u8]) -> Proof {
        let mut prover = Prover::new([*challenge]);
        pack.chunks(1000).for_each(|part| prover.update(part));
        let name = PackId(*blake3::hash(pack).as_bytes());
        prover.finish(&name).unwrap()[0]
    }

    fn messages() -> Vec<(String, Message)> {
        let (nonce, pack) = ([7; 16], PackId([8; 32]));
        let refusals = Refused::ALL.map(|why| {
            let message = Message::Refusal { nonce, why };
            (format!("refusal, {why:?}").to_lowercase(), message)
        });
        let mut all = vec![
            ("ask".to_owned(), Message::Ask { nonce, pack }),
            (
                "promise".to_owned(),
                Message::Promise {
                    nonce,
                    proof: [9; 32],
                },
            ),
        ];
        all.extend(refusals);
        let mut has = Bits::none_of(9);
        [0, 3, 8].into_iter().for_each(|at| has.insert(at));
        let proof = [9; 32];
        all.extend([
            (
                "ask for blocks".to_owned(),
                Message::AskBlocks {
                    nonce,
                    digests: [[1; 32], [2; 32]].into(),
                },
            ),
            (
                "promise of blocks".to_owned(),
                Message::PromiseBlocks { nonce, proof, has },
            ),
        ]);
        all
    }

    #[test]
    fn messages_are_read_as_written_and_nothing_else_is() {
        for (_, message) in messages() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            // Bits may be as many as there are: whoever asked knows.
            let is_open = matches!(message, Message::PromiseBlocks { .. });
            let least = if is_open { 49 } else { bytes.len() };
            for len in 0..least {
                assert!(Message::decode(&bytes[..len]).is_err(), "{message:?} cut");
            }
            let longer = Message::decode(&[&bytes[..], &[0]].concat());
            assert_eq!(longer.is_ok(), is_open);
        }
        let asked = |count: usize| {
            let digests = vec![[5; 32]; count].into();
            let nonce = [7; 16];
            Message::decode(&Message::AskBlocks { nonce, digests }.encode())
        };
        assert!(asked(BLOCKS_MAX).is_ok());
        assert!(asked(0).is_err() && asked(BLOCKS_MAX + 1).is_err());
        let told = |count: usize| {
            let has = Bits::none_of(count);
            let (nonce, proof) = ([7; 16], [9; 32]);
            Message::decode(&Message::PromiseBlocks { nonce, proof, has }.encode())
        };
        assert!(told(BLOCKS_MAX).is_ok());
        assert!(told(0).is_err() && told(BLOCKS_MAX + 1).is_err());
        for why in [0, 6, 255] {
            let bytes = [&[3][..], &[7; 16], &[why]].concat();
            assert!(Message::decode(&bytes).is_err());
        }
        assert!(Message::decode(&[&[6][..], &[7; 48]].concat()).is_err());
        let promised = Promised {
            pack: PackId([3; 32]),
            until: Time(5),
        };
        assert_eq!(Promised::decode(&promised.encode()), Ok(promised));
        assert!(Promised::decode(&promised.encode()[1..]).is_err());
    }

    #[test]
    fn a_proof_is_worth_nothing_for_another_nonce_holder_or_asker() {
        let pack = vec![5; 100_000];
        let challenge = Challenge {
            nonce: [1; 16],
            holder: device(1),
            asker: device(2),
        };
        let good = proof(&challenge, &pack);
        let others = [
            Challenge {
                nonce: [2; 16],
                ..challenge
            },
            Challenge {
                holder: device(3),
                ..challenge
            },
            Challenge {
                asker: device(3),
                ..challenge
            },
            Challenge {
                holder: device(2),
                asker: device(1),
                ..challenge
            },
        ];
        for other in others {
            assert_ne!(proof(&other, &pack), good);
        }
        assert_ne!(proof(&challenge, &pack[1..]), good);
        let mut prover = Prover::new([challenge]);
        prover.update(&pack);
        assert_eq!(prover.finish(&PackId([1; 32])), None, "another pack");
    }

    #[test]
    fn bits_are_of_as_many_as_were_asked_for() {
        let mut bits = Bits::none_of(9);
        assert!(bits.are_of(9) && bits.are_of(16) && !bits.are_of(8) && !bits.are_of(17));
        bits.insert(8);
        bits.insert(100);
        assert!(bits.contains(8) && !bits.contains(7) && !bits.contains(100));
        bits.insert(9);
        assert!(!bits.are_of(9) && bits.are_of(10));
    }

    #[test]
    fn a_proof_of_blocks_tells_where_each_ends() {
        let challenge = Challenge {
            nonce: [1; 16],
            holder: device(1),
            asker: device(2),
        };
        let proof = |challenge: &Challenge, blocks: &[&[u8]]| {
            let mut prover = BlocksProver::new(challenge);
            blocks.iter().for_each(|block| prover.update(block));
            prover.finish()
        };
        let good = proof(&challenge, &[b"ab", b"c"]);
        assert_ne!(good, proof(&challenge, &[b"a", b"bc"]));
        assert_ne!(good, proof(&challenge, &[b"c", b"ab"]));
        assert_ne!(good, proof(&challenge, &[b"ab", b"c", b""]));
        let other = Challenge {
            holder: device(2),
            asker: device(1),
            ..challenge
        };
        assert_ne!(good, proof(&other, &[b"ab", b"c"]));
        assert_ne!(
            proof(&challenge, &[]),
            Prover::new([challenge])
                .finish(&PackId(*blake3::hash(b"").as_bytes()))
                .unwrap()[0],
            "nor is it one of a pack"
        );
    }

    /// What the vectors hold; `bytes` of a message that is refused say why.
    fn cases() -> Vec<Value> {
        let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
        let mut cases = Vec::new();
        let mut message = |name: &str, bytes: Vec<u8>| {
            let expect = match Message::decode(&bytes) {
                Ok(_) => "ok".to_owned(),
                Err(error) => error.to_string(),
            };
            let bytes = hex(&bytes);
            cases
                .push(json!({ "kind": "message", "name": name, "bytes": bytes, "expect": expect }));
        };
        for (name, sound) in messages() {
            message(&name, sound.encode());
        }
        let ask = messages()[0].1.encode();
        message("an ask cut short", ask[..48].to_vec());
        message("an ask with more behind it", [&ask[..], &[0]].concat());
        message("of no known kind", [&[6][..], &ask[1..]].concat());
        let many = |count: u32| [&[4][..], &[7; 16], &count.to_le_bytes(), &[1; 32]].concat();
        message("an ask for no block", many(0)[..21].to_vec());
        message("an ask for too many blocks", many(16_385));
        message("an ask for more blocks than it names", many(2));
        message("a promise of no block", [&[5][..], &[7; 48]].concat());
        let refusal = |why: u8| [&[3][..], &[7; 16], &[why]].concat();
        message("a refusal without a reason", refusal(0));
        message("a refusal for a reason that is none", refusal(6));
        for (name, len) in [("of a short pack", 3_u32), ("of a long pack", 20_000)] {
            let pack: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let challenge = Challenge {
                nonce: [1; 16],
                holder: device(1),
                asker: device(2),
            };
            cases.push(json!({
                "kind": "proof",
                "name": format!("proof {name}"),
                "len": len,
                "nonce": hex(&challenge.nonce),
                "holder": hex(&challenge.holder.0),
                "asker": hex(&challenge.asker.0),
                "proof": hex(&proof(&challenge, &pack)),
                "expect": "ok",
            }));
        }
        let challenge = Challenge {
            nonce: [1; 16],
            holder: device(1),
            asker: device(2),
        };
        let blocks: [&[u8]; 3] = [b"one", b"", b"three"];
        let mut prover = BlocksProver::new(&challenge);
        blocks.iter().for_each(|block| prover.update(block));
        cases.push(json!({
            "kind": "blocks",
            "name": "proof of three blocks",
            "blocks": blocks.map(hex),
            "nonce": hex(&challenge.nonce),
            "holder": hex(&challenge.holder.0),
            "asker": hex(&challenge.asker.0),
            "proof": hex(&prover.finish()),
            "expect": "ok",
        }));
        let pack = PackId([8; 32]);
        let rank = hex(&rank(&pack, &device(1)));
        let device = hex(&device(1).0);
        let promised = Promised {
            pack,
            until: Time(1_700_000_000_000),
        };
        let (pack, until) = (hex(&pack.0), promised.until.0);
        let record = hex(&promised.encode());
        cases.extend([
            json!({ "kind": "rank", "name": "rank", "pack": pack, "device": device, "rank": rank, "expect": "ok" }),
            json!({ "kind": "record", "name": "record", "pack": pack, "until": until, "record": record, "expect": "ok" }),
        ]);
        cases
    }

    #[test]
    fn vectors_hold() {
        const FILE: &str = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/vectors/promises.json"
        );
        let today = cases();
        if std::env::var_os("KITH_BLESS").is_some() {
            std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
        }
        let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        assert_eq!(kept, today);
    }
}
