//! Meshes of many devices in one process: what an event of them costs, and how much memory they take.

use std::io;

use kith_simulations::scenario;

use crate::{cpu_seconds, peak_bytes};

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Events of the world.
    pub events: u64,
    /// Messages between devices.
    pub messages: u64,
    /// CPU seconds.
    pub cpu: f64,
    /// What the process has taken at most so far, bytes.
    pub peak: u64,
    /// What failed.
    pub failures: Vec<String>,
}

impl Figures {
    /// Of an event, in millionths of a second.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn micros_per_event(&self) -> f64 {
        self.cpu * 1e6 / self.events.max(1) as f64
    }
}

/// A mesh at three places, one entry a minute.
pub fn mesh(devices: usize, minutes: u64) -> String {
    let third = devices / 3;
    let rest = devices - 2 * third;
    let mut text = format!(
        "about = '{devices} devices'\nduration = '{minutes}m'\nsettle = '10m'\nread = '1h'\n"
    );
    for (name, count, admin) in [
        ("here", third, true),
        ("there", third, false),
        ("far", rest, false),
    ] {
        text += &format!(
            "[[site]]\nname = '{name}'\n[[device]]\nname = 'of-{name}'\nsite = '{name}'\ncount = {count}\nadmin = {admin}\n"
        );
    }
    text + "[[work]]\nwhat = 'lifelog'\nevery = '1m'\n"
}

/// Runs a scenario.
///
/// # Errors
/// If the text is no scenario, or the system does not tell how much memory is in use.
pub fn measure(text: &str, seed: u64) -> io::Result<Figures> {
    let plan = scenario::of_text("bench", text).map_err(io::Error::other)?;
    let before = cpu_seconds();
    let report = plan.run(seed, false);
    let cpu = cpu_seconds() - before;
    Ok(Figures {
        events: report.events,
        messages: report.messages,
        cpu,
        peak: peak_bytes("self")?,
        failures: report.failures,
    })
}

/// What a mesh of so many devices costs.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// How many there are.
    pub devices: usize,
    /// Of an event of the whole run, its start included, in millionths of a second.
    pub whole: f64,
    /// Of an event while it runs: what so much more time takes, divided by how many more events happen in it.
    pub running: f64,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 40.0;

/// What an event costs by size of the mesh, as a picture (SVG).
#[expect(clippy::cast_precision_loss, reason = "a picture for people")]
pub fn plot(points: &[Point]) -> String {
    let most = points.iter().map(|point| point.whole.max(point.running));
    let most = most.fold(1.0, f64::max).ceil();
    let sizes = || points.iter().map(|point| (point.devices as f64).log10());
    let (first, last) = (
        sizes().fold(f64::INFINITY, f64::min),
        sizes().fold(0.0, f64::max),
    );
    let x = |devices: usize| {
        let share = ((devices as f64).log10() - first) / (last - first).max(0.1);
        LEFT + 20.0 + share * (WIDTH - LEFT - 60.0)
    };
    let y = |micros: f64| HEIGHT - BOTTOM - micros / most * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\">CPU microseconds of an event of the simulator, by devices of the mesh</text>\n"
    );
    for step in 0..=4 {
        let micros = most * f64::from(step) / 4.0;
        let at = y(micros);
        svg += &format!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{micros:.1}</text>\n",
            WIDTH - 20.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for point in points {
        svg += &format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            x(point.devices),
            HEIGHT - BOTTOM + 18.0,
            point.devices
        );
    }
    let whole: Vec<f64> = points.iter().map(|point| point.whole).collect();
    let running: Vec<f64> = points.iter().map(|point| point.running).collect();
    let lines = [
        ("the whole run", "#999", whole),
        ("while it runs", "#0072b2", running),
    ];
    for (place, (name, color, costs)) in lines.iter().enumerate() {
        let all = || points.iter().zip(costs);
        let at: Vec<(f64, f64)> = all()
            .map(|(point, cost)| (x(point.devices), y(*cost)))
            .collect();
        let line: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        svg += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n",
            line.join(" ")
        );
        for ((point, cost), (x, y)) in all().zip(&at) {
            svg += &format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"><title>{} devices: {cost:.1}</title></circle>\n",
                point.devices
            );
        }
        svg += &format!(
            "<text x=\"{}\" y=\"{}\" fill=\"{color}\">{name}</text>\n",
            LEFT + 12.0 + 120.0 * place as f64,
            HEIGHT - 8.0
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_point_for_each_size_and_stays_inside() {
        let points = [(10, 3.0, 2.5), (100, 6.0, 4.0), (1000, 9.5, 5.0)];
        let points = points.map(|(devices, whole, running)| Point {
            devices,
            whole,
            running,
        });
        let svg = plot(&points);
        assert_eq!(svg.matches("<circle").count(), 6);
        for at in svg.split("cy=\"").skip(1) {
            let at: f64 = at.split('"').next().unwrap().parse().unwrap();
            assert!((TOP..=HEIGHT - BOTTOM).contains(&at), "{at}");
        }
    }

    #[test]
    fn a_small_mesh_is_measured() {
        let figures = measure(&mesh(9, 10), 1).unwrap();
        assert!(figures.failures.is_empty(), "{:?}", figures.failures);
        assert!(figures.events > 1000 && figures.peak > 1 << 20);
        // More than each may be connected with.
        let figures = measure(&mesh(90, 5), 2).unwrap();
        assert!(figures.failures.is_empty(), "{:?}", figures.failures);
    }
}
