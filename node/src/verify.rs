//! Checks a home: packs, logs, index, and the small files with keys and settings.
//!
//! Spec: `protocol/spec/store.md`, "Scrub".

use std::fs;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;

use kith_object::disk::Disk;
use kith_object::id::{Cid, PackId};
use kith_object::key::DeviceKeys;
use kith_object::log::{self, LogReport};
use kith_object::pack::{self, PACK_BYTES_MAX};
use kith_object::scrub::Scrub;
use kith_object::store::{Damage, IndexFault, RecoveryReport, StoreError};
use kith_object::time::Time;

use crate::config::{Durability, Home, HomeError, KEY_FILE, SETTINGS_FILE, unchecked_text};
use crate::outside::published::{self, PUBLISHED_FILE};
use crate::pins::{self, PINS_FILE};
use crate::run::{
    ACCESS_FILE, AGES_FILE, BOOK_FILE, HOLDINGS_BYTES_MAX, HOLDINGS_FILE, LOG, PORTS_DOMAIN,
    PORTS_FILE, RECORDS_BYTES_MAX, RECORDS_FILE, TICKETS_FILE, access_copy,
};
use crate::store::{self, DiskStore, RealDisk};

/// The place in the round of the daemon's own checks.
pub(crate) const ROUND_FILE: &str = "scrub";
/// The place in a check that a person started.
pub(crate) const PLACE_FILE: &str = "verify";
/// Looks at the end of a log that somebody may be writing to.
const LOG_LOOKS: usize = 5;

/// Something that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the home on.
    pub file: String,
    /// Where in it.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// Blocks that are damaged there.
    pub blocks: Vec<Cid>,
    /// Of these, blocks that are nowhere else on this disk.
    pub lost: Vec<Cid>,
    /// What was done about it; if nothing was, a person or another device has to.
    pub mended: Option<String>,
}

impl Finding {
    pub(crate) fn of(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            offset: None,
            what: what.into(),
            blocks: Vec::new(),
            lost: Vec::new(),
            mended: None,
        }
    }
}

/// Checks the small files, and changes nothing. Files that are not there are not damaged.
///
/// Without keys those that are sealed under them are not looked at.
pub(crate) fn check_files(home: &Home, keys: Option<&DeviceKeys>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Err(error) = home.identity() {
        found.push(Finding::of(KEY_FILE, told(&error)));
    }
    match home.settings() {
        Err(HomeError::SettingsDamaged { .. }) => {
            found.push(Finding::of(SETTINGS_FILE, "not what was written"))
        }
        Err(error) => found.push(Finding::of(SETTINGS_FILE, told(&error))),
        Ok(_) => {}
    }
    let read = |name: &str| match fs::read(home.path().join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read),
    };
    let mut check = |name: &str, sound: &dyn Fn(&[u8]) -> bool| match read(name) {
        None => {}
        Some(Ok(bytes)) if sound(&bytes) => {}
        Some(Ok(_)) => found.push(Finding::of(name, "not what was written")),
        Some(Err(error)) => found.push(Finding::of(name, format!("cannot be read: {error}"))),
    };
    check(PORTS_FILE, &|bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| unchecked_text(PORTS_DOMAIN, text).is_some())
    });
    check(ROUND_FILE, &Scrub::is_place);
    check(PLACE_FILE, &Scrub::is_place);
    if let Some(keys) = keys {
        for name in [AGES_FILE, BOOK_FILE, TICKETS_FILE] {
            check(name, &|_| home.read_sealed(name, keys).is_some());
        }
        check(RECORDS_FILE, &|_| {
            let kept = home.read_sealed_strictly(RECORDS_FILE, keys, RECORDS_BYTES_MAX);
            kept.is_ok_and(|kept| kept.is_some())
        });
        check(HOLDINGS_FILE, &|_| {
            let kept = home.read_sealed_strictly(HOLDINGS_FILE, keys, HOLDINGS_BYTES_MAX);
            kept.is_ok_and(|kept| kept.is_some())
        });
        check(ACCESS_FILE, &|_| access_copy(home, keys).is_some());
        if let Err(error) = published::read(home, keys) {
            found.push(Finding::of(PUBLISHED_FILE, format!("{}; as long as it is so, nothing public is served and nothing of it is removed. Delete the file, and all that was put with --public is served again, but not listed: put again what is to be", told(&error))));
        }
        if let Err(error) = pins::read(home, keys) {
            found.push(Finding::of(PINS_FILE, format!("{}; nothing is removed while it is so: delete it and pin again what you want to keep", told(&error))));
        }
    }
    found
}

/// The file of the log, from the home on.
pub(crate) fn log_file() -> String {
    format!("logs/{LOG}")
}

