//! Many small puts a second, each acknowledged when it lasts: how long the acknowledgement takes while packs are closed in the background.
//!
//! The load is open: puts come by the clock, whether or not earlier ones are done, and each wait is counted from the moment the put was due.
//! So a store that stands still for a second is charged for all that came in that second.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kith_node::config::{Durability, Settings};
use kith_node::store::{DiskStore, RealDisk, open_logs, open_store};
use kith_object::id::{Cid, SpaceId};
use kith_object::key::{Rng, Secret};
use kith_object::log::Log;
use kith_object::pack::Class;
use kith_object::time::Time;

use crate::{cpu_seconds, quantile};

/// Bytes of an entry as the log has them, payload reference and signature included.
const ENTRY_BYTES: usize = 320;
/// How often the node looks after its packs.
const TICK: Duration = Duration::from_secs(1);
/// How often the disk alone is asked.
const BARE_EVERY: Duration = Duration::from_millis(100);

/// What comes in.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Small puts a second.
    pub puts_per_second: u64,
    /// Bytes of a small put.
    pub put_bytes: usize,
    /// Bytes of the large block that comes once a second.
    pub large_bytes: usize,
    /// For how long.
    pub seconds: u64,
    /// Puts that may be under way at once.
    pub clients: usize,
}

impl Load {
    /// The burst that a lifelog brings: events, and a picture of the screen each second.
    pub const LIFELOG: Self = Self {
        puts_per_second: 3_600,
        put_bytes: 1_700,
        large_bytes: 256 << 10,
        seconds: 60,
        clients: 500,
    };

    /// Bytes of blocks that come in each second.
    pub fn bytes_per_second(&self) -> u64 {
        self.puts_per_second * self.put_bytes as u64 + self.large_bytes as u64
    }

    fn puts(&self) -> u64 {
        (self.puts_per_second + 1) * self.seconds
    }

