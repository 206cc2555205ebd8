//! Reads and changes the tree of names.

use kith_core::device::{Command, Device};
use kith_crdt::names::{Change, VersionId};
use kith_object::tree::FileKind;
use kith_protocol::api::{Event, Failure, FailureKind, Name};

use super::super::Node;
use super::describe::{entry, version};
use super::failure::{change_failure, not_found};
use super::{shown, told, tree_path};
use crate::config::now;
use crate::local::Teller;

impl Node {
    async fn change(&self, what: String, changes: Vec<Change>) -> Result<(), Failure> {
        self.until(Device::is_settled).await?;
        self.asker
            .command(Command::Change {
                changes,
                sealed_under: None,
            })
            .await
            .map_err(|error| change_failure(what, error))
    }

    pub(super) async fn ls(&self, path: Name, tell: &Teller) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let listed = {
            let path = path.clone();
            self.look(move |device| {
                let listed = device.tree().list(&path)?;
                Some(
                    listed
                        .iter()
                        .map(|listed| entry(device, listed))
                        .collect::<Vec<_>>(),
                )
            })
            .await?
        };
        for entry in listed.ok_or_else(|| not_found(&path))? {
            told(tell, Event::Entry(entry)).await?;
        }
        Ok(())
    }

    pub(super) async fn mkdir(&self, path: Name, parents: bool) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let (exists, parent) = {
            let (path, parent) = (path.clone(), path.parent());
            self.look(move |device| {
                let parent = parent.is_none_or(|parent| device.tree().resolve(&parent).is_some());
                (device.tree().resolve(&path).map(|node| node.kind), parent)
            })
            .await?
        };
        match exists {
            Some(FileKind::Folder) if parents => return Ok(()),
            Some(_) => {
                return Err(Failure::new(
                    FailureKind::Exists,
                    format!("make the folder {}: it is there already", shown(&path)),
                ));
            }
            None => {}
        }
        if !parent && !parents {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!(
                    "make the folder {}: the folder it should be in is missing",
                    shown(&path)
                ),
            )
            .hint("make the missing folders too with --parents"));
        }
        let what = format!("make the folder {}", shown(&path));
        self.change(
            what,
            vec![Change::Folder {
                path,
                link: None,
                mtime_ms: now().0,
                mode: 0o755,
            }],
        )
        .await
    }

    pub(super) async fn mv(&self, from: Name, to: Name) -> Result<(), Failure> {
        let (from, mut to) = (tree_path(&from)?, tree_path(&to)?);
        // A folder's new version names its old listing, which may be on its way out.
        let _lease = self.store.lease_all();
        let into = {
            let to = to.clone();
            self.look(move |device| {
                device
                    .tree()
                    .resolve(&to)
                    .is_some_and(|node| node.kind == FileKind::Folder)
            })
            .await?
        };
        if let (true, Some(base)) = (into, from.name()) {
            to = to.child(base).map_err(|error| {
                Failure::new(FailureKind::Usage, format!("move {}", shown(&from))).because(&error)
            })?;
        }
        let what = format!("move {} to {}", shown(&from), shown(&to));
        self.change(what, vec![Change::Move { from, to }]).await
    }

    pub(super) async fn rm(&self, path: Name, recursive: bool) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let what = format!("remove {}", shown(&path));
        self.change(what, vec![Change::Remove { path, recursive }])
            .await
    }

    pub(super) async fn history(&self, path: Name, tell: &Teller) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let versions = {
            let path = path.clone();
            self.look(move |device| {
                device
                    .tree()
                    .history(&path)
                    .iter()
                    .map(|item| version(device, item))
                    .collect::<Vec<_>>()
            })
            .await?
        };
        if versions.is_empty() {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!(
                    "show the history of {}: nothing ever stood there",
                    shown(&path)
                ),
            ));
        }
        for version in versions {
            told(tell, Event::Version(version)).await?;
        }
        Ok(())
    }

    pub(super) async fn restore(&self, path: Name, version: Option<String>) -> Result<(), Failure> {
        let path = tree_path(&path)?;
        let what = format!("restore {}", shown(&path));
        // What the version holds may be on its way out: nothing goes until it is current again.
        let _lease = self.store.lease_all();
        let items = {
            let path = path.clone();
            self.look(move |device| device.tree().history(&path))
                .await?
        };
        let chosen = match &version {
            Some(text) => {
                let wanted: VersionId = text.parse().map_err(|error| {
                    Failure::new(
                        FailureKind::Usage,
                        format!("{what}: understand the version {text}"),
                    )
                    .because(&error)
                })?;
                items.iter().find(|item| item.version.id == wanted)
            }
            None => items.iter().find(|item| !item.current && !item.deleted),
        };
        let Some(chosen) = chosen else {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("{what}: there is no such older version"),
            )
            .hint("see the versions with `kith history`"));
        };
        self.change(
            what,
            vec![Change::Restore {
                path,
                version: chosen.version.id,
            }],
        )
        .await
    }
}
