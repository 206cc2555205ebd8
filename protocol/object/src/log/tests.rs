use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::disk::{Crash, Fault, SimDisk};
use crate::key::Rng;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/log.json");

fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    disk.create("log").unwrap();
    disk.append("log", bytes).unwrap();
    disk
}

fn contents(disk: &SimDisk, name: &str) -> Vec<u8> {
    let len = disk.len(name).unwrap();
    disk.read_at(name, 0, usize::try_from(len).unwrap())
        .unwrap()
}

/// The file of a log with these records.
fn build(records: &[&[u8]]) -> Vec<u8> {
    let disk = SimDisk::new();
    let (log, _, _) = Log::open(disk.clone(), "log").unwrap();
    for record in records {
        log.append(record).unwrap();
    }
    contents(&disk, "log")
}

/// Name, bytes.
fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let good = build(&[b"first", b"", b"third"]);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let second = HEADER_BYTES + FRAME_BYTES + 5;
    let embedded = {
        // A record that holds a whole frame, of a log in which it would stand at the same place; the frame around it is damaged.
        let inner = build(&[&[0; 7], b"inner"]);
        let frame = inner[HEADER_BYTES + FRAME_BYTES + 7..].to_vec();
        let mut bytes = build(&[&frame, b"last"]);
        bytes[HEADER_BYTES + 20] ^= 1;
        bytes
    };
    vec![
        ("empty", build(&[])),
        ("three records, one of them empty", good.clone()),
        ("end torn inside a record", good[..good.len() - 1].to_vec()),
        ("end torn inside a frame", good[..second + 10].to_vec()),
        ("zeros behind the end", [&good[..], &[0; 100]].concat()),
        (
            "first record damaged",
            changed(HEADER_BYTES + FRAME_BYTES, b'F'),
        ),
        ("first length damaged", changed(HEADER_BYTES + 4, 6)),
        ("first frame's magic damaged", changed(HEADER_BYTES, 0)),
        ("last record damaged", changed(good.len() - 1, b'D')),
        ("a frame inside a damaged record does not count", embedded),
        ("newborn, cut short", good[..5].to_vec()),
        ("newborn, zeros", vec![0; HEADER_BYTES]),
        ("other magic, sound frames", changed(0, b'K')),
        ("reserved byte, sound frames", changed(15, 1)),
        ("version 2, no frames", {
            let mut bytes = header().to_vec();
            bytes[8] = 2;
            bytes
        }),
        ("something else", vec![b'x'; 200]),
    ]
}

fn vector(name: &str, bytes: &[u8]) -> Value {
    match Log::open(disk_with(bytes), "log") {
        Err(error) => {
            json!({ "name": name, "expect": error.to_string(), "log": HEXLOWER.encode(bytes) })
        }
        Ok((log, records, report)) => {
            let records: Vec<String> = records
                .iter()
                .map(|record| HEXLOWER.encode(record))
                .collect();
            let damaged: Vec<[u64; 2]> = report
                .damaged
                .iter()
                .map(|range| [range.start, range.end])
                .collect();
            json!({
                "name": name,
                "expect": "ok",
                "log": HEXLOWER.encode(bytes),
                "records": records,
                "damaged": damaged,
                "torn_bytes": report.torn_bytes,
                "len_after": log.len_bytes(),
            })
        }
    }
}