/// The places of the log that hold no intact record.
pub(crate) fn damaged_places(home: &Home) -> io::Result<Vec<Range<u64>>> {
    let disk = store::open_logs(home.path(), Durability::Group).map_err(io::Error::other)?;
    let mut check = log::check(&disk, LOG)?;
    // What stands at the end may be half of what is being written.
    for _ in 0..LOG_LOOKS {
        if check
            .damaged
            .last()
            .is_none_or(|last| last.end < check.bytes)
        {
            break;
        }
        check = log::check(&disk, LOG)?;
    }
    Ok(check.damaged)
}

/// Keeps a copy of what stands in damaged places of the log, behind what was kept before.
pub(crate) fn keep_damaged(home: &Home, places: &[Range<u64>]) -> io::Result<()> {
    let folder = home.path().join(store::LOGS);
    let log = fs::File::open(folder.join(LOG))?;
    let mut copy = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join(format!("{LOG}.bad")))?;
    for place in places {
        let mut part = &log;
        part.seek(io::SeekFrom::Start(place.start))?;
        io::copy(&mut part.take(place.end - place.start), &mut copy)?;
    }
    copy.sync_all()
}

/// Checks the logs, and changes nothing.
pub(crate) fn check_logs(home: &Home) -> Vec<Finding> {
    match damaged_places(home) {
        Ok(places) => places.into_iter().map(damaged_place).collect(),
        Err(error) => vec![Finding::of(log_file(), format!("cannot be read: {error}"))],
    }
}

/// Checks the packs of a home that does not open, and changes nothing.
pub(crate) fn check_packs(home: &Home) -> Vec<Finding> {
    let folder = home.path().join(store::PACKS);
    let disk = match RealDisk::open(&folder) {
        Ok(disk) => disk,
        Err(error) => {
            return vec![Finding::of(
                store::PACKS,
                format!("cannot be read: {error}"),
            )];
        }
    };
    let names = disk.list().unwrap_or_default();
    let mut found = Vec::new();
    for name in names {
        let Some((stem, "pack" | "cache")) = name.rsplit_once('.') else {
            continue;
        };
        let bytes = match disk.len(&name) {
            Ok(len) if len > PACK_BYTES_MAX as u64 => Ok(Vec::new()),
            Ok(len) => disk.read_at(&name, 0, usize::try_from(len).unwrap_or(0)),
            Err(error) => Err(error),
        };
        let file = format!("{}/{name}", store::PACKS);
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                found.push(Finding::of(file, format!("cannot be read: {error}")));
                continue;
            }
        };
        let what = if stem.starts_with("open-") {
            // Its end may be torn; that is settled when it is opened.
            let damaged = pack::scan(&bytes).is_damaged();
            damaged.then(|| "damaged in the middle".to_owned())
        } else {
            match (pack::check(&bytes), stem.parse::<PackId>()) {
                (Ok(pack), Ok(id)) if pack.id == id => None,
                (Err(error), _) => Some(error.to_string()),
                _ => Some(pack::PackError::Name.to_string()),
            }
        };
        if let Some(what) = what {
            let sound = pack::scan(&bytes).blocks;
            let mut bad = pack::said(&bytes);
            bad.retain(|block| !sound.iter().any(|sound| sound.cid == block.cid));
            found.push(Finding {
                offset: bad.first().map(|block| u64::from(block.offset)),
                blocks: bad.iter().map(|block| block.cid).collect(),
                ..Finding::of(file, what)
            });
        }
    }
    found
}

/// What opening the store met, as findings.
pub(crate) fn of_recovery(report: &RecoveryReport) -> Vec<Finding> {
    let pack = |name: &dyn std::fmt::Display| format!("{}/{name}", store::PACKS);
    let mut found = Vec::new();
    for name in &report.damaged {
        let was = name.trim_end_matches(".bad");
        found.push(Finding {
            mended: Some(format!("set aside as {name}, its sound blocks copied")),
            ..Finding::of(pack(&was), "damaged")
        });
    }
    for (name, at) in &report.cut {
        found.push(Finding {
            offset: Some(*at),
            mended: Some("cut off there".to_owned()),
            ..Finding::of(
                pack(name),
                "ended in no whole record, as a write that is cut short does",
            )
        });
    }
    for id in &report.vanished {
        found.push(Finding::of(
            pack(&format!("{id}.pack")),
            "the index knew it and it is not there; what it held comes from another device when it is read",
        ));
    }
    for (name, why) in &report.waiting {
        found.push(Finding::of(
            pack(name),
            format!("waits to be mended: {why}"),
        ));
    }
    found
}

/// What opening the log met: places that are damaged, and an end that was cut off.
pub(crate) fn of_log(len: u64, report: &LogReport) -> Vec<Finding> {
    let places = report.damaged.iter().cloned().map(damaged_place);
    let torn = (report.torn_bytes > 0).then(|| Finding {
        offset: Some(len),
        mended: Some(format!("cut off there; a copy is in logs/{LOG}.torn")),
        ..Finding::of(
            format!("logs/{LOG}"),
            format!(
                "{} bytes at the end were no whole record",
                report.torn_bytes
            ),
        )
    });
    places.chain(torn).collect()
}

