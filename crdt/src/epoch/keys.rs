//! The two parts of an epoch's keys.

use kith_object::key::{Rng, Secret, derive};
use zeroize::Zeroizing;

/// Bytes of either part.
pub const PART_LEN: usize = 64;

/// What blind holders have too: it opens `access` and `catalogue`.
///
/// Spec: `protocol/spec/epoch.md`, "Parts".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderPart {
    /// Seals `access` and `catalogue`.
    pub key: Secret,
    /// Blinds what is looked up in the mesh's DHT.
    pub blinding: Secret,
}

/// What members have.
///
/// Spec: `protocol/spec/epoch.md`, "Parts".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberPart {
    /// Seals `names`.
    pub change: Secret,
    /// Seals blocks and cuts chunks.
    pub dedup: Secret,
}

fn join(one: &Secret, other: &Secret) -> Zeroizing<[u8; PART_LEN]> {
    let mut bytes = Zeroizing::new([0; PART_LEN]);
    let (first, second) = bytes.split_at_mut(32);
    first.copy_from_slice(one.expose());
    second.copy_from_slice(other.expose());
    bytes
}

fn split(bytes: &[u8; PART_LEN]) -> (Secret, Secret) {
    let (first, second) = bytes.split_at(32);
    let half = |bytes: &[u8]| Secret::new(bytes.try_into().expect("half of 64 bytes"));
    (half(first), half(second))
}

impl HolderPart {
    /// Fresh keys.
    pub fn generate(rng: &mut Rng) -> Self {
        Self {
            key: Secret::generate(rng),
            blinding: Secret::generate(rng),
        }
    }

    /// The part's 64 secret bytes.
    pub fn to_bytes(&self) -> Zeroizing<[u8; PART_LEN]> {
        join(&self.key, &self.blinding)
    }

    /// The part of those bytes.
    pub fn from_bytes(bytes: &[u8; PART_LEN]) -> Self {
        let (key, blinding) = split(bytes);
        Self { key, blinding }
    }

    /// What the epoch's id holds of it.
    pub fn commitment(&self) -> [u8; 32] {
        derive("kith holder part 1", self.to_bytes().as_slice())
    }
}

impl MemberPart {
    /// A fresh change key, with the dedup secret carried on if given, else fresh too.
    pub fn generate(dedup: Option<Secret>, rng: &mut Rng) -> Self {
        let change = Secret::generate(rng);
        Self {
            change,
            dedup: dedup.unwrap_or_else(|| Secret::generate(rng)),
        }
    }

    /// The part's 64 secret bytes.
    pub fn to_bytes(&self) -> Zeroizing<[u8; PART_LEN]> {
        join(&self.change, &self.dedup)
    }

    /// The part of those bytes.
    pub fn from_bytes(bytes: &[u8; PART_LEN]) -> Self {
        let (change, dedup) = split(bytes);
        Self { change, dedup }
    }

    /// What the epoch's id holds of it.
    pub fn commitment(&self) -> [u8; 32] {
        derive("kith member part 1", self.to_bytes().as_slice())
    }
}
