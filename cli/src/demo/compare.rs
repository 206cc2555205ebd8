//! Proofs of the demo: that two trees are the same, that strings stand nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How many differences are told.
const TOLD_MAX: usize = 10;
/// Bytes compared or scanned at once.
const READ_BYTES: usize = 1 << 20;

/// What differs between two files or folders: kinds, names, contents, permission bits.
pub(super) fn differences(one: &Path, other: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    compare(one, other, &mut found)?;
    Ok(found)
}

fn compare(one: &Path, other: &Path, found: &mut Vec<String>) -> io::Result<()> {
    if found.len() >= TOLD_MAX {
        return Ok(());
    }
    let (a, b) = (fs::symlink_metadata(one)?, fs::symlink_metadata(other));
    let Ok(b) = b else {
        found.push(format!("{} is missing", other.display()));
        return Ok(());
    };
    if a.file_type() != b.file_type() {
        found.push(format!("{} is of another kind", other.display()));
    } else if a.is_symlink() {
        if fs::read_link(one)? != fs::read_link(other)? {
            found.push(format!("{} points elsewhere", other.display()));
        }
    } else if a.is_dir() {
        let (mine, theirs) = (names(one)?, names(other)?);
        for name in theirs.iter().filter(|name| !mine.contains(name)) {
            found.push(format!("{} is too much", other.join(name).display()));
        }
        for name in &mine {
            compare(&one.join(name), &other.join(name), found)?;
        }
    } else if a.is_file() {
        if !same_bytes(one, other)? {
            found.push(format!("{} has other bytes", other.display()));
        } else if a.permissions().mode() & 0o7777 != b.permissions().mode() & 0o7777 {
            found.push(format!("{} has other permission bits", other.display()));
        }
    }
    Ok(())
}

fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        // What is neither file, folder nor symlink is not stored.
        if kind.is_file() || kind.is_dir() || kind.is_symlink() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (fs::File::open(one)?, fs::File::open(other)?);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        one.by_ref().take(READ_BYTES as u64).read_to_end(&mut a)?;
        other.by_ref().take(READ_BYTES as u64).read_to_end(&mut b)?;
        if a != b {
            return Ok(false);
        }
        if a.is_empty() {
            return Ok(true);
        }
    }
}

/// Looks for strings in all contents and names below a folder. Returns the bytes gone through, and where each string found stands.
pub(super) fn scan(
    folder: &Path,
    needles: &[Vec<u8>],
) -> io::Result<(u64, BTreeMap<Vec<u8>, PathBuf>)> {
    let mut scanned = 0;
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if let Some(name) = path.file_name().filter(|_| path != folder) {
            look(name.as_bytes(), needles, &path, &mut found);
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        } else if metadata.is_file() {
            scanned += scan_file(&path, needles, &mut found)?;
        }
    }
    Ok((scanned, found))
}

fn scan_file(
    path: &Path,
    needles: &[Vec<u8>],
    found: &mut BTreeMap<Vec<u8>, PathBuf>,
) -> io::Result<u64> {
    let overlap = needles
        .iter()
        .map(Vec::len)
        .max()
        .unwrap_or(1)
        .saturating_sub(1);
    let mut file = fs::File::open(path)?;
    let mut window = Vec::new();
    let mut scanned = 0;
    loop {
        let kept = window.len().min(overlap);
        window.drain(..window.len() - kept);
        let read = file
            .by_ref()
            .take(READ_BYTES as u64)
            .read_to_end(&mut window)?;
        scanned += read as u64;
        if read == 0 {
            return Ok(scanned);
        }
        look(&window, needles, path, found);
    }
}

fn look(bytes: &[u8], needles: &[Vec<u8>], path: &Path, found: &mut BTreeMap<Vec<u8>, PathBuf>) {
    for needle in needles {
        if !found.contains_key(needle) && contains(bytes, needle) {
            found.insert(needle.clone(), path.to_owned());
        }
    }
}

/// Whether the bytes contain the needle: looks at every place that begins with its first byte.
fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, _)) = needle.split_first() else {
        return true;
    };
    let mut rest = bytes;
    while let Some(place) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(place..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_finds_strings_in_names_and_across_windows() {
        let folder = tempfile::tempdir().unwrap();
        let needles = vec![
            b"needle-in-name".to_vec(),
            b"needle-in-bytes".to_vec(),
            b"needle-nowhere".to_vec(),
        ];
        fs::create_dir(folder.path().join("x-needle-in-name-x")).unwrap();
        let mut bytes = vec![b'n'; READ_BYTES - 5];
        bytes.extend_from_slice(b"needle-in-bytes");
        fs::write(folder.path().join("file"), &bytes).unwrap();
        let (scanned, found) = scan(folder.path(), &needles).unwrap();
        assert_eq!(scanned, bytes.len() as u64);
        assert_eq!(
            found.keys().cloned().collect::<Vec<_>>(),
            [needles[1].clone(), needles[0].clone()]
        );
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for side in [&one, &other] {
            fs::create_dir(side).unwrap();
            fs::write(side.join("same"), b"same").unwrap();
            fs::write(side.join("bytes"), side.as_os_str().as_bytes()).unwrap();
        }
        fs::write(one.join("missing"), b"").unwrap();
        fs::write(other.join("extra"), b"").unwrap();
        fs::write(one.join("kind"), b"").unwrap();
        fs::create_dir(other.join("kind")).unwrap();
        let found = differences(&one, &other).unwrap().join("\n");
        for wanted in [
            "bytes has other bytes",
            "missing is missing",
            "extra is too much",
            "kind is of another kind",
        ] {
            assert!(found.contains(wanted), "{wanted} in {found}");
        }
        assert!(!found.contains("same"));
    }
}
