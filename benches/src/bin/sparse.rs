//! Opening a store with many blocks, and the memory that takes:
//! `cargo run --release -p kith-benches --bin sparse -- [BLOCKS [BLOCK_BYTES [FOLDER]]]`, 10,000,000 of 128 KiB if not said.
//!
//! Each opening is a process of its own, so that memory is its own; the second one is killed with a pack open and unsynced.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kith_benches::load_average;
use kith_benches::sparse::{Opened, Shape, open, write};
use kith_object::id::Cid;
use kith_object::pack::Class;

/// Blocks asked for after each opening.
const ASKED: u64 = 100_000;

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, usual: u64| {
        let typed = args.get(at).and_then(|typed| typed.parse().ok());
        typed.unwrap_or(usual)
    };
    let shape = Shape {
        blocks: number(0, 10_000_000),
        block_bytes: u32::try_from(number(1, 128 << 10)).map_err(io::Error::other)?,
    };
    let folder = args.get(2).map_or("target", String::as_str);
    if let Some(home) = args.get(3) {
        return opened(Path::new(home), shape);
    }
    let home = tempfile::tempdir_in(folder)?;
    write(&home.path().join("packs"), shape)?;
    println!(
        "{} blocks of {} bytes in {} packs",
        shape.blocks,
        shape.block_bytes,
        shape.packs()
    );
    for what in [
        "first, all packs new to the index",
        "again",
        "after kill -9",
        "after kill -9, again",
    ] {
        println!(
            "{what}: {}; load {}",
            in_child(shape, home.path())?,
            load_average()
        );
    }
    Ok(())
}

/// Opens in another process, which is killed as soon as it has told its figures.
fn in_child(shape: Shape, home: &Path) -> io::Result<String> {
    let program: PathBuf = std::env::current_exe()?;
    let mut child = Command::new(program)
        .args([
            shape.blocks.to_string(),
            shape.block_bytes.to_string(),
            ".".to_owned(),
        ])
        .arg(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no output"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    if line.is_empty() {
        return Err(io::Error::other(
            "the store did not open in the other process",
        ));
    }
    Ok(line.trim_end().to_owned())
}

/// Opens, puts some blocks that are not flushed, tells its figures and waits for its end.
#[expect(
    clippy::print_stdout,
    reason = "read by the process that began this one"
)]
fn opened(home: &Path, shape: Shape) -> io::Result<()> {
    let (store, figures) = open(home, shape, ASKED);
    for number in 0..200_u64 {
        let block = number.to_le_bytes().repeat(4096);
        let cid = Cid::of_block(&block);
        store
            .put(Class::Bulk, &cid, &block)
            .map_err(io::Error::other)?;
    }
    let Opened {
        took,
        cpu,
        filtered,
        report,
        resident_bytes,
    } = figures;
    println!(
        "open in {took:.2?} ({cpu:.2} CPU seconds), filter in use after {filtered:.2?}, {} packs taken up, {} recovered, resident {} MB",
        report.indexed,
        report.recovered,
        resident_bytes / 1_000_000
    );
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
