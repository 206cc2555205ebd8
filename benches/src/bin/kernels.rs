//! Chunk + seal + hash against its kernels: `cargo run --release -p kith-benches --bin kernels`.

use kith_benches::{kernels, median};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let bytes = kernels::random(256 << 20);
    let (mut writer, mut kernel, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let (one, other) = (
            kernels::writer(&bytes).mb_s(),
            kernels::kernels(&bytes).mb_s(),
        );
        writer.push(one);
        kernel.push(other);
        ratio.push(one / other);
    }
    println!(
        "object layer {:.0} MB/s, kernels in sequence {:.0} MB/s, ratio {:.2} (medians of 5)",
        median(writer),
        median(kernel),
        median(ratio)
    );
}
