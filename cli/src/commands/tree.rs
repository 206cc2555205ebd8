//! The commands on the tree of names: `ls`, `mkdir`, `mv`, `rm`, `history`, `restore`.

use kith_node::config::Home;
use kith_node::local::no_input;
use kith_protocol::api::{Entry, Event, Name, Request, Version};

use super::tree_path;
use crate::args::{HistoryArgs, LsArgs, MkdirArgs, MvArgs, RestoreArgs, RmArgs};
use crate::failure::CommandError;
use crate::output::Output;
use crate::session;

pub(crate) async fn ls(home: &Home, args: LsArgs, output: &mut Output) -> Result<(), CommandError> {
    show(
        home,
        Request::Ls {
            path: tree_path(&args.path),
        },
        output,
    )
    .await
}

pub(crate) async fn mkdir(
    home: &Home,
    args: MkdirArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    show(
        home,
        Request::Mkdir {
            path: tree_path(&args.path),
            parents: args.parents,
        },
        output,
    )
    .await
}

pub(crate) async fn mv(home: &Home, args: MvArgs, output: &mut Output) -> Result<(), CommandError> {
    show(
        home,
        Request::Mv {
            from: tree_path(&args.from),
            to: tree_path(&args.to),
        },
        output,
    )
    .await
}

pub(crate) async fn rm(home: &Home, args: RmArgs, output: &mut Output) -> Result<(), CommandError> {
    show(
        home,
        Request::Rm {
            path: tree_path(&args.path),
            recursive: args.recursive,
        },
        output,
    )
    .await
}

pub(crate) async fn history(
    home: &Home,
    args: HistoryArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    show(
        home,
        Request::History {
            path: tree_path(&args.path),
        },
        output,
    )
    .await
}

pub(crate) async fn restore(
    home: &Home,
    args: RestoreArgs,
    output: &mut Output,
) -> Result<(), CommandError> {
    show(
        home,
        Request::Restore {
            path: tree_path(&args.path),
            version: args.version,
        },
        output,
    )
    .await
}

/// Makes the call and prints the entries and versions it tells.
async fn show(home: &Home, request: Request, output: &mut Output) -> Result<(), CommandError> {
    let mut call = session::call(home, request, no_input()).await?;
    while let Some((event, _)) = call.next().await? {
        match &event {
            Event::Entry(entry) => output.result(&event, || entry_line(entry))?,
            Event::Version(version) => output.result(&event, || version_line(version))?,
            Event::Warning { text } => output.say(&format!("Warning: {text}")),
            _ => {}
        }
    }
    Ok(())
}

/// A name as a line of text shows it: control characters are escaped, so that a name cannot drive the terminal.
fn shown(name: &Name) -> String {
    name.lossy()
        .chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

fn entry_line(entry: &Entry) -> String {
    let mark = match entry.kind.as_str() {
        "folder" => "/",
        "symlink" => "@",
        _ => "",
    };
    let conflict = if entry.conflict {
        format!(
            "  (one of several versions, from {})",
            entry.device.as_deref().unwrap_or("?")
        )
    } else {
        String::new()
    };
    format!(
        "{:>14}  {}  {}{mark}{conflict}",
        entry.size,
        stamp(entry.mtime_ms),
        shown(&entry.name)
    )
}

fn version_line(version: &Version) -> String {
    let state = match (version.deleted, version.current) {
        (true, _) => "removed",
        (false, true) => "current",
        (false, false) => "",
    };
    format!(
        "{}  {}  {:>14}  {:8} {}  by {}  {}",
        version.version,
        stamp(version.written_ms),
        version.size,
        state,
        version.path.as_ref().map_or_else(|| "?".to_owned(), shown),
        version.device,
        version.cid.as_deref().unwrap_or("-"),
    )
}

/// A time as `2026-11-22 20:00:00`, UTC.
pub(crate) fn stamp(ms: u64) -> String {
    let secs = ms / 1000;
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // Civil date from days since 1970, by the usual shift to a year that begins in March.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_civil_dates() {
        assert_eq!(stamp(0), "1970-01-01 00:00:00");
        assert_eq!(stamp(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(stamp(1_795_377_636_000), "2026-11-22 20:00:36");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(shown(&Name::from("a\u{1b}[2Jb\n")), "a\\u{1b}[2Jb\\n");
    }
}
