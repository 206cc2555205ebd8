//! The list of an object's chunks, and the tree of such lists that a large object needs.

use std::io;
use std::sync::Arc;

use crate::object::ObjectLink;
use crate::seal::{BlockKey, DATA_BYTES_MAX, Kind, SealedBlock, Sealer};

/// How many children a manifest has, all but the last of each level.
///
/// One manifest of 72 KiB then stands for some 150 MiB, and two levels for 150 GiB.
pub const FANOUT: usize = 1024;

/// Levels of manifests at most: enough for 32 PiB of the shortest chunks that a chunker cuts.
pub const LEVEL_MAX: u8 = 4;

const VERSION: u8 = 1;
/// Version, level, total, count.
const HEADER_BYTES: usize = 14;
/// Digest, key, length.
const CHILD_BYTES: usize = 72;

/// A part of an object: a chunk, or what stands below a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// BLAKE3 of the block, the digest in its CID.
    pub digest: [u8; 32],
    /// Opens the block.
    pub key: BlockKey,
    /// How many bytes of the object it stands for.
    pub len: u64,
}

impl ChunkRef {
    /// Refers to a block just sealed that stands for `len` bytes of the object.
    pub fn to(block: &SealedBlock, len: u64) -> Self {
        Self {
            digest: block
                .cid
                .digest()
                .expect("a sealed block has a CID of ours"),
            key: block.key.clone(),
            len,
        }
    }

    /// The 72 bytes of its form: digest, key, length.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digest);
        out.extend_from_slice(self.key.expose());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    /// Reads what [`encode_into`](Self::encode_into) writes.
    pub(crate) fn decode(bytes: &[u8; CHILD_BYTES]) -> Self {
        let (digest, rest) = bytes.split_first_chunk::<32>().expect("72 bytes");
        let (key, len) = rest.split_first_chunk::<32>().expect("40 bytes");
        let len = len.first_chunk::<8>().expect("8 bytes");
        Self {
            digest: *digest,
            key: BlockKey::new(*key),
            len: u64::from_le_bytes(*len),
        }
    }
}

/// One node of the tree over an object's chunks.
///
/// Spec: `protocol/spec/manifest.md`, "Manifest".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// 1 if the children are chunks, else one more than that of the children.
    pub level: u8,
    /// The parts in their order in the object.
    pub children: Vec<ChunkRef>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Of a later version, or something else.
    #[error("manifest is of an unknown version")]
    Version,
    /// Level 0, or above [`LEVEL_MAX`].
    #[error("manifest is of an impossible level")]
    Level,
    /// No children, more than [`FANOUT`], or not as many as there are bytes for.
    #[error("manifest counts its children wrongly")]
    Count,
    /// A child of no bytes, or of more than its level can hold.
    #[error("manifest has a child of impossible length")]
    Length,
    /// The total is not the sum of the children.
    #[error("manifest does not add up")]
    Total,
}

impl Manifest {
    /// How many bytes of the object the children stand for together.
    pub fn total(&self) -> u64 {
        self.children
            .iter()
            .map(|child| child.len)
            .fold(0, u64::saturating_add)
    }

    /// The bytes to seal.
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.children.len()).expect("at most FANOUT");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.children.len() * CHILD_BYTES);
        bytes.extend_from_slice(&[VERSION, self.level]);
        bytes.extend_from_slice(&self.total().to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        for child in &self.children {
            child.encode_into(&mut bytes);
        }
        bytes
    }

    /// Reads a manifest, and checks all that can be known without its children and its place in the tree.
    ///
    /// # Errors
    /// [`ManifestError`] for any bytes that [`Manifest::encode`] would not make of a manifest that [`ManifestBuilder`] would build.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(ManifestError::Count)?;
        let [
            version,
            level,
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            c0,
            c1,
            c2,
            c3,
        ] = *header;
        let total = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let count = usize::try_from(u32::from_le_bytes([c0, c1, c2, c3]))
            .map_err(|_| ManifestError::Count)?;
        if version != VERSION {
            return Err(ManifestError::Version);
        }
        if !(1..=LEVEL_MAX).contains(&level) {
            return Err(ManifestError::Level);
        }
        let (children, excess) = rest.as_chunks::<CHILD_BYTES>();
        if !(1..=FANOUT).contains(&count) || children.len() != count || !excess.is_empty() {
            return Err(ManifestError::Count);
        }
        let children: Vec<ChunkRef> = children.iter().map(ChunkRef::decode).collect();
        let len_max = len_max(level - 1);
        if children
            .iter()
            .any(|child| child.len == 0 || child.len > len_max)
        {
            return Err(ManifestError::Length);
        }
        let manifest = Self { level, children };
        // No overflow: at most 1,024 to the fourth times a MiB.
        if manifest.total() == total {
            Ok(manifest)
        } else {
            Err(ManifestError::Total)
        }
    }
}

/// How many bytes of an object a part can stand for at most, at that level; 0 is that of chunks.
fn len_max(level: u8) -> u64 {
    (0..level).fold(DATA_BYTES_MAX as u64, |len, _| {
        len.saturating_mul(FANOUT as u64)
    })
}

