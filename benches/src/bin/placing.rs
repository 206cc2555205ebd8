//! Placing 100,000 packs on 16 devices, a million holdings, and coding packs of 16 MiB: `cargo run --release -p kith-benches --bin placing`.

use kith_benches::{kernels, median, placing};
use kith_protocol::placement::Redundancy;

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() -> std::io::Result<()> {
    let memory = placing::holdings_memory(62_500)?;
    println!(
        "a million holdings of 16 devices: {} MB of memory",
        memory / 1_000_000
    );
    for redundancy in [Redundancy::Replicas(3), Redundancy::Erasure(10, 6)] {
        let took = (0..5).map(|_| placing::place(100_000, 16, redundancy).as_secs_f64() * 1000.0);
        println!(
            "100,000 packs on 16 devices, {redundancy}: {:.0} ms (median of 5)",
            median(took.collect())
        );
    }
    let pack = placing::pack(&kernels::random(16 << 20));
    let runs: Vec<_> = (0..5).map(|_| placing::code(&pack)).collect();
    for place in 0..5 {
        let each = runs.iter().filter_map(|run| run.get(place));
        let encode = median(each.clone().map(|(_, encode, _)| encode.mb_s()).collect());
        let decode = median(each.clone().map(|(_, _, decode)| decode.mb_s()).collect());
        let scheme = each.map(|(scheme, _, _)| *scheme).next();
        let (needed, spare) = scheme.unwrap_or_default();
        println!(
            "{needed}+{spare}: {encode:.0} MB/s coded, names included; {decode:.0} MB/s of a lost shard restored (medians of 5)"
        );
    }
    Ok(())
}
