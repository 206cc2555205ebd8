//! Makes the change of an entry, and knows it again.

use std::num::NonZeroU64;

use automerge::legacy::{Key, ObjectId, Op, OpType, SortedVec};
use automerge::{ActorId, ChangeHash, ExpandedChange, ScalarValue};
use data_encoding::HEXLOWER;

use super::extract;
use crate::chain::Nonce;

/// Records in one change. Bounds what a reader must hold, and keeps Automerge on one of its two encoders.
pub const RECORDS_MAX: usize = 10_000;
/// Longest record.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Operations that a document may grow to. Automerge counts them in 32 bits and panics beyond.
pub const OPS_MAX: u64 = 1 << 31;

/// Where a change stands: everything about it but its records, all of it following from its entry's header.
///
/// Spec: `protocol/spec/documents.md`, "What a change must be".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The chain; Automerge calls it the actor.
    pub nonce: Nonce,
    /// The entry's place in that chain.
    pub entry_seq: u64,
    /// One more than the changes of this chain before it.
    pub seq: u64,
    /// One more than the highest operation it depends on.
    pub start_op: u64,
    /// Hashes of the changes it depends on, sorted.
    pub dependencies: Vec<[u8; 32]>,
}

/// A change that is what it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Automerge's name of it.
    pub hash: [u8; 32],
    /// Its highest operation.
    pub op_max: u64,
    /// Its records, in the order of their keys.
    pub records: Vec<Vec<u8>>,
}

/// The bytes are not the change that an honest author would have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload is not a change that only adds records of its own entry")]
pub struct Misfit;

impl Place {
    /// The key of a record: chain, place in the chain, index, so that no two entries ever share one.
    pub(super) fn key(&self, index: usize) -> String {
        let index = u32::try_from(index).expect("at most 10,000 records");
        let bytes = [
            self.nonce.0.as_slice(),
            &self.entry_seq.to_be_bytes(),
            &index.to_be_bytes(),
        ]
        .concat();
        HEXLOWER.encode(&bytes)
    }

    /// The highest operation of a change with that many records; `None` if there are too few or too many.
    fn op_max(&self, records: usize) -> Option<u64> {
        let count = u64::try_from(records)
            .ok()
            .filter(|_| (1..=RECORDS_MAX).contains(&records))?;
        self.start_op
            .checked_add(count - 1)
            .filter(|max| *max <= OPS_MAX)
    }

    fn build(&self, records: &[&[u8]]) -> Option<automerge::Change> {
        self.op_max(records.len())?;
        let operations = records.iter().enumerate().map(|(index, record)| Op {
            action: OpType::Put(ScalarValue::Bytes(record.to_vec())),
            obj: ObjectId::Root,
            key: Key::Map(self.key(index).into()),
            pred: SortedVec::new(),
            insert: false,
        });
        Some(automerge::Change::from(ExpandedChange {
            operations: operations.collect(),
            actor_id: ActorId::from(self.nonce.0.as_slice()),
            hash: None,
            seq: self.seq,
            start_op: NonZeroU64::new(self.start_op)?,
            time: 0,
            message: None,
            deps: self
                .dependencies
                .iter()
                .map(|hash| ChangeHash(*hash))
                .collect(),
            extra_bytes: Vec::new(),
            author: None,
        }))
    }
}

/// At most how long the change with records of these lengths gets.
pub fn change_len(records: usize, bytes: usize, dependencies: usize) -> usize {
    // Per record: key of 56 and its length, length of the value. Then the fields in front, generously.
    512 + dependencies * 32 + records * 64 + bytes
}

/// Makes a change of records; `None` if there are none or too many, one is too long, or the document is full.
pub fn author(place: &Place, records: &[Vec<u8>]) -> Option<Vec<u8>> {
    let fit = |record: &&[u8]| (1..=RECORD_BYTES_MAX).contains(&record.len());
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    if !records.iter().all(fit) {
        return None;
    }
    place
        .build(&records)
        .map(|change| change.raw_bytes().to_vec())
}

/// Reads a change.
///
/// # Errors
/// [`Misfit`] unless the bytes are exactly those that [`author`] makes of its records in that place.
pub fn read(place: &Place, bytes: &[u8]) -> Result<Change, Misfit> {
    let values = extract::values(bytes, RECORDS_MAX).ok_or(Misfit)?;
    if !values
        .iter()
        .all(|value| (1..=RECORD_BYTES_MAX).contains(&value.len()))
    {
        return Err(Misfit);
    }
    let op_max = place.op_max(values.len()).ok_or(Misfit)?;
    let built = place.build(&values).ok_or(Misfit)?;
    if built.raw_bytes() != bytes {
        return Err(Misfit);
    }
    let records = values.iter().map(|value| value.to_vec()).collect();
    Ok(Change {
        hash: built.hash().0,
        op_max,
        records,
    })
}
