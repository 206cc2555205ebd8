//! Helpers for tests of the built program: devices as real processes on this machine.
//!
//! Nothing here asserts how long a thing takes. What has to happen is waited for, under one deadline that no healthy machine meets.

pub mod kubo;
pub mod network;
pub mod traitor;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything is waited for.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks of [`wait_until`].
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Waits until `look` finds what it looks for: the only place where tests pause.
///
/// # Panics
/// After [`DEADLINE`], naming what was waited for.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < until,
            "waited {} s in vain: {what}",
            DEADLINE.as_secs()
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Says something that must be seen although the test passes: past the capture of test output.
pub fn say_loudly(text: &str) {
    let _ = writeln!(io::stderr(), "\n*** {text} ***");
}

/// Says that a test did not run here, in a line that the end of a report repeats.
pub fn say_skipped(test: &str, why: &str) {
    let _ = io::stderr().write_all(format!("\nSKIPPED {test}: {why}\n").as_bytes());
}

/// Bytes that look random and follow from the seed alone.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    // SplitMix64: enough that nothing compresses or repeats.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6b69_7468;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A temporary folder with the data folders of some devices; gone at the end.
pub struct Place {
    program: PathBuf,
    folder: TempDir,
}

impl Place {
    /// A new one, for devices that run `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kith-test-")
            .tempdir()
            .expect("make a temporary folder");
        Self {
            program: program.into(),
            folder,
        }
    }

    /// The folder; devices live under `homes`, the rest is free.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where to put a file or folder of that name.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and says where it is.
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("make a folder");
        }
        fs::write(&path, bytes).expect("write a file");
        path
    }

    /// A device whose data folder is named so; it comes into being by [`Kith::init`] or a join.
    pub fn device(&self, name: &str) -> Kith {
        Kith::new(&self.program, self.folder.path().join("homes").join(name))
    }

    /// A device on another machine, made of namespaces.
    pub fn device_on(&self, host: &network::Host, name: &str) -> Kith {
        let mut device = self.device(name);
        device.way = host.way().to_vec();
        device
    }

    /// A device, made the first of a new mesh; and the words.
    pub fn first(&self, name: &str) -> (Kith, String) {
        let device = self.device(name);
        let made = device.ok(["init", "--name", name]).last();
        let words = text(&made, "words").to_owned();
        (device, words)
    }

    /// A device, let in by a ticket of one that is up.
    pub fn join(&self, name: &str, by: &Kith) -> Kith {
        let device = self.device(name);
        let pairing = by.pair(&["--yes"]);
        device.ok(["join", pairing.ticket(), "--name", name]);
        pairing.finish().expect_code(0);
        device
    }
}

/// One device: its data folder, and the daemon that serves it if it was started.
pub struct Kith {
    program: PathBuf,
    home: PathBuf,
    /// The command that brings a program to the machine of the device; empty for this one.
    way: Vec<OsString>,
    daemon: Option<Daemon>,
}

struct Daemon {
    child: Child,
    ready: Value,
    stderr: Arc<Mutex<String>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Beside what failed: what the device said, and whether it was there at all.
        if std::thread::panicking()
            && let Ok(said) = self.stderr.lock()
        {
            let ended = match ended {
                Ok(Some(status)) => format!("had ended ({status})"),
                _ => "ran".to_owned(),
            };
            eprintln!("the daemon {} {ended}; it said: {said}", self.child.id());
        }
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    line: String,
}

impl Ran {
    /// What it printed as JSON, one value a line.
    pub fn values(&self) -> Vec<Value> {
        let text = String::from_utf8_lossy(&self.stdout);
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("`{}` printed no JSON: {error}: {line}", self.line))
        };
        text.lines().map(parse).collect()
    }

    /// The last value printed.
    pub fn last(&self) -> Value {
        self.values()
            .pop()
            .unwrap_or_else(|| panic!("`{}` printed nothing", self.line))
    }

    /// The one value of that event.
    pub fn event(&self, event: &str) -> Value {
        let found = self
            .values()
            .into_iter()
            .find(|value| value.get("event").and_then(Value::as_str) == Some(event));
        found.unwrap_or_else(|| {
            panic!(
                "`{}` told no {event}: {}",
                self.line,
                String::from_utf8_lossy(&self.stdout)
            )
        })
    }

    /// The failure as told under `--json`: `{kind, what, causes, hint}`.
    pub fn failure(&self) -> Value {
        let told = self
            .stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let error = told
            .filter_map(|value| value.get("error").cloned())
            .next_back();
        error.unwrap_or_else(|| {
            panic!(
                "`{}` ended with {:?} and told no failure: {}",
                self.line, self.code, self.stderr
            )
        })
    }

    /// The kind of the failure.
    pub fn failure_kind(&self) -> String {
        text(&self.failure(), "kind").to_owned()
    }

    /// All words of the failure, for a look whether one is among them.
    pub fn failure_text(&self) -> String {
        self.failure().to_string()
    }

    /// Asserts how it ended.
    ///
    /// # Panics
    /// If otherwise, telling what it said.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(
            self.code == Some(code),
            "`{}` ended with {:?}, not {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code,
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }
}

