//! What goes wrong.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

use kith_object::time::Span;
use toml::Spanned;

use super::lines::loss;
use super::text::FaultText;
use super::units::{Length, MINUTE, Range};
use super::{Bad, LENGTH_MAX, Reading, SKEW_MAX, bad};
use crate::plan::{Fault, Wrong};

/// How much longer a slow device takes, each time.
const SLOW_MAX: u64 = MINUTE;

/// Each kind, with the keys that only some kinds have.
const KINDS: [(&str, &[&str]); 16] = [
    ("partition", &["groups", "one-way"]),
    ("crash", &["devices"]),
    ("unlucky", &["devices", "chance"]),
    ("away", &["devices"]),
    ("clock", &["devices", "jump"]),
    ("removed", &["devices"]),
    ("rot", &["devices"]),
    ("sector", &["devices"]),
    ("full", &["devices", "room"]),
    ("unwritable", &["devices"]),
    ("slow", &["devices", "cpu", "disk"]),
    ("restored", &["devices", "age"]),
    ("paused", &["devices"]),
    ("moved", &["devices"]),
    ("storm", &["loss"]),
    ("lost", &["devices"]),
];

fn names(of: impl Iterator<Item = &'static str>) -> String {
    of.collect::<Vec<_>>().join(", ")
}

/// The first key that the kind does not have.
fn foreign(text: &FaultText) -> Option<(&'static str, usize)> {
    let what = text.what.get_ref().as_str();
    let (_, own) = KINDS.iter().find(|(name, _)| *name == what)?;
    let place = |span: std::ops::Range<usize>| span.start;
    let devices = text.devices.as_ref();
    let given = [
        (
            "devices",
            devices.map(|devices| devices.first().unwrap_or(&text.what).span()),
        ),
        ("groups", text.groups.as_ref().map(Spanned::span)),
        ("one-way", text.one_way.as_ref().map(Spanned::span)),
        ("jump", text.jump.as_ref().map(Spanned::span)),
        ("age", text.age.as_ref().map(Spanned::span)),
        ("loss", text.loss.as_ref().map(Spanned::span)),
        ("chance", text.chance.as_ref().map(Spanned::span)),
        ("room", text.room.as_ref().map(Spanned::span)),
        ("cpu", text.cpu.as_ref().map(Spanned::span)),
        ("disk", text.disk.as_ref().map(Spanned::span)),
    ];
    let mut given = given.into_iter();
    given.find_map(|(key, span)| {
        let span = span?;
        (!own.contains(&key)).then(|| (key, place(span)))
    })
}

impl Reading {
    pub(super) fn fault(&self, text: &FaultText) -> Result<Fault, Bad> {
        let what = text.what.get_ref();
        if !KINDS.iter().any(|(name, _)| name == what) {
            let kinds = names(KINDS.iter().map(|(name, _)| *name));
            let what = format!("`{what}` does not go wrong, but {kinds}");
            return bad(&text.what, what);
        }
        if let Some((key, place)) = foreign(text) {
            let having = KINDS.iter().filter(|(_, own)| own.contains(&key));
            let what = format!("`{key}` is for {}", names(having.map(|(name, _)| *name)));
            return Err(Bad(place, what));
        }
        let wrong = self.wrong(text)?;
        if matches!(wrong, Wrong::Unlucky(_)) && (text.count.is_some() || text.every.is_some()) {
            let what = "`unlucky` has no `count` and no `every`, but `chance`";
            return bad(&text.what, what);
        }
        let lasts = match &text.lasts {
            Some(lasts) if !wrong.ends() => {
                return bad(lasts, "this does not end: leave `lasts` out");
            }
            Some(lasts) => {
                let Range(least, most) = *lasts.get_ref();
                if least.0 > most.0 || most.0 > LENGTH_MAX {
                    let what = "`lasts` is one length of time or two, the shorter first";
                    return bad(lasts, what);
                }
                (Span(least.0), Span(most.0))
            }
            None if wrong.ends() => return bad(&text.what, "say how long: `lasts`"),
            None => (Span(0), Span(0)),
        };
        Ok(Fault {
            wrong,
            devices: self.named(text.devices.as_ref())?,
            when: self.when(&text.times())?,
            lasts,
        })
    }

    fn wrong(&self, text: &FaultText) -> Result<Wrong, Bad> {
        let without = |what: &str| Err(Bad(text.what.span().start, what.to_owned()));
        Ok(match text.what.get_ref().as_str() {
            "partition" => {
                let mut groups = Vec::new();
                for group in text.groups.iter().flat_map(Spanned::get_ref) {
                    groups.push(self.named(Some(group))?);
                }
                match &text.one_way {
                    Some(place) if *place.get_ref() => {
                        if !matches!(groups.len(), 0 | 2) {
                            return bad(place, "one way is from one group to another: name two");
                        }
                        Wrong::OneWay(groups)
                    }
                    _ => Wrong::Partition(groups),
                }
            }
            "crash" => Wrong::Crash,
            "unlucky" => match &text.chance {
                Some(chance) if chance.get_ref().0 <= 1_000_000 => {
                    Wrong::Unlucky(chance.get_ref().0)
                }
                Some(chance) => return bad(chance, "`chance` is more than 100 %"),
                None => return without("say how often: `chance`"),
            },
            "away" => Wrong::Away,
            "removed" => Wrong::Removed,
            "rot" => Wrong::Rot,
            "sector" => Wrong::Sector,
            "full" => Wrong::Full(text.room.as_ref().map_or(0, |room| room.get_ref().0)),
            "unwritable" => Wrong::Unwritable,
            "slow" => {
                let (cpu, disk) = (slower(text.cpu.as_ref())?, slower(text.disk.as_ref())?);
                if cpu + disk == 0 {
                    return without("say how much longer each thing takes: `cpu`, `disk`");
                }
                Wrong::Slow { cpu, disk }
            }
            "paused" => Wrong::Paused,
            "moved" => Wrong::Moved,
            "lost" if text.devices.is_none() => {
                return without("say which devices are lost, all at once: `devices`");
            }
            "lost" => Wrong::Lost,
            "storm" => match &text.loss {
                Some(lost) => Wrong::Storm(loss(Some(lost))?),
                None => return without("say how many packets are lost: `loss`"),
            },
            "restored" => match &text.age {
                Some(age) => {
                    let Range(least, most) = *age.get_ref();
                    if least.0 > most.0 || most.0 > self.length {
                        let what =
                            "`age` is one length of time or two, the shorter first, of the run";
                        return bad(age, what);
                    }
                    Wrong::Restored((Span(least.0), Span(most.0)))
                }
                None => return without("say how old the backup is: `age`"),
            },
            _ => match &text.jump {
                Some(jump) if jump.get_ref().0.unsigned_abs() <= SKEW_MAX => {
                    Wrong::Clock(jump.get_ref().0)
                }
                Some(jump) => return bad(jump, "`jump` is more than ten years"),
                None => return without("say how far the clock jumps: `jump`"),
            },
        })
    }
}

fn slower(given: Option<&Spanned<Length>>) -> Result<u64, Bad> {
    match given {
        Some(length) if length.get_ref().0 > SLOW_MAX => {
            bad(length, "each thing takes a minute longer at most")
        }
        length => Ok(length.map_or(0, |length| length.get_ref().0)),
    }
}