#[test]
fn logs_are_read_as_the_vectors_say() {
    let vectors: Vec<Value> = cases()
        .iter()
        .map(|(name, bytes)| vector(name, bytes))
        .collect();
    let expect = |name: &str| {
        let found = vectors
            .iter()
            .find(|vector| vector["name"] == name)
            .unwrap();
        (found["expect"].clone(), found["records"].clone())
    };
    let hex = |records: &[&str]| {
        json!(
            records
                .iter()
                .map(|record| HEXLOWER.encode(record.as_bytes()))
                .collect::<Vec<_>>()
        )
    };
    let ok = |records: &[&str]| (json!("ok"), hex(records));
    assert_eq!(
        expect("three records, one of them empty"),
        ok(&["first", "", "third"])
    );
    assert_eq!(expect("end torn inside a record"), ok(&["first", ""]));
    assert_eq!(expect("end torn inside a frame"), ok(&["first"]));
    assert_eq!(expect("zeros behind the end"), ok(&["first", "", "third"]));
    assert_eq!(expect("first record damaged"), ok(&["", "third"]));
    assert_eq!(expect("first length damaged"), ok(&["", "third"]));
    assert_eq!(expect("first frame's magic damaged"), ok(&["", "third"]));
    assert_eq!(expect("last record damaged"), ok(&["first", ""]));
    assert_eq!(
        expect("a frame inside a damaged record does not count"),
        ok(&["last"])
    );
    assert_eq!(expect("newborn, cut short"), ok(&[]));
    let whole = ok(&["first", "", "third"]);
    assert_eq!(expect("other magic, sound frames"), whole);
    assert_eq!(expect("reserved byte, sound frames"), whole);
    let refused = json!("log is not a log of version 1");
    assert_eq!(expect("version 2, no frames").0, refused);
    assert_eq!(expect("something else").0, refused);

    let text = serde_json::to_string_pretty(&vectors).unwrap() + "\n";
    if std::env::var_os("KITH_BLESS").is_some() {
        std::fs::write(VECTORS, &text).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(VECTORS).unwrap(),
        text,
        "the bytes of a log have changed; run with KITH_BLESS=1 only if that is meant"
    );
}

#[test]
fn torn_end_is_kept_aside_and_reported() {
    let mut bytes = build(&[b"one", b"two"]);
    bytes.truncate(bytes.len() - 2);
    let disk = disk_with(&bytes);
    let (log, records, report) = Log::open(disk.clone(), "log").unwrap();
    assert_eq!(records, [Bytes::from_static(b"one")]);
    assert_eq!(report.torn_bytes, FRAME_BYTES as u64 + 1);
    assert_eq!(
        contents(&disk, "log.torn"),
        bytes[HEADER_BYTES + FRAME_BYTES + 3..]
    );
    log.append(b"three").unwrap();
    drop(log);
    let (_, records, report) = Log::open(disk, "log").unwrap();
    assert_eq!(records, [&b"one"[..], b"three"]);
    assert_eq!(
        report,
        LogReport {
            records: 2,
            ..LogReport::default()
        }
    );
}

#[test]
fn damage_in_the_middle_is_reported_every_time_and_its_bytes_stay() {
    let mut bytes = build(&[b"one", b"two", b"three"]);
    let second = HEADER_BYTES + FRAME_BYTES + 3;
    bytes[second + FRAME_BYTES] ^= 4;
    let disk = disk_with(&bytes);
    for _ in 0..2 {
        let (log, records, report) = Log::open(disk.clone(), "log").unwrap();
        assert_eq!(records, [&b"one"[..], b"three"]);
        assert_eq!(report.damaged.len(), 1);
        let range = second as u64..(second + FRAME_BYTES + 3) as u64;
        assert_eq!(report.damaged[0], range);
        assert_eq!(report.torn_bytes, 0);
        assert!(matches!(
            log.read(second as u64),
            Err(LogError::NoRecord { .. })
        ));
    }
    assert_eq!(contents(&disk, "log"), bytes);
}

#[test]
fn one_flipped_bit_costs_at_most_one_record() {
    let records: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n; usize::from(n) * 9]).collect();
    let parts: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let whole = build(&parts);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (_, found, report) = Log::open(disk_with(&bytes), "log").unwrap();
        let lost = records
            .iter()
            .filter(|record| !found.contains(&Bytes::from((*record).clone())));
        assert!(lost.count() <= 1 && found.len() <= 8, "bit {bit}");
        assert!(
            !report.damaged.is_empty() || report.torn_bytes > 0,
            "bit {bit}"
        );
    }
}

#[test]
fn lost_sectors_cost_what_lay_in_them() {
    for offset in [0, 10_000, 30_000] {
        let records: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; 1000]).collect();
        let parts: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let disk = disk_with(&build(&parts));
        disk.lose_sector("log", offset);
        let (log, found, report) = Log::open(disk.clone(), "log").unwrap();
        assert!(found.len() >= 34 && found.len() < 40, "{}", found.len());
        assert_eq!(report.damaged.len(), 1);
        log.append(b"more").unwrap();
        log.sync().unwrap();
        drop(log);
        let (_, again, _) = Log::open(disk, "log").unwrap();
        assert_eq!(again.len(), found.len() + 1);
    }
}

