//! Programs run to their end, and what that cost; the data they are given.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kith_object::key::Rng;

use crate::{device, median};

/// Wall clock and CPU of a run, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From start to end.
    pub wall: f64,
    /// User and system, of the process and its children.
    pub cpu: f64,
}

/// Runs a command to its end; answers what it printed, and what it cost.
///
/// Nothing else may run children of this process meanwhile: their CPU would be counted in.
///
/// # Errors
/// If it does not start or fails; with what it said.
pub fn timed(command: &mut Command) -> io::Result<(String, Cost)> {
    let (cpu, began) = (device::children_cpu()?, Instant::now());
    let output = command.stdin(Stdio::null()).output()?;
    let wall = began.elapsed().as_secs_f64();
    let cpu = (device::children_cpu()? - cpu).as_secs_f64();
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((text, Cost { wall, cpu }))
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{command:?} failed: {said}")))
    }
}

/// The median of each figure.
pub fn medians(costs: &[Cost]) -> Cost {
    Cost {
        wall: median(costs.iter().map(|cost| cost.wall).collect()),
        cpu: median(costs.iter().map(|cost| cost.cpu).collect()),
    }
}

/// The medians of one's costs for the other's.
pub fn ratio(of: &[Cost], to: &[Cost]) -> Cost {
    let (of, to) = (medians(of), medians(to));
    Cost {
        wall: of.wall / to.wall.max(1e-3),
        cpu: of.cpu / to.cpu.max(1e-2),
    }
}

/// Lets the disk become quiet, so that no run pays for what another left to be written.
pub fn settle() {
    rustix::fs::sync();
}

/// Where the `kith` that was built beside this executable is, if it was.
pub fn built_beside() -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let folders = this.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join("kith"))
        .find(|program| program.is_file())
}

/// A command of the program on a home.
pub fn kith(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--home").arg(home);
    command
}

/// Makes a file of random bytes.
///
/// # Errors
/// Whatever the system says.
pub fn write_random(path: &Path, len: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut rng = Rng::from_seed([9; 32]);
    let mut piece = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let piece = piece.get_mut(..now).unwrap_or_default();
        rng.fill(piece);
        file.write_all(piece)?;
        left -= now as u64;
    }
    Ok(())
}

/// Makes a tree of small files of random bytes, a hundred in each folder, their lengths spread evenly up to twice the mean.
///
/// # Errors
/// Whatever the system says.
pub fn write_tree(folder: &Path, files: u64, mean_bytes: u64) -> io::Result<()> {
    let mut rng = Rng::from_seed([11; 32]);
    for number in 0..files {
        let within = folder.join(format!("{:03}", number / 100));
        fs::create_dir_all(&within)?;
        let len = usize::try_from(rng.below(2 * mean_bytes)).unwrap_or(0);
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes);
        fs::write(within.join(format!("{number}.bin")), bytes)?;
    }
    Ok(())
}

/// What a tree has in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads a file or tree through, so that it is in the page cache, and counts it.
///
/// # Errors
/// Whatever the system says.
pub fn warm(path: &Path) -> io::Result<Counted> {
    let mut counted = Counted::default();
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let within = warm(&entry?.path())?;
            counted.files += within.files;
            counted.bytes += within.bytes;
        }
    } else if metadata.is_file() {
        counted.files = 1;
        counted.bytes = io::copy(&mut File::open(path)?, &mut io::sink())?;
    }
    Ok(counted)
}

/// Compares two files or trees, names and bytes.
///
/// # Errors
/// Names the first thing that differs.
pub fn same(one: &Path, other: &Path) -> io::Result<()> {
    let differs = || io::Error::other(format!("{} is not {}", one.display(), other.display()));
    let (kind, kind_there) = (fs::symlink_metadata(one)?, fs::symlink_metadata(other)?);
    if kind.file_type() != kind_there.file_type() {
        return Err(differs());
    }
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(one)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        if names.len() != fs::read_dir(other)?.count() {
            return Err(differs());
        }
        for name in names {
            same(&one.join(&name), &other.join(&name))?;
        }
    } else if kind.is_symlink() {
        if fs::read_link(one)? != fs::read_link(other)? {
            return Err(differs());
        }
    } else {
        let (a, b) = (File::open(one)?, File::open(other)?);
        let (mut piece, mut piece_there) = (Vec::new(), Vec::new());
        loop {
            piece.clear();
            piece_there.clear();
            (&a).take(1 << 20).read_to_end(&mut piece)?;
            (&b).take(1 << 20).read_to_end(&mut piece_there)?;
            if piece != piece_there {
                return Err(differs());
            }
            if piece.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_of_a_command_is_its_own_and_failures_are_told() {
        let (text, cost) = timed(Command::new("echo").arg("here")).unwrap();
        assert_eq!(text, "here\n");
        assert!(cost.wall > 0.0);
        let error = timed(Command::new("sh").args(["-c", "echo broken >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("broken"));
    }

    #[test]
    fn trees_that_differ_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write_tree(&one, 210, 100).unwrap();
        write_tree(&other, 210, 100).unwrap();
        assert_eq!(warm(&one).unwrap().files, 210);
        same(&one, &other).unwrap();
        let file = other.join("001").join("150.bin");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, [&bytes[..], b"x"].concat()).unwrap();
        same(&one, &other).unwrap_err();
        fs::write(&file, bytes).unwrap();
        same(&one, &other).unwrap();
        fs::write(other.join("more"), b"").unwrap();
        same(&one, &other).unwrap_err();
    }
}
