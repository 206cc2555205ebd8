//! What the demo stores.

use std::path::{Path, PathBuf};
use std::process::Command;

use kith_protocol::api::{Failure, FailureKind};

use crate::failure::CommandError;

/// What to store, and what to call it.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) label: String,
}

/// The path given, or a copy of this repository's tracked files.
pub(super) fn find(given: Option<PathBuf>, folder: &Path) -> Result<Source, CommandError> {
    if let Some(path) = given {
        let path = std::fs::canonicalize(&path).map_err(|error| {
            Failure::new(FailureKind::NotFound, format!("find {}", path.display())).because(&error)
        })?;
        return Ok(Source {
            label: path.display().to_string(),
            path,
        });
    }
    let here = std::env::current_dir()?;
    let Some(root) = here
        .ancestors()
        .find(|folder| folder.join("Cargo.toml").exists() && folder.join("protocol/spec").exists())
    else {
        return Err(Failure::new(
            FailureKind::Usage,
            "find this repository's files: this folder is not in it",
        )
        .hint("say what to store: kith demo PATH")
        .into());
    };
    let copy = folder.join("source");
    for file in tracked(root)? {
        let to = copy.join(&file);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::copy(root.join(&file), &to)?;
    }
    Ok(Source {
        path: copy,
        label: "the tracked files of this repository".into(),
    })
}

/// The files git tracks; without git, or where this is no clone, all but what is built.
fn tracked(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let listed = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["ls-files", "-z"])
        .output();
    if let Ok(listed) = listed
        && listed.status.success()
        && !listed.stdout.is_empty()
    {
        let names = listed
            .stdout
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        let files = names.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        return Ok(files.filter(|file| root.join(file).is_file()).collect());
    }
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && path != Path::new("target") && path != Path::new(".git") {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    Ok(files)
}