#[test]
fn full_disk_leaves_the_log_readable_and_usable_later() {
    let mut bytes = build(&[b"one", b"two"]);
    bytes.truncate(bytes.len() - 1);
    let disk = disk_with(&bytes);
    disk.set_capacity(bytes.len() as u64);
    let (log, records, report) = Log::open(disk.clone(), "log").unwrap();
    assert_eq!(records, [&b"one"[..]]);
    assert_eq!(report.damaged.len(), 1);
    assert!(log.append(b"three").unwrap_err().is_full());
    disk.set_capacity(u64::MAX);
    log.append(b"three").unwrap();
    log.sync().unwrap();
    drop(log);
    let (_, records, _) = Log::open(disk, "log").unwrap();
    assert_eq!(records, [&b"one"[..], b"three"]);
}

#[test]
fn failed_sync_is_final_until_reopened() {
    let disk = SimDisk::new();
    let (log, _, _) = Log::open(disk.clone(), "log").unwrap();
    log.append(b"one").unwrap();
    disk.fail_next_sync();
    assert!(matches!(log.sync(), Err(LogError::Sync { .. })));
    assert!(matches!(log.sync(), Err(LogError::Broken { .. })));
    assert!(matches!(log.append(b"two"), Err(LogError::Broken { .. })));
}

#[test]
fn nothing_new_needs_no_sync() {
    let disk = SimDisk::new();
    let (log, _, _) = Log::open(disk.clone(), "log").unwrap();
    let before = disk.stats().syncs;
    log.sync().unwrap();
    assert_eq!(disk.stats().syncs, before);
    log.append(b"one").unwrap();
    log.sync().unwrap();
    log.sync().unwrap();
    assert_eq!(disk.stats().syncs, before + 1);
}

/// A log of four records, the third of them damaged; and where the others are.
fn damaged_log() -> (SimDisk, Log<SimDisk>, Vec<u64>) {
    let whole = build(&[b"one", b"two", b"three", b"four"]);
    let third = HEADER_BYTES + 2 * (FRAME_BYTES + 3);
    let mut bytes = whole;
    bytes[third + FRAME_BYTES] ^= 1;
    let disk = disk_with(&bytes);
    let mut sound = Vec::new();
    let (log, report) =
        Log::open_each(disk.clone(), "log", |offset, _| sound.push(offset)).unwrap();
    assert_eq!((sound.len(), report.damaged.len()), (3, 1));
    (disk, log, sound)
}

#[test]
fn log_that_is_written_anew_holds_what_was_asked_for_and_goes_on() {
    let (disk, mut log, sound) = damaged_log();
    let mut places = Vec::new();
    let settled = std::cell::Cell::new(0);
    log.write_anew(
        &sound,
        |from, to| places.push((from, to)),
        || {
            settled.set(settled.get() + 1);
            Ok(())
        },
    )
    .unwrap();
    assert!(settled.get() >= 2, "before and after the name");
    let from: Vec<u64> = places.iter().map(|(from, _)| *from).collect();
    assert_eq!(from, sound);
    for ((_, to), record) in places.iter().zip([&b"one"[..], b"two", b"four"]) {
        assert_eq!(log.read(*to).unwrap(), record);
    }
    log.append(b"five").unwrap();
    log.sync().unwrap();
    disk.crash(Crash::Scatter, &mut Rng::from_seed([1; 32]));
    assert_eq!(
        contents(&disk, "log"),
        build(&[b"one", b"two", b"four", b"five"])
    );
    assert!(disk.len("log.new").is_err());
    // A record that is not there leaves all as it is.
    let (disk, mut log, mut sound) = damaged_log();
    let before = contents(&disk, "log");
    sound.push(HEADER_BYTES as u64 + 1);
    let refused = log.write_anew(&sound, |_, _| panic!("nothing is moved"), || Ok(()));
    assert!(matches!(refused, Err(LogError::NoRecord { .. })));
    assert_eq!(contents(&disk, "log"), before);
    log.append(b"five").unwrap();
}

