//! Public objects: put for anybody, listed, and had from anybody.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kith_object::id::Cid;
use kith_object::unixfs;
use kith_protocol::api::{self, Event, Failure, FailureKind, Name};
use zeroize::Zeroizing;

use super::super::{Node, held};
use super::failure::{restore_failure, store_failure};
use super::put::progress_event;
use super::{CancelOnDrop, PROGRESS_EVERY, told};
use crate::config::{fresh_rng, now};
use crate::ingest::Progress;
use crate::local::Teller;
use crate::net::Multiaddr;
use crate::net::outside::OutsideConfig;
use crate::net::wide::Scope;
use crate::outside::dag;
use crate::outside::driver::Outside;
use crate::outside::fetch::{FetchError, IntoFiles, PeerBlocks};
use crate::outside::published::{self, PublishError, Publisher, Root};
use crate::restore::{self, RestoreError};
use crate::source::Tally;

/// Most peers that one call asks.
const PEERS_MAX: usize = 16;
/// How long the search for peers that have it may take.
const FIND_WAIT: Duration = Duration::from_secs(60);
/// How long a dial may take.
const DIAL_WAIT: Duration = Duration::from_secs(15);

impl Node {
    pub(super) async fn put_public(
        &self,
        sources: Vec<Name>,
        profile: &str,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let profile = profile_named(profile)?;
        for source in sources {
            let what = || format!("publish {}", source.lossy());
            let path = PathBuf::from(OsStr::from_bytes(&source.0));
            let progress = Arc::new(Progress::default());
            let _cancel = CancelOnDrop({
                let progress = progress.clone();
                move || progress.cancelled.store(true, Ordering::Relaxed)
            });
            let outside = held(&self.outside).clone();
            let work = {
                let (store, home) = (self.store.clone(), self.home.clone());
                let (keys, progress) = (self.identity.keys.clone(), progress.clone());
                // One at a time reads the list and writes it.
                let turn = self.publishing.clone().lock_owned().await;
                move || {
                    let _turn = turn;
                    // What is found here already is relied on.
                    let _lease = store.lease_all();
                    let mut publisher =
                        Publisher::new(&store, profile, outside.as_ref(), &progress, home.path());
                    let kept = published::read(&home, &keys).map_err(PublishError::List)?;
                    let mut published = kept.unwrap_or_default();
                    if published.has_strays {
                        publisher = publisher.holding_back();
                    }
                    let (cid, size) = publisher.publish(&path)?;
                    let root = Root {
                        cid,
                        size,
                        at_ms: now().0,
                        name: published::name_of(&path),
                    };
                    published.add(root.clone())?;
                    published::write(&home, &keys, &published).map_err(PublishError::List)?;
                    if let Some(outside) = &outside {
                        if published.has_strays {
                            let reached = published::reached(&store, &published)
                                .map_err(|error| PublishError::Store(Box::new(error)))?;
                            outside.serve_only(Some(Arc::new(reached)));
                        }
                        publisher.tell();
                        outside.announce([&root.cid].into_iter());
                    }
                    Ok(root)
                }
            };
            let mut task = tokio::task::spawn_blocking(work);
            let mut ticks = tokio::time::interval(PROGRESS_EVERY);
            let done: Result<Root, PublishError> = loop {
                tokio::select! {
                    done = &mut task => {
                        break done.map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?;
                    }
                    _ = ticks.tick() => {
                        let _ = tell.try_send((progress_event(&progress), Bytes::new()));
                    }
                }
            };
            let root = done.map_err(|error| publish_failure(what(), &error))?;
            told(tell, event(root)).await?;
        }
        Ok(())
    }

    pub(super) async fn list_published(&self, tell: &Teller) -> Result<(), Failure> {
        let (home, keys) = (self.home.clone(), self.identity.keys.clone());
        let what = "list what is public";
        let roots = tokio::task::spawn_blocking(move || published::read(&home, &keys)).await;
        let roots = roots
            .map_err(|error| Failure::new(FailureKind::Failed, what).because(&error))?
            .map_err(|error| Failure::new(FailureKind::Corrupt, what).because(&error))?;
        for root in roots.unwrap_or_default().roots {
            told(tell, event(root)).await?;
        }
        Ok(())
    }