impl Kith {
    /// The device in that data folder, whether or not it exists yet.
    pub fn new(program: impl Into<PathBuf>, home: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            home: home.into(),
            way: Vec::new(),
            daemon: None,
        }
    }

    /// Its data folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// A command of this device, `--json` and all; nothing of the tester's environment reaches it.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = match self.way.split_first() {
            Some((first, rest)) => {
                let mut command = plain_command(Path::new(first));
                command.args(rest).arg(&self.program);
                command
            }
            None => plain_command(&self.program),
        };
        command
            .arg("--json")
            .arg("--home")
            .arg(&self.home)
            .args(args);
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        run(self.command(args), &[])
    }

    /// Runs a command to its end, with bytes on its standard input.
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Ran {
        run(self.command(args), input)
    }

    /// Runs a command that has to end well.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let ran = self.run(args);
        ran.expect_code(0);
        ran
    }

    /// Runs a command that has to end with that code.
    #[track_caller]
    pub fn fails<S: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = S>) -> Ran {
        let ran = self.run(args);
        ran.expect_code(code);
        ran
    }

    /// Starts the daemon on loopback and waits until it serves; returns what it said then.
    #[track_caller]
    pub fn up(&mut self) -> Value {
        self.up_with(&["--listen", "127.0.0.1"])
    }

    /// Starts the daemon with these arguments and waits until it serves; returns what it said then.
    #[track_caller]
    pub fn up_with(&mut self, args: &[&str]) -> Value {
        assert!(
            self.daemon.is_none(),
            "the daemon of {} runs already",
            self.home.display()
        );
        let mut command = self.command(["up"].iter().chain(args));
        // Packs come by themselves only where a test is about that.
        command.env("KITH_CAPACITY", "0");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the daemon");
        let stderr = collect(child.stderr.take().expect("its stderr is piped"));
        let lines = lines_of(child.stdout.take().expect("its stdout is piped"));
        match lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                let ready: Value = serde_json::from_str(&line).expect("the daemon prints JSON");
                self.daemon = Some(Daemon {
                    child,
                    ready: ready.clone(),
                    stderr,
                });
                ready
            }
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = stderr.lock().expect("nobody panics with it").clone();
                panic!(
                    "the daemon of {} did not come up ({why}): {said}",
                    self.home.display()
                );
            }
        }
    }

    /// The process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").child.id()
    }

    /// What the daemon said when it was ready.
    pub fn ready(&self) -> &Value {
        &self.daemon.as_ref().expect("the daemon runs").ready
    }

    /// Whether the daemon was started and not ended by the test.
    pub fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// Ends the daemon as a power cut would: SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Ends the daemon in order.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        self.ok(["stop"]);
        let status = wait_until("the daemon ends", || {
            daemon.child.try_wait().expect("ask how it ended")
        });
        let said = daemon.stderr.lock().expect("nobody panics with it").clone();
        assert!(status.success(), "the daemon ended with {status}: {said}");
    }

    /// Opens a ticket; `args` go behind `kith pair`.
    #[track_caller]
    pub fn pair(&self, args: &[&str]) -> Pairing {
        let mut command = self.command(["pair"].iter().chain(args));
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        let first = running.next_value().expect("`kith pair` shows a ticket");
        let ticket = text(&first, "ticket").to_owned();
        Pairing {
            running,
            ticket,
            first,
        }
    }

    /// Joins by words, given on standard input as the real thing takes them.
    pub fn join_by_words(&self, words: &str, name: &str, peers: &[String]) -> Ran {
        let mut args = vec!["join", "--words", "--name", name];
        for peer in peers {
            args.extend(["--peer", peer]);
        }
        self.run_with(args, words.as_bytes())
    }

    /// Where newcomers may knock, as the daemon said.
    pub fn addrs(&self) -> Vec<String> {
        let addrs = self
            .ready()
            .get("addrs")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        addrs
            .iter()
            .filter_map(|addr| addr.as_str().map(str::to_owned))
            .collect()
    }

    /// What `kith status` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.ok(["status"]).last()
    }

    /// Stores a file or folder there; returns what was told.
    #[track_caller]
    pub fn put(&self, source: &Path, to: &str) -> Value {
        let args = [
            OsStr::new("put"),
            source.as_os_str(),
            OsStr::new("--to"),
            OsStr::new(to),
        ];
        self.ok(args).event("put")
    }

    /// Stores bytes under a path; returns the root CID.
    #[track_caller]
    pub fn put_bytes(&self, bytes: &[u8], to: &str) -> String {
        let ran = self.run_with(["put", "-", "--to", to], bytes);
        ran.expect_code(0);
        text(&ran.event("put"), "cid").to_owned()
    }

    /// Reads a file by CID or path.
    #[track_caller]
    pub fn cat(&self, what: &str) -> Vec<u8> {
        self.ok(["cat", what]).stdout
    }

    /// Reads a file, waiting for blocks that others bring.
    #[track_caller]
    pub fn cat_waiting(&self, what: &str) -> Vec<u8> {
        self.ok(["cat", "--wait", what]).stdout
    }

    /// Lists a folder.
    #[track_caller]
    pub fn ls(&self, path: &str) -> Vec<Value> {
        self.ok(["ls", path]).values()
    }

    /// The names in a folder, in order.
    #[track_caller]
    pub fn names(&self, path: &str) -> Vec<String> {
        self.ls(path)
            .iter()
            .map(|entry| text(entry, "name").to_owned())
            .collect()
    }

    /// Waits until both daemons know the same entries and show the same tree.
    #[track_caller]
    pub fn agrees_with(&self, other: &Kith) {
        wait_until("two devices agree", || {
            let (mine, theirs) = (self.status(), other.status());
            let same = |key: &str| mine.get(key) == theirs.get(key);
            (same("digest") && same("entries") && same("tree")).then_some(())
        });
    }
}

