//! A device of the demo: a data folder, and the process that serves it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use kith_protocol::api::{Failure, FailureKind};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::{differs, text};
use crate::failure::CommandError;

/// How long a process may take to say its first word.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long a process that was told to stop may take.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// What all devices of a demo share: the program and a folder.
pub(super) struct Demo {
    program: PathBuf,
    folder: PathBuf,
}

/// One device.
pub(super) struct Device {
    name: String,
    home: PathBuf,
    program: PathBuf,
    daemon: Option<Child>,
    addrs: Vec<String>,
}

impl Demo {
    pub(super) fn new(folder: &Path) -> std::io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            folder: folder.to_owned(),
        })
    }

    fn device(&self, name: &str) -> Device {
        Device {
            name: name.to_owned(),
            home: self.folder.join("homes").join(name),
            program: self.program.clone(),
            daemon: None,
            addrs: Vec::new(),
        }
    }

    /// Makes a mesh; returns its first device and the words.
    pub(super) async fn init(&self, name: &str) -> Result<(Device, String), CommandError> {
        let device = self.device(name);
        let made = device.run(&["init", "--name", name]).await?;
        let words = text(&made, "words")?;
        Ok((device, words))
    }

    /// Pairs a new device by a ticket of a device that is up.
    pub(super) async fn join_by_ticket(
        &self,
        name: &str,
        by: &Device,
    ) -> Result<Device, CommandError> {
        let device = self.device(name);
        let mut pairing = by
            .command(&["pair", "--yes"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = lines_of(&mut pairing)?;
        let ticket = text(&first_value(&mut lines, "pair").await?, "ticket")?;
        device.run(&["join", &ticket, "--name", name]).await?;
        let status = pairing.wait().await?;
        if status.success() {
            Ok(device)
        } else {
            Err(differs("`kith pair` failed"))
        }
    }

    /// Adds a new device by the words alone.
    pub(super) async fn join_by_words(
        &self,
        name: &str,
        words: &str,
        by: &Device,
    ) -> Result<Device, CommandError> {
        let device = self.device(name);
        let mut args = vec!["join", "--words", "--name", name];
        for addr in &by.addrs {
            args.extend(["--peer", addr]);
        }
        let mut child = device
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(words.as_bytes()).await?;
        }
        device.value_of("join", child.wait_with_output().await?)?;
        Ok(device)
    }
}

impl Device {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// A place for what is got under that name.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.home
            .with_file_name(format!("{}-got-{name}", self.name))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--json")
            .arg("--home")
            .arg(&self.home)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end; returns the last object it printed.
    async fn run(&self, args: &[&str]) -> Result<Value, CommandError> {
        let output = self.command(args).output().await?;
        self.value_of(args.first().copied().unwrap_or_default(), output)
    }

    fn value_of(&self, verb: &str, output: Output) -> Result<Value, CommandError> {
        if !output.status.success() {
            let mut failure = Failure::new(
                FailureKind::Failed,
                format!("demo: `kith {verb}` on the {} device", self.name),
            );
            failure.causes = String::from_utf8_lossy(&output.stderr)
                .lines()
                .map(str::to_owned)
                .collect();
            return Err(failure.into());
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last = stdout.lines().last().unwrap_or("null");
        serde_json::from_str(last).map_err(|_| differs(format!("`kith {verb}` printed no JSON")))
    }

    /// Starts the daemon and waits until it serves.
    pub(super) async fn up(&mut self) -> Result<(), CommandError> {
        let mut child = self
            .command(&["up", "--listen", "127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = lines_of(&mut child)?;
        let ready = first_value(&mut lines, "up").await?;
        let addrs = ready["addrs"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        self.addrs = addrs
            .iter()
            .filter_map(|addr| addr.as_str().map(str::to_owned))
            .collect();
        self.daemon = Some(child);
        Ok(())
    }

    /// Ends the daemon in order.
    pub(super) async fn stop(&mut self) -> Result<(), CommandError> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        self.run(&["stop"]).await?;
        let status = tokio::time::timeout(STOP_WAIT, daemon.wait()).await;
        let status =
            status.map_err(|_| differs(format!("the {} device does not stop", self.name)))??;
        if status.success() {
            Ok(())
        } else {
            Err(differs(format!(
                "the daemon of the {} device ended with {status}",
                self.name
            )))
        }
    }

    /// Ends the daemon as a power cut would.
    pub(super) async fn kill(&mut self) -> std::io::Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill().await,
            None => Ok(()),
        }
    }

    pub(super) async fn put(&self, path: &Path, to: &str) -> Result<Value, CommandError> {
        let output = self
            .command(&["put", "--to", to])
            .arg(path)
            .output()
            .await?;
        self.value_of("put", output)
    }

    pub(super) async fn put_text(
        &self,
        folder: &Path,
        to: &str,
        content: &str,
    ) -> Result<(), CommandError> {
        let file = folder.join(format!("text-{}", self.name));
        std::fs::write(&file, content)?;
        self.put(&file, to).await?;
        Ok(())
    }

    pub(super) async fn get(&self, what: &str, dest: &Path) -> Result<Value, CommandError> {
        let output = self
            .command(&["get", what, "--wait", "--output"])
            .arg(dest)
            .output()
            .await?;
        self.value_of("get", output)
    }

    /// Prints a file, fetching what is not here.
    pub(super) async fn cat(&self, what: &str) -> Result<String, CommandError> {
        let output = self.command(&["cat", what, "--wait"]).output().await?;
        if !output.status.success() {
            self.value_of("cat", output)?;
            return Err(differs("`kith cat` failed"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(super) async fn status(&self) -> Result<Value, CommandError> {
        self.run(&["status"]).await
    }

    /// The names in a folder under which versions of that name are shown.
    pub(super) async fn versions_named(
        &self,
        folder: &str,
        name: &str,
    ) -> Result<Vec<String>, CommandError> {
        let output = self.command(&["ls", folder]).output().await?;
        let names = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                serde_json::from_str::<Value>(line).ok()?["name"]
                    .as_str()
                    .map(str::to_owned)
            })
            .filter(|shown| shown == name || shown.starts_with(&format!("{name}~")))
            .collect();
        Ok(names)
    }

    /// Waits until this device shows the same tree as another.
    pub(super) async fn wait_for_tree_of(
        &self,
        other: &Device,
        wait: Duration,
        look_every: Duration,
    ) -> Result<(), CommandError> {
        let until = Instant::now() + wait;
        loop {
            let (mine, theirs) = (self.status().await?, other.status().await?);
            if mine["tree"] == theirs["tree"] && mine["digest"] == theirs["digest"] {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(differs(format!(
                    "the {} and {} devices do not come to agree",
                    self.name, other.name
                )));
            }
            tokio::time::sleep(look_every).await;
        }
    }
}

fn lines_of(child: &mut Child) -> Result<tokio::io::Lines<BufReader<ChildStdout>>, CommandError> {
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| differs("a process has no output"))?;
    Ok(BufReader::new(stdout).lines())
}

async fn first_value(
    lines: &mut tokio::io::Lines<BufReader<ChildStdout>>,
    verb: &str,
) -> Result<Value, CommandError> {
    let line = tokio::time::timeout(START_WAIT, lines.next_line()).await;
    let line = line.map_err(|_| differs(format!("`kith {verb}` says nothing")))??;
    let line = line.ok_or_else(|| differs(format!("`kith {verb}` ended at once")))?;
    serde_json::from_str(&line).map_err(|_| differs(format!("`kith {verb}` printed no JSON")))
}