    pub(super) async fn unpublish(&self, cids: Vec<String>, tell: &Teller) -> Result<(), Failure> {
        let cids: Vec<Cid> = cids
            .iter()
            .map(|cid| parsed(cid))
            .collect::<Result<_, _>>()?;
        let what = || match cids.as_slice() {
            [cid] => format!("take back {cid}"),
            cids => format!("take back {} public objects", cids.len()),
        };
        let outside = held(&self.outside).clone();
        let work = {
            let (store, home, keys) = (
                self.store.clone(),
                self.home.clone(),
                self.identity.keys.clone(),
            );
            let (wanted, turn) = (cids.clone(), self.publishing.clone().lock_owned().await);
            move || {
                let _turn = turn;
                let kept = published::read(&home, &keys).map_err(PublishError::List)?;
                let mut published = kept.unwrap_or_default();
                let mut taken = Vec::new();
                for cid in wanted {
                    let roots = &mut published.roots;
                    let at = roots.iter().position(|root| root.cid == cid);
                    let at = at.ok_or(PublishError::Unknown(cid))?;
                    taken.push(roots.remove(at));
                }
                published.has_strays = true;
                // First, so that nothing is half done if the store cannot be read.
                let reached = published::reached(&store, &published)
                    .map_err(|error| PublishError::Store(Box::new(error)))?;
                published::write(&home, &keys, &published).map_err(PublishError::List)?;
                if let Some(outside) = outside {
                    outside.serve_only(Some(Arc::new(reached)));
                    outside.withdraw(taken.iter().map(|root| &root.cid));
                }
                Ok(taken)
            }
        };
        let done: Result<Vec<Root>, PublishError> = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?;
        let taken = done.map_err(|error| match &error {
            PublishError::Unknown(_) => Failure::new(FailureKind::NotFound, what())
                .because(&error)
                .hint("nothing was taken back; kith published lists what is public"),
            error => publish_failure(what(), error),
        })?;
        for Root {
            cid,
            size,
            at_ms,
            name,
        } in taken
        {
            let event = Event::Unpublished {
                cid: cid.to_string(),
                name: Name(name),
                size,
                at_ms,
            };
            told(tell, event).await?;
        }
        Ok(())
    }

    pub(super) async fn get_public(
        &self,
        cid: &str,
        (peers, dht): (&[String], Option<&str>),
        dest: Name,
        force: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let dht = dht.map(scope_named).transpose()?;
        let root = parsed(cid)?;
        let addrs = peers.iter().map(|peer| multiaddr(peer));
        let addrs = addrs.collect::<Result<Vec<Multiaddr>, Failure>>()?;
        if addrs.is_empty() || addrs.len() > PEERS_MAX {
            return Err(Failure::new(
                FailureKind::Usage,
                format!(
                    "ask {} peers: one at least, {PEERS_MAX} at most",
                    addrs.len()
                ),
            ));
        }
        let what = || format!("get {root} into {}", dest.lossy());
        // A name made for this call: who is asked learns neither the device nor what else it asks for.
        let seed = Zeroizing::new(fresh_rng().bytes());
        let config = OutsideConfig {
            dht,
            ..OutsideConfig::default()
        };
        let outside = Outside::start(seed, &config, None, None)
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?;
        let got = self
            .get_from(&outside, root, (&addrs, dht.is_some()), &dest, force, tell)
            .await;
        outside.stop().await;
        got
    }

