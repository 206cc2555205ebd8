//! What an index of so many blocks costs: `cargo run --release -p kith-benches --bin store -- 10000000`; a million if not said.

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> std::io::Result<()> {
    let blocks = std::env::args().nth(1).and_then(|typed| typed.parse().ok());
    let blocks = blocks.unwrap_or(1_000_000);
    let folder = tempfile::tempdir()?;
    let figures = kith_benches::store::index(folder.path(), blocks, 1_000_000.min(blocks));
    println!(
        "{blocks} blocks: put {:.0}/s, open {:.2?}, filter in use {:.2?}, has unknown {:.0}/s, known {:.0}/s, resident {} MB",
        figures.inserts,
        figures.reopen,
        figures.filtered,
        figures.unknown,
        figures.known,
        figures.resident_bytes / 1_000_000
    );
    Ok(())
}
