//! A mesh that loses a device: how long until all is kept as often as it should be again, and what a device takes at rest.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON values answer null for keys they lack"
)]

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::device::Served;
use crate::exchange::mesh_with;
use crate::kernels::random;

/// How often it is looked how it stands.
const LOOK: Duration = Duration::from_millis(250);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What it came to.
#[derive(Debug)]
pub struct Repaired {
    /// From the put until all had its copies.
    pub spread: Duration,
    /// Part of a core that a device takes where nothing happens.
    pub at_rest: f64,
    /// Bytes of packs that the lost device held.
    pub lost_bytes: u64,
    /// From its end until all had its copies again.
    pub repair: Duration,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Bytes that are put.
    pub bytes: usize,
    /// Devices.
    pub devices: usize,
    /// Copies of each pack.
    pub copies: usize,
    /// Bytes a second that each sends, and receives.
    pub rate: u64,
    /// How long the rest is looked at.
    pub rest: Duration,
}

/// Puts random bytes on one device of a mesh, waits until they are spread, ends another device and says that it is lost.
///
/// # Errors
/// If anything fails, or does not come about.
pub fn repair(program: &Path, folder: &Path, size: Size) -> io::Result<Repaired> {
    let rate = size.rate.to_string();
    let args = [
        "--capacity",
        "1T",
        "--max-upload",
        &rate,
        "--max-download",
        &rate,
    ];
    let mut devices = mesh_with(program, folder, size.devices, &args)?;
    let home = devices
        .first()
        .ok_or_else(|| io::Error::other("no device"))?;
    let until = Instant::now() + PATIENCE;
    let copies = size.copies.to_string();
    while home
        .run(&["policy", "set", "home", "--replicas", &copies])
        .is_err()
    {
        // Not all have said yet what they give.
        rest_until(until)?;
    }
    let file = folder.join("file");
    std::fs::write(&file, random(size.bytes))?;
    let began = Instant::now();
    home.run(&["put", &file.to_string_lossy(), "--wait", "replicated"])?;
    healthy(home, until)?;
    let spread = began.elapsed();
    let cpu = home.cpu()?;
    std::thread::sleep(size.rest);
    let at_rest = (home.cpu()? - cpu).as_secs_f64() / size.rest.as_secs_f64();
    let lost = devices.pop().ok_or_else(|| io::Error::other("no device"))?;
    let lost_bytes = lost.run(&["status"])?["disk_bytes"].as_u64().unwrap_or(0);
    drop(lost);
    let home = devices
        .first()
        .ok_or_else(|| io::Error::other("no device"))?;
    let name = format!("device{}", size.devices - 1);
    let began = Instant::now();
    // Those whose connection to it has not ended yet would go on counting it.
    while home.run(&["status"])?["connected"].as_u64() != Some(size.devices as u64 - 2) {
        rest_until(until)?;
    }
    home.run(&["device", "lost", &name])?;
    healthy(home, until)?;
    Ok(Repaired {
        spread,
        at_rest,
        lost_bytes,
        repair: began.elapsed(),
    })
}

/// Waits until a device says that all is kept as often as it should be.
fn healthy(device: &Served, until: Instant) -> io::Result<()> {
    while device.run(&["status"])?["keeping"]["verdict"] != "healthy" {
        rest_until(until)?;
    }
    Ok(())
}

fn rest_until(until: Instant) -> io::Result<()> {
    if Instant::now() > until {
        return Err(io::Error::other("it does not come about"));
    }
    std::thread::sleep(LOOK);
    Ok(())
}
