//! What the inside tells its owner, and the queue that carries it.

use std::sync::Arc;

use bytes::Bytes;
use kith_object::id::DeviceId;
use libp2p::gossipsub::MessageId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::Channel;

/// Messages that wait for the owner, counted; beyond them the streams are not read.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Bytes that wait for the owner: eight of the largest messages.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Everything else that waits for the owner; beyond it the swarm stands still.
pub const QUEUE_NOTICES_MAX: usize = 1024;

/// Something that happened inside.
///
/// Of one device come first [`NetEvent::Connected`], then whatever concerns its connection, last [`NetEvent::Disconnected`]; nothing of it comes in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// We can be reached at this address.
    Listening(Multiaddr),
    /// We can no longer be reached at this address.
    NotListening(Multiaddr),
    /// A device is there; however many connections it has, it is told once.
    Connected(DeviceId),
    /// A device is gone. Tokens of messages to it that were not answered yet never will be.
    Disconnected(DeviceId),
    /// A dial that was asked for came to nothing.
    Unreachable(DeviceId),
    /// One whole message, without its length prefix, never longer than [`super::MESSAGE_BYTES_MAX`].
    Received {
        peer: DeviceId,
        channel: Channel,
        bytes: Bytes,
    },
    /// A message has been handed to the transport, which is no word on whether it arrived.
    Sent {
        peer: DeviceId,
        channel: Channel,
        token: u64,
        len: usize,
    },
    /// A message could not be written, on a fresh stream neither; the device is still connected.
    Unsent {
        peer: DeviceId,
        channel: Channel,
        token: u64,
        len: usize,
    },
    /// A device hears what is published from now on.
    Subscribed(DeviceId),
    /// A gossip message, its author's signature verified; it is passed on only after [`super::InsideHandle::verdict`].
    Published {
        from: DeviceId,
        bytes: Bytes,
        id: GossipId,
    },
    /// Where a connected device says that it can be reached; at most 16 addresses, unverified.
    Addresses {
        device: DeviceId,
        addrs: Vec<Multiaddr>,
    },
    /// A device wants this kept in the DHT under that key; unverified.
    Offered { key: [u8; 32], record: Bytes },
    /// What a device answers to a search for a record; unverified, and there may be several.
    Record { key: [u8; 32], record: Bytes },
    /// Answer to a search: allowed devices said to provide that key, at most 64.
    Providers { token: u64, devices: Vec<DeviceId> },
}

/// Names a gossip message until its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipId {
    /// What gossipsub calls it.
    pub(super) message: MessageId,
    /// The neighbour it came from.
    pub(super) via: PeerId,
}

/// Room in the queue, held until the owner takes the event out.
#[derive(Debug)]
pub(super) struct Room {
    _slot: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// What lies in the queue.
#[derive(Debug)]
enum Item {
    Event(NetEvent, Room),
    /// The inside has stopped; handles that live on would keep the queue open.
    End,
}

/// The owner is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnerGone;

/// The sending side of the queue. Room is waited for first, so that the push itself can be done under a lock.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    queue: mpsc::UnboundedSender<Item>,
    limits: Arc<Limits>,
}

#[derive(Debug)]
struct Limits {
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    notices: Arc<Semaphore>,
}

/// The owner's side of the queue.
#[derive(Debug)]
pub struct NetEvents {
    queue: mpsc::UnboundedReceiver<Item>,
    limits: Arc<Limits>,
}

/// A queue within the limits of this module.
pub(super) fn queue() -> (Outbox, NetEvents) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let limits = Arc::new(Limits {
        messages: Arc::new(Semaphore::new(QUEUE_MESSAGES_MAX)),
        bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
        notices: Arc::new(Semaphore::new(QUEUE_NOTICES_MAX)),
    });
    let outbox = Outbox {
        queue: sender,
        limits: limits.clone(),
    };
    let events = NetEvents {
        queue: receiver,
        limits,
    };
    (outbox, events)
}

