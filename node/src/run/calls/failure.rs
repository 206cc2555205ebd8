//! What went wrong, in words for a person.

use std::io;
use std::path::Path;

use kith_core::device::CommandError;
use kith_crdt::names::{PlanError, TreePath};
use kith_crdt::replica::AuthorError;
use kith_object::store::StoreError;
use kith_protocol::api::{Failure, FailureKind};

use super::super::driver::CommandFailure;
use super::shown;
use crate::backup::ArchiveError;
use crate::restore::RestoreError;
use crate::source::ReadError;

pub(super) fn not_found(path: &TreePath) -> Failure {
    Failure::new(
        FailureKind::NotFound,
        format!("find {}: there is no such path in the tree", shown(path)),
    )
    .hint("see what is there with `kith ls`, or what was there with `kith history`")
}

/// Why a change was refused, for a person.
pub(super) fn change_failure(what: String, error: CommandFailure) -> Failure {
    let kind = match &error {
        CommandFailure::Refused(CommandError::Plan(plan)) => match plan {
            PlanError::NotFound { .. } => FailureKind::NotFound,
            PlanError::Exists { .. } => FailureKind::Exists,
            _ => FailureKind::Usage,
        },
        CommandFailure::Refused(
            CommandError::KeysChanged | CommandError::Unsettled | CommandError::Behind,
        ) => FailureKind::Failed,
        CommandFailure::Refused(
            CommandError::Author(_)
            | CommandError::NotAccepted(_)
            | CommandError::NotAdmin
            | CommandError::OnlyAdmins(_)
            | CommandError::Outrun,
        ) => FailureKind::Denied,
        CommandFailure::Refused(
            CommandError::Record(_) | CommandError::NoDays | CommandError::Unmet(_),
        ) => FailureKind::Usage,
        CommandFailure::Refused(CommandError::NoDevice(_)) => FailureKind::NotFound,
        CommandFailure::Log(_) | CommandFailure::Ending => FailureKind::Failed,
    };
    let failure = Failure::new(kind, what).because(&error);
    match &error {
        CommandFailure::Refused(CommandError::Unsettled) => failure.hint("start `kith up` and let it meet another device of the mesh; if all others are gone for good, remove them with `kith device remove NAME --force`"),
        CommandFailure::Refused(CommandError::Behind) => failure.hint("start `kith up`, let it meet another device of the mesh and try again; if there is none any more, give --force"),
        CommandFailure::Refused(CommandError::Unmet(_)) => failure.hint("see what each device gives with `kith devices`, and change it with `kith device set`"),
        CommandFailure::Refused(CommandError::Author(AuthorError::NotAllowed)) if failure.what.starts_with("remove the device") => failure.hint("admins are removed with the 24 words: --words; anything else by an admin"),
        _ => failure,
    }
}

pub(in crate::run) fn store_failure(what: String, error: &StoreError) -> Failure {
    if error.is_full() {
        Failure::new(FailureKind::Full, what)
            .because(error)
            .hint("free some space on this disk, raise the quota with `kith up --quota`, or lower what stays free with `kith up --keep-free`, and try again; nothing stored before is lost")
    } else {
        Failure::new(FailureKind::Failed, what).because(error)
    }
}

pub(super) fn read_failure(what: String, error: &ReadError, online: bool) -> Failure {
    match error {
        ReadError::Unreachable { .. } if online => Failure::new(FailureKind::Unreachable, what)
            .because(error)
            .hint("bring a device that holds it online, or wait with --wait"),
        ReadError::Unreachable { .. } => Failure::new(FailureKind::Unreachable, what)
            .because(error)
            .hint("this device is not connected; start the daemon with `kith up` so that others can be asked"),
        ReadError::Store(store) => store_failure(what, store),
        ReadError::Open(_) => Failure::new(FailureKind::Corrupt, what).because(error),
        ReadError::Write(_) | ReadError::Cancelled => Failure::new(FailureKind::Failed, what).because(error),
    }
}

pub(super) fn restore_failure(what: String, error: &RestoreError, online: bool) -> Failure {
    match error {
        RestoreError::Exists { .. } => Failure::new(FailureKind::Exists, what)
            .because(error)
            .hint("overwrite it with --force, or choose another place with -o"),
        RestoreError::Read { path, source } => {
            read_failure(format!("{what}: {}", path.display()), source, online)
        }
        RestoreError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Failure::new(FailureKind::Full, what)
                .because(error)
                .hint("free some space there and try again")
        }
        RestoreError::Listing { .. } | RestoreError::Misnamed { .. } => {
            Failure::new(FailureKind::Corrupt, what).because(error)
        }
        RestoreError::Write { .. } => Failure::new(FailureKind::Failed, what).because(error),
    }
}

/// Why an archive was not written or read, for a person.
pub(super) fn archive_failure(what: String, error: &ArchiveError, online: bool) -> Failure {
    match error {
        ArchiveError::Block(source) => read_failure(what, source, online),
        ArchiveError::Store(source) => store_failure(what, source),
        ArchiveError::Exists { .. } => Failure::new(FailureKind::Exists, what)
            .because(error)
            .hint("overwrite it with --force, or choose another name"),
        ArchiveError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Failure::new(FailureKind::Full, what)
                .because(error)
                .hint("free some space there and try again")
        }
        ArchiveError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::new(FailureKind::NotFound, what)
                .because(error)
                .hint("see whether the path is right")
        }
        ArchiveError::NoArchive { .. } => Failure::new(FailureKind::Usage, what)
            .because(error)
            .hint("give a file that `kith export --car` made"),
        ArchiveError::NoRecord { .. } => Failure::new(FailureKind::Usage, what)
            .because(error)
            .hint("give a file that `kith export --car` made; read a plain archive of UnixFS files with --public"),
        ArchiveError::Log => Failure::new(FailureKind::Corrupt, what)
            .because(error)
            .hint("start this device again: it looks over its log then, and asks others for what is lost"),
        _ => Failure::new(FailureKind::Failed, what).because(error),
    }
}

pub(super) fn keys_changed(target: &TreePath) -> Failure {
    Failure::new(
        FailureKind::Failed,
        format!(
            "store {}: a device was removed meanwhile, and the keys have changed",
            shown(target)
        ),
    )
    .hint("store it again")
}

pub(super) fn put_failure(path: &Path, error: &io::Error) -> Failure {
    let what = format!("store {}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(FailureKind::NotFound, what).because(error).hint("see whether the path is right"),
        io::ErrorKind::StorageFull => Failure::new(FailureKind::Full, what)
            .because(error)
            .hint("free some space on the disk of the data folder, raise the quota with `kith up --quota`, or lower what stays free with `kith up --keep-free`, and try again; nothing stored before is lost"),
        _ => Failure::new(FailureKind::Failed, what).because(error),
    }
}
