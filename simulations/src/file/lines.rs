//! Sites, their lines, and what lies between them.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use std::collections::BTreeMap;

use kith_object::time::Span;
use toml::Spanned;

use super::regions::{self, KINDS, REGIONS};
use super::text::{BurstsText, File, LineText, SiteText, WayText};
use super::units::{DAY, Length, Range, Rate, Share};
use super::{Bad, Reading, bad};
use crate::plan::{Access, Bursts, LineHours, MTU, Nat, Path, Site};

/// Longest one-way latency: further than any satellite.
const LATENCY_MAX: u64 = 10_000;
/// Bits a second that a line may carry.
const RATE_MIN: u64 = 1_000;
const RATE_MAX: u64 = 1_000_000_000_000;
/// Packets lost, of a million.
pub(super) const LOSS_MAX: u64 = 500_000;
/// Bytes of a packet.
const MTU_MIN: u64 = 576;
const MTU_MAX: u64 = 9_000;
/// From one burst of loss to the next.
const BURST_EVERY_MIN: u64 = 100;
/// Between two sites, if nothing else is said; and between two devices of one.
pub(super) const FAR: (u64, u64) = (1, 40);
const NEAR: (u64, u64) = (1, 3);

impl Reading {
    /// All sites of the file.
    pub(super) fn sites(&mut self, file: &File) -> Result<Vec<Site>, Bad> {
        let mut sites = Vec::new();
        for text in &file.site {
            let name = text.name.get_ref();
            if self.sites.insert(name.clone(), sites.len()).is_some() {
                return bad(&text.name, format!("there are two sites `{name}`"));
            }
            sites.push(site(text)?);
        }
        for text in &file.line {
            let place = self.site(&text.site)?;
            let line = line(text)?;
            if let Some(site) = sites.get_mut(place) {
                site.hours.push(line);
            }
        }
        Ok(sites)
    }

    /// What lies between two sites of which something is said.
    pub(super) fn links(&self, file: &File) -> Result<BTreeMap<(usize, usize), Path>, Bad> {
        let mut paths = BTreeMap::new();
        for link in &file.link {
            let [one, other] = link.between.get_ref().as_slice() else {
                return bad(&link.between, "a link is between two sites");
            };
            let (a, b) = (self.site(one)?, self.site(other)?);
            if a == b {
                return bad(other, "a link is between two sites that are not the same");
            }
            let path = way(&link.way(), FAR)?;
            if paths.insert((a.min(b), a.max(b)), path).is_some() {
                return bad(one, "there are two links between these sites");
            }
        }
        let mut regions = Vec::new();
        for (place, text) in file.site.iter().enumerate() {
            if let Some(name) = &text.region {
                let known: Vec<(&str, usize)> = REGIONS.iter().copied().zip(0..).collect();
                regions.push((place, one_of(name, "region", &known)?));
            }
        }
        for (nth, (site, region)) in regions.iter().enumerate() {
            for (before, other) in regions.iter().take(nth) {
                let path = Path::new(regions::latency(*region, *other));
                // What is said of a link holds.
                paths.entry((*before, *site)).or_insert(path);
            }
        }
        Ok(paths)
    }
}

fn site(text: &SiteText) -> Result<Site, Bad> {
    let nat = match &text.nat {
        Some(name) => one_of(name, "nat", &Nat::ALL)?,
        None => Nat::default(),
    };
    let kind = text.kind.as_ref();
    let kind = kind.map(|name| {
        one_of(
            name,
            "kind",
            &KINDS.each_ref().map(|kind| (kind.name, kind)),
        )
    });
    let kind = kind.transpose()?;
    Ok(Site {
        name: text.name.get_ref().clone(),
        up: rate(text.up.as_ref())?.or(kind.map(|kind| kind.up)),
        down: rate(text.down.as_ref())?.or(kind.map(|kind| kind.down)),
        access: kind.map_or(Access::default(), |kind| kind.access),
        inner: way(&text.way(), NEAR)?,
        nat,
        hours: Vec::new(),
    })
}

