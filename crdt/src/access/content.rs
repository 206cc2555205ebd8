//! What one entry of `access` says, if its records make one of the shapes that are allowed.

use std::collections::BTreeSet;

use kith_object::id::{DeviceId, EpochId, SpaceId};

use super::record::{Genesis, Member, Removal, kind};
use crate::chain::{Record, push_record, records};
use crate::epoch::{ENVELOPES_MAX, Envelope, EpochRecord, LINKS_MAX, Link, PARENTS_MAX};

/// The open part of an entry of `access`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Opened {
    pub(crate) genesis: Option<Genesis>,
    pub(crate) epoch: Option<EpochRecord>,
    pub(crate) links: Vec<Link>,
    pub(crate) envelopes: Vec<Envelope>,
    /// Holds a record of a type this program does not know.
    pub(crate) unknown: bool,
}

impl Opened {
    /// Reads the records; `None` unless they stand in the one order, each within its bounds.
    pub(crate) fn decode(body: &[u8], space: &SpaceId) -> Option<Self> {
        let mut opened = Self::default();
        let list = records(body).ok()?;
        if !list.is_sorted_by_key(|record| record.kind) {
            return None;
        }
        for Record { kind, body } in list {
            match kind {
                kind::GENESIS if opened.genesis.is_none() => {
                    opened.genesis = Some(Genesis::decode(body)?)
                }
                kind::EPOCH if opened.epoch.is_none() => {
                    opened.epoch = Some(EpochRecord::decode(body)?)
                }
                kind::LINK => opened.links.push(Link::decode(body)?),
                kind::ENVELOPE => opened.envelopes.push(Envelope::decode(body)?),
                kind::GENESIS | kind::EPOCH | kind::MEMBER | kind::REMOVAL => return None,
                _ => opened.unknown = true,
            }
        }
        let bounded = opened.links.len() <= LINKS_MAX && opened.envelopes.len() <= ENVELOPES_MAX;
        let ordered = opened
            .links
            .is_sorted_by(|one, other| one.order() < other.order())
            && opened
                .envelopes
                .is_sorted_by(|one, other| one.order() < other.order());
        // Links hang from the epoch that is opened here, and nowhere else.
        let own = opened.epoch.as_ref().map(|epoch| epoch.id(space));
        let hanging = opened
            .links
            .iter()
            .all(|link| Some(link.epoch) == own && Some(link.earlier) != own);
        // So do envelopes, unless they bring a newcomer the keys of epochs opened before.
        let own_only = own.is_none()
            || opened
                .envelopes
                .iter()
                .all(|envelope| Some(envelope.epoch) == own);
        // A newcomer gets the keys of the heads. Trying envelopes is costly, and this bounds it.
        let epochs: BTreeSet<EpochId> = opened
            .envelopes
            .iter()
            .map(|envelope| envelope.epoch)
            .collect();
        let few = epochs.len() <= PARENTS_MAX;
        (bounded && ordered && hanging && own_only && few).then_some(opened)
    }

    /// The records in their order.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(genesis) = &self.genesis {
            push_record(&mut out, kind::GENESIS, &genesis.encode());
        }
        if let Some(epoch) = &self.epoch {
            push_record(&mut out, kind::EPOCH, &epoch.encode());
        }
        for link in &self.links {
            push_record(&mut out, kind::LINK, &link.encode());
        }
        for envelope in &self.envelopes {
            push_record(&mut out, kind::ENVELOPE, &envelope.encode());
        }
        out
    }
}

/// The sealed part of an entry of `access`: one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sealed {
    Member(Member),
    Removal(Removal),
    /// A type this program does not know.
    Unknown,
}

impl Sealed {
    /// Reads the value of the one key that the entry's change puts: one record, framed as in a list.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let list = records(value).ok()?;
        let [Record { kind, body }] = list.as_slice() else {
            return None;
        };
        match *kind {
            kind::MEMBER => Member::decode(body).map(Self::Member),
            kind::REMOVAL => Removal::decode(body).map(Self::Removal),
            kind::GENESIS | kind::EPOCH | kind::LINK | kind::ENVELOPE => None,
            _ => Some(Self::Unknown),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Member(member) => push_record(&mut out, kind::MEMBER, &member.encode()),
            Self::Removal(removal) => push_record(&mut out, kind::REMOVAL, &removal.encode()),
            Self::Unknown => {}
        }
        out
    }
}

/// What an entry of `access` says. An entry of no allowed shape says nothing: [`Content::default`].
///
/// Spec: `protocol/spec/access.md`, "Shapes of entries".
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Content {
    pub(crate) genesis: Option<Genesis>,
    pub(crate) member: Option<Member>,
    pub(crate) removal: Option<Removal>,
    pub(crate) epoch: Option<EpochRecord>,
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) unknown: bool,
}

impl Content {
    /// Puts the parts together; `author` is needed because ending one's own membership opens no epoch.
    pub(crate) fn new(author: &DeviceId, sealed: Option<Sealed>, open: Option<Opened>) -> Self {
        let none = Self::default();
        let open_unknown = open.as_ref().is_some_and(|open| open.unknown);
        if open_unknown || sealed == Some(Sealed::Unknown) {
            return Self {
                unknown: true,
                ..none
            };
        }
        let open_is_empty = open.is_none();
        let open = open.unwrap_or_default();
        match sealed {
            None => match (&open.genesis, &open.epoch) {
                (Some(_), Some(epoch)) if epoch.parents.is_empty() && open.links.is_empty() => {
                    Self {
                        genesis: open.genesis,
                        epoch: open.epoch,
                        envelopes: open.envelopes,
                        ..none
                    }
                }
                (None, Some(epoch)) if !epoch.parents.is_empty() => Self {
                    epoch: open.epoch,
                    envelopes: open.envelopes,
                    ..none
                },
                _ => none,
            },
            Some(Sealed::Member(member)) => {
                let own = open
                    .envelopes
                    .iter()
                    .all(|envelope| envelope.recipient == member.agree);
                if own && open.genesis.is_none() && open.epoch.is_none() {
                    Self {
                        member: Some(member),
                        envelopes: open.envelopes,
                        ..none
                    }
                } else {
                    none
                }
            }
            Some(Sealed::Removal(removal)) if removal.device == *author => {
                if open_is_empty {
                    Self {
                        removal: Some(removal),
                        ..none
                    }
                } else {
                    none
                }
            }
            Some(Sealed::Removal(removal)) => match &open.epoch {
                Some(epoch) if open.genesis.is_none() && !epoch.parents.is_empty() => Self {
                    removal: Some(removal),
                    epoch: open.epoch,
                    envelopes: open.envelopes,
                    ..none
                },
                _ => none,
            },
            Some(Sealed::Unknown) => none,
        }
    }
}
