//! A million objects of 1 KiB, and what they and big files take on disk:
//! `cargo run --release -p kith-benches --bin small -- [OBJECTS [BYTES [FOLDER]]]`.

use kith_benches::{load_average, small};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, usual: u64| {
        let typed = args.get(at).and_then(|typed| typed.parse().ok());
        typed.unwrap_or(usual)
    };
    let (count, bytes) = (number(0, 1_000_000), number(1, 1024));
    let folder = args.get(2).map_or("target", String::as_str);
    let home = tempfile::tempdir_in(folder)?;
    let len = usize::try_from(bytes).map_err(std::io::Error::other)?;
    let figures = small::objects(home.path(), count, len, 10_000, 200_000.min(count));
    println!(
        "{count} objects of {bytes} bytes: put {:.0}/s ({:.1} MB/s, {:.1} CPU seconds), blocks read back in random order {:.0}/s; for each byte stored {:.3} of packs and {:.3} of index, {:.3} together; load {}",
        figures.puts,
        figures.puts * u32::try_from(bytes).map_or(f64::MAX, f64::from) / 1e6,
        figures.put_cpu,
        figures.gets,
        figures.packs,
        figures.index,
        figures.packs + figures.index,
        load_average(),
    );
    Ok(())
}