/// A `kith pair` under way.
pub struct Pairing {
    running: Running,
    ticket: String,
    first: Value,
}

impl Pairing {
    /// The ticket as text.
    pub fn ticket(&self) -> &str {
        &self.ticket
    }

    /// The first line it printed.
    pub fn first(&self) -> &Value {
        &self.first
    }

    /// Waits for the next line.
    pub fn next_value(&mut self) -> Option<Value> {
        self.running.next_value()
    }

    /// Types an answer.
    pub fn answer(&mut self, line: &str) {
        self.running.write(line.as_bytes());
    }

    /// Waits for its end.
    pub fn finish(self) -> Ran {
        self.running.finish()
    }
}

/// A command under way whose lines are read as they come; killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    stdin: Option<std::process::ChildStdin>,
    stderr: Arc<Mutex<String>>,
    seen: Vec<u8>,
    line: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let line = shown(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the program");
        let stderr = collect(child.stderr.take().expect("its stderr is piped"));
        let lines = lines_of(child.stdout.take().expect("its stdout is piped"));
        let stdin = child.stdin.take();
        Self {
            child,
            lines,
            stdin,
            stderr,
            seen: Vec::new(),
            line,
        }
    }

    /// The next line it prints, as JSON; `None` once it closed its output. A line cut off by a kill is none.
    ///
    /// # Panics
    /// If it says nothing for [`DEADLINE`].
    pub fn next_value(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.seen.extend_from_slice(line.as_bytes());
                self.seen.push(b'\n');
                serde_json::from_str(&line).ok()
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("`{}` says nothing", self.line),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input, which stays open.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("its stdin is piped");
        stdin.write_all(bytes).expect("write to the program");
        stdin.flush().expect("write to the program");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Kills it (SIGKILL); what it had printed can still be read.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        self.stdin = None;
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.seen.extend_from_slice(line.as_bytes());
            self.seen.push(b'\n');
        }
        let status = wait_until("a program ends", || {
            self.child.try_wait().expect("ask how it ended")
        });
        let stderr = self.stderr.lock().expect("nobody panics with it").clone();
        Ran {
            code: status.code(),
            stdout: std::mem::take(&mut self.seen),
            stderr,
            line: self.line.clone(),
        }
    }
}