fn damaged_place(place: Range<u64>) -> Finding {
    Finding {
        offset: Some(place.start),
        ..Finding::of(
            log_file(),
            format!("{} bytes hold no intact record", place.end - place.start),
        )
    }
}

pub(crate) fn of_damage(damage: Damage) -> Finding {
    let mended = match &damage.aside {
        Ok(name) if *name == damage.file => None,
        Ok(name) => Some(format!("set aside as {name}, its sound blocks copied")),
        Err(_) => None,
    };
    let what = match &damage.aside {
        Ok(name) if *name == damage.file => "it is gone".to_owned(),
        Ok(_) => damage.what.to_string(),
        Err(error) => format!(
            "{}; it could not be set aside: {}",
            damage.what,
            told(error)
        ),
    };
    Finding {
        file: format!("{}/{}", store::PACKS, damage.file),
        offset: Some(damage.offset),
        what,
        blocks: damage.bad.iter().map(|block| block.cid).collect(),
        lost: damage.lost,
        mended,
    }
}

/// A pack of which nothing is known.
pub(crate) fn of_failure(pack: &PackId, error: &StoreError) -> Finding {
    Finding::of(
        format!("{}/{pack}.pack", store::PACKS),
        format!("cannot be checked: {}", told(error)),
    )
}

/// Compares the index with the packs; mends what can be mended.
pub(crate) fn compare_index(store: &DiskStore) -> Vec<Finding> {
    let fault = |fault| match fault {
        IndexFault::Lacks { pack, blocks } => Finding {
            mended: Some("put in".to_owned()),
            ..Finding::of("index", format!("lacks {blocks} blocks of pack {pack}"))
        },
        IndexFault::Exceeds { pack, blocks } => Finding::of(
            "index",
            format!("knows {blocks} places too many in pack {pack}; run `kith store rebuild`"),
        ),
    };
    match store.compare_index() {
        Ok(faults) => faults.into_iter().map(fault).collect(),
        // Noted by the index itself: the next start makes it anew.
        Err(error @ StoreError::Index { .. }) => {
            vec![Finding::of(
                "index",
                format!("{}; the next start makes it anew", told(&error)),
            )]
        }
        Err(error) => vec![Finding::of(store::PACKS, told(&error))],
    }
}

/// Where a kept place stands, if it is one.
pub(crate) fn kept_place(home: &Home, name: &str) -> Vec<u8> {
    fs::read(home.path().join(name)).unwrap_or_default()
}

/// An error with its causes, in a line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Checks all that can be checked of a home whose device does not open, and changes nothing.
///
/// The caller holds the lock of the home.
pub fn check_closed(home: &Home) -> Vec<Finding> {
    let keys = home.identity().ok().map(|identity| identity.keys);
    let mut found = check_files(home, keys.as_ref());
    found.extend(check_logs(home));
    found.extend(check_packs(home));
    found
}

