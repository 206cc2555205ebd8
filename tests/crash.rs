//! What was acknowledged survives kill -9 at any moment; what was not is absent or whole.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use kith_tests::{Kith, Place, Running, noise, run, text};

const ROUNDS: u64 = 20;
/// Files on offer in each round; the kill comes before they are all stored.
const FILES: u64 = 24;
/// Puts at a time against one daemon.
const PUTTERS: u64 = 3;

/// The file of a name, from the name alone: most are small, some take many chunks.
fn content(name: &str) -> Vec<u8> {
    let seed: u64 = name
        .trim_start_matches('f')
        .replace('-', "")
        .parse()
        .unwrap();
    let len = match seed % 5 {
        0 => 0,
        1 => 1 + seed * 7 % 100,
        2 => 4096,
        3 => 40_000 + seed * 131 % 60_000,
        _ => 400_000 + seed * 977 % 300_000,
    };
    let mut bytes = noise(seed, usize::try_from(len).unwrap());
    // Every file is another, the empty ones too.
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn name(round: u64, number: u64) -> String {
    format!("f{:03}-{number:03}", round + 100)
}

/// What was acknowledged, in a file outside the store.
struct Ledger(File);

impl Ledger {
    fn acknowledged(&mut self, put: &serde_json::Value) {
        writeln!(self.0, "{} {}", text(put, "cid"), text(put, "path")).unwrap();
        self.0.sync_data().unwrap();
    }

    fn read(path: &Path) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(cid, path)| (cid.to_owned(), path.to_owned()))
            .collect()
    }
}

/// Puts one file after the other until the daemon is gone.
fn put_until_it_dies(
    device: &Kith,
    sources: &[std::path::PathBuf],
    dead: &AtomicBool,
    acks: &Sender<serde_json::Value>,
) {
    for source in sources {
        if dead.load(Ordering::SeqCst) {
            return;
        }
        let mut command = device.command(["put", "--to", "/crash"]);
        command.arg(source);
        // Without its daemon the command would open the store itself, or wait for the lock: both are tried by the other rounds.
        for value in run(command, &[]).values() {
            if value["event"] == "put" {
                let _ = acks.send(value);
            }
        }
    }
}

/// Kills the daemon while several clients put through it.
fn round_with_daemon(
    device: &mut Kith,
    sources: &[std::path::PathBuf],
    after: u64,
    ledger: &mut Ledger,
) {
    device.up();
    let dead = AtomicBool::new(false);
    let (sender, acks) = channel();
    let client = Kith::new(env!("CARGO_BIN_EXE_kith"), device.home());
    std::thread::scope(|scope| {
        for part in sources.chunks(sources.len().div_ceil(usize::try_from(PUTTERS).unwrap())) {
            let (sender, client, dead) = (sender.clone(), &client, &dead);
            scope.spawn(move || put_until_it_dies(client, part, dead, &sender));
        }
        drop(sender);
        for count in 1.. {
            let Ok(put) = acks.recv() else { break };
            ledger.acknowledged(&put);
            if count == after {
                dead.store(true, Ordering::SeqCst);
                device.kill();
            }
        }
    });
    device.kill();
}

/// Kills the command itself, which has the store open without a daemon.
fn round_without_daemon(
    device: &Kith,
    sources: &[std::path::PathBuf],
    after: u64,
    ledger: &mut Ledger,
) {
    let mut command = device.command(["put", "--to", "/crash"]);
    command.args(sources);
    let mut putting = Running::start(command);
    let mut count = 0;
    while let Some(value) = putting.next_value() {
        if value["event"] == "put" {
            ledger.acknowledged(&value);
            count += 1;
            if count == after {
                putting.kill();
            }
        }
    }
}

/// Every name in the folder is a whole file of ours, and every acknowledged one is there.
fn assert_whole(device: &Kith, place: &Place, label: &str, acknowledged: &[(String, String)]) {
    let dest = place.file(label);
    device.ok(["get", "--wait", "/crash", "-o", dest.to_str().unwrap()]);
    for entry in fs::read_dir(&dest).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            fs::read(entry.path()).unwrap() == content(&name),
            "{label}: {name} is not whole"
        );
    }
    for (_, path) in acknowledged {
        let name = path.rsplit('/').next().unwrap();
        assert!(
            dest.join(name).is_file(),
            "{label}: {path} was acknowledged and is gone"
        );
    }
    fs::remove_dir_all(&dest).unwrap();
}

#[test]
fn acknowledged_puts_survive_twenty_kills() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut device, _) = place.first("first");
    device.ok(["mkdir", "/crash"]);
    let log = place.file("acknowledged");
    let mut ledger = Ledger(File::create(&log).unwrap());
    for round in 0..ROUNDS {
        let sources: Vec<_> = (0..FILES)
            .map(|number| name(round, number))
            .map(|name| place.write(format!("source/{name}"), content(&name)))
            .collect();
        let before = Ledger::read(&log).len();
        // Another moment each round, by what was acknowledged and not by the clock.
        let after = 1 + round * 5 % (FILES / 2);
        if round % 2 == 0 {
            round_with_daemon(&mut device, &sources, after, &mut ledger);
        } else {
            round_without_daemon(&device, &sources, after, &mut ledger);
        }
        let acknowledged = Ledger::read(&log);
        let new = acknowledged.get(before..).unwrap();
        assert!(
            new.len() as u64 >= after,
            "round {round}: only {} were acknowledged",
            new.len()
        );
        // Read what this round acknowledged, right after the crash, in a process of its own.
        for (cid, path) in new.iter().take(3) {
            let name = path.rsplit('/').next().unwrap();
            assert!(
                device.cat(cid) == content(name),
                "round {round}: {path} is not what was acknowledged"
            );
        }
        for source in sources {
            fs::remove_file(source).unwrap();
        }
    }

    let acknowledged = Ledger::read(&log);
    device.up();
    for (cid, path) in &acknowledged {
        let name = path.rsplit('/').next().unwrap();
        assert!(
            device.cat(cid) == content(name),
            "{path} is not what was acknowledged"
        );
    }
    assert_whole(&device, &place, "on-the-first", &acknowledged);

    let mut second = place.join("second", &device);
    second.up();
    second.agrees_with(&device);
    assert_whole(&second, &place, "on-the-second", &acknowledged);
    // By CID, and from its own disk: the first is gone now.
    device.kill();
    for (cid, path) in &acknowledged {
        let name = path.rsplit('/').next().unwrap();
        assert!(
            second.cat(cid) == content(name),
            "{path} is not what was acknowledged, on the second device"
        );
    }
}
