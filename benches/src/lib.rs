//! Speed and size of the data path. Each bench has a small size, run as a test, and a large one to measure with; `README.md` has the figures.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod device;
pub mod kernels;
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
