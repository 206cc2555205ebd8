//! Archives of the IPFS world, the record that makes one a backup, and the nodes in them.

use std::io::Cursor;

use kith_object::backup::{self, Record};
use kith_object::car::{self, Item, Reader};
use kith_object::id::Cid;
use kith_object::unixfs::{Node, Profile, placeholder, read_node};

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    // The reader's buffer is as long as what it reads at once.
    Target::new("car", car).holds(40, 4 << 20).costs(2),
    Target::new("backup", record),
    Target::new("backup-list", list),
    Target::new("unixfs", unixfs),
];

fn car(bytes: &[u8]) -> bool {
    if let Ok(reader) = Reader::open_damaged(Cursor::new(bytes)) {
        read(reader, bytes);
    }
    let Ok(reader) = Reader::open(Cursor::new(bytes)) else {
        return false;
    };
    let (version, roots) = (reader.version(), reader.roots().to_vec());
    let (blocks, damaged) = read(reader, bytes);
    if version == 1 && !damaged {
        let mut again = car::header(&roots);
        for (cid, block) in blocks {
            again.extend_from_slice(&car::section_head(&cid, block.len()));
            again.extend_from_slice(&block);
        }
        assert!(again == bytes, "a CARv1 has one form");
    }
    true
}

/// The blocks, and whether anything is damaged.
fn read(mut reader: Reader<Cursor<&[u8]>>, bytes: &[u8]) -> (Vec<(Cid, Vec<u8>)>, bool) {
    let (mut blocks, mut damaged) = (Vec::new(), false);
    let mut end = 0;
    while let Some(item) = reader.next().expect("memory can be read") {
        match item {
            Item::Block(block) => {
                assert!(block.offset > end, "blocks come in order");
                end = block.offset + block.bytes.len() as u64;
                let start = usize::try_from(block.offset).expect("it lies in the file");
                let there = bytes.get(start..start + block.bytes.len());
                assert_eq!(there, Some(&block.bytes[..]), "it stands where it says");
                assert!(car::verifies(&block.cid, &block.bytes));
                blocks.push((block.cid, block.bytes.to_vec()));
            }
            Item::Damaged(range) => {
                assert!(range.start >= end, "damage stands between blocks");
                assert!(range.end > range.start, "damage has a length");
                end = range.end;
                damaged = true;
            }
        }
    }
    (blocks, damaged)
}

fn record(bytes: &[u8]) -> bool {
    let Ok(record) = Record::decode(bytes) else {
        return false;
    };
    assert!(record.encode() == bytes, "a record has one form");
    true
}

fn list(bytes: &[u8]) -> bool {
    let Ok(links) = backup::decode_list(bytes) else {
        return false;
    };
    assert!(backup::encode_list(&links) == bytes, "a list has one form");
    true
}

fn unixfs(bytes: &[u8]) -> bool {
    let plain = Cid::of_block(bytes);
    let Ok(Node::File(file)) = read_node(&plain, bytes) else {
        panic!("raw bytes are a file");
    };
    assert!(file.data == bytes && file.size == bytes.len() as u64);
    let Ok(node) = read_node(&placeholder(Profile::V0), bytes) else {
        return false;
    };
    let names = match &node {
        Node::File(file) => {
            let parts = file.links.iter().try_fold(0u64, |sum, link| {
                assert!(link.cid.to_bytes().len() <= bytes.len());
                sum.checked_add(link.size)
            });
            let sum = parts.and_then(|parts| parts.checked_add(file.data.len() as u64));
            assert_eq!(sum, Some(file.size), "a file is as long as its parts");
            file.links.len()
        }
        Node::Folder(entries) => entries.len(),
        Node::Shard { entries, parts } => {
            assert!(entries.iter().all(|(name, _)| !name.is_empty()));
            entries.len() + parts.len()
        }
        Node::Symlink(target) => {
            assert!(target.len() <= bytes.len());
            0
        }
    };
    assert!(names <= bytes.len(), "each link takes bytes");
    true
}
