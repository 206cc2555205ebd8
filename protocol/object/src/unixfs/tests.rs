use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// ChaCha20 from block 0 with nonce 0, keyed by the hash of a seed: the input of the vectors of IPIP-499.
struct Stream {
    key: [u32; 8],
    block: u32,
}

impl Stream {
    fn new(seed: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(seed).into();
        let mut key = [0; 8];
        for (word, bytes) in key.iter_mut().zip(digest.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().unwrap());
        }
        Self { key, block: 0 }
    }

    fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(64) {
            let mut start = [0u32; 16];
            start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
            start[4..12].copy_from_slice(&self.key);
            start[12] = self.block;
            self.block += 1;
            let mut x = start;
            let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
                for (to, from, turned, by) in
                    [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]
                {
                    x[to] = x[to].wrapping_add(x[from]);
                    x[turned] = (x[turned] ^ x[to]).rotate_left(by);
                }
            };
            for _ in 0..10 {
                for n in 0..4 {
                    quarter(n, 4 + n, 8 + n, 12 + n);
                }
                for n in 0..4 {
                    quarter(n, 4 + (n + 1) % 4, 8 + (n + 2) % 4, 12 + (n + 3) % 4);
                }
            }
            let words = x.iter().zip(start).map(|(x, s)| x.wrapping_add(s));
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }
}

fn nowhere(_: Cid, _: Bytes) -> io::Result<()> {
    Ok(())
}

/// The CID of so many bytes of a seed.
fn of_seed(profile: Profile, seed: &str, len: usize) -> String {
    let (mut stream, mut builder, mut left) = (Stream::new(seed), FileBuilder::new(profile), len);
    while left > 0 {
        let mut leaf = vec![0; left.min(profile.leaf_bytes())];
        stream.fill(&mut leaf);
        builder.leaf(&leaf, &mut nowhere).unwrap();
        left -= leaf.len();
    }
    builder.finish(&mut nowhere).unwrap().cid.to_string()
}

fn of_bytes(profile: Profile, bytes: &[u8]) -> String {
    let mut builder = FileBuilder::new(profile);
    for leaf in bytes.chunks(profile.leaf_bytes()) {
        builder.leaf(leaf, &mut nowhere).unwrap();
    }
    builder.finish(&mut nowhere).unwrap().cid.to_string()
}

/// The CIDs that IPIP-499 states; the seeds stand in the tests of Kubo (`ipfs/kubo` at 867cdc5d8, `test/cli/cid_profiles_test.go`).
#[test]
fn files_get_the_cids_of_the_profiles() {
    let (v0, v1) = (Profile::V0, Profile::V1);
    let small = |profile| of_bytes(profile, b"hello world");
    assert_eq!(small(v0), "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    assert_eq!(
        small(v1),
        "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
    );
    let chunk = 256 << 10;
    for (seed, len, cid) in [
        (
            "chunk-v0-seed",
            chunk,
            "QmWmRj3dFDZdb6ABvbmKhEL6TmPbAfBZ1t5BxsEyJrcZhE",
        ),
        (
            "chunk-v0-seed",
            chunk + 1,
            "QmYyLxtzZyW22zpoVAtKANLRHpDjZtNeDjQdJrcQNWoRkJ",
        ),
        (
            "v0-seed",
            174 * chunk,
            "QmUbBALi174SnogsUzLpYbD4xPiBSFANF4iztWCsHbMKh2",
        ),
        (
            "v0-seed",
            174 * chunk + 1,
            "QmV81WL765sC8DXsRhE5fJv2rwhS4icHRaf3J9Zk5FdRnW",
        ),
    ] {
        assert_eq!(of_seed(v0, seed, len), cid, "{len} bytes");
    }
    let chunk = 1 << 20;
    for (len, cid) in [
        (
            chunk,
            "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta",
        ),
        (
            chunk + 1,
            "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64",
        ),
    ] {
        assert_eq!(of_seed(v1, "chunk-v1-seed", len), cid, "{len} bytes");
    }
    // 1 GiB and more: a while without optimisation.
    if std::env::var_os("KITH_LARGE").is_none() {
        return;
    }
    for (len, cid) in [
        (
            1024 * chunk,
            "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm",
        ),
        (
            1025 * chunk,
            "bafybeihmzokxxjqwxjcryerhp5ezpcog2wcawfryb2xm64xiakgm4a5jue",
        ),
    ] {
        assert_eq!(of_seed(v1, "v1-2025-seed", len), cid, "{len} bytes");
    }
}

