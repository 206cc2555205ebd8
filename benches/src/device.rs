//! The built program: `put` of a file, `get` of it from a loopback peer, and what memory both take.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON values answer null for keys they lack"
)]

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::peak_bytes;

/// A device served by a process.
pub struct Served {
    program: PathBuf,
    home: PathBuf,
    daemon: Child,
    /// Where newcomers may knock.
    pub addrs: Vec<String>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Runs a command to its end; returns the last object it printed.
///
/// # Errors
/// If it fails.
pub fn run(program: &Path, home: &Path, args: &[&str]) -> io::Result<Value> {
    let output = Command::new(program)
        .arg("--json")
        .arg("--home")
        .arg(home)
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(serde_json::from_str(text.lines().last().unwrap_or("null"))?)
}

impl Served {
    /// Serves a home.
    ///
    /// # Errors
    /// If the process does not come up.
    pub fn start(program: &Path, home: &Path) -> io::Result<Self> {
        // Packs come by themselves only where that is measured.
        Self::start_with(program, home, &["--capacity", "0"])
    }

    /// The same with other arguments.
    ///
    /// # Errors
    /// As [`Served::start`].
    pub fn start_with(program: &Path, home: &Path, args: &[&str]) -> io::Result<Self> {
        let mut daemon = Command::new(program)
            .arg("--json")
            .arg("--home")
            .arg(home)
            .args(["up", "--listen", "127.0.0.1"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = daemon
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no output"))?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        let addrs = ready["addrs"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let addrs = addrs
            .iter()
            .filter_map(|addr| addr.as_str().map(str::to_owned))
            .collect();
        Ok(Self {
            program: program.to_owned(),
            home: home.to_owned(),
            daemon,
            addrs,
        })
    }

    /// Runs a command against it.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(&self, args: &[&str]) -> io::Result<Value> {
        run(&self.program, &self.home, args)
    }

    /// The most memory the process had so far, in bytes.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn peak_memory(&self) -> io::Result<u64> {
        peak_bytes(&self.daemon.id().to_string())
    }

    /// CPU time the process took so far.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn cpu(&self) -> io::Result<Duration> {
        cpu_of(&self.daemon.id().to_string())
    }
}

/// CPU time a process took so far; `self` is this one.
///
/// # Errors
/// If the system does not tell.
pub fn cpu_of(process: &str) -> io::Result<Duration> {
    ticks_of(process, 11)
}

/// CPU time of all children of this process that have ended and were waited for, and of theirs.
///
/// # Errors
/// If the system does not tell.
pub fn children_cpu() -> io::Result<Duration> {
    ticks_of("self", 13)
}

/// The sum of a field and the next one, which are user and system time.
fn ticks_of(process: &str, first: usize) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    // Linux counts these in hundredths of a second.
    Ok(Duration::from_millis(
        (ticks(first) + ticks(first + 1)) * 10,
    ))
}

/// What a put and a get came to.
#[derive(Debug)]
pub struct Transfer {
    /// Wall clock of the put.
    pub put: Duration,
    /// Wall clock of the get from the other device.
    pub get: Duration,
    /// Most memory of the device that put and served.
    pub holder_memory: u64,
    /// Most memory of the device that got.
    pub getter_memory: u64,
    /// CPU time of the put, in the daemon that took it.
    pub put_cpu: Duration,
    /// CPU time of the get, in both daemons.
    pub get_cpu: Duration,
    /// Bytes of packs per byte put.
    pub disk_ratio: f64,
}

/// Puts a file of random bytes on one device and gets it on another, each a process of its own, in `folder`.
///
/// # Errors
/// If anything fails, or what was got differs.
pub fn transfer(program: &Path, folder: &Path, len: usize) -> io::Result<Transfer> {
    let (one, other) = (folder.join("one"), folder.join("other"));
    let file = folder.join("file");
    std::fs::write(&file, crate::kernels::random(len))?;
    let made = run(program, &one, &["init", "--name", "one"])?;
    let first = Served::start(program, &one)?;
    let words = made["words"].as_str().unwrap_or_default().to_owned();
    let mut args = vec![
        "--json".to_owned(),
        "join".to_owned(),
        "--words".to_owned(),
        "--name".to_owned(),
        "other".to_owned(),
    ];
    for addr in &first.addrs {
        args.extend(["--peer".to_owned(), addr.clone()]);
    }
    let mut join = Command::new(program)
        .arg("--home")
        .arg(&other)
        .args(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = join.stdin.take() {
        io::Write::write_all(&mut stdin, words.as_bytes())?;
    }
    if !join.wait()?.success() {
        return Err(io::Error::other("the second device did not join"));
    }
    let second = Served::start(program, &other)?;
    let (began, cpu) = (Instant::now(), first.cpu()?);
    let put = first.run(&["put", &file.to_string_lossy(), "--to", "/file"])?;
    let (put_took, put_cpu) = (began.elapsed(), first.cpu()? - cpu);
    let cid = put["cid"].as_str().unwrap_or_default().to_owned();
    let got = folder.join("got");
    crate::warm(folder, 3 * len as u64)?;
    let (began, cpu) = (Instant::now(), first.cpu()? + second.cpu()?);
    second.run(&["get", &cid, "--wait", "--output", &got.to_string_lossy()])?;
    let (get_took, get_cpu) = (began.elapsed(), first.cpu()? + second.cpu()? - cpu);
    if std::fs::read(&file)? != std::fs::read(&got)? {
        return Err(io::Error::other("what was got differs from what was put"));
    }
    let status = first.run(&["status"])?;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let disk_ratio = status["disk_bytes"].as_u64().unwrap_or(0) as f64 / len as f64;
    Ok(Transfer {
        put: put_took,
        get: get_took,
        holder_memory: first.peak_memory()?,
        getter_memory: second.peak_memory()?,
        put_cpu,
        get_cpu,
        disk_ratio,
    })
}
