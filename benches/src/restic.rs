//! put and get of a tree, ours beside `restic`: the same source, the same disk, turn about.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program::{Cost, kith, same, settle, timed};
use crate::small::bytes_under;

/// What one round came to.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// `kith put` into a new home.
    pub put: Cost,
    /// `kith get` of what it stored.
    pub get: Cost,
    /// `restic backup` into a new repository.
    pub backup: Cost,
    /// `restic restore` of what it stored.
    pub restore: Cost,
    /// Bytes of our packs.
    pub put_bytes: u64,
    /// Bytes of its repository.
    pub backup_bytes: u64,
}

/// Whether there is a `restic`, and which.
pub fn version() -> Option<String> {
    let (text, _) = timed(Command::new("restic").arg("version")).ok()?;
    Some(text.trim_end().to_owned())
}

/// Stores a file or folder and brings it back, with both programs, in an empty folder; `ours_first` says who begins, `compression` is what
/// `restic` takes under that name.
///
/// All is left there: what is removed shortly before makes new files slow, since ext4 does not take up its places at once.
///
/// # Errors
/// If a program fails, or what it brings back differs.
pub fn round(
    kith: &Path,
    source: &Path,
    folder: &Path,
    ours_first: bool,
    compression: &str,
) -> io::Result<Round> {
    let (mut ours, mut theirs) = (None, None);
    for turn in [ours_first, !ours_first] {
        if turn {
            ours = Some(ours_round(kith, source, &folder.join("ours"))?);
        } else {
            theirs = Some(restic_round(source, &folder.join("theirs"), compression)?);
        }
    }
    let none = || io::Error::other("both had their turn");
    let ((put, get, put_bytes), (backup, restore, backup_bytes)) =
        (ours.ok_or_else(none)?, theirs.ok_or_else(none)?);
    Ok(Round {
        put,
        get,
        backup,
        restore,
        put_bytes,
        backup_bytes,
    })
}

/// Cost of a put, cost of a get, bytes of packs.
///
/// # Errors
/// As [`round`].
pub fn ours_round(program: &Path, source: &Path, folder: &Path) -> io::Result<(Cost, Cost, u64)> {
    fs::create_dir_all(folder)?;
    let home = folder.join("home");
    timed(kith(program, &home).args(["init", "--name", "bench"]))?;
    settle();
    let mut put = kith(program, &home);
    put.arg("--json")
        .arg("put")
        .arg(source)
        .args(["--to", "/bench"]);
    let (said, put) = timed(&mut put)?;
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or("null"))?;
    let cid = last.get("cid").and_then(Value::as_str).unwrap_or_default();
    settle();
    let got = folder.join("got");
    let mut get = kith(program, &home);
    get.arg("get").arg(cid).arg("--output").arg(&got);
    let (_, get) = timed(&mut get)?;
    same(source, &got)?;
    let bytes = bytes_under(&home.join("packs"))?;
    settle();
    Ok((put, get, bytes))
}

fn restic_round(source: &Path, folder: &Path, compression: &str) -> io::Result<(Cost, Cost, u64)> {
    fs::create_dir_all(folder)?;
    let (repository, cache) = (folder.join("repository"), folder.join("cache"));
    let restic = |args: &[&str]| {
        let mut command = Command::new("restic");
        command
            .env("RESTIC_PASSWORD", "bench")
            .arg("--quiet")
            .arg("--repo")
            .arg(&repository)
            .arg("--cache-dir")
            .arg(&cache)
            .args(args);
        command
    };
    timed(&mut restic(&["init"]))?;
    settle();
    let whole = fs::canonicalize(source)?;
    let mut backup = restic(&["backup", "--compression", compression]);
    let (_, backup) = timed(backup.arg(&whole))?;
    settle();
    let got = folder.join("got");
    let mut restore = restic(&["restore", "latest", "--target"]);
    let (_, restore) = timed(restore.arg(&got))?;
    same(source, &got.join(whole.strip_prefix("/").unwrap_or(&whole)))?;
    let bytes = bytes_under(&repository)?;
    settle();
    Ok((backup, restore, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{built_beside, write_tree};

    #[test]
    fn both_bring_a_small_tree_back() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        write_tree(&source, 120, 2_000).unwrap();
        let Some(program) = built_beside() else {
            eprintln!("*** not run: no kith was built beside this test ***");
            return;
        };
        let (put, get, bytes) = ours_round(&program, &source, &folder.path().join("ours")).unwrap();
        assert!(put.wall > 0.0 && get.wall > 0.0 && bytes > 100_000);
        if version().is_none() {
            eprintln!("*** restic was skipped: it is not installed ***");
            return;
        }
        let round = round(&program, &source, &folder.path().join("both"), false, "off").unwrap();
        assert!(round.backup_bytes > 100_000 && round.restore.wall > 0.0);
    }
}
