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

#[cfg(test)]
mod tests {
    use super::*;

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
