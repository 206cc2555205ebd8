//! put and get of a file between two processes, against one raw stream: `cargo run --release -p kith-benches --bin transfer -- target/release/kith [MiB]`.

use std::path::PathBuf;

use kith_benches::{device, median, wire};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let program = PathBuf::from(
        args.next()
            .unwrap_or_else(|| "target/release/kith".to_owned()),
    )
    .canonicalize()?;
    let mib: usize = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1024);
    let len = mib << 20;
    let mb = len as f64 / 1e6;
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut put, mut get, mut raw, mut ratio) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=3 {
        let cpu = device::cpu_of("self")?;
        let stream = runtime
            .block_on(wire::raw_stream(len as u64, "/ip4/127.0.0.1/tcp/0"))
            .mb_s();
        let stream_cpu = device::cpu_of("self")? - cpu;
        let folder = tempfile::tempdir()?;
        let measured = device::transfer(&program, folder.path(), len)?;
        let (p, g) = (
            mb / measured.put.as_secs_f64(),
            mb / measured.get.as_secs_f64(),
        );
        println!(
            "round {round}: raw stream {stream:.0} MB/s, put {p:.0} MB/s, get {g:.0} MB/s, peak memory {:.0} and {:.0} MB, CPU seconds of the three {:.2}, {:.2}, {:.2}, disk {:.3}",
            measured.holder_memory as f64 / 1e6,
            measured.getter_memory as f64 / 1e6,
            stream_cpu.as_secs_f64(),
            measured.put_cpu.as_secs_f64(),
            measured.get_cpu.as_secs_f64(),
            measured.disk_ratio,
        );
        put.push(p);
        get.push(g);
        raw.push(stream);
        ratio.push(g / stream);
    }
    println!(
        "medians of 3: raw stream {:.0} MB/s, put {:.0} MB/s, get {:.0} MB/s, get / raw {:.2}",
        median(raw),
        median(put),
        median(get),
        median(ratio)
    );
    Ok(())
}