/// How long until a moment, as the system waits.
pub(crate) fn until(now: Time, then: Time) -> std::time::Duration {
    std::time::Duration::from_millis(then.since(now).as_ms())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use kith_protocol::api::{Name, Request};

    use super::*;
    use crate::config::Settings;
    use crate::local::{Service, call_here, no_input};
    use crate::run::Node;

    /// A small device with all kinds of files, closed in order.
    async fn device(folder: &Path) -> Home {
        let home = Home::at(folder.join("home"));
        Node::create(&home, "one", |_| Ok(())).await.unwrap();
        let file = folder.join("file");
        fs::write(&file, vec![7; 3000]).unwrap();
        home.write_settings(Settings {
            quota: Some(1 << 40),
            ..Settings::default()
        })
        .unwrap();
        let keys = home.identity().unwrap().keys;
        for name in [
            AGES_FILE,
            BOOK_FILE,
            HOLDINGS_FILE,
            RECORDS_FILE,
            TICKETS_FILE,
        ] {
            let mut rng = crate::config::fresh_rng();
            home.write_sealed(name, &keys, &mut rng, b"sealed").unwrap();
        }
        let mut rng = crate::config::fresh_rng();
        home.write_sealed(PINS_FILE, &keys, &mut rng, b"kithpin1\0\0\0\0")
            .unwrap();
        let mut rng = crate::config::fresh_rng();
        home.write_sealed(PUBLISHED_FILE, &keys, &mut rng, b"kithpub1")
            .unwrap();
        let ports = crate::config::checked_text(PORTS_DOMAIN, "1 2 3 4\n".to_owned());
        home.write_whole(PORTS_FILE, ports.as_bytes()).unwrap();
        let request = Request::Put {
            sources: vec![Name(file.to_str().unwrap().as_bytes().to_vec())],
            to: None,
            contents: false,
        };
        for request in [request, Request::Status] {
            let node = Node::open(home.clone()).await.unwrap();
            let service: Arc<dyn Service> = node.clone();
            let mut call = call_here(service, request, no_input());
            while call.next().await.unwrap().is_some() {}
            node.close().await;
        }
        home
    }

    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    /// Every byte of every file but the index and the lock, which hold nothing that is not made again.
    #[tokio::test]
    async fn every_flipped_byte_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = device(folder.path()).await;
        // The daemon's place in its round.
        let mut scrub = Scrub::new(kith_object::scrub::Pace::STEADY);
        scrub.handle(Time(1), kith_object::scrub::Input::Wake);
        scrub.handle(Time(1), kith_object::scrub::Input::Packs(Vec::new()));
        scrub.handle(Time(1), kith_object::scrub::Input::RestChecked);
        while let Some(effect) = scrub.poll_effect() {
            if let kith_object::scrub::Effect::Keep(place) = effect {
                home.write_whole(ROUND_FILE, &place).unwrap();
            }
        }
        assert_eq!(check_closed(&home), []);
        let mut all = Vec::new();
        files(home.path(), &mut all);
        let name = |path: &Path| {
            path.strip_prefix(home.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        all.retain(|path| !name(path).starts_with("index") && name(path) != "lock");
        let kinds: BTreeSet<String> = all
            .iter()
            .map(|path| name(path).split('/').next().unwrap().to_owned())
            .collect();
        let expected = [
            ACCESS_FILE,
            AGES_FILE,
            KEY_FILE,
            "logs",
            "packs",
            BOOK_FILE,
            HOLDINGS_FILE,
            PINS_FILE,
            PORTS_FILE,
            PUBLISHED_FILE,
            RECORDS_FILE,
            ROUND_FILE,
            SETTINGS_FILE,
            TICKETS_FILE,
        ];
        assert_eq!(kinds, expected.map(str::to_owned).into());
        let mut flipped = 0;
        for path in &all {
            let good = fs::read(path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                fs::write(path, &bad).unwrap();
                let found = check_closed(&home);
                assert!(
                    found.iter().any(|finding| finding.file == name(path)),
                    "byte {at} of {}: {found:?}",
                    name(path)
                );
                if !name(path).starts_with(KEY_FILE) {
                    assert_eq!(found.len(), 1, "nothing else is named: {found:?}");
                }
                flipped += 1;
            }
            fs::write(path, &good).unwrap();
        }
        assert!(flipped > 3000, "{flipped} bytes");
        assert_eq!(check_closed(&home), []);
    }

    /// The same with the store open: what is named is set aside, and every sound block stays.
    #[tokio::test]
    async fn flipped_bytes_of_packs_are_named_and_cost_no_sound_block() {
        let folder = tempfile::tempdir().unwrap();
        let home = device(folder.path()).await;
        let identity = home.identity().unwrap();
        let key = identity.keys.local_secret("kith index 1");
        let packs = home.path().join(store::PACKS);
        let mut all = Vec::new();
        files(&packs, &mut all);
        let path = all
            .iter()
            .max_by_key(|path| fs::metadata(path).unwrap().len());
        let path = path.unwrap();
        let good = fs::read(path).unwrap();
        let blocks = pack::check(&good).unwrap().blocks;
        let step = if std::env::var_os("KITH_LARGE").is_some() {
            1
        } else {
            67
        };
        for at in (0..good.len()).step_by(step) {
            for file in fs::read_dir(&packs).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
            let mut bad = good.clone();
            // What the index knows, damaged behind its back.
            fs::write(path, &good).unwrap();
            let (store, _) =
                store::open_store(home.path(), identity.space, &key, Settings::default()).unwrap();
            bad[at] ^= 0x10;
            fs::write(path, &bad).unwrap();
            let id = store.packs().unwrap()[0].0;
            let damage = of_damage(store.scrub_pack(&id).unwrap().unwrap());
            assert!(damage.file.ends_with(&format!("{id}.pack")), "byte {at}");
            assert!(damage.mended.is_some(), "byte {at}: {damage:?}");
            assert!(damage.blocks.len() <= 1, "byte {at}: {damage:?}");
            assert_eq!(damage.lost, damage.blocks);
            assert_eq!(store.lost_blocks().unwrap(), damage.lost);
            for block in &blocks {
                let there = store.get(&block.cid).unwrap();
                assert_eq!(
                    there.is_none(),
                    damage.lost.contains(&block.cid),
                    "byte {at}"
                );
            }
            store.close_packs().unwrap();
            assert_eq!(compare_index(&store), []);
        }
    }
}
