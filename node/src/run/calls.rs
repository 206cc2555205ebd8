//! The calls of the local API, answered by a node.

mod describe;
mod devices;
mod doctor;
mod export;
pub(super) mod failure;
mod get;
mod import;
mod keeping;
mod pins;
mod public;
mod put;
mod tree;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kith_core::device::Device;
use kith_crdt::names::TreePath;
use kith_protocol::api::{Event, Failure, FailureKind, Name, Request};

use super::Node;
use crate::local::{Input, Service, Teller};

/// How long a call waits for another device to agree, and how often it looks.
const AGREE_WAIT: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often progress is told.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(200);

impl Service for Node {
    fn call(
        self: Arc<Self>,
        request: Request,
        input: Input,
        tell: Teller,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
        Box::pin(async move {
            match request {
                Request::Status => self.status(&tell).await,
                Request::Devices => self.devices(&tell).await,
                Request::Doctor => self.doctor(&tell).await,
                Request::Put {
                    sources,
                    to,
                    contents,
                } => self.put(sources, to, contents, &tell).await,
                Request::PutStream { to } => self.put_stream(to, input, &tell).await,
                Request::Get {
                    what,
                    dest,
                    force,
                    wait,
                } => self.get(what, dest, force, wait, &tell).await,
                Request::Cat {
                    what,
                    offset,
                    length,
                    wait,
                } => {
                    let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
                    self.cat(what, offset..end, wait, &tell).await
                }
                Request::GetPublic {
                    cid,
                    peers,
                    dht,
                    dest,
                    force,
                } => {
                    let from = (peers.as_slice(), dht.as_deref());
                    self.get_public(&cid, from, dest, force, &tell).await
                }
                Request::PutPublic { sources, profile } => {
                    self.put_public(sources, &profile, &tell).await
                }
                Request::Published => self.list_published(&tell).await,
                Request::Unpublish { cids } => self.unpublish(cids, &tell).await,
                Request::Export {
                    what,
                    file,
                    current,
                    public,
                    force,
                    wait,
                } => {
                    let how = export::How {
                        current,
                        public,
                        force,
                        wait,
                    };
                    self.export(what, file, how, &tell).await
                }
                Request::Import { file, to, public } => self.import(file, to, public, &tell).await,
                Request::Ls { path } => self.ls(path, &tell).await,
                Request::Mkdir { path, parents } => self.mkdir(path, parents).await,
                Request::Mv { from, to } => self.mv(from, to).await,
                Request::Rm { path, recursive } => self.rm(path, recursive).await,
                Request::History { path } => self.history(path, &tell).await,
                Request::Restore { path, version } => self.restore(path, version).await,
                Request::Pair { role, yes } => super::door::pair(&self, role, yes, &tell).await,
                Request::Confirm { ticket, accept } => {
                    super::door::confirm(&self, &ticket, accept).await
                }
                Request::DeviceRemove {
                    device,
                    words,
                    force,
                } => self.device_remove(device, words, force, &tell).await,
                Request::Verify {
                    percent,
                    rate,
                    resume,
                } => self.verify(percent, rate, resume, &tell).await,
                Request::Gc { dry_run } => self.clone().gc(dry_run, &tell).await,
                Request::Pin { what, wait } => self.pin(what, wait, &tell).await,
                Request::Unpin { what } => self.unpin(what, &tell).await,
                Request::Pins => self.list_pins(&tell).await,
                Request::Retention {
                    all,
                    daily,
                    monthly,
                } => self.retention([all, daily, monthly], &tell).await,
                Request::Policy { set } => self.policy(set, &tell).await,
                Request::Quota => self.quota(&tell).await,
                Request::DeviceSet {
                    device,
                    capacity,
                    site,
                    grace_s,
                    leaving,
                } => {
                    let wish = keeping::Wish {
                        capacity,
                        site,
                        grace_s,
                        leaving,
                    };
                    self.device_set(device, wish, &tell).await
                }
                Request::Where { what } => self.whereabouts(&what, &tell).await,
                Request::AwaitHolders { what } => self.await_holders(&what, &tell).await,
                Request::Stop => {
                    self.stop.notify_one();
                    Ok(())
                }
            }
        })
    }
}

/// The node is ending: nothing can be looked at any more.
fn ending() -> Failure {
    Failure::new(FailureKind::Failed, "ask the device: it is ending")
}

pub(super) async fn told(tell: &Teller, event: Event) -> Result<(), Failure> {
    tell.send((event, Bytes::new())).await.map_err(|_| {
        Failure::new(
            FailureKind::Failed,
            "tell the result: nobody listens any more",
        )
    })
}

fn tree_path(name: &Name) -> Result<TreePath, Failure> {
    TreePath::parse(&name.0).map_err(|error| {
        Failure::new(
            FailureKind::Usage,
            format!("understand the path {}", name.lossy()),
        )
        .because(&error)
        .hint("a path looks like /photos/2019/lake.jpg")
    })
}

fn shown(path: &TreePath) -> String {
    path.to_string()
}

/// Sets the flag when the call ends, however it ends, so that blocking work stops too.
pub(super) struct CancelOnDrop<F: Fn()>(pub(super) F);

impl<F: Fn()> Drop for CancelOnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Node {
    /// Waits a while for something to become true of a device that is online; whoever needs it finds out whether it did.
    async fn until(
        &self,
        true_of: impl Fn(&Device) -> bool + Send + Clone + 'static,
    ) -> Result<(), Failure> {
        let until = tokio::time::Instant::now() + AGREE_WAIT;
        loop {
            let check = true_of.clone();
            let done = self.look(move |device| check(device)).await?;
            if done || !self.asker.is_online() || tokio::time::Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Device) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.asker.look(look).await.ok_or_else(ending)
    }
}