/// CIDs that everybody knows.
#[test]
fn nothing_gets_the_known_cids() {
    assert_eq!(
        of_bytes(Profile::V0, b""),
        "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
    );
    assert_eq!(
        of_bytes(Profile::V1, b""),
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    );
    let empty = |profile| folder(profile, &[], &mut nowhere).unwrap().cid.to_string();
    assert_eq!(
        empty(Profile::V0),
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    );
    assert_eq!(
        empty(Profile::V1),
        "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    );
}

/// A folder of files of one byte, with names made as the tests of Kubo make them.
fn of_names(
    profile: Profile,
    seed: &str,
    count: usize,
    len: usize,
    last: usize,
) -> (String, usize) {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
    let mut builder = FileBuilder::new(profile);
    builder.leaf(b"x", &mut nowhere).unwrap();
    let file = builder.finish(&mut nowhere).unwrap();
    let mut names = vec![0; len * (count - 1) + last];
    Stream::new(seed).fill(&mut names);
    for letter in &mut names {
        *letter = LETTERS[usize::from(*letter) % LETTERS.len()];
    }
    let names: BTreeMap<Vec<u8>, Written> = (0..count)
        .map(|n| {
            let end = if n + 1 == count {
                names.len()
            } else {
                len * (n + 1)
            };
            (names[len * n..end].to_vec(), file)
        })
        .collect();
    let entries: Vec<(Vec<u8>, Written)> = names.into_iter().collect();
    let mut blocks = 0;
    let mut counted = |_, _| {
        blocks += 1;
        Ok(())
    };
    let written = folder(profile, &entries, &mut counted).unwrap();
    (written.cid.to_string(), blocks)
}

/// The folders of IPIP-499: at the edge, and one byte beyond it (`ipfs/kubo`, `test/cli/cid_profiles_test.go`).
#[test]
fn folders_get_the_cids_of_the_profiles() {
    let (v0, v1) = ("hamt-unixfs-v0-2015", "hamt-unixfs-v1-2025");
    let (cid, blocks) = of_names(Profile::V0, v0, 4096, 30, 30);
    assert_eq!(cid, "QmX5GtRk3TSSEHtdrykgqm4eqMEn3n2XhfkFAis5fjyZmN");
    assert_eq!(blocks, 1);
    let (cid, blocks) = of_names(Profile::V0, v0, 4033, 31, 31);
    assert_eq!(cid, "QmeMiJzmhpJAUgynAcxTQYek5PPKgdv3qEvFsdV3XpVnvP");
    assert!(blocks > 256);
    let (cid, blocks) = of_names(Profile::V1, v1, 4766, 11, 21);
    assert_eq!(
        cid,
        "bafybeic3h7rwruealwxkacabdy45jivq2crwz6bufb5ljwupn36gicplx4"
    );
    assert_eq!(blocks, 1);
    let (cid, blocks) = of_names(Profile::V1, v1, 4766, 11, 22);
    assert_eq!(
        cid,
        "bafybeiegvuterwurhdtkikfhbxcldohmxp566vpjdofhzmnhv6o4freidu"
    );
    assert!(blocks > 256);
}

type Blocks = BTreeMap<Cid, Bytes>;

fn read_file(cid: &Cid, blocks: &Blocks) -> Vec<u8> {
    let Node::File(node) = read_node(cid, &blocks[cid]).unwrap() else {
        panic!("no file");
    };
    let mut data = node.data;
    for link in node.links {
        let part = read_file(&link.cid, blocks);
        assert_eq!(part.len() as u64, link.size);
        data.extend(part);
    }
    assert_eq!(data.len() as u64, node.size);
    data
}

#[test]
fn what_is_written_is_read_and_every_altered_byte_is_seen_or_harmless() {
    for profile in [Profile::V0, Profile::V1] {
        for len in [0, 1, profile.leaf_bytes(), 3 * profile.leaf_bytes() + 7] {
            let mut data = vec![0; len];
            Stream::new("x").fill(&mut data);
            let mut blocks = Blocks::new();
            let mut keep = |cid, block| {
                blocks.insert(cid, block);
                Ok(())
            };
            let mut builder = FileBuilder::new(profile);
            for leaf in data.chunks(profile.leaf_bytes()) {
                builder.leaf(leaf, &mut keep).unwrap();
            }
            let file = builder.finish(&mut keep).unwrap();
            let link = symlink(profile, b"else/where", &mut keep).unwrap();
            let entries = [(b"file".to_vec(), file), (b"link".to_vec(), link)];
            let top = folder(profile, &entries, &mut keep).unwrap();
            assert_eq!(
                placeholder(profile).to_bytes().len(),
                top.cid.to_bytes().len()
            );
            for (cid, block) in &blocks {
                assert!(cid.verifies(block));
            }
            assert!(read_file(&file.cid, &blocks) == data);
            let names = vec![(b"file".to_vec(), file.cid), (b"link".to_vec(), link.cid)];
            assert_eq!(
                read_node(&top.cid, &blocks[&top.cid]),
                Ok(Node::Folder(names))
            );
            assert_eq!(
                read_node(&link.cid, &blocks[&link.cid]),
                Ok(Node::Symlink(b"else/where".to_vec()))
            );
            let folder = blocks[&top.cid].to_vec();
            for at in 0..folder.len() {
                for byte in [0, 0x7f, 0x80, 0xff] {
                    let mut altered = folder.clone();
                    altered[at] = byte;
                    let _ = read_node(&top.cid, &altered);
                }
            }
        }
    }
}

#[test]
fn node_whose_sizes_do_not_agree_is_refused() {
    let part = FileBuilder::new(Profile::V1).finish(&mut nowhere).unwrap();
    let cid = placeholder(Profile::V1);
    let good = node::file_node(&[part, part]);
    assert!(read_node(&cid, &good).is_ok());
    // The data of the node: type, size, two sizes of parts. One of them taken away, and one more.
    let data = &good[good.len() - 8..];
    assert_eq!(data, [8, 2, 0x18, 0, 0x20, 0, 0x20, 0]);
    let with = |data: &[u8]| {
        let mut block = good[..good.len() - 10].to_vec();
        block.extend([0x0a, u8::try_from(data.len()).unwrap()]);
        block.extend(data);
        block
    };
    assert!(read_node(&cid, &with(data)).is_ok());
    for bad in [
        &data[..6],
        &[data, &[0x20, 1]].concat(),
        &[8, 2, 0x18, 9, 0x20, 0, 0x20, 0],
    ] {
        assert_eq!(read_node(&cid, &with(bad)), Err(NodeError::Sizes));
    }
    // Sizes that overflow.
    let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let over = [&[8, 2, 0x20][..], &max, &[0x20], &max].concat();
    assert_eq!(read_node(&cid, &with(&over)), Err(NodeError::Sizes));
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_node(&placeholder(Profile::V1), &bytes);
        let inside = [&[0x0a, u8::try_from(bytes.len().min(127)).unwrap()][..], &bytes[..bytes.len().min(127)]].concat();
        let _ = read_node(&placeholder(Profile::V0), &inside);
    }
}
