//! Six devices at 20 MB/s each that keep three copies of 2 GiB, of which one is lost: `cargo run --release --workspace --bin repair -- target/release/kith [MiB] [MB/s]`.

use std::path::PathBuf;
use std::time::Duration;

use kith_benches::load_average;
use kith_benches::repair::{Size, repair};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let program = args.next();
    let program = PathBuf::from(program.unwrap_or_else(|| "target/release/kith".to_owned()));
    let program = program.canonicalize()?;
    let mib: usize = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(2048);
    let mb_s: u64 = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(20);
    let size = Size {
        bytes: mib << 20,
        devices: 6,
        copies: 3,
        rate: mb_s * 1_000_000,
        rest: Duration::from_secs(60),
    };
    let folder = tempfile::tempdir()?;
    let repaired = repair(&program, folder.path(), size)?;
    // The five that are left each fetch their share.
    let ideal = repaired.lost_bytes as f64 / (5.0 * size.rate as f64);
    println!(
        "{mib} MiB on six devices at {mb_s} MB/s, three copies: spread after {:.1} s; at rest {:.2} % of a core; {} MB lost with one, all kept again after {:.1} s, {:.2} of bytes / bandwidth (load {})",
        repaired.spread.as_secs_f64(),
        100.0 * repaired.at_rest,
        repaired.lost_bytes / 1_000_000,
        repaired.repair.as_secs_f64(),
        ideal / repaired.repair.as_secs_f64(),
        load_average()
    );
    Ok(())
}