    async fn get_from(
        &self,
        outside: &Arc<Outside>,
        root: Cid,
        (addrs, search): (&[Multiaddr], bool),
        dest: &Name,
        force: bool,
        tell: &Teller,
    ) -> Result<(), Failure> {
        let what = || format!("get {root} into {}", dest.lossy());
        let dials = addrs.iter().map(|addr| async move {
            let dialled = tokio::time::timeout(DIAL_WAIT, outside.dial(addr.clone())).await;
            let dialled = dialled.unwrap_or_else(|_| Err("it does not answer".to_owned()));
            (addr.to_string(), dialled)
        });
        let mut names = std::collections::BTreeMap::new();
        let mut causes = Vec::new();
        for (addr, dialled) in futures::future::join_all(dials).await {
            match dialled {
                Ok(peer) => {
                    names.insert(peer, addr);
                }
                Err(why) => causes.push(format!("{addr}: {why}")),
            }
        }
        // It may all be here.
        for cause in &causes {
            let text = format!("not reached: {cause}");
            told(tell, Event::Warning { text }).await?;
        }
        if search {
            let found = tokio::time::timeout(FIND_WAIT, outside.find(&root)).await;
            for peer in found.unwrap_or_default() {
                names.entry(peer).or_insert_with(|| peer.to_string());
            }
        }
        let tally = Arc::new(Tally::default());
        let _cancel = CancelOnDrop({
            let tally = tally.clone();
            move || tally.cancelled.store(true, Ordering::Relaxed)
        });
        let path = PathBuf::from(OsStr::from_bytes(&dest.0));
        let mut task = {
            let (store, outside, tally) = (self.store.clone(), outside.clone(), tally.clone());
            tokio::task::spawn_blocking(move || {
                let blocks = PeerBlocks::new(store, outside, tally.clone());
                let made = restore::make(&path, force, |temporary| {
                    let mut files = IntoFiles::new(temporary, &tally);
                    dag::unfold(&blocks, &root, &mut files).map_err(|source| RestoreError::Write {
                        path: path.clone(),
                        source,
                    })
                });
                made.map(|()| blocks.from())
            })
        };
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let done = loop {
            tokio::select! {
                done = &mut task => break done,
                _ = ticks.tick() => {
                    let (bytes, files) = (tally.bytes.load(Ordering::Relaxed), tally.files.load(Ordering::Relaxed));
                    let _ = tell.try_send((Event::Progress { bytes, total: None, files }, Bytes::new()));
                }
            }
        };
        let from = done
            .map_err(|error| Failure::new(FailureKind::Failed, what()).because(&error))?
            .map_err(|error| {
                let asked = names.values().map(|peer| format!("asked: {peer}"));
                let not_reached = causes.iter().map(|cause| format!("not reached: {cause}"));
                get_failure(what(), &error, asked.chain(not_reached))
            })?;
        let from = from.into_iter().map(|(peer, bytes)| api::FromDevice {
            device: names.get(&peer).cloned().unwrap_or_default(),
            name: String::new(),
            bytes,
        });
        let got = Event::Got {
            cid: Some(root.to_string()),
            dest: dest.clone(),
            size: tally.bytes.load(Ordering::Relaxed),
            files: tally.files.load(Ordering::Relaxed),
            from: from.collect(),
        };
        told(tell, got).await
    }
}

fn parsed(cid: &str) -> Result<Cid, Failure> {
    cid.parse().map_err(|error| {
        Failure::new(FailureKind::Usage, format!("understand the CID {cid}")).because(&error)
    })
}

fn event(root: Root) -> Event {
    Event::Published {
        cid: root.cid.to_string(),
        name: Name(root.name),
        size: root.size,
        at_ms: root.at_ms,
    }
}

/// The profile of that name.
pub(super) fn profile_named(name: &str) -> Result<unixfs::Profile, Failure> {
    unixfs::Profile::named(name).ok_or_else(|| {
        Failure::new(FailureKind::Usage, format!("use the profile {name}"))
            .hint("there are unixfs-v1-2025 and unixfs-v0-2015")
    })
}

fn scope_named(name: &str) -> Result<Scope, Failure> {
    match name {
        "lan" => Ok(Scope::Lan),
        "wan" => Ok(Scope::Wan),
        _ => Err(
            Failure::new(FailureKind::Usage, format!("look in the DHT {name}"))
                .hint("there are lan and wan"),
        ),
    }
}

fn multiaddr(text: &str) -> Result<Multiaddr, Failure> {
    text.parse().map_err(|error| {
        Failure::new(FailureKind::Usage, format!("understand the address {text}"))
            .because(&error)
            .hint("an address looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo...")
    })
}

fn publish_failure(what: String, error: &PublishError) -> Failure {
    match error {
        PublishError::Store(error) => store_failure(what, error),
        PublishError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::new(FailureKind::NotFound, what).because(error)
        }
        PublishError::Kind { .. } | PublishError::Own { .. } | PublishError::Names { .. } => {
            Failure::new(FailureKind::Usage, what)
                .because(error)
                .hint("nothing of it is public; leave that out and try again")
        }
        _ => Failure::new(FailureKind::Failed, what).because(error),
    }
}

fn get_failure(what: String, error: &RestoreError, peers: impl Iterator<Item = String>) -> Failure {
    let RestoreError::Write { source, .. } = error else {
        return restore_failure(what, error, true);
    };
    let lack = source
        .get_ref()
        .and_then(|error| error.downcast_ref::<FetchError>());
    match (lack, source.kind()) {
        (Some(lack @ FetchError::Unavailable(_)), _) => {
            let mut failure = Failure::new(FailureKind::Unreachable, what).because(lack);
            failure.causes.extend(peers);
            failure.hint("what came is kept, as long as there is room: give another peer, by an address that ends in /p2p/ and its id, and it goes on from there")
        }
        (_, io::ErrorKind::InvalidData) => Failure::new(FailureKind::Corrupt, what)
            .because(source)
            .hint("this is no public file or folder that Kith can read; nothing was written"),
        _ => restore_failure(what, error, true),
    }
}
