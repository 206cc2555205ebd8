//! What is fuzzed: for each parser of stored bytes, or of bytes from outside, a plain function that tries it on them and checks its laws.
//!
//! A function answers whether the bytes were taken for what they should be. It panics if a law is broken: what was read is written the same way again,
//! limits hold, nothing panics. Bytes behind a checksum, a hash or a cipher would never pass one once they are altered; for those there is a second function
//! that takes what stands before and puts the proof on, as a member could that means harm, or a program that errs.
//!
//! No module of this folder knows who calls it: `cargo test` by way of `main.rs`, and the coverage-guided fuzzer in `guided/`.

mod access;
mod archive;
mod device;
mod disk;
mod door;
mod message;
mod name;
mod object;

pub(crate) use device::{fixture, record as log_record};
pub(crate) use disk::pack_of;
pub(crate) use door::frames as door_frames;
pub(crate) use message::{PIECE, blob, blob_id, tree as blob_tree};
pub(crate) use object::{forge, parts as object_parts};

/// A function that is fuzzed.
pub(crate) struct Target {
    /// Its name, which is also that of its folder in `corpus/`.
    pub(crate) name: &'static str,
    /// Tries the bytes; answers whether they were taken.
    pub(crate) run: fn(&[u8]) -> bool,
    /// What it may hold in memory at once: so many bytes for each of the input, and so many beside.
    pub(crate) memory: (usize, usize),
    /// How many runs of an ordinary one take as long as one of this.
    pub(crate) cost: u32,
}

impl Target {
    /// One that is as quick as most, and holds what most do.
    pub(crate) const fn new(name: &'static str, run: fn(&[u8]) -> bool) -> Self {
        Self {
            name,
            run,
            // What is read takes more room than its bytes: a CID of 36 bytes has 96 in memory, and two copies are compared.
            memory: (40, 32 << 10),
            cost: 1,
        }
    }

    /// The same, but slower.
    pub(crate) const fn costs(self, cost: u32) -> Self {
        Self { cost, ..self }
    }

    /// The same, but with other bounds on what it holds; the reason stands where this is called.
    const fn holds(self, each: usize, beside: usize) -> Self {
        Self {
            memory: (each, beside),
            ..self
        }
    }
}

/// All that need no machine around them.
pub(crate) fn all() -> impl Iterator<Item = &'static Target> {
    [
        name::TARGETS,
        disk::TARGETS,
        object::TARGETS,
        archive::TARGETS,
        message::TARGETS,
        door::TARGETS,
        access::TARGETS,
        device::TARGETS,
    ]
    .into_iter()
    .flatten()
}

/// Bytes, and behind them the first of a hash of them: the proof that many files end with.
pub(crate) fn proved<const N: usize>(domain: &str, body: &[u8]) -> Vec<u8> {
    let proof = kith_object::key::derive(domain, body);
    [body, proof.split_at(N).0].concat()
}
