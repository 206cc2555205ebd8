//! Acknowledgements under a burst of small puts: `cargo run --release -p kith-benches --bin burst -- [FOLDER [SECONDS [PUTS_PER_SECOND]]]`.

use kith_benches::burst::{Load, burst};
use kith_benches::{load_average, quantile};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "target".to_owned());
    let mut number = |usual: u64| {
        args.next()
            .and_then(|typed| typed.parse().ok())
            .unwrap_or(usual)
    };
    let load = Load {
        seconds: number(Load::LIFELOG.seconds),
        puts_per_second: number(Load::LIFELOG.puts_per_second),
        ..Load::LIFELOG
    };
    let home = tempfile::tempdir_in(folder)?;
    let figures = burst(home.path(), load);
    println!(
        "{} puts in {:.1?}, {} commits, {} packs closed, {:.1} CPU seconds; acknowledged after p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, most {:.1} ms; load {}",
        figures.waits.len(),
        figures.took,
        figures.commits,
        figures.packs_closed,
        figures.cpu,
        figures.quantile_ms(0.5),
        figures.quantile_ms(0.99),
        figures.quantile_ms(0.999),
        figures.quantile_ms(1.0),
        load_average(),
    );
    let bare = |part| quantile(&figures.bare, part) * 1e3;
    println!(
        "beside it, 4 KiB appended to another file and synced, ten times a second: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        bare(0.5),
        bare(0.99),
        bare(1.0),
    );
    println!(
        "that is {:.2} MB/s of blocks, {:.2} ms of CPU a put",
        load.bytes_per_second() as f64 / 1e6,
        figures.cpu * 1e3 / figures.waits.len() as f64
    );
    Ok(())
}