/// Builds the one tree of manifests that belongs to a sequence of chunks, keeping at most one unfinished manifest a level.
///
/// For shells that cut and seal on several threads; [`ObjectWriter`](crate::object::ObjectWriter) does all three on one.
///
/// Spec: `protocol/spec/manifest.md`, "Shape".
#[derive(Debug)]
pub struct ManifestBuilder {
    sealer: Arc<Sealer>,
    leaf: Kind,
    /// The children of the manifest to come, by level; the first are chunks.
    levels: Vec<Vec<ChunkRef>>,
}

impl ManifestBuilder {
    /// A builder for an object whose leaves are of that kind.
    ///
    /// # Panics
    /// If that is [`Kind::Manifest`].
    pub fn new(sealer: Arc<Sealer>, leaf: Kind) -> Self {
        assert!(
            leaf != Kind::Manifest,
            "the leaves of an object are no manifests"
        );
        Self {
            sealer,
            leaf,
            levels: vec![Vec::new()],
        }
    }

    /// Takes the next chunk; hands manifests that became full to the sink.
    ///
    /// # Errors
    /// Those of the sink; then, and when the object outgrows [`LEVEL_MAX`] or the chunk has no bytes, the builder is of no more use.
    pub fn push(
        &mut self,
        chunk: ChunkRef,
        sink: &mut dyn FnMut(SealedBlock) -> io::Result<()>,
    ) -> io::Result<()> {
        if chunk.len == 0 || chunk.len > len_max(0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a chunk of impossible length",
            ));
        }
        self.add(0, chunk, sink)
    }

    /// Seals what is unfinished; the link leads to the whole object.
    ///
    /// An object of no bytes is one empty leaf. One of a single chunk is just that.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(
        mut self,
        sink: &mut dyn FnMut(SealedBlock) -> io::Result<()>,
    ) -> io::Result<ObjectLink> {
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let parts = self
                .levels
                .get_mut(level)
                .map(std::mem::take)
                .unwrap_or_default();
            match <[ChunkRef; 1]>::try_from(parts) {
                Ok([only]) if top => {
                    return Ok(ObjectLink {
                        digest: only.digest,
                        key: only.key,
                        size: only.len,
                    });
                }
                Ok([only]) => {
                    let parent = self.seal(level, vec![only], sink)?;
                    self.add(level + 1, parent, sink)?;
                }
                Err(parts) if parts.is_empty() => {
                    let block = self.sealer.seal(self.leaf, &[]);
                    let part = ChunkRef::to(&block, 0);
                    sink(block)?;
                    return Ok(ObjectLink {
                        digest: part.digest,
                        key: part.key,
                        size: 0,
                    });
                }
                Err(parts) => {
                    let parent = self.seal(level, parts, sink)?;
                    self.add(level + 1, parent, sink)?;
                }
            }
            level += 1;
        }
    }

    /// Adds a part to a level. A full manifest is sealed only when more follows, so that no manifest has an only child but the last of a level.
    fn add(
        &mut self,
        level: usize,
        part: ChunkRef,
        sink: &mut dyn FnMut(SealedBlock) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.levels.len() <= level {
            self.levels.push(Vec::new());
        }
        let full = self
            .levels
            .get_mut(level)
            .filter(|parts| parts.len() >= FANOUT)
            .map(std::mem::take);
        if let Some(full) = full {
            let parent = self.seal(level, full, sink)?;
            self.add(level + 1, parent, sink)?;
        }
        self.levels.get_mut(level).expect("made above").push(part);
        Ok(())
    }

    /// Seals a manifest over parts of `level`.
    fn seal(
        &self,
        level: usize,
        children: Vec<ChunkRef>,
        sink: &mut dyn FnMut(SealedBlock) -> io::Result<()>,
    ) -> io::Result<ChunkRef> {
        let level = u8::try_from(level + 1)
            .ok()
            .filter(|level| *level <= LEVEL_MAX);
        let level = level.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the object is too large")
        })?;
        let manifest = Manifest { level, children };
        let block = self.sealer.seal(Kind::Manifest, &manifest.encode());
        let part = ChunkRef::to(&block, manifest.total());
        sink(block)?;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::key::Secret;
    use crate::seal::vectors::{bytes, hex, load};

    fn part(number: u64, len: u64) -> ChunkRef {
        let mut digest = [1; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        ChunkRef {
            digest,
            key: BlockKey::new([2; 32]),
            len,
        }
    }

    fn manifest(level: u8, count: u64, len: u64) -> Manifest {
        Manifest {
            level,
            children: (0..count).map(|number| part(number, len)).collect(),
        }
    }

    fn words(error: ManifestError) -> &'static str {
        match error {
            ManifestError::Version => "version",
            ManifestError::Level => "level",
            ManifestError::Count => "count",
            ManifestError::Length => "length",
            ManifestError::Total => "total",
        }
    }

    fn made() -> Vec<Value> {
        let good = |name: &str, manifest: &Manifest| {
            let children = manifest
                .children
                .iter()
                .map(|child| json!({"digest": hex(&child.digest), "key": hex(child.key.expose()), "len": child.len}));
            json!({
                "name": name, "expect": "ok", "manifest": hex(&manifest.encode()), "level": manifest.level, "total": manifest.total(),
                "children": children.collect::<Vec<_>>(),
            })
        };
        let bad = |name: &str, expect: &str, manifest: &[u8]| json!({"name": name, "expect": expect, "manifest": hex(manifest)});
        let with = |at: usize, byte: u8| {
            let mut bytes = manifest(1, 2, 1000).encode();
            bytes[at] = byte;
            bytes
        };
        let two = manifest(1, 2, 1000).encode();
        let mixed = Manifest {
            level: 1,
            children: vec![part(0, 131_072), part(1, 7)],
        };
        vec![
            good("two chunks", &manifest(1, 2, 1000)),
            good("two chunks of unlike length", &mixed),
            good("one chunk, last of its level", &manifest(1, 1, 1)),
            good("two manifests", &manifest(2, 2, 1024 * 131_072)),
            good("highest level", &manifest(4, 3, 1 << 40)),
            bad("no bytes", "count", &[]),
            bad("version 2", "version", &with(0, 2)),
            bad("level 0", "level", &with(1, 0)),
            bad("level 5", "level", &with(1, 5)),
            bad("total one more", "total", &with(2, 0xd1)),
            bad("total of 2^63 more", "total", &with(9, 0x80)),
            bad("count one more", "count", &with(10, 3)),
            bad("count one less", "count", &with(10, 1)),
            bad("count of four thousand million", "count", &with(13, 0xff)),
            bad("no children", "count", &manifest(1, 0, 0).encode()),
            bad("last byte missing", "count", &two[..two.len() - 1]),
            bad("one byte more", "count", &[&two[..], &[0]].concat()),
            bad("child of no bytes", "length", &manifest(1, 2, 0).encode()),
            bad(
                "chunk longer than a block holds",
                "length",
                &manifest(1, 2, DATA_BYTES_MAX as u64 + 1).encode(),
            ),
            bad(
                "manifest over more than it can",
                "length",
                &manifest(2, 2, (DATA_BYTES_MAX * FANOUT) as u64 + 1).encode(),
            ),
            bad(
                "lengths that overflow",
                "length",
                &manifest(4, 4, 1 << 62).encode(),
            ),
        ]
    }

    #[test]
    fn vectors_decode_as_they_say() {
        for vector in load("manifest", &made()) {
            let manifest = bytes(&vector["manifest"]);
            match Manifest::decode(&manifest) {
                Ok(decoded) => {
                    assert_eq!(vector["expect"], "ok", "{}", vector["name"]);
                    assert_eq!(decoded.encode(), manifest);
                    assert_eq!(vector["total"], decoded.total());
                }
                Err(error) => assert_eq!(vector["expect"], words(error), "{}", vector["name"]),
            }
        }
    }

    #[test]
    fn more_than_a_full_manifest_is_refused() {
        assert!(Manifest::decode(&manifest(1, 1024, 5).encode()).is_ok());
        assert_eq!(
            Manifest::decode(&manifest(1, 1025, 5).encode()),
            Err(ManifestError::Count)
        );
    }

    /// Blocks made and root size, for that many chunks of one byte.
    fn build(count: u64) -> (usize, u64) {
        let mut builder =
            ManifestBuilder::new(Arc::new(Sealer::new(&Secret::new([1; 32]))), Kind::Chunk);
        let mut blocks = 0;
        let mut sink = |_| {
            blocks += 1;
            Ok(())
        };
        for number in 0..count {
            builder.push(part(number, 1), &mut sink).unwrap();
        }
        let link = builder.finish(&mut sink).unwrap();
        (blocks, link.size)
    }

    #[test]
    fn tree_has_no_more_manifests_than_it_needs() {
        for (chunks, blocks) in [
            (0, 1),
            (1, 0),
            (2, 1),
            (1024, 1),
            (1025, 3),
            (2048, 3),
            (2049, 4),
            (1024 * 1024, 1025),
            (1024 * 1024 + 1, 1025 + 3),
        ] {
            assert_eq!(build(chunks), (blocks, chunks), "{chunks} chunks");
        }
    }

    #[test]
    fn chunk_of_impossible_length_is_refused() {
        let mut builder =
            ManifestBuilder::new(Arc::new(Sealer::new(&Secret::new([1; 32]))), Kind::Chunk);
        assert!(builder.push(part(0, 0), &mut |_| Ok(())).is_err());
        assert!(
            builder
                .push(part(0, DATA_BYTES_MAX as u64 + 1), &mut |_| Ok(()))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn altered_manifest_is_refused_or_canonical(level in 1u8..=4, count in 1u64..6, len in 1u64..1000, at: prop::sample::Index, byte: u8) {
            let mut bytes = manifest(level, count, len).encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(decoded) = Manifest::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(decoded) = Manifest::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}
