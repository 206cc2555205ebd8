//! Speed and size of the data path. Each bench has a small size, run as a test, and a large one to measure with; `README.md` has the figures.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod burst;
pub mod device;
pub mod exchange;
pub mod gc;
pub mod kernels;
pub mod kubo;
pub mod packs;
pub mod placing;
pub mod program;
pub mod repair;
pub mod restic;
pub mod simulate;
pub mod small;
pub mod sparse;
pub mod store;
pub mod wire;

use std::time::Duration;

/// Bytes and the time they took.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// How many bytes.
    pub bytes: u64,
    /// How long.
    pub took: Duration,
}

impl Measured {
    /// Megabytes (10^6) a second.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn mb_s(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.took.as_secs_f64().max(1e-9)
    }
}

/// The middle one of several figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// The figure that this part of them, from 0 to 1, does not exceed; they are sorted.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place among some millions"
)]
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = (part * sorted.len() as f64).ceil() as usize;
    let last = sorted.len().saturating_sub(1);
    let figure = sorted.get(place.saturating_sub(1).min(last));
    figure.copied().unwrap_or(0.0)
}

/// CPU seconds of this process so far, user and system.
pub fn cpu_seconds() -> f64 {
    device::cpu_of("self").unwrap_or_default().as_secs_f64()
}

/// Resident memory of a process, as the system counts it; `self` is this one.
pub fn resident_bytes(process: &str) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4096_u64
}

/// The most memory a process had so far, in bytes; `self` is this one.
///
/// # Errors
/// If the system does not tell.
pub fn peak_bytes(process: &str) -> std::io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| std::io::Error::other("the system does not tell the memory"))
}

/// How busy the machine was over the last minute, since a figure says little without it.
pub fn load_average() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}

/// Has so many bytes of the disk that `folder` is on taken into memory and freed again, just before something is measured there.
///
/// Where the host of a virtual machine takes back what is not used, the first one to use a page pays for it, several times what it costs to use it again: who comes first in a
/// round would look slower than who comes next.
///
/// # Errors
/// If there is no room for it.
pub fn warm(folder: &std::path::Path, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = tempfile::tempfile_in(folder)?;
    let some = vec![1; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&some)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantiles_are_figures_that_were_measured() {
        let figures: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(super::quantile(&figures, 0.5), 500.0);
        assert_eq!(super::quantile(&figures, 0.999), 999.0);
        assert_eq!(super::quantile(&figures, 1.0), 1000.0);
        assert_eq!(super::quantile(&[], 0.5), 0.0);
    }
}