/// The program, untouched by the environment the tests run in.
pub fn plain_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "KITH_HOME",
        "KITH_LISTEN",
        "KITH_NO_LAN",
        "KITH_LOG",
        "XDG_DATA_HOME",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(variable);
    }
    // The width of help texts.
    command
        .env("COLUMNS", "100")
        .env("NO_COLOR", "1")
        // What a test takes is little, and the disk it runs on may be nearly full.
        .env("KITH_KEEP_FREE", "1M")
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end.
///
/// # Panics
/// If it does not start, or not end within [`DEADLINE`].
pub fn run(mut command: Command, input: &[u8]) -> Ran {
    let line = shown(&command);
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the program");
    let writer = child.stdin.take().map(|mut stdin| {
        let input = input.to_vec();
        // A program that does not read all is no failure of the test.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let (sender, done) = channel();
    let stdout = read_all(
        child.stdout.take().expect("its stdout is piped"),
        sender.clone(),
    );
    let stderr = read_all(child.stderr.take().expect("its stderr is piped"), sender);
    for _ in 0..2 {
        if done.recv_timeout(DEADLINE).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            let said = stderr.join().unwrap_or_default();
            panic!("`{line}` does not end: {}", String::from_utf8_lossy(&said));
        }
    }
    let status = wait_until("a program ends", || {
        child.try_wait().expect("ask how it ended")
    });
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let stderr = stderr.join().unwrap_or_default();
    Ran {
        code: status.code(),
        stdout: stdout.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        line,
    }
}

/// The value of a key that holds text.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text under {key}: {value}"))
}

/// The value of a key that holds a number.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn number(value: &Value, key: &str) -> u64 {
    value
        .get(key)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number under {key}: {value}"))
}

/// The keys of an object, in order.
pub fn keys(value: &Value) -> Vec<String> {
    let mut keys: Vec<String> = value
        .as_object()
        .map(|fields| fields.keys().cloned().collect())
        .unwrap_or_default();
    keys.sort();
    keys
}

/// Copies a folder: files and folders, as a backup of a device's folder would. Sockets are passed over.
///
/// # Panics
/// If it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("read a folder") {
        let entry = entry.expect("read a folder");
        let (kind, target) = (
            entry.file_type().expect("look at a file"),
            to.join(entry.file_name()),
        );
        if kind.is_dir() {
            copy_folder(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).expect("copy a file");
        }
    }
    let mode = fs::metadata(from).expect("look at a folder").permissions();
    fs::set_permissions(to, mode).expect("set a folder's mode");
}

/// Every regular file below a folder.
///
/// # Panics
/// If it cannot be read.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a folder") {
            let entry = entry.expect("read a folder");
            let kind = entry.file_type().expect("look at a file");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// The root of this repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("tests/ stands in the repository")
        .to_owned()
}

/// Compares a text with the snapshot `tests/cmd/NAME`; with `KITH_BLESS=1` writes it instead.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn assert_snapshot(name: &str, is: &str) {
    let path = repository().join("tests/cmd").join(name);
    if std::env::var_os("KITH_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, is).expect("write a snapshot");
        return;
    }
    let was = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        was == is,
        "tests/cmd/{name} is another (KITH_BLESS=1 takes the new one over)\n{}",
        differing_lines(&was, is)
    );
}

fn differing_lines(was: &str, is: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (was.lines().collect(), is.lines().collect());
    let gone = old
        .iter()
        .filter(|line| !new.contains(line))
        .map(|line| format!("- {line}"));
    let came = new
        .iter()
        .filter(|line| !old.contains(line))
        .map(|line| format!("+ {line}"));
    gone.chain(came).collect::<Vec<_>>().join("\n")
}

fn shown(command: &Command) -> String {
    let args: Vec<String> = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    format!("kith {}", args.join(" "))
}

fn read_all(
    mut from: impl Read + Send + 'static,
    done: std::sync::mpsc::Sender<()>,
) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        let _ = done.send(());
        all
    })
}

fn collect(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let all = Arc::new(Mutex::new(String::new()));
    let kept = all.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut all = all.lock().expect("nobody panics with it");
            all.push_str(&String::from_utf8_lossy(&line));
            all.push('\n');
        }
    });
    kept
}

/// Whole lines as they come; the channel closes with the output. A last line without its end is passed over.
fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|len| len > 0) && line.ends_with('\n') {
            if sender.send(line.trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_follows_from_its_seed() {
        assert_eq!(noise(1, 1000), noise(1, 1000));
        assert_ne!(noise(1, 1000), noise(2, 1000));
        assert_eq!(noise(3, 13).len(), 13);
    }

    #[test]
    fn program_that_is_killed_keeps_its_whole_lines() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo '{\"a\":1}'; printf '{\"b\":2'; exec cat"])
            .stdin(Stdio::piped());
        let mut running = Running::start(command);
        assert_eq!(
            running.next_value().map(|value| number(&value, "a")),
            Some(1)
        );
        running.kill();
        assert_eq!(running.next_value(), None);
    }

    #[test]
    fn input_and_both_outputs_pass() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo no >&2; exit 3"]);
        let ran = run(command, b"{\"x\":\"y\"}\n");
        ran.expect_code(3);
        assert_eq!((text(&ran.last(), "x"), ran.stderr.as_str()), ("y", "no\n"));
    }
}
