//! What lies on the disk: packs, logs, the place of a scrub.

use std::collections::BTreeSet;
use std::sync::Arc;

use kith_object::coding;
use kith_object::disk::{Disk, SimDisk};
use kith_object::id::{Cid, SpaceId};
use kith_object::key::derive;
use kith_object::log::{self, FRAME_BYTES, HEADER_BYTES, Log, LogError};
use kith_object::pack::{self, Class, Header, PackWriter, TRAILER_BYTES};
use kith_object::scrub::{Input, Pace, Scrub};
use kith_object::time::Time;

use super::{Target, proved};

pub(super) const TARGETS: &[Target] = &[
    // What a scan finds it holds once more by name.
    Target::new("pack", pack).costs(2),
    Target::new("pack-proved", pack_proved).costs(2),
    // The simulated disk holds each byte some times over, and a log reads ahead.
    Target::new("log", log).holds(64, 512 << 10).costs(8),
    Target::new("log-proved", log_proved)
        .holds(64, 512 << 10)
        .costs(8),
    Target::new("scrub", scrub),
];

/// A whole pack of these blocks.
pub(crate) fn pack_of(class: Class, blocks: &[(Cid, &[u8])]) -> Vec<u8> {
    let header = Header::new(class, SpaceId([0x11; 32]));
    let mut writer = PackWriter::new(header);
    let mut bytes = header.encode().to_vec();
    for (cid, block) in blocks {
        let head = PackWriter::record_head(cid, block.len());
        bytes.extend_from_slice(head.bytes());
        bytes.extend_from_slice(block);
        writer.push(&head, block);
    }
    bytes.extend_from_slice(&writer.footer().0);
    bytes
}

fn pack(bytes: &[u8]) -> bool {
    let scan = pack::scan(bytes);
    assert!(scan.end <= bytes.len());
    let mut end = 0;
    let mut met = BTreeSet::new();
    for block in &scan.blocks {
        let found = bytes.get(block.range()).expect("a block lies in the file");
        assert!(block.cid.verifies(found), "a scan checks what it finds");
        assert!(met.insert(block.cid), "a scan finds each block once");
        assert!(block.range().start >= end, "blocks do not overlap");
        end = block.range().end;
    }
    let said = pack::said(bytes);
    for block in &said {
        assert!(block.range().end <= bytes.len(), "said to lie in the file");
    }
    if let Ok(header) = Header::decode(bytes) {
        assert!(bytes.starts_with(&header.encode()));
    }
    if let Some((table, places)) = coding::read_parity(bytes) {
        let parity: usize = places.iter().map(std::ops::Range::len).sum();
        let longest = table.data.iter().map(|shard| shard.len).max();
        assert_eq!(
            longest.map(|len| len.next_multiple_of(2)),
            u32::try_from(parity).ok()
        );
    }
    let Ok(checked) = pack::check(bytes) else {
        return false;
    };
    assert_eq!(checked.blocks, scan.blocks);
    assert_eq!(checked.blocks, said);
    assert!(!scan.is_damaged());
    let mut writer = PackWriter::new(checked.header);
    let mut again = checked.header.encode().to_vec();
    for block in &checked.blocks {
        let head = PackWriter::record_head(&block.cid, block.range().len());
        let found = bytes.get(block.range()).expect("checked");
        again.extend_from_slice(head.bytes());
        again.extend_from_slice(found);
        assert_eq!(writer.push(&head, found), *block);
    }
    assert_eq!(scan.end, again.len());
    let (footer, id) = writer.footer();
    again.extend_from_slice(&footer);
    assert!(again == bytes, "a pack has one form");
    assert_eq!(id, checked.id);
    true
}

/// As [`pack`], the index hashed anew.
fn pack_proved(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    let tail = bytes.len().saturating_sub(TRAILER_BYTES);
    let start = bytes
        .get(tail + 4..)
        .and_then(|rest| rest.first_chunk::<8>())
        .and_then(|start| usize::try_from(u64::from_le_bytes(*start)).ok());
    if let Some(index) = start.and_then(|start| bytes.get(start..tail)) {
        let hash = derive("kith pack index 1", index);
        if let Some(place) = bytes.get_mut(tail + 12..tail + 44) {
            place.copy_from_slice(&hash);
        }
    }
    pack(&bytes)
}

