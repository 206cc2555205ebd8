//! What this device keeps whatever retention says, and retention itself: `pin`, `unpin`, `pins`, `retention`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kith_core::device::Command;
use kith_crdt::names::{Kept, Retention};
use kith_object::id::Cid;
use kith_object::object::ObjectLink;
use kith_object::pack::Class;
use kith_object::store::Verified;
use kith_object::tree::FileKind;
use kith_protocol::api::{self, Event, Failure, FailureKind, Name, What};

use super::super::Node;
use super::describe::kind_name;
use super::export::Made;
use super::failure::{archive_failure, change_failure};
use super::{ending, told, tree_path};
use crate::backup::{ArchiveError, Seen};
use crate::local::Teller;
use crate::pins::fetch::{Fetch, Reached};
use crate::pins::{Pin, Pins, PinsError};
use crate::restore::Item;

impl Node {
    /// The roots that this device keeps whatever retention says.
    ///
    /// # Errors
    /// If the file is damaged or cannot be read: then nobody knows what is pinned, and nothing may be left out.
    pub fn pins(&self) -> Result<Vec<Kept>, PinsError> {
        self.pins.kept()
    }

    /// Pins what is meant, then fetches all of it. Cancelled in between, the pin stands.
    pub(super) async fn pin(&self, what: What, wait: bool, tell: &Teller) -> Result<(), Failure> {
        // What it is made of may be on its way out: nothing goes until it is known to be pinned, and here.
        let _lease = self.store.lease_all();
        let (label, pin) = self.to_pin(&what, wait, tell).await?;
        let doing = || format!("pin {label}");
        let pinned = pin.clone();
        self.change_pins(doing(), move |pins| pins.add(pinned))
            .await?;
        let source = self.source(wait).await?;
        let seen = Arc::new(Seen::default());
        let work = {
            let (source, seen) = (source.clone(), seen.clone());
            let (kind, link) = (pin.kind, pin.link.clone());
            move || {
                Fetch::new(&source, &seen)
                    .run(kind, link)
                    .map_err(ArchiveError::block)
            }
        };
        let reached: Reached = self.exporting(&doing, &source, &seen, tell, work).await?;
        let (cid, size) = (pin.link.cid(), reached.size.max(pin.size));
        if size != pin.size {
            self.change_pins(doing(), move |pins| pins.set_size(&cid, size))
                .await?;
        }
        for text in &reached.told {
            let text = format!("not here yet: {text}");
            told(tell, Event::Warning { text }).await?;
        }
        let event = Event::Pinned {
            pin: shown(&Pin { size, ..pin }),
            blocks: reached.blocks,
            bytes: seen.bytes.load(Ordering::Relaxed),
            missing: reached.missing,
        };
        told(tell, event).await?;
        if reached.missing == 0 {
            return Ok(());
        }
        let what = format!(
            "{}: the pin stands, but {} blocks or folders of it could not be had",
            doing(),
            reached.missing
        );
        let hint = if self.asker.is_online() {
            "bring a device that holds them online and pin it again, or wait for them with --wait"
        } else {
            "start the daemon with `kith up`, so that others can be asked, and pin it again"
        };
        Err(Failure::new(FailureKind::Partial, what).hint(hint))
    }

    pub(super) async fn unpin(&self, what: What, tell: &Teller) -> Result<(), Failure> {
        let (label, cid) = match &what {
            What::Cid(text) => (text.clone(), Some(parse(text)?)),
            What::Path(name) => {
                let path = tree_path(name)?;
                let here = self
                    .look({
                        let path = path.clone();
                        move |device| device.tree().resolve(&path)?.link.map(|link| link.cid())
                    })
                    .await?;
                (path.to_string(), here)
            }
        };
        let doing = format!("unpin {label}");
        let name = match &what {
            What::Cid(_) => None,
            What::Path(name) => Some(tree_path(name)?.to_bytes()),
        };
        let removed = self
            .change_pins(doing.clone(), move |pins| unpinned(pins, name, cid))
            .await?;
        if removed.is_empty() {
            let failure = Failure::new(FailureKind::NotFound, format!("{doing}: it is not pinned"));
            return Err(failure.hint("see what is with `kith pins`"));
        }
        for pin in &removed {
            told(tell, Event::Unpinned { pin: shown(pin) }).await?;
        }
        Ok(())
    }

    pub(super) async fn list_pins(&self, tell: &Teller) -> Result<(), Failure> {
        let pins = self
            .change_pins("list the pins".to_owned(), |pins| {
                pins.all().cloned().collect::<Vec<Pin>>()
            })
            .await?;
        for pin in &pins {
            told(tell, Event::Pin { pin: shown(pin) }).await?;
        }
        Ok(())
    }

