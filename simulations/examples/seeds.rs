//! Runs seeds of the swarm in order until one fails: `seeds [COUNT [FIRST]]`. The exit code is 0 if none failed.
#![expect(clippy::print_stdout, reason = "this is what it is for")]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing of what runs here sees the clock or the thread"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kith_simulations::swarm;

/// A seed takes a second at most, mostly far less: one that takes so long does not end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the process when a seed does not end.
fn watch(begun: &'static AtomicU64, since: Instant) {
    std::thread::spawn(move || {
        let mut seen = (0, since.elapsed());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let (begun, now) = (begun.load(Ordering::Relaxed), since.elapsed());
            if seen.0 != begun {
                seen = (begun, now);
            } else if now.saturating_sub(seen.1) > PATIENCE {
                println!("FAILED after {begun} seeds: the last does not end");
                std::process::exit(1);
            }
        }
    });
}

fn main() -> std::process::ExitCode {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(2000);
    let first = std::env::args().nth(2).and_then(|first| first.parse().ok());
    let first: u64 = first.unwrap_or(0);
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    watch(&BEGUN, Instant::now());
    for seed in first..first + count {
        BEGUN.fetch_add(1, Ordering::Relaxed);
        // A law that a machine says of itself fails by a panic, which tells the seed with it.
        println!("seed {seed}");
        let report = swarm::run(seed, false);
        if let Some(failure) = report.failures.first() {
            println!("FAILED after {} seeds: {failure}", seed + 1 - first);
            return std::process::ExitCode::FAILURE;
        }
    }
    println!("{count} seeds, none failed");
    std::process::ExitCode::SUCCESS
}
