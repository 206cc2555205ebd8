//! Cost of the simulator by size of the mesh, with a plot in `benches/simulate.svg`: `cargo run --release -p kith-benches --bin simulate -- [MINUTES [DEVICES...]]`,
//! or `-- FILE [SEED]` for one scenario.

use kith_benches::load_average;
use kith_benches::simulate::{Figures, Point, measure, mesh, plot};

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let told = |what: &str, figures: &Figures| {
        println!(
            "{what}: {} events, {} messages, {:.1} CPU seconds, {:.1} us an event, memory at most {:.0} MB so far, failures {:?}; load {}",
            figures.events,
            figures.messages,
            figures.cpu,
            figures.micros_per_event(),
            figures.peak as f64 / 1e6,
            figures.failures,
            load_average(),
        );
    };
    let first = args.first().map_or("60", String::as_str);
    let Ok(minutes) = first.parse::<u64>() else {
        let text = match kith_simulations::scenario::text(first) {
            Some(text) => text.to_owned(),
            None => std::fs::read_to_string(first)?,
        };
        let seed = args.get(1).and_then(|seed| seed.parse().ok()).unwrap_or(1);
        told(first, &measure(&text, seed)?);
        return Ok(());
    };
    let mut sizes: Vec<usize> = args.iter().skip(1).filter_map(|n| n.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![10, 30, 100, 300, 1000];
    }
    let mut points = Vec::new();
    for devices in sizes {
        // What it takes to start, and for all to read everything at the end, is about the same in both.
        let short = measure(&mesh(devices, minutes.div_ceil(4)), 1)?;
        let figures = measure(&mesh(devices, minutes), 1)?;
        told(&format!("{devices} devices"), &figures);
        let more = figures.events.saturating_sub(short.events).max(1);
        let running = (figures.cpu - short.cpu) * 1e6 / more as f64;
        println!("  while it runs: {running:.1} us an event");
        points.push(Point {
            devices,
            whole: figures.micros_per_event(),
            running,
        });
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/simulate.svg");
    std::fs::write(path, plot(&points))
}
