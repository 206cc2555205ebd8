//! The tree of names: what stands where, as all devices come to agree on.
//!
//! A [`Record`] is one version of an inode. The [`Tree`] is a fold over the versions that count; it keeps every current one in sight, whatever
//! devices did at the same time. A [`Change`] is what a person asks for; [`Tree::plan`] turns a list of them into the records that do it.
//!
//! Spec: `protocol/spec/names.md`, "Tree".

mod change;
mod path;
mod plan;
mod record;
mod retention;
mod rows;
mod slab;
mod sorted;
#[cfg(test)]
mod tests;
mod tree;
#[cfg(test)]
mod vectors;
mod view;

pub use change::{Change, PlanError};
pub use path::{PATH_BYTES_MAX, PathError, TreePath};
pub use record::{
    RECORD_BYTES_MAX, REPLACES_MAX, ROOT, Record, RecordError, VersionId, VersionIdError,
    VersionInfo,
};
pub use retention::{Kept, Retention};
pub use tree::Tree;
pub use view::{HistoryItem, Listed};
