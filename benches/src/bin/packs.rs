//! Packs of 8 to 64 MiB compared: `cargo run --release -p kith-benches --bin packs -- [MiB [ROUNDS [FOLDER]]]`.

use kith_benches::packs::{collect, measure};
use kith_benches::{load_average, median};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, usual: u64| {
        let typed = args.get(at).and_then(|typed| typed.parse().ok());
        typed.unwrap_or(usual)
    };
    let (mib, rounds) = (number(0, 2048), number(1, 3));
    let folder = args.get(2).map_or("target", String::as_str);
    let sizes = [8_u64, 16, 32, 64];
    let mut measured = vec![Vec::new(); sizes.len()];
    for _ in 0..rounds {
        for (size, figures) in sizes.iter().zip(&mut measured) {
            let home = tempfile::tempdir_in(folder)?;
            figures.push(measure(home.path(), size << 20, mib << 20));
            drop(home);
            rustix::fs::sync();
        }
    }
    for (size, figures) in sizes.iter().zip(&measured) {
        let of = |figure: fn(&kith_benches::packs::Figures) -> f64| {
            median(figures.iter().map(figure).collect())
        };
        let (some, many) = (
            collect(size << 20, 200_000, 0.3),
            collect(size << 20, 200_000, 0.6),
        );
        println!(
            "{size} MiB: put {:.0} MB/s, get {:.0} MB/s, in random order {:.0} MB/s; commit beside it p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms; with 30 % dead {:.2} bytes copied for each freed and {:.0} % of the dead left, with 60 % {:.2} and {:.0} %",
            of(|figures| figures.put.mb_s()),
            of(|figures| figures.get.mb_s()),
            of(|figures| figures.get_random.mb_s()),
            of(|figures| figures.commit_ms(0.5)),
            of(|figures| figures.commit_ms(0.99)),
            of(|figures| figures.commit_ms(1.0)),
            some.copied,
            some.left * 100.0,
            many.copied,
            many.left * 100.0,
        );
    }
    println!(
        "medians of {rounds}, {mib} MiB each; load {}",
        load_average()
    );
    Ok(())
}