fn line(text: &LineText) -> Result<LineHours, Bad> {
    let shut = text.shut.as_ref().is_some_and(|shut| *shut.get_ref());
    let told = text.up.is_some()
        || text.down.is_some()
        || text.latency.is_some()
        || text.loss.is_some()
        || text.metered;
    if let (Some(place), true) = (&text.shut, shut && told) {
        return bad(
            place,
            "a line that is shut carries nothing: say no more of it",
        );
    }
    if !shut && !told {
        let what = "say what the line is at these hours: `up`, `down`, `latency`, `loss`, `metered` or `shut`";
        return bad(&text.hours, what);
    }
    Ok(LineHours {
        hours: (text.hours.get_ref().0, text.hours.get_ref().1),
        up: rate(text.up.as_ref())?,
        down: rate(text.down.as_ref())?,
        access: Access {
            latency: latency(text.latency.as_ref(), (0, 0))?,
            loss: loss(text.loss.as_ref())?,
        },
        metered: text.metered,
        shut,
    })
}

/// What a name stands for.
fn one_of<T: Copy>(name: &Spanned<String>, key: &str, known: &[(&str, T)]) -> Result<T, Bad> {
    if let Some((_, found)) = known.iter().find(|(known, _)| known == name.get_ref()) {
        return Ok(*found);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let what = format!(
        "`{}` is no `{key}`, which is one of {}",
        name.get_ref(),
        names.join(", ")
    );
    bad(name, what)
}

fn rate(given: Option<&Spanned<Rate>>) -> Result<Option<u64>, Bad> {
    match given {
        Some(rate) if !(RATE_MIN..=RATE_MAX).contains(&rate.get_ref().0) => bad(
            rate,
            format!("a line carries {RATE_MIN} to {RATE_MAX} bits a second"),
        ),
        given => Ok(given.map(|rate| rate.get_ref().0)),
    }
}

fn latency(given: Option<&Spanned<Range<Length>>>, usual: (u64, u64)) -> Result<(u64, u64), Bad> {
    let Some(latency) = given else {
        return Ok(usual);
    };
    let Range(least, most) = *latency.get_ref();
    if least.0 > most.0 || most.0 > LATENCY_MAX {
        let what =
            format!("`latency` is one time or two, the shorter first, up to {LATENCY_MAX}ms");
        return bad(latency, what);
    }
    Ok((least.0, most.0))
}

/// Of packets so many at most that something gets through.
pub(super) fn loss(given: Option<&Spanned<Share>>) -> Result<u64, Bad> {
    match given {
        Some(loss) if loss.get_ref().0 > LOSS_MAX => {
            bad(loss, "nothing gets through where more than half is lost")
        }
        loss => Ok(loss.map_or(0, |loss| loss.get_ref().0)),
    }
}

fn share(given: Option<&Spanned<Share>>, key: &str) -> Result<u64, Bad> {
    match given {
        Some(share) if share.get_ref().0 > LOSS_MAX => {
            bad(share, format!("`{key}` is more than 50 %"))
        }
        share => Ok(share.map_or(0, |share| share.get_ref().0)),
    }
}

fn bursts(given: &BurstsText) -> Result<Bursts, Bad> {
    let every = given.every.get_ref().0;
    if !(BURST_EVERY_MIN..=DAY).contains(&every) {
        let what = format!("from one burst to the next it is {BURST_EVERY_MIN}ms to a day");
        return bad(&given.every, what);
    }
    let Range(least, most) = *given.lasts.get_ref();
    if least.0 > most.0 || most.0 > every {
        let what =
            "`lasts` is one length of time or two, the shorter first, and no longer than `every`";
        return bad(&given.lasts, what);
    }
    Ok(Bursts {
        loss: loss(Some(&given.loss))?,
        every: Span(every),
        lasts: (Span(least.0), Span(most.0)),
    })
}

/// What lies between two devices.
pub(super) fn way(text: &WayText<'_>, usual: (u64, u64)) -> Result<Path, Bad> {
    let mtu = match text.mtu {
        Some(mtu) if !(MTU_MIN..=MTU_MAX).contains(&mtu.get_ref().0) => {
            return bad(mtu, format!("`mtu` is {MTU_MIN}B to {MTU_MAX}B"));
        }
        mtu => mtu.map_or(MTU, |mtu| mtu.get_ref().0),
    };
    let bursts = text.bursts.map(|text| bursts(text.get_ref()));
    Ok(Path {
        latency: latency(text.latency, usual)?,
        loss: loss(text.loss)?,
        bursts: bursts.transpose()?,
        reordered: share(text.reordered, "reordered")?,
        duplicated: share(text.duplicated, "duplicated")?,
        mtu,
    })
}