    /// Shows which versions keep their content, after setting it if that is wanted.
    pub(super) async fn retention(
        &self,
        set: [Option<u32>; 3],
        tell: &Teller,
    ) -> Result<(), Failure> {
        if set.iter().any(Option::is_some) {
            let holds = self.look(|device| device.retention()).await?;
            let [all, daily, monthly] = set;
            let retention = Retention {
                all: all.unwrap_or(holds.all),
                daily: daily.unwrap_or(holds.daily),
                monthly: monthly.unwrap_or(holds.monthly),
            };
            self.asker
                .command(Command::SetRetention(retention))
                .await
                .map_err(|error| {
                    change_failure("change how long versions are kept".to_owned(), error)
                })?;
        }
        let holds = self.look(|device| device.retention()).await?;
        let days = |days: u32| (days != Retention::FOREVER).then_some(days);
        let event = Event::Retention {
            all: days(holds.all),
            daily: days(holds.daily),
            monthly: days(holds.monthly),
        };
        told(tell, event).await
    }

    /// What a pin of that would be; the listing of a folder of the tree is made, and lasts.
    async fn to_pin(
        &self,
        what: &What,
        wait: bool,
        tell: &Teller,
    ) -> Result<(String, Pin), Failure> {
        if let What::Cid(text) = what {
            // What is pinned already need not be known to the tree any more.
            let cid = parse(text)?;
            let known = self
                .change_pins(format!("pin {text}"), move |pins| pins.of(&cid).cloned())
                .await?;
            if let Some(pin) = known {
                return Ok((text.clone(), pin));
            }
        }
        let (label, item) = self.find(what, wait, tell).await?;
        let name = match what {
            What::Cid(_) => Vec::new(),
            What::Path(name) => tree_path(name)?.to_bytes(),
        };
        let size = size_of(&item);
        let (kind, link) = match item {
            Item::Leaf { kind, link, .. } => (kind, link),
            Item::Snapshot { link, .. } => (FileKind::Folder, link),
            Item::Root { link } => (self.kind_of(link.clone()).await?, link),
            folder @ Item::Folder { .. } => {
                (FileKind::Folder, self.list_folder(&label, folder).await?)
            }
        };
        let pin = Pin {
            link,
            kind,
            size,
            name,
        };
        Ok((label, pin))
    }

    /// What the versions say that this object is; if they disagree, what reaches more.
    pub(super) async fn kind_of(&self, link: ObjectLink) -> Result<FileKind, Failure> {
        self.look(move |device| {
            let versions = device.tree().versions();
            let kinds = versions
                .filter(|(_, record)| record.link.as_ref() == Some(&link))
                .map(|(_, record)| record.kind);
            kinds
                .max_by_key(|kind| *kind == FileKind::Folder)
                .unwrap_or(FileKind::File)
        })
        .await
    }

    /// Stores a listing of a folder as the tree shows it, with those of the folders in it.
    async fn list_folder(&self, label: &str, folder: Item) -> Result<ObjectLink, Failure> {
        let doing = || format!("list the folder {label}");
        let secrets = self.look(|device| device.replica().dedup_secrets()).await?;
        let secret = secrets.into_iter().next().ok_or_else(|| {
            Failure::new(
                FailureKind::Denied,
                format!("{}: this device has no keys of this space", doing()),
            )
        })?;
        let source = self.source(false).await?;
        let store = self.store.clone();
        let made = tokio::task::spawn_blocking(move || {
            let mut made = Made::new(&secret);
            let entry = made.entry(&source, Vec::new(), folder)?;
            for (cid, block) in &made.blocks {
                store
                    .put_verified(Class::Bulk, Verified::computed(*cid, block))
                    .map_err(ArchiveError::store)?;
            }
            store.flush().map_err(ArchiveError::store)?;
            Ok(entry.link)
        });
        let made = made
            .await
            .map_err(|error| Failure::new(FailureKind::Failed, doing()).because(&error))?;
        made.map_err(|error: ArchiveError| archive_failure(doing(), &error, self.asker.is_online()))
    }

    async fn change_pins<T: Send + 'static>(
        &self,
        doing: String,
        change: impl FnOnce(&mut Pins) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let pins = self.pins.clone();
        let changed = tokio::task::spawn_blocking(move || pins.change(change)).await;
        let changed = changed.map_err(|_| ending())?;
        changed.map_err(|error| pins_failure(doing, &error))
    }
}

/// Takes out what was pinned under that name; if nothing was, that root.
fn unpinned(pins: &mut Pins, name: Option<Vec<u8>>, cid: Option<Cid>) -> Vec<Pin> {
    let mut roots = name.map_or_else(Vec::new, |name| pins.named(&name));
    if roots.is_empty() {
        roots.extend(cid);
    }
    roots.iter().filter_map(|root| pins.remove(root)).collect()
}

fn parse(text: &str) -> Result<Cid, Failure> {
    text.parse().map_err(|error| {
        Failure::new(FailureKind::Usage, format!("understand the CID {text}")).because(&error)
    })
}

fn size_of(item: &Item) -> u64 {
    match item {
        Item::Leaf { link, .. } => link.size,
        Item::Folder { children, .. } => children
            .iter()
            .fold(0, |sum: u64, (_, child)| sum.saturating_add(size_of(child))),
        Item::Snapshot { .. } | Item::Root { .. } => 0,
    }
}

