//! The built program among devices of one mesh: a file from one peer and from three, many small files, and one small object after another; and Kubo to Kubo beside it.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON values answer null for keys they lack"
)]

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kith_node::local;
use kith_protocol::api::{Request, What};
use serde_json::Value;

use crate::device::{Served, cpu_of, run};
use crate::warm;

/// Devices of one mesh, all connected, each a process with a home in `folder`.
///
/// # Errors
/// If one does not come up.
pub fn mesh(program: &Path, folder: &Path, count: usize) -> io::Result<Vec<Served>> {
    mesh_with(program, folder, count, &["--capacity", "0"])
}

/// The same, whose daemons are started with other arguments.
///
/// # Errors
/// As [`mesh`].
pub fn mesh_with(
    program: &Path,
    folder: &Path,
    count: usize,
    args: &[&str],
) -> io::Result<Vec<Served>> {
    let home = |n: usize| folder.join(format!("device{n}"));
    let made = run(program, &home(0), &["init", "--name", "device0"])?;
    let words = made["words"].as_str().unwrap_or_default().to_owned();
    let mut devices = vec![Served::start_with(program, &home(0), args)?];
    for n in 1..count {
        let mut join = Command::new(program);
        join.arg("--json").arg("--home").arg(home(n));
        join.args(["join", "--words", "--name", &format!("device{n}")]);
        for addr in devices.iter().flat_map(|device| &device.addrs) {
            join.args(["--peer", addr]);
        }
        let mut join = join.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut stdin) = join.stdin.take() {
            stdin.write_all(words.as_bytes())?;
        }
        if !join.wait()?.success() {
            return Err(io::Error::other("a device did not join"));
        }
        devices.push(Served::start_with(program, &home(n), args)?);
    }
    let until = Instant::now() + Duration::from_secs(60);
    for device in &devices {
        while device.run(&["status"])?["connected"].as_u64() != Some(count as u64 - 1) {
            if Instant::now() > until {
                return Err(io::Error::other("the devices do not connect"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(devices)
}

/// What something took: wall clock, and CPU time of all daemons.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Wall clock.
    pub wall: Duration,
    /// CPU time.
    pub cpu: Duration,
}

fn cpu(devices: &[Served]) -> io::Result<Duration> {
    devices.iter().map(Served::cpu).sum()
}

/// Has one device do something, and measures all.
///
/// # Errors
/// If it fails.
pub fn does(devices: &[Served], which: usize, args: &[&str]) -> io::Result<(Took, Value)> {
    let (begun, before) = (Instant::now(), cpu(devices)?);
    let device = devices.get(which).ok_or(io::ErrorKind::NotFound)?;
    let said = device.run(args)?;
    let took = Took {
        wall: begun.elapsed(),
        cpu: cpu(devices)?.saturating_sub(before),
    };
    Ok((took, said))
}

/// Gets small objects one after the other from a device that has them, by the local API of another: the time of each, in milliseconds, sorted.
///
/// # Errors
/// If one does not come.
pub async fn small(home: &Path, cids: &[String], len: usize) -> io::Result<Vec<f64>> {
    let mut took = Vec::new();
    for cid in cids {
        let begun = Instant::now();
        let connection = local::connect(home).await?;
        let connection = connection.ok_or(io::ErrorKind::NotConnected)?;
        let request = Request::Cat {
            what: What::Cid(cid.clone()),
            offset: 0,
            length: None,
            wait: true,
        };
        let mut call = connection.call(request, local::no_input());
        let mut got = 0;
        while let Some((_, bytes)) = call.next().await.map_err(io::Error::other)? {
            got += bytes.len();
        }
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
        if got != len {
            return Err(io::Error::other(format!("{got} bytes of {cid}")));
        }
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// Writes so many files of so many bytes into folders of a hundred.
///
/// # Errors
/// If the disk does not take them.
pub fn files(folder: &Path, count: usize, len: usize) -> io::Result<()> {
    let bytes = crate::kernels::random(count * len);
    for (n, file) in bytes.chunks(len).enumerate() {
        let folder = folder.join(format!("{}", n / 100));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{n}")), file)?;
    }
    Ok(())
}

/// A node of Kubo, driven by `tests/kubo.py`.
pub struct Kubo {
    child: Child,
    lines: io::Lines<BufReader<std::process::ChildStdout>>,
    addr: String,
}

impl Drop for Kubo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Kubo {
    /// Starts one.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(python: &str, repository: &Path) -> io::Result<Self> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/kubo.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(repository)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut node = Self {
            child,
            lines: BufReader::new(stdout).lines(),
            addr: String::new(),
        };
        let ready = node.next()?;
        let addrs = ready["addrs"].as_array().map_or(&[][..], Vec::as_slice);
        let mut addrs = addrs.iter().filter_map(Value::as_str);
        let tcp = addrs.find(|addr| addr.contains("/tcp/"));
        node.addr = tcp.unwrap_or_default().to_owned();
        Ok(node)
    }

    fn next(&mut self) -> io::Result<Value> {
        let line = self.lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        Ok(serde_json::from_str(&line)?)
    }

    fn call(&mut self, command: &[&str]) -> io::Result<Value> {
        let stdin = self.child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(stdin, "{}", Value::from(command))?;
        let said = self.next()?;
        if said["ok"].as_bool() == Some(true) {
            return Ok(said);
        }
        Err(io::Error::other(said.to_string()))
    }

    fn cpu(&self) -> io::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }
}

/// Kubo to Kubo over TCP: a file added at one, then pinned, or got, at another, with so much of memory [warm]; CPU of both.
///
/// # Errors
/// If it fails.
pub fn theirs(
    python: &str,
    folder: &Path,
    file: &Path,
    (get, room): (bool, u64),
) -> io::Result<Took> {
    let mut giver = Kubo::start(python, &folder.join("giver"))?;
    let mut taker = Kubo::start(python, &folder.join("taker"))?;
    let file = file.to_string_lossy();
    let added = giver.call(&["add", &file])?;
    let cid = added["cid"].as_str().unwrap_or_default().to_owned();
    taker.call(&["connect", &giver.addr])?;
    warm(folder, room)?;
    let (begun, before) = (Instant::now(), giver.cpu()? + taker.cpu()?);
    let dest = folder.join("dest");
    if get {
        taker.call(&["get", &cid, &dest.to_string_lossy()])?;
    } else {
        taker.call(&["pin", &cid])?;
    }
    Ok(Took {
        wall: begun.elapsed(),
        cpu: (giver.cpu()? + taker.cpu()?).saturating_sub(before),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_in_folders_of_a_hundred() {
        let folder = tempfile::tempdir().unwrap();
        files(folder.path(), 250, 16).unwrap();
        let count = |n: &str| std::fs::read_dir(folder.path().join(n)).unwrap().count();
        assert_eq!((count("0"), count("1"), count("2")), (100, 100, 50));
    }
}
