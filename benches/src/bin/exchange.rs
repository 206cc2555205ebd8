//! A file from one peer and from three, many small files, small objects one by one, Kubo beside it:
//! `cargo run --release --workspace --bin exchange -- target/release/kith [MiB] [ROUNDS] [PYTHON]`.

use std::path::{Path, PathBuf};

use kith_benches::{exchange, load_average, median, quantile, warm};

/// Objects of 1 KiB.
const SMALL: usize = 200;

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let program = args.next();
    let program = PathBuf::from(program.unwrap_or_else(|| "target/release/kith".to_owned()));
    let program = program.canonicalize()?;
    let mib: usize = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1024);
    let rounds: usize = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(3);
    let python = args.next();
    let (len, mb) = (mib << 20, (mib << 20) as f64 / 1e6);
    // What a device keeps and what it writes out, and a rest.
    let room = (3 * mib as u64) << 20;
    let (mut one, mut three) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let devices = exchange::mesh(&program, folder.path(), 5)?;
        std::fs::write(at("file"), kith_benches::kernels::random(len))?;
        let (_, put) = exchange::does(&devices, 0, &["put", &at("file"), "--to", "/file"])?;
        let cid = put.get("cid").and_then(|cid| cid.as_str()).unwrap_or("");
        let get = |which: usize, to: &str| {
            warm(folder.path(), room)?;
            exchange::does(&devices, which, &["get", cid, "--wait", "-o", to])
        };
        let (first, _) = get(1, &at("got1"))?;
        get(2, &at("got2"))?;
        // Three have it now.
        let (last, said) = get(3, &at("got3"))?;
        let from = said.get("from").and_then(|from| from.as_array());
        let shares: Vec<u64> = from
            .into_iter()
            .flatten()
            .filter_map(|peer| Some(peer.get("bytes")?.as_u64()? / 1_000_000))
            .collect();
        let memory = |which: usize| {
            let device = devices.get(which).map(|device| device.peak_memory());
            device.transpose().ok().flatten().unwrap_or(0) / 1_000_000
        };
        println!(
            "round {round}: from one {:.0} MB/s, {:.2} CPU s/GB; from three {:.0} MB/s, {:.2} CPU s/GB, shares in MB {shares:?}, twice {:.2} %; peak memory of holder and getter {} and {} MB (load {})",
            mb / first.wall.as_secs_f64(),
            first.cpu.as_secs_f64() / (mb / 1e3),
            mb / last.wall.as_secs_f64(),
            last.cpu.as_secs_f64() / (mb / 1e3),
            100.0 * (shares.iter().sum::<u64>() as f64 / mb / 1.014 - 1.0),
            memory(0),
            memory(3),
            load_average()
        );
        one.push(mb / first.wall.as_secs_f64());
        three.push(mb / last.wall.as_secs_f64());
        drop(devices);
        packs(&program, Path::new(&at("file")), mb, room)?;
        if let Some(python) = &python {
            beside(python, folder.path(), Path::new(&at("file")), mb, room)?;
        }
    }
    println!(
        "medians: from one {:.0} MB/s, from three {:.0} MB/s",
        median(one),
        median(three)
    );
    let folder = tempfile::tempdir()?;
    let devices = exchange::mesh(&program, folder.path(), 2)?;
    let source = folder.path().join("many");
    exchange::files(&source, 10_000, 4096)?;
    let path = source.to_string_lossy();
    let (put, _) = exchange::does(&devices, 0, &["put", &path, "--to", "/many"])?;
    let dest = folder.path().join("out").to_string_lossy().into_owned();
    let (get, _) = exchange::does(&devices, 1, &["get", "/many", "--wait", "-o", &dest])?;
    println!(
        "10,000 files of 4 KiB: put {:.0} a second, {:.2} CPU s; get {:.0} a second, {:.2} CPU s (load {})",
        10_000.0 / put.wall.as_secs_f64(),
        put.cpu.as_secs_f64(),
        10_000.0 / get.wall.as_secs_f64(),
        get.cpu.as_secs_f64(),
        load_average()
    );
    let mut cids = Vec::new();
    let bytes = kith_benches::kernels::random(1024 * SMALL);
    for (n, bytes) in bytes.chunks(1024).enumerate() {
        let file = folder.path().join("small");
        std::fs::write(&file, bytes)?;
        let to = format!("/small-{n}");
        let args = ["put", &file.to_string_lossy(), "--to", &to];
        let (_, put) = exchange::does(&devices, 0, &args)?;
        let cid = put.get("cid").and_then(|cid| cid.as_str());
        cids.extend(cid.map(str::to_owned));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let home = folder.path().join("device1");
    let took = runtime.block_on(exchange::small(&home, &cids, 1024))?;
    println!(
        "1 KiB got by the local API from a connected peer, {} times: median {:.2} ms, p95 {:.2} ms (load {})",
        took.len(),
        quantile(&took, 0.5),
        quantile(&took, 0.95),
        load_average()
    );
    Ok(())
}

/// The same file pinned, which moves whole packs: from one peer and from three.
#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn packs(program: &Path, file: &Path, mb: f64, room: u64) -> std::io::Result<()> {
    let folder = tempfile::tempdir()?;
    let devices = exchange::mesh(program, folder.path(), 5)?;
    let path = file.to_string_lossy();
    let (_, put) = exchange::does(&devices, 0, &["put", &path, "--to", "/file"])?;
    let cid = put.get("cid").and_then(|cid| cid.as_str()).unwrap_or("");
    let pin = |which: usize| {
        warm(folder.path(), room)?;
        exchange::does(&devices, which, &["pin", cid, "--wait"])
    };
    let (first, _) = pin(1)?;
    pin(2)?;
    let (last, _) = pin(3)?;
    let status = devices.get(3).map(|device| device.run(&["status"]));
    let status = status.transpose()?.unwrap_or_default();
    let count = |key: &str| {
        let bulk = status.get("bulk").and_then(|bulk| bulk.get(key));
        bulk.and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    let memory = |which: usize| {
        let device = devices.get(which).map(|device| device.peak_memory());
        device.transpose().ok().flatten().unwrap_or(0) / 1_000_000
    };
    println!(
        "    pinned, by packs: from one {:.0} MB/s, {:.2} CPU s/GB; from three {:.0} MB/s, {:.2} CPU s/GB; {} packs, {:.0} MB, {:.1} MB of it for nothing; peak memory of holder and pinner {} and {} MB (load {})",
        mb / first.wall.as_secs_f64(),
        first.cpu.as_secs_f64() / (mb / 1e3),
        mb / last.wall.as_secs_f64(),
        last.cpu.as_secs_f64() / (mb / 1e3),
        count("packs"),
        count("received") as f64 / 1e6,
        count("wasted") as f64 / 1e6,
        memory(0),
        memory(3),
        load_average()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn beside(python: &str, folder: &Path, file: &Path, mb: f64, room: u64) -> std::io::Result<()> {
    for (what, get) in [("pin", false), ("get", true)] {
        let place = folder.join(what);
        std::fs::create_dir_all(&place)?;
        let took = exchange::theirs(python, &place, file, (get, room))?;
        println!(
            "    Kubo to Kubo, {what}: {:.0} MB/s, {:.2} CPU s/GB",
            mb / took.wall.as_secs_f64(),
            took.cpu.as_secs_f64() / (mb / 1e3)
        );
        std::fs::remove_dir_all(&place)?;
    }
    Ok(())
}
