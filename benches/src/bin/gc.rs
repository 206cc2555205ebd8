//! Garbage collection: `cargo run --release -p kith-benches --bin gc -- [FOLDER [FILES [FILE_BYTES]]]`.

use kith_benches::gc::measure;
use kith_benches::{Measured, load_average};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "target".to_owned());
    let mut number = |usual: usize| {
        let typed = args.next();
        typed.and_then(|typed| typed.parse().ok()).unwrap_or(usual)
    };
    let (files, file_bytes) = (number(3000), number(1 << 20));
    let home = tempfile::tempdir_in(folder)?;
    let figures = measure(home.path(), files, file_bytes);
    let took = figures.walk + figures.survey + figures.retire + figures.drop;
    let rate = Measured {
        bytes: figures.before,
        took,
    };
    println!(
        "{} of {} files kept, {:.0} MB of packs: {:.0} MB free again, {:.0} MB copied; walk {:.2?} ({} blocks), survey {:.2?}, copying {:.2?}, dropping {:.2?}; {:.0} MB/s, {:.2} CPU seconds per GB; load {}",
        figures.files.0,
        figures.files.1,
        figures.before as f64 / 1e6,
        figures.freed as f64 / 1e6,
        figures.copied as f64 / 1e6,
        figures.walk,
        figures.reached,
        figures.survey,
        figures.retire,
        figures.drop,
        rate.mb_s(),
        figures.cpu / (figures.before as f64 / 1e9),
        load_average(),
    );
    Ok(())
}
