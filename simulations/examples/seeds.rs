//! Runs seeds of the swarm in order until one fails: `seeds [COUNT [FIRST]]`. The exit code is 0 if none failed.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use kith_simulations::swarm;

fn main() -> std::process::ExitCode {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(2000);
    let first = std::env::args().nth(2).and_then(|first| first.parse().ok());
    let first: u64 = first.unwrap_or(0);
    for seed in first..first + count {
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
