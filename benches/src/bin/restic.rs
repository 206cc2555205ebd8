//! put and get beside `restic backup` and `restic restore`:
//! `cargo run --release --workspace --bin restic -- target/release/kith [TREE [MiB [ROUNDS [FOLDER]]]]`.
//!
//! TREE is a folder with many files (`-` for none), MiB the length of a file of random bytes (0 for none), FOLDER where all is written (four
//! times the source a round). The tree is stored with and without the compression of restic: ours always compresses what that makes smaller.

use std::io;
use std::path::{Path, PathBuf};

use kith_benches::program::{self, Cost, medians, ratio};
use kith_benches::{load_average, restic};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, usual: &str| args.get(at).map_or(usual.to_owned(), String::clone);
    let kith = PathBuf::from(arg(0, "target/release/kith")).canonicalize()?;
    let mib: u64 = arg(2, "1024").parse().map_err(io::Error::other)?;
    let rounds: usize = arg(3, "3").parse().map_err(io::Error::other)?;
    let folder = tempfile::tempdir_in(arg(4, "target"))?;
    let Some(version) = restic::version() else {
        println!("RESTIC WAS SKIPPED: it is not installed. Ours alone would say nothing here.");
        return Ok(());
    };
    println!("{version}");
    if mib > 0 {
        let source = folder.path().join("random");
        program::write_random(&source, mib << 20)?;
        compare(&kith, &source, folder.path(), rounds, "off")?;
    }
    match arg(1, "-").as_str() {
        "-" => Ok(()),
        tree => ["off", "auto"].into_iter().try_for_each(|compression| {
            compare(&kith, Path::new(tree), folder.path(), rounds, compression)
        }),
    }
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn compare(
    kith: &Path,
    source: &Path,
    folder: &Path,
    rounds: usize,
    compression: &str,
) -> io::Result<()> {
    let counted = program::warm(source)?;
    println!(
        "{}: {} files, {} MB; compression of restic: {compression}",
        source.display(),
        counted.files,
        counted.bytes / 1_000_000
    );
    let mut done = Vec::new();
    for number in 0..rounds {
        let within = folder.join(format!("{compression}-{}-{number}", counted.files));
        let round = restic::round(kith, source, &within, number % 2 == 0, compression)?;
        println!(
            "round {}: put {}, backup {}, get {}, restore {}; stored {:.3} and {:.3}; load {}",
            number + 1,
            shown(round.put),
            shown(round.backup),
            shown(round.get),
            shown(round.restore),
            round.put_bytes as f64 / counted.bytes as f64,
            round.backup_bytes as f64 / counted.bytes as f64,
            load_average(),
        );
        done.push(round);
    }
    let of = |cost: fn(&restic::Round) -> Cost| -> Vec<Cost> { done.iter().map(cost).collect() };
    let (put, get) = (of(|round| round.put), of(|round| round.get));
    let (backup, restore) = (of(|round| round.backup), of(|round| round.restore));
    for (what, ours, theirs) in [("put", put, backup), ("get", get, restore)] {
        let ratio = ratio(&ours, &theirs);
        println!(
            "{what}, medians of {rounds}: ours {}, restic {}: {:.2} of its wall clock ({:.2} times as fast), {:.2} of its CPU",
            shown(medians(&ours)),
            shown(medians(&theirs)),
            ratio.wall,
            1.0 / ratio.wall.max(1e-3),
            ratio.cpu
        );
    }
    Ok(())
}

fn shown(cost: Cost) -> String {
    format!("{:.2} s ({:.2} CPU)", cost.wall, cost.cpu)
}