impl Outbox {
    /// Waits for room for a message of that many bytes.
    pub(super) async fn room(&self, len: usize) -> Result<Room, OwnerGone> {
        let slot = self
            .limits
            .messages
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| OwnerGone)?;
        let bytes = match u32::try_from(len.min(QUEUE_BYTES_MAX)) {
            Ok(0) | Err(_) => None,
            Ok(len) => Some(
                self.limits
                    .bytes
                    .clone()
                    .acquire_many_owned(len)
                    .await
                    .map_err(|_| OwnerGone)?,
            ),
        };
        Ok(Room {
            _slot: slot,
            _bytes: bytes,
        })
    }

    /// Room for a message that may be dropped, if there is some now.
    pub(super) fn room_now(&self, len: usize) -> Option<Room> {
        let len = u32::try_from(len).ok()?;
        let slot = self.limits.messages.clone().try_acquire_owned().ok()?;
        let bytes = self.limits.bytes.clone().try_acquire_many_owned(len).ok()?;
        Some(Room {
            _slot: slot,
            _bytes: Some(bytes),
        })
    }

    /// Puts an event into room that was waited for.
    pub(super) fn push(&self, event: NetEvent, room: Room) {
        // A closed queue means that the owner is gone, and with it whoever cared.
        let _ = self.queue.send(Item::Event(event, room));
    }

    /// Ends the queue, behind what lies in it.
    pub(super) fn finish(&self) {
        let _ = self.queue.send(Item::End);
    }

    /// Waits for room for an event without payload and puts it in.
    pub(super) async fn notice(&self, event: NetEvent) -> Result<(), OwnerGone> {
        let slot = self
            .limits
            .notices
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| OwnerGone)?;
        self.push(
            event,
            Room {
                _slot: slot,
                _bytes: None,
            },
        );
        Ok(())
    }
}

impl NetEvents {
    /// The next event; `None` once the inside has stopped. Cancel safe.
    pub async fn recv(&mut self) -> Option<NetEvent> {
        match self.queue.recv().await? {
            Item::Event(event, _room) => Some(event),
            Item::End => {
                self.queue.close();
                None
            }
        }
    }

    /// The next event if one waits already.
    pub fn try_recv(&mut self) -> Option<NetEvent> {
        match self.queue.try_recv().ok()? {
            Item::Event(event, _room) => Some(event),
            Item::End => {
                self.queue.close();
                None
            }
        }
    }
}

impl Drop for NetEvents {
    fn drop(&mut self) {
        self.limits.messages.close();
        self.limits.bytes.close();
        self.limits.notices.close();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn message(len: usize) -> NetEvent {
        NetEvent::Received {
            peer: DeviceId([1; 32]),
            channel: Channel::Sync,
            bytes: Bytes::from(vec![0; len]),
        }
    }

    #[test]
    fn full_queue_waits_until_the_owner_takes() {
        let (outbox, mut events) = queue();
        for _ in 0..8 {
            let room = outbox.room(4 << 20).now_or_never().unwrap().unwrap();
            outbox.push(message(4 << 20), room);
        }
        assert!(outbox.room(1).now_or_never().is_none());
        assert!(outbox.room_now(1).is_none());
        assert!(
            outbox
                .notice(NetEvent::Connected(DeviceId([1; 32])))
                .now_or_never()
                .is_some()
        );
        assert!(events.try_recv().is_some());
        assert!(outbox.room(1).now_or_never().is_some());
    }

    #[test]
    fn messages_are_counted_as_well_as_their_bytes() {
        let (outbox, mut events) = queue();
        for _ in 0..QUEUE_MESSAGES_MAX {
            outbox.push(message(1), outbox.room_now(1).unwrap());
        }
        assert!(outbox.room(0).now_or_never().is_none());
        assert!(events.try_recv().is_some());
        assert!(outbox.room(0).now_or_never().is_some());
    }

    #[test]
    fn whoever_waits_hears_that_the_owner_is_gone() {
        let (outbox, events) = queue();
        drop(events);
        assert!(outbox.room(1).now_or_never().unwrap().is_err());
        assert!(
            outbox
                .notice(NetEvent::Connected(DeviceId([1; 32])))
                .now_or_never()
                .unwrap()
                .is_err()
        );
    }
}