    /// When a put is due, and whether it is the large one of its second.
    fn due(&self, number: u64) -> (Duration, bool) {
        let each = self.puts_per_second + 1;
        let (second, within) = (number / each, number % each);
        let due = Duration::from_secs(second) + Duration::from_secs(1).mul_f64(share(within, each));
        (due, within == 0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Acknowledgements, each in seconds from the moment its put was due; sorted.
    pub waits: Vec<f64>,
    /// Appends to another file on the same disk meanwhile, each with its sync, in seconds; sorted.
    pub bare: Vec<f64>,
    /// Packs closed meanwhile.
    pub packs_closed: u64,
    /// Commits of the store.
    pub commits: u64,
    /// CPU seconds of the process, its load included.
    pub cpu: f64,
    /// From the first put due to the last acknowledged.
    pub took: Duration,
}

impl Figures {
    /// The wait that this part of all does not exceed, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        quantile(&self.waits, part) * 1e3
    }
}

/// Runs a load against the store and a log in an empty folder, as the node does it: the block is flushed, then an entry is appended and synced.
///
/// # Panics
/// If the store fails, or a block is not there afterwards.
pub fn burst(home: &Path, load: Load) -> Figures {
    let settings = Settings::default();
    let space = SpaceId([5; 32]);
    let (store, _) =
        open_store(home, space, &Secret::new([3; 32]), settings).expect("a store that opens");
    let logs = open_logs(home, Durability::Group).expect("a folder for logs");
    let (log, _, _) = Log::open(logs, "entries.log").expect("a log that opens");
    let (next, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let (mut waits, bare): (Vec<f64>, Vec<f64>) = std::thread::scope(|scope| {
        let tending = scope.spawn(|| tend(&store, &ended, began));
        let asking = scope.spawn(|| bare_syncs(home, &ended));
        let clients: Vec<_> = (0..load.clients)
            .map(|_| scope.spawn(|| client(&store, &log, load, &next, began)))
            .collect();
        let waits = clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client that ends"))
            .collect();
        ended.store(true, Ordering::Release);
        tending.thread().unpark();
        let bare = asking.join().expect("a thread that ends");
        (waits, bare.expect("a disk that takes a file"))
    });
    let took = began.elapsed();
    waits.sort_by(f64::total_cmp);
    let stats = store.stats();
    for number in [0, load.puts() / 2, load.puts() - 1] {
        let block = block(load, number);
        let found = store
            .get(&Cid::of_block(&block))
            .expect("a block that is read");
        assert_eq!(found.as_deref(), Some(&block[..]), "what was put is there");
    }
    Figures {
        waits,
        bare,
        packs_closed: stats.packs_closed,
        commits: stats.commits,
        cpu: cpu_seconds() - cpu,
        took,
    }
}

/// Appends a little to a file of its own ten times a second and syncs it; answers the seconds of each, sorted. What this takes is the doing
/// of the disk and of whoever else writes to it.
fn bare_syncs(folder: &Path, ended: &AtomicBool) -> std::io::Result<Vec<f64>> {
    let mut file = std::fs::File::create(folder.join("bare"))?;
    let mut waits = Vec::new();
    while !ended.load(Ordering::Acquire) {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        waits.push(began.elapsed().as_secs_f64());
        std::thread::park_timeout(BARE_EVERY);
    }
    waits.sort_by(f64::total_cmp);
    Ok(waits)
}

/// What the node does beside: idle and full packs are closed.
fn tend(store: &DiskStore, ended: &AtomicBool, began: Instant) {
    while !ended.load(Ordering::Acquire) {
        std::thread::park_timeout(TICK);
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        store.tick(Time(now)).expect("packs that close");
        std::hint::black_box(store.born());
    }
}

/// Takes the next put that nobody has, waits until it is due, and sees it through; answers how long each took.
fn client(
    store: &DiskStore,
    log: &Log<RealDisk>,
    load: Load,
    next: &AtomicU64,
    began: Instant,
) -> Vec<f64> {
    let mut waits = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= load.puts() {
            return waits;
        }
        let block = block(load, number);
        let due = load.due(number).0;
        if let Some(early) = due.checked_sub(began.elapsed()) {
            std::thread::sleep(early);
        }
        let cid = Cid::of_block(&block);
        store
            .put(Class::Stream, &cid, &block)
            .expect("a block that is written");
        store.flush().expect("a block that lasts");
        let mut entry = [0; ENTRY_BYTES];
        Rng::from_seed(*blake3::hash(&block).as_bytes()).fill(&mut entry);
        log.append(&entry).expect("an entry that is written");
        log.sync().expect("an entry that lasts");
        waits.push(began.elapsed().saturating_sub(due).as_secs_f64());
    }
}

/// Bytes that differ from those of all other puts.
fn block(load: Load, number: u64) -> Vec<u8> {
    let (_, large) = load.due(number);
    let mut block = vec![
        0;
        if large {
            load.large_bytes
        } else {
            load.put_bytes
        }
    ];
    Rng::from_seed(*blake3::hash(&number.to_le_bytes()).as_bytes()).fill(&mut block);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_put_is_acknowledged_once_and_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let load = Load {
            puts_per_second: 300,
            seconds: 1,
            clients: 20,
            ..Load::LIFELOG
        };
        let figures = burst(folder.path(), load);
        assert_eq!(figures.waits.len(), 301);
        assert!(figures.waits.iter().all(|wait| *wait > 0.0));
        assert!(!figures.bare.is_empty() && figures.bare.is_sorted());
        assert!(figures.commits > 0 && figures.quantile_ms(0.5) <= figures.quantile_ms(0.999));
    }

    #[test]
    fn puts_are_due_evenly() {
        let load = Load::LIFELOG;
        assert_eq!(load.due(0), (Duration::ZERO, true));
        assert_eq!(load.due(3_601), (Duration::from_secs(1), true));
        let (due, large) = load.due(3_600);
        assert!(!large && due < Duration::from_secs(1));
    }
}
