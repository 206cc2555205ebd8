//! The keys of a scenario, as they stand in the file.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use serde::Deserialize;
use toml::Spanned;

use super::units::{Hours, Length, MINUTE, Range, Rate, Share, Signed, Size};

/// A table of the file with keys that others have too: of a way, or of when something happens. No unknown one is let through, which `serde` can do only for keys
/// that stand in the table itself.
macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $kind:ty,)* } has when) => {
        table! { $(#[$meta])* $name {
            $($(#[$of])* $field: $kind,)*
            at: Option<Spanned<Length>>,
            between: Option<Spanned<[Length; 2]>>,
            count: Option<Spanned<u64>>,
            every: Option<Spanned<Length>>,
        } }

        impl $name {
            /// When it happens.
            pub(super) fn times(&self) -> TimesText<'_> {
                TimesText {
                    what: &self.what,
                    at: self.at.as_ref(),
                    between: self.between.as_ref(),
                    count: self.count.as_ref(),
                    every: self.every.as_ref(),
                }
            }
        }
    };
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $kind:ty,)* } has way) => {
        table! { $(#[$meta])* $name {
            $($(#[$of])* $field: $kind,)*
            latency: Option<Spanned<Range<Length>>>,
            loss: Option<Spanned<Share>>,
            bursts: Option<Spanned<BurstsText>>,
            reordered: Option<Spanned<Share>>,
            duplicated: Option<Spanned<Share>>,
            mtu: Option<Spanned<Size>>,
        } }

        impl $name {
            /// What lies on it.
            pub(super) fn way(&self) -> WayText<'_> {
                WayText {
                    latency: self.latency.as_ref(),
                    loss: self.loss.as_ref(),
                    bursts: self.bursts.as_ref(),
                    reordered: self.reordered.as_ref(),
                    duplicated: self.duplicated.as_ref(),
                    mtu: self.mtu.as_ref(),
                }
            }
        }
    };
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $name {
            $($(#[$of])* pub(super) $field: $kind,)*
        }
    };
}

/// When something happens.
pub(super) struct TimesText<'a> {
    pub(super) what: &'a Spanned<String>,
    pub(super) at: Option<&'a Spanned<Length>>,
    pub(super) between: Option<&'a Spanned<[Length; 2]>>,
    pub(super) count: Option<&'a Spanned<u64>>,
    pub(super) every: Option<&'a Spanned<Length>>,
}

/// What lies between two devices.
pub(super) struct WayText<'a> {
    pub(super) latency: Option<&'a Spanned<Range<Length>>>,
    pub(super) loss: Option<&'a Spanned<Share>>,
    pub(super) bursts: Option<&'a Spanned<BurstsText>>,
    pub(super) reordered: Option<&'a Spanned<Share>>,
    pub(super) duplicated: Option<&'a Spanned<Share>>,
    pub(super) mtu: Option<&'a Spanned<Size>>,
}

table! { File {
    #[serde(default)]
    about: String,
    duration: Option<Spanned<Length>>,
    #[serde(default = "five_minutes")]
    settle: Spanned<Length>,
    #[serde(default = "five_minutes")]
    read: Spanned<Length>,
    gossip_loss: Option<Spanned<Share>>,
    #[serde(default)]
    between: BetweenText,
    #[serde(default)]
    site: Vec<SiteText>,
    #[serde(default)]
    line: Vec<LineText>,
    #[serde(default)]
    link: Vec<LinkText>,
    device: Spanned<Vec<DeviceText>>,
    #[serde(default)]
    work: Vec<Spanned<WorkText>>,
    #[serde(default)]
    fault: Vec<Spanned<FaultText>>,
    #[serde(default)]
    harm: Vec<HarmText>,
} }

fn five_minutes() -> Spanned<Length> {
    Spanned::new(0..0, Length(5 * MINUTE))
}

table! { BurstsText {
    loss: Spanned<Share>,
    every: Spanned<Length>,
    lasts: Spanned<Range<Length>>,
} }

table! {
    #[derive(Default)]
    BetweenText {} has way
}

table! { SiteText {
    name: Spanned<String>,
    up: Option<Spanned<Rate>>,
    down: Option<Spanned<Rate>>,
    nat: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
    region: Option<Spanned<String>>,
} has way }

table! { LineText {
    site: Spanned<String>,
    hours: Spanned<Hours>,
    up: Option<Spanned<Rate>>,
    down: Option<Spanned<Rate>>,
    latency: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
    #[serde(default)]
    metered: bool,
    shut: Option<Spanned<bool>>,
} }

table! { LinkText {
    between: Spanned<Vec<Spanned<String>>>,
} has way }

table! { DeviceText {
    name: Spanned<String>,
    count: Option<Spanned<u64>>,
    site: Option<Spanned<String>>,
    #[serde(default)]
    admin: bool,
    skew: Option<Spanned<Signed>>,
    drift: Option<Spanned<i64>>,
    online: Option<Spanned<Hours>>,
    capacity: Option<Spanned<Size>>,
    gives: Option<Spanned<Size>>,
    grace: Option<Spanned<Length>>,
    fails: Option<Spanned<Share>>,
    relay: Option<bool>,
    cpu: Option<Spanned<Length>>,
    reads: Option<Spanned<Range<Length>>>,
    syncs: Option<Spanned<Range<Length>>>,
} }

table! { WorkText {
    what: Spanned<String>,
    devices: Option<Vec<Spanned<String>>>,
    size: Option<Spanned<Range<Size>>>,
    files: Option<Spanned<u64>>,
} has when }

table! { FaultText {
    what: Spanned<String>,
    devices: Option<Vec<Spanned<String>>>,
    lasts: Option<Spanned<Range<Length>>>,
    groups: Option<Spanned<Vec<Vec<Spanned<String>>>>>,
    one_way: Option<Spanned<bool>>,
    jump: Option<Spanned<Signed>>,
    age: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
    chance: Option<Spanned<Share>>,
    room: Option<Spanned<Size>>,
    cpu: Option<Spanned<Length>>,
    disk: Option<Spanned<Length>>,
} has when }

table! { HarmText {
    what: Spanned<String>,
    devices: Vec<Spanned<String>>,
} has when }
