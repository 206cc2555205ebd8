//! How a command ends when it does not end well.

use kith_protocol::api::{Failure, FailureKind};

/// Exit codes, stable for scripts.
pub(crate) mod exit {
    /// Failed.
    pub(crate) const FAILED: u8 = 1;
    /// Wrong usage.
    pub(crate) const USAGE: u8 = 2;
    /// Done in part.
    pub(crate) const PARTIAL: u8 = 3;
    /// No daemon, and the command needs one.
    pub(crate) const NO_DAEMON: u8 = 4;
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// As the node tells it.
    Failed(Failure),
    /// The command needs a daemon and none answers.
    NoDaemon,
    /// Standard output was closed by its reader: not an error.
    Closed,
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::Closed;
        }
        Self::Failed(Failure::new(FailureKind::Failed, "write the result").because(&error))
    }
}

impl CommandError {
    /// The code the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failure) => match failure.kind {
                FailureKind::Usage => exit::USAGE,
                FailureKind::Partial => exit::PARTIAL,
                _ => exit::FAILED,
            },
            Self::NoDaemon => exit::NO_DAEMON,
            Self::Closed => 0,
        }
    }

    /// The failure as people and programs read it; `None` if there is nothing to say.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Failed(failure) => Some(failure.clone()),
            Self::NoDaemon => Some(
                Failure::new(
                    FailureKind::Failed,
                    "no daemon answers for this data folder",
                )
                .hint("start one with `kith up`"),
            ),
            Self::Closed => None,
        }
    }
}

/// The failure as text: what, causes, hint.
pub(crate) fn text(failure: &Failure) -> String {
    let mut text = format!("Error: {}\n", failure.what);
    for cause in &failure.causes {
        text.push_str(&format!("Caused by: {cause}\n"));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("Hint: {hint}\n"));
    }
    text
}
