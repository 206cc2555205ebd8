//! What a person may ask for, and why it may not be possible.

use kith_object::object::ObjectLink;
use kith_object::tree::FileKind;

use super::path::TreePath;
use super::record::VersionId;

/// One thing to be done to the tree. Paths are those that show, suffixes included.
///
/// Spec: `protocol/spec/names.md`, "Changes".
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Puts a file or symlink there; a new version if there is one.
    File {
        /// Where; folders that miss are made.
        path: TreePath,
        /// File or symlink; a folder is taken as [`Change::Folder`].
        kind: FileKind,
        /// Its bytes, or the symlink's target.
        link: ObjectLink,
        /// Time of last change in milliseconds since 1970.
        mtime_ms: u64,
        /// Permission bits; others are dropped.
        mode: u32,
    },
    /// Makes a folder, or gives an existing one these properties.
    Folder {
        /// Where; folders that miss are made.
        path: TreePath,
        /// The snapshot of all in it, if there is one.
        link: Option<ObjectLink>,
        /// Time of last change in milliseconds since 1970.
        mtime_ms: u64,
        /// Permission bits; others are dropped.
        mode: u32,
    },
    /// Moves or renames what stands at `from`; nothing may stand at `to`.
    Move {
        /// What.
        from: TreePath,
        /// Its new path, not the folder around it; folders that miss are made.
        to: TreePath,
    },
    /// Removes what stands there.
    Remove {
        /// What.
        path: TreePath,
        /// Take a folder with all in it; otherwise it has to be empty.
        recursive: bool,
    },
    /// Brings a version back to that path: a file as a new version of what stands there, a removed folder with all that went with it.
    Restore {
        /// Where; folders that miss are made.
        path: TreePath,
        /// Which version.
        version: VersionId,
    },
}

/// Why a change cannot be done. None of the list is then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing of that name.
    #[error("{path} does not exist")]
    NotFound {
        /// The path asked for.
        path: TreePath,
    },
    /// A file or symlink stands where a folder is needed.
    #[error("{path} is not a folder")]
    NotAFolder {
        /// The path in the way.
        path: TreePath,
    },
    /// A folder stands where a file is to go.
    #[error("{path} is a folder")]
    IsAFolder {
        /// The path in the way.
        path: TreePath,
    },
    /// Something stands where something is to be moved.
    #[error("{path} exists already")]
    Exists {
        /// The path in the way.
        path: TreePath,
    },
    /// A folder with something in it is to go, but not with all in it.
    #[error("{path} is not empty")]
    NotEmpty {
        /// The folder.
        path: TreePath,
    },
    /// A folder cannot move into itself.
    #[error("{from} cannot move into itself, to {to}")]
    IntoItself {
        /// The folder.
        from: TreePath,
        /// A path inside it.
        to: TreePath,
    },
    /// The root folder is always there, as it is.
    #[error("the root folder cannot be moved, removed or replaced")]
    IsRoot,
    /// No version of that id.
    #[error("version {version} does not exist")]
    NoSuchVersion {
        /// The version asked for.
        version: VersionId,
    },
    /// The version is a removal.
    #[error("version {version} is a removal and holds nothing")]
    NothingInIt {
        /// The version asked for.
        version: VersionId,
    },
    /// The folder was never removed, so it need not be brought back.
    #[error("the folder is still there, at {path}")]
    StillThere {
        /// Where it is now.
        path: TreePath,
    },
}