fn shown(pin: &Pin) -> api::Pin {
    api::Pin {
        cid: pin.link.cid().to_string(),
        name: (!pin.name.is_empty()).then(|| Name(pin.name.clone())),
        kind: kind_name(pin.kind),
        size: pin.size,
    }
}

fn pins_failure(what: String, error: &PinsError) -> Failure {
    match error {
        PinsError::Full => Failure::new(FailureKind::Full, what)
            .because(error)
            .hint("unpin what need not be kept, or pin a folder that holds many"),
        PinsError::Home(crate::config::HomeError::SideDamaged { path }) => Failure::new(
            FailureKind::Corrupt,
            what,
        )
        .because(error)
        .hint(format!(
            "nothing is removed while it is so; delete {} and pin again what you want to keep",
            path.display()
        )),
        PinsError::Home(_) => Failure::new(FailureKind::Failed, what).because(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use kith_protocol::api::Request;

    use super::*;
    use crate::config::Home;
    use crate::local::{Service, call_here, no_input};

    async fn call(node: &Arc<Node>, request: Request) -> Vec<Event> {
        let service: Arc<dyn Service> = node.clone();
        let mut call = call_here(service, request, no_input());
        let mut events = Vec::new();
        while let Some((event, _)) = call.next().await.unwrap() {
            events.push(event);
        }
        events
    }

    fn name(path: &Path) -> Name {
        Name(path.to_str().unwrap().as_bytes().to_vec())
    }

    /// A device with two files, all of whose packs may go to make room.
    async fn cached_device(folder: &Path) -> Home {
        let home = Home::at(folder.join("home"));
        Node::create(&home, "one", |_| Ok(())).await.unwrap();
        let node = Node::open(home.clone()).await.unwrap();
        fs::create_dir(folder.join("box")).unwrap();
        for (file, byte) in [("box/pinned", 1), ("other", 2)] {
            fs::write(folder.join(file), [byte; 5000]).unwrap();
        }
        let sources = vec![name(&folder.join("box")), name(&folder.join("other"))];
        let request = Request::Put {
            sources,
            to: None,
            contents: false,
        };
        call(&node, request).await;
        node.store.close_packs().unwrap();
        node.close().await;
        drop(node);
        for entry in fs::read_dir(home.path().join(crate::store::PACKS)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|suffix| suffix == "pack") {
                fs::rename(&path, path.with_extension("cache")).unwrap();
            }
        }
        home
    }

    #[tokio::test]
    async fn pinned_blocks_do_not_go_with_cached_packs() {
        let folder = tempfile::tempdir().unwrap();
        let home = cached_device(folder.path()).await;
        let node = Node::open(home).await.unwrap();
        let what = What::Path(Name::from("/box"));
        let events = call(&node, Request::Pin { what, wait: false }).await;
        assert!(
            events
                .iter()
                .any(|event| matches!(event, Event::Pinned { missing: 0, .. })),
            "{events:?}"
        );
        let cached = node.store.cached_packs();
        assert!(!cached.is_empty());
        for pack in cached {
            node.store.evict(&pack).unwrap();
        }
        let kept = node.pins().unwrap();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].is_listing);
        let source = node.source(false).await.unwrap();
        let path = kith_crdt::names::TreePath::parse;
        for (at, is_here) in [(&b"/box/pinned"[..], true), (b"/other", false)] {
            let at = path(at).unwrap();
            let link = node
                .look(move |device| device.tree().resolve(&at).unwrap().link.unwrap())
                .await
                .unwrap();
            let source = source.clone();
            let read = tokio::task::spawn_blocking(move || source.read_whole(&link, 1 << 20))
                .await
                .unwrap();
            assert_eq!(read.is_ok(), is_here);
        }
        node.close().await;
    }

    #[tokio::test]
    async fn block_that_is_damaged_here_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let home = cached_device(folder.path()).await;
        let node = Node::open(home.clone()).await.unwrap();
        for entry in fs::read_dir(home.path().join(crate::store::PACKS)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|suffix| suffix == "cache") {
                let mut bytes = fs::read(&path).unwrap();
                for byte in bytes.iter_mut().skip(100) {
                    *byte ^= 1;
                }
                fs::write(&path, bytes).unwrap();
            }
        }
        let service: Arc<dyn Service> = node.clone();
        let what = What::Path(Name::from("/other"));
        let request = Request::Pin { what, wait: false };
        let mut call = call_here(service, request, no_input());
        let mut missing = None;
        let failure = loop {
            match call.next().await {
                Ok(Some((Event::Pinned { missing: lacks, .. }, _))) => missing = Some(lacks),
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(failure) => break failure,
            }
        };
        assert_eq!((failure.kind, missing), (FailureKind::Partial, Some(1)));
        assert_eq!(node.pins().unwrap().len(), 1);
        node.close().await;
    }
}