#[test]
fn crash_while_a_log_is_written_anew_leaves_the_old_one_or_the_new_one() {
    let (mut old, mut new, mut seed) = (0, 0, 0_u64);
    for fault in [Fault::Die, Fault::Error, Fault::Full] {
        for how in [Crash::Kill, Crash::Prefix, Crash::Scatter] {
            for after in 0..16 {
                seed += 1;
                let mut rng = Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
                let (disk, mut log, sound) = damaged_log();
                disk.fail_after(after, fault);
                let written = log.write_anew(&sound, |_, _| {}, || Ok(()));
                let wrote = log.append(b"more").is_ok() && log.sync().is_ok();
                disk.crash(how, &mut rng);
                disk.heal();
                let (_, found, report) = Log::open(disk.clone(), "log").unwrap();
                assert_eq!(found[..3], [&b"one"[..], b"two", b"four"], "seed {seed}");
                assert!(!wrote || found[3..] == [&b"more"[..]], "seed {seed}");
                assert!(written.is_err() || report.damaged.is_empty(), "seed {seed}");
                assert!(disk.len("log.new").is_err(), "seed {seed}");
                old += u32::from(!report.damaged.is_empty());
                new += u32::from(report.damaged.is_empty());
            }
        }
    }
    assert!(old > 10 && new > 10, "{old} {new}");
}

/// A thousand logs, each through several crashes at random writes.
#[test]
fn acknowledged_records_outlast_every_crash() {
    for seed in 0..1000_u64 {
        let mut rng = Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
        let disk = SimDisk::new();
        // In order: what is known to last, what was taken, what was ever tried.
        let mut acknowledged: Vec<Vec<u8>> = Vec::new();
        let mut written: Vec<Vec<u8>> = Vec::new();
        let mut tried: Vec<Vec<u8>> = Vec::new();
        for life in 0..6_u64 {
            if life < 5 && rng.below(3) > 0 {
                let fault = if rng.below(4) == 0 {
                    Fault::Error
                } else {
                    Fault::Die
                };
                disk.fail_after(rng.below(30), fault);
            }
            if let Ok((log, found, report)) = Log::open(disk.clone(), "log") {
                let front: Vec<&[u8]> = found
                    .iter()
                    .take(acknowledged.len())
                    .map(|record| &record[..])
                    .collect();
                assert_eq!(
                    front, acknowledged,
                    "seed {seed}, life {life}: acknowledged records"
                );
                assert!(
                    found
                        .iter()
                        .all(|record| tried.iter().any(|own| own == record)),
                    "seed {seed}, life {life}: a record nobody wrote"
                );
                assert_eq!(report.records, found.len() as u64);
                // What opening has told must last as well.
                acknowledged = found.iter().map(|record| record.to_vec()).collect();
                written.clone_from(&acknowledged);
                for _ in 0..rng.below(20) {
                    let mut record = vec![0; usize::try_from(rng.below(3000)).unwrap()];
                    rng.fill(&mut record);
                    tried.push(record.clone());
                    if log.append(&record).is_ok() {
                        written.push(record);
                    }
                    if rng.below(4) == 0 && log.sync().is_ok() {
                        acknowledged.clone_from(&written);
                    }
                }
            }
            let how = [Crash::Kill, Crash::Prefix, Crash::Scatter]
                [usize::try_from(rng.below(3)).unwrap()];
            disk.crash(how, &mut rng);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(seed in any::<[u8; 32]>(), len in 0..3000_usize, flips in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut rng = Rng::from_seed(seed);
        let mut record = vec![0; len];
        rng.fill(&mut record);
        let mut bytes = build(&[&record, b"x", &record]);
        for flip in flips {
            let at = flip.index(bytes.len());
            bytes[at] ^= 1 << (seed[0] % 8);
        }
        if let Ok((log, found, _)) = Log::open(disk_with(&bytes), "log") {
            prop_assert!(found.iter().all(|found| found == &record || &found[..] == b"x"));
            let _ = log.read(rng.below(bytes.len() as u64 * 2));
        }
    }
}