const NAME: &str = "log";

fn log(bytes: &[u8]) -> bool {
    let disk = Arc::new(SimDisk::new());
    disk.create(NAME).expect("a new disk");
    disk.append(NAME, bytes).expect("room");
    let checked = log::check(&*disk, NAME).expect("a sound disk");
    let all = |len: u64| disk.read_at(NAME, 0, usize::try_from(len).expect("short"));
    assert!(
        all(bytes.len() as u64).expect("read") == bytes,
        "a check changes nothing"
    );
    let (log, records, report) = match Log::open(disk.clone(), NAME) {
        Ok(opened) => opened,
        Err(LogError::NotALog { .. }) => {
            assert_eq!(disk.len(NAME).ok(), Some(bytes.len() as u64));
            assert!(all(bytes.len() as u64).expect("read") == bytes);
            assert_eq!(checked.records, 0);
            return false;
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(report.records, records.len() as u64);
    assert_eq!(checked.records, report.records);
    let len = log.len_bytes();
    drop(log);
    let mut places = Vec::new();
    let (log, second) = Log::open_each(disk.clone(), NAME, |at, record| places.push((at, record)))
        .expect("it opened before");
    assert_eq!(log.len_bytes(), len, "opening twice changes nothing more");
    assert_eq!((second.torn_bytes, &second.damaged), (0, &report.damaged));
    assert!(places.iter().map(|(_, record)| record).eq(&records));
    for (at, record) in &places {
        assert_eq!(log.read(*at).ok().as_ref(), Some(record));
    }
    let at = log.append(b"later").expect("room");
    log.sync().expect("a sound disk");
    assert_eq!(log.read(at).ok().as_deref(), Some(&b"later"[..]));
    drop(log);
    let (_, later, _) = Log::open(disk, NAME).expect("it opened before");
    assert_eq!(later.len(), records.len() + 1, "what is there stays");
    !records.is_empty()
}

/// Where frames seem to be: offset and length of the record.
fn log_frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some(head) = bytes.get(at..at + FRAME_BYTES) {
        let len = head
            .strip_prefix(b"\xf1kl\x1f")
            .and_then(|rest| rest.first_chunk::<4>())
            .and_then(|len| usize::try_from(u32::from_le_bytes(*len)).ok())
            .filter(|len| *len <= bytes.len() - at - FRAME_BYTES);
        match len {
            Some(len) => {
                frames.push((at, len));
                at += FRAME_BYTES + len;
            }
            None => at += 1,
        }
    }
    frames
}

/// As [`log`], each frame proved anew where it stands.
fn log_proved(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    for (at, len) in log_frames(&bytes) {
        let record = at + FRAME_BYTES..at + FRAME_BYTES + len;
        let hash = derive(
            "kith log record 1",
            bytes.get(record).expect("it was found"),
        );
        let mut place = (at as u64).to_le_bytes().to_vec();
        place.extend_from_slice(bytes.get(at + 4..at + 8).expect("it was found"));
        let check = derive("kith log position 1", &place);
        let head = bytes.get_mut(at + 8..at + FRAME_BYTES).expect("found");
        let (front, back) = head.split_at_mut(8);
        front.copy_from_slice(check.split_at(8).0);
        back.copy_from_slice(&hash);
    }
    log(&bytes)
}

/// The place of a scrub, its proof put on.
fn scrub(body: &[u8]) -> bool {
    let kept = proved::<16>("kith scrub 1", body);
    for kept in [body, &kept] {
        let mut scrub = Scrub::resume(Pace::STEADY, kept);
        scrub.check_invariants();
        for now in [0, 1 << 40, u64::MAX / 2] {
            scrub.handle(Time(now), Input::Wake);
            scrub.check_invariants();
            let _ = scrub.next_wakeup();
            while scrub.poll_effect().is_some() {}
        }
    }
    Scrub::is_place(&kept)
}
